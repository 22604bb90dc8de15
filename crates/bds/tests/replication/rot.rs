//! Damage on the drives of replicas, and replicas that differ: found, repaired or reported, and
//! never passed on.

use std::time::Duration;

use bds::api::{ConnId, Event, Finding};
use format::{
    ctl::{Damage, FromManager},
    data::{Change, DataMessage, Replicate},
    disk::{DriveShape, Layout},
};
use model::{epoch::ModSeq, id::ReplicaId, units::BLOCK, volume::Media};

use crate::{
    client,
    world::{ROOMY, SIZE, World, drive_name, geometry, group, replica_id, server_name},
};

const SOON: Duration = Duration::from_secs(60);
const BLOCKS: u64 = SIZE / BLOCK;

/// A group whose volume is full of data that lies in its place on the drives. Nothing is scrubbed
/// unless it is asked for.
fn full(seed: u64, servers: u64, members: usize) -> World {
    let mut world = World::unscrubbed(seed, servers);
    world.manager.want(members);
    world.run_until(SOON, "start", |w| w.manager.is_whole() && w.client.config.is_some());
    for first in (0..BLOCKS).step_by(16) {
        world.write_through(first, 16);
    }
    world
}

/// Where slots begin on the drive.
fn slots_offset() -> u64 {
    let engine::api::Geometry { media, drive_bytes, journal_bytes, journal, replicas_max, .. } =
        geometry(Media::Ssd, ROOMY);
    let shape = DriveShape { media, drive_bytes, journal_bytes, journal, replicas_max };
    Layout::of(&shape, format::disk::FormatVersion::V2).expect("it fits").slots_offset
}

/// Which block of the volume holds this; full volumes only.
fn block_with(world: &World, content: &[u8]) -> Option<u64> {
    let mut expected = world.client.expected();
    let found = expected.find(|(_, values)| {
        values.len() == 1 && client::block_of(*values.first().expect("one")) == content
    });
    found.map(|(block, _)| block)
}

/// One block in `every` rots on this server, the `offset`th of each.
fn rot(world: &mut World, server: u64, every: usize, offset: usize) -> usize {
    let mut seen = 0;
    let chosen = |_: &[u8]| {
        seen += 1;
        seen % every == offset
    };
    let host = world.hosts.get_mut(&server_name(server)).expect("a host");
    host.disks.get_mut(&drive_name()).expect("a drive").rot(slots_offset(), chosen)
}

/// All replicas of the group are scrubbed; what was found on each.
pub fn scrub(world: &mut World, pass: u64) -> Vec<(ReplicaId, Damage)> {
    let members: Vec<_> = world.manager.config.in_sync().cloned().collect();
    let asked =
        |w: &World| members.iter().all(|m| w.manager.scrubbed.contains_key(&(m.replica, pass)));
    // Asked for again, as the manager does: what was said may be lost.
    for _ in 0..200 {
        if asked(world) {
            break;
        }
        for member in &members {
            let replica = member.replica;
            world.command(&member.server, FromManager::Scrub { replica, pass });
        }
        world.run_for(Duration::from_millis(500));
    }
    assert!(asked(world), "the passes end");
    members.iter().map(|m| (m.replica, world.manager.scrubbed[&(m.replica, pass)])).collect()
}

fn total(found: &[(ReplicaId, Damage)]) -> Damage {
    found.iter().fold(Damage::default(), |sum, (_, d)| Damage {
        bad_found: sum.bad_found + d.bad_found,
        bad_repaired: sum.bad_repaired + d.bad_repaired,
        bad_lost: sum.bad_lost + d.bad_lost,
    })
}

fn all_repaired(count: usize) -> Damage {
    let count = count as u64;
    Damage { bad_found: count, bad_repaired: count, bad_lost: 0 }
}

#[test]
fn one_pass_finds_and_repairs_all_rot_on_primary_and_mirror() {
    let mut world = full(1, 2, 2);
    let on_primary = rot(&mut world, 1, 50, 1);
    let on_mirror = rot(&mut world, 2, 50, 2);
    assert!(on_primary >= 40 && on_mirror >= 40, "{on_primary} and {on_mirror} blocks");
    let found = scrub(&mut world, 1);
    assert_eq!(found[0].1, all_repaired(on_primary));
    assert_eq!(found[1].1, all_repaired(on_mirror));
    assert_eq!(total(&scrub(&mut world, 2)), Damage::default(), "a second pass finds nothing");
    world.read_everything();
    world.check_replicas();
    world.run_for(Duration::from_secs(5));
    assert_eq!(world.manager.damage[&server_name(1)], all_repaired(on_primary));
    assert_eq!(world.manager.damage[&server_name(2)], all_repaired(on_mirror));
    let noted = world.incidents.iter().filter(|i| i.finding == Finding::Repaired).count();
    assert_eq!(noted, on_primary + on_mirror);
}

