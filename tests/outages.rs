//! Nodes that refuse, hang, die and come back, pools that are full, and queries that are given up.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use rocket::http::{Cookie, Status};
use rocket::local::asynchronous::{Client, LocalResponse};
use rocket::tokio;
use rocket::{Build, Rocket, get, post, routes};
use rocket_replicated::postgres::{Replicated, ReplicatedDb};
use rocket_replicated::{Error, Reason};

use rocket_replicated_testing::postgres::Postgres;
use rocket_replicated_testing::{Server, Servers};
use support::lab::postgres::Lab;
use support::{eventually, logbook, rocket_over};

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

/// Counts the queries that sleep. They have all their locks by then.
const SLEEPING: &str = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";

fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The section of a lab's master, with a bad slave and this many good ones.
fn section_with_bad_slave(lab: &Lab, port: u16, good: usize) -> String {
    let good =
        lab.slave_urls().iter().take(good).map(|url| format!(", {{ url = \"{url}\", name = \"good\" }}"));
    format!(
        "url = \"{}\"\nslaves = [{{ url = \"postgres://app:secret@127.0.0.1:{port}/app\", name = \"bad\", weight = 1000 }}{}]\n",
        lab.master_url(),
        good.collect::<String>(),
    )
}

/// Reads on while the slave that is drawn first cannot be reached. At most one read waits for it.
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
    eventually("word of it", async || {
        !logbook::lines(&["WARN", "slave `bad` of database `replicated` cannot be used"]).is_empty()
    })
    .await;
}

#[support::async_test]
async fn a_slave_that_refuses_costs_one_read() {
    let lab = Lab::new();
    one_read_pays(&section_with_bad_slave(&lab, closed_port(), 1), "good (read method)").await;
    one_read_pays(
        &section_with_bad_slave(&lab, closed_port(), 0),
        &format!("127.0.0.1-{} (slaves unavailable)", lab.servers().master.port()),
    )
    .await;
    assert!(!logbook::lines(&["WARN", "slave `bad`", "Connection refused"]).is_empty());
}

#[support::async_test]
async fn a_slave_that_says_nothing_costs_one_read() {
    let lab = Lab::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    one_read_pays(&section_with_bad_slave(&lab, port, 1), "good (read method)").await;
}

#[support::async_test]
async fn a_message_of_a_server_cannot_begin_a_line_of_the_log() {
    let lab = Lab::new();
    let url = lab.master_url();
    let (server, _) = url.rsplit_once('/').unwrap();
    let _client = client(&format!("url = \"{server}/no%0AERROR: forged\"\n")).await;
    eventually("its words", async || !logbook::lines(&["ERROR", "refuses the login", "forged"]).is_empty())
        .await;
    assert_eq!(logbook::lines(&["\n"]), [""; 0]);
}

fn section_of(cluster: &Servers<Postgres>) -> String {
    let slave = |(index, slave): (usize, &Server<Postgres>)| {
        format!("{{ url = \"{}\", name = \"slave-{}\" }}", slave.url(), index + 1)
    };
    let slaves: Vec<_> = cluster.slaves.iter().enumerate().map(slave).collect();
    format!("url = \"{}\"\nslaves = [{}]\n", cluster.master.url(), slaves.join(", "))
}

#[support::async_test]
async fn reads_do_not_fail_when_a_slave_is_killed_and_it_comes_back() {
    let cluster = Servers::start(Postgres, 2);
    let client = client(&section_of(&cluster)).await;
    eventually("reads from both", async || get(&client).await == "slave-1 (read method)").await;
    eventually("reads from both", async || get(&client).await == "slave-2 (read method)").await;

    cluster.slaves[0].kill();
    for _ in 0..30 {
        assert_eq!(get(&client).await, "slave-2 (read method)");
    }
    assert!(
        !logbook::lines(&[
            "WARN",
            "slave `slave-1` of database `replicated` cannot be used",
            "Leaving it alone"
        ])
        .is_empty()
    );

    cluster.slaves[0].start();
    eventually("its return", async || get(&client).await == "slave-1 (read method)").await;
    assert!(!logbook::lines(&["WARN", "slave `slave-1` of database `replicated` is back"]).is_empty());
}

