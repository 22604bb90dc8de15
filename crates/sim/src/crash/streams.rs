//! Readers that go on where they stopped, so that the engine reads ahead of them.
//!
//! Decides: who reads what next. Does not: ask for it, or know what is there.
//! Invariant: the same seed and the same replicas give the same reads.

use super::{
    model::Model,
    requests::{REGION, Wanted, new_tags, write_of},
};
use crate::random::Random;

/// At once: one of them goes on while others' content waits to be asked for.
const READERS: usize = 2;
/// Blocks at once, at most.
const BLOCKS_MAX: usize = 12;

#[derive(Debug)]
pub struct Streams {
    random: Random,
    readers: [Reader; READERS],
}

#[derive(Debug, Clone, Copy, Default)]
struct Reader {
    replica: u64,
    next: usize,
}

impl Streams {
    pub fn new(seed: u64) -> Self {
        Self { random: Random::new(seed ^ 0x7265_6164_6572_7321), readers: Default::default() }
    }

    /// The replica, the first block and the count of the next read.
    pub fn next(&mut self, model: &Model) -> Option<(u64, usize, usize)> {
        let random = &mut self.random;
        let reader = &mut self.readers[random.below(READERS as u64) as usize];
        let size = |replica| model.replicas.get(&replica).map_or(0, |found| found.size);
        if reader.next >= size(reader.replica) || random.below(12) == 0 {
            let replicas: Vec<u64> = model.replicas.keys().copied().collect();
            if replicas.is_empty() {
                return None;
            }
            reader.replica = *random.pick(&replicas);
            reader.next = random.below(size(reader.replica) as u64) as usize;
        }
        let left = size(reader.replica) - reader.next;
        let count = left.min(1 + random.below(BLOCKS_MAX as u64) as usize);
        let first = reader.next;
        reader.next += count;
        Some((reader.replica, first, count))
    }

    /// A whole extent is written, which takes a fresh slot: what is only in memory is not read
    /// ahead, and what was read ahead of the old slot is nothing that the new one holds.
    pub fn write(&mut self, model: &mut Model) -> Option<Wanted> {
        let replicas: Vec<u64> = model.replicas.keys().copied().collect();
        if replicas.is_empty() {
            return None;
        }
        let replica = *self.random.pick(&replicas);
        let regions = model.replicas[&replica].size / REGION;
        let first = self.random.below(regions.max(1) as u64) as usize * REGION;
        let is_free = regions > 0 && model.is_free(replica, first, REGION);
        is_free.then(|| {
            let tags = new_tags(model, REGION);
            write_of(model, replica, first, tags)
        })
    }
}
