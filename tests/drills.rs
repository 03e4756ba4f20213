//! The drills that an operator can run, and the status that shows them.

crate::on_every_database! {
    use std::collections::BTreeSet;

    use rocket::local::asynchronous::Client;
    use rocket_replicated::{Cluster, NodeState, Role};

    use support::rocket_over;

    async fn launch(lab: &Lab) -> (Client, Cluster<Database>) {
        let rocket = rocket_over(&lab.section()).attach(Replicated::fairing());
        let client = Client::untracked(rocket).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap().clone();
        (client, cluster)
    }

    async fn readers(cluster: &Cluster<Database>) -> BTreeSet<String> {
        let mut readers = BTreeSet::new();
        for _ in 0..40 {
            let db = cluster.read(None);
            sqlx::query("SELECT id FROM notes").execute(&db).await.unwrap();
            let choice = db.choice().unwrap();
            let node = if choice.role() == Role::Master { "master" } else { choice.node() };
            readers.insert(format!("{node} {:?}", choice.reason()));
        }
        readers
    }

    fn set<const N: usize>(readers: [&str; N]) -> BTreeSet<String> {
        readers.map(str::to_owned).into()
    }

    #[support::async_test]
    async fn a_slave_is_taken_out_and_put_back() {
        let lab = Lab::new();
        let (_client, cluster) = launch(&lab).await;
        let both = set(["slave-1 ReadsDatabase", "slave-2 ReadsDatabase"]);
        assert_eq!(readers(&cluster).await, both);

        let reading = cluster.read(None);
        sqlx::query("SELECT id FROM notes").execute(&reading).await.unwrap();
        let (reads, other) = match reading.choice().unwrap().node() {
            "slave-1" => ("slave-1", "slave-2"),
            _ => ("slave-2", "slave-1"),
        };
        cluster.take_out(reads).unwrap();
        assert_eq!(readers(&cluster).await, set([&format!("{other} ReadsDatabase")]));
        sqlx::query("SELECT id FROM notes").execute(&reading).await.unwrap();
        assert_eq!(reading.choice().unwrap().node(), reads, "whoever reads from it goes on");

        cluster.take_out(other).unwrap();
        assert_eq!(readers(&cluster).await, set(["master SlavesUnavailable"]));
        let states: Vec<_> = cluster.status().iter().map(|node| node.state).collect();
        assert_eq!(states, [NodeState::Up, NodeState::TakenOut, NodeState::TakenOut]);

        cluster.put_back("slave-1").unwrap();
        cluster.put_back("slave-2").unwrap();
        assert_eq!(readers(&cluster).await, both);
        for unknown in [cluster.take_out("slave-3"), cluster.put_back("slave-3")] {
            assert_eq!(unknown.unwrap_err().to_string(), "no slave is named `slave-3`");
        }
    }

    #[support::async_test]
    async fn all_reads_are_sent_to_the_master_and_back() {
        let lab = Lab::new();
        let (_client, cluster) = launch(&lab).await;
        cluster.stop_reading_slaves();
        assert_eq!(readers(&cluster).await, set(["master SwitchedOff"]));
        cluster.resume_reading_slaves();
        assert_eq!(readers(&cluster).await, set(["slave-1 ReadsDatabase", "slave-2 ReadsDatabase"]));
    }

    #[support::async_test]
    async fn status_lists_all_servers() {
        let lab = Lab::new();
        let (_client, cluster) = launch(&lab).await;
        let status = cluster.status();
        let [master, first, second] = &status[..] else { panic!("{status:?}") };
        assert_eq!((master.role, master.state, master.lag), (Role::Master, NodeState::Up, None));
        for (slave, name) in [(first, "slave-1"), (second, "slave-2")] {
            assert_eq!((&*slave.name, slave.role, slave.state), (name, Role::Slave, NodeState::Up));
            assert_eq!(slave.in_use, 0);
        }
        let held = cluster.write().get().await.unwrap();
        assert_eq!(cluster.status()[0].in_use, 1);
        drop(held);
    }
}
