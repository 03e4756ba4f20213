//! The request guards: [`ReplicatedDb`], [`ChangesDatabase`], [`ReadsDatabase`].

use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use log::error;
use rocket::http::Status;
use rocket::request::{FromRequest, Outcome};
use rocket::{Build, Ignite, Phase, Request, Rocket, Sentinel};
use rocket_db_pools::Database;
use time::OffsetDateTime;

use super::error::RetryLater;
use crate::backend::Backend;
use crate::cluster::{Cluster, Db};
use crate::config::{Config, ConfigError, PinNames};
use crate::request::{ReplicatedDb, Session};
use crate::routing::{Client, Declared, MethodKind, Reason};
use crate::throttle::Throttle;

#[rocket::async_trait]
impl<'r, D: Database<Pool: Backend>> FromRequest<'r> for ReplicatedDb<D> {
    type Error = NotAttached;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, NotAttached> {
        match session::<D>(request) {
            Some(session) => {
                if let Some(handler) = request.route().and_then(|route| route.name.clone()) {
                    session.set_handler(handler);
                }
                Outcome::Success(Self::new(session.clone()))
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
        f.write_str("the database's fairing is not attached: `.attach(Replicated::fairing())`")
    }
}

impl std::error::Error for NotAttached {}

/// Managed in place of the cluster where the fairing of `D` was attached and failed, so that the log has only its
/// error.
pub(crate) struct FailedFairing<D>(PhantomData<fn() -> D>);

impl<D: Database<Pool: Backend>> FailedFairing<D> {
    pub(crate) fn new() -> Self {
        Self(PhantomData)
    }
}

/// The cluster of `D`. If the fairing is not attached, logs what to attach.
pub(crate) fn attached<D: Database<Pool: Backend>, P: Phase>(rocket: &Rocket<P>) -> Option<&Cluster<D>> {
    let cluster = rocket.state::<Cluster<D>>();
    if cluster.is_none() && rocket.state::<FailedFairing<D>>().is_none() {
        let database = std::any::type_name::<D>();
        error!(
            "The database `{database}` is used, but not attached. Attach its fairing: \
             `.attach(rocket_replicated::Replicated::<{database}>::fairing())`."
        );
    }
    cluster
}

/// States that a request makes sense only while the database can be written to, for an application
/// that shows a read-only face while it cannot.
///
/// While the master of `D` is down, this forwards to the next route that matches. If there is none, the reply is a 503
/// with `Retry-After`. The master counts as down only once a failure has been noticed, so a write may still fail.
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
            Some(Cluster(inner)) if inner.is_writable() => Outcome::Success(Self(PhantomData)),
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

/// The slot for a request's session in the request's local cache.
struct Slot<D: Database<Pool: Backend>>(OnceLock<Arc<Session<Db<D>>>>);

fn slot<'r, D: Database<Pool: Backend>>(request: &'r Request<'_>) -> &'r OnceLock<Arc<Session<Db<D>>>> {
    &request.local_cache(|| Slot::<D>(OnceLock::new())).0
}

/// The session of this request, made at the first call.
fn session<'r, D: Database<Pool: Backend>>(request: &'r Request<'_>) -> Option<&'r Arc<Session<Db<D>>>> {
    let slot = slot::<D>(request);
    if let Some(session) = slot.get() {
        return Some(session);
    }
    let Cluster(inner) = attached::<D, _>(request.rocket())?;
    Some(slot.get_or_init(|| {
        let method = match inner.config.read_methods.contains(request.method()) {
            true => MethodKind::Read,
            false => MethodKind::Write,
        };
        let pin = inner.pins.as_ref().and_then(|pins| pins.find(request, OffsetDateTime::now_utc()));
        // The address may have to be read from a header, so it is read only where it matters.
        let client = Client::of(inner.tells_clients_apart().then(|| request.client_ip()).flatten());
        Arc::new(Session::new(inner.clone(), method, client, pin).of_request())
    }))
}

/// The session of this request, if it has been made.
pub(crate) fn existing_session<'r, D: Database<Pool: Backend>>(
    request: &'r Request<'_>,
) -> Option<&'r Arc<Session<Db<D>>>> {
    slot::<D>(request).get()
}

