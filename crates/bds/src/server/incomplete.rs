//! Parts of striped replicas: put together when a server starts, kept apart while one is missing.
//!
//! Decides: when a replica is there, under which record, and what becomes of parts that are none.
//! Invariants: a replica is served with all its parts or not at all; a part is removed only when
//! the manager says so. The latest record that any part has counts: it may have been acknowledged
//! only if all have it, and then it is the latest; if not all have it, it is one that was written
//! and not acted on, which is as good as one written just before the crash.

use std::{collections::BTreeMap, fmt};

use engine::api::Request;
use format::{
    ctl::{IncompleteReplica, ToManager},
    replica::{Part, PartRecord, ReplicaRecord, StoredRecord},
};
use model::{
    epoch::Epoch,
    id::{DriveName, ReplicaId},
    sabotage::{Sabotage, is_on},
    time::Instant,
    volume::Stripes,
};

use crate::{api::Action, drive::Found, place::Place, replica::Replica, turn::Op};

use super::Server;

/// What is here of a striped replica, while it is not all.
#[derive(Debug)]
pub struct Incomplete {
    of: Stripes,
    parts: BTreeMap<u32, Kept>,
    /// The manager wants what is here to go, of all that lies on these drives.
    leaving: Option<Vec<DriveName>>,
}

#[derive(Debug)]
struct Kept {
    drive: DriveName,
    part: Part,
    record: ReplicaRecord,
    stale: bool,
}

impl Incomplete {
    /// Nothing was ever written to it: it was being made.
    pub fn is_untouched(&self) -> bool {
        let new = |kept: &Kept| {
            let ReplicaRecord { promised, adopted, stale, .. } = &kept.record;
            *promised == Epoch::NONE && adopted.is_none() && !stale && !kept.stale
        };
        self.leaving.is_none() && self.parts.values().all(new)
    }

    /// Whether a replica on these drives would have these parts where they are.
    pub fn lie_on(&self, drives: &[DriveName]) -> bool {
        let there = |(&index, kept): (&u32, &Kept)| {
            usize::try_from(index).is_ok_and(|at| drives.get(at) == Some(&kept.drive))
        };
        self.of.get() as usize == drives.len() && self.parts.iter().all(there)
    }

    pub fn report(&self, replica: ReplicaId) -> IncompleteReplica {
        IncompleteReplica { replica, drives: self.drives() }
    }

    fn drives(&self) -> Vec<DriveName> {
        self.parts.values().map(|kept| kept.drive.clone()).collect()
    }
}

impl fmt::Display for Incomplete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let drives: Vec<_> = self.parts.values().map(|kept| kept.drive.as_str()).collect();
        let Self { of, parts, .. } = self;
        write!(f, "{} of {of} parts of it are here, on {}", parts.len(), drives.join(", "))
    }
}

impl Server {
    /// A drive has been opened and holds this.
    pub(super) fn found(
        &mut self,
        now: Instant,
        drive: &DriveName,
        found: Found,
        out: &mut Vec<Action>,
    ) {
        let Found { replica, size, record, stale } = found;
        let PartRecord { part, record } = match record {
            StoredRecord::Part(part) => part,
            StoredRecord::Whole(record) => {
                let place = Place::new(vec![drive.clone()], 0);
                return self.appear(now, Replica::new(replica, place, size, record), stale, out);
            }
        };
        let drive = drive.clone();
        let kept = Kept { drive, part, record, stale };
        self.keep(replica, kept);
        let known = &self.incomplete[&replica];
        if known.parts.len() < known.of.get() as usize {
            return;
        }
        let Incomplete { parts, .. } = self.incomplete.remove(&replica).expect("just looked at");
        let stale = parts.values().any(|kept| kept.stale);
        // The bytes that every part has room for.
        let size = parts.values().map(|kept| kept.part.size).min().expect("two parts at least");
        let drives = parts.values().map(|kept| kept.drive.clone()).collect();
        let latest = parts.into_values().max_by_key(|kept| kept.part.serial);
        let Kept { part, record, .. } = latest.expect("two parts at least");
        let place = Place::new(drives, part.serial);
        self.appear(now, Replica::new(replica, place, size, record), stale, out);
    }

