//! What the manager knows and does not store: links, who is up, what servers and node managers
//! report.
//!
//! Decides: whether a server counts as up, unknown or down.
//! Does not: change anything durable. All of it is lost with the process and told again by
//! servers and node managers when they register.
//! Invariant: facts here come from messages alone, so they may be old: whoever acts on one checks
//! the epoch or generation it names against the state.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use format::{
    ctl::{DriveStatus, FillProgress, FromManager, RegisterServer, ReplicaReport},
    record::Placed,
};
use model::{
    epoch::{AttachGeneration, Epoch},
    id::{BootId, DriveId, DriveName, GroupId, NodeId, ReplicaId, ServerId, VolumeId},
    time::Instant,
    units::ByteCount,
};

use crate::{
    duty::Drains,
    fullness::Relief,
    machine::{LinkId, Timing},
    reconcile::{Repeat, Telling},
    scrub::VolumeScrub,
    state::State,
};

/// When a message was sent is forgotten after this long; it is sent again long before.
const SENT_KEPT: Duration = Duration::from_secs(30);

/// A drive that refused a replica is not asked again for this long.
const REFUSAL_KEPT: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub struct Live {
    pub started: Instant,
    pub links: BTreeMap<LinkId, Link>,
    pub servers: BTreeMap<ServerId, ServerLive>,
    pub nodes: BTreeMap<NodeId, NodeLive>,
    pub groups: BTreeMap<GroupId, GroupLive>,
    /// The highest epoch each replica is known to have promised.
    pub promised: BTreeMap<ReplicaId, Epoch>,
    /// Replicas that a server would not make, and why.
    pub refused: BTreeMap<ReplicaId, String>,
    /// Drives that refused a replica lately: nothing is placed there for a while.
    pub refused_by: BTreeMap<DriveId, Instant>,
    /// Replicas that a server has removed, until the state says so too.
    pub removed: BTreeSet<ReplicaId>,
    /// Registrations that the state does not reflect yet.
    pub unrecorded_servers: BTreeSet<ServerId>,
    pub unrecorded_nodes: BTreeSet<NodeId>,
    pub dirty: Dirty,
    pub relief: Relief,
    /// Servers that are drained.
    pub drains: Drains,
}

/// Which groups to look at again.
#[derive(Debug, Default)]
pub struct Dirty {
    pub all: bool,
    pub groups: BTreeSet<GroupId>,
}

/// One control link.
#[derive(Debug)]
pub struct Link {
    /// `None` until it has registered.
    pub peer: Option<Peer>,
    /// When each message was last sent on it.
    pub sent: BTreeMap<MessageKey, Instant>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    Server(ServerId),
    Node(NodeId),
}

/// What a message is about: two with one key on one link say the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MessageKey {
    Create(ReplicaId),
    Remove(ReplicaId),
    Prepare(ReplicaId, Epoch),
    Configure(GroupId, Epoch),
    HandOver(GroupId, Epoch),
    Attach(VolumeId, Epoch),
    Detach(VolumeId, AttachGeneration, bool),
    Scrub(ReplicaId, u64),
}

#[derive(Debug)]
pub struct ServerLive {
    pub link: Option<LinkId>,
    pub boot: BootId,
    pub heard: Instant,
    pub registration: RegisterServer,
    pub replicas: BTreeMap<ReplicaId, ReplicaReport>,
    pub failed_drives: BTreeMap<DriveName, String>,
    /// Of the drives in the registration, as the server last said.
    pub drives: BTreeMap<DriveName, DriveStatus>,
}

