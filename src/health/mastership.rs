//! Who is the master: kept here, and nowhere else.

use std::sync::atomic::{AtomicU64, Ordering};

/// A server of the cluster, for as long as this process lives: never used again for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ServerId(pub(crate) u32);

/// The time for which one server is followed as the master. A write goes out only on a connection that was
/// chosen in the present term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Term {
    /// How many masters this process has followed before.
    pub(crate) number: u32,
    pub(crate) master: ServerId,
}

/// The present term: both numbers in one word, so that nobody ever reads one of each.
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

    /// Only the monitor calls this, one verdict at a time.
    pub(crate) fn pass_to(&self, master: ServerId) {
        let number = self.term().number.wrapping_add(1);
        self.0.store(u64::from(number) << 32 | u64::from(master.0), Ordering::Release);
    }
}
