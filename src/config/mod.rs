//! The section `[<profile>.databases.<name>]`, read and checked.
//!
//! | file         | purpose                                                                    |
//! |--------------|----------------------------------------------------------------------------|
//! | `table.rs`   | one table: asks for values by key, refuses keys that were not asked for    |
//! | `pool.rs`    | the keys of a pool, which the section and each slave's table have          |
//! | `slaves.rs`  | `slaves`, and the names of all servers                                     |
//! | `checks.rs`  | probes and `max_lag`                                                       |
//! | `share.rs`   | `read_from_slaves`, and what operators set in its place                    |
//! | `pin.rs`     | the table `pin`, and Rocket's `secret_key`                                 |
//! | `section.rs` | the section as a whole                                                     |
//!
//! A new key is asked for in the file of its table and gets a field here. A key or value that is not understood is an
//! error at launch. The error names profile, key and remedy, and never shows a text that may be a URL with its
//! password.
//!
//! The tables are not read by serde's derive: `deny_unknown_fields` does not work together with `flatten`, which the
//! keys of a pool would need. Ranges, alternatives and redacted values would each need a type of their own for their
//! messages, which was longer.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use rocket::http::Method;
use serde::Deserialize;

use crate::backend::Address;
use crate::backend::settings::Settings;
use crate::backend::url::DatabaseUrl;
use crate::pin::PinConfig;
use crate::position::Lag;

mod checks;
mod pin;
mod pool;
mod section;
mod share;
mod slaves;
mod table;

#[cfg(all(test, any(feature = "postgres", feature = "sqlite")))]
mod tests;

pub(crate) use pin::PinNames;
pub use share::ReadShare;
pub(crate) use slaves::host_name;
pub(crate) use table::ConfigError;

/// The limit lets a set of slaves fit a machine word.
pub(crate) const MAX_SLAVES: usize = 64;

/// The whole configuration of one database, ready to be opened.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) master: ServerConfig,
    /// The master's settings for reads: `read_url`, `master_read_connections`.
    pub(crate) master_reads: ServerConfig,
    /// How many of the connections for reads at the master are reserved for pinned reads.
    pub(crate) reserve: u32,
    pub(crate) slaves: Vec<SlaveConfig>,
    pub(crate) slave_timeout: Duration,
    pub(crate) read_from_slaves: ReadShare,
    pub(crate) affinity: Affinity,
    /// The zone that this process runs in.
    pub(crate) zone: Option<String>,
    /// How much longer than the nearest slave's a slave's round trip may be. `None`: any slave is near enough.
    pub(crate) local_threshold: Option<Duration>,
    pub(crate) read_methods: ReadMethods,
    pub(crate) pinned_without_master: PinnedWithoutMaster,
    pub(crate) refused_write: RefusedWrite,
    pub(crate) checks: Checks,
    pub(crate) consistency: Consistency,
    pub(crate) catch_up_timeout: Duration,
    pub(crate) server_timing: ServerTiming,
    /// `None`: clients are not pinned, because there are no slaves or the lag window is 0.
    pub(crate) pin: Option<PinConfig>,
}

/// One server: its name, where it is, and how to connect to it.
#[derive(Clone, Debug)]
pub(crate) struct ServerConfig {
    pub(crate) name: String,
    pub(crate) address: Address,
    /// The database at that address, where a server can have several.
    database: Option<String>,
    /// The user, where the database has logins.
    user: Option<String>,
    pub(crate) settings: Settings,
}

/// One entry of `slaves`.
#[derive(Debug)]
pub(crate) struct SlaveConfig {
    pub(crate) server: ServerConfig,
    /// The URL for writes after a promotion, where another role has the grants.
    pub(crate) write_url: Option<DatabaseUrl>,
    /// How often the slave is drawn. 0: only where no other slave can serve.
    pub(crate) weight: u32,
    pub(crate) zone: Option<String>,
    /// The interval at which this crate copies the master to this slave.
    pub(crate) follow: Option<Duration>,
    pub(crate) log: SlaveLog,
    /// How servers are discovered, where the entry stands for several.
    pub(crate) discover: Option<Discover>,
}

