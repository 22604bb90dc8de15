//! Filling a learner while writes go on.
//!
//! The address range is walked in chunks of 64 MiB: under a hold, the digests of learner and
//! source are compared. Equal: the chunk is filled at once. Else its regions are filled one by
//! one, each under a hold. When everything is filled, all is compared again; then the learner is
//! ready, and from then on counts as a member: the manager may admit it at any moment, so it is
//! not given up any more, only reported (17).
//!
//! A fill begins when the server has room for one more; until then the learner gets no changes.

use engine::api::{OpError, Outcome, Request};
use format::{
    ctl::ToManager,
    data::{DataMessage, DigestQuery, FillRegion, Status},
};
use model::{
    group::{Member, Role},
    id::ReplicaId,
    sabotage::{Sabotage, is_on},
};

use crate::{
    lock::{Mode, Range},
    turn::{Op, Turn},
};

use super::request::NOWHERE;
use super::{
    Owner, Primary, REPEAT,
    fill::{Fill, Kind, Next, Region, State, Task},
};

/// Failed attempts at regions before the learner is given up.
const FAILURES_MAX: u32 = 200;

impl Primary {
    /// The server may fill more than it did.
    pub fn begin_fills(&mut self, turn: &mut Turn<'_>) {
        self.go_on(turn);
    }

    /// The next failure would take it.
    pub fn has_one_copy(&self) -> bool {
        self.config.in_sync().count() < 2
    }

    pub fn fills_under_way(&self) -> usize {
        self.fills.values().filter(|fill| fill.is_under_way()).count()
    }

    pub(super) fn advance_fills(&mut self, turn: &mut Turn<'_>) {
        let learners: Vec<ReplicaId> = self.fills.keys().copied().collect();
        for learner in learners {
            self.advance_fill(turn, learner);
        }
    }

    fn advance_fill(&mut self, turn: &mut Turn<'_>, learner: ReplicaId) {
        let reachable = self.peers.get(&learner).is_some_and(|p| turn.links.is_up(&p.server));
        let size = self.config.size.get();
        while reachable
            && !self.is_deposed()
            && let Some(fill) = self.fills.get_mut(&learner)
            && fill.state == State::Walking
        {
            if !fill.admitted && !turn.may_fill() {
                return;
            }
            fill.admitted = true;
            let next = fill.next(turn.now, size, turn.timing.fill_window);
            match if is_on(Sabotage::LearnerReadyEarly) { Next::Ready } else { next } {
                Next::Wait => return,
                Next::Ready => {
                    fill.state = State::Ready;
                    fill.reported = None;
                    self.report_fill(turn, learner);
                }
                Next::Begin(kind, range) => self.begin_task(turn, learner, kind, range),
            }
        }
    }

    fn begin_task(&mut self, turn: &mut Turn<'_>, learner: ReplicaId, kind: Kind, range: Range) {
        let token = turn.token();
        let unlocked = is_on(Sabotage::FilledWithoutHold);
        let (lock, granted) = self.locks.take(if unlocked { NOWHERE } else { range }, Mode::Shared);
        self.owners.insert(lock, Owner::Fill { learner, token });
        let (sent, learner_digest, source_digest) = (None, None, None);
        let task = Task { kind, range, lock, sent, learner_digest, source_digest };
        let fill = self.fills.get_mut(&learner).expect("its next task");
        fill.tasks.insert(token, task);
        if granted {
            self.start_task(turn, learner, token);
        }
    }

    /// No change to the range is in flight, and none begins until the task is done.
    pub(super) fn start_task(&mut self, turn: &mut Turn<'_>, learner: ReplicaId, token: u64) {
        let fill = self.fills.get_mut(&learner).expect("a task has a fill");
        let task = fill.tasks.get_mut(&token).expect("the owner of the lock");
        task.sent = Some(turn.now);
        let (kind, range) = (task.kind, task.range);
        match kind {
            Kind::Copy { own } => {
                let source = if own { self.config.primary() } else { self.source_of(learner) };
                let fill = FillRegion {
                    group: self.config.group,
                    replica: learner,
                    epoch: self.config.epoch,
                    token,
                    offset: range.start,
                    length: u32::try_from(range.length()).expect("a region"),
                    source: source.replica,
                    source_server: source.server.clone(),
                    source_address: source.address,
                };
                let server = self.peers.get(&learner).expect("a learner is a peer").server.clone();
                turn.send(&server, DataMessage::FillRegion(fill));
            }
            Kind::Compare | Kind::Verify => {
                let source = self.source_of(learner).replica;
                self.ask_digest(turn, learner, token, range);
                self.ask_digest(turn, source, token, range);
            }
        }
    }

