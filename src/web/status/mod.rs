//! The status page for operators, and the routes for programs.
//!
//! | file          | purpose                                                                |
//! |---------------|------------------------------------------------------------------------|
//! | `mod.rs`      | the routes, their guards, and whether they may be launched             |
//! | `snapshot.rs` | what is shown, taken at one moment; as JSON                            |
//! | `settings.rs` | the configuration, as far as it may be shown                           |
//! | `page.rs`     | the snapshot as HTML, with `status.css` and `status.js`                |
//! | `chart.rs`    | lag over the last minutes                                              |
//! | `openmetrics.rs` | the metrics as text                                                  |
//! | `live.rs`     | the page again each second, by server-sent events                      |
//! | `drills.rs`   | what an operator can do there                                          |
//! | `origin.rs`   | whether a form comes from the page or from another site                |

use std::collections::BTreeSet;
use std::fmt;
use std::io::Cursor;
use std::marker::PhantomData;
use std::sync::Arc;

use log::error;
use rocket::data::Data;
use rocket::form::Form;
use rocket::http::{ContentType, Method, Status};
use rocket::outcome::Outcome;
use rocket::request::{self, FromRequest, Request};
use rocket::response::{Responder, Response};
use rocket::route::{self, Handler, Route};
use rocket::tokio::sync::Semaphore;
use rocket::{Ignite, Rocket, Sentinel};
use rocket_db_pools::Database;

use super::fairing::Replicated;
use super::guards::{Attached, attached};
use crate::backend::Backend;
use crate::cluster::Cluster;
#[cfg(feature = "metrics")]
use crate::statistics::Statistics;
use drills::{Drills, Order};
use snapshot::{Health, Snapshot};

mod chart;
mod drills;
mod live;
#[cfg(feature = "metrics")]
mod openmetrics;
mod origin;
mod page;
mod settings;
mod snapshot;

impl<D: Database<Pool: Backend>> Replicated<D> {
    /// The routes of a status page for operators, to be mounted at any path. `Admin` is a request guard of your
    /// application, without a lifetime. A request that it does not let in gets the guard's own answer.
    ///
    /// | route | for |
    /// |---|---|
    /// | `GET /` | people: servers, lag, connections, reads by reason, changes of state, promotions, configuration; live |
    /// | `GET /status.json` | programs: the same |
    /// | `GET /metrics` | Prometheus, and other programs that read OpenMetrics: with the feature `metrics` |
    /// | `GET /health` | load balancers: 200 if reads can be served, else 503; `?writes`: if writes can be, too |
    ///
    /// Only `/health` has no guard, as load balancers cannot log in. It tells `reads` and `writes`, and no names. Where
    /// `read_url` leads to another address than `url`, it also tells whether the master can be read from there.
    ///
    /// ```rust
    /// # #[cfg(feature = "sqlite")] mod page {
    /// use rocket::request::{FromRequest, Outcome, Request};
    /// use rocket::{Build, Rocket, http::Status};
    /// use rocket_replicated::sqlite::Replicated;
    ///
    /// struct Admin; // a user who is logged in as an administrator
    ///
    /// #[rocket::async_trait]
    /// impl<'r> FromRequest<'r> for Admin {
    ///     type Error = ();
    ///
    ///     async fn from_request(request: &'r Request<'_>) -> Outcome<Self, ()> {
    ///         match request.cookies().get("session") {
    ///             Some(session) if is_an_admins(session.value()) => Outcome::Success(Self),
    ///             _ => Outcome::Error((Status::Forbidden, ())),
    ///         }
    ///     }
    /// }
    ///
    /// /// What your application knows of its sessions.
    /// fn is_an_admins(_session: &str) -> bool { /* … */ false }
    ///
    /// fn rocket() -> Rocket<Build> {
    ///     rocket::build()
    ///         .attach(Replicated::fairing())
    ///         .mount("/status", Replicated::status::<Admin>().with_drills())
    /// }
    /// # }
    /// ```
    ///
    /// None of the routes shows a password, a key or a pin. The pages load files only from these routes, and work
    /// without a script. With the script, a page is kept up to date, for up to 16 listeners at the same time.
    pub fn status<Admin>() -> StatusRoutes<D, Admin>
    where
        Admin: for<'r> FromRequest<'r> + 'static,
    {
        StatusRoutes::new(Entry::Guarded)
    }

    /// [`status`](Self::status) without a guard, drills included, for use during development. Outside the debug
    /// profile, launch fails.
    pub fn status_open_to_everybody() -> StatusRoutes<D, Everybody> {
        StatusRoutes::new(Entry::OpenToEverybody)
    }
}

/// The routes of a status page: [`Replicated::status`].
pub struct StatusRoutes<D, Admin> {
    entry: Entry,
    drills: Drills,
    page: PhantomData<fn() -> (D, Admin)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Guarded,
    OpenToEverybody,
}

