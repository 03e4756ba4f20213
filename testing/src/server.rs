//! A server program run by this process: on a free port of the loopback interface, in a temporary folder, as a child
//! that ends with whoever started it.
//!
//! [`Program`] takes another kind of server than those of this crate: a pooler in front of them, say.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Mutex;
use std::time::Duration;
use std::{fmt::Debug, mem};

use crate::guard;
pub use crate::process::{PATIENCE, as_user, output, server_program, temporary_folder, wait_for};
use crate::process::{family, lock, send, wait_for_state, within};
use crate::session::Sessions;

/// What one kind of server has of its own.
pub trait Program: Debug + Sized + Send + Sync + 'static {
    /// As people know it.
    const NAME: &str;
    /// How to install it, for the message that says that it is missing.
    const INSTALL: &str;
    /// Whom a test that is root's runs it as: servers refuse to run as root.
    const USER: &str;
    /// What the log says of a port that another has.
    const PORT_TAKEN: &str;
    /// The signal to shut down in order.
    const STOP: i32;
    /// The signal to end at once, and leave nothing behind outside of the folder.
    const END: i32;

    /// Runs it in the foreground, with the log on stderr, and with a path in its temporary folder among its arguments.
    fn command(server: &Server<Self>) -> Command;

    /// Whether it takes connections.
    fn answers(server: &Server<Self>) -> bool;

    /// Removes what one that was killed has left outside of its folder, once it is not to be started again.
    fn clear_after_kill(_server: &Server<Self>) {}
}

/// One server: a child of this process, and whatever that forks. It ends when it is dropped.
///
/// Calls block until what they name has happened.
#[derive(Debug)]
pub struct Server<P: Program> {
    program: P,
    data: PathBuf,
    port: u16,
    child: Mutex<Option<Child>>,
    pub(crate) sessions: Sessions,
}

impl<P: Program> Server<P> {
    /// With its data in this folder, which is in a [temporary folder](temporary_folder) of its own or that of servers
    /// that belong together. Beside it will be the log, with the same name and the ending `.log`.
    ///
    /// # Panics
    ///
    /// If it does not start, with the end of its log.
    pub fn launch(program: P, data: PathBuf) -> Self {
        let mut server =
            Self { program, data, port: 0, child: Mutex::new(None), sessions: Sessions::default() };
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

    /// As [`launch`](Self::launch), on a port that is known to be free at its address.
    pub fn launch_on(port: u16, program: P, data: PathBuf) -> Self {
        let server = Self { program, data, port, child: Mutex::new(None), sessions: Sessions::default() };
        server.try_start().unwrap_or_else(|log| panic!("{} does not start:\n{log}", P::NAME));
        server
    }

    /// What is particular to this one.
    pub fn program(&self) -> &P {
        &self.program
    }

    /// On 127.0.0.1, unless it was told otherwise.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where its data is.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The folder that the data is in.
    pub fn folder(&self) -> &Path {
        self.data.parent().expect("data is in a folder")
    }

    /// What it has logged since it was started last.
    pub fn log(&self) -> String {
        let log = fs::read(self.data.with_extension("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// A crash: SIGKILL to every process of the server.
    ///
    /// # Panics
    ///
    /// If it does not run, as for the other faults.
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
        self.sessions.end();
        send(&[self.pid()], P::STOP);
        wait_for("end of the stopped server", || self.has_ended());
    }

    /// Starts again with the same port and data, and returns when connections are accepted.
    ///
    /// # Panics
    ///
    /// If it runs, or does not start within a minute.
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
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        guard::server(child.id() as i32, P::END);
        *lock(&self.child) = Some(child);
        if within(PATIENCE, || self.has_ended() || P::answers(self)) && !self.has_ended() {
            return Ok(());
        }
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        Err(lines[lines.len().saturating_sub(30)..].join("\n"))
    }

    /// SIGSTOP to every process of the server: connections stay open and nothing answers.
    pub fn freeze(&self) {
        self.sessions.end();
        let parent = self.pid();
        // First, so that it forks no more.
        send(&[parent], libc::SIGSTOP);
        wait_for_state("TZ", &[parent]);
        let pids = family(parent);
        send(&pids, libc::SIGSTOP);
        wait_for_state("TZ", &pids);
    }

    /// Takes [`freeze`](Self::freeze) back.
    pub fn thaw(&self) {
        send(&family(self.pid()), libc::SIGCONT);
    }

    fn pid(&self) -> i32 {
        let child = lock(&self.child);
        child.as_ref().expect("a running server").id() as i32
    }

    /// Whether it does not run, by a fault of this test or otherwise.
    pub fn has_ended(&self) -> bool {
        let mut child = lock(&self.child);
        if let Some(running) = &mut *child
            && running.try_wait().unwrap().is_some()
        {
            *child = None;
        }
        child.is_none()
    }

    /// Whatever state the server is in.
    pub(crate) fn end(&self) {
        self.sessions.end();
        if !self.has_ended() {
            self.thaw();
            send(&[self.pid()], P::END);
            if !within(Duration::from_secs(5), || self.has_ended()) {
                self.kill();
            }
        }
        P::clear_after_kill(self);
    }
}

impl<P: Program> Drop for Server<P> {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs when the process exits: statics are never dropped.
pub(crate) fn at_exit(end: impl FnOnce() + Send + 'static) {
    static ENDS: Mutex<Vec<Box<dyn FnOnce() + Send>>> = Mutex::new(Vec::new());

    extern "C" fn run() {
        let ends = mem::take(&mut *lock(&ENDS));
        ends.into_iter().for_each(|end| end());
    }

    let mut ends = lock(&ENDS);
    if ends.is_empty() {
        // SAFETY: `run` is sound to call at any time; it takes what there is to do, once.
        assert_eq!(unsafe { libc::atexit(run) }, 0);
    }
    ends.push(Box::new(end));
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}
