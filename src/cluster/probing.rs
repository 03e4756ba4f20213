//! The monitor's own connection to a server, which is kept from one look to the next.

use std::sync::Arc;
use std::time::Duration;

use rocket::futures::future::select_all;
use rocket::tokio;
use rocket::tokio::sync::Notify;
use rocket::tokio::task::JoinHandle;
use rocket::tokio::time::Instant;
use sqlx::ConnectOptions;

use super::server::Server;
use crate::backend::keepalive::keep_alive;
use crate::backend::{
    Access, Conn, ConnectionInfo, Depth, Driver, Instance, Observation, Options, SessionId,
};
use crate::health::{Health, Pooling};
use crate::pool::LONGEST_OPENING;

pub(super) struct Probing<DB: Driver> {
    pub(super) conn: Conn<DB>,
    pub(super) instance: Option<Instance>,
    pub(super) session: Option<SessionId>,
    pub(super) memory: DB::Memory,
    pub(super) opened: Instant,
    /// The time that it took to open the connection and look at the server for the first time.
    pub(super) took: Duration,
    pub(super) pooling: Pooling,
}

/// A connection, and its first look at the server.
pub(super) struct Opened<DB: Driver> {
    pub(super) probing: Probing<DB>,
    /// `None` if that look began before the present one.
    pub(super) observation: Option<Observation>,
}

/// Attempts to open the connection, which go on beyond the look that began them. On a busy machine, no attempt may end
/// within `check_timeout`. If each was given up then, no server would ever be up.
///
/// The earliest attempt goes on until [`LONGEST_OPENING`]. Each look begins another attempt all the same, since the
/// address may lead elsewhere by then. It ends the attempt that the look before began.
pub(super) struct Attempts<DB: Driver> {
    begun: Vec<Attempt<DB>>,
    /// Notified when an attempt has a connection.
    opened: Arc<Notify>,
}

/// One attempt, which ends when it is dropped.
struct Attempt<DB: Driver> {
    began: Instant,
    task: JoinHandle<Result<(Probing<DB>, Observation), sqlx::Error>>,
}

impl<DB: Driver> Attempts<DB> {
    pub(super) fn new() -> Self {
        Self { begun: Vec::new(), opened: Arc::default() }
    }

    /// Begins an attempt. Returns the first connection that any attempt opens, or the error of the attempt that begins
    /// now.
    pub(super) async fn open(
        &mut self,
        server: &Server<DB>,
        access: Access,
        depth: Depth,
    ) -> Result<Opened<DB>, sqlx::Error> {
        if !self.begun.iter().any(|attempt| attempt.task.is_finished()) {
            self.begun.retain(|attempt| attempt.began.elapsed() < LONGEST_OPENING);
            self.begun.truncate(1);
        }
        let latest = Attempt::begin(server, access, depth, self.opened.clone());
        let began = latest.began;
        self.begun.push(latest);
        loop {
            // INVARIANT: the caller may give up at any time, and none of the attempts ends thereby.
            let tasks = self.begun.iter_mut().rev().map(|attempt| &mut attempt.task);
            let (ended, from_the_end, _) = select_all(tasks).await;
            let attempt = self.begun.remove(self.begun.len() - 1 - from_the_end);
            let ended = ended.unwrap_or_else(|error| match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(sqlx::Error::WorkerCrashed),
            });
            match ended {
                Ok((probing, observation)) => {
                    *self = Self::new();
                    let observation = (attempt.began == began).then_some(observation);
                    return Ok(Opened { probing, observation });
                }
                Err(error) if attempt.began == began => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// Waits until an attempt has a connection for which no look has waited.
    pub(super) async fn opened(&self) {
        self.opened.notified().await;
    }
}

impl<DB: Driver> Attempt<DB> {
    fn begin(server: &Server<DB>, access: Access, depth: Depth, opened: Arc<Notify>) -> Self {
        let (options, health, began) = (server.prober.options.clone(), server.health.clone(), Instant::now());
        let task = tokio::spawn(async move {
            let ended = open(&options, &health, access, depth, began).await?;
            opened.notify_one();
            Ok(ended)
        });
        Self { began, task }
    }
}

impl<DB: Driver> Drop for Attempt<DB> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn open<DB: Driver>(
    options: &Options<DB>,
    health: &Arc<Health>,
    access: Access,
    depth: Depth,
    began: Instant,
) -> Result<(Probing<DB>, Observation), sqlx::Error> {
    let mut conn = options.connect().await?;
    keep_alive::<DB>(options);
    let opened = Instant::now();
    let ConnectionInfo { instance, session, .. } = DB::set_up(&mut conn, access, false).await?;
    let instance = instance.filter(|_| !health.is_pooled());
    let mut memory = DB::Memory::default();
    let observation = DB::observe(&mut conn, access, &mut memory, depth).await?;
    let took = began.elapsed();
    Ok((Probing { conn, instance, session, memory, opened, took, pooling: Pooling::Untested }, observation))
}
