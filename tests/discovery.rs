//! `discover = "dns"`: the servers that a host name resolves to come and go while applications read from them.

use std::collections::BTreeMap;

use rocket::local::asynchronous::Client;
use rocket_replicated::backend::Backend;
use rocket_replicated::{Cluster, Database, NodeState, Replicated, Role};

use rocket_replicated_testing::server::wait_for;
use rocket_replicated_testing::{Dbms, Server, Servers};
use support::dns::{Dns, loopback};
use support::{eventually, rocket_over};

/// SQL that these tests need besides that of other tests.
trait Addressed: Dbms {
    /// A statement that takes 20 ms and returns a BIGINT. The next one takes 9 s.
    const BRIEF: &str;
    const NINE_SECONDS: &str;
    /// Selects the number of the application's connections, including those of probes.
    const CONNECTIONS: &str;
}

impl Addressed for rocket_replicated_testing::mysql::MySql {
    const BRIEF: &str = "SELECT (SELECT count(*) FROM notes) + SLEEP(0.02)";
    const NINE_SECONDS: &str = "SELECT (SELECT count(*) FROM notes) + SLEEP(9)";
    const CONNECTIONS: &str = "SELECT count(*) FROM information_schema.processlist WHERE user = 'app'";
}

impl Addressed for rocket_replicated_testing::postgres::Postgres {
    const BRIEF: &str = "SELECT count(*) FROM notes, pg_sleep(0.02)";
    const NINE_SECONDS: &str = "SELECT count(*) FROM notes, pg_sleep(9)";
    const CONNECTIONS: &str = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";
}

/// A master at 127.0.0.1, slaves at other addresses on the same port, and a name server.
struct Named<P: Addressed> {
    // Declared before the cluster, in whose folder the slaves live.
    slaves: BTreeMap<u8, Server<P>>,
    cluster: Servers<P>,
    dns: Dns,
    /// The host name. Each test has its own, so that lines in the log can be told apart.
    host: String,
}

impl<P: Addressed> Named<P> {
    fn new(name: &str, slaves: &[u8], found: &[u8]) -> Self {
        let cluster = Servers::<P>::start(P::default(), 0);
        cluster.master.sql("CREATE TABLE notes (id INTEGER PRIMARY KEY); GRANT ALL ON notes TO app");
        let start = |last| (last, cluster.master.start_slave_at(loopback(last)));
        let slaves: BTreeMap<_, _> = slaves.iter().copied().map(start).collect();
        let position = P::position(&cluster.master);
        for slave in slaves.values() {
            wait_for("replay on a slave", || P::has_replayed(slave, &position));
        }
        Self { slaves, cluster, dns: Dns::start(found), host: format!("{name}-{}.test", P::SCHEME) }
    }

    async fn launch<D: Database<Pool: Backend>>(&self, keys: &str) -> (Client, Cluster<D>) {
        let section = format!(
            "url = \"{}\"\nslaves = [{{ url = \"{}://app:secret@{}:{}/app\", discover = \"dns\", name = \"{}\" }}]\n\
             check_interval = 0.5\n{keys}",
            self.cluster.master.url(),
            P::SCHEME,
            self.host,
            self.cluster.master.port(),
            self.name(),
        );
        let rocket = rocket_over(&section).manage(self.dns.resolver()).attach(Replicated::<D>::fairing());
        let client = Client::untracked(rocket).await.unwrap();
        let cluster = Replicated::<D>::fetch(client.rocket()).unwrap().clone();
        (client, cluster)
    }

    fn name(&self) -> &str {
        self.host.split('.').next().unwrap()
    }

    fn node(&self, last: u8) -> String {
        format!("{}-{}", self.name(), loopback(last))
    }

    /// The number of the application's connections to a slave.
    fn connections(&self, last: u8) -> usize {
        self.slaves[&last].sql(P::CONNECTIONS).parse().unwrap()
    }

    /// Waits until the name has been looked up after this call, and the answer has had its effect.
    async fn looked_up(&self) {
        let before = self.dns.queries();
        // The second lookup begins after the first one has had its effect.
        eventually("two looks", async || (self.dns.queries() >= before + 2).then_some(())).await;
    }
}

fn states<D: Database<Pool: Backend>>(cluster: &Cluster<D>) -> BTreeMap<String, NodeState> {
    let slaves = cluster.status().into_iter().filter(|node| node.role == Role::Slave);
    slaves.map(|node| (node.name, node.state)).collect()
}

fn up<const N: usize>(nodes: [String; N]) -> BTreeMap<String, NodeState> {
    nodes.into_iter().map(|node| (node, NodeState::Up)).collect()
}

