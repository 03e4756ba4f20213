//! Makes connections for reads read-only, and checks that they are.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use log::error;

use super::Pool;
use super::connection::{Connection, PooledConnection};
use crate::backend::{Driver, Options};
use crate::health::{Enforced, Pooling};

/// The finding of the first connection of a pool for reads. A pooler in between may have dropped the setting without a
/// word.
pub(super) struct ReadOnlyCheck<DB: Driver> {
    database: &'static str,
    server: Arc<str>,
    read_only: OnceLock<bool>,
    /// The pool's options without the one that a proxy may refuse.
    plain: Options<DB>,
    /// True if the startup option is refused and no `SET` may take its place. Then transactions are read-only, but
    /// connections are not.
    by_transactions: AtomicBool,
}

/// What a new connection is told before it is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Nothing,
    ToBeReadOnly,
}

impl<DB: Driver> ReadOnlyCheck<DB> {
    pub(super) fn new(database: &'static str, server: Arc<str>, plain: Options<DB>) -> Self {
        let by_transactions = AtomicBool::new(false);
        Self { database, server, read_only: OnceLock::new(), plain, by_transactions }
    }

    pub(super) fn holds(&self) -> bool {
        self.read_only.get().copied().unwrap_or(true)
    }

    /// True where only transactions keep reads from writing.
    pub(super) fn is_by_transactions(&self) -> bool {
        self.by_transactions.load(Ordering::Acquire)
    }

    /// Options that no proxy refuses.
    pub(super) fn plain(&self) -> Options<DB> {
        self.plain.clone()
    }

    fn found(&self, read_only: bool, transactions_are: bool) {
        if self.read_only.set(read_only).is_ok() && !read_only {
            let what = if transactions_are { "over `raw_sql` or `get()`" } else { "in a handler of GETs" };
            error!(
                "The connections for reads of database `{}` to `{}` are not read-only: a proxy in between drops that \
                 setting. A write {what} is not refused there, and its client gets no pin. Connect without the proxy, \
                 or say `enforce_read_only = false`.",
                self.database, self.server,
            );
        }
    }
}

impl<DB: Driver> Pool<DB> {
    /// Opens a connection with the options of this pool, or without the one that a proxy refuses.
    pub(super) async fn open_accepted(&self) -> Result<PooledConnection<DB>, sqlx::Error> {
        let Some(check) = &self.read_only else {
            return Connection::open(self, self.options.clone(), Told::Nothing).await;
        };
        if !self.health.refuses_options() {
            let opened = Connection::open(self, self.options.clone(), Told::Nothing).await;
            if !opened.as_ref().is_err_and(DB::refuses_options) {
                let conn = opened?;
                check.found(conn.state.info().read_only, self.begin_read_only().is_some());
                return Ok(conn);
            }
        }
        // After a `SET`, a pooler that gives each transaction any free session could run the next write in a read-only
        // one.
        let pooling = self.health.tested_pooling(self.check_timeout * 2).await;
        let told = if pooling == Pooling::None { Told::ToBeReadOnly } else { Told::Nothing };
        let conn = Connection::open(self, check.plain(), told).await?;
        // INVARIANT: only after a connection was opened, because the words of a refusal may have meant something else.
        self.health.found_refusal();
        self.relax_plain();
        let read_only = conn.state.info().read_only;
        match told {
            Told::ToBeReadOnly => {
                if read_only {
                    self.health.enforces(Enforced::BySession);
                }
                check.found(read_only, self.begin_read_only().is_some());
            }
            // A standby refuses writes by itself.
            Told::Nothing if read_only => {}
            Told::Nothing => {
                check.by_transactions.store(true, Ordering::Release);
                self.health.enforces(Enforced::ByTransaction);
            }
        }
        Ok(conn)
    }
}
