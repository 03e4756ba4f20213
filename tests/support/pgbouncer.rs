//! pgbouncer in front of one PostgreSQL server.

use std::fs;
use std::process::Command;

use tempfile::TempDir;

use rocket_replicated_testing::Server;
use rocket_replicated_testing::postgres::Postgres;
use rocket_replicated_testing::server::{self, Program};

/// When a server connection goes to the next client.
#[derive(Clone, Copy, Debug)]
pub enum PoolMode {
    Session,
    Transaction,
}

pub struct PgBouncer {
    server: Server<Pooler>,
    // Declared after the server, which lives in it and is dropped first.
    _folder: TempDir,
}

impl PgBouncer {
    /// Starts pgbouncer with more lines in the section `[pgbouncer]` of its ini file.
    pub fn start(postgres: &Server<Postgres>, mode: PoolMode, lines: &str) -> Self {
        let folder = server::temporary_folder::<Pooler>();
        let users = folder.path().join("users");
        // The plain password serves for clients, and for PostgreSQL.
        fs::write(&users, "\"app\" \"secret\"\n").unwrap();
        // By default, no connection is opened for 15 s after PostgreSQL has refused one, as it may on a busy machine.
        let ini = format!(
            "[databases]\n\
             * = host=127.0.0.1 port={}\n\
             [pgbouncer]\n\
             listen_addr = 127.0.0.1\n\
             unix_socket_dir =\n\
             auth_type = scram-sha-256\n\
             auth_file = {}\n\
             pool_mode = {}\n\
             server_login_retry = 0.2\n\
             {lines}\n",
            postgres.port(),
            users.display(),
            format!("{mode:?}").to_lowercase(),
        );
        let server = Server::launch(Pooler { ini }, folder.path().join("pgbouncer"));
        Self { server, _folder: folder }
    }

    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// The URL for the ordinary role that owns the database.
    pub fn url(&self) -> String {
        format!("postgres://app:secret@127.0.0.1:{}/app", self.port())
    }
}

fn program() -> Command {
    server::server_program::<Pooler>(&["/usr/sbin".into()], "pgbouncer")
}

/// The major and the minor version.
pub fn version() -> (u32, u32) {
    let version = server::output(program().arg("--version")).unwrap();
    let numbers = version.split_whitespace().nth(1).and_then(|version| {
        let mut numbers = version.split('.').map(|number| number.parse().ok());
        Some((numbers.next()??, numbers.next()??))
    });
    numbers.unwrap_or_else(|| panic!("no version of pgbouncer: {version}"))
}

/// True if pgbouncer keeps the prepared statements of its clients in transaction mode.
/// <https://www.pgbouncer.org/changelog.html#pgbouncer-121x>
pub fn keeps_prepared_statements() -> bool {
    version() >= (1, 21)
}

/// True if a connection that was started as read-only is so in each of its transactions.
/// <https://www.pgbouncer.org/changelog.html>
pub fn keeps_read_only() -> bool {
    version() >= (1, 26)
}

#[derive(Debug)]
struct Pooler {
    ini: String,
}

impl Program for Pooler {
    const NAME: &str = "pgbouncer";
    const INSTALL: &str = "install pgbouncer, as by `apt install pgbouncer`";
    const USER: &str = Postgres::USER;
    const PORT_TAKEN: &str = "Address already in use";
    const STOP: i32 = libc::SIGTERM;
    const END: i32 = libc::SIGTERM;

    fn command(server: &Server<Self>) -> Command {
        let ini = server.data().with_extension("ini");
        fs::write(&ini, format!("{}listen_port = {}\n", server.program().ini, server.port())).unwrap();
        let mut command = program();
        command.arg(ini);
        command
    }

    fn answers(server: &Server<Self>) -> bool {
        server.log().contains("process up")
    }
}
