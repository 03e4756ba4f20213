//! Nodes that refuse, hang, die and come back; pools that are full; queries that are given up.

#![cfg(feature = "postgres")]

mod support;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use rocket::http::{Cookie, Status};
use rocket::local::asynchronous::{Client, LocalResponse};
use rocket::tokio;
use rocket::{Build, Rocket, get, post, routes};
use rocket_replicated::postgres::{Replicated, ReplicatedDb};
use rocket_replicated::{Error, Reason};

use support::lab::postgres::Lab;
use support::postgres::{Cluster, Server};
use support::{logbook, rocket_over};

#[get("/")]
async fn read(db: ReplicatedDb) -> Result<String, Error> {
    sqlx::query("SELECT 1").fetch_one(&db).await?;
    Ok(db.choice().unwrap().to_string())
}

#[post("/")]
async fn write(db: ReplicatedDb) -> Result<String, Error> {
    sqlx::query("CREATE TABLE IF NOT EXISTS written (id INTEGER)").execute(&db).await?;
    Ok(db.choice().unwrap().to_string())
}

fn app(section: &str) -> Rocket<Build> {
    rocket_over(section).attach(Replicated::fairing()).mount("/", routes![read, write])
}

async fn client(section: &str) -> Client {
    Client::untracked(app(section)).await.unwrap()
}

/// The text of a reply, with its status if that is not 200.
async fn text(response: LocalResponse<'_>) -> String {
    match response.status() {
        Status::Ok => response.into_string().await.unwrap(),
        status => format!("{} {:?}", status.code, response.headers().get_one("Retry-After")),
    }
}

async fn get(client: &Client) -> String {
    text(client.get("/").dispatch().await).await
}

async fn pin(client: &Client) -> Cookie<'static> {
    let response = client.post("/").dispatch().await;
    response.cookies().get("replicated_pin").unwrap().clone()
}

/// Polls, and lets the background work in between.
async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}: not within 20 s");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Counts the queries that sleep, and so have all their locks.
const SLEEPING: &str = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";

fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The section of a lab's master, and of slaves: a bad one, and as many good ones as asked for.
fn section_with_bad_slave(lab: &Lab, port: u16, good: usize) -> String {
    let good =
        lab.slave_urls().iter().take(good).map(|url| format!(", {{ url = \"{url}\", name = \"good\" }}"));
    format!(
        "url = \"{}\"\nslaves = [{{ url = \"postgres://app:secret@127.0.0.1:{port}/app\", name = \"bad\", weight = 1000 }}{}]\n",
        lab.master_url(),
        good.collect::<String>(),
    )
}

/// Reads on, while the first slave that is drawn cannot be reached: one read waits for it, at most.
async fn one_read_pays(section: &str, answer: &str) {
    const TIMEOUT: Duration = Duration::from_secs(3);

    let client = client(&format!("{section}slave_timeout = {}", TIMEOUT.as_secs())).await;
    let mut slow = 0;
    for _ in 0..20 {
        let begun = Instant::now();
        assert_eq!(get(&client).await, answer);
        slow += usize::from(begun.elapsed() > TIMEOUT.mul_f64(0.9));
    }
    assert!(slow <= 1, "{slow} reads waited");
}

#[rocket::async_test]
async fn a_slave_that_refuses_costs_one_read() {
    let lab = Lab::new();
    one_read_pays(&section_with_bad_slave(&lab, closed_port(), 1), "good (ReadMethod)").await;
    one_read_pays(
        &section_with_bad_slave(&lab, closed_port(), 0),
        &format!("127.0.0.1-{} (SlavesUnavailable)", lab.cluster.master.port()),
    )
    .await;
    assert!(!logbook::lines(&["WARN", "slave `bad`", "Connection refused"]).is_empty());
}

#[rocket::async_test]
async fn a_slave_that_says_nothing_costs_one_read() {
    let lab = Lab::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    one_read_pays(&section_with_bad_slave(&lab, port, 1), "good (ReadMethod)").await;
}

fn section_of(cluster: &Cluster) -> String {
    let slave = |(index, slave): (usize, &Server)| {
        format!("{{ url = \"{}\", name = \"slave-{}\" }}", slave.url(), index + 1)
    };
    let slaves: Vec<_> = cluster.slaves.iter().enumerate().map(slave).collect();
    format!("url = \"{}\"\nslaves = [{}]\n", cluster.master.url(), slaves.join(", "))
}

