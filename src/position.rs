//! Positions in a replication log, and the time at which the master stood at each of them.
//!
//! | database   | a position is                                             | its history is   |
//! |------------|-----------------------------------------------------------|------------------|
//! | PostgreSQL | an LSN                                                    | the timeline     |
//! | MariaDB    | in each domain the latest transaction's number            | the writing server |
//! | MySQL      | a set of transactions                                     | in the set       |
//! | Galera     | the number of the latest transaction in the cluster       | the cluster      |
//! | SQLite     | the time at which a copy began                            | the machine's clock |

use std::collections::VecDeque;
use std::time::{Duration, Instant};

mod gtid_set;

pub(crate) use gtid_set::GtidSet;

/// A place in a replication log.
#[doc(hidden)]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Position {
    Lsn {
        timeline: u32,
        lsn: u64,
    },
    /// One transaction for each domain.
    Gtids(Vec<Gtid>),
    GtidSet(GtidSet),
    /// The number that all nodes of a Galera cluster give a transaction. The cluster has a UUID.
    Seqno {
        cluster: u128,
        seqno: u64,
    },
    /// Milliseconds by a clock that begins anew with the machine. Times of two clocks cannot be compared.
    Time {
        clock: u64,
        ms: u64,
    },
}

/// A transaction of MariaDB: <https://mariadb.com/docs/server/ha-and-performance/standard-replication/gtid>
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gtid {
    pub domain: u32,
    pub server: u32,
    pub sequence: u64,
}

