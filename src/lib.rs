#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations, unreachable_pub)]

mod attempts;
pub mod backend;
mod choice;
mod cluster;
mod config;
mod error;
mod fairing;
mod guard;
mod monitor;
mod node;
mod pin;
mod session;

pub use choice::{Choice, Reason, Role};
pub use cluster::Cluster;
pub use error::Error;
pub use fairing::Replicated;
pub use guard::{ChangesDatabase, Every, NotAttached, ReadsDatabase, ReplicatedDb, Scope};
pub use rocket_db_pools::{self, Database};
pub use sqlx;

macro_rules! database_module {
    ($feature:literal $module:ident $Driver:ident $name:literal) => {
        #[doc = concat!($name, ": the pool, and the guards for a database named `replicated`.")]
        #[cfg(feature = $feature)]
        pub mod $module {
            use rocket_db_pools::Database;

            #[doc = concat!("A pool of ", $name, " connections, for a `#[derive(Database)]`.")]
            pub type Pool = crate::backend::Pool<sqlx::$Driver>;

            #[doc = concat!("The ", $name, " database of the section `[<profile>.databases.replicated]`.")]
            #[derive(Database, Debug)]
            #[database("replicated")]
            pub struct Default(Pool);

            /// The fairing for [`Default`].
            pub type Replicated = crate::Replicated<Default>;

            /// The request guard for [`Default`].
            pub type ReplicatedDb = crate::ReplicatedDb<Default>;
        }
    };
}

database_module!("postgres" postgres Postgres "PostgreSQL");
database_module!("sqlite" sqlite Sqlite "SQLite");
