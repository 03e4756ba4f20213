//! The freshness of a slave that this crate copies itself, and the handle of its thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::position::Position;

/// A thread that keeps a slave up to date. Dropping the handle ends the thread.
#[derive(Debug)]
pub struct Follower {
    stop: Option<std::sync::mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    pub(crate) copied: Copied,
}

/// How fresh the copy of a follower is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Copied(Arc<Latest>);

/// Times in milliseconds, as [`Millis`] counts them.
#[derive(Debug, Default)]
struct Latest {
    /// Everything that was committed before this has been copied.
    until: AtomicU64,
    /// Connections that were opened before this may lead to a file that was removed or replaced since.
    replaced: AtomicU64,
}

impl Copied {
    #[cfg(feature = "sqlite")]
    pub(super) fn until(&self, Millis(ms): Millis) {
        self.0.until.store(ms, Ordering::Release);
    }

    /// Notes that the slave's file was found to be replaced or missing.
    #[cfg(feature = "sqlite")]
    pub(super) fn mark_replaced(&self) {
        let Millis(now) = Millis::at(Instant::now());
        self.0.replaced.store(now, Ordering::Release);
    }

    /// The time up to which the master has been copied; `None` before the first copy.
    pub(crate) fn position(&self) -> Option<Position> {
        match self.0.until.load(Ordering::Acquire) {
            0 => None,
            ms => Some(Position::Time(ms)),
        }
    }

    /// True if a connection that was opened at `opened` leads to the file that is copied to.
    pub(crate) fn is_open_since(&self, opened: Instant) -> bool {
        let Millis(opened) = Millis::at(opened);
        opened > self.0.replaced.load(Ordering::Acquire)
    }
}

/// Milliseconds since 1970, rounded down, by a clock that is set when this process first asks and is never
/// set back: a wall clock that steps back must not make a copy look fresher than it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Millis(pub(super) u64);

impl Millis {
    #[cfg(feature = "sqlite")]
    pub(super) fn now() -> Self {
        Self::at(Instant::now())
    }

    fn at(at: Instant) -> Self {
        static ORIGIN: OnceLock<(i128, Instant)> = OnceLock::new();
        let (wall, origin) = ORIGIN.get_or_init(|| {
            (time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000, Instant::now())
        });
        let millis = |time: Duration| i128::try_from(time.as_millis()).unwrap_or(i128::MAX);
        let passed = millis(at.saturating_duration_since(*origin));
        let before = millis(origin.saturating_duration_since(at));
        Self(u64::try_from(wall.saturating_add(passed).saturating_sub(before)).unwrap_or_default())
    }
}

impl Follower {
    /// `stop` is the sender of a channel whose other end the thread listens to.
    #[cfg(feature = "sqlite")]
    pub(super) fn new(
        stop: std::sync::mpsc::Sender<()>,
        thread: std::thread::JoinHandle<()>,
        copied: Copied,
    ) -> Self {
        Self { stop: Some(stop), thread: Some(thread), copied }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
