//! The records of a run.

use std::time::Duration;

use serde::Deserialize;

/// One operation of a client. Its times count from the beginning of the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The client's number, which is also that of its register. No other client writes there.
    pub client: usize,
    pub work: Work,
    pub invoked: Duration,
    pub returned: Duration,
    pub outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Writes this value. The values go up.
    Write(i64),
    Read,
    /// Reads by statements that take longer than a silent session is believed to be alive.
    LongRead,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done(Vec<Answer>),
    /// Failed with this status, or with 0 if there was no reply. A write may have been done.
    Failed(u16),
}

/// The result of one query of a request.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Answer {
    pub value: i64,
    pub node: String,
    pub role: String,
    pub reason: String,
}

/// A time without a master.
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
