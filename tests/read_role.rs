//! `read_url` with a role of its own: sessions that the monitor's role may not see are not taken for dead.

use rocket_replicated_testing::Dbms;

trait Reader: Dbms {
    const CREATE: &str;
    /// A query that takes longer than a silent session is believed to be alive.
    const SLOW: &str;
}

impl Reader for rocket_replicated_testing::mysql::MySql {
    const CREATE: &str = "DROP USER IF EXISTS reader; CREATE USER reader IDENTIFIED BY 'secret'; GRANT SELECT ON *.* TO reader";
    const SLOW: &str = "SELECT SLEEP(6)";
}

impl Reader for rocket_replicated_testing::postgres::Postgres {
    const CREATE: &str = "DROP ROLE IF EXISTS reader; CREATE ROLE reader LOGIN PASSWORD 'secret'";
    const SLOW: &str = "SELECT pg_sleep(6)";
}

crate::on_servers! {
    use rocket::local::asynchronous::Client;
    use rocket_replicated::NodeState;
    use support::{eventually, logbook, rocket_over};

    use super::Reader;

    /// The master's URL for a role that reads.
    fn url_of_reader(lab: &Lab) -> String {
        for statement in <Dbms as Reader>::CREATE.split("; ") {
            lab.master().sql(statement);
        }
        lab.master_url().replace("//app:", "//reader:")
    }

    /// A proxy may send one user to the master and the other to slaves: only the server can tell.
    #[support::async_test]
    async fn a_slave_that_is_the_master_under_another_user_is_recognised() {
        let lab = Lab::new();
        let section = format!(
            "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"other-user\" }}]\n",
            lab.master_url(),
            url_of_reader(&lab),
        );
        let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap();
        let state = || cluster.status().into_iter().find(|node| node.name == "other-user").unwrap().state;
        eventually("its state", async || state() == NodeState::MasterItself).await;
        let insert = sqlx::query("INSERT INTO notes (id, body) VALUES (1, 'note')");
        insert.execute(&cluster.write()).await.unwrap();
        let read = cluster.read(None);
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM notes").fetch_one(&read).await.unwrap();
        assert_eq!(count, 1);
    }

    #[support::async_test]
    async fn slow_statements_of_another_role_are_not_ended() {
        let lab = Lab::new();
        let section = format!(
            "{}read_url = \"{}\"\ncheck_interval = 0.1\ncheck_timeout = 2\n",
            lab.section_alone(),
            url_of_reader(&lab),
        );
        let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap();
        let before = cluster.statistics();
        let read = cluster.read(None);
        sqlx::query(<Dbms as Reader>::SLOW).execute(&read).await.unwrap();
        // The statement was not run again either.
        assert_eq!(cluster.statistics().retries, before.retries);
        let held = cluster.read(None);
        let mut connection = held.get().await.unwrap();
        sqlx::query(<Dbms as Reader>::SLOW).execute(&mut *connection).await.unwrap();
        assert_eq!(logbook::lines(&["WARN", "cannot be"]), [""; 0]);
    }
}
