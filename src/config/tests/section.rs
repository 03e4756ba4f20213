use rocket::http::SameSite;

use super::*;

#[test]
fn the_example_is_accepted() {
    let figment = figment("debug", include_str!("../../../examples/blog/Rocket.toml"));
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
    assert_eq!((config.read_from_slaves, config.affinity), (ReadShare::ALL, Affinity::None));
    assert_eq!(config.checks.unknown_lag, UnknownLag::Unexpected);
    assert_eq!(config.read_methods, ReadMethods::default());
    assert_eq!(config.pinned_without_master, PinnedWithoutMaster::Stale);
    assert_eq!(config.refused_write, RefusedWrite::Error);
    assert_eq!(config.master.settings.slow_statement, Some(Duration::from_secs(1)));
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
        let config =
            read(&format!("slaves = [\"postgres://db-2/blog\"]\nmaster_read_connections = {connections}"));
        assert_eq!(config.unwrap().reserve, reserve, "{connections}");
    }
}

#[test]
fn statements_are_slow_from_a_time_on_or_never() {
    for (value, slow) in
        [("0.2", Some(Duration::from_millis(200))), ("0", Some(Duration::ZERO)), ("false", None)]
    {
        let config = read(&format!("slow_statement = {value}\nslaves = [\"postgres://db-2/blog\"]")).unwrap();
        for server in [&config.master, &config.master_reads, &config.slaves[0].server] {
            assert_eq!(server.settings.slow_statement, slow, "{value}");
        }
    }
    for value in ["true", "\"auto\""] {
        let found = if value == "true" { "a boolean" } else { "a string" };
        let message = format!("slow_statement`: expected seconds or `false`, found {found}");
        refuses(&format!("slow_statement = {value}"), &message);
    }
    refuses("slow_statement = -1", "slow_statement`: expected seconds, from 0 to 86400, found -1");
    refuses("log_slow_statements = 1", "log_slow_statements`: unknown key: did you mean `slow_statement`?");
}

