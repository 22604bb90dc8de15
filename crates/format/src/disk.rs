//! What an engine keeps on its drive. `docs/disk.md` is the specification, byte by byte.
//!
//! Decides: where each area lies, how superblocks, pages and journal batches are encoded, and
//! whether bytes read back are this drive's and whole.
//! Does not: decide which of two valid halves counts, or what a record does.
//! Invariants: no input makes a decoder panic or allocate more than its input justifies; every
//! structure carries the drive's identity, so what an earlier format of the drive or a guest's
//! data left there is never taken for it.

pub mod apart;
pub mod journal;
pub mod layers;
pub mod map;
pub mod page;

use apart::JOURNAL_HEAD_BYTES;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use model::{
    units::{BLOCK, BLOCK_BYTES},
    volume::Media,
};

/// A drive structure is read and written in whole blocks.
pub const BLOCK_LEN: usize = BLOCK_BYTES as usize;
/// Blocks of a resync unit, which `mod_seq` belongs to on every media.
pub const UNIT_BLOCKS: u32 = 16;
pub const UNIT_BYTES: u32 = UNIT_BLOCKS * BLOCK_BYTES;
/// Superblock B lies right behind superblock A, at the head of the drive.
pub const SUPERBLOCKS_BYTES: u64 = 2 * BLOCK;
/// A journal batch is never longer, and never begins closer to the end of the journal.
pub const BATCH_BYTES_MAX: u32 = 1 << 20;
pub const JOURNAL_BYTES_MIN: u64 = 4 << 20;
pub const REPLICAS_MAX: u32 = 4096;
/// Largest replica: its extents are numbered in 32 bits on either media.
pub const REPLICA_BYTES_MAX: u64 = (u32::MAX as u64) * (UNIT_BYTES as u64);
/// Positions, checkpoints and sequences stay below, so that counting on never overflows.
pub const COUNT_LIMIT: u64 = 1 << 62;
/// LSNs stay below, so that counting on stays below [`map::BIRTH_LIMIT`] for as long as a drive
/// lives: at 100,000 records a second, 44 years more.
pub const LSN_LIMIT: u64 = map::BIRTH_LIMIT / 2;
/// CRC32C of 4 KiB of zeros.
pub const ZERO_BLOCK_CRC: u32 = 0x98f9_4189;

const SUPERBLOCK_MAGIC: u32 = 0x3153_4c50; // "PLS1" on the drive.
/// A superblock fits a sector, which no drive tears: while a drive is formatted there is no older
/// superblock to fall back to.
const SUPERBLOCK_LEN: usize = 512;
const AREA_ALIGN: u64 = 64 << 10;
/// Of a superblock: as version 2, and its flags count.
const VERSION_WITH_FLAGS: u16 = 3;
/// The journal lies apart.
const JOURNAL_APART: u16 = 1;
/// Replicas may have frozen layers.
const LAYERS: u16 = 2;

/// Why bytes are not the structure that was looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    #[error("bad magic")]
    Magic,
    #[error("format version {0} is not known here (1 to 3 are)")]
    Version(u16),
    #[error("checksum mismatch")]
    Crc,
    #[error("it belongs to another drive or another place")]
    Foreign,
    #[error("field '{0}' is out of its range")]
    Field(&'static str),
    #[error("it is cut short")]
    Short,
}

/// Of a drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FormatVersion {
    /// No map pages: descriptors say who owns their slots, and are all read when it is opened.
    V1 = 1,
    V2 = 2,
    /// As version 2, which is made this one when it is opened: replicas may have frozen layers.
    V3 = 3,
}

impl FormatVersion {
    pub fn has_maps(self) -> bool {
        self != Self::V1
    }
}

/// The identity a drive got when it was formatted. Never told to anybody, so that no guest can
/// write data that passes for a structure of the drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DriveUuid(pub [u8; 16]);

/// Where a drive's journal lies. Fixed when the drive is formatted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum JournalPlace {
    /// On the drive.
    #[default]
    Inside,
    /// On a device of its own, which has a head ([`apart::JournalHead`]) before the ring.
    Apart,
}

