//! One process's knowledge of its servers, and the rules by which it chooses among them, without connections. For a
//! model that explores all possible events.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use time::OffsetDateTime;

pub use crate::backend::session::Instance;
use crate::backend::{Access, Observation};
use crate::config::{Checks, PinnedWithoutMaster, ReadShare, SlaveLog, UnknownLag};
use crate::health::{Answer, Ends, Fleet, Health, Look, Mastership, Probe, Remedies, ServerId, Subject};
use crate::pin::{Evidence, Needed, Window};
use crate::position::Position;
use crate::routing::{
    CatchUp, Client, Drawn, Facts, Failed, Intent, Pinned, Situation, SlaveSet, Slaves, Target, choose,
    is_current, stays,
};
use crate::{NodeState, Reason};

/// An instance, numbered by the model.
pub fn instance(number: u32) -> Instance {
    Instance::from_bits(u64::from(number) + 1).expect("one more than nothing")
}

/// The time for which one master is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term(crate::health::Term);

/// A client's valid pin after a write, in position mode.
#[derive(Clone, Debug)]
pub struct Pin(crate::pin::Pin);

impl Pin {
    /// The pin after a write by a client that carried `before`. `position` is the master's, if it is known.
    pub fn of_write(position: Option<Position>, before: Option<&Self>) -> Self {
        let evidence = Evidence::of_write(position, before.map(|Self(pin)| pin));
        Self(crate::pin::Pin { at: OffsetDateTime::UNIX_EPOCH, evidence, window: Window::Open })
    }

    /// The position that a slave must have replayed, if a position is what the pin asks for.
    pub fn position(&self) -> Option<&Position> {
        match self.0.needs() {
            Needed::Master => None,
            Needed::Position(position) => Some(position),
        }
    }
}

impl Hash for Pin {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        match &self.0.evidence {
            Evidence::Nothing => 0.hash(hasher),
            Evidence::Position(position) => (1, position).hash(hasher),
            Evidence::Earlier(position) => (2, position).hash(hasher),
        }
    }
}

/// The servers that have failed a session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LetDown {
    /// The master did not answer a read.
    pub master: bool,
    /// The slaves that did not answer.
    pub slaves: Vec<usize>,
    /// A slave had not replayed the client's own writes.
    pub in_vain: bool,
}

/// The server that was chosen, for which access, and why.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// The server, by its index in the configuration.
    pub server: usize,
    /// The access that it was chosen for.
    pub access: Access,
    /// The reason of the choice.
    pub reason: Reason,
    /// The term in which it was chosen.
    pub term: Term,
}

impl Route {
    /// True if a statement may be sent on a connection that was checked out for this route.
    pub fn is_current(&self, process: &Process) -> bool {
        is_current(self.access, self.term.0, process.mastership.term())
    }

    /// True if the session's next statement takes this route, too.
    pub fn stays(&self, process: &Process, writes: bool) -> bool {
        stays(self.access, self.term.0, process.mastership.term(), intent(writes))
    }
}

fn intent(writes: bool) -> Intent {
    if writes { Intent::WriteMethod } else { Intent::ReadMethod }
}

/// What a probe found.
#[derive(Clone, Debug)]
pub enum Found {
    /// No answer.
    Nothing,
    /// A server without a connection to spare.
    Full,
    /// An answer.
    Observed(Observation),
}

/// What is left to do on connections after a probe.
#[derive(Debug)]
pub struct Effects(crate::health::Effects);

impl Effects {
    /// True if what is under way on connections to a server, of an earlier generation and for this access, has to end.
    pub fn ends(&self, server: usize, access: Access) -> bool {
        matches!(self.0.ends(id(server), access), Some(Ends::Reads | Ends::All))
    }

    /// True if another term has begun.
    pub fn begins_term(&self) -> bool {
        self.0.former_master.is_some()
    }

    /// True if the next probe needs a new connection.
    pub fn reconnects(&self) -> bool {
        self.0.reconnect
    }
}

