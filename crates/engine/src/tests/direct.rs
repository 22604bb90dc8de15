//! Payload that is written once, straight to blocks that held nothing.

use bytes::Bytes;
use model::{units::ByteCount, volume::Media};

use super::{
    cases::{
        bench, content, describe, layout, read, reopened, replica, seq, write, write_request, zero,
        zero_request,
    },
    sim::{Bench, Image, geometry},
};
use crate::api::{Action, OpToken, Outcome, Request};

const MEDIA: Media = Media::Hdd;
const EXTENT: u64 = 1 << 20;
const PART: u64 = 128 << 10;

/// Requests a write whose payload, the only thing under way then, is held.
fn held_write(bench: &mut Bench, mod_seq: u64, at: u64, data: Bytes) -> (OpToken, Action) {
    bench.run();
    let op = bench.request(write_request(mod_seq, at, data));
    assert_eq!(bench.under_way.len(), 1, "its record waits");
    let held = bench.under_way.pop_front().expect("counted");
    let Action::WriteDrive { offset, .. } = &held else { panic!("{held:?}") };
    assert!(*offset >= layout(MEDIA).slot_offset(0), "it goes to a slot");
    (op, held)
}

fn finish(bench: &mut Bench, op: OpToken, held: Action) {
    bench.under_way.push_front(held);
    bench.run();
    assert_eq!(bench.outcome(op), Some(Ok(Outcome::Done)));
}

/// The same now, when all of it is in its slots, and after a restart.
fn check(mut bench: Bench, at: u64, data: &Bytes) {
    let length = u32::try_from(data.len()).expect("small");
    assert!(read(&mut bench, at, length) == *data);
    bench.cycle();
    assert!(read(&mut bench, at, length) == *data);
    let used = bench.engine.usage().slots_used;
    let mut bench = reopened(&bench, MEDIA);
    assert!(read(&mut bench, at, length) == *data);
    assert_eq!(bench.engine.usage().slots_used, used);
}

#[test]
fn sequential_writes_below_an_extent_are_written_once() {
    for (media, shift) in [(Media::Hdd, 0), (Media::Hdd, 4096), (Media::Ssd, 32 << 10)] {
        let mut bench = bench(media);
        bench.cycle();
        let before = bench.drive.written;
        for part in 0..24 {
            write(&mut bench, 1 + part, shift + part * PART, content(part, 32));
        }
        bench.cycle();
        let per_byte = (bench.drive.written - before) as f64 / (24 * PART) as f64;
        assert!(per_byte < 1.15, "{media:?} shifted by {shift}: {per_byte} bytes for each");
        for part in 0..24 {
            let found = read(&mut bench, shift + part * PART, 128 << 10);
            assert!(found == content(part, 32));
        }
    }
}

#[test]
fn payload_that_a_crash_tore_is_not_seen() {
    let mut bench = bench(MEDIA);
    write(&mut bench, 1, 0, content(1, 1));
    let (_, held) = held_write(&mut bench, 2, PART, content(2, 32));
    let Action::WriteDrive { offset, data, .. } = &held else { unreachable!("looked at") };
    let mut again = bench;
    again.drive.seen.put(offset / 4096, &data[0][..4096]);
    let mut again = reopened(&again, MEDIA);
    assert!(read(&mut again, PART, 128 << 10).iter().all(|&byte| byte == 0));
    assert!(read(&mut again, 0, 4096) == content(1, 1));
}

#[test]
fn writes_to_an_extent_without_a_slot_share_a_fresh_one() {
    let mut bench = bench(MEDIA);
    let ops: Vec<_> = (0..8)
        .map(|part| bench.request(write_request(1 + part, part * PART, content(part, 32))))
        .collect();
    assert_eq!(bench.under_way.len(), 8, "all payload goes to the slot");
    bench.run();
    for op in ops {
        assert_eq!(bench.outcome(op), Some(Ok(Outcome::Done)));
    }
    assert_eq!(bench.engine.usage().slots_used, 1);
    let all: Vec<u8> = (0..8).flat_map(|part| content(part, 32).to_vec()).collect();
    check(bench, 0, &all.into());
}

