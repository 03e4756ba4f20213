use std::io;
use std::time::Duration;

use rocket::futures::future::BoxFuture;
use sqlx::error::DatabaseError;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlDatabaseError, MySqlRow, MySqlSslMode};
use sqlx::{AssertSqlSafe, Execute, MySql, Row};

use crate::position::{Gtid, GtidSet};

use super::engine::fetch_first;
use super::session::hash;
use super::settings::{Tls, check_tls};
use super::version::Software;
use super::{
    Access, Activity, Address, ConnectionInfo, Depth, Driver, Engine, Fault, Instance, Judgement, Left,
    Observation, Options, Remains, ReportedRole, Rest, SessionId, Settings, VerifiedHost,
};
use crate::position::Position;

impl Driver for MySql {}

impl Engine for MySql {
    const TELLS_PROMOTION: bool = true;
    const NO_WRITES: &'static str = "`read_only` is on there";
    const BEGIN_READ_ONLY: Option<&'static str> = Some("START TRANSACTION READ ONLY");
    const URL_PARAMETERS: &'static [&'static str] = URL_PARAMETERS;

    type Memory = Memory;

    /// Does not use `access`: no MySQL option makes a connection read-only while connecting.
    fn options(settings: &Settings, _access: Access) -> Result<Options<Self>, String> {
        let options: MySqlConnectOptions = settings.url.parse_as::<Self>()?;
        let tls = match options.get_ssl_mode() {
            MySqlSslMode::Disabled | MySqlSslMode::Preferred => Tls::Optional,
            MySqlSslMode::Required | MySqlSslMode::VerifyCa | MySqlSslMode::VerifyIdentity => Tls::Required,
        };
        check_tls(&options, tls)?;
        Ok(match settings.host_of(options.get_host()) {
            Some(host) => options.host(&host),
            None => options,
        })
    }

    fn address(options: &Options<Self>) -> Address {
        match options.get_socket() {
            Some(socket) => Address { host: socket.display().to_string(), port: None },
            None => Address { host: options.get_host().to_owned(), port: Some(options.get_port()) },
        }
    }

    fn database(options: &Options<Self>) -> Option<&str> {
        options.get_database()
    }

    fn user(options: &Options<Self>) -> Option<&str> {
        Some(options.get_username())
    }

    fn verified_host(options: &Options<Self>) -> Option<VerifiedHost> {
        matches!(options.get_ssl_mode(), MySqlSslMode::VerifyIdentity)
            .then_some(VerifiedHost { asked_by: "ssl-mode=VERIFY_IDENTITY", without: "ssl-mode=VERIFY_CA" })
    }

    fn set_up(
        conn: &mut MySqlConnection,
        _access: Access,
        read_only: bool,
    ) -> BoxFuture<'_, Result<ConnectionInfo, sqlx::Error>> {
        Box::pin(async move {
            let row = match read_only {
                true => run_both(&mut *conn, "SET SESSION TRANSACTION READ ONLY", IDENTITY).await?,
                false => sqlx::raw_sql(IDENTITY).fetch_optional(&mut *conn).await?,
            };
            let row = row.ok_or(sqlx::Error::RowNotFound)?;
            let text = |column| row.try_get::<String, _>(column).unwrap_or_default();
            let software = if text(1) == "MariaDB" { Software::MariaDb } else { Software::MySql };
            software.accept(&text(0))?;
            // The application's hook, or the server's `init_connect`, may have switched it off. Then no write would be
            // committed, and each read would see what the first one saw.
            if !is_on(&text(10)) {
                sqlx::raw_sql("SET autocommit = 1").execute(&mut *conn).await?;
            }
            Ok(ConnectionInfo {
                instance: Some(Instance::of(&[text(2), text(3), text(4), text(5)].join(" "))),
                // Connection numbers only go up while a server runs, so no time is needed to tell sessions apart.
                session: text(6).parse().ok().map(|id| SessionId {
                    id,
                    began: 0,
                    role: Some(hash(name_of(&text(8)))),
                }),
                role: role_of(&text(9)),
                read_only: is_on(&text(7)),
            })
        })
    }

    fn observe<'a>(
        conn: &'a mut MySqlConnection,
        access: Access,
        memory: &'a mut Memory,
        depth: Depth,
    ) -> BoxFuture<'a, Result<Observation, sqlx::Error>> {
        Box::pin(async move {
            let mut logs = Logs::of(&mut *conn).await?;
            let (node, no_writes) = match logs.flavour {
                Flavour::MariaDb => (Node::of(&mut *conn, memory).await?, None),
                Flavour::MySql => (None, no_writes_in_group(&mut *conn, memory, depth).await?),
            };
            if no_writes.is_some() {
                logs.role = ReportedRole::Slave;
            }
            let (system, in_cluster) = match node {
                Some(node) => {
                    node.accept(access)?;
                    if access == Access::SlaveReads {
                        // It takes writes, and replays those of all others.
                        let (role, system) = (ReportedRole::Slave, node.system());
                        return Ok(Observation {
                            role,
                            system,
                            position: node.position,
                            ..Observation::default()
                        });
                    }
                    (node.system(), node.position)
                }
                None => (None, None),
            };
            let role = match (access, logs.flavour, logs.role) {
                // A MySQL does not tell an ordinary user whether it replicates.
                (Access::SlaveReads, Flavour::MariaDb, ReportedRole::Unknown) => {
                    match is_replicating(&mut *conn).await? {
                        true => ReportedRole::Slave,
                        // The server has written after what it has replayed.
                        false if logs.current != logs.replayed => ReportedRole::Master,
                        false => ReportedRole::Unknown,
                    }
                }
                (_, _, role) => role,
            };
            let position = logs.position(conn, access).await?;
            let contents = match (access, role) {
                (_, ReportedRole::Slave) => None,
                // A slave that takes writes has an unknown position in the master's log. What it contains is known.
                (Access::SlaveReads, _) => logs.contents(),
                (Access::Writes | Access::MasterReads, _) => position.as_ref().and(logs.contents()),
            };
            Ok(Observation {
                role,
                no_writes,
                system,
                position,
                contents,
                in_cluster,
                ..Observation::default()
            })
        })
    }

    fn replayed<'a>(
        conn: &'a mut MySqlConnection,
        known: Option<&'a Position>,
    ) -> BoxFuture<'a, Result<Option<Position>, sqlx::Error>> {
        Box::pin(async move {
            if let Some(Position::Seqno { .. }) = known {
                return Ok(Node::ask(conn).await?.position);
            }
            let logs = Logs::of(&mut *conn).await?;
            logs.position(conn, Access::SlaveReads).await
        })
    }

    /// The server looks at the numbers alone. So the caller must never ask for a position of another history.
    /// <https://mariadb.com/docs/server/reference/sql-functions/secondary-functions/miscellaneous-functions/master_gtid_wait>
    fn wait_for<'a>(
        conn: &'a mut MySqlConnection,
        position: &'a Position,
        patience: Duration,
    ) -> BoxFuture<'a, Result<bool, sqlx::Error>> {
        Box::pin(async move {
            let Some(wait) = wait_for(position, patience) else { return Ok(false) };
            sqlx::raw_sql(AssertSqlSafe(wait)).execute(conn).await?;
            Ok(true)
        })
    }

    /// An ordinary user sees its own connections alone. A user with the privilege `PROCESS` sees all of them. A list
    /// without connections of other users does not tell which of the two this user is.
    /// <https://dev.mysql.com/doc/refman/9.7/en/show-processlist.html>
    fn sessions<'a>(
        conn: &'a mut MySqlConnection,
        sessions: &'a [SessionId],
    ) -> BoxFuture<'a, Result<Vec<Activity>, sqlx::Error>> {
        Box::pin(async move {
            let rows = sqlx::raw_sql("SHOW PROCESSLIST").fetch_all(conn).await?;
            let id = |row: &MySqlRow| {
                let unsigned = row.try_get::<u64, _>("Id").ok().and_then(|id| id.try_into().ok());
                unsigned.or_else(|| row.try_get::<i64, _>("Id").ok())
            };
            let user = |row: &MySqlRow| row.try_get::<String, _>("User").ok();
            let asks = sessions.first();
            let own = asks.and_then(|own| rows.iter().find(|row| id(row) == Some(own.id))).and_then(user);
            let sees_others = rows.iter().any(|row| user(row) != own);
            let activity = |session: &SessionId| {
                let Some(row) = rows.iter().find(|row| id(row) == Some(session.id)) else {
                    let may_be_seen = sees_others || asks.is_some_and(|own| own.role == session.role);
                    return if may_be_seen { Activity::Unknown } else { Activity::Hidden };
                };
                let seconds = row.try_get::<i32, _>("Time").ok().and_then(|seconds| seconds.try_into().ok());
                match (row.try_get::<String, _>("Command").as_deref(), seconds) {
                    (Ok("Sleep"), Some(seconds)) => Activity::Idle(Duration::from_secs(seconds)),
                    _ => Activity::Busy,
                }
            };
            Ok(sessions.iter().map(activity).collect())
        })
    }

    fn executor(conn: &mut MySqlConnection) -> impl sqlx::Executor<'_, Database = Self> {
        conn
    }

    fn fetch_optional<'a, 'q: 'a>(
        conn: &'a mut MySqlConnection,
        query: impl Execute<'q, Self> + 'q,
        rest: Rest,
    ) -> impl Future<Output = Result<(Option<MySqlRow>, Left), sqlx::Error>> + Send {
        fetch_first::<Self>(conn, query, rest)
    }

    /// MySQL has no variable that tells whether a transaction is open. But it refuses this setting in an open
    /// transaction. The setting holds for the next transaction alone, which `ROLLBACK` ends.
    /// <https://dev.mysql.com/doc/refman/9.7/en/set-transaction.html#set-transaction-scope>
    fn settle(conn: &mut MySqlConnection) -> BoxFuture<'_, Result<Left, sqlx::Error>> {
        const SETTLE: &str =
            "/*!80000 SET TRANSACTION READ ONLY */ /*M! SELECT CAST(@@in_transaction AS CHAR) */";

        Box::pin(async move {
            let row = match run_both(conn, SETTLE, "ROLLBACK").await {
                Err(sqlx::Error::Database(error)) if has_number(&*error, IN_TRANSACTION) => {
                    return Ok(Left::Dirty);
                }
                row => row?,
            };
            let open = row.is_some_and(|row| row.try_get::<&str, _>(0).is_ok_and(|open| open == "1"));
            Ok(if open { Left::Dirty } else { Left::Clean })
        })
    }

    fn judge(error: &sqlx::Error) -> Judgement {
        match error.as_database_error().and_then(of_server) {
            Some((number, message)) => judge(number, message),
            None => Judgement::of_driver(error),
        }
    }
}

