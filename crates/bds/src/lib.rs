//! A BDS server: the replicas on its drives, as primary, mirror and learner.
//!
//! Decides: the order of writes, when one is acknowledged, how a learner is filled and admitted,
//! how fast a volume may go.
//! Does not: choose who is primary or in sync (the manager does); store bytes (the engine does).
//! The protocol is `docs/replication.md`.

pub mod api;
mod beat;
mod damage;
mod drive;
mod examine;
mod filled;
mod filling;
mod image;
mod learner;
mod lock;
mod mend;
mod mirror;
mod parts;
mod place;
mod primary;
mod rate;
mod replica;
mod scrub;
mod server;
mod session;
mod source;
mod stripe;
mod turn;

pub use server::Server;
