//! What programs see when servers, the manager or the node manager fail: latency, and nothing
//! else.

use super::{
    nbd::{Client, SHUTDOWN},
    primary::{Mood, Primary},
    world::{MIB, World, run, try_run, volume},
};

const SIZE: u64 = 64 * MIB;

#[test]
fn requests_wait_while_the_primary_is_away_and_are_answered_when_it_is_back() {
    let mut world = World::new("away", false);
    world.attach(SIZE, false);
    let mut client = Client::open(&world.dir.join("nbd.sock")).expect("an export");
    client.write(0, &[1; 4096]).expect("answered");
    world.primary.set_mood(Mood::Away);
    let before = world.primary.changes();
    client.send_write(4096, &[2; 8192]).expect("taken");
    let read = client.send_read(0, 4096).expect("taken");
    world.manager.silence();
    assert_eq!(world.primary.changes(), before);
    world.primary.set_mood(Mood::Serving);
    for _ in 0..2 {
        let answer = client.answer().expect("answered");
        assert_eq!(answer.error, 0);
        let expected = if answer.request == read { vec![1; 4096] } else { Vec::new() };
        assert_eq!(answer.data, expected);
    }
    assert_eq!(client.read(4096, 8192).expect("answered"), vec![2; 8192]);
}

#[test]
fn a_silent_primary_is_left_for_the_one_that_the_manager_names() {
    let mut world = World::new("silent", false);
    world.attach(SIZE, false);
    let mut client = Client::open(&world.dir.join("nbd.sock")).expect("an export");
    world.primary.set_mood(Mood::Silent);
    client.send_write(0, &[7; 4096]).expect("taken");
    world.manager.silence();
    let silent = std::mem::replace(&mut world.primary, Primary::start());
    world.send_attach(2, SIZE, 1, false);
    assert_eq!(client.answer().expect("answered").error, 0);
    assert_eq!(world.primary.stored(0, 4096), vec![7; 4096]);
    assert_eq!(silent.changes(), 0);
}

#[test]
fn a_killed_node_manager_serves_its_volume_again_without_the_manager() {
    let mut world = World::new("killed", false);
    let attached = world.attach(SIZE, false);
    let socket = world.dir.join("nbd.sock");
    let mut client = Client::open(&socket).expect("an export");
    client.write(8192, &[3; 4096]).expect("answered");
    world.kill();
    assert!(client.read(8192, 4096).is_err(), "the connection died with the process");
    world.start();
    // The manager does not answer the phone; nbdinfo tries until the export is there.
    let script = format!("until nbdinfo --size '{}' 2>/dev/null; do :; done", attached.unix);
    run("sh", &["-c", &script]);
    let mut client = Client::open(&socket).expect("an export");
    assert_eq!(client.read(8192, 4096).expect("answered"), vec![3; 4096]);
    client.write(0, &[4; 4096]).expect("answered");
    assert_eq!(world.primary.sessions(), 2, "a new process is a new session");
    let register = world.manager.accept();
    assert_eq!(register.attachments.len(), 1);
    assert_eq!(register.attachments[0].0, volume());
}

#[test]
fn a_detached_volume_is_gone_for_its_clients_and_may_come_back() {
    let mut world = World::new("detached", false);
    let attached = world.attach(SIZE, false);
    let socket = world.dir.join("nbd.sock");
    let mut client = Client::open(&socket).expect("an export");
    client.write(0, &[5; 512]).expect("answered");
    world.manager.detach(1, false);
    let mut lost = client.send_read(0, 512).is_err();
    lost = lost || client.answer().map_or(true, |answer| answer.error == SHUTDOWN);
    assert!(lost, "the volume answered after its detachment");
    assert!(!try_run("nbdinfo", &["--size", &attached.unix]).0);
    world.send_attach(2, SIZE, 2, false);
    world.manager.attached();
    let mut client = Client::open(&socket).expect("an export");
    assert_eq!(client.read(0, 512).expect("answered"), vec![5; 512]);
}

#[test]
fn a_forced_detach_does_not_wait_for_a_primary_that_is_away() {
    let mut world = World::new("forced", false);
    world.attach(SIZE, false);
    let mut client = Client::open(&world.dir.join("nbd.sock")).expect("an export");
    world.primary.set_mood(Mood::Away);
    client.send_write(0, &[6; 4096]).expect("taken");
    world.manager.detach(1, true);
    let answer = client.answer();
    assert!(answer.as_ref().map_or(true, |answer| answer.error == SHUTDOWN), "{answer:?}");
}

#[test]
fn a_new_size_is_usable_by_connected_clients_and_seen_by_new_ones() {
    let mut world = World::new("grow", false);
    let attached = world.attach(SIZE, false);
    let mut client = Client::open(&world.dir.join("nbd.sock")).expect("an export");
    client.send_read(SIZE, 512).expect("taken");
    assert_ne!(client.answer().expect("answered").error, 0, "beyond the old end");
    world.send_attach(2, 2 * SIZE, 1, false);
    world.manager.size_shown(2 * SIZE);
    client.write(2 * SIZE - 512, &[9; 512]).expect("answered");
    assert_eq!(run("nbdinfo", &["--size", &attached.tcp]).trim(), (2 * SIZE).to_string());
}

#[test]
fn a_stop_is_clean_and_leaves_the_attachment_for_the_next_start() {
    let mut world = World::new("stop", false);
    world.attach(SIZE, false);
    world.stop();
    assert!(!world.dir.join("nbd.sock").exists());
    world.start();
    assert_eq!(world.manager.accept().attachments.len(), 1);
    world.manager.attached();
}
