//! `follow_promotion`: when the master is gone and a slave was promoted, writes follow.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rocket::local::asynchronous::Client;
use rocket::tokio;
use rocket_replicated::internals::{Access, Depth, Engine, Observation, ReportedRole};
use rocket_replicated::postgres::{Database, Replicated};
use rocket_replicated::{NodeState, Role};
use sqlx::{Connection, PgConnection};

use rocket_replicated_testing::Servers;
use rocket_replicated_testing::postgres::Postgres;
use support::{eventually, logbook, rocket_over};

type Nodes = rocket_replicated::Cluster<Database>;

const KEYS: &str = "lag_window = 3600\nconsistency = \"position\"\nmax_lag = 1\ncatch_up_timeout = 10\n\
                    check_interval = 0.1\ncheck_timeout = 2\n";

/// The slaves' names say what becomes of them and which test they belong to.
async fn launch(cluster: &Servers<Postgres>, test: &str, keys: &str) -> (Client, Nodes) {
    let slave = |(index, name)| {
        let server: &rocket_replicated_testing::Server<Postgres> = &cluster.slaves[index];
        format!("{{ url = \"{}\", name = \"{name}-{test}\" }}", server.url())
    };
    let slaves: Vec<_> = [(0, "promoted"), (1, "left")].map(slave).into();
    let section =
        format!("url = \"{}\"\nslaves = [{}]\n{KEYS}{keys}", cluster.master.url(), slaves.join(", "));
    let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
    let nodes = Replicated::fetch(client.rocket()).unwrap().clone();
    eventually("both slaves", async || states(&nodes) == [NodeState::Up; 3]).await;
    (client, nodes)
}

fn states(nodes: &Nodes) -> Vec<NodeState> {
    nodes.status().iter().map(|node| node.state).collect()
}

/// Writes, and returns the pin.
async fn write(nodes: &Nodes) -> Result<String, sqlx::Error> {
    let writer = nodes.write();
    sqlx::query("INSERT INTO notes DEFAULT VALUES").execute(&writer).await?;
    Ok(writer.pin().await.unwrap())
}

/// The number of notes, and the choice of the server that was asked.
async fn read(nodes: &Nodes, pin: &str) -> (i64, String) {
    let reader = nodes.read(Some(pin));
    let count = sqlx::query_scalar("SELECT count(*) FROM notes").fetch_one(&reader).await.unwrap();
    (count, reader.choice().unwrap().to_string())
}

fn start() -> Servers<Postgres> {
    let cluster = Servers::start(Postgres, 2);
    cluster.master.sql("CREATE TABLE notes (id SERIAL); GRANT ALL ON notes, notes_id_seq TO app");
    cluster.wait_caught_up();
    cluster
}

