//! Looks at each server from lift-off to shutdown. The monitor works in the background of all requests and on
//! connections of its own, since a busy pool does not mean a sick server. [`Fleet`] decides what the probes mean. The
//! monitor asks the servers, and carries out the effects on connections.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use log::{error, info};
use rocket::futures::FutureExt;
use rocket::futures::future::{BoxFuture, join_all};
use rocket::tokio;
use rocket::tokio::sync::{Notify, oneshot};
use rocket::tokio::task::JoinHandle;
use rocket::tokio::time::{Instant, sleep, sleep_until, timeout};
use sqlx::{ConnectOptions, Connection};

use super::Servers;
use super::discovery::{Discovery, Lookups, Resolver};
use super::opening::Opening;
use super::probing::{Attempts, Probing};
use super::server::{Purpose, Server};
use crate::backend::{
    Activity, Conn, ConnectionInfo, Depth, Driver, Fault, Instance, Observation, Options, ReportedRole,
    SessionId,
};
use crate::config::Checks;
use crate::health::{
    Answer, Effects, Ends, Fleet, Look, Mastership, NodeState, Pooling, Probe, Remedies, Role,
};
use crate::pool::{Ended, ServerSession};
use crate::position::Position;

/// The shortest time between two probes of a server about which something is odd.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);

/// The interval at which the pools are tended.
const TEND_INTERVAL: Duration = Duration::from_millis(500);

/// The options by which the monitor connects to a server, and the questions of requests that it answers.
pub(super) struct Prober<DB: Driver> {
    pub(super) options: Options<DB>,
    pub(super) position_requests: PositionRequests,
}

/// The position of the master's log, and the instance that told it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) position: Position,
    pub(super) instance: Option<Instance>,
}

/// Requests that ask for the position of the master's log.
#[derive(Debug, Default)]
pub(super) struct PositionRequests {
    waiting: Mutex<Vec<oneshot::Sender<Option<Seen>>>>,
    asked: Notify,
}

impl PositionRequests {
    /// Asks for the position. One answer serves all requests that have asked before the look began.
    pub(super) async fn ask(&self) -> Option<Seen> {
        let (answer, answered) = oneshot::channel();
        self.waiting().push(answer);
        self.asked.notify_one();
        answered.await.ok()?
    }

