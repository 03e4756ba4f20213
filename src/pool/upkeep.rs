//! What is done about a pool's connections whoever asks for them: from time to time, and at shutdown.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rocket::tokio;

use super::connection::PooledConnection;
use super::queue::Refusal;
use super::{CloseCause, KEPT_IF_WAITED_FOR, Pool};
use crate::backend::Driver;

/// A connection is kept for its session for so long if nobody waits.
const KEPT: Duration = Duration::from_millis(500);

/// How often somebody looks after those who wait.
const SERVE_INTERVAL: Duration = Duration::from_millis(2);

/// An idle connection is pinged so often, so that gateways on the way do not forget it (the shortest limits known
/// are some minutes), and that dead ones are found before a request needs them.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// As sqlx's default: servers free what a long session has gathered, and balancers see new connections.
const MAX_LIFETIME: Duration = Duration::from_secs(30 * 60);

impl<DB: Driver> Pool<DB> {
    /// Looks after those who wait for a place, until nobody does. One clock for all of them, since a timer that is set
    /// may wake a thread of the runtime.
    pub(super) fn start_clock(self: &Arc<Self>) {
        struct Ended<DB: Driver>(Arc<Pool<DB>>);

        impl<DB: Driver> Drop for Ended<DB> {
            /// Also if it has panicked.
            fn drop(&mut self) {
                self.0.queue.clock_ended();
            }
        }

        let ended = Ended(self.clone());
        tokio::spawn(async move {
            let Ended(pool) = &ended;
            let mut asked = None::<Instant>;
            loop {
                tokio::time::sleep(SERVE_INTERVAL).await;
                let Some(since) = pool.queue.refuse(|since| pool.refusal(since)) else { return };
                pool.reclaim(KEPT_IF_WAITED_FOR);
                pool.reap();
                // It may be busy, or its server gone.
                let pause = pool.suspicious_wait();
                if since.elapsed() >= pause && asked.is_none_or(|asked| asked.elapsed() >= pause) {
                    pool.health.request_probe();
                    asked = Some(Instant::now());
                }
            }
        });
    }

    /// Why somebody is not to wait for a place any longer.
    fn refusal(&self, since: Instant) -> Option<Refusal> {
        if self.health.is_gone() {
            return Some(Refusal::ServerDown);
        }
        (since.elapsed() >= self.timeout).then_some(Refusal::TimedOut)
    }

    /// What has to be done from time to time, whoever asks for connections.
    pub(crate) fn tend(self: &Arc<Self>) {
        self.reclaim(KEPT);
        self.reap();
        let now = Instant::now();
        let is_idle = |conn: &PooledConnection<DB>| {
            let idle = now.saturating_duration_since(conn.state.verified());
            self.idle_timeout.is_some_and(|timeout| idle > timeout)
        };
        let is_old = |conn: &PooledConnection<DB>| {
            is_idle(conn) || now.saturating_duration_since(conn.state.opened()) > MAX_LIFETIME
        };
        let is_quiet =
            |conn: &PooledConnection<DB>| now.saturating_duration_since(conn.state.verified()) > KEEP_ALIVE;
        let invalid = self.queue.take_idle(|conn| !self.may_keep(&conn.state));
        let old = self.queue.take_idle(|conn| is_old(conn));
        // One at a time, so that a request never finds the pool emptied by those who look after it; with a place, so
        // that there are never more connections than places.
        let quiet = self.queue.take_if(self, is_quiet);

        invalid.into_iter().for_each(|conn| conn.discard(self.why_not_kept()));
        for conn in old {
            let why = if is_idle(&conn) { CloseCause::Idle } else { CloseCause::Old };
            tokio::spawn(tokio::time::timeout(self.check_timeout, conn.close(why)));
        }
        if let Some(mut place) = quiet {
            tokio::spawn(async move {
                let Some(mut conn) = place.conn.take() else { return };
                if conn.ping(place.pool.check_timeout).await {
                    drop(place.with(conn));
                } else {
                    place.pool.close_sleepers(conn.state.verified());
                    conn.discard(CloseCause::Failed);
                }
            });
        }
        self.fill();
    }

    /// Opens one more connection if there are less than `min_connections`.
    fn fill(self: &Arc<Self>) {
        let wanted = !self.is_draining()
            && self.role() == self.health.role()
            && self.open_connections() < self.min_connections
            && self.health.answers(self.wanted());
        if !wanted || self.is_filling.swap(true, Ordering::AcqRel) {
            return;
        }
        let pool = self.clone();
        tokio::spawn(async move {
            if let Some(place) = pool.queue.take_bare(&pool)
                && let Ok(Ok(conn)) = tokio::time::timeout(pool.timeout, pool.open_one()).await
            {
                drop(place.with(conn));
            }
            pool.is_filling.store(false, Ordering::Release);
        });
    }

    /// Closes what nobody uses. How many connections are in use.
    pub(crate) fn vacate(&self) -> u32 {
        self.reclaim(KEPT);
        self.reap();
        let idle = self.queue.take_idle(|_| true);
        for conn in idle {
            tokio::spawn(tokio::time::timeout(self.check_timeout, conn.close(CloseCause::Left)));
        }
        self.busy()
    }

    /// Keeps no connection any more, and closes those that nobody uses. Ready once all have come back. Whoever
    /// still asks for one, as another shutdown fairing may, gets one that is closed after its statement.
    pub(crate) async fn drain(&self) {
        self.is_draining.store(true, Ordering::Release);
        self.reclaim(Duration::ZERO);
        let idle = self.queue.take_idle(|_| true);
        for conn in idle {
            let _ = tokio::time::timeout(self.check_timeout, conn.close(CloseCause::Shutdown)).await;
        }
        let mut pause = Duration::from_millis(10);
        while self.open_connections() > 0 {
            tokio::time::sleep(pause).await;
            // A handler may hold one for very long.
            pause = pause.mul_f64(1.2).min(Duration::from_secs(1));
            // A session may have kept one while this began.
            self.reclaim(Duration::ZERO);
            self.reap();
        }
    }

    /// Lets nobody check out a connection any more.
    pub(crate) fn close(&self) {
        self.queue.close();
        self.close_plain();
    }

    pub(super) fn open_connections(&self) -> u32 {
        let mut open = 0;
        self.for_each_open(|_| open += 1);
        open
    }
}
