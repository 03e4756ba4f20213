//! Behind a real pgbouncer: what the README's caveat says.

#![cfg(feature = "postgres")]

mod support;

use rocket::local::asynchronous::Client;
use rocket_replicated::Cluster;
use rocket_replicated::postgres::{Database, Replicated};
use sqlx::error::DatabaseError;

use support::lab::postgres::Lab;
use support::pgbouncer::{PgBouncer, PoolMode};
use support::{logbook, rocket_over};

/// A cluster whose master is reached through pgbouncer.
async fn through(pooler: &PgBouncer, keys: &str) -> (Client, Cluster<Database>) {
    let section = format!("url = \"{}\"\nmax_connections = 4\nconnect_timeout = 2\n{keys}", pooler.url());
    let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
    let cluster = Replicated::fetch(client.rocket()).unwrap().clone();
    (client, cluster)
}

const IGNORE: &str = "ignore_startup_parameters = extra_float_digits,options";

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
    for mode in [PoolMode::Session, PoolMode::Transaction] {
        let pooler = PgBouncer::start(&lab.cluster.master, mode, IGNORE);
        let before = complaints();
        let (_client, cluster) = through(&pooler, "prepared_statements = false").await;
        queries_at_once(&cluster).await.unwrap();
        assert_eq!(complaints(), before + 1, "once for each pool");

        let (_client, cluster) =
            through(&pooler, "prepared_statements = false\nenforce_read_only = false").await;
        queries_at_once(&cluster).await.unwrap();
        assert_eq!(complaints(), before + 1, "not where it is not asked for");
    }
}

#[rocket::async_test]
async fn in_transaction_mode_prepared_statements_have_to_be_off() {
    let lab = Lab::new();
    let pooler = PgBouncer::start(&lab.cluster.master, PoolMode::Transaction, IGNORE);
    let (_client, cluster) = through(&pooler, "enforce_read_only = false").await;
    let error = queries_at_once(&cluster).await.unwrap_err();
    let code = error.as_database_error().and_then(DatabaseError::code).map(|code| code.into_owned());
    assert!(matches!(code.as_deref(), Some("42P05" | "26000" | "08P01")), "{error}");

    let (_client, cluster) = through(&pooler, "enforce_read_only = false\nprepared_statements = false").await;
    queries_at_once(&cluster).await.unwrap();
}

#[rocket::async_test]
async fn in_session_mode_they_may_be_on() {
    let lab = Lab::new();
    let pooler = PgBouncer::start(&lab.cluster.master, PoolMode::Session, IGNORE);
    let (_client, cluster) = through(&pooler, "enforce_read_only = false").await;
    queries_at_once(&cluster).await.unwrap();
}
