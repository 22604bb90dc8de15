//! A volume's life, with and without deaths.

use std::collections::BTreeSet;

use model::{
    id::VolumeId,
    state::{AttachmentState, ModificationState, VolumeState},
    units::{Gib, Iops, MibPerSec},
};

use super::world::{World, gp3, standard};
use crate::api::{AttachVolume, CommandKind, CreateVolume, DetachVolume, Done, ModifyVolume};

fn attach_to(world: &World, node: usize, volume: VolumeId) -> CommandKind {
    CommandKind::AttachVolume(AttachVolume {
        volume,
        instance: world.nodes[node].instance,
        device: "/dev/sdf".to_owned(),
        kernel_device: false,
    })
}

fn detach(volume: VolumeId, force: bool) -> CommandKind {
    CommandKind::DetachVolume(DetachVolume { volume, instance: None, device: None, force })
}

/// 8 GiB HDD in zone a, to 12 GiB SSD in zone b with other rates.
fn everything(volume: VolumeId) -> CommandKind {
    CommandKind::ModifyVolume(ModifyVolume {
        volume: Some(volume),
        size: Some(Gib::new(12)),
        volume_type: Some("gp3".to_owned()),
        iops: Some(Iops::new(4_000)),
        throughput: Some(MibPerSec::new(250)),
        multi_attach: None,
        zone: Some("local-1b".to_owned()),
        stripes: None,
    })
}

fn available(world: &World, volume: VolumeId) -> bool {
    world.volume(volume).state == VolumeState::Available
}

fn attached(world: &World, volume: VolumeId) -> bool {
    let state = world.state();
    state.attachments_of(volume).any(|a| a.state == AttachmentState::Attached)
}

fn completed(world: &World, volume: VolumeId) -> bool {
    world.modification(volume).state == ModificationState::Completed
}

/// A volume that is attached to the node manager of zone a and being written.
fn in_use(world: &mut World, request: CreateVolume) -> VolumeId {
    let volume = world.create(request);
    world.until("available", 5_000, |w| available(w, volume));
    world.ask(attach_to(world, 0, volume)).expect("attachable");
    world.until("attached", 5_000, |w| attached(w, volume));
    world.run(500);
    volume
}

fn servers_of(world: &World, volume: VolumeId) -> Vec<String> {
    world.config(volume).members.iter().map(|m| m.server.to_string()).collect()
}

/// Primary and one mirror, both in sync, as desired, nothing else anywhere.
fn whole(world: &World, volume: VolumeId) -> bool {
    let state = world.state();
    let group = &state.groups[&world.volume(volume).group];
    group.config.members.len() == 2
        && group.config.in_sync().count() == 2
        && group.replicas.len() == 2
        && group.desired.iter().all(|p| group.config.is_in_sync(p.replica))
}

#[test]
fn a_volume_is_made_attached_modified_detached_and_deleted() {
    let mut world = World::new();
    let volume = in_use(&mut world, standard("local-1a", 8));
    assert_eq!(world.volume(volume).state, VolumeState::InUse);
    let servers = servers_of(&world, volume);
    assert!(servers.iter().all(|s| s.starts_with("server-a-")), "{servers:?}");

    world.ask(everything(volume)).expect("there is room");
    world.until("completed", 30_000, |w| completed(w, volume));
    let servers = servers_of(&world, volume);
    assert!(servers.iter().all(|s| s.starts_with("server-b-")), "{servers:?}");
    assert!(whole(&world, volume));
    let config = world.config(volume);
    assert_eq!(config.size, Gib::new(12).to_bytes());
    assert_eq!(config.rate, super::world::rate(4_000, 250));
    assert_eq!(config.media, model::volume::Media::Ssd);
    let steps = ["reserve", "configure", "create", "fill", "admit", "switch"];
    let rest = ["fill", "admit", "drop", "free", "done"];
    let expected: Vec<_> = steps.into_iter().chain(rest).collect();
    assert_eq!(world.steps_seen, expected);
    assert_eq!(world.modification(volume).progress_percent, 100);
    world.until("the node manager knows", 2_000, |w| {
        w.nodes[0].attached[&volume].config.epoch == w.config(volume).epoch
    });
    assert!(world.longest_stall_ms <= 400, "stalled {} ms", world.longest_stall_ms);

    world.ask(detach(volume, false)).expect("attached");
    world.until("detached", 5_000, |w| available(w, volume));
    assert!(world.nodes[0].attached.is_empty());
    world.ask(CommandKind::DeleteVolume { volume }).expect("available");
    world.until("deleted", 5_000, |w| w.state().volumes.is_empty());
    world.until("freed", 5_000, |w| w.state().groups.is_empty());
    assert!(world.servers.iter().all(|s| s.replicas.is_empty()));
    assert!(world.state().modifications.is_empty());
}

