//! MariaDB with replication by GTID.

// Each test file compiles this module for itself and uses a part of it.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cluster::{self, Dbms, Replay};
use super::server::{self, Program, as_user, output};

const SETTINGS: &str = "
[mariadbd]
bind_address = 127.0.0.1
skip_name_resolve
max_connections = 100
character_set_server = utf8mb4
performance_schema = off
innodb_buffer_pool_size = 16M
innodb_log_file_size = 8M
# What is committed is written, so that it survives a killed server, but nothing is synced.
innodb_flush_log_at_trx_commit = 2
innodb_flush_method = nosync
debug_no_sync
# Ends on Ctrl-C, which every process of the terminal gets.
debug_gdb
log_bin = binlog
relay_log = relay
log_slave_updates
gtid_strict_mode = on
";

/// One whose `server_id` is that of the master (1), or the next ones, of its slaves.
pub struct MariaDb {
    server_id: usize,
}

pub type Server = server::Server<MariaDb>;

pub type Cluster = cluster::Cluster<MariaDb>;

impl Program for MariaDb {
    const NAME: &str = "MariaDB";
    const USER: &str = "nobody";
    const PORT_TAKEN: &str = "Bind on TCP/IP port";
    const STOP: i32 = libc::SIGTERM;
    const END: i32 = libc::SIGKILL;

    fn command(server: &Server) -> Command {
        let mut command = program("mariadbd", server.folder());
        command.arg(option("datadir", &server.data));
        command.arg(option("socket", &socket(server)));
        command.arg(option("tmpdir", server.folder()));
        command.arg(format!("--port={}", server.port()));
        let server_id = server.program.server_id;
        command.arg(format!("--server-id={server_id}"));
        command.arg(format!("--read-only={}", u8::from(server_id > 1)));
        command
    }

    fn answers(server: &Server) -> bool {
        server.sql_in("mysql", "SELECT 1").is_ok()
    }
}

impl Dbms for MariaDb {
    const SCHEME: &str = "mysql";
    const ADMIN: &str = "root";

    fn start_master(folder: &Path) -> Server {
        fs::write(folder.join("my.cnf"), SETTINGS).unwrap();
        let mut install = program("mariadb-install-db", folder);
        install.arg(option("datadir", &folder.join("fresh")));
        // Root has no password where only `localhost`, the Unix socket, is its host.
        install.args(["--auth-root-authentication-method=normal", "--skip-test-db"]);
        // Two at a time would be in each other's way elsewhere.
        install.env("TMPDIR", folder);
        as_user(&mut install, Self::USER, folder);
        output(&mut install).unwrap();

        let master = start(folder, "master", 1);
        let create = "
            CREATE USER replication IDENTIFIED BY 'secret';
            GRANT REPLICATION SLAVE ON *.* TO replication;
            CREATE OR REPLACE USER root@'127.0.0.1' IDENTIFIED BY 'secret';
            GRANT ALL ON *.* TO root@'127.0.0.1' WITH GRANT OPTION;
            CREATE USER app IDENTIFIED BY 'secret'; ";
        master.sql_in("mysql", &(create.to_owned() + &Self::create_database("app"))).unwrap();
        master
    }

    fn start_slave(master: &Server, number: usize) -> Server {
        let slave = start(master.folder(), &format!("slave{number}"), number + 1);
        let port = master.port();
        let replicate = format!(
            "CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = {port},
             MASTER_USER = 'replication', MASTER_PASSWORD = 'secret',
             MASTER_CONNECT_RETRY = 1, MASTER_USE_GTID = slave_pos; START SLAVE"
        );
        slave.sql_in("mysql", &replicate).unwrap();
        slave
    }

    fn is_replicating(cluster: &Cluster) -> bool {
        let running = "SHOW STATUS LIKE 'Slave_running'";
        cluster.slaves.iter().all(|slave| slave.sql_in("mysql", running).unwrap().ends_with("ON"))
    }

    fn position(master: &Server) -> String {
        master.sql("SELECT @@gtid_binlog_pos")
    }

    fn has_replayed(slave: &Server, position: &str) -> bool {
        slave.sql_in("mysql", &format!("SELECT MASTER_GTID_WAIT('{position}', 0)")).unwrap() == "0"
    }

    fn pause_replay(slave: &Server) {
        slave.sql("STOP SLAVE SQL_THREAD");
    }

    fn resume_replay(slave: &Server) {
        slave.sql("START SLAVE");
    }

    fn replay(slave: &Server, Replay { lag, paused }: Replay) -> Result<(), String> {
        let threads = if paused { "IO_THREAD" } else { "" };
        let sql = format!("STOP SLAVE; CHANGE MASTER TO MASTER_DELAY = {lag}; START SLAVE {threads}");
        slave.try_sql(&sql).map(drop)
    }

    fn create_database(name: &str) -> String {
        format!("CREATE DATABASE {name}; GRANT ALL ON {name}.* TO app")
    }

    fn sql_in(server: &Server, database: &str, sql: &str) -> Result<String, String> {
        let mut client = server::program(None, "mariadb");
        client.args(["--no-defaults", "--user=root", "--default-character-set=utf8mb4"]);
        // A frozen server takes the connection and then says nothing.
        client.args(["--connect-timeout=10", "--batch", "--raw", "--skip-column-names"]);
        client.arg(option("socket", &socket(server)));
        output(client.args(["-D", database, "-e", sql]))
    }
}

/// On a copy of the fresh data.
fn start(folder: &Path, name: &str, server_id: usize) -> Server {
    let mut copy = server::program(None, "cp");
    as_user(&mut copy, MariaDb::USER, folder);
    output(copy.args(["-R", "fresh", name])).unwrap();
    Server::launch(MariaDb { server_id }, folder.join(name))
}

/// With the settings in the folder.
fn program(name: &str, folder: &Path) -> Command {
    let mut command = server::program(None, name);
    command.arg(option("defaults-file", &folder.join("my.cnf")));
    command
}

fn socket(server: &Server) -> PathBuf {
    server.data.with_extension("sock")
}

fn option(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}
