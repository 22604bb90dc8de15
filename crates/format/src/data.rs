//! Messages on the data links: node ↔ primary ↔ members.
//!
//! Block data carries one CRC32C per 4 KiB block, computed by the node manager and kept to the
//! disk. Offsets and lengths are multiples of a block. Cold messages carry their body as JSON.

mod wire;

use core::net::SocketAddr;

use bytes::Bytes;
use model::{
    epoch::{AttachGeneration, Epoch, ModSeq},
    group::GroupConfig,
    id::{GroupId, NodeId, ReplicaId, ServerId},
};
use serde::{Deserialize, Serialize};

/// Who speaks on a connection: the first message each way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Guards against a peer of another service on a reused address.
    pub cluster: String,
    pub peer: Peer,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Peer {
    Node(NodeId),
    Server(ServerId),
}

/// What identifies a guest request: answers, retries and fences go by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId {
    /// Unique for each start of an attachment's session.
    pub session: u64,
    /// Rises by one with each request of the session.
    pub request: u64,
}

/// What a guest asks of blocks, and what the primary asks of members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// `crcs` has one entry per block of `data`.
    Write { crcs: Vec<u32>, data: Bytes },
    /// Trim and write-zeroes: the range reads as zeros and its space returns.
    Zero { length: u32 },
}

impl Change {
    /// Bytes of the volume that the change covers.
    pub fn length(&self) -> u32 {
        match self {
            Self::Write { data, .. } => u32::try_from(data.len()).expect("bounded by the frame"),
            Self::Zero { length } => *length,
        }
    }
}

/// Metadata of one resync unit: an aligned [`model::limits::RESYNC_UNIT_BYTES`] (64 KiB) of the
/// volume, **whatever the extent size of the drive**: replicas on SSD (64 KiB units) and HDD
/// (1 MiB units) must describe themselves alike, because a change of media copies from one to
/// the other and compares them. So an HDD extent keeps one `mod_seq` per unit, sixteen in all.
/// `valid` has one bit per block (bit 0 of byte 0 is block 0; two bytes), `crcs` one entry for
/// each block that is set in it. A unit with no valid block is described by nobody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitMeta {
    /// Byte offset within the volume.
    pub offset: u64,
    pub mod_seq: ModSeq,
    pub valid: Vec<u8>,
    pub crcs: Vec<u32>,
}

impl UnitMeta {
    /// The digest of a range with one more unit; units in order, the first into zero. Part of the
    /// protocol: whoever compares computes the same, however the replica lies on its drives.
    pub fn fold_into(&self, digest: u64) -> u64 {
        let valid = u64::from(u16::from_le_bytes([self.valid[0], self.valid[1]]));
        let head = [self.offset, self.mod_seq.raw(), valid];
        head.into_iter().chain(self.crcs.iter().map(|&crc| u64::from(crc))).fold(digest, mix)
    }
}

