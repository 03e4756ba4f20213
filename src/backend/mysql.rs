use rocket::futures::future::BoxFuture;
use sqlx::error::DatabaseError;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlDatabaseError};
use sqlx::{MySql, Row};

use super::{Access, Address, Driver, Fault, Options, Settings, connection_fault};

impl Driver for MySql {
    /// Nothing that makes a connection read-only can be said while connecting.
    fn options(settings: &Settings, _access: Access) -> Result<Options<Self>, String> {
        let options: MySqlConnectOptions = settings.url.parse_as::<Self>()?;
        Ok(settings.log_level.apply(options))
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