impl Position {
    /// True for the position of a log that is empty or was reset.
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Gtids(gtids) => gtids.is_empty(),
            Self::GtidSet(set) => set.is_empty(),
            Self::Lsn { .. } | Self::Seqno { .. } | Self::Time { .. } => false,
        }
    }

    /// Parses MariaDB's notation: `0-10-8,1-10-3`. `None` if nothing is logged.
    #[cfg(any(feature = "mysql", test))]
    pub(crate) fn parse_gtids(text: &str) -> Option<Self> {
        let gtid = |text: &str| {
            let mut parts = text.trim().split('-');
            let gtid = Gtid {
                domain: parts.next()?.parse().ok()?,
                server: parts.next()?.parse().ok()?,
                sequence: parts.next()?.parse().ok()?,
            };
            parts.next().is_none().then_some(gtid)
        };
        text.split(',').map(gtid).collect::<Option<_>>().map(Self::Gtids)
    }

    /// Parses MySQL's notation: `3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5:7,…`. `None` if nothing is logged.
    #[cfg(any(feature = "mysql", test))]
    pub(crate) fn parse_gtid_set(text: &str) -> Option<Self> {
        GtidSet::parse(text).map(Self::GtidSet)
    }

    /// Parses the notation of a Galera cluster: `3e11fa47-71ca-11e1-9e33-c80aa9429562:5`. `None` for a server that is
    /// in no cluster, whose number is -1.
    #[cfg(any(feature = "mysql", test))]
    pub(crate) fn parse_seqno(text: &str) -> Option<Self> {
        let (cluster, seqno) = text.rsplit_once(':')?;
        let cluster = u128::from_str_radix(&cluster.replace('-', ""), 16).ok()?;
        let seqno = u64::try_from(seqno.parse::<i64>().ok()?).ok()?;
        Some(Self::Seqno { cluster, seqno })
    }

    /// True if both positions belong to one history, as far as can be told. After a promotion, the same number may
    /// stand for another transaction.
    pub(crate) fn shares_history(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Lsn { timeline: ours, .. }, Self::Lsn { timeline: theirs, .. }) => ours == theirs,
            // The empty position precedes every other.
            (Self::Gtids(ours), Self::Gtids(_)) if ours.is_empty() => true,
            (Self::Gtids(ours), Self::Gtids(theirs)) => {
                theirs.iter().all(|b| ours.iter().any(|a| (a.domain, a.server) == (b.domain, b.server)))
            }
            // A transaction keeps its name on every server that replays it.
            (Self::GtidSet(_), Self::GtidSet(_)) => true,
            (Self::Seqno { cluster: ours, .. }, Self::Seqno { cluster: theirs, .. }) => ours == theirs,
            (Self::Time { clock: ours, .. }, Self::Time { clock: theirs, .. }) => ours == theirs,
            _ => false,
        }
    }

    /// True if this position is as far as `other`, provided that they share their history.
    pub(crate) fn reaches(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Lsn { lsn: ours, .. }, Self::Lsn { lsn: theirs, .. }) => ours >= theirs,
            (Self::Gtids(ours), Self::Gtids(theirs)) => {
                theirs.iter().all(|b| ours.iter().any(|a| a.domain == b.domain && a.sequence >= b.sequence))
            }
            (Self::GtidSet(ours), Self::GtidSet(theirs)) => ours.includes(theirs),
            (Self::Seqno { seqno: ours, .. }, Self::Seqno { seqno: theirs, .. }) => {
                self.shares_history(other) && ours >= theirs
            }
            (Self::Time { ms: ours, .. }, Self::Time { ms: theirs, .. }) => {
                self.shares_history(other) && ours >= theirs
            }
            _ => false,
        }
    }

    /// True if a server at this position has all that `other` has.
    pub(crate) fn includes(&self, other: &Self) -> bool {
        self.shares_history(other) && self.reaches(other)
    }

    /// True if each transaction that `other` names is named here, or a later one of the same server. The number alone
    /// proves nothing: after a promotion, another server goes on counting.
    pub(crate) fn names(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Gtids(ours), Self::Gtids(theirs)) => theirs.iter().all(|b| {
                let names =
                    |a: &Gtid| (a.domain, a.server) == (b.domain, b.server) && a.sequence >= b.sequence;
                ours.iter().any(names)
            }),
            _ => self.includes(other),
        }
    }

    /// True if a server that has everything up to this position lacks a part of `replayed`, which another server told
    /// earlier. Then the two have different histories. Transactions of a source that this MariaDB or MySQL server has
    /// never heard of are no proof of that. The other server may have written them itself, or their domain may not be
    /// replicated. A node that is ahead in its Galera cluster is on the same history: any node may be the first.
    pub(crate) fn lacks(&self, replayed: &Self) -> bool {
        match (self, replayed) {
            (Self::Lsn { lsn: ours, .. }, Self::Lsn { lsn: theirs, .. }) => ours < theirs,
            (Self::Gtids(ours), Self::Gtids(theirs)) => theirs.iter().any(|b| {
                let latest = |is: &dyn Fn(&Gtid) -> bool| {
                    let of_domain = ours.iter().filter(|a| a.domain == b.domain && is(a));
                    of_domain.map(|a| a.sequence).max()
                };
                // Numbers go up within a domain, no matter which server writes.
                let latest = latest(&|a| a.server == b.server).or_else(|| latest(&|_| true));
                latest.is_some_and(|latest| latest < b.sequence)
            }),
            (Self::GtidSet(ours), Self::GtidSet(theirs)) => !theirs.without(ours).sources_in(ours).is_empty(),
            _ => false,
        }
    }

    /// The transactions of sources that a MySQL server's master has never heard of. The server wrote them itself.
    pub(crate) fn written_beside(&self, master: &Self) -> GtidSet {
        match (self, master) {
            (Self::GtidSet(ours), Self::GtidSet(theirs)) => ours.clone().sources_beyond(theirs),
            _ => GtidSet::default(),
        }
    }

    /// A position that includes both, if there is one. Otherwise this one, which is the later claim.
    pub(crate) fn merge(self, earlier: Self) -> Self {
        match (self, earlier) {
            (Self::Gtids(mut ours), Self::Gtids(theirs)) => {
                for b in theirs {
                    match ours.iter_mut().find(|a| a.domain == b.domain) {
                        Some(a) if a.server == b.server => a.sequence = a.sequence.max(b.sequence),
                        Some(_) => {}
                        None => ours.push(b),
                    }
                }
                Self::Gtids(ours)
            }
            // Only a part of each set may be known.
            (Self::GtidSet(ours), Self::GtidSet(theirs)) => Self::GtidSet(ours.union(theirs)),
            (ours, theirs) if theirs.includes(&ours) => theirs,
            (ours, _) => ours,
        }
    }

    /// The part of this position that is later than `earlier`, or the whole position if nothing can be left out.
    /// `earlier` is a position that need not be told to others.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        match (self, earlier) {
            (Self::Gtids(ours), Self::Gtids(theirs)) => {
                Self::Gtids(ours.iter().filter(|gtid| !theirs.contains(gtid)).copied().collect())
            }
            (Self::GtidSet(ours), Self::GtidSet(theirs)) => Self::GtidSet(ours.without(theirs)),
            (position, _) => position.clone(),
        }
    }

    /// The part of this position that is certain to belong to the history of `known`. Transactions of other sources may
    /// be a server's own.
    pub(crate) fn of_sources_of(&self, known: &Self) -> Option<Self> {
        match (self, known) {
            (Self::Lsn { .. }, Self::Lsn { .. }) | (Self::Seqno { .. }, Self::Seqno { .. }) => {
                self.shares_history(known).then(|| self.clone())
            }
            (Self::Gtids(ours), Self::Gtids(theirs)) => {
                let is_known =
                    |a: &&Gtid| theirs.iter().any(|b| (a.domain, a.server) == (b.domain, b.server));
                Some(Self::Gtids(ours.iter().filter(is_known).copied().collect()))
            }
            (Self::GtidSet(ours), Self::GtidSet(theirs)) => {
                Some(Self::GtidSet(ours.clone().sources_in(theirs)))
            }
            _ => None,
        }
    }

    /// The part of this position that `other` has as well, if that can be told.
    pub(crate) fn in_common(&self, other: &Self) -> Option<Self> {
        match (self, other) {
            (Self::Gtids(ours), Self::Gtids(theirs)) => {
                let includes = |b: &&Gtid| {
                    theirs
                        .iter()
                        .any(|a| (a.domain, a.server) == (b.domain, b.server) && a.sequence >= b.sequence)
                };
                Some(Self::Gtids(ours.iter().filter(includes).copied().collect()))
            }
            (Self::GtidSet(ours), Self::GtidSet(theirs)) => Some(Self::GtidSet(ours.in_common(theirs))),
            (ours, theirs) => theirs.includes(ours).then(|| ours.clone()),
        }
    }

    /// Encodes the position for a token: the kind in one byte, and numbers in big-endian order.
    pub(crate) fn encode(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Lsn { timeline, lsn } => {
                bytes.push(b'L');
                bytes.extend(timeline.to_be_bytes());
                bytes.extend(lsn.to_be_bytes());
            }
            Self::Gtids(gtids) => {
                bytes.push(b'G');
                for Gtid { domain, server, sequence } in gtids {
                    bytes.extend(domain.to_be_bytes());
                    bytes.extend(server.to_be_bytes());
                    bytes.extend(sequence.to_be_bytes());
                }
            }
            Self::GtidSet(set) => {
                bytes.push(b'S');
                set.encode(bytes);
            }
            Self::Seqno { cluster, seqno } => {
                bytes.push(b'C');
                bytes.extend(cluster.to_be_bytes());
                bytes.extend(seqno.to_be_bytes());
            }
            Self::Time { clock, ms } => {
                bytes.push(b'T');
                bytes.extend(clock.to_be_bytes());
                bytes.extend(ms.to_be_bytes());
            }
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        let u32_at = |bytes: &[u8], at| Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
        let u64_at = |bytes: &[u8], at| Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
        match (kind, rest.len()) {
            (b'L', 12) => Some(Self::Lsn { timeline: u32_at(rest, 0)?, lsn: u64_at(rest, 4)? }),
            (b'G', len) if len % 16 == 0 => {
                let gtid = |gtid: &[u8]| {
                    let (domain, server) = (u32_at(gtid, 0)?, u32_at(gtid, 4)?);
                    Some(Gtid { domain, server, sequence: u64_at(gtid, 8)? })
                };
                rest.chunks(16).map(gtid).collect::<Option<_>>().map(Self::Gtids)
            }
            (b'S', _) => GtidSet::decode(rest).map(Self::GtidSet),
            (b'C', 24) => {
                let cluster = u128::from_be_bytes(*rest.first_chunk()?);
                Some(Self::Seqno { cluster, seqno: u64_at(rest, 16)? })
            }
            (b'T', 16) => Some(Self::Time { clock: u64_at(rest, 0)?, ms: u64_at(rest, 8)? }),
            _ => None,
        }
    }
}

