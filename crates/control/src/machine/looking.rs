//! Looking again at groups: which, when, and what goes out because of it.
//!
//! Decides: how decisions of several groups share a commit.
//! Does not: know the rules; `reconcile` asks them.
//! Invariant: a group that waits for an answer is looked at again within [`LOOK`]; one that is not
//! whole, within the time after which a message is sent again, because time alone may change what
//! is to be done; one that is whole and at rest, when a fact about it changes, and within
//! [`ROUND_PASSES`] passes in any case. So an idle fleet costs next to nothing.

use std::ops::Bound;

use format::record::Group;
use model::{
    id::GroupId,
    state::Duty,
    time::{Instant, WallTime},
};

use super::{Action, LOOK, Manager};
use crate::{
    case::{self, Case, Decision},
    creation, duty, fullness, links, membership,
    reconcile::{self, Repeat, Telling},
    replacing,
    state::Write,
};

/// Writes of one commit, above which the next group waits for the next commit.
const BATCH_WRITES_MAX: usize = 256;
/// Groups at rest are looked at in so many parts, one in each pass.
const ROUND_PASSES: usize = 60;
/// Passes from one clearing out of old facts to the next.
const CLEAR_PASSES: u64 = 10;

impl Manager {
    /// What time alone changes: who is silent, what is to be sent again.
    pub(super) fn look(&mut self, now: Instant, wall: WallTime) {
        if now.since(self.looked) < LOOK {
            return;
        }
        self.looked = now;
        self.live.dirty.groups.extend(std::mem::take(&mut self.busy));
        let up = self.live.servers_up(now, &self.params.timing);
        if up != self.servers_up {
            self.servers_up = up;
            self.live.dirty.all = true;
        }
        if now.since(self.passed) < self.params.timing.resend {
            return;
        }
        self.passed = now;
        self.passes += 1;
        self.live.dirty.groups.extend(std::mem::take(&mut self.unsettled));
        self.mark_next_part();
        self.leftovers = true;
        self.sweep = true;
        if self.passes.is_multiple_of(CLEAR_PASSES) {
            self.live.retain(now, &self.state);
        }
        self.full_drives = fullness::observe(&self.state, &mut self.live, now, &self.params.timing);
        self.draining = duty::observe(&self.state, &mut self.live, wall);
    }

    /// The next part of all groups, so that each is looked at once in a round.
    fn mark_next_part(&mut self) {
        let groups = &self.state.groups;
        let count = groups.len().div_ceil(ROUND_PASSES);
        let after = (Bound::Excluded(self.round), Bound::Unbounded);
        let part: Vec<GroupId> = groups.range(after).take(count).map(|(id, _)| *id).collect();
        self.round = match part.last() {
            Some(last) if part.len() == count => *last,
            _ => GroupId::from_raw(0),
        };
        self.live.dirty.groups.extend(part);
    }

    /// Moves a replica away from each drive that is full.
    fn relieve(&mut self, now: Instant, wall: WallTime, out: &mut Vec<Action>) -> Vec<Write> {
        while let Some(drive) = self.full_drives.pop() {
            let mut random = self.random.fork();
            let mut fleet = replacing::fleet(&self.state, &self.live, now, &self.params.timing);
            fleet.barred.insert(drive.clone());
            let groups = self.state.groups.values();
            let here = groups.filter(|g| g.desired.iter().any(|p| p.lies_on(&drive)));
            let cases = here.filter_map(|group| self.case(now, wall, group));
            match fullness::relieve(cases, &fleet, &drive, &mut random) {
                Ok(decision) => {
                    self.live.relief.set_moving(&drive);
                    let text = format!("{drive} is full; a replica is moved away from it");
                    out.push(Action::Report { text });
                    return decision.writes;
                }
                Err(reason) => {
                    let text = format!("{drive} is full, and nothing can be moved away: {reason}");
                    if self.live.relief.set_stuck(&drive, reason) {
                        out.push(Action::Report { text });
                    }
                }
            }
        }
        Vec::new()
    }

    /// Moves a replica away from a server that is drained.
    fn drain(&mut self, now: Instant, wall: WallTime, out: &mut Vec<Action>) -> Vec<Write> {
        while let Some(server) = self.draining.pop() {
            if self.state.servers.get(&server).is_none_or(|s| s.duty != Duty::Draining) {
                continue;
            }
            let mut random = self.random.fork();
            let fleet = replacing::fleet(&self.state, &self.live, now, &self.params.timing);
            // From anywhere, so that those for which there is no place do not hold up the others.
            let groups = &self.state.groups;
            let count = u64::try_from(groups.len()).expect("they fit memory").max(1);
            let first = usize::try_from(random.bits() % count).expect("below their number");
            let turned = groups.values().skip(first).chain(groups.values().take(first));
            let cases = turned.filter_map(|g| self.case(now, wall, g));
            match duty::drain(cases, &fleet, &server, &mut random) {
                Ok(decision) => {
                    self.live.drains.set_stuck(&server, None);
                    return decision.writes;
                }
                Err(reason) => {
                    let text = format!("{server} is drained, and waits: {reason}");
                    if self.live.drains.set_stuck(&server, Some(reason)) {
                        out.push(Action::Report { text });
                    }
                    self.draining.retain(|other| *other != server);
                }
            }
        }
        Vec::new()
    }

