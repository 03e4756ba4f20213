//! A Patroni cluster of three nodes under the same clients and the same checker: switchovers, failovers, and nodes that
//! come back.

use std::fmt;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rocket::futures::future::join_all;
use rocket::tokio;

use super::checker::{Promise, check_end};
use super::operation::{Operation, Outcome, Spell, Work};
use super::{
    APPLICATIONS, Application, CHECKS, Judged, LOG, Report, SCHEMA, clients, judge, lasts, launch, run, seed,
    writes,
};
use support::haproxy::HaProxy;
use support::patroni::{Patroni, leads_to};

#[derive(Clone, Copy, Debug)]
enum Fault {
    SwitchOver,
    /// The leader dies, and comes back once another node leads.
    FailOver,
    /// A standby dies, and comes back after a while.
    LoseStandby,
}

/// As many rounds as fit. Each round has all faults.
fn plan(seed: u64, lasts: Duration) -> Vec<Fault> {
    /// The approximate time of a round. Patroni waits 20 s for a leader that has died.
    const ROUND: Duration = Duration::from_secs(60);

    let mut random = Rng::with_seed(seed);
    let rounds = (lasts.as_secs() / ROUND.as_secs()).max(1);
    let round = |_| {
        let mut faults = [Fault::SwitchOver, Fault::FailOver, Fault::LoseStandby, Fault::SwitchOver];
        random.shuffle(&mut faults);
        faults
    };
    (0..rounds).flat_map(round).collect()
}

const BALANCED: [Application; 2] =
    [APPLICATIONS[0], Application { promise: Promise::AnyStateAtOneAddress, ..APPLICATIONS[2] }];

/// The addresses by which an application reaches the nodes.
enum Ways {
    /// An address for each node. Any of them may be `url`.
    Fixed,
    /// One address for the leader and one for all others.
    Balanced { leader: Box<HaProxy>, others: Box<HaProxy> },
}

impl Ways {
    /// The applications that can run over these addresses. A window promises nothing where an address leads to several
    /// servers, because only the lag of one of them is known.
    fn applications(&self) -> &'static [Application] {
        match self {
            Self::Fixed => &APPLICATIONS,
            Self::Balanced { .. } => &BALANCED,
        }
    }

    fn section(&self, patroni: &Patroni, url: usize, application: &Application) -> String {
        let (url, slaves) = match self {
            Self::Fixed => {
                let others = (0..patroni.ports().len()).filter(|node| *node != url);
                let slaves: Vec<_> = others
                    .map(|node| format!("{{url=\"{}\",name=\"node{node}\"}}", patroni.url(node)))
                    .collect();
                (format!("url=\"{}\",name=\"node{url}\"", patroni.url(url)), slaves.join(","))
            }
            Self::Balanced { leader, others } => (
                format!("url=\"{}\",name=\"leader\"", leader.url()),
                format!("{{url=\"{}\",name=\"others\"}}", others.url()),
            ),
        };
        format!(
            "{{replicated={{{url},slaves=[{slaves}],{},follow_promotion=true,{CHECKS}}}}}",
            application.keys
        )
    }

    /// The servers that an application reads from once it has recovered.
    fn readers(&self, patroni: &Patroni, leader: usize) -> Vec<String> {
        match self {
            Self::Fixed => {
                let others = (0..patroni.ports().len()).filter(|node| *node != leader);
                others.map(|node| format!("node{node}")).collect()
            }
            Self::Balanced { .. } => vec!["others".to_owned()],
        }
    }
}

