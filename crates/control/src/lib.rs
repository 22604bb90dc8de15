//! The manager: what should exist and where.
//!
//! Decides: everything that must be decided once: who is primary and in sync, where replicas are
//! placed, what a customer may do, how a modification proceeds.
//! Does not: touch data; do I/O; know SQL, sockets or a clock.
//! Invariant: state changes only by applying records that the metadata store has made durable.

pub mod api;
mod ec2;
mod health;
pub mod http;
pub mod machine;
mod native;
pub mod router;
mod sigv4;
pub mod state;
mod sts;