#[support::async_test]
async fn a_query_runs_again_elsewhere_when_its_slave_dies() {
    // Sleeps on the slave only. Elsewhere the same statement returns at once.
    #[get("/sleep")]
    async fn sleep(db: ReplicatedDb) -> Result<String, Error> {
        sqlx::query("SELECT pg_sleep(CASE WHEN pg_is_in_recovery() THEN 60 ELSE 0 END)")
            .fetch_all(&db)
            .await?;
        Ok(db.choice().unwrap().to_string())
    }

    let cluster = Servers::start(Postgres, 1);
    let client = Client::untracked(app(&section_of(&cluster)).mount("/", routes![sleep])).await.unwrap();
    let kill = async {
        eventually("the query", async || cluster.slaves[0].sql(SLEEPING) == "1").await;
        cluster.slaves[0].kill();
    };
    let (response, ()) = tokio::join!(client.get("/sleep").dispatch(), kill);
    let master = format!("127.0.0.1-{} (slaves unavailable)", cluster.master.port());
    assert_eq!(text(response).await, master);
}

#[support::async_test]
async fn a_guard_that_answers_for_itself_tells_when_to_try_again() {
    use rocket::request::{FromRequest, Outcome};

    struct Visitor;

    #[rocket::async_trait]
    impl<'r> FromRequest<'r> for Visitor {
        type Error = ();

        async fn from_request(request: &'r rocket::Request<'_>) -> Outcome<Self, ()> {
            let db = request.guard::<ReplicatedDb>().await.unwrap();
            match sqlx::query("SELECT 1").execute(&db).await {
                Ok(_) => Outcome::Success(Self),
                Err(_) => Outcome::Error((Status::ServiceUnavailable, ())),
            }
        }
    }

    #[get("/visitor")]
    fn visitor(_visitor: Visitor) {}

    #[post("/visitor")]
    fn visited(_visitor: Visitor) {}

    let app = app(&format!("url = \"postgres://app@127.0.0.1:{}/nowhere\"\n", closed_port()));
    let client = Client::untracked(app.mount("/", routes![visitor, visited])).await.unwrap();
    assert_eq!(text(client.get("/visitor").dispatch().await).await, "503 Some(\"1\")");
    assert_eq!(text(client.post("/visitor").dispatch().await).await, "503 Some(\"1\")");
}

/// Keys with long time-outs, except for probes. With them, a frozen server may cost [`AT_MOST`], which allows for a
/// busy machine.
const FROZEN: &str = "check_interval = 0.5\ncheck_timeout = 2\nslave_timeout = 30\nconnect_timeout = 30\n";
const AT_MOST: Duration = Duration::from_secs(20);

#[support::async_test]
async fn a_slave_that_freezes_during_a_query_is_given_up() {
    #[get("/sleep")]
    async fn sleep(db: ReplicatedDb) -> Result<String, Error> {
        let sql = "SELECT pg_sleep(CASE WHEN pg_is_in_recovery() THEN 60 ELSE 0 END)";
        sqlx::query(sql).fetch_all(&db).await?;
        Ok(db.choice().unwrap().to_string())
    }

    #[get("/stream")]
    async fn stream(db: ReplicatedDb) -> Result<String, Error> {
        use rocket::futures::TryStreamExt;

        let sql = "SELECT pg_sleep(CASE WHEN pg_is_in_recovery() THEN 60 ELSE 0 END)";
        sqlx::query(sql).fetch(&db).try_next().await?;
        Ok(db.choice().unwrap().to_string())
    }

    let cluster = Servers::start(Postgres, 1);
    let slave = &cluster.slaves[0];
    let rocket = app(&format!("{}{FROZEN}", section_of(&cluster))).mount("/", routes![sleep, stream]);
    let client = Client::untracked(rocket).await.unwrap();
    for path in ["/sleep", "/stream"] {
        eventually("the slave", async || get(&client).await == "slave-1 (read method)").await;
        let freeze = async {
            eventually("the query", async || slave.sql(SLEEPING) == "1").await;
            slave.freeze();
            Instant::now()
        };
        let (response, frozen) = tokio::join!(client.get(path).dispatch(), freeze);
        let master = format!("127.0.0.1-{} (slaves unavailable)", cluster.master.port());
        assert_eq!(text(response).await, master, "{path}");
        assert!(frozen.elapsed() < AT_MOST, "{path}: {:?}", frozen.elapsed());

        let begun = Instant::now();
        assert_eq!(get(&client).await, master);
        assert!(begun.elapsed() < AT_MOST, "nobody waits any more: {:?}", begun.elapsed());

        slave.thaw();
        eventually("its return", async || get(&client).await == "slave-1 (read method)").await;
        eventually("its rest", async || slave.sql(SLEEPING) == "0").await;
    }
}

