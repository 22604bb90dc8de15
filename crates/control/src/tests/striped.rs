//! Volumes whose replicas are striped over several drives of their servers.

use std::collections::BTreeSet;

use format::record::Placed;
use model::{
    id::VolumeId,
    state::{ModificationState, VolumeState},
    volume::Media,
};

use super::world::{World, drive, gp3, rate};
use crate::{
    api::{CommandKind, CreateVolume, ModifyVolume},
    ledger::Ledger,
};

const GIB: u64 = 1 << 30;

/// Each server has three SSDs; the first is the one that all worlds have.
fn world(servers_per_zone: u32) -> World {
    let mut world = World::unstarted(servers_per_zone);
    for server in &mut world.servers {
        let more = ["ssd-1", "ssd-2"];
        server.more = more.map(|name| drive(name, Media::Ssd, 100, rate(10_000, 1_000))).to_vec();
    }
    world.run(4_000);
    world
}

fn striped(gib: u32, stripes: u32) -> CreateVolume {
    CreateVolume { stripes: Some(stripes), ..gp3("local-1a", gib) }
}

fn made(world: &mut World, request: CreateVolume) -> VolumeId {
    let volume = world.create(request);
    world.until("available", 5_000, |w| w.volume(volume).state == VolumeState::Available);
    volume
}

fn modify(volume: VolumeId, stripes: u32) -> CommandKind {
    let (volume, stripes) = (Some(volume), Some(stripes));
    CommandKind::ModifyVolume(ModifyVolume { volume, stripes, ..ModifyVolume::default() })
}

fn placed(world: &World, volume: VolumeId) -> Vec<Placed> {
    world.state().groups[&world.volume(volume).group].desired.clone()
}

/// At rest, with every replica on so many drives of one server, each used once.
fn lies_on(world: &World, volume: VolumeId, stripes: usize) -> bool {
    let group = &world.state().groups[&world.volume(volume).group];
    let latest = world.state().latest_modification(volume).map(|m| m.state);
    let right = |p: &Placed| {
        let drives: BTreeSet<_> = p.drives().collect();
        let one_server = drives.iter().all(|d| d.server == p.drive.server);
        one_server && drives.len() == stripes && group.config.is_in_sync(p.replica)
    };
    latest.is_none_or(|state| state == ModificationState::Completed)
        && group.replicas.len() == 2
        && group.desired.iter().all(right)
}

#[test]
fn every_drive_of_a_stripe_is_charged_its_part_and_no_other() {
    let mut world = world(2);
    let volume = made(&mut world, striped(9, 2));
    assert!(lies_on(&world, volume, 2));
    let ledger = Ledger::of(&world.state());
    let desired = placed(&world, volume);
    for (id, account) in &ledger.drives {
        let promised = account.promised;
        let charged = (promised.bytes, promised.iops, promised.mib_per_sec);
        let expected =
            if desired.iter().any(|p| p.lies_on(id)) { (5 * GIB, 1_500, 63) } else { (0, 0, 0) };
        assert_eq!(charged, expected, "{id}");
    }
}

#[test]
fn stripes_that_cannot_be_are_refused_with_the_limit_and_the_next_step() {
    let mut world = world(2);
    let volume = made(&mut world, striped(8, 1));
    for stripes in [0, 9] {
        let create = CommandKind::CreateVolume(striped(8, stripes));
        for command in [create, modify(volume, stripes)] {
            let error = world.ask(command).expect_err("refused");
            assert_eq!(error.code, "InvalidParameterValue");
            assert!(error.message.contains("1 to 8 drives"), "{}", error.message);
        }
    }
    let create = CommandKind::CreateVolume(striped(8, 4));
    for command in [create, modify(volume, 4)] {
        let error = world.ask(command).expect_err("refused");
        assert_eq!(error.code, "InsufficientVolumeCapacity");
        let words = ["4 drives of one server", "no server there has more than 3", "fewer stripes"];
        assert!(words.iter().all(|w| error.message.contains(w)), "{}", error.message);
    }
    // Three drives, but not three with room: 80 GiB of each are left.
    made(&mut world, striped(60, 3));
    let error = world.ask(CommandKind::CreateVolume(striped(300, 3))).expect_err("refused");
    assert_eq!(error.code, "InsufficientVolumeCapacity");
    assert!(error.message.contains("300 GiB"), "{}", error.message);
}

