//! The life of an attachment, as the manager and the fronts see it.

use std::time::Duration;

use format::{
    ctl::{FromManager, ToManager},
    data::Status,
};
use model::{epoch::AttachGeneration, units::ByteCount};

use super::bench::{
    BLOCK, Bench, attach, export_opened, opening, replies, sent, sent_one, server, to_manager,
    volume,
};
use crate::api::{Action, Event, GuestError, GuestReply};

fn detach(generation: u64, force: bool) -> FromManager {
    let attach_generation = AttachGeneration::from_raw(generation);
    FromManager::Detach { volume: volume(), attach_generation, force }
}

fn attached(generation: u64) -> ToManager {
    ToManager::Attached {
        volume: volume(),
        attach_generation: AttachGeneration::from_raw(generation),
        nbd_uris: vec!["nbd://x".into()],
        device: None,
    }
}

fn detached(generation: u64) -> ToManager {
    let attach_generation = AttachGeneration::from_raw(generation);
    ToManager::Detached { volume: volume(), attach_generation }
}

fn shown(blocks: usize) -> ToManager {
    let size = ByteCount::new(u64::try_from(blocks * BLOCK).expect("small"));
    ToManager::SizeShown { volume: volume(), size }
}

const CLOSE: fn() -> Action = || Action::CloseExport { volume: volume() };

#[test]
fn attached_is_reported_when_exported_and_saved() {
    for saved_first in [true, false] {
        let (mut bench, _) = Bench::start(vec![]);
        let actions = bench.event(Event::ManagerLinkUp);
        assert!(matches!(to_manager(&actions)[..], [ToManager::RegisterNode(_)]));
        let actions = bench.manager(FromManager::Attach(attach(1, 1, 4)));
        assert!(actions.contains(&Action::SaveAttachments { attachments: vec![attach(1, 1, 4)] }));
        let id = bench.link_up(1);
        bench.reply(1, id, Status::Ok);
        let (first, second) = match saved_first {
            true => (Event::AttachmentsSaved, export_opened()),
            false => (export_opened(), Event::AttachmentsSaved),
        };
        assert_eq!(bench.event(first), []);
        assert_eq!(to_manager(&bench.event(second)), [attached(1), shown(4)]);
    }
}

#[test]
fn a_repeated_attach_is_answered_again() {
    let mut bench = Bench::serving(4);
    let actions = bench.manager(FromManager::Attach(attach(1, 1, 4)));
    assert_eq!(to_manager(&actions), [attached(1), shown(4)]);
    assert_eq!(actions.len(), 2);
}

#[test]
fn a_new_size_is_shown_once_the_primary_has_adopted_it() {
    let mut bench = Bench::serving(4);
    let actions = bench.manager(FromManager::Attach(attach(2, 1, 8)));
    let id = opening(&actions);
    let too_far = GuestReply::Failed(GuestError::OutOfRange);
    let (token, actions) = bench.read(4 * BLOCK, BLOCK);
    assert_eq!(replies(&actions), [(token, too_far)]);
    let size = ByteCount::new(8 * 4096);
    let actions = bench.reply(1, id, Status::Ok);
    assert_eq!(actions, [Action::ResizeExport { volume: volume(), size }]);
    let (_, actions) = bench.read(4 * BLOCK, BLOCK);
    sent_one(&actions);
    let actions = bench.event(Event::ExportResized { volume: volume(), size });
    assert_eq!(to_manager(&actions), [shown(8)]);
}

#[test]
fn a_size_that_comes_while_the_export_opens_is_shown_after() {
    let (mut bench, _) = Bench::start(vec![attach(1, 1, 4)]);
    let id = bench.link_up(1);
    bench.reply(1, id, Status::Ok);
    let id = opening(&bench.manager(FromManager::Attach(attach(2, 1, 8))));
    assert_eq!(bench.reply(1, id, Status::Ok), []);
    let actions = bench.event(export_opened());
    let size = ByteCount::new(8 * 4096);
    assert_eq!(actions.last(), Some(&Action::ResizeExport { volume: volume(), size }));
}

