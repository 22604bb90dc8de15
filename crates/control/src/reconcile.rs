//! Looking again: what a group needs decided, and what servers and node managers need to be
//! told, from the state and the facts alone.
//!
//! Decides: in which order the rules of the other modules are asked.
//! Does not: remember where an operation stands. The same state and facts give the same answer,
//! whether this is the first look or the one after a crash.
//! Invariant: what is to be told follows from durable records.

use format::{
    ctl::{Attach, FromManager},
    record::{Attachment, Group},
};
use model::{
    id::{NodeId, ReplicaId, ServerId},
    state::{AttachmentState, VolumeState},
};

use crate::{
    attachment,
    case::{Case, Decision},
    creation,
    live::{GroupLive, Live, MessageKey, Peer},
    membership, modification,
    random::Random,
    replacing, scrub,
};

/// A message that somebody should have.
#[derive(Debug)]
pub struct Telling {
    pub to: Peer,
    pub key: MessageKey,
    pub message: FromManager,
    pub repeat: Repeat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// Until the answer has come; then it is not asked for any more.
    UntilAnswered,
    /// Once on each link: the link delivers it or closes.
    OncePerLink,
}

/// What to decide next for the group, if anything.
pub fn decide(case: &Case<'_>, facts: &mut GroupLive, random: &mut Random) -> Option<Decision> {
    match case.volume.state {
        VolumeState::Deleting | VolumeState::Deleted => creation::finish(case),
        VolumeState::Error => None,
        VolumeState::Creating => {
            replacing::note_existence(case).or_else(|| creation::advance(case, facts, random))
        }
        VolumeState::Available | VolumeState::InUse => replacing::note_existence(case)
            .or_else(|| membership::decide(case, facts))
            .or_else(|| replacing::decide(case, facts, random))
            .or_else(|| attachment::advance(case, facts))
            .or_else(|| modification::advance(case, facts)),
    }
}

/// What servers and node managers should be told of the group.
pub fn tell(case: &Case<'_>, facts: &GroupLive) -> Vec<Telling> {
    let mut tellings = Vec::new();
    match case.volume.state {
        VolumeState::Deleting | VolumeState::Deleted => {
            return tell_removals(case.live, case.group, case.group.replicas.keys().copied());
        }
        VolumeState::Error => return tellings,
        VolumeState::Creating | VolumeState::Available | VolumeState::InUse => {}
    }
    tell_replicas(case, facts, &mut tellings);
    tell_primary(case, facts, &mut tellings);
    tell_nodes(case, facts, &mut tellings);
    tellings.extend(scrub::tell(case, facts));
    tellings
}

fn to_server(server: &ServerId, key: MessageKey, message: FromManager) -> Telling {
    Telling { to: Peer::Server(server.clone()), key, message, repeat: Repeat::UntilAnswered }
}

/// Replicas that are to go. What a drive that is out of service holds goes when it comes back, with a
/// new link of its server; what lies on others beside it goes now.
pub fn tell_removals(
    live: &Live,
    group: &Group,
    replicas: impl Iterator<Item = ReplicaId>,
) -> Vec<Telling> {
    replicas
        .map(|replica| &group.replicas[&replica])
        .map(|placed| {
            let (replica, drive) = (placed.replica, placed.drive.drive.clone());
            let beside = placed.beside.clone();
            let message = FromManager::RemoveReplica { replica, drive, beside };
            let key = MessageKey::Remove(replica);
            let telling = to_server(&placed.drive.server, key, message);
            let waits = live.lies_on_failed(placed);
            Telling { repeat: if waits { Repeat::OncePerLink } else { telling.repeat }, ..telling }
        })
        .collect()
}

fn tell_replicas(case: &Case<'_>, facts: &GroupLive, tellings: &mut Vec<Telling>) {
    let config = case.config();
    // The new size and rate first, so that the steps of a modification come in their order.
    let waiting = case.modification.is_some_and(|m| m.step == "reserve") && !case.is_current();
    let surplus = |r: &&ReplicaId| replacing::is_surplus(case, **r);
    for placed in case.group.replicas.values() {
        let replica = placed.replica;
        if placed.created || surplus(&&replica) || case.live.refused.contains_key(&replica) {
            continue;
        }
        if waiting && config.member(replica).is_none() {
            continue;
        }
        let message = FromManager::CreateReplica {
            replica,
            group: config.group,
            volume: config.volume,
            drive: placed.drive.drive.clone(),
            beside: placed.beside.clone(),
            size: placed.size.to_bytes(),
        };
        let server = &placed.drive.server;
        tellings.push(to_server(server, MessageKey::Create(replica), message));
    }
    if case.adopted(facts) {
        let kept = |r: &&ReplicaId| facts.relieved.kept.contains(*r);
        let gone = case.group.replicas.keys().filter(surplus).filter(|r| !kept(r)).copied();
        tellings.extend(tell_removals(case.live, case.group, gone));
    }
}

