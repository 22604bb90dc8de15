//! Random requests that are in order: every size and alignment, hot spots, whole extents, images.

use bytes::Bytes;
use engine::api::Request;
use format::data::{Change, UnitMeta};
use model::{
    epoch::ModSeq,
    id::{LayerId, ReplicaId},
    units::ByteCount,
};

use super::{
    content::{FIRST, Tag, ZEROS, crcs_of, data_of},
    model::{Model, Pending, UNIT},
};
use crate::random::Random;

pub const BLOCK: u64 = 4096;
/// An extent on an HDD, sixteen on an SSD.
pub const REGION: usize = 256;

/// What a history asks for.
#[derive(Debug, Clone, Copy)]
pub struct Mix {
    pub replicas: u64,
    /// Blocks of the largest replica: whole regions.
    pub blocks_max: usize,
    /// Per hundred.
    pub reads: u64,
    pub zeroes: u64,
    pub installs: u64,
    /// Changes of at least an extent, per hundred changes.
    pub large: u64,
    /// Freezes and releases, per hundred.
    pub layers: u64,
}

#[derive(Debug, Clone)]
pub struct Wanted {
    pub request: Request,
    pub replica: u64,
    pub pending: Pending,
}

pub fn id(raw: u64) -> ReplicaId {
    ReplicaId::from_raw(raw)
}

pub fn meta_of(version: u64) -> Bytes {
    let length = usize::try_from(version * 37 % 3000).expect("small");
    Bytes::from(version.to_le_bytes().repeat(1 + length / 8))
}

fn bytes_of(blocks: usize) -> ByteCount {
    ByteCount::new(blocks as u64 * BLOCK)
}

impl Mix {
    /// A change, unless the one thought of is not in order now.
    pub fn change(&self, model: &mut Model, random: &mut Random) -> Option<Wanted> {
        let replica = 1 + random.below(self.replicas);
        if !model.replicas.contains_key(&replica) {
            let idle = model.pending_of(replica).next().is_none()
                && model.reading.values().all(|r| r.replica != replica);
            return idle.then(|| self.create(model, replica, random));
        }
        if model.pending_of(replica).any(|p| matches!(p, Pending::Remove)) {
            return None;
        }
        if random.below(100) < self.layers {
            return Some(self.layer(model, replica, random));
        }
        let choice = random.below(100);
        match choice {
            0 => Some(remove(replica)),
            1..4 => self.set_meta(model, replica, random),
            _ if choice < 4 + self.installs => self.install(model, replica, random),
            _ if choice < 4 + self.installs + self.zeroes => self.zero(model, replica, random),
            _ => self.write(model, replica, random),
        }
    }

    fn create(&self, model: &mut Model, replica: u64, random: &mut Random) -> Wanted {
        let meta = model.next_seq();
        let size = match random.below(3) {
            0 => 1 + random.below(self.blocks_max as u64) as usize,
            _ => self.blocks_max,
        };
        let request = Request::CreateReplica {
            replica: id(replica),
            size: bytes_of(size),
            meta: meta_of(meta),
        };
        Wanted { request, replica, pending: Pending::Create { size, meta } }
    }

    /// Frozen layers come and go.
    fn layer(&self, model: &mut Model, replica: u64, random: &mut Random) -> Wanted {
        let kept = model.kept_layers(replica);
        if !kept.is_empty() && random.below(4) < kept.len() as u64 {
            return release_of(replica, *random.pick(&kept));
        }
        model.last_layer += 1;
        let layer = model.last_layer;
        let request = Request::Freeze { replica: id(replica), layer: layer_id(layer) };
        Wanted { request, replica, pending: Pending::Freeze { layer } }
    }

    /// A layer to read, and a range.
    pub fn read_layer(
        &self,
        model: &Model,
        random: &mut Random,
    ) -> Option<(u64, u64, usize, usize)> {
        let replica = 1 + random.below(self.replicas);
        let kept = model.kept_layers(replica);
        if kept.is_empty() {
            return None;
        }
        let (first, count) = self.range(model.replicas[&replica].size, random);
        Some((replica, *random.pick(&kept), first, count))
    }

    fn set_meta(&self, model: &mut Model, replica: u64, random: &mut Random) -> Option<Wanted> {
        if model.pending_of(replica).any(|p| matches!(p, Pending::Meta { .. })) {
            return None;
        }
        let meta = model.next_seq();
        let old = model.replicas[&replica].size;
        let size = old + random.below((self.blocks_max - old) as u64 + 1) as usize;
        Some(set_meta_of(replica, size, meta))
    }

    /// First block and count within so many blocks.
    fn range(&self, size: usize, random: &mut Random) -> (usize, usize) {
        let pick = |random: &mut Random, n: usize| random.below(n as u64) as usize;
        let count = if random.below(100) < self.large {
            let whole = if random.chance(70) { UNIT * (1 + pick(random, 6)) } else { REGION };
            // Sometimes it is not whole after all.
            if random.chance(20) { whole + 1 + pick(random, UNIT) } else { whole }
        } else {
            match random.below(10) {
                0..6 => 1 + pick(random, 3),
                _ => 1 + pick(random, 20),
            }
        };
        let count = count.min(size);
        let first = pick(random, size - count + 1);
        match (count % UNIT, random.below(4)) {
            (0, 0..3) => (first / UNIT * UNIT, count),
            (_, 0) => (first % 40.min(size - count + 1), count),
            _ => (first, count),
        }
    }

