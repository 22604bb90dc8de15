//! The driver that works everywhere: threads that call `pread`, `pwritev` and `fdatasync`.
//!
//! Durable writes and flushes share an `fdatasync`. A thread whose write has completed joins the
//! group that waits; the first to find nobody syncing syncs for the group, and goes on until no
//! group waits. So a group holds only writes that completed before its `fdatasync` began.
//!
//! Where the file bypasses the page cache, what waits is handed to the kernel in batches (`aio`).

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use engine::api::DriveError;

use super::{
    Completion, DriveOptions, Driver, OpenError, Request, Sink,
    aio::{Aio, DEPTH},
    batch::Hands,
    drive_error,
    file::{Bounce, DriveFile},
    queue::{Bite, Queue, Task},
};

/// Bites with and without batched transfers. Without, a thread takes one read at a time, so that
/// others can take the next, but still answers several small writes at once.
const BATCHED: (Bite, Bite) =
    (Bite { requests: 16, bytes: 1 << 20 }, Bite { requests: DEPTH, bytes: 256 << 10 });
const SINGLE: (Bite, Bite) =
    (Bite { requests: 1, bytes: 1 << 20 }, Bite { requests: 8, bytes: 64 << 10 });

#[derive(Debug)]
pub struct Portable {
    shared: Arc<Shared>,
    bytes: u64,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    file: Arc<DriveFile>,
    batched: bool,
    sink: Sink,
    queue: Mutex<Queue>,
    work: Condvar,
    group: Mutex<SyncGroup>,
}

#[derive(Debug, Default)]
struct SyncGroup {
    /// Completions that become true with the next `fdatasync`.
    waiting: Vec<Completion>,
    syncing: bool,
    failed: Option<DriveError>,
}

impl Portable {
    pub(super) fn start(
        file: Arc<DriveFile>,
        options: &DriveOptions,
        sink: Sink,
    ) -> Result<Self, OpenError> {
        let count = options.threads.max(1);
        let hands = hands(count, file.is_direct());
        let batched = hands.iter().all(|hands| hands.aio.is_some());
        let (reads, writes) = if batched { BATCHED } else { SINGLE };
        // One thread has a whole batch with the kernel; meanwhile the next batch gathers.
        let lazy_threads_max = if batched { 1 } else { (count / 2).max(1) };
        let shared = Arc::new(Shared {
            file,
            batched,
            sink,
            queue: Mutex::new(Queue::new(reads, writes, lazy_threads_max)),
            work: Condvar::new(),
            group: Mutex::default(),
        });
        let mut driver = Self { shared, bytes: options.bytes, threads: Vec::new() };
        for (number, hands) in hands.into_iter().enumerate() {
            let shared = Arc::clone(&driver.shared);
            let spawned = thread::Builder::new()
                .name(format!("drive-{number}"))
                .spawn(move || shared.serve(hands));
            match spawned {
                Ok(thread) => driver.threads.push(thread),
                Err(source) => return Err(OpenError::Io { path: options.path.clone(), source }),
            }
        }
        Ok(driver)
    }
}

fn hands(count: usize, direct: bool) -> Vec<Hands> {
    let make = |_| {
        let aio = if direct { Aio::new().ok() } else { None };
        Hands { bounce: Bounce::default(), aio }
    };
    (0..count).map(make).collect()
}

impl Portable {
    pub(super) fn submit(&self, batch: Vec<Request>) {
        batch.iter().for_each(|request| request.check(self.bytes));
        let mut queue = self.shared.lock_queue();
        batch.into_iter().for_each(|request| queue.push(request));
        let wanted = queue.tasks().min(queue.idle);
        drop(queue);
        for _ in 0..wanted {
            self.shared.work.notify_one();
        }
    }

    pub(super) fn description(&self) -> String {
        let cache = if self.shared.file.is_direct() { "O_DIRECT" } else { "buffered" };
        let batched = if self.shared.batched { ", batched" } else { "" };
        let stability = self.shared.file.stability();
        format!("portable, {} threads, {cache}{batched}; {stability}", self.threads.len())
    }
}

impl Driver for Portable {
    fn submit(&mut self, batch: Vec<Request>) {
        Self::submit(self, batch);
    }

    fn description(&self) -> String {
        self.description()
    }
}

impl Drop for Portable {
    fn drop(&mut self) {
        self.shared.lock_queue().closed = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a drive thread panicked");
            }
        }
    }
}

