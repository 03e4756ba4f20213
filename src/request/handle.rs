//! [`ReplicatedDb`], the handle by which handlers and jobs query the database.

use std::fmt;
use std::sync::Arc;

use rocket_db_pools::Database;

use super::connection::{Connection, Transaction};
use super::retry::{Attempts, Repeatable};
use super::session::Session;
use crate::backend::{Access, Backend};
use crate::cluster::{Cluster, Db, UnknownSlave};
use crate::health::Role;
use crate::pin::Pin;
use crate::routing::{Choice, Client, Declared, MethodKind};

/// The database of a request: reads go to a slave, writes to the master.
///
/// As a handler parameter it holds no connection yet. The node is chosen when the handler first
/// asks the database, so that the order of guards does not matter, and a handler that answers from
/// a cache costs no connection. `&ReplicatedDb` is a [`sqlx::Executor`] and a [`sqlx::Acquire`]:
/// whatever takes a `&sqlx::Pool` takes it.
///
/// ```rust
/// # #[cfg(feature = "sqlite")] mod guard {
/// use rocket::get;
/// use rocket_replicated::sqlite::ReplicatedDb;
/// use rocket_replicated::Error;
///
/// #[get("/posts/<id>")]
/// async fn title(id: i64, db: ReplicatedDb) -> Result<String, Error> {
///     Ok(sqlx::query_scalar("SELECT title FROM posts WHERE id = ?").bind(id).fetch_one(&db).await?)
/// }
/// # }
/// ```
///
/// All handles of one request share one node: two queries never see two states. A clone is another
/// handle of the same request, for spawned tasks. The connection of a query is kept for the next one
/// until a handle is dropped, unless others wait for one.
///
/// # Errors
///
/// As a guard it never fails, unless [`Replicated`](crate::Replicated) is not attached, which
/// aborts launch where the guard is a parameter of a mounted route.
pub struct ReplicatedDb<D: Database<Pool: Backend>> {
    pub(crate) session: Arc<Session<Db<D>>>,
}

impl<D: Database<Pool: Backend>> ReplicatedDb<D> {
    pub(crate) fn new(session: Arc<Session<Db<D>>>) -> Self {
        Self { session }
    }

    /// Checks out a connection of the request's node, for what needs one session, or the driver's own connection.
    ///
    /// ```rust
    /// # #[cfg(feature = "postgres")] mod guard {
    /// use rocket::post;
    /// use rocket_replicated::Error;
    /// use rocket_replicated::postgres::ReplicatedDb;
    ///
    /// #[post("/visits", data = "<pages>")]
    /// async fn import(pages: String, db: ReplicatedDb) -> Result<(), Error> {
    ///     let mut connection = db.get().await?;
    ///     let mut copy = connection.copy_in_raw("COPY visits (page) FROM STDIN").await?;
    ///     copy.send(pages.as_bytes()).await?;
    ///     copy.finish().await?;
    ///     Ok(())
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// * [`sqlx::Error::Io`] of kind [`TimedOut`](std::io::ErrorKind::TimedOut) if no connection became free within the
    ///   time for it: `connect_timeout` at the master, `slave_timeout` at each slave. The message says how many are in
    ///   use, and which handler has had one for longest.
    /// * [`sqlx::Error::Io`] of another kind if no server could be reached.
    pub async fn get(&self) -> Result<Connection<Db<D>>, sqlx::Error> {
        let (checkout, under_way) = self.session.check_out().await?;
        Ok(Connection::new(checkout, self.session.writer(under_way.decision)))
    }

