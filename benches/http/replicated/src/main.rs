//! One handler for one row, one for five, one for a form, over the pool that `SERVER` names.

use std::time::Duration;

use deadpool::managed::{self, Manager, Metrics, RecycleResult};
use rocket::form::{Form, FromForm};
use rocket::response::Redirect;
use rocket::serde::Serialize;
use rocket::serde::json::Json;
use rocket::{Build, Rocket, State, get, launch, post, routes};
use rocket_replicated::postgres::{Replicated, ReplicatedDb};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, FromRow, PgExecutor};

#[derive(FromRow, Serialize)]
#[serde(crate = "rocket::serde")]
struct Message {
    id: i32,
    body: String,
}

async fn message(id: i32, db: impl PgExecutor<'_>) -> Message {
    sqlx::query_as("SELECT id, body FROM messages WHERE id = $1").bind(id).fetch_one(db).await.unwrap()
}

#[derive(FromForm)]
struct Note {
    body: String,
}

async fn write(note: &Note, db: impl PgExecutor<'_>) {
    sqlx::query("INSERT INTO notes (body) VALUES ($1)").bind(&note.body).execute(db).await.unwrap();
}

macro_rules! handlers {
    ($module:ident, $db:ident: $Db:ty, $executor:expr, $prepare:expr) => {
        mod $module {
            use super::*;

            #[get("/messages/<id>")]
            async fn one(id: i32, $db: $Db) -> Json<Message> {
                #[allow(unused_mut)]
                let mut $db = $prepare;
                Json(message(id, $executor).await)
            }

            #[get("/pages/<id>")]
            async fn page(id: i32, $db: $Db) -> Json<Vec<Message>> {
                let mut messages = Vec::new();
                #[allow(unused_mut)]
                let mut $db = $prepare;
                for id in id..id + 5 {
                    messages.push(message(id, $executor).await);
                }
                Json(messages)
            }

            #[post("/notes", data = "<note>")]
            async fn note(note: Form<Note>, $db: $Db) -> Redirect {
                #[allow(unused_mut)]
                let mut $db = $prepare;
                write(&note, $executor).await;
                Redirect::to("/messages/500")
            }

            pub(super) fn routes() -> Vec<rocket::Route> {
                routes![one, page, note]
            }
        }
    };
}

handlers!(replicated, db: ReplicatedDb, &db, db);
handlers!(replicated_get, db: ReplicatedDb, &mut *db, db.get().await.unwrap());
handlers!(bare, db: &State<PgPool>, &**db, db);
handlers!(dead, db: &State<DeadPool>, &mut *db, db.get().await.unwrap());

type DeadPool = managed::Pool<Connections>;

/// sqlx connections for deadpool, which are checked only after idling.
struct Connections(PgConnectOptions);

impl Manager for Connections {
    type Type = PgConnection;
    type Error = sqlx::Error;

    async fn create(&self) -> sqlx::Result<PgConnection> {
        self.0.connect().await
    }

    async fn recycle(&self, conn: &mut PgConnection, metrics: &Metrics) -> RecycleResult<sqlx::Error> {
        if metrics.last_used() > Duration::from_secs(1) {
            conn.ping().await?;
        }
        Ok(())
    }
}

#[launch]
async fn rocket() -> Rocket<Build> {
    let rocket = rocket::build();
    let section = |key: &str| rocket.figment().extract_inner(&format!("databases.replicated.{key}"));
    let (url, size): (String, u32) = (
        section("url").unwrap(),
        rocket.figment().extract_inner("databases.replicated.max_connections").unwrap(),
    );
    let bare = |ping| {
        PgPoolOptions::new().max_connections(size).test_before_acquire(ping).connect_lazy(&url).unwrap()
    };
    match &*std::env::var("SERVER").unwrap() {
        "replicated" => rocket.attach(Replicated::fairing()).mount("/", replicated::routes()),
        "replicated_recorded" => {
            metrics_exporter_prometheus::PrometheusBuilder::new().install_recorder().unwrap();
            rocket.attach(Replicated::fairing()).mount("/", replicated::routes())
        }
        "replicated_get" => rocket.attach(Replicated::fairing()).mount("/", replicated_get::routes()),
        "sqlx" => {
            let pool = bare(true);
            rocket.manage(pool).mount("/", bare::routes())
        }
        "sqlx_without_ping" => {
            let pool = bare(false);
            rocket.manage(pool).mount("/", bare::routes())
        }
        "deadpool" => {
            let pool =
                DeadPool::builder(Connections(url.parse().unwrap())).max_size(size as usize).build().unwrap();
            rocket.manage(pool).mount("/", dead::routes())
        }
        other => panic!("SERVER={other}"),
    }
}
