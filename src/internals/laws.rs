//! Laws that hold for any input. The programs in `fuzz/` look for an input that breaks one, which panics.
//! `tests/found.rs` keeps the inputs that did.

use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rocket::http::SameSite;
use time::OffsetDateTime;

use crate::pin::{Cookie, Evidence, PinConfig, Pins, Secret, Window, fits};
use crate::position::{History, Lag, Position};

const WINDOW: Duration = Duration::from_secs(5);
const MAX_AGE: Duration = Duration::from_secs(60);

static PINS: LazyLock<Pins> = LazyLock::new(|| {
    let cookie = Cookie {
        name: "blog_pin".into(),
        domain: None,
        path: "/".into(),
        same_site: SameSite::Lax,
        secure: true,
        max_age: MAX_AGE,
    };
    let config = PinConfig {
        lag_window: WINDOW,
        by_time: WINDOW,
        max_age: MAX_AGE,
        cookie,
        header: None,
        secret: Secret::random(),
        previous_secrets: vec![Secret::random()],
        insecure: false,
    };
    Pins::new("blog", &config)
});

/// A pin is believed if it was signed here, is unchanged, and is neither too old nor from the future. It then says what
/// was signed.
///
/// The input is read in two ways. The first takes it for a token that a client made up. The second takes it for a
/// write, whose pin is signed, read and changed:
///
/// | bytes | what                                                        |
/// |-------|-------------------------------------------------------------|
/// | 8     | time of the write in ms since 1970                          |
/// | 4     | age of the pin in ms when it is read                        |
/// | 2     | the character that is changed                               |
/// | 1     | its new value                                               |
/// | 1     | kind of evidence                                            |
/// | –     | position                                                    |
pub fn pin(input: &[u8]) {
    let now = OffsetDateTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let made_up = [String::from_utf8_lossy(input).into_owned(), URL_SAFE_NO_PAD.encode(input)];
    for token in made_up {
        assert_eq!(PINS.read(&token, now), None, "made without the key");
    }
    write_and_read(input);
}

/// `None` for an input that describes no write.
fn write_and_read(input: &[u8]) -> Option<()> {
    let (at, rest) = input.split_first_chunk()?;
    let (age, rest) = rest.split_first_chunk()?;
    let (changed, rest) = rest.split_first_chunk()?;
    let (&to, rest) = rest.split_first()?;
    let (kind, position) = rest.split_first()?;
    let in_ms = |ms: i64| OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).ok();
    let (at, age) = (i64::from_be_bytes(*at), i32::from_be_bytes(*age).into());
    let (at, now) = (in_ms(at)?, in_ms(at.checked_add(age)?)?);
    let evidence = match kind {
        0 => Evidence::Nothing,
        1 => Evidence::Position(Position::decode(position)?),
        _ => Evidence::Earlier(Position::decode(position)?),
    };

    let token = PINS.sign(at, &evidence);
    assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')), "{token}");
    assert!(token.len() < 2000, "a cookie may have 4096 bytes, with its name and attributes");
    let carried = match &evidence {
        Evidence::Position(position) | Evidence::Earlier(position) if !fits(position) => Evidence::Nothing,
        _ => evidence,
    };
    let ms = |duration: Duration| i64::try_from(duration.as_millis()).expect("a minute");
    let lasts = if carried == Evidence::Nothing { WINDOW } else { MAX_AGE };
    match PINS.read(&token, now) {
        Some(pin) => {
            assert!((-ms(WINDOW)..ms(lasts)).contains(&age), "believed {age} ms after the write");
            assert_eq!((pin.at, &pin.evidence), (at.min(now), &carried));
            assert_eq!(pin.window == Window::Open, age < ms(WINDOW));
        }
        None => assert!(!(-ms(WINDOW)..ms(lasts)).contains(&age), "refused {age} ms after the write"),
    }

    let mut forged = token.into_bytes();
    let changed = usize::from(u16::from_be_bytes(*changed)) % forged.len();
    if forged[changed] != to {
        forged[changed] = to;
        let forged = String::from_utf8_lossy(&forged);
        assert_eq!(PINS.read(&forged, at), None, "character {changed} was changed");
    }
    Some(())
}

/// Positions survive a token, and `includes`, `names`, `lacks`, `merge`, `since` and `in_common` agree with each other.
///
/// The input has up to three positions with `|` between them, each in the form of a token, MariaDB or MySQL.
pub fn positions(input: &[u8]) {
    let read: Vec<_> = input.split(|byte| *byte == b'|').take(3).filter_map(read_position).collect();
    for a in &read {
        alone(a);
        for b in &read {
            two(a, b);
            for c in &read {
                three(a, b, c);
            }
        }
    }
}

fn read_position(input: &[u8]) -> Option<Position> {
    let text = || written_by_a_server(str::from_utf8(input).ok()?);
    let position = Position::decode(input).or_else(text)?;
    // A server names each domain once.
    let Position::Gtids(gtids) = &position else { return Some(position) };
    let is_second = |(index, domain): (usize, u32)| gtids[..index].iter().any(|gtid| gtid.domain == domain);
    let doubled = gtids.iter().map(|gtid| gtid.domain).enumerate().any(is_second);
    (!doubled).then_some(position)
}

#[cfg(feature = "mysql")]
fn written_by_a_server(text: &str) -> Option<Position> {
    let set = Position::parse_gtid_set(text);
    if let Some(Position::GtidSet(set)) = &set {
        let again = Position::parse_gtid_set(&set.to_string());
        assert_eq!(again, Some(Position::GtidSet(set.clone())), "read again after it was written");
    }
    set.or_else(|| Position::parse_gtids(text))
}

