//! [`Cluster`]: what code without a request asks for its handles.

use std::fmt;
use std::sync::Arc;

use rocket_db_pools::Database;

use crate::ReplicatedDb;
use crate::backend::Backend;
use crate::choice::{Declared, MethodKind};
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

    fn handle(&self, method: MethodKind, declared: Declared, pin: Option<Pin>) -> ReplicatedDb<D> {
        let session = Session::new(self.0.clone(), method, pin);
        session.declare(declared);
        ReplicatedDb::new(Arc::new(session), None)
    }
}

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
