//! The handlers of `../replicated`, over rocket_db_pools 0.2 and its sqlx 0.7.

use rocket::form::{Form, FromForm};
use rocket::response::Redirect;
use rocket::serde::json::Json;
use rocket::serde::Serialize;
use rocket::{get, launch, post, routes};
use rocket_db_pools::{Connection, Database};
use sqlx::FromRow;

#[derive(Database)]
#[database("replicated")]
struct Db(sqlx::PgPool);

#[derive(FromRow, Serialize)]
#[serde(crate = "rocket::serde")]
struct Message {
    id: i32,
    body: String,
}

const SQL: &str = "SELECT id, body FROM messages WHERE id = $1";

#[get("/messages/<id>")]
async fn message(id: i32, mut db: Connection<Db>) -> Json<Message> {
    Json(sqlx::query_as(SQL).bind(id).fetch_one(&mut **db).await.unwrap())
}

#[get("/pages/<id>")]
async fn page(id: i32, mut db: Connection<Db>) -> Json<Vec<Message>> {
    let mut messages = Vec::new();
    for id in id..id + 5 {
        messages.push(sqlx::query_as(SQL).bind(id).fetch_one(&mut **db).await.unwrap());
    }
    Json(messages)
}

#[derive(FromForm)]
struct Note {
    body: String,
}

#[post("/notes", data = "<note>")]
async fn note(note: Form<Note>, mut db: Connection<Db>) -> Redirect {
    sqlx::query("INSERT INTO notes (body) VALUES ($1)").bind(&note.body).execute(&mut **db).await.unwrap();
    Redirect::to("/messages/500")
}

#[launch]
fn rocket() -> _ {
    rocket::build().attach(Db::init()).mount("/", routes![message, page, note])
}
