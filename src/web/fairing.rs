//! [`Replicated`]: opens the pools at ignition, starts followers and reports at lift-off, pins
//! clients in the response hook, closes the pools at shutdown.

use std::any::type_name;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use log::{debug, error, info, warn};
use rocket::fairing::{self, Fairing, Info, Kind};
use rocket::futures::future::BoxFuture;
use rocket::http::Status;
#[cfg(feature = "metrics")]
use rocket::tokio;
use rocket::{Build, Orbit, Phase, Request, Response, Rocket};
use rocket_db_pools::Database;

use super::error::RetryLater;
use super::guards::{Attached, FailedFairing, attached, existing_session};
use crate::backend::{Access, Backend, Engine};
use crate::cluster::{Cluster, Db, Inner, PositionBudget, Resolver};
use crate::config::{
    Affinity, Checks, Config, Consistency, Rank, ReadShare, RefusedWrite, ServerConfig, ServerTiming,
    SlaveConfig, SlaveLog, UnknownLag,
};
use crate::pin::PinConfig;
use crate::pool::{AfterConnect, PoolUse};
use crate::request::TARGET;
use crate::routing::Choice;

/// The fairing: replication for the database `D`.
///
/// Reads the section `[<profile>.databases.<name>]`, where the name is that of `D`. Attaching the fairing twice is
/// harmless: the one that is attached last counts. `D` itself is not managed by Rocket: a `rocket_db_pools::Connection<D>` would bypass all of this.
///
/// ```rust,no_run
/// # #[cfg(feature = "sqlite")] {
/// use rocket_replicated::sqlite::Replicated;
///
/// let rocket = rocket::build().attach(Replicated::fairing());
/// # }
/// ```
///
/// # Errors
///
/// A wrong configuration aborts launch. A server that is down does not: connections are opened when they are needed.
pub struct Replicated<D: Database<Pool: Backend>> {
    after_connect: Option<AfterConnect<Db<D>>>,
    database: PhantomData<fn() -> D>,
}

impl<D: Database<Pool: Backend>> Replicated<D> {
    /// The fairing to attach.
    pub fn fairing() -> Self {
        Self { after_connect: None, database: PhantomData }
    }

