//! Who belongs to a group when something fails: failover, silent members, failed learners.
//!
//! Decides: when a primary is given up, which mirror follows it, when a member is dropped, when
//! a learner is admitted or abandoned.
//! Does not: choose drives, or plan moves; see `replacing`.
//! Invariants (numbers of docs/replication.md): only a replica of the in-sync set is promoted
//! (2, 16), and only after its promise (4); a new primary of a failover is alone in its set; a
//! learner is admitted only on the primary's word for its present stint (15).

use std::time::Duration;

use format::record::Record;
use model::{
    group::Role,
    id::ReplicaId,
    sabotage::{Sabotage, is_on},
    time::Instant,
};

use crate::{
    case::{Case, Decision},
    live::{GroupLive, Silence, Standing, Stint},
    scrub, slow,
    state::Write,
};

/// A node manager that reaches neither replica is not followed from one to the other and back: after
/// the first failover for its sake the next one waits for this long, then twice as long.
const REACH_PAUSE: Duration = Duration::from_secs(10);
/// A server is silent, for a node manager's word against it, when it has missed beats for this
/// long.
const SUSPECT: Duration = Duration::from_millis(1_500);

/// The first of the rules that has something to decide.
pub fn decide(case: &Case<'_>, facts: &mut GroupLive) -> Option<Decision> {
    note(case, facts);
    failover(case, facts)
        .or_else(|| unfence(case, facts))
        .or_else(|| drop_silent(case, facts))
        .or_else(|| admit(case, facts))
        .or_else(|| abandon(case, facts))
}

/// Brings what is remembered of the group up to the stored configuration.
fn note(case: &Case<'_>, facts: &mut GroupLive) {
    let config = case.config();
    let learner = config.learners().find_map(|m| match m.role {
        Role::Learner { source } => Some((m.replica, source)),
        Role::Primary | Role::Mirror => None,
    });
    if learner != facts.stint.map(|s| (s.learner, s.source)) {
        let since = config.epoch;
        facts.stint = learner.map(|(learner, source)| Stint { learner, source, since });
    }
    facts.silent.retain(|replica, _| config.member(*replica).is_some());
    let lately = |at: Instant| case.now.since(at) < REACH_PAUSE;
    if !facts.unreached.is_some_and(lately) && facts.reach_pause.over(case.now) {
        facts.reach_pause.reset();
    }
    scrub::note(case, facts);
    facts.differing.retain(|replica, _| config.is_in_sync(*replica));
    slow::note(case, facts);
    if !case.primary_runs() || case.adopted(facts) {
        facts.unadopted = None;
    } else if facts.unadopted.map(|(epoch, _)| epoch) != Some(config.epoch) {
        facts.unadopted = Some((config.epoch, case.now));
    }
}

/// The primary runs, was told its configuration again and again, and does not take it: it does
/// not know a member to be in sync that the state calls so. Alone it is safe; it has everything.
fn is_stuck(case: &Case<'_>, facts: &GroupLive) -> bool {
    facts.unadopted.is_some_and(|(_, since)| case.now.since(since) >= case.timing.adoption)
}

/// Somebody does not answer somebody, by a report that may still come to count.
pub fn is_suspected(case: &Case<'_>, facts: &GroupLive) -> bool {
    facts.silent.values().any(|s| s.is_fresh(case.now))
        || facts.primary_silent.is_some_and(|(_, at)| is_fresh(case, at))
}

fn is_fresh(case: &Case<'_>, at: Instant) -> bool {
    case.now.since(at) < Silence::FRESH
}

/// Whether the primary must be replaced, or made primary afresh.
pub fn primary_is_gone(case: &Case<'_>, facts: &GroupLive) -> bool {
    let primary = case.config().primary();
    case.is_gone(primary.replica)
        || case.primary_restarted()
        || reported_silent(case, facts)
        || out_of_reach(case, facts)
        || slow::leads(case, facts)
}

