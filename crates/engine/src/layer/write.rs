//! Changes of a replica that has frozen layers.
//!
//! Decides: what the head must know for its layers to come to what the change says.
//! Does not: copy content: what is not written is looked up below.
//! Invariants: as without layers, a unit has the `mod_seq` of its last change, or none if it holds
//! nothing; nothing is cleared in a unit of which older layers have nothing; a slot of a layer knows
//! a block.

use format::disk::{
    UNIT_BLOCKS,
    journal::{DataHead, PlacedUnit, Record, put_data},
    layers::{LayerRecord, Masks},
    page::Owner,
};
use model::{epoch::ModSeq, id::ReplicaId, units::BLOCK};

use crate::{
    change::Install,
    commit::{SMALL_RECORD_LEN, Stop},
    drive::Drive,
    journal::Batch,
    table::{BlockRun, UnitView, inside},
};

/// A unit of the head, and what a clear makes of it.
struct Cleared {
    unit: u32,
    valid: u16,
    cleared: u16,
    mod_seq: ModSeq,
}

impl Drive {
    fn have_stack(&self, slots: &[u32]) -> Result<(), Stop> {
        self.have(&self.pages_of(slots.iter().copied()))
    }

    /// What the layers below the head have of a unit.
    pub fn unit_below(&self, owner: Owner, unit: u32) -> Result<UnitView, Stop> {
        if !self.table.is_layered(owner.replica) {
            return Ok(UnitView::EMPTY);
        }
        let top = self.table.head_top(owner.replica);
        let stack = self.table.stack_below(owner.replica, owner.extent, top);
        self.have_stack(stack.slots())?;
        Ok(self.table.unit_view(stack.slots(), unit))
    }

    /// How many of `count` blocks one record says, and the `mod_seq` of their unit: not below that
    /// of what lies below.
    pub fn over_layers(
        &self,
        owner: Owner,
        first: u32,
        count: u32,
        mod_seq: ModSeq,
    ) -> Result<(u32, ModSeq), Stop> {
        if !self.table.is_layered(owner.replica) {
            return Ok((count, mod_seq));
        }
        let stack = self.table.head_stack(owner.replica, owner.extent);
        self.have_stack(stack.slots())?;
        let view = self.table.unit_view(stack.slots(), first / UNIT_BLOCKS);
        let count = count.min(UNIT_BLOCKS - first % UNIT_BLOCKS);
        Ok((count, view.mod_seq.max(mod_seq)))
    }

    pub fn zero_over_layers(
        &mut self,
        batch: &mut Batch,
        replica: ReplicaId,
        mod_seq: ModSeq,
        offset: &mut u64,
        end: u64,
    ) -> Result<(), Stop> {
        while *offset < end {
            let (first_extent, _) = self.extent_and_block(*offset);
            let (last_extent, _) = self.extent_and_block(end - 1);
            let top = self.table.head_top(replica);
            let next = self.table.stacks(replica, first_extent, last_extent, top).next();
            let Some((extent, _)) = next else { break };
            let extent_start = u64::from(extent) * self.layout.slot_bytes();
            let start = extent_start.max(*offset);
            let stop = end.min(extent_start + self.layout.slot_bytes());
            let first = u32::try_from((start - extent_start) / BLOCK).expect("within a slot");
            let count = u32::try_from((stop - start) / BLOCK).expect("within a slot");
            let owner = self.table.head_owner(replica, extent);
            self.clear_over_layers(batch, owner, mod_seq, first, count)?;
            *offset = stop;
        }
        *offset = end;
        Ok(())
    }

    /// Blocks of an extent of the head hold nothing any more.
    pub fn clear_over_layers(
        &mut self,
        batch: &mut Batch,
        owner: Owner,
        mod_seq: ModSeq,
        first: u32,
        count: u32,
    ) -> Result<(), Stop> {
        let stack = self.table.head_stack(owner.replica, owner.extent);
        self.have_stack(stack.slots())?;
        let held = self.table.slot_of(owner);
        let units: Vec<Cleared> = (0..self.layout.slot_units())
            .filter_map(|unit| self.clear_unit(stack.slots(), held, unit, mod_seq, (first, count)))
            .collect();
        if units.is_empty() {
            return Ok(());
        }
        self.need(batch, SMALL_RECORD_LEN * units.len(), 0)?;
        let is_untouched = |unit: u32| units.iter().all(|cleared| cleared.unit != unit);
        let knows = |slot: u32, unit| {
            let descriptor = self.table.descriptor(slot);
            descriptor.valid(unit) | descriptor.cleared(unit) != 0
        };
        let others = held.is_some_and(|slot| {
            (0..self.layout.slot_units()).any(|unit| is_untouched(unit) && knows(slot, unit))
        });
        if !others && units.iter().all(|unit| unit.valid | unit.cleared == 0) {
            let slot = held.expect("the head had something, or it would hide something now");
            self.have(&[self.table.owner_page(slot)])?;
            let lsn = batch.next_lsn();
            Record::Free { slot, owner }.put(&mut batch.head);
            self.table.free(lsn, slot, owner);
            self.vacate(lsn, slot);
            batch.added(None);
            return Ok(());
        }
        let (slot, mut fresh) = self.slot_for(owner, first, count)?;
        for Cleared { unit, valid, cleared, mod_seq } in units {
            let (filled, lost, crcs) = (0, 0, Vec::new());
            let masks =
                Masks { slot, owner, fresh, unit, mod_seq, valid, cleared, filled, lost, crcs };
            self.log_masks(batch, masks);
            fresh = false;
        }
        Ok(())
    }