#[rocket::async_test]
async fn a_slave_that_is_killed_is_not_noticed_and_comes_back() {
    let cluster = Cluster::start(2);
    let client = client(&section_of(&cluster)).await;
    eventually("reads from both", async || get(&client).await == "slave-1 (ReadMethod)").await;
    eventually("reads from both", async || get(&client).await == "slave-2 (ReadMethod)").await;

    cluster.slaves[0].kill();
    for _ in 0..30 {
        assert_eq!(get(&client).await, "slave-2 (ReadMethod)");
    }
    assert!(!logbook::lines(&["WARN", "slave `slave-1` cannot be used", "Leaving it alone"]).is_empty());

    cluster.slaves[0].start();
    eventually("its return", async || get(&client).await == "slave-1 (ReadMethod)").await;
    assert!(!logbook::lines(&["INFO", "slave `slave-1` is back"]).is_empty());
}

#[rocket::async_test]
async fn a_slave_that_dies_during_a_query_is_not_noticed() {
    // Sleeps on the slave only: elsewhere the same statement returns at once.
    #[get("/sleep")]
    async fn sleep(db: ReplicatedDb) -> Result<String, Error> {
        sqlx::query("SELECT pg_sleep(CASE WHEN pg_is_in_recovery() THEN 60 ELSE 0 END)")
            .fetch_all(&db)
            .await?;
        Ok(db.choice().unwrap().to_string())
    }

    let cluster = Cluster::start(1);
    let client = Client::untracked(app(&section_of(&cluster)).mount("/", routes![sleep])).await.unwrap();
    let kill = async {
        eventually("the query", async || cluster.slaves[0].sql(SLEEPING) == "1").await;
        cluster.slaves[0].kill();
    };
    let (response, ()) = tokio::join!(client.get("/sleep").dispatch(), kill);
    let master = format!("127.0.0.1-{} (SlavesUnavailable)", cluster.master.port());
    assert_eq!(text(response).await, master);
}

#[rocket::async_test]
async fn the_master_dies_and_reads_go_on() {
    let cluster = Cluster::start(1);
    let section = format!("{}lag_window = 3600\nconnect_timeout = 2\n", section_of(&cluster));
    let stale = client(&section).await;
    let fail = client(&format!("{section}pinned_without_master = \"fail\"")).await;
    let pins = (pin(&stale).await, pin(&fail).await);
    let pinned = async |client: &Client, pin: &Cookie<'static>| {
        text(client.get("/").cookie(pin.clone()).dispatch().await).await
    };
    let master = format!("127.0.0.1-{} (Pinned)", cluster.master.port());
    assert_eq!(pinned(&stale, &pins.0).await, master);

    cluster.master.kill();
    for _ in 0..10 {
        assert_eq!(get(&stale).await, "slave-1 (ReadMethod)");
        assert_eq!(pinned(&stale, &pins.0).await, "slave-1 (MasterUnavailable)");
    }
    assert_eq!(pinned(&fail, &pins.1).await, "503 Some(\"1\")");
    // The first finds an old connection broken, which may have written: an error, but not "later".
    let _ = text(stale.post("/").dispatch().await).await;
    let begun = Instant::now();
    assert_eq!(text(stale.post("/").dispatch().await).await, "503 Some(\"1\")");
    assert_eq!(text(stale.post("/").dispatch().await).await, "503 Some(\"1\")");
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "one waits for the master, at most: {:?}",
        begun.elapsed()
    );

    cluster.master.start();
    eventually("writes", async || stale.post("/").dispatch().await.status() == Status::Ok).await;
    eventually("pinned reads", async || pinned(&stale, &pins.0).await == master).await;
}

#[rocket::async_test]
async fn a_server_that_is_down_at_launch_is_no_error() {
    let port = closed_port();
    let section = format!("url = \"postgres://app:secret@127.0.0.1:{port}/app\"\nconnect_timeout = 0.5\n");
    let client = client(&section).await;
    for _ in 0..2 {
        assert_eq!(get(&client).await, "503 Some(\"1\")");
        assert_eq!(text(client.post("/").dispatch().await).await, "503 Some(\"1\")");
    }
}

