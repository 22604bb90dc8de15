//! Questions about ranges: how far a replica holds data, and what changed.

use format::disk::UNIT_BYTES;
use model::volume::Media;

use super::{
    cases::{self, bench, content, replica, seq, write, zero},
    sim::Bench,
};
use crate::api::{OpError, Outcome, Request};

const UNIT: u64 = UNIT_BYTES as u64;

fn highest(bench: &mut Bench) -> u64 {
    let outcome = bench.ask(Request::HighestAllocated { replica: replica() });
    let Ok(Outcome::HighestAllocated { end }) = outcome else { panic!("{outcome:?}") };
    end
}

/// Units of the range, counted from its first one.
fn changed(bench: &mut Bench, since: u64, offset: u64, length: u64) -> Vec<u64> {
    let mod_seq = seq(since);
    let outcome = bench.ask(Request::ChangedSince { replica: replica(), mod_seq, offset, length });
    let Ok(Outcome::ChangedSince { bitmap }) = outcome else { panic!("{outcome:?}") };
    let units = (offset + length).div_ceil(UNIT) - offset / UNIT;
    assert_eq!(bitmap.len() as u64, units.div_ceil(8), "one bit for each unit");
    (0..bitmap.len() as u64 * 8)
        .filter(|&unit| bitmap[unit as usize / 8] >> (unit % 8) & 1 == 1)
        .collect()
}

#[test]
fn a_shrink_is_told_where_the_last_block_ends() {
    for media in [Media::Ssd, Media::Hdd] {
        let mut bench = bench(media);
        assert_eq!(highest(&mut bench), 0, "nothing holds data");
        write(&mut bench, 1, 8 << 10, content(1, 1));
        assert_eq!(highest(&mut bench), 12 << 10);
        write(&mut bench, 2, (2 << 20) + UNIT, content(2, 20));
        assert_eq!(highest(&mut bench), (2 << 20) + UNIT + (80 << 10));
        zero(&mut bench, 3, (2 << 20) + 2 * UNIT, 1 << 16);
        assert_eq!(highest(&mut bench), (2 << 20) + 2 * UNIT);
        write(&mut bench, 4, cases::SIZE - 4096, content(3, 1));
        assert_eq!(highest(&mut bench), cases::SIZE);
        bench.cycle();
        let mut bench = cases::reopened(&bench, media);
        assert_eq!(highest(&mut bench), cases::SIZE, "and when its page must be read");
        zero(&mut bench, 5, 0, u32::try_from(cases::SIZE).expect("small"));
        assert_eq!(highest(&mut bench), 0, "nothing holds data any more");
    }
}

#[test]
fn units_changed_since_are_those_with_a_greater_mod_seq_and_no_others() {
    for media in [Media::Ssd, Media::Hdd] {
        let mut bench = bench(media);
        for unit in 0..8 {
            write(&mut bench, 10 + unit, unit * UNIT, content(unit, 2));
        }
        let all = 8 * UNIT;
        assert_eq!(changed(&mut bench, 0, 0, all), (0..8).collect::<Vec<_>>());
        assert_eq!(changed(&mut bench, 13, 0, cases::SIZE), [4, 5, 6, 7]);
        assert_eq!(changed(&mut bench, 17, 0, all), [0u64; 0], "equal is not greater");
        write(&mut bench, 20, UNIT + 4096, content(9, 1));
        zero(&mut bench, 21, 7 * UNIT, UNIT_BYTES);
        assert_eq!(changed(&mut bench, 14, 0, all), [1, 5, 6], "what holds nothing has no mod_seq");
        // Units that the range cuts are whole in the answer, counted from the first one.
        assert_eq!(changed(&mut bench, 14, 2 * UNIT - 4096, 4 * UNIT), [0, 4]);
        assert_eq!(changed(&mut bench, 14, 3 * UNIT, 0), [0u64; 0]);
        let (offset, length) = (cases::SIZE, 4096);
        let beyond = Request::ChangedSince { replica: replica(), mod_seq: seq(0), offset, length };
        assert_eq!(bench.ask(beyond), Err(OpError::OutOfRange));
    }
}
