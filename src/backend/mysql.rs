use std::time::Duration;

use rocket::futures::future::BoxFuture;
use sqlx::error::DatabaseError;
use sqlx::mysql::{MySqlConnection, MySqlDatabaseError};
use sqlx::{AssertSqlSafe, MySql, Row};

use crate::position::{Gtid, Transactions};

use super::{
    Access, Address, Driver, Fault, Observation, Options, Position, Settings, Standing, connection_fault,
    poll,
};

impl Driver for MySql {
    /// Nothing that makes a connection read-only can be said while connecting.
    fn options(settings: &Settings, _access: Access) -> Result<Options<Self>, String> {
        settings.url.parse_as::<Self>()
    }

    fn address(options: &Options<Self>) -> Address {
        match options.get_socket() {
            Some(socket) => Address { host: socket.display().to_string(), port: None },
            None => Address { host: options.get_host().to_owned(), port: Some(options.get_port()) },
        }
    }

    fn prepare_reader(conn: &mut MySqlConnection) -> BoxFuture<'_, Result<(), sqlx::Error>> {
        Box::pin(async move {
            sqlx::raw_sql("SET SESSION TRANSACTION READ ONLY").execute(conn).await?;
            Ok(())
        })
    }

    /// MariaDB has one of the names, MySQL 8 the other.
    fn is_read_only(conn: &mut MySqlConnection) -> BoxFuture<'_, Result<bool, sqlx::Error>> {
        Box::pin(async move {
            let variables = "SHOW SESSION VARIABLES \
                             WHERE Variable_name IN ('tx_read_only', 'transaction_read_only')";
            let rows = sqlx::raw_sql(variables).fetch_all(conn).await?;
            Ok(rows.iter().any(|row| row.try_get::<String, _>(1).is_ok_and(|value| value == "ON")))
        })
    }

    fn observe(
        conn: &mut MySqlConnection,
        access: Access,
    ) -> BoxFuture<'_, Result<Observation, sqlx::Error>> {
        Box::pin(async move {
            let logs = sqlx::raw_sql(LOGS).fetch_one(&mut *conn).await?;
            let text = |column| logs.try_get::<String, _>(column).unwrap_or_default();
            let (written, replayed, current) = (text(0), text(1), text(2));
            let position = match (Flavour::of(&text(3)), access) {
                (Flavour::MariaDb, Access::ReadSlave) => Position::parse_gtids(&replayed),
                (Flavour::MariaDb, _) => Position::parse_gtids(&written),
                (Flavour::MySql, _) => Position::parse_gtid_set(&written),
            };
            // A slave that has written after what it has replayed, and replays no more.
            let promoted =
                access == Access::ReadSlave && current != replayed && !is_replicating(conn).await?;
            let standing = if promoted { Standing::Master } else { Standing::Unknown };
            Ok(Observation { standing, system: None, position })
        })
    }

    /// The server itself waits. It looks at the numbers alone, so what is another history is not
    /// asked of it. <https://mariadb.com/docs/server/reference/sql-functions/secondary-functions/miscellaneous-functions/master_gtid_wait>
    fn catch_up<'a>(
        conn: &'a mut MySqlConnection,
        position: &'a Position,
        patience: Duration,
    ) -> BoxFuture<'a, Result<Option<Position>, sqlx::Error>> {
        Box::pin(async move {
            let replayed = poll::<Self>(conn, position, Duration::ZERO).await?;
            let worthwhile =
                |replayed: &Position| replayed.shares_history(position) && !replayed.reaches(position);
            let Some(wait) = wait_for(position, patience) else { return Ok(replayed) };
            if !replayed.as_ref().is_some_and(worthwhile) || patience.is_zero() {
                return Ok(replayed);
            }
            sqlx::raw_sql(AssertSqlSafe(wait)).execute(&mut *conn).await?;
            poll::<Self>(conn, position, Duration::ZERO).await
        })
    }

    fn fault(error: &sqlx::Error) -> Fault {
        if let Some(fault) = connection_fault(error) {
            return fault;
        }
        let Some(error) = error.as_database_error().and_then(|error| error.try_downcast_ref()) else {
            return Fault::Query;
        };
        match (MySqlDatabaseError::number(error), error.message()) {
            // https://mariadb.com/docs/server/reference/error-codes/mariadb-error-codes-1700-to-1799/e1792
            (READ_ONLY_TRANSACTION | READ_ONLY_MODE, _) => Fault::ReadOnly,
            // This number is that of many an option.
            (REFUSED_BY_OPTION, message)
                if message.contains("read-only") || message.contains("read_only") =>
            {
                Fault::ReadOnly
            }
            (number, _) if is_full(number) => Fault::Full,
            (number, _) if ends_connections(number) => Fault::Node,
            _ => Fault::Query,
        }
    }
}

