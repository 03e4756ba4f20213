//! A master and two slaves with real replication, to try things on: on free loopback ports, in a
//! temporary folder, until this program ends.
//!
//! ```text
//! ./scripts/cluster postgres                  # prints a section for the database `replicated`
//! ./scripts/cluster postgres blog stats       # two databases on the same servers
//! ```
//!
//! What it prints is for `Rocket.toml`; what it reads are commands that make slaves lag and nodes fail.

use std::fmt;
use std::future::Future;
use std::io::{self, IsTerminal, Write};
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use rocket::tokio::io::{AsyncBufReadExt, BufReader, stdin};
use rocket::tokio::signal::unix::{SignalKind, signal};
use rocket::tokio::{runtime, select};

use rocket_replicated_testing::Server;
use rocket_replicated_testing::mysql::MySql;
use rocket_replicated_testing::postgres::Postgres;
use rocket_replicated_testing::{Dbms, Replay, Servers};

const HELP: &str = "\
lag SECONDS    slaves replay so much later what is written
pause          slaves replay nothing
resume         slaves replay again
kill NODE      a crash; NODE is master, slave1 or slave2
start NODE     the way back from it
freeze NODE    connections stay open, and nothing answers
thaw NODE      the way back from it
promote NODE   a slave takes writes of its own, and replays nothing any more
status         what is up, and how old it is
quit           stops everything, as do Ctrl-C and the end of input";

const MASTER: &str = "master";
const SLAVES: [&str; 2] = ["slave1", "slave2"];

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let Some((kind, databases)) = args.split_first() else { return usage() };
    let databases = if databases.is_empty() { &["replicated".to_owned()] } else { databases };
    if !databases.iter().all(|name| is_plain(name)) {
        return usage();
    }

    let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let ended = match kind.as_str() {
        "mariadb" => runtime.block_on(run(MySql::mariadb(), databases)),
        "mysql" => runtime.block_on(run(MySql::oracle(), databases)),
        "postgres" => runtime.block_on(run(Postgres, databases)),
        _ => return usage(),
    };
    // A line that is still being waited for cannot be given up.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: ./scripts/cluster mariadb|mysql|postgres [DATABASE]…");
    ExitCode::from(2)
}

/// A name that means the same in SQL, TOML and URLs without quotes.
fn is_plain(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// Ready at the first signal that asks this program to end.
fn a_signal() -> io::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

/// Starts servers, prints the sections, and obeys commands until it is told to end.
async fn run<D: Dbms>(kind: D, names: &[String]) -> io::Result<()> {
    // Before there is a server: no signal leaves one behind.
    let mut signal = pin!(a_signal()?);
    let cluster = Servers::start(kind, SLAVES.len());
    let databases: Vec<_> =
        names.iter().map(|name| Database { name, urls: cluster.database(name) }).collect();

    println!("For Rocket.toml:\n");
    databases.iter().for_each(|database| println!("{database}\n"));
    let inline: Vec<_> = databases.iter().map(Database::inline).collect();
    println!("Or for the environment:\n\nexport ROCKET_DATABASES='{{{}}}'\n", inline.join(", "));
    println!("{HELP}");

    let mut nodes = Nodes::new(&cluster);
    let mut lines = BufReader::new(stdin()).lines();
    loop {
        if io::stdin().is_terminal() {
            print!("> ");
        }
        io::stdout().flush()?;
        let line = select! {
            line = lines.next_line() => line?,
            () = &mut signal => None,
        };
        match line.as_deref().map(str::trim) {
            None | Some("quit") => break,
            Some("") => {}
            Some(line) => match nodes.obey(line) {
                Ok(reply) => println!("{reply}"),
                Err(problem) => println!("{problem}"),
            },
        }
    }
    println!("Stopping the servers.");
    Ok(())
}

struct Database<'a> {
    name: &'a str,
    /// Of the master and of the slaves.
    urls: (String, Vec<String>),
}

impl Database<'_> {
    fn slaves(&self) -> impl Iterator<Item = String> {
        let slaves = SLAVES.iter().zip(&self.urls.1);
        slaves.map(|(name, url)| format!(r#"{{ url = "{url}", name = "{name}" }}"#))
    }

    /// As a value in a variable.
    fn inline(&self) -> String {
        let slaves: Vec<_> = self.slaves().collect();
        let (name, url) = (self.name, &self.urls.0);
        format!(r#"{name} = {{ url = "{url}", name = "{MASTER}", slaves = [{}] }}"#, slaves.join(", "))
    }
}

/// As a section.
impl fmt::Display for Database<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "[default.databases.{}]", self.name)?;
        writeln!(f, "url = \"{}\"", self.urls.0)?;
        writeln!(f, "name = \"{MASTER}\"")?;
        writeln!(f, "slaves = [")?;
        self.slaves().try_for_each(|slave| writeln!(f, "    {slave},"))?;
        write!(f, "]")
    }
}

