//! Several processes with one master's file and one slave's. Each of them copies.

use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;
use std::{env, io};

use rocket::local::asynchronous::Client;
use rocket_replicated::Cluster;
use rocket_replicated::sqlite::{Database, Replicated};
use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};
use tempfile::TempDir;

use support::{blocking_eventually as eventually, logbook, rocket_over};

/// The section of a process. A test that finds it in its environment is that process.
const SECTION: &str = "SQLITE_PROCESS";

/// Distinguishes answers from what a test prints by itself.
const ANSWER: &str = "=> ";

struct Files(TempDir);

impl Files {
    /// A master whose table `notes` has no rows.
    fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files
            .open("master.db")
            .execute_batch("PRAGMA journal_mode = wal; CREATE TABLE notes (pad BLOB)")
            .unwrap();
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A connection that waits for no lock.
    fn open(&self, name: &str) -> Connection {
        let opened = Connection::open(self.path(name)).unwrap();
        opened.busy_timeout(Duration::ZERO).unwrap();
        opened
    }

    /// Nothing is asked of the master in between, so that a reader of its file is a follower.
    fn section(&self, follow: f64) -> String {
        format!(
            "url = \"sqlite://{}\"\nslaves = [{{ url = \"sqlite://{}\", follow = {follow} }}]\nmax_lag = false\n\
             consistency = \"position\"\ncheck_interval = 30\n",
            self.path("master.db").display(),
            self.path("slave.db").display(),
        )
    }
}

/// A library that sets the clocks of one process.
struct Clocks(TempDir);

impl Clocks {
    fn new() -> Self {
        let clocks = Self(tempfile::tempdir().unwrap());
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("support/clocks.c");
        let mut compiler = Command::new("cc");
        compiler
            .args(["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o"])
            .arg(clocks.path("clocks.so"));
        assert!(compiler.arg(source).arg("-ldl").status().unwrap().success());
        clocks
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Sets the wall clock, before or after the process is started.
    fn set_wrong_by(&self, seconds: i64) {
        // No look finds an empty file.
        fs::write(self.path("new"), seconds.to_string()).unwrap();
        fs::rename(self.path("new"), self.path("wall_clock")).unwrap();
    }

    /// Lets a process run as if the machine had been started again since.
    fn of_an_earlier_start(self) -> Self {
        fs::write(self.path("boot_id"), "5e1c1e2a-0000-4000-8000-000000000000\n").unwrap();
        self
    }

    fn preload(&self, process: &mut Command) {
        process.env("LD_PRELOAD", self.path("clocks.so")).env("WALL_CLOCK", self.path("wall_clock"));
        if self.path("boot_id").exists() {
            process.env("BOOT_ID", self.path("boot_id"));
        }
    }
}

/// A process of the application, which obeys on its standard input.
struct Process {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

/// The answer to a read.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    notes: i64,
    role: String,
    reason: String,
}

impl Process {
    /// Starts a process that is launched once it has answered a question.
    fn start(section: &str, clocks: Option<&Clocks>) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        let test =
            format!("{}::a_process_reads_what_it_has_written", module_path!().split_once("::").unwrap().1);
        command.args(["--exact", &test, "--nocapture"]).env(SECTION, section);
        if let Some(clocks) = clocks {
            clocks.preload(&mut command);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, input, output: BufReader::new(output).lines() }
    }

    fn launch(section: &str, clocks: Option<&Clocks>) -> Self {
        let mut process = Self::start(section, clocks);
        process.time();
        process
    }

    fn ask(&mut self, question: &str) -> String {
        writeln!(self.input, "{question}").unwrap();
        self.output
            .by_ref()
            .map(Result::unwrap)
            .find_map(|line| Some(line.split_once(ANSWER)?.1.to_owned()))
            .unwrap_or_else(|| panic!("the process ended before it answered `{question}`"))
    }

    /// Seconds since 1970, by the wall clock of the process.
    fn time(&mut self) -> i64 {
        self.ask("time").parse().unwrap()
    }

    /// Writes a note, and returns the pin of its writer.
    fn write(&mut self) -> String {
        self.ask("write")
    }

    fn read(&mut self, pin: &str) -> Seen {
        let answer = self.ask(&format!("read {pin}"));
        let mut words = answer.split(' ').map(str::to_owned);
        let mut word = || words.next().unwrap();
        Seen { notes: word().parse().unwrap(), role: word(), reason: word() }
    }

