//! The table while a drive is recovered: pages as they were found, then records applied page by
//! page, then the maps from extents to slots.
//!
//! Decides: what a record changes on pages that have not seen it, who of two owners of an extent
//! keeps it.
//! Does not: read pages, or decide which half or which batch counts (`open`).
//! Invariants: a record changes nothing on a page that has seen it; what the drive returned is not
//! trusted to be free of contradiction.

mod layers;

use std::collections::{BTreeMap, BTreeSet};

use format::disk::{
    journal::{PlacedUnit, Record},
    layers::{LayerRecord, Layers},
    map::{MapPage, SlotOwner},
    page::{self, Descriptor, Owner, PageHeader, PageKind, ReplicaRow},
};
use model::{epoch::ModSeq, id::ReplicaId};

use super::{BlockRun, ExtentMap, Page, Table, at};

#[derive(Debug)]
pub struct Recovering {
    pub table: Table,
    /// The rows as pages and records give them.
    rows: BTreeMap<u32, ReplicaRow>,
    births: BTreeMap<ReplicaId, u64>,
    /// By the births of their owners, dead or alive, and their layers. Empty in version 1.
    maps: BTreeMap<(u64, u16), ExtentMap>,
    /// Slots whose extent another slot holds too, until a record says which of them does.
    rivals: Vec<(SlotOwner, u32)>,
}

/// What recovery comes to.
#[derive(Debug)]
pub struct Recovered {
    pub table: Table,
    /// One bit per slot.
    pub used: Vec<u64>,
    /// Replicas about which the pages contradict each other.
    pub stale: BTreeSet<ReplicaId>,
}

impl Recovering {
    pub fn new(mut table: Table) -> Self {
        table.is_recovering = true;
        Self {
            table,
            rows: BTreeMap::new(),
            births: BTreeMap::new(),
            maps: BTreeMap::new(),
            rivals: Vec::new(),
        }
    }

    /// How many map pages (descriptor pages in version 1) there are to load.
    pub fn expect_pages(&mut self, written: u32) {
        self.table.written = written;
    }

    /// Takes a page as it was found; `kept` is the half that is not written over next, and its
    /// fingerprint. Returns whether its body made sense.
    pub fn load(&mut self, header: &PageHeader, kept: Option<(u8, u64)>, body: &[u8]) -> bool {
        let (half, fingerprint) = kept.unwrap_or((1, 0));
        let table = &mut self.table;
        table.pages[at(header.page)] = Page { lsn: header.lsn, half, fingerprint };
        table.fingerprint ^= fingerprint;
        match header.kind {
            PageKind::Replica => match page::decode_row(table.layout.version, body) {
                Ok(Some(row)) => self.put_row(header.page, row),
                Ok(None) => {}
                Err(_) => return false,
            },
            PageKind::Map => {
                table.take_entries(header.page, body);
                self.load_owners(header.page, body);
            }
            PageKind::Descriptors => {
                let frame = table.cache.add(header.page, header.lsn, usize::MAX);
                frame.body.copy_from_slice(body);
            }
        }
        true
    }

    fn put_row(&mut self, index: u32, row: ReplicaRow) {
        // An id may have lived before, in another row.
        let birth = self.births.entry(row.replica).or_default();
        *birth = row.birth.max(*birth);
        self.rows.insert(index, row);
    }

    fn load_owners(&mut self, page: u32, body: &[u8]) {
        let Table { layout, groups, per_page, .. } = self.table;
        let map = MapPage { body, slot_blocks: layout.slot_blocks };
        let first = (page - layout.replica_pages) * groups * per_page;
        // A slot may be owned before the page that describes it was ever written.
        for group in 0..groups {
            for index in 0..per_page {
                let slot = first + group * per_page + index;
                if let Some(owner) = map.owner(group, index).filter(|_| slot < layout.slots) {
                    self.note(owner, slot);
                }
            }
        }
    }

    fn note(&mut self, owner: SlotOwner, slot: u32) {
        let map = self.maps.entry((owner.birth, owner.layer)).or_default();
        if let Some(rival) = map.insert(owner.extent, slot) {
            self.rivals.push((owner, rival));
        }
    }

    fn forget(&mut self, owner: SlotOwner, slot: u32) {
        let map = self.maps.entry((owner.birth, owner.layer)).or_default();
        if map.get(owner.extent) == Some(slot) {
            map.remove(owner.extent);
        } else {
            self.rivals.retain(|rival| *rival != (owner, slot));
        }
    }

