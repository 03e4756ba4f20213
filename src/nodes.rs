//! The nodes of one database: choosing a slave, checking out, closing.

use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::{info, warn};
use rocket::futures::future::join_all;
use rocket::tokio;
use rocket_db_pools::Database;
use time::OffsetDateTime;

use crate::backend::{Access, Backend, Driver, Follower, Settings};
use crate::choice::{Choice, Intent, Master, Pinned, Reason, Role, Situation, Slaves, choose};
use crate::cluster::NodeStatus;
use crate::config::{Config, Consistency, NodeConfig, ReadFromSlaves, ReadMethods, SlaveConfig};
use crate::health::{Health, Replay};
use crate::lease::Lease;
use crate::monitor::{Monitor, Part, Questions, Server};
use crate::node::{Failure, Node, Opening};
use crate::pin::{Evidence, Needed, Pin, Pins, Window};
use crate::position::Position;

/// How long a shutdown waits for connections to be handed back.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// How often it looks whether they are.
const CLOSE_POLL: Duration = Duration::from_millis(10);

/// How long a reply waits to learn where the master's log stands.
const POSITION_BUDGET: Duration = Duration::from_millis(20);

/// The driver of a database.
pub(crate) type Db<D> = <<D as Database>::Pool as Backend>::Db;

/// The master and its slaves.
pub(crate) struct Nodes<D: Database<Pool: Backend>> {
    pub(crate) config: Config,
    pub(crate) pins: Option<Pins>,
    pub(crate) monitor: Monitor<Db<D>>,
    /// The master's, and one for each slave that may take its place.
    seats: Vec<Seat<D::Pool>>,
    slaves: Vec<Arc<Node<D::Pool>>>,
    /// By an operator.
    reads_at_master: AtomicBool,
    followers: Mutex<Vec<Follower>>,
    pub(crate) rerouted: Rerouted,
    /// How many requests and jobs are at it.
    pub(crate) sessions: AtomicUsize,
    database: PhantomData<fn() -> D>,
}

/// The pools of a master.
struct Seat<P: Backend> {
    read_write: Arc<Node<P>>,
    read_only: Arc<Node<P>>,
    /// For pinned reads alone: a crowd whose slaves are gone fills the others, and must not lock out
    /// whoever has just written.
    reserve: Option<Arc<Node<P>>>,
}

impl<P: Backend> Seat<P> {
    fn nodes(&self) -> impl Iterator<Item = &Arc<Node<P>>> {
        [&self.read_write, &self.read_only].into_iter().chain(&self.reserve)
    }
}

/// One node of a cluster, as one pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// That of a seat.
    MasterReadWrite(usize),
    /// That of a seat.
    MasterReadOnly(usize),
    Slave(usize),
}

impl At {
    pub(crate) fn writes(self) -> bool {
        matches!(self, Self::MasterReadWrite(_))
    }
}

/// A node of this cluster, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) at: At,
    pub(crate) reason: Reason,
}

/// A set of slaves, by index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SlaveSet(u64);

impl SlaveSet {
    pub(crate) const ALL: Self = Self(u64::MAX);

    pub(crate) fn with(self, index: usize) -> Self {
        Self(self.0 | 1 << index)
    }

    fn contains(self, index: usize) -> bool {
        self.0 & 1 << index != 0
    }
}

impl<D: Database<Pool: Backend>> Nodes<D> {
    /// Opens the pools, but no connection: a server that is down is no error.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub(crate) fn open(config: Config) -> Result<Self, String> {
        let (master, reads) = (&config.master, &config.master_reads);
        let health_of = |node: &NodeConfig, role| Health::new(Arc::from(node.name.as_str()), role);
        let master_health = health_of(master, Role::Master);
        let same_way = reads.address == master.address;
        let reads_health = if same_way { master_health.clone() } else { health_of(reads, Role::Master) };
        let slaves_health: Vec<_> =
            config.slaves.iter().map(|slave| health_of(&slave.node, Role::Slave)).collect();

