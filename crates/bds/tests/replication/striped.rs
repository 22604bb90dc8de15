//! Replicas that are striped over several drives of their server: put together when it starts,
//! never served in part, and compared with those that lie on one drive.

use std::time::Duration;

use bds::api::Finding;
use format::ctl::FromManager;
use model::{
    group::Member,
    id::ReplicaId,
    units::{BLOCK, ByteCount},
};

use crate::{
    client,
    disk::Disk,
    world::{SIZE, World, drive_number, group, replica_id, server_name},
};

const SOON: Duration = Duration::from_secs(60);

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn started(seed: u64, stripes: &[u64]) -> World {
    let mut world = World::striped(seed, stripes);
    world.manager.want(2);
    world.run_until(SOON, "start", |w| w.manager.is_whole() && w.client.config.is_some());
    world
}

fn settle(world: &mut World) {
    world.quiesce();
    world.run_until(SOON, "all in sync", |w| w.manager.is_whole());
    world.read_everything();
    world.check_replicas();
}

fn member(world: &World, n: u64) -> Member {
    world.manager.config.member(replica_id(n)).expect("a member").clone()
}

#[test]
fn a_striped_replica_uses_all_its_drives_and_equals_one_on_one_drive() {
    let mut world = started(1, &[3, 1]);
    // Half of them across the border of two stripe units.
    for first in (8..SIZE / BLOCK).step_by(128) {
        world.write_through(first, 128.min(SIZE / BLOCK - first));
    }
    world.run_for(Duration::from_secs(2));
    settle(&mut world);
    assert_eq!(world.manager.differing, [], "the scrub has compared them");
    let striped = member(&world, 1);
    for n in 0..3 {
        let part = world.content_of_part(&striped, &drive_number(n), 2 << 20);
        assert_eq!(part.units.len(), 32, "two MiB of data are on drive {n}");
    }
}

#[test]
fn writes_across_stripes_are_there_after_power_failures() {
    let mut world = started(2, &[2, 3]);
    world.client.depth = 16;
    for round in 0..6 {
        world.run_for(millis(150));
        let server = server_name(1 + round % 2);
        world.crash(&server);
        world.run_for(millis(20));
        world.boot(&server);
        world.run_until(SOON, "whole", |w| w.manager.is_whole());
    }
    settle(&mut world);
}

#[test]
fn a_change_of_stripes_copies_what_was_written_and_goes_back() {
    let mut world = started(3, &[1, 1, 3, 2]);
    world.client.depth = 8;
    world.run_for(millis(200));
    for (old, new) in [(1, 3), (2, 4), (3, 1), (4, 2)] {
        crate::scenario::replace(&mut world, old, new);
        world.run_until(SOON, "moved", |w| w.manager.is_whole());
        world.run_for(millis(50));
    }
    settle(&mut world);
    assert_eq!(world.manager.failovers, 0);
}

#[test]
fn a_replica_whose_second_drive_fails_is_served_no_more_and_the_mirror_goes_on() {
    let mut world = started(4, &[2, 1]);
    world.client.depth = 8;
    world.run_for(millis(100));
    let server = server_name(1);
    world.hosts.get_mut(&server).expect("a host").broken.insert(drive_number(1));
    world.run_for(millis(100));
    // What the real manager does for a failed drive.
    world.crash(&server);
    world.run_until(SOON, "fail-over", |w| w.manager.failovers == 1 && w.manager.adopted);
    world.boot(&server);
    world.run_for(millis(200));
    assert!(!world.manager.is_held(&server, replica_id(1)), "a part was taken for the whole");
    world.quiesce();
    world.read_everything();
}

#[test]
fn parts_whose_sibling_is_gone_stay_until_the_manager_says_so() {
    let mut world = started(5, &[3, 1]);
    world.client.depth = 8;
    world.run_for(millis(100));
    let (server, replica) = (server_name(1), replica_id(1));
    let kept = member(&world, 1);
    world.crash(&server);
    let disks = &mut world.hosts.get_mut(&server).expect("a host").disks;
    let lost = disks.insert(drive_number(2), Disk::default()).expect("it had three");
    world.boot(&server);
    world.run_for(millis(200));
    assert!(!world.manager.is_held(&server, replica), "two of three parts are no replica");
    // It is not made again over what is left.
    let create = create(&world, &kept);
    world.command(&server, create);
    world.run_for(millis(50));
    let reason = &world.manager.refused[&replica];
    assert!(reason.contains("2 of 3 parts") && reason.contains("ssd, ssd-1"), "{reason}");
    // The drive is found again: so is the replica.
    world.crash(&server);
    world.hosts.get_mut(&server).expect("a host").disks.insert(drive_number(2), lost);
    world.boot(&server);
    world.run_for(millis(200));
    assert!(world.manager.is_held(&server, replica));
    settle(&mut world);
    // Without it, what is left goes when the manager wants it to, also across a restart.
    world.crash(&server);
    let disks = &mut world.hosts.get_mut(&server).expect("a host").disks;
    disks.insert(drive_number(1), Disk::default());
    world.boot(&server);
    world.run_for(millis(200));
    let drive = drive_number(0);
    world.command(&server, FromManager::RemoveReplica { replica, drive, beside: Vec::new() });
    world.run_for(millis(200));
    assert!(world.manager.removed.contains(&replica));
    world.crash(&server);
    world.boot(&server);
    world.run_for(millis(200));
    world.manager.refused.clear();
    let create = self::create(&world, &kept);
    world.command(&server, create);
    world.run_for(millis(200));
    assert!(world.manager.refused.is_empty(), "parts were left: {:?}", world.manager.refused);
}

