//! Everything that sqlx does over `&Pool` works over `&ReplicatedDb`.

crate::on_every_database! {
    use rocket::futures::{StreamExt, TryStreamExt};
    use rocket::http::Status;
    use rocket::local::asynchronous::Client;
    use rocket::tokio;
    use rocket::{Build, Rocket, get, post, routes};
    use rocket_replicated::{Cluster, Error};
    use sqlx::{Acquire, Either, Executor, FromRow, QueryBuilder, Row, SqlSafeStr, Statement};

    use support::rocket_over;

    type Db = <Pool as rocket_replicated::backend::Backend>::Db;

    #[derive(Debug, PartialEq, FromRow)]
    struct Note {
        id: i32,
        body: String,
    }

    fn note(id: i32) -> Note {
        Note { id, body: format!("note {id}") }
    }

    /// A lab with three notes, and the cluster over it.
    async fn cluster(lab: &Lab) -> (Client, Cluster<Database>) {
        lab.sql("INSERT INTO notes (id, body) VALUES (1, 'note 1'), (2, 'note 2'), (3, 'note 3')");
        lab.resume();
        let client = Client::untracked(app(lab)).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap().clone();
        (client, cluster)
    }

    fn app(lab: &Lab) -> Rocket<Build> {
        rocket_over(&lab.section()).attach(Replicated::fairing())
    }

    #[support::async_test]
    async fn queries_of_every_kind() {
        let lab = Lab::new();
        let (_client, cluster) = cluster(&lab).await;
        for db in [cluster.read(None), cluster.write()] {
            let db = &db;
            let row = sqlx::query(sql("SELECT body FROM notes WHERE id = $1")).bind(1).fetch_one(db).await.unwrap();
            assert_eq!(row.get::<String, _>(0), "note 1");
            let none = sqlx::query(sql("SELECT body FROM notes WHERE id = $1")).bind(9).fetch_optional(db).await.unwrap();
            assert!(none.is_none());
            let missing = sqlx::query(sql("SELECT body FROM notes WHERE id = $1")).bind(9).fetch_one(db).await;
            assert!(matches!(missing, Err(sqlx::Error::RowNotFound)));

            let notes: Vec<Note> = sqlx::query_as("SELECT id, body FROM notes ORDER BY id").fetch_all(db).await.unwrap();
            assert_eq!(notes, [note(1), note(2), note(3)]);
            let count: i64 = sqlx::query_scalar("SELECT count(*) FROM notes").fetch_one(db).await.unwrap();
            assert_eq!(count, 3);

            let mut builder = QueryBuilder::<Db>::new("SELECT id, body FROM notes WHERE id IN (");
            let mut ids = builder.separated(", ");
            ids.push_bind(1).push_bind(3);
            builder.push(") ORDER BY id");
            let notes: Vec<Note> = builder.build_query_as().fetch_all(db).await.unwrap();
            assert_eq!(notes, [note(1), note(3)]);

            let stream = sqlx::query_as::<_, Note>("SELECT id, body FROM notes ORDER BY id").fetch(db);
            assert_eq!(stream.try_collect::<Vec<_>>().await.unwrap(), [note(1), note(2), note(3)]);

            let statement = db.prepare(sql("SELECT body FROM notes WHERE id = $1")).await.unwrap();
            for id in 1..=3 {
                let body: String = statement.query_scalar().bind(id).fetch_one(db).await.unwrap();
                assert_eq!(body, note(id).body);
            }

            let plain = db.fetch_all("SELECT id FROM notes").await.unwrap();
            assert_eq!(plain.len(), 3);
            let many: Vec<_> = sqlx::raw_sql("SELECT id FROM notes; SELECT body FROM notes WHERE id = 1;")
                .fetch_many(db)
                .try_collect()
                .await
                .unwrap();
            assert_eq!(many.iter().filter(|step| matches!(step, Either::Right(_))).count(), 4);

            let described = db.describe("SELECT body FROM notes".into_sql_str()).await.unwrap();
            assert_eq!(described.columns().len(), 1);
        }
    }

    #[support::async_test]
    async fn writes_and_transactions() {
        let lab = Lab::new();
        let (_client, cluster) = cluster(&lab).await;
        let db = cluster.write();
        let done = sqlx::query(sql("UPDATE notes SET body = body || '!' WHERE id > $1")).bind(1).execute(&db).await.unwrap();
        assert_eq!(done.rows_affected(), 2);
        if has_returning() {
            let insert = "INSERT INTO notes (id, body) VALUES (4, 'note 4') RETURNING body";
            let body: String = sqlx::query_scalar(insert).fetch_one(&db).await.unwrap();
            assert_eq!(body, "note 4");
        } else {
            sqlx::query("INSERT INTO notes (id, body) VALUES (4, 'note 4')").execute(&db).await.unwrap();
        }

        let mut kept = db.begin().await.unwrap();
        sqlx::query("DELETE FROM notes WHERE id = 1").execute(&mut *kept).await.unwrap();
        kept.commit().await.unwrap();
        let mut dropped = Acquire::begin(&db).await.unwrap();
        sqlx::query("DELETE FROM notes").execute(&mut *dropped).await.unwrap();
        drop(dropped);

        let mut conn = db.get().await.unwrap();
        sqlx::query("UPDATE notes SET body = 'last' WHERE id = 4").execute(&mut *conn).await.unwrap();
        drop(conn);
        assert_eq!(lab.notes(), ["note 2!", "note 3!", "last"]);
    }

    #[support::async_test]
    async fn a_read_only_transaction_reads() {
        let lab = Lab::new();
        let (_client, cluster) = cluster(&lab).await;
        let db = cluster.read(None);
        let mut transaction = db.begin().await.unwrap();
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM notes").fetch_one(&mut *transaction).await.unwrap();
        transaction.commit().await.unwrap();
        assert_eq!(count, 3);
    }

    #[support::async_test]
    async fn spawned_joined_and_buffered() {
        let lab = Lab::new();
        let (_client, cluster) = cluster(&lab).await;
        let db = cluster.read(None);
        let body = async |id: i32| -> String {
            sqlx::query_scalar(sql("SELECT body FROM notes WHERE id = $1")).bind(id).fetch_one(&db).await.unwrap()
        };
        let (one, two) = tokio::join!(body(1), body(2));
        assert_eq!((&*one, &*two), ("note 1", "note 2"));

        let handle = db.clone();
        let count = tokio::spawn(async move {
            let mut transaction = Acquire::begin(&handle).await.unwrap();
            sqlx::query_scalar::<_, i64>("SELECT count(*) FROM notes").fetch_one(&mut *transaction).await.unwrap()
        });
        assert_eq!(count.await.unwrap(), 3);

        let handle = db.clone();
        let bodies = tokio::spawn(async move {
            let bodies = rocket::futures::stream::iter(1..=3).map(|id| {
                let db = handle.clone();
                async move {
                    sqlx::query_scalar::<_, String>(sql("SELECT body FROM notes WHERE id = $1")).bind(id).fetch_one(&db).await
                }
            });
            bodies.buffered(2).try_collect::<Vec<_>>().await
        });
        assert_eq!(bodies.await.unwrap().unwrap(), ["note 1", "note 2", "note 3"]);
    }

    /// A function of a library that takes an executor.
    async fn through_executor<'e>(db: impl Executor<'e, Database = Db>) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM notes").fetch_one(db).await.unwrap()
    }

    async fn through_acquire<'a>(db: impl Acquire<'a, Database = Db>) -> i64 {
        let mut conn = db.acquire().await.unwrap();
        sqlx::query_scalar("SELECT count(*) FROM notes").fetch_one(&mut *conn).await.unwrap()
    }

    #[support::async_test]
    async fn libraries_take_a_handle_for_a_pool() {
        let lab = Lab::new();
        let (_client, cluster) = cluster(&lab).await;
        let db = cluster.read(None);
        assert_eq!(through_executor(&db).await, 3);
        assert_eq!(through_acquire(&db).await, 3);
        let spawned = tokio::spawn(async move { (through_executor(&db).await, through_acquire(&db).await) });
        assert_eq!(spawned.await.unwrap(), (3, 3));
    }

    #[support::async_test]
    async fn migrations_run_at_ignition() {
        async fn migrate(rocket: Rocket<Build>) -> rocket::fairing::Result {
            let Some(cluster) = Replicated::fetch(&rocket) else { return Err(rocket) };
            match sqlx::migrate!("./migrations").run(&cluster.write()).await {
                Ok(()) => Ok(rocket),
                Err(_) => Err(rocket),
            }
        }

        #[get("/books")]
        async fn books(db: ReplicatedDb) -> Result<String, Error> {
            let titles: Vec<String> = sqlx::query_scalar("SELECT title FROM books ORDER BY id").fetch_all(&db).await?;
            Ok(titles.join(", "))
        }

        let lab = Lab::new();
        let migrate = rocket::fairing::AdHoc::try_on_ignite("migrate", migrate);
        let client = Client::untracked(app(&lab).attach(migrate).mount("/", routes![books])).await.unwrap();
        lab.resume();
        assert_eq!(client.get("/books").dispatch().await.into_string().await.unwrap(), "Momo, Ronja");
    }

    #[support::async_test]
    async fn arguments_that_cannot_be_encoded_cost_no_connection() {
        struct Unencodable;

        impl sqlx::Type<Db> for Unencodable {
            fn type_info() -> <Db as sqlx::Database>::TypeInfo {
                <str as sqlx::Type<Db>>::type_info()
            }
        }

        impl<'q> sqlx::Encode<'q, Db> for Unencodable {
            fn encode_by_ref(
                &self,
                _buffer: &mut <Db as sqlx::Database>::ArgumentBuffer,
            ) -> Result<sqlx::encode::IsNull, sqlx::error::BoxDynError> {
                Err("cannot be encoded".into())
            }
        }

        let lab = Lab::new();
        let (_client, cluster) = cluster(&lab).await;
        let db = cluster.read(None);
        let error = sqlx::query(sql("SELECT $1")).bind(Unencodable).fetch_all(&db).await.map(|_| ()).unwrap_err();
        assert!(matches!(error, sqlx::Error::Encode(_)), "{error}");
        assert_eq!(db.choice(), None);
    }

    #[support::async_test]
    async fn handlers_return_errors() {
        #[post("/missing")]
        async fn missing(db: ReplicatedDb) -> Result<String, Error> {
            Ok(sqlx::query_scalar("SELECT body FROM notes WHERE id = 9").fetch_one(&db).await?)
        }

        #[get("/broken")]
        async fn broken(db: ReplicatedDb) -> Result<String, Error> {
            Ok(sqlx::query_scalar("SELECT secret FROM nowhere").fetch_one(&db).await?)
        }

        let lab = Lab::new();
        let client = Client::untracked(app(&lab).mount("/", routes![missing, broken])).await.unwrap();
        assert_eq!(client.post("/missing").dispatch().await.status(), Status::NotFound);
        let response = client.get("/broken").dispatch().await;
        assert_eq!(response.status(), Status::InternalServerError);
        let body = response.into_string().await.unwrap();
        assert!(!body.contains("nowhere") && !body.contains("secret"), "{body}");
        assert!(!support::logbook::lines(&["ERROR", "GET /broken", "nowhere"]).is_empty());
    }

    #[support::async_test]
    async fn statements_are_not_logged_in_production() {
        let lab = Lab::new();
        let rocket = app(&lab);
        let figment = rocket.figment().clone().merge(("log_level", "critical"));
        let client = Client::untracked(rocket.configure(figment)).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap();
        sqlx::raw_sql("SELECT 'of production'").execute(&cluster.write()).await.unwrap();
        sqlx::raw_sql("SELECT 'of production'").execute(&cluster.read(None)).await.unwrap();
        assert_eq!(support::logbook::lines(&["of production"]), Vec::<String>::new());
    }
}

