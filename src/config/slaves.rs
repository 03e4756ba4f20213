//! `slaves`, and the names of all servers.

use std::net::IpAddr;
use std::time::Duration;

use rocket::figment::value::{Dict, Value};

use super::table::{ConfigError, DAY, Place, Table};
use super::{Discover, MAX_SLAVES, ServerConfig, SlaveConfig, SlaveLog};
use crate::backend::settings::Settings;
use crate::backend::url::DatabaseUrl;
use crate::backend::{Access, Driver, VerifiedHost};

/// The expected form of `slaves`, for messages.
pub(super) const EXPECTED: &str = "an array of URLs or of tables with a `url`";

pub(super) fn read<DB: Driver>(
    section: &Place,
    values: &[Value],
    master: &Settings,
) -> Result<Vec<SlaveConfig>, ConfigError> {
    if values.len() > MAX_SLAVES {
        return Err(section.error("slaves", format!("{} are too many: {MAX_SLAVES} at most", values.len())));
    }

    // Slaves inherit all settings but `min_connections`, which concerns the read-write pool.
    let inherited = Settings { min_connections: 0, ..master.clone() };
    let slave = |(index, value): (usize, &Value)| match value {
        Value::String(_, url) => {
            let settings = Settings { url: DatabaseUrl(url.clone()), ..inherited.clone() };
            let server = ServerConfig::new::<DB>(section, &key(index), settings, Access::SlaveReads)?;
            let log = log_of::<DB>(None);
            Ok(SlaveConfig {
                server,
                write_url: None,
                weight: 1,
                zone: None,
                follow: None,
                log,
                discover: None,
            })
        }
        Value::Dict(_, dict) => read_table::<DB>(&section.inner(&key(index)), dict, &inherited),
        _ => Err(section.error(&key(index), "expected a URL or a table with a `url`")),
    };
    values.iter().enumerate().map(slave).collect()
}

/// The name of a slave in messages.
pub(super) fn key(index: usize) -> String {
    format!("slaves[{index}]")
}

/// The keys of one entry.
struct Keys {
    settings: Settings,
    write_url: Option<DatabaseUrl>,
    name: Option<String>,
    weight: u32,
    zone: Option<String>,
    follow: Option<Duration>,
    log: SlaveLog,
    discover: Option<Discover>,
}

impl Keys {
    fn read<DB: Driver>(table: &mut Table<'_>, inherited: &Settings) -> Self {
        let settings = Settings::read(table, "this slave", inherited);
        let write_url = table.string("write_url").map(DatabaseUrl);
        let name = read_name(table);
        let weight = table.number("weight", 0..=1_000).unwrap_or(1);
        let zone = read_zone(table);
        let follow = table.seconds("follow", 0.01..=DAY);
        if follow.is_some() && !DB::CAN_FOLLOW {
            table.refuse("follow", format!("{} replicates by itself: remove the key", DB::NAME));
        }
        let log = match table.bool("logical") {
            // For other drivers, a position means the same in every system.
            Some(true) if !DB::TELLS_TIMELINE => {
                table.refuse(
                    "logical",
                    format!(
                        "only a slave of PostgreSQL can be a logical replica, not of {}: remove the key",
                        DB::NAME
                    ),
                );
                SlaveLog::Other
            }
            Some(true) => SlaveLog::Other,
            Some(false) | None => log_of::<DB>(follow),
        };
        let discover = table.choice("discover", "`\"dns\"`");
        if discover.is_some() && !DB::HAS_HOSTS {
            table.refuse("discover", format!("{} has no hosts: remove the key", DB::NAME));
        }
        Self { settings, write_url, name, weight, zone, follow, log, discover }
    }
}

