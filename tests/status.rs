//! The status page: its access, its content, and the drills that operators can order there.

use rocket::http::uri::Host;
use rocket::http::{ContentType, Header, Status};
use rocket::local::asynchronous::{Client, LocalResponse};
use rocket::request::{FromRequest, Outcome, Request};
use rocket::tokio::io::AsyncReadExt;

/// An operator, by a header.
struct Admin;

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Admin {
    type Error = ();

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, ()> {
        match request.headers().get_one("Admin") {
            Some(_) => Outcome::Success(Self),
            None => Outcome::Error((Status::Forbidden, ())),
        }
    }
}

fn admin() -> Header<'static> {
    Header::new("Admin", "yes")
}

const STYLE: &str = concat!("/status/", env!("CARGO_PKG_VERSION"), "/status.css");
const SCRIPT: &str = concat!("/status/", env!("CARGO_PKG_VERSION"), "/status.js");

async fn get<'c>(client: &'c Client, path: &'c str) -> LocalResponse<'c> {
    client.get(path).header(admin()).dispatch().await
}

async fn text(client: &Client, path: &str) -> String {
    get(client, path).await.into_string().await.unwrap()
}

async fn json(client: &Client, path: &str) -> serde_json::Value {
    serde_json::from_str(&text(client, path).await).unwrap()
}

/// The first event that a listener gets.
async fn first_event(events: &mut LocalResponse<'_>) -> String {
    let mut told = Vec::new();
    while !told.ends_with(b"\n\n") {
        assert_ne!(events.read_buf(&mut told).await.unwrap(), 0, "ended: {}", String::from_utf8_lossy(&told));
    }
    String::from_utf8(told).unwrap()
}

/// Sends the page's form.
async fn post<'c>(
    client: &'c Client,
    form: &'c str,
    headers: &[(&'static str, &'static str)],
) -> LocalResponse<'c> {
    let mut request = client.post("/status/drills").header(ContentType::Form).header(admin()).body(form);
    for (name, value) in headers {
        match *name {
            // Rocket's local client does not take the host from the headers.
            "Host" => request.inner_mut().set_host(Host::parse(value).unwrap()),
            name => request = request.header(Header::new(name, *value)),
        }
    }
    request.dispatch().await
}

