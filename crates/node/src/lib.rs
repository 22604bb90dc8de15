//! A node manager: gives programs an ordinary block device and hides every failure.
//!
//! Decides: which requests are in flight, where they go, when they are sent again, what the guest
//! is told.
//! Does not: choose a primary (it reports and retries); speak NBD or FUSE (fronts do); do I/O.

pub mod api;
mod attachment;
mod cut;
mod links;
mod machine;
mod ranges;
mod requests;
mod session;
#[cfg(test)]
mod tests;

pub use machine::{Counters, Node};
