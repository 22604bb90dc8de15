//! The filesystem that the loop devices stand on: one file per volume, whose reads and writes
//! become guest requests.
//!
//! Decides: what the kernel may do with a file, and which guest request stands for it.
//! Does not: answer reads and writes (the node machine does, through [`Answer`]), or bind loop
//! devices.
//! Invariants: every operation that the kernel sends is answered once; a file's size changes only
//! by `setattr` to the size that was granted, because only then does the kernel take the new size
//! over before anything reads or writes beyond the old one.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use model::{
    id::VolumeId,
    limits::TRANSFER_BYTES_MAX,
    units::{BLOCK, BLOCK_BYTES, ByteCount},
};
use node::api::{GuestError, GuestReply, GuestRequest};

use super::{FuseEvent, Post};

/// Requests that the kernel has in flight at once, for all volumes of the mount. With transfers
/// of 1 MiB this also bounds the bytes.
const BACKGROUND_MAX: u16 = 64;
/// The kernel need not ask again for attributes: they change only by its own `setattr`.
const ATTR_TTL: Duration = Duration::from_secs(3600);
/// A name may stand for another file after detach and attach, so it is looked up each time.
const ENTRY_TTL: Duration = Duration::ZERO;

/// The reply that the kernel waits for.
pub enum Answer {
    Data(ReplyData),
    Written(ReplyWrite, u32),
    Empty(ReplyEmpty),
}

impl Answer {
    pub fn send(self, reply: GuestReply) {
        match (self, reply) {
            (Self::Data(answer), GuestReply::Data(data)) => answer.data(&data),
            (Self::Written(answer, length), GuestReply::Done) => answer.written(length),
            (Self::Empty(answer), GuestReply::Done) => answer.ok(),
            (answer, GuestReply::Failed(error)) => answer.fail(errno(error)),
            (answer, reply) => {
                answer.fail(Errno::EIO);
                unreachable!("the node machine answered with {reply:?}, which was not asked for");
            }
        }
    }

    fn fail(self, errno: Errno) {
        match self {
            Self::Data(answer) => answer.error(errno),
            Self::Written(answer, _) => answer.error(errno),
            Self::Empty(answer) => answer.error(errno),
        }
    }
}

fn errno(error: GuestError) -> Errno {
    match error {
        GuestError::OutOfRange => Errno::ENOSPC,
        GuestError::BadBlock => Errno::EIO,
        GuestError::Gone => Errno::ENODEV,
    }
}

/// The files, shared by the kernel's requests and the thread that binds loop devices.
#[derive(Default)]
pub struct Files(Mutex<Table>);

#[derive(Default)]
struct Table {
    files: BTreeMap<u64, VolumeFile>,
    /// Inode numbers are not used twice, so a file that is still open after its volume was
    /// detached never turns into that of the next attachment.
    last_inode: u64,
}

struct VolumeFile {
    volume: VolumeId,
    /// What the kernel knows.
    shown: u64,
    /// What `setattr` may make of it.
    granted: u64,
    /// False once the volume is detached: then it is found no more, and every request fails.
    listed: bool,
    handles: u32,
}

impl Files {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing that holds the lock leaves the table half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub fn inode(&self, volume: VolumeId) -> Option<u64> {
        self.table().listed(volume)
    }

    pub fn add(&self, volume: VolumeId, size: ByteCount) {
        let mut table = self.table();
        assert!(table.listed(volume).is_none(), "{volume} has a file already");
        table.last_inode = table.last_inode.max(INodeNo::ROOT.0) + 1;
        let inode = table.last_inode;
        let size = size.get();
        let file = VolumeFile { volume, shown: size, granted: size, listed: true, handles: 0 };
        table.files.insert(inode, file);
    }

    /// Lets the next `setattr` change the size to this one.
    pub fn grant(&self, volume: VolumeId, size: ByteCount) {
        let mut table = self.table();
        if let Some(inode) = table.listed(volume) {
            let file = table.files.get_mut(&inode).expect("it was just found");
            file.granted = size.get();
        }
    }

    /// The kernel changes a file's size. Returns the size, or `None` when it may not.
    pub fn set_size(&self, inode: u64, size: u64) -> Option<u64> {
        let mut table = self.table();
        let file = table.files.get_mut(&inode).filter(|file| file.listed)?;
        if size != file.granted && size != file.shown {
            return None;
        }
        file.shown = size;
        Some(size)
    }

    /// Every request to the file fails from now on.
    pub fn remove(&self, volume: VolumeId) {
        let mut table = self.table();
        let Some(inode) = table.listed(volume) else { return };
        let file = table.files.get_mut(&inode).expect("it was just found");
        file.listed = false;
        if file.handles == 0 {
            table.files.remove(&inode);
        }
    }
}

impl Table {
    fn listed(&self, volume: VolumeId) -> Option<u64> {
        self.files.iter().find(|(_, f)| f.listed && f.volume == volume).map(|(inode, _)| *inode)
    }

    /// The file, while its volume is attached.
    fn attached(&self, inode: INodeNo) -> Result<&VolumeFile, Errno> {
        self.files.get(&inode.0).filter(|f| f.listed).ok_or(Errno::ENODEV)
    }

    /// `[offset, offset + length)` if all of it lies within the file.
    fn within(&self, inode: INodeNo, offset: u64, length: u64) -> Result<&VolumeFile, Errno> {
        let file = self.attached(inode)?;
        match offset.checked_add(length) {
            Some(end) if end <= file.shown => Ok(file),
            _ => Err(Errno::ENOSPC),
        }
    }
}

/// What fuser serves.
pub struct VolumeFilesystem {
    pub files: Arc<Files>,
    pub post: Post,
    pub made_at: SystemTime,
}

