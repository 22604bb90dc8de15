//! Metadata that is not in memory, or is lost.

use bytes::Bytes;
use format::{
    data::UnitMeta,
    disk::{DriveShape, FormatVersion, Layout},
};
use model::{id::ReplicaId, units::ByteCount, volume::Media};

use super::{
    cases::{content, read, replica, seq, write, write_request, zero},
    sim::{Bench, Image, geometry},
};
use crate::api::{Geometry, OpError, Outcome, Request};

const SIZE: u64 = 256 << 20;

fn little() -> Geometry {
    Geometry { memory_bytes: 110 << 10, ..geometry(Media::Ssd, 512 << 20) }
}

fn layout() -> Layout {
    let Geometry { media, drive_bytes, journal_bytes, journal, replicas_max, .. } = little();
    let shape = DriveShape { media, drive_bytes, journal_bytes, journal, replicas_max };
    Layout::of(&shape, FormatVersion::V3).expect("large enough")
}

fn create(bench: &mut Bench, raw: u64, size: u64) -> Result<Outcome, OpError> {
    let (replica, size) = (ReplicaId::from_raw(raw), ByteCount::new(size));
    bench.ask(Request::CreateReplica { replica, size, meta: Bytes::new() })
}

/// A unit in every fourth extent, so that they lie on many pages, and nothing in memory.
fn scattered() -> Bench {
    let mut bench = Bench::open(little(), Image::default());
    assert_eq!(create(&mut bench, replica().raw(), SIZE), Ok(Outcome::Done));
    for extent in (0..SIZE >> 16).step_by(4) {
        write(&mut bench, 1, extent << 16, content(extent, 2));
    }
    bench.cycle();
    Bench::open(little(), bench.drive.seen.clone())
}

fn read_of(extent: u64) -> Request {
    Request::Read { replica: replica(), offset: extent << 16, length: 4096 }
}

/// Flips a bit in both halves of a page.
fn lose(bench: &mut Bench, page: u32) {
    for half in [0, 1] {
        let at = layout().page_offset(page, half);
        if bench.drive.seen.read(at, 4096)[..4] == *b"PLP1" {
            bench.drive.seen.rot(at + 900);
        }
    }
}

#[test]
fn memory_stays_within_its_bound_however_much_is_looked_at() {
    let mut bench = scattered();
    assert_eq!(bench.engine.usage().pages_read, 0, "nothing is read before it is needed");
    for extent in (0..SIZE >> 16).step_by(4) {
        assert!(read(&mut bench, extent << 16, 8192) == content(extent, 2));
        let usage = bench.engine.usage();
        assert!(usage.memory_bytes <= usage.memory_bytes_max, "{usage:?}");
    }
    assert!(bench.engine.usage().pages_read > 20, "{:?}", bench.engine.usage());
}

#[test]
fn pages_that_recovery_read_stay_until_the_records_are_applied() {
    let plenty = Geometry { memory_bytes: 1 << 20, ..little() };
    let mut bench = Bench::open(plenty, scattered().drive.seen);
    // A record or more for each of 25 pages, and memory for 16.
    for extent in (0..SIZE >> 16).step_by(64) {
        write(&mut bench, 2, extent << 16, content(extent + 1, 1));
    }
    let mean = Geometry { memory_bytes: 10 << 10, ..little() };
    let mut again = Bench::open(mean, bench.drive.seen.clone());
    for extent in (0..SIZE >> 16).step_by(64) {
        assert!(read(&mut again, extent << 16, 4096) == content(extent + 1, 1));
    }
}

#[test]
fn a_replica_that_memory_could_not_describe_is_refused() {
    let mut bench = Bench::open(little(), Image::default());
    assert_eq!(create(&mut bench, 1, 64 << 20), Ok(Outcome::Done));
    // More than there are slots is never mapped, so a thin giant is no more than the drive.
    assert_eq!(create(&mut bench, 2, 1 << 40), Ok(Outcome::Done));
    let mean = Geometry { memory_bytes: 10 << 10, ..little() };
    let mut bench = Bench::open(mean, Image::default());
    assert_eq!(create(&mut bench, 1, 64 << 20), Err(OpError::Memory { max: 10 << 10 }));
}

#[test]
fn requests_that_wait_for_the_same_page_read_it_once() {
    let mut bench = scattered();
    let tokens: Vec<_> = (0..8u64)
        .map(|block| {
            bench.request(Request::Read { replica: replica(), offset: block * 4096, length: 4096 })
        })
        .collect();
    bench.request(write_request(2, 0, content(9, 1)));
    assert_eq!((bench.under_way.len(), bench.engine.usage().pages_read), (1, 1));
    bench.run();
    for token in tokens {
        assert!(matches!(bench.outcome(token), Some(Ok(_))));
    }
}

