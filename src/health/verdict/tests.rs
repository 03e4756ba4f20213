use std::time::Duration;

use super::*;
use crate::config::UnknownLag;

const SYSTEM: u64 = 7;
const MASTER: ServerId = ServerId(0);
const SLAVE: ServerId = ServerId(1);

const CHECKS: Checks = Checks {
    interval: Duration::from_secs(1),
    timeout: Duration::from_secs(1),
    max_lag: Some(Duration::from_secs(3)),
    unknown_lag: UnknownLag::Unexpected,
    follow_promotion: true,
};

fn observation(role: ReportedRole, timeline: u32, lsn: u64) -> Observation {
    Observation {
        role,
        system: Some(SYSTEM),
        position: Some(Position::Lsn { timeline, lsn }),
        ..Observation::default()
    }
}

fn new(checks: &Checks) -> Verdicts {
    Verdicts::new(MASTER, &[MASTER, SLAVE], checks.clone())
}

fn observe(verdicts: &mut Verdicts, server: ServerId, observed: &Observation) -> Verdict {
    observe_of(verdicts, server, SlaveLog::Masters, observed)
}

fn observe_of(verdicts: &mut Verdicts, server: ServerId, log: SlaveLog, observed: &Observation) -> Verdict {
    verdicts.judge(server, log, Instant::now(), &Finding::Observed(observed.clone()))
}

fn fail(verdicts: &mut Verdicts, server: ServerId) -> Verdict {
    verdicts.judge(server, SlaveLog::Masters, Instant::now(), &Finding::Failed)
}

fn full(verdicts: &mut Verdicts, server: ServerId, at: Instant) -> Verdict {
    verdicts.judge(server, SlaveLog::Masters, at, &Finding::Full)
}

/// The master is at timeline 1, and the slave has been seen as one.
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
fn a_slave_that_was_full_from_the_first_look_on_is_not_taken_for_fresh() {
    let left_out = |checks: &Checks| {
        let mut verdicts = new(checks);
        observe(&mut verdicts, MASTER, &observation(ReportedRole::Master, 1, 100));
        full(&mut verdicts, SLAVE, Instant::now()).states
    };
    assert_eq!(left_out(&CHECKS), [(SLAVE, NodeState::LagUnknown, Why::Full)]);
    let unguarded = Checks { max_lag: None, unknown_lag: UnknownLag::Use, ..CHECKS };
    assert_eq!(left_out(&unguarded), []);
}

#[test]
fn a_slave_that_is_full_is_where_it_was_last_seen() {
    let mut verdicts = in_office();
    let now = Instant::now();
    assert_eq!(full(&mut verdicts, SLAVE, now).states, [], "it serves by the connections that it has");
    for seconds in 1..=6 {
        let at = now + Duration::from_secs(seconds);
        let further = observation(ReportedRole::Master, 1, 100 + seconds);
        verdicts.judge(MASTER, SlaveLog::Masters, at, &Finding::Observed(further));
        let states = full(&mut verdicts, SLAVE, at).states;
        // It is not said to be behind: that would send an operator to its replication.
        let is_left_out = matches!(states[..], [(SLAVE, NodeState::LagUnknown, Why::Full)]);
        assert_eq!(is_left_out, seconds > 2, "{seconds} s: {states:?}");
    }
    // Full once more: the earlier observation is kept.
    assert!(observe(&mut verdicts, SLAVE, &observation(ReportedRole::Slave, 1, 106)).lag.is_some());
}

#[test]
fn a_master_that_is_full_does_not_switch_the_guard_off() {
    // A slave may be behind by all of the time in which it was not seen.
    let mut verdicts = in_office();
    let later = Instant::now() + Duration::from_secs(10);
    full(&mut verdicts, MASTER, later);
    let found = Finding::Observed(observation(ReportedRole::Slave, 1, 100));
    let verdict = verdicts.judge(SLAVE, SlaveLog::Masters, later, &found);
    assert!(matches!(verdict.states[..], [(SLAVE, NodeState::Behind, Why::Lag(_))]), "{verdict:?}");

    // At launch nothing is known of a full master, or of one that is gone. If that left slaves out, none would serve
    // reads.
    let mut verdicts = new(&CHECKS);
    full(&mut verdicts, MASTER, Instant::now());
    let states = observe(&mut verdicts, SLAVE, &observation(ReportedRole::Slave, 1, 100)).states;
    assert_eq!(states, [(SLAVE, NodeState::Up, Why::Nothing)]);
}

#[test]
fn one_that_was_full_at_first_may_still_be_a_rival() {
    let mut verdicts = new(&CHECKS);
    observe(&mut verdicts, MASTER, &observation(ReportedRole::Master, 1, 100));
    full(&mut verdicts, SLAVE, Instant::now());
    let verdict = observe(&mut verdicts, SLAVE, &observation(ReportedRole::Master, 2, 100));
    let contested =
        |(id, state, _): &(ServerId, NodeState, Why)| (*id, *state) == (MASTER, NodeState::Contested);
    assert!(verdict.states.iter().any(contested), "{verdict:?}");
}

fn at(verdicts: &mut Verdicts, look: Look, server: ServerId, role: ReportedRole, lsn: u64) -> Vec<NodeState> {
    let verdict =
        verdicts.judge(server, SlaveLog::Masters, look, &Finding::Observed(observation(role, 1, lsn)));
    verdict.states.iter().filter(|(id, ..)| *id == SLAVE).map(|(_, state, _)| *state).collect()
}

#[test]
fn a_slave_that_is_beyond_the_master_asked_afterwards_has_diverged() {
    use NodeState::{Diverged, New, Up};
    use ReportedRole::{Master, Slave};

    let began = Instant::now();
    let look = |from: u64, to: u64| Look {
        began: began + Duration::from_millis(from),
        ended: began + Duration::from_millis(to),
    };
    let launched = || {
        let mut verdicts = new(&CHECKS);
        at(&mut verdicts, look(0, 10), MASTER, Master, 100);
        verdicts
    };
    // At launch the slave waits for the master to be looked at.
    let mut verdicts = launched();
    assert_eq!(at(&mut verdicts, look(20, 30), SLAVE, Slave, 120), [New]);
    assert_eq!(at(&mut verdicts, look(40, 50), MASTER, Master, 120), []);
    assert_eq!(at(&mut verdicts, look(60, 70), SLAVE, Slave, 130), [Up], "the master goes on, it is known");

    // The master was asked before the slave had answered.
    assert_eq!(at(&mut verdicts, look(65, 90), MASTER, Master, 125), []);
    assert_eq!(at(&mut verdicts, look(95, 100), SLAVE, Slave, 130), [Up]);
    assert_eq!(at(&mut verdicts, look(110, 120), MASTER, Master, 129), [Diverged]);

    // A diverged slave that is overtaken is still on the other history. It falls back when it is rewound.
    at(&mut verdicts, look(130, 140), MASTER, Master, 500);
    assert_eq!(at(&mut verdicts, look(150, 160), SLAVE, Slave, 130), [Diverged]);
    assert_eq!(at(&mut verdicts, look(170, 180), SLAVE, Slave, 140), [Diverged]);
    assert_eq!(at(&mut verdicts, look(190, 200), SLAVE, Slave, 110), [Up]);

    // A slave that is made anew is another instance.
    let mut verdicts = launched();
    at(&mut verdicts, look(20, 30), SLAVE, Slave, 120);
    assert_eq!(at(&mut verdicts, look(40, 50), MASTER, Master, 110), [Diverged]);
    at(&mut verdicts, look(60, 70), MASTER, Master, 500);
    verdicts.record_instance(SLAVE, Some(Instance::of("restarted")));
    assert_eq!(at(&mut verdicts, look(80, 90), SLAVE, Slave, 120), [Diverged], "where it stood");
    assert_eq!(at(&mut verdicts, look(80, 90), SLAVE, Slave, 400), [Up]);
}

