//! ModifyVolume: one request for any combination of size, type, IOPS, throughput and zone.
//!
//! Decides: whether it is accepted, where the data shall be afterwards, and which of its states
//! a modification has reached.
//! Does not: move data; `replacing` derives every move from what is desired.
//! Invariants: everything the target needs is reserved in the ledger in the commit that accepts
//! it, and what the present replicas need stays reserved until they are freed; the new size is
//! the volume's when `optimizing` begins, and the primary has adopted it by then; there is one
//! modification of a volume at a time.

use std::{collections::BTreeSet, time::Duration};

use format::record::{Group, Modification, Parameters, Placed, Record};
use model::{
    id::{DriveId, ReplicaId, ServerId, Zone},
    state::{ModificationState, VolumeState},
};

use crate::{
    api::{ApiError, Caller, Done, ModifyVolume},
    case::{Case, Decision, running},
    command::{Desk, Outcome},
    creation::known_zone,
    ledger::{Account, Claim, Ledger},
    live::GroupLive,
    parameters,
    placement::{Fleet, Refusal, Wish, ZoneRule, choose},
    replacing,
    state::Write,
};

/// Progress is stored at most this often.
const SAVE_EVERY: Duration = Duration::from_secs(1);

pub fn modify(desk: &mut Desk<'_>, caller: &Caller, request: &ModifyVolume) -> Outcome {
    let id = request.volume.ok_or_else(|| {
        ApiError::new("MissingParameter", "The request must contain the parameter VolumeId")
    })?;
    let volume = desk.volume(caller.account, id)?.clone();
    let zone = wanted_zone(desk, request, &volume.parameters.zone)?;
    let target = parameters::modified(&volume.parameters, request, zone)?;
    if request.multi_attach == Some(true) {
        return Err(ApiError::new(
            "UnsupportedOperation",
            "Multi-attach is not supported yet. Leave MultiAttachEnabled out.",
        ));
    }
    if !matches!(volume.state, VolumeState::Available | VolumeState::InUse) {
        let message = format!("Volume '{id}' is in the '{}' state.", volume.state);
        return Err(ApiError::new("IncorrectState", message));
    }
    if let Some(running) = running(desk.state, &volume) {
        let message = format!(
            "Volume {id} cannot be modified in modification state {}",
            running.state.as_str().to_uppercase()
        );
        return Err(ApiError::new("IncorrectModificationState", message));
    }
    let group = desk.state.groups.get(&volume.group).expect("a volume has its group");
    let plan = plan(desk, group, &target)
        .map_err(|refusal| ApiError::new("InsufficientVolumeCapacity", refusal.to_string()))?;
    let number = desk.state.latest_modification(id).map_or(1, |m| m.number.saturating_add(1));
    let fills = plan.desired.iter().filter(|p| !p.created).count();
    let modification = Modification {
        volume: id,
        number,
        state: ModificationState::Modifying,
        step: "reserve".to_owned(),
        status_message: None,
        original: volume.parameters.clone(),
        target,
        progress_percent: 0,
        replicas_to_fill: u32::try_from(fills).expect("a group has a handful of replicas"),
        bytes_moved: 0,
        bytes_total: 0,
        started: desk.wall,
        ended: None,
    };
    let writes = vec![
        Write::Put(Record::Group(plan)),
        Write::Put(Record::Modification(modification.clone())),
    ];
    Ok((writes, Done::Modification(Box::new(modification))))
}

fn wanted_zone(desk: &Desk<'_>, request: &ModifyVolume, now: &Zone) -> Result<Zone, ApiError> {
    let Some(name) = &request.zone else { return Ok(now.clone()) };
    known_zone(&desk.params.place, name).ok_or_else(|| {
        let shown: String = name.chars().take(64).collect();
        let message = format!("The zone '{shown}' does not exist.");
        ApiError::new("InvalidZone.NotFound", message)
    })
}

/// The group as it should be for `target`: replicas that can stay keep their place, the others
/// get a new one, and all of it is reserved.
fn plan(desk: &mut Desk<'_>, group: &Group, target: &Parameters) -> Result<Group, Refusal> {
    let mut fleet = replacing::fleet(desk.state, desk.live, desk.now, &desk.params.timing);
    let mut plan = group.clone();
    let stored = desk.live.stored(group.config.group);
    let in_use: BTreeSet<_> = group.config.members.iter().map(|m| m.server.clone()).collect();
    let mut taken = BTreeSet::new();
    let mut homes: Vec<Option<Placed>> = Vec::new();
    for now in &group.desired {
        let home = stay(&mut fleet, now, target);
        taken.extend(home.iter().map(|p| p.drive.server.clone()));
        homes.push(home);
    }
    let mut desired = Vec::new();
    for home in homes {
        let placed = match home {
            Some(placed) => placed,
            None => {
                let drives = elsewhere(&fleet, target, (&taken, &in_use), stored)?;
                let claim = Claim { size: target.size, rate: target.rate };
                fleet.ledger.reserve(&drives, claim);
                taken.insert(drives[0].server.clone());
                target.placed(ReplicaId::from_random(desk.random.wide()), &drives)
            }
        };
        plan.replicas.insert(placed.replica, placed.clone());
        desired.push(placed);
    }
    plan.desired = desired;
    raise_leaving(&mut fleet.ledger, &mut plan, target);
    Ok(plan)
}

