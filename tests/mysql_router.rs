//! Behind a real MySQL Router: one address for the source, one for two replicas.

use rocket::http::{Cookie, Status};
use rocket::local::asynchronous::Client;
use rocket::{get, post, routes};
use rocket_replicated::mysql::{Replicated, ReplicatedDb};
use rocket_replicated::{Error, NodeState};
use rocket_replicated_testing::Servers;
use rocket_replicated_testing::mysql::MySql;

use support::mysql_router::MySqlRouter;
use support::{eventually, logbook, rocket_over};

#[get("/")]
async fn read(db: ReplicatedDb) -> Result<String, Error> {
    let count: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM written WHERE ?").bind(true).fetch_one(&db).await?;
    Ok(format!("{count} {}", db.choice().unwrap().node()))
}

#[get("/writes")]
async fn write_on_a_read(db: ReplicatedDb) -> Result<(), Error> {
    sqlx::query("INSERT INTO written VALUES ()").execute(&db).await?;
    Ok(())
}

#[post("/")]
async fn write(db: ReplicatedDb) -> Result<(), Error> {
    sqlx::query("INSERT INTO written VALUES ()").execute(&db).await?;
    Ok(())
}

fn start() -> Servers<MySql> {
    let servers = Servers::start(MySql::oracle(), 2);
    servers.master.sql("CREATE TABLE written (id INTEGER PRIMARY KEY AUTO_INCREMENT)");
    servers.wait_caught_up();
    servers
}

async fn launch(url: &MySqlRouter, slaves: &MySqlRouter) -> Client {
    let section = format!(
        "url = \"{}\"\nname = \"source\"\nslaves = [{{ url = \"{}\", name = \"replicas\" }}]\n\
         consistency = \"position\"\ncheck_interval = 0.1",
        url.url(),
        slaves.url(),
    );
    let rocket = rocket_over(&section).attach(Replicated::fairing());
    let client = Client::untracked(rocket.mount("/", routes![read, write, write_on_a_read])).await.unwrap();
    eventually("both addresses", async || states(&client) == [NodeState::Up; 2]).await;
    client
}

fn states(client: &Client) -> Vec<NodeState> {
    let cluster = Replicated::fetch(client.rocket()).unwrap();
    cluster.status().iter().map(|node| node.state).collect()
}

/// Writes, and returns the pin. `None` during an outage.
async fn writes(client: &Client) -> Option<Cookie<'static>> {
    let response = client.post("/").dispatch().await;
    match response.status() {
        Status::Ok => Some(response.cookies().get("replicated_pin").unwrap().clone()),
        Status::ServiceUnavailable | Status::GatewayTimeout => None,
        status => panic!("{status}"),
    }
}

/// The number of rows that a read sees, and the name of the server.
async fn reads(client: &Client, pin: Option<Cookie<'static>>) -> (i64, String) {
    let mut request = client.get("/");
    if let Some(pin) = pin {
        request = request.cookie(pin);
    }
    let response = request.dispatch().await;
    assert_eq!(response.status(), Status::Ok);
    let answer = response.into_string().await.unwrap();
    let (count, node) = answer.split_once(' ').unwrap();
    (count.parse().unwrap(), node.to_owned())
}

/// Checks that writers read what they have written, and others read from the replicas. Returns how many writers did so
/// from the replicas.
async fn reads_own_writes(client: &Client, servers: &Servers<MySql>) -> usize {
    let mut by_slave = 0;
    for _ in 0..50 {
        let pin = writes(client).await.unwrap();
        let written: i64 = servers.master.sql("SELECT COUNT(*) FROM written").parse().unwrap();
        let (seen, node) = reads(client, Some(pin)).await;
        assert_eq!(seen, written, "at {node}");
        by_slave += usize::from(node == "replicas");
        assert_eq!(reads(client, None).await.1, "replicas");
    }
    by_slave
}

#[support::async_test]
async fn reads_writes_and_pins_work_behind_router() {
    let servers = start();
    let replicas = [&servers.slaves[0], &servers.slaves[1]];
    let source = MySqlRouter::first_available(&[&servers.master, replicas[0]]);
    let readers = MySqlRouter::round_robin(&replicas);
    let client = launch(&source, &readers).await;
    assert!(reads_own_writes(&client, &servers).await > 0, "a replica that has it serves");
    // Each replica is paused in turn, because probes may look at either.
    for replica in replicas {
        replica.pause_replay();
        reads_own_writes(&client, &servers).await;
        replica.resume_replay();
    }
    assert_eq!(client.get("/writes").dispatch().await.status(), Status::InternalServerError);
}

/// Meanwhile its address leads to a replica, where connections would stay.
#[support::async_test]
async fn writes_return_once_the_source_is_back() {
    let servers = start();
    let replicas = [&servers.slaves[0], &servers.slaves[1]];
    let source = MySqlRouter::first_available(&[&servers.master, replicas[0]]);
    let readers = MySqlRouter::round_robin(&replicas);
    let client = launch(&source, &readers).await;
    writes(&client).await.unwrap();
    servers.master.kill();
    let leads_to_a_replica = async || {
        assert!(writes(&client).await.is_none());
        reads(&client, None).await;
        states(&client)[0] == NodeState::Standby
    };
    eventually("a replica at the address of the source", leads_to_a_replica).await;
    servers.master.start();
    let returns = async || {
        reads(&client, None).await;
        writes(&client).await.is_some()
    };
    eventually("a write", returns).await;
    reads_own_writes(&client, &servers).await;
}

/// Such a route refuses several statements in one message.
#[support::async_test]
async fn routes_that_share_connections_serve() {
    let servers = start();
    let replicas = [&servers.slaves[0], &servers.slaves[1]];
    let (source, readers) = (MySqlRouter::sharing(&[&servers.master]), MySqlRouter::sharing(&replicas));
    let client = launch(&source, &readers).await;
    reads_own_writes(&client, &servers).await;
    assert_eq!(client.get("/writes").dispatch().await.status(), Status::InternalServerError);
    assert_eq!(logbook::lines(&["Multi-Statements"]), [""; 0]);
}
