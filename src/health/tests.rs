use super::*;

fn new(role: Role) -> Arc<Health> {
    let master = if role == Role::Master { ServerId(1) } else { ServerId(0) };
    Health::new(
        ServerId(1),
        Subject::Server,
        "app",
        Arc::from("db"),
        SlaveLog::Masters,
        Arc::new(Mastership::new(master)),
    )
}

fn server(role: Role) -> Arc<Health> {
    let server = new(role);
    probed(&server, NodeState::Up);
    server
}

fn probed(server: &Health, state: NodeState) {
    server.found(state, "");
    server.probes.send_modify(|probes| *probes += 1);
}

#[test]
fn a_slave_that_was_not_used_has_to_prove_itself_twice() {
    for left_out in [NodeState::Down, NodeState::Behind, NodeState::Stranger, NodeState::SecondMaster] {
        let slave = server(Role::Slave);
        match left_out {
            NodeState::Down => slave.went_down(&sqlx::Error::WorkerCrashed),
            state => probed(&slave, state),
        }
        assert_eq!(slave.state(), left_out);
        probed(&slave, NodeState::Up);
        assert!(!slave.is_usable(), "{left_out:?}");
        // A relapse: earlier good probes do not count.
        match left_out {
            NodeState::Down => slave.went_down(&sqlx::Error::WorkerCrashed),
            state => probed(&slave, state),
        }
        probed(&slave, NodeState::Up);
        assert_eq!(slave.state(), left_out);
        probed(&slave, NodeState::Up);
        assert!(slave.is_usable(), "{left_out:?}");
    }
}

#[test]
fn one_good_probe_is_enough_for_the_master_for_a_suspect_and_at_first() {
    let master = server(Role::Master);
    master.went_down(&sqlx::Error::WorkerCrashed);
    assert!(!master.answers(Access::Writes));
    probed(&master, NodeState::Up);
    assert!(master.is_usable() && master.answers(Access::Writes));

    let slave = server(Role::Slave);
    slave.suspect(&sqlx::Error::WorkerCrashed);
    assert_eq!(slave.state(), NodeState::Suspect);
    probed(&slave, NodeState::Up);
    assert!(slave.is_usable());

    let new = self::new(Role::Slave);
    new.suspect(&sqlx::Error::WorkerCrashed);
    probed(&new, NodeState::Up);
    assert!(new.is_usable());
}

#[test]
fn what_is_no_first_choice_may_be_the_last() {
    use PinnedWithoutMaster::{Fail, Stale};

    let slave = server(Role::Slave);
    slave.went_down(&sqlx::Error::WorkerCrashed);
    assert!(!slave.is_last_resort(Stale) && !slave.answers(Access::SlaveReads), "it does not answer");
    probed(&slave, NodeState::Up);
    assert!(slave.is_last_resort(Fail) && slave.answers(Access::SlaveReads), "it is on its way back");
    slave.set_taken_out(true);
    assert!(!slave.is_last_resort(Stale), "somebody has taken it out");

    let slave = server(Role::Slave);
    probed(&slave, NodeState::Behind);
    assert!(slave.is_last_resort(Stale) && !slave.is_last_resort(Fail));
    probed(&slave, NodeState::Stranger);
    assert!(!slave.is_last_resort(Stale), "its data are not ours");
    probed(&slave, NodeState::Promoted);
    assert!(slave.is_last_resort(Fail) && !slave.is_usable(), "it has all that it ever had");
    probed(&slave, NodeState::SecondMaster);
    assert!(!slave.is_last_resort(Stale), "what it has may be lost");
}

#[test]
fn a_suspect_that_does_not_answer_either_is_down_and_stays_so() {
    let slave = server(Role::Slave);
    slave.suspect(&sqlx::Error::WorkerCrashed);
    slave.went_down(&sqlx::Error::WorkerCrashed);
    assert_eq!(slave.state(), NodeState::Down);
    slave.suspect(&sqlx::Error::WorkerCrashed);
    assert_eq!(slave.state(), NodeState::Down);
}

#[test]
fn a_position_counts_for_its_instance_and_for_connections_that_are_older_than_the_look_at_it() {
    let slave = server(Role::Slave);
    let (ours, other) = (Some(Instance::of("ours")), Some(Instance::of("other")));
    let here = Position::Time { clock: 1, ms: 100 };
    let (before, after) = (Instant::now(), Instant::now() + Duration::from_secs(1));
    assert_eq!(slave.replay_of(&here), Replay::Behind);
    slave.record_position(here.clone(), ours, before);
    assert!(slave.has_replayed(&here, ours, before));
    assert!(!slave.has_replayed(&here, ours, after), "the server may have recovered from a crash");
    assert!(!slave.has_replayed(&here, other, before), "the address leads to another server, too");
    assert!(!slave.has_replayed(&here, None, before), "nobody knows whom a pooler leads to");
    assert!(!slave.has_replayed(&Position::Time { clock: 1, ms: 101 }, ours, before));
    assert_eq!(slave.replay_of(&Position::Lsn { timeline: 1, lsn: 1 }), Replay::Elsewhere);

    slave.record_position(here.clone(), None, before);
    assert!(!slave.has_replayed(&here, None, before), "two who are unknown need not be the same");

    slave.went_down(&sqlx::Error::WorkerCrashed);
    assert!(!slave.has_replayed(&here, ours, before), "it may come back further behind");
}

