use std::time::Duration;

use rocket::futures::future::BoxFuture;
use sqlx::error::DatabaseError;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgDatabaseError, PgRow, PgSeverity, PgSslMode};
use sqlx::{AssertSqlSafe, Execute, Postgres, Row};

use super::engine::fetch_first;
use super::settings::{Tls, check_tls};
use super::version::Software;
use super::{
    Access, Activity, Address, ConnectionInfo, Depth, Driver, Engine, Fault, Instance, Judgement, Left,
    NotTheMaster, Observation, Options, Remains, ReportedRole, Rest, SessionId, Settings, VerifiedHost,
};
use crate::position::Position;

impl Driver for Postgres {}

impl Engine for Postgres {
    const TELLS_TIMELINE: bool = true;
    const MAY_REFUSE_OPTIONS: bool = true;
    const REJOIN: &'static str =
        "Rewind it with `pg_rewind`, or make it anew from a base backup of the master.";
    const NO_WRITES: &'static str = "it is in recovery";
    const BEGIN_READ_ONLY: Option<&'static str> = Some("BEGIN READ ONLY");
    const URL_PARAMETERS: &'static [&'static str] = URL_PARAMETERS;

    type Memory = Memory;

    fn options(settings: &Settings, access: Access) -> Result<Options<Self>, String> {
        let options = Self::plain_options(settings, access)?;
        Ok(match access {
            Access::MasterReads | Access::SlaveReads if settings.enforce_read_only => {
                options.options([("default_transaction_read_only", "on")])
            }
            _ => options,
        })
    }

    /// Leaves `extra_float_digits` out, which pgbouncer refuses by default. Since PostgreSQL 12 a server sends all
    /// digits of a value without that setting, unless it is configured otherwise.
    fn plain_options(settings: &Settings, _access: Access) -> Result<Options<Self>, String> {
        let mut options: PgConnectOptions = settings.url.parse_as::<Self>()?;
        let tls = match options.get_ssl_mode() {
            PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer => Tls::Optional,
            PgSslMode::Require | PgSslMode::VerifyCa | PgSslMode::VerifyFull => Tls::Required,
        };
        check_tls(&options, tls)?;
        if let Some(host) = settings.host_of(options.get_host()) {
            options = options.host(&host);
        }
        Ok(options.extra_float_digits(None))
    }

    fn refuses_options(error: &sqlx::Error) -> bool {
        let error = error.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>());
        error.is_some_and(|error| is_refusal_of_options(error.code(), error.message()))
    }

    /// Takes a round trip of its own. All statements of one message are one transaction, and a transaction is read-only
    /// or not from its beginning. In the same message, [`set_up`](Self::set_up) would not see the new setting.
    fn make_read_only(conn: &mut PgConnection) -> BoxFuture<'_, Result<(), sqlx::Error>> {
        Box::pin(async move {
            match sqlx::raw_sql(MAKE_READ_ONLY).execute(conn).await {
                Err(error @ sqlx::Error::Database(_)) if Self::judge(&error).fault != Fault::Query => {
                    Err(error)
                }
                // A proxy may refuse this statement, too. Then the connection is not read-only, and the log says so.
                Err(sqlx::Error::Database(_)) | Ok(_) => Ok(()),
                Err(error) => Err(error),
            }
        })
    }

    /// The port is part of a socket's name (`.s.PGSQL.5432`), so servers that share a folder differ by it.
    fn address(options: &Options<Self>) -> Address {
        let host = match options.get_socket() {
            Some(folder) => folder.display().to_string(),
            None => options.get_host().to_owned(),
        };
        Address { host, port: Some(options.get_port()) }
    }

    /// The database. By default it has the name of the user:
    /// <https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-DBNAME>
    fn database(options: &Options<Self>) -> Option<&str> {
        Some(options.get_database().unwrap_or_else(|| options.get_username()))
    }

    fn user(options: &Options<Self>) -> Option<&str> {
        Some(options.get_username())
    }

    fn verified_host(options: &Options<Self>) -> Option<VerifiedHost> {
        matches!(options.get_ssl_mode(), PgSslMode::VerifyFull)
            .then_some(VerifiedHost { asked_by: "sslmode=verify-full", without: "sslmode=verify-ca" })
    }

    /// For readers, lets the server notice within half a second that the client has left, so that abandoned reads do
    /// not pile up there. Servers on operating systems that cannot tell refuse this setting. They are used without it.
    fn set_up(
        conn: &mut PgConnection,
        access: Access,
        _read_only: bool,
    ) -> BoxFuture<'_, Result<ConnectionInfo, sqlx::Error>> {
        Box::pin(async move {
            // The server has told its version while connecting.
            if let Some(version) = conn.server_version_num() {
                Software::PostgreSql.accept(&format!("{}.{}", version / 10_000, version % 10_000))?;
            }
            let told = match access {
                Access::Writes => sqlx::raw_sql(IDENTITY).fetch_one(&mut *conn).await,
                Access::MasterReads | Access::SlaveReads => {
                    match sqlx::raw_sql(READER).fetch_one(&mut *conn).await {
                        Err(error @ sqlx::Error::Database(_))
                            if Self::judge(&error).fault == Fault::Query =>
                        {
                            sqlx::raw_sql(IDENTITY).fetch_one(&mut *conn).await
                        }
                        told => told,
                    }
                }
            };
            match told {
                Ok(row) => {
                    let info = info_from(&row);
                    let must_lead_to_master = access != Access::SlaveReads;
                    if must_lead_to_master && info.role == ReportedRole::Master && is_split(conn).await? {
                        return Err(NotTheMaster::Split.into());
                    }
                    Ok(info)
                }
                // A server that only speaks PostgreSQL's protocol may not know these functions.
                Err(error @ sqlx::Error::Database(_)) if Self::judge(&error).fault == Fault::Query => {
                    let row = sqlx::raw_sql(READ_ONLY).fetch_one(conn).await?;
                    Ok(ConnectionInfo {
                        read_only: row.try_get::<&str, _>(0)? == "on",
                        ..ConnectionInfo::default()
                    })
                }
                Err(error) => Err(error),
            }
        })
    }

    fn observe<'a>(
        conn: &'a mut PgConnection,
        _access: Access,
        memory: &'a mut Memory,
        depth: Depth,
    ) -> BoxFuture<'a, Result<Observation, sqlx::Error>> {
        Box::pin(async move {
            if let (Memory::Log(log), Depth::Light) = (&*memory, depth)
                && let Some(observed) = look(conn, log).await?
            {
                return Ok(observed);
            }
            if let Memory::NoLog(looks_left @ 1..) = memory {
                *looks_left -= 1;
            } else {
                match sqlx::raw_sql(Memory::FULL).fetch_one(&mut *conn).await {
                    Ok(row) => {
                        let log = Log::told(&row);
                        let observed = observation(&row, &log);
                        *memory = Memory::Log(log);
                        return Ok(observed);
                    }
                    Err(error @ sqlx::Error::Database(_)) if Self::judge(&error).fault == Fault::Query => {
                        *memory = match is_refused(&error) {
                            true => Memory::NoLog(LOOKS_WITHOUT_LOG),
                            false => Memory::Nothing,
                        };
                    }
                    Err(error) => return Err(error),
                }
            }
            let row = sqlx::raw_sql(ROLE).fetch_one(conn).await?;
            Ok(Observation { role: reported_role(&row), ..Observation::default() })
        })
    }

    fn replayed<'a>(
        conn: &'a mut PgConnection,
        known: Option<&'a Position>,
    ) -> BoxFuture<'a, Result<Option<Position>, sqlx::Error>> {
        Box::pin(async move {
            let mut memory = match known {
                Some(Position::Lsn { timeline, .. }) => {
                    Memory::Log(Log { timeline: Some(*timeline), ..Log::of(ReportedRole::Slave) })
                }
                _ => Memory::Nothing,
            };
            let observed = Self::observe(conn, Access::SlaveReads, &mut memory, Depth::Light).await?;
            Ok(observed.position.filter(|_| observed.role != ReportedRole::Master))
        })
    }

    /// An ordinary role sees what the sessions of its own role are doing. Of other sessions it sees only that they
    /// exist: <https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-STATS-VIEWS>
    fn sessions<'a>(
        conn: &'a mut PgConnection,
        sessions: &'a [SessionId],
    ) -> BoxFuture<'a, Result<Vec<Activity>, sqlx::Error>> {
        Box::pin(async move {
            let pids: Vec<_> = sessions.iter().map(|session| session.id.to_string()).collect();
            let sql = format!("{SESSIONS} WHERE pid IN ({})", pids.join(", "));
            let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(conn).await?;
            let activity = |session: &SessionId| {
                let number =
                    |row: &PgRow, column: usize| row.try_get::<&str, _>(column).ok()?.parse::<i64>().ok();
                let Some(row) = rows.iter().find(|row| number(row, 0) == Some(session.id)) else {
                    return Activity::Unknown;
                };
                match number(row, 1) {
                    Some(began) if began == session.began => {}
                    // A later session has got the same number.
                    Some(_) => return Activity::Unknown,
                    None => return Activity::Hidden,
                }
                let idle = row.try_get::<&str, _>(3).ok().and_then(|seconds| seconds.parse::<f64>().ok());
                match (row.try_get::<&str, _>(2), idle) {
                    (Ok(state), Some(seconds)) if state.starts_with("idle") => {
                        Activity::Idle(Duration::try_from_secs_f64(seconds).unwrap_or_default())
                    }
                    (Ok(_), _) => Activity::Busy,
                    (Err(_), _) => Activity::Hidden,
                }
            };
            Ok(sessions.iter().map(activity).collect())
        })
    }

    fn executor(conn: &mut PgConnection) -> impl sqlx::Executor<'_, Database = Self> {
        conn
    }

    fn fetch_optional<'a, 'q: 'a>(
        conn: &'a mut PgConnection,
        query: impl Execute<'q, Self> + 'q,
        rest: Rest,
    ) -> impl Future<Output = Result<(Option<PgRow>, Left), sqlx::Error>> + Send {
        fetch_first::<Self>(conn, query, rest)
    }

    /// Compares the start of the transaction with that of the statement. Outside of a transaction block, each statement
    /// is a transaction that begins with it:
    /// <https://www.postgresql.org/docs/current/functions-datetime.html#FUNCTIONS-DATETIME-CURRENT>. A block that has
    /// failed refuses every statement. `ROLLBACK` would do as well, but causes a warning in the server's log.
    fn settle(conn: &mut PgConnection) -> BoxFuture<'_, Result<Left, sqlx::Error>> {
        Box::pin(async move {
            let alone = sqlx::raw_sql("SELECT now() = statement_timestamp()").fetch_one(conn).await?;
            Ok(if alone.try_get::<bool, _>(0)? { Left::Clean } else { Left::Dirty })
        })
    }

    fn judge(error: &sqlx::Error) -> Judgement {
        let Some(error) = error.as_database_error().and_then(|error| error.try_downcast_ref()) else {
            return Judgement::of_driver(error);
        };
        let is_fatal = is_fatal(error);
        // Once a session has begun, a server itself sends no code of class 08 about its client's connection: such a
        // code means that a pooler in between has lost the server. A statement that loses a connection of its own to
        // another database gets such a code as well, but with the routine in the server's source, which a pooler does
        // not send.
        let code = PgDatabaseError::code(error);
        let is_lost = code.starts_with("08") && (is_fatal || error.routine().is_none());
        // https://www.postgresql.org/docs/current/errcodes-appendix.html
        let fault = match code {
            "25006" => Fault::ReadOnly,
            TOO_MANY_CONNECTIONS => Fault::Full,
            // On a hot standby, this code is a conflict with recovery, not a serialization failure. A conflict with a
            // session that is idle in its transaction ends that session:
            // https://www.postgresql.org/docs/current/hot-standby.html#HOT-STANDBY-CONFLICT
            // A deadlock on a standby is one with the process that replays. At a master, reads may run once more as
            // well.
            "40001" | "40P01" => Fault::Conflict,
            _ if is_fatal || is_lost => Fault::Node,
            _ => Fault::Query,
        };
        let remains = match () {
            () if is_lost => Remains::BrokenOff,
            () if is_fatal => Remains::Ended,
            () => Remains::Usable,
        };
        Judgement { fault, remains }
    }
}

