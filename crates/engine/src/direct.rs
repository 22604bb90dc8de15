//! Payload that goes straight to blocks that hold nothing yet.
//!
//! Nothing refers to such blocks, so a torn write harms nothing; the record that makes them valid
//! follows when the payload has completed.
//!
//! Decides: which parts of a write go this way, and whether they still count when their record is
//! made: the extent may have moved, or the blocks got content, meanwhile. None of a replica that has
//! frozen layers, or is about to.
//! Does not: write payload (`change`), or make any other records (`commit`).
//! Invariants: while payload is being written to a block, the block is durably not valid, it is not
//! in the overlay, no other write to it is under way, and no record gives it content; a slot that was
//! taken for an extent without one belongs to that extent's parts until a record makes it the
//! extent's, or is given back when the last of them ends. Changes of one resync unit keep their order,
//! or replicas would disagree about its `mod_seq`.

use std::collections::{BTreeMap, BTreeSet};

use format::disk::{
    BLOCK_LEN, UNIT_BLOCKS,
    journal::{DataHead, RECORD_LEN_MAX, put_direct},
    page::Owner,
};
use model::{id::ReplicaId, volume::Media};

use crate::{
    api::OpToken,
    change::Write,
    commit::Stop,
    drive::Drive,
    journal::Batch,
    sabotage::{Sabotage, is_on},
    table::{BlockRun, inside},
};

/// Payload of a change, in blocks of one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    op: OpToken,
    pub extent: u32,
    pub slot: u32,
    pub first: u32,
    pub count: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Writing,
    Written,
    /// Being written, but the slot is not the extent's any more.
    WritingVoid,
    Void,
}

#[derive(Debug, Default)]
pub struct Direct {
    /// Parts whose record is not made, by slot.
    parts: BTreeMap<u32, Vec<(Part, State)>>,
    /// Fresh slots that no record names yet.
    taken: BTreeMap<(ReplicaId, u32), u32>,
    /// Slots of which blocks become invalid with the batch that is being written.
    pub cleared: BTreeSet<u32>,
}

impl Part {
    fn overlaps(&self, first: u32, count: u32) -> bool {
        self.first < first + count && first < self.first + self.count
    }
}

impl Direct {
    fn of(&self, slot: u32) -> &[(Part, State)] {
        self.parts.get(&slot).map_or(&[], Vec::as_slice)
    }

    /// The slot that was taken for the extent.
    pub fn taken(&self, owner: Owner) -> Option<u32> {
        self.taken.get(&(owner.replica, owner.extent)).copied()
    }

    /// A record makes the taken slot the extent's.
    pub fn adopted(&mut self, owner: Owner) {
        self.taken.remove(&(owner.replica, owner.extent));
    }

    pub fn writes_to(&self, slot: u32) -> bool {
        let is_writing = |state| matches!(state, State::Writing | State::WritingVoid);
        self.of(slot).iter().any(|&(_, state)| is_writing(state))
    }

    /// Whether payload is being written to one of the blocks, or to others of their resync units.
    pub fn is_written(&self, slot: u32, first: u32, count: u32) -> bool {
        let start = first / UNIT_BLOCKS * UNIT_BLOCKS;
        let count = (first + count).next_multiple_of(UNIT_BLOCKS) - start;
        let mut parts = self.of(slot).iter();
        parts.any(|(part, state)| *state == State::Writing && part.overlaps(start, count))
    }

    fn has_part(&self, slot: u32, first: u32, count: u32) -> bool {
        self.of(slot).iter().any(|(part, _)| part.overlaps(first, count))
    }

    /// Whether the part's blocks are still as they were when its payload was written.
    pub fn counts(&self, part: &Part) -> bool {
        let is_good = |state| matches!(state, State::Writing | State::Written);
        self.of(part.slot).iter().any(|&(other, state)| other == *part && is_good(state))
    }

    fn set(&mut self, slot: u32, mut next: impl FnMut(&Part, State) -> State) {
        for (part, state) in self.parts.get_mut(&slot).into_iter().flatten() {
            *state = next(part, *state);
        }
    }

    pub fn landed(&mut self, landed: &Part) {
        self.set(landed.slot, |part, state| match state {
            State::Writing if part == landed => State::Written,
            State::WritingVoid if part == landed => State::Void,
            other => other,
        });
    }

    /// The slot is no extent's any more.
    pub fn vacated(&mut self, slot: u32) {
        self.set(slot, |_, state| match state {
            State::Writing | State::WritingVoid => State::WritingVoid,
            State::Written | State::Void => State::Void,
        });
    }