        let open = |settings: &Settings, access, weight, timeout, health: &Arc<Health>| {
            let health = health.clone();
            Node::open(Opening { database: D::NAME, access, settings, weight, timeout, health })
        };
        let seat = |writes: &Settings, reads: &Settings, (master, way): (&Arc<Health>, &Arc<Health>)| {
            let timeout = config.master.settings.connect_timeout;
            let at_master = |max_connections| {
                let settings = Settings { max_connections, ..reads.clone() };
                open(&settings, Access::ReadMaster, 1, timeout, way)
            };
            Ok::<_, String>(Seat {
                read_write: open(writes, Access::ReadWrite, 1, timeout, master)?,
                read_only: at_master(reads.max_connections - config.reserve)?,
                reserve: match config.reserve {
                    0 => None,
                    reserve => Some(at_master(reserve)?),
                },
            })
        };
        let mut seats = vec![seat(&master.settings, &reads.settings, (&master_health, &reads_health))?];
        if config.checks.follow_promotion {
            for (slave, health) in config.slaves.iter().zip(&slaves_health) {
                let at = |settings: &Settings| Settings {
                    url: slave.node.settings.url.clone(),
                    ..settings.clone()
                };
                seats.push(seat(&at(&master.settings), &at(&reads.settings), (health, health))?);
            }
        }
        let slaves = config.slaves.iter().zip(&slaves_health).map(|(slave, health)| {
            let SlaveConfig { node, weight, follow: _ } = slave;
            open(&node.settings, Access::ReadSlave, *weight, config.slave_timeout, health)
        });
        let slaves = slaves.collect::<Result<_, _>>()?;

        let server = |part, settings: &Settings, access, health: &Arc<Health>| {
            let options = Db::<D>::options(settings, access)?;
            Ok::<_, String>(Server { part, options, health: health.clone(), questions: Questions::default() })
        };
        let mut servers = vec![server(Part::Master, &master.settings, Access::ReadMaster, &master_health)?];
        for (slave, health) in config.slaves.iter().zip(&slaves_health) {
            servers.push(server(Part::Slave, &slave.node.settings, Access::ReadSlave, health)?);
        }
        if !same_way {
            servers.push(server(Part::MasterReads, &reads.settings, Access::ReadMaster, &reads_health)?);
        }

