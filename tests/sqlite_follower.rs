//! A SQLite slave to which the crate copies the master.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rocket::error::ErrorKind;
use rocket::fairing::AdHoc;
use rocket::local::asynchronous::Client;
use rocket::tokio;
use rocket_replicated::sqlite::{Database, Replicated};
use rocket_replicated::{Cluster, NodeState};
use tempfile::TempDir;

use support::{eventually, logbook, rocket_over};

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Removes a database: its file, its log and the log's index.
    fn remove(&self, name: &str) {
        for end in ["", "-wal", "-shm"] {
            match std::fs::remove_file(self.path(&format!("{name}{end}"))) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
                _ => {}
            }
        }
    }

    /// Creates a database with one table that has this many rows.
    fn make(&self, name: &str, page_size: u32, rows: i64) {
        let made = rusqlite::Connection::open(self.path(name)).unwrap();
        made.pragma_update(None, "page_size", page_size).unwrap();
        made.execute_batch("CREATE TABLE notes (id INTEGER)").unwrap();
        for row in 0..rows {
            made.execute("INSERT INTO notes VALUES (?)", [row]).unwrap();
        }
    }

    fn section(&self, slave: &str, follow: f64) -> String {
        format!(
            "url = \"sqlite://{}\"\nslaves = [{{ url = \"sqlite://{}\", name = \"{slave}\", follow = {follow} }}]\nmax_lag = false\n",
            self.0.path().join("master.db").display(),
            self.0.path().join(slave).display(),
        )
    }

    async fn client(&self, slave: &str, follow: f64) -> (Client, Cluster<Database>) {
        let rocket = rocket_over(&self.section(slave, follow)).attach(Replicated::fairing());
        let client = Client::untracked(rocket).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap().clone();
        (client, cluster)
    }
}

async fn count(cluster: &Cluster<Database>) -> sqlx::Result<i64> {
    let db = cluster.read(None);
    let count = sqlx::query_scalar("SELECT count(*) FROM notes").fetch_one(&db).await;
    assert_eq!(db.choice().unwrap().role(), rocket_replicated::Role::Slave);
    count
}

#[support::async_test]
async fn a_copy_exists_before_the_first_read_though_the_master_does_not() {
    let files = Files::new();
    let (_client, cluster) = files.client("fresh.db", 3600.0).await;
    let db = cluster.read(None);
    let one: i64 = sqlx::query_scalar("SELECT 1").fetch_one(&db).await.unwrap();
    assert_eq!((one, db.choice().unwrap().node()), (1, "fresh.db"));
}

#[support::async_test]
async fn a_copy_has_the_migrations_of_ignition() {
    let files = Files::new();
    let migrate = rocket::fairing::AdHoc::on_ignite("migrate", |rocket| async {
        let cluster = Replicated::fetch(&rocket).unwrap();
        sqlx::query("CREATE TABLE notes (id INTEGER)").execute(&cluster.write()).await.unwrap();
        rocket
    });
    let rocket =
        rocket_over(&files.section("migrated.db", 3600.0)).attach(Replicated::fairing()).attach(migrate);
    let client = Client::untracked(rocket).await.unwrap();
    assert_eq!(count(Replicated::fetch(client.rocket()).unwrap()).await.unwrap(), 0);
}

#[support::async_test]
async fn a_copy_catches_up_with_the_master() {
    let files = Files::new();
    let (_client, cluster) = files.client("lagging.db", 0.2).await;
    sqlx::query("CREATE TABLE notes (id INTEGER)").execute(&cluster.write()).await.unwrap();
    eventually("the table", async || count(&cluster).await.is_ok()).await;
    sqlx::query("INSERT INTO notes VALUES (1)").execute(&cluster.write()).await.unwrap();
    eventually("the row", async || count(&cluster).await.unwrap() == 1).await;
}

