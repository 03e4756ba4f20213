//! Looks at each server from lift-off to shutdown, in the background of all requests and on connections
//! of its own, since a busy pool is not a sick server; and judges by what all of them tell:
//!
//! | what a probe finds                                             | the server is                        |
//! |----------------------------------------------------------------|--------------------------------------|
//! | nothing, within `check_timeout`                                | down                                 |
//! | a slave that takes writes                                      | left out; see [`Judge::successor`]   |
//! | a slave of another system                                      | left out                             |
//! | a slave further behind than `max_lag`                          | left out                             |
//! | a master in recovery                                           | not to be written to                 |
//! | anything else, for a slave that was not used twice in a row    | used                                 |
//!
//! A slave is looked at right after the master was: how far it is behind is since when the master has
//! been further than it. While the master is gone, nothing is known of that, and nobody left out for it.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use log::error;
use rocket::futures::future::join_all;
use rocket::tokio;
use rocket::tokio::sync::{Notify, oneshot};
use rocket::tokio::task::JoinHandle;
use rocket::tokio::time::{Instant, sleep_until, timeout};
use sqlx::ConnectOptions;

use crate::backend::{Access, Driver, Fault, Observation, Options, Standing};
use crate::config::Checks;
use crate::health::{Health, NodeState};
use crate::position::{History, Lag, Position};

/// Between two probes of a server that raises doubts, at least.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);

/// So many probes in a row that fail, and the master is gone for good.
const GONE: u32 = 3;

/// The master is the first of the servers.
pub(crate) const MASTER: usize = 0;

/// A server, and how the monitor connects to it.
pub(crate) struct Server<DB: Driver> {
    pub(crate) part: Part,
    pub(crate) options: Options<DB>,
    pub(crate) health: Arc<Health>,
    pub(crate) questions: Questions,
}

/// What a server is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Master,
    Slave,
    /// The way to the master by which reads go there, where that is another one.
    MasterReads,
}

/// Requests that want to know where the master's log stands.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    waiting: Mutex<Vec<oneshot::Sender<Option<Position>>>>,
    asked: Notify,
}

impl Questions {
    /// One answer serves all who have asked before it was looked up.
    async fn ask(&self) -> Option<Position> {
        let (answer, answered) = oneshot::channel();
        self.waiting().push(answer);
        self.asked.notify_one();
        answered.await.ok()?
    }

    fn take(&self) -> Vec<oneshot::Sender<Option<Position>>> {
        std::mem::take(&mut *self.waiting())
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<oneshot::Sender<Option<Position>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends with the last handle.
pub(crate) struct Monitor<DB: Driver> {
    watch: Arc<Watch<DB>>,
    task: JoinHandle<()>,
}

impl<DB: Driver> Monitor<DB> {
    /// Looks at no server before [`begin`](Self::begin), unless somebody doubts it.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub(crate) fn new(servers: Vec<Server<DB>>, checks: Checks) -> Self {
        let judge = Mutex::new(Judge::new(servers.len()));
        let watch = Arc::new(Watch { servers, checks, office: AtomicUsize::new(MASTER), judge });
        let all = watch.clone();
        let task = tokio::spawn(async move {
            join_all((0..all.servers.len()).map(|index| all.watch(index))).await;
        });
        Self { watch, task }
    }

    /// Ready once every server has been looked at, or has not answered in time.
    pub(crate) async fn begin(&self) {
        let (master, others) = self.servers().split_at(MASTER + 1);
        for servers in [master, others] {
            let probed = servers.iter().map(|server| {
                let mut probes = server.health.probes.subscribe();
                server.health.doubt();
                async move { probes.wait_for(|probes| *probes > 0).await.is_ok() }
            });
            let _ = timeout(self.watch.checks.timeout * 2, join_all(probed)).await;
        }
    }

    /// Which server is the master.
    pub(crate) fn office(&self) -> usize {
        self.watch.office()
    }

    /// Where the master's log stands, at least. `None` if it does not tell.
    pub(crate) async fn position(&self) -> Option<Position> {
        self.watch.servers[self.office()].questions.ask().await
    }

    pub(crate) fn servers(&self) -> &[Server<DB>] {
        &self.watch.servers
    }

    pub(crate) fn end(&self) {
        self.task.abort();
    }
}

impl<DB: Driver> Drop for Monitor<DB> {
    fn drop(&mut self) {
        self.end();
    }
}

struct Watch<DB: Driver> {
    servers: Vec<Server<DB>>,
    checks: Checks,
    office: AtomicUsize,
    judge: Mutex<Judge>,
}

impl<DB: Driver> Watch<DB> {
    fn office(&self) -> usize {
        self.office.load(Ordering::Acquire)
    }

