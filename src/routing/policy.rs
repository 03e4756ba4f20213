//! The choice of a server for a query: a pure function of the request's intent, the client's pin, and the states of the
//! servers. The first row that applies counts. `docs/guide/routing.md` has the same table:
//!
#![doc = include_str!("table.md")]

use std::fmt;
use std::sync::Arc;

use super::client::Client;
use crate::backend::Access;
use crate::config::{PinnedWithoutMaster, ReadShare};
use crate::counters::names;
use crate::health::{Role, Term};

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

    /// The role of the node.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The reason for the choice.
    pub fn reason(&self) -> Reason {
        self.reason
    }
}

impl fmt::Display for Choice {
    /// As in `db-2 (read method)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.node, self.reason)
    }
}

/// Why a node was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// Master: the request's method is not one of `read_methods`.
    ///
    /// A form that only searches need not be served there: give its handler a
    /// [`ReadsDatabase`](crate::ReadsDatabase) guard.
    WriteMethod,
    /// Master: a [`ChangesDatabase`](crate::ChangesDatabase) guard, or a call that said as much.
    ///
    /// Remove the guard where the handler has stopped writing.
    ChangesDatabase,
    /// Master: no slaves are configured.
    ///
    /// Add `slaves` to the section once there are any.
    NoSlaves,
    /// Master: `read_from_slaves = "asked"`, and no [`ReadsDatabase`](crate::ReadsDatabase) guard asked for a slave; or
    /// an operator has stopped reads from slaves
    /// ([`Cluster::stop_reading_slaves`](crate::Cluster::stop_reading_slaves)).
    ///
    /// Say `read_from_slaves = "auto"`, or [`Cluster::resume_reading_slaves`](crate::Cluster::resume_reading_slaves), to use
    /// the slaves again.
    SwitchedOff,
    /// Master: `read_from_slaves` is a share of the clients, or an operator has set one
    /// ([`Cluster::set_read_share`](crate::Cluster::set_read_share)), and this client is not in it.
    ///
    /// Raise the share once the clients in it are served well.
    OutsideShare,
    /// Master: the client wrote within the lag window, or no slave has replayed its writes.
    ///
    /// If too many reads come to the master for this reason, say `consistency = "position"`. If you have that already,
    /// look at the slaves' lag, and raise `catch_up_timeout` if they are late by little.
    Pinned,
    /// Slave: it has replayed the client's writes.
    ///
    /// There is nothing to do: this is what `consistency = "position"` is for.
    CaughtUp,
    /// Slave: the request's method only reads.
    ///
    /// There is nothing to do: this is how most requests should be served.
    ReadMethod,
    /// Slave: a [`ReadsDatabase`](crate::ReadsDatabase) guard, or a call that said as much.
    ///
    /// There is nothing to do, unless the handler has begun to write: then remove the guard.
    ReadsDatabase,
    /// Master: no slave could take the read.
    ///
    /// Look in [`Cluster::status`](crate::Cluster::status) or in the log why each slave is left out. If the slaves are
    /// well but busy, raise their `max_connections`.
    SlavesUnavailable,
    /// Slave: the client wrote within the lag window, but the master cannot be reached.
    ///
    /// Bring the master back. Clients may miss their own writes until then. Say `pinned_without_master = "fail"` if an
    /// error is better.
    MasterUnavailable,
}

impl Reason {
    /// The role of a node that is chosen for this reason.
    pub const fn role(self) -> Role {
        match self {
            Self::WriteMethod
            | Self::ChangesDatabase
            | Self::NoSlaves
            | Self::SwitchedOff
            | Self::OutsideShare
            | Self::Pinned
            | Self::SlavesUnavailable => Role::Master,
            Self::CaughtUp | Self::ReadMethod | Self::ReadsDatabase | Self::MasterUnavailable => Role::Slave,
        }
    }

    /// True if a query that is served for this reason may write.
    pub const fn writes(self) -> bool {
        matches!(self, Self::WriteMethod | Self::ChangesDatabase)
    }
}

names!(Reason {
    WriteMethod: "write method",
    ChangesDatabase: "changes database",
    NoSlaves: "no slaves",
    SwitchedOff: "switched off",
    OutsideShare: "outside share",
    Pinned: "pinned",
    CaughtUp: "caught up",
    ReadMethod: "read method",
    ReadsDatabase: "reads database",
    SlavesUnavailable: "slaves unavailable",
    MasterUnavailable: "master unavailable",
});

/// The intent of a request: to read or to write, and how that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    /// To read, by the request's method.
    ReadMethod,
    /// To read, as the request declares.
    ReadsDatabase,
    /// To write, by the request's method.
    WriteMethod,
    /// To write, as the request declares.
    ChangesDatabase,
}