crate::on_servers! {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use rocket::local::asynchronous::Client;
    use rocket::tokio::{self, task::JoinHandle};
    use rocket_replicated::{Cluster, NodeState, Reason, Role};

    use super::{Addressed, Named, eventually, states, up};
    use rocket_replicated_testing::Dbms as _;
    use support::dns::{Answer, Dns};
    use support::{logbook, rocket_over};

    /// Warnings about this node. Slow statements do not count, because these tests run slow statements on purpose.
    fn warnings_of(node: &str) -> Vec<String> {
        let lines = logbook::lines(&["WARN", node]);
        lines.into_iter().filter(|line| !line.contains("Slow statement")).collect()
    }

    /// The number of requests that each node has served.
    type Reads = Arc<Mutex<BTreeMap<String, usize>>>;

    type Failures = Arc<Mutex<Vec<String>>>;

    /// Readers that ask all the time. They take a new handle for each read, as requests do.
    struct Load {
        ended: Arc<AtomicBool>,
        tasks: Vec<JoinHandle<()>>,
        reads: Reads,
        failures: Failures,
    }

    impl Load {
        fn start(cluster: &Cluster<Database>) -> Self {
            let (ended, reads, failures) = (Arc::<AtomicBool>::default(), Arc::default(), Arc::default());
            let tasks = (0..8).map(|_| {
                let (cluster, ended) = (cluster.clone(), ended.clone());
                let (reads, failures): (Reads, Failures) = (Arc::clone(&reads), Arc::clone(&failures));
                tokio::spawn(async move {
                    while !ended.load(Ordering::SeqCst) {
                        let db = cluster.read(None);
                        for _ in 0..2 {
                            let read = sqlx::query_scalar::<_, i64>(Dbms::BRIEF);
                            if let Err(error) = read.fetch_one(&db).await {
                                return failures.lock().unwrap().push(error.to_string());
                            }
                        }
                        let node = db.choice().unwrap().node().to_owned();
                        *reads.lock().unwrap().entry(node).or_default() += 1;
                    }
                })
            });
            let tasks = tasks.collect();
            Self { ended, tasks, reads, failures }
        }

        /// The number of requests that this node has served.
        fn reads(&self, node: &str) -> usize {
            self.reads.lock().unwrap().get(node).copied().unwrap_or_default()
        }

        async fn end(self) {
            self.ended.store(true, Ordering::SeqCst);
            for task in self.tasks {
                task.await.unwrap();
            }
            assert_eq!(*self.failures.lock().unwrap(), Vec::<String>::new());
            assert!(self.reads.lock().unwrap().values().sum::<usize>() > 100);
        }
    }

    #[support::async_test]
    async fn servers_come_and_go_under_load() {
        let lab = Named::<Dbms>::new("come-and-go", &[2, 3], &[2]);
        let (two, three) = (lab.node(2), lab.node(3));
        // The long time-outs keep reads away from the master on a busy machine.
        let (_client, cluster) = lab.launch::<Database>("check_timeout = 5\nslave_timeout = 5\nmax_lag = false").await;
        assert_eq!(states(&cluster), up([two.clone()]), "looked up before the first request");
        let each = format!("each address of {}:", lab.host);
        assert_eq!(logbook::lines(&[&format!("slave: {}", lab.name()), &each]).len(), 1);
        assert_eq!(logbook::lines(&["at most", "connections to", &each]).len(), 1);
        let load = Load::start(&cluster);
        eventually("reads of the first", async || (load.reads(&two) > 10).then_some(())).await;

        let (job, slow) = (cluster.read(None), cluster.read(None));
        sqlx::query("SELECT id FROM notes").execute(&job).await.unwrap();
        assert_eq!(job.choice().unwrap().node(), two);

        lab.dns.set(&[2, 3]);
        eventually("reads of the second", async || (load.reads(&three) > 10).then_some(())).await;
        assert_eq!(states(&cluster), up([two.clone(), three.clone()]));
        let lines = || logbook::lines(&[lab.name()]);
        assert_eq!(load.reads("127.0.0.1"), 0, "the master is not asked: {:#?}", lines());

        let mut under_way = cluster.read(None);
        for _ in 0..1_000 {
            sqlx::query("SELECT id FROM notes").execute(&under_way).await.unwrap();
            if under_way.choice().unwrap().node() == two {
                break;
            }
            under_way = cluster.read(None);
        }
        let began = Instant::now();
        let statement = tokio::spawn(async move {
            let slept = sqlx::query(Dbms::NINE_SECONDS).execute(&under_way).await;
            (slept.map(drop).map_err(|error| error.to_string()), under_way.choice().unwrap().node().to_owned())
        });
        lab.dns.set(&[3]);
        eventually("the end of the first", async || (!states(&cluster).contains_key(&two)).then_some(())).await;
        assert!(began.elapsed() < Duration::from_secs(8), "there is a statement to be finished");
        let before = load.reads(&three);
        eventually("more reads of the second", async || (load.reads(&three) > before + 20).then_some(())).await;
        let last = load.reads(&two);

        assert_eq!(statement.await.unwrap(), (Ok(()), two.clone()), "what is under way is finished");
        eventually("no connection to the first", async || (lab.connections(2) == 0).then_some(())).await;
        assert_eq!(load.reads(&two), last, "nobody is led there any more");
        assert_eq!(load.reads("127.0.0.1"), 0, "the master was never needed: {:#?}", lines());

        sqlx::query("SELECT id FROM notes").execute(&job).await.unwrap();
        let choice = job.choice().unwrap();
        assert_eq!(
            (choice.role(), choice.reason()),
            (Role::Master, Reason::SlavesUnavailable),
            "no other slave's state"
        );
        sqlx::query("SELECT id FROM notes").execute(&slow).await.unwrap();
        assert_eq!(slow.choice().unwrap().node(), three);
        assert!(cluster.take_out(&two).is_err());
        load.end().await;
        assert_eq!(warnings_of(&two), [""; 0]);
    }

    #[support::async_test]
    async fn no_answer_changes_nothing_and_is_logged_once() {
        let lab = Named::<Dbms>::new("no-answer", &[2, 3], &[2, 3]);
        let both = up([lab.node(2), lab.node(3)]);
        let (_client, cluster) = lab.launch::<Database>("").await;
        assert_eq!(states(&cluster), both);
        let warnings = || logbook::lines(&["WARN", &lab.host, "are not found"]).len();
        for answer in [Answer::Addresses(Vec::new()), Answer::Refused, Answer::Silence] {
            lab.dns.answer(answer.clone());
            lab.looked_up().await;
            assert_eq!((states(&cluster), warnings()), (both.clone(), 1), "{answer:?}");
            let db = cluster.read(None);
            sqlx::query("SELECT id FROM notes").execute(&db).await.unwrap();
            assert_eq!(db.choice().unwrap().role(), Role::Slave);
        }
        lab.dns.set(&[3]);
        eventually("an answer", async || (states(&cluster) == up([lab.node(3)])).then_some(())).await;
        assert_eq!(logbook::lines(&["WARN", &lab.host, "are found again"]).len(), 1);
        lab.dns.answer(Answer::Refused);
        eventually("another failure", async || (warnings() == 2).then_some(())).await;
    }

    #[support::async_test]
    async fn a_name_that_has_no_address_at_launch_may_have_one_later() {
        let lab = Named::<Dbms>::new("later", &[2], &[]);
        let (_client, cluster) = lab.launch::<Database>("").await;
        assert_eq!(states(&cluster), BTreeMap::new());
        let db = cluster.read(None);
        sqlx::query("SELECT id FROM notes").execute(&db).await.unwrap();
        assert_eq!(db.choice().unwrap().reason(), Reason::SlavesUnavailable);
        lab.dns.set(&[2]);
        eventually("a slave", async || (states(&cluster) == up([lab.node(2)])).then_some(())).await;
    }

    #[support::async_test]
    async fn a_server_that_fails_is_looked_up_soon_and_may_come_back() {
        let lab = Named::<Dbms>::new("fails", &[2, 3], &[2, 3]);
        let (two, three) = (lab.node(2), lab.node(3));
        let (_client, cluster) = lab.launch::<Database>("").await;
        let load = Load::start(&cluster);
        cluster.take_out(&three).unwrap();
        lab.looked_up().await;
        let looks = lab.dns.queries();
        lab.dns.set(&[2]);
        let killed = Instant::now();
        lab.slaves[&3].kill();
        eventually("a look", async || (lab.dns.queries() > looks).then_some(())).await;
        assert!(killed.elapsed() < Duration::from_secs(4), "before its turn, but after {:?}", killed.elapsed());
        eventually("the end of one", async || (states(&cluster) == up([two.clone()])).then_some(())).await;

        lab.slaves[&3].start();
        lab.dns.set(&[2, 3]);
        let taken_out = [(two.clone(), NodeState::Up), (three.clone(), NodeState::TakenOut)];
        eventually("one that is back, and still taken out", async || {
            (states(&cluster) == BTreeMap::from(taken_out.clone())).then_some(())
        })
        .await;
        cluster.put_back(&three).unwrap();
        let before = load.reads(&three);
        eventually("reads of it", async || (load.reads(&three) > before).then_some(())).await;
        load.end().await;
    }

    /// `Cluster::slave_pool` of a server is closed when the server leaves.
    #[support::async_test]
    async fn the_pool_of_a_server_that_is_gone_is_closed() {
        let lab = Named::<Dbms>::new("pool", &[2, 3], &[2]);
        let (_client, cluster) = lab.launch::<Database>("").await;
        let pool = cluster.slave_pool(&lab.node(2)).unwrap();
        sqlx::query("SELECT 1").execute(&pool).await.unwrap();
        lab.dns.set(&[3]);
        eventually("its end", async || pool.is_closed().then_some(())).await;
        assert!(cluster.slave_pool(&lab.node(2)).is_err(), "it is no slave any more");
        eventually("no connection", async || (lab.connections(2) == 0).then_some(())).await;
    }

    /// When a pod is deleted, its address leaves the name, and soon afterwards the pod no longer answers.
    #[support::async_test]
    async fn a_server_that_freezes_as_it_leaves_keeps_no_read_waiting() {
        let lab = Named::<Dbms>::new("freezes", &[2, 3], &[2]);
        let (_client, cluster) = lab.launch::<Database>("").await;
        let (db, statements) = (cluster.read(None), Arc::new(AtomicUsize::new(0)));
        let counted = statements.clone();
        let read = tokio::spawn(async move {
            counted.fetch_add(1, Ordering::SeqCst);
            let slept = sqlx::query_scalar::<_, i64>(Dbms::NINE_SECONDS).fetch_one(&db).await;
            (slept.map_err(|error| error.to_string()), db.choice().unwrap().node().to_owned())
        });
        eventually("a statement", async || (statements.load(Ordering::SeqCst) == 1).then_some(())).await;
        lab.dns.set(&[3]);
        let two = lab.node(2);
        eventually("the end of the first", async || (!states(&cluster).contains_key(&two)).then_some(())).await;
        lab.slaves[&2].freeze();
        let read = tokio::time::timeout(Duration::from_secs(30), read).await;
        let (slept, node) = read.expect("an answer of another server").unwrap();
        assert_eq!(slept, Ok(0));
        assert_ne!(node, two, "it has run elsewhere");
        lab.slaves[&2].thaw();
        eventually("no connection", async || (lab.connections(2) == 0).then_some(())).await;
        assert_eq!(warnings_of(&two), [""; 0], "it was to go");
    }

    #[support::async_test]
    async fn the_master_among_the_addresses_is_no_slave() {
        let lab = Named::<Dbms>::new("with-master", &[2], &[1, 2]);
        let (one, two) = (lab.node(1), lab.node(2));
        let (_client, cluster) = lab.launch::<Database>("").await;
        let expected = BTreeMap::from([(one.clone(), NodeState::MasterItself), (two.clone(), NodeState::Up)]);
        assert_eq!(states(&cluster), expected);
        sqlx::query("INSERT INTO notes VALUES (1)").execute(&cluster.write()).await.unwrap();
        let load = Load::start(&cluster);
        eventually("reads", async || (load.reads(&two) > 30).then_some(())).await;
        assert_eq!(load.reads(&one), 0);

        // Another server process answers there. The probe of either address may find it first.
        lab.cluster.master.stop();
        eventually("a master that is gone", async || (cluster.status()[0].state == NodeState::Down).then_some(()))
            .await;
        lab.cluster.master.start();
        eventually("a master that is back", async || {
            (cluster.status()[0].state == NodeState::Up && states(&cluster) == expected).then_some(())
        })
        .await;
        lab.looked_up().await;
        assert_eq!(states(&cluster), expected);
        load.end().await;
        assert_eq!(logbook::lines(&["ERROR", &one]), Vec::<String>::new());
    }

    #[support::async_test]
    async fn without_discovery_a_name_with_several_addresses_is_one_slave_and_is_warned_of() {
        let dns = Dns::start(&[2, 3]);
        let (scheme, host) = (Dbms::SCHEME, format!("several-{}.invalid", Dbms::SCHEME));
        let section = format!(
            "url = \"{scheme}://app@127.0.0.1:1/app\"\nslaves = [\"{scheme}://app@{host}:1/app\"]\ncheck_timeout = 0.2"
        );
        let rocket = rocket_over(&section).manage(dns.resolver()).attach(Replicated::fairing());
        let client = Client::untracked(rocket).await.unwrap();
        let warnings = || logbook::lines(&["WARN", &format!("`{host}`"), "has 2 addresses", "discover"]).len();
        eventually("a warning", async || (warnings() > 0).then_some(())).await;
        let cluster = Replicated::fetch(client.rocket()).unwrap();
        assert!(states(cluster).into_keys().eq([host.clone()]));
        assert_eq!(warnings(), 1);
    }
}

