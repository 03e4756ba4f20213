//! The promises of labs, on each kind of database that this machine has for the tests of this repository.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use rocket::figment::Figment;
use rocket::figment::providers::{Format, Toml};
use rocket::local::{asynchronous, blocking};
use rocket::{Build, Rocket, get, post, routes};
use rocket_replicated::{Database, Error, Replicated, ReplicatedDb, rocket_db_pools};
use rocket_replicated_testing::mysql::MySql;
use rocket_replicated_testing::postgres::Postgres;
use rocket_replicated_testing::{
    Dbms, Deployment, Lab, OnServers, Servers, Wire, assert_served_by, assert_served_by_slave, served_by,
};

/// The application over one kind of database.
macro_rules! over {
    ($module:ident, $lab:expr) => {
        mod $module {
            use super::*;

            #[derive(Database)]
            #[database("notes")]
            struct Notes(rocket_replicated::$module::Pool);

            #[get("/")]
            async fn count(db: ReplicatedDb<Notes>) -> Result<String, Error> {
                let count: i64 = sqlx::query_scalar("SELECT count(*) FROM notes").fetch_one(&db).await?;
                Ok(count.to_string())
            }

            #[post("/")]
            async fn add(db: ReplicatedDb<Notes>) -> Result<(), Error> {
                sqlx::query("INSERT INTO notes VALUES (1)").execute(&db).await?;
                Ok(())
            }

            #[get("/nothing")]
            fn nothing() {}

            fn rocket(lab: &Lab<impl Deployment>) -> Rocket<Build> {
                let figment = Figment::from(rocket::Config::debug_default()).merge(lab.section("notes"));
                rocket::custom(figment)
                    .attach(Replicated::<Notes>::fairing())
                    .mount("/", routes![count, add, nothing])
            }

            #[test]
            fn lag_is_what_the_test_says() {
                let lab = $lab;
                lab.sql("CREATE TABLE notes (id INTEGER)");
                lag_is_what_it_says(&lab, || blocking::Client::tracked(rocket(&lab)).unwrap());
            }

            #[rocket::async_test]
            async fn a_lab_catches_up_in_asynchronous_tests() {
                let lab = $lab;
                lab.sql("CREATE TABLE notes (id INTEGER)");
                lab.blocking_catch_up();
                let client = asynchronous::Client::untracked(rocket(&lab)).await.unwrap();
                for expected in ["1", "2", "3"] {
                    assert_eq!(client.post("/").dispatch().await.status(), rocket::http::Status::Ok);
                    lab.catch_up().await;
                    let reply = client.get("/").dispatch().await;
                    assert_served_by_slave(&reply);
                    assert_eq!(reply.into_string().await.unwrap(), expected);
                }
            }

            #[test]
            fn each_lab_has_a_database_of_its_own() {
                for _ in 0..2 {
                    let lab = $lab;
                    lab.sql("CREATE TABLE notes (id INTEGER)");
                    assert_eq!(lab.sql("SELECT count(*) FROM notes"), "0");
                    lab.sql("INSERT INTO notes VALUES (1)");
                }
            }
        }
    };
}

over!(postgres, Lab::postgres());
over!(mysql, Lab::shared(MySql::default()));
over!(sqlite, Lab::sqlite());

fn lag_is_what_it_says(lab: &Lab<impl Deployment>, client: impl Fn() -> blocking::Client) {
    let (writer, stranger) = (client(), client());
    let seen = |client: &blocking::Client| {
        let reply = client.get("/").dispatch();
        (served_by(&reply)[0].clone(), reply.into_string().unwrap())
    };
    lab.pause();
    assert_eq!(writer.post("/").dispatch().status(), rocket::http::Status::Ok);
    let (by, count) = seen(&writer);
    assert_eq!((&*by.database, &*by.server, &*count), ("notes", "master", "1"));
    for _ in 0..10 {
        let (by, count) = seen(&stranger);
        assert!(by.server.starts_with("slave-"), "{by:?}");
        assert_eq!((&*by.reason, &*count), ("read method", "0"));
    }
    lab.resume();
    assert_eq!(seen(&stranger).1, "1");

    let lag = Duration::from_secs(1);
    lab.lag(lag);
    let written = Instant::now();
    lab.sql("INSERT INTO notes VALUES (2)");
    lab.blocking_catch_up();
    assert!(written.elapsed() >= lag, "{:?}", written.elapsed());
    assert_eq!(seen(&stranger).1, "2");
    lab.resume();
    assert_eq!(served_by(&stranger.get("/nothing").dispatch()), []);
}

#[test]
fn mysql_and_mariadb_are_different_kinds() {
    assert!(MySql::mariadb() != MySql::oracle() && MySql::mariadb().is_mariadb());
}

#[test]
fn databases_beside_each_other_lag_together() {
    let lab = Lab::on(Servers::start(Postgres, 1));
    let other = lab.beside();
    assert_ne!(lab.database(), other.database());
    other.sql("CREATE TABLE notes (id INTEGER)");
    lab.pause();
    other.sql("INSERT INTO notes VALUES (1)");
    let there = |lab: &Lab<OnServers<Postgres>>| {
        lab.slave(1).sql_in(lab.database(), "SELECT count(*) FROM notes").unwrap()
    };
    assert_eq!(there(&other), "0");
    lab.resume();
    assert_eq!(there(&other), "1");
}

