//! The journal: batches of records, one durable write each.
//!
//! ```text
//!  0 magic u32      4 version u16   6 zero u16     8 uuid [16]
//! 24 position u64  32 first LSN u64               40 previous LSN u64
//! 48 durable LSN u64               56 head blocks u16   58 payload blocks u16
//! 60 records u16   62 zero u16     64 CRC32C of the head without these four bytes   68 zero u32
//! 72 records, each a multiple of 8 bytes; zeros to the end of the head
//!    payload blocks, in the order of the records they belong to
//! ```
//!
//! Payload is covered by the CRC32C of each block in its record, so it is not read again to
//! write it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use model::{
    epoch::ModSeq,
    id::ReplicaId,
    units::{BLOCK, BLOCK_BYTES},
};

use super::{
    BATCH_BYTES_MAX, BLOCK_LEN, COUNT_LIMIT, DiskError, DriveUuid, LSN_LIMIT, REPLICA_BYTES_MAX,
    UNIT_BLOCKS,
    layers::LayerRecord,
    page::{META_LEN_MAX, Owner},
};

pub const BATCH_HEADER_LEN: usize = 72;
/// Most bytes of one record.
pub const RECORD_LEN_MAX: usize = RECORD_HEAD_LEN + META_LEN_MAX;
/// Most payload blocks of one record.
pub const RECORD_BLOCKS_MAX: u32 = 64;

const MAGIC: u32 = 0x314a_4c50; // "PLJ1" on the drive.
const VERSION: u16 = 1;
const RECORD_HEAD_LEN: usize = 40;
const NO_SLOT: u32 = u32::MAX;
const FRESH: u8 = 1;
/// No slot is larger: 1 MiB.
const SLOT_BLOCKS_MAX: u32 = 256;

const _: () = assert!(RECORD_LEN_MAX >= RECORD_HEAD_LEN + 16 * (16 + 64));

/// What a record says; LSNs are counted, not stored. `fresh`: the slot was free before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Blocks from `first` on have this content (in the batch's payload).
    Data {
        slot: u32,
        owner: Owner,
        fresh: bool,
        mod_seq: ModSeq,
        first: u32,
        crcs: Vec<u32>,
    },
    /// One unit of a slot is exactly this (content in the batch's payload); `cleared` blocks read
    /// as zeros, whatever older layers have.
    Set {
        slot: u32,
        owner: Owner,
        fresh: bool,
        unit: u32,
        mod_seq: ModSeq,
        valid: u16,
        cleared: u16,
        crcs: Vec<u32>,
    },
    /// The extent is now in `slot`, whose content was written there before; `old` is free.
    Place {
        slot: u32,
        owner: Owner,
        old: Option<u32>,
        units: Vec<PlacedUnit>,
    },
    /// These blocks read as zeros.
    Clear {
        slot: u32,
        owner: Owner,
        mod_seq: ModSeq,
        first: u32,
        count: u32,
    },
    /// The extent holds nothing any more.
    Free {
        slot: u32,
        owner: Owner,
    },
    /// Row `index` of the replica table.
    Replica {
        index: u32,
        replica: ReplicaId,
        size: u64,
        meta: Bytes,
    },
    /// The replica and all its slots are gone.
    Remove {
        index: u32,
        replica: ReplicaId,
    },
    /// Nothing: it makes what went before known to be durable.
    Seal,
    /// Blocks from `first` on, which held nothing, have this content; it was written to the slot
    /// before.
    Direct {
        slot: u32,
        owner: Owner,
        fresh: bool,
        mod_seq: ModSeq,
        first: u32,
        crcs: Vec<u32>,
    },
    Layer(LayerRecord),
}

/// An unit as [`Record::Place`] puts it; `crcs` for its valid blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedUnit {
    pub unit: u32,
    pub mod_seq: ModSeq,
    pub valid: u16,
    pub cleared: u16,
    pub crcs: Vec<u32>,
}

mod kind {
    pub const DATA: u8 = 1;
    pub const SET: u8 = 2;
    pub const PLACE: u8 = 3;
    pub const CLEAR: u8 = 4;
    pub const FREE: u8 = 5;
    pub const REPLICA: u8 = 6;
    pub const REMOVE: u8 = 7;
    pub const SEAL: u8 = 8;
    pub const DIRECT: u8 = 9;
}

