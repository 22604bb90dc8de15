//! The simulated world: the real machines of manager, servers and node managers, on simulated
//! drives and links, in virtual time, from one seed; and one engine alone, through every crash.
//!
//! Decides: what happens when, which faults strike, and whether what the guests saw was right.
//! Does not: contain any logic of Pliant. `pliant` drives the same machines in the real world.
//! Invariants: the same seed gives the same run; nothing here asks for the time or for randomness.

pub mod arguments;
pub mod crash;
pub mod drive;
pub mod random;

#[cfg(feature = "world")]
pub mod api;
#[cfg(feature = "world")]
pub mod check;
#[cfg(feature = "world")]
pub mod network;
#[cfg(feature = "world")]
pub mod reader;
#[cfg(feature = "world")]
pub mod scenario;
#[cfg(feature = "world")]
mod watch;
#[cfg(feature = "world")]
pub mod world;