    /// The group as rules see it that move what is at rest.
    fn case<'a>(&'a self, now: Instant, wall: WallTime, group: &'a Group) -> Option<Case<'a>> {
        let volume = self.state.volumes.get(&group.config.volume)?;
        Some(Case {
            state: &self.state,
            live: &self.live,
            timing: &self.params.timing,
            remirror_delay: self.params.remirror_delay,
            now,
            wall,
            group,
            volume,
            modification: None,
        })
    }

    /// Looks at every group that may need it. True when that led to a commit.
    pub(super) fn reconcile(
        &mut self,
        now: Instant,
        wall: WallTime,
        out: &mut Vec<Action>,
    ) -> bool {
        let mut writes = links::registrations(&mut self.live, &self.state, wall);
        if writes.is_empty() {
            writes = self.reconcile_groups(now, wall, out);
        }
        if writes.is_empty() {
            writes = self.relieve(now, wall, out);
        }
        if writes.is_empty() {
            writes = self.drain(now, wall, out);
        }
        if writes.is_empty() && std::mem::take(&mut self.sweep) {
            writes = creation::expired_tokens(&self.state, wall);
        }
        if writes.is_empty() {
            return false;
        }
        self.commit(writes, None, out);
        true
    }

    fn reconcile_groups(
        &mut self,
        now: Instant,
        wall: WallTime,
        out: &mut Vec<Action>,
    ) -> Vec<Write> {
        let mut dirty = std::mem::take(&mut self.live.dirty.groups);
        if std::mem::take(&mut self.live.dirty.all) {
            dirty.extend(self.state.groups.keys().copied());
            self.leftovers = true;
        }
        if std::mem::take(&mut self.leftovers) {
            let leftovers = reconcile::tell_leftovers(&self.state, &self.live);
            self.send(now, leftovers, out);
        }
        let mut writes = Vec::new();
        let mut full = false;
        while let Some(group) = dirty.pop_first() {
            if full || writes.len() >= BATCH_WRITES_MAX {
                dirty.insert(group);
                break;
            }
            let decision = self.reconcile_group(now, wall, group, out);
            full |= decision.placed;
            writes.extend(decision.writes);
        }
        self.live.dirty.groups.extend(dirty);
        writes
    }

    /// Decides the next step of one group, or, when there is none, tells everybody concerned
    /// what they should know.
    fn reconcile_group(
        &mut self,
        now: Instant,
        wall: WallTime,
        id: GroupId,
        out: &mut Vec<Action>,
    ) -> Decision {
        let Some(group) = self.state.groups.get(&id) else { return Decision::default() };
        let Some(volume) = self.state.volumes.get(&group.config.volume) else {
            return self.reconcile_orphan(now, id, out);
        };
        let modification = case::running(&self.state, volume);
        let mut facts = self.live.groups.remove(&id).unwrap_or_default();
        let case = Case {
            state: &self.state,
            live: &self.live,
            timing: &self.params.timing,
            remirror_delay: self.params.remirror_delay,
            now,
            wall,
            group,
            volume,
            modification: modification.as_ref(),
        };
        let decision = reconcile::decide(&case, &mut facts, &mut self.random);
        let tellings = if decision.is_none() { reconcile::tell(&case, &facts) } else { Vec::new() };
        let settled = decision.is_none()
            && modification.is_none()
            && tellings.iter().all(|t| t.repeat == Repeat::OncePerLink);
        if !settled {
            self.busy.insert(id);
        } else if !case.is_at_rest(&facts) || membership::is_suspected(&case, &facts) {
            self.unsettled.insert(id);
        }
        self.live.groups.insert(id, facts);
        self.send(now, tellings, out);
        decision.unwrap_or_default()
    }

    /// A group whose volume is deleted, but for servers that were away.
    fn reconcile_orphan(&mut self, now: Instant, id: GroupId, out: &mut Vec<Action>) -> Decision {
        let group = &self.state.groups[&id];
        if let Some(decision) = creation::freed(group, &self.live.removed) {
            return decision;
        }
        let tellings = reconcile::tell_removals(&self.live, group, group.replicas.keys().copied());
        self.unsettled.insert(id);
        self.send(now, tellings, out);
        Decision::default()
    }

    /// Sends what is not known to have been sent lately to whoever has a link.
    fn send(&mut self, now: Instant, tellings: Vec<Telling>, out: &mut Vec<Action>) {
        for telling in tellings {
            let Some(link) = self.live.link_of(&telling.to) else { continue };
            if self.live.due(link, &telling, now, self.params.timing.resend) {
                out.push(Action::Send { link, message: telling.message });
            }
        }
    }
}
