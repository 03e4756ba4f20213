//! HAProxy in front of PostgreSQL servers.

use std::fs;
use std::net::TcpStream;
use std::process::Command;

use tempfile::TempDir;

use rocket_replicated_testing::Server;
use rocket_replicated_testing::postgres::Postgres;
use rocket_replicated_testing::server::{self, Program};

use crate::patroni::Patroni;

/// HAProxy with one address for several servers.
pub struct HaProxy {
    server: Server<Balancer>,
    // Declared after the server, which lives in it and is dropped first.
    _folder: TempDir,
}

impl HaProxy {
    /// Leads to the servers that answer.
    pub fn start(servers: &[&Server<Postgres>]) -> Self {
        let mut backend = "  balance roundrobin\n  option redispatch\n  option pgsql-check user app\n  \
             default-server check inter 200ms fall 2 rise 1 on-marked-down shutdown-sessions\n"
            .to_owned();
        for port in servers.iter().map(|server| server.port()) {
            backend += &format!("  server at-{port} 127.0.0.1:{port}\n");
        }
        Self::launch(backend)
    }

    /// Leads to the nodes of a Patroni cluster that say they are `primary`, or `replica`, with Patroni's own template:
    /// <https://github.com/patroni/patroni/blob/master/haproxy.cfg>
    pub fn of_patroni(patroni: &Patroni, role: &str) -> Self {
        let mut backend = format!(
            "  option httpchk OPTIONS /{role}\n  http-check expect status 200\n  \
             default-server inter 3s fall 3 rise 2 on-marked-down shutdown-sessions\n"
        );
        for (port, api) in patroni.ports() {
            backend += &format!("  server at-{port} 127.0.0.1:{port} maxconn 100 check port {api}\n");
        }
        Self::launch(backend)
    }

    fn launch(backend: String) -> Self {
        let folder = server::temporary_folder::<Balancer>();
        let server = Server::launch(Balancer { backend }, folder.path().join("haproxy"));
        Self { server, _folder: folder }
    }

    /// The URL for the ordinary role that owns the database.
    pub fn url(&self) -> String {
        format!("postgres://app:secret@127.0.0.1:{}/app", self.server.port())
    }
}

#[derive(Debug)]
struct Balancer {
    /// The lines of the configuration with the servers and their checks.
    backend: String,
}

impl Program for Balancer {
    const NAME: &str = "HAProxy";
    const INSTALL: &str = "install HAProxy, as by `apt install haproxy`";
    const USER: &str = "nobody";
    const PORT_TAKEN: &str = "Address already in use";
    const STOP: i32 = libc::SIGTERM;
    const END: i32 = libc::SIGTERM;

    fn command(server: &Server<Self>) -> Command {
        let config = format!(
            "defaults\n  mode tcp\n  timeout connect 1s\n  timeout client 1h\n  timeout server 1h\n\
             listen postgres\n  bind 127.0.0.1:{}\n{}",
            server.port(),
            server.program().backend,
        );
        let file = server.data().with_extension("cfg");
        fs::write(&file, config).unwrap();
        let mut command = server::server_program::<Self>(&["/usr/sbin".into()], "haproxy");
        command.arg("-db").arg("-f").arg(file);
        command
    }

    fn answers(server: &Server<Self>) -> bool {
        TcpStream::connect(("127.0.0.1", server.port())).is_ok()
    }
}
