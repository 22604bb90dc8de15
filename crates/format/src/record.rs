//! Durable records of the manager: what each key of the metadata store holds.
//!
//! Keys are text, ordered; values are JSON. A field that is added later gets a serde default, so
//! that older records still decode; a field is never given a new meaning.

use std::collections::BTreeMap;

use model::{
    epoch::AttachGeneration,
    group::GroupConfig,
    id::{
        AccountId, BootId, DriveId, DriveName, GroupId, InstanceId, NodeId, ReplicaId, ServerId,
        VolumeId, Zone,
    },
    state::{AttachmentState, ModificationState, VolumeState},
    time::WallTime,
    units::{Gib, Rate},
    volume::{Stripes, VolumeType},
};
use serde::{Deserialize, Serialize};

/// One durable fact. `Record::key` is where it lives in the metadata store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
pub enum Record {
    Account(Account),
    AccessKey(AccessKey),
    Volume(Volume),
    Group(Group),
    Attachment(Attachment),
    Modification(Modification),
    Instance(Instance),
    Server(Server),
    ClientToken(ClientToken),
}

impl Record {
    pub fn key(&self) -> String {
        match self {
            Self::Account(r) => format!("account/{}", r.account),
            Self::AccessKey(r) => format!("access-key/{}", r.access_key),
            Self::Volume(r) => format!("volume/{}", r.volume),
            Self::Group(r) => format!("group/{}", r.config.group),
            Self::Attachment(r) => format!("attachment/{}/{}", r.volume, r.instance),
            Self::Modification(r) => format!("modification/{}/{:08}", r.volume, r.number),
            Self::Instance(r) => format!("instance/{}", r.instance),
            Self::Server(r) => format!("server/{}", r.server),
            Self::ClientToken(r) => format!("client-token/{}/{}", r.account, r.token),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    pub account: AccountId,
    pub name: String,
    /// May make accounts and see the fleet.
    pub root: bool,
    pub created: WallTime,
}

/// The secret is kept in the clear, because SigV4 needs it to check a signature; the metadata
/// store's file is readable by its owner alone.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessKey {
    pub access_key: String,
    pub secret: String,
    pub account: AccountId,
    pub created: WallTime,
}

/// Leaves the secret out: records are logged.
impl std::fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessKey")
            .field("access_key", &self.access_key)
            .field("account", &self.account)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub volume: VolumeId,
    pub account: AccountId,
    pub state: VolumeState,
    pub zone: Zone,
    /// What the customer has: from the moment a modification is `optimizing`, its target.
    pub parameters: Parameters,
    pub multi_attach: bool,
    pub created: WallTime,
    pub tags: BTreeMap<String, String>,
    pub group: GroupId,
    pub attach_generation: AttachGeneration,
    /// Why `state` is `error`.
    pub error: Option<String>,
}

/// The operational parameters that a customer buys, and can change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    pub volume_type: VolumeType,
    pub size: Gib,
    pub rate: Rate,
    /// Where the primary and its mirrors are placed.
    pub zone: Zone,
    /// Over how many drives each replica is striped.
    #[serde(default)]
    pub stripes: Stripes,
}

impl Parameters {
    /// A new replica with these parameters on these drives of one server.
    pub fn placed(&self, replica: ReplicaId, drives: &[DriveId]) -> Placed {
        let (drive, beside) = drives.split_first().expect("a replica lies somewhere");
        assert!(beside.iter().all(|d| d.server == drive.server), "{replica} on two servers");
        let beside = beside.iter().map(|d| d.drive.clone()).collect();
        let (size, rate) = (self.size, self.rate);
        Placed { replica, drive: drive.clone(), beside, size, rate, created: false }
    }
}

