//! One loop per role: each feeds its machine with what happened and carries out what it decides.

pub mod manager;
pub mod node;
pub mod server;
