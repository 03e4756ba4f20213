//! The nodes of one database: choosing a slave, checking out, closing.

use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use log::warn;
use rocket::futures::future::join_all;
use rocket::tokio;
use rocket_db_pools::Database;
use time::OffsetDateTime;

use crate::backend::{Access, Backend, Driver, Follower, Settings};
use crate::choice::{Choice, Intent, Master, Reason, Situation, Slaves, choose};
use crate::config::{Config, NodeConfig, ReadMethods, SlaveConfig};
use crate::health::Health;
use crate::lease::Lease;
use crate::node::{Failure, Node, Opening};
use crate::pin::{Pin, Pins};

/// How long a shutdown waits for connections to be handed back.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// How often it looks whether they are.
const CLOSE_POLL: Duration = Duration::from_millis(10);

/// The driver of a database.
pub(crate) type Db<D> = <<D as Database>::Pool as Backend>::Db;

/// The master and its slaves.
pub(crate) struct Nodes<D: Database<Pool: Backend>> {
    pub(crate) config: Config,
    pub(crate) pins: Option<Pins>,
    master: Arc<Node<D::Pool>>,
    master_reads: Arc<Node<D::Pool>>,
    /// The master's connections for pinned reads alone: a crowd whose slaves are gone fills the
    /// others, and must not lock out whoever has just written.
    reserve: Option<Arc<Node<D::Pool>>>,
    slaves: Vec<Arc<Node<D::Pool>>>,
    followers: Mutex<Vec<Follower>>,
    pub(crate) rerouted: Rerouted,
    /// How many requests and jobs are at it.
    pub(crate) sessions: AtomicUsize,
    database: PhantomData<fn() -> D>,
}

