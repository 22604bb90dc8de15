//! What programs get, while nothing fails.

use bytes::Bytes;
use format::data::Status;

use super::bench::{BLOCK, Bench, What, replies, sent, sent_one, volume};
use crate::api::{Event, GuestError, GuestReply, GuestRequest};

const MIB: usize = 1 << 20;

#[test]
fn a_read_returns_what_the_primary_holds() {
    let mut bench = Bench::serving(16);
    let (token, actions) = bench.read(0, 2 * BLOCK);
    let read = sent_one(&actions);
    assert_eq!(read.what, What::Read(0, 8192));
    let actions = bench.reply_data(1, read.id, vec![7; 2 * BLOCK]);
    assert_eq!(replies(&actions), [(token, GuestReply::Data(vec![7; 2 * BLOCK].into()))]);
}

#[test]
fn a_read_of_any_bytes_is_cut_out_of_whole_blocks() {
    let mut bench = Bench::serving(16);
    let (token, actions) = bench.read(BLOCK - 2, BLOCK + 4);
    let read = sent_one(&actions);
    assert_eq!(read.what, What::Read(0, 3 * 4096));
    let data: Vec<u8> = (0..3 * BLOCK).map(|i| u8::try_from(i % 251).expect("small")).collect();
    let actions = bench.reply_data(1, read.id, data.clone());
    let wanted = Bytes::copy_from_slice(&data[BLOCK - 2..2 * BLOCK + 2]);
    assert_eq!(replies(&actions), [(token, GuestReply::Data(wanted))]);
}

#[test]
fn a_long_read_is_put_together_whatever_the_order_of_the_answers() {
    let mut bench = Bench::serving(1024);
    let (token, actions) = bench.read(MIB / 2, 2 * MIB);
    let reads = sent(&actions);
    let parts: Vec<What> = reads.iter().map(|r| r.what.clone()).collect();
    assert_eq!(
        parts,
        [What::Read(1 << 19, 1 << 19), What::Read(1 << 20, 1 << 20), What::Read(1 << 21, 1 << 19)]
    );
    bench.reply_data(1, reads[2].id, vec![3; MIB / 2]);
    bench.reply_data(1, reads[0].id, vec![1; MIB / 2]);
    let actions = bench.reply_data(1, reads[1].id, vec![2; MIB]);
    let whole = [vec![1; MIB / 2], vec![2; MIB], vec![3; MIB / 2]].concat();
    assert_eq!(replies(&actions), [(token, GuestReply::Data(whole.into()))]);
}

#[test]
fn partial_block_write_reads_first() {
    let mut bench = Bench::serving(16);
    let (token, actions) = bench.write(BLOCK + 10, b"hello");
    let read = sent_one(&actions);
    assert_eq!(read.what, What::Read(4096, 4096));
    let actions = bench.reply_data(1, read.id, vec![b'.'; BLOCK]);
    let write = sent_one(&actions);
    let mut block = vec![b'.'; BLOCK];
    block[10..15].copy_from_slice(b"hello");
    assert_eq!(write.what, What::Write(4096, block.into()));
    assert!(write.id.request > read.id.request);
    let actions = bench.reply(1, write.id, Status::Ok);
    assert_eq!(replies(&actions), [(token, GuestReply::Done)]);
}

#[test]
fn an_unaligned_write_patches_its_edges_and_writes_the_middle() {
    let mut bench = Bench::serving(16);
    let (token, actions) = bench.write(BLOCK - 1, &vec![5; 2 * BLOCK + 2]);
    let outs = sent(&actions);
    let what: Vec<What> = outs.iter().map(|o| o.what.clone()).collect();
    let middle = What::Write(4096, vec![5; 2 * BLOCK].into());
    assert_eq!(what, [What::Read(0, 4096), middle, What::Read(3 * 4096, 4096)]);
    let first = sent_one(&bench.reply_data(1, outs[0].id, vec![0; BLOCK]));
    let last = sent_one(&bench.reply_data(1, outs[2].id, vec![0; BLOCK]));
    let edge = |at: usize| {
        let mut block = vec![0; BLOCK];
        block[at] = 5;
        Bytes::from(block)
    };
    assert_eq!(first.what, What::Write(0, edge(BLOCK - 1)));
    assert_eq!(last.what, What::Write(3 * 4096, edge(0)));
    bench.reply(1, first.id, Status::Ok);
    bench.reply(1, last.id, Status::Ok);
    let actions = bench.reply(1, outs[1].id, Status::Ok);
    assert_eq!(replies(&actions), [(token, GuestReply::Done)]);
}

