//! One address of a slave, and several servers behind it, as behind a service, a proxy or a reader endpoint:
//! what is known of one of them is believed of no other.

use rocket_replicated_testing::Dbms;

trait CountsNotes: Dbms {
    /// How many notes there are, and at which port that is.
    const COUNT: &str;
}

impl CountsNotes for rocket_replicated_testing::mysql::MySql {
    const COUNT: &str = "SELECT count(*), CAST(@@port AS SIGNED) FROM notes";
}

impl CountsNotes for rocket_replicated_testing::postgres::Postgres {
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

    /// How many notes a handle sees, and at which port.
    async fn seen(db: &ReplicatedDb) -> (i64, i64) {
        sqlx::query_as(<Dbms as CountsNotes>::COUNT).fetch_one(db).await.unwrap()
    }

    #[rocket::async_test]
    async fn nobody_misses_what_they_have_written() {
        const ROUNDS: i64 = 100;
        /// So many at once that there are connections to both.
        const READERS: usize = 4;
        /// By then, everybody knows that the other slave has replayed it.
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
        // Whichever it is that probes look at.
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
