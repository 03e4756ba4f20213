//! Jepsen's method applied to this crate: clients write and read over HTTP while servers fail, and a checker judges
//! what the clients have seen.
//!
//! The faults follow from a seed, which is printed. `HISTORY_SEED` repeats a run, and `HISTORY_MINUTES` sets its
//! length: `./scripts/test long [SEED] [MINUTES]`.

mod checker;
mod clients;
mod nemesis;
mod operation;
mod patroni;

use std::collections::BTreeMap;
use std::env;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rocket::futures::FutureExt;
use rocket::futures::future::join_all;
use rocket::tokio;

use checker::{Promise, Violation, check, check_end};
use clients::Clients;
use nemesis::Wires;
use operation::{Operation, Outcome, Spell, Work, Write};
use rocket_replicated_testing::mysql::MySql;
use rocket_replicated_testing::postgres::Postgres;
use rocket_replicated_testing::{Dbms, Servers};
use support::program::Website;

/// An application under test.
#[derive(Clone, Copy)]
struct Application {
    name: &'static str,
    promise: Promise,
    clients: usize,
    /// Keys of its section.
    keys: &'static str,
    /// The role that reads at the master.
    reader: &'static str,
}

/// The applications under test.
const APPLICATIONS: [Application; 3] = [
    Application {
        name: "position",
        promise: Promise::OwnWrites,
        clients: 16,
        // Slaves lag for longer than the window, and are read from nevertheless.
        keys: "consistency=\"position\",lag_window=1,max_lag=false,pinned_without_master=\"fail\"",
        reader: "app",
    },
    Application {
        name: "window",
        promise: Promise::OwnWrites,
        clients: 8,
        keys: "lag_window=5,pinned_without_master=\"fail\"",
        reader: "reader",
    },
    Application { name: "none", promise: Promise::AnyState, clients: 8, keys: "lag_window=0", reader: "app" },
];

/// Keys for a busy machine. Probes have 2.5 s, so that none fails because of the load. Long reads cannot take all 8
/// connections for reads at the master. A connection that opens slowly is not given up.
const CHECKS: &str = "check_interval=0.5,check_timeout=2.5,master_read_connections=8,connect_timeout=12";

/// The example under test. It is like the guestbook, but with registers.
const EXAMPLE: &str = "registers";

fn section<D: Dbms>(cluster: &Servers<D>, wires: &Wires, application: &Application, keys: &str) -> String {
    let url = wires.master.url(&cluster.master.url());
    let (slave1, slave2) = (cluster.slaves[0].url(), wires.slave2.url(&cluster.slaves[1].url()));
    let slaves = [(slave1, "slave1"), (slave2, "slave2")];
    let slaves = slaves.map(|(url, name)| format!("{{url=\"{url}\",name=\"{name}\"}}")).join(",");
    let Application { keys: own, reader, .. } = application;
    let read_url = url.replace("//app:", &format!("//{reader}:"));
    format!(
        "{{replicated={{url=\"{url}\",read_url=\"{read_url}\",slaves=[{slaves}],{own},{CHECKS},{keys}}}}}"
    )
}

/// The length of a run, from `HISTORY_MINUTES`. By default each fault happens once.
fn lasts() -> Duration {
    let minutes = env::var("HISTORY_MINUTES").ok().map(|minutes| minutes.parse::<f64>().unwrap());
    minutes.map_or(Duration::ZERO, |minutes| Duration::from_secs_f64(minutes * 60.0))
}

fn seed() -> u64 {
    env::var("HISTORY_SEED").map_or_else(|_| fastrand::u64(..1_000_000), |seed| seed.parse().unwrap())
}

/// Selects the log of writes. The spare register is left out, because its writes only test whether the master takes
/// any.
const LOG: &str = "SELECT concat(register, '|', value) FROM writes WHERE register <> 63";

fn writes<'a>(log: impl Iterator<Item = &'a str>) -> Vec<Write> {
    let write = |line: &str| {
        let (register, value) = line.split_once('|').unwrap();
        Write { register: register.parse().unwrap(), value: value.parse().unwrap() }
    };
    log.map(write).collect()
}

struct Report<'a, Plan> {
    seed: u64,
    plan: &'a Plan,
}

