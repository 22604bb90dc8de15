//! What the drive holds: slot descriptors and the replica table, in memory and by page.
//!
//! Decides: what each record does to the descriptors, which page it changes, which slot holds
//! which extent of which replica.
//! Does not: order records, write pages, or know payload.
//! Invariants: a slot has at most one owner and an extent at most one slot; a used slot has a valid
//! block; a page holds exactly the effect of all records up to its LSN.

mod recovery;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use format::disk::{
    DriveUuid, Layout, UNIT_BLOCKS,
    journal::PlacedUnit,
    page::{
        self, Descriptor, DescriptorMut, Owner, PAGE_BODY_LEN, PageHeader, PageKind, ReplicaRow,
    },
};
use model::{epoch::ModSeq, id::ReplicaId};

use crate::sabotage::{Sabotage, is_on};

#[derive(Debug)]
pub struct Table {
    layout: Layout,
    per_page: u32,
    descriptor_len: usize,
    pages: Vec<Page>,
    /// Of the descriptor pages; `None`: all its slots are free.
    bodies: Vec<Option<Box<[u8; PAGE_BODY_LEN]>>>,
    dirty: BTreeSet<u32>,
    /// Descriptor pages from this one on are not on the drive.
    written: u32,
    replicas: BTreeMap<ReplicaId, Replica>,
    /// Which replica a page of the replica table belongs to.
    rows: Vec<Option<ReplicaId>>,
    /// While recovering: the rows as pages and records give them.
    recovered: BTreeMap<u32, ReplicaRow>,
    slots_used: u64,
    fingerprint: u64,
}

#[derive(Debug, Clone, Copy)]
struct Page {
    /// Of the last record applied.
    lsn: u64,
    /// The half written last.
    half: u8,
    /// What that half contributes to the fingerprint; zero when it was never written.
    fingerprint: u64,
}

#[derive(Debug)]
pub struct Replica {
    index: u32,
    pub size: u64,
    pub meta: Bytes,
    extents: BTreeMap<u32, u32>,
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
    pub fn new(layout: Layout) -> Self {
        let page = Page { lsn: 0, half: 1, fingerprint: 0 };
        let pages = usize::try_from(layout.pages()).expect("pages fit memory");
        let bodies = usize::try_from(layout.descriptor_pages).expect("pages fit memory");
        let rows = usize::try_from(layout.replica_pages).expect("pages fit memory");
        Self {
            layout,
            per_page: page::descriptors_per_page(layout.slot_blocks),
            descriptor_len: page::descriptor_len(layout.slot_blocks),
            pages: vec![page; pages],
            bodies: (0..bodies).map(|_| None).collect(),
            dirty: BTreeSet::new(),
            written: 0,
            replicas: BTreeMap::new(),
            rows: vec![None; rows],
            recovered: BTreeMap::new(),
            slots_used: 0,
            fingerprint: 0,
        }
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
        self.replicas.get(&owner.replica)?.extents.get(&owner.extent).copied()
    }

    /// The extents from `first` to `last` that hold data, with their slots.
    pub fn extents(
        &self,
        replica: ReplicaId,
        first: u32,
        last: u32,
    ) -> impl Iterator<Item = (u32, u32)> {
        let extents = self.replicas.get(&replica).map(|r| &r.extents);
        extents.into_iter().flat_map(move |u| u.range(first..=last)).map(|(&u, &s)| (u, s))
    }

