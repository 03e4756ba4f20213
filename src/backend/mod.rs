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

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rocket::futures::future::BoxFuture;
use rocket::tokio;
use sqlx::error::DatabaseError;
use sqlx::pool::PoolConnection;
use sqlx::{Connection, Database, Execute, Executor};

use crate::position::Position;

mod follower;
pub(crate) mod keepalive;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
mod session;
pub(crate) mod settings;
#[cfg(feature = "sqlite")]
mod sqlite;
mod sqlx_pool;
mod statement;
pub(crate) mod url;
#[cfg(any(feature = "mysql", feature = "postgres", test))]
mod version;

#[doc(hidden)]
pub use follower::{Copied, Follower};
pub(crate) use session::NotTheMaster;
#[doc(hidden)]
pub use session::{Activity, Instance, Prepared, SessionId};
pub use settings::Settings;
pub use sqlx_pool::Pool;
#[doc(hidden)]
pub use statement::Opens;

#[cfg(feature = "sqlite")]
use follower::Millis;

/// How a driver is told where to connect to, and how.
pub type Options<DB> = <<DB as Database>::Connection as Connection>::Options;

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

/// A connection of a driver.
pub(crate) type Conn<DB> = <DB as Database>::Connection;

/// A database's own ways. Sealed: one per feature of this crate.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a driver of rocket_replicated",
    label = "expected `sqlx::Postgres`, `sqlx::MySql` or `sqlx::Sqlite` of sqlx 0.9, with this crate's feature for it",
    note = "a handler asks for `ReplicatedDb<{Self}>`, which stands for the `Connection<{Self}>` of rocket_db_pools, and runs \
            its queries over `&db`"
)]
pub trait Driver: Database<Arguments: Clone> + sealed::Sealed {
    /// Whether one connection at a time may write, so that a larger pool would only wait on itself.
    #[doc(hidden)]
    const ONE_WRITER: bool = false;

    /// Whether this crate can keep a slave itself: [`Driver::follow`].
    #[doc(hidden)]
    const CAN_FOLLOW: bool = false;

    /// Whether it is reached over a network.
    #[doc(hidden)]
    const HAS_HOSTS: bool = true;

    /// Whether a server proves that it was promoted: by a timeline of its own.
    #[doc(hidden)]
    const TELLS_TIMELINE: bool = false;

    /// Whether a server proves that it was promoted at all.
    #[doc(hidden)]
    const TELLS_PROMOTION: bool = Self::TELLS_TIMELINE;

