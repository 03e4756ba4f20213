//! The state and the role of a server, as operators see them.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// The two kinds of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Takes the writes.
    Master,
    /// Replays them, and serves reads.
    Slave,
}

impl Role {
    /// The role's name in the log, in replies, in metrics and on pages. It never changes.
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

/// The state of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum NodeState {
    /// The node serves.
    Up,
    /// A slave that was just discovered, or a slave that is behind the first known position of the master, within a
    /// `check_interval` after launch. It is not used until the monitor has looked at it again.
    ///
    /// Wait: the next probe finds it up, or in another state, within `check_interval` and `check_timeout`.
    New,
    /// A connection to the node failed. It is not used until the monitor has looked at it.
    ///
    /// Wait: it is up again or down within `check_timeout`. If it becomes a suspect again and again, look for a gateway
    /// or a pooler on the way that ends connections after time limits of its own.
    Suspect,
    /// The node does not answer, or refuses every login.
    ///
    /// The log has the error. Start the server again, mend the network, or correct user, password or database in its
    /// URL. It is used again by itself.
    Down,
    /// A slave that has replayed transactions that the master does not have. It followed another master for longer, or
    /// was a master itself. Its rows may be lost ones.
    ///
    /// Rewind it with `pg_rewind` (PostgreSQL), or make it anew from a copy of the master.
    Diverged,
    /// A slave that is further behind its master than `max_lag`, or was so lately. It serves again once it has been
    /// left out for a while, and its lag is well below `max_lag`.
    ///
    /// Look for the cause that holds up its replication: a long query that replay waits for, a slow disk, a large
    /// change at the master. If such a lag is normal, raise `max_lag`.
    Behind,
    /// A slave whose lag cannot be known, where `unknown_lag` leaves it out.
    ///
    /// The log says why it cannot be known. If that does not matter, say `unknown_lag = "use"`.
    LagUnknown,
    /// A SQLite slave with `follow` that has not been copied yet.
    ///
    /// The log has the error that keeps it from being copied, if there is one.
    NotCopied,
    /// A server that takes writes, but is not the master. It is a slave that was promoted while the master still
    /// answers, or a former master that came back after a promotion.
    ///
    /// Make it replicate the master, or make it the master in the configuration.
    SecondMaster,
    /// A slave whose promotion this process has seen, while the present master has not answered since. It still has
    /// everything that it had as a slave. It is read from while neither the master nor another slave can be.
    ///
    /// Make it the master in the configuration. With `follow_promotion`, it becomes the master by itself once the master has
    /// failed three probes.
    Promoted,
    /// The configured master, if another server of its system took writes as well when this process began. The master
    /// is read from, but not written to, until only one of the two takes writes.
    ///
    /// Stop the server that is out of date, or make it a standby of the other, and name the other as `url`.
    Contested,
    /// A slave whose address leads to the master itself. It is left out as a slave: reads go there as to the master
    /// only.
    ///
    /// There is nothing to do if a host name has several addresses, and the master's is among them. Otherwise correct
    /// the slave's URL.
    MasterItself,
    /// A slave of another replication system than the master's, and not declared to be `logical`.
    ///
    /// Its URL is wrong, or it was restored from another cluster. Correct the URL or rebuild the slave. If logical
    /// replication keeps it up to date, say `logical = true`.
    Stranger,
    /// A master that takes no writes: it is in recovery (PostgreSQL), or `read_only` (MySQL, MariaDB). It is read from
    /// as a slave if no other server is left.
    ///
    /// Promote it, name as `url` the server that takes the writes, or say `follow_promotion = true`.
    Standby,
    /// Taken out of use by [`Cluster::take_out`](crate::Cluster::take_out).
    ///
    /// [`Cluster::put_back`](crate::Cluster::put_back) puts it back into use.
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

    /// The state's name in the log, in metrics and on pages. It never changes.
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

/// The status of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeStatus {
    /// The node's name, as in the configuration and in the log.
    pub name: String,
    /// The role of the node now. Every node but the master is a slave, or is left out until it is one.
    pub role: Role,
    /// The state of the node: whether it serves, or why not.
    pub state: NodeState,
    /// An upper limit for the lag of a slave at its latest look, precise to about `check_interval`. Right after a time
    /// in which the master was not looked at, the limit may be too high by all of that time. `None` where the lag
    /// cannot be known.
    pub lag: Option<Duration>,
    /// The number of its connections that are in use, being opened, or kept for the next query of a request. For a
    /// slave these are the connections for reads, for the master all. [`PoolStatistics`](crate::PoolStatistics) has the
    /// same number for each pool.
    pub in_use: u32,
    /// The state of the master's `read_url`, where that is another address than `url`.
    pub read_url: Option<NodeState>,
}

/// A state that several threads change.
#[derive(Debug)]
pub(super) struct AtomicState(AtomicU8);

impl AtomicState {
    pub(super) fn new(state: NodeState) -> Self {
        Self(AtomicU8::new(state as u8))
    }

    pub(super) fn load(&self) -> NodeState {
        NodeState::ALL[usize::from(self.0.load(Ordering::Acquire))]
    }

    /// Changes the state, and returns the one before. `None` if nothing changes: a failed connection says nothing new
    /// of a server that is down.
    pub(super) fn turn(&self, state: NodeState) -> Option<NodeState> {
        let turned = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |before| {
            let stays = state == NodeState::Suspect && before == NodeState::Down as u8;
            (!stays).then_some(state as u8)
        });
        turned.ok().map(|before| NodeState::ALL[usize::from(before)])
    }
}
