//! One table of the configuration, read by key.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use rocket::figment::Profile;
use rocket::figment::value::{Dict, Value};
use serde::de::DeserializeOwned;

use super::ReadShare;
use crate::spelling::most_alike;

/// The longest time that a key can be set to, in seconds.
pub(super) const DAY: f64 = 86_400.0;

/// An error in the configuration: what is wrong, where, and how to correct it.
///
/// Shows profile, database and key. A value is shown only if it is a short word where one of a few names is expected,
/// so that a URL with a password is never shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConfigError {
    key: String,
    problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.key, self.problem)
    }
}

impl std::error::Error for ConfigError {}

/// The path of a table, as messages name it.
#[derive(Clone, Debug)]
pub(super) struct Place(String);

impl Place {
    pub(super) fn profile(profile: &Profile) -> Self {
        Self(profile.to_string())
    }

    /// The place of a table in this one.
    pub(super) fn inner(&self, key: &str) -> Self {
        Self(format!("{}.{key}", self.0))
    }

    /// An error about one of the table's keys.
    pub(super) fn error(&self, key: &str, problem: impl Into<String>) -> ConfigError {
        self.inner(key).wrong(problem)
    }

    /// An error about the table itself.
    pub(super) fn wrong(&self, problem: impl Into<String>) -> ConfigError {
        ConfigError { key: self.0.clone(), problem: problem.into() }
    }
}

/// A limit in time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Limit {
    Auto,
    Never,
    Seconds(Duration),
}

/// The names that other libraries give to our keys.
const ALIASES: &[(&str, &[&str])] = &[
    ("url", &["master", "primary", "writer", "master_url", "primary_url"]),
    ("slaves", &["replicas", "replica", "slave", "standbys", "readers", "read_replicas", "secondaries"]),
    ("slave_timeout", &["replica_timeout"]),
    ("lag_window", &["window", "lag", "delay"]),
    ("max_lag", &["max_replication_lag", "max_replica_lag", "lag_limit"]),
    ("check_interval", &["health_check_interval", "probe_interval"]),
    ("zone", &["availability_zone", "az", "region"]),
    ("local_threshold", &["local_threshold_ms", "latency_window", "max_latency"]),
    ("max_connections", &["pool_size", "max_size"]),
    ("connect_timeout", &["timeout", "acquire_timeout"]),
    (
        "slow_statement",
        &["log_slow_statements", "log_min_duration_statement", "long_query_time", "slow_query"],
    ),
];

/// Keys of a slave that are easily put into the section by mistake.
const OF_SLAVES: &[&str] = &["discover", "follow", "logical", "weight"];

/// A table during [`Table::read`].
pub(super) struct Table<'a> {
    place: &'a Place,
    dict: &'a Dict,
    asked: Vec<&'static str>,
    ignored: Vec<String>,
    /// The first problem with a value.
    problem: Option<ConfigError>,
}

impl<'a> Table<'a> {
    /// Reads a table: `read` asks for its keys, and every key that was not asked for is refused.
    ///
    /// Values come out only after that check, so that no key can be accepted without being read. A key with a problem
    /// reads as if it were absent. The problem is reported after `read` has asked for everything, because an unknown
    /// key is the likelier cause: a misspelt `url` should not be called missing.
    pub(super) fn read<T>(
        place: &'a Place,
        dict: &'a Dict,
        read: impl FnOnce(&mut Self) -> T,
    ) -> Result<T, ConfigError> {
        let mut table = Self { place, dict, asked: Vec::new(), ignored: Vec::new(), problem: None };
        let values = read(&mut table);
        match table.unknown_key().or(table.problem) {
            Some(problem) => Err(problem),
            None => Ok(values),
        }
    }

    fn unknown_key(&self) -> Option<ConfigError> {
        let is_known = |key: &String| self.asked.contains(&key.as_str()) || self.ignored.contains(key);
        let key = self.dict.keys().find(|key| !is_known(key))?;
        let alias = ALIASES
            .iter()
            .find(|(ours, theirs)| self.asked.contains(ours) && theirs.contains(&key.as_str()))
            .map(|(ours, _)| *ours);
        let alike = || most_alike(key, self.asked.iter().copied());
        let is_a_slaves = self.asked.contains(&"slaves") && OF_SLAVES.contains(&key.as_str());
        let problem = match alias.or_else(alike) {
            _ if is_a_slaves => {
                format!("unknown key: it belongs to a slave, as in `slaves = [{{ url = …, {key} = … }}]`")
            }
            Some(ours) => format!("unknown key: did you mean `{ours}`?"),
            None => format!("unknown key: the keys here are `{}`", self.asked.join("`, `")),
        };
        Some(self.place.error(key, problem))
    }