#[support::async_test]
async fn writes_follow_a_promoted_slave() {
    let cluster = start();
    let (_client, nodes) = launch(&cluster, "a", "follow_promotion = true").await;
    let before = write(&nodes).await.unwrap();
    cluster.wait_caught_up();
    cluster.master.kill();
    cluster.slaves[0].sql("SELECT pg_promote()");
    eventually("writes", async || write(&nodes).await.is_ok()).await;
    assert_eq!(
        logbook::lines(&[
            "ERROR",
            "slave `promoted-a` of database `replicated` was promoted: writes go there"
        ])
        .len(),
        1
    );

    let status = nodes.status();
    assert_eq!((&*status[0].name, status[0].role), ("promoted-a", Role::Master));
    assert_eq!(status.len(), 3, "whoever is configured, whatever part it plays: {status:?}");
    assert_eq!((&*status[2].name, status[2].role), ("left-a", Role::Slave));
    assert_eq!((status[1].role, status[1].state), (Role::Slave, NodeState::Down), "the old master");

    // The other slave replays nothing any more. It has the old write, but will never have the new one.
    let after = write(&nodes).await.unwrap();
    let (count, choice) = read(&nodes, &after).await;
    assert_eq!((count, &*choice), (3, "promoted-a (pinned)"));
    let (count, _) = read(&nodes, &before).await;
    assert!(count >= 1);
    let shut_out = [NodeState::Up, NodeState::Down, NodeState::Behind];
    eventually("its absence", async || states(&nodes) == shut_out).await;

    // The old master does not have what the new one has.
    cluster.master.start();
    for _ in 0..50 {
        let written = write(&nodes).await.unwrap();
        assert_eq!(read(&nodes, &written).await.1, "promoted-a (pinned)");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(cluster.master.sql("SELECT count(*) FROM notes"), "1");
    assert!(!logbook::lines(&["ERROR", "takes writes, but is not the master"]).is_empty());
}

/// The role that reads from slaves may not write.
#[support::async_test]
async fn writes_that_follow_use_the_write_url() {
    let cluster = start();
    cluster.master.sql("CREATE ROLE reader LOGIN PASSWORD 'secret'; GRANT SELECT ON notes TO reader");
    cluster.wait_caught_up();
    let (master, slave) = (&cluster.master, &cluster.slaves[0]);
    let section = format!(
        "url = \"{}\"\nslaves = [{{ url = \"{}\", write_url = \"{}\" }}]\nfollow_promotion = true\n{KEYS}",
        master.url(),
        slave.url().replace("//app:", "//reader:"),
        slave.url(),
    );
    let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
    let nodes = Replicated::fetch(client.rocket()).unwrap().clone();
    eventually("the slave", async || states(&nodes) == [NodeState::Up; 2]).await;
    let user = async |db| sqlx::query_scalar::<_, String>("SELECT user::text").fetch_one(&db).await.unwrap();
    assert_eq!((user(nodes.read(None)).await, user(nodes.write()).await), ("reader".into(), "app".into()));
    master.kill();
    slave.sql("SELECT pg_promote()");
    eventually("writes", async || write(&nodes).await.is_ok()).await;
    assert_eq!(user(nodes.write()).await, "app");
}

#[support::async_test]
async fn no_promoted_slave_takes_the_place_of_a_master_that_is_up() {
    let cluster = start();
    let (_client, nodes) = launch(&cluster, "b", "follow_promotion = true").await;
    cluster.slaves[0].sql("SELECT pg_promote()");
    let shut_out = [NodeState::Up, NodeState::SecondMaster, NodeState::Up];
    eventually("its absence", async || states(&nodes) == shut_out).await;
    let written = write(&nodes).await.unwrap();
    assert_eq!(cluster.master.sql("SELECT count(*) FROM notes"), "1");
    for _ in 0..20 {
        assert_eq!(read(&nodes, &written).await, (1, "left-b (caught up)".into()));
    }
    let lines = logbook::lines(&[
        "ERROR",
        "slave `promoted-b` of database `replicated` takes writes, but is not the master",
    ]);
    assert_eq!(lines.len(), 1);
}

#[support::async_test]
async fn promotions_are_not_followed_unless_configured() {
    let cluster = start();
    let (_client, nodes) = launch(&cluster, "c", "").await;
    cluster.master.kill();
    cluster.slaves[0].sql("SELECT pg_promote()");
    let shut_out = [NodeState::Down, NodeState::Promoted, NodeState::Up];
    eventually("its absence", async || states(&nodes) == shut_out).await;
    assert!(write(&nodes).await.is_err());
    assert_eq!(cluster.slaves[0].sql("SELECT count(*) FROM notes"), "0");
}

/// No other server is left to serve reads. The promoted slave has all that it ever had.
#[support::async_test]
async fn reads_go_on_while_the_only_slave_is_promoted() {
    for (test, follow) in [("d", true), ("e", false)] {
        let cluster = Servers::start(Postgres, 1);
        cluster.master.sql("CREATE TABLE notes (id SERIAL); GRANT ALL ON notes, notes_id_seq TO app");
        cluster.wait_caught_up();
        let (master, slave) = (&cluster.master, &cluster.slaves[0]);
        let section = format!(
            "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"promoted-{test}\" }}]\n{KEYS}\
             follow_promotion = {follow}\npinned_without_master = \"stale\"\n",
            master.url(),
            slave.url(),
        );
        let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
        let nodes = Replicated::fetch(client.rocket()).unwrap().clone();
        eventually("the slave", async || states(&nodes) == [NodeState::Up; 2]).await;
        let pin = write(&nodes).await.unwrap();
        cluster.wait_caught_up();

        let over = Arc::new(AtomicBool::new(false));
        let reads = [None, Some(pin)].map(|pin| {
            let (nodes, over) = (nodes.clone(), over.clone());
            tokio::spawn(async move {
                let (mut reads, mut failed) = (0, Vec::new());
                while !over.load(Ordering::Acquire) {
                    let reader = nodes.read(pin.as_deref());
                    let read: Result<i64, _> =
                        sqlx::query_scalar("SELECT count(*) FROM notes").fetch_one(&reader).await;
                    reads += 1;
                    failed.extend(read.err().map(|error| format!("{:?}: {error}", reader.choice())));
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                (reads, failed)
            })
        });
        master.kill();
        slave.sql("SELECT pg_promote()");
        if follow {
            eventually("writes", async || write(&nodes).await.is_ok()).await;
        } else {
            eventually("the promotion", async || states(&nodes) == [NodeState::Down, NodeState::Promoted])
                .await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(states(&nodes), [NodeState::Down, NodeState::Promoted]);
        }
        over.store(true, Ordering::Release);
        for (pinned, read) in reads.into_iter().enumerate() {
            let (reads, failed) = read.await.unwrap();
            assert!(
                failed.is_empty(),
                "{} of {reads} (follow {follow}, pinned {pinned}): {failed:?}",
                failed.len()
            );
            assert!(reads > 10, "{reads}");
        }

        // The old master is no promoted slave: its rows may be lost ones.
        master.start();
        if follow {
            let second = [NodeState::Up, NodeState::SecondMaster];
            eventually("the old master", async || states(&nodes) == second).await;
            slave.kill();
            let alone = [NodeState::Down, NodeState::SecondMaster];
            eventually("the loss", async || states(&nodes) == alone).await;
            sqlx::query("SELECT 1").execute(&nodes.read(None)).await.unwrap_err();
        } else {
            // The old master is still the master of this application. The promoted slave never gets its writes.
            let second = [NodeState::Up, NodeState::SecondMaster];
            eventually("the master", async || states(&nodes) == second).await;
        }
    }
}

/// The statement of a probe depends on the role that was seen over this connection before.
#[support::async_test]
async fn a_light_probe_over_an_old_connection_tells_a_new_role() {
    type Memory = <sqlx::Postgres as Engine>::Memory;

    async fn look(conn: &mut PgConnection, memory: &mut Memory) -> Observation {
        sqlx::Postgres::observe(conn, Access::SlaveReads, memory, Depth::Light).await.unwrap()
    }
    let timeline = |observed: &Observation, role: ReportedRole| {
        assert_eq!(observed.role, role);
        let words = format!("{:?}", observed.position);
        let (_, rest) = words.split_once("timeline: ").unwrap_or_else(|| panic!("{words}"));
        rest.split(',').next().unwrap().to_owned()
    };

    let cluster = start();
    let mut master = PgConnection::connect(&cluster.master.url()).await.unwrap();
    let mut slave = PgConnection::connect(&cluster.slaves[0].url()).await.unwrap();
    let (mut of_master, mut of_slave) = (Memory::default(), Memory::default());
    for _ in 0..3 {
        let (here, there) = (look(&mut master, &mut of_master).await, look(&mut slave, &mut of_slave).await);
        assert_eq!(timeline(&here, ReportedRole::Master), "1");
        assert_eq!(timeline(&there, ReportedRole::Slave), "1");
        assert_eq!(here.system, there.system);
        assert!(here.system.is_some());
    }

    // As behind a pooler that now leads to the other server.
    for _ in 0..2 {
        let here = look(&mut slave, &mut of_master).await;
        assert_eq!(timeline(&here, ReportedRole::Slave), "1");
    }

    cluster.slaves[0].sql("SELECT pg_promote()");
    for _ in 0..2 {
        let promoted = look(&mut slave, &mut of_slave).await;
        assert_eq!(timeline(&promoted, ReportedRole::Master), "2");
    }
}
