// A map of the crate, for its contributors. Each room imports from those below it, never from those above:
//
//     web        what Rocket sees: the fairing, the guards, the error that handlers return, the status page
//     metrics    publishes the statistics, for an exporter
//     statistics a snapshot of all rooms' counters
//     request    what one request does: its handle, its session, how queries run, and whether failed ones are retried
//     routing    which server serves: the table of rules (`table.md`), and which of several slaves
//     cluster    the servers of one database, each with its pools and its probe; the monitor
//     pool       connections to one server for one purpose
//     health     the state of each server; what probes mean (`verdict`); which server is the master (`mastership`)
//     config     the section of Rocket.toml, read and checked
//     pin        what a client carries after a write: token, cookie, secret
//     backend    what differs between databases
//     position   positions in replication logs
//     counters   the types of counters, for all rooms
//     throttle   limits how often the log repeats a line that concerns each request
//
// The way of a query: a guard (`web::guards`) hands out a `ReplicatedDb` (`request::handle`) over the session of its
// request. `request::executor` takes the query apart and asks `request::session` for a connection. `routing` chooses a
// server, and the session checks a connection out of that server's pool (`pool::checkout`). A slave that must have
// replayed a position is asked whether it has. The query runs under a `Watch`, which ends it when its server goes down.
// If the query fails, `request::retry` decides whether it runs on another server. Otherwise the connection is kept for
// the session's next query. When the reply leaves, `web::fairing` asks the session for the pin, and `pin::cookie` sends
// it.
//
// Where to add what:
//
// - a reason: `routing::policy` and its table
// - a key: `config::section` (or `slaves`, `pool`, `pin`)
// - a database: `backend`, as another `Driver`, which implements `Engine`
// - something that operators see: `health::state`, `cluster::Cluster::status` and `web::status`
// - a count: next to the event, in `statistics` and in `metrics`
// - a kind of position or a pin format: `position` and `pin::token`

// The README's examples need all databases and the status page.
#![cfg_attr(
    all(feature = "postgres", feature = "sqlite", feature = "status"),
    doc = include_str!("../README.md")
)]
#![cfg_attr(
    not(all(feature = "postgres", feature = "sqlite", feature = "status")),
    doc = "Master–slave replication for Rocket applications. Begin with the [README] and the [guide]; documentation that is built",
    doc = "with the features `postgres`, `sqlite` and `status` has the README on this page.",
    doc = "",
    doc = "[README]: https://github.com/rocket-replicated/rocket_replicated#readme",
    doc = "[guide]: https://github.com/rocket-replicated/rocket_replicated/blob/main/docs/guide/README.md"
)]
// On docs.rs, an item says which feature it needs.
#![cfg_attr(docsrs, feature(doc_cfg))]
// Without a driver, what drivers call is dead.
#![cfg_attr(not(any(feature = "mysql", feature = "postgres", feature = "sqlite")), allow(dead_code))]
#![deny(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations, unreachable_pub)]

pub mod backend;
mod cluster;
mod config;
mod counters;
mod health;
#[doc(hidden)]
pub mod internals;
#[cfg(feature = "metrics")]
mod metrics;
mod one_line;
mod pin;
mod pool;
mod position;
mod request;
mod routing;
mod spelling;
mod statistics;
mod sync;
mod throttle;
mod web;

pub use cluster::{Cluster, UnknownSlave};
pub use config::ReadShare;
pub use counters::{Bucket, Counts, Times};
pub use health::{Change, NodeState, NodeStatus, Role};
pub use pin::PinRefusal;
pub use pool::{CloseCause, PoolUse};
pub use request::{Connection, ReplicatedDb, RetryCause, Transaction};
pub use rocket_db_pools::{self, Database};
pub use routing::{Choice, Reason};
pub use sqlx;
pub use statistics::{
    CatchUpStatistics, FormerStatistics, PinStatistics, PoolStatistics, ServerStatistics, Statistics,
};
#[cfg(feature = "status")]
pub use web::StatusRoutes;
pub use web::{ChangesDatabase, Error, Every, NotAttached, ReadsDatabase, Replicated, Scope, Writable};

/// Pages of the guide with examples in Rust, which are compiled as those of this crate's documentation.
#[cfg(all(doctest, feature = "mysql", feature = "postgres", feature = "sqlite", feature = "status"))]
mod guide {
    #[doc = include_str!("../docs/guide/configuration.md")]
    mod configuration {}
    #[doc = include_str!("../docs/guide/deployments/pgbouncer.md")]
    mod deployments_pgbouncer {}
    #[doc = include_str!("../docs/guide/jobs-and-streams.md")]
    mod jobs_and_streams {}
    #[doc = include_str!("../docs/guide/migrating.md")]
    mod migrating {}
    #[doc = include_str!("../docs/guide/operating.md")]
    mod operating {}
    #[doc = include_str!("../docs/guide/routing.md")]
    mod routing {}
    #[doc = include_str!("../docs/guide/slaves-and-lag.md")]
    mod slaves_and_lag {}
    #[doc = include_str!("../docs/guide/testing.md")]
    mod testing {}
    #[doc = include_str!("../docs/guide/tutorial.md")]
    mod tutorial {}
}

macro_rules! database_module {
    ($feature:literal $module:ident $Driver:ident $name:literal) => {
        #[doc = concat!($name, ": the pool, and the guards for a database named `replicated`.")]
        #[cfg(feature = $feature)]
        pub mod $module {
            #[doc = concat!("A pool of ", $name, " connections, for a `#[derive(Database)]`.")]
            pub type Pool = crate::backend::Pool<sqlx::$Driver>;

            #[doc = concat!("The ", $name, " database of the section `[<profile>.databases.replicated]`.")]
            #[derive(rocket_db_pools::Database, Debug)]
            #[database("replicated")]
            pub struct Database(Pool);

            /// The fairing for [`Database`](struct@Database).
            pub type Replicated = crate::Replicated<Database>;

            /// The request guard for [`Database`](struct@Database).
            pub type ReplicatedDb = crate::ReplicatedDb<Database>;
        }
    };
}

database_module!("mysql" mysql MySql "MySQL or MariaDB");
database_module!("postgres" postgres Postgres "PostgreSQL");
database_module!("sqlite" sqlite Sqlite "SQLite");
