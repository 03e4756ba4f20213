//! The metrics in a real exporter, and the dashboard that shows them.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::PrometheusBuilder;
use rocket::local::asynchronous::Client;
use rocket::tokio::time::sleep;
use rocket::{get, post, routes};
use rocket_replicated::Error;
use rocket_replicated::internals::metrics as names;
use rocket_replicated::sqlite::{Replicated, ReplicatedDb};

use support::lab::sqlite::Lab;
use support::rocket_over;

const DASHBOARD: &str = include_str!("../docs/grafana.json");

#[get("/<_secret>")]
async fn read(_secret: &str, db: ReplicatedDb) -> Result<(), Error> {
    sqlx::query("SELECT id FROM notes").fetch_all(&db).await?;
    Ok(())
}

#[post("/<_secret>")]
async fn write(_secret: &str, db: ReplicatedDb) -> Result<(), Error> {
    sqlx::query("DELETE FROM notes").execute(&db).await?;
    Ok(())
}

/// Installs the exporter as the guide says. Returns its port.
fn install() -> u16 {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    PrometheusBuilder::new()
        .with_http_listener(([127, 0, 0, 1], port))
        .with_recommended_naming(true)
        .set_buckets(&[0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0])
        .and_then(PrometheusBuilder::install)
        .unwrap();
    port
}

async fn scrape(port: u16) -> Option<String> {
    let reply = reqwest::get(format!("http://127.0.0.1:{port}/metrics")).await.ok()?;
    reply.text().await.ok()
}

