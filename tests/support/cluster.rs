//! A master and the slaves that replicate it, whichever their database servers.

// Each test file compiles this module for itself and uses a part of it.
#![allow(dead_code)]

use std::any::Any;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::{fs, thread};

use tempfile::TempDir;

use super::server::{self, Program, Server};

/// What one kind of database server has of its own.
pub trait Dbms: Program {
    const SCHEME: &str;
    /// The role that may do everything.
    const ADMIN: &str;

    /// With the roles `app` and [`ADMIN`](Self::ADMIN), whose password is `secret`, and the
    /// database `app`.
    fn start_master(folder: &Path) -> Server<Self>;

    /// The `number`th, from 1.
    fn start_slave(master: &Server<Self>, number: usize) -> Server<Self>;

    /// Whether all slaves are connected to their master.
    fn is_replicating(cluster: &Cluster<Self>) -> bool;

    /// What the master has committed.
    fn position(master: &Server<Self>) -> String;

    fn has_replayed(slave: &Server<Self>, position: &str) -> bool;

    fn pause_replay(slave: &Server<Self>);

    fn resume_replay(slave: &Server<Self>);

    /// Makes a slave take writes of its own. The others go on replicating the master.
    fn promote(slave: &Server<Self>) -> Result<(), String>;

    /// How this slave replays from now on.
    fn replay(slave: &Server<Self>, replay: Replay) -> Result<(), String>;

    /// SQL for a database of the role `app`.
    fn create_database(name: &str) -> String;

    /// Runs as [`ADMIN`](Self::ADMIN), on the Unix socket.
    fn sql_in(server: &Server<Self>, database: &str, sql: &str) -> Result<String, String>;
}

#[derive(Clone, Copy, Debug)]
pub struct Replay {
    /// In seconds.
    pub lag: u16,
    pub paused: bool,
}

impl<D: Dbms> Server<D> {
    /// As the ordinary role that owns the database.
    pub fn url(&self) -> String {
        self.url_of("app", "app")
    }

    /// As a superuser.
    pub fn admin_url(&self) -> String {
        self.url_of(D::ADMIN, "app")
    }

    fn url_of(&self, role: &str, database: &str) -> String {
        let (scheme, port) = (D::SCHEME, self.port());
        format!("{scheme}://{role}:secret@127.0.0.1:{port}/{database}")
    }

    /// Runs as superuser in the database `app`.
    pub fn sql(&self, sql: &str) -> String {
        let result = self.try_sql(sql);
        result.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    pub fn try_sql(&self, sql: &str) -> Result<String, String> {
        self.sql_in("app", sql)
    }

    pub fn sql_in(&self, database: &str, sql: &str) -> Result<String, String> {
        D::sql_in(self, database, sql)
    }

    pub fn pause_replay(&self) {
        D::pause_replay(self);
    }

    pub fn resume_replay(&self) {
        D::resume_replay(self);
    }
}

pub struct Cluster<D: Dbms> {
    pub master: Server<D>,
    pub slaves: Vec<Server<D>>,
    // After the servers, which are dropped first and live in it.
    folder: TempDir,
    turn: Mutex<()>,
}

impl<D: Dbms> Cluster<D> {
    pub fn start(slaves: usize) -> Self {
        let folder = server::temporary_folder::<D>();
        let master = D::start_master(folder.path());
        let slaves = thread::scope(|scope| {
            let master = &master;
            let start = |number| scope.spawn(move || D::start_slave(master, number));
            let threads: Vec<_> = (1..=slaves).map(start).collect();
            let joined = threads.into_iter().map(|thread| thread.join().unwrap());
            joined.collect::<Vec<_>>()
        });
        let cluster = Self { master, slaves, folder, turn: Mutex::new(()) };
        server::wait_for("replicating slaves", || D::is_replicating(&cluster));
        cluster
    }

    /// One for this process and number of slaves, for tests which do not break servers.
    pub fn shared(slaves: usize) -> &'static Self {
        // Of every kind: it is the same for all `D`.
        static SHARED: Mutex<Vec<&'static (dyn Any + Send + Sync)>> = Mutex::new(Vec::new());

        let mut shared = server::lock(&SHARED);
        let mut clusters = shared.iter().filter_map(|cluster| cluster.downcast_ref::<Self>());
        if let Some(cluster) = clusters.find(|cluster| cluster.slaves.len() == slaves) {
            return cluster;
        }
        let cluster: &Self = Box::leak(Box::new(Self::start(slaves)));
        shared.push(cluster);
        server::at_exit(|| {
            cluster.slaves.iter().for_each(Server::end);
            cluster.master.end();
            let _ = fs::remove_dir_all(cluster.folder.path());
        });
        cluster
    }

    /// For a test that cannot share the cluster with another one at the same time.
    pub fn turn(&self) -> MutexGuard<'_, ()> {
        server::lock(&self.turn)
    }

    /// Until every slave has replayed what the master has committed.
    pub fn wait_caught_up(&self) {
        let position = D::position(&self.master);
        for slave in &self.slaves {
            server::wait_for("replay on a slave", || D::has_replayed(slave, &position));
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