/// A node manager has had no link to the primary for so long that its guests should not wait any
/// more, and there is a mirror that may be within its reach. The manager may hear from both all the
/// while.
fn out_of_reach(case: &Case<'_>, facts: &GroupLive) -> bool {
    let patience = case.timing.member_patience;
    let lasts = |s: Silence| {
        s.lasts(case.config().epoch, case.now, patience) && facts.reach_pause.over(case.now)
    };
    facts.out_of_reach.is_some_and(lasts) && case.config().mirrors().any(|m| case.is_up(m.replica))
}

/// A node manager cannot reach the primary, and the manager has not heard from its server for a
/// while either.
fn reported_silent(case: &Case<'_>, facts: &GroupLive) -> bool {
    let Some((epoch, at)) = facts.primary_silent else { return false };
    let quiet = case.live.away_for(&case.config().primary().server, case.now) >= SUSPECT;
    epoch == case.config().epoch && is_fresh(case, at) && quiet
}

/// Who is to be asked for its promise, in order of promotion: the mirrors whose servers are up
/// (all at once, because one that does not count any more keeps silent), else the restarted
/// primary itself when every mirror is known to be away.
pub fn candidates(case: &Case<'_>, facts: &GroupLive) -> Vec<ReplicaId> {
    let primary = case.config().primary().replica;
    if !primary_is_gone(case, facts) {
        return if is_stuck(case, facts) { vec![primary] } else { Vec::new() };
    }
    let mirrors = || case.config().mirrors().map(|m| m.replica);
    if mirrors().all(|r| case.is_gone(r)) {
        return if case.is_up(primary) { vec![primary] } else { Vec::new() };
    }
    if is_on(Sabotage::LearnerPromoted) {
        return case.config().learners().map(|m| m.replica).chain(mirrors()).collect();
    }
    mirrors().filter(|r| case.is_up(*r)).collect()
}

fn failover(case: &Case<'_>, facts: &mut GroupLive) -> Option<Decision> {
    // `Prepare` names the same epoch; the promise of it is what makes the switch safe.
    let promised = |r: &ReplicaId| {
        case.live.promised(*r) >= case.next_epoch() || is_on(Sabotage::FailoverWithoutPromise)
    };
    let successor = candidates(case, facts).into_iter().find(promised)?;
    facts.hand_over = None;
    if out_of_reach(case, facts) {
        facts.reach_pause.failed_for(case.now, REACH_PAUSE);
    }
    let mut roles = vec![(successor, Role::Primary)];
    if is_on(Sabotage::SurvivorsKept) {
        let others = case.config().in_sync().map(|m| m.replica).filter(|r| *r != successor);
        roles.extend(others.map(|r| (r, Role::Mirror)));
    }
    let mut decision = case.store(&roles, None);
    restamp(case, &mut decision, successor);
    Some(decision)
}

/// The configuration is made for the present run of the primary's server, also when the primary
/// is the replica it was.
fn restamp(case: &Case<'_>, decision: &mut Decision, primary: ReplicaId) {
    for write in &mut decision.writes {
        if let crate::state::Write::Put(format::record::Record::Group(group)) = write {
            group.primary_boot = case.boot_of(primary);
        }
    }
}

/// A member promised more than the stored epoch, for a failover or hand-over that was not
/// carried through: it refuses the present primary, which is well. The same set under the next
/// epoch heals that.
fn unfence(case: &Case<'_>, facts: &GroupLive) -> Option<Decision> {
    let epoch = case.config().epoch;
    let fenced = case.config().members.iter().any(|m| case.live.promised(m.replica) > epoch);
    if !fenced || facts.hand_over.is_some() || !case.primary_runs() {
        return None;
    }
    Some(case.store(&case.roles(), None))
}

