//! Control messages: manager ↔ servers and node managers, as JSON in a frame.
//!
//! A server or node manager dials the manager, registers, and keeps the link. Every message from
//! the manager is idempotent, because after a lost link or a restart on either side it is sent
//! again. Answers name what they answer (a replica and epoch, a volume and generation), so that
//! an answer that arrives late is recognised.

use core::net::SocketAddr;

use bytes::Bytes;
use model::{
    epoch::{AttachGeneration, Epoch},
    group::GroupConfig,
    id::{
        AccountId, BootId, DriveIdentity, DriveName, GroupId, InstanceId, NodeId, ReplicaId,
        ServerId, VolumeId, Zone,
    },
    limits::CONTROL_BYTES_MAX,
    units::{ByteCount, Rate},
    volume::Media,
};
use serde::{Deserialize, Serialize};

use crate::frame::{Frame, Header};

pub const KIND: u8 = 128;

/// To the manager.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub enum ToManager {
    /// First message of a server's link.
    RegisterServer(RegisterServer),
    /// First message of a node manager's link.
    RegisterNode(RegisterNode),
    /// Sent twice a second, so that silence can be told from idleness. It speaks of the replicas
    /// of which there is news, and of a few others in turn.
    Beat {
        replicas: Vec<ReplicaProgress>,
    },

    // Servers.
    ReplicaCreated {
        replica: ReplicaId,
    },
    /// The server has no room, or the drive is out of service.
    ReplicaRefused {
        replica: ReplicaId,
        reason: String,
    },
    /// Its space is free again (also when the server never knew it).
    ReplicaRemoved {
        replica: ReplicaId,
    },
    /// What it holds does not count any more, though its server is up: it may have changes that nobody
    /// acknowledged, or miss some that were.
    ReplicaStale {
        replica: ReplicaId,
    },
    /// The promise is durable; `state` is the replica as it stands.
    Promised {
        replica: ReplicaId,
        epoch: Epoch,
        state: ReplicaReport,
    },
    /// The primary acts under this configuration, which is durable there.
    Adopted {
        group: GroupId,
        replica: ReplicaId,
        epoch: Epoch,
    },
    /// The primary has stopped, with nothing in flight, until a newer configuration arrives or
    /// a second passes.
    HandedOver {
        group: GroupId,
        replica: ReplicaId,
        epoch: Epoch,
    },
    /// A member does not answer: the primary acknowledges nothing until the manager has dropped
    /// it from the configuration (or it answers again).
    MemberSilent {
        group: GroupId,
        epoch: Epoch,
        silent: ReplicaId,
    },
    /// With nothing in flight, a mirror holds something else than the primary: one of them is
    /// wrong. Said again until the manager has taken the mirror out of the set.
    MemberDiffers {
        group: GroupId,
        epoch: Epoch,
        member: ReplicaId,
        offset: u64,
    },
    /// A member that counts, the primary itself perhaps, takes far longer than all others for the same
    /// changes, and has for two seconds. Medians.
    MemberSlow {
        group: GroupId,
        epoch: Epoch,
        member: ReplicaId,
        takes_us: u64,
        others_take_us: u64,
    },
    /// The learner holds everything, is required for every acknowledgement, and has compared
    /// equal. `bytes_moved`: of data, over the wire, for this fill.
    LearnerReady {
        group: GroupId,
        epoch: Epoch,
        learner: ReplicaId,
        #[serde(default)]
        bytes_moved: u64,
    },
    /// The learner could not be filled; the primary has stopped forwarding to it.
    LearnerFailed {
        group: GroupId,
        epoch: Epoch,
        learner: ReplicaId,
        reason: String,
    },
    DriveFailed {
        drive: DriveName,
        reason: String,
    },
    /// How far a pass over a replica is that was asked for by `Scrub`.
    Scrubbed {
        replica: ReplicaId,
        pass: u64,
        percent: u8,
        /// Read and verified.
        bytes: u64,
        /// Since the pass was asked for.
        damage: Damage,
        finished: bool,
        /// Why it could not be done.
        failure: Option<String>,
    },
    /// How a drive stands: after the registration, and when something changed, but no more often
    /// than every few seconds. The last one holds; a message that is lost is followed by another.
    DriveStatus(DriveStatus),

    // Node managers.
    /// The export exists; programs can use it.
    Attached {
        volume: VolumeId,
        attach_generation: AttachGeneration,
        nbd_uris: Vec<String>,
        device: Option<String>,
    },
    /// Nothing of that generation is in flight any more, and nothing will be.
    Detached {
        volume: VolumeId,
        attach_generation: AttachGeneration,
    },
    /// The primary of that epoch does not answer this node manager.
    PrimarySilent {
        group: GroupId,
        epoch: Epoch,
        /// There is no link to its server, nor does one come about.
        #[serde(default)]
        out_of_reach: bool,
    },
    /// A new size is visible to programs.
    SizeShown {
        volume: VolumeId,
        size: ByteCount,
    },
    /// A kernel block device could not be made or grown.
    DeviceFailed {
        volume: VolumeId,
        reason: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterServer {
    pub cluster: String,
    pub server: ServerId,
    pub boot: BootId,
    pub zone: Zone,
    /// Where it listens for data frames.
    pub address: SocketAddr,
    pub drives: Vec<DriveReport>,
    pub replicas: Vec<ReplicaReport>,
    /// Striped replicas of which not all parts are there; they are not among `replicas`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub incomplete: Vec<IncompleteReplica>,
}

/// What a server holds of a striped replica that it cannot serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncompleteReplica {
    pub replica: ReplicaId,
    /// The drives that have their part.
    pub drives: Vec<DriveName>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveReport {
    pub drive: DriveName,
    pub media: Media,
    /// What it may promise, from the server's configuration.
    pub capacity: ByteCount,
    pub rate: Rate,
    pub allocated: ByteCount,
    /// Names the emulation when the media is not real.
    pub emulation: Option<String>,
    pub failed: Option<String>,
    /// Which formatting of the drive this is; not known of one that could not be opened.
    #[serde(default)]
    pub identity: Option<DriveIdentity>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriveState {
    Opening,
    Serving,
    /// Nothing is read or written there until the server is started again.
    OutOfService,
}

/// How a drive stands. All counts are since the server's process started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveStatus {
    pub drive: DriveName,
    pub identity: Option<DriveIdentity>,
    pub state: DriveState,
    /// Why it is out of service.
    pub reason: Option<String>,
    pub usage: DriveUsage,
    pub damage: Damage,
    pub scrub: ScrubStatus,
}

/// Zero while the drive is not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DriveUsage {
    pub slots_total: u64,
    pub slots_used: u64,
    pub slot_bytes: u64,
    pub journal_bytes: u64,
    pub journal_bytes_used: u64,
    /// It lies on another device than the drive.
    pub journal_apart: bool,
    /// Memory of the drive's tables, and the bound it is kept under; a bound of 0 says that there
    /// is none.
    pub memory_used: u64,
    pub memory_max: u64,
    /// Changes that wait for a free slot now.
    pub waiting_for_space: u64,
}

