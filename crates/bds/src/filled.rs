//! Which parts of the address range a learner has been filled with.

use std::collections::BTreeMap;

use crate::lock::Range;

/// Disjoint, never touching ranges: start to end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filled {
    ranges: BTreeMap<u64, u64>,
    bytes: u64,
}

impl Filled {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether any byte of the range is filled.
    pub fn touches(&self, range: Range) -> bool {
        self.ranges.range(..range.end).next_back().is_some_and(|(_, &end)| end > range.start)
    }

    pub fn add(&mut self, range: Range) {
        self.remove(range);
        let (mut start, mut end) = (range.start, range.end);
        if let Some((&before, &before_end)) = self.ranges.range(..start).next_back()
            && before_end == start
        {
            self.ranges.remove(&before);
            start = before;
        }
        if let Some(after_end) = self.ranges.remove(&end) {
            end = after_end;
        }
        self.ranges.insert(start, end);
        self.bytes += range.length();
    }

    pub fn remove(&mut self, range: Range) {
        while let Some((&start, &end)) =
            self.ranges.range(..range.end).next_back().filter(|&(_, &end)| end > range.start)
        {
            self.ranges.remove(&start);
            self.bytes -= end - start;
            for (start, end) in [(start, range.start.min(end)), (range.end.max(start), end)] {
                if start < end {
                    self.ranges.insert(start, end);
                    self.bytes += end - start;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn filled_agrees_with_a_bitmap(
            steps in prop::collection::vec((any::<bool>(), 0_u64..40, 1_u64..12), 1..40),
        ) {
            let mut filled = Filled::default();
            let mut model = [false; 64];
            for (add, offset, length) in steps {
                let range = Range::new(offset, length);
                if add { filled.add(range) } else { filled.remove(range) }
                for at in range.start..range.end {
                    model[usize::try_from(at).expect("small")] = add;
                }
                prop_assert_eq!(filled.bytes(), model.iter().filter(|&&b| b).count() as u64);
                for at in 0..64_u64 {
                    let expected = model[usize::try_from(at).expect("small")];
                    prop_assert_eq!(filled.touches(Range::new(at, 1)), expected);
                }
                let ends: Vec<_> = filled.ranges.iter().collect();
                prop_assert!(ends.windows(2).all(|w| w[0].1 < w[1].0), "merged where they touch");
            }
        }
    }
}