    /// Runs `hook` on each new connection before its first statement, for settings of a session that neither URL nor
    /// section has. A second call replaces the hook of the first one.
    ///
    /// The hook gets the driver's connection, and what the connection is for. It has the shape of the hook of
    /// [`sqlx::pool::PoolOptions::after_connect`], so that one of sqlx's need not be rewritten.
    ///
    /// ```rust
    /// # #[cfg(feature = "postgres")] {
    /// use rocket_replicated::PoolUse;
    /// use rocket_replicated::postgres::Replicated;
    /// use sqlx::Executor;
    ///
    /// let replicated = Replicated::fairing().after_connect(|connection, used_for| {
    ///     Box::pin(async move {
    ///         let limit = match used_for {
    ///             PoolUse::Writes => "SET statement_timeout = '30s'",
    ///             _ => "SET statement_timeout = '5s'",
    ///         };
    ///         connection.execute(limit).await?;
    ///         Ok(())
    ///     })
    /// });
    /// let rocket = rocket::build().attach(replicated);
    /// # }
    /// ```
    ///
    /// It runs on the connections to master and slaves that handlers, jobs and the pools of [`Cluster::pool`] use. It
    /// does not run on the monitor's connections, nor on those that copy a SQLite slave.
    ///
    /// A hook must not:
    ///
    /// * write. A write in a hook leaves no pin, and fails on a connection for reads.
    /// * set what a statement reads differently on each server. A read may be run again on another server, and expects
    ///   the same settings there.
    /// * keep what has to last: temporary tables, advisory locks, `LISTEN`. Any connection may be replaced by a new one
    ///   at any time.
    /// * set anything behind a pooler that gives each transaction another connection. There, a setting is lost or meets
    ///   another client's statements.
    ///
    /// # Errors
    ///
    /// A connection whose hook fails is closed, and counts as a failed connection. A read goes to another server. A
    /// write, or a read that finds no other server, fails with [`sqlx::Error::Io`], which becomes
    /// [`Error::Unavailable`](crate::Error::Unavailable). The error names hook and server, and is logged, once in 10 s
    /// for each pool. The same holds for a hook that leaves a transaction open, makes a connection for reads writable,
    /// or makes one for writes read-only.
    ///
    /// Opening a connection, with its hook, is given up after 10 s, or after the longest time that a request waits if
    /// that is longer. Beside its own statements, a hook costs two or three round trips for each new connection, which
    /// look at what it has left.
    pub fn after_connect<F>(self, hook: F) -> Self
    where
        F: for<'c> Fn(
                &'c mut <Db<D> as sqlx::Database>::Connection,
                PoolUse,
            ) -> BoxFuture<'c, Result<(), sqlx::Error>>
            + Send
            + Sync
            + 'static,
    {
        Self { after_connect: Some(Arc::new(hook)), ..self }
    }

    /// The cluster, for migrations and jobs. Available to ignite fairings that are attached after this one, and from
    /// then on. Without this fairing, returns `None` and logs an error.
    ///
    /// ```rust,no_run
    /// # #[cfg(feature = "sqlite")] mod jobs {
    /// use rocket::{Build, Rocket, fairing::AdHoc, tokio};
    /// use rocket_replicated::sqlite::Replicated;
    ///
    /// fn rocket() -> Rocket<Build> {
    ///     let nightly = AdHoc::on_liftoff("Reports", |rocket| Box::pin(async move {
    ///         let Some(cluster) = Replicated::fetch(rocket).cloned() else { return };
    ///         tokio::spawn(async move {
    ///             let posts = sqlx::query_scalar("SELECT count(*) FROM posts").fetch_one(&cluster.read(None)).await;
    ///             posts.map_or_else(|error| eprintln!("{error}"), |posts: i64| println!("{posts} posts"));
    ///         });
    ///     }));
    ///     rocket::build().attach(Replicated::fairing()).attach(nightly)
    /// }
    /// # }
    /// ```
    pub fn fetch<P: Phase>(rocket: &Rocket<P>) -> Option<&Cluster<D>> {
        attached(rocket)
    }
}

impl<D: Database<Pool: Backend>> fmt::Debug for Replicated<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Replicated<{}>", type_name::<D>())
    }
}

#[rocket::async_trait]
impl<D: Database<Pool: Backend>> Fairing for Replicated<D> {
    fn info(&self) -> Info {
        Info {
            name: "Replicated Database",
            kind: Kind::Ignite | Kind::Liftoff | Kind::Response | Kind::Shutdown | Kind::Singleton,
        }
    }

    async fn on_ignite(&self, rocket: Rocket<Build>) -> fairing::Result {
        let config = Config::read::<Db<D>>(rocket.figment(), D::NAME)
            .and_then(|config| Attached::check::<D>(&rocket, &config).map(|()| config));
        let config = match config {
            Ok(config) => config,
            Err(problem) => {
                error!("Database `{}` is misconfigured: {problem}", D::NAME);
                return Err(rocket.manage(FailedFairing::<D>::new()));
            }
        };
        warn_of_missing_folders::<D>(&config);
        if let Err(problem) = begin_files::<D>(&config) {
            error!("Database `{}` cannot be opened: {problem}.", D::NAME);
            return Err(rocket.manage(FailedFairing::<D>::new()));
        }
        let resolver = rocket.state::<Resolver>().cloned().unwrap_or_default();
        let budget = rocket.state::<PositionBudget>().copied().unwrap_or_default();
        match Inner::open(D::NAME, config, resolver, budget, self.after_connect.clone()) {
            Ok(inner) => {
                let cluster = Cluster::<D>(Arc::new(inner));
                cluster.0.ignite().await;
                Ok(Attached::add::<D>(rocket, &cluster.0.config).manage(cluster))
            }
            Err(problem) => {
                error!("Database `{}` cannot be opened: {problem}.", D::NAME);
                Err(rocket.manage(FailedFairing::<D>::new()))
            }
        }
    }

