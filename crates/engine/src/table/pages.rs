//! The table's pages: which are in memory, which have changed, and their images for the drive.
//!
//! Decides: how much memory pages may take, what a page that was lost becomes.
//! Does not: know when pages are read or written (`fetch`, `writeback`).
//! Invariants: a page that changed is in memory until its image is on the drive; an image goes to
//! the half that does not count; a page that is lost makes its blocks unreadable, never zeros.

use std::collections::BTreeSet;

use bytes::Bytes;
use format::disk::{
    DriveUuid, UNIT_BLOCKS,
    map::{MapPage, MapPageMut, PageEntry, SlotOwner},
    page::{self, DescriptorMut, PAGE_BODY_LEN, PageHeader, PageKind},
};
use model::epoch::ModSeq;

use crate::sabotage::{Sabotage, is_on};

use super::{ExtentMap, FRAME_BYTES, REPLICA_BYTES, Table, at, cache::Frame};

/// Whatever the bound on memory: fewer pages would keep requests from going on.
const FRAMES_MIN: u64 = 16;

/// What became of a page that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetched {
    Whole,
    /// It is not what was written: nothing is known of the blocks it described.
    Lost,
}

// Memory.
impl Table {
    /// Bytes of memory, about.
    pub fn memory(&self) -> u64 {
        self.memory_without_frames() + u64::try_from(self.cache.len()).expect("fits") * FRAME_BYTES
    }

    pub fn memory_max(&self) -> u64 {
        self.memory_max
    }

    fn memory_without_frames(&self) -> u64 {
        let fits = |bytes: usize| u64::try_from(bytes).expect("fits");
        let index = fits(self.pages.len() * size_of::<super::Page>())
            + fits(self.entries.len() * size_of::<PageEntry>())
            + u64::from(self.layout.pages()) * 4;
        self.replicas_memory + index
    }

    /// Whether a replica of this size still fits the bound on memory, fully written as all others.
    pub fn admits(&self, size: u64) -> bool {
        let extents = self.extents_max + size.div_ceil(self.layout.slot_bytes());
        // More than there are slots cannot be used.
        let extents = extents.min(u64::from(self.layout.slots));
        let replicas = u64::try_from(self.replicas.len()).expect("fits") + 1;
        let index = u64::from(self.layout.pages()) * 20;
        let wanted = ExtentMap::memory_of(extents)
            + replicas * (REPLICA_BYTES + 64)
            + index
            + FRAMES_MIN * FRAME_BYTES;
        wanted <= self.memory_max
    }

    /// Pages that may be in memory: what the maps leave.
    fn frames_max(&self) -> usize {
        if self.is_recovering {
            return usize::MAX;
        }
        if !self.has_maps() {
            // Its descriptors say who owns slots: all of them stay.
            return usize::MAX;
        }
        let left = self.memory_max.saturating_sub(self.memory_without_frames());
        usize::try_from((left / FRAME_BYTES).max(FRAMES_MIN)).expect("fits memory")
    }

    /// Pages that may have changed at once; more wait for the drive.
    pub fn dirty_max(&self) -> usize {
        (self.frames_max() / 2).max(1)
    }

    /// Pages that requests may wait with at once.
    pub fn pinned_max(&self) -> usize {
        self.frames_max() / 4
    }

    pub fn dirty_pages(&self) -> usize {
        self.dirty.len()
    }

    pub fn lost_pages(&self) -> u64 {
        self.lost_pages
    }
}

// In memory or not.
impl Table {
    /// Whether the page must be read before it is looked at or changed. Rows are in memory, in the
    /// form of their replicas.
    pub fn is_absent(&self, page: u32) -> bool {
        self.layout.kind_of(page) != PageKind::Replica
            && !self.cache.holds(page)
            && self.place_on_drive(page).is_some()
    }

    /// Where the image that counts lies; `None`: it was never written.
    pub fn place_on_drive(&self, page: u32) -> Option<u64> {
        let half = match self.layout.kind_of(page) {
            PageKind::Descriptors if self.has_maps() => self.entry(page).half?,
            _ => self.pages.get(at(page)).filter(|p| p.fingerprint != 0)?.half,
        };
        Some(self.layout.page_offset(page, half))
    }

    fn entry(&self, page: u32) -> PageEntry {
        self.entries[at(page - self.layout.first_descriptor_page())]
    }

    pub fn page_lsn(&self, page: u32) -> u64 {
        match (self.cache.get(page), self.layout.kind_of(page)) {
            (Some(frame), _) => frame.lsn,
            (None, PageKind::Descriptors) if self.has_maps() => self.entry(page).lsn,
            _ => self.pages[at(page)].lsn,
        }
    }

