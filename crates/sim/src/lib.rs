//! The simulated world: the real machines of manager, servers and node managers, on simulated
//! drives and links, in virtual time, from one seed.
//!
//! Decides: what happens when, which faults strike, and whether what the guests saw was right.
//! Does not: contain any logic of Pliant. `pliant` drives the same machines in the real world.
//! Invariants: the same seed gives the same run; nothing here asks for the time or for randomness.

pub mod api;
pub mod check;
pub mod drive;
pub mod network;
pub mod random;
pub mod reader;
pub mod scenario;
pub mod world;