#[support::async_test]
async fn an_idle_master_is_not_copied() {
    let files = Files::new();
    let (_client, cluster) = files.client("idle.db", 0.02).await;
    sqlx::query("CREATE TABLE notes (id INTEGER)").execute(&cluster.write()).await.unwrap();
    eventually("the table", async || count(&cluster).await.is_ok()).await;

    // Every copy changes the slave's `data_version`, as seen by a connection of ours.
    let slave = rusqlite::Connection::open(files.0.path().join("idle.db")).unwrap();
    let version = || slave.pragma_query_value(None, "data_version", |row| row.get::<_, i64>(0)).unwrap();
    let before = version();
    let begun = Instant::now();
    eventually("twenty periods", async || begun.elapsed() > Duration::from_millis(400)).await;
    assert_eq!(version(), before);

    sqlx::query("INSERT INTO notes VALUES (1)").execute(&cluster.write()).await.unwrap();
    eventually("the copy", async || version() != before).await;
}

#[rocket::async_test(flavor = "multi_thread")]
async fn readers_see_neither_half_a_copy_nor_an_error_nor_a_wait() {
    const ROWS: i64 = 2_000;

    let files = Files::new();
    let (_client, cluster) = files.client("busy.db", 0.01).await;
    let master = cluster.write();
    let rows = "WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < 2000)";
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
        "CREATE TABLE notes (id INTEGER, generation INTEGER, pad TEXT); \
         {rows} INSERT INTO notes SELECT id, 0, hex(randomblob(200)) FROM n"
    )))
    .execute(&master)
    .await
    .unwrap();
    eventually("the table", async || count(&cluster).await.is_ok_and(|count| count == ROWS)).await;

    let over = std::sync::Arc::new(AtomicBool::new(false));
    // A reader that stays in its transaction while the copies go on.
    let long = cluster.read(None);
    let mut snapshot = long.begin().await.unwrap();
    let seen: i64 =
        sqlx::query_scalar("SELECT max(generation) FROM notes").fetch_one(&mut *snapshot).await.unwrap();

    let readers: Vec<_> = (0..4)
        .map(|_| {
            let (cluster, over) = (cluster.clone(), over.clone());
            tokio::spawn(async move {
                let mut generations = std::collections::BTreeSet::new();
                let mut longest = Duration::ZERO;
                while !over.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let db = cluster.read(None);
                    let (least, most, rows): (i64, i64, i64) =
                        sqlx::query_as("SELECT min(generation), max(generation), count(*) FROM notes")
                            .fetch_one(&db)
                            .await
                            .unwrap();
                    assert_eq!((least, rows), (most, ROWS), "half a copy");
                    assert_eq!(db.choice().unwrap().node(), "busy.db");
                    longest = longest.max(begun.elapsed());
                    generations.insert(least);
                }
                (generations, longest)
            })
        })
        .collect();

    for generation in 1..=10_i64 {
        sqlx::query("UPDATE notes SET generation = $1").bind(generation).execute(&master).await.unwrap();
        let arrived = async || {
            let db = cluster.read(None);
            let seen: i64 =
                sqlx::query_scalar("SELECT max(generation) FROM notes").fetch_one(&db).await.unwrap();
            seen == generation
        };
        eventually("the generation", arrived).await;
    }
    over.store(true, Ordering::Relaxed);
    let mut all = std::collections::BTreeSet::new();
    for reader in readers {
        let (generations, longest) = reader.await.unwrap();
        assert!(longest < Duration::from_secs(2), "a reader waited {longest:?}");
        all.extend(generations);
    }
    assert!(all.len() > 3, "the copies went on while there were readers: {all:?}");

    let still: i64 =
        sqlx::query_scalar("SELECT max(generation) FROM notes").fetch_one(&mut *snapshot).await.unwrap();
    assert_eq!(still, seen, "a transaction keeps its snapshot");
}

