//! Group commit: accepted changes become records, records one batch at a time.
//!
//! Decides: what a change does to the table when its record is made, and when it is complete.
//! Does not: write slots or pages.
//! Invariants: a record is applied when its batch is issued, in the order of LSNs; a change
//! completes when the batch with its last record is durable.

mod clear;
mod install;

use bytes::Bytes;
use format::disk::{
    BLOCK_LEN, UNIT_BLOCKS,
    journal::{DataHead, PlacedUnit, RECORD_BLOCKS_MAX, RECORD_LEN_MAX, Record, put_data},
    page::{Owner, ReplicaRow},
};
use model::{epoch::ModSeq, id::ReplicaId, time::Instant, units::BLOCK};

use crate::{
    api::{Action, OpError},
    change::{Entry, Work, Write},
    direct::Part,
    drive::{Drive, Io},
    journal::Batch,
    machine::SEAL_AFTER,
    sabotage::{Sabotage, is_on},
    table::{BlockRun, Replica},
};

/// Slots of a removed replica that are given back at once, about.
const SLOTS_PER_STEP: usize = 1024;
/// Longest record without metadata blob or placement.
pub const SMALL_RECORD_LEN: usize = 40;

/// Why an entry's records are not all made.
pub enum Stop {
    /// The batch takes no more.
    Full,
    /// It needs a slot and there is none.
    Starved,
    /// Payload is being written to its blocks.
    Held,
    /// It needs pages that are not in memory.
    Absent(Vec<u32>),
    Refused(OpError),
}

impl Drive {
    /// None is being written, and there is something to write.
    pub fn wants_batch(&self) -> bool {
        let is_idle = self.queue.is_empty() && self.ready_freeze().is_none();
        self.batch.is_none() && (!is_idle || self.merging.is_ready())
    }

    /// Issues the next batch, if it is time for one.
    pub fn issue_batch(&mut self, out: &mut Vec<Action>) {
        if !self.wants_batch() {
            return;
        }
        let mut batch = self.journal.begin();
        let (mut ops, mut is_full) = (Vec::new(), false);
        while let Some(mut entry) = self.next_entry() {
            let made = self.make_records(&mut entry, &mut batch);
            if let Err(Stop::Full) = made {
                self.put_back_freeze(entry);
                is_full = true;
                break;
            }
            if let Work::Freeze { .. } = entry.work {
                self.feed_behind();
            }
            let pins = std::mem::take(&mut entry.pins);
            self.unpin(pins);
            match made {
                Ok(()) => ops.push(entry.op),
                Err(Stop::Starved) => self.starve(entry),
                Err(Stop::Held) => self.held.push_back(entry),
                Err(Stop::Absent(pages)) => self.park_change(entry, pages, out),
                Err(Stop::Refused(error)) => self.abandon(entry, error, out),
                Err(Stop::Full) => unreachable!("looked at above"),
            }
        }
        if !is_full {
            self.merge_layers(&mut batch, out);
        }
        if batch.is_empty() {
            // Everything these changes found in place is durable, because no batch is in flight.
            self.complete_done(ops, out);
            self.writeback.wanted |= is_full || self.merging.is_held();
            return;
        }
        let places = batch.places;
        let (offset, segments) = self.journal.issue(self.superblock.uuid, batch);
        if is_on(Sabotage::AcknowledgedEarly) {
            self.complete_done(std::mem::take(&mut ops), out);
        }
        self.batch = Some(ops);
        self.seal_at = None;
        self.put_batch(places, offset, segments, out);
    }

    /// Payload that the batch refers to must be durable with it; on another device than the
    /// batch, that takes a flush there. Neither waits for the other: recovery looks at what the
    /// last batch refers to.
    fn put_batch(
        &mut self,
        places: bool,
        offset: u64,
        segments: Vec<Bytes>,
        out: &mut Vec<Action>,
    ) {
        let offset = self.layout.journal_offset + offset;
        self.ios.write(Io::Batch { places }, offset, segments, out);
        self.batch_parts = 1;
        let flushes = places && self.ios.journal_is_apart();
        if flushes && !is_on(Sabotage::PayloadNotFlushed) {
            self.ios.flush(Io::PayloadFlush, out);
            self.batch_parts += 1;
        }
    }

