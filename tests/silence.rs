//! The log lines that operators get, and those that they are spared.

use std::time::Duration;

use rocket::http::Cookie;
use rocket::local::asynchronous::{Client, LocalResponse};
use rocket::tokio::time::sleep;
use rocket::{Build, Rocket, get, post, routes};
use rocket_replicated::postgres::{Replicated, ReplicatedDb};
use rocket_replicated::{Database, Error, NodeState, ReadsDatabase, postgres};

use rocket_replicated_testing::Servers;
use rocket_replicated_testing::postgres::Postgres;
use support::lab::postgres::Lab;
use support::{eventually, logbook, rocket, rocket_over};

#[post("/write")]
async fn write(db: ReplicatedDb) -> Result<(), Error> {
    sqlx::query("INSERT INTO notes (body) VALUES ('x')").execute(&db).await?;
    Ok(())
}

#[get("/read")]
async fn read(db: ReplicatedDb) -> Result<(), Error> {
    sqlx::query("SELECT id FROM notes").execute(&db).await?;
    Ok(())
}

#[post("/searches")]
async fn searches(_reads: ReadsDatabase, db: ReplicatedDb) -> String {
    sqlx::query("INSERT INTO notes (body) VALUES ('x')").execute(&db).await.unwrap_err().to_string()
}

#[get("/searches")]
async fn gets(_reads: ReadsDatabase, db: ReplicatedDb) -> String {
    sqlx::query("INSERT INTO notes (body) VALUES ('x')").execute(&db).await.unwrap_err().to_string()
}

/// Deadlocks on a connection that it holds itself.
#[post("/entangled")]
async fn entangled(db: ReplicatedDb) -> String {
    let _transaction = db.begin().await.unwrap();
    sqlx::query("SELECT 1").execute(&db).await.unwrap_err().to_string()
}

static REPLIED: rocket::tokio::sync::Notify = rocket::tokio::sync::Notify::const_new();

/// Writes after the reply has left.
#[get("/late")]
async fn late(db: ReplicatedDb) {
    rocket::tokio::spawn(async move {
        REPLIED.notified().await;
        db.changes_database();
        sqlx::query("SELECT 1").execute(&db).await.unwrap();
    });
}

fn app(section: &str) -> Rocket<Build> {
    let routes = routes![write, read, searches, gets, entangled, late];
    rocket_over(section).attach(Replicated::fairing()).mount("/", routes)
}

async fn client(section: &str) -> Client {
    Client::untracked(app(section)).await.unwrap()
}

async fn text(response: LocalResponse<'_>) -> String {
    response.into_string().await.unwrap()
}

#[support::async_test]
async fn a_pin_that_is_signed_with_another_key_is_warned_of_once_a_minute() {
    let lab = Lab::new();
    let of = async |key: char| {
        let figment = app(&lab.section()).figment().clone();
        let key = key.to_string().repeat(64);
        let rocket = app(&lab.section()).configure(figment.merge(("secret_key", key)));
        Client::untracked(rocket).await.unwrap()
    };
    let (first, second) = (of('1').await, of('2').await);
    let pin =
        first.post("/write").dispatch().await.cookies().get("replicated_pin").unwrap().value().to_owned();
    let pin = || Cookie::new("replicated_pin", pin.clone());
    first.get("/read").cookie(pin()).dispatch().await;
    assert_eq!(logbook::lines(&["is not believed (foreign)"]), [""; 0]);
    for _ in 0..3 {
        second.get("/read").cookie(pin()).dispatch().await;
    }
    let said =
        logbook::lines(&["WARN", "database `replicated` is not believed (foreign)", "one `secret_key`"]);
    assert_eq!(said.len(), 1, "{said:?}");
}

#[support::async_test]
async fn drills_and_their_ends_are_logged_alike() {
    let lab = Lab::new();
    let client = client(&lab.section().replace("slave-1", "louder")).await;
    let cluster = Replicated::fetch(client.rocket()).unwrap();
    cluster.take_out("louder").unwrap();
    cluster.put_back("louder").unwrap();
    cluster.stop_reading_slaves();
    cluster.resume_reading_slaves();
    for said in [
        "slave `louder` of database `replicated` was taken out",
        "`louder` of database `replicated` was put back",
    ] {
        assert_eq!(logbook::lines(&["WARN", said]).len(), 1, "{said}");
    }
    for said in ["none", "all"]
        .map(|share| format!("database `replicated` that go to slaves were changed to: {share}."))
    {
        assert!(!logbook::lines(&["WARN", &said]).is_empty(), "{said}");
    }
}

#[derive(Database)]
#[database("blog")]
struct Blog(postgres::Pool);

#[derive(Database)]
#[database("shop")]
struct Shop(postgres::Pool);

