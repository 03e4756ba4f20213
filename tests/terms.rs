//! `follow_promotion`: nothing that was begun under one master writes to another. Where two servers claim to be the
//! master, neither is written to.

use std::time::{Duration, Instant};

use rocket::futures::TryStreamExt;
use rocket::http::Status;
use rocket::local::asynchronous::Client;
use rocket::{post, routes};
use rocket_replicated::postgres::{Database, Replicated, ReplicatedDb};
use rocket_replicated::{Error, NodeState, NodeStatus, Role};

use rocket_replicated_testing::postgres::Postgres;
use rocket_replicated_testing::{Server, Servers};
use support::{eventually, logbook, rocket_over};

type Nodes = rocket_replicated::Cluster<Database>;

const KEYS: &str = "follow_promotion = true\nconsistency = \"position\"\nmax_lag = false\n\
                    check_interval = 0.1\ncheck_timeout = 2\nconnect_timeout = 2\n";

/// Each write records the port of the server that ran it.
const TABLE: &str = "CREATE TABLE writes (port INTEGER NOT NULL DEFAULT inet_server_port()); \
                     GRANT ALL ON writes TO app";
const WRITE: &str = "INSERT INTO writes DEFAULT VALUES RETURNING port";

#[post("/")]
async fn write_over_http(db: ReplicatedDb) -> Result<(), Error> {
    sqlx::query(WRITE).execute(&db).await?;
    Ok(())
}

fn start() -> Servers<Postgres> {
    let cluster = Servers::start(Postgres, 2);
    cluster.master.sql(TABLE);
    cluster.wait_caught_up();
    cluster
}

/// The servers' names say what becomes of them and which test they belong to.
async fn launch(cluster: &Servers<Postgres>, test: &str) -> (Client, Nodes) {
    let server = |name: &str, server: &Server<Postgres>| {
        format!("url = \"{}\", name = \"{name}-{test}\"", server.url())
    };
    let section = format!(
        "url = \"{}\"\nslaves = [{{ {} }}, {{ {} }}]\n{KEYS}",
        cluster.master.url(),
        server("promoted", &cluster.slaves[0]),
        server("left", &cluster.slaves[1]),
    );
    let rocket = rocket_over(&section).attach(Replicated::fairing()).mount("/", routes![write_over_http]);
    let client = Client::untracked(rocket).await.unwrap();
    let nodes = Replicated::fetch(client.rocket()).unwrap().clone();
    (client, nodes)
}

/// The name of the master, to which the section gives none.
fn configured(cluster: &Servers<Postgres>) -> String {
    format!("127.0.0.1-{}", cluster.master.port())
}

fn status_of(nodes: &Nodes, name: &str) -> NodeStatus {
    let mut status = nodes.status();
    status.retain(|node| node.name == name);
    assert_eq!(status.len(), 1, "{name}: {:?}", nodes.status());
    status.remove(0)
}

/// Waits until both slaves have been seen as such. Other servers are not followed.
async fn both_slaves_are_seen(nodes: &Nodes) {
    eventually("a look at both slaves", async || {
        nodes.status().iter().filter(|node| node.lag.is_some()).count() == 2
    })
    .await;
    eventually("writes", async || write(&nodes.write()).await.is_ok()).await;
}

/// The port of the server that took a write.
async fn write(db: &ReplicatedDb) -> Result<u16, sqlx::Error> {
    let port: i32 = sqlx::query_scalar(WRITE).fetch_one(db).await?;
    Ok(port as u16)
}

