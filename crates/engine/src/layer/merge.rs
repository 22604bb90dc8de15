//! Released layers merge into the next newer one, a few extents with each batch.
//!
//! An extent that the newer layer has no slot for gives it its slot. Else the blocks that the newer
//! one does not know are copied, through the journal, and the older slot is free.
//!
//! Decides: what a merge does next, and what becomes of content that is damaged.
//! Does not: decide what is released.
//! Invariants: what every layer that was not released shows stays the same at each record; a damaged
//! block stays one; what is copied matches the checksum that it had; after a restart the table says
//! what is left to do.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use format::disk::{
    BLOCK_LEN, UNIT_BLOCKS,
    journal::Record,
    layers::{LayerRecord, Masks},
    page::Owner,
};
use model::{
    epoch::ModSeq,
    id::ReplicaId,
    units::{BLOCK, BLOCK_BYTES},
};

use crate::{
    api::{Action, DriveError},
    commit::{SMALL_RECORD_LEN, Stop},
    drive::{Drive, Io},
    journal::Batch,
    sabotage::{Sabotage, is_on},
};

/// Extents that one batch takes.
const EXTENTS_MAX: usize = 32;
/// So often a block is read before it counts as damaged.
const ATTEMPTS_MAX: u32 = 4;
/// Blocks read at once.
const READ_BLOCKS_MAX: u32 = 64;

#[derive(Debug)]
pub struct Merging {
    /// A layer may be released and not have merged.
    may_work: bool,
    /// It waits for pages.
    is_parked: bool,
    /// Came for it, and stay until it was tried again.
    pins: Vec<u32>,
    copying: Option<Copying>,
    /// How often what is copied came back damaged.
    attempts: u32,
    /// The batch had no room.
    is_held: bool,
    pub blocks_copied: u64,
}

/// Content of a slot on its way to another one.
#[derive(Debug)]
struct Copying {
    replica: ReplicaId,
    birth: u64,
    slot: u32,
    planned_lsn: u64,
    /// Reads that have not come back.
    waits: usize,
    pieces: Vec<Piece>,
    found: BTreeMap<u32, Content>,
}

#[derive(Debug)]
struct Piece {
    first: u32,
    crcs: Vec<u32>,
    data: Option<Bytes>,
}

#[derive(Debug, Clone)]
enum Content {
    Whole(u32, Bytes),
    Damaged,
}

/// How a merge goes on.
enum Next {
    More,
    /// When drive reads have come back.
    Later,
    Nothing,
}

/// Two slots of an extent, the older of which goes.
#[derive(Debug, Clone, Copy)]
struct Pair {
    replica: ReplicaId,
    birth: u64,
    extent: u32,
    /// Where the older layer stands.
    at: usize,
    old: u32,
    old_owner: Owner,
    new: u32,
    new_owner: Owner,
}

/// What a unit of the newer slot becomes.
struct Merged {
    valid: u16,
    cleared: u16,
    mod_seq: ModSeq,
    /// Blocks to be copied.
    copied: u16,
}

impl Default for Merging {
    fn default() -> Self {
        Self {
            // What was released before a restart goes on.
            may_work: true,
            is_parked: false,
            pins: Vec::new(),
            copying: None,
            attempts: 0,
            is_held: false,
            blocks_copied: 0,
        }
    }
}

impl Merging {
    pub fn wake(&mut self) {
        self.may_work = true;
    }

    /// Whether there is something to do with a batch.
    pub fn is_ready(&self) -> bool {
        self.may_work && !self.is_parked && self.copying.as_ref().is_none_or(|c| c.waits == 0)
    }

    /// A record gives the slot content: what was read of it before, damage too, does not count.
    pub fn changed(&mut self, slot: u32) {
        // What is still being read finds out when it comes back.
        let is_here = |copying: &Copying| copying.slot == slot && copying.waits == 0;
        if self.copying.as_ref().is_some_and(is_here) {
            self.copying = None;
        }
    }

    pub fn is_held(&self) -> bool {
        self.is_held
    }

    /// Its pages are here.
    pub fn resume(&mut self, pages: Vec<u32>) {
        self.is_parked = false;
        self.pins = pages;
    }
}

