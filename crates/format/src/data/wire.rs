//! Data messages as frames, and back.
//!
//! Decides: where in a frame each field lies.
//! Invariant: what comes off the wire is checked before it becomes a message: offsets and lengths
//! are whole blocks within bounds, and a body matches its checksum.

use bytes::Bytes;
use model::{
    epoch::{AttachGeneration, Epoch, ModSeq},
    group::GroupConfig,
    id::{GroupId, ReplicaId},
    limits::TRANSFER_BYTES_MAX,
    units::BLOCK,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    Change, DataError, DataMessage, DigestQuery, FetchBlocks, FillRegion, MendBlocks, Replicate,
    RequestId, Status, UnitBlocks, UnitMeta,
};
use crate::frame::{Frame, Header};

mod kind {
    pub const HELLO: u8 = 1;
    pub const OPEN_SESSION: u8 = 2;
    pub const READ: u8 = 3;
    pub const WRITE: u8 = 4;
    pub const ZERO: u8 = 5;
    pub const QUERY_ALLOCATED: u8 = 6;
    pub const REPLY: u8 = 7;
    pub const PING: u8 = 8;
    pub const PONG: u8 = 9;
    pub const ADOPT: u8 = 16;
    pub const REPLICATE_WRITE: u8 = 17;
    pub const REPLICATE_ZERO: u8 = 18;
    pub const FILL_REGION: u8 = 19;
    pub const QUERY_DIGEST: u8 = 20;
    pub const REPLICATE_ACK: u8 = 21;
    pub const REFUSED: u8 = 22;
    pub const FILL_DONE: u8 = 23;
    pub const DIGEST: u8 = 24;
    pub const FETCH_BLOCKS: u8 = 25;
    pub const FETCHED_BLOCKS: u8 = 26;
    pub const MEND_BLOCKS: u8 = 27;
    pub const MENDED: u8 = 28;
    pub const BAD_UNIT: u8 = 29;
    pub const ROOM: u8 = 30;
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

#[derive(Serialize, Deserialize)]
struct BlocksBody {
    unit: Option<UnitMeta>,
    blocks: u16,
    lost: u16,
}

impl DataMessage {
    pub fn into_frame(self) -> Frame {
        let plain = |header| Frame { header, ..Frame::default() };
        match self {
            Self::Hello(hello) => {
                with_body(Header { kind: kind::HELLO, ..Header::default() }, &hello)
            }
            Self::Ping => plain(Header { kind: kind::PING, ..Header::default() }),
            Self::Pong => plain(Header { kind: kind::PONG, ..Header::default() }),
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
                let header = Header {
                    kind: kind::REGION_IMAGE,
                    group: group.raw(),
                    id: token,
                    status: status as u16,
                    ..Header::default()
                };
                body_and_data_frame(header, &ImageBody { units }, &data)
            }
            Self::FetchBlocks(fetch) => {
                let header = Header {
                    kind: kind::FETCH_BLOCKS,
                    group: fetch.group.raw(),
                    ..Header::default()
                };
                with_body(header, &fetch)
            }
            Self::FetchedBlocks { group, replica, token, content } => {
                let header = Header {
                    kind: kind::FETCHED_BLOCKS,
                    group: group.raw(),
                    session: replica.raw(),
                    id: token,
                    ..Header::default()
                };
                let (body, data) = match content {
                    Some(UnitBlocks { unit, blocks, data }) => {
                        (BlocksBody { unit: Some(unit), blocks, lost: 0 }, data)
                    }
                    None => (BlocksBody { unit: None, blocks: 0, lost: 0 }, Bytes::new()),
                };
                body_and_data_frame(header, &body, &data)
            }
            Self::MendBlocks(mend) => {
                let header = Header {
                    kind: kind::MEND_BLOCKS,
                    group: mend.group.raw(),
                    epoch: mend.epoch.get(),
                    session: mend.replica.raw(),
                    id: mend.token,
                    ..Header::default()
                };
                let UnitBlocks { unit, blocks, data } = mend.content;
                let body = BlocksBody { unit: Some(unit), blocks, lost: mend.lost };
                body_and_data_frame(header, &body, &data)
            }
            Self::Mended { group, replica, token, differs } => plain(Header {
                kind: kind::MENDED,
                group: group.raw(),
                session: replica.raw(),
                id: token,
                length: u32::from(differs),
                ..Header::default()
            }),
            Self::BadUnit { group, replica, epoch, offset, blocks } => plain(Header {
                kind: kind::BAD_UNIT,
                group: group.raw(),
                session: replica.raw(),
                epoch: epoch.get(),
                offset,
                length: u32::from(blocks),
                ..Header::default()
            }),
            Self::Room { group, replica, full } => plain(Header {
                kind: kind::ROOM,
                group: group.raw(),
                session: replica.raw(),
                length: u32::from(full),
                ..Header::default()
            }),
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
            kind::PING => Self::Ping,
            kind::PONG => Self::Pong,
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
            kind::REGION_IMAGE => {
                let (ImageBody { units }, data) = body_and_data(&frame)?;
                Self::RegionImage { group, token: h.id, status, units, data }
            }
            kind::FETCH_BLOCKS => {
                let fetch: FetchBlocks = body(&frame)?;
                check_offset(fetch.offset)?;
                Self::FetchBlocks(fetch)
            }
            kind::FETCHED_BLOCKS => {
                let (BlocksBody { unit, blocks, .. }, data) = body_and_data(&frame)?;
                let content = unit.map(|unit| UnitBlocks { unit, blocks, data });
                Self::FetchedBlocks { group, replica, token: h.id, content }
            }
            kind::MEND_BLOCKS => {
                let (BlocksBody { unit, blocks, lost }, data) = body_and_data(&frame)?;
                let unit = unit.ok_or(DataError::Field("unit"))?;
                check_offset(unit.offset)?;
                let content = UnitBlocks { unit, blocks, data };
                Self::MendBlocks(MendBlocks { group, replica, epoch, token: h.id, content, lost })
            }
            kind::MENDED => Self::Mended { group, replica, token: h.id, differs: h.length != 0 },
            kind::BAD_UNIT => {
                check_offset(h.offset)?;
                let blocks = u16::try_from(h.length).map_err(|_| DataError::Field("blocks"))?;
                Self::BadUnit { group, replica, epoch, offset: h.offset, blocks }
            }
            kind::ROOM => Self::Room { group, replica, full: h.length != 0 },
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

/// The payload is `u32` length of the JSON body, the body, then the block data.
fn body_and_data_frame<T: Serialize>(header: Header, body: &T, data: &Bytes) -> Frame {
    let body = serde_json::to_vec(body).expect("plain data always serializes");
    let mut payload = Vec::with_capacity(4 + body.len() + data.len());
    payload.extend_from_slice(&u32::try_from(body.len()).expect("bounded").to_le_bytes());
    payload.extend_from_slice(&body);
    let crc = crc32c::crc32c(&payload);
    payload.extend_from_slice(data);
    Frame { header, crcs: vec![crc], payload: payload.into() }
}

fn body_and_data<T: DeserializeOwned>(frame: &Frame) -> Result<(T, Bytes), DataError> {
    let payload = &frame.payload;
    let len = payload.get(..4).ok_or(DataError::Field("payload"))?;
    let len = u32::from_le_bytes(len.try_into().expect("four bytes"));
    let end = usize::try_from(len).ok().and_then(|l| l.checked_add(4));
    let end = end.filter(|&e| e <= payload.len()).ok_or(DataError::Field("payload"))?;
    if frame.crcs != [crc32c::crc32c(&payload[..end])] {
        return Err(DataError::BodyCrc);
    }
    let body =
        serde_json::from_slice(&payload[4..end]).map_err(|e| DataError::Body(e.to_string()))?;
    Ok((body, payload.slice(end..)))
}