#[get("/fails/<shop>")]
async fn fails(
    shop: bool,
    of_blog: rocket_replicated::ReplicatedDb<Blog>,
    of_shop: rocket_replicated::ReplicatedDb<Shop>,
) -> Result<(), Error> {
    let query = sqlx::query("SELECT missing");
    if shop {
        query.execute(&of_shop).await?
    } else {
        query.execute(&of_blog).await?
    };
    Ok(())
}

#[support::async_test]
async fn with_two_databases_every_line_names_its_own() {
    let lab = Lab::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let section = |database| {
        format!(
            "[debug.databases.{database}]\nurl = \"{}\"\nslaves = [{{ url = \"postgres://app@127.0.0.1:{port}/app\", \
             name = \"twin\" }}]\npin.name = \"{database}_pin\"\n",
            lab.master_url()
        )
    };
    let rocket = rocket(&format!("{}{}", section("blog"), section("shop")))
        .attach(rocket_replicated::Replicated::<Blog>::fairing())
        .attach(rocket_replicated::Replicated::<Shop>::fairing())
        .mount("/two", routes![fails]);
    let client = Client::untracked(rocket).await.unwrap();
    for database in ["blog", "shop"] {
        let said =
            logbook::lines(&["WARN", &format!("slave `twin` of database `{database}` cannot be used")]);
        assert_eq!(said.len(), 1, "{said:?}");
    }
    for (path, database) in [("/two/fails/false", "blog"), ("/two/fails/true", "shop")] {
        client.get(path).dispatch().await;
        let said = logbook::lines(&["ERROR", &format!("(`fails`), database `{database}`: "), "missing"]);
        assert_eq!(said.len(), 1, "{said:?}");
    }
    let cluster = rocket_replicated::Replicated::<Shop>::fetch(client.rocket()).unwrap();
    sqlx::query("SELECT 'of the shop', pg_sleep(1.01)").execute(&cluster.write()).await.unwrap();
    let said = logbook::lines(&["WARN", "low statement", "'of the shop'"]);
    assert!(said.len() == 1 && said[0].contains("of database `shop`"), "{said:?}");
    drop(client);
    let is_anonymous = |line: &&String| !line.contains("database `");
    let of_servers = logbook::lines(&["slave `"]).into_iter().chain(logbook::lines(&["master `"]));
    let anonymous: Vec<_> = of_servers.filter(|line| is_anonymous(&line)).collect();
    assert_eq!(anonymous, [""; 0]);
}

#[support::async_test]
async fn a_login_that_is_refused_at_launch_is_no_outage() {
    let lab = Lab::new();
    let wrong = lab.slave_urls()[0].replace(":secret@", ":hunter2@");
    let client = client(&format!(
        "url = \"{}\"\nslaves = [{{ url = \"{wrong}\", name = \"unlucky\" }}]",
        lab.master_url()
    ))
    .await;
    let said =
        logbook::lines(&["ERROR", "`unlucky` of database `replicated` answers, but refuses the login"]);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].contains("password authentication failed") && said[0].contains("This is no outage"),
        "{said:?}"
    );
    assert_eq!(logbook::lines(&["`unlucky`", "cannot be used"]), [""; 0]);
    assert_eq!(logbook::lines(&["hunter2"]), [""; 0]);
    let status = Replicated::fetch(client.rocket()).unwrap().status();
    assert_eq!(status[1].state, NodeState::Down);
}

#[support::async_test]
async fn a_login_that_is_refused_later_is_no_outage() {
    let servers = Servers::start(Postgres, 1);
    let (master, slave) = (&servers.master, &servers.slaves[0]);
    master.sql("CREATE ROLE moody LOGIN PASSWORD 'secret'");
    servers.wait_caught_up();
    let client = client(&format!(
        "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"moody\" }}]\ncheck_interval = 0.05",
        master.url(),
        slave.url().replace("//app:", "//moody:")
    ))
    .await;
    let cluster = Replicated::fetch(client.rocket()).unwrap();
    assert_eq!(cluster.status()[1].state, NodeState::Up);
    let end_sessions =
        || slave.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'moody'");
    let lines =
        || logbook::lines(&["ERROR", "`moody` of database `replicated` answers, but refuses the login"]);

    master.sql("ALTER ROLE moody NOLOGIN");
    servers.wait_caught_up();
    end_sessions();
    eventually("word of it", async || !lines().is_empty()).await;
    master.sql("ALTER ROLE moody LOGIN");
    eventually("its return", async || cluster.status()[1].state == NodeState::Up).await;
    assert_eq!(logbook::lines(&["WARN", "`moody` of database `replicated` is back"]).len(), 1);

    // A real outage is still called one.
    slave.kill();
    eventually("an outage", async || cluster.status()[1].state == NodeState::Down).await;
    assert!(!logbook::lines(&["WARN", "`moody`", "cannot be used"]).is_empty());
    assert_eq!(lines().len(), 1);
}

