//! Repair of a block that the primary's drive damaged: the resync unit around it is fetched from
//! a mirror and installed, and the read that met it is tried again.
//!
//! Decides: from which mirror, and when to give up.
//! Invariant: no change to the unit is in flight while it is fetched and installed, so what the
//! mirror sends is what this replica should hold.

use std::collections::BTreeSet;

use bytes::Bytes;
use engine::api::{OpError, Outcome, Request};
use format::data::{DataMessage, Status, UnitMeta};
use model::{
    id::{ReplicaId, ServerId},
    limits::RESYNC_UNIT_BYTES,
};

use crate::{
    image,
    lock::{LockId, Mode, Range},
    turn::{Op, Turn},
};

use super::{Owner, Primary};

const UNIT_BYTES: u64 = RESYNC_UNIT_BYTES as u64;

#[derive(Debug)]
pub struct Repair {
    unit: Range,
    lock: LockId,
    /// Tickets of reads that wait for it.
    readers: Vec<u64>,
    stage: Stage,
    /// Mirrors that cannot read it either.
    tried: BTreeSet<ReplicaId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// For changes in flight.
    Waiting,
    Asked(ReplicaId),
    Installing,
}

impl Primary {
    /// A read met a damaged block. False: nobody else has it.
    pub(super) fn repair(&mut self, turn: &mut Turn<'_>, ticket: u64, offset: u64) -> bool {
        if self.is_deposed() || self.config.mirrors().next().is_none() {
            return false;
        }
        let start = offset / UNIT_BYTES * UNIT_BYTES;
        let known = self.repairs.values_mut().find(|repair| repair.unit.start == start);
        if let Some(repair) = known {
            repair.readers.push(ticket);
            return true;
        }
        let unit = Range { start, end: self.config.size.get().min(start + UNIT_BYTES) };
        let token = turn.token();
        let (lock, granted) = self.locks.take(unit, Mode::Shared);
        self.owners.insert(lock, Owner::Repair(token));
        let (readers, stage, tried) = (vec![ticket], Stage::Waiting, BTreeSet::new());
        self.repairs.insert(token, Repair { unit, lock, readers, stage, tried });
        if granted {
            self.ask_mirror(turn, token);
        }
        true
    }

    pub fn knows_repair(&self, token: u64) -> bool {
        self.repairs.contains_key(&token)
    }

    /// Asks the first mirror that has not failed yet.
    pub(super) fn ask_mirror(&mut self, turn: &mut Turn<'_>, token: u64) {
        let repair = self.repairs.get_mut(&token).expect("the caller knows it");
        let mirror = self.config.mirrors().find(|m| !repair.tried.contains(&m.replica));
        let Some(mirror) = mirror else { return self.end_repair(turn, token, false) };
        repair.stage = Stage::Asked(mirror.replica);
        let message = DataMessage::PullRegion {
            group: self.config.group,
            epoch: self.config.epoch,
            replica: mirror.replica,
            token,
            offset: repair.unit.start,
            length: u32::try_from(repair.unit.length()).expect("a unit"),
            have: Vec::new(),
        };
        turn.send(&mirror.server, message);
    }

    /// What was asked of these mirrors may be lost, or refused because they had another
    /// configuration. `None`: all of them.
    pub(super) fn ask_mirrors_again(&mut self, turn: &mut Turn<'_>, server: Option<&ServerId>) {
        let asked = |repair: &Repair| match (repair.stage, server) {
            (Stage::Asked(_), None) => true,
            (Stage::Asked(mirror), Some(server)) => {
                self.peers.get(&mirror).is_some_and(|peer| peer.server == *server)
            }
            _ => false,
        };
        let tokens: Vec<u64> =
            self.repairs.iter().filter(|(_, r)| asked(r)).map(|(&token, _)| token).collect();
        for token in tokens {
            self.ask_mirror(turn, token);
        }
    }

    /// A mirror's image of the unit.
    pub fn repair_received(
        &mut self,
        turn: &mut Turn<'_>,
        token: u64,
        (status, units, data): (Status, Vec<UnitMeta>, Bytes),
    ) {
        let Some(repair) = self.repairs.get_mut(&token) else { return };
        let Stage::Asked(mirror) = repair.stage else { return };
        match status {
            Status::Ok if image::verified(&units, &data, repair.unit) && !units.is_empty() => {
                repair.stage = Stage::Installing;
                let request = Request::Install { replica: self.id, units, data };
                turn.request(Op::Repair(token), request);
            }
            // Asked again with the next tick.
            Status::NotReady => {}
            _ => {
                repair.tried.insert(mirror);
                self.ask_mirror(turn, token);
            }
        }
        self.go_on(turn);
    }

    pub fn repair_installed(
        &mut self,
        turn: &mut Turn<'_>,
        token: u64,
        outcome: Result<Outcome, OpError>,
    ) {
        self.end_repair(turn, token, outcome.is_ok());
        self.go_on(turn);
    }

    fn end_repair(&mut self, turn: &mut Turn<'_>, token: u64, repaired: bool) {
        let repair = self.repairs.remove(&token).expect("ended once");
        self.release(repair.lock);
        for ticket in repair.readers {
            self.read_again(turn, ticket, repaired);
        }
    }
}
