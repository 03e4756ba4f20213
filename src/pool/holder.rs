//! The sessions that use connections, and the error of a checkout that got none in time.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{fmt, io};

use super::Pool;
use crate::backend::Driver;

/// Identifies the session that asks for a connection among all sessions of its database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asker(u64);

/// The sessions of one database. Each begins once and ends once.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    begun: AtomicU64,
    ended: AtomicU64,
}

impl Sessions {
    pub(crate) fn begin(&self) -> Asker {
        Asker(self.begun.fetch_add(1, Ordering::AcqRel) + 1)
    }

    pub(crate) fn end(&self) {
        self.ended.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn have_all_ended(&self) -> bool {
        // `ended` is read first, so that a session that begins in between is not overlooked.
        let ended = self.ended.load(Ordering::Acquire);
        self.begun.load(Ordering::Acquire) == ended
    }
}

/// The session that had a connection last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Holder {
    pub(crate) asker: Asker,
    /// The name of its handler, if it has one.
    pub(crate) handler: Option<Cow<'static, str>>,
    /// Adds up the time that its statements take. `None` if that is not measured.
    pub(crate) clock: Option<Arc<Clock>>,
}

/// How long a session has waited for its database.
#[derive(Debug, Default)]
pub(crate) struct Clock(AtomicU64);

impl Clock {
    pub(crate) fn add(&self, took: Duration) {
        self.0.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// Adds the time that it lives to a clock.
pub(crate) struct Ticking(Option<(Arc<Clock>, Instant)>);

impl Ticking {
    pub(crate) fn new(clock: Option<&Arc<Clock>>) -> Self {
        Self(clock.map(|clock| (clock.clone(), Instant::now())))
    }
}

impl Drop for Ticking {
    fn drop(&mut self) {
        if let Some((clock, since)) = &self.0 {
            clock.add(since.elapsed());
        }
    }
}

/// Names the hook where it may be what the connections of a pool wait for.
fn unended_hook<DB: Driver>(pool: &Pool<DB>) -> &'static str {
    match pool.hook.as_ref().is_some_and(|hook| hook.is_running()) {
        true => " (the `after_connect` hook has not ended)",
        false => "",
    }
}

/// The error of a checkout that got no connection in time.
#[derive(Debug)]
pub(super) struct TimedOut {
    message: String,
    /// True if other requests or handlers use the pool's connections.
    pub(super) is_crowd: bool,
}

impl TimedOut {
    /// The error of a request that waited for a permit while `others` more waited: all connections are in use, or are
    /// being opened for other requests.
    pub(super) fn crowd<DB: Driver>(pool: &Pool<DB>, asker: Asker, others: usize) -> Self {
        let (mut open, mut holds_one) = (0_u32, false);
        // How long a connection has been in use, at most, and by which handler.
        let mut longest = None::<(Duration, Option<Cow<'static, str>>)>;
        pool.for_each_open(|state| {
            open += 1;
            let held_by_handler = state.custody.held_for();
            let Some(held) = held_by_handler.max(state.busy_for()) else { return };
            let holder = state.holder();
            holds_one |= holder.asker == asker && held_by_handler.is_some();
            if longest.as_ref().is_none_or(|(longest, _)| held > *longest) {
                longest = Some((held, holder.handler));
            }
        });
        let idle = u32::try_from(pool.queue.idle()).unwrap_or(u32::MAX);
        let taken = pool.in_use();
        let opening = taken.saturating_sub(open.saturating_sub(idle));
        let in_use = taken - opening;

        let (what, server, timeout, max) = (pool.what(), &pool.health, pool.timeout, pool.max_connections);
        let longest = longest.map_or(String::new(), |(held, handler)| {
            let by = handler.map_or(String::new(), |handler| format!(" by `{handler}`"));
            format!(", one of them{by} for {:.1} s", held.as_secs_f64())
        });
        let opening = match opening {
            0 => String::new(),
            1 => ", 1 is being opened".into(),
            many => format!(", {many} are being opened"),
        };
        let hook = unended_hook(pool);
        let remedy = match holds_one {
            true => {
                ". The request that waits holds one itself, by `get()` or `begin()`: run its queries on that \
                 connection, or drop it first"
            }
            false => "",
        };
        let message = format!(
            "no connection for {what} to the {server} became free within {timeout:?}: {in_use} of {max} are in \
             use{longest}{opening}{hook}; {others} more wait{remedy}"
        );
        Self { message, is_crowd: in_use > 0 }
    }

    /// The error of a request that waited for a new connection.
    pub(super) fn connecting<DB: Driver>(pool: &Pool<DB>) -> Self {
        let (what, server, timeout) = (pool.what(), &pool.health, pool.timeout);
        let hook = unended_hook(pool);
        let message =
            format!("a new connection for {what} to the {server} took longer than {timeout:?}{hook}");
        Self { message, is_crowd: false }
    }

    /// The error of a server that accepts no more connections.
    pub(super) fn full<DB: Driver>(pool: &Pool<DB>) -> Self {
        let (what, server) = (pool.what(), &pool.health);
        let message = format!(
            "the {server} has no connection for {what} to spare: raise the limit of the server, or lower \
             `max_connections` of its pools"
        );
        Self { message, is_crowd: false }
    }
}

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for TimedOut {}

impl From<TimedOut> for sqlx::Error {
    fn from(timed_out: TimedOut) -> Self {
        io::Error::new(io::ErrorKind::TimedOut, timed_out).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_told_apart_and_all_end() {
        let sessions = Sessions::default();
        assert!(sessions.have_all_ended());
        let (one, other) = (sessions.begin(), sessions.begin());
        assert!(one != other && one != Asker::default(), "nobody has had a connection that is new");
        sessions.end();
        assert!(!sessions.have_all_ended());
        sessions.end();
        assert!(sessions.have_all_ended());
    }
}