#[support::async_test]
async fn the_write_ahead_log_does_not_grow_with_every_copy() {
    let files = Files::new();
    let (_client, cluster) = files.client("log.db", 0.01).await;
    let master = cluster.write();
    sqlx::raw_sql(
        "CREATE TABLE notes (id INTEGER, pad BLOB); INSERT INTO notes VALUES (1, randomblob(500000))",
    )
    .execute(&master)
    .await
    .unwrap();
    for generation in 0..20_i64 {
        sqlx::query("UPDATE notes SET id = $1").bind(generation).execute(&master).await.unwrap();
        let arrived = async || {
            let db = cluster.read(None);
            let seen: sqlx::Result<i64> = sqlx::query_scalar("SELECT id FROM notes").fetch_one(&db).await;
            seen.is_ok_and(|seen| seen == generation)
        };
        eventually("the change", arrived).await;
    }
    let size = |name: &str| files.0.path().join(name).metadata().unwrap().len();
    assert!(size("log.db-wal") < 4 * size("log.db"), "{} for {}", size("log.db-wal"), size("log.db"));
}

/// While a reader stays in its transaction, or while several processes copy one after another.
#[support::async_test]
async fn a_write_ahead_log_of_many_copies_is_emptied() {
    let files = Files::new();
    files.make("master.db", 4096, 1);
    let section = format!("{}check_interval = 30\n", files.section("grown.db", 0.01));
    let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
    let master = Replicated::fetch(client.rocket()).unwrap().write();
    let open = || rusqlite::Connection::open(files.path("grown.db")).unwrap();
    let (reader, watch) = (open(), open());
    let count = |conn: &rusqlite::Connection| -> i64 {
        conn.query_row("SELECT count(*) FROM notes", [], |row| row.get(0)).unwrap()
    };
    let write_and_copy = async || {
        let before = count(&watch);
        sqlx::query("INSERT INTO notes VALUES (1)").execute(&master).await.unwrap();
        eventually("the copy", async || count(&watch) > before).await;
    };
    reader.execute_batch("BEGIN").unwrap();
    assert_eq!(count(&reader), 1);
    for _ in 0..5 {
        write_and_copy().await;
    }
    reader.execute_batch("COMMIT").unwrap();
    write_and_copy().await;
    // It holds the latest copy, if the log was emptied as the reader left.
    let size = |name: &str| files.path(name).metadata().unwrap().len();
    eventually("a short log", async || size("grown.db-wal") < 3 * size("grown.db")).await;
}

#[support::async_test]
async fn a_follower_that_cannot_copy_is_reported_once_and_recovers() {
    let files = Files::new();
    // A folder stands where the slave's file should be.
    let slave = files.0.path().join("blocked.db");
    std::fs::create_dir(&slave).unwrap();
    let (_client, cluster) = files.client("blocked.db", 0.01).await;
    sqlx::query("CREATE TABLE notes (id INTEGER)").execute(&cluster.write()).await.unwrap();

    let db = cluster.read(None);
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM notes").fetch_one(&db).await.unwrap();
    assert_eq!((count, db.choice().unwrap().reason()), (0, rocket_replicated::Reason::SlavesUnavailable));
    assert_eq!(logbook::lines(&["ERROR", "`blocked.db` of database `replicated` cannot follow"]).len(), 1);

    std::fs::remove_dir(&slave).unwrap();
    eventually("a copy", async || {
        !logbook::lines(&["WARN", "`blocked.db` of database `replicated` follows its master again"])
            .is_empty()
    })
    .await;
    let slave_reads = async || {
        let db = cluster.read(None);
        let read = sqlx::query("SELECT count(*) FROM notes").fetch_one(&db).await;
        read.is_ok() && db.choice().unwrap().node() == "blocked.db"
    };
    eventually("reads from it", slave_reads).await;
    assert_eq!(logbook::lines(&["ERROR", "`blocked.db` of database `replicated` cannot follow"]).len(), 1);
}

#[support::async_test]
async fn a_copy_longer_than_its_period_is_reported_once() {
    let files = Files::new();
    let (_client, cluster) = files.client("slow.db", 0.01).await;
    let master = cluster.write();
    // 60 MB take longer than 10 ms on any disk.
    sqlx::raw_sql(
        "CREATE TABLE notes (pad BLOB); \
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60) \
         INSERT INTO notes SELECT zeroblob(1000000) FROM n",
    )
    .execute(&master)
    .await
    .unwrap();
    let reports = || logbook::lines(&["WARN", "slave `slow.db`", "longer than `follow`"]).len();
    eventually("a report", async || reports() == 1).await;
    for rows in 61..=63 {
        sqlx::query("INSERT INTO notes VALUES (zeroblob(1))").execute(&master).await.unwrap();
        eventually("another copy", async || count(&cluster).await.is_ok_and(|count| count == rows)).await;
    }
    assert_eq!(reports(), 1);
}

