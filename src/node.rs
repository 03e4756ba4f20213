//! One server as one pool sees it: its connections, and whether it answers.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use log::{error, info, warn};
use rocket::tokio::{self, sync::Notify};
use sqlx::pool::{PoolConnection, PoolOptions};
use sqlx::{ConnectOptions, Connection};

use crate::backend::{Access, Backend, Driver, Options};
use crate::choice::Role;
use crate::config::Settings;
use crate::monitor;

/// A connection that has been idle for longer is pinged before it is handed out. sqlx would ping
/// every one: a round trip for each query, against servers that die between two busy moments.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);

/// What a node needs to be opened.
pub(crate) struct Opening<'a> {
    pub(crate) database: &'static str,
    pub(crate) name: Arc<str>,
    pub(crate) access: Access,
    pub(crate) settings: &'a Settings,
    pub(crate) weight: u32,
    /// How long a checkout waits.
    pub(crate) timeout: Duration,
}

pub(crate) struct Node<P: Backend> {
    pub(crate) name: Arc<str>,
    pub(crate) weight: u32,
    pub(crate) prepared_statements: bool,
    access: Access,
    timeout: Duration,
    health: Arc<Health>,
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
    pub(crate) fn open(opening: Opening<'_>) -> Result<Arc<Self>, String> {
        let Opening { database, name, access, settings, weight, timeout } = opening;
        let health = Arc::new(Health::new());
        let options = <P::Db as Driver>::options(settings, access)?;
        let pool = pool_options::<P::Db>(settings, timeout, health.clone());
        let pool = match access {
            Access::ReadMaster | Access::ReadSlave if settings.enforce_read_only => {
                let check = Arc::new(ReadOnlyCheck::new(database, name.clone()));
                pool.after_connect(move |conn, _| {
                    let check = check.clone();
                    Box::pin(async move {
                        <P::Db as Driver>::prepare_reader(conn).await?;
                        check.run::<P::Db>(conn).await
                    })
                })
            }
            Access::ReadWrite | Access::ReadMaster | Access::ReadSlave => pool,
        };
        Ok(Arc::new(Self {
            name,
            weight,
            prepared_statements: settings.prepared_statements,
            access,
            timeout,
            health,
            pool: P::wrap(pool.connect_lazy_with(options)),
        }))
    }

    pub(crate) fn role(&self) -> Role {
        match self.access {
            Access::ReadWrite | Access::ReadMaster => Role::Master,
            Access::ReadSlave => Role::Slave,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.health.is_up()
    }

    /// How many connections are in use.
    pub(crate) fn busy(&self) -> u32 {
        let idle = u32::try_from(self.pool.inner().num_idle()).unwrap_or(u32::MAX);
        self.pool.inner().size().saturating_sub(idle)
    }

    /// Whether a checkout need not wait for another to end.
    pub(crate) fn has_room(&self) -> bool {
        self.busy() < self.pool.inner().options().get_max_connections()
    }

    /// Checks out a connection. A node that cannot be reached is left alone from then on, until
    /// [`monitor::watch`] has reached it; that costs one caller the timeout, and nobody after it.
    pub(crate) async fn acquire(self: &Arc<Self>) -> Result<PoolConnection<P::Db>, Failure> {
        if !self.is_up() {
            return Err(Failure::Unreachable(self.unreachable()));
        }
        let acquired = tokio::select! {
            biased;
            acquired = self.pool.inner().acquire() => acquired,
            () = self.health.went_down() => return Err(Failure::Unreachable(self.unreachable())),
        };
        acquired.map_err(|error| match error {
            sqlx::Error::PoolClosed => Failure::Busy(error),
            // sqlx keeps trying a server that refuses until the time is up, so that this error does
            // not tell whether it waited for a free place or for the server. Whoever waited for the
            // server has just given its place back.
            sqlx::Error::PoolTimedOut if !self.has_room() => Failure::Busy(error),
            error => {
                self.take_out(&error);
                Failure::Unreachable(error)
            }
        })
    }

    /// A connection of this node failed: so may all that are as old.
    pub(crate) fn distrust(&self) {
        self.health.distrust();
    }

    /// Leaves the node alone until it has proved itself again.
    pub(crate) fn take_out(self: &Arc<Self>, error: &sqlx::Error) {
        self.health.distrust();
        if self.health.go_down() {
            let (role, name) = (self.role(), &self.name);
            match error {
                sqlx::Error::PoolTimedOut => {
                    warn!(
                        "No connection to the {role} `{name}` within {:?}: leaving it alone.",
                        self.timeout
                    );
                }
                error => warn!("The {role} `{name}` failed: {error}. Leaving it alone."),
            }
            monitor::watch(self);
        }
    }

    pub(crate) fn put_back(&self) {
        if self.health.come_up() {
            info!("The {} `{}` is back.", self.role(), self.name);
        }
    }

    /// Proves that the node answers, on a connection of its own: a busy pool is not a sick server.
    pub(crate) async fn probe(&self) -> Result<(), sqlx::Error> {
        let options: Arc<Options<P::Db>> = self.pool.inner().connect_options();
        let probe = async {
            let mut conn = options.connect().await?;
            conn.ping().await?;
            conn.close().await
        };
        tokio::time::timeout(self.timeout, probe)
            .await
            .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.pool.inner().is_closed()
    }

    pub(crate) async fn close(&self) {
        self.pool.inner().close().await;
    }

    fn unreachable(&self) -> sqlx::Error {
        let message = format!("the {} `{}` cannot be reached", self.role(), self.name);
        io::Error::new(io::ErrorKind::NotConnected, message).into()
    }
}

impl<P: Backend> fmt::Debug for Node<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("name", &self.name)
            .field("access", &self.access)
            .field("up", &self.is_up())
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
            let trusted = meta.idle_for < TRUSTED_IDLE && health.trusts(meta.age);
            Box::pin(async move {
                if !trusted {
                    conn.ping().await?;
                }
                Ok(true)
            })
        })
}