#[support::async_test]
async fn a_statement_is_prepared_elsewhere_than_at_a_frozen_slave() {
    use sqlx::Executor;

    let cluster = Servers::start(Postgres, 1);
    let slave = &cluster.slaves[0];
    let client = client(&format!("{}{FROZEN}", section_of(&cluster))).await;
    let nodes = Replicated::fetch(client.rocket()).unwrap();
    for describes in [false, true] {
        let db = nodes.read(None);
        sqlx::query("SELECT 1").execute(&db).await.unwrap();
        assert_eq!(db.choice().unwrap().node(), "slave-1");
        slave.freeze();
        let begun = Instant::now();
        let sql = sqlx::SqlSafeStr::into_sql_str("SELECT count(*) FROM pg_class");
        match describes {
            true => (&db).describe(sql).await.map(drop).unwrap(),
            false => (&db).prepare(sql).await.map(drop).unwrap(),
        }
        assert!(begun.elapsed() < AT_MOST, "{:?}", begun.elapsed());
        assert_ne!(db.choice().unwrap().node(), "slave-1");
        slave.thaw();
        eventually("its return", async || get(&client).await == "slave-1 (read method)").await;
    }
}

#[support::async_test]
async fn a_transaction_under_way_at_a_frozen_slave_is_given_up() {
    let cluster = Servers::start(Postgres, 1);
    let slave = &cluster.slaves[0];
    let client = client(&format!("{}{FROZEN}", section_of(&cluster))).await;
    let db = Replicated::fetch(client.rocket()).unwrap().read(None);
    let mut transaction = db.begin().await.unwrap();
    sqlx::query("SELECT 1").execute(&mut *transaction).await.unwrap();
    slave.freeze();
    let begun = Instant::now();
    let error = sqlx::query("SELECT 1").execute(&mut *transaction).await.unwrap_err();
    assert!(
        error.to_string().contains("the slave `slave-1` of database `replicated` cannot be reached"),
        "{error}"
    );
    assert!(begun.elapsed() < AT_MOST, "{:?}", begun.elapsed());
    slave.thaw();
}

fn is_timeout(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::TimedOut)
}

#[support::async_test]
async fn a_pool_without_a_free_connection_is_warned_of_once() {
    let lab = Lab::new();
    let section = format!("url = \"{}\"\nmax_connections = 1\nconnect_timeout = 2\n", lab.master_url());
    let client = client(&section).await;
    let writer = Replicated::fetch(client.rocket()).unwrap().write();
    let _held = writer.get().await.unwrap();
    for _ in 0..2 {
        assert!(is_timeout(&writer.get().await.unwrap_err()));
    }
    let said = logbook::lines(&["WARN", "No connection for writes", "within 2s: 1 of 1 are in use, one of"]);
    assert_eq!(said.len(), 1, "{said:?}");
}

#[support::async_test]
async fn a_transaction_for_reads_that_cannot_begin_at_a_frozen_slave_begins_elsewhere() {
    #[get("/begin")]
    async fn begin(db: ReplicatedDb) -> Result<String, Error> {
        let mut transaction = db.begin().await?;
        sqlx::query("SELECT 1").execute(&mut *transaction).await?;
        Ok(db.choice().unwrap().to_string())
    }

    let cluster = Servers::start(Postgres, 1);
    let slave = &cluster.slaves[0];
    let rocket = app(&format!("{}{FROZEN}", section_of(&cluster))).mount("/", routes![begin]);
    let client = Client::untracked(rocket).await.unwrap();
    eventually("the slave", async || get(&client).await == "slave-1 (read method)").await;
    slave.freeze();
    let response = tokio::time::timeout(AT_MOST, client.get("/begin").dispatch()).await;
    let master = format!("127.0.0.1-{} (slaves unavailable)", cluster.master.port());
    assert_eq!(text(response.expect("a transaction in time")).await, master);
    slave.thaw();
}

/// Only the waiting read can notice. No read is under way at the slave, and the monitor's next probe is far away.
#[support::async_test]
async fn a_read_that_waits_for_a_connection_to_a_frozen_slave_goes_elsewhere() {
    let cluster = Servers::start(Postgres, 1);
    let slave = &cluster.slaves[0];
    let keys = "max_connections = 1\nslave_timeout = 60\ncheck_interval = 60\ncheck_timeout = 0.5\nmax_lag = false\n";
    let client = client(&format!("{}{keys}", section_of(&cluster))).await;
    let nodes = Replicated::fetch(client.rocket()).unwrap();
    let _held = eventually("its connection", async || {
        let held = nodes.read(None);
        let connection = held.get().await.unwrap();
        (held.choice().unwrap().to_string() == "slave-1 (reads database)").then_some(connection)
    })
    .await;
    slave.freeze();
    let reply = tokio::time::timeout(AT_MOST, get(&client)).await;
    let master = format!("127.0.0.1-{} (slaves unavailable)", cluster.master.port());
    assert_eq!(reply.expect("a read in time"), master);
    slave.thaw();
}

