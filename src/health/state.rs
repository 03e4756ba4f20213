//! The state and the role of a server, as operators see them: all that follows from a state, and the lines that the log
//! has about it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use log::Level;

use super::{Health, ServerId, Subject, Why};
use crate::backend::Access;
use crate::config::PinnedWithoutMaster;
use crate::position::Lag;

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

    /// What follows from the state. A new state needs a row here, a line in [`Health::line`], and a branch of the verdict
    /// that finds it.
    const fn facts(self) -> Facts {
        use GoesOn::{Always, ForReads, ForSlaveReads, OnReturn};
        use {LastResort::*, Mood::*, NextProbe::*};

        match self {
            Self::Up => Facts("up", Always, Never, AsBefore, Well),
            Self::New => Facts("new", GoesOn::Never, Never, AsBefore, Partly),
            Self::Suspect => Facts("suspect", GoesOn::Never, Never, AsBefore, Partly),
            Self::Down => Facts("down", OnReturn, WhileItReturns, AsBefore, Ill),
            Self::Diverged => Facts("diverged", Always, Never, AsBefore, Ill),
            Self::Behind => Facts("behind", Always, IfStale, AsBefore, Partly),
            Self::LagUnknown => Facts("lag unknown", Always, IfStale, AsBefore, Partly),
            Self::NotCopied => Facts("not copied", Always, Never, AsBefore, Partly),
            Self::SecondMaster => Facts("second master", Always, Never, Anew, Ill),
            Self::Promoted => Facts("promoted", Always, Yes, Anew, Partly),
            Self::Contested => Facts("contested", ForReads, Never, AsBefore, Ill),
            Self::MasterItself => Facts("master itself", Always, Yes, Anew, Well),
            Self::Stranger => Facts("stranger", Always, Never, AsBefore, Ill),
            Self::Standby => Facts("standby", ForSlaveReads, Yes, Anew, Ill),
            Self::TakenOut => Facts("taken out", Always, Never, AsBefore, Partly),
        }
    }

    /// The state's name in the log, in metrics and on pages. It never changes.
    pub const fn as_str(self) -> &'static str {
        self.facts().0
    }

    /// True if a session that has chosen the server can go on with it. `returns` is true after a good probe.
    pub(super) fn goes_on(self, wanted: Access, returns: bool) -> bool {
        match self.facts().1 {
            GoesOn::Never => false,
            GoesOn::OnReturn => returns,
            GoesOn::ForSlaveReads => wanted == Access::SlaveReads,
            GoesOn::ForReads => !wanted.writes(),
            GoesOn::Always => true,
        }
    }

    /// True for a server that is read from while neither the master nor a usable slave can be.
    pub(super) fn is_last_resort(self, without_master: PinnedWithoutMaster, returns: bool) -> bool {
        match self.facts().2 {
            LastResort::Never => false,
            LastResort::WhileItReturns => returns,
            LastResort::IfStale => without_master == PinnedWithoutMaster::Stale,
            LastResort::Yes => true,
        }
    }

    /// True if the address does not lead to the kind of server that it is for. The next connection may lead there, while
    /// the one that is open stays where it is.
    pub(super) fn leads_elsewhere(self) -> bool {
        matches!(self.facts().3, NextProbe::Anew)
    }

    /// How bad the state is, for the status page.
    #[cfg(feature = "status")]
    pub(crate) fn mood(self) -> Mood {
        self.facts().4
    }

    /// The meaning of the state in one line, for the status page. The documentation of each state has the remedy.
    #[cfg(feature = "status")]
    pub(crate) fn meaning(self, role: Role) -> &'static str {
        match self {
            Self::Up if role == Role::Master => "It takes the writes.",
            Self::Up => "It serves reads.",
            Self::New => {
                "It has just been found, or the application has just started. It serves after its first health probe."
            }
            Self::Suspect => "A connection to it failed. It serves again if the next health probe is good.",
            Self::Down => "It does not answer, or refuses the login. The log has the error.",
            Self::Diverged => {
                "It has replayed transactions that the master does not have: left out. The log has the remedy."
            }
            Self::Behind => "It is further behind than max_lag: left out until it has caught up.",
            Self::LagUnknown => "Its lag cannot be known: left out. The log says why.",
            Self::NotCopied => "It has not been copied from its master yet: left out.",
            Self::SecondMaster => "It takes writes, but is not the master: left out. The log has the remedy.",
            Self::Promoted => {
                "It was promoted, but is not the master: it serves reads only while no other server can."
            }
            Self::Contested => {
                "Another server takes writes, too: writes fail until only one does. The log has the remedy."
            }
            Self::MasterItself => "Its address leads to the master itself: left out as a slave.",
            Self::Stranger => {
                "It belongs to another system than the master: left out. The log has the remedy."
            }
            Self::Standby => "It takes no writes: it is in recovery, or read-only. The log has the remedy.",
            Self::TakenOut => "An operator has taken it out of use.",
        }
    }
}