    fn free_range(
        &self,
        model: &Model,
        replica: u64,
        random: &mut Random,
    ) -> Option<(usize, usize)> {
        let (first, count) = self.range(model.replicas[&replica].size, random);
        model.is_free(replica, first, count).then_some((first, count))
    }

    fn write(&self, model: &mut Model, replica: u64, random: &mut Random) -> Option<Wanted> {
        let (first, count) = self.free_range(model, replica, random)?;
        let mut tags = new_tags(model, count);
        if random.below(50) == 0 {
            tags.iter_mut().for_each(|tag| *tag = ZEROS);
        }
        Some(write_of(model, replica, first, tags))
    }

    fn zero(&self, model: &mut Model, replica: u64, random: &mut Random) -> Option<Wanted> {
        let (first, count) = self.free_range(model, replica, random)?;
        Some(zero_of(model, replica, first, count))
    }

    fn install(&self, model: &mut Model, replica: u64, random: &mut Random) -> Option<Wanted> {
        let region = random.below((self.blocks_max / REGION) as u64) as usize * REGION;
        let whole = REGION / UNIT;
        let from = random.below(whole as u64) as usize;
        let (from, count) = match random.below(3) {
            0 => (0, whole),
            _ => (from, 1 + random.below((whole - from) as u64) as usize),
        };
        let first = region + from * UNIT;
        let size = model.replicas[&replica].size;
        if first + count * UNIT > size || !model.is_free(replica, first, count * UNIT) {
            return None;
        }
        let (mut units, mut all, mut seqs) = (Vec::new(), Vec::new(), Vec::new());
        let mut data = Vec::new();
        for unit in 0..count {
            let valid = match random.below(4) {
                0 => 0,
                1 => u16::MAX,
                _ => (random.number() & 0xffff) as u16,
            };
            let mut tags = new_tags(model, UNIT);
            tags.iter_mut().enumerate().for_each(|(b, tag)| *tag *= u64::from(valid >> b & 1));
            let some: Vec<Tag> = tags.iter().copied().filter(|&tag| tag != 0).collect();
            let bytes = data_of(&some);
            let mod_seq = 1 + random.below(model.last_seq);
            units.push(UnitMeta {
                offset: (first + unit * UNIT) as u64 * BLOCK,
                mod_seq: ModSeq::from_raw(mod_seq),
                valid: valid.to_le_bytes().to_vec(),
                crcs: crcs_of(&bytes),
            });
            data.extend_from_slice(&bytes);
            all.extend(tags);
            seqs.push(mod_seq);
        }
        let request = Request::Install { replica: id(replica), units, data: data.into() };
        let pending = Pending::Blocks { first, tags: all, seqs, exact: true };
        Some(Wanted { request, replica, pending })
    }

    /// A range to read.
    pub fn read(&self, model: &Model, random: &mut Random) -> Option<(u64, usize, usize)> {
        let replica = 1 + random.below(self.replicas);
        let size = model.replicas.get(&replica)?.size;
        let (first, count) = match random.below(2) {
            0 => self.range(size, random),
            _ => (0, size.min(REGION)),
        };
        Some((replica, first, count))
    }
}

pub fn layer_id(raw: u64) -> LayerId {
    LayerId::from_raw(raw)
}

pub fn release_of(replica: u64, layer: u64) -> Wanted {
    let request = Request::Release { replica: id(replica), layer: layer_id(layer) };
    Wanted { request, replica, pending: Pending::Release { layer } }
}

pub fn remove(replica: u64) -> Wanted {
    let request = Request::RemoveReplica { replica: id(replica) };
    Wanted { request, replica, pending: Pending::Remove }
}

pub fn set_meta_of(replica: u64, size: usize, meta: u64) -> Wanted {
    let (replica_id, bytes) = (id(replica), meta_of(meta));
    let request =
        Request::SetReplicaMeta { replica: replica_id, size: bytes_of(size), meta: bytes };
    Wanted { request, replica, pending: Pending::Meta { size, meta } }
}

pub fn write_of(model: &mut Model, replica: u64, first: usize, tags: Vec<Tag>) -> Wanted {
    let data = data_of(&tags);
    change_of(model, replica, first, tags, Change::Write { crcs: crcs_of(&data), data })
}

pub fn zero_of(model: &mut Model, replica: u64, first: usize, count: usize) -> Wanted {
    let length = u32::try_from(count as u64 * BLOCK).expect("replicas are small");
    change_of(model, replica, first, vec![0; count], Change::Zero { length })
}

fn change_of(
    model: &mut Model,
    replica: u64,
    first: usize,
    tags: Vec<Tag>,
    change: Change,
) -> Wanted {
    let mod_seq = model.next_seq();
    let units = (first + tags.len()).div_ceil(UNIT) - first / UNIT;
    let (offset, seqs) = (first as u64 * BLOCK, vec![mod_seq; units]);
    let mod_seq = ModSeq::from_raw(mod_seq);
    let request = Request::Change { replica: id(replica), mod_seq, offset, change };
    Wanted { request, replica, pending: Pending::Blocks { first, tags, seqs, exact: false } }
}

pub fn new_tags(model: &mut Model, count: usize) -> Vec<Tag> {
    let first = model.last_tag.max(FIRST - 1) + 1;
    model.last_tag = first + count as u64 - 1;
    (first..first + count as u64).collect()
}