fn read_table<DB: Driver>(
    place: &Place,
    dict: &Dict,
    inherited: &Settings,
) -> Result<SlaveConfig, ConfigError> {
    let keys = Table::read(place, dict, |table| Keys::read::<DB>(table, inherited))?;
    let Keys { settings, write_url, name, weight, zone, follow, log, discover } = keys;
    let mut server = ServerConfig::new::<DB>(place, "url", settings, Access::SlaveReads)?;
    server.name = name.unwrap_or_default();
    if let Some(discover) = discover {
        check_host::<DB>(place, &server, discover)?;
    }
    Ok(SlaveConfig { server, write_url, weight, zone, follow, log, discover })
}

/// The log of a slave that is not declared to be a logical replica.
fn log_of<DB: Driver>(follow: Option<Duration>) -> SlaveLog {
    if DB::CAN_FOLLOW && follow.is_none() { SlaveLog::Other } else { SlaveLog::Masters }
}

/// Refuses `discover` where the host cannot have several addresses, or where the driver would check the certificate
/// against an address. sqlx looks for the host that it connects to in the certificate, and accepts no separate address.
fn check_host<DB: Driver>(
    place: &Place,
    server: &ServerConfig,
    Discover::Dns: Discover,
) -> Result<(), ConfigError> {
    if host_name(server).is_none() {
        let problem = "the host of `url` is no name that could have several addresses: remove the key";
        return Err(place.error("discover", problem));
    }
    check_verified_host::<DB>(place, &server.settings)
}

fn check_verified_host<DB: Driver>(place: &Place, settings: &Settings) -> Result<(), ConfigError> {
    let options = DB::options(settings, Access::SlaveReads);
    match options.ok().and_then(|options| DB::verified_host(&options)) {
        Some(VerifiedHost { asked_by, without }) => {
            let problem = format!(
                "with `{asked_by}`, the driver would look for the addresses in the servers' certificates, not for the \
                 name: give each server an entry with a name of its own, or say `{without}`, which does check who \
                 signed the certificates"
            );
            Err(place.error("discover", problem))
        }
        None => Ok(()),
    }
}

/// The name by which a host is looked up. `None` for an address or a path.
pub(crate) fn host_name(server: &ServerConfig) -> Option<&str> {
    let host = server.address.host.as_str();
    let is_address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    (!is_address && !host.contains('/')).then_some(host)
}

/// The name of the server at one of an entry's addresses. Each address has a name of its own.
pub(super) fn name_at(entry: &str, address: IpAddr) -> String {
    format!("{entry}-{}", address.to_string().replace(':', "-"))
}

/// Reads a server's name.
pub(super) fn read_name(table: &mut Table<'_>) -> Option<String> {
    let name = table.string("name");
    if name.as_ref().is_some_and(|name| !is_server_name(name)) {
        table.refuse("name", "expected letters `a` to `z`, digits, `_`, `.` and `-`");
    }
    name
}

/// Reads the zone that a server or this process is in.
pub(super) fn read_zone(table: &mut Table<'_>) -> Option<String> {
    let zone = table.string("zone");
    if zone.as_ref().is_some_and(String::is_empty) {
        table.refuse("zone", "expected a name, as in `\"eu-central-1a\"`");
    }
    zone
}

/// Refuses slaves that are the master. Such a slave would share the master's load with itself, and would be asked to
/// prove that it has replayed its own writes. Also refuses followers on a file of another server, because a follower's
/// file is overwritten.
pub(super) fn check_places(
    section: &Place,
    master: &ServerConfig,
    master_reads: &ServerConfig,
    slaves: &[SlaveConfig],
) -> Result<(), ConfigError> {
    for (index, SlaveConfig { server, follow, .. }) in slaves.iter().enumerate() {
        if follow.is_some() {
            let mut others = slaves.iter().enumerate().filter(|(other, _)| *other != index);
            let problem = if server.is_same_place(master) {
                Some("the slave is the master's own file, which a copy would overwrite")
            } else if others.any(|(_, other)| other.server.is_same_place(server)) {
                Some("another slave has the same file: give each a file of its own")
            } else {
                None
            };
            if let Some(problem) = problem {
                return Err(section.inner(&key(index)).error("follow", problem));
            }
        }
        for (url, of_master) in [("url", master), ("read_url", master_reads)] {
            if server.is_same_way(of_master) {
                let problem = format!(
                    "leads to the master, as `{url}` does: name a server that replicates it, or remove the slave"
                );
                return Err(section.error(&key(index), problem));
            }
        }
    }
    Ok(())
}

