//! Drives that run full: writes wait, replicas move, nothing else suffers.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    id::{DriveId, ReplicaId, VolumeId},
    limits::{DRIVE_FULL_PERCENT, DRIVE_PLACEMENT_PERCENT, DRIVE_RELIEVED_PERCENT},
    state::VolumeState,
};

use super::world::{World, gp3, rate};
use crate::{api::CommandKind, random::Random};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Servers whose SSDs hold 10 GiB, and promise ten times as much.
fn small_drives(servers_per_zone: u32) -> World {
    let mut world = World::unstarted(servers_per_zone);
    for server in &mut world.servers {
        server.drive_bytes = Some(10 * GIB);
        server.ssd.rate = rate(100_000, 10_000);
    }
    world.run(4_000);
    world
}

fn made(world: &mut World, zone: &str) -> VolumeId {
    let volume = world.create(gp3(zone, 8));
    world.until("available", 5_000, |w| w.volume(volume).state == VolumeState::Available);
    volume
}

fn drives_of(world: &World, volume: VolumeId) -> BTreeSet<DriveId> {
    let state = world.state();
    let group = &state.groups[&world.volume(volume).group];
    group.desired.iter().map(|p| p.drive.clone()).collect()
}

/// Of the SSD of a server, in percent.
fn used(world: &World, server: &str) -> u64 {
    let server = world.servers.iter().find(|s| s.name == server).expect("a server");
    server.used("ssd") * 100 / server.drive_bytes.expect("set")
}

fn at_rest(world: &World) -> bool {
    world.state().groups.values().all(|g| {
        g.replicas.len() == 2
            && g.config.members.len() == 2
            && g.desired.iter().all(|p| g.config.is_in_sync(p.replica))
    })
}

/// Every volume has two replicas in sync, whatever moves.
fn assert_whole(world: &World) {
    for group in world.state().groups.values() {
        assert!(group.config.in_sync().count() >= 2, "{group:#?}");
    }
}

/// Two volumes on the servers of zone a, filled until writes wait.
fn filled(world: &mut World) -> [VolumeId; 2] {
    let volumes = [made(world, "local-1a"), made(world, "local-1a")];
    for (volume, gib) in volumes.into_iter().zip([6, 3]) {
        assert!(world.grow(volume, gib * GIB), "there is room");
    }
    assert!(world.grow(volumes[1], 700 * MIB));
    assert!(!world.grow(volumes[0], 100 * MIB), "a write waits");
    volumes
}

#[test]
fn a_full_drive_gives_replicas_away_until_writes_go_on() {
    let mut world = small_drives(3);
    let volumes = [made(&mut world, "local-1a"), made(&mut world, "local-1a")];
    // Both on the same two servers: the third was away.
    let before: Vec<_> = volumes.iter().map(|v| drives_of(&world, *v)).collect();
    let shared: Vec<_> = before[0].intersection(&before[1]).cloned().collect();
    let shared = shared.first().expect("three servers, two pairs").clone();
    assert!(world.grow(volumes[0], 5 * GIB));
    assert!(world.grow(volumes[1], 4 * GIB + 700 * MIB));
    assert!(!world.grow(volumes[0], GIB), "a write waits");
    let mut took = 0;
    while !world.grow(volumes[0], GIB) {
        world.step();
        assert_whole(&world);
        took += 1;
        assert!(took < 600, "half a minute, and the write still waits");
    }
    assert!(used(&world, shared.server.as_str()) < DRIVE_FULL_PERCENT);
    world.until("at rest", 20_000, at_rest);
    let epochs = |w: &World| volumes.map(|v| w.config(v).epoch);
    let settled = epochs(&world);
    world.run(60_000);
    assert_eq!(epochs(&world), settled, "something is moved without need");
}

#[test]
fn the_least_that_is_enough_is_moved() {
    // Of three servers, one holds a replica of each.
    let mut world = small_drives(3);
    let [large, small] = filled(&mut world);
    let before = [large, small].map(|v| drives_of(&world, v));
    let full = before[0].intersection(&before[1]).next().expect("one").server.to_string();
    world.until("relieved", 60_000, |w| at_rest(w) && used(w, &full) < DRIVE_RELIEVED_PERCENT);
    assert_eq!(drives_of(&world, large), before[0], "the larger one was moved");
    assert_ne!(drives_of(&world, small), before[1]);
}

