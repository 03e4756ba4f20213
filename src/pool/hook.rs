//! The application's hook for new connections. A connection that it leaves in another state than its pool needs is
//! closed.

use std::fmt;
use std::io;
use std::sync::Arc;

use log::warn;
use rocket::futures::future::BoxFuture;

use super::BETWEEN_WARNINGS;
use super::counts::PoolUse;
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
    /// Limits the warnings about connections on which the hook failed.
    warnings: Throttle,
}

impl<DB: Driver> Hook<DB> {
    pub(super) fn new(run: AfterConnect<DB>, access: Access, read_only: bool, health: Arc<Health>) -> Self {
        Self { run, access, read_only, health, warnings: Throttle::new(BETWEEN_WARNINGS) }
    }

    /// Runs the hook on a connection, and asks the server once more what the connection is.
    pub(super) async fn run(
        &self,
        conn: &mut Conn<DB>,
        before: ConnectionInfo,
    ) -> Result<ConnectionInfo, sqlx::Error> {
        if let Err(error) = (self.run)(conn, PoolUse::of(self.access)).await {
            return Err(self.failed(Why::Error(error)));
        }
        match DB::settle(conn).await {
            Ok(Left::Clean) => {}
            Ok(Left::Dirty) => return Err(self.failed(Why::Transaction)),
            // In a transaction that has failed, PostgreSQL refuses the question.
            Err(error) if DB::judge(&error).fault == Fault::Query => {
                return Err(self.failed(Why::Transaction));
            }
            Err(error) => return Err(error),
        }
        let after = DB::set_up(conn, self.access, self.read_only).await?;
        after.accept(self.access)?;
        match (before.read_only, after.read_only) {
            (true, false) if !self.access.writes() => Err(self.failed(Why::Writable)),
            (false, true) if self.access.writes() => Err(self.failed(Why::ReadOnly)),
            _ => Ok(after),
        }
    }

    /// Makes the error of a connection that cannot be handed out, and warns of it.
    fn failed(&self, why: Why) -> sqlx::Error {
        let what = if self.access.writes() { "writes" } else { "reads" };
        let failed = HookFailed { server: self.health.to_string(), what, why };
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
    server: String,
    what: &'static str,
    why: Why,
}

#[derive(Debug)]
enum Why {
    /// The hook's own error.
    Error(sqlx::Error),
    /// A transaction was left open. Nothing that runs in it would be committed.
    Transaction,
    /// Reads could write.
    Writable,
    /// Writes would be refused.
    ReadOnly,
}

impl fmt::Display for HookFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { server, what, why } = self;
        let of = format!("a new connection for {what} to the {server}");
        f.write_str("the `after_connect` hook ")?;
        match why {
            Why::Error(error) => write!(f, "failed on {of}: {}", Message(error)),
            Why::Transaction => write!(f, "left a transaction open on {of}: end it in the hook"),
            Why::Writable => write!(f, "made {of} writable: leave it read-only"),
            Why::ReadOnly => {
                write!(f, "made {of} read-only: its second argument tells what a connection is for")
            }
        }
    }
}

impl std::error::Error for HookFailed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.why {
            Why::Error(error) => Some(error),
            Why::Transaction | Why::Writable | Why::ReadOnly => None,
        }
    }
}
