//! A slave for a database that has no replication of its own: a thread that copies the master's
//! file with SQLite's online backup, every so often, if the master changed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use log::{error, warn};
use rocket::futures::future::BoxFuture;
use rocket::tokio::sync::oneshot;
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};

use crate::backend::{Copied, Follower, Millis};
use crate::one_line::OneLine;

/// How long a copy waits for whoever holds a lock on one of the files.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Starts the thread; ready once the first copy has been made, or has failed and was reported.
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

/// What has been said of this follower, so that each change is said once.
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
                    "The copy for the {name} took {:.1?}, longer than `follow` = {}: \
                     choose a longer period, the slave lags by both.",
                    begun.elapsed(),
                    every.as_secs_f64(),
                );
                self.state = State::Slow;
            }
            Ok(()) => {}
            Err(error) => {
                // Opened anew next time: a file may have been replaced under the connection.
                self.files = None;
                if self.state != State::Failing {
                    error!("The {name} cannot follow its master: {}.", OneLine(error));
                    self.state = State::Failing;
                }
            }
        }
    }

    fn copy(&mut self) -> Result<(), CopyError> {
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
}

impl Files {
    fn open(master: &Path, slave: &Path) -> Result<Self, CopyError> {
        let open = |path: &Path| {
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
                | OpenFlags::SQLITE_OPEN_CREATE
                | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let conn = Connection::open_with_flags(path, flags)
                .and_then(|conn| conn.busy_timeout(BUSY_TIMEOUT).map(|()| conn));
            conn.map_err(|error| CopyError::Open(path.to_owned(), error))
        };

        let (master, slave) = (open(master)?, open(slave)?);
        // The master may be a file that this has just created; the slave would lock its readers
        // out during a copy with any other journal.
        for conn in [&master, &slave] {
            conn.pragma_update(None, "journal_mode", "wal")?;
        }
        Ok(Self { master, slave, copied: None })
    }

    /// A change after the version was read, but before the copy began, is copied twice: harmless.
    fn copy_if_changed(&mut self) -> Result<(), CopyError> {
        let version = self.master.pragma_query_value(None, "data_version", |row| row.get(0))?;
        if self.copied == Some(version) {
            return Ok(());
        }

        // All pages in one step: with more steps, a writer in between starts the copy over, and on
        // a busy master it would never end (https://www.sqlite.org/c3ref/backup_finish.html).
        match Backup::new(&self.master, &mut self.slave)?.step(-1)? {
            StepResult::Done => self.copied = Some(version),
            _ => return Err(CopyError::Busy),
        }
        // A backup commits beneath the layer that checkpoints by itself: the log would grow by a
        // whole database with every copy. Passive: it waits for no reader.
        self.slave.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
        Ok(())
    }
}

enum CopyError {
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
            Self::Open(path, error) => write!(f, "cannot open `{}`: {error}", path.display()),
            Self::Copy(error) => error.fmt(f),
            Self::Busy => f.write_str("one of the files is locked"),
        }
    }
}
