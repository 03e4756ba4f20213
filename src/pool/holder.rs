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

/// The error of a checkout that got no connection in time.
#[derive(Debug)]
pub(super) struct TimedOut {
    server: String,
    what: &'static str,
    timeout: Duration,
    why: Why,
}

#[derive(Debug)]
enum Why {
    /// All connections are in use, or are being opened for other requests.
    Crowd {
        in_use: u32,
        opening: u32,
        max: u32,
        waiting: usize,
        longest: Option<Longest>,
        own: Option<Duration>,
    },
    /// Opening a new connection took too long.
    Connecting,
    /// The server accepts no more connections.
    Full,
}

/// The connection that has been in use for the longest time.
#[derive(Debug)]
struct Longest {
    handler: Option<Cow<'static, str>>,
    held: Duration,
}

impl TimedOut {
    /// The error of a request that waited for a permit while `others` more waited.
    pub(super) fn crowd<DB: Driver>(pool: &Pool<DB>, asker: Asker, others: usize) -> Self {
        Self::because(pool, Why::crowd(pool, asker, others))
    }

    /// The error of a request that waited for a new connection.
    pub(super) fn connecting<DB: Driver>(pool: &Pool<DB>) -> Self {
        Self::because(pool, Why::Connecting)
    }

    pub(super) fn full<DB: Driver>(pool: &Pool<DB>) -> Self {
        Self::because(pool, Why::Full)
    }

    /// True if other requests or handlers use the pool's connections.
    pub(super) fn is_crowd(&self) -> bool {
        matches!(self.why, Why::Crowd { in_use: 1.., .. })
    }

    fn because<DB: Driver>(pool: &Pool<DB>, why: Why) -> Self {
        let what = if pool.access.writes() { "writes" } else { "reads" };
        Self { server: pool.health.to_string(), what, timeout: pool.timeout, why }
    }
}

impl Why {
    fn crowd<DB: Driver>(pool: &Pool<DB>, asker: Asker, others: usize) -> Self {
        let (mut open, mut longest, mut own) = (0_u32, None::<Longest>, None);
        pool.for_each_open(|state| {
            open += 1;
            let held_by_handler = state.held_for();
            let Some(held) = held_by_handler.max(state.busy_for()) else { return };
            let holder = state.holder();
            if holder.asker == asker && held_by_handler.is_some() {
                own = own.max(held_by_handler);
            }
            if longest.as_ref().is_none_or(|longest| held > longest.held) {
                longest = Some(Longest { handler: holder.handler, held });
            }
        });
        let (in_use, max, waiting) = (pool.in_use(), pool.max_connections, others);
        let idle = u32::try_from(pool.queue.idle()).unwrap_or(u32::MAX);
        let opening = in_use.saturating_sub(open.saturating_sub(idle));
        Self::Crowd { in_use: in_use - opening, opening, max, waiting, longest, own }
    }
}

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { server, what, timeout, why } = self;
        match why {
            Why::Crowd { in_use, opening, max, waiting, longest, own } => {
                write!(f, "no connection for {what} to the {server} became free within {timeout:?}: ")?;
                write!(f, "{in_use} of {max} are in use")?;
                match longest {
                    Some(Longest { handler: Some(handler), held }) => {
                        write!(f, ", one of them by `{handler}` for {:.1} s", held.as_secs_f64())?;
                    }
                    Some(Longest { handler: None, held }) => {
                        write!(f, ", one of them for {:.1} s", held.as_secs_f64())?;
                    }
                    None => {}
                }
                match opening {
                    0 => {}
                    1 => f.write_str(", 1 is being opened")?,
                    many => write!(f, ", {many} are being opened")?,
                }
                write!(f, "; {waiting} more wait")?;
                if own.is_some() {
                    f.write_str(
                        ". The request that waits holds one itself, by `get()` or `begin()`: run its queries on that \
                         connection, or drop it first",
                    )?;
                }
                Ok(())
            }
            Why::Connecting => {
                write!(f, "a new connection for {what} to the {server} took longer than {timeout:?}")
            }
            Why::Full => write!(
                f,
                "the {server} has no connection for {what} to spare: raise the limit of the server, or lower \
                 `max_connections` of its pools"
            ),
        }
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
