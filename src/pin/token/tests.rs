use proptest::prelude::*;
use time::ext::NumericalDuration;

use super::*;

const WINDOW: Duration = Duration::from_secs(5);
const MAX_AGE: Duration = Duration::from_secs(60);
const LASTS: Lasts = Lasts { skew: WINDOW, by_time: WINDOW, max_age: MAX_AGE };
const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH.saturating_add(time::Duration::days(20_000));

fn secret(byte: u8) -> Secret {
    Secret(vec![byte; 32])
}

fn signer() -> Signer {
    Signer::new(&secret(1), "blog", "blog_pin", LASTS)
}

/// The pin of a write at `at`, within the window.
fn by_time(at: OffsetDateTime) -> Pin {
    Pin { at, evidence: Evidence::Nothing, window: Window::Open }
}

/// A token with a MAC that is ours.
fn token(version: u8, at: i64, rest: &[u8]) -> String {
    let mut token = vec![version];
    token.extend(at.to_be_bytes());
    token.extend(rest);
    let mac = signer().mac.chain_update(&token).finalize();
    token.extend(mac.into_bytes());
    URL_SAFE_NO_PAD.encode(token)
}

#[test]
fn a_pin_is_believed_for_the_lag_window() {
    let token = signer().sign(NOW, &Evidence::Nothing);
    assert_eq!(signer().read(&token, NOW).ok(), Some(by_time(NOW)));
    assert_eq!(signer().read(&token, NOW + 4.9.seconds()).ok(), Some(by_time(NOW)));
    assert_eq!(signer().read(&token, NOW + 5.seconds()).ok(), None);
    assert_eq!(signer().read(&token, NOW + 1.days()).ok(), None);
}

#[test]
fn a_time_ahead_of_ours_by_a_window_is_skew_and_means_now() {
    let token = signer().sign(NOW, &Evidence::Nothing);
    assert_eq!(signer().read(&token, NOW - 5.seconds()).ok(), Some(by_time(NOW - 5.seconds())));
    assert_eq!(signer().read(&token, NOW - 5.1.seconds()).ok(), None);
}

#[test]
fn a_foreign_pin_is_none() {
    let token = signer().sign(NOW, &Evidence::Nothing);
    let foreign = [
        Signer::new(&secret(2), "blog", "blog_pin", LASTS),
        Signer::new(&secret(1), "shop", "blog_pin", LASTS),
        Signer::new(&secret(1), "blog", "shop_pin", LASTS),
        // The border between name and database is signed, too.
        Signer::new(&secret(1), "nblog", "blog_pi", LASTS),
    ];
    for signer in foreign {
        assert_eq!(signer.read(&token, NOW).ok(), None);
    }
}

#[test]
fn every_changed_bit_makes_it_none() {
    let token = signer().sign(NOW, &Evidence::Nothing);
    let bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut forged = bytes.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(signer().read(&URL_SAFE_NO_PAD.encode(forged), NOW).ok(), None, "bit {bit}");
    }
}

#[test]
fn another_version_is_none() {
    assert!(signer().read(&token(VERSION, millis(NOW), &[TIME]), NOW).is_ok());
    assert_eq!(signer().read(&token(VERSION + 1, millis(NOW), &[TIME]), NOW).ok(), None);
}

#[test]
fn what_follows_the_time_has_to_fit_its_kind() {
    let lsn = [b'L', 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9];
    for (rest, is_pin) in [
        (vec![], false),
        (vec![TIME], true),
        (vec![TIME, 0], false),
        (vec![POSITION], false),
        ([&[POSITION], &lsn[..]].concat(), true),
        ([&[EARLIER], &lsn[..]].concat(), true),
        ([&[POSITION], &lsn[..], &[0]].concat(), false),
        ([&[EARLIER + 1], &lsn[..]].concat(), false),
    ] {
        let pin = signer().read(&token(VERSION, millis(NOW), &rest), NOW).ok();
        assert_eq!(pin.is_some(), is_pin, "{rest:?}");
    }
}

fn lsn(lsn: u64) -> Position {
    Position::Lsn { timeline: 1, lsn }
}

#[test]
fn a_position_outlives_the_window() {
    for evidence in [Evidence::Position(lsn(9)), Evidence::Earlier(lsn(9))] {
        let token = signer().sign(NOW, &evidence);
        for (age, window) in [(4.9, Window::Open), (5.0, Window::Over), (59.9, Window::Over)] {
            let pin = Pin { at: NOW, evidence: evidence.clone(), window };
            assert_eq!(signer().read(&token, NOW + age.seconds()).ok(), Some(pin));
        }
        assert_eq!(signer().read(&token, NOW + 60.seconds()).ok(), None);
    }
}

#[test]
fn what_a_pin_needs() {
    let needs = |evidence, window| {
        let pin = Pin { at: NOW, evidence, window };
        match pin.needs() {
            Needed::Master => None,
            Needed::Position(position) => Some(position.clone()),
        }
    };
    assert_eq!(needs(Evidence::Nothing, Window::Open), None);
    assert_eq!(needs(Evidence::Position(lsn(9)), Window::Open), Some(lsn(9)));
    assert_eq!(needs(Evidence::Position(lsn(9)), Window::Over), Some(lsn(9)));
    // Of the latest write, only the time is known. Once the window is over, the earlier position remains.
    assert_eq!(needs(Evidence::Earlier(lsn(9)), Window::Open), None);
    assert_eq!(needs(Evidence::Earlier(lsn(9)), Window::Over), Some(lsn(9)));
}

