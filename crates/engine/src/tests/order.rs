//! Orders of events that random histories seldom meet.

use bytes::Bytes;
use format::data::{Change, UnitMeta};
use model::{id::ReplicaId, units::ByteCount, volume::Media};

use super::{
    cases::{bench, content, crcs, read, replica, seq, write, write_request, zero},
    sim::{Bench, Image, geometry},
};
use crate::api::{Action, Durability, Event, OpError, OpToken, Outcome, Request};

/// A replica on a drive with few slots, all of them used.
fn full() -> (Bench, u64) {
    let mut bench = Bench::open(geometry(Media::Hdd, 12 << 20), Image::default());
    let size = ByteCount::new(64 << 20);
    let request = Request::CreateReplica { replica: replica(), size, meta: "".into() };
    assert_eq!(bench.ask(request), Ok(Outcome::Done));
    let slots = bench.engine.usage().slots_total;
    for slot in 0..slots {
        write(&mut bench, 1, slot << 20, content(slot, 256));
    }
    bench.cycle();
    (bench, slots)
}

fn whole(at: u64, tag: u64) -> Request {
    let data = content(tag, 256);
    let change = Change::Write { crcs: crcs(&data), data };
    Request::Change { replica: replica(), mod_seq: seq(tag), offset: at << 20, change }
}

/// Where the action at `index` writes, unless it is durable.
fn lazy_write(bench: &Bench, index: usize) -> Option<u64> {
    match bench.under_way.get(index) {
        Some(&Action::WriteDrive { offset, durability: Durability::Later, .. }) => Some(offset),
        _ => None,
    }
}

#[test]
fn a_slot_is_not_used_again_while_a_home_write_to_it_is_under_way() {
    let (mut bench, slots) = full();
    write(&mut bench, 2, 4096, content(90, 1));
    bench.engine.want_cycle();
    bench.event(Event::TimeReached);
    let home = lazy_write(&bench, 0).expect("the home write");
    // It is held, while its slot is freed and somebody waits for one.
    let held = bench.under_way.pop_front().expect("found above");
    zero(&mut bench, 3, 0, 1 << 20);
    let waiting = bench.request(whole(slots, 91));
    bench.run();
    assert_eq!(bench.outcome(waiting), None, "no slot is free");
    bench.under_way.push_front(held);
    bench.run();
    assert_eq!(bench.outcome(waiting), Some(Ok(Outcome::Done)));
    assert!(read(&mut bench, slots << 20, 1 << 20) == content(91, 256), "{home}");
}

#[test]
fn a_slot_is_not_used_again_before_it_is_durably_free() {
    let (mut bench, slots) = full();
    write(&mut bench, 2, 4096, content(90, 1));
    bench.engine.want_cycle();
    bench.event(Event::TimeReached);
    assert!(lazy_write(&bench, 0).is_some(), "the home write");
    let change = Change::Zero { length: 1 << 20 };
    let (mod_seq, offset) = (seq(3), 1 << 20);
    let zeroed = bench.request(Request::Change { replica: replica(), mod_seq, offset, change });
    // The home write completes while the batch that frees a slot is under way.
    bench.step(0);
    let late = bench.request(whole(slots, 91));
    assert_eq!(bench.outcome(zeroed), None);
    let lazy = (0..bench.under_way.len()).filter_map(|index| lazy_write(&bench, index));
    assert_eq!(lazy.filter(|&offset| offset > 4 << 20).count(), 0, "the payload waits for a slot");
    bench.run();
    assert_eq!(bench.outcome(zeroed), Some(Ok(Outcome::Done)));
    assert_eq!(bench.outcome(late), Some(Ok(Outcome::Done)));
}

