//! The `after_connect` hook runs on each new connection of the application, and cannot weaken its protection.

trait Greets {
    /// Sets something in the session.
    const SET: &str;
    /// Selects `hello` in a session in which [`SET`](Self::SET) has run.
    const ASK: &str;
    /// Tries to let a connection for reads write.
    const LOOSEN: &str;
    /// Has the server commit nothing by itself, where a session can ask for that.
    const HOLD: &str = Self::SET;
}

impl Greets for sqlx::MySql {
    const SET: &str = "SET @greeting = 'hello'";
    const ASK: &str = "SELECT COALESCE(CAST(@greeting AS CHAR), 'nothing')";
    const LOOSEN: &str = "SET SESSION TRANSACTION READ WRITE";
    const HOLD: &str = "SET autocommit = 0";
}

impl Greets for sqlx::Postgres {
    const SET: &str = "SET notes.greeting = 'hello'";
    const ASK: &str = "SELECT COALESCE(current_setting('notes.greeting', true), 'nothing')";
    const LOOSEN: &str = "SET default_transaction_read_only = off";
}

impl Greets for sqlx::Sqlite {
    const SET: &str = "PRAGMA case_sensitive_like = ON";
    const ASK: &str = "SELECT CASE WHEN 'a' LIKE 'A' THEN 'nothing' ELSE 'hello' END";
    const LOOSEN: &str = "PRAGMA query_only = OFF";
}

