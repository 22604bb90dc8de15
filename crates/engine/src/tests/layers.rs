//! Frozen layers: what they show, what they cost, and that they merge away.

use bytes::Bytes;
use format::{
    data::{Change, UnitMeta},
    disk::{FormatVersion, Superblock, layers::LAYERS_MAX},
};
use model::{id::LayerId, units::ByteCount, volume::Media};

use super::{
    cases::{
        SIZE, bench, content, crcs, describe, layout, read, reopened, replica, seq, write,
        write_request, zero,
    },
    sim::{Bench, geometry},
};
use crate::api::{Action, OpError, Outcome, Request};

fn layer(raw: u64) -> LayerId {
    LayerId::from_raw(raw)
}

fn freeze(bench: &mut Bench, raw: u64) {
    let request = Request::Freeze { replica: replica(), layer: layer(raw) };
    assert_eq!(bench.ask(request), Ok(Outcome::Done));
}

fn release(bench: &mut Bench, raw: u64) {
    let request = Request::Release { replica: replica(), layer: layer(raw) };
    assert_eq!(bench.ask(request), Ok(Outcome::Done));
}

fn try_read(bench: &mut Bench, of: u64, offset: u64, length: u32) -> Result<Outcome, OpError> {
    bench.ask(Request::ReadLayer { replica: replica(), layer: layer(of), offset, length })
}

fn read_layer(bench: &mut Bench, of: u64, offset: u64, length: u32) -> Bytes {
    match try_read(bench, of, offset, length) {
        Ok(Outcome::Read { crcs: sums, data }) if sums == crcs(&data) => data,
        other => panic!("{other:?}"),
    }
}

