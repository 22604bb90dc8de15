//! What programs do not notice.

use std::time::Duration;

use bytes::Bytes;
use format::{
    ctl::{FromManager, ToManager},
    data::{DataMessage, Status},
};
use model::id::ReplicaId;

use super::bench::{
    BLOCK, Bench, What, attach, attach_other, opening, replies, sent, sent_one, server, to_manager,
};
use crate::api::{Action, Event, GuestReply};

/// The manager has made server `to` the primary under `epoch`; its session is open.
fn fail_over(bench: &mut Bench, epoch: u64, to: usize) -> Vec<Action> {
    bench.manager(FromManager::Attach(attach(epoch, to, 16)));
    let id = bench.link_up(to);
    bench.reply(to, id, Status::Ok)
}

#[test]
fn request_is_sent_again_to_the_new_primary() {
    let mut bench = Bench::serving(16);
    let (token, actions) = bench.write(0, &vec![1; BLOCK]);
    let first = sent_one(&actions);
    bench.event(Event::LinkDown { server: server(1) });
    let actions = bench.manager(FromManager::Attach(attach(2, 2, 16)));
    assert!(
        actions.iter().any(|a| matches!(a, Action::Connect { server: s, .. } if *s == server(2)))
    );
    assert!(actions.contains(&Action::Disconnect { server: server(1) }));
    let id = bench.link_up(2);
    let again = sent_one(&bench.reply(2, id, Status::Ok));
    assert_eq!(again.server, server(2));
    assert_eq!((again.id, &again.what, again.epoch), (first.id, &first.what, 2));
    let actions = bench.reply(2, again.id, Status::Ok);
    assert_eq!(replies(&actions), [(token, GuestReply::Done)]);
}

#[test]
fn nothing_is_sent_before_the_session_is_open() {
    let mut bench = Bench::serving(16);
    bench.event(Event::LinkDown { server: server(1) });
    let (_, actions) = bench.write(0, &vec![1; BLOCK]);
    assert_eq!(sent(&actions), []);
    let actions = bench.event(Event::LinkUp { server: server(1) });
    let id = opening(&actions);
    assert_eq!(sent(&actions), []);
    let (_, actions) = bench.read(0, BLOCK);
    assert_eq!(sent(&actions), []);
    assert_eq!(sent(&bench.reply(1, id, Status::Ok)).len(), 2);
}

#[test]
fn everything_unanswered_is_sent_again_in_order() {
    let mut bench = Bench::serving(16);
    let mut outs = Vec::new();
    for block in [5, 2, 9, 1] {
        let (_, actions) = bench.write(block * BLOCK, &vec![1; BLOCK]);
        outs.push(sent_one(&actions));
    }
    bench.reply(1, outs[1].id, Status::Ok);
    bench.event(Event::LinkDown { server: server(1) });
    let again = sent(&fail_over(&mut bench, 2, 2));
    let ids: Vec<u64> = again.iter().map(|o| o.id.request).collect();
    let wanted: Vec<u64> = [0, 2, 3].map(|i: usize| outs[i].id.request).to_vec();
    assert_eq!(ids, wanted);
}

#[test]
fn overlapping_writes_keep_their_order_across_failover() {
    let mut bench = Bench::serving(16);
    let (_, actions) = bench.write(0, &vec![1; BLOCK]);
    let first = sent_one(&actions);
    let (second, actions) = bench.write(0, &vec![2; BLOCK]);
    assert_eq!(sent(&actions), []);
    bench.event(Event::LinkDown { server: server(1) });
    let again = sent_one(&fail_over(&mut bench, 2, 2));
    assert_eq!(again.what, first.what);
    let next = sent_one(&bench.reply(2, again.id, Status::Ok));
    assert_eq!(next.what, What::Write(0, vec![2; BLOCK].into()));
    let actions = bench.reply(2, next.id, Status::Ok);
    assert_eq!(replies(&actions), [(second, GuestReply::Done)]);
}

