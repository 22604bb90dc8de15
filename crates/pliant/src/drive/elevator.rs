//! The order and the cost of I/O on one actuator. Pure: the emulated drive adds the waiting.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use super::Request;

/// An I/O that begins within this many bytes after the last one's end costs no seek.
const NEAR_BYTES: u64 = 1 << 20;
/// A request that has waited this long goes next, wherever it is. Without it a long run of
/// neighbouring reads, such as a learner being filled, keeps everything else away; a guest's write
/// waits for several requests in turn, so this is well below what a guest should wait.
const PATIENCE: Duration = Duration::from_millis(30);

/// What the emulated drive can do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Profile {
    pub seek: Duration,
    /// Seeks per second, at most.
    pub ops_per_sec: u32,
    pub mib_per_sec: u32,
}

impl Profile {
    fn cost(&self, head: u64, offset: u64, bytes: u64) -> Duration {
        let near = (head..=head.saturating_add(NEAR_BYTES)).contains(&offset);
        let per_op = Duration::from_secs(1) / self.ops_per_sec.max(1);
        let seek = if near { Duration::ZERO } else { self.seek.max(per_op) };
        let bytes_per_sec = u64::from(self.mib_per_sec.max(1)) << 20;
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(bytes_per_sec);
        seek + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// Requests that wait for the actuator, served upwards from the head, then again from the lowest.
#[derive(Debug)]
pub(super) struct Elevator {
    profile: Profile,
    /// Where the last I/O ended.
    head: u64,
    next_number: u64,
    waiting: BTreeMap<(u64, u64), Request>,
    /// By arrival; entries that were served already are skipped.
    arrivals: VecDeque<(Instant, (u64, u64))>,
}

impl Elevator {
    pub(super) fn new(profile: Profile) -> Self {
        Self {
            profile,
            head: 0,
            next_number: 0,
            waiting: BTreeMap::new(),
            arrivals: VecDeque::new(),
        }
    }

    /// Flushes do not move the actuator and are refused.
    pub(super) fn push(&mut self, now: Instant, request: Request) {
        let (offset, _) = request.extent().expect("a flush does not move the actuator");
        self.next_number += 1;
        let key = (offset, self.next_number);
        self.arrivals.push_back((now, key));
        self.waiting.insert(key, request);
    }

    /// The next request and how long it takes.
    pub(super) fn pop(&mut self, now: Instant) -> Option<(Request, Duration)> {
        let key = self.impatient(now).or_else(|| {
            let above = self.waiting.range((self.head, 0)..).next();
            above.or_else(|| self.waiting.iter().next()).map(|(key, _)| *key)
        })?;
        let request = self.waiting.remove(&key).expect("found above");
        let (offset, bytes) = request.extent().expect("no flush was let in");
        let cost = self.profile.cost(self.head, offset, bytes);
        self.head = offset + bytes;
        Some((request, cost))
    }

    fn impatient(&mut self, now: Instant) -> Option<(u64, u64)> {
        while let Some((arrived, key)) = self.arrivals.front().copied() {
            if self.waiting.contains_key(&key) {
                return (now.duration_since(arrived) >= PATIENCE).then_some(key);
            }
            self.arrivals.pop_front();
        }
        None
    }
}
