//! The monitor's own connection to a server, which it keeps from one look to the next.

use std::sync::Arc;

use rocket::futures::future::select_all;
use rocket::tokio;
use rocket::tokio::sync::Notify;
use rocket::tokio::task::JoinHandle;
use rocket::tokio::time::Instant;
use sqlx::ConnectOptions;

use super::server::Server;
use crate::backend::{Access, Conn, Depth, Driver, Instance, Options, Prepared, SessionId};
use crate::health::Health;
use crate::pool::LONGEST_OPENING;

pub(super) struct Probing<DB: Driver> {
    pub(super) conn: Conn<DB>,
    pub(super) instance: Option<Instance>,
    pub(super) session: Option<SessionId>,
    pub(super) memory: DB::Memory,
    pub(super) opened: Instant,
    pub(super) path: Path,
}

/// What is known of the way to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    Untested,
    /// The test has failed.
    Unknown,
    /// Each connection has a session of its own for its whole life.
    Straight,
    /// A pooler gives each transaction the session that is free.
    Pooled,
}

/// Attempts to open it that go on beyond the look that began them: on a machine that has much else to do, none may be
/// over within `check_timeout`, and if each was given up, no server would ever be up.
///
/// The earliest goes on until [`LONGEST_OPENING`]. Each look begins another one all the same, since the address may lead
/// elsewhere by then, and ends the one that the look before began.
pub(super) struct Attempts<DB: Driver> {
    begun: Vec<Attempt<DB>>,
    /// One of them has a connection.
    opened: Arc<Notify>,
}

/// Ends when it is dropped.
struct Attempt<DB: Driver> {
    began: Instant,
    task: JoinHandle<Result<Probing<DB>, sqlx::Error>>,
}

impl<DB: Driver> Attempts<DB> {
    pub(super) fn new() -> Self {
        Self { begun: Vec::new(), opened: Arc::default() }
    }

    /// The first that one of them has, or the error of the one that begins now.
    pub(super) async fn open(
        &mut self,
        server: &Server<DB>,
        access: Access,
    ) -> Result<Probing<DB>, sqlx::Error> {
        let Self { begun, opened } = self;
        begun.retain(|attempt| attempt.began.elapsed() < LONGEST_OPENING);
        begun.truncate(1);
        begun.push(Attempt::begin(server, access, opened.clone()));
        loop {
            // INVARIANT: whoever waits may give up at any time, and none of the attempts ends thereby.
            let (ended, index, _) = select_all(begun.iter_mut().map(|attempt| &mut attempt.task)).await;
            let is_latest = index + 1 == begun.len();
            match ended.unwrap_or(Err(sqlx::Error::WorkerCrashed)) {
                Err(_) if !is_latest => drop(begun.remove(index)),
                ended => {
                    *self = Self::new();
                    return ended;
                }
            }
        }
    }

    /// Ready once one of them has a connection that nobody has waited for.
    pub(super) async fn opened(&self) {
        self.opened.notified().await;
    }
}

impl<DB: Driver> Attempt<DB> {
    fn begin(server: &Server<DB>, access: Access, opened: Arc<Notify>) -> Self {
        let (options, health) = (server.prober.options.clone(), server.health.clone());
        let task = tokio::spawn(async move {
            let probing = open(&options, &health, access).await?;
            opened.notify_one();
            Ok(probing)
        });
        Self { began: Instant::now(), task }
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
) -> Result<Probing<DB>, sqlx::Error> {
    let opened = Instant::now();
    let mut conn = options.connect().await?;
    let Prepared { instance, session, .. } = DB::prepare(&mut conn, access).await?;
    let instance = instance.filter(|_| !health.is_pooled());
    // The first look takes longest, as it prepares statements: it is part of the opening, and what it saw may be old once
    // somebody asks for it.
    let mut memory = DB::Memory::default();
    DB::observe(&mut conn, access, &mut memory, Depth::Full).await?;
    Ok(Probing { conn, instance, session, memory, opened, path: Path::Untested })
}
