//! What Rocket sees: `fairing` (launch, replies, shutdown), `guards` (what handlers ask for) and `error` (what they
//! return).

pub(crate) mod error;
mod fairing;
mod guards;

pub use error::Error;
pub use fairing::Replicated;
pub use guards::{ChangesDatabase, Every, NotAttached, ReadsDatabase, Scope, Writable};
