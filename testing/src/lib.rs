#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(missing_docs, missing_debug_implementations, unreachable_pub)]

// A map, each room importing from those below it:
//
//     lab        a test's database, with lag and a section for Rocket; `section`, `reply`
//     sqlite     labs in files
//     postgres, mysql   the kinds of server
//     shared     servers that tests use one after the other
//     servers    a master and its slaves, and the data that they start on
//     server     one server program
//     session    client programs that are kept running
//     guard      ends and removes what a killed test leaves behind
//     process    programs and processes of this machine
//     wire       a proxy that fails as networks do; imports from none of the others

mod guard;
mod lab;
pub mod mysql;
pub mod postgres;
mod process;
mod reply;
mod section;
pub mod server;
mod servers;
mod session;
mod shared;
#[cfg(feature = "sqlite")]
mod sqlite;
mod wire;

pub use lab::{Deployment, Lab, OnServers};
pub use reply::{Reply, Served, assert_served_by, assert_served_by_slave, served_by};
pub use section::Section;
pub use server::Server;
pub use servers::{Dbms, Replay, Servers};
#[cfg(feature = "sqlite")]
pub use sqlite::InFiles;
pub use wire::Wire;