/// The parameters that sqlx reads: <https://docs.rs/sqlx/0.9/sqlx/postgres/struct.PgConnectOptions.html#parameters>
pub(super) const URL_PARAMETERS: &[&str] = &[
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

/// Selects the server's own identifiers, the session, whether that session is read-only, and whether the server is in
/// recovery. Not `inet_server_port`, which is NULL through a Unix socket, though the server is the same.
macro_rules! identity {
    () => {
        "SELECT concat_ws(' ', current_setting('port'), extract(epoch FROM pg_postmaster_start_time())),
            pg_backend_pid()::text, current_setting('transaction_read_only'),
            (SELECT (extract(epoch FROM backend_start) * 1000000)::bigint::text
                FROM pg_stat_get_activity(pg_backend_pid()) LIMIT 1),
            pg_is_in_recovery()::text"
    };
}

const IDENTITY: &str = identity!();

const READER: &str = concat!("SET client_connection_check_interval = '500ms'; ", identity!());

const MAKE_READ_ONLY: &str = "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY";

const READ_ONLY: &str = "SHOW transaction_read_only";

const SESSIONS: &str = "SELECT pid::text, (extract(epoch FROM backend_start) * 1000000)::bigint::text, state,
    extract(epoch FROM clock_timestamp() - state_change)::text FROM pg_stat_activity";

/// True if a proxy sends reads and writes to different servers. pgpool sends a query with a volatile function, such as
/// `pg_is_in_recovery()`, to the primary. It balances a query that has stable functions alone, as it does the
/// application's own reads: <https://www.pgpool.net/docs/43/en/html/runtime-config-load-balancing.html>. A server that
/// was not in recovery a moment ago is not in recovery now, so an answer from recovery comes from another server.
async fn is_split(conn: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let asked = sqlx::raw_sql("SELECT current_setting('in_hot_standby', true)").fetch_one(conn).await;
    match asked {
        Ok(row) => Ok(row.try_get::<Option<&str>, _>(0)? == Some("on")),
        // A server that only speaks PostgreSQL's protocol.
        Err(error @ sqlx::Error::Database(_)) if Postgres::judge(&error).fault == Fault::Query => Ok(false),
        Err(error) => Err(error),
    }
}

fn info_from(row: &PgRow) -> ConnectionInfo {
    // The simple protocol sends all values as text.
    let number = |column| row.try_get::<&str, _>(column).ok()?.parse::<i64>().ok();
    let session = || Some(SessionId { id: number(1)?, began: number(3)?, role: None });
    ConnectionInfo {
        instance: row.try_get::<&str, _>(0).ok().map(Instance::of),
        session: session(),
        role: match row.try_get::<&str, _>(4) {
            Ok("true") => ReportedRole::Slave,
            Ok(_) => ReportedRole::Master,
            Err(_) => ReportedRole::Unknown,
        },
        read_only: row.try_get::<&str, _>(2).is_ok_and(|setting| setting == "on"),
    }
}

/// The statements that ask a server about its log. Each of hundreds of application servers sends them at least once a
/// second, so they must cost no more than a row by primary key, which `./scripts/bench probes` measures. Parsing is
/// most of the cost. Hence each role has a statement of its own, which names every function once, and positions are
/// sent as text.
impl Memory {
    /// A master's position is where the next record will be inserted. With `synchronous_commit = off`, which a
    /// transaction can set for itself, a commit is reported to its writer before it is flushed. So the flushed position
    /// may be before the client's own write.
    ///
    /// Slaves get only what is flushed, and lags are counted from there. The records of an open transaction may not be
    /// flushed before it ends.
    ///
    /// The name of a log file begins with the present timeline, for whatever position it is asked. A server in recovery
    /// refuses to tell any of these.
    pub const MASTER: &str = "SELECT pg_is_in_recovery(), pg_current_wal_insert_lsn(), \
        pg_walfile_name('0/1'), pg_current_wal_flush_lsn()";

    /// A slave's role and position. If the slave has been promoted, its role shows that the master's statement is
    /// needed.
    pub const SLAVE: &str = "SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn()";

    /// Also what seldom changes, most of it from the control file, which the server reads from disk each time. Of the
    /// sources for a standby's timeline, the control file is late, and the receiver is visible only with
    /// `pg_read_all_stats`: <https://www.postgresql.org/docs/current/predefined-roles.html>
    pub const FULL: &str = "SELECT pg_is_in_recovery(),
        CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END,
        CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_walfile_name(pg_current_wal_insert_lsn()) END,
        CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_flush_lsn() END,
        system_identifier::text, current_setting('wal_block_size'),
        pg_size_bytes(current_setting('wal_segment_size'))::text,
        CASE WHEN pg_is_in_recovery() THEN greatest(
            (SELECT timeline_id FROM pg_control_checkpoint()),
            (SELECT min_recovery_end_timeline FROM pg_control_recovery()),
            (SELECT max(received_tli) FROM pg_stat_wal_receiver))::text END
        FROM pg_control_system()";
}

/// Asks a server for what changes all the time. Returns `None` if the remembered role is unknown or no longer true.
async fn look(conn: &mut PgConnection, log: &Log) -> Result<Option<Observation>, sqlx::Error> {
    let sql = match log.role {
        ReportedRole::Master => Memory::MASTER,
        ReportedRole::Slave => Memory::SLAVE,
        ReportedRole::Unknown => return Ok(None),
    };
    match sqlx::raw_sql(sql).fetch_one(conn).await {
        Ok(row) if reported_role(&row) == log.role => Ok(Some(observation(&row, log))),
        Ok(_) => Ok(None),
        // A pooler may lead each statement to another server, and that server may be in recovery.
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(NOT_IN_THIS_STATE) => Ok(None),
        Err(error) => Err(error),
    }
}

const ROLE: &str = "SELECT pg_is_in_recovery()";

/// True if the role may not read the log's position, or the server lacks these functions. A cancelled statement is no
/// refusal. <https://www.postgresql.org/docs/current/errcodes-appendix.html>
fn is_refused(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code.starts_with("42") || code.starts_with("0A"))
}