    async fn on_liftoff(&self, rocket: &Rocket<Orbit>) {
        if let Some(Cluster(inner)) = attached::<D, _>(rocket) {
            log_configuration::<D>(&inner.config);
            inner.lift_off().await;
            #[cfg(feature = "metrics")]
            tokio::spawn(crate::metrics::publish(Arc::downgrade(inner)));
        }
    }

    /// Pins are sent here, not through a cookie jar: a handler may commit and then fail, and Rocket drops the jar's
    /// cookies on the way to a catcher.
    async fn on_response<'r>(&self, request: &'r Request<'_>, response: &mut Response<'r>) {
        let session = existing_session::<D>(request);
        let is_our_fault =
            || RetryLater::is_told(request) || session.is_some_and(|session| session.was_refused());
        if response.status() == Status::ServiceUnavailable
            && !response.headers().contains("Retry-After")
            && is_our_fault()
        {
            response.set_raw_header("Retry-After", RetryLater::SECONDS);
        }

        let Some(session) = session else { return };
        // INVARIANT: only `ReplicatedDb`, and connections that may write, clone this `Arc`, besides the request's cache.
        // More than one reference therefore means that a handle is still alive.
        let in_use = Arc::strong_count(session) > 1;
        let pin = session.answer(in_use, || name_of(request)).await;
        if let Some((choice, took)) = session.report() {
            debug!(
                target: TARGET,
                "{} asked database `{}`: {choice}, {:.1} ms.",
                name_of(request),
                D::NAME,
                took.as_secs_f64() * 1e3,
            );
            if session.cluster.config.server_timing == ServerTiming::Sent {
                response.adjoin_raw_header("Server-Timing", server_timing(D::NAME, &choice, took));
            }
        }
        let Some(pin) = pin else { return };
        let Some(pins) = &session.cluster.pins else { return };
        pins.send(pin, request.method(), response);
    }

    async fn on_shutdown(&self, rocket: &Rocket<Orbit>) {
        if let Some(Cluster(inner)) = attached::<D, _>(rocket) {
            inner.shut_down().await;
        }
    }
}

/// The name of a request in messages, as in `` GET /posts/<id> (`show`) ``. It names the route, as the path may hold
/// secrets.
pub(super) fn name_of(request: &Request<'_>) -> String {
    let method = request.method();
    match request.route() {
        Some(route) => match &route.name {
            Some(handler) => format!("{method} {} (`{handler}`)", route.uri),
            None => format!("{method} {}", route.uri),
        },
        None => format!("{method} without a route"),
    }
}

/// A metric of <https://www.w3.org/TR/server-timing/>. Names of databases are tokens, and names of servers have no
/// quotes.
fn server_timing(database: &str, choice: &Choice, took: Duration) -> String {
    let of = if database == "replicated" { String::new() } else { format!("{database} at ") };
    format!(
        "db;desc=\"{of}{}: {}\";dur={:.1}",
        choice.node(),
        choice.reason().as_str(),
        took.as_secs_f64() * 1e3
    )
}

