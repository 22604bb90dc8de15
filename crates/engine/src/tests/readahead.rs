//! What is read ahead of a stream, and the order in which reads go to a hard disk.

use bytes::Bytes;
use format::data::Change;
use model::{
    id::{LayerId, ReplicaId},
    units::ByteCount,
    volume::Media,
};

use super::{
    cases::{content, crcs, replica, seq, write, zero},
    sim::{Bench, Image, geometry},
};
use crate::{
    ahead::cache::BYTES_MAX,
    api::{Action, Event, OpError, OpToken, Outcome, Request},
    drive::Io,
    reads::{Reads, Waiting},
};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 32 * MIB;
/// Reads with the drive at once.
const WITH_DRIVE: usize = 4;

fn create(bench: &mut Bench, replica: ReplicaId) {
    let (size, meta) = (ByteCount::new(SIZE), Bytes::new());
    assert_eq!(bench.ask(Request::CreateReplica { replica, size, meta }), Ok(Outcome::Done));
}

/// A replica whose first so many MiB were written, each with its own content, and nothing else in
/// memory.
fn written(media: Media, mib: u64) -> Bench {
    let mut bench = Bench::open(geometry(media, 64 * MIB), Image::default());
    create(&mut bench, replica());
    for at in 0..mib {
        write(&mut bench, 1 + at, at * MIB, content(at, 256));
    }
    bench.cycle();
    bench.reads = 0;
    bench
}

/// What [`written`] put into a block.
fn of(block: u64) -> Bytes {
    // One block of `content`.
    let (at, index) = (block / 256, block % 256);
    Bytes::from(((at << 16) | index).to_le_bytes().repeat(512))
}

fn stream_of(replica: ReplicaId, block: u64, blocks: u32) -> Request {
    Request::ReadStream { replica, offset: block * 4096, length: blocks * 4096 }
}

fn stream(block: u64) -> Request {
    stream_of(replica(), block, 1)
}

fn data_of(outcome: Option<Result<Outcome, OpError>>) -> Bytes {
    let Some(Ok(Outcome::Read { crcs: sums, data })) = outcome else { panic!("{outcome:?}") };
    assert_eq!(sums, crcs(&data), "checksums are those of the data");
    data
}

/// Reads one block as the next of a stream.
fn next(bench: &mut Bench, block: u64) -> Bytes {
    let outcome = bench.ask(stream(block));
    data_of(Some(outcome))
}

fn is_read(action: &Action) -> bool {
    matches!(action, Action::ReadDrive { .. })
}

fn offsets(bench: &Bench) -> Vec<u64> {
    let reads = bench.under_way.iter().filter_map(|action| match action {
        Action::ReadDrive { offset, .. } => Some(*offset),
        _ => None,
    });
    reads.collect()
}

#[test]
fn reads_of_4_kib_in_sequence_take_few_reads_of_the_drive() {
    let mut bench = written(Media::Hdd, 8);
    for block in 0..2048 {
        assert!(next(&mut bench, block) == of(block), "block {block}");
    }
    // Two before it is a stream, four windows up to the end of the first extent, one for each other.
    assert!(bench.reads <= 2 + 5 + 8, "{} reads", bench.reads);
    let usage = bench.engine.usage();
    assert_eq!((usage.blocks_ahead, usage.blocks_ahead_used), (2046, 2046));
    assert_eq!(bench.engine.bytes_ahead(), 0, "what was delivered is not kept");
}

#[test]
fn many_reads_at_once_in_sequence_are_answered_by_few_of_the_drive() {
    let mut bench = written(Media::Hdd, 8);
    let mut in_flight: Vec<(u64, OpToken)> = Vec::new();
    for block in 0..2048 {
        in_flight.push((block, bench.request(stream(block))));
        loop {
            in_flight.retain(|&(block, token)| match bench.outcome(token) {
                None => true,
                outcome => {
                    assert!(data_of(outcome) == of(block), "block {block}");
                    false
                }
            });
            if in_flight.len() < 32 {
                break;
            }
            bench.step(0);
        }
    }
    bench.run();
    for (block, token) in in_flight {
        assert!(data_of(bench.outcome(token)) == of(block), "block {block}");
    }
    // Those that came before the first window did.
    assert!(bench.reads < 32 + 16, "{} reads", bench.reads);
}

