//! The section `[<profile>.databases.<name>]`, read and checked.
//!
//! Strict: what this module does not understand is an error at launch that names profile, key and
//! remedy. It never repeats a value, which may be a URL with its password.

use std::str::FromStr;
use std::time::Duration;

use rocket::figment::Figment;
use rocket::figment::value::{Dict, Value};
use rocket::http::Method;
use serde::Deserialize;

use crate::backend::settings::{DatabaseUrl, Settings};
use crate::backend::{Access, Address, Driver};
use crate::pin::{PinConfig, Secret};
use crate::position::Lag;

mod cookie;
mod table;

use cookie::{is_token, read_cookie};
use table::{ConfigError, Limit, Table};

/// So many that a set of them fits a machine word.
pub(crate) const MAX_SLAVES: usize = 64;

const DAY: f64 = 86_400.0;

const POOL_KEYS: &[&str] = &[
    "url",
    "min_connections",
    "max_connections",
    "connect_timeout",
    "idle_timeout",
    "extensions",
    "enforce_read_only",
    "prepared_statements",
];

const SECTION_KEYS: &[&str] = &[
    "slaves",
    "lag_window",
    "consistency",
    "catch_up_timeout",
    "max_lag",
    "check_interval",
    "check_timeout",
    "follow_promotion",
    "read_from_slaves",
    "read_methods",
    "master_read_connections",
    "read_url",
    "pinned_without_master",
    "refused_write",
    "slave_timeout",
    "pin",
    "ignore",
];

const SLAVE_KEYS: &[&str] = &["name", "weight", "follow"];

const PIN_KEYS: &[&str] = &["name", "domain", "path", "same_site", "secure", "header", "max_age"];

/// Everything about one database, ready to be opened.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) master: NodeConfig,
    /// The master's settings for reads: `read_url`, `master_read_connections`.
    pub(crate) master_reads: NodeConfig,
    /// How many of the connections for reads at the master are kept for pinned reads.
    pub(crate) reserve: u32,
    pub(crate) slaves: Vec<SlaveConfig>,
    pub(crate) slave_timeout: Duration,
    pub(crate) read_from_slaves: ReadFromSlaves,
    pub(crate) read_methods: ReadMethods,
    pub(crate) pinned_without_master: PinnedWithoutMaster,
    pub(crate) refused_write: RefusedWrite,
    pub(crate) checks: Checks,
    pub(crate) consistency: Consistency,
    pub(crate) catch_up_timeout: Duration,
    /// `None`: nobody is pinned, because there is nothing to be protected from.
    pub(crate) pin: Option<PinConfig>,
}

#[derive(Debug)]
pub(crate) struct NodeConfig {
    pub(crate) name: String,
    pub(crate) address: Address,
    pub(crate) settings: Settings,
}

#[derive(Debug)]
pub(crate) struct SlaveConfig {
    pub(crate) node: NodeConfig,
    pub(crate) weight: u32,
    pub(crate) follow: Option<Duration>,
}

/// How the servers are looked at, and what is made of it.
#[derive(Clone, Debug)]
pub(crate) struct Checks {
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
    /// `None`: no slave is left out for it.
    pub(crate) max_lag: Option<Duration>,
    pub(crate) follow_promotion: bool,
}

impl Checks {
    /// Whether a slave that lags longer than a window is noticed before that is over. What a probe says
    /// is true for `check_interval` and `check_timeout` at most, until the next one: a client whose window
    /// is over may read from a slave that was within `max_lag` that long ago.
    fn guard(&self, window: Duration) -> bool {
        self.max_lag.is_some_and(|max| max <= window.saturating_sub(self.interval + self.timeout))
    }

    pub(crate) fn is_too_much(&self, lag: Lag) -> bool {
        match (lag, self.max_lag) {
            (_, None) => false,
            (Lag::AtMost(lag), Some(max)) => lag > max,
            (Lag::MoreThan(_), Some(_)) => true,
        }
    }
}

/// `consistency`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Consistency {
    Window,
    Position,
}

/// `read_from_slaves`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ReadFromSlaves {
    Auto,
    Asked,
    /// Said by an operator at run time.
    #[serde(skip)]
    Never,
}

/// `pinned_without_master`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PinnedWithoutMaster {
    Stale,
    Fail,
}

/// `refused_write`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RefusedWrite {
    Error,
    Reroute,
}

/// The methods whose requests only read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReadMethods(Vec<Method>);