    /// The batch is durable with its last part.
    pub fn batch_part_done(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.batch_parts -= 1;
        if self.batch_parts == 0 {
            self.batch_written(now, out);
        }
    }

    fn batch_written(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.journal.wrote();
        self.direct.cleared.clear();
        let ops = self.batch.take().expect("a batch was being written");
        // A seal needs no seal.
        let was_seal = std::mem::take(&mut self.is_sealing);
        self.seal_at = (!was_seal).then(|| now + SEAL_AFTER);
        self.complete_done(ops, out);
        self.complete_withdrawn(out);
        self.feed_orphans();
        self.release_slots();
    }

    /// Slots whose freeing is durable may be used again; who waited for one comes first.
    pub fn release_slots(&mut self) {
        let (writeback, direct) = (&self.writeback, &self.direct);
        let has_write = |slot| writeback.writes_to(slot) || direct.writes_to(slot);
        if self.space.release(self.journal.durable_lsn(), has_write) {
            self.feed_starved();
        }
    }

    /// A part of the slots of a removed replica, few enough that nobody waits for long.
    pub fn free_removed(&mut self) {
        let early = is_on(Sabotage::SlotReusedEarly);
        let durable = if early { u64::MAX } else { self.journal.durable_lsn() };
        let Some((lsn, slots)) = self.table.take_removed(durable, SLOTS_PER_STEP) else { return };
        slots.into_iter().for_each(|slot| self.vacate(lsn, slot));
        self.release_slots();
    }

    /// After the last batch, a seal tells recovery that it was durable: without it, a batch that
    /// was lost later could not be told from one that was never completed.
    pub fn seal_if_due(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.batch.is_some() || self.seal_at.is_none_or(|at| now < at) {
            return;
        }
        self.seal_at = None;
        let mut batch = self.journal.begin();
        if batch.fits(SMALL_RECORD_LEN, 0) {
            Record::Seal.put(&mut batch.head);
            batch.added(None);
            let (offset, segments) = self.journal.issue(self.superblock.uuid, batch);
            self.batch = Some(Vec::new());
            self.is_sealing = true;
            self.put_batch(false, offset, segments, out);
        }
    }

    fn make_records(&mut self, entry: &mut Entry, batch: &mut Batch) -> Result<(), Stop> {
        let (replica, number) = (entry.replica, entry.number);
        let known = self.table.replica(replica).is_some() && !self.starved.is_orphan(entry);
        match &mut entry.work {
            Work::Create { .. } if known => Ok(()),
            Work::Create { size, meta } => {
                let index = self.table.free_row().ok_or(Stop::Refused(OpError::Full))?;
                if !self.table.admits(*size) {
                    let max = self.table.memory_max();
                    return Err(Stop::Refused(OpError::Memory { max }));
                }
                self.log_row(batch, index, replica, *size, meta.clone())?;
                self.starved.made(replica, number);
                Ok(())
            }
            Work::Remove if !known => Ok(()),
            Work::Remove => self.log_remove(batch, replica),
            _ if !known => Err(Stop::Refused(OpError::UnknownReplica)),
            Work::SetMeta { size, meta } => {
                let old = self.table.replica(replica).expect("known").size;
                let index = self.table.row_of(replica).expect("known");
                // Sizes only grow: what a later, smaller one says was decided before.
                self.log_row(batch, index, replica, old.max(*size), meta.clone())
            }
            Work::Write(write) => self.log_write(batch, replica, write),
            Work::Zero { mod_seq, offset, end } => {
                self.log_zero(batch, replica, *mod_seq, offset, *end)
            }
            Work::Install(install) => self.log_install(batch, replica, install),
            Work::Freeze { layer } => self.log_freeze(batch, replica, *layer),
            Work::Release { layer } => self.log_release(batch, replica, *layer),
        }
    }

