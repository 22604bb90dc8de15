//! A primary that the manager hears from and its guests cannot reach.

use format::ctl::ToManager;
use model::id::{ServerId, VolumeId};

use super::world::{World, gp3};
use crate::{
    api::{AttachVolume, CommandKind},
    machine::Event,
};

fn in_use(world: &mut World) -> VolumeId {
    let volume = world.create(gp3("local-1a", 8));
    world.run(2_000);
    let attach = CommandKind::AttachVolume(AttachVolume {
        volume,
        instance: world.nodes[0].instance,
        device: "/dev/sdf".to_owned(),
        kernel_device: false,
    });
    world.ask(attach).expect("attachable");
    world.run(2_000);
    volume
}

/// A node manager complains each second for so long.
fn complain(world: &mut World, at: usize, volume: VolumeId, seconds: u64, out_of_reach: bool) {
    for _ in 0..seconds {
        let config = world.config(volume);
        let (group, epoch) = (config.group, config.epoch);
        let link = world.nodes[at].link.expect("it has a link");
        let message = ToManager::PrimarySilent { group, epoch, out_of_reach };
        world.feed(Event::LinkReceived { link, message });
        world.run(1_000);
    }
}

fn primary(world: &World, volume: VolumeId) -> ServerId {
    world.config(volume).primary().server.clone()
}

#[test]
fn a_primary_out_of_its_guests_reach_is_replaced_after_a_while() {
    let mut world = World::new();
    let volume = in_use(&mut world);
    let (before, mirror) = {
        let config = world.config(volume);
        let mirror = config.mirrors().next().expect("a mirror").server.clone();
        (config.primary().server.clone(), mirror)
    };
    complain(&mut world, 0, volume, 3, true);
    assert_eq!(
        primary(&world, volume),
        before,
        "not at once: it may be a broken cable for a moment"
    );
    complain(&mut world, 0, volume, 2, true);
    assert_eq!(primary(&world, volume), mirror);
    world.until("whole again", 30_000, |w| w.config(volume).in_sync().count() == 2);
}

#[test]
fn a_primary_that_is_there_but_slow_is_kept() {
    let mut world = World::new();
    let volume = in_use(&mut world);
    let before = world.config(volume).epoch;
    complain(&mut world, 0, volume, 30, false);
    assert_eq!(world.config(volume).epoch, before);
}

#[test]
fn a_node_manager_without_the_volume_is_not_listened_to() {
    let mut world = World::new();
    let volume = in_use(&mut world);
    let before = world.config(volume).epoch;
    complain(&mut world, 1, volume, 30, true);
    assert_eq!(world.config(volume).epoch, before);
}

#[test]
fn a_node_manager_that_reaches_nobody_does_not_drive_the_primary_to_and_fro() {
    let mut world = World::new();
    let volume = in_use(&mut world);
    let (mut changes, mut before) = (0, primary(&world, volume));
    for _ in 0..120 {
        complain(&mut world, 0, volume, 1, true);
        let now = primary(&world, volume);
        changes += u32::from(now != before);
        before = now;
    }
    assert!((1..=5).contains(&changes), "{changes} changes of primary in two minutes");
}