/// A promotion that the new master's timeline proves.
mod promotion {
    use rocket_replicated::postgres::Database;
    use rocket_replicated::{NodeState, Role};

    use super::{Named, eventually};
    use rocket_replicated_testing::postgres::Postgres;
    use support::logbook;

    #[support::async_test]
    async fn a_server_that_was_promoted_stays_while_it_is_the_master() {
        let lab = Named::<Postgres>::new("promoted", &[2], &[2]);
        let two = lab.node(2);
        let (_client, cluster) = lab.launch::<Database>("follow_promotion = true").await;
        sqlx::query("INSERT INTO notes VALUES (1)").execute(&cluster.write()).await.unwrap();
        lab.cluster.master.stop();
        lab.slaves[&2].sql("SELECT pg_promote()");
        let master = || cluster.status().into_iter().find(|node| node.role == Role::Master).unwrap();
        eventually("another master", async || (master().name == two).then_some(())).await;
        // The name now leads to standbys only.
        lab.dns.set(&[3]);
        lab.looked_up().await;
        assert_eq!((master().name, master().state), (two.clone(), NodeState::Up));
        sqlx::query("INSERT INTO notes VALUES (2)").execute(&cluster.write()).await.unwrap();
        assert_eq!(lab.slaves[&2].sql("SELECT count(*) FROM notes"), "2");
        assert_eq!(logbook::lines(&["INFO", "leaves", &two]), Vec::<String>::new());
    }
}

