//! What the manager is told of primaries with each beat: what changed, and the rest in turn.
//!
//! Decides: of which primaries the next beat speaks.
//! Does not: measure how they stand.
//! Invariants: a beat speaks of at most [`NEWS_MAX`] and [`AGAIN_MAX`] primaries, so an idle server
//! sends next to nothing however many it holds; every primary is spoken of again and again, so
//! that what was lost on the way is told in the end.

use std::mem;

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
    /// How each primary stood when it was last spoken of, in their order.
    told: Vec<ReplicaProgress>,
    /// The last one of the news that was told, and the last one that was told again.
    news_to: Option<ReplicaId>,
    again_to: Option<ReplicaId>,
}

impl Beats {
    /// The manager may not have heard what it was told.
    pub fn tell_all(&mut self) {
        self.told.clear();
    }

    /// How the primaries stand now, in the order of their replicas. It is walked beside what was told,
    /// without looking anything up: an idle server does this for all that it holds with each beat.
    pub fn next(&mut self, now: impl Iterator<Item = ReplicaProgress>) -> Vec<ReplicaProgress> {
        let mut told = mem::take(&mut self.told).into_iter().peekable();
        let mut rows: Vec<Row> = Vec::with_capacity(told.len());
        for now in now {
            assert!(rows.last().is_none_or(|r| r.now.replica < now.replica), "in their order");
            while told.next_if(|t| t.replica < now.replica).is_some() {}
            let told = told.next_if(|t| t.replica == now.replica);
            rows.push(Row { now, told, spoken: false });
        }
        let is_news = |&index: &usize| rows[index].told.as_ref() != Some(&rows[index].now);
        let news: Vec<usize> = after(&rows, self.news_to).filter(is_news).take(NEWS_MAX).collect();
        let count = rows.len().div_ceil(ROUND_BEATS).min(AGAIN_MAX);
        let again: Vec<usize> = after(&rows, self.again_to).take(count).collect();
        self.news_to = news.last().map(|&index| rows[index].now.replica);
        self.again_to = again.last().map(|&index| rows[index].now.replica);
        let mut spoken = Vec::with_capacity(news.len() + again.len());
        for index in news.into_iter().chain(again) {
            let row = &mut rows[index];
            if !mem::replace(&mut row.spoken, true) {
                row.told = Some(row.now.clone());
                spoken.push(row.now.clone());
            }
        }
        self.told = rows.into_iter().filter_map(|row| row.told).collect();
        spoken
    }
}

/// A primary in one beat.
struct Row {
    now: ReplicaProgress,
    told: Option<ReplicaProgress>,
    spoken: bool,
}

/// All, beginning behind `start` and coming round to it.
fn after(all: &[Row], start: Option<ReplicaId>) -> impl Iterator<Item = usize> {
    let first = all.partition_point(|row| Some(row.now.replica) <= start);
    (first..all.len()).chain(0..first)
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