#[test]
fn a_modification_stripes_a_volume_and_another_undoes_it() {
    let mut world = world(2);
    let volume = made(&mut world, gp3("local-1a", 8));
    for stripes in [3, 2, 1] {
        world.ask(modify(volume, stripes)).expect("accepted");
        world.until("moved", 60_000, |w| lies_on(w, volume, stripes as usize));
        assert_eq!(world.volume(volume).parameters.stripes.get(), stripes);
    }
    // Nothing else moves when something else is modified.
    let before = placed(&world, volume);
    let rate = ModifyVolume { volume: Some(volume), size: None, ..ModifyVolume::default() };
    let rate = ModifyVolume { iops: Some(model::units::Iops::new(4_000)), ..rate };
    world.ask(CommandKind::ModifyVolume(rate)).expect("accepted");
    world.until("done", 20_000, |w| lies_on(w, volume, 1));
    let replicas = |p: &[Placed]| p.iter().map(|p| p.replica).collect::<Vec<_>>();
    assert_eq!(replicas(&placed(&world, volume)), replicas(&before));
}

#[test]
fn a_change_of_stripes_survives_the_death_of_the_manager_at_every_commit() {
    let mut made_world = world(2);
    made(&mut made_world, gp3("local-1a", 8));
    for commit in 1..40 {
        for durable in [false, true] {
            let mut world = world(2);
            let volume = made(&mut world, gp3("local-1a", 8));
            world.ask(modify(volume, 2)).expect("accepted");
            world.kill_at = Some((world.commits + commit, durable));
            world.until("moved", 120_000, |w| w.manager.is_some() && lies_on(w, volume, 2));
            if world.kill_at.is_some_and(|(at, _)| at > world.commits) {
                assert!(commit > 5, "a modification takes some commits");
                return;
            }
        }
    }
}

#[test]
fn a_replica_is_made_anew_when_any_of_its_drives_fails() {
    let mut world = world(3);
    let volume = made(&mut world, striped(8, 2));
    let lost = placed(&world, volume)[1].clone();
    let server = lost.drive.server.to_string();
    world.fail_drive(&server, lost.beside[0].as_str(), false);
    world.until("made anew", 60_000, |w| {
        let (desired, config) = (placed(w, volume), w.config(volume));
        config.in_sync().count() == 2
            && desired.iter().all(|p| p.replica != lost.replica && config.is_in_sync(p.replica))
    });
    world.run(2_000);
    let state = world.state();
    let failed = model::id::DriveId { drive: lost.beside[0].clone(), ..lost.drive };
    assert!(placed(&world, volume).iter().all(|p| !p.lies_on(&failed)));
    assert_eq!(Ledger::of(&state).drives[&failed].promised.bytes, 0);
}

#[test]
fn a_drive_that_two_stripes_fill_is_relieved_of_one_of_them() {
    let mut world = world(3);
    for server in &mut world.servers {
        server.drive_bytes = Some(10 * GIB);
    }
    let volumes = [10, 9].map(|gib| made(&mut world, striped(gib, 2)));
    let before = volumes.map(|v| placed(&world, v));
    let shared = before[0].iter().flat_map(Placed::drives);
    let shared = shared.into_iter().find(|d| before[1].iter().any(|p| p.lies_on(d)));
    let shared = shared.expect("three servers, two pairs; three drives, two pairs");
    for (volume, bytes) in volumes.into_iter().zip([10 * GIB, 19 * GIB / 2]) {
        let group = world.volume(volume).group;
        let replicas = world.servers.iter_mut().flat_map(|s| s.replicas.values_mut());
        replicas.filter(|r| r.group == Some(group)).for_each(|r| r.bytes = bytes);
    }
    world.until("relieved", 60_000, |w| {
        let on_it = |v: &VolumeId| placed(w, *v).iter().any(|p| p.lies_on(&shared));
        volumes.iter().filter(|v| on_it(v)).count() == 1
            && volumes.iter().all(|v| lies_on(w, *v, 2))
    });
}
