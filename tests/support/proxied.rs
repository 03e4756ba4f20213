//! Checks of an application that hold whatever is in front of its servers: reads, writes, pins and faults.

use std::sync::Arc;

use rocket::futures::future::join_all;
use rocket::http::{Cookie, Status};
use rocket::local::asynchronous::Client;
use rocket::{get, post, routes, tokio};
use rocket_replicated::postgres::{Replicated, ReplicatedDb};
use rocket_replicated::{Cluster, Error};

use crate::{eventually, logbook, rocket_over};
use rocket_replicated_testing::Servers;
use rocket_replicated_testing::postgres::Postgres;

/// The number of readers at the same time.
const READERS: usize = 4;

#[get("/")]
async fn count(db: ReplicatedDb) -> Result<String, Error> {
    // Long enough to be under way when a fault happens.
    let count: i64 =
        sqlx::query_scalar("SELECT count(*) FROM written WHERE $1 AND (SELECT pg_sleep(0.005)) IS NOT NULL")
            .bind(true)
            .fetch_one(&db)
            .await?;
    Ok(format!("{count} {:?}", db.choice().unwrap().reason()))
}

#[post("/")]
pub async fn write(db: ReplicatedDb) -> Result<(), Error> {
    sqlx::query("INSERT INTO written SELECT max(id) + $1 FROM written").bind(1).execute(&db).await?;
    Ok(())
}

#[get("/writes")]
async fn write_on_a_read(db: ReplicatedDb) -> Result<(), Error> {
    sqlx::query("INSERT INTO written VALUES ($1)").bind(-1).execute(&db).await?;
    Ok(())
}

/// Starts servers with the table that the routes use.
pub fn servers(slaves: usize) -> Arc<Servers<Postgres>> {
    let servers = Servers::start(Postgres, slaves);
    servers.master.sql(
        "CREATE TABLE written (id INTEGER); INSERT INTO written VALUES (1); GRANT ALL ON written TO app",
    );
    servers.wait_caught_up();
    Arc::new(servers)
}

pub struct Site {
    client: Client,
    pub cluster: Cluster<rocket_replicated::postgres::Database>,
    written: i64,
}

impl Site {
    /// Launches the application. `consistency` is `window` or `position`.
    pub async fn launch(master: &str, slave: &str, consistency: &str, keys: &str) -> Self {
        let section = format!(
            "url = \"{master}\"\nslaves = [{{ url = \"{slave}\", name = \"slave\" }}]\n\
             consistency = \"{consistency}\"\nmax_lag = false\ncheck_interval = 0.1\ncheck_timeout = 5\n\
             connect_timeout = 10\nmax_connections = 8\nmaster_read_connections = 8\n{keys}"
        );
        let rocket = rocket_over(&section)
            .attach(Replicated::fairing())
            .mount("/", routes![count, write, write_on_a_read]);
        let client = Client::untracked(rocket).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap().clone();
        let count = sqlx::query_scalar("SELECT count(*) FROM written WHERE $1").bind(true);
        let written = count.fetch_one(&cluster.write()).await.unwrap();
        Self { client, cluster, written }
    }