async fn play(is_balanced: bool) {
    let seed = seed();
    println!("HISTORY_SEED={seed}");
    let plan = plan(seed, lasts());
    let patroni = Patroni::start(3).await;
    let leader = patroni.leader().await.unwrap();
    for sql in SCHEMA {
        patroni.sql(leader, sql).await;
    }
    let ways = match is_balanced {
        false => Ways::Fixed,
        true => {
            let leader = Box::new(HaProxy::of_patroni(&patroni, "primary"));
            let others = Box::new(HaProxy::of_patroni(&patroni, "replica"));
            // HAProxy takes all nodes for healthy until it has checked them.
            leads_to(&leader.url(), "false").await;
            leads_to(&others.url(), "true").await;
            Ways::Balanced { leader, others }
        }
    };
    // `url` may be a node that does not lead.
    let url = Rng::with_seed(seed).usize(0..3);
    println!("the leader is node{leader}, `url` is node{url}");

    let origin = Instant::now();
    let section = |application: &Application| ways.section(&patroni, url, application);
    let running = launch("postgres", ways.applications(), section, origin).await;
    let urls: Vec<_> = running.iter().map(|running| running.website.url.clone()).collect();
    let settled = async || {
        patroni.settled().await;
        let leader = patroni.leader().await.unwrap();
        let readers = ways.readers(&patroni, leader);
        let readers: Vec<_> = readers.iter().map(String::as_str).collect();
        join_all(urls.iter().map(|url| clients::settled(url, &readers))).await;
    };

    let mut spells = Vec::new();
    for fault in &plan {
        settled().await;
        let began = origin.elapsed();
        println!("{:.1} s: {fault:?}", began.as_secs_f64());
        let leader = patroni.leader().await.unwrap();
        match fault {
            Fault::SwitchOver => patroni.switch_over().await,
            Fault::FailOver => {
                patroni.kill(leader).await;
                patroni.failed_over(leader).await;
            }
            Fault::LoseStandby => {
                let other = (leader + 1) % 3;
                patroni.kill(other).await;
                tokio::time::sleep(Duration::from_secs(2)).await;
                patroni.start_again(other).await;
                continue;
            }
        }
        if let Ways::Balanced { leader, .. } = &ways {
            leads_to(&leader.url(), "false").await;
        }
        spells.push((*fault, Spell { began, ended: origin.elapsed() }));
        if let Fault::FailOver = fault {
            patroni.start_again(leader).await;
        }
    }
    settled().await;
    tokio::time::sleep(Duration::from_secs(2)).await;

    let leader = patroni.leader().await.unwrap();
    let without_master: Vec<_> = spells.iter().map(|(_, spell)| *spell).collect();
    let judged = judge(running, &without_master, &Report { seed, plan: &plan }).await;
    for (number, (fault, spell)) in spells.iter().enumerate() {
        let next = spells.get(number + 1).map_or(Duration::MAX, |(_, next)| next.began);
        println!(
            "{:.1} s: {fault:?}, {:.1} s without a leader",
            spell.began.as_secs_f64(),
            (spell.ended - spell.began).as_secs_f64()
        );
        for Judged { name, operations } in &judged {
            let what = What::of(operations, spell, next);
            println!("    {name}: {what}");
        }
    }
    for Judged { name, operations } in &judged {
        let reads = operations.iter().filter(|operation| !matches!(operation.work, Work::Write(_)));
        let (failed, reads): (Vec<_>, Vec<_>) =
            reads.partition(|read| matches!(read.outcome, Outcome::Failed(_)));
        // The reads of clients without pins, which need no master.
        assert!(
            *name != "none" || failed.len() * 100 <= reads.len(),
            "HISTORY_SEED={seed}: {} of {} reads failed",
            failed.len(),
            failed.len() + reads.len()
        );
    }
    let all: Vec<_> = judged.into_iter().flat_map(|judged| judged.operations).collect();
    let there = patroni.sql(leader, LOG).await;
    let violations = check_end(&all, &writes(there.iter().map(String::as_str)));
    assert!(violations.is_empty(), "HISTORY_SEED={seed}: {violations:?}\nthe faults: {plan:#?}");
}

/// The effect of a change of the leader on the clients of an application.
struct What {
    /// The time of the last failed write, in seconds after the cluster had a leader. Negative if that was before.
    writes_back: f64,
    failed_reads: usize,
    reads: usize,
}

impl What {
    fn of(operations: &[Operation], spell: &Spell, next: Duration) -> Self {
        let until = (spell.ended + Duration::from_secs(8)).min(next);
        let during = operations
            .iter()
            .filter(|operation| operation.invoked >= spell.began && operation.returned < until);
        let is_write = |operation: &&Operation| matches!(operation.work, Work::Write(_));
        let (writes, reads): (Vec<_>, Vec<_>) = during.partition(is_write);
        // Failures with 504 do not count: some handlers give up by themselves.
        let failed = writes.iter().filter(|write| write.outcome == Outcome::Failed(503));
        let last_failure = failed.map(|write| write.returned).max().unwrap_or(spell.began);
        Self {
            writes_back: last_failure.as_secs_f64() - spell.ended.as_secs_f64(),
            failed_reads: reads.iter().filter(|read| matches!(read.outcome, Outcome::Failed(_))).count(),
            reads: reads.len(),
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { writes_back, failed_reads, reads } = self;
        write!(
            f,
            "the last write failed {writes_back:.1} s after it was there; {failed_reads} of {reads} reads failed"
        )
    }
}

#[support::async_test]
async fn on_patroni() {
    run(play(false)).await;
}

#[support::async_test]
async fn on_patroni_behind_haproxy() {
    run(play(true)).await;
}
