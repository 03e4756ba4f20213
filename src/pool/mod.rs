//! The connections to one server for one purpose.
//!
//! Why no existing pool: `deadpool` has the queue and the list of idle connections, and would replace only the module
//! `queue`. The rest would stand beside it: connections that are kept for a session and may be taken back, connections
//! whose permit goes to another request while a handler still holds them, idle times, keep-alive pings and
//! generations. sqlx's own pool pings each connection that is handed back, in a task of its own and without a time
//! limit. It also forgets which server a connection leads to.
//!
//! A connection that is handed out is of the present [generation](Health::generation), and is known to work: it was
//! used a moment ago, or answers a ping within [`Health::ping_timeout`]. If a connection does not answer, the pool
//! closes it and all that have been silent for as long, and opens a new one. So a request waits for at most one dead
//! connection.

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
use crate::health::{Health, Role};
use crate::sync::{Mutex, MutexGuard};
use crate::throttle::Throttle;

mod checkout;
mod connection;
mod counts;
mod custody;
mod holder;
mod hook;
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

pub(crate) use checkout::{Checkout, Held, KeptConnection};
pub(crate) use connection::ConnectionState;
pub(crate) use counts::PoolCounts;
pub use counts::{CloseCause, PoolUse};
pub(crate) use custody::{Ended, Lending};
pub(crate) use holder::{Asker, Clock, Holder, Sessions, Ticking};
pub(crate) use hook::AfterConnect;
pub(crate) use sessions::ServerSession;
pub(crate) use watch::{Outcome, OutcomeUnknown, StatementError, Watch};

use connection::PooledConnection;
use holder::TimedOut;
use hook::Hook;
use queue::{Entry, Owner, Queue, Receiver, Refusal, Ticker};
use read_only::ReadOnlyCheck;

type Permit<DB> = queue::Permit<Pool<DB>>;

/// A checkout that takes longer asks for a probe of its server.
const SUSPICIOUS_WAIT: Duration = Duration::from_millis(100);

/// How long opening a connection may take, though checkouts wait for less.
pub(crate) const LONGEST_OPENING: Duration = Duration::from_secs(10);

/// The pause after a first attempt to reach the master by an address that leads to one of its slaves for the moment.
/// It doubles after each further attempt, up to [`LONGEST_PAUSE`].
const ELSEWHERE_PAUSE: Duration = Duration::from_millis(50);

const LONGEST_PAUSE: Duration = Duration::from_millis(400);

/// How long a connection is kept for its session while other requests wait.
const KEPT_IF_WAITED_FOR: Duration = Duration::from_millis(1);

/// A connection that has been idle for longer is pinged before it is handed out.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);

/// The longest life of a connection, as sqlx's default. Servers free what a long session has gathered, and balancers
/// see new connections.
const MAX_LIFETIME: Duration = Duration::from_secs(30 * 60);

/// The shortest time between two warnings that checkouts of a pool time out.
const BETWEEN_WARNINGS: Duration = Duration::from_secs(10);

/// What a pool needs to be opened.
pub(crate) struct PoolOptions<'a, DB: Driver> {
    pub(crate) database: &'static str,
    pub(crate) access: Access,
    pub(crate) settings: &'a Settings,
    /// How long a checkout waits.
    pub(crate) timeout: Duration,
    /// How long a server has to answer a ping.
    pub(crate) check_timeout: Duration,
    /// The health of the pool's server.
    pub(crate) health: Arc<Health>,
    /// What the application does with each new connection.
    pub(crate) after_connect: Option<AfterConnect<DB>>,
}

pub(crate) struct Pool<DB: Driver> {
    access: Access,
    options: Options<DB>,
    prepared_statements: bool,
    /// How long a statement takes that is warned of. `None`: none is.
    slow_statement: Option<Duration>,
    timeout: Duration,
    check_timeout: Duration,
    idle_timeout: Option<Duration>,
    max_lifetime: Duration,
    min_connections: u32,
    max_connections: u32,
    health: Arc<Health>,
    counts: Arc<PoolCounts>,
    /// Checks that connections are read-only, where they are made so.
    read_only: Option<ReadOnlyCheck<DB>>,
    hook: Option<Arc<Hook<DB>>>,
    /// Has a permit for each connection that is in use, kept, or being opened.
    queue: Queue<Self>,
    /// Checkouts that have a permit, and wait for a connection that works.
    connecting: AtomicU32,
    /// All open connections, in use or not.
    open: Mutex<Vec<Weak<ConnectionState<DB>>>>,
    /// sqlx's own pool, opened for the first crate that asks for one.
    plain: Mutex<Option<sqlx::Pool<DB>>>,
    /// Limits the warnings about checkouts that timed out.
    warnings: Throttle,
    /// The monitor's runtime. A job may bring along another one, which need not be driven for long.
    runtime: OnceLock<Handle>,
    /// True once the application shuts down.
    is_draining: AtomicBool,
    /// True while one more connection is being opened for `min_connections`.
    is_filling: AtomicBool,
}

