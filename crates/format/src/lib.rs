//! Every byte that leaves a process: data frames, control messages, disk records, NBD.
//!
//! Decides: how things are encoded, and whether bytes from outside are well formed.
//! Does not: act on what they mean, or do I/O.
//! Invariants: a decoder checks a bound before it allocates, never panics on any input, and
//! rejects what fails its checksum; integers are little-endian unless a foreign protocol says
//! otherwise.

pub mod attachments;
pub mod ctl;
pub mod data;
pub mod disk;
pub mod frame;
pub mod nbd;
pub mod record;
pub mod replica;
