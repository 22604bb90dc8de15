//! Content that says what it is: each block that is ever written is filled with a number of its
//! own, so that a reader can tell who wrote it, whether it is whole, and that it is nobody else's.

use std::sync::LazyLock;

use bytes::Bytes;

use crate::drive::image::BLOCK_LEN;

/// Number of a block's content. Zero: never written, or cleared.
pub type Tag = u64;

/// Written, and all zeros.
pub const ZEROS: Tag = 1;
/// The first that is anybody's own.
pub const FIRST: Tag = 2;

pub static ZEROS_CRC: LazyLock<u32> = LazyLock::new(|| crc32c::crc32c(&[0; BLOCK_LEN]));

fn word_of(tag: Tag) -> u64 {
    if tag < FIRST { 0 } else { tag << 16 | 0xb10c }
}

pub fn data_of(tags: &[Tag]) -> Bytes {
    let mut bytes = Vec::with_capacity(tags.len() * BLOCK_LEN);
    for &tag in tags {
        bytes.extend_from_slice(&word_of(tag).to_le_bytes().repeat(BLOCK_LEN / 8));
    }
    bytes.into()
}

pub fn crcs_of(data: &[u8]) -> Vec<u32> {
    data.chunks(BLOCK_LEN).map(crc32c::crc32c).collect()
}

/// What a block says it is; whether zeros were written is known elsewhere.
pub fn tag_of(block: &[u8], is_written: bool) -> Result<Tag, String> {
    let word = u64::from_le_bytes(block[..8].try_into().expect("a block is longer"));
    if block[8..] != block[..BLOCK_LEN - 8] {
        let words: Vec<u64> = block
            .chunks_exact(512)
            .map(|s| u64::from_le_bytes(s[..8].try_into().expect("eight")))
            .collect();
        return Err(format!("torn block: {words:#x?}"));
    }
    match (word, is_written) {
        (0, false) => Ok(0),
        (0, true) => Ok(ZEROS),
        (_, true) if word & 0xffff == 0xb10c && word >> 16 >= FIRST => Ok(word >> 16),
        _ => Err(format!("foreign content {word:#x}, written: {is_written}")),
    }
}