/// The parameters that sqlx reads: <https://docs.rs/sqlx/0.9/sqlx/mysql/struct.MySqlConnectOptions.html>
pub(super) const URL_PARAMETERS: &[&str] = &[
    "charset",
    "collation",
    "socket",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "sslca",
    "sslcert",
    "sslkey",
    "sslmode",
    "statement-cache-capacity",
    "time-zone",
    "timezone",
];

/// The settings by which a MySQL refuses the writes of ordinary users. A promotion or demotion sets `read_only`. A
/// reader of Aurora has `innodb_read_only`. A MariaDB may be without InnoDB.
/// <https://dev.mysql.com/doc/refman/9.7/en/server-system-variables.html#sysvar_read_only>
macro_rules! takes_no_writes {
    () => {
        "CONCAT(@@global.read_only, ' ', @@global.innodb_read_only)"
    };
}

/// Selects the version, the server's own identifiers, the session, and whether that session is read-only. MariaDB and
/// MySQL each have a comment that they alone execute, and a MySQL that is too old executes neither. The time since the
/// start is not selected: it changes when the server's clock is set. Not every release of MariaDB has a `server_uid`.
/// <https://mariadb.com/docs/server/reference/sql-statements/comment-syntax>
const IDENTITY: &str = concat!(
    "SELECT VERSION()
        /*!80000 , 'MySQL', @@hostname, CAST(@@port AS CHAR), @@server_uuid, '',
            CAST(CONNECTION_ID() AS CHAR), CAST(@@transaction_read_only AS CHAR), USER(), ",
    takes_no_writes!(),
    ", CAST(@@autocommit AS CHAR) */
        /*M! , 'MariaDB', @@hostname, CAST(@@port AS CHAR), (SELECT VARIABLE_VALUE
            FROM information_schema.GLOBAL_VARIABLES WHERE VARIABLE_NAME = 'SERVER_UID'),
            CAST(@@server_id AS CHAR), CAST(CONNECTION_ID() AS CHAR), CAST(@@tx_read_only AS CHAR), USER(),
            CAST(@@global.read_only AS CHAR), CAST(@@autocommit AS CHAR) */"
);

