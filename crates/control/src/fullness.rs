//! Drives that run full of data: where nothing new goes, and what is moved away.
//!
//! A thin volume stores what was written, not what was promised, so a drive that offers more than
//! its slots hold (a server's `capacity_gib` says what it offers) can run full. From
//! [`DRIVE_PLACEMENT_PERCENT`] on, no replica is placed on a drive. At [`DRIVE_FULL_PERCENT`] writes
//! that need new space wait at their primaries; the manager then moves replicas to other drives, one
//! at a time per drive, until the drive is below [`DRIVE_RELIEVED_PERCENT`].
//!
//! Decides: which replica leaves a full drive, and for where.
//! Does not: carry the move out: it changes what is desired, and `replacing` follows.
//! Invariants: only a replica of a group that is whole and at rest is moved, so the group has all
//! its replicas in sync at every moment of the move; the target stays below the mark for
//! placement, so nothing is moved away from it in turn; nothing is remembered that a restart would
//! miss: a drive between the marks is merely left as it is.

use std::collections::BTreeMap;

use format::{
    ctl::{DriveState, DriveUsage},
    record::Group,
};
use model::{
    id::{DriveId, ReplicaId},
    limits::{DRIVE_FULL_PERCENT, DRIVE_PLACEMENT_PERCENT, DRIVE_RELIEVED_PERCENT},
    state::VolumeState,
    time::Instant,
};

use crate::{
    case::{Case, Decision},
    live::Live,
    machine::Timing,
    placement::{Fleet, ZoneRule},
    random::Random,
    replacing,
    state::State,
};

/// After a replica has gone, until the drive's new figures must have come.
const SETTLING: std::time::Duration = std::time::Duration::from_secs(3);
/// Replicas for which a place is looked for, the best first.
const TRIED_MAX: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fullness {
    Room,
    /// Nothing new is placed there.
    NearlyFull,
    /// Replicas are moved away.
    Full,
}

pub fn total(usage: &DriveUsage) -> u64 {
    usage.slots_total.saturating_mul(usage.slot_bytes)
}

pub fn used(usage: &DriveUsage) -> u64 {
    usage.slots_used.saturating_mul(usage.slot_bytes)
}

pub fn of(usage: &DriveUsage) -> Fullness {
    // Writes may wait a little before the mark, where slots are still being freed.
    let waits = usage.waiting_for_space > 0 && reaches(usage, DRIVE_RELIEVED_PERCENT);
    if usage.slots_total == 0 {
        Fullness::Room
    } else if reaches(usage, DRIVE_FULL_PERCENT) || waits {
        Fullness::Full
    } else if reaches(usage, DRIVE_PLACEMENT_PERCENT) {
        Fullness::NearlyFull
    } else {
        Fullness::Room
    }
}

fn reaches(usage: &DriveUsage, percent: u64) -> bool {
    share_reaches(used(usage), total(usage), percent)
}

pub fn share_reaches(used: u64, total: u64, percent: u64) -> bool {
    u128::from(used) * 100 >= u128::from(total) * u128::from(percent)
}

/// The drives that are being relieved, as far as this process knows.
#[derive(Debug, Default)]
pub struct Relief {
    drives: BTreeMap<DriveId, Relieving>,
}

#[derive(Debug, Default)]
struct Relieving {
    /// When a replica last went.
    freed: Option<Instant>,
    /// Why nothing can be moved away.
    stuck: Option<String>,
}

impl Relief {
    pub fn stuck(&self, drive: &DriveId) -> Option<&str> {
        self.drives.get(drive)?.stuck.as_deref()
    }

    pub fn freed(&mut self, drive: &DriveId, now: Instant) {
        if let Some(relieving) = self.drives.get_mut(drive) {
            relieving.freed = Some(now);
        }
    }

    /// True when it was not stuck before.
    pub fn set_stuck(&mut self, drive: &DriveId, reason: String) -> bool {
        let relieving = self.drives.entry(drive.clone()).or_default();
        relieving.stuck.replace(reason).is_none()
    }

    pub fn set_moving(&mut self, drive: &DriveId) {
        self.drives.entry(drive.clone()).or_default().stuck = None;
    }
}

