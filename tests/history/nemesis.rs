//! The faults of the servers: a plan that follows from its seed, and its execution.

use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::operation::Spell;
use rocket_replicated_testing::Wire;
use rocket_replicated_testing::postgres::Postgres;
use rocket_replicated_testing::server::wait_for;
use rocket_replicated_testing::{Dbms, Replay, Servers};

#[derive(Clone, Debug)]
pub struct Fault {
    after: Duration,
    kind: Kind,
    lasts: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pause {
        slave: usize,
    },
    PauseAll,
    Delay {
        seconds: u16,
    },
    KillSlave(usize),
    FreezeSlave(usize),
    KillMaster,
    FreezeMaster,
    /// The master's address does not answer for a while, and the connections from before stay silent for ever.
    MoveMaster,
    /// The address of the second slave leads to both slaves, one of which falls behind.
    ShareAddress {
        paused: usize,
    },
}

/// The wires by which the applications reach some of the servers.
pub struct Wires {
    pub master: Wire,
    pub slave2: Wire,
}

impl Wires {
    pub fn to<D: Dbms>(cluster: &Servers<D>) -> Self {
        let Servers { master, slaves, .. } = cluster;
        Self { master: Wire::to(master.port()), slave2: Wire::to(slaves[1].port()) }
    }
}

/// As many rounds of all faults as fit, at least one, each in random order.
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
            Kind::MoveMaster,
            Kind::ShareAddress { paused: slave() },
        ];
        random.shuffle(&mut kinds);
        for kind in kinds {
            let mut ms = |range| Duration::from_millis(random.u64(range));
            let (after, lasts) = (ms(100..500), ms(500..2000));
            // An address whose connections were cut is not trusted again at once.
            let lasts = match kind {
                Kind::ShareAddress { .. } => lasts + Duration::from_secs(1),
                _ => lasts,
            };
            let fault = Fault { after, kind, lasts };
            whole += fault.after + fault.lasts;
            plan.push(fault);
        }
    }
    plan
}

/// Carries out a plan. Each fault begins once the applications have `settled` after the one before. Returns the times
/// without a master.
pub fn run<D: Dbms>(
    cluster: &Servers<D>,
    wires: &Wires,
    plan: &[Fault],
    origin: Instant,
    settled: &dyn Fn(),
) -> Vec<Spell> {
    let mut without_master = Vec::new();
    for Fault { after, kind, lasts } in plan {
        settled();
        thread::sleep(*after);
        let began = origin.elapsed();
        println!("{:.1} s: {kind:?} for {:.1} s", began.as_secs_f64(), lasts.as_secs_f64());
        strike(cluster, wires, *kind);
        thread::sleep(*lasts);
        heal(cluster, wires, *kind);
        if matches!(kind, Kind::KillMaster | Kind::FreezeMaster | Kind::MoveMaster) {
            without_master.push(Spell { began, ended: origin.elapsed() });
        }
    }
    without_master
}

fn strike<D: Dbms>(cluster: &Servers<D>, wires: &Wires, kind: Kind) {
    let Servers { master, slaves, .. } = cluster;
    match kind {
        Kind::Pause { slave } => slaves[slave].pause_replay(),
        Kind::PauseAll => slaves.iter().for_each(|slave| slave.pause_replay()),
        Kind::Delay { seconds } => replay_all(cluster, seconds),
        Kind::KillSlave(slave) => slaves[slave].kill(),
        Kind::FreezeSlave(slave) => slaves[slave].freeze(),
        Kind::KillMaster => master.kill(),
        Kind::FreezeMaster => master.freeze(),
        Kind::MoveMaster => {
            wires.master.refuse();
            // If the old sessions lived on, they would keep their locks.
            wires.master.lose_open();
        }
        Kind::ShareAddress { paused } => {
            slaves[paused].pause_replay();
            wires.slave2.lead_to_each(&[slaves[0].port(), slaves[1].port()]);
            // As with a proxy that gets a new configuration: clients that connect again reach either slave.
            wires.slave2.cut();
        }
    }
}

fn heal<D: Dbms>(cluster: &Servers<D>, wires: &Wires, kind: Kind) {
    let Servers { master, slaves, .. } = cluster;
    match kind {
        Kind::Pause { slave } => slaves[slave].resume_replay(),
        Kind::PauseAll => slaves.iter().for_each(|slave| slave.resume_replay()),
        Kind::Delay { .. } => replay_all(cluster, 0),
        Kind::KillSlave(slave) => slaves[slave].start(),
        Kind::FreezeSlave(slave) => slaves[slave].thaw(),
        Kind::KillMaster => master.start(),
        Kind::FreezeMaster => master.thaw(),
        Kind::MoveMaster => wires.master.pass(),
        Kind::ShareAddress { paused } => {
            slaves[paused].resume_replay();
            wires.slave2.lead_to(slaves[1].port());
            wires.slave2.cut();
        }
    }
}

fn replay_all<D: Dbms>(cluster: &Servers<D>, seconds: u16) {
    let lag = Duration::from_secs(seconds.into());
    for slave in &cluster.slaves {
        D::replay(slave, Replay { lag, paused: false }).unwrap();
    }
}

/// Kills the master and promotes the first slave, without losing an acknowledged write. Returns the time without a
/// master.
pub fn promote(cluster: &Servers<Postgres>, origin: Instant, settled: &dyn Fn()) -> Spell {
    let Servers { master, slaves, .. } = cluster;
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

/// Starts the old master again. It has its former role, and takes the writes of clients that still ask it.
pub fn bring_back(cluster: &Servers<Postgres>) {
    cluster.master.start();
    cluster.master.sql("ALTER SYSTEM RESET synchronous_standby_names");
    cluster.master.sql("SELECT pg_reload_conf()");
}
