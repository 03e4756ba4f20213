//! PostgreSQL (14 or newer) with streaming replication.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::process::{self, as_user, copy_template, output, server_program, system_program, wait_for};
use crate::server::{Program, Server};
use crate::servers::{Dbms, Replay, Servers};
use crate::session::is_question;

/// The password `secret`, hashed once instead of 4096 times. Each connection repeats the hashing, and programs compiled
/// without optimisation would spend an eighth of their tests on it.
#[doc(hidden)]
pub const SECRET: &str = "SCRAM-SHA-256$1:cm9ja2V0X3JlcGxpY2F0ZQ==$ayT/3rWJV07bR+1GjscFiGOfvWKWo7uqoGKTytMJmws=:\
                      0Ahgz9+SVWdyvUkme0MhN2iCvar1m5pVDChX5Mpuvuc=";

const SETTINGS: &str = "
listen_addresses = '127.0.0.1'
max_connections = 60
shared_buffers = 16MB
# In its folder, with which it is removed when the server was killed.
dynamic_shared_memory_type = mmap
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

/// PostgreSQL, 14 or newer, with streaming replication.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Postgres;

impl Program for Postgres {
    const NAME: &str = "PostgreSQL";
    const INSTALL: &str = "install PostgreSQL's server and client, as by `apt install postgresql`, \
                           `dnf install postgresql-server` or `brew install postgresql`";
    const USER: &str = "postgres";
    const PORT_TAKEN: &str = "could not create any TCP/IP sockets";
    const STOP: i32 = libc::SIGINT;
    const END: i32 = libc::SIGQUIT;

    fn command(server: &Server<Self>) -> Command {
        let mut command = program("postgres");
        command.args(["-p", &server.port().to_string(), "-D"]).arg(server.data());
        command.arg("-k").arg(server.folder());
        command
    }

    fn answers(server: &Server<Self>) -> bool {
        let socket = server.folder().join(format!(".s.PGSQL.{}", server.port()));
        UnixStream::connect(socket).is_ok() && output(&mut client(server, "pg_isready")).is_ok()
    }

    /// Removes the shared memory segment, by which PostgreSQL would notice another server on the same data:
    /// <https://www.postgresql.org/docs/current/kernel-resources.html#SYSVIPC>
    fn clear_after_kill(server: &Server<Self>) {
        // The seventh line holds the key and the number of the segment:
        // <https://www.postgresql.org/docs/current/storage-file-layout.html>
        let file = fs::read_to_string(server.data().join("postmaster.pid")).unwrap_or_default();
        let id = file.lines().nth(6).and_then(|segment| segment.split_whitespace().nth(1));
        if let Some(id) = id.and_then(|id| id.parse().ok()) {
            // SAFETY: this command uses no buffer.
            unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
        }
    }
}

impl Dbms for Postgres {
    const SCHEME: &str = "postgres";
    const ADMIN: &str = "postgres";

    fn make_template(self, folder: &Path) {
        let data = folder.join("data");
        let mut initdb = program("initdb");
        initdb.args(["--no-sync", "--username=postgres", "--wal-segsize=1"]);
        initdb.args(["--auth-local=trust", "--auth-host=scram-sha-256"]);
        initdb.args(["--encoding=UTF8", "--locale=C"]);
        as_user(&mut initdb, Self::USER, folder);
        output(initdb.arg("-D").arg(&data)).unwrap();
        append(&data.join("postgresql.conf"), SETTINGS);

        let server = Server::launch(self, data);
        for sql in [
            &format!("ALTER ROLE postgres PASSWORD '{SECRET}'"),
            &format!("CREATE ROLE app LOGIN PASSWORD '{SECRET}'"),
            "CREATE DATABASE app OWNER app",
        ] {
            server.sql_in("postgres", sql).unwrap();
        }
        // The data of `server` is a base backup now.
        server.stop();
    }

    fn start_master(self, folder: &Path) -> Server<Self> {
        Server::launch(self, copy_template::<Self>(folder, "master"))
    }

    fn start_slave(master: &Server<Self>, number: usize) -> Server<Self> {
        let name = format!("slave{number}");
        let data = copy_template::<Self>(master.folder(), &name);
        // With a slot, WAL is kept for a slave that is away.
        let slot = format!("SELECT pg_create_physical_replication_slot('{name}', true)");
        master.sql_in("postgres", &slot).unwrap();
        let (host, port) = (master.folder().display(), master.port());
        let source = format!(
            "primary_conninfo = 'host=''{host}'' port={port} user=postgres'\nprimary_slot_name = '{name}'\n"
        );
        append(&data.join("postgresql.auto.conf"), &source);
        fs::write(data.join("standby.signal"), "").unwrap();
        Server::launch(Self, data)
    }