    /// The value of a key. All other methods read values through this one.
    fn value(&mut self, key: &'static str) -> Option<&'a Value> {
        if !self.asked.contains(&key) {
            self.asked.push(key);
        }
        self.dict.get(key)
    }

    /// Notes a problem with a key that has been asked for.
    pub(super) fn refuse(&mut self, key: &'static str, problem: impl Into<String>) {
        if self.problem.is_none() {
            self.problem = Some(self.place.error(key, problem));
        }
    }

    fn refuse_value<T>(&mut self, key: &'static str, expected: &str, found: &str) -> Option<T> {
        self.refuse(key, format!("expected {expected}, found {found}"));
        None
    }

    fn get<T: DeserializeOwned>(&mut self, key: &'static str, expected: &str) -> Option<T> {
        self.get_or(key, expected, found)
    }

    fn get_or<T: DeserializeOwned>(
        &mut self,
        key: &'static str,
        expected: &str,
        found: fn(&Value) -> String,
    ) -> Option<T> {
        let value = self.value(key)?;
        value.deserialize().ok().or_else(|| self.refuse_value(key, expected, &found(value)))
    }

    pub(super) fn string(&mut self, key: &'static str) -> Option<String> {
        self.get(key, "a string")
    }

    pub(super) fn strings(&mut self, key: &'static str) -> Option<Vec<String>> {
        self.get(key, "an array of strings")
    }

    pub(super) fn bool(&mut self, key: &'static str) -> Option<bool> {
        self.get(key, "`true` or `false`")
    }

    /// One of the names of an enum; `expected` lists them.
    pub(super) fn choice<T: DeserializeOwned>(&mut self, key: &'static str, expected: &str) -> Option<T> {
        self.get_or(key, expected, |value| match value {
            Value::String(_, word) if is_word(word) => format!("`\"{word}\"`"),
            _ => found(value),
        })
    }

    pub(super) fn number(&mut self, key: &'static str, range: RangeInclusive<u32>) -> Option<u32> {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        self.within(key, range, &expected)
    }

    pub(super) fn seconds(&mut self, key: &'static str, range: RangeInclusive<f64>) -> Option<Duration> {
        let expected = format!("seconds, from {} to {}", range.start(), range.end());
        self.within(key, range, &expected).map(Duration::from_secs_f64)
    }

    fn within<T>(&mut self, key: &'static str, range: RangeInclusive<T>, expected: &str) -> Option<T>
    where
        T: DeserializeOwned + PartialOrd + fmt::Display,
    {
        let number: T = self.get(key, expected)?;
        if range.contains(&number) {
            return Some(number);
        }
        self.refuse_value(key, expected, &number.to_string())
    }

    /// A limit in seconds. The default may also be asked for by name, and the limit may be switched off.
    pub(super) fn limit(&mut self, key: &'static str) -> Limit {
        const EXPECTED: &str = "seconds, `\"auto\"` or `false`";

        match self.value(key) {
            None => Limit::Auto,
            Some(Value::String(_, auto)) if auto == "auto" => Limit::Auto,
            Some(Value::Bool(_, false)) => Limit::Never,
            Some(Value::Num(..)) => self.seconds(key, 0.0..=DAY).map_or(Limit::Auto, Limit::Seconds),
            Some(value) => self.refuse_value(key, EXPECTED, &found(value)).unwrap_or(Limit::Auto),
        }
    }

    /// Seconds from which on something is done, or `false`, so that it never is. [`Limit::Auto`] if the key is absent.
    pub(super) fn threshold(&mut self, key: &'static str) -> Limit {
        match self.value(key) {
            None => Limit::Auto,
            Some(Value::Bool(_, false)) => Limit::Never,
            Some(Value::Num(..)) => self.seconds(key, 0.0..=DAY).map_or(Limit::Auto, Limit::Seconds),
            Some(value) => self.refuse_value(key, "seconds or `false`", &found(value)).unwrap_or(Limit::Auto),
        }
    }

    /// The share of reads that go to slaves.
    pub(super) fn share(&mut self, key: &'static str) -> Option<ReadShare> {
        const EXPECTED: &str = "`\"auto\"`, `\"asked\"` or a number from 0 to 1";

        match self.value(key)? {
            Value::String(_, word) if word == "auto" => Some(ReadShare::ALL),
            Value::String(_, word) if word == "asked" => Some(ReadShare::ASKED),
            Value::Num(..) => self.within(key, 0.0..=1.0, EXPECTED).map(ReadShare::of_clients),
            value => self.refuse_value(key, EXPECTED, &found(value)),
        }
    }

    pub(super) fn array(&mut self, key: &'static str, expected: &str) -> Option<&'a [Value]> {
        match self.value(key)? {
            Value::Array(_, values) => Some(values),
            value => self.refuse_value(key, expected, &found(value)),
        }
    }

    pub(super) fn table(&mut self, key: &'static str) -> Option<&'a Dict> {
        match self.value(key)? {
            Value::Dict(_, dict) => Some(dict),
            value => self.refuse_value(key, "a table", &found(value)),
        }
    }

    /// Reads a list of keys that belong to other libraries and are ignored.
    pub(super) fn ignore(&mut self, key: &'static str) {
        self.ignored = self.strings(key).unwrap_or_default();
    }
}

/// True if a text may be shown where a name is expected: it is as short and plain as a name.
fn is_word(text: &str) -> bool {
    text.len() <= 12 && text.bytes().all(|byte| byte.is_ascii_alphabetic() || matches!(byte, b'_' | b'-'))
}

/// Describes a value for messages. Shows it in full only where it cannot hold a password.
pub(super) fn found(value: &Value) -> String {
    match value {
        Value::String(..) | Value::Char(..) => "a string".into(),
        Value::Bool(..) => "a boolean".into(),
        Value::Num(..) => value.to_actual().to_string(),
        Value::Empty(..) => "nothing".into(),
        Value::Dict(..) => "a table".into(),
        Value::Array(..) => "an array".into(),
    }
}
