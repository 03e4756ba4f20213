//! `refused_write = "reroute"`: a write on a connection for reads is run again, on the master.

crate::on_every_database! {
    use rocket::http::Status;
    use rocket::local::blocking::Client;
    use rocket::{Build, Rocket, get, routes};
    use rocket_replicated::Error;

    use support::{logbook, pin_of, rocket_over};

    async fn insert(db: &ReplicatedDb) -> Result<(), Error> {
        sqlx::query("INSERT INTO notes (id, body) SELECT coalesce(max(id), 0) + 1, 'note' FROM notes")
            .execute(db)
            .await?;
        Ok(())
    }

    #[get("/rerouted")]
    async fn rerouted(db: ReplicatedDb) -> Result<String, Error> {
        sqlx::query("SELECT id FROM notes").fetch_all(&db).await?;
        let before = db.choice().unwrap().role();
        insert(&db).await?;
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM notes").fetch_one(&db).await?;
        Ok(format!("{before} {:?} {count}", db.choice().unwrap().reason()))
    }

    #[get("/returning")]
    async fn returning(db: ReplicatedDb) -> Result<String, Error> {
        if has_returning() {
            let insert = "INSERT INTO notes (id, body) VALUES (77, 'returned') RETURNING body";
            return Ok(sqlx::query_scalar(insert).fetch_one(&db).await?);
        }
        sqlx::query("INSERT INTO notes (id, body) VALUES (77, 'returned')").execute(&db).await?;
        Ok("returned".into())
    }

    #[get("/raw")]
    async fn raw(db: ReplicatedDb) -> Result<(), Error> {
        sqlx::raw_sql("INSERT INTO notes (id, body) VALUES (1, 'raw')").execute(&db).await?;
        Ok(())
    }

    #[get("/connection")]
    async fn connection(db: ReplicatedDb) -> Result<(), Error> {
        let mut conn = db.get().await?;
        sqlx::query("INSERT INTO notes (id, body) VALUES (1, 'connection')").execute(&mut *conn).await?;
        Ok(())
    }

    #[get("/transaction")]
    async fn transaction(db: ReplicatedDb) -> Result<(), Error> {
        let mut transaction = db.begin().await?;
        sqlx::query("INSERT INTO notes (id, body) VALUES (1, 'transaction')").execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(())
    }

    fn app(section: &str) -> Rocket<Build> {
        rocket_over(section)
            .attach(Replicated::fairing())
            .mount("/", routes![rerouted, returning, raw, connection, transaction])
    }

    #[test]
    fn one_statement_runs_once_on_the_master_and_pins() {
        let lab = Lab::new();
        let section = format!("{}refused_write = \"reroute\"\nmax_lag = false", lab.section());
        let client = Client::untracked(app(&section)).unwrap();
        lab.pause();
        let response = client.get("/rerouted").dispatch();
        assert!(pin_of(&response).is_some());
        assert_eq!(response.into_string().unwrap(), "slave ChangesDatabase 1");
        assert_eq!(lab.notes(), ["note"]);

        let response = client.get("/returning").dispatch();
        assert!(pin_of(&response).is_some());
        assert_eq!(response.into_string().unwrap(), "returned");
    }

    #[test]
    fn a_reroute_is_reported_once_for_each_handler() {
        let lab = Lab::new();
        let section = format!("{}refused_write = \"reroute\"", lab.section());
        let client = Client::untracked(app(&section).mount("/again", routes![rerouted])).unwrap();
        let reports = |handler: &str| logbook::lines(&["WARN", &format!("A write by `{handler}` on a connection for reads")]).len();
        let before = (reports("rerouted"), reports("returning"));
        for _ in 0..3 {
            client.get("/rerouted").dispatch();
            lab.sql("DELETE FROM notes");
            lab.resume();
        }
        client.get("/returning").dispatch();
        assert_eq!((reports("rerouted"), reports("returning")), (before.0 + 1, before.1 + 1));
    }

    #[test]
    fn writes_that_may_be_several_statements_are_refused() {
        let lab = Lab::new();
        let client = Client::untracked(app(&format!("{}refused_write = \"reroute\"", lab.section()))).unwrap();
        for path in ["/raw", "/connection", "/transaction"] {
            let response = client.get(path).dispatch();
            assert_eq!((response.status(), pin_of(&response)), (Status::InternalServerError, None), "{path}");
        }
        assert_eq!(lab.notes(), Vec::<String>::new());
    }

    #[test]
    fn rerouting_is_off_by_default() {
        let lab = Lab::new();
        let client = Client::untracked(app(&lab.section())).unwrap();
        assert_eq!(client.get("/rerouted").dispatch().status(), Status::InternalServerError);
        assert_eq!(lab.notes(), Vec::<String>::new());
    }
}