impl<D, Admin> StatusRoutes<D, Admin> {
    fn new(entry: Entry) -> Self {
        Self { entry, drills: Drills::Off, page: PhantomData }
    }

    /// Adds buttons that take slaves out and put them back, and that send all or some reads to the master and back, as
    /// [`Cluster`]'s methods do. Each use is logged. A form that another site has sent is refused.
    pub fn with_drills(mut self) -> Self {
        self.drills = Drills::On;
        self
    }
}

impl<D, Admin> fmt::Debug for StatusRoutes<D, Admin> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entry, drills, page: _ } = self;
        f.debug_struct("StatusRoutes").field("entry", entry).field("drills", drills).finish()
    }
}

/// The guard that lets every request in.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Everybody;

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Everybody {
    type Error = ();

    async fn from_request(_: &'r Request<'_>) -> request::Outcome<Self, ()> {
        Outcome::Success(Self)
    }
}

impl<D, Admin> From<StatusRoutes<D, Admin>> for Vec<Route>
where
    D: Database<Pool: Backend>,
    Admin: for<'r> FromRequest<'r> + 'static,
{
    fn from(StatusRoutes { entry, drills, page: _ }: StatusRoutes<D, Admin>) -> Self {
        let listeners = Arc::new(Semaphore::new(live::MAX_LISTENERS));
        let routes = Outlet::ALL.iter().filter(|outlet| **outlet != Outlet::Drills || drills == Drills::On);
        let routes = routes.map(|outlet| {
            let (method, path) = outlet.place();
            let page =
                Page::<D, Admin> { outlet: *outlet, drills, listeners: listeners.clone(), of: PhantomData };
            let mut route = Route::new(method, &path, page);
            route.name = Some(name(D::NAME, entry).into());
            route
        });
        routes.chain(rocket::routes![icon]).collect()
    }
}

/// The name of a route in the lift-off log.
fn name(database: &str, entry: Entry) -> String {
    match entry {
        Entry::Guarded => format!("{STATUS_OF}{database}"),
        Entry::OpenToEverybody => format!("{STATUS_OF}{database}{OPEN}"),
    }
}

const STATUS_OF: &str = "status of ";
const OPEN: &str = ", open to everybody";

/// A function with the route attribute, because only such a route can have a [`Sentinel`], which decides for all routes
/// of the page.
#[rocket::get("/icon.svg")]
fn icon(_launchable: Launchable) -> (ContentType, &'static str) {
    (ContentType::SVG, include_str!("icon.svg"))
}

/// The guard of a route that launches only if the page's other routes may.
struct Launchable;

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Launchable {
    type Error = ();

    async fn from_request(_: &'r Request<'_>) -> request::Outcome<Self, ()> {
        Outcome::Success(Self)
    }
}

impl Sentinel for Launchable {
    fn abort(rocket: &Rocket<Ignite>) -> bool {
        let profile = rocket.figment().profile();
        let attached = |database| rocket.state::<Attached>().is_some_and(|attached| attached.has(database));
        // Each route of a page has the same name. Each page has one error.
        let names: BTreeSet<_> = rocket.routes().filter_map(|route| route.name.as_deref()).collect();
        let wrong = names.iter().filter_map(|name| name.strip_prefix(STATUS_OF)).filter(|name| {
            let database = name.strip_suffix(OPEN).unwrap_or(name);
            if !attached(database) {
                error!(
                    "The status page of database `{database}` is mounted, but the database is not attached: add \
                     `.attach(Replicated::fairing())`."
                );
            } else if name.ends_with(OPEN) && *profile != rocket::Config::DEBUG_PROFILE {
                error!(
                    "The status page of database `{database}` is open to everybody, in profile `{profile}`: only the \
                     debug profile allows that. Mount `Replicated::status::<Admin>()` instead, where `Admin` is a \
                     request guard of yours."
                );
            } else {
                return false;
            }
            true
        });
        wrong.count() > 0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outlet {
    Page,
    Events,
    Script,
    Style,
    Json,
    Health,
    Metrics,
    Drills,
}

impl Outlet {
    const ALL: &[Self] = &[
        Self::Page,
        Self::Events,
        Self::Script,
        Self::Style,
        Self::Json,
        Self::Health,
        #[cfg(feature = "metrics")]
        Self::Metrics,
        Self::Drills,
    ];

    /// The path below the page's mount point. Files that browsers cache have the crate's version in their path.
    fn place(self) -> (Method, String) {
        let versioned = |file| format!("/{}/{file}", env!("CARGO_PKG_VERSION"));
        match self {
            Self::Page => (Method::Get, "/".into()),
            Self::Events => (Method::Get, "/events".into()),
            Self::Script => (Method::Get, versioned("status.js")),
            Self::Style => (Method::Get, versioned("status.css")),
            Self::Json => (Method::Get, "/status.json".into()),
            Self::Health => (Method::Get, "/health".into()),
            Self::Metrics => (Method::Get, "/metrics".into()),
            Self::Drills => (Method::Post, "/drills".into()),
        }
    }

    /// The path in the page's links.
    fn link(self, base: &str) -> String {
        format!("{}{}", base.trim_end_matches('/'), self.place().1)
    }
}

/// One route.
struct Page<D, Admin> {
    outlet: Outlet,
    drills: Drills,
    listeners: Arc<Semaphore>,
    of: PhantomData<fn() -> (D, Admin)>,
}

impl<D, Admin> Clone for Page<D, Admin> {
    fn clone(&self) -> Self {
        let Self { outlet, drills, listeners, of } = self;
        Self { outlet: *outlet, drills: *drills, listeners: listeners.clone(), of: *of }
    }
}

#[rocket::async_trait]
impl<D, Admin> Handler for Page<D, Admin>
where
    D: Database<Pool: Backend>,
    Admin: for<'r> FromRequest<'r> + 'static,
{
    async fn handle<'r>(&self, request: &'r Request<'_>, data: Data<'r>) -> route::Outcome<'r> {
        if self.outlet != Outlet::Health {
            match request.guard::<Admin>().await {
                Outcome::Success(_) => {}
                Outcome::Error((status, _)) => return Outcome::Error(status),
                Outcome::Forward(status) => return Outcome::Forward((data, status)),
            }
        }
        match self.answer(request, data).await {
            Ok(response) => Outcome::Success(response),
            Err(status) => Outcome::Error(status),
        }
    }
}