    /// Returns whether the page is in memory; one that was never written need not be.
    pub fn pin(&mut self, page: u32) -> bool {
        self.cache.pin(page)
    }

    pub fn unpin(&mut self, page: u32) {
        self.cache.unpin(page);
    }

    pub fn pinned(&self) -> usize {
        self.cache.pinned()
    }

    /// To be changed. It is in memory, or was never written.
    pub(super) fn frame_mut(&mut self, page: u32) -> &mut Frame {
        if !self.cache.holds(page) {
            assert!(!self.is_absent(page), "page {page} is not in memory");
            self.add_frame(page);
        }
        self.cache.get_mut(page).expect("it was added")
    }

    fn add_frame(&mut self, page: u32) -> &mut Frame {
        let (lsn, max) = (self.page_lsn(page), self.frames_max());
        let slot_blocks = self.layout.slot_blocks;
        let is_map = self.layout.kind_of(page) == PageKind::Map;
        let frame = self.cache.add(page, lsn, max);
        if is_map {
            MapPageMut { body: &mut frame.body[..], slot_blocks }.clear();
        }
        frame
    }

    /// A page came back from the drive; `image` is `None` where it could not be read.
    pub fn fetched(&mut self, uuid: DriveUuid, page: u32, image: Option<&[u8]>) -> Fetched {
        assert!(!self.cache.holds(page), "page {page} was read twice");
        let kind = self.layout.kind_of(page);
        let whole = image.filter(|image| {
            page::decode_page(uuid, kind, page, image).is_ok() && self.is_what_counts(page, image)
        });
        self.add_frame(page);
        let frame = self.cache.get_mut(page).expect("it was added");
        if let Some(image) = whole {
            frame.body.copy_from_slice(&image[page::PAGE_HEADER_LEN..]);
            return Fetched::Whole;
        }
        self.lost_pages += 1;
        match kind {
            PageKind::Map => self.remake_map(page),
            _ => self.lose_descriptors(page),
        }
        Fetched::Lost
    }

    fn is_what_counts(&self, page: u32, image: &[u8]) -> bool {
        match self.layout.kind_of(page) {
            PageKind::Descriptors if self.has_maps() => {
                self.entry(page).crc == page::stored_crc(image)
            }
            _ => self.pages[at(page)].fingerprint == page::fingerprint(image),
        }
    }

    /// Every block of every slot of the page may hold anything.
    fn lose_descriptors(&mut self, page: u32) {
        let (units, len) = (self.layout.slot_units(), self.descriptor_len);
        let per_page = usize::try_from(self.per_page).expect("a page is small");
        let frame = self.cache.get_mut(page).expect("the caller has it");
        for bytes in frame.body.chunks_exact_mut(len).take(per_page) {
            let mut descriptor = DescriptorMut(bytes);
            for unit in 0..units {
                descriptor.set_mod_seq(unit, ModSeq::NONE);
                descriptor.set_valid(unit, u16::MAX);
                descriptor.set_lost(unit, u16::MAX);
                descriptor.set_cleared(unit, 0);
            }
        }
    }

    /// The maps in memory say the same.
    fn remake_map(&mut self, page: u32) {
        let slots_of_page = self.groups * self.per_page;
        let first = (page - self.layout.replica_pages) * slots_of_page;
        let here = first..first.saturating_add(slots_of_page);
        let mut owners = Vec::new();
        for replica in self.replicas.values() {
            let birth = replica.birth;
            for (layer, map) in replica.maps() {
                let extents = map.iter().filter(|(_, slot)| here.contains(slot));
                let owned =
                    extents.map(|(extent, slot)| (slot, SlotOwner { birth, extent, layer }));
                owners.extend(owned);
            }
        }
        let (per_page, slot_blocks) = (self.per_page, self.layout.slot_blocks);
        let frame = self.cache.get_mut(page).expect("the caller has it");
        let mut map = MapPageMut { body: &mut frame.body[..], slot_blocks };
        for (slot, owner) in owners {
            let index = slot - first;
            map.set_owner(index / per_page, index % per_page, Some(owner));
        }
        // So that the drive has it again.
        self.dirty.insert(page, 0);
        self.cache.get_mut(page).expect("the caller has it").dirty = true;
    }
}

// Changed pages and their images.
impl Table {
    pub(super) fn touch(&mut self, page: u32, lsn: u64) {
        match self.layout.kind_of(page) {
            PageKind::Replica => self.pages[at(page)].lsn = lsn,
            PageKind::Map | PageKind::Descriptors => {
                let frame = self.frame_mut(page);
                frame.lsn = lsn;
                frame.dirty = true;
            }
        }
        self.dirty.entry(page).or_insert(lsn);
    }

