//! From where replicas are to where they should be: the next step, derived afresh each time.
//!
//! Decides: what follows from `Group.desired`, `Group.config` and what servers report:
//! replicas made and removed, learners begun, the primary handed over, old members dropped.
//! Does not: choose what is desired when a customer asks for it (`modification`), or react to
//! failures (`membership`).
//! Invariants: one learner at a time; a member leaves only when the desired set can do without
//! it; a replica is removed only when the primary acts under a configuration without it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use format::record::{Group, Placed};
use model::{
    group::Role,
    id::{DriveId, DriveName, ReplicaId, ServerId},
    sabotage::{Sabotage, is_on},
    state::Duty,
    time::Instant,
    units::{Gib, Iops, MibPerSec, Rate},
};

use crate::{
    case::{Case, Decision},
    duty, fullness,
    ledger::{Claim, Ledger},
    live::{GroupLive, HandOver, Live, Standing, Stint},
    machine::Timing,
    modification,
    placement::{Fleet, Refusal, Stored, Wish, ZoneRule, choose},
    random::Random,
    slow,
    state::State,
};

/// A primary and one mirror.
pub const REPLICAS_WANTED: usize = 2;
/// A desired replica that could not be filled so often is given up for another.
const FILL_FAILURES_MAX: u32 = 6;
/// A group whose move failed is left alone for so long.
const MOVE_PAUSE: Duration = Duration::from_secs(60);
/// A modification for whose replica no room was found so often has failed: half a minute.
const PLACEMENT_FAILURES_MAX: u32 = 6;

/// The rules that need no configuration: what exists, and what does no more.
pub fn note_existence(case: &Case<'_>) -> Option<Decision> {
    let exists = |p: &&Placed| {
        let facts = case.live.servers.get(&p.drive.server);
        facts.is_some_and(|s| s.replicas.contains_key(&p.replica))
    };
    let made: BTreeSet<_> = case
        .group
        .replicas
        .values()
        .filter(|p| !p.created && !is_surplus(case, p.replica))
        .filter(exists)
        .map(|p| p.replica)
        .collect();
    let gone: BTreeSet<_> = case
        .group
        .replicas
        .keys()
        .copied()
        .filter(|r| is_surplus(case, *r) && case.live.removed.contains(r))
        .collect();
    // Nobody else may have the bytes of a drive that is out of service; those of the drives beside it,
    // and what is promised of its rate, are free.
    let unclaimed: BTreeSet<_> = case
        .group
        .replicas
        .values()
        .filter(|p| is_surplus(case, p.replica) && p.size != Gib::new(0))
        .filter(|p| case.live.lies_on_failed(p))
        .map(|p| p.replica)
        .collect();
    if made.is_empty() && gone.is_empty() && unclaimed.is_empty() {
        return None;
    }
    let mut group = case.group.clone();
    group.replicas.retain(|r, _| !gone.contains(r));
    group.replicas.values_mut().filter(|p| unclaimed.contains(&p.replica)).for_each(unclaim);
    for placed in group.replicas.values_mut().filter(|p| made.contains(&p.replica)) {
        placed.created = true;
    }
    let mut decision = Decision::of(vec![case.put_group(group)]);
    if !(made.is_empty() && gone.is_empty()) {
        decision.writes.extend(step_of(case, !gone.is_empty()).and_then(|s| case.step(s)));
    }
    Some(decision)
}

