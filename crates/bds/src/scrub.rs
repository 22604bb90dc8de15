//! The passes over what a drive holds: everything is read once in a period, so that rot is found
//! while another replica still has a good copy.
//!
//! Decides: what is read next, and when.
//! Does not: read (the server asks the engine), or repair (replicas do).
//! Invariants: one request of the scrub is with the engine at a time, and the next comes only
//! after a pause that keeps it below its rate, so it takes a small, fixed part of the drive; with
//! nothing to read it wants no waking.
//!
//! A pass begins somewhere by chance and goes round. Its position is not kept: after a restart
//! another begins elsewhere, so that even a server that is restarted often comes everywhere.

use std::{collections::VecDeque, time::Duration};

use engine::api::OpToken;
use format::{
    ctl::{Damage, ScrubStatus},
    data::UnitMeta,
};
use model::{id::ReplicaId, limits::REGION_BYTES, time::Instant};

use crate::{image, lock::Range};

/// Described at once.
const CHUNK_BYTES: u64 = 64 << 20;
/// Slower than this a pass is not worth spreading.
const RATE_MIN: u64 = 16 << 10;
/// A drive that holds nothing is looked at again after this.
const BLANK_PAUSE: Duration = Duration::from_secs(60);
/// Between two chunks that hold nothing.
const EMPTY_PAUSE: Duration = Duration::from_millis(1);
/// While damage or a comparison of the last chunk is looked into.
const SETTLE_PAUSE: Duration = Duration::from_millis(20);
/// Not longer than this.
const SETTLE_MAX: Duration = Duration::from_secs(10);
/// Passes over single replicas that were asked for and wait.
const ASKED_MAX: usize = 1024;

/// What the scrub wants done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// The units of a chunk.
    Describe(ReplicaId, Range),
    Read(ReplicaId, Range),
    /// Is everything that was found in the chunk dealt with?
    Settle(ReplicaId),
}

impl Wish {
    pub fn replica(self) -> ReplicaId {
        match self {
            Self::Describe(replica, _) | Self::Read(replica, _) | Self::Settle(replica) => replica,
        }
    }
}

/// Why a pass over one replica was made, and what was known of it before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    pub replica: ReplicaId,
    pub pass: u64,
    pub before: Damage,
}

#[derive(Debug)]
struct Pass {
    ask: Option<Ask>,
    todo: VecDeque<(ReplicaId, Range)>,
    /// Of the chunk that `todo` begins with, once it is described.
    runs: Option<VecDeque<Range>>,
    /// Since when the chunk has been read.
    settling: Option<Instant>,
    total: u64,
    bytes: u64,
    rate: u64,
    /// A replica of it left before it was done.
    left: bool,
}

#[derive(Debug)]
pub struct Scrub {
    period: Duration,
    rate_max: u64,
    seed: u64,
    regular: Option<Pass>,
    asked: VecDeque<Pass>,
    /// When the regular pass may begin again.
    next_pass: Instant,
    next_step: Instant,
    on_asked: bool,
    /// What the engine was asked.
    waits: Option<(OpToken, Wish)>,
    bytes: u64,
    finished: u64,
}

impl Scrub {
    /// `period` or `rate_max` zero: nothing is read unless it is asked for.
    pub fn new(period: Duration, rate_max: u64, seed: u64, now: Instant) -> Self {
        Self {
            period,
            rate_max: rate_max.max(RATE_MIN),
            seed,
            regular: None,
            asked: VecDeque::new(),
            next_pass: now,
            next_step: now,
            on_asked: false,
            waits: None,
            bytes: 0,
            finished: 0,
        }
    }

    pub fn status(&self) -> ScrubStatus {
        ScrubStatus {
            scrubbed_bytes: self.bytes,
            passes_finished: self.finished,
            percent: self.regular.as_ref().map_or(0, Pass::percent),
        }
    }

    /// Whether a regular pass should begin.
    pub fn is_due(&self, now: Instant) -> bool {
        let on = !self.period.is_zero();
        on && self.regular.is_none() && now >= self.next_pass
    }

    /// Begins a regular pass over these replicas and their sizes, which occupy so many bytes. If there
    /// are none, it is not due for a while: to find that out costs time for each replica.
    pub fn begin(&mut self, now: Instant, replicas: &[(ReplicaId, u64)], allocated: u64) {
        let whole = |&(replica, size): &(ReplicaId, u64)| (replica, Range { start: 0, end: size });
        let mut todo: VecDeque<_> = replicas.iter().filter(|r| r.1 > 0).map(whole).collect();
        if todo.is_empty() || allocated == 0 {
            self.next_pass = now + self.period.min(BLANK_PAUSE);
            return;
        }
        self.seed = self.seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let by_chance = |limit: u64| (self.seed >> 33) % limit.max(1);
        let first = by_chance(todo.len() as u64);
        todo.rotate_left(usize::try_from(first).expect("within the list"));
        let (replica, range) = todo[0];
        let middle = by_chance(range.end.div_ceil(CHUNK_BYTES)) * CHUNK_BYTES;
        if middle > 0 {
            todo[0].1.start = middle;
            todo.push_back((replica, Range { start: 0, end: middle }));
        }
        let seconds = self.period.as_secs().max(1);
        let rate = allocated.div_ceil(seconds).clamp(RATE_MIN, self.rate_max);
        self.regular = Some(Pass::new(None, todo, rate));
        self.next_pass = now + self.period;
        self.next_step = self.next_step.max(now);
    }

