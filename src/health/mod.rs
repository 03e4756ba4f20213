//! The health of one server. Its pools read it without waiting. The monitor makes the probes, [`Fleet::apply`] takes
//! note of their results, and `verdict` decides what the results of all servers mean.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
#[cfg(feature = "status")]
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use log::{error, log, warn};
use rocket::tokio::sync::{Notify, watch};

use crate::backend::{Access, Copied, Instance, NotTheMaster, is_login_refused};
use crate::config::{PinnedWithoutMaster, SlaveLog};
use crate::one_line::{Message, OneLine};
use crate::position::{Lag, Position};

use proxy::Proxy;
use state::AtomicState;

mod counts;
mod exploring;
mod fleet;
#[cfg(feature = "status")]
mod history;
mod lateness;
mod mastership;
mod proxy;
mod state;
mod verdict;

pub use counts::Change;
pub(crate) use counts::ServerCounts;
#[cfg(feature = "status")]
pub(crate) use history::{History, LAG_PERIOD, LagSample};
pub(crate) use mastership::{Mastership, ServerId, Term};
pub(crate) use proxy::{Enforced, Pooling};
pub use state::{NodeState, NodeStatus, Role};

pub(crate) use fleet::{Answer, Effects, Ends, Fleet, Probe};
#[cfg(feature = "status")]
pub(crate) use state::Mood;
pub(crate) use state::Remedies;
pub(crate) use verdict::Look;
use verdict::{FAILURES_BEFORE_FAILOVER, Finding, Succession, Verdicts, Why};

/// The position that a slave told at a look.
#[derive(Debug)]
struct Replayed {
    position: Position,
    /// The instance that told the position. `None` behind a pooler, where any instance may answer the next query.
    instance: Option<Instance>,
    /// When the look that told the position began.
    seen: Instant,
}

/// The kind of address that a [`Health`] describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Server,
    /// The address by which reads go to the master, where that is another one: `read_url`.
    ReadUrl,
}

pub(crate) struct Health {
    id: ServerId,
    subject: Subject,
    database: &'static str,
    name: Arc<str>,
    log: SlaveLog,
    mastership: Arc<Mastership>,
    state: AtomicState,
    /// True after an operator has taken the server out of use.
    taken_out: AtomicBool,
    /// True once the server has left the cluster. Changes of its state are not logged any more.
    is_leaving: AtomicBool,
    /// Probes in a row that found nothing wrong.
    successes: AtomicU8,
    /// Wakes the tasks that wait for the server when it becomes a suspect, or goes down.
    pub(crate) interrupted: Notify,
    /// Wakes the monitor to look at the server now.
    pub(crate) probe_requested: Notify,
    /// The number of probes that have ended.
    pub(crate) probes: watch::Sender<u64>,
    /// The generation of connections that may be used. Connections of an earlier one are closed wherever they are
    /// found. A new generation begins when the server goes down, another instance has its address, or another server
    /// becomes the master.
    generation: AtomicU64,
    origin: Instant,
    /// Milliseconds since `origin`. Connections that were last known to work before that have to prove it again.
    doubted: AtomicU64,
    /// Microseconds that a probe takes on average, or 0 if that is not known yet.
    round_trip: AtomicU64,
    /// The instance that the monitor's connection leads to, or 0 if that is not known.
    instance: AtomicU64,
    /// Milliseconds since `origin`. Until then, several servers are assumed to answer at the address.
    shared_until: AtomicU64,
    /// True behind a pooler that gives each transaction the connection that is free. No connection leads to a certain
    /// instance or session there.
    is_pooled: AtomicBool,
    proxy: Proxy,
    replayed: ArcSwapOption<Replayed>,
    /// The lag in milliseconds, or [`UNKNOWN`].
    lag: AtomicU64,
    /// The copy, for a slave that this crate copies itself.
    copied: OnceLock<Copied>,
    /// False if the latest error was a refused login.
    accepts_login: AtomicBool,
    counts: Arc<ServerCounts>,
    #[cfg(feature = "status")]
    history: Mutex<History>,
}

const UNKNOWN: u64 = u64::MAX;