#[test]
fn what_was_proved_of_one_history_says_nothing_of_the_next() {
    use ReportedRole::{Master, Slave};

    let began = Instant::now();
    let look = |from: u64| Look::from(began + Duration::from_millis(from));
    let diverged = || {
        let mut verdicts = new(&CHECKS);
        at(&mut verdicts, look(0), MASTER, Master, 100);
        at(&mut verdicts, look(20), SLAVE, Slave, 120);
        assert_eq!(at(&mut verdicts, look(40), MASTER, Master, 110), [NodeState::Diverged]);
        verdicts
    };
    // The master's address has moved, or the master was promoted again: the slave follows a later timeline with it.
    let mut verdicts = diverged();
    let later = |role, lsn| Finding::Observed(observation(role, 2, lsn));
    verdicts.judge(MASTER, SlaveLog::Masters, look(60), &later(Master, 200));
    let verdict = verdicts.judge(SLAVE, SlaveLog::Masters, look(80), &later(Slave, 200));
    assert_eq!(verdict.states, [(SLAVE, NodeState::Up, Why::Nothing)]);

    // Behind a pooler, a slave that was gone meanwhile may have been made anew.
    let mut verdicts = diverged();
    at(&mut verdicts, look(60), MASTER, Master, 500);
    assert_eq!(at(&mut verdicts, look(80), SLAVE, Slave, 500), [NodeState::Diverged]);
    verdicts.judge(SLAVE, SlaveLog::Masters, look(100), &Finding::Failed);
    assert_eq!(at(&mut verdicts, look(120), SLAVE, Slave, 500), [NodeState::Up]);
}

#[test]
fn a_slave_that_is_ahead_does_not_wait_for_a_master_that_is_full() {
    let began = Instant::now();
    let look = |from: u64| Look::from(began + Duration::from_millis(from));
    let mut verdicts = new(&CHECKS);
    at(&mut verdicts, look(0), MASTER, ReportedRole::Master, 100);
    verdicts.judge(MASTER, SlaveLog::Masters, look(20), &Finding::Full);
    assert_eq!(at(&mut verdicts, look(40), SLAVE, ReportedRole::Slave, 120), [NodeState::Up]);
}

#[test]
fn a_master_that_tells_no_position_any_more_tells_no_lag() {
    let mut verdicts = in_office();
    observe(
        &mut verdicts,
        MASTER,
        &Observation { position: None, ..observation(ReportedRole::Master, 1, 0) },
    );
    let verdict = observe(&mut verdicts, SLAVE, &observation(ReportedRole::Slave, 1, 100));
    assert_eq!(
        (verdict.lag, &*verdict.states),
        (None, &[(SLAVE, NodeState::LagUnknown, Why::Untold(Untold::ByMaster))][..])
    );

    let mut verdicts = new(&CHECKS);
    let untold = Observation { position: None, ..observation(ReportedRole::Master, 1, 0) };
    observe(&mut verdicts, MASTER, &untold);
    let verdict = observe(&mut verdicts, SLAVE, &observation(ReportedRole::Slave, 1, 100));
    assert_eq!(
        verdict.states,
        [(SLAVE, NodeState::LagUnknown, Why::Untold(Untold::ByMaster))],
        "there is nothing to wait for"
    );
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
}

#[test]
fn who_leads_is_found_though_the_configured_master_was_never_seen_in_office() {
    use ReportedRole::{Master, Slave};

    const OTHER: ServerId = ServerId(2);

    let launched = |looks: &[(ServerId, Option<Observation>)]| {
        let mut verdicts = Verdicts::new(MASTER, &[MASTER, SLAVE, OTHER], CHECKS.clone());
        let mut new_master = None;
        for (server, found) in looks {
            let verdict = match found {
                Some(observed) => observe(&mut verdicts, *server, observed),
                None => (0..FAILURES_BEFORE_FAILOVER).map(|_| fail(&mut verdicts, *server)).last().unwrap(),
            };
            new_master = new_master.or(verdict.new_master);
        }
        new_master
    };
    let (slave, leader) = (observation(Slave, 1, 100), observation(Master, 1, 100));
    let elsewhere = Observation { system: Some(8), ..leader.clone() };
    let promoted = observation(Master, 2, 100);
    let (as_slave, gone) = (Some(slave.clone()), None::<Observation>);
    for (looks, expected, why) in [
        (
            vec![(MASTER, as_slave.clone()), (OTHER, as_slave.clone()), (SLAVE, Some(leader.clone()))],
            Some(SLAVE),
            "it is their master",
        ),
        (
            vec![(MASTER, as_slave.clone()), (SLAVE, Some(leader.clone()))],
            None,
            "another one may take writes as well",
        ),
        (
            vec![(MASTER, as_slave.clone()), (OTHER, gone.clone()), (SLAVE, Some(leader.clone()))],
            Some(SLAVE),
            "that one is gone",
        ),
        (
            vec![(MASTER, as_slave.clone()), (OTHER, Some(leader.clone())), (SLAVE, Some(leader.clone()))],
            None,
            "nothing tells which of the two they follow",
        ),
        (
            vec![(MASTER, as_slave.clone()), (OTHER, as_slave.clone()), (SLAVE, Some(elsewhere))],
            None,
            "another system",
        ),
        (
            vec![
                (MASTER, Some(observation(Slave, 2, 100))),
                (OTHER, as_slave.clone()),
                (SLAVE, Some(leader.clone())),
            ],
            None,
            "an old master: the slave follows a later one",
        ),
        (
            vec![
                (MASTER, gone.clone()),
                (OTHER, as_slave.clone()),
                (SLAVE, as_slave.clone()),
                (SLAVE, Some(promoted.clone())),
            ],
            Some(SLAVE),
            "promoted since",
        ),
        (
            vec![(MASTER, gone.clone()), (OTHER, as_slave.clone()), (SLAVE, Some(promoted.clone()))],
            None,
            "it may be an old master",
        ),
        (
            vec![
                (MASTER, gone.clone()),
                (OTHER, Some(observation(Slave, 3, 100))),
                (SLAVE, as_slave.clone()),
                (SLAVE, Some(promoted.clone())),
            ],
            None,
            "others follow a later one",
        ),
    ] {
        assert_eq!(launched(&looks), expected, "{why}");
    }
}

/// MySQL and MariaDB: a server that is not read-only does not say whether it is a master.
#[test]
fn a_slave_that_was_read_only_succeeds_with_all_that_the_master_had() {
    const SOURCE: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";

    let observed = |role, last: u32| Observation {
        role,
        system: None,
        position: Position::parse_gtid_set(&format!("{SOURCE}:1-{last}")),
        ..Observation::default()
    };
    let succeeds = |before: ReportedRole, master: Option<&Observation>, last| {
        let mut verdicts = new(&CHECKS);
        observe(&mut verdicts, MASTER, &observed(ReportedRole::Unknown, 100));
        observe(&mut verdicts, SLAVE, &observed(before, 100));
        match master {
            Some(master) => drop(observe(&mut verdicts, MASTER, master)),
            None => (0..FAILURES_BEFORE_FAILOVER).for_each(|_| drop(fail(&mut verdicts, MASTER))),
        }
        observe(&mut verdicts, SLAVE, &observed(ReportedRole::Unknown, last)).new_master
    };
    let (read_only, unknown) = (ReportedRole::Slave, ReportedRole::Unknown);
    assert_eq!(succeeds(read_only, None, 100), Some(SLAVE));
    assert_eq!(succeeds(read_only, Some(&observed(read_only, 100)), 100), Some(SLAVE), "a switchover");
    assert_eq!(succeeds(read_only, Some(&observed(unknown, 100)), 100), None, "the master takes writes");
    assert_eq!(succeeds(unknown, None, 100), None, "it has taken writes all the time, as far as is known");
    assert_eq!(succeeds(read_only, None, 99), None, "a write is lost there");

    let mut verdicts = new(&CHECKS);
    observe(&mut verdicts, MASTER, &observed(unknown, 100));
    observe(&mut verdicts, SLAVE, &observed(read_only, 100));
    (0..FAILURES_BEFORE_FAILOVER).for_each(|_| drop(fail(&mut verdicts, MASTER)));
    observe(&mut verdicts, SLAVE, &observed(unknown, 100));
    let back = observe(&mut verdicts, MASTER, &observed(unknown, 101));
    assert_eq!(back.states, [(MASTER, NodeState::SecondMaster, Why::Nothing)], "it comes back as it was");
    let back = observe(&mut verdicts, MASTER, &observed(read_only, 100));
    assert_eq!(back.states, [(MASTER, NodeState::Up, Why::Nothing)], "it comes back as a slave");
}

