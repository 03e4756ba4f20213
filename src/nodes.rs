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

use crate::backend::{Access, Backend, Driver, Follower};
use crate::choice::{Choice, Reason, Role};
use crate::config::{Config, Consistency, ReadMethods};
use crate::health::{Health, NodeStatus};
use crate::lease::Lease;
use crate::monitor::Monitor;
use crate::node::{Failure, Node};
use crate::pin::{Evidence, Pin, Pins};
use crate::position::Position;

mod choosing;
mod opening;

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
    pub(crate) fn read_pin(&self, token: &str) -> Option<Pin> {
        self.pins.as_ref()?.read(token, OffsetDateTime::now_utc())
    }

    /// The pin for a write that has just been committed, by a client that carried `before`.
    pub(crate) async fn pin(&self, before: Option<&Pin>) -> Option<String> {
        let now = OffsetDateTime::now_utc();
        let position = match self.config.consistency {
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

    /// Whether a slave is known to have replayed what a pin needs.
    pub(crate) fn has_replayed(&self, index: usize, lease: &Lease<D::Pool>, position: &Position) -> bool {
        self.slaves[index].health().has_replayed(position, lease.open_since())
    }

    /// Whether it has: asked on the connection that is going to be used, and waited for.
    pub(crate) async fn catch_up(
        &self,
        index: usize,
        lease: &mut Lease<D::Pool>,
        position: &Position,
    ) -> Result<bool, sqlx::Error> {
        let slave = &self.slaves[index];
        let health = slave.health();
        if health.copied().is_some() {
            return Ok(false);
        }
        let asked = Instant::now();
        let catch_up = Db::<D>::catch_up(lease.conn(), position, self.config.catch_up_timeout);
        let Some(replayed) = slave.unless_it_falls(catch_up).await? else { return Ok(false) };
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
        let (node, taken) = match reserve {
            None => (node, node.acquire().await?),
            Some(reserve) if !node.has_room() => (reserve, reserve.acquire().await?),
            Some(reserve) => match node.acquire().await {
                Err(Failure::Busy(_)) => (reserve, reserve.acquire().await?),
                taken => (node, taken?),
            },
        };
        Ok(Lease::new(node.clone(), taken))
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