    fn appear(&mut self, now: Instant, replica: Replica, stale: bool, out: &mut Vec<Action>) {
        let id = replica.id;
        self.add(replica);
        if stale {
            self.turn(now, id, out, Replica::mark_stale);
        } else if is_on(Sabotage::BegunTwice) {
            self.turn(now, id, out, Replica::begin_again);
        }
    }

    fn keep(&mut self, replica: ReplicaId, kept: Kept) {
        let Part { index, of, .. } = kept.part;
        let fresh = || Incomplete { of, parts: BTreeMap::new(), leaving: None };
        let known = self.incomplete.entry(replica).or_insert_with(fresh);
        if known.of == of {
            known.parts.entry(index).or_insert(kept);
        }
    }

    /// A striped replica ends here, but parts of it may be on its drives.
    pub(super) fn leave_parts(&mut self, id: ReplicaId) {
        let Some(replica) = self.replicas.get(&id) else { return };
        let Some(of) = replica.place.striped() else { return };
        let (record, serial) = (replica.record().clone(), replica.place.serial);
        let (size, place) = (replica.size(), replica.place.clone());
        for (index, drive) in (0..of.get()).zip(place.drives()) {
            if self.drives.get(drive).is_some_and(|d| d.failed().is_none()) {
                let part = Part { index, of, size, serial };
                let (drive, record) = (drive.clone(), record.clone());
                self.keep(id, Kept { drive, part, record, stale: false });
            }
        }
    }

    /// A drive is out of service.
    pub(super) fn lose_parts(&mut self, drive: &DriveName) {
        for known in self.incomplete.values_mut() {
            known.parts.retain(|_, kept| kept.drive != *drive);
        }
        self.incomplete.retain(|_, known| !known.parts.is_empty() || known.leaving.is_some());
    }

    /// The manager wants a replica to go that is not here, or not all of it.
    pub(super) fn remove_parts(
        &mut self,
        now: Instant,
        id: ReplicaId,
        drives: Vec<DriveName>,
        out: &mut Vec<Action>,
    ) {
        let Some(known) = self.incomplete.get_mut(&id) else {
            return self.tell_removed(id, &drives, out);
        };
        if known.leaving.replace(drives).is_none() {
            self.ask_each_part(now, id, Op::Withdraw, &Request::Withdraw { replica: id }, out);
        }
    }

    /// Nothing of it is left, unless a drive that is out of service comes back with it: then the
    /// manager asks again.
    fn tell_removed(&self, id: ReplicaId, drives: &[DriveName], out: &mut Vec<Action>) {
        let failed = |name| self.drives.get(name).is_some_and(|drive| drive.failed().is_some());
        if !drives.iter().any(failed) {
            let message = ToManager::ReplicaRemoved { replica: id };
            out.push(Action::SendManager { message });
        }
    }

    fn ask_each_part(
        &mut self,
        now: Instant,
        id: ReplicaId,
        op: Op,
        request: &Request,
        out: &mut Vec<Action>,
    ) {
        for drive in self.incomplete[&id].drives() {
            let place = Place::new(vec![drive], 0);
            self.ask(now, &place, (id, op), request.clone(), out);
        }
    }

    /// An engine has answered something about the parts that are here. They go when nothing else
    /// is under way, so that no change comes after the removal.
    pub(super) fn parts_completed(
        &mut self,
        now: Instant,
        (id, op): (ReplicaId, Op),
        out: &mut Vec<Action>,
    ) {
        let busy = self.asked.values().any(|(replica, _)| *replica == id);
        let known = &self.incomplete[&id];
        if busy || !(known.leaving.is_some() || op == Op::Remove) {
            return;
        }
        if op == Op::Remove || known.parts.is_empty() {
            let known = self.incomplete.remove(&id).expect("just looked at");
            // If it was whole when this began, the manager asks again, and is answered then.
            let drives = known.leaving.into_iter();
            return drives.for_each(|drives| self.tell_removed(id, &drives, out));
        }
        self.ask_each_part(now, id, Op::Remove, &Request::RemoveReplica { replica: id }, out);
    }
}
