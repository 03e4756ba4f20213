use rocket::figment::providers::{Format, Toml};
use rocket::http::SameSite;

use super::*;

fn figment(profile: &str, toml: &str) -> Figment {
    Figment::from(rocket::Config::debug_default())
        .merge(Toml::string(toml).nested())
        .select(profile.to_owned())
}

#[cfg(feature = "postgres")]
mod postgres {
    use super::*;

    type Driver = sqlx::Postgres;

    fn read(section: &str) -> Result<Config, String> {
        let toml = format!("[debug.databases.blog]\nurl = \"postgres://app:hunter2@db-1/blog\"\n{section}");
        Config::read::<Driver>(&figment("debug", &toml), "blog").map_err(|error| error.to_string())
    }

    #[track_caller]
    fn refuses(section: &str, message: &str) {
        let error = read(section).expect_err(section);
        assert_eq!(error, format!("`debug.databases.blog.{message}"), "{section}");
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn the_example_is_accepted() {
        let figment = figment("debug", include_str!("../../examples/blog/Rocket.toml"));
        for (name, window) in [("blog", 5), ("stats", 1)] {
            let config = Config::read::<Driver>(&figment, name).unwrap();
            assert_eq!(config.pin.unwrap().lag_window, Duration::from_secs(window), "{name}");
        }
    }

    #[test]
    fn the_defaults() {
        let config = read("slaves = [\"postgres://app:hunter2@db-2/blog\"]").unwrap();
        let max = config.master.settings.max_connections;
        assert_eq!(max as usize, rocket::Config::debug_default().workers * 4);
        assert_eq!(config.master.settings.connect_timeout, Duration::from_secs(5));
        assert_eq!(config.master_reads.settings.max_connections, (max / 4).max(2));
        assert_eq!(config.slave_timeout, Duration::from_secs(1));
        assert_eq!(config.read_from_slaves, ReadFromSlaves::Auto);
        assert_eq!(config.read_methods, ReadMethods::default());
        assert_eq!(config.pinned_without_master, PinnedWithoutMaster::Stale);
        assert_eq!(config.refused_write, RefusedWrite::Error);
        let pin = config.pin.unwrap();
        assert_eq!(pin.lag_window, Duration::from_secs(5));
        assert_eq!(pin.cookie.name, "blog_pin");
        assert_eq!(pin.cookie.path, "/");
        assert_eq!(pin.cookie.same_site, SameSite::Lax);
        assert!(!pin.cookie.secure && pin.cookie.domain.is_none());
    }

    #[test]
    fn without_slaves_all_connections_may_read_at_the_master_and_nobody_is_pinned() {
        let config = read("max_connections = 10").unwrap();
        assert_eq!((config.master_reads.settings.max_connections, config.reserve), (10, 0));
        assert!(config.pin.is_none());
    }

    #[test]
    fn a_quarter_of_the_reads_at_the_master_is_reserved() {
        for (connections, reserve) in [(1, 0), (2, 1), (7, 1), (8, 2), (40, 10)] {
            let config = read(&format!(
                "slaves = [\"postgres://db-2/blog\"]\nmaster_read_connections = {connections}"
            ));
            assert_eq!(config.unwrap().reserve, reserve, "{connections}");
        }
    }

    #[test]
    fn no_window_no_pins() {
        let config = read("slaves = [\"postgres://db-2/blog\"]\nlag_window = 0").unwrap();
        assert!(config.pin.is_none());
    }

    #[test]
    fn a_lag_is_noticed_before_the_window_is_over() {
        let max_lag = |keys: &str| {
            let config = read(&format!("slaves = [\"postgres://db-2/blog\"]\n{keys}")).unwrap();
            config.checks.max_lag.map(|max| max.as_secs_f64())
        };
        for (keys, max) in [
            ("", Some(3.0)),
            ("max_lag = \"auto\"", Some(3.0)),
            ("max_lag = 2.5", Some(2.5)),
            ("max_lag = false", None),
            ("lag_window = 60", Some(58.0)),
            ("lag_window = 2\ncheck_interval = 0.5\ncheck_timeout = 0.25", Some(1.25)),
            ("lag_window = 2\nmax_lag = false", None),
            ("lag_window = 0", None),
            ("lag_window = 0\nmax_lag = 30", Some(30.0)),
            ("consistency = \"position\"\nmax_lag = 30", Some(30.0)),
        ] {
            assert_eq!(max_lag(keys), max, "{keys}");
        }
        assert_eq!(read("").unwrap().checks.max_lag, None);

        let slaves = "slaves = [\"postgres://db-2/blog\"]";
        let remedy =
            "raise `lag_window`, shorten `check_interval` and `check_timeout`, or say `max_lag = false`";
        for (keys, problem) in [
            (
                "max_lag = 4",
                format!(
                    "must not exceed `lag_window` less `check_interval` and `check_timeout`, which is 3: {remedy}"
                ),
            ),
            (
                "lag_window = 2",
                format!("with `lag_window` = 2, a lag cannot be noticed before the window is over: {remedy}"),
            ),
            ("max_lag = 0.5", "must not be below `check_interval`, which is 1".into()),
            ("max_lag = true", "expected seconds, `\"auto\"` or `false`, found a boolean".into()),
            ("max_lag = \"2\"", "expected seconds, `\"auto\"` or `false`, found a string".into()),
            ("max_lag = -1", "expected seconds, from 0 to 86400, found -1".into()),
        ] {
            refuses(&format!("{slaves}\n{keys}"), &format!("max_lag`: {problem}"));
        }
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

        // Where no lag is noticed, a window is no protection.
        let by_time = |keys: &str| {
            let keys = format!("slaves = [\"postgres://db-2/blog\"]\nconsistency = \"position\"\n{keys}");
            read(&keys).unwrap().pin.unwrap().by_time.as_secs()
        };
        assert_eq!(["", "max_lag = 3", "max_lag = 4", "max_lag = false"].map(by_time), [5, 5, 60, 60]);

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
            "consistency`: expected `\"window\"` or `\"position\"`, found a string",
        );
    }

