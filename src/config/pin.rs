//! The table `pin`, and Rocket's `secret_key`.

use std::time::Duration;

use rocket::figment::Figment;
use rocket::figment::value::{Dict, Value};
use rocket::http::SameSite;
use serde::Deserialize;

use super::table::{ConfigError, DAY, Place, Table};
use super::{Checks, Consistency, SlaveConfig};
use crate::pin::{Cookie, PinConfig, Secret};

const PREVIOUS_KEYS: &str = "previous_keys";

/// The other settings that the table's meaning depends on.
pub(super) struct Context<'a> {
    pub(super) figment: &'a Figment,
    pub(super) database: &'a str,
    pub(super) consistency: Consistency,
    pub(super) lag_window: Duration,
}

/// The keys of the table.
struct Keys<'a> {
    name: Option<String>,
    domain: Option<String>,
    path: String,
    same_site: SameSite,
    secure: Option<bool>,
    header: Option<String>,
    max_age: Option<Duration>,
    previous: &'a [Value],
}

impl<'a> Keys<'a> {
    fn read(table: &mut Table<'a>, rocket: Option<&rocket::Config>) -> Self {
        let keys = Self {
            name: table.string("name"),
            domain: table.string("domain"),
            path: table.string("path").unwrap_or_else(|| "/".into()),
            same_site: table
                .choice("same_site", "`\"lax\"`, `\"strict\"` or `\"none\"`")
                .map_or(SameSite::Lax, SameSiteName::into),
            secure: table.bool("secure"),
            header: table.string("header"),
            max_age: table.seconds("max_age", 0.001..=DAY),
            previous: table.array(PREVIOUS_KEYS, "an array of keys").unwrap_or_default(),
        };
        if keys.name.as_ref().is_some_and(|name| !is_token(name)) {
            table.refuse("name", "expected a cookie name: ASCII letters, digits, `_`, `-` and `.`");
        }
        let is_value = |text: &str| text.bytes().all(|b| (0x21..0x7f).contains(&b) && b != b';');
        if !keys.path.starts_with('/') || !is_value(&keys.path) {
            table.refuse("path", "expected a path that begins with `/`, without `;` or blanks");
        }
        if keys.domain.as_ref().is_some_and(|domain| !is_domain(domain)) {
            table.refuse(
                "domain",
                "expected a domain name, as in `example.org`: no scheme, port, IP address, `;` or blanks",
            );
        }
        if let Some(header) = &keys.header {
            if !is_token(header) {
                table.refuse("header", "expected a header's name, as in `X-Replicated-Pin`");
            } else if is_taken(header, rocket) {
                table.refuse(
                    "header",
                    "HTTP or Rocket gives this header a meaning: choose another, as in `X-Replicated-Pin`",
                );
            }
        }
        keys
    }
}

