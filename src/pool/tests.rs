//! Tests of where connections and permits go, whatever happens to their holders. They use real SQLite files.

use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;

use rocket::futures::FutureExt;
use rocket::tokio::time::timeout;
use sqlx::pool::PoolConnection;
use sqlx::{Executor, Sqlite};

use super::*;
use crate::backend::url::DatabaseUrl;
use crate::config::SlaveLog;
use crate::health::{Mastership, ServerId, Subject};

const MAX: u32 = 2;
const SOON: Duration = Duration::from_secs(60);

/// A database file, which is removed when this is dropped.
struct File(PathBuf);

impl Drop for File {
    fn drop(&mut self) {
        for end in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{end}", self.0.display()));
        }
    }
}

fn pool(connect_timeout: Duration) -> (File, Arc<Pool<Sqlite>>) {
    static NEXT: AtomicUsize = AtomicUsize::new(0);

    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let file = std::env::temp_dir().join(format!("pool-{}-{number}.db", std::process::id()));
    std::fs::File::create(&file).unwrap();
    let master = ServerId(0);
    let mastership = Arc::new(Mastership::new(master));
    let settings = Settings {
        url: DatabaseUrl(format!("sqlite://{}", file.display())),
        connect_to: None,
        min_connections: 0,
        max_connections: MAX,
        connect_timeout,
        idle_timeout: None,
        extensions: Vec::new(),
        enforce_read_only: true,
        prepared_statements: true,
        slow_statement: None,
    };
    let pool = Pool::new(PoolOptions {
        database: "notes",
        access: Access::Writes,
        settings: &settings,
        timeout: connect_timeout,
        check_timeout: SOON,
        health: Health::new(
            master,
            Subject::Server,
            "notes",
            Arc::from("master"),
            SlaveLog::Masters,
            mastership,
        ),
        after_connect: None,
    });
    (File(file), pool.unwrap())
}

async fn checkout(pool: &Arc<Pool<Sqlite>>) -> Checkout<Sqlite> {
    pool.check_out(Asker::default()).await.unwrap()
}