/// Logs the effective configuration.
fn log_configuration<D: Database<Pool: Backend>>(config: &Config) {
    const INDENTED: &str = "rocket_replicated::_";
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
        read_methods: _,
        pinned_without_master: _,
        refused_write,
        checks,
        consistency,
        catch_up_timeout,
        server_timing,
        pin,
    } = config;

    info!("Replicated database `{}`:", D::NAME);
    info!(target: INDENTED, "master: {} at {}", master.name, master.address);
    for slave in slaves {
        let follow = slave.follow.map(|every| format!(", copied every {every:?}")).unwrap_or_default();
        let zone = slave.zone.as_ref().map(|zone| format!(", zone {zone}")).unwrap_or_default();
        let spare = if slave.weight == 0 { " (serves only while no other slave can)" } else { "" };
        let at = if slave.discover.is_some() { "each address of" } else { "at" };
        let logical = match slave.log {
            SlaveLog::Other if Db::<D>::TELLS_TIMELINE => ", a logical replica",
            SlaveLog::Other | SlaveLog::Masters => "",
        };
        info!(
            target: INDENTED,
            "slave: {} {at} {}, weight {}{spare}{zone}{follow}{logical}",
            slave.server.name,
            slave.server.address,
            slave.weight
        );
    }
    match read_from_slaves {
        _ if slaves.is_empty() => info!(target: INDENTED, "reads: from the master, there are no slaves"),
        &ReadShare::ALL => {
            info!(target: INDENTED, "reads: from slaves, each waited for up to {slave_timeout:?}")
        }
        &ReadShare::ASKED => info!(target: INDENTED, "reads: from the master, unless asked for slaves"),
        share => info!(target: INDENTED, "reads: from slaves {share}, the others from the master"),
    }
    if let Some(zone) = zone.as_ref().filter(|_| !slaves.is_empty()) {
        let near = slaves.iter().filter(|slave| config.rank(slave) == Rank::Near).count();
        if near == 0 {
            info!(target: INDENTED, "reads: from slaves in any zone, because none with a weight above 0 is in zone {zone}");
        } else {
            info!(target: INDENTED, "reads: from slaves in zone {zone} ({near} of them), from others while none of those can serve");
        }
    }
    if let Some(threshold) = local_threshold.filter(|_| !slaves.is_empty()) {
        info!(target: INDENTED, "reads: from slaves whose round trip takes at most {threshold:?} longer than the nearest one's");
    }
    if *affinity == Affinity::Address && !slaves.is_empty() {
        info!(target: INDENTED, "reads: each client from the same slave, by its address, while the slave is usable");
    }
    if *refused_write == RefusedWrite::Reroute {
        info!(target: INDENTED, "reads that turn out to write: run again on the master");
    }
    match pin {
        Some(PinConfig { lag_window, cookie, header, .. }) => {
            let header = header.as_ref().map(|name| format!(" or header `{name}`")).unwrap_or_default();
            let from = match consistency {
                Consistency::Window => format!("the master for {lag_window:?}"),
                Consistency::Position => {
                    format!(
                        "a slave that has replayed it, waited for up to {catch_up_timeout:?}, or the master"
                    )
                }
            };
            let cookie = &cookie.name;
            info!(target: INDENTED, "reads after a write: from {from}, by cookie `{cookie}`{header}");
        }
        None if slaves.is_empty() => {}
        None => info!(target: INDENTED, "reads after a write: like all others, because `lag_window` is 0"),
    }
    if *server_timing == ServerTiming::Sent {
        info!(target: INDENTED, "replies: `Server-Timing` tells which server was asked, and why");
    }
    if *reserve > 0 {
        let all = master_reads.settings.max_connections;
        info!(target: INDENTED, "reads at the master: {all} connections, {reserve} of them for pinned reads");
    }
    let Checks { interval, timeout, max_lag, unknown_lag, follow_promotion } = checks;
    info!(target: INDENTED, "health: each server is asked every {interval:?}, and has {timeout:?} to answer");
    if let Some(max_lag) = max_lag {
        info!(target: INDENTED, "lag: a slave more than {max_lag:?} behind is left out");
    }
    match unknown_lag {
        _ if slaves.is_empty() => {}
        UnknownLag::Use => info!(target: INDENTED, "lag: a slave whose lag cannot be known is used"),
        UnknownLag::LeaveOut => info!(target: INDENTED, "lag: a slave whose lag cannot be known is left out"),
        UnknownLag::Unexpected => {
            info!(
                target: INDENTED,
                "lag: a slave whose lag cannot be known is left out, unless it is a logical replica or another program fills its file"
            );
        }
    }
    if *follow_promotion {
        info!(target: INDENTED, "promotion: if the master is gone, writes go to a slave that was promoted");
    }
    for (address, connections) in connections(config) {
        info!(target: INDENTED, "at most {connections} connections to {address}");
    }
    for SlaveConfig { server, .. } in slaves.iter().filter(|slave| slave.follow.is_none()) {
        let Ok(options) = Db::<D>::options(&server.settings, Access::SlaveReads) else { continue };
        if Db::<D>::missing_folder(&options).is_none() && Db::<D>::is_unfilled(&options) {
            warn!(
                "Slave `{}` of database `{}` is missing or empty, so that reads there fail: let this crate fill it, as \
                 in `{{ url = …, follow = 2 }}`, or copy the master to {}.",
                server.name,
                D::NAME,
                server.address
            );
        }
    }
    if pin.as_ref().is_some_and(|pin| pin.insecure) {
        warn!(
            "The pin cookie of database `{0}` is not `Secure`, so that browsers also send it over plain HTTP. Rocket \
             does not see the TLS of a proxy in front of it: if there is one, say `pin.secure = true`, and without TLS \
             `pin.secure = false`.",
            D::NAME
        );
    }
}

