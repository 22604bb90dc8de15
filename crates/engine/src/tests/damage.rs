//! Damage at rest: what recovery can tell from a crash, and what it says then.

use bytes::Bytes;
use format::{
    data::Change,
    disk::{
        journal::{BatchHeader, PlacedUnit, Record},
        page::Owner,
    },
};
use model::{id::ReplicaId, units::ByteCount, volume::Media};

use super::{
    cases::{SIZE, bench, content, crcs, layout, read, reopened, replica, seq, write},
    sim::{Bench, Image, geometry},
};
use crate::{
    api::{OpError, OpenReplica, Outcome, Request},
    replay::{Batch, Relied},
};

const MEDIA: Media = Media::Ssd;

fn reopen(image: &Image) -> (Bench, Vec<OpenReplica>) {
    let bench = Bench::open(geometry(MEDIA, 24 << 20), image.clone());
    let opened = bench.opened.clone().expect("open");
    (bench, opened)
}

/// Replica creation, then four small writes of one block: five batches of one or two blocks, and
/// the seal.
fn written() -> Bench {
    let mut bench = bench(MEDIA);
    for block in 0..4 {
        write(&mut bench, block + 1, block * 4096, content(block + 1, 1));
    }
    bench.idle();
    bench
}

/// The batch of the write to `block` begins here in the journal.
fn batch_of(block: u64) -> u64 {
    layout(MEDIA).journal_offset + 4096 + block * 8192
}

#[test]
fn a_batch_lost_below_the_watermark_makes_replicas_stale_until_the_caller_knows() {
    for block in 0..4 {
        let mut image = written().drive.seen;
        image.rot(batch_of(block) + 30);
        for _ in 0..2 {
            let (bench, opened) = reopen(&image);
            assert!(opened[0].stale, "block {block}");
            image = bench.drive.seen;
        }
        let (mut bench, _) = reopen(&image);
        for before in 0..block {
            assert!(read(&mut bench, before * 4096, 4096) == content(before + 1, 1));
        }
        let size = ByteCount::new(SIZE);
        let meta = Bytes::from_static(b"I know");
        let request = Request::SetReplicaMeta { replica: replica(), size, meta };
        assert_eq!(bench.ask(request), Ok(Outcome::Done));
        write(&mut bench, 9, 0, content(9, 4));
        let (mut bench, opened) = reopen(&bench.drive.seen);
        assert!(!opened[0].stale);
        assert!(read(&mut bench, 0, 16384) == content(9, 4));
        bench.cycle();
        let (mut bench, opened) = reopen(&bench.drive.seen);
        assert!(!opened[0].stale);
        assert!(read(&mut bench, 0, 16384) == content(9, 4));
    }
}

#[test]
fn without_a_seal_the_last_batch_cannot_be_told_from_one_that_was_never_durable() {
    let mut bench = bench(MEDIA);
    write(&mut bench, 1, 0, content(1, 1));
    write(&mut bench, 2, 0, content(2, 1));
    bench.drive.seen.rot(batch_of(1) + 30);
    let (mut bench, opened) = reopen(&bench.drive.seen);
    assert!(!opened[0].stale);
    assert!(read(&mut bench, 0, 4096) == content(1, 1));
    // What was dropped stays dropped, also when its bytes are whole again.
    bench.drive.seen.rot(batch_of(1) + 30);
    let (mut bench, _) = reopen(&bench.drive.seen);
    assert!(read(&mut bench, 0, 4096) == content(1, 1));
}

