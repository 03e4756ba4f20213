//! A Patroni cluster: PostgreSQL servers, any of which may become the master without a word to the application.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rocket::tokio;
use serde::Deserialize;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor, Row};
use tempfile::TempDir;

use rocket_replicated_testing::Server;
use rocket_replicated_testing::postgres::{Postgres, SECRET};
use rocket_replicated_testing::server::{self, Program};

use crate::eventually;

/// The interval of polls. Patroni's interface is slow.
const POLL: Duration = Duration::from_millis(100);

pub struct Patroni {
    nodes: Vec<Arc<Server<Node>>>,
    // Declared after the nodes, which ask the store to the end.
    _store: Server<Etcd>,
    // Declared after the servers, which live in it and are dropped first.
    _folder: TempDir,
}

/// A node's view of itself and the others: <https://patroni.readthedocs.io/en/latest/rest_api.html>
#[derive(Debug, Deserialize)]
struct View {
    members: Vec<Member>,
}

#[derive(Debug, Deserialize)]
struct Member {
    name: String,
    role: String,
    state: String,
}

impl Member {
    fn is_well(&self) -> bool {
        ["running", "streaming"].contains(&self.state.as_str())
    }
}

impl Patroni {
    /// Starts this many nodes, one of which is the master, with the role and the database `app`. Acknowledged commits
    /// survive a failover, because another node has them (`synchronous_mode`).
    pub async fn start(nodes: usize) -> Self {
        let folder = server::temporary_folder::<Node>();
        let place = folder.path().to_owned();
        let start = move || {
            let store = Server::launch(Etcd { peers: free_port() }, place.join("etcd"));
            let start = |number| {
                let node = Node { number, api: free_port(), store: store.port() };
                Arc::new(Server::launch(node, place.join(name(number))))
            };
            let nodes: Vec<_> = (1..=nodes).map(start).collect();
            (store, nodes)
        };
        let (store, nodes) = tokio::task::spawn_blocking(start).await.unwrap();
        let patroni = Self { nodes, _store: store, _folder: folder };
        patroni.settled().await;
        let leader = patroni.leader().await.unwrap();
        let role = format!("CREATE ROLE app LOGIN PASSWORD '{SECRET}'");
        patroni.sql_as(leader, "postgres", "postgres", &role).await;
        patroni.sql_as(leader, "postgres", "postgres", "CREATE DATABASE app OWNER app").await;
        patroni
    }

    /// The URL of a node for the ordinary role that owns the database.
    pub fn url(&self, node: usize) -> String {
        format!("postgres://app:secret@127.0.0.1:{}/app", self.nodes[node].port())
    }

    /// The ports of each node: that of PostgreSQL, and that of Patroni's own interface.
    pub fn ports(&self) -> Vec<(u16, u16)> {
        self.nodes.iter().map(|node| (node.port(), node.program().api)).collect()
    }

    /// The node that leads, if the node itself confirms it.
    pub async fn leader(&self) -> Option<usize> {
        for view in self.views().await {
            let leads = |member: &Member| member.role == "leader" && member.is_well();
            let Some(leader) = view.members.iter().position(leads) else { continue };
            let index =
                self.nodes.iter().position(|node| name(node.program().number) == view.members[leader].name);
            let index = index.unwrap();
            if self.says(index, "primary").await {
                return Some(index);
            }
        }
        None
    }

    /// Waits until all nodes are well, one of them leads, and another one has all of its commits.
    pub async fn settled(&self) {
        eventually("a Patroni cluster that is well", async || {
            tokio::time::sleep(POLL).await;
            let all_well = self.views().await.iter().any(|view| {
                let well = view.members.iter().filter(|member| member.is_well()).count();
                well == self.nodes.len() && view.members.iter().any(|member| member.role == "sync_standby")
            });
            all_well && self.leader().await.is_some()
        })
        .await;
    }

    /// The node that has all commits of the leader, and could take its place.
    pub async fn candidate(&self) -> usize {
        eventually("a synchronous standby", async || {
            tokio::time::sleep(POLL).await;
            for index in 0..self.nodes.len() {
                if self.says(index, "synchronous").await {
                    return Some(index);
                }
            }
            None
        })
        .await
    }

