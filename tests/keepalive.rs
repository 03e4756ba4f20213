//! The kernel watches connections on which handlers wait without this crate.

crate::on_servers! {
    use std::collections::BTreeSet;

    use rocket::local::asynchronous::Client;
    use rocket_replicated::Role;
    use support::rocket_over;

    /// The sockets of this process.
    fn own_sockets() -> BTreeSet<String> {
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let socket = |link: std::path::PathBuf| {
            Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        };
        descriptors.filter_map(|entry| std::fs::read_link(entry.path()).ok()).filter_map(socket).collect()
    }

    /// The kernel's timer of each connection to this port: <https://docs.kernel.org/networking/proc_net_tcp.html>
    fn timers(port: u16) -> Vec<u8> {
        let ours = own_sockets();
        let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        let timer = |line: &str| {
            let columns: Vec<_> = line.split_whitespace().collect();
            let (_, to) = columns[2].split_once(':')?;
            let is_ours = u16::from_str_radix(to, 16).ok()? == port && ours.contains(columns[9]);
            is_ours.then(|| columns[5].split_once(':').unwrap().0.parse().unwrap())
        };
        table.lines().skip(1).filter_map(timer).collect()
    }

    #[support::async_test]
    async fn each_connection_has_a_kernel_timer() {
        const NONE: u8 = 0;

        let lab = Lab::new();
        // No other test uses this port.
        let wire = rocket_replicated_testing::Wire::to(lab.servers().master.port());
        let section = format!("url = \"{}\"\n", wire.url(lab.master_url()));
        let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap();
        let _held = cluster.write().get().await.unwrap();
        let _foreign = cluster.pool(Role::Master).acquire().await.unwrap();
        let timers = timers(wire.port());
        assert!(timers.len() >= 3, "of the monitor, of a handler, and of sqlx's own pool: {timers:?}");
        assert!(!timers.contains(&NONE), "{timers:?}");
    }
}
