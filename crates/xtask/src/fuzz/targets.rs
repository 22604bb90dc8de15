//! What is fuzzed: each decoder with valid encodings to begin from, how their checksums are made
//! right again after a change, and what must hold of whatever it takes.

use bytes::BytesMut;
use format::{
    attachments, ctl,
    data::DataMessage,
    disk::{
        BLOCK_LEN, DriveUuid, FormatVersion, Superblock,
        apart::JournalHead,
        journal::{Record, begin_batch, decode_batch, finish_batch},
        page::{PageKind, decode_page, decode_row, encode_page, encode_row},
    },
    frame::{self, Frame},
    nbd, record,
    replica::StoredRecord,
};

use super::valid;
use sim::random::Random;

pub struct Target {
    pub name: &'static str,
    pub valid: fn(&mut Random) -> Vec<u8>,
    /// Makes the checksums right, so that what lies behind them is reached.
    pub seal: fn(&mut Vec<u8>),
    /// Whether it was taken for valid.
    pub check: fn(&[u8]) -> Result<bool, String>,
    /// Bytes it may hold at once for an input of so many.
    pub bound: fn(usize) -> usize,
}

pub const UUID: DriveUuid = DriveUuid(*b"0123456789abcdef");

fn no_seal(_: &mut Vec<u8>) {}

/// What is decoded is a few times as large as what it came from, never more.
fn few_times(length: usize) -> usize {
    (64 << 10) + 64 * length
}

const fn target(
    name: &'static str,
    valid: fn(&mut Random) -> Vec<u8>,
    seal: fn(&mut Vec<u8>),
    check: fn(&[u8]) -> Result<bool, String>,
) -> Target {
    Target { name, valid, seal, check, bound: few_times }
}

pub static TARGETS: [Target; 14] = [
    target("superblock", valid::superblock, seal_superblock, superblock),
    target("journal-head", valid::journal_head, seal_superblock, journal_head),
    target("page", valid::page, seal_page, page),
    target("replica-row", valid::row, no_seal, row),
    target("batch", valid::batch, seal_batch, batch),
    target("replica-record", valid::replica_record, no_seal, replica_record),
    target("metadata-record", valid::record, no_seal, metadata_record),
    target("attachments", valid::attachments, seal_attachments, attachments),
    target("frame", valid::frame, seal_frame, frame),
    target("data", valid::data, seal_frame, data),
    target("ctl-to-manager", valid::to_manager, seal_body, to_manager),
    target("ctl-from-manager", valid::from_manager, seal_body, from_manager),
    Target {
        // The payload that a request announces is made room for, up to its limit of 16 MiB.
        bound: |length| few_times(length) + (40 << 20),
        ..target("nbd", valid::nbd, no_seal, nbd_session)
    },
    Target {
        name: "drive",
        valid: super::drive::valid,
        seal: no_seal,
        check: super::drive::check,
        // A drive of 16 MiB, its copy, and the engine's memory.
        bound: |_| 256 << 20,
    },
];

fn same<T: PartialEq + std::fmt::Debug>(one: &T, other: &T) -> Result<bool, String> {
    if one == other {
        return Ok(true);
    }
    let short = |value: &T| format!("{value:?}").chars().take(600).collect::<String>();
    Err(format!("it decodes to\n{}\nand, encoded again, to\n{}", short(one), short(other)))
}

fn put_crc(bytes: &mut [u8], at: usize, crc: u32) {
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

fn seal_superblock(bytes: &mut Vec<u8>) {
    bytes.resize(BLOCK_LEN, 0);
    let crc = crc32c::crc32c(&bytes[..508]);
    put_crc(bytes, 508, crc);
}

fn superblock(bytes: &[u8]) -> Result<bool, String> {
    let Ok(found) = Superblock::decode(bytes) else { return Ok(false) };
    let again = Superblock::decode(&found.encode()).map_err(|e| e.to_string())?;
    same(&found, &again)
}

fn journal_head(bytes: &[u8]) -> Result<bool, String> {
    let Ok(found) = JournalHead::decode(bytes) else { return Ok(false) };
    let again = JournalHead::decode(&found.encode()[..BLOCK_LEN]).map_err(|e| e.to_string())?;
    same(&found, &again)
}

pub fn seal_page(bytes: &mut Vec<u8>) {
    bytes.resize(BLOCK_LEN, 0);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..60]), &bytes[64..]);
    put_crc(bytes, 60, crc);
}

fn page(bytes: &[u8]) -> Result<bool, String> {
    for kind in [PageKind::Replica, PageKind::Descriptors, PageKind::Map] {
        let Ok((header, body)) = decode_page(UUID, kind, valid::PAGE, bytes) else { continue };
        let whole = encode_page(UUID, &header, body);
        let again = decode_page(UUID, kind, valid::PAGE, &whole).map_err(|e| e.to_string())?;
        return same(&(header, body), &again);
    }
    Ok(false)
}

fn row(bytes: &[u8]) -> Result<bool, String> {
    let mut accepted = false;
    for version in [FormatVersion::V1, FormatVersion::V2, FormatVersion::V3] {
        let Ok(Some(found)) = decode_row(version, bytes) else { continue };
        let row = encode_row(version, Some(&found));
        // A page's body, in which a row lies, is never shorter than what goes before the metadata.
        let again = decode_row(version, &row).map_err(|e| e.to_string())?;
        accepted |= same(&Some(found), &again)?;
    }
    Ok(accepted)
}