/// Runs two statements in one message, and returns the first row of both. MySQL Router refuses such messages with
/// `connection_sharing`. There, each statement takes a round trip.
async fn run_both(
    conn: &mut MySqlConnection,
    first: &'static str,
    second: &'static str,
) -> Result<Option<MySqlRow>, sqlx::Error> {
    let both = sqlx::raw_sql(AssertSqlSafe(format!("{first}; {second}"))).fetch_all(&mut *conn).await;
    let rows = match both {
        Err(sqlx::Error::Database(error)) if has_number(&*error, SEVERAL_STATEMENTS) => {
            let mut rows = sqlx::raw_sql(first).fetch_all(&mut *conn).await?;
            rows.extend(sqlx::raw_sql(second).fetch_all(conn).await?);
            rows
        }
        rows => rows?,
    };
    Ok(rows.into_iter().next())
}

/// Selects what was written, what was replayed, the later of the two, the software, whether all writes are logged, the
/// latest transaction of each server, and whether the server takes writes.
/// MariaDB and MySQL each have a comment that they alone execute.
/// <https://mariadb.com/docs/server/reference/sql-statements/comment-syntax>
const LOGS: &str = concat!(
    "SELECT /*!80000 @@global.gtid_executed, '', '', 'MySQL',
        IF(@@global.log_bin AND @@global.gtid_mode = 'ON', 'all', 'some'), '', ",
    takes_no_writes!(),
    " */ /*M! @@global.gtid_binlog_pos, @@global.gtid_slave_pos, @@global.gtid_current_pos, 'MariaDB',
        IF(@@global.log_bin, 'all', 'some'), @@global.gtid_binlog_state, CAST(@@global.read_only AS CHAR) */"
);

