//! What a client carries after a write, so that it reads its own write.
//!
//! | file        | purpose                                                              | builds on |
//! |-------------|----------------------------------------------------------------------|-----------|
//! | `secret.rs` | Rocket's `secret_key` and earlier ones, of which keys for signing are derived | – |
//! | `token.rs`  | the pin and its signed form: making one, and when one is believed    | `secret`  |
//! | `counts.rs` | counts of pins, and log lines about those that are not believed      | –         |
//! | `cookie.rs` | how tokens travel in requests and replies: by cookie and by header   | `token`   |

mod cookie;
mod counts;
mod secret;
mod token;

pub(crate) use cookie::{Cookie, PinConfig, Pins};
pub(crate) use counts::PinCounts;
pub use counts::PinRefusal;
pub(crate) use secret::Secret;
pub(crate) use token::{Evidence, Needed, Pin, Window, cut, fits};
