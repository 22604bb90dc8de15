//! A file or block device as a drive: opening, reading, writing, flushing.
#![allow(unsafe_code)]

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, IoSlice, Read, Seek, SeekFrom},
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::{FileExt, FileTypeExt, OpenOptionsExt},
    },
    path::Path,
    sync::mpsc,
    thread,
    time::Duration,
};

use bytes::{Buf, Bytes};
use engine::api::{Durability, Urgency};
use format::disk::SUPERBLOCKS_BYTES;

use super::{
    Completion, DriveOptions, OpenError, Request,
    buffer::{ALIGN, AlignedBuffer, zeros},
    medium::Stability,
};

/// What a thread copies into before an unaligned write.
const BOUNCE_BYTES: usize = 1 << 20;
/// How often, and after what pauses, a device is claimed that another claim is about to leave.
const CLAIMS_MAX: u32 = 25;
const CLAIM_PAUSE: Duration = Duration::from_millis(20);
/// Segments of one `pwritev`.
const SEGMENTS_MAX: usize = 256;

#[derive(Debug)]
pub(super) struct DriveFile {
    file: File,
    /// Of a block device: while it is open, whoever asks for the device alone is refused.
    _claim: Option<File>,
    /// Bypasses the page cache.
    direct: bool,
    stability: Stability,
}

impl DriveFile {
    /// Opens the drive for this process alone. A file that is missing or empty is made, sparse.
    pub(super) fn open(options: &DriveOptions) -> Result<Self, OpenError> {
        let path = options.path.as_path();
        let io = |source| OpenError::Io { path: path.to_owned(), source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(io)?;
        lock(&file, options)?;
        let claim = claim(&file, options)?;
        fit(&file, path, options.bytes)?;
        let direct = options.direct && switch_to_direct(&file);
        let stability = Stability::of(&file.metadata().map_err(io)?, direct, options.flush);
        // What an earlier process left in caches is on stable media before anything relies on it.
        file.sync_data().map_err(io)?;
        Ok(Self { file, _claim: claim, direct, stability })
    }

    /// Whether a completed write needs an `fdatasync` to be durable.
    pub(super) fn needs_sync(&self) -> bool {
        self.stability.needs_sync()
    }

    pub(super) fn stability(&self) -> &Stability {
        &self.stability
    }

    pub(super) fn is_direct(&self) -> bool {
        self.direct
    }

    /// The file, for transfers that are whole blocks from and to aligned memory.
    pub(super) fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Exactly `length` bytes, in memory that is not copied again.
    pub(super) fn read(&self, mut offset: u64, length: u32) -> io::Result<Bytes> {
        let length = usize::try_from(length).expect("a 64-bit machine");
        let mut buffer = AlignedBuffer::new(length);
        while buffer.filled().len() < length {
            let (room, _) = buffer.room();
            let wanted = length - buffer.filled().len();
            let position = libc::off64_t::try_from(offset).map_err(io::Error::other)?;
            // SAFETY: `room` points to at least `wanted` bytes that `buffer` owns.
            let count =
                unsafe { libc::pread64(self.file.as_raw_fd(), room.cast(), wanted, position) };
            let Ok(count) = usize::try_from(count) else {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            };
            let kept = self.usable(count, wanted)?;
            // SAFETY: the kernel has just written these bytes.
            unsafe { buffer.advance(kept) };
            offset += u64::try_from(kept).expect("a length");
        }
        buffer.truncate(length);
        Ok(buffer.into_bytes())
    }

    /// Writes the segments one after the other.
    pub(super) fn write(
        &self,
        offset: u64,
        mut data: Vec<Bytes>,
        bounce: &mut Bounce,
    ) -> io::Result<()> {
        data.retain(|segment| !segment.is_empty());
        let fits = |segment: &Bytes| {
            segment.as_ptr().addr().is_multiple_of(ALIGN) && segment.len().is_multiple_of(ALIGN)
        };
        if !self.direct || data.iter().all(fits) {
            self.write_gathered(offset, &mut data)
        } else {
            self.write_bounced(offset, &data, bounce)
        }
    }

    fn write_gathered(&self, mut offset: u64, data: &mut [Bytes]) -> io::Result<()> {
        let mut next = 0;
        while next < data.len() {
            let upto = data.len().min(next + SEGMENTS_MAX);
            let slices: Vec<_> = data[next..upto].iter().map(|s| IoSlice::new(s)).collect();
            let wanted = slices.iter().map(|s| s.len()).sum();
            let count = match self.write_vectored_at(&slices, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => self.usable(result?, wanted)?,
            };
            offset += u64::try_from(count).expect("a length");
            let mut left = count;
            while left > 0 {
                let taken = left.min(data[next].len());
                data[next].advance(taken);
                left -= taken;
                if data[next].is_empty() {
                    next += 1;
                }
            }
        }
        Ok(())
    }

    fn write_vectored_at(&self, slices: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let position = libc::off64_t::try_from(offset).map_err(io::Error::other)?;
        let count = libc::c_int::try_from(slices.len()).expect("at most SEGMENTS_MAX");
        // SAFETY: `IoSlice` is guaranteed to have the layout of `iovec`, and the slices outlive
        // the call.
        let written = unsafe {
            libc::pwritev64(self.file.as_raw_fd(), slices.as_ptr().cast(), count, position)
        };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }

    fn write_bounced(&self, offset: u64, data: &[Bytes], bounce: &mut Bounce) -> io::Result<()> {
        let mut offset = offset;
        let buffer = bounce.buffer();
        let mut segments = data.iter();
        let mut rest: &[u8] = &[];
        loop {
            let copied = buffer.fill(rest);
            rest = &rest[copied..];
            if rest.is_empty() {
                match segments.next() {
                    Some(segment) => {
                        rest = segment;
                        continue;
                    }
                    None => break,
                }
            }
            offset = self.write_buffer(offset, buffer)?;
        }
        self.write_buffer(offset, buffer)?;
        Ok(())
    }

    /// Writes and empties the buffer; returns where the next bytes go.
    fn write_buffer(&self, mut offset: u64, buffer: &mut AlignedBuffer) -> io::Result<u64> {
        let mut done = 0;
        while done < buffer.filled().len() {
            let bytes = &buffer.filled()[done..];
            let count = match self.file.write_at(bytes, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => self.usable(result?, bytes.len())?,
            };
            done += count;
            offset += u64::try_from(count).expect("a length");
        }
        buffer.truncate(0);
        Ok(offset)
    }

    /// How far a short transfer got us: O_DIRECT can only go on from a block boundary.
    pub(super) fn usable(&self, count: usize, wanted: usize) -> io::Result<usize> {
        let usable = if self.direct && count < wanted { count - count % ALIGN } else { count };
        if usable == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(usable) }
    }

