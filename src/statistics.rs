//! Statistics: a snapshot of all counters, from [`Cluster::statistics`].

use std::time::Duration;

use rocket_db_pools::Database;

use crate::backend::{Backend, Driver};
use crate::cluster::{Cluster, Inner, Purpose, Server};
use crate::counters::{Counts, Times};
use crate::health::{Change, NodeState, Role};
use crate::pin::PinRefusal;
use crate::pool::{CloseCause, PoolUse};
use crate::request::RetryCause;
use crate::routing::Reason;

/// A snapshot of the counters of one process, which start at its launch and only rise.
///
/// Counting is always on. A count is an atomic addition, next to the code that it counts, and costs some nanoseconds. A
/// snapshot takes no lock that a request waits for.
///
/// ```rust
/// # #[cfg(feature = "sqlite")]
/// fn report(cluster: &rocket_replicated::Cluster<rocket_replicated::sqlite::Database>) {
///     let statistics = cluster.statistics();
///     for (reason, reads) in statistics.reads_at_master().iter().filter(|(_, reads)| *reads > 0) {
///         println!("{reads} reads at the master: {reason}");
///     }
/// }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Statistics {
    /// The database's name in the configuration.
    pub database: &'static str,
    /// All servers that there are now, the master first.
    pub servers: Vec<ServerStatistics>,
    /// Sums over the servers that have left their cluster.
    pub former: FormerStatistics,
    /// Pins that were given to clients, and pins that requests carried.
    pub pins: PinStatistics,
    /// Reads that had to find what their client wrote: with `consistency = "position"`.
    pub catch_ups: CatchUpStatistics,
    /// How often a query was run or tried again.
    pub retries: Counts<RetryCause>,
    /// Statements that wanted to write on a read and were run again on the master: `refused_write = "reroute"`.
    pub reroutes: u64,
    /// Writes whose connection broke before the answer came, so that their outcome is unknown.
    pub outcomes_unknown: u64,
}

/// The statistics of one server.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ServerStatistics {
    /// The server's name, as in the configuration and in the log.
    pub name: String,
    /// The server's present role.
    pub role: Role,
    /// The server's present state.
    pub state: NodeState,
    /// The server's lag behind its master, as in [`NodeStatus`](crate::NodeStatus).
    pub lag: Option<Duration>,
    /// How often the server was chosen: once for each request that asked the database, and again when such a request
    /// had to move on. [`Reason::role`] is the role in which the server was chosen.
    pub choices: Counts<Reason>,
    /// How often the server's state has changed, by the new state.
    pub changes: Counts<NodeState>,
    /// The latest changes of state and of role, latest first.
    pub latest_changes: Vec<Change>,
    /// The server's pools, by their use.
    pub pools: Vec<PoolStatistics>,
}

/// Sums over servers that have left their cluster.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct FormerStatistics {
    /// As in [`ServerStatistics`].
    pub choices: Counts<Reason>,
    /// As in [`ServerStatistics`].
    pub changes: Counts<NodeState>,
}

/// The statistics of one pool: the connections to one server for one use.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct PoolStatistics {
    /// The use of the pool.
    pub used_for: PoolUse,
    /// The largest number of connections at the same time.
    pub max: u32,
    /// Connections that are in use now, being opened, or kept for the next query of a request.
    pub in_use: u32,
    /// Connections that are open and idle now.
    pub idle: u32,
    /// Queries and handlers that are waiting for a connection now.
    pub waiting: u64,
    /// Waiting times of checkouts that got a connection. A query that reuses the connection of its request's previous
    /// query is not a checkout.
    pub checkouts: Times,
    /// Checkouts that timed out: all connections were in use, or a new one was not ready in time.
    pub timed_out: u64,
    /// The times that it took to open connections.
    pub opened: Times,
    /// Connections that were closed, by cause.
    pub closed: Counts<CloseCause>,
}

/// The statistics of pins.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct PinStatistics {
    /// Pins that were signed.
    pub made: u64,
    /// Pins that requests carried and that were believed.
    pub honoured: u64,
    /// Pins that requests carried and that were not believed, by cause.
    pub refused: Counts<PinRefusal>,
}

/// The statistics of reads that had to see their client's own writes.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct CatchUpStatistics {
    /// Reads at a slave that was already known to have the writes, so that they did not wait.
    pub known: u64,
    /// Reads at a slave that was asked and had the writes, at once or after these times.
    pub caught_up: Times,
    /// Reads that went to the master, because the slave did not have the writes after these times.
    pub timed_out: Times,
}

impl Statistics {
    /// Reads that the master has served instead of slaves, by reason. Sums over all servers, as each may have been the
    /// master.
    pub fn reads_at_master(&self) -> Counts<Reason> {
        self.choices().keep(|reason| reason.role() == Role::Master && !reason.writes())
    }

