//! The meaning of all probes, taken together: a pure function of what they found.
//!
//! | what a probe finds                                               | the server is                               |
//! |------------------------------------------------------------------|---------------------------------------------|
//! | nothing, within `check_timeout`                                  | down                                        |
//! | a slave that takes writes                                        | left out, or the master: [`Verdicts::successor`] |
//! | … and was promoted, and the master has not answered since        | the last resort of reads: [`Verdicts::beside_master`] |
//! | a slave that is the master, by another address                   | left out: [`Verdicts::is_master_itself`]    |
//! | a slave of another system that is not declared to be `logical`   | left out                                    |
//! | a slave with transactions that the master, asked afterwards, lacks | left out: [`Verdicts::compare`]          |
//! | a slave further behind than `max_lag`                            | left out, until [`Lateness`] lets it return |
//! | … where a gap between two looks at the master may be all of that lag | as before, for up to `max_lag`: [`Verdicts::doubts`] |
//! | right after launch, a slave behind all that is known of the master | looked at again before it serves      |
//! | a slave whose lag cannot be known, though the master answers     | left out, if `unknown_lag` says so          |
//! | a slave of `follow` that was never copied                        | left out                                    |
//! | a master in recovery                                             | not to be written to                        |
//! | at launch, a master beside another server that takes writes      | not to be written to: [`Verdicts::rival`]   |
//! | anything else                                                    | used; a slave that was left out needs two good probes in a row before it serves again |
//!
//! A slave is looked at right after the master. Its lag is the time since the master's log went beyond the slave's
//! position. While the master is gone, its slaves are compared with each other. A slave that lacks transactions which
//! another server has is late. A slave that lacks only transactions which no server has is as late as it was when the
//! master was last looked at. No slave is left out then because its lag is unknown.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::time::{Duration, Instant};

use super::lateness::{Lateness, Master};
use super::{NodeState, ServerId};
use crate::backend::{Depth, Instance, Observation, ReportedRole};
use crate::config::{Checks, SlaveLog};
use crate::position::{GtidSet, History, Lag, Position};

mod comparison;
mod lag;
mod office;

/// Failed probes in a row after which a server counts as gone for good.
pub(crate) const FAILURES_BEFORE_FAILOVER: u32 = 3;

/// Probes after which values that seldom change are asked for again, even if nothing hints at a change.
const LIGHT_PROBES: u32 = 60;

/// The result of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    Failed,
    /// The server answers, but has no connection to spare for the monitor.
    Full,
    /// A slave that this crate copies has no copy yet.
    NotCopied,
    Observed(Observation),
}

/// The time of a look at a server. Its result was true at some moment in between.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
}

/// A look that took no time.
impl From<Instant> for Look {
    fn from(at: Instant) -> Self {
        Self { began: at, ended: at }
    }
}

/// The consequences of a finding.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// New states, of the server that was looked at, and of other servers that the finding concerns.
    pub(crate) states: Vec<(ServerId, NodeState, Why)>,
    pub(crate) lag: Option<Lag>,
    /// The server that takes the writes from now on, if it is another one.
    pub(crate) new_master: Option<ServerId>,
    pub(crate) succession: Succession,
    /// Transactions that are new at the server, from sources from which its master has none.
    pub(crate) errant: GtidSet,
}

/// The relation of a new master to the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Succession {
    /// Another server.
    #[default]
    Promotion,
    /// The same process at another address. Queries that run there go on.
    SameProcess,
}

/// The reason for a state, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Nothing,
    Lag(Lag),
    /// The lag cannot be known.
    Untold(Untold),
    /// The slave lacks transactions that the new master had when it took over. Its lag may be up to this.
    SinceFailover(Duration),
    /// The server has no connection to spare for the monitor.
    Full,
    /// The server's own reason for taking no writes.
    NoWrites(&'static str),
    Rival {
        rival: ServerId,
        timelines: Option<(u32, u32)>,
    },
}

/// The reason why a lag cannot be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Untold {
    /// The slave replays another log than the master's.
    OtherLog,
    BySlave,
    ByMaster,
    /// The log of one of the two is empty.
    Empty,
}

