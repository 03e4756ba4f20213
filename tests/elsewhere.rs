//! The master's address leads to a standby for a while, as a balancer's address does between a promotion and its next
//! checks.

use std::time::Duration;

use rocket::local::asynchronous::Client;
use rocket::tokio;
use rocket_replicated::postgres::{Database, Replicated};
use rocket_replicated::{Cluster, Error};
use rocket_replicated_testing::postgres::Postgres;
use rocket_replicated_testing::{Servers, Wire};
use support::{eventually, rocket_over};

/// The time for which the address leads to the standby. The monitor's connection still leads to the master.
const A_WHILE: Duration = Duration::from_millis(300);

/// A cluster over a standby that lacks the only note. Only the monitor's connection is open.
async fn launch(servers: &Servers<Postgres>, keys: &str) -> (Client, Cluster<Database>, Wire) {
    let (master, standby) = (&servers.master, &servers.slaves[0]);
    master.sql("CREATE TABLE notes (id INTEGER); GRANT ALL ON notes TO app");
    servers.wait_caught_up();
    standby.pause_replay();
    master.sql("INSERT INTO notes VALUES (1)");
    let wire = Wire::to(master.port());
    let section = format!("url = \"{}\"\ncheck_timeout = 2\n{keys}", wire.url(&master.url()));
    let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
    let cluster = Replicated::fetch(client.rocket()).unwrap().clone();
    wire.lead_to(standby.port());
    (client, cluster, wire)
}

async fn count(cluster: &Cluster<Database>) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT count(*) FROM notes").fetch_one(&cluster.read(None)).await
}

async fn write(cluster: &Cluster<Database>) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT INTO notes VALUES (2)").execute(&cluster.write()).await.map(drop)
}

#[support::async_test]
async fn reads_and_writes_wait_for_a_connection_to_the_master() {
    let servers = Servers::start(Postgres, 1);
    let (_client, cluster, wire) = launch(&servers, "connect_timeout = 20\n").await;
    let led_back = async {
        tokio::time::sleep(A_WHILE).await;
        wire.lead_to(servers.master.port());
    };
    let (read, written, ()) = tokio::join!(count(&cluster), write(&cluster), led_back);
    assert!(matches!(read, Ok(1 | 2)), "{read:?}");
    written.unwrap();
    eventually("the row", async || servers.master.sql("SELECT count(*) FROM notes") == "2").await;
}

#[support::async_test]
async fn a_request_without_a_connection_to_the_master_may_be_tried_again() {
    let servers = Servers::start(Postgres, 1);
    let (_client, cluster, _wire) = launch(&servers, "connect_timeout = 1\n").await;
    for error in [count(&cluster).await.unwrap_err(), write(&cluster).await.unwrap_err()] {
        let told = error.to_string();
        assert!(matches!(Error::from(error), Error::Unavailable(_)), "{told}");
    }
    assert_eq!(servers.master.sql("SELECT count(*) FROM notes"), "1");
}