#[test]
fn reads_anywhere_take_exactly_theirs() {
    let mut bench = written(Media::Hdd, 8);
    for index in 0..500 {
        let block = index * 1021 % 2048;
        assert!(next(&mut bench, block) == of(block), "block {block}");
    }
    assert_eq!((bench.reads, bench.engine.usage().blocks_ahead), (500, 0));
}

#[test]
fn an_ssd_reads_nothing_ahead_and_holds_nothing_back() {
    let mut bench = written(Media::Ssd, 8);
    for block in 0..256 {
        assert!(next(&mut bench, block) == of(block), "block {block}");
    }
    assert_eq!((bench.reads, bench.engine.usage().blocks_ahead), (256, 0));
    for block in 0..32 {
        bench.request(stream(block * 7));
    }
    assert_eq!(bench.under_way.len(), 32);
}

#[test]
fn the_end_of_a_replica_and_extents_without_content_are_passed_over() {
    let mut bench = written(Media::Hdd, 2);
    write(&mut bench, 90, SIZE - MIB, content(31, 256));
    bench.cycle();
    bench.reads = 0;
    for block in 0..SIZE / 4096 {
        let wanted = match block / 256 {
            0 | 1 | 31 => of(block),
            _ => Bytes::from_static(&[0; 4096]),
        };
        assert!(next(&mut bench, block) == wanted, "block {block}");
    }
    assert!(bench.reads <= 2 + 5 + 1 + 2, "{} reads", bench.reads);
}

#[test]
fn a_stream_goes_on_through_frozen_layers() {
    let mut bench = written(Media::Hdd, 4);
    let freeze = Request::Freeze { replica: replica(), layer: LayerId::from_raw(1) };
    assert_eq!(bench.ask(freeze), Ok(Outcome::Done));
    for block in [3, 40, 41, 600] {
        write(&mut bench, 50, block * 4096, content(900 + block, 1));
    }
    zero(&mut bench, 60, 700 * 4096, 8192);
    bench.cycle();
    bench.reads = 0;
    for block in 0..1024 {
        let wanted = match block {
            3 | 40 | 41 | 600 => content(900 + block, 1),
            700 | 701 => Bytes::from_static(&[0; 4096]),
            _ => of(block),
        };
        assert!(next(&mut bench, block) == wanted, "block {block}");
    }
    assert!(bench.reads <= 2 + 2 * 5 + 2 * 4, "{} reads", bench.reads);
}

/// Two blocks were read, and what follows was read ahead.
fn read_ahead() -> Bench {
    let mut bench = written(Media::Hdd, 8);
    for block in [0, 1] {
        assert!(next(&mut bench, block) == of(block));
    }
    assert_eq!(bench.engine.usage().blocks_ahead, 16);
    bench
}

#[test]
fn what_changes_after_it_was_read_ahead_is_read_as_it_is_then() {
    let mut bench = read_ahead();
    write(&mut bench, 50, 3 * 4096, content(900, 1));
    assert!(next(&mut bench, 2) == of(2));
    assert!(next(&mut bench, 3) == content(900, 1));
    bench.cycle();
    assert!(next(&mut bench, 3) == content(900, 1), "it was written home");
    zero(&mut bench, 51, 4 * 4096, 4096);
    bench.cycle();
    assert!(next(&mut bench, 4).iter().all(|&byte| byte == 0));
    assert!(next(&mut bench, 5) == of(5));

    // The whole extent goes, and another comes.
    let mut bench = read_ahead();
    zero(&mut bench, 50, 0, 1 << 20);
    assert!(next(&mut bench, 2).iter().all(|&byte| byte == 0));
    write(&mut bench, 51, 0, content(77, 256));
    assert!(next(&mut bench, 3) == content(77, 256).slice(3 * 4096..4 * 4096));
}

