//! Leftovers of a request on its connection do not reach another request: rows, errors, transactions, dead sessions.

/// The same SQL for each kind of database. All queries return integers.
trait Sql {
    const FEW_ROWS: &str;
    const MANY_ROWS: &str;
    /// The first row is good, a later one an error.
    const BAD_LATER_ROW: &str;
    /// Begins a transaction that sees one state for as long as it is open.
    const BEGIN: &str;
}

/// SQL with tables of the numbers from 1, as `n`. MariaDB and MySQL each have a comment that they alone read.
macro_rules! series {
    ($([$before:literal $last:literal])+ $after:literal) => {
        concat!($(
            $before,
            "/*M! (SELECT seq AS n FROM seq_1_to_", $last, ") */ ",
            "/*!80000 (WITH RECURSIVE g (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < ", $last,
            ") SELECT n FROM g) */ ",
        )+ $after)
    };
}

impl Sql for rocket_replicated::mysql::Database {
    const BEGIN: &str = "BEGIN";
    const FEW_ROWS: &str = series!(["SELECT CAST(n AS SIGNED) FROM " "5"] "rows_of");
    const MANY_ROWS: &str = series!(
        ["SELECT /*+ SET_VAR(cte_max_recursion_depth = 100000) */ CAST(n AS SIGNED) FROM " "100000"] "rows_of"
    );
    // For 2, the subquery returns more than one row.
    const BAD_LATER_ROW: &str = series!(
        ["SELECT CAST((SELECT few.n FROM " "2"] ["few WHERE few.n <= rows_of.n) AS SIGNED) FROM " "3"] "rows_of"
    );
}

impl Sql for rocket_replicated::postgres::Database {
    const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ";
    const FEW_ROWS: &str = "SELECT generate_series(1::bigint, 5)";
    const MANY_ROWS: &str = "SELECT generate_series(1::bigint, 100000)";
    const BAD_LATER_ROW: &str = "SELECT 1 / (3 - g) FROM generate_series(1::bigint, 5) g";
}

impl Sql for rocket_replicated::sqlite::Database {
    const BEGIN: &str = "BEGIN";
    const FEW_ROWS: &str =
        "WITH RECURSIVE g (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < 5) SELECT n FROM g";
    const MANY_ROWS: &str =
        "WITH RECURSIVE g (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < 100000) SELECT n FROM g";
    // An integer overflow.
    const BAD_LATER_ROW: &str = "WITH RECURSIVE g (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < 5) \
         SELECT CASE n WHEN 3 THEN abs(-9223372036854775807 - 1) ELSE n END FROM g";
}