#[support::async_test]
async fn a_connection_that_breaks_breaks_no_other() {
    use rocket::futures::TryStreamExt;

    let lab = Lab::new();
    let slave = &lab.servers().slaves[0];
    let client = client(&only_slave(&lab, "max_connections = 2").replace("only", "wounded")).await;
    let cluster = Replicated::fetch(client.rocket()).unwrap();

    let streaming = cluster.read(None);
    // This request gets its connection before the other one breaks. A request that waits for one then goes elsewhere.
    sqlx::query("SELECT 1").execute(&streaming).await.unwrap();
    let mut rows = sqlx::query("SELECT g FROM generate_series(1, 50) g, pg_sleep(0.1)").fetch(&streaming);
    let first = rows.try_next();
    let broken = cluster.read(None);
    let sleep = sqlx::query("SELECT pg_sleep(CASE WHEN pg_is_in_recovery() THEN 60 ELSE 0 END)");
    let terminate = async {
        let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(CASE%'";
        eventually("the query", async || slave.sql(sleeping) == "1").await;
        slave.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(CASE%'",
        );
    };
    let (first, slept, ()) = tokio::join!(first, sleep.execute(&broken), terminate);
    slept.unwrap();
    assert!(first.unwrap().is_some());
    assert!(broken.choice().unwrap().to_string().ends_with("(slaves unavailable)"));

    let mut count = 1;
    while rows.try_next().await.unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, 50);
    drop(rows);
    assert_eq!(streaming.choice().unwrap().node(), "wounded");
    eventually("its return", async || get(&client).await == "wounded (read method)").await;
}

#[support::async_test]
async fn writes_fail_fast_while_the_master_is_frozen() {
    let cluster = Servers::start(Postgres, 1);
    let client = client(&format!("{}{FROZEN}", section_of(&cluster))).await;
    let pinned = pin(&client).await;
    cluster.master.freeze();
    let begun = Instant::now();
    let response = client.get("/").cookie(pinned.clone()).dispatch().await;
    assert_eq!(text(response).await, "slave-1 (master unavailable)");
    assert!(begun.elapsed() < AT_MOST, "{:?}", begun.elapsed());

    let begun = Instant::now();
    for _ in 0..20 {
        assert_eq!(text(client.post("/").dispatch().await).await, "503 Some(\"1\")");
        assert_eq!(get(&client).await, "slave-1 (read method)");
    }
    assert!(begun.elapsed() < AT_MOST, "{:?}", begun.elapsed());

    cluster.master.thaw();
    eventually("writes", async || client.post("/").dispatch().await.status() == Status::Ok).await;
}

#[support::async_test]
async fn a_writable_guard_without_a_master_forwards_or_refuses() {
    use rocket_replicated::Writable;
    use rocket_replicated::postgres::Database;

    #[get("/edit")]
    fn edit(_writable: Writable<Database>) -> &'static str {
        "a form"
    }

    #[get("/edit", rank = 2)]
    fn cannot_edit() -> &'static str {
        "later"
    }

    #[get("/new")]
    fn new(_writable: Writable<Database>) -> &'static str {
        "a form"
    }

    let cluster = Servers::start(Postgres, 1);
    let rocket = app(&format!("{}{FROZEN}", section_of(&cluster)));
    let client = Client::untracked(rocket.mount("/", routes![edit, cannot_edit, new])).await.unwrap();
    let replies = async || {
        let edit = text(client.get("/edit").dispatch().await).await;
        (edit, text(client.get("/new").dispatch().await).await)
    };
    assert_eq!(replies().await, ("a form".into(), "a form".into()));
    cluster.master.kill();
    eventually("the loss", async || replies().await == ("later".into(), "503 Some(\"1\")".into())).await;
    cluster.master.start();
    eventually("the return", async || replies().await == ("a form".into(), "a form".into())).await;
}

#[support::async_test]
async fn the_master_dies_and_reads_go_on() {
    let cluster = Servers::start(Postgres, 1);
    let section = format!("{}lag_window = 3600\nconnect_timeout = 2\n", section_of(&cluster));
    let stale = client(&section).await;
    let fail = client(&format!("{section}pinned_without_master = \"fail\"")).await;
    let pins = (pin(&stale).await, pin(&fail).await);
    let pinned = async |client: &Client, pin: &Cookie<'static>| {
        text(client.get("/").cookie(pin.clone()).dispatch().await).await
    };
    let master = format!("127.0.0.1-{} (pinned)", cluster.master.port());
    assert_eq!(pinned(&stale, &pins.0).await, master);

    cluster.master.kill();
    for _ in 0..10 {
        assert_eq!(get(&stale).await, "slave-1 (read method)");
        assert_eq!(pinned(&stale, &pins.0).await, "slave-1 (master unavailable)");
    }
    assert_eq!(pinned(&fail, &pins.1).await, "503 Some(\"1\")");
    // The first write finds an old connection broken and may have been done. Its error does not say "later".
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

