//! A snapshot of a cluster, for the page and for `status.json`. It holds no secrets: no URL, no key, no pin, and of the
//! configuration only what [`settings`](super::settings) lists.

use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::settings::{self, Setting};
use crate::backend::{Access, Driver};
use crate::cluster::{Inner, Purpose, Server};
use crate::config::ReadShare;
use crate::counters::{Counts, Key};
use crate::health::{Change, LagSample, NodeState, Role};
use crate::routing::Reason;
use crate::statistics::{PoolStatistics, ServerStatistics, Statistics};

#[derive(Debug, Serialize)]
pub(super) struct Snapshot {
    pub(super) database: &'static str,
    /// The version of this crate.
    pub(super) version: &'static str,
    #[serde(serialize_with = "rfc3339")]
    pub(super) at: OffsetDateTime,
    pub(super) health: Health,
    /// The reads that go to slaves now.
    #[serde(serialize_with = "displayed")]
    pub(super) reads_from_slaves: ReadShare,
    /// The reads that go to slaves by configuration.
    #[serde(skip)]
    pub(super) configured_share: ReadShare,
    /// All servers, the master first.
    pub(super) servers: Vec<ServerSnapshot>,
    /// Choices in about the last minute.
    #[serde(serialize_with = "by_label")]
    pub(super) latest_choices: Counts<Reason>,
    /// Choices since this process was launched.
    #[serde(serialize_with = "by_label")]
    pub(super) choices: Counts<Reason>,
    /// Changes of state, the latest first.
    pub(super) changes: Vec<NamedChange>,
    pub(super) settings: Vec<Setting>,
    #[serde(skip)]
    pub(super) max_lag: Option<Duration>,
}

/// Whether reads and writes can be served now, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Health {
    pub(super) reads: bool,
    pub(super) writes: bool,
    /// Whether the master can be read from, where `read_url` leads to another address than `url`. Pinned reads need that,
    /// unless `pinned_without_master` lets slaves stand in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) read_url: Option<bool>,
}

