//! The request guards: [`ReplicatedDb`], [`ChangesDatabase`], [`ReadsDatabase`].

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use log::{error, info};
use rocket::http::Status;
use rocket::request::{FromRequest, Outcome};
use rocket::{Build, Ignite, Phase, Request, Rocket, Sentinel};
use rocket_db_pools::Database;
use sqlx::Transaction;
use sqlx::pool::PoolConnection;
use time::OffsetDateTime;

use crate::Cluster;
use crate::attempts::{Attempts, Repeatable};
use crate::backend::Backend;
use crate::choice::{Choice, Declared, MethodKind};
use crate::error::RetryLater;
use crate::nodes::Db;
use crate::session::Session;

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
    pub(crate) session: Arc<Session<D>>,
    handler: Option<Cow<'static, str>>,
}

impl<D: Database<Pool: Backend>> ReplicatedDb<D> {
    pub(crate) fn new(session: Arc<Session<D>>, handler: Option<Cow<'static, str>>) -> Self {
        Self { session, handler }
    }

    /// Checks out a connection of the request's node.
    ///
    /// # Errors
    ///
    /// If no node could give one within its time: the master's `connect_timeout`, each slave's
    /// `slave_timeout`.
    pub async fn get(&self) -> Result<PoolConnection<Db<D>>, sqlx::Error> {
        let (lease, _) = self.session.checkout().await?;
        Ok(lease.into_inner())
    }

    /// Begins a transaction at the request's node: on a read, a read-only one.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get), and those of `BEGIN` itself.
    pub async fn begin(&self) -> Result<Transaction<'static, Db<D>>, sqlx::Error> {
        let mut attempts = Attempts::new(self);
        loop {
            let (lease, place) = self.session.checkout().await?;
            let begun = Transaction::begin(lease.into_inner(), None);
            match self.session.nodes.node(place.at).unless_it_falls(begun).await {
                Ok(transaction) => return Ok(transaction),
                Err(error) => attempts.after(place, error, Repeatable::Yes)?,
            }
        }
    }

    /// Switches the rest of the request to the master, as a [`ChangesDatabase`] guard would.
    pub fn changes_database(&self) {
        self.session.declare(Declared::Changes);
    }

    /// The node that serves this request, and why; `None` until the first query.
    pub fn choice(&self) -> Option<Choice> {
        self.session.choice()
    }

    /// The pin that the writes of this request leave, for clients and jobs that carry no cookies;
    /// `None` while it has not written, without slaves, and with `lag_window = 0`.
    ///
    /// A job hands it to [`Cluster::read`]. It stands for what has been committed when it is asked for.
    pub async fn pin(&self) -> Option<String> {
        self.session.pin().await
    }

    /// The name of the handler, for messages.
    pub(crate) fn handler(&self) -> &str {
        self.handler.as_deref().unwrap_or("this code")
    }
}

impl<D: Database<Pool: Backend>> Drop for ReplicatedDb<D> {
    fn drop(&mut self) {
        self.session.release();
    }
}

impl<D: Database<Pool: Backend>> Clone for ReplicatedDb<D> {
    fn clone(&self) -> Self {
        Self::new(self.session.clone(), self.handler.clone())
    }
}

impl<D: Database<Pool: Backend>> fmt::Debug for ReplicatedDb<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplicatedDb")
            .field("handler", &self.handler)
            .field("session", &self.session)
            .finish()
    }
}

#[rocket::async_trait]
impl<'r, D: Database<Pool: Backend>> FromRequest<'r> for ReplicatedDb<D> {
    type Error = NotAttached;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, NotAttached> {
        match session::<D>(request) {
            Some(session) => {
                let handler = request.route().and_then(|route| route.name.clone());
                Outcome::Success(Self::new(session.clone(), handler))
            }
            None => Outcome::Error((Status::InternalServerError, NotAttached)),
        }
    }
}

impl<D: Database<Pool: Backend>> Sentinel for ReplicatedDb<D> {
    fn abort(rocket: &Rocket<Ignite>) -> bool {
        attached::<D, _>(rocket).is_none()
    }
}

/// The guard's fairing, [`Replicated`](crate::Replicated), is not attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NotAttached;

impl fmt::Display for NotAttached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the fairing `Replicated` is not attached")
    }
}

impl std::error::Error for NotAttached {}

