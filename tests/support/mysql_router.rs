//! MySQL Router in front of MySQL servers.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use rocket_replicated_testing::Server;
use rocket_replicated_testing::mysql::MySql;
use rocket_replicated_testing::server::{self, Program};

/// MySQL Router with one address for several servers.
pub struct MySqlRouter {
    server: Server<Router>,
    // Declared after the server, which lives in it and is dropped first.
    _folder: TempDir,
}

impl MySqlRouter {
    /// Leads to the first of the servers that answers.
    pub fn first_available(servers: &[&Server<MySql>]) -> Self {
        Self::launch(servers, "routing_strategy = first-available\n", PASS_THROUGH)
    }

    /// Leads to the servers in turn.
    pub fn round_robin(servers: &[&Server<MySql>]) -> Self {
        Self::launch(servers, "routing_strategy = round-robin\n", PASS_THROUGH)
    }

    /// Leads to the servers in turn, and gives a connection to another client while its own is idle.
    pub fn sharing(servers: &[&Server<MySql>]) -> Self {
        let lines = "routing_strategy = round-robin\nconnection_sharing = 1\nconnection_sharing_delay = 0\n";
        // The certificate that the server made for itself.
        let [certificate, key] =
            ["cert", "key"].map(|file| servers[0].data().join(format!("server-{file}.pem")));
        let (certificate, key) = (certificate.display(), key.display());
        let tls = format!(
            "client_ssl_mode = PREFERRED\nclient_ssl_cert = {certificate}\nclient_ssl_key = {key}\n\
             server_ssl_mode = PREFERRED\n"
        );
        Self::launch(servers, lines, &tls)
    }

    fn launch(servers: &[&Server<MySql>], strategy: &str, tls: &str) -> Self {
        let destinations: Vec<_> =
            servers.iter().map(|server| format!("127.0.0.1:{}", server.port())).collect();
        let route = format!("destinations = {}\n{strategy}{tls}", destinations.join(","));
        let folder = server::temporary_folder::<Router>();
        let server = Server::launch(Router { route }, folder.path().join("router"));
        Self { server, _folder: folder }
    }

    /// The URL for the ordinary role that owns the database.
    pub fn url(&self) -> String {
        format!("mysql://app:secret@127.0.0.1:{}/app", self.server.port())
    }
}

/// The servers' own TLS, without which they accept no passwords.
const PASS_THROUGH: &str = "client_ssl_mode = PASSTHROUGH\nserver_ssl_mode = AS_CLIENT\n";

#[derive(Debug)]
struct Router {
    /// The lines of the configuration with the servers.
    route: String,
}

impl Program for Router {
    const NAME: &str = "MySQL-Router";
    const INSTALL: &str =
        "`scripts/engines --fetch` fetches it: LAB_SERVERS has to name the folder `sid` of those";
    const USER: &str = "nobody";
    const PORT_TAKEN: &str = "Address already in use";
    const STOP: i32 = libc::SIGTERM;
    const END: i32 = libc::SIGTERM;

    fn command(server: &Server<Self>) -> Command {
        let mut command = server::server_program::<Self>(&["/usr/bin".into()], "mysqlrouter");
        let root = Path::new(command.get_program()).ancestors().nth(2).unwrap();
        let config = format!(
            "[DEFAULT]\nlogging_folder =\nplugin_folder = {3}/lib/mysqlrouter/plugin\nruntime_folder = {0}\ndata_folder = {0}\n\
             [connection_pool]\nmax_idle_server_connections = 64\n\
             [routing:mysql]\nbind_address = 127.0.0.1\nbind_port = {1}\nprotocol = classic\n{2}",
            server.folder().display(),
            server.port(),
            server.program().route,
            root.display(),
        );
        let file = server.data().with_extension("conf");
        fs::write(&file, config).unwrap();
        command.arg("-c").arg(file);
        command
    }

    fn answers(server: &Server<Self>) -> bool {
        TcpStream::connect(("127.0.0.1", server.port())).is_ok()
    }
}