#[test]
fn changes_that_came_in_one_turn_become_durable_together() {
    let mut bench = bench(Media::Ssd);
    let mut out = Vec::new();
    for number in 1..=5 {
        let request = write_request(number, 4096 * number, content(number, 1));
        let token = OpToken(100 + number);
        bench.engine.handle(bench.now, Event::Requested { token, request }, &mut out);
        assert_eq!((out.len(), bench.engine.deadline()), (0, Some(bench.now)), "the turn goes on");
    }
    bench.event(Event::TimeReached);
    let writes = |action: &&Action| matches!(action, Action::WriteDrive { .. });
    assert_eq!(bench.under_way.iter().filter(writes).count(), 1, "one batch");
    // While it is written, there is nothing to do at the end of a turn.
    let request = write_request(6, 0, content(6, 1));
    bench.engine.handle(bench.now, Event::Requested { token: OpToken(106), request }, &mut out);
    assert_ne!(bench.engine.deadline(), Some(bench.now));
    bench.run();
    assert!((101..=106).all(|token| bench.outcome(OpToken(token)) == Some(Ok(Outcome::Done))));
    assert!(read(&mut bench, 4096 * 5, 4096) == content(5, 1));
}

#[test]
fn a_repeated_change_does_not_take_mod_seq_back() {
    for media in [Media::Ssd, Media::Hdd] {
        let mut bench = bench(media);
        let mod_seq = |bench: &mut Bench| {
            let request = Request::Describe { replica: replica(), offset: 0, length: 1 << 20 };
            let Ok(Outcome::Described { units }) = bench.ask(request) else { panic!("describe") };
            units.iter().map(|unit| unit.mod_seq.raw()).max().expect("a unit")
        };
        write(&mut bench, 5, 0, content(1, 1));
        write(&mut bench, 7, 4096, content(2, 1));
        write(&mut bench, 5, 0, content(1, 1));
        assert_eq!(mod_seq(&mut bench), 7);
        write(&mut bench, 9, 0, content(3, 256));
        write(&mut bench, 8, 0, content(3, 256));
        assert_eq!(mod_seq(&mut bench), 9);
        zero(&mut bench, 4, 0, 8192);
        assert_eq!(mod_seq(&mut bench), 9);
    }
}

#[test]
fn requests_that_come_before_the_drive_is_open_are_answered_after_it() {
    let mut bench = Bench::start(geometry(Media::Ssd, 24 << 20), Image::default());
    let size = ByteCount::new(1 << 20);
    let id = ReplicaId::from_raw(3);
    let early = bench.request(Request::CreateReplica { replica: id, size, meta: "".into() });
    assert_eq!(bench.opened, None);
    bench.run();
    assert_eq!(bench.opened, Some(vec![]));
    assert_eq!(bench.outcome(early), Some(Ok(Outcome::Done)));
}

#[test]
fn a_row_is_not_written_before_the_records_that_changed_it_are_durable() {
    let mut bench = bench(Media::Ssd);
    write(&mut bench, 1, 0, content(1, 1));
    // Its row is on the drive, and is written again.
    for meta in ["one", "two"] {
        bench.cycle();
        let (size, meta) = (ByteCount::new(4 << 20), meta.into());
        let request = Request::SetReplicaMeta { replica: replica(), size, meta };
        assert_eq!(bench.ask(request), Ok(Outcome::Done));
    }
    bench.cycle();
    assert_eq!(bench.engine.usage().pages_read, 0, "rows are in memory");
    bench.request(Request::RemoveReplica { replica: replica() });
    let removal = bench.under_way.pop_front().expect("its batch, which a crash loses");
    bench.engine.want_cycle();
    bench.event(Event::TimeReached);
    bench.run();
    let mut again = super::cases::reopened(&bench, Media::Ssd);
    assert!(read(&mut again, 0, 4096) == content(1, 1), "{removal:?}");
}

