//! The rows of the choice table, through a whole application.

mod support;

support::on_every_database! {
    use rocket::http::Cookie;
    use rocket::local::blocking::Client;
    use rocket::{Build, Rocket, get, options, post, routes};
    use rocket_replicated::{Error, ReadsDatabase, Role};

    use crate::support::{pin_of, rocket_over};

    async fn choice(db: ReplicatedDb) -> Result<String, Error> {
        assert_eq!(db.choice(), None, "chosen at the first query");
        sqlx::query("SELECT id FROM notes").fetch_all(&db).await?;
        let choice = db.choice().unwrap();
        assert_eq!(choice.role() == Role::Slave, choice.node().starts_with("slave-"));
        Ok(format!("{} {:?}", choice.role(), choice.reason()))
    }

    #[get("/")]
    async fn read(db: ReplicatedDb) -> Result<String, Error> {
        choice(db).await
    }

    #[options("/")]
    async fn options(db: ReplicatedDb) -> Result<String, Error> {
        choice(db).await
    }

    #[post("/")]
    async fn write(db: ReplicatedDb) -> Result<String, Error> {
        choice(db).await
    }

    #[get("/asked")]
    async fn asked(_reads: ReadsDatabase, db: ReplicatedDb) -> Result<String, Error> {
        choice(db).await
    }

    fn app(section: String) -> Rocket<Build> {
        rocket_over(&section).attach(Replicated::fairing()).mount("/", routes![read, options, write, asked])
    }

    fn get(client: &Client, path: &'static str, pin: Option<&Cookie<'static>>) -> String {
        let mut request = client.get(path);
        if let Some(pin) = pin {
            request = request.cookie(pin.clone());
        }
        request.dispatch().into_string().unwrap()
    }

    #[test]
    fn with_slaves() {
        let lab = Lab::new();
        let client = Client::untracked(app(lab.section())).unwrap();
        assert_eq!(get(&client, "/", None), "slave ReadMethod");
        assert_eq!(get(&client, "/asked", None), "slave ReadsDatabase");
        assert_eq!(client.options("/").dispatch().into_string().unwrap(), "slave ReadMethod");

        let response = client.post("/").dispatch();
        let pin = pin_of(&response).unwrap();
        assert_eq!(response.into_string().unwrap(), "master WriteMethod");
        assert_eq!(get(&client, "/", Some(&pin)), "master Pinned");
        assert_eq!(get(&client, "/asked", Some(&pin)), "master Pinned");
    }

    #[test]
    fn without_slaves() {
        let lab = Lab::new();
        let client = Client::untracked(app(lab.section_alone())).unwrap();
        assert_eq!(get(&client, "/", None), "master NoSlaves");
        assert_eq!(get(&client, "/asked", None), "master NoSlaves");
        assert_eq!(client.post("/").dispatch().into_string().unwrap(), "master WriteMethod");
    }

    #[test]
    fn with_slaves_only_when_asked() {
        let lab = Lab::new();
        let client = Client::untracked(app(format!("{}read_from_slaves = \"asked\"", lab.section()))).unwrap();
        assert_eq!(get(&client, "/", None), "master SwitchedOff");
        assert_eq!(get(&client, "/asked", None), "slave ReadsDatabase");
        let pin = pin_of(&client.post("/").dispatch()).unwrap();
        assert_eq!(get(&client, "/asked", Some(&pin)), "master Pinned");
    }

    #[test]
    fn with_read_methods_of_ones_own() {
        let lab = Lab::new();
        let client = Client::untracked(app(format!("{}read_methods = [\"GET\", \"HEAD\"]", lab.section()))).unwrap();
        assert_eq!(get(&client, "/", None), "slave ReadMethod");
        assert_eq!(client.options("/").dispatch().into_string().unwrap(), "master WriteMethod");
    }

    #[test]
    fn reads_are_spread_by_weight_and_one_request_stays_with_one_slave() {
        #[get("/many")]
        async fn many(db: ReplicatedDb) -> Result<String, Error> {
            let ask = async || -> Result<String, Error> {
                sqlx::query("SELECT id FROM notes").fetch_all(&db).await?;
                Ok(db.choice().unwrap().node().to_owned())
            };
            let (a, b, c) = rocket::tokio::try_join!(ask(), ask(), ask())?;
            let d = ask().await?;
            assert!(a == b && b == c && c == d, "{a} {b} {c} {d}");
            Ok(d)
        }

        let lab = Lab::new();
        let section = lab.section().replace("name = \"slave-1\"", "name = \"slave-1\", weight = 3");
        let client = Client::untracked(app(section).mount("/", routes![many])).unwrap();
        let mut first = 0;
        for _ in 0..200 {
            match &*client.get("/many").dispatch().into_string().unwrap() {
                "slave-1" => first += 1,
                "slave-2" => {}
                other => panic!("{other}"),
            }
        }
        // Three quarters of 200, and six standard deviations.
        assert!((110..=190).contains(&first), "{first}");
    }
}