    fn ask_digest(&self, turn: &mut Turn<'_>, replica: ReplicaId, token: u64, range: Range) {
        let (offset, length) = (range.start, range.length());
        let Some(peer) = self.peers.get(&replica) else {
            assert_eq!(replica, self.id, "a source is in sync");
            return turn.request(Op::OwnDigest(token), Request::Digest { replica, offset, length });
        };
        let query = DigestQuery {
            group: self.config.group,
            replica,
            epoch: self.config.epoch,
            token,
            offset,
            length: u32::try_from(length).expect("a chunk"),
        };
        turn.send(&peer.server, DataMessage::QueryDigest(query));
    }

    /// The link to a source is back: it may not have got what it was asked.
    pub(super) fn ask_source_again(&self, turn: &mut Turn<'_>, source: ReplicaId) {
        for (&learner, fill) in &self.fills {
            if self.source_of(learner).replica != source {
                continue;
            }
            for (&token, task) in &fill.tasks {
                let compares = matches!(task.kind, Kind::Compare | Kind::Verify);
                if compares && task.sent.is_some() && task.source_digest.is_none() {
                    self.ask_digest(turn, source, token, task.range);
                }
            }
        }
    }

    fn source_of(&self, learner: ReplicaId) -> &Member {
        match self.config.member(learner).map(|m| m.role) {
            Some(Role::Learner { source }) => {
                self.config.member(source).expect("checked: the source is in sync")
            }
            _ => self.config.primary(),
        }
    }

    pub fn own_digest(
        &mut self,
        turn: &mut Turn<'_>,
        token: u64,
        outcome: Result<Outcome, OpError>,
    ) {
        let digest = match outcome {
            Ok(Outcome::Digest { digest }) => Some(digest),
            _ => None,
        };
        self.digest_received(turn, self.id, token, digest);
        self.go_on(turn);
    }

    /// Learner or source has described a chunk; `None`: it could not.
    pub(super) fn digest_received(
        &mut self,
        turn: &mut Turn<'_>,
        replica: ReplicaId,
        token: u64,
        digest: Option<u64>,
    ) {
        let Some(learner) = self.learner_of(token) else { return };
        let fill = self.fills.get_mut(&learner).expect("found by its task");
        let task = fill.tasks.get_mut(&token).expect("found by it");
        let Some(digest) = digest else {
            return self.fail_fill(turn, learner, format!("{replica} could not be compared"));
        };
        if replica == learner {
            fill.heard = turn.now;
            task.learner_digest = Some(digest);
        } else {
            task.source_digest = Some(digest);
        }
        let (Some(ours), Some(theirs)) = (task.source_digest, task.learner_digest) else { return };
        let (kind, range) = (task.kind, task.range);
        match (kind, ours == theirs || is_on(Sabotage::DifferenceIgnored)) {
            (Kind::Compare, true) => fill.filled.add(range),
            (Kind::Compare, false) => fill.add_regions(range, turn.now),
            (Kind::Verify, true) => {}
            (Kind::Verify, false) => {
                let doubts = fill.doubts.entry(range.start).or_insert(0);
                *doubts += 1;
                if *doubts > 1 {
                    let reason = format!(
                        "differs from its source at {} after it was filled twice",
                        range.start
                    );
                    return self.fail_fill(turn, learner, reason);
                }
                fill.filled.remove(range);
                fill.add_regions(range, turn.now);
                fill.again.push_back(range);
            }
            (Kind::Copy { .. }, _) => return,
        }
        self.end_task(learner, token);
    }

    fn learner_of(&self, token: u64) -> Option<ReplicaId> {
        let mut fills = self.fills.iter();
        fills.find(|(_, fill)| fill.tasks.contains_key(&token)).map(|(&learner, _)| learner)
    }

    /// The learner is done with a region.
    pub(super) fn fill_done(
        &mut self,
        turn: &mut Turn<'_>,
        learner: ReplicaId,
        (token, status, moved): (u64, Status, u64),
    ) {
        let Some(fill) = self.fills.get_mut(&learner) else { return };
        fill.heard = turn.now;
        let Some(task) = fill.tasks.get(&token) else { return };
        let (kind, range) = (task.kind, task.range);
        let Kind::Copy { own } = kind else { return };
        let tried_own = own || self.config.primary().replica == self.source_of(learner).replica;
        let fill = self.fills.get_mut(&learner).expect("looked up above");
        let mut again = |own, wait| {
            fill.failures += 1;
            let not_before = turn.now + wait;
            fill.regions.push_back(Region { range, own, not_before });
        };
        match status {
            Status::Ok => {
                fill.filled.add(range);
                fill.moved = fill.moved.saturating_add(moved);
            }
            // The source has not adopted the configuration yet, or has too much to do.
            Status::NotReady => again(own, super::TICK),
            Status::BadChecksum => again(own, std::time::Duration::ZERO),
            Status::BadBlock if !tried_own => again(true, std::time::Duration::ZERO),
            _ => {
                let reason = format!("filling at {} failed: {status:?}", range.start);
                return self.fail_fill(turn, learner, reason);
            }
        }
        if fill.failures > FAILURES_MAX {
            let reason = format!("{FAILURES_MAX} attempts failed, the last at {}", range.start);
            return self.fail_fill(turn, learner, reason);
        }
        self.end_task(learner, token);
    }

