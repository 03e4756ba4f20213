//! What one request does with one database: `handle` is what handlers see, `session` the connections that it uses,
//! `progress` what it has done so far and what follows, `query` a statement, `executor` how it runs over the session, `retry`
//! what becomes of those that fail, `connection` what a handler may hold for itself.

mod connection;
mod counts;
mod executor;
mod handle;
mod progress;
mod query;
mod retry;
mod session;

pub use connection::{Connection, Transaction, Watched};
pub use counts::RetryCause;
pub use handle::ReplicatedDb;
pub(crate) use session::{Session, TARGET};
