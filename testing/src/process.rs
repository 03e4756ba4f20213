//! Programs and processes of this machine.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use std::{env, thread};

use tempfile::TempDir;

use crate::guard;
use crate::server::Program;

/// How long a test waits for a server before it panics.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The folder that the environment variable `LAB_SERVERS` names. It is laid out like `/`, and server programs are taken
/// from there alone.
pub(crate) fn root() -> Option<&'static Path> {
    static ROOT: OnceLock<Option<PathBuf>> = OnceLock::new();
    ROOT.get_or_init(|| env::var_os("LAB_SERVERS").map(PathBuf::from)).as_deref()
}

/// A program of this kind of server, from one of these folders or from PATH. With `LAB_SERVERS`, only from these
/// folders inside the folder that it names.
///
/// # Panics
///
/// If the program is missing, with what to install.
pub fn server_program<P: Program>(folders: &[PathBuf], name: &str) -> Command {
    find_server_program(folders, name).unwrap_or_else(|| match root() {
        Some(root) => panic!("`{name}` is missing in the folder that LAB_SERVERS names: {}", root.display()),
        None => panic!("`{name}` is missing: {}", P::INSTALL),
    })
}

pub(crate) fn find_server_program(folders: &[PathBuf], name: &str) -> Option<Command> {
    let Some(root) = root() else { return find(folders, name).map(|file| command(&file)) };
    let mut files =
        folders.iter().map(|folder| root.join(folder.strip_prefix("/").unwrap_or(folder)).join(name));
    files.find(|file| file.is_file()).map(|file| command(&file))
}

pub(crate) fn system_program(name: &str) -> Command {
    let file = find(&[], name);
    command(
        &file.unwrap_or_else(|| {
            panic!("`{name}` is missing: install coreutils and procps, or your system's own")
        }),
    )
}

/// Also searches the folders of server programs, which are not in an ordinary user's PATH.
fn find(folders: &[PathBuf], name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let hidden = ["/usr/local/sbin", "/usr/sbin"].map(PathBuf::from);
    let mut files =
        folders.iter().cloned().chain(env::split_paths(&path)).chain(hidden).map(|folder| folder.join(name));
    files.find(|file| file.is_file())
}

/// A command without the caller's environment, in which variables such as PG*, MYSQL_* and LC_* would have effects.
fn command(file: &Path) -> Command {
    let mut command = Command::new(file);
    command.env_clear().env("PATH", env::var_os("PATH").unwrap_or_default()).env("LC_ALL", "C");
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// Runs the command in the folder, and as this user if this process is root's.
pub fn as_user(command: &mut Command, user: &str, folder: &Path) {
    command.current_dir(folder);
    if let Some((uid, gid)) = ids(user) {
        command.uid(uid).gid(gid);
    }
}

/// The user and group to change to, if this process is root's.
fn ids(user: &str) -> Option<(u32, u32)> {
    // SAFETY: `geteuid` has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        return None;
    }
    // Not by getpwnam, which is not thread-safe.
    let id = |option: &str| {
        let id = output(system_program("id").args([option, user]));
        id.unwrap_or_else(|error| {
            panic!("{error}: root's servers run as the user `{user}`, which their package creates")
        })
        .parse()
        .unwrap()
    };
    Some((id("-u"), id("-g")))
}

/// Runs the command and returns its output without surrounding white space, or its errors if it failed.
///
/// # Panics
///
/// If the command cannot be started.
pub fn output(command: &mut Command) -> Result<String, String> {
    let output =
        command.stdout(Stdio::piped()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
    let ok = output.status.success();
    if ok { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// A folder for the data of a kind of server, owned by that server's user. It is removed however this process ends.
pub fn temporary_folder<P: Program>() -> TempDir {
    // The guard needs `ps` to end servers: fail before there is a server.
    system_program("ps");
    let prefix = format!("{}-", P::NAME.to_lowercase());
    let folder = tempfile::Builder::new().prefix(&prefix).tempdir().unwrap();
    if let Some((uid, gid)) = ids(P::USER) {
        chown(folder.path(), Some(uid), Some(gid)).unwrap();
    }
    guard::folder(folder.path());
    folder
}

/// Copies the template in its folder, as the data of a server of this kind.
pub(crate) fn copy_template<P: Program>(folder: &Path, name: &str) -> PathBuf {
    let mut copy = system_program("cp");
    as_user(&mut copy, P::USER, folder);
    // `/.` copies the folder that the link leads to.
    output(copy.args(["-R", "template/.", name])).unwrap();
    folder.join(name)
}

/// Removes the folder early, because statics that own one are never dropped.
pub(crate) fn remove(folder: &TempDir) {
    let _ = fs::remove_dir_all(folder.path());
}

/// Process id, parent and state of every process on this machine.
fn processes() -> Vec<(i32, i32, char)> {
    if cfg!(target_os = "linux") { listed_by_linux() } else { listed_by_ps() }
}

/// Reads `/proc`. The name is in parentheses, and may contain parentheses:
/// <https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html>
fn listed_by_linux() -> Vec<(i32, i32, char)> {
    let process = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        // A process that has ended meanwhile has no such file.
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let mut words = stat.rsplit_once(')')?.1.split_whitespace();
        let state = words.next()?.chars().next()?;
        Some((pid, words.next()?.parse().ok()?, state))
    };
    let entries = fs::read_dir("/proc").expect("the processes of this machine");
    entries.flatten().filter_map(process).collect()
}

fn listed_by_ps() -> Vec<(i32, i32, char)> {
    let list = output(system_program("ps").args(["-A", "-o", "pid=", "-o", "ppid=", "-o", "stat="]));
    let process = |line: &str| {
        let mut words = line.split_whitespace();
        let (pid, parent) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some((pid, parent, words.next()?.chars().next()?))
    };
    list.unwrap().lines().filter_map(process).collect()
}

/// A process and its children. Each child may lead a process group of its own, so only the parent id tells.
pub(crate) fn family(parent: i32) -> Vec<i32> {
    let mut processes = processes();
    processes.retain(|&(pid, its_parent, _)| pid == parent || its_parent == parent);
    processes.into_iter().map(|(pid, ..)| pid).collect()
}

pub(crate) fn send(pids: &[i32], signal: i32) {
    for &pid in pids {
        // An error means that the process is gone.
        // SAFETY: `kill` has no preconditions.
        unsafe { libc::kill(pid, signal) };
    }
}

/// Waits until each of the processes is gone or in one of the states.
pub(crate) fn wait_for_state(states: &str, pids: &[i32]) {
    let there = |(pid, _, state)| !pids.contains(&pid) || states.contains(state);
    wait_for(&format!("state {states} of {pids:?}"), || processes().into_iter().all(there));
}

pub(crate) fn within(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !done() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
    true
}

/// Polls until `done` returns true. Blocks.
///
/// # Panics
///
/// If that takes longer than [`PATIENCE`].
#[track_caller]
pub fn wait_for(what: &str, done: impl FnMut() -> bool) {
    assert!(within(PATIENCE, done), "no {what} within {PATIENCE:?}");
}

/// Locks a mutex even after a panic elsewhere, which does not break the content of these mutexes.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