    fn start_slave_at(master: &Server<Self>, address: Ipv4Addr) -> Server<Self> {
        let folder = master.folder().join(address.to_string());
        let mut mkdir = system_program("mkdir");
        as_user(&mut mkdir, Postgres::USER, master.folder());
        output(mkdir.arg(&folder)).unwrap();
        let data = folder.join("data");
        let mut copy = client(master, "pg_basebackup");
        let slot = address.to_string().replace('.', "_");
        copy.args(["-R", "-c", "fast", "--no-sync", "-C", "-S", &slot]);
        as_user(&mut copy, Postgres::USER, &folder);
        output(copy.arg("-D").arg(&data)).unwrap();
        append(&data.join("postgresql.conf"), &format!("\nlisten_addresses = '{address}'\n"));
        Server::launch_on(master.port(), Self, data)
    }

    fn is_replicating(servers: &Servers<Self>) -> bool {
        let streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        servers.master.sql(streaming) == servers.slaves.len().to_string()
    }

    fn position(master: &Server<Self>) -> String {
        // Not the written position: WAL is sent only after its flush.
        master.sql("SELECT pg_current_wal_flush_lsn()")
    }

    fn has_replayed(slave: &Server<Self>, position: &str) -> bool {
        slave.sql(&format!("SELECT pg_last_wal_replay_lsn() >= '{position}'")) == "t"
    }

    fn pause_replay(slave: &Server<Self>) -> Result<(), String> {
        slave.try_sql("SELECT pg_wal_replay_pause()")?;
        let state = "SELECT pg_get_wal_replay_pause_state()";
        wait_for("paused replay", || slave.sql(state) == "paused");
        Ok(())
    }

    fn resume_replay(slave: &Server<Self>) -> Result<(), String> {
        slave.try_sql("SELECT pg_wal_replay_resume()").map(drop)
    }

    fn promote(slave: &Server<Self>) -> Result<(), String> {
        slave.try_sql("SELECT pg_promote()").map(drop)
    }

    fn replay(slave: &Server<Self>, Replay { lag, paused }: Replay) -> Result<(), String> {
        // One by one: sent together they would be one transaction, which refuses ALTER SYSTEM.
        slave.try_sql(&format!("ALTER SYSTEM SET recovery_min_apply_delay = '{} ms'", lag.as_millis()))?;
        slave.try_sql("SELECT pg_reload_conf()")?;
        if paused { Self::pause_replay(slave) } else { Self::resume_replay(slave) }
    }

    fn create_database(name: &str) -> String {
        format!("CREATE DATABASE {name} OWNER app")
    }

    fn sql_as(server: &Server<Self>, role: &str, database: &str, sql: &str) -> Result<String, String> {
        let psql = || {
            let mut psql = client(server, "psql");
            // A frozen server accepts the connection and then does not answer.
            psql.env("PGUSER", role).env("PGCONNECT_TIMEOUT", "10").args(["-XAtq", "-v", "ON_ERROR_STOP=1"]);
            psql.args(["-d", database]);
            psql
        };
        match role == Self::ADMIN && is_question(sql) {
            true => server.sessions.ask(database, sql, psql),
            false => output(psql().args(["-c", sql])),
        }
    }
}

fn append(file: &Path, text: &str) {
    fs::write(file, fs::read_to_string(file).unwrap() + text).unwrap();
}

/// A client program on the Unix socket, which needs no password.
pub fn client(server: &Server<Postgres>, name: &str) -> Command {
    let mut command = program(name);
    command.env("PGHOST", server.folder()).env("PGPORT", server.port().to_string());
    command.env("PGUSER", "postgres");
    command
}

/// Debian keeps the programs outside of PATH, in one folder for each version.
fn program(name: &str) -> Command {
    static DEBIAN: OnceLock<Option<PathBuf>> = OnceLock::new();
    let debian = DEBIAN.get_or_init(|| {
        let versions = Path::new("/usr/lib/postgresql");
        let there = process::root().unwrap_or(Path::new("/")).join("usr/lib/postgresql");
        let newest = fs::read_dir(there)
            .ok()?
            .flatten()
            .filter_map(|version| version.file_name().to_str()?.parse::<u32>().ok())
            .max()?;
        Some(versions.join(newest.to_string()).join("bin"))
    });
    server_program::<Postgres>(debian.as_slice(), name)
}
