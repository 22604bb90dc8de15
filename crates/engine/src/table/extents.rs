//! Which slot holds which extent of a replica.
//!
//! Decides: nothing; it remembers.
//! Invariant: about four bytes an extent where extents have neighbours, however many there are.

use std::collections::BTreeMap;

const CHUNK_EXTENTS: u32 = 64;
const NONE: u32 = u32::MAX;
/// Of a chunk, with its share of the tree that it hangs in.
const CHUNK_BYTES: u64 = size_of::<Chunk>() as u64 + 24;

#[derive(Debug, Default)]
pub struct ExtentMap {
    chunks: BTreeMap<u32, Box<Chunk>>,
    len: u64,
}

#[derive(Debug)]
struct Chunk {
    slots: [u32; CHUNK_EXTENTS as usize],
    used: u32,
}

impl ExtentMap {
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Bytes of memory, about.
    pub fn memory(&self) -> u64 {
        u64::try_from(self.chunks.len()).expect("fits") * CHUNK_BYTES
    }

    /// Bytes of memory of a map of so many extents, all of them used.
    pub fn memory_of(extents: u64) -> u64 {
        extents.div_ceil(u64::from(CHUNK_EXTENTS)) * CHUNK_BYTES
    }

    pub fn get(&self, extent: u32) -> Option<u32> {
        let (chunk, index) = split(extent);
        let slot = self.chunks.get(&chunk)?.slots[index];
        (slot != NONE).then_some(slot)
    }

    /// Returns the slot that held the extent before.
    pub fn insert(&mut self, extent: u32, slot: u32) -> Option<u32> {
        assert_ne!(slot, NONE, "no such slot");
        let (chunk, index) = split(extent);
        let empty = || Box::new(Chunk { slots: [NONE; CHUNK_EXTENTS as usize], used: 0 });
        let chunk = self.chunks.entry(chunk).or_insert_with(empty);
        let before = std::mem::replace(&mut chunk.slots[index], slot);
        if before != NONE {
            return Some(before);
        }
        chunk.used += 1;
        self.len += 1;
        None
    }

    pub fn remove(&mut self, extent: u32) -> Option<u32> {
        let (key, index) = split(extent);
        let chunk = self.chunks.get_mut(&key)?;
        let before = std::mem::replace(&mut chunk.slots[index], NONE);
        if before == NONE {
            return None;
        }
        chunk.used -= 1;
        self.len -= 1;
        if chunk.used == 0 {
            self.chunks.remove(&key);
        }
        Some(before)
    }

    /// The extents from `first` to `last`, with their slots, in order.
    pub fn range(&self, first: u32, last: u32) -> impl Iterator<Item = (u32, u32)> + '_ {
        let chunks = self.chunks.range(first / CHUNK_EXTENTS..=last / CHUNK_EXTENTS);
        let all = chunks.flat_map(|(&key, chunk)| {
            let first = key * CHUNK_EXTENTS;
            (first..=first + (CHUNK_EXTENTS - 1)).zip(chunk.slots).filter(|&(_, slot)| slot != NONE)
        });
        all.skip_while(move |&(extent, _)| extent < first)
            .take_while(move |&(extent, _)| extent <= last)
    }

    /// The last extent before `end`, if there is one.
    pub fn last_before(&self, end: Option<u32>) -> Option<u32> {
        let last = end.map_or(Some(u32::MAX), |end| end.checked_sub(1))?;
        let chunks = self.chunks.range(..=last / CHUNK_EXTENTS).rev();
        let mut used = chunks.flat_map(|(&key, chunk)| {
            let first = key * CHUNK_EXTENTS;
            (0..CHUNK_EXTENTS)
                .zip(chunk.slots)
                .rev()
                .map(move |(index, slot)| (first + index, slot))
        });
        used.find(|&(extent, slot)| slot != NONE && extent <= last).map(|(extent, _)| extent)
    }

    /// Takes at least `count` extents out, if there are as many, and returns their slots.
    pub fn take(&mut self, count: usize) -> Vec<u32> {
        let mut slots = Vec::new();
        while slots.len() < count
            && let Some((_, chunk)) = self.chunks.pop_first()
        {
            self.len -= u64::from(chunk.used);
            slots.extend(chunk.slots.into_iter().filter(|&slot| slot != NONE));
        }
        slots
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.range(0, u32::MAX)
    }
}

fn split(extent: u32) -> (u32, usize) {
    let index = usize::try_from(extent % CHUNK_EXTENTS).expect("below 64");
    (extent / CHUNK_EXTENTS, index)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_holds_what_a_plain_map_holds(
            steps in prop::collection::vec((0u32..400, 0u32..50, any::<bool>()), 0..400),
            first in 0u32..400,
            length in 0u32..400,
        ) {
            let (mut map, mut plain) = (ExtentMap::default(), BTreeMap::new());
            for (extent, slot, insert) in steps {
                // At both ends of what an extent can be.
                let extent = if slot % 2 == 0 { extent } else { u32::MAX - extent };
                if insert {
                    prop_assert_eq!(map.insert(extent, slot), plain.insert(extent, slot));
                } else {
                    prop_assert_eq!(map.remove(extent), plain.remove(&extent));
                }
                prop_assert_eq!(map.get(extent), plain.get(&extent).copied());
            }
            prop_assert_eq!(map.len(), plain.len() as u64);
            let all: Vec<_> = plain.iter().map(|(&e, &s)| (e, s)).collect();
            prop_assert_eq!(map.iter().collect::<Vec<_>>(), all);
            let (last, far) = (first + length, u32::MAX - first);
            for (first, last) in [(first, last), (far - length, far)] {
                let some: Vec<_> = plain.range(first..=last).map(|(&e, &s)| (e, s)).collect();
                prop_assert_eq!(map.range(first, last).collect::<Vec<_>>(), some);
            }
            prop_assert_eq!(map.last_before(None), plain.keys().next_back().copied());
            for end in [first, last, far] {
                let before = plain.range(..end).next_back().map(|(&extent, _)| extent);
                prop_assert_eq!(map.last_before(Some(end)), before);
            }
            prop_assert_eq!(map.memory() > 0, map.len() > 0);
            let mut taken = Vec::new();
            while map.len() > 0 {
                let before = map.len();
                taken.extend(map.take(70));
                prop_assert!(before - map.len() >= before.min(70));
            }
            prop_assert_eq!(taken, plain.values().copied().collect::<Vec<_>>());
            prop_assert_eq!(map.memory(), 0);
        }
    }
}
