//! Programs that people use, on both addresses of an attachment.

use std::fs;

use super::world::{MIB, World, path, run, try_run};

const SIZE: u64 = 256 * MIB;

#[test]
fn nbdinfo_sees_the_size_and_what_the_export_can_do() {
    let mut world = World::new("nbdinfo", false);
    let attached = world.attach(SIZE, false);
    for uri in [&attached.unix, &attached.tcp] {
        assert_eq!(run("nbdinfo", &["--size", uri]).trim(), SIZE.to_string());
        for what in ["flush", "fua", "trim", "zero", "multi-conn", "structured-reply"] {
            run("nbdinfo", &["--can", what, uri]);
        }
        assert!(!try_run("nbdinfo", &["--is", "read-only", uri]).0);
        let listed = run("nbdinfo", &["--list", uri]);
        assert!(listed.contains(&super::world::volume().to_string()), "{listed}");
    }
}

#[test]
fn the_map_shows_what_was_written_and_what_was_trimmed_again() {
    let mut world = World::new("map", false);
    let uri = world.attach(SIZE, false).unix;
    run("qemu-io", &["-f", "raw", "-c", "write 1M 1M", "-c", "write 4M 1M", &uri]);
    run("qemu-io", &["-f", "raw", "-c", "discard 4M 1M", &uri]);
    let map = run("nbdinfo", &["--map", "--totals", &uri]);
    let data = map.lines().find(|line| line.contains("data")).expect("a line for data");
    assert!(data.trim().starts_with(&MIB.to_string()), "{map}");
}

#[test]
fn qemu_io_reads_back_parts_of_blocks_that_it_wrote() {
    let mut world = World::new("qemu-io", false);
    let attached = world.attach(SIZE, false);
    let write = ["-f", "raw", "-c", "write -P 0xa5 0 8M", "-c", "write -P 0x5a 1536 1024"];
    run("qemu-io", &[&write[..], &[&attached.unix]].concat());
    let checks = [
        "read -P 0xa5 0 1536",
        "read -P 0x5a 1536 1024",
        "read -P 0xa5 2560 5M",
        "write -z 512 512",
        "read -P 0 512 512",
        "read -P 0xa5 0 512",
        "read -P 0xa5 1024 512",
        "flush",
    ];
    let mut arguments = vec!["-f", "raw"];
    for check in checks {
        arguments.extend(["-c", check]);
    }
    arguments.push(&attached.tcp);
    let output = run("qemu-io", &arguments);
    assert!(!output.contains("verification failed"), "{output}");
    // Beyond the end of the device.
    let beyond = format!("read {SIZE} 512");
    let (_, output) = try_run("qemu-io", &["-f", "raw", "-c", &beyond, &attached.tcp]);
    assert!(!output.contains("read 512/512"), "{output}");
}

#[test]
fn nbdcopy_in_and_out_is_byte_identical() {
    let mut world = World::new("nbdcopy", false);
    let attached = world.attach(SIZE, false);
    let (source, copy) = (world.dir.join("source"), world.dir.join("copy"));
    // Data, and a hole in the middle.
    let mut bytes: Vec<u8> = Vec::new();
    let mut word = 1_u64;
    while bytes.len() < 96 << 20 {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes[(20 << 20)..(40 << 20)].fill(0);
    bytes.resize(usize::try_from(SIZE).expect("it fits"), 0);
    fs::write(&source, &bytes).expect("written");
    run("nbdcopy", &[path(&source), &attached.tcp]);
    run("nbdcopy", &[&attached.unix, path(&copy)]);
    assert!(fs::read(&copy).expect("readable") == bytes, "the copy differs");
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", path(&source), &attached.unix]);
}

#[test]
fn fio_verifies_what_it_wrote_through_several_connections() {
    let mut world = World::new("fio", false);
    let attached = world.attach(SIZE, false);
    for uri in [attached.unix, attached.tcp] {
        let uri = format!("--uri={uri}");
        let job = ["--name=verify", "--ioengine=nbd", &uri, "--rw=randwrite", "--bsrange=512-64k"];
        let how = [
            "--blockalign=512",
            "--size=32M",
            "--iodepth=32",
            "--verify=crc32c",
            "--verify_state_save=0",
        ];
        run("fio", &[&job[..], &how[..]].concat());
    }
}
