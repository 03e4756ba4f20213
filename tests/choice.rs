//! The rows of the choice table, tested through a whole application.

crate::on_every_database! {
    use rocket::http::Cookie;
    use rocket::local::blocking::Client;
    use rocket::{Build, Rocket, get, options, post, routes};
    use rocket_replicated::{Error, ReadShare, ReadsDatabase, Role};

    use support::{pin_of, rocket_over};

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
    fn the_queries_of_one_request_ask_one_slave() {
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
        let client = Client::untracked(app(lab.section()).mount("/", routes![many])).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        support::blocking_eventually("both slaves", || {
            seen.insert(client.get("/many").dispatch().into_string().unwrap());
            (seen.len() == 2).then_some(())
        });
    }

    /// The choices for GETs from this many addresses, one after the other.
    fn choices(client: &Client, path: &'static str, addresses: usize) -> Vec<String> {
        let ask = |number: usize| {
            let address = std::net::SocketAddr::from(([10, 0, (number >> 8) as u8, number as u8], 1));
            client.get(path).remote(address).dispatch().into_string().unwrap()
        };
        (0..addresses).map(ask).collect()
    }

    #[test]
    fn a_share_of_the_clients_reads_from_slaves() {
        let lab = Lab::new();
        let section = format!("{}read_from_slaves = 0.25", lab.section());
        let client = Client::untracked(app(section)).unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap();
        let first = choices(&client, "/", 200);
        let share = |choices: &[String]| choices.iter().filter(|choice| *choice == "slave ReadMethod").count();
        let others = |choices: &[String]| choices.iter().filter(|choice| *choice == "master OutsideShare").count();
        assert_eq!(share(&first) + others(&first), 200, "{first:?}");
        assert!((30..=70).contains(&share(&first)), "{} of 200", share(&first));
        assert_eq!(choices(&client, "/", 200), first, "a client sees one state");
        assert_eq!(choices(&client, "/asked", 20), vec!["slave ReadsDatabase"; 20], "whoever asks gets a slave");
        let db = cluster.read(None);
        rocket::execute(async { sqlx::query("SELECT id FROM notes").fetch_all(&db).await.unwrap() });
        assert_eq!(db.choice().unwrap().reason(), rocket_replicated::Reason::ReadsDatabase, "a job asks as well");

        let nobody_knows: Vec<_> = (0..200).map(|_| get(&client, "/", None)).collect();
        assert!((20..=80).contains(&share(&nobody_knows)), "{} of 200", share(&nobody_knows));

        cluster.set_read_share(ReadShare::of_clients(0.5));
        let more = choices(&client, "/", 200);
        assert!((70..=130).contains(&share(&more)), "{} of 200", share(&more));
        let stayed = first.iter().zip(&more).all(|(before, after)| before == after || before == "master OutsideShare");
        assert!(stayed, "whoever was in the share still is");

        cluster.set_read_share(ReadShare::ALL);
        assert_eq!(share(&choices(&client, "/", 50)), 50);
        cluster.set_read_share(ReadShare::ASKED);
        assert_eq!(choices(&client, "/", 50), vec!["master SwitchedOff"; 50]);
        assert_eq!(choices(&client, "/asked", 1), ["slave ReadsDatabase"]);
        cluster.stop_reading_slaves();
        assert_eq!(choices(&client, "/asked", 1), ["master SwitchedOff"]);
        cluster.resume_reading_slaves();
        assert_eq!(choices(&client, "/", 200), first, "as configured");
    }

    #[test]
    fn a_pinned_client_outside_the_share_reads_at_the_master() {
        let lab = Lab::new();
        let client = Client::untracked(app(format!("{}read_from_slaves = 1e-6", lab.section()))).unwrap();
        let pin = pin_of(&client.post("/").dispatch()).unwrap();
        assert_eq!(get(&client, "/", Some(&pin)), "master OutsideShare");
        assert_eq!(get(&client, "/asked", Some(&pin)), "master Pinned");
    }

    #[test]
    fn a_client_is_led_to_the_same_slave_while_that_is_usable() {
        #[get("/node")]
        async fn node(db: ReplicatedDb) -> Result<String, Error> {
            sqlx::query("SELECT id FROM notes").fetch_all(&db).await?;
            Ok(db.choice().unwrap().node().to_owned())
        }

        let lab = Lab::new();
        let launch = || {
            let rocket = app(format!("{}sticky = true", lab.section()));
            Client::untracked(rocket.mount("/", routes![node])).unwrap()
        };
        let client = launch();
        let before = choices(&client, "/node", 100);
        let first = before.iter().filter(|node| *node == "slave-1").count();
        assert!((30..=70).contains(&first), "{first} of 100");
        assert_eq!(choices(&client, "/node", 100), before, "a reload");
        assert_eq!(choices(&launch(), "/node", 100), before, "another process");

        let cluster = Replicated::fetch(client.rocket()).unwrap();
        cluster.take_out("slave-1").unwrap();
        assert_eq!(choices(&client, "/node", 100), vec!["slave-2"; 100]);
        cluster.put_back("slave-1").unwrap();
        assert_eq!(choices(&client, "/node", 100), before);

        // Without a known client address, the load decides.
        support::blocking_eventually("both slaves", || {
            let mut seen: Vec<_> =
                (0..10).map(|_| client.get("/node").dispatch().into_string().unwrap()).collect();
            seen.sort();
            seen.dedup();
            (seen.len() == 2).then_some(())
        });
    }

    #[get("/node")]
    async fn node_of(db: ReplicatedDb) -> Result<String, Error> {
        sqlx::query("SELECT id FROM notes").fetch_all(&db).await?;
        Ok(db.choice().unwrap().node().to_owned())
    }

    /// `slave-2` serves alone, but for the time in which it is taken out.
    fn prefers_the_second_slave(section: &str) {
        let client = Client::untracked(app(section.to_owned()).mount("/", routes![node_of])).unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap();
        let nodes = || (0..30).map(|_| get(&client, "/node", None)).collect::<Vec<_>>();
        assert_eq!(nodes(), vec!["slave-2"; 30]);
        cluster.take_out("slave-2").unwrap();
        assert_eq!(nodes(), vec!["slave-1"; 30]);
        cluster.put_back("slave-2").unwrap();
        assert_eq!(nodes(), vec!["slave-2"; 30]);
    }

    #[test]
    fn slaves_in_the_zone_of_the_process_come_before_others() {
        let lab = Lab::new();
        let section = lab
            .section()
            .replace("name = \"slave-1\"", "name = \"slave-1\", weight = 1000, zone = \"b\"")
            .replace("name = \"slave-2\"", "name = \"slave-2\", zone = \"a\"");
        for keys in ["", "sticky = true"] {
            prefers_the_second_slave(&format!("{section}zone = \"a\"\n{keys}"));
        }
        // A slave whose zone is not known is not near.
        let unknown = section.replace(", zone = \"b\"", "");
        prefers_the_second_slave(&format!("{unknown}zone = \"a\""));
    }

    #[test]
    fn a_slave_of_weight_0_serves_only_where_no_other_can() {
        let lab = Lab::new();
        let spare = lab.section().replace("name = \"slave-1\"", "name = \"slave-1\", weight = 0, zone = \"a\"");
        prefers_the_second_slave(&format!("{spare}zone = \"a\""));
        // Where all have this weight, they share the reads.
        let section = spare.replace("name = \"slave-2\"", "name = \"slave-2\", weight = 0");
        let client = Client::untracked(app(section).mount("/", routes![node_of])).unwrap();
        let mut nodes: Vec<_> = (0..60).map(|_| get(&client, "/node", None)).collect();
        nodes.sort();
        nodes.dedup();
        assert_eq!(nodes, ["slave-1", "slave-2"]);
    }

    #[support::async_test]
    async fn reads_are_spread_by_weight_and_by_how_busy_a_slave_is() {
        let lab = Lab::new();
        let section = lab.section().replace("name = \"slave-1\"", "name = \"slave-1\", weight = 3");
        let rocket = app(format!("{section}max_connections = 40"));
        let client = rocket::local::asynchronous::Client::untracked(rocket).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap();

        let mut held = [Vec::new(), Vec::new()];
        for _ in 0..40 {
            let db = cluster.read(None);
            let conn = db.get().await.unwrap();
            held[usize::from(db.choice().unwrap().node() == "slave-2")].push(conn);
        }
        let [first, second] = held.each_ref().map(Vec::len);
        assert!(first.abs_diff(30) <= 2 && second.abs_diff(10) <= 2, "{first} and {second}");

        // A slave whose connections stay in use gets no more reads.
        let [slow, mut quick] = held;
        quick.clear();
        support::blocking_eventually("a quick slave at rest", || {
            let status = cluster.status();
            let slave = status.iter().find(|node| node.name == "slave-2").unwrap();
            (slave.in_use == 0).then_some(())
        });
        for _ in 0..5 {
            let db = cluster.read(None);
            quick.push(db.get().await.unwrap());
            assert_eq!(db.choice().unwrap().node(), "slave-2");
        }
        drop(slow);
    }
}