#[test]
fn while_the_master_takes_writes_nobody_succeeds_it() {
    let promoted = observation(ReportedRole::Master, 2, 100);
    let mut verdicts = in_office();
    observe(&mut verdicts, SLAVE, &promoted);
    observe(&mut verdicts, MASTER, &observation(ReportedRole::Master, 1, 100));
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
    assert_eq!(verdict.states, [(MASTER, NodeState::New, Why::Nothing)], "it may have what is lost");
    observe(&mut verdicts, SLAVE, &observation(ReportedRole::Master, 2, 130));
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
    let second = (SLAVE, NodeState::SecondMaster, Why::Nothing);
    assert_eq!(verdict.states, [(MASTER, NodeState::Up, Why::Nothing), second]);
}

#[test]
fn a_promoted_slave_is_a_last_resort_while_the_master_does_not_answer() {
    use ReportedRole::{Master, Slave, Unknown};

    let begin = Instant::now();
    let mut second = 0;
    let mut look = |verdicts: &mut Verdicts, server, found: Option<(ReportedRole, u32)>| {
        second += 1;
        let finding = match found {
            Some((role, timeline)) => Finding::Observed(observation(role, timeline, 100)),
            None => Finding::Failed,
        };
        let look = Look::from(begin + Duration::from_secs(second));
        let verdict = verdicts.judge(server, SlaveLog::Masters, look, &finding);
        verdict.states.iter().filter(|(id, ..)| *id == SLAVE).map(|(_, state, _)| *state).collect::<Vec<_>>()
    };
    let unasked = Checks { follow_promotion: false, ..CHECKS };
    let mut verdicts = new(&unasked);
    look(&mut verdicts, MASTER, Some((Master, 1)));
    assert_eq!(look(&mut verdicts, SLAVE, Some((Slave, 1))), [NodeState::Up]);
    // The promotion is found first, the loss of the master later.
    assert_eq!(look(&mut verdicts, SLAVE, Some((Master, 2))), [NodeState::Promoted]);
    assert_eq!(look(&mut verdicts, MASTER, None), []);
    assert_eq!(look(&mut verdicts, SLAVE, Some((Master, 2))), [NodeState::Promoted]);
    // The master is back, and writes transactions that the promoted server will never have.
    assert_eq!(look(&mut verdicts, MASTER, Some((Master, 1))), [NodeState::SecondMaster]);
    assert_eq!(look(&mut verdicts, SLAVE, Some((Master, 2))), [NodeState::SecondMaster]);
    assert_eq!(look(&mut verdicts, MASTER, Some((Unknown, 1))), []);
    assert_eq!(look(&mut verdicts, MASTER, None), [NodeState::Promoted], "it is gone for good");
    assert_eq!(look(&mut verdicts, SLAVE, None), []);
    assert_eq!(look(&mut verdicts, MASTER, None), [], "it is gone as well");
    assert_eq!(look(&mut verdicts, SLAVE, Some((Master, 2))), [NodeState::Promoted]);
    assert_eq!(look(&mut verdicts, SLAVE, Some((Slave, 2))), [NodeState::Up]);

    // A server that took writes from the first look on may be an old master.
    let mut verdicts = new(&unasked);
    look(&mut verdicts, MASTER, Some((Master, 2)));
    assert_eq!(look(&mut verdicts, SLAVE, Some((Master, 1))), [NodeState::SecondMaster]);
    look(&mut verdicts, MASTER, None);
    assert_eq!(look(&mut verdicts, SLAVE, Some((Master, 1))), [NodeState::SecondMaster]);

    // A server that was a slave, then the master, and was replaced, may be an old master, too.
    let mut verdicts = new(&CHECKS);
    look(&mut verdicts, MASTER, Some((Master, 1)));
    look(&mut verdicts, SLAVE, Some((Slave, 1)));
    (0..FAILURES_BEFORE_FAILOVER).for_each(|_| drop(look(&mut verdicts, MASTER, None)));
    assert_eq!(look(&mut verdicts, SLAVE, Some((Master, 2))), [NodeState::Up], "it is the master");
    look(&mut verdicts, MASTER, Some((Slave, 2)));
    (0..FAILURES_BEFORE_FAILOVER).for_each(|_| drop(look(&mut verdicts, SLAVE, None)));
    look(&mut verdicts, MASTER, Some((Master, 3)));
    (0..FAILURES_BEFORE_FAILOVER).for_each(|_| drop(look(&mut verdicts, MASTER, None)));
    assert_eq!(look(&mut verdicts, SLAVE, Some((Master, 2))), [NodeState::SecondMaster]);
}

#[test]
fn what_a_slave_cannot_have_yet_does_not_make_it_late() {
    let begin = Instant::now();
    let late_after = |flushed: fn(u64) -> u64| {
        let mut verdicts = new(&CHECKS);
        (0..10).find(|second| {
            let now = begin + Duration::from_secs(*second);
            let master = Observation {
                flushed: Some(Position::Lsn { timeline: 1, lsn: flushed(*second) }),
                ..observation(ReportedRole::Master, 1, if *second < 2 { 100 } else { 900 })
            };
            verdicts.judge(MASTER, SlaveLog::Masters, now, &Finding::Observed(master));
            at(&mut verdicts, now.into(), SLAVE, ReportedRole::Slave, 100) != [NodeState::Up]
        })
    };
    assert_eq!(late_after(|_| 100), None, "a transaction that stays open");
    assert_eq!(late_after(|second| if second < 2 { 100 } else { 900 }), Some(5), "it was committed");

    // A slave that has more than the master has flushed, but not more than it has inserted, has not diverged.
    let mut verdicts = in_office();
    let master = Observation {
        flushed: Some(Position::Lsn { timeline: 1, lsn: 100 }),
        ..observation(ReportedRole::Master, 1, 900)
    };
    observe(&mut verdicts, SLAVE, &observation(ReportedRole::Slave, 1, 900));
    assert_eq!(observe(&mut verdicts, MASTER, &master).states, [(MASTER, NodeState::Up, Why::Nothing)]);
}

