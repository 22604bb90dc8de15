//! A kernel block device where the kernel has neither nbd nor ublk: a FUSE file per volume and a
//! loop device on it. Needs root.
//!
//! Decides: when loop devices are bound, grown and released, and what becomes of those that a
//! killed predecessor left.
//! Does not: answer reads and writes; they go to the role's loop as [`FuseEvent`]s.
//! Invariants: the role's loop never waits for the kernel, because binding, growing and releasing
//! a device may make the kernel read, write or flush it, which only that loop can answer. So each
//! device has a thread of its own, which does these things in the order asked for; one that waits
//! for its volume holds up no other.
//!
//! A device dies with this process, because the FUSE mount does: programs on it then get I/O
//! errors, where NBD clients can connect again.

mod files;
mod loopdev;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs::{self, OpenOptions},
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, JoinHandle},
};

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use model::{id::VolumeId, units::ByteCount};
use node::api::GuestRequest;

pub use self::files::Answer;
use self::{
    files::{Files, VolumeFilesystem},
    loopdev::LoopDevice,
};

/// Mounts stacked on the mount point that are taken off at start.
const STALE_MOUNTS_MAX: usize = 16;

/// What happened at the kernel's side.
pub enum FuseEvent {
    Requested {
        volume: VolumeId,
        request: GuestRequest,
        answer: Answer,
    },
    Opened {
        volume: VolumeId,
        device: PathBuf,
    },
    OpenFailed {
        volume: VolumeId,
        reason: String,
    },
    Resized {
        volume: VolumeId,
        size: ByteCount,
    },
    ResizeFailed {
        volume: VolumeId,
        reason: String,
    },
    Closed {
        volume: VolumeId,
    },
    /// Answer to `shut_down`: all devices are released and the mount is gone.
    ShutDown,
}

/// Carries an event to the role's loop and wakes it. May wait while that is behind.
pub type Post = Arc<dyn Fn(FuseEvent) + Send + Sync>;

enum Command {
    Resize(ByteCount),
    Close,
}

/// The kernel block devices of this node. Every call returns at once; how it ended comes as a
/// [`FuseEvent`], which is posted from other threads only.
pub struct KernelDevices {
    dir: PathBuf,
    files: Arc<Files>,
    post: Post,
    session: Option<BackgroundSession>,
    keepers: BTreeMap<VolumeId, Keeper>,
}

/// The thread that keeps a device.
struct Keeper {
    /// Unbounded, but the node machine has at most one resize and one close of a volume under
    /// way.
    commands: Sender<Command>,
    thread: JoinHandle<()>,
}

impl Keeper {
    fn tell(&self, command: Command) {
        self.commands.send(command).expect("the thread waits for `Close`");
    }
}

impl KernelDevices {
    /// Cleans up after a killed predecessor and mounts `dir`, which nobody else may use.
    pub fn start(dir: &Path, post: Post) -> io::Result<Self> {
        fs::create_dir_all(dir.parent().unwrap_or(dir))?;
        clean_up(dir)?;
        fs::create_dir_all(dir)?;
        let dir = dir.canonicalize()?;
        let files = Arc::new(Files::default());
        let session = mount(&dir, Arc::clone(&files), Arc::clone(&post))?;
        Ok(Self { dir, files, post, session: Some(session), keepers: BTreeMap::new() })
    }

    pub fn open(&mut self, volume: VolumeId, size: ByteCount) -> io::Result<()> {
        self.files.add(volume, size);
        let path = self.dir.join(volume.to_string());
        let (files, post) = (Arc::clone(&self.files), Arc::clone(&self.post));
        let device = DeviceThread { volume, path, files, post };
        let (commands, receiver) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("kernel-device".to_owned())
            .spawn(move || device.run(size, &receiver))
            .inspect_err(|_| self.files.remove(volume))?;
        self.keepers.insert(volume, Keeper { commands, thread });
        Ok(())
    }

    pub fn resize(&self, volume: VolumeId, size: ByteCount) {
        if let Some(keeper) = self.keepers.get(&volume) {
            keeper.tell(Command::Resize(size));
        }
    }

    /// Flushes and releases the device. What the kernel asks for until
    /// [`FuseEvent::Closed`] arrives must still be answered. Returns whether there is a device.
    pub fn close(&mut self, volume: VolumeId) -> bool {
        let Some(keeper) = self.keepers.remove(&volume) else { return false };
        keeper.tell(Command::Close);
        true
    }

