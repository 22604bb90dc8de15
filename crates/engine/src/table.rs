//! What the drive holds: who owns each slot and what each slot's blocks are, part of it in memory.
//!
//! Decides: what each record does to maps, descriptors and the replica table, which pages it
//! changes, which slot holds which extent of which replica.
//! Does not: order records, read or write pages, or know payload.
//! Invariants: a slot has at most one owner and an extent at most one slot; a used slot has a valid
//! block; a page holds exactly the effect of all records up to its LSN. The maps from extents to
//! slots are in memory as a whole, descriptors only where the cache has them: who changes or asks
//! has made sure of that.

mod cache;
mod extents;
mod layers;
mod pages;
mod recovery;
mod rows;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use format::disk::{
    FormatVersion, Layout, UNIT_BLOCKS,
    journal::PlacedUnit,
    map::{self, PageEntry, SlotOwner},
    page::{self, Descriptor, DescriptorMut, Owner},
};
use model::{epoch::ModSeq, id::ReplicaId};

use self::{cache::Cache, layers::Frozen};
pub use self::{
    cache::FRAME_BYTES,
    extents::ExtentMap,
    layers::{Stack, UnitView},
    pages::Fetched,
    recovery::{Recovered, Recovering},
};

/// The body of a page that was never written.
static NOTHING: [u8; page::PAGE_BODY_LEN] = [0; page::PAGE_BODY_LEN];

/// Of a replica, without its maps and the caller's metadata.
pub const REPLICA_BYTES: u64 = 256;

#[derive(Debug)]
pub struct Table {
    layout: Layout,
    per_page: u32,
    descriptor_len: usize,
    /// Descriptor pages of a map page.
    groups: u32,
    /// Of the pages that are read at open.
    pages: Vec<Page>,
    /// Of the descriptor pages, as they are on the drive. Empty in version 1.
    entries: Vec<PageEntry>,
    cache: Cache,
    /// Pages whose image on the drive is old, and the first record that it lacks; zero if it is to
    /// be written whatever it lacks.
    dirty: BTreeMap<u32, u64>,
    /// Map pages (descriptor pages in version 1) from this one on are not on the drive.
    written: u32,
    replicas: BTreeMap<ReplicaId, Replica>,
    /// What replicas had that were removed by the records with these LSNs: slots that were not
    /// given back.
    removed: VecDeque<(u64, ExtentMap)>,
    /// Which replica a page of the replica table belongs to.
    rows: Vec<Option<ReplicaId>>,
    slots_used: u64,
    /// Of all replicas, and how many of these were released.
    frozen_layers: u64,
    released_layers: u64,
    fingerprint: u64,
    memory_max: u64,
    /// Bytes that replicas and their maps take.
    replicas_memory: u64,
    /// Extents that the sizes of all replicas come to.
    extents_max: u64,
    lost_pages: u64,
    /// What was read for a record must stay until that is applied, however much it is.
    is_recovering: bool,
}

/// A page that was read at open.
#[derive(Debug, Clone, Copy)]
struct Page {
    /// Of the last record applied; of a map page only while it is not in memory.
    lsn: u64,
    /// The half written last.
    half: u8,
    /// What that half contributes to the fingerprint; zero when it was never written.
    fingerprint: u64,
}

#[derive(Debug)]
pub struct Replica {
    index: u32,
    birth: u64,
    pub size: u64,
    pub meta: Bytes,
    /// Number of the layer that changes go to, and its slots.
    head: u16,
    extents: ExtentMap,
    /// The oldest first.
    frozen: Vec<Frozen>,
    /// Numbers of no layer that slots had when the drive was opened: only damage leaves any.
    strays: Vec<u16>,
}

impl Replica {
    /// Bytes of memory, about.
    fn memory(&self) -> u64 {
        let meta = u64::try_from(self.meta.len()).expect("fits");
        REPLICA_BYTES + meta + self.maps().map(|(_, map)| map.memory()).sum::<u64>()
    }
}

