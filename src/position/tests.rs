use proptest::prelude::*;

use super::*;

fn lsn(timeline: u32, lsn: u64) -> Position {
    Position::Lsn { timeline, lsn }
}

/// A time by the first clock.
fn time(ms: u64) -> Position {
    Position::Time { clock: 1, ms }
}

fn seqno(cluster: u128, seqno: u64) -> Position {
    Position::Seqno { cluster, seqno }
}

fn gtids(text: &str) -> Position {
    Position::parse_gtids(text).unwrap()
}

fn set(text: &str) -> Position {
    Position::parse_gtid_set(text).unwrap()
}

/// The lag at the time of the latest look at the master.
fn lag(history: &History, replayed: &Position) -> Option<Lag> {
    history.lag(replayed, history.looked()?)
}

const A: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
const B: &str = "4f22fa47-71ca-11e1-9e33-c80aa9429562";

#[test]
fn what_includes_what() {
    let table = [
        (lsn(1, 10), lsn(1, 10), true),
        (lsn(1, 11), lsn(1, 10), true),
        (lsn(1, 9), lsn(1, 10), false),
        // The same number in another history is another position.
        (lsn(2, 11), lsn(1, 10), false),
        (lsn(1, 11), lsn(2, 10), false),
        (gtids("0-10-8"), gtids("0-10-8"), true),
        (gtids("0-10-9,1-10-3"), gtids("0-10-8"), true),
        (gtids("0-10-9"), gtids("0-10-8,1-10-3"), false),
        (gtids("0-10-9,1-10-2"), gtids("0-10-8,1-10-3"), false),
        // MASTER_GTID_WAIT would say yes.
        (gtids("0-10-9"), gtids("0-99-9"), false),
        (set(&format!("{A}:1-9")), set(&format!("{A}:1-9")), true),
        (set(&format!("{A}:1-9")), set(&format!("{A}:2-5:7")), true),
        (set(&format!("{A}:1-5:7")), set(&format!("{A}:1-7")), false),
        (set(&format!("{A}:1-9")), set(&format!("{A}:1-9,{B}:1")), false),
        (set(&format!("{A}:1-9,\n{B}:1")), set(&format!("{A}:1-9,{B}:1")), true),
        (time(5), time(5), true),
        (time(4), time(5), false),
        // The machine has been started again, or a container has a clock of its own.
        (Position::Time { clock: 2, ms: 9 }, time(5), false),
        (lsn(1, 10), time(5), false),
        (gtids("0-10-8"), lsn(1, 1), false),
    ];
    for (here, there, includes) in table {
        assert_eq!(here.includes(&there), includes, "{here:?} {there:?}");
    }
}

#[test]
fn what_lacks_what() {
    let table = [
        (lsn(1, 10), lsn(1, 10), false),
        (lsn(1, 10), lsn(1, 11), true),
        (lsn(2, 10), lsn(1, 11), true),
        (lsn(2, 12), lsn(1, 11), false),
        (gtids("0-10-8"), gtids("0-10-8"), false),
        (gtids("0-10-8"), gtids("0-10-9"), true),
        // A lost branch, whose numbers the master has given to others.
        (gtids("0-10-8,0-20-11"), gtids("0-10-9"), true),
        (gtids("0-10-8,0-20-11"), gtids("0-20-12"), true),
        // The log of a master that was made from a copy begins after the slave's transactions of the former master.
        (gtids("0-20-11"), gtids("0-10-9"), false),
        (gtids("0-20-11"), gtids("0-10-12"), true),
        // A domain that the master has never heard of.
        (gtids("0-20-11"), gtids("0-20-11,7-3-1"), false),
        (set(&format!("{A}:1-9")), set(&format!("{A}:1-9")), false),
        (set(&format!("{A}:1-9")), set(&format!("{A}:1-10")), true),
        // A transaction that the slave wrote itself.
        (set(&format!("{A}:1-9")), set(&format!("{A}:1-9,{B}:1")), false),
        // A node that is ahead in its cluster.
        (seqno(1, 4), seqno(1, 5), false),
        (time(4), time(5), false),
        (lsn(1, 10), time(5), false),
    ];
    for (master, slave, lacks) in table {
        assert_eq!(master.lacks(&slave), lacks, "{master:?} {slave:?}");
    }
}