#[test]
fn a_modification_on_the_servers_in_use_never_leaves_both_replicas_on_one() {
    let mut world = World::new();
    let volume = in_use(&mut world, standard("local-1a", 8));
    let request = ModifyVolume {
        volume: Some(volume),
        volume_type: Some("gp3".to_owned()),
        ..ModifyVolume::default()
    };
    world.ask(CommandKind::ModifyVolume(request)).expect("there is room");
    let start = world.ms;
    while !completed(&world, volume) {
        world.step();
        let config = world.config(volume);
        let servers: std::collections::BTreeSet<_> =
            config.in_sync().map(|m| m.server.clone()).collect();
        assert_eq!(servers.len(), 2, "{config:#?}");
        assert!(world.ms - start < 30_000, "not completed");
    }
    assert!(servers_of(&world, volume).iter().all(|s| s.starts_with("server-a-")));
}

#[test]
fn size_and_rate_in_place_move_nothing_and_complete_at_once() {
    let mut world = World::new();
    let volume = in_use(&mut world, gp3("local-1a", 8));
    let before = servers_of(&world, volume);
    let request = ModifyVolume {
        volume: Some(volume),
        size: Some(Gib::new(16)),
        iops: Some(Iops::new(6_000)),
        ..ModifyVolume::default()
    };
    world.ask(CommandKind::ModifyVolume(request)).expect("there is room");
    let took = world.until("completed", 5_000, |w| completed(w, volume));
    assert!(took <= 500, "took {took} ms");
    assert_eq!(servers_of(&world, volume), before);
    assert_eq!(world.config(volume).size, Gib::new(16).to_bytes());
    assert_eq!(world.volume(volume).parameters.rate.iops, Iops::new(6_000));
    assert_eq!(world.steps_seen, ["reserve", "configure", "done"]);
}

#[test]
fn the_death_of_the_primary_loses_nothing_and_the_mirror_serves() {
    let mut world = World::new();
    let volume = in_use(&mut world, gp3("local-1a", 8));
    let old = world.config(volume).primary().server.to_string();
    world.kill_server(&old);
    let acknowledged = world.acknowledged.len();
    world.until("writes go on", 2_000, |w| w.acknowledged.len() > acknowledged);
    assert_ne!(world.config(volume).primary().server.to_string(), old);
    // Its server stays away: another takes the lost replica's place, in another zone because
    // this one has no third server.
    world.until("mirrored again", 20_000, |w| {
        let config = w.config(volume);
        config.in_sync().count() == 2 && !servers_of(w, volume).contains(&old)
    });
    world.start_server(&old);
    world.until("the old replica is freed", 10_000, |w| whole(w, volume));
}

#[test]
fn a_primary_that_comes_back_soon_is_a_learner_and_then_a_mirror() {
    let mut world = World::new();
    let volume = in_use(&mut world, gp3("local-1a", 8));
    let before = servers_of(&world, volume);
    world.kill_server(&before[0]);
    world.run(1_000);
    world.start_server(&before[0]);
    world.run(500);
    world.until("whole again", 10_000, |w| whole(w, volume));
    let mut after = servers_of(&world, volume);
    assert_eq!(after[0], before[1], "nobody hands back without need");
    after.sort();
    let mut expected = before.clone();
    expected.sort();
    assert_eq!(after, expected);
}

#[test]
fn a_hung_server_is_given_up_on_the_word_of_the_node_manager_and_by_silence() {
    let mut world = World::new();
    let volume = in_use(&mut world, gp3("local-1a", 8));
    let primary = world.config(volume).primary().server.to_string();
    // Hung: says nothing, serves nothing, keeps its connections.
    world.server(&primary).up = false;
    let acknowledged = world.acknowledged.len();
    world.until("writes go on", 4_000, |w| w.acknowledged.len() > acknowledged);
}

