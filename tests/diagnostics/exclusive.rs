// `&mut db`, the next try. The compiler once ran out of depth here.
//~ but it is implemented for `&ReplicatedDb<_>`

use rocket_replicated::Error;
use rocket_replicated::sqlite::ReplicatedDb;

#[rocket::get("/")]
async fn handler(mut db: ReplicatedDb) -> Result<(), Error> {
    sqlx::query("SELECT 1").execute(&mut db).await?;
    Ok(())
}

fn main() {}
