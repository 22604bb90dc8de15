//! What each request does, one case at a time.

use bytes::Bytes;
use format::{
    data::{Change, UnitMeta},
    disk::{DriveShape, FormatVersion, Layout, ZERO_BLOCK_CRC},
};
use model::{epoch::ModSeq, id::ReplicaId, units::ByteCount, volume::Media};

use super::sim::{Bench, Image, geometry};
use crate::api::{OpError, Outcome, Request};

const R: u64 = 0xa1;
pub const SIZE: u64 = 4 << 20;

pub fn replica() -> ReplicaId {
    ReplicaId::from_raw(R)
}

pub fn seq(raw: u64) -> ModSeq {
    ModSeq::from_raw(raw)
}

/// Blocks that differ from each other.
pub fn content(tag: u64, blocks: usize) -> Bytes {
    let mut bytes = Vec::with_capacity(blocks * 4096);
    for block in 0..blocks as u64 {
        let word = (tag << 16 | block).to_le_bytes();
        bytes.extend_from_slice(&word.repeat(512));
    }
    Bytes::from(bytes)
}

pub fn crcs(data: &[u8]) -> Vec<u32> {
    data.chunks(4096).map(crc32c::crc32c).collect()
}

fn create(bench: &mut Bench) {
    let request = Request::CreateReplica {
        replica: replica(),
        size: ByteCount::new(SIZE),
        meta: Bytes::from_static(b"meta"),
    };
    assert_eq!(bench.ask(request), Ok(Outcome::Done));
}

pub fn write_request(mod_seq: u64, offset: u64, data: Bytes) -> Request {
    let change = Change::Write { crcs: crcs(&data), data };
    Request::Change { replica: replica(), mod_seq: seq(mod_seq), offset, change }
}

pub fn write(bench: &mut Bench, mod_seq: u64, offset: u64, data: Bytes) {
    assert_eq!(bench.ask(write_request(mod_seq, offset, data)), Ok(Outcome::Done));
}

pub fn zero_request(mod_seq: u64, offset: u64, length: u32) -> Request {
    let change = Change::Zero { length };
    Request::Change { replica: replica(), mod_seq: seq(mod_seq), offset, change }
}

pub fn zero(bench: &mut Bench, mod_seq: u64, offset: u64, length: u32) {
    assert_eq!(bench.ask(zero_request(mod_seq, offset, length)), Ok(Outcome::Done));
}

pub fn read(bench: &mut Bench, offset: u64, length: u32) -> Bytes {
    let outcome = bench.ask(Request::Read { replica: replica(), offset, length });
    let Ok(Outcome::Read { crcs: sums, data }) = outcome else { panic!("{outcome:?}") };
    assert_eq!(sums, crcs(&data), "checksums are those of the data");
    data
}

pub fn describe(bench: &mut Bench) -> Vec<UnitMeta> {
    let request = Request::Describe { replica: replica(), offset: 0, length: SIZE };
    let outcome = bench.ask(request);
    let Ok(Outcome::Described { units }) = outcome else { panic!("{outcome:?}") };
    units
}

fn digest(bench: &mut Bench) -> u64 {
    let outcome = bench.ask(Request::Digest { replica: replica(), offset: 0, length: SIZE });
    let Ok(Outcome::Digest { digest }) = outcome else { panic!("{outcome:?}") };
    digest
}

pub fn bench(media: Media) -> Bench {
    let mut bench = Bench::open(geometry(media, 24 << 20), Image::default());
    create(&mut bench);
    bench
}

pub fn reopened(bench: &Bench, media: Media) -> Bench {
    Bench::open(geometry(media, 24 << 20), bench.drive.seen.clone())
}

pub fn layout(media: Media) -> Layout {
    let geometry = geometry(media, 24 << 20);
    let shape = DriveShape {
        media,
        drive_bytes: geometry.drive_bytes,
        journal_bytes: geometry.journal_bytes,
        journal: geometry.journal,
        replicas_max: geometry.replicas_max,
    };
    Layout::of(&shape, FormatVersion::V3).expect("large enough")
}