#[test]
fn slots_of_a_removed_replica_come_back_in_parts_between_requests() {
    let mut bench = Bench::open(geometry(Media::Ssd, 320 << 20), Image::default());
    let create = |raw: u64| Request::CreateReplica {
        replica: ReplicaId::from_raw(raw),
        size: ByteCount::new(1 << 30),
        meta: "".into(),
    };
    assert_eq!(bench.ask(create(replica().raw())), Ok(Outcome::Done));
    assert_eq!(bench.ask(create(7)), Ok(Outcome::Done));
    let slots = bench.engine.usage().slots_total;
    assert!(slots > 4000, "{slots}");
    for at in (0..slots).step_by(16) {
        let count = usize::try_from(16.min(slots - at)).expect("small");
        write(&mut bench, 1, at << 16, content(at, 16 * count));
    }
    // Its content waits in the journal, and so does somebody for its slots.
    write(&mut bench, 2, 0, content(2, 1));
    let to = |extent: u64, tag| {
        let data = content(tag, 16);
        let change = Change::Write { crcs: crcs(&data), data };
        let replica = ReplicaId::from_raw(7);
        Request::Change { replica, mod_seq: seq(tag), offset: extent << 16, change }
    };
    let waiting = bench.request(to(0, 3));
    bench.run();
    assert_eq!(bench.outcome(waiting), None, "no slot is free");
    let removal = bench.request(Request::RemoveReplica { replica: replica() });
    let is_done = |bench: &Bench| bench.completed.iter().any(|(token, _)| *token == removal);
    while !is_done(&bench) {
        bench.step(0);
    }
    assert_eq!(bench.engine.deadline(), Some(bench.now), "some are not back yet");
    bench.run();
    assert_eq!(bench.outcome(waiting), Some(Ok(Outcome::Done)), "the first of them are enough");
    let mut steps = 0;
    while bench.engine.deadline() == Some(bench.now) {
        let begun = bench.engine.usage();
        bench.event(Event::TimeReached);
        bench.run();
        assert!(bench.engine.usage().memory_bytes <= begun.memory_bytes);
        steps += 1;
    }
    assert!(steps < 8, "{steps} steps for {slots} slots");
    // All of them can be used again.
    for extent in 1..slots {
        let op = bench.request(to(extent, 3 + extent));
        bench.run();
        assert_eq!(bench.outcome(op), Some(Ok(Outcome::Done)), "extent {extent} of {slots}");
    }
    assert_eq!(bench.engine.usage().slots_used, slots);
}

fn other() -> ReplicaId {
    ReplicaId::from_raw(0xb2)
}

fn create_other(bench: &mut Bench, size: u64) {
    let size = ByteCount::new(size);
    let request = Request::CreateReplica { replica: other(), size, meta: "".into() };
    assert_eq!(bench.ask(request), Ok(Outcome::Done));
}

fn write_other(mod_seq: u64, offset: u64, data: Bytes) -> Request {
    let change = Change::Write { crcs: crcs(&data), data };
    Request::Change { replica: other(), mod_seq: seq(mod_seq), offset, change }
}

#[test]
fn a_change_that_waits_for_space_does_not_outlive_its_replica() {
    let (mut bench, _) = full();
    create_other(&mut bench, 4 << 20);
    // Its replica has nothing: no slot becomes free with it.
    let waits = bench.request(write_other(1, 0, content(91, 1)));
    bench.run();
    assert_eq!(bench.engine.usage().waiting_for_space, 1);
    let removed = bench.request(Request::RemoveReplica { replica: other() });
    assert_eq!(bench.outcome(waits), None, "the removal may still be lost");
    bench.run();
    assert_eq!(bench.outcome(removed), Some(Ok(Outcome::Done)));
    assert_eq!(bench.outcome(waits), Some(Err(OpError::UnknownReplica)));
    assert_eq!(bench.engine.usage().waiting_for_space, 0);
}

#[test]
fn a_change_of_a_removed_replica_does_not_show_in_one_that_is_made_again() {
    let (mut bench, _) = full();
    create_other(&mut bench, 4 << 20);
    let waits = bench.request(write_other(1, 3 << 20, content(91, 1)));
    bench.run();
    // Both wait for a batch, and go into one.
    write(&mut bench, 2, 0, content(92, 1));
    let first = bench.request(super::cases::write_request(3, 0, content(93, 1)));
    let removed = bench.request(Request::RemoveReplica { replica: other() });
    let (size, meta) = (ByteCount::new(1 << 20), Bytes::new());
    let made = bench.request(Request::CreateReplica { replica: other(), size, meta });
    let room = bench.request(super::cases::zero_request(4, 0, 1 << 20));
    bench.run();
    for op in [first, removed, made, room] {
        assert_eq!(bench.outcome(op), Some(Ok(Outcome::Done)));
    }
    assert_eq!(bench.outcome(waits), Some(Err(OpError::UnknownReplica)));
    assert_eq!(bench.engine.allocated(other()), ByteCount::ZERO);
}

