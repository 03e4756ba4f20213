//! Ignition, lift-off and shutdown: what aborts launch, what the log says at lift-off, and how shutdown ends.

crate::on_every_database! {
    use std::time::{Duration, Instant};

    use rocket::fairing::AdHoc;
    use rocket::figment::providers::{Format, Toml};
    use rocket::local::asynchronous::Client;
    use rocket::{Build, Rocket, get, routes};
    use rocket_replicated::{ChangesDatabase, Cluster, rocket_db_pools};

    use support::{logbook, rocket, rocket_over};

    async fn aborts(rocket: Rocket<Build>) {
        let error = Client::untracked(rocket).await.unwrap_err();
        assert!(matches!(error.kind(), rocket::error::ErrorKind::FailedFairings(_)), "{error}");
    }

    #[support::async_test]
    async fn a_wrong_configuration_aborts_launch_and_the_log_says_where() {
        let lab = Lab::new();
        let rocket = rocket_over(&format!("{}slavs = []", lab.section_alone())).attach(Replicated::fairing());
        aborts(rocket).await;
        let line = "Database `replicated` is misconfigured: `debug.databases.replicated.slavs`: \
                    unknown key: did you mean `slaves`?";
        assert!(!logbook::lines(&["ERROR", line]).is_empty());
        assert_eq!(logbook::lines(&["secret@"]), Vec::<String>::new());
    }

    #[support::async_test]
    async fn a_missing_section_aborts_launch() {
        aborts(rocket("").attach(Replicated::fairing())).await;
        assert!(!logbook::lines(&["ERROR", "missing: add to Rocket.toml", "[default.databases.replicated]"]).is_empty());
    }

    #[get("/")]
    fn used(_changes: ChangesDatabase, _db: ReplicatedDb, _other: rocket_replicated::ReplicatedDb<Other>) {}

    #[derive(rocket_replicated::Database)]
    #[database("other")]
    struct Other(Pool);

    #[derive(rocket_replicated::Database)]
    #[database("third")]
    struct Third(Pool);

    /// Two databases over one lab, with these keys.
    fn two(lab: &Lab, keys: &str, keys_of_other: &str) -> Rocket<Build> {
        let section = lab.section();
        rocket(&format!(
            "[debug.databases.replicated]\n{section}{keys}\n[debug.databases.other]\n{section}{keys_of_other}\n\
             [debug.databases.third]\n{section}pin = {{ name = \"other_pin\" }}",
        ))
    }

    #[support::async_test]
    async fn a_database_that_is_misconfigured_is_not_called_unattached() {
        use rocket_replicated::Replicated;

        let lab = Lab::new();
        let other = std::any::type_name::<Other>();
        let unattached = || logbook::lines(&["ERROR", other, "is used, but not attached"]).len();
        let migrations = || {
            AdHoc::try_on_ignite("migrations", |rocket| async {
                if Replicated::<Other>::fetch(&rocket).is_some() { Ok(rocket) } else { Err(rocket) }
            })
        };
        let rocket = || two(&lab, "", "slavs = []").mount("/", routes![used]);
        let attached = rocket()
            .attach(Replicated::<Database>::fairing())
            .attach(Replicated::<Other>::fairing())
            .attach(migrations());
        aborts(attached).await;
        assert_eq!(unattached(), 0);
        aborts(rocket().attach(migrations())).await;
        assert_eq!(unattached(), 1, "without the fairing");
    }

    #[support::async_test]
    async fn two_databases_with_one_pin_abort_launch() {
        use rocket_replicated::Replicated;

        let lab = Lab::new();
        let attached = |keys: &str, keys_of_other: &str| {
            two(&lab, keys, keys_of_other)
                .attach(Replicated::<Database>::fairing())
                .attach(Replicated::<Other>::fairing())
        };
        // The section of `third` does not count, because `third` is not attached.
        for keys in ["", "pin.header = \"X-Pin\"", "pin.name = \"Other_pin\""] {
            let _client = Client::untracked(attached(keys, "")).await.unwrap();
        }
        for (keys, keys_of_other, key, what) in [
            ("", "pin.name = \"replicated_pin\"", "name", "cookie"),
            ("pin.name = \"other_pin\"", "", "name", "cookie"),
            ("pin.name = \"a\"", "pin = { name = \"a\", path = \"/b\", domain = \"c.org\" }", "name", "cookie"),
            ("pin.header = \"X-Pin\"", "pin.header = \"x-pin\"", "header", "header"),
        ] {
            let line = format!(
                "Database `other` is misconfigured: `debug.databases.other.pin.{key}`: \
                 the pins of the database `replicated` have this {what}: give one of them another"
            );
            let before = logbook::lines(&["ERROR", &line]).len();
            aborts(attached(keys, keys_of_other)).await;
            assert_eq!(logbook::lines(&["ERROR", &line]).len(), before + 1, "{keys} {keys_of_other}");
        }
        aborts(attached("", "").attach(Replicated::<Third>::fairing())).await;
        let _alone = Client::untracked(two(&lab, "", "").attach(Replicated::<Third>::fairing())).await.unwrap();
    }

    #[support::async_test]
    async fn a_slave_that_is_the_master_aborts_launch() {
        let lab = Lab::new();
        let section = lab.section_alone();
        let url = section.strip_prefix("url = ").unwrap().trim();
        let section = format!("{section}slaves = [{{ url = {url}, name = \"copy\" }}]");
        aborts(rocket_over(&section).attach(Replicated::fairing())).await;
        assert!(!logbook::lines(&["ERROR", "databases.replicated.slaves[0]`: leads to the master"]).is_empty());
    }

    #[support::async_test]
    async fn attaching_twice_is_harmless() {
        let lab = Lab::new();
        let rocket = rocket_over(&lab.section()).attach(Replicated::fairing()).attach(Replicated::fairing());
        let client = Client::untracked(rocket).await.unwrap();
        assert!(Replicated::fetch(client.rocket()).is_some());
    }

    #[support::async_test]
    async fn without_the_fairing_there_is_no_cluster() {
        assert!(Replicated::fetch(&rocket("")).is_none());
    }

    #[support::async_test]
    async fn lift_off_says_what_is_in_force() {
        let lab = Lab::new();
        let section = format!("{}lag_window = 7.25\nmax_connections = 23\n", lab.section());
        // The section as it is, with all defaults.
        let rocket = rocket(&format!("[debug.databases.replicated]\n{section}"));
        let _client = Client::untracked(rocket.attach(Replicated::fairing())).await.unwrap();
        for line in [
            &["Replicated database `replicated`:"][..],
            &["master: ", " at "],
            &["slave: slave-1 at ", "weight 1"],
            &["slave: slave-2 at "],
            &["reads: from slaves, each waited for up to 1s"],
            &["reads after a write: from the master for 7.25s, by cookie `replicated_pin`"],
            &["reads at the master: 5 connections, 1 of them for pinned reads"],
            &["health: each server is asked every 1s, and has 1s to answer"],
            &["lag: a slave more than 5.25s behind is left out"],
            &["at most 25 connections to "],
        ] {
            assert!(!logbook::lines(line).is_empty(), "{line:?}");
        }
        assert_eq!(logbook::lines(&["secret@"]), Vec::<String>::new());
    }

    #[support::async_test]
    async fn lift_off_says_which_slaves_are_preferred() {
        let lab = Lab::new();
        let section = lab.section_alone();
        let (_, url) = section.split_once('"').unwrap();
        let (scheme, _) = url.split_once("://").unwrap();
        let launch = async |zone: &str| {
            let section = format!(
                "{section}zone = \"{zone}\"\nslaves = [\
                 {{ url = \"{scheme}://app@127.0.0.1:2/app\", name = \"near\", zone = \"a\" }}, \
                 {{ url = \"{scheme}://app@127.0.0.1:3/app\", name = \"spare\", zone = \"b\", weight = 0 }}]"
            );
            let rocket = rocket(&format!("[debug.databases.replicated]\n{section}"));
            let _client = Client::untracked(rocket.attach(Replicated::fairing())).await.unwrap();
        };
        launch("a").await;
        for line in [
            &["slave: near at ", ", weight 1, zone a"][..],
            &["slave: spare at ", ", weight 0 (serves only while no other slave can), zone b"],
            &["reads: from slaves in zone a (1 of them), from others"],
        ] {
            assert!(!logbook::lines(line).is_empty(), "{line:?}");
        }
        // A zone that is misspelt, or whose only slave has weight 0.
        for zone in ["aa", "b"] {
            launch(zone).await;
            let line = format!("reads: from slaves in any zone, because none with a weight above 0 is in zone {zone}");
            assert!(!logbook::lines(&[&line]).is_empty(), "{zone}");
        }
    }

    #[support::async_test]
    async fn a_release_is_warned_of_a_pin_that_is_not_secure() {
        let lab = Lab::new();
        let launch = async |pin: &str| {
            let before = logbook::lines(&["WARN", "`pin.secure = true`"]).len();
            let section = format!("[release.databases.replicated]\n{}{pin}", lab.section());
            let figment = rocket("")
                .figment()
                .clone()
                .merge(("secret_key", "ab".repeat(32)))
                .merge(Toml::string(&section).nested())
                .select("release");
            let rocket = rocket::custom(figment).attach(Replicated::fairing());
            let _client = Client::untracked(rocket).await.unwrap();
            logbook::lines(&["WARN", "`pin.secure = true`"]).len() - before
        };
        assert_eq!(launch("").await, 1);
        assert_eq!(launch("pin = { secure = false }").await, 0);
        assert_eq!(launch("pin = { secure = true }").await, 0);
    }

    #[support::async_test]
    async fn nothing_shows_a_password() {
        let lab = Lab::new();
        let client = Client::untracked(rocket_over(&lab.section()).attach(Replicated::fairing())).await.unwrap();
        let cluster: &Cluster<Database> = Replicated::fetch(client.rocket()).unwrap();
        let db = cluster.write();
        let conn = db.get().await.unwrap();
        let shown = format!("{cluster:?} {db:?} {conn:?} {:?}", Replicated::fairing());
        assert!(!shown.contains("secret"), "{shown}");
    }

    #[support::async_test]
    async fn shutdown_ends_though_a_connection_is_in_use() {
        let lab = Lab::new();
        let client = Client::untracked(rocket_over(&lab.section()).attach(Replicated::fairing())).await.unwrap();
        let db = Replicated::fetch(client.rocket()).unwrap().read(None);
        let held = db.get().await.unwrap();
        let begun = Instant::now();
        let rocket = client.terminate().await;
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        assert!(!logbook::lines(&["WARN", "still in use at shutdown"]).is_empty());
        drop(held);
        assert!(matches!(db.get().await, Err(sqlx::Error::PoolClosed)));
        drop(rocket);
    }

    /// All shutdown fairings run at the same time.
    #[support::async_test]
    async fn other_shutdown_fairings_can_still_query() {
        static ASKED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

        let lab = Lab::new();
        let farewell = AdHoc::on_shutdown("farewell", |rocket| Box::pin(async move {
            // After that time, this crate's fairing has nothing left to wait for.
            rocket::tokio::time::sleep(Duration::from_millis(300)).await;
            let db = Replicated::fetch(rocket).unwrap().write();
            let insert = sqlx::query("INSERT INTO notes (id, body) VALUES (1, 'farewell')");
            insert.execute(&db).await.unwrap();
            ASKED.store(true, std::sync::atomic::Ordering::Relaxed);
        }));
        let rocket = rocket_over(&lab.section()).attach(Replicated::fairing()).attach(farewell);
        let client = Client::untracked(rocket).await.unwrap();
        drop(client.terminate().await);
        assert!(ASKED.load(std::sync::atomic::Ordering::Relaxed));
        assert_eq!(lab.notes(), ["farewell"]);
    }

    #[support::async_test]
    async fn shutdown_lets_requests_finish() {
        let lab = Lab::new();
        let client = Client::untracked(rocket_over(&lab.section()).attach(Replicated::fairing())).await.unwrap();
        let db = Replicated::fetch(client.rocket()).unwrap().read(None);
        let shutdown = client.rocket().shutdown();
        let request = async move {
            shutdown.clone().notify();
            shutdown.await;
            // Shutdown is under way. The pools stay open for requests that still use them.
            for _ in 0..10 {
                sqlx::query("SELECT id FROM notes").fetch_all(&db).await.unwrap();
                rocket::tokio::time::sleep(Duration::from_millis(5)).await;
            }
            drop(db);
            Instant::now()
        };
        let ((), finished) = rocket::tokio::join!(async { drop(client.terminate().await) }, request);
        assert!(finished.elapsed() < Duration::from_secs(2), "{:?}", finished.elapsed());
    }

    #[support::async_test]
    async fn the_fairing_of_rocket_db_pools_is_refused() {
        let lab = Lab::new();
        let init = <Database as rocket_replicated::Database>::init();
        aborts(rocket_over(&lab.section()).attach(init)).await;
        let remedy = "attach `rocket_replicated::Replicated::<D>::fairing()` in place of `D::init()`";
        assert!(!logbook::lines(&["ERROR", remedy]).is_empty());
    }

    #[support::async_test]
    async fn later_ignite_fairings_find_the_cluster() {
        let lab = Lab::new();
        let seed = AdHoc::try_on_ignite("seed", |rocket| async {
            let Some(cluster) = Replicated::fetch(&rocket) else { return Err(rocket) };
            let insert = sqlx::query("INSERT INTO notes (id, body) VALUES (1, 'seed')");
            match insert.execute(&cluster.write()).await {
                Ok(_) => Ok(rocket),
                Err(_) => Err(rocket),
            }
        });
        let rocket = rocket_over(&lab.section()).attach(Replicated::fairing()).attach(seed);
        let _client = Client::untracked(rocket).await.unwrap();
        assert_eq!(lab.notes(), ["seed"]);
    }
}

crate::on_sqlite! {
    #[support::async_test]
    async fn a_sqlite_slave_that_is_never_filled_is_warned_of() {
        use rocket::local::asynchronous::Client;
        use rocket_replicated::sqlite::Replicated;
        use support::{logbook, rocket_over};

        let lab = support::lab::sqlite::Lab::new();
        std::fs::write(lab.file("empty.db"), "").unwrap();
        let warned = async |slave: &str, keys: &str| {
            let url = format!("sqlite://{}", lab.file(slave).display());
            let section = format!("{}slaves = [{{ url = \"{url}\"{keys} }}]", lab.section_alone());
            let _client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
            let file = lab.file(slave).canonicalize().unwrap_or_else(|_| lab.file(slave));
            let remedy = format!("or copy the master to {}.", file.display());
            logbook::lines(&["WARN", &format!("Slave `{slave}` of"), "`{ url = …, follow = 2 }`", &remedy]).len()
        };
        assert_eq!(warned("missing.db", "").await, 1);
        assert_eq!(warned("empty.db", "").await, 1);
        assert_eq!(warned("slave-1", "").await, 0, "it has been filled");
        assert_eq!(warned("copied.db", ", follow = 2").await, 0, "the crate fills it");
    }
}