    /// Begins a transaction at the request's node: on a read, a read-only one. [`Transaction`] has an example that
    /// writes.
    ///
    /// ```rust
    /// # #[cfg(feature = "postgres")] mod guard {
    /// use rocket::get;
    /// use rocket_replicated::Error;
    /// use rocket_replicated::postgres::ReplicatedDb;
    ///
    /// /// Both numbers are of the same moment.
    /// #[get("/report")]
    /// async fn report(db: ReplicatedDb) -> Result<String, Error> {
    ///     let mut snapshot = db.begin().await?;
    ///     sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").execute(&mut *snapshot).await?;
    ///     let orders: i64 = sqlx::query_scalar("SELECT count(*) FROM orders").fetch_one(&mut *snapshot).await?;
    ///     let paid: i64 = sqlx::query_scalar("SELECT count(*) FROM payments").fetch_one(&mut *snapshot).await?;
    ///     Ok(format!("{paid} of {orders} orders are paid"))
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get), and those of `BEGIN` itself.
    pub async fn begin(&self) -> Result<Transaction<Db<D>>, sqlx::Error> {
        let mut attempts = Attempts::new(&self.session);
        loop {
            let (checkout, under_way) = self.session.check_out().await?;
            let pool = checkout.pool().clone();
            match Transaction::begin(checkout, self.session.writer(under_way.decision)).await {
                Ok(transaction) => return Ok(transaction),
                Err(failed) => attempts.judge(&pool, under_way, failed, Repeatable::Yes)?,
            }
        }
    }

    /// Switches the rest of the request to the master, as a [`ChangesDatabase`](crate::ChangesDatabase) guard would.
    ///
    /// ```rust
    /// # #[cfg(feature = "sqlite")] mod guard {
    /// use rocket::get;
    /// use rocket_replicated::Error;
    /// use rocket_replicated::sqlite::ReplicatedDb;
    ///
    /// /// Writes only where nobody has rendered the page yet.
    /// #[get("/pages/<id>")]
    /// async fn page(id: i64, db: ReplicatedDb) -> Result<String, Error> {
    ///     let cached = sqlx::query_scalar("SELECT html FROM cache WHERE id = ?").bind(id);
    ///     if let Some(html) = cached.fetch_optional(&db).await? {
    ///         return Ok(html);
    ///     }
    ///     db.changes_database();
    ///     let html = format!("<h1>{id}</h1>");
    ///     let keep = sqlx::query("INSERT OR IGNORE INTO cache (id, html) VALUES (?, ?)").bind(id).bind(&html);
    ///     keep.execute(&db).await?;
    ///     Ok(html)
    /// }
    /// # }
    /// ```
    pub fn changes_database(&self) {
        self.session.declare(Declared::Changes);
    }

    /// The node that serves this request, and why. `None` until the first query.
    ///
    /// ```rust
    /// # #[cfg(feature = "sqlite")] mod guard {
    /// use rocket::get;
    /// use rocket_replicated::Error;
    /// use rocket_replicated::sqlite::ReplicatedDb;
    ///
    /// /// Answers, for example: 7 posts, from db-2 (read method)
    /// #[get("/posts/count")]
    /// async fn count(db: ReplicatedDb) -> Result<String, Error> {
    ///     let posts: i64 = sqlx::query_scalar("SELECT count(*) FROM posts").fetch_one(&db).await?;
    ///     let choice = db.choice().map(|choice| choice.to_string());
    ///     Ok(format!("{posts} posts, from {}", choice.unwrap_or_default()))
    /// }
    /// # }
    /// ```
    pub fn choice(&self) -> Option<Choice> {
        self.session.choice()
    }

    /// The pin that the writes of this request leave, for clients and jobs that carry no cookies. `None` while it has
    /// not written, without slaves, and with `lag_window = 0`.
    ///
    /// A job hands the pin to [`Cluster::read`]. The pin covers what has been committed when it is asked for.
    ///
    /// With `consistency = "position"`, this waits up to 20 ms until the master has told its position. After that, the
    /// pin carries only the time. In window mode, it does not wait.
    ///
    /// ```rust
    /// # #[cfg(feature = "sqlite")] mod guard {
    /// use rocket::{State, post, tokio::sync::mpsc::Sender};
    /// use rocket_replicated::Error;
    /// use rocket_replicated::sqlite::ReplicatedDb;
    ///
    /// /// The job that receives the pin reads over `cluster.read(pin.as_deref())`.
    /// #[post("/orders")]
    /// async fn order(db: ReplicatedDb, invoices: &State<Sender<Option<String>>>) -> Result<(), Error> {
    ///     sqlx::query("INSERT INTO orders DEFAULT VALUES").execute(&db).await?;
    ///     let _ = invoices.send(db.pin().await).await;
    ///     Ok(())
    /// }
    /// # }
    /// ```
    pub async fn pin(&self) -> Option<String> {
        self.session.pin().await
    }

    /// Has the rest of the request read what the work with this pin has written: another request, on another device
    /// or service, or a job. The request then covers its client's own writes and those.
    ///
    /// Returns false for a pin that is not valid, or not any more. It is ignored, and counted among the refused ones.
    /// Without pins, as without slaves, none is valid.
    ///
    /// Call it before the first query. Where a query has returned rows of a slave, the request goes on at the master, and
    /// may have seen two states.
    ///
    /// ```rust
    /// # #[cfg(feature = "sqlite")] mod guard {
    /// use std::collections::HashMap;
    /// use std::sync::Mutex;
    ///
    /// use rocket::{State, get};
    /// use rocket_replicated::Error;
    /// use rocket_replicated::sqlite::ReplicatedDb;
    ///
    /// /// The [`pin`](ReplicatedDb::pin) of each user's latest write. With several processes, it belongs where the
    /// /// application's sessions are.
    /// type Pins = Mutex<HashMap<i64, String>>;
    ///
    /// /// Has what the user wrote on any device.
    /// #[get("/users/<user>/notes")]
    /// async fn notes(user: i64, db: ReplicatedDb, pins: &State<Pins>) -> Result<String, Error> {
    ///     if let Some(pin) = pins.lock().unwrap().get(&user) {
    ///         db.continue_from(pin);
    ///     }
    ///     let texts = sqlx::query_scalar("SELECT text FROM notes WHERE author = ?").bind(user);
    ///     let texts: Vec<String> = texts.fetch_all(&db).await?;
    ///     Ok(texts.join("\n"))
    /// }
    /// # }
    /// ```
    pub fn continue_from(&self, pin: &str) -> bool {
        let pin = self.session.cluster.read_pin(pin);
        let is_valid = pin.is_some();
        if let Some(pin) = pin {
            self.session.continue_from(pin);
        }
        is_valid
    }

    /// The pin that the request came with, for work that goes on after its reply or elsewhere: a stream's later reads, or
    /// a request to another service. It covers what was handed to [`continue_from`](Self::continue_from) as well. `None`
    /// for a client that has not written lately.
    ///
    /// After a write of this request, [`pin`](Self::pin) has both: `db.pin().await.or_else(|| db.carried_pin())`.
    ///
    /// ```rust
    /// # #[cfg(feature = "sqlite")] mod guard {
    /// use std::time::Duration;
    ///
    /// use rocket::response::stream::TextStream;
    /// use rocket::{State, get};
    /// use rocket_replicated::Cluster;
    /// use rocket_replicated::sqlite::{Database, ReplicatedDb};
    ///
    /// /// A handle for each read, so that the stream is not bound to one server.
    /// #[get("/notes/count")]
    /// fn count(db: ReplicatedDb, cluster: &State<Cluster<Database>>) -> TextStream![String] {
    ///     let (pin, cluster) = (db.carried_pin(), cluster.inner().clone());
    ///     TextStream! {
    ///         for _ in 0..60 {
    ///             let count = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM notes");
    ///             if let Ok(count) = count.fetch_one(&cluster.read(pin.as_deref())).await {
    ///                 yield format!("{count}\n");
    ///             }
    ///             rocket::tokio::time::sleep(Duration::from_secs(1)).await;
    ///         }
    ///     }
    /// }
    /// # }
    /// ```
    pub fn carried_pin(&self) -> Option<String> {
        self.session.carried_pin()
    }
}

