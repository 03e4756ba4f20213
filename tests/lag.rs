//! `max_lag`: a slave that is further behind is left out until it has caught up, and only then.

use std::time::Duration;

use rocket_replicated::{Cluster, Database, NodeState, NodeStatus, backend::Backend};
use rocket_replicated_testing::Dbms;

use support::eventually;

fn status_of<D: Database<Pool: Backend>>(cluster: &Cluster<D>, name: &str) -> NodeStatus {
    cluster.status().into_iter().find(|node| node.name == name).unwrap()
}

fn states<D: Database<Pool: Backend>>(cluster: &Cluster<D>) -> Vec<NodeState> {
    cluster.status().iter().map(|node| node.state).collect()
}

trait Limits: Dbms {
    /// A role that can have one connection.
    const CREATE: &str;
}

impl Limits for rocket_replicated_testing::mysql::MySql {
    const CREATE: &str = "DROP USER IF EXISTS limited; \
                          CREATE USER limited IDENTIFIED BY 'secret' WITH MAX_USER_CONNECTIONS 1; \
                          GRANT SELECT ON *.* TO limited";
}

impl Limits for rocket_replicated_testing::postgres::Postgres {
    const CREATE: &str = "DROP ROLE IF EXISTS limited; \
                          CREATE ROLE limited LOGIN PASSWORD 'secret' CONNECTION LIMIT 1";
}

/// Long enough for many probes, and longer than `max_lag`.
const A_WHILE: Duration = Duration::from_millis(1500);

const KEYS: &str = "lag_window = 3\ncheck_interval = 0.1\ncheck_timeout = 2\nmax_lag = 0.5\n";