/// The fixed part of every record:
///
/// ```text
///  0 kind u8   1 flags u8 (1: fresh)   2 a u16   4 b u16   6 length u16 (whole record)
///  8 slot u32  12 extent u32  16 replica u64  24 number u64  32 old u32  36 layer u16  38 c u16
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Head {
    pub kind: u8,
    pub fresh: bool,
    pub a: u16,
    pub b: u16,
    pub slot: u32,
    pub extent: u32,
    pub replica: u64,
    pub number: u64,
    pub old: u32,
    pub layer: u16,
    pub c: u16,
}

impl Head {
    pub fn of(kind: u8, slot: u32, owner: &Owner) -> Self {
        let Owner { replica, layer, extent } = *owner;
        Self { kind, slot, extent, layer, replica: replica.raw(), ..Self::default() }
    }

    pub fn put(self, tail_len: usize, out: &mut BytesMut) {
        let len = (RECORD_HEAD_LEN + tail_len).next_multiple_of(8);
        assert!(len <= RECORD_LEN_MAX, "record of {len} bytes");
        out.put_u8(self.kind);
        out.put_u8(if self.fresh { FRESH } else { 0 });
        out.put_u16_le(self.a);
        out.put_u16_le(self.b);
        out.put_u16_le(u16::try_from(len).expect("asserted above"));
        out.put_u32_le(self.slot);
        out.put_u32_le(self.extent);
        out.put_u64_le(self.replica);
        out.put_u64_le(self.number);
        out.put_u32_le(self.old);
        out.put_u16_le(self.layer);
        out.put_u16_le(self.c);
    }

    pub fn owner(&self) -> Owner {
        let replica = ReplicaId::from_raw(self.replica);
        Owner { replica, layer: self.layer, extent: self.extent }
    }
}

fn narrow(value: u32) -> u16 {
    u16::try_from(value).expect("an index or count within a slot")
}

fn pad(out: &mut BytesMut) {
    out.resize(out.len().next_multiple_of(8), 0);
}

pub(super) fn put_crcs(out: &mut BytesMut, crcs: &[u32]) {
    for &crc in crcs {
        out.put_u32_le(crc);
    }
    pad(out);
}

/// Where the blocks of a record lie. See [`Record::Data`] and [`Record::Direct`].
#[derive(Debug, Clone, Copy)]
pub struct DataHead {
    pub slot: u32,
    pub owner: Owner,
    pub fresh: bool,
    pub mod_seq: ModSeq,
    pub first: u32,
}

pub fn put_data(out: &mut BytesMut, data: &DataHead, crcs: &[u32]) {
    put_blocks(kind::DATA, out, data, crcs);
}

pub fn put_direct(out: &mut BytesMut, data: &DataHead, crcs: &[u32]) {
    put_blocks(kind::DIRECT, out, data, crcs);
}

fn put_blocks(kind: u8, out: &mut BytesMut, data: &DataHead, crcs: &[u32]) {
    let head = Head {
        fresh: data.fresh,
        a: narrow(data.first),
        b: u16::try_from(crcs.len()).expect("a record is bounded"),
        number: data.mod_seq.raw(),
        ..Head::of(kind, data.slot, &data.owner)
    };
    head.put(4 * crcs.len(), out);
    put_crcs(out, crcs);
}

