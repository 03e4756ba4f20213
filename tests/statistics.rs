//! The statistics count by server, by reason and by cause.

crate::on_every_database! {
    use std::time::Duration;

    use rocket::http::{Cookie, Header};
    use rocket::local::asynchronous::Client;
    use rocket::{get, post, routes};
    use rocket_replicated::{
        Cluster, CloseCause, Error, NodeState, PinRefusal, PoolUse, Reason, Role, Statistics,
    };

    use support::rocket_over;

    #[get("/")]
    async fn read(db: ReplicatedDb) -> Result<(), Error> {
        sqlx::query("SELECT id FROM notes").fetch_all(&db).await?;
        Ok(())
    }

    #[post("/")]
    async fn write(db: ReplicatedDb) -> Result<(), Error> {
        sqlx::query("SELECT id FROM notes").fetch_all(&db).await?;
        Ok(())
    }

    #[get("/careless/<body>")]
    async fn careless(body: &str, db: ReplicatedDb) -> Result<(), Error> {
        sqlx::query(sql("INSERT INTO notes (id, body) VALUES (1, $1)")).bind(body).execute(&db).await?;
        Ok(())
    }

    async fn launch(section: &str) -> (Client, Cluster<Database>) {
        let rocket = rocket_over(section).attach(Replicated::fairing()).mount("/", routes![read, write, careless]);
        let client = Client::untracked(rocket).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap().clone();
        (client, cluster)
    }

    fn pool(statistics: &Statistics, server: usize, used_for: PoolUse) -> &rocket_replicated::PoolStatistics {
        statistics.servers[server].pools.iter().find(|pool| pool.used_for == used_for).unwrap()
    }

    #[support::async_test]
    async fn choices_by_server_role_and_reason() {
        let lab = Lab::new();
        let (client, cluster) = launch(&format!("{}name = \"db-1\"", lab.section())).await;
        for _ in 0..10 {
            client.get("/").dispatch().await;
        }
        let pin = client.post("/").dispatch().await.cookies().get("replicated_pin").unwrap().value().to_owned();
        for _ in 0..3 {
            client.get("/").cookie(Cookie::new("replicated_pin", pin.clone())).dispatch().await;
        }
        cluster.stop_reading_slaves();
        client.get("/").dispatch().await;

        let statistics = cluster.statistics();
        let names: Vec<_> = statistics.servers.iter().map(|server| (&*server.name, server.role)).collect();
        assert_eq!(names, [("db-1", Role::Master), ("slave-1", Role::Slave), ("slave-2", Role::Slave)]);
        let [master, slaves @ ..] = &statistics.servers[..] else { panic!() };
        assert_eq!(slaves.iter().map(|slave| slave.choices.get(Reason::ReadMethod)).sum::<u64>(), 10);
        assert!(slaves.iter().all(|slave| slave.choices.total() > 0));
        let counted: Vec<_> = master.choices.iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counted, [(Reason::WriteMethod, 1), (Reason::SwitchedOff, 1), (Reason::Pinned, 3)]);
        assert_eq!(statistics.reads_at_master().total(), 4);
        assert_eq!((statistics.pins.made, statistics.pins.honoured), (1, 3));
    }

    #[support::async_test]
    async fn pins_that_are_not_believed_by_cause() {
        let lab = Lab::new();
        let (client, cluster) = launch(&format!("{}pin.header = \"X-Pin\"\nlag_window = 3\nmax_lag = false", lab.section())).await;
        let (_other, elsewhere) = launch(&lab.section()).await;
        let foreign = {
            let db = elsewhere.write();
            sqlx::query("SELECT id FROM notes").fetch_all(&db).await.unwrap();
            db.pin().await.unwrap()
        };
        let own = rocket_replicated::internals::sign_pin(&cluster).unwrap();
        for pin in ["no pin", &foreign] {
            client.get("/").header(Header::new("X-Pin", pin.to_owned())).dispatch().await;
        }
        client
            .get("/")
            .header(Header::new("X-Pin", own.clone()))
            .header(Header::new("X-Pin", own.clone()))
            .dispatch()
            .await;
        let refused = cluster.statistics().pins.refused;
        let count = |cause| refused.get(cause);
        assert_eq!((count(PinRefusal::Forged), count(PinRefusal::Foreign), count(PinRefusal::Doubled)), (1, 1, 1));
        support::blocking_eventually("an old pin", || {
            cluster.read(Some(&own));
            (cluster.statistics().pins.refused.get(PinRefusal::Expired) > 0).then_some(())
        });
        assert_eq!(cluster.statistics().choices().get(Reason::Pinned), 0);
    }

    #[support::async_test]
    async fn connections_and_waiting_requests() {
        let lab = Lab::new();
        let section = format!("{}max_connections = 1\nconnect_timeout = 1\n", lab.section_alone());
        let (client, cluster) = launch(&section).await;
        let writer = cluster.write();
        let held = writer.get().await.unwrap();
        let in_vain = rocket::tokio::spawn({
            let cluster = cluster.clone();
            async move { cluster.write().get().await.is_err() }
        });
        let writes = |statistics: &Statistics| pool(statistics, 0, PoolUse::Writes).clone();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while writes(&cluster.statistics()).waiting == 0 {
            assert!(std::time::Instant::now() < deadline);
            rocket::tokio::task::yield_now().await;
        }
        let now = writes(&cluster.statistics());
        assert_eq!((now.max, now.in_use, now.idle), (1, 1, 0));
        assert!(in_vain.await.unwrap());
        drop(held);
        // The first write may wait until it is known what was left on the connection. The second one finds it idle.
        client.post("/").dispatch().await;
        client.post("/").dispatch().await;

        let now = writes(&cluster.statistics());
        assert_eq!((now.timed_out, now.waiting, now.opened.count(), now.checkouts.count()), (1, 0, 1, 3));
        assert!(now.checkouts.sum() >= now.opened.sum() && now.opened.sum() > Duration::ZERO);
        assert_eq!(now.closed.total(), 0);

        let left = cluster.write();
        let mut held = left.get().await.unwrap();
        sqlx::raw_sql("BEGIN").execute(&mut *held).await.unwrap();
        drop(held);
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while writes(&cluster.statistics()).closed.get(CloseCause::Dirty) == 0 {
            assert!(std::time::Instant::now() < deadline, "{:?}", writes(&cluster.statistics()));
            rocket::tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let now = writes(&cluster.statistics());
        assert_eq!((now.closed.total(), now.in_use + now.idle), (1, 0));
    }

    #[support::async_test]
    async fn writes_that_are_rerouted() {
        let lab = Lab::new();
        let (client, cluster) = launch(&format!("{}refused_write = \"reroute\"", lab.section())).await;
        client.get("/careless/rerouted").dispatch().await;
        let statistics = cluster.statistics();
        assert_eq!(statistics.reroutes, 1, "{statistics:?}");
        assert_eq!(statistics.servers[0].choices.get(Reason::ChangesDatabase), 1);
        assert_eq!(lab.notes(), ["rerouted"]);
    }

    #[support::async_test]
    async fn changes_of_state_and_the_latest_of_them() {
        let lab = Lab::new();
        let (_client, cluster) = launch(&lab.section()).await;
        let slave = || cluster.statistics().servers[2].clone();
        let changes = |state| slave().changes.get(state);
        // The slave may have come up a moment after the launch.
        support::eventually("the slave", async || cluster.status()[2].state == NodeState::Up).await;
        let before = changes(NodeState::Up);
        cluster.take_out("slave-2").unwrap();
        cluster.put_back("slave-2").unwrap();
        assert_eq!((changes(NodeState::TakenOut), changes(NodeState::Up)), (1, before + 1));
        let slave = slave();
        let states: Vec<_> = slave.latest_changes.iter().take(2).map(|change| change.state).collect();
        assert_eq!(states, [NodeState::Up, NodeState::TakenOut], "the latest first");
        assert!(slave.latest_changes[0].at >= slave.latest_changes[1].at);
    }
}