fn declare<D: Database<Pool: Backend>>(request: &Request<'_>, declared: Declared) -> bool {
    let session = session::<D>(request);
    if let Some(session) = session {
        session.declare(declared);
    }
    session.is_some()
}

fn asked_for<D: Database<Pool: Backend>>(request: &Request<'_>) -> Option<Reason> {
    Some(existing_session::<D>(request)?.choice()?.reason())
}

/// All databases of the application: the scope of a guard that names none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Every {}

/// The scope of a [`ChangesDatabase`] or [`ReadsDatabase`]: one database, or [`Every`]. Sealed.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a database of rocket_replicated",
    label = "a guard speaks of one database, or without a parameter of all",
    note = "name the struct that has `#[derive(Database)]`, over a pool of this crate"
)]
pub trait Scope: sealed::Scope {}

#[diagnostic::do_not_recommend]
impl<D: Database<Pool: Backend>> Scope for D {}

impl Scope for Every {}

mod sealed {
    use super::{Declaration, Ignite, Request, Rocket};

    /// What a guard does for the databases that it speaks of.
    #[allow(unnameable_types)]
    pub trait Scope: Send + Sync + 'static {
        fn declare(request: &Request<'_>, declared: Declaration) -> bool;

        fn is_attached(rocket: &Rocket<Ignite>) -> bool;
    }
}

/// The declaration that a guard makes.
#[derive(Clone, Copy, Debug)]
pub struct Declaration(Declared);

#[diagnostic::do_not_recommend]
impl<D: Database<Pool: Backend>> sealed::Scope for D {
    fn declare(request: &Request<'_>, declared: Declaration) -> bool {
        declare::<D>(request, declared.0)
    }

    fn is_attached(rocket: &Rocket<Ignite>) -> bool {
        attached::<D, _>(rocket).is_some()
    }
}

/// The databases attached so far, for guards and replies that concern all of them.
pub(crate) struct Attached(RwLock<Vec<Member>>);

/// The shortest time between two warnings about requests that find no server. The servers' own failures have log lines
/// of their own.
const BETWEEN_WARNINGS: Duration = Duration::from_secs(10);

