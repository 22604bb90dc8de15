//! The table of files. What the kernel makes of them is tested with the real kernel, in
//! `tests/node_role/devices.rs`.

use fuser::INodeNo;
use model::{id::VolumeId, units::ByteCount};

use super::files::{Files, zeroes};

const SIZE: ByteCount = ByteCount::new(1 << 20);

fn volume() -> VolumeId {
    VolumeId::from_raw(1)
}

#[test]
fn a_volume_attached_again_gets_another_file_than_the_one_still_open() {
    let files = Files::default();
    files.add(volume(), SIZE);
    let first = files.inode(volume()).expect("just added");
    assert!(first > INodeNo::ROOT.0);
    files.remove(volume());
    assert_eq!(files.inode(volume()), None);
    files.add(volume(), SIZE);
    assert!(files.inode(volume()).expect("just added") > first);
}

#[test]
fn a_size_is_what_the_kernel_was_granted_and_nothing_else() {
    let files = Files::default();
    files.add(volume(), SIZE);
    let inode = files.inode(volume()).expect("just added");
    let (half, twice) = (SIZE.get() / 2, SIZE.get() * 2);
    assert_eq!(files.set_size(inode, twice), None);
    files.grant(volume(), ByteCount::new(twice));
    assert_eq!(files.set_size(inode, half), None);
    assert_eq!(files.set_size(inode, twice), Some(twice));
    files.remove(volume());
    assert_eq!(files.set_size(inode, twice), None);
}

#[test]
fn only_what_must_read_as_zeros_is_done_by_fallocate() {
    let (keep, punch) = (libc::FALLOC_FL_KEEP_SIZE, libc::FALLOC_FL_PUNCH_HOLE);
    let zero = libc::FALLOC_FL_ZERO_RANGE;
    for mode in [punch | keep, zero, zero | keep] {
        assert!(zeroes(mode), "{mode:#x}");
    }
    for mode in [0, keep, libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_INSERT_RANGE] {
        assert!(!zeroes(mode), "{mode:#x}");
    }
}