/// The replica where it is, if its drives suit the target and have room for what is more. That
/// its server is away just now is no reason to move: if it stays away, its replicas are made
/// anew whatever is being modified.
fn stay(fleet: &mut Fleet, now: &Placed, target: &Parameters) -> Option<Placed> {
    if now.stripes() != u64::from(target.stripes.get()) {
        return None;
    }
    let drives: Vec<DriveId> = now.drives().collect();
    let suits = |drive: &DriveId| {
        let account = fleet.ledger.drives.get(drive);
        let suits = |a: &Account| a.media == target.volume_type.media() && a.zone == target.zone;
        account.is_some_and(suits) && !fleet.barred.contains(drive)
    };
    if !drives.iter().all(suits) {
        return None;
    }
    let from = Claim { size: now.size, rate: now.rate };
    let wanted = from.and(Claim { size: target.size, rate: target.rate });
    if !fleet.ledger.fits(&drives, from.up_to(wanted)) {
        return None;
    }
    fleet.ledger.reserve(&drives, from.up_to(wanted));
    Some(Placed { size: wanted.size, rate: wanted.rate, ..now.clone() })
}

/// A new place for a replica that cannot stay. A mirror may leave the zone only where the zone
/// has no server for it. Drives that it lies on now may be among them: what it takes there stays
/// reserved until it has gone.
fn elsewhere(
    fleet: &Fleet,
    target: &Parameters,
    (taken, in_use): (&BTreeSet<ServerId>, &BTreeSet<ServerId>),
    stored: u64,
) -> Result<Vec<DriveId>, Refusal> {
    let zone_rule = if taken.is_empty() { ZoneRule::Strict } else { ZoneRule::WhereZoneHasNone };
    let wish = Wish {
        media: target.volume_type.media(),
        zone: &target.zone,
        zone_rule,
        claim: Claim { size: target.size, rate: target.rate },
        stripes: target.stripes,
        stored,
        excluded: taken,
        preferred: in_use,
    };
    choose(fleet, &wish)
}

/// Replicas that will leave serve until then: where their drives have room, they get the new
/// size and rate at once, so that nobody waits for the data to move.
fn raise_leaving(ledger: &mut Ledger, plan: &mut Group, target: &Parameters) {
    let stays: BTreeSet<_> = plan.desired.iter().map(|p| p.replica).collect();
    let members: BTreeSet<_> = plan.config.members.iter().map(|m| m.replica).collect();
    let to = Claim { size: target.size, rate: target.rate };
    let leaving = |p: &&mut Placed| members.contains(&p.replica) && !stays.contains(&p.replica);
    for placed in plan.replicas.values_mut().filter(leaving) {
        let from = Claim { size: placed.size, rate: placed.rate };
        let now = ledger.raise(&placed.drives().collect::<Vec<_>>(), from, to);
        (placed.size, placed.rate) = (now.size, now.rate);
    }
}

/// The next state of the modification under way, when every rule that moves data has nothing
/// left to decide.
pub fn advance(case: &Case<'_>, facts: &mut GroupLive) -> Option<Decision> {
    let modification = case.modification?;
    if case.adopted(facts) && case.is_current() {
        match modification.state {
            ModificationState::Modifying if size_is_there(case) => {
                return Some(optimize(case, modification));
            }
            ModificationState::Optimizing if is_settled(case) => {
                return Some(complete(case, modification));
            }
            _ => {}
        }
    }
    save_progress(case, facts, modification)
}

fn size_is_there(case: &Case<'_>) -> bool {
    case.config().size >= case.target().size.to_bytes()
}

/// Nothing is left to move, make or free (but on servers that are away, and drives that are out of
/// service).
fn is_settled(case: &Case<'_>) -> bool {
    let config = case.config();
    // One that moves nothing does not wait for a mirror that happens to be away.
    let moves_nothing = case.modification.is_some_and(|m| m.replicas_to_fill == 0);
    let in_place = config.members.iter().all(|m| case.is_desired(m.replica))
        && case.group.desired.iter().all(|p| moves_nothing || config.is_in_sync(p.replica));
    let freed = case
        .group
        .replicas
        .keys()
        .filter(|r| replacing::is_surplus(case, **r))
        .all(|r| case.standing(*r).keeps_it());
    in_place && freed && config.rate == case.target().rate
}

