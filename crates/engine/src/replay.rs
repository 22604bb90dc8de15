//! What the journal says after a crash, applied to the pages that were found.
//!
//! Decides: how records restore table and overlay, which payload a batch needs on the drive, and
//! which replicas may have lost something.
//! Does not: read the drive, or decide whether a batch counts (`open`).
//! Invariant: the overlay follows from the journal alone, the table from each page and the records
//! newer than it; nothing that is read is trusted without a checksum.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use format::disk::{
    BLOCK_LEN, Layout, UNIT_BLOCKS,
    journal::{BatchHeader, PlacedUnit, Record},
    layers::{LayerRecord, Masks},
};
use model::id::ReplicaId;

use crate::{
    overlay::Overlay,
    table::{Recovering, Table},
};

#[derive(Debug)]
pub struct Replay {
    pub table: Recovering,
    /// Batches that count, to be applied when the pages that they change are in memory.
    batches: Vec<Batch>,
    pub overlay: Overlay,
    /// Whose record put blocks of the slot into the overlay last.
    overlay_owners: BTreeMap<u32, ReplicaId>,
    /// Content of these is missing.
    pub stale: BTreeSet<ReplicaId>,
    /// Something that was durable is missing, and nothing says whose it was.
    pub damaged: bool,
    slot_blocks: u32,
}

/// A batch whose head is whole.
#[derive(Debug)]
pub struct Batch {
    pub header: BatchHeader,
    pub records: Vec<Record>,
    pub payload: Bytes,
}

/// Payload that a batch relies on: consecutive blocks of a slot.
#[derive(Debug, PartialEq, Eq)]
pub struct Relied {
    pub slot: u32,
    pub first: u32,
    pub crcs: Vec<u32>,
}

impl Batch {
    pub fn end(&self) -> u64 {
        self.header.position + self.header.batch_bytes()
    }

    /// Whether all of the payload is what the records say.
    pub fn payload_is_whole(&self) -> bool {
        let crcs = self.records.iter().flat_map(Record::payload_crcs);
        self.payload.chunks_exact(BLOCK_LEN).zip(crcs).all(|(b, &crc)| crc32c::crc32c(b) == crc)
    }

    /// What must lie in the slots for this batch to count when nothing follows it: the blocks it
    /// placed, without those that it took back itself, because these may have been written over
    /// since.
    pub fn relied_on(&self) -> Vec<Relied> {
        let mut blocks: BTreeMap<(u32, u32), (ReplicaId, u32)> = BTreeMap::new();
        for record in &self.records {
            match record {
                Record::Place { slot, owner, old, units } => {
                    if let Some(old) = old {
                        forget(&mut blocks, *old, 0, u32::MAX);
                    }
                    forget(&mut blocks, *slot, 0, u32::MAX);
                    for (block, crc) in units.iter().flat_map(placed_blocks) {
                        blocks.insert((*slot, block), (owner.replica, crc));
                    }
                }
                Record::Data { slot, first, crcs, .. } => {
                    let count = u32::try_from(crcs.len()).expect("bounded by the decoder");
                    forget(&mut blocks, *slot, *first, count);
                }
                Record::Direct { slot, owner, first, crcs, .. } => {
                    for (block, &crc) in (*first..).zip(crcs) {
                        blocks.insert((*slot, block), (owner.replica, crc));
                    }
                }
                Record::Set { slot, unit, .. } => {
                    forget(&mut blocks, *slot, unit * UNIT_BLOCKS, UNIT_BLOCKS);
                }
                Record::Clear { slot, first, count, .. } => {
                    forget(&mut blocks, *slot, *first, *count);
                }
                Record::Free { slot, .. } => forget(&mut blocks, *slot, 0, u32::MAX),
                Record::Remove { replica, .. } => blocks.retain(|_, (owner, _)| owner != replica),
                Record::Layer(LayerRecord::Masks(masks)) => {
                    for block in masks_changed(masks) {
                        forget(&mut blocks, masks.slot, block, 1);
                    }
                }
                Record::Replica { .. } | Record::Seal | Record::Layer(_) => {}
            }
        }
        let mut runs: Vec<Relied> = Vec::new();
        for ((slot, block), (_, crc)) in blocks {
            match runs.last_mut() {
                Some(run) if run.slot == slot && run.next() == block => run.crcs.push(crc),
                _ => runs.push(Relied { slot, first: block, crcs: vec![crc] }),
            }
        }
        runs
    }
}

impl Relied {
    fn next(&self) -> u32 {
        self.first + self.count()
    }

    pub fn count(&self) -> u32 {
        u32::try_from(self.crcs.len()).expect("within a slot")
    }

    pub fn is_held_by(&self, bytes: &[u8]) -> bool {
        let blocks = bytes.chunks_exact(BLOCK_LEN);
        blocks.len() == self.crcs.len()
            && blocks.zip(&self.crcs).all(|(block, &crc)| crc32c::crc32c(block) == crc)
    }
}

fn forget(blocks: &mut BTreeMap<(u32, u32), (ReplicaId, u32)>, slot: u32, first: u32, count: u32) {
    let range = (slot, first)..=(slot, first.saturating_add(count - 1));
    let keys: Vec<_> = blocks.range(range).map(|(&key, _)| key).collect();
    for key in keys {
        blocks.remove(&key);
    }
}

/// Blocks of the slot whose content the record takes away or gives.
fn masks_changed(masks: &Masks) -> impl Iterator<Item = u32> {
    let kept = masks.valid & !masks.filled & !masks.lost;
    let blocks = (0..UNIT_BLOCKS).filter(move |b| kept >> b & 1 == 0);
    let base = masks.unit * UNIT_BLOCKS;
    blocks.map(move |block| base + block)
}

