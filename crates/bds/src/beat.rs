//! What the manager is told of primaries with each beat: what changed, and the rest in turn.
//!
//! Decides: of which primaries the next beat speaks.
//! Does not: measure how they stand.
//! Invariants: a beat speaks of at most [`NEWS_MAX`] and [`AGAIN_MAX`] primaries, and looks only at those
//! and at what had a turn, so an idle server does and sends next to nothing however many it
//! holds; every primary is spoken of again and again, so that what was lost on the way, or changed
//! without a turn of its replica, is told in the end.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound::{Excluded, Unbounded},
};

use format::ctl::ReplicaProgress;
use model::id::ReplicaId;

/// Primaries that changed. More wait for the next beat.
const NEWS_MAX: usize = 2_000;
/// A primary that did not change is spoken of again after so many beats, if there are few.
const ROUND_BEATS: usize = 60;
/// Of primaries that did not change, in one beat.
const AGAIN_MAX: usize = 100;

#[derive(Debug, Default)]
pub struct Beats {
    /// What had a turn and was not looked at since, in the order in which that was noted.
    touched: VecDeque<ReplicaId>,
    /// How each primary stood when it was last spoken of.
    told: BTreeMap<ReplicaId, ReplicaProgress>,
    /// The last one that was told again.
    again_to: Option<ReplicaId>,
}

impl Beats {
    /// It may stand otherwise than before: a beat looks at it. Whoever calls this remembers that
    /// it did until the beat has looked, so that a busy replica is noted once.
    pub fn touch(&mut self, replica: ReplicaId) {
        self.touched.push_back(replica);
    }

    /// The manager may not have heard what it was told.
    pub fn tell_all(&mut self) {
        self.touched.extend(std::mem::take(&mut self.told).into_keys());
    }

    /// What the next beat speaks of. `stands` looks at a replica: nothing if it is not primary.
    pub fn next(
        &mut self,
        mut stands: impl FnMut(ReplicaId) -> Option<ReplicaProgress>,
    ) -> Vec<ReplicaProgress> {
        let mut spoken = Vec::new();
        for replica in self.next_in_turn() {
            let now = stands(replica);
            self.tell(replica, now, &mut spoken);
        }
        let most = spoken.len() + NEWS_MAX;
        while spoken.len() < most
            && let Some(replica) = self.touched.pop_front()
        {
            let now = stands(replica);
            if now.as_ref() != self.told.get(&replica) {
                self.tell(replica, now, &mut spoken);
            }
        }
        spoken
    }

    /// The next ones in turn, behind the last and coming round to it.
    fn next_in_turn(&mut self) -> Vec<ReplicaId> {
        let count = self.told.len().div_ceil(ROUND_BEATS).min(AGAIN_MAX);
        let from = self.again_to.map_or(Unbounded, Excluded);
        let behind = self.told.range((from, Unbounded)).chain(&self.told);
        let again: Vec<ReplicaId> = behind.take(count).map(|(&replica, _)| replica).collect();
        self.again_to = again.last().copied().or(self.again_to);
        again
    }

    fn tell(
        &mut self,
        replica: ReplicaId,
        now: Option<ReplicaProgress>,
        spoken: &mut Vec<ReplicaProgress>,
    ) {
        match now {
            Some(now) => {
                spoken.push(now.clone());
                self.told.insert(replica, now);
            }
            None => {
                self.told.remove(&replica);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use model::{epoch::Epoch, id::GroupId, units::ByteCount};

    use super::*;

    fn progress(replica: u64, allocated: u64) -> ReplicaProgress {
        ReplicaProgress {
            group: GroupId::from_raw(replica),
            replica: ReplicaId::from_raw(replica),
            epoch: Epoch::FIRST,
            allocated: ByteCount::new(allocated),
            fill: None,
        }
    }

    fn names(spoken: &[ReplicaProgress]) -> BTreeSet<u64> {
        spoken.iter().map(|p| p.replica.raw()).collect()
    }

    #[test]
    fn an_idle_server_says_and_looks_at_little_and_speaks_of_all_in_turn() {
        let mut beats = Beats::default();
        let mut looked = 0;
        let mut idle = |beats: &mut Beats| {
            beats.next(|replica| {
                looked += 1;
                Some(progress(replica.raw(), 1))
            })
        };
        (0..5_000).for_each(|n| beats.touch(ReplicaId::from_raw(n)));
        let first: usize = (0..3).map(|_| idle(&mut beats).len()).sum();
        assert!((5_000..5_300).contains(&first), "{first} at first");
        let mut seen = BTreeSet::new();
        for _ in 0..ROUND_BEATS {
            let spoken = idle(&mut beats);
            assert!(spoken.len() <= AGAIN_MAX, "{} of idle primaries", spoken.len());
            seen.append(&mut names(&spoken));
        }
        assert_eq!(seen.len(), 5_000, "each is spoken of within a round");
        assert!(looked < 5_300 + ROUND_BEATS * AGAIN_MAX, "{looked} were looked at");
    }

    #[test]
    fn what_changed_is_told_at_once_and_nobody_waits_for_ever() {
        let mut beats = Beats::default();
        let all = |changed: u64, allocated: u64| {
            move |r: ReplicaId| {
                Some(progress(r.raw(), if r.raw() < changed { allocated } else { 1 }))
            }
        };
        (0..5_000).for_each(|n| beats.touch(ReplicaId::from_raw(n)));
        for _ in 0..3 {
            beats.next(all(0, 1));
        }
        (0..3).for_each(|n| beats.touch(ReplicaId::from_raw(n)));
        assert!(names(&beats.next(all(3, 2))).is_superset(&BTreeSet::from([0, 1, 2])));
        // All change between any two beats.
        let mut seen = BTreeSet::new();
        for beat in 0..4 {
            (0..5_000).for_each(|n| beats.touch(ReplicaId::from_raw(n)));
            seen.append(&mut names(&beats.next(all(5_000, 10 + beat))));
        }
        assert_eq!(seen.len(), 5_000);
    }

    #[test]
    fn what_changed_without_a_turn_is_told_within_a_round() {
        let mut beats = Beats::default();
        (0..100).for_each(|n| beats.touch(ReplicaId::from_raw(n)));
        beats.next(|r| Some(progress(r.raw(), 1)));
        let mut told = BTreeSet::new();
        for _ in 0..ROUND_BEATS {
            let spoken = beats.next(|r| Some(progress(r.raw(), 2)));
            assert!(spoken.iter().all(|p| p.allocated.get() == 2));
            told.append(&mut names(&spoken));
        }
        assert_eq!(told.len(), 100);
    }

    #[test]
    fn a_manager_that_may_have_missed_something_is_told_all() {
        let mut beats = Beats::default();
        let stands = |r: ReplicaId| Some(progress(r.raw(), 1));
        (1..=2).for_each(|n| beats.touch(ReplicaId::from_raw(n)));
        assert_eq!(beats.next(stands).len(), 2);
        assert_eq!(beats.next(stands).len(), 1);
        beats.tell_all();
        assert_eq!(beats.next(stands).len(), 2);
    }

    #[test]
    fn what_is_no_primary_any_more_is_not_spoken_of() {
        let mut beats = Beats::default();
        (1..=2).for_each(|n| beats.touch(ReplicaId::from_raw(n)));
        assert_eq!(beats.next(|r| Some(progress(r.raw(), 1))).len(), 2);
        let gone = |r: ReplicaId| (r.raw() == 2).then(|| progress(2, 1));
        beats.touch(ReplicaId::from_raw(1));
        for _ in 0..3 {
            assert!(!names(&beats.next(gone)).contains(&1));
        }
    }
}
