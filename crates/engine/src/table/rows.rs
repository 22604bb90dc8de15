//! The table of replicas: which there are, what they take, and how they go.

use bytes::Bytes;
use format::disk::{map, page::ReplicaRow};
use model::id::ReplicaId;

use super::{ExtentMap, Replica, Table, at};

impl Table {
    /// A row of the replica table that is free.
    pub fn free_row(&self) -> Option<u32> {
        let index = self.rows.iter().position(Option::is_none)?;
        Some(u32::try_from(index).expect("rows are few"))
    }

    pub fn row_of(&self, replica: ReplicaId) -> Option<u32> {
        self.replicas.get(&replica).map(|r| r.index)
    }

    /// When the replica was made; `lsn` if it is made now.
    pub fn birth_of(&self, replica: ReplicaId, lsn: u64) -> u64 {
        let now = if self.has_maps() { lsn } else { 0 };
        self.replicas.get(&replica).map_or(now, |r| r.birth)
    }

    pub fn put_replica(&mut self, lsn: u64, index: u32, row: &ReplicaRow) {
        assert!(row.birth < map::BIRTH_LIMIT, "more records than a drive can live to see");
        self.rows[at(index)] = Some(row.replica);
        let replica = self.replicas.entry(row.replica).or_insert_with(|| {
            let replica = Replica {
                index,
                birth: row.birth,
                size: 0,
                meta: Bytes::new(),
                head: row.layers.head,
                extents: ExtentMap::default(),
                frozen: Vec::new(),
                strays: Vec::new(),
            };
            self.replicas_memory += replica.memory();
            replica
        });
        assert_eq!((replica.index, replica.birth), (index, row.birth), "a replica keeps its row");
        let slot_bytes = self.layout.slot_bytes();
        let layers = 1 + u64::try_from(replica.frozen.len()).expect("few");
        self.extents_max -= layers * replica.size.div_ceil(slot_bytes);
        self.extents_max += layers * row.size.div_ceil(slot_bytes);
        self.replicas_memory -= replica.memory();
        replica.size = row.size;
        replica.meta = row.meta.clone();
        self.replicas_memory += replica.memory();
        self.touch(index, lsn);
    }

    /// Returns slots that are free now. Of a drive with maps, whose slots are free without a change
    /// to their pages, they come from [`Self::take_removed`], because they may be millions.
    pub fn remove_replica(&mut self, lsn: u64, replica: ReplicaId) -> Vec<u32> {
        let Some(mut gone) = self.replicas.remove(&replica) else { return Vec::new() };
        self.rows[at(gone.index)] = None;
        self.replicas_memory -= gone.memory();
        let layers = 1 + u64::try_from(gone.frozen.len()).expect("few");
        self.extents_max -= layers * gone.size.div_ceil(self.layout.slot_bytes());
        self.touch(gone.index, lsn);
        self.uncount_layers(&gone.frozen);
        self.slots_used -= gone.slots();
        let frozen = std::mem::take(&mut gone.frozen).into_iter().map(|frozen| frozen.extents);
        let mut maps = std::iter::once(std::mem::take(&mut gone.extents)).chain(frozen);
        if self.has_maps() {
            for extents in maps {
                self.replicas_memory += extents.memory();
                self.removed.push_back((lsn, extents));
            }
            return Vec::new();
        }
        let slots = maps.next().map(|mut extents| extents.take(usize::MAX)).unwrap_or_default();
        slots.iter().for_each(|&slot| self.put_free(lsn, slot));
        slots
    }

    /// At least `count` slots, or all, of a replica that was removed by a record up to `lsn`, and
    /// the LSN of that.
    pub fn take_removed(&mut self, lsn: u64, count: usize) -> Option<(u64, Vec<u32>)> {
        let (removed_by, extents) = self.removed.front_mut().filter(|(by, _)| *by <= lsn)?;
        let removed_by = *removed_by;
        self.replicas_memory -= extents.memory();
        let slots = extents.take(count);
        self.replicas_memory += extents.memory();
        if extents.len() == 0 {
            self.removed.pop_front();
        }
        Some((removed_by, slots))
    }

    /// Whether there is something for [`Self::take_removed`].
    pub fn has_removed(&self, lsn: u64) -> bool {
        self.removed.front().is_some_and(|&(by, _)| by <= lsn)
    }

    /// Bytes of the drive that the replica occupies.
    pub fn allocated(&self, replica: ReplicaId) -> u64 {
        self.replicas.get(&replica).map_or(0, Replica::slots) * self.layout.slot_bytes()
    }

    pub(super) fn row(&self, index: u32) -> Option<ReplicaRow> {
        let replica = self.rows[at(index)]?;
        let found = &self.replicas[&replica];
        let (layers, meta) = (found.layers(), found.meta.clone());
        Some(ReplicaRow { replica, size: found.size, birth: found.birth, layers, meta })
    }
}