    async fn watch(&self, index: usize) {
        let server = &self.servers[index];
        let mut conn = None;
        server.health.doubted.notified().await;
        loop {
            let began = Instant::now();
            let observed = self.observe(index, &mut conn).await;
            self.judge(index, began, observed);
            server.health.probes.send_modify(|probes| *probes += 1);
            self.rest(index, began, &mut conn).await;
        }
    }

    /// A connection that fails is given up.
    async fn observe(
        &self,
        index: usize,
        conn: &mut Option<DB::Connection>,
    ) -> Result<Observation, sqlx::Error> {
        let server = &self.servers[index];
        let access = match index == self.office() || server.part == Part::MasterReads {
            true => Access::ReadMaster,
            false => Access::ReadSlave,
        };
        let observe = async {
            let conn = match conn {
                Some(conn) => conn,
                None => conn.insert(server.options.connect().await?),
            };
            DB::observe(conn, access).await
        };
        let patience = self.checks.timeout;
        let observed = timeout(patience, observe).await.unwrap_or_else(|_| {
            let message = format!("no answer within {patience:?}");
            Err(io::Error::new(io::ErrorKind::TimedOut, message).into())
        });
        if observed.is_err() {
            *conn = None;
        }
        observed
    }

    /// Until the next probe is due; answers questions meanwhile.
    async fn rest(&self, index: usize, began: Instant, conn: &mut Option<DB::Connection>) {
        let server = &self.servers[index];
        let interval = self.checks.interval;
        let office = self.office();
        let mut master_probed = self.servers[office].health.probes.subscribe();
        // The master first: what it has written is given a moment to be replayed.
        let (period, head_start) = (interval.mul_f64(0.7 + 0.2 * fastrand::f64()), interval / 10);
        let mut due = match index == office {
            true => began + period,
            false => began + interval,
        };
        due = due.max(Instant::now() + head_start);
        loop {
            tokio::select! {
                () = sleep_until(due) => return,
                () = server.health.doubted.notified() => due = due.min(began + LEAST_INTERVAL),
                _ = master_probed.changed(), if index != office => {
                    due = due.min(Instant::now() + head_start);
                }
                () = server.questions.asked.notified() => {
                    let waiting = server.questions.take();
                    let observed = self.observe(index, conn).await;
                    if observed.is_err() {
                        server.health.doubt();
                    }
                    let position = observed
                        .ok()
                        .filter(|observed| observed.standing != Standing::Slave)
                        .and_then(|observed| observed.position);
                    for answer in waiting {
                        let _ = answer.send(position.clone());
                    }
                }
            }
        }
    }

