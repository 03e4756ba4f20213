//! The counters of a server that do not belong to one of its pools.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use time::OffsetDateTime;

use super::{NodeState, Role};
use crate::counters::{Tally, key};

key!(NodeState);

/// The number of changes of state that are remembered.
const REMEMBERED: usize = 16;

/// The counters of a server. INVARIANT: readers keep them when the server has left, so that no count is lost.
#[derive(Debug, Default)]
pub(crate) struct ServerCounts {
    /// How often the server was chosen, by `routing::Reason`.
    pub(crate) choices: Tally,
    /// Changes of state, by the new state.
    pub(crate) changes: Tally,
    latest: Mutex<VecDeque<Change>>,
}

/// A change of a node's state or role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// When it was noticed.
    pub at: OffsetDateTime,
    /// The state of the node since then. If its role has changed, this is the same state as before.
    pub state: NodeState,
    /// The new role, if the role has changed: writes followed a promotion.
    pub became: Option<Role>,
}

impl ServerCounts {
    pub(super) fn changed(&self, state: NodeState) {
        self.changes.add(state);
        self.remember(state, None);
    }

    /// Remembers a change of role, which does not count as a change of state.
    pub(super) fn became(&self, role: Role, state: NodeState) {
        self.remember(state, Some(role));
    }

    fn remember(&self, state: NodeState, became: Option<Role>) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.truncate(REMEMBERED - 1);
        latest.push_front(Change { at: OffsetDateTime::now_utc(), state, became });
    }

    /// The remembered changes, the latest first.
    pub(crate) fn latest(&self) -> Vec<Change> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}