    #[test]
    fn slaves_inherit_and_override() {
        let config = read(
            "max_connections = 10\nmin_connections = 3\nidle_timeout = 60\nprepared_statements = false\n\
             slaves = [\"postgres://db-2/blog\", \
                       { url = \"postgres://db-3/blog\", name = \"big\", weight = 3, max_connections = 20, \
                         min_connections = 1, prepared_statements = true, enforce_read_only = false }]",
        )
        .unwrap();
        let [small, big] = &config.slaves[..] else { panic!("{config:?}") };
        assert_eq!((&*small.node.name, small.weight), ("db-2", 1));
        assert_eq!((&*big.node.name, big.weight), ("big", 3));
        let settings = [&small.node.settings, &big.node.settings].map(|settings| {
            let Settings { max_connections, min_connections, prepared_statements, enforce_read_only, .. } =
                settings;
            (*max_connections, *min_connections, *prepared_statements, *enforce_read_only)
        });
        assert_eq!(settings, [(10, 0, false, true), (20, 1, true, false)]);
        assert_eq!(big.node.settings.idle_timeout, Some(Duration::from_secs(60)));
    }

    #[test]
    fn nodes_are_named_by_host_and_by_port_where_they_share_it() {
        let names = |section: &str| -> Vec<String> {
            let config = read(section).unwrap();
            std::iter::once(config.master.name)
                .chain(config.slaves.into_iter().map(|slave| slave.node.name))
                .collect()
        };
        assert_eq!(names("slaves = [\"postgres://db-2/blog\"]"), ["db-1", "db-2"]);
        assert_eq!(
            names(
                "slaves = [\"postgres://DB-2:1/blog\", \"postgres://db-2:2/blog\", \"postgres://[::1]/blog\"]"
            ),
            ["db-1", "db-2-1", "db-2-2", "1"],
        );
        refuses(
            "slaves = [\"postgres://db-2/blog\", \"postgres://db-2/blog\"]",
            "slaves[1]`: a second node named `db-2-5432`: \
             name it, as in `{ url = …, name = \"db-2-5432-2\" }`",
        );
    }