/// What follows from a state: its name, whether sessions go on, whether it is a last resort of reads, the connection of
/// the next probe, and the mood of the status page.
#[cfg_attr(not(feature = "status"), allow(dead_code))]
struct Facts(&'static str, GoesOn, LastResort, NextProbe, Mood);

/// Whether a session that has chosen the server can go on with it.
#[derive(Clone, Copy)]
enum GoesOn {
    Always,
    ForReads,
    ForSlaveReads,
    OnReturn,
    Never,
}

/// Whether the server is read from while neither the master nor a usable slave can be.
#[derive(Clone, Copy)]
enum LastResort {
    Yes,
    /// If `pinned_without_master` allows late reads.
    IfStale,
    WhileItReturns,
    Never,
}

/// The connection of the next probe.
#[derive(Clone, Copy)]
enum NextProbe {
    AsBefore,
    Anew,
}

/// How bad a state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Well,
    Partly,
    Ill,
}

#[cfg(feature = "status")]
impl Mood {
    /// The name of its style.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Partly => "partly",
            Self::Ill => "ill",
        }
    }
}

/// Texts of an [`Engine`](crate::backend::Engine) for log lines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Remedies {
    /// The sign by which a server is known to take no writes of its own.
    pub(crate) no_writes: &'static str,
    /// The remedy for a slave with transactions that its master does not have.
    pub(crate) rejoin: &'static str,
}

/// What the log line about a state depends on, besides the server.
pub(super) struct Circumstances<'a, F> {
    pub(super) why: Why,
    pub(super) remedies: Remedies,
    /// The state of the master.
    pub(super) master: Option<NodeState>,
    pub(super) follow_promotion: bool,
    /// Finds a server.
    pub(super) find: &'a F,
}

impl Health {
    /// The line of the log when the server turns from the state `before` into this one, if there is anything to say.
    /// `more` is from [`explain`](Self::explain), or the error.
    pub(super) fn line(
        &self,
        state: NodeState,
        before: NodeState,
        more: &impl fmt::Display,
    ) -> Option<(Level, String)> {
        use Level::{Error, Info, Warn};

        Some(match state {
            NodeState::New | NodeState::TakenOut => return None,
            NodeState::Up if before == NodeState::New => {
                (Info, format!("The {self} serves reads from now on."))
            }
            // As loud as the line that it takes back: Rocket's level `critical` shows warnings, and nothing below.
            NodeState::Up => (Warn, format!("The {self} is back.")),
            NodeState::Down if before == NodeState::Suspect => return None,
            // The line about the refused login has said what is wrong, and that it is no outage.
            NodeState::Suspect | NodeState::Down if !self.accepts_login() => return None,
            NodeState::Suspect | NodeState::Down => {
                (Warn, format!("The {self} cannot be used: {more}. {}", self.left_alone()))
            }
            NodeState::Diverged => (
                Error,
                format!(
                    "The {self} has replayed transactions that the master, asked afterwards, does not have: leaving it \
                     out, because readers could see rows that do not exist elsewhere. {more}"
                ),
            ),
            NodeState::Behind => (
                Warn,
                format!("The {self} is {more} behind: leaving it out until it has caught up (`max_lag`)."),
            ),
            NodeState::LagUnknown => {
                (Warn, format!("The lag of the {self} cannot be known: leaving it out. {more}"))
            }
            NodeState::NotCopied => (
                Warn,
                format!("The {self} has not been copied from its master yet: leaving it out until it is."),
            ),
            NodeState::SecondMaster => {
                (Error, format!("The {self} takes writes, but is not the master: leaving it out. {more}"))
            }
            NodeState::Promoted => (
                Warn,
                format!(
                    "The {self} was promoted, but is not the master: it serves reads only while no other server \
                     can.{more}"
                ),
            ),
            NodeState::Contested => (Error, more.to_string()),
            NodeState::MasterItself => (
                Warn,
                format!(
                    "The address of the {self} leads to the master itself: leaving it out as a slave until it leads to \
                     another server. A balancer's address may do so for a while after a failover. Correct any other URL."
                ),
            ),
            NodeState::Stranger => (
                Error,
                format!(
                    "The {self} does not replay the log of the master, but belongs to another system: leaving it out. \
                     {more}"
                ),
            ),
            NodeState::Standby => (
                Error,
                match self.subject {
                    Subject::Server => format!(
                        "The {self} takes no writes: {more}. Writes fail with 503 until it does, or its address leads to \
                         another server. If that does not happen by itself, promote it, or name the server that takes \
                         writes as `url`."
                    ),
                    Subject::ReadUrl => format!(
                        "The {self} leads to a server that takes no writes: {more}. Reads that need the master are not \
                         served there. Give `read_url` an address of the master."
                    ),
                },
            ),
        })
    }