#[test]
fn overlapping_changes_wait_for_each_other_and_reads_do_not() {
    let mut bench = Bench::serving(16);
    let (_, actions) = bench.write(0, &vec![1; 2 * BLOCK]);
    let first = sent_one(&actions);
    let (_, actions) = bench.write(BLOCK, &vec![2; BLOCK]);
    assert_eq!(sent(&actions), []);
    let (_, actions) = bench.write(BLOCK, b"abc");
    assert_eq!(sent(&actions), []);
    let (_, actions) = bench.read(0, BLOCK);
    sent_one(&actions);
    let (_, actions) = bench.write(5 * BLOCK, &vec![3; BLOCK]);
    sent_one(&actions);
    let second = sent_one(&bench.reply(1, first.id, Status::Ok));
    assert_eq!(second.what, What::Write(4096, vec![2; BLOCK].into()));
    let third = sent_one(&bench.reply(1, second.id, Status::Ok));
    assert_eq!(third.what, What::Read(4096, 4096));
}

#[test]
fn zeroing_covers_exactly_what_was_asked_and_trim_whole_blocks() {
    let mut bench = Bench::serving(16);
    let zeroes = GuestRequest::WriteZeroes { offset: 100, length: 8192 };
    let (_, actions) = bench.ask(zeroes);
    let what: Vec<What> = sent(&actions).into_iter().map(|o| o.what).collect();
    assert_eq!(what, [What::Read(0, 4096), What::Zero(4096, 4096), What::Read(8192, 4096)]);

    let mut bench = Bench::serving(16);
    let (token, actions) = bench.ask(GuestRequest::Trim { offset: 100, length: 8192 });
    let trim = sent_one(&actions);
    assert_eq!(trim.what, What::Zero(4096, 4096));
    let actions = bench.reply(1, trim.id, Status::Ok);
    assert_eq!(replies(&actions), [(token, GuestReply::Done)]);
    let (token, actions) = bench.ask(GuestRequest::Trim { offset: 1, length: 8000 });
    assert_eq!(sent(&actions), []);
    assert_eq!(replies(&actions), [(token, GuestReply::Done)]);
}

#[test]
fn a_long_zero_is_cut_at_multiples_of_256_mib() {
    let mut bench = Bench::serving(300 << 8);
    let (_, actions) = bench.ask(GuestRequest::Trim { offset: 0, length: 300 << 20 });
    let what: Vec<What> = sent(&actions).into_iter().map(|o| o.what).collect();
    assert_eq!(what, [What::Zero(0, 256 << 20), What::Zero(256 << 20, 44 << 20)]);
}

#[test]
fn block_status_merges_runs_and_covers_what_was_asked() {
    let mut bench = Bench::serving(16);
    let (token, actions) = bench.ask(GuestRequest::BlockStatus { offset: 100, length: 39_000 });
    let query = sent_one(&actions);
    assert_eq!(query.what, What::Query(0, 10 * 4096));
    let bitmap = Bytes::from(vec![0b1110_0011, 0b0000_0001]);
    let actions = bench.answer(1, query.id, Status::Ok, vec![], bitmap);
    // Blocks 2 to 4 and 9 are holes.
    let runs =
        vec![(8192 - 100, false), (3 * 4096, true), (4 * 4096, false), (39_100 - 9 * 4096, true)];
    assert_eq!(runs.iter().map(|r| r.0).sum::<u32>(), 39_000);
    assert_eq!(replies(&actions), [(token, GuestReply::Blocks(runs))]);
}

