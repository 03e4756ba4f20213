//! A process that outlives this one. After a test that was killed outright, it ends the servers and removes their
//! folders.
//!
//! It waits for the end of a pipe that this process holds open, so that it notices every way of ending. A process that
//! ends in order has cleared up by then, and the guard finds nothing.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdin, Stdio};
use std::sync::{Mutex, OnceLock};

use crate::process::{lock, system_program};

/// Reads lines that name servers and folders. A process is killed only if it still has a folder of ours among its
/// arguments: its number may belong to another process by then.
const SCRIPT: &str = r#"
trap '' HUP INT QUIT TERM
servers= folders=
while read -r what value; do
  case $what in
    server) servers="$servers $value" ;;
    folder) folders="$folders$value
" ;;
  esac
done
is_ours() {
  arguments=$(ps -o args= -p "$1") || return
  while read -r folder; do
    case $arguments in *"${folder:-/no/folder}"*) return 0 ;; esac
  done <<END
$folders
END
  return 1
}
family() {
  ps -A -o pid= -o ppid= | while read -r pid parent; do
    if [ "$pid" = "$1" ] || [ "$parent" = "$1" ]; then echo "$pid"; fi
  done
}
for server in $servers; do
  pid=${server%:*}
  is_ours "$pid" || continue
  all=$(family "$pid")
  kill -CONT $all
  kill "-${server#*:}" "$pid"
  tries=50
  while [ $tries -gt 0 ] && is_ours "$pid"; do
    sleep 0.1
    tries=$((tries - 1))
  done
  kill -KILL $all
done
while read -r folder; do
  if [ -n "$folder" ]; then rm -rf "$folder"; fi
done <<END
$folders
END
"#;

/// Has the guard end this server by this signal.
pub(crate) fn server(pid: i32, signal: i32) {
    tell(&format!("server {pid}:{signal}"));
}

/// Has the guard remove this folder.
pub(crate) fn folder(folder: &Path) {
    tell(&format!("folder {}", folder.display()));
}

fn tell(line: &str) {
    static GUARD: OnceLock<Mutex<ChildStdin>> = OnceLock::new();
    let guard = GUARD.get_or_init(|| Mutex::new(start()));
    writeln!(lock(guard), "{line}").expect("the process that clears up runs for as long as this one");
}

#[expect(clippy::zombie_processes, reason = "it ends after this process")]
fn start() -> ChildStdin {
    let mut guard = system_program("sh");
    guard.args(["-c", SCRIPT]).stdin(Stdio::piped()).stderr(Stdio::null());
    // Signals for the process group of the tests, such as those of a terminal, must not reach the guard.
    guard.current_dir("/").process_group(0);
    let mut child = guard.spawn().expect("a shell");
    child.stdin.take().expect("piped")
}