impl Context<'_> {
    /// Reads the table and the key that pins are signed with. Returns `None` if clients are not pinned. A mistake in
    /// the table is an error all the same.
    pub(super) fn read(
        &self,
        place: &Place,
        dict: Option<&Dict>,
        slaves: &[SlaveConfig],
        checks: &Checks,
    ) -> Result<Option<PinConfig>, ConfigError> {
        let lag_window = self.lag_window;
        let rocket = rocket::Config::try_from(self.figment).ok();
        let empty = Dict::new();
        let keys = Table::read(place, dict.unwrap_or(&empty), |table| Keys::read(table, rocket.as_ref()))?;
        let max_age = self.max_age(place, keys.max_age)?;
        let tls = rocket.is_some_and(|rocket| rocket.tls_enabled());
        let cookie = self.cookie(place, &keys, tls, max_age)?;
        let previous_secrets = previous_secrets(place, keys.previous)?;
        if slaves.is_empty() || lag_window.is_zero() {
            return Ok(None);
        }

        let debug = self.figment.profile() == rocket::Config::DEBUG_PROFILE;
        let insecure = !debug && !cookie.secure && keys.secure.is_none();
        let secret = self.secret()?;
        // In window mode, a window that `max_lag` does not guard is the user's own decision: the
        // configuration is refused unless it says `max_lag = false`.
        let by_time = match self.consistency {
            Consistency::Position if !checks.guard(lag_window, slaves) => max_age,
            _ => lag_window,
        };
        let header = keys.header;
        Ok(Some(PinConfig {
            lag_window,
            by_time,
            max_age,
            cookie,
            header,
            secret,
            previous_secrets,
            insecure,
        }))
    }

    /// How long a pin is valid: one with a position outlives the lag window.
    fn max_age(&self, place: &Place, max_age: Option<Duration>) -> Result<Duration, ConfigError> {
        const KEY: &str = "max_age";

        let window = self.lag_window;
        match (self.consistency, max_age) {
            (Consistency::Window, None) => Ok(window),
            (Consistency::Window, Some(_)) => {
                let problem = "without `consistency = \"position\"` a pin ends with the `lag_window`";
                Err(place.error(KEY, problem))
            }
            (Consistency::Position, None) => Ok(window.max(Duration::from_secs(60))),
            (Consistency::Position, Some(max_age)) if max_age < window => {
                let problem = format!("must not be below `lag_window`, which is {}", window.as_secs_f64());
                Err(place.error(KEY, problem))
            }
            (Consistency::Position, Some(max_age)) => Ok(max_age),
        }
    }

    /// The cookie. An error if browsers would not keep it.
    fn cookie(
        &self,
        place: &Place,
        keys: &Keys<'_>,
        tls: bool,
        max_age: Duration,
    ) -> Result<Cookie, ConfigError> {
        let Keys { name, domain, path, same_site, secure, .. } = keys;
        let cookie = Cookie {
            name: name.clone().unwrap_or_else(|| format!("{}_pin", self.database)),
            domain: domain.clone(),
            path: path.clone(),
            same_site: *same_site,
            secure: secure.unwrap_or(tls),
            max_age,
        };

        if !is_token(&cookie.name) {
            return Err(
                place.error("name", "missing: the name of the database cannot be part of a cookie's name")
            );
        }
        if cookie.same_site == SameSite::None && !cookie.secure {
            let problem = "browsers drop a `none` cookie without `secure = true`: add it";
            return Err(place.error("same_site", problem));
        }
        // https://www.rfc-editor.org/rfc/rfc6265bis#section-4.1.3
        let prefixed = |prefix: &str| {
            cookie.name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        };
        if (prefixed("__Secure-") || prefixed("__Host-")) && !cookie.secure {
            let problem = "browsers drop a cookie with this prefix without `secure = true`: add it";
            return Err(place.error("name", problem));
        }
        if prefixed("__Host-") && (cookie.path != "/" || cookie.domain.is_some()) {
            return Err(place.error("name", "a `__Host-` cookie has `path = \"/\"` and no `domain`"));
        }
        Ok(cookie)
    }

    /// The secret that pins are signed with, which is Rocket's `secret_key`.
    fn secret(&self) -> Result<Secret, ConfigError> {
        const KEY: &str = rocket::Config::SECRET_KEY;
        const GENERATE: &str = "generate one with `openssl rand -base64 32`";

        let profile = self.figment.profile();
        let error = |problem: String| Err(Place::profile(profile).error(KEY, problem));
        let key = self.figment.find_value(KEY).ok();
        match key.as_ref().map_or(Ok(None), Secret::parse) {
            Ok(Some(secret)) => Ok(secret),
            Ok(None) if profile == rocket::Config::DEBUG_PROFILE => Ok(Secret::random()),
            Ok(None) => error(format!(
                "missing: pins are signed with it, and every server of the application must have the same; {GENERATE}"
            )),
            Err(problem) => error(format!("{problem}; {GENERATE}")),
        }
    }
}

/// The earlier secrets, whose pins are believed as well.
fn previous_secrets(place: &Place, keys: &[Value]) -> Result<Vec<Secret>, ConfigError> {
    let secret = |(index, key): (usize, &Value)| {
        let problem = match Secret::parse(key) {
            Ok(Some(secret)) => return Ok(secret),
            Ok(None) => "a key of zeros is no secret",
            Err(problem) => problem,
        };
        let remedy = "spell it as `secret_key` was spelt when pins were signed with it, or remove it";
        Err(place.error(&format!("{PREVIOUS_KEYS}[{index}]"), format!("{problem}; {remedy}")))
    };
    keys.iter().enumerate().map(secret).collect()
}

