//! A database of a test's own, with slaves whose lag the test controls.

use std::fmt;
#[cfg(feature = "sqlite")]
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rocket::figment::Figment;
use rocket::tokio;

use crate::mysql::MySql;
use crate::postgres::Postgres;
use crate::process::{PATIENCE, wait_for};
use crate::section::Section;
use crate::server::Server;
use crate::servers::{Dbms, Replay, Servers};
use crate::shared::{self, Taken};
#[cfg(feature = "sqlite")]
use crate::sqlite::InFiles;

/// A database of a test's own, with slaves whose lag the test controls.
///
/// Unless a method says otherwise, it blocks until its effect has happened. It panics with the server's message if that
/// takes more than a minute. The methods work in blocking and asynchronous tests. In the latter, they block one thread
/// for some milliseconds.
#[derive(Debug)]
pub struct Lab<D: Deployment> {
    deployment: D,
}

/// The basis of a [`Lab`]: [servers](OnServers), or files of SQLite.
pub trait Deployment: fmt::Debug + Send + Sync {
    /// The URLs of the master and of the slaves.
    fn urls(&self) -> (&str, &[String]);

    /// Runs SQL at the master, as the application's own role.
    ///
    /// # Errors
    ///
    /// The database's message.
    fn sql(&self, sql: &str) -> Result<String, String>;

    /// Sets how all slaves replay from now on.
    fn replay(&self, replay: Replay);

    /// The position up to which the master has committed.
    fn position(&self) -> String;

    /// True if all slaves have replayed `position`.
    fn has_replayed(&self, position: &str) -> bool;
}

impl Lab<OnServers<Postgres>> {
    /// A lab on PostgreSQL servers, a master and two slaves, that tests of this process use one after the other. There
    /// are as many such sets as tests run at the same time, and four at most. Further tests wait until a lab is
    /// dropped.
    ///
    /// # Panics
    ///
    /// If this test has such a lab already: a second database is [`beside`](Self::beside) it. If other tests have held
    /// all of them for ten minutes.
    pub fn postgres() -> Self {
        Self::shared(Postgres)
    }
}

impl Lab<OnServers<MySql>> {
    /// As [`postgres`](Lab::postgres), on MariaDB.
    pub fn mariadb() -> Self {
        Self::shared(MySql::mariadb())
    }

    /// As [`postgres`](Lab::postgres), on MySQL.
    pub fn mysql() -> Self {
        Self::shared(MySql::oracle())
    }
}

#[cfg(feature = "sqlite")]
impl Lab<InFiles> {
    /// A lab in files of its own: a master, and two slaves that are copies of it.
    pub fn sqlite() -> Self {
        Self { deployment: InFiles::new() }
    }

    /// The file of the `master`, of `slave-1` or of `slave-2`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.deployment.file(name)
    }
}

impl<D: Dbms> Lab<OnServers<D>> {
    /// A lab on servers of this kind that tests of this process share.
    pub fn shared(kind: D) -> Self {
        let (servers, taken) = shared::take(kind);
        Self { deployment: OnServers::new(Held::Shared(servers, Arc::new(taken))) }
    }

    /// A lab on servers that other tests do not use, as [`Servers::start`] starts them, in any number.
    pub fn on(servers: impl Into<Arc<Servers<D>>>) -> Self {
        Self { deployment: OnServers::new(Held::Own(servers.into())) }
    }

    /// Another database on the same servers, for an application that has several. When one of the labs changes replay
    /// or breaks a server, that concerns both.
    pub fn beside(&self) -> Self {
        Self { deployment: OnServers::new(self.deployment.servers.clone()) }
    }

    /// The servers of this lab, to break them: [`kill`](Server::kill), [`freeze`](Server::freeze),
    /// [`promote`](Server::promote). Shared servers are mended before the next test gets them.
    pub fn servers(&self) -> &Servers<D> {
        self.deployment.servers()
    }

    /// The server that takes writes.
    pub fn master(&self) -> &Server<D> {
        &self.servers().master
    }

    /// The `number`th slave, from 1, which the section calls `slave-<number>`.
    ///
    /// # Panics
    ///
    /// If there are fewer.
    #[track_caller]
    pub fn slave(&self, number: usize) -> &Server<D> {
        &self.servers().slaves[number - 1]
    }

    /// The name of its database, on all servers.
    pub fn database(&self) -> &str {
        &self.deployment.database
    }
}

