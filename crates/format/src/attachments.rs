//! A node manager's own record of what is attached to it, so that it serves before it has reached
//! the manager.
//!
//! ```text
//! pliant-attachments 1 CRC32C\n
//! JSON list
//! ```
//!
//! The whole file is replaced at once; a field that is added later gets a serde default.

use crate::ctl::Attach;

const MAGIC: &str = "pliant-attachments";
const VERSION: &str = "1";

/// Why bytes are not a record of attachments. Nothing is lost but time: the manager knows what
/// is attached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttachmentsError {
    #[error("not a record of attachments")]
    Head,
    #[error("version {0} is not known here (only {VERSION})")]
    Version(String),
    #[error("the content does not match its checksum")]
    Crc,
    #[error("the content does not parse: {0}")]
    Body(String),
}

pub fn encode(attachments: &[Attach]) -> Vec<u8> {
    let body = serde_json::to_vec(attachments).expect("plain data always serializes");
    let mut out = format!("{MAGIC} {VERSION} {:08x}\n", crc32c::crc32c(&body)).into_bytes();
    out.extend_from_slice(&body);
    out
}

pub fn decode(bytes: &[u8]) -> Result<Vec<Attach>, AttachmentsError> {
    let end = bytes.iter().position(|&b| b == b'\n').ok_or(AttachmentsError::Head)?;
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| AttachmentsError::Head)?;
    let mut words = head.split(' ');
    if words.next() != Some(MAGIC) {
        return Err(AttachmentsError::Head);
    }
    match words.next() {
        Some(VERSION) => {}
        Some(other) => return Err(AttachmentsError::Version(other.to_owned())),
        None => return Err(AttachmentsError::Head),
    }
    let body = &bytes[end + 1..];
    let crc = words.next().and_then(|word| u32::from_str_radix(word, 16).ok());
    if crc != Some(crc32c::crc32c(body)) || words.next().is_some() {
        return Err(AttachmentsError::Crc);
    }
    serde_json::from_slice(body).map_err(|e| AttachmentsError::Body(e.to_string()))
}

#[cfg(test)]
mod tests {
    use model::{
        epoch::{AttachGeneration, Epoch},
        group::{GroupConfig, Member, Role},
        id::{GroupId, InstanceId, ReplicaId, VolumeId},
        units::{ByteCount, Rate},
        volume::Media,
    };

    use super::*;

    fn sample() -> Vec<Attach> {
        let member = Member {
            replica: ReplicaId::from_raw(3),
            server: "server-a-1".parse().expect("a legal name"),
            address: "127.0.0.1:7000".parse().expect("a legal address"),
            drive: "ssd".parse().expect("a legal name"),
            role: Role::Primary,
        };
        let config = GroupConfig {
            group: GroupId::from_raw(2),
            volume: VolumeId::from_raw(1),
            epoch: Epoch::new(4).expect("a legal epoch"),
            members: vec![member],
            size: ByteCount::new(1 << 30),
            attach_generation: AttachGeneration::from_raw(5),
            rate: Rate::default(),
            media: Media::Ssd,
        };
        let (volume, instance) = (config.volume, InstanceId::from_raw(6));
        let device = "/dev/sdf".to_owned();
        vec![Attach { volume, instance, device, kernel_device: true, config }]
    }

    #[test]
    fn attachments_survive_the_file() {
        assert_eq!(decode(&encode(&sample())), Ok(sample()));
        assert_eq!(decode(&encode(&[])), Ok(Vec::new()));
    }

    #[test]
    fn every_damaged_or_missing_byte_is_noticed() {
        let good = encode(&sample());
        for at in 0..good.len() {
            assert!(decode(&good[..at]).is_err(), "cut at {at}");
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(decode(&bad).is_err(), "byte {at} changed unnoticed");
        }
    }

    #[test]
    fn a_later_version_is_named() {
        let text = String::from_utf8(encode(&[])).expect("it is text");
        let later = text.replacen(" 1 ", " 2 ", 1);
        assert_eq!(decode(later.as_bytes()), Err(AttachmentsError::Version("2".to_owned())));
    }
}
