//! Turns of replicas, and what their engines are asked and answer.

use engine::api::{OpError, OpToken, Outcome, Request};
use format::ctl::ToManager;
use model::{
    id::{DriveName, GroupId, ReplicaId},
    time::Instant,
};

use crate::{
    api::{Action, Incident},
    drive::{Drive, FromDrive},
    parts::{Asked, Join, split},
    place::Place,
    primary::Primary,
    replica::{Fate, Replica},
    turn::{Op, Turn},
};

use super::{Server, allocated};

impl Server {
    pub(super) fn each_replica(
        &mut self,
        now: Instant,
        out: &mut Vec<Action>,
        mut act: impl FnMut(&mut Replica, &mut Turn<'_>),
    ) {
        let all: Vec<ReplicaId> = self.replicas.keys().copied().collect();
        for replica in all {
            self.turn(now, replica, out, &mut act);
        }
    }

    /// Lets a replica act, and passes on what it asks of its engine.
    pub(super) fn turn(
        &mut self,
        now: Instant,
        id: ReplicaId,
        out: &mut Vec<Action>,
        act: impl FnOnce(&mut Replica, &mut Turn<'_>),
    ) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        let has_one_copy = replica.primary().is_some_and(Primary::has_one_copy);
        let (mut requests, mut findings) = (Vec::new(), Vec::new());
        let mut turn = Turn {
            now,
            timing: self.params.timing,
            links: &self.links,
            tokens: &mut self.tokens,
            out,
            requests: &mut requests,
            findings: &mut findings,
            allocated: allocated(&self.drives, id, &replica.place),
            drive_full: replica.place.drives().iter().any(|d| self.drives[d].is_full()),
            busy: replica.busy,
            fill_room: self.filling.room(has_one_copy),
            awaits_fill: false,
        };
        act(replica, &mut turn);
        replica.advance(&mut turn);
        replica.busy = turn.busy;
        self.filling.note(id, replica.primary().map_or(0, Primary::fills_under_way));
        if turn.awaits_fill {
            self.filling.wait(id, has_one_copy);
        }
        self.links_changed |= std::mem::replace(&mut replica.links_changed, false);
        if !std::mem::replace(&mut replica.touched, true) {
            self.beats.touch(id);
        }
        let (place, deadline) = (replica.place.clone(), replica.deadline());
        let volume = replica.volume();
        for (offset, finding) in findings {
            if replica.damage.note(offset, finding) {
                let drive = place.drive_of(offset).clone();
                let damage = &mut self.drives.get_mut(&drive).expect("it lies there").damage;
                crate::damage::add(damage, finding);
                out.push(Action::Note(Incident { volume, replica: id, drive, offset, finding }));
            }
        }
        if replica.fate == Fate::Gone {
            if !replica.is_created() {
                self.leave_parts(id);
            }
            self.forget(id);
        } else {
            self.wake(id, deadline);
        }
        for (op, request) in requests {
            self.ask(now, &place, (id, op), request, out);
        }
    }

    pub(super) fn wake(&mut self, replica: ReplicaId, at: Option<Instant>) {
        let before = match at {
            Some(at) => self.wakes.insert(replica, at),
            None => self.wakes.remove(&replica),
        };
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.wake_order.remove(&(before, replica));
        }
        if let Some(at) = at {
            self.wake_order.insert((at, replica));
        }
    }

    /// The replicas of a group that lie here: one, or two while it moves between drives.
    pub(super) fn here(&self, group: GroupId) -> impl Iterator<Item = &Replica> {
        let ids = self.groups.get(&group).into_iter().flatten();
        ids.map(|id| self.replicas.get(id).expect("the index follows the replicas"))
    }

    pub(super) fn add(&mut self, replica: Replica) {
        self.groups.entry(replica.group()).or_default().insert(replica.id);
        self.replicas.insert(replica.id, replica);
    }

    pub(super) fn forget(&mut self, replica: ReplicaId) {
        self.wake(replica, None);
        self.filling.note(replica, 0);
        let Some(gone) = self.replicas.remove(&replica) else { return };
        if let Some(group) = self.groups.get_mut(&gone.group()) {
            group.remove(&replica);
            if group.is_empty() {
                self.groups.remove(&gone.group());
            }
        }
        self.links_changed = true;
    }

    // Engines.

    pub(super) fn ask(
        &mut self,
        now: Instant,
        place: &Place,
        (replica, op): (ReplicaId, Op),
        request: Request,
        out: &mut Vec<Action>,
    ) -> OpToken {
        let token = self.op_token();
        self.asked.insert(token, (replica, op));
        if place.striped().is_none() {
            self.ask_drive(now, place.first(), token, request, out);
            return token;
        }
        let place = match self.replicas.get_mut(&replica) {
            Some(replica) if matches!(request, Request::SetReplicaMeta { .. }) => {
                replica.place.serial += 1;
                replica.place.clone()
            }
            _ => place.clone(),
        };
        match split(&place, request) {
            Ok((join, asked)) => self.ask_parts(now, token, join, (&place, asked), out),
            Err(error) => self.completed.push_back((token, Err(error))),
        }
        token
    }

    fn op_token(&mut self) -> OpToken {
        self.tokens += 1;
        OpToken(self.tokens)
    }

