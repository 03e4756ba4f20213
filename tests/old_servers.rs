//! A server that is too old for this crate is refused at its first connection.

/// MariaDB can be told to report an older version. For other servers, only the decision is tested.
mod mariadb {
    use rocket::http::Status;
    use rocket::local::blocking::Client;
    use rocket_replicated::mysql::{Replicated, ReplicatedDb};
    use rocket_replicated::{Error, NodeState};

    use rocket_replicated_testing::Servers;
    use rocket_replicated_testing::mysql::MySql;
    use support::{blocking_eventually, logbook, rocket_over};

    const NEEDED: &str = "version 10.4.34-MariaDB is too old, MariaDB 10.5 or newer is needed";

    #[rocket::get("/")]
    async fn read(db: ReplicatedDb) -> Result<String, Error> {
        let _one: i64 = sqlx::query_scalar("SELECT 1").fetch_one(&db).await?;
        Ok(db.choice().unwrap().role().to_string())
    }

    #[rocket::post("/")]
    async fn write(db: ReplicatedDb) -> Result<(), Error> {
        sqlx::query("CREATE TABLE notes (id INTEGER)").execute(&db).await?;
        Ok(())
    }

    #[test]
    fn an_old_slave_serves_no_reads_and_an_old_master_takes_no_writes() {
        let servers = Servers::start(MySql::default(), 1);
        let (new, old) = (&servers.master, &servers.slaves[0]);
        old.restart_with("version = 10.4.34-MariaDB");
        let section = |master: &str, slave: &str| {
            format!("url = \"{master}\"\nslaves = [{{ url = \"{slave}\", name = \"slave-1\" }}]\n")
        };
        let app = |section: &str| {
            let rocket = rocket_over(section).attach(Replicated::fairing());
            Client::untracked(rocket.mount("/", rocket::routes![read, write])).unwrap()
        };

        let client = app(&section(&new.url(), &old.url()));
        blocking_eventually("the line", || {
            let told = logbook::lines(&["The slave `slave-1`", "cannot be used", NEEDED]);
            (!told.is_empty()).then_some(())
        });
        assert_eq!(client.get("/").dispatch().into_string().unwrap(), "master");
        drop(client);

        let client = app(&section(&old.url(), &new.url()));
        blocking_eventually("the line", || {
            (!logbook::lines(&["The master", "cannot be used", NEEDED]).is_empty()).then_some(())
        });
        assert_eq!(client.post("/").dispatch().status(), Status::ServiceUnavailable);
        let cluster = Replicated::fetch(client.rocket()).unwrap();
        assert_eq!(cluster.status()[0].state, NodeState::Down);
    }
}
