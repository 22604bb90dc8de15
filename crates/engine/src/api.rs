//! What goes into the engine and what comes out of it.
//!
//! The shell opens the engine on a drive, carries out its drive actions, and feeds every
//! completion back as an event. Requests complete in any order, each exactly once.

use bytes::Bytes;
use format::{
    data::{Change, UnitMeta},
    disk::JournalPlace,
};
use model::{
    epoch::ModSeq,
    id::{LayerId, ReplicaId},
    units::ByteCount,
    volume::Media,
};

/// Names a drive action; its completion carries it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IoToken(pub u64);

/// Names a request; chosen by the caller, carried back by `Action::Complete`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpToken(pub u64);

/// How a drive is laid out, which is fixed when it is formatted, and what it may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    pub media: Media,
    /// Whole drive, in bytes.
    pub drive_bytes: u64,
    /// Where it lies apart, all of the journal's device.
    pub journal_bytes: u64,
    pub journal: JournalPlace,
    pub replicas_max: u32,
    /// Most memory for what the drive's metadata says, in bytes; not part of the format. What the
    /// maps leave of it holds pages of descriptors: fewer make random reads cost two.
    pub memory_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The drive carried out a read: exactly the bytes asked for.
    DriveRead {
        token: IoToken,
        result: Result<Bytes, DriveError>,
    },
    DriveWritten {
        token: IoToken,
        result: Result<(), DriveError>,
    },
    DriveFlushed {
        token: IoToken,
        result: Result<(), DriveError>,
    },
    Requested {
        token: OpToken,
        request: Request,
    },
    /// `Engine::deadline` has come. It is now when the caller's turn is to end: whatever came with
    /// it was told, and is made durable together.
    TimeReached,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A new, empty replica. Idempotent: one that exists keeps its content.
    CreateReplica { replica: ReplicaId, size: ByteCount, meta: Bytes },
    /// Frees all its space. Idempotent.
    RemoveReplica { replica: ReplicaId },
    /// Replaces the caller's own durable record of the replica (promise, configuration); the
    /// engine never looks inside. At most [`META_BYTES_MAX`]. Growing `size` only.
    SetReplicaMeta { replica: ReplicaId, size: ByteCount, meta: Bytes },
    /// Completes when durable. A later `mod_seq` for the same extent must not precede an earlier
    /// one: the caller orders overlapping changes. Repeating a change is harmless.
    Change { replica: ReplicaId, mod_seq: ModSeq, offset: u64, change: Change },
    /// Verified blocks and their CRCs; never-written blocks are zeros with the CRC of zeros.
    /// What comes from the drive was read from it for this request.
    Read { replica: ReplicaId, offset: u64, length: u32 },
    /// As `Read`, by somebody who may go on behind it: where that pays, what follows is read ahead,
    /// and may answer it.
    ReadStream { replica: ReplicaId, offset: u64, length: u32 },
    /// Metadata of the 64 KiB resync units (not extents: see `UnitMeta`) that overlap the range
    /// and hold data.
    Describe { replica: ReplicaId, offset: u64, length: u64 },
    /// Digest over `(offset, mod_seq, valid, crcs)` of the units that overlap the range and hold
    /// data: equal on SSD and HDD for equal content and history.
    Digest { replica: ReplicaId, offset: u64, length: u64 },
    /// Which blocks of the range hold data, one bit each, bit 0 of byte 0 first.
    Allocated { replica: ReplicaId, offset: u64, length: u64 },
    /// The byte behind the last block that holds data: how far the replica may shrink.
    HighestAllocated { replica: ReplicaId },
    /// Which of the resync units that overlap the range have a greater `mod_seq`, one bit each, bit
    /// 0 of byte 0 first. A unit that was emptied has none: who follows changes asks which units
    /// hold data, too.
    ChangedSince { replica: ReplicaId, mod_seq: ModSeq, offset: u64, length: u64 },
    /// Sets the resync units to exactly these: `mod_seq`, validity, checksums and content (`data`:
    /// the valid blocks of all units in order). A unit with no valid block is emptied. Completes
    /// when durable.
    Install { replica: ReplicaId, units: Vec<UnitMeta>, data: Bytes },
    /// What the replica holds becomes a frozen layer: all changes that were asked for before, and
    /// none that were asked for after, belong to it. Costs the same whatever the replica holds, and
    /// copies nothing, then or later. Completes when durable. Idempotent, until the layer is
    /// released: who asks again after a restart does no harm.
    Freeze { replica: ReplicaId, layer: LayerId },
    /// Nobody wants to look at the layer any more: it merges into the next newer one in the
    /// background (`Usage` says how far that is), which gives back what it takes. Completes when
    /// durable, before it has merged. Idempotent.
    Release { replica: ReplicaId, layer: LayerId },
    /// The layers that are frozen and were not released, the oldest first.
    Layers { replica: ReplicaId },
    /// As `Read`, of what the replica held when the layer was frozen.
    ReadLayer { replica: ReplicaId, layer: LayerId, offset: u64, length: u32 },
    /// As `Allocated`, of what the replica held when the layer was frozen.
    AllocatedIn { replica: ReplicaId, layer: LayerId, offset: u64, length: u64 },
    /// Which blocks of the range were written or cleared after `from` was frozen (`None`: ever) and
    /// before `to` was (`None`: until now), one bit each, bit 0 of byte 0 first. A block that held
    /// nothing and was cleared does not count.
    ChangedBetween {
        replica: ReplicaId,
        from: Option<LayerId>,
        to: Option<LayerId>,
        offset: u64,
        length: u64,
    },
    /// No change of the replica that was asked for before waits for space: one that finds none, now
    /// or later, completes with [`OpError::Withdrawn`]. Completes at once itself.
    Withdraw { replica: ReplicaId },
}

