// `&Blog` was a guard; a cluster is managed state.
//~ &'r State<T>

use rocket_replicated::Cluster;
use rocket_replicated::sqlite::Database;

#[rocket::get("/")]
fn handler(_cluster: &Cluster<Database>) {}

fn main() {}
