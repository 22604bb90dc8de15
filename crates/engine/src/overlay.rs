//! Content that is durable in the journal but not yet in its slot.
//!
//! Decides: which bytes of a slot are newer in memory than on the drive.
//! Does not: know owners or validity.
//! Invariant: a block is here from the moment its record is issued until it has been written
//! home, unless a later record took its slot or its content away. Bounded by the journal.

use std::collections::BTreeMap;

use bytes::Bytes;

#[derive(Debug, Default)]
pub struct Overlay {
    blocks: BTreeMap<Key, Block>,
}

/// Slot, then block within it: the order on the drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub slot: u32,
    pub block: u32,
}

#[derive(Debug, Clone)]
pub struct Block {
    pub lsn: u64,
    pub data: Bytes,
}

impl Overlay {
    pub fn range(&self, slot: u32, first: u32, count: u32) -> impl Iterator<Item = (&Key, &Block)> {
        self.blocks.range(Key { slot, block: first }..Key { slot, block: first + count })
    }

    pub fn insert(&mut self, slot: u32, block: u32, lsn: u64, data: Bytes) {
        self.blocks.insert(Key { slot, block }, Block { lsn, data });
    }

    pub fn remove(&mut self, slot: u32, first: u32, count: u32) {
        loop {
            let Some(key) = self.range(slot, first, count).next().map(|(&key, _)| key) else {
                return;
            };
            self.blocks.remove(&key);
        }
    }

    /// It has been written home, unless something newer is here.
    pub fn remove_written(&mut self, key: Key, lsn: u64) {
        if self.blocks.get(&key).is_some_and(|block| block.lsn == lsn) {
            self.blocks.remove(&key);
        }
    }

    pub fn retain(&mut self, mut keep: impl FnMut(Key, &Block) -> bool) {
        self.blocks.retain(|&key, block| keep(key, block));
    }

    /// From `key` on, in the order of the drive.
    pub fn from(&self, key: Key) -> impl Iterator<Item = (Key, &Block)> {
        self.blocks.range(key..).map(|(&key, block)| (key, block))
    }
}
