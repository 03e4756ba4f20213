//! A node of a Galera cluster, which refuses all statements while it is cut off from the others.

use std::net::TcpListener;

use rocket::http::Status;
use rocket::local::asynchronous::Client;
use rocket::{get, post, routes, tokio};
use rocket_replicated::mysql::{Replicated, ReplicatedDb};
use rocket_replicated::{Error, NodeState};
use rocket_replicated_testing::Servers;
use rocket_replicated_testing::mysql::MySql;
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection};

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

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A cluster of one.
fn node() -> Servers<MySql> {
    let servers = Servers::start(MySql::mariadb(), 0);
    servers.master.sql("CREATE TABLE written (id INTEGER PRIMARY KEY AUTO_INCREMENT)");
    let (own, transfers) = (free_port(), free_port());
    servers.master.restart_with(&format!(
        "binlog_format = ROW\ninnodb_autoinc_lock_mode = 2\nwsrep_on = ON\nwsrep_provider = {LIBRARY}\n\
         wsrep_cluster_name = lab\nwsrep_cluster_address = gcomm://\nwsrep_node_address = 127.0.0.1\n\
         wsrep_sst_method = skip\n\
         wsrep_provider_options = \"base_port={own};gmcast.listen_addr=tcp://127.0.0.1:{own};\
         ist.recv_addr=127.0.0.1:{transfers};pc.wait_prim=FALSE\""
    ));
    servers
}

#[support::async_test]
async fn a_node_that_is_cut_off_is_an_outage() {
    let servers = tokio::task::spawn_blocking(node).await.unwrap();
    let mut admin = MySqlConnection::connect(&servers.master.admin_url()).await.unwrap();
    let mut looks_for = async |others: &str| {
        let address = AssertSqlSafe(format!("SET GLOBAL wsrep_cluster_address = 'gcomm://{others}'"));
        sqlx::raw_sql(address).execute(&mut admin).await.unwrap();
    };
    let section = format!("url = \"{}\"\nconnect_timeout = 2", servers.master.url());
    let rocket = rocket_over(&section).attach(Replicated::fairing()).mount("/", routes![read, write]);
    let client = Client::untracked(rocket).await.unwrap();
    assert_eq!(client.post("/").dispatch().await.status(), Status::Ok);

    looks_for(&format!("127.0.0.1:{}", free_port())).await;
    for request in [client.get("/"), client.post("/")] {
        assert_eq!(request.dispatch().await.status(), Status::ServiceUnavailable);
    }
    let cluster = Replicated::fetch(client.rocket()).unwrap();
    eventually("its state", async || cluster.status()[0].state == NodeState::Down).await;
    assert_eq!(
        logbook::lines(&["master", "cut off from its Galera cluster", "`wsrep_ready` is OFF"]).len(),
        1
    );

    looks_for("").await;
    eventually("writes", async || client.post("/").dispatch().await.status() == Status::Ok).await;
    assert_eq!(client.get("/").dispatch().await.into_string().await.unwrap(), "2");
}
