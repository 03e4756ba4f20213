//! A master with two slaves whose replication a test can hold up, one kind per database.
//!
//! Each lab has a table `notes (id, body)`.

/// In the SQL that all databases share.
const NOTES: &str = "CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT NOT NULL UNIQUE)";

#[cfg(feature = "postgres")]
pub mod postgres {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use crate::support::postgres::Cluster;

    pub use sqlx::postgres::PgDatabaseError as DriverError;

    /// <https://www.postgresql.org/docs/current/errcodes-appendix.html>: read_only_sql_transaction
    pub const REFUSED: &str = "25006";

    /// Replay stops for all databases of a server: one lab at a time.
    static TURN: Mutex<()> = Mutex::new(());

    pub struct Lab {
        pub cluster: &'static Cluster,
        database: String,
        urls: (String, Vec<String>),
        _turn: MutexGuard<'static, ()>,
    }

    impl Lab {
        pub fn new() -> Self {
            static NUMBER: AtomicUsize = AtomicUsize::new(0);

            let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
            let cluster = Cluster::shared(2);
            // Another test may have panicked with replay paused.
            cluster.slaves.iter().for_each(|slave| slave.resume_replay());
            let database = format!("lab{}", NUMBER.fetch_add(1, Ordering::Relaxed));
            let urls = cluster.database(&database);
            let lab = Self { cluster, database, urls, _turn: turn };
            lab.sql(&format!("CREATE SEQUENCE note_id; {}", super::NOTES));
            lab.sql("ALTER TABLE notes ALTER id SET DEFAULT nextval('note_id')");
            lab.sql("GRANT ALL ON notes, note_id TO app");
            lab.cluster.wait_caught_up();
            lab
        }

        /// The keys of a section: this master, these slaves, named `slave-1` and `slave-2`.
        pub fn section(&self) -> String {
            let (master, slaves) = &self.urls;
            let slave = |(index, url): (usize, &String)| {
                format!("{{ url = \"{url}\", name = \"slave-{}\" }}", index + 1)
            };
            let slaves: Vec<_> = slaves.iter().enumerate().map(slave).collect();
            format!("url = \"{master}\"\nslaves = [{}]\n", slaves.join(", "))
        }

        /// The keys of a section without slaves.
        pub fn section_alone(&self) -> String {
            format!("url = \"{}\"\n", self.urls.0)
        }

        pub fn master_url(&self) -> &str {
            &self.urls.0
        }

        pub fn slave_urls(&self) -> &[String] {
            &self.urls.1
        }

        /// From now on the slaves fall behind.
        pub fn pause(&self) {
            self.cluster.wait_caught_up();
            self.cluster.slaves.iter().for_each(|slave| slave.pause_replay());
        }

        /// Lets the slaves catch up, and waits until they have.
        pub fn resume(&self) {
            self.cluster.slaves.iter().for_each(|slave| slave.resume_replay());
            self.cluster.wait_caught_up();
        }

        /// Runs at the master, past the crate.
        pub fn sql(&self, sql: &str) -> String {
            self.cluster.master.sql_in(&self.database, sql).unwrap()
        }

        pub fn notes(&self) -> Vec<String> {
            self.sql("SELECT body FROM notes ORDER BY id").lines().map(str::to_owned).collect()
        }
    }
}

#[cfg(feature = "sqlite")]
pub mod sqlite {
    use std::path::PathBuf;

    use rusqlite::Connection;
    use rusqlite::backup::Backup;
    use tempfile::TempDir;

    pub use sqlx::sqlite::SqliteError as DriverError;

    /// <https://www.sqlite.org/rescode.html#readonly>
    pub const REFUSED: &str = "8";

    pub struct Lab {
        folder: TempDir,
    }

    impl Lab {
        pub fn new() -> Self {
            let lab = Self { folder: tempfile::tempdir().unwrap() };
            lab.master().pragma_update(None, "journal_mode", "wal").unwrap();
            lab.sql(super::NOTES);
            lab.resume();
            lab
        }

        pub fn file(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        /// The keys of a section: this master, these slaves, named `slave-1` and `slave-2`.
        pub fn section(&self) -> String {
            let slave = |name: &str| {
                format!("{{ url = \"sqlite://{}\", name = \"{name}\" }}", self.file(name).display())
            };
            format!("{}slaves = [{}, {}]\n", self.section_alone(), slave("slave-1"), slave("slave-2"))
        }

        /// The keys of a section without slaves.
        pub fn section_alone(&self) -> String {
            format!("url = \"sqlite://{}\"\n", self.file("master").display())
        }

        /// Nothing replicates here but [`resume`](Self::resume).
        pub fn pause(&self) {}

        /// Lets the slaves catch up.
        pub fn resume(&self) {
            for name in ["slave-1", "slave-2"] {
                let mut slave = Connection::open(self.file(name)).unwrap();
                slave.pragma_update(None, "journal_mode", "wal").unwrap();
                let master = self.master();
                Backup::new(&master, &mut slave).unwrap().step(-1).unwrap();
            }
        }

        /// Runs at the master, past the crate.
        pub fn sql(&self, sql: &str) {
            self.master().execute_batch(sql).unwrap();
        }

        pub fn notes(&self) -> Vec<String> {
            let master = self.master();
            let mut query = master.prepare("SELECT body FROM notes ORDER BY id").unwrap();
            let notes = query.query_map([], |row| row.get(0)).unwrap();
            notes.collect::<Result<_, _>>().unwrap()
        }

        fn master(&self) -> Connection {
            let master = Connection::open(self.file("master")).unwrap();
            master.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
            master
        }
    }
}
