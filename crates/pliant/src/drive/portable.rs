//! The driver that works everywhere: threads that call `pread`, `pwritev` and `fdatasync`.
//!
//! Durable writes and flushes share an `fdatasync`. A thread whose write has completed joins the
//! group that waits; the first to find nobody syncing syncs for the group, and goes on until no
//! group waits. So a group holds only writes that completed before its `fdatasync` began.
//!
//! Writes that need not be durable yet are mostly an engine's work in the background: they step
//! back behind reads and durable writes, and a thread takes several small ones at a time and
//! answers them at once, because a wake-up costs more than such a write.

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

/// Lazy writes that a thread takes at once: so many, as long as they are no more bytes than this.
const LAZY_REQUESTS_MAX: usize = 8;
const LAZY_BYTES_MAX: u64 = 64 << 10;
/// Lazy writes wait for no more urgent requests than this.
const PASSED_MAX: usize = 4;

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

/// Bounded by what the engine has under way.
#[derive(Debug)]
struct Queue {
    urgent: VecDeque<Request>,
    /// Writes that need not be durable yet.
    lazy: VecDeque<Request>,
    /// Threads that carry out lazy writes, and how many may.
    lazy_threads: usize,
    lazy_threads_max: usize,
    /// Urgent requests that went before the lazy ones that wait.
    passed: usize,
    idle: usize,
    closed: bool,
}

/// What a thread does next.
#[derive(Debug)]
enum Task {
    One(Request),
    Lazy(Vec<Request>),
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
            queue: Mutex::new(Queue::new((options.threads / 2).max(1))),
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
        batch.into_iter().for_each(|request| queue.push(request));
        let wanted = queue.tasks().min(queue.idle);
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
        while let Some(task) = self.next_task() {
            match task {
                Task::One(request) => self.carry_out(request, &mut bounce),
                Task::Lazy(requests) => {
                    let written = requests.into_iter().map(|r| self.write_lazily(r, &mut bounce));
                    self.sink.deliver(written.collect());
                    self.lock_queue().lazy_threads -= 1;
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

    fn write_lazily(&self, request: Request, bounce: &mut Bounce) -> Completion {
        let Request::Write { token, offset, data, durable: false } = request else {
            unreachable!("only such writes are queued as lazy")
        };
        let result = self.file.write(offset, data, bounce).map_err(|e| drive_error(&e));
        Completion::Written { token, result }
    }

    fn carry_out(&self, request: Request, bounce: &mut Bounce) {
        match request {
            Request::Read { token, offset, length } => {
                let result = self.file.read(offset, length).map_err(|e| drive_error(&e));
                self.sink.deliver(vec![Completion::Read { token, result }]);
            }
            Request::Write { token, offset, data, .. } => {
                match self.file.write(offset, data, bounce).map_err(|e| drive_error(&e)) {
                    Ok(()) => self.sync(Completion::Written { token, result: Ok(()) }),
                    failed => {
                        self.sink.deliver(vec![Completion::Written { token, result: failed }]);
                    }
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

impl Queue {
    fn new(lazy_threads_max: usize) -> Self {
        Self {
            urgent: VecDeque::new(),
            lazy: VecDeque::new(),
            lazy_threads: 0,
            lazy_threads_max,
            passed: 0,
            idle: 0,
            closed: false,
        }
    }

    fn push(&mut self, request: Request) {
        match request {
            Request::Write { durable: false, .. } => self.lazy.push_back(request),
            _ => self.urgent.push_back(request),
        }
    }

    /// Tasks that threads could begin now.
    fn tasks(&self) -> usize {
        let lazy = self.lazy.len().div_ceil(LAZY_REQUESTS_MAX);
        self.urgent.len() + lazy.min(self.lazy_threads_max - self.lazy_threads)
    }

    fn pop(&mut self) -> Option<Task> {
        let lazy = !self.lazy.is_empty() && self.lazy_threads < self.lazy_threads_max;
        if lazy && (self.urgent.is_empty() || self.passed >= PASSED_MAX) {
            self.passed = 0;
            self.lazy_threads += 1;
            return Some(Task::Lazy(self.pop_lazy()));
        }
        let urgent = self.urgent.pop_front()?;
        self.passed += usize::from(lazy);
        Some(Task::One(urgent))
    }

    fn pop_lazy(&mut self) -> Vec<Request> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some(next) = self.lazy.front()
            && taken.len() < LAZY_REQUESTS_MAX
        {
            bytes += next.extent().expect("a write moves bytes").1;
            if bytes > LAZY_BYTES_MAX && !taken.is_empty() {
                break;
            }
            taken.extend(self.lazy.pop_front());
        }
        taken
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

    fn lazy(token: u64, blocks: usize) -> Request {
        let data = vec![Bytes::from(vec![0; blocks * 4096])];
        Request::Write { token: IoToken(token), offset: 0, data, durable: false }
    }

    fn urgent(token: u64) -> Request {
        Request::Read { token: IoToken(token), offset: 0, length: 4096 }
    }

    /// `Some(0)`: one urgent request; `Some(n)`: n lazy ones.
    fn pop(queue: &mut Queue) -> Option<usize> {
        queue.pop().map(|task| match task {
            Task::One(_) => 0,
            Task::Lazy(requests) => requests.len(),
        })
    }

    #[test]
    fn lazy_writes_step_back_but_are_never_starved() {
        let mut queue = Queue::new(1);
        (0..20).for_each(|token| queue.push(lazy(token, 1)));
        (20..30).for_each(|token| queue.push(urgent(token)));
        assert_eq!(queue.tasks(), 11);
        let order: Vec<_> = (0..5).map(|_| pop(&mut queue)).collect();
        assert_eq!(order, [Some(0), Some(0), Some(0), Some(0), Some(8)]);
        // One thread may be lazy, and it is busy.
        let rest: Vec<_> = (0..7).map(|_| pop(&mut queue)).collect();
        assert_eq!(rest, [Some(0), Some(0), Some(0), Some(0), Some(0), Some(0), None]);
        queue.lazy_threads -= 1;
        assert_eq!(pop(&mut queue), Some(8));
    }

    #[test]
    fn large_lazy_writes_are_taken_one_by_one() {
        let mut queue = Queue::new(4);
        for (token, blocks) in [(0, 64), (1, 16), (2, 8), (3, 8), (4, 1)] {
            queue.push(lazy(token, blocks));
        }
        let order: Vec<_> = (0..5).map(|_| pop(&mut queue)).collect();
        assert_eq!(order, [Some(1), Some(1), Some(2), Some(1), None]);
    }

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
