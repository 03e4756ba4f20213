//! The cost that replication adds to a request: choosing a server, signing and reading a pin.
//!
//! `cargo bench -p rocket_replicated_benches --bench overhead`

use criterion::{Criterion, criterion_group, criterion_main};
use rocket::figment::providers::Serialized;
use rocket::local::asynchronous::Client;
use rocket::tokio::runtime::Runtime;
use rocket_replicated::Role;
use rocket_replicated::internals::{choose, read_from, read_pin, sign_pin};
use rocket_replicated::sqlite::Replicated;
use rusqlite::Connection;
use tempfile::TempDir;

/// A Rocket over a master and this many slaves.
fn launch(runtime: &Runtime, slaves: usize, sticky: bool) -> (Client, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let url = |name: &str| {
        let file = folder.path().join(name);
        Connection::open(&file)
            .unwrap()
            .execute_batch("CREATE TABLE notes (id INTEGER PRIMARY KEY)")
            .unwrap();
        format!("sqlite://{}", file.display())
    };
    let slaves: Vec<_> = (1..=slaves).map(|number| url(&format!("slave-{number}"))).collect();
    // A long `check_interval`: probes would be measured as well.
    let section = serde_json::json!({
        "url": url("master"), "slaves": slaves, "lag_window": 3600, "max_lag": false, "check_interval": 3600,
        "sticky": sticky,
    });
    let figment = rocket::Config::figment()
        .merge(Serialized::default("log_level", "off"))
        .merge(Serialized::default("databases.replicated", section))
        .select("debug");
    let rocket = rocket::custom(figment).attach(Replicated::fairing());
    (runtime.block_on(Client::untracked(rocket)).unwrap(), folder)
}

fn overhead(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let _entered = runtime.enter();

    for slaves in [1, 4, 16, 64] {
        let (client, _folder) = launch(&runtime, slaves, false);
        let cluster = Replicated::fetch(client.rocket()).unwrap();
        criterion.bench_function(&format!("choose one of {slaves} slaves, as a new request"), |bencher| {
            bencher.iter(|| {
                let db = cluster.read(None);
                choose(&db);
                db
            });
        });
        let db = cluster.read(None);
        choose(&db);
        assert_eq!(db.choice().unwrap().role(), Role::Slave);

        let (client, _folder) = launch(&runtime, slaves, true);
        let cluster = Replicated::fetch(client.rocket()).unwrap();
        let address = [192, 0, 2, 1].into();
        criterion.bench_function(&format!("choose the client's own of {slaves} slaves"), |bencher| {
            bencher.iter(|| {
                let db = read_from(cluster, address);
                choose(&db);
                db
            });
        });
    }

    let (client, _folder) = launch(&runtime, 1, false);
    let cluster = Replicated::fetch(client.rocket()).unwrap();
    criterion.bench_function("sign a pin", |bencher| bencher.iter(|| sign_pin(cluster)));
    let pin = sign_pin(cluster).unwrap();
    criterion.bench_function("read and verify a pin", |bencher| {
        bencher.iter(|| assert!(read_pin(cluster, &pin)));
    });
    let mut forged = pin.clone();
    forged.replace_range(20..21, if &pin[20..21] == "A" { "B" } else { "A" });
    criterion.bench_function("refuse a forged pin", |bencher| {
        bencher.iter(|| assert!(!read_pin(cluster, &forged)));
    });
}

criterion_group!(benches, overhead);
criterion_main!(benches);
