//! What one request does with one database. `handle` is what handlers see. `session` has the connections that the
//! request uses. `progress` records what the request has done so far, and what follows. `query` is a statement,
//! `executor` runs it over the session, and `retry` decides what becomes of a failed one. `connection` is what a
//! handler may hold for itself.

mod connection;
mod counts;
mod executor;
mod handle;
mod progress;
mod query;
mod retry;
mod session;

pub use connection::{Connection, Transaction};
pub use counts::RetryCause;
pub use handle::ReplicatedDb;
pub(crate) use session::{Session, TARGET};
