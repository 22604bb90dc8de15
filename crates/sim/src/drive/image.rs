//! What a simulated drive holds: blocks that are shared until they differ.
//!
//! Decides: how content is kept, so that a copy of a whole drive costs next to nothing.
//! Does not: know of caches, crashes or faults.
//! Invariant: what was never put reads as zeros.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use engine::api::Device;

pub const BLOCK_LEN: usize = 4096;
const BLOCK: u64 = 4096;
const CHUNK_BLOCKS: usize = 64;
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// An empty block is zeros.
type Chunk = [Bytes; CHUNK_BLOCKS];

/// Of a drive, and of where its journal lies, if that lies apart.
#[derive(Debug, Clone, Default)]
pub struct Images {
    pub data: Image,
    pub journal: Image,
}

impl Images {
    pub fn of(&mut self, device: Device) -> &mut Image {
        match device {
            Device::Data => &mut self.data,
            Device::Journal => &mut self.journal,
        }
    }

    /// Blocks that were ever put, in order.
    pub fn blocks(&self) -> impl Iterator<Item = (Device, u64)> {
        let data = self.data.blocks().map(|block| (Device::Data, block));
        data.chain(self.journal.blocks().map(|block| (Device::Journal, block)))
    }
}

/// Cheap to clone: chunks are copied when one of two images changes them.
#[derive(Debug, Clone, Default)]
pub struct Image {
    chunks: Vec<Option<Arc<Chunk>>>,
}

impl Image {
    pub fn read(&self, offset: u64, length: usize) -> Bytes {
        assert!(offset.is_multiple_of(BLOCK) && length.is_multiple_of(BLOCK_LEN), "whole blocks");
        if length == BLOCK_LEN {
            return self.get(offset / BLOCK);
        }
        let blocks = offset / BLOCK..(offset + length as u64) / BLOCK;
        let is_empty = blocks.clone().all(|block| self.block(block).is_none());
        if is_empty && length <= ZEROS.len() {
            return Bytes::from_static(&ZEROS[..length]);
        }
        let mut out = BytesMut::with_capacity(length);
        for block in blocks {
            out.extend_from_slice(self.block(block).map_or(&ZEROS[..BLOCK_LEN], |b| &b[..]));
        }
        out.freeze()
    }

    /// `None`: zeros.
    fn block(&self, block: u64) -> Option<&Bytes> {
        let (chunk, index) = place(block);
        let found = &self.chunks.get(chunk)?.as_ref()?[index];
        (!found.is_empty()).then_some(found)
    }

    pub fn get(&self, block: u64) -> Bytes {
        self.block(block).cloned().unwrap_or(Bytes::from_static(&ZEROS[..BLOCK_LEN]))
    }

    pub fn put(&mut self, block: u64, content: Bytes) {
        assert_eq!(content.len(), BLOCK_LEN, "a block");
        let (chunk, index) = place(block);
        if chunk >= self.chunks.len() {
            self.chunks.resize(chunk + 1, None);
        }
        let empty = || Arc::new(std::array::from_fn(|_| Bytes::new()));
        let chunk = self.chunks[chunk].get_or_insert_with(empty);
        Arc::make_mut(chunk)[index] = content;
    }

    /// Flips one bit.
    pub fn rot(&mut self, block: u64, bit: usize) {
        let mut bytes = self.get(block).to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        self.put(block, bytes.into());
    }

    /// Blocks that were ever put, in order.
    pub fn blocks(&self) -> impl Iterator<Item = u64> {
        let chunks = (0u64..).zip(&self.chunks);
        chunks.filter_map(|(number, chunk)| Some((number, chunk.as_ref()?))).flat_map(
            |(number, chunk)| {
                let first = number * CHUNK_BLOCKS as u64;
                let some = (first..).zip(chunk.iter()).filter(|(_, bytes)| !bytes.is_empty());
                some.map(|(block, _)| block)
            },
        )
    }
}

fn place(block: u64) -> (usize, usize) {
    let block = usize::try_from(block).expect("simulated drives are small");
    (block / CHUNK_BLOCKS, block % CHUNK_BLOCKS)
}