#[test]
fn zeros_have_the_checksum_of_zeros() {
    assert_eq!(crc32c::crc32c(&[0; 4096]), ZERO_BLOCK_CRC);
}

#[test]
fn what_was_written_is_read_from_memory_from_the_drive_and_after_reopening() {
    for media in [Media::Ssd, Media::Hdd] {
        let mut bench = bench(media);
        let small = content(1, 3);
        let large = content(2, 48);
        write(&mut bench, 1, 8 << 10, small.clone());
        write(&mut bench, 2, 128 << 10, large.clone());
        let check = |bench: &mut Bench| {
            assert!(read(bench, 8 << 10, 12 << 10) == small);
            assert!(read(bench, 128 << 10, 192 << 10) == large);
            let mixed = read(bench, 0, 1 << 20);
            assert!(mixed[..8 << 10].iter().all(|&b| b == 0));
            assert_eq!(mixed[8 << 10..20 << 10], small);
            assert_eq!(mixed[128 << 10..320 << 10], large);
            assert!(mixed[320 << 10..].iter().all(|&b| b == 0));
        };
        check(&mut bench);
        check(&mut reopened(&bench, media));
        bench.cycle();
        assert_eq!(bench.engine.usage().journal_bytes_used, 0);
        check(&mut bench);
        let mut again = reopened(&bench, media);
        check(&mut again);
        let opened = again.opened.as_ref().expect("open");
        assert_eq!(opened.len(), 1);
        assert_eq!((opened[0].size.get(), &opened[0].meta[..]), (SIZE, &b"meta"[..]));
        assert!(!opened[0].stale);
    }
}

#[test]
fn equal_histories_have_equal_digests_on_different_media() {
    let mut benches = [bench(Media::Ssd), bench(Media::Hdd)];
    for bench in &mut benches {
        write(bench, 1, 0, content(1, 256));
        write(bench, 2, 4 << 10, content(2, 30));
        zero(bench, 3, 60 << 10, 72 << 10);
        write(bench, 4, 1 << 20, content(3, 1));
        zero(bench, 5, 1 << 20, 4 << 10);
        write(bench, 6, (2 << 20) + (60 << 10), content(4, 5));
        bench.cycle();
    }
    let [ssd, hdd] = &mut benches;
    assert_eq!(describe(ssd), describe(hdd));
    assert_eq!(digest(ssd), digest(hdd));
    assert_ne!(digest(ssd), 0);
    write(ssd, 7, 0, content(5, 1));
    assert_ne!(digest(ssd), digest(hdd));
}

#[test]
fn an_installed_image_equals_its_source_whatever_was_there() {
    for (from, to) in [(Media::Ssd, Media::Hdd), (Media::Hdd, Media::Ssd)] {
        let mut source = bench(from);
        write(&mut source, 1, 0, content(1, 256));
        write(&mut source, 2, (1 << 20) + 8192, content(2, 20));
        zero(&mut source, 3, 64 << 10, 128 << 10);
        let mut learner = bench(to);
        write(&mut learner, 9, 64 << 10, content(7, 16));
        write(&mut learner, 9, (1 << 20) + 4096, content(8, 3));
        write(&mut learner, 9, 3 << 20, content(9, 256));
        for round in 0..2 {
            let mut units = describe(&mut source);
            let mut data = Vec::new();
            for unit in &units {
                let block = |b: &u64| unit.valid[usize::from(*b > 7)] >> (b % 8) & 1 == 1;
                for b in (0..16u64).filter(block) {
                    data.extend_from_slice(&read(&mut source, unit.offset + b * 4096, 4096));
                }
            }
            // Units that the source does not have are emptied.
            for have in describe(&mut learner) {
                if !units.iter().any(|u| u.offset == have.offset) {
                    let (mod_seq, valid) = (seq(0), vec![0, 0]);
                    units.push(UnitMeta { offset: have.offset, mod_seq, valid, crcs: vec![] });
                }
            }
            units.sort_by_key(|u| u.offset);
            let request = Request::Install { replica: replica(), units, data: data.into() };
            assert_eq!(learner.ask(request), Ok(Outcome::Done));
            assert_eq!(describe(&mut source), describe(&mut learner), "round {round}");
            assert_eq!(digest(&mut source), digest(&mut learner));
            assert!(read(&mut source, 0, 4 << 20) == read(&mut learner, 0, 4 << 20));
            let mut again = reopened(&learner, to);
            assert_eq!(digest(&mut source), digest(&mut again));
            learner.cycle();
            write(&mut source, 10, 12 << 10, content(11, 1));
        }
    }
}

