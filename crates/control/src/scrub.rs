//! Scrubs of a volume that somebody asked for: every replica is read and verified now.
//!
//! Decides: which replicas are read, and when it is over.
//! Does not: read (servers do), or keep anything durable: a scrub that the manager forgets with a
//! restart is asked for again.
//! Invariant: a volume has one scrub at a time; whoever asks during it gets that one.

use std::collections::BTreeMap;

use format::ctl::{Damage, FromManager};
use model::{
    id::{GroupId, ReplicaId, VolumeId},
    state::VolumeState,
};

use crate::{
    api::{ApiError, Caller, Done},
    case::Case,
    command::{Desk, Outcome},
    live::{GroupLive, MessageKey, Peer},
    reconcile::{Repeat, Telling},
};

/// A scrub of one volume, and how far each replica is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeScrub {
    pub volume: VolumeId,
    pub group: GroupId,
    /// Tells it from the volume's earlier ones.
    pub pass: u64,
    pub replicas: BTreeMap<ReplicaId, ReplicaScrub>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplicaScrub {
    pub percent: u8,
    pub bytes: u64,
    pub damage: Damage,
    pub finished: bool,
    pub failure: Option<String>,
}

impl VolumeScrub {
    pub fn is_finished(&self) -> bool {
        self.replicas.values().all(|replica| replica.finished)
    }
}

/// The command: begins a scrub of all in-sync replicas, or shows the one under way.
pub fn begin(desk: &mut Desk<'_>, caller: &Caller, volume: VolumeId) -> Outcome {
    let record = desk.volume(caller.account, volume)?;
    if !matches!(record.state, VolumeState::Available | VolumeState::InUse) {
        let text = format!("The volume '{volume}' is {}, not available or in use", record.state);
        return Err(ApiError::new("IncorrectState", text));
    }
    let running = desk.live.groups.get(&record.group).and_then(|facts| facts.scrub.as_ref());
    if let Some(running) = running.filter(|scrub| !scrub.is_finished()) {
        return Ok((Vec::new(), Done::Scrub(running.clone())));
    }
    let group = desk.state.groups.get(&record.group).expect("a volume has its group");
    let members = group.config.in_sync();
    let scrub = VolumeScrub {
        volume,
        group: record.group,
        // Numbers in JSON are exact up to 2^53.
        pass: desk.random.bits() >> 11,
        replicas: members.map(|m| (m.replica, ReplicaScrub::default())).collect(),
    };
    Ok((Vec::new(), Done::Scrub(scrub)))
}

/// A replica that left the set has nothing more to say.
pub fn note(case: &Case<'_>, facts: &mut GroupLive) {
    let Some(scrub) = &mut facts.scrub else { return };
    for (replica, progress) in &mut scrub.replicas {
        if !progress.finished && !case.config().is_in_sync(*replica) {
            progress.finished = true;
            progress.failure = Some("the replica left the in-sync set".to_owned());
        }
    }
}

/// What servers should be told.
pub fn tell(case: &Case<'_>, facts: &GroupLive) -> Vec<Telling> {
    let Some(scrub) = &facts.scrub else { return Vec::new() };
    let open = scrub.replicas.iter().filter(|(_, progress)| !progress.finished);
    let here = open.filter(|(replica, _)| case.config().is_in_sync(**replica));
    here.map(|(&replica, _)| Telling {
        to: Peer::Server(case.server_of(replica).clone()),
        key: MessageKey::Scrub(replica, scrub.pass),
        message: FromManager::Scrub { replica, pass: scrub.pass },
        repeat: Repeat::UntilAnswered,
    })
    .collect()
}
