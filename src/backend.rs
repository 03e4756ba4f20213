//! What differs between databases.
//!
//! Everything else in this crate is written once, for any [`Backend`]. There is one per driver,
//! behind the feature of its name:
//!
//! | feature    | pool               | a read-only connection is                        |
//! |------------|--------------------|--------------------------------------------------|
//! | `mysql`    | [`mysql::Pool`]    | told `SET SESSION TRANSACTION READ ONLY`         |
//! | `postgres` | [`postgres::Pool`] | started with `default_transaction_read_only=on`  |
//! | `sqlite`   | [`sqlite::Pool`]   | opened read-only on a slave, and `query_only`    |
//!
//! [`mysql::Pool`]: crate::mysql::Pool
//! [`postgres::Pool`]: crate::postgres::Pool
//! [`sqlite::Pool`]: crate::sqlite::Pool

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rocket::futures::future::BoxFuture;
use rocket::tokio;
use sqlx::error::DatabaseError;
use sqlx::pool::PoolConnection;
use sqlx::{Connection, Database};

use crate::position::Position;

mod executor;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
pub(crate) mod settings;
#[cfg(feature = "sqlite")]
mod sqlite;
mod sqlx_pool;

pub use settings::Settings;
pub use sqlx_pool::Pool;

/// How a driver is told where to connect to, and how.
pub type Options<DB> = <<DB as Database>::Connection as Connection>::Options;

/// A pool this crate can replicate over. Sealed: implemented by [`Pool`] for every [`Driver`].
pub trait Backend: rocket_db_pools::Pool<Connection = PoolConnection<Self::Db>> {
    /// The driver behind the pool.
    type Db: Driver;

    #[doc(hidden)]
    fn wrap(pool: sqlx::Pool<Self::Db>) -> Self;

    #[doc(hidden)]
    fn inner(&self) -> &sqlx::Pool<Self::Db>;
}

/// A database's own ways. Sealed: one per feature of this crate.
pub trait Driver: Database<Arguments: Clone> + sealed::Sealed {
    /// Whether one connection at a time may write, so that a larger pool would only wait on itself.
    #[doc(hidden)]
    const ONE_WRITER: bool = false;

    /// Whether this crate can keep a slave itself: [`Driver::follow`].
    #[doc(hidden)]
    const CAN_FOLLOW: bool = false;

    /// Whether a server proves that it was promoted: by a timeline of its own.
    #[doc(hidden)]
    const TELLS_TIMELINE: bool = false;

    /// Turns settings into the driver's options, or says what is wrong with the URL (without it).
    #[doc(hidden)]
    fn options(settings: &Settings, access: Access) -> Result<Options<Self>, String>;

    /// The server that these options lead to.
    #[doc(hidden)]
    fn address(options: &Options<Self>) -> Address;

    /// Prepares a new connection that is to be read-only.
    #[doc(hidden)]
    fn prepare_reader(conn: &mut Self::Connection) -> BoxFuture<'_, Result<(), sqlx::Error>>;

    /// Whether the server holds this connection to be read-only.
    #[doc(hidden)]
    fn is_read_only(conn: &mut Self::Connection) -> BoxFuture<'_, Result<bool, sqlx::Error>>;

    /// What a failed query says about the query and about its node.
    #[doc(hidden)]
    fn fault(error: &sqlx::Error) -> Fault;

    /// What an ordinary role can see of a node that is there for this, in as few round trips as can be.
    /// Poolers are no obstacle: nothing is prepared.
    #[doc(hidden)]
    fn observe(
        conn: &mut Self::Connection,
        access: Access,
    ) -> BoxFuture<'_, Result<Observation, sqlx::Error>>;

    /// Waits until the slave has replayed `position`, but not for longer than `patience`, nor for what
    /// may never come. How far it has replayed then.
    #[doc(hidden)]
    fn catch_up<'a>(
        conn: &'a mut Self::Connection,
        position: &'a Position,
        patience: Duration,
    ) -> BoxFuture<'a, Result<Option<Position>, sqlx::Error>> {
        Box::pin(poll::<Self>(conn, position, patience))
    }

    /// Starts to copy the master into the slave `name` every so often, after a first copy.
    #[doc(hidden)]
    fn follow(
        _name: &str,
        _master: &Options<Self>,
        _slave: &Options<Self>,
        _every: Duration,
    ) -> BoxFuture<'static, Follower> {
        unreachable!("a configuration with `follow` is refused unless CAN_FOLLOW")
    }
}

