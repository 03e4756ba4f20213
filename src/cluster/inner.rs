//! The state that the guards, handles and sessions of one database share.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use log::warn;
use rocket::futures::future::join_all;
use rocket::tokio;
use time::OffsetDateTime;

use super::discovery::{Resolver, warn_of_several_addresses};
use super::monitor::Monitor;
use super::server::{Purpose, Server};
use super::{ClusterCounts, Servers};
use crate::backend::{Access, Driver, Follower, Instance, catch_up};
use crate::config::{Affinity, Config, Consistency, ReadShare};
use crate::health::{Mastership, NodeStatus, Role};
use crate::pin::{self, Evidence, Pin, Pins};
use crate::pool::{Checkout, Sessions, StatementError};
use crate::position::Position;

/// How long a shutdown waits for connections to be handed back.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

/// The interval at which a shutdown looks whether they are.
const DRAIN_POLL: Duration = Duration::from_millis(10);

/// How long the reply to a write waits to learn where the master's log stands. After that, the reply carries a window
/// pin. _Default:_ 20 ms.
#[derive(Clone, Copy, Debug)]
pub struct PositionBudget(pub Duration);

impl Default for PositionBudget {
    fn default() -> Self {
        Self(Duration::from_millis(20))
    }
}

pub(crate) struct Inner<DB: Driver> {
    pub(crate) database: &'static str,
    pub(crate) config: Arc<Config>,
    pub(crate) pins: Option<Pins>,
    pub(crate) servers: Arc<Servers<DB>>,
    pub(crate) mastership: Arc<Mastership>,
    pub(super) monitor: Monitor<DB>,
    pub(super) resolver: Resolver,
    pub(super) position_budget: PositionBudget,
    /// The [`ReadShare`] that is configured, or that an operator has set.
    pub(super) read_share: AtomicU32,
    pub(super) followers: Mutex<Vec<Follower>>,
    pub(crate) rerouted: Rerouted,
    /// Limits the warning that positions are too large for pins to one.
    pub(super) oversized: Once,
    pub(crate) counts: ClusterCounts,
    /// The sessions of requests and jobs that use the database.
    pub(crate) sessions: Sessions,
}

impl<DB: Driver> Inner<DB> {
    pub(crate) fn read_pin(&self, token: &str) -> Option<Pin> {
        self.pins.as_ref()?.read(token, OffsetDateTime::now_utc())
    }

    /// The pin for writes that have been committed at the instance `written_at` after `since`, by a client that carried
    /// `before`. The monitor may still be connected to another instance, whose position says nothing of these writes.
    pub(crate) async fn pin(
        &self,
        before: Option<&Pin>,
        since: Instant,
        written_at: Option<Instance>,
    ) -> Option<String> {
        let now = OffsetDateTime::now_utc();
        let position = match self.config.consistency {
            Consistency::Window => None,
            Consistency::Position => {
                let master = self.servers.master(&self.mastership);
                let PositionBudget(budget) = self.position_budget;
                let position = tokio::time::timeout(budget, master.prober.position_requests.ask());
                let seen = position.await.ok().flatten();
                let seen = seen.filter(|seen| seen.instance == written_at);
                seen.map(|seen| self.cut(seen.position, before, since))
            }
        };
        Some(self.pins.as_ref()?.sign(now, &Evidence::of_write(position, before)))
    }

    /// Cuts the master's position down to the part that fits into a pin. A position that fits is kept whole. A cluster
    /// that has had many masters names each of them for ever. For its positions, two parts are kept: the client's own
    /// pin as far as it is still true, and all transactions later than a position that is so old that all pins for it
    /// have expired.
    ///
    /// That position is twice as old as a pin can last. A request may take long between its write and its pin, and
    /// cookies of requests at the same time replace each other.
    fn cut(&self, position: Position, before: Option<&Pin>, since: Instant) -> Position {
        let Some(pins) = self.pins.as_ref().filter(|_| !pin::fits(&position)) else { return position };
        let long_ago = since.checked_sub(pins.longest() * 2 + self.config.checks.timeout);
        let known = long_ago.and_then(|long_ago| self.monitor.stood_before(long_ago));
        let cut = match known {
            Some(known) => pin::cut(&position, &known, before.and_then(Pin::position)),
            None => position,
        };
        if !pin::fits(&cut) {
            self.oversized.call_once(|| {
                warn!(
                    "The position of database `{}` is too large for pins. They carry the time of the write instead, \
                     and their clients read at the master. This ends once this process has watched the master for \
                     {:?}, unless what was written in that time is too large as well.",
                    self.database,
                    pins.longest() * 2,
                );
            });
        }
        cut
    }

    /// The pin for a write that may be later than any position that can be known now.
    pub(crate) fn window_pin(&self, before: Option<&Pin>) -> Option<String> {
        Some(self.pins.as_ref()?.sign(OffsetDateTime::now_utc(), &Evidence::of_write(None, before)))
    }

    /// Tells whether a slave has replayed the position that a pin needs. If this is not known for the instance of the
    /// connection, the instance itself is asked, and has some time to catch up.
    pub(crate) async fn has_replayed(
        &self,
        checkout: &mut Checkout<DB>,
        position: &Position,
    ) -> Result<bool, StatementError> {
        let health = checkout.pool().health().clone();
        let (instance, opened) = (checkout.instance(), checkout.state().opened());
        let counts = &self.counts.catch_ups;
        if health.has_replayed(position, instance, opened) {
            counts.known.add_one();
            return Ok(true);
        }
        if health.is_follower() {
            return Ok(false);
        }
        let asked = Instant::now();
        let known = health.position_of(instance);
        let (conn, mut watch) = checkout.parts();
        let caught_up = std::pin::pin!(catch_up::<DB>(conn, position, known, self.config.catch_up_timeout));
        let replayed = watch.over(caught_up).await?;
        let has_replayed = replayed.as_ref().is_some_and(|replayed| replayed.includes(position));
        let times = if has_replayed { &counts.caught_up } else { &counts.timed_out };
        times.add(asked.elapsed());
        if let Some(replayed) = replayed {
            health.record_answered_position(replayed, instance, asked);
        }
        Ok(has_replayed)
    }