impl fmt::Display for Untold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherLog => {
                "It replays another log than the master's (`logical`), which has no position there"
            }
            Self::BySlave => "It tells no position in the log",
            Self::ByMaster => "The master tells no position in its log",
            Self::Empty => "Its log or the master's is empty, so that their positions cannot be compared",
        })
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Verdicts {
    checks: Checks,
    history: History,
    /// The same history, extended by positions that slaves have told since the master is gone. The master had written
    /// those before.
    without_master: Option<History>,
    /// The time of the first look that told a position of the master.
    known_since: Option<Instant>,
    /// The master's system.
    system: Option<u64>,
    /// The server of `url`.
    configured: ServerId,
    master: ServerId,
    /// The number of servers that were master before the present one, at whatever address.
    number: u32,
    /// The process of the present master, as it was last seen to take writes.
    process: Option<Instance>,
    /// True once this process has seen that no other server took writes when it began, or has followed a new master.
    confirmed: bool,
    servers: BTreeMap<ServerId, Record>,
}

/// The result of the latest probe of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    #[default]
    Awaited,
    Answered,
    /// The server had no connection to spare. It answers all the same.
    Full,
    /// The number of probes in a row that failed, up to [`FAILURES_BEFORE_FAILOVER`].
    Failed(u32),
}

impl Outcome {
    pub(crate) fn after(self, finding: &Finding) -> Self {
        match finding {
            Finding::Failed => Self::Failed((self.failures() + 1).min(FAILURES_BEFORE_FAILOVER)),
            Finding::Full => Self::Full,
            Finding::NotCopied | Finding::Observed(_) => Self::Answered,
        }
    }

    pub(crate) fn failures(self) -> u32 {
        match self {
            Self::Failed(failures) => failures,
            Self::Awaited | Self::Answered | Self::Full => 0,
        }
    }

    fn is_gone(self) -> bool {
        self.failures() >= FAILURES_BEFORE_FAILOVER
    }
}

/// What the first probe of a server has found. A full server has yet to tell whether it takes writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum FirstLook {
    #[default]
    Awaited,
    TookWrites,
    /// It was a slave, or gone, or did not tell.
    Other,
}

/// Whose numbers a server's positions are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Numbering {
    /// A Galera cluster's.
    Cluster,
    /// A server's own log's.
    Log,
}

#[derive(Clone, Debug, Default)]
struct Record {
    outcome: Outcome,
    first: FirstLook,
    /// True once this process has seen the server as a slave.
    seen_in_recovery: bool,
    /// True if the server was the master during this process, and has not been seen as a slave since.
    was_master: bool,
    system: Option<u64>,
    /// The instance that the address led to when it last answered, where that can be told.
    instance: Option<Instance>,
    /// Probes left during which this address still counts as the master's process.
    as_master: u32,
    latest: Option<Observation>,
    /// A position that the server has replayed, and that the master is not known to have.
    ahead: Option<Ahead>,
    compared: Option<Compared>,
    diverged: Option<Diverged>,
    /// Transactions that the server wrote for itself, as far as they have been reported.
    errant: GtidSet,
    probes: u32,
    lateness: Lateness,
    /// The server's position in the master's log when it last told one as a slave. A server that was promoted has at
    /// least that.
    place: Option<Position>,
    /// The time since which it cannot be told whether the slave is late: [`Verdicts::doubts`].
    in_doubt: Option<Instant>,
    /// The latest state that the server was given as a slave.
    judged: Option<NodeState>,
    /// When the latest look began that the server answered.
    looked: Option<Instant>,
    /// The latest role that the server told. It is kept when the server fails.
    role: ReportedRole,
    /// Whose number the latest position is that the server told. It is kept when the server fails.
    numbering: Option<Numbering>,
    /// When the server first took writes after it had been a slave. `None` for the present master.
    promoted: Option<Instant>,
}

/// The latest comparison in which a master was found to have the server's position.
#[derive(Clone, Debug)]
struct Compared {
    /// The number of that master.
    master: u32,
    /// The timeline that the server told, and its instance.
    timeline: Option<u32>,
    instance: Option<Instance>,
}

