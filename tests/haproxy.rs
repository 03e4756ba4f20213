//! Behind a real HAProxy: one address for two standbys, one for the master.

use rocket::futures::future::join_all;
use rocket::http::Status;
use rocket::local::asynchronous::Client;
use rocket::routes;
use rocket_replicated::postgres::Replicated;

use support::haproxy::HaProxy;
use support::proxied::{self, Site};
use support::rocket_over;

#[support::async_test]
async fn reads_writes_and_pins_work_behind_haproxy() {
    let servers = proxied::servers(2);
    let master = HaProxy::start(&[&servers.master]);
    let readers = HaProxy::start(&[&servers.slaves[0], &servers.slaves[1]]);
    let mut by_time = Site::launch(&master.url(), &readers.url(), "window", "").await;
    by_time.misses_no_own_write(30).await;
    let mut site = Site::launch(&master.url(), &readers.url(), "position", "").await;
    site.reads_its_own_writes(30).await;
    site.refuses_writes_on_reads().await;
    // Each slave is paused in turn, because probes may look at either.
    for slave in &servers.slaves {
        slave.pause_replay();
        site.misses_no_own_write(30).await;
        slave.resume_replay();
    }
    servers.wait_caught_up();
    site.survives_faults(&servers).await;
}

#[support::async_test]
async fn a_balancer_without_a_server_is_an_outage() {
    let servers = proxied::servers(0);
    let proxy = HaProxy::start(&[&servers.master]);
    // The monitor does not probe in time, so each write meets the outage itself.
    let section = format!("url = \"{}\"\nmax_connections = 8\ncheck_interval = 60", proxy.url());
    let rocket = rocket_over(&section).attach(Replicated::fairing()).mount("/", routes![proxied::write]);
    let client = Client::untracked(rocket).await.unwrap();
    assert_eq!(client.post("/").dispatch().await.status(), Status::Ok);
    servers.master.stop();
    for _ in 0..3 {
        let writes = join_all((0..8).map(|_| client.post("/").dispatch())).await;
        let statuses: Vec<_> = writes.iter().map(|write| write.status()).collect();
        assert_eq!(statuses, [Status::ServiceUnavailable; 8]);
    }
}
