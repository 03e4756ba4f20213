//! MySQL's kind of server: MariaDB, or MySQL itself. Both replicate by GTID.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process::{copy_template, find_server_program, output, root, server_program, wait_for};
use crate::server::{Program, Server};
use crate::servers::{Dbms, Replay, Servers};
use crate::session::is_question;

mod mariadb;
mod oracle;

/// MariaDB, or MySQL itself. Both replicate by GTID.
#[derive(Clone, Copy, Debug)]
pub struct MySql {
    software: &'static Software,
    /// The master's number is 1. Its slaves have the next ones.
    server_id: usize,
    address: Ipv4Addr,
}

/// The differences between MariaDB and MySQL.
#[derive(Debug)]
struct Software {
    server: &'static str,
    client: &'static str,
    /// The client's option to connect without TLS. A client that verifies certificates, even on the Unix socket, does
    /// not know the tests' authorities.
    without_tls: &'static str,
    settings: &'static str,
    /// Creates the folder `data` in the folder of the settings and installs a server's data there. Root has no password
    /// where its only host is `localhost`, the Unix socket.
    install: fn(&Path),
    /// The statement that tells a slave its master, at this port.
    replicate: fn(u16) -> String,
    is_replicating: fn(&Server<MySql>) -> bool,
    position: &'static str,
    has_replayed: fn(&str) -> String,
    /// SQL for one transaction of each of this many sources, as in a cluster that has had many masters.
    many_sources: fn(usize) -> String,
    pause_replay: &'static str,
    resume_replay: &'static str,
    /// SQL that turns a slave into a server of its own.
    promote: &'static str,
    stop_replication: &'static str,
    /// SQL that makes a server forget all that it has logged and replayed.
    reset: &'static str,
    replay: fn(Replay) -> String,
}

impl MySql {
    const SERVER_FOLDERS: [&str; 2] = ["/usr/sbin", "/usr/bin"];

    /// MariaDB, 10.5 or newer.
    pub fn mariadb() -> Self {
        Self { software: &mariadb::MARIADB, server_id: 1, address: Ipv4Addr::LOCALHOST }
    }

    /// MySQL, 8.0 or newer.
    pub fn oracle() -> Self {
        Self { software: &oracle::MYSQL, server_id: 1, address: Ipv4Addr::LOCALHOST }
    }

    /// True for MariaDB.
    pub fn is_mariadb(self) -> bool {
        self.software.server == mariadb::MARIADB.server
    }
}

/// Equal if both are the same software: tests share servers of the same software.
impl PartialEq for MySql {
    fn eq(&self, other: &Self) -> bool {
        self.is_mariadb() == other.is_mariadb()
    }
}

/// The installed software; MariaDB, if both or neither are installed.
impl Default for MySql {
    fn default() -> Self {
        let folders = Self::SERVER_FOLDERS.map(PathBuf::from);
        let has = |software: &Software| find_server_program(&folders, software.server).is_some();
        match !has(&mariadb::MARIADB) && has(&oracle::MYSQL) {
            true => Self::oracle(),
            false => Self::mariadb(),
        }
    }
}

impl Program for MySql {
    const NAME: &str = "MySQL";
    const INSTALL: &str = "install the server and the client, of MariaDB as by \
                           `apt install mariadb-server-core mariadb-client-core`, `dnf install mariadb-server` or \
                           `brew install mariadb`, of MySQL as by `brew install mysql` or from https://dev.mysql.com/downloads/mysql/";
    const USER: &str = "nobody";
    const PORT_TAKEN: &str = "Bind on TCP/IP port";
    const STOP: i32 = libc::SIGTERM;
    const END: i32 = libc::SIGKILL;

    fn command(server: &Server<Self>) -> Command {
        let mut command = program(server.program().software.server, server.folder());
        command.arg(option("datadir", server.data()));
        command.arg(option("socket", &socket(server)));
        command.arg(option("tmpdir", server.folder()));
        command.arg(format!("--port={}", server.port()));
        let MySql { server_id, address, .. } = *server.program();
        command.arg(format!("--bind-address={address}"));
        command.arg(format!("--server-id={server_id}"));
        command.arg(format!("--read-only={}", u8::from(server_id > 1)));
        command
    }

    fn answers(server: &Server<Self>) -> bool {
        UnixStream::connect(socket(server)).is_ok() && server.sql_in("mysql", "SELECT 1").is_ok()
    }
}

impl Dbms for MySql {
    const SCHEME: &str = "mysql";
    const ADMIN: &str = "root";

    fn make_template(self, folder: &Path) {
        fs::write(folder.join("my.cnf"), self.software.settings).unwrap();
        (self.software.install)(folder);
    }

    fn start_master(self, folder: &Path) -> Server<Self> {
        fs::write(folder.join("my.cnf"), self.software.settings).unwrap();
        let master = Server::launch(self, copy_template::<Self>(folder, "master"));
        let create = "
            CREATE USER replication IDENTIFIED BY 'secret';
            GRANT REPLICATION SLAVE ON *.* TO replication;
            DROP USER IF EXISTS root@'127.0.0.1';
            CREATE USER root@'127.0.0.1' IDENTIFIED BY 'secret';
            GRANT ALL ON *.* TO root@'127.0.0.1' WITH GRANT OPTION;
            CREATE USER app IDENTIFIED BY 'secret'; ";
        master.sql_in("mysql", &(create.to_owned() + &Self::create_database("app"))).unwrap();
        master
    }

