use rocket::http::Header;

use super::super::token::Window;
use super::*;

const WINDOW: Duration = Duration::from_secs(5);
const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH.saturating_add(time::Duration::days(20_000));

fn cookie() -> Cookie {
    Cookie {
        name: "blog_pin".into(),
        domain: Some("example.org".into()),
        path: "/".into(),
        same_site: SameSite::Lax,
        secure: true,
        max_age: Duration::from_millis(4_100),
    }
}

fn pins() -> Pins {
    pins_signed_with(1, &[])
}

/// Pins with keys made of these bytes.
fn pins_signed_with(secret: u8, previous: &[u8]) -> Pins {
    let config = PinConfig {
        by_time: WINDOW,
        max_age: Duration::from_secs(60),
        lag_window: WINDOW,
        cookie: cookie(),
        header: Some("X-Pin".into()),
        secret: Secret(vec![secret; 32]),
        previous_secrets: previous.iter().map(|byte| Secret(vec![*byte; 32])).collect(),
        insecure: false,
    };
    Pins::new("blog", &config)
}

#[test]
fn pins_of_previous_keys_are_believed() {
    let new = pins_signed_with(2, &[9, 1]);
    let of = |pins: &Pins| pins.sign(NOW, &Evidence::Nothing);
    assert!(new.read(&of(&pins()), NOW).is_some());
    assert!(new.read(&of(&new), NOW).is_some());
    assert!(new.read(&of(&pins_signed_with(3, &[])), NOW).is_none());
    assert!(pins().read(&of(&new), NOW).is_none(), "new ones are signed with the new key");
    assert!(new.read(&of(&pins()), NOW + WINDOW).is_none(), "no longer than others");
    let shown = format!("{new:?} {:?}", Secret(vec![77; 32]));
    // One `77` alone may be a part of a time.
    assert!(!shown.contains("77, 77"), "{shown}");
}

#[test]
fn a_token_has_one_spelling_in_cookies_and_headers() {
    let token = pins().sign(NOW, &Evidence::Nothing);
    assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'));
    assert_eq!(
        cookie().carrying(token.clone()).encoded().to_string().split(';').next(),
        Some(&*format!("blog_pin={token}"))
    );
}

#[test]
fn the_cookie_has_every_attribute() {
    let cookie = cookie().carrying("token".into()).to_string();
    let mut attributes: Vec<_> = cookie.split("; ").collect();
    attributes.sort_unstable();
    assert_eq!(
        attributes,
        ["Domain=example.org", "HttpOnly", "Max-Age=5", "Path=/", "SameSite=Lax", "Secure", "blog_pin=token"],
    );
}

#[test]
fn of_two_cookies_one_was_planted() {
    let client = rocket::local::blocking::Client::debug_with(Vec::new()).unwrap();
    let find = |sent: &'static [&'static str]| {
        let mut headers = HeaderMap::new();
        sent.iter().for_each(|header| headers.add(Header::new("Cookie", *header)));
        let mut request = client.get("/");
        for header in sent {
            for cookie in http::Cookie::split_parse(*header).flatten() {
                request = request.cookie(cookie);
            }
        }
        cookie().find(request.inner().cookies(), &headers).map(|found| found.map(str::to_owned))
    };
    assert_eq!(find(&["a=1; blog_pin=x; b=2"]), Some(Ok("x".into())));
    assert_eq!(find(&["a=1", "blog_pin=x"]), Some(Ok("x".into())));
    assert_eq!(find(&["blog_pinned=y; blog_pin=x"]), Some(Ok("x".into())));
    assert_eq!(find(&["blog_pin=x; blog_pin=x"]), Some(Err(PinRefusal::Doubled)));
    assert_eq!(find(&["blog_pin=x", "a=1; blog_pin=y"]), Some(Err(PinRefusal::Doubled)));
    assert_eq!(find(&["a=1"]), None);
}

/// Covers all that a request can carry. Rocket itself drops headers that are not text.
#[test]
fn no_header_and_no_cookie_panics_or_pins() {
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};

    let pins = pins();
    let client = rocket::local::blocking::Client::debug_with(Vec::new()).unwrap();
    let find = |cookies: &str, value: &str, header: &str| {
        let request = client
            .get("/")
            .header(Header::new("Cookie", cookies.to_owned()))
            .cookie(("blog_pin", value.to_owned()))
            .header(Header::new("X-Pin", header.to_owned()));
        pins.find(request.inner(), NOW)
    };

    let text = prop_oneof!["\\PC*", "[A-Za-z0-9_-]{55}", "blog_pin=[A-Za-z0-9_=; -]{0,80}"];
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
    let none = runner.run(&(text.clone(), text.clone(), text), |(cookies, value, header)| {
        prop_assert_eq!(find(&cookies, &value, &header), None);
        Ok(())
    });
    none.unwrap();
    assert_eq!(
        find("", "", &pins.sign(NOW, &Evidence::Nothing)),
        Some(Pin { at: NOW, evidence: Evidence::Nothing, window: Window::Open })
    );
}
