//! What replication adds to a request: choosing a node, signing and reading a pin.
//!
//! `cargo bench --features sqlite`

use criterion::{Criterion, criterion_group, criterion_main};
use rocket::figment::providers::Serialized;
use rocket::local::asynchronous::Client;
use rocket_replicated::bench::{choose, read_pin, sign_pin};
use rocket_replicated::sqlite::Replicated;

fn overhead(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let url = |name: &str| format!("sqlite://{}", folder.path().join(name).display());
    let section = serde_json::json!({ "url": url("master"), "slaves": [url("slave-1"), url("slave-2")], "lag_window": 3600 });
    let figment = rocket::Config::figment()
        .merge(Serialized::default("log_level", "off"))
        .merge(Serialized::default("databases.replicated", section))
        .select("debug");
    let runtime = rocket::tokio::runtime::Runtime::new().unwrap();
    let client = runtime.block_on(async {
        Client::untracked(rocket::custom(figment).attach(Replicated::fairing())).await.unwrap()
    });
    let cluster = Replicated::fetch(client.rocket()).unwrap();
    let _runtime = runtime.enter();

    criterion.bench_function("choose a node, of two slaves", |bencher| {
        bencher.iter(|| {
            let db = cluster.read(None);
            choose(&db);
            db
        });
    });
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