#[support::async_test]
async fn an_outage_after_a_refused_login_is_told_apart_and_its_end_as_well() {
    let servers = Servers::start(Postgres, 1);
    let (master, slave) = (&servers.master, &servers.slaves[0]);
    master.sql("CREATE ROLE fickle NOLOGIN PASSWORD 'secret'");
    servers.wait_caught_up();
    let client = client(&format!(
        "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"fickle\" }}]\ncheck_interval = 0.05",
        master.url(),
        slave.url().replace("//app:", "//fickle:")
    ))
    .await;
    let cluster = Replicated::fetch(client.rocket()).unwrap();
    assert_eq!(cluster.status()[1].state, NodeState::Down);
    let lines =
        |level, words| logbook::lines(&[level, "slave `fickle` of database `replicated`", words]).len();
    assert_eq!((lines("ERROR", "refuses the login"), lines("WARN", "cannot be used")), (1, 0));

    slave.kill();
    // The role may log in again before its server is back.
    master.sql("ALTER ROLE fickle LOGIN");
    eventually("an outage", async || lines("WARN", "cannot be used, now for another reason") == 1).await;
    assert_eq!(lines("WARN", "is back"), 0);
    slave.start();
    eventually("its return", async || cluster.status()[1].state == NodeState::Up).await;
    assert_eq!(lines("WARN", "is back"), 1);
}

#[support::async_test]
async fn sqlx_logs_nothing_about_a_server_without_its_name() {
    let servers = Servers::start(Postgres, 1);
    let client = client(&format!(
        "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"quiet\" }}]\ncheck_interval = 0.05",
        servers.master.url(),
        servers.slaves[0].url()
    ))
    .await;
    let cluster = Replicated::fetch(client.rocket()).unwrap();
    // Four connections: an idle one, one that is kept, one that a handler holds, and one that a library holds.
    let (kept, held, lent) = (cluster.read(None), cluster.read(None), cluster.read(None));
    let held_conn = held.get().await.unwrap();
    let lent_conn = lent.get().await.unwrap().into_inner();
    sqlx::query("SELECT 1").execute(&kept).await.unwrap();
    sqlx::query("SELECT 1").execute(&cluster.read(None)).await.unwrap();
    servers.slaves[0].kill();
    drop((held_conn, lent_conn));
    sqlx::query("SELECT 1").execute(&kept).await.unwrap();
    eventually("word of it", async || cluster.status()[1].state == NodeState::Down).await;
    servers.slaves[0].start();
    eventually("its return", async || cluster.status()[1].state == NodeState::Up).await;
    sqlx::query("SELECT 1").execute(&cluster.read(None)).await.unwrap();
    for said in ["before_acquire", "on-release", "after_release", "ping on idle connection"] {
        assert_eq!(logbook::lines(&[said]), [""; 0]);
    }
}

#[support::async_test]
async fn a_slow_statement_is_warned_of_and_not_a_slow_reader() {
    use rocket::futures::TryStreamExt;

    let lab = Lab::new();
    let client = client(&lab.section()).await;
    let db = Replicated::fetch(client.rocket()).unwrap().read(None);
    let slow = || logbook::lines(&["WARN: Slow statement on the slave `slave-"]);
    let mut rows = sqlx::query("SELECT generate_series(1, 2)").fetch(&db);
    rows.try_next().await.unwrap();
    sleep(Duration::from_millis(1100)).await;
    while rows.try_next().await.unwrap().is_some() {}
    drop(rows);
    assert_eq!(slow(), [""; 0]);

    sqlx::query("SELECT pg_sleep(1.1),\n    2").execute(&db).await.unwrap();
    let told = slow();
    let [line] = &told[..] else { panic!("{told:?}") };
    assert!(line.contains("` of database `replicated`: 1."), "{line}");
    assert!(line.ends_with(" s for SELECT pg_sleep(1.1), 2"), "{line}");
}

/// The outage of the master has a line of its own.
#[support::async_test]
async fn failed_requests_do_not_flood_the_log_during_an_outage() {
    let servers = Servers::start(Postgres, 0);
    let section = format!("url = \"{}\"\nname = \"drowned\"\ncheck_interval = 0.1\n", servers.master.url());
    let client = client(&section).await;
    let cluster = Replicated::fetch(client.rocket()).unwrap();
    servers.master.kill();
    eventually("its end", async || cluster.status()[0].state == NodeState::Down).await;
    for _ in 0..50 {
        assert_eq!(client.post("/write").dispatch().await.status().code, 503);
    }
    let said = logbook::lines(&[
        "WARN: POST /write (`write`), database `replicated`",
        "master `drowned`",
        "cannot be reached",
    ]);
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(logbook::lines(&["master `drowned`", "Leaving it alone until it answers"]).len(), 1);
}

