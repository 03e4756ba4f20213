//! A connection for as long as one query takes.

use std::sync::Arc;
use std::time::Instant;

use sqlx::pool::PoolConnection;

use crate::backend::{Backend, Driver, Fault};
use crate::node::Node;
use crate::parked::Away;

/// If the query is abandoned, sqlx would wait for the server to end it, and keep the connection's
/// place in the pool for as long: the connection is closed instead.
pub(crate) struct Lease<P: Backend> {
    node: Arc<Node<P>>,
    away: Option<Away<P::Db>>,
}

impl<P: Backend> Lease<P> {
    pub(crate) fn new(node: Arc<Node<P>>, away: Away<P::Db>) -> Self {
        Self { node, away: Some(away) }
    }

    pub(crate) fn conn(&mut self) -> &mut <P::Db as sqlx::Database>::Connection {
        &mut self.away.as_mut().expect("a lease has its connection until it ends").conn
    }

    /// Since when the connection has been open, at least.
    pub(crate) fn open_since(&self) -> Instant {
        self.away.as_ref().expect("a lease has its connection until it ends").since
    }

    /// The query is over: the connection can serve another.
    pub(crate) fn end(mut self) {
        if let Some(away) = self.away.take() {
            self.node.park(away);
        }
    }

    /// As [`end`](Self::end), unless the connection may be broken.
    pub(crate) fn end_after(self, error: &sqlx::Error) {
        let broken = matches!(error, sqlx::Error::Protocol(_)) || P::Db::fault(error) == Fault::Node;
        if !broken {
            self.end();
        }
    }

    /// The connection, for whoever keeps it: it goes back to sqlx.
    pub(crate) fn into_inner(mut self) -> PoolConnection<P::Db> {
        self.away.take().expect("a lease has its connection until it ends").conn
    }
}

impl<P: Backend> Drop for Lease<P> {
    fn drop(&mut self) {
        drop(self.away.take().map(|away| away.conn.detach()));
    }
}
