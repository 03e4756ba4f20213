//! The log of this test process, kept so that tests can read what an operator would.

use std::sync::Mutex;

struct Logbook;

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

impl log::Log for Logbook {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        let of_interest = ["rocket_", "sqlx::query", "sqlx_core::pool"]
            .iter()
            .any(|target| metadata.target().starts_with(target));
        // What this crate tells at debug level is for tests that raise the level themselves.
        let is_ours = metadata.target().starts_with("rocket_replicated");
        (metadata.level() <= log::Level::Info || is_ours) && of_interest
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = format!("{}: {}", record.level(), record.args());
            LINES.lock().unwrap().push(line);
        }
    }

    fn flush(&self) {}
}

/// Takes the place of Rocket's logger.
pub fn open() {
    static OPENED: std::sync::Once = std::sync::Once::new();
    OPENED.call_once(|| {
        log::set_logger(&Logbook).expect("the first logger of this process");
        log::set_max_level(log::LevelFilter::Info);
    });
}

/// The lines so far that contain all of these words.
pub fn lines(words: &[&str]) -> Vec<String> {
    let lines = LINES.lock().unwrap();
    lines.iter().filter(|line| words.iter().all(|word| line.contains(word))).cloned().collect()
}
