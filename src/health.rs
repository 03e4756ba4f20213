//! Whether a server answers, and which connections to it can be trusted.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rocket::tokio::runtime::Handle;
use rocket::tokio::sync::Notify;

/// Whether a server answers, as far as anybody noticed. Shared by the pools that lead to it.
#[derive(Debug)]
pub(crate) struct Health {
    up: AtomicBool,
    /// Wakes those who wait for the server when it goes down.
    pub(crate) fell: Notify,
    /// Whether [`watch`](crate::monitor::watch) is at it.
    pub(crate) watched: AtomicBool,
    origin: Instant,
    /// Milliseconds since `origin`: connections that are older have yet to prove themselves.
    distrusted: AtomicU64,
    /// Where it is watched: that of the application, whoever notices something.
    pub(crate) runtime: Handle,
}

impl Health {
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub(crate) fn new() -> Self {
        Self {
            up: AtomicBool::new(true),
            fell: Notify::new(),
            watched: AtomicBool::new(false),
            origin: Instant::now(),
            distrusted: AtomicU64::new(0),
            runtime: Handle::current(),
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    /// True if that is news.
    pub(crate) fn go_down(&self) -> bool {
        let news = self.up.swap(false, Ordering::AcqRel);
        self.fell.notify_waiters();
        news
    }

    /// True if that is news.
    pub(crate) fn come_up(&self) -> bool {
        !self.up.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn distrust(&self) {
        self.distrusted.store(self.now(), Ordering::Release);
    }

    /// Whether a connection of this age was made after the latest failure.
    pub(crate) fn trusts(&self, age: Duration) -> bool {
        let distrusted = self.distrusted.load(Ordering::Acquire);
        distrusted == 0 || self.now().saturating_sub(millis(age)) > distrusted
    }

    fn now(&self) -> u64 {
        millis(self.origin.elapsed()).max(1)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
