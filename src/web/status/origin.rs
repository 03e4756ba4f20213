//! Decides whether a form was sent by the status page itself, or by another site in a browser with the operator's
//! cookies. It goes by the headers that browsers send, as tower-http's and Go's `CrossOriginProtection` do.
//!
//! 1. With `Sec-Fetch-Site`, which all browsers send over HTTPS and to localhost, the value has to be `same-origin`, or
//!    `none`, which stands for an action of the user's own.
//! 2. Without it, `Origin` has to be the request's own host.
//! 3. A request with neither is refused: it comes from no browser that is known to guard its user.
//!
//! See <https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header>.

use rocket::Request;
use rocket::http::uri::Absolute;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    OwnPage,
    Elsewhere,
}

pub(super) fn sender_of(request: &Request<'_>) -> Sender {
    let host = request.host().map(ToString::to_string);
    let values = |name| request.headers().get(name).collect::<Vec<_>>();
    judge(&values("Sec-Fetch-Site"), &values("Origin"), host.as_deref())
}

fn judge(sites: &[&str], origins: &[&str], host: Option<&str>) -> Sender {
    let is_own = match (sites, origins, host) {
        ([site], ..) => matches!(*site, "same-origin" | "none"),
        ([], [origin], Some(host)) => Absolute::parse(origin)
            .ok()
            .and_then(|origin| origin.authority().map(ToString::to_string))
            .is_some_and(|origin| origin.eq_ignore_ascii_case(host)),
        _ => false,
    };
    if is_own { Sender::OwnPage } else { Sender::Elsewhere }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_page_itself_may_send_forms() {
        let host = Some("db.example:8000");
        type Case = (&'static [&'static str], &'static [&'static str], Option<&'static str>, Sender);
        let cases: [Case; 16] = [
            (&["same-origin"], &[], host, Sender::OwnPage),
            (&["none"], &[], host, Sender::OwnPage),
            (&["same-site"], &["http://db.example:8000"], host, Sender::Elsewhere),
            (&["cross-site"], &["http://db.example:8000"], host, Sender::Elsewhere),
            (&["same-origin"], &["http://evil.example"], host, Sender::OwnPage),
            (&["same-origin", "cross-site"], &[], host, Sender::Elsewhere),
            (&[], &["http://db.example:8000"], host, Sender::OwnPage),
            (&[], &["https://DB.example:8000"], host, Sender::OwnPage),
            (&[], &["http://db.example"], host, Sender::Elsewhere),
            (&[], &["http://db.example:8000.evil.example"], host, Sender::Elsewhere),
            (&[], &["http://evil.example/db.example:8000"], host, Sender::Elsewhere),
            (&[], &["http://db.example:8000@evil.example"], host, Sender::Elsewhere),
            (&[], &["null"], host, Sender::Elsewhere),
            (&[], &["http://db.example:8000", "http://db.example:8000"], host, Sender::Elsewhere),
            (&[], &["http://db.example:8000"], None, Sender::Elsewhere),
            (&[], &[], host, Sender::Elsewhere),
        ];
        for (sites, origins, host, sender) in cases {
            assert_eq!(judge(sites, origins, host), sender, "{sites:?} {origins:?} {host:?}");
        }
    }
}
