//! The keys of a pool, which the section and each slave's table have.

use std::time::Duration;

use super::ServerConfig;
use super::table::{ConfigError, DAY, Limit, Place, Table};
use crate::backend::settings::Settings;
use crate::backend::url::DatabaseUrl;
use crate::backend::{Access, Driver};

impl Settings {
    /// The settings of a pool where nothing is configured.
    pub(super) fn defaults(workers: usize) -> Self {
        Self {
            url: DatabaseUrl(String::new()),
            connect_to: None,
            min_connections: 0,
            max_connections: u32::try_from(workers * 4).unwrap_or(u32::MAX).clamp(1, 10_000),
            connect_timeout: Duration::from_secs(5),
            idle_timeout: None,
            extensions: Vec::new(),
            enforce_read_only: true,
            prepared_statements: true,
            slow_statement: Some(Duration::from_secs(1)),
        }
    }

    /// Reads the URL of `server`, which is required, and the keys by which a table overrides `inherited` settings.
    pub(super) fn read(table: &mut Table<'_>, server: &str, inherited: &Settings) -> Self {
        let i = inherited.clone();
        let url = table.string("url");
        if url.is_none() {
            table.refuse("url", format!("missing: the URL of {server}"));
        }
        let settings = Self {
            url: url.map_or(i.url, DatabaseUrl),
            connect_to: None,
            min_connections: table.number("min_connections", 0..=10_000).unwrap_or(i.min_connections),
            max_connections: table.number("max_connections", 1..=10_000).unwrap_or(i.max_connections),
            connect_timeout: table.seconds("connect_timeout", 0.001..=3_600.0).unwrap_or(i.connect_timeout),
            idle_timeout: table.seconds("idle_timeout", 0.001..=30.0 * DAY).or(i.idle_timeout),
            extensions: table.strings("extensions").unwrap_or(i.extensions),
            enforce_read_only: table.bool("enforce_read_only").unwrap_or(i.enforce_read_only),
            prepared_statements: table.bool("prepared_statements").unwrap_or(i.prepared_statements),
            slow_statement: match table.threshold("slow_statement") {
                Limit::Auto => i.slow_statement,
                Limit::Never => None,
                Limit::Seconds(slow) => Some(slow),
            },
        };
        if settings.min_connections > settings.max_connections {
            let problem = format!("must not exceed `max_connections`, which is {}", settings.max_connections);
            table.refuse("min_connections", problem);
        }
        settings
    }
}

impl ServerConfig {
    /// Makes a server without a name. `url_key` is the key of its URL.
    pub(super) fn new<DB: Driver>(
        place: &Place,
        url_key: &str,
        settings: Settings,
        access: Access,
    ) -> Result<Self, ConfigError> {
        let options = DB::options(&settings, access).map_err(|problem| place.error(url_key, problem))?;
        let [database, user] =
            [DB::database(&options), DB::user(&options)].map(|part| part.map(str::to_owned));
        Ok(Self { name: String::new(), address: DB::address(&options), database, user, settings })
    }

    /// True if both URLs lead to the same database of the same server. Host names are not resolved: their addresses may
    /// change, and launch must not wait for a name server.
    pub(super) fn is_same_place(&self, other: &Self) -> bool {
        let (ours, theirs) = (&self.address, &other.address);
        let is_path = ours.host.contains('/');
        let same_host = ours.host == theirs.host || !is_path && ours.host.eq_ignore_ascii_case(&theirs.host);
        same_host && ours.port == theirs.port && self.database == other.database
    }

    /// True if both URLs lead to the same place as the same user. Proxies send some users to the master and others to
    /// slaves (ProxySQL's `default_hostgroup`, PlanetScale's `|replica`). The monitor finds out where each leads.
    pub(super) fn is_same_way(&self, other: &Self) -> bool {
        self.is_same_place(other) && self.user == other.user
    }
}