async fn all_are_free(pool: &Arc<Pool<Sqlite>>) {
    timeout(SOON, async {
        while pool.in_use() > 0 {
            pool.reap();
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("all permits are back");
    assert_eq!(pool.queue.free(), MAX, "and none is there twice");
}

/// A step in the life of a checkout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Hold,
    Lend,
    Keep,
    /// The monitor finds out that the connection is dead.
    Die,
    /// The pool takes connections back from sessions, as when other requests wait.
    Reclaim,
    Tend,
}

enum Has {
    Checkout(Checkout<Sqlite>),
    Held(Held<Sqlite>),
    Lent { _conn: PoolConnection<Sqlite> },
    Kept { _here: KeptConnection<Sqlite> },
    Nothing,
}

/// Tries all sequences of three steps. In the end, every permit is back, once, and the pool serves.
#[rocket::async_test]
async fn a_permit_comes_back_once_whatever_happens() {
    use Step::*;

    const STEPS: [Step; 6] = [Hold, Lend, Keep, Die, Reclaim, Tend];

    let (_file, pool) = pool(SOON);
    for number in 0..STEPS.len().pow(3) {
        let steps = [number / 36, number / 6 % 6, number % 6].map(|index| STEPS[index]);
        let checkout = checkout(&pool).await;
        let state = Arc::downgrade(checkout.state());
        let mut has = Has::Checkout(checkout);
        for step in steps {
            has = match (step, has) {
                (Hold, Has::Checkout(checkout)) => Has::Held(Held::new(checkout)),
                (Lend, Has::Checkout(checkout)) => Has::Lent { _conn: checkout.lend(Lending::Connection) },
                (Lend, Has::Held(held)) => Has::Lent { _conn: held.lend() },
                (Keep, Has::Checkout(checkout)) => {
                    let kept = KeptConnection::new(checkout, Asker::default());
                    kept.map_or(Has::Nothing, |sticky| Has::Kept { _here: sticky })
                }
                (Die, has) => {
                    if let Some(state) = state.upgrade() {
                        state.end(Ended::Dead);
                    }
                    has
                }
                (Reclaim, has) => {
                    pool.reclaim(Duration::ZERO);
                    has
                }
                (Tend, has) => {
                    pool.tend();
                    has
                }
                (_, has) => has,
            };
            let is_dead = state.upgrade().is_some_and(|state| state.custody.ended() == Some(Ended::Dead));
            let is_held = matches!(has, Has::Held(_) | Has::Lent { .. });
            assert!(!(is_dead && is_held) || pool.in_use() == 0, "{steps:?}: whoever holds it has no place");
            assert!(pool.in_use() <= 1, "{steps:?}");
        }
        drop(has);
        all_are_free(&pool).await;
    }
}

#[rocket::async_test]
async fn who_waits_gets_the_place_of_one_that_was_held_and_died() {
    let (_file, pool) = pool(SOON);
    let held: Vec<_> = [checkout(&pool).await, checkout(&pool).await].map(Held::new).into();
    let states: Vec<_> = held.iter().map(Held::state).collect();
    let mut waiting = Box::pin(pool.check_out(Asker::default()));
    assert!(waiting.as_mut().now_or_never().is_none(), "both are held");
    states[0].end(Ended::Dead);
    let checkout = timeout(SOON, waiting).await.expect("a place").unwrap();
    assert!(!Arc::ptr_eq(checkout.state(), &states[0]), "a new connection");
    assert_eq!(pool.in_use(), MAX);
    drop((checkout, held));
    all_are_free(&pool).await;
}

#[rocket::async_test]
async fn who_gives_up_leaves_no_place_behind() {
    let (_file, pool) = pool(SOON);
    // The request gives up before the first poll, while its connection opens, and while it waits in line.
    for polls in 0..50 {
        let taken: Vec<_> = match polls % 2 {
            0 => Vec::new(),
            _ => vec![checkout(&pool).await, checkout(&pool).await],
        };
        let mut asks = Box::pin(pool.check_out(Asker::default()));
        for _ in 0..polls {
            if asks.as_mut().now_or_never().is_some() {
                asks = Box::pin(pool.check_out(Asker::default()));
            }
            tokio::task::yield_now().await;
        }
        // The permit of a checkout that ends goes to the request that asks, which is gone in the same moment.
        drop(taken);
        drop(asks);
        all_are_free(&pool).await;
    }
}

#[rocket::async_test]
async fn a_ping_is_no_use() {
    let (_file, pool) = pool(SOON);
    checkout(&pool).await.put_back();
    let mut permit = pool.queue.take_if(&pool, |_| true).unwrap();
    let mut conn = permit.conn.take().unwrap();
    let later = Instant::now() + Duration::from_secs(40);
    let idle = conn.state.idle_for(later);
    assert!(idle > Duration::from_secs(30));
    assert!(conn.ping(SOON).await);
    assert_eq!(conn.state.idle_for(later), idle, "`idle_timeout` counts on");

    // A statement is a use.
    let mut checkout = Checkout::new(permit.with(conn));
    tokio::time::sleep(Duration::from_millis(5)).await;
    let (conn, mut watch) = checkout.parts();
    watch.over(std::pin::pin!(conn.execute("SELECT 1"))).await.unwrap();
    drop(watch);
    assert!(checkout.state().idle_for(later) < idle);
    checkout.put_back();
}

#[rocket::async_test]
async fn one_that_goes_from_hand_to_hand_ends_when_it_is_old() {
    let (_file, mut pool) = pool(SOON);
    Arc::get_mut(&mut pool).unwrap().max_lifetime = Duration::from_millis(20);
    pool.tend();
    let first = checkout(&pool).await;
    let state = Arc::downgrade(first.state());
    // Never idle: each time, another checkout waits for the connection already.
    let (mut present, _other) = (first, checkout(&pool).await);
    timeout(SOON, async {
        while state.upgrade().is_some() {
            let mut next = Box::pin(pool.check_out(Asker::default()));
            assert!(next.as_mut().now_or_never().is_none());
            present.put_back();
            present = next.await.unwrap();
        }
    })
    .await
    .expect("an end of the first one");
    assert!(pool.counts().closed.read::<CloseCause>().get(CloseCause::Old) >= 1);
}

#[test]
fn those_of_one_age_do_not_end_together() {
    let lifetimes: std::collections::BTreeSet<_> =
        (0..100).map(|_| connection::lifetime(MAX_LIFETIME)).collect();
    assert!(lifetimes.len() > 50);
    assert!(lifetimes.iter().all(|lifetime| *lifetime <= MAX_LIFETIME && *lifetime >= MAX_LIFETIME / 2));
}

/// A handle may be dropped by a thread outside of any runtime.
#[test]
fn one_that_is_old_may_come_back_outside_of_a_runtime() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (_file, mut pool) = pool(SOON);
    let old = runtime.block_on(async {
        Arc::get_mut(&mut pool).unwrap().max_lifetime = Duration::ZERO;
        pool.tend();
        let old = checkout(&pool).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        old
    });
    old.put_back();
    assert_eq!(pool.in_use(), 0);
}