crate::on_every_database! {
    use std::future::{Future, poll_fn};
    use std::pin::pin;
    use std::task::Poll;
    use std::time::Duration;

    use rocket::futures::TryStreamExt;
    use rocket::local::asynchronous::Client;
    use rocket::tokio;
    use rocket_replicated::Cluster;
    use sqlx::Executor;

    use super::Sql;

    /// A cluster with one connection for reads and one for writes. The next request gets the same connection, unless it
    /// was closed.
    async fn launch(lab: &Lab) -> (Client, Cluster<Database>) {
        let section = format!("{}max_connections = 1\n", lab.section_alone());
        let rocket = support::rocket_over(&section).attach(Replicated::fairing());
        let client = Client::untracked(rocket).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap().clone();
        (client, cluster)
    }

    async fn soon<T>(what: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(30), what).await.expect("an answer within 30 s")
    }

    /// Asks a question and checks the answer.
    async fn asks(db: &ReplicatedDb, question: i64) {
        let query = sqlx::query_scalar::<_, i64>(sql("SELECT $1")).bind(question);
        assert_eq!(soon(query.fetch_one(db)).await.unwrap(), question);
    }

    async fn writes(db: &ReplicatedDb, id: i64, body: &str) {
        let insert = sqlx::query(sql("INSERT INTO notes (id, body) VALUES ($1, 'left')"));
        soon(insert.bind(id).execute(db)).await.unwrap();
        let update = sqlx::query(sql("UPDATE notes SET body = $1 WHERE body = 'left'"));
        soon(update.bind(body.to_owned()).execute(db)).await.unwrap();
    }

    fn handles(cluster: &Cluster<Database>) -> [ReplicatedDb; 2] {
        [cluster.read(None), cluster.write()]
    }

    const QUERIES: [&str; 3] = [
        <Database as Sql>::FEW_ROWS,
        <Database as Sql>::BAD_LATER_ROW,
        <Database as Sql>::MANY_ROWS,
    ];

    /// Checks that the same request can go on, and that the next ones get their own answers.
    async fn nothing_is_left(cluster: &Cluster<Database>, db: ReplicatedDb, question: i64) {
        asks(&db, question).await;
        drop(db);
        for db in handles(cluster) {
            asks(&db, question + 1).await;
        }
    }

    #[support::async_test]
    async fn of_a_query_that_has_more_rows_than_were_asked_for() {
        let lab = Lab::new();
        let (_client, cluster) = launch(&lab).await;
        for query in QUERIES {
            let rounds = if query == <Database as Sql>::MANY_ROWS { 1 } else { 20 };
            for round in 0..rounds {
                for db in handles(&cluster) {
                    // The database may report the bad later row, but only to this query.
                    match sqlx::query_scalar::<_, i64>(query).fetch_one(&db).await {
                        Ok(row) => assert_eq!(row, first(query)),
                        Err(error) => assert!(query == <Database as Sql>::BAD_LATER_ROW, "{error}"),
                    }
                    nothing_is_left(&cluster, db, round * 10).await;
                }
                for db in handles(&cluster) {
                    let _ = sqlx::query(query).fetch_optional(&db).await;
                    nothing_is_left(&cluster, db, round * 10 + 5).await;
                }
            }
        }
    }

    fn first(query: &str) -> i64 {
        // PostgreSQL divides 1 by 2 as integers.
        let halved = query == <Database as Sql>::BAD_LATER_ROW && query.contains("1 / (3 - g)");
        if halved { 0 } else { 1 }
    }

    #[support::async_test]
    async fn of_a_stream_that_is_dropped_after_its_first_row() {
        let lab = Lab::new();
        let (_client, cluster) = launch(&lab).await;
        for query in QUERIES {
            for round in 0..5 {
                for db in handles(&cluster) {
                    let mut rows = sqlx::query(query).fetch(&db);
                    let _ = rows.try_next().await;
                    drop(rows);
                    nothing_is_left(&cluster, db, round * 10).await;
                }
                for db in handles(&cluster) {
                    let mut rows = sqlx::raw_sql(query).fetch(&db);
                    let _ = rows.try_next().await;
                    drop(rows);
                    nothing_is_left(&cluster, db, round * 10 + 5).await;
                }
            }
        }
    }

    #[support::async_test]
    async fn of_a_stream_in_a_transaction_when_both_are_dropped() {
        let lab = Lab::new();
        let (_client, cluster) = launch(&lab).await;
        for query in QUERIES {
            for round in 0..5 {
                for db in handles(&cluster) {
                    let mut transaction = db.begin().await.unwrap();
                    let mut rows = sqlx::query(query).fetch(&mut *transaction);
                    let _ = rows.try_next().await;
                    drop(rows);
                    drop(transaction);
                    nothing_is_left(&cluster, db, round).await;
                }
            }
        }
    }

    #[support::async_test]
    async fn of_a_transaction_that_is_dropped() {
        let lab = Lab::new();
        let (_client, cluster) = launch(&lab).await;
        for round in 1..=20 {
            let db = cluster.write();
            let mut transaction = db.begin().await.unwrap();
            let insert = "INSERT INTO notes (id, body) VALUES (1000, 'dropped')";
            sqlx::query(insert).execute(&mut *transaction).await.unwrap();
            drop(transaction);
            nothing_is_left(&cluster, db, round).await;
            writes(&cluster.write(), round, &format!("committed {round:02}")).await;
            let notes = lab.notes();
            assert_eq!(notes.len() as i64, round, "{notes:?}");
            assert!(notes.iter().all(|note| note.starts_with("committed")), "{notes:?}");
        }
    }

    #[support::async_test]
    async fn of_a_statement_that_cannot_be_prepared() {
        let lab = Lab::new();
        let (_client, cluster) = launch(&lab).await;
        for round in 0..20 {
            for db in handles(&cluster) {
                (&db).prepare(sql("SELECT nothing FROM nowhere")).await.map(drop).unwrap_err();
                nothing_is_left(&cluster, db, round * 10).await;
            }
            for db in handles(&cluster) {
                sqlx::query("SELECT nothing FROM nowhere").execute(&db).await.unwrap_err();
                nothing_is_left(&cluster, db, round * 10 + 5).await;
            }
        }
    }

    /// The query is cancelled at various points.
    #[support::async_test]
    async fn of_a_query_that_is_cancelled() {
        let lab = Lab::new();
        let (_client, cluster) = launch(&lab).await;
        // With `MANY_ROWS`, three polls are enough to receive all rows. That takes time.
        for (query, most) in [(<Database as Sql>::FEW_ROWS, 8), (<Database as Sql>::MANY_ROWS, 3)] {
            for polls in 1..=most {
                for db in handles(&cluster) {
                    {
                        let mut rows = pin!(sqlx::query(query).fetch_all(&db));
                        for _ in 0..polls {
                            if poll_fn(|context| Poll::Ready(rows.as_mut().poll(context))).await.is_ready() {
                                break;
                            }
                            // Lets some of the answer arrive.
                            tokio::time::sleep(Duration::from_millis(1)).await;
                        }
                    }
                    nothing_is_left(&cluster, db, polls).await;
                }
            }
        }
    }

    /// The beginning is cancelled at various points. Before `BEGIN` is answered, sqlx does not know that it has to roll
    /// back.
    #[support::async_test]
    async fn of_a_transaction_whose_beginning_is_cancelled() {
        let lab = Lab::new();
        let (_client, cluster) = launch(&lab).await;
        for round in 1..=20 {
            let db = cluster.write();
            {
                let mut begun = pin!(db.begin());
                for _ in 0..round % 4 {
                    if poll_fn(|context| Poll::Ready(begun.as_mut().poll(context))).await.is_ready() {
                        break;
                    }
                    // Lets some of the answer arrive.
                    tokio::time::sleep(Duration::from_micros(200)).await;
                }
            }
            drop(db);
            no_transaction_is_left(&lab, &cluster, round).await;
        }
    }

    /// A write in a transaction that only the database knows of.
    const LEFT: &str = "INSERT INTO notes (id, body) VALUES (1000, 'left open')";

    /// Checks that the next request is in no transaction: its write is committed at once. The write that was left is
    /// gone.
    async fn no_transaction_is_left(lab: &Lab, cluster: &Cluster<Database>, round: i64) {
        let next = cluster.write();
        writes(&next, round, &format!("committed {round:02}")).await;
        let notes = lab.notes();
        assert_eq!(notes.last().map(|note| &**note), Some(&*format!("committed {round:02}")), "{notes:?}");
        // On some databases, BEGIN commits a transaction that is open.
        let transaction = soon(next.begin()).await.unwrap();
        transaction.commit().await.unwrap();
        let notes = lab.notes();
        assert_eq!(notes.len() as i64, round, "{notes:?}");
    }

    #[support::async_test]
    async fn of_a_transaction_that_was_begun_by_hand() {
        let lab = Lab::new();
        let (_client, cluster) = launch(&lab).await;
        for round in 1..=5 {
            let db = cluster.write();
            // `BEGIN` is refused, because the next statement might run on another connection.
            let refused = sqlx::raw_sql("BEGIN").execute(&db).await.unwrap_err();
            assert!(refused.to_string().contains("call `begin()`"), "{refused}");
            drop(db);
            no_transaction_is_left(&lab, &cluster, round).await;
        }
    }

    #[support::async_test]
    async fn of_a_transaction_that_was_begun_by_hand_in_one_string() {
        let lab = Lab::new();
        let (_client, cluster) = launch(&lab).await;
        for round in 1..=5 {
            let db = cluster.write();
            let both = sqlx::AssertSqlSafe(format!("BEGIN; {LEFT}"));
            let refused = sqlx::raw_sql(both).execute(&db).await.unwrap_err();
            assert!(refused.to_string().contains("call `begin()`"), "{refused}");
            drop(db);
            no_transaction_is_left(&lab, &cluster, round).await;
        }
    }

    #[support::async_test]
    async fn of_a_transaction_that_was_begun_by_hand_on_a_connection_of_ones_own() {
        let lab = Lab::new();
        let (_client, cluster) = launch(&lab).await;
        for round in 1..=5 {
            let db = cluster.write();
            let mut connection = db.get().await.unwrap();
            sqlx::raw_sql("BEGIN").execute(&mut *connection).await.unwrap();
            sqlx::raw_sql(LEFT).execute(&mut *connection).await.unwrap();
            drop(connection);
            drop(db);
            no_transaction_is_left(&lab, &cluster, round).await;
        }
    }

    /// The transaction is begun on the driver's own connection, or by a statement that is cancelled.
    #[support::async_test]
    async fn of_a_transaction_that_only_the_server_knows_of_on_a_connection_of_ones_own() {
        let lab = Lab::new();
        let (_client, cluster) = launch(&lab).await;
        for round in 1..=5 {
            let db = cluster.write();
            let mut connection = db.get().await.unwrap();
            sqlx::raw_sql("BEGIN").execute(&mut **connection).await.unwrap();
            sqlx::query("SELECT 1").execute(&mut *connection).await.unwrap();
            sqlx::raw_sql(LEFT).execute(&mut *connection).await.unwrap();
            drop(connection);
            drop(db);
            no_transaction_is_left(&lab, &cluster, round).await;
        }
        for round in 6..=15 {
            let db = cluster.write();
            let mut connection = db.get().await.unwrap();
            {
                let mut begun = pin!(sqlx::raw_sql("BEGIN").execute(&mut *connection));
                for _ in 0..round % 3 {
                    if poll_fn(|context| Poll::Ready(begun.as_mut().poll(context))).await.is_ready() {
                        break;
                    }
                }
            }
            drop(connection);
            drop(db);
            no_transaction_is_left(&lab, &cluster, round).await;
        }
    }

    /// A connection on which nothing can be left open is free for the next request at once.
    #[support::async_test]
    async fn of_a_connection_of_ones_own_costs_nothing_where_there_can_be_none() {
        fn in_use(cluster: &Cluster<Database>) -> u32 {
            cluster.status().iter().map(|node| node.in_use).sum()
        }

        let lab = Lab::new();
        let (_client, cluster) = launch(&lab).await;
        for db in handles(&cluster) {
            let mut connection = db.get().await.unwrap();
            let one: i64 = sqlx::query_scalar(<Database as Sql>::FEW_ROWS).fetch_one(&mut *connection).await.unwrap();
            assert_eq!(one, 1);
            sqlx::query(<Database as Sql>::FEW_ROWS).fetch_all(&mut *connection).await.unwrap();
            assert_eq!(in_use(&cluster), 1);
            drop(connection);
            assert_eq!(in_use(&cluster), 0);
        }
    }

    #[support::async_test]
    async fn of_a_transaction_that_was_begun_by_hand_and_has_failed() {
        let lab = Lab::new();
        let (_client, cluster) = launch(&lab).await;
        for round in 1..=5 {
            let db = cluster.write();
            sqlx::raw_sql("BEGIN; SELECT nothing FROM nowhere").execute(&db).await.unwrap_err();
            drop(db);
            no_transaction_is_left(&lab, &cluster, round).await;

            let db = cluster.write();
            let mut connection = db.get().await.unwrap();
            sqlx::raw_sql("BEGIN").execute(&mut *connection).await.unwrap();
            sqlx::raw_sql("SELECT nothing FROM nowhere").execute(&mut *connection).await.unwrap_err();
            drop(connection);
            drop(db);
            asks(&cluster.write(), round).await;
        }
    }

    /// Later reads in this transaction would see an old state.
    #[support::async_test]
    async fn of_a_transaction_that_a_read_has_left_open() {
        const COUNT: &str = "SELECT count(*) FROM notes";

        let lab = Lab::new();
        let (_client, cluster) = launch(&lab).await;
        for round in 1..=5 {
            let db = cluster.read(None);
            let mut connection = db.get().await.unwrap();
            sqlx::raw_sql(<Database as Sql>::BEGIN).execute(&mut *connection).await.unwrap();
            sqlx::raw_sql(COUNT).execute(&mut *connection).await.unwrap();
            drop(connection);
            drop(db);
            lab.sql(&format!("INSERT INTO notes (id, body) VALUES ({round}, 'note {round}')"));
            let next = cluster.read(None);
            let count: i64 = soon(sqlx::query_scalar(COUNT).fetch_one(&next)).await.unwrap();
            assert_eq!(count, round);
        }
    }
}

