//! The identity of the master. It is kept here, and nowhere else.

use std::sync::atomic::{AtomicU64, Ordering};

/// Identifies a server of the cluster for the lifetime of this process. An id is never used again for another server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ServerId(pub(crate) u32);

/// The time for which one server is followed as the master. A write goes out only on a connection that was
/// chosen in the present term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Term {
    /// The number of masters that this process has followed before.
    pub(crate) number: u32,
    pub(crate) master: ServerId,
}

/// The present term. Both numbers are in one word, so that no reader sees the number of one term with the master of
/// another.
#[derive(Debug)]
pub(crate) struct Mastership(AtomicU64);

impl Mastership {
    pub(crate) fn new(master: ServerId) -> Self {
        Self(AtomicU64::new(u64::from(master.0)))
    }

    pub(crate) fn copy(&self) -> Self {
        Self(AtomicU64::new(self.0.load(Ordering::Acquire)))
    }

    pub(crate) fn term(&self) -> Term {
        let word = self.0.load(Ordering::Acquire);
        Term { number: (word >> 32) as u32, master: ServerId(word as u32) }
    }

    /// Begins the next term. Only the monitor calls this, one verdict at a time.
    pub(crate) fn pass_to(&self, master: ServerId) {
        let number = self.term().number.wrapping_add(1);
        self.0.store(u64::from(number) << 32 | u64::from(master.0), Ordering::Release);
    }
}
