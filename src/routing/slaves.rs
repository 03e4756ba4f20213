//! Gathers the facts on which a choice depends from the servers, and draws one of several slaves.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use super::client::{Client, preferred};
use super::policy::{
    Candidates, Choice, ForPin, Intent, Master, Pinned, Reason, Situation, Slaves, Target, choose,
    is_current, stays,
};
use crate::backend::{Access, Driver};
use crate::cluster::{Inner, Reserve, Server};
use crate::config::{Affinity, PinnedWithoutMaster};
use crate::health::{Health, NodeState, Replay, ServerId, Term};
use crate::pin::{Needed, Pin, Window};
use crate::pool::{Asker, Checkout, Failure, Pool};

/// A decision: which server is asked, for which access, and why.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decision {
    pub(crate) server: ServerId,
    pub(crate) access: Access,
    pub(crate) reason: Reason,
    term: Term,
}

impl Decision {
    fn role(self) -> crate::health::Role {
        match self.access {
            Access::Writes | Access::MasterReads => crate::health::Role::Master,
            Access::SlaveReads => crate::health::Role::Slave,
        }
    }

    pub(crate) fn choice(self, name: Arc<str>) -> Choice {
        Choice::new(name, self.role(), self.reason)
    }

    pub(crate) fn is_current(self, present: Term) -> bool {
        is_current(self.access, self.term, present)
    }

    fn leads_where(self, other: Self) -> bool {
        (self.server, self.access, self.term) == (other.server, other.access, other.term)
    }
}

/// A decision, with its server.
pub(crate) struct Route<DB: Driver> {
    pub(crate) server: Arc<Server<DB>>,
    pub(crate) decision: Decision,
}

impl<DB: Driver> Route<DB> {
    pub(crate) fn choice(&self) -> Choice {
        self.decision.choice(self.server.health.name().clone())
    }

    /// Counts the choice.
    pub(crate) fn count(&self) {
        self.server.health.counts().choices.add(self.decision.reason);
    }

    /// True if the next statement of the session takes this route, too.
    pub(crate) fn stays(&self, present: Term, intent: Intent) -> bool {
        stays(self.decision.access, self.decision.term, present, intent)
    }

    /// True if the server has left the cluster, and must not be asked anything new.
    pub(crate) fn has_left(&self) -> bool {
        self.server.has_left()
    }

    pub(crate) fn leads_where(&self, decision: Decision) -> bool {
        self.decision.leads_where(decision)
    }

    pub(crate) fn pool(&self) -> Option<&Arc<Pool<DB>>> {
        self.server.pool(self.decision.access)
    }

    pub(crate) async fn check_out(&self, asker: Asker) -> Result<Checkout<DB>, Failure> {
        let reserve = if self.decision.reason == Reason::Pinned { Reserve::Open } else { Reserve::Closed };
        self.server.check_out(self.decision.access, reserve, asker).await
    }
}

impl<DB: Driver> Clone for Route<DB> {
    fn clone(&self) -> Self {
        Self { server: self.server.clone(), decision: self.decision }
    }
}

/// A set of slaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SlaveSet {
    All,
    These(Vec<ServerId>),
}

impl Default for SlaveSet {
    fn default() -> Self {
        Self::These(Vec::new())
    }
}

impl SlaveSet {
    pub(crate) fn add(&mut self, slave: ServerId) {
        if let Self::These(slaves) = self {
            slaves.push(slave);
        }
    }

    pub(crate) fn remove(&mut self, slave: ServerId) {
        if let Self::These(slaves) = self {
            slaves.retain(|other| *other != slave);
        }
    }

    pub(crate) fn contains(&self, slave: ServerId) -> bool {
        match self {
            Self::All => true,
            Self::These(slaves) => slaves.contains(&slave),
        }
    }
}

/// The servers that have let a session down.
#[derive(Debug, Default)]
pub(crate) struct Failed {
    pub(crate) master: bool,
    pub(crate) slaves: SlaveSet,
    pub(crate) catch_up: CatchUp,
}

/// Whether a slave has already been found to be behind what the client wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum CatchUp {
    #[default]
    Untried,
    InVain,
}

