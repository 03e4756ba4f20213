//! The servers of one database.

use std::fmt;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use rocket_db_pools::Database;

use crate::backend::{Backend, Driver};
use crate::config::ReadShare;
use crate::health::{Mastership, NodeStatus, ServerId};

mod counts;
mod discovery;
mod inner;
mod monitor;
mod opening;
mod probing;
pub(crate) mod server;

pub(crate) use counts::ClusterCounts;
#[doc(hidden)]
pub use discovery::{Resolve, Resolver};
pub(crate) use inner::Inner;
#[doc(hidden)]
pub use inner::PositionBudget;
pub(crate) use server::{Purpose, Reserve, Server};

/// The driver of a database.
pub(crate) type Db<D> = <<D as Database>::Pool as Backend>::Db;

/// The master and the slaves of one database. Code without a request gets its handles here.
///
/// From [`Replicated::fetch`](crate::Replicated::fetch), for migrations and jobs. Cheap to clone.
pub struct Cluster<D: Database<Pool: Backend>>(pub(crate) Arc<Inner<Db<D>>>);

impl<D: Database<Pool: Backend>> Cluster<D> {
    /// Leaves a slave out of all choices from now on, for maintenance or a drill. Requests that read from the slave go
    /// on. The monitor still looks at it. Any number of slaves may be taken out: without slaves, reads go to the
    /// master.
    ///
    /// ```rust
    /// # #[cfg(feature = "sqlite")] mod maintenance {
    /// use rocket_replicated::sqlite::Database;
    /// use rocket_replicated::{Cluster, UnknownSlave};
    ///
    /// # async fn upgrade(_slave: &str) {}
    /// async fn upgrade_in_turn(cluster: &Cluster<Database>) -> Result<(), UnknownSlave> {
    ///     for slave in ["db-2", "db-3"] {
    ///         cluster.take_out(slave)?;
    ///         upgrade(slave).await;
    ///         cluster.put_back(slave)?;
    ///     }
    ///     Ok(())
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// If no slave has this name.
    pub fn take_out(&self, slave: &str) -> Result<(), UnknownSlave> {
        self.slave(slave)?.health.set_taken_out(true);
        Ok(())
    }

    /// Takes back [`take_out`](Self::take_out): the slave serves again, if it is well.
    ///
    /// # Errors
    ///
    /// If no slave has this name.
    pub fn put_back(&self, slave: &str) -> Result<(), UnknownSlave> {
        self.slave(slave)?.health.set_taken_out(false);
        Ok(())
    }

    /// Changes at run time what `read_from_slaves` says: the share of the clients whose reads go to slaves. The reads of
    /// all others go to the master, within `master_read_connections`. Requests that have chosen a server stay there.
    ///
    /// ```rust
    /// # #[cfg(feature = "sqlite")] mod drill {
    /// use rocket_replicated::sqlite::Database;
    /// use rocket_replicated::{Cluster, ReadShare};
    ///
    /// fn read_more_from_slaves(cluster: &Cluster<Database>) {
    ///     cluster.set_read_share(ReadShare::of_clients(0.5));
    /// }
    /// # }
    /// ```
    pub fn set_read_share(&self, share: ReadShare) {
        self.0.set_read_share(share);
    }

    /// Sends all reads to the master from now on, also the reads of jobs and of handlers with a `ReadsDatabase` guard:
    /// [`ReadShare::NONE`].
    pub fn stop_reading_slaves(&self) {
        self.set_read_share(ReadShare::NONE);
    }

    /// Undoes [`stop_reading_slaves`](Self::stop_reading_slaves) and [`set_read_share`](Self::set_read_share): reads go
    /// where the configuration says.
    pub fn resume_reading_slaves(&self) {
        self.set_read_share(self.0.config.read_from_slaves);
    }

    /// The status of all configured and discovered nodes, the master first, for a page that operators look at, or for
    /// metrics.
    ///
    /// ```rust
    /// # #[cfg(feature = "sqlite")] mod watch {
    /// use rocket_replicated::sqlite::Database;
    /// use rocket_replicated::{Cluster, NodeState};
    ///
    /// fn left_out(cluster: &Cluster<Database>) -> Vec<String> {
    ///     let down = cluster.status().into_iter().filter(|node| node.state != NodeState::Up);
    ///     down.map(|node| format!("{} is {}", node.name, node.state)).collect()
    /// }
    /// # }
    /// ```
    pub fn status(&self) -> Vec<NodeStatus> {
        self.0.status()
    }

    pub(crate) fn slave(&self, name: &str) -> Result<Arc<Server<Db<D>>>, UnknownSlave> {
        self.0.slave(name).ok_or_else(|| UnknownSlave::new(name))
    }
}

/// The error if no slave has this name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownSlave {
    name: String,
}

impl UnknownSlave {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned() }
    }
}

impl fmt::Display for UnknownSlave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no slave is named `{}`", self.name)
    }
}

impl std::error::Error for UnknownSlave {}

impl<D: Database<Pool: Backend>> Clone for Cluster<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<D: Database<Pool: Backend>> fmt::Debug for Cluster<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cluster").field(&self.0).finish()
    }
}

/// The one list of servers. It is read without a lock, and replaced as a whole when it grows or shrinks.
pub(crate) struct Servers<DB: Driver>(ArcSwap<Vec<Arc<Server<DB>>>>);

impl<DB: Driver> Servers<DB> {
    fn new(servers: Vec<Arc<Server<DB>>>) -> Self {
        Self(ArcSwap::from_pointee(servers))
    }

    pub(crate) fn all(&self) -> Guard<Arc<Vec<Arc<Server<DB>>>>> {
        self.0.load()
    }

    pub(crate) fn master(&self, mastership: &Mastership) -> Arc<Server<DB>> {
        // INVARIANT: the master is never taken from the list.
        self.get(mastership.term().master).unwrap_or_else(|| self.all()[0].clone())
    }

    fn get(&self, id: ServerId) -> Option<Arc<Server<DB>>> {
        self.all().iter().find(|server| server.id() == id).cloned()
    }

    fn add(&self, server: &Arc<Server<DB>>) {
        self.0.rcu(|servers| servers.iter().chain([server]).cloned().collect::<Vec<_>>());
    }

    fn remove(&self, id: ServerId) {
        let others = |servers: &Arc<Vec<Arc<Server<DB>>>>| {
            servers.iter().filter(|server| server.id() != id).cloned().collect::<Vec<_>>()
        };
        self.0.rcu(others);
    }
}