#[derive(Debug)]
pub struct NodeLive {
    pub link: Option<LinkId>,
    pub boot: BootId,
    pub heard: Instant,
    pub registration: format::ctl::RegisterNode,
    /// What it has attached, as it last said.
    pub attached: BTreeMap<VolumeId, AttachedReport>,
    /// What it has detached since it registered.
    pub detached: BTreeMap<VolumeId, AttachGeneration>,
    /// Why it could not make or grow the kernel block device of a volume.
    pub device_failures: BTreeMap<VolumeId, String>,
    /// The primary that it was last told of, per volume, on this link.
    pub told: BTreeMap<VolumeId, ReplicaId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachedReport {
    pub attach_generation: AttachGeneration,
    /// `None`: it holds the attachment but has not said that programs can use it.
    pub ready: Option<ExportReport>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportReport {
    pub nbd_uris: Vec<String>,
    pub device: Option<String>,
}

/// What is reported of a group.
#[derive(Debug, Default)]
pub struct GroupLive {
    /// Which replica acts as primary, under which epoch.
    pub adopted: Option<(ReplicaId, Epoch)>,
    pub silent: BTreeMap<ReplicaId, Silence>,
    /// Mirrors that hold something else than the primary, and under which epoch that was seen.
    pub differing: BTreeMap<ReplicaId, Epoch>,
    /// Members that make all others wait, by what the primary says each second.
    pub slow: BTreeMap<ReplicaId, Silence>,
    pub relieved: Relieved,
    pub ready: Option<(Epoch, ReplicaId)>,
    pub failed: Option<LearnerFailure>,
    /// The learner of the configuration.
    pub stint: Option<Stint>,
    /// Since when a running primary has not adopted the configuration of this epoch.
    pub unadopted: Option<(Epoch, Instant)>,
    pub primary_silent: Option<(Epoch, Instant)>,
    /// Since when a node manager has no link to the primary, and says so again and again.
    pub out_of_reach: Option<Silence>,
    /// After a failover for that reason alone.
    pub reach_pause: Pause,
    /// When somebody last had no way to the primary of any epoch.
    pub unreached: Option<Instant>,
    pub hand_over: Option<HandOver>,
    pub learner_pause: Pause,
    /// Replicas given up in a row because they could not be filled; none since one was admitted.
    pub fills_given_up: u32,
    pub hand_over_pause: Pause,
    pub placement_pause: Pause,
    /// Why no drive takes a replica in the place of one that was lost.
    pub no_place: Option<String>,
    /// After a move away from a full drive that could not be carried out.
    pub move_pause: Pause,
    pub fill: Option<FillProgress>,
    /// The last scrub that was asked for.
    pub scrub: Option<VolumeScrub>,
    pub allocated: ByteCount,
    /// Bytes moved by fills before the present one.
    pub moved_before: Option<(ReplicaId, u64)>,
    pub progress_saved: Instant,
}

/// What was done about slow members.
#[derive(Debug, Default)]
pub struct Relieved {
    /// No longer desired, and not waited for as soon as what takes their place is there; since when.
    pub leaving: BTreeMap<ReplicaId, Instant>,
    /// Of them, those whose content is kept until the group is whole without them.
    pub kept: BTreeSet<ReplicaId>,
    /// Nothing new is placed there before that.
    pub drives: BTreeMap<DriveId, Instant>,
    /// Who was called slow last, by which primary, and when.
    pub last: Option<(ReplicaId, ReplicaId, Instant)>,
    /// Whatever is slow next may be slow for another reason: it is borne for a while.
    pub pause: Pause,
    /// For people, until the group is whole again.
    pub why: Option<String>,
}

/// A learner's time under one source: what is said of an earlier one does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stint {
    pub learner: ReplicaId,
    pub source: ReplicaId,
    /// The first epoch of it, as far as this process knows.
    pub since: Epoch,
}

#[derive(Debug, Clone, Copy)]
pub struct Silence {
    pub epoch: Epoch,
    pub first: Instant,
    pub last: Instant,
}

impl Silence {
    /// A report older than this says nothing of the present; who cannot reach somebody says so
    /// each second.
    pub const FRESH: Duration = Duration::from_millis(2_500);

    /// It was reported now, under this epoch, after what was reported before.
    pub fn again(before: Option<Self>, epoch: Epoch, now: Instant) -> Self {
        let lasting = before.filter(|b| b.epoch == epoch && b.is_fresh(now));
        Self { epoch, first: lasting.map_or(now, |b| b.first), last: now }
    }

    pub fn is_fresh(&self, now: Instant) -> bool {
        now.since(self.last) < Self::FRESH
    }

