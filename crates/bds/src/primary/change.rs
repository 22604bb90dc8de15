//! A change in flight: written here, replicated, counted, acknowledged.

use std::collections::BTreeMap;

use engine::api::{OpError, Outcome, Request};
use format::data::{Change, DataMessage, Replicate, RequestId};
use model::{
    epoch::{Epoch, ModSeq},
    id::ReplicaId,
    sabotage::{Sabotage, is_on},
    time::Instant,
};

use crate::{
    lock::{LockId, Range},
    turn::{Op, Turn},
};

use super::{Phase, Primary, STUCK};

#[derive(Debug)]
pub struct Flight {
    /// Who waits for it; nobody any more after this primary was deposed.
    ticket: Option<u64>,
    /// Whose it was then: it is not to be carried out again if this primary goes on after all (9).
    orphan_of: Option<RequestId>,
    lock: LockId,
    range: Range,
    change: Change,
    /// The own engine has it not yet.
    own: bool,
    /// Members that have not acknowledged it, and the epoch under which it was last sent.
    owed: BTreeMap<ReplicaId, Epoch>,
    pub(super) since: Instant,
}

impl Flight {
    /// In flight for so long that it may wait for space.
    pub(super) fn is_stuck(&self, now: Instant) -> bool {
        now.since(self.since) >= STUCK
    }

    pub(super) fn has_guest(&self) -> bool {
        self.ticket.is_some()
    }

    pub(super) fn range(&self) -> Range {
        self.range
    }

    /// The own engine has it not yet.
    pub(super) fn is_own(&self) -> bool {
        self.own
    }

    pub(super) fn is_owed_to(&self, replica: ReplicaId) -> bool {
        self.owed.contains_key(&replica)
    }
}

impl Primary {
    /// Gives the change its place in the order and sends it everywhere at once.
    pub(super) fn order(
        &mut self,
        turn: &mut Turn<'_>,
        (ticket, lock): (u64, LockId),
        range: Range,
        change: Change,
    ) {
        self.sequence += 1;
        let mod_seq = ModSeq::new(self.config.epoch, self.sequence);
        let epoch = self.config.epoch;
        let owed = self.peers.keys().filter(|&&r| self.needs(r, range)).map(|&r| (r, epoch));
        let owed: BTreeMap<ReplicaId, Epoch> = owed.collect();
        let replica = self.id;
        let request =
            Request::Change { replica, mod_seq, offset: range.start, change: change.clone() };
        turn.request(Op::Change(mod_seq), request);
        let (ticket, orphan_of, own, since) = (Some(ticket), None, true, turn.now);
        let flight = Flight { ticket, orphan_of, lock, range, change, own, owed, since };
        for &replica in flight.owed.keys() {
            self.replicate(turn, replica, mod_seq, &flight);
        }
        self.flights.insert(mod_seq, flight);
    }

    /// Whether changes of this range need the peer's acknowledgement.
    fn needs(&self, replica: ReplicaId, range: Range) -> bool {
        self.config.is_in_sync(replica)
            || (!is_on(Sabotage::FilledNotForwarded)
                && self.fills.get(&replica).is_some_and(|fill| fill.wants(range)))
    }

    fn replicate(&self, turn: &mut Turn<'_>, replica: ReplicaId, mod_seq: ModSeq, flight: &Flight) {
        let peer = self.peers.get(&replica).expect("owed only to peers");
        let message = Replicate {
            group: self.config.group,
            replica,
            epoch: self.config.epoch,
            mod_seq,
            offset: flight.range.start,
            change: flight.change.clone(),
        };
        turn.send(&peer.server, DataMessage::Replicate(message));
    }

    /// Sends again, in order, what a member has not acknowledged and was last sent below `epoch`.
    pub(super) fn resend(&mut self, turn: &mut Turn<'_>, replica: ReplicaId, below: Epoch) {
        let now = self.config.epoch;
        let mut flights = std::mem::take(&mut self.flights);
        for (&mod_seq, flight) in &mut flights {
            if let Some(sent) = flight.owed.get_mut(&replica).filter(|sent| **sent < below) {
                *sent = now;
                self.replicate(turn, replica, mod_seq, flight);
            }
        }
        self.flights = flights;
    }