#[test]
fn late_reply_of_the_old_primary_is_dropped() {
    let mut bench = Bench::serving(16);
    let (token, actions) = bench.read(0, BLOCK);
    let first = sent_one(&actions);
    let again = sent_one(&fail_over(&mut bench, 2, 2));
    let actions = bench.reply_data(1, first.id, vec![1; BLOCK]);
    assert_eq!(actions, []);
    let actions = bench.reply_data(2, again.id, vec![2; BLOCK]);
    assert_eq!(replies(&actions), [(token, GuestReply::Data(vec![2; BLOCK].into()))]);
    assert_eq!(bench.reply_data(2, again.id, vec![2; BLOCK]), []);
}

#[test]
fn an_answer_before_the_session_is_open_again_is_dropped() {
    let mut bench = Bench::serving(16);
    let (_, actions) = bench.read(0, BLOCK);
    let first = sent_one(&actions);
    bench.event(Event::LinkDown { server: server(1) });
    bench.link_up(1);
    assert_eq!(bench.reply_data(1, first.id, vec![1; BLOCK]), []);
}

#[test]
fn a_foreign_session_is_not_ours() {
    let mut bench = Bench::serving(16);
    let (_, actions) = bench.write(0, &vec![1; BLOCK]);
    let mut id = sent_one(&actions).id;
    id.session ^= 1;
    assert_eq!(bench.reply(1, id, Status::Ok), []);
    assert_eq!(bench.reply(1, id, Status::Fenced), []);
}

#[test]
fn what_was_moved_is_tried_again_with_growing_waits_and_at_once_under_a_new_configuration() {
    let mut bench = Bench::serving(16);
    let (token, actions) = bench.write(0, &vec![1; BLOCK]);
    bench.reply(1, sent_one(&actions).id, Status::Moved);
    let mut waits = Vec::new();
    for _ in 0..9 {
        let before = bench.now;
        let at = bench.node.deadline().expect("a retry");
        bench.now = at.min(before + Duration::from_millis(500));
        waits.push(bench.now.since(before).as_millis());
        let mut actions = bench.event(Event::TimeReached);
        actions.retain(|a| matches!(a, Action::Send { .. }));
        if !actions.is_empty() {
            bench.reply(1, opening(&actions), Status::NotReady);
        }
    }
    assert_eq!(waits[..7], [5, 10, 20, 40, 80, 160, 185], "a beat comes at 500 ms");
    let actions = bench.manager(FromManager::Attach(attach(2, 1, 16)));
    let id = opening(&actions);
    let again = sent_one(&bench.reply(1, id, Status::Ok));
    let actions = bench.reply(1, again.id, Status::Ok);
    assert_eq!(replies(&actions), [(token, GuestReply::Done)]);
}

#[test]
fn a_new_configuration_under_the_same_primary_leaves_what_is_in_flight() {
    let mut bench = Bench::serving(16);
    let (token, actions) = bench.write(0, &vec![1; BLOCK]);
    let first = sent_one(&actions);
    let actions = bench.manager(FromManager::Attach(attach(2, 1, 16)));
    let id = opening(&actions);
    assert_eq!(sent(&bench.reply(1, id, Status::Ok)), []);
    let actions = bench.reply(1, first.id, Status::Ok);
    assert_eq!(replies(&actions), [(token, GuestReply::Done)]);
}

#[test]
fn a_primary_that_moves_within_its_server_is_sent_everything_again() {
    let mut bench = Bench::serving(16);
    let (token, actions) = bench.write(0, &vec![1; BLOCK]);
    let first = sent_one(&actions);
    let mut moved = attach(2, 1, 16);
    moved.config.members[0].replica = ReplicaId::from_raw(77);
    let id = opening(&bench.manager(FromManager::Attach(moved)));
    let again = sent_one(&bench.reply(1, id, Status::Ok));
    assert_eq!((again.id, again.epoch), (first.id, 2));
    let actions = bench.reply(1, again.id, Status::Ok);
    assert_eq!(replies(&actions), [(token, GuestReply::Done)]);
}

#[test]
fn what_stays_unanswered_after_a_new_configuration_is_sent_again() {
    let mut bench = Bench::serving(16);
    let (_, actions) = bench.write(0, &vec![1; BLOCK]);
    let first = sent_one(&actions);
    let id = opening(&bench.manager(FromManager::Attach(attach(2, 1, 16))));
    bench.reply(1, id, Status::Ok);
    let again = sent_one(&bench.pass(Duration::from_secs(6)));
    assert_eq!((again.id, again.epoch), (first.id, 2));
}

