//! Clients that have just written read their own writes, though every slave lags. Strangers read from slaves.

crate::on_every_database! {
    use rocket::form::Form;
    use std::time::{Duration, Instant};

    use rocket::http::{ContentType, Cookie, Status};
    use rocket::local::blocking::Client;
    use rocket::response::Redirect;
    use rocket::serde::json::{Json, Value, json};
    use rocket::{FromForm, get, post, routes};
    use rocket_replicated::Error;

    use support::{Seen, blocking_eventually, json, pin_of, rocket_over};

    #[derive(FromForm)]
    struct Note {
        body: String,
    }

    #[post("/notes", data = "<note>")]
    async fn create(note: Form<Note>, db: ReplicatedDb) -> Result<Redirect, Error> {
        sqlx::query(sql("INSERT INTO notes (body) VALUES ($1)")).bind(&note.body).execute(&db).await?;
        Ok(Redirect::to("/notes"))
    }

    #[get("/notes")]
    async fn list(db: ReplicatedDb) -> Result<Json<Value>, Error> {
        let notes: Vec<String> = sqlx::query_scalar("SELECT body FROM notes ORDER BY id").fetch_all(&db).await?;
        let choice = db.choice().unwrap();
        Ok(Json(json!({
            "notes": notes,
            "node": choice.node(),
            "role": choice.role().to_string(),
            "reason": format!("{:?}", choice.reason()),
        })))
    }

    fn client(lab: &Lab, keys: &str) -> Client {
        let section = format!("{}{keys}", lab.section());
        let rocket = rocket_over(&section).attach(Replicated::fairing()).mount("/", routes![create, list]);
        Client::untracked(rocket).unwrap()
    }

    /// Posts a note and returns the pin.
    fn write(client: &Client, body: &str) -> Cookie<'static> {
        let response = client.post("/notes").header(ContentType::Form).body(format!("body={body}")).dispatch();
        assert_eq!((response.status(), response.headers().get_one("Location")), (Status::SeeOther, Some("/notes")));
        pin_of(&response).expect("a pin")
    }

    fn read(client: &Client, pin: Option<&Cookie<'static>>) -> Seen {
        let mut request = client.get("/notes");
        if let Some(pin) = pin {
            request = request.cookie(pin.clone());
        }
        let response = request.dispatch();
        assert_eq!(pin_of(&response), None, "a read sets no pin");
        json(response)
    }

    #[test]
    fn the_writer_sees_the_write_and_a_stranger_does_not_yet() {
        let lab = Lab::new();
        let client = client(&lab, "lag_window = 60");
        lab.pause();
        let pin = write(&client, "hello");

        let fresh = read(&client, Some(&pin));
        assert_eq!((fresh.notes, &*fresh.role, &*fresh.reason), (vec!["hello".to_owned()], "master", "Pinned"));
        let stale = read(&client, None);
        assert_eq!((stale.notes, &*stale.role, &*stale.reason), (vec![], "slave", "ReadMethod"));

        lab.resume();
        let replicated = read(&client, None);
        assert_eq!((replicated.notes, &*replicated.role), (vec!["hello".to_owned()], "slave"));
    }

    #[test]
    fn after_the_window_the_writer_reads_from_a_slave_again() {
        let lab = Lab::new();
        let client = client(&lab, "lag_window = 0.5\nmax_lag = false");
        lab.pause();
        let written = Instant::now();
        let pin = write(&client, "hello");

        let stale = blocking_eventually("the end of the window", || {
            let seen = read(&client, Some(&pin));
            (seen.role == "slave").then_some(seen)
        });
        assert!(written.elapsed() >= Duration::from_millis(500), "{:?}", written.elapsed());
        assert_eq!((stale.notes, &*stale.reason), (vec![], "ReadMethod"));
    }

    #[test]
    fn without_a_window_the_writer_is_a_stranger() {
        let lab = Lab::new();
        let client = client(&lab, "lag_window = 0");
        lab.pause();
        let response = client.post("/notes").header(ContentType::Form).body("body=hello").dispatch();
        assert_eq!((response.status(), pin_of(&response)), (Status::SeeOther, None));
        assert_eq!(read(&client, None).notes, Vec::<String>::new());
        assert_eq!(lab.notes(), ["hello"]);
    }
}
