//! Whatever a test has done to shared servers, the next one finds servers that work. In a program of their own: no other
//! test takes the servers in between.

use std::time::Duration;

use rocket_replicated_testing::mysql::MySql;
use rocket_replicated_testing::{Dbms, Lab, OnServers, Servers};

fn ports(servers: &Servers<impl Dbms>) -> Vec<u16> {
    servers.all().map(|server| server.port()).collect()
}

/// Whatever a test has done, the next one finds servers that work.
fn the_next_test_finds_them_mended<D: Dbms>(lab: impl Fn() -> Lab<OnServers<D>>) {
    let faults: [fn(&Lab<OnServers<D>>); 5] = [
        |lab| lab.slave(1).kill(),
        |lab| lab.master().freeze(),
        |lab| lab.master().stop(),
        |lab| lab.pause(),
        |lab| lab.lag(Duration::from_secs(3600)),
    ];
    for (number, fault) in faults.into_iter().enumerate() {
        let broken = lab();
        let before = ports(broken.servers());
        fault(&broken);
        drop(broken);
        let mended = lab();
        assert_eq!(ports(mended.servers()), before, "fault {number}");
        mended.sql("CREATE TABLE notes (id INTEGER)");
        mended.blocking_catch_up();
    }

    let broken = lab();
    let before = ports(broken.servers());
    broken.slave(2).promote().unwrap();
    drop(broken);
    let others = lab();
    assert_ne!(ports(others.servers()), before, "a promoted slave is no slave any more");
    others.sql("CREATE TABLE notes (id INTEGER)");
    others.blocking_catch_up();
}

#[test]
fn postgresql_servers_are_mended() {
    the_next_test_finds_them_mended(Lab::postgres);
}

#[test]
fn mysql_servers_are_mended() {
    the_next_test_finds_them_mended(|| Lab::shared(MySql::default()));
}
