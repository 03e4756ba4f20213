use rocket::futures::future::BoxFuture;
use sqlx::error::DatabaseError;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgDatabaseError, PgRow, PgSeverity};
use sqlx::{Postgres, Row};

use super::{
    Access, Address, Driver, Fault, Observation, Options, Position, Settings, Standing, connection_fault,
};

impl Driver for Postgres {
    const TELLS_TIMELINE: bool = true;

    fn options(settings: &Settings, access: Access) -> Result<Options<Self>, String> {
        let options: PgConnectOptions = settings.url.parse_as::<Self>()?;
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

    fn observe(conn: &mut PgConnection, _access: Access) -> BoxFuture<'_, Result<Observation, sqlx::Error>> {
        Box::pin(async move {
            match sqlx::raw_sql(WHOLE).fetch_one(&mut *conn).await {
                Ok(row) => Ok(observation(&row)),
                // A reader without a log of its own refuses to speak of it.
                Err(error @ sqlx::Error::Database(_)) if Self::fault(&error) == Fault::Query => {
                    Ok(observation(&sqlx::raw_sql(ROLE).fetch_one(conn).await?))
                }
                Err(error) => Err(error),
            }
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

/// All that an ordinary role can see of a server's place in its replication. Of those that name a
/// standby's timeline, the control file is late, and the receiver is visible with `pg_read_all_stats`:
/// <https://www.postgresql.org/docs/current/predefined-roles.html>
const WHOLE: &str = "
    SELECT in_recovery, system_identifier::text, lsn::text,
        CASE WHEN in_recovery THEN (SELECT greatest(
            (SELECT timeline_id FROM pg_control_checkpoint()),
            (SELECT min_recovery_end_timeline FROM pg_control_recovery()),
            (SELECT max(received_tli) FROM pg_stat_wal_receiver)))::text
        ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int::text END,
        inserted, current_setting('wal_block_size'),
        pg_size_bytes(current_setting('wal_segment_size'))::text
    FROM pg_control_system(),
        (SELECT pg_is_in_recovery() AS in_recovery, current_setting('synchronous_commit') = 'off'
            AS inserted) AS role,
        LATERAL (SELECT CASE
            WHEN in_recovery THEN pg_last_wal_replay_lsn()
            WHEN inserted THEN pg_current_wal_insert_lsn()
            ELSE pg_current_wal_flush_lsn() END - '0/0' AS lsn) AS log";

const ROLE: &str = "SELECT pg_is_in_recovery()";

fn observation(row: &PgRow) -> Observation {
    // By the simple protocol, everything is text.
    let number = |column| row.try_get::<&str, _>(column).ok()?.parse::<u64>().ok();
    let flag = |column| row.try_get::<bool, _>(column).ok();
    let standing = match flag(0) {
        Some(true) => Standing::Slave,
        Some(false) => Standing::Master,
        None => Standing::Unknown,
    };
    let position = || {
        let (lsn, timeline) = (number(2)?, u32::try_from(number(3)?).ok()?);
        let lsn = match (standing, flag(4)?) {
            (Standing::Master, true) => end_of_record(lsn, number(5)?, number(6)?),
            _ => lsn,
        };
        Some(Position::Lsn { timeline, lsn })
    };
    Observation { standing, system: number(1), position: position() }
}

/// Where the latest record ends. If that is the end of a page, then the place where the next one will be
/// inserted is behind the header of the next page, and nobody replays up to there before it is.
/// <https://github.com/postgres/postgres/blob/REL_15_STABLE/src/include/access/xlog_internal.h>
fn end_of_record(insert: u64, block: u64, segment: u64) -> u64 {
    const SHORT_HEADER: u64 = 24;
    const LONG_HEADER: u64 = 40;

    let header = if insert % segment < block { LONG_HEADER } else { SHORT_HEADER };
    if insert % block == header { insert - header } else { insert }
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

#[cfg(test)]
mod tests {
    use super::end_of_record;

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
}
