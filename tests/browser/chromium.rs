//! Headless Chromium that ends with the test that started it.

use std::fs::{self, File};
use std::ops::Deref;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use fantoccini::{Client, ClientBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rocket::tokio::time::sleep;
use serde_json::{Value, json};
use tempfile::TempDir;

use support::program::{DEADLINE, PAUSE};

/// Width and height of a screen that has room for the whole page.
pub type Screen = (u32, u32);

pub const PHONE: Screen = (390, 2400);
pub const DESKTOP: Screen = (1280, 1500);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Light,
    Dark,
}

/// chromedriver, the parent of all browsers.
pub struct Browser {
    driver: Child,
    url: String,
    folder: TempDir,
}

impl Browser {
    pub async fn start() -> Self {
        loop {
            if let Some(browser) = Self::try_start().await {
                return browser;
            }
        }
    }

    /// Starts chromedriver. Returns `None` if the port is taken: chromedriver asks for a free port on IPv6, and then
    /// needs the same port on IPv4.
    async fn try_start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let log = File::create(folder.path().join("log")).unwrap();
        let driver = Command::new("chromedriver")
            .arg("--port=0")
            .current_dir(&folder)
            .env("HOME", folder.path())
            .stdin(Stdio::null())
            .stderr(log.try_clone().unwrap())
            .stdout(log)
            .spawn()
            .expect("chromedriver: ./scripts/test installs what tests need");
        let mut browser = Self { driver, url: String::new(), folder };
        let deadline = Instant::now() + DEADLINE;
        while browser.url.is_empty() {
            let log = fs::read_to_string(browser.folder.path().join("log")).unwrap();
            if let Some((_, port)) = log.split_once("started successfully on port ") {
                let port: String = port.chars().take_while(char::is_ascii_digit).collect();
                browser.url = format!("http://127.0.0.1:{port}");
            }
            if log.contains("Address already in use") {
                return None;
            }
            assert!(Instant::now() < deadline, "chromedriver does not start:\n{log}");
            sleep(PAUSE).await;
        }
        Some(browser)
    }

    /// A tab in a browser of its own. The screen and the colour scheme are set when that browser starts.
    pub async fn tab(&self, (width, height): Screen, scheme: Scheme) -> Tab {
        let profile = tempfile::tempdir_in(&self.folder).unwrap();
        let mut args = vec![
            "--headless=new".to_owned(),
            "--disable-gpu".into(),
            "--no-first-run".into(),
            "--disable-background-networking".into(),
            "--disable-component-update".into(),
            "--disable-sync".into(),
            "--disable-dev-shm-usage".into(),
            "--hide-scrollbars".into(),
            "--lang=en".into(),
            format!("--user-data-dir={}", profile.path().display()),
            format!("--window-size={width},{height}"),
            format!("--blink-settings=preferredColorScheme={}", if scheme == Scheme::Dark { 0 } else { 1 }),
        ];
        // The sandbox does not work for root.
        if unsafe { libc::geteuid() } == 0 {
            args.push("--no-sandbox".into());
        }
        let mut options = json!({ "args": args });
        // Windows have a minimum width, which is larger than a phone's.
        if width < 600 {
            options["mobileEmulation"] =
                json!({ "deviceMetrics": { "width": width, "height": height, "pixelRatio": 1.5 } });
        }
        let mut capabilities = serde_json::Map::new();
        capabilities.insert("goog:chromeOptions".into(), options);
        let client =
            ClientBuilder::new(HttpConnector::new()).capabilities(capabilities).connect(&self.url).await;
        Tab { client: client.expect("a browser"), _profile: profile }
    }
}

impl Browser {
    /// The driver and all of its descendants.
    pub fn processes(&self) -> Vec<u32> {
        let list = Command::new("ps").args(["-A", "-o", "pid=", "-o", "ppid="]).output().unwrap().stdout;
        let list = String::from_utf8(list).unwrap();
        let processes = list.lines().map(|line| {
            let mut ids = line.split_whitespace().map(|id| id.parse::<u32>().unwrap());
            (ids.next().unwrap(), ids.next().unwrap())
        });
        let processes: Vec<_> = processes.collect();
        let mut family = vec![self.driver.id()];
        let mut next = 0;
        while let Some(parent) = family.get(next).copied() {
            family
                .extend(processes.iter().filter(|(_, its_parent)| *its_parent == parent).map(|(id, _)| *id));
            next += 1;
        }
        family
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver stops first, so that it starts no more processes. Sandboxed children of the browsers end with the
        // browsers.
        let driver = self.driver.id();
        signal(&[driver], libc::SIGSTOP);
        signal(&self.processes(), libc::SIGKILL);
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// True if the process runs. A zombie does not count.
pub fn is_running(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, stat)| !stat.starts_with('Z'))
}

fn signal(processes: &[u32], signal: i32) {
    for process in processes {
        // An error means that the process is gone.
        unsafe { libc::kill(*process as i32, signal) };
    }
}

pub struct Tab {
    client: Client,
    _profile: TempDir,
}

impl Tab {
    pub async fn run(&self, script: &str) -> Value {
        self.client.execute(script, vec![]).await.unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    pub async fn close(self) {
        self.client.close().await.unwrap();
    }
}

impl Deref for Tab {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}
