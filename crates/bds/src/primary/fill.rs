//! One learner's fill as the primary keeps it: what is filled, what is asked, what comes next.
//!
//! Decides: in which order the address range is compared, copied and verified.
//! Does not: send or hold anything; see `resync`.

use std::collections::{BTreeMap, VecDeque};

use model::{limits::REGION_BYTES, time::Instant};

use crate::{
    filled::Filled,
    lock::{LockId, Range},
};

/// Compared at once.
const CHUNK_BYTES: u64 = 64 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Is the chunk equal already?
    Compare,
    /// Copy what differs of a region; `own`: from the primary, because the source cannot read it.
    Copy { own: bool },
    /// Is the chunk equal now?
    Verify,
}

#[derive(Debug)]
pub(super) struct Task {
    pub(super) kind: Kind,
    pub(super) range: Range,
    pub(super) lock: LockId,
    /// When learner and source were asked; not yet while it waits for changes in flight.
    pub(super) sent: Option<Instant>,
    pub(super) learner_digest: Option<u64>,
    pub(super) source_digest: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Region {
    pub(super) range: Range,
    pub(super) own: bool,
    pub(super) not_before: Instant,
}

/// `walking ─► ready` or `walking ─► failed`; a new configuration begins anew or ends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    Walking,
    /// Everything is filled and found equal. It counts.
    Ready,
    Failed(String),
}

#[derive(Debug)]
pub struct Fill {
    pub(super) state: State,
    /// The server has let it begin.
    pub(super) admitted: bool,
    pub(super) filled: Filled,
    /// Everything below was compared; what differs is in `regions`.
    pub(super) walked: u64,
    /// Everything below was verified, apart from `again`.
    pub(super) verified: u64,
    pub(super) regions: VecDeque<Region>,
    pub(super) again: VecDeque<Range>,
    pub(super) tasks: BTreeMap<u64, Task>,
    /// Chunks that were found different although they were filled, by offset.
    pub(super) doubts: BTreeMap<u64, u32>,
    pub(super) failures: u32,
    pub(super) moved: u64,
    pub(super) heard: Instant,
    pub(super) reported: Option<Instant>,
}

/// What a fill wants to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Begin(Kind, Range),
    Wait,
    Ready,
}

impl Fill {
    pub fn new(now: Instant) -> Self {
        Self {
            state: State::Walking,
            admitted: false,
            filled: Filled::default(),
            walked: 0,
            verified: 0,
            regions: VecDeque::new(),
            again: VecDeque::new(),
            tasks: BTreeMap::new(),
            doubts: BTreeMap::new(),
            failures: 0,
            moved: 0,
            heard: now,
            reported: None,
        }
    }

    /// Whether it counts like a member.
    pub fn counts(&self) -> bool {
        self.state == State::Ready
    }

    pub fn has_failed(&self) -> bool {
        matches!(self.state, State::Failed(_))
    }

    /// It occupies the server.
    pub(super) fn is_under_way(&self) -> bool {
        self.admitted && self.state == State::Walking
    }

    /// Whether changes of this range must go to the learner.
    pub fn wants(&self, range: Range) -> bool {
        match self.state {
            State::Walking => self.filled.touches(range),
            State::Ready => true,
            State::Failed(_) => false,
        }
    }

    pub fn bytes_done(&self) -> u64 {
        self.filled.bytes()
    }

    pub fn bytes_moved(&self) -> u64 {
        self.moved
    }

    pub fn report_again(&mut self) {
        self.reported = None;
    }

    pub(super) fn next(&mut self, now: Instant, size: u64, window: usize) -> Next {
        if self.tasks.len() >= window {
            return Next::Wait;
        }
        if let Some(index) = self.regions.iter().position(|region| region.not_before <= now) {
            let region = self.regions.remove(index).expect("found just now");
            return Next::Begin(Kind::Copy { own: region.own }, region.range);
        }
        if self.walked < size && self.regions.len() < window {
            let range = chunk_at(self.walked, size);
            self.walked = range.end;
            return Next::Begin(Kind::Compare, range);
        }
        let copying = self.tasks.values().any(|task| task.kind != Kind::Verify);
        if copying || !self.regions.is_empty() || self.walked < size {
            return Next::Wait;
        }
        if let Some(range) = self.again.pop_front() {
            return Next::Begin(Kind::Verify, range);
        }
        if self.verified < size {
            let range = chunk_at(self.verified, size);
            self.verified = range.end;
            return Next::Begin(Kind::Verify, range);
        }
        if self.tasks.is_empty() { Next::Ready } else { Next::Wait }
    }

    /// The regions of a chunk, to be copied.
    pub(super) fn add_regions(&mut self, chunk: Range, now: Instant) {
        let mut start = chunk.start;
        while start < chunk.end {
            let end = chunk.end.min(start + REGION_BYTES);
            let range = Range { start, end };
            self.regions.push_back(Region { range, own: false, not_before: now });
            start = end;
        }
    }
}

fn chunk_at(start: u64, size: u64) -> Range {
    Range { start, end: size.min(start + CHUNK_BYTES) }
}
