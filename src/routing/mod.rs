//! The choice of a server for a statement. `policy` is the table of rules, `slaves` draws one of several slaves, and
//! `client` identifies the client.

mod client;
mod policy;
mod slaves;

pub(crate) use client::Client;
pub use policy::{Choice, Reason};
pub(crate) use policy::{
    Declared, Intent, MethodKind, Pinned, Situation, Slaves, Target, choose, is_current, stays,
};
pub(crate) use slaves::{CatchUp, Decision, Drawn, Facts, Failed, Route, SlaveSet};
