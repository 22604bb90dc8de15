//! The scrub's wishes carried out, and what they bring up passed on to the replicas.

use engine::api::{OpError, OpToken, Outcome, Request};
use format::ctl::{Damage, ToManager};
use model::{
    id::{DriveName, ReplicaId},
    time::Instant,
};

use crate::{
    api::Action,
    examine::{UNIT_BYTES, unit_start},
    lock::Range,
    replica::Replica,
    scrub::{Ask, Wish},
    turn::Op,
};

use super::Server;

impl Server {
    /// Lets every drive begin the passes that are due. With the beat, so that it costs no waking.
    pub(super) fn begin_scrubs(&mut self, now: Instant) {
        for (name, drive) in &mut self.drives {
            if drive.scrub.is_due(now) && drive.failed().is_none() {
                let there = self.replicas.values().filter(|r| r.place.first() == name);
                let counting = there.filter(|r| r.is_in_sync());
                let replicas: Vec<(ReplicaId, u64)> =
                    counting.map(|r| (r.id, r.size().get())).collect();
                // Of what is striped, the other drives have about as much each.
                let striped = |id| self.replicas[&id].place.drives().len() as u64;
                let bytes = |&(r, _): &(ReplicaId, u64)| drive.allocated(r).get() * striped(r);
                let allocated = replicas.iter().map(bytes).sum();
                drive.scrub.begin(now, &replicas, allocated);
            }
        }
    }

    /// The manager wants a replica to be read and verified now.
    pub(super) fn scrub_asked(
        &mut self,
        now: Instant,
        (id, pass): (ReplicaId, u64),
        out: &mut Vec<Action>,
    ) {
        let replica = self.replicas.get(&id).filter(|r| r.is_in_sync());
        let before = replica.map_or(Damage::default(), |r| r.damage.counts);
        let ask = Ask { replica: id, pass, before };
        let refusal = match replica {
            None => Some("the replica is not in sync here"),
            Some(replica) if replica.scrubbed == Some(pass) => None,
            Some(replica) => {
                let drive = self.drives.get_mut(replica.place.first()).expect("it lies there");
                if drive.scrub.ask(now, ask, replica.size().get()) {
                    return;
                }
                Some("too many replicas wait to be scrubbed")
            }
        };
        self.tell_scrubbed(ask, (100, 0), Some(refusal.map(str::to_owned)), out);
    }

    pub(super) fn tell_scrubs(&self, out: &mut Vec<Action>) {
        for drive in self.drives.values() {
            for (ask, percent, bytes) in drive.scrub.asked() {
                self.tell_scrubbed(ask, (percent, bytes), None, out);
            }
        }
    }

    /// `ended`: it is over, and why it could not be done.
    fn tell_scrubbed(
        &self,
        ask: Ask,
        (percent, bytes): (u8, u64),
        ended: Option<Option<String>>,
        out: &mut Vec<Action>,
    ) {
        let Ask { replica, pass, before } = ask;
        let counts = self.replicas.get(&replica).map_or(before, |r| r.damage.counts);
        let damage = Damage {
            bad_found: counts.bad_found - before.bad_found,
            bad_repaired: counts.bad_repaired - before.bad_repaired,
            bad_lost: counts.bad_lost - before.bad_lost,
        };
        let (finished, failure) = (ended.is_some(), ended.flatten());
        let message =
            ToManager::Scrubbed { replica, pass, percent, bytes, damage, finished, failure };
        out.push(Action::SendManager { message });
    }

    /// Takes the next step on every drive where it is time.
    pub(super) fn scrub_on(&mut self, now: Instant, out: &mut Vec<Action>) {
        let names: Vec<DriveName> = self
            .drives
            .iter()
            .filter(|(_, drive)| drive.scrub.deadline().is_some_and(|at| at <= now))
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            self.scrub_step(now, &name, out);
        }
    }

    fn scrub_step(&mut self, now: Instant, name: &DriveName, out: &mut Vec<Action>) {
        let Some(drive) = self.drives.get_mut(name) else { return };
        if let Some((ask, bytes, left)) = drive.scrub.take_finished() {
            let failure = left.then(|| "the replica left the in-sync set".to_owned());
            if let Some(replica) = self.replicas.get_mut(&ask.replica).filter(|_| !left) {
                replica.scrubbed = Some(ask.pass);
            }
            return self.tell_scrubbed(ask, (100, bytes), Some(failure), out);
        }
        let Some(wish) = drive.scrub.next(now) else { return };
        let id = wish.replica();
        let Some(replica) = self.replicas.get(&id).filter(|r| r.is_in_sync()) else {
            return drive.scrub.skip(now, id);
        };
        let (replica, range) = match wish {
            Wish::Settle(_) => return drive.scrub.settled(now, !replica.is_checking()),
            Wish::Describe(replica, range) | Wish::Read(replica, range) => (replica, range),
        };
        let (offset, length) = (range.start, range.length());
        let request = match wish {
            Wish::Describe(..) => Request::Describe { replica, offset, length },
            _ => {
                let length = u32::try_from(length).expect("a region");
                Request::Read { replica, offset, length }
            }
        };
        if matches!(wish, Wish::Describe(..)) {
            self.turn(now, id, out, |replica, turn| {
                if let Some(primary) = replica.primary_mut() {
                    primary.compare(turn, range);
                }
            });
        }
        let place = self.replicas[&id].place.clone();
        let token = self.ask(now, &place, (id, Op::Scrub), request, out);
        if let Some(drive) = self.drives.get_mut(name) {
            drive.scrub.began(token, wish);
        }
    }

    /// An engine has answered a wish of the scrub.
    pub(super) fn scrub_completed(
        &mut self,
        now: Instant,
        token: OpToken,
        outcome: Result<Outcome, OpError>,
        out: &mut Vec<Action>,
    ) {
        let ended = self.drives.values_mut().find_map(|d| Some((d.scrub.ended(token)?, d)));
        let Some((wish, drive)) = ended else { return };
        let id = wish.replica();
        match (wish, outcome) {
            (Wish::Describe(..), Ok(Outcome::Described { units })) => {
                drive.scrub.described(now, &units);
            }
            (Wish::Read(_, run), Ok(_)) => {
                drive.scrub.read(now);
                if let Some(replica) = self.replicas.get_mut(&id) {
                    replica.damage.seen_good(run);
                }
            }
            // What else is damaged in the rest of the run is not known.
            (Wish::Read(_, run), Err(OpError::BadBlock { offset })) => {
                drive.scrub.read(now);
                self.turn(now, id, out, |replica, turn| {
                    for unit in units_from(offset, run) {
                        Replica::met_damage(replica, turn, unit);
                    }
                });
            }
            _ => drive.scrub.skip(now, id),
        }
    }
}

fn units_from(offset: u64, run: Range) -> impl Iterator<Item = u64> {
    let step = usize::try_from(UNIT_BYTES).expect("small");
    (unit_start(offset)..run.end).step_by(step)
}