#[test]
fn block_status_beyond_a_gib_joins_two_queries() {
    let gib = 1usize << 30;
    let mut bench = Bench::serving(2 * gib / BLOCK);
    let offset = u64::try_from(gib - 3 * BLOCK).expect("fits");
    let (token, actions) = bench.ask(GuestRequest::BlockStatus { offset, length: 5 * 4096 });
    let queries = sent(&actions);
    assert_eq!(queries[0].what, What::Query(offset, 3 * 4096));
    assert_eq!(queries[1].what, What::Query(1 << 30, 2 * 4096));
    bench.answer(1, queries[1].id, Status::Ok, vec![], Bytes::from_static(&[0b10]));
    // Spare bits are set: they must not count.
    let last = Bytes::from_static(&[0b1111_1011]);
    let actions = bench.answer(1, queries[0].id, Status::Ok, vec![], last);
    let runs = vec![(2 * 4096, false), (2 * 4096, true), (4096, false)];
    assert_eq!(replies(&actions), [(token, GuestReply::Blocks(runs))]);
}

#[test]
fn requests_beyond_the_end_are_refused_and_empty_ones_done() {
    let mut bench = Bench::serving(2);
    let out_of_range = GuestReply::Failed(GuestError::OutOfRange);
    let (token, actions) = bench.read(BLOCK, BLOCK + 1);
    assert_eq!(replies(&actions), [(token, out_of_range.clone())]);
    let (token, actions) = bench.ask(GuestRequest::Trim { offset: u64::MAX, length: 2 });
    assert_eq!(replies(&actions), [(token, out_of_range)]);
    let (token, actions) = bench.read(5, 0);
    assert_eq!(replies(&actions), [(token, GuestReply::Data(Bytes::new()))]);
    let (token, actions) = bench.write(5, b"");
    assert_eq!(replies(&actions), [(token, GuestReply::Done)]);
    let (token, actions) = bench.ask(GuestRequest::Flush);
    assert_eq!(replies(&actions), [(token, GuestReply::Done)]);
}

#[test]
fn a_bad_block_fails_that_request_alone() {
    let mut bench = Bench::serving(16);
    let (bad, actions) = bench.read(0, BLOCK);
    let bad_read = sent_one(&actions);
    let (good, actions) = bench.read(BLOCK, BLOCK);
    let good_read = sent_one(&actions);
    let actions = bench.reply(1, bad_read.id, Status::BadBlock);
    assert_eq!(replies(&actions), [(bad, GuestReply::Failed(GuestError::BadBlock))]);
    let actions = bench.reply_data(1, good_read.id, vec![1; BLOCK]);
    assert_eq!(replies(&actions), [(good, GuestReply::Data(vec![1; BLOCK].into()))]);
}

#[test]
fn no_more_than_the_limit_is_in_flight_and_all_is_answered() {
    let mut bench = Bench::serving(8192);
    let mut pending = Vec::new();
    let mut answered = 0;
    for number in 0..3000 {
        let (_, actions) = bench.read(number * BLOCK, BLOCK);
        pending.extend(sent(&actions));
    }
    assert_eq!(pending.len(), 1024);
    while let Some(out) = pending.pop() {
        let actions = bench.reply_data(1, out.id, vec![0; BLOCK]);
        pending.extend(sent(&actions));
        answered += replies(&actions).len();
        assert!(pending.len() <= 1024);
    }
    assert_eq!(answered, 3000);
}

#[test]
fn bytes_in_flight_are_bounded() {
    let mut bench = Bench::serving(100 << 8);
    let mut pending = 0;
    for number in 0..100 {
        let (_, actions) = bench.read(number * MIB, MIB);
        pending += sent(&actions).len();
    }
    assert_eq!(pending, 64);
}

#[test]
fn nothing_is_begun_for_guests_that_are_gone() {
    let mut bench = Bench::serving(16);
    let (first, actions) = bench.write(0, &vec![1; BLOCK]);
    let sent_first = sent_one(&actions);
    let (second, _) = bench.write(8 * BLOCK, &vec![1; BLOCK]);
    bench.event(Event::GuestGone { volume: volume(), tokens: vec![first, second] });
    let actions = bench.reply(1, sent_first.id, Status::Ok);
    assert_eq!(replies(&actions), []);
    // Its blocks are free again.
    let (_, actions) = bench.write(0, &vec![1; BLOCK]);
    sent_one(&actions);
}
