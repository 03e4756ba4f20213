//! Behind a real pgbouncer: what the README's caveat says.

use rocket::local::asynchronous::Client;
use rocket_replicated::Cluster;
use rocket_replicated::postgres::{Database, Replicated};
use sqlx::Connection;
use sqlx::error::DatabaseError;

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

/// What sqlx says when it connects that the pooler does not understand.
fn ignore() -> &'static str {
    if pgbouncer::keeps_read_only() {
        "ignore_startup_parameters = extra_float_digits"
    } else {
        "ignore_startup_parameters = extra_float_digits,options"
    }
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

#[rocket::async_test]
async fn a_setting_that_is_dropped_without_a_word_is_noticed() {
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

#[rocket::async_test]
async fn in_transaction_mode_old_ones_need_prepared_statements_to_be_off() {
    let lab = Lab::new();
    let pooler = PgBouncer::start(&lab.servers().master, PoolMode::Transaction, ignore());
    let (_client, cluster) = through(&pooler, "enforce_read_only = false").await;
    let queried = queries_at_once(&cluster).await;
    if pgbouncer::keeps_prepared_statements() {
        queried.unwrap();
    } else {
        let error = queried.unwrap_err();
        let code = error.as_database_error().and_then(DatabaseError::code).map(|code| code.into_owned());
        assert!(matches!(code.as_deref(), Some("42P05" | "26000" | "08P01")), "{error}");
    }

    let (_client, cluster) = through(&pooler, "enforce_read_only = false\nprepared_statements = false").await;
    queries_at_once(&cluster).await.unwrap();
}

#[rocket::async_test]
async fn in_session_mode_they_may_be_on() {
    let lab = Lab::new();
    let pooler = PgBouncer::start(&lab.servers().master, PoolMode::Session, ignore());
    let (_client, cluster) = through(&pooler, "enforce_read_only = false").await;
    queries_at_once(&cluster).await.unwrap();
}

/// One pooler for the master, one for the slave.
async fn all_holds(mode: PoolMode, lines: &str, keys: &str) {
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

#[rocket::async_test]
async fn all_holds_in_session_mode() {
    all_holds(PoolMode::Session, "", "").await;
}

#[rocket::async_test]
async fn all_holds_in_transaction_mode() {
    all_holds(PoolMode::Transaction, "", "prepared_statements = false").await;
    if pgbouncer::keeps_prepared_statements() {
        all_holds(PoolMode::Transaction, "max_prepared_statements = 50", "").await;
    }
}

/// A cluster without slaves, over a pooler in transaction mode that has nothing of the read-only setting.
async fn alone(lab: &Lab, keys: &str) -> (PgBouncer, Client, Cluster<Database>) {
    let pooler = PgBouncer::start(&lab.servers().master, PoolMode::Transaction, ignore());
    let keys = format!("prepared_statements = false\nenforce_read_only = false\n{keys}");
    let (client, cluster) = through(&pooler, &keys).await;
    (pooler, client, cluster)
}

#[rocket::async_test]
async fn in_transaction_mode_reads_refuse_writes_by_transactions_of_their_own() {
    let lab = Lab::new();
    lab.servers().master.sql("CREATE TABLE refusing (id INTEGER); GRANT ALL ON refusing TO app");
    let (_pooler, _client, cluster) = alone(&lab, "").await;
    let code = |error: sqlx::Error| Some(error.as_database_error()?.code()?.into_owned());
    let insert = || sqlx::query("INSERT INTO refusing VALUES ($1)").bind(1);

    let read = cluster.read(None);
    assert_eq!(code(insert().execute(&read).await.unwrap_err()).as_deref(), Some("25006"));
    let mut transaction = read.begin().await.unwrap();
    let refused = sqlx::query("INSERT INTO refusing VALUES ($1)").bind(1).persistent(false);
    assert_eq!(code(refused.execute(&mut *transaction).await.unwrap_err()).as_deref(), Some("25006"));
    drop(transaction);
    insert().execute(&cluster.write()).await.unwrap();

    let (_pooler, _client, cluster) = alone(&lab, "refused_write = \"reroute\"").await;
    insert().execute(&cluster.read(None)).await.unwrap();
    assert_eq!(lab.servers().master.sql("SELECT count(*) FROM refusing"), "2");
    lab.servers().master.sql("DROP TABLE refusing");
}

#[rocket::async_test]
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

/// The pooler says so by an error of its own.
#[rocket::async_test]
async fn a_write_whose_server_dies_behind_it_may_have_been_done() {
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

/// Nobody has said that there is a pooler. What it tells of the session that a connection once had says nothing of
/// the write that is under way: that goes on in another one.
#[rocket::async_test]
async fn a_write_is_not_given_up_for_what_another_session_does() {
    const SLEEPING: &str =
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(4)' AND state = 'active'";

    let lab = Lab::new();
    let pooler = PgBouncer::start(&lab.servers().master, PoolMode::Transaction, ignore());
    let mut others = Vec::new();
    for _ in 0..3 {
        others.push(sqlx::PgConnection::connect(&pooler.url()).await.unwrap());
    }
    let [first, second, third] = &mut others[..] else { unreachable!() };
    let run = async |conn: &mut sqlx::PgConnection, sql: &'static str| {
        sqlx::raw_sql(sql).execute(conn).await.unwrap();
    };

    // Free sessions are given out latest first. The monitor begins in one that stays its own, as the last to
    // become free; the write begins in one that then waits for somebody else.
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
