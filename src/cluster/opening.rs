//! Opens servers, pools and the monitor of a configuration.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use sqlx::ConnectOptions;
use xxhash_rust::xxh3::xxh3_64;

use super::discovery::{Discovered, Resolver};
use super::inner::PositionBudget;
use super::monitor::{Monitor, PositionRequests, Prober};
use super::server::{Departure, Pools, Purpose, Server};
use super::{Inner, Servers};
use crate::backend::url::DatabaseUrl;
use crate::backend::{Access, Driver, Settings};
use crate::config::{Config, Rank, ServerConfig, SlaveConfig, SlaveLog};
use crate::health::{Health, Mastership, ServerId, Subject};
use crate::pin::Pins;
use crate::pool::{AfterConnect, Pool, PoolOptions, Sessions};

impl<DB: Driver> Inner<DB> {
    /// Sets up the servers without opening a connection: a server that is down is no error.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    pub(crate) fn open(
        database: &'static str,
        config: Config,
        resolver: Resolver,
        position_budget: PositionBudget,
        after_connect: Option<AfterConnect<DB>>,
    ) -> Result<Self, String> {
        const MASTER: ServerId = ServerId(0);

        let mastership = Arc::new(Mastership::new(MASTER));
        let config = Arc::new(config);
        let opening = Arc::new(Opening {
            database,
            config: config.clone(),
            mastership: mastership.clone(),
            after_connect,
            opened: AtomicU32::new(MASTER.0),
        });
        let servers = Arc::new(Servers::new(opening.servers()?));
        Ok(Self {
            database,
            monitor: Monitor::new(servers.clone(), &opening, &resolver),
            resolver,
            position_budget,
            pins: config.pin.as_ref().map(|pin| Pins::new(database, pin)),
            servers,
            mastership,
            read_share: AtomicU32::new(config.read_from_slaves.to_bits()),
            followers: Mutex::default(),
            rerouted: super::inner::Rerouted::default(),
            oversized: std::sync::Once::new(),
            counts: super::ClusterCounts::default(),
            sessions: Sessions::default(),
            config,
        })
    }
}

/// Opens the servers of one database. The configured servers are opened first, discovered servers later.
pub(super) struct Opening<DB: Driver> {
    pub(super) database: &'static str,
    pub(super) config: Arc<Config>,
    pub(super) mastership: Arc<Mastership>,
    after_connect: Option<AfterConnect<DB>>,
    opened: AtomicU32,
}

impl<DB: Driver> Opening<DB> {
    /// The servers of the configuration, the master first. Slaves that have to be discovered are not among them.
    fn servers(&self) -> Result<Vec<Arc<Server<DB>>>, String> {
        let Config { master, master_reads, slaves, .. } = &*self.config;
        let health = self.health(master, Subject::Server, SlaveLog::Masters);

        let mut read_server = None;
        let mut pools = Pools {
            writes: Some(self.pool(&master.settings, Access::Writes, &health)?),
            // The master may turn out to be a slave of another server, or come back as one.
            slave_reads: Some(self.pool(&master.settings, Access::SlaveReads, &health)?),
            master_reads: None,
            reserve: None,
        };
        if master_reads.address == master.address {
            (pools.master_reads, pools.reserve) = self.master_read_pools(&master_reads.settings, &health)?;
        }
        let master_id = health.id();
        let mut servers = Vec::new();
        let mut master_server = self.server(master, Purpose::Master, 1, health, pools)?;
        if master_reads.address != master.address {
            let health = self.health(master_reads, Subject::ReadUrl, SlaveLog::Masters);
            let (read_master, reserve) = self.master_read_pools(&master_reads.settings, &health)?;
            let pools = Pools { master_reads: read_master, reserve, writes: None, slave_reads: None };
            read_server = Some(Arc::new(self.server(master_reads, Purpose::ReadUrl, 1, health, pools)?));
        }
        debug_assert_eq!(master_id, self.mastership.term().master);
        master_server.read_url.clone_from(&read_server);
        servers.push(Arc::new(master_server));

        for slave in slaves.iter().filter(|slave| slave.discover.is_none()) {
            let health = self.health(&slave.server, Subject::Server, slave.log);
            servers.push(Arc::new(self.slave(slave, &slave.server, health)?));
        }
        servers.extend(read_server);
        Ok(servers)
    }