#[test]
fn what_is_merged_includes_both_of_one_history() {
    for (a, b) in [
        (lsn(1, 10), lsn(1, 11)),
        (gtids("0-10-8"), gtids("1-10-3")),
        (gtids("0-10-8,1-10-1"), gtids("0-10-7,1-10-3")),
        (set(&format!("{A}:1-9")), set(&format!("{A}:1-10"))),
        (seqno(1, 4), seqno(1, 5)),
        (time(4), time(5)),
    ] {
        for (a, b) in [(&a, &b), (&b, &a)] {
            let merged = a.clone().merge(b.clone());
            assert!(merged.includes(a) && merged.includes(b), "{merged:?}");
        }
    }
    assert_eq!(lsn(2, 10).merge(lsn(1, 99)), lsn(2, 10), "the later claim");
    assert_eq!(gtids("0-20-5").merge(gtids("0-10-9")), gtids("0-20-5"), "the later claim");
}

#[test]
fn the_transactions_of_one_server_are_not_those_of_another_one_that_goes_on_counting() {
    let contents = gtids("0-10-5,0-20-9");
    assert!(contents.names(&gtids("0-10-5")) && contents.names(&gtids("0-20-7")));
    assert!(!contents.names(&gtids("0-10-8")), "server 10 wrote it after server 20 was promoted");
}

#[test]
fn the_place_of_a_node_in_its_cluster() {
    let parsed = Position::parse_seqno("00000000-0000-0000-0000-00000000000a:5");
    assert_eq!(parsed, Some(seqno(10, 5)));
    // A server that is in no cluster, and one that does not know its place yet.
    for text in ["00000000-0000-0000-0000-000000000000:-1", ":5", "a:18446744073709551615", "5", ""] {
        assert_eq!(Position::parse_seqno(text), None, "{text}");
    }
    assert!(seqno(10, 5).includes(&seqno(10, 5)) && !seqno(10, 4).includes(&seqno(10, 5)));
    assert!(!seqno(11, 6).includes(&seqno(10, 5)), "another cluster");
}

#[test]
fn what_is_no_position() {
    for text in ["", "0-10", "0-10-8-1", "0-10-x", "0-10-8,"] {
        assert_eq!(Position::parse_gtids(text), None, "{text:?}");
    }
    for bytes in [&b""[..], b"L", b"L123", b"X12345678", b"T1234567", b"G1", b"S1"] {
        assert_eq!(Position::decode(bytes), None, "{bytes:?}");
    }
}

fn any_position() -> impl Strategy<Value = Position> {
    let gtid =
        any::<(u32, u32, u64)>().prop_map(|(domain, server, sequence)| Gtid { domain, server, sequence });
    prop_oneof![
        any::<(u32, u64)>().prop_map(|(timeline, lsn)| Position::Lsn { timeline, lsn }),
        prop::collection::vec(gtid, 0..5).prop_map(Position::Gtids),
        gtid_set::tests::any_set().prop_map(Position::GtidSet),
        any::<(u128, u64)>().prop_map(|(cluster, number)| seqno(cluster, number)),
        any::<(u64, u64)>().prop_map(|(clock, ms)| Position::Time { clock, ms }),
    ]
}

proptest! {
    #[test]
    fn a_position_survives_a_token(position in any_position()) {
        let mut bytes = Vec::new();
        position.encode(&mut bytes);
        prop_assert_eq!(Position::decode(&bytes), Some(position));
    }

    #[test]
    fn no_bytes_break_the_decoder(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = Position::decode(&bytes);
    }
}

#[test]
fn lag_is_since_when_the_master_has_been_further() {
    let begin = Instant::now();
    let s = Duration::from_secs;
    let mut history = History::default();
    assert_eq!(lag(&history, &lsn(1, 5)), None);

    history.record(lsn(1, 10), begin);
    assert_eq!(lag(&history, &lsn(1, 10)), Some(Lag::AtMost(s(0))));
    assert_eq!(lag(&history, &lsn(1, 9)), Some(Lag::MoreThan(s(0))));

    // Behind an idle master, no slave is late.
    history.record(lsn(1, 10), begin + s(100));
    assert_eq!(lag(&history, &lsn(1, 10)), Some(Lag::AtMost(s(0))));
    assert_eq!(lag(&history, &lsn(1, 9)), Some(Lag::MoreThan(s(0))));

    history.record(lsn(1, 20), begin + s(101));
    history.record(lsn(1, 30), begin + s(102));
    for (replayed, behind) in [
        (lsn(1, 31), Lag::AtMost(s(0))),
        (lsn(1, 30), Lag::AtMost(s(0))),
        (lsn(1, 29), Lag::AtMost(s(1))),
        (lsn(1, 20), Lag::AtMost(s(1))),
        (lsn(1, 19), Lag::AtMost(s(2))),
        (lsn(1, 9), Lag::MoreThan(s(2))),
        // A standby learns its timeline late.
        (lsn(2, 29), Lag::AtMost(s(1))),
    ] {
        assert_eq!(lag(&history, &replayed), Some(behind), "{replayed:?}");
    }

    history.record(lsn(1, 40), begin + s(4000));
    assert_eq!(lag(&history, &lsn(1, 10)), Some(Lag::MoreThan(s(0))), "forgotten after an hour");
    assert_eq!(history.latest(), Some(&lsn(1, 40)));
}