/// What was written, what replayed, the later of the two, and by which software: each has a comment that
/// it alone reads. <https://mariadb.com/docs/server/reference/sql-statements/comment-syntax>
const LOGS: &str = "SELECT
    /*!80000 @@global.gtid_executed, '', '', 'MySQL' */
    /*M! @@global.gtid_binlog_pos, @@global.gtid_slave_pos, @@global.gtid_current_pos, 'MariaDB' */";

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

async fn is_replicating(conn: &mut MySqlConnection) -> Result<bool, sqlx::Error> {
    let status = sqlx::raw_sql("SHOW GLOBAL STATUS LIKE 'Slave_running'").fetch_optional(conn).await?;
    Ok(status.is_some_and(|row| row.try_get::<String, _>(1).is_ok_and(|value| value == "ON")))
}

/// The statement that waits for a position, with text made of numbers alone.
fn wait_for(position: &Position, patience: Duration) -> Option<String> {
    let seconds = patience.as_secs_f64();
    match position {
        Position::Gtids(gtids) => {
            let gtids: Vec<_> = gtids
                .iter()
                .map(|Gtid { domain, server, sequence }| format!("{domain}-{server}-{sequence}"))
                .collect();
            Some(format!("SELECT MASTER_GTID_WAIT('{}', {seconds:.3})", gtids.join(",")))
        }
        Position::GtidSet(set) => {
            let uuid = |source: u128| {
                let hex = format!("{source:032x}");
                [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
            };
            let set: Vec<_> = set
                .iter()
                .map(|Transactions { source, first, last }| format!("{}:{first}-{last}", uuid(*source)))
                .collect();
            Some(format!("SELECT WAIT_FOR_EXECUTED_GTID_SET('{}', {seconds:.3})", set.join(",")))
        }
        Position::Lsn { .. } | Position::Time(_) => None,
    }
}

/// ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION
const READ_ONLY_TRANSACTION: u16 = 1792;
/// ER_READ_ONLY_MODE, of MySQL.
const READ_ONLY_MODE: u16 = 1836;
/// ER_OPTION_PREVENTS_STATEMENT
const REFUSED_BY_OPTION: u16 = 1290;

/// Too many connections: of all users, or of this one.
fn is_full(number: u16) -> bool {
    matches!(number, 1040 | 1203)
}

/// Shut down; killed; network errors that the server saw first.
fn ends_connections(number: u16) -> bool {
    matches!(number, 1053 | 1927 | 1158..=1161)
}

pub(super) fn is_unavailable(error: &dyn DatabaseError) -> bool {
    error
        .try_downcast_ref::<MySqlDatabaseError>()
        .is_some_and(|error| is_full(error.number()) || ends_connections(error.number()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_is_what_was_parsed() {
        let patience = Duration::from_millis(50);
        let gtids = Position::parse_gtids("0-10-8,1-10-3").unwrap();
        assert_eq!(wait_for(&gtids, patience).unwrap(), "SELECT MASTER_GTID_WAIT('0-10-8,1-10-3', 0.050)");

        let set = Position::parse_gtid_set("3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5:7").unwrap();
        assert_eq!(
            wait_for(&set, patience).unwrap(),
            "SELECT WAIT_FOR_EXECUTED_GTID_SET('3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5,\
             3e11fa47-71ca-11e1-9e33-c80aa9429562:7-7', 0.050)",
        );
    }
}
