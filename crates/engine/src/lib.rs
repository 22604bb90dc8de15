//! The storage engine: one machine per drive.
//!
//! Decides: where blocks live, when a change is durable, what survives a crash, what space costs.
//! Does not: know of primaries, mirrors, volumes or networks; do I/O; read a clock.
//! The format, and what makes it safe, is `docs/disk.md`.

mod ahead;
pub mod api;
mod change;
mod commit;
mod describe;
mod direct;
mod drive;
mod fetch;
mod journal;
mod layer;
mod machine;
mod open;
mod overlay;
mod read;
mod reads;
mod replay;
pub mod sabotage;
mod space;
mod starved;
mod table;
mod writeback;

pub use machine::Engine;

#[cfg(test)]
mod tests;
