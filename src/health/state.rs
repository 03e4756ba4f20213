//! How a server is, and what part it plays: what operators are told.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// The two kinds of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Takes the writes.
    Master,
    /// Replays them, and serves reads.
    Slave,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Master => "master",
            Self::Slave => "slave",
        })
    }
}

/// How a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NodeState {
    /// It serves.
    Up,
    /// A slave that was just discovered: it is not used until the monitor has looked at it.
    New,
    /// A connection to it failed: it is not used until the monitor has looked at it.
    Suspect,
    /// It does not answer.
    Down,
    /// A slave that is further behind its master than `max_lag`, or was so lately: it serves again when it has been left
    /// out for a while, and its lag is well below.
    Behind,
    /// A slave whose lag cannot be known, where `unknown_lag` leaves it out.
    LagUnknown,
    /// A SQLite slave with `follow` that has not been copied yet.
    NotCopied,
    /// A server that takes writes, but is not the master: a slave that was promoted, or a master that
    /// came back after one was.
    SecondMaster,
    /// When this process began, the configured master and another server of its system both took writes: the
    /// master is read from, but not written to, until only one of them does.
    Contested,
    /// A slave whose address leads to the master itself, which is read from as the master alone.
    MasterItself,
    /// A slave of another replication system than the master's, and not declared to be `logical`.
    Stranger,
    /// A master that is in recovery: it takes no writes.
    Standby,
    /// Taken out of use by [`Cluster::take_out`](crate::Cluster::take_out).
    TakenOut,
}

impl NodeState {
    const ALL: [Self; 13] = [
        Self::Up,
        Self::New,
        Self::Suspect,
        Self::Down,
        Self::Behind,
        Self::LagUnknown,
        Self::NotCopied,
        Self::SecondMaster,
        Self::Contested,
        Self::MasterItself,
        Self::Stranger,
        Self::Standby,
        Self::TakenOut,
    ];
}

/// How one node is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeStatus {
    /// As in the configuration and in the log.
    pub name: String,
    /// The part that it plays now: whoever is not the master is a slave, or is left out until it is one.
    pub role: Role,
    /// Whether it serves, or why not.
    pub state: NodeState,
    /// How far a slave was behind its master when it was last looked at, at most: known to about
    /// `check_interval`. `None` where that cannot be known.
    pub lag: Option<Duration>,
    /// How many of its connections are in use, or kept for the next query of a request: for a slave those
    /// for reads, for the master all.
    pub busy: u32,
}

/// What a server is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Reads,
    Writes,
}

/// A state that others may change at any time.
#[derive(Debug)]
pub(super) struct AtomicState(AtomicU8);

impl AtomicState {
    pub(super) fn new(state: NodeState) -> Self {
        Self(AtomicU8::new(state as u8))
    }

    pub(super) fn load(&self) -> NodeState {
        NodeState::ALL[usize::from(self.0.load(Ordering::Acquire))]
    }

    /// The state before. `None` if nothing changes: a connection that fails says nothing new of a server that is down.
    pub(super) fn turn(&self, state: NodeState) -> Option<NodeState> {
        let turned = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |before| {
            let stays = state == NodeState::Suspect && before == NodeState::Down as u8;
            (!stays).then_some(state as u8)
        });
        turned.ok().map(|before| NodeState::ALL[usize::from(before)])
    }
}
