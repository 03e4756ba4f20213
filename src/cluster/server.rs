//! One server with its health, its probe and its pools.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rocket::futures::future::{join_all, select_ok};
use rocket::tokio::sync::Notify;
use rocket::tokio::time::{Instant, sleep};

use super::discovery::Discovered;
use super::monitor::Prober;
use crate::backend::{Access, Driver};
use crate::config::Rank;
use crate::health::{Health, NodeState, Role, ServerId};
use crate::pool::{Asker, Checkout, Failure, Pool};

/// The time for which sessions that read from a leaving server can go on with another query there.
const DEPARTURE_TIMEOUT: Duration = Duration::from_secs(30);

/// The interval at which a leaving server looks whether its connections are in use.
const DEPARTURE_POLL: Duration = Duration::from_millis(50);

pub(crate) struct Server<DB: Driver> {
    pub(crate) health: Arc<Health>,
    pub(crate) purpose: Purpose,
    /// How often the slave is drawn among slaves of its rank. Never 0.
    pub(crate) weight: u32,
    pub(crate) rank: Rank,
    /// A hash of the server's name. It is the same in each process, to lead a client to the same slave.
    pub(crate) number: u64,
    pub(super) prober: Prober<DB>,
    pub(super) pools: Pools<DB>,
    /// The address by which its reads go while it is the master, where that is another one.
    pub(super) read_url: Option<Arc<Server<DB>>>,
    /// The name and the address by which a server was found at run time.
    pub(super) discovered: Option<Discovered>,
    pub(super) departure: Departure,
}

/// The departure of a server from the cluster.
#[derive(Debug, Default)]
pub(super) struct Departure {
    requested: Notify,
    is_over: AtomicBool,
}

/// The purpose for which a server is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Master,
    Slave,
    /// The address by which reads go to the master, where that is another one: `read_url`.
    ReadUrl,
}

/// Whether a read at the master may use the connections that are reserved for pinned reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reserve {
    Closed,
    Open,
}

/// The pools of one server, for each role that it may have.
pub(super) struct Pools<DB: Driver> {
    /// For writes, as the master.
    pub(super) writes: Option<Arc<Pool<DB>>>,
    /// For reads, as the master.
    pub(super) master_reads: Option<Arc<Pool<DB>>>,
    /// For pinned reads only, as the master. Without slaves, all reads fill the other connections. They must not lock
    /// out clients that have just written.
    pub(super) reserve: Option<Arc<Pool<DB>>>,
    /// For reads, as a slave.
    pub(super) slave_reads: Option<Arc<Pool<DB>>>,
}

impl<DB: Driver> Pools<DB> {
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Pool<DB>>> {
        let Self { writes, master_reads, reserve, slave_reads } = self;
        [writes, master_reads, reserve, slave_reads].into_iter().flatten()
    }
}

impl<DB: Driver> Server<DB> {
    pub(crate) fn id(&self) -> ServerId {
        self.health.id()
    }

    /// True if the server is configured as a slave.
    pub(crate) fn is_slave(&self) -> bool {
        self.purpose == Purpose::Slave
    }

    /// True if the server can serve reads as a slave at all.
    pub(crate) fn may_be_slave(&self) -> bool {
        self.pools.slave_reads.is_some()
    }

    /// Begins the departure of a server that is in no list any more. Sessions that read from it go on.
    pub(super) fn leave(&self) {
        self.health.leave();
        self.departure.requested.notify_one();
    }

    /// True once queries that were led here have to be led elsewhere.
    pub(crate) fn has_left(&self) -> bool {
        self.departure.is_over.load(Ordering::Acquire)
    }

    /// Waits until the server has left and all its connections are closed. Idle connections are closed at once, the
    /// others when they come back. Sessions that have read from the server may query it again until no connection is in
    /// use, for 30 s at most.
    pub(super) async fn depart(&self) {
        self.departure.requested.notified().await;
        let deadline = Instant::now() + DEPARTURE_TIMEOUT;
        let is_in_use = || self.pools.all().filter(|pool| pool.vacate() > 0).count() > 0;
        while is_in_use() && Instant::now() < deadline {
            sleep(DEPARTURE_POLL).await;
        }
        self.departure.is_over.store(true, Ordering::Release);
        join_all(self.pools.all().map(|pool| pool.drain())).await;
        self.pools.all().for_each(|pool| pool.close());
    }

    /// The server that serves reads while this one is the master.
    pub(crate) fn read_url_or_self(&self) -> &Self {
        self.read_url.as_deref().unwrap_or(self)
    }

    /// The state of its `read_url` while it is the master, where that is another address.
    pub(crate) fn read_url_state(&self) -> Option<NodeState> {
        let read_url = self.read_url.as_ref().filter(|_| self.health.role() == Role::Master)?;
        Some(read_url.health.state())
    }

    pub(crate) fn pool(&self, access: Access) -> Option<&Arc<Pool<DB>>> {
        match access {
            Access::Writes => self.pools.writes.as_ref(),
            Access::MasterReads => self.read_url_or_self().pools.master_reads.as_ref(),
            Access::SlaveReads => self.pools.slave_reads.as_ref(),
        }
    }

    pub(crate) fn pools(&self) -> impl Iterator<Item = &Arc<Pool<DB>>> {
        self.pools.all()
    }

    /// All its pools, and those of its `read_url`.
    pub(crate) fn pools_with_read_url(&self) -> impl Iterator<Item = &Arc<Pool<DB>>> {
        let read_url = self.read_url.iter().flat_map(|server| server.pools.all());
        self.pools.all().chain(read_url)
    }

    /// The load of its pool for reads as a slave.
    pub(crate) fn load(&self) -> u32 {
        self.pools.slave_reads.as_ref().map_or(0, |pool| pool.load())
    }

    /// The number of its connections that are in use for its present role.
    pub(super) fn in_use(&self) -> u32 {
        match self.health.role() {
            Role::Slave => self.pools.slave_reads.as_ref().map_or(0, |pool| pool.in_use()),
            Role::Master => {
                let Pools { writes, .. } = &self.pools;
                let Pools { master_reads, reserve, .. } = &self.read_url_or_self().pools;
                [writes, master_reads, reserve].into_iter().flatten().map(|pool| pool.in_use()).sum()
            }
        }
    }

    /// Checks out a connection for this purpose.
    pub(crate) async fn check_out(
        &self,
        access: Access,
        reserve: Reserve,
        asker: Asker,
    ) -> Result<Checkout<DB>, Failure> {
        let Some(pool) = self.pool(access) else {
            // INVARIANT: only servers with a pool for it are chosen.
            return Err(Failure::Unreachable(sqlx::Error::PoolClosed));
        };
        let reserve = match (access, reserve) {
            (Access::MasterReads, Reserve::Open) => self.read_url_or_self().pools.reserve.as_ref(),
            _ => None,
        };
        match reserve {
            None => pool.check_out(asker).await,
            // The request waits in both lines, and leaves the other one when it gets a connection.
            Some(reserve) if !pool.has_room() => {
                let lines = [reserve, pool].map(|pool| Box::pin(pool.check_out(asker)));
                select_ok(lines).await.map(|(checkout, _)| checkout)
            }
            Some(reserve) => match pool.check_out(asker).await {
                Err(Failure::Busy(_)) => reserve.check_out(asker).await,
                checkout => checkout,
            },
        }
    }
}

impl<DB: Driver> fmt::Debug for Server<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("health", &self.health)
            .field("purpose", &self.purpose)
            .field("pools", &self.pools.all().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}
