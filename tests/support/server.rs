//! Server programs run by the test process: on free loopback ports, in temporary folders, as
//! children that end with whoever started them.

// Each test file compiles this module for itself and uses a part of it.
#![allow(dead_code)]

use std::fs::{self, File};
use std::os::unix::{fs::chown, process::CommandExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use std::{env, mem, net::TcpListener, thread};

use tempfile::TempDir;

pub const PATIENCE: Duration = Duration::from_secs(20);

/// What one kind of server has of its own.
pub trait Program: Sized + Send + Sync + 'static {
    const NAME: &str;
    /// Whom a test that is root's runs it as: servers refuse to run as root.
    const USER: &str;
    /// What the log says of a port that another has.
    const PORT_TAKEN: &str;
    /// The signal to shut down in order.
    const STOP: i32;
    /// The signal to end at once, and leave nothing behind outside of the folder.
    const END: i32;

    /// In the foreground, with the log on stderr.
    fn command(server: &Server<Self>) -> Command;

    fn answers(server: &Server<Self>) -> bool;
}

/// One server: a child of this process, and whatever that forks.
pub struct Server<P: Program> {
    pub(super) program: P,
    pub(super) data: PathBuf,
    port: u16,
    child: Mutex<Option<Child>>,
}

impl<P: Program> Server<P> {
    pub(super) fn launch(program: P, data: PathBuf) -> Self {
        let mut server = Self { program, data, port: 0, child: Mutex::new(None) };
        for _ in 0..5 {
            server.port = free_port();
            match server.try_start() {
                Err(log) if log.contains(P::PORT_TAKEN) => continue,
                Err(log) => panic!("{} does not start:\n{log}", P::NAME),
                Ok(()) => return server,
            }
        }
        panic!("{} finds no free port", P::NAME);
    }

