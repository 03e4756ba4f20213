//! What the integration tests share, beside the servers of `rocket_replicated_testing`: a lab with a table of notes,
//! Rockets over it, and the log.

// Each test file compiles this module for itself and uses a part of it.
#![allow(dead_code, unused_macros, unused_imports)]

#[cfg(any(feature = "mysql", feature = "postgres"))]
pub mod dns;
#[cfg(feature = "postgres")]
pub mod haproxy;
#[cfg(feature = "postgres")]
pub mod pgbouncer;
#[cfg(feature = "postgres")]
pub mod proxied;

pub mod lab;
pub mod logbook;
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub mod tls;

use std::time::{Duration, Instant};

use rocket::figment::providers::{Format, Toml};
use rocket::http::Cookie;
use rocket::local::blocking::LocalResponse;
use rocket::{Build, Rocket};
use serde::{Deserialize, Serialize};

/// Instantiates tests for each database: `Database`, `Pool`, `Replicated`, `ReplicatedDb`, `Lab`, `DriverError`,
/// the code by which it refuses a write (`REFUSED`), its way to write arguments (`sql`) and whether an `INSERT`
/// returns rows (`has_returning`) are its own.
macro_rules! on_every_database {
    ($($test:tt)*) => {
        crate::support::on_servers! { $($test)* }

        #[cfg(feature = "sqlite")]
        #[allow(unused_imports)]
        mod sqlite {
            use crate::support::lab::sqlite::{DriverError, Lab, REFUSED, has_returning, sql};
            use rocket_replicated::sqlite::{Database, Pool, Replicated, ReplicatedDb};

            $($test)*
        }
    };
}
pub(crate) use on_every_database;

/// As [`on_every_database`], for those that replicate by themselves.
macro_rules! on_servers {
    ($($test:tt)*) => {
        #[cfg(feature = "mysql")]
        #[allow(unused_imports)]
        mod mysql {
            use crate::support::lab::mysql::{DriverError, Lab, REFUSED, has_returning, sql};
            use rocket_replicated_testing::mysql::MySql as Dbms;
            use rocket_replicated::mysql::{Database, Pool, Replicated, ReplicatedDb};

            $($test)*
        }

        #[cfg(feature = "postgres")]
        #[allow(unused_imports)]
        mod postgres {
            use crate::support::lab::postgres::{DriverError, Lab, REFUSED, has_returning, sql};
            use rocket_replicated_testing::postgres::Postgres as Dbms;
            use rocket_replicated::postgres::{Database, Pool, Replicated, ReplicatedDb};

            $($test)*
        }
    };
}
pub(crate) use on_servers;

/// A Rocket in the debug profile, configured by TOML under `[debug]`.
pub fn rocket(toml: &str) -> Rocket<Build> {
    logbook::open();
    let toml = format!("[debug]\nlog_level = \"normal\"\ncli_colors = false\n{toml}");
    let figment = rocket::figment::Figment::from(rocket::Config::debug_default())
        .merge(Toml::string(&toml).nested())
        .select("debug");
    rocket::custom(figment)
}

/// A Rocket whose database `replicated` has this section.
pub fn rocket_over(section: &str) -> Rocket<Build> {
    rocket(&format!("[debug.databases.replicated]\n{section}"))
}

/// What the test routes tell of a read.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Seen {
    pub notes: Vec<String>,
    pub node: String,
    pub role: String,
    pub reason: String,
}

/// The body, as JSON.
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

/// Polls, and lets the background work in between; panics after a while.
pub async fn eventually_holds(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}: not within 30 s");
        rocket::tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Polls until `probe` has an answer; panics after a while.
#[track_caller]
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(answer) = probe() {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: not within 20 s");
        std::thread::sleep(Duration::from_millis(10));
    }
}
