//! Looks at each server from lift-off to shutdown. The monitor works in the background of all requests and on
//! connections of its own, since a busy pool does not mean a sick server. [`Verdicts`] decides what the probes mean.
//! The monitor asks it, and carries out the verdicts.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use log::{error, info, warn};
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
    Access, Activity, Conn, ConnectionInfo, Depth, Driver, Fault, Instance, Observation, Options,
    ReportedRole, SessionId,
};
use crate::config::Checks;
use crate::health::{
    FAILURES_BEFORE_FAILOVER, Finding, Health, Look, Mastership, NodeState, Pooling, Role, Succession,
    Verdict, Verdicts, Why,
};
use crate::pool::{Ended, ServerSession};
use crate::position::{Lag, Position};

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
        let verdicts = Verdicts::new(mastership.term().master, &judged, checks.clone());
        let watch = Arc::new(Watch { servers, mastership, checks, verdicts: Mutex::new(verdicts) });
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
        self.watch.verdicts().stood_before(time)
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

/// True if the address does not lead to the kind of server that it is for. The next connection may lead there, while
/// the one that is open stays where it is.
fn leads_elsewhere(health: &Health) -> bool {
    matches!(
        health.state(),
        NodeState::Standby | NodeState::MasterItself | NodeState::SecondMaster | NodeState::Promoted
    )
}

/// True for a look that ended because of `check_timeout`.
fn is_timed_out(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(error) if error.kind() == io::ErrorKind::TimedOut)
}

/// The access that the monitor asks a server for.
fn access<DB: Driver>(server: &Server<DB>) -> Access {
    let is_master = server.health.role() == Role::Master || server.purpose == Purpose::ReadUrl;
    if is_master { Access::MasterReads } else { Access::SlaveReads }
}

pub(super) struct Watch<DB: Driver> {
    pub(super) servers: Arc<Servers<DB>>,
    mastership: Arc<Mastership>,
    pub(super) checks: Checks,
    verdicts: Mutex<Verdicts>,
}

impl<DB: Driver> Watch<DB> {
    pub(super) fn master(&self) -> Arc<Server<DB>> {
        self.servers.master(&self.mastership)
    }

    /// Adds a server to the list.
    pub(super) fn add(&self, server: Arc<Server<DB>>) {
        self.verdicts().add(server.id());
        self.servers.add(&server);
    }

