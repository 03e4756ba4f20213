//! The statements of the guide's page about pgbouncer, on a real one.

use rocket::local::asynchronous::Client;
use rocket_replicated::postgres::{Database, Replicated};
use rocket_replicated::{Cluster, Role};
use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;

use support::eventually;
use support::lab::postgres::Lab;
use support::pgbouncer::{self, PgBouncer, PoolMode};
use support::proxied::{self, Site};
use support::{logbook, rocket_over};

/// A cluster whose master is reached through pgbouncer.
async fn through(pooler: &PgBouncer, keys: &str) -> (Client, Cluster<Database>) {
    let section = format!("url = \"{}\"\nmax_connections = 4\nconnect_timeout = 10\n{keys}", pooler.url());
    let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
    let cluster = Replicated::fetch(client.rocket()).unwrap().clone();
    (client, cluster)
}

/// Has the pooler drop the startup option that makes a connection read-only, if it is too old to understand the option.
fn ignore() -> &'static str {
    if pgbouncer::keeps_read_only() { "" } else { "ignore_startup_parameters = options" }
}

fn complaints() -> usize {
    logbook::lines(&["ERROR", "are not read-only", "`enforce_read_only = false`"]).len()
}

async fn queries_at_once(cluster: &Cluster<Database>) -> Result<(), sqlx::Error> {
    let query = |id: i32| {
        let db = cluster.read(None);
        async move { sqlx::query_scalar::<_, i32>("SELECT $1").bind(id).fetch_one(&db).await }
    };
    for _ in 0..10 {
        let ids = rocket::futures::future::try_join_all((0..8).map(query)).await?;
        assert_eq!(ids, (0..8).collect::<Vec<_>>());
    }
    Ok(())
}

#[support::async_test]
async fn a_silently_dropped_read_only_setting_is_noticed() {
    let lab = Lab::new();
    let dropped = usize::from(!pgbouncer::keeps_read_only());
    for mode in [PoolMode::Session, PoolMode::Transaction] {
        let pooler = PgBouncer::start(&lab.servers().master, mode, ignore());
        let before = complaints();
        let (_client, cluster) = through(&pooler, "prepared_statements = false").await;
        queries_at_once(&cluster).await.unwrap();
        assert_eq!(complaints(), before + dropped, "once for each pool");

        let (_client, cluster) =
            through(&pooler, "prepared_statements = false\nenforce_read_only = false").await;
        queries_at_once(&cluster).await.unwrap();
        assert_eq!(complaints(), before + dropped, "not where it is not asked for");
    }
}

#[support::async_test]
async fn in_transaction_mode_old_poolers_need_prepared_statements_to_be_off() {
    let lab = Lab::new();
    let pooler = PgBouncer::start(&lab.servers().master, PoolMode::Transaction, ignore());
    let (_client, cluster) = through(&pooler, "enforce_read_only = false").await;
    let queried = queries_at_once(&cluster).await;
    if pgbouncer::keeps_prepared_statements() {
        queried.unwrap();
    } else {
        let error = queried.unwrap_err();
        assert!(matches!(code(&error).as_deref(), Some("42P05" | "26000" | "08P01")), "{error}");
    }

    let (_client, cluster) = through(&pooler, "enforce_read_only = false\nprepared_statements = false").await;
    queries_at_once(&cluster).await.unwrap();
}

#[support::async_test]
async fn in_session_mode_prepared_statements_may_be_on() {
    let lab = Lab::new();
    let pooler = PgBouncer::start(&lab.servers().master, PoolMode::Session, ignore());
    let (_client, cluster) = through(&pooler, "enforce_read_only = false").await;
    queries_at_once(&cluster).await.unwrap();
}

