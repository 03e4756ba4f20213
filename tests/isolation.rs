//! Each test has a log of its own, although the tests of a program share its logger.

use std::sync::Barrier;
use std::thread;

use rocket::tokio;
use support::logbook;

/// Logs on the thread of the test, on a worker of its runtime, and on a thread for blocking work.
async fn warn(test: &'static str) {
    log::warn!(target: "rocket_replicated", "{test}: at first");
    let worker = tokio::spawn(async move { log::warn!(target: "rocket_replicated", "{test}: in a task") });
    worker.await.unwrap();
    let blocking = move || log::warn!(target: "rocket_replicated", "{test}: on another thread");
    tokio::task::spawn_blocking(blocking).await.unwrap();
}

#[test]
fn a_test_sees_no_line_of_another() {
    let all_have_logged = Barrier::new(2);
    let test = |name: &'static str, wants_details: bool| {
        match wants_details {
            true => logbook::open_with_details(),
            false => logbook::open(),
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        runtime.block_on(warn(name));
        runtime.block_on(async { log::debug!(target: "rocket_replicated", "{name}: a detail") });
        all_have_logged.wait();
        let mut seen = logbook::lines(&[": "]);
        seen.retain(|line| line.contains("one: ") || line.contains("other: "));
        seen
    };
    let (one, other) = thread::scope(|scope| {
        let one = scope.spawn(|| test("one", true));
        let other = scope.spawn(|| test("other", false));
        (one.join().unwrap(), other.join().unwrap())
    });
    let lines = |of: &str| {
        ["at first", "in a task", "on another thread"].map(|line| format!("WARN: {of}: {line}")).to_vec()
    };
    assert_eq!(one, [lines("one"), vec!["DEBUG: one: a detail".to_owned()]].concat());
    assert_eq!(other, lines("other"));
}
