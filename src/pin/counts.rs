//! Counts of pins, and log lines about those that are not believed.

use std::time::Duration;

use log::warn;

use crate::counters::{Counter, Key, Tally, names};
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
    /// What is wrong, and the remedy, for the log. `None` if the refusal is not worth a line.
    fn remedy(self) -> Option<&'static str> {
        match self {
            Self::Forged => Some(
                "it does not have the form of a pin. A proxy on the way may change cookies, or a client tries to \
                 forge one",
            ),
            Self::Foreign => {
                Some("it was signed with another key. Give all servers of the application one `secret_key`")
            }
            Self::Expired => None,
            Self::Ahead => Some(
                "its time is ahead of the clock here by more than `lag_window`. Set the clocks of all servers of the \
                 application",
            ),
            Self::Doubled => Some(
                "the request carries two cookies or headers of its name. Give each application on this host another \
                 `pin.name`",
            ),
        }
    }
}

names!(PinRefusal {
    Forged: "forged",
    Foreign: "foreign",
    Expired: "expired",
    Ahead: "ahead",
    Doubled: "doubled",
});

/// The shortest time between two warnings about pins that are refused for the same cause.
const BETWEEN_WARNINGS: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct PinCounts {
    pub(crate) made: Counter,
    pub(crate) honoured: Counter,
    pub(crate) refused: Tally,
    /// One for each cause, so that a client that tries to forge pins does not hide a wrong key.
    warnings: [Throttle; PinRefusal::ALL.len()],
}

impl PinCounts {
    pub(super) fn new() -> Self {
        Self {
            made: Counter::default(),
            honoured: Counter::default(),
            refused: Tally::default(),
            warnings: PinRefusal::ALL.map(|_| Throttle::new(BETWEEN_WARNINGS)),
        }
    }

    pub(super) fn refuse(&self, database: &str, cause: PinRefusal) {
        self.refused.add(cause);
        let Some(remedy) = cause.remedy() else { return };
        if let Some(more) = self.warnings[cause.number()].pass() {
            let more = if more > 0 { format!(" ({more} more since the line before)") } else { String::new() };
            warn!(
                "A pin of database `{database}` is not believed ({cause}): {remedy}. Its client may miss its own \
                 writes. For each cause, there is one such line a minute at most{more}."
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_has_a_warning_of_its_own() {
        let counts = PinCounts::new();
        counts.refuse("blog", PinRefusal::Forged);
        let passes = |cause: PinRefusal| counts.warnings[cause.number()].pass();
        assert_eq!(passes(PinRefusal::Forged), None, "it was said a moment ago");
        for cause in [PinRefusal::Foreign, PinRefusal::Ahead, PinRefusal::Doubled] {
            assert_eq!(passes(cause), Some(0), "{cause}");
        }
    }
}
