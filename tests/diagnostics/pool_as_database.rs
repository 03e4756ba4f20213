// A guard for a pool, not for its database.
//~ `rocket_replicated::backend::Pool<Sqlite>` is not a database of rocket_replicated
//~ name the struct that has `#[derive(Database)]`, over a pool of this crate

use rocket_replicated::{ChangesDatabase, ReplicatedDb, sqlite};

#[rocket::get("/")]
fn handler(_changes: ChangesDatabase<sqlite::Pool>, _db: ReplicatedDb<sqlite::Pool>) {}

fn main() {}
