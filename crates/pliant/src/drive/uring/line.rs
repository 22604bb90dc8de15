//! What waits for the ring, what is with the kernel, and what waits for an `fdatasync`.
//!
//! Invariants: memory that the kernel may touch stays in place until its transfer has ended; one
//! `fdatasync` is under way at a time, and who joins it had its write end before it began.
#![allow(unsafe_code)]

use std::{collections::VecDeque, io, mem, os::fd::RawFd, vec};

use bytes::{Buf, Bytes};
use engine::api::{DriveError, Durability, IoToken, Urgency};

use super::ring::{Pool, Ring, Tag, Wake};
use crate::drive::{Completion, Request, buffer::AlignedBuffer, drive_error, file::DriveFile};

/// Shares of the ring. A disk's own queue holds 32 and more; writes are bounded by their buffers.
const READS_MAX: usize = 64;
const WRITES_MAX: usize = 16;
const BACKGROUND_MAX: usize = 8;

pub(super) struct Line {
    ring: Ring,
    pool: Pool,
    reads: Class,
    writes: Class,
    background: Class,
    /// What is with the kernel, by number.
    transfers: Vec<Option<Transfer>>,
    free: Vec<usize>,
    /// Become true with the next `fdatasync`.
    unsynced: Vec<Completion>,
    syncing: Option<Sync>,
    sync_failed: Option<DriveError>,
    /// Writes under way that are to be durable.
    durable_writes: usize,
    watching: bool,
}

#[derive(Debug, Default)]
struct Class {
    waiting: VecDeque<Request>,
    under_way: usize,
}

#[derive(Debug)]
enum Transfer {
    Read { token: IoToken, offset: u64, length: usize, buffer: AlignedBuffer },
    Write(Write),
}

#[derive(Debug)]
struct Write {
    token: IoToken,
    /// Of what is in the buffer.
    offset: u64,
    buffer: usize,
    /// Of the buffer's bytes.
    done: usize,
    segment: Bytes,
    segments: vec::IntoIter<Bytes>,
    left: usize,
    durability: Durability,
    urgency: Urgency,
}

#[derive(Debug)]
struct Sync {
    members: Vec<Completion>,
    /// The kernel begins it when a write has ended well, and cancels it otherwise.
    linked: bool,
    /// That write, until it has ended.
    after: Option<usize>,
}

impl Line {
    pub(super) fn new(file: &DriveFile, wake: RawFd) -> io::Result<Self> {
        let mut pool = Pool::new();
        let ring = Ring::new(file.descriptor(), wake, pool.buffers())?;
        let places = READS_MAX + WRITES_MAX + BACKGROUND_MAX;
        Ok(Self {
            ring,
            pool,
            reads: Class::default(),
            writes: Class::default(),
            background: Class::default(),
            transfers: (0..places).map(|_| None).collect(),
            free: (0..places).rev().collect(),
            unsynced: Vec::new(),
            syncing: None,
            sync_failed: None,
            durable_writes: 0,
            watching: false,
        })
    }

    pub(super) fn is_registered(&self) -> bool {
        self.ring.is_registered()
    }

