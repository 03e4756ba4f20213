//! What differs between databases.
//!
//! Everything else in this crate is written once, for any [`Backend`]. There is one per driver,
//! behind the feature of its name:
//!
//! | feature    | pool               | a read-only connection is |
//! |------------|--------------------|---------------------------|
//! | `mysql`    | [`mysql::Pool`]    | told `SET SESSION TRANSACTION READ ONLY` |
//! | `postgres` | [`postgres::Pool`] | started with `default_transaction_read_only=on`, or told so by `SET` where a proxy refuses that |
//! | `sqlite`   | [`sqlite::Pool`]   | opened read-only on a slave, and `query_only` |
//!
//! [`mysql::Pool`]: crate::mysql::Pool
//! [`postgres::Pool`]: crate::postgres::Pool
//! [`sqlite::Pool`]: crate::sqlite::Pool

use sqlx::Database;
use sqlx::error::DatabaseError;
use sqlx::pool::PoolConnection;

pub(crate) mod engine;
mod follower;
pub(crate) mod keepalive;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
pub(crate) mod session;
pub(crate) mod settings;
#[cfg(feature = "sqlite")]
mod sqlite;
mod sqlx_pool;
mod statement;
pub(crate) mod url;
#[cfg(any(feature = "mysql", feature = "postgres", test))]
mod version;

pub(crate) use engine::{
    Access, Address, Conn, Depth, Engine, Fault, Judgement, Left, Observation, Options, Remains,
    ReportedRole, Rest, VerifiedHost, catch_up,
};
pub(crate) use follower::{Copied, Follower};
pub(crate) use session::{Activity, ConnectionInfo, Instance, NotTheMaster, SessionId};
pub(crate) use settings::Settings;
pub use sqlx_pool::Pool;
pub(crate) use statement::Opens;

#[cfg(feature = "sqlite")]
use follower::Millis;

/// A pool this crate can replicate over. Sealed: implemented by [`Pool`] for every [`Driver`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a pool that rocket_replicated can open",
    label = "this database is over another pool",
    note = "name the pool of this crate: `#[derive(Database)] struct …(rocket_replicated::postgres::Pool);`, or that of \
            `mysql` or `sqlite`",
    note = "the pools of rocket_db_pools are over sqlx 0.7: see \"Coming from rocket_db_pools\" in this crate's README"
)]
pub trait Backend: rocket_db_pools::Pool<Connection = PoolConnection<Self::Db>> + sealed::Sealed {
    /// The driver behind the pool.
    type Db: Driver;
}

/// A driver whose connections this crate can open: `sqlx::MySql`, `sqlx::Postgres` or `sqlx::Sqlite`, each behind the
/// feature of its name. Sealed.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a driver of rocket_replicated",
    label = "expected `sqlx::Postgres`, `sqlx::MySql` or `sqlx::Sqlite` of sqlx 0.9, with this crate's feature for it",
    note = "a handler asks for `ReplicatedDb<{Self}>`, which stands for the `Connection<{Self}>` of rocket_db_pools, and runs \
            its queries over `&db`"
)]
pub trait Driver: Database<Arguments: Clone> + Engine + sealed::Sealed {}

/// True if a database reports that it cannot serve now but may later.
pub(crate) fn is_unavailable(error: &dyn DatabaseError) -> bool {
    let drivers: &[fn(&dyn DatabaseError) -> bool] = &[
        #[cfg(feature = "mysql")]
        mysql::is_unavailable,
        #[cfg(feature = "postgres")]
        postgres::is_unavailable,
        #[cfg(feature = "sqlite")]
        sqlite::is_unavailable,
    ];
    drivers.iter().any(|is_unavailable| is_unavailable(error))
}

/// True if a server reports that it takes no writes from any session.
pub(crate) fn takes_no_writes(error: &sqlx::Error) -> bool {
    #[cfg(feature = "mysql")]
    return error.as_database_error().is_some_and(mysql::takes_no_writes);
    #[cfg(not(feature = "mysql"))]
    {
        let _ = error;
        false
    }
}

/// The remedy for an error that its message does not tell, as the end of a sentence.
pub(crate) fn remedy(error: &sqlx::Error) -> &'static str {
    #[cfg(feature = "mysql")]
    return error.as_database_error().and_then(mysql::remedy).unwrap_or_default();
    #[cfg(not(feature = "mysql"))]
    {
        let _ = error;
        ""
    }
}

/// True if a server answers but refuses this user, or refuses it this database.
pub(crate) fn is_login_refused(error: &sqlx::Error) -> bool {
    let Some(error) = error.as_database_error() else { return false };
    let drivers: &[fn(&dyn DatabaseError) -> bool] = &[
        #[cfg(feature = "mysql")]
        mysql::is_login_refused,
        #[cfg(feature = "postgres")]
        postgres::is_login_refused,
    ];
    drivers.iter().any(|is_login_refused| is_login_refused(error))
}

mod sealed {
    #[allow(unnameable_types)]
    pub trait Sealed {}

    #[cfg(feature = "mysql")]
    impl Sealed for sqlx::MySql {}
    #[cfg(feature = "postgres")]
    impl Sealed for sqlx::Postgres {}
    #[cfg(feature = "sqlite")]
    impl Sealed for sqlx::Sqlite {}
    impl<DB: super::Driver> Sealed for super::Pool<DB> {}
}
