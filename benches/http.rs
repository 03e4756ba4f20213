//! Requests per second over HTTP, beside what an application would use instead: `./scripts/bench`.
//!
//! A real PostgreSQL pair; one server at a time under `wrk`; rounds interleaved, so that what else
//! the machine does falls on all alike. Prints the table of `docs/benchmarks.md`.

#[path = "../tests/support/cluster.rs"]
mod cluster;
#[path = "../tests/support/postgres.rs"]
mod postgres;
#[path = "../tests/support/server.rs"]
mod server;

use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use postgres::Cluster;

const CONNECTIONS: &str = "32";

/// A server of `benches/http/`, and what it is given.
struct Rival {
    name: &'static str,
    program: &'static str,
    server: &'static str,
    section: String,
}

struct Running(Child, String);

impl Rival {
    fn start(&self, folder: &Path) -> Running {
        let mut child = Command::new(folder.join(self.program))
            // Where no other Rocket.toml is.
            .current_dir("/")
            .env("SERVER", self.server)
            .env("ROCKET_PROFILE", "release")
            .env("ROCKET_SECRET_KEY", "ab".repeat(32))
            .env("ROCKET_PORT", "0")
            .env("ROCKET_LOG_LEVEL", "critical")
            .env("ROCKET_CLI_COLORS", "false")
            .env("ROCKET_DATABASES", format!("{{replicated={{{}}}}}", self.section))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut said = Vec::new();
        let address = output.by_ref().find_map(|line| {
            said.push(line.clone());
            Some(line.split("launched from ").nth(1)?.trim().to_owned())
        });
        let address = address.unwrap_or_else(|| panic!("{}: {said:#?}", self.name));
        // Read on: a server whose output nobody reads is one that waits.
        std::thread::spawn(move || output.for_each(drop));
        Running(child, address)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What one round of `wrk` tells.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
struct Round {
    requests_per_second: f64,
    p99: f64,
}

fn measure(url: &str, seconds: &str) -> Round {
    let output = Command::new("wrk")
        .args(["-t1", "-c", CONNECTIONS, "-d", &format!("{seconds}s"), "--latency", url])
        .output()
        .expect("wrk: `apt-get install wrk`");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && !text.contains("Non-2xx") && !text.contains("Socket errors"),
        "{text}"
    );
    let word = |line: &str| -> String {
        let line =
            text.lines().find(|text| text.trim_start().starts_with(line)).unwrap_or_else(|| panic!("{text}"));
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    Round { requests_per_second: word("Requests/sec:").parse().unwrap(), p99: milliseconds(&word("99%")) }
}

fn milliseconds(text: &str) -> f64 {
    let number = |unit: &str| text.strip_suffix(unit).and_then(|number| number.parse::<f64>().ok());
    number("us")
        .map(|us| us / 1_000.0)
        .or_else(|| number("ms"))
        .or_else(|| number("s").map(|s| s * 1_000.0))
        .unwrap()
}

struct Spread([f64; 3]);

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<_> = values.collect();
        values.sort_by(f64::total_cmp);
        Self([values[0], values[values.len() / 2], values[values.len() - 1]])
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [least, median, most] = self.0;
        let precision = if median < 100.0 { 2 } else { 0 };
        write!(f, "{median:.precision$} ({least:.precision$}–{most:.precision$})")
    }
}

fn main() {
    let setting = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.into());
    let (rounds, seconds) = (setting("ROUNDS", "7").parse::<usize>().unwrap(), setting("SECONDS_EACH", "5"));
    let only = setting("ONLY", "");
    let folder = std::path::absolute(setting("SERVERS", "target/http")).unwrap();

    let cluster = Cluster::start(1);
    cluster.master.sql(
        "CREATE TABLE messages (id INTEGER PRIMARY KEY, body TEXT NOT NULL); GRANT ALL ON messages TO app; \
         INSERT INTO messages SELECT id, 'message ' || id FROM generate_series(1, 1000) id",
    );
    cluster.wait_caught_up();

    let size = "max_connections=8";
    let alone = format!("url={:?},{size}", cluster.master.url());
    let replicated = format!("{alone},slaves=[{:?}]", cluster.slaves[0].url());
    let rivals = [
        Rival {
            name: "a: this crate, one slave",
            program: "bench_replicated",
            server: "replicated",
            section: replicated.clone(),
        },
        Rival {
            name: "b: this crate, no slaves",
            program: "bench_replicated",
            server: "replicated",
            section: alone.clone(),
        },
        Rival {
            name: "c: rocket_db_pools 0.2, sqlx 0.7",
            program: "bench_rocket_db_pools",
            server: "",
            section: alone.clone(),
        },
        Rival {
            name: "d: sqlx 0.9 pool",
            program: "bench_replicated",
            server: "sqlx",
            section: alone.clone(),
        },
        Rival {
            name: "e: sqlx 0.9 pool, no checkout ping",
            program: "bench_replicated",
            server: "sqlx_without_ping",
            section: alone.clone(),
        },
        Rival {
            name: "f: deadpool over sqlx 0.9 connections",
            program: "bench_replicated",
            server: "deadpool",
            section: alone.clone(),
        },
        Rival {
            name: "g: a, with `get()` for the request",
            program: "bench_replicated",
            server: "replicated_get",
            section: replicated,
        },
    ];
    let rivals: Vec<_> =
        rivals.iter().filter(|rival| only.is_empty() || only.contains(&rival.name[..1])).collect();

    for (title, path) in
        [("One row by primary key", "/messages/500"), ("A page of five queries", "/pages/500")]
    {
        let mut results = vec![Vec::new(); rivals.len()];
        for round in 0..=rounds {
            for (rival, results) in rivals.iter().zip(&mut results) {
                let server = rival.start(&folder);
                let url = format!("{}{path}", server.1);
                measure(&url, "1");
                let result = measure(&url, &seconds);
                // The first round warms caches.
                if round > 0 {
                    results.push(result);
                }
            }
        }
        println!("\n{title} (`GET {path}`), {rounds} rounds of {seconds} s:\n");
        println!("| server | requests/s: median (least–most) | p99 in ms | × c | × e |");
        println!("|---|---|---|---|---|");
        let of = |letter: &str| rivals.iter().position(|rival| rival.name.starts_with(letter));
        for (rival, rounds) in rivals.iter().zip(&results) {
            let by_round = |letter: &str| {
                of(letter).map_or("–".to_owned(), |other| {
                    let pairs = rounds.iter().zip(&results[other]);
                    Spread::of(
                        pairs.map(|(ours, theirs)| ours.requests_per_second / theirs.requests_per_second),
                    )
                    .to_string()
                })
            };
            println!(
                "| {} | {} | {} | {} | {} |",
                rival.name,
                Spread::of(rounds.iter().map(|round| round.requests_per_second)),
                Spread::of(rounds.iter().map(|round| round.p99)),
                by_round("c"),
                by_round("e"),
            );
        }
    }
}