#[test]
fn a_gap_between_looks_is_part_of_the_lag_of_a_slave_that_stands_before_it() {
    let begin = Instant::now();
    let s = Duration::from_secs;
    let mut history = History::default();
    for (second, position) in [(0, 10), (1, 20), (2, 20), (10, 30), (11, 40)] {
        history.record(lsn(1, position), begin + s(second));
    }
    for (replayed, behind, gap) in [
        (5, Lag::MoreThan(s(11)), 0),
        (10, Lag::AtMost(s(11)), 1),
        (20, Lag::AtMost(s(9)), 8),
        (29, Lag::AtMost(s(9)), 8),
        (30, Lag::AtMost(s(1)), 1),
        (40, Lag::AtMost(s(0)), 0),
    ] {
        let position = lsn(1, replayed);
        assert_eq!(
            (lag(&history, &position), history.gap(&position)),
            (Some(behind), Gap::Time(s(gap))),
            "{replayed}"
        );
    }
    // Forgotten positions in between make no gap.
    for second in 12..4000 {
        history.record(lsn(1, second * 10), begin + s(second));
    }
    assert!(
        history.seen.iter().skip(1).all(|seen| matches!(seen.gap, Gap::Time(gap) if gap <= s(1))),
        "{:?}",
        history.seen
    );
}

#[test]
fn a_look_that_tells_less_of_a_timeline_takes_nothing_back() {
    let begin = Instant::now();
    let s = Duration::from_secs;
    let mut history = History::default();
    history.record(lsn(1, 20), begin);
    history.record(lsn(1, 15), begin + s(1));
    assert_eq!(history.latest(), Some(&lsn(1, 20)));
    assert_eq!(lag(&history, &lsn(1, 20)), Some(Lag::AtMost(s(0))));
    assert_eq!(lag(&history, &lsn(1, 15)), Some(Lag::MoreThan(s(1))));
    // The master may have been further for all the time in which it has moved.
    history.record(lsn(1, 16), begin + s(2));
    history.record(lsn(1, 30), begin + s(3));
    assert_eq!(
        (lag(&history, &lsn(1, 20)), history.gap(&lsn(1, 20))),
        (Some(Lag::AtMost(s(3))), Gap::Time(s(1)))
    );
    // The master stands still.
    for second in 4..8 {
        history.record(lsn(1, 25), begin + s(second));
    }
    history.record(lsn(1, 40), begin + s(8));
    assert_eq!(
        (lag(&history, &lsn(1, 30)), history.gap(&lsn(1, 30))),
        (Some(Lag::AtMost(s(1))), Gap::Time(s(1)))
    );
    history.record(lsn(2, 15), begin + s(9));
    assert_eq!(history.latest(), Some(&lsn(2, 15)), "another history");
}

#[test]
fn an_empty_log_tells_of_an_empty_log_alone() {
    let begin = Instant::now();
    let s = Duration::from_secs;
    for (empty, some) in [
        (Position::Gtids(vec![]), gtids("0-10-8")),
        (Position::GtidSet(GtidSet::default()), set(&format!("{A}:1-8"))),
    ] {
        let mut history = History::default();
        history.record(empty.clone(), begin);
        assert_eq!(lag(&history, &empty), Some(Lag::AtMost(s(0))));
        assert_eq!(lag(&history, &some), None, "the log may have been reset");

        history.record(some.clone(), begin + s(2));
        assert_eq!(lag(&history, &empty), Some(Lag::AtMost(s(2))));
        assert_eq!(lag(&history, &some), Some(Lag::AtMost(s(0))));

        let mut history = History::default();
        history.record(some.clone(), begin);
        assert_eq!(lag(&history, &empty), None, "it may be a copy of all that there is");
        assert!(empty.shares_history(&some) && !empty.includes(&some));
    }
}