#[test]
fn zeroing_and_removing_return_the_space() {
    for media in [Media::Ssd, Media::Hdd] {
        let mut bench = bench(media);
        write(&mut bench, 1, 0, content(1, 256));
        let slot = u64::from(media.extent_bytes());
        assert_eq!(bench.engine.allocated(replica()).get(), 1 << 20);
        assert_eq!(bench.engine.usage().slots_used, (1 << 20) / slot);
        zero(&mut bench, 2, 0, 1 << 20);
        assert_eq!(bench.engine.usage().slots_used, 0);
        assert_eq!(describe(&mut bench), vec![]);
        assert!(read(&mut bench, 0, 1 << 20).iter().all(|&b| b == 0));
        write(&mut bench, 3, 0, content(2, 7));
        for _ in 0..2 {
            let request = Request::RemoveReplica { replica: replica() };
            assert_eq!(bench.ask(request), Ok(Outcome::Done));
        }
        assert_eq!(bench.engine.usage().slots_used, 0);
        let gone = bench.ask(Request::Read { replica: replica(), offset: 0, length: 4096 });
        assert_eq!(gone, Err(OpError::UnknownReplica));
        assert_eq!(reopened(&bench, media).opened, Some(vec![]));
        create(&mut bench);
        assert!(read(&mut bench, 0, 1 << 20).iter().all(|&b| b == 0));
    }
}

#[test]
fn a_removed_replicas_bytes_never_show_in_the_next_one() {
    let mut bench = bench(Media::Hdd);
    for offset in (0..SIZE).step_by(1 << 20) {
        write(&mut bench, 1, offset, content(1, 256));
    }
    bench.cycle();
    assert_eq!(bench.ask(Request::RemoveReplica { replica: replica() }), Ok(Outcome::Done));
    create(&mut bench);
    for offset in (0..SIZE).step_by(1 << 20) {
        write(&mut bench, 2, offset + 4096, content(2, 1));
        let data = read(&mut bench, offset, 1 << 20);
        assert!(data[..4096].iter().chain(&data[8192..]).all(|&b| b == 0));
    }
}