#[derive(Clone)]
struct Member {
    database: &'static str,
    declare: fn(&Request<'_>, Declared) -> bool,
    /// The reason for the choice of server, if the request has asked this database.
    asked_for: fn(&Request<'_>) -> Option<Reason>,
    pin: Option<PinNames>,
    /// Limits warnings about requests that find no server.
    warnings: Arc<Throttle>,
}

impl Attached {
    /// Refuses a configuration whose pins would replace those of a database that is already attached.
    pub(crate) fn check<D: Database<Pool: Backend>>(
        rocket: &Rocket<Build>,
        config: &Config,
    ) -> Result<(), ConfigError> {
        let Some(pin) = &config.pin else { return Ok(()) };
        let pin = PinNames::new(D::NAME, pin);
        let members = rocket.state::<Self>().map(Self::members).unwrap_or_default();
        members
            .iter()
            .filter_map(|member| member.pin.as_ref())
            .try_for_each(|other| pin.check(rocket.figment(), other))
    }

    pub(crate) fn add<D: Database<Pool: Backend>>(rocket: Rocket<Build>, config: &Config) -> Rocket<Build> {
        let pin = config.pin.as_ref().map(|pin| PinNames::new(D::NAME, pin));
        let warnings = Arc::new(Throttle::new(BETWEEN_WARNINGS));
        let member =
            Member { database: D::NAME, declare: declare::<D>, asked_for: asked_for::<D>, pin, warnings };
        match rocket.state::<Self>() {
            Some(Self(members)) => {
                members.write().unwrap_or_else(PoisonError::into_inner).push(member);
                rocket
            }
            None => rocket.manage(Self(RwLock::new(vec![member]))),
        }
    }

    #[cfg(feature = "status")]
    pub(crate) fn has(&self, database: &str) -> bool {
        self.members().iter().any(|member| member.database == database)
    }

    /// The databases that a request has asked so far.
    pub(super) fn asked(request: &Request<'_>) -> Vec<&'static str> {
        Self::asked_members(request).iter().map(|member| member.database).collect()
    }

    /// True if a request means to write to one of its databases.
    pub(super) fn writes(request: &Request<'_>) -> bool {
        Self::asked_members(request)
            .iter()
            .any(|member| (member.asked_for)(request).is_some_and(Reason::writes))
    }

    /// Decides whether to warn about a request that finds no server. `Some` allows the warning, with the number of
    /// requests for the same databases that were passed over since the last one.
    pub(super) fn pass_warning(request: &Request<'_>) -> Option<u64> {
        let asked = Self::asked_members(request);
        if asked.is_empty() {
            return Some(0);
        }
        asked.iter().filter_map(|member| member.warnings.pass()).reduce(|all, more| all + more)
    }

    fn asked_members(request: &Request<'_>) -> Vec<Member> {
        let members = request.rocket().state::<Self>().map(Self::members).unwrap_or_default();
        members.into_iter().filter(|member| (member.asked_for)(request).is_some()).collect()
    }

    fn members(&self) -> Vec<Member> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn declare(&self, request: &Request<'_>, declared: Declared) -> bool {
        let members = self.0.read().unwrap_or_else(PoisonError::into_inner);
        members.iter().all(|member| (member.declare)(request, declared))
    }
}

impl sealed::Scope for Every {
    fn declare(request: &Request<'_>, declared: Declaration) -> bool {
        let attached = request.rocket().state::<Attached>();
        attached.is_some_and(|attached| attached.declare(request, declared.0))
    }

    fn is_attached(rocket: &Rocket<Ignite>) -> bool {
        let attached = rocket.state::<Attached>().is_some();
        if !attached {
            error!(
                "`ChangesDatabase` or `ReadsDatabase` is used, but no database is attached. Attach one: \
                 `.attach(Replicated::fairing())`."
            );
        }
        attached
    }
}

/// States that a request changes the database, whatever its method. The request goes to the master, and its reply pins
/// the client.
///
/// For a GET that counts visits, logs a user in by a link, or fills a cache table. `ChangesDatabase` concerns all
/// databases, `ChangesDatabase<Blog>` one. It outranks [`ReadsDatabase`], and holds for the rest of the request, even
/// if this route forwards to another.
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

/// States that a request only reads the database, whatever its method, as the POST of a search form does. The request
/// goes to the read-only pools, and its reply does not pin the client.
///
/// `ReadsDatabase` concerns all databases, `ReadsDatabase<Blog>` one. [`ChangesDatabase`] outranks it. Where
/// `read_from_slaves` does not send all reads to slaves, this guard asks for a slave.
///
/// ```rust
/// # #[cfg(feature = "sqlite")] mod guard {
/// use rocket::form::Form;
/// use rocket::post;
/// use rocket_replicated::sqlite::ReplicatedDb;
/// use rocket_replicated::{Error, ReadsDatabase};
///
/// #[post("/search", data = "<word>")]
/// async fn search(word: Form<String>, _reads: ReadsDatabase, db: ReplicatedDb) -> Result<String, Error> {
///     let titles = sqlx::query_scalar("SELECT title FROM posts WHERE instr(title, ?) > 0").bind(&*word);
///     let titles: Vec<String> = titles.fetch_all(&db).await?;
///     Ok(titles.join("\n"))
/// }
/// # }
/// ```
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
