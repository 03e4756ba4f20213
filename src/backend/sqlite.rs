mod clock;
mod files;
mod follower;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rocket::futures::TryFutureExt;
use rocket::futures::future::{BoxFuture, Either};
use sqlx::error::DatabaseError;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteError, SqliteJournalMode, SqliteRow};
use sqlx::{Execute, Executor, Sqlite};

use super::engine::fetch_first;
use super::{
    Access, Address, ConnectionInfo, Depth, Driver, Engine, Fault, Follower, Judgement, Left, Observation,
    Opens, Options, Remains, ReportedRole, Rest, Settings, statement::only_reads,
};
use crate::position::Position;

/// SAFETY: an extension can do whatever its author likes. The name comes from the configuration, whose
/// author chooses the program that runs as well, and means it to be loaded.
#[allow(unsafe_code)]
fn load_extension(options: SqliteConnectOptions, extension: &str) -> SqliteConnectOptions {
    unsafe { options.extension(extension.to_owned()) }
}

impl Driver for Sqlite {}

impl Engine for Sqlite {
    const ONE_WRITER: bool = true;
    const CAN_FOLLOW: bool = true;
    const HAS_HOSTS: bool = false;

    type Memory = ();

    fn options(settings: &Settings, access: Access) -> Result<Options<Self>, String> {
        if settings.url.mentions_memory() {
            return Err("an in-memory database cannot be shared between pools: name a file".into());
        }

        let mut options: SqliteConnectOptions =
            settings.url.parse_as::<Self>()?.busy_timeout(settings.connect_timeout);
        for extension in &settings.extensions {
            options = load_extension(options, extension);
        }

        // `begin_files` has made the file by now. A file that is missing later was lost, and must not be replaced by an
        // empty one. Where its folder is missing as well, there was no file to lose.
        let create = files::missing_folder(options.get_filename()).is_some();
        Ok(match access {
            // Only the writer sets the journal mode, because that needs the lock that readers share. WAL, so that
            // neither readers nor a follower's copies hold up the writer.
            Access::Writes => options.create_if_missing(create).journal_mode(SqliteJournalMode::Wal),
            // `read_only` would refuse a file without any write so far.
            Access::MasterReads if settings.enforce_read_only => {
                options.create_if_missing(create).pragma("query_only", "on")
            }
            Access::MasterReads => options.create_if_missing(create),
            Access::SlaveReads => options.read_only(true).pragma("query_only", "on"),
        })
    }

    fn address(options: &Options<Self>) -> Address {
        Address { host: whole_path(options.get_filename()).display().to_string(), port: None }
    }

    fn missing_folder(options: &Options<Self>) -> Option<PathBuf> {
        files::missing_folder(options.get_filename())
    }

    fn begin_files(master: &Options<Self>, copies: &[Options<Self>]) -> Result<(), String> {
        let copies: Vec<_> = copies.iter().map(|copy| copy.get_filename()).collect();
        files::begin(master.get_filename(), &copies)
    }

    fn is_unfilled(options: &Options<Self>) -> bool {
        std::fs::metadata(options.get_filename()).map_or(true, |file| file.len() == 0)
    }

