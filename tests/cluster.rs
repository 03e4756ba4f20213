//! The `cluster` program as its users type to it: the built program, on its standard input and output.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, thread};

use serde_json::{Value, json};
use tempfile::TempDir;

use support::blocking_eventually;
use support::program::{self, DEADLINE, PAUSE};

/// A kind of server, by its names in commands and URLs.
struct Kind {
    name: &'static str,
    scheme: &'static str,
    /// Allows one cluster at a time, so that a small machine does not take too long for all.
    turn: Mutex<()>,
}

/// A running cluster, and what it has printed.
struct Play<'a> {
    program: Child,
    lines: Receiver<String>,
    /// The folder in which the program puts the data of its servers.
    folder: TempDir,
    /// The printed section for `Rocket.toml`.
    section: String,
    /// The value of `ROCKET_DATABASES`.
    variable: String,
    _turn: MutexGuard<'a, ()>,
}

impl<'a> Play<'a> {
    fn start(kind: &'a Kind, databases: &[&str]) -> Self {
        let mut play = Self::spawn(kind, databases);
        play.lines_to("For Rocket.toml:");
        let mut section = play.lines_to("Or for the environment:");
        section.pop();
        play.section = section.join("\n");
        let export = play.lines_to("export ").pop().unwrap();
        let value = export.strip_prefix("export ROCKET_DATABASES='").unwrap();
        play.variable = value.strip_suffix('\'').unwrap().to_owned();
        play.lines_to("quit ");
        play
    }

    /// Starts the program, whose servers do not run yet.
    fn spawn(kind: &'a Kind, databases: &[&str]) -> Self {
        let turn = kind.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        // Servers may run as another user, who must be able to enter the folder.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        let mut program = Command::new(program::path("cluster"))
            .arg(kind.name)
            .args(databases)
            .env("TMPDIR", folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(program.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { program, lines, folder, section: String::new(), variable: String::new(), _turn: turn }
    }

    /// The next line.
    fn line(&self) -> String {
        self.lines.recv_timeout(DEADLINE).unwrap()
    }

    /// The lines up to one that begins with this.
    fn lines_to(&self, last: &str) -> Vec<String> {
        let mut lines = vec![self.line()];
        while !lines.last().unwrap().starts_with(last) {
            lines.push(self.line());
        }
        lines
    }

    fn say(&mut self, command: &str) {
        writeln!(self.program.stdin.as_mut().unwrap(), "{command}").unwrap();
    }

    /// Runs a command and returns the status that it prints.
    fn after(&mut self, command: &str) -> String {
        self.say(command);
        self.lines_to("lag ").join("\n")
    }

    /// Runs a wrong command and returns the complaint.
    fn complaint(&mut self, command: &str) -> String {
        self.say(command);
        self.line()
    }

    /// The sections, by the name of the database.
    fn databases(&self) -> Value {
        let section: toml::Value = toml::from_str(&self.section).unwrap();
        serde_json::to_value(&section["default"]["databases"]).unwrap()
    }

    /// The ports of the master and of the slaves.
    fn ports(&self) -> [u16; 3] {
        let databases = self.databases();
        let section = databases.as_object().unwrap().values().next().unwrap();
        let port = |url: &Value| {
            let url = url.as_str().unwrap();
            url.rsplit([':', '/']).nth(1).unwrap().parse().unwrap()
        };
        [port(&section["url"]), port(&section["slaves"][0]["url"]), port(&section["slaves"][1]["url"])]
    }

    /// The processes of the servers, with all that they have forked.
    fn servers(&self) -> Vec<u32> {
        let mut pids = vec![self.program.id()];
        let all = processes();
        // Three rounds, because processes are at most three generations deep.
        for _ in 0..3 {
            let children = all.iter().filter(|(pid, parent, _)| pids.contains(parent) && !pids.contains(pid));
            let children: Vec<_> = children.map(|(pid, ..)| *pid).collect();
            pids.extend(children);
        }
        pids.split_off(1)
    }

    fn signal(&self, signal: i32) {
        assert_eq!(unsafe { libc::kill(self.program.id() as i32, signal) }, 0);
    }

    /// Tells the program to end. The program ends, its servers end, and the folder is empty.
    fn end(mut self, tell: impl FnOnce(&mut Self)) {
        let servers = self.servers();
        assert!(!servers.is_empty(), "nothing runs");
        tell(&mut self);
        let status = blocking_eventually("its end", || self.program.try_wait().unwrap());
        assert!(status.success(), "{status}");
        // Some server processes wait for the end of their parent and check for it only now and then.
        blocking_eventually("the end of its servers", || {
            let mut left = processes();
            left.retain(|(pid, _, state)| servers.contains(pid) && *state != 'Z');
            left.is_empty().then_some(())
        });
        assert_eq!(fs::read_dir(&self.folder).unwrap().count(), 0, "something is left in the folder");
    }
}

/// Ends what a failed test leaves: the program stops the servers at the end of its input.
impl Drop for Play<'_> {
    fn drop(&mut self) {
        drop(self.program.stdin.take());
        let deadline = Instant::now() + DEADLINE;
        while self.program.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                let _ = self.program.kill();
            }
            thread::sleep(PAUSE);
        }
    }
}

