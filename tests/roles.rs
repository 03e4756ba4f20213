//! Servers are asked whether they take writes: a master that was demoted, an address that leads to another server now,
//! and a slave whose master is gone.

crate::on_servers! {
    use rocket::http::Status;
    use rocket::local::asynchronous::Client;
    use rocket::{get, put, routes};
    use rocket_replicated::backend::Backend;
    use rocket_replicated::internals::Engine;
    use rocket_replicated::{Error, NodeState};
    use rocket_replicated_testing::{Server, Servers, Wire};
    use support::{eventually, logbook, rocket_over};

    const SCHEME: &str = <Dbms as rocket_replicated_testing::Dbms>::SCHEME;
    const KEYS: &str = "check_interval = 0.1\ncheck_timeout = 2\nmax_lag = false\nunknown_lag = \"use\"\n";

    #[put("/<id>")]
    async fn write(id: i64, db: ReplicatedDb) -> Result<(), Error> {
        let insert = sqlx::AssertSqlSafe(format!("INSERT INTO notes VALUES ({id})"));
        sqlx::query(insert).execute(&db).await?;
        Ok(())
    }

    /// Returns the name of the server.
    #[get("/")]
    async fn read(db: ReplicatedDb) -> Result<String, Error> {
        let _: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM notes").fetch_one(&db).await?;
        Ok(db.choice().unwrap().node().to_owned())
    }

    fn start(slaves: usize) -> Servers<Dbms> {
        let servers = Servers::<Dbms>::start(Default::default(), slaves);
        servers.master.sql("CREATE TABLE notes (id BIGINT)");
        if SCHEME == "postgres" {
            servers.master.sql("GRANT ALL ON notes TO app");
        }
        servers.wait_caught_up();
        servers
    }

    async fn launch(name: &str, url: &Server<Dbms>, slaves: &[&Server<Dbms>], keys: &str) -> Client {
        let slave = |(number, server): (usize, &&Server<Dbms>)| {
            format!("{{ url = \"{}\", name = \"{name}-{number}\" }}", server.url())
        };
        let slaves: Vec<_> = slaves.iter().enumerate().map(slave).collect();
        let section = format!(
            "url = \"{}\"\nname = \"{name}\"\nslaves = [{}]\n{KEYS}{keys}",
            url.url(),
            slaves.join(", "),
        );
        let rocket = rocket_over(&section)
            .attach(Replicated::fairing())
            .mount("/", routes![write, read])
            .mount("/status", Replicated::status_open_to_everybody());
        Client::untracked(rocket).await.unwrap()
    }

    async fn puts(client: &Client, id: i64) -> Status {
        client.put(format!("/{id}")).dispatch().await.status()
    }

    async fn reads(client: &Client) -> String {
        let response = client.get("/").dispatch().await;
        assert_eq!(response.status(), Status::Ok);
        response.into_string().await.unwrap()
    }

    fn states(client: &Client) -> Vec<NodeState> {
        let cluster = Replicated::fetch(client.rocket()).unwrap();
        cluster.status().iter().map(|node| node.state).collect()
    }

    const FOLLOWS: &str = "follow_promotion = true";

    /// True if a timeline tells of promotions, even of those before the launch.
    const TELLS_TIMELINE: bool = <<Pool as Backend>::Db as Engine>::TELLS_TIMELINE;

    /// As under a manager of clusters, whose leader changes while the configuration stays the same.
    #[support::async_test]
    async fn an_application_that_is_launched_at_a_slave_writes_to_the_server_that_leads_where_that_is_told() {
        let servers = start(2);
        let (leader, [first, second]) = (&servers.master, &servers.slaves[..]) else { panic!("two slaves") };
        for slaves in [&[leader][..], &[second, leader]] {
            let client = launch("led", first, slaves, FOLLOWS).await;
            if TELLS_TIMELINE {
                assert_eq!(puts(&client, 1).await, Status::Ok, "from the first request on");
                eventually("a read from the configured master, as a slave", async || reads(&client).await == "led").await;
            } else {
                assert_eq!(puts(&client, 1).await, Status::ServiceUnavailable, "nothing tells whom the others follow");
                reads(&client).await;
            }
        }
        assert_eq!(leader.sql("SELECT COUNT(*) FROM notes"), if TELLS_TIMELINE { "2" } else { "0" });
    }

    #[support::async_test]
    async fn where_promotions_are_not_followed_a_configured_slave_serves_reads_and_the_log_names_the_leader() {
        let servers = start(1);
        let (leader, slave) = (&servers.master, &servers.slaves[0]);
        let name = format!("unled-{SCHEME}");
        let client = launch(&name, slave, &[], "").await;
        assert_eq!(puts(&client, 1).await, Status::ServiceUnavailable);
        assert_eq!(reads(&client).await, name);
        for (path, expected) in [("health", Status::Ok), ("health?writes", Status::ServiceUnavailable)] {
            assert_eq!(client.get(format!("/status/{path}")).dispatch().await.status(), expected, "{path}");
        }
        assert_eq!(logbook::lines(&["ERROR", &name, "takes no writes"]).len(), 1);
        drop(client);

        let client = launch(&name, slave, &[leader], "").await;
        assert_eq!(puts(&client, 1).await, Status::ServiceUnavailable);
        for _ in 0..20 {
            reads(&client).await;
        }
    }

    #[support::async_test]
    async fn a_slave_that_is_promoted_is_followed_also_after_a_launch_without_a_master() {
        let servers = start(2);
        let (master, [first, second]) = (&servers.master, &servers.slaves[..]) else { panic!("two slaves") };
        let early = launch("early", master, &[first, second], FOLLOWS).await;
        assert_eq!(puts(&early, 1).await, Status::Ok);
        servers.wait_caught_up();
        eventually("looks at all", async || states(&early) == [NodeState::Up; 3]).await;
        master.kill();
        let late = launch("late", master, &[first, second], FOLLOWS).await;
        first.promote().unwrap();
        for client in [&early, &late] {
            eventually("a write to the slave that was promoted", async || puts(client, 2).await == Status::Ok).await;
        }
        assert_ne!(first.sql("SELECT COUNT(*) FROM notes WHERE id = 2"), "0");

        // The former master takes writes as before, but is sent none.
        master.start();
        let cluster = Replicated::fetch(early.rocket()).unwrap();
        let former = || cluster.status().into_iter().find(|node| node.name == "early").unwrap();
        eventually("the former master", async || former().state == NodeState::SecondMaster).await;
        for id in 3..10 {
            assert_eq!(puts(&early, id).await, Status::Ok);
            assert_ne!(reads(&early).await, "early");
        }
        assert_eq!(master.sql("SELECT COUNT(*) FROM notes WHERE id > 1"), "0");
    }

    /// As with a proxy whose backup is the master: its old connections stay where they are.
    #[support::async_test]
    async fn a_slaves_address_that_has_led_to_the_master_is_read_from_again() {
        let servers = Servers::<Dbms>::start(Default::default(), 1);
        let (master, slave) = (&servers.master, &servers.slaves[0]);
        let wire = Wire::to(master.port());
        let (url, address) = (master.url(), wire.url(&slave.url()));
        let keys = "check_interval = 0.1\ncheck_timeout = 2";
        let section = format!("url = \"{url}\"\nslaves = [{{ url = \"{address}\", name = \"reader\" }}]\n{keys}");
        let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap();
        eventually("the master by its address", async || states(&client) == [NodeState::Up, NodeState::MasterItself]).await;

        wire.lead_to(slave.port());
        eventually("the slave by its address", async || states(&client) == [NodeState::Up; 2]).await;
        let db = cluster.read(None);
        sqlx::query("SELECT 1").execute(&db).await.unwrap();
        assert_eq!(db.choice().unwrap().node(), "reader");
    }
}

