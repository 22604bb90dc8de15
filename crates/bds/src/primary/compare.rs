//! Comparing what primary and mirrors hold, by digest: no data is read.
//!
//! Decides: when a mirror counts as another than it should be.
//! Invariants: nothing is in flight to a range while it is compared; a difference is narrowed
//! down to a region before it is reported, so it was seen more than once; the mirror that differs
//! is reported until the manager has taken it out of the set, and nobody's content is chosen (19).

use std::collections::BTreeMap;

use engine::api::{Outcome, Request};
use format::{
    ctl::ToManager,
    data::{DataMessage, DigestQuery},
};
use model::{group::Member, id::ReplicaId, limits::REGION_BYTES, time::Instant};

use crate::{
    lock::{LockId, Mode, Range},
    turn::{Finding, Op, Turn},
};

use super::{Owner, Primary, REPEAT};

/// A range is held no longer; whoever has not answered is asked again later.
const HOLD_MAX: std::time::Duration = std::time::Duration::from_secs(1);
/// Attempts at one range. After these it is left to the next pass.
const ATTEMPTS_MAX: u32 = 3;
/// Ranges to be compared: the chunk that the scrub is at, and parts of it.
const TODO_MAX: usize = 64;

#[derive(Debug, Default)]
pub struct Comparing {
    todo: Vec<(Range, u32)>,
    running: Option<Compare>,
    /// Mirrors that differ, where, and when the manager was last told.
    differing: BTreeMap<ReplicaId, (u64, Option<Instant>)>,
}

#[derive(Debug)]
struct Compare {
    token: u64,
    range: Range,
    attempt: u32,
    lock: LockId,
    /// When everybody was asked; not yet while it waits for changes in flight.
    sent: Option<Instant>,
    /// The primary's own and the mirrors'.
    digests: BTreeMap<ReplicaId, Option<u64>>,
}

impl Comparing {
    pub fn is_busy(&self) -> bool {
        self.running.is_some() || !self.todo.is_empty()
    }

    pub(super) fn needs_watching(&self) -> bool {
        self.is_busy() || !self.differing.is_empty()
    }
}

impl Primary {
    /// Compares a range with all mirrors as soon as that is possible.
    pub fn compare(&mut self, turn: &mut Turn<'_>, range: Range) {
        let end = range.end.min(self.config.size.get());
        if range.start < end && self.comparing.todo.len() < TODO_MAX {
            self.comparing.todo.push((Range { start: range.start, end }, 0));
        }
        self.go_on(turn);
    }

    pub(super) fn advance_compare(&mut self, turn: &mut Turn<'_>) {
        let reachable = self.config.mirrors().all(|m| turn.links.is_up(&m.server));
        if self.comparing.running.is_some() || self.is_deposed() || !reachable {
            return;
        }
        if self.compared().next().is_none() {
            self.comparing.todo.clear();
        }
        let Some((range, attempt)) = self.comparing.todo.pop() else { return };
        let token = turn.token();
        let (lock, granted) = self.locks.take(range, Mode::Shared);
        self.owners.insert(lock, Owner::Compare(token));
        if granted {
            self.granted.push_back(lock);
        }
        let (sent, digests) = (None, BTreeMap::new());
        self.comparing.running = Some(Compare { token, range, attempt, lock, sent, digests });
    }

    /// Mirrors of which it is not known that they differ.
    fn compared(&self) -> impl Iterator<Item = &Member> {
        let known = &self.comparing.differing;
        self.config.mirrors().filter(|m| !known.contains_key(&m.replica))
    }

    /// No change to the range is in flight.
    pub(super) fn start_compare(&mut self, turn: &mut Turn<'_>) {
        let running = self.comparing.running.as_ref().expect("the owner of the lock");
        let (token, replica, range) = (running.token, self.id, running.range);
        let (offset, length) = (range.start, range.length());
        let mut digests = BTreeMap::from([(replica, None)]);
        for mirror in self.compared() {
            digests.insert(mirror.replica, None);
            let query = DigestQuery {
                group: self.config.group,
                replica: mirror.replica,
                epoch: self.config.epoch,
                token,
                offset,
                length: u32::try_from(length).expect("a chunk"),
            };
            turn.send(&mirror.server, DataMessage::QueryDigest(query));
        }
        let running = self.comparing.running.as_mut().expect("looked at above");
        (running.sent, running.digests) = (Some(turn.now), digests);
        turn.request(Op::CompareDigest(token), Request::Digest { replica, offset, length });
    }