/// A group: its configuration, and where its replicas should be. Whenever the two differ, there
/// is work to do, and it can be derived from them alone: that is what makes every multi-step
/// operation continue after a crash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The last configuration decided. Everything on the servers follows it.
    pub config: GroupConfig,
    /// Where replicas should be; the first is to be primary.
    pub desired: Vec<Placed>,
    /// Every replica that may hold space for this group, and what was promised for it.
    pub replicas: BTreeMap<ReplicaId, Placed>,
    /// The run of the primary's server that `config` was made for. A server that registers with
    /// another has restarted: what its primaries had in flight is unknown.
    #[serde(default)]
    pub primary_boot: Option<BootId>,
}

/// A replica, its drive, and what the ledger holds for it there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    pub replica: ReplicaId,
    /// The one it lies on, or the first of those it is striped over.
    pub drive: DriveId,
    /// The other drives of the same server that it is striped over, in the order of the stripes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub beside: Vec<DriveName>,
    /// Of the whole replica, as the rate.
    pub size: Gib,
    pub rate: Rate,
    /// The server has made it: it exists, durably.
    pub created: bool,
}

impl Placed {
    /// Every drive that holds a part of it, in the order of the stripes.
    pub fn drives(&self) -> impl Iterator<Item = DriveId> + '_ {
        let server = &self.drive.server;
        let id = |drive: &DriveName| DriveId { server: server.clone(), drive: drive.clone() };
        std::iter::once(self.drive.clone()).chain(self.beside.iter().map(id))
    }

    pub fn lies_on(&self, drive: &DriveId) -> bool {
        let beside = || self.drive.server == drive.server && self.beside.contains(&drive.drive);
        self.drive == *drive || beside()
    }

    pub fn stripes(&self) -> u64 {
        1 + self.beside.len() as u64
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub volume: VolumeId,
    pub instance: InstanceId,
    pub account: AccountId,
    pub device: String,
    pub state: AttachmentState,
    pub attach_generation: AttachGeneration,
    pub attached: WallTime,
    pub delete_on_termination: bool,
    pub kernel_device_wanted: bool,
    /// What the node manager reported.
    pub nbd_uris: Vec<String>,
    pub kernel_device: Option<String>,
    /// A detach that does not wait for the node manager.
    pub force: bool,
}

/// One ModifyVolume from request to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Modification {
    pub volume: VolumeId,
    /// Counts the volume's modifications from 1.
    pub number: u32,
    pub state: ModificationState,
    /// Where the plan stands, by name, such as `fill`. For people and for tests.
    pub step: String,
    pub status_message: Option<String>,
    pub original: Parameters,
    pub target: Parameters,
    pub progress_percent: u8,
    /// Replicas that must be filled before it is complete; progress is how much of that is done.
    #[serde(default)]
    pub replicas_to_fill: u32,
    /// Bytes of data that went over the wire for it.
    pub bytes_moved: u64,
    /// What `bytes_moved` is expected to reach: data held now, times the replicas to fill.
    pub bytes_total: u64,
    pub started: WallTime,
    pub ended: Option<WallTime>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    pub instance: InstanceId,
    pub account: AccountId,
    pub node: NodeId,
    pub zone: Zone,
    pub registered: WallTime,
    pub tags: BTreeMap<String, String>,
}

/// A server that has registered at least once. What it reports is kept in memory; this is what
/// the ledger needs while it is away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    pub server: ServerId,
    pub zone: Zone,
    pub address: core::net::SocketAddr,
    pub drives: Vec<ServerDrive>,
    /// What operators want of it; its registrations say nothing of that.
    #[serde(default)]
    pub duty: model::state::Duty,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerDrive {
    pub drive: model::id::DriveName,
    pub media: model::volume::Media,
    pub capacity: model::units::ByteCount,
    pub rate: Rate,
    pub emulation: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientToken {
    pub account: AccountId,
    pub token: String,
    /// Digest of the request's parameters: the same token with others is refused.
    pub request_digest: String,
    pub volume: VolumeId,
    pub used: WallTime,
}
