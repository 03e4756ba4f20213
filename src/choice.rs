//! Which node serves a query: a pure function of what the request means to do, what it carries,
//! and how the nodes are. The rows of its table, the first that applies:
//!
//! | # | when                                        | node              | [`Reason`]                       |
//! |---|---------------------------------------------|-------------------|----------------------------------|
//! | 1 | the request means to write                  | master            | `WriteMethod`, `ChangesDatabase` |
//! | 2 | no slaves are configured                    | master, read-only | `NoSlaves`                       |
//! | 3 | slaves only if asked, and nobody asked      | master, read-only | `SwitchedOff`                    |
//! | 4 | the client is pinned, and a slave has its   | that slave        | `CaughtUp`                       |
//! |   | writes; none has                            | master, read-only | `Pinned`                         |
//! |   | … but the master is gone, and stale will do | a slave           | `MasterUnavailable`              |
//! | 5 | a slave is usable                           | that slave        | `ReadMethod`, `ReadsDatabase`    |
//! | 6 | none is                                     | master, read-only | `SlavesUnavailable`              |

use std::fmt;
use std::sync::Arc;

use crate::backend::Access;
use crate::config::{PinnedWithoutMaster, ReadFromSlaves};

/// The node chosen for a query, and why.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Choice {
    node: Arc<str>,
    role: Role,
    reason: Reason,
}

impl Choice {
    pub(crate) fn new(node: Arc<str>, role: Role, reason: Reason) -> Self {
        Self { node, role, reason }
    }

    /// The node's name, as in the configuration and in the log.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Whether the node is the master or a slave.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Why this node.
    pub fn reason(&self) -> Reason {
        self.reason
    }
}

impl fmt::Display for Choice {
    /// As in `db-2 (ReadMethod)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.node, self.reason)
    }
}

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

/// Why a node was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// Master: the request's method is not one of `read_methods`.
    WriteMethod,
    /// Master: a [`ChangesDatabase`](crate::ChangesDatabase) guard, or a call that said as much.
    ChangesDatabase,
    /// Master: no slaves are configured.
    NoSlaves,
    /// Master: `read_from_slaves = "asked"`, and no [`ReadsDatabase`](crate::ReadsDatabase) asked; or an
    /// operator said so ([`Cluster::read_from_master`](crate::Cluster::read_from_master)).
    SwitchedOff,
    /// Master: the client wrote within the lag window, or no slave has replayed what it wrote.
    Pinned,
    /// Slave: it has replayed what the client wrote.
    CaughtUp,
    /// Slave: the request's method only reads.
    ReadMethod,
    /// Slave: a [`ReadsDatabase`](crate::ReadsDatabase) guard, or a call that said as much.
    ReadsDatabase,
    /// Master: no slave could take the read.
    SlavesUnavailable,
    /// Slave: the client wrote within the lag window, but the master cannot be reached.
    MasterUnavailable,
}

/// What a request means to do with a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    /// Read, by its method.
    ReadMethod,
    /// Read, as it declares.
    ReadsDatabase,
    /// Write, by its method.
    WriteMethod,
    /// Write, as it declares.
    ChangesDatabase,
}

/// What a request has declared of its intent. Changing outranks reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Declared {
    #[default]
    Nothing,
    Reads,
    Changes,
}

/// What a request's method says of its intent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MethodKind {
    Read,
    Write,
}

impl Intent {
    pub(crate) fn of(method: MethodKind, declared: Declared) -> Self {
        match (method, declared) {
            (MethodKind::Write, Declared::Nothing) => Self::WriteMethod,
            (_, Declared::Changes) => Self::ChangesDatabase,
            (_, Declared::Reads) => Self::ReadsDatabase,
            (MethodKind::Read, Declared::Nothing) => Self::ReadMethod,
        }
    }

    pub(crate) fn is_write(self) -> bool {
        matches!(self, Self::WriteMethod | Self::ChangesDatabase)
    }
}

/// The slaves, as far as a choice depends on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slaves {
    NotConfigured,
    Usable,
    Unusable,
}

/// The master, as far as a choice depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Master {
    Usable,
    Unusable,
}

/// What a client's pin says, of the slaves that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pinned {
    /// There is none, or none that still stands.
    No,
    /// Only the master has the client's writes for certain.
    ToMaster,
    /// A slave has them, or is about to.
    ToSlave,
}

/// All that a choice depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Situation {
    pub(crate) intent: Intent,
    pub(crate) pinned: Pinned,
    pub(crate) slaves: Slaves,
    pub(crate) master: Master,
    pub(crate) read_from_slaves: ReadFromSlaves,
    pub(crate) pinned_without_master: PinnedWithoutMaster,
}

/// The table above.
pub(crate) fn choose(situation: Situation) -> (Access, Reason) {
    use Access::*;

    let read = match situation.intent {
        Intent::WriteMethod => return (ReadWrite, Reason::WriteMethod),
        Intent::ChangesDatabase => return (ReadWrite, Reason::ChangesDatabase),
        Intent::ReadMethod => Reason::ReadMethod,
        Intent::ReadsDatabase => Reason::ReadsDatabase,
    };
    if situation.slaves == Slaves::NotConfigured {
        return (ReadMaster, Reason::NoSlaves);
    }
    match (situation.read_from_slaves, situation.intent) {
        (ReadFromSlaves::Auto, _) | (ReadFromSlaves::Asked, Intent::ReadsDatabase) => {}
        _ => return (ReadMaster, Reason::SwitchedOff),
    }
    if situation.pinned == Pinned::ToSlave {
        return (ReadSlave, Reason::CaughtUp);
    }
    if situation.pinned == Pinned::ToMaster {
        let stale = situation.master == Master::Unusable
            && situation.slaves == Slaves::Usable
            && situation.pinned_without_master == PinnedWithoutMaster::Stale;
        return if stale { (ReadSlave, Reason::MasterUnavailable) } else { (ReadMaster, Reason::Pinned) };
    }
    match situation.slaves {
        Slaves::Usable => (ReadSlave, read),
        Slaves::Unusable | Slaves::NotConfigured => (ReadMaster, Reason::SlavesUnavailable),
    }
}

#[cfg(test)]
mod tests;