    pub fn compare_digest(
        &mut self,
        turn: &mut Turn<'_>,
        token: u64,
        outcome: &Result<Outcome, engine::api::OpError>,
    ) {
        let digest = match outcome {
            Ok(Outcome::Digest { digest }) => Some(*digest),
            _ => None,
        };
        self.compare_answered(turn, (self.id, token), digest);
        self.go_on(turn);
    }

    /// A digest has come in; `None`: it could not be made.
    pub(super) fn compare_answered(
        &mut self,
        turn: &mut Turn<'_>,
        (replica, token): (ReplicaId, u64),
        digest: Option<u64>,
    ) {
        let running = self.comparing.running.as_mut().filter(|running| running.token == token);
        let Some(running) = running else { return };
        let Some(slot) = running.digests.get_mut(&replica) else { return };
        if digest.is_none() {
            return self.put_off_compare(1);
        }
        *slot = digest;
        if running.digests.values().any(Option::is_none) {
            return;
        }
        let Some(running) = self.end_compare() else { return };
        let own = running.digests[&self.id];
        let other = running.digests.iter().filter(|(_, digest)| **digest != own);
        let differing: Vec<ReplicaId> = other.map(|(&replica, _)| replica).collect();
        if differing.is_empty() {
            return;
        }
        let Range { start, end } = running.range;
        if end - start > REGION_BYTES {
            let middle = start + ((end - start) / 2).next_multiple_of(REGION_BYTES);
            let halves = [Range { start, end: middle }, Range { start: middle, end }];
            self.comparing.todo.extend(halves.map(|half| (half, 0)));
            return;
        }
        for replica in differing {
            self.differs(turn, replica, start);
        }
    }

    /// A mirror is not what it should be.
    pub(super) fn differs(&mut self, turn: &mut Turn<'_>, member: ReplicaId, offset: u64) {
        if self.comparing.differing.contains_key(&member) || !self.config.is_in_sync(member) {
            return;
        }
        turn.note(offset, Finding::Differs { member });
        self.comparing.differing.insert(member, (offset, None));
        self.report_differing(turn);
    }

    fn report_differing(&mut self, turn: &mut Turn<'_>) {
        let (group, epoch) = (self.config.group, self.config.epoch);
        for (&member, (offset, told)) in &mut self.comparing.differing {
            if told.is_none_or(|at| turn.now.since(at) >= REPEAT) {
                *told = Some(turn.now);
                turn.tell(ToManager::MemberDiffers { group, epoch, member, offset: *offset });
            }
        }
    }

    /// Lets go of a range that somebody does not answer for, and says again what must be heard.
    pub(super) fn watch_compare(&mut self, turn: &mut Turn<'_>) {
        let sent = self.comparing.running.as_ref().and_then(|running| running.sent);
        if sent.is_some_and(|at| turn.now.since(at) >= HOLD_MAX) {
            self.put_off_compare(1);
        }
        self.report_differing(turn);
    }

    /// Another configuration: whoever was asked may ignore it, and who differed may have left.
    pub(super) fn restart_compare(&mut self) {
        self.put_off_compare(0);
        let config = &self.config;
        self.comparing.differing.retain(|&member, _| config.is_in_sync(member));
        self.comparing.differing.values_mut().for_each(|(_, told)| *told = None);
    }

    pub(super) fn put_off_compare(&mut self, failures: u32) {
        if let Some(running) = self.end_compare()
            && running.attempt + failures < ATTEMPTS_MAX
        {
            self.comparing.todo.push((running.range, running.attempt + failures));
        }
    }

    fn end_compare(&mut self) -> Option<Compare> {
        let running = self.comparing.running.take()?;
        self.release(running.lock);
        Some(running)
    }
}
