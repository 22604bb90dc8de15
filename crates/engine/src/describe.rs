//! Questions that metadata answers: which units hold data, which changed, and their digest.
//!
//! Invariants: a unit is described as it is at one moment, and units in order; the answers depend on
//! what the replica holds, never on the drive's media or layout.

use std::ops::Range;

use bytes::Bytes;
use format::{
    data::UnitMeta,
    disk::{UNIT_BLOCKS, UNIT_BYTES},
};
use model::{
    epoch::ModSeq,
    id::{LayerId, ReplicaId},
    units::BLOCK,
};

use crate::{
    api::{Action, OpError, OpToken, Outcome},
    drive::Drive,
    fetch::{PAGES_MAX, Waiting},
    table::Stack,
};

/// A question about a range of a replica, and the answer so far.
#[derive(Debug)]
pub struct Inquiry {
    replica: ReplicaId,
    /// Of which layer it is asked; `None`: of the head.
    layer: Option<LayerId>,
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
    /// The byte behind the last valid block. The range is the last extent, or the last before this
    /// one, when those behind it hold nothing.
    End(u64, Option<u32>),
    /// One bit a block, of those changed after the layer was frozen.
    Changed(Option<LayerId>, Vec<u8>),
}

impl Inquiry {
    pub fn describe(replica: ReplicaId, offset: u64, length: u64) -> Self {
        Self::new(replica, offset, length, Answer::Units(Vec::new()))
    }

    pub fn digest(replica: ReplicaId, offset: u64, length: u64) -> Self {
        Self::new(replica, offset, length, Answer::Digest(0))
    }

    pub fn allocated(replica: ReplicaId, layer: Option<LayerId>, offset: u64, length: u64) -> Self {
        Self { layer, ..Self::new(replica, offset, length, Answer::Bitmap(Vec::new())) }
    }

    pub fn changed_between(
        replica: ReplicaId,
        (from, layer): (Option<LayerId>, Option<LayerId>),
        offset: u64,
        length: u64,
    ) -> Self {
        Self { layer, ..Self::new(replica, offset, length, Answer::Changed(from, Vec::new())) }
    }

    pub fn changed_since(replica: ReplicaId, than: ModSeq, offset: u64, length: u64) -> Self {
        Self::new(replica, offset, length, Answer::Newer(than, Vec::new()))
    }

    pub fn highest_allocated(replica: ReplicaId) -> Self {
        Self::new(replica, 0, 0, Answer::End(0, None))
    }

