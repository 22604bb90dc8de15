//! Pages: the replica table and the slot descriptors, each page with two halves on the drive.
//!
//! ```text
//!  0 magic u32     4 version u16   6 kind u16      8 page u32   12 zero u32
//! 16 uuid [16]    32 LSN u64      40 checkpoint u64   48 zero [12]
//! 60 CRC32C of the page without these four bytes
//! 64 body
//! ```
//!
//! The bodies of map and descriptor pages are also how the engine keeps them in memory; the
//! accessors here and in [`super::map`] work on them in place.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use model::{epoch::ModSeq, id::ReplicaId};

use super::{
    BLOCK_LEN, COUNT_LIMIT, DiskError, DriveUuid, FormatVersion, LSN_LIMIT, REPLICA_BYTES_MAX,
    UNIT_BLOCKS, layers::Layers, map::BIRTH_LIMIT,
};

pub const PAGE_HEADER_LEN: usize = 64;
pub const PAGE_BODY_LEN: usize = BLOCK_LEN - PAGE_HEADER_LEN;
/// Longest metadata blob of a replica.
pub const META_LEN_MAX: usize = 3072;

pub const MAGIC: u32 = 0x3150_4c50; // "PLP1" on the drive.
const VERSION: u16 = 1;
const DESCRIPTOR_HEAD_LEN: usize = 16;
const UNIT_LEN: usize = 80;
const UNIT_CRCS: usize = 16;
const USED: u8 = 1;
/// Of a replica's row, before its metadata.
const REPLICA_HEAD_LEN: usize = 128;
const REPLICA_HEAD_LEN_V1: usize = 24;

const _: () = assert!(REPLICA_HEAD_LEN + META_LEN_MAX <= PAGE_BODY_LEN);
const _: () = assert!(UNIT_LEN == UNIT_CRCS + 4 * UNIT_BLOCKS as usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageKind {
    Replica = 1,
    Descriptors = 2,
    Map = 3,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHeader {
    pub kind: PageKind,
    pub page: u32,
    /// Every record up to this one has been applied to the page.
    pub lsn: u64,
    /// In which checkpoint this half was written.
    pub checkpoint: u64,
}

pub fn encode_page(uuid: DriveUuid, header: &PageHeader, body: &[u8]) -> Bytes {
    assert!(body.len() <= PAGE_BODY_LEN, "page body of {} bytes", body.len());
    let mut out = BytesMut::with_capacity(BLOCK_LEN);
    out.put_u32_le(MAGIC);
    out.put_u16_le(VERSION);
    out.put_u16_le(header.kind as u16);
    out.put_u32_le(header.page);
    out.put_u32_le(0);
    out.put_slice(&uuid.0);
    out.put_u64_le(header.lsn);
    out.put_u64_le(header.checkpoint);
    out.put_bytes(0, PAGE_HEADER_LEN - out.len());
    out.put_slice(body);
    out.resize(BLOCK_LEN, 0);
    let crc = page_crc(&out);
    out[60..64].copy_from_slice(&crc.to_le_bytes());
    out.freeze()
}

/// Checks a half and returns its header and body.
pub fn decode_page(
    uuid: DriveUuid,
    kind: PageKind,
    page: u32,
    bytes: &[u8],
) -> Result<(PageHeader, &[u8]), DiskError> {
    if bytes.len() != BLOCK_LEN {
        return Err(DiskError::Short);
    }
    let (mut head, body) = bytes.split_at(PAGE_HEADER_LEN);
    if head.get_u32_le() != MAGIC {
        return Err(DiskError::Magic);
    }
    if page_crc(bytes) != stored_crc(bytes) {
        return Err(DiskError::Crc);
    }
    let version = head.get_u16_le();
    if version != VERSION {
        return Err(DiskError::Version(version));
    }
    let found = (head.get_u16_le(), head.get_u32_le());
    head.advance(4);
    if found != (kind as u16, page) || head[..16] != uuid.0 {
        return Err(DiskError::Foreign);
    }
    head.advance(16);
    let (lsn, checkpoint) = (head.get_u64_le(), head.get_u64_le());
    if lsn >= LSN_LIMIT || checkpoint >= COUNT_LIMIT {
        return Err(DiskError::Field("count"));
    }
    Ok((PageHeader { kind, page, lsn, checkpoint }, body))
}

fn page_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..60]), &bytes[64..])
}

