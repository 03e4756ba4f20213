//! Counts of pins, and log lines about those that are not believed.

use std::fmt;
use std::time::Duration;

use log::warn;

use crate::counters::{Counter, Tally, key};
use crate::throttle::Throttle;

/// The reason why a pin was not believed. The read that carries it goes to any slave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum PinRefusal {
    /// The token does not have the form of a pin of this version.
    ///
    /// Either a client is probing the application, or a proxy or browser on the way mangles cookies.
    Forged,
    /// The token has the form of a pin, but was not signed with our key for this database and cookie.
    ///
    /// Most likely another server of the application has, or had, a different `secret_key`. Give all servers the same
    /// one.
    Foreign,
    /// The token is older than pins are valid.
    ///
    /// There is nothing to do: clients that carry pins in a header send old ones.
    Expired,
    /// The token's time is ahead of ours by more than the lag window.
    ///
    /// The clocks of two servers of the application differ: set them.
    Ahead,
    /// The request carries two tokens, and nothing tells which is the client's.
    ///
    /// Two applications set cookies of the same name for the same host. Give one of them a `pin.name` of its own.
    Doubled,
}

impl PinRefusal {
    const ALL: [Self; 5] = [Self::Forged, Self::Foreign, Self::Expired, Self::Ahead, Self::Doubled];

    /// Its name in the log, in metrics and on pages. It never changes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Forged => "forged",
            Self::Foreign => "foreign",
            Self::Expired => "expired",
            Self::Ahead => "ahead",
            Self::Doubled => "doubled",
        }
    }

    /// The remedy for the log, if the refusal is worth a line.
    fn remedy(self) -> Option<&'static str> {
        match self {
            Self::Forged => Some("it does not have the form of a pin"),
            Self::Foreign => {
                Some("it was signed with another key: give all servers of the application one `secret_key`")
            }
            Self::Expired => None,
            Self::Ahead => Some("it is from the future: set the clocks of all servers of the application"),
            Self::Doubled => {
                Some("the request carries two of one name: give one application another `pin.name`")
            }
        }
    }
}

impl fmt::Display for PinRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

key!(PinRefusal);

/// The shortest time between two warnings about pins.
const BETWEEN_WARNINGS: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct PinCounts {
    pub(crate) made: Counter,
    pub(crate) honoured: Counter,
    pub(crate) refused: Tally,
    warnings: Throttle,
}

impl PinCounts {
    pub(super) fn new() -> Self {
        Self {
            made: Counter::default(),
            honoured: Counter::default(),
            refused: Tally::default(),
            warnings: Throttle::new(BETWEEN_WARNINGS),
        }
    }

    pub(super) fn refuse(&self, database: &str, cause: PinRefusal) {
        self.refused.add(cause);
        let Some(remedy) = cause.remedy() else { return };
        if self.warnings.pass().is_some() {
            warn!(
                "A pin of database `{database}` is not believed ({cause}): {remedy}. Until then its client may miss its \
                 own writes. This is said once a minute at most; `Cluster::statistics` counts all."
            );
        }
    }
}