/// Process id, parent and state of every process on this machine.
fn processes() -> Vec<(u32, u32, char)> {
    let list = Command::new("ps").args(["-A", "-o", "pid=", "-o", "ppid=", "-o", "stat="]).output().unwrap();
    let process = |line: &str| {
        let mut words = line.split_whitespace();
        let (pid, parent) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some((pid, parent, words.next()?.chars().next()?))
    };
    String::from_utf8(list.stdout).unwrap().lines().filter_map(process).collect()
}

/// True if a server answers on this port within a second.
fn answers(port: u16) -> bool {
    // This asks PostgreSQL whether it supports TLS. MariaDB sends the first message itself.
    const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    stream.write_all(&SSL_REQUEST).is_ok() && stream.read_exact(&mut [0]).is_ok()
}

fn the_section_is_the_same_for_file_and_environment(kind: &Kind) {
    let play = Play::start(kind, &["blog", "stats"]);
    let databases = play.databases();
    let [master, slave1, slave2] = play.ports();
    let section = |name: &str| {
        let url = |port: u16| format!("{}://app:secret@127.0.0.1:{port}/{name}", kind.scheme);
        json!({
            "url": url(master),
            "name": "master",
            "slaves": [{ "url": url(slave1), "name": "slave1" }, { "url": url(slave2), "name": "slave2" }],
        })
    };
    assert_eq!(databases, json!({ "blog": section("blog"), "stats": section("stats") }));

    // Parses the variable as Rocket does.
    let variable: rocket::figment::value::Value = play.variable.parse().unwrap();
    assert_eq!(variable.deserialize::<Value>().unwrap(), databases);
    play.end(|play| drop(play.program.stdin.take()));
}

fn nodes_fail_and_come_back(kind: &Kind) {
    let mut play = Play::start(kind, &[]);
    for (node, port) in ["master", "slave1", "slave2"].into_iter().zip(play.ports()) {
        let line = |state| format!("{node}  127.0.0.1:{port}  {state}");
        assert!(answers(port));

        assert!(play.after(&format!("freeze {node}")).contains(&line("frozen")));
        assert!(!answers(port) && TcpStream::connect(("127.0.0.1", port)).is_ok());
        assert_eq!(play.complaint(&format!("start {node}")), format!("{node} is frozen"));
        assert!(play.after(&format!("thaw {node}")).contains(&line("running")));
        blocking_eventually("its answer", || answers(port).then_some(()));

        assert!(play.after(&format!("kill {node}")).contains(&line("killed")));
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
        assert_eq!(play.complaint(&format!("thaw {node}")), format!("{node} is killed"));
        assert!(play.after(&format!("start {node}")).contains(&line("running")));
        blocking_eventually("its answer", || answers(port).then_some(()));
        assert_eq!(play.complaint(&format!("start {node}")), format!("{node} is running"));
    }
    blocking_eventually("slaves that replicate again", || {
        (play.after("status").matches("up to date").count() == 2).then_some(())
    });

    assert_eq!(play.complaint("promote master"), "master is no slave that runs");
    let status = play.after("promote slave2");
    assert!(
        status.contains(&format!("slave2  127.0.0.1:{}  running, promoted", play.ports()[2])),
        "{status}"
    );
    assert_eq!(play.complaint("promote slave2"), "slave2 is no slave that runs");
    assert_eq!(play.after("lag 1").matches("promoted").count(), 1, "it is told nothing of replay any more");

    play.after("freeze master");
    play.after("kill slave1");
    play.end(|play| play.signal(libc::SIGINT));
}

fn a_signal_at_the_start_leaves_nothing_behind(kind: &Kind) {
    for signal in [libc::SIGTERM, libc::SIGHUP] {
        let play = Play::spawn(kind, &[]);
        // The data of the first slave is created once the master runs.
        blocking_eventually("half a cluster", || {
            let mut clusters = fs::read_dir(&play.folder).unwrap().flatten();
            clusters.any(|cluster| cluster.path().join("slave1").exists()).then_some(())
        });
        play.end(|play| play.signal(signal));
    }
}