impl Health {
    /// `log` is the log that the server replays as a slave.
    pub(crate) fn new(
        id: ServerId,
        subject: Subject,
        database: &'static str,
        name: Arc<str>,
        log: SlaveLog,
        mastership: Arc<Mastership>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            subject,
            database,
            name,
            log,
            mastership,
            state: AtomicState::new(NodeState::Up),
            taken_out: AtomicBool::new(false),
            is_leaving: AtomicBool::new(false),
            successes: AtomicU8::new(0),
            interrupted: Notify::new(),
            probe_requested: Notify::new(),
            probes: watch::Sender::new(0),
            generation: AtomicU64::new(0),
            origin: Instant::now(),
            doubted: AtomicU64::new(0),
            round_trip: AtomicU64::new(0),
            instance: AtomicU64::new(0),
            shared_until: AtomicU64::new(0),
            is_pooled: AtomicBool::new(false),
            proxy: Proxy::default(),
            replayed: ArcSwapOption::empty(),
            lag: AtomicU64::new(UNKNOWN),
            copied: OnceLock::new(),
            accepts_login: AtomicBool::new(true),
            counts: Arc::default(),
            #[cfg(feature = "status")]
            history: Mutex::default(),
        })
    }

    /// Marks a server that was discovered at run time. It serves after one good probe.
    pub(crate) fn mark_new(&self) {
        self.state.turn(NodeState::New);
    }

    pub(crate) fn id(&self) -> ServerId {
        self.id
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(crate) fn counts(&self) -> &Arc<ServerCounts> {
        &self.counts
    }

    /// The role of the server now.
    pub(crate) fn role(&self) -> Role {
        if self.mastership.term().master == self.id { Role::Master } else { Role::Slave }
    }

    /// Records a change of role, which has just happened.
    pub(crate) fn changed_role(&self) {
        self.counts.became(self.role(), self.state());
    }

    pub(crate) fn state(&self) -> NodeState {
        match self.state.load() {
            NodeState::Up if self.is_taken_out() => NodeState::TakenOut,
            state => state,
        }
    }

    /// The access that the monitor asks the server for.
    pub(crate) fn probe_access(&self) -> Access {
        match (self.subject, self.role()) {
            (Subject::ReadUrl, _) | (Subject::Server, Role::Master) => Access::MasterReads,
            (Subject::Server, Role::Slave) => Access::SlaveReads,
        }
    }

    /// True if the server is the master, and the only server that takes writes.
    pub(crate) fn takes_writes(&self) -> bool {
        self.role() == Role::Master && !matches!(self.state.load(), NodeState::Contested | NodeState::Standby)
    }

    /// True if the server may be chosen for a read.
    pub(crate) fn is_usable(&self) -> bool {
        self.state.load() == NodeState::Up && !self.is_taken_out()
    }

    /// True for a server that is read from while neither the master nor a usable slave can be: it is on its way back, it was
    /// promoted, or its lag is too large or unknown and `without_master` allows that.
    pub(crate) fn is_last_resort(&self, without_master: PinnedWithoutMaster) -> bool {
        self.state.load().is_last_resort(without_master, self.is_returning()) && !self.is_taken_out()
    }

    /// True if a session that has chosen the server can go on with it.
    pub(crate) fn answers(&self, wanted: Access) -> bool {
        self.state.load().goes_on(wanted, self.is_returning())
    }

    /// The error message for a request that is refused a connection.
    pub(crate) fn why_not(&self, wanted: Access) -> String {
        let state = self.state.load();
        if state == NodeState::Contested && wanted == Access::Writes {
            format!(
                "the {self} is not written to while another server of its system takes writes, too: stop one of them"
            )
        } else if state == NodeState::Standby {
            format!("the {self} takes no writes: it is in recovery, or read-only")
        } else {
            format!("the {self} cannot be reached")
        }
    }

    /// True when waiting requests must give up on this server. [`interrupted`](Self::interrupted) wakes them when that
    /// begins.
    pub(crate) fn is_gone(&self) -> bool {
        let state = self.state.load();
        state == NodeState::Suspect || state == NodeState::Down && !self.is_returning()
    }

    /// True if the latest probe found nothing wrong.
    fn is_returning(&self) -> bool {
        self.successes.load(Ordering::Acquire) > 0
    }

    pub(crate) fn is_taken_out(&self) -> bool {
        self.taken_out.load(Ordering::Acquire)
    }

    /// Takes the server out of use, or puts it back. Its connections stay open for the requests that use them.
    pub(crate) fn set_taken_out(&self, taken_out: bool) {
        if self.taken_out.swap(taken_out, Ordering::AcqRel) != taken_out {
            let how = match taken_out {
                true => "taken out of use: its reads go to other servers until it is put back",
                false => "put back into use",
            };
            self.counts.changed(self.state());
            warn!("The {self} was {how}.");
        }
    }

    pub(crate) fn leave(&self) {
        self.is_leaving.store(true, Ordering::Release);
    }

    /// Asks for a probe now, because something is odd.
    pub(crate) fn request_probe(&self) {
        self.probe_requested.notify_one();
    }

    /// Waits until the server has been probed once.
    pub(crate) async fn first_probe(&self) {
        let _ = self.probes.subscribe().wait_for(|probes| *probes > 0).await;
    }

    /// Marks the server as a suspect after a connection to it failed. It is left alone until a probe tells whether all
    /// connections fail.
    pub(crate) fn suspect(&self, error: &sqlx::Error) {
        self.fail(NodeState::Suspect, error);
        self.request_probe();
    }

    /// Marks the server as down after a probe failed. The server and its connections are left alone until good probes
    /// bring it back.
    pub(crate) fn went_down(&self, error: &sqlx::Error) {
        self.next_generation();
        self.fail(NodeState::Down, error);
    }

    /// Closes all connections after the server refused a write, as it would refuse all others. Another server may be
    /// the master, and the address may lead there. Each new connection asks for the role.
    pub(crate) fn refused_write(&self) {
        self.next_generation();
        self.request_probe();
    }

    fn fail(&self, state: NodeState, error: &sqlx::Error) {
        if NotTheMaster::of(error) == Some(NotTheMaster::Split) {
            self.found_split();
        }
        let accepts_login = !is_login_refused(error);
        let error = OneLine(Message(error));
        let accepted_login = self.accepts_login.swap(accepts_login, Ordering::AcqRel);
        match (accepted_login, accepts_login) {
            _ if self.is_leaving.load(Ordering::Acquire) => {}
            (true, false) => error!(
                "The {self} answers, but refuses the login: {error}. This is no outage: correct user, password or \
                 database in its URL, or the access rules of the server."
            ),
            // The state stays the same, so that no other line reports this.
            (false, true) => {
                warn!(
                    "The {self} cannot be used, now for another reason than the login: {error}. {}",
                    self.left_alone(),
                );
            }
            (true, true) | (false, false) => {}
        }
        self.doubt_connections();
        self.successes.store(0, Ordering::Release);
        // A server that was restarted may stand further back than before.
        self.replayed.store(None);
        self.turn(state, error);
        self.interrupted.notify_waiters();
    }

    /// Records a probe for which the server had no connection to spare. It can serve by the connections that are open
    /// already.
    pub(crate) fn found_full(&self) {
        if self.state.load() == NodeState::Suspect {
            self.turn(NodeState::Up, "");
        }
    }

    /// Records the state that a probe has found. `more` is added to the log line.
    pub(crate) fn found(&self, state: NodeState, more: impl fmt::Display) {
        // The first look at a server tells as much as can be known.
        let first = *self.probes.borrow() == 0;
        let before = self.state.load();
        match state {
            NodeState::Up => {
                let successes = self.successes.fetch_add(1, Ordering::AcqRel).saturating_add(1);
                self.successes.store(successes.min(SUCCESSES), Ordering::Release);
                let proved = match (self.role(), before) {
                    (_, NodeState::Up) => return,
                    (_, NodeState::New | NodeState::Suspect | NodeState::NotCopied) => true,
                    // No other server stands in for it.
                    (Role::Master, _) => true,
                    _ if self.subject == Subject::ReadUrl => true,
                    (Role::Slave, _) => successes >= SUCCESSES || first,
                };
                if !proved {
                    return;
                }
            }
            _ => self.successes.store(0, Ordering::Release),
        }
        self.turn(state, more);
    }

    /// Changes the state, and logs one line for each change.
    fn turn(&self, state: NodeState, more: impl fmt::Display) {
        let more = OneLine(more);
        let Some(before) = self.state.turn(state) else { return };
        if before != state {
            self.counts.changed(self.state());
            // Reads at the master over the connections of a standby may be late. A slave's connections at the master only
            // take room there.
            if matches!(state, NodeState::Standby | NodeState::MasterItself) {
                self.next_generation();
            }
        }
        if !matches!(state, NodeState::Suspect | NodeState::Down) {
            self.accepts_login.store(true, Ordering::Release);
        }
        if before == state || self.is_leaving.load(Ordering::Acquire) {
            return;
        }
        if let Some((level, line)) = self.line(state, before, &more) {
            log!(level, "{line}");
        }
    }

    fn accepts_login(&self) -> bool {
        self.accepts_login.load(Ordering::Acquire)
    }

    /// Doubts all connections that have not been used since, because one has failed.
    pub(crate) fn doubt_connections(&self) {
        self.doubted.store(self.now(), Ordering::Release);
    }

    /// True if a connection that worked at `verified` need not prove again that it works.
    pub(crate) fn trusts(&self, verified: Instant) -> bool {
        let doubted = self.doubted.load(Ordering::Acquire);
        doubted == 0 || millis(verified.saturating_duration_since(self.origin)) > doubted
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// True if connections of this generation may be used.
    pub(crate) fn keeps(&self, generation: u64) -> bool {
        generation == self.generation()
    }

    pub(crate) fn next_generation(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// The time in which a connection that has slept has to prove that it works: ten times what a probe takes, between
    /// 0.1 s and `most`. A request thus waits for a dead connection for less time than a probe may take.
    pub(crate) fn ping_timeout(&self, most: Duration) -> Duration {
        self.round_trip().map_or(most, |took| (took * 10).max(Duration::from_millis(100)).min(most))
    }

    /// The time that a probe takes on average: that of a round trip and of a simple query. `None` until a probe has found
    /// its connection open.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        match self.round_trip.load(Ordering::Acquire) {
            0 => None,
            micros => Some(Duration::from_micros(micros)),
        }
    }

    /// Records the time of a probe that had to open no connection. Each counts for a fifth, as in drivers of MongoDB:
    /// <https://github.com/mongodb/specifications/blob/master/source/server-selection/server-selection.md>
    pub(crate) fn record_round_trip(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let average = match self.round_trip.load(Ordering::Acquire) {
            0 => took,
            before => before - before / 5 + took / 5,
        };
        self.round_trip.store(average, Ordering::Release);
    }

    /// The instance that the monitor's connection leads to.
    pub(crate) fn instance(&self) -> Option<Instance> {
        Instance::from_bits(self.instance.load(Ordering::Acquire))
    }

    /// Records the instance that the monitor's connection leads to from now on. Returns the instance if the address has
    /// moved there from another one. Connections of earlier generations are closed then.
    pub(crate) fn record_instance(&self, instance: Option<Instance>) -> Option<Instance> {
        let before = self.instance();
        self.instance.store(instance.map_or(0, Instance::to_bits), Ordering::Release);
        let (before, instance) = before.zip(instance)?;
        if before == instance || self.is_shared() {
            return None;
        }
        self.next_generation();
        // It was the former server's.
        self.round_trip.store(0, Ordering::Release);
        Some(instance)
    }

    /// True while several servers answer at this address, as behind a proxy or a service.
    pub(crate) fn is_shared(&self) -> bool {
        self.shared_until.load(Ordering::Acquire) > self.now()
    }

    /// True if several servers have answered at this address at any time.
    pub(crate) fn was_shared(&self) -> bool {
        self.shared_until.load(Ordering::Acquire) != 0
    }

    /// Records that two instances have answered at this address at the same time. [`is_shared`](Self::is_shared) stays
    /// true for `lasts`.
    pub(crate) fn mark_shared(&self, lasts: Duration) {
        let until = self.now() + millis(lasts);
        if self.shared_until.swap(until, Ordering::AcqRel) == 0 {
            warn!(
                "The address of the {self} leads to several servers. The lag of only one of them is known, so that \
                 `max_lag` does not leave the others out, and each pinned read takes another round trip. Give each \
                 server an entry of its own in the configuration, or say `discover = \"dns\"` if the host's name has \
                 an address for each."
            );
        }
    }

    pub(crate) fn is_pooled(&self) -> bool {
        self.is_pooled.load(Ordering::Acquire)
    }

    /// Assumes a pooler, because the configuration says `prepared_statements = false`.
    pub(crate) fn expect_pooler(&self) {
        self.is_pooled.store(true, Ordering::Release);
    }

    /// Records that a pooler was found that the configuration does not mention.
    pub(crate) fn found_pooler(&self) {
        if self.is_pooled.swap(true, Ordering::AcqRel) {
            return;
        }
        warn!(
            "The {self} is reached through a pooler in transaction mode: it loses the settings of connections, such as \
             that they are read-only, and prepared statements may fail. Say `prepared_statements = false`, or switch \
             the pooler to session mode."
        );
    }

    /// Records the position and the instance that a look at the server found, which began at `seen`.
    ///
    /// The position of a slave that replays another log than the master's says nothing: [`replay_of`](Self::replay_of).
    pub(crate) fn record_position(&self, position: Position, instance: Option<Instance>, seen: Instant) {
        self.replayed.store(Some(Arc::new(Replayed { position, instance, seen })));
    }

    /// Records the position that an instance answered to a request, as [`record_position`](Self::record_position) does.
    /// Ignores the position of any other instance than the monitor's.
    pub(crate) fn record_answered_position(
        &self,
        position: Position,
        instance: Option<Instance>,
        asked: Instant,
    ) {
        if instance.is_some() && self.instance() == instance {
            self.record_position(position, instance, asked);
        }
    }

    pub(crate) fn set_lag(&self, lag: Option<Lag>) {
        let lag = match lag {
            Some(Lag::AtMost(lag) | Lag::MoreThan(lag)) => millis(lag),
            None => UNKNOWN,
        };
        self.lag.store(lag, Ordering::Release);
    }

    pub(crate) fn lag(&self) -> Option<Duration> {
        match self.lag.load(Ordering::Acquire) {
            UNKNOWN => None,
            ms => Some(Duration::from_millis(ms)),
        }
    }

    /// Adds the present lag and the choices to the history.
    #[cfg(feature = "status")]
    pub(crate) fn remember(&self) {
        let lag = self.lag().filter(|_| self.role() == Role::Slave && self.state() != NodeState::Down);
        self.history().add(Instant::now(), lag, &self.counts.choices);
    }

    #[cfg(feature = "status")]
    pub(crate) fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_copied(&self, copied: Copied) {
        let _ = self.copied.set(copied);
    }

    /// True for a slave that this crate copies itself.
    pub(crate) fn is_follower(&self) -> bool {
        self.copied.get().is_some()
    }

    pub(crate) fn copied(&self) -> Option<Position> {
        self.copied.get()?.position()
    }

    /// Tells whether the server is known to have replayed a position.
    pub(crate) fn replay_of(&self, position: &Position) -> Replay {
        if self.log == SlaveLog::Other {
            return Replay::Untold;
        }
        let replay = |replayed: Option<&Position>| match replayed {
            Some(replayed) if replayed.includes(position) => Replay::Done,
            Some(replayed) if !replayed.shares_history(position) => Replay::Elsewhere,
            _ => Replay::Behind,
        };
        match self.copied.get() {
            Some(copied) => replay(copied.position().as_ref()),
            None => replay(self.replayed.load().as_ref().map(|replayed| &replayed.position)),
        }
    }

    /// True if a connection to `instance` that has been open since `opened` leads to a server that is known to have
    /// replayed `position`. A position that one instance told says nothing of another instance. Nor does it say
    /// anything of a connection that was opened afterwards: the instance may have recovered from a crash in between,
    /// and then stand further back than before.
    pub(crate) fn has_replayed(
        &self,
        position: &Position,
        instance: Option<Instance>,
        opened: Instant,
    ) -> bool {
        if let Some(copied) = self.copied.get() {
            return copied.has(position, opened);
        }
        instance.is_some()
            && self.replayed.load().as_ref().is_some_and(|replayed| {
                replayed.instance == instance
                    && opened <= replayed.seen
                    && replayed.position.includes(position)
            })
    }

    /// The last known position of this very instance.
    pub(crate) fn position_of(&self, instance: Option<Instance>) -> Option<Position> {
        let replayed = self.replayed.load();
        let replayed = replayed.as_ref()?;
        (instance.is_some() && replayed.instance == instance).then(|| replayed.position.clone())
    }

    fn now(&self) -> u64 {
        millis(self.origin.elapsed()).max(1)
    }
}

/// Good probes in a row that a slave which was left out needs before it serves again.
const SUCCESSES: u8 = 2;

/// Whether a slave has replayed a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replay {
    Done,
    /// Not yet, as far as is known.
    Behind,
    /// The slave has another history, and may never replay the position.
    Elsewhere,
    /// The log that the slave replays tells no position. The slave may have replayed this one, but nothing proves it.
    Untold,
}

impl fmt::Display for Health {
    /// As in `` slave `db-2` of database `blog` ``, and `` master's `read_url` of database `blog` ``.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.subject {
            Subject::Server => write!(f, "{} `{}`", self.role(), self.name)?,
            Subject::ReadUrl => f.write_str("master's `read_url`")?,
        }
        write!(f, " of database `{}`", self.database)
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health")
            .field("name", &self.name)
            .field("state", &self.state())
            .field("lag", &self.lag())
            .finish_non_exhaustive()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(UNKNOWN - 1)
}

#[cfg(test)]
mod tests;