/// A pin with a position is good for longer than the window. While the only slave is on its way back, it is not known
/// what the slave has replayed.
#[support::async_test]
async fn a_pinned_read_past_its_window_waits_for_proof_of_a_slave_on_its_way_back() {
    const WINDOW: Duration = Duration::from_secs(1);

    let cluster = Servers::start(Postgres, 1);
    // A long interval leaves time to ask while the slave is on its way back, which takes two probes.
    let section = format!(
        "{}consistency = \"position\"\nlag_window = {}\ncheck_interval = 2\n",
        section_of(&cluster),
        WINDOW.as_secs()
    );
    let stale = client(&section).await;
    let fail = client(&format!("{section}pinned_without_master = \"fail\"")).await;
    let pins = (pin(&stale).await, pin(&fail).await);
    let wrote = Instant::now();
    let pinned = async |client: &Client, pin: &Cookie<'static>| {
        text(client.get("/").cookie(pin.clone()).dispatch().await).await
    };
    let caught_up = "slave-1 (caught up)";
    eventually("the replay", async || pinned(&stale, &pins.0).await == caught_up).await;
    eventually("the replay", async || pinned(&fail, &pins.1).await == caught_up).await;

    cluster.slaves[0].kill();
    cluster.master.kill();
    for client in [&stale, &fail] {
        eventually("word of both", async || get(client).await.starts_with("503")).await;
    }
    eventually("the end of the window", async || wrote.elapsed() > 2 * WINDOW).await;

    cluster.slaves[0].start();
    let refused = "503 Some(\"1\")";
    let until_caught_up = async |client: &Client, pin: &Cookie<'static>| {
        let mut answers = Vec::new();
        eventually("proof", async || {
            answers.push(pinned(client, pin).await);
            answers.dedup();
            answers.last().is_some_and(|answer| answer == caught_up)
        })
        .await;
        // Reads are refused until the first probe has been answered.
        answers.retain(|answer| answer != refused);
        answers
    };
    assert_eq!(until_caught_up(&stale, &pins.0).await, ["slave-1 (master unavailable)", caught_up]);
    cluster.slaves[0].kill();
    eventually("word of it", async || pinned(&fail, &pins.1).await == refused).await;
    cluster.slaves[0].start();
    assert_eq!(until_caught_up(&fail, &pins.1).await, [caught_up]);
}

#[support::async_test]
async fn a_server_that_is_down_at_launch_is_no_error() {
    let port = closed_port();
    let section = format!("url = \"postgres://app:secret@127.0.0.1:{port}/app\"\nconnect_timeout = 0.5\n");
    let client = client(&section).await;
    for _ in 0..2 {
        assert_eq!(get(&client).await, "503 Some(\"1\")");
        assert_eq!(text(client.post("/").dispatch().await).await, "503 Some(\"1\")");
    }
}

#[support::async_test]
async fn a_busy_slave_is_not_left_out() {
    let lab = Lab::new();
    let section = format!(
        "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"busy\", max_connections = 1 }}]\nslave_timeout = 2\n",
        lab.master_url(),
        lab.slave_urls()[0],
    );
    let client = client(&section).await;
    let cluster = Replicated::fetch(client.rocket()).unwrap();
    // Tried again, because the connection may take long to open.
    let held = eventually("its connection", async || {
        let holder = cluster.read(None);
        let held = holder.get().await.unwrap();
        (holder.choice().unwrap().node() == "busy").then_some(held)
    })
    .await;

    let master = format!("127.0.0.1-{} (slaves unavailable)", lab.servers().master.port());
    assert_eq!(get(&client).await, master);
    drop(held);
    eventually("a read from it", async || get(&client).await == "busy (read method)").await;
    assert_eq!(logbook::lines(&["`busy`"]).iter().filter(|line| line.starts_with("WARN")).count(), 0);
}

#[support::async_test]
async fn a_query_that_is_given_up_frees_its_place_and_its_server() {
    let lab = Lab::new();
    let slave = &lab.servers().slaves[0];
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

    assert_eq!(get(&client).await, "only (read method)");
    eventually("its end", async || slave.sql(SLEEPING) == "0").await;
}

