//! A guestbook that shows replication at work: one page, on which two readers look at the same
//! entries at the same moment, you and a stranger.
//!
//! ```text
//! cargo run -p guestbook
//! ```
//!
//! Nothing needs to be installed: `Rocket.toml` names a master file and a slave that follows it 2 s
//! behind. Sign the guestbook, and watch your entry reach the stranger; at `/status`, see how the slave follows, and
//! take it out.

mod page;

use rocket::fairing::{self, AdHoc};
use rocket::form::{self, Form, FromForm, FromFormField, ValueField};
use rocket::http::Status;
use rocket::request::{FromRequest, Outcome};
use rocket::response::Redirect;
use rocket::response::content::RawHtml;
use rocket::{Build, Request, Rocket, catch, catchers, get, launch, post, routes, uri};
use rocket_replicated::sqlite::{Replicated, ReplicatedDb};
use rocket_replicated::{ChangesDatabase, Choice, Error};
use time::OffsetDateTime;

/// The page, as you see it: after a write from the master, else from the slave.
#[get("/")]
async fn index(db: ReplicatedDb) -> Result<RawHtml<String>, Error> {
    Ok(RawHtml(page::index(&View::of(&db).await?).into_string()))
}

/// What whoever asks sees: the page's script asks with your cookies, and without any.
#[get("/entries")]
async fn entries(db: ReplicatedDb) -> Result<RawHtml<String>, Error> {
    Ok(RawHtml(page::view(&View::of(&db).await?).into_string()))
}

/// A POST: it goes to the master, and its reply pins the client there for the lag window. That is
/// why the page it redirects to has the entry.
#[post("/entries", data = "<entry>")]
async fn sign(entry: Form<NewEntry<'_>>, db: ReplicatedDb) -> Result<Redirect, Error> {
    sqlx::query("INSERT INTO entries (author, message, written_at) VALUES (?, ?, ?)")
        .bind(entry.author.0)
        .bind(entry.message.0)
        .bind(OffsetDateTime::now_utc())
        .execute(&db)
        .await?;
    Ok(Redirect::to(uri!(index)))
}

/// A GET that writes has to say so.
// Apart from `index`, because it pins: a page that did so would keep all its readers at the master.
#[get("/visit")]
async fn visit(_changes: ChangesDatabase, db: ReplicatedDb) -> Result<Redirect, Error> {
    sqlx::query("UPDATE visits SET count = count + 1").execute(&db).await?;
    Ok(Redirect::to(uri!(index)))
}

/// Who may see the status page and use its drills: whoever sits at this machine. An application asks for a login.
struct Operator;

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Operator {
    type Error = ();

    async fn from_request(request: &'r Request<'_>) -> Outcome<Self, ()> {
        match request.remote() {
            Some(address) if address.ip().is_loopback() => Outcome::Success(Self),
            _ => Outcome::Error((Status::Forbidden, ())),
        }
    }
}

#[catch(default)]
fn problem(status: Status, _request: &Request<'_>) -> RawHtml<String> {
    RawHtml(page::problem(status).into_string())
}

#[launch]
fn rocket() -> _ {
    rocket::build()
        .attach(Replicated::fairing())
        .attach(AdHoc::try_on_ignite("Guestbook Migrations", migrate))
        .mount("/", routes![index, entries, sign, visit])
        .mount("/status", Replicated::status::<Operator>().with_drills())
        .register("/", catchers![problem])
}

/// At the master alone: the slave replays migrations like any other write.
async fn migrate(rocket: Rocket<Build>) -> fairing::Result {
    let Some(cluster) = Replicated::fetch(&rocket) else { return Err(rocket) };
    match sqlx::migrate!().run(&cluster.write()).await {
        Ok(()) => Ok(rocket),
        Err(error) => {
            log::error!("The guestbook's tables cannot be made: {error}");
            Err(rocket)
        }
    }
}

/// What one reader sees, and which node showed it.
struct View {
    entries: Vec<Entry>,
    visits: i64,
    choice: Option<Choice>,
}

impl View {
    async fn of(db: &ReplicatedDb) -> Result<Self, Error> {
        Ok(Self {
            entries: sqlx::query_as("SELECT * FROM entries ORDER BY id DESC LIMIT 10").fetch_all(db).await?,
            visits: sqlx::query_scalar("SELECT count FROM visits").fetch_one(db).await?,
            choice: db.choice(),
        })
    }
}

#[derive(sqlx::FromRow)]
struct Entry {
    id: i64,
    author: String,
    message: String,
    written_at: OffsetDateTime,
}

#[derive(FromForm)]
struct NewEntry<'r> {
    author: Line<'r, { page::AUTHOR_LENGTH }>,
    message: Line<'r, { page::MESSAGE_LENGTH }>,
}

/// A line of text without blanks around it: 1 to `MAX` characters.
struct Line<'r, const MAX: usize>(&'r str);

impl<'r, const MAX: usize> FromFormField<'r> for Line<'r, MAX> {
    fn from_value(field: ValueField<'r>) -> form::Result<'r, Self> {
        let line = field.value.trim();
        match (1..=MAX).contains(&line.chars().count()) {
            true => Ok(Self(line)),
            false => Err(form::Error::validation(format!("expected 1 to {MAX} characters")).into()),
        }
    }
}
