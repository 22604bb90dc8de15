//! A member that is there and slow is worse than one that is gone: everybody waits for it, for good.
//!
//! Decides: whether a member that its primary calls slow is replaced, and by what; who is to blame when
//! one after the other is called slow.
//! Does not: measure anything (primaries do), or drop a member itself (`membership`, `replacing`).
//! Invariants: a member is given up only when another place has been reserved for its replica and is
//! there, and what it holds is kept until the group is whole without it, to be taken back if that place is
//! lost; never two at once, and not again within [`BEARS`], so that a load that is slow everywhere moves
//! nothing to and fro; never more than a few drives and groups of a fleet. A member that is silent, or whose
//! primary is out of somebody's reach, is not judged here but in `membership`.

use std::{collections::BTreeSet, time::Duration};

use format::record::Group;
use model::{
    id::{DriveId, ReplicaId},
    time::Instant,
};

use crate::{
    case::{Case, Decision},
    fullness,
    live::{GroupLive, Silence},
    random::Random,
    replacing::{fleet, replaced},
};

/// After a slow member was replaced, the group bears another for so long; twice as long each time until
/// it has been quiet for an hour. Nothing is placed on that drive for so long.
pub const BEARS: Duration = Duration::from_secs(600);
/// What takes the place of a slow member must be there within so long; else the slow one stays until it
/// is filled.
const LEAVES_WITHIN: Duration = Duration::from_secs(30);
/// So many groups may be without a slow replica and not whole again yet.
const AT_ONCE: usize = 8;
/// When there was no other place, it is looked for again after so long.
const LOOKS_AGAIN: Duration = Duration::from_secs(10);
/// Of so many drives one may be slow at a time; if there are more, it is not the drives.
const ONE_OF: usize = 8;

/// Brings what is remembered up to the stored configuration.
pub fn note(case: &Case<'_>, facts: &mut GroupLive) {
    let (config, now) = (case.config(), case.now);
    let whole = case.group.desired.iter().all(|p| config.is_in_sync(p.replica));
    facts.slow.retain(|replica, slow| config.is_in_sync(*replica) && slow.is_fresh(now));
    let relieved = &mut facts.relieved;
    relieved.leaving.retain(|replica, since| {
        config.member(*replica).is_some()
            && !case.is_desired(*replica)
            && now.since(*since) < LEAVES_WITHIN
    });
    if whole {
        relieved.kept.clear();
    }
    relieved.kept.retain(|r| case.group.replicas.contains_key(r) && !case.is_desired(*r));
    relieved.drives.retain(|_, until| now < *until);
    if relieved.pause.failures() > 0 && now.since(relieved.pause.until()) > 6 * BEARS {
        relieved.pause.reset();
    }
    if facts.slow.is_empty() && whole {
        relieved.why = None;
    }
}

/// Where nothing is placed for the time being.
pub fn barred(facts: &GroupLive, now: Instant) -> impl Iterator<Item = DriveId> + '_ {
    let lasts = move |(_, until): &(&DriveId, &Instant)| now < **until;
    facts.relieved.drives.iter().filter(lasts).map(|(drive, _)| drive.clone())
}

/// Another replica is desired in place of one that is slow.
pub fn relieve(case: &Case<'_>, facts: &mut GroupLive, random: &mut Random) -> Option<Decision> {
    let named = named(case, facts)?;
    let slow = to_blame(case, facts, named);
    let drives: BTreeSet<DriveId> = case.placed(slow).drives().collect();
    let mut fleet = fleet(case.state, case.live, case.now, case.timing);
    let known: BTreeSet<DriveId> =
        case.live.groups.values().flat_map(|other| barred(other, case.now)).collect();
    let under_way = case.live.groups.values().filter(|g| !g.relieved.kept.is_empty()).count();
    let many = known.difference(&drives).count() >= (fleet.ledger.drives.len() / ONE_OF).max(1);
    if many || under_way >= AT_ONCE {
        return None;
    }
    fleet.barred.extend(drives.iter().cloned());
    fleet.barred.extend(barred(facts, case.now));
    let found = replaced(case, &fleet, Some(slow), fullness::zone_rule(case, slow), random);
    let relieved = &mut facts.relieved;
    let Ok(group) = found else {
        relieved.pause.rest(case.now, LOOKS_AGAIN);
        return None;
    };
    relieved.pause.failed_for(case.now, BEARS);
    relieved.drives.extend(drives.into_iter().map(|drive| (drive, case.now + BEARS)));
    relieved.leaving.insert(slow, case.now);
    relieved.kept.insert(slow);
    relieved.last = Some((case.config().primary().replica, slow, case.now));
    facts.slow.clear();
    Some(Decision { writes: vec![case.put_group(group)], placed: true })
}

