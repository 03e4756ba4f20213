//! What this crate asks of a database: the trait [`Engine`], and the types that it speaks in.
//!
//! Everything here is `pub`, because [`Driver`] builds on it. Only the benches and tests of this crate can name it, by
//! `internals`.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rocket::futures::future::BoxFuture;
use rocket::tokio;
use sqlx::{Connection, Database, Execute, Executor};

use super::{Activity, ConnectionInfo, Driver, Follower, Opens, SessionId, Settings};
use crate::position::Position;

/// The driver's connection options: where to connect to, and how.
pub(crate) type Options<DB> = <<DB as Database>::Connection as Connection>::Options;

/// A connection of a driver.
pub(crate) type Conn<DB> = <DB as Database>::Connection;

/// What differs between databases. Implemented for one driver per feature of this crate.
pub trait Engine: Database<Arguments: Clone> {
    /// True if only one connection at a time may write, so that a larger pool would only wait on itself.
    const ONE_WRITER: bool = false;

    /// True if this crate can keep a slave itself: [`Engine::follow`].
    const CAN_FOLLOW: bool = false;

    /// True if servers are reached over a network.
    const HAS_HOSTS: bool = true;

    /// True if a server proves a promotion by a timeline of its own.
    const TELLS_TIMELINE: bool = false;

    /// True if a server proves a promotion in any way.
    const TELLS_PROMOTION: bool = Self::TELLS_TIMELINE;