impl VolumeFilesystem {
    fn attributes(&self, inode: u64, size: u64) -> FileAttr {
        let is_root = inode == INodeNo::ROOT.0;
        FileAttr {
            ino: INodeNo(inode),
            size,
            blocks: size / 512,
            atime: self.made_at,
            mtime: self.made_at,
            ctime: self.made_at,
            crtime: self.made_at,
            kind: if is_root { FileType::Directory } else { FileType::RegularFile },
            perm: if is_root { 0o700 } else { 0o600 },
            nlink: if is_root { 2 } else { 1 },
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK_BYTES,
            flags: 0,
        }
    }

    fn ask(&self, volume: VolumeId, request: GuestRequest, answer: Answer) {
        // When the loop has ended, the event drops and fuser answers with an I/O error.
        (self.post)(FuseEvent::Requested { volume, request, answer });
    }
}

impl Filesystem for VolumeFilesystem {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // What a kernel does not grant makes it slower, not wrong.
        let _ = config.set_max_write(TRANSFER_BYTES_MAX);
        let _ = config.set_max_background(BACKGROUND_MAX);
        let _ = config.add_capabilities(InitFlags::FUSE_ASYNC_DIO);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let volume = name.to_str().and_then(|n| n.parse::<VolumeId>().ok());
        let table = self.files.table();
        let found = volume.filter(|_| parent == INodeNo::ROOT).and_then(|v| table.listed(v));
        match found {
            Some(inode) => {
                let attributes = self.attributes(inode, table.files[&inode].shown);
                reply.entry_with_ttls(&ATTR_TTL, &ENTRY_TTL, &attributes, Generation(0));
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        if ino == INodeNo::ROOT {
            return reply.attr(&ATTR_TTL, &self.attributes(ino.0, 0));
        }
        match self.files.table().files.get(&ino.0) {
            Some(file) => reply.attr(&ATTR_TTL, &self.attributes(ino.0, file.shown)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let shown = match size {
            _ if mode.is_some() || uid.is_some() || gid.is_some() => None,
            Some(size) => self.files.set_size(ino.0, size),
            // Times, which nobody keeps.
            None => self.files.table().attached(ino).ok().map(|file| file.shown),
        };
        match shown {
            Some(shown) => reply.attr(&ATTR_TTL, &self.attributes(ino.0, shown)),
            None => reply.error(Errno::EPERM),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let mut table = self.files.table();
        match table.files.get_mut(&ino.0).filter(|f| f.listed) {
            Some(file) => {
                file.handles += 1;
                let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
                reply.opened(FileHandle(ino.0), flags);
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let mut table = self.files.table();
        if let Some(file) = table.files.get_mut(&ino.0) {
            file.handles = file.handles.saturating_sub(1);
            if file.handles == 0 && !file.listed {
                table.files.remove(&ino.0);
            }
        }
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (volume, shown) = match self.files.table().attached(ino) {
            Ok(file) => (file.volume, file.shown),
            Err(error) => return reply.error(error),
        };
        let left = u32::try_from(shown.saturating_sub(offset)).unwrap_or(u32::MAX);
        let length = size.min(left);
        if length == 0 {
            return reply.data(&[]);
        }
        self.ask(volume, GuestRequest::Read { offset, length }, Answer::Data(reply));
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let length = u32::try_from(data.len()).expect("the kernel keeps to max_write");
        let volume = match self.files.table().within(ino, offset, u64::from(length)) {
            Ok(file) => file.volume,
            Err(error) => return reply.error(error),
        };
        if length == 0 {
            return reply.written(0);
        }
        let data = Bytes::copy_from_slice(data);
        self.ask(volume, GuestRequest::Write { offset, data }, Answer::Written(reply, length));
    }

    /// Sent at each close. Every answered write is durable already, so there is nothing to do,
    /// and no reason to let a close wait for a server.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let volume = self.files.table().attached(ino).map(|file| file.volume);
        match volume {
            Ok(volume) => self.ask(volume, GuestRequest::Flush, Answer::Empty(reply)),
            Err(error) => reply.error(error),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if !zeroes(mode) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let volume = match self.files.table().within(ino, offset, length) {
            Ok(file) => file.volume,
            Err(error) => return reply.error(error),
        };
        if length == 0 {
            return reply.ok();
        }
        // A punched hole must read as zeros to its last byte, which Trim does not promise: loop
        // punches holes both for discards and for write-zeroes. Space returns either way.
        let request = GuestRequest::WriteZeroes { offset, length };
        self.ask(volume, request, Answer::Empty(reply));
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        // An entry's offset is its inode number, so a listing goes on where it stopped even when
        // files came and went.
        let table = self.files.table();
        for (&inode, file) in table.files.range(offset.saturating_add(1)..) {
            let name = file.volume.to_string();
            if file.listed && reply.add(INodeNo(inode), inode, FileType::RegularFile, name) {
                break;
            }
        }
        reply.ok();
    }

    /// The block size is what the kernel takes for the granularity of discards.
    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let table = self.files.table();
        let blocks = table.files.values().filter(|f| f.listed).map(|f| f.shown / BLOCK).sum();
        let files = u64::try_from(table.files.len()).expect("a count fits");
        reply.statfs(blocks, 0, 0, files, 0, BLOCK_BYTES, 255, BLOCK_BYTES);
    }
}

/// Whether this mode of fallocate asks for zeros within the file.
pub fn zeroes(mode: i32) -> bool {
    let keep = libc::FALLOC_FL_KEEP_SIZE;
    let zero = libc::FALLOC_FL_ZERO_RANGE;
    mode == libc::FALLOC_FL_PUNCH_HOLE | keep || mode == zero || mode == zero | keep
}