    /// What is left to do of a request: of a preparation a write, or nothing.
    pub(super) fn as_write(&self, request: Request) -> Result<Request, Completion> {
        let Request::Prepare { token, offset, length } = request else { return Ok(request) };
        if self.has_place(offset, u64::from(length)) {
            return Err(Completion::Written { token, result: Ok(()) });
        }
        let (durability, urgency) = (Durability::Later, Urgency::Background);
        Ok(Request::Write { token, offset, data: vec![zeros(length)], durability, urgency })
    }

    /// Whether writing these bytes changes nothing of the file system: none of them is in a hole,
    /// nor only reserved. Some file systems know no holes and say that there are none.
    fn has_place(&self, offset: u64, length: u64) -> bool {
        let Ok(start) = libc::off64_t::try_from(offset) else { return false };
        // SAFETY: a plain call on an open descriptor, whose position nobody uses.
        let hole = unsafe { libc::lseek64(self.file.as_raw_fd(), start, libc::SEEK_HOLE) };
        self.stability.is_device() || u64::try_from(hole).is_ok_and(|hole| hole >= offset + length)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// One thread's memory for unaligned writes.
#[derive(Debug, Default)]
pub(super) struct Bounce(Option<AlignedBuffer>);

impl Bounce {
    /// Empty, whatever an earlier failure left in it.
    pub(super) fn buffer(&mut self) -> &mut AlignedBuffer {
        let buffer = self.0.get_or_insert_with(|| AlignedBuffer::new(BOUNCE_BYTES));
        buffer.truncate(0);
        buffer
    }
}

/// Whether there is no drive at the path, or one that was never formatted.
pub fn is_blank(path: &Path) -> io::Result<bool> {
    let mut head = Vec::new();
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        file => file?.take(SUPERBLOCKS_BYTES).read_to_end(&mut head)?,
    };
    Ok(head.iter().all(|&byte| byte == 0))
}

/// A lock is the file's, and a block device may have several: nodes of other names, or of containers.
/// So a device is claimed as well, which also keeps away who would mount it. Files need no claim.
///
/// The claim is no handle for transfers, so it ends with its process, at the latest a moment after the
/// lock: that moment is waited for.
fn claim(file: &File, options: &DriveOptions) -> Result<Option<File>, OpenError> {
    let path = options.path.as_path();
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    if !file.metadata().map_err(io)?.file_type().is_block_device() {
        return Ok(None);
    }
    for attempt in 1.. {
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(path);
        match opened {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && attempt < CLAIMS_MAX => {
                pause();
            }
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => break,
            opened => return opened.map(Some).map_err(io),
        }
    }
    Err(OpenError::InUse { path: path.to_owned(), waited: options.lock_wait })
}

#[expect(clippy::disallowed_methods, reason = "the kernel does not tell when a claim ends")]
fn pause() {
    thread::sleep(CLAIM_PAUSE);
}

/// Keeps every other process away for as long as the file is open, this one's other openings too.
///
/// The user before may be gone and still be waited for: the kernel keeps the files of transfers, and
/// the lock with them, until each has ended and for a moment longer, also when their process was
/// killed. So whoever has the lock knows as well that nothing of the former user is still on its
/// way to the drive.
fn lock(file: &File, options: &DriveOptions) -> Result<(), OpenError> {
    let path = options.path.as_path();
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    match file.try_lock() {
        Ok(()) => return Ok(()),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(source)) => return Err(io(source)),
    }
    let seconds = options.lock_wait.as_secs();
    tracing::info!(path = %path.display(), seconds, "the drive is in use; waiting for it to be let go");
    // A lock belongs to the opening, not to the descriptor. If the wait is given up, the thread lets
    // go of what it gets at last.
    let (waiter, (sender, locked)) = (file.try_clone().map_err(io)?, mpsc::channel());
    let wait = move || drop(sender.send(waiter.lock()));
    thread::Builder::new().name("drive-lock".to_owned()).spawn(wait).map_err(io)?;
    match locked.recv_timeout(options.lock_wait) {
        Ok(result) => result.map_err(io),
        Err(_) => Err(OpenError::InUse { path: path.to_owned(), waited: options.lock_wait }),
    }
}