#[derive(Clone, Debug)]
struct Ahead {
    position: Position,
    /// When the slave had told the position.
    told: Instant,
    /// Looks at the master since then at which it did not have the position.
    missed: u32,
}

/// The proof that a slave is not on the master's history.
#[derive(Clone, Debug, Hash)]
struct Diverged {
    position: Position,
    /// The instance that told the position.
    instance: Option<Instance>,
}

impl Diverged {
    /// Looks at the master that have to miss a position before it is a proof. A MySQL master that waits for a
    /// semi-synchronous slave, by default for up to 10 s, has yet to count what others have applied:
    /// <https://dev.mysql.com/doc/refman/9.7/en/replication-semisync.html>
    fn looks(position: &Position) -> u32 {
        match position {
            Position::GtidSet(_) => 15,
            Position::Lsn { .. } | Position::Gtids(_) | Position::Seqno { .. } | Position::Time { .. } => 1,
        }
    }

    /// True if a server that is found at `position` is still on the other history. `master` is all that the master has.
    /// A master that has overtaken an LSN has still not taken over the other history before it. A slave that is rewound
    /// falls back. A slave that is made anew is another instance.
    fn lasts(&self, position: &Position, instance: Option<Instance>, master: Option<&Position>) -> bool {
        match (position, &self.position) {
            (Position::Lsn { lsn, .. }, Position::Lsn { lsn: proved, .. }) => {
                lsn == proved || lsn > proved && instance == self.instance
            }
            _ => master.is_none_or(|master| master.lacks(position)),
        }
    }
}

impl Record {
    /// Takes note of what a probe found.
    fn found(&mut self, finding: &Finding, look: Look) {
        self.outcome = self.outcome.after(finding);
        self.probes = self.probes.wrapping_add(1);
        if self.first == FirstLook::Awaited && *finding != Finding::Full {
            self.first = match finding {
                Finding::Observed(Observation { role: ReportedRole::Master, .. }) => FirstLook::TookWrites,
                _ => FirstLook::Other,
            };
        }
        match finding {
            Finding::Failed => self.failed(),
            Finding::Full | Finding::NotCopied => {}
            Finding::Observed(observed) => self.observed(observed, look),
        }
    }

    fn failed(&mut self) {
        // The latest observation may not hold any more.
        self.latest = None;
        (self.judged, self.in_doubt) = (None, None);
        self.ahead = None;
        // Behind a pooler, another instance may come back.
        if self.instance.is_none() {
            self.diverged = None;
        }
    }

    fn observed(&mut self, observed: &Observation, look: Look) {
        self.looked = Some(look.began);
        match (self.role, observed.role) {
            (ReportedRole::Slave, ReportedRole::Master) => self.promoted = Some(look.ended),
            (_, ReportedRole::Slave) => self.promoted = None,
            _ => {}
        }
        if observed.role != ReportedRole::Unknown {
            self.role = observed.role;
        }
        self.seen_in_recovery |= observed.role == ReportedRole::Slave;
        self.was_master &= observed.role != ReportedRole::Slave;
        self.system = observed.system.or(self.system);
        self.numbering = match observed.position {
            Some(Position::Seqno { .. }) => Some(Numbering::Cluster),
            Some(_) => Some(Numbering::Log),
            None => self.numbering,
        };
        self.latest = Some(observed.clone());
    }

    /// Takes note that the master of this number has a position that the server told.
    fn found_at(&mut self, master: u32, position: &Position) {
        self.ahead = None;
        self.compared = Some(Compared { master, timeline: timeline(position), instance: self.instance });
    }

    /// The number of the latest master that has been found to have a position of this server, which tells `position` now.
    /// The address may lead to another server since. An instance of MariaDB or MySQL is one server, however often it is
    /// restarted. An instance of PostgreSQL ends with a restart, but the timeline of a server never goes back.
    fn compared_with(&self, position: &Position) -> Option<u32> {
        let Compared { master, timeline: before, instance } = self.compared.as_ref()?;
        let is_same = match (timeline(position), before) {
            (Some(now), Some(before)) => now >= *before,
            _ => self.instance == *instance,
        };
        is_same.then_some(*master)
    }

