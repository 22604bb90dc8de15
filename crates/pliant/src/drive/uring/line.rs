//! What waits for the ring, what is with the kernel, and what waits for an `fdatasync`.
//!
//! Invariants: memory that the kernel may touch stays in place until its transfer has ended; one
//! `fdatasync` is under way at a time, and who joins it had its write end before it began.
#![allow(unsafe_code)]

use std::{collections::VecDeque, io, mem, os::fd::RawFd, vec};

use bytes::{Buf, Bytes};
use engine::api::{DriveError, Durability, IoToken, Urgency};

use super::ring::{Pool, Ring, Stable, Tag};
use crate::drive::{
    Completion, Request,
    buffer::{ALIGN, AlignedBuffer},
    drive_error,
    file::DriveFile,
};

/// Shares of the ring. A disk's own queue holds 32 and more; writes are bounded by their buffers.
const READS_MAX: usize = 64;
const WRITES_MAX: usize = 16;
const BACKGROUND_MAX: usize = 8;
/// What is shorter is copied into a registered buffer.
const IN_PLACE_MIN: usize = 64 << 10;

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
    /// Writes under way that an `fdatasync` is to make durable.
    durable_writes: usize,
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
    /// Of what the place holds.
    offset: u64,
    place: Place,
    /// Of the place's bytes.
    done: usize,
    segment: Bytes,
    segments: vec::IntoIter<Bytes>,
    left: usize,
    durability: Durability,
    /// Each of its transfers ends only when its bytes are stable.
    by_itself: bool,
    urgency: Urgency,
}