/// One pooler for the master, one for the slave.
async fn reads_writes_and_pins_work(mode: PoolMode, lines: &str, keys: &str) {
    let servers = proxied::servers(1);
    let lines = format!("{}\nserver_login_retry = 0.5\n{lines}", ignore());
    let poolers = [&servers.master, &servers.slaves[0]].map(|server| PgBouncer::start(server, mode, &lines));
    let mut by_time = Site::launch(&poolers[0].url(), &poolers[1].url(), "window", keys).await;
    by_time.misses_no_own_write(30).await;
    by_time.refuses_writes_on_reads().await;
    let mut site = Site::launch(&poolers[0].url(), &poolers[1].url(), "position", keys).await;
    site.reads_its_own_writes(30).await;
    site.refuses_writes_on_reads().await;
    site.survives_faults(&servers).await;
}

#[support::async_test]
async fn reads_writes_and_pins_work_in_session_mode() {
    reads_writes_and_pins_work(PoolMode::Session, "", "").await;
}

#[support::async_test]
async fn reads_writes_and_pins_work_in_transaction_mode() {
    reads_writes_and_pins_work(PoolMode::Transaction, "", "prepared_statements = false").await;
    if pgbouncer::keeps_prepared_statements() {
        reads_writes_and_pins_work(PoolMode::Transaction, "max_prepared_statements = 50", "").await;
    }
}

/// The number of warnings about startup options that the pooler refuses.
fn refusals() -> usize {
    logbook::lines(&["WARN", "refuses startup options", "`ignore_startup_parameters = options`"]).len()
}

/// The number of such warnings for this many clusters or servers. Newer poolers accept the option.
fn refused(servers: usize) -> usize {
    if pgbouncer::keeps_read_only() { 0 } else { servers }
}

fn code(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}

/// One pooler for the master and one for the slave. Their configuration says nothing of startup parameters.
async fn serves_unconfigured(mode: PoolMode, keys: &str) {
    let servers = proxied::servers(1);
    let poolers = [&servers.master, &servers.slaves[0]].map(|server| PgBouncer::start(server, mode, ""));
    for consistency in ["window", "position"] {
        let mut site = Site::launch(&poolers[0].url(), &poolers[1].url(), consistency, keys).await;
        site.misses_no_own_write(10).await;
        site.refuses_writes_on_reads().await;
        site.is_served_by_a_slave().await;
        site.takes_writes().await;
    }
    assert_eq!(complaints(), 0);
}

#[support::async_test]
async fn an_unconfigured_pooler_serves_in_session_mode() {
    serves_unconfigured(PoolMode::Session, "").await;
}

#[support::async_test]
async fn an_unconfigured_pooler_serves_in_transaction_mode() {
    serves_unconfigured(PoolMode::Transaction, "prepared_statements = false").await;
}

#[support::async_test]
async fn in_session_mode_connections_are_made_read_only_once_they_are_open() {
    const INSERT: &str = "INSERT INTO opened VALUES (1)";

    let lab = Lab::new();
    lab.servers().master.sql("CREATE TABLE opened (id INTEGER); GRANT ALL ON opened TO app");
    let pooler = PgBouncer::start(&lab.servers().master, PoolMode::Session, "");
    let (_client, cluster) = through(&pooler, "").await;
    for _ in 0..2 {
        queries_at_once(&cluster).await.unwrap();
        let read = cluster.read(None);
        let insert = sqlx::query("INSERT INTO opened VALUES ($1)").bind(1);
        assert_eq!(code(&insert.execute(&read).await.unwrap_err()).as_deref(), Some("25006"));
        assert_eq!(code(&sqlx::raw_sql(INSERT).execute(&read).await.unwrap_err()).as_deref(), Some("25006"));
        let mut held = read.get().await.unwrap();
        let error = sqlx::query(INSERT).execute(&mut *held).await.unwrap_err();
        assert_eq!(code(&error).as_deref(), Some("25006"));
        sqlx::query(INSERT).execute(&cluster.write()).await.unwrap();
    }
    assert_eq!((refusals(), complaints()), (refused(1), 0));

    // A pool of sqlx's own opens its connections itself. Here it is the first pool of its cluster to do so.
    let (_client, cluster) = through(&pooler, "").await;
    let plain = cluster.pool(Role::Slave);
    eventually("a connection", async || sqlx::query("SELECT 1").execute(&plain).await.is_ok()).await;
    let error = sqlx::query(INSERT).execute(&plain).await.unwrap_err();
    assert_eq!(code(&error).as_deref(), Some("25006"), "{error}");

    let (_client, cluster) = through(&pooler, "enforce_read_only = false").await;
    sqlx::raw_sql(INSERT).execute(&cluster.read(None)).await.unwrap();
    assert_eq!(refusals(), refused(2), "not where it is not asked for");
    lab.servers().master.sql("DROP TABLE opened");
}

