//! `logical = true`: a PostgreSQL server with logical replication serves as a slave.

use rocket::local::asynchronous::Client;
use rocket_replicated::postgres::{Database, Replicated};
use rocket_replicated::{Cluster, NodeState, Reason};

use rocket_replicated_testing::postgres::Postgres;
use rocket_replicated_testing::server::wait_for;
use rocket_replicated_testing::{Server, Servers};
use support::{logbook, rocket_over};

/// A publisher with a table `notes`, and a subscriber that has it too.
struct Pair {
    publisher: Servers<Postgres>,
    subscriber: Servers<Postgres>,
}

impl Pair {
    fn start() -> Self {
        let (publisher, subscriber) =
            (Servers::start(Postgres, 0), Servers::start_another_system(Postgres, 0));
        publisher.master.sql("ALTER SYSTEM SET wal_level = logical");
        publisher.master.stop();
        publisher.master.start();
        for server in [&publisher.master, &subscriber.master] {
            server.sql("CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT); GRANT ALL ON notes TO app");
        }
        publisher.master.sql("CREATE PUBLICATION notes FOR TABLE notes");
        let port = publisher.master.port();
        subscriber.master.sql(&format!(
            "CREATE SUBSCRIPTION notes CONNECTION \
             'host=127.0.0.1 port={port} user=postgres password=secret dbname=app' PUBLICATION notes"
        ));
        let pair = Self { publisher, subscriber };
        pair.master().sql("INSERT INTO notes VALUES (0, 'first')");
        pair.wait_replicated(0);
        pair
    }

    fn master(&self) -> &Server<Postgres> {
        &self.publisher.master
    }

    fn slave(&self) -> &Server<Postgres> {
        &self.subscriber.master
    }

    fn wait_replicated(&self, id: i32) {
        let there = format!("SELECT count(*) FROM notes WHERE id = {id}");
        wait_for("a replicated note", || self.slave().sql(&there) == "1");
    }

    async fn launch(&self, name: &str, slave: &str, keys: &str) -> (Client, Cluster<Database>) {
        let section = format!(
            "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"{name}\"{slave} }}]\ncheck_interval = 0.1\n{keys}",
            self.master().url(),
            self.slave().url(),
        );
        let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap().clone();
        (client, cluster)
    }
}

/// The number of notes that a reader with this pin sees, and the reason of the choice.
async fn read(cluster: &Cluster<Database>, pin: Option<&str>) -> (i64, Reason) {
    let db = cluster.read(pin);
    let count = sqlx::query_scalar("SELECT count(*) FROM notes").fetch_one(&db).await.unwrap();
    (count, db.choice().unwrap().reason())
}

/// Writes a note and returns the pin.
async fn write(cluster: &Cluster<Database>, id: i32) -> String {
    let db = cluster.write();
    sqlx::query("INSERT INTO notes VALUES ($1, 'more')").bind(id).execute(&db).await.unwrap();
    db.pin().await.unwrap()
}

fn slave(cluster: &Cluster<Database>) -> (NodeState, Option<std::time::Duration>) {
    let status = cluster.status();
    (status[1].state, status[1].lag)
}

#[support::async_test]
async fn a_declared_logical_slave_serves_by_the_window() {
    let pair = Pair::start();
    let (_client, cluster) = pair.launch("declared", ", logical = true", "lag_window = 3\n").await;
    assert_eq!(slave(&cluster), (NodeState::Up, None));
    assert_eq!(read(&cluster, None).await, (1, Reason::ReadsDatabase));

    let pin = write(&cluster, 1).await;
    assert_eq!(read(&cluster, Some(&pin)).await, (2, Reason::Pinned));
    pair.wait_replicated(1);
    assert_eq!(read(&cluster, None).await, (2, Reason::ReadsDatabase));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while read(&cluster, Some(&pin)).await != (2, Reason::ReadsDatabase) {
        assert!(std::time::Instant::now() < deadline, "the window never ends");
    }

    // Over connections for reads, this server takes no writes either.
    let refused = sqlx::query("INSERT INTO notes VALUES (9, 'lost')").execute(&cluster.read(None)).await;
    assert!(refused.unwrap_err().to_string().contains("read-only"));
    assert_eq!((cluster.status()[0].state, slave(&cluster).0), (NodeState::Up, NodeState::Up));

    let (_client, strict) = pair.launch("strict", ", logical = true", "unknown_lag = \"leave_out\"\n").await;
    assert_eq!(slave(&strict), (NodeState::LagUnknown, None));
    assert_eq!(read(&strict, None).await, (2, Reason::SlavesUnavailable));
}

#[support::async_test]
async fn in_position_mode_a_logical_slave_serves_only_unpinned_reads() {
    let pair = Pair::start();
    // The slave's own log is ahead of the master's. By that position alone, the slave would count as caught up.
    pair.slave().sql("SELECT pg_logical_emit_message(true, 'test', repeat('x', 4000000))");
    let keys = "consistency = \"position\"\nlag_window = 0.2\npin.max_age = 60\n";
    let (_client, cluster) = pair.launch("logical", ", logical = true", keys).await;
    assert_eq!(slave(&cluster), (NodeState::Up, None));

    pair.slave().sql("ALTER SUBSCRIPTION notes DISABLE");
    let pin = write(&cluster, 1).await;
    let begun = std::time::Instant::now();
    // The same holds after the window.
    while begun.elapsed() < std::time::Duration::from_secs(1) {
        assert_eq!(read(&cluster, Some(&pin)).await, (2, Reason::Pinned));
        assert_eq!(read(&cluster, None).await, (1, Reason::ReadsDatabase));
    }
    pair.slave().sql("ALTER SUBSCRIPTION notes ENABLE");
    pair.wait_replicated(1);
    assert_eq!(read(&cluster, Some(&pin)).await, (2, Reason::Pinned));
    assert_eq!(read(&cluster, None).await, (2, Reason::ReadsDatabase));
}

#[support::async_test]
async fn an_undeclared_logical_slave_is_refused_and_the_log_has_the_remedy() {
    let pair = Pair::start();
    let (_client, cluster) = pair.launch("undeclared", "", "").await;
    assert_eq!(slave(&cluster).0, NodeState::Stranger);
    assert_eq!(read(&cluster, None).await, (1, Reason::SlavesUnavailable));
    let lines = logbook::lines(&["ERROR", "slave `undeclared`", "another system", "say `logical = true`"]);
    assert_eq!(lines.len(), 1);
}
