//! One table of the configuration, whose values are asked for by key.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use rocket::figment::Profile;
use rocket::figment::value::{Dict, Value};
use serde::de::DeserializeOwned;

use super::DAY;

/// What is wrong with the configuration, where, and what to do about it.
///
/// Shows profile, database and key, but never a value: it may hold a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConfigError {
    key: String,
    problem: String,
}

impl ConfigError {
    pub(super) fn new(profile: &Profile, key: &str, problem: impl Into<String>) -> Self {
        Self { key: format!("{profile}.{key}"), problem: problem.into() }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.key, self.problem)
    }
}

impl std::error::Error for ConfigError {}

/// A limit in time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Limit {
    Auto,
    Never,
    Seconds(Duration),
}

/// What people call our keys elsewhere.
const ALIASES: &[(&str, &[&str])] = &[
    ("url", &["master", "primary", "writer", "master_url", "primary_url"]),
    ("slaves", &["replicas", "replica", "slave", "standbys", "readers", "read_replicas", "secondaries"]),
    ("slave_timeout", &["replica_timeout"]),
    ("lag_window", &["window", "lag", "delay", "sticky"]),
    ("max_lag", &["max_replication_lag", "max_replica_lag", "lag_limit"]),
    ("check_interval", &["health_check_interval", "probe_interval"]),
    ("max_connections", &["pool_size", "max_size"]),
    ("connect_timeout", &["timeout", "acquire_timeout"]),
];

/// Less alike than this, and a suggestion would be a guess.
const ALIKE: f64 = 0.6;

pub(super) struct Table<'a> {
    profile: &'a Profile,
    path: String,
    dict: &'a Dict,
}

impl<'a> Table<'a> {
    pub(super) fn new(profile: &'a Profile, path: String, dict: &'a Dict) -> Self {
        Self { profile, path, dict }
    }

    pub(super) fn inner<'b>(&self, key: &str, dict: &'b Dict) -> Table<'b>
    where
        'a: 'b,
    {
        Table { profile: self.profile, path: format!("{}.{key}", self.path), dict }
    }

    pub(super) fn error(&self, key: &str, problem: impl Into<String>) -> ConfigError {
        ConfigError::new(self.profile, &format!("{}.{key}", self.path), problem)
    }

    /// Refuses keys that are neither `known` nor `ignored`.
    pub(super) fn check_keys(
        &self,
        known: &[&[&'static str]],
        ignored: &[String],
    ) -> Result<(), ConfigError> {
        let known: Vec<&str> = known.concat();
        for key in self.dict.keys() {
            if known.contains(&key.as_str()) || ignored.contains(key) {
                continue;
            }
            let alias = ALIASES
                .iter()
                .find(|(ours, theirs)| known.contains(ours) && theirs.contains(&key.as_str()))
                .map(|(ours, _)| *ours);
            let alike = || {
                let alike = |ours: &str| strsim::normalized_damerau_levenshtein(ours, key);
                known
                    .iter()
                    .copied()
                    .filter(|ours| alike(ours) >= ALIKE)
                    .max_by(|a, b| alike(a).total_cmp(&alike(b)))
            };
            return Err(self.error(
                key,
                match alias.or_else(alike) {
                    Some(ours) => format!("unknown key: did you mean `{ours}`?"),
                    None => format!("unknown key: the keys here are `{}`", known.join("`, `")),
                },
            ));
        }
        Ok(())
    }

    fn get<T: DeserializeOwned>(&self, key: &str, expected: &str) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.dict.get(key) else { return Ok(None) };
        let parsed = value
            .deserialize()
            .map_err(|_| self.error(key, format!("expected {expected}, found {}", found(value))))?;
        Ok(Some(parsed))
    }

    pub(super) fn string(&self, key: &str) -> Result<Option<String>, ConfigError> {
        self.get(key, "a string")
    }

    pub(super) fn strings(&self, key: &str) -> Result<Option<Vec<String>>, ConfigError> {
        self.get(key, "an array of strings")
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        self.get(key, "`true` or `false`")
    }

    /// One of the names of an enum; `expected` lists them.
    pub(super) fn choice<T: DeserializeOwned>(
        &self,
        key: &str,
        expected: &str,
    ) -> Result<Option<T>, ConfigError> {
        self.get(key, expected)
    }

    pub(super) fn number(&self, key: &str, least: u32, most: u32) -> Result<Option<u32>, ConfigError> {
        let expected = format!("a whole number from {least} to {most}");
        let number = self.get(key, &expected)?;
        self.within(key, number, least..=most, &expected)
    }

    pub(super) fn seconds(&self, key: &str, least: f64, most: f64) -> Result<Option<Duration>, ConfigError> {
        let expected = format!("seconds, from {least} to {most}");
        let seconds = self.get(key, &expected)?;
        let seconds = self.within(key, seconds, least..=most, &expected)?;
        Ok(seconds.map(Duration::from_secs_f64))
    }

    /// A limit that may be left to us, or be none.
    pub(super) fn limit(&self, key: &str) -> Result<Limit, ConfigError> {
        match self.dict.get(key) {
            None => Ok(Limit::Auto),
            Some(Value::String(_, auto)) if auto == "auto" => Ok(Limit::Auto),
            Some(Value::Bool(_, false)) => Ok(Limit::Never),
            Some(Value::Num(..)) => Ok(self.seconds(key, 0.0, DAY)?.map_or(Limit::Auto, Limit::Seconds)),
            Some(value) => {
                let problem = format!("expected seconds, `\"auto\"` or `false`, found {}", found(value));
                Err(self.error(key, problem))
            }
        }
    }

    fn within<T: PartialOrd + fmt::Display>(
        &self,
        key: &str,
        number: Option<T>,
        range: RangeInclusive<T>,
        expected: &str,
    ) -> Result<Option<T>, ConfigError> {
        match number {
            Some(number) if !range.contains(&number) => {
                Err(self.error(key, format!("expected {expected}, found {number}")))
            }
            number => Ok(number),
        }
    }

    pub(super) fn array(&self, key: &str, expected: &str) -> Result<Option<&'a [Value]>, ConfigError> {
        match self.dict.get(key) {
            None => Ok(None),
            Some(Value::Array(_, values)) => Ok(Some(values)),
            Some(value) => Err(self.error(key, format!("expected {expected}, found {}", found(value)))),
        }
    }

    /// The table at `key`, or `default`.
    pub(super) fn table<'b>(&self, key: &str, default: &'b Dict) -> Result<Table<'b>, ConfigError>
    where
        'a: 'b,
    {
        match self.dict.get(key) {
            None => Ok(self.inner(key, default)),
            Some(Value::Dict(_, dict)) => Ok(self.inner(key, dict)),
            Some(value) => Err(self.error(key, format!("expected a table, found {}", found(value)))),
        }
    }
}

/// A value, for messages: in full only where it cannot hold a password.
fn found(value: &Value) -> String {
    match value {
        Value::String(..) | Value::Char(..) => "a string".into(),
        Value::Bool(..) => "a boolean".into(),
        Value::Num(..) => value.to_actual().to_string(),
        Value::Empty(..) => "nothing".into(),
        Value::Dict(..) => "a table".into(),
        Value::Array(..) => "an array".into(),
    }
}
