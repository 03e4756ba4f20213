//! A master and the slaves that replicate it, whichever their database servers.

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

/// What one kind of database server has of its own.
///
/// On all of them, the role `app` has the password `secret`, and owns the databases; so has the role
/// [`ADMIN`](Self::ADMIN), which may do everything.
pub trait Dbms: Program + Copy + Default + PartialEq {
    /// Of its URLs.
    const SCHEME: &str;
    /// The role that may do everything.
    const ADMIN: &str;

    /// Makes the data that servers of one system start on, in `data` below this folder.
    fn make_template(self, folder: &Path);

    /// With both roles, and the database `app`, on a copy of the `template` in this folder.
    fn start_master(self, folder: &Path) -> Server<Self>;

    /// The `number`th, from 1.
    fn start_slave(master: &Server<Self>, number: usize) -> Server<Self>;

    /// At another address of this machine, and on the same port.
    fn start_slave_at(master: &Server<Self>, address: Ipv4Addr) -> Server<Self>;

    /// Whether all slaves are connected to their master.
    fn is_replicating(servers: &Servers<Self>) -> bool;

    /// What the master has committed.
    fn position(master: &Server<Self>) -> String;

    /// Whether a slave has all of it.
    fn has_replayed(slave: &Server<Self>, position: &str) -> bool;

    /// It receives, and replays nothing any more.
    ///
    /// # Errors
    ///
    /// What it says, if it is no slave, or does not answer.
    fn pause_replay(slave: &Server<Self>) -> Result<(), String>;

    /// It replays again.
    ///
    /// # Errors
    ///
    /// What it says, if it is no slave, or does not answer.
    fn resume_replay(slave: &Server<Self>) -> Result<(), String>;

    /// How this slave replays from now on.
    ///
    /// # Errors
    ///
    /// What it says, if it is no slave, or does not answer.
    fn replay(slave: &Server<Self>, replay: Replay) -> Result<(), String>;

    /// Makes a slave take writes of its own. The others go on replicating the master.
    ///
    /// # Errors
    ///
    /// What it says, if it is no slave, or does not answer.
    fn promote(slave: &Server<Self>) -> Result<(), String>;

    /// SQL for a database of the role `app`.
    fn create_database(name: &str) -> String;

    /// Runs it on the Unix socket. Columns are separated by `|` or a tab, rows by line breaks.
    ///
    /// # Errors
    ///
    /// What the server says.
    fn sql_as(server: &Server<Self>, role: &str, database: &str, sql: &str) -> Result<String, String>;
}

/// How a slave replays what it receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replay {
    /// So much later than it was committed. MariaDB and MySQL know whole seconds: it is rounded up.
    pub lag: Duration,
    /// Not at all, for the time being.
    pub paused: bool,
}

impl<D: Dbms> Server<D> {
    /// As the ordinary role that owns the database.
    pub fn url(&self) -> String {
        self.url_of("app", "app")
    }

    /// As the role that may do everything.
    pub fn admin_url(&self) -> String {
        self.url_of(D::ADMIN, "app")
    }

    pub(crate) fn url_of(&self, role: &str, database: &str) -> String {
        let (scheme, port) = (D::SCHEME, self.port());
        format!("{scheme}://{role}:secret@127.0.0.1:{port}/{database}")
    }