crate::on_postgres! {
    mod outages {
        use std::time::{Duration, Instant};

        use rocket::local::asynchronous::Client;
        use rocket::tokio::time::sleep;
        use rocket_replicated::postgres::{Database, Replicated};
        use rocket_replicated::{CloseCause, Cluster, NodeState, PoolUse, Reason, RetryCause, Statistics};

        use support::rocket_over;
        use rocket_replicated_testing::Servers;
        use rocket_replicated_testing::postgres::Postgres;

        async fn eventually(
            what: &str,
            cluster: &Cluster<Database>,
            is: impl Fn(&Statistics) -> bool,
        ) -> Statistics {
            let deadline = Instant::now() + Duration::from_secs(20);
            loop {
                let statistics = cluster.statistics();
                if is(&statistics) {
                    return statistics;
                }
                assert!(Instant::now() < deadline, "{what}: {statistics:#?}");
                sleep(Duration::from_millis(10)).await;
            }
        }

        #[support::async_test]
        async fn of_a_connection_that_its_server_ends() {
            let servers = Servers::start(Postgres, 1);
            let section = format!(
                "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"only\" }}]",
                servers.master.url(),
                servers.slaves[0].url()
            );
            let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
            let cluster = Replicated::fetch(client.rocket()).unwrap();
            let reader = cluster.read(None);
            sqlx::query("SELECT 'ended'").execute(&reader).await.unwrap();
            let end = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity \
                       WHERE query LIKE '%ended%' AND pid <> pg_backend_pid()";
            assert_eq!(servers.slaves[0].sql(end), "t");
            sqlx::query("SELECT 1").execute(&reader).await.unwrap();
            let statistics = cluster.statistics();
            let counted: Vec<_> = statistics.retries.iter().filter(|(_, count)| *count > 0).collect();
            assert_eq!(counted, [(RetryCause::Broken, 1)]);
            let reads = statistics.servers[1].pools.iter().find(|pool| pool.used_for == PoolUse::SlaveReads);
            let closed: Vec<_> = reads.unwrap().closed.iter().filter(|(_, count)| *count > 0).collect();
            assert_eq!(closed, [(CloseCause::Failed, 1)]);
        }

        #[support::async_test]
        async fn of_a_slave_that_dies_and_a_master_that_is_cut_off() {
            let servers = Servers::start(Postgres, 1);
            let section = format!(
                "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"only\" }}]\ncheck_interval = 0.05\nconsistency = \"position\"\n\
                 catch_up_timeout = 0.3",
                servers.master.url(),
                servers.slaves[0].url()
            );
            let rocket = rocket_over(&section).attach(Replicated::fairing());
            let client = Client::untracked(rocket).await.unwrap();
            let cluster = Replicated::fetch(client.rocket()).unwrap();
            servers.master.sql("CREATE TABLE notes (id INTEGER); GRANT ALL ON notes TO app");
            servers.wait_caught_up();

            // One pin that the slave has replayed, and one that it has not. The slave is asked about the second one,
            // because its lag is known only up to a probe or two.
            eventually("the slave", cluster, |statistics| statistics.servers[1].state == NodeState::Up).await;
            let writer = cluster.write();
            sqlx::query("INSERT INTO notes VALUES (1)").execute(&writer).await.unwrap();
            let pin = writer.pin().await.unwrap();
            servers.wait_caught_up();
            sqlx::query("SELECT 1").execute(&cluster.read(Some(&pin))).await.unwrap();
            servers.slaves[0].pause_replay();
            sqlx::query("INSERT INTO notes VALUES (2)").execute(&writer).await.unwrap();
            let pin = writer.pin().await.unwrap();
            let behind = cluster.read(Some(&pin));
            sqlx::query("SELECT 1").execute(&behind).await.unwrap();
            assert_eq!(behind.choice().unwrap().reason(), Reason::Pinned);
            servers.slaves[0].resume_replay();
            let statistics = cluster.statistics();
            let catch_ups = &statistics.catch_ups;
            assert_eq!(catch_ups.known + catch_ups.caught_up.count(), 1, "{catch_ups:?}");
            assert_eq!(catch_ups.timed_out.count(), 1, "{catch_ups:?}");
            assert!(catch_ups.timed_out.sum() >= Duration::from_millis(20), "{catch_ups:?}");
            assert_eq!(statistics.retries.get(RetryCause::Behind), 1);

            // The slave's process dies under a query.
            let reader = cluster.read(None);
            sqlx::query("SELECT 1").execute(&reader).await.unwrap();
            servers.slaves[0].kill();
            sqlx::query("SELECT 1").execute(&reader).await.unwrap();
            let gone =
                eventually("word of it", cluster, |statistics| statistics.servers[1].state == NodeState::Down)
                    .await;
            assert!(
                gone.retries.get(RetryCause::Broken) + gone.retries.get(RetryCause::Unreachable) >= 1,
                "{gone:#?}"
            );
            assert!(gone.servers[1].changes.get(NodeState::Down) >= 1);
            sqlx::query("SELECT 1").execute(&cluster.read(None)).await.unwrap();
            assert!(cluster.statistics().reads_at_master().get(Reason::SlavesUnavailable) >= 1);
            let reads = gone.servers[1].pools.iter().find(|pool| pool.used_for == PoolUse::SlaveReads).unwrap();
            assert!(
                reads.closed.get(CloseCause::Failed) + reads.closed.get(CloseCause::Invalidated) >= 1,
                "{reads:?}"
            );
            servers.slaves[0].start();
            eventually("its return", cluster, |statistics| statistics.servers[1].state == NodeState::Up).await;

            // The master dies under a write.
            let write = rocket::tokio::spawn({
                let writer = cluster.write();
                async move { sqlx::query("INSERT INTO notes SELECT 3 FROM pg_sleep(60)").execute(&writer).await }
            });
            let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'INSERT INTO notes SELECT 3%'";
            while servers.master.sql(sleeping) != "1" {}
            servers.master.kill();
            assert!(matches!(
                rocket_replicated::Error::from(write.await.unwrap().unwrap_err()),
                rocket_replicated::Error::OutcomeUnknown(_)
            ));
            assert_eq!(cluster.statistics().outcomes_unknown, 1);
        }
    }
}
