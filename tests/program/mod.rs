//! The built examples, as their users run them.

// Each test file compiles this module for itself and uses a part of it.
#![allow(dead_code)]

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rocket::tokio::time::sleep;
use tempfile::TempDir;

pub const DEADLINE: Duration = Duration::from_secs(30);
pub const PAUSE: Duration = Duration::from_millis(20);

/// A Rocket of its own, in a folder of its own, with its log.
pub struct Website {
    program: Child,
    folder: TempDir,
    pub url: String,
}

impl Website {
    /// Under the configuration file of this repository, and these databases in place of its own.
    pub async fn launch(example: &str, config: &str, databases: &str) -> Self {
        Self::launch_with(example, config, databases, &[]).await
    }

    /// With more variables in its environment.
    pub async fn launch_with(
        example: &str,
        config: &str,
        databases: &str,
        environment: &[(&str, &str)],
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = File::create(folder.path().join("log")).unwrap();
        let mut command = Command::new(path(example));
        command
            .current_dir(&folder)
            .env("ROCKET_CONFIG", format!("{}/{config}", env!("CARGO_MANIFEST_DIR")))
            .env("ROCKET_PROFILE", "debug")
            .env("ROCKET_ADDRESS", "127.0.0.1")
            .env("ROCKET_PORT", "0")
            .env("ROCKET_LOG_LEVEL", "normal")
            .env("ROCKET_CLI_COLORS", "false")
            .env("ROCKET_DATABASES", databases)
            .envs(environment.iter().copied())
            .stderr(log.try_clone().unwrap())
            .stdout(log);

        let mut website = Self { program: command.spawn().unwrap(), folder, url: String::new() };
        let deadline = Instant::now() + DEADLINE;
        while website.url.is_empty() {
            let log = website.log();
            if let Some((_, url)) = log.split_once("launched from ") {
                website.url = url.lines().next().unwrap().trim().to_owned();
            }
            let ended = website.program.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "{example} does not launch:\n{log}");
            sleep(PAUSE).await;
        }
        website
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }
}

impl Drop for Website {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

/// Cargo builds examples along with tests, beside them, unless it is told to test one file alone.
pub fn path(example: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    let program = profile.join("examples").join(format!("{example}{}", std::env::consts::EXE_SUFFIX));
    assert!(program.exists(), "not built: `cargo build --all-features --example {example}`");
    program
}
