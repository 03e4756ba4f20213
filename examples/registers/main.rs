//! Registers over HTTP, on PostgreSQL or MariaDB: what `tests/history` writes to and reads from, while it
//! kills, freezes and delays the servers underneath.
//!
//! ```text
//! PUT /registers/7/3   sets register 7 to 3, and logs that it did, in one transaction
//! PUT /kept/7/3        the same, over a handle that has been kept since launch, as a job has it
//! GET /registers/7     reads it twice, in one request, and says where
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
            Self::Other(error) => error.respond_to(request),
        }
    }
}

/// The routes on one kind of database, whose SQL differs in how it names arguments.
macro_rules! registers_on {
    ($database:ident, log: $log:literal, set: $set:literal, get: $get:literal) => {
        mod $database {
            use rocket::fairing::AdHoc;
            use rocket::http::CookieJar;
            use rocket::serde::json::{Json, Value, json};
            use rocket::{Build, Rocket, State, get, put, routes};
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
                let mut reads = Vec::new();
                for _ in 0..2 {
                    let value: i64 = sqlx::query_scalar($get).bind(register).fetch_one(&db).await?;
                    let choice = db.choice().expect("a query has been run");
                    reads.push(json!({
                        "value": value,
                        "node": choice.node(),
                        "role": choice.role().to_string(),
                        "reason": format!("{:?}", choice.reason()),
                    }));
                }
                Ok(Json(json!(reads)))
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
                    .mount("/", routes![set, set_kept, get])
            }
        }
    };
}

registers_on!(
    mysql,
    log: "INSERT INTO writes (register, value) VALUES (?, ?)",
    set: "UPDATE registers SET value = GREATEST(value, ?) WHERE register = ?",
    get: "SELECT value FROM registers WHERE register = ?"
);

registers_on!(
    postgres,
    log: "INSERT INTO writes (register, value) VALUES ($1, $2)",
    set: "UPDATE registers SET value = GREATEST(value, $1) WHERE register = $2",
    get: "SELECT value FROM registers WHERE register = $1"
);

#[launch]
fn rocket() -> Rocket<Build> {
    match std::env::var("REGISTERS").as_deref() {
        Ok("mariadb") => mysql::rocket(),
        Ok("postgres") => postgres::rocket(),
        _ => panic!("REGISTERS has to be `postgres` or `mariadb`"),
    }
}