fn is_on(setting: &str) -> bool {
    !matches!(setting, "" | "0" | "OFF")
}

/// The role that the [settings](takes_no_writes) tell. A server without them may be a slave all the same.
fn role_of(settings: &str) -> ReportedRole {
    match settings.split(' ').any(is_on) {
        true => ReportedRole::Slave,
        false => ReportedRole::Unknown,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flavour {
    MariaDb,
    MySql,
}

impl Flavour {
    fn of(name: &str) -> Self {
        if name == "MariaDB" { Self::MariaDb } else { Self::MySql }
    }
}

/// What a server tells of its logs.
struct Logs {
    flavour: Flavour,
    written: String,
    replayed: String,
    /// The later of written and replayed.
    current: String,
    /// True if all writes are logged and have a GTID.
    complete: bool,
    /// MariaDB's latest transaction of each server in each domain.
    of_each_server: String,
    role: ReportedRole,
}

impl Logs {
    async fn of(conn: &mut MySqlConnection) -> Result<Self, sqlx::Error> {
        let row = sqlx::raw_sql(LOGS).fetch_one(conn).await?;
        let text = |column| row.try_get::<String, _>(column).unwrap_or_default();
        let flavour = Flavour::of(&text(3));
        let complete = text(4) == "all";
        let (written, replayed, current, of_each_server) = (text(0), text(1), text(2), text(5));
        let role = role_of(&text(6));
        Ok(Self { flavour, written, replayed, current, complete, of_each_server, role })
    }

    /// The position of this server. An empty log is a position as well, where it means that nothing was written. It is
    /// none at a master that does not log its writes or has data of another one, nor at a MariaDB that replicates no
    /// other server.
    async fn position(
        &self,
        conn: &mut MySqlConnection,
        access: Access,
    ) -> Result<Option<Position>, sqlx::Error> {
        let Self { flavour, written, replayed, current, complete, of_each_server: _, role: _ } = self;
        Ok(match (flavour, access) {
            (Flavour::MariaDb, Access::SlaveReads) if replayed.is_empty() => {
                is_replicating(conn).await?.then(|| Position::Gtids(Vec::new()))
            }
            (Flavour::MariaDb, Access::SlaveReads) => Position::parse_gtids(replayed),
            (Flavour::MariaDb, _) if written.is_empty() => {
                (*complete && current.is_empty()).then(|| Position::Gtids(Vec::new()))
            }
            (Flavour::MariaDb, _) => Position::parse_gtids(written),
            // A write without a GTID leaves the set as it was.
            (Flavour::MySql, Access::Writes | Access::MasterReads) if !complete => None,
            (Flavour::MySql, _) if written.is_empty() => {
                complete.then(|| Position::GtidSet(GtidSet::default()))
            }
            (Flavour::MySql, _) => Position::parse_gtid_set(written),
        })
    }

    /// The transactions that a MariaDB has logged, of each server. What it replayed before it began to log is not in
    /// there.
    fn contents(&self) -> Option<Position> {
        let Self { of_each_server, replayed, .. } = self;
        let all: Vec<_> =
            [of_each_server, replayed].into_iter().filter(|gtids| !gtids.is_empty()).cloned().collect();
        Position::parse_gtids(&all.join(","))
    }
}

/// True if a MariaDB replays the log of another server or waits for more of it. That includes the time while the other
/// server is gone and `Slave_running` is `OFF`.
/// <https://mariadb.com/docs/server/ha-and-performance/standard-replication/replication-and-binary-log-status-variables>
async fn is_replicating(conn: &mut MySqlConnection) -> Result<bool, sqlx::Error> {
    Ok(shown(conn, "SHOW GLOBAL STATUS LIKE 'Slaves_running'").await?.is_some_and(|value| value != "0"))
}

/// The value of a status or a setting, if the server has it.
async fn shown(conn: &mut MySqlConnection, sql: &'static str) -> Result<Option<String>, sqlx::Error> {
    let row = sqlx::raw_sql(sql).fetch_optional(conn).await?;
    row.map(|row| row.try_get(1)).transpose()
}

/// What is asked once for each connection of the monitor.
#[derive(Debug, Default)]
pub struct Memory {
    /// True for a node of a Galera cluster.
    is_galera: Option<bool>,
    /// True for a MySQL that tells this role the members of its group.
    tells_group: Option<bool>,
}

/// The reason why a MySQL takes no writes though it is not `read_only`: it has lost the majority of its group, so that
/// each commit waits without limit, or it is not in its group, which would never get the writes. To `read_only`, both
/// look well. The role needs a grant to see the members:
/// <https://dev.mysql.com/doc/refman/9.7/en/performance-schema-replication-group-members-table.html>
async fn no_writes_in_group(
    conn: &mut MySqlConnection,
    memory: &mut Memory,
    depth: Depth,
) -> Result<Option<&'static str>, sqlx::Error> {
    const MEMBERS: &str = "SELECT IF(MEMBER_ID = @@server_uuid, 'own', 'other'), MEMBER_STATE \
         FROM performance_schema.replication_group_members";

    if memory.tells_group.is_none() || depth == Depth::Full {
        let group = shown(&mut *conn, "SHOW GLOBAL VARIABLES LIKE 'group_replication_group_name'").await?;
        memory.tells_group = Some(group.is_some_and(|name| !name.is_empty()));
    }
    if memory.tells_group == Some(false) {
        return Ok(None);
    }
    match sqlx::raw_sql(MEMBERS).fetch_all(conn).await {
        Err(sqlx::Error::Database(error)) if has_number(&*error, TABLE_DENIED) => {
            memory.tells_group = Some(false);
            Ok(None)
        }
        members => {
            let members = members?;
            let members = members.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
            Ok(no_writes_among(&members.collect::<Result<Vec<_>, sqlx::Error>>()?))
        }
    }
}

/// Judges the states of a group's members, as the one that is `own` sees them. A server without `performance_schema`
/// sees none.
fn no_writes_among(members: &[(&str, &str)]) -> Option<&'static str> {
    let unreachable = members.iter().filter(|(_, state)| *state == "UNREACHABLE").count();
    if members.is_empty() {
        None
    } else if !members.contains(&("own", "ONLINE")) {
        Some("it is not an online member of its Group Replication group")
    } else if unreachable * 2 >= members.len() {
        Some("it has lost the majority of its Group Replication group, so that no write would end")
    } else {
        None
    }
}

