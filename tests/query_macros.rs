//! sqlx's checked macros, over `&ReplicatedDb`. The folder `.sqlx` has what they need to know of the table.

use rocket::local::asynchronous::Client;
use rocket_replicated::sqlite::Replicated;

use support::lab::sqlite::Lab;
use support::rocket_over;

#[derive(Debug, PartialEq)]
struct Note {
    id: i64,
    body: String,
}

#[support::async_test]
async fn the_macros_take_a_handle_for_a_pool() {
    let lab = Lab::new();
    let client = Client::untracked(rocket_over(&lab.section()).attach(Replicated::fairing())).await.unwrap();
    let cluster = Replicated::fetch(client.rocket()).unwrap();

    let body = "hello";
    sqlx::query!("INSERT INTO notes (id, body) VALUES (1, ?)", body).execute(&cluster.write()).await.unwrap();
    lab.resume();

    let db = cluster.read(None);
    let row = sqlx::query!("SELECT id, body FROM notes WHERE id = ?", 1).fetch_one(&db).await.unwrap();
    assert_eq!((row.id, &*row.body), (1, "hello"));
    let note = sqlx::query_as!(Note, "SELECT id, body FROM notes").fetch_all(&db).await.unwrap();
    assert_eq!(note, [Note { id: 1, body: "hello".into() }]);
    let count = sqlx::query_scalar!("SELECT count(*) FROM notes").fetch_one(&db).await.unwrap();
    assert_eq!(count, 1);
}