#[test]
fn a_slot_that_a_refused_change_gives_back_goes_to_who_waits_for_one() {
    let (mut bench, slots) = full();
    create_other(&mut bench, 4 << 20);
    zero(&mut bench, 2, 0, 1 << 20);
    bench.idle();
    // It takes the only slot, and nobody makes its record any more.
    let first = bench.request(write_other(1, 0, content(91, 256)));
    assert!(lazy_write(&bench, 0).is_some(), "its payload");
    let payload = bench.under_way.pop_front().expect("found above");
    let waits = bench.request(whole(slots, 92));
    bench.run();
    assert_eq!(bench.outcome(waits), None);
    assert_eq!(bench.ask(Request::RemoveReplica { replica: other() }), Ok(Outcome::Done));
    bench.under_way.push_front(payload);
    bench.run();
    assert_eq!(bench.outcome(first), Some(Err(OpError::UnknownReplica)));
    assert_eq!(bench.outcome(waits), Some(Ok(Outcome::Done)));
}

#[test]
fn a_slot_that_an_image_does_not_need_any_more_goes_to_who_waits_for_one() {
    let (mut bench, slots) = full();
    zero(&mut bench, 2, 0, 2 << 20);
    bench.idle();
    // Its extent gets the other slot while its payload is on its way to this one.
    let data = content(91, 16);
    let unit = UnitMeta {
        offset: slots << 20,
        mod_seq: seq(3),
        valid: vec![0xff, 0xff],
        crcs: crcs(&data),
    };
    let installed = bench.request(Request::Install {
        replica: replica(),
        units: vec![unit],
        data: data.clone(),
    });
    assert!(lazy_write(&bench, 0).is_some(), "its payload");
    let payload = bench.under_way.pop_front().expect("found above");
    write(&mut bench, 4, (slots << 20) + (1 << 19), content(92, 1));
    let waits = bench.request(whole(slots + 1, 93));
    bench.run();
    assert_eq!(bench.outcome(waits), None);
    bench.under_way.push_front(payload);
    bench.run();
    assert_eq!(bench.outcome(installed), Some(Ok(Outcome::Done)));
    assert_eq!(bench.outcome(waits), Some(Ok(Outcome::Done)));
    assert!(read(&mut bench, slots << 20, 64 << 10) == data);
}

/// btrfs, ZFS and others leave their first blocks alone.
#[test]
fn a_drive_that_begins_with_zeros_and_holds_something_else_is_not_formatted() {
    let shape = geometry(Media::Ssd, 64 << 20);
    for block in [2, 9, 15, 16] {
        let mut image = Image::default();
        image.put(block, &[7; 4096]);
        let mut bench = Bench::start(shape, image.clone());
        bench.run();
        let reason = bench.out_of_service.as_ref().expect("it must be refused");
        assert!(reason.contains("somebody else's"), "{reason}");
        for block in 0..64 {
            assert_eq!(bench.seen().0.read(block << 12, 4096), image.read(block << 12, 4096));
        }
    }
    // Ours, whose superblocks somebody wiped, is: that is how a drive is given up.
    let mut bench = Bench::open(shape, Image::default());
    let size = ByteCount::new(64 << 20);
    let request = Request::CreateReplica { replica: replica(), size, meta: "".into() };
    assert_eq!(bench.ask(request), Ok(Outcome::Done));
    write(&mut bench, 1, 0, content(1, 16));
    bench.cycle();
    let mut image = bench.seen().0;
    image.put(0, &[0; 4096]);
    image.put(1, &[0; 4096]);
    let mut bench = Bench::open(shape, image);
    let request = Request::Layers { replica: replica() };
    assert_eq!(bench.ask(request), Err(OpError::UnknownReplica));
}
