//! Records of images: whole resync units as another replica describes them.

use format::{
    data::UnitMeta,
    disk::{
        BLOCK_LEN, UNIT_BLOCKS,
        journal::{PlacedUnit, RECORD_LEN_MAX, Record},
        page::Owner,
    },
};
use model::{epoch::ModSeq, id::ReplicaId};

use super::Stop;
use crate::{
    change::{Install, valid_bits},
    drive::Drive,
    journal::Batch,
};

impl Drive {
    pub(super) fn log_install(
        &mut self,
        batch: &mut Batch,
        replica: ReplicaId,
        install: &mut Install,
    ) -> Result<(), Stop> {
        let slot_bytes = self.layout.slot_bytes();
        while let Some(extent) = install.extent_at(install.next, slot_bytes) {
            let owner = self.table.head_owner(replica, extent);
            let group = install.group_len(install.next, slot_bytes);
            let placed = install.placed.first().copied().filter(|&(placed, _)| placed == extent);
            if let Some((_, slot)) = placed {
                let whole = u32::try_from(group).expect("small") == self.layout.slot_units();
                let layered = self.table.is_layered(replica);
                if !layered && (whole || self.table.slot_of(owner).is_none()) {
                    self.log_placed_install(batch, owner, group, install)?;
                    continue;
                }
                // The extent got a slot meanwhile, or layers: what else these hold must stay.
                install.placed.remove(0);
                self.space.give_back(slot);
                self.feed_starved();
            }
            self.log_set(batch, owner, install)?;
        }
        Ok(())
    }

    pub(super) fn log_placed_install(
        &mut self,
        batch: &mut Batch,
        owner: Owner,
        group: usize,
        install: &mut Install,
    ) -> Result<(), Stop> {
        self.need(batch, RECORD_LEN_MAX, 0)?;
        let &(_, slot) = install.placed.first().expect("the caller looked");
        self.have_for_place(owner, slot)?;
        let units: Vec<PlacedUnit> = install.units[install.next..install.next + group]
            .iter()
            .map(|meta| self.placed_unit(meta))
            .filter(|placed| placed.valid != 0)
            .collect();
        let blocks: usize = units.iter().map(|placed| placed.crcs.len()).sum();
        install.placed.remove(0);
        self.log_place(batch, owner, slot, units);
        install.next += group;
        install.data_done += blocks * BLOCK_LEN;
        Ok(())
    }

    pub(super) fn placed_unit(&self, meta: &UnitMeta) -> PlacedUnit {
        let (_, block) = self.extent_and_block(meta.offset);
        let valid = valid_bits(meta).expect("checked when it was accepted");
        let (unit, mod_seq) = (block / UNIT_BLOCKS, meta.mod_seq);
        PlacedUnit { unit, mod_seq, valid, cleared: 0, crcs: meta.crcs.clone() }
    }

    /// One unit, with its payload in the journal.
    pub(super) fn log_set(
        &mut self,
        batch: &mut Batch,
        owner: Owner,
        install: &mut Install,
    ) -> Result<(), Stop> {
        let mut placed = self.placed_unit(&install.units[install.next]);
        let first = placed.unit * UNIT_BLOCKS;
        if placed.valid == 0 {
            if self.table.is_layered(owner.replica) {
                self.clear_over_layers(batch, owner, ModSeq::NONE, first, UNIT_BLOCKS)?;
            } else if let Some(slot) = self.table.slot_of(owner) {
                self.log_clear(batch, owner, slot, ModSeq::NONE, first, UNIT_BLOCKS)?;
            }
            install.next += 1;
            return Ok(());
        }
        let len = placed.crcs.len() * BLOCK_LEN;
        if self.repair_layers(batch, owner, &placed, install)? {
            install.next += 1;
            install.data_done += len;
            return Ok(());
        }
        if self.unit_below(owner, placed.unit)?.valid != 0 {
            placed.cleared = !placed.valid;
        }
        self.need(batch, RECORD_LEN_MAX, placed.valid.count_ones())?;
        let (slot, fresh) = self.slot_for(owner, first, UNIT_BLOCKS)?;
        let data = install.data.slice(install.data_done..install.data_done + len);
        let lsn = batch.next_lsn();
        self.table.set_unit(lsn, slot, owner, fresh, &placed);
        self.overlay.remove(slot, first, UNIT_BLOCKS);
        self.direct.cleared.insert(slot);
        let blocks = (0..UNIT_BLOCKS).filter(|b| placed.valid >> b & 1 == 1).map(|b| first + b);
        self.overlay_blocks(lsn, slot, blocks, &data);
        self.readers.changed(slot, lsn);
        let PlacedUnit { unit, mod_seq, valid, cleared, crcs } = placed;
        Record::Set { slot, owner, fresh, unit, mod_seq, valid, cleared, crcs }
            .put(&mut batch.head);
        batch.added(Some(data));
        install.next += 1;
        install.data_done += len;
        Ok(())
    }
}
