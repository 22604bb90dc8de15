//! A member that is there and slow is worse than one that is gone: everybody waits for it, for good.
//!
//! Decides: whether a member that its primary calls slow is replaced, and by what; who is to blame when
//! one after the other is called slow.
//! Does not: measure anything (primaries do), or drop a member itself (`membership`, `replacing`).
//! Invariants: a member is given up only when another place has been reserved for its replica; never two
//! at once, and not again within [`BEARS`], so that a load that is slow everywhere moves nothing to and fro;
//! never more than a few drives of a fleet.

use std::{collections::BTreeSet, time::Duration};

use model::{
    id::{DriveId, ReplicaId},
    time::Instant,
};

use crate::{
    case::{Case, Decision},
    live::{GroupLive, Silence},
    placement::ZoneRule,
    random::Random,
    replacing::{fleet, replaced},
};

/// After a slow member was replaced, the group bears another for so long; twice as long each time, up
/// to some hours. Nothing is placed on that drive meanwhile.
pub const BEARS: Duration = Duration::from_secs(600);
/// When there was no other place, it is looked for again after so long.
const LOOKS_AGAIN: Duration = Duration::from_secs(10);
/// Of so many drives one may be slow at a time; if there are more, it is not the drives.
const ONE_OF: usize = 8;

/// Brings what is remembered up to the stored configuration.
pub fn note(case: &Case<'_>, facts: &mut GroupLive) {
    let config = case.config();
    facts.slow.retain(|replica, slow| config.is_in_sync(*replica) && slow.is_fresh(case.now));
    facts.relieved.leaving.retain(|replica| config.member(*replica).is_some());
    facts.relieved.drives.retain(|_, until| case.now < *until);
    if facts.slow.is_empty() && case.group.desired.iter().all(|p| config.is_in_sync(p.replica)) {
        facts.relieved.why = None;
    }
}

/// Where nothing is placed for the time being.
pub fn barred(facts: &GroupLive, now: Instant) -> impl Iterator<Item = DriveId> + '_ {
    facts
        .relieved
        .drives
        .iter()
        .filter(move |(_, until)| now < **until)
        .map(|(drive, _)| drive.clone())
}

/// Another replica is desired in place of one that is slow. It leaves the set at once.
pub fn relieve(case: &Case<'_>, facts: &mut GroupLive, random: &mut Random) -> Option<Decision> {
    let busy = case.modification.is_some()
        || facts.hand_over.is_some()
        || case.config().learners().next().is_some()
        || case.config().in_sync().count() < 2;
    if busy || !case.adopted(facts) || !facts.relieved.pause.over(case.now) {
        return None;
    }
    let epoch = case.config().epoch;
    let named = |(_, slow): &(&ReplicaId, &Silence)| slow.lasts(epoch, case.now, Duration::ZERO);
    let named = facts.slow.iter().find(named).map(|(replica, _)| *replica)?;
    let slow = to_blame(case, facts, named);
    if !case.is_desired(slow) {
        return None;
    }
    let drives: BTreeSet<DriveId> = case.placed(slow).drives().collect();
    let mut fleet = fleet(case.state, case.live, case.now, case.timing);
    let all = fleet.ledger.drives.len();
    let known: BTreeSet<DriveId> =
        case.live.groups.values().flat_map(|other| barred(other, case.now)).collect();
    if known.union(&drives).count() > drives.len().max(all / ONE_OF) {
        return None;
    }
    fleet.barred.extend(drives.iter().cloned());
    let found = replaced(case, &fleet, Some(slow), ZoneRule::WhereZoneIsFull, random);
    let Ok(group) = found else {
        facts.relieved.pause.failed_for(case.now, LOOKS_AGAIN);
        facts.relieved.pause.forgive();
        return None;
    };
    facts.relieved.pause.failed_for(case.now, BEARS);
    let until = facts.relieved.pause.until();
    facts.relieved.drives.extend(drives.into_iter().map(|drive| (drive, until)));
    facts.relieved.leaving.insert(slow);
    facts.relieved.last = Some((case.config().primary().replica, slow, case.now));
    facts.slow.clear();
    Some(Decision { writes: vec![case.put_group(group)], placed: true })
}

/// A primary was given up because it is slow. To let it finish what it has begun would take as long as
/// everything there: its mirror holds all that was acknowledged.
pub fn leads(case: &Case<'_>, facts: &GroupLive) -> bool {
    let primary = case.config().primary().replica;
    let gives_up = facts.relieved.leaving.contains(&primary) && !case.is_desired(primary);
    gives_up && case.config().mirrors().any(|m| case.is_up(m.replica))
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
