//! What happens to the servers: a plan that follows from its seed, and its execution.

use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::operation::Spell;
use super::support::cluster::{Cluster, Dbms, Replay};
use super::support::postgres::Postgres;
use super::support::server::wait_for;

#[derive(Clone, Debug)]
pub struct Fault {
    after: Duration,
    kind: Kind,
    lasts: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pause { slave: usize },
    PauseAll,
    Delay { seconds: u16 },
    KillSlave(usize),
    FreezeSlave(usize),
    KillMaster,
    FreezeMaster,
}

/// As many rounds of all faults as fit, in any order.
pub fn plan(seed: u64, lasts: Duration) -> Vec<Fault> {
    let mut random = Rng::with_seed(seed);
    let mut plan = Vec::new();
    let mut whole = Duration::ZERO;
    while plan.is_empty() || whole < lasts {
        let mut slave = || random.usize(0..2);
        let mut kinds = [
            Kind::Pause { slave: slave() },
            Kind::PauseAll,
            Kind::Delay { seconds: 3 },
            Kind::KillSlave(slave()),
            Kind::FreezeSlave(slave()),
            Kind::KillMaster,
            Kind::FreezeMaster,
        ];
        random.shuffle(&mut kinds);
        for kind in kinds {
            let mut ms = |range| Duration::from_millis(random.u64(range));
            let fault = Fault { after: ms(100..500), kind, lasts: ms(500..2000) };
            whole += fault.after + fault.lasts;
            plan.push(fault);
        }
    }
    plan
}

/// Carries a plan out, one fault at a time: each begins once all is `settled` after the one before. The times
/// without a master.
pub fn run<D: Dbms>(cluster: &Cluster<D>, plan: &[Fault], origin: Instant, settled: &dyn Fn()) -> Vec<Spell> {
    let mut without_master = Vec::new();
    for Fault { after, kind, lasts } in plan {
        settled();
        thread::sleep(*after);
        let began = origin.elapsed();
        strike(cluster, *kind);
        thread::sleep(*lasts);
        heal(cluster, *kind);
        if matches!(kind, Kind::KillMaster | Kind::FreezeMaster) {
            without_master.push(Spell { began, ended: origin.elapsed() });
        }
    }
    without_master
}

fn strike<D: Dbms>(cluster: &Cluster<D>, kind: Kind) {
    let Cluster { master, slaves, .. } = cluster;
    match kind {
        Kind::Pause { slave } => slaves[slave].pause_replay(),
        Kind::PauseAll => slaves.iter().for_each(|slave| slave.pause_replay()),
        Kind::Delay { seconds } => replay_all(cluster, seconds),
        Kind::KillSlave(slave) => slaves[slave].kill(),
        Kind::FreezeSlave(slave) => slaves[slave].freeze(),
        Kind::KillMaster => master.kill(),
        Kind::FreezeMaster => master.freeze(),
    }
}

fn heal<D: Dbms>(cluster: &Cluster<D>, kind: Kind) {
    let Cluster { master, slaves, .. } = cluster;
    match kind {
        Kind::Pause { slave } => slaves[slave].resume_replay(),
        Kind::PauseAll => slaves.iter().for_each(|slave| slave.resume_replay()),
        Kind::Delay { .. } => replay_all(cluster, 0),
        Kind::KillSlave(slave) => slaves[slave].start(),
        Kind::FreezeSlave(slave) => slaves[slave].thaw(),
        Kind::KillMaster => master.start(),
        Kind::FreezeMaster => master.thaw(),
    }
}

fn replay_all<D: Dbms>(cluster: &Cluster<D>, lag: u16) {
    for slave in &cluster.slaves {
        D::replay(slave, Replay { lag, paused: false }).unwrap();
    }
}

/// The master dies and the first slave takes its place, without the loss of anything acknowledged: the
/// time without a master.
pub fn promote(cluster: &Cluster<Postgres>, origin: Instant, settled: &dyn Fn()) -> Spell {
    let Cluster { master, slaves, .. } = cluster;
    slaves[0].sql("ALTER SYSTEM SET cluster_name = 'slave1'");
    slaves[0].stop();
    slaves[0].start();
    settled();
    master.sql("ALTER SYSTEM SET synchronous_standby_names = 'slave1'");
    master.sql("SELECT pg_reload_conf()");
    let is_sync = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
    wait_for("a synchronous slave", || master.sql(is_sync) == "1");
    let began = origin.elapsed();
    master.kill();
    slaves[0].sql("SELECT pg_promote()");
    Spell { began, ended: origin.elapsed() }
}
