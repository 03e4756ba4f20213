use super::*;

#[test]
fn no_window_no_pins() {
    let config = read("slaves = [\"postgres://db-2/blog\"]\nlag_window = 0").unwrap();
    assert!(config.pin.is_none());
}

#[test]
fn pins_with_a_position_last_longer() {
    let max_age = |keys: &str| {
        let config = read(&format!("slaves = [\"postgres://db-2/blog\"]\n{keys}")).unwrap();
        let pin = config.pin.unwrap();
        assert_eq!(pin.cookie.max_age, pin.max_age);
        (config.consistency, pin.max_age.as_secs())
    };
    assert_eq!(max_age(""), (Consistency::Window, 5));
    assert_eq!(max_age("consistency = \"position\""), (Consistency::Position, 60));
    assert_eq!(max_age("consistency = \"position\"\nlag_window = 90"), (Consistency::Position, 90));
    assert_eq!(max_age("consistency = \"position\"\npin.max_age = 30"), (Consistency::Position, 30));

    // Where lag is not noticed, a window protects no client.
    let by_time = |keys: &str| {
        let keys = format!("slaves = [\"postgres://db-2/blog\"]\nconsistency = \"position\"\n{keys}");
        read(&keys).unwrap().pin.unwrap().by_time.as_secs()
    };
    assert_eq!(["max_lag = 3", "max_lag = 4", "max_lag = false", ""].map(by_time), [5, 60, 60, 60]);
    assert_eq!(by_time("max_lag = 3\nunknown_lag = \"use\""), 60);

    refuses(
        "consistency = \"position\"\npin.max_age = 3",
        "pin.max_age`: must not be below `lag_window`, which is 5",
    );
    refuses(
        "pin.max_age = 30",
        "pin.max_age`: without `consistency = \"position\"` a pin ends with the `lag_window`",
    );
    refuses(
        "consistency = \"strong\"",
        "consistency`: expected `\"window\"` or `\"position\"`, found `\"strong\"`",
    );
}

#[test]
fn cookies_that_no_browser_would_keep() {
    refuses(
        "pin = { name = \"a b\" }",
        "pin.name`: expected a cookie name: ASCII letters, digits, `_`, `-` and `.`",
    );
    refuses(
        "pin = { name = \"\" }",
        "pin.name`: expected a cookie name: ASCII letters, digits, `_`, `-` and `.`",
    );
    refuses(
        "pin = { path = \"app\" }",
        "pin.path`: expected a path that begins with `/`, without `;` or blanks",
    );
    refuses(
        "pin = { path = \"/;x\" }",
        "pin.path`: expected a path that begins with `/`, without `;` or blanks",
    );
    refuses(
        "pin = { domain = \"a;b\" }",
        "pin.domain`: expected a domain name, as in `example.org`: no scheme, port, IP address, `;` or blanks",
    );
    refuses(
        "pin = { same_site = \"none\" }",
        "pin.same_site`: browsers drop a `none` cookie without `secure = true`: add it",
    );
    refuses(
        "pin = { same_site = \"some\" }",
        "pin.same_site`: expected `\"lax\"`, `\"strict\"` or `\"none\"`, found `\"some\"`",
    );
    refuses(
        "pin = { name = \"__Secure-pin\" }",
        "pin.name`: browsers drop a cookie with this prefix without `secure = true`: add it",
    );
    refuses(
        "pin = { name = \"__Host-pin\", secure = true, path = \"/app\" }",
        "pin.name`: a `__Host-` cookie has `path = \"/\"` and no `domain`",
    );
    assert!(read("pin = { name = \"__Host-pin\", secure = true }").is_ok());
    refuses(
        "pin = { header = \"X Pin\" }",
        "pin.header`: expected a header's name, as in `X-Replicated-Pin`",
    );
}

#[test]
fn a_release_with_slaves_needs_a_key() {
    let read = |key: &str| {
        let toml = format!(
            "[default]\n{key}\n[default.databases.blog]\nurl = \"postgres://db-1/blog\"\n\
             slaves = [\"postgres://db-2/blog\"]"
        );
        Config::read::<Driver>(&figment("release", &toml), "blog").map_err(|error| error.to_string())
    };
    assert_eq!(
        read("").unwrap_err(),
        "`release.secret_key`: missing: pins are signed with it, and every server of the application must have \
         the same; generate one with `openssl rand -base64 32`"
    );
    assert_eq!(
        read("secret_key = \"short\"").unwrap_err(),
        "`release.secret_key`: expected 44 or 88 characters of base64, 64 of hex, or 32 bytes and more; \
         generate one with `openssl rand -base64 32`"
    );
    assert_eq!(
        read("secret_key = \"hPRYyVRiMyxpw5sBB1XeCMN1kFsDCqKvBi2QJxBVHQk=\"").unwrap_err(),
        "`release.secret_key`: the example key of Rocket's documentation is no secret; \
         generate one with `openssl rand -base64 32`"
    );
    let key = format!("secret_key = \"{}\"", "ab".repeat(32));
    assert!(read(&key).unwrap().pin.unwrap().insecure);
    let secured = format!("{key}\n[release.databases.blog.pin]\nsecure = true");
    assert!(!read(&secured).unwrap().pin.unwrap().insecure);
}

#[test]
fn a_debug_build_needs_none_but_refuses_a_bad_one() {
    assert!(read("slaves = [\"postgres://db-2/blog\"]").is_ok());
    let toml = "[default]\nsecret_key = \"short\"\n[default.databases.blog]\nurl = \"postgres://db-1/blog\"\n\
                slaves = [\"postgres://db-2/blog\"]";
    assert!(Config::read::<Driver>(&figment("debug", toml), "blog").is_err());
}