/// Blocks of a slot whose content a record sets.
#[derive(Debug, Clone, Copy)]
pub struct BlockRun<'a> {
    pub slot: u32,
    pub owner: Owner,
    pub fresh: bool,
    pub mod_seq: ModSeq,
    pub first: u32,
    pub crcs: &'a [u32],
}

impl Table {
    pub fn new(layout: Layout, memory_max: u64) -> Self {
        let fits = |pages: u32| usize::try_from(pages).expect("pages fit memory");
        let entries = match layout.version {
            FormatVersion::V1 => 0,
            FormatVersion::V2 | FormatVersion::V3 => fits(layout.descriptor_pages),
        };
        Self {
            layout,
            per_page: page::descriptors_per_page(layout.slot_blocks),
            descriptor_len: page::descriptor_len(layout.slot_blocks),
            groups: map::groups_per_page(layout.slot_blocks),
            pages: vec![
                Page { lsn: 0, half: 1, fingerprint: 0 };
                fits(layout.pages_read_at_open())
            ],
            entries: vec![PageEntry::NONE; entries],
            cache: Cache::new(layout.pages()),
            dirty: BTreeMap::new(),
            written: 0,
            replicas: BTreeMap::new(),
            removed: VecDeque::new(),
            rows: vec![None; fits(layout.replica_pages)],
            slots_used: 0,
            frozen_layers: 0,
            released_layers: 0,
            fingerprint: 0,
            memory_max,
            replicas_memory: 0,
            extents_max: 0,
            lost_pages: 0,
            is_recovering: false,
        }
    }

    fn has_maps(&self) -> bool {
        self.layout.version.has_maps()
    }

    pub fn replica(&self, replica: ReplicaId) -> Option<&Replica> {
        self.replicas.get(&replica)
    }

    pub fn replicas(&self) -> impl Iterator<Item = (ReplicaId, &Replica)> {
        self.replicas.iter().map(|(&id, replica)| (id, replica))
    }

    pub fn slots_used(&self) -> u64 {
        self.slots_used
    }

    pub fn slot_of(&self, owner: Owner) -> Option<u32> {
        self.replicas.get(&owner.replica)?.map_of(owner.layer)?.get(owner.extent)
    }

