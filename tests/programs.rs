//! The examples, as their users run them, and what the compiler tells users.

mod blog;
mod cluster;
mod diagnostics;
mod guestbook;