    /// The parameters that a URL may have. sqlx ignores others.
    const URL_PARAMETERS: &'static [&'static str] = &[];

    /// The sign by which a server is known to take no writes of its own.
    const NO_WRITES: &'static str = "it is read-only";

    /// The remedy for a slave with transactions that its master does not have.
    const REJOIN: &'static str = "Make it anew from a copy of the master.";

    /// The statement that begins a read-only transaction. `None` where a read-only connection needs no special one.
    const BEGIN_READ_ONLY: Option<&'static str> = None;

    /// True if a proxy may refuse [`options`](Self::options) because of the session settings in them.
    const MAY_REFUSE_OPTIONS: bool = false;

    /// What is remembered of a connection between two probes, so that constant facts are asked for once.
    type Memory: Default + Send;

    /// Turns settings into the driver's options. The error says what is wrong with the URL, without showing the URL.
    fn options(settings: &Settings, access: Access) -> Result<Options<Self>, String>;

    /// The same options without the request for a read-only session, and without other settings that a proxy may
    /// refuse.
    fn plain_options(settings: &Settings, access: Access) -> Result<Options<Self>, String> {
        Self::options(settings, access)
    }

    /// True for the error of a proxy that refuses [`options`](Self::options) and may accept
    /// [`plain_options`](Self::plain_options).
    fn refuses_options(_error: &sqlx::Error) -> bool {
        false
    }

    /// Makes an open connection read-only, where [`plain_options`](Self::plain_options) did not ask for that.
    /// [`set_up`](Self::set_up) tells whether it worked.
    fn make_read_only(_conn: &mut Conn<Self>) -> BoxFuture<'_, Result<(), sqlx::Error>> {
        Box::pin(async { Ok(()) })
    }

    /// The server that these options lead to.
    fn address(options: &Options<Self>) -> Address;

    /// The database that these options lead to, where a server can have several.
    fn database(_options: &Options<Self>) -> Option<&str> {
        None
    }

    /// The user that these options log in as, where the database has logins.
    fn user(_options: &Options<Self>) -> Option<&str> {
        None
    }

    /// The URL parameters for host verification, if these options check the host's name in the server's certificate.
    fn verified_host(_options: &Options<Self>) -> Option<VerifiedHost> {
        None
    }

    /// The folder of the file that these options lead to, if it does not exist.
    fn missing_folder(_options: &Options<Self>) -> Option<PathBuf> {
        None
    }

    /// True if these options lead to a file that is empty or missing.
    fn is_unfilled(_options: &Options<Self>) -> bool {
        false
    }

    /// Creates the master's file, where the database is a file, before any connection is opened. Fails, with the
    /// remedy, if that file was lost while one of the copies that this crate keeps still exists.
    fn begin_files(_master: &Options<Self>, _copies: &[Options<Self>]) -> Result<(), String> {
        Ok(())
    }

    /// Prepares a new connection for its use and asks which server it leads to. This takes one round trip, unless the
    /// server refuses a setting that is not needed. With `read_only`, the session is made read-only where
    /// [`options`](Self::options) cannot ask for that.
    fn set_up(
        conn: &mut Conn<Self>,
        access: Access,
        read_only: bool,
    ) -> BoxFuture<'_, Result<ConnectionInfo, sqlx::Error>>;

    /// Judges the error of a statement.
    fn judge(error: &sqlx::Error) -> Judgement;

    /// Probes a server that serves `access`: what an ordinary role can see of it, in as few round trips as possible.
    /// Works through poolers: no statement is prepared.
    fn observe<'a>(
        conn: &'a mut Conn<Self>,
        access: Access,
        memory: &'a mut Self::Memory,
        depth: Depth,
    ) -> BoxFuture<'a, Result<Observation, sqlx::Error>>;

    /// The position that a slave has replayed, as [`observe`](Self::observe) tells it. `known` is an earlier position
    /// of the same instance. It saves the query for what seldom changes.
    fn replayed<'a>(
        conn: &'a mut Conn<Self>,
        known: Option<&'a Position>,
    ) -> BoxFuture<'a, Result<Option<Position>, sqlx::Error>>;

    /// Waits at the server until it has replayed `position`, for at most `patience`. Returns `false` where the server
    /// cannot wait, so that the caller has to ask again.
    fn wait_for<'a>(
        _conn: &'a mut Conn<Self>,
        _position: &'a Position,
        _patience: Duration,
    ) -> BoxFuture<'a, Result<bool, sqlx::Error>> {
        Box::pin(async { Ok(false) })
    }

    /// The activity of each of these sessions, as far as this connection's role can see it.
    fn sessions<'a>(
        _conn: &'a mut Conn<Self>,
        sessions: &'a [SessionId],
    ) -> BoxFuture<'a, Result<Vec<Activity>, sqlx::Error>> {
        Box::pin(async { Ok(vec![Activity::Hidden; sessions.len()]) })
    }

    /// The connection as an executor. This is not a bound on `&mut Connection` for all lifetimes: each generic impl
    /// would have to repeat the bound, and for a type without `Executor` the compiler would search without end.
    fn executor(conn: &mut Conn<Self>) -> impl Executor<'_, Database = Self>;

    /// Fetches the first row and reads on to the end of the answer. Gives up after a few more rows where `rest` allows
    /// that. Also returns how the connection was left.
    fn fetch_optional<'a, 'q: 'a>(
        conn: &'a mut Conn<Self>,
        query: impl Execute<'q, Self> + 'q,
        rest: Rest,
    ) -> impl Future<Output = Result<(Option<Self::Row>, Left), sqlx::Error>> + Send;

    /// Decides whether to read the rows after the first one.
    fn rest(_sql: &str, access: Access) -> Rest {
        if access.writes() { Rest::Read } else { Rest::Abandon }
    }

    /// Tells whether this statement leaves a transaction open. `simple` means the simple protocol, which takes several
    /// statements at once.
    fn opens_transaction(sql: &str, simple: bool) -> Opens {
        Opens::by_words(sql, simple)
    }

    /// Tells whether a transaction was left open. If so, or if that cannot be told, the connection has to be closed. A
    /// transaction that sqlx knows of has been rolled back before this call.
    fn settle(conn: &mut Conn<Self>) -> BoxFuture<'_, Result<Left, sqlx::Error>>;

    /// Starts to copy the master into a slave at this interval. The future is ready after the first copy. Messages call
    /// the slave `name`.
    fn follow(
        _name: &str,
        _master: &Options<Self>,
        _slave: &Options<Self>,
        _every: Duration,
    ) -> BoxFuture<'static, Follower> {
        unreachable!("a configuration with `follow` is refused unless CAN_FOLLOW")
    }
}