#[test]
fn a_full_zone_lends_out_one_replica_of_a_volume_and_keeps_the_other() {
    let mut world = small_drives(2);
    let volumes = filled(&mut world);
    world.until("relieved", 60_000, |w| {
        at_rest(w)
            && ["server-a-1", "server-a-2"].iter().all(|s| used(w, s) < DRIVE_RELIEVED_PERCENT)
    });
    for volume in volumes {
        let config = world.config(volume);
        assert!(config.primary().server.as_str().starts_with("server-a"), "{config:#?}");
    }
}

#[test]
fn nothing_new_is_placed_on_a_drive_that_is_nearly_full() {
    let mut world = small_drives(2);
    let volume = made(&mut world, "local-1a");
    assert!(world.grow(volume, 9 * GIB + 100 * MIB));
    world.run(2_000);
    let refused = world.ask(CommandKind::CreateVolume(gp3("local-1a", 8)));
    let error = refused.expect_err("both drives of the zone are nearly full");
    assert_eq!(error.code, "InsufficientVolumeCapacity");
    assert!(error.message.contains("2 too full of data"), "{}", error.message);
    assert!(world.reports.is_empty(), "nothing is moved yet: {:?}", world.reports);
}

#[test]
fn with_nowhere_to_go_it_is_said_once_and_goes_on_when_there_is_room() {
    let mut world = small_drives(2);
    for server in ["server-b-1", "server-b-2", "server-c-1", "server-c-2"] {
        world.server(server).drive_bytes = Some(0);
        world.kill_server(server);
    }
    world.run(8_000);
    let [large, _] = filled(&mut world);
    let before = drives_of(&world, large);
    world.run(30_000);
    let stuck: Vec<_> = world.reports.iter().filter(|r| r.contains("nothing can be")).collect();
    assert_eq!(stuck.len(), 2, "once for each drive: {:?}", world.reports);
    assert!(stuck[0].contains("There is not enough ssd capacity"), "{}", stuck[0]);
    assert_eq!(drives_of(&world, large), before);
    assert_eq!(world.volume(large).state, VolumeState::Available, "a volume has suffered");
    for server in ["server-b-1", "server-b-2"] {
        world.server(server).drive_bytes = Some(10 * GIB);
        world.start_server(server);
    }
    world.until("relieved", 60_000, |w| {
        at_rest(w)
            && ["server-a-1", "server-a-2"].iter().all(|s| used(w, s) < DRIVE_RELIEVED_PERCENT)
    });
}

#[test]
fn a_move_whose_target_dies_is_called_off_and_nothing_is_lost() {
    let mut world = small_drives(2);
    world.fill_steps = 100;
    filled(&mut world);
    world.until("moving", 20_000, |w| {
        w.state().groups.values().any(|g| g.config.learners().next().is_some())
    });
    let state = world.state();
    let learner = state.groups.values().find_map(|g| g.config.learners().next()).expect("seen");
    let (server, replica) = (learner.server.to_string(), learner.replica);
    world.kill_server(&server);
    for _ in 0..400 {
        world.step();
        assert_whole(&world);
    }
    world.until("at rest without it", 60_000, |w| {
        let members = |g: &format::record::Group| g.config.member(replica).is_some();
        w.state().groups.values().filter(|g| g.replicas.len() == 2).count() >= 1
            && !w.state().groups.values().any(members)
    });
}

#[test]
fn a_replica_that_cannot_be_moved_stays_and_is_not_tried_all_the_time() {
    let mut world = small_drives(2);
    world.unreadable = true;
    filled(&mut world);
    let mut seen: BTreeSet<ReplicaId> = BTreeSet::new();
    let end = world.ms + 240_000;
    while world.ms < end {
        world.step();
        assert_whole(&world);
        seen.extend(world.state().groups.values().flat_map(|g| g.replicas.keys().copied()));
    }
    // Each attempt takes six fills with growing pauses; then the group rests for minutes.
    let attempts = seen.len() - 4;
    assert!((1..=8).contains(&attempts), "{attempts} replicas were begun in four minutes");
    world.unreadable = false;
    world.until("relieved in the end", 600_000, |w| {
        at_rest(w)
            && ["server-a-1", "server-a-2"].iter().all(|s| used(w, s) < DRIVE_RELIEVED_PERCENT)
    });
}

