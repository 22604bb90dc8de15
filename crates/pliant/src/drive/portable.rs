//! The driver that works everywhere: threads that call `pread`, `pwritev` and `fdatasync`.
//!
//! Durable writes and flushes share an `fdatasync`. A thread whose write has completed joins the
//! group that waits; the first to find nobody syncing syncs for the group, and goes on until no
//! group waits. So a group holds only writes that completed before its `fdatasync` began.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use engine::api::DriveError;

use super::{
    Completion, Driver, OpenError, Request, Sink, drive_error,
    file::{Bounce, DriveFile},
};

#[derive(Debug, Clone)]
pub struct PortableOptions {
    pub path: PathBuf,
    pub bytes: u64,
    pub threads: usize,
    /// Bypass the page cache if the file system allows it.
    pub direct: bool,
}

#[derive(Debug)]
pub struct Portable {
    shared: Arc<Shared>,
    bytes: u64,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    file: DriveFile,
    sink: Sink,
    queue: Mutex<Queue>,
    work: Condvar,
    group: Mutex<SyncGroup>,
}

#[derive(Debug, Default)]
struct Queue {
    /// Bounded by what the engine has under way.
    requests: VecDeque<Request>,
    idle: usize,
    closed: bool,
}

#[derive(Debug, Default)]
struct SyncGroup {
    /// Completions that become true with the next `fdatasync`.
    waiting: Vec<Completion>,
    syncing: bool,
    failed: Option<DriveError>,
}

impl Portable {
    pub fn open(options: &PortableOptions, sink: Sink) -> Result<Self, OpenError> {
        let file = DriveFile::open(&options.path, options.bytes, options.direct)?;
        let shared = Arc::new(Shared {
            file,
            sink,
            queue: Mutex::default(),
            work: Condvar::new(),
            group: Mutex::default(),
        });
        let mut driver = Self { shared, bytes: options.bytes, threads: Vec::new() };
        for number in 0..options.threads.max(1) {
            let shared = Arc::clone(&driver.shared);
            let spawned = thread::Builder::new()
                .name(format!("drive-{number}"))
                .spawn(move || shared.serve());
            match spawned {
                Ok(thread) => driver.threads.push(thread),
                Err(source) => return Err(OpenError::Io { path: options.path.clone(), source }),
            }
        }
        Ok(driver)
    }
}

impl Driver for Portable {
    fn submit(&self, batch: Vec<Request>) {
        batch.iter().for_each(|request| request.check(self.bytes));
        let mut queue = self.shared.lock_queue();
        let wanted = batch.len().min(queue.idle);
        queue.requests.extend(batch);
        drop(queue);
        for _ in 0..wanted {
            self.shared.work.notify_one();
        }
    }

    fn description(&self) -> String {
        let cache = if self.shared.file.is_direct() { "O_DIRECT" } else { "buffered" };
        format!("portable, {} threads, {cache}", self.threads.len())
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

    fn serve(&self) {
        let mut bounce = Bounce::default();
        while let Some(request) = self.next_request() {
            self.carry_out(request, &mut bounce);
        }
    }

    fn next_request(&self) -> Option<Request> {
        let mut queue = self.lock_queue();
        loop {
            if let Some(request) = queue.requests.pop_front() {
                return Some(request);
            }
            if queue.closed {
                return None;
            }
            queue.idle += 1;
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
    }

    fn carry_out(&self, request: Request, bounce: &mut Bounce) {
        match request {
            Request::Read { token, offset, length } => {
                let result = self.file.read(offset, length).map_err(|e| drive_error(&e));
                self.sink.deliver(vec![Completion::Read { token, result }]);
            }
            Request::Write { token, offset, data, durable } => {
                let result = self.file.write(offset, data, bounce).map_err(|e| drive_error(&e));
                let written = result.is_ok();
                let completion = Completion::Written { token, result };
                if written && durable {
                    self.sync(completion);
                } else {
                    self.sink.deliver(vec![completion]);
                }
            }
            Request::Flush { token } => self.sync(Completion::Flushed { token, result: Ok(()) }),
        }
    }

    /// Delivers the completion when it has become true.
    fn sync(&self, completion: Completion) {
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use bytes::Bytes;
    use engine::api::IoToken;

    use super::*;

    #[test]
    fn after_a_failed_fdatasync_nothing_is_called_durable_again() {
        let path = std::env::temp_dir().join(format!("pliant-sync-{}", std::process::id()));
        let options = PortableOptions { path, bytes: 1 << 20, threads: 2, direct: false };
        let (sender, answers) = mpsc::channel();
        let sink = Sink::new(move |completions| drop(sender.send(completions)));
        let drive = Portable::open(&options, sink).expect("a drive");
        let error = DriveError::Io("injected".to_owned());
        drive.shared.lock_group().failed = Some(error.clone());
        for round in 0..2 {
            let (token, data) = (IoToken(round), vec![Bytes::from_static(&[0; 4096])]);
            drive.submit(vec![Request::Write { token, offset: 0, data, durable: true }]);
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