/// The URL parameter that asks for the host's name in the server's certificate, and the one that checks all but that
/// name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifiedHost {
    pub asked_by: &'static str,
    pub without: &'static str,
}

/// What the connections of a pool may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Reads and writes, at the master.
    Writes,
    /// Reads only, at the master.
    MasterReads,
    /// Reads only, at a slave.
    SlaveReads,
}

impl Access {
    pub(crate) fn writes(self) -> bool {
        self == Self::Writes
    }
}

/// What to do about the rows after the first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Read them: the statement may have written, and is complete only when its answer is.
    Read,
    /// Read a few. If there are more, closing the connection costs less.
    Abandon,
}

/// How a statement has left its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    Clean,
    /// With an answer that is not read to its end, or in a transaction.
    Dirty,
}

/// [`Engine::fetch_optional`] for drivers that send whole answers, and for statements that end only with their answer.
pub(super) fn fetch_first<'a, 'q: 'a, DB: Driver>(
    conn: &'a mut Conn<DB>,
    query: impl Execute<'q, DB> + 'q,
    rest: Rest,
) -> impl Future<Output = Result<(Option<DB::Row>, Left), sqlx::Error>> + Send {
    use rocket::futures::TryStreamExt;

    /// The number of rows up to which reading on costs less than a new connection.
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

/// The cause of a failed query.
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

/// The state of the connection after a failed query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Remains {
    /// The connection can run another statement.
    Usable,
    /// The connection cannot run anything more. The server refused or rolled back the statement before it ended the
    /// session.
    Ended,
    /// The connection ended before the answer was complete. The statement may have been carried out or not.
    BrokenOff,
}

/// The judgement of a statement's error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Judgement {
    /// The cause, in the statement or its server.
    pub fault: Fault,
    /// The state of the connection.
    pub remains: Remains,
}

impl Judgement {
    pub(crate) const BROKEN_OFF: Self = Self { fault: Fault::Node, remains: Remains::BrokenOff };

    /// Judges an error that no server has sent. Such errors look the same through every driver.
    pub(super) fn of_driver(error: &sqlx::Error) -> Self {
        use sqlx::Error::*;

        match error {
            Io(_) | Tls(_) | WorkerCrashed => Self::BROKEN_OFF,
            // The rest of the conversation cannot be understood.
            Protocol(_) => Self { fault: Fault::Query, remains: Remains::Ended },
            _ => Self { fault: Fault::Query, remains: Remains::Usable },
        }
    }
}

/// How much a probe asks of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Only what changes all the time.
    Light,
    /// Also what seldom changes, which costs the server more.
    Full,
}

/// The result of a probe.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Observation {
    /// The role that the server reports.
    pub role: ReportedRole,
    /// The reason why a server that could be the master takes no writes, if it is another one than
    /// [`NO_WRITES`](Engine::NO_WRITES).
    pub no_writes: Option<&'static str>,
    /// Identifies the system: the same at a master and its slaves, different at all other servers.
    pub system: Option<u64>,
    /// The position that a master has written, or a slave has replayed. `None` where positions cannot be compared.
    pub position: Option<Position>,
    /// All transactions that the server has, where its position names the latest one alone (MariaDB).
    pub contents: Option<Position>,
    /// The part of a master's log that slaves can have replayed, where the master's position is beyond that
    /// (PostgreSQL).
    pub flushed: Option<Position>,
    /// The position of a master in its Galera cluster, beside the one in its own log.
    pub in_cluster: Option<Position>,
}

impl Observation {
    /// True if the server has the transactions that this position names, and so all before them.
    pub(crate) fn has(&self, place: &Position) -> bool {
        [&self.contents, &self.position].into_iter().flatten().any(|its| its.names(place))
    }
}

/// The role that a server reports.
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

/// Polls, often at first, until a slave has replayed `position`, for at most `patience`. Stops at once if `position` is
/// of another history, which the slave may never reach. Returns the position that the slave has replayed by then.
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

/// The address of a server, for log lines and default server names.
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
