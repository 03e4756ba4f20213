//! The blog example as its clients use it: the built program, over HTTP, on servers whose slaves have stopped
//! replaying.

use std::time::Instant;

use reqwest::header::{AUTHORIZATION, CACHE_CONTROL, LOCATION, RETRY_AFTER, SET_COOKIE, WWW_AUTHENTICATE};
use reqwest::{Client, Method, Response, StatusCode};
use rocket::tokio::time::sleep;
use serde_json::{Value, json};

use rocket_replicated_testing::postgres::Postgres;
use rocket_replicated_testing::{Lab, OnServers};
use support::program::{DEADLINE, PAUSE, Website};

/// Ada's token, from the migrations.
const TOKEN: &str = "ada-s-token";

/// Longer than any test, so that pins never expire.
const NEVER: u32 = 3600;

/// A blog with databases of its own. Both slaves have the tables, and replay nothing after them.
struct Blog {
    website: Website,
    posts: Lab<OnServers<Postgres>>,
    _stats: Lab<OnServers<Postgres>>,
}

impl Blog {
    async fn open() -> Self {
        let posts = Lab::postgres();
        let stats = posts.beside();
        let section = |name: &str, lab: &Lab<OnServers<Postgres>>| {
            let (master, [first, second]) = (lab.master_url(), lab.slave_urls()) else { panic!("{lab:?}") };
            format!(
                r#"{name}={{url="{master}",lag_window={NEVER},slaves=[{{url="{first}",name="slave-1"}},{{url="{second}",name="slave-2"}}]}}"#
            )
        };
        let databases = format!("{{{},{}}}", section("blog", &posts), section("stats", &stats));
        let website =
            Website::launch("blog", "examples/blog/Rocket.toml", &[("ROCKET_DATABASES", &databases)]).await;
        posts.pause();
        Self { website, posts, _stats: stats }
    }

    /// A client that keeps no cookies. It keeps only the latest pin header.
    fn client(&self) -> ApiClient {
        self.with(Client::builder())
    }

    /// A client that keeps cookies as well.
    fn browser(&self) -> ApiClient {
        self.with(Client::builder().cookie_store(true))
    }

    fn with(&self, client: reqwest::ClientBuilder) -> ApiClient {
        let client = client.no_proxy().build().unwrap();
        ApiClient { client, url: self.website.url.clone(), token: None, pin: None }
    }

    /// The titles of all posts, as the master has them.
    fn titles(&self) -> String {
        self.posts.sql("SELECT title FROM posts ORDER BY id")
    }
}

struct ApiClient {
    client: Client,
    url: String,
    token: Option<&'static str>,
    pin: Option<String>,
}

impl ApiClient {
    fn with_token(mut self, token: &'static str) -> Self {
        self.token = Some(token);
        self
    }

    async fn send(&mut self, method: Method, path: &str, body: Option<Value>) -> Response {
        let mut request = self.client.request(method, format!("{}{path}", self.url));
        if let Some(token) = self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(pin) = &self.pin {
            request = request.header("X-Replicated-Pin", pin);
        }
        if let Some(body) = body {
            request = request.body(body.to_string());
        }
        let response = request.send().await.unwrap();
        if let Some(pin) = header(&response, "X-Replicated-Pin") {
            self.pin = Some(pin.to_owned());
        }
        response
    }

    async fn get(&mut self, path: &str) -> Response {
        self.send(Method::GET, path, None).await
    }

    async fn post(&mut self, path: &str, body: Value) -> Response {
        self.send(Method::POST, path, Some(body)).await
    }