impl<DB: Driver> Inner<DB> {
    /// Chooses a server for a session that has been let down by the servers of `failed`.
    pub(crate) fn choose(
        &self,
        intent: Intent,
        client: Client,
        pin: Option<&Pin>,
        failed: &Failed,
    ) -> Route<DB> {
        let servers = self.servers.all();
        let term = self.mastership.term();
        let led = match (self.config.affinity, client) {
            (Affinity::Address, Client::Known(network)) => Some(network),
            _ => None,
        };
        let present =
            Present { servers: &servers, term, failed, led, local_threshold: self.config.local_threshold };
        let situation = Situation {
            intent,
            slaves: if self.config.slaves.is_empty() { Slaves::NotConfigured } else { Slaves::Configured },
            pinned: if pin.is_some() { Pinned::Yes } else { Pinned::No },
            share: self.read_share(),
            client,
            pinned_without_master: self.config.pinned_without_master,
        };
        let facts = Facts {
            servers: &present,
            pin,
            failed,
            pinned_without_master: self.config.pinned_without_master,
            catch_up_timeout: self.config.catch_up_timeout,
        };
        let (target, reason) = choose(situation, &facts);
        let (server, access) = match target {
            Target::Writes => (present.master_server(), Access::Writes),
            Target::MasterReads => (present.master_server(), Access::MasterReads),
            Target::Slave(slave) => (slave, Access::SlaveReads),
        };
        let decision = Decision { server: server.id(), access, reason, term };
        Route { server: server.clone(), decision }
    }
}

/// The servers, and the draw of one of several slaves.
pub(crate) trait Drawn {
    type Slave;

    /// The health of the address by which the master is read from.
    fn master(&self) -> &Health;

    /// Draws one of the slaves that have not let the session down and for which `from` is true.
    fn draw(&self, from: impl Fn(&Health) -> bool) -> Option<Self::Slave>;

    /// True if `is` is true for one of these slaves.
    fn any(&self, is: impl Fn(&Health) -> bool) -> bool;
}

/// The facts that a choice looks up.
pub(crate) struct Facts<'a, S> {
    pub(crate) servers: &'a S,
    pub(crate) pin: Option<&'a Pin>,
    pub(crate) failed: &'a Failed,
    pub(crate) pinned_without_master: PinnedWithoutMaster,
    pub(crate) catch_up_timeout: Duration,
}

/// The servers as a session finds them.
struct Present<'a, DB: Driver> {
    servers: &'a [Arc<Server<DB>>],
    term: Term,
    failed: &'a Failed,
    /// The network of the client, if the client is always led to the same slave.
    led: Option<u64>,
    local_threshold: Option<Duration>,
}

impl<S: Drawn> Candidates for Facts<'_, S> {
    type Slave = S::Slave;

    fn master(&self) -> Master {
        match self.failed.master || !self.servers.master().answers(Access::MasterReads) {
            true => Master::Unusable,
            false => Master::Usable,
        }
    }

    fn any_slave(&self) -> Option<Self::Slave> {
        let usable = self.servers.draw(Health::is_usable);
        if usable.is_some() || self.master() == Master::Usable {
            return usable;
        }
        // Slaves that may serve in any case come before slaves that are known to be late, or may be.
        let well = self.servers.draw(|slave| slave.is_last_resort(PinnedWithoutMaster::Fail));
        well.or_else(|| self.servers.draw(|slave| slave.is_last_resort(self.pinned_without_master)))
    }

    /// Only a configured master is ever `Standby`.
    fn master_as_slave(&self) -> Option<Self::Slave> {
        self.servers.draw(|slave| slave.state() == NodeState::Standby)
    }

    /// Draws a slave that is known to have replayed the client's writes, else one that may have replayed them soon. If
    /// all slaves have another history, the position says nothing, and only the pin's window counts.
    fn for_pin(&self) -> ForPin<Self::Slave> {
        let Some(pin) = self.pin else { return ForPin::AnySlave };
        let (Needed::Position(position), CatchUp::Untried) = (pin.needs(), self.failed.catch_up) else {
            return ForPin::Master;
        };
        let done = |slave: &Health| slave.is_usable() && slave.replay_of(position) == Replay::Done;
        if let Some(slave) = self.servers.draw(done) {
            return ForPin::Slave(slave);
        }
        // A slave has a write once the write is as old as the slave's lag. No request waits for longer than
        // `catch_up_timeout`.
        let age = (OffsetDateTime::now_utc() - pin.at).try_into().unwrap_or(Duration::ZERO);
        let in_time = |slave: &Health| slave.lag().is_none_or(|lag| lag <= age + self.catch_up_timeout);
        let soon = |slave: &Health| {
            slave.is_usable() && slave.replay_of(position) == Replay::Behind && in_time(slave)
        };
        match self.servers.draw(soon) {
            Some(slave) => ForPin::Slave(slave),
            None if pin.window == Window::Open => ForPin::Master,
            // Also for slaves that do not answer, which may come back without the write, and for slaves that tell no
            // position.
            None if self.servers.any(|slave| slave.replay_of(position) != Replay::Elsewhere) => {
                ForPin::Master
            }
            None => ForPin::AnySlave,
        }
    }
}

