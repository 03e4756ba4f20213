// `struct Blog(sqlx::SqlitePool)`, unchanged except that sqlx is that of this crate.
//~ is implemented for `rocket_replicated::backend::Pool<DB>`

use rocket_replicated::{Database, rocket_db_pools};

#[derive(Database)]
#[database("blog")]
struct Blog(sqlx::SqlitePool);

fn main() {}
