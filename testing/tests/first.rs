//! The test of the README.

use rocket::local::blocking::{Client, LocalResponse};
use rocket::{Build, Rocket, get, post, routes};
use rocket_replicated::Error;
use rocket_replicated::postgres::{Replicated, ReplicatedDb};
use rocket_replicated_testing::{Lab, assert_served_by, assert_served_by_slave};

#[get("/")]
async fn posts(db: ReplicatedDb) -> Result<String, Error> {
    let titles: Vec<String> = sqlx::query_scalar("SELECT title FROM posts").fetch_all(&db).await?;
    Ok(titles.join(", "))
}

#[post("/", data = "<title>")]
async fn publish(title: String, db: ReplicatedDb) -> Result<(), Error> {
    sqlx::query("INSERT INTO posts VALUES ($1)").bind(title).execute(&db).await?;
    Ok(())
}

fn rocket(figment: rocket::figment::Figment) -> Rocket<Build> {
    rocket::custom(figment).attach(Replicated::fairing()).mount("/", routes![posts, publish])
}

#[test]
fn authors_see_their_posts_at_once() {
    let lab = Lab::postgres(); // a master and two slaves, with a database for this test
    lab.sql("CREATE TABLE posts (title TEXT)");
    let author = Client::tracked(rocket(lab.figment())).unwrap();
    let stranger = Client::tracked(rocket(lab.figment())).unwrap();
    let body = |reply: LocalResponse<'_>| reply.into_string().unwrap();

    lab.pause(); // from now on, slaves replay nothing
    author.post("/").body("Hello").dispatch();
    let own = author.get("/").dispatch();
    assert_served_by(&own, "master");
    assert_eq!(body(own), "Hello");
    let others = stranger.get("/").dispatch();
    assert_served_by_slave(&others);
    assert_eq!(body(others), "");

    lab.resume(); // and waits until they have caught up
    assert_eq!(body(stranger.get("/").dispatch()), "Hello");
}

#[test]
fn the_readme_has_this_test() {
    let (_, this) = include_str!("first.rs").split_once("\n\n").unwrap();
    let (this, _) = this.split_once("\n#[test]\nfn the_readme").unwrap();
    assert!(include_str!("../README.md").contains(this));
}