/// The cluster of `D`; if there is none, says what to attach.
pub(crate) fn attached<D: Database<Pool: Backend>, P: Phase>(rocket: &Rocket<P>) -> Option<&Cluster<D>> {
    let cluster = rocket.state::<Cluster<D>>();
    if cluster.is_none() {
        let database = std::any::type_name::<D>();
        error!("The database `{database}` is used, but not attached.");
        info!(
            target: "rocket_replicated::_",
            "Attach its fairing: `.attach(rocket_replicated::Replicated::<{database}>::fairing())`.",
        );
    }
    cluster
}

/// States that a request makes sense only while the database can be written to, for an application
/// that shows a read-only face while it cannot.
///
/// While the master of `D` is down, this forwards to the next route that matches; if there is none, the
/// reply is a 503 with `Retry-After`. The master is known to be down as soon as anybody noticed: a
/// write may still fail.
///
/// ```rust
/// # #[cfg(feature = "sqlite")] mod guard {
/// use rocket::get;
/// use rocket_replicated::Writable;
/// use rocket_replicated::sqlite::Database;
///
/// #[get("/edit")]
/// fn edit(_writable: Writable<Database>) -> &'static str {
///     "a form"
/// }
///
/// #[get("/edit", rank = 2)]
/// fn cannot_edit() -> &'static str {
///     "Changes are not possible at the moment."
/// }
/// # }
/// ```
pub struct Writable<D: Database<Pool: Backend>>(PhantomData<fn() -> D>);

impl<D: Database<Pool: Backend>> fmt::Debug for Writable<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Writable")
    }
}

#[rocket::async_trait]
impl<'r, D: Database<Pool: Backend>> FromRequest<'r> for Writable<D> {
    type Error = NotAttached;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, NotAttached> {
        match attached::<D, _>(request.rocket()) {
            None => Outcome::Error((Status::InternalServerError, NotAttached)),
            Some(Cluster(nodes)) if nodes.is_writable() => Outcome::Success(Self(PhantomData)),
            Some(_) => {
                RetryLater::tell(request);
                Outcome::Forward(Status::ServiceUnavailable)
            }
        }
    }
}

impl<D: Database<Pool: Backend>> Sentinel for Writable<D> {
    fn abort(rocket: &Rocket<Ignite>) -> bool {
        attached::<D, _>(rocket).is_none()
    }
}

/// The place of a request's session in its local cache.
struct Slot<D: Database<Pool: Backend>>(OnceLock<Arc<Session<D>>>);

fn slot<'r, D: Database<Pool: Backend>>(request: &'r Request<'_>) -> &'r OnceLock<Arc<Session<D>>> {
    &request.local_cache(|| Slot::<D>(OnceLock::new())).0
}

/// The session of this request, made when it is first asked for.
fn session<'r, D: Database<Pool: Backend>>(request: &'r Request<'_>) -> Option<&'r Arc<Session<D>>> {
    let slot = slot::<D>(request);
    if let Some(session) = slot.get() {
        return Some(session);
    }
    let Cluster(nodes) = attached::<D, _>(request.rocket())?;
    Some(slot.get_or_init(|| {
        let method = match nodes.read_methods().contains(request.method()) {
            true => MethodKind::Read,
            false => MethodKind::Write,
        };
        let pin = nodes.pins.as_ref().and_then(|pins| pins.find(request, OffsetDateTime::now_utc()));
        Arc::new(Session::new(nodes.clone(), method, pin))
    }))
}

/// The session that this request has, if it has one.
pub(crate) fn existing_session<'r, D: Database<Pool: Backend>>(
    request: &'r Request<'_>,
) -> Option<&'r Arc<Session<D>>> {
    slot::<D>(request).get()
}

fn declare<D: Database<Pool: Backend>>(request: &Request<'_>, declared: Declared) -> bool {
    let session = session::<D>(request);
    if let Some(session) = session {
        session.declare(declared);
    }
    session.is_some()
}

/// All databases of the application: what a guard speaks of that names none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Every {}

/// The databases that a [`ChangesDatabase`] or [`ReadsDatabase`] speaks of: one, or [`Every`].
pub trait Scope: Send + Sync + 'static {
    #[doc(hidden)]
    fn declare(request: &Request<'_>, declared: Declaration) -> bool;

    #[doc(hidden)]
    fn is_attached(rocket: &Rocket<Ignite>) -> bool;
}

