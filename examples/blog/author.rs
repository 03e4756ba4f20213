//! Who writes: a request guard that itself asks the database.

use rocket::Request;
use rocket::http::Status;
use rocket::request::{FromRequest, Outcome};
use rocket_replicated::{Error, ReplicatedDb};
use serde::Serialize;

use crate::Blog;

/// The author whose token the request carries, as `Authorization: Bearer <token>`.
#[derive(Serialize, sqlx::FromRow)]
pub struct Author {
    pub id: i64,
    pub name: String,
}

impl Author {
    /// By the hash of the token: whoever sees the database, a slave or a backup, has no token yet.
    async fn find(token: &str, db: &ReplicatedDb<Blog>) -> Result<Self, Error> {
        let author = sqlx::query_as(
            "SELECT id, name FROM authors WHERE token_sha256 = sha256(convert_to($1, 'UTF8'))",
        )
        .bind(token)
        .fetch_one(db)
        .await?;
        Ok(author)
    }
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Author {
    type Error = Error;

    /// A guard's `ReplicatedDb` is the handler's: for a GET both ask the same slave, for a POST the master.
    // It asks before the handler does. A `ReadsDatabase` has to stand before it, among the parameters of
    // a POST, to be in time.
    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, Error> {
        let token =
            request.headers().get_one("Authorization").and_then(|value| value.strip_prefix("Bearer "));
        let db = request.guard::<ReplicatedDb<Blog>>().await.succeeded();
        let (Some(token), Some(db)) = (token, db) else {
            return Outcome::Error((Status::Unauthorized, Error::NotFound));
        };
        match Self::find(token, &db).await {
            Ok(author) => Outcome::Success(author),
            Err(Error::NotFound) => Outcome::Error((Status::Unauthorized, Error::NotFound)),
            Err(error @ Error::Unavailable(_)) => Outcome::Error((Status::ServiceUnavailable, error)),
            Err(error @ Error::OutcomeUnknown(_)) => Outcome::Error((Status::GatewayTimeout, error)),
            Err(error) => Outcome::Error((Status::InternalServerError, error)),
        }
    }
}
