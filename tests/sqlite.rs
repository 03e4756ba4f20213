//! The promises on SQLite, and those that need no database server, with a file for each promise.

use support::{absent as on_postgres, given as on_sqlite, in_files as on_every_database};

#[global_allocator]
static COUNTING: support::counting::Counting = support::counting::Counting;

mod after_connect;
mod choice;
mod connections;
mod cost;
mod drills;
mod executor;
mod found;
mod guards;
mod isolation;
mod launch;
mod leftovers;
mod locks;
mod pins;
mod pool;
mod query_macros;
mod read_only;
mod readme;
mod reads_own_writes;
mod reroute;
mod server_timing;
mod slow_statement;
mod sqlite_follower;
mod sqlite_processes;
mod statistics;
mod status;
