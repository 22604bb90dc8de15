//! Repair of damaged blocks of a group: the primary's own, and those that a mirror complains of.
//!
//! Decides: which replica's copy of a block is taken, and when nobody has a good one.
//! Invariants: no change to the unit is in flight while blocks are fetched and written, so what
//! a member sends is what everybody should hold; a block is taken only from a replica whose
//! description of the unit equals the primary's, and matches the checksum in it; it is written
//! with the unit's own `mod_seq` (24). A member whose description differs is not chosen over
//! anybody: it is reported (19).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use engine::api::{OpError, Outcome, Request};
use format::data::{Change, DataMessage, FetchBlocks, MendBlocks, UnitBlocks, UnitMeta};
use model::{
    epoch::{Epoch, ModSeq},
    id::{ReplicaId, ServerId},
};

use crate::{
    examine::{
        Blocks, Done, Findings, UNIT_BYTES, block_offset, blocks_of, crc_of, unit_start, valid_mask,
    },
    lock::{LockId, Mode, Range},
    mend::good_blocks,
    turn::{Finding, Op, Turn},
};

use super::{Owner, Primary};

/// Repairs at once. Guests' reads, the scrub and mirrors ask for far fewer.
const REPAIRS_MAX: usize = 1024;

#[derive(Debug)]
pub struct Repair {
    /// Whose blocks are damaged.
    target: ReplicaId,
    unit: Range,
    lock: LockId,
    /// Tickets of reads that wait for it.
    readers: Vec<u64>,
    stage: Stage,
    /// Damaged at the target, and found nowhere yet.
    wanted: Blocks,
    /// The unit as the primary describes it; `None`: it holds nothing.
    reference: Option<UnitMeta>,
    found: BTreeMap<u32, Bytes>,
    /// Mirrors that were asked, and those of them that lack a block as well.
    tried: BTreeSet<ReplicaId>,
    lacking: BTreeSet<ReplicaId>,
    /// Own blocks that are being written, and whether that went well.
    writes: usize,
    failed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// For changes in flight.
    Waiting,
    /// The primary looks at its own blocks.
    Examining,
    Asked(ReplicaId),
    Writing,
    /// The target was sent what was found.
    Mending,
}

impl Primary {
    /// A read met damage in the unit. False: nobody else could have it.
    pub(super) fn repair(&mut self, turn: &mut Turn<'_>, ticket: u64, unit: u64) -> bool {
        if self.is_deposed() {
            return false;
        }
        self.begin_repair(turn, self.id, unit, Blocks::MAX, Some(ticket))
    }

    /// Something of the own unit at this offset cannot be read.
    pub fn met_damage(&mut self, turn: &mut Turn<'_>, offset: u64) {
        if offset < self.config.size.get() {
            self.begin_repair(turn, self.id, unit_start(offset), Blocks::MAX, None);
        }
        self.go_on(turn);
    }

    /// A mirror cannot read some blocks.
    pub(super) fn complaint(
        &mut self,
        turn: &mut Turn<'_>,
        (mirror, epoch): (ReplicaId, Epoch),
        (offset, blocks): (u64, Blocks),
    ) {
        let is_mirror = self.config.mirrors().any(|m| m.replica == mirror);
        let fits = unit_start(offset) == offset && offset < self.config.size.get();
        if is_mirror && fits && epoch == self.config.epoch {
            self.begin_repair(turn, mirror, offset, blocks, None);
        }
    }

    /// Own units that are damaged as far as is known.
    pub fn damaged_units(&self) -> Vec<u64> {
        let own = self.repairs.values().filter(|repair| repair.target == self.id);
        own.map(|repair| repair.unit.start).collect()
    }

    /// Joins the repair of that unit, or begins one when the unit can be held. False: there are too
    /// many.
    fn begin_repair(
        &mut self,
        turn: &mut Turn<'_>,
        target: ReplicaId,
        start: u64,
        wanted: Blocks,
        reader: Option<u64>,
    ) -> bool {
        let same = |repair: &Repair| repair.target == target && repair.unit.start == start;
        if let Some(repair) = self.repairs.values_mut().find(|repair| same(repair)) {
            repair.readers.extend(reader);
            return true;
        }
        if self.repairs.len() >= REPAIRS_MAX {
            return false;
        }
        let unit = Range { start, end: self.config.size.get().min(start + UNIT_BYTES) };
        let token = turn.token();
        let (lock, granted) = self.locks.take(unit, Mode::Shared);
        self.owners.insert(lock, Owner::Repair(token));
        if granted {
            self.granted.push_back(lock);
        }
        let (stage, reference, found) = (Stage::Waiting, None, BTreeMap::new());
        let readers = reader.into_iter().collect();
        let (tried, lacking) = (BTreeSet::new(), BTreeSet::new());
        let (writes, failed) = (0, false);
        let repair = Repair {
            target,
            unit,
            lock,
            readers,
            stage,
            wanted,
            reference,
            found,
            tried,
            lacking,
            writes,
            failed,
        };
        self.repairs.insert(token, repair);
        true
    }

