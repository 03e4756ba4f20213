use std::convert::Infallible;
use std::fmt;
use std::marker::PhantomData;

use rocket::figment::Figment;
use sqlx::pool::PoolConnection;

use super::{Backend, Driver};

/// A `rocket_db_pools` pool over the current sqlx, to be named in a `#[derive(Database)]`.
///
/// `rocket_db_pools` 0.2 has such pools itself, but over sqlx 0.7. This type has no values: it names the driver, and
/// [`Replicated`](crate::Replicated) opens pools of its own.
pub struct Pool<DB: Driver>(Infallible, PhantomData<fn() -> DB>);

impl<DB: Driver> Backend for Pool<DB> {
    type Db = DB;
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
        match self.0 {}
    }

    async fn close(&self) {
        match self.0 {}
    }
}

impl<DB: Driver> fmt::Debug for Pool<DB> {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {}
    }
}
