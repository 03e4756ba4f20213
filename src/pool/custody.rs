//! Where a connection is, and its permit with it.

use std::future::poll_fn;
use std::mem;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use super::holder::Asker;
use super::queue::{Owner, Permit};
use crate::sync::{AtomicWaker, Mutex};

/// Records where a connection and its permit are. `S` is the connection's own sqlx pool, to which a handler gives it
/// back.
pub(super) struct Custody<O: Owner, S> {
    place: Mutex<Place<O, S>>,
    /// Written under the lock of `place`. Each statement reads it, without the lock.
    ended: AtomicU8,
    /// The task that waits for an answer.
    waker: AtomicWaker,
}

/// Where a connection is. A permit that is taken from here goes back to the pool, without a look at the connection.
enum Place<O: Owner, S> {
    /// Beside its permit: idle in the queue, lent to a statement, or on its way.
    InHand,
    /// A session keeps it between two statements. INVARIANT: the permit has the connection, which owns this state,
    /// until the session or the pool takes it.
    Kept { permit: Permit<O>, asker: Asker },
    /// A handler holds it. INVARIANT: it is not known to be dead.
    Held { permit: Permit<O>, since: Instant, loan: Option<Loan<S>> },
    /// With a handler for good, without a permit: dead, closed, or taken out of sqlx's pool.
    Gone,
}

/// The terms on which a handler has a connection as sqlx's own.
pub(super) struct Loan<S> {
    /// INVARIANT: the state has a handle to the connection's own sqlx pool only while the connection is lent. The hooks
    /// of that pool own the state: a lasting handle would be a cycle, which is never dropped.
    pub(super) single: S,
    pub(super) lending: Lending,
}

/// What a handler holds a connection for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lending {
    Connection,
    /// A transaction that has begun. sqlx ends it, even if its handler is cancelled.
    Transaction,
    /// A transaction that its handler ends.
    EndingTransaction,
}

/// Why the wait for an answer has ended. A later variant replaces an earlier one, and the last is final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The server does not answer: a read may run elsewhere.
    ServerDown = 1,
    /// The connection is known to be dead, so that no answer will ever come.
    Dead,
}

impl<O: Owner, S> Custody<O, S> {
    pub(super) fn new() -> Self {
        Self { place: Mutex::new(Place::InHand), ended: AtomicU8::new(0), waker: AtomicWaker::default() }
    }

    /// Keeps the permit for its session, which may need the connection again.
    pub(super) fn keep(&self, permit: Permit<O>, asker: Asker) {
        *self.place.lock() = Place::Kept { permit, asker };
    }

    /// Takes the permit that this session has kept, unless the pool has taken it back.
    pub(super) fn claim(&self, asker: Asker) -> Option<Permit<O>> {
        self.take_kept(|its| its == asker)
    }

    /// Takes back the permit that any session has kept.
    pub(super) fn reclaim(&self) -> Option<Permit<O>> {
        self.take_kept(|_| true)
    }

    fn take_kept(&self, is_wanted: impl FnOnce(Asker) -> bool) -> Option<Permit<O>> {
        let place = &mut *self.place.lock();
        match mem::replace(place, Place::InHand) {
            Place::Kept { permit, asker } if is_wanted(asker) => Some(permit),
            other => {
                *place = other;
                None
            }
        }
    }

    pub(super) fn is_kept(&self) -> bool {
        matches!(*self.place.lock(), Place::Kept { .. })
    }

    /// Notes that a handler holds the connection from now on, with a loan as sqlx's own.
    pub(super) fn hand_out(&self, permit: Permit<O>, loan: Option<Loan<S>>) {
        let mut place = self.place.lock();
        *place = Place::Held { permit, since: Instant::now(), loan };
        let spare = self.take_if_dead(&mut place);
        // Dropping a permit passes it on to another request. That happens without the lock.
        drop(place);
        drop(spare);
    }

    fn take_if_dead(&self, place: &mut Place<O, S>) -> Option<Place<O, S>> {
        let is_held = matches!(place, Place::Held { .. });
        (is_held && self.ended() == Some(Ended::Dead)).then(|| mem::replace(place, Place::Gone))
    }

    /// Turns a held connection into a lent one: its handler has it as sqlx's own from now on.
    pub(super) fn lend_held(&self, new: Loan<S>) {
        if let Place::Held { loan, .. } = &mut *self.place.lock() {
            *loan = Some(new);
        }
    }

    /// Changes what the handler holds the connection for.
    pub(super) fn lend_for(&self, lending: Lending) {
        if let Place::Held { loan: Some(loan), .. } = &mut *self.place.lock() {
            loan.lending = lending;
        }
    }

    /// Takes the permit of a connection that a handler has dropped, and the loan. `None` if the connection is dead.
    pub(super) fn take_back(&self) -> Option<(Permit<O>, Option<Loan<S>>)> {
        let place = &mut *self.place.lock();
        match mem::replace(place, Place::InHand) {
            Place::Held { permit, loan, .. } => Some((permit, loan)),
            other => {
                *place = other;
                None
            }
        }
    }

    /// Gives the permit back if a handler has closed the connection, or taken it out of sqlx's pool.
    pub(super) fn reap(&self, is_empty: impl FnOnce(&S) -> bool) {
        let mut place = self.place.lock();
        let is_gone = matches!(&*place, Place::Held { loan: Some(loan), .. } if is_empty(&loan.single));
        let spare = is_gone.then(|| mem::replace(&mut *place, Place::Gone));
        drop(place);
        drop(spare);
    }

    /// How long a handler has held the connection. `None` if none does.
    pub(super) fn held_for(&self) -> Option<Duration> {
        match &*self.place.lock() {
            Place::Held { since, .. } => Some(since.elapsed()),
            Place::InHand | Place::Kept { .. } | Place::Gone => None,
        }
    }

    /// Ends what runs on the connection. If it is dead, a handler that holds it keeps it, and the permit goes back to
    /// the pool.
    pub(super) fn end(&self, why: Ended) {
        let mut place = self.place.lock();
        self.ended.fetch_max(why as u8, Ordering::AcqRel);
        let spare = self.take_if_dead(&mut place);
        drop(place);
        self.waker.wake();
        drop(spare);
    }

    pub(super) fn ended(&self) -> Option<Ended> {
        match self.ended.load(Ordering::Acquire) {
            0 => None,
            1 => Some(Ended::ServerDown),
            _ => Some(Ended::Dead),
        }
    }

    /// Awaits work on this connection, unless the connection is ended first.
    pub(super) async fn unless_ended<T>(
        &self,
        mut work: Pin<&mut impl Future<Output = T>>,
    ) -> Result<T, Ended> {
        poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Ok(done));
            }
            // Registers before it looks, so that it misses no end in between.
            self.waker.register(cx.waker());
            self.ended().map_or(Poll::Pending, |ended| Poll::Ready(Err(ended)))
        })
        .await
    }
}
