//! Statements that take longer than the section's threshold are logged.

crate::on_every_database! {
    use rocket::local::asynchronous::Client;
    use rocket_replicated::{Cluster, Role};

    use support::{logbook, rocket_over};

    async fn launch(section: &str) -> (Client, Cluster<Database>) {
        let client = Client::untracked(rocket_over(section).attach(Replicated::fairing())).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap().clone();
        (client, cluster)
    }

    fn told() -> Vec<String> {
        logbook::lines(&["WARN: Slow statement on the "])
    }

    #[rocket::async_test]
    async fn a_slaves_entry_has_its_own_threshold() {
        let lab = Lab::new();
        let [slave, ..] = lab.slave_urls() else { panic!("a lab has slaves") };
        let keys = format!(
            "slow_statement = 0\nslaves = [{{ url = \"{slave}\", name = \"unheard\", slow_statement = false }}]\n"
        );
        let (_client, cluster) = launch(&(lab.section_alone() + &keys)).await;
        let read = cluster.read(None);
        sqlx::query("SELECT 1").execute(&read).await.unwrap();
        assert_eq!(read.choice().unwrap().node(), "unheard");
        assert_eq!(told(), [""; 0]);

        sqlx::query("SELECT 1").execute(&cluster.write()).await.unwrap();
        let lines = told();
        let [line] = &lines[..] else { panic!("{lines:?}") };
        assert!(line.contains("the master `") && line.ends_with(" for SELECT 1"), "{line}");
        let mut connection = cluster.write().get().await.unwrap();
        sqlx::query("SELECT 2").execute(&mut *connection).await.unwrap();
        assert_eq!(told().len(), 2);
    }

    #[rocket::async_test]
    async fn sqlx_measures_what_runs_over_its_own_pools() {
        let lab = Lab::new();
        let (_client, cluster) = launch(&format!("slow_statement = 0\n{}", lab.section())).await;
        for role in [Role::Master, Role::Slave] {
            sqlx::query("SELECT 41 + 1").execute(&cluster.pool(role)).await.unwrap();
        }
        assert_eq!(told(), [""; 0]);
        assert_eq!(logbook::lines(&["WARN: ", "slow statement", "SELECT 41 + 1"]).len(), 2);
    }

    #[rocket::async_test]
    async fn by_default_quick_statements_are_not_slow() {
        let lab = Lab::new();
        let (_client, cluster) = launch(&lab.section()).await;
        sqlx::query("SELECT 1").execute(&cluster.read(None)).await.unwrap();
        assert_eq!(told(), [""; 0]);
    }
}
