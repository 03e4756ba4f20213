// `struct Blog(rocket_db_pools::sqlx::SqlitePool)`, unchanged: the pool of `rocket_db_pools` over sqlx 0.7.
//~ `SqlitePool` is not a pool that rocket_replicated can open
//~ name the pool of this crate: `#[derive(Database)] struct …(rocket_replicated::postgres::Pool);`
//~ see "Coming from rocket_db_pools"

use rocket_replicated::{Database, Replicated, ReplicatedDb, rocket_db_pools};

mod sqlx_0_7 {
    use rocket::figment::Figment;

    pub struct SqlitePool;

    #[rocket::async_trait]
    impl rocket_replicated::rocket_db_pools::Pool for SqlitePool {
        type Connection = ();
        type Error = std::convert::Infallible;

        async fn init(_: &Figment) -> Result<Self, Self::Error> {
            unimplemented!()
        }

        async fn get(&self) -> Result<Self::Connection, Self::Error> {
            unimplemented!()
        }

        async fn close(&self) {}
    }
}

#[derive(Database)]
#[database("blog")]
struct Blog(sqlx_0_7::SqlitePool);

#[rocket::get("/")]
fn handler(_db: ReplicatedDb<Blog>) {}

fn main() {
    let _ = rocket::build().attach(Replicated::<Blog>::fairing());
}
