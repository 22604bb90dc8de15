//! Questions that metadata answers: which units hold data, which changed, and their digest.
//!
//! Invariants: a unit is described as it is at one moment, and units in order; the answers depend on
//! what the replica holds, never on the drive's media or layout.

use bytes::Bytes;
use format::{
    data::UnitMeta,
    disk::{UNIT_BLOCKS, UNIT_BYTES},
};
use model::{epoch::ModSeq, id::ReplicaId, units::BLOCK};

use crate::{
    api::{Action, OpError, OpToken, Outcome},
    drive::Drive,
    fetch::{PAGES_MAX, Waiting},
};

/// A question about a range of a replica, and the answer so far.
#[derive(Debug)]
pub struct Inquiry {
    replica: ReplicaId,
    offset: u64,
    length: u64,
    /// Where the units begin that were not looked at.
    next: u64,
    /// It takes more than one wait: what can be answered is, before pages go again.
    split: bool,
    answer: Answer,
}

#[derive(Debug)]
enum Answer {
    Units(Vec<UnitMeta>),
    Digest(u64),
    /// One bit a block; made when the range is known to be legal.
    Bitmap(Vec<u8>),
    /// One bit a unit; made likewise.
    Newer(ModSeq, Vec<u8>),
    /// The byte behind the last valid block. The range is the last extent.
    End(u64),
}

impl Inquiry {
    pub fn describe(replica: ReplicaId, offset: u64, length: u64) -> Self {
        Self::new(replica, offset, length, Answer::Units(Vec::new()))
    }

    pub fn digest(replica: ReplicaId, offset: u64, length: u64) -> Self {
        Self::new(replica, offset, length, Answer::Digest(0))
    }

    pub fn allocated(replica: ReplicaId, offset: u64, length: u64) -> Self {
        Self::new(replica, offset, length, Answer::Bitmap(Vec::new()))
    }

    pub fn changed_since(replica: ReplicaId, than: ModSeq, offset: u64, length: u64) -> Self {
        Self::new(replica, offset, length, Answer::Newer(than, Vec::new()))
    }

    pub fn highest_allocated(replica: ReplicaId) -> Self {
        Self::new(replica, 0, 0, Answer::End(0))
    }

    fn new(replica: ReplicaId, offset: u64, length: u64, answer: Answer) -> Self {
        Self { replica, offset, length, next: offset, split: false, answer }
    }

    fn end(&self) -> u64 {
        self.offset + self.length
    }

    /// An index from the first unit of the range on.
    fn unit_index(&self, at: u64) -> usize {
        let unit_bytes = u64::from(UNIT_BYTES);
        usize::try_from(at / unit_bytes - self.offset / unit_bytes).expect("replicas are bounded")
    }

    fn units(&self) -> usize {
        if self.length == 0 { 0 } else { self.unit_index(self.end() - 1) + 1 }
    }

    fn visit(&mut self, meta: UnitMeta) {
        let index = self.unit_index(meta.offset);
        match &mut self.answer {
            Answer::Units(units) => units.push(meta),
            Answer::Digest(digest) => *digest = meta.fold_into(*digest),
            Answer::Bitmap(bitmap) => {
                let valid = u16::from_le_bytes([meta.valid[0], meta.valid[1]]);
                for block in (0..UNIT_BLOCKS).filter(|b| valid >> b & 1 == 1) {
                    let at = meta.offset + u64::from(block) * BLOCK;
                    if at >= self.offset && at < self.offset + self.length {
                        let index = (at - self.offset) / BLOCK;
                        bitmap[usize::try_from(index / 8).expect("fits")] |= 1 << (index % 8);
                    }
                }
            }
            Answer::Newer(than, bitmap) if meta.mod_seq > *than => {
                bitmap[index / 8] |= 1 << (index % 8);
            }
            Answer::Newer(..) => {}
            Answer::End(end) => {
                let valid = u16::from_le_bytes([meta.valid[0], meta.valid[1]]);
                *end = meta.offset + u64::from(u16::BITS - valid.leading_zeros()) * BLOCK;
            }
        }
    }

    fn outcome(self) -> Outcome {
        match self.answer {
            Answer::Units(units) => Outcome::Described { units },
            Answer::Digest(digest) => Outcome::Digest { digest },
            Answer::Bitmap(bitmap) => Outcome::Allocated { bitmap: Bytes::from(bitmap) },
            Answer::Newer(_, bitmap) => Outcome::ChangedSince { bitmap: Bytes::from(bitmap) },
            Answer::End(end) => Outcome::HighestAllocated { end },
        }
    }
}

