//! An address leads elsewhere from one moment to the next, while the connections to its former server stay open and
//! silent: a virtual IP that moved, a host that is gone, a router that forgets.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rocket::tokio;

use rocket_replicated_testing::Dbms;
use rocket_replicated_testing::Server;

/// The number of connections. There are more writers than connections.
const CONNECTIONS: usize = 16;
const WRITERS: i64 = 24;

/// The time after which new requests do not notice the move any more.
const RECOVERED: Duration = Duration::from_secs(10);

/// The words of the error of a write that may have been done.
const UNKNOWN: &str = "outcome is unknown";

/// A write in the table `writes`, with the port of the server that ran it. A replicated row has the port of the master.
type Row = (i64, u16);

/// SQL that takes a given time.
trait Slow: Dbms {
    /// The table has no key, so that a write that runs twice is there twice.
    const TABLE: &str;

    /// Writes the id that is its argument, and takes this long.
    fn insert(seconds: f64) -> String;

    /// Takes this long.
    fn select(seconds: f64) -> String;

    /// Takes this long at a slave, and no time at a master.
    fn select_at_slave(seconds: f64) -> String;

    /// The ports of the clients whose statements take this long and run now.
    fn running(seconds: f64) -> String;
}

impl Slow for rocket_replicated_testing::mysql::MySql {
    const TABLE: &str = "CREATE TABLE writes (id BIGINT NOT NULL, port INTEGER NOT NULL)";

    fn insert(seconds: f64) -> String {
        format!("INSERT INTO writes (id, port) SELECT ? + SLEEP({seconds}), @@port")
    }

    fn select(seconds: f64) -> String {
        format!("SELECT SLEEP({seconds})")
    }

    fn select_at_slave(seconds: f64) -> String {
        format!("SELECT IF(@@read_only, SLEEP({seconds}), 0)")
    }

    fn running(seconds: f64) -> String {
        format!(
            "SELECT SUBSTRING_INDEX(host, ':', -1) FROM information_schema.processlist \
             WHERE state = 'User sleep' AND info LIKE '%SLEEP({seconds})%'"
        )
    }
}

impl Slow for rocket_replicated_testing::postgres::Postgres {
    const TABLE: &str =
        "CREATE TABLE writes (id BIGINT NOT NULL, port INTEGER NOT NULL); GRANT ALL ON writes TO app";

    fn insert(seconds: f64) -> String {
        format!("INSERT INTO writes (id, port) SELECT $1, inet_server_port() FROM pg_sleep({seconds})")
    }

    fn select(seconds: f64) -> String {
        format!("SELECT 1 FROM pg_sleep({seconds})")
    }

    fn select_at_slave(seconds: f64) -> String {
        format!("SELECT CASE WHEN pg_is_in_recovery() THEN pg_sleep({seconds}) END")
    }

    fn running(seconds: f64) -> String {
        format!(
            "SELECT client_port FROM pg_stat_activity \
             WHERE wait_event = 'PgSleep' AND query LIKE '%pg_sleep({seconds})%'"
        )
    }
}

/// The ports of the clients whose statements take this long and run now at a server.
fn running<D: Slow>(server: &Server<D>, seconds: f64) -> Vec<u16> {
    server.sql(&D::running(seconds)).lines().map(|port| port.parse().unwrap()).collect()
}

fn rows(lines: &str) -> Vec<Row> {
    let row = |line: &str| {
        let (id, port) = line.split_once(['|', '\t']).unwrap();
        (id.parse().unwrap(), port.parse().unwrap())
    };
    lines.lines().map(row).collect()
}

const ROWS: &str = "SELECT id, port FROM writes";

/// Waits until this time has passed since then.
async fn after(begun: Instant, time: Duration) {
    tokio::time::sleep_until((begun + time).into()).await;
}

/// A write of a load, and the answer that its writer got.
#[derive(Debug)]
struct Write {
    id: i64,
    begun: Instant,
    told: Result<(), String>,
}