#[test]
fn an_extent_that_is_freed_under_the_payload_gets_another_slot() {
    let mut bench = bench(MEDIA);
    write(&mut bench, 1, 0, content(1, 1));
    let data = content(2, 32);
    let (op, held) = held_write(&mut bench, 2, PART, data.clone());
    zero(&mut bench, 3, 0, 4096);
    assert_eq!(bench.engine.usage().slots_used, 0);
    // Others take slots meanwhile, but not the one that is being written.
    for extent in 1..3 {
        write(&mut bench, 4, extent * EXTENT, content(7 + extent, 256));
    }
    finish(&mut bench, op, held);
    assert_eq!(bench.engine.usage().slots_used, 3);
    check(bench, PART, &data);
}

#[test]
fn an_extent_that_moves_under_the_payload_is_written_where_it_is() {
    let mut bench = bench(MEDIA);
    write(&mut bench, 1, 0, content(1, 1));
    let data = content(2, 32);
    let (op, held) = held_write(&mut bench, 9, PART, data.clone());
    write(&mut bench, 3, 0, content(3, 256));
    finish(&mut bench, op, held);
    assert_eq!(bench.engine.usage().slots_used, 1);
    assert!(read(&mut bench, 0, 4096) == content(3, 1));
    check(bench, PART, &data);
}

#[test]
fn a_change_of_the_same_blocks_waits_for_the_payload() {
    let mut bench = bench(MEDIA);
    let data = content(2, 32);
    let (op, held) = held_write(&mut bench, 2, PART, data.clone());
    let again = bench.request(write_request(2, PART, data.clone()));
    let beside = bench.request(write_request(3, 0, content(4, 1)));
    bench.run();
    assert_eq!(bench.outcome(again), None, "a home write could come under the payload");
    assert_eq!(bench.outcome(beside), Some(Ok(Outcome::Done)), "others do not wait");
    finish(&mut bench, op, held);
    assert_eq!(bench.outcome(again), Some(Ok(Outcome::Done)));
    check(bench, PART, &data);
}

#[test]
fn changes_of_a_unit_keep_their_order_while_payload_is_under_way() {
    let mut bench = bench(MEDIA);
    write(&mut bench, 1, 0, content(1, 8));
    write(&mut bench, 2, PART, content(2, 1));
    let data = content(3, 24);
    let (op, held) = held_write(&mut bench, 9, 8 * 4096, data.clone());
    // Were it first, the unit would be empty for a moment and know nothing of this change.
    let zero = bench.request(zero_request(10, 0, 8 * 4096));
    bench.run();
    assert_eq!(bench.outcome(zero), None);
    finish(&mut bench, op, held);
    assert_eq!(bench.outcome(zero), Some(Ok(Outcome::Done)));
    assert_eq!(describe(&mut bench)[0].mod_seq, seq(10));
    check(bench, 8 * 4096, &data);
}

#[test]
fn blocks_are_not_written_before_it_is_durable_that_they_hold_nothing() {
    let mut bench = bench(MEDIA);
    write(&mut bench, 1, 0, content(1, 1));
    write(&mut bench, 2, PART, content(2, 32));
    let zero = bench.request(zero_request(3, PART, 128 << 10));
    let op = bench.request(write_request(4, PART, content(4, 32)));
    assert_eq!(bench.under_way.len(), 1, "the batch alone");
    // If it is lost, the old content still counts.
    let mut again = reopened(&bench, MEDIA);
    assert!(read(&mut again, PART, 128 << 10) == content(2, 32));
    bench.run();
    assert_eq!(bench.outcome(zero), Some(Ok(Outcome::Done)));
    assert_eq!(bench.outcome(op), Some(Ok(Outcome::Done)));
    check(bench, PART, &content(4, 32));
}

#[test]
fn a_slot_that_was_taken_and_not_used_is_given_back() {
    let mut bench = Bench::open(geometry(MEDIA, 12 << 20), Image::default());
    let (size, meta) = (ByteCount::new(64 << 20), Bytes::new());
    let create = Request::CreateReplica { replica: replica(), size, meta };
    assert_eq!(bench.ask(create), Ok(Outcome::Done));
    let slots = bench.engine.usage().slots_total;
    // The extent gets a slot of its own while the payload is under way to the taken one.
    let op = bench.request(write_request(9, PART, content(2, 32)));
    let held = bench.under_way.pop_front().expect("the payload");
    write(&mut bench, 1, 0, content(1, 256));
    finish(&mut bench, op, held);
    for extent in 1..slots {
        let data = content(extent, 256);
        let op = bench.request(write_request(1, extent * EXTENT, data));
        bench.run();
        assert_eq!(bench.outcome(op), Some(Ok(Outcome::Done)), "extent {extent} of {slots}");
    }
    assert_eq!(bench.engine.usage().slots_used, slots);
}