    fn set_up(
        conn: &mut SqliteConnection,
        access: Access,
        _read_only: bool,
    ) -> BoxFuture<'_, Result<ConnectionInfo, sqlx::Error>> {
        Box::pin(async move {
            let read_only = match access {
                Access::Writes => false,
                _ => sqlx::query_scalar("PRAGMA query_only").fetch_one(conn).await?,
            };
            Ok(ConnectionInfo { read_only, ..ConnectionInfo::default() })
        })
    }

    /// A copy's freshness is known to its follower.
    fn observe<'a>(
        conn: &'a mut SqliteConnection,
        access: Access,
        _memory: &'a mut (),
        _depth: Depth,
    ) -> BoxFuture<'a, Result<Observation, sqlx::Error>> {
        Box::pin(async move {
            let written = clock::written_until_now();
            if files::has_moved(conn.lock_handle().await?.as_raw_handle()) {
                let error = "its file was removed or replaced, and open connections lead to the former file";
                return Err(io::Error::new(io::ErrorKind::NotFound, error).into());
            }
            sqlx::raw_sql("SELECT 1 FROM sqlite_master LIMIT 1").execute(conn).await?;
            let position = match access {
                Access::SlaveReads => None,
                Access::MasterReads | Access::Writes => Some(written),
            };
            Ok(Observation { role: ReportedRole::Unknown, position, ..Observation::default() })
        })
    }

    /// Returns `None`: a connection to a copy cannot tell how fresh the copy is.
    fn replayed<'a>(
        _conn: &'a mut SqliteConnection,
        _known: Option<&'a Position>,
    ) -> BoxFuture<'a, Result<Option<Position>, sqlx::Error>> {
        Box::pin(async { Ok(None) })
    }

    fn executor(conn: &mut SqliteConnection) -> impl Executor<'_, Database = Self> {
        conn
    }

    /// SQLite computes rows as they are asked for, so no rest of an answer waits to be read. But a statement with
    /// `RETURNING` commits after its last row, and that commit may fail, for instance by a deferred foreign key.
    fn rest(sql: &str, access: Access) -> Rest {
        if access.writes() && !only_reads(sql) { Rest::Read } else { Rest::Abandon }
    }

    fn fetch_optional<'a, 'q: 'a>(
        conn: &'a mut SqliteConnection,
        query: impl Execute<'q, Self> + 'q,
        rest: Rest,
    ) -> impl Future<Output = Result<(Option<SqliteRow>, Left), sqlx::Error>> + Send {
        match rest {
            Rest::Read => Either::Left(fetch_first::<Self>(conn, query, rest)),
            Rest::Abandon => {
                Either::Right(sqlx::Executor::fetch_optional(conn, query).map_ok(|row| (row, Left::Clean)))
            }
        }
    }

    /// In SQLite, a prepared text may hold several statements, too.
    fn opens_transaction(sql: &str, _simple: bool) -> Opens {
        Opens::by_words(sql, true)
    }

    /// Without a transaction, this statement fails and changes nothing.
    fn settle(conn: &mut SqliteConnection) -> BoxFuture<'_, Result<Left, sqlx::Error>> {
        Box::pin(async move {
            match sqlx::raw_sql("ROLLBACK").execute(conn).await {
                Ok(_) => Ok(Left::Dirty),
                Err(sqlx::Error::Database(_)) => Ok(Left::Clean),
                Err(error) => Err(error),
            }
        })
    }

    fn judge(error: &sqlx::Error) -> Judgement {
        let Some(error) = error.as_database_error() else { return Judgement::of_driver(error) };
        let code = code(error).unwrap_or_default();
        let (fault, remains) = match (code, code & 0xff) {
            (READONLY, _) => (Fault::ReadOnly, Remains::Usable),
            // The extended codes of READONLY (264, 1544, …) are faults of the file. So are IOERR, CORRUPT, CANTOPEN,
            // NOTADB and their extended codes.
            (_, READONLY | 10 | 11 | 14 | 26) => (Fault::Node, Remains::Ended),
            _ => (Fault::Query, Remains::Usable),
        };
        Judgement { fault, remains }
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

/// One spelling for each file, even if the file does not exist yet.
fn whole_path(file: &Path) -> PathBuf {
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let parent = file.parent().and_then(|parent| parent.canonicalize().ok());
    let file = match (parent, file.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => file,
    };
    file.canonicalize().unwrap_or(file)
}

/// The code of a statement that wanted to write on a read-only connection, and of nothing else.
const READONLY: u32 = 8;

/// The result code. Its low byte is the primary code: <https://www.sqlite.org/rescode.html>
fn code(error: &dyn DatabaseError) -> Option<u32> {
    error.code()?.parse().ok()
}

/// True if another connection holds a lock: BUSY, LOCKED and their extended codes.
pub(super) fn is_unavailable(error: &dyn DatabaseError) -> bool {
    error.try_downcast_ref::<SqliteError>().is_some()
        && code(error).is_some_and(|code| matches!(code & 0xff, 5 | 6))
}
