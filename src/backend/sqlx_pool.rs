use std::fmt;
use std::ops::Deref;

use rocket::figment::Figment;
use sqlx::pool::PoolConnection;

use super::{Backend, Driver};

/// A `rocket_db_pools` pool over the current sqlx, to be named in a `#[derive(Database)]`.
///
/// `rocket_db_pools` 0.2 has such pools itself, but over sqlx 0.7.
pub struct Pool<DB: Driver>(sqlx::Pool<DB>);

impl<DB: Driver> Backend for Pool<DB> {
    type Db = DB;

    fn wrap(pool: sqlx::Pool<DB>) -> Self {
        Self(pool)
    }

    fn inner(&self) -> &sqlx::Pool<DB> {
        &self.0
    }
}

#[rocket::async_trait]
impl<DB: Driver> rocket_db_pools::Pool for Pool<DB> {
    type Connection = PoolConnection<DB>;
    type Error = rocket_db_pools::Error<sqlx::Error>;

    /// Always an error: `Database::init()` of `rocket_db_pools` would open one pool, which bypasses
    /// the slaves, the read-only connections and the pins.
    async fn init(_figment: &Figment) -> Result<Self, Self::Error> {
        let remedy = "attach `rocket_replicated::Replicated::<D>::fairing()` in place of `D::init()`";
        Err(rocket_db_pools::Error::Init(sqlx::Error::Configuration(remedy.into())))
    }

    async fn get(&self) -> Result<Self::Connection, Self::Error> {
        self.0.acquire().await.map_err(rocket_db_pools::Error::Get)
    }

    async fn close(&self) {
        self.0.close().await;
    }
}

impl<DB: Driver> Deref for Pool<DB> {
    type Target = sqlx::Pool<DB>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<DB: Driver> fmt::Debug for Pool<DB> {
    /// Not the inner pool's: that shows the connect options, password and all.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("driver", &DB::NAME)
            .field("size", &self.0.size())
            .field("idle", &self.0.num_idle())
            .finish()
    }
}