    /// What the process has logged of copies that failed or are slow.
    fn complaints(&mut self) -> String {
        self.ask("complaints")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Obeys until the input ends.
fn obey(section: &str) {
    rocket::async_test(async {
        let rocket = rocket_over(section).attach(Replicated::fairing());
        let keyed = rocket.figment().clone().merge(("secret_key", [7_u8; 32]));
        let client = Client::untracked(rocket.configure(keyed)).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap();
        for line in io::stdin().lines() {
            let answer = answer(cluster, &line.unwrap()).await;
            println!("\n{ANSWER}{answer}");
        }
    });
}

async fn answer(cluster: &Cluster<Database>, question: &str) -> String {
    match question.split_once(' ').unwrap_or((question, "")) {
        ("time", _) => time::OffsetDateTime::now_utc().unix_timestamp().to_string(),
        ("write", _) => {
            let db = cluster.write();
            sqlx::query("INSERT INTO notes VALUES (zeroblob(5000))").execute(&db).await.unwrap();
            db.pin().await.unwrap()
        }
        ("read", pin) => {
            let db = cluster.read(Some(pin));
            let notes: i64 = sqlx::query_scalar("SELECT count(*) FROM notes").fetch_one(&db).await.unwrap();
            let choice = db.choice().unwrap();
            format!("{notes} {} {:?}", choice.role(), choice.reason())
        }
        ("complaints", _) => {
            let lines = ["cannot follow", "follows its master again", "could not", "ERROR"];
            lines.iter().flat_map(|line| logbook::lines(&[line])).collect::<Vec<_>>().join(" / ")
        }
        _ => panic!("`{question}`?"),
    }
}

fn rows(conn: &Connection) -> i64 {
    conn.query_row("SELECT count(*) FROM notes", [], |row| row.get(0)).unwrap()
}

/// The other tests start this one as a process.
#[test]
fn a_process_reads_what_it_has_written() {
    if let Ok(section) = env::var(SECTION) {
        return obey(&section);
    }
    let files = Files::new();
    let mut process = Process::launch(&files.section(0.05), None);
    let pin = process.write();
    eventually("its copy", || process.read(&pin).reason == "CaughtUp");
    assert_eq!(process.read(&pin).notes, 1);
}

/// The wall clock of one of them was wrong when it was launched, and is set right afterwards, as by NTP.
#[test]
fn processes_whose_wall_clocks_were_set_agree_on_what_is_copied() {
    for (reader_was_wrong_by, writer_was_wrong_by) in [(0, -30), (30, 0)] {
        let files = Files::new();
        let section = files.section(3600.0);
        let launch = |wrong_by| {
            let clocks = Clocks::new();
            clocks.set_wrong_by(wrong_by);
            let mut process = Process::launch(&section, Some(&clocks));
            let (here, there) = (time::OffsetDateTime::now_utc().unix_timestamp(), process.time());
            assert!((here + wrong_by - there).abs() < 10, "it is {there} there, and {here} here");
            clocks.set_wrong_by(0);
            (process, clocks)
        };
        let (mut writer, _clocks) = launch(writer_was_wrong_by);
        let (mut reader, _clocks) = launch(reader_was_wrong_by);

        // The follower has copied at launch, and not since.
        let pin = writer.write();
        for process in [&mut reader, &mut writer] {
            let seen = process.read(&pin);
            assert_eq!((seen.notes, &*seen.role), (1, "master"), "{seen:?}");
        }
    }
}

/// Positions from before the start cannot be compared with later ones.
#[test]
fn pins_from_before_the_machine_was_started_again_count_by_time() {
    let files = Files::new();
    let keys = "check_timeout = 0.5\nlag_window = 3\nmax_lag = 1.5\n";
    let section = files.section(0.05).replace("check_interval = 30\n", "check_interval = 0.5\n");
    let section = section.replace("max_lag = false\n", keys);
    let earlier = Clocks::new().of_an_earlier_start();
    let pin = Process::launch(&section, Some(&earlier)).write();
    let mut process = Process::launch(&section, None);
    eventually("the end of the window", || {
        let seen = process.read(&pin);
        assert!(seen.notes == 1 && seen.reason != "CaughtUp", "{seen:?}");
        seen.role == "slave"
    });
}

/// Returns when the process waits for the slave's lock, which the test holds. It has read the master by then, or does.
fn wait_for_its_copy(master: &Connection) {
    eventually("a process that reads the master and waits for the slave", || {
        master.execute("INSERT INTO notes VALUES (1)", []).unwrap();
        let is_busy = |row: &rusqlite::Row<'_>| Ok(row.get::<_, i64>(0)? == 1);
        master.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], is_busy).unwrap()
    });
}

