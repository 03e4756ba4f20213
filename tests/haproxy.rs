//! Behind a real HAProxy: one address for two standbys, one for the master.

use support::haproxy::HaProxy;
use support::proxied::{self, Site};

#[rocket::async_test]
async fn all_holds_behind_haproxy() {
    let servers = proxied::servers(2);
    let master = HaProxy::start(&[&servers.master]);
    let readers = HaProxy::start(&[&servers.slaves[0], &servers.slaves[1]]);
    let mut by_time = Site::launch(&master.url(), &readers.url(), "window", "").await;
    by_time.misses_no_own_write(30).await;
    let mut site = Site::launch(&master.url(), &readers.url(), "position", "").await;
    site.reads_its_own_writes(30).await;
    site.refuses_writes_on_reads().await;
    // Whichever it is that probes look at.
    for slave in &servers.slaves {
        slave.pause_replay();
        site.misses_no_own_write(30).await;
        slave.resume_replay();
    }
    servers.wait_caught_up();
    site.survives_faults(&servers).await;
}
