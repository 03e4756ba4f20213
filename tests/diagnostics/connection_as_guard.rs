// `Connection<Blog>` as with rocket_db_pools, but with this crate's type of that name.
//~ `Blog` is not a driver of rocket_replicated
//~ a handler asks for `ReplicatedDb<Blog>`, which stands for the `Connection<Blog>` of rocket_db_pools, and runs its queries over `&db`

use rocket_replicated::{Connection, Database, rocket_db_pools};

#[derive(Database)]
#[database("blog")]
struct Blog(rocket_replicated::sqlite::Pool);

#[rocket::get("/")]
fn handler(_db: Connection<Blog>) {}

fn main() {}