impl<D: Deployment> Lab<D> {
    /// A figment for `rocket::custom`: Rocket's defaults for the debug profile, and the [`section`](Self::section) of
    /// the database `replicated`. If several Rockets have to believe each other's pins, give them the same
    /// `secret_key`.
    pub fn figment(&self) -> Figment {
        Figment::from(rocket::Config::debug_default()).merge(self.section("replicated"))
    }

    /// The section `[global.databases.<name>]`, to be merged into a figment, such as that of `Rocket.toml`:
    /// `rocket::Config::figment().merge(lab.section("blog"))`. The section takes precedence over the figment.
    pub fn section(&self, name: &str) -> Section {
        let (master, slaves) = self.deployment.urls();
        Section::new(name, master, slaves)
    }

    /// The URL of the master's database.
    pub fn master_url(&self) -> &str {
        self.deployment.urls().0
    }

    /// The URLs of the slaves' databases.
    pub fn slave_urls(&self) -> &[String] {
        self.deployment.urls().1
    }

    /// Runs SQL at the master, not through the application but as its role, and returns the rows. Columns are separated
    /// by `|`, on MariaDB and MySQL by a tab.
    ///
    /// # Panics
    ///
    /// If the database refuses.
    #[track_caller]
    pub fn sql(&self, sql: &str) -> String {
        self.deployment.sql(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Stops replay. Slaves have replayed all that was committed before.
    #[track_caller]
    pub fn pause(&self) {
        self.blocking_catch_up();
        self.deployment.replay(Replay { paused: true, ..Replay::default() });
    }

    /// Makes slaves replay each commit at least this much later. MariaDB and MySQL know whole seconds: there it may be
    /// up to two seconds more.
    pub fn lag(&self, lag: Duration) {
        self.deployment.replay(Replay { lag, paused: false });
    }

    /// Ends [`pause`](Self::pause) and [`lag`](Self::lag), and waits until slaves have caught up.
    #[track_caller]
    pub fn resume(&self) {
        self.deployment.replay(Replay::default());
        self.blocking_catch_up();
    }

    /// Waits until every slave has replayed what the master has committed by now. Does not change how slaves replay:
    /// with a [`lag`](Self::lag), the wait takes as long as that.
    ///
    /// # Panics
    ///
    /// If the wait takes longer than a minute, as when replay is [paused](Self::pause).
    pub async fn catch_up(&self) {
        let (position, deadline) = (self.deployment.position(), Instant::now() + PATIENCE);
        while !self.deployment.has_replayed(&position) {
            assert!(
                Instant::now() < deadline,
                "slaves have not caught up within {PATIENCE:?}: is replay paused?"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// As [`catch_up`](Self::catch_up), in tests that are not asynchronous.
    #[track_caller]
    pub fn blocking_catch_up(&self) {
        let position = self.deployment.position();
        wait_for("slaves that have caught up (is replay paused?)", || {
            self.deployment.has_replayed(&position)
        });
    }
}

/// The basis of a [`Lab`] on servers: a database of its own on each of them.
#[derive(Debug)]
pub struct OnServers<D: Dbms> {
    servers: Held<D>,
    database: String,
    master_url: String,
    slave_urls: Vec<String>,
}

#[derive(Clone, Debug)]
enum Held<D: Dbms> {
    Own(Arc<Servers<D>>),
    Shared(
        &'static Servers<D>,
        #[expect(dead_code, reason = "held until the last lab on them is dropped")] Arc<Taken>,
    ),
}

impl<D: Dbms> OnServers<D> {
    fn new(servers: Held<D>) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);

        let database = format!("lab{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut lab = Self { servers, database, master_url: String::new(), slave_urls: Vec::new() };
        (lab.master_url, lab.slave_urls) = lab.servers().database(&lab.database);
        lab
    }

    fn servers(&self) -> &Servers<D> {
        match &self.servers {
            Held::Own(servers) => servers,
            Held::Shared(servers, _) => servers,
        }
    }
}

impl<D: Dbms> Deployment for OnServers<D> {
    fn urls(&self) -> (&str, &[String]) {
        (&self.master_url, &self.slave_urls)
    }

    fn sql(&self, sql: &str) -> Result<String, String> {
        D::sql_as(&self.servers().master, "app", &self.database, sql)
    }

    fn replay(&self, replay: Replay) {
        self.servers().replay(replay).unwrap();
    }

    fn position(&self) -> String {
        D::position(&self.servers().master)
    }

    fn has_replayed(&self, position: &str) -> bool {
        self.servers().slaves.iter().all(|slave| D::has_replayed(slave, position))
    }
}
