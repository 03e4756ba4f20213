//! `consistency = "position"`: a client that has written reads from a slave that has replayed the write, and never from
//! one that has not.

crate::on_servers! {
    use std::pin::pin;
    use std::time::{Duration, Instant};

    use rocket::http::{Cookie, Status};
    use rocket::local::asynchronous::Client;
    use rocket::serde::json::Json;
    use rocket::tokio;
    use rocket::{get, post, routes};
    use rocket_replicated::Error;

    use support::{Seen, rocket_over};

    /// There is no `max_lag`, because tests hold up the replay of all slaves at once.
    const KEYS: &str = "consistency = \"position\"\nmax_lag = false\ncheck_interval = 0.1\n";

    #[post("/<body>")]
    async fn write(body: &str, db: ReplicatedDb) -> Result<(), Error> {
        sqlx::query(sql("INSERT INTO notes (body) VALUES ($1)")).bind(body.to_owned()).execute(&db).await?;
        Ok(())
    }

    #[get("/")]
    async fn read(db: ReplicatedDb) -> Result<Json<Seen>, Error> {
        let notes = sqlx::query_scalar("SELECT body FROM notes ORDER BY id").fetch_all(&db).await?;
        let choice = db.choice().unwrap();
        let (node, role) = (choice.node().to_owned(), choice.role().to_string());
        Ok(Json(Seen { notes, node, role, reason: format!("{:?}", choice.reason()) }))
    }

    #[get("/?<pin>")]
    async fn continue_from(pin: &str, db: ReplicatedDb) -> Result<Json<Seen>, Error> {
        assert!(db.continue_from(pin));
        read(db).await
    }

    async fn client(lab: &Lab, keys: &str) -> Client {
        let rocket = rocket_over(&format!("{}{KEYS}{keys}", lab.section())).attach(Replicated::fairing());
        Client::untracked(rocket.mount("/", routes![write, read, continue_from])).await.unwrap()
    }

    async fn written(client: &Client, body: &str) -> Cookie<'static> {
        let response = client.post(format!("/{body}")).dispatch().await;
        assert_eq!(response.status(), Status::Ok);
        response.cookies().get("replicated_pin").unwrap().clone()
    }

    async fn seen(client: &Client, pin: Option<&Cookie<'static>>) -> Seen {
        let request = client.get("/");
        let request = match pin {
            Some(pin) => request.cookie(pin.clone()),
            None => request,
        };
        let response = request.dispatch().await;
        assert_eq!(response.status(), Status::Ok);
        response.into_json().await.unwrap()
    }

    #[support::async_test]
    async fn clients_read_their_own_writes_from_a_slave() {
        let lab = Lab::new();
        let client = client(&lab, "catch_up_timeout = 10").await;
        for number in 0..30 {
            let pin = written(&client, &number.to_string()).await;
            let seen = seen(&client, Some(&pin)).await;
            assert_eq!((&*seen.role, &*seen.reason), ("slave", "CaughtUp"));
            assert_eq!(seen.notes.len(), number + 1);
        }
    }

    #[support::async_test]
    async fn a_slave_that_has_not_replayed_the_write_is_not_asked_however_old_the_pin() {
        let lab = Lab::new();
        let client = client(&lab, "lag_window = 0.3\ncatch_up_timeout = 0.02").await;
        lab.pause();
        let pin = written(&client, "mine").await;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(1) {
            let seen = seen(&client, Some(&pin)).await;
            assert_eq!((&*seen.reason, &*seen.notes), ("Pinned", &["mine".to_owned()][..]));
        }
        let stranger = seen(&client, None).await;
        assert_eq!((&*stranger.reason, stranger.notes.len()), ("ReadMethod", 0));

        lab.resume();
        let seen = seen(&client, Some(&pin)).await;
        assert_eq!((&*seen.reason, &*seen.notes), ("CaughtUp", &["mine".to_owned()][..]));
    }

    /// The pin of one device, and its own.
    #[support::async_test]
    async fn two_devices_of_a_user_read_what_either_wrote() {
        let lab = Lab::new();
        let client = client(&lab, "catch_up_timeout = 0.02").await;
        let caught_up = written(&client, "phone").await;
        lab.resume();
        lab.pause();
        let behind = written(&client, "desk").await;
        for (own, others) in [(&caught_up, &behind), (&behind, &caught_up)] {
            let request = client.get(format!("/?pin={}", others.value())).cookie(own.clone());
            let seen: Seen = request.dispatch().await.into_json().await.unwrap();
            assert_eq!((&*seen.reason, seen.notes.len()), ("Pinned", 2));
        }
        lab.resume();
        let request = client.get(format!("/?pin={}", behind.value()));
        let seen: Seen = request.dispatch().await.into_json().await.unwrap();
        assert_eq!((&*seen.reason, seen.notes.len()), ("CaughtUp", 2));
    }

    #[support::async_test]
    async fn a_read_waits_for_a_slave_to_catch_up() {
        let lab = Lab::new();
        let keys = "catch_up_timeout = 15\nslave_timeout = 10\nserver_timing = true";
        let client = client(&lab, keys).await;
        lab.pause();
        let pin = written(&client, "mine").await;
        let begun = Instant::now();
        let mut response = pin!(client.get("/").cookie(pin).dispatch());
        let waited = tokio::time::timeout(Duration::from_millis(300), &mut response).await;
        assert!(waited.is_err(), "{waited:?}");
        lab.resume();
        let response = response.await;
        let took = begun.elapsed().as_secs_f64() * 1e3;
        let timing = response.headers().get_one("Server-Timing").unwrap().to_owned();
        let told: f64 = timing.split_once(";dur=").unwrap().1.parse().unwrap();
        assert!((300.0..=took).contains(&told), "{timing}, in {took} ms");
        let seen: Seen = response.into_json().await.unwrap();
        assert_eq!((&*seen.reason, &*seen.notes), ("CaughtUp", &["mine".to_owned()][..]));
    }

    #[support::async_test]
    async fn a_pin_of_another_write_counts_too() {
        let lab = Lab::new();
        let client = client(&lab, "catch_up_timeout = 10").await;
        lab.pause();
        let pin = written(&client, "mine").await;
        let cluster = Replicated::fetch(client.rocket()).unwrap();
        let writer = cluster.write();
        sqlx::query("INSERT INTO notes (body) VALUES ('later')").execute(&writer).await.unwrap();
        let later = writer.pin().await.unwrap();
        lab.resume();
        for pin in [pin.value(), &later] {
            let reader = cluster.read(Some(pin));
            let notes: Vec<String> =
                sqlx::query_scalar("SELECT body FROM notes ORDER BY id").fetch_all(&reader).await.unwrap();
            assert_eq!(notes, ["mine", "later"]);
            assert_eq!(format!("{:?}", reader.choice().unwrap().reason()), "CaughtUp");
        }
    }
}