#[test]
fn wrong_requests_are_refused_and_change_nothing() {
    let mut bench = bench(Media::Ssd);
    let ask = |bench: &mut Bench, offset, data: Bytes, sums| {
        let change = Change::Write { crcs: sums, data };
        bench.ask(Request::Change { replica: replica(), mod_seq: seq(1), offset, change })
    };
    let data = content(1, 2);
    assert_eq!(ask(&mut bench, 0, data.clone(), vec![1, 2]), Err(OpError::BadChecksum));
    assert_eq!(ask(&mut bench, 0, data.clone(), vec![]), Err(OpError::BadChecksum));
    assert_eq!(ask(&mut bench, SIZE - 4096, data.clone(), crcs(&data)), Err(OpError::OutOfRange));
    assert_eq!(ask(&mut bench, 512, data.clone(), crcs(&data)), Err(OpError::OutOfRange));
    assert_eq!(
        ask(&mut bench, u64::MAX - 4095, data.clone(), crcs(&data)),
        Err(OpError::OutOfRange)
    );
    let other = Request::Read { replica: ReplicaId::from_raw(9), offset: 0, length: 4096 };
    assert_eq!(bench.ask(other), Err(OpError::UnknownReplica));
    assert_eq!(describe(&mut bench), vec![]);
    for raw in 1..4 {
        let (replica, size) = (ReplicaId::from_raw(raw), ByteCount::new(SIZE));
        let request = Request::CreateReplica { replica, size, meta: Bytes::new() };
        assert_eq!(bench.ask(request), Ok(Outcome::Done));
    }
    let (replica, size) = (ReplicaId::from_raw(4), ByteCount::new(SIZE));
    let request = Request::CreateReplica { replica, size, meta: Bytes::new() };
    assert_eq!(bench.ask(request), Err(OpError::Full));
}

#[test]
fn a_damaged_block_is_reported_and_its_neighbours_are_read() {
    let mut bench = bench(Media::Ssd);
    write(&mut bench, 1, 0, content(1, 16));
    write(&mut bench, 2, 64 << 10, content(2, 3));
    bench.cycle();
    let layout = layout(Media::Ssd);
    let all: Vec<u32> = (0..layout.slots).collect();
    for slot in all {
        bench.drive.seen.rot(layout.slot_offset(slot) + 4096 + 100);
    }
    let bad = |bench: &mut Bench, offset| {
        bench.ask(Request::Read { replica: replica(), offset, length: 12 << 10 })
    };
    assert_eq!(bad(&mut bench, 0), Err(OpError::BadBlock { offset: 4096 }));
    assert_eq!(bad(&mut bench, 64 << 10), Err(OpError::BadBlock { offset: (64 << 10) + 4096 }));
    assert!(read(&mut bench, 8 << 10, 16 << 10) == content(1, 16).slice(8 << 10..24 << 10));
    // Writing the block again heals it.
    write(&mut bench, 3, 4096, content(3, 1));
    bench.cycle();
    assert!(read(&mut bench, 4096, 4096) == content(3, 1));
    bench.fail_reads = true;
    assert_eq!(bad(&mut bench, 8192), Err(OpError::BadBlock { offset: 8192 }));
    assert_eq!(bench.out_of_service, None);
}

#[test]
fn a_read_that_a_write_overtakes_is_planned_again() {
    let mut bench = bench(Media::Ssd);
    write(&mut bench, 1, 0, content(1, 16));
    let token = bench.request(Request::Read { replica: replica(), offset: 0, length: 64 << 10 });
    // The read waits while its blocks are replaced, written home, and the slot is used again.
    let held = bench.under_way.pop_front().expect("the read");
    write(&mut bench, 2, 4096, content(2, 1));
    bench.cycle();
    write(&mut bench, 3, 0, content(3, 16));
    for offset in (64u64..1024).step_by(64) {
        write(&mut bench, 4, offset << 10, content(offset, 16));
    }
    bench.under_way.push_front(held);
    bench.run();
    let Some(Ok(Outcome::Read { data, .. })) = bench.outcome(token) else { panic!("read") };
    assert_eq!(data, content(3, 16));
}

#[test]
fn a_full_journal_slows_writers_and_fails_none() {
    for media in [Media::Ssd, Media::Hdd] {
        let mut bench = bench(media);
        let mut tokens = Vec::new();
        for round in 0..900u64 {
            let offset = round * 7 % 60 * (64 << 10) + 4096;
            tokens.push(bench.request(write_request(round + 1, offset, content(round, 8))));
            // The caller's bound.
            if round % 300 == 299 {
                bench.run();
            }
        }
        bench.run();
        for token in tokens {
            assert_eq!(bench.outcome(token), Some(Ok(Outcome::Done)));
        }
        let mut again = reopened(&bench, media);
        for last in 840..900u64 {
            let offset = last * 7 % 60 * (64 << 10) + 4096;
            assert!(read(&mut again, offset, 32 << 10) == content(last, 8));
        }
    }
}