/// Blocks that did not match their checksums, or could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Damage {
    pub bad_found: u64,
    /// Written again from a good copy.
    pub bad_repaired: u64,
    /// No in-sync replica had a good copy.
    pub bad_lost: u64,
}

/// The pass over everything that the drive holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ScrubStatus {
    /// Read and verified, in all passes.
    pub scrubbed_bytes: u64,
    pub passes_finished: u64,
    /// Of the pass under way.
    pub percent: u8,
}

/// A replica as its server holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaReport {
    pub replica: ReplicaId,
    pub group: GroupId,
    pub drive: DriveName,
    pub promised: Epoch,
    /// Epoch of the last configuration it adopted.
    pub adopted: Epoch,
    pub allocated: ByteCount,
}

/// How a primary or learner stands: for progress, metering and the console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaProgress {
    pub group: GroupId,
    pub replica: ReplicaId,
    pub epoch: Epoch,
    pub allocated: ByteCount,
    /// Of the learner that the primary is filling.
    pub fill: Option<FillProgress>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FillProgress {
    pub learner_replica: u64,
    /// Bytes of the volume's address range that are equal on the learner.
    pub bytes_done: u64,
    pub bytes_total: u64,
    /// Bytes of data that went over the wire for it.
    pub bytes_moved: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterNode {
    pub cluster: String,
    pub node: NodeId,
    pub boot: BootId,
    pub zone: Zone,
    /// Who may attach volumes here.
    pub account: AccountId,
    pub instances: Vec<InstanceId>,
    /// What it still has attached, from its own cache.
    pub attachments: Vec<(VolumeId, AttachGeneration)>,
}

/// From the manager.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub enum FromManager {
    // To servers.
    CreateReplica {
        replica: ReplicaId,
        group: GroupId,
        volume: VolumeId,
        drive: DriveName,
        /// The other drives that it is striped over, in the order of the stripes.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        beside: Vec<DriveName>,
        size: ByteCount,
    },
    /// Free what it occupies, then answer `ReplicaRemoved`; not while one of its drives is out of
    /// service, which may come back with what it holds.
    RemoveReplica {
        replica: ReplicaId,
        drive: DriveName,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        beside: Vec<DriveName>,
    },
    /// Refuse everything below `epoch` from now on, durably, then answer `Promised`.
    Prepare {
        replica: ReplicaId,
        group: GroupId,
        epoch: Epoch,
        /// The stored configuration names it mirror, whether or not it knows. What it has in flight as
        /// the primary that it was, nobody else need have.
        #[serde(default)]
        as_mirror: bool,
    },
    /// To the primary of `config`: adopt it durably, tell the members, serve, answer `Adopted`.
    Configure { config: GroupConfig },
    /// To the primary of `epoch`: stop, drain, answer `HandedOver`.
    HandOver { group: GroupId, epoch: Epoch },

    /// Read and verify a replica now, and tell how far it is with `Scrubbed`. `pass` tells one
    /// request from the next.
    Scrub { replica: ReplicaId, pass: u64 },

    // To node managers.
    /// Also whenever the configuration changes while attached.
    Attach(Attach),
    /// Finish what is in flight, close the export, answer `Detached`. `force`: drop it instead.
    Detach { volume: VolumeId, attach_generation: AttachGeneration, force: bool },

    // To both.
    /// The link will be closed: wrong cluster, or a name that is already linked.
    Rejected { reason: String },
}

