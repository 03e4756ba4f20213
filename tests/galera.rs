//! Nodes of a Galera cluster: all of them take writes, and any of them may be cut off from the others.

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::thread;

use rocket::http::Status;
use rocket::local::asynchronous::Client;
use rocket::{get, post, routes, tokio};
use rocket_replicated::mysql::{Replicated, ReplicatedDb};
use rocket_replicated::{Error, NodeState, Reason};
use rocket_replicated_testing::Servers;
use rocket_replicated_testing::mysql::MySql;

use support::{eventually, logbook, rocket_over};

/// Whose package has no program.
const LIBRARY: &str = "/usr/lib/galera/libgalera_smm.so";

#[get("/")]
async fn read(db: ReplicatedDb) -> Result<String, Error> {
    let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM written").fetch_one(&db).await?;
    Ok(count.to_string())
}

#[post("/")]
async fn write(db: ReplicatedDb) -> Result<(), Error> {
    sqlx::query("INSERT INTO written VALUES ()").execute(&db).await?;
    Ok(())
}

/// The number of rows, and why the server was chosen.
#[get("/why")]
async fn read_and_tell(db: ReplicatedDb) -> Result<String, Error> {
    let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM written").fetch_one(&db).await?;
    Ok(format!("{count} {:?}", db.choice().unwrap().reason()))
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Makes the server the first node of a cluster, or the next one of the cluster that `node` is in. Returns its address
/// in the cluster.
fn join(servers: &Servers<MySql>, cluster: Option<(&Servers<MySql>, &str)>) -> String {
    let (own, transfers) = (free_port(), free_port());
    let mut address = "";
    if let Some((node, its_address)) = cluster {
        address = its_address;
        let status = |name: &str| {
            let shown = node.master.sql(&format!("SHOW GLOBAL STATUS LIKE '{name}'"));
            shown.split_whitespace().last().unwrap().to_owned()
        };
        let [uuid, seqno] = ["wsrep_cluster_state_uuid", "wsrep_last_committed"].map(status);
        // Both have the same data. Without this, the node would wait for a copy, which takes programs of another package.
        let state = format!("version: 2.1\nuuid: {uuid}\nseqno: {seqno}\nsafe_to_bootstrap: 0\n");
        let file = servers.master.data().join("grastate.dat");
        fs::write(&file, state).unwrap();
        // The server runs as another user than root.
        fs::set_permissions(file, Permissions::from_mode(0o666)).unwrap();
    }
    servers.master.restart_with(&format!(
        "binlog_format = ROW\ninnodb_autoinc_lock_mode = 2\nwsrep_on = ON\nwsrep_provider = {LIBRARY}\n\
         wsrep_cluster_name = lab\nwsrep_cluster_address = gcomm://{address}\nwsrep_node_address = 127.0.0.1\n\
         wsrep_sst_method = skip\n\
         wsrep_provider_options = \"base_port={own};gmcast.listen_addr=tcp://127.0.0.1:{own};\
         ist.recv_addr=127.0.0.1:{transfers};pc.wait_prim=FALSE\""
    ));
    format!("127.0.0.1:{own}")
}

const TABLE: &str = "CREATE TABLE written (id INTEGER PRIMARY KEY AUTO_INCREMENT)";

/// A cluster of one.
fn node() -> Servers<MySql> {
    let servers = Servers::start(MySql::mariadb(), 0);
    servers.master.sql(TABLE);
    join(&servers, None);
    servers
}

/// A cluster of three, each of which begins with the same data.
fn nodes() -> Vec<Servers<MySql>> {
    let nodes: Vec<_> = thread::scope(|scope| {
        let starts = [(); 3].map(|()| scope.spawn(|| Servers::start(MySql::mariadb(), 0)));
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    let first = join(&nodes[0], None);
    for node in &nodes[1..] {
        join(node, Some((&nodes[0], &first)));
    }
    nodes[0].master.sql(TABLE);
    nodes
}

/// The section of an application that writes to the first node and reads from the others.
fn section(nodes: &[Servers<MySql>], keys: &str) -> String {
    let slave = |node: &Servers<MySql>| format!("\"{}\"", node.master.url());
    let slaves: Vec<_> = nodes[1..].iter().map(slave).collect();
    format!("url = \"{}\"\nslaves = [{}]\n{keys}\n", nodes[0].master.url(), slaves.join(", "))
}

async fn launch(section: &str) -> Client {
    let rocket = rocket_over(section).attach(Replicated::fairing());
    Client::untracked(rocket.mount("/", routes![read, read_and_tell, write])).await.unwrap()
}

fn states(client: &Client) -> Vec<NodeState> {
    let cluster = Replicated::fetch(client.rocket()).unwrap();
    cluster.status().iter().map(|node| node.state).collect()
}

#[support::async_test]
async fn clients_read_their_own_writes_from_other_nodes() {
    let nodes = tokio::task::spawn_blocking(nodes).await.unwrap();
    let keys = "consistency = \"position\"\nmax_lag = 10\nunknown_lag = \"leave_out\"\ncheck_interval = 0.1";
    let client = launch(&section(&nodes, keys)).await;
    eventually("all nodes", async || states(&client) == [NodeState::Up; 3]).await;

    let mut by_slaves = 0;
    for count in 1..=200 {
        let response = client.post("/").dispatch().await;
        assert_eq!(response.status(), Status::Ok);
        let pin = response.cookies().get("replicated_pin").unwrap().clone();
        let seen = client.get("/why").cookie(pin).dispatch().await.into_string().await.unwrap();
        match seen.split_once(' ') {
            Some((rows, reason)) => {
                assert_eq!(rows, count.to_string(), "a client misses its own write ({reason})");
                by_slaves += usize::from(reason == format!("{:?}", Reason::CaughtUp));
            }
            None => panic!("{seen}"),
        }
    }
    assert!(by_slaves > 100, "only {by_slaves} of 200 from another node");
    let seen = client.get("/why").dispatch().await.into_string().await.unwrap();
    assert!(seen.ends_with(&format!(" {:?}", Reason::ReadMethod)), "{seen}");
    assert_eq!(logbook::lines(&["WARN", "lag"]), [""; 0]);
    assert_eq!(logbook::lines(&["second master"]), [""; 0]);
}

/// The others do not wait until it has applied their writes, so that it may be behind without limit.
#[support::async_test]
async fn a_node_that_is_desynchronised_is_left_out() {
    let nodes = tokio::task::spawn_blocking(nodes).await.unwrap();
    let client = launch(&section(&nodes, "check_interval = 0.1")).await;
    eventually("all nodes", async || states(&client) == [NodeState::Up; 3]).await;

    nodes[1].master.sql("SET GLOBAL wsrep_desync = ON");
    eventually("its state", async || states(&client) == [NodeState::Up, NodeState::Down, NodeState::Up])
        .await;
    assert_eq!(logbook::lines(&["WARN", "slave", "donor or desynchronised"]).len(), 1);
    for _ in 0..20 {
        assert_eq!(client.get("/").dispatch().await.status(), Status::Ok);
    }
    nodes[1].master.sql("SET GLOBAL wsrep_desync = OFF");
    eventually("its return", async || states(&client) == [NodeState::Up; 3]).await;
    // The node that is written to serves on.
    nodes[0].master.sql("SET GLOBAL wsrep_desync = ON");
    for _ in 0..10 {
        assert_eq!(client.post("/").dispatch().await.status(), Status::Ok);
    }
}

/// Its numbers mean other transactions.
#[support::async_test]
async fn a_node_of_another_cluster_is_a_stranger() {
    let nodes = tokio::task::spawn_blocking(|| [(); 2].map(|()| node())).await.unwrap();
    nodes[1].master.sql(&"INSERT INTO written VALUES (); ".repeat(20));
    let client = launch(&section(&nodes, "check_interval = 0.1")).await;
    eventually("its state", async || states(&client) == [NodeState::Up, NodeState::Stranger]).await;
    for _ in 0..20 {
        assert_eq!(client.get("/").dispatch().await.into_string().await.unwrap(), "0");
    }
}

/// Such a slave tells a place in the node's own log.
#[support::async_test]
async fn a_slave_of_a_node_that_is_no_node_is_compared_by_the_nodes_log() {
    let servers = tokio::task::spawn_blocking(|| {
        let servers = Servers::start(MySql::mariadb(), 1);
        servers.master.sql(TABLE);
        join(&servers, None);
        servers.wait_caught_up();
        servers
    });
    let servers = servers.await.unwrap();
    let keys = "consistency = \"position\"\nunknown_lag = \"leave_out\"\ncheck_interval = 0.1";
    let section =
        format!("url = \"{}\"\nslaves = [\"{}\"]\n{keys}", servers.master.url(), servers.slaves[0].url());
    let client = launch(&section).await;
    eventually("the slave", async || states(&client) == [NodeState::Up; 2]).await;
    let caught_up = async || {
        let response = client.post("/").dispatch().await;
        let pin = response.cookies().get("replicated_pin").unwrap().clone();
        servers.wait_caught_up();
        let seen = client.get("/why").cookie(pin).dispatch().await.into_string().await.unwrap();
        seen.ends_with(&format!("{:?}", Reason::CaughtUp))
    };
    eventually("a read of what was written, from the slave", caught_up).await;
}

#[support::async_test]
async fn a_node_that_is_cut_off_is_an_outage() {
    let nodes = tokio::task::spawn_blocking(nodes).await.unwrap();
    let set = |option| nodes[0].master.sql(&format!("SET GLOBAL wsrep_provider_options = '{option}'"));
    let client = launch(&section(&nodes[..1], "connect_timeout = 2")).await;
    assert_eq!(client.post("/").dispatch().await.status(), Status::Ok);

    set("gmcast.isolate=1");
    let cluster = Replicated::fetch(client.rocket()).unwrap();
    eventually("its state", async || cluster.status()[0].state == NodeState::Down).await;
    for request in [client.get("/"), client.post("/")] {
        assert_eq!(request.dispatch().await.status(), Status::ServiceUnavailable);
    }
    assert_eq!(
        logbook::lines(&["master", "cut off from its Galera cluster", "`wsrep_ready` is OFF"]).len(),
        1
    );

    // What an operator does where the other nodes are lost.
    set("pc.bootstrap=YES");
    eventually("writes", async || client.post("/").dispatch().await.status() == Status::Ok).await;
    assert_eq!(client.get("/").dispatch().await.into_string().await.unwrap(), "2");
}