    /// A record gives the blocks other content, which is written over the payload later.
    pub fn overtaken(&mut self, slot: u32, first: u32, count: u32) {
        self.set(slot, |part, state| match state {
            State::Written if part.overlaps(first, count) => State::Void,
            other => other,
        });
    }

    fn end(&mut self, part: &Part) {
        let parts = self.parts.get_mut(&part.slot).expect("it was begun");
        parts.retain(|(other, _)| other != part);
        if parts.is_empty() {
            self.parts.remove(&part.slot);
        }
    }
}

impl Drive {
    /// Fewest blocks that are worth a write of their own.
    fn direct_blocks_min(&self) -> u32 {
        match self.layout.media {
            Media::Ssd => 8,
            Media::Hdd => 16,
        }
    }

    /// Where the payload may be written to, if it is large and its blocks hold nothing.
    pub fn begin_direct(
        &mut self,
        op: OpToken,
        owner: Owner,
        first: u32,
        count: u32,
    ) -> Option<Part> {
        if count < self.direct_blocks_min() || !self.is_one_layer(owner.replica) {
            return None;
        }
        let slot = match (self.table.slot_of(owner), self.direct.taken(owner)) {
            (Some(slot), _) => self.holds_nothing(slot, first, count).then_some(slot)?,
            (None, Some(slot)) => (!self.direct.has_part(slot, first, count)).then_some(slot)?,
            (None, None) => {
                let slot = self.space.take_whole()?;
                self.direct.taken.insert((owner.replica, owner.extent), slot);
                slot
            }
        };
        let part = Part { op, extent: owner.extent, slot, first, count };
        self.direct.parts.entry(slot).or_default().push((part, State::Writing));
        Some(part)
    }

    /// Whether the blocks are durably not valid, and nobody is about to write them.
    fn holds_nothing(&self, slot: u32, first: u32, count: u32) -> bool {
        let is_known = !self.table.is_absent(self.table.descriptor_page(slot))
            && !self.direct.cleared.contains(&slot);
        let is_quiet = !self.writeback.writes_to(slot)
            && !self.direct.has_part(slot, first, count)
            && self.overlay.range(slot, first, count).next().is_none();
        let is_valid =
            |unit: u32| self.table.descriptor(slot).valid(unit) & inside(unit, first, count) != 0;
        let holds = |mut units: std::ops::Range<u32>| {
            units.any(is_valid) && !is_on(Sabotage::DirectOverContent)
        };
        is_known && is_quiet && !holds(0..self.layout.slot_units())
    }

    /// The payload lies in its blocks already. Returns whether it still counts: otherwise it takes
    /// the way through the journal.
    pub fn log_direct(
        &mut self,
        batch: &mut Batch,
        owner: Owner,
        part: &Part,
        write: &Write,
    ) -> Result<bool, Stop> {
        let &Part { slot, first, count, .. } = part;
        let held = self.table.slot_of(owner);
        let fresh = held.is_none();
        if held.or(self.direct.taken(owner)) != Some(slot) || !self.direct.counts(part) {
            return Ok(false);
        }
        self.need(batch, RECORD_LEN_MAX, 0)?;
        self.have(&[self.table.descriptor_page(slot)])?;
        if fresh {
            self.have(&[self.table.descriptor_page(slot), self.table.owner_page(slot)])?;
            self.direct.adopted(owner);
        }
        let from = write.done / BLOCK_LEN;
        let crcs = &write.crcs[from..from + usize::try_from(count).expect("small")];
        let mod_seq = write.mod_seq;
        put_direct(&mut batch.head, &DataHead { slot, owner, fresh, mod_seq, first }, crcs);
        let lsn = batch.next_lsn();
        self.table.write_blocks(lsn, &BlockRun { slot, owner, fresh, mod_seq, first, crcs });
        batch.added(None);
        batch.places |= !is_on(Sabotage::DirectAlone);
        Ok(true)
    }

    /// The part's record is made, or none will be: a slot that was taken for nothing is free again.
    pub fn end_direct(&mut self, owner: Owner, part: &Part) {
        let is_void = !self.direct.counts(part);
        self.direct.end(part);
        let is_taken = self.direct.taken(owner) == Some(part.slot) && !is_void;
        if is_taken && self.direct.of(part.slot).is_empty() {
            self.direct.adopted(owner);
            self.space.give_back(part.slot);
            self.feed_starved();
        }
    }
}
