//! MySQL servers in a group of Group Replication. It chooses the one that takes writes, and commits nothing without a
//! majority of its members.

use std::net::TcpListener;
use std::sync::Arc;
use std::thread;

use rocket::futures::future::join_all;
use rocket::http::Status;
use rocket::local::asynchronous::Client;
use rocket::{get, post, routes, tokio};
use rocket_replicated::mysql::{Replicated, ReplicatedDb};
use rocket_replicated::{Error, NodeState, Role};
use rocket_replicated_testing::Servers;
use rocket_replicated_testing::mysql::MySql;

use support::{eventually, logbook, rocket_over};

/// Whether the row is there, and the name of the server.
#[get("/<id>")]
async fn read(id: u64, db: ReplicatedDb) -> Result<String, Error> {
    let count: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM written WHERE id = ?").bind(id).fetch_one(&db).await?;
    Ok(format!("{count} {}", db.choice().unwrap().node()))
}

/// The number of the row.
#[post("/")]
async fn write(db: ReplicatedDb) -> Result<String, Error> {
    let written = sqlx::query("INSERT INTO written VALUES ()").execute(&db).await?;
    Ok(written.last_insert_id().to_string())
}

type Node = Servers<MySql>;

/// A group of three. The first member takes writes.
struct Group(Vec<Node>);