/// Which drives begin and end to be relieved, by what servers last said. Returns those from which
/// another replica may be moved now.
pub fn observe(state: &State, live: &mut Live, now: Instant, timing: &Timing) -> Vec<DriveId> {
    let up = live.servers_up(now, timing);
    let mut relief = std::mem::take(&mut live.relief);
    relief
        .drives
        .retain(|id, _| usage(live, id).is_some_and(|u| reaches(u, DRIVE_RELIEVED_PERCENT)));
    for server in up {
        for (drive, status) in &live.servers[&server].drives {
            if status.state == DriveState::Serving && of(&status.usage) == Fullness::Full {
                let id = DriveId { server: server.clone(), drive: drive.clone() };
                relief.drives.entry(id).or_default();
            }
        }
    }
    let settled = |r: &Relieving| r.freed.is_none_or(|at| now.since(at) >= SETTLING);
    let mut due: Vec<_> =
        relief.drives.iter().filter(|(_, r)| settled(r)).map(|(id, _)| id.clone()).collect();
    if !due.is_empty() {
        let leaving = |id: &DriveId| state.groups.values().any(|g| is_leaving(state, g, id));
        due.retain(|id| !leaving(id));
    }
    live.relief = relief;
    due
}

fn usage<'a>(live: &'a Live, drive: &DriveId) -> Option<&'a DriveUsage> {
    live.servers.get(&drive.server)?.drives.get(&drive.drive).map(|s| &s.usage)
}

/// A replica of the group is on the drive and will go.
fn is_leaving(state: &State, group: &Group, drive: &DriveId) -> bool {
    let kept = state
        .volumes
        .get(&group.config.volume)
        .is_some_and(|v| !matches!(v.state, VolumeState::Deleting | VolumeState::Deleted));
    let desired = |replica| group.desired.iter().any(|p| p.replica == replica);
    let mut here = group.replicas.values().filter(|p| p.lies_on(drive));
    here.any(|p| !kept || !desired(p.replica))
}

/// One that could be moved.
struct Candidate<'a> {
    case: Case<'a>,
    replica: ReplicaId,
    /// On this drive.
    bytes: u64,
}

/// A move away from the drive, or why there is none.
pub fn relieve<'a>(
    cases: impl Iterator<Item = Case<'a>>,
    fleet: &Fleet,
    drive: &DriveId,
    random: &mut Random,
) -> Result<Decision, String> {
    let mut candidates: Vec<_> = cases.filter_map(|case| candidate(case, drive)).collect();
    let Some(Candidate { case, .. }) = candidates.first() else {
        return Err("no volume on it is whole and at rest".to_owned());
    };
    let usage = usage(case.live, drive).copied().unwrap_or_default();
    let most = u128::from(total(&usage)) * u128::from(DRIVE_RELIEVED_PERCENT) / 100;
    let needed = used(&usage).saturating_sub(u64::try_from(most).expect("less than the total"));
    // The least that is enough, else the most there is; of equals, a mirror.
    candidates.sort_by_key(|c| {
        let enough = c.bytes > needed;
        let cost = if enough { c.bytes } else { u64::MAX - c.bytes };
        let is_primary = c.case.config().primary().replica == c.replica;
        (!enough, cost, is_primary, c.replica)
    });
    let mut refusal = String::new();
    for Candidate { case, replica, .. } in candidates.into_iter().take(TRIED_MAX) {
        match replacing::replaced(&case, fleet, Some(replica), zone_rule(&case, replica), random) {
            Ok(group) => {
                return Ok(Decision { writes: vec![case.put_group(group)], placed: true });
            }
            Err(error) => refusal = format!("{}: {error}", case.volume.volume),
        }
    }
    Err(format!("no drive takes any of its replicas; the last tried was of {refusal}"))
}

/// Into another zone only as long as a replica stays in the volume's own.
pub fn zone_rule(case: &Case<'_>, leaving: ReplicaId) -> ZoneRule {
    let in_zone =
        |server| case.state.servers.get(server).is_some_and(|s| s.zone == case.volume.zone);
    let mut others = case.group.desired.iter().filter(|p| p.replica != leaving);
    if others.any(|p| in_zone(&p.drive.server)) {
        ZoneRule::WhereZoneIsFull
    } else {
        ZoneRule::Strict
    }
}

fn candidate<'a>(case: Case<'a>, drive: &DriveId) -> Option<Candidate<'a>> {
    let facts = case.live.groups.get(&case.config().group)?;
    let placed = case.group.desired.iter().find(|p| p.lies_on(drive))?;
    let bytes = facts.allocated.get().div_ceil(placed.stripes());
    let movable = bytes > 0 && case.is_at_rest(facts) && facts.move_pause.over(case.now);
    movable.then_some(Candidate { replica: placed.replica, bytes, case })
}