crate::on_postgres! {
    /// An error as of `dblink` or `postgres_fdw`: the statement has failed, and the connection stays usable.
    #[support::async_test]
    async fn a_statement_that_loses_its_way_to_another_database_has_changed_nothing() {
        use rocket::local::asynchronous::Client;
        use rocket_replicated::postgres::Replicated;

        let lab = support::lab::postgres::Lab::new();
        let rocket = support::rocket_over(&lab.section()).attach(Replicated::fairing());
        let client = Client::untracked(rocket).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap();
        let db = cluster.write();
        let session = async || sqlx::query_scalar::<_, i32>("SELECT pg_backend_pid()").fetch_one(&db).await.unwrap();
        let before = session().await;
        for code in ["08001", "08006"] {
            let lost = format!("DO $$ BEGIN RAISE 'no way there' USING ERRCODE = '{code}'; END $$");
            let error = sqlx::query(sqlx::AssertSqlSafe(lost)).execute(&db).await.unwrap_err();
            assert!(!rocket_replicated::Error::is_outcome_unknown(&error), "{error}");
            assert!(error.to_string().contains("no way there"), "{error}");
        }
        assert_eq!(session().await, before);
        assert_eq!(cluster.statistics().outcomes_unknown, 0);
    }

    /// A path may contain a token, and an error message may contain a client's input.
    #[support::async_test]
    async fn a_line_of_the_log_is_one_line_and_names_the_route() {
        use rocket::local::asynchronous::Client;
        use rocket::{get, routes};
        use rocket_replicated::Error;
        use rocket_replicated::postgres::{Replicated, ReplicatedDb};

        #[get("/reset/<token>")]
        async fn reset(token: &str, db: ReplicatedDb) -> Result<(), Error> {
            let sent = format!("{}\nERROR: forged", token.len());
            sqlx::query("SELECT $1::text::integer").bind(sent).execute(&db).await?;
            Ok(())
        }

        let lab = support::lab::postgres::Lab::new();
        let rocket = support::rocket_over(&lab.section()).attach(Replicated::fairing());
        let client = Client::untracked(rocket.mount("/", routes![reset])).await.unwrap();
        client.get("/reset/quiet-token").dispatch().await;
        let [line] = &support::logbook::lines(&["ERROR: ", "forged"])[..] else { panic!("one line") };
        let begins = "ERROR: GET /reset/<token> (`reset`), database `replicated`: ";
        assert!(line.starts_with(begins) && line.contains("11\\nERROR: forged"), "{line}");
        assert!(support::logbook::lines(&["ERROR", "quiet-token"]).is_empty());
    }

    #[support::async_test]
    async fn a_statement_that_takes_longer_than_a_second_is_reported() {
        use rocket::{get, routes};
        use rocket_replicated::Error;
        use rocket_replicated::postgres::{Replicated, ReplicatedDb};

        #[get("/patient")]
        async fn patient(db: ReplicatedDb) -> Result<(), Error> {
            sqlx::query("SELECT 'long',\n pg_sleep(1.01)").execute(&db).await?;
            let mut connection = db.get().await?;
            sqlx::query("SELECT 'held', pg_sleep(1.01)").fetch_one(&mut *connection).await?;
            drop(connection);
            let mut transaction = db.begin().await?;
            sqlx::query("SELECT 'begun', pg_sleep(1.01)").fetch_all(&mut *transaction).await?;
            sqlx::query("SELECT 'short'").execute(&mut *transaction).await?;
            Ok(())
        }

        let lab = support::lab::postgres::Lab::new();
        let section = lab.section().replace("slave-1", "slow-1").replace("slave-2", "slow-2");
        let rocket = support::rocket_over(&section).attach(Replicated::fairing());
        let client =
            rocket::local::asynchronous::Client::untracked(rocket.mount("/", routes![patient])).await.unwrap();
        client.get("/patient").dispatch().await;
        let job = Replicated::fetch(client.rocket()).unwrap().read(None);
        sqlx::query("SELECT 'streamed', pg_sleep(1.01)").fetch_all(&job).await.unwrap();
        for (word, handler) in
            [("'long', pg", "`patient`"), ("'held'", "`patient`"), ("'begun'", "`patient`"), ("'streamed'", "")]
        {
            let lines = support::logbook::lines(&["WARN", "low statement", word]);
            let [line] = &lines[..] else { panic!("{word}: {lines:?}") };
            assert!(
                line.contains("on the slave `slow-") && line.contains("` of database `replicated`"),
                "{line}"
            );
            assert!(line.contains(handler) && line.contains(": 1.") && line.contains(" s for SELECT "), "{line}");
        }
        assert_eq!(support::logbook::lines(&["WARN", "'short'"]), [""; 0]);
    }
}

