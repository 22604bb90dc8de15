//! One situation each.

use std::time::Duration;

use model::{
    epoch::AttachGeneration,
    group::{Member, Role},
    units::{ByteCount, Iops, MibPerSec, Rate},
    volume::Media,
};

use crate::{
    client::{self, Ask},
    rot::scrub,
    world::{SIZE, World, address_of, drive_name, replica_id, server_name},
};

const SOON: Duration = Duration::from_secs(20);

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A group with its client attached, all replicas in sync.
fn started(seed: u64, servers: u64) -> World {
    let mut world = World::new(seed, servers);
    world.run_until(SOON, "start", |w| w.manager.is_whole() && w.client.config.is_some());
    world
}

fn settle(world: &mut World) {
    world.quiesce();
    world.run_until(Duration::from_secs(60), "all in sync", |w| w.manager.is_whole());
    world.read_everything();
    world.check_replicas();
}

/// Another server's replica is desired in place of a present one.
pub fn replace(world: &mut World, old: u64, new: u64) {
    let member = Member {
        replica: replica_id(new),
        server: server_name(new),
        address: address_of(new),
        drive: drive_name(),
        role: Role::Mirror,
    };
    let place = world.manager.desired.iter_mut().find(|d| d.replica == replica_id(old));
    *place.expect("it was desired") = member;
}

#[test]
fn what_is_written_is_read_and_held_by_every_replica() {
    let mut world = started(1, 2);
    world.write_through(5, 3);
    world.read_through(4, 8);
    world.write_through(6, 1);
    world.read_through(4, 8);
    settle(&mut world);
}

#[test]
fn failover_keeps_every_acknowledged_write() {
    for seed in 0..8 {
        let mut world = started(seed, 2);
        world.client.depth = 16;
        world.run_for(millis(200));
        world.crash(&server_name(1));
        world.run_until(SOON, "failover", |w| w.manager.config.primary().server == server_name(2));
        world.run_for(millis(200));
        world.boot(&server_name(1));
        world.run_for(millis(500));
        settle(&mut world);
        assert!(world.client.writes_acknowledged > 50);
        assert!(world.client.longest < millis(500), "{:?}", world.client.longest);
    }
}

#[test]
fn mirror_restart_needs_no_new_configuration() {
    for seed in 0..8 {
        let mut world = started(seed, 2);
        let epoch = world.manager.config.epoch;
        world.client.depth = 16;
        world.run_for(millis(200));
        world.crash(&server_name(2));
        world.run_for(millis(300));
        world.boot(&server_name(2));
        world.run_for(millis(300));
        settle(&mut world);
        assert_eq!(world.manager.config.epoch, epoch);
    }
}

#[test]
fn a_lost_mirror_is_dropped_and_comes_back_as_learner() {
    let mut world = started(3, 2);
    world.client.depth = 8;
    world.run_for(millis(100));
    world.crash(&server_name(2));
    world.run_until(SOON, "drop", |w| w.manager.config.members.len() == 1 && w.manager.adopted);
    let answered = world.client.answered;
    world.run_for(millis(500));
    assert!(world.client.answered > answered + 20, "writes go on without the mirror");
    assert!(world.client.longest < millis(3_000));
    world.boot(&server_name(2));
    settle(&mut world);
    assert_eq!(world.manager.learners_failed, 0);
}

#[test]
fn both_servers_lose_power_and_nothing_acknowledged_is_lost() {
    for seed in 0..8 {
        let mut world = started(seed, 2);
        world.client.depth = 16;
        world.run_for(millis(150));
        world.crash(&server_name(1));
        world.crash(&server_name(2));
        world.run_for(millis(50));
        let (first, second) = if seed % 2 == 0 { (1, 2) } else { (2, 1) };
        world.boot(&server_name(first));
        world.run_for(millis(seed * 37));
        world.boot(&server_name(second));
        settle(&mut world);
    }
}

#[test]
fn deposed_primary_acknowledges_nothing() {
    for seed in 0..8 {
        let mut world = started(seed, 2);
        world.client.depth = 16;
        world.run_for(millis(100));
        // The manager believes it dead; its client does not know yet, and goes on asking.
        world.cut_manager(&server_name(1));
        world.run_until(SOON, "failover", |w| w.manager.config.primary().server == server_name(2));
        world.run_for(millis(300));
        assert_eq!(world.client.server, Some(server_name(2)));
        world.mend_manager(&server_name(1));
        settle(&mut world);
    }
}