impl<D: Database<Pool: Backend>> Drop for ReplicatedDb<D> {
    fn drop(&mut self) {
        self.session.release();
    }
}

impl<D: Database<Pool: Backend>> Clone for ReplicatedDb<D> {
    fn clone(&self) -> Self {
        Self::new(self.session.clone())
    }
}

impl<D: Database<Pool: Backend>> fmt::Debug for ReplicatedDb<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplicatedDb").field("session", &self.session).finish()
    }
}

impl<D: Database<Pool: Backend>> Cluster<D> {
    /// A handle for code outside a request that reads and writes: at the master.
    ///
    /// ```rust,no_run
    /// # #[cfg(feature = "sqlite")] mod guard {
    /// use rocket::{Build, Rocket, fairing};
    /// use rocket_replicated::sqlite::Replicated;
    ///
    /// async fn migrate(rocket: Rocket<Build>) -> fairing::Result {
    ///     let Some(cluster) = Replicated::fetch(&rocket) else { return Err(rocket) };
    ///     match sqlx::migrate!("examples/guestbook/migrations").run(&cluster.write()).await {
    ///         Ok(()) => Ok(rocket),
    ///         Err(_) => Err(rocket),
    ///     }
    /// }
    /// # }
    /// ```
    pub fn write(&self) -> ReplicatedDb<D> {
        self.handle(MethodKind::Write, Declared::Changes, None)
    }

