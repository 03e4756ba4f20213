//! One connection to a server, and its state, which others read and change while the connection is in use.
//!
//! Each connection is the only member of a sqlx pool of its own, for two reasons. Only a sqlx pool makes the
//! `PoolConnection` that `sqlx::Acquire` has to hand out and that a `Transaction` needs. And only sqlx's hooks tell
//! when a handler has dropped one. The queue, idle connections and generations are the work of [`Pool`](super::Pool).
//! A single sqlx pool for all connections would forget which of them leads where, and would ping without a time limit.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rocket::tokio;
use rocket::tokio::time::timeout;
use sqlx::Connection as _;
use sqlx::pool::{PoolConnection, PoolOptions};

use super::counts::{CloseCause, Closing, PoolCounts};
use super::custody::{Custody, Ended, Lending, Loan};
use super::holder::{Asker, Holder};
use super::read_only::Told;
use super::{Permit, Pool};
use crate::backend::keepalive::keep_alive;
use crate::backend::{Conn, ConnectionInfo, Driver, Instance, Left, Options, SessionId};
use crate::sync::Mutex;

/// A connection that the pool or a checkout holds. It is boxed, because each future that passes it on would otherwise
/// reserve room for it.
pub(crate) type PooledConnection<DB> = Box<Connection<DB>>;

pub(crate) struct Connection<DB: Driver> {
    pub(super) conn: PoolConnection<DB>,
    pub(super) state: Arc<ConnectionState<DB>>,
    single: sqlx::Pool<DB>,
}

/// The state of a connection. The pool and the monitor read it while others hold the connection.
pub(crate) struct ConnectionState<DB: Driver> {
    opened: Instant,
    /// How long the connection is used. Drawn at random, so that connections opened together do not end together.
    lifetime: Duration,
    generation: u64,
    info: OnceLock<ConnectionInfo>,
    /// Milliseconds since `opened`: when it was last known to work.
    verified: AtomicU64,
    /// Milliseconds since `opened`: when it was last used, and not only pinged.
    used: AtomicU64,
    /// Milliseconds since `opened`, plus one: when the present statement was sent. 0 if none is under way.
    busy_since: AtomicU64,
    /// Whether its handler may have left something open on it.
    is_dirty: AtomicBool,
    pub(super) custody: Custody<Pool<DB>, sqlx::Pool<DB>>,
    /// Whether sqlx has handed out the same connection again, and not opened another one.
    reused: AtomicBool,
    closing: Closing,
    counts: Arc<PoolCounts>,
    holder: Mutex<Holder>,
    /// Whether the holder has a clock. Without one, a statement need not lock the holder.
    is_timed: AtomicBool,
}

impl<DB: Driver> Drop for ConnectionState<DB> {
    fn drop(&mut self) {
        if self.info.get().is_some() {
            self.counts.closed.add(self.closing.get());
        }
    }
}

/// Draws the lifetime of one connection: between 80 % and 100 % of `max`.
pub(super) fn lifetime(max: Duration) -> Duration {
    max.mul_f64(0.8 + 0.2 * fastrand::f64())
}

impl<DB: Driver> Connection<DB> {
    /// Opens a connection, sets it up and learns which server instance it leads to.
    pub(super) async fn open(
        pool: &Pool<DB>,
        options: Options<DB>,
        told: Told,
    ) -> Result<PooledConnection<DB>, sqlx::Error> {
        // A proxy without a server behind it accepts a connection and closes it. sqlx reports that as an answer that
        // it does not understand.
        Self::try_open(pool, options, told).await.map_err(|error| match error {
            sqlx::Error::Protocol(text) => io::Error::new(io::ErrorKind::InvalidData, text).into(),
            error => error,
        })
    }