    /// The half that counts is not the newest one, or was lost: it is written again, so that the
    /// other never counts.
    pub fn rewrite(&mut self, page: u32) {
        self.table.dirty.insert(page, 0);
    }

    /// Whether the record names slots and rows that exist. What the drive returns is not trusted.
    pub fn is_sound(&self, record: &Record) -> bool {
        let layout = &self.table.layout;
        let slot_ok = |slot: u32| slot < layout.slots;
        let blocks_ok = |first: u32, count: u32| first + count <= layout.slot_blocks;
        let unit_ok = |unit: u32| unit < layout.slot_units();
        match record {
            Record::Data { slot, first, crcs, .. } | Record::Direct { slot, first, crcs, .. } => {
                slot_ok(*slot) && blocks_ok(*first, u32::try_from(crcs.len()).unwrap_or(u32::MAX))
            }
            Record::Set { slot, unit, .. } => slot_ok(*slot) && unit_ok(*unit),
            Record::Place { slot, old, units, .. } => {
                let all = units.iter().all(|e| unit_ok(e.unit));
                slot_ok(*slot) && old.is_none_or(slot_ok) && all
            }
            Record::Clear { slot, first, count, .. } => slot_ok(*slot) && blocks_ok(*first, *count),
            Record::Free { slot, .. } => slot_ok(*slot),
            Record::Replica { index, .. } | Record::Remove { index, .. } => {
                *index < layout.replica_pages
            }
            Record::Layer(LayerRecord::Relabel { slot, .. }) => slot_ok(*slot),
            Record::Layer(LayerRecord::Masks(masks)) => slot_ok(masks.slot) && unit_ok(masks.unit),
            Record::Layer(
                LayerRecord::Freeze { index, .. }
                | LayerRecord::Release { index, .. }
                | LayerRecord::Merged { index, .. },
            ) => *index < layout.replica_pages,
            Record::Seal => true,
        }
    }

    /// The pages that a sound record would change, if they have not seen it.
    fn changes(&self, record: &Record) -> Vec<u32> {
        let table = &self.table;
        let mut pages = Vec::new();
        match record {
            Record::Data { slot, fresh, .. }
            | Record::Direct { slot, fresh, .. }
            | Record::Set { slot, fresh, .. } => {
                pages.push(table.descriptor_page(*slot));
                if *fresh {
                    pages.push(table.owner_page(*slot));
                }
            }
            Record::Place { slot, old, .. } => {
                pages.extend([table.descriptor_page(*slot), table.owner_page(*slot)]);
                pages.extend(old.map(|old| table.owner_page(old)));
            }
            Record::Clear { slot, .. } => pages.push(table.descriptor_page(*slot)),
            Record::Free { slot, .. } => pages.push(table.owner_page(*slot)),
            Record::Layer(LayerRecord::Relabel { slot, .. }) => {
                pages.push(table.owner_page(*slot));
            }
            Record::Layer(LayerRecord::Masks(masks)) => {
                pages.push(table.descriptor_page(masks.slot));
                if masks.fresh {
                    pages.push(table.owner_page(masks.slot));
                }
            }
            Record::Replica { .. } | Record::Remove { .. } | Record::Seal | Record::Layer(_) => {}
        }
        pages
    }

    /// Pages that must be read before the record can be applied. `all`: also those that have seen
    /// it.
    pub fn wants(&self, lsn: u64, record: &Record, all: bool) -> Vec<u32> {
        if !self.is_sound(record) {
            return Vec::new();
        }
        let mut pages = self.changes(record);
        pages
            .retain(|&page| self.table.is_absent(page) && (all || lsn > self.table.page_lsn(page)));
        pages
    }