crate::on_every_database! {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use rocket::figment::providers::{Format, Toml};
    use rocket::tokio::time::timeout;
    use rocket::{Build, Rocket, post as route_post, routes};
    use rocket_replicated::{Cluster, Error, NodeState, Role};

    use super::{Admin, SCRIPT, STYLE, admin, first_event, get, json, post, text};
    use support::{logbook, rocket_over};
    use rocket::http::{Header, Status};
    use rocket::local::asynchronous::Client;

    #[route_post("/notes")]
    async fn write(db: ReplicatedDb) -> Result<(), Error> {
        sqlx::query("INSERT INTO notes (id, body) VALUES (1, 'written')").execute(&db).await?;
        Ok(())
    }

    fn rocket(lab: &Lab) -> Rocket<Build> {
        rocket_over(&lab.section()).attach(Replicated::fairing()).mount("/", routes![write])
    }

    async fn launch(lab: &Lab) -> (Client, Cluster<Database>) {
        let rocket = rocket(lab).mount("/status", Replicated::status::<Admin>().with_drills());
        let client = Client::untracked(rocket).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap().clone();
        (client, cluster)
    }

    #[support::async_test]
    async fn a_client_that_the_guard_refuses_sees_only_the_health() {
        let lab = Lab::new();
        let (client, cluster) = launch(&lab).await;
        for path in ["/status", "/status/events", "/status/status.json", STYLE, SCRIPT] {
            assert_eq!(client.get(path).dispatch().await.status(), Status::Forbidden, "{path}");
            assert_eq!(get(&client, path).await.status(), Status::Ok, "{path}");
        }
        let order = client
            .post("/status/drills")
            .header(rocket::http::ContentType::Form)
            .header(Header::new("Sec-Fetch-Site", "same-origin"))
            .body("drill=take_out&slave=slave-1");
        assert_eq!(order.dispatch().await.status(), Status::Forbidden);
        assert!(cluster.status().iter().all(|node| node.state == NodeState::Up));

        let health = client.get("/status/health").dispatch().await;
        assert_eq!(health.status(), Status::Ok);
        assert_eq!(health.into_string().await.unwrap(), r#"{"reads":true,"writes":true}"#);
    }

    #[support::async_test]
    async fn a_page_that_is_open_to_everybody_is_for_the_debug_profile() {
        let lab = Lab::new();
        let open = rocket(&lab).mount("/status", Replicated::status_open_to_everybody());
        let client = Client::untracked(open).await.unwrap();
        assert_eq!(client.get("/status").dispatch().await.status(), Status::Ok);

        let key = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
        let release = || {
            logbook::open();
            let section = format!("[release]\nsecret_key = \"{key}\"\n[release.databases.replicated]\n{}", lab.section());
            let figment = rocket::figment::Figment::from(rocket::Config::release_default())
                .merge(Toml::string(&section).nested())
                .select("release");
            rocket::custom(figment).attach(Replicated::fairing())
        };
        let open = release().mount("/status", Replicated::status_open_to_everybody());
        let error = Client::untracked(open).await.unwrap_err();
        assert!(matches!(error.kind(), rocket::error::ErrorKind::SentinelAborts(_)), "{error}");
        let line = ["ERROR", "open to everybody, in profile `release`", "Mount `Replicated::status::<Admin>()` instead"];
        assert!(!logbook::lines(&line).is_empty());

        let guarded = release().mount("/status", Replicated::status::<Admin>());
        let client = Client::untracked(guarded).await.unwrap();
        assert_eq!(client.get("/status").dispatch().await.status(), Status::Forbidden);
    }

    #[support::async_test]
    async fn a_page_without_its_database_does_not_launch() {
        let lab = Lab::new();
        let rocket = rocket_over(&lab.section()).mount("/status", Replicated::status::<Admin>());
        let error = Client::untracked(rocket).await.unwrap_err();
        assert!(matches!(error.kind(), rocket::error::ErrorKind::SentinelAborts(_)), "{error}");
        assert!(!logbook::lines(&["ERROR", "status page", "the database is not attached"]).is_empty());
    }

    #[support::async_test]
    async fn the_page_shows_the_states_of_servers_and_the_reasons_of_choices() {
        let lab = Lab::new();
        let (client, cluster) = launch(&lab).await;
        for _ in 0..4 {
            sqlx::query("SELECT id FROM notes").fetch_all(&cluster.read(None)).await.unwrap();
        }
        cluster.take_out("slave-2").unwrap();

        let page = text(&client, "/status").await;
        for text in ["slave-1", "slave-2", "taken out", "reads database", "max_connections", "2 of 3 servers are up"] {
            assert!(page.contains(text), "{text}: {page}");
        }
        let status = json(&client, "/status/status.json").await;
        let servers = status["servers"].as_array().unwrap();
        let is = |of: &str| servers.iter().map(|server| server[of].as_str().unwrap().to_owned()).collect::<Vec<_>>();
        assert_eq!(is("role"), ["master", "slave", "slave"]);
        assert_eq!(is("state"), ["up", "up", "taken out"]);
        assert_eq!(status["choices"]["reads database"], 4);
        assert_eq!(status["latest_choices"]["reads database"], 4);
        assert_eq!(status["changes"][0]["server"], "slave-2");
        assert_eq!(status["changes"][0]["state"], "taken out");
        assert_eq!(status["database"], "replicated");
        assert!(servers[0]["connections"].as_array().unwrap().len() >= 2, "{servers:?}");
    }

    #[support::async_test]
    async fn the_page_exports_all_metrics() {
        let lab = Lab::new();
        let (client, cluster) = launch(&lab).await;
        assert_eq!(client.get("/status/metrics").dispatch().await.status(), Status::Forbidden);
        for expected in 2..4 {
            sqlx::query("SELECT id FROM notes").fetch_all(&cluster.write()).await.unwrap();
            let reply = get(&client, "/status/metrics").await;
            let kind = reply.content_type().unwrap();
            assert_eq!(kind.to_string(), "application/openmetrics-text; version=1.0.0; charset=utf-8");
            let text = reply.into_string().await.unwrap();
            for name in rocket_replicated::internals::metrics() {
                assert!(text.contains(&format!("# TYPE {}", name.replace('.', "_"))), "{name}: {text}");
            }
            let count = expected - 1;
            let choices = format!("role=\"master\",reason=\"changes database\"}} {count}\n");
            assert!(text.contains(&choices), "each scrape has all since launch: {text}");
            assert!(text.contains("db_client_connection_wait_time_seconds_bucket{") && text.ends_with("# EOF\n"), "{text}");
        }
    }

    #[support::async_test]
    async fn the_page_has_no_foreign_or_inline_content() {
        let lab = Lab::new();
        let (client, _) = launch(&lab).await;
        let page = get(&client, "/status").await;
        let policy = page.headers().get_one("Content-Security-Policy").unwrap().to_owned();
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self';"), "{policy}");
        assert!(!policy.contains("unsafe") && policy.contains("frame-ancestors 'none'"), "{policy}");
        let page = page.into_string().await.unwrap();
        for inline in ["<style", " style=", "<script>", " onclick=", "javascript:", "http://", "https://", "//"] {
            assert!(!page.contains(inline), "{inline}: {page}");
        }
        for asset in [STYLE, SCRIPT, "/status/icon.svg"] {
            assert!(page.contains(&format!("\"{asset}\"")), "{asset}: {page}");
            assert_eq!(get(&client, asset).await.status(), Status::Ok, "{asset}");
        }
    }

    #[support::async_test]
    async fn no_password_no_key_and_no_pin_is_in_any_outlet() {
        let lab = Lab::new();
        let key = "c2VjcmV0LWtleS1vZi10aGlzLXRlc3Qtb2YtdGhlLXN0YXR1cy1wYWdlLTEyMzQ1Njc4OTAxMjM0NTY3ODkwMQ==";
        let previous = "0ff1ce11".repeat(8);
        let section = format!("{}pin = {{ header = \"X-Pin\", previous_keys = [\"{previous}\"] }}\n", lab.section());
        let rocket = support::rocket(&format!("secret_key = \"{key}\"\n[debug.databases.replicated]\n{section}"))
            .attach(Replicated::fairing())
            .mount("/", routes![write])
            .mount("/status", Replicated::status::<Admin>().with_drills());
        let client = Client::untracked(rocket).await.unwrap();
        let written = client.post("/notes").dispatch().await;
        let pin = written.headers().get_one("X-Pin").unwrap().to_owned();

        let mut events = client.get("/status/events").header(admin()).header(Header::new("X-Pin", pin.clone())).dispatch().await;
        let mut outlets = vec![("events", first_event(&mut events).await)];
        for path in ["/status", "/status/status.json", "/status/health", STYLE, SCRIPT, "/status/metrics"] {
            let reply = client.get(path).header(admin()).header(Header::new("X-Pin", pin.clone())).dispatch().await;
            let headers = format!("{:?}", reply.headers());
            outlets.push((path, headers + &reply.into_string().await.unwrap()));
        }
        for (outlet, text) in outlets {
            // The password of all test servers.
            for secret in ["secret", &key[..20], &previous, &pin] {
                assert!(!text.contains(secret), "{outlet} has {secret}: {text}");
            }
        }
    }

    #[support::async_test]
    async fn listeners_are_told_of_changes_and_are_not_too_many() {
        let lab = Lab::new();
        let (client, cluster) = launch(&lab).await;
        let mut listeners = Vec::new();
        for number in 0..16 {
            let listener = get(&client, "/status/events").await;
            assert_eq!(listener.status(), Status::Ok, "listener {number}");
            listeners.push(listener);
        }
        assert_eq!(get(&client, "/status/events").await.status(), Status::ServiceUnavailable);
        listeners.pop();
        let mut listener = get(&client, "/status/events").await;
        assert_eq!(listener.status(), Status::Ok, "as one has gone");

        assert!(first_event(&mut listener).await.contains("3 of 3 servers are up"));
        cluster.take_out("slave-1").unwrap();
        assert!(first_event(&mut listener).await.contains("2 of 3 servers are up"));

        client.rocket().shutdown().notify();
        listeners.push(listener);
        for mut listener in listeners {
            let mut rest = Vec::new();
            let end = rocket::tokio::io::AsyncReadExt::read_to_end(&mut listener, &mut rest);
            timeout(Duration::from_secs(10), end).await.expect("the shutdown ends listeners").unwrap();
        }
    }

    async fn readers(cluster: &Cluster<Database>) -> BTreeSet<String> {
        let mut readers = BTreeSet::new();
        for _ in 0..40 {
            let db = cluster.read(None);
            sqlx::query("SELECT id FROM notes").execute(&db).await.unwrap();
            let choice = db.choice().unwrap();
            readers.insert(if choice.role() == Role::Master { "master" } else { choice.node() }.to_owned());
        }
        readers
    }

    fn set<const N: usize>(readers: [&str; N]) -> BTreeSet<String> {
        readers.map(str::to_owned).into()
    }

    const OWN: &[(&str, &str)] = &[("Sec-Fetch-Site", "same-origin")];

    #[support::async_test]
    async fn drills_do_what_they_say() {
        let lab = Lab::new();
        let (client, cluster) = launch(&lab).await;
        assert_eq!(readers(&cluster).await, set(["slave-1", "slave-2"]));
        for (form, then) in [
            ("drill=take_out&slave=slave-1", set(["slave-2"])),
            ("drill=take_out&slave=slave-2", set(["master"])),
            ("drill=put_back&slave=slave-1", set(["slave-1"])),
            ("drill=put_back&slave=slave-2", set(["slave-1", "slave-2"])),
            ("drill=stop_reading_slaves", set(["master"])),
            ("drill=set_read_share&share=100", set(["slave-1", "slave-2"])),
            ("drill=stop_reading_slaves", set(["master"])),
            ("drill=resume_reading_slaves", set(["slave-1", "slave-2"])),
        ] {
            let reply = post(&client, form, OWN).await;
            assert_eq!(reply.status(), Status::SeeOther, "{form}");
            assert_eq!(reply.headers().get_one("Location"), Some("/status"));
            assert_eq!(readers(&cluster).await, then, "{form}");
        }
        assert!(!logbook::lines(&["WARN", "Drill `take_out` of slave `slave-1` of database `replicated`"]).is_empty());
        for wrong in ["drill=take_out&slave=slave-3", "drill=take_out", "drill=destroy", "", "drill=set_read_share", "drill=set_read_share&share=101", "drill=put_back&slave=%0a"] {
            assert_eq!(post(&client, wrong, OWN).await.status(), Status::UnprocessableEntity, "{wrong}");
        }
        assert_eq!(readers(&cluster).await, set(["slave-1", "slave-2"]));
    }

    #[support::async_test]
    async fn other_sites_cannot_order_drills() {
        let lab = Lab::new();
        let (client, cluster) = launch(&lab).await;
        let form = "drill=take_out&slave=slave-1";
        for headers in [
            &[("Sec-Fetch-Site", "cross-site")][..],
            &[("Sec-Fetch-Site", "same-site"), ("Host", "db.example"), ("Origin", "http://db.example")],
            &[("Host", "db.example"), ("Origin", "http://evil.example")],
            &[("Host", "db.example"), ("Origin", "null")],
            &[],
        ] {
            assert_eq!(post(&client, form, headers).await.status(), Status::Forbidden, "{headers:?}");
        }
        assert!(cluster.status().iter().all(|node| node.state == NodeState::Up));
        assert!(!logbook::lines(&["WARN", "was refused", "another site than the status page"]).is_empty());

        let own = [("Host", "db.example"), ("Origin", "http://db.example")];
        assert_eq!(post(&client, form, &own).await.status(), Status::SeeOther);
        assert_eq!(cluster.status()[1].state, NodeState::TakenOut);
    }

    #[support::async_test]
    async fn there_are_no_drills_unless_they_are_switched_on() {
        let lab = Lab::new();
        let rocket = rocket(&lab).mount("/status", Replicated::status::<Admin>());
        let client = Client::untracked(rocket).await.unwrap();
        assert_eq!(post(&client, "drill=stop_reading_slaves", OWN).await.status(), Status::NotFound);
        let page = text(&client, "/status").await;
        assert!(!page.contains("<form") && !page.contains("<button"), "{page}");
    }
}

crate::on_postgres! {
    mod outages {
        use std::time::{Duration, Instant};

        use rocket::http::Status;
        use rocket::local::asynchronous::Client;
        use rocket::tokio::time::sleep;
        use rocket_replicated::postgres::{Database, Replicated};
        use rocket_replicated::{Cluster, NodeState};

        use super::{Admin, json, text};
        use support::pgbouncer::{PgBouncer, PoolMode};
        use support::{logbook, rocket_over};
        use rocket_replicated_testing::Servers;
        use rocket_replicated_testing::postgres::Postgres;

        async fn health(client: &Client, path: &str) -> (Status, String) {
            let reply = client.get(path).dispatch().await;
            (reply.status(), reply.into_string().await.unwrap())
        }

        async fn eventually(client: &Client, path: &str, wanted: Status, body: &str) {
            let deadline = Instant::now() + Duration::from_secs(20);
            loop {
                let (status, told) = health(client, path).await;
                if status == wanted && told == body {
                    return;
                }
                assert!(Instant::now() < deadline, "{path}: {status}, {told}");
                sleep(Duration::from_millis(20)).await;
            }
        }

        #[support::async_test]
        async fn health_tells_load_balancers_what_can_be_served() {
            let servers = Servers::start(Postgres, 1);
            let section = format!(
                "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"only\" }}]\ncheck_interval = 0.05\n",
                servers.master.url(),
                servers.slaves[0].url()
            );
            let rocket = rocket_over(&section)
                .attach(Replicated::fairing())
                .mount("/status", Replicated::status::<Admin>());
            let client = Client::untracked(rocket).await.unwrap();
            let (well, readable) = (r#"{"reads":true,"writes":true}"#, r#"{"reads":true,"writes":false}"#);
            assert_eq!(health(&client, "/status/health").await, (Status::Ok, well.into()));
            assert_eq!(health(&client, "/status/health?writes").await, (Status::Ok, well.into()));
            assert_eq!(health(&client, "/status/health?writes=perhaps").await.0, Status::BadRequest);

            servers.master.kill();
            eventually(&client, "/status/health?writes", Status::ServiceUnavailable, readable).await;
            assert_eq!(health(&client, "/status/health").await, (Status::Ok, readable.into()));
            assert_eq!(health(&client, "/status/health?writes=false").await.0, Status::Ok);
            let page = text(&client, "/status").await;
            assert!(page.contains("Reads are served, writes are not"), "{page}");
            assert_eq!(json(&client, "/status/status.json").await["servers"][0]["state"], "down");

            servers.slaves[0].kill();
            let nothing = r#"{"reads":false,"writes":false}"#;
            eventually(&client, "/status/health", Status::ServiceUnavailable, nothing).await;
        }

        /// A cluster that reads from the master through pgbouncer, at another address than it writes to.
        async fn read_through(pooler: &PgBouncer, section: &str) -> (Client, Cluster<Database>) {
            let section = format!(
                "name = \"first\"\nread_url = \"{}\"\ncheck_interval = 0.05\n{section}",
                pooler.url()
            );
            let rocket = rocket_over(&section)
                .attach(Replicated::fairing())
                .mount("/status", Replicated::status::<Admin>());
            let client = Client::untracked(rocket).await.unwrap();
            let cluster = Replicated::fetch(client.rocket()).unwrap().clone();
            (client, cluster)
        }

        #[support::async_test]
        async fn without_the_masters_read_url_there_are_no_reads_at_the_master() {
            let servers = Servers::start(Postgres, 1);
            let poolers = [(); 2].map(|()| PgBouncer::start(&servers.master, PoolMode::Session, ""));
            let [alone, with_slave] = &poolers;
            let url = format!("url = \"{}\"\n", servers.master.url());
            let (alone, _) = read_through(alone, &url).await;
            let slave = format!("{url}slaves = [\"{}\"]\n", servers.slaves[0].url());
            let (with_slave, cluster) = read_through(with_slave, &slave).await;
            let well = r#"{"reads":true,"writes":true,"read_url":true}"#;
            for client in [&alone, &with_slave] {
                eventually(client, "/status/health", Status::Ok, well).await;
            }
            let ways = || cluster.status().into_iter().map(|node| node.read_url).collect::<Vec<_>>();
            assert_eq!(ways(), [Some(NodeState::Up), None]);

            drop(poolers);
            let nothing = r#"{"reads":false,"writes":true,"read_url":false}"#;
            eventually(&alone, "/status/health", Status::ServiceUnavailable, nothing).await;
            let slaves = r#"{"reads":true,"writes":true,"read_url":false}"#;
            eventually(&with_slave, "/status/health", Status::Ok, slaves).await;
            assert_eq!(ways(), [Some(NodeState::Down), None]);
            assert_eq!(cluster.status()[0].state, NodeState::Up);
            let status = json(&with_slave, "/status/status.json").await;
            assert_eq!((&status["servers"][0]["state"], &status["servers"][0]["read_url"]), (&"up".into(), &"down".into()));
            let page = text(&with_slave, "/status").await;
            assert!(page.contains("read_url: down") && page.contains("1 of 2 servers are up"), "{page}");

            let named = ["WARN", "The master's `read_url` of database `replicated` cannot be used", "Connection refused"];
            assert_eq!(logbook::lines(&named).len(), 2, "{:?}", logbook::lines(&["cannot be used"]));
            assert_eq!(logbook::lines(&["slave `first`"]), [""; 0]);
        }

        #[support::async_test]
        async fn a_promotion_is_among_the_latest_changes() {
            let servers = Servers::start(Postgres, 1);
            let section = format!(
                "url = \"{}\"\nname = \"first\"\nslaves = [{{ url = \"{}\", name = \"second\" }}]\n\
                 check_interval = 0.05\nfollow_promotion = true\n",
                servers.master.url(),
                servers.slaves[0].url()
            );
            let rocket = rocket_over(&section)
                .attach(Replicated::fairing())
                .mount("/status", Replicated::status::<Admin>());
            let client = Client::untracked(rocket).await.unwrap();
            assert!(!text(&client, "/status").await.contains("promoted"));
            servers.master.kill();
            servers.slaves[0].sql("SELECT pg_promote()");
            let deadline = Instant::now() + Duration::from_secs(20);
            let changes = loop {
                let status = json(&client, "/status/status.json").await;
                let changes: Vec<_> = status["changes"].as_array().unwrap().clone();
                if status["servers"][0]["name"] == "second" && status["servers"][0]["state"] == "up" {
                    break changes;
                }
                assert!(Instant::now() < deadline, "{status}");
                sleep(Duration::from_millis(20)).await;
            };
            let became = |server: &str| {
                let of_it =
                    changes.iter().filter(|change| change["server"] == server && !change["became"].is_null());
                of_it.map(|change| change["became"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
            };
            assert_eq!((became("first"), became("second")), (vec!["slave".into()], vec!["master".into()]));
            let page = text(&client, "/status").await;
            for entry in [
                "<strong>second</strong>: the master from now on, writes go there",
                "<strong>first</strong>: not the master any more",
            ] {
                assert_eq!(page.matches(entry).count(), 1, "{entry}: {page}");
            }
            for server in Replicated::fetch(client.rocket()).unwrap().statistics().servers {
                let of_state = server.latest_changes.iter().filter(|change| change.became.is_none()).count();
                assert_eq!(
                    server.changes.total(),
                    of_state as u64,
                    "a promotion is no change of state: {server:?}"
                );
            }
        }
    }
}

crate::on_sqlite! {
    mod names {
        use rocket_replicated::{Database, Replicated, sqlite};

        use super::{Admin, first_event, get, text};
        use rocket::local::asynchronous::Client;

        #[derive(Database)]
        #[database("<i>&")]
        struct Odd(sqlite::Pool);

        #[support::async_test]
        async fn names_are_escaped() {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("<b>'&");
            std::fs::create_dir(&file).unwrap();
            let url = format!("sqlite://{}/db", file.display());
            let rocket = support::rocket(&format!(
                "[debug.databases.\"<i>&\"]\nurl = \"{url}\"\npin.name = \"odd\"\n"
            ))
            .attach(Replicated::<Odd>::fairing())
            .mount("/status", Replicated::<Odd>::status::<Admin>());
            let client = Client::untracked(rocket).await.unwrap();
            let page = text(&client, "/status").await;
            let event = first_event(&mut get(&client, "/status/events").await).await;
            assert!(page.contains("&lt;i&gt;&amp;"), "{page}");
            for html in [page, event] {
                assert!(html.contains("&lt;b&gt;'&amp;/db"), "{html}");
                assert!(!html.contains("<i>") && !html.contains("<b>"), "{html}");
            }
        }
    }
}
