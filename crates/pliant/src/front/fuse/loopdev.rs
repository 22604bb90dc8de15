//! Loop devices through their ioctls.
//!
//! Decides: how a loop device is bound, grown and released.
//! Does not: know what its backing file is.
#![allow(unsafe_code)]

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use libc::c_ulong;

// From <linux/loop.h>; the libc crate does not carry them.
const LOOP_CLR_FD: c_ulong = 0x4C01;
const LOOP_GET_STATUS64: c_ulong = 0x4C05;
const LOOP_SET_CAPACITY: c_ulong = 0x4C07;
const LOOP_CONFIGURE: c_ulong = 0x4C0A;
const LOOP_CTL_GET_FREE: c_ulong = 0x4C82;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// Others may take the loop device that was free a moment ago.
const BIND_ATTEMPTS_MAX: u32 = 16;

/// Sectors of 512 bytes, though 4096 would spare the read-modify-write of a part of a block (an
/// XFS log write, mainly; `mkfs.xfs -s size=4096` avoids it): XFS refuses to mount on a device
/// whose sectors are larger than those it was made with, partition tables count in sectors, and
/// the same volume must also open where an NBD client or a VM sees sectors of 512 bytes.
const SECTOR_BYTES: u32 = 512;

#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo64>() == 232);
const _: () = assert!(size_of::<LoopConfig>() == 304);

/// A bound loop device. Dropping it leaves the device bound; `release` unbinds it.
pub struct LoopDevice {
    path: PathBuf,
    device: File,
    direct: bool,
}

impl LoopDevice {
    /// Binds a free loop device to `backing`, with direct I/O.
    pub fn bind(backing: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(backing)?;
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        let mut last = io::Error::from_raw_os_error(libc::EBUSY);
        for _ in 0..BIND_ATTEMPTS_MAX {
            let number = ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE, 0)?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = OpenOptions::new().read(true).write(true).open(&path)?;
            match configure(&device, &file, backing) {
                Ok(()) => {
                    let direct = status(&device)?.flags & LO_FLAGS_DIRECT_IO != 0;
                    return Ok(Self { path, device, direct });
                }
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => last = e,
                Err(e) => return Err(e),
            }
        }
        Err(last)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the kernel granted direct I/O. Without it the device works, through one more cache.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Takes over the size that the backing file has now.
    pub fn set_capacity(&self) -> io::Result<()> {
        ioctl(self.device.as_raw_fd(), LOOP_SET_CAPACITY, 0).map(drop)
    }

    /// Writes out what the kernel holds back.
    pub fn flush(&self) -> io::Result<()> {
        self.device.sync_all()
    }

    /// Unbinds it: now, or when the last program that has it open (or mounted) lets go.
    pub fn release(self) -> io::Result<()> {
        ioctl(self.device.as_raw_fd(), LOOP_CLR_FD, 0).map(drop)
    }
}

/// Releases the loop devices whose backing file lies under `dir`: those of a predecessor that was
/// killed.
pub fn release_under(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut released = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        // Not bound, or gone since: nothing to release.
        let Ok(backing) = fs::read(entry.path().join("loop/backing_file")) else { continue };
        let mut prefix = dir.as_os_str().as_bytes().to_vec();
        prefix.push(b'/');
        if !backing.starts_with(&prefix) {
            continue;
        }
        let path = Path::new("/dev").join(entry.file_name());
        let device = File::open(&path)?;
        match ioctl(device.as_raw_fd(), LOOP_CLR_FD, 0) {
            Ok(_) => released.push(path),
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(released)
}

fn configure(device: &File, backing: &File, path: &Path) -> io::Result<()> {
    let mut info = blank_info();
    info.flags = LO_FLAGS_DIRECT_IO;
    // For people who run losetup; the kernel knows the file by its descriptor. The last byte
    // stays zero.
    let name = path.as_os_str().as_bytes();
    let shown = name.len().min(info.file_name.len() - 1);
    info.file_name[..shown].copy_from_slice(&name[..shown]);
    let config = LoopConfig {
        fd: u32::try_from(backing.as_raw_fd()).expect("an open descriptor is not negative"),
        block_size: SECTOR_BYTES,
        info,
        reserved: [0; 8],
    };
    // SAFETY: LOOP_CONFIGURE reads one `struct loop_config`, whose layout `LoopConfig` has (the
    // size is asserted above), and keeps no pointer to it.
    let result =
        unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, std::ptr::from_ref(&config)) };
    check(result).map(drop)
}

fn status(device: &File) -> io::Result<LoopInfo64> {
    let mut info = blank_info();
    // SAFETY: LOOP_GET_STATUS64 writes one `struct loop_info64`, whose layout `LoopInfo64` has
    // (the size is asserted above), through a pointer that is valid for the call.
    let result = unsafe {
        libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, std::ptr::from_mut(&mut info))
    };
    check(result)?;
    Ok(info)
}

fn blank_info() -> LoopInfo64 {
    LoopInfo64 {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        sizelimit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    }
}

/// An ioctl whose argument is a number, if it has one.
fn ioctl(fd: RawFd, request: c_ulong, argument: c_ulong) -> io::Result<i32> {
    // SAFETY: the requests used with this function take no pointer, so the kernel touches no
    // memory of ours.
    check(unsafe { libc::ioctl(fd, request, argument) })
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
