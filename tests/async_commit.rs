//! A read of the client's own write waits for it even if the commit did not wait for the disk.

use rocket::local::asynchronous::Client;
use rocket_replicated::postgres::Replicated;

use support::lab::postgres::Lab;
use support::rocket_over;

#[support::async_test]
async fn clients_read_their_own_asynchronous_commits() {
    const ROUNDS: i64 = 60;

    let lab = Lab::new();
    let section = format!(
        "url = \"{}\"\nslaves = [\"{}\"]\nconsistency = \"position\"\nmax_lag = false\ncatch_up_timeout = 10\n",
        lab.master_url(),
        lab.slave_urls()[0],
    );
    let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
    let cluster = Replicated::fetch(client.rocket()).unwrap();
    let mut stale = 0;
    for round in 1..=ROUNDS {
        let writer = cluster.write();
        let mut transaction = writer.begin().await.unwrap();
        sqlx::query("SET LOCAL synchronous_commit = off").execute(&mut *transaction).await.unwrap();
        let insert = sqlx::query("INSERT INTO notes (body) VALUES ($1)").bind(round.to_string());
        insert.execute(&mut *transaction).await.unwrap();
        transaction.commit().await.unwrap();

        let pin = writer.pin().await.unwrap();
        let reader = cluster.read(Some(&pin));
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM notes").fetch_one(&reader).await.unwrap();
        stale += i64::from(count < round);
    }
    assert_eq!(stale, 0, "of {ROUNDS} own reads");
}