    /// Makes another node lead, in order. Returns once it does.
    pub async fn switch_over(&self) {
        let (leader, candidate) = (self.leader().await.unwrap(), self.candidate().await);
        let body = serde_json::json!({
            "leader": name(self.nodes[leader].program().number),
            "candidate": name(self.nodes[candidate].program().number),
        });
        let url = format!("http://127.0.0.1:{}/switchover", self.nodes[leader].program().api);
        let answer = reqwest::Client::new().post(url).json(&body).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
        self.led_by(|leader| leader == candidate).await;
    }

    /// Waits until another node leads than this one, which was killed.
    pub async fn failed_over(&self, from: usize) {
        self.led_by(|leader| leader != from).await;
    }

    async fn led_by(&self, is_new: impl Fn(usize) -> bool) {
        eventually("the new leader", async || {
            tokio::time::sleep(POLL).await;
            self.leader().await.is_some_and(&is_new)
        })
        .await;
    }

    /// Crashes the node with all its processes.
    pub async fn kill(&self, node: usize) {
        let node = self.nodes[node].clone();
        tokio::task::spawn_blocking(move || {
            node.kill();
            kill_postgres(&node);
        })
        .await
        .unwrap();
    }

    /// Starts a crashed node again. Patroni makes it a standby.
    pub async fn start_again(&self, node: usize) {
        let node = self.nodes[node].clone();
        tokio::task::spawn_blocking(move || node.start()).await.unwrap();
    }

    /// Runs SQL as the role `app`. Returns the first column of each row.
    pub async fn sql(&self, node: usize, sql: &str) -> Vec<String> {
        self.sql_as(node, "app", "app", sql).await
    }

    async fn sql_as(&self, node: usize, role: &str, database: &str, sql: &str) -> Vec<String> {
        let url = format!("postgres://{role}:secret@127.0.0.1:{}/{database}", self.nodes[node].port());
        sql_at(&url, sql).await.unwrap()
    }

    /// The views of the nodes that answer.
    async fn views(&self) -> Vec<View> {
        let mut views = Vec::new();
        for node in &self.nodes {
            let url = format!("http://127.0.0.1:{}/cluster", node.program().api);
            if let Ok(answer) = http().get(url).send().await {
                views.extend(answer.json().await.ok());
            }
        }
        views
    }

    /// True if a node says that it has this role, when asked as load balancers do.
    async fn says(&self, node: usize, role: &str) -> bool {
        let url = format!("http://127.0.0.1:{}/{role}", self.nodes[node].program().api);
        http().get(url).send().await.is_ok_and(|answer| answer.status().is_success())
    }
}

async fn sql_at(url: &str, sql: &str) -> Result<Vec<String>, sqlx::Error> {
    let mut conn = PgConnection::connect(url).await?;
    let rows = conn.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
    let _ = conn.close().await;
    rows.iter().map(|row| row.try_get(0)).collect()
}

/// Waits until this address leads only to servers with this answer to `pg_is_in_recovery()`.
pub async fn leads_to(url: &str, in_recovery: &str) {
    let asked = async || {
        for _ in 0..6 {
            tokio::time::sleep(POLL).await;
            let answer = sql_at(url, "SELECT pg_is_in_recovery()::text").await;
            if !answer.is_ok_and(|answer| answer == [in_recovery]) {
                return false;
            }
        }
        true
    };
    eventually("a balancer that has noticed", asked).await;
}

fn http() -> reqwest::Client {
    reqwest::Client::builder().timeout(Duration::from_secs(2)).build().unwrap()
}