#[test]
fn an_older_configuration_changes_nothing() {
    let mut bench = Bench::serving(16);
    fail_over(&mut bench, 3, 2);
    assert_eq!(bench.manager(FromManager::Attach(attach(2, 1, 16))), []);
    let (_, actions) = bench.write(0, &vec![1; BLOCK]);
    assert_eq!(sent_one(&actions).server, server(2));
}

#[test]
fn a_silent_primary_is_reported_each_second() {
    let mut bench = Bench::serving(16);
    let silent = |actions: &[Action]| {
        let messages = to_manager(actions);
        messages.iter().filter(|m| matches!(m, ToManager::PrimarySilent { .. })).count()
    };
    assert_eq!(silent(&bench.pass(Duration::from_secs(60))), 0, "idle is not silent");
    let (_, actions) = bench.write(0, &vec![1; BLOCK]);
    let out = sent_one(&actions);
    assert_eq!(silent(&bench.pass(Duration::from_millis(1999))), 0);
    assert_eq!(silent(&bench.pass(Duration::from_millis(1))), 1);
    assert_eq!(silent(&bench.pass(Duration::from_secs(3))), 3);
    bench.reply(1, out.id, Status::Ok);
    assert_eq!(silent(&bench.pass(Duration::from_secs(60))), 0);
    bench.event(Event::LinkDown { server: server(1) });
    assert_eq!(silent(&bench.pass(Duration::from_millis(2500))), 1);
}

#[test]
fn a_silent_primary_is_asked_whether_it_is_there_and_the_manager_is_told() {
    let mut bench = Bench::serving(16);
    bench.write(0, &vec![1; BLOCK]);
    let told = |actions: &[Action]| {
        let out_of_reach = to_manager(actions).into_iter().find_map(|message| match message {
            ToManager::PrimarySilent { out_of_reach, .. } => Some(out_of_reach),
            _ => None,
        });
        let asked =
            actions.contains(&Action::Send { server: server(1), message: DataMessage::Ping });
        (out_of_reach, asked)
    };
    // Nobody knows yet, so it is asked; it says nothing; then it does.
    assert_eq!(told(&bench.pass(Duration::from_secs(2))), (Some(false), true));
    assert_eq!(told(&bench.pass(Duration::from_secs(1))), (Some(true), true));
    let pong = DataMessage::Pong;
    bench.event(Event::LinkReceived { server: server(1), message: pong });
    assert_eq!(told(&bench.pass(Duration::from_secs(1))), (Some(false), true));
    bench.event(Event::LinkDown { server: server(1) });
    assert_eq!(told(&bench.pass(Duration::from_secs(1))), (Some(true), false));
}

#[test]
fn a_damaged_read_is_asked_for_again() {
    let mut bench = Bench::serving(16);
    let (token, actions) = bench.read(0, BLOCK);
    let read = sent_one(&actions);
    let crcs = vec![crc32c::crc32c(&[1; BLOCK])];
    let mut damaged = vec![1; BLOCK];
    damaged[77] ^= 4;
    let actions = bench.answer(1, read.id, Status::Ok, crcs, damaged.into());
    assert_eq!(actions, []);
    let again = sent_one(&bench.pass(Duration::from_millis(5)));
    assert_eq!((again.id, &again.what), (read.id, &read.what));
    // Too short, with the right checksum of what there is.
    let actions = bench.answer(1, read.id, Status::Ok, vec![], Bytes::new());
    assert_eq!(actions, []);
    assert_eq!(bench.node.counters().damaged, 2);
    sent_one(&bench.pass(Duration::from_millis(10)));
    let actions = bench.reply_data(1, read.id, vec![1; BLOCK]);
    assert_eq!(replies(&actions), [(token, GuestReply::Data(vec![1; BLOCK].into()))]);
}

