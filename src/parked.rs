//! Connections that wait for the next query outside of sqlx's pool.
//!
//! A connection that is handed back to sqlx costs a task and a round trip to the server: it is
//! pinged, each time, before anybody else gets it. So those whose query ended well are parked here,
//! and handed over as they are. What sqlx is good at stays with sqlx: it opens connections, counts
//! them, and closes those that are old or idle; it gets them back once they have been parked for
//! [`TRUSTED_IDLE`], or in use for [`KEPT`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rocket::tokio::sync::Semaphore;
use rocket::tokio::{self, runtime::Handle};
use sqlx::pool::PoolConnection;

use crate::backend::Driver;

/// A connection that has been idle for longer is pinged before it is handed out.
pub(crate) const TRUSTED_IDLE: Duration = Duration::from_secs(1);

/// After so long, sqlx looks at a connection's age.
const KEPT: Duration = Duration::from_secs(60);

/// A connection, and since when it has been away from its pool.
#[derive(Debug)]
pub(crate) struct Away<DB: Driver> {
    pub(crate) conn: PoolConnection<DB>,
    pub(crate) since: Instant,
}

pub(crate) struct Parked<DB: Driver> {
    /// The latest at the end.
    places: Mutex<Vec<(Away<DB>, Instant)>>,
    /// One permit for each of them, for which those wait who found none.
    permits: Semaphore,
    /// Whether a task gives back those that nobody takes.
    swept: AtomicBool,
    runtime: Handle,
}

impl<DB: Driver> Parked<DB> {
    pub(crate) fn new(runtime: Handle) -> Arc<Self> {
        Arc::new(Self {
            places: Mutex::default(),
            permits: Semaphore::new(0),
            swept: AtomicBool::new(false),
            runtime,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.places().len()
    }

    pub(crate) fn put(self: &Arc<Self>, away: Away<DB>) {
        if away.since.elapsed() > KEPT {
            return;
        }
        self.places().push((away, Instant::now()));
        self.permits.add_permits(1);
        if !self.swept.swap(true, Ordering::AcqRel) {
            self.sweep();
        }
    }

    /// One that is there.
    pub(crate) fn try_take(&self) -> Option<Away<DB>> {
        self.permits.try_acquire().ok()?.forget();
        self.pop()
    }

    /// The next one that is.
    pub(crate) async fn take(&self) -> Option<Away<DB>> {
        self.permits.acquire().await.ok()?.forget();
        self.pop()
    }

    /// Gives all back to sqlx.
    pub(crate) fn clear(&self) {
        while let Some(away) = self.try_take() {
            drop(away);
        }
    }

    fn pop(&self) -> Option<Away<DB>> {
        self.places().pop().map(|(away, _)| away)
    }

    /// Gives those back that nobody takes, until there are none.
    fn sweep(self: &Arc<Self>) {
        let parked: Weak<Self> = Arc::downgrade(self);
        self.runtime.spawn(async move {
            loop {
                tokio::time::sleep(TRUSTED_IDLE / 2).await;
                let Some(parked) = parked.upgrade() else { return };
                parked.give_back(TRUSTED_IDLE / 2);
                if parked.places().is_empty() {
                    parked.swept.store(false, Ordering::Release);
                    // One that was parked just now found the sweep on.
                    if parked.places().is_empty() || parked.swept.swap(true, Ordering::AcqRel) {
                        return;
                    }
                }
            }
        });
    }

    fn give_back(&self, idle: Duration) {
        let old = |places: &[(Away<DB>, Instant)]| {
            places.first().is_some_and(|(_, parked)| parked.elapsed() > idle)
        };
        while old(&self.places())
            && let Ok(permit) = self.permits.try_acquire()
        {
            permit.forget();
            let mut places = self.places();
            // Others may have taken the rest meanwhile, but the permit stands for one.
            let oldest = (!places.is_empty()).then(|| places.remove(0));
            drop(places);
            drop(oldest);
        }
    }

    /// Nothing in here can panic halfway through a change.
    fn places(&self) -> MutexGuard<'_, Vec<(Away<DB>, Instant)>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
