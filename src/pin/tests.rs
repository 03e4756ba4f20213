use proptest::prelude::*;
use rocket::http::Header;
use time::ext::NumericalDuration;

use super::*;

const WINDOW: Duration = Duration::from_secs(5);
const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH.saturating_add(time::Duration::days(20_000));

fn secret(byte: u8) -> Secret {
    Secret(vec![byte; 32])
}

fn signer() -> Signer {
    Signer::new(&secret(1), "blog", "blog_pin", WINDOW)
}

#[test]
fn a_pin_is_believed_for_the_lag_window() {
    let token = signer().sign(NOW);
    assert_eq!(signer().read(&token, NOW), Some(Pin { at: NOW }));
    assert_eq!(signer().read(&token, NOW + 4.9.seconds()), Some(Pin { at: NOW }));
    assert_eq!(signer().read(&token, NOW + 5.seconds()), None);
    assert_eq!(signer().read(&token, NOW + 1.days()), None);
}

#[test]
fn a_time_ahead_of_ours_by_a_window_is_skew_and_means_now() {
    let token = signer().sign(NOW);
    assert_eq!(signer().read(&token, NOW - 5.seconds()), Some(Pin { at: NOW - 5.seconds() }));
    assert_eq!(signer().read(&token, NOW - 5.1.seconds()), None);
}

#[test]
fn a_foreign_pin_is_none() {
    let token = signer().sign(NOW);
    let foreign = [
        Signer::new(&secret(2), "blog", "blog_pin", WINDOW),
        Signer::new(&secret(1), "shop", "blog_pin", WINDOW),
        Signer::new(&secret(1), "blog", "shop_pin", WINDOW),
        // The border between name and database is part of what is signed.
        Signer::new(&secret(1), "nblog", "blog_pi", WINDOW),
    ];
    for signer in foreign {
        assert_eq!(signer.read(&token, NOW), None);
    }
}

#[test]
fn every_changed_bit_makes_it_none() {
    let token = signer().sign(NOW);
    let bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut forged = bytes.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(signer().read(&URL_SAFE_NO_PAD.encode(forged), NOW), None, "bit {bit}");
    }
}

#[test]
fn another_version_is_none() {
    let mut token = [0; TOKEN];
    token[0] = VERSION + 1;
    token[1..PAYLOAD].copy_from_slice(&millis(NOW).to_be_bytes());
    let mac = signer().mac.chain_update(&token[..PAYLOAD]).finalize();
    token[PAYLOAD..].copy_from_slice(&mac.into_bytes());
    assert_eq!(signer().read(&URL_SAFE_NO_PAD.encode(token), NOW), None);
}

#[test]
fn a_token_has_one_spelling_in_cookies_and_headers() {
    let token = signer().sign(NOW);
    assert_eq!(token.len(), ENCODED);
    assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'));
    assert_eq!(
        cookie().carrying(token.clone()).encoded().to_string().split(';').next(),
        Some(&*format!("blog_pin={token}"))
    );
}

#[test]
fn times_that_no_calendar_has_are_none() {
    for at in [i64::MIN, i64::MAX, -1, 0] {
        let mut token = [0; TOKEN];
        token[0] = VERSION;
        token[1..PAYLOAD].copy_from_slice(&at.to_be_bytes());
        let mac = signer().mac.chain_update(&token[..PAYLOAD]).finalize();
        token[PAYLOAD..].copy_from_slice(&mac.into_bytes());
        assert_eq!(signer().read(&URL_SAFE_NO_PAD.encode(token), NOW), None, "{at}");
    }
}

proptest! {
    #[test]
    fn no_text_panics_or_pins(text in "\\PC*") {
        prop_assert_eq!(signer().read(&text, NOW), None);
    }

    #[test]
    fn no_bytes_in_our_form_panic_or_pin(bytes in prop::array::uniform32(any::<u8>()), head in prop::array::uniform9(any::<u8>())) {
        let token = URL_SAFE_NO_PAD.encode([&head[..], &bytes[..]].concat());
        prop_assert_eq!(token.len(), ENCODED);
        prop_assert_eq!(signer().read(&token, NOW), None);
    }

    #[test]
    fn making_and_reading_is_the_identity(ms in 0_i64..253_402_300_000_000, age in 0_i64..5_000) {
        let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).unwrap();
        let later = at.saturating_add(age.milliseconds());
        prop_assert_eq!(signer().read(&signer().sign(at), later), Some(Pin { at }));
    }
}

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
        cookie().find(request.inner().cookies(), &headers).map(str::to_owned)
    };
    assert_eq!(find(&["a=1; blog_pin=x; b=2"]), Some("x".into()));
    assert_eq!(find(&["a=1", "blog_pin=x"]), Some("x".into()));
    assert_eq!(find(&["blog_pinned=y; blog_pin=x"]), Some("x".into()));
    assert_eq!(find(&["blog_pin=x; blog_pin=x"]), None);
    assert_eq!(find(&["blog_pin=x", "a=1; blog_pin=y"]), None);
    assert_eq!(find(&["a=1"]), None);
}

fn secret_of(toml: &str) -> Result<Option<Vec<u8>>, &'static str> {
    use rocket::figment::providers::{Format, Toml};
    Secret::of(&Figment::from(Toml::string(toml))).map(|secret| secret.map(|Secret(bytes)| bytes))
}

#[test]
fn all_spellings_of_a_key_are_one_key() {
    let bytes: Vec<u8> = (0..32).collect();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = Ok(Some(bytes.clone()));
    assert_eq!(secret_of(&format!("secret_key = \"{}\"", STANDARD.encode(&bytes))), expected);
    assert_eq!(secret_of(&format!("secret_key = \"{hex}\"")), expected);
    assert_eq!(secret_of(&format!("secret_key = \"{}\"", hex.to_uppercase())), expected);
    assert_eq!(secret_of(&format!("secret_key = {bytes:?}")), expected);
}

#[test]
fn a_key_that_is_none_or_no_secret() {
    assert_eq!(secret_of(""), Ok(None));
    assert_eq!(secret_of(&format!("secret_key = \"{}\"", "0".repeat(64))), Ok(None));
    let refused = [
        "secret_key = \"abc\"",
        "secret_key = \"hPRYyVRiMyxpw5sBB1XeCMN1kFsDCqKvBi2QJxBVHQk=\"",
        &format!("secret_key = \"{}\"", "?".repeat(44)),
        &format!("secret_key = \"{}\"", "x".repeat(64)),
        &format!("secret_key = \"{}\"", "é".repeat(32)),
        "secret_key = [1, 2, 3]",
        "secret_key = true",
    ];
    for toml in refused {
        assert!(secret_of(toml).is_err(), "{toml}");
    }
}

/// Everything that a request carries goes through here; Rocket itself drops headers that are no text.
#[test]
fn no_header_and_no_cookie_panics_or_pins() {
    use proptest::test_runner::{Config, TestRunner};

    let config = PinConfig {
        lag_window: WINDOW,
        cookie: cookie(),
        header: Some("X-Pin".into()),
        secret: secret(1),
        insecure: false,
    };
    let pins = Pins::new("blog", &config);
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
    assert_eq!(find("", "", &pins.sign(NOW)), Some(Pin { at: NOW }));
}