/// What the connections of a pool may do.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Reads and writes, at the master.
    ReadWrite,
    /// Reads only, at the master.
    ReadMaster,
    /// Reads only, at a slave.
    ReadSlave,
}

/// What a failed query says.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The statement wanted to write where only reads are allowed.
    ReadOnly,
    /// The connection or its server failed: another node may well answer.
    Node,
    /// The server is fine, but has no connection to spare.
    Full,
    /// The server is fine, but cancelled the query for reasons of its replication.
    Conflict,
    /// The query is to blame, or the cause is unknown: it would fail elsewhere as well.
    Query,
}

/// What a server tells of itself.
#[doc(hidden)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    pub standing: Standing,
    /// What a master and its slaves have in common, and nobody else.
    pub system: Option<u64>,
    /// What a master has written, or a slave replayed; unknown where it cannot be compared.
    pub position: Option<Position>,
}

/// What a server takes itself for.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    /// It takes writes of its own.
    Master,
    /// It replays those of another.
    Slave,
    /// It does not tell.
    Unknown,
}

/// Asks again and again, at first often.
async fn poll<DB: Driver>(
    conn: &mut DB::Connection,
    position: &Position,
    patience: Duration,
) -> Result<Option<Position>, sqlx::Error> {
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_millis(1);
    loop {
        let observed = DB::observe(conn, Access::ReadSlave).await?;
        let replayed = observed.position.filter(|_| observed.standing != Standing::Master);
        let hopeless = replayed.as_ref().is_none_or(|replayed| !replayed.shares_history(position));
        if hopeless || replayed.as_ref().is_some_and(|replayed| replayed.reaches(position)) {
            return Ok(replayed);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(replayed);
        }
        tokio::time::sleep(pause.min(left)).await;
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Where a server is: what log lines and default node names are made of.
#[doc(hidden)]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    pub host: String,
    pub port: Option<u16>,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

/// A thread that keeps a slave; it ends when this is dropped.
#[doc(hidden)]
#[derive(Debug)]
pub struct Follower {
    stop: Option<std::sync::mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    pub(crate) copied: Copied,
}

/// How fresh the copy of a follower is.
#[doc(hidden)]
#[derive(Clone, Debug, Default)]
pub struct Copied(Arc<AtomicU64>);

impl Copied {
    /// Everything that was committed before this has been copied.
    #[cfg(feature = "sqlite")]
    fn until(&self, Millis(ms): Millis) {
        self.0.store(ms, Ordering::Release);
    }

    /// `None` before the first copy.
    pub(crate) fn position(&self) -> Option<Position> {
        match self.0.load(Ordering::Acquire) {
            0 => None,
            ms => Some(Position::Time(ms)),
        }
    }
}

/// Milliseconds since 1970, rounded down.
#[cfg(feature = "sqlite")]
#[derive(Clone, Copy, Debug)]
struct Millis(u64);

#[cfg(feature = "sqlite")]
impl Millis {
    fn now() -> Self {
        let now = time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000;
        Self(u64::try_from(now).unwrap_or_default())
    }
}

impl Follower {
    /// `stop` is the sender of a channel whose other end the thread listens to.
    #[cfg(feature = "sqlite")]
    fn new(stop: std::sync::mpsc::Sender<()>, thread: std::thread::JoinHandle<()>, copied: Copied) -> Self {
        Self { stop: Some(stop), thread: Some(thread), copied }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The faults that look the same through every driver.
fn connection_fault(error: &sqlx::Error) -> Option<Fault> {
    use sqlx::Error::*;

    match error {
        Io(_) | Tls(_) | WorkerCrashed => Some(Fault::Node),
        Database(_) => None,
        _ => Some(Fault::Query),
    }
}

/// Whether a database says that it cannot serve now, and may later.
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

mod sealed {
    #[allow(unnameable_types)]
    pub trait Sealed {}

    #[cfg(feature = "mysql")]
    impl Sealed for sqlx::MySql {}
    #[cfg(feature = "postgres")]
    impl Sealed for sqlx::Postgres {}
    #[cfg(feature = "sqlite")]
    impl Sealed for sqlx::Sqlite {}
}
