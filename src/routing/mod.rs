//! Which server serves a statement: `policy` is the table of rules, `slaves` draws one of several.

mod policy;
mod slaves;

pub use policy::{Choice, Reason};
pub(crate) use policy::{
    Declared, Intent, MethodKind, Pinned, Situation, Slaves, Target, choose, is_current, stays,
};
pub(crate) use slaves::{CatchUp, Drawn, Failed, Found, Route, SlaveSet};
