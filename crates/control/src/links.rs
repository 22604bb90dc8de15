//! Control links: who is at the other end, and what they report.
//!
//! Decides: whether a link is accepted.
//! Does not: act on reports; it files them in [`Live`] and marks the groups concerned.
//! Invariants: a peer has at most one link; a message before the registration, or of the wrong
//! kind of peer, closes the link and changes nothing; memory grows only with what the state
//! knows.

use format::{
    ctl::{
        DriveState, DriveStatus, FillProgress, FromManager, RegisterNode, RegisterServer,
        ReplicaProgress, ToManager,
    },
    record::{Group, Instance, Record, Server, ServerDrive},
};
use model::{
    id::{GroupId, NodeId, ReplicaId, ServerId, Zone},
    state::Duty,
    time::{Instant, WallTime},
};

use crate::{
    live::{
        AttachedReport, ExportReport, LearnerFailure, Link, Live, NodeLive, Peer, ServerLive,
        Silence,
    },
    machine::{Action, LinkId},
    scrub::ReplicaScrub,
    state::{State, Write},
};

/// Links that have opened and not closed. Beyond it a new one is closed.
const LINKS_MAX: usize = 4096;

/// What filing a message needs beside the facts themselves.
pub struct Context<'a> {
    pub state: &'a State,
    pub cluster: &'a str,
    pub zones: &'a [Zone],
    pub now: Instant,
    /// A link of another run of the same server is believed dead when silent for this long.
    pub takeover: std::time::Duration,
}

/// Of what a peer gives as a reason, kept to be shown.
const REASON_CHARS_MAX: usize = 500;

pub fn opened(live: &mut Live, link: LinkId, out: &mut Vec<Action>) {
    if live.links.len() >= LINKS_MAX {
        out.push(Action::CloseLink { link });
        return;
    }
    live.links.insert(link, Link { peer: None, sent: Default::default() });
}

pub fn closed(live: &mut Live, link: LinkId) {
    let Some(Link { peer: Some(peer), .. }) = live.links.remove(&link) else { return };
    match peer {
        Peer::Server(server) => {
            if let Some(s) = live.servers.get_mut(&server).filter(|s| s.link == Some(link)) {
                s.link = None;
            }
        }
        Peer::Node(node) => {
            if let Some(n) = live.nodes.get_mut(&node).filter(|n| n.link == Some(link)) {
                n.link = None;
            }
        }
    }
    live.dirty.all = true;
}

pub fn received(
    live: &mut Live,
    context: &Context<'_>,
    link: LinkId,
    message: ToManager,
    out: &mut Vec<Action>,
) {
    let Some(known) = live.links.get(&link) else { return };
    let accepted = match (known.peer.clone(), message) {
        (None, ToManager::RegisterServer(r)) => register_server(live, context, link, r),
        (None, ToManager::RegisterNode(r)) => register_node(live, context, link, r),
        (None, _) => Err("the first message must register".to_owned()),
        (Some(_), ToManager::RegisterServer(_) | ToManager::RegisterNode(_)) => {
            Err("this link is already registered".to_owned())
        }
        (Some(Peer::Server(server)), message) => from_server(live, context, &server, message),
        (Some(Peer::Node(node)), message) => from_node(live, context, &node, message),
    };
    if let Err(reason) = accepted {
        out.push(Action::Send { link, message: FromManager::Rejected { reason } });
        out.push(Action::CloseLink { link });
        closed(live, link);
    }
}