    /// Runs as the role that may do everything, in the database `app`.
    ///
    /// # Panics
    ///
    /// If the server refuses.
    #[track_caller]
    pub fn sql(&self, sql: &str) -> String {
        let result = self.try_sql(sql);
        result.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// As [`sql`](Self::sql), if the server may refuse.
    ///
    /// # Errors
    ///
    /// What it says.
    pub fn try_sql(&self, sql: &str) -> Result<String, String> {
        self.sql_in("app", sql)
    }

    /// As [`try_sql`](Self::try_sql), in another database.
    ///
    /// # Errors
    ///
    /// What the server says.
    pub fn sql_in(&self, database: &str, sql: &str) -> Result<String, String> {
        D::sql_as(self, D::ADMIN, database, sql)
    }

    /// Of a slave: it receives, and replays nothing.
    ///
    /// # Panics
    ///
    /// If it is none, as for [`resume_replay`](Self::resume_replay).
    #[track_caller]
    pub fn pause_replay(&self) {
        D::pause_replay(self).unwrap();
    }

    /// Takes [`pause_replay`](Self::pause_replay) back.
    #[track_caller]
    pub fn resume_replay(&self) {
        D::resume_replay(self).unwrap();
    }

    /// Another slave of this master, on the same port of another address: as behind a name that has several. It is to
    /// be dropped before the master, in whose folder it lives.
    ///
    /// # Panics
    ///
    /// If it does not start, as where the address is not one of this machine.
    pub fn start_slave_at(&self, address: Ipv4Addr) -> Self {
        D::start_slave_at(self, address)
    }

    /// Makes a slave take writes of its own. The others go on replicating the master.
    ///
    /// # Errors
    ///
    /// What it says, if it is no slave.
    pub fn promote(&self) -> Result<(), String> {
        D::promote(self)
    }
}

/// A master and its slaves, which end when they are dropped.
#[derive(Debug)]
pub struct Servers<D: Dbms> {
    /// The only one that takes writes.
    pub master: Server<D>,
    /// They replicate it.
    pub slaves: Vec<Server<D>>,
    // After the servers, which are dropped first and live in it.
    pub(crate) folder: TempDir,
    /// Told to replay late.
    is_late: AtomicBool,
}

impl<D: Dbms> Servers<D> {
    /// Starts them, in a second or less. All that a process starts in this way are of one system, as PostgreSQL calls what
    /// descends from one `initdb`.
    ///
    /// # Panics
    ///
    /// If programs are missing, with what to install; if they do not start, with their log.
    pub fn start(kind: D, slaves: usize) -> Self {
        Self::start_from(template(kind), kind, slaves)
    }

    /// As [`start`](Self::start), and they are of a system of their own.
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

    /// Takes back what a test did, which may have ended by a panic. Whether they can be used again: a slave that was
    /// promoted is none any more.
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
        mended.is_ok() && within(Duration::from_secs(10), || D::is_replicating(self))
    }

    /// How all slaves replay from now on.
    pub(crate) fn replay(&self, replay: Replay) -> Result<(), String> {
        // It is quicker, as it does not start replication anew.
        if replay == (Replay { paused: true, ..Replay::default() }) {
            return self.slaves.iter().try_for_each(D::pause_replay);
        }
        self.is_late.store(replay.lag > Duration::ZERO, Ordering::Release);
        self.slaves.iter().try_for_each(|slave| D::replay(slave, replay))
    }

    /// The master first.
    pub fn all(&self) -> impl Iterator<Item = &Server<D>> {
        std::iter::once(&self.master).chain(&self.slaves)
    }

    /// Until every slave has replayed what the master has committed. Blocks.
    ///
    /// # Panics
    ///
    /// If that takes longer than a minute, as when replay is paused.
    #[track_caller]
    pub fn wait_caught_up(&self) {
        let position = D::position(&self.master);
        for slave in &self.slaves {
            wait_for("replay on a slave", || D::has_replayed(slave, &position));
        }
    }

    /// A fresh database of the role `app`, which every slave has too: the URLs of the master
    /// and of the slaves.
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

    // Held until the template is made: other callers wait for it.
    let mut templates = lock(&TEMPLATES);
    if let Some((_, template)) = templates.iter().find(|(of, _)| of.downcast_ref() == Some(&kind)) {
        return template.path();
    }
    let template: &TempDir = Box::leak(Box::new(new_template(kind)));
    at_exit(|| remove(template));
    templates.push((Box::leak(Box::new(kind)), template));
    template.path()
}
