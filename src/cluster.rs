//! [`Cluster`]: what code without a request asks for its handles.

use std::fmt;
use std::sync::Arc;

use rocket_db_pools::Database;

use crate::ReplicatedDb;
use crate::backend::Backend;
use crate::choice::{Declared, MethodKind};
use crate::health::{Health, NodeStatus};
use crate::nodes::Nodes;
use crate::pin::Pin;
use crate::session::Session;

/// The master and the slaves of one database: what code without a request asks for its handles.
///
/// From [`Replicated::fetch`](crate::Replicated::fetch), for migrations and jobs. Cheap to clone.
pub struct Cluster<D: Database<Pool: Backend>>(pub(crate) Arc<Nodes<D>>);

impl<D: Database<Pool: Backend>> Cluster<D> {
    /// A handle for code outside a request that reads and writes: at the master.
    ///
    /// ```rust,no_run
    /// # #[cfg(feature = "sqlite")] mod guard {
    /// use rocket::{Build, Rocket, fairing};
    /// use rocket_replicated::sqlite::Replicated;
    ///
    /// async fn migrate(rocket: Rocket<Build>) -> fairing::Result {
    ///     let Some(cluster) = Replicated::fetch(&rocket) else { return Err(rocket) };
    ///     match sqlx::migrate!("examples/guestbook/migrations").run(&cluster.write()).await {
    ///         Ok(()) => Ok(rocket),
    ///         Err(_) => Err(rocket),
    ///     }
    /// }
    /// # }
    /// ```
    pub fn write(&self) -> ReplicatedDb<D> {
        self.handle(MethodKind::Write, Declared::Changes, None)
    }

    /// A handle for code outside a request that reads: from a slave, unless `pin` (of
    /// [`ReplicatedDb::pin`]) says that the work it belongs to has written within the lag window.
    ///
    /// A pin that is not valid is none. The handle's node is chosen at its first query and kept.
    pub fn read(&self, pin: Option<&str>) -> ReplicatedDb<D> {
        let pin = pin.and_then(|token| self.0.read_pin(token));
        self.handle(MethodKind::Read, Declared::Reads, pin)
    }

    /// Leaves a slave out of all choices from now on, for maintenance or a drill. Requests that read
    /// from it go on. It is still looked at, and there is no limit to how many may be taken out:
    /// without slaves, reads go to the master.
    ///
    /// # Errors
    ///
    /// If no slave has this name.
    pub fn take_out(&self, slave: &str) -> Result<(), UnknownSlave> {
        self.slave(slave)?.set_taken_out(true);
        Ok(())
    }

    /// Takes back [`take_out`](Self::take_out): the slave serves again, if it is well.
    ///
    /// # Errors
    ///
    /// If no slave has this name.
    pub fn put_back(&self, slave: &str) -> Result<(), UnknownSlave> {
        self.slave(slave)?.set_taken_out(false);
        Ok(())
    }

    /// Sends all reads to the master from now on, within `master_read_connections`, whoever asks for
    /// slaves.
    pub fn read_from_master(&self) {
        self.0.read_from_master(true);
    }

    /// Takes back [`read_from_master`](Self::read_from_master).
    pub fn read_from_slaves(&self) {
        self.0.read_from_master(false);
    }

    /// How the nodes are, the master first: for a page that operators look at, or for metrics.
    pub fn status(&self) -> Vec<NodeStatus> {
        self.0.status()
    }

    fn slave(&self, name: &str) -> Result<&Health, UnknownSlave> {
        self.0.slave(name).ok_or_else(|| UnknownSlave { name: name.to_owned() })
    }

    fn handle(&self, method: MethodKind, declared: Declared, pin: Option<Pin>) -> ReplicatedDb<D> {
        let session = Session::new(self.0.clone(), method, pin);
        session.declare(declared);
        ReplicatedDb::new(Arc::new(session), None)
    }
}

/// No slave has this name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownSlave {
    name: String,
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
