//! What is below a drive's file, and when a completed write is on stable media.
//!
//! Decides: whether an `fdatasync` is needed. It is left out only for a block device that is
//! written past the page cache and that the kernel knows to have no volatile cache. A file on a
//! file system needs one always: only that makes the file's own metadata stable. In doubt it is
//! made.

use std::{
    fmt,
    fs::{self, Metadata},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use serde::Deserialize;

/// The operator's word on flushes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flush {
    /// Only where they are needed.
    #[default]
    Auto,
    /// Whatever the device says of itself.
    Always,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cache {
    WriteThrough,
    WriteBack,
    Unknown,
}

/// When a completed write is durable.
#[derive(Debug)]
pub(super) struct Stability {
    needs_sync: bool,
    is_device: bool,
    cache: Cache,
    rotational: Option<bool>,
}

impl Stability {
    pub(super) fn of(metadata: &Metadata, direct: bool, flush: Flush) -> Self {
        let is_device = metadata.file_type().is_block_device();
        let device = if is_device { metadata.rdev() } else { metadata.dev() };
        let (major, minor) = (libc::major(device), libc::minor(device));
        let below = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        Self::from_queue(is_device, direct, flush, &queue_of(&below))
    }

    fn from_queue(is_device: bool, direct: bool, flush: Flush, queue: &Path) -> Self {
        let read = |name| fs::read_to_string(queue.join(name)).unwrap_or_default();
        let cache = match read("write_cache").trim() {
            "write through" => Cache::WriteThrough,
            "write back" => Cache::WriteBack,
            _ => Cache::Unknown,
        };
        let rotational = match read("rotational").trim() {
            "0" => Some(false),
            "1" => Some(true),
            _ => None,
        };
        let stable = is_device && direct && cache == Cache::WriteThrough && flush == Flush::Auto;
        Self { needs_sync: !stable, is_device, cache, rotational }
    }

    pub(super) fn needs_sync(&self) -> bool {
        self.needs_sync
    }

    /// A device has a place for each of its bytes.
    pub(super) fn is_device(&self) -> bool {
        self.is_device
    }

    /// Whether a write with RWF_DSYNC is durable by itself. Of file systems, some leave that to
    /// somebody who ignores it (FUSE); the kernel's block devices do what it says.
    pub(super) fn honours_dsync(&self) -> bool {
        self.is_device
    }
}

impl fmt::Display for Stability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.needs_sync { "fdatasync" } else { "completed writes are stable" };
        let what = if self.is_device { "block device" } else { "file, on a device" };
        let cache = match self.cache {
            Cache::WriteThrough => "without volatile cache",
            Cache::WriteBack => "with volatile cache",
            Cache::Unknown => "of unknown cache",
        };
        let media = match self.rotational {
            Some(true) => ", rotational",
            Some(false) => ", not rotational",
            None => "",
        };
        write!(f, "{how} ({what} {cache}{media})")
    }
}

/// A partition has its disk's queue.
fn queue_of(device: &Path) -> PathBuf {
    let own = device.join("queue");
    if own.is_dir() { own } else { device.join("../queue") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a queue with this cache makes of a drive.
    fn needs_sync(is_device: bool, direct: bool, flush: Flush, cache: Option<&str>) -> bool {
        let folder = tempdir();
        if let Some(cache) = cache {
            fs::write(folder.join("write_cache"), cache).expect("a file");
        }
        let stability = Stability::from_queue(is_device, direct, flush, &folder);
        fs::remove_dir_all(&folder).expect("ours");
        stability.needs_sync()
    }

    fn tempdir() -> PathBuf {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("pliant-queue-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        folder
    }

    #[test]
    fn a_flush_is_left_out_only_where_nothing_can_be_lost() {
        let through = Some("write through\n");
        assert!(!needs_sync(true, true, Flush::Auto, through));
        assert!(needs_sync(true, true, Flush::Always, through), "the operator's word");
        assert!(needs_sync(true, false, Flush::Auto, through), "the page cache loses it");
        assert!(needs_sync(false, true, Flush::Auto, through), "the file system loses it");
        assert!(needs_sync(true, true, Flush::Auto, Some("write back\n")));
        assert!(needs_sync(true, true, Flush::Auto, Some("write thro")), "unheard of");
        assert!(needs_sync(true, true, Flush::Auto, None), "unknown");
    }
}