impl Group {
    fn start() -> Self {
        let ports = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = ports.map(|listener| listener.local_addr().unwrap().port());
        let nodes: Vec<_> = thread::scope(|scope| {
            let starts = [0, 1, 2].map(|number| scope.spawn(move || Self::start_node(number, ports)));
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        nodes[0].master.sql("SET GLOBAL group_replication_bootstrap_group = ON");
        let group = Self(nodes);
        for number in 0..3 {
            group.join(number);
        }
        let first = &group.0[0].master;
        first.sql("SET GLOBAL group_replication_bootstrap_group = OFF");
        first.sql(
            "CREATE TABLE written (id INTEGER PRIMARY KEY AUTO_INCREMENT);
             GRANT SELECT ON performance_schema.replication_group_members TO app",
        );
        group
    }

    /// Each node begins with the same data. A group refuses members with transactions of their own, so that the log of
    /// those is emptied.
    fn start_node(number: usize, ports: [u16; 3]) -> Node {
        let node = Servers::start(MySql::oracle(), 0);
        node.master.reset_log();
        let seeds = ports.map(|port| format!("127.0.0.1:{port}")).join(",");
        node.master.restart_with(&format!(
            "performance_schema = ON\nplugin_load_add = group_replication.so\nreport_host = 127.0.0.1\n\
             group_replication_group_name = 3e11fa47-71ca-11e1-9e33-c80aa9429562\n\
             group_replication_local_address = 127.0.0.1:{}\ngroup_replication_group_seeds = {seeds}\n\
             group_replication_recovery_get_public_key = ON\ngroup_replication_member_expel_timeout = 0\n\
             group_replication_exit_state_action = READ_ONLY\n\
             group_replication_start_on_boot = OFF",
            ports[number],
        ));
        node.master.sql(
            "CHANGE REPLICATION SOURCE TO SOURCE_USER = 'replication', SOURCE_PASSWORD = 'secret' \
             FOR CHANNEL 'group_replication_recovery'",
        );
        node
    }

    fn join(&self, number: usize) {
        self.0[number].master.sql(&format!("SET GLOBAL server_id = {}; START GROUP_REPLICATION", number + 1));
    }

    /// The section of an application that writes to the first node and reads from the others.
    fn section(&self, keys: &str) -> String {
        let urls: Vec<_> = self.0.iter().map(|node| node.master.url()).collect();
        format!(
            "url = \"{}\"\nname = \"node-1\"\nslaves = [{{ url = \"{}\", name = \"node-2\" }}, \
             {{ url = \"{}\", name = \"node-3\" }}]\ncheck_interval = 0.1\n{keys}",
            urls[0], urls[1], urls[2],
        )
    }
}

async fn start(keys: &str) -> (Arc<Group>, Client) {
    let group = Arc::new(tokio::task::spawn_blocking(Group::start).await.unwrap());
    let rocket = rocket_over(&group.section(keys)).attach(Replicated::fairing());
    let client = Client::untracked(rocket.mount("/", routes![read, write])).await.unwrap();
    eventually("all nodes", async || states(&client) == [NodeState::Up; 3]).await;
    assert_eq!(posts(&client).await, Status::Ok);
    (group, client)
}

fn states(client: &Client) -> Vec<NodeState> {
    let cluster = Replicated::fetch(client.rocket()).unwrap();
    cluster.status().iter().map(|node| node.state).collect()
}

async fn posts(client: &Client) -> Status {
    client.post("/").dispatch().await.status()
}

#[support::async_test]
async fn a_member_without_a_majority_is_read_from_and_not_written_to() {
    let (group, client) = start("").await;
    let others = || group.0[1..].iter().map(|node| &node.master);
    others().for_each(|node| node.freeze());
    eventually("its state", async || states(&client)[0] == NodeState::Standby).await;
    for _ in 0..5 {
        assert_eq!(posts(&client).await, Status::ServiceUnavailable);
        let seen = client.get("/0").dispatch().await.into_string().await;
        assert_eq!(seen.as_deref(), Some("0 node-1"));
    }
    assert_eq!(logbook::lines(&["ERROR", "`node-1`", "takes no writes", "lost the majority"]).len(), 1);

    others().for_each(|node| node.thaw());
    eventually("a write", async || posts(&client).await == Status::Ok).await;
}

/// The group would never get its writes, and would not let it join again.
#[support::async_test]
async fn a_server_that_was_started_again_outside_of_its_group_is_not_written_to() {
    let (group, client) = start("").await;
    let node = &group.0[0].master;
    node.kill();
    node.start();
    assert_eq!(node.sql("SELECT @@read_only"), "0", "there is nothing to mistake");
    let is_refused = async || {
        assert_eq!(posts(&client).await, Status::ServiceUnavailable);
        states(&client)[0] == NodeState::Standby
    };
    eventually("its state", is_refused).await;
    assert_eq!(node.sql("SELECT COUNT(*) FROM written"), "1");
    assert_eq!(logbook::lines(&["ERROR", "`node-1`", "not an online member"]).len(), 1);
}

/// The server has rolled back what waited.
#[support::async_test]
async fn writes_that_a_member_gives_up_are_an_outage() {
    let (group, client) = start("").await;
    group.0[0].master.sql("SET GLOBAL group_replication_unreachable_majority_timeout = 2");
    group.0[1..].iter().for_each(|node| node.master.freeze());
    let statuses = join_all((0..3).map(|_| posts(&client))).await;
    assert_eq!(statuses, [Status::ServiceUnavailable; 3]);
    assert_eq!(group.0[0].master.sql("SELECT COUNT(*) FROM written"), "1");
}

#[support::async_test]
async fn writes_follow_the_member_that_the_group_chooses() {
    let (group, client) = start("consistency = \"position\"\nfollow_promotion = true").await;
    // False while there is no member to write to.
    let reads_its_own_write = async || {
        let response = client.post("/").dispatch().await;
        match response.status() {
            Status::Ok => {}
            Status::ServiceUnavailable | Status::GatewayTimeout => return false,
            status => panic!("{status}"),
        }
        let pin = response.cookies().get("replicated_pin").unwrap().clone();
        let id = response.into_string().await.unwrap();
        let seen = client.get(format!("/{id}")).cookie(pin).dispatch().await.into_string().await.unwrap();
        assert!(seen.starts_with("1 "), "{seen}");
        true
    };
    let master = || {
        let nodes = Replicated::fetch(client.rocket()).unwrap().status();
        nodes.into_iter().find(|node| node.role == Role::Master).unwrap().name
    };
    let all_serve = async || reads_its_own_write().await && states(&client) == [NodeState::Up; 3];

    let uuid = group.0[1].master.sql("SELECT @@server_uuid");
    let nodes = group.clone();
    let switched = tokio::task::spawn_blocking(move || {
        nodes.0[0].master.sql(&format!("SELECT group_replication_set_as_primary('{uuid}')"))
    });
    eventually("a write to the chosen one", async || reads_its_own_write().await && master() == "node-2")
        .await;
    switched.await.unwrap();
    eventually("all nodes", all_serve).await;
    assert_eq!(logbook::lines(&["`node-1`", "is gone"]), [""; 0]);

    group.0[1].master.kill();
    eventually("a write to the next one", async || reads_its_own_write().await && master() != "node-2").await;
    group.0[1].master.start();
    group.join(1);
    eventually("all nodes again", all_serve).await;
}
