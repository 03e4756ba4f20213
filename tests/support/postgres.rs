//! PostgreSQL (14 or newer) with streaming replication, run by the test process
//! on free loopback ports in a temporary folder.

// Each test file compiles this module for itself and uses a part of it.
#![allow(dead_code)]

use std::fs::{self, File};
use std::os::unix::{fs::chown, process::CommandExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use std::{net::TcpListener, thread};

use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

const SETTINGS: &str = "
listen_addresses = '127.0.0.1'
max_connections = 60
shared_buffers = 16MB
fsync = off
wal_level = replica
max_wal_senders = 20
max_replication_slots = 10
# A base backup makes its slot late: another one's checkpoint must not remove its WAL.
wal_keep_size = 64MB
wal_retrieve_retry_interval = 100ms
hot_standby = on
hot_standby_feedback = off
max_standby_streaming_delay = 30s
# Its clean-up is replayed by the standbys, where it may cancel queries.
autovacuum = off
";

/// One server: a postmaster that is a child of this process, and its backends.
pub struct Server {
    port: u16,
    data: PathBuf,
    postmaster: Mutex<Option<Child>>,
}

impl Server {
    fn launch(data: PathBuf) -> Server {
        let mut server = Server { port: 0, data, postmaster: Mutex::new(None) };
        for _ in 0..5 {
            server.port = free_port();
            match server.try_start() {
                Err(log) if port_taken(&log) => continue,
                Err(log) => panic!("PostgreSQL does not start:\n{log}"),
                Ok(()) => return server,
            }
        }
        panic!("PostgreSQL finds no free port");
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// As the ordinary role that owns the database.
    pub fn url(&self) -> String {
        self.url_of("app", "app")
    }

    /// As a superuser.
    pub fn admin_url(&self) -> String {
        self.url_of("postgres", "app")
    }

    fn url_of(&self, role: &str, database: &str) -> String {
        let port = self.port;
        format!("postgres://{role}:secret@127.0.0.1:{port}/{database}")
    }

    /// Runs as superuser in the database `app`.
    pub fn sql(&self, sql: &str) -> String {
        let result = self.try_sql(sql);
        result.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    pub fn try_sql(&self, sql: &str) -> Result<String, String> {
        self.psql("app", sql)
    }

    pub fn psql(&self, database: &str, sql: &str) -> Result<String, String> {
        let mut psql = self.client("psql");
        // A frozen server takes the connection and then says nothing.
        psql.env("PGCONNECT_TIMEOUT", "10").args(["-XAtq", "-v", "ON_ERROR_STOP=1"]);
        output(psql.args(["-d", database, "-c", sql]))
    }

    /// A client program on the Unix socket, which trusts whoever can reach it.
    fn client(&self, name: &str) -> Command {
        let mut command = program(name);
        command.env("PGHOST", self.folder()).env("PGPORT", self.port.to_string());
        command.env("PGUSER", "postgres");
        command
    }

    fn folder(&self) -> &Path {
        self.data.parent().unwrap()
    }

    pub fn pause_replay(&self) {
        self.sql("SELECT pg_wal_replay_pause()");
        let state = "SELECT pg_get_wal_replay_pause_state()";
        wait_for("paused replay", || self.sql(state) == "paused");
    }

    pub fn resume_replay(&self) {
        self.sql("SELECT pg_wal_replay_resume()");
    }

    /// A crash: SIGKILL to every process of the server.
    pub fn kill(&self) {
        // Frozen processes neither fork nor exit, so that the list is complete.
        self.freeze();
        let pids = family(self.pid());
        send(&pids, libc::SIGKILL);
        wait_for("end of the postmaster", || self.has_ended());
        wait_for_state("Z", &pids);
    }

    /// A fast shutdown.
    pub fn stop(&self) {
        send(&[self.pid()], libc::SIGINT);
        wait_for("end of the stopped server", || self.has_ended());
    }

    /// Starts again with the same port and data, and returns when connections are accepted.
    pub fn start(&self) {
        wait_for("port of the stopped server", || match self.try_start() {
            Err(log) if port_taken(&log) => false,
            Err(log) => panic!("PostgreSQL does not start again:\n{log}"),
            Ok(()) => true,
        });
    }

    fn try_start(&self) -> Result<(), String> {
        assert!(self.has_ended(), "the server runs already");
        let log = self.data.with_extension("log");
        let mut command = program("postgres");
        command.args(["-p", &self.port.to_string(), "-D"]).arg(&self.data);
        command.arg("-k").arg(self.folder());
        as_server_user(&mut command, self.folder());
        command.stderr(File::create(&log).unwrap());
        *lock(&self.postmaster) = Some(command.spawn().unwrap());
        let answers = || output(&mut self.client("pg_isready")).is_ok();
        if within(PATIENCE, || self.has_ended() || answers()) && !self.has_ended() {
            return Ok(());
        }
        let log = String::from_utf8_lossy(&fs::read(log).unwrap()).into_owned();
        let lines: Vec<_> = log.lines().collect();
        Err(lines[lines.len().saturating_sub(30)..].join("\n"))
    }

    /// SIGSTOP to every process of the server: connections stay open and nothing answers.
    pub fn freeze(&self) {
        let postmaster = self.pid();
        // First, so that it forks no more.
        send(&[postmaster], libc::SIGSTOP);
        wait_for_state("TZ", &[postmaster]);
        let pids = family(postmaster);
        send(&pids, libc::SIGSTOP);
        wait_for_state("TZ", &pids);
    }

    pub fn thaw(&self) {
        send(&family(self.pid()), libc::SIGCONT);
    }

    fn pid(&self) -> i32 {
        let postmaster = lock(&self.postmaster);
        postmaster.as_ref().expect("a running server").id() as i32
    }

    fn has_ended(&self) -> bool {
        let mut postmaster = lock(&self.postmaster);
        if let Some(child) = &mut *postmaster
            && child.try_wait().unwrap().is_some()
        {
            *postmaster = None;
        }
        postmaster.is_none()
    }

    /// Whatever state the server is in.
    fn end(&self) {
        if self.has_ended() {
            return;
        }
        self.thaw();
        send(&[self.pid()], libc::SIGQUIT);
        if !within(Duration::from_secs(5), || self.has_ended()) {
            self.kill();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// A master and the standbys that replicate it.
pub struct Cluster {
    pub master: Server,
    pub slaves: Vec<Server>,
    // After the servers, which are dropped first and live in it.
    folder: TempDir,
}

static SHARED: Mutex<Vec<&Cluster>> = Mutex::new(Vec::new());

impl Cluster {
    pub fn start(slaves: usize) -> Cluster {
        // Without `ps` no server could be ended: fail before there is one.
        processes();
        let folder = tempfile::Builder::new().prefix("pg-").tempdir().unwrap();
        if let Some((uid, gid)) = server_user() {
            chown(folder.path(), Some(uid), Some(gid)).unwrap();
        }
        let data = folder.path().join("master");
        let mut initdb = program("initdb");
        initdb.args(["--no-sync", "--username=postgres", "--wal-segsize=1"]);
        initdb.args(["--auth-local=trust", "--auth-host=scram-sha-256"]);
        initdb.args(["--encoding=UTF8", "--locale=C"]);
        as_server_user(&mut initdb, folder.path());
        output(initdb.arg("-D").arg(&data)).unwrap();
        let config = data.join("postgresql.conf");
        fs::write(&config, fs::read_to_string(&config).unwrap() + SETTINGS).unwrap();

        let master = Server::launch(data);
        for sql in [
            "ALTER ROLE postgres PASSWORD 'secret'",
            "CREATE ROLE app LOGIN PASSWORD 'secret'",
            "CREATE DATABASE app OWNER app",
        ] {
            master.psql("postgres", sql).unwrap();
        }
        let slaves = thread::scope(|scope| {
            let start = |number| {
                let (master, name) = (&master, format!("slave{number}"));
                scope.spawn(move || start_slave(master, name))
            };
            let threads: Vec<_> = (1..=slaves).map(start).collect();
            let joined = threads.into_iter().map(|thread| thread.join().unwrap());
            joined.collect::<Vec<_>>()
        });
        let streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        let all = slaves.len().to_string();
        wait_for("streaming slaves", || master.sql(streaming) == all);
        Cluster { master, slaves, folder }
    }

    /// One for this process and number of slaves, for tests which do not break servers.
    pub fn shared(slaves: usize) -> &'static Cluster {
        let mut shared = lock(&SHARED);
        if let Some(cluster) = shared.iter().find(|cluster| cluster.slaves.len() == slaves) {
            return cluster;
        }
        if shared.is_empty() {
            assert_eq!(unsafe { libc::atexit(end_shared) }, 0);
        }
        let cluster: &Cluster = Box::leak(Box::new(Cluster::start(slaves)));
        shared.push(cluster);
        cluster
    }

    /// Until every slave has replayed what the master has committed.
    pub fn wait_caught_up(&self) {
        // Not the written position: what is not flushed is not sent.
        let position = self.master.sql("SELECT pg_current_wal_flush_lsn()");
        let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{position}'");
        for slave in &self.slaves {
            wait_for("replay on a slave", || slave.sql(&sql) == "t");
        }
    }

    /// A fresh database of the role `app`, which every slave has too: the URLs of the master
    /// and of the slaves.
    pub fn database(&self, name: &str) -> (String, Vec<String>) {
        let sql = format!("CREATE DATABASE {name} OWNER app");
        self.master.sql(&sql);
        self.wait_caught_up();
        let slaves = self.slaves.iter().map(|slave| slave.url_of("app", name));
        (self.master.url_of("app", name), slaves.collect())
    }
}

fn start_slave(master: &Server, name: String) -> Server {
    let data = master.folder().join(&name);
    let mut copy = master.client("pg_basebackup");
    // With a slot, WAL is kept for a slave that is away.
    copy.args(["-R", "-c", "fast", "--no-sync", "-C", "-S", &name]);
    as_server_user(&mut copy, master.folder());
    output(copy.arg("-D").arg(&data)).unwrap();
    Server::launch(data)
}

/// Statics are never dropped.
extern "C" fn end_shared() {
    for cluster in lock(&SHARED).drain(..) {
        cluster.slaves.iter().for_each(Server::end);
        cluster.master.end();
        let _ = fs::remove_dir_all(cluster.folder.path());
    }
}

/// Clean of the caller's environment, in which PG* and LC_* variables would have effects.
fn program(name: &str) -> Command {
    static DEBIAN: OnceLock<Option<PathBuf>> = OnceLock::new();
    let debian = DEBIAN.get_or_init(|| {
        let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
        let bin = versions.map(|version| version.path().join("bin"));
        let number = |bin: &PathBuf| bin.parent()?.file_name()?.to_str()?.parse::<u32>().ok();
        bin.max_by_key(number)
    });
    let path = std::env::var_os("PATH").unwrap_or_default();
    let file = debian
        .iter()
        .cloned()
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("`{name}` is missing: ./scripts/test installs what tests need"));
    let mut command = Command::new(file);
    command.env_clear().env("PATH", path).env("LC_ALL", "C");
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// PostgreSQL refuses to run as root.
fn as_server_user(command: &mut Command, folder: &Path) {
    command.current_dir(folder);
    if let Some((uid, gid)) = server_user() {
        command.uid(uid).gid(gid);
    }
}

/// The user and group to change to, if this process is root's.
fn server_user() -> Option<(u32, u32)> {
    // getpwnam is not thread-safe.
    static USER: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *USER.get_or_init(|| unsafe {
        if libc::geteuid() != 0 {
            return None;
        }
        let user = libc::getpwnam(c"postgres".as_ptr()).as_ref();
        let user = user.expect("the user `postgres`, which ./scripts/test installs");
        Some((user.pw_uid, user.pw_gid))
    })
}

fn output(command: &mut Command) -> Result<String, String> {
    let output = command.stdout(Stdio::piped()).output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
    let ok = output.status.success();
    if ok { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn port_taken(log: &str) -> bool {
    log.contains("could not create any TCP/IP sockets")
}

/// Process id, parent and state of everything that runs on this machine.
fn processes() -> Vec<(i32, i32, char)> {
    let list = output(program("ps").args(["-A", "-o", "pid=", "-o", "ppid=", "-o", "stat="]));
    let process = |line: &str| {
        let mut words = line.split_whitespace();
        let (pid, parent) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some((pid, parent, words.next()?.chars().next()?))
    };
    list.unwrap().lines().filter_map(process).collect()
}

/// Each backend leads a process group of its own: only the parent tells where it belongs.
fn family(postmaster: i32) -> Vec<i32> {
    let mut processes = processes();
    processes.retain(|&(pid, parent, _)| pid == postmaster || parent == postmaster);
    processes.into_iter().map(|(pid, ..)| pid).collect()
}

fn send(pids: &[i32], signal: i32) {
    for &pid in pids {
        // An error says that the process is gone.
        unsafe { libc::kill(pid, signal) };
    }
}

/// For each of the processes to be in one of the states or gone.
fn wait_for_state(states: &str, pids: &[i32]) {
    let there = |(pid, _, state)| !pids.contains(&pid) || states.contains(state);
    wait_for(&format!("state {states} of {pids:?}"), || processes().into_iter().all(there));
}

fn within(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !done() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
    true
}

fn wait_for(what: &str, done: impl FnMut() -> bool) {
    assert!(within(PATIENCE, done), "no {what} within {PATIENCE:?}");
}

/// A panic elsewhere does not break what these mutexes hold.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
