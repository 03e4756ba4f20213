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
use crate::backend::keepalive::keep_alive;
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
    /// For so long it is used: not all that were opened together end together.
    lifetime: Duration,
    generation: u64,
    prepared: OnceLock<Prepared>,
    /// Milliseconds since `opened`: when it was last known to work.
    verified: AtomicU64,
    /// Milliseconds since `opened`: when it was last used, and not only pinged.
    used: AtomicU64,
    /// Milliseconds since `opened`, and one: since when a statement has been under way; 0 if none is.
    busy_since: AtomicU64,
    /// As `busy_since`: since when a handler has held it.
    held_since: AtomicU64,
    /// Whether its handler may have left something open on it.
    is_dirty: AtomicBool,
    ended: AtomicU8,
    waker: AtomicWaker,
    place: Mutex<Place<DB>>,
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

/// Where a connection's permit is. Taken from here, it goes back to the pool, whoever has the connection.
enum Place<DB: Driver> {
    /// Beside the connection: in the queue, or with a statement. Or gone: its connection is not to be used again.
    Elsewhere,
    /// A session keeps the connection between two statements. INVARIANT: the permit has the connection, which owns this
    /// state, until the session or the pool takes it.
    Kept { permit: Permit<DB>, asker: Asker },
    /// A handler holds the connection.
    Held { permit: Permit<DB> },
    /// A handler holds the connection as sqlx's own.
    Lent {
        permit: Permit<DB>,
        /// INVARIANT: the state has a handle to the pool of one only while the connection is lent. The hooks of
        /// that pool own the state, so that together they would never be dropped.
        single: sqlx::Pool<DB>,
        lending: Lending,
    },
}

impl<DB: Driver> Place<DB> {
    /// What is here, if `is_wanted`.
    fn take_if(&mut self, is_wanted: impl FnOnce(&Self) -> bool) -> Option<Self> {
        is_wanted(self).then(|| std::mem::replace(self, Self::Elsewhere))
    }

    fn into_permit(self) -> Option<Permit<DB>> {
        match self {
            Self::Elsewhere => None,
            Self::Kept { permit, .. } | Self::Held { permit } | Self::Lent { permit, .. } => Some(permit),
        }
    }
}

/// Of one connection.
pub(super) fn lifetime(max: Duration) -> Duration {
    max.mul_f64(0.8 + 0.2 * fastrand::f64())
}

