//! Which slots may be given away.
//!
//! Invariant: a slot that was freed is given away again only when the record that freed it is
//! durable and no write to it is in flight.

use std::collections::{BTreeSet, VecDeque};

use crate::sabotage::scatters;

#[derive(Debug)]
pub struct Space {
    /// One bit per slot; 1: may be given away.
    free: Vec<u64>,
    free_count: u64,
    slots: u32,
    /// Where to look next: neighbours in time become neighbours on the drive.
    cursor: u32,
    /// Freed by the record with this LSN, in its order.
    waiting: VecDeque<(u64, u32)>,
    /// Freed durably, with a write in flight.
    busy: BTreeSet<u32>,
}

impl Space {
    /// `used` has one bit per slot.
    pub fn new(slots: u32, used: &[u64]) -> Self {
        let mut free: Vec<u64> = used.iter().map(|word| !word).collect();
        assert_eq!(free.len(), usize::try_from(slots.div_ceil(64)).expect("fits memory"));
        if let Some(last) = free.last_mut().filter(|_| !slots.is_multiple_of(64)) {
            *last &= (1 << (slots % 64)) - 1;
        }
        let free_count = free.iter().map(|word| u64::from(word.count_ones())).sum();
        let (waiting, busy) = (VecDeque::new(), BTreeSet::new());
        Self { free, free_count, slots, cursor: 0, waiting, busy }
    }

    /// A slot that nothing on the drive refers to.
    pub fn take(&mut self) -> Option<u32> {
        if self.free_count == 0 {
            return None;
        }
        if scatters() {
            self.cursor = self.cursor.wrapping_mul(0x9e37_79b1).wrapping_add(7) % self.slots;
        }
        let words = self.free.len();
        let start = usize::try_from(self.cursor / 64).expect("fits memory");
        // The word of the cursor comes again at the end, for the bits below the cursor.
        for step in 0..=words {
            let at = (start + step) % words;
            let mut word = self.free[at];
            if step == 0 {
                word &= u64::MAX << (self.cursor % 64);
            }
            if word != 0 {
                let slot = u32::try_from(at).expect("fits") * 64 + word.trailing_zeros();
                self.free[at] &= !(1 << (slot % 64));
                self.free_count -= 1;
                self.cursor = (slot + 1) % self.slots;
                return Some(slot);
            }
        }
        unreachable!("{} slots are free, and none is found", self.free_count)
    }

    /// No record names the slot: it was taken and not used.
    pub fn give_back(&mut self, slot: u32) {
        let word = &mut self.free[usize::try_from(slot / 64).expect("fits memory")];
        assert_eq!(*word >> (slot % 64) & 1, 0, "slot {slot} is free already");
        *word |= 1 << (slot % 64);
        self.free_count += 1;
    }

    /// As [`Self::give_back`], to be taken next: whoever took it comes back for it.
    pub fn put_back(&mut self, slot: u32) {
        self.give_back(slot);
        self.cursor = slot;
    }

    pub fn free_after(&mut self, lsn: u64, slot: u32) {
        self.waiting.push_back((lsn, slot));
    }

    /// Records up to `durable_lsn` are durable. Returns whether a slot became free.
    pub fn release(&mut self, durable_lsn: u64, mut has_write: impl FnMut(u32) -> bool) -> bool {
        let before = self.free_count;
        let idle: Vec<u32> = self.busy.iter().copied().filter(|&s| !has_write(s)).collect();
        for slot in idle {
            self.busy.remove(&slot);
            self.give_back(slot);
        }
        while let Some(&(lsn, slot)) = self.waiting.front() {
            if lsn > durable_lsn {
                break;
            }
            self.waiting.pop_front();
            if has_write(slot) {
                self.busy.insert(slot);
            } else {
                self.give_back(slot);
            }
        }
        self.free_count > before
    }
}