impl<'a, DB: Driver> Drawn for Present<'a, DB> {
    type Slave = &'a Arc<Server<DB>>;

    fn master(&self) -> &Health {
        &self.master_server().read_url_or_self().health
    }

    /// Of the slaves of the best rank, and of these, the near ones.
    ///
    /// The client's own slave, if clients are led to the same slave each time. Otherwise two slaves are drawn by
    /// weight, and the one with less load for its weight serves. This evens out the load without a view of the whole
    /// (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001).
    fn draw(&self, from: impl Fn(&Health) -> bool) -> Option<Self::Slave> {
        let rank = self.slaves().filter(|slave| from(&slave.health)).map(|slave| slave.rank).min()?;
        let ranked = |slave: &Server<DB>| slave.rank == rank && from(&slave.health);
        let longest = self.local_threshold.and_then(|threshold| {
            let round_trips = self.slaves().filter(|slave| ranked(slave));
            Some(round_trips.filter_map(|slave| slave.health.round_trip()).min()? + threshold)
        });
        let is_near = |slave: &Server<DB>| {
            let round_trip = slave.health.round_trip();
            longest.zip(round_trip).is_none_or(|(longest, round_trip)| round_trip <= longest)
        };
        let near = |slave: &Server<DB>| ranked(slave) && is_near(slave);
        if let Some(network) = self.led {
            let slaves = self.slaves().filter(|slave| near(slave));
            return preferred(network, slaves.map(|slave| (slave.number, slave.weight, slave)));
        }
        let first = self.draw_one(near)?;
        let Some(second) = self.draw_one(|slave| slave.id() != first.id() && near(slave)) else {
            return Some(first);
        };
        let busier = first.load() * second.weight > second.load() * first.weight;
        Some(if busier { second } else { first })
    }

    fn any(&self, is: impl Fn(&Health) -> bool) -> bool {
        self.slaves().any(|slave| is(&slave.health))
    }
}

impl<'a, DB: Driver> Present<'a, DB> {
    fn master_server(&self) -> &'a Arc<Server<DB>> {
        // INVARIANT: the master is never taken from the list.
        self.servers.iter().find(|server| server.id() == self.term.master).unwrap_or(&self.servers[0])
    }

    /// The slaves that have not let the session down. A slave that took the master's place is not among them. A
    /// configured master that is found to be a slave is.
    fn slaves(&self) -> impl Iterator<Item = &'a Arc<Server<DB>>> {
        let is_slave = |server: &&Arc<Server<DB>>| {
            server.may_be_slave()
                && (server.id() != self.term.master || server.health.state() == NodeState::Standby)
        };
        self.servers.iter().filter(is_slave).filter(|server| !self.failed.slaves.contains(server.id()))
    }

    /// Draws a slave by weight, in a single walk. Each slave replaces the one before with a probability of its share of
    /// the weights so far (Chao, "A general purpose unequal probability sampling plan", 1982).
    fn draw_one(&self, from: impl Fn(&Server<DB>) -> bool) -> Option<&'a Arc<Server<DB>>> {
        let mut random = fastrand::Rng::new();
        let (mut drawn, mut total) = (None, 0);
        for slave in self.slaves().filter(|slave| from(slave)) {
            total += slave.weight;
            if random.u32(..total) < slave.weight {
                drawn = Some(slave);
            }
        }
        drawn
    }
}
