//! Registers over HTTP, on PostgreSQL or MariaDB: what `tests/history` writes to and reads from, while it
//! kills, freezes and delays the servers underneath.
//!
//! ```text
//! PUT /registers/7/3   sets register 7 to 3, and logs that it did, in one transaction
//! PUT /kept/7/3        the same, over a handle that has been kept since launch, as a job has it
//! PUT /held/7/3        the same, on a connection that the handler holds, by a transaction that it begins by hand
//! PUT /impatient/7/3   the same, by a handler that gives up after some milliseconds: 504, and it may be done or not
//! GET /registers/7     reads it twice, in one request, and says where
//! GET /long/7          reads it once, by a statement that takes long
//! ```
//!
//! `REGISTERS` in the environment names the kind of database: `postgres` or `mariadb`.

use rocket::http::Status;
use rocket::request::Request;
use rocket::response::{self, Responder};
use rocket::{Build, Rocket, launch};
use rocket_replicated::Error;

/// What went wrong with a request.
enum Failure {
    /// A statement was refused because it wanted to write: 409, which nothing here should ever see.
    ReadOnly,
    /// The handler did not wait for the end.
    GivenUp,
    Other(Error),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        let read_only = error.as_database_error().is_some_and(|error| {
            error.code().is_some_and(|code| code == "25006") || error.message().contains("--read-only")
        });
        if read_only { Self::ReadOnly } else { Self::Other(error.into()) }
    }
}

impl<'r> Responder<'r, 'static> for Failure {
    fn respond_to(self, request: &'r Request<'_>) -> response::Result<'static> {
        match self {
            Self::ReadOnly => Err(Status::Conflict),
            Self::GivenUp => Err(Status::GatewayTimeout),
            Self::Other(error) => error.respond_to(request),
        }
    }
}

/// The routes on one kind of database, whose SQL differs in how it names arguments.
macro_rules! registers_on {
    ($database:ident, log: $log:literal, set: $set:literal, get: $get:literal, long: $long:literal) => {
        mod $database {
            use std::time::Duration;

            use rocket::fairing::AdHoc;
            use rocket::http::CookieJar;
            use rocket::serde::json::{Json, Value, json};
            use rocket::{Build, Rocket, State, get, put, routes};
            use rocket::tokio::time::timeout;
            use rocket_replicated::$database::{Replicated, ReplicatedDb};

            use super::Failure;

            #[put("/registers/<register>/<value>")]
            async fn set(register: i32, value: i64, db: ReplicatedDb) -> Result<(), Failure> {
                write(register, value, &db).await
            }

            async fn write(register: i32, value: i64, db: &ReplicatedDb) -> Result<(), Failure> {
                let mut transaction = db.begin().await?;
                sqlx::query($log).bind(register).bind(value).execute(&mut *transaction).await?;
                sqlx::query($set).bind(value).bind(register).execute(&mut *transaction).await?;
                Ok(transaction.commit().await?)
            }

            #[put("/held/<register>/<value>")]
            async fn set_held(register: i32, value: i64, db: ReplicatedDb) -> Result<(), Failure> {
                let mut held = db.get().await?;
                sqlx::raw_sql("BEGIN").execute(&mut *held).await?;
                sqlx::query($log).bind(register).bind(value).execute(&mut *held).await?;
                sqlx::query($set).bind(value).bind(register).execute(&mut *held).await?;
                sqlx::raw_sql("COMMIT").execute(&mut *held).await?;
                Ok(())
            }

            #[put("/impatient/<register>/<value>")]
            async fn set_impatiently(register: i32, value: i64, db: ReplicatedDb) -> Result<(), Failure> {
                let patience = Duration::from_millis(value.unsigned_abs() % 12);
                timeout(patience, write(register, value, &db)).await.unwrap_or(Err(Failure::GivenUp))
            }

            struct Kept(ReplicatedDb);

            /// The handle is of no request: its pin is handed on by hand.
            #[put("/kept/<register>/<value>")]
            async fn set_kept(
                register: i32,
                value: i64,
                kept: &State<Kept>,
                cookies: &CookieJar<'_>,
            ) -> Result<(), Failure> {
                write(register, value, &kept.0).await?;
                if let Some(pin) = kept.0.pin().await {
                    cookies.add(("replicated_pin", pin));
                }
                Ok(())
            }

            #[get("/registers/<register>")]
            async fn get(register: i32, db: ReplicatedDb) -> Result<Json<Value>, Failure> {
                Ok(Json(json!([read(register, &db, $get).await?, read(register, &db, $get).await?])))
            }

            #[get("/long/<register>")]
            async fn get_long(register: i32, db: ReplicatedDb) -> Result<Json<Value>, Failure> {
                Ok(Json(json!([read(register, &db, $long).await?])))
            }

            async fn read(register: i32, db: &ReplicatedDb, sql: &'static str) -> Result<Value, Failure> {
                let value: i64 = sqlx::query_scalar(sql).bind(register).fetch_one(db).await?;
                let choice = db.choice().expect("a query has been run");
                Ok(json!({
                    "value": value,
                    "node": choice.node(),
                    "role": choice.role().to_string(),
                    "reason": format!("{:?}", choice.reason()),
                }))
            }

            pub fn rocket() -> Rocket<Build> {
                let keep = AdHoc::try_on_ignite("kept handle", |rocket| async {
                    match Replicated::fetch(&rocket).map(|cluster| Kept(cluster.write())) {
                        Some(kept) => Ok(rocket.manage(kept)),
                        None => Err(rocket),
                    }
                });
                rocket::build()
                    .attach(Replicated::fairing())
                    .attach(keep)
                    .mount("/", routes![set, set_kept, set_held, set_impatiently, get, get_long])
            }
        }
    };
}

registers_on!(
    mysql,
    log: "INSERT INTO writes (register, value) VALUES (?, ?)",
    set: "UPDATE registers SET value = GREATEST(value, ?) WHERE register = ?",
    get: "SELECT value FROM registers WHERE register = ?",
    long: "SELECT value FROM registers WHERE register = ? AND SLEEP(7) = 0"
);

registers_on!(
    postgres,
    log: "INSERT INTO writes (register, value) VALUES ($1, $2)",
    set: "UPDATE registers SET value = GREATEST(value, $1) WHERE register = $2",
    get: "SELECT value FROM registers WHERE register = $1",
    // Sleeps before it looks at the table: a page that a read holds on to keeps a standby from replaying, whatever
    // `hot_standby_feedback` says.
    long: "SELECT value FROM registers WHERE register = $1 AND (SELECT true FROM pg_sleep(7))"
);

#[launch]
fn rocket() -> Rocket<Build> {
    match std::env::var("REGISTERS").as_deref() {
        Ok("mariadb") => mysql::rocket(),
        Ok("postgres") => postgres::rocket(),
        _ => panic!("REGISTERS has to be `postgres` or `mariadb`"),
    }
}