impl Request {
    pub fn replica(&self) -> ReplicaId {
        match self {
            Self::CreateReplica { replica, .. }
            | Self::RemoveReplica { replica }
            | Self::SetReplicaMeta { replica, .. }
            | Self::Change { replica, .. }
            | Self::Read { replica, .. }
            | Self::ReadStream { replica, .. }
            | Self::Describe { replica, .. }
            | Self::Digest { replica, .. }
            | Self::Allocated { replica, .. }
            | Self::HighestAllocated { replica }
            | Self::ChangedSince { replica, .. }
            | Self::Install { replica, .. }
            | Self::Freeze { replica, .. }
            | Self::Release { replica, .. }
            | Self::Layers { replica }
            | Self::ReadLayer { replica, .. }
            | Self::AllocatedIn { replica, .. }
            | Self::ChangedBetween { replica, .. }
            | Self::Withdraw { replica } => *replica,
        }
    }
}

pub const META_BYTES_MAX: usize = 3072;

/// Most bytes that are prepared at once.
pub const PREPARED_BYTES_MAX: u32 = 1 << 20;

/// What a drive action is carried out on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Device {
    /// The drive. Its journal too, unless that lies apart.
    Data,
    /// Where the journal lies, if it lies apart. Durability on one device says nothing of the
    /// other.
    Journal,
}

/// What the completion of a write says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The drive took the bytes. A crash may lose them.
    Later,
    /// The bytes are on stable media. It says nothing of any others.
    These,
    /// The bytes, and everything on the same device that completed before the write was asked for,
    /// are on stable media.
    Everything,
}

/// Who waits for a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// A request that the engine accepted.
    Request,
    /// Nobody, while there is room in the journal: it may step back behind others, but must not be
    /// starved.
    Background,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    ReadDrive {
        device: Device,
        token: IoToken,
        offset: u64,
        length: u32,
    },
    /// Write the segments one after the other.
    WriteDrive {
        device: Device,
        token: IoToken,
        offset: u64,
        data: Vec<Bytes>,
        durability: Durability,
        urgency: Urgency,
    },
    /// Complete when everything on the device that completed before is on stable media.
    FlushDrive {
        device: Device,
        token: IoToken,
    },
    /// Give these bytes of the drive a place on the medium, as writing zeros to them does: writing
    /// them later then changes nothing of the file system that the drive is a file of. A place that
    /// was written before may keep what it has. At most [`PREPARED_BYTES_MAX`]; nobody waits for it.
    /// Its completion is that of a write, and costs nothing if there was [`DriveError::NoSpace`].
    PrepareDrive {
        token: IoToken,
        offset: u64,
        length: u32,
    },
    /// The engine is open; these are its replicas. Comes before any other completion.
    Opened {
        replicas: Vec<OpenReplica>,
        /// It was blank.
        formatted: bool,
    },
    Complete {
        token: OpToken,
        outcome: Result<Outcome, OpError>,
    },
    /// The drive is out of service: nothing will be served from it again. Every request that was
    /// accepted completes with `DriveFailed`.
    DriveOutOfService {
        reason: String,
    },
}