    fn take(&self) -> Vec<oneshot::Sender<Option<Seen>>> {
        std::mem::take(&mut *self.waiting())
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<oneshot::Sender<Option<Seen>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The monitor of one database. Its tasks end when it is dropped.
pub(super) struct Monitor<DB: Driver> {
    watch: Arc<Watch<DB>>,
    /// One for each name that is looked up.
    lookups: Vec<Arc<Lookups>>,
    tasks: Vec<JoinHandle<()>>,
}

impl<DB: Driver> Monitor<DB> {
    /// Sets up the monitor. It looks at no server before [`begin`](Self::begin), unless a probe is requested.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub(super) fn new(servers: Arc<Servers<DB>>, opening: &Arc<Opening<DB>>, resolver: &Resolver) -> Self {
        let (mastership, checks) = (opening.mastership.clone(), opening.config.checks.clone());
        let database = opening.database;
        let all = servers.all();
        let judged: Vec<_> = all
            .iter()
            .filter(|server| server.purpose != Purpose::ReadUrl)
            .map(|server| server.id())
            .collect();
        let remedies = Remedies { no_writes: DB::NO_WRITES, rejoin: DB::REJOIN };
        let fleet = Fleet::new(&judged, mastership.clone(), checks.clone(), remedies);
        let watch = Arc::new(Watch { servers, mastership, checks, fleet: Mutex::new(fleet) });
        let attend = |server: &Arc<Server<DB>>| tokio::spawn(watch.clone().attend(server.clone()));
        let mut tasks: Vec<_> = all.iter().map(attend).collect();
        let tended = watch.clone();
        tasks.push(tokio::spawn(async move {
            let what = format!("The upkeep of the connections to database `{database}`");
            supervise(&what, || tended.tend().boxed()).await;
        }));
        let mut lookups = Vec::new();
        for discovery in Discovery::all(opening, resolver, &watch) {
            lookups.push(discovery.lookups.clone());
            tasks.push(tokio::spawn(async move {
                discovery.lookups.requested().await;
                let what = format!(
                    "The look-up of the addresses of the slave `{}` of database `{database}`",
                    discovery.entry().server.name
                );
                supervise(&what, || discovery.run().boxed()).await;
            }));
        }
        Self { watch, lookups, tasks }
    }

    /// Waits until every name has been looked up, and every server has been looked at or has not answered in time. A
    /// slave is looked at until its lag is known, which is soon if the lag is small. Otherwise all reads that the slave
    /// could serve would go to the master whenever an application is started while the master is busy.
    pub(super) async fn begin(&self) {
        let found = join_all(self.lookups.iter().map(|lookups| lookups.first()));
        let _ = timeout(self.watch.checks.timeout * 2, found).await;
        let all = self.watch.servers.all();
        let (master, others): (Vec<_>, Vec<_>) =
            all.iter().partition(|server| server.health.role() == Role::Master);
        for servers in [master, others] {
            let probed = servers.iter().map(|server| {
                let mut probes = server.health.probes.subscribe();
                async move {
                    loop {
                        server.health.request_probe();
                        // The slave may have replayed transactions that the master wrote after the master was looked
                        // at.
                        if server.health.state() == NodeState::New {
                            self.watch.master().health.request_probe();
                        }
                        if probes.changed().await.is_err() || server.health.state() != NodeState::New {
                            return;
                        }
                    }
                }
            });
            let _ = timeout(self.watch.checks.timeout * 2, join_all(probed)).await;
        }
    }

    /// The latest position that the master is known to have had before `time`.
    pub(super) fn stood_before(&self, time: std::time::Instant) -> Option<Position> {
        self.watch.fleet().verdicts.stood_before(time)
    }

    pub(super) fn end(&self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl<DB: Driver> Drop for Monitor<DB> {
    fn drop(&mut self) {
        self.end();
    }
}

/// Starts work again if it panics. Otherwise changes of a server would stay unnoticed.
async fn supervise<'a>(what: &str, mut work: impl FnMut() -> BoxFuture<'a, ()>) {
    while AssertUnwindSafe(work()).catch_unwind().await.is_err() {
        error!(
            "{what} has panicked, and is started again. This is a defect of rocket_replicated: please report it, with \
             the message of the panic."
        );
        sleep(LEAST_INTERVAL).await;
    }
}

/// New connections in a row that lead to other servers, after which a server counts as gone from the address.
/// Connections to it end then, as they may stay silent for ever. A proxy that draws one of two servers at random misses
/// the same one as often about once in a million times.
const MISSED: u32 = 20;

/// The server that a new connection to an address leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reached {
    /// A server that has some of the sessions in question.
    One,
    Another,
    Nothing,
}

/// Asks a server about sessions, and ends the dead ones. If the server does not know the session that asks, a pooler is
/// in between.
async fn ask_about<'s, DB: Driver>(
    conn: &mut Conn<DB>,
    own: SessionId,
    asked: impl Iterator<Item = &'s ServerSession<DB>> + Clone,
    patience: Duration,
) -> Result<Pooling, sqlx::Error> {
    let ids: Vec<_> = std::iter::once(own).chain(asked.clone().map(|session| session.id)).collect();
    let activities = DB::sessions(conn, &ids).await?;
    let [Activity::Busy, activities @ ..] = &*activities else { return Ok(Pooling::Transactions) };
    asked.zip(activities).for_each(|(session, activity)| session.judge(*activity, patience));
    Ok(Pooling::None)
}

/// True for a look that ended because of `check_timeout`.
fn is_timed_out(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(error) if error.kind() == io::ErrorKind::TimedOut)
}

