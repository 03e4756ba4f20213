use std::fs;
use std::path::{Path, PathBuf};

use super::{MySql, Replay, Server, Software, option, program, whole_seconds};
use crate::process::{as_user, output, server_program};
use crate::server::Program;

pub(super) const MYSQL: Software = Software {
    server: "mysqld",
    client: "mysql",
    without_tls: "--ssl-mode=DISABLED",
    settings: "
[mysqld]
skip_name_resolve
mysqlx = off
secure_file_priv = NULL
max_connections = 100
performance_schema = off
innodb_buffer_pool_size = 16M
innodb_redo_log_capacity = 8M
# What is committed is written, so that it survives a killed server, but nothing is synced.
innodb_flush_log_at_trx_commit = 2
innodb_flush_method = nosync
innodb_doublewrite = off
sync_binlog = 0
# Ends on Ctrl-C, which every process of the terminal gets.
gdb
log_bin = binlog
relay_log = relay
relay_log_recovery = on
gtid_mode = on
enforce_gtid_consistency = on
",
    install,
    // By default, a slave gives up after ten attempts to reach its master.
    replicate: |port| {
        format!(
            "CHANGE REPLICATION SOURCE TO SOURCE_HOST = '127.0.0.1', SOURCE_PORT = {port},
             SOURCE_USER = 'replication', SOURCE_PASSWORD = 'secret', GET_SOURCE_PUBLIC_KEY = 1,
             SOURCE_CONNECT_RETRY = 1, SOURCE_RETRY_COUNT = 86400, SOURCE_AUTO_POSITION = 1; START REPLICA"
        )
    },
    is_replicating: |slave: &Server<MySql>| {
        // The states of the thread that receives and of the one that replays.
        slave.sql_in("mysql", "SHOW REPLICA STATUS").unwrap().contains("\tYes\tYes\t")
    },
    position: "SELECT REPLACE(@@global.gtid_executed, '\\n', '')",
    has_replayed: |position| format!("SELECT GTID_SUBSET('{position}', @@global.gtid_executed)"),
    // Each source has a gap.
    many_sources: |count| {
        let write = |source| {
            let empty =
                |n| format!("SET gtid_next = '{source:08x}-0000-0000-0000-000000000001:{n}'; COMMIT; ");
            empty(1) + &empty(3)
        };
        (1..=count).map(write).collect::<String>()
    },
    pause_replay: "STOP REPLICA SQL_THREAD",
    resume_replay: "START REPLICA",
    stop_replication: "STOP REPLICA",
    reset: "RESET REPLICA; RESET BINARY LOGS AND GTIDS",
    promote: "STOP REPLICA; RESET REPLICA ALL; SET GLOBAL read_only = 0",
    replay: |Replay { lag, paused }| {
        let threads = if paused { "IO_THREAD" } else { "" };
        format!(
            "STOP REPLICA; CHANGE REPLICATION SOURCE TO SOURCE_DELAY = {}; START REPLICA {threads}",
            whole_seconds(lag)
        )
    },
};

fn install(folder: &Path) {
    let version =
        output(server_program::<MySql>(&MySql::SERVER_FOLDERS.map(PathBuf::from), "mysqld").arg("--version"))
            .unwrap_or_default();
    // Where MariaDB is installed, its server often has this name, too.
    assert!(!version.contains("MariaDB"), "`mysqld` is that of MariaDB, not of MySQL: {}", MySql::INSTALL);
    let mut install = program("mysqld", folder);
    let data = folder.join("data");
    install.arg(option("datadir", &data)).arg("--initialize-insecure");
    as_user(&mut install, MySql::USER, folder);
    output(&mut install).unwrap();
    // Each copy creates a server UUID of its own.
    fs::remove_file(data.join("auto.cnf")).unwrap();
}