    /// Removes a server from the list. Returns false for the master, which is never removed.
    pub(super) fn remove(&self, server: &Server<DB>) -> bool {
        // INVARIANT: no server becomes the master while this is held.
        let mut verdicts = self.verdicts();
        if server.health.role() == Role::Master {
            return false;
        }
        verdicts.remove(server.id());
        self.servers.remove(server.id());
        drop(verdicts);
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
            () = server.depart() => {}
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
        let (mut probing, mut attempts, mut failures, mut missed) = (None, Attempts::new(), 0, 0);
        loop {
            let began = Instant::now();
            let depth = self.verdicts().depth(server.id());
            let was_open = probing.is_some();
            let observed = self.observe(server, &mut probing, &mut attempts, depth).await;
            failures = match &observed {
                Ok(_) => 0,
                // The server answers, though it has no connection to spare.
                Err(error) if DB::judge(error).fault == Fault::Full => 0,
                Err(_) => failures + 1,
            };
            if observed.is_ok() && was_open {
                server.health.record_round_trip(began.elapsed());
            }
            if failures == 1
                && let Some(discovered) = &server.discovered
            {
                discovered.lookups.request();
            }
            self.judge(server, began, probing.as_ref().and_then(|probing| probing.instance), observed);
            #[cfg(feature = "status")]
            server.health.remember();
            server.health.probes.send_modify(|probes| *probes += 1);
            if failures >= FAILURES_BEFORE_FAILOVER {
                // Queries under way will never be answered.
                server.pools.all().for_each(|pool| pool.end_earlier_generations(Ended::Dead));
            }
            self.ask_about_sessions(server, began, &mut probing, &mut missed).await;
            if leads_elsewhere(&server.health)
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
        let access = access(server);
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
                    DB::set_up(conn, access(server), false).await?;
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
                DB::set_up(&mut conn, access(server), false).await?;
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
                        .and_then(|mut observed| self.verdicts().position_for_slaves(&mut observed))
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

    fn judge(
        &self,
        server: &Server<DB>,
        began: Instant,
        instance: Option<Instance>,
        observed: Result<Observation, sqlx::Error>,
    ) {
        let health = &server.health;
        // INVARIANT: one verdict is carried out before the next one is made, so that an earlier one is never the last word.
        let mut verdicts = self.verdicts();
        let finding = match observed {
            Ok(_) if health.is_follower() && health.copied().is_none() => Finding::NotCopied,
            Ok(mut observed) => {
                let told = verdicts.position_for_slaves(&mut observed);
                observed.position = told.or_else(|| health.copied());
                Finding::Observed(observed)
            }
            Err(error) if DB::judge(&error).fault == Fault::Full => Finding::Full,
            Err(error) => {
                health.went_down(&error);
                let reads = server.pools.all().filter(|pool| !pool.access().writes());
                reads.for_each(|pool| pool.end_earlier_generations(Ended::ServerDown));
                Finding::Failed
            }
        };
        if server.purpose == Purpose::ReadUrl || !verdicts.knows(server.id()) {
            match finding {
                Finding::Observed(Observation { role: ReportedRole::Slave, .. })
                    if server.purpose == Purpose::ReadUrl =>
                {
                    health.found(NodeState::Standby, DB::NO_WRITES);
                }
                Finding::Observed(_) => health.found(NodeState::Up, ""),
                Finding::Full => health.found_full(),
                Finding::Failed | Finding::NotCopied => {}
            }
            return;
        }
        if let Finding::Observed(_) = finding {
            verdicts.record_instance(server.id(), instance);
        }
        let look = Look { began: began.into_std(), ended: Instant::now().into_std() };
        let verdict = verdicts.judge(server.id(), health.log(), look, &finding);
        self.carry_out(server, &verdict);
        if finding == Finding::Full {
            health.found_full();
        }
        drop(verdicts);
        if let (Role::Slave, Finding::Observed(Observation { position: Some(position), .. })) =
            (health.role(), finding)
        {
            health.record_position(position, instance, began.into_std());
        }
    }

    fn carry_out(&self, server: &Server<DB>, verdict: &Verdict) {
        server.health.set_lag(verdict.lag);
        if !verdict.errant.is_empty() {
            warn!(
                "The {} has transactions that the master lacks, from these sources: {}. It serves all the same. If they were \
                 written there, all other servers get them once it is promoted: make it anew from a copy of the master, and \
                 let nothing write there (`super_read_only`).",
                server.health, verdict.errant,
            );
        }
        if let Some(new) = verdict.new_master.and_then(|new| self.servers.get(new)) {
            let old = self.servers.master(&self.mastership);
            let (old_one, new_one) = (&old.health, &new.health);
            match (verdict.succession, old_one.state()) {
                (Succession::SameProcess, _) => {
                    warn!(
                        "The {new_one} leads to the same server as the {old_one}: writes go there from now on."
                    );
                }
                (Succession::Promotion, NodeState::Suspect | NodeState::Down) => error!(
                    "The {old_one} is gone, and the {new_one} was promoted: writes go there from now on. Name it as \
                     `url` before the next launch."
                ),
                (Succession::Promotion, _) => {
                    error!(
                        "The {old_one} takes no writes, and the {new_one} does: writes go there from now on. Name it \
                         as `url` before the next launch."
                    );
                }
            }
            self.mastership.pass_to(new.id());
            old.health.changed_role();
            new.health.changed_role();
            // Connections that come back from the old master are not written on any more.
            old.health.next_generation();
            if verdict.succession == Succession::Promotion {
                old.pools.all().for_each(|pool| pool.end_earlier_generations(Ended::Dead));
            }
            old.pools_with_read_url()
                .filter(|pool| pool.role() == Role::Master)
                .for_each(|pool| pool.close_plain());
            // A slave that lacks something of the new master has to be found before a client reads there.
            self.servers.all().iter().for_each(|server| server.health.request_probe());
        }
        for (id, state, why) in &verdict.states {
            if let Some(server) = self.servers.get(*id) {
                server.health.found(*state, self.explain(&server.health, *state, *why));
            }
        }
    }

    fn explain(&self, health: &Health, state: NodeState, why: Why) -> String {
        match (state, why) {
            (_, Why::Lag(Lag::AtMost(lag))) => format!("{:.1} s", lag.as_secs_f64()),
            (_, Why::SinceFailover(lag)) => format!("up to {:.1} s", lag.as_secs_f64()),
            (_, Why::Lag(Lag::MoreThan(lag))) => format!("more than {:.1} s", lag.as_secs_f64()),
            (_, Why::NoWrites(why)) => why.into(),
            (_, Why::Rival { rival, timelines }) => {
                let rival = self.servers.get(rival).map(|rival| rival.health.to_string()).unwrap_or_default();
                let timelines = timelines.map_or_else(String::new, |(ours, theirs)| {
                    format!(" (timelines {ours} and {theirs}: the later one was promoted)")
                });
                format!(
                    "The {health} and the {rival} both take writes{timelines}: nothing is written to either, as what goes \
                     to the wrong one is lost. Stop the one that is out of date, or make it a standby of the other, and \
                     name the other as `url`."
                )
            }
            (NodeState::LagUnknown, Why::Full) => {
                "It has no connection to spare for health probes: raise the limit of the server, or lower \
                 `max_connections` of its pools."
                    .into()
            }
            (NodeState::LagUnknown, _) => {
                "It, or the master, tells no position in the log that can be compared. Say \
                                           `unknown_lag = \"use\"` if it may serve all the same."
                    .into()
            }
            (NodeState::Stranger, _) => {
                "Correct its URL, or make it anew from a copy of the master. If it is a logical replica, say \
                 `logical = true` in its entry of `slaves`."
                    .into()
            }
            (NodeState::Diverged, _) => DB::REJOIN.into(),
            (NodeState::Standby, _) => DB::NO_WRITES.into(),
            (NodeState::SecondMaster, _) if self.master().health.state() == NodeState::Standby => {
                let follow =
                    if self.checks.follow_promotion { "" } else { ", or say `follow_promotion = true`" };
                format!("The configured master takes no writes: name this server as `url`{follow}.")
            }
            (NodeState::Promoted, _) if !self.checks.follow_promotion => {
                " Name it as `url`, unless that is the address of a balancer, which leads there by itself."
                    .into()
            }
            (NodeState::SecondMaster, _) => {
                "Make it replicate the master or, if it is to be the master, name it as `url`.".into()
            }
            _ => String::new(),
        }
    }

    fn verdicts(&self) -> MutexGuard<'_, Verdicts> {
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner)
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