impl ReadMethods {
    pub(crate) fn contains(&self, method: Method) -> bool {
        self.0.contains(&method)
    }
}

impl Default for ReadMethods {
    /// The safe methods: <https://www.rfc-editor.org/rfc/rfc9110#section-9.2.1>.
    fn default() -> Self {
        Self(vec![Method::Get, Method::Head, Method::Options, Method::Trace])
    }
}

impl Settings {
    /// The pool keys of a table, each of which overrides the `inherited` one.
    fn read(table: &Table<'_>, inherited: &Settings) -> Result<Settings, ConfigError> {
        let i = inherited.clone();
        let settings = Settings {
            url: table.string("url")?.map_or(i.url, DatabaseUrl),
            min_connections: table.number("min_connections", 0, 10_000)?.unwrap_or(i.min_connections),
            max_connections: table.number("max_connections", 1, 10_000)?.unwrap_or(i.max_connections),
            connect_timeout: table.seconds("connect_timeout", 0.001, 3_600.0)?.unwrap_or(i.connect_timeout),
            idle_timeout: table.seconds("idle_timeout", 0.001, 30.0 * DAY)?.or(i.idle_timeout),
            extensions: table.strings("extensions")?.unwrap_or(i.extensions),
            enforce_read_only: table.bool("enforce_read_only")?.unwrap_or(i.enforce_read_only),
            prepared_statements: table.bool("prepared_statements")?.unwrap_or(i.prepared_statements),
        };
        if settings.min_connections > settings.max_connections {
            let problem = format!("must not exceed `max_connections`, which is {}", settings.max_connections);
            return Err(table.error("min_connections", problem));
        }
        Ok(settings)
    }
}

impl Config {
    /// Reads the section of the database `name`.
    pub(crate) fn read<DB: Driver>(figment: &Figment, name: &str) -> Result<Self, ConfigError> {
        let path = format!("databases.{name}");
        let profile = figment.profile().clone();
        let dict = match figment.find_value(&path) {
            Ok(Value::Dict(_, dict)) => dict,
            Ok(_) => return Err(ConfigError::new(&profile, &path, "expected a table")),
            Err(_) => {
                let problem = format!(
                    "missing: add to Rocket.toml\n\n    [{profile}.{path}]\n    url = \"{}://…\"\n",
                    DB::URL_SCHEMES[0],
                );
                return Err(ConfigError::new(&profile, &path, problem));
            }
        };
        let section = Table::new(&profile, path, &dict);
        Self::read_section::<DB>(figment, name, &section)
    }

