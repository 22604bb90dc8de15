//! Changes of a replica's durable record: written first, acted on when durable and when nothing
//! of the old role is under way in the engine.

use engine::api::{META_BYTES_MAX, OpError, Outcome, Request};
use format::{
    ctl::ToManager,
    replica::{PART_BYTES_MAX, ReplicaRecord},
};
use model::sabotage::{Sabotage, is_on};
use model::units::ByteCount;

use crate::{
    api::ConnId,
    mirror::Mirror,
    primary::Primary,
    turn::{Op, Turn, refused_unknown},
};

use super::{Fate, Replica, Role};

/// A change of the durable record under way.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) record: ReplicaRecord,
    pub(super) size: ByteCount,
    pub(super) then: Then,
    pub(super) durable: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    Created,
    Promised,
    /// Obey this connection.
    Follow(ConnId),
    /// Tell this connection that the replica does not count.
    Refuse(ConnId),
    /// Tell the manager that the replica does not count.
    TellStale,
    Lead,
    Remove,
    Nothing,
}

impl Replica {
    /// Makes a record durable, unless it is already.
    pub(super) fn begin(
        &mut self,
        turn: &mut Turn<'_>,
        record: ReplicaRecord,
        size: ByteCount,
        then: Then,
    ) {
        assert!(self.pending.is_none(), "one change of the record at a time");
        assert!(record.promised >= self.record.promised, "a promise is never taken back");
        let forgotten = match then {
            Then::Promised => is_on(Sabotage::PromiseForgotten),
            Then::Lead => is_on(Sabotage::AdoptionForgotten),
            _ => false,
        };
        let durable = (record == self.record && size == self.size) || forgotten;
        if !durable {
            let request = Request::SetReplicaMeta { replica: self.id, size, meta: encode(&record) };
            turn.request(Op::Record, request);
        }
        self.pending = Some(Pending { record, size, then, durable });
        self.withdraw_if_ending(turn);
    }

    /// What waits for space would hold up a change of role for as long.
    pub(super) fn withdraw_if_ending(&self, turn: &mut Turn<'_>) {
        if self.pending.as_ref().is_some_and(|p| !self.settled(p.then, turn)) {
            turn.request(Op::Withdraw, Request::Withdraw { replica: self.id });
        }
    }

    /// Whether it waits for what the engine was asked in the role it has.
    fn ends_role(&self, then: Then) -> bool {
        match then {
            Then::Created | Then::Promised | Then::Nothing | Then::TellStale | Then::Refuse(_) => {
                false
            }
            Then::Lead => matches!(self.role, Role::Mirror(_)),
            Then::Follow(_) | Then::Remove => true,
        }
    }

    pub(super) fn record_written(
        &mut self,
        turn: &mut Turn<'_>,
        outcome: Result<Outcome, OpError>,
    ) {
        let pending = self.pending.as_mut().expect("a record is written for a pending change");
        match outcome {
            Ok(_) => pending.durable = true,
            Err(error) if pending.then == Then::Created => {
                let (replica, reason) = (self.id, error.to_string());
                turn.tell(ToManager::ReplicaRefused { replica, reason });
                self.fate = Fate::Gone;
            }
            // The drive is out of service; the server hears of it apart and drops the replica.
            Err(_) => {}
        }
    }

    /// To be called at the end of each turn: goes on as far as what is durable allows.
    pub fn advance(&mut self, turn: &mut Turn<'_>) {
        while self.fate == Fate::Lives {
            if self.pending.as_ref().is_some_and(|p| p.durable && self.settled(p.then, turn)) {
                let pending = self.pending.take().expect("looked at above");
                self.act(turn, pending);
            } else if self.pending.is_none()
                && let Some(input) = self.held.pop_front()
            {
                self.take(turn, input);
            } else {
                break;
            }
        }
    }

    /// Whether the engine is done with what must not mix with what follows.
    pub(super) fn settled(&self, then: Then, turn: &Turn<'_>) -> bool {
        !self.ends_role(then) || turn.busy == 0
    }

    pub(super) fn act(&mut self, turn: &mut Turn<'_>, pending: Pending) {
        let Pending { record, size, then, .. } = pending;
        self.record = record;
        self.size = size;
        match then {
            Then::Nothing => {}
            Then::Created => {
                self.created = true;
                turn.tell(ToManager::ReplicaCreated { replica: self.id });
            }
            Then::Promised => turn.tell(ToManager::Promised {
                replica: self.id,
                epoch: self.record.promised,
                state: self.report(turn.allocated),
            }),
            Then::TellStale => self.tell_stale(turn),
            Then::Refuse(conn) => {
                self.tell_stale(turn);
                turn.reply(conn, refused_unknown(self.record.group, self.id));
            }
            Then::Follow(conn) => {
                let damaged = match &self.role {
                    Role::Primary(primary) => primary.damaged_units(),
                    Role::Mirror(_) => Vec::new(),
                };
                if let Role::Primary(_) = self.role {
                    self.role = Role::Mirror(Mirror::default());
                }
                let standing = self.standing();
                if let Role::Mirror(mirror) = &mut self.role {
                    mirror.follow(turn, conn, standing);
                    damaged.into_iter().for_each(|unit| mirror.mender.remember(unit));
                    mirror.mender.complain_again(turn, conn, standing);
                }
                self.links_changed = true;
            }
            Then::Lead => self.lead(turn),
            Then::Remove => {
                turn.request(Op::Remove, Request::RemoveReplica { replica: self.id });
                // Nothing else is taken up until it is gone.
                let record = self.record.clone();
                self.pending = Some(Pending { record, size, then: Then::Nothing, durable: false });
            }
        }
    }

    /// Until it registers again the manager takes it for what it was: a successor.
    fn tell_stale(&self, turn: &mut Turn<'_>) {
        if !is_on(Sabotage::StalePromises) {
            turn.tell(ToManager::ReplicaStale { replica: self.id });
        }
    }

    pub(super) fn lead(&mut self, turn: &mut Turn<'_>) {
        let config = self.record.adopted.clone().expect("a primary has a configuration");
        match &mut self.role {
            Role::Primary(primary) => primary.adopt(turn, config),
            Role::Mirror(mirror) => {
                let damaged = mirror.mender.damaged_units();
                let mut primary = Box::new(Primary::activate(turn, self.id, config));
                damaged.into_iter().for_each(|unit| primary.met_damage(turn, unit));
                self.role = Role::Primary(primary);
            }
        }
        self.links_changed = true;
    }
}

/// What the engine keeps, less what a part of a striped replica adds.
const RECORD_BYTES_MAX: usize = META_BYTES_MAX - PART_BYTES_MAX;

/// Whether a record with a configuration from outside can be stored.
pub(super) fn fits(record: &ReplicaRecord) -> bool {
    record.encode().len() <= RECORD_BYTES_MAX
}

pub(super) fn encode(record: &ReplicaRecord) -> bytes::Bytes {
    let bytes = record.encode();
    assert!(bytes.len() <= RECORD_BYTES_MAX, "checked when the configuration came in");
    bytes
}
