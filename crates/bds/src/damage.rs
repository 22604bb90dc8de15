//! The damaged blocks of one replica: each counted once, however often it is met.
//!
//! Decides: what is news.
//! Invariant: memory is bounded; beyond the bound blocks are counted each time they are met.

use std::collections::BTreeSet;

use format::ctl::Damage;

use crate::{lock::Range, turn::Finding};

/// Damaged blocks remembered of one replica.
const KNOWN_MAX: usize = 1 << 16;

#[derive(Debug, Default)]
pub struct Ledger {
    pub counts: Damage,
    known: BTreeSet<u64>,
    lost: BTreeSet<u64>,
}

impl Ledger {
    /// Takes a finding in; whether it is new.
    pub fn note(&mut self, offset: u64, finding: Finding) -> bool {
        let room = self.known.len() < KNOWN_MAX;
        match finding {
            Finding::Bad if self.known.contains(&offset) => return false,
            Finding::Bad if room => {
                self.known.insert(offset);
            }
            Finding::Repaired if !self.known.remove(&offset) => return false,
            Finding::Repaired => {
                self.lost.remove(&offset);
            }
            Finding::Lost if self.lost.contains(&offset) => return false,
            Finding::Lost if room => {
                self.lost.insert(offset);
            }
            Finding::Bad | Finding::Lost | Finding::Differs { .. } => {}
        }
        add(&mut self.counts, finding);
        true
    }

    /// All blocks of the range are good: what was damaged there has been overwritten.
    pub fn seen_good(&mut self, range: Range) {
        for offsets in [&mut self.known, &mut self.lost] {
            while let Some(&offset) = offsets.range(range.start..range.end).next() {
                offsets.remove(&offset);
            }
        }
    }
}

/// The counts with one finding more.
pub fn add(counts: &mut Damage, finding: Finding) {
    match finding {
        Finding::Bad => counts.bad_found += 1,
        Finding::Repaired => counts.bad_repaired += 1,
        Finding::Lost => counts.bad_lost += 1,
        Finding::Differs { .. } => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_counted_once_until_it_was_good_again() {
        let mut ledger = Ledger::default();
        assert!(ledger.note(4096, Finding::Bad));
        assert!(!ledger.note(4096, Finding::Bad));
        assert!(ledger.note(4096, Finding::Lost));
        assert!(!ledger.note(4096, Finding::Lost));
        ledger.seen_good(Range::new(0, 4096));
        assert!(!ledger.note(4096, Finding::Bad), "another block was good");
        ledger.seen_good(Range::new(0, 8192));
        assert!(ledger.note(4096, Finding::Bad));
        assert!(ledger.note(4096, Finding::Repaired));
        assert!(!ledger.note(4096, Finding::Repaired), "repaired once");
        let expected = Damage { bad_found: 2, bad_repaired: 1, bad_lost: 1 };
        assert_eq!(ledger.counts, expected);
    }
}
