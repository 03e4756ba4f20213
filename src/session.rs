//! What one request, or one job, has done with one database so far.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use log::{debug, warn};
use rocket_db_pools::Database;

use crate::backend::{Backend, Driver, Fault};
use crate::choice::{Choice, Declared, Intent, MethodKind, Reason};
use crate::lease::{Kept, Lease};
use crate::node::Failure;
use crate::nodes::{At, CatchUp, Db, Failed, Nodes, Place, SlaveSet};
use crate::pin::{Needed, Pin};

/// Shared by all guards, handles and streams of a request. Its node is chosen at the first query,
/// so that the order of guards does not matter, and kept: two queries never see two states.
pub(crate) struct Session<D: Database<Pool: Backend>> {
    pub(crate) nodes: Arc<Nodes<D>>,
    method: MethodKind,
    pin: Option<Pin>,
    progress: Mutex<Progress>,
    /// The connection of the latest query, for the next one.
    kept: Mutex<Option<(At, Kept<D::Pool>)>>,
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
    service: Service,
}

impl Progress {
    fn leave(&mut self, place: Place) {
        if self.claims > 0 {
            // Another slave would be another state; the master only a later one.
            self.failed.slaves = SlaveSet::ALL;
        }
        // Another query of the same request may have moved on already.
        if self.place == Some(place) {
            self.place = None;
        }
    }

    /// There is no node left.
    fn refuse(&mut self, failure: Failure) -> sqlx::Error {
        self.service = Service::Refused;
        failure.into()
    }
}

/// Whether all queries found a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Service {
    #[default]
    Given,
    Refused,
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
        Self { nodes, method, pin, progress: Mutex::default(), kept: Mutex::default() }
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
    pub(crate) async fn pin(&self) -> Option<String> {
        match self.progress().writes {
            Writes::None => return None,
            Writes::Some => {}
        }
        self.nodes.pin(self.pin.as_ref()).await
    }

    /// The reply is about to leave: the pin it has to carry, if any.
    ///
    /// `in_use` says that a handle is still alive, in a streamed body or a spawned task: if the
    /// request means to write, it may do so after the reply.
    pub(crate) async fn answer(&self, in_use: bool) -> Option<String> {
        let (wrote, may_write) = {
            let mut progress = self.progress();
            let wrote = progress.writes == Writes::Some;
            let may_write = in_use && self.intent(&progress).is_write();
            progress.reply = if wrote || may_write { Reply::Settled } else { Reply::WithoutPin };
            (wrote, may_write)
        };
        match (wrote, may_write) {
            (_, true) => self.nodes.window_pin(self.pin.as_ref()),
            (true, false) => self.nodes.pin(self.pin.as_ref()).await,
            (false, false) => None,
        }
    }

    /// Checks out a connection of the session's node; at the first time, or if that node lets it
    /// down, of one chosen now.
    pub(crate) async fn checkout(&self) -> Result<(Lease<D::Pool>, Place), sqlx::Error> {
        loop {
            let place = self.place();
            let mut lease = match self.claim_kept(place.at) {
                Some(lease) => lease,
                None => match self.nodes.acquire(place).await {
                    Ok(lease) => lease,
                    Err(failure) => {
                        self.move_on(place, failure)?;
                        continue;
                    }
                },
            };
            match self.catch_up(place, &mut lease).await {
                Ok(true) => {
                    self.arrived(place);
                    return Ok((lease, place));
                }
                Ok(false) => {
                    lease.end();
                    self.give_up_catching_up(place);
                }
                Err(error) => {
                    if Db::<D>::fault(&error) == Fault::Node {
                        self.nodes.node(place.at).health().suspect(&error);
                    }
                    lease.end_after(&error);
                    self.move_on(place, Failure::Unreachable(error))?;
                }
            }
        }
    }

    /// Keeps the connection of a query that ended well at `at` for the next one.
    pub(crate) fn keep(&self, at: At, lease: Lease<D::Pool>) {
        let kept = lease.keep().map(|kept| (at, kept));
        let before = std::mem::replace(&mut *self.kept(), kept);
        drop(before);
    }

    /// Gives up the connection that is kept: no query may follow.
    pub(crate) fn release(&self) {
        let kept = self.kept().take();
        drop(kept);
    }

    /// One of another node is given up: nobody holds two connections to ask one question.
    fn claim_kept(&self, at: At) -> Option<Lease<D::Pool>> {
        let kept = self.kept().take();
        kept.filter(|(kept_at, _)| *kept_at == at).and_then(|(_, kept)| kept.claim())
    }

    /// Whether the node has what the client wrote, where it was chosen for having it.
    async fn catch_up(&self, place: Place, lease: &mut Lease<D::Pool>) -> Result<bool, sqlx::Error> {
        match (place, self.pin.as_ref().map(Pin::needs)) {
            (Place { at: At::Slave(index), reason: Reason::CaughtUp }, Some(Needed::Position(position))) => {
                match self.nodes.has_replayed(index, lease, position) {
                    true => Ok(true),
                    false => Box::pin(self.nodes.catch_up(index, lease, position)).await,
                }
            }
            _ => Ok(true),
        }
    }

    fn give_up_catching_up(&self, place: Place) {
        let mut progress = self.progress();
        progress.failed.catch_up = CatchUp::InVain;
        progress.leave(place);
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
            (At::MasterReadWrite(_), _) | (At::MasterReadOnly(_), Failure::Busy(_)) => {
                return Err(progress.refuse(failure));
            }
            (At::MasterReadOnly(_), Failure::Unreachable(_)) => progress.failed.master = true,
            (At::Slave(index), _) => progress.failed.slaves = progress.failed.slaves.with(index),
        }
        progress.leave(place);
        let next = self.choose(&mut progress);
        if matches!(next.at, At::MasterReadOnly(_)) && progress.failed.master {
            return Err(progress.refuse(failure));
        }
        Ok(())
    }

    /// Whether a query found no node: the client may try again later.
    pub(crate) fn was_refused(&self) -> bool {
        self.progress().service == Service::Refused
    }

    /// The node for the next query.
    pub(crate) fn place(&self) -> Place {
        self.choose(&mut self.progress())
    }

    fn choose(&self, progress: &mut Progress) -> Place {
        let intent = self.intent(progress);
        if let Some(place) = progress.place
            && place.at.writes() == intent.is_write()
        {
            return place;
        }
        let place = self.nodes.choose(intent, self.pin.as_ref(), progress.failed);
        progress.place = Some(place);
        debug!("Database `{}`: {}.", D::NAME, self.nodes.choice(place));
        place
    }

    fn arrived(&self, place: Place) {
        let mut progress = self.progress();
        if !place.at.writes() {
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

    fn kept(&self) -> MutexGuard<'_, Option<(At, Kept<D::Pool>)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
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