/// The knowledge of one process. Its first server is the configured master.
pub struct Process {
    fleet: Fleet,
    mastership: Arc<Mastership>,
    servers: Vec<Arc<Health>>,
}

impl Process {
    /// A process that has not probed any server yet, and leaves out no server for its lag.
    pub fn new(servers: usize, follow_promotion: bool) -> Self {
        let second = Duration::from_secs(1);
        let checks = Checks {
            interval: second,
            timeout: second,
            max_lag: None,
            unknown_lag: UnknownLag::Use,
            follow_promotion,
        };
        let ids: Vec<_> = (0..servers).map(id).collect();
        let mastership = Arc::new(Mastership::new(ids[0]));
        let health = |id: &ServerId| {
            Health::new(
                *id,
                Subject::Server,
                "model",
                Arc::from(id.0.to_string()),
                SlaveLog::Masters,
                mastership.clone(),
            )
        };
        Self {
            fleet: Fleet::new(&ids, mastership.clone(), checks, Remedies { no_writes: "", rejoin: "" }),
            servers: ids.iter().map(health).collect(),
            mastership,
        }
    }

    /// Hashes all that the process's further steps depend on, except times and counters.
    pub fn hash_known(&self, hasher: &mut impl Hasher) {
        let Self { fleet, mastership, servers } = self;
        fleet.verdicts.hash_known(hasher);
        mastership.term().master.hash(hasher);
        servers.iter().for_each(|health| health.hash_known(hasher));
    }

    /// The present term.
    pub fn term(&self) -> Term {
        Term(self.mastership.term())
    }

    /// The master that the process follows.
    pub fn master(&self) -> usize {
        self.mastership.term().master.0 as usize
    }

    /// The state that the process has found a server in.
    pub fn state(&self, server: usize) -> NodeState {
        self.servers[server].state()
    }

    /// True if a server that was chosen may be asked for a connection.
    pub fn answers(&self, server: usize, access: Access) -> bool {
        self.servers[server].answers(access)
    }

    /// The generation of a connection that is opened now.
    pub fn generation(&self, server: usize) -> u64 {
        self.servers[server].generation()
    }

    /// True if a connection of this generation may be used.
    pub fn keeps(&self, server: usize, generation: u64) -> bool {
        self.servers[server].keeps(generation)
    }

    /// The instance that the monitor's connection leads to.
    pub fn instance(&self, server: usize) -> Option<Instance> {
        self.servers[server].instance()
    }

    /// Notes that the monitor's new connection leads to this instance. Returns true if connections to all others are
    /// dead.
    pub fn arrived(&self, server: usize, instance: Instance) -> bool {
        self.servers[server].record_instance(Some(instance)).is_some()
    }

    /// Notes that two instances have answered at the same time.
    pub fn share(&self, server: usize) {
        self.servers[server].mark_shared(std::time::Duration::from_secs(3600));
    }

    /// Ends a probe that began at `began`, on a connection to `instance`, as the monitor does.
    pub fn probed(
        &mut self,
        server: usize,
        instance: Option<Instance>,
        found: Found,
        began: Instant,
    ) -> Effects {
        let Self { fleet, servers, .. } = self;
        let health = &servers[server];
        let answer = match found {
            Found::Nothing => Answer::Failed(sqlx::Error::WorkerCrashed),
            Found::Full => Answer::Full,
            Found::Observed(observed) => Answer::Observed(observed),
        };
        let probe = Probe { look: Look::from(began), asked: health.probe_access(), instance, answer };
        Effects(fleet.apply(health, probe, |id| servers.get(id.0 as usize).cloned()))
    }

    /// Leaves out the rule that a master beside a rival is not written to.
    pub fn overlook_rivals(&self) {
        let master = &self.servers[self.master()];
        if master.state() == NodeState::Contested {
            master.found(NodeState::Up, "");
        }
    }

    /// Notes that a connection to this server has failed.
    pub fn suspect(&self, server: usize) {
        self.servers[server].suspect(&sqlx::Error::WorkerCrashed);
    }