#[test]
fn unknown_keys_are_refused_with_the_likely_one() {
    for key in ["discover", "follow", "logical", "weight"] {
        let remedy = format!(
            "{key}`: unknown key: it belongs to a slave, as in `slaves = [{{ url = …, {key} = … }}]`"
        );
        refuses(&format!("{key} = 1"), &remedy);
    }
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
         `header`, `max_age`, `previous_keys`",
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
        "slaves = [{ url = \"postgres://db-2/blog\", weight = 1001 }]",
        "slaves[0].weight`: expected a whole number from 0 to 1000, found 1001",
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
    refuses("enforce_read_only = 1", "enforce_read_only`: expected `true` or `false`, found signed int `1`");
    refuses(
        "read_from_slaves = \"never\"",
        "read_from_slaves`: expected `\"auto\"`, `\"asked\"` or a number from 0 to 1, found a string",
    );
    refuses(
        "read_from_slaves = 10",
        "read_from_slaves`: expected `\"auto\"`, `\"asked\"` or a number from 0 to 1, found 10",
    );
    refuses("sticky = \"address\"", "sticky`: expected `true` or `false`, found a string");
    refuses("unknown_lag = true", "unknown_lag`: expected `\"use\"` or `\"leave_out\"`, found a boolean");
    refuses(
        "slaves = [{ url = \"postgres://db-2/blog\", logical = 1 }]",
        "slaves[0].logical`: expected `true` or `false`, found signed int `1`",
    );
    refuses(
        "pinned_without_master = true",
        "pinned_without_master`: expected `\"stale\"` or `\"fail\"`, found a boolean",
    );
    refuses(
        "refused_write = \"retry\"",
        "refused_write`: expected `\"error\"` or `\"reroute\"`, found `\"retry\"`",
    );
    refuses(
        "refused_write = \"hunter2\"",
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
    refuses(
        "slaves = [\"db-2\"]",
        "slaves[0]`: this is no URL: write `postgres://USER:PASSWORD@HOST:PORT/DATABASE`",
    );
}

#[test]
fn a_section_that_is_missing_or_no_table() {
    let read = |toml: &str| Config::read::<Driver>(&figment("debug", toml), "blog").unwrap_err().to_string();
    assert_eq!(
        read(""),
        "`debug.databases.blog`: missing: add to Rocket.toml\n\n    [default.databases.blog]\n    \
         url = \"postgres://…\"\n"
    );
    assert_eq!(
        read("[debug]\ndatabases = \"{blog={url=postgres://app:hunter2@db-1/blog}}\""),
        "`debug.databases`: expected a table, found a string: in the environment, write \
         `ROCKET_DATABASES='{blog={url=\"postgres://…\"}}'`"
    );
    assert_eq!(
        read("[debug.databases]\nblog = 7"),
        "`debug.databases.blog`: expected a table: add instead to Rocket.toml\n\n    [default.databases.blog]\n    \
         url = \"postgres://…\"\n"
    );
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
fn the_reads_that_go_to_slaves_are_a_share_of_all() {
    for (value, share) in [
        ("\"auto\"", ReadShare::ALL),
        ("\"asked\"", ReadShare::ASKED),
        ("0.1", ReadShare::of_clients(0.1)),
        ("0", ReadShare::ASKED),
        ("1", ReadShare::ALL),
    ] {
        let config = read(&format!("read_from_slaves = {value}\nsticky = true")).unwrap();
        assert_eq!((config.read_from_slaves, config.affinity), (share, Affinity::Address), "{value}");
    }
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
    let window = |figment: &Figment| Config::read::<Driver>(figment, "blog").unwrap().pin.unwrap().lag_window;
    assert_eq!(window(&figment("debug", toml)), Duration::from_secs(1));
    assert_eq!(window(&figment("staging", toml)), Duration::from_secs(2));
    rocket::figment::Jail::expect_with(|jail| {
        jail.set_env("ROCKET_DATABASES", "{blog={lag_window=0.25}}");
        jail.create_file("Rocket.toml", toml)?;
        assert_eq!(window(&rocket::Config::figment()), Duration::from_millis(250));
        Ok(())
    });
}

#[test]
fn a_misspelt_key_is_not_called_missing() {
    let toml = "[debug.databases.blog]\nprimary = \"postgres://app:hunter2@db-1/blog\"\nlag_window = \"x\"";
    assert_eq!(
        Config::read::<Driver>(&figment("debug", toml), "blog").unwrap_err().to_string(),
        "`debug.databases.blog.primary`: unknown key: did you mean `url`?"
    );
    refuses(
        "slaves = [{ master = \"postgres://db-2/blog\" }]",
        "slaves[0].master`: unknown key: did you mean `url`?",
    );
}

#[test]
fn the_reply_tells_who_served_in_the_debug_profile_alone() {
    let of = |profile: &str, key: &str| {
        let toml = format!("[{profile}.databases.blog]\nurl = \"postgres://db-1/blog\"\n{key}");
        Config::read::<Driver>(&figment(profile, &toml), "blog").unwrap().server_timing
    };
    assert_eq!((of("debug", ""), of("release", "")), (ServerTiming::Sent, ServerTiming::Omitted));
    assert_eq!(of("debug", "server_timing = false"), ServerTiming::Omitted);
    assert_eq!(of("release", "server_timing = true"), ServerTiming::Sent);
    refuses("server_timing = 1", "server_timing`: expected `true` or `false`, found signed int `1`");
}

#[test]
fn the_master_has_a_name_of_its_own() {
    let config = read("name = \"main\"\nslaves = [\"postgres://db-2/blog\"]").unwrap();
    assert_eq!((&*config.master.name, &*config.master_reads.name), ("main", "main"));
    assert_eq!(read("").unwrap().master.name, "db-1");
    refuses("name = \"Main\"", "name`: expected letters `a` to `z`, digits, `_`, `.` and `-`");
    refuses(
        "name = \"db-2\"\nslaves = [\"postgres://db-2/blog\"]",
        "slaves[0]`: a second node named `db-2`: name it, as in `{ url = …, name = \"db-2-2\" }`",
    );
}