/// The number of probes without questions about the log after a server has refused them. Then the server is asked
/// again, as the right may have been granted since. Each refusal is a line in the server's log.
const LOOKS_WITHOUT_LOG: u32 = 60;

/// What is remembered of a connection.
#[derive(Debug, Default)]
#[allow(unnameable_types)]
pub enum Memory {
    #[default]
    Nothing,
    Log(Log),
    /// The server refuses questions about its log. The number counts the probes that are left until it is asked again.
    NoLog(u32),
}

/// Facts about a server that seldom or never change during a connection.
#[derive(Clone, Debug)]
#[allow(unnameable_types)]
pub struct Log {
    role: ReportedRole,
    system: Option<u64>,
    block: Option<u64>,
    segment: Option<u64>,
    /// A standby's timeline, as of the latest full probe.
    timeline: Option<u32>,
}

impl Log {
    fn of(role: ReportedRole) -> Self {
        Self { role, system: None, block: None, segment: None, timeline: None }
    }

    fn told(row: &PgRow) -> Self {
        let number = |column| row.try_get::<&str, _>(column).ok()?.parse::<u64>().ok();
        Self {
            role: reported_role(row),
            system: number(4),
            block: number(5),
            segment: number(6),
            timeline: number(7).and_then(|timeline| timeline.try_into().ok()),
        }
    }
}

