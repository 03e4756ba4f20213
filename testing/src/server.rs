//! A server program run by this process: on a free port of the loopback interface, in a temporary folder, as a child
//! that ends with this process.
//!
//! Implement [`Program`] for other kinds of server than those of this crate, such as a pooler.

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

/// The properties of one kind of server.
pub trait Program: Debug + Sized + Send + Sync + 'static {
    /// The usual name.
    const NAME: &str;
    /// How to install the program, for the message that it is missing.
    const INSTALL: &str;
    /// The user that runs the program in tests of root: servers refuse to run as root.
    const USER: &str;
    /// The words of the log when another process has the port.
    const PORT_TAKEN: &str;
    /// The signal for an orderly shutdown.
    const STOP: i32;
    /// The signal to end at once, leaving nothing behind outside of the folder.
    const END: i32;

    /// The command that runs the server in the foreground, with its log on stderr. Its arguments include a path in the
    /// server's temporary folder.
    fn command(server: &Server<Self>) -> Command;

    /// True if the server accepts connections.
    fn answers(server: &Server<Self>) -> bool;

    /// Removes what a killed server has left outside of its folder, when the server will not be started again.
    fn clear_after_kill(_server: &Server<Self>) {}
}

/// One server: a child of this process, with the processes that it forks. The server ends when this is dropped.
///
/// Calls block until their effect has happened.
#[derive(Debug)]
pub struct Server<P: Program> {
    program: P,
    data: PathBuf,
    port: u16,
    child: Mutex<Option<Child>>,
    pub(crate) sessions: Sessions,
}

impl<P: Program> Server<P> {
    /// Starts a server with its data in this folder, which is inside a [temporary folder](temporary_folder) of the
    /// server or of a group of servers. The log is beside it, with the same name and the ending `.log`.
    ///
    /// # Panics
    ///
    /// If the server does not start, with the end of its log.
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
        panic!("{} found no free port in five attempts", P::NAME);
    }

    /// As [`launch`](Self::launch), on a port that is known to be free at its address.
    pub fn launch_on(port: u16, program: P, data: PathBuf) -> Self {
        let server = Self { program, data, port, child: Mutex::new(None), sessions: Sessions::default() };
        server.try_start().unwrap_or_else(|log| panic!("{} does not start:\n{log}", P::NAME));
        server
    }

    /// The program, with the properties of this server.
    pub fn program(&self) -> &P {
        &self.program
    }

    /// The port, on 127.0.0.1 unless the program has another address.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of the data.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The folder that the data is in.
    pub fn folder(&self) -> &Path {
        self.data.parent().expect("data is in a folder")
    }

    /// The log since the latest start.
    pub fn log(&self) -> String {
        let log = fs::read(self.data.with_extension("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Crashes the server: SIGKILL to every process of it.
    ///
    /// # Panics
    ///
    /// If the server does not run. The same holds for the other faults.
    pub fn kill(&self) {
        // Frozen processes neither fork nor exit, so the list is complete.
        self.freeze();
        let pids = family(self.pid());
        send(&pids, libc::SIGKILL);
        wait_for("end of the killed server", || self.has_ended());
        wait_for_state("Z", &pids);
    }

    /// Shuts the server down without waiting for clients.
    pub fn stop(&self) {
        self.sessions.end();
        send(&[self.pid()], P::STOP);
        wait_for("end of the stopped server", || self.has_ended());
    }

    /// Starts the server again with the same port and data, and returns when it accepts connections.
    ///
    /// # Panics
    ///
    /// If the server runs already, or does not start within a minute.
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

    /// Sends SIGSTOP to every process of the server: connections stay open, and no process answers.
    pub fn freeze(&self) {
        self.sessions.end();
        let parent = self.pid();
        // The parent first, so that it does not fork any more.
        send(&[parent], libc::SIGSTOP);
        wait_for_state("TZ", &[parent]);
        let pids = family(parent);
        send(&pids, libc::SIGSTOP);
        wait_for_state("TZ", &pids);
    }

    /// Ends [`freeze`](Self::freeze).
    pub fn thaw(&self) {
        send(&family(self.pid()), libc::SIGCONT);
    }

    fn pid(&self) -> i32 {
        let child = lock(&self.child);
        child.as_ref().expect("a running server").id() as i32
    }

    /// True if the server does not run, by a fault of this test or otherwise.
    pub fn has_ended(&self) -> bool {
        let mut child = lock(&self.child);
        if let Some(running) = &mut *child
            && running.try_wait().unwrap().is_some()
        {
            *child = None;
        }
        child.is_none()
    }

    /// Ends the server, whatever state it is in.
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

/// Calls `end` when this process exits, because statics are never dropped.
pub(crate) fn at_exit(end: impl FnOnce() + Send + 'static) {
    static ENDS: Mutex<Vec<Box<dyn FnOnce() + Send>>> = Mutex::new(Vec::new());

    extern "C" fn run() {
        let ends = mem::take(&mut *lock(&ENDS));
        ends.into_iter().for_each(|end| end());
    }

    let mut ends = lock(&ENDS);
    if ends.is_empty() {
        // SAFETY: `run` is sound to call at any time. It takes each entry once.
        assert_eq!(unsafe { libc::atexit(run) }, 0);
    }
    ends.push(Box::new(end));
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}
