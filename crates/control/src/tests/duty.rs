//! Servers that get nothing new, and servers that are emptied while their volumes are used.

use std::collections::BTreeSet;

use model::{
    id::{ServerId, VolumeId},
    state::{Duty, ModificationState, VolumeState},
    units::MibPerSec,
};

use super::world::{World, caller, gp3, rate, root};
use crate::{
    api::{Caller, Command, CommandKind, Done, ModifyVolume},
    state::State,
};

/// Servers that may promise many volumes.
fn started(servers_per_zone: u32) -> World {
    let mut world = World::unstarted(servers_per_zone);
    for server in &mut world.servers {
        server.ssd.rate = rate(100_000, 10_000);
    }
    world.run(4_000);
    world
}

fn set(world: &mut World, server: &str, duty: Duty) {
    let done = world.ask(CommandKind::SetDuty { server: server.to_owned(), duty });
    assert!(matches!(done, Ok(Done::Server(_))), "{done:?}");
}

fn made(world: &mut World, count: usize) -> Vec<VolumeId> {
    let volumes: Vec<_> = (0..count).map(|_| world.create(gp3("local-1a", 4))).collect();
    let available = |w: &World| volumes.iter().all(|v| is_available(w, *v));
    world.until("available", 20_000, available);
    volumes
}

fn is_available(world: &World, volume: VolumeId) -> bool {
    world.volume(volume).state == VolumeState::Available
}

fn servers_of(world: &World, volume: VolumeId) -> BTreeSet<ServerId> {
    let state = world.state();
    let group = &state.groups[&world.volume(volume).group];
    group.replicas.values().map(|p| p.drive.server.clone()).collect()
}

/// How many groups have a replica there, and how many of those want it elsewhere.
fn there(state: &State, server: &str) -> (usize, usize) {
    let here = state.groups.values();
    let here = here.filter(|g| g.replicas.values().any(|p| p.drive.server.as_str() == server));
    let leaves =
        |g: &&format::record::Group| g.desired.iter().all(|p| p.drive.server.as_str() != server);
    (here.clone().count(), here.filter(leaves).count())
}

fn at_rest(world: &World) -> bool {
    world.state().groups.values().all(|g| {
        g.replicas.len() == 2
            && g.config.members.len() == 2
            && g.desired.iter().all(|p| g.config.is_in_sync(p.replica))
    })
}

#[test]
fn a_drained_server_is_emptied_a_few_replicas_at_a_time_and_gets_nothing_new() {
    let mut world = started(3);
    let volumes = made(&mut world, 12);
    world.until("at rest", 20_000, at_rest);
    let (before, _) = there(&world.state(), "server-a-1");
    assert!(before >= 4, "the volumes are spread over three servers: {before}");
    set(&mut world, "server-a-1", Duty::Draining);
    let mut most = 0;
    for step in 0_u32.. {
        world.step();
        let state = world.state();
        let (left, leaving) = there(&state, "server-a-1");
        most = most.max(leaving);
        for group in state.groups.values() {
            assert!(group.config.in_sync().count() >= 2, "{group:#?}");
        }
        // In the middle the manager is lost, and the wish is not.
        if step == 60 {
            world.kill_manager(500);
        }
        if left == 0 {
            break;
        }
        assert!(step < 4_000, "{left} replicas are still there, {leaving} of them leaving");
    }
    assert!((1..=4).contains(&most), "{most} at once");
    world.until("at rest", 20_000, at_rest);
    for volume in &volumes {
        let zone_a = servers_of(&world, *volume);
        assert!(zone_a.iter().all(|s| s.as_str().starts_with("server-a-")), "{zone_a:?}");
    }
    made(&mut world, 6);
    world.run(20_000);
    assert_eq!(there(&world.state(), "server-a-1"), (0, 0), "it got a new replica");
    set(&mut world, "server-a-1", Duty::Serving);
    made(&mut world, 3);
    assert!(there(&world.state(), "server-a-1").0 > 0, "it gets replicas again");
}

#[test]
fn a_cordoned_server_keeps_what_it_has() {
    let mut world = started(3);
    made(&mut world, 6);
    world.until("at rest", 20_000, at_rest);
    let before = there(&world.state(), "server-a-2");
    assert!(before.0 > 0);
    set(&mut world, "server-a-2", Duty::Cordoned);
    // Wished again, and by a server that registers anew: it stays so.
    set(&mut world, "server-a-2", Duty::Cordoned);
    world.break_link("server-a-2");
    made(&mut world, 6);
    world.run(20_000);
    assert_eq!(there(&world.state(), "server-a-2"), before);
    let server: ServerId = "server-a-2".parse().expect("a name");
    assert_eq!(world.state().servers[&server].duty, Duty::Cordoned);
}

