//! Servers end with the process that started them, however that process ends. Missing server programs are named.
//!
//! Each test starts this program again to run a part of the test in a process of its own.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rocket_replicated_testing::mysql::MySql;
use rocket_replicated_testing::postgres::Postgres;
use rocket_replicated_testing::server::wait_for;
use rocket_replicated_testing::{Dbms, Lab, Servers};

const PART: &str = "PART_OF_TEST";

/// A command that runs this part of the test in a process of its own.
fn again(test: &str, part: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(PART, part).stdout(Stdio::piped());
    command
}

fn part() -> Option<String> {
    std::env::var(PART).ok()
}

/// Prints the folder of the servers, for the process that started this one.
fn tell(servers: &Servers<impl Dbms>) {
    println!("FOLDER {}", servers.master.folder().display());
}

/// The processes that have this folder in their arguments.
fn processes(folder: &str) -> Vec<String> {
    let ps = Command::new("ps").args(["-A", "-o", "pid=", "-o", "args="]).output().unwrap();
    let lines = String::from_utf8(ps.stdout).unwrap();
    lines.lines().filter(|line| line.contains(folder)).map(str::to_owned).collect()
}

fn folder_of(child: &mut Child) -> String {
    let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    let mut folders =
        lines.map_while(Result::ok).filter_map(|line| Some(line.split_once("FOLDER ")?.1.to_owned()));
    folders.next().expect("a process that has started servers")
}

fn are_gone(folder: &str) {
    wait_for(&format!("end of {:?}", processes(folder)), || processes(folder).is_empty());
    wait_for("removal of their folder", || !Path::new(folder).exists());
}

#[test]
fn servers_end_with_a_process_that_is_killed_outright() {
    match part().as_deref() {
        Some("postgres") => stay(Lab::postgres().servers()),
        Some("frozen") => {
            let lab = Lab::postgres();
            lab.servers().all().for_each(|server| server.freeze());
            stay(lab.servers());
        }
        Some("own") => stay(&Servers::start(Postgres, 1)),
        Some("mysql") => stay(Lab::shared(MySql::default()).servers()),
        _ => {
            for part in ["postgres", "frozen", "own", "mysql"] {
                let mut child =
                    again("servers_end_with_a_process_that_is_killed_outright", part).spawn().unwrap();
                let folder = folder_of(&mut child);
                assert!(processes(&folder).len() > 1, "{part}");
                child.kill().unwrap();
                child.wait().unwrap();
                are_gone(&folder);
            }
        }
    }
}

fn stay(servers: &Servers<impl Dbms>) {
    tell(servers);
    loop {
        std::thread::park();
    }
}

#[test]
fn servers_end_with_a_test_that_panics() {
    match part().as_deref() {
        Some("shared") => {
            let lab = Lab::postgres();
            lab.slave(1).kill();
            tell(lab.servers());
            panic!("as tests do");
        }
        Some("own") => {
            let servers = Servers::start(Postgres, 1);
            servers.master.freeze();
            tell(&servers);
            panic!("as tests do");
        }
        _ => {
            for part in ["shared", "own"] {
                let mut child = again("servers_end_with_a_test_that_panics", part).spawn().unwrap();
                let folder = folder_of(&mut child);
                assert!(!child.wait().unwrap().success());
                are_gone(&folder);
            }
        }
    }
}

#[test]
fn the_path_of_the_temporary_folder_may_have_a_blank() {
    const NAME: &str = "the_path_of_the_temporary_folder_may_have_a_blank";

    fn replicates(servers: &Servers<impl Dbms>) {
        tell(servers);
        servers.master.sql("CREATE TABLE notes (id INTEGER)");
        servers.wait_caught_up();
        assert_eq!(servers.slaves[0].sql("SELECT COUNT(*) FROM notes"), "0");
    }
    match part().as_deref() {
        Some("postgres") => replicates(&Servers::start(Postgres, 1)),
        Some("mysql") => replicates(&Servers::start(MySql::default(), 1)),
        _ => {
            let folder = tempfile::Builder::new().prefix("with a blank").tempdir().unwrap();
            // The servers run as other users than root.
            fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
            for part in ["postgres", "mysql"] {
                let mut child = again(NAME, part).env("TMPDIR", folder.path()).spawn().unwrap();
                let of_servers = folder_of(&mut child);
                assert!(of_servers.contains("with a blank"), "{of_servers}");
                assert!(child.wait().unwrap().success());
                are_gone(&of_servers);
            }
        }
    }
}

/// Linux lists shared memory segments in `/proc`.
#[cfg(target_os = "linux")]
#[test]
fn a_server_that_was_killed_leaves_no_shared_memory() {
    let is_there = |segment: &str| {
        let segments = std::fs::read_to_string("/proc/sysvipc/shm").unwrap();
        segments.lines().any(|line| line.split_whitespace().nth(1) == Some(segment))
    };
    let servers = Servers::start(Postgres, 1);
    let slave = &servers.slaves[0];
    assert_eq!(slave.sql("SHOW dynamic_shared_memory_type"), "mmap");
    let file = std::fs::read_to_string(slave.data().join("postmaster.pid")).unwrap();
    let segment = file.lines().nth(6).unwrap().split_whitespace().nth(1).unwrap();
    slave.kill();
    assert!(is_there(segment));
    drop(servers);
    assert!(!is_there(segment));
}

#[test]
fn missing_programs_are_named() {
    match part().as_deref() {
        Some("postgres") => drop(Lab::postgres()),
        Some("mariadb") => drop(Lab::mariadb()),
        Some("mysql") => drop(Lab::mysql()),
        _ => {
            let nowhere = tempfile::tempdir().unwrap();
            for (part, words) in [
                ("postgres", ["`initdb` is missing in ", "LAB_SERVERS"]),
                ("mariadb", ["`mariadb-install-db` is missing in ", "LAB_SERVERS"]),
                ("mysql", ["`mysqld` is missing in ", "LAB_SERVERS"]),
            ] {
                let said = says(again("missing_programs_are_named", part).env("LAB_SERVERS", nowhere.path()));
                assert!(words.iter().all(|word| said.contains(word)), "{said}");
            }
            // The system has MariaDB, whose server may also be called `mysqld`.
            if MySql::default().is_mariadb() {
                let said = says(again("missing_programs_are_named", "mysql").env_remove("LAB_SERVERS"));
                for word in ["`mysqld` is ", ": install", "https://dev.mysql.com/downloads/mysql/"] {
                    assert!(said.contains(word), "{said}");
                }
            }
        }
    }
}

fn says(command: &mut Command) -> String {
    let output = command.stderr(Stdio::piped()).output().unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap() + &String::from_utf8(output.stdout).unwrap()
}
