//! `Cluster::pool`: sqlx's own pools, for crates that ask for one.

crate::on_every_database! {
    use rocket::local::asynchronous::Client;
    use rocket_replicated::Role;
    use sqlx::{AssertSqlSafe, Executor};

    use support::rocket_over;

    type Cluster = rocket_replicated::Cluster<Database>;
    type SqlxPool = sqlx::Pool<Driver>;
    type Driver = <Pool as rocket_replicated::backend::Backend>::Db;

    const WRITE: &str = "INSERT INTO notes (id, body) VALUES (7, 'from elsewhere')";
    const COUNT: &str = "SELECT count(*) FROM notes";

    async fn launch(section: &str) -> (Client, Cluster) {
        let client = Client::untracked(rocket_over(section).attach(Replicated::fairing())).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap().clone();
        (client, cluster)
    }

    /// A write by a crate that knows nothing of this one.
    async fn foreign_write(pool: &SqlxPool) -> Result<(), sqlx::Error> {
        sqlx::query(WRITE).execute(pool).await.map(drop)
    }

    async fn foreign_count(pool: &SqlxPool) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar(COUNT).fetch_one(pool).await
    }

    fn refused(error: sqlx::Error) -> String {
        error.as_database_error().and_then(|error| error.code()).map(String::from).unwrap_or_default()
    }

    #[support::async_test]
    async fn the_masters_pool_writes() {
        let lab = Lab::new();
        let (_client, cluster) = launch(&lab.section()).await;
        let pool = cluster.pool(Role::Master);
        foreign_write(&pool).await.unwrap();
        assert_eq!(lab.notes(), ["from elsewhere"]);

        let before = pool.size();
        cluster.pool(Role::Master).acquire().await.unwrap();
        assert_eq!((before, pool.size()), (1, 1), "it is the same pool");
        let in_use: u32 = cluster.status().iter().map(|node| node.in_use).sum();
        let _held = pool.acquire().await.unwrap();
        assert_eq!(cluster.status().iter().map(|node| node.in_use).sum::<u32>(), in_use, "nobody counts it");
    }

    #[support::async_test]
    async fn a_slaves_pool_only_reads_replayed_writes() {
        let lab = Lab::new();
        let (_client, cluster) = launch(&lab.section()).await;
        lab.pause();
        foreign_write(&cluster.pool(Role::Master)).await.unwrap();
        for pool in [cluster.pool(Role::Slave), cluster.slave_pool("slave-1").unwrap()] {
            assert_eq!(foreign_count(&pool).await.unwrap(), 0);
            let error = foreign_write(&pool).await.unwrap_err();
            assert_eq!(refused(error), REFUSED);
        }
        lab.resume();
        assert_eq!(foreign_count(&cluster.slave_pool("slave-2").unwrap()).await.unwrap(), 1);
        let unknown = cluster.slave_pool("slave-3").unwrap_err();
        assert_eq!(unknown.to_string(), "no slave is named `slave-3`");
    }

    #[support::async_test]
    async fn without_a_slave_the_pool_for_reads_is_the_masters() {
        let lab = Lab::new();
        let (_client, cluster) = launch(&lab.section_alone()).await;
        foreign_write(&cluster.pool(Role::Master)).await.unwrap();
        let pool = cluster.pool(Role::Slave);
        assert_eq!(foreign_count(&pool).await.unwrap(), 1);
        let sql = AssertSqlSafe(WRITE.replace('7', "8"));
        let error = pool.execute(sql).await.unwrap_err();
        assert_eq!(refused(error), REFUSED);

        let (_client, cluster) = launch(&lab.section()).await;
        lab.pause();
        cluster.stop_reading_slaves();
        assert_eq!(foreign_count(&cluster.pool(Role::Slave)).await.unwrap(), 1);
    }

    #[support::async_test]
    async fn a_closed_pool_is_replaced() {
        let lab = Lab::new();
        let (_client, cluster) = launch(&lab.section()).await;
        cluster.pool(Role::Master).close().await;
        foreign_write(&cluster.pool(Role::Master)).await.unwrap();
    }

    #[support::async_test]
    async fn a_shutdown_closes_the_pools() {
        let lab = Lab::new();
        let (client, cluster) = launch(&lab.section()).await;
        let pools = [cluster.pool(Role::Master), cluster.pool(Role::Slave)];
        foreign_count(&pools[0]).await.unwrap();
        client.terminate().await;
        let closed = || pools.iter().all(sqlx::Pool::is_closed);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !closed() && std::time::Instant::now() < deadline {
            rocket::tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        assert!(closed());
        assert!(cluster.pool(Role::Master).is_closed());
    }
}