/// Gives a new file its size; checks that of an old one.
fn fit(file: &File, path: &Path, wanted: u64) -> Result<(), OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    let metadata = file.metadata().map_err(io)?;
    let path_buf = || path.to_owned();
    if metadata.file_type().is_block_device() {
        let found = (&mut &*file).seek(SeekFrom::End(0)).map_err(io)?;
        if found < wanted {
            return Err(OpenError::Size { path: path_buf(), found, wanted });
        }
        return Ok(());
    }
    if !metadata.is_file() {
        return Err(OpenError::Kind { path: path_buf() });
    }
    match metadata.len() {
        0 => create(file, path, wanted).map_err(io),
        found if found == wanted => Ok(()),
        found => Err(OpenError::Size { path: path_buf(), found, wanted }),
    }
}

/// The size and the name are durable before anything relies on them.
fn create(file: &File, path: &Path, bytes: u64) -> io::Result<()> {
    file.set_len(bytes)?;
    file.sync_all()?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::File::open(folder)?.sync_all()
}

/// Whether the file now bypasses the page cache: the file system must take the flag and a read.
fn switch_to_direct(file: &File) -> bool {
    let set = |wanted: bool| {
        // SAFETY: plain calls on a descriptor that `file` keeps open.
        unsafe {
            let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
            let flags = if wanted { flags | libc::O_DIRECT } else { flags & !libc::O_DIRECT };
            libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) == 0
        }
    };
    if !set(true) {
        return false;
    }
    let mut probe = AlignedBuffer::new(ALIGN);
    let (start, _) = probe.room();
    // SAFETY: the buffer has room for `ALIGN` bytes.
    let count = unsafe { libc::pread64(file.as_raw_fd(), start.cast(), ALIGN, 0) };
    if count < 0 {
        set(false);
    }
    count >= 0
}
