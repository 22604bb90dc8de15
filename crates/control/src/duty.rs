//! What operators want of a server: that it serves, takes nothing new, or is emptied.
//!
//! Decides: what a command may change; which replica leaves a server that is drained, and for where.
//! Does not: carry the move out: it changes what is desired, and `replacing` follows.
//! Invariants: the wish is durable, so it outlives the manager and the server; only a replica of a
//! group that is whole and at rest is moved, so the group has all its replicas in sync at every
//! moment of the move; a server that is not to serve gets nothing; few moves run at a time, and
//! nothing is remembered that a restart would miss.

use std::collections::BTreeMap;

use format::record::{Group, Placed, Record, Server};
use model::{
    id::{DriveId, ReplicaId, ServerId},
    state::{Duty, VolumeState},
    time::WallTime,
};

use crate::{
    api::{ApiError, Caller, Done},
    case::{Case, Decision},
    command::{Desk, Outcome},
    fullness::zone_rule,
    live::Live,
    placement::Fleet,
    random::Random,
    replacing,
    state::{State, Write},
};

/// Replicas that leave one server at once.
const MOVES_MAX: usize = 4;
/// Replicas for which a place is looked for.
const TRIED_MAX: usize = 32;

/// Carries out an operator's wish. Wishing what is so already changes nothing.
pub fn set(desk: &mut Desk<'_>, caller: &Caller, name: &str, duty: Duty) -> Outcome {
    if !caller.root {
        return Err(ApiError::new(
            "UnauthorizedOperation",
            "You are not authorized to perform this operation: only the root account decides \
             about servers.",
        ));
    }
    let known = name.parse::<ServerId>().ok().and_then(|id| desk.state.servers.get(&id));
    let Some(server) = known else {
        let name: String = name.chars().take(100).collect();
        let message = format!("No server '{name}' has ever registered; /v1/servers names them.");
        return Err(ApiError::new("InvalidServer.NotFound", message));
    };
    if server.duty == duty {
        return Ok((Vec::new(), Done::Server(server.server.clone())));
    }
    let changed = Server { duty, ..server.clone() };
    Ok((vec![Write::Put(Record::Server(changed))], Done::Server(server.server.clone())))
}

/// The drives of servers with this duty.
pub fn drives(state: &State, duty: Duty) -> impl Iterator<Item = DriveId> {
    let those = state.servers.values().filter(move |server| server.duty == duty);
    those.flat_map(|server| {
        let id = |drive| DriveId { server: server.server.clone(), drive };
        server.drives.iter().map(move |d| id(d.drive.clone()))
    })
}

/// How the servers that are drained stand, as far as this process knows.
#[derive(Debug, Default)]
pub struct Drains {
    servers: BTreeMap<ServerId, Drain>,
}

#[derive(Debug, Clone)]
pub struct Drain {
    pub since: WallTime,
    /// What was there at that time.
    pub bytes_at_first: u64,
    /// Why nothing more can be moved away.
    pub stuck: Option<String>,
}

impl Drains {
    pub fn of(&self, server: &ServerId) -> Option<&Drain> {
        self.servers.get(server)
    }

    /// True when it was not stuck before.
    pub fn set_stuck(&mut self, server: &ServerId, reason: Option<String>) -> bool {
        let Some(drain) = self.servers.get_mut(server) else { return false };
        let is_news = reason.is_some() && drain.stuck.is_none();
        drain.stuck = reason;
        is_news
    }
}

/// Which drains begin and end. Returns each server from which another replica may be moved now, as
/// often as that is so.
pub fn observe(state: &State, live: &mut Live, now: WallTime) -> Vec<ServerId> {
    let mut drains = std::mem::take(&mut live.drains);
    let is_draining =
        |id: &ServerId| state.servers.get(id).is_some_and(|s| s.duty == Duty::Draining);
    drains.servers.retain(|id, _| is_draining(id));
    let mut due = Vec::new();
    for server in state.servers.values().filter(|s| s.duty == Duty::Draining) {
        let left = left(state, live, &server.server);
        let fresh = || Drain { since: now, bytes_at_first: left.bytes, stuck: None };
        drains.servers.entry(server.server.clone()).or_insert_with(fresh);
        let moves = MOVES_MAX.saturating_sub(left.leaving).min(left.staying);
        due.extend(std::iter::repeat_n(server.server.clone(), moves));
    }
    live.drains = drains;
    due
}

/// What is still on a server.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    pub staying: usize,
    /// Replicas that are on their way to elsewhere, or whose volume goes.
    pub leaving: usize,
    pub bytes: u64,
}

pub fn left(state: &State, live: &Live, server: &ServerId) -> Left {
    let mut left = Left::default();
    for group in state.groups.values().filter(|g| holds(live, g, server)) {
        left.bytes = left.bytes.saturating_add(live.stored(group.config.group));
        if is_leaving(state, group, server) {
            left.leaving += 1;
        } else {
            left.staying += 1;
        }
    }
    left
}

/// The replica lies on a server that is drained.
pub fn drains(case: &Case<'_>, replica: ReplicaId) -> bool {
    let server = case.state.servers.get(case.server_of(replica));
    server.is_some_and(|s| s.duty == Duty::Draining)
}

/// What is left on a drive that is out of service does not count: nobody can move or remove it.
fn holds(live: &Live, group: &Group, server: &ServerId) -> bool {
    let is_member = |p: &Placed| group.config.member(p.replica).is_some();
    let mut here = group.replicas.values().filter(|p| p.drive.server == *server);
    here.any(|p| is_member(p) || !live.lies_on_failed(p))
}

fn is_leaving(state: &State, group: &Group, server: &ServerId) -> bool {
    let volume = state.volumes.get(&group.config.volume);
    let goes =
        volume.is_none_or(|v| matches!(v.state, VolumeState::Deleting | VolumeState::Deleted));
    goes || group.desired.iter().all(|p| p.drive.server != *server)
}

/// A move away from the server, or why there is none.
pub fn drain<'a>(
    cases: impl Iterator<Item = Case<'a>>,
    fleet: &Fleet,
    server: &ServerId,
    random: &mut Random,
) -> Result<Decision, String> {
    let mut waiting = 0_usize;
    let mut refusal = None;
    let mut tried = 0;
    for case in cases {
        let here = case.group.desired.iter().find(|p| p.drive.server == *server);
        let Some(here) = here.map(|p| p.replica) else { continue };
        let facts = case.live.groups.get(&case.config().group);
        if !facts.is_some_and(|f| case.is_at_rest(f) && f.move_pause.over(case.now)) {
            waiting += 1;
            continue;
        }
        match replacing::replaced(&case, fleet, Some(here), zone_rule(&case, here), random) {
            Ok(group) => {
                return Ok(Decision { writes: vec![case.put_group(group)], placed: true });
            }
            Err(error) => refusal = Some(format!("{}: {error}", case.volume.volume)),
        }
        tried += 1;
        if tried == TRIED_MAX {
            break;
        }
    }
    Err(match refusal {
        Some(refusal) => {
            format!("no drive takes any of its replicas; the last tried was of {refusal}")
        }
        None => format!("its {waiting} other volumes are not whole and at rest"),
    })
}
