//! Drives: where an engine's bytes are.
//!
//! Decides: how a request becomes system calls, and which of them share one `fdatasync`.
//! Does not: order, retry or cache; know what the bytes mean.
//! Invariants:
//! - Every request is carried out and answered exactly once; those of a driver that is dropped too,
//!   if somebody is left to hear the answer.
//! - A flush, and a write that makes everything durable, are answered after an `fdatasync` that
//!   began when everything answered before was already with the kernel. A write that makes itself
//!   durable is answered after one that began when it was, or is itself a durable one.
//! - Where completed writes are stable without an `fdatasync` (`medium`), none is made.
//! - After a failed `fdatasync` no write is ever called durable again: the kernel may have
//!   forgotten what it could not write.

mod aio;
mod batch;
mod buffer;
mod elevator;
mod emulated;
mod file;
mod medium;
mod portable;
mod queue;
mod uring;

#[cfg(test)]
mod tests;

use std::{fmt, io, os::fd::RawFd, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use engine::api::{DriveError, Durability, IoToken, Urgency};
use model::units::BLOCK;
use serde::Deserialize;

use self::{file::DriveFile, portable::Portable, uring::Uring};

pub use emulated::{Emulated, Profile};
pub use file::is_blank;
pub use medium::Flush;

/// What an engine asks of its drive. Offsets and lengths are whole blocks.
#[derive(Debug)]
pub enum Request {
    Read {
        token: IoToken,
        offset: u64,
        length: u32,
    },
    /// The segments one after the other.
    Write {
        token: IoToken,
        offset: u64,
        data: Vec<Bytes>,
        durability: Durability,
        urgency: Urgency,
    },
    Flush {
        token: IoToken,
    },
    /// Zeros in the background where the file has holes; nothing where it has none, and on devices.
    /// Answered as a write.
    Prepare {
        token: IoToken,
        offset: u64,
        length: u32,
    },
}

impl Request {
    /// Where it begins and how many bytes it moves; a flush moves nothing.
    fn extent(&self) -> Option<(u64, u64)> {
        match self {
            Self::Read { offset, length, .. } | Self::Prepare { offset, length, .. } => {
                Some((*offset, u64::from(*length)))
            }
            Self::Write { offset, data, .. } => {
                let bytes: usize = data.iter().map(Bytes::len).sum();
                Some((*offset, u64::try_from(bytes).expect("memory is below 2^64 bytes")))
            }
            Self::Flush { .. } => None,
        }
    }

    /// A request that is not whole blocks within the drive is the engine's bug.
    fn check(&self, drive_bytes: u64) {
        let Some((offset, bytes)) = self.extent() else { return };
        assert!(offset % BLOCK == 0 && bytes % BLOCK == 0, "{bytes} bytes at {offset}: no blocks");
        let end = offset.checked_add(bytes);
        assert!(end.is_some_and(|end| end <= drive_bytes), "{bytes} bytes at {offset}: too far");
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Completion {
    Read { token: IoToken, result: Result<Bytes, DriveError> },
    Written { token: IoToken, result: Result<(), DriveError> },
    Flushed { token: IoToken, result: Result<(), DriveError> },
}

impl Completion {
    fn fail(&mut self, error: &DriveError) {
        match self {
            Self::Read { result, .. } => *result = Err(error.clone()),
            Self::Written { result, .. } | Self::Flushed { result, .. } => {
                *result = Err(error.clone());
            }
        }
    }
}

/// Where completions go, from whatever thread has them.
#[derive(Clone)]
pub struct Sink(Arc<dyn Fn(Vec<Completion>) + Send + Sync>);

impl Sink {
    pub fn new(deliver: impl Fn(Vec<Completion>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(deliver))
    }

    fn deliver(&self, completions: Vec<Completion>) {
        if !completions.is_empty() {
            (self.0)(completions);
        }
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sink")
    }
}

/// One drive. Dropping it carries out what is still under way first.
pub trait Driver: fmt::Debug {
    /// Takes the requests; never waits for the drive.
    fn submit(&mut self, batch: Vec<Request>);

    /// What carries out the requests, for the log.
    fn description(&self) -> String;

    /// Of a driver without threads of its own: what becomes readable (an edge, nobody reads it) when
    /// something ends after `is_quiet`. Such a driver has no use for its sink, and stays in the
    /// thread that opened it.
    fn descriptor(&self) -> Option<RawFd> {
        None
    }

    /// There is nothing to `reap`: its thread may sleep until the descriptor says that there is.
    fn is_quiet(&mut self) -> bool {
        true
    }

    /// What has ended; never waits.
    fn reap(&mut self) -> Vec<Completion> {
        Vec::new()
    }
}

/// Why a drive cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot open drive {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "drive {path} is in use, and still was after {waited:?}: by another process, under another \
         name in this configuration, or as a file system that is mounted"
    )]
    InUse { path: PathBuf, waited: Duration },
    #[error("drive {path} has {found} bytes where its configuration says {wanted}")]
    Size { path: PathBuf, found: u64, wanted: u64 },
    #[error("drive {path} is neither a file nor a block device")]
    Kind { path: PathBuf },
    #[error("drive {path}: its configuration asks for io_uring, which is refused; {remedy}")]
    Refused {
        path: PathBuf,
        remedy: String,
        #[source]
        source: io::Error,
    },
}

/// Which driver carries out a drive's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriverKind {
    /// io_uring, or the portable one where that is refused.
    #[default]
    Auto,
    /// Nothing else will do.
    IoUring,
    Portable,
}

#[derive(Debug, Clone)]
pub struct DriveOptions {
    pub path: PathBuf,
    pub bytes: u64,
    /// Of the portable driver.
    pub threads: usize,
    /// Bypass the page cache if the file system allows it.
    pub direct: bool,
    pub kind: DriverKind,
    pub flush: Flush,
    /// How long a former user is given to let go of the drive.
    pub lock_wait: Duration,
}

/// Enough for the kernel to end what a killed process had under way.
pub const LOCK_WAIT: Duration = Duration::from_secs(10);

/// Opens the drive with the driver that the options name. One without threads belongs to the calling
/// thread.
pub fn open(options: &DriveOptions, sink: Sink) -> Result<Box<dyn Driver>, OpenError> {
    let file = Arc::new(DriveFile::open(options)?);
    if options.kind == DriverKind::Portable {
        return Ok(Box::new(Portable::start(file, options, sink)?));
    }
    let source = match Uring::start(Arc::clone(&file), options.bytes) {
        Ok(driver) => return Ok(Box::new(driver)),
        Err(source) => source,
    };
    let (path, remedy) = (options.path.clone(), uring::remedy(&source));
    if options.kind == DriverKind::IoUring {
        return Err(OpenError::Refused { path, remedy, source });
    }
    tracing::warn!(path = %path.display(), %source, "io_uring is refused, so the drive has the portable \
        driver, which costs more CPU; {remedy}");
    Ok(Box::new(Portable::start(file, options, sink)?))
}

fn drive_error(error: &io::Error) -> DriveError {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => DriveError::NoSpace,
        _ => DriveError::Io(error.to_string()),
    }
}
