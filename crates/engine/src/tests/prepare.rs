//! Slots that are prepared before they are given away.

use bytes::Bytes;
use model::{units::ByteCount, volume::Media};

use super::{
    cases::{content, read, replica, write, write_request},
    sim::{Bench, Image, geometry},
};
use crate::api::{Action, OpError, Outcome, PREPARED_BYTES_MAX, Request};

const SLOT: u64 = 64 << 10;

/// An SSD with a replica that may take all of it.
fn bench(drive_bytes: u64) -> Bench {
    let mut bench = Bench::open(geometry(Media::Ssd, drive_bytes), Image::default());
    let (replica, size) = (replica(), ByteCount::new(drive_bytes));
    let create = Request::CreateReplica { replica, size, meta: Bytes::new() };
    assert_eq!(bench.ask(create), Ok(Outcome::Done));
    bench
}

/// A block in each of these extents, all of which are new.
fn write_extents(bench: &mut Bench, extents: std::ops::Range<u64>) {
    for extent in extents {
        write(bench, extent + 1, extent * SLOT, content(extent + 1, 1));
    }
}

/// Where what is being prepared lies.
fn preparing(bench: &Bench) -> Option<(u64, u32)> {
    let mut found = bench.under_way.iter().filter_map(|action| match *action {
        Action::PrepareDrive { offset, length, .. } => Some((offset, length)),
        _ => None,
    });
    let first = found.next();
    assert_eq!(found.next(), None, "one at a time");
    first
}

#[test]
fn a_drive_that_nobody_writes_to_is_not_prepared() {
    let mut bench = bench(64 << 20);
    bench.idle();
    assert_eq!(bench.engine.usage().slots_prepared, 0);
    let before = bench.drive.written;
    bench.idle();
    assert_eq!(bench.drive.written, before);
}

#[test]
fn as_many_slots_are_prepared_as_were_taken_and_not_more_than_64_mib() {
    let mut bench = bench(256 << 20);
    let run = u64::from(PREPARED_BYTES_MAX) / SLOT;
    for extents in [0..1, 1..40, 40..300, 300..1600] {
        let end = extents.end;
        write_extents(&mut bench, extents);
        bench.idle();
        let prepared = bench.engine.usage().slots_prepared;
        let wanted = end.min((64 << 20) / SLOT);
        assert!((wanted..wanted + run).contains(&prepared), "{prepared} after {end} extents");
    }
}

#[test]
fn prepared_slots_are_given_away_first_and_read_as_zeros_whatever_they_hold() {
    let mut bench = bench(64 << 20);
    bench.request(write_request(1, 0, content(1, 1)));
    let (offset, length) = preparing(&bench).expect("it took a slot");
    bench.idle();
    // As a drive that was used before may leave them.
    for block in offset / 4096..(offset + u64::from(length)) / 4096 {
        bench.drive.seen.put(block, &content(0xbad, 1));
    }
    let prepared = bench.engine.usage().slots_prepared;
    let request = write_request(2, SLOT + 8192, content(2, 1));
    bench.request(request);
    assert_eq!(bench.engine.usage().slots_prepared, prepared - 1);
    bench.run();
    bench.cycle();
    let found = read(&mut bench, SLOT, 65536);
    assert_eq!(found[8192..12288], content(2, 1)[..]);
    assert!(found[..8192].iter().chain(&found[12288..]).all(|&byte| byte == 0));
}

#[test]
fn a_slot_is_not_given_away_while_it_is_being_prepared() {
    let mut bench = bench(16 << 20);
    let total = bench.engine.usage().slots_total;
    let prepares = |action: &Action| matches!(action, Action::PrepareDrive { .. });
    let run_others = |bench: &mut Bench| {
        while let Some(at) = bench.under_way.iter().position(|action| !prepares(action)) {
            bench.step(at);
        }
    };
    bench.request(write_request(1, 0, content(1, 1)));
    let (offset, length) = preparing(&bench).expect("it took a slot");
    let mut next = 1;
    while next < total - u64::from(length) / SLOT {
        bench.request(write_request(next + 1, next * SLOT, content(next + 1, 1)));
        run_others(&mut bench);
        next += 1;
    }
    assert_eq!(preparing(&bench), Some((offset, length)), "it takes long");
    // Only those that are being prepared are left.
    bench.completed.clear();
    let waits = bench.request(write_request(next + 1, next * SLOT, content(next + 1, 1)));
    run_others(&mut bench);
    assert_eq!(bench.engine.usage().waiting_for_space, 1);
    assert_eq!(bench.outcome(waits), None);
    bench.run();
    assert_eq!(bench.outcome(waits), Some(Ok(Outcome::Done)));
    bench.cycle();
    for extent in [1, next] {
        assert_eq!(read(&mut bench, extent * SLOT, 4096), content(extent + 1, 1));
    }
}

#[test]
fn without_space_below_the_drive_nothing_is_prepared_any_more_and_nothing_fails() {
    let mut bench = bench(64 << 20);
    bench.no_space = true;
    write_extents(&mut bench, 0..1);
    bench.idle();
    assert_eq!(bench.engine.usage().slots_prepared, 0);
    let mut asked = false;
    for extent in 1..60 {
        bench.request(write_request(extent + 1, extent * SLOT, content(extent + 1, 1)));
        asked |= preparing(&bench).is_some();
        bench.run();
    }
    assert!(!asked, "it is not asked for again");
    assert_eq!((bench.engine.usage().slots_used, &bench.out_of_service), (60, &None));
    // All of the drive can be used, what was to be prepared too.
    let total = bench.engine.usage().slots_total;
    write_extents(&mut bench, 60..total);
    assert_eq!(bench.engine.usage().slots_used, total);
}

#[test]
fn a_drive_that_fails_to_be_prepared_is_out_of_service() {
    let mut bench = bench(64 << 20);
    bench.request(write_request(1, 0, content(1, 1)));
    while preparing(&bench).is_none() || bench.under_way.len() > 1 {
        bench.step(0);
    }
    bench.fail_writes = true;
    bench.step(0);
    let reason = bench.out_of_service.clone().expect("it failed");
    assert!(reason.contains("preparing space"), "{reason}");
    let request = Request::HighestAllocated { replica: replica() };
    assert_eq!(bench.ask(request), Err(OpError::DriveFailed));
}

#[test]
fn slots_that_are_filled_at_once_are_not_prepared_first() {
    let mut bench = bench(64 << 20);
    for write in 0..20 {
        // Whole extents, and halves of others.
        let blocks = if write % 2 == 0 { 64 } else { 8 };
        self::write(&mut bench, write + 1, write * 4 * SLOT, content(write + 1, blocks));
        bench.idle();
        assert_eq!(bench.engine.usage().slots_prepared, 0);
    }
    assert_eq!(bench.engine.usage().slots_used, 10 * 4 + 10);
}

#[test]
fn slots_of_an_hdd_are_not_prepared() {
    let mut bench = super::cases::bench(Media::Hdd);
    write(&mut bench, 1, 0, content(1, 1));
    bench.idle();
    let usage = bench.engine.usage();
    assert_eq!((usage.slots_used, usage.slots_prepared), (1, 0));
}