fn create(world: &World, member: &Member) -> FromManager {
    FromManager::CreateReplica {
        replica: member.replica,
        group: group(),
        volume: world.manager.config.volume,
        drive: member.drive.clone(),
        beside: world.manager.beside[&member.replica].clone(),
        size: ByteCount::new(SIZE),
    }
}

#[test]
fn a_replica_whose_making_was_cut_off_is_made_when_it_is_asked_for_again() {
    for seed in 0..30 {
        let mut world = World::striped(100 + seed, &[3, 2]);
        world.manager.want(2);
        for _ in 0..4 {
            let pause = world.rng.micros(1_000, 8_000);
            world.run_for(pause);
            world.crash(&server_name(1));
            world.boot(&server_name(1));
        }
        world.client.depth = 8;
        world.run_until(SOON, "start", |w| w.manager.is_whole() && w.client.config.is_some());
        world.run_for(millis(50));
        settle(&mut world);
    }
}

#[test]
fn a_removal_that_was_cut_off_is_finished_when_it_is_asked_for_again() {
    for seed in 0..30 {
        let mut world = started(200 + seed, &[3, 1, 1]);
        world.client.depth = 4;
        crate::scenario::replace(&mut world, 1, 3);
        world.run_until(SOON, "moved", |w| w.manager.is_whole());
        let (server, replica) = (server_name(1), replica_id(1));
        let remove =
            FromManager::RemoveReplica { replica, drive: drive_number(0), beside: Vec::new() };
        world.command(&server, remove.clone());
        let pause = world.rng.micros(100, 2_500);
        world.run_for(pause);
        world.crash(&server);
        world.boot(&server);
        world.run_for(millis(100));
        world.manager.removed.clear();
        world.command(&server, remove);
        world.run_until(SOON, "removed", |w| w.manager.removed.contains(&replica));
        world.crash(&server);
        world.boot(&server);
        world.run_for(millis(100));
        assert!(!world.manager.is_held(&server, replica), "seed {seed}");
        settle(&mut world);
    }
}

#[test]
fn what_a_failed_drive_leaves_goes_although_a_scrub_was_reading_it() {
    for seed in 0..10 {
        let mut world = started(300 + seed, &[2, 1]);
        for first in (0..SIZE / BLOCK).step_by(128) {
            world.write_through(first, 128.min(SIZE / BLOCK - first));
        }
        let (server, replica) = (server_name(1), replica_id(1));
        world.hosts.get_mut(&server).expect("a host").slow = millis(300);
        let pause = world.rng.micros(1_000, 600_000);
        world.run_for(pause);
        world.hosts.get_mut(&server).expect("a host").broken.insert(drive_number(1));
        world.client.depth = 8;
        world.run_until(SOON, "the drive fails", |w| w.manager.drive_failed.contains(&server));
        let remove =
            FromManager::RemoveReplica { replica, drive: drive_number(0), beside: Vec::new() };
        world.command(&server, remove);
        world.run_for(Duration::from_secs(5));
        assert!(world.manager.removed.contains(&replica), "seed {seed}: it stays for ever");
    }
}

#[test]
fn a_damaged_block_is_counted_and_repaired_on_the_drive_that_holds_it() {
    let mut world = started(6, &[1, 2]);
    for first in (0..SIZE / BLOCK).step_by(16) {
        world.write_through(first, 16);
    }
    // The fourth MiB is the second of the second drive.
    let block = 3 * (1 << 20) / BLOCK + 7;
    let held = world.client.expected().find(|(b, _)| *b == block).expect("all is written");
    let content = client::block_of(*held.1.first().expect("one value"));
    let host = world.hosts.get_mut(&server_name(2)).expect("a host");
    assert_eq!(host.disks.get_mut(&drive_number(0)).expect("there").damage(&content), 0);
    assert!(host.disks.get_mut(&drive_number(1)).expect("there").damage(&content) > 0);
    world.run_until(SOON, "repaired", |w| {
        w.incidents.iter().any(|i| i.finding == Finding::Repaired)
    });
    // All blocks of one write hold the same.
    let unit = block * BLOCK / (64 << 10);
    for incident in &world.incidents {
        assert_eq!((&incident.drive, incident.offset / (64 << 10)), (&drive_number(1), unit));
    }
    settle(&mut world);
}

#[test]
fn drives_that_cannot_be_are_refused() {
    let mut world = started(7, &[1, 1]);
    let server = server_name(1);
    let replica = ReplicaId::from_raw(77);
    let sample = member(&world, 1);
    for (beside, words) in [
        (vec![drive_number(0)], "named twice"),
        (vec![drive_number(1), drive_number(7)], "no drive ssd-7"),
        ((1..9).map(drive_number).collect(), "1 to 8 drives"),
    ] {
        let mut message = create(&world, &sample);
        if let FromManager::CreateReplica { replica: of, beside: on, .. } = &mut message {
            (*of, *on) = (replica, beside);
        }
        world.command(&server, message);
        world.run_for(millis(20));
        let reason = world.manager.refused.remove(&replica).expect("refused");
        assert!(reason.contains(words), "{reason}");
    }
}
