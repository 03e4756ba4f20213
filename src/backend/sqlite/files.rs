//! Database files that are missing, empty, removed or replaced.

use std::ffi::c_int;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use rusqlite::ffi::{self, SQLITE_FCNTL_HAS_MOVED, SQLITE_OK};
use rusqlite::{Connection, OpenFlags};

/// The folder of a file, if it does not exist.
pub(super) fn missing_folder(file: &Path) -> Option<PathBuf> {
    let file = std::path::absolute(file).ok()?;
    file.parent().filter(|folder| !folder.exists()).map(Path::to_owned)
}

/// Creates the master's file if it is missing. This happens at ignition alone: a file that is missing later was lost.
///
/// Fails if the file is missing or empty beside a copy with tables. That copy is the only data left. It would be
/// replaced by an empty database, or by one that has only been migrated.
pub(super) fn begin(master: &Path, copies: &[&Path]) -> Result<(), String> {
    if missing_folder(master).is_some() {
        return Ok(());
    }
    let filled = || copies.iter().find(|copy| tables(copy).is_ok_and(|tables| tables > 0));
    if tables(master).is_ok_and(|tables| tables == 0)
        && let Some(copy) = filled()
    {
        return Err(lost(master, copy));
    }
    // If this fails for another reason than an existing file, the first connection fails for the same reason and
    // reports it.
    let _ = File::create_new(master);
    Ok(())
}

/// The message for a lost master, with the remedy.
pub(super) fn lost(master: &Path, copy: &Path) -> String {
    let (master, copy) = (master.display(), copy.display());
    format!(
        "`{master}` is missing or has no tables, but its copy `{copy}` has some, so the master's file was lost, or its path is \
         wrong. Stop the application and copy `{copy}` to `{master}`; or remove the copy to begin with nothing"
    )
}

/// The number of tables and indices in a file: 0 if the file is missing.
pub(super) fn tables(file: &Path) -> rusqlite::Result<i64> {
    if !file.exists() {
        return Ok(0);
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags(file, flags)?;
    database.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
}

/// True if the path of an open database leads to another file by now, or to none. Opening the files to compare them
/// would release SQLite's locks:
/// <https://www.sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_>
pub(super) fn has_moved(mut database: NonNull<ffi::sqlite3>) -> bool {
    let mut moved: c_int = 0;
    // SAFETY: the caller has borrowed an open connection for the handle, so that nothing else uses it. The argument of this
    // operation is a pointer to an integer: <https://www.sqlite.org/c3ref/c_fcntl_begin_atomic_write.html>
    #[allow(unsafe_code)]
    let code = unsafe {
        let moved = std::ptr::from_mut(&mut moved).cast();
        ffi::sqlite3_file_control(database.as_mut(), c"main".as_ptr(), SQLITE_FCNTL_HAS_MOVED, moved)
    };
    code == SQLITE_OK && moved != 0
}