impl Drive {
    /// Adds to the batch what merging has to say.
    pub fn merge_layers(&mut self, batch: &mut Batch, out: &mut Vec<Action>) {
        if !self.merging.is_ready() {
            return;
        }
        self.merging.is_held = false;
        for _ in 0..EXTENTS_MAX {
            match self.merge_step(batch, out) {
                Ok(Next::More) => {}
                Ok(Next::Later) => break,
                Ok(Next::Nothing) => {
                    self.merging.may_work = false;
                    break;
                }
                Err(Stop::Absent(pages)) => {
                    self.merging.is_parked = true;
                    self.park_merge(pages, out);
                    break;
                }
                Err(_) => {
                    self.merging.is_held = true;
                    break;
                }
            }
        }
        let pins = std::mem::take(&mut self.merging.pins);
        self.unpin(pins);
    }

    fn merge_step(&mut self, batch: &mut Batch, out: &mut Vec<Action>) -> Result<Next, Stop> {
        let Some((replica, at)) = self.table.layer_to_merge() else { return Ok(Next::Nothing) };
        let found = self.table.replica(replica).expect("it has layers");
        let frozen = &found.frozen()[at];
        let (layer, birth, index) = (frozen.row, found.birth(), self.table.row_of(replica));
        let Some((extent, old)) = frozen.extents.iter().next() else {
            self.need(batch, SMALL_RECORD_LEN, 0)?;
            let (index, layer) = (index.expect("it exists"), layer.id);
            let lsn = batch.next_lsn();
            Record::Layer(LayerRecord::Merged { index, replica, layer }).put(&mut batch.head);
            self.table.drop_layer(lsn, replica, at);
            batch.added(None);
            return Ok(Next::More);
        };
        let old_owner = Owner { replica, layer: layer.number, extent };
        let new_owner = Owner { layer: found.number_at(at + 1), ..old_owner };
        let Some(new) = self.table.slot_of(new_owner) else {
            self.have(&[self.table.owner_page(old)])?;
            self.need(batch, SMALL_RECORD_LEN, 0)?;
            let lsn = batch.next_lsn();
            let relabel = LayerRecord::Relabel { slot: old, owner: new_owner };
            Record::Layer(relabel).put(&mut batch.head);
            self.table.relabel(lsn, old, layer.number, new_owner);
            batch.added(None);
            return Ok(Next::More);
        };
        let pair = Pair { replica, birth, extent, at, old, old_owner, new, new_owner };
        self.merge_pair(batch, pair, out)
    }

    fn merge_pair(
        &mut self,
        batch: &mut Batch,
        pair: Pair,
        out: &mut Vec<Action>,
    ) -> Result<Next, Stop> {
        let below = self.table.stack_below(pair.replica, pair.extent, pair.at);
        let slots = [pair.old, pair.new].into_iter().chain(below.into_slots());
        let mut pages = self.pages_of(slots);
        pages.extend([pair.old, pair.new].map(|slot| self.table.owner_page(slot)));
        self.have(&pages)?;
        for unit in 0..self.layout.slot_units() {
            let Some(merged) = self.merged_unit(&pair, unit) else { continue };
            let Some(content) = self.content_of(&pair, unit, merged.copied) else {
                return Ok(self.read_to_merge(batch, &pair, unit, out));
            };
            self.log_merged(batch, &pair, unit, &merged, &content)?;
        }
        // All in one batch: what the older slot has must not show before that is gone, and no slot
        // that knows nothing may be left.
        let units = self.layout.slot_units();
        let most = SMALL_RECORD_LEN * (1 + usize::try_from(units).expect("small"));
        self.need(batch, most, 0)?;
        self.merging.copying = None;
        self.free_merged(batch, pair.old, pair.old_owner);
        let hides = |unit| self.table.unit_view(below.slots(), unit).valid != 0;
        let uncovered: Vec<u32> = (0..units)
            .filter(|&unit| self.table.descriptor(pair.new).cleared(unit) != 0 && !hides(unit))
            .collect();
        let knows = |unit: u32| {
            let descriptor = self.table.descriptor(pair.new);
            let cleared = if uncovered.contains(&unit) { 0 } else { descriptor.cleared(unit) };
            descriptor.valid(unit) | cleared != 0
        };
        if (0..units).any(knows) {
            uncovered.into_iter().for_each(|unit| self.log_uncovered(batch, &pair, unit));
        } else {
            self.free_merged(batch, pair.new, pair.new_owner);
        }
        Ok(Next::More)
    }

