//! Connections that take longer to open than requests wait for one, as on a busy machine.

crate::on_servers! {
    use std::time::Duration;

    use rocket::local::asynchronous::Client;
    use rocket_replicated::{Cluster, NodeState};
    use rocket_replicated_testing::Wire;

    use support::{eventually, logbook, rocket_over};

    /// The delay in each direction. No protocol opens a connection in less than two round trips.
    const DELAY: Duration = Duration::from_millis(300);

    /// A cluster over a wire that delays. Checkouts wait for 0.2 s at a slave, and probes wait longer.
    async fn behind_a_wire(wire: &Wire, section: &str, connect_timeout: f64) -> (Client, Cluster<Database>) {
        let section = format!(
            "{section}\nmax_connections = 2\nconnect_timeout = {connect_timeout}\nslave_timeout = 0.2\ncheck_timeout = 5\n\
             max_lag = false\n"
        );
        let rocket = rocket_over(&section).attach(Replicated::fairing());
        let client = Client::untracked(rocket).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap().clone();
        let are_up = async || cluster.status().iter().all(|node| node.state == NodeState::Up);
        eventually("all servers up", are_up).await;
        wire.delay(DELAY);
        (client, cluster)
    }

    /// A name that differs between databases, which share the log.
    fn named(lab: &Lab) -> String {
        format!("slow-{}", lab.master_url().split_once(':').unwrap().0)
    }

    #[support::async_test]
    async fn a_connection_that_opens_late_serves_the_next_request() {
        let lab = Lab::new();
        let name = named(&lab);
        let wire = Wire::to(lab.servers().master.port());
        let section = format!("url = \"{}\"\nname = \"{name}\"", wire.url(lab.master_url()));
        let (_client, cluster) = behind_a_wire(&wire, &section, 0.2).await;
        let get = async || cluster.write().get().await.map(drop).unwrap_err().to_string();

        let slow = format!(
            "new connection for writes to the master `{name}` of database `replicated` took longer than 200ms"
        );
        assert!(get().await.ends_with(&format!(": a {slow}")));
        assert_eq!(logbook::lines(&[&format!("WARN: A {slow}.")]).len(), 1);
        let (second, third) = rocket::tokio::join!(get(), get());
        for error in [second, third] {
            assert!(error.contains(": 0 of 2 are in use, 2 are being opened; "), "{error}");
        }
        eventually("a connection", async || cluster.write().get().await.is_ok()).await;
    }

    /// A round trip takes 0.5 s, and so does a probe. Before that, its connection takes four round trips or more to
    /// open.
    #[support::async_test]
    async fn a_server_comes_up_though_connections_open_more_slowly_than_probes_wait() {
        let lab = Lab::new();
        let name = format!("{}-probed", named(&lab));
        let wire = Wire::to(lab.servers().slaves[0].port());
        wire.delay(Duration::from_millis(250));
        let section = format!(
            "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"{name}\" }}]\nmax_lag = false\n\
             check_timeout = 1.5\ncheck_interval = 0.1\n",
            lab.master_url(),
            wire.url(&lab.slave_urls()[0]),
        );
        let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap();
        let state = || cluster.status().iter().find(|node| node.name == name).unwrap().state;
        let late = [&*name, "cannot be used: ", "no answer within 1.5s (`check_timeout`)"];
        let comes_up = async || !logbook::lines(&late).is_empty() && state() == NodeState::Up;
        eventually("the slave", comes_up).await;
    }

    #[support::async_test]
    async fn reads_come_back_to_a_slave() {
        let lab = Lab::new();
        let name = named(&lab);
        let wire = Wire::to(lab.servers().slaves[0].port());
        let slave = wire.url(&lab.slave_urls()[0]);
        let section =
            format!("url = \"{}\"\nslaves = [{{ url = \"{slave}\", name = \"{name}\" }}]", lab.master_url());
        let (_client, cluster) = behind_a_wire(&wire, &section, 5.0).await;
        let read = async || {
            let db = cluster.read(None);
            sqlx::query("SELECT 1").execute(&db).await.unwrap();
            db.choice().unwrap().node().to_owned()
        };

        assert_ne!(read().await, name, "the master keeps nobody waiting");
        let said = logbook::lines(&[&format!("WARN: A new connection for reads to the slave `{name}`")]);
        assert_eq!(said.len(), 1, "{said:?}");
        eventually("the slave", async || read().await == name).await;
    }
}
