//! Checkouts: connections that a statement uses, that a handler holds, or that a session keeps for its next statement.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Instant;

use rocket::tokio::runtime::Handle;
use sqlx::pool::PoolConnection;

use super::connection::{Connection, ConnectionState, PooledConnection};
use super::custody::Lending;
use super::holder::Asker;
use super::watch::{StatementError, Watch};
use super::{CloseCause, Permit, Pool};
use crate::backend::{Conn, Driver, Instance, Left, Remains};

/// A connection in use, in its permit. If its statement is abandoned, the pool does not wait for the server to end it. The
/// connection is closed, and its permit in the pool is free at once.
pub(crate) struct Checkout<DB: Driver>(Option<Permit<DB>>);

const UNTIL_IT_ENDS: &str = "a checkout has its connection until it ends";

impl<DB: Driver> Checkout<DB> {
    /// Checks out the connection of the permit.
    pub(super) fn new(permit: Permit<DB>) -> Self {
        Self(Some(permit))
    }

    /// Checks out the connection of the permit, if the pool trusts it without a ping. Else returns the permit.
    pub(super) fn of_trusted(permit: Permit<DB>, now: Instant) -> Result<Self, Permit<DB>> {
        match &permit.conn {
            Some(conn) if permit.pool.trusts(&conn.state, now) => Ok(Self::new(permit)),
            _ => Err(permit),
        }
    }

    fn permit(&self) -> &Permit<DB> {
        self.0.as_ref().expect(UNTIL_IT_ENDS)
    }

    pub(crate) fn pool(&self) -> &Arc<Pool<DB>> {
        &self.permit().pool
    }

    pub(crate) fn state(&self) -> &Arc<ConnectionState<DB>> {
        &self.permit().conn.as_ref().expect(UNTIL_IT_ENDS).state
    }

    /// The server instance that the connection leads to. `None` if unknown, or if a pooler in between may change it.
    pub(crate) fn instance(&self) -> Option<Instance> {
        self.state().instance().filter(|_| !self.pool().health().is_pooled())
    }

    /// The connection, and the [`Watch`] over what runs on it.
    pub(crate) fn parts(&mut self) -> (&mut Conn<DB>, Watch<'_, DB>) {
        let Permit { pool, conn, .. } = self.0.as_mut().expect(UNTIL_IT_ENDS);
        let Connection { conn, state, .. } = &mut **conn.as_mut().expect(UNTIL_IT_ENDS);
        (conn, Watch::new(pool, state))
    }

    /// Ends the checkout. Returns its connection apart from its permit.
    fn split(&mut self) -> (PooledConnection<DB>, Permit<DB>) {
        let mut permit = self.0.take().expect(UNTIL_IT_ENDS);
        (permit.conn.take().expect(UNTIL_IT_ENDS), permit)
    }

    /// Puts the connection back into its pool after a statement, for any session.
    pub(crate) fn put_back(mut self) {
        drop(self.0.take());
    }

    /// As [`put_back`](Self::put_back), after a failed statement. Closes the connection if it cannot be used again.
    pub(crate) fn put_back_after(self, failed: &StatementError) {
        match failed.remains {
            Remains::Usable => self.put_back(),
            Remains::Ended | Remains::BrokenOff => self.close(CloseCause::Failed),
        }
    }

    /// Closes the connection without a word to the server.
    pub(crate) fn close(mut self, why: CloseCause) {
        self.discard(why);
    }

    /// The connection is closed before its permit is free, so that the pool never opens one too many.
    fn discard(&mut self, why: CloseCause) {
        let (conn, permit) = self.split();
        conn.discard(why);
        drop(permit);
    }

    /// Puts back a connection that its handler has dropped, once it is known that nothing was left open on it. If the
    /// server has to be asked, a task does so.
    fn come_back(mut self) {
        if self.state().left() == Left::Clean {
            return self.put_back();
        }
        // Without a runtime, no request asks for connections any more.
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move {
            let (pool, state) = (self.pool().clone(), self.state().clone());
            if state.is_settled(&pool, DB::settle(self.parts().0)).await {
                state.leave(Left::Clean);
                self.put_back();
            }
        });
    }

    /// Returns the checkout. If something was left open on its connection, closes the connection and returns `None`.
    pub(crate) async fn settle(mut self) -> Result<Option<Self>, StatementError> {
        let settled = {
            let (conn, mut watch) = self.parts();
            watch.over_harmless(pin!(DB::settle(conn))).await
        };
        match settled {
            Ok(Left::Clean) => {
                self.state().leave(Left::Clean);
                Ok(Some(self))
            }
            Ok(Left::Dirty) => {
                self.close(CloseCause::Dirty);
                Ok(None)
            }
            Err(error) => {
                self.close(CloseCause::Failed);
                Err(error)
            }
        }
    }

    /// Hands the connection to a handler, as sqlx's own. It comes back to the pool when the handler drops it.
    pub(crate) fn lend(mut self, lending: Lending) -> PoolConnection<DB> {
        let (conn, permit) = self.split();
        conn.lend(Some(permit), lending)
    }
}