    fn new(replica: ReplicaId, offset: u64, length: u64, answer: Answer) -> Self {
        Self { replica, layer: None, offset, length, next: offset, split: false, answer }
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
                mark(bitmap, self.offset..self.offset + self.length, meta.offset, valid);
            }
            Answer::Newer(than, bitmap) if meta.mod_seq > *than => {
                bitmap[index / 8] |= 1 << (index % 8);
            }
            Answer::Newer(..) => {}
            Answer::Changed(..) => unreachable!("it looks at masks"),
            Answer::End(end, _) => {
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
            Answer::End(end, _) => Outcome::HighestAllocated { end },
            Answer::Changed(_, bitmap) => Outcome::ChangedBetween { bitmap: Bytes::from(bitmap) },
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
            Answer::Bitmap(bitmap) | Answer::Changed(_, bitmap) => {
                let bytes = (inquiry.length / BLOCK).div_ceil(8);
                bitmap.resize(usize::try_from(bytes).expect("replicas are bounded"), 0);
            }
            Answer::Newer(_, bitmap) => bitmap.resize(units.div_ceil(8), 0),
            Answer::Units(_) | Answer::Digest(_) | Answer::End(..) => {}
        }
        self.inquire(op, inquiry, out);
    }

    /// Goes on until a page is missing. Where the whole range is described by fewer pages than one
    /// request may wait for, the answer is of one moment.
    pub fn inquire(&mut self, op: OpToken, mut inquiry: Inquiry, out: &mut Vec<Action>) {
        loop {
            let tops = match self.tops(&inquiry) {
                Ok(tops) => tops,
                Err(error) => return self.complete(op, Err(error), out),
            };
            self.follow_last_extent(&mut inquiry);
            let pages = self.pages_left(&inquiry, tops.1);
            inquiry.split |= pages.len() == PAGES_MAX;
            if inquiry.split || !self.lacks(&pages) {
                self.visit_known(&mut inquiry, tops);
            }
            if inquiry.next < inquiry.end() {
                let pages = self.pages_left(&inquiry, tops.1);
                return self.park(op, Waiting::Inquiry(inquiry), pages, out);
            }
            match &mut inquiry.answer {
                // Everything that older layers have there was cleared.
                Answer::End(0, before) if inquiry.length > 0 => {
                    *before = Some(self.extent_and_block(inquiry.offset).0);
                }
                _ => return self.complete(op, Ok(inquiry.outcome()), out),
            }
        }
    }

    /// Where the layers stand that it is about: changes are those after the first.
    fn tops(&self, inquiry: &Inquiry) -> Result<(Option<usize>, usize), OpError> {
        let to = self.top(inquiry.replica, inquiry.layer)?;
        let from = match inquiry.answer {
            Answer::Changed(Some(from), _) => Some(self.top(inquiry.replica, Some(from))?),
            _ => None,
        };
        if from.is_some_and(|from| from > to) { Err(OpError::OutOfRange) } else { Ok((from, to)) }
    }

    /// The last extent may have become another one while its page was waited for.
    fn follow_last_extent(&self, inquiry: &mut Inquiry) {
        let Answer::End(_, before) = inquiry.answer else { return };
        if let Some(extent) = self.table.last_extent(inquiry.replica, before) {
            inquiry.offset = u64::from(extent) * self.layout.slot_bytes();
            inquiry.length = self.layout.slot_bytes();
        } else {
            (inquiry.offset, inquiry.length) = (0, 0);
        }
        inquiry.next = inquiry.offset;
    }

    /// The extents that were not looked at.
    fn extents_left(
        &self,
        inquiry: &Inquiry,
        top: usize,
    ) -> impl Iterator<Item = (u32, Stack)> + '_ {
        let is_done = inquiry.next == inquiry.end();
        let (first, _) = self.extent_and_block(inquiry.next);
        let (last, _) = self.extent_and_block(inquiry.end().saturating_sub(1));
        let extents = self.table.stacks(inquiry.replica, first, last.max(first), top);
        extents.filter(move |_| !is_done)
    }

    fn pages_left(&self, inquiry: &Inquiry, top: usize) -> Vec<u32> {
        let stacks = self.extents_left(inquiry, top).map(|(_, stack)| stack);
        self.pages_of(stacks.flat_map(Stack::into_slots))
    }

    /// Looks at the extents before the first one whose page is absent.
    fn visit_known(&self, inquiry: &mut Inquiry, tops: (Option<usize>, usize)) {
        let mut absent = None;
        let mut known = Vec::new();
        for (extent, stack) in self.extents_left(inquiry, tops.1) {
            let start = u64::from(extent) * self.layout.slot_bytes();
            if stack.slots().iter().any(|&slot| self.is_undescribed(slot)) {
                absent = Some(start.max(inquiry.next));
                break;
            }
            known.push((extent, start, stack));
        }
        for (extent, start, stack) in known {
            if let Answer::Changed(..) = inquiry.answer {
                self.visit_changes(inquiry, extent, start, tops);
            } else {
                self.visit_extent(inquiry, start, stack.slots());
            }
        }
        inquiry.next = absent.unwrap_or(inquiry.end());
    }

    /// The units of the extent that overlap the range and hold data, in order.
    fn visit_extent(&self, inquiry: &mut Inquiry, start: u64, slots: &[u32]) {
        let unit_bytes = u64::from(UNIT_BYTES);
        for unit in 0..self.layout.slot_units() {
            let at = start + u64::from(unit) * unit_bytes;
            let view = self.table.unit_view(slots, unit);
            if view.valid == 0 || at + unit_bytes <= inquiry.offset || at >= inquiry.end() {
                continue;
            }
            inquiry.visit(UnitMeta {
                offset: at,
                mod_seq: view.mod_seq,
                valid: view.valid.to_le_bytes().to_vec(),
                crcs: self.crcs_of(slots, unit, view.valid),
            });
        }
    }

    /// Of the unit's valid blocks.
    pub fn crcs_of(&self, slots: &[u32], unit: u32, valid: u16) -> Vec<u32> {
        let blocks = (0..UNIT_BLOCKS).filter(|b| valid >> b & 1 == 1);
        let blocks = blocks.map(|b| unit * UNIT_BLOCKS + b);
        if let &[slot] = slots {
            let descriptor = self.table.descriptor(slot);
            return blocks.map(|block| descriptor.crc(block)).collect();
        }
        let source = |block| self.table.source(slots, block).expect("it is valid");
        blocks.map(|block| self.table.descriptor(source(block)).crc(block)).collect()
    }

    /// The blocks of the extent that layers behind the first one changed.
    fn visit_changes(
        &self,
        inquiry: &mut Inquiry,
        extent: u32,
        start: u64,
        (from, to): (Option<usize>, usize),
    ) {
        let range = inquiry.offset..inquiry.end();
        let Answer::Changed(_, bitmap) = &mut inquiry.answer else { unreachable!("looked at") };
        for unit in 0..self.layout.slot_units() {
            let changed = self.table.changed_between(inquiry.replica, extent, unit, from, to);
            let at = start + u64::from(unit) * u64::from(UNIT_BYTES);
            mark(bitmap, range.clone(), at, changed);
        }
    }
}

/// Sets the bits of the blocks of `mask`, the first of which lies at `at`, that lie in the range.
fn mark(bitmap: &mut [u8], range: Range<u64>, at: u64, mask: u16) {
    for block in (0..UNIT_BLOCKS).filter(|b| mask >> b & 1 == 1) {
        let at = at + u64::from(block) * BLOCK;
        if range.contains(&at) {
            let index = (at - range.start) / BLOCK;
            bitmap[usize::try_from(index / 8).expect("fits")] |= 1 << (index % 8);
        }
    }
}
