//! What to do about a query that failed: try another node, explain, or pass the error on.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

use log::warn;
use sqlx::error::{DatabaseError, ErrorKind};

use super::counts::RetryCause;
use super::session::{Session, UnderWay};
use crate::backend::{Access, Driver, Fault, NotTheMaster};
use crate::config::RefusedWrite;
use crate::pool::{Failure, Pool, StatementError};
use crate::routing::{Choice, Declared, MethodKind};

/// Whether a query may run twice, as long as it cannot have written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeatable {
    Yes,
    /// The query may be several statements, one of which begins a read-write transaction. Or its caller has seen some
    /// of its rows.
    No,
}

/// The attempts at one query. They end, because each failure rules out its server, except for a first one at the
/// master.
pub(crate) struct Attempts<'a, DB: Driver> {
    session: &'a Session<DB>,
    /// A first failure at the master may be due to an old connection. A second one is not.
    failed_at_master: bool,
}

impl<'a, DB: Driver> Attempts<'a, DB> {
    pub(crate) fn new(session: &'a Session<DB>) -> Self {
        Self { session, failed_at_master: false }
    }

    /// Judges an attempt that failed on a connection of `pool`: `Ok` means to try again.
    pub(crate) fn judge(
        &mut self,
        pool: &Pool<DB>,
        under_way: UnderWay<'_, DB>,
        failed: StatementError,
        repeatable: Repeatable,
    ) -> Result<(), sqlx::Error> {
        let decision = under_way.decision;
        // The first of several statements may have been carried out before the next one was refused.
        let is_one = repeatable == Repeatable::Yes;
        let repeatable = if pool.is_read_only() { repeatable } else { Repeatable::No };
        let StatementError { error, fault, .. } = failed;
        match (fault, decision.access) {
            (Fault::Query, _) => return Err(error),
            (Fault::ReadOnly, Access::Writes) => {
                // The server may have been made a slave, or its address may lead to one now.
                pool.health().request_probe();
                return Err(error);
            }
            (Fault::NoWrites, Access::Writes) => {
                if is_one {
                    under_way.take_back();
                }
                pool.health().refused_write();
                return Err(NotTheMaster::Slave.into());
            }
            (Fault::ReadOnly | Fault::NoWrites, _) => {
                return self.refused(pool, under_way, error, repeatable);
            }
            (Fault::Node, Access::SlaveReads) if !pool.health().is_shared() => pool.health().suspect(&error),
            // There is no other master. Behind a shared address, another slave may serve. The next checkout tells
            // whether the server is still there.
            (Fault::Node, _) => {
                pool.health().doubt_connections();
                pool.health().request_probe();
            }
            (Fault::Full | Fault::Conflict, _) => {}
        }

        if repeatable == Repeatable::No {
            return Err(error);
        }
        under_way.take_back();
        match decision.access {
            Access::Writes => return Err(error),
            Access::MasterReads if !self.failed_at_master => self.failed_at_master = true,
            Access::MasterReads | Access::SlaveReads => {
                self.session.move_on(decision, Failure::Unreachable(error))?;
            }
        }
        self.session.cluster.counts.retries.add(match fault {
            Fault::Full => RetryCause::Busy,
            Fault::Conflict => RetryCause::Conflict,
            Fault::Node | Fault::Query | Fault::ReadOnly | Fault::NoWrites => RetryCause::Broken,
        });
        Ok(())
    }

    /// Handles a statement that tried to write on a connection for reads. Returns an error, or lets it run again on
    /// the master.
    fn refused(
        &self,
        pool: &Pool<DB>,
        under_way: UnderWay<'_, DB>,
        error: sqlx::Error,
        repeatable: Repeatable,
    ) -> Result<(), sqlx::Error> {
        let session = self.session;
        let handler = session.handler();
        let remedy = Remedy::of(session.method(), session.declared(), handler.as_deref());
        let writer = match (&handler, session.declared()) {
            (Some(handler), _) => format!("`{handler}`"),
            (None, Declared::Reads) => "a job".into(),
            (None, Declared::Nothing | Declared::Changes) => "a handler without a name".into(),
        };
        let cluster = &session.cluster;
        let choice = under_way.decision.choice(pool.health().name().clone());
        if cluster.config.refused_write == RefusedWrite::Error || repeatable == Repeatable::No {
            return Err(Refused::explain(error, &writer, &choice, cluster.database, remedy));
        }
        if cluster.rerouted.insert(&writer) {
            warn!(
                "A write by {writer} on a connection for reads ({choice}, database `{}`) was refused there, and run \
                 again at the master (`refused_write`). To save the detour, {}. There is one such line for each \
                 handler.",
                cluster.database, remedy.0,
            );
        }
        cluster.counts.rerouted.add_one();
        under_way.take_back();
        session.declare(Declared::Changes);
        Ok(())
    }
}

/// Tells how a handler that was taken for one that reads can write.
struct Remedy(&'static str);

impl Remedy {
    fn of(method: MethodKind, declared: Declared, handler: Option<&str>) -> Self {
        Self(match (declared, method) {
            (Declared::Reads, _) if handler.is_none() => {
                "write over `Cluster::write`, or over a handler's own `ReplicatedDb`"
            }
            (Declared::Reads, MethodKind::Write) => "remove its `ReadsDatabase` guard",
            (Declared::Reads, MethodKind::Read) => {
                "put a `ChangesDatabase` guard in place of its `ReadsDatabase` guard"
            }
            (Declared::Nothing | Declared::Changes, _) => {
                "add a `ChangesDatabase` guard, or call `changes_database()` first"
            }
        })
    }
}

/// A database's "read-only" error, with what it means here.
#[derive(Debug)]
struct Refused {
    error: Box<dyn DatabaseError>,
    message: String,
}

impl Refused {
    fn explain(
        error: sqlx::Error,
        writer: &str,
        choice: &Choice,
        database: &str,
        Remedy(remedy): Remedy,
    ) -> sqlx::Error {
        let sqlx::Error::Database(error) = error else { return error };
        let message = format!(
            "{writer} tried to write on a connection for reads ({choice}, database `{database}`): {remedy}: {}",
            error.message(),
        );
        sqlx::Error::Database(Box::new(Self { error, message }))
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Refused {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.error)
    }
}

impl DatabaseError for Refused {
    fn message(&self) -> &str {
        &self.message
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        self.error.code()
    }

    fn kind(&self) -> ErrorKind {
        self.error.kind()
    }

    fn constraint(&self) -> Option<&str> {
        self.error.constraint()
    }

    fn table(&self) -> Option<&str> {
        self.error.table()
    }

    fn as_error(&self) -> &(dyn StdError + Send + Sync + 'static) {
        self.error.as_error()
    }

    fn as_error_mut(&mut self) -> &mut (dyn StdError + Send + Sync + 'static) {
        self.error.as_error_mut()
    }

    fn into_error(self: Box<Self>) -> Box<dyn StdError + Send + Sync + 'static> {
        self.error.into_error()
    }
}
