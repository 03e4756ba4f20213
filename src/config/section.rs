//! The section as a whole.

use std::str::FromStr;
use std::time::Duration;

use rocket::figment::Figment;
use rocket::figment::value::{Dict, Value};
use rocket::http::Method;

use super::checks::CheckKeys;
use super::table::{ConfigError, DAY, Place, Table, found};
use super::{
    Affinity, Config, Consistency, PinnedWithoutMaster, ReadMethods, ReadShare, RefusedWrite, ServerConfig,
    ServerTiming, pin, slaves,
};
use crate::backend::settings::Settings;
use crate::backend::url::DatabaseUrl;
use crate::backend::{Access, Driver};

impl Config {
    /// Reads the section of the database `name`.
    pub(crate) fn read<DB: Driver>(figment: &Figment, name: &str) -> Result<Self, ConfigError> {
        let path = format!("databases.{name}");
        let place = Place::profile(figment.profile()).inner(&path);
        match figment.find_value(&path) {
            Ok(Value::Dict(_, dict)) => read::<DB>(figment, name, &place, &dict),
            Ok(_) => Err(place.wrong(format!("expected a table: add instead {}", example::<DB>(&path)))),
            Err(_) => Err(match figment.find_value("databases") {
                Ok(Value::Dict(..)) | Err(_) => place.wrong(format!("missing: add {}", example::<DB>(&path))),
                // A value from the environment that is not valid TOML arrives as text.
                Ok(value) => Place::profile(figment.profile()).error(
                    "databases",
                    format!(
                        "expected a table, found {}: in the environment, write \
                         `ROCKET_DATABASES='{{{name}={{url=\"{}://…\"}}}}'`",
                        found(&value),
                        DB::URL_SCHEMES[0],
                    ),
                ),
            }),
        }
    }
}

/// An example of the section, for all profiles: a section for the present profile alone would be missing in the others.
fn example<DB: Driver>(path: &str) -> String {
    format!("to Rocket.toml\n\n    [default.{path}]\n    url = \"{}://…\"\n", DB::URL_SCHEMES[0])
}

/// The keys of the section whose check depends on other keys or tables.
struct Keys<'a> {
    settings: Settings,
    slaves: &'a [Value],
    read_url: Option<DatabaseUrl>,
    read_connections: Option<u32>,
    lag_window: Duration,
    consistency: Consistency,
    checks: CheckKeys,
    pin: Option<&'a Dict>,
    slave_timeout: Duration,
    read_from_slaves: ReadShare,
    affinity: Affinity,
    zone: Option<String>,
    local_threshold: Option<Duration>,
    read_methods: ReadMethods,
    pinned_without_master: PinnedWithoutMaster,
    refused_write: RefusedWrite,
    catch_up_timeout: Duration,
    server_timing: Option<bool>,
    name: Option<String>,
}

impl<'a> Keys<'a> {
    fn read<DB: Driver>(section: &mut Table<'a>, defaults: &Settings) -> Self {
        section.ignore("ignore");
        Self {
            settings: Settings::read(section, "the master", defaults),
            slaves: section.array("slaves", slaves::EXPECTED).unwrap_or_default(),
            read_url: section.string("read_url").map(DatabaseUrl),
            read_connections: section.number("master_read_connections", 1..=10_000),
            lag_window: section.seconds("lag_window", 0.0..=DAY).unwrap_or(Duration::from_secs(5)),
            consistency: section
                .choice("consistency", "`\"window\"` or `\"position\"`")
                .unwrap_or(Consistency::Window),
            checks: CheckKeys::read::<DB>(section),
            pin: section.table("pin"),
            slave_timeout: section
                .seconds("slave_timeout", 0.001..=3_600.0)
                .unwrap_or(Duration::from_secs(1)),
            read_from_slaves: section.share("read_from_slaves").unwrap_or(ReadShare::ALL),
            affinity: match section.bool("sticky") {
                Some(true) => Affinity::Address,
                Some(false) | None => Affinity::None,
            },
            zone: slaves::read_zone(section),
            local_threshold: section.seconds("local_threshold", 0.0..=10.0),
            read_methods: read_methods(section),
            pinned_without_master: section
                .choice("pinned_without_master", "`\"stale\"` or `\"fail\"`")
                .unwrap_or(PinnedWithoutMaster::Stale),
            refused_write: section
                .choice("refused_write", "`\"error\"` or `\"reroute\"`")
                .unwrap_or(RefusedWrite::Error),
            catch_up_timeout: section
                .seconds("catch_up_timeout", 0.0..=60.0)
                .unwrap_or(Duration::from_millis(50)),
            server_timing: section.bool("server_timing"),
            name: slaves::read_name(section),
        }
    }
}

