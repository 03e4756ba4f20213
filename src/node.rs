//! One server as one pool sees it: its connections, and whether it answers.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rocket::tokio;
use rocket::tokio::runtime::Handle;
use rocket::tokio::sync::Semaphore;
use sqlx::Connection;
use sqlx::pool::PoolOptions;

use crate::backend::{Access, Backend, Driver, Settings};
use crate::choice::Role;
use crate::health::Health;
use crate::parked::{Away, Parked, TRUSTED_IDLE, Taken, Ticket};
use crate::read_only::ReadOnlyCheck;

/// A checkout that takes longer raises doubts about its server.
const DOUBTFUL_WAIT: Duration = Duration::from_millis(100);

/// For so long a connection is kept for its session though others wait.
const KEPT: Duration = Duration::from_millis(1);

/// What a node needs to be opened.
pub(crate) struct Opening<'a> {
    pub(crate) database: &'static str,
    pub(crate) access: Access,
    pub(crate) settings: &'a Settings,
    pub(crate) weight: u32,
    /// How long a checkout waits.
    pub(crate) timeout: Duration,
    /// Of its server.
    pub(crate) health: Arc<Health>,
}

pub(crate) struct Node<P: Backend> {
    pub(crate) weight: u32,
    pub(crate) prepared_statements: bool,
    access: Access,
    timeout: Duration,
    health: Arc<Health>,
    /// Where connections are made read-only: whether they are.
    read_only: Option<Arc<ReadOnlyCheck>>,
    /// One for each connection that there may be. Whoever has one need not queue at sqlx, unless callers
    /// keep connections of their own.
    turns: Arc<Semaphore>,
    parked: Arc<Parked<P::Db>>,
    /// How many callers have nothing but sqlx to wait for.
    waiting_for_sqlx: AtomicUsize,
    pool: P,
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum Failure {
    /// All connections are in use: the node is well.
    Busy(sqlx::Error),
    /// The node cannot be reached.
    Unreachable(sqlx::Error),
}

impl From<Failure> for sqlx::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Busy(error) | Failure::Unreachable(error) => error,
        }
    }
}

