//! Clients of an application, each with a cookie jar and a register of its own.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rocket::tokio;
use rocket::tokio::task::JoinHandle;

use super::checker::PATIENCE;
use super::operation::{Operation, Outcome, Work};

/// Registers that no client writes to.
pub const SPARE: usize = 63;

pub struct Clients {
    stopped: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Vec<Operation>>>,
}

impl Clients {
    pub fn start(url: &str, registers: Range<usize>, origin: Instant) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let tasks = registers
            .map(|register| {
                let client = Client::new(url, register, origin);
                tokio::spawn(client.work(stopped.clone()))
            })
            .collect();
        Self { stopped, tasks }
    }

    pub async fn stop(self) -> Vec<Operation> {
        self.stopped.store(true, Ordering::Relaxed);
        let mut operations = Vec::new();
        for task in self.tasks {
            operations.extend(task.await.unwrap());
        }
        operations
    }
}

/// Polls until the application takes writes and all of these nodes have served reads of clients that have not written.
pub async fn settled(url: &str, nodes: &[&str]) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut seen = BTreeSet::new();
    loop {
        let write = Client::new(url, SPARE, Instant::now()).operate(Work::Write(0)).await;
        let read = Client::new(url, SPARE, Instant::now()).operate(Work::Read).await;
        if let Outcome::Done(answers) = &read.outcome {
            seen.extend(answers.iter().map(|answer| answer.node.clone()));
        }
        let all = nodes.iter().all(|node| seen.contains(*node));
        if all && matches!(write.outcome, Outcome::Done(_)) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{url} does not recover: reads came from {seen:?}; {write:?} {read:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

struct Client {
    http: reqwest::Client,
    site: String,
    register: usize,
    origin: Instant,
}

impl Client {
    fn new(url: &str, register: usize, origin: Instant) -> Self {
        let http = reqwest::Client::builder().cookie_store(true).timeout(PATIENCE * 4).build().unwrap();
        Self { http, site: url.to_owned(), register, origin }
    }

    /// The route by which this client writes.
    fn way(&self) -> &'static str {
        match self.register % 8 {
            // Writes by a handle that is older than the faults.
            1 | 5 => "kept",
            2 => "impatient",
            6 => "held",
            _ => "registers",
        }
    }

    /// True if the client sometimes runs long reads.
    fn is_slow(&self) -> bool {
        self.register % 8 == 3
    }

    /// Writes, reads at once as after a redirect, and reads some more.
    async fn work(mut self, stopped: Arc<AtomicBool>) -> Vec<Operation> {
        let mut operations = Vec::new();
        let mut value = 0;
        while !stopped.load(Ordering::Relaxed) {
            value += 1;
            operations.push(self.operate(Work::Write(value)).await);
            // Mostly a few reads, and sometimes so many that they outlast any lag window.
            let reads = if fastrand::u8(..12) == 0 { 250 } else { fastrand::usize(1..12) };
            for _ in 0..reads {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let is_long = self.is_slow() && fastrand::u8(..20) == 0;
                operations.push(self.operate(if is_long { Work::LongRead } else { Work::Read }).await);
                tokio::time::sleep(Duration::from_millis(fastrand::u64(0..40))).await;
            }
        }
        operations
    }

    async fn operate(&mut self, work: Work) -> Operation {
        let invoked = self.origin.elapsed();
        let outcome = match work {
            Work::Write(value) => {
                let way = self.way();
                self.send(self.http.put(format!("{}/{way}/{}/{value}", self.site, self.register))).await
            }
            Work::Read => {
                self.send(self.http.get(format!("{}/registers/{}", self.site, self.register))).await
            }
            Work::LongRead => self.send(self.http.get(format!("{}/long/{}", self.site, self.register))).await,
        };
        Operation { client: self.register, work, invoked, returned: self.origin.elapsed(), outcome }
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Outcome {
        let Ok(response) = request.send().await else { return Outcome::Failed(0) };
        let status = response.status().as_u16();
        match response.text().await {
            Ok(body) if status == 200 && body.is_empty() => Outcome::Done(Vec::new()),
            Ok(body) if status == 200 => Outcome::Done(serde_json::from_str(&body).unwrap()),
            Ok(_) => Outcome::Failed(status),
            Err(_) => Outcome::Failed(0),
        }
    }
}