/// What has been moved where, as seen from outside.
#[derive(Default)]
struct Watch {
    known: BTreeMap<VolumeId, BTreeSet<DriveId>>,
    /// Drives that each volume left, and when it did.
    left: Vec<(VolumeId, DriveId)>,
}

impl Watch {
    fn look(&mut self, world: &World, growing: bool) {
        let state = world.state();
        let mut leaving: BTreeMap<DriveId, usize> = BTreeMap::new();
        for group in state.groups.values() {
            assert!(group.config.in_sync().count() >= 2, "{group:#?}");
            let desired: BTreeSet<_> = group.desired.iter().map(|p| p.drive.clone()).collect();
            for placed in group.replicas.values().filter(|p| !desired.contains(&p.drive)) {
                *leaving.entry(placed.drive.clone()).or_default() += 1;
            }
            let volume = group.config.volume;
            let before = self.known.insert(volume, desired.clone()).unwrap_or(desired.clone());
            for entered in desired.difference(&before) {
                let share = used(world, entered.server.as_str());
                assert!(
                    share < DRIVE_PLACEMENT_PERCENT,
                    "moved to {entered}, which is {share} % full"
                );
                let back = self.left.iter().any(|(v, d)| *v == volume && d == entered);
                assert!(growing || !back, "{volume} is moved back to {entered}");
            }
            self.left.extend(before.difference(&desired).map(|d| (volume, d.clone())));
        }
        assert!(leaving.values().all(|n| *n == 1), "more than one at a time: {leaving:?}");
    }
}

/// Volumes grow on random drives until writes wait here and there; then everything comes to rest.
fn fill_up(seed: u64) {
    let mut random = Random::new(seed);
    let mut world = small_drives(2 + u32::try_from(seed % 2).expect("small"));
    let zones = ["local-1a", "local-1b", "local-1c"];
    let below = |random: &mut Random, n: u64| random.bits() % n;
    let count = 4 + below(&mut random, 5);
    let mut volumes = Vec::new();
    for _ in 0..count {
        let zone = zones[usize::try_from(below(&mut random, 3)).expect("small")];
        volumes.push(made(&mut world, zone));
    }
    let mut watch = Watch::default();
    for _ in 0..250 {
        let at = usize::try_from(below(&mut random, count)).expect("small");
        let more = (50 + below(&mut random, 400)) * MIB;
        let whole = world.config(volumes[at]).learners().next().is_none();
        if whole {
            world.grow(volumes[at], more);
        }
        for _ in 0..below(&mut random, 8) {
            world.step();
            watch.look(&world, true);
        }
    }
    let moved_while_growing = watch.left.len();
    watch.left.clear();
    // A move for each replica would be a storm; peace must come long before.
    let mut quiet_since = world.ms;
    let mut moves = 0;
    while world.ms - quiet_since < 20_000 {
        world.step();
        watch.look(&world, false);
        if watch.left.len() != moves || !at_rest(&world) {
            (moves, quiet_since) = (watch.left.len(), world.ms);
        }
        assert!(world.ms < 900_000, "no rest, seed {seed}");
    }
    assert!(moves <= 2 * volumes.len(), "{moves} moves, {moved_while_growing} before, seed {seed}");
    for server in &world.servers {
        let stuck = world.reports.iter().any(|r| r.contains("nothing can be moved away"));
        let full = used(&world, &server.name) >= DRIVE_FULL_PERCENT;
        assert!(!full || stuck, "{} is full and nobody says why, seed {seed}", server.name);
    }
}

#[test]
fn however_drives_fill_up_moves_are_few_and_end_and_no_volume_is_ever_less_safe() {
    for seed in 0..60 {
        fill_up(seed);
    }
}
