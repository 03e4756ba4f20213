//! The pin: when a client wrote, and where the master's log stood then, signed.
//!
//! A token is the URL-safe base64 of
//!
//! | bytes | what                                                             |
//! |-------|------------------------------------------------------------------|
//! | 1     | version                                                          |
//! | 8     | time of the latest write in ms since 1970, big-endian            |
//! | 1     | what there is beside the time: [`Evidence`]                      |
//! | –     | a position, or nothing                                           |
//! | 32    | HMAC-SHA256 over purpose, cookie name, database and the above    |
//!
//! A token is believed if all of these hold:
//!
//! 1. It has this form, this version, and a MAC that is ours: for this purpose, name and database.
//! 2. By our own clock, it is young enough. A pin with a position is valid for `pin.max_age`, one that
//!    carries only a time for the lag window. Without `max_lag`, or with one that is longer than the window
//!    allows, a pin that carries only a time is valid for `pin.max_age`, because nothing else bounds
//!    how late a slave may be. The cookie's `Max-Age` plays no part: a client may ignore it.
//! 3. Its time is not ahead of ours by more than the lag window. A smaller difference counts as clock skew between our
//!    servers, and the pin's time as now. Without this limit, a server whose clock is ahead would hand out tokens that
//!    outlive their time by as much.
//! 4. The request carries no second token by the same way. Of two cookies of one name, one was planted by a third
//!    party, and nothing tells which.
//!
//! Everything else counts as no pin, and is never an error.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use time::OffsetDateTime;

use super::counts::PinRefusal;
use super::secret::Secret;
use crate::position::Position;

const VERSION: u8 = 1;
const PURPOSE: &[u8] = b"rocket_replicated pin";
const MAC: usize = 32;

/// The byte for each kind of [`Evidence`].
const TIME: u8 = 0;
const POSITION: u8 = 1;
const EARLIER: u8 = 2;

/// A longer position is left out of the token, because browsers need not store cookies of more than
/// 4096 bytes: <https://www.rfc-editor.org/rfc/rfc6265#section-6.1>.
const MAX_POSITION: usize = 1024;
const MAX_ENCODED: usize = ((1 + 8 + 1 + MAX_POSITION + MAC) * 4).div_ceil(3);

/// What a client's token says, after all rules have been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pin {
    /// The time of the client's latest write; never later than now.
    pub(crate) at: OffsetDateTime,
    pub(crate) evidence: Evidence,
    pub(crate) window: Window,
}

/// What is known of a client's writes besides the time of the latest one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Evidence {
    Nothing,
    /// Where the master's log stood after the latest write.
    Position(Position),
    /// The log's position after an earlier write. Of the latest write, only the time is known.
    Earlier(Position),
}

/// Whether the lag window since a client's latest write is open or over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Window {
    Open,
    Over,
}

/// The servers that can serve a client its own writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needed<'a> {
    Master,
    /// The master, or a slave that has replayed this position.
    Position(&'a Position),
}

/// True if a token can carry this position.
pub(crate) fn fits(position: &Position) -> bool {
    let mut bytes = Vec::new();
    position.encode(&mut bytes);
    bytes.len() <= MAX_POSITION
}

/// Shortens a position that does not fit into a pin. The result holds what is later than `known`, and what the client's
/// `own` pin already names. `known` is a position old enough that all pins for it have expired. Transactions that a
/// former master has lost are left out, since they are lost to their writer as well.
pub(crate) fn cut(position: &Position, known: &Position, own: Option<&Position>) -> Position {
    let own = own.and_then(|own| own.in_common(position));
    own.into_iter().fold(position.since(known), Position::merge)
}

impl Evidence {
    /// The evidence of a write after which the master's log stood at `position`, by a client that carried the pin
    /// `before`.
    pub(crate) fn of_write(position: Option<Position>, before: Option<&Pin>) -> Self {
        match position {
            Some(position) => Self::Position(position),
            None => before.map_or(Self::Nothing, Pin::earlier),
        }
    }

    fn into_position(self) -> Option<Position> {
        match self {
            Self::Nothing => None,
            Self::Position(position) | Self::Earlier(position) => Some(position),
        }
    }
}

impl Pin {
    /// The servers that have this client's own writes.
    ///
    /// With [`Evidence::Earlier`], that is the master until the window since the latest write is over. From then on,
    /// only the position of the earlier write has to be proved.
    pub(crate) fn needs(&self) -> Needed<'_> {
        match (&self.evidence, self.window) {
            (Evidence::Position(position), _) | (Evidence::Earlier(position), Window::Over) => {
                Needed::Position(position)
            }
            (Evidence::Earlier(_) | Evidence::Nothing, _) => Needed::Master,
        }
    }

    /// Where the master's log stood after one of the client's writes.
    pub(crate) fn position(&self) -> Option<&Position> {
        match &self.evidence {
            Evidence::Nothing => None,
            Evidence::Position(position) | Evidence::Earlier(position) => Some(position),
        }
    }

    /// The evidence for a pin that covers this one's writes and one more, of which only the time is known.
    pub(crate) fn earlier(&self) -> Evidence {
        self.evidence.clone().into_position().map_or(Evidence::Nothing, Evidence::Earlier)
    }

    /// A pin that covers the writes of both.
    pub(crate) fn merge(self, other: Self) -> Self {
        let (later, earlier) = if self.at >= other.at { (self, other) } else { (other, self) };
        let before = earlier.evidence.into_position();
        let merge = |position: Position| match before.clone() {
            Some(before) => position.merge(before),
            None => position,
        };
        let evidence = match later.evidence {
            Evidence::Position(position) => Evidence::Position(merge(position)),
            Evidence::Earlier(position) => Evidence::Earlier(merge(position)),
            Evidence::Nothing => before.map_or(Evidence::Nothing, Evidence::Earlier),
        };
        Self { evidence, ..later }
    }
}

