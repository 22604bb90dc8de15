//! What waits for the ring, what is with the kernel, and what waits for an `fdatasync`.
//!
//! Writes that nobody waits for have a ring of their own. Their ends do not wake the thread while
//! something in the other ring is under way: that will, and then they are taken too.
//!
//! Invariants: memory that the kernel may touch stays in place until its transfer has ended; one
//! `fdatasync` is under way at a time, and who joins it had its write end before it began; when the
//! thread may sleep, either both rings wake it, or one that does has something under way.
#![allow(unsafe_code)]

use std::{
    collections::VecDeque,
    io, mem,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use bytes::Bytes;
use engine::api::{DriveError, Durability, IoToken, Urgency};

use super::{
    ring::{Pool, Ring, Stable, Tag, bell},
    transfer::{Place, Transfer, Write, is_behind, is_one_run, moved},
};
use crate::drive::{Completion, Request, buffer::AlignedBuffer, drive_error, file::DriveFile};

/// Shares of the ring. A disk's own queue holds 32 and more; writes are bounded by their buffers.
const READS_MAX: usize = 64;
const WRITES_MAX: usize = 16;
const BACKGROUND_MAX: usize = 32;
/// So few in the background may be all that their engine allows (a hard disk's): the next ones wait
/// for them, so their ends wake the thread.
const FEW: usize = 4;
/// Small and large buffers of each ring. Those of a drive are 5.5 MiB: the default of RLIMIT_MEMLOCK
/// is 8.
const FRONT_BUFFERS: (usize, usize) = (WRITES_MAX, 3);
const BACK_BUFFERS: (usize, usize) = (BACKGROUND_MAX, 1);
/// What is shorter is copied into a registered buffer.
const IN_PLACE_MIN: usize = 64 << 10;

pub(super) struct Line {
    /// Of both rings: becomes readable when something ends after [`Line::is_quiet`] said that
    /// nothing has.
    bell: OwnedFd,
    front: Side,
    /// For writes in the background that need not be durable.
    back: Side,
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

/// A ring, and the buffers that are registered with it.
struct Side {
    ring: Ring,
    pool: Pool,
}

#[derive(Debug, Default)]
struct Class {
    waiting: VecDeque<Request>,
    under_way: usize,
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
        let bell = bell()?;
        let front = Side::new(file, bell.as_raw_fd(), FRONT_BUFFERS)?;
        let back = Side::new(file, bell.as_raw_fd(), BACK_BUFFERS)?;
        let places = READS_MAX + WRITES_MAX + BACKGROUND_MAX;
        Ok(Self {
            bell,
            front,
            back,
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
        self.bell.as_raw_fd()
    }

    pub(super) fn is_quiet(&mut self) -> bool {
        // What is with the kernel in front ends, and wakes the thread, which then takes what has
        // ended behind and asks again.
        let waits = self.front.ring.is_busy() && self.background.under_way > FEW;
        self.front.ring.is_quiet() && (waits || self.back.ring.is_quiet())
    }

    pub(super) fn is_registered(&self) -> bool {
        self.front.ring.is_registered() && self.back.ring.is_registered()
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
        let waiting = &mut self.class(urgency).waiting;
        let Request::Write { data, durability, urgency, .. } = waiting.front_mut()? else {
            unreachable!("a class of writes")
        };
        let length = data.iter().map(Bytes::len).sum();
        if length >= IN_PLACE_MIN && is_one_run(data) {
            return Some(Place::Here { segments: mem::take(data), length });
        }
        let is_behind = is_behind(*durability, *urgency);
        self.side(is_behind).pool.take(length).map(Place::Buffer)
    }

    fn side(&mut self, is_behind: bool) -> &mut Side {
        if is_behind { &mut self.back } else { &mut self.front }
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
        unsafe { self.front.ring.read(index, at, start, length - filled) };
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
        write.fill(&mut self.side(write.is_behind()).pool);
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
        let side = self.side(write.is_behind());
        let (start, length, number) = match &write.place {
            Place::Buffer(number) => {
                let filled = side.pool.buffers()[*number].filled();
                (filled.as_ptr(), filled.len(), Some(*number))
            }
            Place::Here { segments, length } => (segments[0].as_ptr(), *length, None),
        };
        let start = start.wrapping_add(write.done);
        let at = write.offset + u64::try_from(write.done).expect("a length");
        // SAFETY: a buffer is the write's alone until its end, and the pool keeps it in place;
        // segments lie one behind the other, never change, and are kept by the write.
        unsafe { side.ring.write(index, at, (start, length - write.done), number, stable) };
        self.transfers[index] = Some(Transfer::Write(write));
    }

    fn start_sync(&mut self, file: &DriveFile, done: &mut Vec<Completion>) {
        if self.syncing.is_some() || self.unsynced.is_empty() {
            return;
        }
        let members = mem::take(&mut self.unsynced);
        if file.needs_sync() {
            self.front.ring.sync();
            self.syncing = Some(Sync { members, linked: false, after: None });
        } else {
            done.extend(members);
        }
    }

    /// Hands everything to the kernel; waits, if told so, until something has ended.
    pub(super) fn enter(&mut self, wait: bool) {
        let waits_in_front = self.front.ring.is_busy();
        self.back.ring.enter(wait && !waits_in_front);
        self.front.ring.enter(wait && waits_in_front);
    }

    /// Takes what has ended.
    pub(super) fn reap(&mut self, file: &DriveFile, done: &mut Vec<Completion>) {
        for is_behind in [false, true] {
            for (tag, result) in self.side(is_behind).ring.ended() {
                match tag {
                    Tag::Transfer(index) => self.ended(index, result, file, done),
                    Tag::Sync => self.synced(result, done),
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
        let pool = &mut self.side(write.is_behind()).pool;
        let filled = match &write.place {
            Place::Buffer(number) => pool.buffers()[*number].filled().len(),
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
                    write.fill(pool);
                    return self.write_on(index, write, false);
                }
                Ok(())
            }
            Err(error) => Err(drive_error(&error)),
        };
        if let Place::Buffer(number) = write.place {
            pool.give_back(number);
        }
        self.free.push(index);
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

impl Side {
    fn new(file: &DriveFile, bell: RawFd, (small, large): (usize, usize)) -> io::Result<Self> {
        let mut pool = Pool::new(small, large);
        let ring = Ring::new(file.descriptor(), bell, pool.buffers())?;
        Ok(Self { ring, pool })
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // Only a panic comes here with transfers under way. The kernel may still write to their
        // memory.
        if self.transfers.iter().any(Option::is_some) {
            mem::forget(mem::take(&mut self.transfers));
            mem::forget(mem::replace(&mut self.front.pool, Pool::empty()));
            mem::forget(mem::replace(&mut self.back.pool, Pool::empty()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drive::{DriveOptions, DriverKind, Flush, LOCK_WAIT};

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
            lock_wait: LOCK_WAIT,
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
