//! Several named databases in one application: each has its own nodes, intents and pins.

use rocket::http::{Cookie, Status};
use rocket::local::blocking::{Client, LocalResponse};
use rocket::{Build, Rocket, get, post, routes};
use rocket_replicated::{ChangesDatabase, Database, Error, ReadsDatabase, Reason, Replicated, ReplicatedDb};
use rocket_replicated::{postgres, rocket_db_pools, sqlite};

use support::{lab, rocket};

#[derive(Database)]
#[database("blog")]
struct Blog(postgres::Pool);

#[derive(Database)]
#[database("shop")]
struct Shop(sqlite::Pool);

async fn ask<D: Database<Pool = P>, P>(db: &ReplicatedDb<D>) -> Result<Reason, Error>
where
    P: rocket_replicated::backend::Backend,
{
    db.get().await?;
    Ok(db.choice().unwrap().reason())
}

async fn both(blog: ReplicatedDb<Blog>, shop: ReplicatedDb<Shop>) -> Result<String, Error> {
    Ok(format!("{:?} {:?}", ask(&blog).await?, ask(&shop).await?))
}

#[get("/")]
async fn read(blog: ReplicatedDb<Blog>, shop: ReplicatedDb<Shop>) -> Result<String, Error> {
    both(blog, shop).await
}

#[get("/changes/every")]
async fn changes_every(
    blog: ReplicatedDb<Blog>,
    _changes: ChangesDatabase,
    shop: ReplicatedDb<Shop>,
) -> Result<String, Error> {
    both(blog, shop).await
}

#[get("/changes/shop")]
async fn changes_shop(
    blog: ReplicatedDb<Blog>,
    shop: ReplicatedDb<Shop>,
    _changes: ChangesDatabase<Shop>,
) -> Result<String, Error> {
    both(blog, shop).await
}

#[post("/")]
async fn write(blog: ReplicatedDb<Blog>, shop: ReplicatedDb<Shop>) -> Result<String, Error> {
    both(blog, shop).await
}

#[post("/shop")]
async fn write_shop(shop: ReplicatedDb<Shop>) -> Result<String, Error> {
    Ok(format!("{:?}", ask(&shop).await?))
}

#[post("/reads/blog")]
async fn reads_blog(
    _reads: ReadsDatabase<Blog>,
    blog: ReplicatedDb<Blog>,
    shop: ReplicatedDb<Shop>,
) -> Result<String, Error> {
    both(blog, shop).await
}

fn app(blog: &lab::postgres::Lab, shop: &lab::sqlite::Lab) -> Rocket<Build> {
    let toml =
        format!("[debug.databases.blog]\n{}\n[debug.databases.shop]\n{}", blog.section(), shop.section());
    rocket(&toml)
        .attach(Replicated::<Blog>::fairing())
        .attach(Replicated::<Shop>::fairing())
        .mount("/", routes![read, changes_every, changes_shop, write, write_shop, reads_blog])
}

fn pins(response: &LocalResponse<'_>) -> Vec<Cookie<'static>> {
    let mut pins: Vec<_> = response.cookies().iter().cloned().collect();
    pins.sort_by(|a, b| a.name().cmp(b.name()));
    pins
}

fn names<'a>(pins: &'a [Cookie<'static>]) -> Vec<&'a str> {
    pins.iter().map(Cookie::name).collect()
}

#[test]
fn each_database_has_its_own_intent_and_pin() {
    let (blog, shop) = (lab::postgres::Lab::new(), lab::sqlite::Lab::new());
    let client = Client::untracked(app(&blog, &shop)).unwrap();
    for (path, answer, expected) in [
        ("/", "ReadMethod ReadMethod", &[][..]),
        ("/changes/every", "ChangesDatabase ChangesDatabase", &["blog_pin", "shop_pin"]),
        ("/changes/shop", "ReadMethod ChangesDatabase", &["shop_pin"]),
    ] {
        let response = client.get(path).dispatch();
        assert_eq!(names(&pins(&response)), expected, "{path}");
        assert_eq!(response.into_string().unwrap(), answer, "{path}");
    }
    let response = client.post("/reads/blog").dispatch();
    assert_eq!(names(&pins(&response)), ["shop_pin"]);
    assert_eq!(response.into_string().unwrap(), "ReadsDatabase WriteMethod");
}

#[test]
fn a_pin_of_one_database_says_nothing_of_another() {
    let (blog, shop) = (lab::postgres::Lab::new(), lab::sqlite::Lab::new());
    let client = Client::untracked(app(&blog, &shop)).unwrap();
    let read = |pin: Cookie<'static>| client.get("/").cookie(pin).dispatch().into_string().unwrap();

    let pins = pins(&client.post("/shop").dispatch());
    let [shop_pin] = &pins[..] else { panic!("{pins:?}") };
    assert_eq!(read(shop_pin.clone()), "ReadMethod Pinned");
    let renamed = Cookie::new("blog_pin", shop_pin.value().to_owned());
    assert_eq!(read(renamed), "ReadMethod ReadMethod");
}

#[test]
fn connections_of_rocket_db_pools_are_refused() {
    #[get("/bypass")]
    async fn bypass(_blog: rocket_db_pools::Connection<Blog>) -> Status {
        Status::Ok
    }

    let (blog, shop) = (lab::postgres::Lab::new(), lab::sqlite::Lab::new());
    let error = Client::untracked(app(&blog, &shop).mount("/", routes![bypass])).unwrap_err();
    assert!(matches!(error.kind(), rocket::error::ErrorKind::SentinelAborts(_)), "{error}");
}
