//! What the rest of the crate knows of a slave that is copied here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::position::Position;

/// A thread that keeps a slave; it ends when this is dropped.
#[doc(hidden)]
#[derive(Debug)]
pub struct Follower {
    stop: Option<std::sync::mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    pub(crate) copied: Copied,
}

/// How fresh the copy of a follower is.
#[doc(hidden)]
#[derive(Clone, Debug, Default)]
pub struct Copied(Arc<AtomicU64>);

impl Copied {
    /// Everything that was committed before this has been copied.
    #[cfg(feature = "sqlite")]
    pub(super) fn until(&self, Millis(ms): Millis) {
        self.0.store(ms, Ordering::Release);
    }

    /// `None` before the first copy.
    pub(crate) fn position(&self) -> Option<Position> {
        match self.0.load(Ordering::Acquire) {
            0 => None,
            ms => Some(Position::Time(ms)),
        }
    }
}

/// Milliseconds since 1970, rounded down, by a clock that is set when this process first asks and is never
/// set back: a wall clock that steps back must not make a copy look fresher than it is.
#[cfg(feature = "sqlite")]
#[derive(Clone, Copy, Debug)]
pub(super) struct Millis(pub(super) u64);

#[cfg(feature = "sqlite")]
impl Millis {
    pub(super) fn now() -> Self {
        use std::sync::OnceLock;
        use std::time::Instant;

        static ORIGIN: OnceLock<(i128, Instant)> = OnceLock::new();
        let (wall, origin) = ORIGIN.get_or_init(|| {
            (time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000, Instant::now())
        });
        let passed = i128::try_from(origin.elapsed().as_millis()).unwrap_or(i128::MAX);
        Self(u64::try_from(wall.saturating_add(passed)).unwrap_or_default())
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
