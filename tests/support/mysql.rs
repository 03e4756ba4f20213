//! MySQL's kind of server: MariaDB, or MySQL itself if the engine under test has it. Both replicate by GTID.

// Each test file compiles this module for itself and uses a part of it.
#![allow(dead_code)]

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cluster::{self, Dbms, Replay};
use super::server::{self, Program, as_user, output};

mod mariadb;
mod oracle;

/// One whose `server_id` is that of the master (1), or the next ones, of its slaves.
pub struct MySql {
    server_id: usize,
    address: Ipv4Addr,
}

pub type Server = server::Server<MySql>;

pub type Cluster = cluster::Cluster<MySql>;

/// What MariaDB and MySQL do in ways of their own.
struct Software {
    server: &'static str,
    client: &'static str,
    /// For the client. Where it would verify a certificate, even on the Unix socket, it does not know our authorities.
    without_tls: &'static str,
    settings: &'static str,
    /// Makes the folder `fresh` for data in the folder of the settings. Root has no password where only
    /// `localhost`, the Unix socket, is its host.
    install: fn(&Path),
    /// What a slave is told of its master at this port.
    replicate: fn(u16) -> String,
    is_replicating: fn(&Server) -> bool,
    position: &'static str,
    has_replayed: fn(&str) -> String,
    /// One transaction of each of so many sources, as of a cluster that has had many masters.
    many_sources: fn(usize) -> String,
    pause_replay: &'static str,
    resume_replay: &'static str,
    /// Makes a server of its own of a slave.
    promote: &'static str,
    stop_replication: &'static str,
    /// Has a server forget that it has ever logged or replayed anything.
    reset: &'static str,
    replay: fn(Replay) -> String,
}

fn software() -> &'static Software {
    if is_mariadb() { &mariadb::MARIADB } else { &oracle::MYSQL }
}

/// What the system has is MariaDB.
pub fn is_mariadb() -> bool {
    server::engine().is_none_or(|engine| engine.join("usr/sbin/mariadbd").is_file())
}

impl Program for MySql {
    const NAME: &str = "MySQL";
    const USER: &str = "nobody";
    const PORT_TAKEN: &str = "Bind on TCP/IP port";
    const STOP: i32 = libc::SIGTERM;
    const END: i32 = libc::SIGKILL;

    fn command(server: &Server) -> Command {
        let mut command = program(software().server, server.folder());
        command.arg(option("datadir", &server.data));
        command.arg(option("socket", &socket(server)));
        command.arg(option("tmpdir", server.folder()));
        command.arg(format!("--port={}", server.port()));
        let MySql { server_id, address } = server.program;
        command.arg(format!("--bind-address={address}"));
        command.arg(format!("--server-id={server_id}"));
        command.arg(format!("--read-only={}", u8::from(server_id > 1)));
        command
    }

    fn answers(server: &Server) -> bool {
        server.sql_in("mysql", "SELECT 1").is_ok()
    }
}

impl Dbms for MySql {
    const SCHEME: &str = "mysql";
    const ADMIN: &str = "root";

