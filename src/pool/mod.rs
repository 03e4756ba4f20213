//! The connections to one server for one purpose.
//!
//! Why not a pool of somebody else: `deadpool` has the queue and the list of idle connections, and nothing of
//! the rest. A connection that is kept for its session and may be taken back from it, one that a handler holds
//! while its permit is given to another, idle times, keep-alive pings and generations would all stand beside
//! it; what it saves is the module `queue`. sqlx's own pool pings each connection that is handed back, in a
//! task of its own and without a time limit, and forgets whom a connection leads to.
//!
//! A connection that is handed out is of the present [generation](Health::generation), and is known to work:
//! it was used a moment ago, or answers a ping within [`Health::ping_timeout`]. If one does not answer, all that
//! have slept for as long are closed with it and a new one is opened, so that a request pays for one at most.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use log::warn;
use rocket::tokio;
use rocket::tokio::runtime::Handle;
use sqlx::ConnectOptions;

use crate::backend::{Access, Driver, Fault, Instance, NotTheMaster, Options, Settings};
use crate::health::{Health, Role, Use};
use crate::sync::{Mutex, MutexGuard};
use crate::throttle::Throttle;

mod checkout;
mod connection;
mod counts;
mod custody;
mod holder;
#[cfg(test)]
mod orders;
mod plain;
mod queue;
mod read_only;
mod sessions;
#[cfg(all(test, feature = "sqlite"))]
mod tests;
mod upkeep;
mod watch;

pub(crate) use checkout::{Checkout, Held, Sticky};
pub(crate) use connection::ConnectionState;
pub(crate) use counts::PoolCounts;
pub use counts::{CloseCause, PoolUse};
pub(crate) use custody::{Ended, Lending};
pub(crate) use holder::{Asker, Clock, Holder, Sessions, Ticking};
pub(crate) use sessions::Session;
pub(crate) use watch::{Outcome, OutcomeUnknown, StatementError, Watch};

use connection::PooledConnection;
use holder::TimedOut;
use queue::{Entry, Owner, Queue, Receiver, Refusal, Ticker};
use read_only::ReadOnlyCheck;

type Permit<DB> = queue::Permit<Pool<DB>>;

/// A checkout that takes longer asks for a probe of its server.
const SUSPICIOUS_WAIT: Duration = Duration::from_millis(100);

/// A connection is given up that has been opening for longer, though checkouts wait less long.
pub(crate) const LONGEST_OPENING: Duration = Duration::from_secs(10);

/// After the first attempt to reach the master by an address that leads to a slave of it for the moment; twice as long after
/// each other one, up to [`LONGEST_PAUSE`].
const ELSEWHERE_PAUSE: Duration = Duration::from_millis(50);

const LONGEST_PAUSE: Duration = Duration::from_millis(400);

/// For so long a connection is kept for its session though others wait.
const KEPT_IF_WAITED_FOR: Duration = Duration::from_millis(1);

/// A connection that has been idle for longer is pinged before it is handed out.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);

/// As sqlx's default: servers free what a long session has gathered, and balancers see new connections.
const MAX_LIFETIME: Duration = Duration::from_secs(30 * 60);

/// One line about a pool that keeps everybody waiting in so much time.
const BETWEEN_WARNINGS: Duration = Duration::from_secs(10);

/// What a pool needs to be opened.
pub(crate) struct PoolOptions<'a> {
    pub(crate) database: &'static str,
    pub(crate) access: Access,
    pub(crate) settings: &'a Settings,
    /// How long a checkout waits.
    pub(crate) timeout: Duration,
    /// How long a server has to answer a ping.
    pub(crate) check_timeout: Duration,
    /// Of its server.
    pub(crate) health: Arc<Health>,
}

