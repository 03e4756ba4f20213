//! The effect of replication lag on clients that write and then read: `./scripts/bench lag`.
//!
//! The registers example runs in each mode over a real PostgreSQL master and two slaves that replay late. Clients read
//! at once, as after a redirect, and then at growing intervals. Prints the tables of `docs/benchmarks.md` and draws
//! `docs/lag.svg`.

use std::error::Error;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};
use std::{env, fs};

use plotters::prelude::*;
use rocket::futures::future::join_all;
use rocket::tokio;
use rocket::tokio::time::{sleep, sleep_until};
use serde::Deserialize;

use rocket_replicated_testing::postgres::{Postgres, client};
use rocket_replicated_testing::{Server, Servers};
use support::program::{Website, repository};

const CLIENTS: usize = 16;

/// The times between a write and the reads after it.
const PAUSES: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(10),
    Duration::from_millis(30),
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_millis(1000),
];

const LAGS: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(300),
    Duration::from_secs(2),
    Duration::from_secs(10),
];

/// The consistency modes and their keys. `max_lag` is off: otherwise the slaves would be left out at the longer lags.
const MODES: [(&str, &str); 3] = [
    ("window", "lag_window=5,max_lag=false"),
    ("position", "lag_window=5,max_lag=false,consistency=\"position\""),
    ("none", "lag_window=0,max_lag=false"),
];

/// The loads by other writers. In none of them do slaves lag by more than the time to send and to replay.
const OTHERS: [Others; 4] = [
    Others { name: "nobody", script: "", options: &[], wal_writer_delay: "200ms" },
    Others {
        name: "1000 commits a second, each waited for",
        script: "INSERT INTO noise VALUES (repeat('x', 200))",
        options: &["--client=4", "--rate=1000"],
        wal_writer_delay: "200ms",
    },
    Others {
        name: "a transaction that inserts for a second",
        script: LONG,
        options: &["--client=1"],
        wal_writer_delay: "200ms",
    },
    Others {
        name: "the same, `wal_writer_delay = 10ms`",
        script: LONG,
        options: &["--client=1"],
        wal_writer_delay: "10ms",
    },
];

const LONG: &str = "DO $$ BEGIN FOR i IN 1..200 LOOP
        INSERT INTO noise VALUES (repeat('x', 200)); PERFORM pg_sleep(0.005);
    END LOOP; END $$";

/// Other clients that write to the same master. They move its insert position, which a pin takes, past the client's own
/// write.
struct Others {
    name: &'static str,
    script: &'static str,
    /// Options of `pgbench`.
    options: &'static [&'static str],
    /// How often the master flushes WAL that no commit waits for.
    wal_writer_delay: &'static str,
}

/// A running load of other writers. Dropping it ends the load.
struct Writing(Child);

impl Drop for Writing {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Others {
    fn start(&self, master: &Server<Postgres>, folder: &Path) -> Option<Writing> {
        if self.script.is_empty() {
            return None;
        }
        let script = folder.join("others.sql");
        fs::write(&script, format!("{};\n", self.script)).unwrap();
        let mut pgbench = client(master, "pgbench");
        pgbench.args(["--no-vacuum", "--time=3600"]).args(self.options).arg("-f").arg(script).arg("app");
        Some(Writing(pgbench.spawn().unwrap()))
    }
}

const COLOURS: [RGBColor; 3] = [RGBColor(214, 120, 30), RGBColor(40, 130, 190), RGBColor(150, 150, 150)];

/// One query of a read, as the example reports it.
#[derive(Deserialize)]
struct Answer {
    value: i64,
    role: String,
}

#[derive(Default)]
struct Measured {
    writes: Vec<Duration>,
    reads: Vec<Read>,
}

struct Read {
    /// The index of the pause before this read, in [`PAUSES`].
    pause: usize,
    took: Duration,
    by_slave: bool,
    stale: bool,
}

impl Measured {
    fn share(&self, counts: impl Fn(&Read) -> bool, of: impl Fn(&Read) -> bool) -> f64 {
        let of: Vec<_> = self.reads.iter().filter(|read| of(read)).collect();
        let count = of.iter().filter(|read| counts(read)).count();
        100.0 * count as f64 / of.len().max(1) as f64
    }

