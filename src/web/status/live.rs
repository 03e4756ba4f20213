//! Sends the page's content again each second, while a browser listens.

use std::sync::Arc;
use std::time::Duration;

use rocket::Request;
use rocket::http::Status;
use rocket::response::stream::{Event, EventStream};
use rocket::response::{Responder, Response};
use rocket::tokio::sync::Semaphore;
use rocket::tokio::{select, time};
use rocket_db_pools::Database;

use super::drills::Drills;
use super::page;
use super::snapshot::Snapshot;
use crate::backend::Backend;
use crate::cluster::Cluster;

/// The largest number of listeners at the same time: each costs a connection, and a rendering each second.
pub(super) const MAX_LISTENERS: usize = 16;

const INTERVAL: Duration = Duration::from_secs(1);

pub(super) fn events<'r, D: Database<Pool: Backend>>(
    request: &'r Request<'_>,
    cluster: &Cluster<D>,
    listeners: Arc<Semaphore>,
    base: &'r str,
    drills: Drills,
) -> Result<Response<'r>, Status> {
    let listener = listeners.try_acquire_owned().map_err(|_| Status::ServiceUnavailable)?;
    let (cluster, mut shutdown) = (cluster.clone(), request.rocket().shutdown());
    let events = async_stream::stream! {
        let _listener = listener;
        let mut ticks = time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            select! {
                _ = ticks.tick() => {}
                () = &mut shutdown => break,
            }
            let content = page::content(&Snapshot::of(&cluster.0), base, drills);
            yield Event::data(content.into_string());
        }
    };
    let mut response = EventStream::from(events).respond_to(request)?;
    response.set_raw_header("Cache-Control", "no-store");
    Ok(response)
}