    /// True if a connection leads to a server that is known to have replayed a position.
    pub fn has_replayed(
        &self,
        server: usize,
        position: &Position,
        instance: Instance,
        opened: Instant,
    ) -> bool {
        self.servers[server].has_replayed(position, Some(instance), opened)
    }

    /// Notes how far a server has replayed, as a connection has told. Returns whether that is far enough.
    pub fn told(
        &self,
        server: usize,
        replayed: Position,
        needed: &Position,
        instance: Instance,
        asked: Instant,
    ) -> bool {
        let has_replayed = replayed.includes(needed);
        self.servers[server].record_answered_position(replayed, Some(instance), asked);
        has_replayed
    }

    /// The time at which the server's replayed position was last seen.
    pub fn seen(&self, server: usize) -> Option<Instant> {
        self.servers[server].seen()
    }

    /// Chooses a server, in position mode. Of several slaves, `prefer` is chosen.
    pub fn choose(&self, writes: bool, pin: Option<&Pin>, let_down: &LetDown, prefer: usize) -> Route {
        let pin = pin.map(|Pin(pin)| pin);
        let failed = Failed {
            master: let_down.master,
            slaves: SlaveSet::These(let_down.slaves.iter().copied().map(id).collect()),
            catch_up: if let_down.in_vain { CatchUp::InVain } else { CatchUp::Untried },
        };
        let term = self.mastership.term();
        let master = term.master.0 as usize;
        let drawn = Preferred { servers: &self.servers, master, failed: &failed, prefer };
        let pinned_without_master = PinnedWithoutMaster::Stale;
        let situation = Situation {
            intent: intent(writes),
            slaves: Slaves::Configured,
            pinned: if pin.is_some() { Pinned::Yes } else { Pinned::No },
            share: ReadShare::ALL,
            client: Client::of(None),
            pinned_without_master,
        };
        let catch_up_timeout = Duration::from_millis(50);
        let facts = Facts { servers: &drawn, pin, failed: &failed, pinned_without_master, catch_up_timeout };
        let (target, reason) = choose(situation, &facts);
        let (server, access) = match target {
            Target::Writes => (master, Access::Writes),
            Target::MasterReads => (master, Access::MasterReads),
            Target::Slave(slave) => (slave, Access::SlaveReads),
        };
        Route { server, access, reason, term: Term(term) }
    }
}

impl Clone for Process {
    fn clone(&self) -> Self {
        let Self { fleet, mastership, servers } = self;
        let mastership = Arc::new(mastership.copy());
        let servers = servers.iter().map(|health| health.copy(mastership.clone())).collect();
        Self { fleet: fleet.copy(mastership.clone()), mastership, servers }
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("term", &self.term()).field("servers", &self.servers).finish()
    }
}

fn id(server: usize) -> ServerId {
    ServerId(server as u32)
}

/// Draws the preferred slave wherever it may be drawn.
struct Preferred<'a> {
    servers: &'a [Arc<Health>],
    master: usize,
    failed: &'a Failed,
    prefer: usize,
}

impl Preferred<'_> {
    fn slaves(&self) -> impl Iterator<Item = usize> {
        let is_slave = |server: &usize| *server != self.master && !self.failed.slaves.contains(id(*server));
        (0..self.servers.len()).filter(is_slave)
    }
}

impl Drawn for Preferred<'_> {
    type Slave = usize;

    fn master(&self) -> &Health {
        &self.servers[self.master]
    }

    fn draw(&self, from: impl Fn(&Health) -> bool) -> Option<usize> {
        let drawn = || self.slaves().filter(|slave| from(&self.servers[*slave]));
        drawn().find(|slave| *slave == self.prefer).or_else(|| drawn().next())
    }

    fn any(&self, is: impl Fn(&Health) -> bool) -> bool {
        self.slaves().any(|slave| is(&self.servers[slave]))
    }
}
