//! Frozen layers of a replica: what freezes, what is written over it, and how layers merge.
//!
//! A replica is a stack of layers, of which the newest, the head, takes changes. A freeze makes the
//! head a frozen layer and begins an empty head. What the head does not know is looked up in the
//! layers below.
//!
//! Decides: what a freeze comes behind and before.
//! Does not: know what layers are for.
//! Invariants: a frozen layer holds exactly the changes that were accepted before its freeze, and
//! nothing changes what it shows; only merging and repair write to its slots.

mod merge;
mod write;

use std::collections::VecDeque;

use format::disk::{
    journal::Record,
    layers::{LAYERS_MAX, LayerRecord},
};
use model::id::{LayerId, ReplicaId};

pub use self::merge::Merging;
use crate::{
    api::{Action, OpError, OpToken, Outcome},
    change::{Entry, Work},
    commit::{SMALL_RECORD_LEN, Stop},
    drive::Drive,
    journal::Batch,
    sabotage::{Sabotage, is_on},
};

/// Freezes that wait for changes accepted before them, and changes accepted after those.
#[derive(Debug, Default)]
pub struct Freezing {
    waiting: Vec<Entry>,
    behind: VecDeque<Entry>,
}

fn is_of_content(work: &Work) -> bool {
    matches!(work, Work::Write(_) | Work::Zero { .. } | Work::Install(_))
}

impl Freezing {
    /// Whether the entry must wait for a freeze that was accepted before it.
    fn is_before(&self, entry: &Entry) -> bool {
        let is_its =
            |freeze: &&Entry| freeze.replica == entry.replica && freeze.number < entry.number;
        is_of_content(&entry.work) && self.waiting.iter().any(|freeze| is_its(&freeze))
    }
}

impl Drive {
    /// Whether changes may leave what they say in slots of the head before their records are made.
    pub fn is_one_layer(&self, replica: ReplicaId) -> bool {
        let freezes = self.freezing.waiting.iter().any(|freeze| freeze.replica == replica);
        !freezes && !self.table.is_layered(replica)
    }

    /// The next change whose records are to be made.
    pub fn next_entry(&mut self) -> Option<Entry> {
        loop {
            if let Some(ready) = self.ready_freeze() {
                return Some(self.freezing.waiting.remove(ready));
            }
            let entry = self.queue.pop_front()?;
            if self.freezing.waiting.is_empty() {
                return Some(entry);
            }
            if self.freezing.is_before(&entry) {
                self.freezing.behind.push_back(entry);
            } else {
                return Some(entry);
            }
        }
    }

    /// A freeze that nothing is before any more.
    pub fn ready_freeze(&self) -> Option<usize> {
        self.freezing.waiting.iter().position(|freeze| !self.is_preceded(freeze))
    }

    /// Whether a change of the replica that was accepted before has not made all its records.
    fn is_preceded(&self, freeze: &Entry) -> bool {
        if is_on(Sabotage::FreezeOvertakes) || self.table.replica(freeze.replica).is_none() {
            return false;
        }
        let placing = self.placing.values().map(|placing| &placing.entry);
        let parked = self.fetching.changes();
        let own = self.freezing.waiting.iter().chain(&self.freezing.behind).chain(&self.held);
        let all = self.queue.iter().chain(self.starved.entries()).chain(placing).chain(parked);
        all.chain(own).any(|entry| {
            let is_ordered =
                is_of_content(&entry.work) || matches!(entry.work, Work::Freeze { .. });
            is_ordered && entry.replica == freeze.replica && entry.number < freeze.number
        })
    }

    /// It makes its record when nothing is before it.
    pub fn begin_freeze(&mut self, freeze: Entry) {
        self.freezing.waiting.push(freeze);
    }

    pub fn put_back_freeze(&mut self, entry: Entry) {
        match entry.work {
            Work::Freeze { .. } => self.freezing.waiting.push(entry),
            _ => self.queue.push_front(entry),
        }
    }

    /// Whoever waited for a freeze is looked at again.
    pub fn feed_behind(&mut self) {
        while let Some(entry) = self.freezing.behind.pop_back() {
            self.queue.push_front(entry);
        }
    }

    pub fn log_freeze(
        &mut self,
        batch: &mut Batch,
        replica: ReplicaId,
        layer: LayerId,
    ) -> Result<(), Stop> {
        let found = self.table.replica(replica).expect("the caller looked");
        let (layers, size) = (found.layers(), found.size);
        if let Some(at) = layers.position(layer) {
            let is_released = layers.frozen[at].is_released;
            return if is_released { Err(Stop::Refused(OpError::Released)) } else { Ok(()) };
        }
        if !self.layout.version.has_maps() {
            return Err(Stop::Refused(OpError::NoLayers));
        }
        if layers.frozen.len() == LAYERS_MAX {
            return Err(Stop::Refused(OpError::Layers { max: LAYERS_MAX }));
        }
        if !self.table.admits(size) {
            let max = self.table.memory_max();
            return Err(Stop::Refused(OpError::Memory { max }));
        }
        self.need(batch, SMALL_RECORD_LEN, 0)?;
        let index = self.table.row_of(replica).expect("the caller looked");
        let head = layers.next_number(self.table.stray_numbers(replica));
        let lsn = batch.next_lsn();
        Record::Layer(LayerRecord::Freeze { index, replica, layer, head }).put(&mut batch.head);
        self.table.freeze(lsn, replica, layer, head);
        batch.added(None);
        Ok(())
    }

    pub fn log_release(
        &mut self,
        batch: &mut Batch,
        replica: ReplicaId,
        layer: LayerId,
    ) -> Result<(), Stop> {
        let layers = self.table.replica(replica).expect("the caller looked").layers();
        let Some(at) = layers.position(layer) else { return Ok(()) };
        if layers.frozen[at].is_released {
            return Ok(());
        }
        self.need(batch, SMALL_RECORD_LEN, 0)?;
        let index = self.table.row_of(replica).expect("the caller looked");
        let lsn = batch.next_lsn();
        Record::Layer(LayerRecord::Release { index, replica, layer }).put(&mut batch.head);
        self.table.release(lsn, replica, layer);
        self.merging.wake();
        batch.added(None);
        Ok(())
    }

    pub fn list_layers(&mut self, op: OpToken, replica: ReplicaId, out: &mut Vec<Action>) {
        let outcome = match self.table.replica(replica) {
            Some(found) => {
                let kept = found.frozen().iter().map(|f| f.row).filter(|row| !row.is_released);
                Ok(Outcome::Layers { layers: kept.map(|row| row.id).collect() })
            }
            None => Err(OpError::UnknownReplica),
        };
        self.complete(op, outcome, out);
    }

    /// Where a layer stands in the replica's stack.
    pub fn top(&self, replica: ReplicaId, layer: Option<LayerId>) -> Result<usize, OpError> {
        let found = self.table.replica(replica).ok_or(OpError::UnknownReplica)?;
        found.top(layer).ok_or(OpError::UnknownLayer)
    }
}