#[test]
fn learner_is_filled_while_writes_go_on() {
    for seed in 0..6 {
        let mut world = World::new(seed, 3);
        world.manager.want(2);
        world.run_until(SOON, "start", |w| w.manager.is_whole() && w.client.config.is_some());
        world.client.depth = 12;
        world.run_for(millis(300));
        replace(&mut world, 2, 3);
        world.run_until(SOON, "whole", |w| w.manager.is_whole());
        assert!(world.manager.filled_bytes_moved > 0 || world.manager.ready_reports == 1);
        assert_eq!(world.manager.learners_failed, 0);
        assert!(world.client.longest < millis(200), "{:?}", world.client.longest);
        // The new mirror alone holds everything.
        world.crash(&server_name(1));
        world.run_until(SOON, "failover", |w| w.manager.config.primary().server == server_name(3));
        world.boot(&server_name(1));
        settle(&mut world);
    }
}

/// The server asserts that it fills no more at once than it may.
#[test]
fn learners_wait_for_each_other_and_are_all_filled() {
    for seed in 0..6 {
        let mut world = World::new(seed, 4);
        world.timing.fills_max = 1;
        world.manager.want(2);
        for n in 1..=2 {
            world.crash(&server_name(n));
            world.boot(&server_name(n));
        }
        world.run_until(SOON, "start", |w| w.manager.is_whole() && w.client.config.is_some());
        world.client.depth = 12;
        world.run_for(millis(300));
        world.manager.heals = false;
        for n in 3..=4 {
            let place = Member { replica: replica_id(n), ..world.manager.desired[0].clone() };
            let (server, address) = (server_name(n), address_of(n));
            world.manager.desired.push(Member { server, address, role: Role::Mirror, ..place });
        }
        let made = |w: &World| (3..=4).all(|n| w.manager.created.contains(&replica_id(n)));
        world.run_until(SOON, "replicas", made);
        let source = replica_id(1);
        let learners = world.manager.desired[2..].to_vec();
        world.change(|next| {
            let role = Role::Learner { source };
            next.members.extend(learners.into_iter().map(|m| Member { role, ..m }));
        });
        // The link of one that waits, or is filled, breaks: its place is another's.
        world.run_for(millis(5));
        world.break_link(&server_name(1), &server_name(3 + seed % 2));
        world.run_until(SOON, "whole", |w| w.manager.is_whole());
        assert_eq!(world.manager.learners_failed, 0);
        settle(&mut world);
    }
}

#[test]
fn a_learner_that_dies_does_not_stop_the_writes_and_is_filled_again() {
    for seed in 0..6 {
        let mut world = World::new(seed, 3);
        world.manager.want(2);
        world.run_until(SOON, "start", |w| w.manager.is_whole() && w.client.config.is_some());
        world.client.depth = 12;
        world.run_for(millis(300));
        replace(&mut world, 2, 3);
        world.run_until(SOON, "learner", |w| w.manager.config.learners().count() == 1);
        world.run_for(Duration::from_micros(3_000 + seed * 2_000));
        world.crash(&server_name(3));
        world.run_for(millis(200));
        let longest = world.client.longest;
        let ready = world.manager.config.is_in_sync(replica_id(3));
        assert!(ready || longest < millis(150), "{longest:?}");
        if seed % 2 == 0 {
            world.run_for(Duration::from_secs(6));
            assert!(ready || world.manager.learners_failed > 0);
        }
        world.boot(&server_name(3));
        settle(&mut world);
    }
}

#[test]
fn a_source_that_dies_is_replaced_by_the_primary() {
    let mut world = World::new(11, 3);
    world.manager.want(2);
    world.run_until(SOON, "start", |w| w.manager.is_whole() && w.client.config.is_some());
    world.client.depth = 12;
    world.run_for(millis(300));
    replace(&mut world, 2, 3);
    world.run_until(SOON, "learner", |w| w.manager.config.learners().count() == 1);
    world.run_for(millis(3));
    world.crash(&server_name(2));
    world.run_until(SOON, "whole", |w| w.manager.is_whole());
    settle(&mut world);
}

#[test]
fn hand_over_loses_nothing() {
    for seed in 0..8 {
        let mut world = started(seed, 2);
        world.client.depth = 16;
        for round in 0..4 {
            world.run_for(millis(100 + seed));
            let to = 2 - round % 2;
            world.begin_hand_over(replica_id(to));
            world.run_until(SOON, "hand over", |w| {
                w.manager.config.primary().replica == replica_id(to) && w.manager.adopted
            });
        }
        settle(&mut world);
        assert_eq!(world.manager.failovers, 0);
        assert!(world.client.longest < millis(100), "{:?}", world.client.longest);
    }
}