fn name(number: usize) -> String {
    format!("node{number}")
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[derive(Debug)]
struct Etcd {
    peers: u16,
}

impl Program for Etcd {
    const NAME: &str = "etcd";
    const INSTALL: &str = "install etcd, as by `apt install etcd-server`";
    const USER: &str = Postgres::USER;
    const PORT_TAKEN: &str = "address already in use";
    const STOP: i32 = libc::SIGTERM;
    const END: i32 = libc::SIGTERM;

    fn command(server: &Server<Self>) -> Command {
        let url = format!("http://127.0.0.1:{}", server.port());
        let mut command = server::server_program::<Self>(&[], "etcd");
        command.arg("--data-dir").arg(server.data());
        command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
        command.args(["--listen-peer-urls", &format!("http://127.0.0.1:{}", server.program().peers)]);
        command
    }

    fn answers(server: &Server<Self>) -> bool {
        server.log().contains("ready to serve client requests")
    }
}

#[derive(Debug)]
struct Node {
    number: usize,
    api: u16,
    store: u16,
}

impl Program for Node {
    const NAME: &str = "Patroni";
    const INSTALL: &str = "install Patroni and its driver for etcd, as by `apt install patroni python3-etcd`";
    const USER: &str = Postgres::USER;
    const PORT_TAKEN: &str = "Address already in use";
    const STOP: i32 = libc::SIGTERM;
    const END: i32 = libc::SIGTERM;

    fn command(server: &Server<Self>) -> Command {
        let Node { number, api, store } = server.program();
        let (folder, data, port) = (server.folder().display(), server.data().display(), server.port());
        let programs = programs();
        // The shortest times that Patroni allows. All other settings have their defaults.
        let config = format!(
            "scope: lab
name: {name}
restapi: {{listen: '127.0.0.1:{api}', connect_address: '127.0.0.1:{api}'}}
etcd3: {{host: '127.0.0.1:{store}'}}
bootstrap:
  dcs:
    ttl: 20
    loop_wait: 1
    retry_timeout: 3
    synchronous_mode: true
    postgresql:
      use_pg_rewind: true
      parameters: {{max_connections: 60, wal_log_hints: 'on', hot_standby_feedback: 'on'}}
  initdb: [{{encoding: UTF8}}, {{locale: C}}]
postgresql:
  listen: '127.0.0.1:{port}'
  connect_address: '127.0.0.1:{port}'
  data_dir: {data}
  bin_dir: {programs}
  pgpass: {data}.pgpass
  pg_hba: ['local all all trust', 'host all all 127.0.0.1/32 scram-sha-256', 'host replication all 127.0.0.1/32 scram-sha-256']
  authentication:
    superuser: {{username: postgres, password: secret}}
    replication: {{username: replicator, password: secret}}
    rewind: {{username: rewinder, password: secret}}
  parameters: {{unix_socket_directories: '{folder}', fsync: 'off', shared_buffers: 16MB, dynamic_shared_memory_type: mmap}}
",
            name = name(*number),
            programs = programs.display(),
        );
        let file = server.data().with_extension("yml");
        fs::write(&file, config).unwrap();
        let mut command = server::server_program::<Self>(&[], "patroni");
        command.arg(file);
        command
    }

    fn answers(server: &Server<Self>) -> bool {
        TcpStream::connect(("127.0.0.1", server.program().api)).is_ok()
    }

    /// Kills PostgreSQL, which goes on without Patroni.
    fn clear_after_kill(server: &Server<Self>) {
        kill_postgres(server);
    }
}

fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut folders: Vec<_> = versions.map(|version| version.path().join("bin")).collect();
    folders.sort();
    folders.pop().unwrap_or_else(|| panic!("{}", Postgres::INSTALL))
}

/// Kills PostgreSQL, which is not a child of Patroni. PostgreSQL's own children end with it.
fn kill_postgres(node: &Server<Node>) {
    let Some(pid) = postmaster(node.data()) else { return };
    // SAFETY: `kill` has no preconditions.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    server::wait_for("end of the killed PostgreSQL", || !Path::new(&format!("/proc/{pid}")).exists());
}

/// The process id of PostgreSQL, if it runs on this folder.
fn postmaster(data: &Path) -> Option<i32> {
    let file = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let pid: i32 = file.lines().next()?.parse().ok()?;
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    String::from_utf8_lossy(&arguments).contains(data.to_str()?).then_some(pid)
}
