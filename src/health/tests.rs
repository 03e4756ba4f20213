use super::*;

fn server(role: Role) -> Arc<Health> {
    let server = Health::new(Arc::from("db"), role);
    probed(&server, NodeState::Up);
    server
}

fn probed(server: &Health, state: NodeState) {
    server.judged(state, "");
    server.probes.send_modify(|probes| *probes += 1);
}

#[test]
fn a_slave_that_was_not_used_has_to_prove_itself_twice() {
    for left_out in [NodeState::Down, NodeState::Behind, NodeState::Stranger, NodeState::SecondMaster] {
        let slave = server(Role::Slave);
        match left_out {
            NodeState::Down => slave.lost(&sqlx::Error::WorkerCrashed),
            state => probed(&slave, state),
        }
        assert_eq!(slave.state(), left_out);
        probed(&slave, NodeState::Up);
        assert!(!slave.is_usable(), "{left_out:?}");
        // A relapse, and what was proved is void.
        match left_out {
            NodeState::Down => slave.lost(&sqlx::Error::WorkerCrashed),
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
    master.lost(&sqlx::Error::WorkerCrashed);
    assert!(!master.answers());
    probed(&master, NodeState::Up);
    assert!(master.is_usable() && master.answers());

    let slave = server(Role::Slave);
    slave.suspect(&sqlx::Error::WorkerCrashed);
    assert_eq!(slave.state(), NodeState::Suspect);
    probed(&slave, NodeState::Up);
    assert!(slave.is_usable());

    let new = Health::new(Arc::from("db"), Role::Slave);
    new.suspect(&sqlx::Error::WorkerCrashed);
    probed(&new, NodeState::Up);
    assert!(new.is_usable());
}

#[test]
fn what_is_no_first_choice_may_be_the_last() {
    use PinnedWithoutMaster::{Fail, Stale};

    let slave = server(Role::Slave);
    slave.lost(&sqlx::Error::WorkerCrashed);
    assert!(!slave.is_last_resort(Stale) && !slave.answers(), "it does not answer");
    probed(&slave, NodeState::Up);
    assert!(slave.is_last_resort(Fail) && slave.answers(), "it is on its way back");
    slave.set_taken_out(true);
    assert!(!slave.is_last_resort(Stale), "somebody has taken it out");

    let slave = server(Role::Slave);
    probed(&slave, NodeState::Behind);
    assert!(slave.is_last_resort(Stale) && !slave.is_last_resort(Fail));
    probed(&slave, NodeState::Stranger);
    assert!(!slave.is_last_resort(Stale), "its data are not ours");
}

#[test]
fn a_suspect_that_does_not_answer_either_is_down_and_stays_so() {
    let slave = server(Role::Slave);
    slave.suspect(&sqlx::Error::WorkerCrashed);
    slave.lost(&sqlx::Error::WorkerCrashed);
    assert_eq!(slave.state(), NodeState::Down);
    slave.suspect(&sqlx::Error::WorkerCrashed);
    assert_eq!(slave.state(), NodeState::Down);
}

#[test]
fn a_position_counts_for_connections_that_are_older_than_the_look_at_it() {
    let slave = server(Role::Slave);
    let here = Position::Time(100);
    let (before, after) = (Instant::now(), Instant::now() + Duration::from_secs(1));
    assert_eq!(slave.replay_of(&here), Replay::Behind);
    slave.saw(here.clone(), before);
    assert!(slave.has_replayed(&here, before));
    assert!(!slave.has_replayed(&here, after), "the server may have been restarted");
    assert!(!slave.has_replayed(&Position::Time(101), before));
    assert_eq!(slave.replay_of(&Position::Lsn { timeline: 1, lsn: 1 }), Replay::Elsewhere);

    slave.lost(&sqlx::Error::WorkerCrashed);
    assert!(!slave.has_replayed(&here, before), "it may come back further behind");
}
