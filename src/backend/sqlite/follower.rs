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
use rusqlite::{Connection, OpenFlags};

use super::files::{has_moved, lost, tables};
use crate::backend::{Copied, Follower, Millis};
use crate::one_line::OneLine;

/// How long a copy waits for a lock on one of the files.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

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
        let (begun, now) = (Instant::now(), Millis::now());
        let copied = self.copy();
        if copied.is_ok() {
            self.copied.until(now);
        }
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
                if let Some(files) = &mut self.files {
                    files.has_failed = true;
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

    fn copy(&mut self) -> Result<(), CopyError> {
        if let Some(files) = &self.files {
            let slave_moved = moved(&files.slave);
            if slave_moved {
                self.copied.mark_replaced();
            }
            if files.has_failed || slave_moved || moved(&files.master) {
                self.files = None;
            }
        }
        let files = match &mut self.files {
            Some(files) => files,
            none => none.insert(Files::open(&self.master, &self.slave)?),
        };
        files.copy_if_changed()
    }
}

struct Files {
    master: Connection,
    slave: Connection,
    /// The master's `data_version` at the latest copy.
    copied: Option<i64>,
    /// True after a failure: the connections have to be opened anew.
    has_failed: bool,
}

impl Files {
    fn open(master_file: &Path, slave_file: &Path) -> Result<Self, CopyError> {
        let open = |path: &Path, more: OpenFlags| {
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | more;
            let conn = Connection::open_with_flags(path, flags)
                .and_then(|conn| conn.busy_timeout(BUSY_TIMEOUT).map(|()| conn));
            conn.map_err(|error| CopyError::Open(path.to_owned(), error))
        };

        let slave = open(slave_file, OpenFlags::SQLITE_OPEN_CREATE)?;
        if tables(master_file)? == 0 && tables(slave_file)? > 0 {
            return Err(CopyError::Lost(lost(master_file, slave_file)));
        }
        let master = open(master_file, OpenFlags::empty())?;
        // The master may be a file that has just been created. With any other journal mode, the slave would lock out
        // its readers during a copy.
        master.pragma_update(None, "journal_mode", "wal")?;
        take_page_size(&slave, &master)?;
        slave.pragma_update(None, "journal_mode", "wal")?;
        Ok(Self { master, slave, copied: None, has_failed: false })
    }

    /// Copies the master if it has changed. A change between the version check and the copy is copied twice, which is
    /// harmless.
    fn copy_if_changed(&mut self) -> Result<(), CopyError> {
        let version = self.master.pragma_query_value(None, "data_version", |row| row.get(0))?;
        if self.copied == Some(version) {
            return Ok(());
        }

        // All pages in one step. With more steps, a write in between makes the copy start over, and on a busy master it
        // would never end: <https://www.sqlite.org/c3ref/backup_finish.html>
        match Backup::new(&self.master, &mut self.slave)?.step(-1)? {
            StepResult::Done => self.copied = Some(version),
            _ => return Err(CopyError::Busy),
        }
        // A backup commits beneath the layer that checkpoints automatically. Without this, each copy would add a whole
        // database to the log. PASSIVE does not wait for readers.
        self.slave.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
        Ok(())
    }
}

fn moved(conn: &Connection) -> bool {
    // SAFETY: the handle is used while the connection is borrowed, by the thread that it belongs to.
    #[allow(unsafe_code)]
    let handle = unsafe { conn.handle() };
    NonNull::new(handle).is_some_and(has_moved)
}

/// A backup cannot change the page size of a file with a write-ahead log: <https://www.sqlite.org/c3ref/backup_finish.html>
fn take_page_size(slave: &Connection, master: &Connection) -> rusqlite::Result<()> {
    let size = |conn: &Connection| conn.pragma_query_value(None, "page_size", |row| row.get::<_, i64>(0));
    let wanted = size(master)?;
    if size(slave)? != wanted {
        slave.pragma_update(None, "journal_mode", "delete")?;
        slave.pragma_update(None, "page_size", wanted)?;
        slave.execute_batch("VACUUM")?;
    }
    Ok(())
}

enum CopyError {
    /// The master is lost, and the copy is the only data left.
    Lost(String),
    Open(PathBuf, rusqlite::Error),
    Copy(rusqlite::Error),
    Busy,
}

impl From<rusqlite::Error> for CopyError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Copy(error)
    }
}

impl fmt::Display for CopyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(what) => f.write_str(what),
            Self::Open(path, error) => write!(f, "cannot open `{}`: {error}", path.display()),
            Self::Copy(error) => error.fmt(f),
            Self::Busy => f.write_str("another process has locked the master's file or the slave's"),
        }
    }
}
