//! Random deaths while volumes live, then peace: everything must come to rest, whole.

use model::{
    id::VolumeId,
    state::{AttachmentState, ModificationState, VolumeState},
    units::{Gib, Iops},
};

use super::world::{World, gp3, standard};
use crate::{
    api::{AttachVolume, CommandKind, CreateVolume, ModifyVolume},
    random::Random,
};

const SEEDS: u64 = 250;
const TURMOIL_MS: u64 = 40_000;
const PEACE_MS: u64 = 90_000;

/// One of the things that go wrong, or a request.
fn disturb(world: &mut World, random: &mut Random, volume: VolumeId) {
    let pick = |random: &mut Random, n: usize| {
        usize::try_from(random.bits() % u64::try_from(n).expect("small")).expect("small")
    };
    match random.bits() % 12 {
        0..=2 => {
            let at = pick(random, world.servers.len());
            let (name, up) = (world.servers[at].name.clone(), world.servers[at].up);
            if up { world.kill_server(&name) } else { world.start_server(&name) }
        }
        3..=4 => {
            // Restarts faster than anybody notices the silence.
            let at = pick(random, world.servers.len());
            let name = world.servers[at].name.clone();
            world.kill_server(&name);
            world.start_server(&name);
        }
        5 => {
            let at = pick(random, world.nodes.len());
            if world.nodes[at].up { world.kill_node(at) } else { world.start_node(at) }
        }
        6 if world.manager.is_some() => {
            let pause = random.bits() % 5_000;
            world.kill_manager(pause);
        }
        7 => {
            let durable = random.bits().is_multiple_of(2);
            world.kill_at = Some((world.commits + 1 + random.bits() % 4, durable));
        }
        8..=9 => {
            let types = ["gp3", "standard", "gp2"];
            let zones = ["local-1a", "local-1b", "local-1c"];
            let size = world.state().volumes.get(&volume).map_or(8, |v| {
                v.parameters.size.get() + u32::try_from(random.bits() % 2).expect("small")
            });
            let request = ModifyVolume {
                volume: Some(volume),
                size: Some(Gib::new(size)),
                volume_type: Some(types[pick(random, 3)].to_owned()),
                zone: Some(zones[pick(random, 3)].to_owned()),
                ..ModifyVolume::default()
            };
            world.submit(CommandKind::ModifyVolume(request));
        }
        10 => {
            // The link to the manager breaks; the process lives.
            let at = pick(random, world.servers.len());
            let name = world.servers[at].name.clone();
            world.break_link(&name);
        }
        _ => {}
    }
}

fn at_rest(world: &World, volume: VolumeId) -> bool {
    let state = world.state();
    let Some(record) = state.volumes.get(&volume) else { return false };
    let group = &state.groups[&record.group];
    let running = state.latest_modification(volume).is_some_and(|m| {
        matches!(m.state, ModificationState::Modifying | ModificationState::Optimizing)
    });
    let in_sync = group.desired.iter().all(|p| group.config.is_in_sync(p.replica));
    !running && in_sync && group.config.members.len() == 2 && group.replicas.len() == 2
}

fn survive(seed: u64) {
    let mut random = Random::new(seed);
    let mut world = World::new();
    let request: CreateVolume =
        if seed.is_multiple_of(2) { gp3("local-1a", 8) } else { standard("local-1a", 8) };
    let volume = world.create(request);
    world.until("available", 5_000, |w| w.volume(volume).state == VolumeState::Available);
    let instance = world.nodes[0].instance;
    let device = "/dev/sdf".to_owned();
    let attach = AttachVolume { volume, instance, device, kernel_device: false };
    world.ask(CommandKind::AttachVolume(attach)).expect("attachable");
    let end = world.ms + TURMOIL_MS;
    while world.ms < end {
        world.run(50 + random.bits() % 1_500);
        disturb(&mut world, &mut random, volume);
    }
    world.kill_at = None;
    for at in 0..world.servers.len() {
        if !world.servers[at].up {
            let name = world.servers[at].name.clone();
            world.start_server(&name);
        }
    }
    (0..world.nodes.len())
        .filter(|at| !world.nodes[*at].up)
        .collect::<Vec<_>>()
        .into_iter()
        .for_each(|at| world.start_node(at));
    let acknowledged = world.acknowledged.len();
    let what = format!("rest after turmoil {seed}");
    world.until(&what, PEACE_MS, |w| at_rest(w, volume) && w.acknowledged.len() > acknowledged);
    let state = world.state();
    assert!(state.attachments_of(volume).all(|a| a.state == AttachmentState::Attached));
    let config = world.config(volume);
    let copies: Vec<_> = config
        .members
        .iter()
        .map(|m| world.server(m.server.as_str()).replicas[&m.replica].writes.clone())
        .collect();
    assert_eq!(copies[0], copies[1], "the mirror differs from the primary, seed {seed}");
    assert!(world.acknowledged.is_subset(&copies[0]));
    assert!(config.size.get() >= Gib::new(8).to_bytes().get());
    assert!(state.volumes[&volume].parameters.rate.iops >= Iops::new(100));
    let held: usize = world.servers.iter().map(|s| s.replicas.len()).sum();
    assert_eq!(held, 2, "replicas leaked, seed {seed}");
}

#[test]
fn whatever_dies_in_whatever_order_a_volume_comes_to_rest_whole() {
    for seed in 0..SEEDS {
        survive(seed);
    }
}
