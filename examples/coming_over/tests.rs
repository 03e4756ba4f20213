//! What the blog does, before and after: the same file for both.

use std::io::{BufRead, BufReader};

use rocket::http::Status;
use rocket::local::blocking::{Client, LocalResponse};
use rocket::serde::json::{Value, json};
use tempfile::TempDir;

/// The blog as Rocket.toml configures it, but with its file in a folder of the test's own.
fn blog() -> (Client, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let rocket = super::rocket();
    let figment = rocket.figment().clone().merge(("databases.blog.url", folder.path().join("blog.db")));
    (Client::tracked(rocket.configure(figment)).unwrap(), folder)
}

fn create<'c>(client: &'c Client, title: &str) -> LocalResponse<'c> {
    client.post("/posts").json(&json!({ "title": title, "body": "Once upon a time." })).dispatch()
}

fn titles(client: &Client, uri: &str) -> Vec<String> {
    let posts: Vec<Value> = client.get(uri.to_owned()).dispatch().into_json().unwrap();
    posts.iter().map(|post| post["title"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_post_is_created_shown_and_deleted() {
    let (client, _folder) = blog();
    let created = create(&client, "First");
    assert_eq!(created.status(), Status::Created);
    let uri = created.headers().get_one("Location").unwrap().to_owned();
    let post: Value = created.into_json().unwrap();
    assert_eq!(client.get(&uri).dispatch().into_json::<Value>(), Some(post));

    assert_eq!(client.delete(&uri).dispatch().status(), Status::Ok);
    assert_eq!(client.get(&uri).dispatch().status(), Status::NotFound);
    assert_eq!(client.delete(&uri).dispatch().status(), Status::NotFound);
}

#[test]
fn posts_are_listed_in_either_order() {
    let (client, _folder) = blog();
    assert!(titles(&client, "/posts").is_empty());
    for title in ["Apples", "Cherries", "Bananas"] {
        create(&client, title);
    }
    assert_eq!(titles(&client, "/posts"), ["Bananas", "Cherries", "Apples"]);
    assert_eq!(titles(&client, "/posts?order=title"), ["Apples", "Bananas", "Cherries"]);
}

#[test]
fn an_import_is_done_as_a_whole() {
    let (client, _folder) = blog();
    let drafts = json!([{ "title": "One", "body": "1" }, { "title": "Two", "body": "2" }]);
    assert_eq!(client.post("/posts/import").json(&drafts).dispatch().status(), Status::Ok);
    assert_eq!(titles(&client, "/posts"), ["Two", "One"]);
}

#[test]
fn the_count_is_streamed() {
    let (client, _folder) = blog();
    create(&client, "First");
    // It never ends, and begins with a heartbeat.
    let mut lines = BufReader::new(client.get("/count").dispatch()).lines().map(Result::unwrap);
    assert_eq!(lines.find(|line| line.starts_with("data:")).as_deref(), Some("data:1"));
}