        Ok(Self {
            seats,
            slaves,
            monitor: Monitor::new(servers, config.checks.clone()),
            pins: config.pin.as_ref().map(|pin| Pins::new(D::NAME, pin)),
            followers: Mutex::default(),
            rerouted: Rerouted::default(),
            sessions: AtomicUsize::new(0),
            reads_at_master: AtomicBool::new(false),
            database: PhantomData,
            config,
        })
    }

    pub(crate) fn read_pin(&self, token: &str) -> Option<Pin> {
        self.pins.as_ref()?.read(token, OffsetDateTime::now_utc())
    }

    /// The pin for a write that has just been committed, by a client that carried `before`.
    pub(crate) async fn pin(&self, before: Option<&Pin>) -> Option<String> {
        let now = OffsetDateTime::now_utc();
        let position = match self.config.pin.as_ref()?.consistency {
            Consistency::Window => None,
            Consistency::Position => {
                let position = tokio::time::timeout(POSITION_BUDGET, self.monitor.position());
                position.await.ok().flatten()
            }
        };
        match position {
            Some(position) => Some(self.pins.as_ref()?.sign(now, &Evidence::Position(position))),
            None => self.window_pin(before),
        }
    }

    /// The pin for a write that may be later than anything that can be known of the log now.
    pub(crate) fn window_pin(&self, before: Option<&Pin>) -> Option<String> {
        let evidence = before.map_or(Evidence::Nothing, Pin::earlier);
        Some(self.pins.as_ref()?.sign(OffsetDateTime::now_utc(), &evidence))
    }

    pub(crate) fn read_methods(&self) -> &ReadMethods {
        &self.config.read_methods
    }

    /// Chooses a node for a session that has been let down by those of `failed`.
    pub(crate) fn choose(&self, intent: Intent, pin: Option<&Pin>, failed: Failed) -> Place {
        let office = self.monitor.office();
        let master = match failed.master || !self.seats[office].read_only.health().answers() {
            true => Master::Unusable,
            false => Master::Usable,
        };
        let (pinned, chosen) = match pin {
            _ if intent.is_write() => (Pinned::No, None),
            None => (Pinned::No, self.choose_any(master, failed)),
            Some(pin) => self.choose_pinned(pin, master, failed),
        };
        let (access, reason) = choose(Situation {
            intent,
            pinned,
            slaves: match chosen {
                _ if self.slaves.is_empty() => Slaves::NotConfigured,
                Some(_) => Slaves::Usable,
                None => Slaves::Unusable,
            },
            master,
            read_from_slaves: match self.reads_at_master.load(Ordering::Acquire) {
                true => ReadFromSlaves::Never,
                false => self.config.read_from_slaves,
            },
            pinned_without_master: self.config.pinned_without_master,
        });
        let at = match (access, chosen) {
            (Access::ReadWrite, _) => At::MasterReadWrite(office),
            (Access::ReadSlave, Some(index)) => At::Slave(index),
            (Access::ReadMaster | Access::ReadSlave, _) => At::MasterReadOnly(office),
        };
        Place { at, reason }
    }

    fn choose_any(&self, master: Master, failed: Failed) -> Option<usize> {
        let usable = self.draw(|index| self.is_usable(index, failed));
        match (usable, master) {
            (Some(_), _) | (None, Master::Usable) => usable,
            (None, Master::Unusable) => {
                let what_will_do = self.config.pinned_without_master;
                self.draw(|index| {
                    self.is_candidate(index, failed)
                        && self.slaves[index].health().is_last_resort(what_will_do)
                })
            }
        }
    }

    /// A slave that is known to have replayed what a client wrote, else one that may have. Where all
    /// have another history, a position says nothing, and only the window stands.
    fn choose_pinned(&self, pin: &Pin, master: Master, failed: Failed) -> (Pinned, Option<usize>) {
        let any = || self.choose_any(master, failed);
        let (Needed::Position(position), CatchUp::Untried) = (pin.needs(), failed.catch_up) else {
            return (Pinned::ToMaster, any());
        };
        let that_is = |replay| {
            self.draw(|index| {
                self.is_usable(index, failed) && self.slaves[index].health().replay_of(position) == replay
            })
        };
        match that_is(Replay::Done).or_else(|| that_is(Replay::Behind)) {
            Some(index) => (Pinned::ToSlave, Some(index)),
            None if pin.window == Window::Open => (Pinned::ToMaster, any()),
            None => (Pinned::No, any()),
        }
    }

    fn is_usable(&self, index: usize, failed: Failed) -> bool {
        self.is_candidate(index, failed) && self.slaves[index].health().is_usable()
    }

    /// A slave that took the master's place is none.
    fn is_candidate(&self, index: usize, failed: Failed) -> bool {
        !failed.slaves.contains(index) && self.monitor.office() != index + 1
    }

    /// The less busy, for its weight, of two slaves that are drawn by weight: even load without a view
    /// of the whole (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001).
    fn draw(&self, from: impl Fn(usize) -> bool) -> Option<usize> {
        let first = self.draw_one(&from)?;
        let Some(second) = self.draw_one(|index| index != first && from(index)) else { return Some(first) };
        let (a, b) = (&self.slaves[first], &self.slaves[second]);
        let busier = a.busy() * b.weight > b.busy() * a.weight;
        Some(if busier { second } else { first })
    }

    fn draw_one(&self, from: impl Fn(usize) -> bool) -> Option<usize> {
        let slaves = || (0..self.slaves.len()).filter(|index| from(*index));
        let weight = |index: &usize| self.slaves[*index].weight;
        let total: u32 = slaves().map(|index| weight(&index)).sum();
        if total == 0 {
            return None;
        }
        let mut drawn = fastrand::u32(..total);
        let hit = |index: &usize| match drawn.checked_sub(weight(index)) {
            Some(rest) => {
                drawn = rest;
                false
            }
            None => true,
        };
        // A node that went down between the two walks may leave the draw without a hit.
        slaves().find(hit).or_else(|| slaves().next())
    }

    /// Whether the slave at `place` has replayed what a pin needs: known, or asked on the connection
    /// that is going to be used, and waited for.
    pub(crate) async fn catch_up(
        &self,
        index: usize,
        lease: &mut Lease<D::Pool>,
        position: &Position,
    ) -> Result<bool, sqlx::Error> {
        let health = self.slaves[index].health();
        if health.has_replayed(position, lease.open_since()) {
            return Ok(true);
        }
        if health.copied().is_some() {
            return Ok(false);
        }
        let asked = Instant::now();
        let replayed = Db::<D>::catch_up(lease.conn(), position, self.config.catch_up_timeout).await?;
        let Some(replayed) = replayed else { return Ok(false) };
        let caught_up = replayed.includes(position);
        health.saw(replayed, asked);
        Ok(caught_up)
    }

    /// Whether writes can be expected to succeed.
    pub(crate) fn is_writable(&self) -> bool {
        self.seats[self.monitor.office()].read_write.health().answers()
    }

    pub(crate) fn status(&self) -> Vec<NodeStatus> {
        let office = self.monitor.office();
        let status = |node: &Arc<Node<_>>, role, busy| {
            let health = node.health();
            let lag = health.lag().filter(|_| role == Role::Slave);
            NodeStatus { name: health.name().to_string(), role, state: health.state(), lag, busy }
        };
        let master = &self.seats[office];
        let busy = master.nodes().map(|node| node.busy()).sum();
        let slaves = self.slaves.iter().enumerate().filter(|(index, _)| index + 1 != office);
        let slaves = slaves.map(|(_, node)| status(node, Role::Slave, node.busy()));
        std::iter::once(status(&master.read_write, Role::Master, busy)).chain(slaves).collect()
    }

    pub(crate) fn slave(&self, name: &str) -> Option<&Health> {
        self.slaves
            .iter()
            .map(|node| node.health())
            .find(|health| **health.name() == *name)
            .map(|health| &**health)
    }

    pub(crate) fn read_from_master(&self, from_master: bool) {
        if self.reads_at_master.swap(from_master, Ordering::AcqRel) != from_master {
            let whom = if from_master { "the master alone" } else { "the slaves again" };
            info!("Reads of database `{}` go to {whom}.", D::NAME);
        }
    }

    pub(crate) fn node(&self, at: At) -> &Arc<Node<D::Pool>> {
        match at {
            At::MasterReadWrite(seat) => &self.seats[seat].read_write,
            At::MasterReadOnly(seat) => &self.seats[seat].read_only,
            At::Slave(index) => &self.slaves[index],
        }
    }

    pub(crate) fn choice(&self, place: Place) -> Choice {
        let node = self.node(place.at);
        Choice::new(node.health().name().clone(), node.role(), place.reason)
    }

    pub(crate) async fn acquire(&self, place: Place) -> Result<Lease<D::Pool>, Failure> {
        let node = self.node(place.at);
        let reserve = match (place.at, place.reason) {
            (At::MasterReadOnly(seat), Reason::Pinned) => self.seats[seat].reserve.as_ref(),
            _ => None,
        };
        match reserve {
            None => node.acquire().await,
            Some(reserve) if !node.has_room() => reserve.acquire().await,
            Some(reserve) => match node.acquire().await {
                Err(Failure::Busy(_)) => reserve.acquire().await,
                acquired => acquired,
            },
        }
    }

    /// Starts what works in the background of requests; ready once each follower has made its first
    /// copy, and each server has been looked at.
    pub(crate) async fn lift_off(&self) {
        let master = &self.config.master.settings;
        let slaves = self.config.slaves.iter().zip(&self.slaves);
        let started = slaves.filter_map(|(slave, node)| {
            let master = Db::<D>::options(master, Access::ReadWrite).ok()?;
            let options = Db::<D>::options(&slave.node.settings, Access::ReadSlave).ok()?;
            let started = Db::<D>::follow(&slave.node.name, &master, &options, slave.follow?);
            Some(async move {
                let follower = started.await;
                node.health().follows(follower.copied.clone());
                follower
            })
        });
        let started = join_all(started).await;
        self.followers.lock().unwrap_or_else(PoisonError::into_inner).extend(started);
        self.monitor.begin().await;
    }

    /// Closes the pools once no request is at them any more, or after a while: whoever holds a
    /// connection then keeps it, and it is closed when it comes back.
    pub(crate) async fn close(&self) {
        let followers = std::mem::take(&mut *self.followers.lock().unwrap_or_else(PoisonError::into_inner));
        let stop = tokio::task::spawn_blocking(move || drop(followers));

        let deadline = tokio::time::Instant::now() + CLOSE_TIMEOUT;
        while self.sessions.load(Ordering::Acquire) > 0 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(CLOSE_POLL).await;
        }
        self.monitor.end();
        let nodes = self.seats.iter().flat_map(Seat::nodes).chain(&self.slaves);
        let close = join_all(nodes.map(|node| node.close()));
        if tokio::time::timeout_at(deadline, close).await.is_err() {
            warn!("Connections to database `{}` are still in use at shutdown.", D::NAME);
        }
        if tokio::time::timeout_at(deadline, stop).await.is_err() {
            warn!("A slave of database `{}` is still being copied at shutdown.", D::NAME);
        }
    }
}

/// The nodes that have let a session down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

/// The handlers whose writes were rerouted, each of which is reported once.
#[derive(Debug, Default)]
pub(crate) struct Rerouted(Mutex<HashSet<String>>);

impl Rerouted {
    pub(crate) fn is_news(&self, handler: &str) -> bool {
        let mut handlers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        !handlers.contains(handler) && handlers.insert(handler.to_owned())
    }
}

impl<D: Database<Pool: Backend>> fmt::Debug for Nodes<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nodes")
            .field("database", &D::NAME)
            .field("masters", &self.seats.iter().flat_map(Seat::nodes).collect::<Vec<_>>())
            .field("slaves", &self.slaves)
            .finish_non_exhaustive()
    }
}
