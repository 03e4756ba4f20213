use super::*;

const SYSTEM: u64 = 7;

fn observation(standing: Standing, timeline: u32, lsn: u64) -> Observation {
    Observation { standing, system: Some(SYSTEM), position: Some(Position::Lsn { timeline, lsn }) }
}

/// A master that is gone, at timeline 1, and a slave that has been seen as one and then tells this.
fn after_a_loss(slave: &Observation) -> Judge {
    let mut judge = Judge::new(2);
    judge.system = Some(SYSTEM);
    judge.history.record(Position::Lsn { timeline: 1, lsn: 100 }, std::time::Instant::now());
    (0..GONE).for_each(|_| judge.servers[MASTER].failed());
    judge.servers[1].observed(&observation(Standing::Slave, 1, 100));
    judge.servers[1].observed(slave);
    judge
}

#[test]
fn a_promoted_slave_succeeds_a_master_that_is_gone() {
    let promoted = observation(Standing::Master, 2, 100);
    assert_eq!(after_a_loss(&promoted).successor(MASTER), Some(1));

    let mut demoted = after_a_loss(&promoted);
    demoted.servers[MASTER].observed(&observation(Standing::Slave, 1, 100));
    assert_eq!(demoted.successor(MASTER), Some(1), "a master in recovery takes no writes");
}

#[test]
fn nobody_succeeds_without_proof() {
    let promoted = observation(Standing::Master, 2, 100);
    for (slave, why) in [
        (observation(Standing::Slave, 2, 100), "still a slave"),
        (observation(Standing::Master, 1, 100), "no later timeline"),
        (Observation { system: Some(8), ..promoted.clone() }, "another system"),
        (Observation { system: None, ..promoted.clone() }, "an unknown system"),
        (Observation { position: None, ..promoted.clone() }, "an unknown timeline"),
    ] {
        assert_eq!(after_a_loss(&slave).successor(MASTER), None, "{why}");
    }

    let mut judge = after_a_loss(&promoted);
    judge.servers[1].seen_in_recovery = false;
    assert_eq!(judge.successor(MASTER), None, "it may be an old master that came back");

    let mut judge = after_a_loss(&promoted);
    judge.servers[1].failed();
    assert_eq!(judge.successor(MASTER), None, "it is gone as well");

    let mut judge = after_a_loss(&promoted);
    judge.history = History::default();
    assert_eq!(judge.successor(MASTER), None, "nothing is known of the master");
}

#[test]
fn while_the_master_takes_writes_nobody_succeeds_it() {
    let mut judge = after_a_loss(&observation(Standing::Master, 2, 100));
    judge.servers[MASTER].observed(&observation(Standing::Master, 1, 100));
    assert_eq!(judge.successor(MASTER), None);

    for _ in 1..GONE {
        judge.servers[MASTER].failed();
        assert_eq!(judge.successor(MASTER), None, "once is no loss");
    }
}
