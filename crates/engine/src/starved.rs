//! Changes that wait for a free slot, and their withdrawal.
//!
//! Decides: which change waits for space, and which goes without having got any.
//! Does not: free slots, or make records.
//! Invariant: what a withdrawn change left on the drive is durable when it completes.

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
            self.feed_starved();
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
        if !leave.is_empty() {
            leave.into_iter().for_each(|entry| self.leave(entry));
            // Slots that were kept for what has left may be what others wait for.
            self.feed_starved();
        }
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

    /// The replica is gone, and its changes with it.
    pub fn forget_withdrawal(&mut self, replica: ReplicaId) {
        self.starved.withdrawn.remove(&replica);
    }
}
