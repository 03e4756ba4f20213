//! The pin is on every reply of a request that wrote and on no other, and it is believed only if it is ours.

crate::on_every_database! {
    use rocket::http::{Cookie, CookieJar, Header, SameSite, Status};
    use rocket::local::blocking::Client;
    use rocket::response::Redirect;
    use rocket::{Build, Rocket, get, post, routes};
    use rocket_replicated::{ChangesDatabase, Error, ReadsDatabase};

    use support::{pin_of, rocket, rocket_over};

    async fn insert(db: &ReplicatedDb) -> Result<(), Error> {
        sqlx::query("INSERT INTO notes (id, body) SELECT max(id) + 1, 'note ' || (max(id) + 1) FROM notes")
            .execute(db)
            .await?;
        Ok(())
    }

    #[get("/read")]
    async fn read(db: ReplicatedDb) -> Result<String, Error> {
        ask(&db).await
    }

    async fn ask(db: &ReplicatedDb) -> Result<String, Error> {
        sqlx::query("SELECT id FROM notes").fetch_all(db).await?;
        Ok(format!("{:?}", db.choice().unwrap().reason()))
    }

    #[get("/idle")]
    async fn idle(db: ReplicatedDb) -> String {
        format!("{:?}", db.choice())
    }

    #[get("/visit")]
    async fn visit(_changes: ChangesDatabase, db: ReplicatedDb) -> Result<&'static str, Error> {
        insert(&db).await?;
        Ok("counted")
    }

    #[get("/public")]
    async fn public(_changes: ChangesDatabase, db: ReplicatedDb) -> Result<(Status, Caching), Error> {
        insert(&db).await?;
        Ok((Status::Ok, Caching { body: "", header: Header::new("Cache-Control", "public, max-age=60") }))
    }

    #[derive(rocket::Responder)]
    struct Caching {
        body: &'static str,
        header: Header<'static>,
    }

    #[post("/ok")]
    async fn ok(db: ReplicatedDb, jar: &CookieJar<'_>) -> Result<&'static str, Error> {
        jar.add(("theme", "dark"));
        jar.add(("lang", "en"));
        insert(&db).await?;
        Ok("ok")
    }

    #[post("/redirect")]
    async fn redirect(db: ReplicatedDb) -> Result<Redirect, Error> {
        insert(&db).await?;
        Ok(Redirect::to("/read"))
    }

    #[post("/fails")]
    async fn fails(db: ReplicatedDb) -> Result<&'static str, Error> {
        insert(&db).await?;
        sqlx::query("INSERT INTO nowhere VALUES (1)").execute(&db).await?;
        Ok("never")
    }

    #[post("/status/<code>")]
    async fn status(code: u16, db: ReplicatedDb) -> Result<Status, Error> {
        insert(&db).await?;
        Ok(Status::new(code))
    }

    #[post("/panics")]
    async fn panics(db: ReplicatedDb) -> &'static str {
        insert(&db).await.unwrap();
        panic!("after a write")
    }

    #[post("/rolled_back")]
    async fn rolled_back(db: ReplicatedDb) -> Result<&'static str, Error> {
        let transaction = db.begin().await?;
        transaction.rollback().await?;
        Ok("rolled back")
    }

    #[post("/untouched")]
    async fn untouched(_db: ReplicatedDb) -> &'static str {
        "untouched"
    }

    #[post("/search")]
    async fn search(_reads: ReadsDatabase, db: ReplicatedDb) -> Result<String, Error> {
        ask(&db).await
    }

    /// Continues from a pin before it reads.
    #[get("/continued?<pin>")]
    async fn continued(pin: &str, db: ReplicatedDb) -> Result<String, Error> {
        let is_valid = db.continue_from(pin);
        assert_eq!(is_valid, db.carried_pin().is_some());
        ask(&db).await
    }

    /// Continues from a pin between two reads.
    #[get("/continued-late?<pin>")]
    async fn continued_late(pin: &str, db: ReplicatedDb) -> Result<String, Error> {
        let before = ask(&db).await?;
        db.continue_from(pin);
        Ok(format!("{before}, {}", ask(&db).await?))
    }

    #[get("/carried")]
    fn carried(db: ReplicatedDb) -> String {
        db.carried_pin().unwrap_or_default()
    }

    fn mount(rocket: Rocket<Build>) -> Client {
        let routes = routes![
            read, idle, visit, public, ok, redirect, fails, status, panics, rolled_back, untouched, search,
            continued, continued_late, carried,
        ];
        Client::untracked(rocket.attach(Replicated::fairing()).mount("/", routes)).unwrap()
    }

    fn lab() -> Lab {
        let lab = Lab::new();
        lab.sql("INSERT INTO notes (id, body) VALUES (1, 'first')");
        lab.resume();
        lab
    }

    fn client(lab: &Lab, keys: &str) -> Client {
        mount(rocket_over(&format!("{}lag_window = 60\n{keys}", lab.section())))
    }

    /// The reason of a read with these Cookie headers.
    fn reason(client: &Client, cookies: &[&Cookie<'static>]) -> String {
        let mut request = client.get("/read");
        for cookie in cookies {
            let header = format!("{}={}", cookie.name(), cookie.value());
            request = request.header(Header::new("Cookie", header)).cookie((*cookie).clone());
        }
        let response = request.dispatch();
        assert_eq!((response.status(), pin_of(&response)), (Status::Ok, None));
        response.into_string().unwrap()
    }

    fn a_pin(client: &Client) -> Cookie<'static> {
        pin_of(&client.post("/ok").dispatch()).unwrap()
    }

    fn forged(value: impl Into<String>) -> Cookie<'static> {
        Cookie::new("replicated_pin", value.into())
    }

    #[test]
    fn every_reply_of_a_request_that_wrote_carries_a_pin() {
        let lab = lab();
        let client = client(&lab, "");
        for (path, status) in [
            ("/ok", 200),
            ("/redirect", 303),
            ("/fails", 500),
            ("/panics", 500),
            ("/status/201", 201),
            ("/status/204", 204),
            ("/status/404", 404),
            ("/status/422", 422),
            ("/status/503", 503),
            ("/rolled_back", 200),
        ] {
            let response = client.post(path).dispatch();
            assert_eq!(response.status().code, status, "{path}");
            let pin = pin_of(&response).unwrap_or_else(|| panic!("{path}: no pin"));
            assert_eq!(reason(&client, &[&pin]), "Pinned", "{path}");
        }
    }

    #[test]
    fn a_reply_of_a_request_that_wrote_nothing_carries_no_pin() {
        let lab = lab();
        let client = client(&lab, "");
        for path in ["/untouched", "/search", "/nowhere"] {
            assert_eq!(pin_of(&client.post(path).dispatch()), None, "{path}");
        }
        for path in ["/read", "/idle", "/nowhere"] {
            assert_eq!(pin_of(&client.get(path).dispatch()), None, "{path}");
        }
    }

    #[test]
    fn a_read_neither_renews_nor_removes_a_pin() {
        let lab = lab();
        let client = client(&lab, "");
        let pin = a_pin(&client);
        for _ in 0..3 {
            let response = client.get("/read").cookie(pin.clone()).dispatch();
            assert_eq!(response.headers().get("Set-Cookie").count(), 0);
        }
        assert_eq!(reason(&client, &[&pin]), "Pinned");
    }

    #[test]
    fn the_cookie_has_every_attribute() {
        let lab = lab();
        let pin = a_pin(&client(&lab, ""));
        assert_eq!(
            (pin.http_only(), pin.same_site(), pin.path(), pin.secure(), pin.domain()),
            (Some(true), Some(SameSite::Lax), Some("/"), None, None),
        );
        assert_eq!(pin.max_age(), Some(time::Duration::seconds(60)));

        let keys = "pin = { name = \"mine\", path = \"/app\", domain = \"example.org\", same_site = \"strict\", secure = true }";
        let client = client(&lab, keys);
        let response = client.post("/ok").dispatch();
        let cookie = response.cookies().get("mine").unwrap().clone();
        assert_eq!(
            (cookie.http_only(), cookie.same_site(), cookie.path(), cookie.secure(), cookie.domain()),
            (Some(true), Some(SameSite::Strict), Some("/app"), Some(true), Some("example.org")),
        );
    }

    #[test]
    fn the_cookies_of_handlers_survive() {
        let lab = lab();
        let client = client(&lab, "");
        let response = client.post("/ok").dispatch();
        let names: Vec<_> = response.cookies().iter().map(|cookie| cookie.name().to_owned()).collect();
        for name in ["theme", "lang", "replicated_pin"] {
            assert!(names.iter().any(|other| other == name), "{name} in {names:?}");
        }
    }

    #[test]
    fn a_get_that_pins_is_private_unless_its_handler_says_otherwise() {
        let lab = lab();
        let client = client(&lab, "");
        let caching = |path: &'static str| {
            let response = client.get(path).dispatch();
            response.headers().get("Cache-Control").map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(caching("/visit"), ["private"]);
        assert_eq!(caching("/public"), ["public, max-age=60"]);
        assert_eq!(caching("/read"), Vec::<String>::new());
        assert_eq!(client.post("/ok").dispatch().headers().get("Cache-Control").count(), 0);
    }

    #[test]
    fn a_token_that_is_not_ours_is_no_pin() {
        let lab = lab();
        let client = client(&lab, "");
        let pin = a_pin(&client);
        let mut tampered = pin.value().to_owned();
        let last = tampered.pop().unwrap();
        tampered.push(if last == 'A' { 'E' } else { 'A' });
        for value in ["".into(), "1".into(), tampered, pin.value().repeat(2), "A".repeat(100_000), "\u{1f4cc}".into()] {
            assert_eq!(reason(&client, &[&forged(value.clone())]), "ReadMethod", "{value:.60}");
        }
        assert_eq!(reason(&client, &[&pin]), "Pinned");
        assert_eq!(reason(&client, &[&pin, &forged("planted")]), "ReadMethod");
        assert_eq!(reason(&client, &[&pin, &pin]), "ReadMethod");
    }

    #[test]
    fn a_pin_under_another_name_or_key_is_ignored() {
        let lab = lab();
        let renamed = client(&lab, "pin = { name = \"other_pin\" }");
        let with_key = |key: &str| {
            let section = lab.section();
            mount(rocket(&format!(
                "secret_key = \"{}\"\n[debug.databases.replicated]\n{section}lag_window = 60",
                key.repeat(32)
            )))
        };
        let (old, new) = (with_key("ab"), with_key("cd"));

        let pin = a_pin(&old);
        assert_eq!(reason(&with_key("ab"), &[&pin]), "Pinned", "another server with the same key");
        assert_eq!(reason(&new, &[&pin]), "ReadMethod");
        assert_eq!(reason(&renamed, &[&Cookie::new("other_pin", pin.value().to_owned())]), "ReadMethod");
        assert_eq!(reason(&new, &[&a_pin(&new)]), "Pinned", "after one window all is as before");
    }

    /// The rotation has two steps, so that several servers lose no pin: first all believe the new key, then all sign
    /// with it.
    #[test]
    fn a_key_is_rotated_without_losing_a_pin() {
        let lab = lab();
        let with_keys = |key: &str, previous: &[&str]| {
            let section = lab.section();
            let previous: Vec<_> = previous.iter().map(|key| key.repeat(32)).collect();
            mount(rocket(&format!(
                "secret_key = \"{}\"\n[debug.databases.replicated]\n{section}lag_window = 60\n\
                 pin.previous_keys = {previous:?}",
                key.repeat(32)
            )))
        };
        let (before, prepared) = (with_keys("ab", &[]), with_keys("ab", &["cd"]));
        let (rotated, after) = (with_keys("cd", &["12", "ab"]), with_keys("cd", &[]));

        let (old, new) = (a_pin(&before), a_pin(&rotated));
        for (server, believes_old, believes_new) in
            [(&before, true, false), (&prepared, true, true), (&rotated, true, true), (&after, false, true)]
        {
            let reason_of = |believed| if believed { "Pinned" } else { "ReadMethod" };
            assert_eq!(reason(server, &[&old]), reason_of(believes_old));
            assert_eq!(reason(server, &[&new]), reason_of(believes_new));
        }
        assert_eq!(reason(&before, &[&a_pin(&prepared)]), "Pinned", "nothing is signed with the new key before all know it");

        let shown = format!("{:?}", Replicated::fetch(rotated.rocket()).unwrap());
        assert!(!shown.contains("abab") && !shown.contains("cdcd"), "{shown}");
    }

    #[test]
    fn a_header_carries_pins_where_there_are_no_cookies() {
        const HEADER: &str = "X-Replicated-Pin";

        let lab = lab();
        let client = client(&lab, "pin = { header = \"X-Replicated-Pin\" }");
        let response = client.post("/ok").dispatch();
        let token = response.headers().get_one(HEADER).unwrap().to_owned();
        assert_eq!(token, pin_of(&response).unwrap().value(), "one spelling");

        let read = |headers: &[&str], cookie: Option<&str>| {
            let mut request = client.get("/read");
            for value in headers {
                request = request.header(Header::new(HEADER, value.to_string()));
            }
            if let Some(cookie) = cookie {
                request = request.cookie(forged(cookie));
            }
            let response = request.dispatch();
            assert_eq!(response.headers().get(HEADER).count(), 0, "a read sets none");
            response.into_string().unwrap()
        };
        assert_eq!(read(&[&token], None), "Pinned");
        assert_eq!(read(&[&token], Some("forged")), "Pinned");
        assert_eq!(read(&["forged"], Some(&token)), "Pinned");
        assert_eq!(read(&[], None), "ReadMethod");
        assert_eq!(read(&[&token, &token], None), "ReadMethod");
        for value in ["forged", "", &"A".repeat(10_000)] {
            assert_eq!(read(&[value], None), "ReadMethod");
        }
    }

    #[test]
    fn there_is_no_header_unless_it_is_configured() {
        let lab = lab();
        let client = client(&lab, "");
        let response = client.post("/ok").dispatch();
        assert_eq!(response.headers().get("X-Replicated-Pin").count(), 0);
        let token = pin_of(&response).unwrap().value().to_owned();
        let response = client.get("/read").header(Header::new("X-Replicated-Pin", token)).dispatch();
        assert_eq!(response.into_string().unwrap(), "ReadMethod");
    }

    #[test]
    fn without_slaves_no_reply_has_a_pin() {
        let lab = lab();
        let client = mount(rocket_over(&lab.section_alone()));
        assert_eq!(pin_of(&client.post("/ok").dispatch()), None);
    }

    #[test]
    fn a_request_continues_from_a_pin_of_another_device() {
        let lab = lab();
        let client = client(&lab, "");
        let get = |path: String| client.get(path).dispatch().into_string().unwrap();
        let pin = a_pin(&client).value().to_owned();
        assert_eq!(get("/read".into()), "ReadMethod");
        assert_eq!(get(format!("/continued?pin={pin}")), "Pinned");
        assert_eq!(get("/continued?pin=nonsense".into()), "ReadMethod");
        // What has been read from a slave may lack the write: the master goes on.
        assert_eq!(get(format!("/continued-late?pin={pin}")), "ReadMethod, Pinned");
    }

    #[test]
    fn a_handler_gets_the_pin_that_its_request_carries() {
        let lab = lab();
        let client = client(&lab, "");
        assert_eq!(client.get("/carried").dispatch().into_string().unwrap(), "");
        let carried = client.get("/carried").cookie(a_pin(&client)).dispatch().into_string().unwrap();
        assert_eq!(reason(&client, &[&Cookie::new("replicated_pin", carried)]), "Pinned");
    }

    #[test]
    fn a_pin_travels_as_a_string_to_where_there_are_no_cookies() {
        use rocket_replicated::Reason;

        let lab = lab();
        let client = client(&lab, "");
        let cluster = Replicated::fetch(client.rocket()).unwrap().clone();
        rocket::tokio::runtime::Runtime::new().unwrap().block_on(async {
            let writer = cluster.write();
            assert_eq!((writer.pin().await, writer.choice()), (None, None));
            insert(&writer).await.unwrap();
            let pin = writer.pin().await.unwrap();
            let read = async |pin| {
                let reader = cluster.read(pin);
                sqlx::query("SELECT id FROM notes").fetch_all(&reader).await.unwrap();
                assert_eq!(reader.pin().await, None);
                reader.choice().unwrap().reason()
            };
            assert_eq!(writer.choice().unwrap().reason(), Reason::ChangesDatabase);
            assert_eq!(read(Some(&*pin)).await, Reason::Pinned);
            assert_eq!(read(Some("nonsense")).await, Reason::ReadsDatabase);
            assert_eq!(read(None).await, Reason::ReadsDatabase);
        });
    }
}