#[support::async_test]
async fn copying_stops_at_shutdown() {
    let files = Files::new();
    let (client, cluster) = files.client("stopped.db", 0.01).await;
    sqlx::query("CREATE TABLE notes (id INTEGER)").execute(&cluster.write()).await.unwrap();
    eventually("the table", async || count(&cluster).await.is_ok()).await;
    drop(client.terminate().await);

    let tables = |file: &Path| -> i64 {
        let file = rusqlite::Connection::open(file).unwrap();
        file.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).unwrap()
    };
    let master = rusqlite::Connection::open(files.0.path().join("master.db")).unwrap();
    master.execute_batch("CREATE TABLE later (id INTEGER)").unwrap();
    let begun = Instant::now();
    eventually("thirty periods", async || begun.elapsed() > Duration::from_millis(300)).await;
    assert_eq!(tables(&files.0.path().join("stopped.db")), 1);
}

#[support::async_test]
async fn clients_read_their_own_writes_from_a_copy_that_has_them() {
    let files = Files::new();
    let section = format!("{}consistency = \"position\"\n", files.section("caught-up.db", 0.1));
    let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
    let cluster = Replicated::fetch(client.rocket()).unwrap();
    sqlx::query("CREATE TABLE notes (id INTEGER)").execute(&cluster.write()).await.unwrap();
    for number in 1..=5_i64 {
        let writer = cluster.write();
        sqlx::query("INSERT INTO notes VALUES (1)").execute(&writer).await.unwrap();
        let pin = writer.pin().await.unwrap();
        let mut reasons = std::collections::BTreeSet::new();
        eventually("the copy", async || {
            let db = cluster.read(Some(&pin));
            let count: i64 = sqlx::query_scalar("SELECT count(*) FROM notes").fetch_one(&db).await.unwrap();
            assert_eq!(count, number);
            reasons.insert(format!("{:?}", db.choice().unwrap().reason()));
            reasons.contains("CaughtUp")
        })
        .await;
        assert!(reasons.iter().all(|reason| ["CaughtUp", "Pinned"].contains(&&**reason)), "{reasons:?}");
    }
}

/// The slave's file is there, and empty. The master's folder is missing, so there is nothing to copy.
#[support::async_test]
async fn a_slave_is_left_out_until_it_has_its_first_copy() {
    let folder = tempfile::tempdir().unwrap();
    let (missing, slave) = (folder.path().join("missing"), folder.path().join("uncopied.db"));
    rusqlite::Connection::open(&slave).unwrap().pragma_update(None, "journal_mode", "wal").unwrap();
    let section = format!(
        "url = \"sqlite://{}\"\nslaves = [{{ url = \"sqlite://{}\", name = \"uncopied\", follow = 0.05 }}]\n\
         max_lag = false\ncheck_interval = 0.05\n",
        missing.join("master.db").display(),
        slave.display(),
    );
    let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
    let cluster = Replicated::fetch(client.rocket()).unwrap();
    let state = || cluster.status().iter().find(|node| node.name == "uncopied").unwrap().state;
    assert_eq!(state(), rocket_replicated::NodeState::NotCopied);
    let db = cluster.read(None);
    sqlx::query("SELECT count(*) FROM notes").fetch_one(&db).await.unwrap_err();
    assert_eq!(db.choice().unwrap().role(), rocket_replicated::Role::Master, "nobody asks an empty slave");
    assert!(
        !logbook::lines(&[
            "ERROR",
            "`uncopied` of database `replicated` cannot follow its master: cannot open",
            "missing"
        ])
        .is_empty()
    );

    let warning = format!("WARN: The folder `{}` of server `master.db` of database", missing.display());
    assert_eq!(logbook::lines(&[&warning, "does not exist: create it, or correct the path"]).len(), 1);

    // The master appears together with its table: a copy that is made in between would have no table.
    let other = folder.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let master = rusqlite::Connection::open(other.join("master.db")).unwrap();
    master.execute_batch("CREATE TABLE notes (id INTEGER); INSERT INTO notes VALUES (1)").unwrap();
    drop(master);
    std::fs::rename(&other, &missing).unwrap();
    eventually("its copy", async || state() == rocket_replicated::NodeState::Up).await;
    assert_eq!(count(cluster).await.unwrap(), 1);
}

