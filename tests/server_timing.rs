//! `Server-Timing` names the server that served a reply, and the reason.

crate::on_every_database! {
    use rocket::figment::providers::{Format, Toml};
    use rocket::local::blocking::{Client, LocalResponse};
    use rocket::{get, post, routes};
    use rocket_replicated::Error;

    use support::{rocket, rocket_over};

    #[get("/")]
    async fn read(db: ReplicatedDb) -> Result<(), Error> {
        sqlx::query("SELECT id FROM notes").fetch_all(&db).await?;
        Ok(())
    }

    #[post("/")]
    async fn write(db: ReplicatedDb) -> Result<(), Error> {
        let mut transaction = db.begin().await?;
        sqlx::query(sql("INSERT INTO notes (id, body) VALUES (1, $1)")).bind("x").execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(())
    }

    #[get("/unasked")]
    fn unasked(_db: ReplicatedDb) {}

    fn client(section: &str) -> Client {
        let rocket = rocket_over(section).attach(Replicated::fairing());
        Client::untracked(rocket.mount("/", routes![read, write, unasked])).unwrap()
    }

    fn timing(response: &LocalResponse<'_>) -> Option<(String, f64)> {
        let header = response.headers().get_one("Server-Timing")?;
        let (what, took) = header.split_once(";dur=").unwrap();
        Some((what.to_owned(), took.parse().unwrap()))
    }

    #[test]
    fn the_header_names_the_server_and_the_reason() {
        let lab = Lab::new();
        let client = client(&format!("{}name = \"db-1\"", lab.section().replace("slave-2", "slave-1b")));
        let (what, took) = timing(&client.get("/").dispatch()).unwrap();
        assert!(what.starts_with("db;desc=\"slave-1") && what.ends_with(": read method\""), "{what}");
        assert!(took > 0.0);
        let response = client.post("/").dispatch();
        let (what, took) = timing(&response).unwrap();
        assert_eq!(what, "db;desc=\"db-1: write method\"");
        assert!(took > 0.0, "what runs in a transaction counts");
        assert!(support::pin_of(&response).is_some());
        assert_eq!(timing(&client.get("/unasked").dispatch()), None);
    }

    #[test]
    fn the_header_is_on_by_default_in_the_debug_profile_alone() {
        let lab = Lab::new();
        let off = client(&format!("{}server_timing = false", lab.section()));
        assert_eq!(timing(&off.get("/").dispatch()), None);
        for (key, is_sent) in [("", false), ("server_timing = true", true)] {
            let section = format!("[release.databases.replicated]\n{}{key}", lab.section_alone());
            let figment = rocket("").figment().clone();
            let figment = figment.merge(Toml::string(&section).nested());
            let rocket = rocket::custom(figment.select("release")).attach(Replicated::fairing());
            let client = Client::untracked(rocket.mount("/", routes![read])).unwrap();
            assert_eq!(timing(&client.get("/").dispatch()).is_some(), is_sent, "{key}");
        }
    }
}

crate::on_postgres! {
    mod several {
        use rocket::local::blocking::Client;
        use rocket::{get, routes};
        use rocket_replicated::{Database, Error, Replicated, ReplicatedDb, postgres};

        use support::lab::postgres::Lab;
        use support::rocket;

        #[derive(Database)]
        #[database("blog")]
        struct Blog(postgres::Pool);

        #[derive(Database)]
        #[database("shop")]
        struct Shop(postgres::Pool);

        #[get("/both")]
        async fn both(blog: ReplicatedDb<Blog>, shop: ReplicatedDb<Shop>) -> Result<(), Error> {
            sqlx::query("SELECT pg_sleep(0.05)").execute(&blog).await?;
            let mut transaction = shop.begin().await?;
            sqlx::query("SELECT pg_sleep(0.1)").execute(&mut *transaction).await?;
            Ok(())
        }

        #[get("/shop")]
        async fn shop(_blog: ReplicatedDb<Blog>, shop: ReplicatedDb<Shop>) -> Result<(), Error> {
            sqlx::query("SELECT 1").execute(&shop).await?;
            Ok(())
        }

        #[test]
        fn each_database_that_was_asked_tells_its_own() {
            let lab = Lab::new();
            let section = |database| {
                format!("[debug.databases.{database}]\n{}pin.name = \"{database}_pin\"\n", lab.section())
                    .replace("\"slave-", &format!("\"{database}-"))
            };
            let rocket = rocket(&format!("{}{}", section("blog"), section("shop")))
                .attach(Replicated::<Blog>::fairing())
                .attach(Replicated::<Shop>::fairing())
                .mount("/", routes![both, shop]);
            let client = Client::untracked(rocket).unwrap();
            let timings = |path: &str| -> Vec<String> {
                let response = client.get(path.to_owned()).dispatch();
                response.headers().get("Server-Timing").map(str::to_owned).collect()
            };
            let took = |timing: &str, database: &str| {
                let what = format!("db;desc=\"{database} at {database}-");
                let rest = timing.strip_prefix(&what).unwrap_or_else(|| panic!("{what} in {timing}"));
                rest.split_once(": read method\";dur=").unwrap().1.parse::<f64>().unwrap()
            };
            let [blog, shop] = &timings("/both")[..] else { panic!() };
            assert!(took(blog, "blog") >= 50.0, "{blog}");
            assert!(took(shop, "shop") >= 100.0, "what runs in a transaction counts: {shop}");
            let [shop] = &timings("/shop")[..] else { panic!() };
            took(shop, "shop");
        }
    }
}
