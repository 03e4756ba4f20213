//! What one request, or one job, has done with one database so far.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{fmt, mem};

use log::{debug, warn};

use super::counts::RetryCause;
use crate::backend::{Access, Driver, Instance, Remains};
use crate::cluster::Inner;
use crate::config::ServerTiming;
use crate::pin::{Needed, Pin};
use crate::pool::{Asker, Checkout, Clock, Failure, Holder, Outcome, StatementError, Sticky, Ticking};
use crate::routing::{
    CatchUp, Choice, Client, Decision, Declared, Failed, Intent, MethodKind, Reason, Route, SlaveSet,
};

/// Of the lines that tell what each request asked.
pub(crate) const TARGET: &str = "rocket_replicated::requests";

/// Shared by all guards, handles and streams of a request. Its server is chosen at the first query,
/// so that the order of guards does not matter, and kept: two queries never see two states.
pub(crate) struct Session<DB: Driver> {
    pub(crate) cluster: Arc<Inner<DB>>,
    method: MethodKind,
    client: Client,
    pin: Option<Pin>,
    /// By what connections and their pools know it.
    asker: Asker,
    /// How long it has waited, if anybody wants to know.
    clock: Option<Arc<Clock>>,
    answered: Answered,
    progress: Mutex<Progress<DB>>,
}

struct Progress<DB: Driver> {
    declared: Declared,
    route: Option<Route<DB>>,
    /// Where the connection of the latest query is, for the next one.
    kept: Option<Sticky<DB>>,
    failed: Failed,
    /// How many queries run on connections for reads, or have returned rows that they read there.
    reads_started: usize,
    /// Which of the servers behind a slave's address those reads have seen.
    instance: Option<Instance>,
    writes: Writes,
    /// Which of the servers behind the master's address the latest write went to.
    written_at: Option<Instance>,
    reply: Reply,
    service: Service,
    /// The name of the handler that asks, if it has one.
    handler: Option<Cow<'static, str>>,
    /// Its method and route, where it may still ask after its reply.
    request: Option<String>,
}

impl<DB: Driver> Progress<DB> {
    fn leave(&mut self, decision: Decision) {
        if self.reads_started > 0 {
            // After a query has returned rows, the request may move to the master but not to another slave:
            // that one could be behind what the client has just seen.
            self.failed.slaves = SlaveSet::All;
        }
        // Another query of the same request may have moved on already.
        if self.route.as_ref().is_some_and(|present| present.leads_where(decision)) {
            self.route = None;
        }
    }

    /// There is no server left.
    fn refuse(&mut self, failure: Failure) -> sqlx::Error {
        self.service = Service::Refused;
        failure.into()
    }
}

/// Where the next query goes.
enum Next<DB: Driver> {
    /// Where the one before went, on the same connection.
    Kept(Checkout<DB>, Decision),
    Route(Route<DB>),
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
    Since(Instant),
}

/// Whether a session's writes were all answered. One that was abandoned, or whose connection died, may be committed later
/// than whatever the master's log says now.
#[derive(Debug, Default)]
struct Answered(AtomicBool);

impl Answered {
    fn are_all(&self) -> bool {
        !self.0.load(Ordering::Acquire)
    }
}

/// A write that was sent. Dropped without an answer, it was abandoned.
pub(crate) struct Sent<'a>(Option<&'a Answered>);

impl Sent<'_> {
    /// It has ended like this.
    pub(crate) fn ended<T>(mut self, how: &Result<T, StatementError>) {
        if !how.as_ref().is_err_and(|failed| failed.outcome == Outcome::Unknown) {
            self.0 = None;
        }
    }
}

/// The session that writes on a connection which a handler holds, if it may write there.
pub(crate) struct Writer<DB: Driver>(Option<Arc<Session<DB>>>);

impl<DB: Driver> Writer<DB> {
    /// Of what is sent there, no pin depends on the answer.
    pub(crate) const NOBODY: Self = Self(None);

    /// What is sent from now on cannot be seen, nor whether it is answered.
    pub(crate) fn send_unseen(&self) {
        drop(self.send());
    }

    /// A write is about to be sent, as far as is known.
    pub(crate) fn send(&self) -> Sent<'_> {
        Sent(self.0.as_ref().map(|session| &session.answered))
    }
}