    /// It lasts, under this epoch, for so long at least.
    pub fn lasts(&self, epoch: Epoch, now: Instant, at_least: Duration) -> bool {
        self.epoch == epoch && self.is_fresh(now) && now.since(self.first) >= at_least
    }
}

#[derive(Debug, Clone)]
pub struct LearnerFailure {
    pub epoch: Epoch,
    pub learner: ReplicaId,
    pub reason: String,
}

#[derive(Debug, Clone, Copy)]
pub struct HandOver {
    pub epoch: Epoch,
    pub target: ReplicaId,
    pub started: Instant,
    /// When the primary said that it has stopped.
    pub handed_over: Option<Instant>,
}

/// Waits longer after each failure.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pause {
    failures: u32,
    until: Instant,
}

impl Pause {
    const FIRST: Duration = Duration::from_millis(500);
    const DOUBLINGS_MAX: u32 = 6;

    pub fn failed(&mut self, now: Instant) {
        self.failed_for(now, Self::FIRST);
    }

    /// `first`: how long after the first failure; twice as long after each further one.
    pub fn failed_for(&mut self, now: Instant, first: Duration) {
        self.until = now + first * (1 << self.failures.min(Self::DOUBLINGS_MAX));
        self.failures = self.failures.saturating_add(1);
    }

    pub fn failures(&self) -> u32 {
        self.failures
    }

    pub fn over(&self, now: Instant) -> bool {
        now >= self.until
    }

    pub fn until(&self) -> Instant {
        self.until
    }

    /// So long, without counting as a failure.
    pub fn rest(&mut self, now: Instant, length: Duration) {
        self.until = now + length;
    }

    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

/// How a server or a replica stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Up,
    /// Not heard of, but this manager has not run long enough to tell.
    Unknown,
    Down,
    /// The server is up and does not hold the replica any more: its drive was swapped, say.
    Missing,
    /// The server is up, and the replica's drive is out of service.
    DriveFailed,
}

impl Standing {
    /// Neither up nor possibly up.
    pub fn is_gone(self) -> bool {
        matches!(self, Self::Down) || self.is_lost()
    }

    /// Whatever it holds can be removed only when its server, or its drive, is back.
    pub fn keeps_it(self) -> bool {
        matches!(self, Self::Down | Self::DriveFailed)
    }

    /// What it held is gone, though its server is up.
    pub fn is_lost(self) -> bool {
        matches!(self, Self::Missing | Self::DriveFailed)
    }
}

impl Live {
    pub fn server_standing(&self, server: &ServerId, now: Instant, timing: &Timing) -> Standing {
        if let Some(s) = self.servers.get(server)
            && s.link.is_some()
            && now.since(s.heard) < timing.server_silence
        {
            return Standing::Up;
        }
        if now.since(self.started) < timing.start_grace {
            Standing::Unknown
        } else {
            Standing::Down
        }
    }

    /// How a replica stands whose server stands so.
    pub fn replica_standing(&self, server: Standing, placed: &Placed) -> Standing {
        if server != Standing::Up {
            return server;
        }
        let Some(facts) = self.servers.get(&placed.drive.server) else { return Standing::Unknown };
        if self.lies_on_failed(placed) {
            Standing::DriveFailed
        } else if placed.created && !facts.replicas.contains_key(&placed.replica) {
            Standing::Missing
        } else {
            Standing::Up
        }
    }

    /// What its server was asked to remove it is asked again: a removal under way may have ended
    /// with the drive.
    pub fn drive_failed(&mut self, server: &ServerId) {
        self.dirty.all = true;
        let link = self.servers.get(server).and_then(|s| s.link);
        if let Some(link) = link.and_then(|link| self.links.get_mut(&link)) {
            link.sent.retain(|key, _| !matches!(key, MessageKey::Remove(_)));
        }
    }

    /// Whether one of its drives is out of service, by what its server said last.
    pub fn lies_on_failed(&self, placed: &Placed) -> bool {
        let facts = self.servers.get(&placed.drive.server);
        let failed =
            |drive: DriveId| facts.is_some_and(|f| f.failed_drives.contains_key(&drive.drive));
        placed.drives().any(failed)
    }

