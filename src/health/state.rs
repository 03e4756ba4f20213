//! How a server is, and what part it plays: what operators are told.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use crate::backend::Access;

/// The two kinds of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Takes the writes.
    Master,
    /// Replays them, and serves reads.
    Slave,
}

impl Role {
    /// Its name in the log, in replies, in metrics and on pages. It never changes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Slave => "slave",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum NodeState {
    /// It serves.
    Up,
    /// A slave that was just discovered, or one that is behind where the master was first seen, within a `check_interval`
    /// after launch: it is not used until the monitor has looked at it again.
    ///
    /// Wait: it is up, or something else is known of it, within `check_interval` and `check_timeout`.
    New,
    /// A connection to it failed: it is not used until the monitor has looked at it.
    ///
    /// Wait: it is up again or down within `check_timeout`. If this comes again and again, look for what ends
    /// connections on the way, such as a gateway or a pooler with time limits of its own.
    Suspect,
    /// It does not answer, or lets nobody in.
    ///
    /// The log has the error. Start it again, mend the network, or correct user, password or database in its URL: it
    /// is used again by itself.
    Down,
    /// A slave that has replayed what the master does not have: it followed another master for longer, or was a master
    /// itself, and serves rows that are lost.
    ///
    /// Rewind it with `pg_rewind` (PostgreSQL), or make it anew from a copy of the master.
    Diverged,
    /// A slave that is further behind its master than `max_lag`, or was so lately: it serves again when it has been left
    /// out for a while, and its lag is well below.
    ///
    /// Look for what holds up its replication: a long query that replay waits for, a slow disk, a large change at the
    /// master. If such a lag is normal, raise `max_lag`.
    Behind,
    /// A slave whose lag cannot be known, where `unknown_lag` leaves it out.
    ///
    /// The log says why it cannot be known. If that does not matter, say `unknown_lag = "use"`.
    LagUnknown,
    /// A SQLite slave with `follow` that has not been copied yet.
    ///
    /// The log has the error that keeps it from being copied, if there is one.
    NotCopied,
    /// A server that takes writes, but is not the master: a slave that was promoted while the master still answers, or a
    /// master that came back after one was.
    ///
    /// Make it replicate the master, or make it the master in the configuration.
    SecondMaster,
    /// A slave that was promoted, as far as this process has seen, while the master has not answered since. It has all that
    /// it ever had: it is read from while neither the master nor another slave can be.
    ///
    /// Make it the master in the configuration. With `follow_promotion`, it becomes the master by itself once the master has
    /// failed three probes.
    Promoted,
    /// When this process began, the configured master and another server of its system both took writes: the
    /// master is read from, but not written to, until only one of them does.
    ///
    /// Stop the one that is out of date, or make it a standby of the other, and name the other as `url`.
    Contested,
    /// A slave whose address leads to the master itself, which is read from as the master alone.
    ///
    /// There is nothing to do where a name with several addresses has the master among them; else correct its URL.
    MasterItself,
    /// A slave of another replication system than the master's, and not declared to be `logical`.
    ///
    /// Its URL is wrong, or it was restored from another cluster: correct the one or rebuild the other. If it is kept by
    /// logical replication, say so.
    Stranger,
    /// A master that takes no writes: it is in recovery (PostgreSQL), or `read_only` (MySQL, MariaDB). It is read from as a
    /// slave where no other server is left.
    ///
    /// Promote it, name as `url` the server that takes the writes, or say `follow_promotion = true`.
    Standby,
    /// Taken out of use by [`Cluster::take_out`](crate::Cluster::take_out).
    ///
    /// [`Cluster::put_back`](crate::Cluster::put_back) takes that back.
    TakenOut,
}

impl NodeState {
    pub(crate) const ALL: [Self; 15] = [
        Self::Up,
        Self::New,
        Self::Suspect,
        Self::Down,
        Self::Diverged,
        Self::Behind,
        Self::LagUnknown,
        Self::NotCopied,
        Self::SecondMaster,
        Self::Promoted,
        Self::Contested,
        Self::MasterItself,
        Self::Stranger,
        Self::Standby,
        Self::TakenOut,
    ];

    /// Its name in the log, in metrics and on pages. It never changes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::New => "new",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Diverged => "diverged",
            Self::Behind => "behind",
            Self::LagUnknown => "lag unknown",
            Self::NotCopied => "not copied",
            Self::SecondMaster => "second master",
            Self::Promoted => "promoted",
            Self::Contested => "contested",
            Self::MasterItself => "master itself",
            Self::Stranger => "stranger",
            Self::Standby => "standby",
            Self::TakenOut => "taken out",
        }
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
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
    /// `check_interval`. Right after a time in which the master was not looked at, all of that time may be in it. `None`
    /// where the lag cannot be known.
    pub lag: Option<Duration>,
    /// How many of its connections are in use, being opened, or kept for the next query of a request: for a slave those
    /// for reads, for the master all.
    pub busy: u32,
    /// How the master can be read from, where `read_url` leads to another address than `url`.
    pub read_url: Option<NodeState>,
}

/// What a server is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Writes,
    /// As the master's: they see all that was written.
    MasterReads,
    /// As a slave's.
    SlaveReads,
}

impl From<Access> for Use {
    fn from(access: Access) -> Self {
        match access {
            Access::ReadWrite => Self::Writes,
            Access::ReadMaster => Self::MasterReads,
            Access::ReadSlave => Self::SlaveReads,
        }
    }
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
