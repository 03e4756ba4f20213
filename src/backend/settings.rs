use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use super::{Driver, Options};

/// How to connect to one server.
#[doc(hidden)]
#[derive(Clone, Debug)]
pub struct Settings {
    pub(crate) url: DatabaseUrl,
    /// Where to connect to, in place of what the URL's host stands for.
    pub(crate) connect_to: Option<IpAddr>,
    pub(crate) min_connections: u32,
    pub(crate) max_connections: u32,
    pub(crate) connect_timeout: Duration,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) extensions: Vec<String>,
    pub(crate) enforce_read_only: bool,
    pub(crate) prepared_statements: bool,
}

/// A URL that may hold a password, so that it is never shown.
#[derive(Clone)]
pub(crate) struct DatabaseUrl(pub(crate) String);

impl DatabaseUrl {
    /// As the driver's options; or what is wrong with it, without quoting it.
    pub(crate) fn parse_as<DB: Driver>(&self) -> Result<Options<DB>, String> {
        if let Some((scheme, _)) = self.0.split_once("://")
            && !DB::URL_SCHEMES.contains(&scheme)
        {
            let ours = DB::URL_SCHEMES.join("://` or `");
            return Err(format!("the URL is not one of {}: it must begin with `{ours}://`", DB::NAME));
        }
        Options::<DB>::from_str(&self.0).map_err(|error| match error {
            sqlx::Error::Configuration(error) => format!("the URL cannot be read: {error}"),
            _ => "the URL cannot be read".into(),
        })
    }

    #[cfg(feature = "sqlite")]
    pub(crate) fn mentions_memory(&self) -> bool {
        self.0.contains(":memory:") || self.0.contains("mode=memory")
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}
