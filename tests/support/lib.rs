//! The code that integration tests share, besides the servers of `rocket_replicated_testing`: a lab with a table of
//! notes, Rockets over it, and the log.

pub mod counting;
pub mod dns;
pub mod haproxy;
pub mod lab;
pub mod logbook;
pub mod mysql_router;
pub mod patroni;
pub mod pgbouncer;
pub mod pgpool;
pub mod program;
pub mod proxied;
pub mod tls;

use std::pin::Pin;
use std::time::{Duration, Instant};

use rocket::figment::providers::{Format, Toml};
use rocket::http::Cookie;
use rocket::local::blocking::LocalResponse;
use rocket::{Build, Rocket};
use rocket_replicated::internals::PositionBudget;
pub use rocket_replicated_tests_macros::async_test;
use serde::{Deserialize, Serialize};

/// Instantiates tests for each kind of database server. In each module, `Database`, `Pool`, `Replicated`,
/// `ReplicatedDb`, `Dbms`, `Lab` and `DriverError` are those of the database. So are the code of a refused write
/// (`REFUSED`), the notation of arguments (`sql`), and whether an `INSERT` returns rows (`has_returning`).
#[macro_export]
macro_rules! on_servers {
    ($($test:tt)*) => {
        #[allow(unused_imports)]
        mod mysql {
            use $crate::lab::mysql::{DriverError, Lab, REFUSED, has_returning, sql};
            use rocket_replicated_testing::mysql::MySql as Dbms;
            use rocket_replicated::mysql::{Database, Pool, Replicated, ReplicatedDb};

            $($test)*
        }

        #[allow(unused_imports)]
        mod postgres {
            use $crate::lab::postgres::{DriverError, Lab, REFUSED, has_returning, sql};
            use rocket_replicated_testing::postgres::Postgres as Dbms;
            use rocket_replicated::postgres::{Database, Pool, Replicated, ReplicatedDb};

            $($test)*
        }
    };
}

/// Instantiates tests for SQLite, with the same names as [`on_servers`] except for `Dbms`.
///
/// A file of tests for every database is in both programs, `servers` and `sqlite`. It uses `crate::on_every_database!`,
/// which each program defines differently.
#[macro_export]
macro_rules! in_files {
    ($($test:tt)*) => {
        #[allow(unused_imports)]
        mod sqlite {
            use $crate::lab::sqlite::{DriverError, Lab, REFUSED, has_returning, sql};
            use rocket_replicated::sqlite::{Database, Pool, Replicated, ReplicatedDb};

            $($test)*
        }
    };
}

/// Tests that this program has of a file that is in both programs: see [`in_files`].
#[macro_export]
macro_rules! given {
    ($($test:tt)*) => { $($test)* };
}

/// Tests that only the other program has.
#[macro_export]
macro_rules! absent {
    ($($test:tt)*) => {};
}

/// Runs a test of [`async_test`].
pub fn run_test(test: Pin<Box<dyn Future<Output = ()>>>) {
    rocket::async_test(test);
}

/// A Rocket in the debug profile, configured by TOML under `[debug]`.
pub fn rocket(toml: &str) -> Rocket<Build> {
    logbook::open();
    let toml = format!("[debug]\nlog_level = \"normal\"\ncli_colors = false\n{toml}");
    let figment = rocket::figment::Figment::from(rocket::Config::debug_default())
        .merge(Toml::string(&toml).nested())
        .select("debug");
    rocket::custom(figment)
}

/// Keys that a section has unless it sets them. With them, a server that answers late on a busy machine is used
/// nevertheless.
const PATIENT: [(&str, &str); 3] = [("check_timeout", "5"), ("max_lag", "false"), ("slave_timeout", "5")];

/// A Rocket whose database `replicated` has this section and the patient keys. Its replies wait long for their
/// positions.
pub fn rocket_over(section: &str) -> Rocket<Build> {
    impatient_rocket_over(section).manage(PositionBudget(PATIENCE))
}

/// As [`rocket_over`], but replies wait for their positions no longer than in production.
pub fn impatient_rocket_over(section: &str) -> Rocket<Build> {
    let keys: toml::Table = section.parse().unwrap_or_else(|error| panic!("{section}: {error}"));
    let patience = PATIENT.iter().filter(|(key, _)| !keys.contains_key(*key));
    let patience: String = patience.map(|(key, value)| format!("{key} = {value}\n")).collect();
    rocket(&format!("[debug.databases.replicated]\n{patience}{section}"))
}

/// The answer of the test routes to a read.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Seen {
    pub notes: Vec<String>,
    pub node: String,
    pub role: String,
    pub reason: String,
}

/// The body of a reply, parsed as JSON.
#[track_caller]
pub fn json<T: serde::de::DeserializeOwned>(response: LocalResponse<'_>) -> T {
    let status = response.status();
    let body = response.into_string().unwrap_or_default();
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{status}: {error}: {body}"))
}

/// The pin of the database `replicated` that a reply sets, if it does.
pub fn pin_of(response: &LocalResponse<'_>) -> Option<Cookie<'static>> {
    let set: Vec<_> =
        response.headers().get("Set-Cookie").filter(|cookie| cookie.starts_with("replicated_pin=")).collect();
    assert!(set.len() < 2, "{set:?}");
    set.first().map(|cookie| Cookie::parse_encoded(cookie.to_string()).unwrap())
}

/// The longest time that tests wait for something to happen, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(10);

/// The result of one poll: whether something holds, or what was found.
pub trait Sought {
    /// What polling returns in the end.
    type Found;

    /// Returns the result, once there is one.
    fn found(self) -> Option<Self::Found>;
}

impl Sought for bool {
    type Found = ();

    fn found(self) -> Option<()> {
        self.then_some(())
    }
}

impl<T> Sought for Option<T> {
    type Found = T;

    fn found(self) -> Self {
        self
    }
}

/// Polls until there is a result, and lets background work run in between. Panics after [`PATIENCE`].
pub async fn eventually<S: Sought>(what: &str, mut probe: impl AsyncFnMut() -> S) -> S::Found {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe().await.found() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        rocket::tokio::time::sleep(PAUSE).await;
    }
}

/// As [`eventually`], in tests that are not asynchronous.
#[track_caller]
pub fn blocking_eventually<S: Sought>(what: &str, mut probe: impl FnMut() -> S) -> S::Found {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe().found() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(PAUSE);
    }
}
