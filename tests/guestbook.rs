//! The guestbook example as its visitors use it: the built program, over HTTP.

use std::time::{Duration, Instant};

use reqwest::header::{CACHE_CONTROL, LOCATION, SET_COOKIE};
use reqwest::{Client, Response, StatusCode, redirect};
use rocket::tokio::time::sleep;

use support::program::{DEADLINE, PAUSE, Website};

/// Longer than any test: the slave is not copied again, or the pin does not end.
const NEVER: u32 = 3600;

/// A guestbook that runs in a folder of its own.
struct Guestbook(Website);

impl Guestbook {
    /// Launches the guestbook with `Rocket.toml`.
    async fn open() -> Self {
        Self(Website::launch("guestbook", "Rocket.toml", &[]).await)
    }

    /// Launches the guestbook with other values of `follow` and `lag_window`, in seconds.
    async fn with(follow: impl ToString, lag_window: impl ToString) -> Self {
        let (follow, lag_window) = (follow.to_string(), lag_window.to_string());
        let slave = format!(r#"{{url="sqlite://guestbook-slave.db",follow={follow}}}"#);
        let databases = format!("{{replicated={{lag_window={lag_window},max_lag=false,slaves=[{slave}]}}}}");
        Self(Website::launch("guestbook", "Rocket.toml", &[("ROCKET_DATABASES", &databases)]).await)
    }

    /// A visitor whose browser keeps cookies. Redirects are left to the tests.
    fn visitor(&self) -> Visitor {
        let client = Client::builder().cookie_store(true).redirect(redirect::Policy::none()).no_proxy();
        Visitor { client: client.build().unwrap(), url: self.0.url.clone() }
    }
}

struct Visitor {
    client: Client,
    url: String,
}

impl Visitor {
    async fn get(&self, path: &str) -> Response {
        self.client.get(format!("{}{path}", self.url)).send().await.unwrap()
    }

    async fn post(&self, author: &str, message: &str) -> Response {
        let form = [("author", author), ("message", message)];
        self.client.post(format!("{}/entries", self.url)).form(&form).send().await.unwrap()
    }

    /// Posts an entry, follows the redirect and returns that page.
    async fn sign(&self, message: &str) -> String {
        let reply = self.post("Ada", message).await;
        assert_eq!(reply.status(), StatusCode::SEE_OTHER);
        let page = self.get(reply.headers()[LOCATION].to_str().unwrap()).await;
        assert_eq!(page.status(), StatusCode::OK);
        page.text().await.unwrap()
    }

    async fn look(&self) -> View {
        let reply = self.get("/entries").await;
        assert_eq!(reply.status(), StatusCode::OK);
        View(reply.text().await.unwrap())
    }

    /// Looks until the view is as wanted.
    async fn look_until(&self, what: &str, is_so: impl Fn(&View) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let view = self.look().await;
            if is_so(&view) {
                return;
            }
            assert!(Instant::now() < deadline, "still not: {what}\n{}", view.0);
            sleep(PAUSE).await;
        }
    }
}

/// The entries as a visitor sees them, with the server that they came from.
struct View(String);

impl View {
    fn has(&self, text: &str) -> bool {
        self.0.contains(text)
    }

