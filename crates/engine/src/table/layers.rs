//! Layers of a replica in the table: which slots an extent has, and what they come to together.
//!
//! Decides: what a block is, looked at from a layer down to the oldest one.
//! Does not: know who asks, or when layers merge (`layer`).
//! Invariants: the head is the layer that changes go to, and the only one of a replica that was
//! never frozen; a unit that a layer knows (it has a valid or a cleared block there) has there the
//! `mod_seq` of all of it, as it was when that layer was the head.

use format::disk::{
    UNIT_BLOCKS,
    layers::{FrozenLayer, LAYERS_MAX, Layers, Masks},
    page::{Owner, ReplicaRow},
};
use model::{
    epoch::ModSeq,
    id::{LayerId, ReplicaId},
};

use super::{ExtentMap, Replica, Table, mask};
use crate::sabotage::{Sabotage, is_on};

/// A frozen layer and what belongs to it.
#[derive(Debug)]
pub struct Frozen {
    pub row: FrozenLayer,
    pub extents: ExtentMap,
}

/// The slots of one extent, the newest layer first.
#[derive(Debug, Clone, Copy)]
pub struct Stack {
    slots: [u32; LAYERS_MAX + 1],
    len: usize,
}

impl Stack {
    const EMPTY: Self = Self { slots: [0; LAYERS_MAX + 1], len: 0 };

    pub fn slots(&self) -> &[u32] {
        &self.slots[..self.len]
    }

    pub fn into_slots(self) -> impl Iterator<Item = u32> {
        self.slots.into_iter().take(self.len)
    }

    fn push(&mut self, slot: Option<u32>) {
        if let Some(slot) = slot {
            self.slots[self.len] = slot;
            self.len += 1;
        }
    }
}

/// What the layers of a stack come to for one unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnitView {
    pub valid: u16,
    pub mod_seq: ModSeq,
}

impl UnitView {
    pub const EMPTY: Self = Self { valid: 0, mod_seq: ModSeq::NONE };
}

impl Replica {
    pub fn is_layered(&self) -> bool {
        !self.frozen.is_empty()
    }

    pub fn frozen(&self) -> &[Frozen] {
        &self.frozen
    }

    pub fn birth(&self) -> u64 {
        self.birth
    }

    /// As its row says.
    pub fn layers(&self) -> Layers {
        Layers { head: self.head, frozen: self.frozen.iter().map(|f| f.row).collect() }
    }

    /// All maps, the head's first.
    pub(super) fn maps(&self) -> impl Iterator<Item = (u16, &ExtentMap)> {
        let frozen = self.frozen.iter().map(|f| (f.row.number, &f.extents));
        std::iter::once((self.head, &self.extents)).chain(frozen)
    }

    pub fn slots(&self) -> u64 {
        self.maps().map(|(_, map)| map.len()).sum()
    }

    pub(super) fn map_of(&self, layer: u16) -> Option<&ExtentMap> {
        if layer == self.head {
            return Some(&self.extents);
        }
        self.frozen.iter().find(|f| f.row.number == layer).map(|f| &f.extents)
    }

    pub(super) fn map_of_mut(&mut self, layer: u16) -> Option<&mut ExtentMap> {
        if layer == self.head {
            return Some(&mut self.extents);
        }
        self.frozen.iter_mut().find(|f| f.row.number == layer).map(|f| &mut f.extents)
    }

    /// Where the layer stands, the oldest being 0 and the head behind all others; `None`: there is
    /// no such layer that anybody still may ask for.
    pub fn top(&self, layer: Option<LayerId>) -> Option<usize> {
        let Some(id) = layer else { return Some(self.frozen.len()) };
        self.frozen.iter().position(|f| f.row.id == id && !f.row.is_released)
    }

    fn map_at(&self, top: usize) -> &ExtentMap {
        self.frozen.get(top).map_or(&self.extents, |f| &f.extents)
    }

