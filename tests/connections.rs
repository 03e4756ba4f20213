//! A request keeps its connection between statements, unless other requests need it.

crate::on_every_database! {
    use std::pin::pin;
    use std::task::{Context, Waker};
    use std::time::{Duration, Instant};

    use rocket::local::asynchronous::Client;
    use rocket::tokio;
    use rocket_replicated::{Cluster, PoolUse};

    use support::blocking_eventually;

    async fn open(lab: &Lab, keys: &str) -> (Client, Cluster<Database>) {
        let section = format!("{keys}\n{}", lab.section());
        let rocket = support::rocket_over(&section).attach(Replicated::fairing());
        let client = Client::untracked(rocket).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap().clone();
        (client, cluster)
    }

    fn in_use(cluster: &Cluster<Database>) -> u32 {
        cluster.status().iter().map(|node| node.in_use).sum()
    }

    #[support::async_test]
    async fn a_connection_is_kept_for_as_long_as_there_is_a_handle() {
        let lab = Lab::new();
        let (_client, cluster) = open(&lab, "").await;
        let db = cluster.write();
        let another = db.clone();
        for _ in 0..3 {
            sqlx::query("SELECT 1").execute(&db).await.unwrap();
            assert_eq!(in_use(&cluster), 1);
        }
        sqlx::query("SELECT nothing").execute(&db).await.unwrap_err();
        assert_eq!(in_use(&cluster), 0, "one whose query failed serves anybody");

        sqlx::query("SELECT 1").execute(&db).await.unwrap();
        assert_eq!(in_use(&cluster), 1);
        drop(db);
        assert_eq!(in_use(&cluster), 0);
        sqlx::query("SELECT 1").execute(&another).await.unwrap();
        assert_eq!(in_use(&cluster), 1);
    }

    #[support::async_test]
    async fn a_kept_connection_is_not_shared() {
        let lab = Lab::new();
        let (_client, cluster) = open(&lab, "").await;
        let requests = [cluster.read(None), cluster.read(None), cluster.read(None)];
        for _ in 0..3 {
            for db in &requests {
                sqlx::query("SELECT 1").execute(db).await.unwrap();
            }
        }
        assert_eq!(in_use(&cluster), 3);
        drop(requests);
        assert_eq!(in_use(&cluster), 0);
    }

    #[support::async_test]
    async fn reading_and_then_writing_takes_one_connection() {
        let lab = Lab::new();
        let (_client, cluster) = open(&lab, "").await;
        let db = cluster.read(None);
        sqlx::query("SELECT 1").execute(&db).await.unwrap();
        db.changes_database();
        sqlx::query("INSERT INTO notes (id, body) VALUES (1, 'a note')").execute(&db).await.unwrap();
        assert_eq!(in_use(&cluster), 1);
        drop(db.begin().await.unwrap());
        drop(db);
        assert_eq!(lab.notes(), ["a note"]);
    }

    #[support::async_test]
    async fn an_idle_handler_keeps_no_other_request_waiting() {
        let lab = Lab::new();
        let (_client, cluster) = open(&lab, "max_connections = 1\nconnect_timeout = 60").await;
        let dawdling: Vec<_> = (0..3).map(|_| cluster.write()).collect();
        let begun = Instant::now();
        for _ in 0..30 {
            for db in &dawdling {
                sqlx::query("SELECT 1").execute(db).await.unwrap();
                // A checkout by the handler takes a connection from the same pool.
                drop(cluster.write().get().await.unwrap());
            }
        }
        // No request waited until a connection was taken back because it had been idle for long.
        assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    }

    #[support::async_test]
    async fn a_connection_is_kept_for_its_latest_handle_alone() {
        let lab = Lab::new();
        let (_client, cluster) = open(&lab, "max_connections = 1").await;
        let (former, latest) = (cluster.read(None), cluster.read(None));
        for db in [&former, &latest, &former, &latest] {
            sqlx::query("SELECT 1").execute(db).await.unwrap();
        }
        drop(former);
        assert_eq!(in_use(&cluster), 1, "it is kept for the other one");
        drop(latest);
        assert_eq!(in_use(&cluster), 0);
    }

    #[support::async_test]
    async fn a_handle_holds_nothing_of_a_connection_that_is_closed() {
        let lab = Lab::new();
        let (_client, cluster) = open(&lab, "idle_timeout = 0.1").await;
        let db = cluster.read(None);
        sqlx::query("SELECT 1").execute(&db).await.unwrap();
        let open = || {
            let statistics = cluster.statistics();
            let pools = statistics.servers.iter().flat_map(|server| &server.pools);
            pools.map(|pool| pool.idle + pool.in_use).sum::<u32>()
        };
        blocking_eventually("that none is open", || (open() == 0).then_some(()));
        sqlx::query("SELECT 1").execute(&db).await.unwrap();
        assert_eq!(open(), 1);
    }

    #[support::async_test]
    async fn min_connections_are_opened_and_stay() {
        let lab = Lab::new();
        let (_client, cluster) = open(&lab, "min_connections = 3").await;
        let writes = || {
            let statistics = cluster.statistics();
            let pools = statistics.servers[0].pools.iter();
            pools.into_iter().find(|pool| pool.used_for == PoolUse::Writes).unwrap().clone()
        };
        // SQLite has one writer.
        let wanted = writes().max.min(3);
        blocking_eventually("all of them", || (writes().idle == wanted).then_some(()));
        let pool = writes();
        assert_eq!((pool.opened.count(), pool.closed.total()), (wanted.into(), 0));
    }

    #[support::async_test]
    async fn min_connections_outlive_the_idle_timeout() {
        let lab = Lab::new();
        let (_client, cluster) = open(&lab, "min_connections = 3\nidle_timeout = 0.2").await;
        let writes = || {
            let statistics = cluster.statistics();
            statistics.servers[0].pools.iter().find(|pool| pool.used_for == PoolUse::Writes).unwrap().clone()
        };
        let wanted = writes().max.min(3);
        blocking_eventually("all of them", || (writes().idle == wanted).then_some(()));
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!((writes().idle, writes().opened.count()), (wanted, u64::from(wanted)));
    }

    #[support::async_test]
    async fn requests_that_give_up_free_their_places() {
        let lab = Lab::new();
        let (_client, cluster) = open(&lab, "max_connections = 1").await;
        for _ in 0..10 {
            let held = cluster.write().get().await.unwrap();
            let give_up = |number| {
                let db = cluster.write();
                // Some requests give up while they wait, some while they get a connection, some while they use it.
                let patience = Duration::from_millis(number);
                tokio::spawn(async move {
                    tokio::time::timeout(patience, sqlx::query("SELECT 1").execute(&db)).await.is_ok()
                })
            };
            let requests: Vec<_> = (0..20).map(give_up).collect();
            let mut requests = requests.into_iter();
            for request in requests.by_ref().take(5) {
                request.await.unwrap();
            }
            drop(held);
            for request in requests {
                request.await.unwrap();
            }
        }
        blocking_eventually("that all places are free", || (in_use(&cluster) == 0).then_some(()));
        sqlx::query("SELECT 1").execute(&cluster.write()).await.unwrap();
    }

    #[support::async_test]
    async fn waiting_times_out_though_another_request_waited_without_a_runtime() {
        let lab = Lab::new();
        let (_client, cluster) = open(&lab, "max_connections = 1\nconnect_timeout = 2").await;
        let held = cluster.write().get().await.unwrap();
        let outsider = cluster.write();
        let outside = move || drop(pin!(outsider.get()).poll(&mut Context::from_waker(Waker::noop())));
        // This poll panics, unless the pool knows a runtime already. The pool knows that of the monitor.
        let _ = std::thread::spawn(outside).join();
        let late = tokio::time::timeout(Duration::from_secs(20), cluster.write().get()).await;
        let error = late.expect("an answer").expect_err("all are in use").to_string();
        assert!(error.contains("1 of 1 are in use"), "{error}");
        drop(held);
    }

    #[support::async_test]
    async fn each_of_many_requests_goes_on() {
        let lab = Lab::new();
        let (_client, cluster) = open(&lab, "max_connections = 2").await;
        let requests = (0..20).map(|_| {
            let db = cluster.read(None);
            tokio::spawn(async move {
                for id in 0..20_i32 {
                    let query = sqlx::query_scalar::<_, i64>(sql("SELECT count(*) FROM notes WHERE id > $1"));
                    query.bind(id).fetch_one(&db).await.unwrap();
                }
            })
        });
        for request in requests.collect::<Vec<_>>() {
            request.await.unwrap();
        }
    }
}
