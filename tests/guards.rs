//! The guards: in any order, anywhere in a request, and what they refuse.

crate::on_every_database! {
    use std::sync::atomic::{AtomicBool, Ordering};

    use rocket::form::Form;
    use rocket::futures::StreamExt;
    use rocket::futures::stream::BoxStream;
    use rocket::http::{ContentType, Status};
    use rocket::local::blocking::Client;
    use rocket::request::{FromRequest, Outcome};
    use rocket::response::stream::TextStream;
    use rocket::{Build, FromForm, Request, Rocket, catch, catchers, delete, get, head, post, put, routes};
    use rocket_replicated::{ChangesDatabase, Error, ReadsDatabase};

    use support::{blocking_eventually, logbook, pin_of, rocket_over};

    /// Queries the database and returns the reason of the choice.
    async fn ask(db: &ReplicatedDb) -> Result<String, Error> {
        sqlx::query("SELECT id FROM notes").fetch_all(db).await?;
        Ok(format!("{:?}", db.choice().unwrap().reason()))
    }

    #[get("/read")]
    async fn read(db: ReplicatedDb) -> Result<String, Error> {
        ask(&db).await
    }

    #[post("/write")]
    async fn write(db: ReplicatedDb) -> Result<String, Error> {
        ask(&db).await
    }

    #[get("/changes/before")]
    async fn changes_before(_changes: ChangesDatabase, db: ReplicatedDb) -> Result<String, Error> {
        ask(&db).await
    }

    #[get("/changes/after")]
    async fn changes_after(db: ReplicatedDb, _changes: ChangesDatabase) -> Result<String, Error> {
        ask(&db).await
    }

    #[get("/changes/alone")]
    async fn changes_alone(_changes: ChangesDatabase) -> &'static str {
        "nothing asked"
    }

    #[get("/changes/midway")]
    async fn changes_midway(db: ReplicatedDb) -> Result<String, Error> {
        let before = ask(&db).await?;
        db.changes_database();
        Ok(format!("{before} {}", ask(&db).await?))
    }

    #[get("/both")]
    async fn both(_reads: ReadsDatabase, db: ReplicatedDb, _changes: ChangesDatabase) -> Result<String, Error> {
        ask(&db).await
    }

    #[get("/both/reversed")]
    async fn both_reversed(
        _changes: ChangesDatabase,
        _reads: ReadsDatabase,
        db: ReplicatedDb,
    ) -> Result<String, Error> {
        ask(&db).await
    }

    #[post("/search")]
    async fn search(db: ReplicatedDb, _reads: ReadsDatabase) -> Result<String, Error> {
        ask(&db).await
    }

    /// A guard that queries the database itself, as a guard for logins would.
    struct User(String);

    #[rocket::async_trait]
    impl<'r> FromRequest<'r> for User {
        type Error = Error;

        async fn from_request(request: &'r Request<'_>) -> Outcome<Self, Error> {
            let db = request.guard::<ReplicatedDb>().await.succeeded().unwrap();
            match ask(&db).await {
                Ok(answer) => Outcome::Success(Self(answer)),
                Err(error) => Outcome::Error((Status::InternalServerError, error)),
            }
        }
    }

    #[get("/user")]
    async fn user(user: User, db: ReplicatedDb) -> Result<String, Error> {
        Ok(format!("{} {}", user.0, ask(&db).await?))
    }

    #[get("/user/changes")]
    async fn user_changes(user: User, _changes: ChangesDatabase, db: ReplicatedDb) -> Result<String, Error> {
        Ok(format!("{} {}", user.0, ask(&db).await?))
    }

    #[post("/user/reads")]
    async fn user_reads(user: User, _reads: ReadsDatabase, db: ReplicatedDb) -> Result<String, Error> {
        Ok(format!("{} {}", user.0, ask(&db).await?))
    }

    #[get("/spawned")]
    async fn spawned(db: ReplicatedDb) -> Result<String, Error> {
        rocket::tokio::spawn(async move { ask(&db).await }).await.unwrap()
    }

    #[get("/optional")]
    async fn optional(db: Option<ReplicatedDb>) -> Result<String, Error> {
        ask(&db.unwrap()).await
    }

    #[head("/head")]
    async fn own_head(db: ReplicatedDb) -> Result<String, Error> {
        assert_eq!(ask(&db).await?, "ReadMethod");
        Ok(String::new())
    }

    #[derive(FromForm)]
    struct Method<'r> {
        _method: &'r str,
    }

    #[delete("/form", data = "<_form>")]
    async fn deleted(_form: Form<Method<'_>>, db: ReplicatedDb) -> Result<String, Error> {
        Ok(format!("deleted {}", ask(&db).await?))
    }

    #[put("/form", data = "<_form>")]
    async fn put_form(_form: Form<Method<'_>>, db: ReplicatedDb) -> Result<String, Error> {
        Ok(format!("put {}", ask(&db).await?))
    }

    struct Elsewhere;

    #[rocket::async_trait]
    impl<'r> FromRequest<'r> for Elsewhere {
        type Error = ();

        async fn from_request(_request: &'r Request<'_>) -> Outcome<Self, ()> {
            Outcome::Forward(Status::NotFound)
        }
    }

    #[get("/forward", rank = 1)]
    async fn forwards(_changes: ChangesDatabase, _elsewhere: Elsewhere) -> String {
        unreachable!()
    }

    #[get("/forward", rank = 2)]
    async fn forwarded(db: ReplicatedDb) -> Result<String, Error> {
        ask(&db).await
    }

    #[get("/stream")]
    fn stream(db: ReplicatedDb) -> TextStream<BoxStream<'static, String>> {
        let answers = rocket::async_stream::stream! {
            for _ in 0..2 {
                yield ask(&db).await.unwrap();
            }
        };
        TextStream(answers.boxed())
    }

    #[post("/stream")]
    fn stream_of_writes(db: ReplicatedDb) -> TextStream<BoxStream<'static, String>> {
        stream(db)
    }

    #[catch(404)]
    async fn not_found(request: &Request<'_>) -> String {
        let db = request.guard::<ReplicatedDb>().await.succeeded().unwrap();
        format!("not found {}", ask(&db).await.unwrap())
    }

    fn app(lab: &Lab) -> Rocket<Build> {
        let routes = routes![
            read, write, changes_before, changes_after, changes_alone, changes_midway, both, both_reversed, search, user,
            user_changes, user_reads, spawned, optional, own_head, deleted, put_form, forwards, forwarded, stream,
            stream_of_writes,
        ];
        rocket_over(&lab.section()).attach(Replicated::fairing()).mount("/", routes).register("/", catchers![not_found])
    }

    fn get(client: &Client, path: &'static str) -> (String, bool) {
        let response = client.get(path).dispatch();
        let pinned = pin_of(&response).is_some();
        (response.into_string().unwrap(), pinned)
    }

    #[test]
    fn guards_state_the_intent_in_any_order() {
        let lab = Lab::new();
        let client = Client::untracked(app(&lab)).unwrap();
        for (path, answer, pinned) in [
            ("/read", "ReadMethod", false),
            ("/changes/before", "ChangesDatabase", true),
            ("/changes/after", "ChangesDatabase", true),
            ("/changes/alone", "nothing asked", false),
            ("/changes/midway", "ReadMethod ChangesDatabase", true),
            ("/both", "ChangesDatabase", true),
            ("/both/reversed", "ChangesDatabase", true),
            ("/user", "ReadMethod ReadMethod", false),
            ("/user/changes", "ReadMethod ChangesDatabase", true),
            ("/spawned", "ReadMethod", false),
            ("/optional", "ReadMethod", false),
            ("/forward", "ChangesDatabase", true),
            ("/stream", "ReadMethodReadMethod", false),
            ("/nowhere", "not found ReadMethod", false),
        ] {
            assert_eq!(get(&client, path), (answer.to_owned(), pinned), "{path}");
        }
    }

    #[test]
    fn a_post_that_reads_asks_a_slave_and_sets_no_pin() {
        let lab = Lab::new();
        let client = Client::untracked(app(&lab)).unwrap();
        let response = client.post("/search").dispatch();
        assert_eq!(pin_of(&response), None);
        assert_eq!(response.into_string().unwrap(), "ReadsDatabase");
    }

    #[test]
    fn head_is_served_by_a_slave_through_get_routes_and_its_own() {
        let lab = Lab::new();
        let client = Client::untracked(app(&lab)).unwrap();
        for path in ["/read", "/head"] {
            let response = client.head(path).dispatch();
            assert_eq!((response.status(), pin_of(&response)), (Status::Ok, None), "{path}");
        }
        let response = client.head("/changes/before").dispatch();
        assert_eq!((response.status(), pin_of(&response).is_some()), (Status::Ok, true));
    }

    #[test]
    fn the_method_is_the_one_of_the_form() {
        let lab = Lab::new();
        let client = Client::untracked(app(&lab)).unwrap();
        for (method, answer) in [("delete", "deleted WriteMethod"), ("PUT", "put WriteMethod")] {
            let response = client.post("/form").header(ContentType::Form).body(format!("_method={method}")).dispatch();
            assert!(pin_of(&response).is_some(), "{method}");
            assert_eq!(response.into_string().unwrap(), answer);
        }
        // With `_method=get`, a POST reaches only GET routes, and only as a read.
        let response = client.post("/read").header(ContentType::Form).body("_method=get").dispatch();
        assert_eq!(pin_of(&response), None);
        assert_eq!(response.into_string().unwrap(), "ReadMethod");
    }

    #[test]
    fn a_streamed_reply_that_may_yet_write_pins_beforehand() {
        let lab = Lab::new();
        let client = Client::untracked(app(&lab)).unwrap();
        let response = client.post("/stream").dispatch();
        assert!(pin_of(&response).is_some());
        assert_eq!(response.into_string().unwrap(), "WriteMethodWriteMethod");
    }

    static ANSWERED: AtomicBool = AtomicBool::new(false);
    static WRITTEN: AtomicBool = AtomicBool::new(false);

    #[get("/late")]
    async fn late(db: ReplicatedDb) -> &'static str {
        rocket::tokio::spawn(async move {
            while !ANSWERED.load(Ordering::Acquire) {
                rocket::tokio::task::yield_now().await;
            }
            db.changes_database();
            for _ in 0..2 {
                ask(&db).await.unwrap();
            }
            WRITTEN.store(true, Ordering::Release);
        });
        "later"
    }

    /// A slave may not have yet what a guard has read from the master.
    #[test]
    fn a_request_that_has_asked_the_master_as_a_writer_stays_one() {
        let lab = Lab::new();
        let client = Client::untracked(app(&lab)).unwrap();
        let response = client.post("/user/reads").dispatch();
        assert!(pin_of(&response).is_some());
        assert_eq!(response.into_string().unwrap(), "WriteMethod WriteMethod");
    }

    #[test]
    fn a_write_after_the_reply_is_warned_of_once() {
        let lab = Lab::new();
        let rocket = rocket_over(&lab.section()).attach(Replicated::fairing()).mount("/", routes![late]);
        let client = Client::untracked(rocket).unwrap();
        let warnings = || logbook::lines(&["WARN", "after the reply"]).len();
        let before = warnings();
        assert_eq!(pin_of(&client.get("/late").dispatch()), None);
        ANSWERED.store(true, Ordering::Release);
        blocking_eventually("two late writes", || WRITTEN.load(Ordering::Acquire).then_some(()));
        assert_eq!(warnings(), before + 1);
    }

    #[test]
    fn a_guard_without_its_fairing_aborts_launch_and_says_what_to_attach() {
        let database = std::any::type_name::<Database>();
        let attach =
            format!("is used, but not attached. Attach its fairing: `.attach(rocket_replicated::Replicated::<{database}>::fairing())`.");
        for (routes, message) in [
            (routes![read], &*attach),
            (routes![optional], &*attach),
            (routes![changes_alone], "no database is attached. Attach one: `.attach(Replicated::fairing())`."),
        ] {
            let before = logbook::lines(&["ERROR", message]).len();
            let error = Client::untracked(rocket_over("").mount("/", routes)).unwrap_err();
            assert!(matches!(error.kind(), rocket::error::ErrorKind::SentinelAborts(_)), "{error}");
            assert!(logbook::lines(&["ERROR", message]).len() > before, "{message}");
        }
    }
}
