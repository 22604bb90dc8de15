//! The machine against scripted and random primaries, in virtual time.

mod attachments;
mod bench;
mod failover;
mod guests;
mod random;
