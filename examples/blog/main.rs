//! A blog as a JSON API: two databases, authors with tokens, transactions, a job in the background,
//! and clients without cookies.
//!
//! ```text
//! ./scripts/cluster postgres blog stats       # servers to try it on; says what to put into Rocket.toml
//! ROCKET_CONFIG=examples/blog/Rocket.toml cargo run -p blog
//!
//! curl -i localhost:8000/posts -H 'Authorization: Bearer ada-s-token' \
//!     --json '{"title": "Slaves lag", "body": "And writers do not notice.", "tags": ["sql"]}'
//! curl -i localhost:8000/posts/1 -H 'X-Replicated-Pin: …'     # of the reply above
//! ```

mod author;
mod stats;

use rocket::fairing::{self, AdHoc};
use rocket::http::{Header, Status};
use rocket::response::status::Created;
use rocket::serde::json::{Json, Value, json};
use rocket::{
    Build, Request, Responder, Response, Rocket, State, catch, catchers, get, launch, post, routes, uri,
};
use rocket_replicated::{
    ChangesDatabase, Cluster, Database, Error, ReadsDatabase, Replicated, ReplicatedDb, postgres,
    rocket_db_pools,
};
use serde::{Deserialize, Serialize};

use author::Author;
use stats::Counts;

/// Authors, posts and tags: `[default.databases.blog]`.
#[derive(Database)]
#[database("blog")]
struct Blog(postgres::Pool);

/// How long posts are and how often they are read: `[default.databases.stats]`.
#[derive(Database)]
#[database("stats")]
struct Stats(postgres::Pool);

#[get("/posts")]
async fn list(db: ReplicatedDb<Blog>) -> Result<Json<Vec<Post>>, Error> {
    Ok(Json(sqlx::query_as("SELECT * FROM articles ORDER BY id DESC LIMIT 10").fetch_all(&db).await?))
}

/// From a slave; from the master for a client whose pin says that it has just written. A post that is
/// not there is a 404: so says `Error`.
#[get("/posts/<id>")]
async fn show(id: i64, db: ReplicatedDb<Blog>) -> Result<Json<Post>, Error> {
    Ok(Json(Post::find(id, &db).await?))
}

/// A post and its tags, or neither. The reply carries the pin, as a cookie and as a header.
#[post("/posts", data = "<post>")]
async fn create(
    author: Author,
    post: Json<NewPost>,
    db: ReplicatedDb<Blog>,
    blog: &State<Cluster<Blog>>,
    stats: &State<Cluster<Stats>>,
) -> Result<Created<Json<Post>>, Error> {
    let mut transaction = db.begin().await?;
    let id =
        sqlx::query_scalar("INSERT INTO posts (author_id, title, body) VALUES ($1, $2, $3) RETURNING id")
            .bind(author.id)
            .bind(&post.title)
            .bind(&post.body)
            .fetch_one(&mut *transaction)
            .await?;
    sqlx::query("INSERT INTO tags (post_id, tag) SELECT DISTINCT $1, tag FROM unnest($2) AS tag")
        .bind(id)
        .bind(&post.tags)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;

    // The pin travels with the job: the slaves need not have the post by then.
    stats::count_words_later(id, blog.inner().clone(), db.pin().await, stats.inner().clone());

    // The reads of a request that writes are served by the master, too.
    Ok(Created::new(uri!(show(id)).to_string()).body(Json(Post::find(id, &db).await?)))
}

/// A POST that only reads: it says so, is served by a slave, and pins nobody.
#[post("/posts/search", data = "<search>")]
async fn search(
    _reads: ReadsDatabase<Blog>,
    search: Json<Search>,
    db: ReplicatedDb<Blog>,
) -> Result<Json<Vec<Post>>, Error> {
    let found = sqlx::query_as(
        "SELECT * FROM articles WHERE tags @> $2
         AND to_tsvector('english', title || ' ' || body) @@ websearch_to_tsquery('english', $1)
         ORDER BY id DESC LIMIT 10",
    )
    .bind(&search.words)
    .bind(&search.tags)
    .fetch_all(&db)
    .await?;
    Ok(Json(found))
}