/// What a node of a Galera cluster tells of itself, to any user and whatever its state:
/// <https://mariadb.com/docs/galera-cluster/reference/galera-cluster-status-variables>
struct Node {
    is_ready: bool,
    /// False for a node that sends another one a copy of its data, or that an operator took out: others do not wait
    /// until it has applied their writes.
    is_synced: bool,
    position: Option<Position>,
}

impl Node {
    /// `None` for a server that is in no cluster.
    async fn of(conn: &mut MySqlConnection, memory: &mut Memory) -> Result<Option<Self>, sqlx::Error> {
        if memory.is_galera.is_none() {
            let on = shown(&mut *conn, "SHOW GLOBAL VARIABLES LIKE 'wsrep_on'").await?;
            memory.is_galera = Some(on.is_some_and(|value| is_on(&value)));
        }
        if memory.is_galera == Some(false) {
            return Ok(None);
        }
        Self::ask(conn).await.map(Some)
    }

    async fn ask(conn: &mut MySqlConnection) -> Result<Self, sqlx::Error> {
        const STATUS: &str = "SHOW GLOBAL STATUS WHERE Variable_name IN ('wsrep_ready', 'wsrep_local_state', \
             'wsrep_cluster_state_uuid', 'wsrep_last_committed')";
        const SYNCED: &str = "4";

        let rows = sqlx::raw_sql(STATUS).fetch_all(conn).await?;
        let status = |name: &str| {
            let named = |row: &&MySqlRow| row.try_get::<&str, _>(0).is_ok_and(|is| is == name);
            rows.iter().find(named).and_then(|row| row.try_get::<&str, _>(1).ok()).unwrap_or_default()
        };
        let [cluster, seqno] = ["wsrep_cluster_state_uuid", "wsrep_last_committed"].map(status);
        Ok(Self {
            is_ready: is_on(status("wsrep_ready")),
            is_synced: status("wsrep_local_state") == SYNCED,
            position: Position::parse_seqno(&format!("{cluster}:{seqno}")),
        })
    }