#[test]
fn both_servers_restart_and_the_volume_serves_again() {
    let mut world = World::new();
    let volume = in_use(&mut world, gp3("local-1a", 8));
    let servers = servers_of(&world, volume);
    for server in &servers {
        world.kill_server(server);
    }
    world.run(8_000);
    for server in &servers {
        world.start_server(server);
    }
    let acknowledged = world.acknowledged.len();
    world.until("writes go on", 6_000, |w| w.acknowledged.len() > acknowledged);
    world.until("whole again", 20_000, |w| w.config(volume).in_sync().count() == 2);
}

#[test]
fn a_mirror_that_dies_is_dropped_and_replaced() {
    let mut world = World::new();
    let volume = in_use(&mut world, gp3("local-1a", 8));
    let mirror = servers_of(&world, volume)[1].clone();
    world.kill_server(&mirror);
    let acknowledged = world.acknowledged.len();
    world.until("writes go on", 4_000, |w| w.acknowledged.len() > acknowledged + 5);
    world.until("mirrored elsewhere", 20_000, |w| {
        w.config(volume).in_sync().count() == 2 && !servers_of(w, volume).contains(&mirror)
    });
}

/// Its drives are swapped for empty ones, and it is started again.
fn swap_drives(world: &mut World, server: &str) {
    world.kill_server(server);
    world.server(server).replicas.clear();
    world.start_server(server);
}

#[test]
fn a_mirror_whose_drive_was_swapped_is_dropped_and_replaced_at_once() {
    let mut world = World::new();
    let volume = in_use(&mut world, gp3("local-1a", 8));
    let before = world.config(volume);
    let mirror = before.mirrors().next().expect("there is one").clone();
    swap_drives(&mut world, mirror.server.as_str());
    let acknowledged = world.acknowledged.len();
    world.until("writes go on", 1_000, |w| w.acknowledged.len() > acknowledged + 5);
    // Its server is well, so nothing is waited for.
    let limit = 4_000;
    world.until("mirrored again", limit, |w| whole(w, volume));
    let after = world.config(volume);
    assert!(after.member(mirror.replica).is_none(), "the lost replica is a member still");
    assert_eq!(after.primary().replica, before.primary().replica);
}

/// All of what the drives offer is promised: the lost replica's own claim is what the new one takes.
#[test]
fn a_replica_whose_drive_was_swapped_comes_back_where_no_drive_has_room() {
    let mut world = World::unstarted(2);
    for server in &mut world.servers {
        server.ssd.capacity = Gib::new(8).to_bytes();
    }
    world.run(4_000);
    let volume = world.create(gp3("local-1a", 8));
    world.until("whole", 20_000, |w| whole(w, volume));
    // Every other drive is promised to somebody.
    let zones: BTreeSet<String> = world.servers.iter().map(|s| s.zone.clone()).collect();
    for zone in zones {
        while let Ok(Done::Volume(made)) = world.ask(CommandKind::CreateVolume(gp3(&zone, 8))) {
            let available = |w: &World| w.volume(made.volume).state == VolumeState::Available;
            world.until("made", 5_000, available);
        }
    }
    let mirror = world.config(volume).mirrors().next().expect("there is one").clone();
    swap_drives(&mut world, mirror.server.as_str());
    let dropped = |w: &World| w.config(volume).member(mirror.replica).is_none();
    world.until("dropped", 20_000, dropped);
    world.until("mirrored again", 20_000, |w| whole(w, volume));
    assert!(servers_of(&world, volume).contains(&mirror.server.to_string()));
    // The old one is forgotten as soon as its server says that it does not have it.
    let group = |w: &World| w.state().groups[&w.volume(volume).group].clone();
    world.until("settled", 20_000, |w| group(w).replicas.len() == 2);
}

#[test]
fn a_volume_whose_drives_were_both_swapped_waits_and_is_never_served_empty() {
    let mut world = World::new();
    let volume = in_use(&mut world, gp3("local-1a", 8));
    let before = world.config(volume);
    for member in &before.members {
        swap_drives(&mut world, member.server.as_str());
    }
    let acknowledged = world.acknowledged.len();
    world.run(20_000);
    assert_eq!(world.acknowledged.len(), acknowledged, "written to nothing");
    assert_eq!(world.config(volume), before, "an empty replica was made a member");
}

