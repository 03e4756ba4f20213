//! The counters of a cluster as a whole, and of servers that have left it.

use std::sync::{Arc, Mutex, PoisonError};

use super::Server;
use crate::backend::Driver;
use crate::counters::{Counter, Histogram, Tally};
use crate::health::ServerCounts;
use crate::pool::PoolCounts;

#[derive(Debug, Default)]
pub(crate) struct ClusterCounts {
    pub(crate) catch_ups: CatchUpCounts,
    /// By `request::RetryCause`.
    pub(crate) retries: Tally,
    pub(crate) rerouted: Counter,
    pub(crate) seen: Seen,
}

#[derive(Debug, Default)]
pub(crate) struct CatchUpCounts {
    /// Catch-ups for which no slave had to be asked.
    pub(crate) known: Counter,
    /// The times until a slave said that it has replayed the position, at once or later.
    pub(crate) caught_up: Histogram,
    /// The times for which a slave was asked that had not replayed the position.
    pub(crate) timed_out: Histogram,
}

/// The counters of one server. They are kept when the server has left its cluster.
#[derive(Debug)]
struct CountsOfServer {
    server: Arc<ServerCounts>,
    pools: Vec<Arc<PoolCounts>>,
}

/// The sums of the counters of servers that have left the cluster.
#[derive(Debug, Default)]
pub(crate) struct FormerCounts {
    /// By `routing::Reason`.
    pub(crate) choices: Tally,
    pub(crate) changes: Tally,
    pub(crate) outcomes_unknown: Counter,
}

impl FormerCounts {
    fn absorb(&self, CountsOfServer { server, pools }: &CountsOfServer) {
        self.choices.absorb(&server.choices);
        self.changes.absorb(&server.changes);
        pools.iter().for_each(|pool| self.outcomes_unknown.add(pool.outcomes_unknown.get()));
    }
}

/// The counters of all servers that any snapshot has seen, so that sums never sink.
#[derive(Debug, Default)]
pub(crate) struct Seen(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    servers: Vec<CountsOfServer>,
    /// The sum of the counters that no server, pool or session holds any more.
    gone: FormerCounts,
}

impl Seen {
    /// The sums of the counters of servers that are not among `present` any more.
    pub(crate) fn former<DB: Driver>(&self, present: &[Arc<Server<DB>>]) -> FormerCounts {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Known { servers, gone } = &mut *known;
        for server in present {
            if !servers.iter().any(|known| Arc::ptr_eq(&known.server, server.health.counts())) {
                servers.push(server.counts());
            }
        }
        servers.retain(|known| {
            let is_counting = Arc::strong_count(&known.server) > 1
                || known.pools.iter().any(|pool| Arc::strong_count(pool) > 1);
            if !is_counting {
                gone.absorb(known);
            }
            is_counting
        });
        let former = FormerCounts::default();
        former.choices.absorb(&gone.choices);
        former.changes.absorb(&gone.changes);
        former.outcomes_unknown.add(gone.outcomes_unknown.get());
        let is_present = |known: &&CountsOfServer| {
            present.iter().any(|server| Arc::ptr_eq(&known.server, server.health.counts()))
        };
        servers.iter().filter(|known| !is_present(known)).for_each(|known| former.absorb(known));
        former
    }
}

impl<DB: Driver> Server<DB> {
    fn counts(&self) -> CountsOfServer {
        let pools = self.pools.all().map(|pool| pool.counts().clone());
        CountsOfServer { server: self.health.counts().clone(), pools: pools.collect() }
    }
}

#[cfg(all(test, feature = "sqlite"))]
mod tests {
    use super::*;
    use crate::NodeState;

    fn counts() -> CountsOfServer {
        CountsOfServer { server: Arc::default(), pools: vec![Arc::default()] }
    }

    #[test]
    fn what_a_server_has_counted_stays_when_it_has_left() {
        let seen = Seen::default();
        let (leaving, counting) = (counts(), counts());
        let still_counts = counting.server.clone();
        for counts in [&leaving, &counting] {
            counts.server.changes.add(NodeState::Down);
            counts.pools[0].outcomes_unknown.add_one();
        }
        seen.0.lock().unwrap().servers.extend([leaving, counting]);
        let sums = || {
            let former = seen.former::<sqlx::Sqlite>(&[]);
            (former.changes.read::<NodeState>().get(NodeState::Down), former.outcomes_unknown.get())
        };
        assert_eq!(sums(), (2, 2));
        still_counts.changes.add(NodeState::Down);
        assert_eq!(sums(), (3, 2), "a request that has it still may count");
        drop(still_counts);
        assert_eq!((sums(), sums()), ((3, 2), (3, 2)), "nothing is added twice");
        assert!(seen.0.lock().unwrap().servers.is_empty(), "nor kept for ever");
    }
}
