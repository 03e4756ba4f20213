//! What is known of one server: shared by the pools that lead to it, which read it without waiting,
//! and by the monitor, which keeps it up to date.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use log::{error, info, warn};
use rocket::tokio::sync::{Notify, watch};

use crate::backend::Copied;
use crate::choice::Role;
use crate::config::PinnedWithoutMaster;
use crate::position::{Lag, Position};

/// How a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NodeState {
    /// It serves.
    Up,
    /// A connection to it failed: it is not used until the monitor has looked at it.
    Suspect,
    /// It does not answer.
    Down,
    /// A slave that is further behind its master than `max_lag`.
    Behind,
    /// A server that takes writes, but is not the master: a slave that was promoted, or a master that
    /// came back after one was.
    SecondMaster,
    /// A slave of another replication system than the master's.
    Stranger,
    /// A master that is in recovery: it takes no writes.
    Standby,
    /// Taken out of use by [`Cluster::take_out`](crate::Cluster::take_out).
    TakenOut,
}

impl NodeState {
    const ALL: [Self; 8] = [
        Self::Up,
        Self::Suspect,
        Self::Down,
        Self::Behind,
        Self::SecondMaster,
        Self::Stranger,
        Self::Standby,
        Self::TakenOut,
    ];
}

/// How one node is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeStatus {
    /// As in the configuration and in the log.
    pub name: String,
    /// The part that it plays now.
    pub role: Role,
    /// Whether it serves, or why not.
    pub state: NodeState,
    /// How far a slave was behind its master when it was last looked at, at most: known to about
    /// `check_interval`. `None` where that cannot be known.
    pub lag: Option<Duration>,
    /// How many of its connections are in use, or kept for the next query of a request: for a slave those
    /// for reads, for the master all.
    pub busy: u32,
}

/// A state that others may change at any time.
#[derive(Debug)]
struct AtomicState(AtomicU8);

impl AtomicState {
    fn load(&self) -> NodeState {
        NodeState::ALL[usize::from(self.0.load(Ordering::Acquire))]
    }

    fn swap(&self, state: NodeState) -> NodeState {
        NodeState::ALL[usize::from(self.0.swap(state as u8, Ordering::AcqRel))]
    }
}

/// How far a slave had replayed when it was looked at.
#[derive(Debug)]
struct Replayed {
    position: Position,
    /// Before it was looked at.
    seen: Instant,
}

pub(crate) struct Health {
    name: Arc<str>,
    role: Role,
    state: AtomicState,
    /// By an operator.
    taken_out: AtomicBool,
    /// Good probes in a row.
    proofs: AtomicU8,
    /// Wakes those who wait for the server when it is a suspect, or down.
    pub(crate) fell: Notify,
    /// Wakes the monitor to look at the server now.
    pub(crate) doubted: Notify,
    /// How many probes have ended.
    pub(crate) probes: watch::Sender<u64>,
    origin: Instant,
    /// Milliseconds since `origin`: connections that are older have yet to prove themselves.
    distrusted: AtomicU64,
    replayed: ArcSwapOption<Replayed>,
    /// Milliseconds, or [`UNKNOWN`].
    lag: AtomicU64,
    /// Of a slave that this crate copies itself.
    copied: OnceLock<Copied>,
}

const UNKNOWN: u64 = u64::MAX;