    fn reports(&self, role: ReportedRole) -> bool {
        self.latest.as_ref().is_some_and(|latest| latest.role == role)
    }

    fn timeline(&self) -> Option<u32> {
        timeline(self.latest.as_ref()?.position.as_ref()?)
    }

    /// True if the server was a slave when it last told its role, and is none now. It must not have been the master
    /// since, because then it may be an old master.
    fn left_recovery(&self) -> bool {
        self.seen_in_recovery && !self.was_master && !self.reports(ReportedRole::Slave)
    }

    /// True while it cannot be ruled out that the server takes writes.
    fn may_write(&self) -> bool {
        !self.outcome.is_gone() && !self.reports(ReportedRole::Slave)
    }
}

impl Verdicts {
    pub(crate) fn new(master: ServerId, servers: &[ServerId], checks: Checks) -> Self {
        Self {
            checks,
            history: History::default(),
            without_master: None,
            known_since: None,
            system: None,
            configured: master,
            master,
            number: 0,
            process: None,
            confirmed: false,
            servers: servers.iter().map(|server| (*server, Record::default())).collect(),
        }
    }

    /// Hashes all that verdicts depend on, except times and the depth of probes, for a search through states.
    pub(crate) fn hash_known(&self, hasher: &mut impl Hasher) {
        let Self {
            checks: _,
            history,
            without_master,
            known_since: _,
            system,
            configured: _,
            master,
            number: _,
            process,
            confirmed,
            servers,
        } = self;
        (history.latest(), history.is_of_this_master(), system, master, process, confirmed).hash(hasher);
        without_master.as_ref().map(History::latest).hash(hasher);
        for (id, record) in servers {
            let Record {
                outcome,
                first,
                seen_in_recovery,
                was_master,
                system,
                instance,
                as_master,
                latest,
                ahead,
                compared,
                diverged,
                errant,
                probes: _,
                lateness,
                place,
                in_doubt: _,
                judged,
                looked: _,
                role,
                numbering,
                promoted,
            } = record;
            (id, outcome, first, seen_in_recovery, was_master, system, instance).hash(hasher);
            let ahead = ahead.as_ref().map(|ahead| (&ahead.position, ahead.missed));
            let compared = compared
                .as_ref()
                .map(|compared| (compared.master == self.number, compared.timeline, compared.instance));
            (as_master, latest, ahead, compared, diverged, errant).hash(hasher);
            (judged.map(|judged| judged as u8), role, numbering, promoted.is_some()).hash(hasher);
            place.hash(hasher);
            std::mem::discriminant(lateness).hash(hasher);
        }
    }

    /// Adds a server.
    pub(crate) fn add(&mut self, server: ServerId) {
        self.servers.entry(server).or_default();
    }

    /// Removes a server that is gone for good. The master stays.
    pub(crate) fn remove(&mut self, server: ServerId) {
        if server != self.master {
            self.servers.remove(&server);
        }
    }

    pub(crate) fn knows(&self, server: ServerId) -> bool {
        self.servers.contains_key(&server)
    }

    /// The result of the latest probe of a server.
    pub(crate) fn outcome(&self, server: ServerId) -> Outcome {
        self.servers.get(&server).map(|record| record.outcome).unwrap_or_default()
    }

    pub(crate) fn follows_promotion(&self) -> bool {
        self.checks.follow_promotion
    }

    /// Records the instance that the connection of the next finding leads to.
    pub(crate) fn record_instance(&mut self, server: ServerId, instance: Option<Instance>) {
        if let Some(record) = self.servers.get_mut(&server) {
            if record.instance != instance {
                record.ahead = None;
            }
            record.instance = instance;
        }
    }

    /// The depth of the next probe of a server. A standby's timeline matters once it may be another than the master's.
    pub(crate) fn depth(&self, server: ServerId) -> Depth {
        let Some(record) = self.servers.get(&server) else { return Depth::Light };
        let elsewhere = server != self.master
            && !self.is_of_other_system(record.system)
            && record.timeline() != self.history.latest().and_then(timeline);
        let second_master = || {
            let is_other = |id| id != self.master && !self.is_master_itself(id);
            let mut others = self.servers.iter().filter(|(id, _)| is_other(**id));
            // A logical replica always takes writes.
            others.any(|(_, record)| {
                record.reports(ReportedRole::Master) && !self.is_of_other_system(record.system)
            })
        };
        if elsewhere || record.probes.is_multiple_of(LIGHT_PROBES) || second_master() {
            Depth::Full
        } else {
            Depth::Light
        }
    }