/// What decides the layout. Fixed when the drive is formatted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DriveShape {
    pub media: Media,
    pub drive_bytes: u64,
    /// All of the journal's device, if it lies apart.
    pub journal_bytes: u64,
    pub journal: JournalPlace,
    pub replicas_max: u32,
}

impl core::fmt::Display for DriveShape {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { media, drive_bytes, journal_bytes, journal, replicas_max } = self;
        let place = match journal {
            JournalPlace::Inside => "on it",
            JournalPlace::Apart => "elsewhere",
        };
        write!(
            f,
            "{media} of {drive_bytes} bytes with a journal of {journal_bytes} bytes {place} and at \
             most {replicas_max} replicas"
        )
    }
}

/// Where each area of a drive lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    pub version: FormatVersion,
    pub media: Media,
    /// Blocks of a slot, the extent of space.
    pub slot_blocks: u32,
    /// Pages are numbered through: replica rows, then map pages, then descriptors.
    pub replica_pages: u32,
    pub map_pages: u32,
    pub descriptor_pages: u32,
    /// Two tables of `pages()` blocks each, A then B.
    pub pages_offset: u64,
    pub journal: JournalPlace,
    /// Of the ring of batches, on the device where the journal lies.
    pub journal_offset: u64,
    /// Of the ring.
    pub journal_bytes: u64,
    pub slots_offset: u64,
    pub slots: u32,
}

impl Layout {
    /// The layout of such a drive, or how many bytes it would need at least.
    pub fn of(shape: &DriveShape, version: FormatVersion) -> Result<Self, u64> {
        let slot_bytes = u64::from(shape.media.extent_bytes());
        let slot_blocks = shape.media.extent_bytes() / BLOCK_BYTES;
        let per_page = page::descriptors_per_page(slot_blocks);
        let journal_bytes = shape.journal_bytes / AREA_ALIGN * AREA_ALIGN;
        // What it takes of the drive.
        let inside = match shape.journal {
            JournalPlace::Inside => journal_bytes,
            JournalPlace::Apart => 0,
        };
        let pages_offset = AREA_ALIGN;
        let groups = map::groups_per_page(slot_blocks);
        // With maps, one more than there are whole groups for.
        let (map_blocks, spare_blocks) = match version {
            FormatVersion::V1 => (0, 0),
            FormatVersion::V2 | FormatVersion::V3 => (2 * BLOCK, 2 * BLOCK),
        };
        let rows = 2 * u64::from(shape.replicas_max) * BLOCK + spare_blocks;
        let fixed =
            pages_offset + rows.next_multiple_of(AREA_ALIGN) + inside + slot_bytes + 2 * AREA_ALIGN;
        // A page of descriptors costs two blocks for its slots, and its share of a map page.
        let groups = u64::from(groups);
        let group = groups * (u64::from(per_page) * slot_bytes + 2 * BLOCK) + map_blocks;
        let wanted = fixed + group.div_ceil(groups);
        if journal_bytes < JOURNAL_BYTES_MIN
            || shape.replicas_max == 0
            || shape.replicas_max > REPLICAS_MAX
            || shape.drive_bytes < wanted
        {
            return Err(wanted.max(fixed - inside + inside.max(JOURNAL_BYTES_MIN)));
        }
        let room = u128::from(shape.drive_bytes - fixed);
        let descriptor_pages = room * u128::from(groups) / u128::from(group);
        let descriptor_pages =
            u32::try_from(descriptor_pages).unwrap_or(u32::MAX).min(u32::MAX / per_page - 1);
        let map_pages = match version {
            FormatVersion::V1 => 0,
            FormatVersion::V2 | FormatVersion::V3 => {
                descriptor_pages.div_ceil(map::groups_per_page(slot_blocks))
            }
        };
        let pages = [shape.replicas_max, map_pages, descriptor_pages];
        let tables = 2 * BLOCK * pages.into_iter().map(u64::from).sum::<u64>();
        let pages_end = (pages_offset + tables).next_multiple_of(AREA_ALIGN);
        let slots_offset = (pages_end + inside).next_multiple_of(slot_bytes);
        let (journal_offset, journal_bytes) = match shape.journal {
            JournalPlace::Inside => (pages_end, journal_bytes),
            JournalPlace::Apart => (JOURNAL_HEAD_BYTES, journal_bytes - JOURNAL_HEAD_BYTES),
        };
        let slots = descriptor_pages * per_page;
        assert!(slots_offset + u64::from(slots) * slot_bytes <= shape.drive_bytes);
        Ok(Self {
            version,
            media: shape.media,
            slot_blocks,
            replica_pages: shape.replicas_max,
            map_pages,
            descriptor_pages,
            pages_offset,
            journal: shape.journal,
            journal_offset,
            journal_bytes,
            slots_offset,
            slots,
        })
    }

