//! Which blocks a change is in flight for.
//!
//! Invariant: at most one change is in flight per block, and changes that overlap run in the
//! order in which they came. That is what makes sending a change again harmless (9).

use std::{collections::BTreeMap, ops::Range};

use model::sabotage::{Sabotage, is_on};

use crate::requests::PartId;

/// Byte ranges of whole blocks, of changes that are in flight or wait for an older one.
#[derive(Debug, Default)]
pub struct Ranges {
    /// Disjoint, by start.
    held: BTreeMap<u64, (u64, PartId)>,
    waiting: BTreeMap<PartId, Range<u64>>,
}

impl Ranges {
    /// Whether the change may run now. If not, a later [`Self::release`] will name it.
    pub fn acquire(&mut self, part: PartId, range: Range<u64>) -> bool {
        assert!(range.start < range.end, "a change of nothing");
        if is_on(Sabotage::OverlapSent) {
            return true;
        }
        let blocked =
            self.is_held(&range) || self.waiting.values().any(|older| overlap(older, &range));
        if blocked {
            self.waiting.insert(part, range);
        } else {
            self.held.insert(range.start, (range.end, part));
        }
        !blocked
    }

    /// The change that holds `range` is done; appends those that may run now.
    pub fn release(&mut self, part: PartId, range: &Range<u64>, granted: &mut Vec<PartId>) {
        if is_on(Sabotage::OverlapSent) {
            return;
        }
        let removed = self.held.remove(&range.start);
        assert_eq!(removed, Some((range.end, part)), "a range released that was not held");
        if self.waiting.is_empty() {
            return;
        }
        let candidates: Vec<PartId> =
            self.waiting.iter().filter(|(_, r)| overlap(r, range)).map(|(&p, _)| p).collect();
        for candidate in candidates {
            let range = self.waiting[&candidate].clone();
            let older = || self.waiting.range(..candidate).any(|(_, r)| overlap(r, &range));
            if self.is_held(&range) || older() {
                continue;
            }
            self.waiting.remove(&candidate);
            self.held.insert(range.start, (range.end, candidate));
            granted.push(candidate);
        }
    }

    pub fn clear(&mut self) {
        self.held.clear();
        self.waiting.clear();
    }

    fn is_held(&self, range: &Range<u64>) -> bool {
        // Held ranges are disjoint, so the last that starts before our end decides.
        self.held.range(..range.end).next_back().is_some_and(|(_, &(end, _))| end > range.start)
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn released(ranges: &mut Ranges, part: u64, range: Range<u64>) -> Vec<u64> {
        let mut granted = Vec::new();
        ranges.release(PartId(part), &range, &mut granted);
        granted.into_iter().map(|p| p.0).collect()
    }

    #[test]
    fn overlapping_changes_run_in_the_order_they_came() {
        let mut ranges = Ranges::default();
        assert!(ranges.acquire(PartId(1), 0..8));
        assert!(!ranges.acquire(PartId(2), 4..12));
        // Overlaps only a waiting one, and must not overtake it.
        assert!(!ranges.acquire(PartId(3), 8..16));
        assert!(ranges.acquire(PartId(4), 16..20));
        assert_eq!(released(&mut ranges, 1, 0..8), [2]);
        assert_eq!(released(&mut ranges, 2, 4..12), [3]);
        assert_eq!(released(&mut ranges, 4, 16..20), [0; 0]);
        assert_eq!(released(&mut ranges, 3, 8..16), [0; 0]);
    }

    #[test]
    fn one_release_lets_several_disjoint_changes_run() {
        let mut ranges = Ranges::default();
        assert!(ranges.acquire(PartId(1), 0..100));
        assert!(!ranges.acquire(PartId(2), 0..10));
        assert!(!ranges.acquire(PartId(3), 10..20));
        assert!(!ranges.acquire(PartId(4), 5..15));
        assert_eq!(released(&mut ranges, 1, 0..100), [2, 3]);
        assert_eq!(released(&mut ranges, 2, 0..10), [0; 0]);
        assert_eq!(released(&mut ranges, 3, 10..20), [4]);
    }
}
