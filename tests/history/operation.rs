//! What is recorded.

use std::time::Duration;

use serde::Deserialize;

/// What one client did, and when, since the beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Also its register: nobody else writes there.
    pub client: usize,
    pub work: Work,
    pub invoked: Duration,
    pub returned: Duration,
    pub outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Of values that go up.
    Write(i64),
    Read,
    /// By statements that take longer than a session that says nothing is believed to be alive.
    LongRead,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done(Vec<Answer>),
    /// With this status, or 0 without a reply. A write may have been done.
    Failed(u16),
}

/// What one query of a request saw.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Answer {
    pub value: i64,
    pub node: String,
    pub role: String,
    pub reason: String,
}

/// A time during which something was wrong.
#[derive(Clone, Copy, Debug)]
pub struct Spell {
    pub began: Duration,
    pub ended: Duration,
}

/// A write in the log of writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Write {
    pub register: usize,
    pub value: i64,
}
