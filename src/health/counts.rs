//! What is counted of a server, whatever its pools are for.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use time::OffsetDateTime;

use super::NodeState;
use crate::counters::{Tally, key};

key!(NodeState);

/// So many changes of state are remembered.
const REMEMBERED: usize = 16;

/// INVARIANT: outlives its server in those who read it, so that nothing that was counted is lost with it.
#[derive(Debug, Default)]
pub(crate) struct ServerCounts {
    /// How often it was chosen, by `routing::Reason`.
    pub(crate) choices: Tally,
    /// By the state that it turned to.
    pub(crate) changes: Tally,
    latest: Mutex<VecDeque<Change>>,
}

/// A change of a node's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// When it was noticed.
    pub at: OffsetDateTime,
    /// What the node has been since then.
    pub state: NodeState,
}

impl ServerCounts {
    pub(super) fn changed(&self, state: NodeState) {
        self.changes.add(state);
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.truncate(REMEMBERED - 1);
        latest.push_front(Change { at: OffsetDateTime::now_utc(), state });
    }

    /// The latest first.
    pub(crate) fn latest(&self) -> Vec<Change> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}