/// The drive carries out the window that was asked for last, and is slow to say so.
fn slow_window(bench: &mut Bench) -> Event {
    let window = bench.under_way.remove(1).expect("behind the read that it follows");
    let Action::ReadDrive { token, offset, length, .. } = window else { panic!("{window:?}") };
    Event::DriveRead { token, result: Ok(bench.drive.seen.read(offset, length as usize)) }
}

#[test]
fn what_changes_while_it_is_read_ahead_is_not_kept() {
    let mut bench = written(Media::Hdd, 2);
    assert!(next(&mut bench, 0) == of(0));
    let second = bench.request(stream(1));
    assert_eq!(bench.under_way.iter().filter(|action| is_read(action)).count(), 2);
    let ahead = slow_window(&mut bench);
    write(&mut bench, 50, 3 * 4096, content(900, 1));
    assert!(data_of(bench.outcome(second)) == of(1));
    let waits = bench.request(stream(3));
    assert_eq!(bench.outcome(waits), None, "it waits for the window");
    bench.event(ahead);
    bench.run();
    assert!(data_of(bench.outcome(waits)) == content(900, 1));
    bench.cycle();
    assert!(next(&mut bench, 3) == content(900, 1));
    assert_eq!(bench.engine.usage().blocks_ahead_used, 0);
}

/// All slots are used, and some of the first extent's was read ahead.
fn full() -> (Bench, ReplicaId) {
    let mut bench = Bench::open(geometry(Media::Hdd, 36 * MIB), Image::default());
    let other = ReplicaId::from_raw(0xb2);
    create(&mut bench, replica());
    create(&mut bench, other);
    for at in 0..bench.engine.usage().slots_total {
        write(&mut bench, 1 + at, at * MIB, content(at, 256));
    }
    bench.cycle();
    assert!(next(&mut bench, 0) == of(0));
    (bench, other)
}

fn give(bench: &mut Bench, other: ReplicaId) {
    let data = content(800, 256);
    let change = Change::Write { crcs: crcs(&data), data };
    let request = Request::Change { replica: other, mod_seq: seq(1), offset: 0, change };
    assert_eq!(bench.ask(request), Ok(Outcome::Done));
    let usage = bench.engine.usage();
    assert_eq!(usage.slots_used, usage.slots_total, "there was one slot");
}

fn shows_only_its_own(bench: &mut Bench, other: ReplicaId) {
    for block in 0..256 {
        let found = bench.ask(stream_of(other, block, 1));
        let at = block as usize * 4096;
        assert!(data_of(Some(found)) == content(800, 256).slice(at..at + 4096), "block {block}");
        assert!(next(bench, block).iter().all(|&byte| byte == 0), "block {block}");
    }
}

#[test]
fn a_slot_that_another_replica_gets_shows_nothing_that_was_read_ahead() {
    let (mut bench, other) = full();
    assert!(next(&mut bench, 1) == of(1));
    assert_ne!(bench.engine.bytes_ahead(), 0);
    zero(&mut bench, 90, 0, 1 << 20);
    assert_eq!(bench.engine.bytes_ahead(), 0);
    give(&mut bench, other);
    shows_only_its_own(&mut bench, other);
}

#[test]
fn a_slot_that_another_replica_gets_while_it_is_read_ahead_shows_nothing_of_it() {
    let (mut bench, other) = full();
    let second = bench.request(stream(1));
    let ahead = slow_window(&mut bench);
    zero(&mut bench, 90, 0, 1 << 20);
    assert!(data_of(bench.outcome(second)) == of(1));
    give(&mut bench, other);
    bench.event(ahead);
    assert_eq!(bench.engine.bytes_ahead(), 0);
    shows_only_its_own(&mut bench, other);
}