    /// The cluster.
    fn system(&self) -> Option<u64> {
        match self.position {
            Some(Position::Seqno { cluster, .. }) => Some(hash(&cluster.to_string()).get()),
            _ => None,
        }
    }

    /// Refuses a node that is cut off from its cluster, as it refuses all statements, and for reads at a slave one that
    /// may be behind without limit.
    fn accept(&self, access: Access) -> Result<(), sqlx::Error> {
        let message = match (self.is_ready, self.is_synced, access) {
            (false, ..) => "the node is cut off from its Galera cluster (`wsrep_ready` is OFF)",
            (true, false, Access::SlaveReads) => {
                "the node is a donor or desynchronised: its Galera cluster does not wait for it (`wsrep_local_state` \
                 is not 4)"
            }
            (true, ..) => return Ok(()),
        };
        Err(io::Error::new(io::ErrorKind::NotConnected, message).into())
    }
}

/// The statement that waits for a position, with text made of numbers alone.
fn wait_for(position: &Position, patience: Duration) -> Option<String> {
    let limit = limit(patience);
    match position {
        Position::Gtids(gtids) => {
            let gtids: Vec<_> = gtids
                .iter()
                .map(|Gtid { domain, server, sequence }| format!("{domain}-{server}-{sequence}"))
                .collect();
            Some(format!("SELECT MASTER_GTID_WAIT('{}', {limit})", gtids.join(",")))
        }
        Position::GtidSet(set) => Some(format!("SELECT WAIT_FOR_EXECUTED_GTID_SET('{set}', {limit})")),
        // A node applies what others write within milliseconds, or waits for something else.
        Position::Lsn { .. } | Position::Seqno { .. } | Position::Time { .. } => None,
    }
}

/// The account's name without its host: who may see a session depends on the name alone.
fn name_of(user: &str) -> &str {
    user.rsplit_once('@').map_or(user, |(name, _)| name)
}

/// The patience in seconds, in whole milliseconds. Rounded up: MySQL's function waits without limit for 0.000.
/// <https://dev.mysql.com/doc/refman/9.7/en/gtid-functions.html>
fn limit(patience: Duration) -> String {
    let millis = patience.as_nanos().div_ceil(1_000_000).max(1);
    format!("{}.{:03}", millis / 1000, millis % 1000)
}

/// ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION
const READ_ONLY_TRANSACTION: u16 = 1792;
/// ER_READ_ONLY_MODE, of MySQL.
const READ_ONLY_MODE: u16 = 1836;
/// ER_OPTION_PREVENTS_STATEMENT
const REFUSED_BY_OPTION: u16 = 1290;

/// Of MySQL Router: "Multi-Statements are forbidden if connection-sharing is enabled."
const SEVERAL_STATEMENTS: u16 = 4501;

/// ER_CANT_CHANGE_TX_CHARACTERISTICS
const IN_TRANSACTION: u16 = 1568;

/// The number and the message of a server's error.
fn of_server(error: &dyn DatabaseError) -> Option<(u16, &str)> {
    let error = error.try_downcast_ref::<MySqlDatabaseError>()?;
    Some((error.number(), error.message()))
}

fn has_number(error: &dyn DatabaseError, wanted: u16) -> bool {
    of_server(error).is_some_and(|(number, _)| number == wanted)
}

