//! How many learners a server fills at once.
//!
//! Decides: which of its primaries may begin to fill a learner, and who is next.
//! Does not: walk a learner; that is its primary's.
//! Invariants: at most as many fills are under way as the server may have, so that those of a
//! thousand volumes after a restart leave the drives and the processor to guests; a volume that would
//! not survive the next failure does not wait for one that only moves: it goes before it, and has places
//! of its own; else who waits is served in the order in which it asked, as soon as another fill has
//! ended.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use model::id::ReplicaId;

#[derive(Debug)]
pub struct Filling {
    most: usize,
    /// Fills under way, by their primary.
    under_way: BTreeMap<ReplicaId, usize>,
    /// Primaries that have a learner to fill: of volumes with one copy, and the others.
    waiting: [VecDeque<ReplicaId>; 2],
    /// The same.
    waits: BTreeSet<ReplicaId>,
}

impl Filling {
    pub fn new(most: usize) -> Self {
        let (under_way, waiting, waits) = (BTreeMap::new(), Default::default(), BTreeSet::new());
        Self { most: most.max(1), under_way, waiting, waits }
    }

    /// How many more fills of such a volume may begin. The others leave a quarter of the places free.
    pub fn room(&self, has_one_copy: bool) -> usize {
        let kept = if has_one_copy { 0 } else { self.most / 4 };
        (self.most - kept).saturating_sub(self.under_way.values().sum())
    }

    /// So many fills of the primary are under way.
    pub fn note(&mut self, primary: ReplicaId, under_way: usize) {
        if under_way > 0 {
            self.under_way.insert(primary, under_way);
        } else if !self.under_way.is_empty() {
            self.under_way.remove(&primary);
        }
        let all: usize = self.under_way.values().sum();
        assert!(all <= self.most, "{all} fills are under way, of at most {}", self.most);
    }

    pub fn wait(&mut self, primary: ReplicaId, has_one_copy: bool) {
        if self.waits.insert(primary) {
            self.waiting[usize::from(!has_one_copy)].push_back(primary);
        }
    }

    /// Who may look again whether it can begin, if there is room. It may have lost its interest.
    pub fn next(&mut self) -> Option<ReplicaId> {
        let room = [true, false].map(|has_one_copy| self.room(has_one_copy) > 0);
        let mut queues = self.waiting.iter_mut().zip(room).filter(|(_, has_room)| *has_room);
        let primary = queues.find_map(|(queue, _)| queue.pop_front())?;
        self.waits.remove(&primary);
        Some(primary)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> ReplicaId {
        ReplicaId::from_raw(number)
    }

    #[test]
    fn who_asked_first_is_next_when_there_is_room() {
        let mut filling = Filling::new(2);
        assert_eq!(filling.room(false), 2);
        filling.note(id(1), 2);
        for number in [3, 2, 3, 4] {
            filling.wait(id(number), false);
        }
        assert_eq!((filling.room(false), filling.next()), (0, None));
        filling.note(id(1), 1);
        assert_eq!((filling.room(false), filling.next()), (1, Some(id(3))));
        filling.note(id(3), 1);
        assert_eq!(filling.next(), None);
        // Each is counted by what it has under way now, so nothing is given back twice.
        for number in [1, 1, 3, 7] {
            filling.note(id(number), 0);
        }
        assert_eq!(filling.room(false), 2);
        assert_eq!([filling.next(), filling.next()], [Some(id(2)), Some(id(4))]);
        assert_eq!(filling.next(), None);
    }

    #[test]
    fn a_server_that_may_fill_none_fills_one() {
        assert_eq!(Filling::new(0).room(false), 1);
    }

    #[test]
    fn a_volume_with_one_copy_does_not_wait_for_those_that_only_move() {
        let mut filling = Filling::new(8);
        for number in 0..6 {
            filling.note(id(number), 1);
        }
        filling.wait(id(10), false);
        assert_eq!((filling.room(false), filling.next()), (0, None), "two places are kept");
        filling.wait(id(11), true);
        assert_eq!((filling.room(true), filling.next()), (2, Some(id(11))));
        filling.note(id(11), 1);
        filling.wait(id(12), true);
        filling.note(id(0), 0);
        filling.note(id(1), 0);
        assert_eq!([filling.next(), filling.next()], [Some(id(12)), Some(id(10))]);
    }
}
