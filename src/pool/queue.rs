//! The permits for a pool's connections, the connections that nobody uses, and who waits for either.
//!
//! Not `tokio`'s semaphore with a timer and a `Notify` for each who waits: three lists, each behind a lock that the
//! threads of the runtime share. Here one lock does, and a connection goes from hand to hand.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rocket::tokio::sync::oneshot;

use super::Pool;
use super::connection::PooledConnection;
use crate::backend::Driver;

pub(super) struct Queue<DB: Driver>(Mutex<State<DB>>);

struct State<DB: Driver> {
    /// How many more connections may be used, or opened. INVARIANT: none while somebody waits.
    free: u32,
    /// INVARIANT: no more than are free. The latest at the end.
    idle: Vec<PooledConnection<DB>>,
    /// In the order in which they came.
    waiting: VecDeque<Waiter<DB>>,
    ticker: Ticker,
    is_closed: bool,
}

struct Waiter<DB: Driver> {
    since: Instant,
    sender: oneshot::Sender<Result<Permit<DB>, Refusal>>,
}

/// By what somebody is told who waits: closed if the queue is, or its ticker is lost.
pub(super) type Receiver<DB> = oneshot::Receiver<Result<Permit<DB>, Refusal>>;

/// Why somebody waits no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// No permit became free in time. So many others waited, too.
    TimedOut { others: usize },
    /// The server answers no more.
    ServerDown,
}

/// Whether somebody looks after those who wait, by [`Queue::refuse`] from time to time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ticker {
    Stopped,
    Running,
}

/// What becomes of somebody who asks for a permit.
pub(super) enum Entry<DB: Driver> {
    Permit(Permit<DB>),
    /// INVARIANT: whoever finds the ticker stopped starts it.
    Waits(Receiver<DB>, Ticker),
    Closed,
}

/// The right to use one connection, and the connection unless it has yet to be opened. Dropped, both go to whoever
/// has waited longest.
pub(super) struct Permit<DB: Driver> {
    pub(super) pool: Arc<Pool<DB>>,
    /// Nobody uses it.
    pub(super) conn: Option<PooledConnection<DB>>,
}

impl<DB: Driver> Permit<DB> {
    /// Together with a connection whose statement is over.
    pub(super) fn with(mut self, conn: PooledConnection<DB>) -> Self {
        self.conn = Some(conn);
        self
    }
}

impl<DB: Driver> Drop for Permit<DB> {
    fn drop(&mut self) {
        let conn = self.conn.take().and_then(|conn| self.pool.keep_or_close(conn));
        self.pool.queue.pass_on(&self.pool, conn);
    }
}

impl<DB: Driver> Queue<DB> {
    pub(super) fn new(permits: u32) -> Self {
        Self(Mutex::new(State {
            free: permits,
            idle: Vec::new(),
            waiting: VecDeque::new(),
            ticker: Ticker::Stopped,
            is_closed: false,
        }))
    }

    pub(super) fn free(&self) -> u32 {
        self.state().free
    }

    pub(super) fn idle(&self) -> usize {
        self.state().idle.len()
    }

    /// How many wait for a permit.
    pub(super) fn waiting(&self) -> usize {
        self.state().waiting.iter().filter(|waiter| !waiter.sender.is_closed()).count()
    }

    /// A free permit for one more connection than are open.
    pub(super) fn take_bare(&self, pool: &Arc<Pool<DB>>) -> Option<Permit<DB>> {
        let mut state = self.state();
        if state.free as usize <= state.idle.len() {
            return None;
        }
        state.take(pool, |_| None)
    }

    /// A free permit with an idle connection of which this is true.
    pub(super) fn take_if(
        &self,
        pool: &Arc<Pool<DB>>,
        mut wanted: impl FnMut(&PooledConnection<DB>) -> bool,
    ) -> Option<Permit<DB>> {
        let mut state = self.state();
        let at = state.idle.iter().position(&mut wanted)?;
        state.take(pool, |idle| Some(idle.remove(at)))
    }

