//! The configuration in force, as far as the page may show it.

use std::fmt::Display;
use std::time::Duration;

use serde::Serialize;

use crate::config::{
    Affinity, Checks, Config, Consistency, Discover, PinnedWithoutMaster, RefusedWrite, ServerConfig,
    ServerTiming, SlaveConfig, SlaveLog, UnknownLag,
};
use crate::pin::PinConfig;

/// A key of the section, and its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Setting {
    pub(super) key: &'static str,
    pub(super) value: String,
}

/// The address of a server, without user and password.
pub(super) fn address(config: &Config, name: &str) -> Option<String> {
    let slaves = config.slaves.iter().map(|slave| &slave.server);
    let server = std::iter::once(&config.master).chain(slaves).find(|server| server.name == name)?;
    Some(server.address.to_string())
}

pub(super) fn list(config: &Config) -> Vec<Setting> {
    let Config {
        master,
        master_reads,
        reserve,
        slaves,
        slave_timeout,
        read_from_slaves,
        affinity,
        zone,
        local_threshold,
        read_methods,
        pinned_without_master,
        refused_write,
        checks: Checks { interval, timeout, max_lag, unknown_lag, follow_promotion },
        consistency,
        catch_up_timeout,
        server_timing,
        pin,
    } = config;
    let mut list = Vec::new();
    let mut add = |key, value: &dyn Display| list.push(Setting { key, value: value.to_string() });
    add("url", &server(master));
    if master_reads.address.to_string() != master.address.to_string() {
        add("read_url", &master_reads.address);
    }
    for SlaveConfig { server: slave, write_url, weight, zone, follow, log, discover } in slaves {
        let mut value = format!("{}, weight {weight}", server(slave));
        if let Some(zone) = zone {
            value += &format!(", zone {zone}");
        }
        if let Some(every) = follow {
            value += &format!(", copied every {every:?}");
        }
        value += match (log, discover) {
            (SlaveLog::Masters, None) => "",
            (SlaveLog::Masters, Some(Discover::Dns)) => ", each of its addresses",
            (SlaveLog::Other, None) => ", with a log of its own",
            (SlaveLog::Other, Some(Discover::Dns)) => ", each of its addresses, with logs of their own",
        };
        if write_url.is_some() {
            value += ", with a write_url of its own";
        }
        add("slaves", &value);
    }
    add("max_connections", &master.settings.max_connections);
    add(
        "master_read_connections",
        &match reserve {
            0 => master_reads.settings.max_connections.to_string(),
            reserve => {
                format!("{}, {reserve} of them for pinned reads", master_reads.settings.max_connections)
            }
        },
    );
    add("connect_timeout", &seconds(master.settings.connect_timeout));
    add("slow_statement", &master.settings.slow_statement.map_or_else(|| "false".into(), seconds));
    add("check_interval", &seconds(*interval));
    add("check_timeout", &seconds(*timeout));
    add("read_methods", read_methods);
    add(
        "refused_write",
        &match refused_write {
            RefusedWrite::Error => "error",
            RefusedWrite::Reroute => "reroute",
        },
    );
    add(
        "server_timing",
        &match server_timing {
            ServerTiming::Sent => "true",
            ServerTiming::Omitted => "false",
        },
    );
    if slaves.is_empty() {
        return list;
    }
    add("slave_timeout", &seconds(*slave_timeout));
    add("read_from_slaves", read_from_slaves);
    add(
        "sticky",
        &match affinity {
            Affinity::None => "false",
            Affinity::Address => "true",
        },
    );
    if let Some(zone) = zone {
        add("zone", zone);
    }
    if let Some(threshold) = local_threshold {
        add("local_threshold", &seconds(*threshold));
    }
    add("max_lag", &max_lag.map_or_else(|| "false".into(), seconds));
    add(
        "unknown_lag",
        &match unknown_lag {
            UnknownLag::Use => "use",
            UnknownLag::LeaveOut => "leave_out",
            UnknownLag::Unexpected => {
                "leave_out, except a logical replica, or a file that another program fills"
            }
        },
    );
    add("follow_promotion", follow_promotion);
    add(
        "pinned_without_master",
        &match pinned_without_master {
            PinnedWithoutMaster::Stale => "stale",
            PinnedWithoutMaster::Fail => "fail",
        },
    );
    add(
        "consistency",
        &match consistency {
            Consistency::Window => "window",
            Consistency::Position => "position",
        },
    );
    let Some(PinConfig {
        lag_window,
        by_time: _,
        max_age,
        cookie,
        header,
        secret: _,
        previous_secrets,
        insecure: _,
    }) = pin
    else {
        add("lag_window", &seconds(Duration::ZERO));
        return list;
    };
    add("lag_window", &seconds(*lag_window));
    if *consistency == Consistency::Position {
        add("catch_up_timeout", &seconds(*catch_up_timeout));
        add("pin.max_age", &seconds(*max_age));
    }
    add("pin.name", &cookie.name);
    add("pin.secure", &cookie.secure);
    if !previous_secrets.is_empty() {
        add("pin.previous_keys", &format!("{}, which are not shown", previous_secrets.len()));
    }
    if let Some(header) = header {
        add("pin.header", header);
    }
    list
}

fn server(server: &ServerConfig) -> String {
    format!("{} at {}", server.name, server.address)
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}