    fn log_row(
        &mut self,
        batch: &mut Batch,
        index: u32,
        replica: ReplicaId,
        size: u64,
        meta: Bytes,
    ) -> Result<(), Stop> {
        self.need(batch, RECORD_LEN_MAX, 0)?;
        let lsn = batch.next_lsn();
        let birth = self.table.birth_of(replica, lsn);
        let layers = self.table.replica(replica).map(Replica::layers).unwrap_or_default();
        let row = ReplicaRow { replica, size, birth, layers, meta: meta.clone() };
        Record::Replica { index, replica, size, meta }.put(&mut batch.head);
        self.table.put_replica(lsn, index, &row);
        batch.added(None);
        Ok(())
    }

    fn log_remove(&mut self, batch: &mut Batch, replica: ReplicaId) -> Result<(), Stop> {
        self.need(batch, SMALL_RECORD_LEN, 0)?;
        let index = self.table.row_of(replica).expect("the caller looked");
        Record::Remove { index, replica }.put(&mut batch.head);
        let lsn = batch.next_lsn();
        self.end_waiting(replica);
        for slot in self.table.remove_replica(lsn, replica) {
            self.vacate(lsn, slot);
        }
        batch.added(None);
        Ok(())
    }

    /// The slot is no longer owned as of this record.
    pub fn vacate(&mut self, lsn: u64, slot: u32) {
        self.overlay.remove(slot, 0, self.layout.slot_blocks);
        self.readers.changed(slot, lsn);
        self.direct.vacated(slot);
        let early = is_on(Sabotage::SlotReusedEarly);
        self.space.free_after(if early { 0 } else { lsn }, slot);
        if early {
            self.release_slots();
        }
    }

    fn log_write(
        &mut self,
        batch: &mut Batch,
        replica: ReplicaId,
        write: &mut Write,
    ) -> Result<(), Stop> {
        while write.done < write.data.len() {
            let (extent, first, count) = self.next_part(write, write.done);
            let owner = self.table.head_owner(replica, extent);
            let is_direct = |part: &&Part| (part.extent, part.first) == (extent, first);
            if let Some(&part) = write.direct.first().filter(is_direct) {
                let logged = self.log_direct(batch, owner, &part, write)?;
                write.direct.remove(0);
                self.end_direct(owner, &part);
                if logged {
                    write.done += usize::try_from(count).expect("small") * BLOCK_LEN;
                    continue;
                }
            }
            let len = if write.placed.first().is_some_and(|&(placed, _)| placed == extent) {
                self.log_placed_write(batch, owner, write)?;
                count
            } else {
                let count = count.min(RECORD_BLOCKS_MAX);
                self.log_data(batch, owner, first, count, write)?
            };
            write.done += usize::try_from(len).expect("small") * BLOCK_LEN;
        }
        Ok(())
    }

    fn log_data(
        &mut self,
        batch: &mut Batch,
        owner: Owner,
        first: u32,
        count: u32,
        write: &Write,
    ) -> Result<u32, Stop> {
        let (count, mod_seq) = self.over_layers(owner, first, count, write.mod_seq)?;
        let blocks = usize::try_from(count).expect("small");
        self.need(batch, SMALL_RECORD_LEN + 4 * blocks + 4, count)?;
        let (slot, fresh) = self.slot_for(owner, first, count)?;
        let from = write.done / BLOCK_LEN;
        let crcs = &write.crcs[from..from + blocks];
        let data = write.data.slice(write.done..write.done + blocks * BLOCK_LEN);
        put_data(&mut batch.head, &DataHead { slot, owner, fresh, mod_seq, first }, crcs);
        let lsn = batch.next_lsn();
        self.table.write_blocks(lsn, &BlockRun { slot, owner, fresh, mod_seq, first, crcs });
        self.overlay_blocks(lsn, slot, first..first + count, &data);
        self.readers.changed(slot, lsn);
        batch.added(Some(data));
        Ok(count)
    }

    pub fn overlay_blocks(
        &mut self,
        lsn: u64,
        slot: u32,
        blocks: impl Iterator<Item = u32>,
        data: &Bytes,
    ) {
        for (index, block) in blocks.enumerate() {
            let bytes = data.slice(index * BLOCK_LEN..(index + 1) * BLOCK_LEN);
            self.overlay.insert(slot, block, lsn, bytes);
        }
    }