fn begin_files<D: Database<Pool: Backend>>(config: &Config) -> Result<(), String> {
    let followers = config.slaves.iter().filter(|slave| slave.follow.is_some());
    let copies = followers.map(|slave| Db::<D>::options(&slave.server.settings, Access::SlaveReads));
    let copies = copies.collect::<Result<Vec<_>, _>>()?;
    Db::<D>::begin_files(&Db::<D>::options(&config.master.settings, Access::Writes)?, &copies)
}

/// Warns at ignition of folders that do not exist, because the error of a migration would not name them. Not an error:
/// the folder may be mounted later.
fn warn_of_missing_folders<D: Database<Pool: Backend>>(config: &Config) {
    for server in std::iter::once(&config.master).chain(config.slaves.iter().map(|slave| &slave.server)) {
        let Ok(options) = Db::<D>::options(&server.settings, Access::Writes) else { continue };
        if let Some(folder) = Db::<D>::missing_folder(&options) {
            warn!(
                "The folder `{}` of server `{}` of database `{}` does not exist: create it, or correct the path.",
                folder.display(),
                server.name,
                D::NAME,
            );
        }
    }
}

/// The monitor's connections to one server: one for probes, and briefly another one, to find out whether a pooler is in
/// between.
const MONITOR_CONNECTIONS: u32 = 2;

/// The largest number of connections to each server: those of its pools and of the monitor.
fn connections(config: &Config) -> Vec<(String, u32)> {
    let Config { master, master_reads, slaves, checks, .. } = config;
    let reads = |node: &ServerConfig| (node.address.to_string(), node.settings.max_connections);
    let mut pools = vec![reads(master), reads(master_reads)];
    for slave in slaves {
        let (mut address, reads) = reads(&slave.server);
        if slave.discover.is_some() {
            address = format!("each address of {address}");
        }
        pools.push((address.clone(), reads));
        if checks.follow_promotion {
            let writes = master.settings.max_connections + master_reads.settings.max_connections;
            pools.push((address, writes));
        }
    }

    let mut sums: Vec<(String, u32)> = Vec::new();
    for (address, connections) in pools {
        match sums.iter_mut().find(|(other, _)| *other == address) {
            Some((_, sum)) => *sum += connections,
            None => sums.push((address, MONITOR_CONNECTIONS + connections)),
        }
    }
    sums
}
