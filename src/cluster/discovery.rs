//! Finds the servers of an entry whose host has an address for each of them: `discover = "dns"`.
//!
//! | what is looked up                                | what follows                                                    |
//! |--------------------------------------------------|-----------------------------------------------------------------|
//! | an address that is new                           | a server, which serves after one good probe                     |
//! | an address that is gone                          | its server leaves: see [`Server::depart`]                       |
//! | … and its server is the master, by promotion     | it stays for as long as it is the master                        |
//! | no address, an error, or nothing in time         | nothing; one line in the log                                    |
//! | addresses of both families                       | only the first one's family: no server is listed twice          |
//!
//! The resolver is the machine's own, as for every other connection of this process. It knows `/etc/hosts`, search
//! domains, and all other sources that `nsswitch.conf` names. A resolver of our own would tell how long an answer is
//! good for, but would find other addresses than `psql` does on the same machine. So names are looked up again every
//! [`INTERVAL`], which is how long an answer is good for by default in Kubernetes:
//! <https://coredns.io/plugins/kubernetes/>, `ttl`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fmt, io};

use log::{error, info, warn};
use rocket::futures::future::{BoxFuture, join_all};
use rocket::tokio;
use rocket::tokio::sync::{Notify, watch};
use rocket::tokio::task::{JoinHandle, JoinSet};
use rocket::tokio::time::{Instant, sleep_until, timeout};

use super::monitor::Watch;
use super::opening::Opening;
use super::server::Server;
use crate::backend::Driver;
use crate::config::{Config, MAX_SLAVES, SlaveConfig, host_name};

/// The time between two lookups, unless `check_interval` is longer.
const INTERVAL: Duration = Duration::from_secs(5);

/// The shortest time between two lookups, even after failures.
const LEAST_INTERVAL: Duration = Duration::from_secs(1);