    /// The unit is held: looks at what the primary itself has of it.
    pub(super) fn start_repair(&mut self, turn: &mut Turn<'_>, token: u64) {
        let repair = self.repairs.get_mut(&token).expect("the owner of the lock");
        assert_eq!(repair.stage, Stage::Waiting, "a lock is granted once");
        repair.stage = Stage::Examining;
        let (unit, wanted) = (repair.unit, repair.wanted);
        self.examiner.begin(turn, self.id, token, unit, wanted);
    }

    pub fn examine_described(
        &mut self,
        turn: &mut Turn<'_>,
        key: u64,
        outcome: Result<Outcome, OpError>,
    ) {
        let done = self.examiner.described(turn, self.id, key, outcome);
        self.examined(turn, done);
    }

    pub fn examine_read(
        &mut self,
        turn: &mut Turn<'_>,
        at: (u64, u32),
        outcome: Result<Outcome, OpError>,
    ) {
        let done = self.examiner.read(turn, at, outcome);
        self.examined(turn, done);
    }

    fn examined(&mut self, turn: &mut Turn<'_>, done: Done<u64>) {
        let Some((token, findings)) = done else { return };
        // Without findings the own drive is out of service.
        if let Some(Findings { meta, good, bad, offset }) = findings {
            let repair = self.repairs.get_mut(&token).expect("it waits for this");
            repair.wanted &= bad;
            repair.reference = meta;
            let target = repair.target;
            if target != self.id {
                repair.found = good;
                if bad != 0 {
                    self.begin_repair(turn, self.id, offset, Blocks::MAX, None);
                }
            }
            self.gather(turn, token);
        } else {
            self.end_repair(turn, token);
        }
        self.go_on(turn);
    }

    /// Asks the next mirror for what is still wanted, or concludes.
    fn gather(&mut self, turn: &mut Turn<'_>, token: u64) {
        let repair = self.repairs.get_mut(&token).expect("the caller knows it");
        let asks = |r: ReplicaId| r != repair.target && !repair.tried.contains(&r);
        let next = self.config.mirrors().find(|m| asks(m.replica));
        let (true, Some(mirror)) = (repair.wanted != 0, next) else {
            return self.conclude(turn, token);
        };
        repair.stage = Stage::Asked(mirror.replica);
        let fetch = FetchBlocks {
            group: self.config.group,
            replica: mirror.replica,
            epoch: self.config.epoch,
            token,
            offset: repair.unit.start,
            blocks: repair.wanted,
        };
        turn.send(&mirror.server, DataMessage::FetchBlocks(fetch));
    }

    /// A mirror's copies of damaged blocks.
    pub(super) fn blocks_fetched(
        &mut self,
        turn: &mut Turn<'_>,
        (mirror, token): (ReplicaId, u64),
        content: Option<&UnitBlocks>,
    ) {
        let Some(repair) = self.repairs.get_mut(&token) else { return };
        if repair.stage != Stage::Asked(mirror) {
            return;
        }
        repair.tried.insert(mirror);
        let equal = content.map(|c| &c.unit) == repair.reference.as_ref();
        if let Some(content) = content.filter(|_| equal) {
            for (block, _, data) in good_blocks(content).into_iter().flatten() {
                if repair.wanted >> block & 1 == 1 {
                    repair.wanted &= !(1 << block);
                    repair.found.insert(block, data);
                }
            }
        }
        if equal && repair.wanted != 0 {
            repair.lacking.insert(mirror);
        }
        let offset = repair.unit.start;
        if !equal {
            self.differs(turn, mirror, offset);
        }
        self.gather(turn, token);
    }