    /// Closes all devices and unmounts. Requests must be answered until
    /// [`FuseEvent::ShutDown`] arrives.
    pub fn shut_down(&mut self) {
        let keepers = std::mem::take(&mut self.keepers);
        for keeper in keepers.values() {
            keeper.tell(Command::Close);
        }
        let (dir, post, session) = (self.dir.clone(), Arc::clone(&self.post), self.session.take());
        let unmounter = move || {
            for keeper in keepers.into_values() {
                // One that panicked has stopped the process already.
                let _ = keeper.thread.join();
            }
            // Detached, not waited for: a device that is still open keeps the mount in use until
            // this process ends.
            if let Err(error) = unmount(&dir) {
                tracing::warn!(dir = %dir.display(), %error, "cannot unmount");
            }
            // Not dropped: it would unmount once more, and complain if the mount is still in use.
            std::mem::forget(session);
            post(FuseEvent::ShutDown);
        };
        if let Err(error) = thread::Builder::new().name("unmount".to_owned()).spawn(unmounter) {
            tracing::warn!(%error, "cannot unmount");
        }
    }
}

/// One device, from its binding to its release.
struct DeviceThread {
    volume: VolumeId,
    path: PathBuf,
    files: Arc<Files>,
    post: Post,
}

impl DeviceThread {
    fn run(self, size: ByteCount, commands: &Receiver<Command>) {
        let volume = self.volume;
        let device = LoopDevice::bind(&self.path);
        (self.post)(match &device {
            Ok(device) => {
                let (path, direct) = (device.path().to_owned(), device.is_direct());
                tracing::info!(%volume, %size, device = %path.display(), direct, "device bound");
                FuseEvent::Opened { volume, device: path }
            }
            Err(error) => {
                let reason = format!("cannot bind a loop device: {error}");
                FuseEvent::OpenFailed { volume, reason }
            }
        });
        while let Ok(Command::Resize(size)) = commands.recv() {
            (self.post)(match self.resize(device.as_ref().ok(), size) {
                Ok(()) => FuseEvent::Resized { volume, size },
                Err(error) => {
                    let reason = format!("cannot resize the loop device: {error}");
                    FuseEvent::ResizeFailed { volume, reason }
                }
            });
        }
        if let Ok(device) = device {
            // What the kernel still holds back belongs to programs that have finished writing.
            // It fails at once if the volume is detached by force.
            if let Err(error) = device.flush() {
                tracing::warn!(%volume, %error, "the device was not flushed");
            }
            self.files.remove(volume);
            release(volume, device);
        }
        self.files.remove(volume);
        (self.post)(FuseEvent::Closed { volume });
    }

    /// The kernel must learn the new size through its own truncate before the loop device shows
    /// it: refreshed attributes alone lose a race against writes under way, and the new end of
    /// the device then reads as an error.
    fn resize(&self, device: Option<&LoopDevice>, size: ByteCount) -> io::Result<()> {
        let device = device.ok_or(io::ErrorKind::NotFound)?;
        self.files.grant(self.volume, size);
        OpenOptions::new().write(true).open(&self.path)?.set_len(size.get())?;
        device.set_capacity()
    }
}

fn release(volume: VolumeId, device: LoopDevice) {
    let path = device.path().to_owned();
    match device.release() {
        Ok(()) => tracing::info!(%volume, device = %path.display(), "device released"),
        Err(error) => {
            tracing::warn!(%volume, device = %path.display(), %error, "cannot release");
        }
    }
}

fn mount(dir: &Path, files: Arc<Files>, post: Post) -> io::Result<BackgroundSession> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("pliant".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoDev,
        MountOption::NoSuid,
        MountOption::NoExec,
        MountOption::NoAtime,
    ];
    // The mounting user alone, which is root.
    config.acl = SessionACL::Owner;
    let made_at = std::time::SystemTime::now();
    Session::new(VolumeFilesystem { files, post, made_at }, dir, &config)?.spawn()
}

/// Releases the loop devices and takes off the mounts that a killed predecessor left.
fn clean_up(dir: &Path) -> io::Result<()> {
    // Not `canonicalize`: the mount point itself answers with errors while a dead mount is on it.
    let parent = dir.parent().unwrap_or(dir).canonicalize()?;
    let name = dir.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let dir = parent.join(name);
    for device in loopdev::release_under(&dir)? {
        tracing::info!(device = %device.display(), "released the device of a killed predecessor");
    }
    for _ in 0..STALE_MOUNTS_MAX {
        match unmount(&dir) {
            Ok(()) => tracing::info!(dir = %dir.display(), "took off a killed predecessor's mount"),
            // Not a mount point, or not there at all.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {
                return Ok(());
            }
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::other(format!("too many mounts on {}", dir.display())))
}

/// Takes the mount out of sight now; it ends when nothing uses it any more.
#[allow(unsafe_code)]
fn unmount(dir: &Path) -> io::Result<()> {
    let path = CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: the path is a valid, nul-terminated string for the time of the call.
    let result = unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