#[support::async_test]
async fn unpinned_reads_without_slaves_cannot_lock_out_pinned_reads() {
    let lab = Lab::new();
    let section = format!(
        "{}master_read_connections = 2\nconnect_timeout = 3\nslave_timeout = 0.2\nlag_window = 3600\n",
        section_with_bad_slave(&lab, closed_port(), 0),
    );
    let client = client(&section).await;
    let pin = pin(&client).await;
    let crowd = Replicated::fetch(client.rocket()).unwrap().read(None);
    let held = crowd.get().await.unwrap();
    assert_eq!(crowd.choice().unwrap().reason(), Reason::SlavesUnavailable);

    assert_eq!(get(&client).await, "503 Some(\"1\")");
    let pinned = text(client.get("/").cookie(pin).dispatch().await).await;
    assert_eq!(pinned, format!("127.0.0.1-{} (pinned)", lab.servers().master.port()));
    drop(held);
    eventually("room", async || get(&client).await.ends_with("(slaves unavailable)")).await;
}

#[support::async_test]
async fn a_pinned_read_waits_for_the_first_free_connection_reserved_or_not() {
    let lab = Lab::new();
    let section = format!(
        "{}master_read_connections = 2\nconnect_timeout = 30\nslave_timeout = 0.2\nlag_window = 3600\n",
        section_with_bad_slave(&lab, closed_port(), 0),
    );
    let client = client(&section).await;
    let cluster = Replicated::fetch(client.rocket()).unwrap();
    let writer = cluster.write();
    sqlx::query("INSERT INTO notes (body) VALUES ('own')").execute(&writer).await.unwrap();
    let pin = writer.pin().await;
    let (crowd, pinned, late) =
        (cluster.read(None), cluster.read(pin.as_deref()), cluster.read(pin.as_deref()));
    let (common, _reserve) = (crowd.get().await.unwrap(), pinned.get().await.unwrap());
    let waits = tokio::spawn(async move { late.get().await.map(drop) });
    let waiting = || cluster.statistics().servers[0].pools.iter().any(|pool| pool.waiting > 0);
    eventually("that it waits", async || waiting()).await;
    drop(common);
    waits.await.unwrap().unwrap();
}

#[support::async_test]
async fn a_read_cancelled_by_recovery_runs_elsewhere() {
    #[get("/held")]
    async fn held(db: ReplicatedDb) -> Result<String, Error> {
        let sql = "SELECT count(*) FROM notes, pg_sleep(CASE WHEN pg_is_in_recovery() THEN 60 ELSE 0 END)";
        let _: i64 = sqlx::query_scalar(sql).fetch_one(&db).await?;
        Ok(db.choice().unwrap().to_string())
    }

    let cluster = Servers::start(Postgres, 1);
    let (master, slave) = (&cluster.master, &cluster.slaves[0]);
    master.sql("CREATE TABLE notes (id INTEGER); GRANT ALL ON notes TO app; INSERT INTO notes VALUES (1)");
    cluster.wait_caught_up();
    slave.sql("ALTER SYSTEM SET max_standby_streaming_delay = 0");
    slave.sql("SELECT pg_reload_conf()");

    let client = Client::untracked(app(&section_of(&cluster)).mount("/", routes![held])).await.unwrap();
    let conflict = async {
        eventually("the query", async || slave.sql(SLEEPING) == "1").await;
        // Replaying the lock of a TRUNCATE cancels the queries that read the table.
        master.sql("TRUNCATE notes");
    };
    let (response, ()) = tokio::join!(client.get("/held").dispatch(), conflict);
    assert_eq!(text(response).await, format!("127.0.0.1-{} (slaves unavailable)", master.port()));
    eventually("the slave, which is well", async || get(&client).await == "slave-1 (read method)").await;
    assert_eq!(logbook::lines(&["slave-1", "cancel"]), Vec::<String>::new());
}

