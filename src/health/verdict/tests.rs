use std::time::Duration;

use super::*;

const SYSTEM: u64 = 7;
const MASTER: ServerId = ServerId(0);
const SLAVE: ServerId = ServerId(1);

const CHECKS: Checks = Checks {
    interval: Duration::from_secs(1),
    timeout: Duration::from_secs(1),
    max_lag: Some(Duration::from_secs(3)),
    follow_promotion: true,
};

fn observation(role: ReportedRole, timeline: u32, lsn: u64) -> Observation {
    Observation { role, system: Some(SYSTEM), position: Some(Position::Lsn { timeline, lsn }) }
}

fn new(checks: &Checks) -> Verdicts {
    Verdicts::new(MASTER, &[MASTER, SLAVE], checks.clone())
}

fn observe(verdicts: &mut Verdicts, server: ServerId, observed: &Observation) -> Verdict {
    verdicts.judge(server, Instant::now(), &Finding::Observed(observed.clone()))
}

fn fail(verdicts: &mut Verdicts, server: ServerId) -> Verdict {
    verdicts.judge(server, Instant::now(), &Finding::Failed)
}

/// At timeline 1, and a slave that has been seen as one.
fn in_office() -> Verdicts {
    let mut verdicts = new(&CHECKS);
    observe(&mut verdicts, MASTER, &observation(ReportedRole::Master, 1, 100));
    observe(&mut verdicts, SLAVE, &observation(ReportedRole::Slave, 1, 100));
    verdicts
}

/// The master is gone.
fn after_a_loss() -> Verdicts {
    let mut verdicts = in_office();
    (0..FAILURES_BEFORE_FAILOVER).for_each(|_| drop(fail(&mut verdicts, MASTER)));
    verdicts
}

#[test]
fn a_promoted_slave_succeeds_a_master_that_is_gone() {
    let promoted = observation(ReportedRole::Master, 2, 100);
    let verdict = observe(&mut after_a_loss(), SLAVE, &promoted);
    assert_eq!(verdict.new_master, Some(SLAVE));
    assert_eq!(verdict.states, [(SLAVE, NodeState::Up, Why::Nothing)]);

    let mut demoted = in_office();
    observe(&mut demoted, SLAVE, &promoted);
    let verdict = observe(&mut demoted, MASTER, &observation(ReportedRole::Slave, 1, 100));
    assert_eq!(verdict.new_master, Some(SLAVE), "a master in recovery takes no writes");
}

#[test]
fn nobody_succeeds_without_proof() {
    let promoted = observation(ReportedRole::Master, 2, 100);
    for (slave, why) in [
        (observation(ReportedRole::Slave, 2, 100), "still a slave"),
        (observation(ReportedRole::Master, 1, 100), "no later timeline"),
        (Observation { system: Some(8), ..promoted.clone() }, "another system"),
        (Observation { position: None, ..promoted.clone() }, "an unknown timeline"),
    ] {
        assert_eq!(observe(&mut after_a_loss(), SLAVE, &slave).new_master, None, "{why}");
    }

    let mut unasked = new(&Checks { follow_promotion: false, ..CHECKS });
    observe(&mut unasked, MASTER, &observation(ReportedRole::Master, 1, 100));
    observe(&mut unasked, SLAVE, &observation(ReportedRole::Slave, 1, 100));
    (0..FAILURES_BEFORE_FAILOVER).for_each(|_| drop(fail(&mut unasked, MASTER)));
    assert_eq!(observe(&mut unasked, SLAVE, &promoted).new_master, None, "nobody wants that");

    let mut verdicts = in_office();
    verdicts.servers.get_mut(&SLAVE).unwrap().seen_in_recovery = false;
    (0..FAILURES_BEFORE_FAILOVER).for_each(|_| drop(fail(&mut verdicts, MASTER)));
    let verdict = observe(&mut verdicts, SLAVE, &promoted);
    assert_eq!(verdict.new_master, None, "it may be an old master that came back");

    let mut verdicts = new(&CHECKS);
    observe(&mut verdicts, SLAVE, &observation(ReportedRole::Slave, 1, 100));
    (0..FAILURES_BEFORE_FAILOVER).for_each(|_| drop(fail(&mut verdicts, MASTER)));
    assert_eq!(observe(&mut verdicts, SLAVE, &promoted).new_master, None, "nothing is known of the master");
}