/// A member that its primary calls slow, if nothing else is under way or in doubt.
fn named(case: &Case<'_>, facts: &GroupLive) -> Option<ReplicaId> {
    let config = case.config();
    let whole = case.group.desired.iter().all(|p| config.is_in_sync(p.replica));
    let at_rest = whole && config.members.iter().all(|m| case.is_desired(m.replica));
    let busy = case.modification.is_some() || facts.hand_over.is_some() || !at_rest;
    if busy
        || config.in_sync().count() < 2
        || !case.adopted(facts)
        || !facts.relieved.pause.over(case.now)
        || facts.out_of_reach.is_some_and(|s| s.is_fresh(case.now))
        || facts.silent.values().any(|s| s.is_fresh(case.now))
        || !config.in_sync().all(|m| case.is_up(m.replica))
    {
        return None;
    }
    let is_named =
        |(_, slow): &(&ReplicaId, &Silence)| slow.lasts(config.epoch, case.now, Duration::ZERO);
    facts.slow.iter().find(is_named).map(|(replica, _)| *replica)
}

/// Whether a member is not waited for any more: what takes its place is there.
pub fn leaves(case: &Case<'_>, facts: &GroupLive, replica: ReplicaId) -> bool {
    let there = |p: &format::record::Placed| p.created && case.is_up(p.replica);
    facts.relieved.leaving.contains_key(&replica)
        && !case.is_desired(replica)
        && case.group.desired.iter().all(there)
}

/// A primary was given up because it is slow. To let it finish what it has begun would take as long as
/// everything there: its mirror holds all that was acknowledged.
pub fn leads(case: &Case<'_>, facts: &GroupLive) -> bool {
    let primary = case.config().primary().replica;
    leaves(case, facts, primary) && case.config().mirrors().any(|m| case.is_up(m.replica))
}

/// The group with a replica desired again that was given up because it was slow, as no other place is left
/// for the one that is lost: a slow copy is better than none.
pub fn taken_back(
    case: &Case<'_>,
    facts: &mut GroupLive,
    lost: Option<ReplicaId>,
) -> Option<Group> {
    let others: BTreeSet<_> = case
        .group
        .desired
        .iter()
        .filter(|p| Some(p.replica) != lost)
        .map(|p| p.drive.server.clone())
        .collect();
    let fits = |r: &&ReplicaId| case.is_up(**r) && !others.contains(case.server_of(**r));
    let back = *facts.relieved.kept.iter().find(fits)?;
    facts.relieved.leaving.remove(&back);
    let mut group = case.group.clone();
    let placed = case.placed(back).clone();
    match group.desired.iter_mut().find(|p| Some(p.replica) == lost) {
        Some(slot) => *slot = placed,
        None => group.desired.push(placed),
    }
    Some(group)
}

/// Whom a primary calls slow, unless it has called another so before: then it is its own link that is slow.
fn to_blame(case: &Case<'_>, facts: &GroupLive, named: ReplicaId) -> ReplicaId {
    let primary = case.config().primary().replica;
    match facts.relieved.last {
        Some((by, before, at))
            if by == primary
                && before != named
                && named != primary
                && case.now.since(at) < 6 * BEARS =>
        {
            primary
        }
        _ => named,
    }
}