/// SQLite's message does not name the folder, and the launch fails.
#[support::async_test]
async fn a_missing_folder_is_named_where_migrations_fail() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let section = format!("url = \"sqlite://{}\"", missing.join("master.db").display());
    let migrations = AdHoc::try_on_ignite("Migrations", |rocket| async {
        let db = Replicated::fetch(&rocket).unwrap().write();
        match sqlx::query("CREATE TABLE notes (id INTEGER)").execute(&db).await {
            Ok(_) => Ok(rocket),
            Err(_) => Err(rocket),
        }
    });
    let rocket = rocket_over(&section).attach(Replicated::fairing()).attach(migrations);
    let error = rocket.ignite().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::FailedFairings(_)), "{error}");
    let warning = format!("WARN: The folder `{}` of server `master.db` of database", missing.display());
    assert_eq!(logbook::lines(&[&warning, "does not exist: create it, or correct the path"]).len(), 1);
}

#[support::async_test]
async fn a_copy_that_is_removed_or_replaced_is_made_anew_and_read_from() {
    let files = Files::new();
    files.make("master.db", 4096, 1);
    let (_client, cluster) = files.client("removed.db", 0.05).await;
    assert_eq!(count(&cluster).await.unwrap(), 1);
    for (rows, replaced) in [(2, false), (3, true)] {
        files.remove("removed.db");
        if replaced {
            files.make("other.db", 4096, 7);
            std::fs::rename(files.path("other.db"), files.path("removed.db")).unwrap();
        }
        sqlx::query("INSERT INTO notes VALUES (1)").execute(&cluster.write()).await.unwrap();
        eventually("the row from the new copy", async || {
            let db = cluster.read(None);
            let count: i64 = sqlx::query_scalar("SELECT count(*) FROM notes").fetch_one(&db).await.unwrap();
            (count, db.choice().unwrap().role()) == (rows, rocket_replicated::Role::Slave)
        })
        .await;
    }
}

/// Connections that are open lead to the former copy, which has all that was written until its removal.
#[support::async_test]
async fn observations_of_a_new_copy_are_not_believed_of_the_former_one() {
    let files = Files::new();
    files.make("master.db", 4096, 1);
    let section =
        format!("{}consistency = \"position\"\ncheck_interval = 30\n", files.section("believed.db", 0.05));
    let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
    let cluster = Replicated::fetch(client.rocket()).unwrap();
    assert_eq!(count(cluster).await.unwrap(), 1);

    files.remove("believed.db");
    eventually("a new copy", async || files.path("believed.db").exists()).await;
    let writer = cluster.write();
    sqlx::query("INSERT INTO notes VALUES (1)").execute(&writer).await.unwrap();
    let pin = writer.pin().await.unwrap();
    let copy = rusqlite::Connection::open(files.path("believed.db")).unwrap();
    let copied = || copy.query_row("SELECT count(*) FROM notes", [], |row| row.get::<_, i64>(0));
    eventually("its row", async || copied().is_ok_and(|count| count == 2)).await;
    // Many periods, in which the new copy is found to be complete.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        let db = cluster.read(Some(&pin));
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM notes").fetch_one(&db).await.unwrap();
        assert_eq!(count, 2, "{}", db.choice().unwrap());
    }
}