/// A replica found at open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenReplica {
    pub replica: ReplicaId,
    pub size: ByteCount,
    pub meta: Bytes,
    /// Recovery met damage below what was known to be durable: the content may miss acknowledged
    /// changes, so the replica must be resynced before it counts again. Said at every open until
    /// `SetReplicaMeta`: from then on it is the caller's to remember.
    pub stale: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Read { crcs: Vec<u32>, data: Bytes },
    Described { units: Vec<UnitMeta> },
    Digest { digest: u64 },
    Allocated { bitmap: Bytes },
    HighestAllocated { end: u64 },
    ChangedSince { bitmap: Bytes },
    Layers { layers: Vec<LayerId> },
    ChangedBetween { bitmap: Bytes },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpError {
    #[error("no such replica on this drive")]
    UnknownReplica,
    #[error("the range lies beyond the replica's size")]
    OutOfRange,
    /// The block at this byte offset of the replica fails its checksum on the drive.
    #[error("block at {offset} is damaged")]
    BadBlock { offset: u64 },
    /// The change's payload does not match the checksums it came with.
    #[error("payload does not match its checksums")]
    BadChecksum,
    #[error("the drive has no space for another replica")]
    Full,
    #[error("another replica would exceed the {max} bytes of memory that the drive may take")]
    Memory { max: u64 },
    /// It waited for space, and was withdrawn. None, or the beginning, of it took effect, durably.
    #[error("withdrawn while it waited for space")]
    Withdrawn,
    #[error(
        "the replica has {max} frozen layers, which is the most: release one and freeze again when \
         it has merged"
    )]
    Layers { max: usize },
    #[error(
        "the drive has format version 1, which has no layers: move the replica to a drive that is \
         formatted anew"
    )]
    NoLayers,
    /// It was never frozen, or has been released.
    #[error("the replica has no such layer")]
    UnknownLayer,
    /// A freeze under the name of a layer that somebody else has given up meanwhile.
    #[error("the layer was released and has not merged yet: freeze under another name")]
    Released,
    #[error("the drive is out of service")]
    DriveFailed,
}

/// What a drive reports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DriveError {
    #[error("drive I/O failed: {0}")]
    Io(String),
    /// What the drive is a file of has no place for its bytes.
    #[error("the file system below the drive has no space left")]
    NoSpace,
}

/// For ledger, metrics and progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub slots_total: u64,
    pub slots_used: u64,
    pub journal_bytes_used: u64,
    /// Changes that wait for a free slot.
    pub waiting_for_space: u64,
    /// Frozen layers of all replicas, the released ones included.
    pub layers: u64,
    /// Released ones that have not merged yet, and their slots that are left.
    pub layers_merging: u64,
    pub slots_to_merge: u64,
    /// Blocks that were copied from one layer to another since the drive was opened.
    pub blocks_merged: u64,
    /// Of metadata, about, and its bound.
    pub memory_bytes: u64,
    pub memory_bytes_max: u64,
    /// Pages of metadata read since the drive was opened, because memory did not have them.
    pub pages_read: u64,
    /// Pages of metadata that were found lost since then.
    pub pages_lost: u64,
    /// Free slots that were prepared and not taken yet.
    pub slots_prepared: u64,
    /// Blocks that were read ahead since then, and those of them that somebody asked for.
    pub blocks_ahead: u64,
    pub blocks_ahead_used: u64,
}

/// Why bytes at the head of a drive are not an engine's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("drive of {drive_bytes} bytes is too small: {wanted} are needed")]
    TooSmall { drive_bytes: u64, wanted: u64 },
}
