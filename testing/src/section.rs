//! A lab as a section of `Rocket.toml`.

use rocket::figment::value::{Dict, Map, Value};
use rocket::figment::{Error, Metadata, Profile, Provider};

/// A section of a database, for a figment: the servers of a lab, called `master`, `slave-1`, `slave-2`, and so on.
///
/// Five keys differ from their defaults. `lag_window` is a minute, `max_lag` is `false`, and `check_timeout` and
/// `slave_timeout` are 5 seconds, so that a slow machine does not change which server is chosen. `server_timing` is
/// `true`, for [`served_by`](crate::served_by). [`with`](Self::with) sets these keys and others.
#[derive(Clone, Debug)]
pub struct Section {
    database: String,
    keys: Dict,
}

impl Section {
    pub(crate) fn new(database: &str, master: &str, slaves: &[String]) -> Self {
        let slave = |(number, url): (usize, &String)| server(&format!("slave-{number}"), url);
        let slaves: Vec<Value> = (1..).zip(slaves).map(slave).map(Value::from).collect();
        let section = Self { database: database.to_owned(), keys: server("master", master) };
        section
            .with("slaves", slaves)
            .with("check_timeout", 5)
            .with("lag_window", 60)
            .with("max_lag", false)
            .with("slave_timeout", 5)
            .with("server_timing", true)
    }

    /// Sets a key to this value, which may be a table.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.keys.insert(key.to_owned(), value.into());
        self
    }
}

fn server(name: &str, url: &str) -> Dict {
    Dict::from([("name".to_owned(), name.into()), ("url".to_owned(), url.into())])
}

/// Provides the section in the global profile, which takes precedence over all others.
impl Provider for Section {
    fn metadata(&self) -> Metadata {
        Metadata::named(format!("the lab of the database `{}`", self.database))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        let section = Dict::from([(self.database.clone(), self.keys.clone().into())]);
        let databases = Dict::from([("databases".to_owned(), section.into())]);
        Ok(Map::from([(Profile::Global, databases)]))
    }
}