    /// Applies a sound record to every page that has not seen it.
    pub fn replay(&mut self, lsn: u64, record: &Record) {
        match record {
            Record::Data { slot, owner, fresh, mod_seq, first, crcs }
            | Record::Direct { slot, owner, fresh, mod_seq, first, crcs } => {
                let (slot, owner, fresh) = (*slot, *owner, *fresh);
                let (describes, owns) = self.is_new(slot, lsn);
                if describes {
                    let (mod_seq, first) = (*mod_seq, *first);
                    let run = BlockRun { slot, owner, fresh, mod_seq, first, crcs };
                    self.table.put_blocks(lsn, &run);
                }
                if fresh && owns {
                    self.put_owner(lsn, slot, owner);
                }
            }
            Record::Set { slot, owner, fresh, unit, mod_seq, valid, cleared, crcs } => {
                let (describes, owns) = self.is_new(*slot, lsn);
                if describes {
                    let (mod_seq, valid, cleared) = (*mod_seq, *valid, *cleared);
                    let crcs = crcs.clone();
                    let placed = PlacedUnit { unit: *unit, mod_seq, valid, cleared, crcs };
                    self.table.put_unit(lsn, *slot, *owner, *fresh, &placed);
                }
                if *fresh && owns {
                    self.put_owner(lsn, *slot, *owner);
                }
            }
            Record::Place { slot, owner, old, units } => {
                // The two slots may share a page: both are asked before either changes it.
                let (describes, owns) = self.is_new(*slot, lsn);
                let old = old.filter(|&old| self.is_new(old, lsn).1);
                if let Some(old) = old {
                    self.put_free(lsn, old);
                }
                if describes {
                    self.table.put_placed(lsn, *slot, *owner, units);
                }
                if owns {
                    self.put_owner(lsn, *slot, *owner);
                }
            }
            Record::Clear { slot, mod_seq, first, count, .. } => {
                if self.is_new(*slot, lsn).0 {
                    self.table.clear(lsn, *slot, *first, *count, *mod_seq);
                }
            }
            Record::Free { slot, .. } => {
                if self.is_new(*slot, lsn).1 {
                    self.put_free(lsn, *slot);
                }
            }
            Record::Replica { index, replica, size, meta } => {
                if lsn > self.table.page_lsn(*index) {
                    let (replica, size, meta) = (*replica, *size, meta.clone());
                    let before = self.rows.get(index).filter(|row| row.replica == replica);
                    let (birth, layers) = match before {
                        Some(row) => (row.birth, row.layers.clone()),
                        None if self.table.has_maps() => (lsn, Layers::default()),
                        None => (0, Layers::default()),
                    };
                    self.put_row(*index, ReplicaRow { replica, size, birth, layers, meta });
                    self.table.touch(*index, lsn);
                }
            }
            Record::Remove { index, replica } => {
                if lsn > self.table.page_lsn(*index) {
                    let gone = self.rows.remove(index).map(|row| row.birth);
                    if self.births.get(replica).copied() == gone {
                        self.births.remove(replica);
                    }
                    self.table.touch(*index, lsn);
                }
                self.free_all_v1(lsn, *replica);
            }
            Record::Seal => {}
            Record::Layer(record) => self.replay_layers(lsn, record),
        }
    }

    /// Whether the page that describes the slot, and the one that says who owns it, have not seen
    /// the record.
    fn is_new(&self, slot: u32, lsn: u64) -> (bool, bool) {
        let table = &self.table;
        let is_new = |page| lsn > table.page_lsn(page);
        (is_new(table.descriptor_page(slot)), is_new(table.owner_page(slot)))
    }

    fn put_owner(&mut self, lsn: u64, slot: u32, owner: Owner) {
        if !self.table.has_maps() {
            return;
        }
        // What a replica that is gone owned was freed with it: such an owner is as good as none.
        let alive = self.births.get(&owner.replica).copied();
        let birth = alive.filter(|&birth| birth <= lsn).unwrap_or(lsn);
        let owner = SlotOwner { birth, extent: owner.extent, layer: owner.layer };
        if let Some(before) = self.table.slot_owner(slot) {
            self.forget(before, slot);
        }
        self.table.set_slot_owner(lsn, slot, Some(owner));
        self.note(owner, slot);
    }

    fn put_free(&mut self, lsn: u64, slot: u32) {
        if self.table.has_maps()
            && let Some(before) = self.table.slot_owner(slot)
        {
            self.forget(before, slot);
        }
        self.table.put_free(lsn, slot);
    }

    /// In version 1 a replica takes its descriptors with it.
    fn free_all_v1(&mut self, lsn: u64, replica: ReplicaId) {
        if self.table.has_maps() {
            return;
        }
        for slot in self.described_slots() {
            let is_new = lsn > self.table.page_lsn(self.table.descriptor_page(slot));
            let owner = self.table.descriptor(slot).owner();
            if is_new && owner.is_some_and(|o| o.replica == replica) {
                self.table.put_free(lsn, slot);
            }
        }
    }

    fn described_slots(&self) -> Vec<u32> {
        let Table { layout, per_page, ref cache, .. } = self.table;
        let first = layout.first_descriptor_page();
        let pages = (0..layout.descriptor_pages).filter(|index| cache.holds(first + index));
        pages.flat_map(|index| index * per_page..(index + 1) * per_page).collect()
    }

