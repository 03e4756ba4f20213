//! Database URLs. A URL that sqlx would misread, or a parameter that it would ignore, is refused with the remedy. The
//! message never shows the URL.

use std::fmt;
use std::str::FromStr;

use super::{Driver, Options};
use crate::spelling::most_alike;

/// A URL, which is never shown because it may hold a password.
#[derive(Clone)]
pub(crate) struct DatabaseUrl(pub(crate) String);

impl DatabaseUrl {
    /// Parses the URL into the driver's options. The error says what is wrong.
    pub(crate) fn parse_as<DB: Driver>(&self) -> Result<Options<DB>, String> {
        if let Some((scheme, _)) = self.0.split_once("://")
            && !DB::URL_SCHEMES.contains(&scheme)
        {
            let ours = DB::URL_SCHEMES.join("://` or `");
            return Err(format!("the URL is not one of {}: it must begin with `{ours}://`", DB::NAME));
        }
        if DB::HAS_HOSTS {
            check(&self.0, DB::URL_SCHEMES[0], DB::URL_PARAMETERS)?;
        }
        Options::<DB>::from_str(&self.0).map_err(|error| match error {
            sqlx::Error::Configuration(error) => format!("the URL cannot be read: {error}"),
            _ => "the URL cannot be read".into(),
        })
    }

    #[cfg(feature = "sqlite")]
    pub(crate) fn mentions_memory(&self) -> bool {
        self.0.contains(":memory:") || self.0.contains("mode=memory")
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// The parts of a URL as RFC 3986 divides it. Their contents are not checked.
struct Parts<'a> {
    user: Option<&'a str>,
    /// Host and port.
    place: &'a str,
    path: &'a str,
    query: &'a str,
    fragment: Option<&'a str>,
}

impl<'a> Parts<'a> {
    fn of(url: &'a str) -> Option<Self> {
        let (_, rest) = url.split_once("://")?;
        let (rest, fragment) = match rest.split_once('#') {
            Some((rest, fragment)) => (rest, Some(fragment)),
            None => (rest, None),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (user, place) = match authority.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, authority),
        };
        Some(Self { user, place, path, query, fragment })
    }

    /// True if the port is a number or absent. The colons of an IPv6 address are in brackets.
    fn has_number_as_port(&self) -> bool {
        let port = self.place.rsplit_once(':').map(|(_, port)| port).filter(|port| !port.ends_with(']'));
        port.is_none_or(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
    }

    fn parameters(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let pairs = self.query.split('&').filter(|pair| !pair.is_empty());
        pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
    }
}

/// Refuses a URL that sqlx would understand differently from what was meant.
fn check(url: &str, scheme: &str, known: &[&str]) -> Result<(), String> {
    let Some(parts) = Parts::of(url) else {
        return Err(format!("this is no URL: write `{scheme}://USER:PASSWORD@HOST:PORT/DATABASE`"));
    };
    const TORN: &str = "the URL has a `/`, `?` or `#` where none can be: in a user or a password, write `%2F`, `%3F` or `%23`";

    // An `@` in the path does not end a user and password.
    if parts.fragment.is_some() || parts.path.contains('@') {
        return Err(TORN.into());
    }
    let is_several = |value: &str| value.contains(',') || value.to_ascii_lowercase().contains("%2c");
    let mut places = parts.parameters().filter(|(key, _)| ["host", "hostaddr", "port"].contains(key));
    if is_several(parts.place) || places.any(|(_, value)| is_several(value)) {
        return Err(
            "the URL names several servers: `url` is that of the master, and the others belong in `slaves`"
                .into(),
        );
    }
    if parts.user.is_none() && !parts.has_number_as_port() {
        return Err(TORN.into());
    }
    match parts.parameters().map(|(key, _)| key).find(|key| !is_known(key, known)) {
        Some(key) => Err(unknown(key, parts.query, known)),
        None => Ok(()),
    }
}

/// PostgreSQL's `options[…]` may have anything in its brackets.
fn is_known(key: &str, known: &[&str]) -> bool {
    let is_option = || {
        known.contains(&"options") && ["options[", "options%5B"].iter().any(|begin| key.starts_with(begin))
    };
    known.contains(&key) || is_option()
}

/// Keys of the section that other libraries expect in the URL.
const OF_THE_SECTION: [&str; 4] = ["connect_timeout", "idle_timeout", "max_connections", "min_connections"];

/// The names that other drivers give to TLS parameters. To ignore them would be to connect without TLS.
const OF_TLS: [&str; 8] = [
    "channel_binding",
    "requiressl",
    "ssl",
    "sslaccept",
    "sslnegotiation",
    "tls",
    "usessl",
    "verifyservercertificate",
];

/// The message about an unknown parameter. It shows no value, and no key that may be a part of a password.
fn unknown(key: &str, query: &str, known: &[&str]) -> String {
    if OF_THE_SECTION.contains(&key) {
        return format!("the URL has a parameter `{key}`, which is a key of the section: move it there");
    }
    let has_value =
        query.split('&').any(|pair| pair.strip_prefix(key).is_some_and(|rest| rest.starts_with('=')));
    let is_word = key.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'_' | b'-'));
    if key.len() > 40 || !is_word || query.contains('@') || !has_value {
        return format!(
            "the URL has a parameter that is unknown: the known ones are `{}`; in a password, write `%3F` for `?` and \
             `%26` for `&`",
            known.join("`, `"),
        );
    }
    let lower = key.to_ascii_lowercase();
    if OF_TLS.contains(&&*lower) || lower == "sslmode" {
        return format!(
            "the URL asks for TLS by `{key}`, which the driver would ignore: write `sslmode=` in its place, with what \
             is to be checked"
        );
    }
    match most_alike(key, known.iter().copied()) {
        Some(ours) => format!("the URL has an unknown parameter `{key}`: did you mean `{ours}`?"),
        None => format!(
            "the URL has an unknown parameter `{key}`: remove it; the known ones are `{}`",
            known.join("`, `")
        ),
    }
}

#[cfg(test)]
mod tests;