    pub fn slot_bytes(&self) -> u64 {
        u64::from(self.slot_blocks) * BLOCK
    }

    /// Resync units in a slot.
    pub fn slot_units(&self) -> u32 {
        self.slot_blocks / UNIT_BLOCKS
    }

    pub fn pages(&self) -> u32 {
        self.first_descriptor_page() + self.descriptor_pages
    }

    pub fn first_descriptor_page(&self) -> u32 {
        self.replica_pages + self.map_pages
    }

    /// The pages that are read whenever the drive is opened begin with 0 and end here.
    pub fn pages_read_at_open(&self) -> u32 {
        match self.version {
            FormatVersion::V1 => self.pages(),
            FormatVersion::V2 | FormatVersion::V3 => self.first_descriptor_page(),
        }
    }

    pub fn kind_of(&self, page: u32) -> page::PageKind {
        if page < self.replica_pages {
            page::PageKind::Replica
        } else if page < self.first_descriptor_page() {
            page::PageKind::Map
        } else {
            page::PageKind::Descriptors
        }
    }

    /// Of the device where the journal lies, if it lies apart.
    pub fn journal_device_bytes(&self) -> u64 {
        JOURNAL_HEAD_BYTES + self.journal_bytes
    }

    /// Where a half (0: A, 1: B) of a page lies.
    pub fn page_offset(&self, page: u32, half: u8) -> u64 {
        assert!(page < self.pages() && half < 2, "page {page} half {half}");
        let index = u64::from(half) * u64::from(self.pages()) + u64::from(page);
        self.pages_offset + index * BLOCK
    }

    pub fn slot_offset(&self, slot: u32) -> u64 {
        assert!(slot < self.slots, "slot {slot} of {}", self.slots);
        self.slots_offset + u64::from(slot) * self.slot_bytes()
    }
}

/// Where recovery begins. Two of them, written in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    pub version: FormatVersion,
    pub uuid: DriveUuid,
    pub shape: DriveShape,
    /// Rises with each write; the valid one with the higher counts.
    pub sequence: u64,
    /// Journal position, not reduced by its size, of the first batch that is still needed.
    pub tail: u64,
    /// The last LSN before that batch.
    pub tail_lsn: u64,
    /// Everything up to this LSN was durable when this was written.
    pub durable_lsn: u64,
    /// Map pages (descriptor pages in version 1) from this one on were never written, whatever
    /// lies there: opening a thin drive costs what is used of it.
    pub pages_written: u32,
    /// Pages written up to this checkpoint are durable.
    pub checkpoint: u64,
    /// Exclusive or of [`page::fingerprint`] over the last halves, written up to `checkpoint`, of
    /// the pages that are read at open.
    pub pages_fingerprint: u64,
    /// Replicas whose record is not newer than this LSN may miss acknowledged changes.
    pub stale_lsn: u64,
    /// Which head of a journal that lies apart was written before this. Zero if it lies inside.
    pub journal_generation: u64,
}

