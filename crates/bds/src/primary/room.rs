//! Changes that wait, unordered, while a drive of the group is full.
//!
//! A drive that is full has slots left for what is in flight ([`DRIVE_FULL_PERCENT`]), so a change
//! that is ordered hardly ever waits in an engine, where it would hold up whatever overlaps it on
//! every member. A change that may need a slot waits here instead, while the manager moves
//! replicas away or somebody trims.
//!
//! Decides: which change waits before it is ordered, and when it goes on.
//! Does not: know how full a drive is (its server does), or free anything.
//! Invariant: what waits here has no lock and no `ModSeq`, so no fill, hand-over or other request
//! waits for it; it is answered in the end, or sent to whoever leads next.
//!
//! [`DRIVE_FULL_PERCENT`]: model::limits::DRIVE_FULL_PERCENT

use engine::api::Request;
use model::{
    id::ReplicaId,
    limits::RESYNC_UNIT_BYTES,
    units::{BLOCK, BLOCK_BYTES},
};

use crate::{
    lock::Range,
    turn::{Op, Turn},
};

use super::{Phase, Primary};

const UNIT: u64 = RESYNC_UNIT_BYTES as u64;

impl Primary {
    pub fn changes_waiting(&self) -> usize {
        self.waiting_for_room.len()
    }

    /// Whether a drive of the group is full, this one's or that of who must have every change.
    pub(super) fn is_full(&self, turn: &Turn<'_>) -> bool {
        let counts = |replica: &ReplicaId| {
            self.config.is_in_sync(*replica) || self.fills.get(replica).is_some_and(|f| f.counts())
        };
        turn.drive_full || self.peers.iter().any(|(id, peer)| peer.is_full && counts(id))
    }

    /// Asks the engine what the range of a change holds.
    pub(super) fn weigh(&self, turn: &mut Turn<'_>, ticket: u64, range: Range) {
        let start = range.start / UNIT * UNIT;
        let end = range.end.next_multiple_of(UNIT).min(self.config.size.get());
        let (replica, offset, length) = (self.id, start, end - start);
        turn.request(Op::Guest(ticket), Request::Allocated { replica, offset, length });
    }

    /// A member's drive became full, or has room again.
    pub(super) fn room_told(&mut self, turn: &Turn<'_>, replica: ReplicaId, full: bool) {
        self.heard(turn, replica);
        if let Some(peer) = self.peers.get_mut(&replica) {
            peer.is_full = full;
        }
    }

    /// Its own drive did.
    pub fn room_changed(&mut self, turn: &mut Turn<'_>) {
        self.go_on(turn);
    }

    /// What waited for room goes on when there is some.
    pub(super) fn take_up_waiting(&mut self, turn: &mut Turn<'_>) {
        let may = self.phase == Phase::Serving && !self.waiting_for_room.is_empty();
        if may && !self.is_full(turn) {
            for ticket in std::mem::take(&mut self.waiting_for_room) {
                self.run(turn, ticket);
            }
        }
    }
}

/// Whether every resync unit of an allocation bitmap holds something already: no member needs
/// another slot for it, whatever its media.
pub(super) fn has_slots(bitmap: &[u8]) -> bool {
    const BYTES: usize = (RESYNC_UNIT_BYTES / BLOCK_BYTES / 8) as usize;
    const _: () = assert!(UNIT.is_multiple_of(8 * BLOCK));
    bitmap.chunks(BYTES).all(|unit| unit.iter().any(|&byte| byte != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_that_touches_an_empty_unit_needs_a_slot() {
        assert!(has_slots(&[0, 1, 0x80, 0]));
        assert!(!has_slots(&[0, 1, 0, 0]));
        assert!(!has_slots(&[0, 0]));
    }
}