#[test]
fn a_gap_between_looks_at_the_master_makes_no_slave_late_by_itself() {
    use NodeState::{Behind, Up};
    use ReportedRole::{Master, Slave};

    let begin = Instant::now();
    let look = |second: f64| Look::from(begin + Duration::from_secs_f64(second));
    // The master writes in each second, and was not looked at from the 10th to the 18th.
    let after_a_gap = |replayed: &dyn Fn(f64) -> u64| {
        let mut verdicts = new(&CHECKS);
        let mut seen = Vec::new();
        let looks = (0..=10).chain(18..30).map(f64::from);
        for second in looks {
            at(&mut verdicts, look(second), MASTER, Master, 1000 + second as u64);
            seen.push(at(&mut verdicts, look(second + 0.1), SLAVE, Slave, replayed(second))[0]);
        }
        (seen[10], seen[11..].to_vec())
    };
    let second_by_second = |second: f64| 1000 + second as u64;
    assert_eq!(after_a_gap(&second_by_second), (Up, vec![Up; 12]));
    assert_eq!(after_a_gap(&|second| second_by_second(second) - 2.min(second as u64)), (Up, vec![Up; 12]));
    // A slave that stands still: with each look, the missing transactions are known to be older.
    let stuck = after_a_gap(&|second| second_by_second(second.min(10.5)));
    assert_eq!(stuck, (Up, [vec![Up; 4], vec![Behind; 8]].concat()));
    // A slave that was late before stays so.
    let (before, after) =
        after_a_gap(&|second| if second < 20.0 { second_by_second(second.min(3.0)) } else { 1018 });
    assert_eq!((before, &after[..2]), (Behind, &[Behind; 2][..]));

    // The master is lost again right after the gap, so that nothing more is known of it.
    let mut verdicts = new(&CHECKS);
    for second in [0.0, 1.0, 9.0] {
        at(&mut verdicts, look(second), MASTER, Master, 1000 + second as u64);
        assert_eq!(at(&mut verdicts, look(second + 0.1), SLAVE, Slave, 1001.min(1000 + second as u64)), [Up]);
    }
    verdicts.judge(MASTER, SlaveLog::Masters, look(10.0), &Finding::Failed);
    for second in 10..20 {
        assert_eq!(at(&mut verdicts, look(f64::from(second)), SLAVE, Slave, 1001), [Up], "{second}");
    }

    // Each look at the master takes long: a slave that is always late is still found to be late.
    let mut verdicts = new(&CHECKS);
    let states: Vec<_> = (0..10_u64)
        .map(|number| {
            at(&mut verdicts, look(4.0 * number as f64), MASTER, Master, 1000 + number);
            let replayed = 1000 + number.saturating_sub(1);
            at(&mut verdicts, look(4.0 * number as f64 + 0.1), SLAVE, Slave, replayed)[0]
        })
        .collect();
    assert_eq!(states, [vec![Up; 2], vec![Behind; 8]].concat());
}

const OTHER: ServerId = ServerId(2);

fn second(begin: Instant, second: u64) -> Look {
    Look::from(begin + Duration::from_secs(second))
}

/// A master at 100, and two slaves at 100.
fn with_two_slaves(begin: Instant) -> Verdicts {
    let mut verdicts = Verdicts::new(MASTER, &[MASTER, SLAVE, OTHER], CHECKS);
    at(&mut verdicts, begin.into(), MASTER, ReportedRole::Master, 100);
    for slave in [SLAVE, OTHER] {
        at(&mut verdicts, begin.into(), slave, ReportedRole::Slave, 100);
    }
    verdicts
}

/// The states of a slave in each second after the master is gone. `seconds` has the positions of this slave and of
/// another one.
fn without_master(seconds: impl IntoIterator<Item = (u64, Option<u64>)>) -> Vec<NodeState> {
    let begin = Instant::now();
    let mut verdicts = with_two_slaves(begin);
    let mut states = Vec::new();
    for (number, (replayed, other)) in (1..).zip(seconds) {
        let look = second(begin, number);
        verdicts.judge(MASTER, SlaveLog::Masters, look, &Finding::Failed);
        match other {
            Some(other) => drop(at(&mut verdicts, look, OTHER, ReportedRole::Slave, other)),
            None => drop(verdicts.judge(OTHER, SlaveLog::Masters, look, &Finding::Failed)),
        }
        states.extend(at(&mut verdicts, look, SLAVE, ReportedRole::Slave, replayed));
    }
    states
}

#[test]
fn without_the_master_a_slave_is_late_that_lacks_what_another_one_has() {
    use NodeState::{Behind, Up};

    assert_eq!(without_master([(100, Some(100)); 8]), [Up; 8], "nothing is known that it lacks");
    // The other slave may have been there since the look before.
    let late = [vec![Up; 3], vec![Behind; 5]].concat();
    assert_eq!(without_master([(100, Some(101)); 8]), late);
    let gone = (1..=8).map(|second| (100, (second < 6).then_some(101)));
    assert_eq!(without_master(gone), [vec![Up; 3], vec![Behind; 2], vec![Up; 3]].concat());
    let caught_up = (1..=8).map(|second| (if second < 6 { 100 } else { 101 }, Some(101)));
    assert_eq!(without_master(caught_up), [vec![Up; 3], vec![Behind; 2], vec![Up; 3]].concat(), "at once");
    // The application does not reach the master, which goes on writing.
    let goes_on = (1..=8).map(|second| (100 + second, Some(101 + second)));
    assert_eq!(without_master(goes_on), [Up; 8], "a moment behind at each look");
}

#[test]
fn without_the_master_what_no_slave_has_makes_none_of_them_late() {
    let begin = Instant::now();
    let mut verdicts = with_two_slaves(begin);
    at(&mut verdicts, second(begin, 1), MASTER, ReportedRole::Master, 101);
    for number in 2..=8 {
        verdicts.judge(MASTER, SlaveLog::Masters, second(begin, number), &Finding::Failed);
        at(&mut verdicts, second(begin, number), OTHER, ReportedRole::Slave, 100);
        let state = at(&mut verdicts, second(begin, number), SLAVE, ReportedRole::Slave, 100);
        assert_eq!(state, [NodeState::Up], "{number}");
    }
}

/// The states of the first of two slaves after a master at 100 is gone. `seconds` has what the two slaves tell in each
/// second.
fn compared(seconds: &[(Finding, Finding)]) -> Vec<NodeState> {
    let begin = Instant::now();
    let mut verdicts = with_two_slaves(begin);
    verdicts.checks.follow_promotion = false;
    let mut states = Vec::new();
    for (number, (slave, other)) in (1..).zip(seconds) {
        let look = second(begin, number);
        verdicts.judge(MASTER, SlaveLog::Masters, look, &Finding::Failed);
        verdicts.judge(OTHER, SlaveLog::Masters, look, other);
        let found = verdicts.judge(SLAVE, SlaveLog::Masters, look, slave).states;
        states.extend(found.iter().find(|(server, ..)| *server == SLAVE).map(|(_, state, _)| *state));
    }
    states
}

fn replayed(lsn: u64) -> Finding {
    Finding::Observed(observation(ReportedRole::Slave, 1, lsn))
}

#[test]
fn without_the_master_a_promoted_server_still_has_what_it_had_as_a_slave() {
    use NodeState::{Behind, Up};

    let promoted = Finding::Observed(observation(ReportedRole::Master, 2, 900));
    let seconds: Vec<_> = (1..=8)
        .map(|second| (replayed(100), if second < 3 { replayed(101) } else { promoted.clone() }))
        .collect();
    assert_eq!(compared(&seconds), [vec![Up; 3], vec![Behind; 5]].concat());
}

#[test]
fn without_the_master_a_server_of_another_system_tells_nothing() {
    let stranger = Observation { system: Some(8), ..observation(ReportedRole::Slave, 1, 900) };
    assert_eq!(compared(&vec![(replayed(100), Finding::Observed(stranger)); 8]), [NodeState::Up; 8]);
}

