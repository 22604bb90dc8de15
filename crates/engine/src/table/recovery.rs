//! The table while a drive is recovered: records are applied page by page, and the map from extents
//! to slots is built at the end.
//!
//! Invariant: a record changes nothing on a page that has seen it; what the drive returned is not
//! trusted to be free of contradiction.

use std::collections::BTreeSet;

use format::disk::{
    journal::{PlacedUnit, Record},
    page::{self, Descriptor, PageHeader, PageKind, ReplicaRow},
};
use model::{epoch::ModSeq, id::ReplicaId};

use super::{BlockRun, Page, Table};

impl Table {
    /// How many descriptor pages there are to load.
    pub fn expect_pages(&mut self, written: u32) {
        assert!(written <= self.layout.descriptor_pages);
        self.written = written;
    }

    /// Takes a page as it was found; `half` is the one that counts. Returns whether its body made
    /// sense.
    pub fn load(&mut self, header: &PageHeader, half: u8, image: &[u8], body: &[u8]) -> bool {
        let fingerprint = page::fingerprint(image);
        let at = usize::try_from(header.page).expect("fits memory");
        self.pages[at] = Page { lsn: header.lsn, half, fingerprint };
        self.fingerprint ^= fingerprint;
        if header.kind == PageKind::Descriptors {
            let index = usize::try_from(header.page - self.layout.replica_pages);
            let body = body.try_into().expect("checked by the decoder");
            self.bodies[index.expect("fits memory")] = Some(Box::new(body));
            return true;
        }
        match page::decode_row(body) {
            Ok(Some(row)) => drop(self.recovered.insert(header.page, row)),
            Ok(None) => {}
            Err(_) => return false,
        }
        true
    }

    /// Both halves of the page are lost: it is written again.
    pub fn load_lost(&mut self, page: u32) {
        self.dirty.insert(page);
    }

    /// Whether the record names slots and rows that exist. What the drive returns is not trusted.
    pub fn is_sound(&self, record: &Record) -> bool {
        let slot_ok = |slot: u32| slot < self.layout.slots;
        let blocks_ok = |first: u32, count: u32| first + count <= self.layout.slot_blocks;
        let unit_ok = |unit: u32| unit < self.layout.slot_units();
        match record {
            Record::Data { slot, first, crcs, .. } => {
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
                *index < self.layout.replica_pages
            }
            Record::Seal => true,
        }
    }

    /// Applies a sound record to every page that has not seen it.
    pub fn replay(&mut self, lsn: u64, record: &Record) {
        match record {
            Record::Data { slot, owner, fresh, mod_seq, first, crcs } => {
                if self.is_new(*slot, lsn) {
                    let (slot, owner, fresh) = (*slot, *owner, *fresh);
                    let (mod_seq, first) = (*mod_seq, *first);
                    self.put_blocks(lsn, &BlockRun { slot, owner, fresh, mod_seq, first, crcs });
                }
            }
            Record::Set { slot, owner, fresh, unit, mod_seq, valid, crcs } => {
                if self.is_new(*slot, lsn) {
                    let (mod_seq, valid, crcs) = (*mod_seq, *valid, crcs.clone());
                    let placed = PlacedUnit { unit: *unit, mod_seq, valid, crcs };
                    self.put_unit(lsn, *slot, *owner, *fresh, &placed);
                }
            }
            Record::Place { slot, owner, old, units } => {
                if let Some(old) = old.filter(|&old| self.is_new(old, lsn)) {
                    self.put_free(lsn, old);
                }
                // The two slots may share the page, whose LSN has then moved already.
                let shared = old.is_some_and(|old| self.page_of(old) == self.page_of(*slot));
                if self.is_new(*slot, lsn) || shared && self.page(self.page_of(*slot)).lsn == lsn {
                    self.put_placed(lsn, *slot, *owner, units);
                }
            }
            Record::Clear { slot, mod_seq, first, count, .. } => {
                if self.is_new(*slot, lsn) {
                    self.clear(lsn, *slot, *first, *count, *mod_seq);
                }
            }
            Record::Free { slot, .. } => {
                if self.is_new(*slot, lsn) {
                    self.put_free(lsn, *slot);
                }
            }
            Record::Replica { index, replica, size, meta } => {
                if lsn > self.page_lsn(*index) {
                    let (replica, size, meta) = (*replica, *size, meta.clone());
                    self.recovered.insert(*index, ReplicaRow { replica, size, meta });
                    self.touch(*index, lsn);
                }
            }
            Record::Remove { index, replica } => self.replay_remove(lsn, *index, *replica),
            Record::Seal => {}
        }
    }

