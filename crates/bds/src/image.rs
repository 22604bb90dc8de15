//! Comparing and copying regions: pure functions over descriptions of resync units.
//!
//! Invariant: whatever came over the wire is checked before it is used.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use format::data::UnitMeta;
use model::{limits::RESYNC_UNIT_BYTES, units::BLOCK};

use crate::lock::Range;

const UNIT_BYTES: u64 = RESYNC_UNIT_BYTES as u64;
const BLOCKS_PER_UNIT: usize = (UNIT_BYTES / BLOCK) as usize;
const BLOCK_LEN: usize = BLOCK as usize;

/// Whether a description from another server is one: aligned units in order within `range`.
pub fn well_formed(units: &[UnitMeta], range: Range) -> bool {
    let ordered = units.windows(2).all(|pair| pair[0].offset < pair[1].offset);
    let each = units.iter().all(|unit| {
        let inside = unit.offset >= range.start && unit.offset < range.end;
        let bits: usize = unit.valid.iter().map(|b| b.count_ones() as usize).sum();
        inside
            && unit.offset.is_multiple_of(UNIT_BYTES)
            && unit.valid.len() * 8 == BLOCKS_PER_UNIT
            && bits == unit.crcs.len()
    });
    ordered && each
}

/// What must be installed over `have` to make it equal to `own`: the units that differ, and an
/// empty one for each that should hold nothing.
pub fn differing(have: &[UnitMeta], own: Vec<UnitMeta>) -> Vec<UnitMeta> {
    let mut missing: BTreeMap<u64, &UnitMeta> = have.iter().map(|u| (u.offset, u)).collect();
    let mut units: Vec<UnitMeta> =
        own.into_iter().filter(|unit| missing.remove(&unit.offset) != Some(unit)).collect();
    units.extend(missing.values().map(|unit| UnitMeta {
        offset: unit.offset,
        mod_seq: model::epoch::ModSeq::NONE,
        valid: vec![0; BLOCKS_PER_UNIT / 8],
        crcs: Vec::new(),
    }));
    units.sort_by_key(|unit| unit.offset);
    units
}

/// Byte offsets of the valid blocks of a unit.
fn valid_blocks(unit: &UnitMeta) -> impl Iterator<Item = u64> {
    let is_valid = |i: usize| unit.valid.get(i / 8).is_some_and(|b| b >> (i % 8) & 1 == 1);
    let blocks = (0_usize..BLOCKS_PER_UNIT).filter(move |&i| is_valid(i));
    blocks.map(|i| unit.offset + BLOCK * u64::try_from(i).expect("sixteen at most"))
}

/// The reads that fetch the valid blocks of `units`: runs of units without a gap, from the first
/// valid block to the last.
pub fn runs(units: &[UnitMeta]) -> Vec<Range> {
    let mut runs: Vec<Range> = Vec::new();
    for unit in units {
        let Some(first) = valid_blocks(unit).next() else { continue };
        let last = valid_blocks(unit).last().expect("there is a first one") + BLOCK;
        match runs.last_mut() {
            Some(run) if run.end.next_multiple_of(UNIT_BYTES) == unit.offset => run.end = last,
            _ => runs.push(Range { start: first, end: last }),
        }
    }
    runs
}

/// One run as the engine read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunRead {
    pub range: Range,
    pub crcs: Vec<u32>,
    pub data: Bytes,
}

/// The valid blocks of all units in order, or `None` when what was read is not what was
/// described: it changed in between.
pub fn gather(units: &[UnitMeta], reads: &[RunRead]) -> Option<Bytes> {
    let total: usize = units.iter().map(|u| u.crcs.len() * BLOCK_LEN).sum();
    let mut data = BytesMut::with_capacity(total);
    let mut reads = reads.iter().peekable();
    for unit in units {
        for (at, &crc) in valid_blocks(unit).zip(&unit.crcs) {
            while reads.peek().is_some_and(|r| r.range.end <= at) {
                reads.next();
            }
            let read = reads.peek().filter(|r| r.range.start <= at)?;
            let block = usize::try_from((at - read.range.start) / BLOCK).ok()?;
            if read.crcs.get(block) != Some(&crc) {
                return None;
            }
            data.extend_from_slice(read.data.get(block * BLOCK_LEN..(block + 1) * BLOCK_LEN)?);
        }
    }
    Some(data.freeze())
}

/// Whether an image is what it says: well formed, complete, and every block matches its checksum.
pub fn verified(units: &[UnitMeta], data: &Bytes, range: Range) -> bool {
    let blocks: usize = units.iter().map(|u| u.crcs.len()).sum();
    well_formed(units, range)
        && data.len() == blocks * BLOCK_LEN
        && checksums_match(units.iter().flat_map(|u| &u.crcs), data)
}

/// Whether each block of `data` has its checksum.
pub fn checksums_match<'a>(crcs: impl IntoIterator<Item = &'a u32>, data: &Bytes) -> bool {
    let mut blocks = data.chunks(BLOCK_LEN);
    let all = crcs.into_iter().all(|&crc| blocks.next().is_some_and(|b| crc32c::crc32c(b) == crc));
    all && blocks.next().is_none()
}