    async fn write(&self) -> Result<Cookie<'static>, Status> {
        let response = self.client.post("/").dispatch().await;
        match response.status() {
            Status::Ok => Ok(response.cookies().get("replicated_pin").unwrap().clone()),
            status => Err(status),
        }
    }

    /// The number of rows that a read sees, and the reason of its choice.
    async fn read(&self, pin: Option<&Cookie<'static>>) -> Result<(i64, String), Status> {
        let mut request = self.client.get("/");
        if let Some(pin) = pin {
            request = request.cookie(pin.clone());
        }
        let response = request.dispatch().await;
        match response.status() {
            Status::Ok => {
                let answer = response.into_string().await.unwrap();
                let (count, reason) = answer.split_once(' ').unwrap();
                Ok((count.parse().unwrap(), reason.to_owned()))
            }
            status => Err(status),
        }
    }

    /// As [`misses_no_own_write`](Self::misses_no_own_write), and checks that slaves serve some of the own reads.
    pub async fn reads_its_own_writes(&mut self, rounds: usize) {
        assert!(self.misses_no_own_write(rounds).await > 0, "a slave that has it serves");
    }

    /// Checks that clients read their own writes and no read fails. Returns how many own reads came from a slave.
    pub async fn misses_no_own_write(&mut self, rounds: usize) -> usize {
        let log = || logbook::lines(&["`replicated`"]).join("\n");
        let (mut stale, mut by_slave, mut others_by_slave) = (0, 0, 0);
        for _ in 0..rounds {
            let pin = self.write().await.unwrap();
            self.written += 1;
            let own = join_all((0..READERS).map(|_| self.read(Some(&pin))));
            let others = join_all((0..READERS).map(|_| self.read(None)));
            let (own, others) = tokio::join!(own, others);
            for read in own {
                let (count, reason) = read.unwrap_or_else(|status| panic!("{status}: {}", log()));
                stale += usize::from(count < self.written);
                by_slave += usize::from(reason == "CaughtUp");
            }
            for read in others {
                let (_, reason) = read.unwrap_or_else(|status| panic!("{status}: {}", log()));
                others_by_slave += usize::from(reason == "ReadMethod");
            }
        }
        assert_eq!(stale, 0, "own reads of {}", rounds * READERS);
        assert!(others_by_slave > rounds * READERS / 2, "{others_by_slave} reads of others at slaves");
        by_slave
    }

    pub async fn refuses_writes_on_reads(&self) {
        let status = self.client.get("/writes").dispatch().await.status();
        assert_eq!(status, Status::InternalServerError);
    }

    /// Checks that no read fails during a fault, and for a while afterwards.
    pub async fn reads_through(&self, what: &str, fault: impl FnOnce() + Send + 'static) {
        let fault = tokio::task::spawn_blocking(fault);
        let reader = async || {
            let (mut reads, mut failed, mut afterwards) = (0, 0, 0);
            while afterwards < 50 {
                afterwards += usize::from(fault.is_finished());
                reads += 1;
                failed += usize::from(self.read(None).await.is_err());
            }
            (reads, failed)
        };
        let counts = join_all((0..READERS).map(|_| reader())).await;
        let (reads, failed): (Vec<usize>, Vec<usize>) = counts.into_iter().unzip();
        let (reads, failed): (usize, usize) = (reads.iter().sum(), failed.iter().sum());
        assert_eq!(failed, 0, "{what}: of {reads} reads: {:#?}", logbook::lines(&["GET /"]));
        fault.await.unwrap();
    }

    /// Waits until a slave serves again.
    pub async fn is_served_by_a_slave(&self) {
        eventually("reads from a slave", async || {
            self.read(None).await.is_ok_and(|(_, reason)| reason == "ReadMethod")
        })
        .await;
    }

    /// Waits until writes, and reads of what they wrote, succeed twice in a row: the first connection may be ahead of the
    /// monitor.
    pub async fn takes_writes(&mut self) {
        let mut in_a_row = 0;
        eventually("writes", async || {
            let pin = self.write().await;
            let read = async |pin: Cookie<'static>| self.read(Some(&pin)).await.is_ok();
            let succeeded = match pin {
                Ok(pin) => read(pin).await,
                Err(_) => false,
            };
            in_a_row = if succeeded { in_a_row + 1 } else { 0 };
            in_a_row == 2
        })
        .await;
        let pin = self.write().await.unwrap();
        (self.written, _) = self.read(Some(&pin)).await.unwrap();
    }

    pub async fn takes_no_writes(&self) {
        assert_eq!(self.write().await.unwrap_err().code / 100, 5);
    }

    /// Ends each slave and the master, and starts them again. Checks reads and writes meanwhile.
    pub async fn survives_faults(&mut self, servers: &Arc<Servers<Postgres>>) {
        for index in 0..servers.slaves.len() {
            for kill in [true, false] {
                let (down, up) = (servers.clone(), servers.clone());
                self.reads_through("a slave goes", move || {
                    if kill { down.slaves[index].kill() } else { down.slaves[index].stop() }
                })
                .await;
                self.reads_through("a slave comes back", move || up.slaves[index].start()).await;
                self.is_served_by_a_slave().await;
            }
        }
        let (down, up) = (servers.clone(), servers.clone());
        self.reads_through("the master goes", move || down.master.kill()).await;
        self.takes_no_writes().await;
        self.reads_through("the master comes back", move || up.master.start()).await;
        self.takes_writes().await;
        servers.wait_caught_up();
        self.reads_its_own_writes(20).await;
    }
}