    /// `None`: it stays as it is.
    fn clear_unit(
        &self,
        slots: &[u32],
        held: Option<u32>,
        unit: u32,
        mod_seq: ModSeq,
        (first, count): (u32, u32),
    ) -> Option<Cleared> {
        let inside = inside(unit, first, count);
        let view = self.table.unit_view(slots, unit);
        if view.valid == 0 || inside == 0 {
            return None;
        }
        let (head, older) = if held.is_some() { slots.split_at(1) } else { slots.split_at(0) };
        let below = self.table.unit_view(older, unit).valid;
        let (valid, cleared) = match head {
            &[slot] => {
                let descriptor = self.table.descriptor(slot);
                (descriptor.valid(unit), descriptor.cleared(unit))
            }
            _ => (0, 0),
        };
        let is_left = view.valid & !inside != 0;
        Some(Cleared {
            unit,
            valid: valid & !inside,
            cleared: if below == 0 { 0 } else { cleared | inside },
            mod_seq: if is_left { view.mod_seq.max(mod_seq) } else { ModSeq::NONE },
        })
    }

    /// A record without payload.
    pub(super) fn log_masks(&mut self, batch: &mut Batch, masks: Masks) {
        let lsn = batch.next_lsn();
        self.table.masks(lsn, &masks);
        let base = masks.unit * UNIT_BLOCKS;
        for block in (0..UNIT_BLOCKS).filter(|b| masks.valid >> b & 1 == 0) {
            self.overlay.remove(masks.slot, base + block, 1);
        }
        self.readers.changed(masks.slot, lsn);
        self.direct.cleared.insert(masks.slot);
        Record::Layer(LayerRecord::Masks(masks)).put(&mut batch.head);
        batch.added(None);
    }

    /// An image that says what is there already repairs: its content goes to the blocks that have
    /// it, whatever layer these belong to. Returns whether it does.
    pub fn repair_layers(
        &mut self,
        batch: &mut Batch,
        owner: Owner,
        placed: &PlacedUnit,
        install: &Install,
    ) -> Result<bool, Stop> {
        if !self.table.is_layered(owner.replica) {
            return Ok(false);
        }
        let stack = self.table.head_stack(owner.replica, owner.extent);
        let slots = stack.slots();
        self.have_stack(slots)?;
        let view = self.table.unit_view(slots, placed.unit);
        if (view.valid, view.mod_seq) != (placed.valid, placed.mod_seq)
            || self.crcs_of(slots, placed.unit, placed.valid) != placed.crcs
        {
            return Ok(false);
        }
        let count = placed.valid.count_ones();
        let blocks = usize::try_from(count).expect("at most 16");
        self.need(batch, (SMALL_RECORD_LEN + 8) * blocks, count)?;
        let found = self.table.replica(owner.replica).expect("it is layered");
        let layer_of = |slot| {
            let tops = (0..=found.frozen().len()).map(|top| found.number_at(top));
            let mut owners = tops.map(|layer| Owner { layer, ..owner });
            owners
                .find(|&owner| self.table.slot_of(owner) == Some(slot))
                .expect("it is in the stack")
        };
        let valid = (0..UNIT_BLOCKS).filter(|b| placed.valid >> b & 1 == 1);
        let of_blocks: Vec<(u32, u32, Owner)> = valid
            .map(|block| placed.unit * UNIT_BLOCKS + block)
            .map(|block| {
                let slot = self.table.source(slots, block).expect("it is valid");
                (block, slot, layer_of(slot))
            })
            .collect();
        for (index, (first, slot, owner)) in of_blocks.into_iter().enumerate() {
            let from = install.data_done + index * format::disk::BLOCK_LEN;
            let data = install.data.slice(from..from + format::disk::BLOCK_LEN);
            let crcs = &placed.crcs[index..=index];
            let mod_seq = self.table.descriptor(slot).mod_seq(placed.unit);
            let fresh = false;
            put_data(&mut batch.head, &DataHead { slot, owner, fresh, mod_seq, first }, crcs);
            let lsn = batch.next_lsn();
            self.table.write_blocks(lsn, &BlockRun { slot, owner, fresh, mod_seq, first, crcs });
            self.overlay_blocks(lsn, slot, std::iter::once(first), &data);
            self.readers.changed(slot, lsn);
            self.merging.changed(slot);
            batch.added(Some(data));
        }
        Ok(true)
    }
}
