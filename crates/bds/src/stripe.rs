//! The map of a striped replica: which of its drives holds a byte, and where.
//!
//! A replica turns to its next drive after every [`STRIPE_BYTES`]. Pure arithmetic; a replica on
//! one drive is the same with one part.
//!
//! Invariants: every byte of the replica has one place, which does not change when it grows; a run
//! of bytes covers one run of each part at most, and a part's run one of each stripe unit.

use model::limits::STRIPE_BYTES;

use crate::lock::Range;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stripe {
    parts: u64,
}

impl Stripe {
    pub fn new(parts: usize) -> Self {
        assert!(parts > 0, "a replica has a drive");
        Self { parts: parts as u64 }
    }

    /// The part that holds a byte, and its offset there.
    pub fn to_part(self, offset: u64) -> (usize, u64) {
        let (unit, within) = (offset / STRIPE_BYTES, offset % STRIPE_BYTES);
        let part = usize::try_from(unit % self.parts).expect("a handful of parts");
        (part, unit / self.parts * STRIPE_BYTES + within)
    }

    /// The byte of the replica that a part holds there.
    pub fn to_whole(self, part: usize, offset: u64) -> u64 {
        let (row, within) = (offset / STRIPE_BYTES, offset % STRIPE_BYTES);
        (row * self.parts + part as u64) * STRIPE_BYTES + within
    }

    /// How much of the first `size` bytes a part holds.
    pub fn part_size(self, part: usize, size: u64) -> u64 {
        let row = self.parts * STRIPE_BYTES;
        let rest = (size % row).saturating_sub(part as u64 * STRIPE_BYTES);
        size / row * STRIPE_BYTES + rest.min(STRIPE_BYTES)
    }

    /// What of a range lies on a part, by the offsets there.
    pub fn of_part(self, part: usize, range: Range) -> Option<Range> {
        let start = self.part_size(part, range.start);
        let end = self.part_size(part, range.end);
        (start < end).then_some(Range { start, end })
    }

    /// A range in pieces that each lie on one part in one run: the part, and the piece.
    pub fn pieces(self, range: Range) -> impl Iterator<Item = (usize, Range)> {
        let mut at = range.start;
        std::iter::from_fn(move || {
            let start = at;
            let unit_end = (start / STRIPE_BYTES + 1) * STRIPE_BYTES;
            at = if self.parts == 1 { range.end } else { range.end.min(unit_end) };
            (start < range.end).then(|| (self.to_part(start).0, Range { start, end: at }))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCK: u64 = model::units::BLOCK;

    proptest! {
        #[test]
        fn no_byte_has_two_places_or_a_place_beyond_its_part(
            parts in 1_usize..9, at in 0_u64..1 << 20, size in 1_u64..1 << 20,
        ) {
            let (stripe, at, size) = (Stripe::new(parts), at * BLOCK, size * BLOCK);
            let (part, offset) = stripe.to_part(at);
            prop_assert!(part < parts);
            prop_assert_eq!(stripe.to_whole(part, offset), at);
            prop_assert_eq!(offset < stripe.part_size(part, size), at < size);
            let total: u64 = (0..parts).map(|p| stripe.part_size(p, size)).sum();
            prop_assert_eq!(total, size);
        }

        #[test]
        fn the_pieces_of_a_range_are_all_of_it_and_make_one_run_of_each_part(
            parts in 1_usize..9, start in 0_u64..4096, blocks in 1_u64..4096,
        ) {
            let stripe = Stripe::new(parts);
            let range = Range::new(start * BLOCK, blocks * BLOCK);
            let mut next = range.start;
            let mut runs: Vec<Option<Range>> = vec![None; parts];
            for (part, piece) in stripe.pieces(range) {
                prop_assert_eq!(piece.start, next);
                next = piece.end;
                let (first, offset) = stripe.to_part(piece.start);
                let (last, _) = stripe.to_part(piece.end - 1);
                prop_assert_eq!((first, last), (part, part));
                let run = runs[part].get_or_insert(Range { start: offset, end: offset });
                prop_assert_eq!(run.end, offset, "a gap within a part");
                run.end += piece.length();
            }
            prop_assert_eq!(next, range.end);
            for (part, run) in runs.into_iter().enumerate() {
                prop_assert_eq!(stripe.of_part(part, range), run);
            }
        }
    }
}