#[test]
fn payload_lost_in_the_journal_is_known_by_replica_and_by_block() {
    let mut bench = bench(MEDIA);
    let (other, size) = (ReplicaId::from_raw(1), ByteCount::new(SIZE));
    let request = Request::CreateReplica { replica: other, size, meta: Bytes::new() };
    assert_eq!(bench.ask(request), Ok(Outcome::Done));
    let payload = layout(MEDIA).journal_offset + 3 * 4096;
    write(&mut bench, 1, 0, content(1, 2));
    bench.idle();
    bench.drive.seen.rot(payload + 4096 + 7);
    let (mut bench, opened) = reopen(&bench.drive.seen);
    let stale: Vec<bool> = opened.iter().map(|o| o.stale).collect();
    assert_eq!(opened.iter().map(|o| o.replica).collect::<Vec<_>>(), [other, replica()]);
    assert_eq!(stale, [false, true]);
    assert!(read(&mut bench, 0, 4096) == content(1, 1));
    let bad = bench.ask(Request::Read { replica: replica(), offset: 0, length: 8192 });
    assert_eq!(bad, Err(OpError::BadBlock { offset: 4096 }));
}

#[test]
fn either_superblock_may_be_lost_right_after_a_cycle() {
    for half in 0..2 {
        let mut bench = written();
        bench.cycle();
        write(&mut bench, 9, 8192, content(9, 1));
        bench.drive.seen.rot(half * 4096 + 20);
        let (mut bench, opened) = reopen(&bench.drive.seen);
        assert!(!opened[0].stale, "half {half}");
        assert!(read(&mut bench, 0, 8192) == [content(1, 1), content(2, 1)].concat());
        assert!(read(&mut bench, 8192, 4096) == content(9, 1));
    }
}

#[test]
fn a_superblock_lost_when_the_older_ones_journal_is_gone_makes_replicas_stale() {
    let mut bench = written();
    bench.cycle();
    write(&mut bench, 9, 8192, content(9, 1));
    let superblock = |half: u64| {
        let bytes = bench.drive.seen.read(half * 4096, 4096);
        format::disk::Superblock::decode(&bytes).expect("whole")
    };
    let newest = u64::from(superblock(1).sequence > superblock(0).sequence);
    // Once the newer one is durable, what lies before its tail may be overwritten.
    let overwritten = superblock(1 - newest).tail;
    assert!(overwritten < superblock(newest).tail);
    let mut image = bench.drive.seen.clone();
    image.put((layout(MEDIA).journal_offset + overwritten) / 4096, &[0; 4096]);
    assert!(!reopen(&image).1[0].stale);
    image.rot(newest * 4096 + 20);
    assert!(reopen(&image).1[0].stale);
}

#[test]
fn the_half_of_a_page_that_counts_is_missed_and_the_other_is_not() {
    let layout = layout(MEDIA);
    let page = layout.replica_pages;
    // The page is written three times: A, B, A.
    let mut bench = bench(MEDIA);
    for round in 1..=3 {
        write(&mut bench, round, 0, content(round, 2));
        bench.cycle();
    }
    for (half, stale) in [(0, true), (1, false)] {
        let mut image = bench.drive.seen.clone();
        image.rot(layout.page_offset(page, half) + 100);
        let (mut bench, opened) = reopen(&image);
        assert_eq!(opened[0].stale, stale, "half {half}");
        if !stale {
            assert!(read(&mut bench, 0, 8192) == content(3, 2));
        }
        bench.cycle();
    }
    let mut image = bench.drive.seen.clone();
    for half in 0..2 {
        image.put(layout.page_offset(page, half) / 4096, &[0; 4096]);
    }
    assert!(reopen(&image).1[0].stale, "a page that reads as zeros");
}