mod postgresql {
    use std::time::{Duration, Instant};

    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use rocket_replicated::Cluster;
    use rocket_replicated::postgres::{Database, Replicated, ReplicatedDb};

    use rocket::local::asynchronous::Client;
    use rocket::{Build, Rocket};

    use rocket_replicated_testing::postgres::Postgres;
    use rocket_replicated_testing::{Server, Servers};
    use support::lab::postgres::Lab;
    use support::{eventually, impatient_rocket_over, rocket_over};

    const KEYS: &str =
        "consistency = \"position\"\nmax_lag = false\ncheck_interval = 0.1\ncatch_up_timeout = 10\n";

    async fn launch(section: &str) -> (Client, Cluster<Database>) {
        launched(rocket_over(&format!("{section}{KEYS}"))).await
    }

    async fn launched(rocket: Rocket<Build>) -> (Client, Cluster<Database>) {
        let client = Client::untracked(rocket.attach(Replicated::fairing())).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap().clone();
        (client, cluster)
    }

    /// True if the token has a position, and not only a time.
    fn has_position(token: &str) -> bool {
        URL_SAFE_NO_PAD.decode(token).unwrap()[9] == 1
    }

    /// The writer is told of such a commit before its end is known to be on disk.
    #[support::async_test]
    async fn asynchronous_commits_are_waited_for() {
        let lab = Lab::new();
        let (master, options) = (lab.master_url(), "?options=-csynchronous_commit%3Doff");
        let slaves = lab.slave_urls();
        let section = format!("url = \"{master}{options}\"\nslaves = [\"{}\"]\n", slaves[0]);
        let (_client, cluster) = launch(&section).await;
        for number in 0..20_i64 {
            let writer = cluster.write();
            let insert = sqlx::query("INSERT INTO notes (body) VALUES ($1)").bind(number.to_string());
            insert.execute(&writer).await.unwrap();
            let pin = writer.pin().await.unwrap();
            let reader = cluster.read(Some(&pin));
            let count: i64 =
                sqlx::query_scalar("SELECT count(*) FROM notes").fetch_one(&reader).await.unwrap();
            assert_eq!(count, number + 1);
            assert!(reader.choice().unwrap().to_string().ends_with("(caught up)"));
        }
    }