fn optimize(case: &Case<'_>, modification: &Modification) -> Decision {
    if is_settled(case) {
        return complete(case, modification);
    }
    let mut record = modification.clone();
    record.state = ModificationState::Optimizing;
    Decision::of(vec![granted(case), Write::Put(Record::Modification(record))])
}

/// The volume with what was asked for.
fn granted(case: &Case<'_>) -> Write {
    let mut volume = case.volume.clone();
    volume.parameters = case.target().clone();
    volume.zone = volume.parameters.zone.clone();
    Write::Put(Record::Volume(volume))
}

fn complete(case: &Case<'_>, modification: &Modification) -> Decision {
    let target = case.target();
    let mut group = case.group.clone();
    let desired: BTreeSet<_> = group.desired.iter().map(|p| p.replica).collect();
    for placed in group.replicas.values_mut().filter(|p| desired.contains(&p.replica)) {
        placed.rate = target.rate;
    }
    let mut record = modification.clone();
    record.state = ModificationState::Completed;
    "done".clone_into(&mut record.step);
    record.progress_percent = 100;
    record.bytes_total = record.bytes_moved;
    record.ended = Some(case.wall);
    let done = Write::Put(Record::Modification(record));
    Decision::of(vec![granted(case), case.put_group(group), done])
}

/// Gives the modification under way up: the set that serves stays, what was reserved beyond it
/// is freed. A size that programs may have seen stays too; nothing shrinks.
pub fn fail(case: &Case<'_>, reason: &str) -> Option<Decision> {
    let modification = case.modification?;
    let mut group = case.group.clone();
    let now = case.config().size.get() >> 30;
    let size = model::units::Gib::new(u32::try_from(now).unwrap_or(u32::MAX));
    let parameters = Parameters { size, ..modification.original.clone() };
    let stays: Vec<_> = case.config().in_sync().map(|m| m.replica).collect();
    for placed in group.replicas.values_mut().filter(|p| stays.contains(&p.replica)) {
        placed.rate = parameters.rate;
        placed.size = placed.size.min(modification.target.size).max(size);
    }
    group.desired = stays.iter().map(|r| case.placed(*r).clone()).collect();
    let mut volume = case.volume.clone();
    volume.zone = parameters.zone.clone();
    volume.parameters = parameters;
    let mut record = modification.clone();
    record.state = ModificationState::Failed;
    record.status_message = Some(reason.to_owned());
    record.ended = Some(case.wall);
    // The configuration of those that stay, as it must be for what is no longer to come.
    let after = Case { group: &group, volume: &volume, modification: None, ..*case };
    let roles: Vec<_> = case.roles().into_iter().filter(|(r, _)| stays.contains(r)).collect();
    let mut decision = after.store(&roles, None);
    decision.writes.push(Write::Put(Record::Volume(volume)));
    decision.writes.push(Write::Put(Record::Modification(record)));
    Some(decision)
}

/// How far it is, from what the primary says of the fill under way.
fn save_progress(
    case: &Case<'_>,
    facts: &mut GroupLive,
    modification: &Modification,
) -> Option<Decision> {
    if case.now.since(facts.progress_saved) < SAVE_EVERY || modification.replicas_to_fill == 0 {
        return None;
    }
    let learner = case.config().learners().next().map(|m| m.replica);
    let fill = facts.fill.filter(|f| learner.is_some_and(|l| l.raw() == f.learner_replica));
    let mut record = modification.clone();
    if let (Some(fill), Some(learner)) = (fill, learner) {
        let before = match facts.moved_before {
            Some((of, before)) if of == learner => before,
            // The manager restarted during this fill.
            _ => modification.bytes_moved.saturating_sub(fill.bytes_moved),
        };
        facts.moved_before = Some((learner, before));
        record.bytes_moved = record.bytes_moved.max(before.saturating_add(fill.bytes_moved));
    }
    let missing = case.group.desired.iter().filter(|p| !case.config().is_in_sync(p.replica));
    let missing = u64::try_from(missing.count()).expect("a handful");
    let fills = u64::from(modification.replicas_to_fill);
    let share = fill.map_or(0, |f| thousandths(f.bytes_done, f.bytes_total));
    let done = (fills.saturating_sub(missing) * 1_000 + share).min(fills * 1_000);
    let percent = u8::try_from((done / 10 / fills).min(99)).expect("at most 99");
    record.progress_percent = record.progress_percent.max(percent);
    let expected = facts.allocated.get().saturating_mul(fills);
    record.bytes_total = record.bytes_total.max(expected).max(record.bytes_moved);
    facts.progress_saved = case.now;
    let changed = record != *modification;
    changed.then(|| Decision::of(vec![Write::Put(Record::Modification(record))]))
}

fn thousandths(done: u64, total: u64) -> u64 {
    let share = u128::from(done) * 1_000 / u128::from(total.max(1));
    u64::try_from(share.min(1_000)).expect("at most 1000")
}