pub(crate) struct Pool<DB: Driver> {
    access: Access,
    options: Options<DB>,
    prepared_statements: bool,
    timeout: Duration,
    check_timeout: Duration,
    idle_timeout: Option<Duration>,
    max_lifetime: Duration,
    min_connections: u32,
    max_connections: u32,
    health: Arc<Health>,
    counts: Arc<PoolCounts>,
    /// Where connections are made read-only: whether they are.
    read_only: Option<ReadOnlyCheck<DB>>,
    /// Has a permit for each connection that is in use, kept, or being opened.
    queue: Queue<Self>,
    /// How many have a permit, and wait for a connection that works.
    connecting: AtomicU32,
    /// All that are open, whoever has them.
    open: Mutex<Vec<Weak<ConnectionState<DB>>>>,
    /// For crates that ask for a pool of sqlx's own, once one did.
    plain: Mutex<Option<sqlx::Pool<DB>>>,
    /// Of checkouts that timed out.
    warnings: Throttle,
    /// The monitor's: another one, which a job may bring along, need not be driven for long.
    runtime: OnceLock<Handle>,
    /// The application shuts down.
    is_draining: AtomicBool,
    /// One more is being opened for `min_connections`.
    is_filling: AtomicBool,
}

/// Counts somebody for as long as it lives.
struct Connecting<'a>(&'a AtomicU32);

impl<'a> Connecting<'a> {
    fn new(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum Failure {
    /// All connections are in use: the server is well.
    Busy(sqlx::Error),
    /// The server cannot be reached.
    Unreachable(sqlx::Error),
}

impl From<Failure> for sqlx::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Busy(error) | Failure::Unreachable(error) => error,
        }
    }
}

/// Options by which sqlx does not warn of slow statements, as a [`Watch`] does.
fn quiet<O: ConnectOptions>(options: O) -> O {
    options.log_slow_statements(log::LevelFilter::Off, Duration::MAX)
}

impl<DB: Driver> Pool<DB> {
    /// Opens no connection yet. Fails only on settings that `Config` would not have let through.
    pub(crate) fn new(options: PoolOptions<'_>) -> Result<Arc<Self>, String> {
        let PoolOptions { database, access, settings, timeout, check_timeout, health } = options;
        let read_only = (!access.writes() && settings.enforce_read_only).then(|| {
            let plain = quiet(DB::plain_options(settings, access)?);
            Ok::<_, String>(ReadOnlyCheck::new(database, health.name().clone(), plain))
        });
        Ok(Arc::new(Self {
            access,
            options: quiet(DB::options(settings, access)?),
            prepared_statements: settings.prepared_statements,
            timeout,
            check_timeout,
            idle_timeout: settings.idle_timeout,
            max_lifetime: MAX_LIFETIME,
            min_connections: settings.min_connections,
            max_connections: settings.max_connections,
            read_only: read_only.transpose()?,
            queue: Queue::new(settings.max_connections),
            connecting: AtomicU32::new(0),
            open: Mutex::default(),
            plain: Mutex::default(),
            health,
            counts: Arc::default(),
            warnings: Throttle::new(BETWEEN_WARNINGS),
            runtime: OnceLock::new(),
            is_draining: AtomicBool::new(false),
            is_filling: AtomicBool::new(false),
        }))
    }

    pub(crate) fn access(&self) -> Access {
        self.access
    }

    /// What its server does for those who use it.
    pub(crate) fn role(&self) -> Role {
        match self.access {
            Access::ReadWrite | Access::ReadMaster => Role::Master,
            Access::ReadSlave => Role::Slave,
        }
    }

    pub(crate) fn health(&self) -> &Arc<Health> {
        &self.health
    }

    pub(crate) fn counts(&self) -> &Arc<PoolCounts> {
        &self.counts
    }

    pub(crate) fn max_connections(&self) -> u32 {
        self.max_connections
    }

    /// How many connections are open, in use or not.
    pub(crate) fn size(&self) -> u32 {
        self.open_connections()
    }

    /// How many wait for a connection.
    pub(crate) fn waiting(&self) -> u64 {
        self.queue.waiting() as u64 + u64::from(self.connecting.load(Ordering::Relaxed))
    }

    pub(crate) fn prepared_statements(&self) -> bool {
        self.prepared_statements
    }

    fn check_timeout(&self) -> Duration {
        self.check_timeout
    }

    /// Whether a statement that can be repeated cannot have written here, as far as is known.
    pub(crate) fn is_read_only(&self) -> bool {
        self.begin_read_only().is_some() || self.read_only.as_ref().is_some_and(ReadOnlyCheck::holds)
    }