#[rocket::async_test]
async fn a_busy_slave_is_not_dead() {
    let lab = Lab::new();
    let section = format!(
        "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"busy\", max_connections = 1 }}]\nslave_timeout = 0.2\n",
        lab.master_url(),
        lab.slave_urls()[0],
    );
    let client = client(&section).await;
    let cluster = Replicated::fetch(client.rocket()).unwrap();
    let holder = cluster.read(None);
    let held = holder.get().await.unwrap();
    assert_eq!(holder.choice().unwrap().node(), "busy");

    let master = format!("127.0.0.1-{} (SlavesUnavailable)", lab.cluster.master.port());
    assert_eq!(get(&client).await, master);
    drop(held);
    eventually("a read from it", async || get(&client).await == "busy (ReadMethod)").await;
    assert_eq!(logbook::lines(&["`busy`"]).iter().filter(|line| line.starts_with("WARN")).count(), 0);
}

#[rocket::async_test]
async fn a_query_that_is_given_up_frees_its_place_and_its_server() {
    let lab = Lab::new();
    let slave = &lab.cluster.slaves[0];
    let section = format!(
        "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"only\", max_connections = 1 }}]\nslave_timeout = 5\n",
        lab.master_url(),
        lab.slave_urls()[0],
    );
    let client = client(&section).await;
    let cluster = Replicated::fetch(client.rocket()).unwrap();

    let db = cluster.read(None);
    let query =
        tokio::spawn(async move { sqlx::query("SELECT pg_sleep(600)").execute(&db).await.map(|_| ()) });
    eventually("the query", async || slave.sql(SLEEPING) == "1").await;
    query.abort();
    assert!(query.await.unwrap_err().is_cancelled());

    assert_eq!(get(&client).await, "only (ReadMethod)");
    eventually("its end", async || slave.sql(SLEEPING) == "0").await;
}

#[rocket::async_test]
async fn a_crowd_without_slaves_cannot_lock_out_who_has_just_written() {
    let lab = Lab::new();
    let section = format!(
        "{}master_read_connections = 2\nconnect_timeout = 0.5\nslave_timeout = 0.2\nlag_window = 3600\n",
        section_with_bad_slave(&lab, closed_port(), 0),
    );
    let client = client(&section).await;
    let pin = pin(&client).await;
    let crowd = Replicated::fetch(client.rocket()).unwrap().read(None);
    let held = crowd.get().await.unwrap();
    assert_eq!(crowd.choice().unwrap().reason(), Reason::SlavesUnavailable);

    assert_eq!(get(&client).await, "503 Some(\"1\")");
    let pinned = text(client.get("/").cookie(pin).dispatch().await).await;
    assert_eq!(pinned, format!("127.0.0.1-{} (Pinned)", lab.cluster.master.port()));
    drop(held);
    eventually("room", async || get(&client).await.ends_with("(SlavesUnavailable)")).await;
}

#[rocket::async_test]
async fn a_read_cancelled_by_recovery_runs_elsewhere() {
    #[get("/held")]
    async fn held(db: ReplicatedDb) -> Result<String, Error> {
        let sql = "SELECT count(*) FROM notes, pg_sleep(CASE WHEN pg_is_in_recovery() THEN 60 ELSE 0 END)";
        let _: i64 = sqlx::query_scalar(sql).fetch_one(&db).await?;
        Ok(db.choice().unwrap().to_string())
    }

    let cluster = Cluster::start(1);
    let (master, slave) = (&cluster.master, &cluster.slaves[0]);
    master.sql("CREATE TABLE notes (id INTEGER); GRANT ALL ON notes TO app; INSERT INTO notes VALUES (1)");
    cluster.wait_caught_up();
    slave.sql("ALTER SYSTEM SET max_standby_streaming_delay = 0");
    slave.sql("SELECT pg_reload_conf()");

    let client = Client::untracked(app(&section_of(&cluster)).mount("/", routes![held])).await.unwrap();
    let conflict = async {
        eventually("the query", async || slave.sql(SLEEPING) == "1").await;
        // Replaying the lock of a TRUNCATE cancels whoever reads the table.
        master.sql("TRUNCATE notes");
    };
    let (response, ()) = tokio::join!(client.get("/held").dispatch(), conflict);
    assert_eq!(text(response).await, format!("127.0.0.1-{} (SlavesUnavailable)", master.port()));
    eventually("the slave, which is well", async || get(&client).await == "slave-1 (ReadMethod)").await;
    assert_eq!(logbook::lines(&["slave-1", "cancel"]), Vec::<String>::new());
}