/// One node of a cluster, as one pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    MasterReadWrite,
    MasterReadOnly,
    Slave(usize),
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
        let open = |node: &NodeConfig, access, max_connections, weight, timeout, health: &Arc<Health>| {
            let name = Arc::from(node.name.as_str());
            let settings = &Settings { max_connections, ..node.settings.clone() };
            let health = health.clone();
            Node::open(Opening { database: D::NAME, name, access, settings, weight, timeout, health })
        };

        let (master, reads) = (&config.master, &config.master_reads);
        let master_health = Arc::new(Health::new());
        let reads_health = match reads.address == master.address {
            true => master_health.clone(),
            false => Arc::new(Health::new()),
        };
        let timeout = master.settings.connect_timeout;
        let at_master =
            |max_connections| open(reads, Access::ReadMaster, max_connections, 1, timeout, &reads_health);
        let slaves = config.slaves.iter().map(|SlaveConfig { node, weight, follow: _ }| {
            let max_connections = node.settings.max_connections;
            let health = Arc::new(Health::new());
            open(node, Access::ReadSlave, max_connections, *weight, config.slave_timeout, &health)
        });

        Ok(Self {
            master: open(
                master,
                Access::ReadWrite,
                master.settings.max_connections,
                1,
                timeout,
                &master_health,
            )?,
            master_reads: at_master(reads.settings.max_connections - config.reserve)?,
            reserve: match config.reserve {
                0 => None,
                reserve => Some(at_master(reserve)?),
            },
            slaves: slaves.collect::<Result<_, _>>()?,
            pins: config.pin.as_ref().map(|pin| Pins::new(D::NAME, pin)),
            followers: Mutex::default(),
            rerouted: Rerouted::default(),
            sessions: AtomicUsize::new(0),
            database: PhantomData,
            config,
        })
    }

    pub(crate) fn read_pin(&self, token: &str) -> Option<Pin> {
        self.pins.as_ref()?.read(token, OffsetDateTime::now_utc())
    }

    pub(crate) fn sign_pin(&self) -> Option<String> {
        Some(self.pins.as_ref()?.sign(OffsetDateTime::now_utc()))
    }

    pub(crate) fn read_methods(&self) -> &ReadMethods {
        &self.config.read_methods
    }

    /// Chooses a node for a session that has been let down by those of `failed`.
    pub(crate) fn choose(&self, intent: Intent, pinned: bool, failed: Failed) -> Place {
        let slave = || self.draw(failed.slaves);
        let chosen = if intent.is_write() { None } else { slave() };
        let (access, reason) = choose(Situation {
            intent,
            pinned,
            slaves: match chosen {
                _ if self.slaves.is_empty() => Slaves::NotConfigured,
                Some(_) => Slaves::Usable,
                None => Slaves::Unusable,
            },
            master: match failed.master || !self.master_reads.is_up() {
                true => Master::Unusable,
                false => Master::Usable,
            },
            read_from_slaves: self.config.read_from_slaves,
            pinned_without_master: self.config.pinned_without_master,
        });
        let at = match (access, chosen) {
            (Access::ReadWrite, _) => At::MasterReadWrite,
            (Access::ReadSlave, Some(index)) => At::Slave(index),
            (Access::ReadMaster | Access::ReadSlave, _) => At::MasterReadOnly,
        };
        Place { at, reason }
    }

    /// The less busy, for its weight, of two usable slaves that are drawn by weight: even load without
    /// a view of the whole (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001).
    fn draw(&self, failed: SlaveSet) -> Option<usize> {
        let first = self.draw_one(failed)?;
        let Some(second) = self.draw_one(failed.with(first)) else { return Some(first) };
        let (a, b) = (&self.slaves[first], &self.slaves[second]);
        let busier = a.busy() * b.weight > b.busy() * a.weight;
        Some(if busier { second } else { first })
    }

    fn draw_one(&self, failed: SlaveSet) -> Option<usize> {
        let usable = || {
            let usable =
                |(index, node): &(usize, &Arc<Node<_>>)| !failed.contains(*index) && node.is_usable();
            self.slaves.iter().enumerate().filter(usable)
        };
        let total: u32 = usable().map(|(_, node)| node.weight).sum();
        if total == 0 {
            return None;
        }
        let mut drawn = fastrand::u32(..total);
        let hit = |(_, node): &(usize, &Arc<Node<_>>)| match drawn.checked_sub(node.weight) {
            Some(rest) => {
                drawn = rest;
                false
            }
            None => true,
        };
        // A node that went down between the two walks may leave the draw without a hit.
        usable().find(hit).map(|(index, _)| index).or_else(|| usable().next().map(|(index, _)| index))
    }

    pub(crate) fn node(&self, at: At) -> &Arc<Node<D::Pool>> {
        match at {
            At::MasterReadWrite => &self.master,
            At::MasterReadOnly => &self.master_reads,
            At::Slave(index) => &self.slaves[index],
        }
    }

    pub(crate) fn choice(&self, place: Place) -> Choice {
        let node = self.node(place.at);
        Choice::new(node.name.clone(), node.role(), place.reason)
    }

    pub(crate) async fn acquire(&self, place: Place) -> Result<Lease<D::Pool>, Failure> {
        let node = self.node(place.at);
        let reserve = self.reserve.as_ref().filter(|_| place.reason == Reason::Pinned);
        match reserve {
            None => node.acquire().await,
            Some(reserve) if !node.has_room() => reserve.acquire().await,
            Some(reserve) => match node.acquire().await {
                Err(Failure::Busy(_)) => reserve.acquire().await,
                acquired => acquired,
            },
        }
    }

    /// Starts the followers; ready once each has made its first copy.
    pub(crate) async fn follow(&self) {
        let master = &self.config.master.settings;
        let started = self.config.slaves.iter().filter_map(|slave| {
            let master = Db::<D>::options(master, Access::ReadWrite).ok()?;
            let options = Db::<D>::options(&slave.node.settings, Access::ReadSlave).ok()?;
            Some(Db::<D>::follow(&slave.node.name, &master, &options, slave.follow?))
        });
        let started = join_all(started).await;
        self.followers.lock().unwrap_or_else(PoisonError::into_inner).extend(started);
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
        let nodes = [&self.master, &self.master_reads].into_iter().chain(&self.reserve).chain(&self.slaves);
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
            .field("master", &self.master)
            .field("master_reads", &self.master_reads)
            .field("reserve", &self.reserve)
            .field("slaves", &self.slaves)
            .finish_non_exhaustive()
    }
}
