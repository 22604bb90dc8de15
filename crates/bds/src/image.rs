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

#[cfg(test)]
mod tests {
    use model::epoch::ModSeq;
    use proptest::prelude::*;

    use super::*;

    /// Sixteen units' worth of blocks: each valid with some content, or not.
    fn region() -> impl Strategy<Value = Vec<Option<u8>>> {
        prop::collection::vec(prop::option::of(1_u8..4), 3 * BLOCKS_PER_UNIT)
    }

    fn block(content: u8) -> Vec<u8> {
        vec![content; BLOCK_LEN]
    }

    fn describe(region: &[Option<u8>]) -> Vec<UnitMeta> {
        let units = region.chunks(BLOCKS_PER_UNIT).enumerate();
        let described = units.map(|(index, blocks)| {
            let mut valid = vec![0_u8; BLOCKS_PER_UNIT / 8];
            for (i, _) in blocks.iter().enumerate().filter(|(_, b)| b.is_some()) {
                valid[i / 8] |= 1 << (i % 8);
            }
            let crcs = blocks.iter().flatten().map(|&b| crc32c::crc32c(&block(b))).collect();
            let offset = UNIT_BYTES * u64::try_from(index).expect("three");
            UnitMeta { offset, mod_seq: ModSeq::from_raw(9), valid, crcs }
        });
        described.filter(|unit| !unit.crcs.is_empty()).collect()
    }

    fn read(region: &[Option<u8>], range: Range) -> RunRead {
        let at = |offset: u64| usize::try_from(offset / BLOCK).expect("small");
        let blocks = region[at(range.start)..at(range.end)].iter().map(|b| block(b.unwrap_or(0)));
        let blocks: Vec<Vec<u8>> = blocks.collect();
        let crcs = blocks.iter().map(|b| crc32c::crc32c(b)).collect();
        RunRead { range, crcs, data: blocks.concat().into() }
    }

    /// What a learner holds after it installed the image.
    fn install(mut region: Vec<Option<u8>>, units: &[UnitMeta], data: &Bytes) -> Vec<Option<u8>> {
        let mut blocks = data.chunks(BLOCK_LEN);
        for unit in units {
            let first = usize::try_from(unit.offset / BLOCK).expect("small");
            region[first..first + BLOCKS_PER_UNIT].fill(None);
            for at in valid_blocks(unit) {
                let index = usize::try_from(at / BLOCK).expect("small");
                region[index] = Some(blocks.next().expect("complete")[0]);
            }
        }
        region
    }

    proptest! {
        #[test]
        fn an_image_makes_the_learner_equal_and_carries_only_what_differs(
            own in region(), have in region(), same_units in any::<[bool; 3]>(),
        ) {
            let mut have = have;
            for (index, _) in same_units.iter().enumerate().filter(|(_, same)| **same) {
                let unit = index * BLOCKS_PER_UNIT..(index + 1) * BLOCKS_PER_UNIT;
                have[unit.clone()].copy_from_slice(&own[unit]);
            }
            let range = Range { start: 0, end: 3 * UNIT_BYTES };
            prop_assert!(well_formed(&describe(&have), range));
            let units = differing(&describe(&have), describe(&own));
            for (index, same) in same_units.into_iter().enumerate() {
                let offset = UNIT_BYTES * u64::try_from(index).expect("three");
                prop_assert!(!same || units.iter().all(|unit| unit.offset != offset));
            }
            let reads: Vec<RunRead> = runs(&units).into_iter().map(|r| read(&own, r)).collect();
            let data = gather(&units, &reads).expect("nothing changed in between");
            prop_assert!(verified(&units, &data, range));
            prop_assert_eq!(install(have, &units, &data), own);
        }

        #[test]
        fn a_region_that_changed_between_description_and_read_is_refused(
            own in region(), changed in 0..3 * BLOCKS_PER_UNIT,
        ) {
            prop_assume!(own[changed].is_some());
            let units = describe(&own);
            let mut later = own;
            later[changed] = Some(77);
            let reads: Vec<RunRead> = runs(&units).into_iter().map(|r| read(&later, r)).collect();
            prop_assert_eq!(gather(&units, &reads), None);
        }

        #[test]
        fn a_damaged_image_is_not_verified(own in region(), at in any::<prop::sample::Index>()) {
            let range = Range { start: 0, end: 3 * UNIT_BYTES };
            let units = describe(&own);
            let reads: Vec<RunRead> = runs(&units).into_iter().map(|r| read(&own, r)).collect();
            let data = gather(&units, &reads).expect("nothing changed in between");
            prop_assume!(!data.is_empty());
            let mut damaged = data.to_vec();
            damaged[at.index(data.len())] ^= 4;
            prop_assert!(!verified(&units, &damaged.into(), range));
            prop_assert!(!verified(&units, &data.slice(BLOCK_LEN..), range));
        }
    }

    #[test]
    fn a_description_of_elsewhere_or_of_odd_shape_is_refused() {
        let range = Range { start: UNIT_BYTES, end: 3 * UNIT_BYTES };
        let good = UnitMeta {
            offset: UNIT_BYTES,
            mod_seq: ModSeq::from_raw(1),
            valid: vec![1, 0],
            crcs: vec![5],
        };
        let check = |change: &dyn Fn(&mut UnitMeta)| {
            let mut unit = good.clone();
            change(&mut unit);
            well_formed(&[unit], range)
        };
        assert!(check(&|_| {}));
        assert!(!check(&|unit| unit.offset = 0));
        assert!(!check(&|unit| unit.offset = 3 * UNIT_BYTES));
        assert!(!check(&|unit| unit.offset += BLOCK));
        assert!(!check(&|unit| unit.valid = vec![1]));
        assert!(!check(&|unit| unit.valid = vec![1; 3]));
        assert!(!check(&|unit| unit.crcs.clear()));
        assert!(!well_formed(&[good.clone(), good.clone()], range));
    }
}