/// Checks a load during which the address moved, given the rows of each server in the end.
fn judge(writes: &[Write], moved: Instant, servers: &[Vec<Row>]) {
    let late = writes.iter().filter(|write| write.begun >= moved + RECOVERED);
    let (good, failed): (Vec<_>, Vec<_>) = late.partition(|write| write.told.is_ok());
    assert!(
        failed.is_empty(),
        "of the writes that began {RECOVERED:?} after the move or later, {} failed and {} did not: {:?}",
        failed.len(),
        good.len(),
        failed[0].told
    );
    assert!(good.len() > CONNECTIONS, "only {} writes since", good.len());

    let mut runs = BTreeMap::<i64, BTreeSet<u16>>::new();
    for server in servers {
        let mut here = BTreeSet::new();
        for &(id, port) in server {
            assert!(here.insert(id), "{id} was run twice");
            runs.entry(id).or_default().insert(port);
        }
    }
    for write in writes {
        let runs = runs.get(&write.id).map_or(0, BTreeSet::len);
        assert!(runs < 2, "{write:?} was run at two servers");
        match &write.told {
            Ok(()) => assert_eq!(runs, 1, "{write:?} is not there"),
            Err(error) => assert!(runs == 0 || error.contains(UNKNOWN), "{write:?} was done"),
        }
    }
    let unknown = |write: &&Write| write.told.as_ref().is_err_and(|error| error.contains(UNKNOWN));
    let unknown = writes.iter().filter(unknown).count();
    // Only writes that had a connection when the address moved may have an unknown outcome.
    assert!((1..=CONNECTIONS).contains(&unknown), "{unknown} writers were told that {UNKNOWN}");
}

