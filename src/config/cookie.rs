//! The cookie that pins travel in: one that browsers keep.

use std::time::Duration;

use rocket::figment::Figment;
use rocket::http::SameSite;
use serde::Deserialize;

use super::table::{ConfigError, Table};
use crate::pin::Cookie;

pub(super) fn read_cookie(
    figment: &Figment,
    pin: &Table<'_>,
    database: &str,
    max_age: Duration,
) -> Result<Cookie, ConfigError> {
    let name = pin.string("name")?;
    let named = name.is_some();
    let tls = rocket::Config::try_from(figment).is_ok_and(|config| config.tls_enabled());
    let cookie = Cookie {
        name: name.unwrap_or_else(|| format!("{database}_pin")),
        domain: pin.string("domain")?,
        path: pin.string("path")?.unwrap_or_else(|| "/".into()),
        same_site: pin
            .choice::<SameSiteName>("same_site", "`\"lax\"`, `\"strict\"` or `\"none\"`")?
            .unwrap_or(SameSiteName::Lax)
            .into(),
        secure: pin.bool("secure")?.unwrap_or(tls),
        max_age,
    };

    let is_value =
        |text: &str| !text.is_empty() && text.bytes().all(|b| (0x21..0x7f).contains(&b) && b != b';');
    if !is_token(&cookie.name) {
        return Err(match named {
            true => pin.error("name", "expected a cookie name: ASCII letters, digits, `_`, `-` and `.`"),
            false => pin.error("name", "missing: the database's own name makes no cookie name"),
        });
    }
    if !cookie.path.starts_with('/') || !is_value(&cookie.path) {
        return Err(pin.error("path", "expected a path that begins with `/`, without `;` or blanks"));
    }
    if cookie.domain.as_ref().is_some_and(|domain| !is_value(domain)) {
        return Err(pin.error("domain", "expected a domain name, without `;` or blanks"));
    }
    if cookie.same_site == SameSite::None && !cookie.secure {
        return Err(pin.error("same_site", "browsers drop a `none` cookie without `secure = true`: add it"));
    }
    // https://www.rfc-editor.org/rfc/rfc6265bis#section-4.1.3
    let prefixed = |prefix: &str| {
        cookie.name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    if (prefixed("__Secure-") || prefixed("__Host-")) && !cookie.secure {
        return Err(
            pin.error("name", "browsers drop a cookie with this prefix without `secure = true`: add it")
        );
    }
    if prefixed("__Host-") && (cookie.path != "/" || cookie.domain.is_some()) {
        return Err(pin.error("name", "a `__Host-` cookie has `path = \"/\"` and no `domain`"));
    }
    Ok(cookie)
}

/// What names of headers and cookies are: <https://www.rfc-editor.org/rfc/rfc9110#section-5.6.2>.
pub(super) fn is_token(name: &str) -> bool {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(is_token)
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
