//! Map pages: who owns each slot, and which half of each descriptor page counts.
//!
//! A map page covers a fixed number of descriptor pages, one *group* each:
//!
//! ```text
//!  0 LSN u64   8 CRC32C u32   12 half u8 (0 A, 1 B, 255 never written)   13 zero [3]
//! 16 per slot: extent u32, layer u16, birth [6]
//! ```
//!
//! LSN and CRC are those of the half of the descriptor page that counts. A slot whose birth is
//! zero, or that of no replica in the table, is free: so a replica goes with its row alone.

use super::page::{PAGE_BODY_LEN, descriptors_per_page};

/// Births are kept in six bytes.
pub const BIRTH_LIMIT: u64 = 1 << 48;

const GROUP_HEAD_LEN: usize = 16;
const OWNER_LEN: usize = 12;
const NEVER: u8 = 255;

/// What a map page says of a descriptor page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageEntry {
    /// Every record up to this one is in the half that counts.
    pub lsn: u64,
    /// What that half carries.
    pub crc: u32,
    /// `None`: never written, so no slot of it was ever used.
    pub half: Option<u8>,
}

impl PageEntry {
    pub const NONE: Self = Self { lsn: 0, crc: 0, half: None };
}

/// Who owns a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlotOwner {
    /// See [`super::page::ReplicaRow::birth`].
    pub birth: u64,
    pub extent: u32,
    pub layer: u16,
}

fn group_len(slot_blocks: u32) -> usize {
    let slots = usize::try_from(descriptors_per_page(slot_blocks)).expect("a page is small");
    GROUP_HEAD_LEN + slots * OWNER_LEN
}

/// Descriptor pages that a map page covers.
pub fn groups_per_page(slot_blocks: u32) -> u32 {
    u32::try_from(PAGE_BODY_LEN / group_len(slot_blocks)).expect("a page is small")
}

/// The body of a map page.
#[derive(Debug, Clone, Copy)]
pub struct MapPage<'a> {
    pub body: &'a [u8],
    pub slot_blocks: u32,
}

impl MapPage<'_> {
    pub fn entry(self, group: u32) -> PageEntry {
        let at = group_at(self.slot_blocks, group);
        let head = &self.body[at..at + GROUP_HEAD_LEN];
        let half = head[12];
        PageEntry {
            lsn: u64::from_le_bytes(head[..8].try_into().expect("eight bytes")),
            crc: u32::from_le_bytes(head[8..12].try_into().expect("four bytes")),
            half: (half < 2).then_some(half),
        }
    }

    /// `None`: nobody ever owned it, or whoever did gave it back.
    pub fn owner(self, group: u32, index: u32) -> Option<SlotOwner> {
        let at = owner_at(self.slot_blocks, group, index);
        let bytes = &self.body[at..at + OWNER_LEN];
        let mut birth = [0; 8];
        birth[..6].copy_from_slice(&bytes[6..12]);
        let owner = SlotOwner {
            birth: u64::from_le_bytes(birth),
            extent: u32::from_le_bytes(bytes[..4].try_into().expect("four bytes")),
            layer: u16::from_le_bytes(bytes[4..6].try_into().expect("two bytes")),
        };
        (owner.birth != 0).then_some(owner)
    }
}

/// [`MapPage`], to change.
#[derive(Debug)]
pub struct MapPageMut<'a> {
    pub body: &'a mut [u8],
    pub slot_blocks: u32,
}

impl MapPageMut<'_> {
    /// A page all of whose groups were never written.
    pub fn clear(&mut self) {
        self.body.fill(0);
        for group in 0..groups_per_page(self.slot_blocks) {
            self.set_entry(group, PageEntry::NONE);
        }
    }

    pub fn set_entry(&mut self, group: u32, entry: PageEntry) {
        let at = group_at(self.slot_blocks, group);
        let head = &mut self.body[at..at + GROUP_HEAD_LEN];
        head[..8].copy_from_slice(&entry.lsn.to_le_bytes());
        head[8..12].copy_from_slice(&entry.crc.to_le_bytes());
        head[12] = entry.half.unwrap_or(NEVER);
    }

    pub fn set_owner(&mut self, group: u32, index: u32, owner: Option<SlotOwner>) {
        let at = owner_at(self.slot_blocks, group, index);
        let bytes = &mut self.body[at..at + OWNER_LEN];
        bytes.fill(0);
        if let Some(SlotOwner { birth, extent, layer }) = owner {
            assert!(birth > 0 && birth < BIRTH_LIMIT, "birth {birth}");
            bytes[..4].copy_from_slice(&extent.to_le_bytes());
            bytes[4..6].copy_from_slice(&layer.to_le_bytes());
            bytes[6..12].copy_from_slice(&birth.to_le_bytes()[..6]);
        }
    }
}

fn group_at(slot_blocks: u32, group: u32) -> usize {
    usize::try_from(group).expect("a page is small") * group_len(slot_blocks)
}

fn owner_at(slot_blocks: u32, group: u32, index: u32) -> usize {
    let index = usize::try_from(index).expect("a page is small");
    group_at(slot_blocks, group) + GROUP_HEAD_LEN + index * OWNER_LEN
}