/// A mirror that the primary cannot reach, and that is down by what the manager knows, or has
/// been out of reach too long for the group to wait. A mirror that lost its replica goes at once, and so
/// does one that differs from the primary: it comes back as learner.
fn drop_silent(case: &Case<'_>, facts: &GroupLive) -> Option<Decision> {
    if !case.primary_runs() {
        return None;
    }
    // Who of the two is cut off? A node manager that cannot reach the primary decides it.
    let undecided = facts.out_of_reach.is_some_and(|s| s.is_fresh(case.now));
    let silent = |replica| {
        let standing = case.standing(replica);
        let differs = facts.differing.get(&replica) == Some(&case.config().epoch);
        // Another takes its place, and is filled without it.
        let leaves = slow::leaves(case, facts, replica);
        if standing.is_lost() || differs || leaves {
            return true;
        }
        let Some(silence) = facts.silent.get(&replica) else { return false };
        let patience = case.timing.member_patience;
        let enough = match standing {
            Standing::Down => Duration::ZERO,
            _ if undecided => 2 * patience,
            _ => patience,
        };
        silence.lasts(case.config().epoch, case.now, enough)
    };
    let gone: Vec<_> = case.config().mirrors().map(|m| m.replica).filter(|r| silent(*r)).collect();
    if gone.is_empty() {
        return None;
    }
    let mut roles = case.roles();
    roles.retain(|(replica, _)| !gone.contains(replica));
    resource(&mut roles);
    Some(case.store(&roles, None))
}

/// A learner whose source left takes another: a mirror if there is one, else the primary.
fn resource(roles: &mut [(ReplicaId, Role)]) {
    let in_sync: Vec<_> = roles.iter().filter(|(_, r)| !is_learner(*r)).copied().collect();
    let mirror = in_sync.iter().find(|(_, r)| *r == Role::Mirror);
    let source = mirror.or(in_sync.first()).expect("a set has a primary").0;
    for (_, role) in roles {
        if let Role::Learner { source: now } = role
            && !in_sync.iter().any(|(r, _)| r == now)
        {
            *now = source;
        }
    }
}

fn is_learner(role: Role) -> bool {
    matches!(role, Role::Learner { .. })
}

fn admit(case: &Case<'_>, facts: &mut GroupLive) -> Option<Decision> {
    let stint = facts.stint?;
    let begun = is_on(Sabotage::LearnerAdmitted).then_some((stint.since, stint.learner));
    let (epoch, learner) = begun.or(facts.ready)?;
    if learner != stint.learner
        || epoch < stint.since
        || !case.primary_runs()
        || !case.is_up(learner)
    {
        return None;
    }
    let mut roles = case.roles();
    for (replica, role) in &mut roles {
        if *replica == learner {
            *role = Role::Mirror;
        }
    }
    facts.learner_pause.reset();
    facts.fills_given_up = 0;
    facts.ready = None;
    let mut decision = case.store(&roles, Some("admit"));
    let (of, before) = facts.moved_before.unwrap_or((learner, 0));
    let fill = facts.fill.filter(|f| f.learner_replica == learner.raw() && of == learner);
    for write in &mut decision.writes {
        if let (Write::Put(Record::Modification(m)), Some(fill)) = (write, fill) {
            m.bytes_moved = m.bytes_moved.max(before.saturating_add(fill.bytes_moved));
            m.bytes_total = m.bytes_total.max(m.bytes_moved);
        }
    }
    Some(decision)
}

/// A learner that the primary gave up, or whose server is gone: out of the configuration. It is
/// tried again after a pause.
fn abandon(case: &Case<'_>, facts: &mut GroupLive) -> Option<Decision> {
    let Stint { learner, since, .. } = facts.stint?;
    let reported = |f: &crate::live::LearnerFailure| f.learner == learner && f.epoch >= since;
    let failed = facts.failed.as_ref().is_some_and(reported);
    if !(failed || case.is_gone(learner)) || !case.primary_runs() {
        return None;
    }
    facts.learner_pause.failed(case.now);
    facts.failed = None;
    facts.fill = None;
    let mut roles = case.roles();
    roles.retain(|(replica, _)| *replica != learner);
    Some(case.store(&roles, None))
}