#[test]
fn what_has_nowhere_to_go_stays_in_sync_until_there_is_room() {
    let mut world = started(2);
    let volumes = made(&mut world, 3);
    world.until("at rest", 20_000, at_rest);
    let others: Vec<String> = world.servers.iter().map(|s| s.name.clone()).collect();
    for server in others.iter().filter(|s| !s.starts_with("server-a-")) {
        set(&mut world, server, Duty::Cordoned);
    }
    set(&mut world, "server-a-1", Duty::Draining);
    world.run(30_000);
    assert_eq!(there(&world.state(), "server-a-1"), (3, 0));
    assert!(at_rest(&world));
    // One replica of each stays in the zone.
    set(&mut world, "server-b-1", Duty::Serving);
    world.until("empty", 60_000, |w| there(&w.state(), "server-a-1").0 == 0);
    world.until("at rest", 20_000, at_rest);
    for volume in volumes {
        let expected = ["server-a-2", "server-b-1"].map(|s| s.parse().expect("a name"));
        assert_eq!(servers_of(&world, volume), BTreeSet::from(expected));
    }
}

#[test]
fn only_the_root_account_decides_about_servers_that_exist() {
    let mut world = World::new();
    let ask = |world: &mut World, server: &str, root_too: bool| {
        let kind = CommandKind::SetDuty { server: server.to_owned(), duty: Duty::Draining };
        let caller = Caller { account: root(), root: root_too, ..caller() };
        world.ask_as(caller, Command { dry_run: false, kind }).map_err(|e| e.code)
    };
    assert!(matches!(ask(&mut world, "server-a-1", false), Err("UnauthorizedOperation")));
    for nobody in ["server-z-9", "", "../../x", "server a"] {
        let refused = ask(&mut world, nobody, true);
        assert!(matches!(refused, Err("InvalidServer.NotFound")), "{nobody}: {refused:?}");
    }
    assert!(ask(&mut world, "server-a-1", true).is_ok());
}

#[test]
fn what_is_left_on_a_failed_drive_holds_up_no_drain() {
    let mut world = started(4);
    let volumes = made(&mut world, 12);
    world.until("at rest", 20_000, at_rest);
    world.fail_drive("server-a-1", "ssd", false);
    let redundant = |w: &World| {
        volumes.iter().all(|v| {
            let config = w.config(*v);
            config.in_sync().count() == 2
                && config.in_sync().all(|m| m.server.as_str() != "server-a-1")
        })
    };
    world.until("made anew elsewhere", 60_000, redundant);
    // What is left keeps an entry until its drive is back.
    assert!(there(&world.state(), "server-a-1").0 > 0);
    set(&mut world, "server-a-2", Duty::Draining);
    world.until("emptied", 120_000, |w| there(&w.state(), "server-a-2").0 == 0);
}

#[test]
fn a_volume_is_deleted_though_a_drive_of_it_is_out_of_service() {
    let mut world = started(3);
    let volume = made(&mut world, 1)[0];
    world.until("at rest", 20_000, at_rest);
    let server = world.config(volume).primary().server.to_string();
    world.fail_drive(&server, "ssd", false);
    world.ask(CommandKind::DeleteVolume { volume }).expect("not attached");
    world.until("gone", 20_000, |w| !w.state().volumes.contains_key(&volume));
}

#[test]
fn a_volume_on_a_cordoned_server_is_changed_where_it_is() {
    let mut world = started(2);
    let volume = made(&mut world, 1)[0];
    world.until("at rest", 20_000, at_rest);
    let before = servers_of(&world, volume);
    for server in &before {
        set(&mut world, server.as_str(), Duty::Cordoned);
    }
    let faster = ModifyVolume {
        volume: Some(volume),
        throughput: Some(MibPerSec::new(200)),
        ..ModifyVolume::default()
    };
    world.ask(CommandKind::ModifyVolume(faster)).expect("there is room where it is");
    let completed = |w: &World| w.modification(volume).state == ModificationState::Completed;
    world.until("completed", 20_000, completed);
    assert_eq!(servers_of(&world, volume), before);
}