/// The checksum that a half carries.
pub fn stored_crc(half: &[u8]) -> u32 {
    u32::from_le_bytes(half[60..64].try_into().expect("four bytes"))
}

/// What a half contributes to the superblock's fingerprint of all pages: recovery thereby finds
/// out when the half that was written last has been lost.
pub fn fingerprint(half: &[u8]) -> u64 {
    assert_eq!(half.len(), BLOCK_LEN);
    let word = |at: usize| u64::from_le_bytes(half[at..at + 8].try_into().expect("eight bytes"));
    // Page, LSN, checkpoint and CRC, mixed as splitmix64 does.
    let mut mixed = 0u64;
    for part in [word(8), word(32), word(40), word(56)] {
        mixed = (mixed ^ part).wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
    }
    mixed
}

pub fn descriptor_len(slot_blocks: u32) -> usize {
    let units = usize::try_from(slot_blocks / UNIT_BLOCKS).expect("a slot is small");
    DESCRIPTOR_HEAD_LEN + units * UNIT_LEN
}

pub fn descriptors_per_page(slot_blocks: u32) -> u32 {
    u32::try_from(PAGE_BODY_LEN / descriptor_len(slot_blocks)).expect("a page is small")
}

/// Who owns a slot: a replica, and which slot-sized extent of which layer of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    pub replica: ReplicaId,
    /// Number of the layer.
    pub layer: u16,
    pub extent: u32,
}

/// A slot's descriptor in a page body.
///
/// ```text
///  0 replica u64   8 extent u32   12 state u8 (0 free, 1 used)   13 zero [3]
/// 16 per unit: mod_seq u64, valid u16, lost u16, cleared u16, zero [2], CRC32C u32 × 16
/// ```
///
/// Invariants: a lost block is valid, a cleared one is not; a unit with neither valid nor cleared
/// blocks has `mod_seq` zero.
#[derive(Debug, Clone, Copy)]
pub struct Descriptor<'a>(pub &'a [u8]);

impl Descriptor<'_> {
    /// In which layer is not said here.
    pub fn owner(self) -> Option<Owner> {
        let mut head = &self.0[..DESCRIPTOR_HEAD_LEN];
        let (replica, extent) = (head.get_u64_le(), head.get_u32_le());
        let replica = ReplicaId::from_raw(replica);
        (head.get_u8() == USED).then_some(Owner { replica, layer: 0, extent })
    }

    pub fn mod_seq(self, unit: u32) -> ModSeq {
        let at = unit_at(unit);
        let raw = self.0[at..at + 8].try_into().expect("eight bytes");
        ModSeq::from_raw(u64::from_le_bytes(raw))
    }

    pub fn valid(self, unit: u32) -> u16 {
        let at = unit_at(unit) + 8;
        u16::from_le_bytes(self.0[at..at + 2].try_into().expect("two bytes"))
    }

    pub fn is_valid(self, block: u32) -> bool {
        self.valid(block / UNIT_BLOCKS) >> (block % UNIT_BLOCKS) & 1 == 1
    }

    /// Blocks of which nothing is known any more, because the page that described them was lost.
    pub fn lost(self, unit: u32) -> u16 {
        let at = unit_at(unit) + 10;
        u16::from_le_bytes(self.0[at..at + 2].try_into().expect("two bytes"))
    }

    /// Blocks that read as zeros, whatever older layers have.
    pub fn cleared(self, unit: u32) -> u16 {
        let at = unit_at(unit) + 12;
        u16::from_le_bytes(self.0[at..at + 2].try_into().expect("two bytes"))
    }

    pub fn is_lost(self, block: u32) -> bool {
        self.lost(block / UNIT_BLOCKS) >> (block % UNIT_BLOCKS) & 1 == 1
    }

    /// Of a block of the slot; meaningless unless it is valid.
    pub fn crc(self, block: u32) -> u32 {
        let at = crc_at(block);
        u32::from_le_bytes(self.0[at..at + 4].try_into().expect("four bytes"))
    }
}

/// [`Descriptor`], to change.
#[derive(Debug)]
pub struct DescriptorMut<'a>(pub &'a mut [u8]);