    /// A pass over one replica, now. False: too many wait.
    pub fn ask(&mut self, now: Instant, ask: Ask, size: u64) -> bool {
        let same = |pass: &Pass| pass.ask.is_some_and(|a| a.replica == ask.replica);
        // Another one waits for its turn: whoever asked for it asks again until it is done.
        if self.asked.iter().any(same) {
            return true;
        }
        if self.asked.len() >= ASKED_MAX {
            return false;
        }
        let todo = [(ask.replica, Range { start: 0, end: size })];
        let todo = todo.into_iter().filter(|(_, range)| range.end > 0).collect();
        self.asked.push_back(Pass::new(Some(ask), todo, self.rate_max));
        self.next_step = self.next_step.min(now);
        true
    }

    /// The passes that were asked for, and how far each is.
    pub fn asked(&self) -> impl Iterator<Item = (Ask, u8, u64)> {
        self.asked.iter().filter_map(|pass| Some((pass.ask?, pass.percent(), pass.bytes)))
    }

    /// The pass that was asked for and is over: what it read, and whether its replica left.
    pub fn take_finished(&mut self) -> Option<(Ask, u64, bool)> {
        self.asked.front().filter(|pass| pass.todo.is_empty())?;
        let pass = self.asked.pop_front()?;
        Some((pass.ask?, pass.bytes, pass.left))
    }

    pub fn deadline(&self) -> Option<Instant> {
        let works = self.regular.is_some() || !self.asked.is_empty();
        (works && self.waits.is_none()).then_some(self.next_step)
    }

    /// The pass that the last wish was of.
    fn current(&mut self) -> Option<&mut Pass> {
        if self.on_asked { self.asked.front_mut() } else { self.regular.as_mut() }
    }

    /// What to do now, if anything.
    pub fn next(&mut self, now: Instant) -> Option<Wish> {
        if self.waits.is_some() || now < self.next_step {
            return None;
        }
        self.on_asked = !self.asked.is_empty();
        let pass = self.current()?;
        let &(replica, range) = pass.todo.front()?;
        Some(match &pass.runs {
            None => Wish::Describe(replica, chunk_of(range)),
            Some(runs) => match runs.front() {
                Some(&run) => Wish::Read(replica, run),
                None => Wish::Settle(replica),
            },
        })
    }

    /// The engine was asked.
    pub fn began(&mut self, token: OpToken, wish: Wish) {
        assert!(self.waits.is_none(), "one request at a time");
        self.waits = Some((token, wish));
    }

    /// What the engine has answered, if it is the scrub's.
    pub fn ended(&mut self, token: OpToken) -> Option<Wish> {
        let (_, wish) = self.waits.take_if(|(waits, _)| *waits == token)?;
        Some(wish)
    }

    /// The units of the chunk.
    pub fn described(&mut self, now: Instant, units: &[UnitMeta]) {
        let runs: VecDeque<Range> = image::runs(units).into_iter().flat_map(cut).collect();
        self.next_step = if runs.is_empty() { now + EMPTY_PAUSE } else { now };
        if let Some(pass) = self.current() {
            pass.runs = Some(runs);
        }
    }

    /// The run at the front has been read.
    pub fn read(&mut self, now: Instant) {
        let Some(pass) = self.current() else { return };
        let Some(run) = pass.runs.as_mut().and_then(VecDeque::pop_front) else { return };
        let length = run.length();
        pass.bytes += length;
        let pause = length.saturating_mul(1_000_000) / pass.rate;
        self.bytes += length;
        self.next_step = now + Duration::from_micros(pause);
    }

    /// Whether what the chunk brought up has been dealt with.
    pub fn settled(&mut self, now: Instant, settled: bool) {
        let Some(pass) = self.current() else { return };
        let since = *pass.settling.get_or_insert(now);
        if settled || now.since(since) >= SETTLE_MAX {
            pass.advance();
            self.end_regular();
        } else {
            self.next_step = now + SETTLE_PAUSE;
        }
    }

    /// The replica is not here any more, or does not count: nothing of it is read.
    pub fn skip(&mut self, now: Instant, replica: ReplicaId) {
        self.next_step = now;
        let Some(pass) = self.current() else { return };
        pass.todo.retain(|(each, _)| *each != replica);
        (pass.runs, pass.settling, pass.left) = (None, None, true);
        self.end_regular();
    }

    fn end_regular(&mut self) {
        if self.regular.as_ref().is_some_and(|pass| pass.todo.is_empty()) {
            self.regular = None;
            self.finished += 1;
        }
    }
}

impl Pass {
    fn new(ask: Option<Ask>, todo: VecDeque<(ReplicaId, Range)>, rate: u64) -> Self {
        let total = todo.iter().map(|(_, range)| range.length()).sum();
        Self { ask, todo, runs: None, settling: None, total, bytes: 0, rate, left: false }
    }

    fn percent(&self) -> u8 {
        let left: u64 = self.todo.iter().map(|(_, range)| range.length()).sum();
        let done = u128::from(self.total.saturating_sub(left)) * 100;
        u8::try_from(done / u128::from(self.total.max(1))).expect("a percentage")
    }

    /// On to the next chunk.
    fn advance(&mut self) {
        (self.runs, self.settling) = (None, None);
        let Some((_, range)) = self.todo.front_mut() else { return };
        range.start = chunk_of(*range).end;
        if range.start >= range.end {
            self.todo.pop_front();
        }
    }
}

fn chunk_of(range: Range) -> Range {
    Range { start: range.start, end: range.end.min(range.start + CHUNK_BYTES) }
}

/// A run in reads of bounded length.
fn cut(run: Range) -> impl Iterator<Item = Range> {
    let step = usize::try_from(REGION_BYTES).expect("small");
    let starts = (run.start..run.end).step_by(step);
    starts.map(move |start| Range { start, end: run.end.min(start + REGION_BYTES) })
}