    /// The latest position that the master is known to have had before `time`.
    pub(crate) fn stood_before(&self, time: Instant) -> Option<Position> {
        self.history.before(time).cloned()
    }

    /// The master's position as its slaves tell theirs. A node of a Galera cluster has one position among the nodes, and
    /// one in its own log for slaves that are no nodes. Where there are both kinds, it is that of the nodes.
    pub(crate) fn position_for_slaves(&self, observed: &mut Observation) -> Option<Position> {
        let slaves = || self.servers.iter().filter(|(id, _)| **id != self.master).map(|(_, slave)| slave);
        let slaves_are_nodes = slaves().any(|slave| slave.numbering == Some(Numbering::Cluster))
            || slaves().all(|slave| slave.numbering.is_none());
        match observed.in_cluster.take() {
            in_cluster @ Some(_) if slaves_are_nodes => in_cluster,
            _ => observed.position.take(),
        }
    }

    /// Judges what a look at a server found. `log` is the log that the server replays as a slave.
    pub(crate) fn judge(
        &mut self,
        server: ServerId,
        log: SlaveLog,
        look: impl Into<Look>,
        finding: &Finding,
    ) -> Verdict {
        let look = look.into();
        let Look { began, ended } = look;
        let (asked_as_master, contested) = (server == self.master, self.rival());
        let has_instance_of_master = self.has_instance_of_master(server);
        let record = self.servers.entry(server).or_default();
        record.as_master = match finding {
            _ if has_instance_of_master => FAILURES_BEFORE_FAILOVER,
            // The process may have been restarted, and been found here first.
            Finding::Observed(observed) if observed.role != ReportedRole::Slave => {
                record.as_master.saturating_sub(1)
            }
            Finding::Observed(_) => 0,
            Finding::Failed | Finding::Full | Finding::NotCopied => record.as_master,
        };
        record.found(finding, look);

        let mut verdict = Verdict::default();
        if let Some((new, succession)) = self.successor().filter(|_| self.checks.follow_promotion) {
            (verdict.new_master, verdict.succession) = (Some(new), succession);
            self.pass_mastership(new, succession);
        }
        let master = self.servers.entry(self.master).or_default();
        (master.promoted, master.judged, master.role) = (None, None, ReportedRole::Master);
        match finding {
            Finding::Failed => {}
            // Nothing is known of the server but its latest answer. The older that is, the further behind it may be.
            Finding::Full if server != self.master && !self.is_master_itself(server) => {
                let latest = self.servers[&server].latest.clone().unwrap_or_default();
                let lag = self.lag(server, log, &latest, began);
                verdict.lag = lag.ok();
                let (state, why) = self.judge_slave(server, log, &latest, lag, began);
                // Perhaps it replays as before: the lag is a bound, and no delay to look for.
                let (state, why) = match state {
                    NodeState::Behind | NodeState::LagUnknown => (NodeState::LagUnknown, Why::Full),
                    _ => (state, why),
                };
                // Only a look that the server answers lets it serve again.
                verdict.states.extend((state != NodeState::Up).then_some((server, state, why)));
            }
            Finding::Full => {}
            Finding::NotCopied => verdict.states.push((server, NodeState::NotCopied, Why::Nothing)),
            Finding::Observed(_)
                if server == self.master
                    && verdict.succession == Succession::SameProcess
                    && !asked_as_master
                    && self.depends_on_role(server) =>
            {
                // What it told as the master still holds, and stands in its record.
            }
            Finding::Observed(observed) if server == self.master => {
                self.judge_master(observed, began);
                let diverged = self.compare(began).into_iter();
                verdict.states.extend(diverged.map(|server| (server, NodeState::Diverged, Why::Nothing)));
            }
            Finding::Observed(_) if self.is_master_itself(server) => {
                verdict.states.push((server, NodeState::MasterItself, Why::Nothing));
            }
            // It has to be asked for the position that it tells as a slave.
            Finding::Observed(observed)
                if asked_as_master
                    && observed.role == ReportedRole::Slave
                    && self.depends_on_role(server) =>
            {
                verdict.states.push((server, NodeState::New, Why::Nothing));
            }
            Finding::Observed(observed) => {
                self.remember_ahead(server, log, observed, ended);
                self.find_place(server, log, observed, began);
                verdict.errant = self.find_errant(server, observed);
                let lag = self.lag(server, log, observed, began);
                let (state, why) = self.judge_slave(server, log, observed, lag, began);
                verdict.lag = lag.ok().filter(|_| state != NodeState::Diverged);
                verdict.states.push((server, state, why));
            }
        }
        self.confirm();
        let concerns_master =
            server == self.master || verdict.new_master.is_some() || contested != self.rival();
        if concerns_master {
            verdict.states.extend(self.master_state());
            self.judge_promoted(&mut verdict);
        }
        verdict
    }

