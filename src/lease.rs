//! A connection for as long as one query takes, and then for the next one of its session.

use std::sync::Arc;
use std::time::Instant;

use sqlx::pool::PoolConnection;

use crate::backend::{Backend, Driver, Fault};
use crate::node::Node;
use crate::parked::{Away, Taken, Ticket};

/// If the query is abandoned, sqlx would wait for the server to end it, and keep the connection's
/// place in the pool for as long: the connection is closed instead.
pub(crate) struct Lease<P: Backend> {
    node: Arc<Node<P>>,
    taken: Option<Taken<P::Db>>,
}

impl<P: Backend> Lease<P> {
    pub(crate) fn new(node: Arc<Node<P>>, taken: Taken<P::Db>) -> Self {
        Self { node, taken: Some(taken) }
    }

    pub(crate) fn conn(&mut self) -> &mut <P::Db as sqlx::Database>::Connection {
        &mut self.taken.as_mut().expect(UNTIL_IT_ENDS).away.conn
    }

    /// Since when the connection has been open, at least.
    pub(crate) fn open_since(&self) -> Instant {
        self.taken.as_ref().expect(UNTIL_IT_ENDS).away.since
    }

    /// The query is over: the connection can serve another, of anybody.
    pub(crate) fn end(mut self) {
        if let Some(taken) = self.taken.take() {
            self.node.park(taken);
        }
    }

    /// As [`end`](Self::end), unless the connection may be broken.
    pub(crate) fn end_after(self, error: &sqlx::Error) {
        let broken = matches!(error, sqlx::Error::Protocol(_)) || P::Db::fault(error) == Fault::Node;
        if !broken {
            self.end();
        }
    }

    /// The query is over, and more of its session may follow. `None` if others need the connection now.
    pub(crate) fn keep(mut self) -> Option<Kept<P>> {
        let ticket = self.node.keep(self.taken.take()?)?;
        Some(Kept { node: self.node.clone(), ticket: Some(ticket) })
    }

    /// The connection, for whoever keeps it: it goes back to sqlx.
    pub(crate) fn into_inner(mut self) -> PoolConnection<P::Db> {
        let Taken { away: Away { conn, since: _ }, turn: _ } = self.taken.take().expect(UNTIL_IT_ENDS);
        conn
    }
}

const UNTIL_IT_ENDS: &str = "a lease has its connection until it ends";

impl<P: Backend> Drop for Lease<P> {
    fn drop(&mut self) {
        if let Some(Taken { away, turn }) = self.taken.take() {
            drop(away.conn.detach());
            drop(turn);
        }
    }
}

/// A connection that is kept for the next query of its session, unless somebody else needs it in the
/// meantime.
pub(crate) struct Kept<P: Backend> {
    node: Arc<Node<P>>,
    /// Until it is claimed.
    ticket: Option<Ticket>,
}

impl<P: Backend> Kept<P> {
    /// `None` if it was given away, or is not to be trusted any more.
    pub(crate) fn claim(mut self) -> Option<Lease<P>> {
        let taken = self.node.claim(self.ticket.take()?)?;
        Some(Lease::new(self.node.clone(), taken))
    }
}

impl<P: Backend> Drop for Kept<P> {
    fn drop(&mut self) {
        if let Some(taken) = self.ticket.and_then(|ticket| self.node.claim(ticket)) {
            self.node.park(taken);
        }
    }
}
