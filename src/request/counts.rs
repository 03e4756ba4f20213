//! The causes of retries, as they are counted.

use crate::counters::names;

/// Why a query was run, or tried, once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum RetryCause {
    /// All connections were in use, or the server had none to spare.
    ///
    /// Raise `max_connections` of the section or of the server, or look for code that holds connections for long.
    Busy,
    /// The server could not be reached.
    ///
    /// The log says why the server was left out.
    Unreachable,
    /// The connection failed while the query ran.
    ///
    /// The log says how its server is.
    Broken,
    /// A standby cancelled the query, because it was in the way of replay.
    ///
    /// Raise `max_standby_streaming_delay` there, or switch `hot_standby_feedback` on.
    Conflict,
    /// The slave had not replayed what the client wrote.
    ///
    /// Look at its lag; raise `catch_up_timeout` if it is late by little.
    Behind,
    /// The address led to another server than the one that the query before had read from.
    ///
    /// Give each server an entry of its own.
    Moved,
    /// Another server became the master while the query waited for a connection.
    ///
    /// A failover brings a few, once.
    MasterChanged,
}

names!(RetryCause {
    Busy: "busy",
    Unreachable: "unreachable",
    Broken: "broken",
    Conflict: "conflict",
    Behind: "behind",
    Moved: "moved",
    MasterChanged: "master changed",
});
