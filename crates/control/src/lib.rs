//! The manager: what should exist and where.
//!
//! Decides: everything that must be decided once: who is primary and in sync, where replicas are
//! placed, what a customer may do, how a modification proceeds.
//! Does not: touch data; do I/O; know SQL, sockets or a clock.
//! Invariant: state changes only by applying records that the metadata store has made durable.

pub mod account;
pub mod api;
pub mod attachment;
pub mod case;
pub mod command;
pub mod creation;
mod duty;
mod ec2;
pub mod fullness;
mod health;
pub mod http;
pub mod ledger;
pub mod links;
pub mod live;
pub mod machine;
pub mod membership;
mod metrics;
pub mod modification;
mod native;
pub mod parameters;
pub mod placement;
pub mod random;
pub mod reconcile;
pub mod replacing;
pub mod router;
mod scrub;
mod sigv4;
mod slow;
pub mod state;
mod sts;
pub mod tags;

#[cfg(test)]
mod tests;
