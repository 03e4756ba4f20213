//! Connections for reads refuse writes on every server: on a laptop without slaves as in production.

crate::on_every_database! {
    use rocket::http::Status;
    use rocket::local::blocking::Client;
    use rocket::{Build, Rocket, get, post, routes};
    use rocket_replicated::{ChangesDatabase, Error, ReadsDatabase};
    use sqlx::error::ErrorKind;

    use support::{logbook, pin_of, rocket_over};

    const INSERT: &str = "INSERT INTO notes (id, body) VALUES (1, 'written')";

    /// Tries to write in every way, and returns the error of the first attempt.
    async fn try_to_write(db: &ReplicatedDb) -> String {
        let error = sqlx::query(INSERT).execute(db).await.map(|_| ()).unwrap_err();
        let database = error.as_database_error().unwrap();
        assert_eq!(database.code().as_deref(), Some(REFUSED));
        assert_eq!(database.kind(), ErrorKind::Other);
        assert!(database.try_downcast_ref::<DriverError>().is_some());

        assert!(sqlx::query(INSERT).fetch_all(db).await.is_err());
        assert!(sqlx::raw_sql(INSERT).execute(db).await.is_err());
        let mut conn = db.get().await.unwrap();
        assert!(sqlx::query(INSERT).execute(&mut *conn).await.is_err());
        drop(conn);
        let mut transaction = db.begin().await.unwrap();
        assert!(sqlx::query(INSERT).execute(&mut *transaction).await.is_err());
        error.to_string()
    }

    #[get("/careless")]
    async fn careless(db: ReplicatedDb) -> String {
        try_to_write(&db).await
    }

    #[post("/careless_search")]
    async fn careless_search(_reads: ReadsDatabase, db: ReplicatedDb) -> String {
        try_to_write(&db).await
    }

    #[get("/returned")]
    async fn returned(db: ReplicatedDb) -> Result<(), Error> {
        sqlx::query(INSERT).execute(&db).await?;
        Ok(())
    }

    #[get("/careful")]
    async fn careful(_changes: ChangesDatabase, db: ReplicatedDb) -> Result<(), Error> {
        sqlx::query(INSERT).execute(&db).await?;
        Ok(())
    }

    fn app(section: String) -> Rocket<Build> {
        let routes = routes![careless, careless_search, returned, careful];
        rocket_over(&section).attach(Replicated::fairing()).mount("/", routes)
    }

    fn says(error: &str, handler: &str, node: &str) {
        for part in [&*format!("`{handler}` tried to write"), node, "database `replicated`", "`ChangesDatabase` guard"] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn on_a_slave() {
        let lab = Lab::new();
        let client = Client::untracked(app(lab.section())).unwrap();
        let error = client.get("/careless").dispatch().into_string().unwrap();
        says(&error, "careless", "(slave-");
        let error = client.post("/careless_search").dispatch().into_string().unwrap();
        assert!(error.contains("`careless_search` tried to write") && error.contains("(slave-"), "{error}");
        assert_eq!(lab.notes(), Vec::<String>::new());
    }

    #[test]
    fn at_the_master_without_slaves() {
        let lab = Lab::new();
        let client = Client::untracked(app(lab.section_alone())).unwrap();
        let error = client.get("/careless").dispatch().into_string().unwrap();
        says(&error, "careless", "(no slaves)");
        assert_eq!(lab.notes(), Vec::<String>::new());
    }

    #[test]
    fn at_the_master_inside_a_lag_window() {
        let lab = Lab::new();
        let client = Client::untracked(app(format!("{}lag_window = 60", lab.section()))).unwrap();
        let pin = pin_of(&client.get("/careful").dispatch()).unwrap();
        assert_eq!(lab.notes(), ["written"]);
        let error = client.get("/careless").cookie(pin).dispatch().into_string().unwrap();
        says(&error, "careless", "(pinned)");
    }

    #[test]
    fn the_log_names_the_handler_and_the_client_learns_nothing() {
        let lab = Lab::new();
        let client = Client::untracked(app(lab.section())).unwrap();
        let response = client.get("/returned").dispatch();
        assert_eq!((response.status(), pin_of(&response)), (Status::InternalServerError, None));
        assert!(!response.into_string().unwrap().contains("ChangesDatabase"));
        let lines = logbook::lines(&["ERROR: GET /returned", "`returned` tried to write", "`ChangesDatabase`"]);
        assert!(!lines.is_empty());
    }

    #[test]
    fn without_enforcement_a_get_writes_at_the_master() {
        let lab = Lab::new();
        let client = Client::untracked(app(format!("{}enforce_read_only = false", lab.section_alone()))).unwrap();
        let response = client.get("/returned").dispatch();
        assert_eq!((response.status(), pin_of(&response)), (Status::Ok, None));
        assert_eq!(lab.notes(), ["written"]);
    }

    #[test]
    fn connections_that_are_read_only_are_not_complained_of() {
        let lab = Lab::new();
        let client = Client::untracked(app(lab.section())).unwrap();
        client.get("/careless").dispatch();
        assert_eq!(logbook::lines(&["enforce_read_only"]), Vec::<String>::new());
    }
}
