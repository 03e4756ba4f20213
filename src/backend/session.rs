//! The server that a connection leads to, and what that server says of the connection.

use std::num::NonZeroU64;
use std::time::Duration;
use std::{fmt, io};

use super::{Access, ReportedRole};

/// One run of one database process, as far as a connection can tell. A hash of the server's own identifiers, so that it
/// can be compared and kept without a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Instance(NonZeroU64);

impl Instance {
    /// SipHash with fixed keys: the same words are the same instance in each process that hashes them.
    #[cfg(any(feature = "mysql", feature = "postgres", test))]
    pub(crate) fn of(words: &str) -> Self {
        Self(hash(words))
    }

    pub(crate) fn to_bits(self) -> u64 {
        self.0.get()
    }

    pub(crate) fn from_bits(bits: u64) -> Option<Self> {
        NonZeroU64::new(bits).map(Self)
    }
}

/// A hash of these words that is the same in each process.
#[cfg(any(feature = "mysql", feature = "postgres", test))]
pub(crate) fn hash(words: &str) -> NonZeroU64 {
    use std::hash::{DefaultHasher, Hash, Hasher};

    let mut hasher = DefaultHasher::new();
    words.hash(&mut hasher);
    NonZeroU64::MIN.saturating_add(hasher.finish() >> 1)
}

/// Identifies one connection at its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId {
    pub id: i64,
    /// The start of the session by the server's clock, where the server tells it: numbers are used again.
    pub began: i64,
    /// A hash of the session's role, where the server hides the sessions of other roles.
    pub role: Option<NonZeroU64>,
}

/// What a new connection has learnt from its server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionInfo {
    pub instance: Option<Instance>,
    pub session: Option<SessionId>,
    pub role: ReportedRole,
    /// True if the server reports the session as read-only.
    pub read_only: bool,
}

impl ConnectionInfo {
    /// Refuses a connection that should lead to the master but leads to a slave. Addresses do so for a while after a
    /// promotion, as that of a proxy does between two of its checks.
    pub(crate) fn accept(&self, access: Access) -> Result<(), sqlx::Error> {
        match (access, self.role) {
            (Access::Writes | Access::MasterReads, ReportedRole::Slave) => Err(NotTheMaster::Slave.into()),
            (Access::SlaveReads, _) | (_, ReportedRole::Master | ReportedRole::Unknown) => Ok(()),
        }
    }
}

/// The error of a connection that does not lead to the master, or leads there with only a part of its statements. The
/// statement is not to blame: another connection may lead elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotTheMaster {
    /// The server takes no writes.
    Slave,
    /// A proxy sends reads to a slave and the rest to the master. A client that has just written would miss its own
    /// write.
    Split,
}

impl NotTheMaster {
    pub(crate) fn of(error: &sqlx::Error) -> Option<Self> {
        let sqlx::Error::Io(error) = error else { return None };
        error.get_ref()?.downcast_ref().copied()
    }
}

impl From<NotTheMaster> for sqlx::Error {
    fn from(error: NotTheMaster) -> Self {
        io::Error::new(io::ErrorKind::NotConnected, error).into()
    }
}

impl fmt::Display for NotTheMaster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Slave => "the address leads to a server that takes no writes, not to the master",
            Self::Split => {
                "the address leads to a proxy that sends reads to slaves, and only writes to the master"
            }
        })
    }
}

impl std::error::Error for NotTheMaster {}

/// The activity of a session, as its server tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// The server has no such session.
    Unknown,
    /// The session has waited for its client this long.
    Idle(Duration),
    /// The session runs a statement.
    Busy,
    /// The server does not tell this role.
    Hidden,
}
