//! Records of blocks that hold nothing any more.

use format::disk::{journal::Record, page::Owner};
use model::{epoch::ModSeq, id::ReplicaId, units::BLOCK};

use super::{SMALL_RECORD_LEN, Stop};
use crate::{drive::Drive, journal::Batch, table::inside};

impl Drive {
    pub(super) fn log_zero(
        &mut self,
        batch: &mut Batch,
        replica: ReplicaId,
        mod_seq: ModSeq,
        offset: &mut u64,
        end: u64,
    ) -> Result<(), Stop> {
        if self.table.is_layered(replica) {
            return self.zero_over_layers(batch, replica, mod_seq, offset, end);
        }
        while *offset < end {
            let (first_extent, _) = self.extent_and_block(*offset);
            let (last_extent, _) = self.extent_and_block(end - 1);
            let mut extents = self.table.head_extents(replica, first_extent, last_extent);
            let Some((extent, slot)) = extents.next() else { break };
            drop(extents);
            let owner = self.table.head_owner(replica, extent);
            let extent_start = u64::from(extent) * self.layout.slot_bytes();
            let start = extent_start.max(*offset);
            let stop = end.min(extent_start + self.layout.slot_bytes());
            let first = u32::try_from((start - extent_start) / BLOCK).expect("within a slot");
            let count = u32::try_from((stop - start) / BLOCK).expect("within a slot");
            self.log_clear(batch, owner, slot, mod_seq, first, count)?;
            *offset = stop;
        }
        *offset = end;
        Ok(())
    }

    pub(super) fn log_clear(
        &mut self,
        batch: &mut Batch,
        owner: Owner,
        slot: u32,
        mod_seq: ModSeq,
        first: u32,
        count: u32,
    ) -> Result<(), Stop> {
        self.need(batch, SMALL_RECORD_LEN, 0)?;
        if self.direct.is_written(slot, first, count) {
            return Err(Stop::Held);
        }
        let (mut touched, mut left) = (true, false);
        if count < self.layout.slot_blocks {
            self.have(&[self.table.descriptor_page(slot)])?;
            let descriptor = self.table.descriptor(slot);
            touched = false;
            for unit in 0..self.layout.slot_units() {
                let inside = inside(unit, first, count);
                let valid = descriptor.valid(unit);
                touched |= valid != 0 && inside != 0;
                left |= valid & !inside != 0;
            }
        }
        if !touched {
            return Ok(());
        }
        if !left {
            self.have(&[self.table.owner_page(slot)])?;
        }
        let lsn = batch.next_lsn();
        if left {
            Record::Clear { slot, owner, mod_seq, first, count }.put(&mut batch.head);
            self.table.clear(lsn, slot, first, count, mod_seq);
            self.overlay.remove(slot, first, count);
            self.direct.cleared.insert(slot);
            self.readers.changed(slot, lsn);
        } else {
            Record::Free { slot, owner }.put(&mut batch.head);
            self.table.free(lsn, slot, owner);
            self.vacate(lsn, slot);
        }
        batch.added(None);
        Ok(())
    }
}