crate::on_sqlite! {
    /// The foreign key is checked when the transaction commits, after the last row.
    #[support::async_test]
    async fn a_write_that_returns_a_row_and_cannot_be_committed_has_failed() {
        use rocket::local::asynchronous::Client;
        use rocket_replicated::sqlite::Replicated;

        let lab = support::lab::sqlite::Lab::new();
        lab.sql("CREATE TABLE replies (note INTEGER REFERENCES notes (id) DEFERRABLE INITIALLY DEFERRED)");
        let rocket = support::rocket_over(&lab.section()).attach(Replicated::fairing());
        let client = Client::untracked(rocket).await.unwrap();
        let db = Replicated::fetch(client.rocket()).unwrap().write();
        let reply = "INSERT INTO replies VALUES ($1) RETURNING note";
        let done = sqlx::query_scalar::<_, i64>(reply).bind(99).fetch_one(&db).await;
        assert!(done.as_ref().is_err_and(|error| error.to_string().contains("FOREIGN KEY")), "{done:?}");
        let replies: i64 = sqlx::query_scalar("SELECT count(*) FROM replies").fetch_one(&db).await.unwrap();
        assert_eq!(replies, 0);
        sqlx::query("INSERT INTO notes (id, body) VALUES (99, 'note')").execute(&db).await.unwrap();
        assert_eq!(sqlx::query_scalar::<_, i64>(reply).bind(99).fetch_one(&db).await.unwrap(), 99);
    }

    /// The query never runs out of rows.
    #[support::async_test]
    async fn the_first_row_of_an_endless_query_is_returned_at_once() {
        use rocket::local::asynchronous::Client;
        use rocket_replicated::sqlite::Replicated;

        const ROWS: &str = "WITH RECURSIVE n (i) AS (SELECT $1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n";

        let lab = support::lab::sqlite::Lab::new();
        let rocket = support::rocket_over(&lab.section()).attach(Replicated::fairing());
        let client = Client::untracked(rocket).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap();
        for db in [cluster.read(None), cluster.write()] {
            let row = || sqlx::query_scalar::<_, i64>(ROWS).bind(7);
            let rows = async {
                let over = row().fetch_one(&db).await.unwrap();
                let mut held = db.get().await.unwrap();
                (over, row().fetch_one(&mut *held).await.unwrap())
            };
            let rows = rocket::tokio::time::timeout(std::time::Duration::from_secs(60), rows).await;
            assert_eq!(rows.expect("an end"), (7, 7));
        }
    }
}