    /// Everybody was asked: what was found is written.
    fn conclude(&mut self, turn: &mut Turn<'_>, token: u64) {
        let repair = self.repairs.get_mut(&token).expect("the caller knows it");
        if repair.target != self.id {
            return self.send_mend(turn, token);
        }
        repair.stage = Stage::Writing;
        repair.writes = repair.found.len();
        let mod_seq = repair.reference.as_ref().map_or(ModSeq::NONE, |unit| unit.mod_seq);
        for (&block, data) in &repair.found {
            let crc = repair.reference.as_ref().and_then(|unit| crc_of(unit, block));
            let crcs = vec![crc.expect("found with its checksum")];
            let change = Change::Write { crcs, data: data.clone() };
            let (replica, offset) = (self.id, block_offset(repair.unit.start, block));
            turn.request(Op::Repair(token), Request::Change { replica, mod_seq, offset, change });
        }
        if repair.writes == 0 {
            self.end_repair(turn, token);
        }
    }

    /// An own block was written again.
    pub fn repair_written(
        &mut self,
        turn: &mut Turn<'_>,
        token: u64,
        outcome: &Result<Outcome, OpError>,
    ) {
        let repair = self.repairs.get_mut(&token).expect("it waits for this");
        repair.writes -= 1;
        repair.failed |= outcome.is_err();
        if repair.writes == 0 {
            self.end_repair(turn, token);
        }
        self.go_on(turn);
    }

    fn send_mend(&mut self, turn: &mut Turn<'_>, token: u64) {
        let repair = self.repairs.get_mut(&token).expect("the caller knows it");
        let target = self.config.mirrors().find(|m| m.replica == repair.target);
        let Some(target) = target else { return self.end_repair(turn, token) };
        repair.stage = Stage::Mending;
        let nothing = UnitMeta {
            offset: repair.unit.start,
            mod_seq: ModSeq::NONE,
            valid: vec![0; 2],
            crcs: vec![],
        };
        let unit = repair.reference.clone().unwrap_or(nothing);
        let blocks = repair.found.keys().fold(0, |mask, block| mask | 1 << block);
        let data: Vec<u8> = repair.found.values().flatten().copied().collect();
        let mend = MendBlocks {
            group: self.config.group,
            replica: target.replica,
            epoch: self.config.epoch,
            token,
            lost: repair.wanted & valid_mask(&unit),
            content: UnitBlocks { unit, blocks, data: data.into() },
        };
        turn.send(&target.server, DataMessage::MendBlocks(mend));
    }

    /// The target has written what it was sent.
    pub(super) fn mended(
        &mut self,
        turn: &mut Turn<'_>,
        (mirror, token): (ReplicaId, u64),
        differs: bool,
    ) {
        let Some(repair) = self.repairs.get(&token) else { return };
        if repair.target != mirror || repair.stage != Stage::Mending {
            return;
        }
        let offset = repair.unit.start;
        if differs {
            self.differs(turn, mirror, offset);
        }
        self.end_repair(turn, token);
    }

    /// What was asked of mirrors may be lost, or ignored because they had another configuration.
    /// `None`: all of them.
    pub(super) fn ask_mirrors_again(&mut self, turn: &mut Turn<'_>, server: Option<&ServerId>) {
        let at = |replica: ReplicaId| match server {
            None => true,
            Some(server) => self.peers.get(&replica).is_some_and(|peer| peer.server == *server),
        };
        let waits = |repair: &Repair| match repair.stage {
            Stage::Asked(mirror) => at(mirror),
            Stage::Mending => at(repair.target),
            _ => false,
        };
        let tokens: Vec<u64> =
            self.repairs.iter().filter(|(_, r)| waits(r)).map(|(&token, _)| token).collect();
        for token in tokens {
            match self.repairs[&token].stage {
                Stage::Mending => self.send_mend(turn, token),
                _ => self.gather(turn, token),
            }
        }
    }

    fn end_repair(&mut self, turn: &mut Turn<'_>, token: u64) {
        let repair = self.repairs.remove(&token).expect("ended once");
        if repair.target == self.id && repair.reference.is_some() && !repair.failed {
            let at = |block: u32| block_offset(repair.unit.start, block);
            repair.found.keys().for_each(|&block| turn.note(at(block), Finding::Repaired));
            blocks_of(repair.wanted).for_each(|block| turn.note(at(block), Finding::Lost));
        }
        self.release(repair.lock);
        for ticket in repair.readers {
            self.read_again(turn, ticket);
        }
        // A third replica had what these lack. They do not complain of what they are asked for.
        if repair.wanted == 0 {
            for mirror in repair.lacking {
                self.begin_repair(turn, mirror, repair.unit.start, Blocks::MAX, None);
            }
        }
    }
}
