//! Several servers with real engines, in virtual time: what replication promises, seen from
//! outside.

#![allow(clippy::cast_possible_truncation, reason = "small numbers of our own making")]

mod check;
mod client;
mod disk;
mod full;
mod manager;
mod random;
mod rot;
mod scenario;
mod striped;
mod world;