fn reported_role(row: &PgRow) -> ReportedRole {
    match row.try_get::<bool, _>(0) {
        Ok(true) => ReportedRole::Slave,
        Ok(false) => ReportedRole::Master,
        Err(_) => ReportedRole::Unknown,
    }
}

fn observation(row: &PgRow, log: &Log) -> Observation {
    let role = reported_role(row);
    // The simple protocol sends all values as text.
    let lsn_in = |column: usize| lsn(row.try_get_unchecked::<&str, _>(column).ok()?);
    let slaves = || Some(Position::Lsn { timeline: log.timeline?, lsn: lsn_in(1)? });
    let masters = || {
        let timeline = timeline_of(row.try_get::<&str, _>(2).ok()?)?;
        let lsn = end_of_record(lsn_in(1)?, log.block?, log.segment?);
        let flushed = flushed_records(lsn_in(3)?, lsn, log.block?);
        Some((Position::Lsn { timeline, lsn }, Position::Lsn { timeline, lsn: flushed }))
    };
    let (position, flushed) = match role {
        ReportedRole::Slave => (slaves(), None),
        ReportedRole::Master | ReportedRole::Unknown => masters().unzip(),
    };
    Observation { role, system: log.system, position, flushed, ..Observation::default() }
}

/// Parses two hexadecimal numbers of 32 bits each: <https://www.postgresql.org/docs/current/datatype-pg-lsn.html>
fn lsn(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    let part = |text| u32::from_str_radix(text, 16).ok().map(u64::from);
    Some(part(high)? << 32 | part(low)?)
}