#[test]
fn a_hand_over_that_nobody_finishes_ends_by_itself() {
    let mut world = started(4, 2);
    world.client.depth = 4;
    world.run_for(millis(50));
    let (group, epoch) = (crate::world::group(), world.manager.config.epoch);
    let message = format::ctl::FromManager::HandOver { group, epoch };
    world.command(&server_name(1), message);
    world.run_for(millis(500));
    let answered = world.client.answered;
    world.run_for(millis(300));
    assert_eq!(world.client.answered, answered, "nothing is served meanwhile");
    world.run_for(millis(700));
    assert!(world.client.answered > answered);
    settle(&mut world);
}

/// A hand-over from 1 to 2 of which 1 hears nothing for so long that it goes on, with a change that no
/// member takes: what a program wants that has not heard either, and is gone before it is answered.
fn gone_on_alone() -> World {
    use format::data::{Change, DataMessage, RequestId};

    let mut world = World::unscrubbed(1, 2);
    world.run_until(SOON, "start", |w| w.manager.is_whole() && w.client.config.is_some());
    world.write_through(5, 1);
    world.quiesce();
    let (group, epoch) = (crate::world::group(), world.manager.config.epoch);
    world.sever(&server_name(1), &server_name(2));
    world.begin_hand_over(replica_id(2));
    world.run_until(SOON, "the switch", |w| {
        w.manager.config.primary().server == server_name(2) && w.manager.adopted
    });
    world.run_for(millis(1_100));
    let block = client::block_of(777);
    let change = Change::Write { crcs: vec![crc32c::crc32c(&block)], data: block.into() };
    let id = RequestId { session: 1_000 + world.client.life, request: 9_999 };
    let message = DataMessage::Change { group, epoch, id, offset: 5 * 4096, change };
    let conn = bds::api::ConnId(1_000_000);
    world.feed(&server_name(1), bds::api::Event::MessageReceived { conn, message });
    world.run_for(millis(50));
    let former = world.manager.config.mirrors().next().expect("it is mirror").clone();
    assert_eq!(world.content(&former).values.get(&5), Some(&777), "it went on");
    // The new primary serves, and shows what was acknowledged.
    world.read_through(5, 1);
    world
}

#[test]
fn a_former_primary_that_went_on_alone_and_restarted_does_not_count() {
    let mut world = gone_on_alone();
    world.crash(&server_name(1));
    world.heal();
    world.run_until(SOON, "it is filled", |w| w.manager.ready_reports > 0);
    assert_eq!(world.manager.differing, [], "it did not wait to be compared");
    settle(&mut world);
    world.crash(&server_name(2));
    world.read_through(5, 1);
}

#[test]
fn a_former_primary_that_went_on_alone_does_not_follow_the_one_that_followed_it() {
    let mut world = gone_on_alone();
    world.crash(&server_name(2));
    world.run_for(Duration::from_secs(5));
    let primary = world.manager.config.primary().server.clone();
    assert_eq!(primary, server_name(2), "nobody else has everything and nothing more");
    world.heal();
    world.run_until(SOON, "it is filled", |w| w.manager.ready_reports > 0);
    settle(&mut world);
    world.crash(&server_name(2));
    world.read_through(5, 1);
}

#[test]
fn a_change_of_configuration_under_load_is_not_noticed() {
    let mut world = started(5, 2);
    world.client.depth = 16;
    for size in 1..6 {
        world.run_for(millis(30));
        world.change(|config| config.size = ByteCount::new(SIZE + (size << 20)));
        world.run_until(SOON, "adopted", |w| w.manager.adopted);
    }
    settle(&mut world);
    assert!(world.client.longest < millis(100), "{:?}", world.client.longest);
    // The new blocks can be written, and reach the mirror.
    let first = SIZE / 4096 + 3;
    world.write_through(first, 2);
    world.crash(&server_name(1));
    world.read_through(first, 2);
}

