use super::*;

#[test]
fn a_lag_that_is_not_known_excludes_where_lags_guard_the_window() {
    let slaves = "slaves = [\"postgres://db-2/blog\", { url = \"postgres://db-3/blog\", logical = true }]";
    for (keys, excluded) in [
        ("", [true, false]),
        ("max_lag = false", [false, false]),
        ("lag_window = 0", [false, false]),
        ("consistency = \"position\"", [false, false]),
        ("consistency = \"position\"\nmax_lag = 3", [true, false]),
        ("unknown_lag = \"use\"", [false, false]),
        ("unknown_lag = \"leave_out\"", [true, true]),
        ("unknown_lag = \"leave_out\"\nconsistency = \"position\"", [true, true]),
    ] {
        let Config { checks, slaves, .. } = read(&format!("{slaves}\n{keys}")).unwrap();
        let found: Vec<_> = slaves.iter().map(|slave| checks.unknown_lag.excludes(slave.log)).collect();
        assert_eq!(found, excluded, "{keys}");
    }
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
        ("consistency = \"position\"", Some(60.0)),
        ("consistency = \"position\"\nmax_lag = \"auto\"\nlag_window = 2", Some(60.0)),
        ("consistency = \"position\"\nlag_window = 0", Some(60.0)),
        ("consistency = \"position\"\nmax_lag = false", None),
        ("consistency = \"position\"\ncheck_interval = 90", Some(90.0)),
    ] {
        assert_eq!(max_lag(keys), max, "{keys}");
    }
    assert_eq!(read("").unwrap().checks.max_lag, None);

    let slaves = "slaves = [\"postgres://db-2/blog\"]";
    let remedy = "raise `lag_window`, shorten `check_interval` and `check_timeout`, or say `max_lag = false`";
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
