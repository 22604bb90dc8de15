//! The numbers that fence: epochs, attach generations, and the sequence of a change.
//!
//! Invariant: each only grows; whoever meets an older one refuses it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Grows by one with each change of a group's configuration. Older is refused.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(u64);

impl Epoch {
    /// What a replica promised before it belonged to any configuration.
    pub const NONE: Self = Self(0);
    pub const FIRST: Self = Self(1);
    /// [`ModSeq`] keeps an epoch in 24 bits.
    pub const MAX: Self = Self((1 << 24) - 1);

    pub fn new(raw: u64) -> Option<Self> {
        (raw <= Self::MAX.0).then_some(Self(raw))
    }

    pub fn get(self) -> u64 {
        self.0
    }

    pub fn next(self) -> Self {
        assert!(self < Self::MAX, "a group used up its 2^24 epochs");
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Grows with each change of who is attached. A session with an older one is fenced.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct AttachGeneration(u64);

impl AttachGeneration {
    pub fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    pub fn get(self) -> u64 {
        self.0
    }

    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("2^64 attachments of one volume"))
    }
}

/// Which change last touched an extent: the epoch in the upper 24 bits, the position within the
/// epoch in the lower 40. Zero: never changed. The order of two values is the order of the
/// changes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ModSeq(u64);

impl ModSeq {
    pub const NONE: Self = Self(0);
    const SEQUENCE_BITS: u32 = 40;

    /// Panics when the epoch has used up its 2^40 changes: at 50,000 a second that is 254 days
    /// within one epoch.
    pub fn new(epoch: Epoch, sequence: u64) -> Self {
        assert!(sequence < 1 << Self::SEQUENCE_BITS, "epoch {epoch} used up its sequence");
        Self(epoch.get() << Self::SEQUENCE_BITS | sequence)
    }

    pub fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    pub fn raw(self) -> u64 {
        self.0
    }

    pub fn epoch(self) -> Epoch {
        Epoch(self.0 >> Self::SEQUENCE_BITS)
    }

    pub fn sequence(self) -> u64 {
        self.0 & ((1 << Self::SEQUENCE_BITS) - 1)
    }
}

impl fmt::Display for ModSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch(), self.sequence())
    }
}