/// The exporter's text, once it has all of these samples.
async fn published(port: u16, awaited: &[&str]) -> String {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let text = scrape(port).await.unwrap_or_default();
        let has_sample = |wanted: &&&str| text.lines().any(|line| same_series(line, wanted));
        match awaited.iter().find(|wanted| !has_sample(wanted)) {
            None => return text,
            Some(missing) => assert!(Instant::now() < deadline, "{missing} in {text}"),
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// The metric families that a text has samples of.
fn families(text: &str) -> BTreeSet<&str> {
    let declared = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    declared.collect()
}

#[support::async_test]
async fn a_real_exporter_has_every_metric_and_the_dashboard_no_other() {
    let port = install();
    let lab = Lab::new();
    let section = format!("{}name = \"db-1\"\nconsistency = \"position\"\n", lab.section());
    let rocket = rocket_over(&section).attach(Replicated::fairing()).mount("/", routes![read, write]);
    let client = Client::untracked(rocket).await.unwrap();
    let cluster = Replicated::fetch(client.rocket()).unwrap();
    for _ in 0..5 {
        client.get("/hunter2").dispatch().await;
    }
    let pin =
        client.post("/hunter2").dispatch().await.cookies().get("replicated_pin").unwrap().value().to_owned();
    client.get("/hunter2").cookie(("replicated_pin", pin.clone())).dispatch().await;
    client.get("/hunter2").cookie(("replicated_pin", "forged")).dispatch().await;
    cluster.take_out("slave-2").unwrap();

    let awaited = [
        "rocket_replicated_choices_total{database=\"replicated\",server=\"db-1\",role=\"master\",reason=\"write method\"} 1",
        "rocket_replicated_pins_refused_total{database=\"replicated\",cause=\"forged\"} 1",
        "rocket_replicated_pins_made_total{database=\"replicated\"} 1",
        "rocket_replicated_up{database=\"replicated\",server=\"slave-2\"} 0",
        "rocket_replicated_up{database=\"replicated\",server=\"slave-1\"} 1",
        "rocket_replicated_master{database=\"replicated\",server=\"db-1\"} 1",
        "rocket_replicated_state_changes_total{database=\"replicated\",server=\"slave-2\",state=\"taken out\"} 1",
        "db_client_connection_max{database=\"replicated\",server=\"db-1\",db_client_connection_pool_name=\"db-1/writes\"} 1",
    ];
    published(port, &awaited).await;

    // Counters are not published twice: the next publication changes only the number of refused pins.
    cluster.read(Some("forged"));
    let marker = "rocket_replicated_pins_refused_total{database=\"replicated\",cause=\"forged\"} 2";
    let text = published(port, &[marker]).await;
    let statistics = cluster.statistics();
    let is_told = |series: &str, labels: &str, value: u64| {
        let wanted = format!("{series}{{database=\"replicated\"{labels}}} {value}");
        assert!(text.lines().any(|line| same_series(line, &wanted)), "{wanted} in {text}");
    };
    is_told("rocket_replicated_pins_made_total", "", 1);
    is_told("rocket_replicated_pins_honoured_total", "", 1);
    for server in &statistics.servers {
        for pool in &server.pools {
            let (server, used_for) = (&server.name, pool.used_for);
            let labels =
                format!(",server=\"{server}\",db_client_connection_pool_name=\"{server}/{used_for}\"");
            for (state, count) in [("used", pool.in_use), ("idle", pool.idle)] {
                let labels = format!("{labels},db_client_connection_state=\"{state}\"");
                is_told("db_client_connection_count", &labels, count.into());
            }
            is_told("db_client_connection_timeouts_total", &labels, pool.timed_out);
            for (metric, times) in [("wait_time", &pool.checkouts), ("create_time", &pool.opened)] {
                if times.count() > 0 {
                    let series = format!("db_client_connection_{metric}_seconds_count");
                    is_told(&series, &labels, times.count());
                }
            }
        }
    }

    // Reads are spread over two slaves.
    let reads: u64 = (text.lines())
        .filter(|line| {
            line.starts_with("rocket_replicated_choices_total") && line.contains("\"read method\"")
        })
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert!((5..=7).contains(&reads), "{reads}");

    // Each metric name has its family, with the unit and the suffix that the naming adds.
    let families = families(&text);
    for name in names() {
        let name = name.replace('.', "_");
        let of_it = families.iter().filter(|family| family.starts_with(&name)).count();
        assert!(of_it >= 1 || name == "rocket_replicated_catch_up_time", "{name} in {families:?}");
    }
    let ours: BTreeSet<_> = names().into_iter().map(|name| name.replace('.', "_")).collect();
    let foreign: Vec<_> =
        families.iter().filter(|family| !ours.iter().any(|name| family.starts_with(&**name))).collect();
    assert_eq!(foreign, [&""; 0]);

    // The values of labels are from fixed sets.
    let samples = text.lines().filter(|line| line.contains('{'));
    for (label, value) in samples.flat_map(|line| labels_of(line).unwrap()) {
        let is_known = match label {
            "database" => value == "replicated",
            "server" => ["db-1", "slave-1", "slave-2"].contains(&value),
            "role" | "reason" | "cause" | "state" | "outcome" | "le" => true,
            "db_client_connection_pool_name" | "db_client_connection_state" => true,
            _ => false,
        };
        assert!(is_known, "{label}=\"{value}\" in {text}");
    }
    for secret in [&*pin, "hunter2", "GET", "notes"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }

    let json: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    let mut expressions = Vec::new();
    collect(&json, &mut expressions);
    assert!(expressions.len() >= 12, "{expressions:?}");
    let mut shown = BTreeSet::new();
    for expression in &expressions {
        for word in expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            if word.starts_with("rocket_replicated_") || word.starts_with("db_client_connection_") {
                let is_label =
                    word == "db_client_connection_pool_name" || word == "db_client_connection_state";
                let family =
                    ["_bucket", "_sum", "_count"].iter().find_map(|suffix| word.strip_suffix(suffix));
                let exists =
                    families.contains(word) || family.is_some_and(|family| families.contains(family));
                // This test never asks a slave whether it has caught up.
                let unasked = word.starts_with("rocket_replicated_catch_up_time_seconds_");
                assert!(is_label || exists || unasked, "{word} in {expression}");
                shown.insert(word.to_owned());
            }
        }
    }
    for name in &ours {
        assert!(shown.iter().any(|word| word.starts_with(name)), "{name} is on no panel");
    }
}

/// True if the line is a sample with the same name, the same labels in any order, and the same value.
fn same_series(line: &str, wanted: &str) -> bool {
    let parts = |line: &str| {
        let (name, rest) = line.split_once('{')?;
        let (labels, value) = rest.rsplit_once("} ")?;
        let labels: BTreeSet<_> =
            labels.split("\",").map(|label| label.trim_end_matches('"').to_owned()).collect();
        Some((name.to_owned(), labels, value.parse::<f64>().ok()?))
    };
    parts(line).is_some() && parts(line) == parts(wanted)
}

/// The labels of a sample, and their values, which have no quotes.
fn labels_of(line: &str) -> Option<Vec<(&str, &str)>> {
    let (labels, _) = line.split_once('{')?.1.rsplit_once('}')?;
    labels.trim_end_matches('"').split("\",").map(|label| label.split_once("=\"")).collect()
}

/// The queries of all panels.
fn collect(value: &serde_json::Value, into: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(object) => {
            for (key, value) in object {
                match (&**key, value) {
                    ("expr", serde_json::Value::String(expression)) => into.push(expression.clone()),
                    _ => collect(value, into),
                }
            }
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| collect(value, into)),
        _ => {}
    }
}