impl Health {
    pub(crate) fn new(name: Arc<str>, role: Role) -> Arc<Self> {
        Arc::new(Self {
            name,
            role,
            state: AtomicState(AtomicU8::new(NodeState::Up as u8)),
            taken_out: AtomicBool::new(false),
            proofs: AtomicU8::new(0),
            fell: Notify::new(),
            doubted: Notify::new(),
            probes: watch::Sender::new(0),
            origin: Instant::now(),
            distrusted: AtomicU64::new(0),
            replayed: ArcSwapOption::empty(),
            lag: AtomicU64::new(UNKNOWN),
            copied: OnceLock::new(),
        })
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(crate) fn state(&self) -> NodeState {
        match self.state.load() {
            NodeState::Up if self.is_taken_out() => NodeState::TakenOut,
            state => state,
        }
    }

    /// Whether to choose it.
    pub(crate) fn is_usable(&self) -> bool {
        self.state.load() == NodeState::Up && !self.is_taken_out()
    }

    /// Whether to choose it where nobody else is left: it is on its way back or, if that will do, too far
    /// behind.
    pub(crate) fn is_last_resort(&self, without_master: PinnedWithoutMaster) -> bool {
        let serves = match self.state.load() {
            NodeState::Down => self.is_returning(),
            NodeState::Behind => without_master == PinnedWithoutMaster::Stale,
            _ => false,
        };
        serves && !self.is_taken_out()
    }

    /// Whether one that was chosen can go on with it.
    pub(crate) fn answers(&self) -> bool {
        match self.state.load() {
            NodeState::Suspect | NodeState::Standby => false,
            NodeState::Down => self.is_returning(),
            _ => true,
        }
    }

    /// Ready once there is no use in waiting for an answer that is due.
    pub(crate) async fn fell_silent(&self) {
        loop {
            let fell = self.fell.notified();
            if self.state.load() == NodeState::Down && !self.is_returning() {
                return;
            }
            fell.await;
        }
    }

    /// Whether the latest probe found nothing wrong.
    fn is_returning(&self) -> bool {
        self.proofs.load(Ordering::Acquire) > 0
    }

    fn is_taken_out(&self) -> bool {
        self.taken_out.load(Ordering::Acquire)
    }

    /// Its connections stay, for those who use them.
    pub(crate) fn set_taken_out(&self, taken_out: bool) {
        if self.taken_out.swap(taken_out, Ordering::AcqRel) != taken_out {
            let how = if taken_out { "taken out of use" } else { "put back into use" };
            info!("The {self} was {how}.");
        }
    }

    /// Something is odd: to be looked at before its turn.
    pub(crate) fn doubt(&self) {
        self.doubted.notify_one();
    }

    /// A connection to it failed: leaves it alone until a probe tells whether all would.
    pub(crate) fn suspect(&self, error: &sqlx::Error) {
        self.lose(NodeState::Suspect, error);
        self.doubt();
    }

    /// A probe failed: leaves it alone until it has proved itself again.
    pub(crate) fn lost(&self, error: &sqlx::Error) {
        self.lose(NodeState::Down, error);
    }

    fn lose(&self, state: NodeState, error: &sqlx::Error) {
        self.distrust();
        self.proofs.store(0, Ordering::Release);
        // It may have been restarted, and then stand further back than before.
        self.replayed.store(None);
        if !(state == NodeState::Suspect && self.state.load() == NodeState::Down) {
            self.turn(state, error);
        }
        self.fell.notify_waiters();
    }

    /// Found to be well, or not to be used for a reason of which there is more to say.
    pub(crate) fn judged(&self, state: NodeState, more: impl fmt::Display) {
        // The first look at a server tells as much as can be known.
        let first = *self.probes.borrow() == 0;
        let before = self.state.load();
        match state {
            NodeState::Up => {
                let proofs = self.proofs.fetch_add(1, Ordering::AcqRel).saturating_add(1);
                self.proofs.store(proofs.min(PROOFS), Ordering::Release);
                let proved = match (self.role, before) {
                    (_, NodeState::Up) => return,
                    (_, NodeState::Suspect) => true,
                    // Nobody can stand in for it.
                    (Role::Master, _) => true,
                    (Role::Slave, _) => proofs >= PROOFS || first,
                };
                if !proved {
                    return;
                }
            }
            _ => self.proofs.store(0, Ordering::Release),
        }
        self.turn(state, more);
    }

    /// One line for each change.
    fn turn(&self, state: NodeState, more: impl fmt::Display) {
        let before = self.state.swap(state);
        match state {
            _ if before == state => {}
            NodeState::Down if before == NodeState::Suspect => {}
            NodeState::Up => info!("The {self} is back."),
            NodeState::Suspect | NodeState::Down => {
                warn!("The {self} cannot be used: {more}. Leaving it alone until it answers.")
            }
            NodeState::Behind => {
                warn!("The {self} is {more} behind: leaving it out until it has caught up.")
            }
            NodeState::SecondMaster => {
                error!("The {self} takes writes, but is not the master: leaving it out. {more}")
            }
            NodeState::Stranger => {
                error!("The {self} does not replicate the master, but another system: leaving it out.")
            }
            NodeState::Standby => error!("The {self} is in recovery: it takes no writes."),
            NodeState::TakenOut => {}
        }
    }

    /// A connection failed: so may all that are as old.
    pub(crate) fn distrust(&self) {
        self.distrusted.store(self.now(), Ordering::Release);
    }

    /// Whether a connection of this age was made after the latest failure.
    pub(crate) fn trusts(&self, age: impl FnOnce() -> Duration) -> bool {
        let distrusted = self.distrusted.load(Ordering::Acquire);
        distrusted == 0 || self.now().saturating_sub(millis(age())) > distrusted
    }

    /// A look at it that began at `seen` found it there.
    pub(crate) fn saw(&self, position: Position, seen: Instant) {
        self.replayed.store(Some(Arc::new(Replayed { position, seen })));
    }

    pub(crate) fn set_lag(&self, lag: Option<Lag>) {
        let lag = match lag {
            Some(Lag::AtMost(lag) | Lag::MoreThan(lag)) => millis(lag),
            None => UNKNOWN,
        };
        self.lag.store(lag, Ordering::Release);
    }

    pub(crate) fn lag(&self) -> Option<Duration> {
        match self.lag.load(Ordering::Acquire) {
            UNKNOWN => None,
            ms => Some(Duration::from_millis(ms)),
        }
    }

    pub(crate) fn follows(&self, copied: Copied) {
        let _ = self.copied.set(copied);
    }

    pub(crate) fn copied(&self) -> Option<Position> {
        self.copied.get()?.position()
    }

    /// What is known of how far it has replayed a position.
    pub(crate) fn replay_of(&self, position: &Position) -> Replay {
        if let Some(copied) = self.copied() {
            return if copied.includes(position) { Replay::Done } else { Replay::Behind };
        }
        match &*self.replayed.load() {
            Some(replayed) if replayed.position.includes(position) => Replay::Done,
            Some(replayed) if !replayed.position.shares_history(position) => Replay::Elsewhere,
            _ => Replay::Behind,
        }
    }

    /// Whether a connection that has been open since `open` is to a server that has replayed a
    /// position. One that was opened since anybody looked may be to a server that was restarted, and
    /// then stand further back than before it was.
    pub(crate) fn has_replayed(&self, position: &Position, open: Instant) -> bool {
        let seen_since = || self.replayed.load().as_ref().is_some_and(|replayed| open <= replayed.seen);
        self.replay_of(position) == Replay::Done && (self.copied.get().is_some() || seen_since())
    }

    fn now(&self) -> u64 {
        millis(self.origin.elapsed()).max(1)
    }
}

/// So many good probes put a slave back.
const PROOFS: u8 = 2;

/// How far a slave has replayed a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replay {
    Done,
    /// Not yet, as far as is known.
    Behind,
    /// Its history is another one: it never may.
    Elsewhere,
}

impl fmt::Display for Health {
    /// As in `` slave `db-2` ``.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `{}`", self.role, self.name)
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health")
            .field("name", &self.name)
            .field("state", &self.state())
            .field("lag", &self.lag())
            .finish_non_exhaustive()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(UNKNOWN - 1)
}

#[cfg(test)]
mod tests;