#[test]
fn rot_is_repaired_by_the_reads_that_meet_it_and_never_delivered() {
    let mut world = full(2, 3, 3);
    let rotten = rot(&mut world, 1, 20, 3);
    assert!(rotten >= 100, "{rotten} blocks");
    for first in (0..BLOCKS).step_by(64) {
        world.read_through(first, 64);
    }
    assert_eq!(total(&scrub(&mut world, 1)), Damage::default(), "the reads repaired all");
    world.check_replicas();
}

#[test]
fn what_is_lost_on_all_replicas_is_not_looked_for_for_ever() {
    let mut world = full(3, 2, 2);
    let lost = rot(&mut world, 1, 400, 5);
    assert_eq!(rot(&mut world, 2, 400, 5), lost, "the same blocks");
    let expected =
        Damage { bad_found: 2 * lost as u64, bad_repaired: 0, bad_lost: 2 * lost as u64 };
    assert_eq!(total(&scrub(&mut world, 1)), expected);
    world.run_for(Duration::from_secs(1));
    let before = world.delivered;
    world.run_for(Duration::from_secs(60));
    assert!(world.delivered - before < 10, "{} messages", world.delivered - before);
}

#[test]
fn rot_is_repaired_while_writes_links_and_configurations_change() {
    for seed in 0..6 {
        let mut world = full(10 + seed, 3, 3);
        world.client.depth = 16;
        for round in 0..4 {
            let server = 1 + (seed + round) % 3;
            rot(&mut world, server, 30, usize::try_from(round).expect("small"));
            for _ in 0..6 {
                let pause = world.rng.micros(500, 20_000);
                world.run_for(pause);
                let (a, b) =
                    (server_name(1 + world.rng.below(3)), server_name(1 + world.rng.below(3)));
                match world.rng.below(4) {
                    0 => world.break_link(&a, &b),
                    1 => world.break_client_link(),
                    2 if world.manager.adopted => world.change(|_| {}),
                    _ => {}
                }
            }
            world.run_until(SOON, "whole", |w| w.manager.is_whole());
            let mirror = world.manager.config.mirrors().next().expect("one").replica;
            world.begin_hand_over(mirror);
            scrub(&mut world, round);
        }
        world.quiesce();
        world.run_until(SOON, "whole", |w| w.manager.is_whole());
        scrub(&mut world, 9);
        world.read_everything();
        world.check_replicas();
        assert_eq!(world.manager.differing, []);
        assert_eq!(world.manager.failovers, 0);
    }
}

#[test]
fn a_hand_over_during_repairs_leaves_nothing_damaged() {
    let mut world = full(3, 2, 2);
    let rotten = rot(&mut world, 1, 40, 1) + rot(&mut world, 2, 40, 2);
    for round in 0..20 {
        for server in 1..=2 {
            let replica = replica_id(server);
            world.command(&server_name(server), FromManager::Scrub { replica, pass: 1 });
        }
        world.run_for(Duration::from_millis(30 + round));
        world.run_until(SOON, "whole", |w| w.manager.is_whole());
        let mirror = world.manager.config.mirrors().next().expect("one").replica;
        world.begin_hand_over(mirror);
        world.run_until(SOON, "hand over", |w| w.manager.is_whole());
    }
    assert_eq!(total(&scrub(&mut world, 1)), all_repaired(rotten), "found by one pass");
    assert_eq!(total(&scrub(&mut world, 2)), Damage::default());
    world.check_replicas();
}

#[test]
fn a_primary_alone_delivers_nothing_damaged_and_everything_else() {
    let mut world = full(7, 2, 2);
    world.manager.heals = false;
    world.crash(&server_name(2));
    world.run_until(SOON, "alone", |w| w.manager.config.members.len() == 1 && w.manager.adopted);
    let rotten = rot(&mut world, 1, 30, 1);
    world.client.lost = (0..BLOCKS).collect();
    for block in 0..BLOCKS {
        world.read_through(block, 1);
    }
    assert_eq!(world.client.failed.len(), rotten, "as many blocks as are damaged");
    let found = total(&scrub(&mut world, 1));
    assert_eq!(found, Damage::default(), "each was counted when it was read");
    for &(block, _) in &std::mem::take(&mut world.client.failed) {
        world.write_through(block, 1);
    }
    world.client.lost.clear();
    world.read_everything();
}