    #[test]
    fn unknown_keys_are_refused_with_the_likely_one() {
        refuses("slavs = []", "slavs`: unknown key: did you mean `slaves`?");
        refuses("replicas = []", "replicas`: unknown key: did you mean `slaves`?");
        refuses("primary = \"x\"", "primary`: unknown key: did you mean `url`?");
        refuses("lag_windw = 1", "lag_windw`: unknown key: did you mean `lag_window`?");
        refuses(
            "slaves = [{ url = \"postgres://db-2/blog\", wieght = 2 }]",
            "slaves[0].wieght`: unknown key: did you mean `weight`?",
        );
        refuses(
            "pin = { colour = 1 }",
            "pin.colour`: unknown key: the keys here are `name`, `domain`, `path`, `same_site`, `secure`, \
             `header`, `max_age`",
        );
        assert!(read("ignore = [\"statement_timeout\"]\nstatement_timeout = 3").is_ok());
    }

    #[test]
    fn values_of_the_wrong_kind_or_size_are_refused() {
        refuses(
            "slaves = \"postgres://app:hunter2@db-2/blog\"",
            "slaves`: expected an array of URLs or of tables with a `url`, found a string",
        );
        refuses("slaves = [7]", "slaves[0]`: expected a URL or a table with a `url`");
        refuses("slaves = [{ name = \"b\" }]", "slaves[0].url`: missing: the URL of this slave");
        refuses(
            "slaves = [{ url = \"postgres://db-2/blog\", name = \"B 2\" }]",
            "slaves[0].name`: expected letters `a` to `z`, digits, `_`, `.` and `-`",
        );
        refuses(
            "slaves = [{ url = \"postgres://db-2/blog\", weight = 0 }]",
            "slaves[0].weight`: expected a whole number from 1 to 1000, found 0",
        );
        refuses(
            "slaves = [{ url = \"postgres://db-2/blog\", follow = 2 }]",
            "slaves[0].follow`: PostgreSQL replicates by itself: remove the key",
        );
        let many = vec!["\"postgres://db-2/blog\""; 65].join(", ");
        refuses(&format!("slaves = [{many}]"), "slaves`: 65 are too many: 64 at most");

        refuses("lag_window = -1", "lag_window`: expected seconds, from 0 to 86400, found -1");
        refuses("lag_window = 1e9", "lag_window`: expected seconds, from 0 to 86400, found 1000000000");
        refuses("lag_window = nan", "lag_window`: expected seconds, from 0 to 86400, found NaN");
        refuses("lag_window = \"5s\"", "lag_window`: expected seconds, from 0 to 86400, found a string");
        refuses("slave_timeout = 0", "slave_timeout`: expected seconds, from 0.001 to 3600, found 0");
        refuses("max_connections = 0", "max_connections`: expected a whole number from 1 to 10000, found 0");
        refuses(
            "max_connections = -3",
            "max_connections`: expected a whole number from 1 to 10000, found signed int `-3`",
        );
        refuses(
            "max_connections = 1.5",
            "max_connections`: expected a whole number from 1 to 10000, found float `1.5`",
        );
        refuses(
            "max_connections = 2\nmin_connections = 3",
            "min_connections`: must not exceed `max_connections`, which is 2",
        );
        refuses(
            "master_read_connections = 0",
            "master_read_connections`: expected a whole number from 1 to 10000, found 0",
        );
        refuses(
            "enforce_read_only = 1",
            "enforce_read_only`: expected `true` or `false`, found signed int `1`",
        );
        refuses(
            "read_from_slaves = \"never\"",
            "read_from_slaves`: expected `\"auto\"` or `\"asked\"`, found a string",
        );
        refuses(
            "pinned_without_master = true",
            "pinned_without_master`: expected `\"stale\"` or `\"fail\"`, found a boolean",
        );
        refuses(
            "refused_write = \"retry\"",
            "refused_write`: expected `\"error\"` or `\"reroute\"`, found a string",
        );
        refuses("pin = \"x\"", "pin`: expected a table, found a string");
    }