fn tell_primary(case: &Case<'_>, facts: &GroupLive, tellings: &mut Vec<Telling>) {
    let config = case.config();
    if case.volume.state != VolumeState::Creating {
        let candidates = membership::candidates(case, facts);
        tellings.extend(candidates.into_iter().filter_map(|r| prepare(case, r)));
    }
    let made = config.members.iter().all(|m| case.placed(m.replica).created);
    let primary = config.primary();
    if made && case.primary_runs() && !case.adopted(facts) {
        let message = FromManager::Configure { config: config.clone() };
        let key = MessageKey::Configure(config.group, config.epoch);
        tellings.push(to_server(&primary.server, key, message));
    }
    if let Some(h) = facts.hand_over {
        if h.handed_over.is_some() {
            let asked = replacing::who_must_promise(case, h.target);
            tellings.extend(asked.filter_map(|replica| prepare(case, replica)));
        } else {
            let message = FromManager::HandOver { group: config.group, epoch: config.epoch };
            let key = MessageKey::HandOver(config.group, config.epoch);
            tellings.push(to_server(&primary.server, key, message));
        }
    }
}

fn prepare(case: &Case<'_>, replica: ReplicaId) -> Option<Telling> {
    let epoch = case.next_epoch();
    if case.live.promised(replica) >= epoch {
        return None;
    }
    let group = case.config().group;
    let as_mirror = case.config().mirrors().any(|m| m.replica == replica);
    let message = FromManager::Prepare { replica, group, epoch, as_mirror };
    Some(to_server(case.server_of(replica), MessageKey::Prepare(replica, epoch), message))
}

fn tell_nodes(case: &Case<'_>, facts: &GroupLive, tellings: &mut Vec<Telling>) {
    for record in case.state.attachments_of(case.volume.volume) {
        let Some(instance) = case.state.instances.get(&record.instance) else { continue };
        let telling = match record.state {
            AttachmentState::Attaching | AttachmentState::Attached => {
                attach(case, facts, record, &instance.node)
            }
            AttachmentState::Detaching | AttachmentState::Detached => {
                let letting_go = detach(case, record, &instance.node);
                // Until it has let go it must know where to drain to: its primary may have died, or
                // act under another configuration.
                if letting_go.is_some() && !record.force {
                    tellings.extend(attach(case, facts, record, &instance.node));
                }
                letting_go
            }
        };
        tellings.extend(telling);
    }
}

/// Whether the node manager was told, on its present link, who is primary now.
fn knows_primary(case: &Case<'_>, record: &Attachment, node: &NodeId) -> bool {
    let told = case.live.nodes.get(node).and_then(|live| live.told.get(&record.volume));
    told == Some(&case.config().primary().replica)
}

/// The configuration, once the primary acts under it; at once when the primary is another than
/// the node manager was told.
fn attach(
    case: &Case<'_>,
    facts: &GroupLive,
    record: &Attachment,
    node: &NodeId,
) -> Option<Telling> {
    let config = case.config();
    if config.attach_generation != record.attach_generation {
        return None;
    }
    // Who used the volume already must know where it is, even before that is ready; on a new link
    // nobody knows what it was told.
    let used = record.state != AttachmentState::Attaching
        || case.live.nodes.get(node)?.told.contains_key(&record.volume);
    if !case.adopted(facts) && (!used || knows_primary(case, record, node)) {
        return None;
    }
    let attach = Attach {
        volume: record.volume,
        instance: record.instance,
        device: record.device.clone(),
        kernel_device: record.kernel_device_wanted,
        config: config.clone(),
    };
    let answered = record.state != AttachmentState::Attaching;
    Some(Telling {
        to: Peer::Node(node.clone()),
        key: MessageKey::Attach(record.volume, config.epoch),
        message: FromManager::Attach(attach),
        repeat: if answered { Repeat::OncePerLink } else { Repeat::UntilAnswered },
    })
}

fn detach(case: &Case<'_>, record: &Attachment, node: &NodeId) -> Option<Telling> {
    let facts = case.live.nodes.get(node)?;
    let (volume, attach_generation) = (record.volume, record.attach_generation);
    let done = facts.detached.get(&volume).is_some_and(|g| *g >= attach_generation);
    if done {
        return None;
    }
    Some(let_go(node, volume, attach_generation, record.force))
}

fn let_go(
    node: &NodeId,
    volume: model::id::VolumeId,
    attach_generation: model::epoch::AttachGeneration,
    force: bool,
) -> Telling {
    Telling {
        to: Peer::Node(node.clone()),
        key: MessageKey::Detach(volume, attach_generation, force),
        message: FromManager::Detach { volume, attach_generation, force },
        repeat: Repeat::UntilAnswered,
    }
}

/// What node managers hold that nobody wants attached any more: detached by force while they
/// were away. It is fenced, so there is nothing to finish.
pub fn tell_leftovers(state: &crate::state::State, live: &Live) -> Vec<Telling> {
    let mut tellings = Vec::new();
    for (node, facts) in live.nodes.iter().filter(|(_, n)| n.link.is_some()) {
        for (volume, held) in &facts.attached {
            let here =
                |a: &&Attachment| state.instances.get(&a.instance).is_some_and(|i| i.node == *node);
            let wanted = state.attachments_of(*volume).find(here);
            let current = wanted.is_some_and(|a| a.attach_generation >= held.attach_generation);
            if !current {
                tellings.push(let_go(node, *volume, held.attach_generation, true));
            }
        }
    }
    tellings
}