    /// Nothing waits and nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        let classes = [&self.reads, &self.writes, &self.background];
        classes.iter().all(|class| class.waiting.is_empty() && class.under_way == 0)
            && self.unsynced.is_empty()
            && self.syncing.is_none()
    }

    pub(super) fn take(&mut self, requests: Vec<Request>, done: &mut Vec<Completion>) {
        for request in requests {
            match request {
                Request::Read { .. } => self.reads.waiting.push_back(request),
                Request::Write { urgency: Urgency::Background, .. } => {
                    self.background.waiting.push_back(request);
                }
                Request::Write { .. } => self.writes.waiting.push_back(request),
                Request::Flush { token } => {
                    // Whatever has been answered was with the kernel before.
                    self.unsynced.push(Completion::Flushed { token, result: Ok(()) });
                }
            }
        }
        self.refuse_after_failure(done);
    }

    /// Gives the kernel what there is room for.
    pub(super) fn start(&mut self, file: &DriveFile, done: &mut Vec<Completion>) {
        while self.reads.under_way < READS_MAX
            && let Some(request) = self.reads.waiting.pop_front()
        {
            self.reads.under_way += 1;
            self.start_read(request);
        }
        // What somebody waits for has the first pick of the buffers.
        while self.writes.under_way < WRITES_MAX
            && let Some(buffer) = self.buffer_for(&Urgency::Request)
            && let Some(request) = self.writes.waiting.pop_front()
        {
            self.writes.under_way += 1;
            self.start_write(request, buffer, file);
        }
        while self.background.under_way < BACKGROUND_MAX
            && let Some(buffer) = self.buffer_for(&Urgency::Background)
            && let Some(request) = self.background.waiting.pop_front()
        {
            self.background.under_way += 1;
            self.start_write(request, buffer, file);
        }
        self.start_sync(file, done);
    }

    fn class(&mut self, urgency: &Urgency) -> &mut Class {
        match urgency {
            Urgency::Request => &mut self.writes,
            Urgency::Background => &mut self.background,
        }
    }

    /// A buffer for the write that is first in its class.
    fn buffer_for(&mut self, urgency: &Urgency) -> Option<usize> {
        let (_, bytes) = self.class(urgency).waiting.front()?.extent()?;
        self.pool.take(usize::try_from(bytes).expect("it is in memory"))
    }

    fn start_read(&mut self, request: Request) {
        let Request::Read { token, offset, length } = request else { unreachable!("a read") };
        let length = usize::try_from(length).expect("a 64-bit machine");
        let index = self.free.pop().expect("a place for each that may be under way");
        let buffer = AlignedBuffer::new(length);
        self.read_on(index, token, offset, length, buffer);
    }

    fn read_on(
        &mut self,
        index: usize,
        token: IoToken,
        offset: u64,
        length: usize,
        mut buffer: AlignedBuffer,
    ) {
        let filled = buffer.filled().len();
        let (start, _) = buffer.room();
        let at = offset + u64::try_from(filled).expect("a length");
        // SAFETY: the buffer has room for `length` bytes, and is in `transfers` until its end.
        unsafe { self.ring.read(index, at, start, length - filled) };
        self.transfers[index] = Some(Transfer::Read { token, offset, length, buffer });
    }

    fn start_write(&mut self, request: Request, buffer: usize, file: &DriveFile) {
        let Request::Write { token, offset, data, durability, urgency } = request else {
            unreachable!("a write")
        };
        let left = data.iter().map(Bytes::len).sum();
        let mut write = Write {
            token,
            offset,
            buffer,
            done: 0,
            segment: Bytes::new(),
            segments: data.into_iter(),
            left,
            durability,
            urgency,
        };
        write.fill(&mut self.pool.buffers()[buffer]);
        // A write that is alone takes its `fdatasync` along: one wake-up less.
        let alone = durability != Durability::Later
            && file.needs_sync()
            && write.left == 0
            && self.syncing.is_none()
            && self.unsynced.is_empty()
            && self.sync_failed.is_none()
            && self.durable_writes == 0
            && self.writes.waiting.is_empty();
        self.durable_writes += usize::from(durability != Durability::Later);
        let index = self.free.pop().expect("a place for each that may be under way");
        if alone {
            self.syncing = Some(Sync { members: Vec::new(), linked: true, after: Some(index) });
        }
        self.write_on(index, write, alone);
    }

    fn write_on(&mut self, index: usize, write: Write, then_sync: bool) {
        let bytes = &self.pool.buffers()[write.buffer].filled()[write.done..];
        let at = write.offset + u64::try_from(write.done).expect("a length");
        // SAFETY: the buffer is the write's alone until its end, and the pool keeps it in place.
        // The bytes are detached from the pool's borrow: the ring only notes where they lie.
        unsafe {
            let bytes = std::slice::from_raw_parts(bytes.as_ptr(), bytes.len());
            self.ring.write(index, at, bytes, write.buffer, then_sync);
        }
        self.transfers[index] = Some(Transfer::Write(write));
    }

    fn start_sync(&mut self, file: &DriveFile, done: &mut Vec<Completion>) {
        if self.syncing.is_some() || self.unsynced.is_empty() {
            return;
        }
        let members = mem::take(&mut self.unsynced);
        if file.needs_sync() {
            self.ring.sync();
            self.syncing = Some(Sync { members, linked: false, after: None });
        } else {
            done.extend(members);
        }
    }

    /// One entry into the kernel. Waits for something to end, if told so.
    pub(super) fn turn(
        &mut self,
        wait: bool,
        file: &DriveFile,
        wake: &Wake,
        done: &mut Vec<Completion>,
    ) {
        if !mem::replace(&mut self.watching, true) {
            self.ring.watch_wake();
        }
        for (tag, result) in self.ring.enter(wait) {
            match tag {
                Tag::Transfer(index) => self.ended(index, result, file, done),
                Tag::Sync => self.synced(result, done),
                Tag::Wake => {
                    wake.clear();
                    self.watching = false;
                }
            }
        }
    }

    fn ended(
        &mut self,
        index: usize,
        result: io::Result<usize>,
        file: &DriveFile,
        done: &mut Vec<Completion>,
    ) {
        let transfer = self.transfers[index].take().expect("each ends once");
        match transfer {
            Transfer::Read { token, offset, length, buffer } => {
                self.read_ended(index, (token, offset, length, buffer), result, file, done);
            }
            Transfer::Write(write) => self.write_ended(index, write, result, file, done),
        }
    }

    fn read_ended(
        &mut self,
        index: usize,
        (token, offset, length, mut buffer): (IoToken, u64, usize, AlignedBuffer),
        result: io::Result<usize>,
        file: &DriveFile,
        done: &mut Vec<Completion>,
    ) {
        let wanted = length - buffer.filled().len();
        let result = match moved(result, wanted, file) {
            Ok(count) => {
                // SAFETY: the kernel has written these bytes.
                unsafe { buffer.advance(count) };
                if count < wanted {
                    return self.read_on(index, token, offset, length, buffer);
                }
                buffer.truncate(length);
                Ok(buffer.into_bytes())
            }
            Err(error) => Err(drive_error(&error)),
        };
        self.free.push(index);
        self.reads.under_way -= 1;
        done.push(Completion::Read { token, result });
    }

    fn write_ended(
        &mut self,
        index: usize,
        mut write: Write,
        result: io::Result<usize>,
        file: &DriveFile,
        done: &mut Vec<Completion>,
    ) {
        let sync = self.syncing.as_mut().filter(|sync| sync.after == Some(index));
        let has_sync = sync.is_some_and(|sync| sync.after.take().is_some());
        let filled = self.pool.buffers()[write.buffer].filled().len();
        let result = match moved(result, filled - write.done, file) {
            Ok(count) => {
                write.done += count;
                if write.done < filled {
                    return self.write_on(index, write, false);
                }
                if write.left > 0 {
                    write.offset += u64::try_from(filled).expect("a length");
                    write.fill(&mut self.pool.buffers()[write.buffer]);
                    return self.write_on(index, write, false);
                }
                Ok(())
            }
            Err(error) => Err(drive_error(&error)),
        };
        self.free.push(index);
        self.pool.give_back(write.buffer);
        self.class(&write.urgency).under_way -= 1;
        let durable = write.durability != Durability::Later;
        self.durable_writes -= usize::from(durable);
        let waits = durable && result.is_ok();
        let completion = Completion::Written { token: write.token, result };
        match &mut self.syncing {
            _ if !waits => done.push(completion),
            Some(sync) if has_sync => sync.members.push(completion),
            _ => {
                self.unsynced.push(completion);
                self.refuse_after_failure(done);
            }
        }
    }

    fn synced(&mut self, result: io::Result<usize>, done: &mut Vec<Completion>) {
        let sync = self.syncing.take().expect("one was under way");
        match result {
            Ok(_) => done.extend(sync.members),
            // Its write fell short or failed; nothing was synced and nobody was promised it.
            Err(error) if sync.linked && error.raw_os_error() == Some(libc::ECANCELED) => {
                assert!(sync.members.is_empty(), "a write that ended well cancels nothing");
            }
            Err(error) => {
                self.sync_failed = Some(drive_error(&error));
                self.unsynced.splice(0..0, sync.members);
                self.refuse_after_failure(done);
            }
        }
    }

    /// After a failed `fdatasync` nothing is called durable again.
    fn refuse_after_failure(&mut self, done: &mut Vec<Completion>) {
        let Some(error) = &self.sync_failed else { return };
        for mut member in self.unsynced.drain(..) {
            member.fail(error);
            done.push(member);
        }
    }
}

