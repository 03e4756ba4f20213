//! The counters of a pool, and the enums that label them.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::backend::Access;
use crate::counters::{Counter, Histogram, Tally, names};

/// What the connections of a pool are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum PoolUse {
    /// Statements of requests that write, at the master: `max_connections`.
    Writes,
    /// Reads at the master: `master_read_connections`.
    MasterReads,
    /// Reads at a slave: its `max_connections`.
    SlaveReads,
}

impl PoolUse {
    pub(crate) fn of(access: Access) -> Self {
        match access {
            Access::Writes => Self::Writes,
            Access::MasterReads => Self::MasterReads,
            Access::SlaveReads => Self::SlaveReads,
        }
    }
}

names!(PoolUse { Writes: "writes", MasterReads: "master reads", SlaveReads: "slave reads" });

/// Why a connection was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum CloseCause {
    /// A handler, or a library, has closed it or kept it for itself.
    Taken,
    /// No statement used it for `idle_timeout`.
    Idle,
    /// It had reached its lifetime of 24 to 30 minutes.
    Old,
    /// A statement, or a ping, failed on it.
    ///
    /// A few are normal where servers or gateways close connections. If there are many, look at what is between the
    /// application and the server.
    Failed,
    /// It was known to be dead, or its server to be down. The server at its address is another one now, or has been
    /// gone in between.
    Invalidated,
    /// Its query was abandoned: the request was cancelled, or the handler's own time-out was over.
    Abandoned,
    /// A statement left something on it that the next one must not meet: an open transaction, or unread rows.
    ///
    /// The log names open transactions. For the rows, ask for no more than you read: `LIMIT 1`.
    Dirty,
    /// Its server has left the cluster (`discover`).
    Left,
    /// The application shut down.
    Shutdown,
}

names!(CloseCause {
    Taken: "taken",
    Idle: "idle",
    Old: "old",
    Failed: "failed",
    Invalidated: "invalidated",
    Abandoned: "abandoned",
    Dirty: "dirty",
    Left: "left",
    Shutdown: "shutdown",
});

/// The counters of a pool. INVARIANT: the statistics keep them when the pool is dropped, so that no count is lost with
/// a server.
#[derive(Debug, Default)]
pub(crate) struct PoolCounts {
    /// Checkouts that found an idle connection.
    pub(crate) immediate: Counter,
    /// Checkouts that had to wait for a connection, or for a new one to be opened.
    pub(crate) waited: Histogram,
    pub(crate) timed_out: Counter,
    /// Connections that were opened, and how long that took.
    pub(crate) opened: Histogram,
    pub(crate) closed: Tally,
    pub(crate) outcomes_unknown: Counter,
}

/// Why a connection is about to be closed, as far as is known: the first cause counts.
#[derive(Debug)]
pub(super) struct Closing(AtomicU8);

impl Closing {
    pub(super) fn new() -> Self {
        Self(AtomicU8::new(CloseCause::Taken as u8))
    }

    pub(super) fn set(&self, cause: CloseCause) {
        let taken = CloseCause::Taken as u8;
        let _ = self.0.compare_exchange(taken, cause as u8, Ordering::AcqRel, Ordering::Acquire);
    }

    pub(super) fn get(&self) -> CloseCause {
        CloseCause::ALL[usize::from(self.0.load(Ordering::Acquire))]
    }
}