    /// True if the server tells another position as a slave than as the master. A MariaDB tells what it has replayed, or
    /// what it has logged.
    fn depends_on_role(&self, server: ServerId) -> bool {
        let latest = self.servers[&server].latest.as_ref();
        match latest.and_then(|latest| latest.position.as_ref()) {
            Some(Position::Gtids(_)) | None => true,
            Some(
                Position::Lsn { .. } | Position::GtidSet(_) | Position::Seqno { .. } | Position::Time { .. },
            ) => false,
        }
    }

    fn judge_master(&mut self, observed: &Observation, began: Instant) {
        if observed.role == ReportedRole::Slave {
            return;
        }
        let (instance, process) = (self.servers[&self.master].instance, self.process);
        let before = self.history.latest().and_then(timeline);
        let now = observed.position.as_ref().and_then(timeline);
        // Another server was promoted, and has the former master's address. An instance of MariaDB or MySQL is one
        // server, however often it is restarted.
        let is_another = match (before, now) {
            (Some(before), Some(now)) => before != now,
            (None, None) => instance.is_some() && process.is_some() && instance != process,
            _ => false,
        };
        if is_another {
            self.begin_history();
        }
        self.process = instance;
        self.without_master = None;
        self.system = observed.system.or(self.system);
        if let Some(position) = &observed.position {
            let mut told = observed.flushed.as_ref().unwrap_or(position).clone();
            let had = self.servers.get_mut(&self.master).and_then(|master| master.place.take());
            // A flushed position is known to a page only. The server has at least what it had as a slave.
            if let (Position::Lsn { lsn, .. }, Some(Position::Lsn { lsn: had, .. })) = (&mut told, had) {
                *lsn = had.max(*lsn);
            }
            self.history.record(told, began);
            self.known_since.get_or_insert(began);
        }
    }

    /// The state of the master. `None` while it does not answer.
    fn master_state(&self) -> Option<(ServerId, NodeState, Why)> {
        let master = &self.servers[&self.master];
        let (state, why) = match (&master.latest, self.rival()) {
            (None, _) => return None,
            (Some(latest), _) if latest.role == ReportedRole::Slave => {
                (NodeState::Standby, latest.no_writes.map_or(Why::Nothing, Why::NoWrites))
            }
            (Some(_), Some(rival)) => {
                let timelines = master.timeline().zip(self.servers[&rival].timeline());
                (NodeState::Contested, Why::Rival { rival, timelines })
            }
            (Some(_), None) => (NodeState::Up, Why::Nothing),
        };
        Some((self.master, state, why))
    }

    fn is_of_other_system(&self, system: Option<u64>) -> bool {
        matches!((self.system, system), (Some(ours), Some(theirs)) if ours != theirs)
    }

    fn master(&self) -> Master {
        let master = &self.servers[&self.master];
        match master.latest.is_some() && !master.reports(ReportedRole::Slave) {
            true => Master::Answers,
            false => Master::Gone,
        }
    }
}

fn timeline(position: &Position) -> Option<u32> {
    match position {
        Position::Lsn { timeline, .. } => Some(*timeline),
        _ => None,
    }
}

#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod tests;
