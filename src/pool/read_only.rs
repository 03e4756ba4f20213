//! Whether connections for reads are read-only, as they were told to be.

use std::sync::{Arc, OnceLock};

use log::error;

/// What the first connection of a pool for reads tells: a pooler in between may have dropped the setting
/// without a word.
pub(super) struct ReadOnlyCheck {
    database: &'static str,
    server: Arc<str>,
    read_only: OnceLock<bool>,
}

impl ReadOnlyCheck {
    pub(super) fn new(database: &'static str, server: Arc<str>) -> Self {
        Self { database, server, read_only: OnceLock::new() }
    }

    pub(super) fn holds(&self) -> bool {
        self.read_only.get().copied().unwrap_or(true)
    }

    pub(super) fn found(&self, read_only: bool, transactions_are: bool) {
        if self.read_only.set(read_only).is_ok() && !read_only {
            let what = if transactions_are { "`raw_sql` or `get()`" } else { "a GET" };
            error!(
                "The connections for reads of database `{}` to `{}` are not read-only: something in \
                 between drops the setting, so that {what} which writes will not be refused. Connect \
                 without it, or say `enforce_read_only = false`.",
                self.database, self.server,
            );
        }
    }
}