    /// Older layers have nothing in the unit any more: there is nothing left to hide.
    fn log_uncovered(&mut self, batch: &mut Batch, pair: &Pair, unit: u32) {
        let descriptor = self.table.descriptor(pair.new);
        let (valid, mod_seq) = (descriptor.valid(unit), descriptor.mod_seq(unit));
        let mod_seq = if valid == 0 { ModSeq::NONE } else { mod_seq };
        let masks = Masks {
            slot: pair.new,
            owner: pair.new_owner,
            fresh: false,
            unit,
            mod_seq,
            valid,
            cleared: 0,
            filled: 0,
            lost: 0,
            crcs: Vec::new(),
        };
        self.log_masks(batch, masks);
    }

    /// `None`: the unit of the newer slot is what it must be.
    fn merged_unit(&self, pair: &Pair, unit: u32) -> Option<Merged> {
        let (old, new) = (self.table.descriptor(pair.old), self.table.descriptor(pair.new));
        let known = new.valid(unit) | new.cleared(unit);
        let copied = old.valid(unit) & !known;
        let valid = new.valid(unit) | copied;
        let mut cleared = new.cleared(unit) | old.cleared(unit) & !known;
        if is_on(Sabotage::MergeForgetsCleared) {
            cleared &= new.cleared(unit);
        }
        let mod_seq = if known != 0 { new.mod_seq(unit) } else { old.mod_seq(unit) };
        let is_new = (valid, cleared) != (new.valid(unit), new.cleared(unit));
        is_new.then_some(Merged { valid, cleared, mod_seq, copied })
    }

    /// Of the blocks to be copied, if it is all here.
    fn content_of(&self, pair: &Pair, unit: u32, mask: u16) -> Option<Vec<(u32, Content)>> {
        let blocks = (0..UNIT_BLOCKS).filter(|b| mask >> b & 1 == 1);
        if mask == 0 {
            return Some(Vec::new());
        }
        let copying = self.merging.copying.as_ref()?;
        let is_its = copying.slot == pair.old
            && copying.replica == pair.replica
            && copying.birth == pair.birth;
        let descriptor = self.table.descriptor(pair.old);
        let content = blocks.map(|b| {
            let block = unit * UNIT_BLOCKS + b;
            let found = copying.found.get(&block).filter(|_| is_its)?;
            match found {
                Content::Whole(crc, _)
                    if *crc != descriptor.crc(block) && !descriptor.is_lost(block) =>
                {
                    None
                }
                found => Some((b, found.clone())),
            }
        });
        content.collect()
    }

    fn log_merged(
        &mut self,
        batch: &mut Batch,
        pair: &Pair,
        unit: u32,
        merged: &Merged,
        content: &[(u32, Content)],
    ) -> Result<(), Stop> {
        let blocks = u32::try_from(content.len()).expect("at most 16");
        self.need(batch, SMALL_RECORD_LEN + 64, blocks)?;
        let descriptor = self.table.descriptor(pair.old);
        let (mut filled, mut lost) = (0u16, 0u16);
        let (mut crcs, mut lost_crcs, mut data) = (Vec::new(), Vec::new(), BytesMut::new());
        for (block, content) in content {
            match content {
                Content::Whole(crc, bytes) => {
                    filled |= 1 << block;
                    crcs.push(*crc);
                    data.extend_from_slice(bytes);
                }
                Content::Damaged => {
                    lost |= 1 << block;
                    lost_crcs.push(descriptor.crc(unit * UNIT_BLOCKS + block));
                }
            }
        }
        crcs.extend(lost_crcs);
        let &Merged { valid, cleared, mod_seq, .. } = merged;
        let (slot, owner, fresh) = (pair.new, pair.new_owner, false);
        let masks = Masks { slot, owner, fresh, unit, mod_seq, valid, cleared, filled, lost, crcs };
        let lsn = batch.next_lsn();
        self.table.masks(lsn, &masks);
        let data = data.freeze();
        let base = unit * UNIT_BLOCKS;
        let blocks = (0..UNIT_BLOCKS).filter(|b| filled >> b & 1 == 1).map(|b| base + b);
        self.overlay_blocks(lsn, slot, blocks, &data);
        self.readers.changed(slot, lsn);
        if !is_on(Sabotage::MergeNotRecorded) {
            Record::Layer(LayerRecord::Masks(masks)).put(&mut batch.head);
            batch.added((!data.is_empty()).then_some(data));
        }
        self.merging.blocks_copied += u64::from(filled.count_ones());
        Ok(())
    }