/// The read waits for a lock that the replay holds, and the replay waits for a lock that the read holds.
#[support::async_test]
async fn a_read_that_deadlocks_with_replay_runs_elsewhere() {
    use sqlx::Connection;

    #[get("/both")]
    async fn both(db: ReplicatedDb) -> Result<String, Error> {
        let sql = "SELECT count(*) FROM first_locked, then_locked WHERE $1";
        let _: i64 = sqlx::query_scalar(sql).bind(true).fetch_one(&db).await?;
        Ok(db.choice().unwrap().to_string())
    }

    let servers = Servers::start(Postgres, 1);
    let (master, slave) = (&servers.master, &servers.slaves[0]);
    master.sql("CREATE TABLE first_locked (id INTEGER); GRANT ALL ON first_locked TO app");
    master.sql("CREATE TABLE then_locked (id INTEGER); GRANT ALL ON then_locked TO app");
    servers.wait_caught_up();
    let rocket = app(&section_of(&servers)).mount("/", routes![both]);
    let client = Client::untracked(rocket).await.unwrap();
    eventually("the slave", async || get(&client).await == "slave-1 (read method)").await;

    let mut locks = sqlx::PgConnection::connect(&master.admin_url()).await.unwrap();
    let mut lock = async |sql: &'static str| sqlx::raw_sql(sql).execute(&mut locks).await.map(drop).unwrap();
    lock("BEGIN; LOCK TABLE then_locked").await;
    // WAL is sent only once it is flushed.
    master.sql("SELECT pg_switch_wal()");
    let locked = "SELECT count(*) FROM pg_locks WHERE relation = 'then_locked'::regclass AND granted";
    eventually("the replayed lock", async || slave.sql(locked) == "1").await;
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%then_locked%'";
    let deadlock = async {
        eventually("the read", async || slave.sql(waiting) == "1").await;
        lock("LOCK TABLE first_locked").await;
        master.sql("SELECT pg_switch_wal()");
        let conflicts = "SELECT confl_deadlock FROM pg_stat_database_conflicts WHERE datname = 'app'";
        eventually("the deadlock", async || slave.sql(conflicts) == "1" || slave.sql(waiting) == "0").await;
        // The read runs at the master now, and waits for this lock.
        lock("COMMIT").await;
    };
    let (response, ()) = tokio::join!(client.get("/both").dispatch(), deadlock);
    assert_eq!(text(response).await, format!("127.0.0.1-{} (slaves unavailable)", master.port()));
}

fn only_slave(lab: &Lab, keys: &str) -> String {
    format!(
        "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"only\", {keys} }}]\n",
        lab.master_url(),
        lab.slave_urls()[0]
    )
}

#[support::async_test]
async fn requests_that_wait_for_a_busy_slave_do_not_leave_it_out() {
    let lab = Lab::new();
    let section = format!("{}slave_timeout = 2\n", only_slave(&lab, "max_connections = 2"));
    let client = client(&section).await;
    let cluster = Replicated::fetch(client.rocket()).unwrap();
    let sleep = || {
        let db = cluster.read(None);
        async move {
            // The connection goes on to the next waiting request all the time.
            let slept = sqlx::query("SELECT pg_sleep(0.5)").execute(&db).await.map(|_| ());
            (slept, db.choice().unwrap().node() == "only")
        }
    };
    let all = rocket::futures::future::join_all((0..40).map(|_| sleep())).await;
    let (by_slave, elsewhere): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, by_slave)| *by_slave);
    assert!(by_slave.iter().all(|(slept, _)| slept.is_ok()));
    assert!(!by_slave.is_empty() && !elsewhere.is_empty(), "{} and {}", by_slave.len(), elsewhere.len());
    assert_eq!(logbook::lines(&["WARN", "`only`"]), Vec::<String>::new());
    assert_eq!(get(&client).await, "only (read method)");
}

#[support::async_test]
async fn a_full_server_is_not_left_out() {
    let lab = Lab::new();
    lab.master()
        .sql("DROP ROLE IF EXISTS limited; CREATE ROLE limited LOGIN PASSWORD 'secret' CONNECTION LIMIT 3");
    let url = lab.master_url().replace("//app:", "//limited:");
    let section = format!("url = \"{url}\"\nmax_connections = 5\nconnect_timeout = 3\n");
    let client = client(&section).await;
    let writer = Replicated::fetch(client.rocket()).unwrap().write();
    let held = (writer.get().await.unwrap(), writer.get().await.unwrap());
    assert!(is_timeout(&writer.get().await.unwrap_err()));
    drop(held);
    // sqlx may try to connect while a connection is on its way back, and then keeps trying.
    eventually("a write", async || sqlx::query("SELECT 1").execute(&writer).await.is_ok()).await;
    assert_eq!(
        logbook::lines(&["WARN", "Leaving it alone", &format!("-{}`", lab.servers().master.port())]),
        Vec::<String>::new()
    );
}

