//! What one request, or one job, has done with one database so far.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use log::{debug, warn};
use rocket_db_pools::Database;

use crate::backend::Backend;
use crate::choice::{Choice, Declared, Intent, MethodKind};
use crate::lease::Lease;
use crate::node::Failure;
use crate::nodes::{At, Failed, Nodes, Place, SlaveSet};
use crate::pin::Pin;

/// Shared by all guards, handles and streams of a request. Its node is chosen at the first query,
/// so that the order of guards does not matter, and kept: two queries never see two states.
pub(crate) struct Session<D: Database<Pool: Backend>> {
    pub(crate) nodes: Arc<Nodes<D>>,
    method: MethodKind,
    pin: Option<Pin>,
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    declared: Declared,
    place: Option<Place>,
    failed: Failed,
    /// How many queries run at nodes for reads, or have handed something over that they read there.
    claims: usize,
    writes: Writes,
    reply: Reply,
}

/// Whether the read-write pool was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Writes {
    #[default]
    None,
    Some,
}

/// What became of the request's reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Reply {
    #[default]
    Pending,
    /// On its way, with all the pin that there has to be.
    Settled,
    /// On its way without a pin: a write now would be one that its client may miss.
    WithoutPin,
}

impl<D: Database<Pool: Backend>> Session<D> {
    pub(crate) fn new(nodes: Arc<Nodes<D>>, method: MethodKind, pin: Option<Pin>) -> Self {
        nodes.sessions.fetch_add(1, Ordering::AcqRel);
        Self { nodes, method, pin, progress: Mutex::default() }
    }

    /// Raises the intent; it never sinks.
    pub(crate) fn declare(&self, declared: Declared) {
        let mut progress = self.progress();
        progress.declared = progress.declared.max(declared);
    }

    /// The node and the reason, once there is one.
    pub(crate) fn choice(&self) -> Option<Choice> {
        self.progress().place.map(|place| self.nodes.choice(place))
    }

    /// The pin that the writes so far leave.
    pub(crate) fn pin(&self) -> Option<String> {
        let wrote = self.progress().writes == Writes::Some;
        wrote.then(|| self.nodes.sign_pin()).flatten()
    }

    /// The reply is about to leave: the pin it has to carry, if any.
    ///
    /// `in_use` says that a handle is still alive, in a streamed body or a spawned task: if the
    /// request means to write, it may do so after the reply.
    pub(crate) fn answer(&self, in_use: bool) -> Option<String> {
        let mut progress = self.progress();
        let may_write = in_use && self.intent(&progress).is_write();
        let pins = progress.writes == Writes::Some || may_write;
        progress.reply = if pins { Reply::Settled } else { Reply::WithoutPin };
        pins.then(|| self.nodes.sign_pin()).flatten()
    }

    /// Checks out a connection of the session's node; at the first time, or if that node lets it
    /// down, of one chosen now.
    pub(crate) async fn checkout(&self) -> Result<(Lease<D::Pool>, Place), sqlx::Error> {
        loop {
            let place = self.place();
            match self.nodes.acquire(place).await {
                Ok(lease) => {
                    self.arrived(place);
                    return Ok((lease, place));
                }
                Err(failure) => self.move_on(place, failure)?,
            }
        }
    }

    /// A query at a node for reads failed, and had handed nothing over.
    pub(crate) fn unclaim(&self) {
        let mut progress = self.progress();
        progress.claims = progress.claims.saturating_sub(1);
    }

    /// Leaves a node that let the session down, for one that has not; or fails with its error.
    pub(crate) fn move_on(&self, place: Place, failure: Failure) -> Result<(), sqlx::Error> {
        let mut progress = self.progress();
        match (place.at, &failure) {
            (At::MasterReadWrite, _) | (At::MasterReadOnly, Failure::Busy(_)) => return Err(failure.into()),
            (At::MasterReadOnly, Failure::Unreachable(_)) => progress.failed.master = true,
            (At::Slave(index), _) => progress.failed.slaves = progress.failed.slaves.with(index),
        }
        if progress.claims > 0 {
            // Another slave would be another state; the master only a later one.
            progress.failed.slaves = SlaveSet::ALL;
        }
        // Another query of the same request may have moved on already.
        if progress.place == Some(place) {
            progress.place = None;
        }
        let next = self.choose(&mut progress);
        if next.at == At::MasterReadOnly && progress.failed.master {
            return Err(failure.into());
        }
        Ok(())
    }

    /// The node for the next query.
    pub(crate) fn place(&self) -> Place {
        self.choose(&mut self.progress())
    }

    fn choose(&self, progress: &mut Progress) -> Place {
        let intent = self.intent(progress);
        if let Some(place) = progress.place
            && (place.at == At::MasterReadWrite) == intent.is_write()
        {
            return place;
        }
        let place = self.nodes.choose(intent, self.pin.is_some(), progress.failed);
        progress.place = Some(place);
        debug!("Database `{}`: {}.", D::NAME, self.nodes.choice(place));
        place
    }

    fn arrived(&self, place: Place) {
        let mut progress = self.progress();
        if place.at != At::MasterReadWrite {
            progress.claims += 1;
            return;
        }
        progress.writes = Writes::Some;
        if progress.reply == Reply::WithoutPin {
            progress.reply = Reply::Settled;
            warn!(
                "Database `{}` is written to after the reply of its request has left: the client \
                 carries no pin for that and may miss it. Write before replying.",
                D::NAME
            );
        }
    }

    fn intent(&self, progress: &Progress) -> Intent {
        Intent::of(self.method, progress.declared)
    }

    /// Nothing in here can panic halfway through a change.
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Database<Pool: Backend>> Drop for Session<D> {
    fn drop(&mut self) {
        self.nodes.sessions.fetch_sub(1, Ordering::AcqRel);
    }
}

impl<D: Database<Pool: Backend>> fmt::Debug for Session<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("database", &D::NAME)
            .field("method", &self.method)
            .field("pin", &self.pin)
            .field("progress", &*self.progress())
            .finish()
    }
}