#[test]
fn a_drive_that_fails_is_replaced_at_once_whoever_says_so_first() {
    for status_only in [false, true] {
        let mut world = World::new();
        let volume = in_use(&mut world, gp3("local-1a", 8));
        let primary = world.config(volume).primary().clone();
        world.fail_drive(primary.server.as_str(), "ssd", status_only);
        let acknowledged = world.acknowledged.len();
        world.until("writes go on", 2_000, |w| w.acknowledged.len() > acknowledged + 5);
        world.until("mirrored again", 6_000, |w| {
            let config = w.config(volume);
            config.in_sync().count() == 2 && config.member(primary.replica).is_none()
        });
    }
}

#[test]
fn a_mirror_that_restarts_at_once_changes_no_configuration() {
    let mut world = World::new();
    let volume = in_use(&mut world, gp3("local-1a", 8));
    let before = world.config(volume);
    let mirror = servers_of(&world, volume)[1].clone();
    world.kill_server(&mirror);
    world.run(1_000);
    world.start_server(&mirror);
    world.run(10_000);
    assert_eq!(world.config(volume), before);
}

#[test]
fn a_lone_replica_is_waited_for() {
    let mut world = World::new();
    let volume = in_use(&mut world, gp3("local-1a", 8));
    let servers = servers_of(&world, volume);
    world.kill_server(&servers[1]);
    world.until("alone", 5_000, |w| w.config(volume).members.len() == 1);
    world.kill_server(&servers[0]);
    world.start_server(&servers[1]);
    let epoch = world.config(volume).epoch;
    world.run(20_000);
    assert_eq!(world.config(volume).epoch, epoch, "an old replica is never promoted");
    world.start_server(&servers[0]);
    let acknowledged = world.acknowledged.len();
    world.until("writes go on", 6_000, |w| w.acknowledged.len() > acknowledged);
    world.until("mirrored", 20_000, |w| w.config(volume).in_sync().count() == 2);
}

#[test]
fn the_target_of_a_fill_dies_and_another_is_filled() {
    let mut world = World::new();
    let volume = in_use(&mut world, standard("local-1a", 8));
    world.ask(everything(volume)).expect("there is room");
    world.until("filling", 5_000, |w| w.config(volume).learners().next().is_some());
    let learner = world.config(volume).learners().next().expect("seen").server.to_string();
    world.kill_server(&learner);
    world.until("completed", 40_000, |w| completed(w, volume));
    assert!(!servers_of(&world, volume).contains(&learner));
}

#[test]
fn a_modification_that_cannot_be_filled_fails_and_frees_what_it_reserved() {
    let mut world = World::new();
    let volume = in_use(&mut world, standard("local-1a", 8));
    let before = world.config(volume).primary().replica;
    world.unreadable = true;
    world.ask(everything(volume)).expect("there is room");
    world.until("failed", 240_000, |w| w.modification(volume).state == ModificationState::Failed);
    assert!(world.modification(volume).status_message.is_some_and(|m| m.contains("filled")));
    world.until("freed", 20_000, |w| w.state().groups[&w.volume(volume).group].replicas.len() == 2);
    assert_eq!(world.config(volume).primary().replica, before);
    let acknowledged = world.acknowledged.len();
    world.until("writes go on", 4_000, |w| w.acknowledged.len() > acknowledged + 5);
    world.unreadable = false;
    world.ask(everything(volume)).expect("it may be tried again");
    world.until("completed", 40_000, |w| completed(w, volume));
}

#[test]
fn the_primary_dies_while_its_replacement_is_filled() {
    let mut world = World::new();
    let volume = in_use(&mut world, standard("local-1a", 8));
    world.ask(everything(volume)).expect("there is room");
    world.until("filling", 5_000, |w| w.config(volume).learners().next().is_some());
    let primary = world.config(volume).primary().server.to_string();
    world.kill_server(&primary);
    world.until("completed", 40_000, |w| completed(w, volume));
    assert!(servers_of(&world, volume).iter().all(|s| s.starts_with("server-b-")));
    world.start_server(&primary);
    world.until("freed", 10_000, |w| whole(w, volume));
}

