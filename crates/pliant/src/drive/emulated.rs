//! A declared emulation of a hard disk on top of the portable driver.
//!
//! One actuator serves one I/O at a time in elevator order; each takes at least what
//! [`Profile`] says. The bytes are really written by the driver below, and a flush costs what it
//! costs there. Delays are waited for on a condition variable, so they cost no CPU.
//!
//! What is read before the first write is the engine finding its tables again (every open writes
//! its superblock last). It is not slowed: the emulation is there to be seen by volumes, and a
//! server's restart is no part of it.

use std::{
    collections::BTreeSet,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use engine::api::IoToken;

use super::{
    Completion, DriveOptions, Driver, OpenError, Request, Sink, elevator::Elevator,
    file::DriveFile, portable::Portable,
};

pub use super::elevator::Profile;

/// A busy actuator that woke late by no more than this begins when it should have, so that late
/// timers do not add up.
const CATCH_UP: Duration = Duration::from_millis(2);

#[derive(Debug)]
pub struct Emulated {
    shared: Arc<Shared>,
    profile: Profile,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    drive: Portable,
    sink: Sink,
    desk: Arc<Desk>,
}

/// Where requests and the lower driver's completions meet the actuator.
#[derive(Debug)]
struct Desk {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    elevator: Elevator,
    /// Of the one I/O that is under way below.
    completion: Option<Completion>,
    /// What the drive below prepares, which costs the actuator nothing: a disk has a place for each of
    /// its bytes.
    preparing: BTreeSet<IoToken>,
    closed: bool,
}

impl Emulated {
    /// Below is the portable driver: any other would not make an emulation faster.
    pub fn open(profile: Profile, options: &DriveOptions, sink: Sink) -> Result<Self, OpenError> {
        let state = State {
            elevator: Elevator::new(profile),
            completion: None,
            preparing: BTreeSet::new(),
            closed: false,
        };
        let desk = Arc::new(Desk { state: Mutex::new(state), changed: Condvar::new() });
        let below = {
            let (desk, sink) = (Arc::clone(&desk), sink.clone());
            Sink::new(move |completions| desk.take_completions(completions, &sink))
        };
        let file = Arc::new(DriveFile::open(options)?);
        let drive = Portable::start(file, options, below)?;
        let shared = Arc::new(Shared { drive, sink, desk });
        let thread = {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name("actuator".to_owned()).spawn(move || shared.serve())
        };
        let thread = thread.map_err(|source| OpenError::Io { path: "".into(), source })?;
        Ok(Self { shared, profile, thread: Some(thread) })
    }
}

impl Driver for Emulated {
    fn submit(&mut self, batch: Vec<Request>) {
        let now = Instant::now();
        let mut below = Vec::new();
        let mut state = self.shared.desk.lock();
        for request in batch {
            match request {
                Request::Flush { .. } => below.push(request),
                Request::Prepare { token, .. } => {
                    state.preparing.insert(token);
                    below.push(request);
                }
                request => state.elevator.push(now, request),
            }
        }
        drop(state);
        self.shared.desk.changed.notify_one();
        if !below.is_empty() {
            self.shared.drive.submit(below);
        }
    }

    fn description(&self) -> String {
        let Profile { seek, ops_per_sec, mib_per_sec } = self.profile;
        format!(
            "EMULATED hard disk ({seek:?} seek, {ops_per_sec} ops/s, {mib_per_sec} MiB/s) on: {}",
            self.shared.drive.description()
        )
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        self.shared.desk.lock().closed = true;
        self.shared.desk.changed.notify_one();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the emulated actuator panicked");
        }
    }
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From below: flushes and preparations go straight up, the one I/O goes to the actuator.
    fn take_completions(&self, completions: Vec<Completion>, sink: &Sink) {
        let goes_up = |completion: &Completion| match completion {
            Completion::Flushed { .. } => true,
            Completion::Written { token, .. } => self.lock().preparing.remove(token),
            Completion::Read { .. } => false,
        };
        let (up, moved): (Vec<_>, Vec<_>) = completions.into_iter().partition(goes_up);
        sink.deliver(up);
        for completion in moved {
            let replaced = self.lock().completion.replace(completion);
            assert!(replaced.is_none(), "one I/O is under way at a time");
            self.changed.notify_one();
        }
    }
}

impl Shared {
    fn serve(&self) {
        let mut free_at = Instant::now();
        let mut opened = false;
        while let Some((request, cost, waited)) = self.next_request() {
            opened |= matches!(request, Request::Write { .. });
            let cost = if opened { cost } else { Duration::ZERO };
            let now = Instant::now();
            let late = now.saturating_duration_since(free_at);
            let begin = if waited || late > CATCH_UP { now } else { free_at.min(now) };
            free_at = begin + cost;
            self.drive.submit(vec![request]);
            let completion = self.await_completion(free_at);
            self.sink.deliver(vec![completion]);
        }
    }

    /// The next request, what it costs, and whether the actuator had to wait for it. None:
    /// closed, and nothing waits.
    fn next_request(&self) -> Option<(Request, Duration, bool)> {
        let mut state = self.desk.lock();
        let mut waited = false;
        loop {
            if let Some((request, cost)) = state.elevator.pop(Instant::now()) {
                return Some((request, cost, waited));
            }
            waited = true;
            if state.closed {
                return None;
            }
            state = self.desk.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for the drive below and, unless the driver is being dropped, for `until`.
    fn await_completion(&self, until: Instant) -> Completion {
        let mut state = self.desk.lock();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if !left.is_zero() && !state.closed {
                let waited = self.desk.changed.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            } else if let Some(completion) = state.completion.take() {
                return completion;
            } else {
                state = self.desk.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}