    /// How often any server was chosen, by reason.
    pub fn choices(&self) -> Counts<Reason> {
        let mut sum = self.former.choices.clone();
        self.servers.iter().for_each(|server| sum.add(&server.choices));
        sum
    }

    pub(crate) fn of<DB: Driver>(inner: &Inner<DB>) -> Self {
        let servers = inner.servers.all();
        let former = inner.counts.seen.former(&servers);
        let outcomes_unknown = servers.iter().flat_map(|server| server.pools());
        let mut statistics = Self {
            database: inner.database,
            servers: Vec::new(),
            former: FormerStatistics { choices: former.choices.read(), changes: former.changes.read() },
            pins: inner.pins.as_ref().map(|pins| PinStatistics::of(pins.counts())).unwrap_or_default(),
            catch_ups: CatchUpStatistics {
                known: inner.counts.catch_ups.known.get(),
                caught_up: inner.counts.catch_ups.caught_up.read(),
                timed_out: inner.counts.catch_ups.timed_out.read(),
            },
            retries: inner.counts.retries.read(),
            reroutes: inner.counts.rerouted.get(),
            outcomes_unknown: former.outcomes_unknown.get()
                + outcomes_unknown.map(|pool| pool.counts().outcomes_unknown.get()).sum::<u64>(),
        };
        let configured = servers.iter().filter(|server| server.purpose != Purpose::ReadUrl);
        statistics.servers.extend(configured.map(|server| ServerStatistics::of(server)));
        statistics.servers.sort_by_key(|server| server.role == Role::Slave);
        statistics
    }
}

impl PinStatistics {
    fn of(counts: &crate::pin::PinCounts) -> Self {
        let crate::pin::PinCounts { made, honoured, refused, .. } = counts;
        Self { made: made.get(), honoured: honoured.get(), refused: refused.read() }
    }
}

impl ServerStatistics {
    fn of<DB: Driver>(server: &Server<DB>) -> Self {
        let health = &server.health;
        let mut pools: Vec<PoolStatistics> = Vec::new();
        for pool in server.pools_with_read_url() {
            let new = PoolStatistics::of(pool);
            // Connections that are reserved for pinned reads belong to the pool for reads at the master.
            match pools.iter_mut().find(|pool| pool.used_for == new.used_for) {
                Some(pool) => pool.add(&new),
                None => pools.push(new),
            }
        }
        Self {
            name: health.name().to_string(),
            role: health.role(),
            state: health.state(),
            lag: health.lag().filter(|_| health.role() == Role::Slave),
            choices: health.counts().choices.read(),
            changes: health.counts().changes.read(),
            latest_changes: health.counts().latest(),
            pools,
        }
    }
}

impl PoolStatistics {
    fn of<DB: Driver>(pool: &crate::pool::Pool<DB>) -> Self {
        let counts = pool.counts();
        let in_use = pool.in_use();
        Self {
            used_for: PoolUse::of(pool.access()),
            max: pool.max_connections(),
            in_use,
            idle: pool.size().saturating_sub(in_use),
            waiting: pool.waiting(),
            checkouts: counts.waited.read().with_immediate(counts.immediate.get()),
            timed_out: counts.timed_out.get(),
            opened: counts.opened.read(),
            closed: counts.closed.read(),
        }
    }

    fn add(&mut self, other: &Self) {
        let Self { used_for: _, max, in_use, idle, waiting, checkouts, timed_out, opened, closed } = self;
        *max += other.max;
        *in_use += other.in_use;
        *idle += other.idle;
        *waiting += other.waiting;
        *timed_out += other.timed_out;
        checkouts.add(&other.checkouts);
        opened.add(&other.opened);
        closed.add(&other.closed);
    }
}

impl<D: Database<Pool: Backend>> Cluster<D> {
    /// A snapshot of all counters: for a page for operators, for tests, or for a metrics system of your own.
    pub fn statistics(&self) -> Statistics {
        Statistics::of(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt::{Debug, Display};

    use super::*;
    use crate::counters::Key;

    fn check<K: Key + Debug + Display + PartialEq>() {
        let mut names = BTreeSet::new();
        for (number, key) in K::KEYS.iter().enumerate() {
            assert_eq!(key.number(), number, "{key:?} is not in its place");
            assert_eq!(key.to_string(), key.label());
            assert!(names.insert(key.label()), "{key:?} has the name of another");
            // The label is fit for metrics, for a quoted string in a header, and for the log.
            assert!(key.label().chars().all(|c| c.is_ascii_lowercase() || c == ' '), "{key:?}");
        }
    }

    #[test]
    fn each_key_counts_for_itself_and_has_a_name_of_its_own() {
        check::<Reason>();
        check::<NodeState>();
        check::<PinRefusal>();
        check::<CloseCause>();
        check::<PoolUse>();
        check::<RetryCause>();
    }
}
