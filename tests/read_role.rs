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
    use support::{logbook, rocket_over};

    use super::Reader;

    #[support::async_test]
    async fn slow_statements_of_another_role_are_not_ended() {
        let lab = Lab::new();
        for statement in <Dbms as Reader>::CREATE.split("; ") {
            lab.master().sql(statement);
        }
        let section = format!(
            "{}read_url = \"{}\"\ncheck_interval = 0.1\ncheck_timeout = 2\n",
            lab.section_alone(),
            lab.master_url().replace("//app:", "//reader:"),
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
