//! PostgreSQL (14 or newer) with streaming replication.

// Each test file compiles this module for itself and uses a part of it.
#![allow(dead_code)]

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::cluster::{self, Dbms, Replay};
use super::server::{self, Program, as_user, output, wait_for};

const SETTINGS: &str = "
listen_addresses = '127.0.0.1'
max_connections = 60
shared_buffers = 16MB
fsync = off
wal_level = replica
max_wal_senders = 20
max_replication_slots = 10
# A base backup makes its slot late: another one's checkpoint must not remove its WAL.
wal_keep_size = 64MB
wal_retrieve_retry_interval = 100ms
hot_standby = on
hot_standby_feedback = off
max_standby_streaming_delay = 30s
# Its clean-up is replayed by the standbys, where it may cancel queries.
autovacuum = off
";

pub struct Postgres;

/// A postmaster and its backends.
pub type Server = server::Server<Postgres>;

pub type Cluster = cluster::Cluster<Postgres>;

impl Program for Postgres {
    const NAME: &str = "PostgreSQL";
    const USER: &str = "postgres";
    const PORT_TAKEN: &str = "could not create any TCP/IP sockets";
    const STOP: i32 = libc::SIGINT;
    const END: i32 = libc::SIGQUIT;

    fn command(server: &Server) -> Command {
        let mut command = program("postgres");
        command.args(["-p", &server.port().to_string(), "-D"]).arg(&server.data);
        command.arg("-k").arg(server.folder());
        command
    }

    fn answers(server: &Server) -> bool {
        output(&mut client(server, "pg_isready")).is_ok()
    }
}

impl Dbms for Postgres {
    const SCHEME: &str = "postgres";
    const ADMIN: &str = "postgres";

    fn start_master(folder: &Path) -> Server {
        let data = folder.join("master");
        let mut initdb = program("initdb");
        initdb.args(["--no-sync", "--username=postgres", "--wal-segsize=1"]);
        initdb.args(["--auth-local=trust", "--auth-host=scram-sha-256"]);
        initdb.args(["--encoding=UTF8", "--locale=C"]);
        as_user(&mut initdb, Self::USER, folder);
        output(initdb.arg("-D").arg(&data)).unwrap();
        let config = data.join("postgresql.conf");
        fs::write(&config, fs::read_to_string(&config).unwrap() + SETTINGS).unwrap();

        let master = Server::launch(Self, data);
        for sql in [
            "ALTER ROLE postgres PASSWORD 'secret'",
            "CREATE ROLE app LOGIN PASSWORD 'secret'",
            "CREATE DATABASE app OWNER app",
        ] {
            master.psql("postgres", sql).unwrap();
        }
        master
    }

    fn start_slave(master: &Server, number: usize) -> Server {
        let name = format!("slave{number}");
        let data = master.folder().join(&name);
        let mut copy = client(master, "pg_basebackup");
        // With a slot, WAL is kept for a slave that is away.
        copy.args(["-R", "-c", "fast", "--no-sync", "-C", "-S", &name]);
        as_user(&mut copy, Self::USER, master.folder());
        output(copy.arg("-D").arg(&data)).unwrap();
        Server::launch(Self, data)
    }

    fn is_replicating(cluster: &Cluster) -> bool {
        let streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        cluster.master.sql(streaming) == cluster.slaves.len().to_string()
    }

    fn position(master: &Server) -> String {
        // Not the written position: what is not flushed is not sent.
        master.sql("SELECT pg_current_wal_flush_lsn()")
    }

    fn has_replayed(slave: &Server, position: &str) -> bool {
        slave.sql(&format!("SELECT pg_last_wal_replay_lsn() >= '{position}'")) == "t"
    }

    fn pause_replay(slave: &Server) {
        slave.sql("SELECT pg_wal_replay_pause()");
        let state = "SELECT pg_get_wal_replay_pause_state()";
        wait_for("paused replay", || slave.sql(state) == "paused");
    }

    fn resume_replay(slave: &Server) {
        slave.sql("SELECT pg_wal_replay_resume()");
    }

    fn promote(slave: &Server) -> Result<(), String> {
        slave.try_sql("SELECT pg_promote()").map(drop)
    }

    fn replay(slave: &Server, Replay { lag, paused }: Replay) -> Result<(), String> {
        let verb = if paused { "pause" } else { "resume" };
        // One by one: together they would be a transaction, which takes no ALTER SYSTEM.
        slave.try_sql(&format!("ALTER SYSTEM SET recovery_min_apply_delay = '{lag} s'"))?;
        slave.try_sql("SELECT pg_reload_conf()")?;
        slave.try_sql(&format!("SELECT pg_wal_replay_{verb}()"))?;
        Ok(())
    }

    fn create_database(name: &str) -> String {
        format!("CREATE DATABASE {name} OWNER app")
    }

    fn sql_in(server: &Server, database: &str, sql: &str) -> Result<String, String> {
        let mut psql = client(server, "psql");
        // A frozen server takes the connection and then says nothing.
        psql.env("PGCONNECT_TIMEOUT", "10").args(["-XAtq", "-v", "ON_ERROR_STOP=1"]);
        output(psql.args(["-d", database, "-c", sql]))
    }
}

impl Server {
    /// A slave of this master at another address, and on the same port.
    pub fn start_slave_at(&self, address: Ipv4Addr) -> Server {
        let folder = self.folder().join(address.to_string());
        let mut mkdir = server::program(None, "mkdir");
        as_user(&mut mkdir, Postgres::USER, self.folder());
        output(mkdir.arg(&folder)).unwrap();
        let data = folder.join("data");
        let mut copy = client(self, "pg_basebackup");
        let slot = address.to_string().replace('.', "_");
        copy.args(["-R", "-c", "fast", "--no-sync", "-C", "-S", &slot]);
        as_user(&mut copy, Postgres::USER, &folder);
        output(copy.arg("-D").arg(&data)).unwrap();
        let config = data.join("postgresql.conf");
        let listen = format!("\nlisten_addresses = '{address}'\n");
        fs::write(&config, fs::read_to_string(&config).unwrap() + &listen).unwrap();
        server::Server::launch_on(self.port(), Postgres, data)
    }

    pub fn psql(&self, database: &str, sql: &str) -> Result<String, String> {
        self.sql_in(database, sql)
    }
}

/// A client program on the Unix socket, which trusts whoever can reach it.
pub fn client(server: &Server, name: &str) -> Command {
    let mut command = program(name);
    command.env("PGHOST", server.folder()).env("PGPORT", server.port().to_string());
    command.env("PGUSER", "postgres");
    command
}

/// Debian keeps them outside of PATH, one folder for each version.
fn program(name: &str) -> Command {
    static DEBIAN: OnceLock<Option<PathBuf>> = OnceLock::new();
    let debian = DEBIAN.get_or_init(|| {
        let root = server::engine().unwrap_or(Path::new("/"));
        let versions = fs::read_dir(root.join("usr/lib/postgresql")).ok()?.flatten();
        let bin = versions.map(|version| version.path().join("bin"));
        let number = |bin: &PathBuf| bin.parent()?.file_name()?.to_str()?.parse::<u32>().ok();
        bin.max_by_key(number)
    });
    assert!(debian.is_some() || server::engine().is_none(), "PostgreSQL is missing in the engine's folder");
    server::program(debian.as_deref(), name)
}