fn register_server(
    live: &mut Live,
    context: &Context<'_>,
    link: LinkId,
    registration: RegisterServer,
) -> Result<(), String> {
    check_place(context, &registration.cluster, &registration.zone)?;
    if let Some(s) = live.servers.get(&registration.server)
        && let Some(old) = s.link
    {
        if s.boot != registration.boot && context.now.since(s.heard) < context.takeover {
            return Err(format!("another process is linked as {}", registration.server));
        }
        live.links.remove(&old);
    }
    let server = registration.server.clone();
    if let Some(l) = live.links.get_mut(&link) {
        l.peer = Some(Peer::Server(server.clone()));
    }
    let mut replicas = std::collections::BTreeMap::new();
    for report in &registration.replicas {
        live.note_promise(report.replica, report.promised);
        live.refused.remove(&report.replica);
        note_registered_primary(live, context, &registration, report);
        replicas.insert(report.replica, report.clone());
    }
    let failed = |d: &format::ctl::DriveReport| d.failed.clone().map(|f| (d.drive.clone(), f));
    let failed_drives = registration.drives.iter().filter_map(failed).collect();
    let facts = ServerLive {
        link: Some(link),
        boot: registration.boot,
        heard: context.now,
        registration,
        replicas,
        failed_drives,
        drives: Default::default(),
    };
    live.servers.insert(server.clone(), facts);
    live.unrecorded_servers.insert(server);
    live.dirty.all = true;
    Ok(())
}

/// A primary whose server did not restart acts under the configuration it last adopted.
fn note_registered_primary(
    live: &mut Live,
    context: &Context<'_>,
    registration: &RegisterServer,
    report: &format::ctl::ReplicaReport,
) {
    let Some(group) = context.state.groups.get(&report.group) else { return };
    if group.primary_boot == Some(registration.boot)
        && group.config.primary().replica == report.replica
    {
        let facts = live.groups.entry(report.group).or_default();
        facts.adopted = Some((report.replica, report.adopted));
    }
}

fn register_node(
    live: &mut Live,
    context: &Context<'_>,
    link: LinkId,
    registration: RegisterNode,
) -> Result<(), String> {
    check_place(context, &registration.cluster, &registration.zone)?;
    for instance in &registration.instances {
        if let Some(known) = context.state.instances.get(instance)
            && known.account != registration.account
        {
            return Err(format!("{instance} belongs to another account"));
        }
    }
    if let Some(n) = live.nodes.get(&registration.node)
        && let Some(old) = n.link
    {
        if n.boot != registration.boot && context.now.since(n.heard) < context.takeover {
            return Err(format!("another process is linked as {}", registration.node));
        }
        live.links.remove(&old);
    }
    let node = registration.node.clone();
    if let Some(l) = live.links.get_mut(&link) {
        l.peer = Some(Peer::Node(node.clone()));
    }
    let held = |(volume, attach_generation): &(_, _)| {
        (*volume, AttachedReport { attach_generation: *attach_generation, ready: None })
    };
    let facts = NodeLive {
        link: Some(link),
        boot: registration.boot,
        heard: context.now,
        attached: registration.attachments.iter().map(held).collect(),
        registration,
        detached: Default::default(),
        device_failures: Default::default(),
        told: Default::default(),
    };
    live.nodes.insert(node.clone(), facts);
    live.unrecorded_nodes.insert(node);
    live.dirty.all = true;
    Ok(())
}

fn check_place(context: &Context<'_>, cluster: &str, zone: &Zone) -> Result<(), String> {
    if cluster != context.cluster {
        let ours = context.cluster;
        return Err(format!("this is the manager of cluster '{ours}', not of '{cluster}'"));
    }
    if !context.zones.contains(zone) {
        return Err(format!("this cluster has no zone '{zone}'"));
    }
    Ok(())
}

