//! Changes that wait for a free slot, their withdrawal, and their end with their replica.
//!
//! Decides: which change waits for space, and which goes without having got any.
//! Does not: free slots, or make records.
//! Invariants: what a withdrawn change left on the drive is durable when it completes; nobody waits
//! while a slot is free, or for a replica that is gone durably; a change of a replica that was
//! removed never reaches one that was made under the same id since.

use std::collections::{BTreeMap, VecDeque};

use model::id::ReplicaId;

use crate::{
    api::{Action, OpError, OpToken, Outcome},
    change::Entry,
    drive::Drive,
};

#[derive(Debug, Default)]
pub struct Starved {
    entries: VecDeque<Entry>,
    /// Of the last change that was accepted.
    number: u64,
    /// Changes of the replica up to this number do not wait.
    withdrawn: BTreeMap<ReplicaId, u64>,
    /// Withdrawn ones whose first records may not be durable yet.
    leaving: Vec<OpToken>,
    /// Number of the change that made the replica, if that was since the drive was opened. Those
    /// before it were meant for another one, which had the same id.
    made: BTreeMap<ReplicaId, u64>,
    /// A replica was removed of which changes wait here.
    has_orphans: bool,
}

impl Starved {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// Of the next change.
    pub fn number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    /// Whether it was meant for a replica that is gone, whose id another one has now.
    pub fn is_orphan(&self, entry: &Entry) -> bool {
        self.made.get(&entry.replica).is_some_and(|&made| entry.number < made)
    }

    pub fn made(&mut self, replica: ReplicaId, number: u64) {
        self.made.insert(replica, number);
    }

    fn may_wait(&self, entry: &Entry) -> bool {
        self.withdrawn.get(&entry.replica).is_none_or(|&last| entry.number > last)
    }
}

impl Drive {
    /// The change found no slot.
    pub fn starve(&mut self, entry: Entry) {
        if self.starved.may_wait(&entry) {
            self.starved.entries.push_back(entry);
        } else {
            self.leave(entry);
        }
    }

    /// Whoever waits is tried again, before all others.
    pub fn feed_starved(&mut self) {
        while let Some(entry) = self.starved.entries.pop_back() {
            self.queue.push_front(entry);
        }
    }

    pub fn withdraw(&mut self, op: OpToken, replica: ReplicaId, out: &mut Vec<Action>) {
        if self.table.replica(replica).is_some() {
            self.starved.withdrawn.insert(replica, self.starved.number);
        }
        let (stay, leave): (VecDeque<Entry>, VecDeque<Entry>) =
            std::mem::take(&mut self.starved.entries)
                .into_iter()
                .partition(|entry| entry.replica != replica);
        self.starved.entries = stay;
        leave.into_iter().for_each(|entry| self.leave(entry));
        self.complete(op, Ok(Outcome::Done), out);
    }

    fn leave(&mut self, entry: Entry) {
        self.starved.leaving.push(entry.op);
        self.give_up_slots(entry);
    }

    /// No batch that was begun before they left is being written.
    pub fn complete_withdrawn(&mut self, out: &mut Vec<Action>) {
        for op in std::mem::take(&mut self.starved.leaving) {
            self.complete(op, Err(OpError::Withdrawn), out);
        }
    }

    /// The replica is gone, and its changes with it: when its removal is durable, because until
    /// then a crash brings it back.
    pub fn end_waiting(&mut self, replica: ReplicaId) {
        self.starved.withdrawn.remove(&replica);
        self.starved.made.remove(&replica);
        let waits = self.starved.entries().any(|entry| entry.replica == replica);
        self.starved.has_orphans |= waits;
    }

    /// What was removed is so durably: its changes find that it is gone.
    pub fn feed_orphans(&mut self) {
        if std::mem::take(&mut self.starved.has_orphans) {
            self.feed_starved();
        }
    }
}
