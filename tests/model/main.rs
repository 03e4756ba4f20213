//! The pure rules, driven through all interleavings of small worlds: which server serves, what probes mean, which term
//! it is, and what a pin proves. `world` defines what can happen and what must not. `search` goes through all of it.
//!
//! 1. No write is executed on a connection of an earlier term.
//! 2. In position mode, no read misses an acknowledged write of its own client. A slave that is read from as caught up
//!    has all that the pin stands for. Writes that the master in office has are never missed. A write that died with a
//!    master is lost by the database, and all reads miss it.
//! 3. A process writes only to the server in office, and to none that was replaced. While two servers of one system
//!    have taken writes since its launch, it writes to neither.
//! 4. As soon as the only server that takes writes can be reached, and is in office or can prove its succession,
//!    writes succeed after some probes.
//!
//! Each search is bounded by its number of steps and of faults. Further tests leave a rule out, and expect that the
//! search finds the violation.

mod search;
mod world;

use search::{Search, Violation, search};
use world::{Event, Fault, Menu, Without, World};

const FAILOVER: Menu = Menu {
    faults: &[Fault::Kill, Fault::Partition, Fault::Promote, Fault::Rejoin, Fault::Restart],
    fragile: &[0, 1],
    most_faults: 3,
    writes: 1,
    client: false,
    handles: true,
    follow_promotion: true,
    without: Without::Nothing,
};

const READS: Menu = Menu {
    faults: &[Fault::Kill, Fault::Crash, Fault::Partition, Fault::Promote, Fault::Rejoin],
    most_faults: 2,
    client: true,
    handles: false,
    ..FAILOVER
};

const MOVE: Menu = Menu {
    faults: &[Fault::Kill, Fault::Promote, Fault::Move],
    most_faults: 2,
    writes: 2,
    client: true,
    follow_promotion: false,
    ..FAILOVER
};

/// Checks that this many steps break no rule, and that the search has seen enough states and all of these events.
fn holds(world: World, steps: usize, least_states: usize, events: &[Event]) {
    let Search { states, steps: taken, took, events: seen, violation } = search(world, steps);
    println!("{states} states in up to {steps} steps each, {taken} steps in all, {took:.1?}: {seen:?}");
    if let Some(violation) = violation {
        panic!("{}", violation.tell());
    }
    assert!(states >= least_states, "no more than {states} states");
    for event in events {
        assert!(seen.contains_key(event), "no {event:?} in {seen:?}");
    }
}

/// The violation that the search finds when a rule is left out.
fn without(world: World, steps: usize) -> Violation {
    let Search { states, violation, .. } = search(world, steps);
    let violation = violation.expect("without the rule, an invariant is broken");
    println!("The {states}th state: {}", violation.tell());
    violation
}

#[test]
fn a_failover_breaks_no_rule() {
    let events = [Event::Write, Event::LaterWrite, Event::Contest];
    holds(World::new(FAILOVER, 1), 9, 50_000, &events);
}

#[test]
fn a_failover_breaks_no_rule_in_two_processes() {
    holds(World::new(Menu { most_faults: 2, ..FAILOVER }, 2), 7, 25_000, &[Event::Write, Event::Contest]);
}

#[test]
fn reads_miss_nothing() {
    let events = [Event::Write, Event::CaughtUp, Event::Pinned, Event::MasterUnavailable];
    holds(World::new(READS, 1), 12, 50_000, &events);
}

#[test]
fn reads_miss_nothing_that_was_written_in_another_process() {
    let events = [Event::CaughtUp, Event::Pinned];
    let menu = Menu { faults: &[Fault::Kill, Fault::Crash, Fault::Promote], most_faults: 1, ..READS };
    holds(World::new(menu, 2).after_a_write(), 7, 10_000, &events);
}

#[test]
fn reads_miss_nothing_behind_an_address_of_several_servers() {
    let menu = Menu { writes: 2, most_faults: 1, ..READS };
    holds(World::shared(menu, 1), 12, 20_000, &[Event::CaughtUp, Event::Pinned]);
    holds(World::shared(menu, 2).after_a_write(), 5, 5_000, &[Event::CaughtUp]);
}

#[test]
fn an_address_that_moves_breaks_no_rule() {
    holds(World::new(MOVE, 1), 10, 20_000, &[Event::Write, Event::Pinned, Event::Moved]);
}

/// A server without a connection to spare is not gone, and its probes that failed before do not count any more.
#[test]
fn servers_that_are_full_break_no_rule() {
    let faults = &[Fault::Fill, Fault::Partition, Fault::Promote];
    holds(World::new(Menu { faults, ..FAILOVER }, 1), 8, 5_000, &[Event::Full, Event::Write]);
}

#[test]
fn without_terms_a_handle_writes_to_the_old_master() {
    let menu = Menu { without: Without::Terms, most_faults: 2, ..FAILOVER };
    let Violation { what, .. } = without(World::new(menu, 1), 12);
    assert!(what.contains("on a connection of term 0"), "{what}");
}

#[test]
fn without_instances_a_read_misses_its_own_write() {
    let menu = Menu { without: Without::Instances, most_faults: 0, ..READS };
    let Violation { what, .. } = without(World::shared(menu, 1), 14);
    assert!(what.contains("as caught up, which has not its write"), "{what}");
}

#[test]
fn with_observations_from_before_a_crash_a_read_misses_its_own_write() {
    let menu = Menu { without: Without::Opened, faults: &[Fault::Crash], most_faults: 1, ..READS };
    let Violation { what, .. } = without(World::new(menu, 1), 14);
    assert!(what.contains("as caught up, which has not its write"), "{what}");
}

#[test]
fn without_a_look_at_rivals_one_of_two_masters_is_written_to() {
    let faults = &[Fault::Promote, Fault::Restart];
    let menu = Menu { without: Without::Rivals, faults, most_faults: 2, ..FAILOVER };
    let Violation { what, .. } = without(World::new(menu, 1), 8);
    assert!(what.contains("two servers took writes when it was launched"), "{what}");
}

#[test]
fn without_proof_a_master_that_was_replaced_is_written_to() {
    let faults = &[Fault::Kill, Fault::Promote];
    let menu = Menu { without: Without::Proof, faults, most_faults: 3, ..FAILOVER };
    let Violation { what, .. } = without(World::new(menu, 1), 14);
    assert!(what.contains("which was replaced by a promoted server"), "{what}");
}

#[test]
fn with_a_master_that_is_never_gone_writes_end_for_ever() {
    let faults = &[Fault::Kill, Fault::Promote];
    let menu = Menu { without: Without::Failures, faults, most_faults: 2, ..FAILOVER };
    let Violation { what, .. } = without(World::new(menu, 1), 8);
    assert!(what.contains("never writes to B again"), "{what}");
}