/// The timeline is the first eight digits of the name of a file of the log.
fn timeline_of(file: &str) -> Option<u32> {
    u32::from_str_radix(file.get(..8)?, 16).ok()
}

/// The end of the latest record. At the end of a page, the insert position is already behind the header of the next
/// page. No slave replays up to there before the next record is inserted.
/// <https://github.com/postgres/postgres/blob/REL_15_STABLE/src/include/access/xlog_internal.h>
fn end_of_record(insert: u64, block: u64, segment: u64) -> u64 {
    const SHORT_HEADER: u64 = 24;
    const LONG_HEADER: u64 = 40;

    let header = if insert % segment < block { LONG_HEADER } else { SHORT_HEADER };
    if insert % block == header { insert - header } else { insert }
}

/// A position up to which slaves can have replayed a log that is flushed up to `flush` and has records up to `end`. A
/// flush in the background ends with a page, often in the middle of a record. A slave replays a record only when it has
/// all of it. The server does not tell where that record begins. A record has the images of 33 blocks at most, and a
/// few bytes more. <https://github.com/postgres/postgres/blob/REL_15_STABLE/src/include/access/xlogrecord.h>
fn flushed_records(flush: u64, end: u64, block: u64) -> u64 {
    const PAGES_OF_RECORD: u64 = 34;

    let is_amid_record = flush.is_multiple_of(block) && flush < end;
    if is_amid_record { flush.saturating_sub(PAGES_OF_RECORD * block) } else { flush }
}