crate::on_postgres! {
    /// Sessions that the server ends, for instance because they are idle.
    mod a_session_that_the_server_ended {
        use std::time::{Duration, Instant};

        use rocket::local::asynchronous::Client;
        use rocket::tokio;
        use rocket_replicated::Cluster;
        use rocket_replicated::postgres::{Database, Replicated, ReplicatedDb};

        use support::lab::postgres::Lab;
        use support::rocket_over;

        async fn launch(lab: &Lab) -> (Client, Cluster<Database>) {
            let section = format!("{}max_connections = 1\n", lab.section_alone());
            let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
            let cluster = Replicated::fetch(client.rocket()).unwrap().clone();
            (client, cluster)
        }

        async fn pid(db: &ReplicatedDb) -> i32 {
            sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(db).await.unwrap()
        }

        async fn ended(lab: &Lab, pid: i32) {
            let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}");
            let deadline = Instant::now() + Duration::from_secs(20);
            while lab.sql(&sql) != "0" {
                assert!(Instant::now() < deadline, "the server does not end the session");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }

        /// The number of queries that fail. Checks that none of them waits long.
        async fn failures(cluster: &Cluster<Database>, first: ReplicatedDb) -> usize {
            let begun = Instant::now();
            let mut failures = usize::from(sqlx::query("SELECT 1").execute(&first).await.is_err());
            drop(first);
            for _ in 0..20 {
                let handles = [cluster.read(None), cluster.write()];
                for db in handles {
                    failures += usize::from(sqlx::query("SELECT 1").execute(&db).await.is_err());
                }
            }
            assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
            failures
        }

        /// SQLSTATE 57P05: `idle_session_timeout`.
        #[support::async_test]
        async fn for_being_idle_costs_one_write_and_no_read() {
            let lab = Lab::new();
            let (_client, cluster) = launch(&lab).await;
            let reads = || cluster.read(None);
            let writes = || cluster.write();
            let handles: [(&dyn Fn() -> ReplicatedDb, usize); 2] = [(&reads, 0), (&writes, 1)];
            for (handle, at_most) in handles {
                let db = handle();
                let pid = pid(&db).await;
                sqlx::query("SET idle_session_timeout = 200").execute(&db).await.unwrap();
                drop(db);
                ended(&lab, pid).await;
                let failures = failures(&cluster, handle()).await;
                assert!(failures <= at_most, "{failures} failed, {at_most} may");

                // The same, while the request keeps its connection and does something else.
                let db = handle();
                let pid = self::pid(&db).await;
                sqlx::query("SET idle_session_timeout = 200").execute(&db).await.unwrap();
                ended(&lab, pid).await;
                let failures = self::failures(&cluster, db).await;
                assert!(failures <= at_most, "{failures} failed, {at_most} may");
            }
        }

        /// SQLSTATE 25P03: `idle_in_transaction_session_timeout`.
        #[support::async_test]
        async fn for_being_idle_in_a_transaction_costs_no_other_request_anything() {
            let lab = Lab::new();
            let (_client, cluster) = launch(&lab).await;
            for db in [cluster.read(None), cluster.write()] {
                let mut transaction = db.begin().await.unwrap();
                let pid = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *transaction).await;
                let set = "SET idle_in_transaction_session_timeout = 200";
                sqlx::query(set).execute(&mut *transaction).await.unwrap();
                ended(&lab, pid.unwrap()).await;
                // The handler has not used the transaction since, and ends.
                drop(transaction);
                assert_eq!(failures(&cluster, db).await, 0);
            }
            for db in [cluster.read(None), cluster.write()] {
                let mut transaction = db.begin().await.unwrap();
                let pid = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *transaction).await;
                let set = "SET idle_in_transaction_session_timeout = 200";
                sqlx::query(set).execute(&mut *transaction).await.unwrap();
                ended(&lab, pid.unwrap()).await;
                sqlx::query("SELECT 1").execute(&mut *transaction).await.unwrap_err();
                drop(transaction);
                assert_eq!(failures(&cluster, db).await, 0);
            }
        }

        /// SQLSTATE 40001 with the severity FATAL: the session ends, not only the query.
        #[support::async_test]
        async fn for_being_in_the_way_of_replay_costs_no_other_request_anything() {
            let servers =
                rocket_replicated_testing::Servers::start(rocket_replicated_testing::postgres::Postgres, 1);
            let (master, slave) = (&servers.master, &servers.slaves[0]);
            master.sql("CREATE TABLE notes (id INTEGER); GRANT ALL ON notes TO app");
            servers.wait_caught_up();
            slave.sql("ALTER SYSTEM SET max_standby_streaming_delay = 0");
            slave.sql("SELECT pg_reload_conf()");
            let section = format!(
                "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"replaying\" }}]\nmax_connections = 1\n",
                master.url(),
                slave.url()
            );
            let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
            let cluster = Replicated::fetch(client.rocket()).unwrap();

            for use_it in [false, true] {
                let db = cluster.read(None);
                let mut transaction = db.begin().await.unwrap();
                assert_eq!(db.choice().unwrap().node(), "replaying");
                sqlx::query("SELECT id FROM notes").execute(&mut *transaction).await.unwrap();
                master.sql("TRUNCATE notes");
                let idle = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'";
                let deadline = Instant::now() + Duration::from_secs(20);
                while slave.sql(idle) != "0" {
                    assert!(Instant::now() < deadline, "the slave does not end the session");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                if use_it {
                    sqlx::query("SELECT 1").execute(&mut *transaction).await.unwrap_err();
                }
                drop(transaction);
                drop(db);
                for _ in 0..20 {
                    sqlx::query("SELECT id FROM notes").execute(&cluster.read(None)).await.unwrap();
                }
                let deadline = Instant::now() + Duration::from_secs(20);
                loop {
                    let db = cluster.read(None);
                    sqlx::query("SELECT id FROM notes").execute(&db).await.unwrap();
                    if db.choice().unwrap().node() == "replaying" {
                        break;
                    }
                    assert!(Instant::now() < deadline, "the slave, which is well, is not used");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }

        #[support::async_test]
        async fn for_being_idle_in_a_transaction_begun_by_hand_costs_no_other_request_anything() {
            let lab = Lab::new();
            let (_client, cluster) = launch(&lab).await;
            for db in [cluster.read(None), cluster.write()] {
                let mut connection = db.get().await.unwrap();
                let pid = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *connection).await;
                let set = "SET idle_in_transaction_session_timeout = 200";
                sqlx::query(set).execute(&mut *connection).await.unwrap();
                sqlx::raw_sql("BEGIN").execute(&mut *connection).await.unwrap();
                ended(&lab, pid.unwrap()).await;
                drop(connection);
                assert_eq!(failures(&cluster, db).await, 0);
            }
        }
    }
}