    /// The parameters that its URL may have, where sqlx ignores others.
    #[doc(hidden)]
    const URL_PARAMETERS: &'static [&'static str] = &[];

    /// By what a server is known to take no writes of its own.
    #[doc(hidden)]
    const NO_WRITES: &'static str = "it is read-only";

    /// The remedy for a slave that has what its master does not have.
    #[doc(hidden)]
    const REJOIN: &'static str = "Make it anew from a copy of the master.";

    /// What begins a transaction that refuses writes, where that is more than the connection does by itself.
    #[doc(hidden)]
    const BEGIN_READ_ONLY: Option<&'static str> = None;

    /// Whether a proxy may refuse [`options`](Self::options) for what they ask of a session.
    #[doc(hidden)]
    const MAY_REFUSE_OPTIONS: bool = false;

    /// What is remembered of a connection between two looks at its server, so that what never changes
    /// is asked once.
    #[doc(hidden)]
    type Memory: Default + Send;

    /// Turns settings into the driver's options, or says what is wrong with the URL (without it).
    #[doc(hidden)]
    fn options(settings: &Settings, access: Access) -> Result<Options<Self>, String>;

    /// The same options without what only asks for read-only connections, and what a proxy may refuse.
    #[doc(hidden)]
    fn plain_options(settings: &Settings, access: Access) -> Result<Options<Self>, String> {
        Self::options(settings, access)
    }

    /// True for the error of a proxy that refuses [`options`](Self::options) and may accept
    /// [`plain_options`](Self::plain_options).
    #[doc(hidden)]
    fn refuses_options(_error: &sqlx::Error) -> bool {
        false
    }

    /// Makes an open connection read-only, where [`plain_options`](Self::plain_options) have not asked for that. What comes
    /// of it, [`prepare`](Self::prepare) tells.
    #[doc(hidden)]
    fn make_read_only(_conn: &mut Conn<Self>) -> BoxFuture<'_, Result<(), sqlx::Error>> {
        Box::pin(async { Ok(()) })
    }

    /// The server that these options lead to.
    #[doc(hidden)]
    fn address(options: &Options<Self>) -> Address;

    /// The database that these options lead to, where a server can have several.
    #[doc(hidden)]
    fn database(_options: &Options<Self>) -> Option<&str> {
        None
    }

    /// By what name these options log in, where there are logins.
    #[doc(hidden)]
    fn user(_options: &Options<Self>) -> Option<&str> {
        None
    }

    /// Whether the name of the host has to be in the server's certificate.
    #[doc(hidden)]
    fn verified_host(_options: &Options<Self>) -> Option<VerifiedHost> {
        None
    }

    /// The folder of the file that these options lead to, if it does not exist.
    #[doc(hidden)]
    fn missing_folder(_options: &Options<Self>) -> Option<PathBuf> {
        None
    }

    /// Whether these options lead to a file that has nothing in it yet, or does not exist.
    #[doc(hidden)]
    fn is_unfilled(_options: &Options<Self>) -> bool {
        false
    }

    /// Makes the file of a master, where there is one, before anything is opened. An error, with the remedy, if the file was
    /// lost and one of the copies that this crate keeps of it was not.
    #[doc(hidden)]
    fn begin_files(_master: &Options<Self>, _copies: &[Options<Self>]) -> Result<(), String> {
        Ok(())
    }

    /// Prepares a new connection for its use, and asks whom it leads to: in one round trip, unless the
    /// server refuses a setting that is not needed.
    #[doc(hidden)]
    fn prepare(conn: &mut Conn<Self>, access: Access) -> BoxFuture<'_, Result<Prepared, sqlx::Error>>;

    /// What an error of a statement says.
    #[doc(hidden)]
    fn judge(error: &sqlx::Error) -> Judgement;

    /// What an ordinary role can see of a server that is there for this, in as few round trips as can be.
    /// Poolers are no obstacle: nothing is prepared.
    #[doc(hidden)]
    fn observe<'a>(
        conn: &'a mut Conn<Self>,
        access: Access,
        memory: &'a mut Self::Memory,
        depth: Depth,
    ) -> BoxFuture<'a, Result<Observation, sqlx::Error>>;

    /// How far a slave has replayed, as [`observe`](Self::observe) tells it. `known` is a position of the very
    /// same instance, which spares asking for what seldom changes.
    #[doc(hidden)]
    fn replayed<'a>(
        conn: &'a mut Conn<Self>,
        known: Option<&'a Position>,
    ) -> BoxFuture<'a, Result<Option<Position>, sqlx::Error>>;

    /// Waits at the server until it has replayed `position`, but not for longer than `patience`. `false`
    /// where the server cannot wait: the caller asks again.
    #[doc(hidden)]
    fn wait_for<'a>(
        _conn: &'a mut Conn<Self>,
        _position: &'a Position,
        _patience: Duration,
    ) -> BoxFuture<'a, Result<bool, sqlx::Error>> {
        Box::pin(async { Ok(false) })
    }

    /// What each of these sessions is doing, as far as their own role can see.
    #[doc(hidden)]
    fn sessions<'a>(
        _conn: &'a mut Conn<Self>,
        sessions: &'a [SessionId],
    ) -> BoxFuture<'a, Result<Vec<Activity>, sqlx::Error>> {
        Box::pin(async { Ok(vec![Activity::Hidden; sessions.len()]) })
    }

    /// The connection as what runs statements. Not a bound on `&mut Connection` for all lifetimes: each generic impl would
    /// have to repeat it, and the compiler, asked about a type without `Executor`, would look for it without end.
    #[doc(hidden)]
    fn executor(conn: &mut Conn<Self>) -> impl Executor<'_, Database = Self>;

    /// Fetches the first row, and reads on to the end of the answer; gives up after a few more rows where
    /// `rest` allows it. Whether the connection is left clean.
    #[doc(hidden)]
    fn fetch_optional<'a, 'q: 'a>(
        conn: &'a mut Conn<Self>,
        query: impl Execute<'q, Self> + 'q,
        rest: Rest,
    ) -> impl Future<Output = Result<(Option<Self::Row>, Left), sqlx::Error>> + Send;

    /// Whether the rows after the first one are read.
    #[doc(hidden)]
    fn rest(_sql: &str, access: Access) -> Rest {
        if access.writes() { Rest::Read } else { Rest::Abandon }
    }

    /// Whether this statement leaves a transaction open behind it. `simple` says that it goes over the simple
    /// protocol, which takes several statements at once.
    #[doc(hidden)]
    fn opens_transaction(sql: &str, simple: bool) -> Opens {
        Opens::by_words(sql, simple)
    }

    /// Whether a transaction is open that nobody is going to end; if so, or if that cannot be told, the
    /// connection is to be closed. A transaction that sqlx knows of has been rolled back by then.
    #[doc(hidden)]
    fn settle(conn: &mut Conn<Self>) -> BoxFuture<'_, Result<Left, sqlx::Error>>;

    /// Starts to copy the master into a slave, which messages call `name`, every so often, after a first copy.
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

/// By which parameter of a URL the name of its host is looked for in the server's certificate, and which one checks
/// all but that.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifiedHost {
    pub asked_by: &'static str,
    pub without: &'static str,
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

impl Access {
    pub(crate) fn writes(self) -> bool {
        self == Self::ReadWrite
    }
}

/// What to do about rows that nobody wants.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// They are read: the statement may have written, and is not complete before its answer is.
    Read,
    /// A few are read; where there are more, closing the connection costs less.
    Abandon,
}

/// How a statement has left its connection.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    Clean,
    /// With an answer that is not read to its end, or in a transaction.
    Dirty,
}

