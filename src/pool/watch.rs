//! Ends what runs on a connection when no answer will come. Judges a failed statement once, for all code that follows.

use std::pin::Pin;
use std::time::{Duration, Instant};
use std::{fmt, io};

use log::warn;

use super::Pool;
use super::connection::ConnectionState;
use crate::backend::{Driver, Fault, Judgement, Remains};
use crate::one_line::folded;

/// A statement that failed, as its watch has judged it. Later code reads this, and does not judge the error again.
#[derive(Debug)]
pub(crate) struct StatementError {
    /// The error for the caller.
    pub(crate) error: sqlx::Error,
    pub(crate) fault: Fault,
    /// What is left of the connection.
    pub(crate) remains: Remains,
    pub(crate) outcome: Outcome,
}

/// Whether it is known what became of a statement that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It changed nothing.
    Known,
    /// It may have been carried out.
    Unknown,
}

impl From<StatementError> for sqlx::Error {
    fn from(failed: StatementError) -> Self {
        failed.error
    }
}

/// Ends what runs on a connection when its server is found to be down, or the connection to be dead. A write is given
/// up only if the connection is dead. Its outcome is unknown then.
///
/// Dropped, it warns of a statement that took as long as `slow_statement`. sqlx would warn, too, but knows neither the
/// database nor the handler.
pub(crate) struct Watch<'a, DB: Driver> {
    pool: &'a Pool<DB>,
    state: &'a ConnectionState<DB>,
    /// The statement, unless it is one of this crate's own.
    sql: Option<&'a str>,
    /// How long the statement has waited for the server.
    took: Duration,
    sent: Sent,
}

/// Why a wait has ended without a result.
struct Why {
    judgement: Judgement,
    /// `None` if the connection was [ended](super::Ended).
    error: Option<sqlx::Error>,
}

impl Why {
    const NO_ANSWER: Self = Self { judgement: Judgement::BROKEN_OFF, error: None };
}

/// What may have been sent to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Nothing,
    Something,
}

impl<'a, DB: Driver> Watch<'a, DB> {
    /// Begins a watch over a connection.
    pub(crate) fn new(pool: &'a Pool<DB>, state: &'a ConnectionState<DB>) -> Self {
        Self { pool, state, sql: None, took: Duration::ZERO, sent: Sent::Nothing }
    }

    /// Adds the text of the statement, for a warning if it is slow.
    pub(crate) fn of(mut self, sql: &'a str) -> Self {
        self.sql = Some(sql);
        self
    }