crate::on_servers! {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use rocket::futures::future::join_all;
    use rocket::local::asynchronous::Client;
    use rocket::tokio::task::JoinHandle;
    use rocket_replicated::Cluster;
    use sqlx::AssertSqlSafe;

    use support::{eventually, rocket_over};
    use rocket_replicated_testing::Wire;
    use super::*;

    type Driver = <Pool as rocket_replicated::backend::Backend>::Db;

    /// The time that writes of a load take: long enough for all connections to be in use.
    pub(super) const WRITE: f64 = 0.05;

    async fn launch(section: &str) -> (Client, Cluster<Database>) {
        let section = format!("check_timeout = 2\n{section}");
        let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap().clone();
        (client, cluster)
    }

    /// A lab whose master is behind a wire, and the section for that.
    fn behind_a_wire(keys: &str) -> (Lab, Wire, String) {
        let lab = Lab::new();
        lab.sql(<Dbms as Slow>::TABLE);
        let wire = Wire::to(lab.servers().master.port());
        let section = format!("url = \"{}\"\n{keys}\n", wire.url(lab.master_url()));
        (lab, wire, section)
    }

    async fn insert(db: &ReplicatedDb, id: i64, seconds: f64) -> Result<(), sqlx::Error> {
        let insert = AssertSqlSafe(Dbms::insert(seconds));
        sqlx::query(insert).bind(id).execute(db).await.map(drop)
    }

    async fn select(db: &ReplicatedDb, seconds: f64) -> Result<(), sqlx::Error> {
        sqlx::query(AssertSqlSafe(Dbms::select(seconds))).execute(db).await.map(drop)
    }

    /// Writers that write all the time. They take a new handle for each write, as requests do.
    pub(super) struct Load {
        stopped: Arc<AtomicBool>,
        writers: Vec<JoinHandle<Vec<Write>>>,
    }

    impl Load {
        pub(super) fn start(cluster: &Cluster<Database>) -> Self {
            let stopped = Arc::new(AtomicBool::new(false));
            let writer = |writer| {
                let (cluster, stopped) = (cluster.clone(), stopped.clone());
                tokio::spawn(async move {
                    let mut writes = Vec::new();
                    while !stopped.load(Ordering::Relaxed) {
                        let id = writer * 1_000_000 + writes.len() as i64;
                        let begun = Instant::now();
                        let told = insert(&cluster.write(), id, WRITE).await.map_err(|error| error.to_string());
                        if told.is_err() {
                            // A writer pauses after an error, as people do.
                            tokio::time::sleep(Duration::from_millis(50)).await;
                        }
                        writes.push(Write { id, begun, told });
                    }
                    writes
                })
            };
            let writers = (0..WRITERS).map(writer).collect();
            Self { stopped, writers }
        }

        pub(super) async fn stop(self) -> Vec<Write> {
            self.stopped.store(true, Ordering::Relaxed);
            let all = tokio::time::timeout(Duration::from_secs(30), join_all(self.writers)).await;
            let all = all.expect("no writer waits for ever");
            all.into_iter().flat_map(|writes| writes.unwrap()).collect()
        }
    }

    /// Checks that all connections can be used at the same time.
    pub(super) async fn is_whole(cluster: &Cluster<Database>) {
        let handles: Vec<_> = (0..CONNECTIONS).map(|_| cluster.write()).collect();
        let all = join_all(handles.iter().map(|db| db.begin())).await;
        for transaction in all {
            let mut transaction = transaction.expect("a connection for each");
            sqlx::query("SELECT 1").execute(&mut *transaction).await.unwrap();
            transaction.commit().await.unwrap();
        }
    }

    #[support::async_test]
    async fn under_load_all_writes_succeed_soon_after_and_none_is_run_twice() {
        let (lab, wire, section) = behind_a_wire(&format!("max_connections = {CONNECTIONS}"));
        let (_client, cluster) = launch(&section).await;
        let load = Load::start(&cluster);
        let master = &lab.servers().master;
        eventually("the load", async || running(master, WRITE).len() > CONNECTIONS / 2).await;

        wire.silence_open();
        let moved = Instant::now();
        after(moved, 2 * RECOVERED + Duration::from_secs(2)).await;
        let writes = load.stop().await;
        judge(&writes, moved, &[rows(&lab.sql(ROWS))]);
        is_whole(&cluster).await;
    }

    /// Opens all connections, and lets them idle for longer than an idle connection is trusted.
    async fn asleep(cluster: &Cluster<Database>, handle: impl Fn() -> ReplicatedDb, wire: &Wire) {
        eventually("as many connections as there may be", async || {
            let handles: Vec<_> = (0..CONNECTIONS).map(|_| handle()).collect();
            // On a busy machine, some selects may get no connection in time.
            join_all(handles.iter().map(|db| select(db, 0.5))).await;
            wire.open() >= CONNECTIONS
        })
        .await;
        let idle = Instant::now();
        eventually("silence", async || cluster.status().iter().all(|node| node.in_use == 0)).await;
        after(idle, Duration::from_secs(2)).await;
    }

    /// Asks a handle in one of several ways.
    async fn ask(number: usize, db: &ReplicatedDb) -> Result<(), sqlx::Error> {
        match number {
            0 => {
                let mut transaction = db.begin().await?;
                sqlx::query("SELECT 1").execute(&mut *transaction).await?;
                transaction.commit().await
            }
            1 => {
                let mut connection = db.get().await?;
                sqlx::query("SELECT 1").execute(&mut *connection).await.map(drop)
            }
            _ => select(db, 0.0).await,
        }
    }

    /// Checks how long four requests at once have to wait, with a dead idle connection for each of them.
    async fn costs_no_request(handles: Vec<ReplicatedDb>) {
        const AT_MOST: Duration = Duration::from_secs(10);

        let requests = handles.iter().enumerate().map(|(number, db)| async move {
            let begun = Instant::now();
            let answer = tokio::time::timeout(Duration::from_secs(30), ask(number, db)).await;
            (answer.expect("an answer"), begun.elapsed())
        });
        let answers = join_all(requests).await;
        assert!(
            answers.iter().all(|(answer, time)| answer.is_ok() && *time < AT_MOST),
            "not within {AT_MOST:?}: {answers:?}"
        );
    }

    #[support::async_test]
    async fn a_write_does_not_pay_for_connections_that_died_in_their_sleep() {
        let (_lab, wire, section) = behind_a_wire(&format!("max_connections = {CONNECTIONS}"));
        let (_client, cluster) = launch(&section).await;
        asleep(&cluster, || cluster.write(), &wire).await;
        wire.silence_open();
        costs_no_request((0..4).map(|_| cluster.write()).collect()).await;
    }

    /// A lab whose first slave is behind a wire, and the section with that slave alone.
    fn slave_behind_a_wire(keys: &str) -> (Lab, Wire, String) {
        let lab = Lab::new();
        let wire = Wire::to(lab.servers().slaves[0].port());
        let slave = wire.url(&lab.slave_urls()[0]);
        let section = format!(
            "url = \"{}\"\nslaves = [{{ url = \"{slave}\", name = \"behind-a-wire\" }}]\n\
             max_connections = {CONNECTIONS}\n{keys}\n",
            lab.master_url()
        );
        (lab, wire, section)
    }

    #[support::async_test]
    async fn a_read_does_not_pay_for_connections_that_died_in_their_sleep() {
        let (_lab, wire, section) = slave_behind_a_wire("");
        let (_client, cluster) = launch(&section).await;
        asleep(&cluster, || cluster.read(None), &wire).await;
        wire.silence_open();
        costs_no_request((0..4).map(|_| cluster.read(None)).collect()).await;
    }

    #[support::async_test]
    async fn reads_under_way_at_a_slave_are_run_again() {
        // Long enough for all reads to be under way, on a busy machine.
        const READ: f64 = 10.25;

        let (lab, wire, section) = slave_behind_a_wire("slave_timeout = 15");
        let (_client, cluster) = launch(&section).await;
        let slave = &lab.servers().slaves[0];
        let readers = (0..CONNECTIONS).map(|_| {
            let db = cluster.read(None);
            tokio::spawn(async move {
                sqlx::query(AssertSqlSafe(Dbms::select_at_slave(READ))).execute(&db).await
            })
        });
        let readers: Vec<_> = readers.collect();
        eventually("the reads", async || running(slave, READ).len() == CONNECTIONS).await;
        wire.silence_open();
        let all = tokio::time::timeout(Duration::from_secs(60), join_all(readers)).await;
        for read in all.expect("no reader waits for ever") {
            read.unwrap().unwrap();
        }
    }

    /// A write that takes longer than the disturbance.
    const LONG: f64 = 4.5;
    const MEANTIME: Duration = Duration::from_millis(1500);

    async fn is_done_once(
        server: &Server<Dbms>,
        count: impl Fn() -> usize,
        cluster: &Cluster<Database>,
        meantime: impl AsyncFnOnce(),
    ) {
        let db = cluster.write();
        let write = insert(&db, 1, LONG);
        let meanwhile = async {
            eventually("the write", async || running(server, LONG).len() == 1).await;
            meantime().await;
        };
        let (written, ()) = tokio::join!(write, meanwhile);
        written.unwrap();
        assert_eq!(count(), 1);
        // The second write runs on the connection that the handle has.
        insert(&db, 2, 0.0).await.unwrap();
        assert_eq!(count(), 2);
    }

    #[support::async_test]
    async fn a_long_write_survives_a_blip() {
        let (lab, wire, section) = behind_a_wire("");
        let (_client, cluster) = launch(&section).await;
        let count = || rows(&lab.sql(ROWS)).len();
        is_done_once(&lab.servers().master, count, &cluster, async || {
            wire.hold();
            after(Instant::now(), MEANTIME).await;
            wire.pass();
        })
        .await;
    }

    #[support::async_test]
    async fn a_long_write_survives_a_freeze() {
        let servers = rocket_replicated_testing::Servers::<Dbms>::start(Default::default(), 0);
        let master = &servers.master;
        master.sql(<Dbms as Slow>::TABLE);
        let (_client, cluster) = launch(&format!("url = \"{}\"\n", master.url())).await;
        is_done_once(master, || rows(&master.sql(ROWS)).len(), &cluster, async || {
            master.freeze();
            after(Instant::now(), MEANTIME).await;
            master.thaw();
        })
        .await;
    }

    /// The transaction is given up while a statement is being prepared. Waiting for the rest of that statement would
    /// have no limit.
    #[support::async_test]
    async fn a_transaction_that_is_given_up_leaves_no_connection_behind() {
        let (lab, wire, section) = behind_a_wire("max_connections = 4\n");
        let (_client, cluster) = launch(&section).await;
        lab.sql("INSERT INTO notes (body) VALUES ('a note')");
        for _ in 0..3 {
            let db = cluster.write();
            let mut transaction = db.begin().await.unwrap();
            wire.delay(Duration::from_millis(100));
            let select = sqlx::query(sql("SELECT id, body FROM notes WHERE body = $1")).bind("a note");
            let given_up = tokio::time::timeout(Duration::from_millis(50), select.fetch_all(&mut *transaction));
            assert!(given_up.await.is_err());
            drop(transaction);
            wire.pass();
        }
        let pool = || {
            let statistics = cluster.statistics();
            let is_it = |pool: &&rocket_replicated::PoolStatistics| {
                pool.used_for == rocket_replicated::PoolUse::Writes
            };
            statistics.servers[0].pools.iter().find(is_it).unwrap().clone()
        };
        let open = || pool().opened.count() - pool().closed.total();
        eventually("the end of the others", async || open() == u64::from(pool().idle)).await;
    }

    /// Some functions of other crates take the driver's own connection.
    #[support::async_test]
    async fn a_drivers_own_connection_takes_no_place_once_it_is_dead() {
        const FORGOTTEN: f64 = 3.25;

        let (lab, wire, section) = behind_a_wire("max_connections = 2\nconnect_timeout = 5\n");
        let (_client, cluster) = launch(&section).await;
        let master = &lab.servers().master;
        let waits = || {
            let db = cluster.write();
            tokio::spawn(async move {
                let mut held = db.get().await.unwrap();
                let conn: &mut <Driver as sqlx::Database>::Connection = &mut held;
                let _ = sqlx::query(AssertSqlSafe(Dbms::select(FORGOTTEN))).execute(conn).await;
            })
        };
        let waiting = [waits(), waits()];
        eventually("both", async || running(master, FORGOTTEN).len() == 2).await;
        wire.silence_open();
        assert!(insert(&cluster.write(), 1, 0.0).await.is_err(), "both places are taken");
        // After its restart, the server knows nothing of these sessions.
        master.kill();
        master.start();
        eventually("a write", async || insert(&cluster.write(), 2, 0.0).await.is_ok()).await;
        assert!(waiting.iter().all(|waiting| !waiting.is_finished()), "they wait on");
        waiting.iter().for_each(JoinHandle::abort);
    }

    #[support::async_test]
    async fn a_connection_that_the_network_forgets_is_given_up_alone() {
        const FORGOTTEN: f64 = 2.5;
        const REMEMBERED: f64 = 12.5;
        const SOON: Duration = Duration::from_secs(45);

        let (lab, wire, section) = behind_a_wire("");
        let (_client, cluster) = launch(&section).await;
        let master = &lab.servers().master;
        let (forgotten, remembered) = (cluster.write(), cluster.write());
        let forgotten = async {
            eventually("the long write", async || running(master, REMEMBERED).len() == 1).await;
            let told = tokio::time::timeout(2 * SOON, insert(&forgotten, 1, FORGOTTEN)).await;
            (told.expect("an end of it"), Instant::now())
        };
        let forget = async {
            eventually("the other", async || running(master, FORGOTTEN).len() == 1).await;
            wire.silence(running(master, FORGOTTEN)[0]);
            Instant::now()
        };
        // This write has a task of its own: the look for it below blocks, and would hold up anything polled beside it.
        let remembered = tokio::spawn(async move { insert(&remembered, 2, REMEMBERED).await });
        let ((told, ended), silent) = tokio::join!(forgotten, forget);
        remembered.await.unwrap().unwrap();
        let error = told.unwrap_err().to_string();
        assert!(error.contains(UNKNOWN), "{error}");
        assert!(ended < silent + SOON, "{:?}", ended - silent);
        let mut ids: Vec<_> = rows(&lab.sql(ROWS)).into_iter().map(|(id, _)| id).collect();
        ids.sort_unstable();
        assert_eq!(ids, [1, 2]);
    }

    /// Whichever function asks for the rows of a write, its error must not tell the client to try again.
    #[support::async_test]
    async fn a_write_whose_rows_were_asked_for_is_not_to_be_tried_again() {
        use rocket::futures::TryStreamExt;

        const FORGOTTEN: f64 = 2.75;
        const SOON: Duration = Duration::from_secs(45);

        let (lab, wire, section) = behind_a_wire("");
        let (_client, cluster) = launch(&section).await;
        let master = &lab.servers().master;
        let handles = [cluster.write(), cluster.write(), cluster.write()];
        let [all, stream, mapped] = handles.each_ref();
        let sql = || AssertSqlSafe(Dbms::insert(FORGOTTEN));
        let writes = async {
            tokio::join!(
                async { sqlx::query(sql()).bind(1).fetch_all(all).await.map(drop) },
                async { sqlx::query(sql()).bind(2).fetch(stream).try_next().await.map(drop) },
                async { sqlx::query_scalar::<_, i64>(sql()).bind(3).fetch_all(mapped).await.map(drop) },
            )
        };
        let silence = async {
            eventually("the writes", async || running(master, FORGOTTEN).len() == 3).await;
            wire.silence_open();
        };
        let both = tokio::time::timeout(SOON, async { tokio::join!(writes, silence) });
        let ((all, stream, mapped), ()) = both.await.expect("an end of them");
        for (of, told) in [("all rows", all), ("a stream", stream), ("values", mapped)] {
            let error = rocket_replicated::Error::from(told.unwrap_err());
            assert!(matches!(error, rocket_replicated::Error::OutcomeUnknown(_)), "{of}: {error:?}");
        }
        let mut ids: Vec<_> = rows(&lab.sql(ROWS)).into_iter().map(|(id, _)| id).collect();
        ids.sort_unstable();
        assert_eq!(ids, [1, 2, 3], "they are there");
    }

    /// Nothing was written yet.
    #[support::async_test]
    async fn a_transaction_that_cannot_begin_may_be_tried_again() {
        const SOON: Duration = Duration::from_secs(60);

        let (_lab, wire, section) = behind_a_wire("max_connections = 1");
        let (_client, cluster) = launch(&section).await;
        let db = cluster.write();
        // The handle keeps its connection, which is trusted.
        sqlx::query("SELECT 1").execute(&db).await.unwrap();
        wire.silence_open();
        wire.refuse();
        let began = tokio::time::timeout(SOON, db.begin()).await.expect("an end of it");
        let error = rocket_replicated::Error::from(began.map(drop).unwrap_err());
        assert!(matches!(error, rocket_replicated::Error::Unavailable(_)), "{error:?}");
        assert_eq!(cluster.statistics().outcomes_unknown, 0);
    }

    /// Nothing was committed.
    #[support::async_test]
    async fn a_transaction_that_cannot_be_rolled_back_may_be_tried_again() {
        const SOON: Duration = Duration::from_secs(60);

        let (_lab, wire, section) = behind_a_wire("max_connections = 1");
        let (_client, cluster) = launch(&section).await;
        let db = cluster.write();
        let mut transaction = db.begin().await.unwrap();
        sqlx::query(sql("INSERT INTO notes (id, body) VALUES ($1, 'note')"))
            .bind(1)
            .execute(&mut *transaction)
            .await
            .unwrap();
        wire.silence_open();
        wire.refuse();
        let rolled_back = tokio::time::timeout(SOON, transaction.rollback()).await.expect("an end of it");
        let error = rocket_replicated::Error::from(rolled_back.unwrap_err());
        assert!(matches!(error, rocket_replicated::Error::Unavailable(_)), "{error:?}");
        assert_eq!(cluster.statistics().outcomes_unknown, 0);
    }

    /// The crate cannot take a connection back from a handler. Dead connections do not count towards the limit.
    #[support::async_test]
    async fn dead_connections_that_handlers_hold_keep_no_request_waiting() {
        const HELD: f64 = 600.5;
        const SOON: Duration = Duration::from_secs(45);

        let (lab, wire, section) = behind_a_wire("max_connections = 2");
        let (_client, cluster) = launch(&section).await;
        let master = &lab.servers().master;
        let (one, other) = (cluster.write(), cluster.write());
        let held = [
            tokio::spawn(async move {
                let mut connection = one.get().await.unwrap();
                sqlx::query(AssertSqlSafe(Dbms::select(HELD))).execute(&mut *connection).await
            }),
            tokio::spawn(async move {
                let mut transaction = other.begin().await.unwrap();
                sqlx::query(AssertSqlSafe(Dbms::select(HELD))).execute(&mut *transaction).await
            }),
        ];
        eventually("both", async || running(master, HELD).len() == 2).await;
        wire.silence_open();
        // A host that is gone runs nothing any more.
        for port in running(master, HELD) {
            end_session(&lab, port);
        }
        let moved = Instant::now();
        eventually("a write", async || insert(&cluster.write(), 1, 0.0).await.is_ok()).await;
        assert!(moved.elapsed() < SOON, "{:?}", moved.elapsed());
        // Both places are free again.
        let handles = [cluster.write(), cluster.write()];
        for transaction in join_all(handles.iter().map(|db| db.begin())).await {
            drop(transaction.unwrap());
        }
        // The handlers of the dead connections do not wait either.
        for task in held {
            let held = tokio::time::timeout(SOON, task).await.expect("an answer").unwrap();
            assert!(held.unwrap_err().to_string().contains("outcome is unknown"));
        }
    }

    fn end_session(lab: &Lab, client_port: u16) {
        <Dbms as Sessions>::end(&lab.servers().master, client_port);
    }
}