/// Locks the slave as another process does that is about to copy.
fn lock<'a>(master: &'a Connection, slave: &'a mut Connection) -> Backup<'a, 'a> {
    let copy = Backup::new(master, slave).unwrap();
    eventually("the lock", || copy.step(0).unwrap() == StepResult::More);
    copy
}

/// Waits until the slave has more rows than were copied to it. It never has less.
fn wait_for_a_later_copy(slave: &Connection, copied: i64) {
    slave.busy_timeout(Duration::from_secs(5)).unwrap();
    eventually("the next copy", || {
        let rows = rows(slave);
        assert!(rows >= copied, "the slave had {copied} rows, and has {rows}");
        rows > copied
    });
}

#[test]
fn a_copy_is_not_replaced_by_an_older_one() {
    let files = Files::new();
    let _process = Process::launch(&files.section(1.0), None);
    let (writer, master, mut slave) =
        (files.open("master.db"), files.open("master.db"), files.open("slave.db"));
    let copy = lock(&master, &mut slave);
    wait_for_its_copy(&writer);

    writer.execute("INSERT INTO notes VALUES (1)", []).unwrap();
    let copied = rows(&writer);
    assert_eq!(copy.step(-1).unwrap(), StepResult::Done);
    drop(copy);
    writer.execute("INSERT INTO notes VALUES (1)", []).unwrap();
    wait_for_a_later_copy(&slave, copied);
}

#[test]
fn a_master_that_was_replaced_is_not_copied_over_the_new_one() {
    const RESTORED: i64 = 10_000;

    let files = Files::new();
    let restored = files.open("restored.db");
    let notes = format!(
        "CREATE TABLE notes AS WITH RECURSIVE n(pad) AS (SELECT 1 UNION ALL SELECT pad + 1 FROM n WHERE pad < {RESTORED}) \
         SELECT pad FROM n"
    );
    restored.execute_batch(&notes).unwrap();
    let _process = Process::launch(&files.section(1.0), None);
    let (former, mut slave) = (files.open("master.db"), files.open("slave.db"));
    let copy = lock(&restored, &mut slave);
    wait_for_its_copy(&former);

    for end in ["-wal", "-shm"] {
        fs::remove_file(files.path(&format!("master.db{end}"))).unwrap();
    }
    fs::rename(files.path("restored.db"), files.path("master.db")).unwrap();
    assert_eq!(copy.step(-1).unwrap(), StepResult::Done);
    drop(copy);
    drop(restored);
    let writer = files.open("master.db");
    writer.busy_timeout(Duration::from_secs(5)).unwrap();
    writer.execute("INSERT INTO notes VALUES (1)", []).unwrap();
    wait_for_a_later_copy(&slave, RESTORED);
}

#[test]
fn three_processes_follow_one_file() {
    // The slave's file is missing, or has the pages of a former master.
    for (page_size, former) in [(4096, None), (8192, Some(4096)), (512, Some(4096))] {
        let files = Files(tempfile::tempdir().unwrap());
        for (name, size) in [("master.db", Some(page_size)), ("slave.db", former)] {
            let Some(size) = size else { continue };
            let file = files.open(name);
            file.pragma_update(None, "page_size", size).unwrap();
            file.execute_batch("PRAGMA journal_mode = wal; CREATE TABLE notes (pad BLOB)").unwrap();
        }
        // A copy takes some milliseconds.
        let pad = "CREATE TABLE pads AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500) \
                   SELECT zeroblob(5000) FROM n";
        files.open("master.db").execute_batch(pad).unwrap();

        let section = files.section(0.01);
        // They launch side by side.
        let mut processes: Vec<_> = (0..3).map(|_| Process::start(&section, None)).collect();
        for process in &mut processes {
            process.time();
        }
        let mut written = 0;
        let mut rounds = |processes: &mut [Process], rounds: usize| {
            for round in 0..rounds {
                let writer = round % processes.len();
                let pin = processes[writer].write();
                written += 1;
                for number in 0..processes.len() {
                    let process = &mut processes[(writer + 1 + number) % processes.len()];
                    eventually("the copy", || {
                        let seen = process.read(&pin);
                        assert_eq!(seen.notes, written, "pages of {page_size}, {seen:?}");
                        seen.reason == "CaughtUp"
                    });
                }
            }
        };
        rounds(&mut processes, 20);
        // One of them is killed, perhaps while it copies.
        processes.pop();
        rounds(&mut processes, 6);
        for process in &mut processes {
            assert_eq!(process.complaints(), "", "pages of {page_size}");
        }
    }
}
