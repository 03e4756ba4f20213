//! Whether connections for reads are read-only, as they were told to be.

use std::sync::{Arc, OnceLock};

use log::error;

use crate::backend::Driver;

/// Checks on the first connection of a pool for reads that it is read-only: a pooler in between may
/// have dropped the setting without a word.
pub(crate) struct ReadOnlyCheck {
    database: &'static str,
    node: Arc<str>,
    read_only: OnceLock<bool>,
}

impl ReadOnlyCheck {
    pub(crate) fn new(database: &'static str, node: Arc<str>) -> Self {
        Self { database, node, read_only: OnceLock::new() }
    }

    pub(crate) fn holds(&self) -> bool {
        self.read_only.get().copied().unwrap_or(true)
    }

    pub(crate) async fn run<DB: Driver>(&self, conn: &mut DB::Connection) -> Result<(), sqlx::Error> {
        if self.read_only.get().is_some() {
            return Ok(());
        }
        let read_only = DB::is_read_only(conn).await?;
        if self.read_only.set(read_only).is_ok() && !read_only {
            error!(
                "The connections for reads of database `{}` to `{}` are not read-only: something in \
                 between drops the setting, so that a GET which writes will not be refused. Connect \
                 without it, or say `enforce_read_only = false`.",
                self.database, self.node,
            );
        }
        Ok(())
    }
}