    /// Of a slot that is owned and whose page is not absent.
    pub fn descriptor(&self, slot: u32) -> Descriptor<'_> {
        let (page, at) = (self.descriptor_page(slot), self.place_in_page(slot));
        let body = match self.cache.get(page) {
            Some(frame) => &frame.body[..],
            // Only damage makes somebody own what was never described.
            None => {
                assert!(!self.is_absent(page), "page {page} is not in memory");
                &NOTHING
            }
        };
        Descriptor(&body[at..at + self.descriptor_len])
    }

    fn descriptor_mut(&mut self, slot: u32) -> DescriptorMut<'_> {
        let page = self.descriptor_page(slot);
        let at = self.place_in_page(slot);
        let len = self.descriptor_len;
        DescriptorMut(&mut self.frame_mut(page).body[at..at + len])
    }

    fn place_in_page(&self, slot: u32) -> usize {
        assert!(slot < self.layout.slots, "slot {slot} of {}", self.layout.slots);
        let index = usize::try_from(slot % self.per_page).expect("fits memory");
        index * self.descriptor_len
    }

    /// The page that describes the slot.
    pub fn descriptor_page(&self, slot: u32) -> u32 {
        self.layout.first_descriptor_page() + slot / self.per_page
    }

    /// The page that changes when the slot's owner does.
    pub fn owner_page(&self, slot: u32) -> u32 {
        match self.layout.version {
            FormatVersion::V1 => self.descriptor_page(slot),
            FormatVersion::V2 | FormatVersion::V3 => self.map_page(slot / self.per_page),
        }
    }

    fn map_page(&self, descriptor_index: u32) -> u32 {
        self.layout.replica_pages + descriptor_index / self.groups
    }

    fn set_slot_owner(&mut self, lsn: u64, slot: u32, owner: Option<SlotOwner>) {
        let (page, slot_blocks) = (self.owner_page(slot), self.layout.slot_blocks);
        let (group, index) = (slot / self.per_page % self.groups, slot % self.per_page);
        let body = &mut self.frame_mut(page).body[..];
        map::MapPageMut { body, slot_blocks }.set_owner(group, index, owner);
        self.touch(page, lsn);
    }

    // Changes, one for each kind of record. The caller has checked that they make sense, and that
    // the pages they change are in memory.

    pub fn write_blocks(&mut self, lsn: u64, run: &BlockRun<'_>) {
        if run.fresh {
            self.own(lsn, run.slot, run.owner);
        }
        self.put_blocks(lsn, run);
    }

    /// Whether the descriptor is of this owner's content. Only when a drive lost what it had made
    /// durable can the map give a slot to somebody whose first record is missing: what it describes
    /// then is another's, and nobody else may ever see it.
    pub fn describes(&self, slot: u32, owner: Owner) -> bool {
        let is_same = |found: Owner| (found.replica, found.extent) == (owner.replica, owner.extent);
        self.descriptor(slot).owner().map_or(self.has_maps(), is_same)
    }

    fn put_blocks(&mut self, lsn: u64, run: &BlockRun<'_>) {
        let begins = run.fresh || !self.describes(run.slot, run.owner);
        let mut descriptor = self.descriptor_mut(run.slot);
        if begins {
            descriptor.set_owner(run.owner);
        }
        for (block, &crc) in (run.first..).zip(run.crcs) {
            let unit = block / UNIT_BLOCKS;
            let bit = 1 << (block % UNIT_BLOCKS);
            let (valid, lost) = (descriptor.view().valid(unit), descriptor.view().lost(unit));
            let mod_seq = descriptor.view().mod_seq(unit).max(run.mod_seq);
            let cleared = descriptor.view().cleared(unit);
            descriptor.set_valid(unit, valid | bit);
            descriptor.set_cleared(unit, cleared & !bit);
            descriptor.set_lost(unit, lost & !bit);
            descriptor.set_mod_seq(unit, mod_seq);
            descriptor.set_crc(block, crc);
        }
        self.touch_slot(run.slot, lsn);
    }

    /// One unit becomes exactly `placed`, which has a valid block.
    pub fn set_unit(
        &mut self,
        lsn: u64,
        slot: u32,
        owner: Owner,
        fresh: bool,
        placed: &PlacedUnit,
    ) {
        if fresh {
            self.own(lsn, slot, owner);
        }
        self.put_unit(lsn, slot, owner, fresh, placed);
    }

    fn put_unit(&mut self, lsn: u64, slot: u32, owner: Owner, fresh: bool, placed: &PlacedUnit) {
        let begins = fresh || !self.describes(slot, owner);
        let mut descriptor = self.descriptor_mut(slot);
        if begins {
            descriptor.set_owner(owner);
        }
        fill_unit(&mut descriptor, placed);
        self.touch_slot(slot, lsn);
    }

    /// The extent is in `slot` from now on; returns where it was.
    pub fn place(
        &mut self,
        lsn: u64,
        slot: u32,
        owner: Owner,
        units: &[PlacedUnit],
    ) -> Option<u32> {
        let old = self.slot_of(owner);
        if let Some(old) = old {
            self.free(lsn, old, owner);
        }
        self.own(lsn, slot, owner);
        self.put_placed(lsn, slot, owner, units);
        old
    }

    fn put_placed(&mut self, lsn: u64, slot: u32, owner: Owner, units: &[PlacedUnit]) {
        let mut descriptor = self.descriptor_mut(slot);
        descriptor.set_owner(owner);
        for placed in units {
            fill_unit(&mut descriptor, placed);
        }
        self.touch_slot(slot, lsn);
    }

    /// The blocks become invalid; some other block of the slot stays valid.
    pub fn clear(&mut self, lsn: u64, slot: u32, first: u32, count: u32, mod_seq: ModSeq) {
        let mut descriptor = self.descriptor_mut(slot);
        let mut block = first;
        while block < first + count {
            let unit = block / UNIT_BLOCKS;
            let end = (first + count).min((unit + 1) * UNIT_BLOCKS);
            let kept = !mask(block % UNIT_BLOCKS, end - block);
            let (valid, lost) = (descriptor.view().valid(unit), descriptor.view().lost(unit));
            descriptor.set_valid(unit, valid & kept);
            descriptor.set_lost(unit, lost & kept);
            let was = descriptor.view().mod_seq(unit);
            let now = if valid & kept == 0 { ModSeq::NONE } else { was.max(mod_seq) };
            descriptor.set_mod_seq(unit, now);
            block = end;
        }
        self.touch_slot(slot, lsn);
    }

    pub fn free(&mut self, lsn: u64, slot: u32, owner: Owner) {
        let replica = self.replicas.get_mut(&owner.replica).expect("the replica exists");
        self.replicas_memory -= replica.memory();
        let map = replica.map_of_mut(owner.layer).expect("the layer exists");
        let before = map.remove(owner.extent);
        self.replicas_memory += replica.memory();
        assert_eq!(before, Some(slot), "the slot is the extent's");
        self.slots_used -= 1;
        self.put_free(lsn, slot);
    }

    fn put_free(&mut self, lsn: u64, slot: u32) {
        if self.has_maps() {
            self.set_slot_owner(lsn, slot, None);
        } else {
            self.descriptor_mut(slot).set_free();
            self.touch_slot(slot, lsn);
        }
    }

    fn own(&mut self, lsn: u64, slot: u32, owner: Owner) {
        let replica = self.replicas.get_mut(&owner.replica).expect("the replica exists");
        let birth = replica.birth;
        self.replicas_memory -= replica.memory();
        let map = replica.map_of_mut(owner.layer).expect("the layer exists");
        let before = map.insert(owner.extent, slot);
        self.replicas_memory += replica.memory();
        assert_eq!(before, None, "an extent has one slot");
        self.slots_used += 1;
        if self.has_maps() {
            let owner = SlotOwner { birth, extent: owner.extent, layer: owner.layer };
            self.set_slot_owner(lsn, slot, Some(owner));
        }
    }

    // Replicas.
}