#[test]
fn a_forced_detach_does_not_wait_for_the_node_manager_and_fences_it() {
    let mut world = World::new();
    let volume = in_use(&mut world, gp3("local-1a", 8));
    world.kill_node(0);
    world.ask(detach(volume, false)).expect("attached");
    world.run(10_000);
    assert_eq!(world.volume(volume).state, VolumeState::InUse, "a plain detach waits");
    world.ask(detach(volume, true)).expect("detaching");
    world.until("available", 3_000, |w| available(w, volume));
    let held = world.nodes[0].generation(volume).expect("it was away");
    assert!(world.config(volume).attach_generation > held);
    world.start_node(0);
    world.until("the leftover is dropped", 3_000, |w| w.nodes[0].attached.is_empty());
}

#[test]
fn a_node_manager_that_drains_knows_where_to_whatever_happens() {
    let mut world = World::new();
    let volume = in_use(&mut world, gp3("local-1a", 8));
    world.nodes[0].drains = true;
    world.ask(detach(volume, false)).expect("attached");
    world.run(2_000);
    // On a new link nobody knows what it was told before.
    world.kill_manager(100);
    world.run(1_000);
    let primary = world.config(volume).primary().clone();
    world.kill_server(primary.server.as_str());
    let knows = |w: &World| {
        let (known, config) = (&w.nodes[0].attached[&volume].config, w.config(volume));
        config.primary().replica != primary.replica && known.epoch == config.epoch
    };
    world.until("told of the failover", 10_000, knows);
    let redundant = |w: &World| w.config(volume).in_sync().count() == 2;
    world.until("redundant, and told so", 60_000, |w| redundant(w) && knows(w));
    world.nodes[0].drains = false;
    world.until("available", 3_000, |w| available(w, volume));
}

#[test]
fn a_node_manager_that_registers_again_gets_its_attachments() {
    let mut world = World::new();
    let volume = in_use(&mut world, gp3("local-1a", 8));
    world.kill_node(0);
    world.nodes[0].attached.clear();
    world.run(2_000);
    world.start_node(0);
    world.until("attached there", 2_000, |w| w.nodes[0].attached.contains_key(&volume));
}

/// Drives a volume through its whole life from whatever the store says, so that it can go on
/// after any death.
fn live_a_life(world: &mut World, kills: Option<(u64, bool)>) -> u64 {
    world.kill_at = kills;
    let limit = world.ms + 120_000;
    let (mut modified, mut detached) = (false, false);
    loop {
        world.step();
        assert!(world.ms < limit, "stuck at {kills:?}: {:#?}", world.store);
        if world.manager.is_none() || !world.ms.is_multiple_of(500) {
            continue;
        }
        let state = world.state();
        let Some(volume) = state.volumes.values().next() else {
            if detached && state.groups.is_empty() {
                break;
            }
            if !detached {
                let request = CreateVolume {
                    client_token: Some("the-one".to_owned()),
                    ..standard("local-1a", 8)
                };
                world.submit(CommandKind::CreateVolume(request));
            }
            continue;
        };
        let id = volume.volume;
        let attached = state.attachments_of(id).any(|a| a.state == AttachmentState::Attached);
        let modification = state.latest_modification(id);
        modified |= modification.is_some_and(|m| m.state == ModificationState::Completed);
        match volume.state {
            VolumeState::Available if !modified => drop(world.submit(attach_to(world, 0, id))),
            VolumeState::Available => {
                detached = true;
                world.submit(CommandKind::DeleteVolume { volume: id });
            }
            VolumeState::InUse if attached && modification.is_none() => {
                world.submit(everything(id));
            }
            VolumeState::InUse if attached && modified => {
                assert!(whole(world, id), "completed means nothing is left to do");
                world.submit(detach(id, false));
            }
            _ => {}
        }
    }
    assert!(world.servers.iter().all(|s| s.replicas.is_empty()), "space leaked at {kills:?}");
    assert!(!world.acknowledged.is_empty());
    world.commits
}

#[test]
fn the_manager_may_die_at_every_commit_and_the_life_goes_on() {
    let mut world = World::new();
    let first = world.commits + 1;
    let last = live_a_life(&mut world, None);
    assert!(last > first + 20, "a life has many commits: {first} to {last}");
    for at in first..=last {
        for durable in [false, true] {
            live_a_life(&mut World::new(), Some((at, durable)));
        }
    }
}