impl<P: Backend> Node<P> {
    /// Opens no connection yet. Fails only on settings that `Config` would not have let through.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub(crate) fn open(opening: Opening<'_>) -> Result<Arc<Self>, String> {
        let Opening { database, access, settings, weight, timeout, health } = opening;
        let options = <P::Db as Driver>::options(settings, access)?;
        let pool = pool_options::<P::Db>(settings, timeout, health.clone());
        let (pool, read_only) = match access {
            Access::ReadWrite => (pool, None),
            Access::ReadMaster | Access::ReadSlave if !settings.enforce_read_only => (pool, None),
            Access::ReadMaster | Access::ReadSlave => {
                let check = Arc::new(ReadOnlyCheck::new(database, health.name().clone()));
                let checked = check.clone();
                let pool = pool.after_connect(move |conn, _| {
                    let check = check.clone();
                    Box::pin(async move {
                        <P::Db as Driver>::prepare_reader(conn).await?;
                        check.run::<P::Db>(conn).await
                    })
                });
                (pool, Some(checked))
            }
        };
        Ok(Arc::new(Self {
            weight,
            prepared_statements: settings.prepared_statements,
            access,
            timeout,
            turns: Arc::new(Semaphore::new(settings.max_connections as usize)),
            parked: Parked::new(Handle::current()),
            waiting_for_sqlx: AtomicUsize::new(0),
            health,
            read_only,
            pool: P::wrap(pool.connect_lazy_with(options)),
        }))
    }

    pub(crate) fn role(&self) -> Role {
        match self.access {
            Access::ReadWrite | Access::ReadMaster => Role::Master,
            Access::ReadSlave => Role::Slave,
        }
    }

    pub(crate) fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// Whether what ran here cannot have written, as far as is known.
    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only.as_ref().is_some_and(|check| check.holds())
    }

    /// How many connections are in use, or kept for a session.
    pub(crate) fn busy(&self) -> u32 {
        let (free, _) = self.parked.len();
        self.opened_without(free)
    }

    /// How many queries and callers the server has to do with.
    pub(crate) fn load(&self) -> u32 {
        let (free, kept) = self.parked.len();
        self.opened_without(free + kept)
    }

    fn opened_without(&self, parked: usize) -> u32 {
        let idle = self.pool.inner().num_idle() + parked;
        self.pool.inner().size().saturating_sub(u32::try_from(idle).unwrap_or(u32::MAX))
    }

    /// Whether a checkout need not wait for another to end.
    pub(crate) fn has_room(&self) -> bool {
        self.busy() < self.pool.inner().options().get_max_connections()
    }

    /// Checks out a connection.
    pub(crate) async fn acquire(&self) -> Result<Taken<P::Db>, Failure> {
        match self.take_parked() {
            Some(taken) => Ok(taken),
            // Boxed, as is what else is seldom: else every query's future would have room for it.
            None => Box::pin(self.wait()).await,
        }
    }

    /// One that is there, if nobody waits for it.
    fn take_parked(&self) -> Option<Taken<P::Db>> {
        let turn = self.turns.clone().try_acquire_owned().ok()?;
        let away = self.health.answers().then(|| self.unpark())??;
        Some(Taken { away, turn })
    }

    /// A pool that keeps its caller waiting may be busy, or its server gone: sqlx does not tell. So the
    /// monitor is asked to find out meanwhile, and if the server is gone, all who wait go elsewhere at
    /// once, and nobody waits for it after them.
    async fn wait(&self) -> Result<Taken<P::Db>, Failure> {
        // Listens before it looks, so that it misses no fall in between.
        let fell = self.health.fell.notified();
        if !self.health.answers() {
            return Err(Failure::Unreachable(self.unreachable()));
        }
        let acquired = async {
            self.reclaim();
            let turn = self.turns.clone().acquire_owned().await.map_err(|_| sqlx::Error::PoolClosed)?;
            let away = match self.unpark() {
                Some(away) => away,
                None => Box::pin(self.acquire_from_sqlx()).await?,
            };
            Ok(Taken { away, turn })
        };
        let acquired = tokio::select! {
            biased;
            acquired = acquired => acquired,
            () = fell => return Err(Failure::Unreachable(self.unreachable())),
            () = self.patience() => Err(sqlx::Error::PoolTimedOut),
        };
        acquired.map_err(|error| match error {
            sqlx::Error::PoolClosed | sqlx::Error::PoolTimedOut => Failure::Busy(error),
            error => {
                self.health.doubt();
                Failure::Unreachable(error)
            }
        })
    }

    /// How long a checkout waits, and what it does about that meanwhile.
    async fn patience(&self) {
        let doubtful = DOUBTFUL_WAIT.min(self.timeout / 2);
        let mut waited = Duration::ZERO;
        while waited < self.timeout {
            let pause = waited.max(KEPT).min(self.timeout - waited);
            tokio::time::sleep(pause).await;
            waited += pause;
            self.reclaim();
            if waited >= doubtful {
                self.health.doubt();
            }
        }
    }

    /// A read that is going on here, given up once the server is found to be down: it may never end.
    /// A write is not: nobody could tell what became of it.
    pub(crate) async fn unless_it_falls<T>(
        &self,
        work: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        if self.access == Access::ReadWrite {
            return work.await;
        }
        tokio::select! {
            biased;
            done = work => done,
            () = self.health.fell_silent() => Err(self.unreachable()),
        }
    }

    async fn acquire_from_sqlx(&self) -> Result<Away<P::Db>, sqlx::Error> {
        let _waiting = Waiting::new(&self.waiting_for_sqlx);
        // Whoever parked one just now did not see that somebody waits.
        match self.unpark() {
            Some(away) => Ok(away),
            None => Ok(Away { conn: self.pool.inner().acquire().await?, since: Instant::now() }),
        }
    }

    fn unpark(&self) -> Option<Away<P::Db>> {
        std::iter::from_fn(|| self.parked.take()).find(|away| self.trusts(away))
    }

    fn trusts(&self, away: &Away<P::Db>) -> bool {
        self.health.trusts(|| away.since.elapsed())
    }

    /// Takes a connection back whose query is over.
    pub(crate) fn park(&self, taken: Taken<P::Db>) {
        if !self.keeps(&taken) {
            // It goes back to sqlx.
            return;
        }
        let Taken { away, turn } = taken;
        self.parked.put(away);
        drop(turn);
        if self.is_sqlx_awaited() {
            drop(self.parked.take());
        }
    }

    /// As [`park`](Self::park), but for one session alone, for a moment.
    pub(crate) fn keep(&self, taken: Taken<P::Db>) -> Option<Ticket> {
        self.keeps(&taken).then(|| self.parked.keep(taken))
    }

    /// The connection that was kept, unless somebody else has been given it.
    pub(crate) fn claim(&self, ticket: Ticket) -> Option<Taken<P::Db>> {
        self.parked.claim(ticket).filter(|taken| self.health.answers() && self.trusts(&taken.away))
    }

    /// Lets others have the connections whose sessions do something else, if there are no more.
    fn reclaim(&self) {
        if self.has_room() {
            return;
        }
        while let Some(taken) = self.parked.reclaim(KEPT) {
            self.park(taken);
        }
    }

    fn keeps(&self, Taken { away, .. }: &Taken<P::Db>) -> bool {
        !self.is_sqlx_awaited() && !self.is_closed() && !away.is_due() && self.trusts(away)
    }

    fn is_sqlx_awaited(&self) -> bool {
        self.waiting_for_sqlx.load(Ordering::SeqCst) > 0
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.pool.inner().is_closed()
    }

    pub(crate) async fn close(&self) {
        let closed = self.pool.inner().close();
        self.turns.close();
        self.parked.clear();
        closed.await;
    }

    fn unreachable(&self) -> sqlx::Error {
        let message = format!("the {} cannot be reached", self.health);
        io::Error::new(io::ErrorKind::NotConnected, message).into()
    }
}

impl<P: Backend> fmt::Debug for Node<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("access", &self.access)
            .field("health", &self.health)
            .field("busy", &self.busy())
            .finish_non_exhaustive()
    }
}

fn pool_options<DB: Driver>(settings: &Settings, timeout: Duration, health: Arc<Health>) -> PoolOptions<DB> {
    PoolOptions::new()
        .min_connections(settings.min_connections)
        .max_connections(settings.max_connections)
        .acquire_timeout(timeout)
        .idle_timeout(settings.idle_timeout)
        .test_before_acquire(false)
        .before_acquire(move |conn: &mut DB::Connection, meta| {
            let trusted = meta.idle_for < TRUSTED_IDLE && health.trusts(|| meta.age);
            Box::pin(async move {
                if !trusted {
                    conn.ping().await?;
                }
                Ok(true)
            })
        })
}

/// One more of a number, for as long as this lives.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(number: &'a AtomicUsize) -> Self {
        number.fetch_add(1, Ordering::SeqCst);
        Self(number)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