/// The blocks of the first 64 that changed.
fn changed(bench: &mut Bench, from: Option<u64>, to: Option<u64>) -> Vec<u64> {
    let (from, to) = (from.map(layer), to.map(layer));
    let request = Request::ChangedBetween { replica: replica(), from, to, offset: 0, length: SIZE };
    let Ok(Outcome::ChangedBetween { bitmap }) = bench.ask(request) else { panic!("no bitmap") };
    assert!(bitmap[8..].iter().all(|&byte| byte == 0));
    (0..64).filter(|block| bitmap[block / 8] >> (block % 8) & 1 == 1).map(|b| b as u64).collect()
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

#[test]
fn a_freeze_and_the_first_write_after_it_copy_nothing() {
    for media in [Media::Ssd, Media::Hdd] {
        let mut bench = bench(media);
        write(&mut bench, 1, 0, content(1, 512));
        bench.idle();
        let journal = layout(media).journal_offset..layout(media).slots_offset;
        let once = |bench: &mut Bench, request| {
            let op = bench.request(request);
            let mut written = 0;
            while let Some(action) = bench.under_way.front() {
                if let Action::PrepareDrive { .. } = action {
                    // A slot was taken: others are prepared.
                    bench.step(0);
                    continue;
                }
                let Action::WriteDrive { offset, data, .. } = action else { panic!("{action:?}") };
                assert!(journal.contains(offset));
                written += data.iter().map(Bytes::len).sum::<usize>();
                bench.step(0);
            }
            assert_eq!(bench.outcome(op), Some(Ok(Outcome::Done)));
            written
        };
        let used = bench.engine.usage().slots_used;
        let request = Request::Freeze { replica: replica(), layer: layer(1) };
        assert_eq!(once(&mut bench, request.clone()), 4096, "one block, whatever it holds");
        assert_eq!(once(&mut bench, request), 0, "and nothing if it is asked for again");
        assert_eq!(once(&mut bench, write_request(2, 8192, content(2, 1))), 8192);
        assert_eq!(bench.engine.usage().slots_used, used + 1);
        assert_eq!(read(&mut bench, 8192, 4096), content(2, 1));
        assert_eq!(read_layer(&mut bench, 1, 0, 2 << 20), content(1, 512));
    }
}

/// The same changes with freezes between them, and without.
fn history(media: Media, frozen: bool) -> Bench {
    let mut bench = bench(media);
    let freeze_if = |bench: &mut Bench, raw| {
        if frozen {
            freeze(bench, raw);
        }
    };
    write(&mut bench, 1, 0, content(1, 40));
    freeze_if(&mut bench, 1);
    write(&mut bench, 2, 4096, content(2, 2));
    zero(&mut bench, 3, 16 << 10, 8192);
    write(&mut bench, 4, 200 << 10, content(4, 3));
    freeze_if(&mut bench, 2);
    zero(&mut bench, 5, 64 << 10, 64 << 10);
    zero(&mut bench, 6, 4096, 4096);
    // Older than what is there: it must not take `mod_seq` back.
    write(&mut bench, 1, 24 << 10, content(5, 1));
    let some = content(6, 3);
    let unit =
        UnitMeta { offset: 128 << 10, mod_seq: seq(9), valid: vec![0b111, 0], crcs: crcs(&some) };
    let install = Request::Install { replica: replica(), units: vec![unit], data: some };
    assert_eq!(bench.ask(install), Ok(Outcome::Done));
    bench
}

#[test]
fn a_replica_with_layers_is_described_as_one_without() {
    for media in [Media::Ssd, Media::Hdd] {
        let (mut with, mut without) = (history(media, true), history(media, false));
        let same = |with: &mut Bench, without: &mut Bench| {
            assert_eq!(describe(with), describe(without));
            assert_eq!(read(with, 0, 512 << 10), read(without, 0, 512 << 10));
            let end = Request::HighestAllocated { replica: replica() };
            assert_eq!(with.ask(end.clone()), without.ask(end));
        };
        same(&mut with, &mut without);
        with.cycle();
        let mut with = reopened(&with, media);
        same(&mut with, &mut without);
        release(&mut with, 1);
        same(&mut with, &mut without);
        release(&mut with, 2);
        same(&mut with, &mut without);
        let (usage, plain) = (with.engine.usage(), without.engine.usage());
        assert_eq!((usage.layers, usage.slots_to_merge), (0, 0));
        assert_eq!(usage.slots_used, plain.slots_used, "{media:?}");
        assert!(usage.blocks_merged > 0);
        same(&mut reopened(&with, media), &mut without);
    }
}

#[test]
fn what_changed_between_two_freezes_is_told_by_the_block() {
    for media in [Media::Ssd, Media::Hdd] {
        let mut bench = bench(media);
        write(&mut bench, 1, 0, content(1, 20));
        freeze(&mut bench, 1);
        write(&mut bench, 2, 3 << 12, content(2, 1));
        // The second block of these held nothing.
        zero(&mut bench, 3, 19 << 12, 8192);
        freeze(&mut bench, 2);
        write(&mut bench, 4, 50 << 12, content(4, 2));
        assert_eq!(changed(&mut bench, None, Some(1)), (0..20).collect::<Vec<_>>());
        assert_eq!(changed(&mut bench, Some(1), Some(2)), [3, 19]);
        assert_eq!(changed(&mut bench, Some(2), None), [50, 51]);
        assert_eq!(changed(&mut bench, Some(1), None), [3, 19, 50, 51]);
        assert!(changed(&mut bench, Some(1), Some(1)).is_empty());
        let back = Request::ChangedBetween {
            replica: replica(),
            from: Some(layer(2)),
            to: Some(layer(1)),
            offset: 0,
            length: SIZE,
        };
        assert_eq!(bench.ask(back), Err(OpError::OutOfRange));
        // What merges away takes nothing with it.
        release(&mut bench, 2);
        assert_eq!(changed(&mut bench, Some(1), None), [3, 19, 50, 51]);
        let kept = Request::Layers { replica: replica() };
        assert_eq!(bench.ask(kept), Ok(Outcome::Layers { layers: vec![layer(1)] }));
        assert_eq!(try_read(&mut bench, 2, 0, 4096), Err(OpError::UnknownLayer));
        assert_eq!(read_layer(&mut bench, 1, 0, 80 << 10), content(1, 20));
        let of = Request::AllocatedIn {
            replica: replica(),
            layer: layer(1),
            offset: 0,
            length: 32 << 12,
        };
        let bitmap = Bytes::from_static(&[0xff, 0xff, 0x0f, 0]);
        assert_eq!(bench.ask(of), Ok(Outcome::Allocated { bitmap }));
    }
}

#[test]
fn a_freeze_comes_behind_every_change_before_it_and_before_every_change_behind_it() {
    let mut bench = bench(Media::Ssd);
    // The payload of the first is on its way to its slot while the others are asked for.
    let before = bench.request(write_request(1, 0, content(1, 16)));
    let small = bench.request(write_request(2, 64 << 10, content(2, 1)));
    let frozen = bench.request(Request::Freeze { replica: replica(), layer: layer(1) });
    let behind = bench.request(write_request(3, 64 << 10, content(3, 1)));
    let last = bench.under_way.len() - 1;
    bench.step(last);
    assert_eq!(bench.outcome(frozen), None, "what is before it is not durable");
    bench.run();
    for op in [before, small, frozen, behind] {
        assert_eq!(bench.outcome(op), Some(Ok(Outcome::Done)));
    }
    assert_eq!(read_layer(&mut bench, 1, 0, 64 << 10), content(1, 16));
    assert_eq!(read_layer(&mut bench, 1, 64 << 10, 4096), content(2, 1));
    assert_eq!(read(&mut bench, 64 << 10, 4096), content(3, 1));
}

#[test]
fn a_merge_that_a_restart_interrupts_goes_on() {
    let mut bench = bench(Media::Ssd);
    write(&mut bench, 1, 0, content(1, 1024));
    freeze(&mut bench, 1);
    for extent in 0..60 {
        write(&mut bench, 2 + extent, extent * 65536, content(extent, 1));
    }
    bench.cycle();
    let release = Request::Release { replica: replica(), layer: layer(1) };
    let op = bench.request(release);
    while bench.engine.usage().slots_to_merge != 30 {
        bench.step(0);
    }
    assert_eq!(bench.outcome(op), Some(Ok(Outcome::Done)), "it does not wait for the merge");
    let mut bench = reopened(&bench, Media::Ssd);
    let usage = bench.engine.usage();
    assert_eq!((usage.layers, usage.slots_to_merge, usage.slots_used), (0, 0, 64));
    assert!(usage.blocks_merged >= 26 * 15 && usage.blocks_merged < 34 * 15, "{usage:?}");
    for extent in 0..60 {
        assert_eq!(read(&mut bench, extent * 65536, 4096), content(extent, 1));
    }
    let rest = read(&mut bench, 4096, 60 << 10);
    assert_eq!(rest, content(1, 1024).slice(4096..64 << 10));
}

#[test]
fn damage_in_a_layer_stays_damage_when_it_merges_and_is_repaired_in_place() {
    for (media, merged) in [(Media::Ssd, true), (Media::Ssd, false), (Media::Hdd, true)] {
        let mut bench = bench(media);
        write(&mut bench, 1, 0, content(1, 16));
        freeze(&mut bench, 1);
        write(&mut bench, 2, 4096, content(2, 1));
        bench.cycle();
        let units = describe(&mut bench);
        // The layer's slot is the first that was taken.
        let slots = (0..4).map(|slot| layout(media).slot_offset(slot));
        let holds = |at: &u64| bench.drive.seen.read(*at, 4096) == content(1, 16).slice(..4096);
        let slot = slots.clone().find(holds).expect("it was written home");
        bench.drive.seen.rot(slot + (5 << 12));
        if merged {
            release(&mut bench, 1);
            assert_eq!(bench.engine.usage().layers, 0);
        } else {
            assert_eq!(
                try_read(&mut bench, 1, 5 << 12, 4096),
                Err(OpError::BadBlock { offset: 5 << 12 })
            );
        }
        let bad = Request::Read { replica: replica(), offset: 0, length: 64 << 10 };
        assert_eq!(bench.ask(bad.clone()), Err(OpError::BadBlock { offset: 5 << 12 }));
        assert_eq!(read(&mut bench, 6 << 12, 4096), content(1, 16).slice(6 << 12..7 << 12));
        assert_eq!(describe(&mut bench), units, "who compares replicas sees no difference");
        // The image that another replica sends.
        let mut whole = content(1, 16).to_vec();
        whole[4096..8192].copy_from_slice(&content(2, 1));
        let (data, used) = (Bytes::from(whole), bench.engine.usage().slots_used);
        let install =
            Request::Install { replica: replica(), units: units.clone(), data: data.clone() };
        assert_eq!(bench.ask(install), Ok(Outcome::Done));
        bench.cycle();
        let mut bench = reopened(&bench, media);
        assert_eq!(read(&mut bench, 0, 64 << 10), data);
        assert_eq!(bench.engine.usage().slots_used, used);
        if !merged {
            assert_eq!(read_layer(&mut bench, 1, 0, 64 << 10), content(1, 16));
            assert_eq!(changed(&mut bench, Some(1), None), [1]);
        }
    }
}

/// Crash states, seed 31591 state 68: a freeze was answered, and there was no layer. One of that name,
/// left by a crash, had been released and was about to merge.
#[test]
fn a_freeze_under_the_name_of_a_layer_that_still_merges_is_refused() {
    let mut bench = bench(Media::Ssd);
    write(&mut bench, 1, 0, content(1, 64));
    freeze(&mut bench, 9);
    write(&mut bench, 2, 4096, content(2, 40));
    let (replica, layer) = (replica(), layer(9));
    let released = bench.request(Request::Release { replica, layer });
    let frozen = bench.request(Request::Freeze { replica, layer });
    bench.run();
    assert_eq!(bench.outcome(released), Some(Ok(Outcome::Done)));
    assert_eq!(bench.outcome(frozen), Some(Err(OpError::Released)));
    bench.idle();
    freeze(&mut bench, 9);
    write(&mut bench, 3, 0, content(3, 64));
    assert_eq!(read_layer(&mut bench, 9, 4096, 40 << 12), content(2, 40));
}

#[test]
fn layers_are_bounded_and_go_with_their_replica() {
    let mut bench = bench(Media::Ssd);
    for raw in 0..LAYERS_MAX as u64 {
        write(&mut bench, raw + 1, 0, content(raw, 1));
        freeze(&mut bench, raw);
    }
    let one_more = Request::Freeze { replica: replica(), layer: layer(99) };
    assert_eq!(bench.ask(one_more.clone()), Err(OpError::Layers { max: LAYERS_MAX }));
    assert_eq!(bench.engine.usage().slots_used, LAYERS_MAX as u64);
    for raw in 0..LAYERS_MAX as u64 {
        assert_eq!(read_layer(&mut bench, raw, 0, 4096), content(raw, 1));
    }
    release(&mut bench, 3);
    assert_eq!(bench.ask(one_more), Ok(Outcome::Done));
    let mut bench = reopened(&bench, Media::Ssd);
    assert_eq!(read_layer(&mut bench, 4, 0, 4096), content(4, 1));
    let remove = Request::RemoveReplica { replica: replica() };
    assert_eq!(bench.ask(remove), Ok(Outcome::Done));
    let gone = Request::Layers { replica: replica() };
    assert_eq!(bench.ask(gone), Err(OpError::UnknownReplica));
    assert_eq!(reopened(&bench, Media::Ssd).engine.usage().slots_used, 0);
}

#[test]
fn a_write_over_a_layer_waits_for_space_until_a_layer_is_released() {
    let mut bench = bench(Media::Ssd);
    let total = bench.engine.usage().slots_total;
    let size = ByteCount::new(total << 16);
    let grow = Request::SetReplicaMeta { replica: replica(), size, meta: Bytes::new() };
    assert_eq!(bench.ask(grow), Ok(Outcome::Done));
    for extent in 0..total - 1 {
        write(&mut bench, 1 + extent, extent << 16, content(extent, 1));
    }
    freeze(&mut bench, 1);
    write(&mut bench, 9000, 4096, content(7, 1));
    let waits = bench.request(write_request(9001, (1 << 16) + 4096, content(8, 1)));
    let clears = bench.request(Request::Change {
        replica: replica(),
        mod_seq: seq(9002),
        offset: 2 << 16,
        change: Change::Zero { length: 64 << 10 },
    });
    bench.run();
    assert_eq!(bench.engine.usage().waiting_for_space, 2);
    release(&mut bench, 1);
    bench.run();
    for op in [waits, clears] {
        assert_eq!(bench.outcome(op), Some(Ok(Outcome::Done)));
    }
    assert_eq!(read(&mut bench, 4096, 4096), content(7, 1));
    assert_eq!(read(&mut bench, 1 << 16, 4096), content(1, 1));
    assert!(is_zero(&read(&mut bench, 2 << 16, 64 << 10)));
    assert_eq!(bench.engine.usage().slots_used, total - 2);
}

#[test]
fn a_drive_of_version_2_is_made_one_that_older_programs_refuse() {
    let mut bench = bench(Media::Ssd);
    write(&mut bench, 1, 0, content(1, 3));
    bench.cycle();
    let mut image = bench.drive.seen.clone();
    let halves = |image: &super::sim::Image| {
        [0, 4096].map(|at| Superblock::decode(&image.read(at, 4096)).expect("a superblock"))
    };
    for (block, half) in (0..).zip(halves(&image)) {
        assert_eq!(half.version, FormatVersion::V3);
        image.put(block, &Superblock { version: FormatVersion::V2, ..half }.encode());
    }
    let mut bench = Bench::open(geometry(Media::Ssd, 24 << 20), image);
    assert!(halves(&bench.drive.seen).iter().all(|half| half.version == FormatVersion::V3));
    assert_eq!(read(&mut bench, 0, 12 << 10), content(1, 3));
    freeze(&mut bench, 1);
    write(&mut bench, 2, 0, content(2, 1));
    let mut bench = reopened(&bench, Media::Ssd);
    assert_eq!(read_layer(&mut bench, 1, 0, 4096), content(1, 3).slice(..4096));
}

#[test]
fn a_repair_is_not_undone_by_a_merge_that_met_the_damage_before() {
    let mut bench = bench(Media::Ssd);
    write(&mut bench, 1, 0, content(1, 16));
    freeze(&mut bench, 1);
    write(&mut bench, 2, 4096, content(2, 1));
    bench.cycle();
    let units = describe(&mut bench);
    let slots = (0..4).map(|slot| layout(Media::Ssd).slot_offset(slot));
    let holds = |at: &u64| bench.drive.seen.read(*at, 4096) == content(1, 16).slice(..4096);
    let slot = slots.clone().find(holds).expect("it was written home");
    bench.drive.seen.rot(slot + (5 << 12));
    let released = bench.request(Request::Release { replica: replica(), layer: layer(1) });
    // Four times two runs of blocks are read for the merge.
    let is_read = |action: &Action| matches!(action, Action::ReadDrive { .. });
    let mut reads = 0;
    while reads < 7 {
        reads += usize::from(bench.under_way.front().is_some_and(is_read));
        bench.step(0);
    }
    // The last comes back, and then the image that repairs, while a batch is being written.
    let other = bench.request(write_request(3, 512 << 10, content(3, 1)));
    assert!(bench.under_way.front().is_some_and(is_read));
    bench.step(0);
    let mut whole = content(1, 16).to_vec();
    whole[4096..8192].copy_from_slice(&content(2, 1));
    let data = Bytes::from(whole);
    let install = Request::Install { replica: replica(), units, data: data.clone() };
    let repaired = bench.request(install);
    assert_eq!(bench.outcome(other), None);
    bench.run();
    for op in [released, other, repaired] {
        assert_eq!(bench.outcome(op), Some(Ok(Outcome::Done)));
    }
    assert_eq!(bench.engine.usage().layers, 0);
    assert_eq!(read(&mut bench, 0, 64 << 10), data);
}

#[test]
fn slots_of_a_layer_that_was_lost_do_not_come_back_with_its_number() {
    let mut bench = bench(Media::Ssd);
    write(&mut bench, 1, 0, content(1, 1));
    bench.cycle();
    freeze(&mut bench, 1);
    write(&mut bench, 2, 1 << 20, content(2, 1));
    bench.cycle();
    // The newer half of the row is lost, and with it that there is a layer.
    let reopen = |half| {
        let mut image = bench.drive.seen.clone();
        image.rot(layout(Media::Ssd).page_offset(0, half) + 100);
        Bench::open(geometry(Media::Ssd, 24 << 20), image)
    };
    let is_stale = |bench: &Bench| bench.opened.as_ref().expect("open")[0].stale;
    let mut bench = [0, 1].map(reopen).into_iter().find(is_stale).expect("one of them counts");
    assert!(is_zero(&read(&mut bench, 1 << 20, 4096)));
    // Its caller fills it from another replica, which holds nothing there.
    let size = ByteCount::new(SIZE);
    let filled = Request::SetReplicaMeta { replica: replica(), size, meta: Bytes::new() };
    assert_eq!(bench.ask(filled), Ok(Outcome::Done));
    freeze(&mut bench, 2);
    bench.cycle();
    let mut bench = reopened(&bench, Media::Ssd);
    assert!(!is_stale(&bench));
    assert!(is_zero(&read(&mut bench, 1 << 20, 4096)), "content of another time");
    let used = bench.engine.usage().slots_used;
    assert_eq!(used, 1);
}