#[test]
fn writes_wait_for_space_on_a_full_drive_and_go_on_when_it_returns() {
    let mut bench = Bench::open(geometry(Media::Hdd, 12 << 20), Image::default());
    create(&mut bench);
    let total = bench.engine.usage().slots_total;
    assert!((2..8).contains(&total), "{total} slots");
    let other = ReplicaId::from_raw(5);
    let size = ByteCount::new(64 << 20);
    let request = Request::CreateReplica { replica: other, size, meta: Bytes::new() };
    assert_eq!(bench.ask(request), Ok(Outcome::Done));
    for slot in 0..total {
        let data = content(slot, 1);
        let change = Change::Write { crcs: crcs(&data), data };
        let (mod_seq, offset) = (seq(1), slot << 20);
        let request = Request::Change { replica: other, mod_seq, offset, change };
        assert_eq!(bench.ask(request), Ok(Outcome::Done));
    }
    let whole = bench.request(write_request(1, 0, content(77, 256)));
    let part = bench.request(write_request(1, 2 << 20, content(78, 2)));
    bench.run();
    assert_eq!((bench.outcome(whole), bench.outcome(part)), (None, None));
    // What has a slot can still be written, whole or in part.
    let data = content(3, 256);
    let change = Change::Write { crcs: crcs(&data), data };
    let request = Request::Change { replica: other, mod_seq: seq(2), offset: 0, change };
    assert_eq!(bench.ask(request), Ok(Outcome::Done));
    assert_eq!(bench.ask(Request::RemoveReplica { replica: other }), Ok(Outcome::Done));
    bench.run();
    assert_eq!(bench.outcome(whole), Some(Ok(Outcome::Done)));
    assert_eq!(bench.outcome(part), Some(Ok(Outcome::Done)));
    assert!(read(&mut bench, 0, 1 << 20) == content(77, 256));
    assert!(read(&mut bench, 2 << 20, 8192) == content(78, 2));
}

#[test]
fn a_failed_write_takes_the_drive_out_of_service_and_every_request_ends() {
    let mut bench = bench(Media::Ssd);
    write(&mut bench, 1, 0, content(1, 16));
    let read = bench.request(Request::Read { replica: replica(), offset: 0, length: 4096 });
    let small = bench.request(write_request(2, 0, content(2, 1)));
    let large = bench.request(write_request(3, 64 << 10, content(2, 16)));
    bench.fail_writes = true;
    // The batch first, then what else is under way.
    bench.step(1);
    assert!(bench.out_of_service.is_some());
    bench.run();
    for token in [read, small, large] {
        assert_eq!(bench.outcome(token), Some(Err(OpError::DriveFailed)));
    }
    let late = bench.ask(Request::RemoveReplica { replica: replica() });
    assert_eq!(late, Err(OpError::DriveFailed));
    assert!(bench.completed.is_empty());
}

#[test]
fn metadata_is_replaced_and_size_only_grows() {
    let mut bench = bench(Media::Ssd);
    let set = |bench: &mut Bench, size, meta: &'static [u8]| {
        let (size, meta) = (ByteCount::new(size), Bytes::from_static(meta));
        bench.ask(Request::SetReplicaMeta { replica: replica(), size, meta })
    };
    assert_eq!(set(&mut bench, 2 * SIZE, b"two"), Ok(Outcome::Done));
    assert_eq!(set(&mut bench, SIZE, &[3; 3072]), Ok(Outcome::Done));
    bench.cycle();
    let opened = reopened(&bench, Media::Ssd).opened.expect("open");
    assert_eq!(opened[0].size.get(), 2 * SIZE);
    assert_eq!(opened[0].meta, vec![3; 3072]);
}