#[cfg(not(feature = "mysql"))]
fn written_by_a_server(_: &str) -> Option<Position> {
    None
}

fn alone(a: &Position) {
    let mut bytes = Vec::new();
    a.encode(&mut bytes);
    assert_eq!(Position::decode(&bytes).as_ref(), Some(a), "decoded after it was encoded");
    assert!(a.includes(a) && a.names(a) && !a.lacks(a), "{a:?}");
    assert_eq!(a.clone().merge(a.clone()), *a);
}

fn two(a: &Position, b: &Position) {
    let context = || format!("{a:?}\n{b:?}");
    if a.names(b) {
        assert!(a.includes(b) && !a.lacks(b), "{}", context());
    }
    let merged = a.clone().merge(b.clone());
    assert!(merged.includes(a), "a merged position covers the later claim: {}", context());
    if a.includes(b) || b.includes(a) {
        assert!(merged.includes(b), "… and the earlier one: {}", context());
    }
    let since = a.since(b);
    assert!(a.includes(&since) && since.merge(b.clone()).names(a), "{}", context());
    if let Some(common) = a.in_common(b) {
        assert!(a.includes(&common) && b.includes(&common), "{}", context());
    }
    if let Some(known) = a.of_sources_of(b) {
        assert!(a.includes(&known), "{}", context());
    }
    let beside = Position::GtidSet(a.written_beside(b));
    assert!(!b.includes(&beside) || beside.is_empty(), "{}", context());

    // A look at the master each second.
    let begin = std::time::Instant::now();
    let mut history = History::default();
    history.record(b.clone(), begin);
    history.record(a.clone(), begin + Duration::from_secs(1));
    if history.latest() == Some(a) {
        assert_eq!(history.lag(a, begin), Some(Lag::AtMost(Duration::ZERO)), "{}", context());
    }
}

fn three(a: &Position, b: &Position, c: &Position) {
    let context = || format!("{a:?}\n{b:?}\n{c:?}");
    if a.includes(b) && b.includes(c) {
        assert!(a.includes(c), "{}", context());
    }
    if a.names(b) && b.names(c) {
        assert!(a.names(c), "{}", context());
    }
}

/// A section is read or refused. Neither the error nor the configuration shows a password. Each server has a name of
/// its own, and room for the connections that it keeps open.
///
/// The input is TOML, below `[databases.blog]`.
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
pub fn section(input: &str) {
    use rocket::figment::Figment;
    use rocket::figment::providers::{Format, Toml};

    let section = format!("[databases.blog]\n{input}");
    let with_key = format!("secret_key = '{}'\n{section}", "1".repeat(64));
    let debug = Figment::from(rocket::Config::debug_default()).merge(Toml::string(&section));
    let release = Figment::from(rocket::Config::release_default()).merge(Toml::string(&with_key));
    for figment in [debug.select("debug"), release.select("release")] {
        #[cfg(feature = "mysql")]
        read_section::<sqlx::MySql>(&figment);
        #[cfg(feature = "postgres")]
        read_section::<sqlx::Postgres>(&figment);
        #[cfg(feature = "sqlite")]
        read_section::<sqlx::Sqlite>(&figment);
    }
}

#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
fn read_section<DB: crate::backend::Driver>(figment: &rocket::figment::Figment) {
    use crate::config::{Config, MAX_SLAVES};

    let (shown, config) = match Config::read::<DB>(figment, "blog") {
        Ok(config) => (format!("{config:?}"), Some(config)),
        Err(error) => (error.to_string(), None),
    };
    let is_password = || figment.find_value("databases").is_ok_and(|value| is_password_in(&value));
    if DB::HAS_HOSTS && shown.contains(PASSWORD) {
        assert!(!is_password(), "shows a password: {shown}");
    }
    let Some(Config { master, master_reads, slaves, reserve, pin, .. }) = config else { return };
    assert!(slaves.len() <= MAX_SLAVES && reserve < master_reads.settings.max_connections);
    let servers = || slaves.iter().map(|slave| &slave.server).chain([&master]);
    for server in servers() {
        let named = servers().filter(|other| other.name == server.name).count();
        assert!(named == 1 && !server.name.is_empty(), "{named} servers are named {:?}", server.name);
        assert!((1..).contains(&server.settings.max_connections));
        assert!(server.settings.min_connections <= server.settings.max_connections);
    }
    if let Some(pin) = pin {
        assert!(pin.by_time <= pin.max_age && !pin.lag_window.is_zero() && !slaves.is_empty());
    }
}

#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
const PASSWORD: &str = "hunter2";

/// True if the word is a password of a URL wherever it occurs.
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
fn is_password_in(value: &rocket::figment::value::Value) -> bool {
    use rocket::figment::value::Value;

    match value {
        Value::String(_, text) => match text.split_once("://") {
            Some((scheme, rest)) => {
                let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
                let others = [scheme, &authority.replacen(":hunter2@", "", 1), path].concat();
                !others.contains(PASSWORD)
            }
            None => !text.contains(PASSWORD),
        },
        Value::Dict(_, dict) => {
            dict.iter().all(|(key, value)| !key.contains(PASSWORD) && is_password_in(value))
        }
        Value::Array(_, values) => values.iter().all(is_password_in),
        Value::Char(..) | Value::Bool(..) | Value::Num(..) | Value::Empty(..) => true,
    }
}
