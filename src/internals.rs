//! The steps that `benches/` and `tests/` of this crate drive one by one. Not for applications: what is here may change
//! or go in any version. It is public, because benches and tests are packages of their own. The model in `tests/model`
//! runs the code that decides, and not a copy of it.

use std::net::IpAddr;
use std::sync::Arc;

use rocket_db_pools::Database;

use crate::backend::Backend;
use crate::request::Session;
use crate::routing::{Client, MethodKind};
use crate::{Cluster, ReplicatedDb};

pub mod laws;
mod process;

pub use process::{Effects, Found, Instance, LetDown, Pin, Process, Route, Term, instance};

/// Manage a `Resolver` of your own to have names looked up by it.
pub use crate::cluster::{Resolve, Resolver};

/// Manage one of your own to have replies wait longer for a position, as on a machine that has much else to do.
pub use crate::cluster::PositionBudget;
pub use crate::position::Position;

/// The questions that probes ask, and their answers.
pub use crate::backend::engine::{Access, Depth, Engine, Observation, ReportedRole};

/// Chooses a node as the first query of a request does.
pub fn choose<D: Database<Pool: Backend>>(db: &ReplicatedDb<D>) {
    db.session.route();
}

/// A handle as that of a request which reads, from this address.
pub fn read_from<D: Database<Pool: Backend>>(cluster: &Cluster<D>, address: IpAddr) -> ReplicatedDb<D> {
    let client = Client::of(Some(address));
    let session = Session::new(cluster.0.clone(), MethodKind::Read, client, None);
    ReplicatedDb::new(Arc::new(session))
}

/// The pin that a write leaves now.
pub fn sign_pin<D: Database<Pool: Backend>>(cluster: &Cluster<D>) -> Option<String> {
    cluster.0.window_pin(None)
}

/// Reads a pin; true if it is believed.
pub fn read_pin<D: Database<Pool: Backend>>(cluster: &Cluster<D>, token: &str) -> bool {
    cluster.0.read_pin(token).is_some()
}

/// The names of all metrics.
#[cfg(feature = "metrics")]
pub fn metrics() -> Vec<&'static str> {
    crate::metrics::names().collect()
}

/// What servers are asked over and over.
#[cfg(feature = "postgres")]
pub mod postgres {
    use crate::backend::Engine;

    type Memory = <sqlx::Postgres as Engine>::Memory;

    /// By most probes, of a master.
    pub const PROBE_OF_MASTER: &str = Memory::MASTER;

    /// By most probes, of a slave.
    pub const PROBE_OF_SLAVE: &str = Memory::SLAVE;

    /// By the first probe over a connection, and by one of many.
    pub const FULL_PROBE: &str = Memory::FULL;

    /// By a pinned read, until the slave has replayed what its client wrote.
    pub const CATCH_UP: &str = Memory::SLAVE;
}