impl Record {
    pub fn put(&self, out: &mut BytesMut) {
        let start = out.len();
        let base = Head::of;
        let row = |replica: &ReplicaId| Owner { replica: *replica, layer: 0, extent: 0 };
        match self {
            Self::Data { slot, owner, fresh, mod_seq, first, crcs } => {
                let (slot, owner, fresh) = (*slot, *owner, *fresh);
                let head = DataHead { slot, owner, fresh, mod_seq: *mod_seq, first: *first };
                put_data(out, &head, crcs);
            }
            Self::Direct { slot, owner, fresh, mod_seq, first, crcs } => {
                let (slot, owner, fresh) = (*slot, *owner, *fresh);
                let head = DataHead { slot, owner, fresh, mod_seq: *mod_seq, first: *first };
                put_direct(out, &head, crcs);
            }
            Self::Set { slot, owner, fresh, unit, mod_seq, valid, cleared, crcs } => {
                let head = Head {
                    fresh: *fresh,
                    old: u32::from(*cleared),
                    a: narrow(*unit),
                    b: *valid,
                    ..base(kind::SET, *slot, owner)
                };
                Head { number: mod_seq.raw(), ..head }.put(4 * crcs.len(), out);
                put_crcs(out, crcs);
            }
            Self::Place { slot, owner, old, units } => {
                let len: usize = units.iter().map(|e| 16 + 4 * e.crcs.len()).sum();
                let head = base(kind::PLACE, *slot, owner);
                let count = u16::try_from(units.len()).expect("at most 16 in a slot");
                Head { a: count, old: old.unwrap_or(NO_SLOT), ..head }.put(len, out);
                for unit in units {
                    out.put_u64_le(unit.mod_seq.raw());
                    out.put_u16_le(narrow(unit.unit));
                    out.put_u16_le(unit.valid);
                    out.put_u16_le(unit.cleared);
                    out.put_u16_le(0);
                    for &crc in &unit.crcs {
                        out.put_u32_le(crc);
                    }
                }
                pad(out);
            }
            Self::Clear { slot, owner, mod_seq, first, count } => {
                let head = base(kind::CLEAR, *slot, owner);
                let head = Head { a: narrow(*first), b: narrow(*count), ..head };
                Head { number: mod_seq.raw(), ..head }.put(0, out);
            }
            Self::Free { slot, owner } => base(kind::FREE, *slot, owner).put(0, out),
            Self::Replica { index, replica, size, meta } => {
                let head = Head { number: *size, ..base(kind::REPLICA, *index, &row(replica)) };
                let len = u16::try_from(meta.len()).expect("metadata is bounded");
                Head { b: len, ..head }.put(meta.len(), out);
                out.put_slice(meta);
                pad(out);
            }
            Self::Remove { index, replica } => {
                base(kind::REMOVE, *index, &row(replica)).put(0, out);
            }
            Self::Seal => Head { kind: kind::SEAL, ..Head::default() }.put(0, out),
            Self::Layer(record) => record.put(out),
        }
        assert_eq!((out.len() - start) % 8, 0, "records keep their alignment");
    }

    /// Payload blocks that belong to the record.
    pub fn payload_blocks(&self) -> u32 {
        u32::try_from(self.payload_crcs().len()).expect("bounded by the decoder")
    }

    /// Of each of these.
    pub fn payload_crcs(&self) -> &[u32] {
        match self {
            Self::Data { crcs, .. } | Self::Set { crcs, .. } => crcs,
            Self::Layer(LayerRecord::Masks(masks)) => masks.payload_crcs(),
            _ => &[],
        }
    }

    /// Takes one record off the head of `input`.
    fn take(input: &mut &[u8]) -> Result<Self, DiskError> {
        if input.len() < RECORD_HEAD_LEN {
            return Err(DiskError::Short);
        }
        let len = usize::from(u16::from_le_bytes([input[6], input[7]]));
        if len < RECORD_HEAD_LEN || len > input.len() || len % 8 != 0 {
            return Err(DiskError::Field("record length"));
        }
        let (mut bytes, rest) = input.split_at(len);
        *input = rest;
        let mut head = Head { kind: bytes.get_u8(), ..Head::default() };
        head.fresh = bytes.get_u8() & FRESH != 0;
        (head.a, head.b) = (bytes.get_u16_le(), bytes.get_u16_le());
        bytes.advance(2);
        (head.slot, head.extent) = (bytes.get_u32_le(), bytes.get_u32_le());
        (head.replica, head.number) = (bytes.get_u64_le(), bytes.get_u64_le());
        head.old = bytes.get_u32_le();
        (head.layer, head.c) = (bytes.get_u16_le(), bytes.get_u16_le());
        Self::from_parts(head, bytes)
    }