    pub(super) fn resend_all(&mut self, turn: &mut Turn<'_>) {
        let peers: Vec<ReplicaId> = self.peers.keys().copied().collect();
        for replica in peers {
            self.resend(turn, replica, Epoch::MAX);
        }
    }

    pub fn own_change_done(
        &mut self,
        turn: &mut Turn<'_>,
        mod_seq: ModSeq,
        outcome: Result<Outcome, OpError>,
    ) {
        match outcome {
            Ok(_) => {
                let Some(flight) = self.flights.get_mut(&mod_seq) else {
                    assert!(is_on(Sabotage::OwnNotWaited), "own changes stay in flight");
                    return;
                };
                flight.own = false;
                let took = (turn.now.since(flight.since), flight.range.length());
                self.pace.took(turn.now, self.id, took);
                self.finish_flight(turn, mod_seq);
            }
            Err(OpError::BadChecksum | OpError::OutOfRange) => {
                unreachable!("change {mod_seq} was checked when it was taken up")
            }
            // It ends as primary, and the change stays in flight for whoever leads next to settle.
            Err(OpError::Withdrawn) => return,
            // The drive is out of service: never acknowledged. The server reports it, and drops
            // this replica.
            Err(_) => self.depose(turn),
        }
        self.go_on(turn);
    }

    pub(super) fn acknowledged(
        &mut self,
        turn: &mut Turn<'_>,
        replica: ReplicaId,
        mod_seq: ModSeq,
    ) {
        self.heard(turn, replica);
        if let Some(flight) = self.flights.get_mut(&mod_seq)
            && flight.owed.remove(&replica).is_some()
        {
            let took = (turn.now.since(flight.since), flight.range.length());
            self.pace.took(turn.now, replica, took);
            self.finish_flight(turn, mod_seq);
        }
    }

    /// Nobody waits for the change of that request any more; it stays owed.
    pub(super) fn orphan_flight(&mut self, ticket: u64, id: RequestId) {
        for flight in self.flights.values_mut() {
            if flight.ticket == Some(ticket) {
                (flight.ticket, flight.orphan_of) = (None, Some(id));
            }
        }
    }

    /// Nobody waits for the member any more, though it counts: only on purpose.
    pub(super) fn forgive(&mut self, turn: &mut Turn<'_>, replica: ReplicaId) {
        for flight in self.flights.values_mut() {
            flight.owed.remove(&replica);
        }
        self.recount_flights(turn);
    }

    /// What is owed to nobody who counts is complete.
    pub(super) fn recount_flights(&mut self, turn: &mut Turn<'_>) {
        let mut flights = std::mem::take(&mut self.flights);
        for flight in flights.values_mut() {
            let range = flight.range;
            flight.owed.retain(|&replica, _| self.needs(replica, range));
        }
        let all: Vec<ModSeq> = flights.keys().copied().collect();
        self.flights = flights;
        for mod_seq in all {
            self.finish_flight(turn, mod_seq);
        }
    }

    /// Acknowledges a change that everybody has who must have it.
    fn finish_flight(&mut self, turn: &mut Turn<'_>, mod_seq: ModSeq) {
        let Some(flight) = self.flights.get(&mod_seq) else { return };
        if self.phase == Phase::Deposed
            || (flight.own && !is_on(Sabotage::OwnNotWaited))
            || !(flight.owed.is_empty() || is_on(Sabotage::AcknowledgedAlone))
        {
            return;
        }
        let flight = self.flights.remove(&mod_seq).expect("looked at above");
        match flight.ticket {
            Some(ticket) => self.change_done(turn, ticket),
            None => {
                if let Some(id) = flight.orphan_of {
                    self.sessions.settle(id);
                }
                self.release(flight.lock);
            }
        }
    }
}