/// The time after which a lookup has failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks up the addresses of a host.
#[doc(hidden)]
pub trait Resolve: Send + Sync + 'static {
    /// The addresses of `host`, in the order in which to try them.
    fn addresses(&self, host: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

/// The machine's own resolver, unless another one is given.
#[doc(hidden)]
#[derive(Clone)]
pub struct Resolver(pub Arc<dyn Resolve>);

impl Default for Resolver {
    fn default() -> Self {
        Self(Arc::new(System))
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Resolver").finish_non_exhaustive()
    }
}

struct System;

impl Resolve for System {
    fn addresses(&self, host: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let host = host.to_owned();
        Box::pin(async move {
            let found = tokio::net::lookup_host((host, 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

/// The lookups of one name.
struct Lookup {
    resolver: Resolver,
    host: String,
    /// A lookup that has taken too long. The next one waits for it, because a lookup cannot be ended, and threads would
    /// pile up.
    pending: Option<JoinHandle<io::Result<Vec<IpAddr>>>>,
}

impl Lookup {
    fn new(resolver: Resolver, host: &str) -> Self {
        Self { resolver, host: host.to_owned(), pending: None }
    }

    /// At least one address, all of one family, or the error.
    async fn addresses(&mut self) -> Result<BTreeSet<IpAddr>, String> {
        let Self { resolver, host, pending } = self;
        let pending_lookup = pending.get_or_insert_with(|| tokio::spawn(resolver.0.addresses(host)));
        let Ok(found) = timeout(PATIENCE, pending_lookup).await else {
            return Err(format!("no answer within {PATIENCE:?}"));
        };
        *pending = None;
        match found {
            Ok(Ok(found)) => {
                let found = of_one_family(found);
                if found.is_empty() { Err("it has no address".into()) } else { Ok(found) }
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// The addresses of the family that the resolver prefers. A server that has both an IPv4 and an IPv6 address is one
/// server.
fn of_one_family(addresses: Vec<IpAddr>) -> BTreeSet<IpAddr> {
    let addresses = addresses.iter().map(IpAddr::to_canonical);
    let is_v4 = addresses.clone().next().is_some_and(|first| first.is_ipv4());
    addresses.filter(|address| address.is_ipv4() == is_v4).collect()
}

/// Warns of hosts that have several addresses without `discover`. Each connection takes one of the addresses, and
/// findings about one server would be believed of all.
pub(super) async fn warn_of_several_addresses(database: &str, config: &Config, resolver: &Resolver) {
    let warn = async |slave: &SlaveConfig| {
        let Some(host) = host_name(&slave.server) else { return };
        let found = Lookup::new(resolver.clone(), host).addresses().await.unwrap_or_default();
        if found.len() > 1 {
            warn!(
                "The host of the slave `{}` of database `{database}` has {} addresses, but counts as one server: its \
                 lag and its health are known of one of them only. If each address is a server, say \
                 `discover = \"dns\"`, as in `{{ url = …, discover = \"dns\" }}`.",
                slave.server.name,
                found.len(),
            );
        }
    };
    join_all(config.slaves.iter().filter(|slave| slave.discover.is_none()).map(warn)).await;
}

/// The requests for lookups of one name, and the number of those that have ended.
#[derive(Debug)]
pub(super) struct Lookups {
    requested: Notify,
    /// The number of lookups that have ended.
    ended: watch::Sender<u64>,
}

impl Lookups {
    /// Asks for a lookup, because something is odd about one of the servers: the name may have changed.
    pub(super) fn request(&self) {
        self.requested.notify_one();
    }

    /// Waits until a lookup of the name is requested.
    pub(super) async fn requested(&self) {
        self.requested.notified().await;
    }

    /// Waits until the name has been looked up, and its servers are in the list.
    pub(super) async fn first(&self) {
        let mut ended = self.ended.subscribe();
        if *ended.borrow() == 0 {
            self.request();
        }
        let _ = ended.wait_for(|ended| *ended > 0).await;
    }
}

/// The name by which a server was found, and its address.
pub(super) struct Discovered {
    pub(super) lookups: Arc<Lookups>,
    pub(super) address: IpAddr,
}

/// Keeps the servers of one entry.
pub(super) struct Discovery<DB: Driver> {
    opening: Arc<Opening<DB>>,
    entry: usize,
    resolver: Resolver,
    pub(super) lookups: Arc<Lookups>,
    /// True if the latest lookup has failed.
    has_failed: AtomicBool,
    /// The addresses of servers that had been taken out by an operator when they left.
    taken_out: Mutex<BTreeSet<IpAddr>>,
    /// The tasks that attend to the servers. They end with this.
    tasks: Mutex<JoinSet<()>>,
    watch: Arc<Watch<DB>>,
}

impl<DB: Driver> Discovery<DB> {
    /// One discovery for each entry with `discover`.
    pub(super) fn all(opening: &Arc<Opening<DB>>, resolver: &Resolver, watch: &Arc<Watch<DB>>) -> Vec<Self> {
        let new = |(entry, _)| Self {
            opening: opening.clone(),
            entry,
            resolver: resolver.clone(),
            lookups: Arc::new(Lookups { requested: Notify::new(), ended: watch::Sender::new(0) }),
            has_failed: AtomicBool::new(false),
            taken_out: Mutex::default(),
            tasks: Mutex::default(),
            watch: watch.clone(),
        };
        let slaves = opening.config.slaves.iter().enumerate();
        slaves.filter(|(_, slave)| slave.discover.is_some()).map(new).collect()
    }

    pub(super) fn entry(&self) -> &SlaveConfig {
        &self.opening.config.slaves[self.entry]
    }

    /// Looks the name up over and over, for as long as it is polled.
    pub(super) async fn run(&self) {
        let mut lookup = Lookup::new(self.resolver.clone(), &self.entry().server.address.host);
        let interval = INTERVAL.max(self.watch.checks.interval);
        loop {
            let began = Instant::now();
            let found = lookup.addresses().await;
            self.take(found, interval).await;
            // Jittered, so that the processes of an application that were deployed at once do not all ask at once.
            let due = began + interval.mul_f64(0.9 + 0.2 * fastrand::f64());
            tokio::select! {
                () = sleep_until(due) => {}
                () = self.lookups.requested() => sleep_until(began + LEAST_INTERVAL).await,
            }
        }
    }

    async fn take(&self, found: Result<BTreeSet<IpAddr>, String>, interval: Duration) {
        let SlaveConfig { server: entry, .. } = self.entry();
        let (database, host) = (self.opening.database, &entry.address.host);
        match found {
            Ok(found) => {
                if self.has_failed.swap(false, Ordering::AcqRel) {
                    warn!(
                        "Database `{database}`: the addresses of `{host}` (slave `{}`) are found again.",
                        entry.name
                    );
                }
                self.replace(found).await;
            }
            Err(problem) => {
                if !self.has_failed.swap(true, Ordering::AcqRel) {
                    warn!(
                        "Database `{database}`: the addresses of `{host}` (slave `{}`) are not found: {problem}. \
                         Servers that were found earlier stay in use. The look-up is repeated every {interval:?}: \
                         check the host's name and the name server.",
                        entry.name
                    );
                }
                self.lookups.ended.send_modify(|ended| *ended += 1);
            }
        }
    }

    /// Adds new servers first, and removes others only once the new ones have been looked at. If all addresses change
    /// at once, there is always a server.
    async fn replace(&self, found: BTreeSet<IpAddr>) {
        let present = self.present();
        let found = self.limited(found, &present);
        let new: Vec<_> = found
            .iter()
            .filter(|address| !present.contains_key(address))
            .filter_map(|address| self.add(*address))
            .collect();
        self.lookups.ended.send_modify(|ended| *ended += 1);

        let patience = PATIENCE.min(self.watch.checks.timeout * 2);
        if !new.is_empty() {
            // The master is looked at before them, so that it is recognised if it has one of the addresses.
            let _ = timeout(patience, self.watch.master().health.first_probe()).await;
            new.iter().for_each(|server| server.health.request_probe());
            let _ = timeout(patience, join_all(new.iter().map(|server| server.health.first_probe()))).await;
        }
        for (address, server) in present {
            if !found.contains(&address) {
                self.remove(address, &server);
            }
        }
    }

    /// The servers that the entry has now.
    fn present(&self) -> BTreeMap<IpAddr, Arc<Server<DB>>> {
        let servers = self.watch.servers.all();
        let ours = servers.iter().filter_map(|server| {
            let discovered = server.discovered.as_ref()?;
            let is_ours = Arc::ptr_eq(&discovered.lookups, &self.lookups);
            is_ours.then(|| (discovered.address, server.clone()))
        });
        ours.collect()
    }

    /// At most as many addresses as there may be slaves in the configuration. Known addresses come before others.
    fn limited(
        &self,
        found: BTreeSet<IpAddr>,
        present: &BTreeMap<IpAddr, Arc<Server<DB>>>,
    ) -> BTreeSet<IpAddr> {
        let (known, new): (Vec<_>, Vec<_>) = found.iter().partition(|address| present.contains_key(address));
        known.into_iter().chain(new).take(MAX_SLAVES).copied().collect()
    }

    fn add(&self, address: IpAddr) -> Option<Arc<Server<DB>>> {
        let discovered = Discovered { lookups: self.lookups.clone(), address };
        let server = match self.opening.discovered(self.entry(), discovered, &self.watch.servers) {
            Ok(server) => Arc::new(server),
            Err(problem) => {
                let (database, name) = (self.opening.database, &self.entry().server.name);
                error!(
                    "Database `{database}`: the address {address} of the slave `{name}` cannot be used: {problem}."
                );
                return None;
            }
        };
        let host = &self.entry().server.address.host;
        info!("The {} was found: `{host}` has the address {address}.", server.health);
        if self.taken_out().remove(&address) {
            server.health.set_taken_out(true);
        }
        self.watch.add(server.clone());
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(self.watch.clone().attend(server.clone()));
        Some(server)
    }

    fn remove(&self, address: IpAddr, server: &Server<DB>) {
        if !self.watch.remove(server) {
            return;
        }
        if server.health.is_taken_out() {
            // The server is likely to be back after its maintenance.
            self.taken_out().insert(address);
        }
        let host = &self.entry().server.address.host;
        info!(
            "The {} leaves: `{host}` does not have the address {address} any more. Requests that read from it can \
             finish.",
            server.health
        );
    }

    fn taken_out(&self) -> MutexGuard<'_, BTreeSet<IpAddr>> {
        self.taken_out.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, feature = "postgres"))]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::{Arc, Weak};

    use rocket::figment::Figment;
    use rocket::figment::providers::{Format, Toml};
    use sqlx::Postgres;

    use super::super::{Inner, PositionBudget};
    use super::*;

    /// Answers with the addresses that it was given last.
    #[derive(Default)]
    struct Given {
        addresses: Mutex<Vec<IpAddr>>,
        lookups: AtomicUsize,
    }

    impl Resolve for Given {
        fn addresses(&self, _host: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
            self.lookups.fetch_add(1, Ordering::SeqCst);
            let addresses = self.addresses.lock().unwrap().clone();
            Box::pin(async { Ok(addresses) })
        }
    }

    impl Given {
        fn set(&self, addresses: &[&str]) {
            *self.addresses.lock().unwrap() = addresses_of(addresses);
        }
    }

    fn addresses_of(addresses: &[&str]) -> Vec<IpAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    /// A cluster at addresses at which no server listens.
    fn open(resolver: &Arc<Given>) -> Inner<Postgres> {
        let toml = "[debug.databases.blog]\nurl = \"postgres://app@127.0.0.1:1/blog\"\n\
                    slaves = [{ url = \"postgres://app@readers.test:1/blog\", discover = \"dns\" }]";
        let figment = Figment::from(rocket::Config::debug_default()).merge(Toml::string(toml).nested());
        let config = Config::read::<Postgres>(&figment.select("debug"), "blog").unwrap();
        Inner::open("blog", config, Resolver(resolver.clone()), PositionBudget::default(), None).unwrap()
    }

    fn names(inner: &Inner<Postgres>) -> Vec<String> {
        inner.status().into_iter().map(|node| node.name).collect()
    }

    async fn until(what: &str, done: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !done() {
            assert!(Instant::now() < deadline, "{what}: not within 30 s");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[rocket::async_test]
    async fn a_server_that_has_left_is_freed_once_nobody_has_it() {
        let resolver = Arc::<Given>::default();
        resolver.set(&["127.0.0.2", "127.0.0.3"]);
        let inner = open(&resolver);
        assert_eq!(resolver.lookups.load(Ordering::SeqCst), 0, "nothing is looked up before launch");
        inner.monitor.begin().await;
        assert_eq!(names(&inner), ["127.0.0.1", "readers.test-127.0.0.2", "readers.test-127.0.0.3"]);

        let held = inner.slave("readers.test-127.0.0.2").unwrap();
        let weak: Weak<_> = Arc::downgrade(&held);
        let task = Arc::downgrade(&held.health);
        resolver.set(&["127.0.0.3"]);
        until("another answer", || names(&inner).len() == 2).await;
        until("the end of its departure", || held.has_left()).await;
        // The only handle left is the test's.
        until("the end of its tasks", || weak.strong_count() == 1).await;
        drop(held);
        assert!(weak.upgrade().is_none() && task.upgrade().is_none());

        let all: Vec<_> = inner.servers.all().iter().map(Arc::downgrade).collect();
        drop(inner);
        until("the end of all", || all.iter().all(|server| server.upgrade().is_none())).await;
    }

    #[rocket::async_test]
    async fn no_more_servers_are_kept_than_may_be_configured() {
        let resolver = Arc::<Given>::default();
        let all: Vec<_> = (1..=100).map(|last| format!("127.0.1.{last}")).collect();
        resolver.set(&all.iter().map(String::as_str).collect::<Vec<_>>());
        let inner = open(&resolver);
        inner.monitor.begin().await;
        assert_eq!(names(&inner).len(), 1 + MAX_SLAVES);
    }

    #[test]
    fn a_server_with_addresses_of_both_families_is_one() {
        let found = |addresses: &[&str]| of_one_family(addresses_of(addresses));
        let set = |addresses: &[&str]| addresses_of(addresses).into_iter().collect::<BTreeSet<_>>();
        assert_eq!(found(&["::2", "10.0.0.2", "::1", "10.0.0.1", "::2"]), set(&["::1", "::2"]));
        assert_eq!(found(&["10.0.0.2", "::2", "::ffff:10.0.0.3"]), set(&["10.0.0.2", "10.0.0.3"]));
        assert_eq!(found(&[]), set(&[]));
    }

    #[rocket::async_test]
    async fn a_resolver_that_does_not_answer_is_asked_once() {
        struct Silent(AtomicUsize);

        impl Resolve for Silent {
            fn addresses(&self, _host: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
                self.0.fetch_add(1, Ordering::SeqCst);
                Box::pin(std::future::pending())
            }
        }

        let resolver = Arc::new(Silent(AtomicUsize::new(0)));
        let mut lookup = Lookup::new(Resolver(resolver.clone()), "readers.test");
        for _ in 0..2 {
            assert_eq!(lookup.addresses().await.unwrap_err(), "no answer within 5s");
        }
        assert_eq!(resolver.0.load(Ordering::SeqCst), 1);
    }

    #[rocket::async_test]
    async fn the_machine_knows_itself() {
        let found = Lookup::new(Resolver::default(), "localhost").addresses().await.unwrap();
        assert!(found.iter().all(|address| address.is_loopback()), "{found:?}");
        assert!(Lookup::new(Resolver::default(), "no name").addresses().await.is_err());
    }
}