#[test]
fn an_export_that_fails_is_reported_and_tried_again() {
    let (mut bench, _) = Bench::start(vec![attach(1, 1, 4)]);
    let reason = "no".to_owned();
    let actions = bench.event(Event::ExportFailed { volume: volume(), reason: reason.clone() });
    assert_eq!(to_manager(&actions), [ToManager::DeviceFailed { volume: volume(), reason }]);
    let actions = bench.pass(Duration::from_secs(2));
    assert!(actions.iter().any(|a| matches!(a, Action::OpenExport { .. })));
}

#[test]
fn detach_waits_for_in_flight_requests() {
    let mut bench = Bench::serving(16);
    let (before, actions) = bench.write(0, &vec![1; BLOCK]);
    let write = sent_one(&actions);
    assert_eq!(bench.manager(detach(1, false)), []);
    // What comes after the detach does not keep the export open.
    let (late, actions) = bench.read(8 * BLOCK, BLOCK);
    let read = sent_one(&actions);
    let actions = bench.reply(1, write.id, Status::Ok);
    let done = Action::ReplyGuest { volume: volume(), token: before, reply: GuestReply::Done };
    assert_eq!(actions, [done, CLOSE()]);
    assert_eq!(bench.event(Event::ExportClosed { volume: volume() }), []);
    let actions = bench.reply_data(1, read.id, vec![3; BLOCK]);
    assert_eq!(replies(&actions), [(late, GuestReply::Data(vec![3; BLOCK].into()))]);
    assert_eq!(to_manager(&actions), [detached(1)]);
    assert!(actions.contains(&Action::SaveAttachments { attachments: vec![] }));
    assert!(actions.contains(&Action::Disconnect { server: server(1) }));
    // Asked again, it says so again; and nothing is served.
    assert_eq!(to_manager(&bench.manager(detach(1, false))), [detached(1)]);
    let (token, actions) = bench.read(0, BLOCK);
    assert_eq!(replies(&actions), [(token, GuestReply::Failed(GuestError::Gone))]);
    assert_eq!(bench.node.deadline(), bench.node.deadline().filter(|&at| at > bench.now));
}

#[test]
fn forced_detach_answers_gone() {
    let mut bench = Bench::serving(16);
    let (first, actions) = bench.write(0, &vec![1; BLOCK]);
    let out = sent_one(&actions);
    let (second, _) = bench.write(0, &vec![1; BLOCK]);
    let actions = bench.manager(detach(1, true));
    let gone = GuestReply::Failed(GuestError::Gone);
    assert_eq!(replies(&actions), [(first, gone.clone()), (second, gone)]);
    assert_eq!(to_manager(&actions), [detached(1)]);
    assert!(actions.contains(&CLOSE()));
    assert_eq!(bench.reply(1, out.id, Status::Ok), []);
    assert_eq!(bench.event(Event::ExportClosed { volume: volume() }), []);
}

#[test]
fn force_ends_a_detach_that_waits() {
    let mut bench = Bench::serving(16);
    let (token, _) = bench.write(0, &vec![1; BLOCK]);
    bench.event(Event::LinkDown { server: server(1) });
    assert_eq!(bench.manager(detach(1, false)), []);
    let actions = bench.manager(detach(1, true));
    assert_eq!(replies(&actions), [(token, GuestReply::Failed(GuestError::Gone))]);
    assert_eq!(to_manager(&actions), [detached(1)]);
}

#[test]
fn detach_of_what_is_not_attached_is_answered() {
    let (mut bench, _) = Bench::start(vec![]);
    assert_eq!(to_manager(&bench.manager(detach(3, false))), [detached(3)]);
    let mut bench = Bench::serving(4);
    let actions = bench.manager(detach(0, true));
    assert_eq!(to_manager(&actions), [detached(0)], "an older generation is long over");
    let (_, actions) = bench.read(0, BLOCK);
    sent_one(&actions);
}