/// The nodes, the master first, and how the slaves are to replay.
struct Nodes<'a, D: Dbms> {
    nodes: Vec<Node<'a, D>>,
    replay: Replay,
}

struct Node<'a, D: Dbms> {
    name: &'static str,
    server: &'a Server<D>,
    state: State,
    part: Part,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Master,
    Slave,
    /// It was a slave.
    Promoted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    Frozen,
    Killed,
}

impl<'a, D: Dbms> Nodes<'a, D> {
    fn new(cluster: &'a Servers<D>) -> Self {
        let names = std::iter::once(MASTER).chain(SLAVES);
        let part = |name| if name == MASTER { Part::Master } else { Part::Slave };
        let node = |(name, server)| Node { name, server, state: State::Running, part: part(name) };
        let nodes = names.zip(cluster.all()).map(node);
        Self { nodes: nodes.collect(), replay: Replay::default() }
    }

    /// Does what a line says; what to reply.
    fn obey(&mut self, line: &str) -> Result<String, String> {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            ["help"] => return Ok(HELP.to_owned()),
            ["status"] => {}
            ["lag", seconds] => {
                let seconds: u16 =
                    seconds.parse().map_err(|_| "the lag is a whole number of seconds, up to 65535")?;
                self.delay(Replay { lag: Duration::from_secs(seconds.into()), ..self.replay })?;
            }
            ["pause"] => self.delay(Replay { paused: true, ..self.replay })?,
            ["resume"] => self.delay(Replay { paused: false, ..self.replay })?,
            ["promote", name] => self.promote(name)?,
            [verb @ ("kill" | "start" | "freeze" | "thaw"), name] => self.change(verb, name)?,
            _ => return Err(format!("`{line}` is no command: try `help`")),
        }
        Ok(self.status())
    }

    fn node(&mut self, name: &str) -> Result<&mut Node<'a, D>, String> {
        let node = self.nodes.iter_mut().find(|node| node.name == name);
        node.ok_or_else(|| format!("there is no node `{name}`"))
    }

    fn promote(&mut self, name: &str) -> Result<(), String> {
        let node = self.node(name)?;
        if !node.is_running_slave() {
            return Err(format!("{name} is no slave that runs"));
        }
        node.server.promote().map_err(|error| format!("{name}: {error}"))?;
        node.part = Part::Promoted;
        Ok(())
    }

    fn change(&mut self, verb: &str, name: &str) -> Result<(), String> {
        let replay = self.replay;
        let node = self.node(name)?;
        node.state = match (verb, node.state) {
            ("kill", State::Running | State::Frozen) => {
                node.server.kill();
                State::Killed
            }
            ("start", State::Killed) => {
                node.server.start();
                State::Running
            }
            ("freeze", State::Running) => {
                node.server.freeze();
                State::Frozen
            }
            ("thaw", State::Frozen) => {
                node.server.thaw();
                State::Running
            }
            (_, state) => return Err(format!("{name} is {state}")),
        };
        // What it could not be told in the meantime.
        node.delay(replay)
    }

    fn delay(&mut self, replay: Replay) -> Result<(), String> {
        self.replay = replay;
        self.nodes.iter().try_for_each(|node| node.delay(replay))
    }

    /// A line for each node, and one for all slaves.
    fn status(&self) -> String {
        let master = self.nodes.first().filter(|master| master.state == State::Running);
        let position = master.map(|node| D::position(node.server));
        let mut status = String::new();
        for node in &self.nodes {
            let age = match &position {
                _ if node.part == Part::Promoted => ", promoted",
                Some(position) if node.is_running_slave() => match D::has_replayed(node.server, position) {
                    true => ", up to date",
                    false => ", behind",
                },
                _ => "",
            };
            status += &format!("{}  127.0.0.1:{}  {}{age}\n", node.name, node.server.port(), node.state);
        }
        let Replay { lag, paused } = self.replay;
        status + &format!("lag {} s{}", lag.as_secs(), if paused { ", paused" } else { "" })
    }
}

impl<D: Dbms> Node<'_, D> {
    fn is_running_slave(&self) -> bool {
        self.part == Part::Slave && self.state == State::Running
    }

    /// Once it runs: until then it cannot be told.
    fn delay(&self, replay: Replay) -> Result<(), String> {
        match self.is_running_slave() {
            true => D::replay(self.server, replay).map_err(|error| format!("{}: {error}", self.name)),
            false => Ok(()),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Running => "running",
            State::Frozen => "frozen",
            State::Killed => "killed",
        })
    }
}