/// What a node manager needs to serve a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    pub volume: VolumeId,
    pub instance: InstanceId,
    /// The name the customer gave, such as `/dev/sdf`.
    pub device: String,
    /// Whether a kernel block device is wanted beside the NBD export.
    pub kernel_device: bool,
    /// The volume's group; its `attach_generation` is this attachment's.
    pub config: GroupConfig,
}

/// Why a frame is not a control message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CtlError {
    #[error("message kind {0} is not a control message")]
    Kind(u8),
    #[error("the body does not match its checksum")]
    BodyCrc,
    #[error("the body does not parse: {0}")]
    Body(String),
}

/// Frames a control message. Bodies beyond a frame's payload limit are refused by assertion:
/// callers bound their lists.
pub fn encode<T: Serialize>(message: &T) -> Frame {
    let payload = Bytes::from(serde_json::to_vec(message).expect("plain data always serializes"));
    assert!(payload.len() <= CONTROL_BYTES_MAX, "control message of {} bytes", payload.len());
    let header = Header { kind: KIND, ..Header::default() };
    Frame { header, crcs: vec![crc32c::crc32c(&payload)], payload }
}

pub fn decode<T: for<'de> Deserialize<'de>>(frame: &Frame) -> Result<T, CtlError> {
    if frame.header.kind != KIND {
        return Err(CtlError::Kind(frame.header.kind));
    }
    if frame.crcs != [crc32c::crc32c(&frame.payload)] {
        return Err(CtlError::BodyCrc);
    }
    serde_json::from_slice(&frame.payload).map_err(|e| CtlError::Body(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drives_status_survives_the_wire() {
        let usage = DriveUsage { slots_total: 9, slots_used: 3, ..DriveUsage::default() };
        let message = ToManager::DriveStatus(DriveStatus {
            drive: "ssd".parse().expect("a name"),
            identity: Some(DriveIdentity::from_raw(7)),
            state: DriveState::OutOfService,
            reason: Some("input/output error".to_owned()),
            usage,
            damage: Damage { bad_found: 2, bad_repaired: 1, bad_lost: 1 },
            scrub: ScrubStatus { scrubbed_bytes: 5, passes_finished: 1, percent: 40 },
        });
        assert_eq!(decode(&encode(&message)), Ok(message));
    }

    #[test]
    fn a_status_of_another_version_is_read_as_far_as_it_is_known() {
        let text = r#"{"message":"drive-status","drive":"ssd","identity":null,"state":"serving",
            "reason":null,"usage":{"slots_total":4,"new":1},"damage":{},"scrub":{}}"#;
        let header = Header { kind: KIND, ..Header::default() };
        let payload = Bytes::from(text);
        let frame = Frame { header, crcs: vec![crc32c::crc32c(&payload)], payload };
        let Ok(ToManager::DriveStatus(status)) = decode(&frame) else { panic!("not a status") };
        assert_eq!(status.usage, DriveUsage { slots_total: 4, ..DriveUsage::default() });
    }
}
