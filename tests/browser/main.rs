//! The guestbook and its status page in a real browser.
//!
//! The screenshots in `target/screenshots` are for people to look at.

mod chromium;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use fantoccini::Locator;
use fantoccini::key::Key;
use rocket::tokio::time::sleep;
use serde_json::Value;

use chromium::{Browser, DESKTOP, PHONE, Scheme, Tab};
use support::program::{DEADLINE, PAUSE, Website};

const SLAVE: &str = "guestbook-slave.db";

/// The slave is copied late, so that an entry is on the master only for a while.
const DATABASES: &str =
    r#"{replicated={lag_window=8,max_lag=false,slaves=[{url="sqlite://guestbook-slave.db",follow=4}]}}"#;

/// Polls what a script returns until it is `true`.
async fn until(tab: &Tab, what: &str, script: &str) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let seen = tab.run(&format!("return {script}")).await;
        if seen == Value::Bool(true) {
            return;
        }
        assert!(Instant::now() < deadline, "still not: {what}: {seen}");
        sleep(PAUSE).await;
    }
}

fn has(credentials: &str, message: &str) -> String {
    format!(
        r#"document.querySelector('[data-credentials="{credentials}"] ol')?.textContent.includes("{message}")"#
    )
}

async fn press(tab: &Tab, label: &str) {
    let button = format!("//button[normalize-space()=\"{label}\"]");
    tab.find(Locator::XPath(&button)).await.unwrap().click().await.unwrap();
}

/// Signs until the writer sees an entry that a stranger does not see at the same moment. The first attempt succeeds,
/// unless the slave is copied just then.
async fn sign_and_be_ahead(tab: &Tab) -> String {
    for number in 1..10 {
        let message = format!("hello {number}");
        for (field, text) in [("author", "Ada"), ("message", &message)] {
            let field = tab.find(Locator::Css(&format!("input[name={field}]"))).await.unwrap();
            field.send_keys(text).await.unwrap();
        }
        press(tab, "Sign").await;
        until(tab, "the own entry", &has("same-origin", &message)).await;
        until(
            tab,
            "what a stranger sees",
            r#"document.querySelector('[data-credentials="omit"] ol') !== null"#,
        )
        .await;
        let (mine, strangers) = (has("same-origin", &message), has("omit", &message));
        if tab.run(&format!("return {mine} && !{strangers}")).await == Value::Bool(true) {
            return message;
        }
    }
    panic!("strangers saw every entry as soon as its writer did");
}

