//! The counters of [`Statistics`], published through the `metrics` facade, for any exporter that the application has
//! installed.
//!
//! A snapshot is taken each second, and the difference to the previous one is published. So requests pay only for the
//! counters. Labels have values from fixed sets alone: names of the configuration and of enums. This file has the only
//! list of metrics. Names and units follow <https://opentelemetry.io/docs/specs/semconv/db/database-metrics/> where
//! that has one.

use std::sync::Weak;
use std::time::Duration;

use metrics::{Label, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use rocket::tokio;

use crate::backend::Driver;
use crate::cluster::Inner;
use crate::counters::{Counts, Key, Times};
use crate::health::{NodeState, Role};
use crate::statistics::{PoolStatistics, ServerStatistics, Statistics};

const INTERVAL: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A metric of this crate.
#[derive(Clone, Copy, Debug)]
struct Metric {
    name: &'static str,
    kind: Kind,
    unit: Unit,
    help: &'static str,
}

macro_rules! metrics {
    ($($METRIC:ident = $kind:ident $name:literal, $unit:ident, $help:literal;)*) => {
        $(
            const $METRIC: Metric =
                Metric { name: $name, kind: Kind::$kind, unit: Unit::$unit, help: $help };
        )*

        const ALL: &[Metric] = &[$($METRIC),*];
    };
}

metrics! {
    CONNECTIONS = Gauge "db.client.connection.count", Count, "Connections that are open, by state";
    MAX_CONNECTIONS = Gauge "db.client.connection.max", Count, "Connections that may be open at the same time";
    PENDING = Gauge "db.client.connection.pending_requests", Count, "Requests that wait for a connection now";
    TIMEOUTS = Counter "db.client.connection.timeouts", Count, "Waits that ended without a connection";
    WAIT_TIME = Histogram "db.client.connection.wait_time", Seconds, "Waits that ended with a connection";
    CREATE_TIME = Histogram "db.client.connection.create_time", Seconds, "How long it took to open connections";
    CLOSED = Counter "rocket_replicated.connections_closed", Count, "Connections that were closed, by cause";
    CHOICES = Counter "rocket_replicated.choices", Count, "How often a server was chosen, by reason";
    CHANGES = Counter "rocket_replicated.state_changes", Count, "How often a server's state changed, by the new one";
    UP = Gauge "rocket_replicated.up", Count, "1 for a server that serves";
    MASTER = Gauge "rocket_replicated.master", Count, "1 for the server that is the master";
    LAG = Gauge "rocket_replicated.lag", Seconds, "How far a slave is behind, at most, where that is known";
    PINS_MADE = Counter "rocket_replicated.pins_made", Count, "Pins that were signed";
    PINS_HONOURED = Counter "rocket_replicated.pins_honoured", Count, "Pins that were carried and believed";
    PINS_REFUSED = Counter "rocket_replicated.pins_refused", Count, "Pins that were not believed, by cause";
    CATCH_UPS_KNOWN = Counter "rocket_replicated.catch_ups_known", Count, "Reads whose slave was known to have caught up";
    CATCH_UP_TIME = Histogram "rocket_replicated.catch_up_time", Seconds, "Waits until a slave has a write, by outcome";
    RETRIES = Counter "rocket_replicated.retries", Count, "Queries that were run or tried once more, by cause";
    REROUTES = Counter "rocket_replicated.reroutes", Count, "Writes on connections for reads, run again at the master";
    OUTCOMES_UNKNOWN = Counter "rocket_replicated.outcomes_unknown", Count, "Writes that may have been carried out";
}

/// The names of all metrics.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|metric| metric.name)
}

