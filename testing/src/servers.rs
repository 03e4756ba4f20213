//! A master and the slaves that replicate it, for any kind of database server.

use std::any::Any;
use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use crate::process::{lock, remove, wait_for, within};
use crate::server::{Program, Server, at_exit, temporary_folder};

/// The properties of one kind of database server.
///
/// On all of them, the role `app` has the password `secret` and owns the databases. The role [`ADMIN`](Self::ADMIN) has
/// the same password and may do everything.
pub trait Dbms: Program + Copy + Default + PartialEq {
    /// The scheme of URLs.
    const SCHEME: &str;
    /// The role that may do everything.
    const ADMIN: &str;

    /// Creates the data that servers of one system start with, in `data` below this folder.
    fn make_template(self, folder: &Path);

    /// Starts a master on a copy of the `template` in this folder, with both roles and the database `app`.
    fn start_master(self, folder: &Path) -> Server<Self>;

    /// Starts the slave with this number, from 1.
    fn start_slave(master: &Server<Self>, number: usize) -> Server<Self>;

    /// Starts a slave at another address of this machine, on the master's port.
    fn start_slave_at(master: &Server<Self>, address: Ipv4Addr) -> Server<Self>;

    /// True if all slaves are connected to their master.
    fn is_replicating(servers: &Servers<Self>) -> bool;

    /// The position up to which the master has committed.
    fn position(master: &Server<Self>) -> String;

    /// True if a slave has replayed `position`.
    fn has_replayed(slave: &Server<Self>, position: &str) -> bool;

    /// Makes a slave receive without replaying.
    ///
    /// # Errors
    ///
    /// The server's message, if it is not a slave or does not answer.
    fn pause_replay(slave: &Server<Self>) -> Result<(), String>;

    /// Makes a slave replay again.
    ///
    /// # Errors
    ///
    /// The server's message, if it is not a slave or does not answer.
    fn resume_replay(slave: &Server<Self>) -> Result<(), String>;

    /// Sets how this slave replays from now on.
    ///
    /// # Errors
    ///
    /// The server's message, if it is not a slave or does not answer.
    fn replay(slave: &Server<Self>, replay: Replay) -> Result<(), String>;

    /// Makes a slave take writes of its own. The other slaves keep replicating the master.
    ///
    /// # Errors
    ///
    /// The server's message, if it is not a slave or does not answer.
    fn promote(slave: &Server<Self>) -> Result<(), String>;

    /// SQL that creates a database of the role `app`.
    fn create_database(name: &str) -> String;

    /// Runs SQL on the Unix socket. Columns are separated by `|` or a tab, rows by line breaks.
    ///
    /// # Errors
    ///
    /// The server's message.
    fn sql_as(server: &Server<Self>, role: &str, database: &str, sql: &str) -> Result<String, String>;
}

/// How a slave replays what it receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replay {
    /// The delay between commit and replay. MariaDB and MySQL know whole seconds, so it is rounded up there.
    pub lag: Duration,
    /// True if replay is stopped.
    pub paused: bool,
}

impl<D: Dbms> Server<D> {
    /// The URL for the ordinary role that owns the database.
    pub fn url(&self) -> String {
        self.url_of("app", "app")
    }

    /// The URL for the role that may do everything.
    pub fn admin_url(&self) -> String {
        self.url_of(D::ADMIN, "app")
    }

    pub(crate) fn url_of(&self, role: &str, database: &str) -> String {
        let (scheme, port) = (D::SCHEME, self.port());
        format!("{scheme}://{role}:secret@127.0.0.1:{port}/{database}")
    }

    /// Runs SQL as the role that may do everything, in the database `app`.
    ///
    /// # Panics
    ///
    /// If the server refuses.
    #[track_caller]
    pub fn sql(&self, sql: &str) -> String {
        let result = self.try_sql(sql);
        result.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// As [`sql`](Self::sql), for SQL that the server may refuse.
    ///
    /// # Errors
    ///
    /// The server's message.
    pub fn try_sql(&self, sql: &str) -> Result<String, String> {
        self.sql_in("app", sql)
    }

    /// As [`try_sql`](Self::try_sql), in another database.
    ///
    /// # Errors
    ///
    /// The server's message.
    pub fn sql_in(&self, database: &str, sql: &str) -> Result<String, String> {
        D::sql_as(self, D::ADMIN, database, sql)
    }

    /// Makes this slave receive without replaying.
    ///
    /// # Panics
    ///
    /// If the server is not a slave. The same holds for [`resume_replay`](Self::resume_replay).
    #[track_caller]
    pub fn pause_replay(&self) {
        D::pause_replay(self).unwrap();
    }

    /// Ends [`pause_replay`](Self::pause_replay).
    #[track_caller]
    pub fn resume_replay(&self) {
        D::resume_replay(self).unwrap();
    }

    /// Starts another slave of this master, on the same port of another address, as behind a host name that has
    /// several. The slave has to be dropped before the master, in whose folder it lives.
    ///
    /// # Panics
    ///
    /// If the slave does not start, for instance because the address is not one of this machine.
    pub fn start_slave_at(&self, address: Ipv4Addr) -> Self {
        D::start_slave_at(self, address)
    }

    /// Makes a slave take writes of its own. The other slaves keep replicating the master.
    ///
    /// # Errors
    ///
    /// The server's message, if it is not a slave.
    pub fn promote(&self) -> Result<(), String> {
        D::promote(self)
    }
}

/// A master and its slaves, which end when they are dropped.
#[derive(Debug)]
pub struct Servers<D: Dbms> {
    /// The only server that takes writes.
    pub master: Server<D>,
    /// The servers that replicate the master.
    pub slaves: Vec<Server<D>>,
    // Declared after the servers, which live in it and are dropped first.
    pub(crate) folder: TempDir,
    /// True if the slaves were told to replay late.
    is_late: AtomicBool,
}

impl<D: Dbms> Servers<D> {
    /// Starts a master and its slaves, in a second or less. All servers that a process starts in this way belong to one
    /// system. For PostgreSQL, a system is what descends from one `initdb`.
    ///
    /// # Panics
    ///
    /// If programs are missing, with what to install. If servers do not start, with their log.
    pub fn start(kind: D, slaves: usize) -> Self {
        Self::start_from(template(kind), kind, slaves)
    }