mod by_read_only {
    use std::time::{Duration, Instant};

    use rocket::http::Status;
    use rocket::local::asynchronous::Client;
    use rocket::{get, put, routes};
    use rocket_replicated::mysql::{Replicated, ReplicatedDb};
    use rocket_replicated::{Error, NodeState};
    use rocket_replicated_testing::mysql::MySql;
    use rocket_replicated_testing::{Servers, Wire};
    use support::{eventually, logbook, rocket_over};

    const PIN: &str = "replicated_pin";
    const KEYS: &str = "check_interval = 0.1\ncheck_timeout = 2\nunknown_lag = \"use\"\n";

    #[put("/<id>")]
    async fn write(id: i64, db: ReplicatedDb) -> Result<(), Error> {
        sqlx::query("INSERT INTO notes VALUES (?)").bind(id).execute(&db).await?;
        Ok(())
    }

    /// The write is so slow that the connections of several writes are open at the same time.
    #[put("/slow/<id>")]
    async fn write_slowly(id: i64, db: ReplicatedDb) -> Result<(), Error> {
        sqlx::query("INSERT INTO notes SELECT ? + SLEEP(0.3)").bind(id).execute(&db).await?;
        Ok(())
    }

    #[get("/<id>")]
    async fn read(id: i64, db: ReplicatedDb) -> Result<String, Error> {
        let found: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM notes WHERE id = ?").bind(id).fetch_one(&db).await?;
        Ok(found.to_string())
    }