#[test]
fn slots_of_a_removed_replica_take_what_was_read_ahead_with_them() {
    let (mut bench, other) = full();
    assert!(next(&mut bench, 1) == of(1));
    assert_eq!(bench.ask(Request::RemoveReplica { replica: replica() }), Ok(Outcome::Done));
    bench.idle();
    assert_eq!(bench.engine.bytes_ahead(), 0);
    assert_eq!(bench.ask(stream(2)), Err(OpError::UnknownReplica));
    let data = content(800, 256);
    for at in 0..bench.engine.usage().slots_total {
        let change = Change::Write { crcs: crcs(&data), data: data.clone() };
        let request = Request::Change { replica: other, mod_seq: seq(1), offset: at * MIB, change };
        assert_eq!(bench.ask(request), Ok(Outcome::Done));
    }
    for block in 0..16 {
        let found = data_of(Some(bench.ask(stream_of(other, block, 1))));
        assert!(found == data.slice(block as usize * 4096..(block as usize + 1) * 4096));
    }
}

/// Where a block of the first extent lies.
fn place_of(bench: &Bench, block: u64) -> u64 {
    let held = of(block);
    let at = (0..64 * MIB).step_by(4096).find(|&at| bench.drive.seen.read(at, 4096) == held);
    at.expect("it is on the drive")
}

#[test]
fn damage_is_told_when_it_is_asked_for_and_not_when_it_is_read_ahead() {
    let mut bench = written(Media::Hdd, 8);
    let place = place_of(&bench, 10);
    bench.drive.seen.rot(place + 5);
    for block in 0..10 {
        assert!(next(&mut bench, block) == of(block), "block {block}");
    }
    assert_eq!(bench.ask(stream(10)), Err(OpError::BadBlock { offset: 10 * 4096 }));
    for block in 11..512 {
        assert!(next(&mut bench, block) == of(block), "block {block}");
    }
    assert!(bench.reads < 16, "{} reads", bench.reads);
}

#[test]
fn a_read_that_is_no_streams_looks_at_the_drive() {
    let mut bench = read_ahead();
    let place = place_of(&bench, 5);
    bench.drive.seen.rot(place);
    let (replica, offset, length) = (replica(), 5 * 4096, 4096);
    let scrub = Request::Read { replica, offset, length };
    assert_eq!(bench.ask(scrub), Err(OpError::BadBlock { offset }));
    for block in 2..9 {
        assert!(next(&mut bench, block) == of(block), "block {block}");
    }
}

#[test]
fn a_window_that_fails_fails_nobody() {
    let mut bench = written(Media::Hdd, 2);
    assert!(next(&mut bench, 0) == of(0));
    let tokens: Vec<OpToken> = (1..9).map(|block| bench.request(stream(block))).collect();
    assert_eq!(bench.under_way.len(), 2, "the others wait for the window");
    bench.fail_reads = true;
    bench.step(1);
    bench.fail_reads = false;
    bench.run();
    for (block, token) in (1..9).zip(tokens) {
        assert!(data_of(bench.outcome(token)) == of(block), "block {block}");
    }
    assert!(next(&mut bench, 9) == of(9));
}

#[test]
fn streams_that_alternate_are_each_read_ahead() {
    let mut bench = written(Media::Hdd, 8);
    for block in 0..1024 {
        assert!(next(&mut bench, block) == of(block), "block {block}");
        assert!(next(&mut bench, 1024 + block) == of(1024 + block), "block {block}");
    }
    assert!(bench.reads <= 2 * (2 + 5 + 4), "{} reads", bench.reads);
}

#[test]
fn a_stream_is_found_among_many_reads_elsewhere() {
    let mut bench = written(Media::Hdd, 8);
    for block in 0..512 {
        assert!(next(&mut bench, block) == of(block), "block {block}");
        for other in 0..100 {
            let other = 512 + (block * 100 + other) * 1021 % 1536;
            assert!(next(&mut bench, other) == of(other), "block {other}");
        }
    }
    let ahead = bench.engine.usage().blocks_ahead_used;
    assert!(ahead >= 500, "{ahead} of 512 blocks");
}