/// The machine's own resolver, in a process with host names of its own: <https://cwrap.org/nss_wrapper.html>. No server
/// answers at their addresses.
mod machine {
    use std::path::Path;
    use std::process::Command;
    use std::time::{Duration, SystemTime};
    use std::{env, fs};

    use rocket::local::asynchronous::Client;
    use rocket::tokio;
    use rocket_replicated::postgres::Replicated;

    use super::{eventually, states};
    use support::rocket_over;

    const HOSTS: &str = "NSS_WRAPPER_HOSTS";

    /// Writes the hosts file with another modification time: the file is read again when the second of its last change
    /// differs.
    fn write(hosts: &Path, day: u64, addresses: &[&str]) {
        let lines = addresses.iter().map(|address| format!("{address} machine.test\n"));
        fs::write(hosts, lines.collect::<String>()).unwrap();
        let file = fs::File::options().append(true).open(hosts).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(day * 86_400)).unwrap();
    }

    #[test]
    fn all_addresses_that_the_machine_knows_are_servers() {
        if let Ok(hosts) = env::var(HOSTS) {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            return runtime.block_on(in_a_process_of_its_own(hosts));
        }
        let folder = tempfile::tempdir().unwrap();
        let hosts = folder.path().join("hosts");
        write(&hosts, 1, &["127.0.0.2", "::1", "127.0.0.3"]);
        let mut test = Command::new(env::current_exe().unwrap());
        // A test's thread has the name of the test.
        test.args(["--exact", std::thread::current().name().unwrap(), "--nocapture"]);
        let done = test.env("LD_PRELOAD", "libnss_wrapper.so").env(HOSTS, &hosts).output().unwrap();
        let said = String::from_utf8([done.stdout, done.stderr].concat()).unwrap();
        assert!(done.status.success() && said.contains("1 passed"), "{said}");
    }

    async fn in_a_process_of_its_own(hosts: String) {
        let section = "url = \"postgres://app@127.0.0.1:1/app\"\ncheck_timeout = 0.2\ncheck_interval = 0.2\n\
                       slaves = [{ url = \"postgres://app@machine.test:1/app\", discover = \"dns\" }]";
        let rocket = rocket_over(section).attach(Replicated::fairing());
        let client = Client::untracked(rocket).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap();
        let names = || states(cluster).into_keys().collect::<Vec<_>>();
        assert_eq!(names(), ["machine.test-127.0.0.2", "machine.test-127.0.0.3"]);
        write(hosts.as_ref(), 2, &["127.0.0.3", "127.0.0.4"]);
        eventually("the other addresses", async || {
            (names() == ["machine.test-127.0.0.3", "machine.test-127.0.0.4"]).then_some(())
        })
        .await;
    }
}