/// What a guard declares.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Declaration(pub(crate) Declared);

impl<D: Database<Pool: Backend>> Scope for D {
    fn declare(request: &Request<'_>, declared: Declaration) -> bool {
        declare::<D>(request, declared.0)
    }

    fn is_attached(rocket: &Rocket<Ignite>) -> bool {
        attached::<D, _>(rocket).is_some()
    }
}

/// The databases attached so far, for guards that speak of every one.
pub(crate) struct Attached(RwLock<Vec<Declare>>);

type Declare = fn(&Request<'_>, Declared) -> bool;

impl Attached {
    pub(crate) fn add<D: Database<Pool: Backend>>(rocket: Rocket<Build>) -> Rocket<Build> {
        match rocket.state::<Self>() {
            Some(Self(databases)) => {
                databases.write().unwrap_or_else(PoisonError::into_inner).push(declare::<D>);
                rocket
            }
            None => rocket.manage(Self(RwLock::new(vec![declare::<D>]))),
        }
    }

    fn declare(&self, request: &Request<'_>, declared: Declared) -> bool {
        let databases = self.0.read().unwrap_or_else(PoisonError::into_inner);
        databases.iter().all(|declare| declare(request, declared))
    }
}

impl Scope for Every {
    fn declare(request: &Request<'_>, declared: Declaration) -> bool {
        let attached = request.rocket().state::<Attached>();
        attached.is_some_and(|attached| attached.declare(request, declared.0))
    }

    fn is_attached(rocket: &Rocket<Ignite>) -> bool {
        let attached = rocket.state::<Attached>().is_some();
        if !attached {
            error!("`ChangesDatabase` or `ReadsDatabase` is used, but no database is attached.");
            info!(target: "rocket_replicated::_", "Attach one: `.attach(Replicated::fairing())`.");
        }
        attached
    }
}

/// States that a request changes the database, whatever its method: it goes to the master, and its
/// reply pins the client.
///
/// For a GET that counts visits, logs somebody in by a link, or fills a cache table.
/// `ChangesDatabase` speaks of all databases, `ChangesDatabase<Blog>` of one. It outranks
/// [`ReadsDatabase`], and holds for the rest of the request, also if this route forwards to another.
///
/// ```rust
/// # #[cfg(feature = "sqlite")] mod guard {
/// use rocket::get;
/// use rocket_replicated::sqlite::ReplicatedDb;
/// use rocket_replicated::{ChangesDatabase, Error};
///
/// #[get("/visit")]
/// async fn visit(_changes: ChangesDatabase, db: ReplicatedDb) -> Result<&'static str, Error> {
///     sqlx::query("UPDATE visits SET count = count + 1").execute(&db).await?;
///     Ok("counted")
/// }
/// # }
/// ```
pub struct ChangesDatabase<S: Scope = Every>(PhantomData<fn() -> S>);

/// States that a request only reads the database, whatever its method: a search form that is
/// posted, say. It goes to the read-only pools, and its reply pins nobody.
///
/// `ReadsDatabase` speaks of all databases, `ReadsDatabase<Blog>` of one. [`ChangesDatabase`]
/// outranks it. With `read_from_slaves = "asked"`, this is how to ask.
pub struct ReadsDatabase<S: Scope = Every>(PhantomData<fn() -> S>);

macro_rules! declaring_guard {
    ($Guard:ident: $declared:expr) => {
        impl<S: Scope> fmt::Debug for $Guard<S> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($Guard))
            }
        }

        #[rocket::async_trait]
        impl<'r, S: Scope> FromRequest<'r> for $Guard<S> {
            type Error = NotAttached;

            async fn from_request(request: &'r Request<'_>) -> Outcome<Self, NotAttached> {
                match S::declare(request, Declaration($declared)) {
                    true => Outcome::Success(Self(PhantomData)),
                    false => Outcome::Error((Status::InternalServerError, NotAttached)),
                }
            }
        }

        impl<S: Scope> Sentinel for $Guard<S> {
            fn abort(rocket: &Rocket<Ignite>) -> bool {
                !S::is_attached(rocket)
            }
        }
    };
}

declaring_guard!(ChangesDatabase: Declared::Changes);
declaring_guard!(ReadsDatabase: Declared::Reads);
