//! Upkeep of a pool's connections, apart from requests: from time to time, and at shutdown.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rocket::tokio;
use rocket::tokio::runtime::Handle;

use super::connection::PooledConnection;
use super::queue::Refusal;
use super::{CloseCause, KEPT_IF_WAITED_FOR, Pool};
use crate::backend::Driver;

/// How long a connection is kept for its session while no request waits.
const KEPT: Duration = Duration::from_millis(500);

/// How often the ticker looks after the waiting requests.
const SERVE_INTERVAL: Duration = Duration::from_millis(2);

/// An idle connection is pinged after this silence. So gateways on the way do not forget it: the shortest limits known
/// are some minutes. And dead connections are found before a request needs them.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

impl<DB: Driver> Pool<DB> {
    /// Starts the ticker, which looks after the requests that wait for a permit, until none does. One timer serves all
    /// of them, because each that is set may wake a thread of the runtime.
    pub(super) fn start_ticker(self: &Arc<Self>) {
        /// Reports the ticker as lost if it panics, or if its runtime ends.
        struct UnlessLost<DB: Driver>(Option<Arc<Pool<DB>>>);

        impl<DB: Driver> Drop for UnlessLost<DB> {
            fn drop(&mut self) {
                if let Some(pool) = &self.0 {
                    pool.queue.ticker_lost();
                }
            }
        }

        let pool = self.clone();
        let mut unless_lost = UnlessLost(Some(self.clone()));
        let ticker = async move {
            let suspicious = pool.suspicious_wait();
            let mut ask_after = suspicious;
            loop {
                tokio::time::sleep(SERVE_INTERVAL).await;
                let Some(since) = pool.queue.refuse(|since, others| pool.refusal(since, others)) else {
                    break;
                };
                pool.reclaim(KEPT_IF_WAITED_FOR);
                pool.reap();
                // The pool may be busy, or its server gone.
                let waited = since.elapsed();
                if waited < suspicious {
                    ask_after = suspicious;
                } else if waited >= ask_after {
                    pool.health.request_probe();
                    ask_after *= 2;
                }
            }
            drop(unless_lost.0.take());
        };
        self.spawn(ticker);
    }

    /// Why a request that has waited since `since` must not wait any longer. `None` if it may.
    fn refusal(&self, since: Instant, others: usize) -> Option<Refusal> {
        if self.health.is_gone() {
            return Some(Refusal::ServerDown);
        }
        (since.elapsed() >= self.timeout).then_some(Refusal::TimedOut { others })
    }

    /// Does the regular upkeep of the pool.
    pub(crate) fn tend(self: &Arc<Self>) {
        self.runtime.get_or_init(Handle::current);
        self.reclaim(KEPT);
        self.reap();
        let now = Instant::now();
        let is_idle = |conn: &PooledConnection<DB>| {
            self.idle_timeout.is_some_and(|timeout| conn.state.idle_for(now) > timeout)
        };
        let is_quiet =
            |conn: &PooledConnection<DB>| now.saturating_duration_since(conn.state.verified()) > KEEP_ALIVE;
        let invalid = self.queue.take_idle(|conn| !self.may_keep(&conn.state));
        let mut spare = self.size().saturating_sub(self.min_connections);
        let old = self.queue.take_idle(|conn| {
            let ends = conn.state.is_old(now) || spare > 0 && is_idle(conn);
            spare = spare.saturating_sub(u32::from(ends));
            ends
        });
        // One at a time, so that a request never finds the pool emptied by upkeep. With a permit, so that there are
        // never more connections than permits.
        let quiet = self.queue.take_if(self, is_quiet);

        invalid.into_iter().for_each(|conn| conn.discard(self.why_not_kept()));
        for conn in old {
            let why = if is_idle(&conn) { CloseCause::Idle } else { CloseCause::Old };
            tokio::spawn(tokio::time::timeout(self.check_timeout, conn.close(why)));
        }
        if let Some(mut permit) = quiet {
            tokio::spawn(async move {
                let Some(mut conn) = permit.conn.take() else { return };
                if conn.ping(permit.pool.check_timeout).await {
                    drop(permit.with(conn));
                } else {
                    permit.pool.close_sleepers(conn.state.verified());
                    conn.discard(CloseCause::Failed);
                }
            });
        }
        self.fill();
    }

    /// Opens one more connection if there are fewer than `min_connections`.
    fn fill(self: &Arc<Self>) {
        let wanted = !self.is_draining()
            && self.role() == self.health.role()
            && self.size() < self.min_connections
            && self.health.answers(self.access);
        if !wanted || self.is_filling.swap(true, Ordering::AcqRel) {
            return;
        }
        let pool = self.clone();
        tokio::spawn(async move {
            if let Some(permit) = pool.queue.take_bare(&pool) {
                drop(Self::open_for(permit).await);
            }
            pool.is_filling.store(false, Ordering::Release);
        });
    }

    /// Closes the connections that are not in use. Returns how many are in use.
    pub(crate) fn vacate(&self) -> u32 {
        self.reclaim(KEPT);
        self.reap();
        let idle = self.queue.take_idle(|_| true);
        for conn in idle {
            tokio::spawn(tokio::time::timeout(self.check_timeout, conn.close(CloseCause::Left)));
        }
        self.in_use()
    }

    /// Stops keeping connections, and closes those that are not in use. Completes once all have come back. A checkout
    /// that comes later, such as another shutdown fairing's, gets a connection that is closed after its statement.
    pub(crate) async fn drain(&self) {
        self.is_draining.store(true, Ordering::Release);
        self.reclaim(Duration::ZERO);
        let idle = self.queue.take_idle(|_| true);
        for conn in idle {
            let _ = tokio::time::timeout(self.check_timeout, conn.close(CloseCause::Shutdown)).await;
        }
        let mut pause = Duration::from_millis(10);
        while self.size() > 0 {
            tokio::time::sleep(pause).await;
            // A handler may hold one for very long.
            pause = pause.mul_f64(1.2).min(Duration::from_secs(1));
            // A session may have kept one while this began.
            self.reclaim(Duration::ZERO);
            self.reap();
        }
    }

    /// Closes the pool: no checkout gets a connection any more.
    pub(crate) fn close(&self) {
        self.queue.close();
        self.close_plain();
    }
}
