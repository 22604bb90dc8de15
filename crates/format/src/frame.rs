//! The frame that carries every message between roles.
//!
//! ```text
//!  0 magic u32      4 version u8   5 kind u8       6 flags u16
//!  8 group u64     16 epoch u64   24 id u64       32 session u64
//! 40 offset u64    48 length u32  52 status u16   54 crc count u16
//! 56 payload u32   60 CRC32C of bytes 0..60
//! 64 crc count × u32, then the payload
//! ```
//!
//! The CRCs are those of the payload's 4 KiB blocks when it is block data, or one CRC of the
//! whole payload when it is a message body. They are checked by whoever uses the payload, not
//! here, because block data keeps the CRCs that its writer computed all the way to the disk.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use model::limits::FRAME_PAYLOAD_BYTES_MAX;

pub const HEADER_BYTES: usize = 64;
pub const VERSION: u8 = 1;
const MAGIC: u32 = 0x3146_4c50; // "PLF1" on the wire.
/// One CRC per block of the largest payload.
const CRC_COUNT_MAX: usize = (FRAME_PAYLOAD_BYTES_MAX / model::units::BLOCK_BYTES) as usize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    pub kind: u8,
    pub flags: u16,
    pub group: u64,
    pub epoch: u64,
    pub id: u64,
    pub session: u64,
    pub offset: u64,
    pub length: u32,
    pub status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frame {
    pub header: Header,
    pub crcs: Vec<u32>,
    pub payload: Bytes,
}

/// Why bytes are not a frame. The connection they came from must be closed: there is no way to
/// find the next frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("bad magic {0:#010x}")]
    Magic(u32),
    #[error("header checksum mismatch")]
    HeaderCrc,
    #[error("protocol version {0} is not spoken here (only {VERSION})")]
    Version(u8),
    #[error("payload of {0} bytes exceeds {FRAME_PAYLOAD_BYTES_MAX}")]
    PayloadBytes(u32),
    #[error("{0} block checksums exceed {CRC_COUNT_MAX}")]
    CrcCount(u16),
}

impl Frame {
    /// Appends header and CRCs; the payload is sent as it is, after them.
    pub fn encode_head(&self, out: &mut BytesMut) {
        assert!(self.crcs.len() <= CRC_COUNT_MAX, "{} block checksums", self.crcs.len());
        let payload = u32::try_from(self.payload.len()).expect("payload below 4 GiB");
        assert!(payload <= FRAME_PAYLOAD_BYTES_MAX, "payload of {payload} bytes");
        let start = out.len();
        let header = &self.header;
        out.reserve(HEADER_BYTES + 4 * self.crcs.len());
        out.put_u32_le(MAGIC);
        out.put_u8(VERSION);
        out.put_u8(header.kind);
        out.put_u16_le(header.flags);
        out.put_u64_le(header.group);
        out.put_u64_le(header.epoch);
        out.put_u64_le(header.id);
        out.put_u64_le(header.session);
        out.put_u64_le(header.offset);
        out.put_u32_le(header.length);
        out.put_u16_le(header.status);
        out.put_u16_le(u16::try_from(self.crcs.len()).expect("asserted above"));
        out.put_u32_le(payload);
        let crc = crc32c::crc32c(&out[start..]);
        out.put_u32_le(crc);
        for &crc in &self.crcs {
            out.put_u32_le(crc);
        }
    }

    /// Header, CRCs and payload in one buffer.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.wire_len());
        self.encode_head(&mut out);
        out.extend_from_slice(&self.payload);
        out.freeze()
    }

    pub fn wire_len(&self) -> usize {
        HEADER_BYTES + 4 * self.crcs.len() + self.payload.len()
    }
}

/// Bytes of the frame at the head of `input`, or `None` when its header is not complete yet.
pub fn frame_len(input: &[u8]) -> Result<Option<usize>, FrameError> {
    if input.len() < HEADER_BYTES {
        return Ok(None);
    }
    let mut head = &input[..HEADER_BYTES];
    let magic = head.get_u32_le();
    if magic != MAGIC {
        return Err(FrameError::Magic(magic));
    }
    let stored = u32::from_le_bytes(input[60..64].try_into().expect("four bytes"));
    if crc32c::crc32c(&input[..60]) != stored {
        return Err(FrameError::HeaderCrc);
    }
    let version = head.get_u8();
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    let crc_count = u16::from_le_bytes(input[54..56].try_into().expect("two bytes"));
    if usize::from(crc_count) > CRC_COUNT_MAX {
        return Err(FrameError::CrcCount(crc_count));
    }
    let payload = u32::from_le_bytes(input[56..60].try_into().expect("four bytes"));
    if payload > FRAME_PAYLOAD_BYTES_MAX {
        return Err(FrameError::PayloadBytes(payload));
    }
    let payload = usize::try_from(payload).expect("bounded above");
    Ok(Some(HEADER_BYTES + 4 * usize::from(crc_count) + payload))
}

/// Takes one frame off the head of `input`, or returns `None` until all of it is there. The
/// payload shares `input`'s memory.
pub fn decode(input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let Some(len) = frame_len(input)? else { return Ok(None) };
    if input.len() < len {
        return Ok(None);
    }
    let mut bytes = input.split_to(len).freeze();
    bytes.advance(5);
    let header = Header {
        kind: bytes.get_u8(),
        flags: bytes.get_u16_le(),
        group: bytes.get_u64_le(),
        epoch: bytes.get_u64_le(),
        id: bytes.get_u64_le(),
        session: bytes.get_u64_le(),
        offset: bytes.get_u64_le(),
        length: bytes.get_u32_le(),
        status: bytes.get_u16_le(),
    };
    let crc_count = bytes.get_u16_le();
    bytes.advance(8);
    let crcs = (0..crc_count).map(|_| bytes.get_u32_le()).collect();
    Ok(Some(Frame { header, crcs, payload: bytes }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Frame {
        let header =
            Header { kind: 3, group: 7, epoch: 2, id: 9, length: 4096, ..Header::default() };
        Frame { header, crcs: vec![1], payload: Bytes::from(vec![5; 4096]) }
    }

    #[test]
    fn a_frame_survives_any_split_of_its_bytes() {
        let wire = sample().encode();
        for cut in [0, 1, 63, 64, 67, 68, 70, wire.len() - 1] {
            let mut input = BytesMut::from(&wire[..cut]);
            assert_eq!(decode(&mut input), Ok(None), "cut at {cut}");
            input.extend_from_slice(&wire[cut..]);
            assert_eq!(decode(&mut input), Ok(Some(sample())));
            assert!(input.is_empty());
        }
    }

    #[test]
    fn every_flipped_header_bit_is_refused() {
        let wire = sample().encode();
        for bit in 0..HEADER_BYTES * 8 {
            let mut input = BytesMut::from(&wire[..]);
            input[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&mut input).is_err(), "bit {bit} slipped through");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&mut BytesMut::from(&bytes[..]));
        }
    }
}