#[support::async_test]
async fn a_visitor_signs_and_an_operator_holds_a_drill() {
    let guestbook = Website::launch("guestbook", "Rocket.toml", &[("ROCKET_DATABASES", DATABASES)]).await;
    let browser = Browser::start().await;
    let tab = browser.tab(DESKTOP, Scheme::Light).await;

    tab.goto(&guestbook.url).await.unwrap();
    let message = sign_and_be_ahead(&tab).await;
    shoot(&tab, "guestbook-ahead").await;
    until(&tab, "the entry for strangers", &has("omit", &message)).await;

    tab.find(Locator::LinkText("How the servers are")).await.unwrap().click().await.unwrap();
    until(&tab, "a live page", r#"document.getElementById("live").textContent === "Live""#).await;
    let slave = format!(r#"document.querySelector('[data-server="{SLAVE}"]')"#);
    until(&tab, "its state", &format!(r#"{slave}.dataset.state === "up""#)).await;
    let line = format!(r#"({slave}.querySelector(".chart .line")?.getAttribute("points") ?? "").split(" ")"#);
    until(&tab, "lag in the chart", &format!("new Set({line}.map((point) => point.split(',')[1])).size > 1"))
        .await;
    until(&tab, "lag in words", &format!("Number({slave}.querySelector('[data-lag]').dataset.lag) > 0"))
        .await;

    press(&tab, &format!("Take {SLAVE} out")).await;
    until(&tab, "the slave to leave", &format!(r#"{slave}.dataset.state === "taken out""#)).await;
    let latest = "document.querySelector('#changes .what').textContent";
    until(&tab, "word of it", &format!(r#"{latest} === "{SLAVE}: taken out""#)).await;

    // A stranger reads meanwhile. The page shows which server served the read, without being loaded again.
    tab.run("window.same = true").await;
    let moved =
        r#"document.querySelector('tr[data-reason="slaves unavailable"] td:nth-child(3)')?.textContent > 0"#;
    assert_ne!(tab.run(&format!("return {moved}")).await, Value::Bool(true));
    let stranger = reqwest::Client::builder().no_proxy().build().unwrap();
    stranger.get(format!("{}/entries", guestbook.url)).send().await.unwrap();
    until(&tab, "reads that have moved", moved).await;
    shoot_all(&browser, &guestbook, "taken-out").await;

    // Another operator puts the slave back. The page announces that, and keeps the focus.
    tab.run(&format!("{slave}.querySelector('button').focus()")).await;
    let order = [("drill", "put_back"), ("slave", SLAVE)];
    let order = stranger.post(format!("{}/status/drills", guestbook.url)).form(&order);
    assert!(order.header("Sec-Fetch-Site", "same-origin").send().await.unwrap().status().is_success());
    until(&tab, "the slave to come back", &format!(r#"{slave}.dataset.state === "up""#)).await;
    until(&tab, "word of it", &format!(r#"document.getElementById("news").textContent === "{SLAVE}: up""#))
        .await;
    let focused = "document.activeElement.textContent";
    until(&tab, "the focus", &format!(r#"{focused} === "Take {SLAVE} out""#)).await;
    assert_eq!(tab.run("return window.same").await, Value::Bool(true), "it was not loaded again");

    // The next drill is operated by keyboard alone.
    tab.find(Locator::Css("button")).await.unwrap();
    tab.active_element().await.unwrap().send_keys(&String::from(char::from(Key::Enter))).await.unwrap();
    until(&tab, "the slave to leave", &format!(r#"{slave}.dataset.state === "taken out""#)).await;
    press(&tab, &format!("Put {SLAVE} back")).await;
    until(&tab, "the slave to come back", &format!(r#"{slave}.dataset.state === "up""#)).await;
    press(&tab, "Send all reads to the master").await;
    until(
        &tab,
        "what is in force",
        r#"document.querySelector(".summary").textContent.includes("By order of an operator")"#,
    )
    .await;
    press(&tab, "Read from slaves as configured").await;
    until(
        &tab,
        "what is in force",
        r#"!document.querySelector(".summary").textContent.includes("By order of an operator")"#,
    )
    .await;

    // The page shows that the program has ended.
    drop(guestbook);
    until(&tab, "that it is gone", r#"document.getElementById("live").textContent.startsWith("Not live")"#)
        .await;
    tab.close().await;
}

#[support::async_test]
async fn no_browser_outlives_a_test_that_panics() {
    let browser = Browser::start().await;
    let _tab = browser.tab(DESKTOP, Scheme::Light).await;
    let processes = browser.processes();
    assert!(processes.len() > 2, "{processes:?}");
    let test = AssertUnwindSafe(move || {
        let _browser = browser;
        panic!("this panic is part of the test");
    });
    assert!(catch_unwind(test).is_err());
    let deadline = Instant::now() + DEADLINE;
    while processes.iter().any(|process| chromium::is_running(*process)) {
        assert!(Instant::now() < deadline, "still running: {processes:?}");
        sleep(PAUSE).await;
    }
}

/// Takes screenshots of both pages, on a phone and on a desktop, in light and in dark.
async fn shoot_all(browser: &Browser, guestbook: &Website, name: &str) {
    for (screen, size) in [("phone", PHONE), ("desktop", DESKTOP)] {
        for scheme in [Scheme::Light, Scheme::Dark] {
            let tab = browser.tab(size, scheme).await;
            for page in ["", "/status"] {
                tab.goto(&format!("{}{page}", guestbook.url)).await.unwrap();
                let loaded = match page {
                    "" => r#"document.querySelector('[data-credentials="omit"] ol') !== null"#,
                    _ => r#"document.getElementById("live").textContent === "Live""#,
                };
                until(&tab, "the page", loaded).await;
                until(
                    &tab,
                    "no wider than the screen",
                    "document.documentElement.scrollWidth <= window.innerWidth",
                )
                .await;
                let dark = "matchMedia('(prefers-color-scheme: dark)').matches";
                assert_eq!(tab.run(&format!("return {dark}")).await, Value::Bool(scheme == Scheme::Dark));
                let of = if page.is_empty() { "guestbook" } else { "status" };
                shoot(&tab, &format!("{of}-{name}-{screen}-{scheme:?}").to_lowercase()).await;
            }
            tab.close().await;
        }
    }
}

async fn shoot(tab: &Tab, name: &str) {
    let test = std::env::current_exe().unwrap();
    let folder = test.ancestors().nth(3).unwrap().join("screenshots");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(format!("{name}.png")), tab.screenshot().await.unwrap()).unwrap();
}
