//! The application's hook for new connections. A connection that it leaves in another state than its pool needs is
//! closed.

use std::fmt;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use log::warn;
use rocket::futures::FutureExt;
use rocket::futures::future::BoxFuture;

use super::counts::PoolUse;
use super::{BETWEEN_WARNINGS, Counted};
use crate::backend::{Access, Conn, ConnectionInfo, Driver, Fault, Left};
use crate::health::Health;
use crate::one_line::{Message, OneLine};
use crate::throttle::Throttle;

/// The function that [`Replicated::after_connect`](crate::Replicated::after_connect) takes.
pub(crate) type AfterConnect<DB> =
    Arc<dyn for<'c> Fn(&'c mut Conn<DB>, PoolUse) -> BoxFuture<'c, Result<(), sqlx::Error>> + Send + Sync>;

/// The hook as one pool runs it.
pub(super) struct Hook<DB: Driver> {
    run: AfterConnect<DB>,
    access: Access,
    read_only: bool,
    health: Arc<Health>,
    /// On how many connections the hook runs now.
    running: AtomicU32,
    /// Limits the warnings about connections on which the hook failed.
    warnings: Throttle,
}

impl<DB: Driver> Hook<DB> {
    pub(super) fn new(run: AfterConnect<DB>, access: Access, read_only: bool, health: Arc<Health>) -> Self {
        let (running, warnings) = (AtomicU32::new(0), Throttle::new(BETWEEN_WARNINGS));
        Self { run, access, read_only, health, running, warnings }
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.load(Ordering::Relaxed) > 0
    }

    /// Runs the hook on a connection, and asks the server once more what the connection is.
    pub(super) async fn run(
        &self,
        conn: &mut Conn<DB>,
        before: ConnectionInfo,
    ) -> Result<ConnectionInfo, sqlx::Error> {
        let ran = {
            let _running = Counted::new(&self.running);
            AssertUnwindSafe(async { (self.run)(conn, PoolUse::of(self.access)).await }).catch_unwind().await
        };
        match ran {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let message = Message(&error).to_string();
                return Err(self.failed(|of| format!("failed on {of}: {message}"), Some(error)));
            }
            // The panic itself is in the log already.
            Err(_) => return Err(self.failed(|of| format!("panicked on {of}"), None)),
        }
        match DB::settle(conn).await {
            Ok(Left::Clean) => {}
            Ok(Left::Dirty) => return Err(self.left_transaction()),
            // In a transaction that has failed, PostgreSQL refuses the question.
            Err(error) if DB::judge(&error).fault == Fault::Query => return Err(self.left_transaction()),
            Err(error) => return Err(error),
        }
        let after = DB::set_up(conn, self.access, self.read_only).await?;
        after.accept(self.access)?;
        match (before.read_only, after.read_only) {
            (true, false) if !self.access.writes() => {
                Err(self.failed(|of| format!("made {of} writable: leave it read-only"), None))
            }
            (false, true) if self.access.writes() => {
                let remedy = "its second argument tells what a connection is for";
                Err(self.failed(|of| format!("made {of} read-only: {remedy}"), None))
            }
            _ => Ok(after),
        }
    }

    /// The error of a transaction in which nothing would be committed.
    fn left_transaction(&self) -> sqlx::Error {
        self.failed(|of| format!("left a transaction open on {of}: end it in the hook"), None)
    }

    /// Makes the error of a connection that cannot be handed out, and warns of it. `what` says what the hook did on a
    /// connection that is named like this.
    fn failed(&self, what: impl FnOnce(String) -> String, source: Option<sqlx::Error>) -> sqlx::Error {
        let used_for = if self.access.writes() { "writes" } else { "reads" };
        let of = format!("a new connection for {used_for} to the {}", self.health);
        let failed = HookFailed { message: format!("the `after_connect` hook {}", what(of)), source };
        if let Some(more) = self.warnings.pass() {
            let text = OneLine(&failed).to_string();
            let more =
                if more > 0 { format!(" ({more} more since this was last said)") } else { String::new() };
            warn!("{}{}{more}.", text[..1].to_uppercase(), &text[1..]);
        }
        io::Error::other(failed).into()
    }
}

/// The error of a connection that the hook did not finish, or has spoilt.
#[derive(Debug)]
struct HookFailed {
    message: String,
    /// The hook's own error.
    source: Option<sqlx::Error>,
}

impl fmt::Display for HookFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for HookFailed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|error| error as _)
    }
}