#[test]
fn a_new_attachment_fences_the_old_one() {
    let mut world = started(6, 2);
    world.client.depth = 8;
    world.run_for(millis(100));
    world.quiesce();
    world.client.fenced = true;
    let old = world.client.config.clone().expect("attached");
    world.change(|config| config.attach_generation = AttachGeneration::from_raw(2));
    world.run_until(SOON, "adopted", |w| w.manager.adopted);
    // The old session goes on asking, as one would that has not heard.
    world.client.config = Some(old);
    let before = world.client.answered;
    world.ask(Ask::Read, 1, 1);
    world.run_for(millis(300));
    assert_eq!(world.client.answered, before, "a fenced session is served nothing");
    world.restart_client();
    world.client.config = None;
    let config = world.manager.config.clone();
    world.client_learns(config);
    world.client.depth = 8;
    world.run_for(millis(300));
    assert!(world.client.answered > before + 10);
    settle(&mut world);
}

#[test]
fn a_restarted_node_process_sees_each_unanswered_write_either_way_but_for_good() {
    for seed in 0..8 {
        let mut world = started(seed, 2);
        world.client.depth = 16;
        for _ in 0..5 {
            world.run_for(millis(40));
            world.restart_client();
        }
        world.run_for(millis(50));
        settle(&mut world);
    }
}

#[test]
fn broken_links_between_servers_lose_and_repeat_nothing() {
    for seed in 0..8 {
        let mut world = started(seed, 2);
        world.delay_us = 3_000;
        world.client.depth = 24;
        for _ in 0..20 {
            let pause = world.rng.micros(1_000, 30_000);
            world.run_for(pause);
            world.break_link(&server_name(1), &server_name(2));
        }
        settle(&mut world);
        assert_eq!(world.manager.failovers, 0);
    }
}

#[test]
fn the_bought_rate_is_delivered_and_changes_at_once() {
    let mut world = started(7, 2);
    let iops = |n| Rate { iops: Iops::new(n), throughput: MibPerSec::new(1_000) };
    world.change(|config| config.rate = iops(500));
    world.run_until(SOON, "adopted", |w| w.manager.adopted);
    world.client.depth = 32;
    world.run_for(millis(500));
    let before = world.client.answered;
    world.run_for(Duration::from_secs(5));
    let answered = world.client.answered - before;
    assert!((2_475..=2_525).contains(&answered), "{answered} in 5 s at 500 IOPS");
    world.change(|config| config.rate = iops(2_000));
    world.run_until(SOON, "adopted", |w| w.manager.adopted);
    let before = world.client.answered;
    world.run_for(Duration::from_secs(1));
    let answered = world.client.answered - before;
    assert!((1_900..=2_100).contains(&answered), "{answered} in 1 s at 2,000 IOPS");
}

#[test]
fn a_mirror_that_promised_refuses_the_older_epoch_until_a_newer_one_heals_it() {
    for seed in 0..4 {
        let mut world = started(seed, 2);
        world.client.depth = 12;
        world.run_for(millis(100));
        let epoch = world.manager.config.epoch.next();
        let (replica, group) = (replica_id(2), crate::world::group());
        let prepare = format::ctl::FromManager::Prepare { replica, group, epoch, as_mirror: true };
        world.command(&server_name(2), prepare);
        world.run_for(millis(20));
        let written = world.client.writes_acknowledged;
        world.run_for(millis(500));
        assert_eq!(world.client.writes_acknowledged, written, "the mirror must refuse");
        // The same set, under the epoch that was promised.
        world.change(|_| {});
        world.run_for(millis(300));
        assert!(world.client.writes_acknowledged > written);
        settle(&mut world);
        assert_eq!(world.manager.silent_reports, 0, "what it refused was sent again");
    }
}

#[test]
fn a_restarted_primary_does_not_begin_its_epoch_again() {
    let mut world = started(9, 2);
    world.client.depth = 12;
    world.run_for(millis(100));
    let config = world.manager.config.clone();
    world.crash(&server_name(1));
    world.crash(&server_name(2));
    world.hosts.get_mut(&server_name(1)).expect("a host").cut = true;
    world.boot(&server_name(1));
    world.run_for(millis(20));
    let answered = world.client.answered;
    let message = format::ctl::FromManager::Configure { config };
    world.feed(&server_name(1), bds::api::Event::ManagerSent { message });
    world.boot(&server_name(2));
    world.hosts.get_mut(&server_name(2)).expect("a host").cut = true;
    world.run_for(millis(500));
    assert_eq!(world.client.answered, answered, "sequences would be given twice");
    world.hosts.values_mut().for_each(|host| host.cut = true);
    world.mend_manager(&server_name(1));
    world.mend_manager(&server_name(2));
    settle(&mut world);
}