crate::on_servers! {
    use std::time::{Duration, Instant};

    use rocket::local::asynchronous::Client;
    use rocket::tokio;
    use rocket_replicated::{Cluster, NodeState};
    use rocket_replicated_testing::Wire;
    use sqlx::Connection;

    use super::{A_WHILE, KEYS, Limits, eventually, states, status_of};
    use support::{logbook, rocket_over};

    type Driver = <Pool as rocket_replicated::backend::Backend>::Db;

    async fn launch(section: &str) -> (Client, Cluster<Database>) {
        let rocket = rocket_over(&format!("{section}{KEYS}")).attach(Replicated::fairing());
        let client = Client::untracked(rocket).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap().clone();
        (client, cluster)
    }

    async fn reader(cluster: &Cluster<Database>) -> String {
        let db = cluster.read(None);
        sqlx::query("SELECT 1").execute(&db).await.unwrap();
        db.choice().unwrap().to_string()
    }

    fn write(lab: &Lab, number: usize) {
        lab.sql(&format!("INSERT INTO notes (body) VALUES ('note {number}')"));
    }

    #[support::async_test]
    async fn a_slave_too_far_behind_is_left_out_until_it_has_caught_up() {
        let lab = Lab::new();
        // A name that is in no other test's log lines.
        let name = format!("late-{}", <Dbms as rocket_replicated_testing::Dbms>::SCHEME);
        let (_client, cluster) = launch(&lab.section().replace("slave-1", &name)).await;
        let late = &lab.servers().slaves[0];
        lab.servers().wait_caught_up();
        late.pause_replay();
        let mut number = 0;
        eventually("its absence", async || {
            number += 1;
            write(&lab, number);
            status_of(&cluster, &name).state == NodeState::Behind
        })
        .await;
        let status = status_of(&cluster, &name);
        // The lag is known in whole milliseconds.
        assert!(status.lag.unwrap() >= std::time::Duration::from_millis(500), "{status:?}");
        for _ in 0..20 {
            assert_eq!(reader(&cluster).await, "slave-2 (reads database)");
        }

        late.resume_replay();
        eventually("its return", async || status_of(&cluster, &name).state == NodeState::Up).await;
        while reader(&cluster).await != format!("{name} (reads database)") {}
        let name = format!("slave `{name}` of database `replicated` is ");
        assert_eq!(logbook::lines(&["WARN", &name, " behind: leaving it out"]).len(), 1);
        assert_eq!(logbook::lines(&["WARN", &name, "back"]).len(), 1);
    }

    #[support::async_test]
    async fn no_slave_falls_behind_an_idle_master() {
        let lab = Lab::new();
        write(&lab, 0);
        let (_client, cluster) = launch(&lab.section()).await;
        eventually("caught-up slaves", async || states(&cluster) == [NodeState::Up; 3]).await;
        let begun = Instant::now();
        while begun.elapsed() < A_WHILE {
            assert_eq!(states(&cluster), [NodeState::Up; 3]);
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// At launch, only the master's current position is known. The slaves have yet to reach it.
    #[support::async_test]
    async fn a_launch_waits_for_slaves_that_are_a_moment_behind() {
        let lab = Lab::new();
        let name = format!("moment-{}", <Dbms as rocket_replicated_testing::Dbms>::SCHEME);
        lab.lag(std::time::Duration::from_secs(1));
        let wrote = Instant::now();
        write(&lab, 0);
        let keys = "lag_window = 60\nmax_lag = \"auto\"\ncheck_interval = 10\ncheck_timeout = 10\n";
        let section = format!("{}{keys}", lab.section().replace("slave-", &name));
        let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
        assert!(wrote.elapsed() >= std::time::Duration::from_secs(1), "{:?}", wrote.elapsed());
        let cluster = Replicated::fetch(client.rocket()).unwrap();
        assert_eq!(states(cluster), [NodeState::Up; 3]);
        for _ in 0..10 {
            let choice = reader(cluster).await;
            assert!(choice.starts_with(&name) && choice.ends_with("(reads database)"), "{choice}");
        }
        assert_eq!(logbook::lines(&["WARN", &name]), Vec::<String>::new());
    }

    /// As at a deployment, while the former processes still have their connections.
    #[support::async_test]
    async fn a_slave_that_is_full_at_launch_is_left_out_until_its_lag_is_known() {
        let lab = Lab::new();
        <Dbms as Limits>::CREATE.split("; ").for_each(|sql| drop(lab.master().sql(sql)));
        lab.catch_up().await;
        let url = lab.slave_urls()[0].replace("//app:", "//limited:");
        let name = format!("full-{}", <Dbms as rocket_replicated_testing::Dbms>::SCHEME);
        let before = <Driver as sqlx::Database>::Connection::connect(&url).await.unwrap();
        lab.pause();
        write(&lab, 0);
        let section = format!(
            "url = \"{}\"\nslaves = [{{ url = \"{url}\", name = \"{name}\" }}]\n",
            lab.master_url(),
        );
        let (_client, cluster) = launch(&section).await;
        assert_eq!(states(&cluster), [NodeState::Up, NodeState::LagUnknown]);
        assert!(reader(&cluster).await.ends_with("(slaves unavailable)"));
        assert_eq!(logbook::lines(&["WARN", &name, "no connection to spare", "`max_connections`"]).len(), 1);
        // The slave has room for a connection now. It is behind at first, and later no more.
        before.close().await.unwrap();
        eventually("word of its lag", async || states(&cluster)[1] == NodeState::Behind).await;
        lab.resume();
        eventually("the slave", async || states(&cluster) == [NodeState::Up; 2]).await;
    }

    #[support::async_test]
    async fn a_slave_that_is_late_at_launch_is_left_out_from_the_first_request() {
        let lab = Lab::new();
        lab.pause();
        write(&lab, 0);
        let (_client, cluster) = launch(&lab.section()).await;
        assert!(reader(&cluster).await.ends_with("(slaves unavailable)"));
        let late = [NodeState::Up, NodeState::Behind, NodeState::Behind];
        eventually("word of it, though the master does nothing", async || states(&cluster) == late).await;
        lab.resume();
        eventually("the slaves", async || states(&cluster) == [NodeState::Up; 3]).await;
    }

    #[support::async_test]
    async fn without_a_master_no_slave_is_behind() {
        let cluster = rocket_replicated_testing::Servers::<Dbms>::start(Default::default(), 1);
        let section = format!(
            "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"slave-1\" }}]\n",
            cluster.master.url(),
            cluster.slaves[0].url(),
        );
        let (_client, nodes) = launch(&section).await;
        eventually("the slave", async || states(&nodes) == [NodeState::Up; 2]).await;
        cluster.master.kill();
        eventually("the loss", async || states(&nodes) == [NodeState::Down, NodeState::Up]).await;
        let begun = Instant::now();
        while begun.elapsed() < A_WHILE {
            assert_eq!(reader(&nodes).await, "slave-1 (reads database)");
        }
    }

    /// The application cannot reach the master, which takes further writes.
    #[support::async_test]
    async fn without_the_master_a_slave_that_lacks_what_another_has_is_left_out() {
        let servers = rocket_replicated_testing::Servers::<Dbms>::start(Default::default(), 2);
        servers.master.sql("CREATE TABLE counts (count INTEGER NOT NULL)");
        servers.wait_caught_up();
        let wire = Wire::to(servers.master.port());
        let section = format!(
            "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"slave-1\" }}, {{ url = \"{}\", name = \"slave-2\" }}]\n",
            wire.url(&servers.master.url()),
            servers.slaves[0].url(),
            servers.slaves[1].url(),
        );
        let (_client, nodes) = launch(&section).await;
        eventually("the slaves", async || states(&nodes) == [NodeState::Up; 3]).await;
        wire.refuse();
        wire.cut();
        eventually("the loss", async || states(&nodes)[0] == NodeState::Down).await;
        servers.slaves[1].pause_replay();
        servers.master.sql("INSERT INTO counts VALUES (1)");
        let late = [NodeState::Down, NodeState::Up, NodeState::Behind];
        eventually("the absence of the one that lacks it", async || states(&nodes) == late).await;
        for _ in 0..20 {
            assert_eq!(reader(&nodes).await, "slave-1 (reads database)");
        }
        servers.slaves[1].resume_replay();
        let back = [NodeState::Down, NodeState::Up, NodeState::Up];
        eventually("its return", async || states(&nodes) == back).await;
    }

    /// The application cannot reach the master for a while. The writes that the slave lacks may be of that time or of
    /// just now. Only in the former case would the slave be late.
    #[support::async_test]
    async fn a_gap_in_probes_of_the_master_makes_no_slave_late() {
        const GAP: Duration = Duration::from_secs(4);

        let lab = Lab::new();
        let wire = Wire::to(lab.servers().master.port());
        let name = format!("gap-{}", <Dbms as rocket_replicated_testing::Dbms>::SCHEME);
        let section = format!(
            "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"{name}\" }}]\n\
             lag_window = 10\ncheck_interval = 0.1\ncheck_timeout = 2\nmax_lag = 3\n",
            wire.url(lab.master_url()),
            lab.slave_urls()[0],
        );
        lab.lag(Duration::from_secs(1));
        let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap();
        eventually("the slave", async || states(cluster) == [NodeState::Up; 2]).await;

        wire.refuse();
        wire.cut();
        eventually("the loss", async || states(cluster)[0] == NodeState::Down).await;
        let lost = Instant::now();
        let mut number = 0;
        let mut write = || {
            number += 1;
            write(&lab, number);
        };
        while lost.elapsed() < GAP {
            write();
            assert_eq!(reader(cluster).await, format!("{name} (reads database)"));
        }
        wire.pass();
        eventually("the master", async || states(cluster)[0] == NodeState::Up).await;
        let returned = Instant::now();
        while returned.elapsed() < 2 * A_WHILE {
            write();
            assert_eq!(reader(cluster).await, format!("{name} (reads database)"));
        }
        assert_eq!(logbook::lines(&["WARN", &name]), Vec::<String>::new());

        // A slave that replays nothing more is late all the same.
        wire.refuse();
        wire.cut();
        eventually("the loss", async || states(cluster)[0] == NodeState::Down).await;
        lab.pause();
        let lost = Instant::now();
        while lost.elapsed() < GAP {
            write();
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        wire.pass();
        eventually("its absence", async || states(cluster) == [NodeState::Up, NodeState::Behind]).await;
    }

    #[support::async_test]
    async fn the_last_server_serves_though_behind_if_stale_reads_are_allowed() {
        let cluster = rocket_replicated_testing::Servers::<Dbms>::start(Default::default(), 1);
        cluster.master.sql("CREATE TABLE counts (count INTEGER NOT NULL)");
        cluster.wait_caught_up();
        let section = |keys: &str| {
            format!(
                "{keys}\nurl = \"{}\"\nslaves = [{{ url = \"{}\", name = \"slave-1\" }}]\n",
                cluster.master.url(),
                cluster.slaves[0].url(),
            )
        };
        let (_stale, stale) = launch(&section("pinned_without_master = \"stale\"")).await;
        let (_fail, fail) = launch(&section("pinned_without_master = \"fail\"")).await;
        cluster.slaves[0].pause_replay();
        for nodes in [&stale, &fail] {
            eventually("its absence", async || {
                cluster.master.sql("INSERT INTO counts VALUES (1)");
                states(nodes) == [NodeState::Up, NodeState::Behind]
            })
            .await;
            assert!(reader(nodes).await.ends_with("(slaves unavailable)"));
        }
        cluster.master.kill();
        for nodes in [&stale, &fail] {
            eventually("the loss", async || states(nodes) == [NodeState::Down, NodeState::Behind]).await;
        }
        assert_eq!(reader(&stale).await, "slave-1 (reads database)");
        sqlx::query("SELECT 1").execute(&fail.read(None)).await.unwrap_err();
    }
}

mod postgresql {
    use std::time::{Duration, Instant};

    use rocket::local::asynchronous::Client;
    use rocket::tokio;
    use rocket_replicated::postgres::{Database, Replicated};
    use rocket_replicated::{Cluster, NodeState, Reason};

    use super::{KEYS, eventually, states, status_of};
    use rocket_replicated_testing::postgres::Postgres;
    use rocket_replicated_testing::{Server, Servers};
    use support::lab::postgres::Lab;
    use support::{logbook, rocket_over};

    async fn launch(section: &str) -> (Client, Cluster<Database>) {
        let rocket = rocket_over(&format!("{section}{KEYS}")).attach(Replicated::fairing());
        let client = Client::untracked(rocket).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap().clone();
        (client, cluster)
    }

    fn section(master: &Server<Postgres>, slave: &Server<Postgres>) -> String {
        format!(
            "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"slave-1\" }}]\n",
            master.url(),
            slave.url()
        )
    }

    /// A statement that the role may not run is not tried again for a minute. Other errors must not have that effect.
    #[support::async_test]
    async fn a_probe_that_fails_once_does_not_blind_the_next_one() {
        use rocket_replicated::internals::{Access, Depth, Engine};
        use sqlx::{Connection, PgConnection};

        let cluster = Servers::start(Postgres, 0);
        let mut conn = PgConnection::connect(&cluster.master.url()).await.unwrap();
        let mut memory = <sqlx::Postgres as Engine>::Memory::default();
        sqlx::raw_sql("BEGIN").execute(&mut conn).await.unwrap();
        sqlx::raw_sql("nonsense").execute(&mut conn).await.unwrap_err();
        let look = sqlx::Postgres::observe(&mut conn, Access::MasterReads, &mut memory, Depth::Full).await;
        look.unwrap_err();
        sqlx::raw_sql("ROLLBACK").execute(&mut conn).await.unwrap();
        let look = sqlx::Postgres::observe(&mut conn, Access::MasterReads, &mut memory, Depth::Light).await;
        assert!(look.unwrap().position.is_some());
    }

    /// The slave has replayed all that it received, but it receives nothing any more.
    #[support::async_test]
    async fn a_slave_that_receives_nothing_is_behind() {
        let cluster = Servers::start(Postgres, 1);
        let (master, slave) = (&cluster.master, &cluster.slaves[0]);
        let (_client, nodes) = launch(&section(master, slave)).await;
        eventually("the slave", async || states(&nodes) == [NodeState::Up; 2]).await;

        slave.sql("ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port=1'");
        slave.sql("SELECT pg_reload_conf()");
        eventually("its absence", async || {
            master.sql("SELECT pg_logical_emit_message(true, 'test', 'more')");
            status_of(&nodes, "slave-1").state == NodeState::Behind
        })
        .await;
    }

    #[support::async_test]
    async fn a_slave_of_another_system_is_left_out() {
        let (ours, theirs) = (Servers::start(Postgres, 0), Servers::start_another_system(Postgres, 1));
        let (_client, nodes) = launch(&section(&ours.master, &theirs.slaves[0])).await;
        assert_eq!(states(&nodes), [NodeState::Up, NodeState::Stranger]);
        let db = nodes.read(None);
        sqlx::query("SELECT 1").execute(&db).await.unwrap();
        assert!(db.choice().unwrap().to_string().ends_with("(slaves unavailable)"));
    }

    /// Writes of an open transaction are sent to slaves only once they are flushed. Of a large transaction, whole pages
    /// are flushed. Their last record is incomplete, and no slave can replay it yet.
    #[support::async_test]
    async fn a_transaction_that_stays_open_makes_no_slave_late() {
        use sqlx::{Connection, PgConnection};

        let cluster = Servers::start(Postgres, 1);
        let (master, slave) = (&cluster.master, &cluster.slaves[0]);
        master.sql("CREATE TABLE notes (body TEXT)");
        cluster.wait_caught_up();
        let (_client, nodes) = launch(&section(master, slave)).await;
        eventually("the slave", async || states(&nodes) == [NodeState::Up; 2]).await;
        let flushed = || master.sql("SELECT pg_current_wal_flush_lsn()");
        for rows in [1, 30] {
            let before = flushed();
            let mut conn = PgConnection::connect(&master.admin_url()).await.unwrap();
            let insert = format!(
                "BEGIN; INSERT INTO notes SELECT repeat(md5(n::text), 40) FROM generate_series(1, {rows}) n"
            );
            sqlx::raw_sql(sqlx::AssertSqlSafe(insert)).execute(&mut conn).await.unwrap();
            if rows > 1 {
                eventually("a flush in the background", async || flushed() != before).await;
            }
            let begun = Instant::now();
            while begun.elapsed() < super::A_WHILE {
                assert_eq!(states(&nodes), [NodeState::Up; 2], "{rows} rows");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            sqlx::raw_sql("COMMIT").execute(&mut conn).await.unwrap();
            cluster.wait_caught_up();
        }
        // Committed writes count.
        slave.pause_replay();
        master.sql("INSERT INTO notes VALUES ('late')");
        eventually("its absence", async || states(&nodes) == [NodeState::Up, NodeState::Behind]).await;
    }

    /// Under writes, the lag hovers about the limit. The slave is left out once, and stays out until its lag is well
    /// below the limit.
    #[support::async_test]
    async fn a_slave_whose_lag_hovers_about_the_limit_does_not_flap() {
        let cluster = Servers::start(Postgres, 1);
        let (master, slave) = (&cluster.master, &cluster.slaves[0]);
        master.sql("CREATE TABLE steps (step SERIAL); INSERT INTO steps DEFAULT VALUES; GRANT SELECT ON steps TO app");
        cluster.wait_caught_up();
        let keys = "lag_window = 5\ncheck_interval = 0.1\ncheck_timeout = 2\nmax_lag = 2\n";
        let rocket = rocket_over(&format!("{}{keys}", section(master, slave))).attach(Replicated::fairing());
        let client = Client::untracked(rocket).await.unwrap();
        let nodes = Replicated::fetch(client.rocket()).unwrap();
        eventually("the slave", async || states(nodes) == [NodeState::Up; 2]).await;
        let writer = tokio::spawn({
            let pool = sqlx::PgPool::connect(&master.admin_url()).await.unwrap();
            async move {
                loop {
                    sqlx::query("INSERT INTO steps DEFAULT VALUES").execute(&pool).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        });
        let delay = |delay: &str| {
            slave.sql(&format!("ALTER SYSTEM SET recovery_min_apply_delay = '{delay}'"));
            slave.sql("SELECT pg_reload_conf()");
        };

        // Probes find a lag that is sometimes above `max_lag`, and never below three quarters of it.
        delay("1950ms");
        let (mut changes, mut steps_back, mut before, mut seen) = (0, 0, NodeState::Up, 0);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(8) {
            let state = status_of(nodes, "slave-1").state;
            changes += usize::from(state != before);
            before = state;
            let db = nodes.read(None);
            let step: i32 = sqlx::query_scalar("SELECT max(step) FROM steps").fetch_one(&db).await.unwrap();
            steps_back += usize::from(step < seen);
            seen = step;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        println!("{changes} changes of state, {steps_back} steps back in time");
        assert_eq!((before, changes, steps_back), (NodeState::Behind, 1, 0));

        delay("0");
        eventually("its return", async || status_of(nodes, "slave-1").state == NodeState::Up).await;
        writer.abort();
    }

    /// Some readers have no log of their own.
    #[support::async_test]
    async fn a_slave_that_hides_its_log_serves_where_lag_does_not_guard_the_window_or_as_configured() {
        let cluster = Servers::start(Postgres, 1);
        let (master, slave) = (&cluster.master, &cluster.slaves[0]);
        master.sql("REVOKE EXECUTE ON FUNCTION pg_last_wal_replay_lsn() FROM PUBLIC");
        cluster.wait_caught_up();
        let section = section(master, slave).replace("slave-1", "hidden");
        for (keys, state) in [
            ("max_lag = \"auto\"", NodeState::LagUnknown),
            ("max_lag = \"auto\"\nunknown_lag = \"use\"", NodeState::Up),
            ("consistency = \"position\"\nlag_window = 1\nmax_lag = 60\npin.max_age = 60", NodeState::Up),
            ("max_lag = false\nunknown_lag = \"leave_out\"", NodeState::LagUnknown),
        ] {
            let keys = format!("check_interval = 0.1\ncheck_timeout = 2\n{keys}");
            let rocket = rocket_over(&format!("{section}{keys}")).attach(Replicated::fairing());
            let client = Client::untracked(rocket).await.unwrap();
            let nodes = Replicated::fetch(client.rocket()).unwrap();
            assert_eq!(states(nodes), [NodeState::Up, state], "{keys}");
            let db = nodes.read(None);
            sqlx::query("SELECT 1").execute(&db).await.unwrap();
            let reason = db.choice().unwrap().reason();
            let served =
                if state == NodeState::Up { Reason::ReadsDatabase } else { Reason::SlavesUnavailable };
            assert_eq!(reason, served, "{keys}");
        }
        let lines = logbook::lines(&["WARN", "slave `hidden`", "cannot be known: leaving it out."]);
        assert_eq!(lines.len(), 2);
    }

    #[support::async_test]
    async fn a_slave_that_has_hidden_its_log_is_asked_again() {
        let cluster = Servers::start(Postgres, 1);
        let (master, slave) = (&cluster.master, &cluster.slaves[0]);
        master.sql("REVOKE EXECUTE ON FUNCTION pg_last_wal_replay_lsn() FROM PUBLIC");
        cluster.wait_caught_up();
        let (_client, nodes) = launch(&section(master, slave)).await;
        assert_eq!(states(&nodes), [NodeState::Up, NodeState::LagUnknown]);
        master.sql("GRANT EXECUTE ON FUNCTION pg_last_wal_replay_lsn() TO PUBLIC");
        eventually("its lag", async || states(&nodes) == [NodeState::Up, NodeState::Up]).await;
    }

    /// No slave is left out for an unknown lag while the master is gone.
    #[support::async_test]
    async fn a_slave_of_unknown_lag_serves_while_the_master_is_gone() {
        let cluster = Servers::start(Postgres, 1);
        let (master, slave) = (&cluster.master, &cluster.slaves[0]);
        master.sql("REVOKE EXECUTE ON FUNCTION pg_last_wal_replay_lsn() FROM PUBLIC");
        cluster.wait_caught_up();
        let (_client, nodes) = launch(&section(master, slave)).await;
        assert_eq!(states(&nodes), [NodeState::Up, NodeState::LagUnknown]);
        master.kill();
        eventually("the slave", async || states(&nodes) == [NodeState::Down, NodeState::Up]).await;
        let db = nodes.read(None);
        sqlx::query("SELECT 1").execute(&db).await.unwrap();
        assert_eq!(db.choice().unwrap().to_string(), "slave-1 (reads database)");
    }

    #[support::async_test]
    async fn the_role_of_a_slave_that_hides_its_log_is_known() {
        let cluster = Servers::start(Postgres, 1);
        let (master, slave) = (&cluster.master, &cluster.slaves[0]);
        master.sql("REVOKE EXECUTE ON FUNCTION pg_last_wal_replay_lsn() FROM PUBLIC");
        cluster.wait_caught_up();
        let (_client, nodes) = launch(&format!("{}unknown_lag = \"use\"\n", section(master, slave))).await;
        slave.pause_replay();
        master.sql("SELECT pg_logical_emit_message(true, 'test', 'more')");
        let probed = std::time::Instant::now();
        while probed.elapsed() < super::A_WHILE {
            let status = status_of(&nodes, "slave-1");
            assert_eq!((status.state, status.lag), (NodeState::Up, None));
            rocket::tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        slave.sql("SELECT pg_promote()");
        eventually("its absence", async || status_of(&nodes, "slave-1").state == NodeState::SecondMaster)
            .await;
    }

    #[support::async_test]
    async fn a_master_in_recovery_takes_no_writes() {
        let lab = Lab::new();
        let section = format!("url = \"{}\"\nslaves = [\"{}\"]\n", lab.slave_urls()[0], lab.slave_urls()[1]);
        let (_client, nodes) = launch(&section).await;
        assert_eq!(states(&nodes)[0], NodeState::Standby);
        let error = sqlx::query("SELECT 1").execute(&nodes.write()).await.unwrap_err();
        assert!(matches!(rocket_replicated::Error::from(error), rocket_replicated::Error::Unavailable(_)));
    }
}

/// MariaDB or MySQL servers whose logs are empty.
mod fresh_mysql {
    use std::time::{Duration, Instant};

    use rocket::local::asynchronous::Client;
    use rocket::tokio;
    use rocket_replicated::mysql::{Database, Replicated};
    use rocket_replicated::{Cluster, NodeState, Reason};

    use super::{A_WHILE, KEYS, eventually, states};
    use rocket_replicated_testing::mysql::MySql;
    use rocket_replicated_testing::{Dbms, Replay, Server, Servers};
    use support::{logbook, rocket_over};

    async fn launch(
        master: &Server<MySql>,
        slave: &Server<MySql>,
        keys: &str,
    ) -> (Client, Cluster<Database>) {
        let section = format!(
            "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"slave-1\" }}]\n{KEYS}{keys}",
            master.url(),
            slave.url()
        );
        let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap().clone();
        (client, cluster)
    }

    async fn stays(nodes: &Cluster<Database>, expected: [NodeState; 2]) {
        let begun = Instant::now();
        while begun.elapsed() < A_WHILE {
            assert_eq!(states(nodes), expected);
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    #[support::async_test]
    async fn a_slave_of_a_master_without_writes_serves() {
        let cluster = Servers::start(MySql::default(), 1);
        let (master, slave) = (&cluster.master, &cluster.slaves[0]);
        cluster.forget_logs();
        let (_client, nodes) = launch(master, slave, "").await;
        assert_eq!(states(&nodes), [NodeState::Up; 2]);
        let db = nodes.read(None);
        sqlx::query("SELECT 1").execute(&db).await.unwrap();
        assert_eq!(db.choice().unwrap().reason(), Reason::ReadsDatabase);

        // The lag is known from the first write on.
        MySql::replay(slave, Replay { lag: Duration::from_secs(60), paused: false }).unwrap();
        eventually("the slave", async || states(&nodes) == [NodeState::Up; 2]).await;
        master.sql("CREATE TABLE notes (id INTEGER)");
        eventually("its absence", async || states(&nodes) == [NodeState::Up, NodeState::Behind]).await;
        MySql::replay(slave, Replay::default()).unwrap();
        eventually("its return", async || states(&nodes) == [NodeState::Up; 2]).await;
    }

    /// A pin with an empty position would lead to any slave.
    #[support::async_test]
    async fn a_write_that_is_not_logged_pins_to_the_master() {
        let cluster = Servers::start(MySql::default(), 1);
        cluster.forget_logs();
        let (_client, nodes) =
            launch(&cluster.master, &cluster.slaves[0], "consistency = \"position\"\n").await;
        let writer = nodes.write();
        sqlx::query("SELECT 1").execute(&writer).await.unwrap();
        let reader = nodes.read(writer.pin().await.as_deref());
        sqlx::query("SELECT 1").execute(&reader).await.unwrap();
        assert_eq!(reader.choice().unwrap().reason(), Reason::Pinned);
    }

    /// The position of such a master stays empty, whatever it writes.
    #[support::async_test]
    async fn a_master_that_logs_nothing_tells_no_lag() {
        let (ours, theirs) = (Servers::start(MySql::default(), 0), Servers::start(MySql::default(), 1));
        ours.master.restart_with("skip_log_bin");
        // The slave replicates another master, so that it counts as a slave.
        theirs.forget_logs();
        let (_client, nodes) = launch(&ours.master, &theirs.slaves[0], "").await;
        assert_eq!(states(&nodes), [NodeState::Up, NodeState::LagUnknown]);
        ours.master.sql("CREATE TABLE notes (id INTEGER)");
        stays(&nodes, [NodeState::Up, NodeState::LagUnknown]).await;
    }

    /// The slave lacks the writes that the master does not log.
    #[support::async_test]
    async fn a_master_that_ceases_to_log_tells_no_lag() {
        let cluster = Servers::start(MySql::default(), 1);
        cluster.master.sql("CREATE TABLE notes (id INTEGER)");
        cluster.wait_caught_up();
        let (_client, nodes) = launch(&cluster.master, &cluster.slaves[0], "").await;
        assert_eq!(states(&nodes), [NodeState::Up; 2]);
        cluster.master.restart_with("skip_log_bin");
        eventually("its absence", async || states(&nodes) == [NodeState::Up, NodeState::LagUnknown]).await;
        cluster.master.sql("INSERT INTO notes VALUES (1)");
        stays(&nodes, [NodeState::Up, NodeState::LagUnknown]).await;
    }

    /// Without GTIDs, no write changes `gtid_executed`. MariaDB numbers all that it logs.
    #[support::async_test]
    async fn only_a_master_that_numbers_its_writes_tells_a_lag() {
        let cluster = Servers::start(MySql::default(), 1);
        cluster.master.sql("CREATE TABLE notes (id INTEGER)");
        cluster.wait_caught_up();
        let (_client, nodes) = launch(&cluster.master, &cluster.slaves[0], "").await;
        assert_eq!(states(&nodes), [NodeState::Up; 2]);
        eventually("a lag", async || nodes.status()[1].lag.is_some()).await;
        if MySql::default().is_mariadb() {
            return;
        }
        for mode in ["ON_PERMISSIVE", "OFF_PERMISSIVE"] {
            cluster.master.sql(&format!("SET GLOBAL gtid_mode = {mode}"));
        }
        cluster.master.sql("INSERT INTO notes VALUES (1)");
        eventually("its absence", async || states(&nodes) == [NodeState::Up, NodeState::LagUnknown]).await;
        stays(&nodes, [NodeState::Up, NodeState::LagUnknown]).await;
    }

    /// The slave has a write of its own, as by an operator's `ANALYZE TABLE`. On MariaDB that write is not logged: in
    /// the log it would be one more transaction of the master's domain.
    #[support::async_test]
    async fn a_slave_that_has_written_for_itself_serves() {
        let cluster = Servers::start(MySql::default(), 1);
        let (master, slave) = (&cluster.master, &cluster.slaves[0]);
        master.sql("CREATE TABLE notes (id INTEGER)");
        cluster.wait_caught_up();
        let is_mariadb = MySql::default().is_mariadb();
        let logged = if is_mariadb { "SET sql_log_bin = 0;" } else { "" };
        slave.sql(&format!("{logged} CREATE DATABASE of_its_own"));
        let (_client, nodes) = launch(master, slave, "").await;
        master.sql("INSERT INTO notes VALUES (1)");
        cluster.wait_caught_up();
        let db = nodes.read(None);
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM notes").fetch_one(&db).await.unwrap();
        assert_eq!((count, db.choice().unwrap().reason()), (1, Reason::ReadsDatabase));
        stays(&nodes, [NodeState::Up; 2]).await;
        // MySQL names each transaction by the server that wrote it.
        if !is_mariadb {
            let uuid = slave.sql("SELECT @@server_uuid");
            let told = logbook::lines(&[
                "WARN",
                "that the master lacks, from these sources",
                &uuid,
                "It serves all the same",
            ]);
            assert_eq!(told.len(), 1, "{told:?}");
        }
    }

    /// The slave may lack writes that were in the log before the reset.
    #[support::async_test]
    async fn a_master_whose_log_was_reset_tells_no_lag() {
        let cluster = Servers::start(MySql::default(), 1);
        cluster.forget_logs();
        cluster.master.sql("CREATE TABLE notes (id INTEGER)");
        cluster.wait_caught_up();
        let (_client, nodes) = launch(&cluster.master, &cluster.slaves[0], "").await;
        assert_eq!(states(&nodes), [NodeState::Up; 2]);
        cluster.master.reset_log();
        eventually("its absence", async || states(&nodes) == [NodeState::Up, NodeState::LagUnknown]).await;
    }
}

mod mariadb {
    use rocket::local::asynchronous::Client;
    use rocket_replicated::NodeState;
    use rocket_replicated::mysql::Replicated;

    use super::{KEYS, eventually, states};
    use rocket_replicated_testing::Servers;
    use rocket_replicated_testing::mysql::MySql;
    use support::rocket_over;

    #[support::async_test]
    async fn a_slave_that_writes_and_replays_no_more_is_left_out() {
        let cluster = Servers::start(MySql::default(), 1);
        let slave = &cluster.slaves[0];
        let section = format!(
            "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"slave-1\" }}]\n{KEYS}",
            cluster.master.url(),
            slave.url()
        );
        let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
        let nodes = Replicated::fetch(client.rocket()).unwrap();
        eventually("the slave", async || states(nodes) == [NodeState::Up; 2]).await;
        slave.sql("STOP SLAVE; SET GLOBAL read_only = 0; CREATE TABLE app.mine (id INT)");
        eventually("its absence", async || states(nodes) == [NodeState::Up, NodeState::SecondMaster]).await;
    }

    /// The slave has replayed nothing, as a server that has nothing to do with the master.
    #[support::async_test]
    async fn a_slave_that_has_stopped_replicating_has_no_position() {
        let cluster = Servers::start(MySql::default(), 1);
        let slave = &cluster.slaves[0];
        cluster.forget_logs();
        let section = format!(
            "url = \"{}\"\nslaves = [{{ url = \"{}\", name = \"slave-1\" }}]\n{KEYS}",
            cluster.master.url(),
            slave.url()
        );
        let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
        let nodes = Replicated::fetch(client.rocket()).unwrap();
        assert_eq!(states(nodes), [NodeState::Up; 2]);
        slave.sql("STOP SLAVE");
        eventually("its absence", async || states(nodes) == [NodeState::Up, NodeState::LagUnknown]).await;
        slave.sql("START SLAVE");
        eventually("its return", async || states(nodes) == [NodeState::Up; 2]).await;
    }
}