    fn end_task(&mut self, learner: ReplicaId, token: u64) {
        let fill = self.fills.get_mut(&learner).expect("it has a task");
        let task = fill.tasks.remove(&token).expect("ended once");
        self.release(task.lock);
    }

    pub(super) fn drop_tasks(&mut self, learner: ReplicaId) {
        let Some(fill) = self.fills.get_mut(&learner) else { return };
        for task in std::mem::take(&mut fill.tasks).into_values() {
            self.release(task.lock);
        }
    }

    /// Asks again what was asked under an older configuration: members forgot it when they
    /// adopted the newer one. Under new tokens, so that a late answer to the old ones cannot end
    /// a hold while the learner still acts on the new ones.
    pub(super) fn restart_tasks(&mut self, turn: &mut Turn<'_>, learner: ReplicaId) {
        let Some(fill) = self.fills.get_mut(&learner) else { return };
        fill.reported = None;
        let mut restarted = Vec::new();
        for (token, mut task) in std::mem::take(&mut fill.tasks) {
            let was_sent = task.sent.take().is_some();
            let token = if was_sent { turn.token() } else { token };
            (task.learner_digest, task.source_digest) = (None, None);
            self.owners.insert(task.lock, Owner::Fill { learner, token });
            fill.tasks.insert(token, task);
            if was_sent {
                restarted.push(token);
            }
        }
        for token in restarted {
            self.start_task(turn, learner, token);
        }
    }

    /// The learner's link broke: changes go on without it, and it is filled afresh when the link
    /// is back. Not once it counts.
    pub(super) fn reset_fill(&mut self, turn: &mut Turn<'_>, learner: ReplicaId) {
        let walking = |fill: &&Fill| fill.state == State::Walking;
        let Some(fill) = self.fills.get(&learner).filter(walking) else { return };
        let moved = fill.moved;
        self.drop_tasks(learner);
        self.fills.insert(learner, Fill { moved, ..Fill::new(turn.now) });
        self.recount_flights(turn);
    }

    pub(super) fn fail_fill(&mut self, turn: &mut Turn<'_>, learner: ReplicaId, reason: String) {
        let Some(fill) = self.fills.get_mut(&learner) else { return };
        assert!(fill.state != State::Ready, "a learner that counts is not given up");
        fill.state = State::Failed(reason);
        fill.reported = None;
        self.drop_tasks(learner);
        self.recount_flights(turn);
        self.report_fill(turn, learner);
    }

    /// Gives up learners that do not answer, and says again what the manager must hear.
    pub(super) fn watch_fills(&mut self, turn: &mut Turn<'_>) {
        let learners: Vec<ReplicaId> = self.fills.keys().copied().collect();
        for learner in learners {
            if self.is_silent(turn, learner)
                && self.fills.get(&learner).is_some_and(|f| f.state == State::Walking)
            {
                self.fail_fill(turn, learner, "it does not answer".to_owned());
            }
            self.report_fill(turn, learner);
        }
    }

    fn is_silent(&self, turn: &Turn<'_>, learner: ReplicaId) -> bool {
        let Some(fill) = self.fills.get(&learner) else { return false };
        let asked = fill.tasks.values().filter_map(|task| task.sent).min();
        let asked = asked.map(|at| at.max(fill.heard));
        [self.silent_since(turn, learner), asked]
            .into_iter()
            .flatten()
            .any(|since| turn.now.since(since) >= turn.timing.learner_silence)
    }

    fn report_fill(&mut self, turn: &mut Turn<'_>, learner: ReplicaId) {
        let silent = self.is_silent(turn, learner);
        let (group, epoch) = (self.config.group, self.config.epoch);
        let Some(fill) = self.fills.get_mut(&learner) else { return };
        if fill.reported.is_some_and(|at| turn.now.since(at) < REPEAT) {
            return;
        }
        let message = match &fill.state {
            State::Walking => return,
            State::Ready if silent => {
                let reason = "it does not answer".to_owned();
                ToManager::LearnerFailed { group, epoch, learner, reason }
            }
            State::Ready => {
                let bytes_moved = fill.bytes_moved();
                ToManager::LearnerReady { group, epoch, learner, bytes_moved }
            }
            State::Failed(reason) => {
                let reason = reason.clone();
                ToManager::LearnerFailed { group, epoch, learner, reason }
            }
        };
        fill.reported = Some(turn.now);
        turn.tell(message);
    }
}