#[test]
fn nothing_is_acknowledged_without_a_learner_that_was_called_ready() {
    let mut world = World::new(12, 3);
    world.manager.want(2);
    world.run_until(SOON, "start", |w| w.manager.is_whole() && w.client.config.is_some());
    world.client.depth = 12;
    world.run_for(millis(100));
    world.manager.admits = false;
    replace(&mut world, 2, 3);
    world.run_until(SOON, "ready", |w| w.manager.ready_reports > 0);
    world.crash(&server_name(3));
    world.run_for(millis(50));
    let written = world.client.writes_acknowledged;
    // The manager may be admitting it at this moment.
    world.run_for(millis(3_000));
    assert!(world.client.writes_acknowledged < written + 12);
    world.run_until(SOON, "failed", |w| w.manager.learners_failed == 1);
    world.run_for(millis(300));
    assert!(world.client.writes_acknowledged > written + 24);
    world.manager.admits = true;
    world.boot(&server_name(3));
    settle(&mut world);
}

#[test]
fn a_change_of_media_on_the_same_servers_copies_from_drive_to_drive() {
    for seed in 0..3 {
        let hdd: model::id::DriveName = "hdd".parse().expect("a name");
        let drives = [(drive_name(), Media::Ssd), (hdd.clone(), Media::Hdd)];
        let mut world = World::with_drives(seed, 2, &drives);
        for member in &mut world.manager.desired {
            member.drive = hdd.clone();
        }
        world.manager.want(2);
        world.run_until(SOON, "start", |w| w.manager.is_whole() && w.client.config.is_some());
        world.client.depth = 12;
        world.run_for(millis(300));
        for n in [1, 2] {
            let place = &mut world.manager.desired[usize::try_from(n).expect("small") - 1];
            (place.replica, place.drive) = (replica_id(10 + n), drive_name());
        }
        world.run_until(SOON, "moved", |w| w.manager.is_whole());
        assert_eq!((world.manager.learners_failed, world.manager.failovers), (0, 0));
        assert!(world.client.longest < millis(200), "{:?}", world.client.longest);
        settle(&mut world);
    }
}

#[test]
fn empty_space_and_a_replica_that_comes_back_cost_nearly_nothing() {
    let mut world = started(13, 2);
    world.change(|config| config.size = ByteCount::new(8 << 30));
    world.run_until(SOON, "adopted", |w| w.manager.adopted);
    world.client.depth = 12;
    world.run_for(millis(200));
    world.client.depth = 0;
    world.crash(&server_name(2));
    world.run_until(SOON, "drop", |w| w.manager.config.members.len() == 1 && w.manager.adopted);
    world.write_through(7, 1);
    world.boot(&server_name(2));
    world.run_until(SOON, "learner", |w| w.manager.config.learners().count() == 1);
    let begun = world.now;
    world.run_until(SOON, "whole", |w| w.manager.is_whole());
    assert!(world.now.since(begun) < millis(300), "{:?}", world.now.since(begun));
    assert!(world.manager.filled_bytes_moved <= 64 << 10);
    settle(&mut world);
}

#[test]
fn a_broken_link_of_the_node_loses_and_repeats_nothing() {
    for seed in 0..8 {
        let mut world = started(seed, 2);
        world.delay_us = 1_000;
        world.client.depth = 24;
        for _ in 0..40 {
            let pause = world.rng.micros(1_000, 20_000);
            world.run_for(pause);
            world.break_client_link();
        }
        settle(&mut world);
    }
}

#[test]
fn a_damaged_journal_does_not_stop_the_group() {
    let mut world = started(14, 2);
    world.write_through(40, 60);
    lose_power_and_damage(&mut world);
    world.boot(&server_name(2));
    world.boot(&server_name(1));
    world.run_until(SOON, "failover", |w| w.manager.failovers > 0 && w.manager.is_whole());
    world.read_through(40, 60);
    // The fill compared descriptions, which are whole: what recovery found damaged is repaired when it
    // is read.
    scrub(&mut world, 1);
    settle(&mut world);
}

/// Server 1's drive damages block 50 and what was written with it, while all are down. The last batch
/// was sealed before: damage to one that was not looks like a torn tail (docs/disk.md, known limits).
fn lose_power_and_damage(world: &mut World) {
    world.run_for(Duration::from_millis(500));
    world.crash(&server_name(1));
    world.crash(&server_name(2));
    let value = world.client.expected().find(|&(block, _)| block == 50).expect("written");
    let content = client::block_of(*value.1.first().expect("one value"));
    let host = world.hosts.get_mut(&server_name(1)).expect("a host");
    let damaged = host.disks.get_mut(&drive_name()).expect("a drive").damage(&content);
    assert!(damaged >= 60, "{damaged} blocks damaged");
}