/// Refuses slaves that would write by the role for reads after a promotion, and a `write_url` that would not be used.
pub(super) fn check_writers<DB: Driver>(
    section: &Place,
    master: &ServerConfig,
    slaves: &[SlaveConfig],
    follow_promotion: bool,
) -> Result<(), ConfigError> {
    let user = |settings: &Settings, access| {
        let options = DB::options(settings, access)?;
        Ok(DB::user(&options).map(str::to_owned))
    };
    let writer = user(&master.settings, Access::Writes).map_err(|problem| section.error("url", problem))?;
    for (index, SlaveConfig { server, write_url, log, discover, .. }) in slaves.iter().enumerate() {
        let place = section.inner(&key(index));
        match write_url {
            Some(_) if !follow_promotion => {
                return Err(
                    place.error("write_url", "needs `follow_promotion = true`: else no slave is written to")
                );
            }
            Some(url) => {
                let settings = Settings { url: url.clone(), ..server.settings.clone() };
                let writes = ServerConfig::new::<DB>(&place, "write_url", settings, Access::Writes)?;
                let others = slaves.iter().enumerate().filter(|(other, _)| *other != index);
                let mut others = others.map(|(_, slave)| &slave.server).chain([master]);
                if others.any(|other| writes.is_same_place(other) && !other.is_same_place(server)) {
                    return Err(place.error("write_url", "leads to another server than this slave's `url`"));
                }
                if discover.is_some() {
                    check_verified_host::<DB>(&place, &writes.settings)?;
                }
            }
            // A slave of another system does not become the master.
            None if follow_promotion && *log == SlaveLog::Masters => {
                let reader = user(&server.settings, Access::SlaveReads);
                let reader = reader.map_err(|problem: String| section.error(&key(index), problem))?;
                if let (Some(reader), Some(writer)) = (&reader, &writer)
                    && reader != writer
                {
                    let problem = format!(
                        "after its promotion (`follow_promotion`), it would be written to as `{reader}`, and not as \
                         `{writer}`: say `{{ url = …, write_url = … }}`, with a user that may write"
                    );
                    return Err(section.error(&key(index), problem));
                }
            }
            None => {}
        }
    }
    Ok(())
}

/// Names the servers that have no name by their host, or by host and port where several share a host.
pub(super) fn name_servers(
    section: &Place,
    master: &mut ServerConfig,
    slaves: &mut [SlaveConfig],
) -> Result<(), ConfigError> {
    let mut servers: Vec<_> =
        std::iter::once(master).chain(slaves.iter_mut().map(|slave| &mut slave.server)).collect();
    let by_host: Vec<_> = servers.iter().map(|server| name_from(&server.address.host)).collect();
    for (server, host) in servers.iter_mut().zip(&by_host).filter(|(server, _)| server.name.is_empty()) {
        let shared = by_host.iter().filter(|other| *other == host).count() > 1;
        server.name = match server.address.port {
            Some(port) if shared => format!("{host}-{port}"),
            _ => host.clone(),
        };
    }

    for (index, server) in servers.iter().enumerate().skip(1) {
        if servers[..index].iter().any(|earlier| earlier.name == server.name) {
            let problem = format!(
                "a second node named `{0}`: name it, as in `{{ url = …, name = \"{0}-2\" }}`",
                server.name
            );
            return Err(section.error(&key(index - 1), problem));
        }
    }
    Ok(())
}

fn is_server_name(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-'))
}

/// Makes a server's name from a host name, or from the last part of a path.
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