/// What a handler holds a connection for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lending {
    Connection,
    /// That has begun: sqlx ends it, whatever becomes of the handler.
    Transaction,
    /// That its handler ends.
    EndingTransaction,
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
            lifetime: lifetime(pool.max_lifetime),
            generation: pool.health().generation(),
            prepared: OnceLock::new(),
            verified: AtomicU64::new(0),
            used: AtomicU64::new(0),
            busy_since: AtomicU64::new(0),
            held_since: AtomicU64::new(0),
            is_dirty: AtomicBool::new(false),
            ended: AtomicU8::new(Ended::NO),
            waker: AtomicWaker::new(),
            place: Mutex::new(Place::Elsewhere),
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
            .connect_lazy_with(options.clone());
        let mut conn = single.acquire().await?;
        keep_alive::<DB>(&options);
        let mut prepared = DB::prepare(&mut conn, pool.access()).await?;
        prepared.accept(pool.access())?;
        if !pool.prepared_statements() || pool.health().is_pooled() {
            // Behind a pooler that gives each transaction the connection that is free, nobody knows who answers.
            prepared = Prepared { read_only: prepared.read_only, ..Prepared::default() };
        }
        if pool.access().writes() && prepared.read_only {
            // A proxy that splits reads from writes asked a slave: what runs is no affair of that session.
            prepared.session = None;
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

    /// Hands it to a handler, from whom it comes back by the hook of its own pool. Without a permit, which went when the
    /// connection was found to be dead, it does not come back.
    pub(super) fn lend(self, permit: Option<Permit<DB>>, lending: Lending) -> PoolConnection<DB> {
        let Self { conn, state, single } = self;
        if let Some(permit) = permit {
            state.hold(Place::Lent { permit, single, lending });
        }
        conn
    }

    /// A handler holds it from now on.
    pub(super) fn hold(&self, permit: Permit<DB>) {
        self.state.hold(Place::Held { permit });
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

    /// Whether it has been open for long enough.
    pub(super) fn is_old(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.opened) > self.lifetime
    }

    /// For how long no statement has used it.
    pub(super) fn idle_for(&self, now: Instant) -> Duration {
        let used = self.opened + Duration::from_millis(self.used.load(Ordering::Relaxed));
        now.saturating_duration_since(used)
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
    pub(super) fn end_statement(&self, now: Instant, took: Duration) {
        self.busy_since.store(0, Ordering::Relaxed);
        self.used.store(self.millis(now), Ordering::Relaxed);
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

    fn hold(&self, place: Place<DB>) {
        self.held_since.store(self.millis(Instant::now()) + 1, Ordering::Relaxed);
        *self.place() = place;
        // It may have been found dead just before: whoever did so found no permit here.
        self.give_back_if_dead();
    }

    /// A handler that holds a dead connection keeps it, but not its permit in the pool.
    fn give_back_if_dead(&self) {
        if self.ended() == Some(Ended::Dead) {
            drop(self.take_if(|place| matches!(place, Place::Held { .. } | Place::Lent { .. })));
        }
    }

    /// Its handler holds it no more. `None` if the permit went when the connection was found to be dead.
    pub(super) fn end_hold(&self) -> Option<Permit<DB>> {
        self.held_since.store(0, Ordering::Relaxed);
        self.used.store(self.millis(Instant::now()), Ordering::Relaxed);
        self.take_if(|place| matches!(place, Place::Held { .. })).and_then(Place::into_permit)
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
        *self.place() = Place::Kept { permit, asker };
    }

    /// What this session has kept, unless it was taken back.
    pub(super) fn claim(&self, asker: Asker) -> Option<Permit<DB>> {
        self.take_if(|place| matches!(place, Place::Kept { asker: its, .. } if *its == asker))
            .and_then(Place::into_permit)
    }

    /// What any session has kept for so long.
    pub(super) fn reclaim(&self, idle: Duration) -> Option<Permit<DB>> {
        self.take_if(|place| matches!(place, Place::Kept { .. }) && self.verified().elapsed() >= idle)
            .and_then(Place::into_permit)
    }

    pub(super) fn is_kept(&self) -> bool {
        matches!(*self.place(), Place::Kept { .. })
    }

    /// What the handler that has it holds it for from now on.
    pub(crate) fn lend_for(&self, lending: Lending) {
        if let Place::Lent { lending: present, .. } = &mut *self.place() {
            *present = lending;
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

    /// Nobody waits for it any longer.
    pub(super) fn end(&self, why: Ended) {
        self.ended.fetch_max(why.to_bits(), Ordering::AcqRel);
        self.close(CloseCause::Invalidated);
        self.waker.wake();
        self.give_back_if_dead();
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
        drop(self.take_if(|place| matches!(place, Place::Lent { single, .. } if single.size() == 0)));
    }

    /// A handler has dropped the connection. Whether sqlx keeps it, so that the pool can take it back.
    async fn come_back(self: Arc<Self>, conn: &mut Conn<DB>) -> bool {
        let lent = self.take_if(|place| matches!(place, Place::Lent { .. }));
        self.end_hold();
        let Some(Place::Lent { permit, single, lending }) = lent else { return false };
        let pool = permit.pool.clone();
        if !pool.may_keep(&self) {
            self.close(pool.why_not_kept());
            return false;
        }
        let settled = async {
            match lending {
                Lending::EndingTransaction => Ok(Left::Clean),
                // A statement may have been given up in it, whose answer sqlx would wait for without a limit.
                Lending::Transaction => conn.ping().await.map(|()| Left::Clean),
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
    fn place(&self) -> MutexGuard<'_, Place<DB>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be dropped without the lock: a permit passes on to others.
    fn take_if(&self, is_wanted: impl FnOnce(&Place<DB>) -> bool) -> Option<Place<DB>> {
        self.place().take_if(is_wanted)
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
    pub(super) cause: Option<sqlx::Error>,
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
