// `&mut **db`, as with rocket_db_pools. No trait of this crate is involved here, so the guide has the remedy.
//~ type `ReplicatedDb<rocket_replicated::sqlite::Database>` cannot be dereferenced

use rocket_replicated::Error;
use rocket_replicated::sqlite::ReplicatedDb;

#[rocket::get("/")]
async fn handler(mut db: ReplicatedDb) -> Result<(), Error> {
    sqlx::query("SELECT 1").execute(&mut **db).await?;
    Ok(())
}

fn main() {}
