//! How pins travel: in a cookie, and for clients without cookies in a header as well.

use std::time::Duration;

use rocket::http::{self, HeaderMap, Method, SameSite};
use rocket::{Request, Response};
use time::OffsetDateTime;

use super::counts::{PinCounts, PinRefusal};
use super::secret::Secret;
use super::token::{Evidence, Lasts, Pin, Signer};

/// How pins are configured.
#[derive(Debug)]
pub(crate) struct PinConfig {
    pub(crate) lag_window: Duration,
    /// How long a pin that carries only a time is valid.
    pub(crate) by_time: Duration,
    /// How long a pin with a position is valid.
    pub(crate) max_age: Duration,
    pub(crate) cookie: Cookie,
    /// The name of the header that carries pins beside the cookie.
    pub(crate) header: Option<String>,
    pub(crate) secret: Secret,
    /// Pins signed with one of these are believed, too.
    pub(crate) previous_secrets: Vec<Secret>,
    /// True if lift-off warns that the cookie is not `Secure`: outside the debug profile, where neither `pin.secure`
    /// nor Rocket's TLS is configured.
    pub(crate) insecure: bool,
}

/// Makes, sends and finds the pins of one database.
#[derive(Debug)]
pub(crate) struct Pins {
    signer: Signer,
    previous: Vec<Signer>,
    cookie: Cookie,
    header: Option<String>,
    database: String,
    counts: PinCounts,
}

impl Pins {
    pub(crate) fn new(database: &str, config: &PinConfig) -> Self {
        let PinConfig { lag_window, by_time, max_age, cookie, header, secret, previous_secrets, .. } = config;
        let lasts = Lasts { skew: *lag_window, by_time: *by_time, max_age: *max_age };
        let signer = |secret| Signer::new(secret, database, &cookie.name, lasts);
        Self {
            signer: signer(secret),
            previous: previous_secrets.iter().map(signer).collect(),
            cookie: cookie.clone(),
            header: header.clone(),
            database: database.into(),
            counts: PinCounts::new(),
        }
    }

    pub(crate) fn counts(&self) -> &PinCounts {
        &self.counts
    }

    pub(crate) fn sign(&self, now: OffsetDateTime, evidence: &Evidence) -> String {
        self.counts.made.add_one();
        self.signer.sign(now, evidence)
    }

    /// The token of a pin that has been read, or is merged of such.
    pub(crate) fn sign_again(&self, pin: &Pin) -> String {
        self.signer.sign(pin.at, &pin.evidence)
    }

    pub(crate) fn read(&self, token: &str, now: OffsetDateTime) -> Option<Pin> {
        let mut read = self.signer.read(token, now);
        for signer in &self.previous {
            if !matches!(read, Err(PinRefusal::Foreign)) {
                break;
            }
            read = signer.read(token, now);
        }
        match read {
            Ok(pin) => {
                self.counts.honoured.add_one();
                Some(pin)
            }
            Err(cause) => {
                self.counts.refuse(&self.database, cause);
                None
            }
        }
    }

    /// The age beyond which a pin is invalid, whichever server's clock it was signed by.
    pub(crate) fn longest(&self) -> Duration {
        self.signer.longest()
    }

    /// The pin that a request carries in its cookie, its header, or both. If it carries two, they are
    /// merged, because each stands for writes of the client's own.
    pub(crate) fn find(&self, request: &Request<'_>, now: OffsetDateTime) -> Option<Pin> {
        let by_cookie = self.cookie.find(request.cookies(), request.headers());
        let by_header = self.header.as_ref().and_then(|name| {
            let mut sent = request.headers().get(name);
            let first = sent.next()?;
            Some(if sent.next().is_none() { Ok(first) } else { Err(PinRefusal::Doubled) })
        });
        let believed = |token| match token {
            Ok(token) => self.read(token, now),
            Err(cause) => {
                self.counts.refuse(&self.database, cause);
                None
            }
        };
        by_cookie.into_iter().chain(by_header).filter_map(believed).reduce(Pin::merge)
    }

    /// Adds a pin to a reply to a request of this method.
    ///
    /// A reply that may be stored by a shared cache is marked as private: a stored one would hand this
    /// client's pin to others. What the handler said about caching stays.
    pub(crate) fn send(&self, token: String, method: Method, response: &mut Response<'_>) {
        if let Some(name) = &self.header {
            response.set_raw_header(name.clone(), token.clone());
        }
        // `set_header` would replace every other `Set-Cookie` of the reply.
        response.adjoin_header(self.cookie.carrying(token));
        let cacheable = matches!(method, Method::Get | Method::Head);
        if cacheable && !response.headers().contains("Cache-Control") {
            response.set_raw_header("Cache-Control", "private");
        }
    }
}

/// The cookie that carries pins.
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
    /// Sets every attribute, because the cookie is added to the reply as a header, and Rocket's jar
    /// applies its defaults only to cookies that are added to the jar.
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

    /// The value of this cookie in a request, if there is exactly one (rule 4 of [`token`](super::token)).
    fn find<'r>(
        &self,
        jar: &'r http::CookieJar<'_>,
        headers: &HeaderMap<'_>,
    ) -> Option<Result<&'r str, PinRefusal>> {
        let value = jar.get(&self.name)?.value();
        // The jar keeps one cookie of each name, so only the header shows whether there were more.
        let named = |cookie: &&str| cookie.split('=').next().is_some_and(|name| name.trim() == self.name);
        let sent = headers.get("Cookie").flat_map(|header| header.split(';')).filter(named).count();
        Some(if sent <= 1 { Ok(value) } else { Err(PinRefusal::Doubled) })
    }
}

#[cfg(test)]
mod tests;
