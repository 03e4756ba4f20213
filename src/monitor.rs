//! Watches a server that raised doubts, in the background of all requests: takes it out if it does
//! not answer, and puts it back once it does.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rocket::tokio::time::sleep;

use crate::backend::Backend;
use crate::health::Health;
use crate::node::Node;

/// Between two probes; the first is made at once.
const INTERVAL: Duration = Duration::from_secs(1);

/// Probes the node until it answers, or is closed or dropped. One watch at a time is kept.
pub(crate) fn watch<P: Backend>(node: &Arc<Node<P>>) {
    let health = node.health();
    if health.watched.swap(true, Ordering::AcqRel) {
        return;
    }
    let watch_ended = Watch(health.clone());
    let node = Arc::downgrade(node);
    health.runtime.spawn(async move {
        while let Some(node) = node.upgrade().filter(|node| !node.is_closed()) {
            match node.probe().await {
                Ok(()) => {
                    node.put_back();
                    drop(watch_ended);
                    // Whoever took it out just now found it watched.
                    node.is_usable();
                    return;
                }
                Err(error) => node.take_out(&error),
            }
            drop(node);
            sleep(INTERVAL.mul_f64(0.9 + 0.2 * fastrand::f64())).await;
        }
    });
}

/// Ends with the watch, however that ends.
struct Watch(Arc<Health>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.watched.store(false, Ordering::Release);
    }
}