#[test]
fn the_section_takes_precedence_over_rocket_toml() {
    let lab = Lab::sqlite();
    let toml = "[debug.databases.notes]\nurl = \"sqlite://elsewhere\"\nslaves = []\nmax_connections = 3\nlag_window = 7\n";
    let figment = Figment::from(rocket::Config::debug_default())
        .merge(Toml::string(toml).nested())
        .merge(lab.section("notes").with("lag_window", 9))
        .select("debug");
    let key = |name: &str| figment.find_value(&format!("databases.notes.{name}")).unwrap();
    assert_eq!(key("url").as_str(), Some(lab.master_url()));
    assert_eq!(key("slaves").as_array().unwrap().len(), 2);
    assert_eq!(key("lag_window").to_i128(), Some(9));
    assert_eq!(key("max_connections").to_i128(), Some(3), "what the section does not name stays");
}

#[test]
fn a_wire_is_a_way_to_a_server() {
    let lab = Lab::postgres();
    let wire = Wire::to(lab.master().port());
    let section = lab.section("notes").with("url", wire.url(lab.master_url()));
    let figment = Figment::from(rocket::Config::debug_default()).merge(section);
    let url = figment.find_value("databases.notes.url").unwrap();
    assert!(url.as_str().unwrap().contains(&wire.port().to_string()));
    TcpStream::connect(("127.0.0.1", wire.port())).unwrap();
}

#[test]
#[should_panic(expected = "not served by master: [Served { database: \"notes\", server: \"slave-")]
fn a_failed_assertion_names_the_server() {
    let lab = Lab::sqlite();
    lab.sql("CREATE TABLE notes (id INTEGER)");
    lab.blocking_catch_up();
    #[derive(Database)]
    #[database("notes")]
    struct Notes(rocket_replicated::sqlite::Pool);
    #[get("/")]
    async fn count(db: ReplicatedDb<Notes>) -> Result<(), Error> {
        sqlx::query("SELECT * FROM notes").fetch_all(&db).await?;
        Ok(())
    }
    let figment = Figment::from(rocket::Config::debug_default()).merge(lab.section("notes"));
    let rocket = rocket::custom(figment).attach(Replicated::<Notes>::fairing()).mount("/", routes![count]);
    let client = blocking::Client::tracked(rocket).unwrap();
    assert_served_by(&client.get("/").dispatch(), "master");
}

#[test]
#[should_panic(expected = "`lab.beside()` for another database there")]
fn a_second_lab_of_one_test_does_not_wait_for_the_first() {
    let _lab = Lab::postgres();
    Lab::postgres();
}

fn ports(servers: &Servers<impl Dbms>) -> Vec<u16> {
    servers.all().map(|server| server.port()).collect()
}

#[test]
fn tests_at_the_same_time_have_servers_of_their_own() {
    let lab = Lab::postgres();
    let theirs = std::thread::spawn(|| ports(Lab::postgres().servers())).join().unwrap();
    assert!(ports(lab.servers()).iter().all(|port| !theirs.contains(port)), "{theirs:?}");
}

/// A client program is kept from one question to the next. Callers do not notice when it is replaced.
fn sessions_are_replaced<D: Dbms>(
    lab: Lab<OnServers<D>>,
    identify: &str,
    end: fn(&str) -> String,
    [set, show]: [&str; 2],
) {
    let server = lab.master();
    let first = server.sql(identify);
    assert_eq!(server.sql(identify), first, "it is kept");
    let error = server.try_sql("SELECT nothing FROM nowhere").unwrap_err();
    assert!(error.contains("nowhere"), "{error}");
    let second = server.sql(identify);
    assert_ne!(second, first, "an error ends it");
    server.sql(&end(&second));
    assert_ne!(server.sql(identify), second, "a lost one is replaced");
    // A statement that changes its session runs in another session.
    let before = server.sql(identify);
    server.sql(set);
    assert_eq!(server.sql(identify), before);
    assert!(!server.sql(show).contains("changed"));
    lab.slave(1).kill();
    lab.slave(1).start();
    assert_eq!(lab.slave(1).sql("SELECT 1 + 1"), "2", "one of an earlier process is not asked");
}

#[test]
fn sessions_on_postgresql_are_replaced() {
    let end = |id: &str| format!("SELECT pg_terminate_backend({id}, 10000)");
    sessions_are_replaced(
        Lab::postgres(),
        "SELECT pg_backend_pid()",
        end,
        ["SET search_path = changed", "SHOW search_path"],
    );
}

#[test]
fn sessions_on_mysql_are_replaced() {
    let end = |id: &str| format!("KILL {id}");
    sessions_are_replaced(
        Lab::shared(MySql::default()),
        "SELECT CONNECTION_ID()",
        end,
        ["SET @it = 'changed'", "SELECT @it"],
    );
}

#[test]
fn servers_belong_to_one_system_unless_another_is_started() {
    const SYSTEM: &str = "SELECT system_identifier FROM pg_control_system()";

    let [one, two] = [(); 2].map(|()| Servers::start(Postgres, 0).master.sql(SYSTEM));
    let other = Servers::start_another_system(Postgres, 1);
    assert_eq!(one, two);
    assert_ne!(other.master.sql(SYSTEM), one);
    assert_eq!(other.slaves[0].sql(SYSTEM), other.master.sql(SYSTEM));
}