#[test]
fn previous_keys_are_keys() {
    const REMEDY: &str = "spell it as `secret_key` was spelt when pins were signed with it, or remove it";

    let slaves = "slaves = [\"postgres://db-2/blog\"]";
    let good = format!("[\"{}\", {:?}]", "ab".repeat(32), [7; 32]);
    let pin = read(&format!("{slaves}\npin.previous_keys = {good}")).unwrap().pin.unwrap();
    assert_eq!(pin.previous_secrets.len(), 2);
    let shown = format!("{pin:?}");
    assert!(!shown.contains("abab") && !shown.contains("7, 7") && !shown.contains("171"), "{shown}");
    assert!(
        read(&format!("{slaves}\npin.previous_keys = []")).unwrap().pin.unwrap().previous_secrets.is_empty()
    );

    refuses(
        "pin.previous_keys = \"hunter2\"",
        "pin.previous_keys`: expected an array of keys, found a string",
    );
    for (key, problem) in [
        ("\"hunter2\"", "expected 44 or 88 characters of base64, 64 of hex, or 32 bytes and more"),
        ("[1, 2]", "shorter than 32 bytes"),
        ("true", "expected a string or an array of bytes"),
        (
            "\"hPRYyVRiMyxpw5sBB1XeCMN1kFsDCqKvBi2QJxBVHQk=\"",
            "the example key of Rocket's documentation is no secret",
        ),
        (&format!("\"{}\"", "0".repeat(64)), "a key of zeros is no secret"),
    ] {
        // Pins are checked even where clients are not pinned.
        for slaves in [slaves, ""] {
            let section = format!("{slaves}\npin.previous_keys = [\"{}\", {key}]", "ab".repeat(32));
            refuses(&section, &format!("pin.previous_keys[1]`: {problem}; {REMEDY}"));
        }
    }
}

#[test]
fn a_domain_is_a_name_and_nothing_else() {
    for domain in ["example.org", ".example.org", "xn--bcher-kva.example", "localhost", "3com.com", "a-b.C"] {
        let config = read(&format!("pin = {{ domain = \"{domain}\" }}\nslaves = [\"postgres://db-2/blog\"]"));
        assert_eq!(config.unwrap().pin.unwrap().cookie.domain.as_deref(), Some(domain));
    }
    let long = format!("{}.org", "a".repeat(64));
    let longer = ["abcdefghi"; 26].join(".");
    for domain in [
        "",
        ".",
        "..org",
        "a b",
        "example.org:8000",
        "https://example.org",
        "example.org/",
        "example.org.",
        "example..org",
        "-a.org",
        "a-.org",
        "a_b.org",
        "bücher.example",
        "127.0.0.1",
        "[::1]",
        "::1",
        "*.example.org",
        &long,
        &longer,
    ] {
        refuses(
            &format!("pin = {{ domain = \"{domain}\" }}"),
            "pin.domain`: expected a domain name, as in `example.org`: no scheme, port, IP address, `;` or blanks",
        );
    }
}

#[test]
fn a_header_that_means_something_else() {
    for header in [
        "Set-Cookie",
        "cookie",
        "LOCATION",
        "Content-Type",
        "Content-Length",
        "Content-Encoding",
        "Transfer-Encoding",
        "Connection",
        "Host",
        "Date",
        "Authorization",
        "Cache-Control",
        "Server",
        "Vary",
        "ETag",
        "Retry-After",
        "Accept",
        "Accept-Language",
        "If-None-Match",
        "Access-Control-Allow-Origin",
        "X-Frame-Options",
        "X-Forwarded-For",
        "X-Real-IP",
    ] {
        refuses(
            &format!("pin = {{ header = \"{header}\" }}"),
            "pin.header`: HTTP or Rocket gives this header a meaning: choose another, as in `X-Replicated-Pin`",
        );
    }
    for header in ["X-Replicated-Pin", "Pin", "Accepted", "X-Server", "Dates"] {
        assert!(read(&format!("pin = {{ header = \"{header}\" }}")).is_ok(), "{header}");
    }

    let toml = "[default]\nip_header = \"X-Client\"\n[default.databases.blog]\nurl = \"postgres://db-1/blog\"\n\
                pin = { header = \"x-client\" }";
    let error = Config::read::<Driver>(&figment("debug", toml), "blog").unwrap_err().to_string();
    assert!(error.starts_with("`debug.databases.blog.pin.header`: "), "{error}");
}

#[test]
fn two_databases_do_not_share_a_pin() {
    let names = |database, cookie: &str, header: Option<&str>| {
        let mut pin = read("slaves = [\"postgres://db-2/blog\"]").unwrap().pin.unwrap();
        pin.cookie.name = cookie.into();
        pin.header = header.map(str::to_owned);
        PinNames::new(database, &pin)
    };
    let check = |a: &PinNames, b: &PinNames| a.check(&figment("debug", ""), b).map_err(|e| e.to_string());
    let blog = names("blog", "pin", Some("X-Pin"));
    for shop in [names("shop", "Pin", None), names("shop", "shop_pin", Some("X-Shop"))] {
        assert_eq!(check(&shop, &blog), Ok(()));
        assert_eq!(check(&blog, &shop), Ok(()));
    }
    assert_eq!(check(&names("shop", "a", None), &names("blog", "b", None)), Ok(()));
    assert_eq!(check(&blog, &blog.clone()), Ok(()), "two types for one section");
    assert_eq!(
        check(&names("shop", "pin", None), &blog).unwrap_err(),
        "`debug.databases.shop.pin.name`: the pins of the database `blog` have this cookie: give one of them another"
    );
    assert_eq!(
        check(&names("shop", "shop_pin", Some("x-pin")), &blog).unwrap_err(),
        "`debug.databases.shop.pin.header`: the pins of the database `blog` have this header: give one of them another"
    );
}
