//! The allocations of a query through this crate: no more than needed.

crate::on_postgres! {
    use rocket::futures::FutureExt;
    use rocket::local::asynchronous::Client;
    use rocket_replicated::postgres::Replicated;
    use sqlx::postgres::PgConnection;
    use sqlx::{AssertSqlSafe, Connection};

    use support::counting::{LARGE, allocations, large_allocations};
    use support::lab::postgres::Lab;
    use support::rocket_over;

    #[support::async_test]
    async fn a_choice_allocates_the_state_of_its_request_and_nothing_else() {
        let lab = Lab::new();
        let client = Client::untracked(rocket_over(&lab.section()).attach(Replicated::fairing())).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap();

        // A first choice initialises the random generator, which allocates.
        rocket_replicated::internals::choose(&cluster.read(None));
        let before = allocations();
        let db = cluster.read(None);
        let made = allocations();
        rocket_replicated::internals::choose(&db);
        assert_eq!((made - before, allocations() - made), (1, 0));
        assert!(db.choice().is_some());
    }

    #[support::async_test]
    async fn a_query_makes_no_large_allocation_that_sqlx_would_not() {
        let lab = Lab::new();
        let section = format!("{}max_connections = 1\n", lab.section());
        let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap();
        let mut bare = PgConnection::connect(&lab.master().url()).await.unwrap();
        let query = || sqlx::query("SELECT 1 WHERE 1 = $1").bind(1);

        for (role, db) in [("slave", cluster.read(None)), ("master", cluster.write())] {
            // The first round opens connections and prepares statements. Only the second one counts.
            for is_warm in [false, true] {
                macro_rules! costs_no_more {
                    ($run:ident) => {
                        let before = large_allocations();
                        query().$run(&mut bare).await.unwrap();
                        let theirs = large_allocations();
                        query().$run(&db).await.unwrap();
                        let ours = large_allocations() - theirs;
                        assert!(!is_warm || ours <= theirs - before, "{}, {role}: {ours}", stringify!($run));
                    };
                }
                costs_no_more!(execute);
                costs_no_more!(fetch_all);
                costs_no_more!(fetch_one);
            }
        }

        // A query text that was built at run time is copied once.
        let long =
            || sqlx::query(AssertSqlSafe(format!("SELECT 1 WHERE 1 = $1 --{}", "-".repeat(LARGE)))).bind(1);
        let db = cluster.read(None);
        for is_warm in [false, true] {
            let before = large_allocations();
            long().execute(&mut bare).await.unwrap();
            let theirs = large_allocations();
            long().execute(&db).await.unwrap();
            let ours = large_allocations() - theirs;
            assert!(!is_warm || ours <= theirs - before + 1, "of a long text: {ours}, {}", theirs - before);
        }

        let _held = cluster.write().get().await.unwrap();
        let other = cluster.write();
        // The first wait makes tokio allocate its timers.
        assert!(query().fetch_one(&other).now_or_never().is_none());
        let before = large_allocations();
        assert!(query().fetch_one(&other).now_or_never().is_none());
        assert_eq!(large_allocations(), before, "by waiting");
    }
}

crate::on_every_database! {
    use rocket::local::asynchronous::Client;
    use sqlx::Executor;
    use support::counting::large_allocations;

    #[support::async_test]
    async fn the_future_of_a_query_is_small() {
        let lab = Lab::new();
        let rocket = support::rocket_over(&lab.section()).attach(Replicated::fairing());
        let client = Client::untracked(rocket).await.unwrap();
        let db = &Replicated::fetch(client.rocket()).unwrap().read(None);
        let query = || sqlx::query("SELECT 1").bind(1);

        let before = large_allocations();
        drop((db.execute(query()), db.fetch_all(query()), db.fetch_one(query()), db.fetch_optional(query())));
        assert_eq!(large_allocations(), before);
    }
}

crate::on_sqlite! {
    #[support::async_test]
    async fn a_choice_out_of_64_slaves_allocates_no_more() {
        use rocket::local::asynchronous::Client;
        use rocket_replicated::{Role, sqlite::Replicated};
        use support::counting::allocations;
        use support::rocket_over;

        let folder = tempfile::tempdir().unwrap();
        let url = |name: &str| {
            let file = folder.path().join(name);
            rusqlite::Connection::open(&file).unwrap().execute_batch("CREATE TABLE notes (id INTEGER)").unwrap();
            format!("sqlite://{}", file.display())
        };
        let slaves: Vec<_> = (1..=64).map(|number| url(&format!("slave-{number}"))).collect();
        let section = format!("url = {:?}\nslaves = {slaves:?}\n", url("master"));

        for keys in ["", "sticky = true", "read_from_slaves = 0.999999"] {
            let rocket = rocket_over(&format!("{section}{keys}")).attach(Replicated::fairing());
            let client = Client::untracked(rocket).await.unwrap();
            let cluster = Replicated::fetch(client.rocket()).unwrap();
            let read = || rocket_replicated::internals::read_from(cluster, [192, 0, 2, 1].into());

            // A first choice initialises the random generator, which allocates.
            rocket_replicated::internals::choose(&read());
            let before = allocations();
            let db = read();
            let made = allocations();
            rocket_replicated::internals::choose(&db);
            assert_eq!((made - before, allocations() - made), (1, 0), "{keys}");
            assert_eq!(db.choice().unwrap().role(), Role::Slave);
        }
    }
}
