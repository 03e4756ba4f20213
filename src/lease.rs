//! A connection for as long as one query takes.

use sqlx::pool::PoolConnection;

use crate::backend::{Driver, Fault};

/// If the query is abandoned, sqlx would wait for the server to end it, and keep the connection's
/// place in the pool for as long: the connection is closed instead.
pub(crate) struct Lease<DB: Driver>(Option<PoolConnection<DB>>);

impl<DB: Driver> Lease<DB> {
    pub(crate) fn new(conn: PoolConnection<DB>) -> Self {
        Self(Some(conn))
    }

    pub(crate) fn conn(&mut self) -> &mut DB::Connection {
        self.0.as_mut().expect("a lease has its connection until it ends")
    }

    /// The query is over: the connection can serve another.
    pub(crate) fn end(mut self) {
        drop(self.0.take());
    }

    /// As [`end`](Self::end), unless the connection may be broken.
    pub(crate) fn end_after(self, error: &sqlx::Error) {
        let broken = matches!(error, sqlx::Error::Protocol(_)) || DB::fault(error) == Fault::Node;
        if !broken {
            self.end();
        }
    }
}

impl<DB: Driver> Drop for Lease<DB> {
    fn drop(&mut self) {
        drop(self.0.take().map(PoolConnection::detach));
    }
}
