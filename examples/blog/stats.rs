//! What is counted, in a database of its own: views by requests, words by a job in the background.

use rocket::tokio;
use rocket_replicated::{Cluster, Error, ReplicatedDb};
use serde::Serialize;

use crate::{Blog, Post, Stats};

#[derive(Serialize, sqlx::FromRow)]
pub struct Counts {
    /// `None` until the job has counted them.
    words: Option<i32>,
    views: i64,
}

impl Counts {
    pub async fn find(post: i64, db: &ReplicatedDb<Stats>) -> Result<Self, Error> {
        let sql = "SELECT words, views FROM counts WHERE post_id = $1";
        Ok(sqlx::query_as(sql).bind(post).fetch_one(db).await?)
    }
}

pub async fn count_view(post: i64, db: &ReplicatedDb<Stats>) -> Result<(), Error> {
    let sql = "INSERT INTO counts (post_id, views) VALUES ($1, 1)
        ON CONFLICT (post_id) DO UPDATE SET views = counts.views + 1";
    sqlx::query(sql).bind(post).execute(db).await?;
    Ok(())
}

/// Leaves the counting to a job, which outlives the request: it takes along the clusters, which tell
/// where to read and to write, and the pin of the request that wrote the post.
pub fn count_words_later(post: i64, blog: Cluster<Blog>, pin: Option<String>, stats: Cluster<Stats>) {
    tokio::spawn(async move {
        let counted = async {
            // By the pin from the master: slaves may not have the post yet.
            let post = Post::find(post, &blog.read(pin.as_deref())).await?;
            count_words(&post, &stats.write()).await
        };
        if let Err(error) = counted.await {
            log::error!("The words of post {post} are not counted: {error}");
        }
    });
}

async fn count_words(post: &Post, db: &ReplicatedDb<Stats>) -> Result<(), Error> {
    let words = i32::try_from(post.body.split_whitespace().count()).unwrap_or(i32::MAX);
    let sql = "INSERT INTO counts (post_id, words) VALUES ($1, $2)
        ON CONFLICT (post_id) DO UPDATE SET words = excluded.words";
    sqlx::query(sql).bind(post.id).bind(words).execute(db).await?;
    Ok(())
}