fn judge(number: u16, message: &str) -> Judgement {
    let remains = match number {
        // A session that is killed during a commit may have committed.
        CONNECTION_KILLED => Remains::BrokenOff,
        // So may a node that lost its cluster during a commit.
        _ if is_cut_off_during_commit(number, message) => Remains::BrokenOff,
        _ if ends_connections(number) => Remains::Ended,
        _ => Remains::Usable,
    };
    let fault = match number {
        // https://mariadb.com/docs/server/reference/error-codes/mariadb-error-codes-1700-to-1799/e1792
        READ_ONLY_TRANSACTION => Fault::ReadOnly,
        _ if refuses_writes(number, message) => Fault::NoWrites,
        _ if is_full(number, message) => Fault::Full,
        _ if is_outage(number, message) => Fault::Node,
        _ => Fault::Query,
    };
    Judgement { fault, remains }
}

/// True if there are too many connections: of all users, or of this one.
fn is_full(number: u16, message: &str) -> bool {
    match number {
        1040 | 1203 => true,
        // The number is the same for each of an account's limits.
        1226 => message.contains("max_user_connections"),
        _ => false,
    }
}

/// True for a write that was refused because the whole server is read-only, and not this session alone.
fn refuses_writes(number: u16, message: &str) -> bool {
    match number {
        READ_ONLY_MODE => true,
        // The number is the same for many options.
        REFUSED_BY_OPTION => message.contains("read-only") || message.contains("read_only"),
        _ => false,
    }
}

/// ER_TABLEACCESS_DENIED_ERROR
const TABLE_DENIED: u16 = 1142;

/// ER_RUN_HOOK_ERROR: a MySQL has left its group, or waited too long for a majority. It has rolled the transaction back.
const REFUSED_BY_GROUP: u16 = 3100;

pub(super) fn takes_no_writes(error: &dyn DatabaseError) -> bool {
    of_server(error).is_some_and(|(number, message)| refuses_writes(number, message))
}

/// <https://mariadb.com/docs/server/reference/error-codes/mariadb-error-codes-1900-to-1999/e1927>
const CONNECTION_KILLED: u16 = 1927;

/// True if the server ends the connection: at shutdown, by `KILL`, in offline mode, after network errors that it saw
/// first.
fn ends_connections(number: u16) -> bool {
    matches!(number, 1053 | CONNECTION_KILLED | 3032 | 4031 | 1158..=1161)
}

/// True for "WSREP has not yet prepared node for application use": a node that has lost the others of its Galera
/// cluster, or has yet to join them. Connections stay open and serve once the node has joined.
fn is_cut_off(number: u16, message: &str) -> bool {
    /// ER_UNKNOWN_COM_ERROR, which has other causes as well.
    const UNKNOWN_COMMAND: u16 = 1047;

    number == UNKNOWN_COMMAND && message.contains("WSREP")
}

/// True for "Got error 6 … during COMMIT" of a node that lost the others of its Galera cluster, or its provider, during a
/// commit. The number is that of the provider's status, for which newer servers have words as well. A transaction that
/// is too large has status 5. <https://github.com/codership/wsrep-lib/blob/master/include/wsrep/provider.hpp>
fn is_cut_off_during_commit(number: u16, message: &str) -> bool {
    /// ER_ERROR_DURING_COMMIT
    const ERROR_DURING_COMMIT: u16 = 1180;
    const SIGNS: [&str; 6] = [
        "error 6 ",
        "error 7 ",
        "error 8 ",
        "Not connected to Primary",
        "Provider in bad state",
        "Fatal error",
    ];

    number == ERROR_DURING_COMMIT && SIGNS.iter().any(|sign| message.contains(sign))
}

fn is_outage(number: u16, message: &str) -> bool {
    number == REFUSED_BY_GROUP
        || ends_connections(number)
        || is_cut_off(number, message)
        || is_cut_off_during_commit(number, message)
}

/// True if the server refuses the login: access denied (to the server, to the database, from this host), no such
/// database, an account that is locked or whose password has expired.
/// <https://mariadb.com/docs/server/reference/error-codes>
pub(super) fn is_login_refused(error: &dyn DatabaseError) -> bool {
    let refused = [1044, 1045, 1049, 1130, 1698, 1820, 1862, 3118, 3955, 4151];
    of_server(error).is_some_and(|(number, _)| refused.contains(&number))
}