    #[test]
    fn urls_are_refused_without_being_quoted() {
        refuses(
            "slaves = [\"mysql://app:hunter2@db-2/blog\"]",
            "slaves[0]`: the URL is not one of PostgreSQL: it must begin with `postgres://` or `postgresql://`",
        );
        refuses(
            "slaves = [{ url = \"mysql://app:hunter2@db-2/blog\" }]",
            "slaves[0].url`: the URL is not one of PostgreSQL: it must begin with `postgres://` or `postgresql://`",
        );
        refuses(
            "read_url = \"postgres://app:hunter2@db-1:port/blog\"",
            "read_url`: the URL cannot be read: invalid port number",
        );
        refuses("slaves = [\"db-2\"]", "slaves[0]`: the URL cannot be read: relative URL without a base");
    }

    #[test]
    fn a_section_that_is_missing_or_no_table() {
        let read =
            |toml: &str| Config::read::<Driver>(&figment("debug", toml), "blog").unwrap_err().to_string();
        assert_eq!(
            read(""),
            "`debug.databases.blog`: missing: add to Rocket.toml\n\n    [debug.databases.blog]\n    \
             url = \"postgres://…\"\n"
        );
        assert_eq!(read("[debug.databases]\nblog = 7"), "`debug.databases.blog`: expected a table");
        assert_eq!(
            read("[debug.databases.blog]\nslaves = []"),
            "`debug.databases.blog.url`: missing: the URL of the master"
        );
        assert_eq!(
            read("[debug.databases.blog]\nurl = 7"),
            "`debug.databases.blog.url`: expected a string, found signed int `7`"
        );
    }