impl<Plan: Debug> Report<'_, Plan> {
    /// Fails with all that is needed to understand and to repeat the first violations. The end of the message names
    /// them, because only the end of a long output is kept.
    fn fail(&self, application: &str, violations: &[(Violation, Operation)], all: &[Operation], log: &str) {
        let mut kinds = BTreeMap::<String, usize>::new();
        for (violation, operation) in violations {
            let nodes = match &operation.outcome {
                Outcome::Done(answers) => answers.iter().map(|answer| answer.node.as_str()).collect(),
                Outcome::Failed(_) => Vec::new(),
            };
            *kinds.entry(format!("{violation:?} {}", nodes.join(", "))).or_default() += 1;
        }
        let (_, last) = &violations[violations.len() - 1];
        let (_, first) = &violations[0];
        let index = all.iter().position(|operation| operation == first).unwrap();
        let before: Vec<_> =
            all[..=index].iter().rev().filter(|other| other.client == first.client).take(8).collect();
        let is_news = |line: &&str| {
            ["`slave", "master `", "Error", "WARN", "Warning"].iter().any(|word| line.contains(word))
        };
        let lines: Vec<_> = log.lines().filter(is_news).collect();
        let tail = &lines[lines.len().saturating_sub(60)..];
        panic!(
            "the application's log:\n{}\nthe faults: {:?}\nwhat the client did, the first violation at the top: {:?}\n\
             HISTORY_SEED={}: {application}: {kinds:?}, from {:.1} to {:.1} s",
            tail.join("\n"),
            self.plan,
            before,
            self.seed,
            first.invoked.as_secs_f64(),
            last.returned.as_secs_f64(),
        );
    }
}

/// Prints the reason of a failure again at the end, because the logs of three applications come between.
async fn run(play: impl Future<Output = ()>) {
    let ran = AssertUnwindSafe(play).catch_unwind().await;
    if let Err(panic) = ran {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        eprintln!("{}", text.or(panic.downcast_ref::<&str>().copied()).unwrap_or_default());
        resume_unwind(panic);
    }
}

/// Runs the faults, the last act and all checks.
async fn play<D: Dbms + Send + Sync>(
    kind: &str,
    keys: &str,
    prepare: fn(&Servers<D>),
    last_act: impl FnOnce(&Servers<D>, Instant, &dyn Fn()) -> LastAct<D> + Send + 'static,
) {
    let seed = seed();
    println!("HISTORY_SEED={seed}");
    let plan = nemesis::plan(seed, lasts());
    let cluster = Arc::new(tokio::task::spawn_blocking(|| Servers::start(D::default(), 2)).await.unwrap());
    for sql in SCHEMA {
        cluster.master.sql(sql);
    }
    prepare(&cluster);
    cluster.wait_caught_up();
    let wires = Arc::new(Wires::to(&*cluster));

    let origin = Instant::now();
    let section = |application: &Application| section(&*cluster, &wires, application, keys);
    let running = launch(kind, &APPLICATIONS, section, origin).await;

    let urls: Vec<_> = running.iter().map(|running| running.website.url.clone()).collect();
    let (servers, wires, faults) = (cluster.clone(), wires.clone(), plan.clone());
    let acts = tokio::task::spawn_blocking({
        let (urls, runtime) = (urls.clone(), tokio::runtime::Handle::current());
        move || {
            let settled = || {
                let applications = urls.iter().map(|url| clients::settled(url, &["slave1", "slave2"]));
                runtime.block_on(join_all(applications));
            };
            let spells = nemesis::run(&*servers, &wires, &faults, origin, &settled);
            settled();
            (spells, last_act(&*servers, origin, &settled))
        }
    });
    let (mut without_master, LastAct { master, spell, epilogue }) = acts.await.unwrap();
    without_master.extend(spell);
    join_all(urls.iter().map(|url| clients::settled(url, &[]))).await;
    let servers = cluster.clone();
    tokio::task::spawn_blocking(move || epilogue(&servers)).await.unwrap();
    // Two more seconds of ordinary operation.
    tokio::time::sleep(Duration::from_secs(2)).await;

    let judged = judge(running, &without_master, &Report { seed, plan: &plan }).await;
    let all: Vec<_> = judged.into_iter().flat_map(|judged| judged.operations).collect();
    let servers: Vec<_> = std::iter::once(&cluster.master).chain(&cluster.slaves).collect();
    let violations = check_end(&all, &writes(servers[master].sql(LOG).lines()));
    assert!(violations.is_empty(), "HISTORY_SEED={seed}: {violations:?}\nthe faults: {plan:#?}");
}

/// An application that runs, and its clients.
struct Running {
    application: &'static Application,
    website: Website,
    clients: Clients,
}

async fn launch(
    kind: &str,
    applications: impl IntoIterator<Item = &'static Application>,
    section: impl Fn(&Application) -> String,
    origin: Instant,
) -> Vec<Running> {
    let mut running = Vec::new();
    let mut first = 0;
    for application in applications {
        let databases = section(application);
        let environment = [("ROCKET_DATABASES", databases.as_str()), ("REGISTERS", kind)];
        let website = Website::launch(EXAMPLE, "Rocket.toml", &environment).await;
        let clients = Clients::start(&website.url, first..first + application.clients, origin);
        first += application.clients;
        running.push(Running { application, website, clients });
    }
    running
}