    /// How long a server that is not up has been away, as far as this manager can know.
    pub fn away_for(&self, server: &ServerId, now: Instant) -> Duration {
        now.since(self.servers.get(server).map_or(self.started, |s| s.heard))
    }

    /// Bytes that each replica of the group holds, as far as this process has heard.
    pub fn stored(&self, group: GroupId) -> u64 {
        self.groups.get(&group).map_or(0, |g| g.allocated.get())
    }

    pub fn node_up(&self, node: &NodeId, now: Instant, timing: &Timing) -> bool {
        self.nodes
            .get(node)
            .is_some_and(|n| n.link.is_some() && now.since(n.heard) < timing.server_silence)
    }

    pub fn servers_up(&self, now: Instant, timing: &Timing) -> BTreeSet<ServerId> {
        let up = |s: &&ServerId| self.server_standing(s, now, timing) == Standing::Up;
        self.servers.keys().filter(up).cloned().collect()
    }

    pub fn nodes_up(&self, now: Instant, timing: &Timing) -> BTreeSet<NodeId> {
        self.nodes.keys().filter(|n| self.node_up(n, now, timing)).cloned().collect()
    }

    pub fn promised(&self, replica: ReplicaId) -> Epoch {
        self.promised.get(&replica).copied().unwrap_or(Epoch::NONE)
    }

    pub fn note_promise(&mut self, replica: ReplicaId, epoch: Epoch) {
        let known = self.promised.entry(replica).or_insert(epoch);
        *known = (*known).max(epoch);
    }

    pub fn mark(&mut self, group: GroupId) {
        self.dirty.groups.insert(group);
    }

    pub fn link_of(&self, peer: &Peer) -> Option<LinkId> {
        match peer {
            Peer::Server(server) => self.servers.get(server)?.link,
            Peer::Node(node) => self.nodes.get(node)?.link,
        }
    }

    /// Whether to send this now on its link; if so, it counts as sent.
    pub fn due(&mut self, link: LinkId, telling: &Telling, now: Instant, resend: Duration) -> bool {
        let Some(facts) = self.links.get_mut(&link) else { return false };
        if let Some(at) = facts.sent.get(&telling.key) {
            let once = telling.repeat == Repeat::OncePerLink;
            if once || now.since(*at) < resend {
                return false;
            }
        }
        if let MessageKey::Attach(volume, _) = telling.key {
            facts.sent.retain(|k, _| !matches!(k, MessageKey::Attach(v, _) if *v == volume));
        }
        facts.sent.insert(telling.key, now);
        if let (FromManager::Attach(attach), Peer::Node(node)) = (&telling.message, &telling.to)
            && let Some(node) = self.nodes.get_mut(node)
        {
            node.told.insert(attach.volume, attach.config.primary().replica);
        }
        true
    }

    /// Forgets what was said of replicas, groups and volumes that exist no more.
    pub fn retain(&mut self, now: Instant, state: &State) {
        let replicas: BTreeSet<_> =
            state.groups.values().flat_map(|g| g.replicas.keys().copied()).collect();
        self.promised.retain(|r, _| replicas.contains(r));
        self.refused.retain(|r, _| replicas.contains(r));
        self.refused_by.retain(|_, at| now.since(*at) < REFUSAL_KEPT);
        self.removed.retain(|r| replicas.contains(r));
        self.groups.retain(|g, _| state.groups.contains_key(g));
        for node in self.nodes.values_mut() {
            node.detached.retain(|v, _| state.volumes.contains_key(v));
            node.told.retain(|v, _| state.volumes.contains_key(v));
            node.device_failures.retain(|v, _| state.volumes.contains_key(v));
        }
        for link in self.links.values_mut() {
            let kept = |key: &MessageKey| match key {
                MessageKey::Attach(volume, _) => state.volumes.contains_key(volume),
                _ => false,
            };
            link.sent.retain(|key, at| kept(key) || now.since(*at) < SENT_KEPT);
        }
    }
}
