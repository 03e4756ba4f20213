//! The promises on database servers, with a file for each promise.

use support::{absent as on_sqlite, given as on_postgres, on_servers, on_servers as on_every_database};

#[global_allocator]
static COUNTING: support::counting::Counting = support::counting::Counting;

mod after_connect;
mod async_commit;
mod choice;
mod connections;
mod cost;
mod discovery;
mod diverged;
mod drills;
mod elsewhere;
mod executor;
mod galera;
mod group_replication;
mod guards;
mod haproxy;
mod keepalive;
mod lag;
mod launch;
mod leftovers;
mod logical;
mod moved_address;
mod mysql_router;
mod old_servers;
mod outages;
mod outlets;
mod pgbouncer;
mod pgpool;
mod pins;
mod pool;
mod positions;
mod promotion;
mod read_only;
mod read_role;
mod reads_own_writes;
mod reroute;
mod roles;
mod round_trips;
mod server_timing;
mod several_databases;
mod shared_address;
mod silence;
mod slow_opening;
mod slow_statement;
mod statistics;
mod status;
mod terms;
mod tls;
mod urls;