#[test]
fn a_block_that_rots_on_every_replica_is_an_error_alone_until_it_is_written() {
    let mut world = full(4, 2, 2);
    // The same blocks on both: one in a whole unit, with another good one rotten beside it.
    let content = |world: &World, block: u64| {
        let (_, values) = world.client.expected().find(|(b, _)| *b == block).expect("written");
        client::block_of(*values.first().expect("one"))
    };
    // Blocks of one write are alike: give these a content of their own.
    world.write_through(100, 1);
    world.write_through(101, 1);
    world.write_through(102, 1);
    for round in 0..60 {
        world.write_through(1_024 + round % 4 * 200, 200);
    }
    world.run_for(Duration::from_secs(1));
    for (server, blocks) in [(1, [100, 101]), (2, [100, 102])] {
        world.crash(&server_name(server));
        for block in blocks {
            let content = content(&world, block);
            let host = world.hosts.get_mut(&server_name(server)).expect("a host");
            let disk = host.disks.get_mut(&drive_name()).expect("a drive");
            assert!(disk.rot(slots_offset(), |held| held == content) > 0);
        }
    }
    world.boot(&server_name(1));
    world.boot(&server_name(2));
    world.run_until(SOON, "whole", |w| w.manager.is_whole());
    world.client.lost.insert(100);
    for block in 96..112 {
        world.read_through(block, 1);
    }
    assert_eq!(world.client.failed, [(100, 1)]);
    world.read_through(101, 11);
    world.read_through(90, 10);
    assert_eq!(world.client.failed, [(100, 1)]);
    let found = total(&scrub(&mut world, 1));
    assert_eq!(found.bad_repaired, 1, "the mirror's own, that the primary's reads did not meet");
    assert!(world.incidents.iter().any(|i| i.finding == Finding::Lost && i.offset == 100 * BLOCK));
    world.write_through(100, 1);
    world.client.lost.clear();
    world.read_through(96, 16);
    assert_eq!(total(&scrub(&mut world, 2)), Damage::default());
    world.check_replicas();
    assert_eq!(block_with(&world, &[0; 4096]), None);
}

#[test]
fn a_mirror_that_was_altered_is_reported_taken_out_and_filled_again() {
    let mut world = full(5, 3, 3);
    let mirror = world.manager.config.mirrors().next().expect("one").clone();
    let primary = world.manager.config.primary().server.clone();
    // As if its primary had told it something else than everybody.
    let conn = world.link_between(&primary, &mirror.server);
    let block = client::block_of(99_999);
    let crcs = vec![crc32c::crc32c(&block)];
    let message = DataMessage::Replicate(Replicate {
        group: group(),
        replica: mirror.replica,
        epoch: world.manager.config.epoch,
        mod_seq: ModSeq::from_raw(1),
        offset: 700 * BLOCK,
        change: Change::Write { crcs, data: block.into() },
    });
    world.feed(&mirror.server, Event::MessageReceived { conn: ConnId(conn), message });
    world.run_for(Duration::from_millis(100));
    scrub(&mut world, 1);
    world.run_until(SOON, "reported", |w| !w.manager.differing.is_empty());
    assert_eq!(world.manager.differing, [mirror.replica]);
    let offset = 700 * BLOCK / (1 << 20) * (1 << 20);
    let found = Finding::Differs { member: mirror.replica };
    assert!(world.incidents.iter().any(|i| i.finding == found && i.offset == offset));
    world.run_until(SOON, "resync", |w| w.manager.is_whole());
    world.read_everything();
    world.check_replicas();
    assert_eq!(total(&scrub(&mut world, 2)), Damage::default());
    assert_eq!(world.manager.differing, [mirror.replica], "it is equal again");
}

#[test]
fn a_rotten_source_is_repaired_and_the_learner_is_filled() {
    let mut world = full(6, 3, 2);
    let rotten = rot(&mut world, 2, 60, 1);
    assert!(rotten > 30);
    world.manager.desired[0] = model::group::Member {
        replica: replica_id(3),
        server: server_name(3),
        address: crate::world::address_of(3),
        drive: drive_name(),
        role: model::group::Role::Mirror,
    };
    world.run_until(SOON, "moved", |w| w.manager.is_whole());
    scrub(&mut world, 1);
    world.read_everything();
    world.check_replicas();
}
