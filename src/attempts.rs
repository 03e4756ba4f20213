//! What to do about a query that failed: try another node, explain, or pass the error on.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

use log::warn;
use rocket_db_pools::Database;
use sqlx::error::{DatabaseError, ErrorKind};

use crate::ReplicatedDb;
use crate::backend::{Backend, Driver, Fault};
use crate::choice::Declared;
use crate::config::RefusedWrite;
use crate::node::Failure;
use crate::nodes::{At, Db, Place};

/// Whether a query may run twice, as long as it cannot have written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeatable {
    Yes,
    /// It may be several statements, one of which begins a read-write transaction; or its caller
    /// has seen some of its rows.
    No,
}

/// The attempts at one query. A query fails at most once at each node, so that they end.
pub(crate) struct Attempts<'a, D: Database<Pool: Backend>> {
    db: &'a ReplicatedDb<D>,
    /// A first failure at the master may be that of an old connection; a second one is not.
    failed_at_master: bool,
}

impl<'a, D: Database<Pool: Backend>> Attempts<'a, D> {
    pub(crate) fn new(db: &'a ReplicatedDb<D>) -> Self {
        Self { db, failed_at_master: false }
    }

    /// A statement wanted to write on a read: an error, or a write after all.
    fn refused(&self, place: Place, error: sqlx::Error, repeatable: Repeatable) -> Result<(), sqlx::Error> {
        let session = &self.db.session;
        if session.nodes.config.refused_write == RefusedWrite::Error || repeatable == Repeatable::No {
            return Err(Refused::explain(error, self.db, place));
        }
        let handler = self.db.handler();
        if session.nodes.rerouted.is_news(handler) {
            warn!(
                "`{handler}` wrote on a connection for reads ({}, database `{}`): the statement was run \
                 again, on the master. Add a `ChangesDatabase` guard.",
                session.nodes.choice(place),
                D::NAME,
            );
        }
        session.unclaim();
        session.declare(Declared::Changes);
        Ok(())
    }

    /// Judges an attempt at `place` that ended with `error`: `Ok` means to try again.
    pub(crate) fn after(
        &mut self,
        place: Place,
        error: sqlx::Error,
        repeatable: Repeatable,
    ) -> Result<(), sqlx::Error> {
        let session = &self.db.session;
        let node = session.nodes.node(place.at);
        let fault = Db::<D>::fault(&error);
        let repeatable = if node.is_read_only() { repeatable } else { Repeatable::No };
        match (fault, place.at) {
            (Fault::Query, _) => return Err(error),
            (Fault::ReadOnly, At::MasterReadWrite(_)) => return Err(error),
            (Fault::ReadOnly, _) => return self.refused(place, error, repeatable),
            (Fault::Node, At::Slave(_)) => node.health().suspect(&error),
            // There is no other master: the next checkout tells whether it is still there.
            (Fault::Node, _) => {
                node.health().distrust();
                node.health().doubt();
            }
            (Fault::Full | Fault::Conflict, _) => {}
        }

        if repeatable == Repeatable::No {
            return Err(error);
        }
        session.unclaim();
        match place.at {
            At::MasterReadWrite(_) => Err(error),
            At::MasterReadOnly(_) if !self.failed_at_master => {
                self.failed_at_master = true;
                Ok(())
            }
            At::MasterReadOnly(_) | At::Slave(_) => session.move_on(place, Failure::Unreachable(error)),
        }
    }
}

/// A database's "read-only" error, with what it means here.
#[derive(Debug)]
struct Refused {
    error: Box<dyn DatabaseError>,
    message: String,
}

impl Refused {
    fn explain<D: Database<Pool: Backend>>(
        error: sqlx::Error,
        db: &ReplicatedDb<D>,
        place: Place,
    ) -> sqlx::Error {
        let sqlx::Error::Database(error) = error else { return error };
        let message = format!(
            "`{}` tried to write on a connection for reads ({}, database `{}`): add a `ChangesDatabase` guard, \
             or call `changes_database()` first: {}",
            db.handler(),
            db.session.nodes.choice(place),
            D::NAME,
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