    pub(crate) fn pool(&self) -> &'a Pool<DB> {
        self.pool
    }

    /// Watches over work that may write. The work is pinned where it is: each function that it moves through would add
    /// its size to the query's future.
    ///
    /// # Errors
    ///
    /// The outcome of a write is unknown if it may have been sent, and its connection broke before the answer came.
    pub(crate) async fn over<T>(
        &mut self,
        work: Pin<&mut impl Future<Output = Result<T, sqlx::Error>>>,
    ) -> Result<T, StatementError> {
        self.wait(work).await.map_err(|why| {
            let may_have_written = self.pool.access().writes()
                && self.sent == Sent::Something
                && why.judgement.remains == Remains::BrokenOff;
            self.failed(why, if may_have_written { Outcome::Unknown } else { Outcome::Known })
        })
    }

    /// Watches over work that changes nothing, such as the beginning of a transaction.
    pub(crate) async fn over_harmless<T>(
        &mut self,
        work: Pin<&mut impl Future<Output = Result<T, sqlx::Error>>>,
    ) -> Result<T, StatementError> {
        self.wait(work).await.map_err(|why| self.failed(why, Outcome::Known))
    }

    fn failed(&self, why: Why, outcome: Outcome) -> StatementError {
        let Why { judgement: Judgement { fault, remains }, error } = why;
        let error = match (outcome, error) {
            (Outcome::Unknown, cause) => {
                self.pool.counts.outcomes_unknown.add_one();
                OutcomeUnknown { server: self.pool.health.to_string(), cause }.into()
            }
            (Outcome::Known, Some(error)) => error,
            (Outcome::Known, None) => self.pool.unreachable(),
        };
        StatementError { error, fault, remains, outcome }
    }

    /// Waits for the result of the work, unless the connection is ended first.
    async fn wait<T>(
        &mut self,
        work: Pin<&mut impl Future<Output = Result<T, sqlx::Error>>>,
    ) -> Result<T, Why> {
        if self.state.custody.ended().is_some() {
            return Err(Why::NO_ANSWER);
        }
        // Remembered for the next wait: a reader of rows may pause for long, and the connection may be ended
        // meanwhile.
        self.sent = Sent::Something;
        let mut wait = Wait::begin(self);
        let Ok(done) = wait.watch.state.custody.unless_ended(work).await else { return Err(Why::NO_ANSWER) };
        let done = done.map_err(|error| Why { judgement: DB::judge(&error), error: Some(error) });
        wait.has_answer = done.as_ref().err().is_none_or(|why| why.judgement.remains == Remains::Usable);
        done
    }

    fn warn_of_slow(&self, sql: &str) {
        let health = self.pool.health();
        let handler = self.state.holder().handler;
        let handler = handler.map(|handler| format!(", asked by `{handler}`")).unwrap_or_default();
        let took = self.took.as_secs_f64();
        warn!("Slow statement on the {health}{handler}: {took:.1} s for {}", folded(sql, MAX_SHOWN));
    }
}

impl<DB: Driver> Drop for Watch<'_, DB> {
    fn drop(&mut self) {
        let is_slow = || self.pool.slow_statement.is_some_and(|slow| self.took >= slow);
        if let Some(sql) = self.sql
            && is_slow()
        {
            self.warn_of_slow(sql);
        }
    }
}

/// A wait for the server. It ends with the answer, or when the caller gives up. Reads the clock twice.
struct Wait<'w, 'a, DB: Driver> {
    watch: &'w mut Watch<'a, DB>,
    began: Instant,
    has_answer: bool,
}

impl<'w, 'a, DB: Driver> Wait<'w, 'a, DB> {
    fn begin(watch: &'w mut Watch<'a, DB>) -> Self {
        let began = Instant::now();
        watch.state.begin_statement(began);
        Self { watch, began, has_answer: false }
    }
}

impl<DB: Driver> Drop for Wait<'_, '_, DB> {
    fn drop(&mut self) {
        let now = Instant::now();
        let took = now - self.began;
        self.watch.took += took;
        self.watch.state.end_statement(now, took, self.has_answer);
    }
}

/// A logged statement is cut to this length, because it may hold a thousand rows.
const MAX_SHOWN: usize = 500;

/// The error of a write whose connection died before the answer came.
#[derive(Debug)]
pub(crate) struct OutcomeUnknown {
    server: String,
    /// The error by which the connection died, if there was one.
    cause: Option<sqlx::Error>,
}

impl OutcomeUnknown {
    /// True if `error` is an `OutcomeUnknown`.
    pub(crate) fn is(error: &sqlx::Error) -> bool {
        matches!(error, sqlx::Error::Io(error) if error.get_ref().is_some_and(|inner| inner.is::<Self>()))
    }
}

impl From<OutcomeUnknown> for sqlx::Error {
    fn from(unknown: OutcomeUnknown) -> Self {
        io::Error::new(io::ErrorKind::ConnectionAborted, unknown).into()
    }
}

impl fmt::Display for OutcomeUnknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let server = &self.server;
        write!(
            f,
            "the connection to the {server} died before the answer came: the outcome is unknown, and the statement is \
             not run again (look in the database whether it was carried out)"
        )
    }
}

impl std::error::Error for OutcomeUnknown {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_ref().map(|cause| cause as _)
    }
}
