//! Messages on the data links: node ↔ primary ↔ members.
//!
//! Block data carries one CRC32C per 4 KiB block, computed by the node manager and kept to the
//! disk. Offsets and lengths are multiples of a block. Cold messages carry their body as JSON.

use core::net::SocketAddr;

use bytes::Bytes;
use model::{
    epoch::{AttachGeneration, Epoch, ModSeq},
    group::GroupConfig,
    id::{GroupId, NodeId, ReplicaId, ServerId},
    limits::TRANSFER_BYTES_MAX,
    units::BLOCK,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::frame::{Frame, Header};

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

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataMessage {
    Hello(Hello),

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

mod kind {
    pub const HELLO: u8 = 1;
    pub const OPEN_SESSION: u8 = 2;
    pub const READ: u8 = 3;
    pub const WRITE: u8 = 4;
    pub const ZERO: u8 = 5;
    pub const QUERY_ALLOCATED: u8 = 6;
    pub const REPLY: u8 = 7;
    pub const ADOPT: u8 = 16;
    pub const REPLICATE_WRITE: u8 = 17;
    pub const REPLICATE_ZERO: u8 = 18;
    pub const FILL_REGION: u8 = 19;
    pub const QUERY_DIGEST: u8 = 20;
    pub const REPLICATE_ACK: u8 = 21;
    pub const REFUSED: u8 = 22;
    pub const FILL_DONE: u8 = 23;
    pub const DIGEST: u8 = 24;
    pub const PULL_REGION: u8 = 32;
    pub const REGION_IMAGE: u8 = 33;
}

#[derive(Serialize, Deserialize)]
struct PullBody {
    replica: ReplicaId,
    have: Vec<UnitMeta>,
}

#[derive(Serialize, Deserialize)]
struct ImageBody {
    units: Vec<UnitMeta>,
}

impl DataMessage {
    pub fn into_frame(self) -> Frame {
        let plain = |header| Frame { header, ..Frame::default() };
        match self {
            Self::Hello(hello) => {
                with_body(Header { kind: kind::HELLO, ..Header::default() }, &hello)
            }
            Self::OpenSession { group, epoch, attach, id } => {
                let header = request(kind::OPEN_SESSION, group, epoch, id);
                plain(Header { offset: attach.get(), ..header })
            }
            Self::Read { group, epoch, id, offset, length } => {
                plain(Header { offset, length, ..request(kind::READ, group, epoch, id) })
            }
            Self::QueryAllocated { group, epoch, id, offset, length } => {
                plain(Header { offset, length, ..request(kind::QUERY_ALLOCATED, group, epoch, id) })
            }
            Self::Change { group, epoch, id, offset, change } => {
                let kinds = (kind::WRITE, kind::ZERO);
                change_frame(kinds, Header { offset, ..request(0, group, epoch, id) }, change)
            }
            Self::Reply { group, epoch, id, status, crcs, data } => {
                let header = request(kind::REPLY, group, epoch, id);
                Frame { header: Header { status: status as u16, ..header }, crcs, payload: data }
            }
            Self::Adopt { config } => {
                let header =
                    Header { kind: kind::ADOPT, group: config.group.raw(), ..Header::default() };
                with_body(header, &config)
            }
            Self::Replicate(r) => {
                let header = Header {
                    group: r.group.raw(),
                    epoch: r.epoch.get(),
                    id: r.mod_seq.raw(),
                    session: r.replica.raw(),
                    offset: r.offset,
                    ..Header::default()
                };
                change_frame((kind::REPLICATE_WRITE, kind::REPLICATE_ZERO), header, r.change)
            }
            Self::FillRegion(fill) => {
                let header = Header {
                    kind: kind::FILL_REGION,
                    group: fill.group.raw(),
                    ..Header::default()
                };
                with_body(header, &fill)
            }
            Self::QueryDigest(query) => {
                let header = Header {
                    kind: kind::QUERY_DIGEST,
                    group: query.group.raw(),
                    ..Header::default()
                };
                with_body(header, &query)
            }
            Self::ReplicateAck { group, replica, mod_seq } => plain(Header {
                kind: kind::REPLICATE_ACK,
                group: group.raw(),
                session: replica.raw(),
                id: mod_seq.raw(),
                ..Header::default()
            }),
            Self::Refused { group, replica, epoch } => plain(Header {
                kind: kind::REFUSED,
                group: group.raw(),
                session: replica.raw(),
                epoch: epoch.get(),
                ..Header::default()
            }),
            Self::FillDone { group, replica, token, status, bytes_moved } => plain(Header {
                kind: kind::FILL_DONE,
                group: group.raw(),
                session: replica.raw(),
                id: token,
                status: status as u16,
                offset: bytes_moved,
                ..Header::default()
            }),
            Self::Digest { group, replica, token, status, digest } => plain(Header {
                kind: kind::DIGEST,
                group: group.raw(),
                session: replica.raw(),
                id: token,
                status: status as u16,
                offset: digest,
                ..Header::default()
            }),
            Self::PullRegion { group, epoch, replica, token, offset, length, have } => {
                let header = Header {
                    kind: kind::PULL_REGION,
                    group: group.raw(),
                    epoch: epoch.get(),
                    id: token,
                    offset,
                    length,
                    ..Header::default()
                };
                with_body(header, &PullBody { replica, have })
            }
            Self::RegionImage { group, token, status, units, data } => {
                region_image_frame(group, token, status, units, &data)
            }
        }
    }

    pub fn from_frame(frame: Frame) -> Result<Self, DataError> {
        let h = frame.header;
        let group = GroupId::from_raw(h.group);
        let replica = ReplicaId::from_raw(h.session);
        let epoch = Epoch::new(h.epoch).ok_or(DataError::Field("epoch"))?;
        let id = RequestId { session: h.session, request: h.id };
        let status = Status::from_wire(h.status).ok_or(DataError::Field("status"))?;
        Ok(match h.kind {
            kind::HELLO => Self::Hello(body(&frame)?),
            kind::OPEN_SESSION => {
                let attach = AttachGeneration::from_raw(h.offset);
                Self::OpenSession { group, epoch, attach, id }
            }
            kind::READ => {
                check_range(h.offset, h.length)?;
                Self::Read { group, epoch, id, offset: h.offset, length: h.length }
            }
            kind::QUERY_ALLOCATED => {
                check_offset(h.offset)?;
                Self::QueryAllocated { group, epoch, id, offset: h.offset, length: h.length }
            }
            kind::WRITE | kind::ZERO => {
                let change = change_from(frame, h.kind == kind::WRITE)?;
                Self::Change { group, epoch, id, offset: h.offset, change }
            }
            kind::REPLY => {
                Self::Reply { group, epoch, id, status, crcs: frame.crcs, data: frame.payload }
            }
            kind::ADOPT => {
                let config: GroupConfig = body(&frame)?;
                config.check().map_err(|e| DataError::Body(e.to_string()))?;
                Self::Adopt { config }
            }
            kind::REPLICATE_WRITE | kind::REPLICATE_ZERO => {
                let change = change_from(frame, h.kind == kind::REPLICATE_WRITE)?;
                let mod_seq = ModSeq::from_raw(h.id);
                Self::Replicate(Replicate {
                    group,
                    replica,
                    epoch,
                    mod_seq,
                    offset: h.offset,
                    change,
                })
            }
            kind::FILL_REGION => {
                let fill: FillRegion = body(&frame)?;
                check_region(fill.offset, fill.length)?;
                Self::FillRegion(fill)
            }
            kind::QUERY_DIGEST => {
                let query: DigestQuery = body(&frame)?;
                check_offset(query.offset)?;
                Self::QueryDigest(query)
            }
            kind::REPLICATE_ACK => {
                Self::ReplicateAck { group, replica, mod_seq: ModSeq::from_raw(h.id) }
            }
            kind::REFUSED => Self::Refused { group, replica, epoch },
            kind::FILL_DONE => {
                Self::FillDone { group, replica, token: h.id, status, bytes_moved: h.offset }
            }
            kind::DIGEST => Self::Digest { group, replica, token: h.id, status, digest: h.offset },
            kind::PULL_REGION => {
                check_region(h.offset, h.length)?;
                let PullBody { replica, have } = body(&frame)?;
                let (offset, length) = (h.offset, h.length);
                Self::PullRegion { group, epoch, replica, token: h.id, offset, length, have }
            }
            kind::REGION_IMAGE => region_image_from(frame, group, status)?,
            other => return Err(DataError::Kind(other)),
        })
    }
}

fn request(kind: u8, group: GroupId, epoch: Epoch, id: RequestId) -> Header {
    Header {
        kind,
        group: group.raw(),
        epoch: epoch.get(),
        session: id.session,
        id: id.request,
        ..Header::default()
    }
}

fn with_body<T: Serialize>(header: Header, body: &T) -> Frame {
    let payload = Bytes::from(serde_json::to_vec(body).expect("plain data always serializes"));
    Frame { header, crcs: vec![crc32c::crc32c(&payload)], payload }
}

fn body<T: DeserializeOwned>(frame: &Frame) -> Result<T, DataError> {
    if frame.crcs != [crc32c::crc32c(&frame.payload)] {
        return Err(DataError::BodyCrc);
    }
    serde_json::from_slice(&frame.payload).map_err(|e| DataError::Body(e.to_string()))
}

fn change_frame((write, zero): (u8, u8), header: Header, change: Change) -> Frame {
    let length = change.length();
    match change {
        Change::Write { crcs, data } => {
            Frame { header: Header { kind: write, length, ..header }, crcs, payload: data }
        }
        Change::Zero { .. } => {
            Frame { header: Header { kind: zero, length, ..header }, ..Frame::default() }
        }
    }
}

fn change_from(frame: Frame, is_write: bool) -> Result<Change, DataError> {
    let h = frame.header;
    if !is_write {
        check_offset(h.offset)?;
        let whole = u64::from(h.length).is_multiple_of(BLOCK) && h.length > 0;
        return if whole {
            Ok(Change::Zero { length: h.length })
        } else {
            Err(DataError::Field("length"))
        };
    }
    check_range(h.offset, h.length)?;
    let blocks = u64::from(h.length) / BLOCK;
    if frame.payload.len() as u64 != u64::from(h.length) {
        return Err(DataError::Field("payload"));
    }
    if frame.crcs.len() as u64 != blocks {
        return Err(DataError::Field("crc count"));
    }
    Ok(Change::Write { crcs: frame.crcs, data: frame.payload })
}

fn check_offset(offset: u64) -> Result<(), DataError> {
    if offset.is_multiple_of(BLOCK) && offset <= 1 << 60 {
        Ok(())
    } else {
        Err(DataError::Field("offset"))
    }
}

fn check_range(offset: u64, length: u32) -> Result<(), DataError> {
    check_offset(offset)?;
    let whole = u64::from(length).is_multiple_of(BLOCK) && length > 0;
    if whole && length <= TRANSFER_BYTES_MAX { Ok(()) } else { Err(DataError::Field("length")) }
}

fn check_region(offset: u64, length: u32) -> Result<(), DataError> {
    check_range(offset, length)
}

/// The image's payload is `u32` length of the JSON body, the body, then the block data.
fn region_image_frame(
    group: GroupId,
    token: u64,
    status: Status,
    units: Vec<UnitMeta>,
    data: &Bytes,
) -> Frame {
    let body = serde_json::to_vec(&ImageBody { units }).expect("plain data always serializes");
    let mut payload = Vec::with_capacity(4 + body.len() + data.len());
    payload.extend_from_slice(&u32::try_from(body.len()).expect("bounded").to_le_bytes());
    payload.extend_from_slice(&body);
    let crc = crc32c::crc32c(&payload);
    payload.extend_from_slice(data);
    let header = Header {
        kind: kind::REGION_IMAGE,
        group: group.raw(),
        id: token,
        status: status as u16,
        ..Header::default()
    };
    Frame { header, crcs: vec![crc], payload: payload.into() }
}

fn region_image_from(
    frame: Frame,
    group: GroupId,
    status: Status,
) -> Result<DataMessage, DataError> {
    let payload = &frame.payload;
    let len = payload.get(..4).ok_or(DataError::Field("payload"))?;
    let len = u32::from_le_bytes(len.try_into().expect("four bytes"));
    let end = usize::try_from(len).ok().and_then(|l| l.checked_add(4));
    let end = end.filter(|&e| e <= payload.len()).ok_or(DataError::Field("payload"))?;
    if frame.crcs != [crc32c::crc32c(&payload[..end])] {
        return Err(DataError::BodyCrc);
    }
    let ImageBody { units } =
        serde_json::from_slice(&payload[4..end]).map_err(|e| DataError::Body(e.to_string()))?;
    let data = payload.slice(end..);
    Ok(DataMessage::RegionImage { group, token: frame.header.id, status, units, data })
}
