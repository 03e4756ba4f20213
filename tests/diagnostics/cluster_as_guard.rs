// In rocket_db_pools, `&Blog` is a guard. Here a cluster is managed state.
//~ &'r State<T>

use rocket_replicated::Cluster;
use rocket_replicated::sqlite::Database;

#[rocket::get("/")]
fn handler(_cluster: &Cluster<Database>) {}

fn main() {}