    /// What begins the transactions of reads where a pooler in between may drop or refuse the settings of a connection.
    pub(crate) fn begin_read_only(&self) -> Option<&'static str> {
        let is_by_transactions = || self.read_only.as_ref().is_some_and(ReadOnlyCheck::is_by_transactions);
        let is_wanted = !self.access.writes() && (!self.prepared_statements || is_by_transactions());
        DB::BEGIN_READ_ONLY.filter(|_| is_wanted)
    }

    /// How many connections are in use, or kept for a session.
    pub(crate) fn busy(&self) -> u32 {
        self.max_connections.saturating_sub(self.queue.free())
    }

    /// How many statements and handlers the server has to do with.
    pub(crate) fn load(&self) -> u32 {
        let open = self.open();
        let kept = open.iter().filter_map(Weak::upgrade).filter(|state| state.is_kept()).count();
        self.busy().saturating_sub(u32::try_from(kept).unwrap_or(u32::MAX))
    }

    /// Whether a checkout need not wait for another to end.
    pub(crate) fn has_room(&self) -> bool {
        self.queue.free() > 0
    }

    fn wanted(&self) -> Use {
        self.access.into()
    }

    /// Checks out a connection.
    pub(crate) async fn check_out(self: &Arc<Self>, asker: Asker) -> Result<Checkout<DB>, Failure> {
        if !self.health.answers(self.wanted()) {
            return Err(Failure::Unreachable(self.unreachable()));
        }
        let began = Instant::now();
        let permit = match self.queue.enter(self, began) {
            Entry::Permit(permit) => match Checkout::of_trusted(permit, began) {
                Ok(checkout) => {
                    self.counts.immediate.add_one();
                    return Ok(checkout);
                }
                Err(permit) => permit,
            },
            Entry::Waits(receiver, ticker) => self.wait(receiver, ticker, asker).await?,
            Entry::Closed => return Err(Failure::Busy(sqlx::Error::PoolClosed)),
        };
        let now = Instant::now();
        match Checkout::of_trusted(permit, now) {
            Ok(checkout) => {
                self.counts.waited.add(now - began);
                Ok(checkout)
            }
            Err(permit) => {
                let checkout = Box::pin(self.test_or_open(permit, began, asker)).await?;
                self.counts.waited.add(began.elapsed());
                Ok(checkout)
            }
        }
    }

    /// Waits for a permit.
    async fn wait(
        self: &Arc<Self>,
        receiver: Receiver<Self>,
        ticker: Ticker,
        asker: Asker,
    ) -> Result<Permit<DB>, Failure> {
        if ticker == Ticker::Stopped {
            self.start_ticker();
            self.reclaim(KEPT_IF_WAITED_FOR);
        }
        match receiver.await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(Refusal::TimedOut { others })) => {
                Err(self.timed_out(TimedOut::crowd(self, asker, others)))
            }
            Ok(Err(Refusal::ServerDown)) => Err(Failure::Unreachable(self.unreachable())),
            Err(_) => Err(Failure::Busy(sqlx::Error::PoolClosed)),
        }
    }

    fn timed_out(&self, why: TimedOut) -> Failure {
        self.counts.timed_out.add_one();
        // A read that finds a slave busy goes elsewhere, and needs no warning.
        let is_news = self.role() == Role::Master || !why.is_crowd();
        if is_news && self.warnings.pass().is_some() {
            let text = why.to_string();
            warn!("{}{}.", text[..1].to_uppercase(), &text[1..]);
        }
        Failure::Busy(why.into())
    }

    /// For somebody who has a permit: the connection that goes with it if it works, another idle one, or a new one.
    /// Whoever finds the server gone meanwhile goes elsewhere at once.
    async fn test_or_open(
        self: &Arc<Self>,
        permit: Permit<DB>,
        began: Instant,
        asker: Asker,
    ) -> Result<Checkout<DB>, Failure> {
        let _connecting = Connecting::new(&self.connecting);
        // Listens before it looks, so that it misses no fall in between.
        let interrupted = self.health.interrupted.notified();
        if self.health.is_gone() {
            return Err(Failure::Unreachable(self.unreachable()));
        }
        let found = tokio::select! {
            biased;
            found = self.tested_or_new(permit) => found,
            () = interrupted => return Err(Failure::Unreachable(self.unreachable())),
            () = self.patience(began) => Err(sqlx::Error::PoolTimedOut),
        };
        match found {
            Ok(checkout) => Ok(checkout),
            Err(sqlx::Error::PoolTimedOut) if self.has_room() => {
                Err(self.timed_out(TimedOut::connecting(self)))
            }
            Err(sqlx::Error::PoolTimedOut) => {
                Err(self.timed_out(TimedOut::crowd(self, asker, self.queue.waiting())))
            }
            Err(error) if DB::judge(&error).fault == Fault::Full => {
                Err(Failure::Busy(TimedOut::full(self).into()))
            }
            Err(error) => Err(Failure::Unreachable(error)),
        }
    }

    /// For how long somebody is kept waiting before the monitor is asked to find out whether the server is gone.
    fn suspicious_wait(&self) -> Duration {
        SUSPICIOUS_WAIT.min(self.timeout / 2)
    }

    /// How long a checkout waits for its connection to be opened, and what it does about that meanwhile.
    async fn patience(&self, began: Instant) {
        let mut pause = self.suspicious_wait();
        loop {
            let left = self.timeout.saturating_sub(began.elapsed());
            tokio::time::sleep(pause.min(left)).await;
            if pause >= left {
                return;
            }
            self.health.request_probe();
            pause *= 2;
        }
    }

    /// An idle connection that works, that of the permit if it does; else a new one.
    async fn tested_or_new(&self, mut permit: Permit<DB>) -> Result<Checkout<DB>, sqlx::Error> {
        loop {
            let Some(conn) = permit.conn.take().or_else(|| self.queue.pop_idle()) else {
                permit = Self::open_for(permit).await?;
                // As it is: one that is opened while the pool drains serves one statement.
                match permit.conn.take() {
                    Some(conn) => return Ok(Checkout::new(conn, permit)),
                    None => continue,
                }
            };
            let Some(mut conn) = self.keep_or_close(conn) else { continue };
            if self.trusts(&conn.state, Instant::now())
                || conn.ping(self.health.ping_timeout(self.check_timeout)).await
            {
                return Ok(Checkout::new(conn, permit));
            }
            self.close_sleepers(conn.state.verified());
            conn.discard(CloseCause::Failed);
        }
    }

    /// Closes those that have not been heard of since one that is dead was.
    fn close_sleepers(&self, since: Instant) {
        let sleepers = self.queue.take_idle(|conn| conn.state.verified() <= since);
        sleepers.into_iter().for_each(|conn| conn.discard(CloseCause::Failed));
    }

    /// Opens a connection for a permit, in a task of its own.
    async fn open_for(permit: Permit<DB>) -> Result<Permit<DB>, sqlx::Error> {
        let (pool, opener) = (permit.pool.clone(), permit.pool.clone());
        let (task, opened) = permit.opening(async move { opener.open_in_time().await });
        pool.spawn(task);
        // Its runtime may have ended.
        opened.await.unwrap_or(Err(sqlx::Error::PoolClosed))
    }

    /// In the monitor's runtime, if there is one.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        match self.runtime.get() {
            Some(runtime) => drop(runtime.spawn(task)),
            None => drop(tokio::spawn(task)),
        }
    }

    async fn open_in_time(&self) -> Result<PooledConnection<DB>, sqlx::Error> {
        // Listens before it looks, so that it misses no fall in between.
        let interrupted = self.health.interrupted.notified();
        if self.health.is_gone() {
            return Err(self.unreachable());
        }
        let opened = tokio::select! {
            biased;
            opened = self.open_at_its_role() => opened,
            () = interrupted => return Err(self.unreachable()),
            () = tokio::time::sleep(self.longest_opening()) => Err(sqlx::Error::PoolTimedOut),
        };
        if opened.as_ref().is_err_and(|error| DB::judge(error).fault != Fault::Full) {
            self.health.request_probe();
        }
        opened
    }

    fn longest_opening(&self) -> Duration {
        LONGEST_OPENING.max(self.timeout)
    }

    /// Opens connections until one leads to the master, if that is where this pool's are to lead, or until the server is
    /// known to be no master.
    async fn open_at_its_role(&self) -> Result<PooledConnection<DB>, sqlx::Error> {
        let mut pause = ELSEWHERE_PAUSE;
        loop {
            let opened = self.open_one().await;
            let elsewhere = opened.as_ref().err().and_then(NotTheMaster::of);
            if elsewhere == Some(NotTheMaster::Split) {
                self.health.found_split();
            }
            if elsewhere.is_none() || !self.health.answers(Use::MasterReads) {
                return opened;
            }
            self.health.request_probe();
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn open_one(&self) -> Result<PooledConnection<DB>, sqlx::Error> {
        let conn = self.open_accepted().await?;
        let mut open = self.open();
        open.retain(|state| state.strong_count() > 0);
        open.push(Arc::downgrade(&conn.state));
        drop(open);
        if !self.may_keep(&conn.state) && !self.is_draining() {
            // A generation began while it was being opened, and nobody else would end what runs on it.
            conn.discard(CloseCause::Invalidated);
            return Err(self.unreachable());
        }
        // The monitor finds out whether the address has moved, or leads to several servers.
        let elsewhere = |known: Instance| conn.state.instance().is_some_and(|instance| instance != known);
        if self.health.instance().is_some_and(elsewhere) {
            self.health.request_probe();
        }
        Ok(conn)
    }

    /// Whether it can be handed out as it is.
    fn trusts(&self, state: &ConnectionState<DB>, now: Instant) -> bool {
        let verified = state.verified();
        self.may_keep(state)
            && now.saturating_duration_since(verified) < TRUSTED_IDLE
            && self.health.trusts(verified)
    }

    /// Whether another statement may run on it.
    fn may_keep(&self, state: &ConnectionState<DB>) -> bool {
        self.health.keeps(state.generation()) && state.ended().is_none() && !self.is_draining()
    }

    /// Why a connection is closed that [`may_keep`](Self::may_keep) does not allow to keep.
    fn why_not_kept(&self) -> CloseCause {
        if self.is_draining() { CloseCause::Shutdown } else { CloseCause::Invalidated }
    }

    fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Acquire)
    }

    /// Takes connections back from sessions that have been doing something else for so long.
    fn reclaim(&self, idle: Duration) {
        self.for_each_open(|state| drop(state.reclaim(idle)));
    }

    /// Gives the permits of connections back that handlers have closed.
    fn reap(&self) {
        self.for_each_open(|state| state.reap());
    }

    fn for_each_open(&self, mut visit: impl FnMut(&Arc<ConnectionState<DB>>)) {
        let open: Vec<_> = self.open().iter().filter_map(Weak::upgrade).collect();
        open.iter().for_each(&mut visit);
    }

    fn unreachable(&self) -> sqlx::Error {
        io::Error::new(io::ErrorKind::NotConnected, self.health.why_not(self.wanted())).into()
    }

    fn warn_of_transaction(&self) {
        warn!(
            "A transaction was left open on a connection to the {}: the connection is closed, and the transaction \
             rolled back. Begin it with `begin()`, which ends it with its handler.",
            self.health,
        );
    }

    fn open(&self) -> MutexGuard<'_, Vec<Weak<ConnectionState<DB>>>> {
        self.open.lock()
    }
}

