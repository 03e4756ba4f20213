use std::path::Path;

use super::{MySql, Replay, Server, Software, option, program, whole_seconds};
use crate::process::{as_user, output};
use crate::server::Program;

pub(super) const MARIADB: Software = Software {
    server: "mariadbd",
    client: "mariadb",
    without_tls: "--skip-ssl",
    settings: "
[mariadbd]
skip_name_resolve
max_connections = 100
character_set_server = utf8mb4
performance_schema = off
innodb_buffer_pool_size = 16M
innodb_log_file_size = 8M
# What is committed is written, so that it survives a killed server, but nothing is synced.
innodb_flush_log_at_trx_commit = 2
innodb_flush_method = nosync
debug_no_sync
# Ends on Ctrl-C, which every process of the terminal gets.
debug_gdb
log_bin = binlog
relay_log = relay
log_slave_updates
gtid_strict_mode = on
",
    install,
    replicate: |port| {
        format!(
            "CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = {port},
             MASTER_USER = 'replication', MASTER_PASSWORD = 'secret',
             MASTER_CONNECT_RETRY = 1, MASTER_USE_GTID = slave_pos; START SLAVE"
        )
    },
    is_replicating: |slave: &Server<MySql>| {
        slave.sql_in("mysql", "SHOW STATUS LIKE 'Slave_running'").unwrap().ends_with("ON")
    },
    position: "SELECT @@gtid_binlog_pos",
    has_replayed: |position| format!("SELECT MASTER_GTID_WAIT('{position}', 0) = 0"),
    many_sources: |count| {
        let write =
            |domain| format!("SET gtid_domain_id = {domain}; INSERT INTO sources VALUES ({domain}); ");
        format!("CREATE TABLE sources (id INTEGER); {}", (1..=count).map(write).collect::<String>())
    },
    pause_replay: "STOP SLAVE SQL_THREAD",
    resume_replay: "START SLAVE",
    stop_replication: "STOP SLAVE",
    reset: "RESET MASTER; SET GLOBAL gtid_slave_pos = ''",
    promote: "STOP SLAVE; RESET SLAVE ALL; SET GLOBAL read_only = 0",
    replay: |Replay { lag, paused }| {
        let threads = if paused { "IO_THREAD" } else { "" };
        // The delay counts from the second in which the statement began. A statement at the end of it would be replayed
        // at once.
        let delay = if lag.is_zero() { 0 } else { whole_seconds(lag) + 1 };
        format!("STOP SLAVE; CHANGE MASTER TO MASTER_DELAY = {delay}; START SLAVE {threads}")
    },
};

fn install(folder: &Path) {
    // This script breaks the path at a blank, and runs in the folder.
    let mut install = program("mariadb-install-db", Path::new(""));
    install.arg(option("datadir", &folder.join("data")));
    install.args(["--auth-root-authentication-method=normal", "--skip-test-db"]);
    // Older releases log their installation, and slaves would replay it.
    install.arg("--skip-log-bin");
    // With a common folder, two installations at the same time disturb each other.
    install.env("TMPDIR", folder);
    as_user(&mut install, MySql::USER, folder);
    output(&mut install).unwrap();
}
