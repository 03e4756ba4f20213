//! Sets of transactions of MySQL:
//! <https://dev.mysql.com/doc/refman/9.7/en/replication-gtids-concepts.html#replication-gtids-concepts-gtid-sets>

use std::collections::BTreeMap;
use std::fmt;

/// Transactions by source, with gaps between the numbers of one source. In a group with several writing servers, each
/// has been given a block of numbers, and transactions are committed in any order.
#[doc(hidden)]
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct GtidSet(BTreeMap<Source, Vec<Span>>);

/// A source that numbers its transactions: a server, or a group. Transactions with a tag (MySQL 8.3 and newer) have
/// numbers of their own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Source {
    uuid: u128,
    tag: String,
}

/// The length of a tag in characters, at most:
/// <https://dev.mysql.com/doc/refman/9.7/en/replication-gtids-concepts.html>
#[cfg(any(feature = "mysql", test))]
const MAX_TAG: usize = 32;

/// Consecutive transactions.
///
/// INVARIANT: a source has a span. The spans of one source are in order, and there is a gap between any two of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Span {
    first: u64,
    last: u64,
}

impl GtidSet {
    /// Parses `3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5:7:tag:1-3,…`
    #[cfg(any(feature = "mysql", test))]
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut set = Self::default();
        for of_uuid in text.split(',') {
            let mut parts = of_uuid.trim().split(':').peekable();
            let uuid = u128::from_str_radix(&parts.next()?.replace('-', ""), 16).ok()?;
            let mut source = Source { uuid, tag: String::new() };
            // A source without transactions is not valid.
            parts.peek()?;
            while let Some(part) = parts.next() {
                if part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
                    parts.peek().filter(|_| part.len() <= MAX_TAG)?;
                    source.tag = part.to_ascii_lowercase();
                    continue;
                }
                let (first, last) = part.split_once('-').unwrap_or((part, part));
                let span = Span { first: first.parse().ok()?, last: last.parse().ok()? };
                set.0.entry(source.clone()).or_default().push(span);
            }
        }
        set.0.values_mut().for_each(tidy);
        // MySQL takes `5-3` for no transaction.
        set.0.retain(|_, spans| !spans.is_empty());
        (!set.0.is_empty()).then_some(set)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn includes(&self, other: &Self) -> bool {
        other.0.iter().all(|(source, theirs)| {
            let Some(ours) = self.0.get(source) else { return false };
            theirs.iter().all(|theirs| {
                let next = ours.partition_point(|ours| ours.last < theirs.last);
                ours.get(next).is_some_and(|ours| ours.first <= theirs.first)
            })
        })
    }

    pub(super) fn union(mut self, other: Self) -> Self {
        for (source, theirs) in other.0 {
            let ours = self.0.entry(source).or_default();
            ours.extend(theirs);
            tidy(ours);
        }
        self
    }

    /// The transactions that `other` does not have.
    pub(super) fn without(&self, other: &Self) -> Self {
        let rest = self.0.iter().map(|(source, ours)| {
            let theirs = other.0.get(source).map_or(&[][..], Vec::as_slice);
            (source.clone(), ours.iter().flat_map(|span| span.without(theirs)).collect::<Vec<_>>())
        });
        Self(rest.filter(|(_, spans)| !spans.is_empty()).collect())
    }

    /// The transactions of sources that occur in `other`.
    pub(super) fn sources_in(mut self, other: &Self) -> Self {
        self.0.retain(|source, _| other.0.contains_key(source));
        self
    }

    /// The transactions of sources that do not occur in `other`.
    pub(crate) fn sources_beyond(mut self, other: &Self) -> Self {
        self.0.retain(|source, _| !other.0.contains_key(source));
        self
    }

    /// The transactions that `other` has as well.
    pub(super) fn in_common(&self, other: &Self) -> Self {
        self.without(&self.without(other))
    }

    /// Encodes for each source: the UUID, the length of the tag, the tag, and the number of spans. Of each span it
    /// encodes the distance of the beginning from the end of the span before, and the distance of its end from its
    /// beginning. Numbers have variable length, as most are small.
    pub(super) fn encode(&self, bytes: &mut Vec<u8>) {
        for (Source { uuid, tag }, spans) in &self.0 {
            bytes.extend(uuid.to_be_bytes());
            bytes.push(u8::try_from(tag.len()).expect("a tag that was parsed has 32 characters at most"));
            bytes.extend(tag.as_bytes());
            push_number(bytes, spans.len() as u64);
            let mut end = 0;
            for Span { first, last } in spans {
                push_number(bytes, first - end);
                push_number(bytes, last - first);
                end = *last;
            }
        }
    }

    /// `None` for bytes that are not of this form, or of a set that breaks an invariant.
    pub(super) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let mut set = Self::default();
        while !bytes.is_empty() {
            let (uuid, rest) = bytes.split_first_chunk()?;
            let (&length, rest) = rest.split_first()?;
            let (tag, rest) = rest.split_at_checked(length.into())?;
            bytes = rest;
            let source =
                Source { uuid: u128::from_be_bytes(*uuid), tag: str::from_utf8(tag).ok()?.to_owned() };
            let mut end = 0_u64;
            let mut spans = Vec::new();
            for _ in 0..take_number(&mut bytes)? {
                let distance = take_number(&mut bytes)?;
                if distance < 2 && !spans.is_empty() {
                    return None;
                }
                let first = end.checked_add(distance)?;
                let last = first.checked_add(take_number(&mut bytes)?)?;
                spans.push(Span { first, last });
                end = last;
            }
            if spans.is_empty() || set.0.insert(source, spans).is_some() {
                return None;
            }
        }
        Some(set)
    }
}

impl Span {
    /// The parts of this span that are in none of the others, which have to be in order.
    fn without(self, others: &[Self]) -> impl Iterator<Item = Self> {
        let mut others = &others[others.partition_point(|other| other.last < self.first)..];
        let mut begin = Some(self.first).filter(|first| *first <= self.last);
        std::iter::from_fn(move || {
            loop {
                let first = begin?;
                let Some((other, rest)) = others.split_first().filter(|(other, _)| other.first <= self.last)
                else {
                    begin = None;
                    return Some(Self { first, last: self.last });
                };
                others = rest;
                begin = other.last.checked_add(1).filter(|next| *next <= self.last);
                if other.first > first {
                    return Some(Self { first, last: other.first - 1 });
                }
            }
        })
    }
}

/// Puts spans in order, and joins those without a gap between them.
fn tidy(spans: &mut Vec<Span>) {
    spans.retain(|span| span.first <= span.last);
    spans.sort_unstable();
    spans.dedup_by(|next, span| {
        let joins = next.first <= span.last.saturating_add(1);
        if joins {
            span.last = span.last.max(next.last);
        }
        joins
    });
}

/// Appends a number with seven bits in each byte, the least first. The eighth bit says that more bytes follow:
/// <https://en.wikipedia.org/wiki/LEB128>
fn push_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

/// Writes the notation that MySQL reads.
impl fmt::Display for GtidSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (Source { uuid, tag }, spans)) in self.0.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            let hex = format!("{uuid:032x}");
            let (a, b, c, d, e) = (&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
            write!(f, "{comma}{a}-{b}-{c}-{d}-{e}")?;
            if !tag.is_empty() {
                write!(f, ":{tag}")?;
            }
            for Span { first, last } in spans {
                write!(f, ":{first}-{last}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests;
