//! TLS to the servers: connections are as the URL asks, or there are none.

support::on_servers! {
    use rocket::local::asynchronous::Client;
    use rocket::{get, post, routes};
    use rocket_replicated::Error;

    use support::tls::ServesTls;
    use support::{logbook, rocket_over};

    #[get("/")]
    async fn read(db: ReplicatedDb) -> Result<String, Error> {
        sqlx::query("SELECT 1").fetch_one(&db).await?;
        Ok(db.choice().unwrap().to_string())
    }

    #[post("/")]
    async fn write(db: ReplicatedDb) -> Result<String, Error> {
        sqlx::query("CREATE TABLE IF NOT EXISTS written (id INTEGER)").execute(&db).await?;
        Ok(db.choice().unwrap().to_string())
    }

    async fn client_of(section: &str) -> Client {
        let rocket = rocket_over(section).attach(Replicated::fairing()).mount("/", routes![read, write]);
        Client::untracked(rocket).await.unwrap()
    }

    /// The replies to a write and to a read.
    #[cfg(any(feature = "tls-native-tls", feature = "tls-rustls"))]
    async fn answers(client: &Client) -> (String, String) {
        let text = async |request: rocket::local::asynchronous::LocalRequest<'_>| {
            let response = request.dispatch().await;
            match response.status().code {
                200 => response.into_string().await.unwrap(),
                code => code.to_string(),
            }
        };
        (text(client.post("/")).await, text(client.get("/")).await)
    }

    fn section(master: &str, slave: &str) -> String {
        format!(
            "url = \"{master}\"\nslaves = [{{ url = \"{slave}\", name = \"slave\" }}]\nlag_window = 0\n\
             connect_timeout = 10\ncheck_interval = 0.2\n",
        )
    }

    /// Checks that launch fails, with an error in the log that has these words.
    async fn aborts(section: &str, words: &[&str]) {
        let launch = Client::untracked(rocket_over(section).attach(Replicated::fairing())).await;
        let error = launch.unwrap_err();
        assert!(matches!(error.kind(), rocket::error::ErrorKind::FailedFairings(_)), "{error}");
        let lines = logbook::lines(&["ERROR", "Database `replicated` is misconfigured"]);
        let line = lines.last().unwrap();
        assert!(words.iter().all(|word| line.contains(word)) && !line.contains("secret"), "{line}");
    }

    #[cfg(any(feature = "tls-native-tls", feature = "tls-rustls"))]
    #[support::async_test]
    async fn certificates_are_verified_as_the_url_asks() {
        use rocket_replicated_testing::Servers;
        use support::tls::Authority;

        let folder = tempfile::TempDir::new().unwrap();
        let (ours, other) = (Authority::new("ours"), Authority::new("other"));
        let (ours_file, other_file) = (ours.file(folder.path(), "ours"), other.file(folder.path(), "other"));
        let cluster = Servers::<Dbms>::start(Default::default(), 1);
        let (master, slave) = (&cluster.master, &cluster.slaves[0]);
        ours.certify(master, "localhost");
        ours.certify(slave, "localhost");
        // From now on, all connections that succeed are encrypted.
        Dbms::demand(&cluster);

        let at_localhost = |url: String| url.replace("127.0.0.1", "localhost");
        let full = |url: &str, file| Dbms::url_with(url, Dbms::VERIFY_FULL, file);
        let (master_url, slave_url) = (at_localhost(master.url()), at_localhost(slave.url()));
        let good = (full(&master_url, &ours_file), full(&slave_url, &ours_file));

        let by_slave = "slave (read method)";
        let client = client_of(&section(&good.0, &good.1)).await;
        let (written, read) = answers(&client).await;
        assert!(written.ends_with(" (write method)"), "{written}");
        assert_eq!(read, by_slave);

        for (what, bad) in [
            ("an authority that did not sign it", full(&slave_url, &other_file)),
            ("another name for the host", full(&slave.url(), &ours_file)),
        ] {
            let words = ["WARN", "slave `slave`", "cannot be used", "certificate"];
            let before = logbook::lines(&words).len();
            let client = client_of(&section(&good.0, &bad)).await;
            let (written, read) = answers(&client).await;
            assert!(written.ends_with(" (write method)"), "{what}: {written}");
            assert!(read.ends_with(" (slaves unavailable)"), "{what}: {read}");
            assert!(logbook::lines(&words).len() > before, "{what}: {:?}", logbook::lines(&["`slave`"]));
        }
        for bad in [full(&master_url, &other_file), full(&master.url(), &ours_file)] {
            let words = ["WARN", "The master `", "cannot be used", "certificate"];
            let before = logbook::lines(&words).len();
            let client = client_of(&section(&bad, &good.1)).await;
            assert_eq!(answers(&client).await, ("503".into(), by_slave.into()));
            assert!(logbook::lines(&words).len() > before, "{:?}", logbook::lines(&["master"]));
        }

        let any_host = Dbms::url_with(&master.url(), Dbms::VERIFY_CA, &ours_file);
        let (written, read) = answers(&client_of(&section(&any_host, &good.1)).await).await;
        assert!(written.ends_with(" (write method)"), "{written}");
        assert_eq!(read, by_slave);

        let missing = full(&master_url, &folder.path().join("missing"));
        aborts(&section(&missing, &good.1), &["databases.replicated.url", Dbms::AUTHORITY, "cannot be read"]).await;
        aborts(&section(&good.0, &missing), &["slaves[0]", Dbms::AUTHORITY, "cannot be read"]).await;
    }

    #[cfg(not(any(feature = "tls-native-tls", feature = "tls-rustls")))]
    #[support::async_test]
    async fn a_build_without_tls_does_not_launch() {
        const FEATURES: &str = "feature `tls-rustls` or `tls-native-tls` of `rocket_replicated`";

        let lab = Lab::new();
        let (master, slave) = (lab.master_url(), &lab.slave_urls()[0]);
        let _client = client_of(&section(master, slave)).await;
        for mode in Dbms::DEMANDING {
            aborts(&section(&format!("{master}?{mode}"), slave), &[FEATURES, "replicated.url`"]).await;
            aborts(&section(master, &format!("{slave}?{mode}")), &[FEATURES, "slaves[0].url`"]).await;
        }
    }
}