    /// The next record begins behind the header of the next page, so no slave replays up to exactly the end of a page.
    #[support::async_test]
    async fn the_end_of_a_page_is_caught_up_with() {
        const PAGE: u64 = 8192;

        let servers = Servers::start(Postgres, 1);
        let url =
            |server: &Server<Postgres>| format!("{}?options=-csynchronous_commit%3Doff", server.admin_url());
        let section =
            format!("url = \"{}\"\nslaves = [\"{}\"]\n", url(&servers.master), servers.slaves[0].url());
        let (_client, cluster) = launch(&section).await;
        let writer = cluster.write();
        let offset = async || {
            let sql = "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint";
            sqlx::query_scalar::<_, i64>(sql).fetch_one(&writer).await.unwrap() as u64 % PAGE
        };
        // Writes a record of this length. The overhead is some dozens of bytes.
        let emit = async |len: u64| {
            let sql = "SELECT pg_logical_emit_message(false, 'test', repeat('x', $1::int))";
            sqlx::query(sql).bind(len as i32).execute(&writer).await.unwrap();
        };
        emit(1000).await;
        let mut overhead = None;
        for _ in 0..500 {
            let before = offset().await;
            let len = match overhead {
                Some(overhead) if PAGE - before > overhead + 300 => PAGE - before - overhead,
                _ => 1000,
            };
            emit(len).await;
            let after = offset().await;
            if after == 24 {
                let pin = writer.pin().await.unwrap();
                assert_eq!(offset().await, 24, "nothing was written since");
                assert!(has_position(&pin));
                let reader = cluster.read(Some(&pin));
                sqlx::query("SELECT 1").execute(&reader).await.unwrap();
                assert!(reader.choice().unwrap().to_string().ends_with("(caught up)"));
                return;
            }
            if after > before {
                overhead = Some(after - before - len);
            }
        }
        panic!("no record ended at the end of a page");
    }

    /// The pin's position cannot include writes that are yet to come.
    #[support::async_test]
    async fn a_request_that_may_write_after_the_reply_is_pinned_by_time() {
        #[rocket::post("/<later>")]
        async fn write(later: bool, db: ReplicatedDb) -> Result<(), rocket_replicated::Error> {
            sqlx::query("INSERT INTO notes (body) VALUES (now()::text)").execute(&db).await?;
            if later {
                rocket::tokio::spawn(async move {
                    let _db = db;
                    std::future::pending::<()>().await
                });
            }
            Ok(())
        }

        let lab = Lab::new();
        let rocket = rocket_over(&format!("{}{KEYS}", lab.section())).attach(Replicated::fairing());
        let client = Client::untracked(rocket.mount("/", rocket::routes![write])).await.unwrap();
        for (path, by_position) in [("/false", true), ("/true", false)] {
            eventually("such a pin", async || {
                let response = client.post(path).dispatch().await;
                let pin = response.cookies().get("replicated_pin").unwrap().value().to_owned();
                assert!(by_position || !has_position(&pin));
                has_position(&pin) == by_position
            })
            .await;
        }
    }

