//! pgpool in front of a PostgreSQL master and its slaves.

use std::fs;
use std::net::TcpStream;
use std::process::Command;

use tempfile::TempDir;

use rocket_replicated_testing::postgres::Postgres;
use rocket_replicated_testing::server::{self, Program};
use rocket_replicated_testing::{Server, Servers};

/// pgpool with one address for all servers. It sends writes to the master, and balances reads.
pub struct PgPool {
    server: Server<Splitter>,
    // Declared after the server, which lives in it and is dropped first.
    _folder: TempDir,
}

impl PgPool {
    /// Starts pgpool. All reads go to the slaves, unless more lines of its configuration say otherwise.
    pub fn start(servers: &Servers<Postgres>, lines: &str) -> Self {
        let folder = server::temporary_folder::<Splitter>();
        let mut config = String::new();
        for (number, server) in servers.all().enumerate() {
            let weight = usize::from(number > 0);
            config += &format!(
                "backend_hostname{number} = '127.0.0.1'\nbackend_port{number} = {}\nbackend_weight{number} = {weight}\n",
                server.port(),
            );
        }
        // The plain password serves for clients, and for PostgreSQL.
        fs::write(folder.path().join("passwords"), "app:TEXTsecret\n").unwrap();
        fs::write(folder.path().join("hba"), "host all all 127.0.0.1/32 scram-sha-256\n").unwrap();
        let server = Server::launch(Splitter { config: config + lines }, folder.path().join("pgpool"));
        Self { server, _folder: folder }
    }

    /// The URL for the ordinary role that owns the database.
    pub fn url(&self) -> String {
        format!("postgres://app:secret@127.0.0.1:{}/app", self.server.port())
    }
}

#[derive(Debug)]
struct Splitter {
    config: String,
}

impl Program for Splitter {
    const NAME: &str = "pgpool";
    const INSTALL: &str = "install pgpool, as by `apt install pgpool2`";
    const USER: &str = Postgres::USER;
    const PORT_TAKEN: &str = "Address already in use";
    const STOP: i32 = libc::SIGINT;
    const END: i32 = libc::SIGINT;

    fn command(server: &Server<Self>) -> Command {
        let folder = server.data().parent().unwrap();
        let place = folder.display();
        let config = format!(
            "backend_clustering_mode = 'streaming_replication'\nlisten_addresses = '127.0.0.1'\nport = {}\n\
             unix_socket_directories = '{place}'\npcp_socket_dir = '{place}'\npcp_listen_addresses = ''\n\
             pid_file_name = '{place}/pid'\nlogdir = '{place}'\nwork_dir = '{place}'\n\
             enable_pool_hba = on\npool_passwd = '{place}/passwords'\nnum_init_children = 16\n\
             sr_check_user = 'app'\nsr_check_password = 'secret'\nsr_check_database = 'app'\nsr_check_period = 1\n{}\n",
            server.port(),
            server.program().config,
        );
        let file = server.data().with_extension("conf");
        fs::write(&file, config).unwrap();
        let mut command = server::server_program::<Self>(&["/usr/sbin".into()], "pgpool");
        command.arg("-n").arg("-f").arg(file).arg("-a").arg(folder.join("hba"));
        command
    }

    fn answers(server: &Server<Self>) -> bool {
        server.log().contains("successfully started")
            && TcpStream::connect(("127.0.0.1", server.port())).is_ok()
    }
}
