//! The head of a journal that lies apart from its drive.
//!
//! ```text
//!  0 magic u32     4 version u16    6 zero u16     8 uuid of the drive [16]
//! 24 length u64   32 generation u64               40 previous generation u64
//! 508 CRC32C of the 508 bytes before
//! ```
//!
//! Decides: how it is encoded, and whether such a journal belongs to a drive and is as new.
//! Does not: know when it is written: before every superblock, which names its generation.
//! Invariant: a journal that any superblock of its drive has outlived is never taken for the
//! drive's. So a blank one, another drive's, and a copy from before the drive was opened last are
//! refused: what they lack was acknowledged.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{BLOCK_LEN, COUNT_LIMIT, DiskError, DriveUuid, Superblock};
use model::units::BLOCK;

/// The ring of batches begins behind this much.
pub const JOURNAL_HEAD_BYTES: u64 = 64 << 10;
/// The head lies there twice, in one block each, and both are written at once.
pub const JOURNAL_HEADS_BYTES: u64 = 2 * BLOCK;

const MAGIC: u32 = 0x3148_4c50; // "PLH1" on the device.
const VERSION: u16 = 1;
/// A head fits a sector, which no drive tears.
const HEAD_LEN: usize = 512;

/// Whose journal it is, and of when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalHead {
    pub uuid: DriveUuid,
    /// Of the device, head and ring.
    pub bytes: u64,
    /// Rises with each superblock. Zero: the drive was never open.
    pub generation: u64,
    /// What the superblock names that this head was written after.
    pub previous: u64,
}

/// Why a journal is not the one that the drive needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JournalMismatch {
    #[error("what its 'journal_path' names is blank, and the drive is not")]
    Blank,
    #[error("what its 'journal_path' names holds something else")]
    Alien,
    #[error("what its 'journal_path' names is the journal of another drive")]
    Foreign,
    #[error("its journal was laid out with {found} bytes, and is configured with {wanted}")]
    Length { found: u64, wanted: u64 },
    #[error(
        "its journal is of generation {journal}, the drive of {drive}: the journal is an older \
         copy"
    )]
    JournalOlder { journal: u64, drive: u64 },
    #[error(
        "its journal is of generation {journal}, the drive of {drive}: the drive is an older copy"
    )]
    DriveOlder { journal: u64, drive: u64 },
}

impl JournalHead {
    /// Both copies.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(2 * BLOCK_LEN);
        out.put_u32_le(MAGIC);
        out.put_u16_le(VERSION);
        out.put_u16_le(0);
        out.put_slice(&self.uuid.0);
        out.put_u64_le(self.bytes);
        out.put_u64_le(self.generation);
        out.put_u64_le(self.previous);
        out.resize(HEAD_LEN - 4, 0);
        let crc = crc32c::crc32c(&out);
        out.put_u32_le(crc);
        out.resize(BLOCK_LEN, 0);
        out.extend_from_within(..);
        out.freeze()
    }

    /// One copy.
    pub fn decode(bytes: &[u8]) -> Result<Self, DiskError> {
        if bytes.len() != BLOCK_LEN {
            return Err(DiskError::Short);
        }
        let (mut body, mut stored) = bytes[..HEAD_LEN].split_at(HEAD_LEN - 4);
        if body.get_u32_le() != MAGIC {
            return Err(DiskError::Magic);
        }
        if crc32c::crc32c(&bytes[..HEAD_LEN - 4]) != stored.get_u32_le() {
            return Err(DiskError::Crc);
        }
        let version = body.get_u16_le();
        if version != VERSION {
            return Err(DiskError::Version(version));
        }
        body.advance(2);
        let mut uuid = [0; 16];
        body.copy_to_slice(&mut uuid);
        let found = Self {
            uuid: DriveUuid(uuid),
            bytes: body.get_u64_le(),
            generation: body.get_u64_le(),
            previous: body.get_u64_le(),
        };
        if found.generation >= COUNT_LIMIT || found.previous > found.generation {
            return Err(DiskError::Field("generation"));
        }
        Ok(found)
    }

    /// The newer of the copies in `bytes`, if either is whole.
    pub fn newest(bytes: &[u8]) -> Option<Self> {
        let copies = bytes.chunks_exact(BLOCK_LEN).map(Self::decode);
        copies.filter_map(Result::ok).max_by_key(|head| head.generation)
    }

    /// Whether the superblock is the one that this journal was written for: the one that names it,
    /// or, after a crash between the two, the one before that.
    pub fn check(&self, superblock: &Superblock, bytes: u64) -> Result<(), JournalMismatch> {
        let (journal, drive) = (self.generation, superblock.journal_generation);
        if self.uuid != superblock.uuid {
            return Err(JournalMismatch::Foreign);
        }
        if self.bytes != bytes {
            return Err(JournalMismatch::Length { found: self.bytes, wanted: bytes });
        }
        match drive {
            _ if drive == journal || drive == self.previous => Ok(()),
            _ if drive > journal => Err(JournalMismatch::JournalOlder { journal, drive }),
            _ => Err(JournalMismatch::DriveOlder { journal, drive }),
        }
    }
}