#[support::async_test]
async fn a_write_after_the_reply_names_its_route() {
    let lab = Lab::new();
    let client = client(&lab.section()).await;
    client.get("/late").dispatch().await;
    REPLIED.notify_one();
    let said = || {
        logbook::lines(&["WARN", "Database `replicated`", "after the reply of GET /late (`late`) has left"])
    };
    eventually("word of it", async || said().len() == 1).await;
}

#[support::async_test]
async fn the_error_of_a_write_under_a_reads_guard_names_the_remedy() {
    let lab = Lab::new();
    let client = client(&lab.section()).await;
    let error = text(client.post("/searches").dispatch().await).await;
    assert!(
        error.contains("remove its `ReadsDatabase` guard") && !error.contains("ChangesDatabase"),
        "{error}"
    );
    let error = text(client.get("/searches").dispatch().await).await;
    assert!(error.contains("a `ChangesDatabase` guard in place of its `ReadsDatabase` guard"), "{error}");
    let job = Replicated::fetch(client.rocket()).unwrap().read(None);
    let error =
        sqlx::query("INSERT INTO notes (body) VALUES ('x')").execute(&job).await.unwrap_err().to_string();
    assert!(error.contains("write over `Cluster::write`"), "{error}");
}

#[support::async_test]
async fn a_pool_timeout_names_the_holders_of_connections_and_a_deadlock() {
    let lab = Lab::new();
    let section =
        format!("{}name = \"crowded\"\nmax_connections = 1\nconnect_timeout = 2\n", lab.section_alone());
    let client = client(&section).await;
    let error = text(client.post("/entangled").dispatch().await).await;
    for part in [
        "no connection for writes to the master `crowded",
        "of database `replicated` became free within 2s: 1 of 1 are in use, one of them by `entangled` for ",
        "0 more wait",
        "The request that waits holds one itself, by `get()` or `begin()`",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
    let said = logbook::lines(&["WARN", "No connection for writes", "by `entangled`", "holds one itself"]);
    assert_eq!(said.len(), 1, "{said:?}");

    // Other requests are told of the holder, but not that they hold a connection themselves.
    let cluster = Replicated::fetch(client.rocket()).unwrap();
    let _held = cluster.write().get().await.unwrap();
    let writers = [cluster.write(), cluster.write(), cluster.write()];
    let wait = async |writer: &ReplicatedDb| writer.get().await.unwrap_err().to_string();
    let errors = rocket::tokio::join!(wait(&writers[0]), wait(&writers[1]), wait(&writers[2]));
    let errors = <[String; 3]>::from(errors);
    assert!(errors.iter().all(|error| error.contains("1 of 1 are in use, one of them for ")), "{errors:?}");
    assert!(errors.iter().any(|error| error.contains("; 2 more wait")), "the first one: {errors:?}");
    assert!(!errors.iter().any(|error| error.contains("holds one itself")), "{errors:?}");
    let said = logbook::lines(&["WARN", "No connection for writes to the master `crowded`"]);
    assert_eq!(said.len(), 1, "once in ten seconds: {said:?}");
}

#[support::async_test]
async fn a_request_is_one_line_at_debug_level_and_none_above() {
    #[get("/thrice/<_secret>")]
    async fn thrice(_secret: &str, db: ReplicatedDb) -> Result<(), Error> {
        for _ in 0..3 {
            sqlx::query("SELECT pg_sleep(0.002)").execute(&db).await?;
        }
        Ok(())
    }

    let lab = Lab::new();
    let client = Client::untracked(app(&lab.section()).mount("/", routes![thrice])).await.unwrap();
    client.get("/thrice/hunter2").dispatch().await;
    assert_eq!(logbook::lines(&["thrice"]), [""; 0]);
    logbook::open_with_details();
    client.get("/thrice/hunter2").dispatch().await;
    let job = Replicated::fetch(client.rocket()).unwrap().read(None);
    sqlx::query("SELECT 1").execute(&job).await.unwrap();
    drop(job);
    let said = logbook::lines(&["thrice"]);
    let [line] = &said[..] else { panic!("{said:?}") };
    assert!(
        line.starts_with("DEBUG: GET /thrice/<_secret> (`thrice`) asked database `replicated`: slave-"),
        "{line}"
    );
    let millis = line.split("(read method), ").nth(1).and_then(|rest| rest.strip_suffix(" ms."));
    assert!(millis.unwrap().parse::<f64>().unwrap() >= 6.0, "{line}");
    assert_eq!(logbook::lines(&["DEBUG: A job asked database `replicated`: slave-"]).len(), 1);
}