fn from_server(
    live: &mut Live,
    context: &Context<'_>,
    server: &ServerId,
    message: ToManager,
) -> Result<(), String> {
    let now = context.now;
    let facts = live.servers.get_mut(server).expect("a registered link has its server");
    facts.heard = now;
    match message {
        ToManager::Beat { replicas } => {
            replicas.iter().for_each(|progress| beat(live, context, server, progress));
        }
        ToManager::ReplicaCreated { replica } => created(live, context, server, replica),
        ToManager::ReplicaRefused { replica, reason } => {
            if let Some(group) = group_of(context.state, server, replica) {
                live.refused.insert(replica, reason);
                let drives = group.replicas[&replica].drives();
                live.refused_by.extend(drives.map(|drive| (drive, now)));
                live.mark(group.config.group);
            }
        }
        ToManager::ReplicaRemoved { replica } => {
            facts.replicas.remove(&replica);
            if let Some(group) = group_of(context.state, server, replica) {
                live.removed.insert(replica);
                let drives = group.replicas[&replica].drives();
                drives.for_each(|drive| live.relief.freed(&drive, now));
                live.mark(group.config.group);
            }
        }
        ToManager::ReplicaStale { replica } => {
            facts.replicas.remove(&replica);
            if let Some(group) = group_of(context.state, server, replica) {
                live.mark(group.config.group);
            }
        }
        ToManager::Promised { replica, epoch, state } => {
            if let Some(group) = group_of(context.state, server, replica) {
                facts.replicas.insert(replica, state);
                live.note_promise(replica, epoch);
                live.mark(group.config.group);
            }
        }
        ToManager::DriveFailed { drive, reason } => {
            facts.failed_drives.insert(drive, reason);
            live.drive_failed(server);
        }
        ToManager::DriveStatus(status) => drive_status(live, server, status),
        ToManager::Scrubbed { .. } => scrubbed(live, context, server, message),
        ToManager::Adopted { .. }
        | ToManager::HandedOver { .. }
        | ToManager::MemberSilent { .. }
        | ToManager::MemberDiffers { .. }
        | ToManager::MemberSlow { .. }
        | ToManager::LearnerReady { .. }
        | ToManager::LearnerFailed { .. } => group_report(live, context, server, message),
        _ => return Err("a server does not send this".to_owned()),
    }
    Ok(())
}

/// Bounded: a server may only report drives that it registered.
fn drive_status(live: &mut Live, server: &ServerId, status: DriveStatus) {
    let facts = live.servers.get_mut(server).expect("a registered link has its server");
    if !facts.registration.drives.iter().any(|d| d.drive == status.drive) {
        return;
    }
    // The message that said so first may have been lost with a link.
    if status.state == DriveState::OutOfService && !facts.failed_drives.contains_key(&status.drive)
    {
        let reason = status.reason.clone().unwrap_or_else(|| "the server says no more".to_owned());
        facts.failed_drives.insert(status.drive.clone(), reason);
        facts.drives.insert(status.drive.clone(), status);
        return live.drive_failed(server);
    }
    facts.drives.insert(status.drive.clone(), status);
}

/// The group that has a replica there, if the state knows it.
fn group_of<'a>(state: &'a State, server: &ServerId, replica: ReplicaId) -> Option<&'a Group> {
    let holds = |g: &&Group| g.replicas.get(&replica).is_some_and(|p| p.drive.server == *server);
    state.groups.values().find(holds)
}

fn scrubbed(live: &mut Live, context: &Context<'_>, server: &ServerId, message: ToManager) {
    let ToManager::Scrubbed { replica, pass, percent, bytes, damage, finished, failure } = message
    else {
        unreachable!("the caller passes this alone");
    };
    let Some(group) = group_of(context.state, server, replica) else { return };
    let facts = live.groups.entry(group.config.group).or_default();
    let scrub = facts.scrub.as_mut().filter(|scrub| scrub.pass == pass);
    let known = scrub.and_then(|scrub| scrub.replicas.get_mut(&replica));
    let Some(known) = known.filter(|known| !known.finished) else { return };
    // A server that did all of it before it was asked again has nothing to add.
    let bytes = bytes.max(known.bytes);
    *known = ReplicaScrub { percent, bytes, damage, finished, failure };
}

fn created(live: &mut Live, context: &Context<'_>, server: &ServerId, replica: ReplicaId) {
    let Some(group) = group_of(context.state, server, replica) else { return };
    let placed = &group.replicas[&replica];
    let report = format::ctl::ReplicaReport {
        replica,
        group: group.config.group,
        drive: placed.drive.drive.clone(),
        promised: live.promised(replica),
        adopted: model::epoch::Epoch::NONE,
        allocated: Default::default(),
    };
    live.refused.remove(&replica);
    if let Some(facts) = live.servers.get_mut(server) {
        facts.replicas.entry(replica).or_insert(report);
    }
    live.mark(group.config.group);
}

