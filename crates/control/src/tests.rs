//! The manager in a scripted world: fake servers and node managers that keep the protocol of
//! docs/replication.md at the level of messages, a store, and a clock that steps.

mod chaos;
mod commands;
mod duty;
mod fullness;
mod life;
mod properties;
mod reach;
mod slow;
mod striped;
mod world;
