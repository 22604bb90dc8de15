//! A simulated drive.
//!
//! Fault model: a process that is killed loses what it had in flight, of which each 4 KiB block
//! may have reached the drive or not. A power cut loses, besides, any subset of the blocks whose
//! writes had completed but were not flushed. What a flush or a durable write has confirmed stays.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::random::Random;

const BLOCK: u64 = 4096;

#[derive(Debug, Default)]
pub struct Drive {
    /// On stable media, by block number.
    stable: BTreeMap<u64, Bytes>,
    /// Completed, not flushed; newest content per block.
    cached: BTreeMap<u64, Bytes>,
    /// Issued, not completed, by ticket.
    in_flight: BTreeMap<u64, Vec<(u64, Bytes)>>,
    next_ticket: u64,
}

impl Drive {
    pub fn read(&self, offset: u64, length: u32) -> Bytes {
        assert!(offset.is_multiple_of(BLOCK) && u64::from(length).is_multiple_of(BLOCK));
        let mut out = Vec::with_capacity(length as usize);
        for block in offset / BLOCK..(offset + u64::from(length)) / BLOCK {
            match self.cached.get(&block).or_else(|| self.stable.get(&block)) {
                Some(content) => out.extend_from_slice(content),
                None => out.resize(out.len() + 4096, 0),
            }
        }
        out.into()
    }

    /// Takes a write; returns the ticket to complete it with.
    pub fn begin_write(&mut self, offset: u64, data: &[Bytes]) -> u64 {
        assert!(offset.is_multiple_of(BLOCK), "write at {offset}");
        let joined: Bytes = data.concat().into();
        assert!((joined.len() as u64).is_multiple_of(BLOCK), "write of {} bytes", joined.len());
        let blocks = (0..joined.len() / 4096)
            .map(|i| (offset / BLOCK + i as u64, joined.slice(i * 4096..(i + 1) * 4096)))
            .collect();
        self.next_ticket += 1;
        self.in_flight.insert(self.next_ticket, blocks);
        self.next_ticket
    }

    pub fn complete_write(&mut self, ticket: u64) {
        let blocks = self.in_flight.remove(&ticket).expect("each write completes once");
        self.cached.extend(blocks);
    }

    /// Everything completed is stable.
    pub fn flush(&mut self) {
        self.stable.append(&mut self.cached);
    }

    /// The process died: blocks in flight reach the drive or not.
    pub fn kill(&mut self, random: &mut Random) {
        for (_, blocks) in std::mem::take(&mut self.in_flight) {
            for (block, content) in blocks {
                if random.chance(50) {
                    self.cached.insert(block, content);
                }
            }
        }
    }

    /// The power went: what was not flushed may be gone, block by block.
    pub fn cut_power(&mut self, random: &mut Random) {
        self.kill(random);
        for (block, content) in std::mem::take(&mut self.cached) {
            if random.chance(50) {
                self.stable.insert(block, content);
            }
        }
    }
}