/// The order in which slaves are preferred. Slaves of one rank share the reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    Near,
    /// In another zone than this process, or in none that is known.
    Far,
    /// Of weight 0.
    Spare,
}

impl Config {
    pub(crate) fn rank(&self, slave: &SlaveConfig) -> Rank {
        match &self.zone {
            _ if slave.weight == 0 => Rank::Spare,
            Some(own) if slave.zone.as_ref() != Some(own) => Rank::Far,
            Some(_) | None => Rank::Near,
        }
    }
}

impl SlaveConfig {
    /// The server at one of the addresses that the entry's host has.
    pub(crate) fn at(&self, address: IpAddr) -> ServerConfig {
        let entry = self.server.clone();
        ServerConfig {
            name: slaves::name_at(&entry.name, address),
            address: Address { host: address.to_string(), ..entry.address },
            settings: Settings { connect_to: Some(address), ..entry.settings },
            ..entry
        }
    }
}

/// `discover`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Discover {
    /// Each address of the URL's host is a server.
    Dns,
}

/// Which log a slave replays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlaveLog {
    /// The master's log: the slave's position in it tells how far the slave has replayed.
    Masters,
    /// No comparable log: a logical replica, or a file that another program copies.
    Other,
}

/// How servers are probed, and how much lag is too much.
#[derive(Clone, Debug)]
pub(crate) struct Checks {
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
    /// `None`: a slave is not left out for its lag.
    pub(crate) max_lag: Option<Duration>,
    pub(crate) unknown_lag: UnknownLag,
    pub(crate) follow_promotion: bool,
}

impl Checks {
    /// True if a slave that lags by more than `window` is left out before a window that has just begun is over. The
    /// result of a probe is used until the next probe has answered, for up to `check_interval` plus `check_timeout`. By
    /// then, a slave that was within `max_lag` may be behind by that much more. A slave that is used with an unknown
    /// lag gives no such guarantee.
    fn guard(&self, window: Duration, slaves: &[SlaveConfig]) -> bool {
        self.max_lag.is_some_and(|max| max <= window.saturating_sub(self.interval + self.timeout))
            && slaves.iter().all(|slave| self.unknown_lag.excludes(slave.log))
    }

    pub(crate) fn is_too_much(&self, lag: Lag) -> bool {
        match (lag, self.max_lag) {
            (_, None) => false,
            (Lag::AtMost(lag), Some(max)) => lag > max,
            (Lag::MoreThan(_), Some(_)) => true,
        }
    }
}

/// `unknown_lag`: whether a slave is left out whose lag is unknown although the master answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum UnknownLag {
    Use,
    LeaveOut,
    /// The default where `max_lag` guards the lag window. The slave is left out, unless the configuration already
    /// implies that its lag will never be known.
    #[serde(skip)]
    Unexpected,
}

impl UnknownLag {
    pub(crate) fn excludes(self, log: SlaveLog) -> bool {
        match self {
            Self::Use => false,
            Self::LeaveOut => true,
            Self::Unexpected => log == SlaveLog::Masters,
        }
    }
}

/// `consistency`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Consistency {
    Window,
    Position,
}

/// `sticky`: how a client is bound to a slave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Affinity {
    /// No binding: each request goes to the slave with the least to do.
    None,
    Address,
}

/// `pinned_without_master`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PinnedWithoutMaster {
    Stale,
    Fail,
}

/// `refused_write`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RefusedWrite {
    Error,
    Reroute,
}

/// `server_timing`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ServerTiming {
    Sent,
    Omitted,
}

/// The methods whose requests only read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReadMethods(Vec<Method>);

impl ReadMethods {
    pub(crate) fn contains(&self, method: Method) -> bool {
        self.0.contains(&method)
    }
}

impl fmt::Display for ReadMethods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(|method| method.as_str()).collect();
        f.write_str(&names.join(", "))
    }
}

impl Default for ReadMethods {
    /// The safe methods: <https://www.rfc-editor.org/rfc/rfc9110#section-9.2.1>.
    fn default() -> Self {
        Self(vec![Method::Get, Method::Head, Method::Options, Method::Trace])
    }
}