/// Makes and reads the tokens of one database.
#[derive(Clone)]
pub(super) struct Signer {
    /// Holds the key, and has already read the prefix that all tokens of this database share.
    mac: Hmac<Sha256>,
    lasts: Lasts,
}

/// How long tokens are valid.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lasts {
    /// By how much a token's time may be ahead of ours.
    pub(super) skew: Duration,
    /// For a token without a position.
    pub(super) by_time: Duration,
    /// For a token with a position.
    pub(super) max_age: Duration,
}

impl Signer {
    pub(super) fn new(secret: &Secret, database: &str, cookie: &str, lasts: Lasts) -> Self {
        let mut key = [0; 32];
        Hkdf::<Sha256>::new(None, &secret.0)
            .expand_multi_info(&[PURPOSE, &[0], database.as_bytes()], &mut key)
            .expect("HKDF-SHA256 yields up to 8160 bytes");

        let mut mac = Hmac::new_from_slice(&key).expect("HMAC takes keys of any length");
        // The lengths make the parts unambiguous: without them, `("ab", "c")` and `("a", "bc")` would agree.
        for part in [PURPOSE, cookie.as_bytes(), database.as_bytes()] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        Self { mac, lasts }
    }

    /// Signs a token for a write at `now`. A position that is too long is left out, and the token counts as one
    /// without.
    pub(super) fn sign(&self, now: OffsetDateTime, evidence: &Evidence) -> String {
        let mut position = Vec::new();
        let kind = match evidence {
            Evidence::Nothing => TIME,
            Evidence::Position(latest) => {
                latest.encode(&mut position);
                POSITION
            }
            Evidence::Earlier(earlier) => {
                earlier.encode(&mut position);
                EARLIER
            }
        };
        let fits = position.len() <= MAX_POSITION;
        let (kind, position) = if fits { (kind, &position[..]) } else { (TIME, &[][..]) };

        let mut token = Vec::with_capacity(1 + 8 + 1 + position.len() + MAC);
        token.push(VERSION);
        token.extend(millis(now).to_be_bytes());
        token.push(kind);
        token.extend(position);
        let mac = self.mac.clone().chain_update(&token).finalize();
        token.extend(mac.into_bytes());
        URL_SAFE_NO_PAD.encode(token)
    }

    /// The age beyond which a pin is invalid, whichever server's clock it was signed by.
    pub(super) fn longest(&self) -> Duration {
        self.lasts.by_time.max(self.lasts.max_age) + self.lasts.skew
    }

    /// The pin in a token, by rules 1 to 3.
    pub(super) fn read(&self, token: &str, now: OffsetDateTime) -> Result<Pin, PinRefusal> {
        if token.len() > MAX_ENCODED {
            return Err(PinRefusal::Forged);
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| PinRefusal::Forged)?;
        let payload = bytes.len().checked_sub(MAC).ok_or(PinRefusal::Forged)?;
        let (payload, mac) = bytes.split_at(payload);
        // Only for the cause of the refusal: the content is not trusted before the MAC is.
        let parts = parts(payload).ok_or(PinRefusal::Forged);
        if self.mac.clone().chain_update(payload).verify_slice(mac).is_err() {
            return Err(parts.err().unwrap_or(PinRefusal::Foreign));
        }
        let (at, evidence) = parts?;
        let Lasts { skew, by_time, max_age } = self.lasts;
        let lasts = match evidence {
            Evidence::Nothing => by_time,
            Evidence::Position(_) | Evidence::Earlier(_) => max_age,
        };
        let age = now - at;
        let window = if age < by_time { Window::Open } else { Window::Over };
        if age < -time::Duration::try_from(skew).unwrap_or(time::Duration::MAX) {
            return Err(PinRefusal::Ahead);
        }
        if age >= lasts {
            return Err(PinRefusal::Expired);
        }
        Ok(Pin { at: at.min(now), evidence, window })
    }
}

/// Parses the signed part of a token, if it has this form and this version.
fn parts(payload: &[u8]) -> Option<(OffsetDateTime, Evidence)> {
    let (&version, rest) = payload.split_first()?;
    let (at, rest) = rest.split_first_chunk()?;
    let (&kind, position) = rest.split_first()?;
    if version != VERSION {
        return None;
    }
    let evidence = match kind {
        TIME if position.is_empty() => Evidence::Nothing,
        POSITION => Evidence::Position(Position::decode(position)?),
        EARLIER => Evidence::Earlier(Position::decode(position)?),
        _ => return None,
    };
    let millis = i128::from(i64::from_be_bytes(*at));
    Some((OffsetDateTime::from_unix_timestamp_nanos(millis * 1_000_000).ok()?, evidence))
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("lasts", &self.lasts).finish_non_exhaustive()
    }
}

fn millis(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).expect("the years -9999 to 9999 in ms fit")
}

#[cfg(test)]
mod tests;