#[support::async_test]
async fn an_error_of_a_query_does_not_leave_its_slave_out() {
    #[get("/unbound")]
    async fn unbound(db: ReplicatedDb) -> Result<String, Error> {
        sqlx::query("SELECT $1::int").fetch_one(&db).await?;
        Ok(db.choice().unwrap().to_string())
    }

    #[get("/overbound")]
    async fn overbound(db: ReplicatedDb) -> Result<String, Error> {
        let ids = vec![1_i32; 70_000];
        let mut query = sqlx::QueryBuilder::<sqlx::Postgres>::new("SELECT 1 WHERE 1 IN (");
        let mut list = query.separated(", ");
        ids.iter().for_each(|id| {
            list.push_bind(id);
        });
        query.push(")").build().fetch_one(&db).await?;
        Ok(db.choice().unwrap().to_string())
    }

    let lab = Lab::new();
    let app = app(&only_slave(&lab, "max_connections = 2")).mount("/", routes![unbound, overbound]);
    let client = Client::untracked(app).await.unwrap();
    for path in ["/unbound", "/overbound"] {
        assert_eq!(text(client.get(path).dispatch().await).await, "500 None", "{path}");
        assert_eq!(get(&client).await, "only (read method)", "{path}");
    }
    assert_eq!(logbook::lines(&["WARN", "`only`", "Leaving it alone"]), Vec::<String>::new());
}

#[support::async_test]
async fn queries_at_the_same_time_never_ask_two_slaves() {
    let lab = Lab::new();
    let slave = |index: usize| {
        format!(
            "{{ url = \"{}\", name = \"slave-{index}\", max_connections = 1 }}",
            lab.slave_urls()[index - 1]
        )
    };
    let section = format!(
        "url = \"{}\"\nslaves = [{}, {}]\nslave_timeout = 0.2\n",
        lab.master_url(),
        slave(1),
        slave(2)
    );
    let client = client(&section).await;
    let db = Replicated::fetch(client.rocket()).unwrap().read(None);
    let slow = sqlx::query("SELECT pg_sleep(1)").execute(&db);
    let quick = async {
        // The second query finds the only connection in use, and has to go elsewhere.
        eventually("the first", async || db.choice().is_some()).await;
        sqlx::query_scalar::<_, bool>("SELECT pg_is_in_recovery()").fetch_one(&db).await.unwrap()
    };
    let (slow, by_slave) = tokio::join!(slow, quick);
    slow.unwrap();
    assert!(!by_slave);
}

#[support::async_test]
async fn a_read_that_may_have_written_does_not_run_twice() {
    let lab = Lab::new();
    let slave = &lab.servers().slaves[0];
    let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    let sql = "SELECT pg_sleep(CASE WHEN pg_is_in_recovery() THEN 60 ELSE 0 END)";
    for (keys, is_run_again) in [("enforce_read_only = true", true), ("enforce_read_only = false", false)] {
        let client = client(&only_slave(&lab, keys)).await;
        let db = Replicated::fetch(client.rocket()).unwrap().read(None);
        let kill = async {
            eventually("the query", async || slave.sql(SLEEPING) == "1").await;
            slave.sql(terminate);
        };
        let (done, ()) = tokio::join!(sqlx::query(sql).execute(&db), kill);
        assert_eq!(done.is_ok(), is_run_again, "{keys}");

        let kill = async {
            eventually("the query", async || slave.sql(SLEEPING) == "1").await;
            slave.sql(terminate);
        };
        eventually("the slave", async || get(&client).await == "only (read method)").await;
        let db = Replicated::fetch(client.rocket()).unwrap().read(None);
        let (done, ()) = tokio::join!(sqlx::raw_sql(sql).execute(&db), kill);
        assert!(done.is_err(), "the simple protocol may hold several statements");
        eventually("the slave", async || get(&client).await == "only (read method)").await;
    }
}

#[support::async_test]
async fn reads_at_the_master_cannot_take_the_connections_of_writers() {
    let lab = Lab::new();
    let section = format!("url = \"{}\"\nmax_connections = 2\nconnect_timeout = 3\n", lab.master_url());
    let client = client(&section).await;
    let crowd = Replicated::fetch(client.rocket()).unwrap().read(None);
    let _held = (crowd.get().await.unwrap(), crowd.get().await.unwrap());
    assert_eq!(get(&client).await, "503 Some(\"1\")");
    for _ in 0..3 {
        assert_eq!(client.post("/").dispatch().await.status(), Status::Ok);
    }
}

#[support::async_test]
async fn reads_at_the_master_use_the_read_url() {
    let lab = Lab::new();
    lab.master().sql("DROP ROLE IF EXISTS reader; CREATE ROLE reader LOGIN PASSWORD 'secret'");
    let url = lab.master_url().replace("//app:", "//reader:");
    let client = client(&format!("url = \"{}\"\nread_url = \"{url}\"\n", lab.master_url())).await;
    let cluster = Replicated::fetch(client.rocket()).unwrap();
    for (db, role) in [(cluster.read(None), "reader"), (cluster.write(), "app")] {
        let user: String = sqlx::query_scalar("SELECT current_user::text").fetch_one(&db).await.unwrap();
        assert_eq!(user, role);
    }
}