#[test]
fn any_single_rotten_block_is_survived() {
    let mut bench = bench(MEDIA);
    for round in 0..40 {
        write(&mut bench, round + 1, round % 7 * 40960, content(round + 1, 9));
        if round % 15 == 14 {
            bench.cycle();
        }
    }
    write(&mut bench, 50, 1 << 20, content(50, 16));
    bench.idle();
    let layout = layout(MEDIA);
    let journal = (0..400).map(|block| layout.journal_offset + block * 4096);
    let pages = (0..layout.pages().min(20))
        .flat_map(|page| [0, 1].map(|half| layout.page_offset(page, half)));
    for offset in [0, 4096].into_iter().chain(pages).chain(journal) {
        let mut image = bench.drive.seen.clone();
        image.rot(offset + 70);
        let (mut reopened, opened) = reopen(&image);
        let lost = opened.is_empty();
        let stale = opened.iter().any(|o| o.stale);
        // Whatever is not called stale is right.
        for extent in 0..7u64 {
            let last = (0..40).rev().find(|round| round % 7 == extent).expect("there is one");
            let request =
                Request::Read { replica: replica(), offset: extent * 40960, length: 9 * 4096 };
            match reopened.ask(request) {
                Ok(Outcome::Read { data, .. }) => {
                    assert!(stale || data == content(last + 1, 9), "offset {offset:#x}");
                }
                Err(OpError::BadBlock { .. }) => {}
                Err(OpError::UnknownReplica) => assert!(lost),
                other => panic!("{other:?}"),
            }
        }
        if !lost {
            write(&mut reopened, 60, 0, content(60, 20));
            reopened.cycle();
            assert!(read(&mut reopened, 0, 20 * 4096) == content(60, 20));
        }
    }
}

#[test]
fn the_journal_goes_round_many_times() {
    for media in [Media::Ssd, Media::Hdd] {
        let mut bench = bench(media);
        for lap in 0..12u64 {
            for round in 0..25u64 {
                let tag = lap * 100 + round;
                write(&mut bench, tag + 1, (round * 37 % 60) * 65536 + 4096, content(tag, 15));
            }
            let mut again = reopened(&bench, media);
            assert!(!again.opened.as_ref().expect("open")[0].stale, "lap {lap}");
            for round in 0..25u64 {
                let found = read(&mut again, (round * 37 % 60) * 65536 + 4096, 61440);
                assert_eq!(found, content(lap * 100 + round, 15));
            }
            bench = again;
        }
    }
}

#[test]
fn a_batch_does_not_rely_on_payload_that_it_took_back() {
    let owner = |raw| Owner { replica: ReplicaId::from_raw(raw), layer: 0, extent: 0 };
    let place = |slot, raw, old| {
        let unit = |unit: u32| {
            let crcs = (0..16u32).map(|block| slot << 16 | unit << 8 | block).collect();
            PlacedUnit { unit, mod_seq: seq(1), valid: u16::MAX, cleared: 0, crcs }
        };
        Record::Place { slot, owner: owner(raw), old, units: vec![unit(0), unit(1)] }
    };
    let check = |records: Vec<Record>, expected: &[(u32, u32, u32)]| {
        let header = BatchHeader {
            position: 0,
            first_lsn: 1,
            previous_lsn: 0,
            durable_lsn: 0,
            head_blocks: 1,
            payload_blocks: 0,
            records: 1,
        };
        let found = Batch { header, records, payload: Bytes::new() }.relied_on();
        let found: Vec<_> = found.iter().map(|r: &Relied| (r.slot, r.first, r.count())).collect();
        assert_eq!(found, expected);
    };
    let (fresh, mod_seq) = (false, seq(2));
    check(vec![place(1, 1, None)], &[(1, 0, 32)]);
    check(vec![place(1, 1, None), place(2, 1, Some(1))], &[(2, 0, 32)]);
    check(vec![place(1, 1, None), Record::Free { slot: 1, owner: owner(1) }], &[]);
    let remove = Record::Remove { index: 0, replica: owner(1).replica };
    check(vec![place(1, 1, None), place(2, 2, None), remove], &[(2, 0, 32)]);
    let clear = Record::Clear { slot: 1, owner: owner(1), mod_seq, first: 0, count: 5 };
    check(vec![place(1, 1, None), clear], &[(1, 5, 27)]);
    let crcs = vec![0; 2];
    let data = Record::Data { slot: 1, owner: owner(1), fresh, mod_seq, first: 4, crcs };
    check(vec![place(1, 1, None), data], &[(1, 0, 4), (1, 6, 26)]);
    let (unit, valid, crcs) = (1, 1, vec![0]);
    let (owner_1, cleared) = (owner(1), 0);
    let set = Record::Set { slot: 1, owner: owner_1, fresh, unit, mod_seq, valid, cleared, crcs };
    check(vec![place(1, 1, None), set], &[(1, 0, 16)]);
}