fn beat(live: &mut Live, context: &Context<'_>, server: &ServerId, progress: &ReplicaProgress) {
    let Some(group) = context.state.groups.get(&progress.group) else { return };
    let primary = group.config.primary();
    if primary.replica != progress.replica || primary.server != *server {
        return;
    }
    let same_run = live.servers.get(server).map(|s| s.boot) == group.primary_boot;
    let facts = live.groups.entry(progress.group).or_default();
    facts.allocated = progress.allocated;
    let acts = Some((progress.replica, progress.epoch));
    if same_run && facts.adopted != acts {
        facts.adopted = acts;
        live.dirty.groups.insert(progress.group);
    }
    if facts.fill != progress.fill {
        facts.fill = progress.fill;
        live.mark(progress.group);
    }
}

/// What a primary says of its group. Believed of the replica that the state calls primary.
fn group_report(live: &mut Live, context: &Context<'_>, server: &ServerId, message: ToManager) {
    let (ToManager::Adopted { group, .. }
    | ToManager::HandedOver { group, .. }
    | ToManager::MemberSilent { group, .. }
    | ToManager::MemberDiffers { group, .. }
    | ToManager::MemberSlow { group, .. }
    | ToManager::LearnerReady { group, .. }
    | ToManager::LearnerFailed { group, .. }) = message
    else {
        unreachable!("the caller passes reports of primaries alone");
    };
    let Some(record) = context.state.groups.get(&group) else { return };
    if record.config.primary().server != *server {
        return;
    }
    let now = context.now;
    live.mark(group);
    let facts = live.groups.entry(group).or_default();
    match message {
        ToManager::Adopted { replica, epoch, .. } => facts.adopted = Some((replica, epoch)),
        ToManager::HandedOver { epoch, .. } => {
            if let Some(h) = facts.hand_over.as_mut().filter(|h| h.epoch == epoch) {
                h.handed_over.get_or_insert(now);
            }
        }
        ToManager::MemberSilent { epoch, silent, .. } => {
            if record.config.member(silent).is_some() {
                let before = facts.silent.get(&silent).copied();
                facts.silent.insert(silent, Silence::again(before, epoch, now));
            }
        }
        ToManager::MemberDiffers { epoch, member, .. } => {
            if record.config.is_in_sync(member) {
                facts.differing.insert(member, epoch);
            }
        }
        ToManager::MemberSlow { epoch, member, takes_us, others_take_us, .. } => {
            if record.config.is_in_sync(member) {
                let before = facts.slow.get(&member).copied();
                facts.slow.insert(member, Silence::again(before, epoch, now));
                facts.relieved.why = Some(format!(
                    "writes took replica {member} {takes_us} us, and the others {others_take_us} us"
                ));
            }
        }
        // The later of the two holds.
        ToManager::LearnerReady { epoch, learner, bytes_moved, .. } => {
            facts.ready = Some((epoch, learner));
            let total = record.config.size.get();
            facts.fill = Some(FillProgress {
                learner_replica: learner.raw(),
                bytes_done: total,
                bytes_total: total,
                bytes_moved,
            });
            facts.failed = None;
        }
        ToManager::LearnerFailed { epoch, learner, reason, .. } => {
            facts.failed = Some(LearnerFailure { epoch, learner, reason });
            facts.ready = None;
        }
        _ => unreachable!("matched above"),
    }
}

/// Whether a volume of the group is attached to an instance of this node manager.
fn uses(state: &State, node: &NodeId, group: GroupId) -> bool {
    let Some(group) = state.groups.get(&group) else { return false };
    let mut instances = state.attachments_of(group.config.volume).map(|a| a.instance);
    instances.any(|i| state.instances.get(&i).is_some_and(|known| known.node == *node))
}