impl<DB: Driver> Clone for Writer<DB> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        if let Some(answered) = self.0 {
            answered.0.store(true, Ordering::Release);
        }
    }
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

impl<DB: Driver> Session<DB> {
    pub(crate) fn new(cluster: Arc<Inner<DB>>, method: MethodKind, client: Client, pin: Option<Pin>) -> Self {
        let asker = cluster.sessions.begin();
        let progress = Progress {
            declared: Declared::default(),
            route: None,
            kept: None,
            failed: Failed::default(),
            reads_started: 0,
            instance: None,
            writes: Writes::default(),
            written_at: None,
            reply: Reply::default(),
            service: Service::default(),
            handler: None,
            request: None,
        };
        Self {
            cluster,
            method,
            client,
            pin,
            asker,
            clock: None,
            answered: Answered::default(),
            progress: Mutex::new(progress),
        }
    }

    /// It is of a request, whose reply or log line tells how long it has waited.
    pub(crate) fn of_request(mut self) -> Self {
        let is_timed = self.cluster.config.server_timing == ServerTiming::Sent
            || log::log_enabled!(target: TARGET, log::Level::Debug);
        self.clock = is_timed.then(Arc::default);
        self
    }

    /// Raises the intent. It never sinks: what a request has seen at the master as a writer, a slave may not have yet.
    pub(crate) fn declare(&self, declared: Declared) {
        let mut progress = self.progress();
        if declared == Declared::Reads && progress.writes != Writes::None {
            return;
        }
        progress.declared = progress.declared.max(declared);
    }

    /// Which handler asks from now on, for messages.
    pub(crate) fn set_handler(&self, handler: Cow<'static, str>) {
        self.progress().handler = Some(handler);
    }