    #[test]
    fn read_methods_come_in_pairs_where_rocket_pairs_them() {
        let methods = |names: &str| read(&format!("read_methods = {names}"));
        assert_eq!(
            methods("[\"GET\", \"HEAD\"]").unwrap().read_methods,
            ReadMethods(vec![Method::Get, Method::Head])
        );
        refuses(
            "read_methods = [\"GET\"]",
            "read_methods`: `GET` and `HEAD` only together: Rocket serves HEAD by GET routes",
        );
        refuses(
            "read_methods = [\"FETCH\"]",
            "read_methods`: expected names of HTTP methods, as in `[\"GET\", \"HEAD\"]`",
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
        refuses("pin = { domain = \"a;b\" }", "pin.domain`: expected a domain name, without `;` or blanks");
        refuses(
            "pin = { same_site = \"none\" }",
            "pin.same_site`: browsers drop a `none` cookie without `secure = true`: add it",
        );
        refuses(
            "pin = { same_site = \"some\" }",
            "pin.same_site`: expected `\"lax\"`, `\"strict\"` or `\"none\"`, found a string",
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
    fn nothing_shows_a_password() {
        let config = read(
            "read_url = \"postgres://app:hunter2@db-1:6432/blog\"\n\
             slaves = [\"postgres://app:hunter2@db-2/blog\"]",
        );
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    #[allow(clippy::result_large_err)] // figment's own signature
    fn profiles_and_the_environment_override_as_in_rocket() {
        let toml = "[default.databases.blog]\nurl = \"postgres://db-1/blog\"\nlag_window = 1\n\
                    slaves = [\"postgres://db-2/blog\"]\nmax_lag = false\n[staging.databases.blog]\nlag_window = 2\n\
                    [staging]\nsecret_key = \"abababababababababababababababababababababababababababababababab\"";
        let window =
            |figment: &Figment| Config::read::<Driver>(figment, "blog").unwrap().pin.unwrap().lag_window;
        assert_eq!(window(&figment("debug", toml)), Duration::from_secs(1));
        assert_eq!(window(&figment("staging", toml)), Duration::from_secs(2));
        rocket::figment::Jail::expect_with(|jail| {
            jail.set_env("ROCKET_DATABASES", "{blog={lag_window=0.25}}");
            jail.create_file("Rocket.toml", toml)?;
            assert_eq!(window(&rocket::Config::figment()), Duration::from_millis(250));
            Ok(())
        });
    }
}

#[cfg(feature = "sqlite")]
mod sqlite {
    use super::*;

    fn read(section: &str) -> Result<Config, String> {
        let toml = format!("[debug.databases.blog]\n{section}");
        Config::read::<sqlx::Sqlite>(&figment("debug", &toml), "blog").map_err(|error| error.to_string())
    }

    #[test]
    fn the_example_is_accepted() {
        let config =
            Config::read::<sqlx::Sqlite>(&figment("debug", include_str!("../../Rocket.toml")), "replicated");
        assert_eq!(config.unwrap().slaves[0].follow, Some(Duration::from_secs(2)));
    }

    #[test]
    fn one_writer_and_a_follower() {
        let config = read(
            "url = \"sqlite://var/Blog.db\"\nmax_connections = 12\nmin_connections = 2\n\
             slaves = [{ url = \"var/slave.db\", follow = 0.5 }]",
        )
        .unwrap();
        assert_eq!(config.master.name, "blog.db");
        assert_eq!((config.master.settings.max_connections, config.master.settings.min_connections), (1, 1));
        assert_eq!(config.master_reads.settings.max_connections, 3);
        let slave = &config.slaves[0];
        assert_eq!((&*slave.node.name, slave.follow), ("slave.db", Some(Duration::from_millis(500))));
        assert_eq!(slave.node.settings.max_connections, 12);
    }

    #[test]
    fn urls_that_cannot_serve() {
        assert_eq!(
            read("url = \"postgres://app:hunter2@db-1/blog\"").unwrap_err(),
            "`debug.databases.blog.url`: the URL is not one of SQLite: it must begin with `sqlite://`"
        );
        for url in [":memory:", "sqlite::memory:", "sqlite://x.db?mode=memory"] {
            assert_eq!(
                read(&format!("url = \"{url}\"")).unwrap_err(),
                "`debug.databases.blog.url`: an in-memory database cannot be shared between pools: name a file"
            );
        }
    }

    #[test]
    fn who_was_promoted_only_postgresql_proves() {
        assert_eq!(
            read("url = \"a.db\"\nfollow_promotion = true").unwrap_err(),
            "`debug.databases.blog.follow_promotion`: SQLite offers no proof of who was promoted: remove the key"
        );
    }

    #[test]
    fn a_follower_has_a_period_and_a_file_of_its_own() {
        assert_eq!(
            read("url = \"a.db\"\nslaves = [{ url = \"b.db\", follow = 3 }]").unwrap_err(),
            "`debug.databases.blog.slaves[0].follow`: must be below `max_lag`, which is 3: raise `lag_window`, \
             shorten `check_interval` and `check_timeout`, or say `max_lag = false`"
        );
        assert_eq!(
            read("url = \"a.db\"\nslaves = [{ url = \"b.db\", follow = 0 }]").unwrap_err(),
            "`debug.databases.blog.slaves[0].follow`: expected seconds, from 0.01 to 86400, found 0"
        );
        assert_eq!(
            read("url = \"a.db\"\nslaves = [{ url = \"sqlite:a.db\", name = \"b\", follow = 2 }]")
                .unwrap_err(),
            "`debug.databases.blog.slaves[0].follow`: the slave is the master's own file"
        );
        assert_eq!(
            read("url = \"a.db\"\nslaves = [{ url = \"src/../a.db\", name = \"b\", follow = 2 }]")
                .unwrap_err(),
            "`debug.databases.blog.slaves[0].follow`: the slave is the master's own file"
        );
        let same = "{ url = \"b.db\", name = \"b1\" }, { url = \"./b.db\", name = \"b2\", follow = 2 }";
        assert_eq!(
            read(&format!("url = \"a.db\"\nslaves = [{same}]")).unwrap_err(),
            "`debug.databases.blog.slaves[1].follow`: another slave has the same file"
        );
    }
}