    /// The number of the layer at `top`.
    pub fn number_at(&self, top: usize) -> u16 {
        self.frozen.get(top).map_or(self.head, |f| f.row.number)
    }
}

impl Table {
    /// Of an extent of the head.
    pub fn head_owner(&self, replica: ReplicaId, extent: u32) -> Owner {
        let layer = self.replicas.get(&replica).map_or(0, |r| r.head);
        Owner { replica, layer, extent }
    }

    pub fn is_layered(&self, replica: ReplicaId) -> bool {
        self.replicas.get(&replica).is_some_and(Replica::is_layered)
    }

    /// Numbers that a new layer must not get, or it would have what a lost one had.
    pub fn stray_numbers(&self, replica: ReplicaId) -> &[u16] {
        self.replicas.get(&replica).map_or(&[], |r| &r.strays)
    }

    /// Where the head stands above its frozen layers.
    pub fn head_top(&self, replica: ReplicaId) -> usize {
        self.replicas.get(&replica).map_or(0, |r| r.frozen.len())
    }

    /// The extent's slots from the layer at `top` down.
    pub fn stack(&self, replica: ReplicaId, extent: u32, top: usize) -> Stack {
        let mut stack = Stack::EMPTY;
        if let Some(replica) = self.replicas.get(&replica) {
            (0..=top).rev().for_each(|at| stack.push(replica.map_at(at).get(extent)));
        }
        stack
    }

    /// The extent's slots from the head down.
    pub fn head_stack(&self, replica: ReplicaId, extent: u32) -> Stack {
        self.stack(replica, extent, self.head_top(replica))
    }

    /// The extent's slots below the layer at `top`.
    pub fn stack_below(&self, replica: ReplicaId, extent: u32, top: usize) -> Stack {
        match top.checked_sub(1) {
            Some(top) => self.stack(replica, extent, top),
            None => Stack::EMPTY,
        }
    }