    /// Of a slot that is owned.
    pub fn descriptor(&self, slot: u32) -> Descriptor<'_> {
        self.find(slot).expect("an owned slot has a descriptor")
    }

    fn find(&self, slot: u32) -> Option<Descriptor<'_>> {
        let (body, at) = self.place_of(slot);
        let body = self.bodies[body].as_ref()?;
        Some(Descriptor(&body[at..at + self.descriptor_len]))
    }

    fn find_mut(&mut self, slot: u32) -> DescriptorMut<'_> {
        let (body, at) = self.place_of(slot);
        let body = self.bodies[body].get_or_insert_with(|| Box::new([0; PAGE_BODY_LEN]));
        DescriptorMut(&mut body[at..at + self.descriptor_len])
    }

    /// Index of the body and the offset within it.
    fn place_of(&self, slot: u32) -> (usize, usize) {
        assert!(slot < self.layout.slots, "slot {slot} of {}", self.layout.slots);
        let body = usize::try_from(slot / self.per_page).expect("fits memory");
        let index = usize::try_from(slot % self.per_page).expect("fits memory");
        (body, index * self.descriptor_len)
    }

    fn page_of(&self, slot: u32) -> u32 {
        self.layout.replica_pages + slot / self.per_page
    }

    fn page(&self, page: u32) -> &Page {
        &self.pages[usize::try_from(page).expect("fits memory")]
    }

    fn touch(&mut self, page: u32, lsn: u64) {
        self.pages[usize::try_from(page).expect("fits memory")].lsn = lsn;
        self.dirty.insert(page);
    }

    fn touch_slot(&mut self, slot: u32, lsn: u64) {
        self.touch(self.page_of(slot), lsn);
    }

    // Changes, one for each kind of record. The caller has checked that they make sense.

    pub fn write_blocks(&mut self, lsn: u64, run: &BlockRun<'_>) {
        if run.fresh {
            self.own(run.slot, run.owner);
        }
        self.put_blocks(lsn, run);
    }

    fn put_blocks(&mut self, lsn: u64, run: &BlockRun<'_>) {
        let mut descriptor = self.find_mut(run.slot);
        if run.fresh || descriptor.view().owner() != Some(run.owner) {
            descriptor.set_owner(run.owner);
        }
        for (block, &crc) in (run.first..).zip(run.crcs) {
            let unit = block / UNIT_BLOCKS;
            let valid = descriptor.view().valid(unit) | 1 << (block % UNIT_BLOCKS);
            let mod_seq = descriptor.view().mod_seq(unit).max(run.mod_seq);
            descriptor.set_valid(unit, valid);
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
            self.own(slot, owner);
        }
        self.put_unit(lsn, slot, owner, fresh, placed);
    }

    fn put_unit(&mut self, lsn: u64, slot: u32, owner: Owner, fresh: bool, placed: &PlacedUnit) {
        let mut descriptor = self.find_mut(slot);
        if fresh || descriptor.view().owner() != Some(owner) {
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
            self.disown(old, owner);
            self.put_free(lsn, old);
        }
        self.own(slot, owner);
        self.put_placed(lsn, slot, owner, units);
        old
    }

    fn put_placed(&mut self, lsn: u64, slot: u32, owner: Owner, units: &[PlacedUnit]) {
        let mut descriptor = self.find_mut(slot);
        descriptor.set_owner(owner);
        for placed in units {
            fill_unit(&mut descriptor, placed);
        }
        self.touch_slot(slot, lsn);
    }

    /// The blocks become invalid; some other block of the slot stays valid.
    pub fn clear(&mut self, lsn: u64, slot: u32, first: u32, count: u32, mod_seq: ModSeq) {
        let mut descriptor = self.find_mut(slot);
        let mut block = first;
        while block < first + count {
            let unit = block / UNIT_BLOCKS;
            let end = (first + count).min((unit + 1) * UNIT_BLOCKS);
            let before = descriptor.view().valid(unit);
            let after = before & !mask(block % UNIT_BLOCKS, end - block);
            descriptor.set_valid(unit, after);
            let was = descriptor.view().mod_seq(unit);
            let now = if after == 0 { ModSeq::NONE } else { was.max(mod_seq) };
            descriptor.set_mod_seq(unit, now);
            block = end;
        }
        self.touch_slot(slot, lsn);
    }

    pub fn free(&mut self, lsn: u64, slot: u32, owner: Owner) {
        self.disown(slot, owner);
        self.put_free(lsn, slot);
    }

    fn put_free(&mut self, lsn: u64, slot: u32) {
        self.find_mut(slot).set_free();
        self.touch_slot(slot, lsn);
    }

    /// A row of the replica table that is free.
    pub fn free_row(&self) -> Option<u32> {
        let index = self.rows.iter().position(Option::is_none)?;
        Some(u32::try_from(index).expect("rows are few"))
    }

    pub fn row_of(&self, replica: ReplicaId) -> Option<u32> {
        self.replicas.get(&replica).map(|r| r.index)
    }

    pub fn put_replica(&mut self, lsn: u64, index: u32, row: &ReplicaRow) {
        self.rows[usize::try_from(index).expect("rows are few")] = Some(row.replica);
        let replica = self.replicas.entry(row.replica).or_insert_with(|| Replica {
            index,
            size: 0,
            meta: Bytes::new(),
            extents: BTreeMap::new(),
        });
        assert_eq!(replica.index, index, "a replica keeps its row");
        replica.size = row.size;
        replica.meta = row.meta.clone();
        self.touch(index, lsn);
    }

    /// Returns the slots that are free now.
    pub fn remove_replica(&mut self, lsn: u64, replica: ReplicaId) -> Vec<u32> {
        let Some(gone) = self.replicas.remove(&replica) else { return Vec::new() };
        self.rows[usize::try_from(gone.index).expect("rows are few")] = None;
        self.touch(gone.index, lsn);
        let slots: Vec<u32> = gone.extents.into_values().collect();
        for &slot in &slots {
            self.put_free(lsn, slot);
        }
        self.slots_used -= u64::try_from(slots.len()).expect("fits");
        slots
    }

    fn own(&mut self, slot: u32, owner: Owner) {
        let replica = self.replicas.get_mut(&owner.replica).expect("the replica exists");
        let before = replica.extents.insert(owner.extent, slot);
        assert_eq!(before, None, "an extent has one slot");
        self.slots_used += 1;
    }

    fn disown(&mut self, slot: u32, owner: Owner) {
        let replica = self.replicas.get_mut(&owner.replica).expect("the replica exists");
        let before = replica.extents.remove(&owner.extent);
        assert_eq!(before, Some(slot), "the slot is the extent's");
        self.slots_used -= 1;
    }

    /// Bytes of the drive that the replica occupies.
    pub fn allocated(&self, replica: ReplicaId) -> u64 {
        let extents = self.replicas.get(&replica).map_or(0, |r| r.extents.len());
        u64::try_from(extents).expect("fits") * self.layout.slot_bytes()
    }

    // Pages.

    /// Pages changed since they were last taken. Those before the last one that were never written
    /// come with them, so that what lies before [`Self::pages_written`] is ours.
    pub fn take_dirty(&mut self) -> BTreeSet<u32> {
        let first = self.layout.replica_pages;
        let end = self.dirty.last().map_or(0, |&last| (last + 1).saturating_sub(first));
        self.dirty.extend(first + self.written..first + end);
        self.written = self.written.max(end);
        std::mem::take(&mut self.dirty)
    }

    /// Counts pages that [`Self::take_dirty`] has returned as written.
    pub fn pages_written(&self) -> u32 {
        self.written
    }

    pub fn page_lsn(&self, page: u32) -> u64 {
        self.page(page).lsn
    }

    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The page's image for its other half, and where that lies.
    pub fn capture(&mut self, uuid: DriveUuid, page: u32, checkpoint: u64) -> (u64, Bytes) {
        let descriptors = page >= self.layout.replica_pages;
        let kind = if descriptors { PageKind::Descriptors } else { PageKind::Replica };
        let lsn = self.page(page).lsn;
        let header = PageHeader { kind, page, lsn, checkpoint };
        let image = if descriptors {
            let index = usize::try_from(page - self.layout.replica_pages).expect("fits memory");
            let body = self.bodies[index].as_ref().map_or(&[][..], |b| &b[..]);
            page::encode_page(uuid, &header, body)
        } else {
            page::encode_page(uuid, &header, &page::encode_row(self.row(page).as_ref()))
        };
        let entry = &mut self.pages[usize::try_from(page).expect("fits memory")];
        if !is_on(Sabotage::PageInPlace) {
            entry.half = 1 - entry.half;
        }
        let fingerprint = page::fingerprint(&image);
        self.fingerprint ^= entry.fingerprint ^ fingerprint;
        entry.fingerprint = fingerprint;
        (self.layout.page_offset(page, entry.half), image)
    }

    fn row(&self, index: u32) -> Option<ReplicaRow> {
        let replica = self.rows[usize::try_from(index).expect("rows are few")]?;
        let Replica { size, meta, .. } = &self.replicas[&replica];
        Some(ReplicaRow { replica, size: *size, meta: meta.clone() })
    }
}

/// `count` bits from `first` on.
pub fn mask(first: u32, count: u32) -> u16 {
    assert!(first + count <= UNIT_BLOCKS, "{count} bits from {first}");
    u16::try_from(((1u32 << count) - 1) << first).expect("within 16 bits")
}

fn fill_unit(descriptor: &mut DescriptorMut<'_>, placed: &PlacedUnit) {
    let mod_seq = if placed.valid == 0 { ModSeq::NONE } else { placed.mod_seq };
    descriptor.set_mod_seq(placed.unit, mod_seq);
    descriptor.set_valid(placed.unit, placed.valid);
    let blocks = (0..UNIT_BLOCKS).filter(|b| placed.valid >> b & 1 == 1);
    for (block, &crc) in blocks.zip(&placed.crcs) {
        descriptor.set_crc(placed.unit * UNIT_BLOCKS + block, crc);
    }
}