#[test]
fn manager_outage_is_not_seen_by_the_guest() {
    let mut bench = Bench::serving(16);
    bench.event(Event::ManagerLinkDown);
    let (token, actions) = bench.write(0, &vec![1; BLOCK]);
    let actions = bench.reply(1, sent_one(&actions).id, Status::Ok);
    assert_eq!(replies(&actions), [(token, GuestReply::Done)]);
    assert_eq!(bench.pass(Duration::from_secs(600)), []);
    // The primary restarts meanwhile: its link comes back, and requests go on.
    let (token, actions) = bench.write(0, &vec![2; BLOCK]);
    sent_one(&actions);
    bench.event(Event::LinkDown { server: server(1) });
    bench.pass(Duration::from_secs(600));
    let id = bench.link_up(1);
    let again = sent_one(&bench.reply(1, id, Status::Ok));
    let actions = bench.reply(1, again.id, Status::Ok);
    assert_eq!(replies(&actions), [(token, GuestReply::Done)]);
}

#[test]
fn an_unanswered_opening_is_asked_again() {
    let mut bench = Bench::serving(16);
    bench.event(Event::LinkDown { server: server(1) });
    let first = bench.link_up(1);
    let id = opening(&bench.pass(Duration::from_secs(2)));
    assert!(id.request > first.request);
    assert_eq!(bench.reply(1, first, Status::Ok), [], "only the newest counts");
    bench.reply(1, id, Status::Ok);
    let (_, actions) = bench.read(0, BLOCK);
    sent_one(&actions);
}

#[test]
fn a_server_at_another_address_is_dialled_there() {
    let mut bench = Bench::serving(16);
    let mut moved = attach(2, 1, 16);
    moved.config.members[0].address = ([127, 0, 0, 1], 9999).into();
    let actions = bench.manager(FromManager::Attach(moved));
    let at = actions.iter().position(|a| *a == Action::Disconnect { server: server(1) });
    assert!(matches!(actions[at.expect("a disconnect") + 1], Action::Connect { address, .. }
        if address.port() == 9999));
    let (_, actions) = bench.read(0, BLOCK);
    assert_eq!(sent(&actions), []);
    let id = bench.link_up(1);
    sent_one(&bench.reply(1, id, Status::Ok));
}

#[test]
fn messages_that_are_no_business_of_ours_are_ignored() {
    let mut bench = Bench::serving(16);
    let message = DataMessage::Adopt { config: attach(7, 2, 16).config };
    let event = Event::LinkReceived { server: server(1), message };
    assert_eq!(bench.event(event), []);
    assert_eq!(bench.event(Event::LinkUp { server: server(5) }), []);
}

#[test]
fn a_link_that_another_volume_keeps_up_is_used_at_once() {
    let mut bench = Bench::serving(16);
    bench.manager(FromManager::Attach(attach_other(1, 2, 16)));
    bench.link_up(2);
    let (token, actions) = bench.write(0, &vec![1; BLOCK]);
    let first = sent_one(&actions);
    let actions = bench.manager(FromManager::Attach(attach(2, 2, 16)));
    assert!(!actions.iter().any(|a| matches!(a, Action::Connect { .. })));
    let id = opening(&actions);
    let again = sent_one(&bench.reply(2, id, Status::Ok));
    assert_eq!((&again.server, again.id), (&server(2), first.id));
    let actions = bench.reply(2, again.id, Status::Ok);
    assert_eq!(replies(&actions), [(token, GuestReply::Done)]);
    // The other volume moves to a third server; this one still needs the link.
    let actions = bench.manager(FromManager::Attach(attach_other(2, 3, 16)));
    assert!(!actions.contains(&Action::Disconnect { server: server(2) }));
    let (_, actions) = bench.read(0, BLOCK);
    sent_one(&actions);
}

#[test]
fn a_server_that_moves_takes_every_volume_with_it() {
    let mut bench = Bench::serving(16);
    bench.manager(FromManager::Attach(attach_other(1, 1, 16)));
    let mut moved = attach_other(2, 1, 16);
    moved.config.members[0].address = ([127, 0, 0, 1], 9999).into();
    bench.manager(FromManager::Attach(moved));
    // The first volume has not heard of it, and its link is down nevertheless.
    let (_, actions) = bench.read(0, BLOCK);
    assert_eq!(sent(&actions), []);
    let actions = bench.event(Event::LinkUp { server: server(1) });
    let openings = actions.iter().filter(|a| matches!(a, Action::Send { .. })).count();
    assert_eq!(openings, 2);
}