const TOO_MANY_CONNECTIONS: &str = "53300";

/// object_not_in_prerequisite_state
const NOT_IN_THIS_STATE: &str = "55000";

/// True for wrong credentials (class 28) and a database that does not exist (3D), which do not mend themselves.
fn is_of_login(code: &str) -> bool {
    code.starts_with("28") || code.starts_with("3D")
}

/// Includes a role that may not connect to the database (insufficient_privilege, which ends a session only then).
pub(super) fn is_login_refused(error: &dyn DatabaseError) -> bool {
    error
        .try_downcast_ref::<PgDatabaseError>()
        .is_some_and(|error| is_fatal(error) && (is_of_login(error.code()) || error.code() == "42501"))
}

pub(super) fn is_unavailable(error: &dyn DatabaseError) -> bool {
    error.try_downcast_ref::<PgDatabaseError>().is_some_and(|error| {
        error.code() == TOO_MANY_CONNECTIONS || is_fatal(error) && !is_of_login(error.code())
    })
}

/// True if a proxy's message refuses a startup option. pgbouncer says "unsupported startup parameter: options", and
/// "unsupported startup parameter in options: default_transaction_read_only" since 1.20, both as protocol_violation
/// (08P01). RDS Proxy says "RDS Proxy currently doesn't support command-line options" as feature_not_supported (0A000).
/// Other proxies may report a parameter that they do not know (42704) or a value that they do not accept (class 22).
///
/// A name in a message may contain such a word. That costs one more attempt, whose error is the one that counts.
fn is_refusal_of_options(code: &str, message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    let words = ["option", "startup parameter", "default_transaction_read_only"];
    ["08", "0A", "22", "42"].iter().any(|class| code.starts_with(class))
        && words.iter().any(|word| message.contains(word))
}

