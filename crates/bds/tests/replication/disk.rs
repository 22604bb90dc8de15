//! A drive that forgets what was not flushed.

use std::collections::BTreeMap;

use bytes::Bytes;
use engine::api::Durability;

use crate::world::Rng;

const PAGE: u64 = 4096;
const PAGE_LEN: usize = 4096;

type Pages = BTreeMap<u64, Box<[u8; PAGE_LEN]>>;

#[derive(Debug, Default, Clone)]
pub struct Disk {
    stable: Pages,
    /// Pages that were written completely but are gone with the power; in order.
    cached: Vec<(u64, Vec<u8>)>,
    current: Pages,
}

impl Disk {
    pub fn read(&self, offset: u64, length: u32) -> Bytes {
        let mut data = vec![0; length as usize];
        let mut at = offset;
        while at < offset + u64::from(length) {
            let page = at / PAGE;
            let end = ((page + 1) * PAGE).min(offset + u64::from(length));
            if let Some(content) = self.current.get(&page) {
                let from = (at % PAGE) as usize;
                let (start, stop) = ((at - offset) as usize, (end - offset) as usize);
                data[start..stop].copy_from_slice(&content[from..from + stop - start]);
            }
            at = end;
        }
        data.into()
    }

    /// Only what `durability` promises becomes stable.
    pub fn write(&mut self, offset: u64, segments: &[Bytes], durability: Durability) {
        let data: Vec<u8> = segments.concat();
        put(&mut self.current, offset, &data);
        let pages = (offset / PAGE..).zip(data.chunks(PAGE_LEN));
        match durability {
            Durability::Later => self.cached.extend(pages.map(|(p, data)| (p, data.to_vec()))),
            Durability::These => {
                // Older content of these pages cannot come back.
                let end = (offset + data.len() as u64) / PAGE;
                self.cached.retain(|(page, _)| !(offset / PAGE..end).contains(page));
                put(&mut self.stable, offset, &data);
            }
            Durability::Everything => {
                self.flush();
                put(&mut self.stable, offset, &data);
            }
        }
    }

    pub fn flush(&mut self) {
        for (page, data) in self.cached.drain(..) {
            put(&mut self.stable, page * PAGE, &data);
        }
    }

    /// Flips a byte of every page that holds exactly this; how many.
    pub fn damage(&mut self, content: &[u8]) -> usize {
        self.flush();
        let mut damaged = 0;
        for (page, held) in &mut self.current {
            if held[..] == *content {
                held[100] ^= 1;
                self.stable.insert(*page, held.clone());
                damaged += 1;
            }
        }
        damaged
    }

    /// Flips one bit of every block beyond `from` that `chosen` picks by its content, on the medium;
    /// how many. Blocks of zeros are nobody's.
    pub fn rot(&mut self, from: u64, mut chosen: impl FnMut(&[u8]) -> bool) -> usize {
        let mut flipped = 0;
        for (page, held) in self.current.range_mut(from / PAGE..) {
            if held.iter().any(|&byte| byte != 0) && chosen(&held[..]) {
                held[7] ^= 0x10;
                // Should the block be in the cache still, it will be written as it was.
                if let Some(stable) = self.stable.get_mut(page) {
                    stable[7] ^= 0x10;
                }
                flipped += 1;
            }
        }
        flipped
    }

    /// The power fails: of what was not flushed, any blocks may have reached the medium.
    pub fn crash(&mut self, rng: &mut Rng) {
        for (page, data) in std::mem::take(&mut self.cached) {
            if rng.chance(50) {
                put(&mut self.stable, page * PAGE, &data);
            }
        }
        self.current = self.stable.clone();
    }
}

fn put(pages: &mut Pages, offset: u64, data: &[u8]) {
    let mut at = offset;
    let end = offset + data.len() as u64;
    while at < end {
        let page = at / PAGE;
        let stop = ((page + 1) * PAGE).min(end);
        let content = pages.entry(page).or_insert_with(|| Box::new([0; PAGE_LEN]));
        let from = (at % PAGE) as usize;
        let source = &data[(at - offset) as usize..(stop - offset) as usize];
        content[from..from + source.len()].copy_from_slice(source);
        at = stop;
    }
}