    fn read_section<DB: Driver>(
        figment: &Figment,
        name: &str,
        section: &Table<'_>,
    ) -> Result<Self, ConfigError> {
        let ignored = section.strings("ignore")?.unwrap_or_default();
        section.check_keys(&[POOL_KEYS, SECTION_KEYS], &ignored)?;

        let workers: usize = figment
            .extract_inner(rocket::Config::WORKERS)
            .unwrap_or_else(|_| rocket::Config::default().workers);
        let url =
            section.string("url")?.ok_or_else(|| section.error("url", "missing: the URL of the master"))?;
        let settings = Settings::read(
            section,
            &Settings {
                url: DatabaseUrl(url),
                min_connections: 0,
                max_connections: u32::try_from(workers * 4).unwrap_or(u32::MAX).clamp(1, 10_000),
                connect_timeout: Duration::from_secs(5),
                idle_timeout: None,
                extensions: Vec::new(),
                enforce_read_only: true,
                prepared_statements: true,
            },
        )?;

        let mut slaves = read_slaves::<DB>(section, &settings)?;
        let mut master = NodeConfig::new::<DB>(section, "url", settings.clone(), Access::ReadWrite)?;
        name_nodes(section, &mut master, &mut slaves)?;
        check_followers(section, &master, &slaves)?;

        let read_connections = section.number("master_read_connections", 1, 10_000)?.unwrap_or_else(|| {
            let all = master.settings.max_connections;
            if slaves.is_empty() { all } else { (all / 4).max(2) }
        });
        // Only where slaves can fail is there a crowd to be kept out.
        let reserve =
            if slaves.is_empty() || read_connections == 1 { 0 } else { (read_connections / 4).max(1) };
        let read_url = section.string("read_url")?.map(DatabaseUrl);
        let read_url_key = if read_url.is_some() { "read_url" } else { "url" };
        let read_settings = Settings {
            url: read_url.unwrap_or(settings.url),
            max_connections: read_connections,
            min_connections: 0,
            ..master.settings.clone()
        };
        let mut master_reads =
            NodeConfig::new::<DB>(section, read_url_key, read_settings, Access::ReadMaster)?;
        master_reads.name.clone_from(&master.name);

        if DB::ONE_WRITER {
            master.settings.max_connections = 1;
            master.settings.min_connections = master.settings.min_connections.min(1);
        }

        let lag_window = section.seconds("lag_window", 0.0, DAY)?.unwrap_or(Duration::from_secs(5));
        let consistency =
            section.choice("consistency", "`\"window\"` or `\"position\"`")?.unwrap_or(Consistency::Window);
        let checks = read_checks::<DB>(section, &slaves, lag_window, consistency)?;
        let empty = Dict::new();
        let pin_table = section.table("pin", &empty)?;
        pin_table.check_keys(&[PIN_KEYS], &[])?;
        let max_age = read_max_age(&pin_table, consistency, lag_window)?;
        let cookie = read_cookie(figment, &pin_table, name, max_age)?;
        let header = pin_table.string("header")?;
        if header.as_ref().is_some_and(|name| !is_token(name)) {
            return Err(pin_table.error("header", "expected a header's name, as in `X-Replicated-Pin`"));
        }
        let pin = if slaves.is_empty() || lag_window.is_zero() {
            None
        } else {
            let debug = figment.profile() == rocket::Config::DEBUG_PROFILE;
            let insecure = !debug && !cookie.secure && pin_table.bool("secure")?.is_none();
            let secret = read_secret(figment)?;
            // A time is enough where no slave further behind is read from.
            let by_time = match consistency {
                Consistency::Position if !checks.guard(lag_window) => max_age,
                _ => lag_window,
            };
            Some(PinConfig { lag_window, by_time, max_age, cookie, header, secret, insecure })
        };

        Ok(Self {
            master,
            master_reads,
            reserve,
            slaves,
            slave_timeout: section
                .seconds("slave_timeout", 0.001, 3_600.0)?
                .unwrap_or(Duration::from_secs(1)),
            read_from_slaves: section
                .choice("read_from_slaves", "`\"auto\"` or `\"asked\"`")?
                .unwrap_or(ReadFromSlaves::Auto),
            read_methods: read_methods(section)?,
            pinned_without_master: section
                .choice("pinned_without_master", "`\"stale\"` or `\"fail\"`")?
                .unwrap_or(PinnedWithoutMaster::Stale),
            refused_write: section
                .choice("refused_write", "`\"error\"` or `\"reroute\"`")?
                .unwrap_or(RefusedWrite::Error),
            checks,
            consistency,
            catch_up_timeout: section
                .seconds("catch_up_timeout", 0.0, 60.0)?
                .unwrap_or(Duration::from_millis(50)),
            pin,
        })
    }
}

impl NodeConfig {
    fn new<DB: Driver>(
        table: &Table<'_>,
        url_key: &str,
        settings: Settings,
        access: Access,
    ) -> Result<Self, ConfigError> {
        let options = DB::options(&settings, access).map_err(|problem| table.error(url_key, problem))?;
        Ok(Self { name: String::new(), address: DB::address(&options), settings })
    }
}

fn read_slaves<DB: Driver>(section: &Table<'_>, master: &Settings) -> Result<Vec<SlaveConfig>, ConfigError> {
    const EXPECTED: &str = "an array of URLs or of tables with a `url`";

    let Some(values) = section.array("slaves", EXPECTED)? else { return Ok(Vec::new()) };
    if values.len() > MAX_SLAVES {
        return Err(section.error("slaves", format!("{} are too many: {MAX_SLAVES} at most", values.len())));
    }

    // `min_connections` concerns the read-write pool.
    let inherited = Settings { min_connections: 0, ..master.clone() };
    let slave = |(index, value): (usize, &Value)| {
        let key = format!("slaves[{index}]");
        match value {
            Value::String(_, url) => {
                let settings = Settings { url: DatabaseUrl(url.clone()), ..inherited.clone() };
                let node = NodeConfig::new::<DB>(section, &key, settings, Access::ReadSlave)?;
                Ok(SlaveConfig { node, weight: 1, follow: None })
            }
            Value::Dict(_, dict) => read_slave::<DB>(&section.inner(&key, dict), &inherited),
            _ => Err(section.error(&key, "expected a URL or a table with a `url`")),
        }
    };
    values.iter().enumerate().map(slave).collect()
}