/// One round of splitmix64.
fn mix(state: u64, word: u64) -> u64 {
    let mut z = (state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataMessage {
    Hello(Hello),
    /// Answered with `Pong` at once, whatever else waits at the server.
    Ping,
    Pong,

    // Node to primary.
    /// Begins a session; the primary drops what older sessions of the group still have in flight
    /// before it answers.
    OpenSession {
        group: GroupId,
        epoch: Epoch,
        attach: AttachGeneration,
        id: RequestId,
    },
    Read {
        group: GroupId,
        epoch: Epoch,
        id: RequestId,
        offset: u64,
        length: u32,
    },
    Change {
        group: GroupId,
        epoch: Epoch,
        id: RequestId,
        offset: u64,
        change: Change,
    },
    /// Which blocks of the range hold data. Answered with a bitmap, bit 0 of byte 0 first.
    QueryAllocated {
        group: GroupId,
        epoch: Epoch,
        id: RequestId,
        offset: u64,
        length: u32,
    },
    /// Answer to any of the above. `crcs` and `data` only for a successful read or query.
    Reply {
        group: GroupId,
        epoch: Epoch,
        id: RequestId,
        status: Status,
        crcs: Vec<u32>,
        data: Bytes,
    },

    // Primary to member.
    /// The configuration the primary acts under. Precedes, on each link, the first replicated
    /// change of its epoch.
    Adopt {
        config: GroupConfig,
    },
    Replicate(Replicate),
    /// Learner, fill `[offset, offset + length)` from the source. No write to it is in flight.
    FillRegion(FillRegion),
    /// Describe `[offset, offset + length)` by digest, while no write to it is in flight.
    QueryDigest(DigestQuery),

    // Member to primary.
    /// The change is durable here.
    ReplicateAck {
        group: GroupId,
        replica: ReplicaId,
        mod_seq: ModSeq,
    },
    /// The member promised a newer epoch than the sender's (`epoch` is what it promised), or
    /// does not know the replica.
    Refused {
        group: GroupId,
        replica: ReplicaId,
        epoch: Epoch,
    },
    /// The learner is done with a region (or failed to fill it: `status`).
    FillDone {
        group: GroupId,
        replica: ReplicaId,
        token: u64,
        status: Status,
        bytes_moved: u64,
    },
    Digest {
        group: GroupId,
        replica: ReplicaId,
        token: u64,
        status: Status,
        digest: u64,
    },

    // Damaged blocks: primary to mirror and back.
    /// Send those of these blocks of a unit that are good there.
    FetchBlocks(FetchBlocks),
    /// `None`: the unit holds nothing there.
    FetchedBlocks {
        group: GroupId,
        replica: ReplicaId,
        token: u64,
        content: Option<UnitBlocks>,
    },
    /// Write these blocks again, if the unit is what they say.
    MendBlocks(MendBlocks),
    /// Done, as far as it could be; `differs`: the unit is not what the primary holds.
    Mended {
        group: GroupId,
        replica: ReplicaId,
        token: u64,
        differs: bool,
    },
    /// A mirror cannot read blocks of a unit.
    BadUnit {
        group: GroupId,
        replica: ReplicaId,
        epoch: Epoch,
        offset: u64,
        blocks: u16,
    },

    /// Whether the member's drive is full: said when it adopts a configuration, and at each change.
    Room {
        group: GroupId,
        replica: ReplicaId,
        full: bool,
    },

    // Learner to source and back.
    /// `have` describes the learner's units of the region; the source sends what differs.
    PullRegion {
        group: GroupId,
        epoch: Epoch,
        replica: ReplicaId,
        token: u64,
        offset: u64,
        length: u32,
        have: Vec<UnitMeta>,
    },
    /// The source's units that differ, complete with data (`payload`: the valid blocks of all
    /// `units` in order). An extent with no valid block is to be emptied.
    RegionImage {
        group: GroupId,
        token: u64,
        status: Status,
        units: Vec<UnitMeta>,
        data: Bytes,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchBlocks {
    pub group: GroupId,
    /// Whom it is for.
    pub replica: ReplicaId,
    pub epoch: Epoch,
    pub token: u64,
    /// Byte offset of the resync unit.
    pub offset: u64,
    /// One bit per block.
    pub blocks: u16,
}

/// A unit as its holder describes it, and the bytes of some of its blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitBlocks {
    pub unit: UnitMeta,
    /// Which blocks `data` has, in order.
    pub blocks: u16,
    pub data: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MendBlocks {
    pub group: GroupId,
    /// Whom it is for.
    pub replica: ReplicaId,
    pub epoch: Epoch,
    pub token: u64,
    pub content: UnitBlocks,
    /// Blocks that no replica has.
    pub lost: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replicate {
    pub group: GroupId,
    /// The receiver's replica.
    pub replica: ReplicaId,
    /// Epoch of the configuration under which it is sent; the change's own is in `mod_seq`.
    pub epoch: Epoch,
    pub mod_seq: ModSeq,
    pub offset: u64,
    pub change: Change,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FillRegion {
    pub group: GroupId,
    /// The learner.
    pub replica: ReplicaId,
    pub epoch: Epoch,
    pub token: u64,
    pub offset: u64,
    pub length: u32,
    pub source: ReplicaId,
    pub source_server: ServerId,
    pub source_address: SocketAddr,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestQuery {
    pub group: GroupId,
    /// Whom it is for.
    pub replica: ReplicaId,
    pub epoch: Epoch,
    pub token: u64,
    pub offset: u64,
    pub length: u32,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u16)]
pub enum Status {
    Ok = 0,
    /// Not served here under that epoch; ask the manager or wait for the new configuration.
    Moved = 1,
    /// Served here, but not yet (activation, hand-over). Try again.
    NotReady = 2,
    /// The session or its attach generation is over. Never try again.
    Fenced = 3,
    /// Beyond the end of the volume, or not whole blocks.
    OutOfRange = 4,
    /// No replica holds a good copy of a block of the range.
    BadBlock = 5,
    /// The payload did not match its checksums on arrival.
    BadChecksum = 6,
    /// The replica's drive is out of service.
    DriveFailed = 7,
}

impl Status {
    fn from_wire(raw: u16) -> Option<Self> {
        const ALL: [Status; 8] = [
            Status::Ok,
            Status::Moved,
            Status::NotReady,
            Status::Fenced,
            Status::OutOfRange,
            Status::BadBlock,
            Status::BadChecksum,
            Status::DriveFailed,
        ];
        ALL.get(usize::from(raw)).copied()
    }
}

/// Why a frame is not a data message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DataError {
    #[error("unknown message kind {0}")]
    Kind(u8),
    #[error("field '{0}' is out of its range")]
    Field(&'static str),
    #[error("the body does not match its checksum")]
    BodyCrc,
    #[error("the body does not parse: {0}")]
    Body(String),
}
