//! Looking at one resync unit block by block: which of its blocks are good, and what they hold.
//!
//! Does not: decide what follows from it; whoever asked gets its own purpose back.
//! Invariant: an examination ends exactly once, when the engine has answered all its requests.

use std::collections::BTreeMap;

use bytes::Bytes;
use engine::api::{OpError, Outcome, Request};
use format::data::UnitMeta;
use model::{
    id::ReplicaId,
    limits::RESYNC_UNIT_BYTES,
    units::{BLOCK, BLOCK_BYTES},
};

use crate::{
    lock::Range,
    turn::{Finding, Op, Turn},
};

pub const UNIT_BYTES: u64 = RESYNC_UNIT_BYTES as u64;
const BLOCKS_PER_UNIT: u32 = RESYNC_UNIT_BYTES / BLOCK_BYTES;

/// Blocks of a unit, one bit each.
pub type Blocks = u16;

/// The start of the unit around a byte.
pub fn unit_start(offset: u64) -> u64 {
    offset / UNIT_BYTES * UNIT_BYTES
}

/// The blocks of a mask, in order.
pub fn blocks_of(mask: Blocks) -> impl Iterator<Item = u32> {
    (0..BLOCKS_PER_UNIT).filter(move |block| mask >> block & 1 == 1)
}

/// Byte offset of a block of a unit.
pub fn block_offset(unit: u64, block: u32) -> u64 {
    unit + u64::from(block) * BLOCK
}

/// Which blocks the unit says it holds.
pub fn valid_mask(unit: &UnitMeta) -> Blocks {
    let byte = |at: usize| unit.valid.get(at).copied().unwrap_or(0);
    Blocks::from_le_bytes([byte(0), byte(1)])
}

/// The checksum of a valid block.
pub fn crc_of(unit: &UnitMeta, block: u32) -> Option<u32> {
    let valid = valid_mask(unit);
    let before = (valid & ((1 << block) - 1)).count_ones();
    let is_valid = valid >> block & 1 == 1;
    is_valid.then(|| unit.crcs.get(usize::try_from(before).expect("sixteen")).copied())?
}

#[derive(Debug)]
pub struct Findings {
    /// Byte offset of the unit.
    pub offset: u64,
    /// What the replica says it holds there; `None`: nothing.
    pub meta: Option<UnitMeta>,
    pub good: BTreeMap<u32, Bytes>,
    pub bad: Blocks,
}

#[derive(Debug)]
struct Examination<P> {
    purpose: P,
    unit: Range,
    blocks: Blocks,
    meta: Option<UnitMeta>,
    waits: usize,
    good: BTreeMap<u32, Bytes>,
    bad: Blocks,
    failed: bool,
}

#[derive(Debug)]
pub struct Examiner<P> {
    running: BTreeMap<u64, Examination<P>>,
}

impl<P> Default for Examiner<P> {
    fn default() -> Self {
        Self { running: BTreeMap::new() }
    }
}

/// What an examination came to: for what, and its findings unless the engine refused.
pub type Done<P> = Option<(P, Option<Findings>)>;

impl<P> Examiner<P> {
    pub fn len(&self) -> usize {
        self.running.len()
    }

    /// Looks at those of `blocks` that the unit holds.
    pub fn begin(
        &mut self,
        turn: &mut Turn<'_>,
        replica: ReplicaId,
        purpose: P,
        unit: Range,
        blocks: Blocks,
    ) {
        let key = turn.token();
        let (offset, length) = (unit.start, unit.length());
        turn.request(Op::ExamineDescribe(key), Request::Describe { replica, offset, length });
        let (meta, waits, good, bad, failed) = (None, 0, BTreeMap::new(), 0, false);
        let fresh = Examination { purpose, unit, blocks, meta, waits, good, bad, failed };
        self.running.insert(key, fresh);
    }

    pub fn described(
        &mut self,
        turn: &mut Turn<'_>,
        replica: ReplicaId,
        key: u64,
        outcome: Result<Outcome, OpError>,
    ) -> Done<P> {
        let examination = self.running.get_mut(&key)?;
        match outcome {
            Ok(Outcome::Described { units }) => examination.meta = units.into_iter().next(),
            _ => examination.failed = true,
        }
        let valid = examination.meta.as_ref().map_or(0, valid_mask);
        for block in blocks_of(valid & examination.blocks) {
            let (offset, length) = (block_offset(examination.unit.start, block), BLOCK_BYTES);
            examination.waits += 1;
            turn.request(Op::ExamineRead(key, block), Request::Read { replica, offset, length });
        }
        self.end(key)
    }

    pub fn read(
        &mut self,
        turn: &mut Turn<'_>,
        (key, block): (u64, u32),
        outcome: Result<Outcome, OpError>,
    ) -> Done<P> {
        let examination = self.running.get_mut(&key)?;
        examination.waits -= 1;
        match outcome {
            Ok(Outcome::Read { data, .. }) => {
                examination.good.insert(block, data);
            }
            Err(OpError::BadBlock { .. }) => {
                examination.bad |= 1 << block;
                turn.note(block_offset(examination.unit.start, block), Finding::Bad);
            }
            _ => examination.failed = true,
        }
        self.end(key)
    }

    fn end(&mut self, key: u64) -> Done<P> {
        if self.running.get(&key)?.waits > 0 {
            return None;
        }
        let Examination { purpose, unit, meta, good, bad, failed, .. } =
            self.running.remove(&key)?;
        let findings = Findings { offset: unit.start, meta, good, bad };
        Some((purpose, (!failed).then_some(findings)))
    }
}