    fn shares_and_times(&self) -> String {
        let mut reads: Vec<_> = self.reads.iter().map(|read| read.took).collect();
        let mut writes = self.writes.clone();
        let ms = |took: Duration| format!("{:.1}", took.as_secs_f64() * 1000.0);
        format!(
            "{:.1} % | {:.1} % | {:.1} % | {} | {} | {} | {}",
            self.share(|read| read.by_slave, |read| read.pause == 0),
            self.share(|read| read.by_slave, |_| true),
            self.share(|read| read.stale, |_| true),
            ms(quantile(&mut reads, 0.5)),
            ms(quantile(&mut reads, 0.99)),
            ms(quantile(&mut writes, 0.5)),
            ms(quantile(&mut writes, 0.99)),
        )
    }
}

fn label(lag: Duration) -> String {
    if lag.is_zero() { "0".to_owned() } else { format!("{lag:?}") }
}

fn quantile(times: &mut [Duration], q: f64) -> Duration {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * q) as usize]
}

fn main() -> Result<(), Box<dyn Error>> {
    // `cargo test` runs benches as well. Only `cargo bench` passes `--bench`.
    if !env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let lasts = Duration::from_secs(env::var("SECONDS_EACH").map_or(Ok(6), |seconds| seconds.parse())?);
    let tables = env::var("TABLES").unwrap_or_else(|_| "12".to_owned());
    let cluster = Servers::start(Postgres, 2);
    for sql in [
        "CREATE TABLE registers (register INTEGER PRIMARY KEY, value BIGINT NOT NULL)",
        "CREATE TABLE writes (register INTEGER NOT NULL, value BIGINT NOT NULL)",
        "CREATE TABLE noise (body TEXT NOT NULL)",
        "INSERT INTO registers SELECT g, 0 FROM generate_series(1, 16) g",
        "GRANT ALL ON registers, writes TO app",
    ] {
        cluster.master.sql(sql);
    }
    cluster.wait_caught_up();
    let runtime = tokio::runtime::Runtime::new()?;
    if tables.contains('1') {
        let measured = runtime.block_on(measure_all(&cluster, lasts));
        draw(&measured)?;
    }
    if tables.contains('2') {
        runtime.block_on(measure_beside_others(&cluster, lasts));
    }
    Ok(())
}

/// Measures each mode at each lag.
async fn measure_all(cluster: &Servers<Postgres>, lasts: Duration) -> Vec<[Measured; 3]> {
    println!("\n### Slaves that replay late\n");
    println!("| lag | mode | {SHARES_AND_TIMES} |");
    println!("|---|---|---|---|---|---|---|---|---|");
    let mut all = Vec::new();
    for lag in LAGS {
        delay_replay(cluster, lag);
        let mut measured = [const { Measured { writes: Vec::new(), reads: Vec::new() } }; 3];
        for ((mode, keys), measured) in MODES.iter().zip(&mut measured) {
            let website = launch(cluster, keys).await;
            *measured = measure(&website.url, lasts).await;
            println!("| {} | {mode} | {} |", label(lag), measured.shares_and_times());
        }
        all.push(measured);
    }
    say_how_many(all.iter().flatten());
    all
}

/// Measures position mode beside other clients that write to the same master.
async fn measure_beside_others(cluster: &Servers<Postgres>, lasts: Duration) {
    println!("\n### Others that write\n");
    println!("| others | {SHARES_AND_TIMES} |");
    println!("|---|---|---|---|---|---|---|---|");
    delay_replay(cluster, Duration::ZERO);
    let (_, keys) = MODES[1];
    let scripts = tempfile::tempdir().unwrap();
    let mut all = Vec::new();
    for others in &OTHERS {
        let delay = others.wal_writer_delay;
        cluster.master.sql(&format!("ALTER SYSTEM SET wal_writer_delay = '{delay}'"));
        cluster.master.sql("SELECT pg_reload_conf()");
        let website = launch(cluster, keys).await;
        let writing = others.start(&cluster.master, scripts.path());
        let measured = measure(&website.url, lasts).await;
        drop(writing);
        println!("| {} | {} |", others.name, measured.shares_and_times());
        all.push(measured);
        // The next measurement must not wait for the replay of this load.
        cluster.wait_caught_up();
    }
    say_how_many(all.iter());
}

const SHARES_AND_TIMES: &str = "on slaves at once | on slaves | stale | read p50 | p99 | write p50 | p99";

fn say_how_many<'a>(rows: impl Iterator<Item = &'a Measured>) {
    let mut reads: Vec<_> = rows.map(|measured| measured.reads.len()).collect();
    reads.sort_unstable();
    println!("\nReads in each row: {} to {}; times in ms.", reads[0], reads[reads.len() - 1]);
}

fn delay_replay(cluster: &Servers<Postgres>, lag: Duration) {
    for slave in &cluster.slaves {
        slave.sql(&format!("ALTER SYSTEM SET recovery_min_apply_delay = {}", lag.as_millis()));
        slave.sql("SELECT pg_reload_conf()");
    }
}

