//! The session of one request, or one job, with one database: its server, its connection and its pin.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{fmt, mem};

use log::{debug, warn};

use super::counts::RetryCause;
use super::progress::{Letdown, PinKind, Progress, Reply, Start};
use crate::backend::{Access, Driver, Remains};
use crate::cluster::Inner;
use crate::config::ServerTiming;
use crate::pin::{Needed, Pin};
use crate::pool::{
    Asker, Checkout, Clock, Failure, Holder, KeptConnection, Outcome, StatementError, Ticking,
};
use crate::position::Position;
use crate::routing::{Choice, Client, Decision, Declared, MethodKind, Reason, Route};

/// The log target of the lines that tell which server each request asked.
pub(crate) const TARGET: &str = "rocket_replicated::requests";

/// A session, shared by all guards, handles and streams of a request. Its server is chosen at the first query, so that
/// the order of guards does not matter. The server is then kept, so that two queries never see two states.
pub(crate) struct Session<DB: Driver> {
    pub(crate) cluster: Arc<Inner<DB>>,
    client: Client,
    /// Identifies this session to pools and connections.
    asker: Asker,
    /// How long the session has waited for its database. `None` if that is not measured.
    clock: Option<Arc<Clock>>,
    state: Mutex<State<DB>>,
}

struct State<DB: Driver> {
    progress: Progress,
    /// The pin of the work that the session goes on with: that of its client, of a job, or of another request.
    pin: Option<Arc<Pin>>,
    route: Option<Route<DB>>,
    /// The connection of the latest query, kept for the next one.
    kept: Option<KeptConnection<DB>>,
    /// The name of the handler that asks, if it has one.
    handler: Option<Cow<'static, str>>,
    /// The method and route of the request, if it may still query after its reply.
    request: Option<String>,
}

impl<DB: Driver> State<DB> {
    /// Leaves the server of this decision, unless another query of the same request has moved on already.
    fn leave(&mut self, decision: Decision) {
        self.route.take_if(|present| present.leads_where(decision));
    }
}

/// Where the next query goes.
enum Next<DB: Driver> {
    /// Runs on the connection of the query before, where it has begun already.
    Started(Checkout<DB>, Decision),
    Kept(Checkout<DB>, Decision),
    Route(Route<DB>),
}

/// A query that has begun on a connection. Dropped, it counts as one that has returned what it read.
pub(crate) struct UnderWay<'a, DB: Driver> {
    session: &'a Session<DB>,
    pub(crate) decision: Decision,
}

impl<'a, DB: Driver> UnderWay<'a, DB> {
    /// Takes back a query that failed, had returned nothing, and has changed nothing.
    pub(crate) fn take_back(self) {
        self.session.state().progress.take_back(self.decision.access);
    }

    /// Notes that the query is about to be sent. If it writes, the pin depends on its answer.
    pub(crate) fn send(&self) -> Sent<'a, DB> {
        Sent(self.decision.access.writes().then_some(self.session))
    }
}

/// A write that was sent. Dropped without an answer, it was abandoned.
pub(crate) struct Sent<'a, DB: Driver>(Option<&'a Session<DB>>);

impl<DB: Driver> Sent<'_, DB> {
    /// Notes how the write ended. If its outcome is unknown, the write counts as unanswered.
    pub(crate) fn ended<T>(mut self, how: &Result<T, StatementError>) {
        if !how.as_ref().is_err_and(|failed| failed.outcome == Outcome::Unknown) {
            self.0 = None;
        }
    }
}

impl<DB: Driver> Drop for Sent<'_, DB> {
    fn drop(&mut self) {
        if let Some(session) = self.0 {
            session.state().progress.miss_answer();
        }
    }
}

/// The session that writes on a connection which a handler holds, if it may write there.
pub(crate) struct Writer<DB: Driver>(Option<Arc<Session<DB>>>);

impl<DB: Driver> Writer<DB> {
    /// The writer for statements whose answer no pin depends on.
    pub(crate) const NONE: Self = Self(None);

    /// Counts a write as unanswered, because statements cannot be seen from now on.
    pub(crate) fn send_unseen(&self) {
        drop(self.send());
    }

    /// Notes that a statement is about to be sent, which may write.
    pub(crate) fn send(&self) -> Sent<'_, DB> {
        Sent(self.0.as_deref())
    }
}

impl<DB: Driver> Clone for Writer<DB> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<DB: Driver> Session<DB> {
    pub(crate) fn new(cluster: Arc<Inner<DB>>, method: MethodKind, client: Client, pin: Option<Pin>) -> Self {
        let asker = cluster.sessions.begin();
        let progress = Progress::new(method);
        let pin = pin.map(Arc::new);
        let state = State { progress, pin, route: None, kept: None, handler: None, request: None };
        Self { cluster, client, asker, clock: None, state: Mutex::new(state) }
    }

    /// Marks the session as a request's. Its waiting time is measured if the reply or a log line tells it.
    pub(crate) fn of_request(mut self) -> Self {
        let is_timed = self.cluster.config.server_timing == ServerTiming::Sent
            || log::log_enabled!(target: TARGET, log::Level::Debug);
        self.clock = is_timed.then(Arc::default);
        self
    }

