use super::Master::{Answers, Gone};
use super::*;
use crate::config::UnknownLag;

const SECOND: Duration = Duration::from_secs(1);

const CHECKS: Checks = Checks {
    interval: SECOND,
    timeout: SECOND,
    max_lag: Some(Duration::from_secs(3)),
    unknown_lag: UnknownLag::Unexpected,
    follow_promotion: false,
};

fn at_most(seconds: f64) -> Lag {
    Lag::AtMost(Duration::from_secs_f64(seconds))
}

fn more_than(seconds: f64) -> Lag {
    Lag::MoreThan(Duration::from_secs_f64(seconds))
}

/// Checks after each lag whether the slave is left out. Each entry begins with the seconds since the start.
fn story(checks: &Checks, seen: &[(u64, Lag, Master, bool)]) {
    let (start, mut lateness) = (Instant::now(), Lateness::default());
    for (second, lag, master, left_out) in seen {
        lateness.observe(checks, *lag, start + SECOND * *second as u32, *master);
        assert_eq!(lateness.leaves_out(), *left_out, "{lag:?} after {second} s: {lateness:?}");
    }
}

#[test]
fn it_serves_again_after_a_while_and_well_below_the_limit() {
    story(
        &CHECKS,
        &[
            (0, at_most(3.0), Answers, false),
            (1, at_most(3.1), Answers, true),
            (2, at_most(0.0), Answers, true),
            (10, at_most(0.0), Answers, true),
            (11, at_most(2.9), Answers, true),
            (12, at_most(2.3), Answers, true),
            (13, more_than(0.5), Answers, true),
            (14, at_most(2.25), Answers, false),
            (15, at_most(3.0), Answers, false),
        ],
    );
}

#[test]
fn it_stays_out_longer_each_time_that_it_comes_back_in_vain() {
    let (start, mut lateness) = (Instant::now(), Lateness::default());
    let mut now = start;
    for rest in [10, 20, 40, 80, 80] {
        lateness.observe(&CHECKS, at_most(4.0), now, Answers);
        lateness.observe(&CHECKS, at_most(0.0), now + SECOND * (rest - 1), Answers);
        assert!(lateness.leaves_out(), "for {rest} s");
        lateness.observe(&CHECKS, at_most(0.0), now + SECOND * rest, Answers);
        assert!(!lateness.leaves_out(), "after {rest} s");
        now += SECOND * (rest + 5);
    }
    // The slave has served for longer than it was out.
    now += SECOND * 80;
    lateness.observe(&CHECKS, at_most(4.0), now, Answers);
    lateness.observe(&CHECKS, at_most(0.0), now + SECOND * 10, Answers);
    assert!(!lateness.leaves_out());
}

#[test]
fn while_the_master_is_gone_whoever_is_within_the_limit_serves() {
    story(
        &CHECKS,
        &[
            (0, at_most(4.0), Answers, true),
            (1, at_most(3.1), Gone, true),
            (2, at_most(2.9), Gone, false),
            (3, at_most(2.9), Answers, false),
        ],
    );
}

#[test]
fn a_lag_that_nobody_knows_yet_is_no_reason_to_stay_out() {
    story(&CHECKS, &[(0, more_than(0.0), Answers, false), (2, more_than(3.1), Answers, true)]);
}

#[test]
fn a_limit_of_one_probe_can_be_met() {
    let checks = Checks { max_lag: Some(SECOND), ..CHECKS };
    story(&checks, &[(0, at_most(1.1), Answers, true), (10, at_most(1.0), Answers, false)]);
}

#[test]
fn without_a_limit_nobody_is_late() {
    story(&Checks { max_lag: None, ..CHECKS }, &[(0, at_most(1e6), Answers, false)]);
}

#[test]
fn with_few_probes_nobody_stays_out_for_hours() {
    let checks = Checks { interval: SECOND * 600, max_lag: Some(SECOND * 600), ..CHECKS };
    story(&checks, &[(0, at_most(700.0), Answers, true), (60, at_most(0.0), Answers, false)]);
}