    /// The part of the log line that depends on the reason for a state.
    pub(super) fn explain<F: Fn(ServerId) -> Option<Arc<Self>>>(
        &self,
        state: NodeState,
        circumstances: &Circumstances<'_, F>,
    ) -> String {
        let Circumstances { why, remedies, master, follow_promotion, find } = circumstances;
        match state {
            NodeState::Up
            | NodeState::New
            | NodeState::Suspect
            | NodeState::Down
            | NodeState::NotCopied
            | NodeState::MasterItself
            | NodeState::TakenOut => String::new(),
            NodeState::Behind => match why {
                Why::SinceFailover(lag) => format!("up to {:.1} s", lag.as_secs_f64()),
                Why::Lag(Lag::AtMost(lag)) => format!("{:.1} s", lag.as_secs_f64()),
                Why::Lag(Lag::MoreThan(lag)) => format!("more than {:.1} s", lag.as_secs_f64()),
                Why::Nothing | Why::Untold(_) | Why::Full | Why::NoWrites(_) | Why::Rival { .. } => {
                    "some time".into()
                }
            },
            NodeState::LagUnknown => match why {
                Why::Full => "It has no connection to spare for health probes: raise the limit of the server, or lower \
                              `max_connections` of its pools."
                    .into(),
                Why::Untold(untold) => {
                    format!("{untold}. Say `unknown_lag = \"use\"` if it may serve all the same.")
                }
                Why::Nothing
                | Why::Lag(_)
                | Why::SinceFailover(_)
                | Why::NoWrites(_)
                | Why::Rival { .. } => String::new(),
            },
            NodeState::Contested => {
                let Why::Rival { rival, timelines } = why else { return String::new() };
                let rival = find(*rival).map(|rival| rival.to_string()).unwrap_or_default();
                let timelines = timelines.map_or_else(String::new, |(ours, theirs)| {
                    format!(" (timelines {ours} and {theirs}: the later one was promoted)")
                });
                format!(
                    "The {self} and the {rival} both take writes{timelines}: nothing is written to either, as what goes to \
                     the wrong one is lost. Stop the one that is out of date, or make it a standby of the other, and name \
                     the other as `url`."
                )
            }
            NodeState::Stranger => "Correct its URL, or make it anew from a copy of the master. If it is a logical replica, \
                                    say `logical = true` in its entry of `slaves`."
                .into(),
            NodeState::Diverged => remedies.rejoin.into(),
            NodeState::Standby => match why {
                Why::NoWrites(why) => (*why).into(),
                _ => remedies.no_writes.into(),
            },
            NodeState::SecondMaster if *master == Some(NodeState::Standby) => {
                let follow = if *follow_promotion { "" } else { ", or say `follow_promotion = true`" };
                format!("The configured master takes no writes: name this server as `url`{follow}.")
            }
            NodeState::SecondMaster => {
                "Make it replicate the master or, if it is to be the master, name it as `url`.".into()
            }
            NodeState::Promoted if *follow_promotion => String::new(),
            NodeState::Promoted => {
                " Name it as `url`, unless that is the address of a balancer, which leads there by itself.".into()
            }
        }
    }

    /// What follows for the application from a server that does not answer.
    pub(super) fn left_alone(&self) -> &'static str {
        match (self.subject, self.role()) {
            (Subject::ReadUrl, _) => {
                "Leaving it alone until it answers. Until then, pinned reads fail with 503, or go to slaves \
                 (`pinned_without_master`)."
            }
            (Subject::Server, Role::Master) => {
                "Leaving it alone until it answers. Until then, or until another server is the master, writes fail \
                 with 503."
            }
            (Subject::Server, Role::Slave) => {
                "Leaving it alone until it answers. Until then, its reads go to other servers."
            }
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
