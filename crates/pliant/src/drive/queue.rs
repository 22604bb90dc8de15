//! What waits for a thread of the portable driver, and in which bites threads take it.
//!
//! An engine's work in the background steps back behind everything else, but waits for no more
//! than [`PASSED_MAX`] others.

use std::collections::VecDeque;

use engine::api::{Durability, Urgency};

use super::Request;

/// Writes in the background wait for no more urgent tasks than this.
const PASSED_MAX: usize = 4;

/// How much of one kind a thread takes at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bite {
    pub(super) requests: usize,
    /// A larger request is taken alone.
    pub(super) bytes: u64,
}

/// What a thread does next.
#[derive(Debug)]
pub(super) enum Task {
    /// Writes, durable once synced, and flushes.
    Durable(Request),
    Read(Vec<Request>),
    /// Writes that need not be durable yet.
    Write(Vec<Request>),
    /// The same, and preparations, in the background. `Queue::lazy_done` follows.
    Lazy(Vec<Request>),
}

/// Bounded by what the engine has under way.
#[derive(Debug)]
pub(super) struct Queue {
    urgent: VecDeque<Request>,
    lazy: VecDeque<Request>,
    reads: Bite,
    writes: Bite,
    /// Threads that carry out lazy writes, and how many may.
    lazy_threads: usize,
    lazy_threads_max: usize,
    /// Urgent tasks that went before the lazy writes that wait.
    passed: usize,
    pub(super) idle: usize,
    pub(super) closed: bool,
}

impl Queue {
    pub(super) fn new(reads: Bite, writes: Bite, lazy_threads_max: usize) -> Self {
        Self {
            urgent: VecDeque::new(),
            lazy: VecDeque::new(),
            reads,
            writes,
            lazy_threads: 0,
            lazy_threads_max,
            passed: 0,
            idle: 0,
            closed: false,
        }
    }

    pub(super) fn push(&mut self, request: Request) {
        match request {
            Request::Write {
                durability: Durability::Later, urgency: Urgency::Background, ..
            }
            | Request::Prepare { .. } => self.lazy.push_back(request),
            _ => self.urgent.push_back(request),
        }
    }

    /// About how many tasks threads could begin now.
    pub(super) fn tasks(&self) -> usize {
        let urgent = self.urgent.len().div_ceil(self.reads.requests);
        // One that is not a read is a task of its own: it has come last, if at all.
        let durable = self.urgent.back().is_some_and(|r| !matches!(r, Request::Read { .. }));
        let lazy = self.lazy.len().div_ceil(self.writes.requests);
        urgent + usize::from(durable) + lazy.min(self.lazy_threads_max - self.lazy_threads)
    }

    pub(super) fn pop(&mut self) -> Option<Task> {
        let lazy = !self.lazy.is_empty() && self.lazy_threads < self.lazy_threads_max;
        if lazy && (self.urgent.is_empty() || self.passed >= PASSED_MAX) {
            self.passed = 0;
            self.lazy_threads += 1;
            return Some(Task::Lazy(take(&mut self.lazy, self.writes, |_| true)));
        }
        let task = match self.urgent.front()? {
            Request::Read { .. } => {
                let is_read = |r: &Request| matches!(r, Request::Read { .. });
                Task::Read(take(&mut self.urgent, self.reads, is_read))
            }
            Request::Write { durability: Durability::Later, .. } => {
                let is_later =
                    |r: &Request| matches!(r, Request::Write { durability: Durability::Later, .. });
                Task::Write(take(&mut self.urgent, self.writes, is_later))
            }
            _ => Task::Durable(self.urgent.pop_front()?),
        };
        self.passed += usize::from(lazy);
        Some(task)
    }

    pub(super) fn lazy_done(&mut self) {
        self.lazy_threads -= 1;
    }
}

fn take(
    queue: &mut VecDeque<Request>,
    bite: Bite,
    wanted: impl Fn(&Request) -> bool,
) -> Vec<Request> {
    let mut taken = Vec::new();
    let mut bytes = 0;
    while let Some(next) = queue.front()
        && wanted(next)
        && taken.len() < bite.requests
    {
        bytes += next.extent().map_or(0, |(_, bytes)| bytes);
        if bytes > bite.bytes && !taken.is_empty() {
            break;
        }
        taken.extend(queue.pop_front());
    }
    taken
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use engine::api::IoToken;

    use super::*;

    const BITE: Bite = Bite { requests: 8, bytes: 64 << 10 };

    fn lazy(blocks: usize) -> Request {
        write(blocks, Urgency::Background)
    }

    fn write(blocks: usize, urgency: Urgency) -> Request {
        let (token, data) = (IoToken(0), vec![Bytes::from(vec![0; blocks * 4096])]);
        Request::Write { token, offset: 0, data, durability: Durability::Later, urgency }
    }

    fn read() -> Request {
        Request::Read { token: IoToken(0), offset: 0, length: 4096 }
    }

    fn flush() -> Request {
        Request::Flush { token: IoToken(0) }
    }

    /// `d` for a durable task, `r`, `w` or `l` and the number of requests for others.
    fn pop(queue: &mut Queue) -> String {
        match queue.pop() {
            None => "-".to_owned(),
            Some(Task::Durable(_)) => "d".to_owned(),
            Some(Task::Read(requests)) => format!("r{}", requests.len()),
            Some(Task::Write(requests)) => format!("w{}", requests.len()),
            Some(Task::Lazy(requests)) => format!("l{}", requests.len()),
        }
    }

    fn pops(queue: &mut Queue, count: usize) -> String {
        (0..count).map(|_| pop(queue)).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn lazy_writes_step_back_but_are_never_starved() {
        let mut queue = Queue::new(BITE, BITE, 1);
        (0..20).for_each(|_| queue.push(lazy(1)));
        (0..8).for_each(|_| queue.push(flush()));
        assert_eq!(pops(&mut queue, 5), "d d d d l8");
        // One thread may be lazy, and it is busy.
        assert_eq!(pops(&mut queue, 5), "d d d d -");
        queue.lazy_done();
        assert_eq!(pops(&mut queue, 1), "l8");
    }

    #[test]
    fn a_write_that_somebody_waits_for_does_not_step_back() {
        let mut queue = Queue::new(BITE, BITE, 1);
        queue.push(lazy(1));
        queue.push(write(4, Urgency::Request));
        queue.push(write(4, Urgency::Request));
        queue.push(read());
        assert_eq!(pops(&mut queue, 4), "w2 r1 l1 -");
    }

    #[test]
    fn reads_are_taken_together_up_to_the_next_durable_request() {
        let mut queue = Queue::new(BITE, BITE, 1);
        (0..10).for_each(|_| queue.push(read()));
        queue.push(flush());
        queue.push(read());
        assert_eq!(queue.tasks(), 2);
        assert_eq!(pops(&mut queue, 5), "r8 r2 d r1 -");
    }

    #[test]
    fn large_requests_are_taken_one_by_one() {
        let mut queue = Queue::new(BITE, BITE, 5);
        [64, 16, 8, 8, 1].into_iter().for_each(|blocks| queue.push(lazy(blocks)));
        assert_eq!(pops(&mut queue, 5), "l1 l1 l2 l1 -");
    }
}
