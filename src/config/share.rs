//! Which reads go to slaves: `read_from_slaves`, and what operators set in its place.

use std::fmt;

/// The reads that go to slaves, out of those that slaves could serve. A point on one scale, from none to all.
///
/// A client's address decides whether the client is in a share. So a client always sees one state, and it stays in when
/// the share grows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadShare(u32);

impl ReadShare {
    /// No reads, not even those that ask for a slave.
    pub const NONE: Self = Self(0);

    /// Only reads that ask for a slave: by a [`ReadsDatabase`](crate::ReadsDatabase) guard, or by
    /// [`Cluster::read`](crate::Cluster::read). `read_from_slaves = "asked"`.
    pub const ASKED: Self = Self(1);

    /// All reads. `read_from_slaves = "auto"`.
    pub const ALL: Self = Self(1 + WHOLE);

    /// The reads that ask for a slave, and all other reads by this share of the clients. The share goes from 0, which
    /// is [`ASKED`](Self::ASKED), to 1, which is [`ALL`](Self::ALL). A number outside of that range counts as the
    /// nearer end, and NaN as 0.
    pub fn of_clients(share: f64) -> Self {
        Self(1 + (share.clamp(0.0, 1.0) * f64::from(WHOLE)).round() as u32)
    }

    /// True if the share includes a client with this number. Clients draw their numbers from all of `u64`.
    pub(crate) fn has(self, drawn: u64) -> bool {
        let drawn = (u128::from(drawn) * u128::from(WHOLE)) >> u64::BITS;
        drawn + 1 < u128::from(self.0)
    }

    /// True if the share includes some clients and leaves others out.
    pub(crate) fn is_partial(self) -> bool {
        Self::ASKED < self && self < Self::ALL
    }

    pub(crate) fn to_bits(self) -> u32 {
        self.0
    }

    pub(crate) fn from_bits(bits: u32) -> Self {
        Self(bits)
    }
}

/// The whole, in millionths.
const WHOLE: u32 = 1_000_000;

impl fmt::Display for ReadShare {
    /// Writes the share as in `10 % of the clients`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NONE => f.write_str("none"),
            Self::ASKED => f.write_str("those that ask for slaves"),
            Self::ALL => f.write_str("all"),
            Self(share) => {
                write!(f, "those of {} % of the clients", f64::from(share - 1) * 100.0 / f64::from(WHOLE))
            }
        }
    }
}

impl fmt::Debug for ReadShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReadShare({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_shares_are_on_one_scale() {
        let shares = [0.0, 0.1, 0.5, 0.999_999, 1.0].map(ReadShare::of_clients);
        assert!(shares.is_sorted() && ReadShare::NONE < shares[0]);
        assert_eq!((shares[0], shares[4]), (ReadShare::ASKED, ReadShare::ALL));
        for (number, end) in [(-1.0, ReadShare::ASKED), (f64::NAN, ReadShare::ASKED), (7.0, ReadShare::ALL)] {
            assert_eq!(ReadShare::of_clients(number), end, "{number}");
        }
        assert_eq!(shares.map(ReadShare::is_partial), [false, true, true, true, false]);
        assert!(!ReadShare::NONE.is_partial());
        assert_eq!(shares[1].to_string(), "those of 10 % of the clients");
    }

    #[test]
    fn a_share_has_as_many_as_it_says_and_keeps_them_when_it_grows() {
        for drawn in [0, 1, u64::MAX / 2, u64::MAX] {
            assert!(!ReadShare::NONE.has(drawn) && !ReadShare::ASKED.has(drawn) && ReadShare::ALL.has(drawn));
        }
        let tenth = ReadShare::of_clients(0.1);
        let first_out = (u128::from(u64::MAX) + 1).div_ceil(10) as u64;
        assert!(tenth.has(first_out - 1) && !tenth.has(first_out));
        assert!(ReadShare::of_clients(0.2).has(first_out - 1) && ReadShare::of_clients(0.2).has(first_out));
    }
}
