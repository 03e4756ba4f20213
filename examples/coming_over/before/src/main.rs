//! A small blog on one SQLite file, before coming over from `rocket_db_pools` and after.

use rocket::fairing::{self, AdHoc};
use rocket::response::Debug;
use rocket::response::status::Created;
use rocket::response::stream::{Event, EventStream};
use rocket::serde::json::Json;
use rocket::serde::{Deserialize, Serialize};
use rocket::tokio::time::{Duration, interval};
use rocket::{Build, FromFormField, Rocket, delete, error, get, launch, post, routes, uri};
use rocket_db_pools::{Connection, Database};
use sqlx::Acquire;

#[cfg(test)]
#[path = "../../tests.rs"]
mod tests;

#[derive(Database)]
#[database("blog")]
struct Blog(sqlx::SqlitePool);

type Result<T, E = Debug<sqlx::Error>> = std::result::Result<T, E>;

#[derive(Serialize, sqlx::FromRow)]
#[serde(crate = "rocket::serde")]
struct Post {
    id: i64,
    title: String,
    body: String,
}

#[derive(Deserialize)]
#[serde(crate = "rocket::serde")]
struct Draft {
    title: String,
    body: String,
}

#[derive(FromFormField)]
enum Order {
    Newest,
    Title,
}

#[get("/posts?<order>")]
async fn list(order: Option<Order>, mut db: Connection<Blog>) -> Result<Json<Vec<Post>>> {
    let column = match order {
        None | Some(Order::Newest) => "id DESC",
        Some(Order::Title) => "title",
    };
    let sql = format!("SELECT * FROM posts ORDER BY {column}");
    Ok(Json(sqlx::query_as(&sql).fetch_all(&mut **db).await?))
}

#[get("/posts/<id>")]
async fn show(id: i64, mut db: Connection<Blog>) -> Option<Json<Post>> {
    sqlx::query_as("SELECT * FROM posts WHERE id = ?").bind(id).fetch_one(&mut **db).await.map(Json).ok()
}

#[post("/posts", data = "<draft>")]
async fn create(draft: Json<Draft>, mut db: Connection<Blog>) -> Result<Created<Json<Post>>> {
    let Draft { title, body } = draft.into_inner();
    let insert = sqlx::query("INSERT INTO posts (title, body) VALUES (?, ?)").bind(&title).bind(&body);
    let id = insert.execute(&mut **db).await?.last_insert_rowid();
    Ok(Created::new(uri!(show(id)).to_string()).body(Json(Post { id, title, body })))
}

/// All of them, or none.
#[post("/posts/import", data = "<drafts>")]
async fn import(drafts: Json<Vec<Draft>>, mut db: Connection<Blog>) -> Result<()> {
    let mut transaction = db.begin().await?;
    for draft in &*drafts {
        sqlx::query("INSERT INTO posts (title, body) VALUES (?, ?)")
            .bind(&draft.title)
            .bind(&draft.body)
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await?;
    Ok(())
}

#[delete("/posts/<id>")]
async fn delete(id: i64, mut db: Connection<Blog>) -> Result<Option<()>> {
    let done = sqlx::query("DELETE FROM posts WHERE id = ?").bind(id).execute(&mut **db).await?;
    Ok((done.rows_affected() == 1).then_some(()))
}

/// How many posts there are, each second.
#[get("/count")]
fn count(blog: &Blog) -> EventStream![Event + '_] {
    EventStream! {
        let mut ticks = interval(Duration::from_secs(1));
        loop {
            ticks.tick().await;
            let count = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM posts").fetch_one(&**blog).await;
            yield Event::data(count.map_or_else(|error| error.to_string(), |count| count.to_string()));
        }
    }
}

async fn migrate(rocket: Rocket<Build>) -> fairing::Result {
    let Some(blog) = Blog::fetch(&rocket) else { return Err(rocket) };
    match sqlx::migrate!("../migrations").run(&**blog).await {
        Ok(()) => Ok(rocket),
        Err(error) => {
            error!("The migrations fail: {error}");
            Err(rocket)
        }
    }
}

#[launch]
fn rocket() -> _ {
    rocket::build()
        .attach(Blog::init())
        .attach(AdHoc::try_on_ignite("Migrations", migrate))
        .mount("/", routes![list, show, create, import, delete, count])
}