    /// Builds the maps, which it leaves without contradiction whatever the drive returned.
    pub fn finish(mut self) -> Recovered {
        let mut stale = BTreeSet::new();
        self.table.is_recovering = false;
        for (index, row) in std::mem::take(&mut self.rows) {
            // Only damage leaves a replica in two rows.
            if self.table.replicas.contains_key(&row.replica) {
                stale.insert(row.replica);
            } else {
                self.table.insert_replica(index, &row);
            }
        }
        if self.table.has_maps() {
            self.finish_maps(&mut stale);
        } else {
            self.finish_v1();
        }
        let words = at(self.table.layout.slots.div_ceil(64));
        let mut used = vec![0u64; words];
        let maps = self.table.replicas.values().flat_map(super::Replica::maps);
        let slots = maps.flat_map(|(_, map)| map.iter());
        slots.for_each(|(_, slot)| used[at(slot / 64)] |= 1 << (slot % 64));
        self.table.replicas_memory = self.table.replicas.values().map(super::Replica::memory).sum();
        self.table.slots_used = self.table.replicas.values().map(super::Replica::slots).sum();
        Recovered { table: self.table, used, stale }
    }

    fn finish_maps(&mut self, stale: &mut BTreeSet<ReplicaId>) {
        for (&id, replica) in &mut self.table.replicas {
            let birth = replica.birth;
            let mut map = |layer| self.maps.remove(&(birth, layer)).unwrap_or_default();
            replica.extents = map(replica.head);
            for frozen in &mut replica.frozen {
                frozen.extents = map(frozen.row.number);
            }
            for (owner, slot) in self.rivals.iter().filter(|(owner, _)| owner.birth == birth) {
                let Some(map) = replica.map_of_mut(owner.layer) else { continue };
                // Only damage leaves two, unless the other was taken away meanwhile.
                match map.get(owner.extent) {
                    None => drop(map.insert(owner.extent, *slot)),
                    Some(_) => drop(stale.insert(id)),
                }
            }
            // The row does not know them: it was lost, and an older one counts.
            let strays = self.maps.range((birth, 0)..=(birth, u16::MAX));
            let strays = strays.filter(|(_, map)| map.len() > 0);
            replica.strays = strays.map(|(&(_, number), _)| number).collect();
        }
    }

    fn finish_v1(&mut self) {
        for slot in self.described_slots() {
            let Some(owner) = self.table.descriptor(slot).owner() else { continue };
            let is_empty = newest_change(&self.table, slot).is_none();
            let Some(replica) = self.table.replicas.get_mut(&owner.replica) else {
                self.release_v1(slot);
                continue;
            };
            // Only damage leaves an empty slot, or two of an extent.
            let rival = replica.extents.get(owner.extent);
            if is_empty {
                self.release_v1(slot);
            } else if let Some(rival) = rival {
                let keep_new = newest_change(&self.table, slot) > newest_change(&self.table, rival);
                if keep_new {
                    let replica = self.table.replicas.get_mut(&owner.replica).expect("found above");
                    replica.extents.insert(owner.extent, slot);
                }
                self.release_v1(if keep_new { rival } else { slot });
            } else {
                replica.extents.insert(owner.extent, slot);
            }
        }
    }

    /// Only after damage: nothing on the drive says that the slot is free.
    fn release_v1(&mut self, slot: u32) {
        let lsn = self.table.page_lsn(self.table.descriptor_page(slot));
        self.table.put_free(lsn, slot);
    }
}

/// `None`: it holds nothing.
fn newest_change(table: &Table, slot: u32) -> Option<ModSeq> {
    let descriptor: Descriptor<'_> = table.descriptor(slot);
    let used = (0..table.layout.slot_units()).filter(|&unit| descriptor.valid(unit) != 0);
    used.map(|unit| descriptor.mod_seq(unit)).max()
}

impl Table {
    fn insert_replica(&mut self, index: u32, row: &ReplicaRow) {
        let (lsn, was_dirty) = (self.page_lsn(index), self.dirty.contains_key(&index));
        self.put_replica(lsn, index, row);
        self.put_layers(row);
        if !was_dirty {
            self.dirty.remove(&index);
        }
    }

    /// As its map page in memory says.
    fn slot_owner(&mut self, slot: u32) -> Option<SlotOwner> {
        let (page, slot_blocks) = (self.owner_page(slot), self.layout.slot_blocks);
        let (group, index) = (slot / self.per_page % self.groups, slot % self.per_page);
        let body = &self.frame_mut(page).body[..];
        MapPage { body, slot_blocks }.owner(group, index)
    }

    /// The LSN of the replica's row.
    pub fn row_lsn(&self, replica: ReplicaId) -> u64 {
        self.page_lsn(self.replicas[&replica].index)
    }
}
