//! Requests per second over HTTP, compared with the pools that an application would use instead: `./scripts/bench`.
//!
//! The servers run over a real PostgreSQL pair. `wrk` measures one server at a time, each for a second in turn, so that
//! other load on the machine affects all of them alike. Prints the tables of `docs/benchmarks.md`.
//!
//! `./scripts/bench instructions` counts the instructions of each server instead, which no other load changes.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rocket_replicated_testing::Servers;
use rocket_replicated_testing::postgres::Postgres;
use spread::Spread;

const CONNECTIONS: &str = "32";

/// A script for `wrk`: it posts a form like that of a browser.
const FORM: &str = r#"
wrk.method = "POST"
wrk.body = "body=A+message+of+a+few+words%2C+as+somebody+might+write+it."
wrk.headers["Content-Type"] = "application/x-www-form-urlencoded"
"#;

/// The same form as one request of HTTP.
const POSTED: &str = "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 60\r\n\r\n\
                      body=A+message+of+a+few+words%2C+as+somebody+might+write+it.";

/// Keys without which probes would be counted as well.
const UNPROBED: &str = ",lag_window=3600,max_lag=false,check_interval=3600";

/// A table of the report: what is measured, and of which servers.
struct Table {
    title: &'static str,
    path: &'static str,
    what: What,
    /// The letters of their rows.
    rivals: &'static str,
    /// The letters of the rows that all others are compared with.
    beside: &'static str,
}

/// What the requests of a table do.
#[derive(Clone, Copy)]
enum What {
    Read,
    Write(Mode),
}

/// The `consistency` of pins after writes. Only this crate's servers have it.
#[derive(Clone, Copy)]
enum Mode {
    Window,
    Position,
}

impl What {
    fn keys(self) -> &'static str {
        match self {
            Self::Read | Self::Write(Mode::Window) => "",
            Self::Write(Mode::Position) => ",consistency=\"position\"",
        }
    }

    fn method(self) -> &'static str {
        match self {
            Self::Read => "GET",
            Self::Write(_) => "POST",
        }
    }
}

const TABLES: [Table; 5] = [
    Table {
        title: "One row by primary key, as JSON",
        path: "/messages/500",
        what: What::Read,
        rivals: "abcdefg",
        beside: "cf",
    },
    Table {
        title: "A page of five queries, one after the other",
        path: "/pages/500",
        what: What::Read,
        rivals: "abcdefg",
        beside: "cf",
    },
    Table {
        title: "Writes: a form with one `INSERT`, window mode",
        path: "/notes",
        what: What::Write(Mode::Window),
        rivals: "abcdef",
        beside: "cf",
    },
    Table {
        title: "Writes: a form with one `INSERT`, position mode",
        path: "/notes",
        what: What::Write(Mode::Position),
        rivals: "abcdef",
        beside: "cf",
    },
    Table {
        title: "What it costs to be seen: one row by primary key",
        path: "/messages/500",
        what: What::Read,
        rivals: "ahi",
        beside: "a",
    },
];

/// A server of `benches/http/`, and its configuration.
struct Rival {
    name: &'static str,
    program: &'static str,
    server: &'static str,
    section: String,
}

struct Running(Child, String);

impl Rival {
    fn letter(&self) -> &str {
        &self.name[..1]
    }

    fn is_ours(&self) -> bool {
        self.server.starts_with("replicated")
    }

    fn start(&self, folder: &Path, what: What) -> Running {
        self.start_by(&mut Command::new(folder.join(self.program)), what.keys())
    }