/// As [`write`], in a transaction.
async fn transact(db: &ReplicatedDb) -> Result<u16, sqlx::Error> {
    let mut transaction = db.begin().await?;
    let port: i32 = sqlx::query_scalar(WRITE).fetch_one(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(port as u16)
}

/// As [`write`], on a connection that is held.
async fn write_alone(db: &ReplicatedDb) -> Result<u16, sqlx::Error> {
    let mut connection = db.get().await?;
    let port: i32 = sqlx::query_scalar(WRITE).fetch_one(&mut *connection).await?;
    Ok(port as u16)
}

/// The number of writes on a server that ran there.
fn written_at(server: &Server<Postgres>) -> usize {
    let count = format!("SELECT count(*) FROM writes WHERE port = {}", server.port());
    server.sql(&count).parse().unwrap()
}

/// The master dies, the first slave takes its place, and the old master comes back and takes writes.
async fn promote_and_return(cluster: &Servers<Postgres>, nodes: &Nodes, test: &str) {
    cluster.master.kill();
    cluster.slaves[0].sql("SELECT pg_promote()");
    let promoted = format!("promoted-{test}");
    eventually("writes", async || write(&nodes.write()).await.is_ok()).await;
    eventually("its office", async || status_of(nodes, &promoted).role == Role::Master).await;
    cluster.master.start();
    assert_eq!(cluster.master.sql("SELECT pg_is_in_recovery()"), "f");
}

#[support::async_test]
async fn a_handle_from_before_a_promotion_writes_to_the_promoted_server() {
    let cluster = start();
    let (_client, nodes) = launch(&cluster, "handle").await;
    let promoted = cluster.slaves[0].port();
    // One handle has a connection for its next query, one has done with its transactions, and one was never used.
    let handles = [nodes.write(), nodes.write(), nodes.write()];
    both_slaves_are_seen(&nodes).await;
    for _ in 0..3 {
        assert_eq!(write(&handles[0]).await.unwrap(), cluster.master.port());
        assert_eq!(transact(&handles[1]).await.unwrap(), cluster.master.port());
    }
    let before = written_at(&cluster.master);
    promote_and_return(&cluster, &nodes, "handle").await;

    for _ in 0..20 {
        for db in &handles {
            assert_eq!(write(db).await.unwrap(), promoted);
            assert_eq!(transact(db).await.unwrap(), promoted);
            assert_eq!(write_alone(db).await.unwrap(), promoted);
        }
    }
    assert_eq!(written_at(&cluster.master), before);
}

/// The pools are sqlx's own, which know nothing of terms.
#[support::async_test]
async fn a_pool_from_before_a_promotion_is_closed_and_not_returned_again() {
    let cluster = start();
    let (_client, nodes) = launch(&cluster, "pool").await;
    both_slaves_are_seen(&nodes).await;
    let ask = async |pool: &sqlx::PgPool| sqlx::query_scalar::<_, i32>(WRITE).fetch_one(pool).await;
    let master = nodes.pool(Role::Master);
    assert_eq!(ask(&master).await.unwrap(), i32::from(cluster.master.port()));
    let slave = nodes.slave_pool("promoted-pool").unwrap();
    sqlx::query("SELECT 1").execute(&slave).await.unwrap();
    let before = written_at(&cluster.master);
    promote_and_return(&cluster, &nodes, "pool").await;

    let error = ask(&master).await.unwrap_err();
    assert!(matches!(error, sqlx::Error::PoolClosed), "{error}");
    for _ in 0..20 {
        let written = ask(&nodes.pool(Role::Master)).await.unwrap();
        assert_eq!(written, i32::from(cluster.slaves[0].port()));
    }
    assert_eq!(written_at(&cluster.master), before);
    // The pool of a slave that was promoted still reads.
    sqlx::query("SELECT 1").execute(&slave).await.unwrap();
    let error = ask(&slave).await.unwrap_err();
    assert_eq!(error.as_database_error().unwrap().code().as_deref(), Some("25006"));
}

#[support::async_test]
async fn a_handle_with_an_open_stream_writes_to_the_promoted_server() {
    let cluster = start();
    let (_client, nodes) = launch(&cluster, "stream").await;
    both_slaves_are_seen(&nodes).await;
    let db = nodes.write();
    let mut rows = sqlx::query("SELECT g FROM generate_series(1, 1000000) g").fetch(&db);
    assert!(rows.try_next().await.unwrap().is_some());
    let before = written_at(&cluster.master);
    promote_and_return(&cluster, &nodes, "stream").await;

    for _ in 0..20 {
        assert_eq!(write(&db).await.unwrap(), cluster.slaves[0].port());
    }
    // The rest of the stream ends, and does not begin again elsewhere.
    while let Ok(Some(_)) = rows.try_next().await {}
    drop(rows);
    assert_eq!(write(&db).await.unwrap(), cluster.slaves[0].port());
    assert_eq!(written_at(&cluster.master), before);
}

#[support::async_test]
async fn after_a_promotion_the_status_and_the_log_have_the_new_roles() {
    let cluster = start();
    let (_client, nodes) = launch(&cluster, "shown").await;
    let old = configured(&cluster);
    let names = || {
        let mut names: Vec<_> = nodes.status().into_iter().map(|node| node.name).collect();
        names.sort();
        names
    };
    let all = names();
    assert_eq!(all, [&*old, "left-shown", "promoted-shown"]);
    assert_eq!(status_of(&nodes, &old).role, Role::Master);
    both_slaves_are_seen(&nodes).await;

    promote_and_return(&cluster, &nodes, "shown").await;
    eventually("word of the old master", async || {
        let old = status_of(&nodes, &old);
        (old.role, old.state) == (Role::Slave, NodeState::SecondMaster)
    })
    .await;
    assert_eq!(names(), all);
    assert_eq!(nodes.status()[0].name, "promoted-shown", "the master first");
    let promoted = status_of(&nodes, "promoted-shown");
    assert_eq!((promoted.role, promoted.state), (Role::Master, NodeState::Up));
    assert_eq!(status_of(&nodes, "left-shown").role, Role::Slave);

    let slave = logbook::lines(&["slave `promoted-shown`"]).len();
    cluster.slaves[0].kill();
    eventually("word of its end", async || {
        !logbook::lines(&["WARN", "master `promoted-shown` of database `replicated` cannot be used"])
            .is_empty()
    })
    .await;
    cluster.slaves[0].start();
    eventually("word of its return", async || {
        !logbook::lines(&["WARN", "master `promoted-shown` of database `replicated` is back"]).is_empty()
    })
    .await;
    assert_eq!(logbook::lines(&["slave `promoted-shown`"]).len(), slave);
}

/// Launches over two masters of one system. Checks that neither is written to, in any way, and that the log says so.
async fn start_with_two_masters(test: &str) -> (Servers<Postgres>, Client, Nodes) {
    let cluster = start();
    cluster.slaves[0].sql("SELECT pg_promote()");
    eventually("a second master", async || cluster.slaves[0].sql("SELECT pg_is_in_recovery()") == "f").await;
    let (client, nodes) = launch(&cluster, test).await;
    let (old, promoted) = (configured(&cluster), format!("promoted-{test}"));
    let words = ["ERROR", &old, &promoted, "timeline"];
    let begun = Instant::now();
    eventually("word of it", async || {
        assert!(write(&nodes.write()).await.is_err());
        // Long enough for many probes of both.
        !logbook::lines(&words).is_empty() && begun.elapsed() > Duration::from_secs(2)
    })
    .await;
    for _ in 0..20 {
        assert!(write(&nodes.write()).await.is_err());
        assert!(transact(&nodes.write()).await.is_err());
        let response = client.post("/").dispatch().await;
        assert_eq!(response.status(), Status::ServiceUnavailable);
        assert!(response.headers().contains("Retry-After"));
    }
    let foreign = sqlx::query(WRITE).execute(&nodes.pool(Role::Master)).await;
    assert!(matches!(foreign, Err(sqlx::Error::PoolTimedOut)), "{foreign:?}");
    assert_eq!((written_at(&cluster.master), written_at(&cluster.slaves[0])), (0, 0));
    let lines = logbook::lines(&words);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].to_lowercase().contains("stop"), "what to do: {}", lines[0]);
    (cluster, client, nodes)
}