#[test]
fn two_pins_make_one_that_stands_for_both() {
    use Evidence::*;

    for (earlier, later, both) in [
        (Nothing, Nothing, Nothing),
        (Position(lsn(9)), Nothing, Earlier(lsn(9))),
        (Nothing, Position(lsn(9)), Position(lsn(9))),
        (Position(lsn(9)), Position(lsn(7)), Position(lsn(9))),
        (Earlier(lsn(7)), Position(lsn(9)), Position(lsn(9))),
        (Position(lsn(9)), Earlier(lsn(7)), Earlier(lsn(9))),
    ] {
        let pin = |at, evidence: &Evidence| Pin { at, evidence: evidence.clone(), window: Window::Open };
        let (a, b) = (pin(NOW - 1.seconds(), &earlier), pin(NOW, &later));
        assert_eq!(a.clone().merge(b.clone()), pin(NOW, &both));
        assert_eq!(b.merge(a), pin(NOW, &both));
    }
}

#[test]
fn a_position_that_fits_no_cookie_stays_at_home() {
    let set = |sources: u32| {
        let text: Vec<_> = (1..=sources).map(|source| format!("{source:032x}:1-1000000")).collect();
        crate::position::Position::parse_gtid_set(&text.join(",")).unwrap()
    };
    let (small, large) = (set(46), set(47));
    assert!(fits(&small) && !fits(&large));
    let token = signer().sign(NOW, &Evidence::Position(small.clone()));
    assert!(token.len() <= MAX_ENCODED);
    assert_eq!(signer().read(&token, NOW).unwrap().evidence, Evidence::Position(small));
    assert_eq!(signer().read(&signer().sign(NOW, &Evidence::Position(large)), NOW).ok(), Some(by_time(NOW)));
}

#[test]
fn what_is_cut_off_a_position_is_nobodys() {
    let set = |text: &str| {
        let text = text.replace("a:", "00000000-0000-0000-0000-00000000000a:");
        let text = text.replace("b:", "00000000-0000-0000-0000-00000000000b:");
        crate::position::Position::parse_gtid_set(&text).unwrap()
    };
    let nothing = set("a:1").since(&set("a:1"));
    for (now, known, own, carried) in [
        ("a:1-900,b:1-50", "a:1-900,b:1-40", None, Some("b:41-50")),
        // A group whose members write blocks of their own, and fill gaps later.
        ("a:1-9:1001-1009", "a:1-3:5-9:1001-1007", None, Some("a:4:1008-1009")),
        // The client's own pin is younger than the known position, or as old.
        ("a:1-900,b:1-50", "a:1-900,b:1-40", Some("b:38-45"), Some("b:38-50")),
        ("a:1-900,b:1-50", "a:1-900,b:1-40", Some("a:890-900"), Some("a:890-900,b:41-50")),
        // Transactions that the former master has lost.
        ("a:1-900,b:1-50", "a:1-900,b:1-40", Some("a:899-905"), Some("a:899-900,b:41-50")),
        // No new writes.
        ("a:1-900", "a:1-900", None, None),
    ] {
        let carried = carried.map_or(nothing.clone(), set);
        assert_eq!(cut(&set(now), &set(known), own.map(set).as_ref()), carried, "{now} {known} {own:?}");
    }
}

#[test]
fn times_that_no_calendar_has_are_none() {
    for at in [i64::MIN, i64::MAX, -1, 0] {
        assert_eq!(signer().read(&token(VERSION, at, &[TIME]), NOW).ok(), None, "{at}");
    }
}

proptest! {
    #[test]
    fn no_text_panics_or_pins(text in "\\PC*") {
        prop_assert_eq!(signer().read(&text, NOW).ok(), None);
    }

    #[test]
    fn no_bytes_panic_or_pin(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert_eq!(signer().read(&URL_SAFE_NO_PAD.encode(bytes), NOW).ok(), None);
    }

    #[test]
    fn no_payload_panics(at in any::<i64>(), rest in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = signer().read(&token(VERSION, at, &rest), NOW);
    }

    #[test]
    fn making_and_reading_is_the_identity(ms in 0_i64..253_402_300_000_000, age in 0_i64..5_000) {
        let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).unwrap();
        let later = at.saturating_add(age.milliseconds());
        prop_assert_eq!(signer().read(&signer().sign(at, &Evidence::Nothing), later).ok(), Some(by_time(at)));
    }
}

/// Each refused pin has a cause, by which operators learn why it does not count.
#[test]
fn a_pin_that_is_not_believed_has_a_cause() {
    let token = signer().sign(NOW, &Evidence::Nothing);
    let refusal = |token: &str, now| signer().read(token, now).unwrap_err();
    assert_eq!(refusal(&token, NOW + 1.days()), PinRefusal::Expired);
    assert_eq!(refusal(&token, NOW - 1.days()), PinRefusal::Ahead);
    for text in ["", "A", "no token", &"A".repeat(MAX_ENCODED + 1), &"A".repeat(60)] {
        assert_eq!(refusal(text, NOW), PinRefusal::Forged, "{text}");
    }
    let lasts = Lasts {
        skew: Duration::from_secs(5),
        by_time: Duration::from_secs(5),
        max_age: Duration::from_secs(60),
    };
    let other = Signer::new(&Secret(vec![9; 32]), "blog", "blog_pin", lasts);
    assert_eq!(refusal(&other.sign(NOW, &Evidence::Nothing), NOW), PinRefusal::Foreign);
}