#[derive(Debug, Serialize)]
pub(super) struct ServerSnapshot {
    pub(super) name: String,
    /// Host and port, or file: a URL's address without user and password.
    pub(super) address: Option<String>,
    #[serde(serialize_with = "displayed")]
    pub(super) role: Role,
    #[serde(serialize_with = "displayed")]
    pub(super) state: NodeState,
    /// The state of the master's `read_url`, where that leads to another address than `url`.
    #[serde(serialize_with = "state", skip_serializing_if = "Option::is_none")]
    pub(super) read_url: Option<NodeState>,
    /// The present lag, in seconds.
    #[serde(serialize_with = "seconds")]
    pub(super) lag: Option<Duration>,
    /// The lags of the last minutes, oldest first, in seconds.
    pub(super) lags: Vec<Lag>,
    pub(super) connections: Vec<Connections>,
    #[serde(serialize_with = "by_label")]
    pub(super) latest_choices: Counts<Reason>,
    #[serde(serialize_with = "by_label")]
    pub(super) choices: Counts<Reason>,
    /// True if a drill can take the server out.
    #[serde(skip)]
    pub(super) is_slave: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct Lag {
    ago: f64,
    lag: Option<f64>,
    #[serde(skip)]
    pub(super) sample: LagSample,
}

#[derive(Debug, Serialize)]
pub(super) struct Connections {
    pub(super) used_for: &'static str,
    pub(super) in_use: u32,
    pub(super) idle: u32,
    pub(super) max: u32,
    pub(super) waiting: u64,
    pub(super) timed_out: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct NamedChange {
    #[serde(serialize_with = "rfc3339")]
    pub(super) at: OffsetDateTime,
    pub(super) server: String,
    #[serde(serialize_with = "displayed")]
    pub(super) state: NodeState,
    /// The server's new role, if the role has changed.
    #[serde(serialize_with = "role")]
    pub(super) became: Option<Role>,
}

/// The number of changes that are shown, out of those that each server remembers.
const CHANGES: usize = 12;

impl Health {
    pub(super) fn of<DB: Driver>(inner: &Inner<DB>) -> Self {
        let without_master = inner.config.pinned_without_master;
        let reads_as_master =
            |server: &Server<DB>| server.read_url_or_self().health.answers(Access::MasterReads);
        let serves = |server: &Server<DB>| match server.health.role() {
            // A master that turns out to be a slave is read from as a slave.
            Role::Master => reads_as_master(server) || server.health.state() == NodeState::Standby,
            Role::Slave => {
                let health = &server.health;
                server.may_be_slave() && (health.is_usable() || health.is_last_resort(without_master))
            }
        };
        let servers = inner.servers.all();
        let configured = servers.iter().filter(|server| server.purpose != Purpose::ReadUrl);
        let serving = configured.filter(|server| serves(server)).map(|server| server.health.role());
        let master = inner.servers.master(&inner.mastership);
        Self {
            reads: are_reads_served(serving, inner.read_share()),
            writes: inner.is_writable(),
            read_url: master.read_url_state().map(|_| reads_as_master(&master)),
        }
    }
}

/// True if any read is served by servers of these roles. Slaves do not count while an operator sends all reads to the
/// master. With a smaller share than all, they do: they serve the clients in the share, and reads that ask for a slave.
fn are_reads_served(mut serving: impl Iterator<Item = Role>, share: ReadShare) -> bool {
    serving.any(|role| role == Role::Master || share != ReadShare::NONE)
}

impl Snapshot {
    pub(super) fn of<DB: Driver>(inner: &Inner<DB>) -> Self {
        let statistics = Statistics::of(inner);
        let choices = statistics.choices();
        let servers = inner.servers.all();
        let now = Instant::now();
        let mut changes = Vec::new();
        let snapshot = |counted: ServerStatistics| {
            let server = servers.iter().find(|server| **server.health.name() == *counted.name)?;
            let named = |Change { at, state, became }: &Change| NamedChange {
                at: *at,
                server: counted.name.clone(),
                state: *state,
                became: *became,
            };
            changes.extend(counted.latest_changes.iter().map(named));
            let (history, read_url) = (server.health.history(), server.read_url_state());
            Some(ServerSnapshot {
                address: settings::address(&inner.config, &counted.name),
                lag: counted.lag,
                lags: history.lags(now).into_iter().map(Lag::new).collect(),
                latest_choices: history.latest_choices(&server.health.counts().choices),
                connections: counted.pools.iter().map(Connections::new).collect(),
                is_slave: server.is_slave() || server.may_be_slave() && counted.role == Role::Slave,
                name: counted.name,
                role: counted.role,
                state: counted.state,
                read_url,
                choices: counted.choices,
            })
        };
        let servers: Vec<_> = statistics.servers.into_iter().filter_map(snapshot).collect();
        changes.sort_by_key(|change| std::cmp::Reverse(change.at));
        changes.truncate(CHANGES);
        let mut latest_choices = Counts::default();
        servers.iter().for_each(|server| latest_choices.add(&server.latest_choices));
        Self {
            database: inner.database,
            version: env!("CARGO_PKG_VERSION"),
            at: OffsetDateTime::now_utc(),
            health: Health::of(inner),
            reads_from_slaves: inner.read_share(),
            configured_share: inner.config.read_from_slaves,
            servers,
            latest_choices,
            choices,
            changes,
            settings: settings::list(&inner.config),
            max_lag: inner.config.checks.max_lag,
        }
    }
}

impl Lag {
    fn new(sample: LagSample) -> Self {
        Self { ago: rounded(sample.ago), lag: sample.lag.map(rounded), sample }
    }
}

impl Connections {
    fn new(pool: &PoolStatistics) -> Self {
        let PoolStatistics { used_for, max, in_use, idle, waiting, timed_out, .. } = pool;
        Self {
            used_for: used_for.as_str(),
            in_use: *in_use,
            idle: *idle,
            max: *max,
            waiting: *waiting,
            timed_out: *timed_out,
        }
    }
}

/// A time, as in `2026-11-24T17:29:08Z`.
pub(super) fn timestamp(at: OffsetDateTime) -> String {
    at.replace_nanosecond(0).ok().and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default()
}

fn rfc3339<S: Serializer>(at: &OffsetDateTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&timestamp(*at))
}

fn displayed<S: Serializer>(value: &impl std::fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn role<S: Serializer>(role: &Option<Role>, serializer: S) -> Result<S::Ok, S::Error> {
    role.map(Role::as_str).serialize(serializer)
}

fn state<S: Serializer>(state: &Option<NodeState>, serializer: S) -> Result<S::Ok, S::Error> {
    state.map(NodeState::as_str).serialize(serializer)
}

fn seconds<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    duration.map(rounded).serialize(serializer)
}

/// The duration in seconds, rounded to a millisecond.
fn rounded(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e3).round() / 1e3
}

fn by_label<K: Key + PartialEq, S: Serializer>(counts: &Counts<K>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(counts.iter().map(|(key, count)| (key.label(), count)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slaves_serve_no_reads_while_all_reads_are_sent_to_the_master() {
        use Role::{Master, Slave};

        for (serving, share, served) in [
            (&[Master, Slave][..], ReadShare::ALL, true),
            (&[Master, Slave], ReadShare::NONE, true),
            (&[Slave], ReadShare::ALL, true),
            (&[Slave], ReadShare::of_clients(0.1), true),
            (&[Slave], ReadShare::ASKED, true),
            (&[Slave], ReadShare::NONE, false),
            (&[], ReadShare::ALL, false),
        ] {
            assert_eq!(are_reads_served(serving.iter().copied(), share), served, "{serving:?} {share}");
        }
    }
}
