mod follower;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rocket::futures::future::BoxFuture;
use sqlx::Sqlite;
use sqlx::error::DatabaseError;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteError, SqliteJournalMode};

use super::{
    Access, Address, Driver, Fault, Follower, Millis, Observation, Options, Position, Settings, Standing,
    connection_fault,
};

/// SAFETY: an extension can do whatever its author likes. The name comes from the configuration, whose
/// author chooses the program that runs as well, and means it to be loaded.
#[allow(unsafe_code)]
fn load_extension(options: SqliteConnectOptions, extension: &str) -> SqliteConnectOptions {
    unsafe { options.extension(extension.to_owned()) }
}

impl Driver for Sqlite {
    const ONE_WRITER: bool = true;
    const CAN_FOLLOW: bool = true;

    fn options(settings: &Settings, access: Access) -> Result<Options<Self>, String> {
        if settings.url.mentions_memory() {
            return Err("an in-memory database cannot be shared between pools: name a file".into());
        }

        let mut options: SqliteConnectOptions =
            settings.url.parse_as::<Self>()?.busy_timeout(settings.connect_timeout);
        for extension in &settings.extensions {
            options = load_extension(options, extension);
        }

        Ok(match access {
            // Only the writer sets the journal mode: it needs the lock that readers share. WAL, so
            // that neither readers nor the copies of a follower hold it up.
            Access::ReadWrite => options.create_if_missing(true).journal_mode(SqliteJournalMode::Wal),
            // `read_only` would refuse a file that nobody has written to yet.
            Access::ReadMaster if settings.enforce_read_only => {
                options.create_if_missing(true).pragma("query_only", "on")
            }
            Access::ReadMaster => options.create_if_missing(true),
            Access::ReadSlave => options.read_only(true).pragma("query_only", "on"),
        })
    }

    fn address(options: &Options<Self>) -> Address {
        Address { host: whole_path(options.get_filename()).display().to_string(), port: None }
    }

    fn prepare_reader(_conn: &mut SqliteConnection) -> BoxFuture<'_, Result<(), sqlx::Error>> {
        Box::pin(async { Ok(()) })
    }

    fn is_read_only(conn: &mut SqliteConnection) -> BoxFuture<'_, Result<bool, sqlx::Error>> {
        Box::pin(async move { sqlx::query_scalar("PRAGMA query_only").fetch_one(conn).await })
    }

    /// What was committed before this millisecond is over is before the next one. How fresh a copy is,
    /// its follower knows.
    fn observe(
        conn: &mut SqliteConnection,
        access: Access,
    ) -> BoxFuture<'_, Result<Observation, sqlx::Error>> {
        Box::pin(async move {
            let Millis(now) = Millis::now();
            sqlx::raw_sql("SELECT 1 FROM sqlite_master LIMIT 1").execute(conn).await?;
            let position = match access {
                Access::ReadSlave => None,
                Access::ReadMaster | Access::ReadWrite => Some(Position::Time(now + 1)),
            };
            Ok(Observation { standing: Standing::Unknown, system: None, position })
        })
    }

    fn fault(error: &sqlx::Error) -> Fault {
        if let Some(fault) = connection_fault(error) {
            return fault;
        }
        let code = error.as_database_error().and_then(code).unwrap_or_default();
        match (code, code & 0xff) {
            (READONLY, _) => Fault::ReadOnly,
            // The codes that extend READONLY (264, 1544, …) are faults of the file, as are IOERR,
            // CORRUPT, CANTOPEN, NOTADB and theirs.
            (_, READONLY | 10 | 11 | 14 | 26) => Fault::Node,
            _ => Fault::Query,
        }
    }

    fn follow(
        name: &str,
        master: &Options<Self>,
        slave: &Options<Self>,
        every: Duration,
    ) -> BoxFuture<'static, Follower> {
        follower::start(name, master.get_filename(), slave.get_filename(), every)
    }
}

/// One spelling for each file, also for one that does not exist yet.
fn whole_path(file: &Path) -> PathBuf {
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let parent = file.parent().and_then(|parent| parent.canonicalize().ok());
    let file = match (parent, file.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => file,
    };
    file.canonicalize().unwrap_or(file)
}

/// A statement that wanted to write, and nothing else.
const READONLY: u32 = 8;

/// <https://www.sqlite.org/rescode.html>: the low byte is that of the primary code.
fn code(error: &dyn DatabaseError) -> Option<u32> {
    error.code()?.parse().ok()
}

/// Somebody else holds a lock: BUSY, LOCKED and their extended codes.
pub(super) fn is_unavailable(error: &dyn DatabaseError) -> bool {
    error.try_downcast_ref::<SqliteError>().is_some()
        && code(error).is_some_and(|code| matches!(code & 0xff, 5 | 6))
}
