//! The group protocol of docs/replication.md as a model that is explored exhaustively.
pub mod breaks;
pub mod client;
pub mod fill;
pub mod forget;
pub mod history;
pub mod manager;
pub mod model;
pub mod network;
pub mod primary;
pub mod properties;
pub mod scope;
pub mod server;
pub mod state;
