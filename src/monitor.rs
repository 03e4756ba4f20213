//! Watches a node that was taken out, in the background of all requests, and puts it back.

use std::sync::Arc;
use std::time::Duration;

use log::warn;
use rocket::tokio::{spawn, time::sleep};

use crate::backend::Backend;
use crate::node::Node;

/// Between two probes; the first is made at once.
const INTERVAL: Duration = Duration::from_secs(1);

/// Probes the node until it answers, or is closed or dropped.
pub(crate) fn watch<P: Backend>(node: &Arc<Node<P>>) {
    let node = Arc::downgrade(node);
    spawn(async move {
        let mut reported = false;
        while let Some(node) = node.upgrade().filter(|node| !node.is_closed()) {
            match node.probe().await {
                Ok(()) => return node.put_back(),
                Err(error) if !reported => {
                    warn!(target: "rocket_replicated::_", "{} `{}`: {error}", node.role(), node.name);
                    reported = true;
                }
                Err(_) => {}
            }
            drop(node);
            sleep(INTERVAL.mul_f64(0.9 + 0.2 * fastrand::f64())).await;
        }
    });
}
