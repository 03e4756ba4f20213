//! sqlx's own pools, for crates that ask for one. Each lies beside a [`Pool`] and has its options, but knows little of
//! its state. sqlx pings connections before it hands them out, and closes old ones.

use std::sync::Arc;
use std::time::Duration;

use rocket::tokio;
use sqlx::ConnectOptions;
use sqlx::pool::PoolOptions;

use super::Pool;
use crate::backend::keepalive::keep_alive;
use crate::backend::{Access, Driver};
use crate::health::{Health, Pooling};
use crate::sync::MutexGuard;

/// True if sqlx may hand out a connection: not for writes where this crate would not write either.
fn may_serve(health: &Health, access: Access) -> bool {
    !access.writes() || health.takes_writes()
}

/// Switches sqlx's own warnings about slow statements on: nothing else measures the statements of these pools.
fn loud<O: ConnectOptions>(options: O, slow_statement: Option<Duration>) -> O {
    match slow_statement {
        Some(slow) => options.log_slow_statements(log::LevelFilter::Warn, slow),
        None => options,
    }
}

impl<DB: Driver> Pool<DB> {
    /// The sqlx pool beside this one: always the same, until it is closed.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub(crate) fn plain(self: &Arc<Self>) -> sqlx::Pool<DB> {
        let mut plain = self.lock_plain();
        if let Some(plain) = plain.as_ref().filter(|plain| !plain.is_closed()) {
            return plain.clone();
        }
        let opened = self.open_plain();
        if self.queue.is_closed() {
            // The application has shut down.
            drop(opened.close());
        } else {
            self.try_options();
        }
        plain.insert(opened).clone()
    }

    /// Opens a connection of this pool to find out whether a proxy refuses the options. sqlx's pool would not find
    /// out: it passes each refusal on to its caller.
    fn try_options(self: &Arc<Self>) {
        if DB::MAY_REFUSE_OPTIONS && self.read_only.is_some() && !self.health.refuses_options() {
            let pool = self.clone();
            self.spawn(async move {
                if let Some(permit) = pool.queue.take_bare(&pool) {
                    drop(Self::open_for(permit).await);
                }
            });
        }
    }

    /// Makes sqlx's pool, if there is one, open connections without the option that a proxy refuses.
    pub(super) fn relax_plain(&self) {
        if let (Some(plain), Some(read_only)) = (&*self.lock_plain(), &self.read_only) {
            plain.set_connect_options(loud(read_only.plain(), self.slow_statement));
        }
    }

    fn open_plain(&self) -> sqlx::Pool<DB> {
        let (opened, kept): (Arc<Health>, Arc<Health>) = (self.health.clone(), self.health.clone());
        let (access, patience) = (self.access, self.check_timeout * 2);
        let is_checked = self.read_only.is_some();
        let options = match &self.read_only {
            Some(read_only) if self.health.refuses_options() => read_only.plain(),
            _ => self.options.clone(),
        };
        let options = loud(options, self.slow_statement);
        let (address, hook) = (options.clone(), self.hook.clone());
        PoolOptions::new()
            .max_connections(self.max_connections)
            .acquire_timeout(self.timeout)
            .idle_timeout(self.idle_timeout)
            .after_connect(move |conn, _| {
                let (may_serve, health) = (may_serve(&opened, access), opened.clone());
                let hook = hook.clone();
                keep_alive::<DB>(&address);
                Box::pin(async move {
                    if is_checked
                        && health.refuses_options()
                        && health.tested_pooling(patience).await == Pooling::None
                    {
                        DB::make_read_only(conn).await?;
                    }
                    if !may_serve {
                        let refused = "writes are not possible at this server now";
                        return Err(sqlx::Error::Configuration(refused.into()));
                    }
                    let info = DB::set_up(conn, access, is_checked).await?;
                    info.accept(access)?;
                    match hook {
                        Some(hook) => hook.run(conn, info).await.map(drop),
                        None => Ok(()),
                    }
                })
            })
            .before_acquire(move |_, _| {
                let may_serve = may_serve(&kept, access);
                Box::pin(async move { Ok(may_serve) })
            })
            .connect_lazy_with(options)
    }

    /// Closes sqlx's pool, if there is one. Connections in use are closed when they come back, because sqlx gives no
    /// access to them.
    pub(crate) fn close_plain(&self) {
        let Some(plain) = self.lock_plain().take() else { return };
        // The first call makes sqlx's pool refuse checkouts at once. The task waits for the rest, but not for ever:
        // the server may be gone, and never take leave.
        let patience = self.check_timeout;
        drop(plain.close());
        tokio::spawn(async move { tokio::time::timeout(patience, plain.close()).await });
    }

    fn lock_plain(&self) -> MutexGuard<'_, Option<sqlx::Pool<DB>>> {
        self.plain.lock()
    }
}
