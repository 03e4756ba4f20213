//! A lab for each database, with a table `notes (id, body)`: the type `Lab` in the module with the database's name.

use std::ops::Deref;

use rocket_replicated_testing::Deployment;

/// SQL whose argument is `$1`, in the notation of the database.
pub fn sql(sql: &'static str) -> sqlx::SqlStr {
    sqlx::SqlSafeStr::into_sql_str(sql)
}

/// True if an `INSERT` can return rows.
pub fn has_returning() -> bool {
    true
}

/// A deployment whose labs can have the table.
pub trait Notes: Deployment + Sized {
    /// Creates the table, with ids that count up.
    const NOTES: &str;

    fn lab() -> rocket_replicated_testing::Lab<Self>;
}

/// A lab with the table.
pub struct Lab<D: Notes>(rocket_replicated_testing::Lab<D>);

impl<D: Notes> Lab<D> {
    pub fn new() -> Self {
        let lab = D::lab();
        lab.sql(D::NOTES);
        lab.blocking_catch_up();
        Self(lab)
    }

    /// The keys of a section with the master and the slaves, which are named `slave-1` and `slave-2`.
    pub fn section(&self) -> String {
        let slave = |(number, url)| format!("{{ url = \"{url}\", name = \"slave-{number}\" }}");
        let slaves: Vec<_> = (1..).zip(self.slave_urls()).map(slave).collect();
        format!("{}slaves = [{}]\n", self.section_alone(), slaves.join(", "))
    }

    /// The keys of a section without slaves.
    pub fn section_alone(&self) -> String {
        format!("url = \"{}\"\n", self.master_url())
    }

    pub fn notes(&self) -> Vec<String> {
        self.sql("SELECT body FROM notes ORDER BY id").lines().map(str::to_owned).collect()
    }
}

impl<D: Notes> Default for Lab<D> {
    fn default() -> Self {
        Self::new()
    }
}

impl<D: Notes> Deref for Lab<D> {
    type Target = rocket_replicated_testing::Lab<D>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

pub mod mysql {
    use rocket_replicated_testing::{OnServers, mysql::MySql};
    use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

    pub use sqlx::mysql::MySqlDatabaseError as DriverError;

    /// The SQLSTATE of <https://mariadb.com/docs/server/reference/error-codes/mariadb-error-codes-1700-to-1799/e1792>:
    /// ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION
    pub const REFUSED: &str = "25006";

    pub type Lab = super::Lab<OnServers<MySql>>;

    impl super::Notes for OnServers<MySql> {
        const NOTES: &str =
            "CREATE TABLE notes (id INTEGER PRIMARY KEY AUTO_INCREMENT, body VARCHAR(200) NOT NULL UNIQUE)";

        fn lab() -> rocket_replicated_testing::Lab<Self> {
            rocket_replicated_testing::Lab::shared(MySql::default())
        }
    }

    /// True if an `INSERT` can return rows.
    pub fn has_returning() -> bool {
        MySql::default().is_mariadb()
    }

    /// SQL whose argument is `$1`, in the notation of the database.
    pub fn sql(sql: &'static str) -> SqlStr {
        AssertSqlSafe(sql.replace("$1", "?")).into_sql_str()
    }
}

pub mod postgres {
    use rocket_replicated_testing::{OnServers, postgres::Postgres};

    pub use sqlx::postgres::PgDatabaseError as DriverError;

    pub use super::{has_returning, sql};

    /// <https://www.postgresql.org/docs/current/errcodes-appendix.html>: read_only_sql_transaction
    pub const REFUSED: &str = "25006";

    pub type Lab = super::Lab<OnServers<Postgres>>;

    impl super::Notes for OnServers<Postgres> {
        const NOTES: &str = "CREATE SEQUENCE note_id; \
             CREATE TABLE notes (id INTEGER PRIMARY KEY DEFAULT nextval('note_id'), body TEXT NOT NULL UNIQUE)";

        fn lab() -> rocket_replicated_testing::Lab<Self> {
            rocket_replicated_testing::Lab::postgres()
        }
    }
}

pub mod sqlite {
    use rocket_replicated_testing::InFiles;

    pub use sqlx::sqlite::SqliteError as DriverError;

    pub use super::{has_returning, sql};

    /// <https://www.sqlite.org/rescode.html#readonly>
    pub const REFUSED: &str = "8";

    pub type Lab = super::Lab<InFiles>;

    impl super::Notes for InFiles {
        const NOTES: &str = "CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT NOT NULL UNIQUE)";

        fn lab() -> rocket_replicated_testing::Lab<Self> {
            rocket_replicated_testing::Lab::sqlite()
        }
    }
}