    /// Raises the intent.
    pub(crate) fn declare(&self, declared: Declared) {
        self.state().progress.declare(declared);
    }

    /// Sets the name of the handler that asks from now on, for messages.
    pub(crate) fn set_handler(&self, handler: Cow<'static, str>) {
        self.state().handler = Some(handler);
    }

    pub(crate) fn handler(&self) -> Option<Cow<'static, str>> {
        self.state().handler.clone()
    }

    pub(crate) fn declared(&self) -> Declared {
        self.state().progress.declared()
    }

    pub(crate) fn method(&self) -> MethodKind {
        self.state().progress.method()
    }

    /// The chosen server, the reason, and how long the session has waited so far. `None` if no server is chosen, or if
    /// the time is not measured.
    pub(crate) fn report(&self) -> Option<(Choice, Duration)> {
        let took = self.clock.as_ref()?.read();
        Some((self.choice()?, took))
    }

    /// The chosen server and the reason. `None` until a server is chosen.
    pub(crate) fn choice(&self) -> Option<Choice> {
        self.state().route.as_ref().map(Route::choice)
    }

    /// Reads on from where the work with this pin stands. A slave that was chosen without it is left, as it may lack that
    /// work's writes.
    pub(crate) fn continue_from(&self, pin: Pin) {
        let mut state = self.state();
        let pin = match &state.pin {
            Some(own) => Pin::clone(own).merge(pin),
            None => pin,
        };
        state.pin = Some(Arc::new(pin));
        state.route.take_if(|route| route.decision.access == Access::SlaveReads);
    }

    /// The pin that the session goes on with, signed.
    pub(crate) fn carried_pin(&self) -> Option<String> {
        let pin = self.carried()?;
        self.cluster.pins.as_ref().map(|pins| pins.sign_again(&pin))
    }

    fn carried(&self) -> Option<Arc<Pin>> {
        self.state().pin.clone()
    }

    /// The pin that the writes so far leave.
    pub(crate) async fn pin(&self) -> Option<String> {
        let pin = self.state().progress.pin_kind();
        self.sign(pin).await
    }

    /// Returns the pin that the reply has to carry, if any, when it is about to leave.
    ///
    /// `in_use` says that a handle is still alive, in a streamed body or a spawned task: if the
    /// request means to write, it may do so after the reply. `request` names it then.
    pub(crate) async fn answer(&self, in_use: bool, request: impl FnOnce() -> String) -> Option<String> {
        let pin = {
            let mut state = self.state();
            state.request = in_use.then(request);
            state.progress.answer(in_use)
        };
        self.sign(pin).await
    }

    async fn sign(&self, pin: PinKind) -> Option<String> {
        match pin {
            PinKind::NoPin => None,
            PinKind::Window => self.cluster.window_pin(self.carried().as_deref()),
            PinKind::Position { first, at } => self.cluster.pin(self.carried().as_deref(), first, at).await,
        }
    }

    /// Checks out a connection to the session's server, and begins a query on it. Chooses a server at the first query,
    /// and again if that server lets the session down.
    pub(crate) async fn check_out(&self) -> Result<(Checkout<DB>, UnderWay<'_, DB>), sqlx::Error> {
        let retries = &self.cluster.counts.retries;
        loop {
            let (mut checkout, decision) = match self.next() {
                Next::Started(checkout, decision) => {
                    return Ok((checkout, UnderWay { session: self, decision }));
                }
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
                retries.add(RetryCause::MasterChanged);
                continue;
            }
            match self.has_own_writes(decision, &mut checkout).await {
                Ok(true) if self.start(&mut self.state(), decision, &checkout) => {
                    return Ok((checkout, UnderWay { session: self, decision }));
                }
                Ok(has_own_writes) => {
                    retries.add(if has_own_writes { RetryCause::Moved } else { RetryCause::Behind });
                    checkout.put_back();
                    let mut state = self.state();
                    state.progress.found_behind();
                    state.leave(decision);
                }
                Err(failed) => {
                    if failed.remains != Remains::Usable && !checkout.pool().health().is_shared() {
                        checkout.pool().health().suspect(&failed.error);
                    }
                    checkout.put_back_after(&failed);
                    self.move_on(decision, Failure::Unreachable(failed.error))?;
                    retries.add(RetryCause::Broken);
                }
            }
        }
    }

    /// The writer for a connection that a handler holds.
    pub(crate) fn writer(self: &Arc<Self>, decision: Decision) -> Writer<DB> {
        Writer(decision.access.writes().then(|| self.clone()))
    }

    /// Keeps the connection of a query that ended well for the next one.
    pub(crate) fn keep(&self, checkout: Checkout<DB>) {
        let mut state = self.state();
        let kept = match &state.kept {
            Some(kept) => kept.keep(checkout),
            None => Err(checkout),
        };
        // Of two statements that ran side by side, the latter's connection is kept.
        let before = kept
            .err()
            .and_then(|checkout| mem::replace(&mut state.kept, KeptConnection::new(checkout, self.asker)));
        drop((state, before));
    }

    /// Gives up the kept connection, because there may be no further query.
    pub(crate) fn release(&self) {
        let kept = self.state().kept.take();
        drop(kept);
    }

    /// Makes this session the holder of a connection. Returns true if the server has what the client wrote, or was not
    /// chosen for that.
    async fn has_own_writes(
        &self,
        decision: Decision,
        checkout: &mut Checkout<DB>,
    ) -> Result<bool, StatementError> {
        let pin = {
            let state = self.state();
            checkout.state().take_for(self.asker, || Holder {
                asker: self.asker,
                handler: state.handler.clone(),
                clock: self.clock.clone(),
            });
            match state.pin.clone().filter(|pin| has_to_have(decision, pin).is_some()) {
                Some(pin) => pin,
                None => return Ok(true),
            }
        };
        match has_to_have(decision, &pin) {
            Some(position) => Box::pin(self.cluster.has_replayed(checkout, position)).await,
            None => Ok(true),
        }
    }

    /// Leaves a server that let the session down for another one. Fails with the error of the server if there is none.
    pub(crate) fn move_on(&self, decision: Decision, failure: Failure) -> Result<(), sqlx::Error> {
        let letdown = match failure {
            Failure::Busy(_) => Letdown::Busy,
            Failure::Unreachable(_) => Letdown::Unreachable,
        };
        let mut state = self.state();
        let may_move = state.progress.fail(decision.access, decision.server, letdown) && {
            state.leave(decision);
            let next = self.choose(&mut state).decision.access;
            !state.progress.is_exhausted(next)
        };
        if may_move {
            return Ok(());
        }
        state.progress.refuse();
        Err(failure.into())
    }

    /// True if a query found no server. The client may try again later.
    pub(crate) fn was_refused(&self) -> bool {
        self.state().progress.was_refused()
    }

    /// Where the next query goes.
    pub(crate) fn route(&self) -> Route<DB> {
        self.choose(&mut self.state()).clone()
    }

    /// As [`route`](Self::route), with the connection that was kept if it leads there. A kept connection to another
    /// server is given up, so that no session holds two connections for one query.
    fn next(&self) -> Next<DB> {
        let mut state = self.state();
        let Some(kept) = state.kept.take() else {
            return Next::Route(self.choose(&mut state).clone());
        };
        let route = self.choose(&mut state);
        let decision = route.decision;
        match route.pool().and_then(|pool| kept.claim(pool)) {
            Some(checkout) => {
                state.kept = Some(kept);
                let is_free = state.pin.as_ref().is_none_or(|pin| has_to_have(decision, pin).is_none());
                match is_free && self.start(&mut state, decision, &checkout) {
                    true => Next::Started(checkout, decision),
                    false => Next::Kept(checkout, decision),
                }
            }
            None => {
                let next = Next::Route(route.clone());
                drop((state, kept));
                next
            }
        }
    }

    fn choose<'s>(&self, state: &'s mut State<DB>) -> &'s Route<DB> {
        let intent = state.progress.intent();
        let present = self.cluster.mastership.term();
        let route = match state.route.take() {
            Some(route) if !route.has_left() && route.stays(present, intent) => route,
            _ => {
                state.progress.leave();
                let failed = state.progress.failed();
                let route = self.cluster.choose(intent, self.client, state.pin.as_deref(), failed);
                route.count();
                route
            }
        };
        state.route.insert(route)
    }

    /// Notes that a query is about to run. Returns whether it may.
    fn start(&self, state: &mut State<DB>, decision: Decision, checkout: &Checkout<DB>) -> bool {
        match state.progress.start(decision.access, checkout.instance(), Instant::now) {
            Start::Allowed => true,
            Start::Moved => false,
            Start::AllowedWithoutPin => {
                warn!(
                    "Database `{}` is written to after the reply of {} has left: the client carries no pin for this \
                     write, and may not see it at once. Write before replying.",
                    self.cluster.database,
                    state.request.as_deref().unwrap_or("its request"),
                );
                true
            }
        }
    }

    /// Ignores poison: nothing in here can panic halfway through a change.
    fn state(&self) -> MutexGuard<'_, State<DB>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The position that the server has to have replayed, if it was chosen for that.
fn has_to_have(decision: Decision, pin: &Pin) -> Option<&Position> {
    match (decision.reason, pin.needs()) {
        (Reason::CaughtUp, Needed::Position(position)) => Some(position),
        _ => None,
    }
}

impl<DB: Driver> Drop for Session<DB> {
    fn drop(&mut self) {
        self.cluster.sessions.end();
        // The line about a request was logged when its reply left.
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let (Reply::Pending, Some(route)) = (state.progress.reply(), &state.route) {
            let who = state.handler.as_deref().unwrap_or("A job");
            debug!(target: TARGET, "{who} asked database `{}`: {}.", self.cluster.database, route.choice());
        }
    }
}

impl<DB: Driver> fmt::Debug for Session<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("database", &self.cluster.database)
            .field("method", &self.method())
            .field("handler", &self.handler())
            .field("pin", &self.carried())
            .field("choice", &self.choice())
            .finish_non_exhaustive()
    }
}
