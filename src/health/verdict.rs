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
use std::hash::{Hash, Hasher};
use std::time::{Duration, Instant};

use super::lateness::{Lateness, Master};
use super::{NodeState, ServerId};
use crate::backend::{Depth, Instance, Observation, ReportedRole};
use crate::config::{Checks, SlaveLog};
use crate::position::{Gap, GtidSet, History, Lag, Position};

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

#[derive(Clone, Debug, Default)]
struct Record {
    /// True once a probe has ended.
    found: bool,
    /// Probes in a row that failed.
    failures: u32,
    /// True if the server had no connection to spare at the latest probe.
    is_full: bool,
    /// True once this process has seen the server as a slave.
    seen_in_recovery: bool,
    /// True if the server took writes when it was first looked at.
    wrote_at_first: bool,
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
    /// The number of the latest master that has been seen to have the server's position.
    compared_with: Option<u32>,
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
    /// True if the latest position that the server told is one in a Galera cluster. Kept when the server fails.
    is_node: Option<bool>,
    /// When the server first took writes after it had been a slave. `None` for the present master.
    promoted: Option<Instant>,
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
    fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
        self.is_full = false;
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
        self.failures = 0;
        self.is_full = false;
        self.wrote_at_first |= !self.found && observed.role == ReportedRole::Master;
        self.seen_in_recovery |= observed.role == ReportedRole::Slave;
        self.was_master &= observed.role != ReportedRole::Slave;
        self.system = observed.system.or(self.system);
        if let Some(position) = &observed.position {
            self.is_node = Some(matches!(position, Position::Seqno { .. }));
        }
        self.latest = Some(observed.clone());
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
        self.failures < FAILURES_BEFORE_FAILOVER && !self.reports(ReportedRole::Slave)
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
                found,
                failures,
                is_full,
                seen_in_recovery,
                wrote_at_first,
                was_master,
                system,
                instance,
                as_master,
                latest,
                ahead,
                compared_with,
                diverged,
                errant,
                probes: _,
                lateness,
                place,
                in_doubt: _,
                judged,
                looked: _,
                role,
                is_node,
                promoted,
            } = record;
            let failures = (*failures).min(FAILURES_BEFORE_FAILOVER);
            (id, found, failures, is_full, seen_in_recovery, wrote_at_first, system, instance).hash(hasher);
            let ahead = ahead.as_ref().map(|ahead| (&ahead.position, ahead.missed));
            let compared = compared_with.map(|with| with == self.number);
            (was_master, as_master, latest, ahead, compared, diverged, errant).hash(hasher);
            (judged.map(|judged| judged as u8), role, is_node, promoted.is_some()).hash(hasher);
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
        let slaves_are_nodes = slaves().any(|slave| slave.is_node == Some(true))
            || slaves().all(|slave| slave.is_node.is_none());
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
        let contested = self.rival();
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
        match finding {
            Finding::Failed => record.failed(),
            Finding::Full => {
                record.failures = 0;
                record.is_full = true;
            }
            Finding::NotCopied => {}
            Finding::Observed(observed) => record.observed(observed, look),
        }
        // A full server has yet to tell whether it takes writes.
        record.found |= *finding != Finding::Full;
        record.probes = record.probes.wrapping_add(1);

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
                verdict.lag = self.lag(server, log, &latest, began);
                let (state, why) = self.judge_slave(server, log, &latest, verdict.lag, began);
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
            Finding::Observed(observed) if server == self.master => {
                self.judge_master(observed, began);
                let diverged = self.compare(began).into_iter();
                verdict.states.extend(diverged.map(|server| (server, NodeState::Diverged, Why::Nothing)));
            }
            Finding::Observed(_) if self.is_master_itself(server) => {
                verdict.states.push((server, NodeState::MasterItself, Why::Nothing));
            }
            Finding::Observed(observed) => {
                self.remember_ahead(server, log, observed, ended);
                self.find_place(server, log, observed, began);
                verdict.errant = self.find_errant(server, observed);
                verdict.lag = self.lag(server, log, observed, began);
                let (state, why) = self.judge_slave(server, log, observed, verdict.lag, began);
                verdict.lag = verdict.lag.filter(|_| state != NodeState::Diverged);
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

    fn pass_mastership(&mut self, new: ServerId, succession: Succession) {
        let former = std::mem::replace(&mut self.master, new);
        self.confirmed = true;
        if succession == Succession::Promotion {
            if let Some(former) = self.servers.get_mut(&former) {
                former.was_master = true;
            }
            self.process = None;
            self.begin_history();
        }
    }

    /// The lag of a slave at the observed position. While the master has no connection to spare for the monitor, it may
    /// have gone on since it was last seen.
    fn lag(&self, server: ServerId, log: SlaveLog, observed: &Observation, now: Instant) -> Option<Lag> {
        let position = observed.position.as_ref().filter(|_| log == SlaveLog::Masters)?;
        let master = &self.servers[&self.master];
        // The last position that the master told says nothing of what it has written since.
        if master.latest.as_ref().is_some_and(|latest| latest.position.is_none()) {
            return None;
        }
        let looked = self.history.looked()?;
        if master.is_full {
            let lag = self.history.lag(position, now)?;
            return Some(lag.at_least(now.saturating_duration_since(looked)));
        }
        if self.is_overtaken(server) {
            return self.without_master.as_ref().unwrap_or(&self.history).lag(position, now);
        }
        let at = if self.history.is_of_this_master() { looked } else { now };
        self.history.lag(position, at)
    }

    /// Remembers the slave's position in the master's log. While the master is gone, that position tells how far the
    /// log went at least.
    fn find_place(&mut self, server: ServerId, log: SlaveLog, observed: &Observation, began: Instant) {
        // A server that takes writes has what it had as a slave.
        if observed.role == ReportedRole::Master {
            return;
        }
        let place = self.place_of(server, log, observed);
        if let Some(place) = place.clone().filter(|_| self.master() == Master::Gone) {
            let known = self.without_master.get_or_insert_with(|| self.history.clone());
            // If two positions each lack a part of the other, neither is further.
            if known.latest().is_none_or(|latest| place.reaches(latest)) {
                known.record(place, began);
            }
        }
        self.servers.entry(server).or_default().place = place;
    }

    /// The slave's position, if it belongs to the master's history: the master must have been seen to have it.
    /// PostgreSQL tells an ordinary role the timeline of the latest restartpoint, which may be older than the replayed
    /// position.
    fn place_of(&self, server: ServerId, log: SlaveLog, observed: &Observation) -> Option<Position> {
        let record = &self.servers[&server];
        let is_comparable = log == SlaveLog::Masters
            && record.compared_with == Some(self.number)
            && record.diverged.is_none()
            && !self.is_of_other_system(observed.system);
        let known = self.history.latest().filter(|_| is_comparable)?;
        match (observed.position.as_ref()?, known) {
            (Position::Lsn { lsn, .. }, Position::Lsn { timeline, .. }) => {
                Some(Position::Lsn { timeline: *timeline, lsn: *lsn })
            }
            (position, known) => position.of_sources_of(known),
        }
    }

    /// True if the master is gone, and another server that is there has all of the master's log that this slave has,
    /// and more. The longer that lasts, the later this slave is. Transactions that no server has make no slave late, as
    /// no read can find them.
    fn is_overtaken(&self, server: ServerId) -> bool {
        let Some(ours) = self.servers[&server].place.as_ref().filter(|_| self.master() == Master::Gone)
        else {
            return false;
        };
        self.servers.iter().any(|(id, other)| {
            let is_further = |theirs: &Position| theirs.reaches(ours) && !ours.reaches(theirs);
            let is_there = *id != server && other.latest.is_some() && other.diverged.is_none();
            is_there && other.place.as_ref().is_some_and(is_further)
        })
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

    /// Begins the history of another master. Proofs and comparisons with the history of the one before are void.
    fn begin_history(&mut self) {
        self.number = self.number.wrapping_add(1);
        self.history.pass_on();
        self.without_master = None;
        for (id, record) in &mut self.servers {
            (record.ahead, record.diverged) = (None, None);
            if *id != self.master {
                record.place = None;
            }
        }
    }

    /// All that the master had when it last answered, where it tells.
    fn contents(&self) -> Option<&Position> {
        let latest = self.servers[&self.master].latest.as_ref()?;
        latest.contents.as_ref().or(latest.position.as_ref()).filter(|_| latest.role != ReportedRole::Slave)
    }

    /// Remembers a position that a slave has replayed and the master is not known to have, until the master is looked
    /// at again.
    fn remember_ahead(&mut self, server: ServerId, log: SlaveLog, observed: &Observation, told: Instant) {
        let (contents, number) = (self.contents().cloned(), self.number);
        let is_comparable = log == SlaveLog::Masters
            && observed.role != ReportedRole::Master
            && !self.is_of_other_system(observed.system);
        let record = self.servers.entry(server).or_default();
        let Some(position) = observed.position.as_ref().filter(|_| is_comparable) else {
            record.ahead = None;
            return;
        };
        let lasts = |proof: &Diverged| proof.lasts(position, record.instance, contents.as_ref());
        if !record.diverged.as_ref().is_some_and(lasts) {
            record.diverged = None;
        }
        if contents.is_some_and(|contents| !contents.lacks(position)) {
            (record.ahead, record.compared_with) = (None, Some(number));
        } else if !record.ahead.as_ref().is_some_and(|ahead| position.reaches(&ahead.position)) {
            record.ahead = Some(Ahead { position: position.clone(), told, missed: 0 });
        }
    }

    /// Finds transactions that a slave wrote for itself. The slave serves all the same, as it lacks nothing. Each
    /// source is reported once: if the slave is promoted, its transactions reach all other servers.
    fn find_errant(&mut self, server: ServerId, observed: &Observation) -> GtidSet {
        let written = self.contents().zip(observed.position.as_ref());
        let Some(errant) = written.map(|(master, slave)| slave.written_beside(master)) else {
            return GtidSet::default();
        };
        let record = self.servers.entry(server).or_default();
        let known = std::mem::replace(&mut record.errant, errant.clone());
        errant.sources_beyond(&known)
    }

    /// Finds slaves that had replayed, before this look at the master, transactions that the master turns out not to
    /// have.
    fn compare(&mut self, began: Instant) -> Vec<ServerId> {
        let Some(contents) = self.contents().cloned() else { return Vec::new() };
        let number = self.number;
        let mut diverged = Vec::new();
        for (id, record) in &mut self.servers {
            let Some(ahead) = record.ahead.as_mut().filter(|ahead| ahead.told <= began) else { continue };
            if !contents.lacks(&ahead.position) {
                (record.ahead, record.compared_with) = (None, Some(number));
                continue;
            }
            ahead.missed += 1;
            if ahead.missed >= Diverged::looks(&ahead.position) {
                let position = ahead.position.clone();
                record.ahead = None;
                record.diverged = Some(Diverged { position, instance: record.instance });
                diverged.push(*id);
            }
        }
        diverged
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

    fn judge_slave(
        &mut self,
        server: ServerId,
        log: SlaveLog,
        observed: &Observation,
        lag: Option<Lag>,
        now: Instant,
    ) -> (NodeState, Why) {
        let judged = self.judge_as_slave(server, log, observed, lag, now);
        self.servers.entry(server).or_default().judged = Some(judged.0);
        judged
    }

    fn judge_as_slave(
        &mut self,
        server: ServerId,
        log: SlaveLog,
        observed: &Observation,
        lag: Option<Lag>,
        now: Instant,
    ) -> (NodeState, Why) {
        let is_ours = self.system.is_some() && observed.system == self.system;
        match (observed.role, log) {
            (_, SlaveLog::Masters) if self.is_of_other_system(observed.system) => {
                return (NodeState::Stranger, Why::Nothing);
            }
            (ReportedRole::Master, SlaveLog::Masters) => return (self.beside_master(server), Why::Nothing),
            // A former master that takes writes, though nothing tells whether it replicates.
            (ReportedRole::Unknown, SlaveLog::Masters) if self.servers[&server].was_master => {
                return (NodeState::SecondMaster, Why::Nothing);
            }
            // Not a logical replica, but one of the master's own slaves that was promoted.
            (ReportedRole::Master, SlaveLog::Other) if is_ours => {
                return (self.beside_master(server), Why::Nothing);
            }
            _ => {}
        }
        let master = self.master();
        let record = &self.servers[&server];
        if record.diverged.is_some() && log == SlaveLog::Masters {
            return (NodeState::Diverged, Why::Nothing);
        }
        // The master may have written more since it was looked at.
        if record.ahead.is_some()
            && record.compared_with.is_none()
            && self.contents().is_some()
            && !self.servers[&self.master].is_full
        {
            return (NodeState::New, Why::Nothing);
        }
        let Some(lag) = lag else {
            return match master == Master::Answers && self.checks.unknown_lag.excludes(log) {
                true => (NodeState::LagUnknown, Why::Nothing),
                false => (NodeState::Up, Why::Nothing),
            };
        };
        let is_launching = || {
            self.known_since.is_some_and(|since| now.saturating_duration_since(since) < self.checks.interval)
        };
        // The slave may be behind by a moment only.
        if self.checks.is_too_much(lag)
            && matches!(lag, Lag::MoreThan(_))
            && master == Master::Answers
            && is_launching()
        {
            return (NodeState::New, Why::Nothing);
        }
        let overtaken = self.is_overtaken(server);
        let gap = observed.position.as_ref().map_or(Gap::Time(Duration::ZERO), |at| self.history.gap(at));
        let doubts = self.doubts(server, gap, overtaken, lag, now);
        let record = self.servers.entry(server).or_default();
        let is_late = if doubts {
            record.lateness.leaves_out() || record.judged == Some(NodeState::Behind)
        } else {
            // A slave did not fall behind if it lacks transactions of a master that is gone, or of one that took over.
            // It serves as soon as it has them.
            if record.lateness.leaves_out() || gap != Gap::Failover && !overtaken {
                record.lateness.observe(&self.checks, lag, now, master);
            }
            record.lateness.leaves_out() || self.checks.is_too_much(lag)
        };
        match (is_late, lag, gap) {
            (false, ..) => (NodeState::Up, Why::Nothing),
            (true, Lag::AtMost(lag), Gap::Failover) => (NodeState::Behind, Why::SinceFailover(lag)),
            (true, lag, _) => (NodeState::Behind, Why::Lag(lag)),
        }
    }

    /// True if a gap between two looks at the master may be the only reason why a slave seems late. The way to the
    /// master was lost, or this process stood still. The missing transactions were written at some time of the gap. If
    /// that was at its end, the slave is within `max_lag`. Later looks find that the slave has caught up, or that it
    /// lacks them for longer.
    ///
    /// A doubt ends after `max_lag`, once the master answers. Otherwise it would never end if a slow master makes a gap
    /// before each look.
    ///
    /// A gap between two masters raises no doubt: the slave may lack the latest writes to the former one.
    fn doubts(&mut self, server: ServerId, gap: Gap, overtaken: bool, lag: Lag, now: Instant) -> bool {
        /// The longest pause between two looks at the master that is no gap, in check intervals.
        const LONGEST_PAUSE: u32 = 2;

        let gap = match gap {
            Gap::Time(gap) => gap,
            Gap::Failover => Duration::ZERO,
        };
        let may_be_late = |max: &Duration| match lag {
            Lag::AtMost(most) => most > *max && most.saturating_sub(gap) <= *max,
            Lag::MoreThan(_) => false,
        };
        let (max, master) = (self.checks.max_lag.filter(may_be_late), self.master());
        let in_doubt = &mut self.servers.entry(server).or_default().in_doubt;
        match max {
            Some(max) if gap > self.checks.interval * LONGEST_PAUSE => {
                let lasts = now.saturating_duration_since(*in_doubt.get_or_insert(now));
                lasts <= max || master == Master::Gone && !overtaken
            }
            _ => {
                *in_doubt = None;
                false
            }
        }
    }

    /// The state of a server that takes writes and is not the present master. If this process has seen the server as
    /// a slave, it was promoted. A master that answers a later look may write what the promoted server never gets. A
    /// server that was never seen as a slave may be an old master that came back. The other servers lack its latest
    /// writes.
    fn beside_master(&self, server: ServerId) -> NodeState {
        let master = &self.servers[&self.master];
        let answers_since =
            |told| self.master() == Master::Answers && master.looked.is_some_and(|looked| looked >= told);
        match self.servers.get(&server).and_then(|record| record.promoted) {
            Some(told) if !answers_since(told) => NodeState::Promoted,
            _ => NodeState::SecondMaster,
        }
    }

    /// Judges promoted servers once more after a look at the master.
    fn judge_promoted(&mut self, verdict: &mut Verdict) {
        for server in self.servers.keys().copied().collect::<Vec<_>>() {
            let judged = self.servers[&server].judged;
            let is_beside = matches!(judged, Some(NodeState::Promoted | NodeState::SecondMaster));
            if server == self.master || !is_beside || self.is_master_itself(server) {
                continue;
            }
            let state = self.beside_master(server);
            if judged != Some(state) {
                self.servers.entry(server).or_default().judged = Some(state);
                verdict.states.push((server, state, Why::Nothing));
            }
        }
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

    /// True if the server's address leads to the master's own process. What that process does says nothing of another
    /// server.
    fn is_master_itself(&self, server: ServerId) -> bool {
        let was = || self.servers.get(&server).is_some_and(|record| record.as_master > 0);
        server != self.master && (self.has_instance_of_master(server) || was())
    }

    fn has_instance_of_master(&self, server: ServerId) -> bool {
        let instance = |server| self.servers.get(&server).and_then(|record: &Record| record.instance);
        server != self.master && instance(server).is_some() && instance(server) == instance(self.master)
    }

    /// Another server of the master's system that took writes when this process first looked at it, as the master does.
    /// Nothing tells which of the two was promoted, and writes to the wrong one are lost. So neither is written to
    /// before one of them is gone, or in recovery.
    fn rival(&self) -> Option<ServerId> {
        if self.confirmed {
            return None;
        }
        let is_rival = |(id, record): &(&ServerId, &Record)| {
            let ours = record.system.is_some() && (self.system.is_none() || record.system == self.system);
            **id != self.master
                && record.wrote_at_first
                && record.may_write()
                && ours
                && !self.is_master_itself(**id)
        };
        self.servers.iter().find(is_rival).map(|(id, _)| *id)
    }

    /// Confirms the master, once all servers have been looked at, and the master alone takes writes.
    fn confirm(&mut self) {
        self.confirmed |= self.master() == Master::Answers
            && self.servers.values().all(|record| record.found)
            && self.rival().is_none();
    }

    /// The server that takes the place of the master. There is none while the master is reachable and takes writes. Nor
    /// is there one if two servers qualify, because nothing tells which of them the others follow.
    fn successor(&self) -> Option<(ServerId, Succession)> {
        if let Some(server) = self.other_way() {
            return Some((server, Succession::SameProcess));
        }
        if self.servers[&self.master].may_write() {
            return None;
        }
        let succeeds = |(id, record): &(&ServerId, &Record)| {
            **id != self.master && !self.is_master_itself(**id) && self.succeeds(**id, record)
        };
        let mut successors = self.servers.iter().filter(succeeds);
        let (first, _) = successors.next()?;
        successors.next().is_none().then_some((*first, Succession::Promotion))
    }

    /// Another address that leads to the process of the present master. After a failover behind a balancer, the
    /// address of the slaves leads to the new master for some checks. Writes go to `url` as soon as it leads to that
    /// process. They go to any other address only once the master's address leads elsewhere, and is not `url`: the former
    /// master may still take writes at an address of its own while `url` is about to lead to the next one.
    fn other_way(&self) -> Option<ServerId> {
        let process = self.process?;
        // MariaDB and MySQL tell no role while they take writes.
        let leads_there = |id: &ServerId| {
            let record = &self.servers[id];
            let takes_writes = record.latest.is_some() && !record.reports(ReportedRole::Slave);
            *id != self.master && record.instance == Some(process) && takes_writes
        };
        let is_lost = self.master != self.configured && !self.servers[&self.master].may_write();
        let others = self.servers.keys().filter(|_| is_lost);
        std::iter::once(&self.configured).chain(others).find(|id| leads_there(id)).copied()
    }

    /// True if a server proves that it was promoted. It takes writes, and this process has seen it as a slave, or as
    /// the master's rival. Any other server may be an old master that came back. `url` needs neither proof, because its
    /// address may lead to another server by now.
    ///
    /// PostgreSQL begins a later timeline of the same system. `url` may be on the timeline of the present master,
    /// after a restart: then it has all that is known of that timeline. With MySQL and MariaDB, the server has all
    /// transactions that the master is known to have, also those that the master tells as a slave.
    fn succeeds(&self, server: ServerId, record: &Record) -> bool {
        let Some(latest) = &record.latest else { return false };
        let (master, is_configured) = (&self.servers[&self.master], server == self.configured);
        match self.history.latest().map(|known| (known, timeline(known))) {
            Some((known, Some(timeline))) => {
                let is_later =
                    |its: u32| its > timeline || is_configured && its == timeline && latest.has(known);
                (is_configured || record.seen_in_recovery || record.wrote_at_first && !self.confirmed)
                    && latest.role == ReportedRole::Master
                    && record.system.is_some()
                    && record.system == self.system
                    && record.timeline().is_some_and(is_later)
            }
            Some((known, None)) => {
                let told = master.latest.as_ref().and_then(|latest| latest.position.as_ref());
                record.left_recovery() && latest.has(known) && told.is_none_or(|told| latest.has(told))
            }
            None => self.leads_at_launch(record, latest),
        }
    }

    /// True if a server is the master though the configured one has never been seen as such. Either the configured one
    /// is a slave of it. Or the configured one was gone already when this process began, and the server has been
    /// promoted since. Without timelines, a server's position does not tell whether the others follow it: there, the
    /// promotion has to be seen.
    fn leads_at_launch(&self, record: &Record, latest: &Observation) -> bool {
        let configured = &self.servers[&self.master];
        // Another server that takes writes may not have been looked at yet.
        let is_found =
            |record: &Record| record.latest.is_some() || record.failures >= FAILURES_BEFORE_FAILOVER;
        if !self.servers.values().all(is_found) {
            return false;
        }
        let (may_lead, proves) = match record.timeline() {
            Some(_) => {
                (latest.role == ReportedRole::Master && record.system.is_some(), configured.latest.is_some())
            }
            None => (record.left_recovery(), false),
        };
        let follows = |slave: &Record| {
            let Some(its) = &slave.latest else { return true };
            match (record.timeline(), slave.timeline()) {
                (Some(ours), Some(theirs)) => slave.system == record.system && theirs <= ours,
                _ => its.position.as_ref().is_some_and(|theirs| latest.has(theirs)),
            }
        };
        may_lead && (proves || record.seen_in_recovery) && self.servers.values().all(follows)
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
