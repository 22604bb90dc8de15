//! Content that was read ahead and that nobody has asked for yet.
//!
//! Decides: what makes room for more.
//! Does not: know replicas or streams, or read.
//! Invariants: a block here is what its slot holds on the drive: when the slot changes, all of it
//! goes, before anything else can be in the slot; a block is given away once; what is here and what
//! is coming are at most [`BYTES_MAX`].

use std::collections::BTreeMap;

use bytes::Bytes;
use format::disk::BLOCK_LEN;

use crate::sabotage::{Sabotage, is_on};

/// Of one drive, beside what its metadata may take.
pub const BYTES_MAX: u64 = 8 << 20;

#[derive(Debug, Default)]
pub struct Cache {
    /// By slot and first block; they do not overlap.
    runs: BTreeMap<(u32, u32), Run>,
    /// Of the runs, and of what room was made for.
    held: u64,
    coming: u64,
    /// Of the last run.
    number: u64,
    /// Blocks that were given away.
    taken: u64,
}

/// Blocks that lie one behind the other.
#[derive(Debug)]
struct Run {
    number: u64,
    data: Bytes,
    /// Of each block; `None`: it is not here, or not any more.
    crcs: Vec<Option<u32>>,
    left: usize,
}

fn len_of(data: &Bytes) -> u64 {
    u64::try_from(data.len()).expect("fits")
}

impl Cache {
    /// Makes room for what is going to be read, at the cost of the oldest.
    pub fn expect(&mut self, bytes: u64) -> bool {
        if self.coming + bytes > BYTES_MAX {
            return false;
        }
        while self.held + self.coming + bytes > BYTES_MAX {
            let oldest = self.runs.iter().min_by_key(|(_, run)| run.number);
            let (&key, _) = oldest.expect("something takes the room");
            self.remove(key);
        }
        self.coming += bytes;
        true
    }

    /// What room was made for has come, or does not.
    pub fn came(&mut self, bytes: u64) {
        self.coming -= bytes;
    }

    /// Content of a slot from block `first` on, with the checksums of the blocks that are to be
    /// kept. Its room was just given up by [`Self::came`].
    pub fn insert(&mut self, slot: u32, first: u32, crcs: Vec<Option<u32>>, data: Bytes) {
        let end = first + u32::try_from(crcs.len()).expect("within a slot");
        let below = self.runs.range((slot, 0)..(slot, end)).map(|(&key, run)| (key, run.len()));
        let overlaps = |&((_, start), len): &((u32, u32), u32)| start + len > first;
        let older: Vec<(u32, u32)> = below.filter(overlaps).map(|(key, _)| key).collect();
        older.into_iter().for_each(|key| self.remove(key));
        let left = crcs.iter().flatten().count();
        if left == 0 {
            return;
        }
        self.number += 1;
        self.held += len_of(&data);
        assert!(self.held + self.coming <= BYTES_MAX, "room was made for it");
        self.runs.insert((slot, first), Run { number: self.number, data, crcs, left });
    }

    fn run_with(&self, slot: u32, block: u32) -> Option<(u32, u32)> {
        let (&key, run) = self.runs.range((slot, 0)..=(slot, block)).next_back()?;
        (block - key.1 < run.len()).then_some(key)
    }

    /// Gives the block away, if it is here and is what the table says.
    pub fn take(&mut self, slot: u32, block: u32, crc: u32) -> Option<Bytes> {
        let key = self.run_with(slot, block)?;
        let run = self.runs.get_mut(&key).expect("found above");
        let index = at(block - key.1);
        let kept = run.crcs[index].take()?;
        let bytes = &run.data[index * BLOCK_LEN..(index + 1) * BLOCK_LEN];
        // A copy: the answer may be on its way for long, and must not hold the whole run.
        let found =
            (kept == crc || is_on(Sabotage::AheadUnchecked)).then(|| Bytes::copy_from_slice(bytes));
        run.left -= 1;
        if run.left == 0 {
            self.remove(key);
        }
        self.taken += u64::from(found.is_some());
        found
    }

    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// The slot has changed.
    pub fn forget(&mut self, slot: u32) {
        if self.runs.is_empty() || is_on(Sabotage::AheadUnchecked) {
            return;
        }
        let keys = self.runs.range((slot, 0)..=(slot, u32::MAX)).map(|(&key, _)| key);
        let keys: Vec<(u32, u32)> = keys.collect();
        keys.into_iter().for_each(|key| self.remove(key));
    }

    fn remove(&mut self, key: (u32, u32)) {
        let run = self.runs.remove(&key).expect("the caller found it");
        self.held -= len_of(&run.data);
    }

    /// Of memory.
    #[cfg(test)]
    pub fn bytes(&self) -> u64 {
        self.held + self.coming
    }
}

impl Run {
    fn len(&self) -> u32 {
        u32::try_from(self.crcs.len()).expect("within a slot")
    }
}

fn at(index: u32) -> usize {
    usize::try_from(index).expect("fits memory")
}
