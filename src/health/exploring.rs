//! The parts of a [`Health`] that `tests/model` needs for its search through all states of a small world.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::ArcSwapOption;
use rocket::tokio::sync::{Notify, watch};

use super::{AtomicState, Health, Mastership, Proxy};

impl Health {
    /// Copies the health into a process with a mastership of its own, for a search through states.
    pub(crate) fn copy(&self, mastership: Arc<Mastership>) -> Arc<Self> {
        let Self { id, subject, database, name, log, origin, .. } = self;
        let u64_of = |value: &AtomicU64| AtomicU64::new(value.load(Ordering::Relaxed));
        Arc::new(Self {
            id: *id,
            subject: *subject,
            database,
            name: name.clone(),
            log: *log,
            mastership,
            state: AtomicState::new(self.state.load()),
            taken_out: AtomicBool::new(self.is_taken_out()),
            is_leaving: AtomicBool::new(false),
            successes: AtomicU8::new(self.successes.load(Ordering::Relaxed)),
            interrupted: Notify::new(),
            probe_requested: Notify::new(),
            probes: watch::Sender::new(*self.probes.borrow()),
            generation: u64_of(&self.generation),
            origin: *origin,
            doubted: u64_of(&self.doubted),
            round_trip: u64_of(&self.round_trip),
            instance: u64_of(&self.instance),
            shared_until: u64_of(&self.shared_until),
            is_pooled: AtomicBool::new(self.is_pooled()),
            proxy: Proxy::default(),
            replayed: ArcSwapOption::new(self.replayed.load_full()),
            lag: u64_of(&self.lag),
            copied: self.copied.clone(),
            accepts_login: AtomicBool::new(self.accepts_login.load(Ordering::Relaxed)),
            counts: Arc::default(),
            #[cfg(feature = "status")]
            history: std::sync::Mutex::default(),
        })
    }

    /// Hashes all that choices depend on, except times and load, for a search through states.
    pub(crate) fn hash_known(&self, hasher: &mut impl Hasher) {
        let replayed = self.replayed.load();
        let replayed = replayed.as_ref().map(|replayed| (&replayed.position, replayed.instance));
        let first = *self.probes.borrow() == 0;
        let successes = self.successes.load(Ordering::Relaxed);
        (self.state() as u8, successes, first, self.instance(), self.is_shared(), replayed).hash(hasher);
    }

    /// When the look began that told the replayed position.
    pub(crate) fn seen(&self) -> Option<Instant> {
        self.replayed.load().as_ref().map(|replayed| replayed.seen)
    }
}