    /// Starts the server by a command. `keys` are added to a section of this crate.
    fn start_by(&self, command: &mut Command, keys: &str) -> Running {
        let keys = if self.is_ours() { keys } else { "" };
        let mut child = command
            // A folder without another `Rocket.toml`.
            .current_dir("/")
            .env("SERVER", self.server)
            .env("ROCKET_PROFILE", "release")
            .env("ROCKET_SECRET_KEY", "ab".repeat(32))
            .env("ROCKET_PORT", "0")
            .env("ROCKET_LOG_LEVEL", "critical")
            .env("ROCKET_CLI_COLORS", "false")
            .env("ROCKET_DATABASES", format!("{{replicated={{{}{keys}}}}}", self.section))
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
        // Keep reading: a server whose output is not read blocks once the pipe is full.
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

impl Running {
    /// The processor time of all threads of the server, in microseconds: the sum of the first numbers of their
    /// `schedstat`, see <https://docs.kernel.org/scheduler/sched-stats.html>.
    fn processor_time(&self) -> f64 {
        let threads = fs::read_dir(format!("/proc/{}/task", self.0.id())).unwrap();
        let nanoseconds = |thread: fs::DirEntry| -> u64 {
            let stat = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            stat.split(' ').next().and_then(|time| time.parse().ok()).unwrap_or(0)
        };
        threads.flatten().map(nanoseconds).sum::<u64>() as f64 / 1_000.0
    }

    /// Sends this many requests, one after the other, over one connection.
    fn ask(&self, path: &str, what: What, requests: u32) {
        let mut stream = TcpStream::connect(self.1.trim_start_matches("http://")).unwrap();
        let head = format!("{} {path} HTTP/1.1\r\nHost: localhost\r\n", what.method());
        let request = match what {
            What::Read => format!("{head}\r\n"),
            What::Write(_) => format!("{head}{POSTED}"),
        };
        let mut answer = BufReader::new(stream.try_clone().unwrap());
        for _ in 0..requests {
            stream.write_all(request.as_bytes()).unwrap();
            let head: Vec<_> =
                answer.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            assert!(head[0].contains(" 200 ") || head[0].contains(" 303 "), "{head:?}");
            let length = |line: &String| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok();
            let mut body = vec![0; head.iter().find_map(length).unwrap()];
            answer.read_exact(&mut body).unwrap();
        }
    }

    /// Ends the server in order, so that valgrind writes what it has counted.
    fn stop(mut self) {
        let killed = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status().unwrap();
        assert!(killed.success());
        self.0.wait().unwrap();
    }
}

/// The figures that `wrk` prints, and the processor time of the server.
#[derive(Clone, Copy)]
struct Measured {
    requests_per_second: f64,
    p99: f64,
    /// The server's processor time for each request, in microseconds.
    processor_time: f64,
}

impl Measured {
    fn mean(all: &[Self]) -> Self {
        let mean = |of: fn(&Self) -> f64| all.iter().map(of).sum::<f64>() / all.len() as f64;
        Self {
            requests_per_second: mean(REQUESTS),
            p99: mean(|measured| measured.p99),
            processor_time: mean(PROCESSOR_TIME),
        }
    }
}

const REQUESTS: fn(&Measured) -> f64 = |measured| measured.requests_per_second;
const PROCESSOR_TIME: fn(&Measured) -> f64 = |measured| measured.processor_time;

/// Measures one server for a second.
fn measure(server: &Running, path: &str, form: Option<&Path>) -> Measured {
    let script = form.map(|form| [Path::new("-s"), form]);
    let before = server.processor_time();
    let output = Command::new("wrk")
        .args(["-t1", "-c", CONNECTIONS, "-d", "1s", "--latency"])
        .args(script.iter().flatten())
        .arg(format!("{}{path}", server.1))
        .output()
        .expect("wrk: `apt-get install wrk`");
    let took = server.processor_time() - before;
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
    let answered =
        text.lines().find_map(|line| line.split_once(" requests in ")).unwrap_or_else(|| panic!("{text}"));
    let answered: f64 = answered.0.trim().parse().unwrap();
    Measured {
        requests_per_second: word("Requests/sec:").parse().unwrap(),
        p99: milliseconds(&word("99%")),
        processor_time: took / answered,
    }
}

fn milliseconds(text: &str) -> f64 {
    let number = |unit: &str| text.strip_suffix(unit).and_then(|number| number.parse::<f64>().ok());
    number("us")
        .map(|us| us / 1_000.0)
        .or_else(|| number("ms"))
        .or_else(|| number("s").map(|s| s * 1_000.0))
        .unwrap()
}

/// Counts the instructions of a server for one request: the difference between a run of many requests and one of few.
/// Instructions of the kernel are not counted. `profile` is where callgrind writes what each function costs.
fn instructions(rival: &Rival, folder: &Path, table: &Table, requests: u32, profile: &Path) -> f64 {
    let count = |requests| {
        let mut valgrind = Command::new("valgrind");
        valgrind.args(["--tool=callgrind", "--quiet"]);
        valgrind.arg(format!("--callgrind-out-file={}", profile.display())).arg(folder.join(rival.program));
        let keys = format!("{}{UNPROBED}", table.what.keys());
        let server = rival.start_by(valgrind.env("ROCKET_WORKERS", "1"), &keys);
        server.ask(table.path, table.what, requests);
        server.stop();
        let counted = fs::read_to_string(profile).unwrap();
        let total = counted.lines().find_map(|line| line.strip_prefix("totals: "));
        total.unwrap_or_else(|| panic!("no total in {}", profile.display())).parse::<f64>().unwrap()
    };
    // The first requests open connections and prepare statements.
    let few = requests / 4;
    let of_few = count(few);
    (count(few + requests) - of_few) / f64::from(requests)
}

/// Prints what one request costs by instructions, beside the last rival of each table.
fn count_instructions(rivals: &[Rival], folder: &Path, requests: u32, is_taken: impl Fn(&str) -> bool) {
    let profiles = PathBuf::from(std::env::var("PROFILES").unwrap_or_else(|_| "target/callgrind".into()));
    let profiles = std::path::absolute(profiles).unwrap();
    fs::create_dir_all(&profiles).unwrap();
    println!("\n{requests} requests, one after the other:\n");
    println!("| request | server | instructions | × f |\n|---|---|---|---|");
    for (number, table) in (1..).zip(&TABLES[..4]).filter(|(number, _)| is_taken(&number.to_string())) {
        let mut held = None;
        for letter in ["f", "a", "b"] {
            let rival = rivals.iter().find(|rival| rival.letter() == letter).unwrap();
            let profile = profiles.join(format!("{letter}{number}"));
            let counted = instructions(rival, folder, table, requests, &profile);
            let ratio = counted / *held.get_or_insert(counted);
            println!("| {} | {} | {counted:.0} | {ratio:.3} |", table.title, rival.name);
        }
    }
    println!("\nWhat each function costs: `callgrind_annotate {}/a1`.", profiles.display());
}

fn main() {
    let setting = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.into());
    let number = |name: &str, default: &str| setting(name, default).parse::<u32>().unwrap();
    let (rounds, seconds) = (number("ROUNDS", "7"), number("SECONDS_EACH", "5"));
    let (only, tables) = (setting("ONLY", ""), setting("TABLES", ""));
    let folder = std::path::absolute(setting("SERVERS", "target/http")).unwrap();

    let pool = setting("POOL", "8");
    let scripts = tempfile::tempdir().unwrap();
    let form = scripts.path().join("form.lua");
    fs::write(&form, FORM).unwrap();

    let cluster = Servers::start(Postgres, 1);
    cluster.master.sql(
        "CREATE TABLE messages (id INTEGER PRIMARY KEY, body TEXT NOT NULL); \
         CREATE TABLE notes (id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body TEXT NOT NULL); \
         GRANT ALL ON messages, notes TO app; \
         INSERT INTO messages SELECT id, 'message ' || id FROM generate_series(1, 1000) id",
    );
    cluster.wait_caught_up();

    let size = format!("max_connections={pool}");
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
            section: replicated.clone(),
        },
        Rival {
            name: "h: a, with `server_timing`",
            program: "bench_replicated",
            server: "replicated",
            section: format!("{replicated},server_timing=true"),
        },
        Rival {
            name: "i: a, with a recorder for `metrics`",
            program: "bench_replicated",
            server: "replicated_recorded",
            section: replicated,
        },
    ];
    let is_taken = |table: &str| tables.is_empty() || tables.contains(table);
    if std::env::args().any(|argument| argument == "instructions") {
        return count_instructions(&rivals, &folder, number("REQUESTS", "3000"), is_taken);
    }
    for (number, Table { title, path, what, rivals: in_it, beside }) in (1..).zip(TABLES) {
        if !is_taken(&number.to_string()) {
            continue;
        }
        let taken = |rival: &&Rival| {
            in_it.contains(rival.letter()) && (only.is_empty() || only.contains(rival.letter()))
        };
        let rivals: Vec<_> = rivals.iter().filter(taken).collect();
        let form = match what {
            What::Read => None,
            What::Write(_) => Some(&*form),
        };
        let mut results = vec![Vec::new(); rivals.len()];
        for _ in 0..rounds {
            let servers: Vec<_> = rivals.iter().map(|rival| rival.start(&folder, what)).collect();
            let mut measured = vec![Vec::new(); rivals.len()];
            for second in 0..=seconds {
                let mut order: Vec<_> = (0..rivals.len()).collect();
                if second % 2 == 0 {
                    order.reverse();
                }
                for index in order {
                    // The table is emptied, because its growth would slow the servers that are measured later.
                    cluster.master.sql("TRUNCATE notes");
                    let result = measure(&servers[index], path, form);
                    // The first second warms caches.
                    if second > 0 {
                        measured[index].push(result);
                    }
                }
            }
            for (results, measured) in results.iter_mut().zip(&measured) {
                results.push(Measured::mean(measured));
            }
        }
        let method = what.method();
        println!("\n### {title}\n");
        println!("`{method} {path}`, {rounds} rounds of {seconds} s, {pool} connections:\n");
        let besides: String =
            beside.chars().map(|letter| format!(" × {letter} | CPU × {letter} |")).collect();
        println!("| server | requests/s: median (least–most) | p99 in ms | CPU in µs |{besides}");
        println!("|---|---|---|---|{}", "---|---|".repeat(beside.len()));
        for (rival, rounds) in rivals.iter().zip(&results) {
            let spread = |of: fn(&Measured) -> f64| Spread::of(rounds.iter().map(of));
            let ratios: String = beside
                .chars()
                .map(|letter| {
                    let Some(other) = rivals.iter().position(|rival| rival.name.starts_with(letter)) else {
                        return " – | – |".to_owned();
                    };
                    let ratio = |of: fn(&Measured) -> f64| {
                        let pairs = rounds.iter().zip(&results[other]);
                        Spread::of(pairs.map(|(ours, theirs)| of(ours) / of(theirs)))
                    };
                    format!(" {} | {} |", ratio(REQUESTS), ratio(PROCESSOR_TIME))
                })
                .collect();
            println!(
                "| {} | {} | {} | {} |{ratios}",
                rival.name,
                spread(REQUESTS),
                spread(|measured| measured.p99),
                spread(PROCESSOR_TIME),
            );
        }
    }
}