pub(super) struct Watch<DB: Driver> {
    pub(super) servers: Arc<Servers<DB>>,
    mastership: Arc<Mastership>,
    pub(super) checks: Checks,
    fleet: Mutex<Fleet>,
}

impl<DB: Driver> Watch<DB> {
    pub(super) fn master(&self) -> Arc<Server<DB>> {
        self.servers.master(&self.mastership)
    }

    /// Adds a server to the list.
    pub(super) fn add(&self, server: Arc<Server<DB>>) {
        self.fleet().verdicts.add(server.id());
        self.servers.add(&server);
    }

    /// Removes a server from the list. Returns false for the master, which is never removed.
    pub(super) fn remove(&self, server: &Server<DB>) -> bool {
        // INVARIANT: no server becomes the master while this is held.
        let mut fleet = self.fleet();
        if server.health.role() == Role::Master {
            return false;
        }
        fleet.verdicts.remove(server.id());
        self.servers.remove(server.id());
        drop(fleet);
        server.leave();
        true
    }

    /// Looks at a server until it has left the cluster.
    pub(super) async fn attend(self: Arc<Self>, server: Arc<Server<DB>>) {
        let probe = format!("The health probe of the {}", server.health);
        let probed = async {
            // Outside of the supervised work, so that a probe that has panicked is started again without another
            // request.
            server.health.probe_requested.notified().await;
            supervise(&probe, || self.watch(&server).boxed()).await;
        };
        tokio::select! {
            () = probed => {}
            () = server.depart() => self.fleet().forget(server.id()),
        }
    }

    async fn tend(&self) {
        loop {
            sleep(TEND_INTERVAL).await;
            for server in self.servers.all().iter() {
                server.pools.all().for_each(|pool| pool.tend());
            }
        }
    }

    async fn watch(&self, server: &Server<DB>) {
        let (mut probing, mut attempts, mut missed) = (None, Attempts::new(), 0);
        loop {
            let (began, asked) = (Instant::now(), server.health.probe_access());
            let depth = self.fleet().verdicts.depth(server.id());
            let was_open = probing.is_some();
            let observed = self.observe(server, &mut probing, &mut attempts, depth).await;
            if observed.is_ok() && was_open {
                server.health.record_round_trip(began.elapsed());
            }
            let look = Look { began: began.into_std(), ended: Instant::now().into_std() };
            let instance = probing.as_ref().and_then(|probing| probing.instance);
            let answer = match observed {
                Ok(observed) => Answer::Observed(observed),
                Err(error) if DB::judge(&error).fault == Fault::Full => Answer::Full,
                Err(error) => Answer::Failed(error),
            };
            let effects = self.apply(server, Probe { look, asked, instance, answer });
            if effects.failures == 1
                && let Some(discovered) = &server.discovered
            {
                discovered.lookups.request();
            }
            #[cfg(feature = "status")]
            server.health.remember();
            self.ask_about_sessions(server, began, &mut probing, &mut missed).await;
            if effects.reconnect
                && let Some(Probing { conn, .. }) = probing.take()
            {
                let _ = timeout(self.checks.timeout, conn.close()).await;
            }
            self.rest(server, began, &mut probing, &mut attempts).await;
        }
    }

    /// Looks at a server. A connection that fails is given up. An attempt that takes too long to open one is not.
    ///
    /// A kept connection that breaks says nothing of the address, which may lead to another server by now. If the
    /// server tells its instance, a new connection is opened at once. If it does not, all connections may lead to the
    /// server that is gone.
    async fn observe(
        &self,
        server: &Server<DB>,
        probing: &mut Option<Probing<DB>>,
        attempts: &mut Attempts<DB>,
        depth: Depth,
    ) -> Result<Observation, sqlx::Error> {
        let was_kept = probing.as_ref().is_some_and(|probing| probing.instance.is_some());
        let mut observed = self.look(server, probing, attempts, depth).await;
        if was_kept && observed.as_ref().is_err_and(|error| !is_timed_out(error)) {
            *probing = None;
            observed = self.look(server, probing, attempts, depth).await;
        }
        match &observed {
            Ok(_) => self.arrive(server, probing).await,
            Err(_) => *probing = None,
        }
        observed
    }

