//! Behind a real pgpool, which sends writes to the master and balances reads among all servers.

use rocket::http::Status;
use rocket::local::asynchronous::Client;
use rocket::routes;
use rocket_replicated::NodeState;
use rocket_replicated::postgres::Replicated;

use support::pgpool::PgPool;
use support::proxied::{self, Site};
use support::{eventually, logbook, rocket_over};

fn complaints() -> usize {
    logbook::lines(&["ERROR", "leads to a proxy that splits", "load_balance_mode = off"]).len()
}

#[support::async_test]
async fn a_proxy_that_sends_reads_to_slaves_is_refused_with_the_remedy() {
    let servers = proxied::servers(1);
    let proxy = PgPool::start(&servers, "");
    let section = format!(
        "url = \"{}\"\nslaves = [\"{}\"]\nconnect_timeout = 2\nconsistency = \"position\"",
        proxy.url(),
        servers.slaves[0].url(),
    );
    let rocket = rocket_over(&section).attach(Replicated::fairing()).mount("/", routes![proxied::write]);
    let client = Client::untracked(rocket).await.unwrap();
    servers.slaves[0].pause_replay();
    let status = client.post("/").dispatch().await.status();
    assert_eq!(status, Status::ServiceUnavailable);
    assert_eq!(servers.master.sql("SELECT count(*) FROM written"), "1");
    eventually("the remedy", async || complaints() == 1).await;
    let cluster = Replicated::fetch(client.rocket()).unwrap();
    eventually("its state", async || cluster.status()[0].state == NodeState::Down).await;
    let seen =
        logbook::lines(&["`replicated`", "master", "sends reads to slaves, and only writes to the master"]);
    assert_eq!(seen.len(), 1, "{seen:#?}");
}

#[support::async_test]
async fn a_proxy_that_sends_everything_to_the_master_is_used() {
    let servers = proxied::servers(1);
    let by_setting = PgPool::start(&servers, "load_balance_mode = off");
    let by_name = PgPool::start(&servers, "app_name_redirect_preference_list = 'app:primary'");
    for url in [by_setting.url(), format!("{}?application_name=app", by_name.url())] {
        let mut site = Site::launch(&url, &servers.slaves[0].url(), "position", "").await;
        site.reads_its_own_writes(10).await;
        servers.slaves[0].pause_replay();
        site.misses_no_own_write(10).await;
        servers.slaves[0].resume_replay();
        servers.wait_caught_up();
    }
    assert_eq!(complaints(), 0);
}
