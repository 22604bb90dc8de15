//! Records about layers, applied while a drive is recovered.
//!
//! Invariant: what a row says of its layers makes sense whatever the records say.

use format::disk::layers::{LAYERS_MAX, LayerRecord, Layers};
use model::id::ReplicaId;

use super::Recovering;

impl Recovering {
    pub(super) fn replay_layers(&mut self, lsn: u64, record: &LayerRecord) {
        match record {
            LayerRecord::Freeze { index, replica, layer, head } => {
                self.change_layers(lsn, *index, *replica, |layers| {
                    let numbers = || layers.frozen.iter().map(|f| f.number).chain([layers.head]);
                    let is_new =
                        layers.position(*layer).is_none() && !numbers().any(|n| n == *head);
                    // Only damage makes it anything else.
                    if is_new && layers.frozen.len() < LAYERS_MAX {
                        layers.freeze(*layer, *head);
                    }
                });
            }
            LayerRecord::Release { index, replica, layer } => {
                self.change_layers(lsn, *index, *replica, |layers| {
                    let released = layers.position(*layer).map(|at| &mut layers.frozen[at]);
                    released.into_iter().for_each(|layer| layer.is_released = true);
                });
            }
            LayerRecord::Merged { index, replica, layer } => {
                self.change_layers(lsn, *index, *replica, |layers| {
                    layers.position(*layer).map(|at| layers.frozen.remove(at));
                });
            }
            LayerRecord::Relabel { slot, owner } => {
                if self.is_new(*slot, lsn).1 {
                    self.put_owner(lsn, *slot, *owner);
                }
            }
            LayerRecord::Masks(masks) => {
                let (describes, owns) = self.is_new(masks.slot, lsn);
                if describes {
                    self.table.put_masks(lsn, masks);
                }
                if masks.fresh && owns {
                    self.put_owner(lsn, masks.slot, masks.owner);
                }
            }
        }
    }

    fn change_layers(
        &mut self,
        lsn: u64,
        index: u32,
        replica: ReplicaId,
        change: impl FnOnce(&mut Layers),
    ) {
        if lsn > self.table.page_lsn(index) {
            if let Some(row) = self.rows.get_mut(&index).filter(|row| row.replica == replica) {
                change(&mut row.layers);
            }
            self.table.touch(index, lsn);
        }
    }
}