#[test]
fn without_the_master_a_look_that_fails_forgets_nothing() {
    use NodeState::{Behind, Up};

    // First the slave is restarted, then the other one.
    let seconds: Vec<_> = (1..=10)
        .map(|second| {
            let found = |failed: u64, lsn| if second == failed { Finding::Failed } else { replayed(lsn) };
            (found(5, 100), found(7, 101))
        })
        .collect();
    let while_it_is_away = [Up];
    let states = [vec![Up; 3], vec![Behind; 2], while_it_is_away.into(), vec![Behind; 3]].concat();
    assert_eq!(compared(&seconds), states);
}

#[test]
fn without_the_master_a_slave_that_is_always_late_stays_left_out() {
    use NodeState::{Behind, Up};

    // The master goes on for others, and the slave replays each second six seconds later.
    let seconds: Vec<_> = (1..=20_u64)
        .map(|second| (replayed(100 + second.saturating_sub(6)), replayed(100 + second)))
        .collect();
    assert_eq!(compared(&seconds), [vec![Up; 3], vec![Behind; 17]].concat());
}

#[test]
fn of_two_slaves_that_lack_something_of_each_other_neither_is_late() {
    let gtids = |first, second| {
        let position = Position::parse_gtids(&format!("0-1-{first},1-1-{second}"));
        Observation { role: ReportedRole::Unknown, position, ..Observation::default() }
    };
    let begin = Instant::now();
    let mut verdicts = Verdicts::new(MASTER, &[MASTER, SLAVE, OTHER], CHECKS);
    for server in [MASTER, SLAVE, OTHER] {
        verdicts.judge(server, SlaveLog::Masters, begin, &Finding::Observed(gtids(5, 5)));
    }
    for number in 1..=8 {
        let look = second(begin, number);
        verdicts.judge(MASTER, SlaveLog::Masters, look, &Finding::Failed);
        for (server, observed) in [(SLAVE, gtids(6, 5)), (OTHER, gtids(5, 6))] {
            let states = verdicts.judge(server, SlaveLog::Masters, look, &Finding::Observed(observed)).states;
            assert_eq!(states, [(server, NodeState::Up, Why::Nothing)], "{number}");
        }
    }
}

#[test]
fn slaves_of_a_promoted_server_are_compared_whatever_timeline_they_tell() {
    use NodeState::{Behind, Up};

    const THIRD: ServerId = ServerId(3);
    let begin = Instant::now();
    let mut verdicts = with_two_slaves(begin);
    verdicts.add(THIRD);
    at(&mut verdicts, begin.into(), THIRD, ReportedRole::Slave, 100);
    (1..=3).for_each(|number| {
        drop(verdicts.judge(MASTER, SlaveLog::Masters, second(begin, number), &Finding::Failed))
    });
    for number in 4..=6 {
        let promoted = Finding::Observed(observation(ReportedRole::Master, 2, 110));
        verdicts.judge(OTHER, SlaveLog::Masters, second(begin, number), &promoted);
        for slave in [SLAVE, THIRD] {
            at(&mut verdicts, second(begin, number), slave, ReportedRole::Slave, 110);
        }
    }
    let mut states = Vec::new();
    for number in 7..=12 {
        verdicts.judge(OTHER, SlaveLog::Masters, second(begin, number), &Finding::Failed);
        at(&mut verdicts, second(begin, number), THIRD, ReportedRole::Slave, 120);
        states.extend(at(&mut verdicts, second(begin, number), SLAVE, ReportedRole::Slave, 110));
    }
    assert_eq!(states, [vec![Up; 3], vec![Behind; 3]].concat());
}

#[test]
fn a_new_master_has_at_least_what_it_had_as_a_slave() {
    let begin = Instant::now();
    let mut verdicts = with_two_slaves(begin);
    for number in 1..=4 {
        verdicts.judge(MASTER, SlaveLog::Masters, second(begin, number), &Finding::Failed);
        at(&mut verdicts, second(begin, number), OTHER, ReportedRole::Slave, 101);
        at(&mut verdicts, second(begin, number), SLAVE, ReportedRole::Slave, 100);
    }
    // The end of a page is flushed with the next commit.
    let flushed = Some(Position::Lsn { timeline: 2, lsn: 90 });
    let promoted = Observation { flushed, ..observation(ReportedRole::Master, 2, 300) };
    verdicts.judge(OTHER, SlaveLog::Masters, second(begin, 5), &Finding::Observed(promoted));
    assert_eq!(at(&mut verdicts, second(begin, 5), SLAVE, ReportedRole::Slave, 100), [NodeState::Behind]);
    assert_eq!(at(&mut verdicts, second(begin, 6), SLAVE, ReportedRole::Slave, 101), [NodeState::Up]);
}

#[test]
fn without_timelines_another_server_at_the_address_of_the_master_is_a_new_master() {
    let gtids = |sequence| Observation {
        position: Position::parse_gtids(&format!("0-1-{sequence}")),
        ..Observation::default()
    };
    for (instance, state) in [("b", NodeState::Behind), ("a", NodeState::Up)] {
        let begin = Instant::now();
        let mut verdicts = new(&CHECKS);
        arrive(&mut verdicts, MASTER, "a");
        let looks =
            [(MASTER, 0, gtids(5)), (SLAVE, 0, gtids(5)), (MASTER, 8, gtids(6)), (SLAVE, 8, gtids(5))];
        let mut states = Vec::new();
        for (server, at, observed) in looks {
            if at == 8 && server == MASTER {
                arrive(&mut verdicts, MASTER, instance);
            }
            let found = Finding::Observed(observed);
            states = verdicts.judge(server, SlaveLog::Masters, second(begin, at), &found).states;
        }
        assert_eq!(states[0].1, state, "{instance}");
    }
}

#[test]
fn what_was_seen_without_the_master_is_over_once_it_answers() {
    use NodeState::Up;

    let begin = Instant::now();
    let mut verdicts = with_two_slaves(begin);
    for number in 1..=6 {
        verdicts.judge(MASTER, SlaveLog::Masters, second(begin, number), &Finding::Failed);
        // The other slave follows another server by now, and still tells the timeline of before.
        at(&mut verdicts, second(begin, number), OTHER, ReportedRole::Slave, 900);
        at(&mut verdicts, second(begin, number), SLAVE, ReportedRole::Slave, 100);
    }
    for number in 7..=12 {
        at(&mut verdicts, second(begin, number), MASTER, ReportedRole::Master, 100 + number);
        let state = at(&mut verdicts, second(begin, number), SLAVE, ReportedRole::Slave, 100 + number);
        assert_eq!(state, [Up], "{number}");
    }
}

#[test]
fn a_slave_that_lacks_what_a_new_master_had_is_left_out_until_it_has_it() {
    use NodeState::{Behind, Up};

    // The result is the same if the new master was seen to have the position before.
    for replayed in [100, 101] {
        let begin = Instant::now();
        let mut verdicts = with_two_slaves(begin);
        for number in 1..=4 {
            verdicts.judge(MASTER, SlaveLog::Masters, second(begin, number), &Finding::Failed);
            at(
                &mut verdicts,
                second(begin, number),
                OTHER,
                ReportedRole::Slave,
                if number < 4 { 100 } else { replayed },
            );
            assert_eq!(at(&mut verdicts, second(begin, number), SLAVE, ReportedRole::Slave, 100), [Up]);
        }
        let promoted = Finding::Observed(observation(ReportedRole::Master, 2, 101));
        let verdict = verdicts.judge(OTHER, SlaveLog::Masters, second(begin, 5), &promoted);
        assert_eq!(verdict.new_master, Some(OTHER));
        let found = Finding::Observed(observation(ReportedRole::Slave, 1, 100));
        let states = verdicts.judge(SLAVE, SlaveLog::Masters, second(begin, 5), &found).states;
        assert_eq!(states, [(SLAVE, Behind, Why::SinceFailover(Duration::from_secs(5)))]);
        verdicts.judge(OTHER, SlaveLog::Masters, second(begin, 6), &promoted);
        assert_eq!(at(&mut verdicts, second(begin, 6), SLAVE, ReportedRole::Slave, 101), [Up], "at once");
    }
}

