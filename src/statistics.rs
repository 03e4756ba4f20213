//! What has happened so far: a snapshot of all counters, from [`Cluster::statistics`].

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

/// What has happened so far in one process, since its launch: counts only ever rise.
///
/// Every field that counts is kept by atomic additions next to what it counts, always, and costs some nanoseconds. A
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
    /// Pins that clients were given, and have carried.
    pub pins: PinStatistics,
    /// Reads that had to find what their client wrote: with `consistency = "position"`.
    pub catch_ups: CatchUpStatistics,
    /// How often a query was run, or tried, once more.
    pub retries: Counts<RetryCause>,
    /// Statements that wanted to write on a read and were run again on the master: `refused_write = "reroute"`.
    pub reroutes: u64,
    /// Writes whose connection died before the answer came: nobody knows what became of them.
    pub outcomes_unknown: u64,
}

/// What has happened at one server.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ServerStatistics {
    /// As in the configuration and in the log.
    pub name: String,
    /// The part that it plays now.
    pub role: Role,
    /// How it is now.
    pub state: NodeState,
    /// How far it is behind its master, as in [`NodeStatus`](crate::NodeStatus).
    pub lag: Option<Duration>,
    /// How often it was chosen: once for each request that asked the database, and again where that had to move on.
    /// The role in which it was chosen is [`Reason::role`].
    pub choices: Counts<Reason>,
    /// How often its state has changed, by what it changed to.
    pub changes: Counts<NodeState>,
    /// The latest of these changes, and of the part that it plays: the latest first.
    pub latest_changes: Vec<Change>,
    /// Its connections, by what they are for.
    pub pools: Vec<PoolStatistics>,
}

/// What has happened at servers that are no part of their cluster any more.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct FormerStatistics {
    /// As in [`ServerStatistics`].
    pub choices: Counts<Reason>,
    /// As in [`ServerStatistics`].
    pub changes: Counts<NodeState>,
}

/// What has happened to the connections to one server for one use.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct PoolStatistics {
    /// What they are for.
    pub used_for: PoolUse,
    /// How many there may be at the same time.
    pub max: u32,
    /// How many are in use now, being opened, or kept for the next query of a request.
    pub in_use: u32,
    /// How many are open now and free.
    pub idle: u32,
    /// How many queries and handlers wait for one now.
    pub waiting: u64,
    /// How long those waited who got one. A query that goes on with the connection of its request's query before asks
    /// for none.
    pub checkouts: Times,
    /// How many have waited in vain: all were in use, or a new one was not there in time.
    pub timed_out: u64,
    /// How long it took to open those that were opened.
    pub opened: Times,
    /// How many were closed, and why.
    pub closed: Counts<CloseCause>,
}

/// What became of pins.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct PinStatistics {
    /// How many were signed.
    pub made: u64,
    /// How many were carried and believed.
    pub honoured: u64,
    /// How many were carried and not believed.
    pub refused: Counts<PinRefusal>,
}

/// What became of reads that had to find what their client wrote.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct CatchUpStatistics {
    /// The slave was known to have it: nobody waited.
    pub known: u64,
    /// The slave was asked, and had it, at once or after these times.
    pub caught_up: Times,
    /// The slave did not have it after these times: the read went to the master.
    pub timed_out: Times,
}

impl Statistics {
    /// How many reads the master has served instead of slaves, by reason: those of all servers, as each may have been the
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
        let configured = servers.iter().filter(|server| server.purpose != Purpose::MasterReads);
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
        for pool in server.pools_with_read_way() {
            let new = PoolStatistics::of(pool);
            // Those that are kept for pinned reads are a part of those for reads at the master.
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
        let in_use = pool.busy();
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
    /// What has happened so far: for a page that operators look at, for tests, or for a metrics system of one's own.
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
            // Fit for a label, for a quoted string in a header, and for the log.
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
