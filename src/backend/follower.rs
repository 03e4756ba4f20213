//! The freshness of a slave that this crate copies itself, and the handle of its thread.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

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
pub(crate) struct Copied(Arc<Mutex<Latest>>);

#[derive(Debug, Default)]
struct Latest {
    /// Everything that was committed before this has been copied. `None` before the first copy.
    until: Option<Position>,
    /// When the follower's file was last known to be the one that the path of the slave leads to.
    seen: Option<Instant>,
    /// Connections that were opened before this may lead to a file that was removed or replaced since.
    replaced: Option<Instant>,
}

impl Copied {
    /// Notes a copy of everything up to `position`. The path of the slave led to the copied file after `seen`.
    #[cfg(any(feature = "sqlite", test))]
    pub(crate) fn record(&self, position: Position, seen: Instant) {
        let mut latest = self.latest();
        latest.until = Some(position);
        latest.seen = Some(seen);
    }

    /// Notes that the slave's file was found to be replaced or missing. The new one has not been copied to.
    #[cfg(any(feature = "sqlite", test))]
    pub(crate) fn mark_replaced(&self) {
        *self.latest() = Latest { replaced: Some(Instant::now()), ..Latest::default() };
    }

    /// The time up to which the master has been copied; `None` before the first copy.
    pub(crate) fn position(&self) -> Option<Position> {
        self.latest().until.clone()
    }

    /// True if a connection that was opened at `opened` leads to a file to which everything up to `position` was copied.
    pub(crate) fn has(&self, position: &Position, opened: Instant) -> bool {
        let Latest { until, seen, replaced } = &*self.latest();
        // A file that was replaced after the latest look is not the copied one.
        let leads_to_copy =
            seen.is_some_and(|seen| opened <= seen) && replaced.is_none_or(|replaced| opened > replaced);
        leads_to_copy && until.as_ref().is_some_and(|until| until.includes(position))
    }

    /// Ignores poison: nothing panics while it changes this.
    fn latest(&self) -> MutexGuard<'_, Latest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
