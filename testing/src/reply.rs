//! The servers that a reply came from, by its `Server-Timing`.

use rocket::http::HeaderMap;
use rocket::local::{asynchronous, blocking};

/// A reply of a local client, blocking or asynchronous.
pub trait Reply {
    /// Its headers.
    fn header_map(&self) -> &HeaderMap<'_>;
}

impl Reply for blocking::LocalResponse<'_> {
    fn header_map(&self) -> &HeaderMap<'_> {
        self.headers()
    }
}

impl Reply for asynchronous::LocalResponse<'_> {
    fn header_map(&self) -> &HeaderMap<'_> {
        self.headers()
    }
}

/// A server that was asked for a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// The name of the database: `replicated`, unless the application has another one.
    pub database: String,
    /// The name of the server: `master`, `slave-1`, and so on in a lab.
    pub server: String,
    /// The reason for the choice, as `rocket_replicated::Reason::as_str` spells it.
    pub reason: String,
}

/// The servers that were asked for a reply, one for each database. Empty if the application asked none.
///
/// # Panics
///
/// If `Server-Timing` does not have the form that `rocket_replicated` writes.
pub fn served_by(reply: &impl Reply) -> Vec<Served> {
    let all = reply.header_map().get("Server-Timing").filter(|metric| metric.starts_with("db;"));
    all.map(|metric| {
        read(metric).unwrap_or_else(|| panic!("not written by rocket_replicated: `Server-Timing: {metric}`"))
    })
    .collect()
}

fn read(metric: &str) -> Option<Served> {
    let (said, _) = metric.strip_prefix("db;desc=\"")?.split_once('"')?;
    let (server, reason) = said.split_once(": ")?;
    let (database, server) = server.split_once(" at ").unwrap_or(("replicated", server));
    Some(Served { database: database.to_owned(), server: server.to_owned(), reason: reason.to_owned() })
}

/// Asserts that all databases that were asked for this reply were asked at the server with this name.
///
/// # Panics
///
/// If another server was asked, or none.
#[track_caller]
pub fn assert_served_by(reply: &impl Reply, server: &str) {
    assert_all(reply, server, |name| name == server);
}

/// Asserts that all databases that were asked for this reply were asked at a slave.
///
/// # Panics
///
/// If the master was asked, or no server.
#[track_caller]
pub fn assert_served_by_slave(reply: &impl Reply) {
    assert_all(reply, "a slave", |name| name.starts_with("slave-"));
}

#[track_caller]
fn assert_all(reply: &impl Reply, expected: &str, is_expected: impl Fn(&str) -> bool) {
    let served = served_by(reply);
    assert!(!served.is_empty(), "no database was asked for this reply, or `server_timing` is off");
    assert!(served.iter().all(|by| is_expected(&by.server)), "not served by {expected}: {served:?}");
}
