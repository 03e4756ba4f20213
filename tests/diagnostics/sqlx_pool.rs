// `struct Blog(sqlx::SqlitePool)`, as it was, but with the sqlx of this crate.
//~ is implemented for `rocket_replicated::backend::Pool<DB>`

use rocket_replicated::{Database, rocket_db_pools};

#[derive(Database)]
#[database("blog")]
struct Blog(sqlx::SqlitePool);

fn main() {}
