//! The permits for a pool's connections, the connections that nobody uses, and who waits for either.
//!
//! Not `tokio`'s semaphore with a timer and a `Notify` for each who waits: three lists, each behind a lock that the
//! threads of the runtime share. Here one lock does, and a connection goes from hand to hand.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use rocket::tokio::sync::oneshot;

use crate::sync::{Mutex, MutexGuard};

/// What has a queue: a pool of connections, or in unit tests something simpler.
pub(super) trait Owner: Sized {
    type Conn;

    fn queue(&self) -> &Queue<Self>;

    /// A connection whose statement is over, if another may run on it. Else it is closed.
    fn keep_or_close(&self, conn: Self::Conn) -> Option<Self::Conn>;
}

pub(super) struct Queue<O: Owner>(Mutex<State<O>>);

struct State<O: Owner> {
    /// How many more connections may be used, or opened. INVARIANT: none while somebody waits.
    free: u32,
    /// INVARIANT: no more than are free. The latest at the end.
    idle: Vec<O::Conn>,
    /// In the order in which they came.
    waiting: VecDeque<Waiter<O>>,
    ticker: Ticker,
    is_closed: bool,
}

struct Waiter<O: Owner> {
    since: Instant,
    sender: oneshot::Sender<Result<Permit<O>, Refusal>>,
}

/// By what somebody is told who waits: closed if the queue is, or its ticker is lost.
pub(super) type Receiver<O> = oneshot::Receiver<Result<Permit<O>, Refusal>>;

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
pub(super) enum Entry<O: Owner> {
    Permit(Permit<O>),
    /// INVARIANT: whoever finds the ticker stopped starts it.
    Waits(Receiver<O>, Ticker),
    Closed,
}

/// The right to use one connection, and the connection unless it has yet to be opened. Dropped, both go to whoever
/// has waited longest.
pub(super) struct Permit<O: Owner> {
    pub(super) pool: Arc<O>,
    /// Nobody uses it.
    pub(super) conn: Option<O::Conn>,
}

impl<O: Owner> Permit<O> {
    /// Together with a connection whose statement is over.
    pub(super) fn with(mut self, conn: O::Conn) -> Self {
        self.conn = Some(conn);
        self
    }

    /// A task that opens a connection for this permit, and what comes of it. If the request that asked has gone by then,
    /// the connection is for the next that waits: where opening one takes longer than requests wait, there would never be
    /// any otherwise.
    pub(super) fn opening<E>(
        self,
        open: impl Future<Output = Result<O::Conn, E>>,
    ) -> (impl Future<Output = ()>, oneshot::Receiver<Result<Self, E>>) {
        let (sender, receiver) = oneshot::channel();
        let task = async move {
            let opened = open.await.map(|conn| self.with(conn));
            // Not received, the permit is dropped, which passes it on.
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

    /// How many wait for a permit.
    pub(super) fn waiting(&self) -> usize {
        self.state().waiting.iter().filter(|waiter| !waiter.sender.is_closed()).count()
    }

    /// A free permit for one more connection than are open.
    pub(super) fn take_bare(&self, pool: &Arc<O>) -> Option<Permit<O>> {
        let mut state = self.state();
        if state.free as usize <= state.idle.len() {
            return None;
        }
        state.take(pool, |_| None)
    }

    /// A free permit with an idle connection of which this is true.
    pub(super) fn take_if(
        &self,
        pool: &Arc<O>,
        mut wanted: impl FnMut(&O::Conn) -> bool,
    ) -> Option<Permit<O>> {
        let mut state = self.state();
        let at = state.idle.iter().position(&mut wanted)?;
        state.take(pool, |idle| Some(idle.remove(at)))
    }

    /// A permit, with a connection if one is idle; or waits in line.
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
    pub(super) fn pop_idle(&self) -> Option<O::Conn> {
        self.state().idle.pop()
    }

    /// The idle connections of which this is true.
    pub(super) fn take_idle(&self, wanted: impl FnMut(&mut O::Conn) -> bool) -> Vec<O::Conn> {
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
        // Woken without the lock. Whoever has just gone drops the permit, which passes it on.
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