pub(super) fn is_unavailable(error: &dyn DatabaseError) -> bool {
    of_server(error).is_some_and(|(number, message)| is_full(number, message) || is_outage(number, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_of_itself_is_told_from_what_it_says_of_a_statement() {
        use Fault::*;
        use Remains::*;

        for (number, message, fault, remains) in [
            (1146, "Table 'blog.books' doesn't exist", Query, Usable),
            (1792, "Cannot execute statement in a READ ONLY transaction", ReadOnly, Usable),
            (1836, "Running in read-only mode", NoWrites, Usable),
            (1290, "The MySQL server is running with the --super-read-only option", NoWrites, Usable),
            (1290, "The MySQL server is running with the --secure-file-priv option", Query, Usable),
            (1040, "Too many connections", Full, Usable),
            (
                1226,
                "User 'app' has exceeded the 'max_user_connections' resource (current value: 5)",
                Full,
                Usable,
            ),
            (1226, "User 'app' has exceeded the 'max_questions' resource (current value: 5)", Query, Usable),
            (1053, "Server shutdown in progress", Node, Ended),
            (3032, "The server is currently in offline mode", Node, Ended),
            (1927, "Connection was killed", Node, BrokenOff),
            (1047, "WSREP has not yet prepared node for application use", Node, Usable),
            (1047, "Unknown command", Query, Usable),
            // Of MariaDB before and since it names the status, and of Percona XtraDB Cluster.
            (1180, "Got error 6 \"No such device or address\" during COMMIT", Node, BrokenOff),
            (
                1180,
                "Error while appending streaming replication fragment(provider status: Not connected to Primary \
                 Component)",
                Node,
                BrokenOff,
            ),
            (1180, "Got error 6 - 'Not connected to Primary Component' during COMMIT", Node, BrokenOff),
            // The transaction is too large.
            (1180, "Got error 5 \"Input/output error\" during COMMIT", Query, Usable),
            (1180, "Got error 5 - 'Transaction size exceed set threshold' during COMMIT", Query, Usable),
        ] {
            assert_eq!(judge(number, message), Judgement { fault, remains }, "{number} {message}");
        }
    }

    #[test]
    fn what_is_waited_for_is_what_was_parsed() {
        let patience = Duration::from_millis(50);
        let gtids = Position::parse_gtids("0-10-8,1-10-3").unwrap();
        assert_eq!(wait_for(&gtids, patience).unwrap(), "SELECT MASTER_GTID_WAIT('0-10-8,1-10-3', 0.050)");

        let set = Position::parse_gtid_set("3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5:7").unwrap();
        assert_eq!(
            wait_for(&set, patience).unwrap(),
            "SELECT WAIT_FOR_EXECUTED_GTID_SET('3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5:7-7', 0.050)",
        );
    }

    #[test]
    fn a_group_takes_writes_where_a_member_is_online_with_a_majority() {
        let group = |own, others: &[&'static str]| {
            let others = others.iter().map(|state| ("other", *state));
            no_writes_among(&std::iter::once(("own", own)).chain(others).collect::<Vec<_>>())
        };
        assert_eq!(no_writes_among(&[]), None);
        for others in [&[][..], &["ONLINE"], &["ONLINE", "UNREACHABLE"], &["RECOVERING", "ONLINE"]] {
            assert_eq!(group("ONLINE", others), None, "{others:?}");
        }
        for others in
            [&["UNREACHABLE"][..], &["UNREACHABLE", "UNREACHABLE"], &["ONLINE", "UNREACHABLE", "UNREACHABLE"]]
        {
            assert!(group("ONLINE", others).unwrap().contains("majority"), "{others:?}");
        }
        for own in ["OFFLINE", "ERROR", "RECOVERING"] {
            assert!(group(own, &[]).unwrap().contains("not an online member"), "{own}");
        }
        assert!(no_writes_among(&[("other", "OFFLINE")]).unwrap().contains("not an online member"));
    }

    #[test]
    fn no_wait_is_so_short_that_it_has_no_limit() {
        let gtids = Position::parse_gtids("0-10-8").unwrap();
        for (patience, limit) in [
            (Duration::ZERO, "0.001"),
            (Duration::from_nanos(1), "0.001"),
            (Duration::from_micros(499), "0.001"),
            (Duration::from_micros(1_001), "0.002"),
            (Duration::from_millis(50), "0.050"),
            (Duration::from_millis(12_345), "12.345"),
        ] {
            let wait = wait_for(&gtids, patience).unwrap();
            assert!(wait.ends_with(&format!(", {limit})")), "{patience:?}: {wait}");
        }
    }
}