    pub(crate) fn handler(&self) -> Option<Cow<'static, str>> {
        self.progress().handler.clone()
    }

    pub(crate) fn declared(&self) -> Declared {
        self.progress().declared
    }

    pub(crate) fn method(&self) -> MethodKind {
        self.method
    }

    /// Whom it asks, why, and for how long it has waited so far, if it has asked and anybody wants to know.
    pub(crate) fn report(&self) -> Option<(Choice, Duration)> {
        let took = self.clock.as_ref()?.read();
        Some((self.choice()?, took))
    }

    /// The server and the reason, once there is one.
    pub(crate) fn choice(&self) -> Option<Choice> {
        self.progress().route.as_ref().map(Route::choice)
    }

    /// The pin that the writes so far leave.
    pub(crate) async fn pin(&self) -> Option<String> {
        let (since, written_at) = {
            let progress = self.progress();
            match progress.writes {
                Writes::None => return None,
                Writes::Since(_) if !self.answered.are_all() => {
                    return self.cluster.window_pin(self.pin.as_ref());
                }
                Writes::Since(since) => (since, progress.written_at),
            }
        };
        self.cluster.pin(self.pin.as_ref(), since, written_at).await
    }

    /// The reply is about to leave: the pin it has to carry, if any.
    ///
    /// `in_use` says that a handle is still alive, in a streamed body or a spawned task: if the
    /// request means to write, it may do so after the reply. `request` names it then.
    pub(crate) async fn answer(&self, in_use: bool, request: impl FnOnce() -> String) -> Option<String> {
        let (writes, may_write, written_at) = {
            let mut progress = self.progress();
            let writes = progress.writes;
            let may_write = !self.answered.are_all() || in_use && self.intent(&progress).is_write();
            progress.request = in_use.then(request);
            let settled = writes != Writes::None || may_write;
            progress.reply = if settled { Reply::Settled } else { Reply::WithoutPin };
            (writes, may_write, progress.written_at)
        };
        match (writes, may_write) {
            (_, true) => self.cluster.window_pin(self.pin.as_ref()),
            (Writes::Since(since), false) => self.cluster.pin(self.pin.as_ref(), since, written_at).await,
            (Writes::None, false) => None,
        }
    }

    /// Checks out a connection to the session's server; at the first time, or if that server lets it
    /// down, to one chosen now.
    pub(crate) async fn check_out(&self) -> Result<(Checkout<DB>, Decision), sqlx::Error> {
        let retries = &self.cluster.counts.retries;
        loop {
            let (mut checkout, decision) = match self.next() {
                Next::Kept(checkout, decision) => (checkout, decision),
                Next::Route(route) => {
                    let checked_out = {
                        let _ticking = Ticking::new(self.clock.as_ref());
                        route.check_out(self.asker).await
                    };
                    match checked_out {
                        Ok(checkout) => (checkout, route.decision),
                        Err(failure) => {
                            let cause = match failure {
                                Failure::Busy(_) => RetryCause::Busy,
                                Failure::Unreachable(_) => RetryCause::Unreachable,
                            };
                            self.move_on(route.decision, failure)?;
                            retries.add(cause);
                            continue;
                        }
                    }
                }
            };
            if !decision.is_current(self.cluster.mastership.term()) {
                // Another server has become the master while this one kept us waiting.
                checkout.put_back();
                retries.add(RetryCause::Succeeded);
                continue;
            }
            match self.has_own_writes(decision, &mut checkout).await {
                Ok(true) if self.start(decision, &checkout) => return Ok((checkout, decision)),
                Ok(has_own_writes) => {
                    retries.add(if has_own_writes { RetryCause::Moved } else { RetryCause::Behind });
                    checkout.put_back();
                    self.give_up_slave(decision);
                }
                Err(failed) => {
                    if failed.remains != Remains::Usable {
                        checkout.pool().health().suspect(&failed.error);
                    }
                    checkout.put_back_after(&failed);
                    self.move_on(decision, Failure::Unreachable(failed.error))?;
                    retries.add(RetryCause::Broken);
                }
            }
        }
    }

    /// A statement is about to be sent to this server. If it writes there, the pin depends on its answer.
    pub(crate) fn send(&self, decision: Decision) -> Sent<'_> {
        Sent(decision.access.writes().then_some(&self.answered))
    }

    /// As [`send`](Self::send), of what a handler sends on a connection that it holds.
    pub(crate) fn writer(self: &Arc<Self>, decision: Decision) -> Writer<DB> {
        Writer(decision.access.writes().then(|| self.clone()))
    }

    /// Keeps the connection of a query that ended well for the next one.
    pub(crate) fn keep(&self, checkout: Checkout<DB>) {
        let mut progress = self.progress();
        let kept = match &progress.kept {
            Some(kept) => kept.keep(checkout),
            None => Err(checkout),
        };
        // Of two statements that ran side by side, the latter's connection is kept.
        let before = kept
            .err()
            .and_then(|checkout| mem::replace(&mut progress.kept, Sticky::new(checkout, self.asker)));
        drop((progress, before));
    }

    /// Gives up the connection that is kept: no query may follow.
    pub(crate) fn release(&self) {
        let kept = self.progress().kept.take();
        drop(kept);
    }

    /// Whether the server has what the client wrote, where it was chosen for having it.
    async fn has_own_writes(
        &self,
        decision: Decision,
        checkout: &mut Checkout<DB>,
    ) -> Result<bool, StatementError> {
        match (decision.reason, self.pin.as_ref().map(Pin::needs)) {
            (Reason::CaughtUp, Some(Needed::Position(position))) => {
                self.take(&self.progress(), checkout);
                Box::pin(self.cluster.has_replayed(checkout, position)).await
            }
            _ => Ok(true),
        }
    }

    /// The slave does not have what the request needs: the master has.
    fn give_up_slave(&self, decision: Decision) {
        let mut progress = self.progress();
        progress.failed.catch_up = CatchUp::InVain;
        progress.leave(decision);
    }

    /// A query on a connection for reads failed, and had returned nothing.
    pub(crate) fn take_back_read(&self) {
        let mut progress = self.progress();
        progress.reads_started = progress.reads_started.saturating_sub(1);
    }

    /// Leaves a server that let the session down, for one that has not; or fails with its error.
    pub(crate) fn move_on(&self, decision: Decision, failure: Failure) -> Result<(), sqlx::Error> {
        let mut progress = self.progress();
        match (decision.access, &failure) {
            (Access::ReadWrite, _) | (Access::ReadMaster, Failure::Busy(_)) => {
                return Err(progress.refuse(failure));
            }
            (Access::ReadMaster, Failure::Unreachable(_)) => progress.failed.master = true,
            (Access::ReadSlave, _) => progress.failed.slaves.add(decision.server),
        }
        progress.leave(decision);
        let next = self.choose(&mut progress).decision.access;
        if next == Access::ReadMaster && progress.failed.master {
            return Err(progress.refuse(failure));
        }
        Ok(())
    }

    /// Whether a query found no server: the client may try again later.
    pub(crate) fn was_refused(&self) -> bool {
        self.progress().service == Service::Refused
    }

    /// Where the next query goes.
    pub(crate) fn route(&self) -> Route<DB> {
        self.choose(&mut self.progress()).clone()
    }

    /// As [`route`](Self::route), or with the connection that was kept for it. One to another server is given up:
    /// nobody holds two connections to ask one question.
    fn next(&self) -> Next<DB> {
        let mut progress = self.progress();
        let Some(kept) = progress.kept.take() else {
            return Next::Route(self.choose(&mut progress).clone());
        };
        let route = self.choose(&mut progress);
        match route.pool().and_then(|pool| kept.claim(pool)) {
            Some(checkout) => {
                let next = Next::Kept(checkout, route.decision);
                progress.kept = Some(kept);
                next
            }
            None => {
                let next = Next::Route(route.clone());
                drop((progress, kept));
                next
            }
        }
    }

    fn choose<'p>(&self, progress: &'p mut Progress<DB>) -> &'p Route<DB> {
        let intent = self.intent(progress);
        let present = self.cluster.mastership.term();
        if let Some(route) = progress.route.take_if(|route| route.has_left()) {
            progress.leave(route.decision);
        }
        let route = match progress.route.take() {
            Some(route) if route.stays(present, intent) => route,
            _ => {
                let route = self.cluster.choose(intent, self.client, self.pin.as_ref(), &progress.failed);
                route.count();
                route
            }
        };
        progress.route.insert(route)
    }

    /// What runs on the connection from now on is the session's.
    fn take(&self, progress: &Progress<DB>, checkout: &Checkout<DB>) {
        checkout.state().take_for(self.asker, || Holder {
            asker: self.asker,
            handler: progress.handler.clone(),
            clock: self.clock.clone(),
        });
    }

    /// A query is about to run: whether it may. Where an address leads to several servers, a request reads from one
    /// of them only: another one could be behind what the client has just seen.
    fn start(&self, decision: Decision, checkout: &Checkout<DB>) -> bool {
        let mut progress = self.progress();
        self.take(&progress, checkout);
        if !decision.access.writes() {
            let instance = checkout.instance();
            if decision.access == Access::ReadSlave
                && progress.reads_started > 0
                && progress.instance != instance
            {
                return false;
            }
            progress.reads_started += 1;
            progress.instance = instance;
            return true;
        }
        if progress.writes == Writes::None {
            progress.writes = Writes::Since(Instant::now());
        }
        progress.written_at = checkout.instance();
        if progress.reply == Reply::WithoutPin {
            progress.reply = Reply::Settled;
            warn!(
                "Database `{}` is written to after the reply of {} has left: the client carries no pin for that \
                 and may miss it. Write before replying.",
                self.cluster.database,
                progress.request.as_deref().unwrap_or("its request"),
            );
        }
        true
    }

    fn intent(&self, progress: &Progress<DB>) -> Intent {
        Intent::of(self.method, progress.declared)
    }

    /// Nothing in here can panic halfway through a change.
    fn progress(&self) -> MutexGuard<'_, Progress<DB>> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<DB: Driver> Drop for Session<DB> {
    fn drop(&mut self) {
        self.cluster.sessions.end();
        // That of a request has been told when its reply left.
        let progress = self.progress.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let (Reply::Pending, Some(route)) = (progress.reply, &progress.route) {
            let who = progress.handler.as_deref().unwrap_or("A job");
            debug!(target: TARGET, "{who} asked database `{}`: {}.", self.cluster.database, route.choice());
        }
    }
}

impl<DB: Driver> fmt::Debug for Session<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("database", &self.cluster.database)
            .field("method", &self.method)
            .field("handler", &self.handler())
            .field("pin", &self.pin)
            .field("choice", &self.choice())
            .finish_non_exhaustive()
    }
}
