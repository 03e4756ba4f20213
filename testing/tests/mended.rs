//! Shared servers work again for the next test, whatever the test before has done to them. A program of their own runs
//! these tests, so that no other test takes the servers in between.

use std::time::Duration;

use rocket_replicated_testing::mysql::MySql;
use rocket_replicated_testing::{Dbms, Lab, OnServers, Servers};

fn ports(servers: &Servers<impl Dbms>) -> Vec<u16> {
    servers.all().map(|server| server.port()).collect()
}

/// Breaks shared servers in several ways, and checks after each that the next lab gets servers that work.
fn the_next_lab_is_mended<D: Dbms>(lab: impl Fn() -> Lab<OnServers<D>>) {
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
    the_next_lab_is_mended(Lab::postgres);
}

#[test]
fn mysql_servers_are_mended() {
    the_next_lab_is_mended(|| Lab::shared(MySql::default()));
}
