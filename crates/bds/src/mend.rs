//! Damage on a mirror: it tells its primary, which sends good blocks; and it reads out blocks that
//! are damaged elsewhere.
//!
//! Decides: when to complain, and whether what the primary sends belongs into the unit.
//! Does not: find the good blocks (the primary does, under a hold of the unit).
//! Invariants: a block is written only where the unit is, but for its bytes, what the primary
//! says it is, so a repair changes no checksum and no `mod_seq` (24); a complaint stands until
//! the primary has answered it.

use std::collections::BTreeMap;

use bytes::Bytes;
use engine::api::{OpError, Outcome, Request};
use format::data::{Change, DataMessage, FetchBlocks, MendBlocks, UnitBlocks};
use model::units::BLOCK;

use crate::{
    api::ConnId,
    examine::{
        Blocks, Done, Examiner, Findings, UNIT_BYTES, block_offset, blocks_of, crc_of, unit_start,
        valid_mask,
    },
    lock::Range,
    mirror::Standing,
    turn::{Finding, Op, Turn},
};

/// Complaints that the primary has not answered; one that there is no room for comes up again with
/// the next pass of the scrub.
const COMPLAINTS_MAX: usize = 1024;
/// Of those, the ones it has been told of.
const TOLD_MAX: usize = 4;
/// Units looked at for the primary at once; it has far fewer repairs under way.
const EXAMINED_MAX: usize = 256;

#[derive(Debug)]
pub enum Purpose {
    Complain,
    Fetch { conn: ConnId, token: u64 },
    Mend { conn: ConnId, mend: MendBlocks },
}

/// What the primary sent is being written.
#[derive(Debug)]
struct Writing {
    conn: ConnId,
    mend: MendBlocks,
    waits: usize,
    failed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Complaint {
    blocks: Blocks,
    told: bool,
}

#[derive(Debug, Default)]
pub struct Mender {
    examiner: Examiner<Purpose>,
    complaints: BTreeMap<u64, Complaint>,
    writing: BTreeMap<u64, Writing>,
}

impl Mender {
    /// Whether damage that was found is being dealt with.
    pub fn is_busy(&self) -> bool {
        !self.complaints.is_empty() || self.examiner.len() > 0
    }

    /// Units that are damaged as far as this mirror knows.
    pub fn damaged_units(&self) -> Vec<u64> {
        self.complaints.keys().copied().collect()
    }

    /// Something in the unit cannot be read.
    pub fn met_damage(&mut self, turn: &mut Turn<'_>, standing: Standing, unit: Range) {
        let room = self.complaints.len() + self.examiner.len() < COMPLAINTS_MAX;
        if room && !self.complaints.contains_key(&unit.start) {
            let all = Blocks::MAX;
            self.examiner.begin(turn, standing.replica, Purpose::Complain, unit, all);
        }
    }

    /// A unit that was damaged when this replica was primary.
    pub fn remember(&mut self, unit: u64) {
        self.complaints.insert(unit, Complaint { blocks: Blocks::MAX, told: false });
    }

    /// Another connection of the primary is obeyed: what it was told may be lost.
    pub fn complain_again(&mut self, turn: &mut Turn<'_>, conn: ConnId, standing: Standing) {
        self.complaints.values_mut().for_each(|complaint| complaint.told = false);
        self.complain(turn, conn, standing);
    }

    fn complain(&mut self, turn: &mut Turn<'_>, conn: ConnId, standing: Standing) {
        let told = self.complaints.values().filter(|c| c.told).count();
        let untold = self.complaints.iter_mut().filter(|(_, c)| !c.told);
        for (&offset, complaint) in untold.take(TOLD_MAX.saturating_sub(told)) {
            complaint.told = true;
            let Standing { group, replica, adopted: epoch, .. } = standing;
            let blocks = complaint.blocks;
            turn.reply(conn, DataMessage::BadUnit { group, replica, epoch, offset, blocks });
        }
    }

    /// The primary wants blocks that are damaged elsewhere.
    pub fn fetch(
        &mut self,
        turn: &mut Turn<'_>,
        conn: ConnId,
        (standing, size): (Standing, u64),
        fetch: &FetchBlocks,
    ) {
        let Some(unit) = unit_at(fetch.offset, size) else { return };
        if self.examiner.len() < EXAMINED_MAX {
            let purpose = Purpose::Fetch { conn, token: fetch.token };
            self.examiner.begin(turn, standing.replica, purpose, unit, fetch.blocks);
        }
    }

    /// The primary sends good blocks of a unit that is damaged here.
    pub fn mend(
        &mut self,
        turn: &mut Turn<'_>,
        conn: ConnId,
        (standing, size): (Standing, u64),
        mend: MendBlocks,
    ) {
        let Some(unit) = unit_at(mend.content.unit.offset, size) else { return };
        if self.examiner.len() < EXAMINED_MAX {
            let purpose = Purpose::Mend { conn, mend };
            self.examiner.begin(turn, standing.replica, purpose, unit, 0);
        }
    }

    pub fn described(
        &mut self,
        turn: &mut Turn<'_>,
        (conn, standing): (Option<ConnId>, Standing),
        key: u64,
        outcome: Result<Outcome, OpError>,
    ) {
        let done = self.examiner.described(turn, standing.replica, key, outcome);
        self.examined(turn, (conn, standing), done);
    }

