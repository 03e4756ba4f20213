//! What a client carries after a write: when it wrote, and where the master's log stood then, signed.
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
//! The rules by which one is believed:
//!
//! 1. It has this form, this version, and a MAC that is ours: for this purpose, name and database.
//! 2. It is younger than the lag window, or with a position than `pin.max_age`, by our own clock. The
//!    window is as long as that where no `max_lag` stands in for it. `Max-Age` is a courtesy.
//! 3. A time ahead of ours by up to the lag window is our servers' clock skew: believed, as of now.
//!    Further ahead it is refused, so that no token outlives its time by more than a window.
//! 4. The request carries only one: of two, one was planted.
//!
//! Whatever else arrives is no pin, and never an error.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use rocket::figment::Figment;
use rocket::http::{self, HeaderMap, Method, SameSite};
use rocket::{Request, Response};
use sha2::Sha256;
use time::OffsetDateTime;

use crate::position::Position;

const VERSION: u8 = 1;
const PURPOSE: &[u8] = b"rocket_replicated pin";
const MAC: usize = 32;

/// Positions that take more bytes do not travel: cookies of 4096 bytes are all that browsers promise.
const MAX_POSITION: usize = 1024;
const MAX_ENCODED: usize = ((1 + 8 + 1 + MAX_POSITION + MAC) * 4).div_ceil(3);

/// A client's claim to its own writes, believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pin {
    /// When the client wrote, at the latest.
    pub(crate) at: OffsetDateTime,
    pub(crate) evidence: Evidence,
    pub(crate) window: Window,
}

/// What is known of a client's writes beside the time of the latest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Evidence {
    Nothing,
    /// Where the log stood after the latest.
    Position(Position),
    /// Where it stood after an earlier one.
    Earlier(Position),
}

/// Whether the lag window since a client's latest write is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Window {
    Open,
    Over,
}

/// What it takes to serve a client its own writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needed<'a> {
    Master,
    /// A node that has replayed this.
    Position(&'a Position),
}

impl Evidence {
    fn into_position(self) -> Option<Position> {
        match self {
            Self::Nothing => None,
            Self::Position(position) | Self::Earlier(position) => Some(position),
        }
    }
}

impl Pin {
    pub(crate) fn needs(&self) -> Needed<'_> {
        match (&self.evidence, self.window) {
            (Evidence::Position(position), _) | (Evidence::Earlier(position), Window::Over) => {
                Needed::Position(position)
            }
            (Evidence::Earlier(_) | Evidence::Nothing, _) => Needed::Master,
        }
    }

    /// What a pin can carry that stands for this one's writes and a later one, of which only the time is
    /// known.
    pub(crate) fn earlier(&self) -> Evidence {
        self.evidence.clone().into_position().map_or(Evidence::Nothing, Evidence::Earlier)
    }

    /// One that stands for both.
    fn merge(self, other: Self) -> Self {
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

/// What is configured of pins.
#[derive(Debug)]
pub(crate) struct PinConfig {
    pub(crate) lag_window: Duration,
    /// How long a time alone keeps reads on the master.
    pub(crate) by_time: Duration,
    /// How long one with a position is good for.
    pub(crate) max_age: Duration,
    pub(crate) cookie: Cookie,
    /// The name of the header in which pins travel as well.
    pub(crate) header: Option<String>,
    pub(crate) secret: Secret,
    /// Neither `secure` nor Rocket's TLS is configured, outside the debug profile.
    pub(crate) insecure: bool,
}

/// How the clients of one database are pinned.
#[derive(Debug)]
pub(crate) struct Pins {
    signer: Signer,
    cookie: Cookie,
    header: Option<String>,
}

impl Pins {
    pub(crate) fn new(database: &str, config: &PinConfig) -> Self {
        let PinConfig { lag_window, by_time, max_age, cookie, header, secret, .. } = config;
        let lasts = Lasts { skew: *lag_window, by_time: *by_time, max_age: *max_age };
        let signer = Signer::new(secret, database, &cookie.name, lasts);
        Self { signer, cookie: cookie.clone(), header: header.clone() }
    }

    pub(crate) fn sign(&self, now: OffsetDateTime, evidence: &Evidence) -> String {
        self.signer.sign(now, evidence)
    }

    pub(crate) fn read(&self, token: &str, now: OffsetDateTime) -> Option<Pin> {
        self.signer.read(token, now)
    }

    /// The pin that a request carries, by cookie, header, or both.
    pub(crate) fn find(&self, request: &Request<'_>, now: OffsetDateTime) -> Option<Pin> {
        let by_cookie = self.cookie.find(request.cookies(), request.headers());
        let by_header = self.header.as_ref().and_then(|name| {
            let mut sent = request.headers().get(name);
            sent.next().filter(|_| sent.next().is_none())
        });
        let tokens = by_cookie.into_iter().chain(by_header);
        tokens.filter_map(|token| self.read(token, now)).reduce(Pin::merge)
    }

    /// Sends a pin along with a reply to a request of this method.
    pub(crate) fn send(&self, token: String, method: Method, response: &mut Response<'_>) {
        if let Some(name) = &self.header {
            response.set_raw_header(name.clone(), token.clone());
        }
        // Adjoined: a header that is set takes the place of all other cookies.
        response.adjoin_header(self.cookie.carrying(token));
        let cacheable = matches!(method, Method::Get | Method::Head);
        if cacheable && !response.headers().contains("Cache-Control") {
            response.set_raw_header("Cache-Control", "private");
        }
    }
}

/// Makes and reads tokens.
#[derive(Clone)]
struct Signer {
    /// Keyed, and fed with what all tokens of this database have in common.
    mac: Hmac<Sha256>,
    lasts: Lasts,
}

/// How long tokens are good for.
#[derive(Clone, Copy, Debug)]
struct Lasts {
    /// By how much a time may be ahead of ours.
    skew: Duration,
    by_time: Duration,
    max_age: Duration,
}

impl Signer {
    fn new(secret: &Secret, database: &str, cookie: &str, lasts: Lasts) -> Self {
        let mut key = [0; 32];
        Hkdf::<Sha256>::new(None, &secret.0)
            .expand_multi_info(&[PURPOSE, &[0], database.as_bytes()], &mut key)
            .expect("HKDF-SHA256 yields up to 8160 bytes");

        let mut mac = Hmac::new_from_slice(&key).expect("HMAC takes keys of any length");
        for part in [PURPOSE, cookie.as_bytes(), database.as_bytes()] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        Self { mac, lasts }
    }

    /// The token for a write at `now`. A position that is too large is left at home.
    fn sign(&self, now: OffsetDateTime, evidence: &Evidence) -> String {
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

    /// The pin in a token, by rules 1 to 3.
    fn read(&self, token: &str, now: OffsetDateTime) -> Option<Pin> {
        if token.len() > MAX_ENCODED {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (payload, mac) = bytes.split_at_checked(bytes.len().checked_sub(MAC)?)?;
        self.mac.clone().chain_update(payload).verify_slice(mac).ok()?;

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
        let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(i64::from_be_bytes(*at)) * 1_000_000)
            .ok()?;
        let Lasts { skew, by_time, max_age } = self.lasts;
        let lasts = match evidence {
            Evidence::Nothing => by_time,
            Evidence::Position(_) | Evidence::Earlier(_) => max_age,
        };
        let age = now - at;
        let window = if age < by_time { Window::Open } else { Window::Over };
        (age >= -time::Duration::try_from(skew).ok()? && age < lasts).then_some(Pin {
            at: at.min(now),
            evidence,
            window,
        })
    }
}

const TIME: u8 = 0;
const POSITION: u8 = 1;
const EARLIER: u8 = 2;

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("lasts", &self.lasts).finish_non_exhaustive()
    }
}

