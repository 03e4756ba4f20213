//! A slave that has replayed writes that its master does not have would serve lost rows. It is left out.

crate::on_servers! {
    use std::time::{Duration, Instant};

    use rocket::local::asynchronous::Client;
    use rocket::tokio;
    use rocket_replicated::backend::Backend;
    use rocket_replicated::internals::Engine;
    use rocket_replicated::{Cluster, NodeState, Reason};
    use rocket_replicated_testing::{Server, Servers};
    use support::{eventually, logbook, rocket_over};

    const SCHEME: &str = <Dbms as rocket_replicated_testing::Dbms>::SCHEME;

    /// The lag is not limited, so that only divergence leaves the slave out.
    const KEYS: &str = "check_interval = 0.1\ncheck_timeout = 2\nmax_lag = false\nunknown_lag = \"use\"\n";

    async fn launch(master: &Server<Dbms>, slave: &Server<Dbms>, name: &str) -> (Client, Cluster<Database>) {
        let (master, slave) = (master.url(), slave.url());
        let section = format!("url = \"{master}\"\nslaves = [{{ url = \"{slave}\", name = \"{name}\" }}]\n{KEYS}");
        let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap().clone();
        (client, cluster)
    }

    fn states(cluster: &Cluster<Database>) -> Vec<NodeState> {
        cluster.status().iter().map(|node| node.state).collect()
    }

    fn write(server: &Server<Dbms>, rows: usize) {
        server.sql(&"INSERT INTO notes VALUES (1);".repeat(rows));
    }

    /// The application's master is a promoted slave. The other slave still follows the former master.
    #[support::async_test]
    async fn a_slave_that_followed_another_master_further_is_left_out_and_stays_so() {
        let servers = Servers::<Dbms>::start(Default::default(), 2);
        let (former, master, slave) = (&servers.master, &servers.slaves[0], &servers.slaves[1]);
        former.sql("CREATE TABLE notes (id INTEGER)");
        servers.wait_caught_up();
        master.promote().unwrap();
        write(former, 400);
        eventually("the rows that are lost", async || slave.sql("SELECT count(*) FROM notes") == "400").await;

        let name = format!("diverged-{SCHEME}");
        let (client, cluster) = launch(master, slave, &name).await;
        assert_eq!(states(&cluster), [NodeState::Up, NodeState::Diverged], "from the launch on");
        assert_eq!(cluster.status()[1].lag, None);
        for _ in 0..20 {
            let db = cluster.read(None);
            sqlx::query("SELECT 1").execute(&db).await.unwrap();
            assert_eq!(db.choice().unwrap().reason(), Reason::SlavesUnavailable);
        }
        let remedy = <<Pool as Backend>::Db as Engine>::REJOIN;
        assert_eq!(logbook::lines(&["ERROR", &name, "asked afterwards, does not have", remedy]).len(), 1);
        drop((client, cluster));

        // The same holds after a relaunch, and once the master has written past the slave's position.
        let (_client, cluster) = launch(master, slave, &name).await;
        assert_eq!(states(&cluster), [NodeState::Up, NodeState::Diverged]);
        former.kill();
        write(master, 800);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(1) {
            assert_eq!(states(&cluster), [NodeState::Up, NodeState::Diverged]);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The slave may have writes that the master had not done yet when the master was probed.
    #[support::async_test]
    async fn a_slave_that_keeps_up_with_a_busy_master_serves() {
        let servers = Servers::<Dbms>::start(Default::default(), 1);
        let (master, slave) = (&servers.master, &servers.slaves[0]);
        master.sql("CREATE TABLE notes (id INTEGER)");
        servers.wait_caught_up();
        std::thread::scope(|scope| {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let watched = scope.spawn(move || runtime.block_on(async {
                let (_client, cluster) = launch(master, slave, "busy").await;
                let writes = scope.spawn(|| (0..40).for_each(|_| write(master, 50)));
                loop {
                    assert_eq!(states(&cluster), [NodeState::Up; 2]);
                    if writes.is_finished() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }));
            watched.join().unwrap();
        });
    }
}