/// The positions of the master, each with its time. They turn a slave's position into a lag in time. This needs neither
/// clocks that agree nor a table to write to, and the lag does not grow while the master is idle.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// The positions in order, the latest at the end.
    seen: VecDeque<Seen>,
    /// When the latest look began at which the master told a position.
    looked: Option<Instant>,
    /// The position that the latest look told, if it is less than the one that was known before.
    less: Option<Position>,
    /// True while another server is the master, and has not told a position yet.
    passed_on: bool,
}

#[derive(Clone, Debug)]
struct Seen {
    position: Position,
    /// When the probe began that first found the master there.
    since: Instant,
    /// When the latest probe began that found the master there.
    until: Instant,
    gap: Gap,
}

/// The gap between the look that first found the master at a position, and the look before. A slave that lacks the
/// position has a [`lag`](History::lag) that is too large by up to the time in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gap {
    Time(Duration),
    /// Another server became the master. It may have had its position for as long as nothing was known.
    Failover,
}

/// The lag of a slave behind the master's latest known position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lag {
    AtMost(Duration),
    /// All known positions of the master are later than the slave's.
    MoreThan(Duration),
}

impl Lag {
    pub(crate) fn at_least(self, least: Duration) -> Self {
        match self {
            Self::AtMost(lag) => Self::AtMost(lag.max(least)),
            Self::MoreThan(lag) => Self::MoreThan(lag.max(least)),
        }
    }
}