    fn start_slave(master: &Server<Self>, number: usize) -> Server<Self> {
        let kind = Self { server_id: number + 1, ..*master.program() };
        let slave = Server::launch(kind, copy_template::<Self>(master.folder(), &format!("slave{number}")));
        slave.sql_in("mysql", &(kind.software.replicate)(master.port())).unwrap();
        slave
    }

    fn start_slave_at(master: &Server<Self>, address: Ipv4Addr) -> Server<Self> {
        let last = address.octets()[3];
        let kind = Self { server_id: last.into(), address, ..*master.program() };
        let data = copy_template::<Self>(master.folder(), &format!("slave-at-{last}"));
        let slave = Server::launch_on(master.port(), kind, data);
        slave.sql_in("mysql", &(kind.software.replicate)(master.port())).unwrap();
        slave
    }

    fn is_replicating(servers: &Servers<Self>) -> bool {
        servers.slaves.iter().all(servers.master.program().software.is_replicating)
    }

    fn position(master: &Server<Self>) -> String {
        master.sql(master.program().software.position)
    }

    fn has_replayed(slave: &Server<Self>, position: &str) -> bool {
        slave.sql_in("mysql", &(slave.program().software.has_replayed)(position)).unwrap() == "1"
    }

    // Uses a database that a slave has before it has replayed anything.
    fn pause_replay(slave: &Server<Self>) -> Result<(), String> {
        slave.sql_in("mysql", slave.program().software.pause_replay).map(drop)
    }

    fn resume_replay(slave: &Server<Self>) -> Result<(), String> {
        slave.sql_in("mysql", slave.program().software.resume_replay).map(drop)
    }

    fn promote(slave: &Server<Self>) -> Result<(), String> {
        slave.sql_in("mysql", slave.program().software.promote).map(drop)
    }

    fn replay(slave: &Server<Self>, replay: Replay) -> Result<(), String> {
        slave.sql_in("mysql", &(slave.program().software.replay)(replay)).map(drop)
    }

    fn create_database(name: &str) -> String {
        format!("CREATE DATABASE {name}; GRANT ALL ON {name}.* TO app")
    }

    fn sql_as(server: &Server<Self>, role: &str, database: &str, sql: &str) -> Result<String, String> {
        let client = || {
            let mut client = server_program::<Self>(&["/usr/bin".into()], server.program().software.client);
            client.args(["--no-defaults", "--default-character-set=utf8mb4"]).arg(format!("--user={role}"));
            // Root has no password.
            if role != Self::ADMIN {
                client.env("MYSQL_PWD", "secret");
            }
            // A frozen server accepts the connection and then does not answer.
            client.args(["--connect-timeout=10", "--batch", "--raw", "--skip-column-names", "--unbuffered"]);
            client.arg(server.program().software.without_tls);
            client.arg(option("socket", &socket(server)));
            client.args(["-D", database]);
            client
        };
        match role == Self::ADMIN && is_question(sql) {
            true => server.sessions.ask(database, sql, client),
            false => output(client().args(["-e", sql])),
        }
    }
}

impl Servers<MySql> {
    /// Empties the logs, as if nothing had been logged or replayed yet. The data stays.
    ///
    /// # Panics
    ///
    /// If slaves do not replicate.
    pub fn forget_logs(&self) {
        self.wait_caught_up();
        let sql = |server: &Server<MySql>, sql| server.sql_in("mysql", sql).unwrap();
        self.slaves.iter().for_each(|slave| drop(sql(slave, slave.program().software.stop_replication)));
        self.master.reset_log();
        for slave in &self.slaves {
            slave.reset_log();
            slave.resume_replay();
        }
        wait_for("replicating slaves", || MySql::is_replicating(self));
    }
}

impl Server<MySql> {
    /// Empties the server's log. The data stays.
    pub fn reset_log(&self) {
        self.sql_in("mysql", self.program().software.reset).unwrap();
    }

    /// Writes as a hundred sources. A position of so many sources is too large for a pin.
    pub fn write_from_many_sources(&self) {
        self.sql(&(self.program().software.many_sources)(100));
    }

    /// Stops the server, and starts it again with one more line of settings.
    pub fn restart_with(&self, setting: &str) {
        self.stop();
        let file = self.folder().join("my.cnf");
        fs::write(&file, fs::read_to_string(&file).unwrap() + setting + "\n").unwrap();
        self.start();
    }
}

/// A program that reads the settings in the folder.
fn program(name: &str, folder: &Path) -> Command {
    let mut command = server_program::<MySql>(&MySql::SERVER_FOLDERS.map(PathBuf::from), name);
    command.arg(option("defaults-file", &folder.join("my.cnf")));
    if let Some(root) = root() {
        command.arg(option("basedir", &root.join("usr")));
    }
    command
}

fn socket(server: &Server<MySql>) -> PathBuf {
    server.data().with_extension("sock")
}

fn option(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}

/// The lag in seconds, rounded up.
fn whole_seconds(lag: Duration) -> u64 {
    lag.as_secs() + u64::from(lag.subsec_nanos() > 0)
}
