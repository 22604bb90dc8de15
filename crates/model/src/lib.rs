//! The nouns of Pliant: ids, quantities, time, epochs, and the entities with their states.
//!
//! Decides: what a legal id, quantity or state transition is.
//! Does not: encode anything for the wire or the disk (that is `format`), or do I/O.
//! Invariants: every quantity is a type with checked arithmetic; every legal transition of a
//! state is listed in one function beside the state.

pub mod epoch;
pub mod group;
pub mod id;
pub mod limits;
pub mod sabotage;
pub mod state;
pub mod time;
pub mod units;
pub mod volume;