    async fn try_open(
        pool: &Pool<DB>,
        options: Options<DB>,
        told: Told,
    ) -> Result<PooledConnection<DB>, sqlx::Error> {
        let state = Arc::new(ConnectionState {
            opened: Instant::now(),
            lifetime: lifetime(pool.max_lifetime),
            generation: pool.health().generation(),
            info: OnceLock::new(),
            verified: AtomicU64::new(0),
            used: AtomicU64::new(0),
            busy_since: AtomicU64::new(0),
            is_dirty: AtomicBool::new(false),
            custody: Custody::new(),
            reused: AtomicBool::new(false),
            closing: Closing::new(),
            counts: pool.counts().clone(),
            holder: Mutex::default(),
            is_timed: AtomicBool::new(false),
        });
        let (released, reused) = (state.clone(), state.clone());
        let single = PoolOptions::new()
            .max_connections(1)
            .acquire_timeout(pool.longest_opening())
            .acquire_slow_level(log::LevelFilter::Off)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .before_acquire(move |_, _| {
                reused.reused.store(true, Ordering::Release);
                Box::pin(async { Ok(true) })
            })
            .after_release(move |conn, _| {
                let state = released.clone();
                Box::pin(async move { Ok(state.come_back(conn).await) })
            })
            .connect_lazy_with(options.clone());
        let mut conn = single.acquire().await?;
        keep_alive::<DB>(&options);
        if told == Told::ToBeReadOnly {
            DB::make_read_only(&mut conn).await?;
        }
        let mut info = DB::set_up(&mut conn, pool.access(), pool.read_only.is_some()).await?;
        info.accept(pool.access())?;
        if let Some(hook) = &pool.hook {
            info = hook.run(&mut conn, info).await?;
        }
        if !pool.prepared_statements() || pool.health().is_pooled() {
            // A pooler that gives each transaction any free connection hides which server and session answer.
            info = ConnectionInfo { read_only: info.read_only, ..ConnectionInfo::default() };
        }
        if pool.access().writes() && info.read_only {
            // A proxy that splits reads from writes has asked a slave. The writes of this connection run in another
            // session.
            info.session = None;
        }
        let _ = state.info.set(info);
        pool.counts().opened.add(state.opened.elapsed());
        state.verify(Instant::now());
        Ok(Box::new(Self { conn, state, single }))
    }

    pub(super) async fn ping(&mut self, patience: Duration) -> bool {
        let answered = timeout(patience, self.conn.ping()).await;
        let works = matches!(answered, Ok(Ok(())));
        if works {
            self.state.verify(Instant::now());
        }
        works
    }

    /// Closes the connection without a word to the server, which may never answer.
    pub(super) fn discard(self, why: CloseCause) {
        self.state.close(why);
        drop(self.conn.detach());
    }

    /// Closes the connection in order.
    pub(super) async fn close(self, why: CloseCause) {
        self.state.close(why);
        let _ = self.conn.close().await;
    }

    /// Hands the connection to a handler, with its permit. There is no permit if the handler holds the connection already.
    /// The connection comes back by the hook of its own sqlx pool, unless it is dead.
    pub(super) fn lend(self, permit: Option<Permit<DB>>, lending: Lending) -> PoolConnection<DB> {
        let Self { conn, state, single } = self;
        let loan = Loan { single, lending };
        match permit {
            Some(permit) => state.custody.hand_out(permit, Some(loan)),
            None => state.custody.lend_held(loan),
        }
        conn
    }
}

impl<DB: Driver> ConnectionState<DB> {
    pub(crate) fn opened(&self) -> Instant {
        self.opened
    }

    /// True if this pool opened the connection.
    pub(super) fn is_of(&self, pool: &Pool<DB>) -> bool {
        Arc::ptr_eq(&self.counts, pool.counts())
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// True if the connection has been open for longer than its lifetime.
    pub(super) fn is_old(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.opened) > self.lifetime
    }

    /// Time since a statement or a handler last used the connection. A ping does not count.
    pub(super) fn idle_for(&self, now: Instant) -> Duration {
        let used = self.opened + Duration::from_millis(self.used.load(Ordering::Relaxed));
        now.saturating_duration_since(used)
    }

    pub(super) fn info(&self) -> ConnectionInfo {
        self.info.get().copied().unwrap_or_default()
    }

    pub(crate) fn instance(&self) -> Option<Instance> {
        self.info().instance
    }

    pub(super) fn session(&self) -> Option<SessionId> {
        self.info().session
    }

    /// Notes that the server has answered on this connection.
    pub(super) fn verify(&self, now: Instant) {
        self.verified.store(self.millis(now), Ordering::Relaxed);
    }

    pub(super) fn verified(&self) -> Instant {
        self.opened + Duration::from_millis(self.verified.load(Ordering::Relaxed))
    }

    /// Notes that a statement is sent.
    pub(super) fn begin_statement(&self, now: Instant) {
        self.busy_since.store(self.millis(now) + 1, Ordering::Relaxed);
    }

    /// Notes that the wait for an answer has ended, and whether the answer came. Adds its time to the holder's clock, if
    /// there is one.
    pub(super) fn end_statement(&self, now: Instant, took: Duration, is_answered: bool) {
        let millis = self.millis(now);
        self.busy_since.store(0, Ordering::Relaxed);
        self.used.store(millis, Ordering::Relaxed);
        if is_answered {
            self.verified.store(millis, Ordering::Relaxed);
        }
        if self.is_timed.load(Ordering::Relaxed)
            && let Some(clock) = &self.holder.lock().clock
        {
            clock.add(took);
        }
    }