    pub fn read(
        &mut self,
        turn: &mut Turn<'_>,
        (conn, standing): (Option<ConnId>, Standing),
        at: (u64, u32),
        outcome: Result<Outcome, OpError>,
    ) {
        let done = self.examiner.read(turn, at, outcome);
        self.examined(turn, (conn, standing), done);
    }

    fn examined(
        &mut self,
        turn: &mut Turn<'_>,
        (primary, standing): (Option<ConnId>, Standing),
        done: Done<Purpose>,
    ) {
        let Some((purpose, Some(findings))) = done else { return };
        match purpose {
            // What the primary asks for is damaged there, too: it would answer a complaint with the
            // same question, and so on for ever.
            Purpose::Complain if findings.bad != 0 => {
                let complaint = Complaint { blocks: findings.bad, told: false };
                self.complaints.entry(findings.offset).or_insert(complaint);
            }
            Purpose::Complain => {}
            Purpose::Fetch { conn, token } => answer(turn, conn, (standing, token), findings),
            Purpose::Mend { conn, mend } => self.write(turn, conn, mend, findings),
        }
        if let Some(primary) = primary {
            self.complain(turn, primary, standing);
        }
    }

    fn write(&mut self, turn: &mut Turn<'_>, conn: ConnId, mend: MendBlocks, findings: Findings) {
        let UnitBlocks { unit, blocks, data } = &mend.content;
        let equal = match &findings.meta {
            Some(meta) => meta == unit,
            None => valid_mask(unit) == 0,
        };
        let (true, Some(good)) = (equal, good_blocks(&mend.content)) else {
            self.complaints.remove(&unit.offset);
            return mended(turn, conn, &mend, !equal);
        };
        assert_eq!(data.len() as u64, u64::from(blocks.count_ones()) * BLOCK, "checked above");
        let (key, replica, mod_seq) = (turn.token(), mend.replica, unit.mod_seq);
        let waits = good.len();
        for (block, crc, data) in good {
            let offset = block_offset(unit.offset, block);
            let change = Change::Write { crcs: vec![crc], data };
            turn.request(Op::Mend(key), Request::Change { replica, mod_seq, offset, change });
        }
        self.writing.insert(key, Writing { conn, mend, waits: waits + 1, failed: false });
        self.one_written(turn, key);
    }

    pub fn written(
        &mut self,
        turn: &mut Turn<'_>,
        (conn, standing): (Option<ConnId>, Standing),
        key: u64,
        outcome: Result<Outcome, OpError>,
    ) {
        if let Some(writing) = self.writing.get_mut(&key) {
            writing.failed |= outcome.is_err();
            self.one_written(turn, key);
        }
        if let Some(conn) = conn {
            self.complain(turn, conn, standing);
        }
    }

    fn one_written(&mut self, turn: &mut Turn<'_>, key: u64) {
        let writing = self.writing.get_mut(&key).expect("the caller looked");
        writing.waits -= 1;
        if writing.waits > 0 {
            return;
        }
        let Writing { conn, mend, failed, .. } = self.writing.remove(&key).expect("just seen");
        let (unit, blocks) = (mend.content.unit.offset, mend.content.blocks);
        self.complaints.remove(&unit);
        if !failed {
            let at = |block| block_offset(unit, block);
            blocks_of(blocks).for_each(|block| turn.note(at(block), Finding::Repaired));
            blocks_of(mend.lost).for_each(|block| turn.note(at(block), Finding::Lost));
        }
        mended(turn, conn, &mend, false);
    }
}

fn unit_at(offset: u64, size: u64) -> Option<Range> {
    let end = size.min(offset.checked_add(UNIT_BYTES)?);
    (unit_start(offset) == offset && offset < end).then_some(Range { start: offset, end })
}

/// The blocks that were sent, each with the checksum that the unit has for it; `None` if any does
/// not match.
pub fn good_blocks(content: &UnitBlocks) -> Option<Vec<(u32, u32, Bytes)>> {
    let len = usize::try_from(BLOCK).expect("small");
    let count = usize::try_from(content.blocks.count_ones()).expect("sixteen");
    if content.data.len() != count * len {
        return None;
    }
    let each = blocks_of(content.blocks).enumerate().map(|(index, block)| {
        let data = content.data.slice(index * len..(index + 1) * len);
        let crc = crc_of(&content.unit, block)?;
        (crc32c::crc32c(&data) == crc).then_some((block, crc, data))
    });
    each.collect()
}

fn answer(
    turn: &mut Turn<'_>,
    conn: ConnId,
    (standing, token): (Standing, u64),
    findings: Findings,
) {
    let Standing { group, replica, .. } = standing;
    let content = findings.meta.map(|unit| {
        let blocks = findings.good.keys().fold(0, |mask, block| mask | 1 << block);
        let data: Vec<u8> = findings.good.values().flatten().copied().collect();
        UnitBlocks { unit, blocks, data: data.into() }
    });
    turn.reply(conn, DataMessage::FetchedBlocks { group, replica, token, content });
}

fn mended(turn: &mut Turn<'_>, conn: ConnId, mend: &MendBlocks, differs: bool) {
    let (group, replica, token) = (mend.group, mend.replica, mend.token);
    turn.reply(conn, DataMessage::Mended { group, replica, token, differs });
}