/// The text alone, for readers, who are counted: a GET that writes, and says so. It speaks of `Stats`:
/// the text still comes from a slave, and the reply pins the reader to the master of `Stats` only.
#[get("/posts/<id>/text")]
async fn text(
    id: i64,
    blog: ReplicatedDb<Blog>,
    _counts: ChangesDatabase<Stats>,
    stats: ReplicatedDb<Stats>,
) -> Result<String, Error> {
    let post = Post::find(id, &blog).await?;
    stats::count_view(id, &stats).await?;
    Ok(post.body)
}

#[get("/posts/<id>/stats")]
async fn counts(id: i64, db: ReplicatedDb<Stats>) -> Result<Json<Counts>, Error> {
    Ok(Json(Counts::find(id, &db).await?))
}

/// Whom a token belongs to.
#[get("/author")]
fn whoami(author: Author) -> Json<Author> {
    Json(author)
}

#[catch(401)]
fn unauthorized(request: &Request<'_>) -> Challenge {
    let scheme = Header::new("WWW-Authenticate", "Bearer");
    Challenge { problem: problem(Status::Unauthorized, request), scheme }
}

#[catch(default)]
fn problem(status: Status, _request: &Request<'_>) -> Value {
    json!({ "status": status.code, "error": status.reason_lossy() })
}

#[derive(Responder)]
struct Challenge {
    problem: Value,
    scheme: Header<'static>,
}

#[launch]
fn rocket() -> _ {
    rocket::build()
        .attach(Replicated::<Blog>::fairing())
        .attach(Replicated::<Stats>::fairing())
        .attach(AdHoc::try_on_ignite("Blog Migrations", migrate))
        .attach(AdHoc::on_response("Served By", |request, response| Box::pin(served_by(request, response))))
        .mount("/", routes![list, show, create, search, text, counts, whoami])
        .register("/", catchers![unauthorized, problem])
}

/// Each database at its own master.
async fn migrate(rocket: Rocket<Build>) -> fairing::Result {
    let blog = Replicated::<Blog>::fetch(&rocket).map(Cluster::write);
    let stats = Replicated::<Stats>::fetch(&rocket).map(Cluster::write);
    let (Some(blog), Some(stats)) = (blog, stats) else { return Err(rocket) };

    let blog = sqlx::migrate!("migrations/blog").run(&blog).await;
    let stats = sqlx::migrate!("migrations/stats").run(&stats).await;
    match blog.and(stats) {
        Ok(()) => Ok(rocket),
        Err(error) => {
            log::error!("The blog's tables cannot be made: {error}");
            Err(rocket)
        }
    }
}

/// Tells which node the blog was read from, and why. To look at: clients of yours need not know.
async fn served_by(request: &Request<'_>, response: &mut Response<'_>) {
    let db = request.guard::<ReplicatedDb<Blog>>().await.succeeded();
    if let Some(choice) = db.and_then(|db| db.choice()) {
        response.set_raw_header("X-Served-By", choice.to_string());
    }
}

#[derive(Serialize, sqlx::FromRow)]
struct Post {
    id: i64,
    author: String,
    title: String,
    body: String,
    tags: Vec<String>,
}

impl Post {
    async fn find(id: i64, db: &ReplicatedDb<Blog>) -> Result<Self, Error> {
        Ok(sqlx::query_as("SELECT * FROM articles WHERE id = $1").bind(id).fetch_one(db).await?)
    }
}

#[derive(Deserialize)]
struct NewPost {
    title: String,
    body: String,
    #[serde(default)]
    tags: Vec<String>,
}

#[derive(Deserialize)]
struct Search {
    words: String,
    #[serde(default)]
    tags: Vec<String>,
}
