//! From a configuration to pools and a monitor.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex};

use rocket_db_pools::Database;
use sqlx::ConnectOptions;

use super::{Db, Nodes, Rerouted, Seat};
use crate::backend::{Access, Backend, Driver, Settings};
use crate::choice::Role;
use crate::config::{Config, NodeConfig, SlaveConfig};
use crate::health::Health;
use crate::monitor::{Monitor, Part, Questions, Server};
use crate::node::{Node, Opening};
use crate::pin::Pins;

impl<D: Database<Pool: Backend>> Nodes<D> {
    /// Opens the pools, but no connection: a server that is down is no error.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub(crate) fn open(config: Config) -> Result<Self, String> {
        let (master, reads) = (&config.master, &config.master_reads);
        let health_of = |node: &NodeConfig, role| Health::new(Arc::from(node.name.as_str()), role);
        let master_health = health_of(master, Role::Master);
        let same_way = reads.address == master.address;
        let reads_health = if same_way { master_health.clone() } else { health_of(reads, Role::Master) };
        let slaves_health: Vec<_> =
            config.slaves.iter().map(|slave| health_of(&slave.node, Role::Slave)).collect();

        let open = |settings: &Settings, access, weight, timeout, health: &Arc<Health>| {
            let health = health.clone();
            Node::open(Opening { database: D::NAME, access, settings, weight, timeout, health })
        };
        let seat = |writes: &Settings, reads: &Settings, (master, way): (&Arc<Health>, &Arc<Health>)| {
            let timeout = config.master.settings.connect_timeout;
            let at_master = |max_connections| {
                let settings = Settings { max_connections, ..reads.clone() };
                open(&settings, Access::ReadMaster, 1, timeout, way)
            };
            Ok::<_, String>(Seat {
                read_write: open(writes, Access::ReadWrite, 1, timeout, master)?,
                read_only: at_master(reads.max_connections - config.reserve)?,
                reserve: match config.reserve {
                    0 => None,
                    reserve => Some(at_master(reserve)?),
                },
            })
        };
        let mut seats = vec![seat(&master.settings, &reads.settings, (&master_health, &reads_health))?];
        if config.checks.follow_promotion {
            for (slave, health) in config.slaves.iter().zip(&slaves_health) {
                let at = |settings: &Settings| Settings {
                    url: slave.node.settings.url.clone(),
                    ..settings.clone()
                };
                seats.push(seat(&at(&master.settings), &at(&reads.settings), (health, health))?);
            }
        }
        let slaves = config.slaves.iter().zip(&slaves_health).map(|(slave, health)| {
            let SlaveConfig { node, weight, follow: _ } = slave;
            open(&node.settings, Access::ReadSlave, *weight, config.slave_timeout, health)
        });
        let slaves = slaves.collect::<Result<_, _>>()?;

        let server = |part, settings: &Settings, access, health: &Arc<Health>| {
            // A probe each second would drown the application's statements.
            let options = Db::<D>::options(settings, access)?.disable_statement_logging();
            Ok::<_, String>(Server { part, options, health: health.clone(), questions: Questions::default() })
        };
        let mut servers = vec![server(Part::Master, &master.settings, Access::ReadMaster, &master_health)?];
        for (slave, health) in config.slaves.iter().zip(&slaves_health) {
            servers.push(server(Part::Slave, &slave.node.settings, Access::ReadSlave, health)?);
        }
        if !same_way {
            servers.push(server(Part::MasterReads, &reads.settings, Access::ReadMaster, &reads_health)?);
        }

        Ok(Self {
            seats,
            slaves,
            monitor: Monitor::new(servers, config.checks.clone()),
            pins: config.pin.as_ref().map(|pin| Pins::new(D::NAME, pin)),
            followers: Mutex::default(),
            rerouted: Rerouted::default(),
            sessions: AtomicUsize::new(0),
            reads_at_master: AtomicBool::new(false),
            database: PhantomData,
            config,
        })
    }
}