    /// How long the present statement has been under way. `None` if none is.
    pub(super) fn busy_for(&self) -> Option<Duration> {
        let began = self.busy_since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(Duration::from_millis(self.millis(Instant::now()).saturating_sub(began)))
    }

    /// Notes that the connection is no longer used.
    pub(super) fn end_use(&self) {
        self.used.store(self.millis(Instant::now()), Ordering::Relaxed);
    }

    /// The state in which the handler leaves the connection, as far as is known.
    pub(crate) fn left(&self) -> Left {
        if self.is_dirty.load(Ordering::Relaxed) { Left::Dirty } else { Left::Clean }
    }

    pub(crate) fn leave(&self, left: Left) {
        self.is_dirty.store(left == Left::Dirty, Ordering::Relaxed);
    }

    /// Takes back the permit that any session has kept, once the last answer on the connection is `idle` old.
    pub(super) fn reclaim(&self, idle: Duration) -> Option<Permit<DB>> {
        if self.verified().elapsed() < idle { None } else { self.custody.reclaim() }
    }

    /// Changes what the handler holds the connection for.
    pub(crate) fn lend_for(&self, lending: Lending) {
        self.custody.lend_for(lending);
    }

    /// Makes the session `asker` the connection's holder, unless it is already.
    pub(crate) fn take_for(&self, asker: Asker, holder: impl FnOnce() -> Holder) {
        let mut present = self.holder.lock();
        if present.asker != asker {
            *present = holder();
            self.is_timed.store(present.clock.is_some(), Ordering::Relaxed);
        }
    }

    pub(super) fn holder(&self) -> Holder {
        self.holder.lock().clone()
    }

    /// Notes why the connection is about to be closed. The first cause counts.
    pub(super) fn close(&self, why: CloseCause) {
        self.closing.set(why);
    }

    /// Ends what runs on the connection.
    pub(super) fn end(&self, why: Ended) {
        self.close(CloseCause::Invalidated);
        self.custody.end(why);
    }

    /// Gives the permit back if a handler has closed the connection, or taken it out of sqlx's pool.
    pub(super) fn reap(&self) {
        self.custody.reap(|single| single.size() == 0);
    }

    /// True if nothing was left open on a connection that its handler has dropped, as `left` finds out. Else notes why
    /// the connection has to be closed.
    pub(super) async fn is_settled(
        &self,
        pool: &Pool<DB>,
        left: impl Future<Output = Result<Left, sqlx::Error>>,
    ) -> bool {
        match timeout(pool.check_timeout(), left).await {
            Ok(Ok(Left::Clean)) => {
                self.verify(Instant::now());
                return true;
            }
            Ok(Ok(Left::Dirty)) => {
                pool.warn_of_transaction(&self.holder());
                self.close(CloseCause::Dirty);
            }
            Ok(Err(_)) | Err(_) => self.close(CloseCause::Failed),
        }
        false
    }

    /// Takes back a connection that its handler has dropped. `true` tells sqlx to keep it, so that the pool can take
    /// it from there.
    async fn come_back(self: Arc<Self>, conn: &mut Conn<DB>) -> bool {
        self.end_use();
        let Some((permit, Some(Loan { single, lending }))) = self.custody.take_back() else { return false };
        let pool = permit.pool.clone();
        if !pool.may_keep(&self) {
            self.close(pool.why_not_kept());
            return false;
        }
        let left = async {
            match lending {
                Lending::EndingTransaction => Ok(Left::Clean),
                // A statement may have been given up in the transaction. sqlx would wait for its answer without a
                // limit.
                Lending::Transaction => conn.ping().await.map(|()| Left::Clean),
                Lending::Connection => DB::settle(conn).await,
            }
        };
        if !self.is_settled(&pool, left).await {
            return false;
        }
        self.reused.store(false, Ordering::Release);
        tokio::spawn(async move {
            // sqlx pings once more before it releases the connection. If the ping fails, sqlx opens another
            // connection, which was never set up.
            let conn = match timeout(pool.check_timeout(), single.acquire()).await {
                Ok(Ok(conn)) => conn,
                Ok(Err(_)) | Err(_) => return self.close(CloseCause::Failed),
            };
            let back = Box::new(Connection { conn, state: self, single });
            if back.state.reused.load(Ordering::Acquire) {
                drop(permit.with(back));
            } else {
                back.discard(CloseCause::Failed);
            }
        });
        true
    }

    /// Milliseconds from `opened` to `now`.
    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.opened).as_millis()).unwrap_or(u64::MAX)
    }
}
