//! The group protocol of docs/replication.md as a model that is explored to its end.
//!
//! Decides: whether the rules of the document keep its invariants, in every order of steps that a
//! scope allows. Does not: run the real machines (`sim` does), or know bytes, time and drives.
//! Invariant: each rule here is one of the document, and is kept by the module of the party that
//! keeps it in the real code.

pub mod breaks;
pub mod client;
pub mod explore;
pub mod fill;
pub mod forget;
pub mod history;
pub mod manager;
pub mod model;
pub mod network;
pub mod primary;
pub mod properties;
pub mod requests;
pub mod scope;
pub mod server;
pub mod state;
pub mod tell;
