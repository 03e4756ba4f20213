//! What one request has done so far, and what follows from it. There is no connection, no clock and no lock here, so
//! that [`Session`](super::Session) drives it and a table tests it.

use std::time::Instant;

use crate::backend::{Access, Instance};
use crate::health::ServerId;
use crate::routing::{CatchUp, Declared, Failed, Intent, MethodKind, SlaveSet};

#[derive(Debug)]
pub(super) struct Progress {
    method: MethodKind,
    declared: Declared,
    failed: Failed,
    last_chance: LastChance,
    reads: Reads,
    writes: Writes,
    reply: Reply,
    service: Service,
}

/// A slave that is asked once more if no other server is left. It had no connection in time, or took too long to open
/// one, as happens while the servers of an address change their roles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum LastChance {
    #[default]
    Nothing,
    Slave(ServerId),
    Taken,
}

/// What was read on connections for reads.
#[derive(Debug, Default)]
struct Reads {
    /// Statements that run on these connections, or have returned what they read.
    started: usize,
    /// The server that they have read from, of those behind the slave's address.
    instance: Option<Instance>,
}

/// Whether the read-write pool was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writes {
    None,
    Since {
        first: Instant,
        /// The server that the latest write went to, of those behind the master's address.
        at: Option<Instance>,
        answers: Answers,
        /// How many statements were not [taken back](Progress::take_back).
        started: usize,
    },
}

/// Whether all writes were answered. A write that was abandoned, or whose connection died, may be committed later than
/// the position at which the master's log stands now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answers {
    Complete,
    Missing,
}

/// What became of the request's reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Pending,
    /// The reply is on its way, with the pin that it needs, if any.
    Settled,
    /// The reply is on its way without a pin: its client may miss a write that comes now.
    WithoutPin,
}

/// Whether each statement found a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    Given,
    Refused,
}

/// Whether a statement may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    Allowed,
    /// The statement writes, and the reply has left without a pin.
    AllowedWithoutPin,
    /// The slave's address leads to another server than the one that was read from. That server may be further behind.
    Moved,
}

/// How a server has let a statement down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Letdown {
    Busy,
    Unreachable,
}

/// The pin that the writes so far leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PinKind {
    NoPin,
    /// A window pin: where the log will stand is not known yet.
    Window,
    /// A pin with the position where the log stands after the writes.
    Position {
        first: Instant,
        at: Option<Instance>,
    },
}

impl Progress {
    pub(super) fn new(method: MethodKind) -> Self {
        Self {
            method,
            declared: Declared::default(),
            failed: Failed::default(),
            last_chance: LastChance::default(),
            reads: Reads::default(),
            writes: Writes::None,
            reply: Reply::Pending,
            service: Service::Given,
        }
    }

    pub(super) fn declared(&self) -> Declared {
        self.declared
    }

    pub(super) fn method(&self) -> MethodKind {
        self.method
    }

    pub(super) fn failed(&self) -> &Failed {
        &self.failed
    }

    pub(super) fn reply(&self) -> Reply {
        self.reply
    }

    pub(super) fn was_refused(&self) -> bool {
        self.service == Service::Refused
    }

    pub(super) fn intent(&self) -> Intent {
        Intent::of(self.method, self.declared)
    }

    /// Raises what the request is declared to do. It is never lowered: a slave may not have yet what the request has
    /// seen at the master as a writer.
    pub(super) fn declare(&mut self, declared: Declared) {
        if declared != Declared::Reads || self.writes == Writes::None {
            self.declared = self.declared.max(declared);
        }
    }

    /// Records that a statement is about to be sent on a connection to this instance. `now` reads the clock.
    pub(super) fn start(
        &mut self,
        access: Access,
        instance: Option<Instance>,
        now: impl FnOnce() -> Instant,
    ) -> Start {
        if access.writes() {
            let (first, answers, started) = match self.writes {
                Writes::None => (now(), Answers::Complete, 0),
                Writes::Since { first, answers, started, .. } => (first, answers, started),
            };
            self.writes = Writes::Since { first, at: instance, answers, started: started + 1 };
            if self.reply == Reply::WithoutPin {
                self.reply = Reply::Settled;
                return Start::AllowedWithoutPin;
            }
            return Start::Allowed;
        }
        if access == Access::SlaveReads && self.has_read() && self.reads.instance != instance {
            return Start::Moved;
        }
        self.reads.started += 1;
        self.reads.instance = instance;
        Start::Allowed
    }

    /// Takes back a statement that failed, had returned nothing, and has changed nothing.
    pub(super) fn take_back(&mut self, access: Access) {
        match (&mut self.writes, access) {
            (_, Access::MasterReads | Access::SlaveReads) => {
                self.reads.started = self.reads.started.saturating_sub(1);
            }
            (Writes::Since { started: started @ 2.., .. }, Access::Writes) => *started -= 1,
            (_, Access::Writes) => self.writes = Writes::None,
        }
    }

    /// Records that no answer to a write will be seen.
    pub(super) fn miss_answer(&mut self) {
        if let Writes::Since { answers, .. } = &mut self.writes {
            *answers = Answers::Missing;
        }
    }

    /// Records that the slave does not have what the request needs. The master has it.
    pub(super) fn found_behind(&mut self) {
        self.failed.catch_up = CatchUp::InVain;
        self.leave();
    }

    /// Records that the route is left for another one.
    pub(super) fn leave(&mut self) {
        if self.has_read() {
            // After a statement has returned rows, the request may move to the master but not to another slave. That
            // one could be behind what the client has just seen.
            self.failed.slaves = SlaveSet::All;
        }
    }

    /// Records that a server has let a statement down. Returns whether another server may be asked.
    pub(super) fn fail(&mut self, access: Access, server: ServerId, letdown: Letdown) -> bool {
        match (access, letdown) {
            (Access::Writes, _) | (Access::MasterReads, Letdown::Busy) => return false,
            (Access::MasterReads, Letdown::Unreachable) => {
                self.failed.master = true;
                if let LastChance::Slave(slave) = self.last_chance {
                    self.failed.slaves.remove(slave);
                    self.last_chance = LastChance::Taken;
                }
            }
            (Access::SlaveReads, _) => {
                self.failed.slaves.add(server);
                if letdown == Letdown::Busy && self.last_chance != LastChance::Taken {
                    self.last_chance = LastChance::Slave(server);
                }
            }
        }
        self.leave();
        true
    }

    /// True if the only server that is left has let a statement down.
    pub(super) fn is_exhausted(&self, next: Access) -> bool {
        next == Access::MasterReads && self.failed.master
    }

    /// Records that no server is left for a statement.
    pub(super) fn refuse(&mut self) {
        self.service = Service::Refused;
    }

    /// The pin that the writes so far leave.
    pub(super) fn pin_kind(&self) -> PinKind {
        match self.writes {
            Writes::None => PinKind::NoPin,
            Writes::Since { answers: Answers::Missing, .. } => PinKind::Window,
            Writes::Since { first, at, answers: Answers::Complete, .. } => PinKind::Position { first, at },
        }
    }

    /// Returns the pin that the reply has to carry, when it is about to leave. `in_use` says that a handle is still
    /// alive. If the request means to write, that handle may do so after the reply.
    pub(super) fn answer(&mut self, in_use: bool) -> PinKind {
        let pin = match in_use && self.intent().is_write() {
            true => PinKind::Window,
            false => self.pin_kind(),
        };
        self.reply = if pin == PinKind::NoPin { Reply::WithoutPin } else { Reply::Settled };
        pin
    }

    fn has_read(&self) -> bool {
        self.reads.started > 0
    }
}

#[cfg(test)]
mod tests;