    fn ask_parts(
        &mut self,
        now: Instant,
        whole: OpToken,
        join: Join,
        (place, asked): (&Place, Asked),
        out: &mut Vec<Action>,
    ) {
        if join.is_complete() {
            return self.completed.push_back((whole, join.answer()));
        }
        self.joins.insert(whole, join);
        for (number, (part, request)) in asked.into_iter().enumerate() {
            let token = self.op_token();
            self.pieces.insert(token, (whole, number));
            self.ask_drive(now, &place.drives()[part], token, request, out);
        }
    }

    fn ask_drive(
        &mut self,
        now: Instant,
        drive: &DriveName,
        token: OpToken,
        request: Request,
        out: &mut Vec<Action>,
    ) {
        let is_open = self.drives.get(drive).is_some_and(|d| d.failed().is_none());
        if is_open {
            let event = engine::api::Event::Requested { token, request };
            self.feed_engine(now, drive, event, out);
        } else {
            self.completed.push_back((token, Err(OpError::DriveFailed)));
        }
    }

    pub(super) fn feed_engine(
        &mut self,
        now: Instant,
        name: &DriveName,
        event: engine::api::Event,
        out: &mut Vec<Action>,
    ) {
        let Some(drive) = self.drives.get_mut(name) else { return };
        let mut from_drive = Vec::new();
        drive.handle(now, event, &mut from_drive);
        self.take_from(now, name, from_drive, out);
    }

    pub(super) fn take_from(
        &mut self,
        now: Instant,
        name: &DriveName,
        from_drive: Vec<FromDrive>,
        out: &mut Vec<Action>,
    ) {
        let drive = self.drives.get_mut(name).expect("what comes from it");
        if drive.fullness_changed() {
            self.room_changed.push(name.clone());
        }
        for each in from_drive {
            match each {
                FromDrive::Act(action) => out.push(action),
                FromDrive::Completed(token, outcome) => self.completed.push_back((token, outcome)),
                FromDrive::Opened { found, formatted } => {
                    let (drive, replicas) = (name.clone(), found.len());
                    let stale = found.iter().filter(|each| each.stale).count();
                    out.push(Action::DriveOpened { drive, formatted, replicas, stale });
                    for each in found {
                        self.found(now, name, each, out);
                    }
                }
                FromDrive::Failed(reason) => self.drive_failed(now, name, reason, out),
            }
        }
    }

    /// Its replicas are served no more: whoever waits at a primary there is sent away, and who
    /// asks for them is told that they are unknown.
    pub(super) fn drive_failed(
        &mut self,
        now: Instant,
        name: &DriveName,
        reason: String,
        out: &mut Vec<Action>,
    ) {
        let drive = name.clone();
        out.push(Action::SendManager { message: ToManager::DriveFailed { drive, reason } });
        let there: Vec<ReplicaId> =
            self.replicas.values().filter(|r| r.place.lies_on(name)).map(|r| r.id).collect();
        for id in there {
            self.turn(now, id, out, |replica, turn| {
                if let Some(primary) = replica.primary_mut() {
                    primary.depose(turn);
                }
            });
            self.leave_parts(id);
            self.forget(id);
        }
        self.lose_parts(name);
    }

    /// What an engine has answered, if it is all that was asked for.
    fn whole(
        &mut self,
        token: OpToken,
        outcome: Result<Outcome, OpError>,
    ) -> Option<(OpToken, Result<Outcome, OpError>)> {
        let Some((whole, number)) = self.pieces.remove(&token) else {
            return Some((token, outcome));
        };
        let join = self.joins.get_mut(&whole).expect("it waits for its pieces");
        join.take(number, outcome);
        if !join.is_complete() {
            return None;
        }
        let join = self.joins.remove(&whole).expect("looked at above");
        Some((whole, join.answer()))
    }

    /// Lets the replicas of drives that became full, or have room again, know.
    fn tell_room(&mut self, now: Instant, out: &mut Vec<Action>) {
        for drive in std::mem::take(&mut self.room_changed) {
            let there =
                self.replicas.values().filter(|r| r.place.lies_on(&drive) && r.minds_room());
            let there: Vec<ReplicaId> = there.map(|r| r.id).collect();
            for id in there {
                self.turn(now, id, out, Replica::room_changed);
            }
        }
    }

    /// Follows what has happened to its end.
    pub(super) fn follow(&mut self, now: Instant, out: &mut Vec<Action>) {
        loop {
            while let Some((token, outcome)) = self.completed.pop_front() {
                let Some((token, outcome)) = self.whole(token, outcome) else { continue };
                let asked = self.asked.remove(&token);
                let (id, op) = asked.expect("an engine completes each request once");
                if op == Op::Scrub {
                    self.scrub_completed(now, token, outcome, out);
                } else if !self.incomplete.contains_key(&id) {
                    self.turn(now, id, out, |replica, turn| {
                        turn.busy -= 1;
                        replica.completed(turn, op, outcome);
                    });
                    continue;
                }
                // What is left of a replica goes when nothing is under way, a scrub neither.
                if self.incomplete.contains_key(&id) {
                    self.parts_completed(now, (id, op), out);
                }
            }
            while let Some(id) = self.filling.next() {
                self.turn(now, id, out, |replica, turn| {
                    if let Some(primary) = replica.primary_mut() {
                        primary.begin_fills(turn);
                    }
                });
            }
            self.reconcile_links(now, out);
            self.tell_room(now, out);
            if self.completed.is_empty() {
                break;
            }
        }
        if !self.ready && self.drives.values().all(Drive::is_settled) {
            self.ready = true;
            out.push(Action::Ready);
        }
    }
}
