//! SQLite files. This process copies one to the others when told to, in place of replication.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fallible_iterator::FallibleIterator;
use rusqlite::backup::{Backup, StepResult};
use rusqlite::types::ValueRef;
use rusqlite::{Batch, Connection};
use tempfile::TempDir;

use crate::lab::Deployment;
use crate::process::lock;
use crate::servers::Replay;

const SLAVES: [&str; 2] = ["slave-1", "slave-2"];

/// The interval at which the master is checked for changes.
const STEP: Duration = Duration::from_millis(10);

/// The basis of a [`Lab`](crate::Lab) without servers.
#[derive(Debug)]
pub struct InFiles {
    replication: Arc<Mutex<Replication>>,
    urls: Vec<String>,
    /// Dropped to end the thread.
    running: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    // Declared last: the connections above are to files in it.
    folder: TempDir,
}

impl InFiles {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = |name: &str| format!("sqlite://{}", folder.path().join(name).display());
        let urls = std::iter::once("master").chain(SLAVES).map(url).collect();
        let replication = Arc::new(Mutex::new(Replication::new(folder.path())));
        let (running, ended) = mpsc::channel();
        let thread = thread::spawn({
            let replication = replication.clone();
            move || {
                while ended.recv_timeout(STEP) == Err(RecvTimeoutError::Timeout) {
                    lock(&replication).step();
                }
            }
        });
        Self { replication, urls, running: Some(running), thread: Some(thread), folder }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for InFiles {
    fn drop(&mut self) {
        self.running = None;
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "the thread that copies SQLite files has panicked");
        }
    }
}

impl Deployment for InFiles {
    fn urls(&self) -> (&str, &[String]) {
        (&self.urls[0], &self.urls[1..])
    }

    fn sql(&self, sql: &str) -> Result<String, String> {
        run(&open(&self.file("master")), sql).map_err(|error| error.to_string())
    }

    fn replay(&self, replay: Replay) {
        lock(&self.replication).replay = replay;
    }

    fn position(&self) -> String {
        let mut replication = lock(&self.replication);
        replication.step();
        replication.taken.to_string()
    }

    fn has_replayed(&self, position: &str) -> bool {
        let mut replication = lock(&self.replication);
        replication.step();
        replication.copied >= position.parse::<u64>().expect("a position of this lab")
    }
}

/// Copies of the master, numbered from 1, which wait until slaves get them.
#[derive(Debug)]
struct Replication {
    master: Connection,
    slaves: [PathBuf; 2],
    /// A counter that SQLite raises at commits of other connections:
    /// <https://www.sqlite.org/pragma.html#pragma_data_version>.
    version: i64,
    waiting: VecDeque<(Instant, Connection)>,
    taken: u64,
    copied: u64,
    replay: Replay,
}

impl Replication {
    fn new(folder: &Path) -> Self {
        let mut replication = Self {
            master: open(&folder.join("master")),
            slaves: SLAVES.map(|name| folder.join(name)),
            version: 0,
            waiting: VecDeque::new(),
            taken: 0,
            copied: 0,
            replay: Replay::default(),
        };
        replication.step();
        replication
    }

    fn step(&mut self) {
        let version = self.master.query_row("PRAGMA data_version", [], |row| row.get(0)).unwrap();
        if self.version != version {
            let mut copy = Connection::open_in_memory().unwrap();
            // A copy that failed because of a lock is tried again.
            if copy_all(&self.master, &mut copy) {
                self.version = version;
                self.taken += 1;
                self.waiting.push_back((Instant::now(), copy));
            }
        }
        let is_due = |(taken, _): &(Instant, Connection)| taken.elapsed() >= self.replay.lag;
        let due =
            if self.replay.paused { 0 } else { self.waiting.iter().take_while(|copy| is_due(copy)).count() };
        let Some(newest) = due.checked_sub(1) else { return };
        let copy = &self.waiting[newest].1;
        if self.slaves.iter().all(|slave| copy_all(copy, &mut open(slave))) {
            self.waiting.drain(..due);
            self.copied += due as u64;
        }
    }
}

/// Copies a whole database. Returns false if another connection holds a lock.
fn copy_all(from: &Connection, to: &mut Connection) -> bool {
    let copied = Backup::new(from, to).and_then(|backup| backup.step(-1));
    matches!(copied.unwrap(), StepResult::Done)
}

fn open(file: &Path) -> Connection {
    let connection = Connection::open(file).unwrap();
    connection.busy_timeout(Duration::from_secs(10)).unwrap();
    connection.pragma_update(None, "journal_mode", "wal").unwrap();
    connection
}

/// Rows as `psql` prints them: columns separated by `|`, nothing for NULL.
fn run(connection: &Connection, sql: &str) -> rusqlite::Result<String> {
    let mut lines = Vec::new();
    let mut batch = Batch::new(connection, sql);
    while let Some(mut statement) = FallibleIterator::next(&mut batch)? {
        let columns = statement.column_count();
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next()? {
            let values: Result<Vec<_>, _> =
                (0..columns).map(|column| row.get_ref(column).map(text)).collect();
            lines.push(values?.join("|"));
        }
    }
    Ok(lines.join("\n"))
}

fn text(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => String::new(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => number.to_string(),
        ValueRef::Text(text) | ValueRef::Blob(text) => String::from_utf8_lossy(text).into_owned(),
    }
}
