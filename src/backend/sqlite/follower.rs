//! A slave for a database that has no replication of its own. A thread checks the master's file at an interval and,
//! after a change, copies it with SQLite's online backup.

use std::fmt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use log::{error, warn};
use rocket::futures::future::BoxFuture;
use rocket::tokio::sync::oneshot;
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::clock::copied_until_now;
use super::files::{has_moved, lost, tables};
use crate::backend::{Copied, Follower};
use crate::one_line::OneLine;
use crate::position::Position;

/// How long a copy waits for a lock on one of the files.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The copies that the slave's log may hold before it is emptied.
const LOGGED_COPIES: i64 = 2;

/// How long the follower waits for the other followers and for readers when it empties the slave's log.
const TRUNCATE_TIMEOUT: Duration = Duration::from_millis(100);

/// Starts the thread. The future is ready once the first copy has been made, or has failed and was reported.
pub(super) fn start(
    name: &str,
    master: &Path,
    slave: &Path,
    every: Duration,
) -> BoxFuture<'static, Follower> {
    let (stop, stopped) = mpsc::channel();
    let (first, first_copy) = oneshot::channel();
    let copied = Copied::default();
    let mut copier = Copier {
        copied: copied.clone(),
        name: name.to_owned(),
        master: master.to_owned(),
        slave: slave.to_owned(),
        every,
        files: None,
        has_begun: false,
        state: State::Following,
    };

    let thread = std::thread::spawn(move || {
        copier.tick();
        let _ = first.send(());
        while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(every) {
            copier.tick();
        }
    });

    Box::pin(async move {
        let _ = first_copy.await;
        Follower::new(stop, thread, copied)
    })
}

struct Copier {
    copied: Copied,
    name: String,
    master: PathBuf,
    slave: PathBuf,
    every: Duration,
    files: Option<Files>,
    /// False until the files are opened for the first time, or that has failed.
    has_begun: bool,
    state: State,
}

/// What the log has last said of this follower, so that each change is logged once.
#[derive(PartialEq)]
enum State {
    Following,
    Slow,
    Failing,
}

impl Copier {
    fn tick(&mut self) {
        let begun = Instant::now();
        let copied = self.copy(begun).map(|position| self.copied.record(position, begun));
        let (name, every) = (&self.name, self.every);
        match copied {
            Ok(()) if self.state == State::Failing => {
                warn!("The {name} follows its master again.");
                self.state = State::Following;
            }
            Ok(()) if begun.elapsed() > every && self.state == State::Following => {
                warn!(
                    "The copy for the {name} took {:.1?}, longer than `follow` = {}. The slave lags by the sum of \
                     both: set `follow` to a longer time than a copy takes.",
                    begun.elapsed(),
                    every.as_secs_f64(),
                );
                self.state = State::Slow;
            }
            Ok(()) => {}
            Err(error) => {
                if !matches!(error, CopyError::Busy) {
                    self.files = None;
                }
                if self.state != State::Failing {
                    error!(
                        "The {name} cannot follow its master: {}. It keeps the rows of its last copy, and the copy is \
                         tried again every {every:?}.",
                        OneLine(error),
                    );
                    self.state = State::Failing;
                }
            }
        }
    }