/// True if the server ends the session with this error:
/// <https://www.postgresql.org/docs/current/runtime-config-logging.html#RUNTIME-CONFIG-SEVERITY-LEVELS>
fn is_fatal(error: &PgDatabaseError) -> bool {
    matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic)
}

#[cfg(test)]
mod tests {
    use super::{end_of_record, flushed_records, is_refusal_of_options, lsn, timeline_of};

    #[test]
    fn a_refusal_of_startup_options_is_known_by_code_and_words() {
        for (code, message, is_one) in [
            ("08P01", "unsupported startup parameter: options", true),
            ("08P01", "unsupported startup parameter in options: default_transaction_read_only", true),
            (
                "0A000",
                "Feature not supported: RDS Proxy currently doesn't support command-line options.",
                true,
            ),
            ("42704", "unrecognized configuration parameter \"default_transaction_read_only\"", true),
            ("22023", "Unsupported Startup Parameter: options", true),
            // Names of users and databases.
            ("28P01", "password authentication failed for user \"options\"", false),
            ("3D000", "database \"options\" does not exist", false),
            ("53300", "too many connections for role \"options\"", false),
            ("42501", "permission denied for database \"app\"", false),
            ("08P01", "server conn crashed?", false),
            ("57P03", "the database system is starting up", false),
            ("XX000", "option", false),
            ("", "", false),
        ] {
            assert_eq!(is_refusal_of_options(code, message), is_one, "{code}: {message}");
        }
    }

    #[test]
    fn positions_are_read_as_the_server_writes_them() {
        for (text, position) in [
            ("0/0", Some(0)),
            ("0/3000060", Some(0x300_0060)),
            ("16/B374D848", Some(0x16_B374_D848)),
            ("FFFFFFFF/FFFFFFFF", Some(u64::MAX)),
            ("", None),
            ("16", None),
            ("1/100000000", None),
            ("1/2/3", None),
        ] {
            assert_eq!(lsn(text), position, "{text}");
        }
        assert_eq!(timeline_of("0000002A00000016000000B3"), Some(42));
        assert_eq!(timeline_of("0000"), None);
    }

    #[test]
    fn nobody_replays_up_to_the_end_of_a_page_header() {
        const BLOCK: u64 = 8192;
        const SEGMENT: u64 = 16 << 20;

        for (insert, end) in [
            (3 * SEGMENT + 5 * BLOCK + 24, 3 * SEGMENT + 5 * BLOCK),
            (3 * SEGMENT + 40, 3 * SEGMENT),
            // Records that end there.
            (3 * SEGMENT + 5 * BLOCK + 40, 3 * SEGMENT + 5 * BLOCK + 40),
            (3 * SEGMENT + 5 * BLOCK, 3 * SEGMENT + 5 * BLOCK),
            (3 * SEGMENT + 5 * BLOCK + 1000, 3 * SEGMENT + 5 * BLOCK + 1000),
        ] {
            assert_eq!(end_of_record(insert, BLOCK, SEGMENT), end);
        }
    }

    #[test]
    fn a_flush_of_whole_pages_may_end_amid_a_record() {
        const BLOCK: u64 = 8192;
        const AHEAD: u64 = 1000 * BLOCK;

        for (flush, end, records) in [
            (500 * BLOCK + 64, AHEAD, 500 * BLOCK + 64),
            (500 * BLOCK, AHEAD, 466 * BLOCK),
            (2 * BLOCK, AHEAD, 0),
            // All that there is. Of two functions in one statement, the later one may tell of more.
            (AHEAD, AHEAD, AHEAD),
            (AHEAD + BLOCK, AHEAD, AHEAD + BLOCK),
        ] {
            assert_eq!(flushed_records(flush, end, BLOCK), records, "{flush}");
        }
    }
}