/// What replicas that came or went mean for the modification: nothing when it is further on.
fn step_of(case: &Case<'_>, freed: bool) -> Option<&'static str> {
    let step = case.modification?.step.as_str();
    if freed {
        let filling = case.config().learners().next().is_some();
        return (!filling).then_some("free");
    }
    matches!(step, "reserve" | "configure").then_some("create")
}

/// Neither desired nor a member.
pub fn is_surplus(case: &Case<'_>, replica: ReplicaId) -> bool {
    !case.is_desired(replica) && case.config().member(replica).is_none()
}

/// The first of the rules that has something to decide, for a group whose primary is well.
pub fn decide(case: &Case<'_>, facts: &mut GroupLive, random: &mut Random) -> Option<Decision> {
    hand_over(case, facts)
        .or_else(|| refresh(case))
        .or_else(|| replace_lost(case, facts, random))
        .or_else(|| slow::relieve(case, facts, random))
        .or_else(|| begin_learner(case, facts))
        .or_else(|| drop_undesired(case, facts))
}

/// Size, rate, media, attach generation or an address changed.
fn refresh(case: &Case<'_>) -> Option<Decision> {
    if case.is_current() || !case.primary_runs() {
        return None;
    }
    let reserved = case.modification.is_some_and(|m| m.step == "reserve");
    Some(case.store(&case.roles(), reserved.then_some("configure")))
}

/// The replica that should be primary in place of one that is not desired.
fn hand_over_target(case: &Case<'_>, facts: &GroupLive) -> Option<ReplicaId> {
    let primary = case.config().primary().replica;
    let learning = case.config().learners().next().is_some();
    let given_up = facts.relieved.leaving.contains_key(&primary);
    if case.is_desired(primary) || learning || !case.adopted(facts) || given_up {
        return None;
    }
    let ready = |p: &&Placed| case.config().is_in_sync(p.replica) && case.is_up(p.replica);
    case.group.desired.iter().find(ready).map(|p| p.replica)
}

fn hand_over(case: &Case<'_>, facts: &mut GroupLive) -> Option<Decision> {
    let epoch = case.config().epoch;
    let target = hand_over_target(case, facts);
    if let Some(h) = facts.hand_over {
        let stale = h.epoch != epoch || Some(h.target) != target;
        // Past this, the old primary may be serving again before the switch reaches it.
        let stopped = |at| case.now.since(at) >= case.timing.hand_over;
        let late =
            h.handed_over.is_some_and(stopped) || case.now.since(h.started) >= case.timing.drain;
        let late = late && !is_on(Sabotage::HandOverWithoutEnd);
        if stale || late {
            facts.hand_over = None;
            if late {
                facts.hand_over_pause.failed(case.now);
            }
            return None;
        }
        let promised = |r: ReplicaId| case.live.promised(r) >= case.next_epoch();
        if h.handed_over.is_some() && who_must_promise(case, h.target).all(promised) {
            facts.hand_over = None;
            facts.hand_over_pause.reset();
            return Some(case.store(&after_hand_over(case, h.target), Some("switch")));
        }
        return None;
    }
    let target = target?;
    if facts.hand_over_pause.over(case.now) {
        let started = case.now;
        facts.hand_over = Some(HandOver { epoch, target, started, handed_over: None });
    }
    None
}

/// Whoever stays in the set beside the former primary: it goes on after a while if it hears nothing, and
/// may then still reach a member that the new primary does not reach yet. Who has promised takes nothing
/// of it. (What it then holds alone makes itself stale.)
pub fn who_must_promise(case: &Case<'_>, target: ReplicaId) -> impl Iterator<Item = ReplicaId> {
    let former = case.config().primary().replica;
    let stay = after_hand_over(case, target).into_iter().map(|(replica, _)| replica);
    stay.filter(move |replica| *replica != former)
}

/// The target first, then the others that stay. Of those not desired, only as many stay as the
/// wanted number needs: first those on servers of their own.
fn after_hand_over(case: &Case<'_>, target: ReplicaId) -> Vec<(ReplicaId, Role)> {
    let wanted = case.group.desired.len().max(REPLICAS_WANTED);
    let mut others: Vec<_> =
        case.config().in_sync().map(|m| m.replica).filter(|r| *r != target).collect();
    let target_server = case.server_of(target);
    others.sort_by_key(|r| (!case.is_desired(*r), case.server_of(*r) == target_server));
    let undesired = |r: &ReplicaId| !case.is_desired(*r);
    while others.len() + 1 > wanted && others.last().is_some_and(undesired) {
        others.pop();
    }
    let mirrors = others.into_iter().map(|r| (r, Role::Mirror));
    std::iter::once((target, Role::Primary)).chain(mirrors).collect()
}

/// A desired replica that exists and is not in the set begins to learn.
fn begin_learner(case: &Case<'_>, facts: &mut GroupLive) -> Option<Decision> {
    let config = case.config();
    let busy = config.learners().next().is_some() || facts.hand_over.is_some();
    if busy || !case.adopted(facts) || !facts.learner_pause.over(case.now) {
        return None;
    }
    // A hand-over that is due comes first, unless it keeps failing.
    if hand_over_target(case, facts).is_some() && facts.hand_over_pause.over(case.now) {
        return None;
    }
    let missing = |p: &&Placed| config.member(p.replica).is_none();
    let learner = case
        .group
        .desired
        .iter()
        .filter(missing)
        .find(|p| p.created && case.is_up(p.replica))?
        .replica;
    let mirror = config.mirrors().map(|m| m.replica).find(|r| case.is_up(*r));
    let source = mirror.unwrap_or(config.primary().replica);
    let mut roles = case.roles();
    roles.push((learner, Role::Learner { source }));
    facts.stint = Some(Stint { learner, source, since: case.next_epoch() });
    facts.moved_before = case.modification.map(|m| (learner, m.bytes_moved)).or(Some((learner, 0)));
    facts.placement_pause.reset();
    facts.no_place = None;
    facts.ready = None;
    facts.failed = None;
    facts.fill = None;
    Some(case.store(&roles, Some("fill")))
}

/// Everything desired is in sync and one of it is primary: the others leave the set.
fn drop_undesired(case: &Case<'_>, facts: &GroupLive) -> Option<Decision> {
    let config = case.config();
    let all_in_sync = case.group.desired.iter().all(|p| config.is_in_sync(p.replica));
    let undesired = config.members.iter().any(|m| !case.is_desired(m.replica));
    if !all_in_sync || !undesired || !case.is_desired(config.primary().replica) {
        return None;
    }
    if !case.adopted(facts) {
        return None;
    }
    let mut roles = case.roles();
    roles.retain(|(replica, _)| case.is_desired(*replica));
    Some(case.store(&roles, Some("drop")))
}

/// Desired replicas that are not in sync and will not come back soon, were refused, or could
/// not be filled, are replaced by new ones elsewhere.
fn replace_lost(case: &Case<'_>, facts: &mut GroupLive, random: &mut Random) -> Option<Decision> {
    if !facts.placement_pause.over(case.now) || !case.primary_runs() {
        return None;
    }
    let unfillable = facts.learner_pause.failures() >= FILL_FAILURES_MAX;
    let moves = case.modification.is_some_and(|m| m.replicas_to_fill > 0);
    if unfillable && moves && facts.fills_given_up > 0 {
        facts.fills_given_up = 0;
        facts.learner_pause.reset();
        let reason = "A new replica could not be filled, nor another in its place: a block that no \
                      replica can read, or a server that does not answer. The volume is as it was \
                      before. Look at the servers, and retry the modification.";
        return modification::fail(case, reason);
    }
    let out = |p: &&Placed| case.config().member(p.replica).is_none();
    let lost = case
        .group
        .desired
        .iter()
        .filter(out)
        .find(|p| is_lost(case, p.replica) || (unfillable && p.created))
        .map(|p| p.replica);
    if lost.is_none() && case.group.desired.len() >= REPLICAS_WANTED {
        return None;
    }
    if let Some(lost) = lost
        && let Some(decision) = call_off(case, facts, lost)
    {
        return Some(decision);
    }
    let mut fleet = fleet(case.state, case.live, case.now, case.timing);
    fleet
        .barred
        .extend(lost.filter(|_| unfillable).into_iter().flat_map(|r| case.placed(r).drives()));
    fleet.barred.extend(slow::barred(facts, case.now));
    let found = replaced(case, &fleet, lost, ZoneRule::WhereZoneIsFull, random)
        .or_else(|refusal| in_its_place(case, &mut fleet, lost, random).ok_or(refusal))
        .or_else(|refusal| slow::taken_back(case, facts, lost).ok_or(refusal));
    facts.no_place = found.as_ref().err().map(ToString::to_string);
    if let Ok(group) = found {
        facts.learner_pause.reset();
        facts.fills_given_up += u32::from(unfillable);
        return Some(Decision { writes: vec![case.put_group(group)], placed: true });
    }
    if moves && facts.placement_pause.failures() >= PLACEMENT_FAILURES_MAX {
        facts.placement_pause.reset();
        let reason = "A new replica could not be made, and no other drive has room for it. \
                      Retry the modification when there is capacity.";
        return modification::fail(case, reason);
    }
    facts.placement_pause.failed(case.now);
    None
}

/// What a replica claims that its server does not hold any more, or may not use, is free for the one in
/// its place: where everything is promised, no other has room for it. The old one stays in the ledger,
/// without a claim, until its server has heard that it is to go.
fn in_its_place(
    case: &Case<'_>,
    fleet: &mut Fleet,
    lost: Option<ReplicaId>,
    random: &mut Random,
) -> Option<Group> {
    let lost = lost.filter(|r| case.standing(*r) == Standing::Missing)?;
    let old = case.placed(lost);
    let claim = Claim { size: old.size, rate: old.rate };
    fleet.ledger.release(old.drives(), old.stripes(), claim);
    let mut group = replaced(case, fleet, Some(lost), ZoneRule::WhereZoneIsFull, random).ok()?;
    unclaim(group.replicas.get_mut(&lost).expect("it stays until it is removed"));
    Some(group)
}

/// It stays in the ledger only so that it is removed in the end.
fn unclaim(placed: &mut Placed) {
    placed.size = Gib::new(0);
    placed.rate = Rate { iops: Iops::new(0), throughput: MibPerSec::new(0) };
}

/// A move that nobody asked for, only a full drive, and that cannot be carried out: the replica
/// that was to leave is in sync still, and stays.
fn call_off(case: &Case<'_>, facts: &mut GroupLive, lost: ReplicaId) -> Option<Decision> {
    let others: Vec<_> = case.group.desired.iter().filter(|p| p.replica != lost).collect();
    let apart = |r: ReplicaId| others.iter().all(|p| p.drive.server != *case.server_of(r));
    let stays = case
        .config()
        .in_sync()
        .map(|m| m.replica)
        .find(|r| !case.is_desired(*r) && case.is_up(*r) && apart(*r))
        .filter(|_| case.modification.is_none())?;
    let mut group = case.group.clone();
    let slot = group.desired.iter_mut().find(|p| p.replica == lost).expect("it is desired");
    *slot = case.placed(stays).clone();
    facts.learner_pause.reset();
    facts.move_pause.failed_for(case.now, MOVE_PAUSE);
    Some(Decision::of(vec![case.put_group(group)]))
}

pub fn is_lost(case: &Case<'_>, replica: ReplicaId) -> bool {
    match case.standing(replica) {
        Standing::Missing | Standing::DriveFailed => true,
        // One that is drained is not waited for.
        Standing::Down => {
            away_for(case, replica) >= case.remirror_delay || duty::drains(case, replica)
        }
        Standing::Up | Standing::Unknown => case.live.refused.contains_key(&replica),
    }
}

fn away_for(case: &Case<'_>, replica: ReplicaId) -> Duration {
    case.live.away_for(case.server_of(replica), case.now)
}

/// The group with another replica in the place of `lost`, or added when none is lost, reserved.
pub fn replaced(
    case: &Case<'_>,
    fleet: &Fleet,
    lost: Option<ReplicaId>,
    zone_rule: ZoneRule,
    random: &mut Random,
) -> Result<Group, Refusal> {
    let target = case.target();
    let others = case.group.desired.iter().map(|p| p.replica).filter(|r| Some(*r) != lost);
    let excluded: BTreeSet<ServerId> = others.map(|r| case.server_of(r).clone()).collect();
    let wish = Wish {
        media: target.volume_type.media(),
        zone: &target.zone,
        zone_rule,
        claim: Claim { size: target.size, rate: target.rate },
        stripes: target.stripes,
        stored: case.live.stored(case.config().group),
        excluded: &excluded,
        preferred: &BTreeSet::new(),
    };
    let drives = choose(fleet, &wish)?;
    let replica = ReplicaId::from_random(random.wide());
    let placed = target.placed(replica, &drives);
    let mut group = case.group.clone();
    match group.desired.iter_mut().find(|p| Some(p.replica) == lost) {
        Some(slot) => *slot = placed.clone(),
        None => group.desired.push(placed.clone()),
    }
    group.replicas.insert(replica, placed);
    Ok(group)
}

/// What placement may choose from, now. Drives that failed or refused are out of the question.
pub fn fleet(state: &State, live: &Live, now: Instant, timing: &Timing) -> Fleet {
    let mut barred: BTreeSet<DriveId> = live.refused_by.keys().cloned().collect();
    barred.extend(duty::drives(state, Duty::Draining));
    let mut stored = BTreeMap::new();
    for (server, facts) in &live.servers {
        let id = |drive: &DriveName| DriveId { server: server.clone(), drive: drive.clone() };
        barred.extend(facts.failed_drives.keys().map(id));
        for (drive, status) in facts.drives.iter().filter(|(_, s)| s.usage.slots_total > 0) {
            let (used, total) = (fullness::used(&status.usage), fullness::total(&status.usage));
            stored.insert(id(drive), Stored { used, total });
        }
    }
    // What is being filled counts whole: how much of it is there already is not known.
    for group in state.groups.values() {
        let filled = |p: &&Placed| !group.config.is_in_sync(p.replica);
        for placed in group.desired.iter().filter(filled) {
            let share = live.stored(group.config.group).div_ceil(placed.stripes());
            for drive in placed.drives() {
                if let Some(stored) = stored.get_mut(&drive) {
                    stored.used = stored.used.saturating_add(share);
                }
            }
        }
    }
    barred.extend(live.groups.values().flat_map(|facts| slow::barred(facts, now)));
    let cordoned = duty::drives(state, Duty::Cordoned).collect();
    let up = live.servers_up(now, timing);
    Fleet { ledger: Ledger::of(state), up, barred, cordoned, stored }
}
