//! What a query through this crate costs: no round trip and no allocation that could be saved.

#![cfg(feature = "postgres")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rocket::futures::FutureExt;
use rocket::local::asynchronous::Client;
use rocket::tokio::io::{AsyncReadExt, AsyncWriteExt};
use rocket::tokio::net::{TcpListener, TcpStream};
use rocket::tokio::{self, net};
use rocket_replicated::postgres::Replicated;
use sqlx::postgres::{PgConnection, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection};

use support::lab::postgres::Lab;
use support::rocket_over;

/// Counts the times that a client waits for its server: it ends what it sends with a `Sync` or a
/// `Query` message (<https://www.postgresql.org/docs/current/protocol-flow.html>).
#[derive(Clone, Default)]
struct RoundTrips(Arc<AtomicUsize>);

impl RoundTrips {
    fn so_far(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }

    /// Relays connections to a server; returns the port to connect to.
    async fn relay(&self, to: u16) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let counter = self.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                // Else each side waits for the other's acknowledgements.
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

#[rocket::async_test]
async fn no_more_round_trips_than_a_pool_that_does_not_ping_at_checkout() {
    const QUERIES: i32 = 50;

    let lab = Lab::new();
    let through = async |url: &str| {
        let trips = RoundTrips::default();
        let slave = &lab.servers().slaves[0];
        let port = trips.relay(slave.port()).await;
        // The relay reads what is sent.
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

struct Counting;

/// What is larger, glibc's allocator looks for under a lock that threads share: those that free what another has
/// allocated wait for each other (<https://sourceware.org/glibc/wiki/MallocInternals>, "Thread Local Cache").
const LARGE: usize = 1032;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    static LARGE_ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
        if layout.size() > LARGE {
            let _ = LARGE_ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
        }
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[rocket::async_test]
async fn a_choice_allocates_the_state_of_its_request_and_nothing_else() {
    let lab = Lab::new();
    let client = Client::untracked(rocket_over(&lab.section()).attach(Replicated::fairing())).await.unwrap();
    let cluster = Replicated::fetch(client.rocket()).unwrap();
    let allocations = || ALLOCATIONS.with(Cell::get);

    // The first use of the random generator and the like.
    rocket_replicated::internals::choose(&cluster.read(None));
    let before = allocations();
    let db = cluster.read(None);
    let made = allocations();
    rocket_replicated::internals::choose(&db);
    assert_eq!((made - before, allocations() - made), (1, 0));
    assert!(db.choice().is_some());
}

#[rocket::async_test]
async fn a_query_makes_no_large_allocation_that_sqlx_would_not() {
    let lab = Lab::new();
    let section = format!("{}max_connections = 1\n", lab.section());
    let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
    let cluster = Replicated::fetch(client.rocket()).unwrap();
    let mut bare = PgConnection::connect(&lab.master().url()).await.unwrap();
    let query = || sqlx::query("SELECT 1 WHERE 1 = $1").bind(1);
    let large = || LARGE_ALLOCATIONS.with(Cell::get);

    for (role, db) in [("slave", cluster.read(None)), ("master", cluster.write())] {
        // At first, connections are opened and statements prepared.
        for is_warm in [false, true] {
            macro_rules! costs_no_more {
                ($run:ident) => {
                    let before = large();
                    query().$run(&mut bare).await.unwrap();
                    let theirs = large();
                    query().$run(&db).await.unwrap();
                    let ours = large() - theirs;
                    assert!(!is_warm || ours <= theirs - before, "{}, {role}: {ours}", stringify!($run));
                };
            }
            costs_no_more!(execute);
            costs_no_more!(fetch_all);
            costs_no_more!(fetch_one);
        }
    }

    // A text that was built at run time is copied once, whatever becomes of it.
    let long =
        || sqlx::query(AssertSqlSafe(format!("SELECT 1 WHERE 1 = $1 --{}", "-".repeat(LARGE)))).bind(1);
    let db = cluster.read(None);
    for is_warm in [false, true] {
        let before = large();
        long().execute(&mut bare).await.unwrap();
        let theirs = large();
        long().execute(&db).await.unwrap();
        let ours = large() - theirs;
        assert!(!is_warm || ours <= theirs - before + 1, "of a long text: {ours}, {}", theirs - before);
    }

    let _held = cluster.write().get().await.unwrap();
    let other = cluster.write();
    // At first, tokio allocates what it needs for timers.
    assert!(query().fetch_one(&other).now_or_never().is_none());
    let before = large();
    assert!(query().fetch_one(&other).now_or_never().is_none());
    assert_eq!(large(), before, "by waiting");
}

support::on_every_database! {
    use std::cell::Cell;

    use rocket::local::asynchronous::Client;
    use sqlx::Executor;

    #[rocket::async_test]
    async fn the_future_of_a_query_is_small() {
        let lab = Lab::new();
        let rocket = crate::support::rocket_over(&lab.section()).attach(Replicated::fairing());
        let client = Client::untracked(rocket).await.unwrap();
        let db = &Replicated::fetch(client.rocket()).unwrap().read(None);
        let query = || sqlx::query("SELECT 1").bind(1);
        let large = || crate::LARGE_ALLOCATIONS.with(Cell::get);

        let before = large();
        drop((db.execute(query()), db.fetch_all(query()), db.fetch_one(query()), db.fetch_optional(query())));
        assert_eq!(large(), before);
    }
}

#[cfg(feature = "sqlite")]
#[rocket::async_test]
async fn a_choice_out_of_64_slaves_allocates_no_more() {
    use rocket_replicated::{Role, sqlite::Replicated};

    let folder = tempfile::tempdir().unwrap();
    let url = |name: &str| {
        let file = folder.path().join(name);
        rusqlite::Connection::open(&file).unwrap().execute_batch("CREATE TABLE notes (id INTEGER)").unwrap();
        format!("sqlite://{}", file.display())
    };
    let slaves: Vec<_> = (1..=64).map(|number| url(&format!("slave-{number}"))).collect();
    let section = format!("url = {:?}\nslaves = {slaves:?}\n", url("master"));
    let allocations = || ALLOCATIONS.with(Cell::get);

    for keys in ["", "sticky = true", "read_from_slaves = 0.999999"] {
        let rocket = rocket_over(&format!("{section}{keys}")).attach(Replicated::fairing());
        let client = Client::untracked(rocket).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap();
        let read = || rocket_replicated::internals::read_from(cluster, [192, 0, 2, 1].into());

        // The first use of the random generator and the like.
        rocket_replicated::internals::choose(&read());
        let before = allocations();
        let db = read();
        let made = allocations();
        rocket_replicated::internals::choose(&db);
        assert_eq!((made - before, allocations() - made), (1, 0), "{keys}");
        assert_eq!(db.choice().unwrap().role(), Role::Slave);
    }
}