    async fn launch(section: &str) -> Client {
        let rocket = rocket_over(&format!("{section}\n{KEYS}")).attach(Replicated::fairing());
        Client::untracked(rocket.mount("/", routes![write, write_slowly, read])).await.unwrap()
    }

    fn start() -> Servers<MySql> {
        let servers = Servers::start(MySql::default(), 1);
        servers.master.sql("CREATE TABLE notes (id BIGINT)");
        servers.wait_caught_up();
        servers
    }

    fn states(client: &Client) -> Vec<NodeState> {
        let cluster = Replicated::fetch(client.rocket()).unwrap();
        cluster.status().iter().map(|node| node.state).collect()
    }

    #[support::async_test]
    async fn a_read_only_master_is_not_written_to_until_it_is_writable_again() {
        let servers = start();
        let (master, slave) = (&servers.master, &servers.slaves[0]);
        let client = launch(&format!(
            "url = \"{}\"\nname = \"demoted\"\nslaves = [{{ url = \"{}\", name = \"slave-1\" }}]",
            master.url(),
            slave.url(),
        ))
        .await;
        assert_eq!(client.put("/1").dispatch().await.status(), Status::Ok);

        master.sql("SET GLOBAL read_only = 1");
        let begun = Instant::now();
        let mut refused = 0;
        while states(&client)[0] != NodeState::Standby || refused < 5 {
            let response = client.put("/2").dispatch().await;
            assert_eq!(response.status(), Status::ServiceUnavailable);
            assert_eq!(response.headers().get_one("Retry-After"), Some("1"));
            assert_eq!(response.cookies().get(PIN), None, "nothing was written");
            assert_eq!(client.get("/1").dispatch().await.status(), Status::Ok, "a stranger reads on");
            assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", states(&client));
            refused += 1;
        }
        assert_eq!(logbook::lines(&["ERROR", "`demoted`", "takes no writes", "read_only"]).len(), 1);

        master.sql("SET GLOBAL read_only = 0");
        let put = async || client.put("/3").dispatch().await.status() == Status::Ok;
        eventually("a write", put).await;
        assert_eq!(master.sql("SELECT COUNT(*) FROM notes WHERE id = 2"), "0");
    }

    /// A switchover in which the address moves, and open connections stay open.
    async fn switch_over(consistency: &str) {
        let servers = start();
        let (old, new) = (&servers.master, &servers.slaves[0]);
        let wire = Wire::to(old.port());
        let client = launch(&format!(
            "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"slave-1\" }}]\nconsistency = \"{consistency}\"",
            wire.url(&old.url()),
            new.url(),
        ))
        .await;
        let slow = (0..8).map(|id| client.put(format!("/slow/{id}")).dispatch());
        for response in rocket::futures::future::join_all(slow).await {
            assert_eq!(response.status(), Status::Ok);
        }

        old.sql("SET GLOBAL read_only = 1");
        servers.wait_caught_up();
        new.promote().unwrap();
        wire.lead_to(new.port());
        let (moved, mut id, mut written) = (Instant::now(), 100, 0);
        while moved.elapsed() < Duration::from_secs(6) || written <= 20 {
            assert!(moved.elapsed() < Duration::from_secs(60), "only {written} writes");
            id += 1;
            let response = client.put(format!("/{id}")).dispatch().await;
            let took = moved.elapsed();
            if response.status() != Status::Ok {
                assert_eq!(response.status(), Status::ServiceUnavailable);
                assert!(took < Duration::from_secs(5), "a write fails {took:?} after the move");
                continue;
            }
            written += 1;
            let pin = response.cookies().get(PIN).expect("a pin").clone();
            let response = client.get(format!("/{id}")).cookie(pin).dispatch().await;
            assert_eq!(response.status(), Status::Ok);
            let found = response.into_string().await.unwrap();
            assert_eq!(found, "1", "its writer misses a row {took:?} after the move");
        }
    }

    #[support::async_test]
    async fn nothing_stays_at_a_master_that_was_demoted_behind_its_address_by_window() {
        switch_over("window").await;
    }

    #[support::async_test]
    async fn nothing_stays_at_a_master_that_was_demoted_behind_its_address_by_position() {
        switch_over("position").await;
    }