pub fn seal_batch(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(BLOCK_LEN).max(BLOCK_LEN), 0);
    let blocks = usize::from(u16::from_le_bytes([bytes[56], bytes[57]]));
    let end = (blocks * BLOCK_LEN).clamp(BLOCK_LEN, bytes.len());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..64]), &bytes[68..end]);
    put_crc(bytes, 64, crc);
}

fn batch(bytes: &[u8]) -> Result<bool, String> {
    let Ok((header, records)) = decode_batch(UUID, bytes) else { return Ok(false) };
    let mut head = BytesMut::new();
    begin_batch(&mut head);
    records.iter().for_each(|record: &Record| record.put(&mut head));
    let whole = finish_batch(head, UUID, &header);
    let (again, records_again) = decode_batch(UUID, &whole).map_err(|e| e.to_string())?;
    // A head may have been longer than its records need.
    same(
        &header,
        &format::disk::journal::BatchHeader { head_blocks: header.head_blocks, ..again },
    )?;
    same(&records, &records_again)
}

fn replica_record(bytes: &[u8]) -> Result<bool, String> {
    let Ok(found) = StoredRecord::decode(bytes) else { return Ok(false) };
    let encoded = match &found {
        StoredRecord::Whole(record) => record.encode(),
        StoredRecord::Part(part) => part.encode(),
    };
    same(&found, &StoredRecord::decode(&encoded).map_err(|e| e.to_string())?)
}

fn metadata_record(bytes: &[u8]) -> Result<bool, String> {
    let Ok(found) = serde_json::from_slice::<record::Record>(bytes) else { return Ok(false) };
    let text = serde_json::to_vec(&found).map_err(|e| e.to_string())?;
    same(&found, &serde_json::from_slice(&text).map_err(|e| e.to_string())?)
}

fn seal_attachments(bytes: &mut Vec<u8>) {
    if let Some(end) = bytes.iter().position(|&b| b == b'\n') {
        let head = format!("pliant-attachments 1 {:08x}", crc32c::crc32c(&bytes[end + 1..]));
        drop(bytes.splice(..end, head.into_bytes()));
    }
}

fn attachments(bytes: &[u8]) -> Result<bool, String> {
    let Ok(found) = attachments::decode(bytes) else { return Ok(false) };
    same(&found, &attachments::decode(&attachments::encode(&found)).map_err(|e| e.to_string())?)
}

#[expect(clippy::ptr_arg, reason = "other seals change the length")]
fn seal_frame(bytes: &mut Vec<u8>) {
    if bytes.len() >= 64 {
        let crc = crc32c::crc32c(&bytes[..60]);
        put_crc(bytes, 60, crc);
    }
}

fn decode_frame(bytes: &[u8]) -> Option<Frame> {
    frame::decode(&mut BytesMut::from(bytes)).ok().flatten()
}

fn frame(bytes: &[u8]) -> Result<bool, String> {
    let Some(found) = decode_frame(bytes) else { return Ok(false) };
    let again = decode_frame(&found.encode()).ok_or("what was encoded is no frame")?;
    same(&found, &again)
}

fn data(bytes: &[u8]) -> Result<bool, String> {
    let Some(Ok(found)) = decode_frame(bytes).map(DataMessage::from_frame) else {
        return Ok(false);
    };
    let again = DataMessage::from_frame(found.clone().into_frame()).map_err(|e| e.to_string())?;
    same(&found, &again)
}

/// Control messages: the body's checksum, its length, then the header's.
fn seal_body(bytes: &mut Vec<u8>) {
    if bytes.len() >= 68 {
        let (length, crc) = (bytes.len() - 68, crc32c::crc32c(&bytes[68..]));
        put_crc(bytes, 64, crc);
        bytes[54..56].copy_from_slice(&1u16.to_le_bytes());
        put_crc(bytes, 56, u32::try_from(length).expect("inputs are small"));
        seal_frame(bytes);
    }
}

fn to_manager(bytes: &[u8]) -> Result<bool, String> {
    let Some(frame) = decode_frame(bytes) else { return Ok(false) };
    let Ok(found) = ctl::decode::<ctl::ToManager>(&frame) else { return Ok(false) };
    same(&found, &ctl::decode(&ctl::encode(&found)).map_err(|e| e.to_string())?)
}

fn from_manager(bytes: &[u8]) -> Result<bool, String> {
    let Some(frame) = decode_frame(bytes) else { return Ok(false) };
    let Ok(found) = ctl::decode::<ctl::FromManager>(&frame) else { return Ok(false) };
    same(&found, &ctl::decode(&ctl::encode(&found)).map_err(|e| e.to_string())?)
}

/// The same bytes in one piece and cut in two come to the same.
fn nbd_session(bytes: &[u8]) -> Result<bool, String> {
    let exports = nbd::Exports::from([("vol".to_owned(), nbd::ExportInfo { size: 1 << 20 })]);
    let run = |parts: &[&[u8]]| {
        let mut events = Vec::new();
        let mut server = nbd::Server::new(&mut events);
        let mut input = BytesMut::new();
        for part in parts {
            input.extend_from_slice(part);
            server.receive(&mut input, &exports, &mut events);
        }
        events
    };
    let cut = bytes.len() / 3;
    same(&run(&[bytes]), &run(&[&bytes[..cut], &bytes[cut..]]))
}
