//! The counters of all rooms. Each room keeps its counters next to the code that counts, and `statistics` reads them.
//!
//! Counting is one atomic addition, without order: a snapshot is as exact as the moment at which it is taken.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A kind of event that is counted apart from others: an enum without data, whose first variant is 0.
pub trait Key: Copy + 'static {
    /// All keys, by their number.
    #[doc(hidden)]
    const KEYS: &'static [Self];

    #[doc(hidden)]
    fn number(self) -> usize;

    /// The key's name in the log, in metrics and on pages.
    #[doc(hidden)]
    fn label(self) -> &'static str;
}

/// Implements [`Key`] for an enum with `ALL` and `as_str`.
macro_rules! key {
    ($Enum:ty) => {
        impl $crate::counters::Key for $Enum {
            const KEYS: &'static [Self] = &Self::ALL;

            fn number(self) -> usize {
                self as usize
            }

            fn label(self) -> &'static str {
                self.as_str()
            }
        }
    };
}
pub(crate) use key;

/// Names the variants of an enum, makes it a [`Key`] and implements `Display`.
macro_rules! names {
    ($Enum:ident { $($Variant:ident: $name:literal),* $(,)? }) => {
        impl $Enum {
            pub(crate) const ALL: [Self; [$($name),*].len()] = [$(Self::$Variant),*];

            /// Its name in the log, in replies, in metrics and on pages. It never changes.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$Variant => $name,)*
                }
            }
        }

        impl std::fmt::Display for $Enum {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        $crate::counters::key!($Enum);
    };
}
pub(crate) use names;

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add_one(&self) {
        self.add(1);
    }

    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How often each of some keys occurred. Only the code that counts and reads knows the type of the keys. So a server,
/// for example, can have counters for the reasons of a room above it.
#[derive(Debug, Default)]
pub(crate) struct Tally([Counter; SLOTS]);

/// The number of counters, more than any of the enums has variants.
const SLOTS: usize = 24;

impl Tally {
    pub(crate) fn add(&self, key: impl Key) {
        self.0[key.number()].add_one();
    }

    /// Adds the counts of another tally.
    pub(crate) fn absorb(&self, other: &Self) {
        self.0.iter().zip(&other.0).for_each(|(ours, theirs)| ours.add(theirs.get()));
    }

    pub(crate) fn read<K: Key>(&self) -> Counts<K> {
        const { assert!(K::KEYS.len() <= SLOTS) };
        Counts(K::KEYS.iter().zip(&self.0).map(|(key, counter)| (*key, counter.get())).collect())
    }
}

/// How often each of some keys has occurred.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts<K>(Vec<(K, u64)>);

impl<K: Key + PartialEq> Counts<K> {
    /// How often this key occurred.
    pub fn get(&self, key: K) -> u64 {
        self.0.iter().find(|(other, _)| *other == key).map_or(0, |(_, count)| *count)
    }

    /// How often all keys together occurred.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|(_, count)| count).sum()
    }

    /// Each key with its count, including keys that have not occurred.
    pub fn iter(&self) -> impl Iterator<Item = (K, u64)> {
        self.0.iter().copied()
    }

    #[cfg(feature = "status")]
    pub(crate) fn map(mut self, change: impl Fn(K, u64) -> u64) -> Self {
        self.0.iter_mut().for_each(|(key, count)| *count = change(*key, *count));
        self
    }

    pub(crate) fn keep(mut self, wanted: impl Fn(K) -> bool) -> Self {
        self.0.retain(|(key, _)| wanted(*key));
        self
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (key, count) in &other.0 {
            match self.0.iter_mut().find(|(ours, _)| ours == key) {
                Some((_, ours)) => *ours += count,
                None => self.0.push((*key, *count)),
            }
        }
    }
}

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// The upper limits of a histogram's buckets, except the last, which has none.
pub(crate) const LIMITS: [Duration; 11] = [
    Duration::from_micros(100),
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(5),
];

/// Counts durations in buckets.
#[derive(Debug, Default)]
pub(crate) struct Histogram([(Counter, Counter); LIMITS.len() + 1]);

impl Histogram {
    pub(crate) fn add(&self, took: Duration) {
        let (count, nanos) = &self.0[LIMITS.iter().position(|limit| took <= *limit).unwrap_or(LIMITS.len())];
        count.add_one();
        nanos.add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn read(&self) -> Times {
        let limits = LIMITS.iter().copied().map(Some).chain([None]);
        let buckets = limits.zip(&self.0).map(|(limit, (count, nanos))| Bucket {
            limit,
            count: count.get(),
            sum: Duration::from_nanos(nanos.get()),
        });
        Times(buckets.collect())
    }
}

/// Durations of some event: a histogram with fixed buckets, from 0.1 ms to 5 s.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Times(Vec<Bucket>);

/// One bucket of a [`Times`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bucket {
    /// The longest duration in this bucket, or `None` for the last bucket, which has no limit.
    pub limit: Option<Duration>,
    /// The number of durations in this bucket. Those in shorter buckets are not included.
    pub count: u64,
    /// The sum of the durations in this bucket.
    pub sum: Duration,
}

impl Times {
    /// The buckets, from the shortest to the longest.
    pub fn buckets(&self) -> &[Bucket] {
        &self.0
    }

    /// The number of durations in all buckets.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|bucket| bucket.count).sum()
    }

    /// The sum of the durations in all buckets.
    pub fn sum(&self) -> Duration {
        self.0.iter().map(|bucket| bucket.sum).sum()
    }

    /// Adds `count` durations of about zero to the first bucket.
    pub(crate) fn with_immediate(mut self, count: u64) -> Self {
        self.0[0].count += count;
        self
    }

    pub(crate) fn add(&mut self, other: &Self) {
        if self.0.is_empty() {
            self.0.clone_from(&other.0);
            return;
        }
        for (ours, theirs) in self.0.iter_mut().zip(&other.0) {
            ours.count += theirs.count;
            ours.sum += theirs.sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_falls_into_the_bucket_whose_limit_it_does_not_exceed() {
        let histogram = Histogram::default();
        for took in [Duration::ZERO, LIMITS[0], LIMITS[0] + Duration::from_nanos(1), Duration::from_secs(60)]
        {
            histogram.add(took);
        }
        let times = histogram.read().with_immediate(3);
        let counts: Vec<_> = times.buckets().iter().map(|bucket| bucket.count).collect();
        assert_eq!(counts, [5, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!((times.count(), times.buckets()[11].limit), (7, None));
        assert_eq!(times.sum(), LIMITS[0] * 2 + Duration::from_nanos(1) + Duration::from_secs(60));
    }
}