impl Write {
    /// Puts what comes next into the buffer.
    fn fill(&mut self, buffer: &mut AlignedBuffer) {
        buffer.truncate(0);
        self.done = 0;
        loop {
            let copied = buffer.fill(&self.segment);
            self.segment.advance(copied);
            self.left -= copied;
            if !self.segment.is_empty() {
                return;
            }
            match self.segments.next() {
                Some(segment) => self.segment = segment,
                None => return,
            }
        }
    }
}

/// How many bytes a transfer has brought us on; none if it is to be asked for again as it was.
fn moved(result: io::Result<usize>, wanted: usize, file: &DriveFile) -> io::Result<usize> {
    match result {
        Ok(count) => file.usable(count, wanted),
        Err(error) => match error.raw_os_error() {
            // Not begun.
            Some(libc::EINTR | libc::EAGAIN) => Ok(0),
            _ => Err(error),
        },
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // Only a panic comes here with transfers under way. The kernel may still write to their
        // memory.
        if self.transfers.iter().any(Option::is_some) {
            mem::forget(mem::take(&mut self.transfers));
            mem::forget(mem::replace(&mut self.pool, Pool::empty()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::drive::{DriveOptions, DriverKind, Flush};

    #[test]
    fn after_a_failed_fdatasync_nothing_is_called_durable_again() {
        let name = format!("pliant-ring-sync-{}", std::process::id());
        let options = DriveOptions {
            path: std::env::temp_dir().join(name),
            bytes: 1 << 20,
            threads: 1,
            direct: false,
            kind: DriverKind::IoUring,
            flush: Flush::Auto,
        };
        let file = DriveFile::open(&options).expect("a file");
        let wake = Wake::new().expect("a descriptor");
        let mut line = Line::new(&file, wake.as_raw_fd()).expect("a ring");
        let error = DriveError::Io("injected".to_owned());
        line.syncing = Some(Sync { members: Vec::new(), linked: false, after: None });
        let mut done = Vec::new();
        let (token, data) = (IoToken(1), vec![Bytes::from_static(&[0; 4096])]);
        let (durability, urgency) = (Durability::These, Urgency::Request);
        line.take(vec![Request::Write { token, offset: 0, data, durability, urgency }], &mut done);
        line.start(&file, &mut done);
        // The `fdatasync` under way when the write began fails; the write had joined the next one.
        line.synced(Err(io::Error::other("injected")), &mut done);
        line.take(vec![Request::Flush { token: IoToken(2) }], &mut done);
        while done.len() < 2 {
            line.start(&file, &mut done);
            line.turn(true, &file, &wake, &mut done);
        }
        let flushed = Completion::Flushed { token: IoToken(2), result: Err(error.clone()) };
        let written = Completion::Written { token: IoToken(1), result: Err(error) };
        assert_eq!(done, [flushed, written]);
        assert!(line.is_idle());
        std::fs::remove_file(&options.path).expect("ours");
    }
}