#[test]
fn slots_of_a_removed_replica_may_be_written_before_the_batch_that_placed_them_is_sealed() {
    // One batch places and removes; its slots are then used again before another batch follows.
    let mut bench = Bench::open(geometry(Media::Hdd, 12 << 20), Image::default());
    let create = |bench: &mut Bench, raw| {
        let (replica, size) = (ReplicaId::from_raw(raw), ByteCount::new(64 << 20));
        let request = Request::CreateReplica { replica, size, meta: Bytes::new() };
        assert_eq!(bench.ask(request), Ok(Outcome::Done));
    };
    create(&mut bench, 1);
    create(&mut bench, 2);
    let total = bench.engine.usage().slots_total;
    let whole = |raw: u64, at: u64, tag: u64| {
        let data = content(tag, 256);
        let change = Change::Write { crcs: crcs(&data), data };
        let (replica, offset) = (ReplicaId::from_raw(raw), at << 20);
        Request::Change { replica, mod_seq: seq(tag), offset, change }
    };
    // A batch is held while all slots are written and their replica's removal is requested.
    let first = bench.request(Request::SetReplicaMeta {
        replica: ReplicaId::from_raw(2),
        size: ByteCount::new(64 << 20),
        meta: Bytes::from_static(b"x"),
    });
    let tokens: Vec<_> = (0..total).map(|at| bench.request(whole(1, at, 1 + at))).collect();
    while bench.under_way.len() > 1 {
        bench.step(1);
    }
    let removal = bench.request(Request::RemoveReplica { replica: ReplicaId::from_raw(1) });
    bench.run();
    for token in tokens.into_iter().chain([first, removal]) {
        assert_eq!(bench.outcome(token), Some(Ok(Outcome::Done)));
    }
    let late = bench.request(whole(2, 0, 77));
    // The payload lands, its batch does not.
    bench.step(0);
    let image = bench.drive.seen.clone();
    let mut again = Bench::open(geometry(Media::Hdd, 12 << 20), image);
    let opened: Vec<_> = again.opened.clone().expect("open").iter().map(|o| o.replica).collect();
    assert_eq!(opened, [ReplicaId::from_raw(2)], "the removal was acknowledged");
    assert_eq!(again.engine.usage().slots_used, 0);
    create(&mut again, 3);
    let _ = late;
}

#[test]
fn after_damage_the_journal_can_be_emptied_before_anything_is_written() {
    let mut bench = bench(MEDIA);
    for round in 0..28 {
        write(&mut bench, round + 1, round * 65536, content(round, 7));
    }
    let (size, meta) = (ByteCount::new(SIZE), Bytes::from_static(b"late"));
    let request = Request::SetReplicaMeta { replica: replica(), size, meta };
    assert_eq!(bench.ask(request), Ok(Outcome::Done));
    // A cycle takes the older part of the journal, and pages as of its end.
    bench.engine.want_cycle();
    bench.idle();
    let used = bench.engine.usage().journal_bytes_used;
    assert!(used > 4 * 65536, "{used} bytes are left in the journal");
    let bytes = [0, 4096].map(|at| bench.drive.seen.read(at, 4096));
    let found = bytes.iter().map(|b| format::disk::Superblock::decode(b).expect("whole"));
    let tail = found.max_by_key(|s| s.sequence).expect("two").tail;
    let second = layout(MEDIA).journal_offset + tail + 65536;
    bench.drive.seen.rot(second + 30);
    let (mut bench, opened) = reopen(&bench.drive.seen);
    assert!(opened[0].stale);
    assert!(bench.engine.usage().journal_bytes_used > 0);
    bench.cycle();
    write(&mut bench, 90, 0, content(90, 15));
    assert!(read(&mut bench, 0, 61440) == content(90, 15));
}