trait Sessions: Dbms {
    /// Ends the session of the client with this port.
    fn end(server: &Server<Self>, client_port: u16);
}

impl Sessions for rocket_replicated_testing::mysql::MySql {
    fn end(server: &Server<Self>, client_port: u16) {
        let id = format!("SELECT id FROM information_schema.processlist WHERE host LIKE '%:{client_port}'");
        let id = server.sql(&id);
        server.sql(&format!("KILL {id}"));
    }
}

impl Sessions for rocket_replicated_testing::postgres::Postgres {
    fn end(server: &Server<Self>, client_port: u16) {
        server.sql(&format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE client_port = {client_port}"
        ));
    }
}

mod to_a_promoted_standby {
    use rocket::futures::future::join_all;
    use rocket::local::asynchronous::Client;
    use rocket_replicated::postgres::Replicated;

    use super::*;
    use rocket_replicated_testing::Servers;
    use rocket_replicated_testing::Wire;
    use rocket_replicated_testing::postgres::Postgres;
    use support::{eventually, rocket_over};

    #[support::async_test]
    async fn under_load_all_writes_succeed_soon_after_and_none_is_run_twice() {
        let servers = Servers::start(Postgres, 1);
        let (old, new) = (&servers.master, &servers.slaves[0]);
        old.sql(<Postgres as Slow>::TABLE);
        servers.wait_caught_up();
        let wire = Wire::to(old.port());
        let section = format!(
            "url = \"{}\"\nmax_connections = {CONNECTIONS}\ncheck_timeout = 2\n",
            wire.url(&old.url())
        );
        let rocket = rocket_over(&section).attach(Replicated::fairing());
        let client = Client::untracked(rocket).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap().clone();

        let load = postgres::Load::start(&cluster);
        eventually("the load", async || running(old, postgres::WRITE).len() > CONNECTIONS / 2).await;
        // From now on, acknowledged writes are on both servers. Then the old one becomes a host that is gone.
        old.sql("ALTER SYSTEM SET synchronous_standby_names = '*'");
        old.sql("SELECT pg_reload_conf()");
        let is_sync = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        eventually("a synchronous standby", async || old.sql(is_sync) == "1").await;
        eventually("a write on both", async || !rows(&new.sql(ROWS)).is_empty()).await;
        wire.silence_open();
        wire.refuse();
        new.sql("SELECT pg_promote()");
        wire.lead_to(new.port());
        wire.pass();
        let moved = Instant::now();

        after(moved, 2 * RECOVERED + Duration::from_secs(2)).await;
        let writes = load.stop().await;
        // Writes that wait for a standby in vain are on the old server nevertheless.
        let servers = [rows(&old.sql(ROWS)), rows(&new.sql(ROWS))];
        judge(&writes, moved, &servers);
        let ports: BTreeSet<_> = servers[1].iter().map(|(_, port)| *port).collect();
        assert_eq!(ports, BTreeSet::from([old.port(), new.port()]));
        postgres::is_whole(&cluster).await;
        let handles: Vec<_> = (0..CONNECTIONS).map(|_| cluster.write()).collect();
        let ports = join_all(
            handles.iter().map(|db| sqlx::query_scalar::<_, i32>("SELECT inet_server_port()").fetch_one(db)),
        );
        for port in ports.await {
            assert_eq!(port.unwrap(), i32::from(new.port()));
        }
    }
}