    fn is_new(&self, slot: u32, lsn: u64) -> bool {
        lsn > self.page(self.page_of(slot)).lsn
    }

    fn replay_remove(&mut self, lsn: u64, index: u32, replica: ReplicaId) {
        if lsn > self.page_lsn(index) {
            self.recovered.remove(&index);
            self.touch(index, lsn);
        }
        for body in self.used_bodies() {
            if lsn <= self.page_lsn(self.layout.replica_pages + body) {
                continue;
            }
            for slot in body * self.per_page..(body + 1) * self.per_page {
                let owner = self.find(slot).and_then(Descriptor::owner);
                if owner.is_some_and(|o| o.replica == replica) {
                    self.put_free(lsn, slot);
                }
            }
        }
    }

    /// Builds the map from extents to slots. Returns the used slots, which it leaves without
    /// contradiction whatever the drive returned.
    pub fn index(&mut self) -> BTreeSet<u32> {
        for (index, row) in std::mem::take(&mut self.recovered) {
            // Only damage leaves a replica in two rows.
            if !self.replicas.contains_key(&row.replica) {
                self.put_replica(self.page_lsn(index), index, &row);
            }
        }
        let mut used = BTreeSet::new();
        let per_page = self.per_page;
        let slots = self.used_bodies().into_iter();
        for slot in slots.flat_map(|body| body * per_page..(body + 1) * per_page) {
            let Some(owner) = self.find(slot).and_then(Descriptor::owner) else { continue };
            let rival = self.slot_of(owner);
            if !self.replicas.contains_key(&owner.replica) || self.is_empty(slot) {
                self.release_unindexed(slot);
            } else if let Some(rival) = rival {
                let keep_new = self.newest_change(slot) > self.newest_change(rival);
                let lost = if keep_new { rival } else { slot };
                if keep_new {
                    self.disown(rival, owner);
                    self.own(slot, owner);
                    used.remove(&rival);
                    used.insert(slot);
                }
                self.release_unindexed(lost);
            } else {
                self.own(slot, owner);
                used.insert(slot);
            }
        }
        used
    }

    /// Descriptor pages with a slot that is or was used.
    fn used_bodies(&self) -> Vec<u32> {
        let used = (0..).zip(&self.bodies).filter(|(_, body)| body.is_some());
        used.map(|(index, _)| index).collect()
    }

    /// Only after damage: nothing on the drive says that the slot is free.
    fn release_unindexed(&mut self, slot: u32) {
        let lsn = self.page_lsn(self.page_of(slot));
        self.put_free(lsn, slot);
    }

    fn is_empty(&self, slot: u32) -> bool {
        let descriptor = self.descriptor(slot);
        (0..self.layout.slot_units()).all(|unit| descriptor.valid(unit) == 0)
    }

    fn newest_change(&self, slot: u32) -> ModSeq {
        let descriptor = self.descriptor(slot);
        let units = 0..self.layout.slot_units();
        units.map(|unit| descriptor.mod_seq(unit)).max().unwrap_or_default()
    }

    /// The largest `mod_seq` of any unit of the replica.
    pub fn mod_seq_max(&self, replica: ReplicaId) -> ModSeq {
        let slots = self.extents(replica, 0, u32::MAX);
        slots.map(|(_, slot)| self.newest_change(slot)).max().unwrap_or_default()
    }

    /// The LSN of the replica's row.
    pub fn row_lsn(&self, replica: ReplicaId) -> u64 {
        self.page_lsn(self.replicas[&replica].index)
    }
}
