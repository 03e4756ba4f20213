//! The cost of a probe for the server, compared with reading a row by primary key: `./scripts/bench probes`.
//!
//! `pgbench` runs the statements of this crate over two connections on a real PostgreSQL pair. Rounds are interleaved,
//! so that other load on the machine affects all statements alike. Prints the table of `docs/benchmarks.md`.

use std::path::{Path, PathBuf};
use std::{env, fs};

use rocket_replicated::internals::postgres::{CATCH_UP, FULL_PROBE, PROBE_OF_MASTER, PROBE_OF_SLAVE};
use rocket_replicated_testing::postgres::{Postgres, client};
use rocket_replicated_testing::server::output;
use rocket_replicated_testing::{Server, Servers};
use spread::Spread;

const ROW: (&str, &str) = ("a row by primary key", "SELECT id, body FROM messages WHERE id = 500");

const OF_MASTER: [(&str, &str); 3] =
    [ROW, ("a probe", PROBE_OF_MASTER), ("a full probe, one of 60", FULL_PROBE)];

const OF_SLAVE: [(&str, &str); 4] = [
    ROW,
    ("a probe", PROBE_OF_SLAVE),
    ("a full probe, one of 60", FULL_PROBE),
    ("a look while a pinned read waits", CATCH_UP),
];

/// A statement at a server, and the transactions per second of each round.
struct Measured<'a> {
    statement: &'static str,
    at: &'static str,
    server: &'a Server<Postgres>,
    script: PathBuf,
    rounds: Vec<f64>,
}

fn main() {
    // `cargo test` runs benches as well. Only `cargo bench` passes `--bench`.
    if !env::args().any(|argument| argument == "--bench") {
        return;
    }
    let setting = |name: &str, default: &str| env::var(name).unwrap_or_else(|_| default.into());
    let (rounds, seconds) = (setting("ROUNDS", "7").parse::<usize>().unwrap(), setting("SECONDS_EACH", "3"));

    let cluster = Servers::start(Postgres, 1);
    cluster.master.sql(
        "CREATE TABLE messages (id INTEGER PRIMARY KEY, body TEXT NOT NULL); GRANT ALL ON messages TO app; \
         INSERT INTO messages SELECT id, 'message ' || id FROM generate_series(1, 1000) id; ANALYZE messages",
    );
    cluster.wait_caught_up();

    let scripts = tempfile::tempdir().unwrap();
    let mut all = Vec::new();
    for (at, server, statements) in
        [("master", &cluster.master, &OF_MASTER[..]), ("slave", &cluster.slaves[0], &OF_SLAVE[..])]
    {
        for (statement, sql) in statements {
            let script = scripts.path().join(all.len().to_string());
            fs::write(&script, format!("{sql};\n")).unwrap();
            all.push(Measured { statement, at, server, script, rounds: Vec::new() });
        }
    }
    for round in 0..=rounds {
        for Measured { server, script, rounds, .. } in &mut all {
            let result = measure(server, script, &seconds);
            // The first round warms caches.
            if round > 0 {
                rounds.push(result);
            }
        }
    }

    println!("\n{rounds} rounds of {seconds} s:\n");
    println!("| asked | of the | per second: median (least–most) | costs × a row |");
    println!("|---|---|---|---|");
    for Measured { statement, at, rounds, .. } in &all {
        let rows = all.iter().find(|row| row.statement == ROW.0 && row.at == *at).unwrap();
        let costs = rows.rounds.iter().zip(rounds).map(|(row, this)| row / this);
        println!("| {statement} | {at} | {} | {} |", Spread::of(rounds.iter().copied()), Spread::of(costs));
    }
}

/// Runs the script as an ordinary role over the simple protocol, as this crate's probes do.
fn measure(server: &Server<Postgres>, script: &Path, seconds: &str) -> f64 {
    let mut pgbench = client(server, "pgbench");
    pgbench.args(["--no-vacuum", "--client=2", "--time", seconds, "--username=app", "--protocol=simple"]);
    let text = output(pgbench.arg("-f").arg(script).arg("app")).unwrap();
    let tps = text.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    tps.unwrap_or_else(|| panic!("{text}"))
}