    fn from_parts(head: Head, mut tail: &[u8]) -> Result<Self, DiskError> {
        let (slot, owner, fresh) = (head.slot, head.owner(), head.fresh);
        let mod_seq = ModSeq::from_raw(head.number);
        match head.kind {
            kind::DATA | kind::DIRECT => {
                let (first, count) = range_in_slot(head.a, head.b)?;
                let crcs = take_crcs(&mut tail, count)?;
                if head.kind == kind::DATA {
                    Ok(Self::Data { slot, owner, fresh, mod_seq, first, crcs })
                } else {
                    Ok(Self::Direct { slot, owner, fresh, mod_seq, first, crcs })
                }
            }
            kind::SET => {
                let unit = unit_in_slot(head.a)?;
                let crcs = take_crcs(&mut tail, head.b.count_ones())?;
                let (valid, cleared) = (head.b, (head.old & 0xffff) as u16);
                check_cleared(valid, cleared)?;
                Ok(Self::Set { slot, owner, fresh, unit, mod_seq, valid, cleared, crcs })
            }
            kind::PLACE => {
                let old = (head.old != NO_SLOT).then_some(head.old);
                let mut units = Vec::new();
                for _ in 0..head.a {
                    units.push(take_placed(&mut tail)?);
                }
                Ok(Self::Place { slot, owner, old, units })
            }
            kind::CLEAR => {
                let (first, count) = range_in_slot(head.a, head.b)?;
                Ok(Self::Clear { slot, owner, mod_seq, first, count })
            }
            kind::FREE => Ok(Self::Free { slot, owner }),
            kind::REPLICA => {
                let len = usize::from(head.b);
                if len > META_LEN_MAX || len > tail.len() {
                    return Err(DiskError::Field("metadata length"));
                }
                if head.number > REPLICA_BYTES_MAX {
                    return Err(DiskError::Field("replica size"));
                }
                let meta = Bytes::copy_from_slice(&tail[..len]);
                Ok(Self::Replica { index: slot, replica: owner.replica, size: head.number, meta })
            }
            kind::REMOVE => Ok(Self::Remove { index: slot, replica: owner.replica }),
            kind::SEAL => Ok(Self::Seal),
            _ => match LayerRecord::take(&head, &mut tail)? {
                Some(record) => Ok(Self::Layer(record)),
                None => Err(DiskError::Field("record kind")),
            },
        }
    }
}

fn take_placed(tail: &mut &[u8]) -> Result<PlacedUnit, DiskError> {
    if tail.len() < 16 {
        return Err(DiskError::Short);
    }
    let mod_seq = ModSeq::from_raw(tail.get_u64_le());
    let unit = unit_in_slot(tail.get_u16_le())?;
    let (valid, cleared) = (tail.get_u16_le(), tail.get_u16_le());
    tail.advance(2);
    check_cleared(valid, cleared)?;
    let crcs = take_crcs(tail, valid.count_ones())?;
    Ok(PlacedUnit { unit, mod_seq, valid, cleared, crcs })
}

fn check_cleared(valid: u16, cleared: u16) -> Result<(), DiskError> {
    if valid & cleared != 0 { Err(DiskError::Field("masks")) } else { Ok(()) }
}

pub(super) fn take_crcs(tail: &mut &[u8], count: u32) -> Result<Vec<u32>, DiskError> {
    let count = usize::try_from(count).map_err(|_| DiskError::Field("count"))?;
    if tail.len() / 4 < count {
        return Err(DiskError::Short);
    }
    Ok((0..count).map(|_| tail.get_u32_le()).collect())
}

fn range_in_slot(first: u16, count: u16) -> Result<(u32, u32), DiskError> {
    let (first, count) = (u32::from(first), u32::from(count));
    if count == 0 || first + count > SLOT_BLOCKS_MAX {
        return Err(DiskError::Field("block range"));
    }
    Ok((first, count))
}

pub(super) fn unit_in_slot(unit: u16) -> Result<u32, DiskError> {
    let unit = u32::from(unit);
    if unit >= SLOT_BLOCKS_MAX / UNIT_BLOCKS {
        return Err(DiskError::Field("unit"));
    }
    Ok(unit)
}

/// The fixed part of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// Journal position, not reduced by its size.
    pub position: u64,
    pub first_lsn: u64,
    /// The last LSN of the batch before it.
    pub previous_lsn: u64,
    /// Known to be durable when this batch was written.
    pub durable_lsn: u64,
    pub head_blocks: u16,
    pub payload_blocks: u16,
    pub records: u16,
}