/// The operations of an application's clients.
struct Judged {
    name: &'static str,
    operations: Vec<Operation>,
}

/// Stops the clients, and fails if the checker finds a violation.
async fn judge<Plan: Debug>(
    running: Vec<Running>,
    without_master: &[Spell],
    report: &Report<'_, Plan>,
) -> Vec<Judged> {
    let mut judged = Vec::new();
    for Running { application, website, clients } in running {
        let operations = clients.stop().await;
        let violations = check(application.promise, &operations, without_master);
        summarize(application, &operations);
        if !violations.is_empty() {
            report.fail(application.name, &violations, &operations, &website.log());
        }
        if application.promise != Promise::OwnWrites {
            let found = check(Promise::OwnWrites, &operations, without_master);
            assert!(
                found.iter().any(|(violation, _)| *violation == Violation::OwnWriteMissing),
                "without pins nobody misses a write: this check sees nothing"
            );
        }
        judged.push(Judged { name: application.name, operations });
    }
    judged
}

/// The end of a run, after all faults.
struct LastAct<D: Dbms> {
    /// The index of the server that is the master from then on.
    master: usize,
    /// The time without a master.
    spell: Option<Spell>,
    /// Runs once writes succeed again.
    epilogue: fn(&Servers<D>),
}

fn summarize(application: &Application, operations: &[Operation]) {
    let mut reasons = BTreeMap::<&str, usize>::new();
    let (mut writes, mut failed_writes) = (0, 0);
    for operation in operations {
        match (&operation.work, &operation.outcome) {
            (Work::Write(_), Outcome::Done(_)) => writes += 1,
            (Work::Write(_), Outcome::Failed(_)) => failed_writes += 1,
            (Work::Read | Work::LongRead, Outcome::Failed(_)) => *reasons.entry("failed").or_default() += 1,
            (Work::Read | Work::LongRead, Outcome::Done(answers)) => {
                *reasons.entry(&answers[0].reason).or_default() += 1
            }
        }
    }
    println!("{}: {writes} writes, {failed_writes} failed; reads: {reasons:?}", application.name);
}

const SCHEMA: [&str; 3] = [
    "CREATE TABLE registers (register INTEGER PRIMARY KEY, value BIGINT NOT NULL)",
    "CREATE TABLE writes (register INTEGER NOT NULL, value BIGINT NOT NULL)",
    "INSERT INTO registers WITH RECURSIVE g (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM g WHERE n < 63) \
     SELECT n, 0 FROM g",
];

#[support::async_test]
async fn on_postgresql() {
    let prepare = |cluster: &Servers<Postgres>| {
        cluster.master.sql("GRANT ALL ON registers, writes TO app");
        // The role has the password of `app`, which is hashed once. Another password would be hashed 4096 times, by
        // programs that are compiled without optimisation.
        cluster.master.sql("CREATE ROLE reader LOGIN");
        let password = "SELECT rolpassword FROM pg_authid WHERE rolname = 'app'";
        cluster
            .master
            .sql(&format!("UPDATE pg_authid SET rolpassword = ({password}) WHERE rolname = 'reader'"));
        cluster.master.sql("GRANT SELECT ON registers TO reader");
        // Otherwise replay waits up to half a minute for a long read of rows that the master has cleaned up, and the
        // slave is left out for as long:
        // <https://www.postgresql.org/docs/current/hot-standby.html#HOT-STANDBY-CONFLICT>
        for slave in &cluster.slaves {
            slave.sql("ALTER SYSTEM SET hot_standby_feedback = on");
            slave.sql("SELECT pg_reload_conf()");
        }
    };
    let promote = |cluster: &Servers<Postgres>, origin, settled: &dyn Fn()| LastAct {
        spell: Some(nemesis::promote(cluster, origin, settled)),
        master: 1,
        epilogue: nemesis::bring_back,
    };
    run(play("postgres", "follow_promotion=true", prepare, promote)).await;
}

#[support::async_test]
async fn on_mariadb() {
    let prepare = |cluster: &Servers<MySql>| {
        cluster.master.sql("CREATE USER reader IDENTIFIED BY 'secret'");
        cluster.master.sql("GRANT SELECT ON *.* TO reader");
    };
    let last_act = |_: &Servers<MySql>, _, _: &dyn Fn()| LastAct { master: 0, spell: None, epilogue: |_| () };
    run(play("mariadb", "follow_promotion=false", prepare, last_act)).await;
}
