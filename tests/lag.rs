//! `max_lag`: a slave that is further behind is left out until it has caught up, and only then.

#![cfg(any(feature = "mysql", feature = "postgres"))]

mod support;

use std::time::{Duration, Instant};

use rocket::tokio;
use rocket_replicated::{Cluster, Database, NodeState, NodeStatus, backend::Backend};

/// Polls, and lets the background work in between.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within 20 s");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn status_of<D: Database<Pool: Backend>>(cluster: &Cluster<D>, name: &str) -> NodeStatus {
    cluster.status().into_iter().find(|node| node.name == name).unwrap()
}

fn states<D: Database<Pool: Backend>>(cluster: &Cluster<D>) -> Vec<NodeState> {
    cluster.status().iter().map(|node| node.state).collect()
}

/// Long enough for many probes, and for `max_lag` to be over.
const A_WHILE: Duration = Duration::from_millis(1500);

const KEYS: &str = "lag_window = 3\ncheck_interval = 0.1\ncheck_timeout = 2\nmax_lag = 0.5\n";

support::on_servers! {
    use std::time::Instant;

    use rocket::local::asynchronous::Client;
    use rocket::tokio;
    use rocket_replicated::{Cluster, NodeState};

    use super::{A_WHILE, KEYS, eventually, states, status_of};
    use crate::support::{logbook, rocket_over};

    async fn launch(section: &str) -> (Client, Cluster<Database>) {
        let rocket = rocket_over(&format!("{section}{KEYS}")).attach(Replicated::fairing());
        let client = Client::untracked(rocket).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap().clone();
        (client, cluster)
    }

    async fn reader(cluster: &Cluster<Database>) -> String {
        let db = cluster.read(None);
        sqlx::query("SELECT 1").execute(&db).await.unwrap();
        db.choice().unwrap().to_string()
    }

    fn write(lab: &Lab, number: usize) {
        lab.sql(&format!("INSERT INTO notes (body) VALUES ('note {number}')"));
    }

    #[rocket::async_test]
    async fn a_slave_too_far_behind_is_left_out_until_it_has_caught_up() {
        let lab = Lab::new();
        // A name that the log of other tests does not have.
        let name = format!("late-{}", <Dbms as crate::support::cluster::Dbms>::SCHEME);
        let (_client, cluster) = launch(&lab.section().replace("slave-1", &name)).await;
        let late = &lab.cluster.slaves[0];
        lab.cluster.wait_caught_up();
        late.pause_replay();
        let mut number = 0;
        eventually("its absence", || {
            number += 1;
            write(&lab, number);
            status_of(&cluster, &name).state == NodeState::Behind
        })
        .await;
        let status = status_of(&cluster, &name);
        assert!(status.lag.unwrap() > std::time::Duration::from_millis(500), "{status:?}");
        for _ in 0..20 {
            assert_eq!(reader(&cluster).await, "slave-2 (ReadsDatabase)");
        }

        late.resume_replay();
        eventually("its return", || status_of(&cluster, &name).state == NodeState::Up).await;
        while reader(&cluster).await != format!("{name} (ReadsDatabase)") {}
        let name = format!("slave `{name}` is ");
        assert_eq!(logbook::lines(&["WARN", &name, " behind: leaving it out"]).len(), 1);
        assert_eq!(logbook::lines(&["INFO", &name, "back"]).len(), 1);
    }

    #[rocket::async_test]
    async fn nobody_falls_behind_a_master_that_does_nothing() {
        let lab = Lab::new();
        write(&lab, 0);
        let (_client, cluster) = launch(&lab.section()).await;
        eventually("caught-up slaves", || states(&cluster) == [NodeState::Up; 3]).await;
        let begun = Instant::now();
        while begun.elapsed() < A_WHILE {
            assert_eq!(states(&cluster), [NodeState::Up; 3]);
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    #[rocket::async_test]
    async fn a_slave_that_is_late_at_launch_is_left_out_from_the_first_request() {
        let lab = Lab::new();
        lab.pause();
        write(&lab, 0);
        let (_client, cluster) = launch(&lab.section()).await;
        assert!(reader(&cluster).await.ends_with("(SlavesUnavailable)"));
        lab.resume();
        eventually("the slaves", || states(&cluster) == [NodeState::Up; 3]).await;
    }

    #[rocket::async_test]
    async fn without_a_master_nobody_is_behind() {
        let cluster = crate::support::cluster::Cluster::<Dbms>::start(1);
        let section = format!(
            "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"slave-1\" }}]\n",
            cluster.master.url(),
            cluster.slaves[0].url(),
        );
        let (_client, nodes) = launch(&section).await;
        eventually("the slave", || states(&nodes) == [NodeState::Up; 2]).await;
        cluster.master.kill();
        eventually("the loss", || states(&nodes) == [NodeState::Down, NodeState::Up]).await;
        let begun = Instant::now();
        while begun.elapsed() < A_WHILE {
            assert_eq!(reader(&nodes).await, "slave-1 (ReadsDatabase)");
        }
    }

    #[rocket::async_test]
    async fn where_nobody_else_is_left_a_slave_that_is_behind_serves_if_stale_will_do() {
        let cluster = crate::support::cluster::Cluster::<Dbms>::start(1);
        cluster.master.sql("CREATE TABLE counts (count INTEGER NOT NULL)");
        cluster.wait_caught_up();
        let section = |keys: &str| {
            format!(
                "{keys}\nurl = \"{}\"\nslaves = [{{ url = \"{}\", name = \"slave-1\" }}]\n",
                cluster.master.url(),
                cluster.slaves[0].url(),
            )
        };
        let (_stale, stale) = launch(&section("pinned_without_master = \"stale\"")).await;
        let (_fail, fail) = launch(&section("pinned_without_master = \"fail\"")).await;
        cluster.slaves[0].pause_replay();
        for nodes in [&stale, &fail] {
            eventually("its absence", || {
                cluster.master.sql("INSERT INTO counts VALUES (1)");
                states(nodes) == [NodeState::Up, NodeState::Behind]
            })
            .await;
            assert!(reader(nodes).await.ends_with("(SlavesUnavailable)"));
        }
        cluster.master.kill();
        for nodes in [&stale, &fail] {
            eventually("the loss", || states(nodes) == [NodeState::Down, NodeState::Behind]).await;
        }
        assert_eq!(reader(&stale).await, "slave-1 (ReadsDatabase)");
        sqlx::query("SELECT 1").execute(&fail.read(None)).await.unwrap_err();
    }
}

#[cfg(feature = "postgres")]
mod postgresql {
    use rocket::local::asynchronous::Client;
    use rocket_replicated::postgres::{Database, Replicated};
    use rocket_replicated::{Cluster, NodeState};

    use super::{KEYS, eventually, states, status_of};
    use crate::support::lab::postgres::Lab;
    use crate::support::postgres::{self, Server};
    use crate::support::rocket_over;

    async fn launch(section: &str) -> (Client, Cluster<Database>) {
        let rocket = rocket_over(&format!("{section}{KEYS}")).attach(Replicated::fairing());
        let client = Client::untracked(rocket).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap().clone();
        (client, cluster)
    }

    fn section(master: &Server, slave: &Server) -> String {
        format!(
            "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"slave-1\" }}]\n",
            master.url(),
            slave.url()
        )
    }

    /// Replayed is all that was received, but received is nothing any more.
    #[rocket::async_test]
    async fn a_slave_that_receives_nothing_is_behind() {
        let cluster = postgres::Cluster::start(1);
        let (master, slave) = (&cluster.master, &cluster.slaves[0]);
        let (_client, nodes) = launch(&section(master, slave)).await;
        eventually("the slave", || states(&nodes) == [NodeState::Up; 2]).await;

        slave.sql("ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port=1'");
        slave.sql("SELECT pg_reload_conf()");
        eventually("its absence", || {
            master.sql("SELECT pg_logical_emit_message(true, 'test', 'more')");
            status_of(&nodes, "slave-1").state == NodeState::Behind
        })
        .await;
    }

    #[rocket::async_test]
    async fn a_slave_of_another_system_is_left_out() {
        let (ours, theirs) = (postgres::Cluster::start(0), postgres::Cluster::start(1));
        let (_client, nodes) = launch(&section(&ours.master, &theirs.slaves[0])).await;
        assert_eq!(states(&nodes), [NodeState::Up, NodeState::Stranger]);
        let db = nodes.read(None);
        sqlx::query("SELECT 1").execute(&db).await.unwrap();
        assert!(db.choice().unwrap().to_string().ends_with("(SlavesUnavailable)"));
    }

    /// As readers are that have no log of their own.
    #[rocket::async_test]
    async fn of_a_slave_that_hides_its_log_the_role_is_known() {
        let cluster = postgres::Cluster::start(1);
        let (master, slave) = (&cluster.master, &cluster.slaves[0]);
        master.sql("REVOKE EXECUTE ON FUNCTION pg_last_wal_replay_lsn() FROM PUBLIC");
        cluster.wait_caught_up();
        let (_client, nodes) = launch(&section(master, slave)).await;
        slave.pause_replay();
        master.sql("SELECT pg_logical_emit_message(true, 'test', 'more')");
        let probed = std::time::Instant::now();
        while probed.elapsed() < super::A_WHILE {
            let status = status_of(&nodes, "slave-1");
            assert_eq!((status.state, status.lag), (NodeState::Up, None));
            rocket::tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        slave.sql("SELECT pg_promote()");
        eventually("its absence", || status_of(&nodes, "slave-1").state == NodeState::SecondMaster).await;
    }

    #[rocket::async_test]
    async fn a_master_in_recovery_takes_no_writes() {
        let lab = Lab::new();
        let section = format!("url = \"{}\"\nslaves = [\"{}\"]\n", lab.slave_urls()[0], lab.slave_urls()[1]);
        let (_client, nodes) = launch(&section).await;
        assert_eq!(states(&nodes)[0], NodeState::Standby);
        let error = sqlx::query("SELECT 1").execute(&nodes.write()).await.unwrap_err();
        assert!(matches!(rocket_replicated::Error::from(error), rocket_replicated::Error::Unavailable(_)));
    }
}

#[cfg(feature = "mysql")]
mod mariadb {
    use rocket::local::asynchronous::Client;
    use rocket_replicated::NodeState;
    use rocket_replicated::mysql::Replicated;

    use super::{KEYS, eventually, states};
    use crate::support::mariadb::Cluster;
    use crate::support::rocket_over;

    #[rocket::async_test]
    async fn a_slave_that_writes_and_replays_no_more_is_left_out() {
        let cluster = Cluster::start(1);
        let slave = &cluster.slaves[0];
        let section = format!(
            "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"slave-1\" }}]\n{KEYS}",
            cluster.master.url(),
            slave.url()
        );
        let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
        let nodes = Replicated::fetch(client.rocket()).unwrap();
        eventually("the slave", || states(nodes) == [NodeState::Up; 2]).await;
        slave.sql("STOP SLAVE; SET GLOBAL read_only = 0; CREATE TABLE app.mine (id INT)");
        eventually("its absence", || states(nodes) == [NodeState::Up, NodeState::SecondMaster]).await;
    }
}
