// `&mut db`, the next attempt. The compiler once reached its recursion limit here.
//~ but it is implemented for `&ReplicatedDb<_>`

use rocket_replicated::Error;
use rocket_replicated::sqlite::ReplicatedDb;

#[rocket::get("/")]
async fn handler(mut db: ReplicatedDb) -> Result<(), Error> {
    sqlx::query("SELECT 1").execute(&mut db).await?;
    Ok(())
}

fn main() {}
