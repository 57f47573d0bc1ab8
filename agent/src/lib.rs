//! Fairlead's agent: everything behind the one binary `fairlead`.
//!
//! Modules stand in layer order; each may import only those that
//! `cargo xtask lint` lists for it. Data flows one way: objects become a
//! [`state::Snapshot`], that a [`policy::Table`], that the decisions of
//! [`proxy`] and the maps of [`redirect`], and what happened a
//! [`flow::FlowEvent`].

pub mod admin;
pub mod app;
pub mod ca;
pub mod cli;
pub mod cluster;
pub mod cni;
pub mod flow;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod identity;
pub mod model;
pub mod policy;
pub mod proxy;
pub mod redirect;
pub mod state;