#[test]
fn what_is_read_ahead_stays_within_its_bound_however_many_streams_there_are() {
    let mut bench = written(Media::Hdd, 32);
    let mut most = 0;
    for block in 0..256 {
        for at in 0..32 {
            // Some are left alone half way, and what was read for them is in the way.
            if at % 3 > 0 || block < 100 {
                let block = at * 256 + block;
                assert!(next(&mut bench, block) == of(block), "block {block}");
                most = most.max(bench.engine.bytes_ahead());
                assert!(most <= BYTES_MAX, "{most} bytes");
            }
        }
    }
    assert!(most > BYTES_MAX / 4, "{most} bytes");
}

#[test]
fn a_hard_disk_gets_few_reads_at_once_in_the_order_in_which_they_lie() {
    let mut bench = written(Media::Hdd, 8);
    let blocks: Vec<u64> = (0..64).map(|index| 3 + index * 1021 % 2048).collect();
    let tokens: Vec<OpToken> = blocks.iter().map(|&block| bench.request(stream(block))).collect();
    let mut order = offsets(&bench);
    assert_eq!(order.len(), WITH_DRIVE);
    while !bench.under_way.is_empty() {
        bench.step(0);
        assert!(bench.under_way.len() <= WITH_DRIVE);
        order.extend(offsets(&bench).last().filter(|last| !order.contains(last)));
    }
    assert_eq!(order.len(), 64);
    let turns = order[WITH_DRIVE - 1..].windows(2).filter(|pair| pair[1] < pair[0]).count();
    assert_eq!(turns, 1, "up to the highest, then from the lowest: {order:?}");
    for (block, token) in blocks.into_iter().zip(tokens) {
        assert!(data_of(bench.outcome(token)) == of(block), "block {block}");
    }
}

fn waiting(io: Io, offset: u64) -> Waiting {
    Waiting { io, offset, length: 4096 }
}

#[test]
fn a_read_that_many_overtake_goes_next() {
    let mut reads = Reads::default();
    for offset in [100 * MIB, 200 * MIB, 300 * MIB, 400 * MIB, 10 * MIB] {
        reads.push(waiting(Io::Fetch(0), offset));
    }
    for _ in 0..WITH_DRIVE {
        assert!(reads.next().is_some_and(|read| read.offset >= 10 * MIB));
    }
    // Whatever is low waits, because more comes just above where the drive is.
    reads.push(waiting(Io::Fetch(1), 0));
    let mut overtaken = 0;
    for at in 0.. {
        reads.push(waiting(Io::Fetch(2), 500 * MIB + at * 4096));
        reads.ended();
        let read = reads.next().expect("there is room");
        if read.offset == 0 {
            break;
        }
        overtaken += 1;
        assert!(overtaken <= 40, "it waits for ever");
    }
    assert!(overtaken > 20, "{overtaken} overtook it");
}

#[test]
fn what_is_merged_is_read_after_requests_and_does_not_wait_for_ever() {
    let mut reads = Reads::default();
    reads.push(waiting(Io::Merge(0), 0));
    for at in 1..40 {
        reads.push(waiting(Io::Fetch(0), at * MIB));
    }
    let mut before = 0;
    for at in 0.. {
        let read = reads.next().expect("there is room");
        reads.ended();
        if matches!(read.io, Io::Merge(_)) {
            break;
        }
        before += 1;
        assert!(before <= 150, "it waits for ever");
        reads.push(waiting(Io::Fetch(0), (40 + at) * MIB));
    }
    assert!(before >= 39, "{before} before it");
    let mut left = 0;
    while reads.next().is_some() {
        reads.ended();
        left += 1;
    }
    assert_eq!(left, 39, "all of them go");
}