impl Shared {
    // Nothing panics while it holds these locks, so what they guard is whole even if poisoned.

    fn lock_queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_group(&self) -> MutexGuard<'_, SyncGroup> {
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, mut hands: Hands) {
        while let Some(task) = self.next_task() {
            match task {
                Task::Durable(request) => self.make_durable(request, &mut hands.bounce),
                Task::Read(requests) => {
                    hands.read(&self.file, &requests, |done| self.sink.deliver(done));
                }
                Task::Write(requests) => self.sink.deliver(hands.write(&self.file, requests)),
                Task::Lazy(requests) => {
                    let mut done = Vec::new();
                    let mut left = |request| {
                        self.file.as_write(request).map_err(|answer| done.push(answer)).ok()
                    };
                    let writes: Vec<_> = requests.into_iter().filter_map(&mut left).collect();
                    done.extend(hands.write(&self.file, writes));
                    self.sink.deliver(done);
                    self.lock_queue().lazy_done();
                }
            }
        }
    }

    fn next_task(&self) -> Option<Task> {
        let mut queue = self.lock_queue();
        loop {
            if let Some(task) = queue.pop() {
                return Some(task);
            }
            // Lazy writes that wait are taken by the threads that are busy with others.
            if queue.closed {
                return None;
            }
            queue.idle += 1;
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
    }

    fn make_durable(&self, request: Request, bounce: &mut Bounce) {
        match request {
            Request::Write { token, offset, data, .. } => {
                match self.file.write(offset, data, bounce).map_err(|e| drive_error(&e)) {
                    Ok(()) => self.sync(Completion::Written { token, result: Ok(()) }),
                    failed => {
                        self.sink.deliver(vec![Completion::Written { token, result: failed }]);
                    }
                }
            }
            Request::Flush { token } => self.sync(Completion::Flushed { token, result: Ok(()) }),
            Request::Read { .. } | Request::Prepare { .. } => {
                unreachable!("reads are tasks of their own, and preparations are writes")
            }
        }
    }

    /// Delivers the completion when it has become true.
    fn sync(&self, completion: Completion) {
        if !self.file.needs_sync() {
            return self.sink.deliver(vec![completion]);
        }
        let mut group = self.lock_group();
        group.waiting.push(completion);
        if group.syncing {
            return;
        }
        group.syncing = true;
        while !group.waiting.is_empty() {
            let mut members = std::mem::take(&mut group.waiting);
            let failed = group.failed.clone();
            drop(group);
            let result = match failed {
                Some(error) => Err(error),
                None => self.file.sync().map_err(|e| drive_error(&e)),
            };
            if let Err(error) = &result {
                members.iter_mut().for_each(|member| member.fail(error));
            }
            self.sink.deliver(members);
            group = self.lock_group();
            group.failed = result.err();
        }
        group.syncing = false;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use bytes::Bytes;
    use engine::api::{Durability, IoToken, Urgency};

    use super::super::{DriverKind, Flush, LOCK_WAIT};
    use super::*;

    #[test]
    fn after_a_failed_fdatasync_nothing_is_called_durable_again() {
        let path = std::env::temp_dir().join(format!("pliant-sync-{}", std::process::id()));
        let options = DriveOptions {
            path,
            bytes: 1 << 20,
            threads: 2,
            direct: false,
            kind: DriverKind::Portable,
            flush: Flush::Auto,
            lock_wait: LOCK_WAIT,
        };
        let (sender, answers) = mpsc::channel();
        let sink = Sink::new(move |completions| drop(sender.send(completions)));
        let file = Arc::new(DriveFile::open(&options).expect("a file"));
        let drive = Portable::start(file, &options, sink).expect("a drive");
        let error = DriveError::Io("injected".to_owned());
        drive.shared.lock_group().failed = Some(error.clone());
        for round in 0..2 {
            let (token, data) = (IoToken(round), vec![Bytes::from_static(&[0; 4096])]);
            let (durability, urgency) = (Durability::These, Urgency::Request);
            drive.submit(vec![Request::Write { token, offset: 0, data, durability, urgency }]);
            let failed = Completion::Written { token, result: Err(error.clone()) };
            assert_eq!(answers.recv().expect("an answer"), [failed]);
            drive.submit(vec![Request::Flush { token }]);
            let failed = Completion::Flushed { token, result: Err(error.clone()) };
            assert_eq!(answers.recv().expect("an answer"), [failed]);
        }
        drop(drive);
        std::fs::remove_file(&options.path).expect("ours");
    }
}