/// Blocks of the slot with their checksums.
fn placed_blocks(placed: &PlacedUnit) -> impl Iterator<Item = (u32, u32)> {
    let blocks = (0..UNIT_BLOCKS).filter(|b| placed.valid >> b & 1 == 1);
    let base = placed.unit * UNIT_BLOCKS;
    blocks.map(move |b| base + b).zip(placed.crcs.iter().copied())
}

impl Replay {
    pub fn new(layout: Layout, memory_max: u64) -> Self {
        Self {
            table: Recovering::new(Table::new(layout, memory_max)),
            batches: Vec::new(),
            overlay: Overlay::default(),
            overlay_owners: BTreeMap::new(),
            stale: BTreeSet::new(),
            damaged: false,
            slot_blocks: layout.slot_blocks,
        }
    }

    pub fn add(&mut self, batch: Batch) {
        self.batches.push(batch);
    }

    /// Pages that must be read before the batches can be applied.
    pub fn wants(&self) -> BTreeSet<u32> {
        let records = self.batches.iter().flat_map(|b| (b.header.first_lsn..).zip(&b.records));
        let pages = records.flat_map(|(lsn, record)| self.table.wants(lsn, record, self.damaged));
        pages.collect()
    }

    pub fn apply_all(&mut self) {
        for batch in std::mem::take(&mut self.batches) {
            self.apply(&batch);
        }
    }

    fn apply(&mut self, batch: &Batch) {
        let mut payload = batch.payload.clone();
        for (lsn, record) in (batch.header.first_lsn..).zip(&batch.records) {
            let len = usize::try_from(record.payload_blocks()).expect("bounded") * BLOCK_LEN;
            let content = payload.split_to(len);
            if self.table.is_sound(record) {
                self.overlay_record(lsn, record, &content);
                self.table.replay(lsn, record);
            } else {
                self.damaged = true;
            }
        }
    }

    fn overlay_record(&mut self, lsn: u64, record: &Record, content: &Bytes) {
        match record {
            Record::Data { slot, owner, fresh, first, crcs, .. } => {
                if *fresh {
                    self.overlay.remove(*slot, 0, self.slot_blocks);
                }
                self.insert(
                    lsn,
                    (*slot, owner.replica),
                    (*first..).zip(crcs.iter().copied()),
                    content,
                );
            }
            Record::Set { slot, owner, fresh, unit, mod_seq, valid, cleared, crcs } => {
                if *fresh {
                    self.overlay.remove(*slot, 0, self.slot_blocks);
                }
                self.overlay.remove(*slot, unit * UNIT_BLOCKS, UNIT_BLOCKS);
                let (mod_seq, valid, cleared) = (*mod_seq, *valid, *cleared);
                let crcs = crcs.clone();
                let placed = PlacedUnit { unit: *unit, mod_seq, valid, cleared, crcs };
                self.insert(lsn, (*slot, owner.replica), placed_blocks(&placed), content);
            }
            Record::Direct { slot, fresh, first, crcs, .. } => {
                let count = u32::try_from(crcs.len()).expect("bounded by the decoder");
                let whole = (0, self.slot_blocks);
                let (first, count) = if *fresh { whole } else { (*first, count) };
                self.overlay.remove(*slot, first, count);
            }
            Record::Place { slot, old, .. } => {
                self.overlay.remove(*slot, 0, self.slot_blocks);
                if let Some(old) = old {
                    self.overlay.remove(*old, 0, self.slot_blocks);
                }
            }
            Record::Clear { slot, first, count, .. } => self.overlay.remove(*slot, *first, *count),
            Record::Free { slot, .. } => self.overlay.remove(*slot, 0, self.slot_blocks),
            Record::Remove { replica, .. } => {
                let owners = std::mem::take(&mut self.overlay_owners);
                let (gone, kept) = owners.into_iter().partition(|(_, owner)| owner == replica);
                self.overlay_owners = kept;
                let gone: BTreeMap<u32, ReplicaId> = gone;
                for slot in gone.into_keys() {
                    self.overlay.remove(slot, 0, self.slot_blocks);
                }
            }
            Record::Layer(LayerRecord::Masks(masks)) => {
                if masks.fresh {
                    self.overlay.remove(masks.slot, 0, self.slot_blocks);
                }
                for block in masks_changed(masks) {
                    self.overlay.remove(masks.slot, block, 1);
                }
                let base = masks.unit * UNIT_BLOCKS;
                let filled = Masks::blocks(masks.filled, masks.payload_crcs());
                let blocks = filled.map(|(block, crc)| (base + block, crc));
                self.insert(lsn, (masks.slot, masks.owner.replica), blocks, content);
            }
            Record::Replica { .. } | Record::Seal | Record::Layer(_) => {}
        }
    }

    fn insert(
        &mut self,
        lsn: u64,
        (slot, replica): (u32, ReplicaId),
        blocks: impl Iterator<Item = (u32, u32)>,
        content: &Bytes,
    ) {
        self.overlay_owners.insert(slot, replica);
        for (index, (block, crc)) in blocks.enumerate() {
            let data = content.slice(index * BLOCK_LEN..(index + 1) * BLOCK_LEN);
            if crc32c::crc32c(&data) == crc {
                self.overlay.insert(slot, block, lsn, data);
            } else {
                // Unless it was written home, reading it will say that it is damaged.
                self.overlay.remove(slot, block, 1);
                self.stale.insert(replica);
            }
        }
    }
}