    /// The slots of the extents from `first` to `last`, of all layers.
    pub fn slots(
        &self,
        replica: ReplicaId,
        first: u32,
        last: u32,
    ) -> impl Iterator<Item = u32> + '_ {
        let maps = self.replicas.get(&replica).into_iter().flat_map(Replica::maps);
        maps.flat_map(move |(_, map)| map.range(first, last)).map(|(_, slot)| slot)
    }

    /// The extents from `first` to `last` that the head has slots for, with these.
    pub fn head_extents(
        &self,
        replica: ReplicaId,
        first: u32,
        last: u32,
    ) -> impl Iterator<Item = (u32, u32)> + '_ {
        let found = self.replicas.get(&replica);
        found.into_iter().flat_map(move |r| r.extents.range(first, last))
    }

    /// The extents from `first` to `last` that have slots in the layer at `top` or below, with these.
    pub fn stacks(
        &self,
        replica: ReplicaId,
        first: u32,
        last: u32,
        top: usize,
    ) -> impl Iterator<Item = (u32, Stack)> + '_ {
        let found = self.replicas.get(&replica);
        let maps = found.into_iter().flat_map(move |r| (0..=top).rev().map(|at| r.map_at(at)));
        let mut ranges: Vec<_> = maps.map(|map| map.range(first, last).peekable()).collect();
        std::iter::from_fn(move || {
            let heads = ranges.iter_mut().filter_map(|range| range.peek());
            let extent = heads.map(|&(extent, _)| extent).min()?;
            let mut stack = Stack::EMPTY;
            for range in &mut ranges {
                stack.push(range.next_if(|&(next, _)| next == extent).map(|(_, slot)| slot));
            }
            Some((extent, stack))
        })
    }

    /// The last extent before `end` that has a slot in any layer.
    pub fn last_extent(&self, replica: ReplicaId, end: Option<u32>) -> Option<u32> {
        let replica = self.replicas.get(&replica)?;
        replica.maps().filter_map(|(_, map)| map.last_before(end)).max()
    }

    /// Of slots whose pages are not absent.
    pub fn unit_view(&self, stack: &[u32], unit: u32) -> UnitView {
        let (mut valid, mut hidden, mut mod_seq) = (0, 0, None);
        for &slot in stack {
            let descriptor = self.descriptor(slot);
            let (has, clears) = (descriptor.valid(unit), descriptor.cleared(unit));
            if has | clears != 0 && mod_seq.is_none() {
                mod_seq = Some(descriptor.mod_seq(unit));
            }
            valid |= has & !hidden;
            hidden |= has | clears;
        }
        UnitView { valid, mod_seq: mod_seq.unwrap_or(ModSeq::NONE) }
    }

    /// The slot that has the block's content; `None`: it reads as zeros.
    pub fn source(&self, stack: &[u32], block: u32) -> Option<u32> {
        let (unit, bit) = (block / UNIT_BLOCKS, mask(block % UNIT_BLOCKS, 1));
        for &slot in stack {
            let descriptor = self.descriptor(slot);
            if descriptor.valid(unit) & bit != 0 {
                return Some(slot);
            }
            if descriptor.cleared(unit) & bit != 0 {
                return None;
            }
        }
        None
    }

    /// The blocks of a unit that layers behind the one at `from`, up to the one at `to`, wrote, or
    /// cleared while they held something.
    pub fn changed_between(
        &self,
        replica: ReplicaId,
        extent: u32,
        unit: u32,
        from: Option<usize>,
        to: usize,
    ) -> u16 {
        let Some(found) = self.replicas.get(&replica) else { return 0 };
        let before = from.map(|from| self.stack(replica, extent, from));
        let before = before.map(|stack| self.unit_view(stack.slots(), unit).valid);
        let (mut valid, mut changed) = (before.unwrap_or(0), 0);
        for at in from.map_or(0, |from| from + 1)..=to {
            let Some(slot) = found.map_at(at).get(extent) else { continue };
            let descriptor = self.descriptor(slot);
            let (has, clears) = (descriptor.valid(unit), descriptor.cleared(unit));
            changed |= has | clears & valid;
            valid = valid & !clears | has;
        }
        changed
    }

    /// For recovery: the replica, which was just put, has these layers.
    pub(super) fn put_layers(&mut self, row: &ReplicaRow) {
        let extents = row.size.div_ceil(self.layout.slot_bytes());
        let found = self.replicas.get_mut(&row.replica).expect("it was put");
        let frozen = row.layers.frozen.iter();
        found.frozen = frozen.map(|&row| Frozen { row, extents: ExtentMap::default() }).collect();
        self.extents_max += extents * u64::try_from(found.frozen.len()).expect("few");
        let released = found.frozen.iter().filter(|f| f.row.is_released).count();
        self.frozen_layers += u64::try_from(found.frozen.len()).expect("few");
        self.released_layers += u64::try_from(released).expect("few");
    }

    /// The layers are gone.
    pub(super) fn uncount_layers(&mut self, gone: &[Frozen]) {
        let released = gone.iter().filter(|f| f.row.is_released).count();
        self.frozen_layers -= u64::try_from(gone.len()).expect("few");
        self.released_layers -= u64::try_from(released).expect("few");
    }

    // Changes. As those of `table`, each is one record's.

    pub fn freeze(&mut self, lsn: u64, replica: ReplicaId, id: LayerId, head: u16) {
        let slot_bytes = self.layout.slot_bytes();
        let found = self.replicas.get_mut(&replica).expect("the replica exists");
        self.replicas_memory -= found.memory();
        let row = FrozenLayer { id, number: found.head, is_released: false };
        let extents = std::mem::take(&mut found.extents);
        found.frozen.push(Frozen { row, extents });
        found.head = head;
        self.replicas_memory += found.memory();
        self.extents_max += found.size.div_ceil(slot_bytes);
        let index = found.index;
        self.frozen_layers += 1;
        if !is_on(Sabotage::FreezeNotKept) {
            self.touch(index, lsn);
        }
    }

    pub fn release(&mut self, lsn: u64, replica: ReplicaId, id: LayerId) {
        let found = self.replicas.get_mut(&replica).expect("the replica exists");
        let frozen = found.frozen.iter_mut().find(|f| f.row.id == id).expect("the caller looked");
        frozen.row.is_released = true;
        let index = found.index;
        self.released_layers += 1;
        self.touch(index, lsn);
    }

    /// The layer at `at` has no slot any more.
    pub fn drop_layer(&mut self, lsn: u64, replica: ReplicaId, at: usize) {
        let slot_bytes = self.layout.slot_bytes();
        let found = self.replicas.get_mut(&replica).expect("the replica exists");
        self.replicas_memory -= found.memory();
        let gone = found.frozen.remove(at);
        assert_eq!(gone.extents.len(), 0, "a layer that has merged is empty");
        self.replicas_memory += found.memory();
        self.extents_max -= found.size.div_ceil(slot_bytes);
        let index = found.index;
        self.uncount_layers(&[gone]);
        self.touch(index, lsn);
    }

    /// The slot goes from a layer to the owner's.
    pub fn relabel(&mut self, lsn: u64, slot: u32, from: u16, owner: Owner) {
        let replica = self.replicas.get_mut(&owner.replica).expect("the replica exists");
        self.replicas_memory -= replica.memory();
        let before = replica.map_of_mut(from).expect("the layer exists").remove(owner.extent);
        assert_eq!(before, Some(slot), "the slot is the layer's");
        self.replicas_memory += replica.memory();
        self.slots_used -= 1;
        self.own(lsn, slot, owner);
    }

    pub fn masks(&mut self, lsn: u64, masks: &Masks) {
        if masks.fresh {
            self.own(lsn, masks.slot, masks.owner);
        }
        self.put_masks(lsn, masks);
    }

    pub(super) fn put_masks(&mut self, lsn: u64, masks: &Masks) {
        let begins = masks.fresh || !self.describes(masks.slot, masks.owner);
        let mut descriptor = self.descriptor_mut(masks.slot);
        if begins {
            descriptor.set_owner(masks.owner);
        }
        let unit = masks.unit;
        let was_lost = descriptor.view().lost(unit);
        descriptor.set_mod_seq(unit, masks.mod_seq);
        descriptor.set_valid(unit, masks.valid);
        descriptor.set_cleared(unit, masks.cleared);
        descriptor.set_lost(unit, was_lost & masks.valid & !masks.filled | masks.lost);
        let filled = Masks::blocks(masks.filled, masks.payload_crcs());
        for (block, crc) in filled.chain(Masks::blocks(masks.lost, masks.lost_crcs())) {
            descriptor.set_crc(unit * UNIT_BLOCKS + block, crc);
        }
        self.touch_slot(masks.slot, lsn);
    }

    // What is to be merged.

    pub fn slots_to_merge(&self) -> u64 {
        if self.released_layers == 0 {
            return 0;
        }
        let frozen = self.replicas.values().flat_map(|r| &r.frozen);
        frozen.filter(|f| f.row.is_released).map(|f| f.extents.len()).sum()
    }

    pub fn layers_to_merge(&self) -> u64 {
        self.released_layers
    }

    pub fn frozen_layers(&self) -> u64 {
        self.frozen_layers
    }

    /// A replica with a released layer, and where the newest of these stands.
    pub fn layer_to_merge(&self) -> Option<(ReplicaId, usize)> {
        if self.released_layers == 0 {
            return None;
        }
        self.replicas.iter().find_map(|(&id, replica)| {
            let at = replica.frozen.iter().rposition(|f| f.row.is_released)?;
            Some((id, at))
        })
    }
}
