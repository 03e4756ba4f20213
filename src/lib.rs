// The examples there speak of all databases.
#![cfg_attr(all(feature = "postgres", feature = "sqlite"), doc = include_str!("../README.md"))]
#![cfg_attr(
    not(all(feature = "postgres", feature = "sqlite")),
    doc = "Master–slave replication for Rocket applications."
)]
// Without a driver, what drivers call is dead.
#![cfg_attr(not(any(feature = "mysql", feature = "postgres", feature = "sqlite")), allow(dead_code))]
#![deny(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations, unreachable_pub)]

mod attempts;
pub mod backend;
#[doc(hidden)]
pub mod bench;
mod choice;
mod cluster;
mod config;
mod error;
mod fairing;
mod guard;
mod health;
mod lease;
mod monitor;
mod node;
mod nodes;
mod parked;
mod pin;
mod position;
mod read_only;
mod session;

pub use choice::{Choice, Reason, Role};
pub use cluster::{Cluster, UnknownSlave};
pub use error::Error;
pub use fairing::Replicated;
pub use guard::{ChangesDatabase, Every, NotAttached, ReadsDatabase, ReplicatedDb, Scope, Writable};
pub use health::{NodeState, NodeStatus};
pub use rocket_db_pools::{self, Database};
pub use sqlx;

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