#[test]
fn progress_is_true_and_never_goes_back() {
    let mut world = World::new();
    let volume = in_use(&mut world, standard("local-1a", 8));
    world.fill_steps = 100;
    world.ask(everything(volume)).expect("there is room");
    let (mut last, mut seen) = (0, std::collections::BTreeSet::new());
    while !completed(&world, volume) {
        world.step();
        let modification = world.modification(volume);
        let percent = modification.progress_percent;
        assert!(percent >= last, "from {last} to {percent}");
        assert!(modification.bytes_moved <= modification.bytes_total);
        last = percent;
        seen.insert(percent);
        if world.config(volume).in_sync().count() == 2
            && world.config(volume).primary().server.as_str().starts_with("server-a-")
        {
            assert!(percent <= 50, "{percent} before the first half was there");
        }
    }
    assert!(seen.len() >= 8, "progress in steps of a second: {seen:?}");
    let moved = world.modification(volume).bytes_moved;
    assert!((150 << 20..=200 << 20).contains(&moved), "two fills of 100 MiB, not {moved} bytes");
}

#[test]
fn a_volume_for_which_a_zone_makes_no_two_replicas_ends_in_error_and_frees_its_space() {
    let mut world = World::new();
    world.server("server-a-1").refuses = true;
    let volume = world.create(gp3("local-1a", 8));
    // The zone has two servers, so a mirror in another zone would be a lie about the zone.
    world.run(70_000);
    let record = world.volume(volume);
    assert_eq!(record.state, VolumeState::Error);
    assert!(record.error.expect("a reason").contains("no room"));
    world.ask(CommandKind::DeleteVolume { volume }).expect("an error may be deleted");
    world.until("gone", 5_000, |w| w.state().groups.is_empty());
}

#[test]
fn a_modification_whose_target_is_refused_goes_elsewhere_or_fails_cleanly() {
    let mut world = World::new();
    let volume = in_use(&mut world, standard("local-1a", 8));
    let before = world.volume(volume).parameters;
    for server in ["server-b-1", "server-b-2", "server-c-1", "server-c-2"] {
        world.server(server).refuses = true;
    }
    for server in ["server-a-1", "server-a-2"] {
        world.server(server).ssd.capacity = Gib::new(1).to_bytes();
        world.break_link(server);
    }
    world.run(500);
    world.ask(everything(volume)).expect("the ledger has room");
    world.until("failed", 90_000, |w| w.modification(volume).state == ModificationState::Failed);
    world.until("freed", 10_000, |w| whole(w, volume));
    let after = world.volume(volume).parameters;
    assert_eq!(after.volume_type, before.volume_type);
    assert_eq!((after.rate, after.zone), (before.rate, before.zone));
    assert_eq!(world.config(volume).size, after.size.to_bytes());
    assert!(world.modification(volume).status_message.is_some());
    let acknowledged = world.acknowledged.len();
    world.run(1_000);
    assert!(world.acknowledged.len() > acknowledged, "programs go on");
    let again =
        ModifyVolume { volume: Some(volume), size: Some(Gib::new(13)), ..ModifyVolume::default() };
    world.ask(CommandKind::ModifyVolume(again)).expect("a failed one does not block the next");
    world.until("completed", 5_000, |w| completed(w, volume));
}

#[test]
fn a_failed_drive_of_the_primary_fails_over_and_is_replaced() {
    let mut world = World::new();
    let volume = in_use(&mut world, gp3("local-1a", 8));
    let primary = world.config(volume).primary().clone();
    let link = world.server(primary.server.as_str()).link.expect("linked");
    world.report(
        link,
        format::ctl::ToManager::DriveFailed {
            drive: primary.drive.clone(),
            reason: "reads fail".to_owned(),
        },
    );
    let acknowledged = world.acknowledged.len();
    world.until("writes go on", 2_000, |w| w.acknowledged.len() > acknowledged);
    world.until("mirrored", 10_000, |w| w.config(volume).in_sync().count() == 2);
    assert!(!servers_of(&world, volume).contains(&primary.server.to_string()));
}

