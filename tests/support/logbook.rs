//! The log as an operator would read it. Each test has its own, because the tests of one program run side by side.
//!
//! A line belongs to the runtime in which it was logged. A runtime belongs to the test whose thread has logged in it.
//! The thread of `#[support::async_test]` logs in its runtime, and so does a blocking client when it launches. Lines of
//! threads without a runtime, such as those of SQLite's driver, are in every test's log.

use std::collections::{HashMap, HashSet};
use std::sync::{LazyLock, Mutex, MutexGuard, Once, PoisonError};
use std::thread::{self, ThreadId};

use log::{Level, LevelFilter, Log, Metadata, Record};
use rocket::tokio::runtime::{Handle, Id};

static BOOK: LazyLock<Mutex<Book>> = LazyLock::new(Mutex::default);

#[derive(Default)]
struct Book {
    /// The tests, by their threads.
    tests: HashMap<ThreadId, Test>,
    lines: Vec<(Origin, String)>,
}

#[derive(Default)]
struct Test {
    /// The runtimes in which the test's own thread has logged.
    runtimes: HashSet<Id>,
    wants_details: bool,
}

#[derive(Clone, Copy)]
enum Origin {
    Runtime(Id),
    Thread(ThreadId),
}

impl Book {
    /// The origin of lines that are logged here. Notes which test the current runtime belongs to.
    fn enter(&mut self) -> Origin {
        let me = thread::current().id();
        let Ok(runtime) = Handle::try_current() else { return Origin::Thread(me) };
        if let Some(test) = self.tests.get_mut(&me) {
            test.runtimes.insert(runtime.id());
        }
        Origin::Runtime(runtime.id())
    }

    fn wants_details(&self, origin: Origin) -> bool {
        self.tests.iter().any(|(thread, test)| test.wants_details && self.is_of(origin, *thread))
    }

    /// True if the origin belongs to this test, or is a thread that belongs to no test.
    fn is_of(&self, origin: Origin, test: ThreadId) -> bool {
        match origin {
            Origin::Runtime(id) => self.tests.get(&test).is_some_and(|test| test.runtimes.contains(&id)),
            Origin::Thread(id) => id == test || !self.tests.contains_key(&id),
        }
    }
}

struct Logbook;

impl Log for Logbook {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let is_from = |target| metadata.target().starts_with(target);
        match metadata.level() {
            Level::Error | Level::Warn | Level::Info => {
                ["rocket_", "sqlx::query", "sqlx_core::pool"].into_iter().any(is_from)
            }
            Level::Debug | Level::Trace => {
                let mut book = book();
                let here = book.enter();
                is_from("rocket_replicated") && book.wants_details(here)
            }
        }
    }

    fn log(&self, record: &Record<'_>) {
        let line = self.enabled(record.metadata()).then(|| format!("{}: {}", record.level(), record.args()));
        let mut book = book();
        // Each record may tell which test its runtime belongs to.
        let here = book.enter();
        if let Some(line) = line {
            book.lines.push((here, line));
        }
    }

    fn flush(&self) {}
}

fn book() -> MutexGuard<'static, Book> {
    BOOK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the place of Rocket's logger, and opens the log of the test that calls this from its own thread.
pub fn open() {
    static OPENED: Once = Once::new();
    OPENED.call_once(|| {
        log::set_logger(&Logbook).expect("the first logger of this process");
        log::set_max_level(LevelFilter::Info);
    });
    let mut book = book();
    book.tests.entry(thread::current().id()).or_default();
    book.enter();
}

/// From now on, this test's log includes the lines of this crate at debug level.
pub fn open_with_details() {
    open();
    log::set_max_level(LevelFilter::Debug);
    book().tests.entry(thread::current().id()).or_default().wants_details = true;
}

/// The lines so far that contain all of these words.
pub fn lines(words: &[&str]) -> Vec<String> {
    let mut book = book();
    let here = book.enter();
    let me = thread::current().id();
    let is_mine = |origin| match (origin, here) {
        // A task sees the log of its test on every thread.
        (Origin::Runtime(origin), Origin::Runtime(here)) if origin == here => true,
        _ => book.is_of(origin, me),
    };
    let mine = book.lines.iter().filter(|(origin, _)| is_mine(*origin)).map(|(_, text)| text);
    mine.filter(|text| words.iter().all(|word| text.contains(word))).cloned().collect()
}