#[test]
fn what_came_since_and_what_is_in_common() {
    for (now, then, since, in_common) in [
        (gtids("0-10-9,1-10-3"), gtids("0-10-8,1-10-3"), gtids("0-10-9"), Some(gtids("1-10-3"))),
        (gtids("0-20-9,1-10-3"), gtids("0-10-9"), gtids("0-20-9,1-10-3"), Some(Position::Gtids(vec![]))),
        (
            set(&format!("{A}:1-9,{B}:1")),
            set(&format!("{A}:1-7,{B}:1-2")),
            set(&format!("{A}:8-9")),
            Some(set(&format!("{A}:1-7,{B}:1"))),
        ),
        (lsn(1, 10), lsn(1, 9), lsn(1, 10), None),
        (lsn(1, 9), lsn(1, 10), lsn(1, 9), Some(lsn(1, 9))),
    ] {
        assert_eq!(now.since(&then), since, "{now:?} {then:?}");
        assert_eq!(now.in_common(&then), in_common, "{now:?} {then:?}");
    }
}

#[test]
fn an_hour_of_positions_is_few_of_them() {
    let begin = Instant::now();
    let at = |second: u64| begin + Duration::from_secs(second);
    let mut history = History::default();
    for second in 0..7200 {
        history.record(lsn(1, second), at(second));
    }
    assert!(history.seen.len() < 500, "{}", history.seen.len());
    for (replayed, behind) in [(7199, 0), (7198, 1), (7190, 9), (7000, 199), (5000, 2199)] {
        let Some(Lag::AtMost(told)) = lag(&history, &lsn(1, replayed)) else { panic!("{replayed}") };
        let told = told.as_secs_f64();
        assert!(
            told >= behind as f64 && told <= behind as f64 * 1.02 + 1.0,
            "{replayed}: {told} s, not {behind} s"
        );
    }
    assert_eq!(history.before(at(7000)).map(|seen| seen.reaches(&lsn(1, 6990))), Some(true));
    assert_eq!(history.before(at(7000)).map(|seen| seen.reaches(&lsn(1, 7000))), Some(false));
    assert_eq!(history.before(at(100)), None);

    // An idle master has stood at its position since it became the master.
    let mut history = History::default();
    history.record(lsn(1, 1), at(0));
    history.record(lsn(1, 1), at(100));
    assert_eq!(history.before(at(50)), Some(&lsn(1, 1)));
    assert_eq!(history.before(at(0)), None);
}

#[test]
fn what_a_slave_has_of_the_sources_that_its_master_knows() {
    for (slave, known, of_master) in [
        (lsn(1, 12), lsn(1, 10), Some(lsn(1, 12))),
        (lsn(1, 9), lsn(1, 10), Some(lsn(1, 9))),
        (lsn(2, 12), lsn(1, 10), None),
        (gtids("0-10-9,1-10-2,0-20-1"), gtids("0-10-8,1-10-3"), Some(gtids("0-10-9,1-10-2"))),
        (set(&format!("{A}:1-9,{B}:1")), set(&format!("{A}:1-8")), Some(set(&format!("{A}:1-9")))),
        (time(5), time(6), None),
    ] {
        assert_eq!(slave.of_sources_of(&known), of_master, "{slave:?} {known:?}");
    }
}

#[test]
fn before_another_master_there_is_no_gap_in_looking() {
    let (begin, s) = (Instant::now(), Duration::from_secs);
    let mut history = History::default();
    history.record(lsn(1, 10), begin);
    history.pass_on();
    history.record(lsn(2, 12), begin + s(4));
    history.record(lsn(2, 14), begin + s(5));
    assert_eq!(history.gap(&lsn(1, 11)), Gap::Failover);
    assert_eq!(history.gap(&lsn(2, 12)), Gap::Time(s(1)));
}

#[test]
fn lag_of_a_copy_is_exact() {
    let mut history = History::default();
    let now = Instant::now();
    history.record(time(7_000), now);
    history.record(time(10_000), now + Duration::from_secs(3));
    assert_eq!(lag(&history, &time(7_500)), Some(Lag::AtMost(Duration::from_millis(2_500))));
    assert_eq!(history.gap(&time(7_500)), Gap::Time(Duration::ZERO));
    assert_eq!(lag(&history, &time(10_001)), Some(Lag::AtMost(Duration::ZERO)));
    assert_eq!(lag(&history, &Position::Time { clock: 2, ms: 10_001 }), None, "another clock");
}