/// A `SET` would take effect in the next transaction, which may be a write of another client.
#[support::async_test]
async fn in_transaction_mode_settings_of_reads_do_not_affect_writes() {
    let lab = Lab::new();
    lab.servers().master.sql("CREATE TABLE shared (id INTEGER); GRANT ALL ON shared TO app");
    // The second cluster's configuration does not say that there is a pooler.
    for (keys, says) in [("prepared_statements = false", true), ("", false)] {
        let pooler = PgBouncer::start(&lab.servers().master, PoolMode::Transaction, "");
        let before = refusals();
        let (_client, cluster) = through(&pooler, keys).await;
        for _ in 0..10 {
            let read = || {
                let db = cluster.read(None);
                async move { sqlx::raw_sql("SELECT count(*) FROM shared").execute(&db).await }
            };
            let write = || {
                let db = cluster.write();
                async move { sqlx::raw_sql("INSERT INTO shared VALUES (1)").execute(&db).await }
            };
            let reads = rocket::futures::future::try_join_all((0..4).map(|_| read()));
            let writes = rocket::futures::future::try_join_all((0..4).map(|_| write()));
            let (reads, writes) = rocket::tokio::join!(reads, writes);
            let log = || logbook::lines(&["`replicated`"]).join("\n");
            reads.unwrap_or_else(|error| panic!("{error}: {}", log()));
            writes.unwrap_or_else(|error| panic!("{error}: {}", log()));
        }
        if says {
            let insert = sqlx::query("INSERT INTO shared VALUES ($1)").bind(1);
            let error = insert.execute(&cluster.read(None)).await.unwrap_err();
            assert_eq!(code(&error).as_deref(), Some("25006"), "{error}");
        }
        assert_eq!((refusals() - before, complaints()), (refused(1), 0));
    }
    assert_eq!(lab.servers().master.sql("SELECT count(*) FROM shared"), "80");
    lab.servers().master.sql("DROP TABLE shared");
}

/// A cluster without slaves, over a pooler in transaction mode, whose connections are not made read-only.
async fn alone(lab: &Lab, keys: &str) -> (PgBouncer, Client, Cluster<Database>) {
    let pooler = PgBouncer::start(&lab.servers().master, PoolMode::Transaction, ignore());
    let keys = format!("prepared_statements = false\nenforce_read_only = false\n{keys}");
    let (client, cluster) = through(&pooler, &keys).await;
    (pooler, client, cluster)
}

#[support::async_test]
async fn in_transaction_mode_reads_refuse_writes_by_transactions_of_their_own() {
    let lab = Lab::new();
    lab.servers().master.sql("CREATE TABLE refusing (id INTEGER); GRANT ALL ON refusing TO app");
    let (_pooler, _client, cluster) = alone(&lab, "").await;
    let insert = || sqlx::query("INSERT INTO refusing VALUES ($1)").bind(1);

    let read = cluster.read(None);
    assert_eq!(code(&insert().execute(&read).await.unwrap_err()).as_deref(), Some("25006"));
    let mut transaction = read.begin().await.unwrap();
    let insertion = sqlx::query("INSERT INTO refusing VALUES ($1)").bind(1).persistent(false);
    assert_eq!(code(&insertion.execute(&mut *transaction).await.unwrap_err()).as_deref(), Some("25006"));
    drop(transaction);
    insert().execute(&cluster.write()).await.unwrap();

    let (_pooler, _client, cluster) = alone(&lab, "refused_write = \"reroute\"").await;
    insert().execute(&cluster.read(None)).await.unwrap();
    assert_eq!(lab.servers().master.sql("SELECT count(*) FROM refusing"), "2");
    lab.servers().master.sql("DROP TABLE refusing");
}

