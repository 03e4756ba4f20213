//! [`Error`]: the error that handlers return, and its reply.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use log::{debug, error, warn};
use rocket::Request;
use rocket::http::Status;
use rocket::response::{self, Responder};

use super::fairing::name_of;
use super::guards::Attached;
use crate::backend::{is_unavailable, takes_no_writes};
use crate::one_line::{Message, OneLine};
use crate::pool::OutcomeUnknown;

/// A database error as a handler's reply.
///
/// | variant                         | status | log   |
/// |---------------------------------|--------|-------|
/// | [`NotFound`](Self::NotFound)    | 404    | –     |
/// | [`Unavailable`](Self::Unavailable), or a write that a read-only server has refused | 503 with `Retry-After` | warning, one in 10 s for each database |
/// | [`OutcomeUnknown`](Self::OutcomeUnknown) | 504 | error |
/// | [`Database`](Self::Database)    | 500    | error |
///
/// The body is that of the application's catcher for the status: the database's own words, which
/// may quote data, go to the log alone.
///
/// ```rust
/// # #[cfg(feature = "sqlite")] mod posts {
/// use rocket::http::Status;
/// use rocket::{get, put};
/// use rocket_replicated::Error;
/// use rocket_replicated::sqlite::ReplicatedDb;
///
/// /// `?` is enough: 404 if there is no such post.
/// #[get("/posts/<id>")]
/// async fn title(id: i64, db: ReplicatedDb) -> Result<String, Error> {
///     Ok(sqlx::query_scalar("SELECT title FROM posts WHERE id = ?").bind(id).fetch_one(&db).await?)
/// }
///
/// /// Gives one error a reply of its own: 409 if the name is taken.
/// #[put("/users/<name>")]
/// async fn register(name: &str, db: ReplicatedDb) -> Result<Status, Error> {
///     match sqlx::query("INSERT INTO users (name) VALUES (?)").bind(name).execute(&db).await {
///         Ok(_) => Ok(Status::Created),
///         Err(sqlx::Error::Database(error)) if error.is_unique_violation() => Ok(Status::Conflict),
///         Err(error) => Err(error.into()),
///     }
/// }
/// # }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The row that was asked for does not exist.
    NotFound,
    /// No node can be reached, or all connections are in use.
    ///
    /// [`sqlx::Error::Io`] of kind [`TimedOut`](std::io::ErrorKind::TimedOut) is a wait for a connection that timed
    /// out. Its message says how many are in use. Other kinds tell that a server cannot be reached, or that a connection
    /// failed.
    Unavailable(sqlx::Error),
    /// A write was sent, and its connection broke before the answer came. The write may have been carried out or not.
    /// It was not run again, and the reply does not tell the client to try again. Of sqlx's own error,
    /// [`is_outcome_unknown`](Self::is_outcome_unknown) is true.
    OutcomeUnknown(sqlx::Error),
    /// Anything else: the application or its database is at fault.
    Database(sqlx::Error),
}

impl Error {
    /// True if a write that failed with this error may have been carried out. Such an error becomes
    /// [`OutcomeUnknown`](Self::OutcomeUnknown). For code that has sqlx's own error in hand.
    ///
    /// Never true of a read, nor of a statement that the database refused.
    ///
    /// ```rust
    /// # #[cfg(feature = "sqlite")] mod payments {
    /// use rocket_replicated::Error;
    /// use rocket_replicated::sqlite::ReplicatedDb;
    ///
    /// async fn pay(order: i64, db: &ReplicatedDb) -> Result<(), sqlx::Error> {
    ///     let pay = || sqlx::query("UPDATE orders SET paid = TRUE WHERE id = ?").bind(order).execute(db);
    ///     match pay().await {
    ///         // To pay twice is to have paid: this one can be tried again.
    ///         Err(error) if Error::is_outcome_unknown(&error) => pay().await.map(drop),
    ///         done => done.map(drop),
    ///     }
    /// }
    /// # }
    /// ```
    pub fn is_outcome_unknown(error: &sqlx::Error) -> bool {
        OutcomeUnknown::is(error)
    }
}

impl Error {
    /// True if the same request may well succeed later, as another server may be the master by then.
    fn is_passing(&self, request: &Request<'_>) -> bool {
        match self {
            Self::Unavailable(_) => true,
            Self::Database(error) => takes_no_writes(error) && Attached::writes(request),
            Self::NotFound | Self::OutcomeUnknown(_) => false,
        }
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error::*;

        match error {
            RowNotFound => Self::NotFound,
            Io(_) if OutcomeUnknown::is(&error) => Self::OutcomeUnknown(error),
            PoolTimedOut | PoolClosed | Io(_) | Tls(_) | WorkerCrashed => Self::Unavailable(error),
            Database(ref database) if is_unavailable(&**database) => Self::Unavailable(error),
            error => Self::Database(error),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("not found"),
            Self::Unavailable(error) => write!(f, "the database is unavailable: {}", Message(error)),
            Self::OutcomeUnknown(error) | Self::Database(error) => Message(error).fmt(f),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NotFound => None,
            Self::Unavailable(error) | Self::OutcomeUnknown(error) | Self::Database(error) => Some(error),
        }
    }
}

impl<'r> Responder<'r, 'static> for Error {
    fn respond_to(self, request: &'r Request<'_>) -> response::Result<'static> {
        let (of, problem) = (Named(request), OneLine(&self));
        match &self {
            Self::NotFound => Err(Status::NotFound),
            unavailable if unavailable.is_passing(request) => {
                match Attached::pass_warning(request) {
                    None => debug!("{of}: {problem}"),
                    Some(0) => warn!("{of}: {problem}"),
                    Some(more) => {
                        warn!("{of}: {problem} (requests like it since the last such line: {more})");
                    }
                }
                RetryLater::tell(request);
                Err(Status::ServiceUnavailable)
            }
            Self::OutcomeUnknown(_) => {
                error!("{of}: {problem}");
                Err(Status::GatewayTimeout)
            }
            Self::Unavailable(_) | Self::Database(_) => {
                error!("{of}: {problem}");
                Err(Status::InternalServerError)
            }
        }
    }
}

/// A request with the databases that it has asked, as in `` GET /posts/<id> (`show`), database `blog` ``. Neither a
/// driver's error nor the error that a handler makes of it names the database.
struct Named<'r, 'a>(&'r Request<'a>);

impl fmt::Display for Named<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(request) = self;
        f.write_str(&name_of(request))?;
        match &Attached::asked(request)[..] {
            [] => Ok(()),
            [database] => write!(f, ", database `{database}`"),
            databases => write!(f, ", databases `{}`", databases.join("`, `")),
        }
    }
}

/// Marks a request whose reply has to say when to try again. The header cannot be set on the error's own reply, because
/// the catcher makes another one.
pub(crate) struct RetryLater(AtomicBool);

impl RetryLater {
    pub(crate) const SECONDS: &str = "1";

    pub(crate) fn tell(request: &Request<'_>) {
        Self::of(request).store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_told(request: &Request<'_>) -> bool {
        Self::of(request).load(Ordering::Relaxed)
    }

    fn of<'r>(request: &'r Request<'_>) -> &'r AtomicBool {
        &request.local_cache(|| Self(AtomicBool::new(false))).0
    }
}
