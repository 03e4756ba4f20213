//! What is counted of a server, whatever its pools are for.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use time::OffsetDateTime;

use super::{NodeState, Role};
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

/// A change of a node's state, or of the part that it plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// When it was noticed.
    pub at: OffsetDateTime,
    /// What the node has been since then; as before, where its part has changed.
    pub state: NodeState,
    /// The part that it plays since then, if that has changed: writes followed a promotion.
    pub became: Option<Role>,
}

impl ServerCounts {
    pub(super) fn changed(&self, state: NodeState) {
        self.changes.add(state);
        self.remember(state, None);
    }

    /// No change of state: it counts as none.
    pub(super) fn became(&self, role: Role, state: NodeState) {
        self.remember(state, Some(role));
    }

    fn remember(&self, state: NodeState, became: Option<Role>) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.truncate(REMEMBERED - 1);
        latest.push_front(Change { at: OffsetDateTime::now_utc(), state, became });
    }

    /// The latest first.
    pub(crate) fn latest(&self) -> Vec<Change> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}