    /// Copies the master if it has changed. Returns the position up to which the slave has everything.
    fn copy(&mut self, begun: Instant) -> Result<Position, CopyError> {
        loop {
            // Before the files are looked at: a master that replaces this one is written to later.
            let now = copied_until_now();
            let files = match &mut self.files {
                Some(files) if files.are_current() => files,
                _ => self.open()?,
            };
            if files.has_copied_all()? {
                return Ok(now);
            }
            match files.copy() {
                Ok(Some(position)) => return Ok(position),
                Ok(None) => {}
                // Followers that meet here get in each other's way until one of them has closed its files.
                Err(CopyError::PageSize) if begun.elapsed() < BUSY_TIMEOUT => {
                    self.files = None;
                    std::thread::sleep(Duration::from_millis(fastrand::u64(5..50)));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn open(&mut self) -> Result<&mut Files, CopyError> {
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        let files = Files::open(&self.master, &self.slave)?;
        // The former file is open until here, so that no new file can pass for it.
        let is_same = self.files.as_ref().is_some_and(|former| !moved(&former.slave));
        if !is_first && !is_same {
            self.copied.mark_replaced();
        }
        Ok(self.files.insert(files))
    }
}

struct Files {
    master: Connection,
    slave: Connection,
    /// The master's `data_version` at the latest copy.
    copied: Option<i64>,
}

impl Files {
    fn open(master_file: &Path, slave_file: &Path) -> Result<Self, CopyError> {
        let open = |path: &Path, more: OpenFlags| {
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | more;
            let conn = Connection::open_with_flags(path, flags)
                .and_then(|conn| conn.busy_timeout(BUSY_TIMEOUT).map(|()| conn));
            conn.map_err(|error| CopyError::Open(path.to_owned(), error))
        };

        // The slave takes page size and journal mode from its first copy.
        let slave = open(slave_file, OpenFlags::SQLITE_OPEN_CREATE)?;
        if tables(master_file)? == 0 && tables(slave_file)? > 0 {
            return Err(CopyError::Lost(lost(master_file, slave_file)));
        }
        let master = open(master_file, OpenFlags::empty())?;
        // The master may be a file that has just been created. With any other journal mode, the slave would lock out
        // its readers during a copy.
        master.pragma_update(None, "journal_mode", "wal")?;
        Ok(Self { master, slave, copied: None })
    }

    /// True if the paths lead to the open files.
    fn are_current(&self) -> bool {
        !moved(&self.slave) && !moved(&self.master)
    }

    /// True if the master has not changed since the latest copy. Another process may have copied since, but not less.
    fn has_copied_all(&self) -> Result<bool, CopyError> {
        Ok(self.copied.is_some() && self.copied == Some(version(&self.master)?))
    }

    /// Copies the master. `None` if this has to be tried again.
    ///
    /// The slave is locked before the master's snapshot is taken. Otherwise, a process could wait for the lock with a
    /// snapshot that is older than the one that another process copies meanwhile.
    fn copy(&mut self) -> Result<Option<Position>, CopyError> {
        let copy = Backup::new(&self.master, &mut self.slave)?;
        // A step of no pages locks the slave, and ends the snapshot of its own before it returns:
        // <https://www.sqlite.org/c3ref/backup_finish.html>
        match copy.step(0) {
            Ok(StepResult::More) => {}
            Ok(_) => return Err(CopyError::Busy),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::ReadOnly) => {
                drop(copy);
                return if self.leave_log()? { Ok(None) } else { Err(error.into()) };
            }
            Err(error) => return Err(error.into()),
        }
        let position = copied_until_now();
        if moved(&self.master) {
            return Ok(None);
        }
        // A change between this and the snapshot is copied twice, which is harmless.
        let version = version(&self.master)?;
        // All pages in one step. With more steps, a write in between makes the copy start over, and on a busy master it
        // would never end: <https://www.sqlite.org/c3ref/backup_finish.html>
        if copy.step(-1)? != StepResult::Done {
            return Err(CopyError::Busy);
        }
        drop(copy);
        self.copied = Some(version);
        self.shorten_log()?;
        Ok(Some(position))
    }

    /// Copies the log into the slave's file. A backup commits beneath the layer that does this automatically, and each
    /// copy adds a whole database to the log.
    fn shorten_log(&self) -> rusqlite::Result<()> {
        let checkpoint = |sql| self.slave.query_row(sql, [], |row| row.get::<_, i64>(1));
        // Does not wait for readers.
        let logged = checkpoint("PRAGMA wal_checkpoint(PASSIVE)")?;
        let pages: i64 = self.slave.pragma_query_value(None, "page_count", |row| row.get(0))?;
        // While several processes copy one after another, each finds a log to which the next one is adding already.
        if logged > LOGGED_COPIES * pages {
            self.slave.busy_timeout(TRUNCATE_TIMEOUT)?;
            let emptied = checkpoint("PRAGMA wal_checkpoint(TRUNCATE)");
            self.slave.busy_timeout(BUSY_TIMEOUT)?;
            emptied?;
        }
        Ok(())
    }

    /// Takes the slave out of WAL mode if its pages have another size than the master's: a backup cannot change the size
    /// in that mode: <https://www.sqlite.org/c3ref/backup_finish.html>. Returns whether it did.
    fn leave_log(&self) -> Result<bool, CopyError> {
        let size = |conn: &Connection| conn.pragma_query_value(None, "page_size", |row| row.get::<_, i64>(0));
        let mode: String = self.slave.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
        if mode != "wal" || size(&self.slave)? == size(&self.master)? {
            return Ok(false);
        }
        match self.slave.pragma_update(None, "journal_mode", "delete").map_err(CopyError::from) {
            Ok(()) => Ok(true),
            Err(CopyError::Busy) => Err(CopyError::PageSize),
            Err(error) => Err(error),
        }
    }
}

/// A number that changes with each commit of another connection: <https://www.sqlite.org/pragma.html#pragma_data_version>
fn version(master: &Connection) -> rusqlite::Result<i64> {
    master.pragma_query_value(None, "data_version", |row| row.get(0))
}

fn moved(conn: &Connection) -> bool {
    // SAFETY: the handle is used while the connection is borrowed, by the thread that it belongs to.
    #[allow(unsafe_code)]
    let handle = unsafe { conn.handle() };
    NonNull::new(handle).is_some_and(has_moved)
}

enum CopyError {
    /// The master is lost, and the copy is the only data left.
    Lost(String),
    Open(PathBuf, rusqlite::Error),
    Copy(rusqlite::Error),
    Busy,
    /// The slave cannot take the size of the master's pages while other connections have it open.
    PageSize,
}

impl From<rusqlite::Error> for CopyError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
            _ => Self::Copy(error),
        }
    }
}

impl fmt::Display for CopyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(what) => f.write_str(what),
            Self::Open(path, error) => write!(f, "cannot open `{}`: {error}", path.display()),
            Self::Copy(error) => error.fmt(f),
            Self::Busy => f.write_str("another process has locked the master's file or the slave's"),
            Self::PageSize => f.write_str(
                "its pages have another size than the master's, and cannot change it while other connections have it \
                 open: remove its file, and it is made anew",
            ),
        }
    }
}
