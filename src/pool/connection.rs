//! One connection to a server, and what others may ask and say of it while somebody uses it.
//!
//! Each connection lives in a sqlx pool of its own, of which it is the only member. Nothing else makes the
//! `PoolConnection` that `sqlx::Acquire` has to hand out and that owns a `Transaction`, and sqlx's hooks are
//! the only word of one that a handler has dropped. Queue, idle connections and generations are the work of
//! [`Pool`](super::Pool): a single sqlx pool for all would forget who is who, and ping without a time limit.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};
use std::{fmt, io};

use rocket::futures::task::AtomicWaker;
use rocket::tokio;
use rocket::tokio::time::timeout;
use sqlx::Connection as _;
use sqlx::pool::{PoolConnection, PoolOptions};

use super::Pool;
use super::counts::{CloseCause, Closing, PoolCounts};
use super::holder::{Asker, Holder};
use super::queue::Permit;
use crate::backend::{Conn, Driver, Instance, Left, Options, Prepared, SessionId};

/// A connection that somebody holds: the pool, or a checkout. It goes from hand to hand in a box, since each future on
/// the way has room for it.
pub(crate) type PooledConnection<DB> = Box<Connection<DB>>;

pub(crate) struct Connection<DB: Driver> {
    pub(super) conn: PoolConnection<DB>,
    pub(super) state: Arc<ConnectionState<DB>>,
    single: sqlx::Pool<DB>,
}

/// What is known of a connection, whoever holds it.
pub(crate) struct ConnectionState<DB: Driver> {
    opened: Instant,
    generation: u64,
    prepared: OnceLock<Prepared>,
    /// Milliseconds since `opened`: when it was last known to work.
    verified: AtomicU64,
    /// Milliseconds since `opened`, and one: since when a statement has been under way; 0 if none is.
    busy_since: AtomicU64,
    /// As `busy_since`: since when a handler has held it.
    held_since: AtomicU64,
    /// Whether its handler may have left something open on it.
    is_dirty: AtomicBool,
    ended: AtomicU8,
    waker: AtomicWaker,
    /// While a session keeps the connection between two statements.
    kept: Mutex<Option<Kept<DB>>>,
    /// While a handler holds the connection.
    lent: Mutex<Option<Lent<DB>>>,
    /// Whether sqlx has handed out the same connection again, and not opened another one.
    reused: AtomicBool,
    closing: Closing,
    counts: Arc<PoolCounts>,
    holder: Mutex<Holder>,
}

impl<DB: Driver> Drop for ConnectionState<DB> {
    fn drop(&mut self) {
        if self.prepared.get().is_some() {
            self.counts.closed.add(self.closing.get());
        }
    }
}

/// INVARIANT: owns the state that it lies in, until the session or the pool takes it.
struct Kept<DB: Driver> {
    /// With the connection.
    permit: Permit<DB>,
    asker: Asker,
}

/// What comes back with a connection that a handler holds.
struct Lent<DB: Driver> {
    permit: Permit<DB>,
    /// INVARIANT: the state has a handle to the pool of one only while the connection is lent. The hooks of
    /// that pool own the state, so that together they would never be dropped.
    single: sqlx::Pool<DB>,
    lending: Lending,
}

/// What a handler holds a connection for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lending {
    Connection,
    /// That has begun: sqlx ends it, whatever becomes of the handler.
    Transaction,
}

/// Why nobody waits any longer for what is under way on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Its server does not answer: a read may run elsewhere.
    ServerDown,
    /// It is known to be dead, so that no answer will ever come.
    Dead,
}

impl Ended {
    const NO: u8 = 0;

    fn to_bits(self) -> u8 {
        match self {
            Self::ServerDown => 1,
            Self::Dead => 2,
        }
    }

    fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            Self::NO => None,
            1 => Some(Self::ServerDown),
            _ => Some(Self::Dead),
        }
    }
}