    fn free_merged(&mut self, batch: &mut Batch, slot: u32, owner: Owner) {
        let lsn = batch.next_lsn();
        Record::Free { slot, owner }.put(&mut batch.head);
        self.table.free(lsn, slot, owner);
        self.vacate(lsn, slot);
        batch.added(None);
    }

    /// Reads what is to be copied, from a unit on.
    fn read_to_merge(
        &mut self,
        batch: &Batch,
        pair: &Pair,
        from: u32,
        out: &mut Vec<Action>,
    ) -> Next {
        let mut blocks = Vec::new();
        for unit in from..self.layout.slot_units() {
            let copied = self.merged_unit(pair, unit).map_or(0, |merged| merged.copied);
            let base = unit * UNIT_BLOCKS;
            blocks.extend((0..UNIT_BLOCKS).filter(|b| copied >> b & 1 == 1).map(|b| base + b));
            if blocks.len() + 16 > usize::try_from(READ_BLOCKS_MAX).expect("small") {
                break;
            }
        }
        let (mut found, mut pieces) = (BTreeMap::new(), Vec::<Piece>::new());
        let descriptor = self.table.descriptor(pair.old);
        let is_its = self.table.describes(pair.old, pair.old_owner);
        for block in blocks {
            let newer = self.overlay.range(pair.old, block, 1).next();
            if !is_its {
                found.insert(block, Content::Damaged);
            } else if let Some((_, newer)) = newer {
                let is_lost = descriptor.is_lost(block);
                let crc = if is_lost { crc32c::crc32c(&newer.data) } else { descriptor.crc(block) };
                found.insert(block, Content::Whole(crc, newer.data.clone()));
            } else if descriptor.is_lost(block) {
                found.insert(block, Content::Damaged);
            } else if let Some(piece) = pieces.last_mut().filter(|piece| piece.end() == block) {
                piece.crcs.push(descriptor.crc(block));
            } else {
                pieces.push(Piece { first: block, crcs: vec![descriptor.crc(block)], data: None });
            }
        }
        for (index, piece) in pieces.iter().enumerate() {
            self.readers.begin(pair.old);
            let at = self.layout.slot_offset(pair.old) + u64::from(piece.first) * BLOCK;
            let length = (piece.end() - piece.first) * BLOCK_BYTES;
            self.ios.read(Io::Merge(index), at, length, out);
        }
        let &Pair { replica, birth, old: slot, .. } = pair;
        let (planned_lsn, waits) = (batch.next_lsn() - 1, pieces.len());
        let next = if waits == 0 { Next::More } else { Next::Later };
        self.merging.copying =
            Some(Copying { replica, birth, slot, planned_lsn, waits, pieces, found });
        next
    }

    pub fn merge_read(&mut self, index: usize, result: Result<Bytes, DriveError>) {
        let copying = self.merging.copying.as_mut().expect("its pieces are being read");
        copying.pieces[index].data = result.ok();
        copying.waits -= 1;
        if copying.waits > 0 {
            return;
        }
        let mut changed = false;
        for _ in &copying.pieces {
            changed |= self.readers.end(copying.slot, copying.planned_lsn);
        }
        if changed {
            // What came back may be anything: it is read again.
            self.merging.copying = None;
            return;
        }
        if copying.pieces.iter().any(Piece::is_damaged) {
            self.merging.attempts += 1;
            if self.merging.attempts < ATTEMPTS_MAX {
                self.merging.copying = None;
                return;
            }
        }
        self.merging.attempts = 0;
        for piece in std::mem::take(&mut copying.pieces) {
            let data = piece.data.unwrap_or_default();
            let mut blocks = data.chunks_exact(BLOCK_LEN).enumerate();
            for (block, &crc) in (piece.first..).zip(&piece.crcs) {
                let whole = blocks.next().filter(|(_, bytes)| crc32c::crc32c(bytes) == crc);
                let content = whole.map(|(index, _)| {
                    let bytes = data.slice(index * BLOCK_LEN..(index + 1) * BLOCK_LEN);
                    Content::Whole(crc, bytes)
                });
                copying.found.insert(block, content.unwrap_or(Content::Damaged));
            }
        }
    }
}

impl Piece {
    fn is_damaged(&self) -> bool {
        let blocks = self.data.iter().flat_map(|data| data.chunks_exact(BLOCK_LEN));
        !blocks.map(crc32c::crc32c).eq(self.crcs.iter().copied())
    }

    fn end(&self) -> u32 {
        self.first + u32::try_from(self.crcs.len()).expect("within a slot")
    }
}