    fn judge(&self, index: usize, began: Instant, observed: Result<Observation, sqlx::Error>) {
        let server = &self.servers[index];
        let (health, part) = (&server.health, server.part);
        let mut judge = self.judge.lock().unwrap_or_else(PoisonError::into_inner);
        let observed = match observed {
            Ok(mut observed) => {
                observed.position = observed.position.or_else(|| health.copied());
                observed
            }
            // It has no connection to spare, but may serve by those it has.
            Err(error) if DB::fault(&error) == Fault::Full => return,
            Err(error) => {
                judge.servers[index].failed();
                health.lost(&error);
                self.succeed(&mut judge);
                return;
            }
        };

        if part == Part::MasterReads {
            health.judged(NodeState::Up, "");
            return;
        }
        judge.servers[index].observed(&observed);
        self.succeed(&mut judge);
        if index == self.office() {
            match observed.standing {
                Standing::Slave => health.judged(NodeState::Standby, ""),
                Standing::Master | Standing::Unknown => {
                    judge.system = observed.system.or(judge.system);
                    if let Some(position) = observed.position {
                        judge.history.record(position, began.into_std());
                    }
                    health.judged(NodeState::Up, "");
                }
            }
        } else {
            let lag = observed.position.as_ref().and_then(|position| judge.history.lag(position));
            health.set_lag(lag);
            match (observed.standing, judge.is_stranger(&observed), lag) {
                (Standing::Master, ..) => health.judged(
                    NodeState::SecondMaster,
                    "Make it replicate the master, or make it the master in the configuration.",
                ),
                (_, true, _) => health.judged(NodeState::Stranger, ""),
                (.., Some(lag)) if self.checks.is_too_much(lag) => {
                    health.judged(NodeState::Behind, display(lag));
                }
                _ => health.judged(NodeState::Up, ""),
            }
            if let Some(position) = observed.position {
                health.saw(position, began.into_std());
            }
        }
    }

    /// Lets writes follow a promoted slave, if that is wanted.
    fn succeed(&self, judge: &mut Judge) {
        let office = self.office();
        if !self.checks.follow_promotion {
            return;
        }
        let Some(successor) = judge.successor(office) else { return };
        let (old, new) = (&self.servers[office].health, &self.servers[successor].health);
        error!("The {old} is gone, and the {new} was promoted: writes go there from now on.");
        self.office.store(successor, Ordering::Release);
        new.judged(NodeState::Up, "");
    }
}

fn display(lag: Lag) -> String {
    match lag {
        Lag::AtMost(lag) => format!("{:.1} s", lag.as_secs_f64()),
        Lag::MoreThan(lag) => format!("more than {:.1} s", lag.as_secs_f64()),
    }
}

/// What the servers have told so far.
struct Judge {
    history: History,
    /// The master's.
    system: Option<u64>,
    servers: Vec<Record>,
}

#[derive(Clone, Debug, Default)]
struct Record {
    /// Probes in a row that failed.
    failures: u32,
    /// By this process.
    seen_in_recovery: bool,
    latest: Option<Observation>,
}

impl Record {
    fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
        // What it was, it may not be any more.
        self.latest = None;
    }

    fn observed(&mut self, observed: &Observation) {
        self.failures = 0;
        self.seen_in_recovery |= observed.standing == Standing::Slave;
        self.latest = Some(observed.clone());
    }
}

impl Judge {
    fn new(servers: usize) -> Self {
        Self { history: History::default(), system: None, servers: vec![Record::default(); servers] }
    }

    fn is_stranger(&self, observed: &Observation) -> bool {
        matches!((self.system, observed.system), (Some(ours), Some(theirs)) if ours != theirs)
    }

    /// Who takes the place of the master in office. While that one is reachable and takes writes,
    /// nobody does. Afterwards a server of the same system that is on a later timeline, and that this
    /// process has seen as a slave: any other may be an old master that came back.
    fn successor(&self, office: usize) -> Option<usize> {
        let master = &self.servers[office];
        let in_recovery =
            |record: &Record| record.latest.as_ref().is_some_and(|latest| latest.standing == Standing::Slave);
        if master.failures < GONE && !in_recovery(master) {
            return None;
        }
        let timeline = timeline(self.history.latest()?)?;
        let succeeds = |record: &Record| {
            let Some(latest) = &record.latest else { return false };
            record.seen_in_recovery
                && latest.standing == Standing::Master
                && latest.system.is_some()
                && latest.system == self.system
                && latest.position.as_ref().and_then(self::timeline).is_some_and(|its| its > timeline)
        };
        (0..self.servers.len()).find(|index| *index != office && succeeds(&self.servers[*index]))
    }
}

fn timeline(position: &Position) -> Option<u32> {
    match position {
        Position::Lsn { timeline, .. } => Some(*timeline),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