/// `count` bits from `first` on.
pub fn mask(first: u32, count: u32) -> u16 {
    assert!(first + count <= UNIT_BLOCKS, "{count} bits from {first}");
    u16::try_from(((1u32 << count) - 1) << first).expect("within 16 bits")
}

/// Which blocks of a unit lie among `count` blocks of its slot from `first` on.
pub fn inside(unit: u32, first: u32, count: u32) -> u16 {
    let base = unit * UNIT_BLOCKS;
    let start = first.clamp(base, base + UNIT_BLOCKS);
    let end = (first + count).clamp(base, base + UNIT_BLOCKS);
    mask(start - base, end - start)
}

fn fill_unit(descriptor: &mut DescriptorMut<'_>, placed: &PlacedUnit) {
    let mod_seq = if placed.valid == 0 { ModSeq::NONE } else { placed.mod_seq };
    descriptor.set_mod_seq(placed.unit, mod_seq);
    descriptor.set_valid(placed.unit, placed.valid);
    descriptor.set_lost(placed.unit, 0);
    descriptor.set_cleared(placed.unit, placed.cleared);
    let blocks = (0..UNIT_BLOCKS).filter(|b| placed.valid >> b & 1 == 1);
    for (block, &crc) in blocks.zip(&placed.crcs) {
        descriptor.set_crc(placed.unit * UNIT_BLOCKS + block, crc);
    }
}

fn at(index: u32) -> usize {
    usize::try_from(index).expect("fits memory")
}