impl BatchHeader {
    pub fn last_lsn(&self) -> u64 {
        self.first_lsn + u64::from(self.records) - 1
    }

    pub fn batch_bytes(&self) -> u64 {
        (u64::from(self.head_blocks) + u64::from(self.payload_blocks)) * BLOCK
    }
}

/// Room for the header of a batch; records are put behind it.
pub fn begin_batch(out: &mut BytesMut) {
    assert!(out.is_empty());
    out.resize(BATCH_HEADER_LEN, 0);
}

/// Fills in the header (`head_blocks` is computed) and returns the head.
pub fn finish_batch(mut out: BytesMut, uuid: DriveUuid, header: &BatchHeader) -> Bytes {
    out.resize(out.len().next_multiple_of(BLOCK_LEN), 0);
    let head_blocks = u16::try_from(out.len() / BLOCK_LEN).expect("a batch is bounded");
    let total = u32::from(head_blocks) + u32::from(header.payload_blocks);
    assert!(total * BLOCK_BYTES <= BATCH_BYTES_MAX, "batch of {total} blocks");
    let mut head = &mut out[..BATCH_HEADER_LEN];
    head.put_u32_le(MAGIC);
    head.put_u16_le(VERSION);
    head.put_u16_le(0);
    head.put_slice(&uuid.0);
    head.put_u64_le(header.position);
    head.put_u64_le(header.first_lsn);
    head.put_u64_le(header.previous_lsn);
    head.put_u64_le(header.durable_lsn);
    head.put_u16_le(head_blocks);
    head.put_u16_le(header.payload_blocks);
    head.put_u16_le(header.records);
    let crc = head_crc(&out);
    out[64..68].copy_from_slice(&crc.to_le_bytes());
    out.freeze()
}

fn head_crc(head: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&head[..64]), &head[68..])
}

/// Checks the head of a batch at the head of `bytes` (which may hold more) and returns its header
/// and records. `Short`: the head goes on behind `bytes`.
pub fn decode_batch(
    uuid: DriveUuid,
    bytes: &[u8],
) -> Result<(BatchHeader, Vec<Record>), DiskError> {
    if bytes.len() < BLOCK_LEN {
        return Err(DiskError::Short);
    }
    let mut head = &bytes[..BATCH_HEADER_LEN];
    if head.get_u32_le() != MAGIC {
        return Err(DiskError::Magic);
    }
    let version = head.get_u16_le();
    head.advance(2);
    if version != VERSION {
        return Err(DiskError::Version(version));
    }
    if head[..16] != uuid.0 {
        return Err(DiskError::Foreign);
    }
    head.advance(16);
    let header = BatchHeader {
        position: head.get_u64_le(),
        first_lsn: head.get_u64_le(),
        previous_lsn: head.get_u64_le(),
        durable_lsn: head.get_u64_le(),
        head_blocks: head.get_u16_le(),
        payload_blocks: head.get_u16_le(),
        records: head.get_u16_le(),
    };
    if header.batch_bytes() > u64::from(BATCH_BYTES_MAX) || header.head_blocks == 0 {
        return Err(DiskError::Field("batch length"));
    }
    let lsns = [header.first_lsn, header.previous_lsn, header.durable_lsn];
    if header.position >= COUNT_LIMIT || lsns.iter().any(|&lsn| lsn >= LSN_LIMIT) {
        return Err(DiskError::Field("count"));
    }
    let head_len = usize::from(header.head_blocks) * BLOCK_LEN;
    let whole = bytes.get(..head_len).ok_or(DiskError::Short)?;
    let stored = u32::from_le_bytes(whole[64..68].try_into().expect("four bytes"));
    if head_crc(whole) != stored {
        return Err(DiskError::Crc);
    }
    let mut rest = &whole[BATCH_HEADER_LEN..];
    let mut records = Vec::with_capacity(usize::from(header.records).min(rest.len() / 40));
    let mut payload = 0u32;
    for _ in 0..header.records {
        let record = Record::take(&mut rest)?;
        payload += record.payload_blocks();
        records.push(record);
    }
    if payload != u32::from(header.payload_blocks) || header.records == 0 {
        return Err(DiskError::Field("payload blocks"));
    }
    Ok((header, records))
}