/// Where the bytes lie that are being written.
#[derive(Debug)]
enum Place {
    Buffer(usize),
    /// Where they came: aligned and one behind the other.
    Here {
        segments: Vec<Bytes>,
        length: usize,
    },
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
    pub(super) fn new(file: &DriveFile) -> io::Result<Self> {
        let mut pool = Pool::new();
        let ring = Ring::new(file.descriptor(), pool.buffers())?;
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
        })
    }

    pub(super) fn descriptor(&self) -> RawFd {
        self.ring.descriptor()
    }

    pub(super) fn is_quiet(&mut self) -> bool {
        self.ring.is_quiet()
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
                Request::Prepare { .. } => unreachable!("it became a write"),
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
            && let Some(place) = self.place_for(&Urgency::Request)
            && let Some(request) = self.writes.waiting.pop_front()
        {
            self.writes.under_way += 1;
            self.start_write(request, place, file);
        }
        while self.background.under_way < BACKGROUND_MAX
            && let Some(place) = self.place_for(&Urgency::Background)
            && let Some(request) = self.background.waiting.pop_front()
        {
            self.background.under_way += 1;
            self.start_write(request, place, file);
        }
        self.start_sync(file, done);
    }

    fn class(&mut self, urgency: &Urgency) -> &mut Class {
        match urgency {
            Urgency::Request => &mut self.writes,
            Urgency::Background => &mut self.background,
        }
    }

    /// For the write that is first in its class: where it is, or a buffer.
    fn place_for(&mut self, urgency: &Urgency) -> Option<Place> {
        let Request::Write { data, .. } = self.class(urgency).waiting.front_mut()? else {
            unreachable!("a class of writes")
        };
        let length = data.iter().map(Bytes::len).sum();
        if length >= IN_PLACE_MIN && is_one_run(data) {
            return Some(Place::Here { segments: mem::take(data), length });
        }
        self.pool.take(length).map(Place::Buffer)
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

    fn start_write(&mut self, request: Request, place: Place, file: &DriveFile) {
        let Request::Write { token, offset, data, durability, urgency } = request else {
            unreachable!("a write")
        };
        let left = data.iter().map(Bytes::len).sum();
        let mut write = Write {
            token,
            offset,
            place,
            done: 0,
            segment: Bytes::new(),
            segments: data.into_iter(),
            left,
            durability,
            by_itself: durability == Durability::These
                && file.needs_sync()
                && file.stability().honours_dsync(),
            urgency,
        };
        write.fill(&mut self.pool);
        // A write that is alone takes its `fdatasync` along: one wake-up less.
        let alone = write.is_for_sync()
            && file.needs_sync()
            && write.left == 0
            && self.syncing.is_none()
            && self.unsynced.is_empty()
            && self.sync_failed.is_none()
            && self.durable_writes == 0
            && self.writes.waiting.is_empty();
        self.durable_writes += usize::from(write.is_for_sync());
        let index = self.free.pop().expect("a place for each that may be under way");
        if alone {
            self.syncing = Some(Sync { members: Vec::new(), linked: true, after: Some(index) });
        }
        self.write_on(index, write, alone);
    }

    fn write_on(&mut self, index: usize, write: Write, then_sync: bool) {
        let stable = match (write.by_itself, then_sync) {
            (true, _) => Stable::ByItself,
            (false, true) => Stable::ByLinkedSync,
            (false, false) => Stable::Later,
        };
        let (start, length, number) = match &write.place {
            Place::Buffer(number) => {
                let filled = self.pool.buffers()[*number].filled();
                (filled.as_ptr(), filled.len(), Some(*number))
            }
            Place::Here { segments, length } => (segments[0].as_ptr(), *length, None),
        };
        let start = start.wrapping_add(write.done);
        let at = write.offset + u64::try_from(write.done).expect("a length");
        // SAFETY: a buffer is the write's alone until its end, and the pool keeps it in place;
        // segments lie one behind the other, never change, and are kept by the write.
        unsafe { self.ring.write(index, at, (start, length - write.done), number, stable) };
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

    pub(super) fn enter(&mut self, wait: bool) {
        self.ring.enter(wait);
    }

    /// Takes what has ended.
    pub(super) fn reap(&mut self, file: &DriveFile, done: &mut Vec<Completion>) {
        for (tag, result) in self.ring.ended() {
            match tag {
                Tag::Transfer(index) => self.ended(index, result, file, done),
                Tag::Sync => self.synced(result, done),
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
        let filled = match &write.place {
            Place::Buffer(number) => self.pool.buffers()[*number].filled().len(),
            Place::Here { length, .. } => *length,
        };
        let result = match moved(result, filled - write.done, file) {
            Ok(count) => {
                write.done += count;
                if write.done < filled {
                    return self.write_on(index, write, false);
                }
                if write.left > 0 {
                    write.offset += u64::try_from(filled).expect("a length");
                    write.fill(&mut self.pool);
                    return self.write_on(index, write, false);
                }
                Ok(())
            }
            Err(error) => Err(drive_error(&error)),
        };
        self.free.push(index);
        if let Place::Buffer(number) = write.place {
            self.pool.give_back(number);
        }
        self.class(&write.urgency).under_way -= 1;
        self.durable_writes -= usize::from(write.is_for_sync());
        if let (true, Err(error)) = (write.by_itself, &result) {
            self.sync_failed.get_or_insert_with(|| error.clone());
        }
        let stable = write.by_itself && self.sync_failed.is_none();
        let waits = write.durability != Durability::Later && !stable && result.is_ok();
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
    /// It is durable only after an `fdatasync`.
    fn is_for_sync(&self) -> bool {
        self.durability != Durability::Later && !self.by_itself
    }

    /// Puts what comes next into the buffer, if it has one.
    fn fill(&mut self, pool: &mut Pool) {
        let Place::Buffer(number) = self.place else { return };
        let buffer = &mut pool.buffers()[number];
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

/// Whether the segments are one run of memory that the kernel takes as it is.
fn is_one_run(data: &[Bytes]) -> bool {
    let aligned = data.first().is_some_and(|first| first.as_ptr().addr().is_multiple_of(ALIGN));
    let follows = |pair: &[Bytes]| pair[0].as_ptr().wrapping_add(pair[0].len()) == pair[1].as_ptr();
    aligned && data.windows(2).all(follows)
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
        let mut line = Line::new(&file).expect("a ring");
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
            line.enter(true);
            line.reap(&file, &mut done);
        }
        let flushed = Completion::Flushed { token: IoToken(2), result: Err(error.clone()) };
        let written = Completion::Written { token: IoToken(1), result: Err(error) };
        assert_eq!(done, [flushed, written]);
        assert!(line.is_idle());
        std::fs::remove_file(&options.path).expect("ours");
    }
}