impl History {
    const KEPT: Duration = Duration::from_secs(3600);
    /// A lag of an hour is known to a minute, one of a minute to a second.
    const RESOLUTION: u32 = 60;

    /// Records that a look at `at` found the master at this position.
    pub(crate) fn record(&mut self, position: Position, at: Instant) {
        let less = self.less.take();
        let looked = self.looked.replace(at);
        let gap = match std::mem::take(&mut self.passed_on) {
            true => Gap::Failover,
            false => Gap::Time(looked.map_or(Duration::ZERO, |looked| at.saturating_duration_since(looked))),
        };
        // The flushed part of a PostgreSQL timeline only grows, but a look may tell less than the look before.
        let is_less = matches!(position, Position::Lsn { .. });
        match self.seen.back_mut() {
            Some(latest) if latest.position == position => latest.until = at,
            Some(latest) if is_less && latest.position.includes(&position) => {
                // The master stands still if it tells the same position twice. Otherwise it may be beyond what was
                // known.
                if less.as_ref() == Some(&position) {
                    latest.until = at;
                }
                self.less = Some(position);
            }
            _ => {
                self.seen.push_back(Seen { position, since: at, until: at, gap });
                self.thin_out(at);
            }
        }
        while self.seen.len() > 1 && at.saturating_duration_since(self.seen[0].until) > Self::KEPT {
            self.seen.pop_front();
        }
    }

    /// Records that another server is the master from now on.
    pub(crate) fn pass_on(&mut self) {
        self.passed_on = true;
    }

    /// Forgets positions that lie close together in comparison to their age, because a position can be large. A slave
    /// at a forgotten position counts as standing at the one before.
    fn thin_out(&mut self, now: Instant) {
        let mut kept: Option<Instant> = None;
        self.seen.retain(|seen| {
            let age = now.saturating_duration_since(seen.until);
            let keep =
                kept.is_none_or(|kept| seen.until.saturating_duration_since(kept) >= age / Self::RESOLUTION);
            if keep {
                kept = Some(seen.until);
            }
            keep
        });
    }

    /// The latest position that the master is known to have had before `time`.
    pub(crate) fn before(&self, time: Instant) -> Option<&Position> {
        self.seen.iter().rev().find(|seen| seen.since < time).map(|seen| &seen.position)
    }

    /// The lag of a slave at the time `at`, if the master still stood at its latest known position then.
    ///
    /// `None` while no position of the master is known, or if an empty log says nothing. The master's log may be empty
    /// because it was reset, and a slave may lack transactions from before. A slave whose log is empty may have been
    /// made from a copy of everything.
    pub(crate) fn lag(&self, replayed: &Position, at: Instant) -> Option<Lag> {
        let latest = self.seen.back()?;
        if latest.position.is_empty() && !replayed.is_empty() {
            return None;
        }
        if let (Position::Time { ms: master, .. }, Position::Time { ms: slave, .. }) =
            (&latest.position, replayed)
        {
            let lag = Lag::AtMost(Duration::from_millis(master.saturating_sub(*slave)));
            return latest.position.shares_history(replayed).then_some(lag);
        }
        let behind = |seen: &Seen| at.saturating_duration_since(seen.until);
        if replayed.reaches(&latest.position) {
            return Some(Lag::AtMost(Duration::ZERO));
        }
        let reached = self.seen.iter().rev().find(|seen| replayed.reaches(&seen.position));
        match reached {
            Some(reached) => Some(Lag::AtMost(behind(reached))),
            None if replayed.is_empty() => None,
            None => Some(Lag::MoreThan(behind(&self.seen[0]))),
        }
    }

    /// The gap before the first known position that a slave at `replayed` lacks. The lag of a copy is exact, and has no
    /// gap.
    pub(crate) fn gap(&self, replayed: &Position) -> Gap {
        let reached = match replayed {
            Position::Time { .. } => None,
            _ => self.seen.iter().rposition(|seen| replayed.reaches(&seen.position)),
        };
        let next = reached.and_then(|reached| self.seen.get(reached + 1));
        next.map_or(Gap::Time(Duration::ZERO), |next| next.gap)
    }

    /// When the latest look began at which the master told a position.
    pub(crate) fn looked(&self) -> Option<Instant> {
        self.looked
    }

    /// True if the present master has told a position.
    pub(crate) fn is_of_this_master(&self) -> bool {
        !self.passed_on
    }

    /// The master's latest position.
    pub(crate) fn latest(&self) -> Option<&Position> {
        self.seen.back().map(|seen| &seen.position)
    }
}

#[cfg(test)]
mod tests;