#[test]
fn a_promoted_server_at_the_address_of_the_master_is_a_new_master() {
    let begin = Instant::now();
    let mut verdicts = with_two_slaves(begin);
    for number in 1..=4 {
        verdicts.judge(MASTER, SlaveLog::Masters, second(begin, number), &Finding::Failed);
    }
    let promoted = Finding::Observed(observation(ReportedRole::Master, 2, 101));
    verdicts.judge(MASTER, SlaveLog::Masters, second(begin, 5), &promoted);
    assert_eq!(at(&mut verdicts, second(begin, 5), SLAVE, ReportedRole::Slave, 100), [NodeState::Behind]);
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

#[test]
fn a_lag_that_is_not_known_excludes_while_the_master_answers() {
    use SlaveLog::{Masters, Other};

    let hidden = Observation { position: None, ..observation(ReportedRole::Slave, 1, 100) };
    for (unknown_lag, log, state) in [
        (UnknownLag::Unexpected, Masters, NodeState::LagUnknown),
        (UnknownLag::Unexpected, Other, NodeState::Up),
        (UnknownLag::LeaveOut, Masters, NodeState::LagUnknown),
        (UnknownLag::LeaveOut, Other, NodeState::LagUnknown),
        (UnknownLag::Use, Masters, NodeState::Up),
        (UnknownLag::Use, Other, NodeState::Up),
    ] {
        let mut verdicts = new(&Checks { unknown_lag, ..CHECKS });
        let judge = |verdicts: &mut Verdicts| {
            let verdict = observe_of(verdicts, SLAVE, log, &hidden);
            let (_, state, why) = verdict.states[0];
            let untold = if log == Masters { Untold::BySlave } else { Untold::OtherLog };
            let expected = if state == NodeState::LagUnknown { Why::Untold(untold) } else { Why::Nothing };
            assert_eq!((verdict.lag, why), (None, expected));
            state
        };
        assert_eq!(judge(&mut verdicts), NodeState::Up, "nothing is known of the master");
        observe(&mut verdicts, MASTER, &observation(ReportedRole::Master, 1, 100));
        assert_eq!(judge(&mut verdicts), state, "{unknown_lag:?} {log:?}");
        fail(&mut verdicts, MASTER);
        assert_eq!(judge(&mut verdicts), NodeState::Up, "the master is gone");
        observe(&mut verdicts, MASTER, &observation(ReportedRole::Slave, 1, 100));
        assert_eq!(judge(&mut verdicts), NodeState::Up, "the master is a slave");
    }

    // Here, the master hides its log.
    let mut verdicts = new(&CHECKS);
    observe(
        &mut verdicts,
        MASTER,
        &Observation { position: None, ..observation(ReportedRole::Master, 1, 0) },
    );
    let verdict = observe(&mut verdicts, SLAVE, &observation(ReportedRole::Slave, 1, 100));
    assert_eq!(verdict.states, [(SLAVE, NodeState::LagUnknown, Why::Untold(Untold::ByMaster))]);
}

#[test]
fn a_server_of_another_system_serves_if_it_is_declared_to() {
    let theirs = |role| Observation { system: Some(SYSTEM + 1), ..observation(role, 1, 900) };
    for role in [ReportedRole::Master, ReportedRole::Slave] {
        let judged = |log| observe_of(&mut in_office(), SLAVE, log, &theirs(role));
        assert_eq!(judged(SlaveLog::Masters).states, [(SLAVE, NodeState::Stranger, Why::Nothing)]);
        let Verdict { states, lag, new_master, .. } = judged(SlaveLog::Other);
        assert_eq!((&states[..], lag, new_master), (&[(SLAVE, NodeState::Up, Why::Nothing)][..], None, None));

        let mut verdicts = after_a_loss();
        assert_eq!(observe_of(&mut verdicts, SLAVE, SlaveLog::Other, &theirs(role)).new_master, None);
    }

    let mut verdicts = in_office();
    observe_of(&mut verdicts, SLAVE, SlaveLog::Other, &theirs(ReportedRole::Master));
    assert_eq!((verdicts.depth(MASTER), verdicts.depth(SLAVE)), (Depth::Light, Depth::Light));

    // A slave that is declared `logical` by mistake, and was promoted.
    let ours = observation(ReportedRole::Master, 2, 100);
    let verdict = observe_of(&mut in_office(), SLAVE, SlaveLog::Other, &ours);
    assert_eq!(verdict.states[0], (SLAVE, NodeState::Promoted, Why::Nothing));
}

/// A master that writes all the time and is looked at each second, and a slave that replays with the given lag.
#[test]
fn a_lag_about_the_limit_has_a_slave_left_out_once() {
    let changes = |lag: fn(u64) -> u64| {
        let (mut verdicts, start) = (new(&CHECKS), Instant::now());
        let mut serves = Vec::new();
        for second in 1..=600 {
            let now = start + Duration::from_secs(second);
            let mut look = |server, role, lsn| {
                let found = Finding::Observed(observation(role, 1, lsn));
                verdicts.judge(server, SlaveLog::Masters, now, &found)
            };
            look(MASTER, ReportedRole::Master, 1000 * second);
            let replayed = (1000 * second).saturating_sub(lag(second));
            serves.push(look(SLAVE, ReportedRole::Slave, replayed).states[0].1 == NodeState::Up);
        }
        serves.windows(2).filter(|pair| pair[0] != pair[1]).count()
    };
    // Lags are in milliseconds. The slave is left out at launch as well, until its lag is known.
    assert_eq!(changes(|_| 500), 1, "never late");
    assert_eq!(changes(|second| 2_500 + second % 3 * 500), 2, "about the limit");
    assert_eq!(changes(|second| if second < 60 { 5_000 } else { 1_500 }), 1, "later half of it");
    let each_12_seconds = changes(|second| if second % 12 < 4 { 5_000 } else { 0 });
    assert!((2..=24).contains(&each_12_seconds), "{each_12_seconds} changes");
}

fn arrive(verdicts: &mut Verdicts, server: ServerId, instance: &str) {
    verdicts.record_instance(server, Some(Instance::of(instance)));
}

/// At launch, the master and the address of a slave lead to one process.
fn with_the_master_twice() -> Verdicts {
    let mut verdicts = new(&CHECKS);
    let both = observation(ReportedRole::Master, 1, 100);
    for server in [MASTER, SLAVE] {
        arrive(&mut verdicts, server, "a");
        observe(&mut verdicts, server, &both);
    }
    verdicts
}

#[test]
fn the_master_by_another_address_is_no_slave_and_no_rival() {
    let mut verdicts = with_the_master_twice();
    let takes_writes = observation(ReportedRole::Master, 1, 110);
    let itself = (SLAVE, NodeState::MasterItself, Why::Nothing);
    assert_eq!(observe(&mut verdicts, SLAVE, &takes_writes).states, [itself]);
    assert_eq!(observe(&mut verdicts, MASTER, &takes_writes).states, [(MASTER, NodeState::Up, Why::Nothing)]);

    // The process is restarted, and found at the slave's address first.
    fail(&mut verdicts, SLAVE);
    arrive(&mut verdicts, SLAVE, "b");
    assert_eq!(observe(&mut verdicts, SLAVE, &takes_writes).states, [itself]);
    arrive(&mut verdicts, MASTER, "b");
    observe(&mut verdicts, MASTER, &takes_writes);
    for _ in 0..=FAILURES_BEFORE_FAILOVER {
        assert_eq!(observe(&mut verdicts, SLAVE, &takes_writes).states, [itself]);
    }
}

/// Behind a balancer, `url` leads to the master, and the address of the slave to all other servers. The master has
/// died. The address of the slaves leads to the promoted server, and writes go there.
fn with_the_master_at_the_address_of_slaves() -> Verdicts {
    let mut verdicts = new(&CHECKS);
    arrive(&mut verdicts, MASTER, "a");
    observe(&mut verdicts, MASTER, &observation(ReportedRole::Master, 1, 100));
    arrive(&mut verdicts, SLAVE, "b");
    observe(&mut verdicts, SLAVE, &observation(ReportedRole::Slave, 1, 100));
    (0..FAILURES_BEFORE_FAILOVER).for_each(|_| drop(fail(&mut verdicts, MASTER)));
    let verdict = observe(&mut verdicts, SLAVE, &observation(ReportedRole::Master, 2, 110));
    assert_eq!((verdict.new_master, verdict.succession), (Some(SLAVE), Succession::Promotion));
    verdicts
}

#[test]
fn the_master_is_followed_to_url_as_soon_as_that_leads_there() {
    let mut verdicts = with_the_master_at_the_address_of_slaves();
    arrive(&mut verdicts, MASTER, "b");
    let verdict = observe(&mut verdicts, MASTER, &observation(ReportedRole::Master, 2, 120));
    assert_eq!((verdict.new_master, verdict.succession), (Some(MASTER), Succession::SameProcess));
    assert_eq!(verdict.states, [(MASTER, NodeState::Up, Why::Nothing)]);
    let itself = observe(&mut verdicts, SLAVE, &observation(ReportedRole::Master, 2, 120)).states;
    assert_eq!(itself, [(SLAVE, NodeState::MasterItself, Why::Nothing)]);
    arrive(&mut verdicts, SLAVE, "c");
    let slave = observe(&mut verdicts, SLAVE, &observation(ReportedRole::Slave, 2, 120)).states;
    assert_eq!(slave, [(SLAVE, NodeState::Up, Why::Nothing)]);
}

/// MariaDB and MySQL: a server that takes writes tells no role.
#[test]
fn without_roles_the_master_is_followed_to_url_as_well() {
    let gtids = |role, sequence| Observation {
        role,
        position: Position::parse_gtids(&format!("0-1-{sequence}")),
        ..Observation::default()
    };
    let mut verdicts = new(&CHECKS);
    arrive(&mut verdicts, MASTER, "a");
    observe(&mut verdicts, MASTER, &gtids(ReportedRole::Unknown, 5));
    arrive(&mut verdicts, SLAVE, "b");
    observe(&mut verdicts, SLAVE, &gtids(ReportedRole::Slave, 5));
    (0..FAILURES_BEFORE_FAILOVER).for_each(|_| drop(fail(&mut verdicts, MASTER)));
    assert_eq!(observe(&mut verdicts, SLAVE, &gtids(ReportedRole::Unknown, 5)).new_master, Some(SLAVE));
    arrive(&mut verdicts, MASTER, "b");
    let verdict = observe(&mut verdicts, MASTER, &gtids(ReportedRole::Unknown, 6));
    assert_eq!((verdict.new_master, verdict.succession), (Some(MASTER), Succession::SameProcess));
    arrive(&mut verdicts, SLAVE, "a");
    observe(&mut verdicts, SLAVE, &gtids(ReportedRole::Slave, 6));
    assert_eq!(verdicts.master, MASTER);
}

#[test]
fn the_master_is_followed_to_any_address_once_its_own_leads_elsewhere() {
    const THIRD: ServerId = ServerId(2);
    let mut verdicts = with_the_master_at_the_address_of_slaves();
    verdicts.add(THIRD);
    arrive(&mut verdicts, THIRD, "b");
    let itself = observe(&mut verdicts, THIRD, &observation(ReportedRole::Master, 2, 120));
    assert_eq!(
        (itself.new_master, itself.states),
        (None, vec![(THIRD, NodeState::MasterItself, Why::Nothing)])
    );
    arrive(&mut verdicts, SLAVE, "c");
    let verdict = observe(&mut verdicts, SLAVE, &observation(ReportedRole::Slave, 2, 120));
    assert_eq!((verdict.new_master, verdict.succession), (Some(THIRD), Succession::SameProcess));
}

#[test]
fn url_needs_no_later_timeline_than_the_master_that_was_restarted() {
    for (timeline, lsn, follows) in [(2, 110, true), (2, 105, false), (3, 90, true), (1, 200, false)] {
        let mut verdicts = with_the_master_at_the_address_of_slaves();
        arrive(&mut verdicts, SLAVE, "c");
        observe(&mut verdicts, SLAVE, &observation(ReportedRole::Slave, 2, 110));
        arrive(&mut verdicts, MASTER, "d");
        let verdict = observe(&mut verdicts, MASTER, &observation(ReportedRole::Master, timeline, lsn));
        assert_eq!(verdict.new_master, follows.then_some(MASTER), "{timeline}, {lsn}");
    }
}

#[test]
fn what_is_the_master_itself_no_more_is_judged_like_any() {
    let takes_writes = observation(ReportedRole::Master, 1, 110);
    let mut verdicts = with_the_master_twice();
    arrive(&mut verdicts, SLAVE, "b");
    let standby = observation(ReportedRole::Slave, 1, 100);
    assert_eq!(observe(&mut verdicts, SLAVE, &standby).states, [(SLAVE, NodeState::Up, Why::Nothing)]);

    let mut verdicts = with_the_master_twice();
    arrive(&mut verdicts, SLAVE, "b");
    (1..FAILURES_BEFORE_FAILOVER).for_each(|_| drop(observe(&mut verdicts, SLAVE, &takes_writes)));
    let second = observe(&mut verdicts, SLAVE, &takes_writes).states;
    assert_eq!(second, [(SLAVE, NodeState::SecondMaster, Why::Nothing)]);
}

#[test]
fn a_server_that_has_left_is_judged_no_more_and_the_master_does_not_leave() {
    let mut verdicts = after_a_loss();
    verdicts.remove(SLAVE);
    assert!(!verdicts.knows(SLAVE));
    verdicts.remove(MASTER);
    assert!(verdicts.knows(MASTER));
    verdicts.add(SLAVE);
    let promoted = observation(ReportedRole::Master, 2, 100);
    let verdict = observe(&mut verdicts, SLAVE, &promoted);
    assert_eq!(verdict.new_master, None, "it was not seen as a slave since it is there again");
}

/// Very little is known of the master yet.
#[test]
fn who_is_a_moment_behind_right_after_launch_is_looked_at_again_and_serves() {
    let (mut verdicts, began) = (new(&CHECKS), Instant::now());
    let mut look = |server, role, lsn, seconds| {
        let finding = Finding::Observed(observation(role, 1, lsn));
        verdicts.judge(server, SlaveLog::Masters, began + Duration::from_secs_f64(seconds), &finding).states
    };
    look(MASTER, ReportedRole::Master, 100, 0.0);
    assert_eq!(look(SLAVE, ReportedRole::Slave, 99, 0.1), [(SLAVE, NodeState::New, Why::Nothing)]);
    look(MASTER, ReportedRole::Master, 101, 0.9);
    assert_eq!(look(SLAVE, ReportedRole::Slave, 99, 0.9), [(SLAVE, NodeState::New, Why::Nothing)]);
    assert_eq!(look(SLAVE, ReportedRole::Slave, 100, 0.9), [(SLAVE, NodeState::Up, Why::Nothing)]);
}

/// The result does not depend on how much the master writes.
#[test]
fn who_is_behind_for_longer_than_a_moment_after_launch_is_behind() {
    for idle in [true, false] {
        let (mut verdicts, began) = (new(&CHECKS), Instant::now());
        let mut look = |server, role, lsn, seconds| {
            let finding = Finding::Observed(observation(role, 1, lsn));
            verdicts.judge(server, SlaveLog::Masters, began + Duration::from_secs(seconds), &finding).states
        };
        look(MASTER, ReportedRole::Master, 100, 0);
        look(SLAVE, ReportedRole::Slave, 99, 0);
        look(MASTER, ReportedRole::Master, if idle { 100 } else { 101 }, 1);
        let known = Duration::from_secs(if idle { 0 } else { 1 });
        let behind = (SLAVE, NodeState::Behind, Why::Lag(Lag::MoreThan(known)));
        assert_eq!(look(SLAVE, ReportedRole::Slave, 99, 1), [behind], "idle: {idle}");
    }
}

fn gtids(role: ReportedRole, told: Option<&str>) -> Observation {
    Observation {
        role,
        position: told.map(|told| Position::parse_gtids(told).unwrap()),
        ..Observation::default()
    }
}

/// MariaDB and MySQL: an instance is one server, however often it is restarted.
#[test]
fn without_the_master_a_server_that_was_never_compared_with_it_tells_nothing() {
    let begin = Instant::now();
    let mut verdicts = Verdicts::new(MASTER, &[MASTER, SLAVE, OTHER], CHECKS);
    for (server, role) in
        [(MASTER, ReportedRole::Unknown), (SLAVE, ReportedRole::Slave), (OTHER, ReportedRole::Slave)]
    {
        arrive(&mut verdicts, server, &format!("{server:?}"));
        verdicts.judge(server, SlaveLog::Masters, begin, &Finding::Observed(gtids(role, Some("0-1-5"))));
    }
    for number in 1..=8 {
        let look = second(begin, number);
        verdicts.judge(MASTER, SlaveLog::Masters, look, &Finding::Failed);
        // The address leads to an old server of the same name, which went on by itself.
        arrive(&mut verdicts, OTHER, "old");
        let old = Finding::Observed(gtids(ReportedRole::Slave, Some("0-1-9")));
        verdicts.judge(OTHER, SlaveLog::Masters, look, &old);
        let slave = Finding::Observed(gtids(ReportedRole::Slave, Some("0-1-5")));
        let states = verdicts.judge(SLAVE, SlaveLog::Masters, look, &slave).states;
        assert_eq!(states, [(SLAVE, NodeState::Up, Why::Nothing)], "{number}");
    }
}

/// MariaDB: a master tells what it has logged, and a slave what it has replayed. A server that was asked for one of
/// them before its role was known has to be asked for the other.
#[test]
fn a_position_that_was_told_in_another_role_is_asked_for_again() {
    use ReportedRole::{Slave, Unknown};

    const THIRD: ServerId = ServerId(3);
    let begin = Instant::now();
    let mut number = 0;
    let mut look = |verdicts: &mut Verdicts, server, found: Option<Observation>| {
        number += 1;
        let finding = found.map_or(Finding::Failed, Finding::Observed);
        verdicts.judge(server, SlaveLog::Masters, second(begin, number), &finding)
    };
    // Writes go to the promoted server at the address of the slaves.
    let mut verdicts = Verdicts::new(MASTER, &[MASTER, SLAVE, OTHER], CHECKS);
    for (server, role) in [(MASTER, Unknown), (SLAVE, Slave), (OTHER, Slave)] {
        arrive(&mut verdicts, server, &format!("{server:?}"));
        look(&mut verdicts, server, Some(gtids(role, Some("0-1-5"))));
    }
    (0..FAILURES_BEFORE_FAILOVER).for_each(|_| drop(look(&mut verdicts, MASTER, None)));
    let new_master = look(&mut verdicts, SLAVE, Some(gtids(Unknown, Some("0-1-5")))).new_master;
    assert_eq!(new_master, Some(SLAVE));
    look(&mut verdicts, SLAVE, Some(gtids(Unknown, Some("0-2-120"))));

    // Another address leads there, too. What its server has replayed is of the time before it was promoted.
    verdicts.add(THIRD);
    verdicts.record_instance(THIRD, verdicts.servers[&SLAVE].instance);
    look(&mut verdicts, THIRD, Some(gtids(Unknown, Some("0-1-5"))));
    // The address of the slaves leads to a slave, which was asked for what it has logged as a master.
    arrive(&mut verdicts, SLAVE, "c");
    let verdict = look(&mut verdicts, SLAVE, Some(gtids(Slave, None)));
    assert_eq!((verdict.new_master, verdict.succession), (Some(THIRD), Succession::SameProcess));
    assert!(verdict.states.contains(&(SLAVE, NodeState::New, Why::Nothing)), "{:?}", verdict.states);
    let verdict = look(&mut verdicts, SLAVE, Some(gtids(Slave, Some("0-2-120"))));
    assert_eq!((verdict.states[0].1, verdict.lag), (NodeState::Up, Some(Lag::AtMost(Duration::ZERO))));

    // `url` leads to the master, as found by a question that is for slaves.
    verdicts.record_instance(MASTER, verdicts.servers[&THIRD].instance);
    let verdict = look(&mut verdicts, MASTER, Some(gtids(Unknown, Some("0-1-5"))));
    assert_eq!((verdict.new_master, verdict.succession), (Some(MASTER), Succession::SameProcess));
    let lag = look(&mut verdicts, OTHER, Some(gtids(Slave, Some("0-1-5")))).lag;
    assert!(matches!(lag, Some(Lag::AtMost(lag)) if lag > Duration::ZERO), "{lag:?}");
}

#[test]
fn a_slaves_own_transactions_are_reported_once_for_each_source() {
    const MASTERS: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-100";
    const FIRST: &str = "11111111-71ca-11e1-9e33-c80aa9429562";
    const SECOND: &str = "22222222-71ca-11e1-9e33-c80aa9429562";

    let observed =
        |set: &str| Observation { position: Position::parse_gtid_set(set), ..Observation::default() };
    let mut verdicts = new(&CHECKS);
    observe(&mut verdicts, MASTER, &observed(MASTERS));
    for (own, reported) in [
        ("".to_owned(), "".to_owned()),
        (format!(",{FIRST}:1"), format!("{FIRST}:1-1")),
        (format!(",{FIRST}:1-5"), "".into()),
        (format!(",{FIRST}:1-5,{SECOND}:1-2"), format!("{SECOND}:1-2")),
        (format!(",{FIRST}:1-6,{SECOND}:1-3"), "".into()),
    ] {
        let verdict = observe(&mut verdicts, SLAVE, &observed(&format!("{MASTERS}{own}")));
        assert_eq!((verdict.errant.to_string(), verdict.states[0].1), (reported, NodeState::Up), "{own}");
    }
}

#[test]
fn a_server_that_was_full_in_between_has_not_failed_three_times_in_a_row() {
    let mut verdicts = in_office();
    let promoted = observation(ReportedRole::Master, 2, 110);
    (1..FAILURES_BEFORE_FAILOVER).for_each(|_| drop(fail(&mut verdicts, MASTER)));
    full(&mut verdicts, MASTER, Instant::now());
    for number in 1..FAILURES_BEFORE_FAILOVER {
        fail(&mut verdicts, MASTER);
        assert_eq!(verdicts.outcome(MASTER), Outcome::Failed(number));
        assert_eq!(observe(&mut verdicts, SLAVE, &promoted).new_master, None, "{number}");
    }
    assert_eq!(fail(&mut verdicts, MASTER).new_master, Some(SLAVE));
}