    pub(super) fn touch_slot(&mut self, slot: u32, lsn: u64) {
        self.touch(self.descriptor_page(slot), lsn);
    }

    /// Pages that a cycle writes, because their images lack a record up to `cut`: descriptors, then
    /// the rest, among it the maps that say which half of the descriptors counts. Pages before the
    /// last one that were never written come with them, so that what lies before
    /// [`Self::pages_written`] is ours.
    pub fn dirty(&mut self, cut: u64) -> (BTreeSet<u32>, BTreeSet<u32>) {
        let first = self.layout.first_descriptor_page();
        let old = self.dirty.iter().filter(|&(_, &lacks)| lacks <= cut);
        let mut rest: BTreeSet<u32> = old.map(|(&page, _)| page).collect();
        let mut descriptors = rest.split_off(&first);
        let (kind_first, end) = if self.has_maps() {
            let maps = descriptors.iter().map(|&page| self.map_page(page - first));
            rest.extend(maps.filter(|_| !is_on(Sabotage::MapLeftBehind)));
            (self.layout.replica_pages, rest.last().map_or(0, |&last| last + 1))
        } else {
            (first, descriptors.last().map_or(0, |&last| last + 1))
        };
        let end = end.saturating_sub(kind_first);
        let skipped = kind_first + self.written..kind_first + end;
        if self.has_maps() {
            rest.extend(skipped)
        } else {
            descriptors.extend(skipped)
        }
        self.written = self.written.max(end);
        (descriptors, rest)
    }

    /// Counts pages that [`Self::dirty`] has returned as written.
    pub fn pages_written(&self) -> u32 {
        self.written
    }

    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The page's image for its other half, and where that lies. It is in memory.
    pub fn capture(&mut self, uuid: DriveUuid, page: u32, checkpoint: u64) -> (u64, Bytes) {
        let kind = self.layout.kind_of(page);
        let lsn = self.page_lsn(page);
        let header = PageHeader { kind, page, lsn, checkpoint };
        let image = match kind {
            PageKind::Replica => {
                let row = page::encode_row(self.layout.version, self.row(page).as_ref());
                page::encode_page(uuid, &header, &row)
            }
            PageKind::Map => page::encode_page(uuid, &header, &self.map_body(page)),
            PageKind::Descriptors => {
                page::encode_page(uuid, &header, &self.frame_mut(page).body[..])
            }
        };
        self.dirty.remove(&page);
        if let Some(frame) = self.cache.get_mut(page) {
            frame.dirty = false;
            frame.writing = true;
        }
        let half = if kind == PageKind::Descriptors && self.has_maps() {
            let entry = &mut self.entries[at(page - self.layout.first_descriptor_page())];
            let half = other_half(entry.half.unwrap_or(1));
            *entry = PageEntry { lsn, crc: page::stored_crc(&image), half: Some(half) };
            half
        } else {
            let entry = &mut self.pages[at(page)];
            entry.half = other_half(entry.half);
            entry.lsn = lsn;
            let fingerprint = page::fingerprint(&image);
            self.fingerprint ^= entry.fingerprint ^ fingerprint;
            entry.fingerprint = fingerprint;
            entry.half
        };
        (self.layout.page_offset(page, half), image)
    }

    /// Owners as the frame has them, entries as they are now.
    fn map_body(&mut self, page: u32) -> [u8; PAGE_BODY_LEN] {
        let (slot_blocks, groups) = (self.layout.slot_blocks, self.groups);
        let first = at((page - self.layout.replica_pages) * groups);
        let mut body = *self.frame_mut(page).body;
        let mut map = MapPageMut { body: &mut body, slot_blocks };
        for (group, entry) in (0..groups).zip(self.entries[first..].iter().take(at(groups))) {
            map.set_entry(group, *entry);
        }
        body
    }

    /// The image is on the drive.
    pub fn page_written(&mut self, page: u32) {
        if let Some(frame) = self.cache.get_mut(page) {
            frame.writing = false;
        }
    }

    /// For recovery: what the map page says.
    pub(super) fn take_entries(&mut self, page: u32, body: &[u8]) {
        let map = MapPage { body, slot_blocks: self.layout.slot_blocks };
        let first = (page - self.layout.replica_pages) * self.groups;
        for group in 0..self.groups.min(self.layout.descriptor_pages - first) {
            self.entries[at(first + group)] = map.entry(group);
        }
    }
}

/// The one that does not count.
fn other_half(half: u8) -> u8 {
    if is_on(Sabotage::PageInPlace) { half } else { 1 - half }
}

const _: () = assert!(UNIT_BLOCKS == 16, "a lost mask has 16 bits");