    /// The abandoned write goes on at its server. It is committed later than the position that the master's log has
    /// now.
    #[support::async_test]
    async fn an_abandoned_write_leaves_a_window() {
        const SLOW: &str = "INSERT INTO notes (body) SELECT 'slow' FROM pg_sleep(2)";

        let lab = Lab::new();
        let (_client, cluster) = launch(&format!("{}lag_window = 60\n", lab.section())).await;
        let writer = cluster.write();
        sqlx::query("INSERT INTO notes (body) VALUES ('first')").execute(&writer).await.unwrap();
        eventually("a position", async || has_position(&writer.pin().await.unwrap())).await;
        lab.pause();
        let write = sqlx::query(SLOW).execute(&writer);
        let given_up = rocket::tokio::time::timeout(Duration::from_millis(500), write).await;
        assert!(given_up.is_err(), "{given_up:?}");
        let pin = writer.pin().await.unwrap();
        assert!(!has_position(&pin));
        eventually("the row", async || {
            let reader = cluster.read(Some(&pin));
            let notes: Vec<String> =
                sqlx::query_scalar("SELECT body FROM notes ORDER BY id").fetch_all(&reader).await.unwrap();
            notes == ["first", "slow"]
        })
        .await;
    }

    /// The same holds on a connection that the handler holds, and for a commit.
    #[support::async_test]
    async fn an_abandoned_write_on_a_held_connection_leaves_a_window() {
        const SLOW: &str = "INSERT INTO notes (body) SELECT 'slow' FROM pg_sleep(2)";
        const SLOW_COMMIT: &str = "
            CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(2); RETURN NULL; END';
            CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON notes DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW WHEN (NEW.body = 'slow commit') EXECUTE FUNCTION slow()";

        let lab = Lab::new();
        lab.sql(SLOW_COMMIT);
        let (_client, cluster) = launch(&format!("{}lag_window = 60\n", lab.section())).await;
        let soon = Duration::from_millis(500);
        let (held, committed) = (cluster.write(), cluster.write());
        for (writer, body) in [(&held, "one"), (&committed, "two")] {
            sqlx::query("INSERT INTO notes (body) VALUES ($1)").bind(body).execute(writer).await.unwrap();
            eventually("a position", async || has_position(&writer.pin().await.unwrap())).await;
        }

        let mut connection = held.get().await.unwrap();
        sqlx::query("INSERT INTO notes (body) VALUES ('in time')").execute(&mut *connection).await.unwrap();
        eventually("a position", async || has_position(&held.pin().await.unwrap())).await;
        let write = sqlx::query(SLOW).execute(&mut *connection);
        assert!(rocket::tokio::time::timeout(soon, write).await.is_err());
        drop(connection);
        assert!(!has_position(&held.pin().await.unwrap()));

        // Statements on the driver's own connection are not seen.
        let raw = cluster.write();
        sqlx::query("INSERT INTO notes (body) VALUES ('three')").execute(&raw).await.unwrap();
        eventually("a position", async || has_position(&raw.pin().await.unwrap())).await;
        let mut connection = raw.get().await.unwrap();
        let driver: &mut sqlx::PgConnection = &mut connection;
        sqlx::query("INSERT INTO notes (body) VALUES ('four')").execute(driver).await.unwrap();
        assert!(!has_position(&raw.pin().await.unwrap()));

        let mut transaction = committed.begin().await.unwrap();
        let insert = sqlx::query("INSERT INTO notes (body) VALUES ('slow commit')");
        insert.execute(&mut *transaction).await.unwrap();
        assert!(rocket::tokio::time::timeout(soon, transaction.commit()).await.is_err());
        assert!(!has_position(&committed.pin().await.unwrap()));
        eventually("both rows", async || {
            lab.sql("SELECT count(*) FROM notes WHERE body LIKE 'slow%'") == "2"
        })
        .await;
    }

    #[support::async_test]
    async fn a_position_that_is_not_known_in_time_leaves_a_window() {
        let servers = Servers::start(Postgres, 1);
        let (master, slave) = (&servers.master, &servers.slaves[0]);
        master.sql("CREATE TABLE notes (id INTEGER); GRANT ALL ON notes TO app");
        servers.wait_caught_up();
        let section = format!("url = \"{}\"\nslaves = [\"{}\"]\n", master.url(), slave.url());
        let (_client, cluster) = launched(impatient_rocket_over(&format!("{section}{KEYS}"))).await;
        let writer = cluster.write();
        sqlx::query("INSERT INTO notes VALUES (1)").execute(&writer).await.unwrap();
        eventually("a position", async || has_position(&writer.pin().await.unwrap())).await;

        master.freeze();
        let begun = Instant::now();
        let pin = writer.pin().await.unwrap();
        assert!(!has_position(&pin) && begun.elapsed() < Duration::from_secs(5));
        master.thaw();
        eventually("a read at the master", async || {
            let reader = cluster.read(Some(&pin));
            sqlx::query("SELECT 1").execute(&reader).await.unwrap();
            reader.choice().unwrap().to_string().ends_with("(pinned)")
        })
        .await;
    }
}