    async fn look(
        &self,
        server: &Server<DB>,
        probing: &mut Option<Probing<DB>>,
        attempts: &mut Attempts<DB>,
        depth: Depth,
    ) -> Result<Observation, sqlx::Error> {
        let access = server.health.probe_access();
        let probing = match probing {
            Some(probing) => probing,
            None => {
                let opened = self.in_time(attempts.open(server, access, depth)).await?;
                let probing = probing.insert(opened.probing);
                match opened.observation {
                    Some(observation) => return Ok(observation),
                    None => probing,
                }
            }
        };
        self.in_time(DB::observe(&mut probing.conn, access, &mut probing.memory, depth)).await
    }

    async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        let patience = self.checks.timeout;
        timeout(patience, answer).await.unwrap_or_else(|_| {
            let message = format!("no answer within {patience:?} (`check_timeout`)");
            Err(io::Error::new(io::ErrorKind::TimedOut, message).into())
        })
    }

    /// Compares the instance of the monitor's connection with the one before. If they differ, the address has moved,
    /// and connections to the former instance are closed, because they may stay silent for ever. Behind a pooler they
    /// stay, as they lead to the new instance as well.
    async fn arrive(&self, server: &Server<DB>, probing: &mut Option<Probing<DB>>) {
        let health = &server.health;
        let Some(Probing { instance, .. }) = probing else { return };
        let moved = health.instance().zip(*instance).is_some_and(|(before, now)| before != now);
        if moved && !health.is_shared() && self.pooling(server, probing).await == Pooling::Unknown {
            return;
        }
        let instance = probing.as_ref().and_then(|probing| probing.instance);
        let Some(moved_to) = health.record_instance(instance) else { return };
        info!(
            "Another server process answers as the {health}: it was restarted, or its address has moved. Connections \
             to the process before are closed."
        );
        server.pools.all().for_each(|pool| pool.end_other_instances(moved_to, Duration::ZERO));
    }

    /// Finds out whether a pooler is in between that gives each transaction the session that is free. Behind such a
    /// pooler, a session that is gone or idle says nothing of the connection that was once told its number. That
    /// connection may be in the middle of a write in another session. A pooler shows when two connections have the same
    /// session, or one connection has several.
    async fn pooling(&self, server: &Server<DB>, probing: &mut Option<Probing<DB>>) -> Pooling {
        let pooling = self.test_pooling(server, probing).await;
        server.health.record_pooling(pooling);
        pooling
    }

    async fn test_pooling(&self, server: &Server<DB>, probing: &mut Option<Probing<DB>>) -> Pooling {
        /// The other connection comes first, as the session that the monitor has just used is the likeliest to be given
        /// out next. Then each is used twice in a row, for poolers that give sessions out in turn.
        const TURNS: [usize; 6] = [1, 0, 0, 1, 1, 0];

        let Some(known) = probing else { return Pooling::Unknown };
        if matches!(known.pooling, Pooling::None | Pooling::Transactions) {
            return known.pooling;
        }
        known.pooling = Pooling::Unknown;
        // Opening this connection takes about as long as opening the one before, and so do a few questions.
        let patience = self.checks.timeout.max(known.took * 2);
        let Ok(Ok(mut other)) = timeout(patience, server.prober.options.connect()).await else {
            return Pooling::Unknown;
        };
        let tested = timeout(patience, async {
            // The servers behind an address may have sessions of the same number.
            let mut sessions = [known.session.map(|session| (known.instance, session)), None];
            for turn in TURNS {
                let conn = if turn == 0 { &mut known.conn } else { &mut other };
                let ConnectionInfo { instance, session, .. } =
                    DB::set_up(conn, server.health.probe_access(), false).await?;
                let session = session.map(|session| (instance, session));
                let changed = sessions[turn].is_some_and(|before| session != Some(before));
                sessions[turn] = session;
                if changed || session.is_some() && sessions[0] == sessions[1] {
                    return Ok(Pooling::Transactions);
                }
            }
            let _ = other.close().await;
            Ok::<_, sqlx::Error>(Pooling::None)
        });
        let Ok(Ok(pooling)) = tested.await else {
            // The connection may be in the middle of an answer.
            *probing = None;
            return Pooling::Unknown;
        };
        known.pooling = pooling;
        if pooling == Pooling::Transactions {
            known.instance = None;
            server.health.found_pooler();
        }
        pooling
    }

    /// Finds out which connections are dead though their server is well, as when a gateway on the way has forgotten
    /// them. Also finds out whether the address leads to several servers.
    async fn ask_about_sessions(
        &self,
        server: &Server<DB>,
        began: Instant,
        probing: &mut Option<Probing<DB>>,
        missed: &mut u32,
    ) {
        match probing {
            Some(Probing { instance: Some(_), pooling: Pooling::Untested, .. }) => {
                self.pooling(server, probing).await;
            }
            // A server that does not tell its instance tells no sessions apart either.
            Some(Probing { instance: None, .. }) => server.health.record_pooling(Pooling::Unknown),
            Some(_) | None => {}
        }
        let Some(Probing { instance: Some(instance), session, opened, .. }) = probing else { return };
        let (instance, own) = (*instance, *session);
        let patience = (self.checks.interval + self.checks.timeout) * 2;
        // Another instance has answered lately, since this connection was opened, and this instance has just answered,
        // too.
        let lately = began.checked_sub(patience * 2).map_or(*opened, |since| since.max(*opened));
        let time = lately.into_std()..began.into_std();
        let shared = server.pools.all().any(|pool| pool.has_heard_of_other(instance, time.clone()));
        if shared {
            server.health.mark_shared(patience * 3);
        }
        // The address has moved. Where several servers share it, silence is no proof: a statement may take long there.
        let others_are_dead = !server.health.was_shared()
            && server.pools.all().any(|pool| pool.leads_elsewhere(instance, patience));
        let sessions = server.pools.all().flat_map(|pool| pool.questionable_sessions(patience));
        let (asked, elsewhere): (Vec<_>, Vec<_>) = sessions.partition(|session| session.instance == instance);
        if !server.health.was_shared() || elsewhere.is_empty() {
            *missed = 0;
        } else if self.ask_elsewhere(server, &elsewhere, patience).await == Reached::Another {
            *missed += 1;
            if *missed >= MISSED {
                server.pools.all().for_each(|pool| pool.end_other_instances(instance, patience));
            }
        } else {
            *missed = 0;
        }
        if asked.is_empty() && !others_are_dead || self.pooling(server, probing).await != Pooling::None {
            return;
        }
        if others_are_dead {
            server.pools.all().for_each(|pool| pool.end_other_instances(instance, patience));
        }
        let (Some(Probing { conn, .. }), Some(own)) = (&mut *probing, own) else { return };
        if asked.is_empty() {
            return;
        }
        match timeout(self.checks.timeout, ask_about(conn, own, asked.iter(), patience)).await {
            Ok(Ok(Pooling::Transactions)) => server.health.found_pooler(),
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => {
                *probing = None;
                server.health.request_probe();
            }
        }
    }

    /// Asks about the sessions on a new connection, which may lead to another of the servers that share an address.
    async fn ask_elsewhere(
        &self,
        server: &Server<DB>,
        sessions: &[ServerSession<DB>],
        patience: Duration,
    ) -> Reached {
        let asked = timeout(self.checks.timeout, async {
            let mut conn = server.prober.options.connect().await?;
            let ConnectionInfo { instance, session, .. } =
                DB::set_up(&mut conn, server.health.probe_access(), false).await?;
            let theirs: Vec<_> =
                sessions.iter().filter(|session| Some(session.instance) == instance).collect();
            let reached = if theirs.is_empty() { Reached::Another } else { Reached::One };
            if let Some(own) = session.filter(|_| reached == Reached::One) {
                ask_about(&mut conn, own, theirs.into_iter(), patience).await?;
            }
            let _ = conn.close().await;
            Ok::<_, sqlx::Error>(reached)
        });
        // The next look at the server asks again.
        asked.await.map_or(Reached::Nothing, |asked| asked.unwrap_or(Reached::Nothing))
    }

    /// Waits until the next probe is due. Answers position requests meanwhile.
    async fn rest(
        &self,
        server: &Server<DB>,
        began: Instant,
        probing: &mut Option<Probing<DB>>,
        attempts: &mut Attempts<DB>,
    ) {
        let health = &server.health;
        let interval = self.checks.interval;
        let is_master = health.role() == Role::Master;
        let mut master_probed = self.servers.master(&self.mastership).health.probes.subscribe();
        // The master is looked at first, so that slaves have a moment to replay its latest writes.
        let (period, head_start) = (interval.mul_f64(0.7 + 0.2 * fastrand::f64()), interval / 10);
        let mut due = if is_master { began + period } else { began + interval };
        due = due.max(Instant::now() + head_start);
        loop {
            tokio::select! {
                () = sleep_until(due) => return,
                () = health.probe_requested.notified() => due = due.min(began + LEAST_INTERVAL),
                () = attempts.opened() => due = due.min(began + LEAST_INTERVAL),
                _ = master_probed.changed(), if !is_master => {
                    due = due.min(Instant::now() + head_start);
                }
                () = server.prober.position_requests.asked.notified() => {
                    let waiting = server.prober.position_requests.take();
                    let observed = self.observe(server, probing, attempts, Depth::Light).await;
                    if observed.is_err() {
                        health.request_probe();
                    }
                    let instance = probing.as_ref().and_then(|probing| probing.instance);
                    let seen = observed
                        .ok()
                        .filter(|observed| observed.role != ReportedRole::Slave)
                        .and_then(|mut observed| self.fleet().verdicts.position_for_slaves(&mut observed))
                        // Every slave includes the position of an empty log, so that a pin with it would not lead to
                        // the write.
                        .filter(|position| !position.is_empty())
                        .map(|position| Seen { position, instance });
                    for answer in waiting {
                        let _ = answer.send(seen.clone());
                    }
                }
            }
        }
    }

    fn apply(&self, server: &Server<DB>, probe: Probe) -> Effects {
        let mut fleet = self.fleet();
        let find = |id| self.servers.get(id).map(|server| server.health.clone());
        let effects = fleet.apply(&server.health, probe, find);
        let all = self.servers.all();
        // A server that is leaving is in no list.
        let others = all.iter().map(AsRef::as_ref).filter(|other| other.id() != server.id());
        for pool in others.chain([server]).flat_map(|server| server.pools.all()) {
            match effects.ends(pool.health().id(), pool.access()) {
                Some(Ends::Reads) => pool.end_earlier_generations(Ended::ServerDown),
                Some(Ends::All) => pool.end_earlier_generations(Ended::Dead),
                None => {}
            }
        }
        if let Some(old) = effects.former_master.and_then(|former| self.servers.get(former)) {
            old.pools_with_read_url()
                .filter(|pool| pool.role() == Role::Master)
                .for_each(|pool| pool.close_plain());
            // A slave that lacks something of the new master has to be found before a client reads there.
            all.iter().for_each(|server| server.health.request_probe());
        }
        effects
    }

    fn fleet(&self) -> MutexGuard<'_, Fleet> {
        self.fleet.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use rocket::futures::FutureExt;

    use super::supervise;

    #[rocket::async_test]
    async fn work_that_panics_is_started_again() {
        let mut runs = 0;
        supervise("The work", || {
            runs += 1;
            let run = runs;
            async move { assert!(run > 2, "this panic is part of the test") }.boxed()
        })
        .await;
        assert_eq!(runs, 3);
    }
}
