//! The steps of a request that `benches/` times one by one. Not for applications.

use rocket_db_pools::Database;

use crate::backend::Backend;
use crate::{Cluster, ReplicatedDb};

/// Chooses a node as the first query of a request does.
pub fn choose<D: Database<Pool: Backend>>(db: &ReplicatedDb<D>) {
    db.session.place();
}

/// The pin that a write leaves now.
pub fn sign_pin<D: Database<Pool: Backend>>(cluster: &Cluster<D>) -> Option<String> {
    cluster.0.window_pin(None)
}

/// Reads a pin; true if it is believed.
pub fn read_pin<D: Database<Pool: Backend>>(cluster: &Cluster<D>, token: &str) -> bool {
    cluster.0.read_pin(token).is_some()
}