#[test]
fn blocks_of_a_lost_page_are_damaged_until_they_are_made_whole_and_never_zeros() {
    let mut bench = scattered();
    let good = (0..SIZE >> 16).step_by(4).map(|extent| extent << 16).collect::<Vec<_>>();
    lose(&mut bench, layout().first_descriptor_page() + 3);
    let bad: Vec<u64> = good
        .iter()
        .copied()
        .filter(|&offset| {
            let request = Request::Read { replica: replica(), offset, length: 4096 };
            bench.ask(request) == Err(OpError::BadBlock { offset })
        })
        .collect();
    assert!((1..=42).contains(&bad.len()), "{} blocks", bad.len());
    assert_eq!(bench.engine.usage().pages_lost, 1);
    // Blocks that were never written are in doubt as well.
    let beside = Request::Read { replica: replica(), offset: bad[0] + (40 << 10), length: 4096 };
    assert_eq!(bench.ask(beside), Err(OpError::BadBlock { offset: bad[0] + (40 << 10) }));

    // A write makes its own block good and no other; an image makes the unit good.
    write(&mut bench, 5, bad[0], content(70, 1));
    assert!(read(&mut bench, bad[0], 4096) == content(70, 1));
    let next = Request::Read { replica: replica(), offset: bad[0] + 4096, length: 4096 };
    assert_eq!(bench.ask(next.clone()), Err(OpError::BadBlock { offset: bad[0] + 4096 }));
    let data = content(71, 2);
    let meta = UnitMeta {
        offset: bad[0],
        mod_seq: seq(6),
        valid: 3u16.to_le_bytes().to_vec(),
        crcs: super::cases::crcs(&data),
    };
    let install = Request::Install { replica: replica(), units: vec![meta], data: data.clone() };
    assert_eq!(bench.ask(install), Ok(Outcome::Done));
    assert!(read(&mut bench, bad[0], 8192) == data);
    assert!(read(&mut bench, bad[0] + 8192, 56 << 10).iter().all(|&byte| byte == 0));
    if let Some(&other) = bad.get(1) {
        zero(&mut bench, 7, other, 64 << 10);
        assert!(read(&mut bench, other, 64 << 10).iter().all(|&byte| byte == 0));
    }
    // All of which outlives a restart, doubt included.
    bench.cycle();
    let mut bench = Bench::open(little(), bench.drive.seen.clone());
    assert!(read(&mut bench, bad[0], 8192) == data);
    if let Some(&third) = bad.get(2) {
        let request = Request::Read { replica: replica(), offset: third, length: 4096 };
        assert_eq!(bench.ask(request), Err(OpError::BadBlock { offset: third }));
    }
}

#[test]
fn a_page_that_cannot_be_read_damages_its_blocks_and_not_the_drive() {
    let mut bench = scattered();
    bench.fail_reads = true;
    assert_eq!(bench.ask(read_of(0)), Err(OpError::BadBlock { offset: 0 }));
    bench.fail_reads = false;
    assert_eq!(bench.out_of_service, None);
    let far = (SIZE >> 16) - 4;
    assert!(read(&mut bench, far << 16, 4096) == content(far, 2)[..4096]);
}

#[test]
fn a_map_page_lost_while_the_drive_is_open_is_made_anew_from_memory() {
    let mut bench = scattered();
    for page in layout().replica_pages..layout().first_descriptor_page() {
        lose(&mut bench, page);
    }
    // Slots are freed and taken on every map page.
    for extent in (0..SIZE >> 16).step_by(4) {
        if extent % 8 == 0 {
            zero(&mut bench, 2, extent << 16, 64 << 10);
        } else {
            write(&mut bench, 2, (extent + 1) << 16, content(extent + 1, 1));
        }
    }
    assert!(bench.engine.usage().pages_lost > 0);
    bench.cycle();
    let mut bench = Bench::open(little(), bench.drive.seen.clone());
    assert!(bench.opened.as_ref().is_some_and(|replicas| replicas.iter().all(|r| !r.stale)));
    for extent in (0..SIZE >> 16).step_by(4) {
        let found = read(&mut bench, extent << 16, 4096);
        if extent % 8 == 0 {
            assert!(found.iter().all(|&byte| byte == 0));
        } else {
            assert!(found == content(extent, 2)[..4096]);
            assert!(read(&mut bench, (extent + 1) << 16, 4096) == content(extent + 1, 1));
        }
    }
}

#[test]
fn a_replica_made_again_under_its_old_id_finds_nothing_of_its_former_life() {
    let mut bench = scattered();
    let remove = Request::RemoveReplica { replica: replica() };
    assert_eq!(bench.ask(remove), Ok(Outcome::Done));
    assert_eq!(create(&mut bench, replica().raw(), SIZE), Ok(Outcome::Done));
    let check = |bench: &mut Bench| {
        assert_eq!(bench.engine.usage().slots_used, 0);
        for extent in (0..SIZE >> 16).step_by(4) {
            assert!(read(bench, extent << 16, 4096).iter().all(|&byte| byte == 0));
        }
    };
    check(&mut bench);
    check(&mut Bench::open(little(), bench.drive.seen.clone()));
    bench.cycle();
    check(&mut Bench::open(little(), bench.drive.seen.clone()));
}