/// Checks on the first connection of a pool for reads that it is read-only: a pooler in between may
/// have dropped the setting without a word.
struct ReadOnlyCheck {
    database: &'static str,
    node: Arc<str>,
    due: AtomicBool,
}

impl ReadOnlyCheck {
    fn new(database: &'static str, node: Arc<str>) -> Self {
        Self { database, node, due: AtomicBool::new(true) }
    }

    async fn run<DB: Driver>(&self, conn: &mut DB::Connection) -> Result<(), sqlx::Error> {
        if !self.due.load(Ordering::Relaxed) {
            return Ok(());
        }
        let read_only = DB::is_read_only(conn).await?;
        if self.due.swap(false, Ordering::Relaxed) && !read_only {
            error!(
                "The connections for reads of database `{}` to `{}` are not read-only: something in \
                 between drops the setting, so that a GET which writes will not be refused. Connect \
                 without it, or say `enforce_read_only = false`.",
                self.database, self.node,
            );
        }
        Ok(())
    }
}

/// Whether a node answers, as far as anybody noticed.
#[derive(Debug)]
struct Health {
    up: AtomicBool,
    fell: Notify,
    origin: Instant,
    /// Milliseconds since `origin`: connections that are older have yet to prove themselves.
    distrusted: AtomicU64,
}

impl Health {
    fn new() -> Self {
        Self {
            up: AtomicBool::new(true),
            fell: Notify::new(),
            origin: Instant::now(),
            distrusted: AtomicU64::new(0),
        }
    }

    fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    /// True if that is news.
    fn go_down(&self) -> bool {
        let news = self.up.swap(false, Ordering::AcqRel);
        self.fell.notify_waiters();
        news
    }

    /// True if that is news.
    fn come_up(&self) -> bool {
        !self.up.swap(true, Ordering::AcqRel)
    }

    async fn went_down(&self) {
        self.fell.notified().await;
    }

    fn distrust(&self) {
        self.distrusted.store(self.now(), Ordering::Release);
    }

    /// Whether a connection of this age was made after the latest failure.
    fn trusts(&self, age: Duration) -> bool {
        let distrusted = self.distrusted.load(Ordering::Acquire);
        distrusted == 0 || self.now().saturating_sub(millis(age)) > distrusted
    }

    fn now(&self) -> u64 {
        millis(self.origin.elapsed()).max(1)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