fn from_node(
    live: &mut Live,
    context: &Context<'_>,
    node: &NodeId,
    message: ToManager,
) -> Result<(), String> {
    let facts = live.nodes.get_mut(node).expect("a registered link has its node manager");
    facts.heard = context.now;
    let volume = match message {
        ToManager::Beat { .. } => return Ok(()),
        ToManager::Attached { volume, attach_generation, nbd_uris, device } => {
            // Bounded: a node manager may only report volumes that exist.
            if !context.state.volumes.contains_key(&volume) && !facts.attached.contains_key(&volume)
            {
                return Ok(());
            }
            if device.is_some() {
                facts.device_failures.remove(&volume);
            }
            let ready = Some(ExportReport { nbd_uris, device });
            facts.attached.insert(volume, AttachedReport { attach_generation, ready });
            volume
        }
        ToManager::Detached { volume, attach_generation } => {
            if facts.attached.get(&volume).is_some_and(|a| a.attach_generation <= attach_generation)
            {
                facts.attached.remove(&volume);
            }
            facts.device_failures.remove(&volume);
            if context.state.volumes.contains_key(&volume) {
                facts.detached.insert(volume, attach_generation);
            }
            volume
        }
        ToManager::PrimarySilent { group, epoch, out_of_reach } => {
            if uses(context.state, node, group) {
                let facts = live.groups.entry(group).or_default();
                facts.primary_silent = Some((epoch, context.now));
                let again = || Silence::again(facts.out_of_reach, epoch, context.now);
                facts.out_of_reach = out_of_reach.then(again);
                if out_of_reach {
                    facts.unreached = Some(context.now);
                }
                live.mark(group);
            }
            return Ok(());
        }
        ToManager::DeviceFailed { volume, reason } => {
            if context.state.volumes.contains_key(&volume) {
                let reason = reason.chars().take(REASON_CHARS_MAX).collect();
                facts.device_failures.insert(volume, reason);
            }
            return Ok(());
        }
        ToManager::SizeShown { volume, .. } => {
            facts.device_failures.remove(&volume);
            return Ok(());
        }
        _ => return Err("a node manager does not send this".to_owned()),
    };
    if let Some(record) = context.state.volumes.get(&volume) {
        live.mark(record.group);
    }
    Ok(())
}

/// The writes that make the state reflect who has registered.
pub fn registrations(live: &mut Live, state: &State, wall: WallTime) -> Vec<Write> {
    let mut writes = Vec::new();
    for server in std::mem::take(&mut live.unrecorded_servers) {
        let Some(facts) = live.servers.get(&server) else { continue };
        let known = state.servers.get(&server);
        let duty = known.map(|s| s.duty).unwrap_or_default();
        let record = server_record(&facts.registration, duty);
        if known != Some(&record) {
            writes.push(Write::Put(Record::Server(record)));
        }
    }
    for node in std::mem::take(&mut live.unrecorded_nodes) {
        let Some(facts) = live.nodes.get(&node) else { continue };
        for instance in &facts.registration.instances {
            let known = state.instances.get(instance);
            let record = Instance {
                instance: *instance,
                account: facts.registration.account,
                node: node.clone(),
                zone: facts.registration.zone.clone(),
                registered: known.map_or(wall, |i| i.registered),
                tags: known.map(|i| i.tags.clone()).unwrap_or_default(),
            };
            if known != Some(&record) {
                writes.push(Write::Put(Record::Instance(record)));
            }
        }
    }
    writes
}

fn server_record(registration: &RegisterServer, duty: Duty) -> Server {
    let drive = |d: &format::ctl::DriveReport| ServerDrive {
        drive: d.drive.clone(),
        media: d.media,
        capacity: d.capacity,
        rate: d.rate,
        emulation: d.emulation.clone(),
    };
    Server {
        server: registration.server.clone(),
        zone: registration.zone.clone(),
        address: registration.address,
        drives: registration.drives.iter().map(drive).collect(),
        duty,
    }
}
