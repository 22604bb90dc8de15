//! A kernel block device where the kernel has neither nbd nor ublk: a FUSE file per volume and a
//! loop device on it. Needs root.
//!
//! Decides: when loop devices are bound, grown and released, and what becomes of those that a
//! killed predecessor left.
//! Does not: answer reads and writes; they go to the role's loop as [`FuseEvent`]s.
//! Invariants: the role's loop never waits for the kernel, because binding, growing and releasing
//! a device may make the kernel read or flush it, which only that loop can answer. All of it
//! happens on one thread of its own, in the order asked for.
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
    thread,
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
        size: ByteCount,
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
    Open { volume: VolumeId, size: ByteCount },
    Resize { volume: VolumeId, size: ByteCount },
    Close { volume: VolumeId },
    ShutDown,
}

/// The kernel block devices of this node. Every call returns at once; how it ended comes as a
/// [`FuseEvent`].
pub struct KernelDevices {
    files: Arc<Files>,
    /// Unbounded, but the node machine has at most one open, resize and close of a volume under
    /// way.
    commands: Sender<Command>,
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
        let (commands, receiver) = mpsc::channel();
        let worker = Worker {
            dir,
            files: Arc::clone(&files),
            post,
            devices: BTreeMap::new(),
            session: Some(session),
        };
        thread::Builder::new()
            .name("kernel-devices".to_owned())
            .spawn(move || worker.run(&receiver))?;
        Ok(Self { files, commands })
    }

    pub fn open(&self, volume: VolumeId, size: ByteCount) {
        self.files.add(volume, size);
        self.send(Command::Open { volume, size });
    }

    pub fn resize(&self, volume: VolumeId, size: ByteCount) {
        self.send(Command::Resize { volume, size });
    }

    /// Requests that arrive from now on fail; those under way get their answers.
    pub fn close(&self, volume: VolumeId) {
        self.files.remove(volume);
        self.send(Command::Close { volume });
    }

    /// Releases all devices and unmounts. The loop must go on answering requests until
    /// [`FuseEvent::ShutDown`] arrives, since the kernel may flush the devices.
    pub fn shut_down(&self) {
        self.send(Command::ShutDown);
    }

    fn send(&self, command: Command) {
        self.commands.send(command).expect("the thread ends only at shut-down");
    }
}

struct Worker {
    dir: PathBuf,
    files: Arc<Files>,
    post: Post,
    devices: BTreeMap<VolumeId, LoopDevice>,
    session: Option<BackgroundSession>,
}

impl Worker {
    fn run(mut self, commands: &Receiver<Command>) {
        while let Ok(command) = commands.recv() {
            let event = match command {
                Command::Open { volume, size } => self.open(volume, size),
                Command::Resize { volume, size } => self.resize(volume, size),
                Command::Close { volume } => self.close(volume),
                Command::ShutDown => break,
            };
            (self.post)(event);
        }
        self.shut_down();
        (self.post)(FuseEvent::ShutDown);
    }

    fn open(&mut self, volume: VolumeId, size: ByteCount) -> FuseEvent {
        match LoopDevice::bind(&self.dir.join(volume.to_string())) {
            Ok(device) => {
                let path = device.path().to_owned();
                let direct = device.is_direct();
                tracing::info!(%volume, %size, device = %path.display(), direct, "device bound");
                self.devices.insert(volume, device);
                FuseEvent::Opened { volume, device: path }
            }
            Err(error) => {
                self.files.remove(volume);
                let reason = format!("cannot bind a loop device: {error}");
                FuseEvent::OpenFailed { volume, reason }
            }
        }
    }

    /// The kernel must learn the new size through its own truncate before the loop device shows
    /// it: refreshed attributes alone lose a race against writes under way, and the new end of
    /// the device then reads as an error.
    fn resize(&self, volume: VolumeId, size: ByteCount) -> FuseEvent {
        self.files.grant(volume, size);
        match self.truncate(volume, size) {
            Ok(()) => FuseEvent::Resized { volume, size },
            Err(error) => {
                let reason = format!("cannot resize the loop device: {error}");
                FuseEvent::ResizeFailed { volume, size, reason }
            }
        }
    }

    fn truncate(&self, volume: VolumeId, size: ByteCount) -> io::Result<()> {
        let device = self.devices.get(&volume).ok_or(io::ErrorKind::NotFound)?;
        let file = OpenOptions::new().write(true).open(self.dir.join(volume.to_string()))?;
        file.set_len(size.get())?;
        device.set_capacity()
    }

    fn close(&mut self, volume: VolumeId) -> FuseEvent {
        self.files.remove(volume);
        if let Some(device) = self.devices.remove(&volume) {
            release(volume, device);
        }
        FuseEvent::Closed { volume }
    }

    fn shut_down(&mut self) {
        for (volume, device) in std::mem::take(&mut self.devices) {
            release(volume, device);
        }
        // Detached, not waited for: a device that is still open keeps the mount in use until
        // this process ends.
        if let Err(error) = unmount(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), %error, "cannot unmount");
        }
        // Its drop finds the mount gone or unmounts it again; neither waits.
        drop(self.session.take());
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
