//! Which slots may be given away, and which of them are prepared before they are.
//!
//! A drive that is a file grows with what is written to it, and a first write costs three times what a
//! later one does, most of it when it is flushed (`docs/disk.md`, "Prepared slots"). So free slots are
//! written ahead of those who take them for a few blocks: as many as were taken so since the drive was
//! opened, up to [`PREPARED_BYTES`], so that a drive that nobody writes to does not grow. Whoever fills a
//! slot at once gains nothing by that, and would have it written twice; and the slots of an HDD are so
//! large that writing one for a few blocks costs more than it saves.
//!
//! Invariants: a slot that was freed is given away again only when the record that freed it is
//! durable and no write to it is in flight; so is one that is being prepared. Whoever needs a slot
//! gets one that is not prepared rather than none.

use std::collections::{BTreeSet, VecDeque};

use model::volume::Media;

use crate::{
    api::{Action, PREPARED_BYTES_MAX},
    drive::{Drive, Io},
    sabotage::{Sabotage, is_on, scatters},
};

/// Bytes of free slots that are prepared, at most.
const PREPARED_BYTES: u64 = 64 << 20;

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
    /// Slots of free ones that are prepared, at most, and in one go.
    prepared_max: u64,
    run_max: u32,
    /// Taken out of `free`, and prepared: these are given away first.
    prepared: VecDeque<u32>,
    /// Taken out of `free`: the first, and how many.
    preparing: Option<(u32, u32)>,
    /// Slots given away for a few blocks since the drive was opened.
    taken: u64,
    /// There was no space below the drive.
    is_refused: bool,
}

impl Space {
    /// `used` has one bit per slot.
    pub fn new(slots: u32, media: Media, used: &[u64]) -> Self {
        let mut free: Vec<u64> = used.iter().map(|word| !word).collect();
        assert_eq!(free.len(), usize::try_from(slots.div_ceil(64)).expect("fits memory"));
        if let Some(last) = free.last_mut().filter(|_| !slots.is_multiple_of(64)) {
            *last &= (1 << (slots % 64)) - 1;
        }
        let free_count = free.iter().map(|word| u64::from(word.count_ones())).sum();
        let per_slot = media.extent_bytes();
        let (prepared_max, run_max) = match media {
            Media::Ssd => (PREPARED_BYTES / u64::from(per_slot), PREPARED_BYTES_MAX / per_slot),
            Media::Hdd => (0, 0),
        };
        Self {
            free,
            free_count,
            slots,
            cursor: 0,
            waiting: VecDeque::new(),
            busy: BTreeSet::new(),
            prepared_max,
            run_max,
            prepared: VecDeque::new(),
            preparing: None,
            taken: 0,
            is_refused: false,
        }
    }

    /// A slot that nothing on the drive refers to, for a few blocks.
    pub fn take(&mut self) -> Option<u32> {
        let slot = self.prepared.pop_front().or_else(|| self.find())?;
        self.taken += 1;
        Some(slot)
    }

    /// As that, for payload that fills most of it.
    pub fn take_whole(&mut self) -> Option<u32> {
        self.find().or_else(|| self.prepared.pop_front())
    }

    fn find(&mut self) -> Option<u32> {
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
        let word = &mut self.free[word_of(slot)];
        assert_eq!(*word >> (slot % 64) & 1, 0, "slot {slot} is free already");
        *word |= 1 << (slot % 64);
        self.free_count += 1;
    }

    /// As [`Self::give_back`], to be taken next: whoever took it comes back for it.
    pub fn put_back(&mut self, slot: u32) {
        self.prepared.push_front(slot);
    }

    /// Prepared and not taken.
    pub fn prepared(&self) -> u64 {
        u64::try_from(self.prepared.len()).expect("fits")
    }

    /// Free slots that lie one behind the other and shall be prepared now: the first, and how many.
    /// Nobody gets them until [`Self::end_preparing`].
    pub fn begin_preparing(&mut self) -> Option<(u32, u32)> {
        let wanted = self.taken.min(self.prepared_max);
        if self.is_refused || self.preparing.is_some() || self.prepared() >= wanted {
            return None;
        }
        let most = if scatters() { 1 } else { self.run_max };
        // Who comes meanwhile finds others.
        if self.free_count < 2 * u64::from(most) {
            return None;
        }
        let first = self.find()?;
        let mut count = 1;
        while count < most && self.claim(first + count) {
            count += 1;
        }
        self.cursor = (first + count) % self.slots;
        self.preparing = Some((first, count));
        if is_on(Sabotage::PreparedNotAwaited) {
            self.prepared.extend(first..first + count);
        }
        self.preparing
    }

    /// Takes the slot if it is free.
    fn claim(&mut self, slot: u32) -> bool {
        let is_free = slot < self.slots && self.free[word_of(slot)] >> (slot % 64) & 1 == 1;
        if is_free {
            self.free[word_of(slot)] &= !(1 << (slot % 64));
            self.free_count -= 1;
        }
        is_free
    }

    /// The slots are prepared; or there was no space for that below the drive, and none is tried
    /// again until the drive is opened the next time.
    pub fn end_preparing(&mut self, is_refused: bool) {
        let (first, count) = self.preparing.take().expect("it was begun");
        self.is_refused = is_refused;
        match is_refused {
            _ if is_on(Sabotage::PreparedNotAwaited) => {}
            true => (first..first + count).for_each(|slot| self.give_back(slot)),
            false => self.prepared.extend(first..first + count),
        }
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

impl Drive {
    pub fn prepare_slots(&mut self, out: &mut Vec<Action>) {
        if let Some((first, count)) = self.space.begin_preparing() {
            let bytes = u64::from(count) * self.layout.slot_bytes();
            let length = u32::try_from(bytes).expect("at most PREPARED_BYTES_MAX");
            self.ios.prepare(Io::Prepare, self.layout.slot_offset(first), length, out);
        }
    }

    pub fn slots_prepared(&mut self, is_refused: bool) {
        self.space.end_preparing(is_refused);
        self.feed_starved();
    }
}

fn word_of(slot: u32) -> usize {
    usize::try_from(slot / 64).expect("fits memory")
}