    /// A permit, with a connection if one is idle; or waits in line.
    pub(super) fn enter(&self, pool: &Arc<Pool<DB>>, since: Instant) -> Entry<DB> {
        let mut state = self.state();
        if state.is_closed {
            return Entry::Closed;
        }
        if let Some(permit) = state.take(pool, Vec::pop) {
            return Entry::Permit(permit);
        }
        let (sender, receiver) = oneshot::channel();
        state.waiting.push_back(Waiter { since, sender });
        Entry::Waits(receiver, std::mem::replace(&mut state.ticker, Ticker::Running))
    }

    /// Sends those away who are not to wait any longer, and tells since when the next one waits. If nobody does, the
    /// ticker is to end. `why` is told since when somebody waits, and how many others do; if one is not to wait any
    /// longer, whoever came earlier is not either.
    pub(super) fn refuse(&self, why: impl Fn(Instant, usize) -> Option<Refusal>) -> Option<Instant> {
        let mut refused = Vec::new();
        let mut state = self.state();
        state.waiting.retain(|waiter| !waiter.sender.is_closed());
        let others = state.waiting.len().saturating_sub(1);
        while let Some(why) = state.waiting.front().and_then(|waiter| why(waiter.since, others)) {
            refused.extend(state.waiting.pop_front().map(|waiter| (waiter.sender, why)));
        }
        let next = state.waiting.front().map(|waiter| waiter.since);
        if next.is_none() {
            state.ticker = Ticker::Stopped;
        }
        drop(state);
        for (sender, why) in refused {
            // Whoever has gone need not be told.
            let _ = sender.send(Err(why));
        }
        next
    }

    /// The ticker is lost: nobody would look after those who wait.
    pub(super) fn ticker_lost(&self) {
        let mut state = self.state();
        state.ticker = Ticker::Stopped;
        let waiting = std::mem::take(&mut state.waiting);
        drop((state, waiting));
    }

    /// An idle connection for somebody who has a permit already.
    pub(super) fn pop_idle(&self) -> Option<PooledConnection<DB>> {
        self.state().idle.pop()
    }

    /// The idle connections of which this is true.
    pub(super) fn take_idle(
        &self,
        wanted: impl FnMut(&mut PooledConnection<DB>) -> bool,
    ) -> Vec<PooledConnection<DB>> {
        self.state().idle.extract_if(.., wanted).collect()
    }

    /// Gives nobody a permit any more.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        let waiting = std::mem::take(&mut state.waiting);
        drop((state, waiting));
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state().is_closed
    }

    /// Somebody needs a permit no more.
    fn pass_on(&self, pool: &Arc<Pool<DB>>, conn: Option<PooledConnection<DB>>) {
        let mut state = self.state();
        let next = loop {
            match state.waiting.pop_front() {
                Some(waiter) if waiter.sender.is_closed() => {}
                next => break next,
            }
        };
        let Some(next) = next else {
            state.free += 1;
            state.idle.extend(conn);
            return;
        };
        drop(state);
        // Woken without the lock. Whoever has just gone drops the permit, which passes it on.
        let _ = next.sender.send(Ok(Permit { pool: pool.clone(), conn }));
    }

    /// Nothing in here can panic halfway through a change.
    fn state(&self) -> MutexGuard<'_, State<DB>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<DB: Driver> State<DB> {
    fn take(
        &mut self,
        pool: &Arc<Pool<DB>>,
        conn: impl FnOnce(&mut Vec<PooledConnection<DB>>) -> Option<PooledConnection<DB>>,
    ) -> Option<Permit<DB>> {
        if self.is_closed {
            return None;
        }
        self.free = self.free.checked_sub(1)?;
        Some(Permit { pool: pool.clone(), conn: conn(&mut self.idle) })
    }
}
