//! The permits for a pool's connections, the idle connections, and the requests that wait for either.
//!
//! `tokio`'s semaphore, with a timer and a `Notify` for each waiting request, would be three lists, each behind a lock
//! that the threads of the runtime share. Here one lock is enough, and a connection goes straight from one request to
//! the next.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use rocket::tokio::sync::oneshot;

use crate::sync::{Mutex, MutexGuard};

/// The owner of a queue: a pool of connections, or something simpler in unit tests.
pub(super) trait Owner: Sized {
    type Conn;

    fn queue(&self) -> &Queue<Self>;

    /// Returns a connection whose statement is over, if another may run on it. Else closes it.
    fn keep_or_close(&self, conn: Self::Conn) -> Option<Self::Conn>;
}

pub(super) struct Queue<O: Owner>(Mutex<State<O>>);

struct State<O: Owner> {
    /// How many more connections may be used, or opened. INVARIANT: 0 while a request waits.
    free: u32,
    /// INVARIANT: no more than `free`. The connection that was used last is at the end.
    idle: Vec<O::Conn>,
    /// The waiting requests, in the order in which they came.
    waiting: VecDeque<Waiter<O>>,
    ticker: Ticker,
    is_closed: bool,
}

struct Waiter<O: Owner> {
    since: Instant,
    sender: oneshot::Sender<Result<Permit<O>, Refusal>>,
}

/// Delivers a permit or a refusal to a waiting request. Closed if the queue is closed, or its ticker is lost.
pub(super) type Receiver<O> = oneshot::Receiver<Result<Permit<O>, Refusal>>;

/// Why a request stops waiting for a permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// No permit became free in time. `others` is how many more requests waited.
    TimedOut { others: usize },
    /// The server answers no more.
    ServerDown,
}

/// State of the ticker, which calls [`Queue::refuse`] from time to time while requests wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ticker {
    Stopped,
    Running,
}

/// The answer to a request that asks for a permit.
pub(super) enum Entry<O: Owner> {
    Permit(Permit<O>),
    /// INVARIANT: a request that finds the ticker stopped starts it.
    Waits(Receiver<O>, Ticker),
    Closed,
}

/// The right to use one connection, and the connection unless it has yet to be opened. Dropped, both go to the request
/// that has waited longest.
pub(super) struct Permit<O: Owner> {
    pub(super) pool: Arc<O>,
    /// A connection that no statement uses.
    pub(super) conn: Option<O::Conn>,
}

impl<O: Owner> Permit<O> {
    /// Adds a connection that no statement uses.
    pub(super) fn with(mut self, conn: O::Conn) -> Self {
        self.conn = Some(conn);
        self
    }

    /// A task that opens a connection for this permit, and the receiver of its result. If the request that asked has
    /// gone by then, the connection goes to the next one that waits. Otherwise, a pool whose connections take longer
    /// to open than requests wait would never get one.
    pub(super) fn opening<E>(
        self,
        open: impl Future<Output = Result<O::Conn, E>>,
    ) -> (impl Future<Output = ()>, oneshot::Receiver<Result<Self, E>>) {
        let (sender, receiver) = oneshot::channel();
        let task = async move {
            let opened = open.await.map(|conn| self.with(conn));
            // If the receiver has gone, the permit is dropped, which passes it on.
            let _ = sender.send(opened);
        };
        (task, receiver)
    }
}

impl<O: Owner> Drop for Permit<O> {
    fn drop(&mut self) {
        let conn = self.conn.take().and_then(|conn| self.pool.keep_or_close(conn));
        self.pool.queue().pass_on(&self.pool, conn);
    }
}

impl<O: Owner> Queue<O> {
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

    /// How many requests wait for a permit.
    pub(super) fn waiting(&self) -> usize {
        self.state().waiting.iter().filter(|waiter| !waiter.sender.is_closed()).count()
    }

    /// Takes a free permit without a connection. `None` if each free permit has an idle connection.
    pub(super) fn take_bare(&self, pool: &Arc<O>) -> Option<Permit<O>> {
        let mut state = self.state();
        if state.free as usize <= state.idle.len() {
            return None;
        }
        state.take(pool, |_| None)
    }

    /// Takes a free permit, with an idle connection for which `wanted` is true.
    pub(super) fn take_if(
        &self,
        pool: &Arc<O>,
        mut wanted: impl FnMut(&O::Conn) -> bool,
    ) -> Option<Permit<O>> {
        let mut state = self.state();
        let at = state.idle.iter().position(&mut wanted)?;
        state.take(pool, |idle| Some(idle.remove(at)))
    }

    /// Takes a free permit, with an idle connection if there is one. If none is free, waits in line.
    pub(super) fn enter(&self, pool: &Arc<O>, since: Instant) -> Entry<O> {
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

    /// Sends away the requests that must not wait any longer, and returns since when the next one waits. If no request
    /// waits, the ticker has to end.
    ///
    /// `why` gets the time since which a request waits, and the number of other requests that wait. If it refuses a
    /// request, it has to refuse all that came earlier, because only the first in line is asked.
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
            // A request that has gone need not be told.
            let _ = sender.send(Err(why));
        }
        next
    }

    /// Ends all waits after the ticker was lost, because nothing else would end them.
    pub(super) fn ticker_lost(&self) {
        let mut state = self.state();
        state.ticker = Ticker::Stopped;
        let waiting = std::mem::take(&mut state.waiting);
        drop((state, waiting));
    }

    /// Takes an idle connection for a request that has a permit already.
    pub(super) fn pop_idle(&self) -> Option<O::Conn> {
        self.state().idle.pop()
    }

    /// Takes the idle connections for which `wanted` is true.
    pub(super) fn take_idle(&self, wanted: impl FnMut(&mut O::Conn) -> bool) -> Vec<O::Conn> {
        self.state().idle.extract_if(.., wanted).collect()
    }

    /// Closes the queue: no request gets a permit any more.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        let waiting = std::mem::take(&mut state.waiting);
        drop((state, waiting));
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state().is_closed
    }

    /// Passes a permit on to the request that has waited longest, or frees it if none waits.
    fn pass_on(&self, pool: &Arc<O>, conn: Option<O::Conn>) {
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
        // Sends without the lock. If the request has just gone, the permit is dropped, which passes it on.
        let _ = next.sender.send(Ok(Permit { pool: pool.clone(), conn }));
    }

    fn state(&self) -> MutexGuard<'_, State<O>> {
        self.0.lock()
    }
}

impl<O: Owner> State<O> {
    fn take(
        &mut self,
        pool: &Arc<O>,
        conn: impl FnOnce(&mut Vec<O::Conn>) -> Option<O::Conn>,
    ) -> Option<Permit<O>> {
        if self.is_closed {
            return None;
        }
        self.free = self.free.checked_sub(1)?;
        Some(Permit { pool: pool.clone(), conn: conn(&mut self.idle) })
    }
}
