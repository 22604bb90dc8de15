//! What the manager is told of primaries with each beat: what changed, and the rest in turn.
//!
//! Decides: of which primaries the next beat speaks.
//! Does not: measure how they stand.
//! Invariants: a beat speaks of at most [`NEWS_MAX`] and [`AGAIN_MAX`] primaries, so an idle server
//! sends next to nothing however many it holds; every primary is spoken of again and again, so
//! that what was lost on the way is told in the end.

use std::{collections::BTreeMap, ops::Bound};

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
    /// How each primary stood when it was last spoken of.
    told: BTreeMap<ReplicaId, ReplicaProgress>,
    /// The last one of the news that was told, and the last one that was told again.
    news_to: Option<ReplicaId>,
    again_to: Option<ReplicaId>,
}

impl Beats {
    /// The manager may not have heard what it was told.
    pub fn tell_all(&mut self) {
        self.told.clear();
    }

    pub fn next(&mut self, now: impl Iterator<Item = ReplicaProgress>) -> Vec<ReplicaProgress> {
        let now: BTreeMap<ReplicaId, ReplicaProgress> = now.map(|p| (p.replica, p)).collect();
        self.told.retain(|replica, _| now.contains_key(replica));
        let changed = |p: &&ReplicaProgress| self.told.get(&p.replica) != Some(*p);
        let mut spoken: Vec<_> =
            after(&now, self.news_to).filter(changed).take(NEWS_MAX).cloned().collect();
        self.news_to = spoken.last().map(|p| p.replica);
        let count = now.len().div_ceil(ROUND_BEATS).min(AGAIN_MAX);
        let again: Vec<_> = after(&now, self.again_to).take(count).cloned().collect();
        self.again_to = again.last().map(|p| p.replica);
        for progress in again {
            if !spoken.iter().any(|p| p.replica == progress.replica) {
                spoken.push(progress);
            }
        }
        self.told.extend(spoken.iter().map(|p| (p.replica, p.clone())));
        spoken
    }
}

/// All, beginning behind `start` and coming round to it.
fn after(
    all: &BTreeMap<ReplicaId, ReplicaProgress>,
    start: Option<ReplicaId>,
) -> impl Iterator<Item = &ReplicaProgress> {
    let bound = start.map_or(Bound::Unbounded, Bound::Excluded);
    let before = start.into_iter().flat_map(|s| all.range(..=s));
    all.range((bound, Bound::Unbounded)).chain(before).map(|(_, p)| p)
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
    fn an_idle_server_says_little_and_all_of_it_in_turn() {
        let mut beats = Beats::default();
        let idle = || (0..5_000).map(|n| progress(n, 1));
        let first: usize = (0..3).map(|_| beats.next(idle()).len()).sum();
        assert!((5_000..5_300).contains(&first), "{first} at first");
        let mut seen = BTreeSet::new();
        for _ in 0..ROUND_BEATS {
            let spoken = beats.next(idle());
            assert!(spoken.len() <= AGAIN_MAX, "{} of idle primaries", spoken.len());
            seen.append(&mut names(&spoken));
        }
        assert_eq!(seen.len(), 5_000, "each is spoken of within a round");
    }

    #[test]
    fn what_changed_is_told_at_once_and_nobody_waits_for_ever() {
        let mut beats = Beats::default();
        let all = |changed: u64, allocated: u64| {
            (0..5_000).map(move |n| progress(n, if n < changed { allocated } else { 1 }))
        };
        for _ in 0..3 {
            beats.next(all(0, 1));
        }
        assert!(names(&beats.next(all(3, 2))).is_superset(&BTreeSet::from([0, 1, 2])));
        // All change between any two beats.
        let mut seen = BTreeSet::new();
        for beat in 0..4 {
            seen.append(&mut names(&beats.next(all(5_000, 10 + beat))));
        }
        assert_eq!(seen.len(), 5_000);
    }

    #[test]
    fn a_manager_that_may_have_missed_something_is_told_all() {
        let mut beats = Beats::default();
        beats.next([progress(1, 1), progress(2, 1)].into_iter());
        assert_eq!(beats.next([progress(1, 1), progress(2, 1)].into_iter()).len(), 1);
        beats.tell_all();
        assert_eq!(beats.next([progress(1, 1), progress(2, 1)].into_iter()).len(), 2);
    }
}