    /// A handle for code outside a request that reads: from a slave, unless `pin` (of
    /// [`ReplicatedDb::pin`]) says that the work it belongs to has written within the lag window.
    ///
    /// A pin that is not valid is ignored. The handle's node is chosen at its first query and kept.
    ///
    /// ```rust
    /// # #[cfg(feature = "sqlite")] mod jobs {
    /// use rocket_replicated::Cluster;
    /// use rocket_replicated::sqlite::Database;
    ///
    /// async fn unpaid(cluster: &Cluster<Database>, pin: Option<&str>) -> Result<i64, sqlx::Error> {
    ///     let db = cluster.read(pin);
    ///     sqlx::query_scalar("SELECT count(*) FROM orders WHERE NOT paid").fetch_one(&db).await
    /// }
    /// # }
    /// ```
    pub fn read(&self, pin: Option<&str>) -> ReplicatedDb<D> {
        let pin = pin.and_then(|token| self.0.read_pin(token));
        self.handle(MethodKind::Read, Declared::Reads, pin)
    }

    /// sqlx's own pool, for crates that ask for one. It bypasses pins, retries, promotions and statistics, and the
    /// choice of a server for each request.
    ///
    /// [`Role::Master`] is a pool that writes, [`Role::Slave`] a read-only one of the server that [`read`](Self::read)
    /// would ask now: a slave, or the master where there is none to ask, as on a laptop or before
    /// lift-off. The same server always gives the same pool; [`slave_pool`](Self::slave_pool) names one.
    ///
    /// Limits of such a pool:
    ///
    /// * Its connections come in addition: up to `max_connections` for each server and purpose, or
    ///   `master_read_connections` for the master's reads. Neither the log at lift-off nor the statistics include
    ///   them. They are read-only, and wait as long, as those of this crate.
    /// * A write leaves no pin. If its client has to see it at once, write over `&db`, or over [`write`](Self::write),
    ///   which has a [`pin`](ReplicatedDb::pin).
    /// * Queries do not move to another server. A slave's pool goes on when the slave falls behind, is taken out or
    ///   dies. When the slave is dead, its queries fail. Ask for a pool when you need one, and do not keep it where
    ///   that can be helped.
    /// * After a promotion (`follow_promotion`), the pools of the former master are closed, and this method gives
    ///   those of the new one. A pool that you have kept gives [`sqlx::Error::PoolClosed`]: ask for another.
    ///   Statements under way there end when their connections do. The pool of a slave that became the master stays
    ///   read-only.
    /// * While two servers take writes ([`NodeState::Contested`](crate::NodeState::Contested)), a pool that writes
    ///   gives no connection: [`sqlx::Error::PoolTimedOut`]. All pools are closed at shutdown. The pool of a
    ///   discovered slave is closed when its address is gone.
    /// * `prepared_statements = false` has no effect on it. Behind a pooler that keeps no prepared statements, the
    ///   pool cannot be used.
    /// * What your code leaves on a connection, such as a `BEGIN` by hand or a setting, meets the next user of the
    ///   connection, as in any sqlx pool.
    /// * With SQLite, the pool is a second writer, which waits for the other one for up to `connect_timeout`.
    ///
    /// ```rust
    /// # #[cfg(feature = "sqlite")] mod outside {
    /// use rocket_replicated::sqlite::Database;
    /// use rocket_replicated::{Cluster, Role};
    ///
    /// # mod sessions { pub async fn sweep(_: &sqlx::SqlitePool) {} }
    /// async fn sweep(cluster: &Cluster<Database>) {
    ///     sessions::sweep(&cluster.pool(Role::Master)).await;
    /// }
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub fn pool(&self, role: Role) -> sqlx::Pool<Db<D>> {
        loop {
            let term = self.0.mastership.term();
            let handle = match role {
                Role::Master => self.write(),
                Role::Slave => self.read(None),
            };
            let route = handle.session.route();
            let Some(pool) = route.pool() else { unreachable!("only servers with a pool for it are chosen") };
            let pool = pool.plain();
            // A term ends before the pools of its master are closed. So a pool that was opened before the end is
            // closed, too.
            if self.0.mastership.term() == term {
                return pool;
            }
        }
    }

    /// As [`pool`](Self::pool), but the read-only pool of the slave with this name, whatever the slave's state is.
    ///
    /// # Errors
    ///
    /// If no slave has this name.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub fn slave_pool(&self, slave: &str) -> Result<sqlx::Pool<Db<D>>, UnknownSlave> {
        let server = self.slave(slave)?;
        // INVARIANT: each server that can be found as a slave has a pool for slave reads.
        let pool = server.pool(Access::SlaveReads).map(|pool| pool.plain());
        pool.ok_or_else(|| UnknownSlave::new(slave))
    }

    fn handle(&self, method: MethodKind, declared: Declared, pin: Option<Pin>) -> ReplicatedDb<D> {
        let session = Session::new(self.0.clone(), method, Client::of(None), pin);
        session.declare(declared);
        ReplicatedDb::new(Arc::new(session))
    }
}