    /// As [`start`](Self::start), but the servers belong to a system of their own.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    pub fn start_another_system(kind: D, slaves: usize) -> Self {
        let template = new_template(kind);
        Self::start_from(template.path(), kind, slaves)
    }

    fn start_from(template: &Path, kind: D, slaves: usize) -> Self {
        let folder = temporary_folder::<D>();
        symlink(template.join("data"), folder.path().join("template")).unwrap();
        let master = kind.start_master(folder.path());
        let slaves = thread::scope(|scope| {
            let master = &master;
            let start = |number| scope.spawn(move || D::start_slave(master, number));
            let threads: Vec<_> = (1..=slaves).map(start).collect();
            let joined = threads.into_iter().map(|thread| thread.join().unwrap());
            joined.collect::<Vec<_>>()
        });
        let servers = Self { master, slaves, folder, is_late: false.into() };
        wait_for("replicating slaves", || D::is_replicating(&servers));
        servers
    }

    /// Undoes what a test did, which may have ended by a panic. Returns true if the servers can be used again, which
    /// they cannot after a promotion.
    pub(crate) fn mend(&self) -> bool {
        for server in self.all() {
            match server.has_ended() {
                true => server.start(),
                false => server.thaw(),
            }
        }
        let mended = match self.is_late.load(Ordering::Acquire) {
            true => self.replay(Replay::default()),
            false => self.slaves.iter().try_for_each(D::resume_replay),
        };
        let problem = match mended {
            Ok(()) if within(Duration::from_secs(10), || D::is_replicating(self)) => return true,
            Ok(()) => "not all slaves replicate the master".into(),
            Err(error) => error,
        };
        eprintln!("{} in {} are not used again: {problem}", D::NAME, self.folder.path().display());
        false
    }

    /// Sets how all slaves replay from now on.
    pub(crate) fn replay(&self, replay: Replay) -> Result<(), String> {
        // Pausing is quicker, as it does not restart replication.
        if replay == (Replay { paused: true, ..Replay::default() }) {
            return self.slaves.iter().try_for_each(D::pause_replay);
        }
        self.is_late.store(replay.lag > Duration::ZERO, Ordering::Release);
        self.slaves.iter().try_for_each(|slave| D::replay(slave, replay))
    }

    /// All servers, the master first.
    pub fn all(&self) -> impl Iterator<Item = &Server<D>> {
        std::iter::once(&self.master).chain(&self.slaves)
    }

    /// Waits until every slave has replayed what the master has committed. Blocks.
    ///
    /// # Panics
    ///
    /// If the wait takes longer than a minute, as when replay is paused.
    #[track_caller]
    pub fn wait_caught_up(&self) {
        let position = D::position(&self.master);
        for slave in &self.slaves {
            wait_for("replay on a slave", || D::has_replayed(slave, &position));
        }
    }

    /// Creates a database of the role `app` on the master and on every slave. Returns the URLs of the master and of the
    /// slaves.
    pub fn database(&self, name: &str) -> (String, Vec<String>) {
        self.master.sql(&D::create_database(name));
        self.wait_caught_up();
        let slaves = self.slaves.iter().map(|slave| slave.url_of("app", name));
        (self.master.url_of("app", name), slaves.collect())
    }
}

fn new_template<D: Dbms>(kind: D) -> TempDir {
    let folder = temporary_folder::<D>();
    kind.make_template(folder.path());
    folder
}

/// The folder of the template that all servers of this kind start from in this process.
fn template<D: Dbms>(kind: D) -> &'static Path {
    /// A kind, and its template.
    type Template = (&'static (dyn Any + Send + Sync), &'static TempDir);

    static TEMPLATES: Mutex<Vec<Template>> = Mutex::new(Vec::new());

    // Held until the template is made, so that other callers wait for it.
    let mut templates = lock(&TEMPLATES);
    if let Some((_, template)) = templates.iter().find(|(of, _)| of.downcast_ref() == Some(&kind)) {
        return template.path();
    }
    let template: &TempDir = Box::leak(Box::new(new_template(kind)));
    at_exit(|| remove(template));
    templates.push((Box::leak(Box::new(kind)), template));
    template.path()
}