#[test]
fn while_the_master_takes_writes_nobody_succeeds_it() {
    let promoted = observation(ReportedRole::Master, 2, 100);
    let mut verdicts = in_office();
    let verdict = observe(&mut verdicts, SLAVE, &promoted);
    assert_eq!(verdict.states, [(SLAVE, NodeState::SecondMaster, Why::Nothing)]);
    for _ in 1..FAILURES_BEFORE_FAILOVER {
        assert_eq!(fail(&mut verdicts, MASTER).new_master, None, "once is no loss");
    }
    assert_eq!(fail(&mut verdicts, MASTER).new_master, Some(SLAVE));
}

#[test]
fn an_old_master_that_comes_back_is_shut_out_and_as_a_standby_serves() {
    let mut verdicts = after_a_loss();
    observe(&mut verdicts, SLAVE, &observation(ReportedRole::Master, 2, 100));
    let verdict = observe(&mut verdicts, MASTER, &observation(ReportedRole::Master, 1, 120));
    assert_eq!(verdict.states, [(MASTER, NodeState::SecondMaster, Why::Nothing)]);
    assert_eq!(verdict.new_master, None);
    let verdict = observe(&mut verdicts, MASTER, &observation(ReportedRole::Slave, 2, 120));
    assert_eq!(verdict.states, [(MASTER, NodeState::Up, Why::Nothing)]);
}

#[test]
fn at_launch_two_masters_are_written_to_by_nobody() {
    let contested = |verdicts: &mut Verdicts| {
        let verdict = observe(verdicts, MASTER, &observation(ReportedRole::Master, 1, 100));
        assert_eq!(verdict.states, [(MASTER, NodeState::Up, Why::Nothing)]);
        let verdict = observe(verdicts, SLAVE, &observation(ReportedRole::Master, 2, 100));
        let rivals = Why::Rival { rival: SLAVE, timelines: Some((1, 2)) };
        assert_eq!(
            verdict.states,
            [(SLAVE, NodeState::SecondMaster, Why::Nothing), (MASTER, NodeState::Contested, rivals)]
        );
        let verdict = observe(verdicts, MASTER, &observation(ReportedRole::Master, 1, 110));
        assert_eq!(verdict.states, [(MASTER, NodeState::Contested, rivals)]);
    };

    let mut verdicts = new(&CHECKS);
    contested(&mut verdicts);
    for _ in 1..FAILURES_BEFORE_FAILOVER {
        assert_eq!(fail(&mut verdicts, SLAVE).states, [], "it may be back at any time");
    }
    assert_eq!(fail(&mut verdicts, SLAVE).states, [(MASTER, NodeState::Up, Why::Nothing)]);
    let verdict = observe(&mut verdicts, SLAVE, &observation(ReportedRole::Master, 2, 100));
    assert_eq!(verdict.states, [(SLAVE, NodeState::SecondMaster, Why::Nothing)], "one has been written to");

    let mut verdicts = new(&CHECKS);
    contested(&mut verdicts);
    for _ in 1..FAILURES_BEFORE_FAILOVER {
        assert_eq!(fail(&mut verdicts, MASTER).new_master, None);
        observe(&mut verdicts, SLAVE, &observation(ReportedRole::Master, 2, 100));
    }
    assert_eq!(fail(&mut verdicts, MASTER).new_master, Some(SLAVE));

    let mut verdicts = new(&CHECKS);
    contested(&mut verdicts);
    let verdict = observe(&mut verdicts, SLAVE, &observation(ReportedRole::Slave, 2, 100));
    assert_eq!(verdict.states.last(), Some(&(MASTER, NodeState::Up, Why::Nothing)));
}

#[test]
fn after_launch_a_promoted_slave_is_no_rival() {
    let mut verdicts = in_office();
    observe(&mut verdicts, SLAVE, &observation(ReportedRole::Master, 2, 100));
    let verdict = observe(&mut verdicts, MASTER, &observation(ReportedRole::Master, 1, 110));
    assert_eq!(verdict.states, [(MASTER, NodeState::Up, Why::Nothing)]);
}

#[test]
fn what_seldom_changes_is_asked_when_it_may_have_changed() {
    let mut verdicts = in_office();
    assert_eq!((verdicts.depth(MASTER), verdicts.depth(SLAVE)), (Depth::Light, Depth::Light));
    observe(&mut verdicts, MASTER, &observation(ReportedRole::Master, 2, 110));
    assert_eq!(verdicts.depth(SLAVE), Depth::Full, "the master is on another timeline");
    observe(&mut verdicts, SLAVE, &observation(ReportedRole::Slave, 2, 110));
    assert_eq!(verdicts.depth(SLAVE), Depth::Light);
}
