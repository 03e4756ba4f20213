//! One address of a slave with several servers behind it, as with a service, a proxy or a reader endpoint: what is
//! known of one server is not believed of another.

use rocket_replicated_testing::Dbms;

trait CountsNotes: Dbms {
    /// A query that takes longer than a silent session is believed to be alive. It also selects the server's port.
    const SLOW: &str;
    /// Selects the sessions that run [`SLOW`](Self::SLOW).
    const RUNNING: &str;
    /// Selects the number of notes, and the server's port.
    const COUNT: &str;
}

impl CountsNotes for rocket_replicated_testing::mysql::MySql {
    const SLOW: &str = "SELECT SLEEP(14), CAST(@@port AS SIGNED)";
    const RUNNING: &str = "SELECT id FROM information_schema.processlist WHERE state = 'User sleep'";
    const COUNT: &str = "SELECT count(*), CAST(@@port AS SIGNED) FROM notes";
}

impl CountsNotes for rocket_replicated_testing::postgres::Postgres {
    const SLOW: &str = "SELECT 0::bigint, inet_server_port()::bigint FROM pg_sleep(14)";
    const RUNNING: &str = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    const COUNT: &str = "SELECT count(*), inet_server_port()::bigint FROM notes";
}

crate::on_servers! {
    use std::collections::BTreeSet;

    use rocket::futures::future::join_all;
    use rocket::local::asynchronous::Client;

    use super::CountsNotes;
    use support::logbook;
    use support::rocket_over;
    use rocket_replicated_testing::Wire;

    /// The number of notes that a handle sees, and the port of the server.
    async fn seen(db: &ReplicatedDb) -> (i64, i64) {
        sqlx::query_as(<Dbms as CountsNotes>::COUNT).fetch_one(db).await.unwrap()
    }

    /// The monitor looks at one server only. Of statements at the other one, nothing is heard until they end.
    #[support::async_test]
    async fn statements_at_both_servers_may_take_long() {
        let lab = Lab::new();
        let slaves = &lab.servers().slaves;
        let wire = Wire::to_each(&[slaves[0].port(), slaves[1].port()]);
        let section = format!(
            "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"long-{}\" }}]\n\
             check_interval = 0.1\ncheck_timeout = 0.5\n",
            lab.master_url(),
            wire.url(&lab.slave_urls()[0]),
            <Dbms as rocket_replicated_testing::Dbms>::SCHEME,
        );
        let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap();
        let long = |_| {
            let db = cluster.read(None);
            async move {
                let (_, port): (i64, i64) = sqlx::query_as(<Dbms as CountsNotes>::SLOW).fetch_one(&db).await.unwrap();
                (port, db.choice().unwrap().role())
            }
        };
        let is_up = |node: &rocket_replicated::NodeStatus| node.state == rocket_replicated::NodeState::Up;
        support::eventually("the slave", async || cluster.status().iter().all(is_up)).await;
        let before = cluster.statistics().retries;
        let ran: BTreeSet<_> = join_all((0..4).map(long)).await.into_iter().collect();
        let both = slaves.iter().map(|slave| (i64::from(slave.port()), rocket_replicated::Role::Slave));
        assert_eq!(ran, both.collect(), "there was nothing to mistake");
        assert_eq!(cluster.statistics().retries, before, "none was run again");
    }

    /// The server's host is gone, and the proxy is not. New connections lead to the other server.
    #[support::async_test]
    async fn statements_at_a_server_that_has_left_the_address_are_run_again() {
        use std::time::Duration;

        let lab = Lab::new();
        let slaves = &lab.servers().slaves;
        let wire = Wire::to_each(&[slaves[0].port(), slaves[1].port()]);
        let section = format!(
            "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"gone-{}\" }}]\nmaster_read_connections = 8\n\
             check_interval = 0.1\ncheck_timeout = 1\n",
            lab.master_url(),
            wire.url(&lab.slave_urls()[0]),
            <Dbms as rocket_replicated_testing::Dbms>::SCHEME,
        );
        let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap().clone();
        let is_up = |node: &rocket_replicated::NodeStatus| node.state == rocket_replicated::NodeState::Up;
        support::eventually("the slave", async || cluster.status().iter().all(is_up)).await;
        let read = |_| {
            let db = cluster.read(None);
            rocket::tokio::spawn(async move {
                let slow = sqlx::query_as::<_, (i64, i64)>(<Dbms as CountsNotes>::SLOW);
                slow.fetch_one(&db).await.map(|(_, port)| port)
            })
        };
        let reads: Vec<_> = (0..4).map(read).collect();
        let running = || slaves.iter().all(|slave| !slave.sql(<Dbms as CountsNotes>::RUNNING).is_empty());
        support::eventually("a read at each", async || running()).await;
        let shared = || !logbook::lines(&["WARN", "several servers", "`gone-"]).is_empty();
        support::eventually("word of both", async || shared()).await;
        wire.silence_open();
        wire.lead_to(slaves[0].port());
        let read = rocket::tokio::time::timeout(Duration::from_secs(120), join_all(reads)).await;
        // The statements were run again, elsewhere.
        for read in read.expect("an end of them") {
            assert_ne!(read.unwrap().unwrap(), i64::from(slaves[1].port()));
        }
        assert!(cluster.status().iter().all(|node| node.in_use == 0), "{:?}", cluster.status());
    }

    #[support::async_test]
    async fn clients_miss_no_write_of_their_own() {
        const ROUNDS: i64 = 100;
        /// So many readers at once that there are connections to both servers.
        const READERS: usize = 4;
        /// So many rounds later, it is known that the other slave has replayed the write.
        const EARLIER: usize = 10;

        let lab = Lab::new();
        let name = format!("shared-{}", lab.master_url().split_once(':').unwrap().0);
        let slaves = &lab.servers().slaves;
        let wire = Wire::to_each(&[slaves[0].port(), slaves[1].port()]);
        let section = format!(
            "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"{name}\" }}]\n\
             consistency = \"position\"\nmax_lag = false\ncheck_interval = 0.1\n",
            lab.master_url(),
            wire.url(&lab.slave_urls()[0]),
        );
        let rocket = rocket_over(&section).attach(Replicated::fairing());
        let client = Client::untracked(rocket).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap();

        let mut written = vec![(0, None)];
        let (mut stale, mut by_slave) = (0, 0);
        // Each slave is paused in turn, because probes may look at either.
        for paused in slaves {
            lab.servers().wait_caught_up();
            paused.pause_replay();
            let mut strangers_at = BTreeSet::new();
            for _ in 0..ROUNDS {
                let writer = cluster.write();
                let round = written.len() as i64;
                let insert = sqlx::query(sql("INSERT INTO notes (body) VALUES ($1)")).bind(round.to_string());
                insert.execute(&writer).await.unwrap();
                written.push((round, writer.pin().await));
                drop(writer);

                let (latest, earlier) = (written.len() - 1, written.len().saturating_sub(EARLIER));
                for (round, pin) in [&written[latest], &written[earlier]] {
                    let readers: Vec<_> = (0..READERS).map(|_| cluster.read(pin.as_deref())).collect();
                    let strangers: Vec<_> = (0..READERS).map(|_| cluster.read(None)).collect();
                    let own = join_all(readers.iter().map(seen));
                    let others = join_all(strangers.iter().map(seen));
                    let (own, others) = rocket::futures::future::join(own, others).await;
                    stale += own.iter().filter(|(count, _)| count < round).count();
                    by_slave += readers.iter().filter(|db| db.choice().unwrap().node() == name).count();
                    strangers_at.extend(others.into_iter().map(|(_, port)| port));
                }
            }
            paused.resume_replay();
            let both: BTreeSet<_> = slaves.iter().map(|slave| i64::from(slave.port())).collect();
            assert!(
                strangers_at.is_superset(&both),
                "there was nothing to mistake: {strangers_at:?} of {both:?}"
            );
        }
        assert_eq!(stale, 0, "own reads of {}", written.len() * 2 * READERS);
        assert!(by_slave > 0, "a slave that has it serves");
        let warnings = logbook::lines(&["WARN", &format!("`{name}`"), "several servers"]);
        assert_eq!(warnings.len(), 1, "{:?}", logbook::lines(&["WARN", &name]));
    }
}