async fn launch(cluster: &Servers<Postgres>, keys: &str) -> Website {
    let slaves: Vec<_> = cluster.slaves.iter().map(|slave| format!("\"{}\"", slave.url())).collect();
    let (master, slaves) = (cluster.master.url(), slaves.join(","));
    let section = format!("{{replicated={{url=\"{master}\",slaves=[{slaves}],{keys}}}}}");
    let environment =
        [("ROCKET_DATABASES", &*section), ("REGISTERS", "postgres"), ("ROCKET_LOG_LEVEL", "critical")];
    Website::launch("registers", "Rocket.toml", &environment).await
}

async fn measure(url: &str, lasts: Duration) -> Measured {
    let end = Instant::now() + lasts;
    let clients = (1..=CLIENTS).map(|register| {
        let url = format!("{url}/registers/{register}");
        tokio::spawn(async move { work(&url, end).await.unwrap() })
    });
    let mut all = Measured::default();
    for measured in join_all(clients).await {
        let Measured { writes, reads } = measured.unwrap();
        all.writes.extend(writes);
        all.reads.extend(reads);
    }
    all
}

/// A client with a register of its own.
async fn work(url: &str, end: Instant) -> Result<Measured, reqwest::Error> {
    let http = reqwest::Client::builder().cookie_store(true).build()?;
    let answers = async || http.get(url).send().await?.error_for_status()?.json::<Vec<Answer>>().await;
    let mut measured = Measured::default();
    // Clients start at different times.
    sleep(Duration::from_millis(fastrand::u64(0..1000))).await;
    // The value that another mode has left may not be replayed yet.
    let begin = http.get(url).send().await?.json::<Vec<Answer>>().await?[0].value;
    let mut value = begin.max(time_in_ms());
    while Instant::now() < end {
        value += 1;
        let begun = Instant::now();
        http.put(format!("{url}/{value}")).send().await?.error_for_status()?;
        let written = tokio::time::Instant::now();
        measured.writes.push(begun.elapsed());
        for (pause, after) in PAUSES.iter().enumerate() {
            sleep_until(written + *after).await;
            let begun = Instant::now();
            let answers = answers().await?;
            let stale = answers.iter().any(|answer| answer.value < value);
            let by_slave = answers.iter().all(|answer| answer.role == "slave");
            measured.reads.push(Read { pause, took: begun.elapsed(), by_slave, stale });
        }
    }
    Ok(measured)
}

/// The current time in milliseconds, larger than all values written before.
fn time_in_ms() -> i64 {
    i64::try_from(time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).unwrap_or_default()
}

fn draw(measured: &[[Measured; 3]]) -> Result<(), Box<dyn Error>> {
    // Readable on white and on black backgrounds.
    const GREY: RGBColor = RGBColor(128, 128, 128);

    let path = repository().join("docs/lag.svg");
    let area = SVGBackend::new(&path, (760, 360)).into_drawing_area();
    let (left, right) = area.split_horizontally(380);
    let is_slave: fn(&Read) -> bool = |read| read.by_slave;
    for (area, caption, counts) in
        [(left, "reads after a write: on slaves", is_slave), (right, "… and stale", |read| read.stale)]
    {
        let mut chart = ChartBuilder::on(&area)
            .caption(caption, ("sans-serif", 15).into_font().color(&GREY))
            .margin(10)
            .x_label_area_size(34)
            .y_label_area_size(44)
            .build_cartesian_2d(-0.2..LAGS.len() as f64 - 0.8, -3.0..103.0)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(LAGS.len())
            .x_label_formatter(&|x| match LAGS.get(x.round() as usize) {
                Some(lag) if (x - x.round()).abs() < 0.01 => label(*lag),
                _ => String::new(),
            })
            .y_label_formatter(&|y| format!("{y:.0} %"))
            .x_desc("lag")
            .axis_style(GREY)
            .light_line_style(TRANSPARENT)
            .bold_line_style(GREY.mix(0.2))
            .label_style(("sans-serif", 12).into_font().color(&GREY))
            .draw()?;
        for (index, ((mode, _), colour)) in MODES.iter().zip(COLOURS).enumerate() {
            let points = measured
                .iter()
                .enumerate()
                .map(|(lag, modes)| (lag as f64, modes[index].share(counts, |_| true)));
            let points: Vec<_> = points.collect();
            chart
                .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)).point_size(3))?
                .label(*mode)
                .legend(move |(x, y)| Rectangle::new([(x, y - 2), (x + 14, y + 1)], colour.filled()));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::MiddleRight)
            .label_font(("sans-serif", 12).into_font().color(&GREY))
            .border_style(TRANSPARENT)
            .draw()?;
    }
    area.present()?;
    Ok(())
}
