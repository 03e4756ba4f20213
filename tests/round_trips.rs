//! A query through this crate takes no more round trips than one through a bare pool.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rocket::local::asynchronous::Client;
use rocket::tokio::io::{AsyncReadExt, AsyncWriteExt};
use rocket::tokio::net::{TcpListener, TcpStream};
use rocket::tokio::{self, net};
use rocket_replicated::postgres::Replicated;
use sqlx::postgres::PgPoolOptions;

use rocket_replicated_testing::Wire;
use support::lab::postgres::Lab;
use support::{eventually, rocket_over};

/// Counts the times that a client waits for its server. Before it waits, a client sends a `Sync` or a `Query` message
/// (<https://www.postgresql.org/docs/current/protocol-flow.html>).
#[derive(Clone, Default)]
struct RoundTrips(Arc<AtomicUsize>);

impl RoundTrips {
    fn so_far(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }

    /// Relays connections to a server. Returns the port to connect to.
    async fn relay(&self, to: u16) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let counter = self.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                // Otherwise each side waits for the other's acknowledgements.
                client.set_nodelay(true).unwrap();
                server.set_nodelay(true).unwrap();
                let (from_client, mut to_client) = client.into_split();
                let (mut from_server, to_server) = server.into_split();
                tokio::spawn(counter.clone().forward(from_client, to_server));
                tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
            }
        });
        port
    }

    /// Forwards message by message. The first one has no type.
    async fn forward(
        self,
        mut from: net::tcp::OwnedReadHalf,
        mut to: net::tcp::OwnedWriteHalf,
    ) -> Option<()> {
        let mut kind = None;
        loop {
            let length = from.read_u32().await.ok()?;
            let mut body = vec![0; length as usize - 4];
            from.read_exact(&mut body).await.ok()?;
            if let Some(b'S' | b'Q') = kind {
                self.0.fetch_add(1, Ordering::AcqRel);
            }
            if let Some(kind) = kind {
                to.write_u8(kind).await.ok()?;
            }
            to.write_u32(length).await.ok()?;
            to.write_all(&body).await.ok()?;
            kind = Some(from.read_u8().await.ok()?);
        }
    }
}

#[support::async_test]
async fn no_more_round_trips_than_a_pool_that_does_not_ping_at_checkout() {
    const QUERIES: i32 = 50;

    let lab = Lab::new();
    let through = async |url: &str| {
        let trips = RoundTrips::default();
        let slave = &lab.servers().slaves[0];
        let port = trips.relay(slave.port()).await;
        // There is no TLS, because the relay reads what is sent.
        let url = url.replace(&slave.port().to_string(), &port.to_string());
        (format!("{url}?sslmode=disable"), trips)
    };
    let slave_url = &lab.slave_urls()[0];

    let (url, bare_trips) = through(slave_url).await;
    let bare = PgPoolOptions::new().max_connections(1).test_before_acquire(false).connect_lazy(&url).unwrap();
    let (url, our_trips) = through(slave_url).await;
    let section =
        format!("url = \"{}\"\nslaves = [{{ url = \"{url}\", max_connections = 1 }}]", lab.master_url());
    let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
    let cluster = Replicated::fetch(client.rocket()).unwrap();

    let query = |id| sqlx::query_scalar::<_, i32>("SELECT $1").bind(id);
    // With one connection, the next checkout waits for all that the one before still has to do.
    for pool_is_warm in [false, true] {
        let before = (bare_trips.so_far(), our_trips.so_far());
        for id in 0..QUERIES {
            assert_eq!(query(id).fetch_one(&bare).await.unwrap(), id);
            assert_eq!(query(id).fetch_one(&cluster.read(None)).await.unwrap(), id);
        }
        drop((bare.acquire().await, cluster.read(None).get().await));
        if pool_is_warm {
            let (bare, ours) = (bare_trips.so_far() - before.0, our_trips.so_far() - before.1);
            assert!((QUERIES as usize..=bare).contains(&ours), "{ours} and {bare}");
        }
    }
}

#[support::async_test]
async fn near_slaves_are_preferred_while_they_are_near() {
    let lab = Lab::new();
    let slaves = &lab.servers().slaves;
    let wires = [0, 1].map(|slave: usize| Wire::to(slaves[slave].port()));
    let urls = [0, 1].map(|slave: usize| wires[slave].url(&lab.slave_urls()[slave]));
    let entries =
        [0, 1].map(|slave: usize| format!("{{ url = \"{}\", name = \"slave-{slave}\" }}", urls[slave]));
    let section = format!(
        "url = \"{}\"\nslaves = [{}]\nlocal_threshold = 0.1\ncheck_interval = 0.1",
        lab.master_url(),
        entries.join(", ")
    );
    let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
    let cluster = Replicated::fetch(client.rocket()).unwrap();
    let nodes = async || {
        let mut nodes = Vec::new();
        for _ in 0..20 {
            let db = cluster.read(None);
            sqlx::query("SELECT 1").execute(&db).await.unwrap();
            nodes.push(db.choice().unwrap().node().to_owned());
        }
        nodes.sort();
        nodes.dedup();
        nodes
    };
    eventually("reads from both", async || nodes().await == ["slave-0", "slave-1"]).await;
    for (far, near) in [(0, "slave-1"), (1, "slave-0")] {
        wires[far].delay(Duration::from_secs_f64(0.3));
        eventually("reads from the near one", async || nodes().await == [near]).await;
        wires[far].pass();
        eventually("reads from both", async || nodes().await == ["slave-0", "slave-1"]).await;
    }
}
