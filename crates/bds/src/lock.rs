//! Who may touch which blocks now: range locks of one group, granted in order of arrival.
//!
//! Decides: the order of overlapping requests and of holds of the resync.
//! Does not: know what is done under a lock.
//! Invariants: two granted locks overlap only if both are shared; a lock is granted when nothing
//! that came before it conflicts with it, granted or not, so nobody starves. Only a hold that waits
//! for a change without end lets pass who came after it.

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockId(u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A read, or a hold of the resync: keeps changes out.
    Shared,
    /// A change.
    Exclusive,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub start: u64,
    pub end: u64,
}

impl Range {
    /// Panics when the range is empty or wraps: ranges are checked against the volume's size.
    pub fn new(offset: u64, length: u64) -> Self {
        let end = offset.checked_add(length).expect("a range within the volume");
        assert!(length > 0, "an empty range");
        Self { start: offset, end }
    }

    pub fn length(self) -> u64 {
        self.end - self.start
    }

    pub fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }
}

#[derive(Debug)]
struct Entry {
    id: LockId,
    range: Range,
    mode: Mode,
    granted: bool,
    /// While it waits, it keeps nobody waiting.
    yields: bool,
}

impl Entry {
    fn conflicts(&self, other: &Self) -> bool {
        let both_shared = self.mode == Mode::Shared && other.mode == Mode::Shared;
        !both_shared && self.range.overlaps(other.range)
    }

    /// Whether `later` has to wait for it.
    fn bars(&self, later: &Self) -> bool {
        (self.granted || !self.yields) && self.conflicts(later)
    }
}

/// Ordered by id, which is the order of arrival. There are never more than the requests in
/// flight and the fill window, so looking through all of them is cheap.
#[derive(Debug, Default)]
pub struct Locks {
    entries: Vec<Entry>,
    last: u64,
}

impl Locks {
    /// Takes a place in the order. True: granted already.
    pub fn take(&mut self, range: Range, mode: Mode) -> (LockId, bool) {
        self.last += 1;
        let id = LockId(self.last);
        let mut entry = Entry { id, range, mode, granted: false, yields: false };
        entry.granted = !self.entries.iter().any(|e| e.bars(&entry));
        let granted = entry.granted;
        self.entries.push(entry);
        (id, granted)
    }

    /// Gives up a lock or a place in the order; what can go on now is added to `granted`.
    pub fn release(&mut self, id: LockId, granted: &mut Vec<LockId>) {
        let index = self.entries.binary_search_by_key(&id, |e| e.id);
        let gone = self.entries.remove(index.expect("a lock is released once"));
        self.grant_after(&gone, granted);
    }

    pub fn range(&self, id: LockId) -> Range {
        let index = self.entries.binary_search_by_key(&id, |e| e.id).expect("it is taken");
        self.entries[index].range
    }

    /// Whether this hold, while it waits, lets pass who came after it.
    pub fn set_yields(&mut self, id: LockId, yields: bool, granted: &mut Vec<LockId>) {
        let index = self.entries.binary_search_by_key(&id, |e| e.id).expect("it is taken");
        let Entry { range, mode, .. } = self.entries[index];
        let was = std::mem::replace(&mut self.entries[index].yields, yields);
        if yields && !was {
            let gone = Entry { id, range, mode, granted: false, yields };
            self.grant_after(&gone, granted);
        }
    }

    /// Grants what waited for `gone` and for nothing else.
    fn grant_after(&mut self, gone: &Entry, granted: &mut Vec<LockId>) {
        for i in 0..self.entries.len() {
            let (before, rest) = self.entries.split_at_mut(i);
            let (waiting, after) = rest.split_first_mut().expect("within the entries");
            if waiting.granted || !waiting.conflicts(gone) {
                continue;
            }
            let passed = after.iter().any(|e| e.granted && e.conflicts(waiting));
            if !passed && !before.iter().any(|e| e.bars(waiting)) {
                waiting.granted = true;
                granted.push(waiting.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(locks: &mut Locks, id: LockId) -> Vec<LockId> {
        let mut granted = Vec::new();
        locks.release(id, &mut granted);
        granted
    }

    #[test]
    fn overlapping_changes_go_one_after_the_other_in_order_of_arrival() {
        let mut locks = Locks::default();
        let (a, now) = locks.take(Range::new(0, 8), Mode::Exclusive);
        assert!(now);
        let (b, now) = locks.take(Range::new(4, 8), Mode::Exclusive);
        assert!(!now);
        let (c, now) = locks.take(Range::new(8, 8), Mode::Exclusive);
        assert!(!now, "c must not overtake b");
        let (_, now) = locks.take(Range::new(100, 1), Mode::Exclusive);
        assert!(now);
        assert_eq!(release(&mut locks, a), [b]);
        assert_eq!(release(&mut locks, b), [c]);
    }

    #[test]
    fn a_hold_lets_reads_pass_and_keeps_changes_waiting() {
        let mut locks = Locks::default();
        let (hold, now) = locks.take(Range::new(0, 100), Mode::Shared);
        assert!(now);
        let (read, now) = locks.take(Range::new(3, 1), Mode::Shared);
        assert!(now);
        let (change, now) = locks.take(Range::new(3, 1), Mode::Exclusive);
        assert!(!now);
        assert_eq!(release(&mut locks, hold), []);
        assert_eq!(release(&mut locks, read), [change]);
    }

    #[test]
    fn a_hold_that_waits_for_a_stuck_change_lets_others_pass_and_bars_again_later() {
        let mut locks = Locks::default();
        let (stuck, _) = locks.take(Range::new(0, 10), Mode::Exclusive);
        let (hold, _) = locks.take(Range::new(0, 100), Mode::Shared);
        let (change, now) = locks.take(Range::new(50, 10), Mode::Exclusive);
        assert!(!now);
        let mut granted = Vec::new();
        locks.set_yields(hold, true, &mut granted);
        assert_eq!(granted, [change]);
        assert_eq!(release(&mut locks, stuck), [], "the one that passed is not done");
        locks.set_yields(hold, false, &mut granted);
        let (last, now) = locks.take(Range::new(90, 5), Mode::Exclusive);
        assert!(!now, "it bars again");
        assert_eq!(release(&mut locks, change), [hold]);
        assert_eq!(release(&mut locks, hold), [last]);
    }

    #[test]
    fn one_release_lets_all_readers_go_on() {
        let mut locks = Locks::default();
        let (change, _) = locks.take(Range::new(0, 10), Mode::Exclusive);
        let (a, _) = locks.take(Range::new(0, 10), Mode::Shared);
        let (b, _) = locks.take(Range::new(5, 10), Mode::Shared);
        assert_eq!(release(&mut locks, change), [a, b]);
        release(&mut locks, a);
        release(&mut locks, b);
        assert!(locks.entries.is_empty());
    }
}
