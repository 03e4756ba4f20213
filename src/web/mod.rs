//! What Rocket sees: `fairing` (launch, replies, shutdown), `guards` (what handlers ask for), `error` (what they
//! return) and `status` (the page for operators).

pub(crate) mod error;
mod fairing;
mod guards;
#[cfg(feature = "status")]
mod status;

pub use error::Error;
pub use fairing::Replicated;
pub use guards::{ChangesDatabase, Every, NotAttached, ReadsDatabase, Scope, Writable};
#[cfg(feature = "status")]
pub use status::StatusRoutes;