/// The intent that a request has declared. A change outranks a read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Declared {
    #[default]
    Nothing,
    Reads,
    Changes,
}

/// The intent that a request's method implies.
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

/// Whether any slaves are configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slaves {
    NotConfigured,
    Configured,
}

/// Whether the client carries a pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pinned {
    No,
    Yes,
}

/// The master, as far as a choice depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Master {
    Usable,
    Unusable,
}

/// The facts on which a choice depends that are known beforehand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Situation {
    pub(crate) intent: Intent,
    pub(crate) slaves: Slaves,
    pub(crate) pinned: Pinned,
    pub(crate) share: ReadShare,
    pub(crate) client: Client,
    pub(crate) pinned_without_master: PinnedWithoutMaster,
}

/// The servers that may be chosen. They are looked at only where the table asks for one.
pub(crate) trait Candidates {
    type Slave;

    fn master(&self) -> Master;

    /// Any slave that may serve, whatever position it has replayed.
    fn any_slave(&self) -> Option<Self::Slave>;

    /// The configured master, if it turns out to be a slave of another server.
    fn master_as_slave(&self) -> Option<Self::Slave>;

    /// The servers that the client's pin allows.
    fn for_pin(&self) -> ForPin<Self::Slave>;
}

/// The servers that can show a client its own writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ForPin<S> {
    /// Only the master has the writes for certain.
    Master,
    /// A slave that has the writes, or will have them soon.
    Slave(S),
    /// Any slave: the pin says nothing of these slaves, and its window is over.
    AnySlave,
}

/// The server that a statement goes to, and the kind of connection that it gets there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target<S> {
    Writes,
    MasterReads,
    Slave(S),
}

/// True if a route that was chosen in the term `chosen_in` still leads to where it says. A master that was chosen in an
/// earlier term is no longer the master.
pub(crate) fn is_current(access: Access, chosen_in: Term, present: Term) -> bool {
    access == Access::SlaveReads || chosen_in == present
}

/// True if the next statement of a session takes the route of the one before.
pub(crate) fn stays(access: Access, chosen_in: Term, present: Term, intent: Intent) -> bool {
    access.writes() == intent.is_write() && is_current(access, chosen_in, present)
}

/// Chooses a server by the table above.
pub(crate) fn choose<S>(
    situation: Situation,
    candidates: &impl Candidates<Slave = S>,
) -> (Target<S>, Reason) {
    use Target::*;

    let read = match situation.intent {
        Intent::WriteMethod => return (Writes, Reason::WriteMethod),
        Intent::ChangesDatabase => return (Writes, Reason::ChangesDatabase),
        Intent::ReadMethod => Reason::ReadMethod,
        Intent::ReadsDatabase => Reason::ReadsDatabase,
    };
    let at_master = |reason| {
        let (may_be_stale, stale_read) = match (situation.pinned, situation.pinned_without_master) {
            (Pinned::No, _) => (true, read),
            (Pinned::Yes, without_master) => {
                (without_master == PinnedWithoutMaster::Stale, Reason::MasterUnavailable)
            }
        };
        let is_wanted = may_be_stale && candidates.master() == Master::Unusable;
        let slave = is_wanted.then(|| candidates.master_as_slave()).flatten();
        slave.map_or((MasterReads, reason), |slave| (Slave(slave), stale_read))
    };
    if situation.slaves == Slaves::NotConfigured {
        return at_master(Reason::NoSlaves);
    }
    match (situation.share, situation.intent) {
        (ReadShare::NONE, _) => return at_master(Reason::SwitchedOff),
        (_, Intent::ReadsDatabase) | (ReadShare::ALL, _) => {}
        (ReadShare::ASKED, _) => return at_master(Reason::SwitchedOff),
        (share, _) if share.has(situation.client.drawn()) => {}
        _ => return at_master(Reason::OutsideShare),
    }
    if situation.pinned == Pinned::Yes {
        match candidates.for_pin() {
            ForPin::Slave(slave) => return (Slave(slave), Reason::CaughtUp),
            ForPin::Master => {
                let stale = situation.pinned_without_master == PinnedWithoutMaster::Stale
                    && candidates.master() == Master::Unusable;
                return match stale.then(|| candidates.any_slave()).flatten() {
                    Some(slave) => (Slave(slave), Reason::MasterUnavailable),
                    None => (MasterReads, Reason::Pinned),
                };
            }
            ForPin::AnySlave => {}
        }
    }
    match candidates.any_slave() {
        Some(slave) => (Slave(slave), read),
        None => (MasterReads, Reason::SlavesUnavailable),
    }
}

#[cfg(test)]
mod tests;