impl<DB: Driver> Connection<DB> {
    /// Opens a connection, prepares it and learns whom it leads to.
    pub(super) async fn open(
        pool: &Pool<DB>,
        options: Options<DB>,
    ) -> Result<PooledConnection<DB>, sqlx::Error> {
        let state = Arc::new(ConnectionState {
            opened: Instant::now(),
            generation: pool.health().generation(),
            prepared: OnceLock::new(),
            verified: AtomicU64::new(0),
            busy_since: AtomicU64::new(0),
            held_since: AtomicU64::new(0),
            is_dirty: AtomicBool::new(false),
            ended: AtomicU8::new(Ended::NO),
            waker: AtomicWaker::new(),
            kept: Mutex::new(None),
            lent: Mutex::new(None),
            reused: AtomicBool::new(false),
            closing: Closing::new(),
            counts: pool.counts().clone(),
            holder: Mutex::default(),
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
            .connect_lazy_with(options);
        let mut conn = single.acquire().await?;
        let mut prepared = DB::prepare(&mut conn, pool.access()).await?;
        if !pool.prepared_statements() || pool.health().is_pooled() {
            // Behind a pooler that gives each transaction the connection that is free, nobody knows who answers.
            prepared = Prepared { read_only: prepared.read_only, ..Prepared::default() };
        }
        let _ = state.prepared.set(prepared);
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

    /// Closes it without a word to the server, which may never answer.
    pub(super) fn discard(self, why: CloseCause) {
        self.state.close(why);
        drop(self.conn.detach());
    }

    /// Closes it in order.
    pub(super) async fn close(self, why: CloseCause) {
        self.state.close(why);
        let _ = self.conn.close().await;
    }

    /// Hands it to a handler, from whom it comes back by the hook of its own pool.
    pub(super) fn lend(self, permit: Permit<DB>, lending: Lending) -> PoolConnection<DB> {
        let Self { conn, state, single } = self;
        let lent = Lent { permit, single, lending };
        state.begin_hold();
        *state.lent() = Some(lent);
        conn
    }
}

impl<DB: Driver> ConnectionState<DB> {
    pub(crate) fn opened(&self) -> Instant {
        self.opened
    }

    /// Whether this pool has opened it.
    pub(super) fn is_of(&self, pool: &Pool<DB>) -> bool {
        Arc::ptr_eq(&self.counts, pool.counts())
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn prepared(&self) -> Prepared {
        self.prepared.get().copied().unwrap_or_default()
    }

    pub(crate) fn instance(&self) -> Option<Instance> {
        self.prepared().instance
    }

    pub(super) fn session(&self) -> Option<SessionId> {
        self.prepared().session
    }

    /// It has answered.
    pub(super) fn verify(&self, now: Instant) {
        self.verified.store(self.millis(now), Ordering::Relaxed);
    }

    pub(super) fn verified(&self) -> Instant {
        self.opened + Duration::from_millis(self.verified.load(Ordering::Relaxed))
    }

    /// A statement is sent.
    pub(super) fn begin_statement(&self, now: Instant) {
        self.busy_since.store(self.millis(now) + 1, Ordering::Relaxed);
    }

    /// Nobody waits for its answer any more. Tells the clock of whoever did, if there is one.
    pub(super) fn end_statement(&self, took: Duration) {
        self.busy_since.store(0, Ordering::Relaxed);
        let holder = self.holder.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(clock) = &holder.clock {
            clock.add(took);
        }
    }

    /// For how long a statement has been under way.
    pub(super) fn busy_for(&self) -> Option<Duration> {
        since(&self.busy_since, self.millis(Instant::now()))
    }

    /// For how long a handler has held it.
    pub(super) fn held_for(&self) -> Option<Duration> {
        since(&self.held_since, self.millis(Instant::now()))
    }

    /// A handler holds it from now on.
    pub(super) fn begin_hold(&self) {
        self.held_since.store(self.millis(Instant::now()) + 1, Ordering::Relaxed);
    }

    pub(super) fn end_hold(&self) {
        self.held_since.store(0, Ordering::Relaxed);
    }

    /// How the handler that holds it leaves it, as far as is known.
    pub(crate) fn left(&self) -> Left {
        if self.is_dirty.load(Ordering::Relaxed) { Left::Dirty } else { Left::Clean }
    }

    pub(crate) fn leave(&self, left: Left) {
        self.is_dirty.store(left == Left::Dirty, Ordering::Relaxed);
    }

    /// Its session may need it again.
    pub(super) fn keep(&self, permit: Permit<DB>, asker: Asker) {
        *self.kept() = Some(Kept { permit, asker });
    }

    /// What this session has kept, unless it was taken back.
    pub(super) fn claim(&self, asker: Asker) -> Option<Permit<DB>> {
        self.kept().take_if(|kept| kept.asker == asker).map(|kept| kept.permit)
    }

    /// What any session has kept for so long.
    pub(super) fn reclaim(&self, idle: Duration) -> Option<Permit<DB>> {
        self.kept().take_if(|_| self.verified().elapsed() >= idle).map(|kept| kept.permit)
    }

    pub(super) fn is_kept(&self) -> bool {
        self.kept().is_some()
    }

    /// What the handler that has it holds it for from now on.
    pub(crate) fn lend_for(&self, lending: Lending) {
        if let Some(lent) = &mut *self.lent() {
            lent.lending = lending;
        }
    }

    /// It is somebody else's from now on, if it was not theirs already.
    pub(crate) fn take_for(&self, asker: Asker, holder: impl FnOnce() -> Holder) {
        let mut present = self.holder.lock().unwrap_or_else(PoisonError::into_inner);
        if present.asker != asker {
            *present = holder();
        }
    }

    pub(super) fn holder(&self) -> Holder {
        self.holder.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// It is about to be closed: the first cause counts.
    pub(super) fn close(&self, why: CloseCause) {
        self.closing.set(why);
    }

    /// Nobody waits for it any longer. A handler that holds it keeps it, but not its permit in the pool.
    pub(super) fn end(&self, why: Ended) {
        self.ended.fetch_max(why.to_bits(), Ordering::AcqRel);
        self.close(CloseCause::Invalidated);
        self.waker.wake();
        if why == Ended::Dead {
            let lent = self.lent().take();
            drop(lent);
        }
    }

    pub(super) fn ended(&self) -> Option<Ended> {
        Ended::from_bits(self.ended.load(Ordering::Acquire))
    }

    /// Work on this connection, unless it is ended first.
    pub(super) async fn unless_ended<T>(
        &self,
        mut work: Pin<&mut impl Future<Output = T>>,
    ) -> Result<T, Ended> {
        poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Ok(done));
            }
            // Registers before it looks, so that it misses no end in between.
            self.waker.register(cx.waker());
            self.ended().map_or(Poll::Pending, |ended| Poll::Ready(Err(ended)))
        })
        .await
    }

    /// Gives its permit in the pool back if the handler has closed the connection, or made it its own.
    pub(super) fn reap(&self) {
        let mut lent = self.lent();
        if lent.as_ref().is_some_and(|lent| lent.single.size() == 0) {
            let lent = lent.take();
            drop(lent);
        }
    }

    /// A handler has dropped the connection. Whether sqlx keeps it, so that the pool can take it back.
    async fn come_back(self: Arc<Self>, conn: &mut Conn<DB>) -> bool {
        let Some(Lent { permit, single, lending }) = self.lent().take() else { return false };
        self.end_hold();
        let pool = permit.pool.clone();
        if !pool.may_keep(&self) {
            self.close(pool.why_not_kept());
            return false;
        }
        let settled = async {
            match lending {
                Lending::Transaction => Ok(Left::Clean),
                Lending::Connection => DB::settle(conn).await,
            }
        };
        match timeout(pool.check_timeout(), settled).await {
            Ok(Ok(Left::Clean)) => self.verify(Instant::now()),
            Ok(Ok(Left::Dirty)) => {
                pool.warn_of_transaction();
                self.close(CloseCause::Dirty);
                return false;
            }
            Ok(Err(_)) | Err(_) => {
                self.close(CloseCause::Failed);
                return false;
            }
        }
        self.reused.store(false, Ordering::Release);
        tokio::spawn(async move {
            // sqlx pings once more before it lets go. If that fails, it opens another connection, which
            // nobody has prepared.
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

    /// Nothing in here can panic halfway through a change.
    fn kept(&self) -> MutexGuard<'_, Option<Kept<DB>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lent(&self) -> MutexGuard<'_, Option<Lent<DB>>> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since it was opened.
    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.opened).as_millis()).unwrap_or(u64::MAX)
    }
}

/// How long ago that was, if it was.
fn since(began: &AtomicU64, now: u64) -> Option<Duration> {
    let began = began.load(Ordering::Relaxed).checked_sub(1)?;
    Some(Duration::from_millis(now.saturating_sub(began)))
}

/// The error of a write whose connection died before the answer came.
#[derive(Debug)]
pub(crate) struct OutcomeUnknown {
    pub(super) server: String,
    /// What the connection died of, where it said so.
    pub(super) cause: Option<io::Error>,
}

impl OutcomeUnknown {
    /// Whether this is what an error says.
    pub(crate) fn is(error: &sqlx::Error) -> bool {
        matches!(error, sqlx::Error::Io(error) if error.get_ref().is_some_and(|inner| inner.is::<Self>()))
    }
}

impl From<OutcomeUnknown> for sqlx::Error {
    fn from(unknown: OutcomeUnknown) -> Self {
        io::Error::new(io::ErrorKind::ConnectionAborted, unknown).into()
    }
}

impl fmt::Display for OutcomeUnknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let server = &self.server;
        write!(f, "the connection to the {server} died before the answer came: the outcome is unknown")
    }
}

impl std::error::Error for OutcomeUnknown {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_ref().map(|cause| cause as _)
    }
}