fn read_slave<DB: Driver>(table: &Table<'_>, inherited: &Settings) -> Result<SlaveConfig, ConfigError> {
    table.check_keys(&[POOL_KEYS, SLAVE_KEYS], &[])?;
    if table.string("url")?.is_none() {
        return Err(table.error("url", "missing: the URL of this slave"));
    }
    let settings = Settings::read(table, inherited)?;
    let mut node = NodeConfig::new::<DB>(table, "url", settings, Access::ReadSlave)?;
    if let Some(name) = table.string("name")? {
        if !is_node_name(&name) {
            return Err(table.error("name", "expected letters `a` to `z`, digits, `_`, `.` and `-`"));
        }
        node.name = name;
    }

    let follow = table.seconds("follow", 0.01, DAY)?;
    if follow.is_some() && !DB::CAN_FOLLOW {
        let problem = format!("{} replicates by itself: remove the key", DB::NAME);
        return Err(table.error("follow", problem));
    }
    let weight = table.number("weight", 1, 1_000)?.unwrap_or(1);
    Ok(SlaveConfig { node, weight, follow })
}

/// A follower's file is overwritten: nobody else may have it.
fn check_followers(
    section: &Table<'_>,
    master: &NodeConfig,
    slaves: &[SlaveConfig],
) -> Result<(), ConfigError> {
    for (index, follower) in slaves.iter().enumerate().filter(|(_, slave)| slave.follow.is_some()) {
        let mut others = slaves.iter().enumerate().filter(|(other, _)| *other != index);
        let problem = if follower.node.address == master.address {
            "the slave is the master's own file"
        } else if others.any(|(_, other)| other.node.address == follower.node.address) {
            "another slave has the same file"
        } else {
            continue;
        };
        return Err(section.error(&format!("slaves[{index}].follow"), problem));
    }
    Ok(())
}

/// Names the nodes that have no name by their host, those that share one by host and port.
fn name_nodes(
    section: &Table<'_>,
    master: &mut NodeConfig,
    slaves: &mut [SlaveConfig],
) -> Result<(), ConfigError> {
    let mut nodes: Vec<_> =
        std::iter::once(master).chain(slaves.iter_mut().map(|slave| &mut slave.node)).collect();
    let by_host: Vec<_> = nodes.iter().map(|node| name_from(&node.address.host)).collect();
    for (node, host) in nodes.iter_mut().zip(&by_host).filter(|(node, _)| node.name.is_empty()) {
        let shared = by_host.iter().filter(|other| *other == host).count() > 1;
        node.name = match node.address.port {
            Some(port) if shared => format!("{host}-{port}"),
            _ => host.clone(),
        };
    }

    for (index, node) in nodes.iter().enumerate().skip(1) {
        if nodes[..index].iter().any(|earlier| earlier.name == node.name) {
            let key = format!("slaves[{}]", index - 1);
            let problem = format!(
                "a second node named `{0}`: name it, as in `{{ url = …, name = \"{0}-2\" }}`",
                node.name
            );
            return Err(section.error(&key, problem));
        }
    }
    Ok(())
}

fn is_node_name(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-'))
}

/// A node name from a host name, or from the last part of a path.
fn name_from(host: &str) -> String {
    let last = host.trim_end_matches('/').rsplit(['/', '\\']).next().unwrap_or_default();
    let name: String = last
        .to_lowercase()
        .chars()
        .map(|c| if matches!(c, 'a'..='z' | '0'..='9' | '_' | '.' | '-') { c } else { '-' })
        .collect();
    let name = name.trim_matches('-');
    if name.is_empty() { "node".into() } else { name.into() }
}

/// How long a pin is good for: the position that it carries outlives the lag window.
fn read_max_age(
    pin: &Table<'_>,
    consistency: Consistency,
    lag_window: Duration,
) -> Result<Duration, ConfigError> {
    const KEY: &str = "max_age";

    let max_age = pin.seconds(KEY, 0.001, DAY)?;
    match (consistency, max_age) {
        (Consistency::Window, None) => Ok(lag_window),
        (Consistency::Window, Some(_)) => {
            Err(pin.error(KEY, "without `consistency = \"position\"` a pin ends with the `lag_window`"))
        }
        (Consistency::Position, None) => Ok(lag_window.max(Duration::from_secs(60))),
        (Consistency::Position, Some(max_age)) if max_age < lag_window => {
            Err(pin
                .error(KEY, format!("must not be below `lag_window`, which is {}", lag_window.as_secs_f64())))
        }
        (Consistency::Position, Some(max_age)) => Ok(max_age),
    }
}

