//! Members that primaries call slow.

use format::ctl::ToManager;
use model::{
    group::GroupConfig,
    id::{ReplicaId, VolumeId},
};

use super::world::{World, gp3};

/// The primary's server reports of its group.
fn report(world: &mut World, volume: VolumeId, of: impl FnOnce(&GroupConfig) -> ToManager) {
    let config = world.config(volume);
    let server = config.primary().server.to_string();
    let link = world.server(&server).link.expect("the primary's server has a link");
    world.report(link, of(&config));
}

fn call_slow(world: &mut World, volume: VolumeId, member: ReplicaId) {
    report(world, volume, |config| ToManager::MemberSlow {
        group: config.group,
        epoch: config.epoch,
        member,
        takes_us: 20_000,
        others_take_us: 400,
    });
}

/// Its primary calls a member slow, each half second for so long.
fn complain(world: &mut World, volume: VolumeId, member: ReplicaId, times: u32) {
    for _ in 0..times {
        call_slow(world, volume, member);
        world.run(500);
    }
}

fn whole() -> (World, VolumeId) {
    let mut world = World::new();
    let volume = world.create(gp3("local-1a", 8));
    world.until("whole", 10_000, |w| w.config(volume).in_sync().count() == 2);
    world.run(2_000);
    (world, volume)
}

fn mirror(world: &World, volume: VolumeId) -> ReplicaId {
    world.config(volume).mirrors().next().expect("a mirror").replica
}

fn primary(world: &World, volume: VolumeId) -> ReplicaId {
    world.config(volume).primary().replica
}

#[test]
fn a_slow_mirror_is_replaced_and_not_waited_for() {
    let (mut world, volume) = whole();
    let (slow, leads) = (mirror(&world, volume), primary(&world, volume));
    complain(&mut world, volume, slow, 1);
    assert!(world.config(volume).member(slow).is_none(), "it is not waited for");
    assert_eq!(primary(&world, volume), leads);
    world.until("whole again", 30_000, |w| w.config(volume).in_sync().count() == 2);
    assert_ne!(mirror(&world, volume), slow);
}

#[test]
fn a_slow_primary_gives_way_to_its_mirror() {
    let (mut world, volume) = whole();
    let (slow, follows) = (primary(&world, volume), mirror(&world, volume));
    complain(&mut world, volume, slow, 2);
    assert_eq!(primary(&world, volume), follows);
    world.until("whole again", 30_000, |w| w.config(volume).in_sync().count() == 2);
    assert!(world.config(volume).member(slow).is_none());
}

#[test]
fn what_is_slow_next_is_borne_for_a_while() {
    let (mut world, volume) = whole();
    let first = mirror(&world, volume);
    complain(&mut world, volume, first, 1);
    world.until("whole again", 30_000, |w| w.config(volume).in_sync().count() == 2);
    let second = mirror(&world, volume);
    complain(&mut world, volume, second, 120);
    assert!(world.config(volume).is_in_sync(second), "within ten minutes of the first");
}

#[test]
fn a_slow_mirror_stays_where_there_is_no_other_place() {
    let mut world = World::unstarted(2);
    world.run(100);
    let volume = world.create(gp3("local-1a", 8));
    world.until("whole", 10_000, |w| w.config(volume).in_sync().count() == 2);
    let used: Vec<_> = world.config(volume).members.iter().map(|m| m.server.to_string()).collect();
    for zone in ["a", "b", "c"] {
        for number in 1..=2 {
            let server = format!("server-{zone}-{number}");
            if !used.contains(&server) {
                world.kill_server(&server);
            }
        }
    }
    world.run(5_000);
    let slow = mirror(&world, volume);
    complain(&mut world, volume, slow, 20);
    assert!(world.config(volume).is_in_sync(slow), "a slow copy is better than none");
}

#[test]
fn a_slow_mirror_is_taken_back_when_the_place_of_its_successor_is_lost() {
    let mut world = World::unstarted(1);
    world.run(100);
    let volume = world.create(gp3("local-1a", 8));
    world.until("whole", 10_000, |w| w.config(volume).in_sync().count() == 2);
    world.run(2_000);
    let slow = mirror(&world, volume);
    let used: Vec<_> = world.config(volume).members.iter().map(|m| m.server.to_string()).collect();
    let mut servers = ["a", "b", "c"].map(|zone| format!("server-{zone}-1")).into_iter();
    let third = servers.find(|s| !used.contains(s)).expect("one is left");
    call_slow(&mut world, volume, slow);
    world.run(3);
    world.kill_server(&third);
    world.until("whole, with it", 120_000, |w| {
        let config = w.config(volume);
        config.in_sync().count() == 2 && config.is_in_sync(slow)
    });
    world.run(30_000);
    assert!(world.config(volume).is_in_sync(slow), "it is waited for again");
}

#[test]
fn a_member_that_is_silent_is_not_judged_as_slow() {
    let (mut world, volume) = whole();
    let (slow, others) = (mirror(&world, volume), world.config(volume).members.len());
    report(&mut world, volume, |config| ToManager::MemberSilent {
        group: config.group,
        epoch: config.epoch,
        silent: slow,
    });
    complain(&mut world, volume, slow, 1);
    assert_eq!(world.config(volume).members.len(), others);
    assert!(world.config(volume).is_in_sync(slow), "patience decides that");
}
