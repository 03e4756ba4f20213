use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const A: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
const B: &str = "4f22fa47-71ca-11e1-9e33-c80aa9429562";

/// `a` and `b` stand for sources.
fn set(text: &str) -> GtidSet {
    if text.is_empty() {
        return GtidSet::default();
    }
    GtidSet::parse(&text.replace("a:", &format!("{A}:")).replace("b:", &format!("{B}:"))).unwrap()
}

#[test]
fn sets_are_read_as_servers_write_them() {
    for (text, written) in [
        ("a:1-5", "a:1-5"),
        ("a:7:1-5", "a:1-5:7-7"),
        ("a:1-5:6-9", "a:1-9"),
        ("a:1-5,\nb:1", "a:1-5,b:1-1"),
        ("a:5-3:9-7,b:1:4-2", "b:1-1"),
        // https://dev.mysql.com/doc/refman/9.7/en/replication-gtids-concepts.html#replication-gtids-concepts-gtid-sets
        ("a:1-3:Backup:1-5:8:other:2,b:tag:1", "a:1-3,a:backup:1-5:8-8,a:other:2-2,b:tag:1-1"),
        // A group whose members write blocks of their own.
        ("a:1-5:1000001-1000003:2000001", "a:1-5:1000001-1000003:2000001-2000001"),
    ] {
        let written = written.replace("a:", &format!("{A}:")).replace("b:", &format!("{B}:"));
        assert_eq!(set(text).to_string(), written);
        assert_eq!(GtidSet::parse(&written), Some(set(text)));
    }
    for text in [
        "",
        A,
        "x:1",
        &format!("{A}:"),
        &format!("{A}:1-5,"),
        &format!("{A}:tag"),
        &format!("{A}:1:tag"),
        &format!("{A}:1-x"),
        &format!("{A}:5-3"),
        &format!("{A}:{}:1", "t".repeat(33)),
    ] {
        assert_eq!(GtidSet::parse(text), None, "{text:?}");
    }
}

#[test]
fn no_token_has_a_set_that_breaks_an_invariant() {
    let of_source = |spans: &[u8]| [&[0; 17][..], spans].concat();
    let decode = |spans: &[u8]| GtidSet::decode(&of_source(spans)).map(|set| set.to_string());
    assert_eq!(decode(&[2, 1, 4, 2, 0]).as_deref(), Some("00000000-0000-0000-0000-000000000000:1-5:7-7"));
    assert_eq!(decode(&[2, 1, 4, 1, 0]), None, "no gap between the spans");
    assert_eq!(decode(&[2, 1, 4, 0, 0]), None, "a transaction in two spans");
    assert_eq!(decode(&[0]), None, "no span");
    assert_eq!(GtidSet::decode(&of_source(&[1, 1, 4]).repeat(2)), None, "one source twice");
}

#[test]
fn what_includes_what() {
    for (here, there, includes) in [
        ("a:1-9", "", true),
        ("a:1-9", "a:1-9", true),
        ("a:1-9", "a:2-5:7", true),
        ("a:1-5:7", "a:1-7", false),
        ("a:1-5:7-9", "a:7-9", true),
        ("a:1-5:7-9", "a:5-7", false),
        ("a:1-9", "a:1-9,b:1", false),
        ("a:1-9,b:1", "b:1", true),
        // A later number, from the block of another group member, says nothing.
        ("a:1-5:1000001-1000003", "a:6", false),
        ("a:1-5:1000001-1000003", "a:1000002", true),
        // Transactions with a tag have numbers of their own.
        ("a:1-9", "a:tag:1", false),
        ("a:1-9:tag:1-2", "a:tag:2", true),
        ("a:tag:1-9", "a:1", false),
    ] {
        assert_eq!(set(here).includes(&set(there)), includes, "{here} {there}");
    }
}

#[test]
fn what_is_left() {
    for (ours, theirs, without, in_common) in [
        ("a:1-9", "", "a:1-9", ""),
        ("a:1-9", "a:1-9", "", "a:1-9"),
        ("a:1-9", "a:1-7", "a:8-9", "a:1-7"),
        ("a:1-9", "a:3:5-6", "a:1-2:4:7-9", "a:3:5-6"),
        ("a:1-9,b:1-3", "a:1-9,b:1", "b:2-3", "a:1-9,b:1"),
        ("a:1-9:tag:1-5", "a:1-9", "a:tag:1-5", "a:1-9"),
        ("a:1-9:1000001-1000009", "a:1-8:1000001-1000005", "a:9:1000006-1000009", "a:1-8:1000001-1000005"),
        ("a:5-9", "a:1-20", "", "a:5-9"),
        ("a:5-9", "b:1-20", "a:5-9", ""),
    ] {
        let (ours, theirs) = (set(ours), set(theirs));
        assert_eq!(ours.without(&theirs), set(without), "{ours} {theirs}");
        assert_eq!(ours.in_common(&theirs), set(in_common), "{ours} {theirs}");
    }
    let everything = format!("{A}:1-{}", u64::MAX);
    assert_eq!(set(&everything).without(&set(&everything)), set(""));
}

/// Sets of so few numbers that they overlap.
pub(in super::super) fn any_set() -> impl Strategy<Value = GtidSet> {
    let source = (0_u128..3, prop_oneof![Just(""), Just("tag"), Just("a_tag_of_32_characters__________")]);
    let span = (1_u64..20, 0_u64..6, prop_oneof![Just(0), Just(1_000_000), Just(u64::MAX - 26)]);
    let spans = prop::collection::vec(span, 1..5).prop_map(|spans| {
        let span = |(first, more, block)| Span { first: block + first, last: block + first + more };
        let mut spans = spans.into_iter().map(span).collect();
        tidy(&mut spans);
        spans
    });
    let source = source.prop_map(|(uuid, tag)| Source { uuid, tag: tag.into() });
    prop::collection::btree_map(source, spans, 0..4).prop_map(GtidSet)
}

/// The transactions of a set, one by one.
fn members(set: &GtidSet) -> BTreeSet<(Source, u64)> {
    let of_source = |(source, spans): (&Source, &Vec<Span>)| {
        let numbers = spans.iter().flat_map(|span| span.first..=span.last);
        numbers.map(|number| (source.clone(), number)).collect::<Vec<_>>()
    };
    set.0.iter().flat_map(of_source).collect()
}

proptest! {
    #[test]
    fn sets_do_what_sets_of_members_do(ours in any_set(), theirs in any_set()) {
        let (a, b) = (members(&ours), members(&theirs));
        prop_assert_eq!(ours.includes(&theirs), a.is_superset(&b));
        prop_assert_eq!(members(&ours.without(&theirs)), &a - &b);
        prop_assert_eq!(members(&ours.in_common(&theirs)), &a & &b);
        prop_assert_eq!(members(&ours.union(theirs)), &a | &b);
    }

    #[test]
    fn sets_survive_text_and_token(set in any_set()) {
        if !set.0.is_empty() {
            prop_assert_eq!(GtidSet::parse(&set.to_string()), Some(set.clone()));
        }
        let mut bytes = Vec::new();
        set.encode(&mut bytes);
        prop_assert_eq!(GtidSet::decode(&bytes), Some(set));
    }
}