impl<DB: Driver> Drop for Checkout<DB> {
    fn drop(&mut self) {
        if self.0.is_some() {
            self.discard(CloseCause::Abandoned);
        }
    }
}

/// A connection that a handler holds for itself. Dropped, it goes back to its pool, unless it was found to be dead
/// meanwhile. The permit of a dead connection goes back at once, while the handler still holds the connection.
#[doc(hidden)]
#[allow(unnameable_types)]
pub struct Held<DB: Driver>(Option<PooledConnection<DB>>);

impl<DB: Driver> Held<DB> {
    pub(crate) fn new(mut checkout: Checkout<DB>) -> Self {
        let (conn, permit) = checkout.split();
        conn.state.custody.hand_out(permit, None);
        Self(Some(conn))
    }

    #[cfg(test)]
    pub(super) fn state(&self) -> Arc<ConnectionState<DB>> {
        self.0.as_ref().expect(UNTIL_IT_ENDS).state.clone()
    }

    /// Hands the connection out as sqlx's own.
    pub(crate) fn lend(mut self) -> PoolConnection<DB> {
        self.0.take().expect(UNTIL_IT_ENDS).lend(None, Lending::Connection)
    }
}

impl<DB: Driver> fmt::Debug for Held<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Held").finish_non_exhaustive()
    }
}

impl<DB: Driver> Deref for Held<DB> {
    type Target = Conn<DB>;

    fn deref(&self) -> &Conn<DB> {
        &self.0.as_ref().expect(UNTIL_IT_ENDS).conn
    }
}

impl<DB: Driver> DerefMut for Held<DB> {
    /// Marks the connection as dirty, because its handler may open a transaction there unseen.
    fn deref_mut(&mut self) -> &mut Conn<DB> {
        let conn = self.0.as_mut().expect(UNTIL_IT_ENDS);
        conn.state.leave(Left::Dirty);
        &mut conn.conn
    }
}

impl<DB: Driver> Drop for Held<DB> {
    fn drop(&mut self) {
        let Some(conn) = self.0.take() else { return };
        conn.state.end_use();
        match conn.state.custody.take_back() {
            Some((permit, _)) => Checkout::new(permit.with(conn)).come_back(),
            None => conn.discard(CloseCause::Invalidated),
        }
    }
}

/// The connection that a session keeps between two statements, unless other requests wait for one. As a rule, only the
/// first and the last statement of a session involve the pool, which all sessions share.
pub(crate) struct KeptConnection<DB: Driver> {
    /// Weak, because a handle may outlive the connection by hours. The connection owns its state. While the connection
    /// is kept, the state in turn owns the connection.
    state: Weak<ConnectionState<DB>>,
    asker: Asker,
}

impl<DB: Driver> KeptConnection<DB> {
    /// Keeps the connection of a finished statement for the session's next one. Puts it back and returns `None` if it
    /// may not be kept.
    pub(crate) fn new(checkout: Checkout<DB>, asker: Asker) -> Option<Self> {
        let kept = Self { state: Arc::downgrade(checkout.state()), asker };
        match kept.keep(checkout) {
            Ok(()) => Some(kept),
            Err(checkout) => {
                checkout.put_back();
                None
            }
        }
    }

    /// As [`new`](Self::new), after another statement. Returns the checkout if its connection is another one, or may
    /// not be kept.
    pub(crate) fn keep(&self, mut checkout: Checkout<DB>) -> Result<(), Checkout<DB>> {
        let state = checkout.state().clone();
        let may_be_kept = Arc::as_ptr(&state) == self.state.as_ptr() && checkout.pool().may_keep(&state);
        match checkout.0.take_if(|_| may_be_kept) {
            Some(permit) => {
                state.custody.keep(permit, self.asker);
                Ok(())
            }
            None => Err(checkout),
        }
    }

    /// Checks out the kept connection, if it belongs to this pool. `None` also if the pool has taken it back, or no
    /// longer trusts it or its server.
    pub(crate) fn claim(&self, pool: &Arc<Pool<DB>>) -> Option<Checkout<DB>> {
        let state = self.state.upgrade().filter(|state| state.is_of(pool))?;
        let permit = state.custody.claim(self.asker)?;
        if !pool.health.answers(pool.access) {
            return None;
        }
        Checkout::of_trusted(permit, Instant::now()).ok()
    }
}

impl<DB: Driver> Drop for KeptConnection<DB> {
    fn drop(&mut self) {
        drop(self.state.upgrade().and_then(|state| state.custody.claim(self.asker)));
    }
}
