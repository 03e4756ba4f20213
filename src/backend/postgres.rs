use rocket::futures::future::BoxFuture;
use sqlx::Postgres;
use sqlx::error::DatabaseError;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgDatabaseError, PgSeverity};

use super::{Access, Address, Driver, Fault, Options, Settings, connection_fault};

impl Driver for Postgres {
    fn options(settings: &Settings, access: Access) -> Result<Options<Self>, String> {
        let options: PgConnectOptions = settings.url.parse_as::<Self>()?;
        let options = settings.log_level.apply(options);
        Ok(match access {
            Access::ReadMaster | Access::ReadSlave if settings.enforce_read_only => {
                options.options([("default_transaction_read_only", "on")])
            }
            _ => options,
        })
    }

    fn address(options: &Options<Self>) -> Address {
        match options.get_socket() {
            Some(socket) => Address { host: socket.display().to_string(), port: None },
            None => Address { host: options.get_host().to_owned(), port: Some(options.get_port()) },
        }
    }

    /// Lets the server notice within half a second that nobody waits for a query any more, so that
    /// reads given up do not pile up there. Servers on systems that cannot tell refuse the setting;
    /// they go on without it.
    fn prepare_reader(conn: &mut PgConnection) -> BoxFuture<'_, Result<(), sqlx::Error>> {
        Box::pin(async move {
            let set = "SET client_connection_check_interval = '500ms'";
            match sqlx::raw_sql(set).execute(conn).await {
                Err(sqlx::Error::Database(_)) | Ok(_) => Ok(()),
                Err(error) => Err(error),
            }
        })
    }

    fn is_read_only(conn: &mut PgConnection) -> BoxFuture<'_, Result<bool, sqlx::Error>> {
        Box::pin(async move {
            let row = sqlx::raw_sql("SHOW transaction_read_only").fetch_one(conn).await?;
            Ok(sqlx::Row::try_get::<&str, _>(&row, 0)? == "on")
        })
    }

    fn fault(error: &sqlx::Error) -> Fault {
        if let Some(fault) = connection_fault(error) {
            return fault;
        }
        let Some(error) = error.as_database_error().and_then(|error| error.try_downcast_ref()) else {
            return Fault::Query;
        };
        // https://www.postgresql.org/docs/current/errcodes-appendix.html
        match PgDatabaseError::code(error) {
            "25006" => Fault::ReadOnly,
            TOO_MANY_CONNECTIONS => Fault::Full,
            _ if ends_connections(error) => Fault::Node,
            // On a hot standby this is a conflict with recovery, not a serialization failure:
            // https://www.postgresql.org/docs/current/hot-standby.html#HOT-STANDBY-CONFLICT
            "40001" => Fault::Conflict,
            _ => Fault::Query,
        }
    }
}

const TOO_MANY_CONNECTIONS: &str = "53300";

pub(super) fn is_unavailable(error: &dyn DatabaseError) -> bool {
    error
        .try_downcast_ref::<PgDatabaseError>()
        .is_some_and(|error| error.code() == TOO_MANY_CONNECTIONS || ends_connections(error))
}

/// Shut down, crashed, cannot connect now; connection exceptions, if they are not about a statement
/// (as 08P01 is that of one whose arguments do not fit).
fn ends_connections(error: &PgDatabaseError) -> bool {
    let fatal = matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic);
    matches!(error.code(), "57P01" | "57P02" | "57P03") || fatal && error.code().starts_with("08")
}