/// Publishes for as long as the cluster lives.
pub(crate) async fn publish<DB: Driver>(cluster: Weak<Inner<DB>>) {
    describe();
    let mut before = None;
    loop {
        let Some(inner) = cluster.upgrade() else { return };
        let now = Statistics::of(&inner);
        drop(inner);
        publish_since(before.as_ref(), &now);
        before = Some(now);
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Publishes the whole snapshot once.
#[cfg(feature = "status")]
pub(crate) fn publish_all(now: &Statistics) {
    describe();
    publish_since(None, now);
}

fn describe() {
    for Metric { name, kind, unit, help } in ALL {
        match kind {
            Kind::Counter => describe_counter!(*name, *unit, *help),
            Kind::Gauge => describe_gauge!(*name, *unit, *help),
            Kind::Histogram => describe_histogram!(*name, *unit, *help),
        }
    }
}

fn publish_since(before: Option<&Statistics>, now: &Statistics) {
    let labels = Labels(vec![Label::from_static_parts("database", now.database)]);
    let Statistics {
        database: _,
        servers,
        // These counts were published while the servers were there.
        former: _,
        pins,
        catch_ups,
        retries,
        reroutes,
        outcomes_unknown,
    } = now;
    for server in servers {
        let before = before.and_then(|before| before.servers.iter().find(|other| other.name == server.name));
        publish_server(&labels, before, server);
    }
    let has_left = |old: &&ServerStatistics| !servers.iter().any(|server| server.name == old.name);
    for gone in before.map(|before| &before.servers[..]).unwrap_or_default().iter().filter(has_left) {
        retire(&labels, gone);
    }
    labels.add(PINS_MADE, before.map(|before| before.pins.made), pins.made);
    labels.add(PINS_HONOURED, before.map(|before| before.pins.honoured), pins.honoured);
    labels.tally(PINS_REFUSED, "cause", before.map(|before| &before.pins.refused), &pins.refused);
    labels.add(CATCH_UPS_KNOWN, before.map(|before| before.catch_ups.known), catch_ups.known);
    let outcome = |outcome| labels.with("outcome", outcome);
    let times = before.map(|before| &before.catch_ups.caught_up);
    outcome("caught up").record(CATCH_UP_TIME, times, &catch_ups.caught_up);
    let times = before.map(|before| &before.catch_ups.timed_out);
    outcome("timed out").record(CATCH_UP_TIME, times, &catch_ups.timed_out);
    labels.tally(RETRIES, "cause", before.map(|before| &before.retries), retries);
    labels.add(REROUTES, before.map(|before| before.reroutes), *reroutes);
    labels.add(OUTCOMES_UNKNOWN, before.map(|before| before.outcomes_unknown), *outcomes_unknown);
}

fn publish_server(labels: &Labels, before: Option<&ServerStatistics>, server: &ServerStatistics) {
    let ServerStatistics { name, role, state, lag, choices, changes, latest_changes: _, pools } = server;
    let labels = labels.with_owned("server", name.clone());
    for (reason, count) in choices.iter() {
        let labels = labels.with("role", reason.role().as_str()).with("reason", reason.as_str());
        labels.add(CHOICES, before.map(|before| before.choices.get(reason)), count);
    }
    labels.tally(CHANGES, "state", before.map(|before| &before.changes), changes);
    labels.set(UP, u32::from(*state == NodeState::Up));
    labels.set(MASTER, u32::from(*role == Role::Master));
    if *role == Role::Slave {
        // An unknown lag is NaN, not the last known value.
        labels.set(LAG, lag.map_or(f64::NAN, |lag| lag.as_secs_f64()));
    }
    for pool in pools {
        let before = before.and_then(|before| before.pools.iter().find(|old| old.used_for == pool.used_for));
        publish_pool(&labels.pool(name, pool), before, pool);
    }
}

fn publish_pool(labels: &Labels, before: Option<&PoolStatistics>, pool: &PoolStatistics) {
    let PoolStatistics { used_for: _, max, in_use, idle, waiting, checkouts, timed_out, opened, closed } =
        pool;
    labels.with(STATE, IN_USE).set(CONNECTIONS, *in_use);
    labels.with(STATE, "idle").set(CONNECTIONS, *idle);
    labels.set(MAX_CONNECTIONS, *max);
    labels.set(PENDING, *waiting as f64);
    labels.add(TIMEOUTS, before.map(|before| before.timed_out), *timed_out);
    labels.record(WAIT_TIME, before.map(|before| &before.checkouts), checkouts);
    labels.record(CREATE_TIME, before.map(|before| &before.opened), opened);
    labels.tally(CLOSED, "cause", before.map(|before| &before.closed), closed);
}

/// Publishes zero or NaN for the present values of a server that has left. Its counts stay as they are.
fn retire(labels: &Labels, server: &ServerStatistics) {
    let name = &server.name;
    let labels = labels.with_owned("server", name.clone());
    labels.set(UP, 0);
    labels.set(MASTER, 0);
    labels.set(LAG, f64::NAN);
    for pool in &server.pools {
        let labels = labels.pool(name, pool);
        labels.with(STATE, IN_USE).set(CONNECTIONS, 0);
        labels.with(STATE, "idle").set(CONNECTIONS, 0);
        labels.set(MAX_CONNECTIONS, 0);
        labels.set(PENDING, 0);
    }
}

const STATE: &str = "db.client.connection.state";
/// OpenTelemetry's word for connections in use, so that dashboards made for any database show these as well.
const IN_USE: &str = "used";
const POOL: &str = "db.client.connection.pool.name";

/// The labels of one series.
struct Labels(Vec<Label>);

impl Labels {
    fn with(&self, name: &'static str, value: &'static str) -> Self {
        self.and(Label::from_static_parts(name, value))
    }

    fn with_owned(&self, name: &'static str, value: String) -> Self {
        self.and(Label::new(name, value))
    }

    fn pool(&self, server: &str, pool: &PoolStatistics) -> Self {
        self.with_owned(POOL, format!("{server}/{}", pool.used_for.as_str()))
    }

    fn and(&self, label: Label) -> Self {
        Self(self.0.iter().cloned().chain([label]).collect())
    }

    fn set(&self, metric: Metric, value: impl Into<f64>) {
        debug_assert_eq!(metric.kind, Kind::Gauge);
        gauge!(metric.name, self.0.clone()).set(value.into());
    }

    fn add(&self, metric: Metric, before: Option<u64>, now: u64) {
        debug_assert_eq!(metric.kind, Kind::Counter);
        counter!(metric.name, self.0.clone()).increment(since(before, now));
    }

    fn tally<K: Key + PartialEq>(
        &self,
        metric: Metric,
        label: &'static str,
        before: Option<&Counts<K>>,
        now: &Counts<K>,
    ) {
        for (key, count) in now.iter() {
            self.with(label, key.label()).add(metric, before.map(|before| before.get(key)), count);
        }
    }

    /// Records for each bucket the average of its times, so that buckets and sum are exact.
    fn record(&self, metric: Metric, before: Option<&Times>, now: &Times) {
        debug_assert_eq!(metric.kind, Kind::Histogram);
        let histogram = histogram!(metric.name, self.0.clone());
        for (index, bucket) in now.buckets().iter().enumerate() {
            let before = before.and_then(|before| before.buckets().get(index));
            let count = since(before.map(|before| before.count), bucket.count);
            if count > 0 {
                let nanos = |sum: Duration| u64::try_from(sum.as_nanos()).unwrap_or(u64::MAX);
                let sum =
                    Duration::from_nanos(since(before.map(|before| nanos(before.sum)), nanos(bucket.sum)));
                let mean = sum.as_secs_f64() / count as f64;
                let limit = bucket.limit.map_or(f64::MAX, |limit| limit.as_secs_f64());
                histogram.record_many(mean.min(limit), usize::try_from(count).unwrap_or(usize::MAX));
            }
        }
    }
}

/// The amount that was added. A count below the previous one was begun anew, by another server of the same name.
fn since(before: Option<u64>, now: u64) -> u64 {
    now.checked_sub(before.unwrap_or_default()).unwrap_or(now)
}
