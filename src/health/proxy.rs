//! What is known of a pooler or another proxy on the way to a server.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use log::{error, warn};
use rocket::tokio::sync::watch;
use rocket::tokio::time::timeout;

use super::Health;
use crate::throttle::Throttle;

/// What a pooler on the way to a server does with its sessions, as the monitor has tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pooling {
    Untested,
    /// The test has failed.
    Unknown,
    /// Each connection has a session of its own for its whole life: there is no pooler, or it is in session mode.
    None,
    /// A pooler in transaction mode gives each transaction the session that is free.
    Transactions,
}

/// The means that makes reads read-only where a proxy refuses the startup option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Enforced {
    /// A `SET` for the session of each connection.
    BySession = 1,
    /// The statement that begins each transaction.
    ByTransaction,
}

#[derive(Debug)]
pub(super) struct Proxy {
    pooling: watch::Sender<Pooling>,
    /// True if a proxy refuses the startup options of read-only connections. The option is not tried again in this
    /// process, even if the proxy accepts it by then: a `SET` does as well.
    refuses_options: AtomicBool,
    /// The [`Enforced`] that was logged last, or 0.
    logged: AtomicU8,
    split: Throttle,
}

impl Default for Proxy {
    fn default() -> Self {
        Self {
            pooling: watch::Sender::new(Pooling::Untested),
            refuses_options: AtomicBool::new(false),
            logged: AtomicU8::new(0),
            split: Throttle::new(Duration::from_secs(60)),
        }
    }
}

impl Health {
    /// Records the result of the monitor's test. A failed test does not replace the result of an earlier one.
    pub(crate) fn record_pooling(&self, pooling: Pooling) {
        self.proxy.pooling.send_if_modified(|known| {
            let is_news = pooling != Pooling::Unknown || *known == Pooling::Untested;
            is_news && std::mem::replace(known, pooling) != pooling
        });
    }

    /// Returns the result of the monitor's test. Waits for a first test that has yet to end, for up to `patience`.
    pub(crate) async fn tested_pooling(&self, patience: Duration) -> Pooling {
        let mut pooling = self.proxy.pooling.subscribe();
        let is_untested = *pooling.borrow() == Pooling::Untested;
        if is_untested && !self.is_pooled() {
            self.request_probe();
            let _ = timeout(patience, pooling.wait_for(|pooling| *pooling != Pooling::Untested)).await;
        }
        if self.is_pooled() { Pooling::Transactions } else { *pooling.borrow() }
    }

    pub(crate) fn refuses_options(&self) -> bool {
        self.proxy.refuses_options.load(Ordering::Acquire)
    }

    /// Records that a proxy refuses startup options, and accepts connections without them.
    pub(crate) fn found_refusal(&self) {
        self.proxy.refuses_options.store(true, Ordering::Release);
    }

    /// Reports that a proxy sends reads to a slave, and only writes to the master.
    pub(crate) fn found_split(&self) {
        if self.proxy.split.pass().is_some() {
            error!(
                "The address of the {self} leads to a proxy that splits reads from writes: it sends reads to a slave, \
                 whose answers may be older than what the client has just written. Its connections are refused, and \
                 requests that need the master fail with 503. Give `url` (and `read_url`) an address that leads to the \
                 master alone. With pgpool, set `load_balance_mode = off`, or add `?application_name=app` here and \
                 `app_name_redirect_preference_list = 'app:primary'` there."
            );
        }
    }

    /// Logs once how reads are made read-only without the startup option.
    pub(crate) fn enforces(&self, enforced: Enforced) {
        if self.proxy.logged.swap(enforced as u8, Ordering::AcqRel) == enforced as u8 {
            return;
        }
        let instead = match enforced {
            Enforced::BySession => {
                "Instead, each connection is made read-only by a `SET` once it is open. A pooler in transaction mode \
                 would lose that."
            }
            Enforced::ByTransaction => {
                "A `SET` cannot take its place: a pooler may be in between, where it could reach another client's \
                 writes. Instead, reads with arguments and `begin()` are read-only transactions, which cost round \
                 trips. Statements over `get()`, and statements without arguments, can write."
            }
        };
        warn!(
            "The {self} refuses startup options, one of which makes connections for reads read-only \
             (`enforce_read_only`). {instead} pgbouncer accepts the option from 1.26 on, and drops it with \
             `ignore_startup_parameters = options`. With `enforce_read_only = false`, it is not sent."
        );
    }
}