    fn start_master(folder: &Path) -> Server {
        fs::write(folder.join("my.cnf"), software().settings).unwrap();
        (software().install)(folder);
        let master = start(folder, "master", 1);
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

    fn start_slave(master: &Server, number: usize) -> Server {
        let slave = start(master.folder(), &format!("slave{number}"), number + 1);
        slave.sql_in("mysql", &(software().replicate)(master.port())).unwrap();
        slave
    }

    fn is_replicating(cluster: &Cluster) -> bool {
        cluster.slaves.iter().all(software().is_replicating)
    }

    fn position(master: &Server) -> String {
        master.sql(software().position)
    }

    fn has_replayed(slave: &Server, position: &str) -> bool {
        slave.sql_in("mysql", &(software().has_replayed)(position)).unwrap() == "1"
    }

    // In a database that a slave has before it has replayed anything.
    fn pause_replay(slave: &Server) {
        slave.sql_in("mysql", software().pause_replay).unwrap();
    }

    fn resume_replay(slave: &Server) {
        slave.sql_in("mysql", software().resume_replay).unwrap();
    }

    fn promote(slave: &Server) -> Result<(), String> {
        slave.sql_in("mysql", software().promote).map(drop)
    }

    fn replay(slave: &Server, replay: Replay) -> Result<(), String> {
        slave.sql_in("mysql", &(software().replay)(replay)).map(drop)
    }

    fn create_database(name: &str) -> String {
        format!("CREATE DATABASE {name}; GRANT ALL ON {name}.* TO app")
    }

    fn sql_in(server: &Server, database: &str, sql: &str) -> Result<String, String> {
        let mut client = server::engine_program(&["usr/bin"], software().client);
        client.args(["--no-defaults", "--user=root", "--default-character-set=utf8mb4"]);
        // A frozen server takes the connection and then says nothing.
        client.args([
            "--connect-timeout=10",
            "--batch",
            "--raw",
            "--skip-column-names",
            software().without_tls,
        ]);
        client.arg(option("socket", &socket(server)));
        output(client.args(["-D", database, "-e", sql]))
    }
}

impl Cluster {
    /// As if nothing had been logged or replayed yet, whatever data there is.
    pub fn forget_logs(&self) {
        self.wait_caught_up();
        let sql = |server: &Server, sql| server.sql_in("mysql", sql).unwrap();
        self.slaves.iter().for_each(|slave| drop(sql(slave, software().stop_replication)));
        self.master.reset_log();
        for slave in &self.slaves {
            slave.reset_log();
            sql(slave, software().resume_replay);
        }
        server::wait_for("replicating slaves", || MySql::is_replicating(self));
    }
}

impl Server {
    /// A slave of this master at another address, and on the same port.
    pub fn start_slave_at(&self, address: Ipv4Addr) -> Server {
        let last = address.octets()[3];
        let data = copy_fresh(self.folder(), &format!("slave-at-{last}"));
        let program = MySql { server_id: last.into(), address };
        let slave = server::Server::launch_on(self.port(), program, data);
        slave.sql_in("mysql", &(software().replicate)(self.port())).unwrap();
        slave
    }

    /// From now on it has logged nothing, whatever data it has.
    pub fn reset_log(&self) {
        self.sql_in("mysql", software().reset).unwrap();
    }

    /// A position of so many sources is too large for a pin.
    pub fn write_from_many_sources(&self) {
        self.sql(&(software().many_sources)(100));
    }

    /// Stops, and starts again with one more line of settings.
    pub fn restart_with(&self, setting: &str) {
        self.stop();
        let file = self.folder().join("my.cnf");
        fs::write(&file, fs::read_to_string(&file).unwrap() + setting + "\n").unwrap();
        self.start();
    }
}

/// On a copy of the fresh data.
fn start(folder: &Path, name: &str, server_id: usize) -> Server {
    let program = MySql { server_id, address: Ipv4Addr::LOCALHOST };
    Server::launch(program, copy_fresh(folder, name))
}

fn copy_fresh(folder: &Path, name: &str) -> PathBuf {
    let mut copy = server::program(None, "cp");
    as_user(&mut copy, MySql::USER, folder);
    output(copy.args(["-R", "fresh", name])).unwrap();
    folder.join(name)
}

/// With the settings in the folder.
fn program(name: &str, folder: &Path) -> Command {
    let mut command = server::engine_program(&["usr/sbin", "usr/bin"], name);
    command.arg(option("defaults-file", &folder.join("my.cnf")));
    if let Some(engine) = server::engine() {
        command.arg(option("basedir", &engine.join("usr")));
    }
    command
}

fn socket(server: &Server) -> PathBuf {
    server.data.with_extension("sock")
}

fn option(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}
