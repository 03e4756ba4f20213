//! When a slave that was further behind than `max_lag` serves again: a pure function of its lag and the time.
//!
//! A slave whose lag hovers about the limit would change between serving and being left out over and over. With each
//! return, clients that the master served meanwhile would step back in time. So:
//!
//! 1. A slave serves again when its lag is at most three quarters of `max_lag`, or one `check_interval`. Lag is known
//!    to one `check_interval`, so that a slave that steadily lags by half of `max_lag` is soon seen below three
//!    quarters.
//! 2. A slave is left out for ten times `check_interval` at least, or for a minute if that is less. If it then serves
//!    for less time than it had to stay out, it is left out for twice as long the next time, up to eight times as long.
//! 3. While the master does not answer, neither rule holds: a slave within `max_lag` serves.

use std::time::{Duration, Instant};

use crate::config::Checks;
use crate::position::Lag;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Lateness {
    #[default]
    Never,
    /// The slave is left out since then, for `rest` at least.
    Out { since: Instant, rest: Duration },
    /// The slave serves again since then. It had to stay out for `rest` before.
    Back { since: Instant, rest: Duration },
}

/// Whether the master takes writes, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Master {
    Answers,
    Gone,
}

const INTERVALS: u32 = 10;
const MOST_AT_FIRST: Duration = Duration::from_secs(60);
const DOUBLINGS: u32 = 8;

impl Lateness {
    pub(super) fn leaves_out(&self) -> bool {
        matches!(self, Self::Out { .. })
    }

    /// Takes note of a lag. Right after launch, a slave can be behind all that is known of the master, however small
    /// its lag is. That is [too much](Checks::is_too_much) as well, but the first lag that is known ends it.
    pub(super) fn observe(&mut self, checks: &Checks, lag: Lag, now: Instant, master: Master) {
        let Some(max) = checks.max_lag else { return };
        let (Lag::AtMost(known) | Lag::MoreThan(known)) = lag;
        let is_known = matches!(lag, Lag::AtMost(_));
        *self = match *self {
            Self::Out { since, rest } => {
                let (most, is_over) = match master {
                    Master::Answers => {
                        ((max * 3 / 4).max(checks.interval), now.saturating_duration_since(since) >= rest)
                    }
                    Master::Gone => (max, true),
                };
                if !is_known || known > most || !is_over {
                    return;
                }
                Self::Back { since: now, rest }
            }
            _ if known <= max => return,
            Self::Never => Self::Out { since: now, rest: first_rest(checks) },
            Self::Back { since, rest } => {
                let relapsed = now.saturating_duration_since(since) < rest;
                let first = first_rest(checks);
                let rest = if relapsed { (rest * 2).min(first * DOUBLINGS) } else { first };
                Self::Out { since: now, rest }
            }
        };
    }
}

fn first_rest(checks: &Checks) -> Duration {
    (checks.interval * INTERVALS).min(MOST_AT_FIRST)
}

#[cfg(test)]
mod tests;