    /// A server that was found among the addresses of an entry, with the entry's weight and settings.
    pub(super) fn discovered(
        &self,
        entry: &SlaveConfig,
        discovered: Discovered,
        servers: &Servers<DB>,
    ) -> Result<Server<DB>, String> {
        let mut config = entry.at(discovered.address);
        // Another entry may have been given just this name.
        while servers.all().iter().any(|server| **server.health.name() == *config.name) {
            config.name.push_str("-2");
        }
        let health = self.health(&config, Subject::Server, entry.log);
        health.mark_new();
        let server = self.slave(entry, &config, health)?;
        Ok(Server { discovered: Some(discovered), ..server })
    }

    /// The slave of an entry, or one of several slaves of a discovered entry.
    fn slave(
        &self,
        entry: &SlaveConfig,
        slave: &ServerConfig,
        health: Arc<Health>,
    ) -> Result<Server<DB>, String> {
        let Config { master, master_reads, checks, .. } = &*self.config;
        let mut pools = Pools {
            slave_reads: Some(self.pool(&slave.settings, Access::SlaveReads, &health)?),
            writes: None,
            master_reads: None,
            reserve: None,
        };
        if checks.follow_promotion {
            // After a promotion, the server has the master's settings at its own address.
            let Settings { url, connect_to, .. } = &slave.settings;
            let at = |url: &DatabaseUrl, settings: &Settings| Settings {
                url: url.clone(),
                connect_to: *connect_to,
                ..settings.clone()
            };
            let writes = at(entry.write_url.as_ref().unwrap_or(url), &master.settings);
            pools.writes = Some(self.pool(&writes, Access::Writes, &health)?);
            (pools.master_reads, pools.reserve) =
                self.master_read_pools(&at(url, &master_reads.settings), &health)?;
        }
        let server = self.server(slave, Purpose::Slave, entry.weight.max(1), health, pools)?;
        Ok(Server { rank: self.config.rank(entry), ..server })
    }

    fn health(&self, server: &ServerConfig, subject: Subject, log: SlaveLog) -> Arc<Health> {
        let id = ServerId(self.opened.fetch_add(1, Ordering::Relaxed));
        let name = Arc::from(server.name.as_str());
        Health::new(id, subject, self.database, name, log, self.mastership.clone())
    }

    fn pool(
        &self,
        settings: &Settings,
        access: Access,
        health: &Arc<Health>,
    ) -> Result<Arc<Pool<DB>>, String> {
        let Config { checks, slave_timeout, .. } = &*self.config;
        let timeout = match access {
            Access::SlaveReads => *slave_timeout,
            Access::Writes | Access::MasterReads => self.config.master.settings.connect_timeout,
        };
        Pool::new(PoolOptions {
            database: self.database,
            access,
            settings,
            timeout,
            check_timeout: checks.timeout,
            health: health.clone(),
            after_connect: self.after_connect.clone(),
        })
    }

    /// The pool for reads at a master, and the pool of those connections that are reserved for pinned reads.
    #[allow(clippy::type_complexity)]
    fn master_read_pools(
        &self,
        settings: &Settings,
        health: &Arc<Health>,
    ) -> Result<(Option<Arc<Pool<DB>>>, Option<Arc<Pool<DB>>>), String> {
        let of = |max_connections| {
            let settings = Settings { max_connections, ..settings.clone() };
            self.pool(&settings, Access::MasterReads, health)
        };
        let reserve = self.config.reserve;
        let common = of(settings.max_connections - reserve)?;
        Ok((Some(common), (reserve > 0).then(|| of(reserve)).transpose()?))
    }

    fn server(
        &self,
        config: &ServerConfig,
        purpose: Purpose,
        weight: u32,
        health: Arc<Health>,
        pools: Pools<DB>,
    ) -> Result<Server<DB>, String> {
        let access = if purpose == Purpose::Slave { Access::SlaveReads } else { Access::MasterReads };
        let prober = Prober {
            // The monitor only reads. It has to get through even if a proxy refuses the options that make connections
            // read-only. A probe each second would drown the application's statements in the log.
            options: DB::plain_options(&config.settings, access)?.disable_statement_logging(),
            position_requests: PositionRequests::default(),
        };
        if !config.settings.prepared_statements {
            health.expect_pooler();
        }
        let number = xxh3_64(health.name().as_bytes());
        let departure = Departure::default();
        Ok(Server {
            health,
            purpose,
            weight,
            rank: Rank::Near,
            number,
            prober,
            pools,
            read_url: None,
            discovered: None,
            departure,
        })
    }
}
