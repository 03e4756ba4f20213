//! A connection for as long as one statement takes, and then for the next one of its session.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::pin::{Pin, pin};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use log::warn;
use rocket::tokio::runtime::Handle;
use rocket::tokio::time::timeout;
use sqlx::pool::PoolConnection;

use super::connection::{Connection, ConnectionState, PooledConnection};
use super::custody::{Ended, Lending};
use super::holder::Asker;
use super::{CloseCause, Permit, Pool};
use crate::backend::{Access, Conn, Driver, Instance, Left};

/// A connection in use. If its statement is abandoned, nobody waits for the server to end it: the connection
/// is closed, and its permit in the pool is free at once.
pub(crate) struct Checkout<DB: Driver>(Option<Parts<DB>>);

/// What a checkout holds until it ends. The permit goes after the connection, so that nobody opens one too many.
struct Parts<DB: Driver> {
    conn: PooledConnection<DB>,
    permit: Permit<DB>,
}

impl<DB: Driver> Parts<DB> {
    /// The statement is over: the connection goes along with its permit.
    fn end(self) -> Permit<DB> {
        let Self { conn, permit } = self;
        permit.with(conn)
    }

    /// Closes the connection without a word to the server.
    fn discard(self, why: CloseCause) {
        let Self { conn, permit } = self;
        conn.discard(why);
        drop(permit);
    }
}

const UNTIL_IT_ENDS: &str = "a checkout has its connection until it ends";

impl<DB: Driver> Checkout<DB> {
    pub(super) fn new(conn: PooledConnection<DB>, permit: Permit<DB>) -> Self {
        Self(Some(Parts { conn, permit }))
    }

    /// With the connection of the permit, if it can be handed out as it is.
    pub(super) fn of_trusted(mut permit: Permit<DB>, now: Instant) -> Result<Self, Permit<DB>> {
        match permit.conn.take_if(|conn| permit.pool.trusts(&conn.state, now)) {
            Some(conn) => Ok(Self::new(conn, permit)),
            None => Err(permit),
        }
    }

    fn held(&self) -> &Parts<DB> {
        self.0.as_ref().expect(UNTIL_IT_ENDS)
    }

    pub(crate) fn pool(&self) -> &Arc<Pool<DB>> {
        &self.held().permit.pool
    }

    pub(crate) fn state(&self) -> &Arc<ConnectionState<DB>> {
        &self.held().conn.state
    }

    /// Which instance it leads to, if it leads to a certain one.
    pub(crate) fn instance(&self) -> Option<Instance> {
        self.state().instance().filter(|_| !self.pool().health().is_pooled())
    }

    /// The connection, and who watches over what runs on it.
    pub(crate) fn parts(&mut self) -> (&mut Conn<DB>, Watch<'_, DB>) {
        let Parts { conn, permit } = self.0.as_mut().expect(UNTIL_IT_ENDS);
        let Connection { conn, state, .. } = &mut **conn;
        (conn, Watch::new(&permit.pool, state))
    }

    /// The statement is over: the connection can serve another, of anybody.
    pub(crate) fn put_back(mut self) {
        drop(self.0.take().map(Parts::end));
    }

    /// As [`put_back`](Self::put_back), unless the error has ended the connection.
    pub(crate) fn put_back_after(self, error: &sqlx::Error) {
        if DB::ends_connection(error) {
            self.close(CloseCause::Failed);
        } else {
            self.put_back();
        }
    }

    /// Closes the connection without a word to the server.
    pub(crate) fn close(mut self, why: CloseCause) {
        if let Some(parts) = self.0.take() {
            parts.discard(why);
        }
    }

    /// A handler has dropped the connection: puts it back once it is known that nothing was left open on it. If that has
    /// to be asked, a task does so.
    fn come_back(self) {
        if self.state().left() == Left::Clean {
            return self.put_back();
        }
        // Without a runtime nobody asks for connections any more.
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move {
            let pool = self.pool().clone();
            match timeout(pool.check_timeout(), self.settle()).await {
                Ok(Ok(Some(checkout))) => checkout.put_back(),
                Ok(Ok(None)) => pool.warn_of_transaction(),
                Ok(Err(_)) | Err(_) => {}
            }
        });
    }

    /// The connection, unless a transaction was left open on it: then it is closed.
    pub(crate) async fn settle(mut self) -> Result<Option<Self>, sqlx::Error> {
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

    /// The connection, for a handler that holds it: it comes back when it is dropped.
    pub(crate) fn lend(mut self, lending: Lending) -> PoolConnection<DB> {
        let Parts { conn, permit } = self.0.take().expect(UNTIL_IT_ENDS);
        conn.lend(permit, lending)
    }
}

