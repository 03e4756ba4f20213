//! Which server serves a statement: `policy` is the table of rules, `slaves` draws one of several; `client` is who asks.

mod client;
mod policy;
mod slaves;

pub(crate) use client::Client;
pub use policy::{Choice, Reason};
pub(crate) use policy::{
    Declared, Intent, MethodKind, Pinned, Situation, Slaves, Target, choose, is_current, stays,
};
pub(crate) use slaves::{CatchUp, Decision, Drawn, Failed, Found, Route, SlaveSet};