    /// True if writes can be expected to succeed.
    pub(crate) fn is_writable(&self) -> bool {
        self.servers.master(&self.mastership).health.answers(Access::Writes)
    }

    pub(super) fn status(&self) -> Vec<NodeStatus> {
        let servers = self.servers.all();
        let configured = servers.iter().filter(|server| server.purpose != Purpose::ReadUrl);
        let mut status: Vec<_> = configured
            .map(|server| {
                let (health, role) = (&server.health, server.health.role());
                NodeStatus {
                    name: health.name().to_string(),
                    role,
                    state: health.state(),
                    lag: health.lag().filter(|_| role == Role::Slave),
                    in_use: server.in_use(),
                    read_url: server.read_url_state(),
                }
            })
            .collect();
        status.sort_by_key(|node| node.role == Role::Slave);
        status
    }

    pub(super) fn slave(&self, name: &str) -> Option<Arc<Server<DB>>> {
        let servers = self.servers.all();
        let mut slaves = servers.iter().filter(|server| {
            server.is_slave() || server.may_be_slave() && server.health.role() == Role::Slave
        });
        slaves.find(|server| **server.health.name() == *name).cloned()
    }

    /// True if a choice depends on the client.
    pub(crate) fn tells_clients_apart(&self) -> bool {
        self.config.affinity == Affinity::Address || self.read_share().is_partial()
    }

    pub(crate) fn read_share(&self) -> ReadShare {
        ReadShare::from_bits(self.read_share.load(Ordering::Acquire))
    }

    pub(super) fn set_read_share(&self, share: ReadShare) {
        if self.read_share.swap(share.to_bits(), Ordering::AcqRel) != share.to_bits() {
            warn!("Reads of database `{}` that go to slaves were changed to: {share}.", self.database);
        }
    }

    /// Looks at all servers before the first write, if the database tells whether another server was promoted.
    pub(crate) async fn ignite(&self) {
        if DB::TELLS_PROMOTION && !self.config.slaves.is_empty() {
            self.monitor.begin().await;
        }
    }

    /// Starts the background tasks. Waits until each follower has made its first copy, and each server has been looked
    /// at.
    pub(crate) async fn lift_off(&self) {
        let master = &self.config.master.settings;
        let started = self.config.slaves.iter().filter_map(|slave| {
            let server = self.slave(&slave.server.name)?;
            let master = DB::options(master, Access::Writes).ok()?;
            let options = DB::options(&slave.server.settings, Access::SlaveReads).ok()?;
            let started = DB::follow(&server.health.to_string(), &master, &options, slave.follow?);
            Some(async move {
                let follower = started.await;
                server.health.set_copied(follower.copied.clone());
                follower
            })
        });
        let started = join_all(started).await;
        self.followers.lock().unwrap_or_else(PoisonError::into_inner).extend(started);
        let (database, config, resolver) = (self.database, self.config.clone(), self.resolver.clone());
        tokio::spawn(async move { warn_of_several_addresses(database, &config, &resolver).await });
        self.monitor.begin().await;
    }

    /// Closes the connections once no request uses them any more, or after 3 s. A request that still holds a connection
    /// then keeps it, and the connection is closed when it comes back. Until the 3 s are over, other shutdown fairings,
    /// which run at the same time, can still ask for connections.
    pub(crate) async fn shut_down(&self) {
        let followers = std::mem::take(&mut *self.followers.lock().unwrap_or_else(PoisonError::into_inner));
        let stop = tokio::task::spawn_blocking(move || drop(followers));

        let deadline = tokio::time::Instant::now() + DRAIN_TIMEOUT;
        while !self.sessions.have_all_ended() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(DRAIN_POLL).await;
        }
        self.monitor.end();
        let servers = self.servers.all();
        let pools: Vec<_> = servers.iter().flat_map(|server| server.pools.all()).cloned().collect();
        let drained = join_all(pools.iter().map(|pool| pool.drain()));
        if tokio::time::timeout_at(deadline, drained).await.is_err() {
            warn!(
                "Connections to database `{}` are still in use at shutdown, after {DRAIN_TIMEOUT:?}. Each is closed \
                 when its request or job drops it, or when the process ends.",
                self.database
            );
        }
        if tokio::time::timeout_at(deadline, stop).await.is_err() {
            warn!(
                "A slave of database `{}` is still being copied at shutdown. If the process ends before the copy, the \
                 slave keeps the rows of the copy before.",
                self.database
            );
        }
        if tokio::time::Instant::now() >= deadline {
            pools.iter().for_each(|pool| pool.close());
        } else {
            tokio::spawn(async move {
                tokio::time::sleep_until(deadline).await;
                pools.iter().for_each(|pool| pool.close());
            });
        }
    }
}

/// The handlers whose writes were rerouted. Each is reported once.
#[derive(Debug, Default)]
pub(crate) struct Rerouted(Mutex<HashSet<String>>);

impl Rerouted {
    /// Adds a handler. Returns true if it was not there yet.
    pub(crate) fn insert(&self, handler: &str) -> bool {
        let mut handlers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        !handlers.contains(handler) && handlers.insert(handler.to_owned())
    }
}

impl<DB: Driver> fmt::Debug for Inner<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner")
            .field("database", &self.database)
            .field("servers", &*self.servers.all())
            .finish_non_exhaustive()
    }
}