impl<DB: Driver> Owner for Pool<DB> {
    type Conn = PooledConnection<DB>;

    fn queue(&self) -> &Queue<Self> {
        &self.queue
    }

    /// A connection that always goes from hand to hand would never be found idle, so that its age is looked at here.
    fn keep_or_close(&self, conn: PooledConnection<DB>) -> Option<PooledConnection<DB>> {
        match (self.may_keep(&conn.state), Handle::try_current()) {
            // Elsewhere, nothing could take leave: it is found when it is idle.
            (true, Ok(_)) if conn.state.is_old(Instant::now()) => {
                tokio::spawn(tokio::time::timeout(self.check_timeout, conn.close(CloseCause::Old)));
                None
            }
            (true, _) => Some(conn),
            (false, _) => {
                conn.discard(self.why_not_kept());
                None
            }
        }
    }
}

impl<DB: Driver> Drop for Pool<DB> {
    /// Closes what is there: sqlx would hand it back in a task, which nobody runs where there is no runtime any more.
    fn drop(&mut self) {
        self.queue.take_idle(|_| true).into_iter().for_each(|conn| conn.discard(CloseCause::Shutdown));
    }
}

impl<DB: Driver> fmt::Debug for Pool<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("access", &self.access)
            .field("health", &self.health)
            .field("busy", &self.busy())
            .finish_non_exhaustive()
    }
}
