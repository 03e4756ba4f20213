//! A SQLite master that another connection has locked.

use rocket::http::Status;
use rocket::local::blocking::Client;
use rocket::{post, routes};
use rocket_replicated::Error;
use rocket_replicated::sqlite::{Replicated, ReplicatedDb};

use support::lab::sqlite::Lab;
use support::rocket_over;

#[post("/")]
async fn write(db: ReplicatedDb) -> Result<(), Error> {
    sqlx::query("INSERT INTO notes (id, body) VALUES (1, 'note')").execute(&db).await?;
    Ok(())
}

#[test]
fn a_locked_master_is_unavailable_for_a_while() {
    let lab = Lab::new();
    let section = format!("{}connect_timeout = 0.2", lab.section());
    let rocket = rocket_over(&section).attach(Replicated::fairing()).mount("/", routes![write]);
    let client = Client::untracked(rocket).unwrap();

    // The pool has a connection already, so that the statement meets the lock.
    let cluster = Replicated::fetch(client.rocket()).unwrap().clone();
    rocket::tokio::runtime::Runtime::new().unwrap().block_on(async {
        sqlx::query("SELECT 1").execute(&cluster.write()).await.unwrap();
    });
    let other = rusqlite::Connection::open(lab.file("master")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let response = client.post("/").dispatch();
    assert_eq!(
        (response.status(), response.headers().get_one("Retry-After")),
        (Status::ServiceUnavailable, Some("1"))
    );

    other.execute_batch("COMMIT").unwrap();
    assert_eq!(client.post("/").dispatch().status(), Status::Ok);
}