impl<DB: Driver> Drop for Checkout<DB> {
    fn drop(&mut self) {
        if let Some(parts) = self.0.take() {
            parts.discard(CloseCause::Abandoned);
        }
    }
}

/// A connection that a handler holds for itself: it comes back when it is dropped, unless it was found to be dead
/// meanwhile. Its permit does not wait for that.
#[doc(hidden)]
#[allow(unnameable_types)]
pub struct Held<DB: Driver>(Option<PooledConnection<DB>>);

impl<DB: Driver> Held<DB> {
    pub(crate) fn new(mut checkout: Checkout<DB>) -> Self {
        let Parts { conn, permit } = checkout.0.take().expect(UNTIL_IT_ENDS);
        conn.state.hold(permit);
        Self(Some(conn))
    }

    #[cfg(test)]
    pub(super) fn state(&self) -> Arc<ConnectionState<DB>> {
        self.0.as_ref().expect(UNTIL_IT_ENDS).state.clone()
    }

    /// As sqlx's own.
    pub(crate) fn lend(mut self) -> PoolConnection<DB> {
        self.0.take().expect(UNTIL_IT_ENDS).lend_held()
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
    /// Nobody knows what runs there.
    fn deref_mut(&mut self) -> &mut Conn<DB> {
        let conn = self.0.as_mut().expect(UNTIL_IT_ENDS);
        conn.state.leave(Left::Dirty);
        &mut conn.conn
    }
}

impl<DB: Driver> Drop for Held<DB> {
    fn drop(&mut self) {
        let Some(conn) = self.0.take() else { return };
        match conn.state.end_hold() {
            Some(permit) => Checkout::new(conn, permit).come_back(),
            None => conn.discard(CloseCause::Invalidated),
        }
    }
}

/// Ends what runs on a connection when its server is found to be down, or the connection to be dead. A write is
/// given up only in the latter case: nobody could tell what became of it.
///
/// Dropped, it warns of a statement that took long: sqlx would, too, but it knows neither the database nor the handler.
pub(crate) struct Watch<'a, DB: Driver> {
    pool: &'a Pool<DB>,
    state: &'a ConnectionState<DB>,
    /// The statement, if it is one that somebody wrote.
    sql: Option<&'a str>,
    /// For how long the server has been waited for.
    took: Duration,
    sent: Sent,
}

/// Whether a server may have been told of a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Nothing,
    Something,
}

impl<'a, DB: Driver> Watch<'a, DB> {
    /// Over this connection.
    pub(crate) fn new(pool: &'a Pool<DB>, state: &'a ConnectionState<DB>) -> Self {
        Self { pool, state, sql: None, took: Duration::ZERO, sent: Sent::Nothing }
    }

    /// Over this statement.
    pub(crate) fn of(mut self, sql: &'a str) -> Self {
        self.sql = Some(sql);
        self
    }

    pub(crate) fn pool(&self) -> &'a Pool<DB> {
        self.pool
    }

    /// Pinned in place, not moved along: the future of a query is as large as its parts.
    ///
    /// # Errors
    ///
    /// A write whose connection breaks is one whose outcome is unknown: it may have been sent.
    pub(crate) async fn over<T>(
        &mut self,
        work: Pin<&mut impl Future<Output = Result<T, sqlx::Error>>>,
    ) -> Result<T, sqlx::Error> {
        let done = self.wait(work).await;
        match (done, self.pool.access(), self.sent) {
            (Ok(Err(error)), Access::ReadWrite, _) if DB::breaks_off(&error) => {
                Err(self.pool.outcome_unknown(Some(error)))
            }
            (Ok(done), ..) => done,
            // Its reader may have paused between two rows.
            (Err(_), Access::ReadWrite, Sent::Something) => Err(self.pool.outcome_unknown(None)),
            (Err(_), ..) => Err(self.pool.unreachable()),
        }
    }

    /// Over what changes nothing, such as the beginning of a transaction.
    pub(crate) async fn over_harmless<T>(
        &mut self,
        work: Pin<&mut impl Future<Output = Result<T, sqlx::Error>>>,
    ) -> Result<T, sqlx::Error> {
        self.wait(work).await.unwrap_or_else(|_| Err(self.pool.unreachable()))
    }

    /// What comes of it, unless the connection ends before, or has ended.
    async fn wait<T>(
        &mut self,
        work: Pin<&mut impl Future<Output = Result<T, sqlx::Error>>>,
    ) -> Result<Result<T, sqlx::Error>, Ended> {
        if let Some(ended) = self.state.ended() {
            return Err(ended);
        }
        self.sent = Sent::Something;
        let mut wait = Wait::begin(self);
        let done = wait.watch.state.unless_ended(work).await?;
        wait.has_answer = done.as_ref().err().is_none_or(|error| !DB::ends_connection(error));
        Ok(done)
    }

    fn warn_of_slow(&self, sql: &str) {
        let health = self.pool.health();
        let handler = self.state.holder().handler;
        let handler = handler.map(|handler| format!(", asked by `{handler}`")).unwrap_or_default();
        let took = self.took.as_secs_f64();
        warn!("Slow statement on the {health}{handler}: {took:.1} s for {}", in_one_line(sql));
    }
}