fn millis(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).expect("the years -9999 to 9999 in ms fit")
}

/// The cookie that pins travel in.
#[derive(Clone, Debug)]
pub(crate) struct Cookie {
    pub(crate) name: String,
    pub(crate) domain: Option<String>,
    pub(crate) path: String,
    pub(crate) same_site: SameSite,
    pub(crate) secure: bool,
    pub(crate) max_age: Duration,
}

impl Cookie {
    /// With every attribute set: where this is added, the jar's own defaults no longer apply.
    fn carrying(&self, token: String) -> http::Cookie<'static> {
        let seconds = self.max_age.as_secs_f64().ceil() as i64;
        let mut cookie = http::Cookie::build((self.name.clone(), token))
            .path(self.path.clone())
            .http_only(true)
            .same_site(self.same_site)
            .secure(self.secure)
            .max_age(time::Duration::seconds(seconds));
        if let Some(domain) = &self.domain {
            cookie = cookie.domain(domain.clone());
        }
        cookie.build()
    }

    /// The only value of this cookie in a request, by rule 4.
    fn find<'r>(&self, jar: &'r http::CookieJar<'_>, headers: &HeaderMap<'_>) -> Option<&'r str> {
        let value = jar.get(&self.name)?.value();
        // The jar keeps one cookie of a name; only the header tells whether there were more.
        let named = |cookie: &&str| cookie.split('=').next().is_some_and(|name| name.trim() == self.name);
        let sent = headers.get("Cookie").flat_map(|header| header.split(';')).filter(named).count();
        (sent <= 1).then_some(value)
    }
}

/// Rocket's `secret_key`, from which the keys for pins are derived.
#[derive(Clone)]
pub(crate) struct Secret(Vec<u8>);

impl Secret {
    /// Of a configuration, by the rule of Rocket, which itself checks it only where its private
    /// cookies are compiled in: 256 or 512 bits of base64, 256 bits of hex, or 32 bytes and more.
    /// <https://api.rocket.rs/v0.5/rocket/config/struct.SecretKey>
    pub(crate) fn of(figment: &Figment) -> Result<Option<Self>, &'static str> {
        /// In Rocket's documentation for everyone to read, and in many a configuration.
        const PUBLISHED: &str = "hPRYyVRiMyxpw5sBB1XeCMN1kFsDCqKvBi2QJxBVHQk=";

        let key = rocket::Config::SECRET_KEY;
        let bytes = if let Ok(text) = figment.extract_inner::<String>(key) {
            match text.len() {
                _ if text == PUBLISHED => {
                    return Err("the example key of Rocket's documentation is no secret");
                }
                44 | 88 => STANDARD.decode(text).map_err(|_| "not valid base64")?,
                64 => decode_hex(&text).ok_or("not valid hex")?,
                _ => return Err("expected 44 or 88 characters of base64, 64 of hex, or 32 bytes and more"),
            }
        } else if let Ok(bytes) = figment.extract_inner::<Vec<u8>>(key) {
            bytes
        } else if figment.contains(key) {
            return Err("expected a string or an array of bytes");
        } else {
            return Ok(None);
        };

        if bytes.len() < 32 {
            return Err("shorter than 32 bytes");
        }
        // What Rocket itself takes for "no key".
        Ok(bytes.iter().any(|byte| *byte != 0).then_some(Self(bytes)))
    }

    pub(crate) fn random() -> Self {
        let mut bytes = vec![0; 32];
        getrandom::fill(&mut bytes).expect("the operating system has random bytes");
        Self(bytes)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> = text.chars().map(|c| c.to_digit(16)).collect();
    Some(digits?.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect())
}

#[cfg(test)]
mod tests;