#[test]
fn a_drive_with_other_geometry_or_other_content_is_refused_and_not_written() {
    let bench = bench(Media::Ssd);
    let image = bench.drive.seen.clone();
    for wrong in [geometry(Media::Hdd, 24 << 20), geometry(Media::Ssd, 25 << 20)] {
        let mut refused = Bench::start(wrong, image.clone());
        refused.run();
        let reason = refused.out_of_service.expect("refused");
        assert!(reason.contains("a drive keeps its shape"), "{reason}");
        assert_eq!(refused.opened, None);
    }
    let mut image = Image::default();
    image.put(1, &[5; 4096]);
    let mut refused = Bench::start(geometry(Media::Ssd, 24 << 20), image);
    refused.run();
    assert!(refused.out_of_service.is_some());
    assert_eq!(refused.drive.seen.read(4096, 4096), vec![5; 4096]);
}

#[test]
fn blocks_in_use_are_told() {
    let mut bench = bench(Media::Hdd);
    write(&mut bench, 1, 4096, content(1, 2));
    write(&mut bench, 2, 40 << 10, content(1, 1));
    let request = Request::Allocated { replica: replica(), offset: 4096, length: 48 << 10 };
    let outcome = bench.ask(request);
    assert_eq!(outcome, Ok(Outcome::Allocated { bitmap: Bytes::from_static(&[0b11, 0b10]) }));
}

#[test]
fn what_an_earlier_format_left_on_the_drive_never_shows() {
    for media in [Media::Ssd, Media::Hdd] {
        let mut old = bench(media);
        for round in 0..60u64 {
            write(&mut old, round + 1, round % 30 * (128 << 10), content(round, 16 + 3));
            if round % 20 == 19 {
                old.cycle();
            }
        }
        let mut image = old.drive.seen.clone();
        image.put(0, &[0; 4096]);
        image.put(1, &[0; 4096]);
        let mut bench = Bench::start_seeded(geometry(media, 24 << 20), image, 8);
        bench.run();
        assert_eq!(bench.opened, Some(vec![]));
        create(&mut bench);
        for round in 0..40u64 {
            write(&mut bench, round + 1, round % 20 * (192 << 10), content(1000 + round, 17));
            if round % 15 == 14 {
                bench.cycle();
            }
            if round % 10 == 9 {
                bench = reopened(&bench, media);
                assert!(!bench.opened.as_ref().expect("open")[0].stale);
            }
        }
        let expected = |block: u64| {
            let slot = block / 48;
            let tag = ((1000 + 20 + slot) << 16) | (block % 48);
            if slot < 20 && block % 48 < 17 { tag } else { 0 }
        };
        for offset in (0..SIZE).step_by(1 << 20) {
            let data = read(&mut bench, offset, 1 << 20);
            for (block, bytes) in (offset / 4096..).zip(data.chunks(4096)) {
                let word = u64::from_le_bytes(bytes[..8].try_into().expect("eight"));
                assert_eq!(word, expected(block), "block {block}");
            }
        }
    }
}

#[test]
fn a_large_thin_drive_is_opened_by_reading_what_is_used_of_it() {
    let large = crate::api::Geometry { drive_bytes: 1 << 40, ..geometry(Media::Ssd, 0) };
    let mut bench = Bench::open(large, Image::default());
    create(&mut bench);
    write(&mut bench, 1, 0, content(1, 256));
    bench.cycle();
    let mut again = Bench::start(large, bench.drive.seen.clone());
    let mut bytes = 0;
    while let Some(action) = again.under_way.front() {
        if let crate::api::Action::ReadDrive { length, .. } = action {
            bytes += u64::from(*length);
        }
        again.step(0);
    }
    assert!(bytes < 8 << 20, "{bytes} bytes read");
    assert!(read(&mut again, 0, 1 << 20) == content(1, 256));
}
