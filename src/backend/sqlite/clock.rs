//! The positions of SQLite: times of a clock that all processes of a machine share and that nothing sets. The wall clock
//! may be set between the launches of two processes, and a copy would then look fresher to one of them than it is.

use std::sync::OnceLock;

use xxhash_rust::xxh3::xxh3_64;

use crate::position::Position;

/// The position of a copy that begins now: everything that was committed before is in it.
pub(super) fn copied_until_now() -> Position {
    Position::Time { clock: clock(), ms: machine::ms() }
}

/// The position of the master now: everything that has been committed is before it.
pub(super) fn written_until_now() -> Position {
    Position::Time { clock: clock(), ms: machine::ms() + 1 }
}

/// Identifies the clock. Where nothing tells, a number of this process: other processes then cannot compare its times
/// with their own.
fn clock() -> u64 {
    static CLOCK: OnceLock<u64> = OnceLock::new();
    *CLOCK.get_or_init(|| machine::clock().map_or_else(|| fastrand::u64(..), |name| xxh3_64(name.as_bytes())))
}

#[cfg(target_os = "linux")]
mod machine {
    use std::{fs, io};

    use rustix::time::{ClockId, clock_gettime};

    /// Milliseconds since the machine was started, rounded down.
    pub(super) fn ms() -> u64 {
        let now = clock_gettime(ClockId::Monotonic);
        u64::try_from(now.tv_sec * 1000 + now.tv_nsec / 1_000_000).unwrap_or_default()
    }

    /// The clock begins again with the machine. A container may have a clock of its own:
    /// <https://man7.org/linux/man-pages/man7/time_namespaces.7.html>
    pub(super) fn clock() -> Option<String> {
        let start = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let namespace = match fs::read_link("/proc/self/ns/time") {
            Ok(namespace) => namespace,
            // Before Linux 5.6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Default::default(),
            Err(_) => return None,
        };
        Some(format!("{start} {}", namespace.display()))
    }
}

#[cfg(not(target_os = "linux"))]
mod machine {
    use std::sync::OnceLock;
    use std::time::Instant;

    /// Milliseconds since this process first asked, rounded down.
    pub(super) fn ms() -> u64 {
        static ORIGIN: OnceLock<Instant> = OnceLock::new();
        u64::try_from(ORIGIN.get_or_init(Instant::now).elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// `None`: no other process knows when this one first asked.
    pub(super) fn clock() -> Option<String> {
        None
    }
}