/// By default, the lag that [`Checks::guard`]s the window.
fn read_checks<DB: Driver>(
    section: &Table<'_>,
    slaves: &[SlaveConfig],
    lag_window: Duration,
    consistency: Consistency,
) -> Result<Checks, ConfigError> {
    const KEY: &str = "max_lag";

    let second = Duration::from_secs(1);
    let interval = section.seconds("check_interval", 0.01, 3_600.0)?.unwrap_or(second);
    let timeout = section.seconds("check_timeout", 0.01, 3_600.0)?.unwrap_or(second);
    let follow_promotion = section.bool("follow_promotion")?.unwrap_or(false);
    if follow_promotion && !DB::TELLS_TIMELINE {
        let problem = format!("{} offers no proof of who was promoted: remove the key", DB::NAME);
        return Err(section.error("follow_promotion", problem));
    }

    let most = lag_window.saturating_sub(interval + timeout);
    let seconds = |duration: Duration| duration.as_secs_f64();
    let remedy = "raise `lag_window`, shorten `check_interval` and `check_timeout`, or say `max_lag = false`";
    let max_lag = match section.limit(KEY)? {
        _ if slaves.is_empty() => None,
        Limit::Never => None,
        Limit::Auto if lag_window.is_zero() => None,
        Limit::Auto if most < interval => {
            let problem = format!(
                "with `lag_window` = {}, a lag cannot be noticed before the window is over: {remedy}",
                seconds(lag_window),
            );
            return Err(section.error(KEY, problem));
        }
        Limit::Auto => Some(most),
        // By its position, a slave is told from one that is behind whenever it was looked at.
        Limit::Seconds(max) if max > most && consistency == Consistency::Window && !lag_window.is_zero() => {
            let problem = format!(
                "must not exceed `lag_window` less `check_interval` and `check_timeout`, which is {}: {remedy}",
                seconds(most),
            );
            return Err(section.error(KEY, problem));
        }
        Limit::Seconds(max) if max < interval => {
            let problem = format!("must not be below `check_interval`, which is {}", seconds(interval));
            return Err(section.error(KEY, problem));
        }
        Limit::Seconds(max) => Some(max),
    };

    for (index, slave) in slaves.iter().enumerate() {
        if let (Some(follow), Some(max)) = (slave.follow, max_lag)
            && follow >= max
        {
            let problem = format!("must be below `max_lag`, which is {}: {remedy}", seconds(max));
            return Err(section.error(&format!("slaves[{index}].follow"), problem));
        }
    }
    Ok(Checks { interval, timeout, max_lag, follow_promotion })
}

fn read_methods(section: &Table<'_>) -> Result<ReadMethods, ConfigError> {
    const KEY: &str = "read_methods";

    let Some(names) = section.strings(KEY)? else { return Ok(ReadMethods::default()) };
    let methods: Vec<Method> = names
        .iter()
        .map(|name| Method::from_str(name))
        .collect::<Result<_, _>>()
        .map_err(|_| section.error(KEY, "expected names of HTTP methods, as in `[\"GET\", \"HEAD\"]`"))?;
    if methods.contains(&Method::Get) != methods.contains(&Method::Head) {
        return Err(section.error(KEY, "`GET` and `HEAD` only together: Rocket serves HEAD by GET routes"));
    }
    Ok(ReadMethods(methods))
}

/// The secret that pins are signed with: from Rocket's `secret_key`.
fn read_secret(figment: &Figment) -> Result<Secret, ConfigError> {
    const KEY: &str = rocket::Config::SECRET_KEY;
    const GENERATE: &str = "generate one with `openssl rand -base64 32`";

    let profile = figment.profile();
    let error = |problem: String| Err(ConfigError::new(profile, KEY, problem));
    match Secret::of(figment) {
        Ok(Some(secret)) => Ok(secret),
        Ok(None) if profile == rocket::Config::DEBUG_PROFILE => Ok(Secret::random()),
        Ok(None) => error(format!(
            "missing: pins are signed with it, and every server of the application must have the same; {GENERATE}"
        )),
        Err(problem) => error(format!("{problem}; {GENERATE}")),
    }
}

#[cfg(test)]
mod tests;