impl DescriptorMut<'_> {
    pub fn view(&self) -> Descriptor<'_> {
        Descriptor(self.0)
    }

    pub fn set_free(&mut self) {
        self.0.fill(0);
    }

    /// Owned, with no valid block.
    pub fn set_owner(&mut self, owner: Owner) {
        self.0.fill(0);
        self.0[..8].copy_from_slice(&owner.replica.raw().to_le_bytes());
        self.0[8..12].copy_from_slice(&owner.extent.to_le_bytes());
        self.0[12] = USED;
    }

    pub fn set_mod_seq(&mut self, unit: u32, mod_seq: ModSeq) {
        let at = unit_at(unit);
        self.0[at..at + 8].copy_from_slice(&mod_seq.raw().to_le_bytes());
    }

    pub fn set_valid(&mut self, unit: u32, valid: u16) {
        let at = unit_at(unit) + 8;
        self.0[at..at + 2].copy_from_slice(&valid.to_le_bytes());
    }

    pub fn set_lost(&mut self, unit: u32, lost: u16) {
        let at = unit_at(unit) + 10;
        self.0[at..at + 2].copy_from_slice(&lost.to_le_bytes());
    }

    pub fn set_cleared(&mut self, unit: u32, cleared: u16) {
        let at = unit_at(unit) + 12;
        self.0[at..at + 2].copy_from_slice(&cleared.to_le_bytes());
    }

    pub fn set_crc(&mut self, block: u32, crc: u32) {
        let at = crc_at(block);
        self.0[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    }
}

fn unit_at(unit: u32) -> usize {
    let unit = usize::try_from(unit).expect("an index in a slot");
    DESCRIPTOR_HEAD_LEN + unit * UNIT_LEN
}

fn crc_at(block: u32) -> usize {
    let index = usize::try_from(block % UNIT_BLOCKS).expect("below 16");
    unit_at(block / UNIT_BLOCKS) + UNIT_CRCS + 4 * index
}

/// A row of the replica table: one page each.
///
/// ```text
///  0 replica u64   8 size u64   16 metadata length u16   18 state u8 (0 none, 1 used)   19 zero [5]
/// 24 birth u64    32 layers [96], see [`super::layers`]
/// 128 metadata
/// ```
///
/// In version 1 the metadata begins at 24 and there is no birth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaRow {
    pub replica: ReplicaId,
    pub size: u64,
    /// LSN of the record that made the replica: what its extents are owned by, so that an id that
    /// comes again finds nothing of its former life. Zero in version 1.
    pub birth: u64,
    /// None in version 1.
    pub layers: Layers,
    pub meta: Bytes,
}

/// The body of a replica's page; `None` for a row that is not used.
pub fn encode_row(version: FormatVersion, row: Option<&ReplicaRow>) -> Bytes {
    let Some(row) = row else { return Bytes::new() };
    assert!(row.meta.len() <= META_LEN_MAX, "metadata of {} bytes", row.meta.len());
    let mut out = BytesMut::with_capacity(REPLICA_HEAD_LEN + row.meta.len());
    out.put_u64_le(row.replica.raw());
    out.put_u64_le(row.size);
    out.put_u16_le(u16::try_from(row.meta.len()).expect("asserted above"));
    out.put_u8(USED);
    out.put_bytes(0, 5);
    if version.has_maps() {
        out.put_u64_le(row.birth);
        row.layers.put(&mut out);
    }
    out.put_slice(&row.meta);
    out.freeze()
}

pub fn decode_row(version: FormatVersion, body: &[u8]) -> Result<Option<ReplicaRow>, DiskError> {
    let head_len = if version.has_maps() { REPLICA_HEAD_LEN } else { REPLICA_HEAD_LEN_V1 };
    if body.len() < head_len {
        return Err(DiskError::Short);
    }
    let (mut head, rest) = body.split_at(head_len);
    let replica = ReplicaId::from_raw(head.get_u64_le());
    let size = head.get_u64_le();
    let len = usize::from(head.get_u16_le());
    let used = head.get_u8();
    head.advance(5);
    if used != USED {
        return Ok(None);
    }
    let (birth, layers) = match version {
        FormatVersion::V1 => (0, Layers::default()),
        FormatVersion::V2 | FormatVersion::V3 => (head.get_u64_le(), Layers::take(head)?),
    };
    if len > META_LEN_MAX || len > rest.len() {
        return Err(DiskError::Field("metadata length"));
    }
    if size > REPLICA_BYTES_MAX {
        return Err(DiskError::Field("replica size"));
    }
    if birth >= BIRTH_LIMIT || birth == 0 && version.has_maps() {
        return Err(DiskError::Field("birth"));
    }
    let meta = Bytes::copy_from_slice(&rest[..len]);
    Ok(Some(ReplicaRow { replica, size, birth, layers, meta }))
}