#[test]
fn a_damaged_block_is_repaired_from_the_mirror() {
    let mut world = started(14, 2);
    world.write_through(40, 60);
    // Until the engine has put everything in its place.
    for round in 0..40 {
        world.write_through(512 + round % 4 * 60, 60);
    }
    world.run_for(Duration::from_secs(2));
    lose_power_and_damage(&mut world);
    world.boot(&server_name(2));
    world.boot(&server_name(1));
    world.run_until(SOON, "failover", |w| w.manager.failovers > 0 && w.manager.is_whole());
    if world.manager.config.primary().replica != replica_id(1) {
        world.begin_hand_over(replica_id(1));
        world.run_until(SOON, "hand over", |w| {
            w.manager.config.primary().replica == replica_id(1) && w.manager.adopted
        });
    }
    world.read_through(40, 60);
    settle(&mut world);
}

#[test]
fn configurations_may_change_while_a_learner_is_filled() {
    for seed in 0..8 {
        let mut world = World::new(seed, 3);
        world.manager.want(2);
        world.run_until(SOON, "start", |w| w.manager.is_whole() && w.client.config.is_some());
        world.client.depth = 24;
        world.run_for(millis(300));
        world.delay_us = 4_000;
        replace(&mut world, 2, 3);
        world.run_until(SOON, "learner", |w| w.manager.config.learners().count() == 1);
        for _ in 0..12 {
            let pause = world.rng.micros(500, 12_000);
            world.run_for(pause);
            if world.manager.config.learners().count() == 0 {
                break;
            }
            match world.rng.below(3) {
                0 => world.break_link(&server_name(3), &server_name(2)),
                1 => world.break_link(&server_name(1), &server_name(3)),
                _ => world.change(|_| {}),
            }
        }
        world.run_until(SOON, "whole", |w| w.manager.is_whole());
        assert_eq!(world.manager.learners_failed, 0);
        world.run_for(millis(100));
        settle(&mut world);
    }
}

#[test]
fn messages_of_strangers_change_nothing() {
    let mut world = started(15, 2);
    world.client.depth = 12;
    for round in 0..1_500 {
        world.run_for(Duration::from_micros(100));
        let message = stranger(&mut world);
        let to = server_name(1 + round % 2);
        let conn = bds::api::ConnId(1_000_000 + world.rng.below(3));
        world.feed(&to, bds::api::Event::MessageReceived { conn, message });
    }
    settle(&mut world);
    assert_eq!(world.manager.failovers, 0);
}

/// Anything that decodes, from somebody who has no part in the group.
fn stranger(world: &mut World) -> format::data::DataMessage {
    use format::data::{Change, DataMessage, DigestQuery, FillRegion, Replicate, RequestId};
    let rng = &mut world.rng;
    let group =
        if rng.chance(90) { crate::world::group() } else { model::id::GroupId::from_raw(8) };
    let replica = replica_id(1 + rng.below(4));
    let epoch = model::epoch::Epoch::new(rng.below(4)).expect("small");
    let mod_seq = model::epoch::ModSeq::from_raw(rng.next());
    let id = RequestId { session: rng.next(), request: rng.below(50) };
    let token = rng.below(500);
    let offset = rng.below(SIZE / 4096 + 40) * 4096;
    let length = (1 + rng.below(256)) as u32 * 4096;
    let change = Change::Zero { length };
    match rng.below(9) {
        0 => DataMessage::Read { group, epoch, id, offset, length },
        1 => DataMessage::Change { group, epoch, id, offset, change },
        2 => DataMessage::QueryAllocated { group, epoch, id, offset, length },
        3 => DataMessage::OpenSession { group, epoch, attach: AttachGeneration::from_raw(0), id },
        4 => DataMessage::Replicate(Replicate { group, replica, epoch, mod_seq, offset, change }),
        5 => DataMessage::QueryDigest(DigestQuery { group, replica, epoch, token, offset, length }),
        6 => DataMessage::FillRegion(FillRegion {
            group,
            replica,
            epoch,
            token,
            offset,
            length,
            source: replica_id(1),
            source_server: server_name(1),
            source_address: address_of(1),
        }),
        7 => {
            let have = Vec::new();
            DataMessage::PullRegion { group, epoch, replica, token, offset, length, have }
        }
        _ => DataMessage::ReplicateAck { group, replica, mod_seq },
    }
}