    /// The extent's slot, or a fresh one, for content of these blocks. The pages that say what is in
    /// it are in memory.
    pub fn slot_for(&mut self, owner: Owner, first: u32, count: u32) -> Result<(u32, bool), Stop> {
        let (owned, taken) = (self.table.slot_of(owner), self.direct.taken(owner));
        if owned.or(taken).is_some_and(|slot| self.direct.is_written(slot, first, count)) {
            return Err(Stop::Held);
        }
        if let Some(slot) = owned {
            self.have(&[self.table.descriptor_page(slot)])?;
            self.direct.overtaken(slot, first, count);
            return Ok((slot, false));
        }
        let slot = taken.or_else(|| self.space.take()).ok_or(Stop::Starved)?;
        let pages = [self.table.descriptor_page(slot), self.table.owner_page(slot)];
        let have = self.have(&pages);
        match have {
            Ok(()) => {
                self.direct.adopted(owner);
                self.direct.overtaken(slot, first, count);
            }
            Err(_) if taken.is_none() => self.space.put_back(slot),
            Err(_) => {}
        }
        have.map(|()| (slot, true))
    }

    pub fn have(&self, pages: &[u32]) -> Result<(), Stop> {
        if self.lacks(pages) { Err(Stop::Absent(pages.to_vec())) } else { Ok(()) }
    }

    /// The pages that change when the extent moves to `slot`.
    fn have_for_place(&self, owner: Owner, slot: u32) -> Result<(), Stop> {
        let of = |slot| [self.table.descriptor_page(slot), self.table.owner_page(slot)];
        let mut pages = of(slot).to_vec();
        pages.extend(self.table.slot_of(owner).into_iter().flat_map(of));
        let stack = self.table.head_stack(owner.replica, owner.extent);
        pages.extend(stack.into_slots().map(|slot| self.table.descriptor_page(slot)));
        self.have(&pages)
    }

    /// Whether the batch takes such a record, and memory the pages that it may change.
    pub fn need(&mut self, batch: &Batch, record_len: usize, blocks: u32) -> Result<(), Stop> {
        let many = self.table.dirty_pages() >= self.table.dirty_max();
        self.writeback.wanted |= many;
        if batch.fits(record_len, blocks) && !many { Ok(()) } else { Err(Stop::Full) }
    }

    fn log_placed_write(
        &mut self,
        batch: &mut Batch,
        owner: Owner,
        write: &mut Write,
    ) -> Result<(), Stop> {
        self.need(batch, RECORD_LEN_MAX, 0)?;
        let &(_, slot) = write.placed.first().expect("the caller looked");
        self.have_for_place(owner, slot)?;
        let from = write.done / BLOCK_LEN;
        let blocks = usize::try_from(UNIT_BLOCKS).expect("small");
        let units = (0..self.layout.slot_units())
            .zip(write.crcs[from..].chunks_exact(blocks))
            .map(|(unit, crcs)| PlacedUnit {
                unit,
                mod_seq: self.not_older(owner, unit, write.mod_seq),
                valid: u16::MAX,
                cleared: 0,
                crcs: crcs.to_vec(),
            })
            .collect();
        write.placed.remove(0);
        self.log_place(batch, owner, slot, units);
        Ok(())
    }

    /// A repeated change must not take `mod_seq` back.
    fn not_older(&self, owner: Owner, unit: u32, mod_seq: ModSeq) -> ModSeq {
        let stack = self.table.head_stack(owner.replica, owner.extent);
        self.table.unit_view(stack.slots(), unit).mod_seq.max(mod_seq)
    }

    fn log_place(&mut self, batch: &mut Batch, owner: Owner, slot: u32, units: Vec<PlacedUnit>) {
        let lsn = batch.next_lsn();
        let old = self.table.place(lsn, slot, owner, &units);
        if let Some(old) = old {
            self.vacate(lsn, old);
        }
        Record::Place { slot, owner, old, units }.put(&mut batch.head);
        batch.places = true;
        batch.added(None);
    }

    /// The extent of a byte of a replica, and the block within it.
    pub fn extent_and_block(&self, offset: u64) -> (u32, u32) {
        let slot_bytes = self.layout.slot_bytes();
        let extent = u32::try_from(offset / slot_bytes).expect("replicas are bounded");
        let block = u32::try_from(offset % slot_bytes / BLOCK).expect("within a slot");
        (extent, block)
    }
}
