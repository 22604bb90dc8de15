//! What a caller may ask of the manager, typed: the meeting place of the wire forms (EC2 Query,
//! native JSON) and the rules.
//!
//! The wire forms parse text into these and print what comes back; they know no rule. The rules
//! know no wire form. Reading needs no command: the wire forms read [`crate::state::State`],
//! showing a caller only what its account owns.

use std::collections::{BTreeMap, BTreeSet};

use format::record::{AccessKey, Account, Attachment, Modification, Placed, Volume};
use model::{
    id::{AccountId, InstanceId, NodeId, ServerId, VolumeId, Zone},
    state::Duty,
    time::WallTime,
    units::{Gib, Iops, MibPerSec},
};

use crate::{
    live::{Live, Standing},
    scrub::VolumeScrub,
    state::State,
};

/// Names a call until it is answered; chosen by the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallToken(pub u64);

/// Who calls, after the signature was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub account: AccountId,
    pub access_key: String,
    pub root: bool,
}

/// A change that a caller asks for. `dry_run` answers [`ApiError`] `DryRunOperation` where the
/// command would have succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    pub dry_run: bool,
    pub kind: CommandKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandKind {
    CreateVolume(CreateVolume),
    DeleteVolume {
        volume: VolumeId,
    },
    ModifyVolume(ModifyVolume),
    AttachVolume(AttachVolume),
    DetachVolume(DetachVolume),
    /// Read and verify all replicas now.
    ScrubVolume {
        volume: VolumeId,
    },
    CreateTags {
        resources: Vec<Resource>,
        tags: BTreeMap<String, String>,
    },
    /// `None`: all tags. A value of `None` deletes whatever the value is.
    DeleteTags {
        resources: Vec<Resource>,
        tags: Option<BTreeMap<String, Option<String>>>,
    },
    /// Root only. Makes an account with one access key.
    CreateAccount {
        name: String,
    },
    /// Root only. What operators want of a server.
    SetDuty {
        server: String,
        duty: Duty,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    Volume(VolumeId),
    Instance(InstanceId),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateVolume {
    pub zone: ZoneChoice,
    pub size: Option<Gib>,
    /// As the caller wrote it; `None` is EC2's default, gp2.
    pub volume_type: Option<String>,
    pub iops: Option<Iops>,
    pub throughput: Option<MibPerSec>,
    pub multi_attach: bool,
    pub encrypted: bool,
    pub kms_key_id: Option<String>,
    pub snapshot_id: Option<String>,
    /// Native API only: over how many drives of its server each replica is striped.
    pub stripes: Option<u32>,
    pub tags: BTreeMap<String, String>,
    /// At most 64 characters, checked by the rules.
    pub client_token: Option<String>,
}

/// EC2 lets a caller name the zone or give its id, not both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ZoneChoice {
    Missing,
    Both,
    Name(String),
    Id(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModifyVolume {
    pub volume: Option<VolumeId>,
    pub size: Option<Gib>,
    pub volume_type: Option<String>,
    pub iops: Option<Iops>,
    pub throughput: Option<MibPerSec>,
    pub multi_attach: Option<bool>,
    /// Native API only.
    pub zone: Option<String>,
    /// Native API only.
    pub stripes: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachVolume {
    pub volume: VolumeId,
    pub instance: InstanceId,
    pub device: String,
    /// Native API only: also make a kernel block device on the node.
    pub kernel_device: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachVolume {
    pub volume: VolumeId,
    pub instance: Option<InstanceId>,
    pub device: Option<String>,
    pub force: bool,
}

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    Volume(Box<Volume>),
    Modification(Box<Modification>),
    Attachment(Box<Attachment>),
    Account { account: Account, key: AccessKey },
    Scrub(VolumeScrub),
    Server(ServerId),
    Nothing,
}

/// The caller's fault, or a refusal: an EC2 code, its HTTP status and a message that names the
/// thing, the limit and the next step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    pub status: u16,
    pub code: &'static str,
    pub message: String,
}

impl ApiError {
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { status: status_of(code), code, message: message.into() }
    }
}

/// HTTP status of an EC2 error code. 5xx are retried by every SDK, so they are only for what may
/// pass.
fn status_of(code: &str) -> u16 {
    match code {
        "AuthFailure" => 401,
        "UnauthorizedOperation" | "SignatureDoesNotMatch" | "MissingAuthenticationToken" => 403,
        "DryRunOperation" => 412,
        "RequestLimitExceeded" | "Unavailable" | "ServiceUnavailable" => 503,
        "InsufficientVolumeCapacity" => 503,
        "InternalError" => 500,
        _ => 400,
    }
}

/// The region and zones of this service, from the manager's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub region: String,
    /// In the order of their ids: `use1-az1` style ids are `<region>-azN`, N from 1.
    pub zones: Vec<Zone>,
    /// `http://host:port` of the API, for DescribeRegions.
    pub endpoint: String,
}

/// Everything a wire form may look at while it reads a request or prints an answer.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    pub state: &'a State,
    pub place: &'a Place,
    /// Servers and node managers whose links are up.
    pub servers_up: &'a BTreeSet<ServerId>,
    pub nodes_up: &'a BTreeSet<NodeId>,
    /// What they report.
    pub live: &'a Live,
    pub wall: WallTime,
    /// Names this call in the answer and in the log: a UUID.
    pub request_id: &'a str,
}

impl View<'_> {
    /// How a replica stands: up, or why not.
    pub fn standing(&self, placed: &Placed) -> Standing {
        let up = self.servers_up.contains(&placed.drive.server);
        self.live.replica_standing(if up { Standing::Up } else { Standing::Down }, placed)
    }
}