macro_rules! on {
    ($kind:literal $module:ident) => {
        mod $module {
            use std::sync::Mutex;
            use std::time::{Duration, Instant};

            use rocket::local::blocking::Client;
            use rocket::{get, post, routes};
            use rocket_replicated::Error;
            use rocket_replicated::$module::{Replicated, ReplicatedDb};

            use super::{Kind, Play};
            use support::{blocking_eventually, rocket};

            static KIND: Kind = Kind { name: $kind, scheme: stringify!($module), turn: Mutex::new(()) };

            #[test]
            fn the_section_is_the_same_for_file_and_environment() {
                super::the_section_is_the_same_for_file_and_environment(&KIND);
            }

            #[test]
            fn nodes_fail_and_come_back() {
                super::nodes_fail_and_come_back(&KIND);
            }

            #[test]
            fn a_signal_at_the_start_leaves_nothing_behind() {
                super::a_signal_at_the_start_leaves_nothing_behind(&KIND);
            }

            #[get("/")]
            async fn count(db: ReplicatedDb) -> Result<String, Error> {
                let count: i64 = sqlx::query_scalar("SELECT count(*) FROM notes").fetch_one(&db).await?;
                Ok(format!("{count} {}", db.choice().unwrap()))
            }

            #[post("/")]
            async fn add(db: ReplicatedDb) -> Result<(), Error> {
                sqlx::query("CREATE TABLE IF NOT EXISTS notes (id INTEGER)").execute(&db).await?;
                sqlx::query("INSERT INTO notes VALUES (1)").execute(&db).await?;
                Ok(())
            }

            /// An application with the printed section, unchanged.
            struct App(Client);

            impl App {
                fn launch(play: &Play) -> Self {
                    let rocket = rocket(&play.section).attach(Replicated::fairing());
                    Self(Client::untracked(rocket.mount("/", routes![count, add])).unwrap())
                }

                fn write(&self) {
                    assert_eq!(self.0.post("/").dispatch().status().code, 200);
                }

                /// The reply to a stranger: the number of notes, and the server that counted them.
                fn read(&self) -> String {
                    self.0.get("/").dispatch().into_string().unwrap_or_default()
                }

                fn eventually_reads(&self, expected: &str) {
                    blocking_eventually(expected, || self.read().starts_with(expected).then_some(()));
                }
            }

            #[test]
            fn slaves_lag() {
                let mut play = Play::start(&KIND, &[]);
                let app = App::launch(&play);
                app.write();
                app.eventually_reads("1 slave1 ");
                app.eventually_reads("1 slave2 ");

                let status = play.after("pause");
                assert!(status.ends_with("\nlag 0 s, paused"), "{status}");
                app.write();
                for _ in 0..20 {
                    let read = app.read();
                    assert!(read.starts_with("1 slave"), "{read}");
                }
                let status = play.after("status");
                assert_eq!(status.matches("behind").count(), 2, "{status}");

                // A slave that starts again is told to stay paused, once it has replayed what it missed.
                play.after("kill slave2");
                play.after("start slave2");
                app.write();
                let written = Instant::now();
                while written.elapsed() < Duration::from_secs(1) {
                    assert!(!app.read().starts_with("3 slave"));
                }
                let status = play.after("status");
                assert_eq!(status.matches("behind").count(), 2, "{status}");

                let status = play.after("resume");
                assert!(status.ends_with("\nlag 0 s"), "{status}");
                app.eventually_reads("3 slave1 ");
                app.eventually_reads("3 slave2 ");

                assert!(play.complaint("lag much").starts_with("the lag is a whole number"));
                let status = play.after("lag 2");
                assert!(status.ends_with("\nlag 2 s"), "{status}");
                let mut notes = 3;
                // A slave may learn of the new lag a little later.
                blocking_eventually("a note that is 2 s late", || {
                    let written = Instant::now();
                    app.write();
                    notes += 1;
                    app.eventually_reads(&format!("{notes} slave"));
                    (written.elapsed() > Duration::from_millis(1900)).then_some(())
                });
                play.end(|play| play.say("quit"));
            }
        }
    };
}

on!("mariadb" mysql);
on!("postgres" postgres);

#[test]
fn wrong_arguments_print_the_usage() {
    for args in [&[][..], &["sqlite"], &["postgres", "Blog"], &["postgres", "blog; DROP"]] {
        let output = Command::new(program::path("cluster")).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(String::from_utf8(output.stderr).unwrap().starts_with("usage: "), "{args:?}");
    }
}