/// The names of the cookie and the header that carry the pins of one database. Two databases of an application must not
/// share one: the pin of the second write would replace that of the first.
#[derive(Clone, Debug)]
pub(crate) struct PinNames {
    database: &'static str,
    cookie: String,
    header: Option<String>,
}

impl PinNames {
    pub(crate) fn new(database: &'static str, pin: &PinConfig) -> Self {
        Self { database, cookie: pin.cookie.name.clone(), header: pin.header.clone() }
    }

    /// Refuses these names beside those of an `other` database. Cookie names are case-sensitive, header names are not.
    /// A cookie's domain and path make no difference, because requests do not carry them. Two types for one section
    /// share its pins, which hold for both.
    pub(crate) fn check(&self, figment: &Figment, other: &Self) -> Result<(), ConfigError> {
        let lower = |header: &Option<String>| header.as_ref().map(|name| name.to_ascii_lowercase());
        let (key, what) = if self.database == other.database {
            return Ok(());
        } else if self.cookie == other.cookie {
            ("name", "cookie")
        } else if self.header.is_some() && lower(&self.header) == lower(&other.header) {
            ("header", "header")
        } else {
            return Ok(());
        };
        let problem = format!(
            "the pins of the database `{}` have this {what}: give one of them another",
            other.database
        );
        let place = Place::profile(figment.profile()).inner(&format!("databases.{}.pin", self.database));
        Err(place.error(key, problem))
    }
}

/// True if the text can be the name of a header or cookie: <https://www.rfc-editor.org/rfc/rfc9110#section-5.6.2>.
fn is_token(name: &str) -> bool {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(is_token)
}

/// True if a cookie can have this domain. Browsers ignore a leading dot:
/// <https://www.rfc-editor.org/rfc/rfc6265#section-5.2.3>. The name has to follow RFC 1034, section 3.5, as enhanced by
/// RFC 1123, section 2.1. By that, the last label is not a number: with a number, the text is an IP address.
fn is_domain(name: &str) -> bool {
    let name = name.strip_prefix('.').unwrap_or(name);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= 253 && name.split('.').all(is_label) && !last.bytes().all(|byte| byte.is_ascii_digit())
}

/// Headers with a meaning of their own: the headers of the IANA registry that are in use, and those that Rocket and
/// proxies add. The crate `http` knows the standard ones but does not list them.
/// <https://www.iana.org/assignments/http-fields/http-fields.xhtml>
const TAKEN: &str = "accept age allow alt-svc alt-used authorization clear-site-data connection cookie date dnt \
    early-data etag expect expires forwarded from host keep-alive last-modified link location \
    max-forwards nel origin origin-agent-cluster permissions-policy pragma priority range referer \
    referrer-policy refresh report-to reporting-endpoints retry-after server server-timing set-cookie \
    sourcemap strict-transport-security te timing-allow-origin traceparent tracestate trailer \
    transfer-encoding upgrade upgrade-insecure-requests user-agent vary via warning www-authenticate \
    x-content-type-options x-dns-prefetch-control x-frame-options x-permitted-cross-domain-policies \
    x-real-ip x-request-id x-xss-protection";

/// Families of such headers.
const TAKEN_PREFIXES: &str =
    "accept- access-control- cache- cdn- content- cross-origin- if- proxy- sec- x-forwarded-";

fn is_taken(header: &str, rocket: Option<&rocket::Config>) -> bool {
    let header = header.to_ascii_lowercase();
    let ip_header = rocket.and_then(|rocket| rocket.ip_header.as_ref());
    ip_header.is_some_and(|name| *name == header)
        || TAKEN.split(' ').any(|name| name == header)
        || TAKEN_PREFIXES.split(' ').any(|prefix| header.starts_with(prefix))
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum SameSiteName {
    Lax,
    Strict,
    None,
}

impl From<SameSiteName> for SameSite {
    fn from(name: SameSiteName) -> Self {
        match name {
            SameSiteName::Lax => Self::Lax,
            SameSiteName::Strict => Self::Strict,
            SameSiteName::None => Self::None,
        }
    }
}
