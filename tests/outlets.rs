//! The outputs of a process for its operators contain no password, no secret key and no pin.

use std::time::{Duration, Instant};

use metrics_exporter_prometheus::PrometheusBuilder;
use rocket::http::{Cookie, Header, Status};
use rocket::local::asynchronous::{Client, LocalResponse};
use rocket::tokio::time::sleep;
use rocket::{get, post, routes};
use rocket_replicated::postgres::{Replicated, ReplicatedDb};
use rocket_replicated::{Error, NodeState, Writable, postgres};

use rocket_replicated_testing::Servers;
use rocket_replicated_testing::postgres::Postgres;
use support::{logbook, rocket_over};

const PASSWORD: &str = "correct-horse-battery";
const WRONG: &str = "incorrect-horse";
const KEY: &str = "c0ffee11c0ffee22c0ffee33c0ffee44c0ffee55c0ffee66c0ffee77c0ffee88";

/// Prints everything about a handle that can be printed.
#[get("/read/<fails>")]
async fn read(fails: bool, db: ReplicatedDb) -> Result<String, Error> {
    let sql = if fails { "SELECT missing FROM notes" } else { "SELECT 1" };
    sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&db).await?;
    let mut connection = db.get().await?;
    sqlx::query("SELECT 1").execute(&mut *connection).await?;
    let transaction = db.begin().await?;
    Ok(format!("{db:#?} {connection:#?} {transaction:#?} {:?}", db.choice()))
}

#[post("/write")]
async fn write(db: ReplicatedDb) -> Result<String, Error> {
    sqlx::query("INSERT INTO notes VALUES (1)").execute(&db).await?;
    Ok(format!("{db:#?}"))
}

#[get("/careless")]
async fn careless(db: ReplicatedDb) -> String {
    let error = sqlx::query("INSERT INTO notes VALUES (2)").execute(&db).await.unwrap_err();
    format!("{error} {error:#?}")
}

#[post("/crowded")]
async fn crowded(db: ReplicatedDb) -> String {
    let _held = db.begin().await;
    let error = sqlx::query("SELECT 1").execute(&db).await.unwrap_err();
    let text = format!("{error} {error:#?}");
    let error = Error::from(error);
    format!("{text} {error} {error:#?}")
}

#[get("/writable")]
fn writable(writable: Writable<postgres::Database>) -> String {
    format!("{writable:#?}")
}

/// The text of a reply, without the pin that it carries.
async fn said_by(response: LocalResponse<'_>) -> String {
    let headers =
        response.headers().iter().filter(|header| header.name() != "Set-Cookie" && header.name() != "X-Pin");
    let headers: Vec<_> = headers.map(|header| header.to_string()).collect();
    format!("{headers:?} {}", response.into_string().await.unwrap_or_default())
}

#[support::async_test]
async fn nothing_says_a_password_a_secret_key_or_a_pin() {
    let recorder = PrometheusBuilder::new().install_recorder().unwrap();
    let servers = Servers::start(Postgres, 2);
    servers.master.sql(&format!("ALTER ROLE app PASSWORD '{PASSWORD}'"));
    servers.master.sql("CREATE TABLE notes (id INTEGER); GRANT ALL ON notes TO app");
    servers.wait_caught_up();
    let url = |url: String, password: &str| url.replace(":secret@", &format!(":{password}@"));
    let section = format!(
        "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"well\" }}, {{ url = \"{}\", name = \"locked\" }}]\n\
         max_connections = 1\nconnect_timeout = 4\nslave_timeout = 4\ncheck_interval = 0.05\nconsistency = \"position\"\npin.header = \"X-Pin\"",
        url(servers.master.url(), PASSWORD),
        url(servers.slaves[0].url(), PASSWORD),
        url(servers.slaves[1].url(), WRONG),
    );
    let rocket = rocket_over(&section);
    let figment = rocket.figment().clone().merge(("secret_key", KEY));
    let rocket = rocket
        .configure(figment)
        .attach(Replicated::fairing())
        .mount("/", routes![read, write, careless, crowded, writable])
        .mount("/status", Replicated::status_open_to_everybody().with_drills());
    logbook::open_with_details();
    let client = Client::untracked(rocket).await.unwrap();
    let cluster = Replicated::fetch(client.rocket()).unwrap();

    let mut said = Vec::new();
    let reply = client.post("/write").dispatch().await;
    let pin = reply.headers().get_one("X-Pin").unwrap().to_owned();
    said.push(said_by(reply).await);
    // The pin as it is, twice, and mangled. It is sent as a cookie and as a header.
    let mangled = format!("{}x", &pin[..pin.len() - 1]);
    for path in ["/read/false", "/read/true", "/careless", "/writable"] {
        for pin in [&pin, &mangled] {
            let header = || Header::new("X-Pin", pin.clone());
            let request =
                client.get(path).cookie(Cookie::new("replicated_pin", pin.clone())).header(header());
            said.push(said_by(request.dispatch().await).await);
            said.push(said_by(client.get(path).header(header()).header(header()).dispatch().await).await);
        }
    }
    said.push(said_by(client.post("/crowded").dispatch().await).await);
    for path in ["/status", "/status/status.json", "/status/health?writes", "/status/metrics"] {
        let reply = client.get(path).header(Header::new("X-Pin", pin.clone())).dispatch().await;
        assert_eq!(reply.status(), Status::Ok, "{path}");
        said.push(said_by(reply).await);
    }
    // An outage, with all messages that it causes.
    servers.slaves[0].kill();
    let deadline = Instant::now() + Duration::from_secs(20);
    while cluster.status().iter().any(|node| node.name == "well" && node.state != NodeState::Down) {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(10)).await;
    }
    servers.master.kill();
    for pin in [&pin, &mangled] {
        let request = client.get("/read/false").header(Header::new("X-Pin", pin.clone()));
        said.push(said_by(request.dispatch().await).await);
    }
    said.push(said_by(client.post("/write").dispatch().await).await);
    said.push(format!("{:#?}", cluster.write().get().await.map(drop)));

    said.push(format!("{cluster:#?} {:#?} {:#?}", cluster.status(), cluster.statistics()));
    said.push(format!("{:#?} {:#?}", Replicated::fairing(), cluster.read(Some(&pin))));
    // Waits until the metrics have been published once more.
    while !recorder.render().contains("outcomes_unknown") {
        assert!(Instant::now() < deadline + Duration::from_secs(20));
        sleep(Duration::from_millis(10)).await;
    }
    said.push(recorder.render());
    let log = logbook::lines(&[]);
    for word in ["DEBUG", "refuses the login", "is not believed", "became free within", "cannot be used"] {
        assert!(log.iter().any(|line| line.contains(word)), "{word} in {log:#?}");
    }
    said.extend(log);

    let parts: Vec<_> = [PASSWORD, WRONG, KEY].into_iter().chain([&*pin, &*mangled]).collect();
    for text in &said {
        for secret in &parts {
            assert!(!text.contains(secret), "{secret} in {text}");
            // Half of a secret must not be there either.
            assert!(!text.contains(&secret[..secret.len().min(24)]), "the beginning of {secret} in {text}");
        }
    }
}