/// [`Driver::fetch_optional`] for drivers that send whole answers, and for statements that are not over before theirs is.
fn fetch_first<'a, 'q: 'a, DB: Driver>(
    conn: &'a mut Conn<DB>,
    query: impl Execute<'q, DB> + 'q,
    rest: Rest,
) -> impl Future<Output = Result<(Option<DB::Row>, Left), sqlx::Error>> + Send {
    use rocket::futures::TryStreamExt;

    /// So many rows cost less to read than a new connection.
    const CHEAP_REST: usize = 64;

    let mut steps = DB::executor(conn).fetch_many(query);
    async move {
        let (mut first, mut unwanted) = (None, 0);
        while let Some(step) = steps.try_next().await? {
            match (step.right(), &first) {
                (row @ Some(_), None) => first = row,
                (Some(_), Some(_)) => unwanted += 1,
                (None, _) => {}
            }
            if unwanted > CHEAP_REST && rest == Rest::Abandon {
                return Ok((first, Left::Dirty));
            }
        }
        Ok((first, Left::Clean))
    }
}

/// What a failed query says.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The statement wanted to write where only reads are allowed.
    ReadOnly,
    /// The statement wanted to write, and the server takes no writes: another one may be the master now.
    NoWrites,
    /// The connection or its server failed: another node may well answer.
    Node,
    /// The server is fine, but has no connection to spare.
    Full,
    /// The server is fine, but cancelled the query for reasons of its replication.
    Conflict,
    /// The query is to blame, or the cause is unknown: it would fail elsewhere as well.
    Query,
}

/// What a failed query leaves of its connection.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Remains {
    /// It can run another statement.
    Usable,
    /// It can run nothing more. The server refused the statement, or rolled it back, before it ended the session.
    Ended,
    /// It ended before the answer was complete: what was sent may have been done or not.
    BrokenOff,
}

/// What an error of a statement says.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Judgement {
    /// Of the statement and its server.
    pub fault: Fault,
    /// Of the connection.
    pub remains: Remains,
}

impl Judgement {
    pub(crate) const BROKEN_OFF: Self = Self { fault: Fault::Node, remains: Remains::BrokenOff };

    /// Of an error that no server has sent: these look the same through every driver.
    fn of_driver(error: &sqlx::Error) -> Self {
        use sqlx::Error::*;

        match error {
            Io(_) | Tls(_) | WorkerCrashed => Self::BROKEN_OFF,
            // The rest of the conversation cannot be understood.
            Protocol(_) => Self { fault: Fault::Query, remains: Remains::Ended },
            _ => Self { fault: Fault::Query, remains: Remains::Usable },
        }
    }
}

/// How much to ask of a server.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// What changes all the time.
    Light,
    /// Also what seldom changes, and costs the server more.
    Full,
}

/// What a server tells of itself.
#[doc(hidden)]
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Observation {
    pub role: ReportedRole,
    /// What a master and its slaves have in common, and nobody else.
    pub system: Option<u64>,
    /// What a master has written, or a slave replayed; unknown where it cannot be compared.
    pub position: Option<Position>,
    /// All that it has, where its position names the latest transaction alone (MariaDB).
    pub contents: Option<Position>,
    /// The part of a master's log that slaves can have replayed, where its position is beyond that (PostgreSQL).
    pub flushed: Option<Position>,
}

impl Observation {
    /// Whether the server has the transactions that this place names, and so all before them.
    pub(crate) fn has(&self, place: &Position) -> bool {
        [&self.contents, &self.position].into_iter().flatten().any(|its| its.names(place))
    }
}

/// What a server takes itself for.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ReportedRole {
    /// It takes writes of its own.
    Master,
    /// It replays those of another.
    Slave,
    /// It does not tell.
    #[default]
    Unknown,
}

/// Asks again and again, at first often, until a slave has replayed `position`; but not for longer than
/// `patience`, nor for a position of another history, which may never come. How far it has replayed then.
pub(crate) async fn catch_up<DB: Driver>(
    conn: &mut Conn<DB>,
    position: &Position,
    mut known: Option<Position>,
    patience: Duration,
) -> Result<Option<Position>, sqlx::Error> {
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_millis(1);
    loop {
        known = DB::replayed(conn, known.as_ref()).await?;
        let worthwhile =
            |replayed: &Position| replayed.shares_history(position) && !replayed.reaches(position);
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || !known.as_ref().is_some_and(worthwhile) {
            return Ok(known);
        }
        if DB::wait_for(conn, position, left).await? {
            return DB::replayed(conn, known.as_ref()).await;
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
            Some(port) if self.host.contains(':') && !self.host.starts_with('/') => {
                write!(f, "[{}]:{port}", self.host)
            }
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
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

/// Whether a server says that it takes no writes, of any session.
pub(crate) fn takes_no_writes(error: &sqlx::Error) -> bool {
    #[cfg(feature = "mysql")]
    return error.as_database_error().is_some_and(mysql::takes_no_writes);
    #[cfg(not(feature = "mysql"))]
    {
        let _ = error;
        false
    }
}

/// Whether a server is there, but does not let this user in, or not to this database.
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