    /// Posts, and returns the `Location` of the new post.
    async fn publish(&mut self, title: &str, body: &str, tags: &[&str]) -> String {
        let reply = self.post("/posts", json!({ "title": title, "body": body, "tags": tags })).await;
        assert_eq!(reply.status(), StatusCode::CREATED);
        header(&reply, LOCATION.as_str()).unwrap().to_owned()
    }
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

/// The names of the cookies that a reply sets.
fn cookies(response: &Response) -> Vec<&str> {
    let cookies = response.headers().get_all(SET_COOKIE).iter();
    let mut names: Vec<_> =
        cookies.map(|cookie| cookie.to_str().unwrap().split('=').next().unwrap()).collect();
    names.sort_unstable();
    names
}

fn is_of_a_slave(response: &Response, reason: &str) -> bool {
    let served_by = header(response, "X-Served-By");
    ["slave-1", "slave-2"].iter().any(|slave| served_by == Some(&format!("{slave} ({reason})")))
}

fn is_of_the_master(response: &Response, reason: &str) -> bool {
    let served_by = header(response, "X-Served-By").unwrap();
    served_by.starts_with("127.0.0.1") && served_by.ends_with(&format!("({reason})"))
}

async fn json(response: Response) -> Value {
    serde_json::from_str(&response.text().await.unwrap()).unwrap()
}

#[support::async_test]
async fn the_writer_sees_the_post_by_a_header_and_a_stranger_does_not() {
    let blog = Blog::open().await;
    let (mut ada, mut stranger) = (blog.client().with_token(TOKEN), blog.client());

    let new = json!({ "title": "Lag", "body": "Slaves \"lag\".\n", "tags": ["sql", "rust", "sql"] });
    let reply = ada.post("/posts", new).await;
    assert_eq!(reply.status(), StatusCode::CREATED);
    assert!(is_of_the_master(&reply, "write method"), "{reply:?}");
    assert_eq!(cookies(&reply), ["blog_pin"]);
    assert_eq!(header(&reply, LOCATION.as_str()), Some("/posts/1"));
    let post = json!({
        "id": 1, "author": "Ada", "title": "Lag", "body": "Slaves \"lag\".\n", "tags": ["rust", "sql"],
    });
    assert_eq!(json(reply).await, post);

    let mine = ada.get("/posts/1").await;
    assert!(is_of_the_master(&mine, "pinned"), "{mine:?}");
    assert_eq!(json(mine).await, post);
    assert_eq!(json(ada.get("/posts").await).await, json!([post]));

    let theirs = stranger.get("/posts/1").await;
    assert_eq!(theirs.status(), StatusCode::NOT_FOUND);
    assert!(is_of_a_slave(&theirs, "read method"), "{theirs:?}");
    assert_eq!(json(theirs).await, json!({ "status": 404, "error": "Not Found" }));
    assert_eq!(json(stranger.get("/posts").await).await, json!([]));
    assert_eq!(stranger.pin, None, "a read sets no pin");
}

#[support::async_test]
async fn the_job_sees_the_post_though_the_slaves_lag() {
    let blog = Blog::open().await;
    let mut ada = blog.browser().with_token(TOKEN);

    let post = ada.publish("Lag", "one two  three\nfour", &[]).await;
    // Pins Ada to the master of the `stats` database, to which the job writes.
    assert_eq!(ada.get(&format!("{post}/text")).await.status(), StatusCode::OK);
    let deadline = Instant::now() + DEADLINE;
    loop {
        let counts = json(ada.get(&format!("{post}/stats")).await).await;
        if counts == json!({ "words": 4, "views": 1 }) {
            break;
        }
        assert!(Instant::now() < deadline, "{counts}\n{}", blog.website.log());
        sleep(PAUSE).await;
    }
}

#[support::async_test]
async fn a_search_is_served_by_a_slave_and_sets_no_pin() {
    let blog = Blog::open().await;
    let (mut ada, mut stranger) = (blog.client().with_token(TOKEN), blog.client());

    ada.publish("Lag", "Slaves are lagging.", &["sql", "rust"]).await;
    let searches = [
        (json!({ "words": "slave lag" }), 1),
        (json!({ "words": "lag", "tags": ["sql"] }), 1),
        (json!({ "words": "lag", "tags": ["sql", "web"] }), 0),
        (json!({ "words": "master" }), 0),
    ];
    for (search, _) in &searches {
        let reply = stranger.post("/posts/search", search.clone()).await;
        assert!(is_of_a_slave(&reply, "reads database"), "{reply:?}");
        assert_eq!((cookies(&reply), &stranger.pin), (vec![], &None));
        assert_eq!(json(reply).await, json!([]), "{search}");
    }

    blog.posts.resume();
    for (search, count) in searches {
        let reply = stranger.post("/posts/search", search.clone()).await;
        assert!(is_of_a_slave(&reply, "reads database"), "{reply:?}");
        assert_eq!(json(reply).await.as_array().unwrap().len(), count, "{search}");
    }
}

#[support::async_test]
async fn a_view_pins_the_reader_to_the_counts_alone() {
    let blog = Blog::open().await;
    let mut ada = blog.client().with_token(TOKEN);
    let post = ada.publish("Lag", "Slaves lag.", &[]).await;
    blog.posts.resume();
    blog.posts.pause();

    let mut reader = blog.browser();
    let text = reader.get(&format!("{post}/text")).await;
    assert!(is_of_a_slave(&text, "read method"), "{text:?}");
    assert_eq!(cookies(&text), ["stats_pin"]);
    assert_eq!((header(&text, CACHE_CONTROL.as_str()), &reader.pin), (Some("private"), &None));
    assert_eq!(text.text().await.unwrap(), "Slaves lag.");

    let counts = json(reader.get(&format!("{post}/stats")).await).await;
    assert_eq!(counts["views"], 1);
    assert!(is_of_a_slave(&reader.get(&post).await, "read method"));
    let theirs = blog.client().get(&format!("{post}/stats")).await;
    assert_ne!(json(theirs).await["views"], 1, "from a slave");

    let missing = reader.get("/posts/1000/text").await;
    assert_eq!((missing.status(), cookies(&missing)), (StatusCode::NOT_FOUND, vec![]));
}

#[support::async_test]
async fn only_authors_post() {
    let blog = Blog::open().await;
    let new = json!({ "title": "Lag", "body": "Slaves lag." });

    for token in [None, Some(""), Some("no such token"), Some("ADA-S-TOKEN")] {
        let mut client = blog.client();
        client.token = token;
        for reply in [client.post("/posts", new.clone()).await, client.get("/author").await] {
            assert_eq!(reply.status(), StatusCode::UNAUTHORIZED, "{token:?}");
            assert_eq!(header(&reply, WWW_AUTHENTICATE.as_str()), Some("Bearer"));
            assert_eq!(header(&reply, RETRY_AFTER.as_str()), None);
            assert_eq!(json(reply).await, json!({ "status": 401, "error": "Unauthorized" }));
        }
    }
    assert_eq!(blog.titles(), "");

    let reply = blog.client().with_token(TOKEN).get("/author").await;
    assert!(is_of_a_slave(&reply, "read method"), "{reply:?}");
    assert_eq!(json(reply).await, json!({ "id": 1, "name": "Ada" }));
}

#[support::async_test]
async fn a_post_without_its_tags_is_not_kept() {
    let blog = Blog::open().await;
    let mut ada = blog.client().with_token(TOKEN);

    // PostgreSQL's texts cannot contain this character.
    let reply = ada.post("/posts", json!({ "title": "Lag", "body": "", "tags": ["\0"] })).await;
    assert_eq!(reply.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(json(reply).await, json!({ "status": 500, "error": "Internal Server Error" }));
    let reply = ada.post("/posts", json!({ "title": "Lag" })).await;
    assert_eq!(reply.status(), StatusCode::UNPROCESSABLE_ENTITY);

    ada.publish("Kept", "", &["sql"]).await;
    assert_eq!(blog.titles(), "Kept");
}
