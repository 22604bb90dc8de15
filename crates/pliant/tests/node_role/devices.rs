//! Kernel block devices. They need root, FUSE and loop; elsewhere these tests say that they did
//! not run.

use std::{fs, path::Path};

use format::ctl::ToManager;

use super::world::{MIB, World, path, run, try_run, volume};

const SIZE: u64 = 512 * MIB;

fn can_make_devices() -> bool {
    // Its owner is root only for a process that root runs.
    let is_root = run("id", &["-u"]).trim() == "0";
    let can = is_root && Path::new("/dev/fuse").exists() && Path::new("/dev/loop-control").exists();
    if !can {
        eprintln!("not run: needs root, /dev/fuse and /dev/loop-control");
    }
    can
}

/// Loop devices that stand on this world's files.
fn bound(world: &World) -> Vec<String> {
    let listing = run("losetup", &["--list", "--noheadings", "--output", "NAME,BACK-FILE"]);
    let dir = path(&world.dir).to_owned();
    let ours = listing.lines().filter(|line| line.contains(&dir));
    ours.filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
}

#[test]
fn xfs_grows_while_it_is_written_to() {
    if !can_make_devices() {
        return;
    }
    let mut world = World::new("xfs", true);
    let device = world.attach(SIZE, true).device.expect("a device");
    run("mkfs.xfs", &["-q", &device]);
    let mount = world.dir.join("mount");
    fs::create_dir_all(&mount).expect("a directory");
    run("mount", &[&device, path(&mount)]);
    let file = mount.join("data");
    let job = format!("--filename={}", file.display());
    let load = std::thread::spawn(move || {
        let how = ["--rw=randwrite", "--bs=4k", "--size=64M", "--iodepth=8", "--direct=1"];
        let end = [
            "--ioengine=libaio",
            "--verify=crc32c",
            "--verify_state_save=0",
            "--loops=3",
            "--name=load",
        ];
        run("fio", &[&[job.as_str()][..], &how[..], &end[..]].concat());
    });
    world.send_attach(2, 2 * SIZE, 1, true);
    world.manager.size_shown(2 * SIZE);
    assert_eq!(run("blockdev", &["--getsize64", &device]).trim(), (2 * SIZE).to_string());
    run("xfs_growfs", &[path(&mount)]);
    load.join().expect("no I/O error under the load");
    // More than the old size holds.
    let big = format!("of={}", mount.join("big").display());
    run("dd", &["if=/dev/zero", &big, "bs=1M", "count=600", "oflag=direct"]);
    run("umount", &[path(&mount)]);
    run("xfs_repair", &["-n", &device]);
    world.manager.detach(1, false);
    assert_eq!(bound(&world), Vec::<String>::new());
}

#[test]
fn what_the_device_discards_is_a_hole_and_reads_as_zeros() {
    if !can_make_devices() {
        return;
    }
    let mut world = World::new("discard", true);
    let attached = world.attach(SIZE, true);
    let device = attached.device.expect("a device");
    let of = format!("of={device}");
    run("dd", &["if=/dev/urandom", &of, "bs=1M", "count=8", "oflag=direct"]);
    run("blkdiscard", &["--offset", "1048576", "--length", "2097152", &device]);
    run("blkdiscard", &["--zeroout", "--offset", "5242880", "--length", "512", &device]);
    let map = run("nbdinfo", &["--map", "--totals", &attached.unix]);
    let data = map.lines().find(|line| line.contains("data")).expect("a line for data");
    assert!(data.trim().starts_with(&(6 * MIB).to_string()), "{map}");
    let zeros = ["-f", "raw", "-c", "read -P 0 1M 2M", "-c", "read -P 0 5M 512"];
    let output = run("qemu-io", &[&zeros[..], &[&attached.unix]].concat());
    assert!(!output.contains("verification failed"), "{output}");
}

#[test]
fn a_killed_node_managers_device_is_cleaned_up_and_made_again() {
    if !can_make_devices() {
        return;
    }
    let mut world = World::new("stale", true);
    let device = world.attach(SIZE, true).device.expect("a device");
    let of = format!("of={device}");
    run("dd", &["if=/dev/urandom", &of, "bs=1M", "count=4", "oflag=direct"]);
    let written = world.primary.stored(0, 4 * MIB);
    world.kill();
    assert_eq!(bound(&world), [device]);
    assert!(!try_run("ls", &[path(&world.dir.join("state/devices"))]).0, "a dead mount");
    world.start();
    world.manager.accept();
    let device = world.manager.attached().device.expect("a device");
    assert_eq!(bound(&world), std::slice::from_ref(&device));
    let copy = world.dir.join("copy");
    let (input, output) = (format!("if={device}"), format!("of={}", copy.display()));
    run("dd", &[&input, &output, "bs=1M", "count=4", "iflag=direct"]);
    assert!(fs::read(&copy).expect("readable") == written, "acknowledged writes are gone");
    world.stop();
    assert_eq!(bound(&world), Vec::<String>::new());
    let mounts = fs::read_to_string("/proc/mounts").expect("readable");
    assert!(!mounts.contains(path(&world.dir)), "a mount is left: {mounts}");
}

#[test]
fn an_attachment_without_a_device_is_still_an_attachment() {
    let mut world = World::new("no-device", false);
    world.manager.accept();
    world.send_attach(1, SIZE, 1, true);
    // In either order: the attachment is reported once its record is durable.
    let (mut reason, mut uri) = (None, None);
    world.manager.wait("attachment and reason", |message| {
        match message {
            ToManager::DeviceFailed { volume: of, reason: given } if of == volume() => {
                reason = Some(given);
            }
            ToManager::Attached { nbd_uris, device, .. } => {
                assert_eq!(device, None);
                uri = nbd_uris.into_iter().next();
            }
            _ => {}
        }
        (reason.is_some() && uri.is_some()).then_some(())
    });
    let (reason, uri) = (reason.expect("waited for"), uri.expect("waited for"));
    assert!(reason.contains("off on this node"), "{reason}");
    assert_eq!(run("nbdinfo", &["--size", &uri]).trim(), SIZE.to_string());
}