    fn is_of(&self, role: &str, node: &str, reason: &str) -> bool {
        self.has(&format!(r#"<strong class="{role}">{role}</strong> <code>{node}</code>"#))
            && self.has(&format!(r#"data-reason="{reason}""#))
    }

    fn is_of_the_slave(&self) -> bool {
        self.is_of("slave", "guestbook-slave.db", "ReadMethod")
    }

    fn is_of_the_master(&self) -> bool {
        self.is_of("master", "guestbook.db", "Pinned")
    }
}

#[support::async_test]
async fn the_writer_sees_the_entry_at_once_and_a_stranger_does_not() {
    let guestbook = Guestbook::with(NEVER, NEVER).await;
    let (writer, stranger) = (guestbook.visitor(), guestbook.visitor());

    let page = writer.sign("here I am").await;
    assert!(page.contains("here I am"), "{page}");

    let (mine, theirs) = (writer.look().await, stranger.look().await);
    assert!(mine.is_of_the_master() && mine.has("here I am"), "{}", mine.0);
    assert!(theirs.is_of_the_slave() && !theirs.has("here I am"), "{}", theirs.0);
}

#[support::async_test]
async fn a_stranger_sees_the_entry_once_the_slave_has_it() {
    let guestbook = Guestbook::with(0.1, NEVER).await;
    let stranger = guestbook.visitor();

    guestbook.visitor().sign("here I am").await;
    stranger
        .look_until("the entry, from the slave", |view| view.is_of_the_slave() && view.has("here I am"))
        .await;
}

#[support::async_test]
async fn the_writer_reads_from_the_slave_again_after_the_lag_window() {
    let guestbook = Guestbook::with(NEVER, 3).await;
    let writer = guestbook.visitor();

    let signed = Instant::now();
    writer.sign("here I am").await;
    assert!(writer.look().await.is_of_the_master());
    writer.look_until("a view of the slave", View::is_of_the_slave).await;
    assert!(signed.elapsed() >= Duration::from_secs(3), "after {:?}", signed.elapsed());
}

#[support::async_test]
async fn counting_a_visit_pins_the_visitor() {
    let guestbook = Guestbook::with(NEVER, 60).await;
    let (visitor, stranger) = (guestbook.visitor(), guestbook.visitor());

    let reply = visitor.get("/visit").await;
    assert_eq!(reply.status(), StatusCode::SEE_OTHER);
    assert_eq!(reply.headers()[CACHE_CONTROL], "private");

    let mut cookies = reply.headers().get_all(SET_COOKIE).iter();
    let cookie = cookies.next().unwrap().to_str().unwrap();
    assert!(cookie.starts_with("replicated_pin="), "{cookie}");
    for attribute in ["HttpOnly", "SameSite=Lax", "Path=/", "Max-Age=60"] {
        assert!(cookie.split("; ").any(|a| a == attribute), "no {attribute}: {cookie}");
    }
    assert_eq!(cookies.next(), None);

    let (mine, theirs) = (visitor.look().await, stranger.look().await);
    assert!(mine.is_of_the_master() && mine.has("Visits: 1<"), "{}", mine.0);
    assert!(theirs.is_of_the_slave() && theirs.has("Visits: 0<"), "{}", theirs.0);
}

#[support::async_test]
async fn reading_sets_no_cookie() {
    let guestbook = Guestbook::open().await;
    let (writer, stranger) = (guestbook.visitor(), guestbook.visitor());

    writer.sign("here I am").await;
    for visitor in [writer, stranger] {
        for path in ["/", "/entries", "/nowhere"] {
            let reply = visitor.get(path).await;
            assert_eq!(reply.headers().get(SET_COOKIE), None, "{path}");
        }
    }
}

#[support::async_test]
async fn an_entry_that_is_empty_or_too_long_is_refused() {
    let guestbook = Guestbook::with(NEVER, NEVER).await;
    let visitor = guestbook.visitor();

    let long = "x".repeat(1000);
    for (author, message) in [("", "hello"), ("Ada", ""), ("Ada", " \t "), ("Ada", &long), (&long, "hello")] {
        let reply = visitor.post(author, message).await;
        assert_eq!(reply.status(), StatusCode::UNPROCESSABLE_ENTITY, "{author:?}: {message:?}");
        assert_eq!(reply.headers().get(SET_COOKIE), None, "nothing was written");
        assert!(reply.text().await.unwrap().contains("needs a name and a message"));
    }
    visitor.get("/visit").await;
    let view = visitor.look().await;
    assert!(view.is_of_the_master() && view.has("No entries yet"), "{}", view.0);
}

#[support::async_test]
async fn an_entry_is_trimmed_and_its_markup_escaped() {
    let guestbook = Guestbook::open().await;
    let writer = guestbook.visitor();

    let page = writer.sign("  <script>alert('you')</script> & \"more\" ").await;
    assert!(page.contains("<p>&lt;script&gt;alert('you')&lt;/script&gt; &amp; "), "{page}");
    assert!(!page.contains("<script>alert"), "{page}");

    writer.post("<i>Ada</i>", "hello").await;
    let view = writer.look().await;
    assert!(view.has("&lt;i&gt;Ada&lt;/i&gt;") && !view.has("<i>"), "{}", view.0);
}