#[support::async_test]
async fn in_transaction_mode_reads_run_once_more() {
    const SLEEPING: &str =
        "FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE 'SELECT $1, pg_sleep%'";

    let lab = Lab::new();
    let (_pooler, _client, cluster) = alone(&lab, "").await;
    for _ in 0..5 {
        let db = cluster.read(None);
        let read = sqlx::query("SELECT $1, pg_sleep(1)").bind(1).execute(&db);
        let end = async {
            let end = format!("SELECT count(pg_terminate_backend(pid)) {SLEEPING}");
            eventually("a read", async || lab.servers().master.sql(&end) == "1").await;
        };
        let (read, ()) = rocket::tokio::join!(read, end);
        read.unwrap();
    }
}

/// The pooler reports this by an error of its own.
#[support::async_test]
async fn a_write_whose_server_dies_behind_the_pooler_may_have_been_done() {
    let servers = rocket_replicated_testing::Servers::start(rocket_replicated_testing::postgres::Postgres, 0);
    let master = &servers.master;
    let pooler = PgBouncer::start(master, PoolMode::Session, ignore());
    let (_client, cluster) = through(&pooler, "enforce_read_only = false").await;
    let db = cluster.write();
    let write = sqlx::query("SELECT pg_sleep(600)").execute(&db);
    let kill = async {
        let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        eventually("the write", async || master.sql(sleeping) == "1").await;
        master.kill();
    };
    let (written, ()) = rocket::tokio::join!(write, kill);
    let error = written.unwrap_err();
    assert!(rocket_replicated::Error::is_outcome_unknown(&error), "{error}");
    let refused = sqlx::query("SELECT nonsense").execute(&db).await.unwrap_err();
    assert!(!rocket_replicated::Error::is_outcome_unknown(&refused), "{refused}");
}

/// The configuration does not say that there is a pooler. The pooler may tell of the session that the connection once
/// had. That says nothing of the write under way, which runs in another session.
#[support::async_test]
async fn a_write_is_not_given_up_for_what_another_session_does() {
    const SLEEPING: &str =
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(4)' AND state = 'active'";

    let lab = Lab::new();
    let pooler = PgBouncer::start(&lab.servers().master, PoolMode::Transaction, ignore());
    let mut others = Vec::new();
    for _ in 0..3 {
        // This option, which sqlx sets by itself, is refused by the pooler.
        let options: PgConnectOptions = pooler.url().parse().unwrap();
        others.push(options.extra_float_digits(None).connect().await.unwrap());
    }
    let [first, second, third] = &mut others[..] else { unreachable!() };
    let run = async |conn: &mut sqlx::PgConnection, sql: &'static str| {
        sqlx::raw_sql(sql).execute(conn).await.unwrap();
    };

    // Free sessions are given out latest first. The monitor begins in a session that stays its own, because it is the
    // last to become free. The write begins in a session that then waits for another client.
    run(first, "BEGIN").await;
    let keys = "enforce_read_only = false\ncheck_interval = 0.1\ncheck_timeout = 2";
    let (_client, cluster) = through(&pooler, keys).await;
    run(second, "BEGIN").await;
    run(first, "COMMIT").await;
    let db = cluster.write();
    sqlx::raw_sql("SELECT 1").execute(&db).await.unwrap();
    run(first, "BEGIN").await;
    run(third, "BEGIN").await;
    let write = sqlx::raw_sql("SELECT pg_sleep(4)").execute(&db);
    let free = async {
        eventually("the write", async || lab.servers().master.sql(SLEEPING) == "1").await;
        run(first, "COMMIT").await;
        run(third, "COMMIT").await;
        run(second, "COMMIT").await;
    };
    let (written, ()) = rocket::tokio::join!(write, free);
    written.unwrap();
    assert!(
        !logbook::lines(&["WARN", "is reached through a pooler", "`prepared_statements = false`"]).is_empty()
    );
}