#[test]
fn a_copy_proves_positions_to_connections_that_lead_to_it() {
    let slave = server(Role::Slave);
    let copied = Copied::default();
    slave.set_copied(copied.clone());
    let by = |clock| Position::Time { clock, ms: 100 };
    let (before, seen, after) = (Instant::now(), Instant::now(), Instant::now() + Duration::from_secs(60));
    assert_eq!(slave.replay_of(&by(1)), Replay::Behind);
    copied.record(by(1), seen);
    assert_eq!(slave.replay_of(&by(1)), Replay::Done);
    assert_eq!(
        slave.replay_of(&by(2)),
        Replay::Elsewhere,
        "of a process before the machine was started again"
    );
    assert!(slave.has_replayed(&by(1), None, before));
    assert!(!slave.has_replayed(&by(2), None, before));
    assert!(!slave.has_replayed(&by(1), None, after), "the path may lead to another file by now");

    copied.mark_replaced();
    assert_eq!(slave.replay_of(&by(1)), Replay::Behind, "the new file has not been copied to");
    copied.record(by(1), after);
    assert!(!slave.has_replayed(&by(1), None, before), "the connection leads to the former file");
    assert!(slave.has_replayed(&by(1), None, after));
}

#[test]
fn a_round_trip_is_an_average_and_is_forgotten_with_its_server() {
    let slave = server(Role::Slave);
    let ms = Duration::from_millis;
    assert_eq!((slave.round_trip(), slave.ping_timeout(ms(900))), (None, ms(900)));
    slave.record_instance(Some(Instance::of("near")));
    slave.record_round_trip(ms(20));
    slave.record_round_trip(ms(70));
    assert_eq!((slave.round_trip(), slave.ping_timeout(ms(900))), (Some(ms(30)), ms(300)));
    slave.record_instance(Some(Instance::of("near")));
    assert_eq!(slave.round_trip(), Some(ms(30)));
    slave.record_instance(Some(Instance::of("far")));
    assert_eq!(slave.round_trip(), None);
}

#[test]
fn a_server_that_goes_down_begins_a_generation_and_a_suspect_does_not() {
    let slave = server(Role::Slave);
    let generation = slave.generation();
    slave.suspect(&sqlx::Error::WorkerCrashed);
    assert_eq!(slave.generation(), generation);
    slave.went_down(&sqlx::Error::WorkerCrashed);
    assert!(slave.generation() > generation);
}

#[test]
fn connections_of_a_slave_do_not_stay_open_at_the_master() {
    let slave = server(Role::Slave);
    let generation = slave.generation();
    probed(&slave, NodeState::MasterItself);
    assert!(!slave.keeps(generation));
}

#[test]
fn a_slave_that_was_discovered_serves_after_one_good_probe() {
    let new = || {
        let mastership = Arc::new(Mastership::new(ServerId(0)));
        let health =
            Health::new(ServerId(1), Subject::Server, "app", Arc::from("db"), SlaveLog::Masters, mastership);
        health.mark_new();
        health
    };
    let slave = new();
    assert!(!slave.is_usable() && !slave.answers(Access::SlaveReads));
    assert!(!slave.is_last_resort(PinnedWithoutMaster::Stale));
    probed(&slave, NodeState::Up);
    assert!(slave.is_usable());

    let slave = new();
    slave.went_down(&sqlx::Error::WorkerCrashed);
    assert_eq!(slave.state(), NodeState::Down);
}

#[test]
fn a_suspect_that_is_full_serves_by_the_connections_that_it_has() {
    let slave = server(Role::Slave);
    slave.suspect(&sqlx::Error::WorkerCrashed);
    slave.found_full();
    assert!(slave.is_usable());
    slave.went_down(&sqlx::Error::WorkerCrashed);
    slave.found_full();
    assert!(!slave.is_usable(), "one that is down has no connections any more");
}

#[test]
fn a_contested_master_is_read_from_but_not_written_to() {
    let master = server(Role::Master);
    probed(&master, NodeState::Contested);
    assert!(master.answers(Access::MasterReads) && !master.answers(Access::Writes));
    probed(&master, NodeState::Up);
    assert!(master.answers(Access::Writes));
}

#[test]
fn whoever_becomes_the_master_is_called_one() {
    let mastership = Arc::new(Mastership::new(ServerId(0)));
    let health = |id| {
        Health::new(
            ServerId(id),
            Subject::Server,
            "app",
            Arc::from("db"),
            SlaveLog::Masters,
            mastership.clone(),
        )
    };
    let (old, new) = (health(0), health(1));
    assert_eq!(
        (old.to_string(), new.to_string()),
        ("master `db` of database `app`".into(), "slave `db` of database `app`".into())
    );
    let before = mastership.term();
    mastership.pass_to(ServerId(1));
    assert_eq!(
        (old.to_string(), new.to_string()),
        ("slave `db` of database `app`".into(), "master `db` of database `app`".into())
    );
    assert_ne!(mastership.term(), before);
    mastership.pass_to(ServerId(0));
    assert_ne!(mastership.term(), before, "a second term of the same master is another term");
}