crate::on_every_database! {
    use std::sync::{Arc, Mutex};

    use rocket::local::asynchronous::Client;
    use rocket::{get, routes};
    use rocket_replicated::{Cluster, Error, PoolUse, Role};
    use sqlx::Executor;

    use super::Greets;
    use support::{eventually, logbook, rocket_over};

    type Db = <Pool as rocket_replicated::backend::Backend>::Db;

    const INSERT: &str = "INSERT INTO notes (id, body) VALUES (1, 'written')";

    #[get("/")]
    async fn greeting(db: ReplicatedDb) -> Result<String, Error> {
        Ok(sqlx::query_scalar(Db::ASK).fetch_one(&db).await?)
    }

    async fn launch(section: &str, fairing: Replicated) -> (Client, Cluster<Database>) {
        let rocket = rocket_over(section).attach(fairing).mount("/", routes![greeting]);
        let client = Client::untracked(rocket).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap().clone();
        (client, cluster)
    }

    /// Runs a statement on each new connection for one use.
    fn on(wanted: PoolUse, sql: &'static str) -> Replicated {
        Replicated::fairing().after_connect(move |connection, used_for| {
            Box::pin(async move {
                if used_for == wanted {
                    connection.execute(sqlx::raw_sql(sql)).await?;
                }
                Ok(())
            })
        })
    }

    async fn ask(db: &ReplicatedDb) -> Result<String, sqlx::Error> {
        sqlx::query_scalar(Db::ASK).fetch_one(db).await
    }

    fn opened(cluster: &Cluster<Database>) -> usize {
        let servers = cluster.statistics().servers;
        servers.iter().flat_map(|server| &server.pools).map(|pool| pool.opened.count() as usize).sum()
    }

    #[support::async_test]
    async fn the_hook_runs_on_each_connection_of_the_application_and_on_no_other() {
        let lab = Lab::new();
        let uses: Arc<Mutex<Vec<PoolUse>>> = Arc::default();
        let noted = uses.clone();
        let fairing = Replicated::fairing().after_connect(move |connection, used_for| {
            noted.lock().unwrap().push(used_for);
            Box::pin(async move { connection.execute(Db::SET).await.map(drop) })
        });
        let (client, cluster) = launch(&format!("check_interval = 0.05\n{}", lab.section()), fairing).await;
        assert_eq!(*uses.lock().unwrap(), [], "the monitor has looked at each server");

        assert_eq!(client.get("/").dispatch().await.into_string().await.unwrap(), "hello");
        assert_eq!(ask(&cluster.read(None)).await.unwrap(), "hello");
        assert_eq!(ask(&cluster.write()).await.unwrap(), "hello");
        cluster.stop_reading_slaves();
        assert_eq!(ask(&cluster.read(None)).await.unwrap(), "hello");
        let told = uses.lock().unwrap().clone();
        for used_for in [PoolUse::Writes, PoolUse::MasterReads, PoolUse::SlaveReads] {
            assert!(told.contains(&used_for), "{used_for} in {told:?}");
        }
        assert_eq!(told.len(), opened(&cluster), "{told:?}");

        let pool = cluster.pool(Role::Master);
        let greeting: String = sqlx::query_scalar(Db::ASK).fetch_one(&pool).await.unwrap();
        assert_eq!((&*greeting, uses.lock().unwrap().len()), ("hello", told.len() + 1));
    }

    #[support::async_test]
    async fn a_read_whose_hook_fails_goes_to_another_server() {
        let lab = Lab::new();
        let (client, cluster) = launch(&lab.section(), on(PoolUse::SlaveReads, "nonsense")).await;
        assert_eq!(client.get("/").dispatch().await.into_string().await.unwrap(), "nothing");
        let db = cluster.read(None);
        ask(&db).await.unwrap();
        assert_eq!(db.choice().unwrap().role(), Role::Master);
        let named = |slave: &str| {
            let slave = format!("failed on a new connection for reads to the slave `{slave}` of database ");
            logbook::lines(&["WARN: The `after_connect` hook", &slave]).len()
        };
        let told = [named("slave-1"), named("slave-2")];
        assert!([1, 2].contains(&told.iter().sum()) && told.iter().all(|told| *told <= 1), "{told:?}");
    }

    #[support::async_test]
    async fn without_another_server_the_error_names_the_hook() {
        let lab = Lab::new();
        let section = lab.section_alone();
        let (client, cluster) = launch(&section, on(PoolUse::MasterReads, "nonsense")).await;
        assert_eq!(client.get("/").dispatch().await.status().code, 503);
        let error = ask(&cluster.read(None)).await.unwrap_err();
        assert!(matches!(error, sqlx::Error::Io(_)), "{error:?}");
        assert!(error.to_string().contains("the `after_connect` hook failed on a new connection for reads"), "{error}");
        assert!(!Error::is_outcome_unknown(&error));
        assert_eq!(ask(&cluster.write()).await.unwrap(), "nothing", "it failed for reads only");
    }

    #[support::async_test]
    async fn the_error_names_a_hook_that_panics_or_does_not_end() {
        let lab = Lab::new();
        let section = format!("connect_timeout = 1\n{}", lab.section_alone());
        let panics = Replicated::fairing().after_connect(|_, _| Box::pin(async { panic!("a hook's own panic") }));
        let hangs = Replicated::fairing().after_connect(|_, _| Box::pin(std::future::pending()));
        for (fairing, named) in [
            (panics, "the `after_connect` hook panicked on a new connection for writes"),
            (hangs, "(the `after_connect` hook has not ended)"),
        ] {
            let (_client, cluster) = launch(&section, fairing).await;
            let error = ask(&cluster.write()).await.unwrap_err();
            assert!(error.to_string().contains(named), "{error}");
        }
    }

    #[support::async_test]
    async fn a_transaction_that_the_hook_leaves_open_is_refused() {
        let lab = Lab::new();
        let (_client, cluster) = launch(&lab.section_alone(), on(PoolUse::Writes, "BEGIN")).await;
        let error = sqlx::query(INSERT).execute(&cluster.write()).await.unwrap_err();
        let left = "the `after_connect` hook left a transaction open on a new connection for writes";
        assert!(error.to_string().contains(left), "{error}");
        assert!(!Error::is_outcome_unknown(&error), "nothing was sent");
        assert_eq!(lab.notes(), [""; 0]);
    }

    #[support::async_test]
    async fn the_hook_cannot_make_a_read_connection_writable() {
        let lab = Lab::new();
        let section = format!("connect_timeout = 1\n{}", lab.section_alone());
        let (_client, cluster) = launch(&section, on(PoolUse::MasterReads, Db::LOOSEN)).await;
        let error = sqlx::query(INSERT).execute(&cluster.read(None)).await.unwrap_err();
        // On MySQL and MariaDB, the connection is made read-only again after the hook.
        let is_refused = error.as_database_error().is_some_and(|error| error.code().as_deref() == Some(REFUSED));
        assert!(is_refused || error.to_string().contains("writable: leave it read-only"), "{error}");
        sqlx::query(INSERT).execute(&cluster.pool(Role::Slave)).await.unwrap_err();
        assert_eq!(lab.notes(), [""; 0]);
    }

    #[support::async_test]
    async fn a_hook_that_recovers_is_not_remembered() {
        let lab = Lab::new();
        let fails = Arc::new(Mutex::new(true));
        let failing = fails.clone();
        let fairing = Replicated::fairing().after_connect(move |connection, _| {
            let sql = if *failing.lock().unwrap() { "nonsense" } else { Db::SET };
            Box::pin(async move { connection.execute(sql).await.map(drop) })
        });
        let (_client, cluster) = launch(&lab.section(), fairing).await;
        ask(&cluster.write()).await.unwrap_err();
        *fails.lock().unwrap() = false;
        eventually("a write", async || ask(&cluster.write()).await.is_ok()).await;
        assert_eq!(ask(&cluster.read(None)).await.unwrap(), "hello");
    }

    #[support::async_test]
    async fn it_cannot_leave_writes_uncommitted() {
        let lab = Lab::new();
        let (_client, cluster) = launch(&lab.section(), on(PoolUse::Writes, Db::HOLD)).await;
        sqlx::query(INSERT).execute(&cluster.write()).await.unwrap();
        assert_eq!(lab.notes(), ["written"]);
    }
}