impl Drive {
    pub fn ask(&mut self, op: OpToken, mut inquiry: Inquiry, out: &mut Vec<Action>) {
        let checked = self.check_range(inquiry.replica, inquiry.offset, inquiry.length);
        if let Err(error) = checked {
            return self.complete(op, Err(error), out);
        }
        let units = inquiry.units();
        match &mut inquiry.answer {
            Answer::Bitmap(bitmap) => {
                let bytes = (inquiry.length / BLOCK).div_ceil(8);
                bitmap.resize(usize::try_from(bytes).expect("replicas are bounded"), 0);
            }
            Answer::Newer(_, bitmap) => bitmap.resize(units.div_ceil(8), 0),
            Answer::Units(_) | Answer::Digest(_) | Answer::End(_) => {}
        }
        self.inquire(op, inquiry, out);
    }

    /// Goes on until a page is missing. Where the whole range is described by fewer pages than one
    /// request may wait for, the answer is of one moment.
    pub fn inquire(&mut self, op: OpToken, mut inquiry: Inquiry, out: &mut Vec<Action>) {
        if self.table.replica(inquiry.replica).is_none() {
            return self.complete(op, Err(OpError::UnknownReplica), out);
        }
        self.follow_last_extent(&mut inquiry);
        let pages = self.pages_left(&inquiry);
        inquiry.split |= pages.len() == PAGES_MAX;
        if inquiry.split || !self.lacks(&pages) {
            self.visit_known(&mut inquiry);
        }
        if inquiry.next < inquiry.end() {
            let pages = self.pages_left(&inquiry);
            return self.park(op, Waiting::Inquiry(inquiry), pages, out);
        }
        self.complete(op, Ok(inquiry.outcome()), out);
    }

    /// The last extent may have become another one while its page was waited for.
    fn follow_last_extent(&self, inquiry: &mut Inquiry) {
        if !matches!(inquiry.answer, Answer::End(_)) {
            return;
        }
        if let Some(extent) = self.table.last_extent(inquiry.replica) {
            inquiry.offset = u64::from(extent) * self.layout.slot_bytes();
            inquiry.length = self.layout.slot_bytes();
        } else {
            (inquiry.offset, inquiry.length) = (0, 0);
        }
        inquiry.next = inquiry.offset;
    }

    /// The extents that were not looked at.
    fn extents_left(&self, inquiry: &Inquiry) -> impl Iterator<Item = (u32, u32)> + '_ {
        let is_done = inquiry.next == inquiry.end();
        let (first, _) = self.extent_and_block(inquiry.next);
        let (last, _) = self.extent_and_block(inquiry.end().saturating_sub(1));
        let extents = self.table.extents(inquiry.replica, first, last.max(first));
        extents.filter(move |_| !is_done)
    }

    fn pages_left(&self, inquiry: &Inquiry) -> Vec<u32> {
        self.pages_of(self.extents_left(inquiry).map(|(_, slot)| slot))
    }

    /// Looks at the extents before the first one whose page is absent.
    fn visit_known(&self, inquiry: &mut Inquiry) {
        let mut absent = None;
        let mut known = Vec::new();
        for (extent, slot) in self.extents_left(inquiry) {
            let start = u64::from(extent) * self.layout.slot_bytes();
            if self.is_undescribed(slot) {
                absent = Some(start.max(inquiry.next));
                break;
            }
            known.push((start, slot));
        }
        for (start, slot) in known {
            self.visit_extent(inquiry, start, slot);
        }
        inquiry.next = absent.unwrap_or(inquiry.end());
    }

    /// The units of the extent that overlap the range and hold data, in order.
    fn visit_extent(&self, inquiry: &mut Inquiry, start: u64, slot: u32) {
        let unit_bytes = u64::from(UNIT_BYTES);
        let descriptor = self.table.descriptor(slot);
        for unit in 0..self.layout.slot_units() {
            let at = start + u64::from(unit) * unit_bytes;
            let valid = descriptor.valid(unit);
            if valid == 0 || at + unit_bytes <= inquiry.offset || at >= inquiry.end() {
                continue;
            }
            let blocks = (0..UNIT_BLOCKS).filter(|b| valid >> b & 1 == 1);
            let crcs = blocks.map(|b| descriptor.crc(unit * UNIT_BLOCKS + b)).collect();
            inquiry.visit(UnitMeta {
                offset: at,
                mod_seq: descriptor.mod_seq(unit),
                valid: valid.to_le_bytes().to_vec(),
                crcs,
            });
        }
    }
}
