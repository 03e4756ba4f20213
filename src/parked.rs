//! Connections that wait for the next query outside of sqlx's pool.
//!
//! A connection that is handed back to sqlx costs a task and a round trip to the server: it is
//! pinged, each time, before anybody else gets it. So those whose query ended well are parked here,
//! and handed over as they are: to anybody, or for a moment to the request alone that has used it,
//! which need not queue again for its next query. What sqlx is good at stays with sqlx: it opens
//! connections, counts them, and closes those that are old or idle; it gets them back once they have
//! been parked for [`TRUSTED_IDLE`], or in use for [`LONGEST_AWAY`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rocket::tokio::sync::OwnedSemaphorePermit;
use rocket::tokio::{self, runtime::Handle};
use sqlx::pool::PoolConnection;

use crate::backend::Driver;

/// A connection that has been idle for longer is pinged before it is handed out.
pub(crate) const TRUSTED_IDLE: Duration = Duration::from_secs(1);

/// After so long, sqlx looks at a connection's age.
const LONGEST_AWAY: Duration = Duration::from_secs(60);

/// A connection, and since when it has been away from its pool.
#[derive(Debug)]
pub(crate) struct Away<DB: Driver> {
    pub(crate) conn: PoolConnection<DB>,
    pub(crate) since: Instant,
}

impl<DB: Driver> Away<DB> {
    pub(crate) fn is_due(&self) -> bool {
        self.since.elapsed() > LONGEST_AWAY
    }
}

/// A connection in use. It is handed back before its turn ends.
#[derive(Debug)]
pub(crate) struct Taken<DB: Driver> {
    pub(crate) away: Away<DB>,
    pub(crate) turn: OwnedSemaphorePermit,
}

/// What a connection that is kept for somebody is claimed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

pub(crate) struct Parked<DB: Driver> {
    places: Mutex<Places<DB>>,
    /// Whether a task gives back those that nobody takes.
    swept: AtomicBool,
    runtime: Handle,
}

/// The latest at the end.
struct Places<DB: Driver> {
    free: Vec<(Away<DB>, Instant)>,
    kept: Vec<(Ticket, Taken<DB>, Instant)>,
    tickets: u64,
}

impl<DB: Driver> Parked<DB> {
    pub(crate) fn new(runtime: Handle) -> Arc<Self> {
        Arc::new(Self {
            places: Mutex::new(Places { free: Vec::new(), kept: Vec::new(), tickets: 0 }),
            swept: AtomicBool::new(false),
            runtime,
        })
    }

    /// How many are there for anybody, and how many are kept.
    pub(crate) fn len(&self) -> (usize, usize) {
        let places = self.places();
        (places.free.len(), places.kept.len())
    }

    pub(crate) fn put(self: &Arc<Self>, away: Away<DB>) {
        self.places().free.push((away, Instant::now()));
        self.keep_swept();
    }

    pub(crate) fn take(&self) -> Option<Away<DB>> {
        self.places().free.pop().map(|(away, _)| away)
    }

    /// Keeps it for whoever has the ticket.
    pub(crate) fn keep(self: &Arc<Self>, taken: Taken<DB>) -> Ticket {
        let ticket = {
            let mut places = self.places();
            places.tickets += 1;
            let ticket = Ticket(places.tickets);
            places.kept.push((ticket, taken, Instant::now()));
            ticket
        };
        self.keep_swept();
        ticket
    }

    /// `None` once somebody else was given it.
    pub(crate) fn claim(&self, ticket: Ticket) -> Option<Taken<DB>> {
        let mut places = self.places();
        let index = places.kept.iter().rposition(|(kept, ..)| *kept == ticket)?;
        Some(places.kept.remove(index).1)
    }

    /// The one that has been kept for the longest, if that is so long.
    pub(crate) fn reclaim(&self, idle: Duration) -> Option<Taken<DB>> {
        let mut places = self.places();
        let is_idle = places.kept.first().is_some_and(|(.., since)| since.elapsed() >= idle);
        is_idle.then(|| places.kept.remove(0).1)
    }

    /// Gives all back to sqlx.
    pub(crate) fn clear(&self) {
        self.give_back(Duration::ZERO);
    }

    fn keep_swept(self: &Arc<Self>) {
        if !self.swept.swap(true, Ordering::AcqRel) {
            self.sweep();
        }
    }

    /// Gives those back that nobody takes, until there are none.
    fn sweep(self: &Arc<Self>) {
        let parked: Weak<Self> = Arc::downgrade(self);
        self.runtime.spawn(async move {
            loop {
                tokio::time::sleep(TRUSTED_IDLE / 2).await;
                let Some(parked) = parked.upgrade() else { return };
                parked.give_back(TRUSTED_IDLE / 2);
                if parked.is_empty() {
                    parked.swept.store(false, Ordering::Release);
                    // One that was parked just now found the sweep on.
                    if parked.is_empty() || parked.swept.swap(true, Ordering::AcqRel) {
                        return;
                    }
                }
            }
        });
    }

    fn give_back(&self, idle: Duration) {
        let oldest = || {
            let mut places = self.places();
            let is_idle = places.free.first().is_some_and(|(_, parked)| parked.elapsed() >= idle);
            is_idle.then(|| places.free.remove(0))
        };
        while let Some(oldest) = oldest() {
            drop(oldest);
        }
        while let Some(kept) = self.reclaim(idle) {
            drop(kept);
        }
    }

    fn is_empty(&self) -> bool {
        let places = self.places();
        places.free.is_empty() && places.kept.is_empty()
    }

    /// Nothing in here can panic halfway through a change.
    fn places(&self) -> MutexGuard<'_, Places<DB>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
