//! A master with two slaves whose replication a test can hold up, one kind per database.
//!
//! Each lab has a table `notes (id, body)`.

/// In the SQL that all databases share.
const NOTES: &str = "CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT NOT NULL UNIQUE)";

/// SQL with the argument `$1`, as the database takes it.
pub fn sql(sql: &'static str) -> sqlx::SqlStr {
    sqlx::SqlSafeStr::into_sql_str(sql)
}

/// Whether an `INSERT` can return rows.
pub fn has_returning() -> bool {
    true
}

/// On real servers, in a database of its own.
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod servers {
    use std::sync::MutexGuard;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use crate::support::cluster::{Cluster, Dbms};

    /// A database server that can have the table.
    pub trait Notes: Dbms {
        /// Creates it for the role `app`, with ids that are counted up.
        const NOTES: &[&str];
    }

    pub struct Lab<D: Notes> {
        pub cluster: &'static Cluster<D>,
        database: String,
        urls: (String, Vec<String>),
        _turn: MutexGuard<'static, ()>,
    }

    impl<D: Notes> Lab<D> {
        pub fn new() -> Self {
            static NUMBER: AtomicUsize = AtomicUsize::new(0);

            let cluster = Cluster::shared(2);
            // Replay stops for all databases of a server.
            let turn = cluster.turn();
            // Another test may have panicked with replay paused.
            cluster.slaves.iter().for_each(|slave| slave.resume_replay());
            let database = format!("lab{}", NUMBER.fetch_add(1, Ordering::Relaxed));
            let urls = cluster.database(&database);
            let lab = Self { cluster, database, urls, _turn: turn };
            for sql in D::NOTES {
                lab.sql(sql);
            }
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

#[cfg(feature = "mysql")]
pub mod mysql {
    use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

    use crate::support::mysql::MySql;

    pub use sqlx::mysql::MySqlDatabaseError as DriverError;

    /// The SQLSTATE of <https://mariadb.com/docs/server/reference/error-codes/mariadb-error-codes-1700-to-1799/e1792>:
    /// ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION
    pub const REFUSED: &str = "25006";

    pub type Lab = super::servers::Lab<MySql>;

    impl super::servers::Notes for MySql {
        const NOTES: &[&str] = &[
            "CREATE TABLE notes (id INTEGER PRIMARY KEY AUTO_INCREMENT, body VARCHAR(200) NOT NULL UNIQUE)",
        ];
    }

    /// Whether an `INSERT` can return rows.
    pub fn has_returning() -> bool {
        crate::support::mysql::is_mariadb()
    }

    /// SQL with the argument `$1`, as the database takes it.
    pub fn sql(sql: &'static str) -> SqlStr {
        AssertSqlSafe(sql.replace("$1", "?")).into_sql_str()
    }
}

#[cfg(feature = "postgres")]
pub mod postgres {
    use crate::support::postgres::Postgres;

    pub use sqlx::postgres::PgDatabaseError as DriverError;

    pub use super::{has_returning, sql};

    /// <https://www.postgresql.org/docs/current/errcodes-appendix.html>: read_only_sql_transaction
    pub const REFUSED: &str = "25006";

    pub type Lab = super::servers::Lab<Postgres>;

    impl super::servers::Notes for Postgres {
        const NOTES: &[&str] = &[
            "CREATE SEQUENCE note_id",
            super::NOTES,
            "ALTER TABLE notes ALTER id SET DEFAULT nextval('note_id')",
            "GRANT ALL ON notes, note_id TO app",
        ];
    }
}

#[cfg(feature = "sqlite")]
pub mod sqlite {
    use std::path::PathBuf;

    use rusqlite::Connection;
    use rusqlite::backup::Backup;
    use tempfile::TempDir;

    pub use sqlx::sqlite::SqliteError as DriverError;

    pub use super::{has_returning, sql};

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