#[support::async_test]
async fn of_two_masters_at_launch_the_promoted_one_is_written_to_once_the_other_has_stopped() {
    let (cluster, _client, nodes) = start_with_two_masters("wins").await;
    cluster.master.stop();
    eventually("writes", async || write(&nodes.write()).await.is_ok()).await;
    assert_eq!(write(&nodes.write()).await.unwrap(), cluster.slaves[0].port());
}

#[support::async_test]
async fn of_two_masters_at_launch_the_configured_one_is_written_to_once_the_other_has_stopped() {
    let (cluster, _client, nodes) = start_with_two_masters("loses").await;
    cluster.slaves[0].stop();
    eventually("writes", async || write(&nodes.write()).await.is_ok()).await;
    assert_eq!(write(&nodes.write()).await.unwrap(), cluster.master.port());
}

/// The old master was frozen, not killed. When it thaws, held connections to it are alive, and it would take their
/// writes.
#[support::async_test]
async fn held_connections_do_not_write_to_an_old_master_that_thaws() {
    let cluster = start();
    let (_client, nodes) = launch(&cluster, "thawed").await;
    both_slaves_are_seen(&nodes).await;
    let (one, other) = (nodes.write(), nodes.write());
    let mut connection = one.get().await.unwrap();
    let mut transaction = other.begin().await.unwrap();
    for _ in 0..2 {
        sqlx::query(WRITE).execute(&mut *connection).await.unwrap();
    }
    sqlx::query(WRITE).execute(&mut *transaction).await.unwrap();
    let before = written_at(&cluster.master);

    cluster.master.freeze();
    cluster.slaves[0].sql("SELECT pg_promote()");
    eventually("writes", async || write(&nodes.write()).await.is_ok()).await;
    cluster.master.thaw();
    for _ in 0..5 {
        assert!(sqlx::query(WRITE).execute(&mut *connection).await.is_err());
    }
    assert!(transaction.commit().await.is_err());
    assert_eq!(written_at(&cluster.master), before);
}