mod many_sources_on_mysql {
    use std::time::{Duration, Instant};

    use rocket::http::{Cookie, Status};
    use rocket::local::asynchronous::Client;
    use rocket::tokio;
    use rocket::{get, post, routes};
    use rocket_replicated::mysql::{Replicated, ReplicatedDb};
    use rocket_replicated::{Error, Reason};

    use rocket_replicated_testing::Servers;
    use rocket_replicated_testing::mysql::MySql;
    use support::{logbook, rocket_over};

    #[post("/")]
    async fn write(db: ReplicatedDb) -> Result<(), Error> {
        sqlx::query("INSERT INTO notes VALUES (1)").execute(&db).await?;
        Ok(())
    }

    #[get("/")]
    async fn read(db: ReplicatedDb) -> Result<String, Error> {
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM notes").fetch_one(&db).await?;
        Ok(format!("{count} {:?}", db.choice().unwrap().reason()))
    }

    async fn written(client: &Client, before: Option<Cookie<'static>>) -> Cookie<'static> {
        let response = client.post("/").cookies(before).dispatch().await;
        assert_eq!(response.status(), Status::Ok);
        let cookie = response.cookies().get("replicated_pin").unwrap().clone();
        // https://www.rfc-editor.org/rfc/rfc6265#section-6.1
        assert!(cookie.to_string().len() < 4096, "{cookie}");
        cookie
    }

    async fn seen(client: &Client, pin: &Cookie<'static>) -> String {
        client.get("/").cookie(pin.clone()).dispatch().await.into_string().await.unwrap()
    }

    /// Writes until a slave is known to have caught up with the pin. Returns the number of rows.
    async fn until_caught_up(
        client: &Client,
        servers: &Servers<MySql>,
        before: Option<&Cookie<'static>>,
        mut count: usize,
    ) -> usize {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let pin = written(client, before.cloned()).await;
            count += 1;
            servers.wait_caught_up();
            let seen = seen(client, &pin).await;
            if seen == format!("{count} {:?}", Reason::CaughtUp) {
                return count;
            }
            assert_eq!(seen, format!("{count} {:?}", Reason::Pinned));
            assert!(Instant::now() < deadline, "no pin has carried a position");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// As on a cluster that has had a hundred masters.
    #[support::async_test]
    async fn a_pin_carries_the_latest_writes_of_many_sources() {
        let servers = Servers::start(MySql::default(), 1);
        servers.master.sql("CREATE TABLE notes (id INTEGER)");
        servers.master.write_from_many_sources();
        servers.wait_caught_up();
        let section = format!(
            "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"slave-1\" }}]\nconsistency = \"position\"\n\
             max_lag = false\nlag_window = 0.5\npin.max_age = 2\ncheck_interval = 0.1\ncatch_up_timeout = 0.1\n",
            servers.master.url(),
            servers.slaves[0].url(),
        );
        let rocket = rocket_over(&section).attach(Replicated::fairing()).mount("/", routes![write, read]);
        let client = Client::untracked(rocket).await.unwrap();

        // At first it is not known which transactions were there long ago.
        let pin = written(&client, None).await;
        servers.wait_caught_up();
        assert_eq!(seen(&client, &pin).await, format!("1 {:?}", Reason::Pinned));
        assert_eq!(logbook::lines(&["WARN", "too large for pins"]).len(), 1);

        let count = until_caught_up(&client, &servers, None, 1).await;

        servers.slaves[0].pause_replay();
        let first = written(&client, None).await;
        let second = written(&client, Some(first.clone())).await;
        for pin in [&first, &second] {
            assert_eq!(seen(&client, pin).await, format!("{} {:?}", count + 2, Reason::Pinned));
        }
        servers.slaves[0].resume_replay();
        until_caught_up(&client, &servers, Some(&second), count + 2).await;
    }
}
