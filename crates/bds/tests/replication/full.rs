//! Drives without space: writes that need some wait, and hold up nothing else.

use std::time::Duration;

use crate::{
    client::Ask,
    world::{SIZE, World, address_of, replica_id, server_name},
};

const SOON: Duration = Duration::from_secs(20);
const BLOCK: u64 = 4096;
/// Blocks of an extent.
const EXTENT: u64 = 16;
const EXTENTS: u64 = SIZE / BLOCK / EXTENT;

/// A group on drives that are full: the first extents are written, and writes of some more wait.
fn full(seed: u64) -> (World, Vec<u64>) {
    fill(World::tight(seed, 2, 2))
}

fn fill(mut world: World) -> (World, Vec<u64>) {
    world.run_until(SOON, "start", |w| w.manager.is_whole() && w.client.config.is_some());
    let mut waiting = Vec::new();
    for extent in 0..EXTENTS {
        // Some replace whole extents and go past the journal, some lie across two.
        let (first, blocks) = if extent % 3 == 0 { (0, EXTENT) } else { (3, 5) };
        waiting.push(world.write(extent * EXTENT + first, blocks));
        world.run_for(Duration::from_millis(5));
    }
    world.run_for(Duration::from_millis(300));
    waiting.retain(|number| world.client.pending.contains_key(number));
    let count = waiting.len() as u64;
    assert!((8..EXTENTS / 2).contains(&count), "{count} writes wait");
    (world, waiting)
}

/// Trims what was written first, and waits until all that waited is done.
fn make_room(world: &mut World) {
    let trims: Vec<u64> =
        (0..EXTENTS / 2).map(|e| world.ask(Ask::Zero, e * EXTENT, EXTENT)).collect();
    for trim in trims {
        world.await_answer(trim);
    }
    world.quiesce();
    world.run_until(Duration::from_secs(60), "all in sync", |w| w.manager.is_whole());
    world.read_everything();
    world.check_replicas();
}

#[test]
fn what_needs_no_space_goes_on_while_writes_wait_and_these_finish_when_there_is_some() {
    for seed in 0..8 {
        let (mut world, waiting) = full(seed);
        let epoch = world.manager.config.epoch;
        world.write_through(3, 5);
        world.read_through(0, EXTENT);
        assert!(waiting.iter().all(|number| world.client.pending.contains_key(number)));
        assert_eq!(world.manager.config.epoch, epoch);
        make_room(&mut world);
    }
}

#[test]
fn a_mirror_whose_drive_is_full_takes_over() {
    for seed in 0..8 {
        let (mut world, _) = full(seed);
        world.crash(&server_name(1));
        world.run_until(SOON, "failover", |w| {
            w.manager.config.primary().server == server_name(2) && w.manager.adopted
        });
        world.read_through(0, EXTENT);
        world.write_through(3, 5);
        world.boot(&server_name(1));
        world.run_for(Duration::from_secs(1));
        world.read_through(0, EXTENT);
        make_room(&mut world);
    }
}

#[test]
fn a_configuration_changes_while_writes_wait_and_none_of_them_is_forgotten() {
    for seed in 0..8 {
        let (mut world, waiting) = full(seed);
        for _ in 0..3 {
            world.change(|_| {});
            world.run_until(SOON, "adopted", |w| w.manager.adopted);
            world.write_through(3, 5);
        }
        assert!(waiting.iter().all(|number| world.client.pending.contains_key(number)));
        make_room(&mut world);
    }
}

/// Moves the group from servers 1 and 2 to others, and waits until every write is done: nothing was
/// trimmed, so they can only have found space there.
fn move_away(mut world: World, waiting: &[u64]) {
    let failovers = world.manager.failovers;
    for (place, to) in world.manager.desired.iter_mut().zip([3, 4]) {
        (place.replica, place.server) = (replica_id(to), server_name(to));
        place.address = address_of(to);
    }
    world.run_until(Duration::from_secs(60), "moved", |w| w.manager.is_whole());
    for &number in waiting {
        world.await_answer(number);
    }
    assert_eq!((world.manager.failovers, world.manager.learners_failed), (failovers, 0));
    world.quiesce();
    world.read_everything();
    world.check_replicas();
}

#[test]
fn replicas_leave_full_drives_while_writes_wait_for_space_there() {
    for seed in 0..8 {
        let mut world = World::tight(seed, 2, 4);
        world.manager.want(2);
        let (world, waiting) = fill(world);
        move_away(world, &waiting);
    }
}

#[test]
fn a_full_mirror_leaves_while_writes_wait_for_it() {
    for seed in 0..8 {
        // The primary has room, the mirror has not.
        let mut world = World::tight(seed, 2, 4);
        world.manager.want(2);
        let place = &mut world.manager.desired[0];
        (place.replica, place.server, place.address) =
            (replica_id(3), server_name(3), address_of(3));
        world.manager.config.members = world.manager.desired.clone();
        let (mut world, waiting) = fill(world);
        world.write_through(3, 5);
        world.read_through(0, EXTENT);
        world.break_link(&server_name(3), &server_name(2));
        world.run_for(Duration::from_millis(500));
        let still = waiting.iter().filter(|n| world.client.pending.contains_key(n)).count();
        assert_eq!(still, waiting.len(), "the mirror said again that it is full");
        let place = &mut world.manager.desired[1];
        (place.replica, place.server, place.address) =
            (replica_id(4), server_name(4), address_of(4));
        world.run_until(Duration::from_secs(60), "moved", |w| w.manager.is_whole());
        for &number in &waiting {
            world.await_answer(number);
        }
        assert_eq!((world.manager.failovers, world.manager.learners_failed), (0, 0));
        world.quiesce();
        world.read_everything();
        world.check_replicas();
    }
}

#[test]
fn a_broken_link_loses_no_write_that_waits() {
    for seed in 0..8 {
        let (mut world, _) = full(seed);
        for _ in 0..4 {
            world.break_link(&server_name(1), &server_name(2));
            world.run_for(Duration::from_millis(50));
            world.write_through(3, 5);
        }
        make_room(&mut world);
    }
}

#[test]
fn a_new_session_opens_while_writes_of_the_old_one_wait() {
    for seed in 0..8 {
        let (mut world, _) = full(seed);
        world.restart_client();
        world.write_through(3, 5);
        world.read_through(0, EXTENT);
        make_room(&mut world);
    }
}