    /// After a switchover behind a balancer, the address of the slaves leads to the new master for some checks, and that
    /// of the master to the old one.
    #[support::async_test]
    async fn writes_return_to_url_once_it_leads_to_the_master_that_was_followed() {
        let servers = start();
        let (old, new) = (&servers.master, &servers.slaves[0]);
        let [url, of_slaves] = [old, new].map(|server| Wire::to(server.port()));
        let client = launch(&format!(
            "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"of-slaves\" }}]\nfollow_promotion = true",
            url.url(&old.url()),
            of_slaves.url(&new.url()),
        ))
        .await;
        let puts = async |id: i64| client.put(format!("/{id}")).dispatch().await.status();
        assert_eq!(puts(1).await, Status::Ok);
        eventually("looks at both", async || states(&client) == [NodeState::Up; 2]).await;

        old.sql("SET GLOBAL read_only = 1");
        servers.wait_caught_up();
        new.promote().unwrap();
        eventually("a write by the slaves' address", async || puts(2).await == Status::Ok).await;

        url.lead_to(new.port());
        of_slaves.lead_to(old.port());
        of_slaves.cut();
        eventually("a write by the master's address", async || puts(3).await == Status::Ok).await;
        for id in 4..20 {
            assert_eq!(puts(id).await, Status::Ok);
        }
        assert_eq!(new.sql("SELECT COUNT(DISTINCT id) FROM notes WHERE id >= 3"), "17");
    }

    /// Rows of the former master may be lost ones, whatever position its own later writes have reached.
    #[support::async_test]
    async fn a_former_master_that_takes_writes_of_others_is_not_followed_again() {
        let servers = start();
        let (first, second) = (&servers.master, &servers.slaves[0]);
        let client = launch(&format!(
            "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"slave-1\" }}]\nfollow_promotion = true",
            first.url(),
            second.url(),
        ))
        .await;
        let puts = async |id: i64| client.put(format!("/{id}")).dispatch().await.status();
        assert_eq!(puts(1).await, Status::Ok);
        servers.wait_caught_up();
        first.kill();
        second.promote().unwrap();
        eventually("a write to the second", async || puts(2).await == Status::Ok).await;

        first.start();
        first.sql(&"INSERT INTO notes VALUES (-1); ".repeat(10));
        let cluster = Replicated::fetch(client.rocket()).unwrap();
        let state = |name: &str| cluster.status().into_iter().find(|node| node.name == name).unwrap().state;
        let master = cluster.status()[1].name.clone();
        eventually("its return", async || state(&master) == NodeState::SecondMaster).await;
        second.freeze();
        eventually("the loss of the second", async || state("slave-1") == NodeState::Down).await;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            assert_eq!(puts(3).await, Status::ServiceUnavailable);
        }
        assert_eq!(first.sql("SELECT COUNT(*) FROM notes WHERE id = 3"), "0");
        second.thaw();
    }

    /// A slave whose `read_only` was switched off while it replicates is not followed either.
    #[support::async_test]
    async fn a_slave_that_lacks_a_write_or_still_replicates_is_not_followed() {
        let servers = start();
        let (master, slave) = (&servers.master, &servers.slaves[0]);
        let client = launch(&format!(
            "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"slave-1\" }}]\nfollow_promotion = true\nmax_lag = false",
            master.url(),
            slave.url(),
        ))
        .await;
        let puts = async |id: i64| client.put(format!("/{id}")).dispatch().await.status();
        if MySql::default().is_mariadb() {
            slave.sql("SET GLOBAL read_only = 0");
            master.freeze();
            let cluster = Replicated::fetch(client.rocket()).unwrap();
            eventually("the master's absence", async || cluster.status()[0].state == NodeState::Down).await;
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(3) {
                assert_eq!(puts(1).await, Status::ServiceUnavailable);
            }
            master.thaw();
            slave.sql("SET GLOBAL read_only = 1");
        }
        eventually("a write", async || puts(2).await == Status::Ok).await;

        slave.pause_replay();
        assert_eq!(puts(3).await, Status::Ok);
        master.sql("SET GLOBAL read_only = 1");
        slave.promote().unwrap();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            assert_eq!(puts(4).await, Status::ServiceUnavailable);
        }
        assert_eq!(slave.sql("SELECT COUNT(*) FROM notes WHERE id = 4"), "0");
    }

    /// A write of its own does not make the slave a master.
    #[support::async_test]
    async fn a_slave_with_a_write_of_its_own_serves_while_the_master_is_gone() {
        let servers = start();
        let (master, slave) = (&servers.master, &servers.slaves[0]);
        slave.sql("SET GLOBAL read_only = 0; CREATE TABLE mine (id INT)");
        let client = launch(&format!(
            "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"slave-1\" }}]",
            master.url(),
            slave.url(),
        ))
        .await;
        assert_eq!(states(&client), [NodeState::Up; 2]);
        master.kill();
        eventually("the master's absence", async || states(&client)[0] == NodeState::Down).await;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) {
            assert_eq!(client.get("/1").dispatch().await.status(), Status::Ok);
            assert_eq!(states(&client)[1], NodeState::Up);
        }
    }
}