impl<D: Database<Pool: Backend>, Admin> Page<D, Admin> {
    async fn answer<'r>(&self, request: &'r Request<'_>, data: Data<'r>) -> Result<Response<'r>, Status> {
        let cluster = attached::<D, _>(request.rocket()).ok_or(Status::InternalServerError)?;
        let base = request.route().map_or("/", |route| route.uri.base());
        match self.outlet {
            Outlet::Page => {
                let page = page::page(&Snapshot::of(&cluster.0), base, self.drills);
                Ok(fresh(ContentType::HTML, page.into_string()))
            }
            Outlet::Events => live::events(request, cluster, self.listeners.clone(), base, self.drills),
            Outlet::Script => Ok(lasting(ContentType::JavaScript, page::SCRIPT)),
            Outlet::Style => Ok(lasting(ContentType::CSS, page::STYLE)),
            Outlet::Json => json(&Snapshot::of(&cluster.0), Status::Ok),
            Outlet::Health => health(request, cluster),
            #[cfg(feature = "metrics")]
            Outlet::Metrics => {
                let text = openmetrics::text(&Statistics::of(&cluster.0));
                Ok(fresh(openmetrics::content_type(), text))
            }
            #[cfg(not(feature = "metrics"))]
            Outlet::Metrics => Err(Status::NotFound),
            Outlet::Drills => {
                drills::check_sender(request, D::NAME)?;
                let order = match rocket::data::FromData::from_data(request, data).await {
                    Outcome::Success(order) => Form::<Order<'_>>::into_inner(order),
                    Outcome::Error((status, _)) | Outcome::Forward((_, status)) => return Err(status),
                };
                order.carry_out(cluster, request, base.to_owned())?.respond_to(request)
            }
        }
    }
}

fn health<'r, D: Database<Pool: Backend>>(
    request: &'r Request<'_>,
    cluster: &Cluster<D>,
) -> Result<Response<'r>, Status> {
    let health = Health::of(&cluster.0);
    let wants_writes = request.query_value("writes").unwrap_or(Ok(false)).map_err(|_| Status::BadRequest)?;
    let is_ready = health.reads && (health.writes || !wants_writes);
    json(&health, if is_ready { Status::Ok } else { Status::ServiceUnavailable })
}

fn json<'r>(value: &impl serde::Serialize, status: Status) -> Result<Response<'r>, Status> {
    let body = serde_json::to_string(value).map_err(|_| Status::InternalServerError)?;
    let mut response = fresh(ContentType::JSON, body);
    response.set_status(status);
    Ok(response)
}

/// Nothing from other hosts, nothing inline, and no display in a frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

fn response<'r>(content_type: ContentType, body: impl Into<String>) -> Response<'r> {
    let body = body.into();
    Response::build()
        .header(content_type)
        .raw_header("Content-Security-Policy", POLICY)
        .raw_header("Referrer-Policy", "same-origin")
        .sized_body(body.len(), Cursor::new(body))
        .finalize()
}

/// A response that is true only now and must not be stored.
fn fresh<'r>(content_type: ContentType, body: impl Into<String>) -> Response<'r> {
    let mut response = response(content_type, body);
    response.set_raw_header("Cache-Control", "no-store");
    response
}

/// A response that changes only with the crate's version.
fn lasting<'r>(content_type: ContentType, body: &str) -> Response<'r> {
    let mut response = response(content_type, body);
    response.set_raw_header("Cache-Control", "private, max-age=31536000, immutable");
    response
}