/// Adds one to a count for as long as it lives.
struct Counted<'a>(&'a AtomicU32);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
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

/// Switches off sqlx's warnings about slow statements, because a [`Watch`] warns of them.
fn quiet<O: ConnectOptions>(options: O) -> O {
    options.log_slow_statements(log::LevelFilter::Off, Duration::MAX)
}

impl<DB: Driver> Pool<DB> {
    /// Opens no connection yet. Fails only on settings that `Config` would not have let through.
    pub(crate) fn new(options: PoolOptions<'_, DB>) -> Result<Arc<Self>, String> {
        let PoolOptions { database, access, settings, timeout, check_timeout, health, after_connect } =
            options;
        let read_only = (!access.writes() && settings.enforce_read_only).then(|| {
            let plain = quiet(DB::plain_options(settings, access)?);
            Ok::<_, String>(ReadOnlyCheck::new(database, health.name().clone(), plain))
        });
        let read_only = read_only.transpose()?;
        let hook = |run| Arc::new(Hook::new(run, access, read_only.is_some(), health.clone()));
        Ok(Arc::new(Self {
            hook: after_connect.map(hook),
            access,
            options: quiet(DB::options(settings, access)?),
            prepared_statements: settings.prepared_statements,
            slow_statement: settings.slow_statement,
            timeout,
            check_timeout,
            idle_timeout: settings.idle_timeout,
            max_lifetime: MAX_LIFETIME,
            min_connections: settings.min_connections,
            max_connections: settings.max_connections,
            read_only,
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

    /// The role in which the pool uses its server.
    pub(crate) fn role(&self) -> Role {
        match self.access {
            Access::Writes | Access::MasterReads => Role::Master,
            Access::SlaveReads => Role::Slave,
        }
    }

    /// What the connections are for, in messages.
    fn what(&self) -> &'static str {
        if self.access.writes() { "writes" } else { "reads" }
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
        let mut open = 0;
        self.for_each_open(|_| open += 1);
        open
    }

    /// How many requests wait for a connection.
    pub(crate) fn waiting(&self) -> u64 {
        self.queue.waiting() as u64 + u64::from(self.connecting.load(Ordering::Relaxed))
    }

    pub(crate) fn prepared_statements(&self) -> bool {
        self.prepared_statements
    }

    fn check_timeout(&self) -> Duration {
        self.check_timeout
    }

    /// True if a statement that can be repeated cannot have written here, as far as is known.
    pub(crate) fn is_read_only(&self) -> bool {
        self.begin_read_only().is_some() || self.read_only.as_ref().is_some_and(ReadOnlyCheck::holds)
    }

    /// The statement that begins a read-only transaction, where a pooler in between may drop or refuse the settings of
    /// a connection. Elsewhere `None`.
    pub(crate) fn begin_read_only(&self) -> Option<&'static str> {
        let is_by_transactions = || self.read_only.as_ref().is_some_and(ReadOnlyCheck::is_by_transactions);
        let is_wanted = !self.access.writes() && (!self.prepared_statements || is_by_transactions());
        DB::BEGIN_READ_ONLY.filter(|_| is_wanted)
    }

    /// How many connections are in use, being opened, or kept for a session.
    pub(crate) fn in_use(&self) -> u32 {
        self.max_connections.saturating_sub(self.queue.free())
    }

    /// How many connections statements and handlers use, without those that are kept for a session.
    pub(crate) fn load(&self) -> u32 {
        let open = self.open();
        let kept = open.iter().filter_map(Weak::upgrade).filter(|state| state.custody.is_kept()).count();
        self.in_use().saturating_sub(u32::try_from(kept).unwrap_or(u32::MAX))
    }

    /// True if a checkout gets a permit without waiting.
    pub(crate) fn has_room(&self) -> bool {
        self.queue.free() > 0
    }

    /// Checks out a connection.
    pub(crate) async fn check_out(self: &Arc<Self>, asker: Asker) -> Result<Checkout<DB>, Failure> {
        if !self.health.answers(self.access) {
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
        let is_news = self.role() == Role::Master || !why.is_crowd;
        if is_news && self.warnings.pass().is_some() {
            let text = why.to_string();
            warn!("{}{}.", text[..1].to_uppercase(), &text[1..]);
        }
        Failure::Busy(why.into())
    }

    /// Finds a connection that works for a permit: the permit's own, another idle one, or a new one. Fails at once if
    /// the server is found to be gone, so that the query goes elsewhere.
    async fn test_or_open(
        self: &Arc<Self>,
        permit: Permit<DB>,
        began: Instant,
        asker: Asker,
    ) -> Result<Checkout<DB>, Failure> {
        let _connecting = Counted::new(&self.connecting);
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

    /// How long a request waits before the monitor is asked to probe the server.
    fn suspicious_wait(&self) -> Duration {
        SUSPICIOUS_WAIT.min(self.timeout / 2)
    }

    /// Ends when a checkout has waited for its whole time-out. Meanwhile asks for probes of the server, at growing
    /// intervals.
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

    /// Checks out an idle connection that works, the permit's own first. Opens a new one if there is none.
    async fn tested_or_new(&self, mut permit: Permit<DB>) -> Result<Checkout<DB>, sqlx::Error> {
        loop {
            let Some(conn) = permit.conn.take().or_else(|| self.queue.pop_idle()) else {
                // Without another check, so that a connection that is opened while the pool drains serves one
                // statement.
                return Self::open_for(permit).await.map(Checkout::new);
            };
            let Some(mut conn) = self.keep_or_close(conn) else { continue };
            if self.trusts(&conn.state, Instant::now())
                || conn.ping(self.health.ping_timeout(self.check_timeout)).await
            {
                return Ok(Checkout::new(permit.with(conn)));
            }
            self.close_sleepers(conn.state.verified());
            conn.discard(CloseCause::Failed);
        }
    }

    /// Closes the idle connections that have been silent since `since`, when a dead one last answered.
    fn close_sleepers(&self, since: Instant) {
        let sleepers = self.queue.take_idle(|conn| conn.state.verified() <= since);
        sleepers.into_iter().for_each(|conn| conn.discard(CloseCause::Failed));
    }

    /// Opens a connection for a permit, in a task of its own. The permit that it returns has the connection.
    async fn open_for(permit: Permit<DB>) -> Result<Permit<DB>, sqlx::Error> {
        let (pool, opener) = (permit.pool.clone(), permit.pool.clone());
        let (task, opened) = permit.opening(async move { opener.open_in_time().await });
        pool.spawn(task);
        // The runtime of the task may have ended.
        opened.await.unwrap_or(Err(sqlx::Error::PoolClosed))
    }

    /// Spawns a task in the monitor's runtime, if there is one.
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

    /// Opens a connection. If it has to lead to the master and does not, tries again, until the server is known to be
    /// no master.
    async fn open_at_its_role(&self) -> Result<PooledConnection<DB>, sqlx::Error> {
        let mut pause = ELSEWHERE_PAUSE;
        loop {
            let opened = self.open_one().await;
            let elsewhere = opened.as_ref().err().and_then(NotTheMaster::of);
            if elsewhere == Some(NotTheMaster::Split) {
                self.health.found_split();
            }
            if elsewhere.is_none() || !self.health.answers(Access::MasterReads) {
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
            // A generation began while the connection was being opened. Nothing else would end what runs on it.
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

    /// True if a connection can be handed out without a ping.
    fn trusts(&self, state: &ConnectionState<DB>, now: Instant) -> bool {
        let verified = state.verified();
        self.may_keep(state)
            && now.saturating_duration_since(verified) < TRUSTED_IDLE
            && self.health.trusts(verified)
    }

    /// True if another statement may run on a connection.
    fn may_keep(&self, state: &ConnectionState<DB>) -> bool {
        self.health.keeps(state.generation()) && state.custody.ended().is_none() && !self.is_draining()
    }

    /// The cause for closing a connection that [`may_keep`](Self::may_keep) refuses.
    fn why_not_kept(&self) -> CloseCause {
        if self.is_draining() { CloseCause::Shutdown } else { CloseCause::Invalidated }
    }

    fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Acquire)
    }

    /// Takes back the connections that sessions have kept unused for `idle`.
    fn reclaim(&self, idle: Duration) {
        self.for_each_open(|state| drop(state.reclaim(idle)));
    }

    /// Gives back the permits of connections that handlers have closed.
    fn reap(&self) {
        self.for_each_open(|state| state.reap());
    }

    fn for_each_open(&self, mut visit: impl FnMut(&Arc<ConnectionState<DB>>)) {
        let open: Vec<_> = self.open().iter().filter_map(Weak::upgrade).collect();
        open.iter().for_each(&mut visit);
    }

    fn unreachable(&self) -> sqlx::Error {
        io::Error::new(io::ErrorKind::NotConnected, self.health.why_not(self.access)).into()
    }

    /// Warns of a transaction that `holder` has left open on a connection.
    fn warn_of_transaction(&self, holder: &Holder) {
        let by = holder.handler.as_ref().map(|handler| format!(" by `{handler}`")).unwrap_or_default();
        warn!(
            "A transaction was left open{by} on a connection to the {}: the connection is closed, and the transaction \
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

    /// Also closes an old connection. One that always goes straight to the next request is never found idle.
    fn keep_or_close(&self, conn: PooledConnection<DB>) -> Option<PooledConnection<DB>> {
        match (self.may_keep(&conn.state), Handle::try_current()) {
            // Outside a runtime, a connection cannot be closed in order. Upkeep finds it when it is idle.
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
    /// Closes the idle connections. sqlx would hand each back in a task, which never runs without a runtime.
    fn drop(&mut self) {
        self.queue.take_idle(|_| true).into_iter().for_each(|conn| conn.discard(CloseCause::Shutdown));
    }
}

impl<DB: Driver> fmt::Debug for Pool<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("access", &self.access)
            .field("health", &self.health)
            .field("in_use", &self.in_use())
            .finish_non_exhaustive()
    }
}