impl Superblock {
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(BLOCK_LEN);
        out.put_u32_le(SUPERBLOCK_MAGIC);
        out.put_u16_le(self.version_on_drive());
        out.put_u16_le(match self.shape.media {
            Media::Ssd => 1,
            Media::Hdd => 2,
        });
        out.put_slice(&self.uuid.0);
        out.put_u64_le(self.shape.drive_bytes);
        out.put_u64_le(self.shape.journal_bytes);
        out.put_u32_le(self.shape.replicas_max);
        out.put_u32_le(self.pages_written);
        out.put_u64_le(self.sequence);
        out.put_u64_le(self.tail);
        out.put_u64_le(self.tail_lsn);
        out.put_u64_le(self.durable_lsn);
        out.put_u64_le(self.checkpoint);
        out.put_u64_le(self.pages_fingerprint);
        out.put_u64_le(self.stale_lsn);
        if self.flags() != 0 {
            out.put_u64_le(u64::from(self.flags()));
            out.put_u64_le(self.journal_generation);
        }
        out.resize(SUPERBLOCK_LEN - 4, 0);
        let crc = crc32c::crc32c(&out);
        out.put_u32_le(crc);
        out.resize(BLOCK_LEN, 0);
        out.freeze()
    }

    fn flags(&self) -> u16 {
        let apart = if self.shape.journal == JournalPlace::Apart { JOURNAL_APART } else { 0 };
        let layers = if self.version == FormatVersion::V3 { LAYERS } else { 0 };
        apart | layers
    }

    /// A program that does not know a flag must not open the drive, so flags have a version.
    fn version_on_drive(&self) -> u16 {
        if self.flags() == 0 { self.version as u16 } else { VERSION_WITH_FLAGS }
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, DiskError> {
        if bytes.len() != BLOCK_LEN {
            return Err(DiskError::Short);
        }
        let (mut body, mut stored) = bytes[..SUPERBLOCK_LEN].split_at(SUPERBLOCK_LEN - 4);
        if body.get_u32_le() != SUPERBLOCK_MAGIC {
            return Err(DiskError::Magic);
        }
        if crc32c::crc32c(&bytes[..SUPERBLOCK_LEN - 4]) != stored.get_u32_le() {
            return Err(DiskError::Crc);
        }
        let version = body.get_u16_le();
        let (is_v1, has_flags) = match version {
            1 => (true, false),
            2 => (false, false),
            VERSION_WITH_FLAGS => (false, true),
            other => return Err(DiskError::Version(other)),
        };
        let media = match body.get_u16_le() {
            1 => Media::Ssd,
            2 => Media::Hdd,
            _ => return Err(DiskError::Field("media")),
        };
        let mut uuid = [0; 16];
        body.copy_to_slice(&mut uuid);
        let shape = DriveShape {
            media,
            drive_bytes: body.get_u64_le(),
            journal_bytes: body.get_u64_le(),
            journal: JournalPlace::Inside,
            replicas_max: body.get_u32_le(),
        };
        let pages_written = body.get_u32_le();
        let mut found = Self {
            version: if is_v1 { FormatVersion::V1 } else { FormatVersion::V2 },
            uuid: DriveUuid(uuid),
            shape,
            sequence: body.get_u64_le(),
            tail: body.get_u64_le(),
            tail_lsn: body.get_u64_le(),
            durable_lsn: body.get_u64_le(),
            pages_written,
            checkpoint: body.get_u64_le(),
            pages_fingerprint: body.get_u64_le(),
            stale_lsn: body.get_u64_le(),
            journal_generation: 0,
        };
        if has_flags {
            let flags = body.get_u64_le();
            if flags == 0 || flags & !u64::from(JOURNAL_APART | LAYERS) != 0 {
                return Err(DiskError::Field("flags"));
            }
            if flags & u64::from(LAYERS) != 0 {
                found.version = FormatVersion::V3;
            }
            if flags & u64::from(JOURNAL_APART) != 0 {
                found.shape.journal = JournalPlace::Apart;
            }
            found.journal_generation = body.get_u64_le();
        }
        let counts = [found.sequence, found.tail, found.checkpoint, found.journal_generation];
        let lsns = [found.tail_lsn, found.durable_lsn, found.stale_lsn];
        if counts.iter().any(|&count| count >= COUNT_LIMIT)
            || lsns.iter().any(|&lsn| lsn >= LSN_LIMIT)
        {
            return Err(DiskError::Field("count"));
        }
        if !found.tail.is_multiple_of(BLOCK) {
            return Err(DiskError::Field("tail"));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests;
