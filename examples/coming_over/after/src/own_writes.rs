//! What the blog had no use for before: a slave, and a writer who does not notice how late it is.

use rocket::http::Status;
use rocket::local::blocking::Client;
use rocket::serde::json::json;

#[test]
fn a_writer_finds_the_new_post_though_the_slave_lacks_it() {
    let folder = tempfile::tempdir().unwrap();
    let [master, slave] = ["master.db", "slave.db"].map(|file| folder.path().join(file));
    // It is copied at launch, and then not for an hour.
    let slaves = json!([{ "url": slave, "name": "slave", "follow": 3600 }]);
    let rocket = crate::rocket();
    let figment = rocket
        .figment()
        .clone()
        .merge(("databases.blog.url", master))
        .merge(("databases.blog.slaves", slaves))
        .merge(("databases.blog.max_lag", false));
    // It keeps no cookies: the pin is carried by hand, or not.
    let client = Client::untracked(rocket.configure(figment)).unwrap();

    let post = json!({ "title": "First", "body": "Once upon a time." });
    let created = client.post("/posts").json(&post).dispatch();
    let uri = created.headers().get_one("Location").unwrap();
    let pin = created.cookies().get("blog_pin").unwrap().clone();
    assert_eq!(client.get(uri).cookie(pin).dispatch().status(), Status::Ok, "from the master");
    assert_eq!(client.get(uri).dispatch().status(), Status::NotFound, "from the slave, for a stranger");
}
