//! `consistency = "position"`: whoever has written reads from a slave that has replayed it, and never
//! from one that has not.

#![cfg(any(feature = "mysql", feature = "postgres"))]

mod support;

support::on_servers! {
    use std::pin::pin;
    use std::time::{Duration, Instant};

    use rocket::http::{Cookie, Status};
    use rocket::local::asynchronous::Client;
    use rocket::serde::json::Json;
    use rocket::tokio;
    use rocket::{get, post, routes};
    use rocket_replicated::Error;

    use crate::support::{Seen, rocket_over};

    /// The replay of all tests' slaves is held up at once.
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

    async fn client(lab: &Lab, keys: &str) -> Client {
        let rocket = rocket_over(&format!("{}{KEYS}{keys}", lab.section())).attach(Replicated::fairing());
        Client::untracked(rocket.mount("/", routes![write, read])).await.unwrap()
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

    #[rocket::async_test]
    async fn whoever_has_written_reads_it_from_a_slave() {
        let lab = Lab::new();
        let client = client(&lab, "catch_up_timeout = 10").await;
        for number in 0..30 {
            let pin = written(&client, &number.to_string()).await;
            let seen = seen(&client, Some(&pin)).await;
            assert_eq!((&*seen.role, &*seen.reason), ("slave", "CaughtUp"));
            assert_eq!(seen.notes.len(), number + 1);
        }
    }

    #[rocket::async_test]
    async fn a_slave_that_has_not_replayed_it_is_not_asked_however_old_the_pin() {
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

    #[rocket::async_test]
    async fn a_read_waits_for_a_slave_to_catch_up() {
        let lab = Lab::new();
        let client = client(&lab, "catch_up_timeout = 15\nslave_timeout = 10").await;
        lab.pause();
        let pin = written(&client, "mine").await;
        let mut seen = pin!(seen(&client, Some(&pin)));
        let waited = tokio::time::timeout(Duration::from_millis(300), &mut seen).await;
        assert!(waited.is_err(), "{waited:?}");
        lab.resume();
        let seen = seen.await;
        assert_eq!((&*seen.reason, &*seen.notes), ("CaughtUp", &["mine".to_owned()][..]));
    }

    #[rocket::async_test]
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