    /// On a port that is known to be free at its address.
    pub(super) fn launch_on(port: u16, program: P, data: PathBuf) -> Self {
        let server = Self { program, data, port, child: Mutex::new(None) };
        server.try_start().unwrap_or_else(|log| panic!("{} does not start:\n{log}", P::NAME));
        server
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn folder(&self) -> &Path {
        self.data.parent().unwrap()
    }

    pub(super) fn log(&self) -> String {
        let log = fs::read(self.data.with_extension("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// A crash: SIGKILL to every process of the server.
    pub fn kill(&self) {
        // Frozen processes neither fork nor exit, so that the list is complete.
        self.freeze();
        let pids = family(self.pid());
        send(&pids, libc::SIGKILL);
        wait_for("end of the killed server", || self.has_ended());
        wait_for_state("Z", &pids);
    }

    /// A shutdown that does not wait for clients.
    pub fn stop(&self) {
        send(&[self.pid()], P::STOP);
        wait_for("end of the stopped server", || self.has_ended());
    }

    /// Starts again with the same port and data, and returns when connections are accepted.
    pub fn start(&self) {
        wait_for("port of the stopped server", || match self.try_start() {
            Err(log) if log.contains(P::PORT_TAKEN) => false,
            Err(log) => panic!("{} does not start again:\n{log}", P::NAME),
            Ok(()) => true,
        });
    }

    fn try_start(&self) -> Result<(), String> {
        assert!(self.has_ended(), "the server runs already");
        let mut command = P::command(self);
        as_user(&mut command, P::USER, self.folder());
        command.stderr(File::create(self.data.with_extension("log")).unwrap());
        *lock(&self.child) = Some(command.spawn().unwrap());
        if within(PATIENCE, || self.has_ended() || P::answers(self)) && !self.has_ended() {
            return Ok(());
        }
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        Err(lines[lines.len().saturating_sub(30)..].join("\n"))
    }

    /// SIGSTOP to every process of the server: connections stay open and nothing answers.
    pub fn freeze(&self) {
        let parent = self.pid();
        // First, so that it forks no more.
        send(&[parent], libc::SIGSTOP);
        wait_for_state("TZ", &[parent]);
        let pids = family(parent);
        send(&pids, libc::SIGSTOP);
        wait_for_state("TZ", &pids);
    }

    pub fn thaw(&self) {
        send(&family(self.pid()), libc::SIGCONT);
    }

    fn pid(&self) -> i32 {
        let child = lock(&self.child);
        child.as_ref().expect("a running server").id() as i32
    }

    fn has_ended(&self) -> bool {
        let mut child = lock(&self.child);
        if let Some(running) = &mut *child
            && running.try_wait().unwrap().is_some()
        {
            *child = None;
        }
        child.is_none()
    }

    /// Whatever state the server is in.
    pub(super) fn end(&self) {
        if self.has_ended() {
            return;
        }
        self.thaw();
        send(&[self.pid()], P::END);
        if !within(Duration::from_secs(5), || self.has_ended()) {
            self.kill();
        }
    }
}

impl<P: Program> Drop for Server<P> {
    fn drop(&mut self) {
        self.end();
    }
}

/// For the data of a kind of server, whose user owns it.
pub fn temporary_folder<P: Program>() -> TempDir {
    // Without `ps` no server could be ended: fail before there is one.
    processes();
    let prefix = format!("{}-", P::NAME.to_lowercase());
    let folder = tempfile::Builder::new().prefix(&prefix).tempdir().unwrap();
    if let Some((uid, gid)) = ids(P::USER) {
        chown(folder.path(), Some(uid), Some(gid)).unwrap();
    }
    folder
}

/// Runs when the process exits: statics are never dropped.
pub fn at_exit(end: impl FnOnce() + Send + 'static) {
    static ENDS: Mutex<Vec<Box<dyn FnOnce() + Send>>> = Mutex::new(Vec::new());

    extern "C" fn run() {
        let ends = mem::take(&mut *lock(&ENDS));
        ends.into_iter().for_each(|end| end());
    }

    let mut ends = lock(&ENDS);
    if ends.is_empty() {
        assert_eq!(unsafe { libc::atexit(run) }, 0);
    }
    ends.push(Box::new(end));
}

/// From the folder, if it is there, or else from PATH. Clean of the caller's environment, in
/// which variables such as PG*, MYSQL_* and LC_* would have effects.
pub fn program(folder: Option<&Path>, name: &str) -> Command {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = folder.map(Path::to_owned).into_iter().chain(env::split_paths(&path));
    // Where servers are, and ordinary users do not look.
    let mut files =
        folders.chain(["/usr/local/sbin".into(), "/usr/sbin".into()]).map(|folder| folder.join(name));
    let file = files
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("`{name}` is missing: ./scripts/test installs what tests need"));
    let mut command = Command::new(file);
    command.env_clear().env("PATH", path).env("LC_ALL", "C");
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// Where `scripts/engines` has put servers that are to be tested in place of the system's: a folder like `/`.
pub fn engine() -> Option<&'static Path> {
    static ENGINE: OnceLock<Option<PathBuf>> = OnceLock::new();
    ENGINE.get_or_init(|| env::var_os("ENGINE").map(PathBuf::from)).as_deref()
}

/// From one of the folders of the [`engine`], if there is one, or else as [`program`] finds it.
pub fn engine_program(folders: &[&str], name: &str) -> Command {
    let Some(engine) = engine() else { return program(None, name) };
    let mut folders = folders.iter().map(|folder| engine.join(folder));
    let folder = folders.find(|folder| folder.join(name).is_file());
    program(Some(&folder.unwrap_or_else(|| panic!("`{name}` is missing in {}", engine.display()))), name)
}

/// In the folder, and as that user if this process is root's.
pub fn as_user(command: &mut Command, user: &str, folder: &Path) {
    command.current_dir(folder);
    if let Some((uid, gid)) = ids(user) {
        command.uid(uid).gid(gid);
    }
}

/// The user and group to change to, if this process is root's.
fn ids(user: &str) -> Option<(u32, u32)> {
    if unsafe { libc::geteuid() } != 0 {
        return None;
    }
    // Not with getpwnam, which is not thread-safe.
    let id = |option: &str| {
        let id = output(program(None, "id").args([option, user]));
        let id = id.unwrap_or_else(|error| panic!("{error}: ./scripts/test installs what tests need"));
        id.parse().unwrap()
    };
    Some((id("-u"), id("-g")))
}

pub fn output(command: &mut Command) -> Result<String, String> {
    let output = command.stdout(Stdio::piped()).output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
    let ok = output.status.success();
    if ok { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Process id, parent and state of everything that runs on this machine.
fn processes() -> Vec<(i32, i32, char)> {
    let list = output(program(None, "ps").args(["-A", "-o", "pid=", "-o", "ppid=", "-o", "stat="]));
    let process = |line: &str| {
        let mut words = line.split_whitespace();
        let (pid, parent) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some((pid, parent, words.next()?.chars().next()?))
    };
    list.unwrap().lines().filter_map(process).collect()
}

/// Each child may lead a process group of its own: only the parent tells where it belongs.
fn family(parent: i32) -> Vec<i32> {
    let mut processes = processes();
    processes.retain(|&(pid, its_parent, _)| pid == parent || its_parent == parent);
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

pub fn wait_for(what: &str, done: impl FnMut() -> bool) {
    assert!(within(PATIENCE, done), "no {what} within {PATIENCE:?}");
}

/// A panic elsewhere does not break what these mutexes hold.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
