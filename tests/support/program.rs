//! The built examples, run as their users run them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rocket::tokio::time::sleep;
use tempfile::TempDir;

pub const DEADLINE: Duration = Duration::from_secs(30);
pub const PAUSE: Duration = Duration::from_millis(20);

/// A running example in a folder of its own, with its log.
pub struct Website {
    program: Child,
    folder: TempDir,
    pub url: String,
}

impl Website {
    /// Launches an example with this configuration file of the repository, and with more variables in its environment.
    pub async fn launch(program: &str, config: &str, environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = File::create(folder.path().join("log")).unwrap();
        let mut command = Command::new(path(program));
        command
            .current_dir(&folder)
            .env("ROCKET_CONFIG", repository().join(config))
            .env("ROCKET_PROFILE", "debug")
            .env("ROCKET_ADDRESS", "127.0.0.1")
            .env("ROCKET_PORT", "0")
            .env("ROCKET_LOG_LEVEL", "normal")
            .env("ROCKET_CLI_COLORS", "false")
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
            assert!(ended.is_none() && Instant::now() < deadline, "{program} does not launch:\n{log}");
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

/// The root folder of this repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The program of an example, which Cargo puts beside those of tests.
///
/// # Panics
///
/// If it is not built: tests of one package do not build the programs of another.
pub fn path(example: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    let program = profile.join(format!("{example}{}", std::env::consts::EXE_SUFFIX));
    assert!(program.exists(), "{} is not built: run `cargo build --bins --tests`", program.display());
    program
}