impl<DB: Driver> Drop for Watch<'_, DB> {
    fn drop(&mut self) {
        if let Some(sql) = self.sql.filter(|_| self.took >= SLOW) {
            self.warn_of_slow(sql);
        }
    }
}

/// Somebody waits for the server, until it has answered or they have gone. Reads the clock twice.
struct Wait<'w, 'a, DB: Driver> {
    watch: &'w mut Watch<'a, DB>,
    began: Instant,
    has_answer: bool,
}

impl<'w, 'a, DB: Driver> Wait<'w, 'a, DB> {
    fn begin(watch: &'w mut Watch<'a, DB>) -> Self {
        let began = Instant::now();
        watch.state.begin_statement(began);
        Self { watch, began, has_answer: false }
    }
}

impl<DB: Driver> Drop for Wait<'_, '_, DB> {
    fn drop(&mut self) {
        let Watch { state, took, .. } = &mut *self.watch;
        let now = Instant::now();
        *took += now - self.began;
        state.end_statement(now, now - self.began);
        if self.has_answer {
            state.verify(now);
        }
    }
}

/// A statement that takes longer is warned of.
const SLOW: Duration = Duration::from_secs(1);

/// No more of a statement is logged: it may hold a thousand rows.
const MAX_SHOWN: usize = 500;

fn in_one_line(sql: &str) -> String {
    let mut line = String::new();
    for word in sql.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if let Some((end, _)) = line.char_indices().nth(MAX_SHOWN) {
            line.truncate(end);
            line.push('…');
            break;
        }
    }
    line
}

/// The connection that a session keeps between two statements, unless others wait for it. As a rule, only the first and
/// the last of a session's statements have to do with the pool, which all sessions share.
pub(crate) struct Sticky<DB: Driver> {
    /// Whoever has the connection owns it: while it is kept, it does so itself. A handle may outlive it by hours.
    state: Weak<ConnectionState<DB>>,
    asker: Asker,
}

impl<DB: Driver> Sticky<DB> {
    /// The statement is over, and more of its session may follow. `None` if the connection is not to be kept.
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

    /// As [`new`](Self::new), for one statement more. Gives the checkout back if it is not to be kept here.
    pub(crate) fn keep(&self, mut checkout: Checkout<DB>) -> Result<(), Checkout<DB>> {
        let is_here = |parts: &Parts<DB>| Arc::as_ptr(&parts.conn.state) == self.state.as_ptr();
        let may_be_kept = |parts: &Parts<DB>| parts.permit.pool.may_keep(&parts.conn.state);
        match checkout.0.take_if(|parts| is_here(parts) && may_be_kept(parts)) {
            Some(parts) => {
                let state = parts.conn.state.clone();
                state.keep(parts.end(), self.asker);
                Ok(())
            }
            None => Err(checkout),
        }
    }

    /// The connection, if it is one of this pool. `None` also if it was given away, or is not to be trusted any more.
    pub(crate) fn claim(&self, pool: &Arc<Pool<DB>>) -> Option<Checkout<DB>> {
        let state = self.state.upgrade().filter(|state| state.is_of(pool))?;
        let permit = state.claim(self.asker)?;
        if !pool.health.answers(pool.wanted()) {
            return None;
        }
        Checkout::of_trusted(permit, Instant::now()).ok()
    }
}

impl<DB: Driver> Drop for Sticky<DB> {
    fn drop(&mut self) {
        drop(self.state.upgrade().and_then(|state| state.claim(self.asker)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_shown_in_one_line_that_ends() {
        assert_eq!(in_one_line("\n  SELECT id\n    FROM notes\n"), "SELECT id FROM notes");
        let long = in_one_line(&format!("INSERT INTO notes VALUES {}", "('ä'), ".repeat(1000)));
        assert_eq!(long.chars().count(), MAX_SHOWN + 1);
        assert!(long.starts_with("INSERT INTO notes VALUES ('ä'), ('ä'), ") && long.ends_with('…'));
        assert_eq!(in_one_line(&"ä".repeat(600)).chars().count(), MAX_SHOWN + 1);
    }
}