#[test]
fn a_mirror_that_differs_leaves_the_set_and_comes_back_as_learner() {
    let mut world = World::new();
    let volume = in_use(&mut world, gp3("local-1a", 8));
    let config = world.config(volume).clone();
    let mirror = config.mirrors().next().expect("one").replica;
    let link = world.server(config.primary().server.as_str()).link.expect("linked");
    let (group, epoch, offset) = (config.group, config.epoch, 1 << 20);
    let message = format::ctl::ToManager::MemberDiffers { group, epoch, member: mirror, offset };
    world.report(link, message.clone());
    world.until("dropped", 2_000, |w| w.config(volume).members.len() == 1);
    world.until("back", 10_000, |w| w.config(volume).is_in_sync(mirror));
    // What was said of an earlier configuration says nothing of the present one.
    let epoch = world.config(volume).epoch;
    world.report(link, message);
    world.run(2_000);
    assert_eq!(world.config(volume).epoch, epoch);
}

#[test]
fn a_scrub_is_asked_of_every_in_sync_replica_and_one_at_a_time() {
    let mut world = World::new();
    let volume = in_use(&mut world, gp3("local-1a", 8));
    let begun = scrub_of(&mut world, volume);
    assert_eq!(begun.replicas.len(), 2);
    assert!(!begun.is_finished());
    assert_eq!(scrub_of(&mut world, volume).pass, begun.pass, "it is under way");
    world.run(2_000);
    assert_ne!(scrub_of(&mut world, volume).pass, begun.pass, "the first one is over");
}

fn scrub_of(world: &mut World, volume: VolumeId) -> crate::scrub::VolumeScrub {
    match world.ask(CommandKind::ScrubVolume { volume }) {
        Ok(Done::Scrub(scrub)) => scrub,
        other => panic!("not begun: {other:?}"),
    }
}

#[test]
fn a_zone_of_one_server_has_its_mirrors_in_another_zone() {
    let mut world = World::unstarted(1);
    world.run(4_000);
    let volume = in_use(&mut world, gp3("local-1a", 8));
    let servers = servers_of(&world, volume);
    assert_eq!(servers[0], "server-a-1");
    assert_ne!(servers[1], "server-a-1");
    world.ask(everything(volume)).expect("there is room");
    world.until("completed", 30_000, |w| completed(w, volume));
    assert_eq!(servers_of(&world, volume)[0], "server-b-1");
}

#[test]
fn a_primary_that_never_takes_its_configuration_goes_on_alone() {
    let mut world = World::new();
    let volume = in_use(&mut world, gp3("local-1a", 8));
    let mirror = world.config(volume).mirrors().next().expect("one").server.to_string();
    world.kill_server(&mirror);
    world.until("alone", 5_000, |w| w.config(volume).members.len() == 1);
    world.start_server(&mirror);
    world.until("learning", 5_000, |w| w.config(volume).learners().next().is_some());
    world.until("in sync", 5_000, |w| w.config(volume).in_sync().count() == 2);
    // As if the fill had been lost when the configuration that admits it arrived.
    world.refused_epoch = Some(world.config(volume).epoch.next());
    let request =
        ModifyVolume { volume: Some(volume), size: Some(Gib::new(9)), ..ModifyVolume::default() };
    world.ask(CommandKind::ModifyVolume(request)).expect("there is room");
    let acknowledged = world.acknowledged.len();
    world.until("writes go on", 25_000, |w| w.acknowledged.len() > acknowledged + 10);
    world.until("whole again", 20_000, |w| whole(w, volume) && completed(w, volume));
}

#[test]
fn a_slow_drain_does_not_fail_a_hand_over() {
    let mut world = World::new();
    let volume = in_use(&mut world, standard("local-1a", 8));
    world.drain_ms = 1_500;
    world.ask(everything(volume)).expect("there is room");
    world.until("completed", 30_000, |w| completed(w, volume));
    assert_eq!(world.handed_over, 1, "the first one came through");
}

#[test]
fn a_modification_in_place_goes_on_while_the_mirror_is_away() {
    let mut world = World::new();
    let volume = in_use(&mut world, gp3("local-1a", 8));
    let servers = servers_of(&world, volume);
    world.kill_server(&servers[1]);
    world.until("alone", 5_000, |w| w.config(volume).members.len() == 1);
    let request =
        ModifyVolume { volume: Some(volume), size: Some(Gib::new(16)), ..ModifyVolume::default() };
    world.ask(CommandKind::ModifyVolume(request)).expect("its place is kept");
    world.until("completed", 2_000, |w| completed(w, volume));
    world.start_server(&servers[1]);
    world.until("whole again", 10_000, |w| whole(w, volume));
    assert_eq!(servers_of(&world, volume), servers);
}