#[support::async_test]
async fn a_master_that_is_replaced_is_written_to_and_copied() {
    let files = Files::new();
    files.make("master.db", 4096, 1);
    let (_client, cluster) = files.client("follows.db", 0.05).await;
    assert_eq!(count(&cluster).await.unwrap(), 1);
    files.make("restored.db", 4096, 10);
    files.remove("master.db");
    std::fs::rename(files.path("restored.db"), files.path("master.db")).unwrap();
    eventually("its rows", async || count(&cluster).await.is_ok_and(|count| count == 10)).await;
    let there = || {
        let master = rusqlite::Connection::open(files.path("master.db")).unwrap();
        master.query_row("SELECT count(*) FROM notes", [], |row| row.get::<_, i64>(0)).unwrap()
    };
    // Open connections lead to the former file until they are looked at again.
    eventually("a write", async || {
        let _ = sqlx::query("INSERT INTO notes VALUES (1)").execute(&cluster.write()).await;
        there() > 10
    })
    .await;
}

#[support::async_test]
async fn a_master_that_is_lost_is_not_made_anew_and_its_copy_stays() {
    let files = Files::new();
    files.make("master.db", 4096, 3);
    let (_client, cluster) = files.client("last.db", 0.05).await;
    eventually("the copy", async || count(&cluster).await.is_ok_and(|count| count == 3)).await;

    files.remove("master.db");
    eventually("the loss", async || cluster.status()[0].state == NodeState::Down).await;
    let error = sqlx::query("INSERT INTO notes VALUES (1)").execute(&cluster.write()).await.unwrap_err();
    assert!(!matches!(error, sqlx::Error::Database(_)), "{error}");
    for _ in 0..20 {
        assert_eq!(count(&cluster).await.unwrap(), 3);
    }
    assert!(!files.path("master.db").exists());

    // An empty file in its place is no master of this copy.
    std::fs::write(files.path("master.db"), "").unwrap();
    eventually("an error", async || {
        !logbook::lines(&["ERROR", "`last.db` of database", "cannot follow", "missing or has no tables"])
            .is_empty()
    })
    .await;
    assert_eq!(count(&cluster).await.unwrap(), 3);

    // The remedy: the copy becomes the master.
    std::fs::copy(files.path("last.db"), files.path("copy.db")).unwrap();
    std::fs::rename(files.path("copy.db"), files.path("master.db")).unwrap();
    eventually("a write", async || {
        sqlx::query("INSERT INTO notes VALUES (1)").execute(&cluster.write()).await.is_ok()
    })
    .await;
    eventually("its copy", async || count(&cluster).await.is_ok_and(|count| count > 3)).await;
}

#[support::async_test]
async fn a_launch_without_the_master_of_a_copy_is_refused() {
    for empty in [false, true] {
        let files = Files::new();
        let name = format!("only-copy-{empty}.db");
        files.make(&name, 4096, 3);
        if empty {
            std::fs::write(files.path("master.db"), "").unwrap();
        }
        let rocket = rocket_over(&files.section(&name, 0.05)).attach(Replicated::fairing());
        let error = rocket.ignite().await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::FailedFairings(_)), "{error}");
        let remedy =
            format!("copy `{}` to `{}`", files.path(&name).display(), files.path("master.db").display());
        assert_eq!(logbook::lines(&["ERROR", "cannot be opened", &remedy]).len(), 1);
        assert_eq!(files.path("master.db").exists(), empty, "nothing is made");

        files.remove(&name);
        rocket_over(&files.section(&name, 0.05)).attach(Replicated::fairing()).ignite().await.unwrap();
    }
}

#[support::async_test]
async fn a_master_of_any_page_size_is_copied() {
    for exponent in 9..=16 {
        // The copy may have been made of pages of another size before.
        for before in [None, Some(4096)] {
            let files = Files::new();
            let size = 1 << exponent;
            files.make("master.db", size, 3);
            let name = format!("pages-{size}-{}.db", before.is_some());
            if let Some(before) = before {
                files.make(&name, before, 1);
            }
            let (_client, cluster) = files.client(&name, 0.05).await;
            assert_eq!(count(&cluster).await.unwrap(), 3, "{name}");
            sqlx::query("INSERT INTO notes VALUES (1)").execute(&cluster.write()).await.unwrap();
            eventually("the row", async || count(&cluster).await.unwrap() == 4).await;
        }
    }
}