fn read_methods(section: &mut Table<'_>) -> ReadMethods {
    const KEY: &str = "read_methods";

    let Some(names) = section.strings(KEY) else { return ReadMethods::default() };
    let methods: Result<Vec<Method>, _> = names.iter().map(|name| Method::from_str(name)).collect();
    let Ok(methods) = methods else {
        section.refuse(KEY, "expected names of HTTP methods, as in `[\"GET\", \"HEAD\"]`");
        return ReadMethods::default();
    };
    if methods.contains(&Method::Get) != methods.contains(&Method::Head) {
        section.refuse(KEY, "`GET` and `HEAD` only together: Rocket serves HEAD by GET routes");
    }
    ReadMethods(methods)
}

fn read<DB: Driver>(
    figment: &Figment,
    database: &str,
    place: &Place,
    dict: &Dict,
) -> Result<Config, ConfigError> {
    let workers: usize =
        figment.extract_inner(rocket::Config::WORKERS).unwrap_or_else(|_| rocket::Config::default().workers);
    let defaults = Settings::defaults(workers);
    let keys = Table::read(place, dict, |section| Keys::read::<DB>(section, &defaults))?;

    let mut slaves = slaves::read::<DB>(place, keys.slaves, &keys.settings)?;
    let mut master = ServerConfig::new::<DB>(place, "url", keys.settings.clone(), Access::Writes)?;
    let read_connections = keys.read_connections.unwrap_or_else(|| {
        let all = keys.settings.max_connections;
        if slaves.is_empty() { all } else { (all / 4).max(2) }
    });
    // Without slaves, no reads move over from slaves that have failed.
    let reserve = if slaves.is_empty() || read_connections == 1 { 0 } else { (read_connections / 4).max(1) };
    let read_url_key = if keys.read_url.is_some() { "read_url" } else { "url" };
    let read_settings = Settings {
        url: keys.read_url.unwrap_or_else(|| keys.settings.url.clone()),
        max_connections: read_connections,
        min_connections: 0,
        ..keys.settings
    };
    let mut master_reads = ServerConfig::new::<DB>(place, read_url_key, read_settings, Access::MasterReads)?;
    master.name = keys.name.unwrap_or_default();
    slaves::check_places(place, &master, &master_reads, &slaves)?;
    slaves::name_servers(place, &mut master, &mut slaves)?;
    master_reads.name.clone_from(&master.name);

    if DB::ONE_WRITER {
        master.settings.max_connections = 1;
        master.settings.min_connections = master.settings.min_connections.min(1);
    }

    let is_debug = figment.profile() == rocket::Config::DEBUG_PROFILE;
    let server_timing = match keys.server_timing.unwrap_or(is_debug) {
        true => ServerTiming::Sent,
        false => ServerTiming::Omitted,
    };
    let checks = keys.checks.check(place, &slaves, keys.lag_window, keys.consistency)?;
    slaves::check_writers::<DB>(place, &master, &slaves, checks.follow_promotion)?;
    let pins = pin::Context { figment, database, consistency: keys.consistency, lag_window: keys.lag_window };
    let pin = pins.read(&place.inner("pin"), keys.pin, &slaves, &checks)?;
    Ok(Config {
        master,
        master_reads,
        reserve,
        slaves,
        slave_timeout: keys.slave_timeout,
        read_from_slaves: keys.read_from_slaves,
        affinity: keys.affinity,
        zone: keys.zone,
        local_threshold: keys.local_threshold,
        read_methods: keys.read_methods,
        pinned_without_master: keys.pinned_without_master,
        refused_write: keys.refused_write,
        checks,
        consistency: keys.consistency,
        catch_up_timeout: keys.catch_up_timeout,
        server_timing,
        pin,
    })
}