#[test]
fn a_fenced_attachment_is_gone_and_not_begun_again() {
    let mut bench = Bench::serving(16);
    let (token, actions) = bench.write(0, &vec![1; BLOCK]);
    let actions = bench.reply(1, sent_one(&actions).id, Status::Fenced);
    assert_eq!(replies(&actions), [(token, GuestReply::Failed(GuestError::Gone))]);
    assert!(actions.contains(&CLOSE()));
    bench.event(Event::ExportClosed { volume: volume() });
    assert_eq!(bench.manager(FromManager::Attach(attach(2, 1, 16))), []);
    let mut newer = attach(3, 1, 16);
    newer.config.attach_generation = AttachGeneration::from_raw(3);
    let actions = bench.manager(FromManager::Attach(newer));
    assert!(actions.iter().any(|a| matches!(a, Action::Connect { .. })));
}

#[test]
fn a_newer_generation_begins_when_the_export_of_the_old_one_is_closed() {
    let mut bench = Bench::serving(16);
    let (token, _) = bench.write(0, &vec![1; BLOCK]);
    let mut newer = attach(2, 1, 16);
    newer.config.attach_generation = AttachGeneration::from_raw(3);
    let actions = bench.manager(FromManager::Attach(newer));
    assert_eq!(replies(&actions), [(token, GuestReply::Failed(GuestError::Gone))]);
    assert_eq!(to_manager(&actions), [detached(1)]);
    bench.event(Event::AttachmentsSaved);
    bench.event(Event::ExportClosed { volume: volume() });
    bench.event(Event::AttachmentsSaved);
    let id = bench.link_up(1);
    let actions = bench.reply(1, id, Status::Ok);
    assert!(matches!(actions[..], [Action::OpenExport { .. }]));
    assert_eq!(to_manager(&bench.event(export_opened())), [attached(3), shown(16)]);
}

#[test]
fn cached_attachments_are_served_without_the_manager() {
    let (mut bench, actions) = Bench::start(vec![attach(4, 2, 16)]);
    assert!(actions.iter().any(|a| matches!(a, Action::Connect { .. })));
    assert!(actions.iter().any(|a| matches!(a, Action::OpenExport { .. })));
    bench.event(export_opened());
    let (token, actions) = bench.write(0, &vec![1; BLOCK]);
    assert_eq!(sent(&actions), []);
    let id = bench.link_up(2);
    let write = sent_one(&bench.reply(2, id, Status::Ok));
    let actions = bench.reply(2, write.id, Status::Ok);
    assert_eq!(replies(&actions), [(token, GuestReply::Done)]);
    // The manager comes back: it is told what is attached.
    let told = to_manager(&bench.event(Event::ManagerLinkUp));
    let ToManager::RegisterNode(register) = &told[0] else { panic!("{told:?}") };
    assert_eq!(register.attachments, [(volume(), AttachGeneration::from_raw(1))]);
    assert_eq!(told[1..], [attached(1), shown(16)]);
}

#[test]
fn two_starts_have_different_sessions() {
    let (mut bench, _) = Bench::start(vec![attach(1, 1, 16)]);
    let first = bench.link_up(1);
    let mut out = Vec::new();
    let params = super::bench::params(vec![attach(1, 1, 16)]);
    bench.node = crate::Node::new(params, 2, bench.now, &mut out);
    assert_ne!(bench.link_up(1).session, first.session);
}

#[test]
fn a_beat_is_sent_while_the_manager_is_there() {
    let mut bench = Bench::serving(4);
    let beats = |actions: Vec<Action>| {
        to_manager(&actions).iter().filter(|m| matches!(m, ToManager::Beat { .. })).count()
    };
    assert_eq!(beats(bench.pass(Duration::from_secs(2))), 4);
    bench.event(Event::ManagerLinkDown);
    assert_eq!(beats(bench.pass(Duration::from_secs(2))), 0);
}
