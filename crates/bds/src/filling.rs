//! How many learners a server fills at once.
//!
//! Decides: which of its primaries may begin to fill a learner, and who is next.
//! Does not: walk a learner; that is its primary's.
//! Invariants: at most as many fills are under way as the server may have, so that those of a
//! thousand volumes after a restart leave the drives and the processor to guests; who waits is served
//! in the order in which it asked, as soon as another fill has ended.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use model::id::ReplicaId;

#[derive(Debug)]
pub struct Filling {
    most: usize,
    /// Fills under way, by their primary.
    under_way: BTreeMap<ReplicaId, usize>,
    /// Primaries that have a learner to fill.
    waiting: VecDeque<ReplicaId>,
    /// The same.
    waits: BTreeSet<ReplicaId>,
}

impl Filling {
    pub fn new(most: usize) -> Self {
        let (under_way, waiting, waits) = (BTreeMap::new(), VecDeque::new(), BTreeSet::new());
        Self { most: most.max(1), under_way, waiting, waits }
    }

    /// How many more fills may begin.
    pub fn room(&self) -> usize {
        self.most.saturating_sub(self.under_way.values().sum())
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

    pub fn wait(&mut self, primary: ReplicaId) {
        if self.waits.insert(primary) {
            self.waiting.push_back(primary);
        }
    }

    /// Who may look again whether it can begin, if there is room. It may have lost its interest.
    pub fn next(&mut self) -> Option<ReplicaId> {
        if self.waiting.is_empty() || self.room() == 0 {
            return None;
        }
        let primary = self.waiting.pop_front()?;
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
        assert_eq!(filling.room(), 2);
        filling.note(id(1), 2);
        for number in [3, 2, 3, 4] {
            filling.wait(id(number));
        }
        assert_eq!((filling.room(), filling.next()), (0, None));
        filling.note(id(1), 1);
        assert_eq!((filling.room(), filling.next()), (1, Some(id(3))));
        filling.note(id(3), 1);
        assert_eq!(filling.next(), None);
        // Each is counted by what it has under way now, so nothing is given back twice.
        for number in [1, 1, 3, 7] {
            filling.note(id(number), 0);
        }
        assert_eq!(filling.room(), 2);
        assert_eq!([filling.next(), filling.next()], [Some(id(2)), Some(id(4))]);
        assert_eq!(filling.next(), None);
    }

    #[test]
    fn a_server_that_may_fill_none_fills_one() {
        assert_eq!(Filling::new(0).room(), 1);
    }
}
