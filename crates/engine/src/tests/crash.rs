//! Crash states: at many moments of random histories, what a crash may leave on the drive is
//! opened again and compared with a plain model.
//!
//! Acknowledged changes must be there; each block of an unacknowledged one is there or not, whole;
//! nothing else shows; no replica is called stale without reason.

use std::collections::BTreeMap;

use bytes::Bytes;
use format::data::{Change, UnitMeta};
use model::{id::ReplicaId, units::ByteCount, volume::Media};

use super::{
    cases::{content, crcs, seq},
    sim::{Bench, Image, Random, geometry},
};
use crate::api::{Geometry, OpError, OpToken, Outcome, Request};

const BLOCKS: usize = 512;
const REPLICAS: u64 = 3;
const UNIT: usize = 16;
const REGION: usize = 256;

/// What a block holds: zero, or the tag of its content.
type Tag = u64;

#[derive(Debug, Clone)]
struct Model {
    blocks: Vec<Tag>,
    seqs: Vec<u64>,
    meta: u64,
}

#[derive(Debug, Clone)]
enum Pending {
    Create(u64),
    Remove,
    Meta(u64),
    /// Tags of the blocks from `first` on; whether it is an install, whose `mod_seq` is exact.
    Blocks {
        first: usize,
        tags: Vec<Tag>,
        seqs: Vec<u64>,
        exact: bool,
    },
}

#[derive(Debug, Clone, Default)]
struct World {
    replicas: BTreeMap<u64, Model>,
    pending: BTreeMap<OpToken, (u64, Pending)>,
    last_seq: u64,
    last_tag: u64,
}

fn id(raw: u64) -> ReplicaId {
    ReplicaId::from_raw(raw)
}

fn meta_of(version: u64) -> Bytes {
    Bytes::from(vec![u8::try_from(version % 251).expect("small"); 100])
}

fn block_of(tag: Tag) -> Bytes {
    if tag == 0 { Bytes::from_static(&[0; 4096]) } else { content(tag, 1) }
}

fn data_of(tags: &[Tag]) -> Bytes {
    let blocks: Vec<Bytes> = tags.iter().map(|&tag| block_of(tag)).collect();
    Bytes::from(blocks.concat())
}

impl Model {
    fn new(meta: u64) -> Self {
        Self { blocks: vec![0; BLOCKS], seqs: vec![0; BLOCKS / UNIT], meta }
    }

    fn is_empty(&self, unit: usize) -> bool {
        self.blocks[unit * UNIT..(unit + 1) * UNIT].iter().all(|&tag| tag == 0)
    }

    fn apply(&mut self, first: usize, tags: &[Tag], seqs: &[u64], exact: bool) {
        let units = first / UNIT..(first + tags.len()).div_ceil(UNIT);
        let was_empty: Vec<bool> = units.clone().map(|unit| self.is_empty(unit)).collect();
        self.blocks[first..first + tags.len()].copy_from_slice(tags);
        for (index, unit) in units.enumerate() {
            let was = if was_empty[index] { 0 } else { self.seqs[unit] };
            let new = if exact { seqs[index] } else { was.max(seqs[index]) };
            self.seqs[unit] = if self.is_empty(unit) { 0 } else { new };
        }
    }
}

impl World {
    fn is_free(&self, replica: u64, first: usize, count: usize) -> bool {
        self.pending.values().all(|(other, pending)| match pending {
            _ if *other != replica => true,
            Pending::Blocks { first: f, tags, .. } => {
                first + count <= *f || *f + tags.len() <= first
            }
            Pending::Meta(_) => true,
            Pending::Create(_) | Pending::Remove => false,
        })
    }

    fn next_seq(&mut self) -> u64 {
        self.last_seq += 1;
        self.last_seq
    }

    fn tags(&mut self, count: usize) -> Vec<Tag> {
        (0..count)
            .map(|_| {
                self.last_tag += 1;
                self.last_tag
            })
            .collect()
    }

    /// A random request that is in order now.
    fn request(&mut self, random: &mut Random) -> Option<(Request, u64, Pending)> {
        let replica = 1 + random.below(REPLICAS);
        let quiet = self.pending.values().all(|(other, _)| *other != replica);
        if !self.replicas.contains_key(&replica) {
            let meta = self.next_seq();
            let size = ByteCount::new(BLOCKS as u64 * 4096);
            let request =
                Request::CreateReplica { replica: id(replica), size, meta: meta_of(meta) };
            return quiet.then_some((request, replica, Pending::Create(meta)));
        }
        if self.pending.values().any(|(o, p)| *o == replica && matches!(p, Pending::Remove)) {
            return None;
        }
        match random.below(100) {
            0 => Some((Request::RemoveReplica { replica: id(replica) }, replica, Pending::Remove)),
            1..4 => {
                let meta = self.next_seq();
                let size = ByteCount::new(BLOCKS as u64 * 4096);
                let request =
                    Request::SetReplicaMeta { replica: id(replica), size, meta: meta_of(meta) };
                let other = self.pending.values().any(|(_, p)| matches!(p, Pending::Meta(_)));
                (!other).then_some((request, replica, Pending::Meta(meta)))
            }
            4..10 => self.install(replica, random),
            10..25 => self.zero(replica, random),
            _ => self.write(replica, random),
        }
    }

    fn range(&self, random: &mut Random) -> (usize, usize) {
        let pick = |random: &mut Random, n: usize| random.below(n as u64) as usize;
        let count = match random.below(10) {
            0..5 => 1 + pick(random, 3),
            5..8 => 1 + pick(random, 20),
            8 => UNIT * (1 + pick(random, 4)),
            _ => REGION,
        };
        let first = pick(random, BLOCKS - count + 1);
        // Hot spots, whole units and whole regions.
        match (count % UNIT, random.below(4)) {
            (0, _) => (first / count * count, count),
            (_, 0) => (first % 40, count),
            _ => (first, count),
        }
    }

    fn write(&mut self, replica: u64, random: &mut Random) -> Option<(Request, u64, Pending)> {
        let (first, count) = self.range(random);
        if !self.is_free(replica, first, count) {
            return None;
        }
        let tags = self.tags(count);
        let mod_seq = self.next_seq();
        let data = data_of(&tags);
        let change = Change::Write { crcs: crcs(&data), data };
        Some(self.change(replica, first, tags, mod_seq, change))
    }

    fn zero(&mut self, replica: u64, random: &mut Random) -> Option<(Request, u64, Pending)> {
        let (first, count) = self.range(random);
        if !self.is_free(replica, first, count) {
            return None;
        }
        let mod_seq = self.next_seq();
        let change = Change::Zero { length: u32::try_from(count * 4096).expect("small") };
        Some(self.change(replica, first, vec![0; count], mod_seq, change))
    }

    fn change(
        &mut self,
        replica: u64,
        first: usize,
        tags: Vec<Tag>,
        mod_seq: u64,
        change: Change,
    ) -> (Request, u64, Pending) {
        let units = (first + tags.len()).div_ceil(UNIT) - first / UNIT;
        let pending = Pending::Blocks { first, tags, seqs: vec![mod_seq; units], exact: false };
        let (mod_seq, offset) = (seq(mod_seq), first as u64 * 4096);
        (Request::Change { replica: id(replica), mod_seq, offset, change }, replica, pending)
    }

    fn install(&mut self, replica: u64, random: &mut Random) -> Option<(Request, u64, Pending)> {
        let region = random.below((BLOCKS / REGION) as u64) as usize * REGION;
        if !self.is_free(replica, region, REGION) {
            return None;
        }
        let from = random.below((REGION / UNIT) as u64) as usize;
        let count = match random.below(3) {
            0 => REGION / UNIT,
            _ => 1 + random.below((REGION / UNIT - from) as u64) as usize,
        };
        let from = if count == REGION / UNIT { 0 } else { from };
        let first = region + from * UNIT;
        let (mut units, mut all, mut seqs) = (Vec::new(), Vec::new(), Vec::new());
        let mut data = Vec::new();
        for unit in 0..count {
            let valid = match random.below(4) {
                0 => 0,
                1 => u16::MAX,
                _ => random.next() as u16,
            };
            let mut tags = self.tags(UNIT);
            tags.iter_mut().enumerate().for_each(|(b, tag)| *tag *= u64::from(valid >> b & 1));
            let some: Vec<Tag> = tags.iter().copied().filter(|&tag| tag != 0).collect();
            let bytes = data_of(&some);
            let mod_seq = 1 + random.below(self.last_seq);
            units.push(UnitMeta {
                offset: (first + unit * UNIT) as u64 * 4096,
                mod_seq: seq(mod_seq),
                valid: valid.to_le_bytes().to_vec(),
                crcs: crcs(&bytes),
            });
            data.extend_from_slice(&bytes);
            all.extend(tags);
            seqs.push(mod_seq);
        }
        let request = Request::Install { replica: id(replica), units, data: data.into() };
        Some((request, replica, Pending::Blocks { first, tags: all, seqs, exact: true }))
    }

    fn completed(&mut self, token: OpToken, outcome: &Result<Outcome, OpError>) {
        let Some((replica, pending)) = self.pending.remove(&token) else { return };
        let Some(model) = self.replicas.get_mut(&replica) else {
            match pending {
                Pending::Create(meta) => {
                    assert_eq!(outcome, &Ok(Outcome::Done));
                    self.replicas.insert(replica, Model::new(meta));
                }
                _ => assert!(
                    matches!(outcome, Ok(Outcome::Done) | Err(OpError::UnknownReplica)),
                    "{outcome:?}"
                ),
            }
            return;
        };
        if outcome == &Err(OpError::UnknownReplica) {
            let removing =
                self.pending.values().any(|(r, p)| *r == replica && matches!(p, Pending::Remove));
            assert!(removing, "only a removal takes a replica away");
            return;
        }
        assert_eq!(outcome, &Ok(Outcome::Done));
        match pending {
            Pending::Create(_) => {}
            Pending::Remove => drop(self.replicas.remove(&replica)),
            Pending::Meta(meta) => model.meta = meta,
            Pending::Blocks { first, tags, seqs, exact } => {
                model.apply(first, &tags, &seqs, exact);
            }
        }
    }

    /// What a crash left agrees with the model; returns the model of what is there now.
    fn check(&self, bench: &mut Bench) -> Self {
        let opened = bench.opened.clone().expect("it is open");
        let mut after =
            Self { last_seq: self.last_seq, last_tag: self.last_tag, ..Self::default() };
        for raw in 1..=REPLICAS {
            let found = opened.iter().find(|o| o.replica == id(raw));
            let pending: Vec<&Pending> =
                self.pending.values().filter(|(r, _)| *r == raw).map(|(_, p)| p).collect();
            let coming = pending.iter().any(|p| matches!(p, Pending::Create(_)));
            let going = pending.iter().any(|p| matches!(p, Pending::Remove));
            let Some(found) = found else {
                let lost = self.replicas.contains_key(&raw) && !going;
                assert!(!lost, "replica {raw} is lost");
                continue;
            };
            assert!(self.replicas.contains_key(&raw) || coming, "replica {raw} came back");
            assert!(!found.stale, "replica {raw} is stale for no reason");
            let created = pending.iter().find_map(|p| match p {
                Pending::Create(meta) => Some(*meta),
                _ => None,
            });
            let before = self.replicas.get(&raw).cloned();
            let before = before.or(created.map(Model::new)).expect("checked above");
            let newer = pending.iter().find_map(|p| match p {
                Pending::Meta(meta) => Some(*meta),
                _ => None,
            });
            let metas = [Some(before.meta), newer];
            let meta = metas.into_iter().flatten().find(|&m| meta_of(m) == found.meta);
            let mut now = Model::new(meta.expect("metadata is old or new"));
            check_blocks(bench, raw, &before, &pending, &mut now);
            let top = now.seqs.iter().max().copied().unwrap_or_default();
            assert_eq!(found.mod_seq_max.raw(), top, "mod_seq_max of {raw}");
            after.replicas.insert(raw, now);
        }
        after
    }
}

fn ask(bench: &mut Bench, request: Request) -> Outcome {
    bench.ask(request).expect("it is answered")
}

fn check_blocks(
    bench: &mut Bench,
    raw: u64,
    before: &Model,
    pending: &[&Pending],
    now: &mut Model,
) {
    let (replica, length) = (id(raw), BLOCKS as u64 * 4096);
    let mut bytes = Vec::new();
    for offset in (0..length).step_by(1 << 20) {
        let read = Request::Read { replica, offset, length: 1 << 20 };
        let Outcome::Read { crcs: sums, data } = ask(bench, read) else { panic!("read") };
        assert_eq!(sums, crcs(&data));
        bytes.extend_from_slice(&data);
    }
    let mut newer: Vec<Option<Tag>> = vec![None; BLOCKS];
    for pending in pending {
        if let Pending::Blocks { first, tags, .. } = pending {
            for (slot, &tag) in newer[*first..].iter_mut().zip(tags) {
                *slot = Some(tag);
            }
        }
    }
    for (block, found) in bytes.chunks(4096).enumerate() {
        let allowed = [Some(before.blocks[block]), newer[block]];
        let word = u64::from_le_bytes(found[..8].try_into().expect("eight"));
        let whole = found[8..] == found[..4088] && word.is_multiple_of(1 << 16);
        let tag = word >> 16;
        assert!(
            whole && allowed.contains(&Some(tag)),
            "replica {raw} block {block}: {word:#x} instead of {allowed:?}"
        );
        now.blocks[block] = tag;
    }
    let describe = Request::Describe { replica, offset: 0, length };
    let Outcome::Described { units } = ask(bench, describe) else { panic!("describe") };
    for meta in units {
        let unit = usize::try_from(meta.offset).expect("small") / (UNIT * 4096);
        let valid = u16::from_le_bytes([meta.valid[0], meta.valid[1]]);
        let blocks = &now.blocks[unit * UNIT..(unit + 1) * UNIT];
        let wanted =
            blocks.iter().enumerate().fold(0, |bits, (b, &t)| bits | u16::from(t != 0) << b);
        assert_eq!(valid, wanted, "validity of replica {raw} unit {unit}");
        now.seqs[unit] = meta.mod_seq.raw();
    }
    for unit in 0..BLOCKS / UNIT {
        if newer[unit * UNIT..(unit + 1) * UNIT].iter().all(Option::is_none) {
            assert_eq!(now.seqs[unit], before.seqs[unit], "mod_seq of replica {raw} unit {unit}");
        }
    }
}

fn open(geometry: Geometry, mut image: Image, random: &mut Random) -> Bench {
    // Sometimes it crashes again while it opens.
    while random.one_in(4) {
        let mut bench = Bench::start(geometry, image);
        for _ in 0..random.below(40) {
            if !bench.under_way.is_empty() {
                bench.step(0);
            }
        }
        image = bench.drive.crash(random);
    }
    Bench::open(geometry, image)
}

/// Moves the journal's head somewhere, the end of the ring included.
fn prefill(world: &mut World, bench: &mut Bench, random: &mut Random) {
    for _ in 0..random.below(130) {
        let replica = 1 + random.below(REPLICAS);
        let request = if world.replicas.contains_key(&replica) {
            let tags = world.tags(15);
            let mod_seq = world.next_seq();
            let data = data_of(&tags);
            let change = Change::Write { crcs: crcs(&data), data };
            world.change(replica, random.below(60) as usize, tags, mod_seq, change)
        } else {
            world.request(random).expect("nothing is pending")
        };
        let (request, replica, pending) = request;
        let token = bench.request(request);
        world.pending.insert(token, (replica, pending));
        bench.run();
        for (token, outcome) in std::mem::take(&mut bench.completed) {
            world.completed(token, &outcome);
        }
    }
}

/// A history with crashes; returns how many crash states were checked.
fn history(geometry: Geometry, seed: u64, steps: u64) -> u64 {
    let mut random = Random(seed);
    let mut world = World::default();
    let mut bench = open(geometry, Image::default(), &mut random);
    prefill(&mut world, &mut bench, &mut random);
    let mut states = 0;
    for _ in 0..steps {
        match random.below(10) {
            0..4 if world.pending.len() < 12 => {
                if let Some((request, replica, pending)) = world.request(&mut random) {
                    let token = bench.request(request);
                    world.pending.insert(token, (replica, pending));
                }
            }
            4 if random.one_in(12) => bench.engine.want_cycle(),
            4 if random.one_in(4) => {
                if let Some(at) = bench.engine.deadline() {
                    bench.now = at;
                    bench.event(crate::api::Event::TimeReached);
                }
            }
            _ if bench.under_way.is_empty() && world.pending.len() >= 12 => {
                // Everything waits for space: somebody gives some back.
                let replica = 1 + random.below(REPLICAS);
                let token = bench.request(Request::RemoveReplica { replica: id(replica) });
                world.pending.insert(token, (replica, Pending::Remove));
            }
            _ if !bench.under_way.is_empty() => {
                let index = random.below(bench.under_way.len() as u64);
                bench.step(usize::try_from(index).expect("small"));
            }
            _ => {}
        }
        for (token, outcome) in std::mem::take(&mut bench.completed) {
            world.completed(token, &outcome);
        }
        assert_eq!(bench.out_of_service, None);
        if random.one_in(12) {
            let image = bench.drive.crash(&mut random);
            let mut reopened = open(geometry, image, &mut random);
            let after = world.check(&mut reopened);
            states += 1;
            if random.one_in(12) {
                (world, bench) = (after, reopened);
                bench.completed.clear();
            }
        }
    }
    states
}

fn check_histories(geometry: Geometry, seeds: std::ops::Range<u64>, states_min: u64) {
    let states: u64 = seeds.map(|seed| history(geometry, seed, 600)).sum();
    assert!(states >= states_min, "{states} states");
}

#[test]
fn every_crash_state_of_random_ssd_histories_holds_what_was_acknowledged() {
    check_histories(geometry(Media::Ssd, 16 << 20), 0..30, 1200);
}

#[test]
fn every_crash_state_of_random_hdd_histories_holds_what_was_acknowledged() {
    check_histories(geometry(Media::Hdd, 24 << 20), 100..120, 800);
}

#[test]
fn every_crash_state_of_histories_on_a_drive_without_space_holds_what_was_acknowledged() {
    // The three replicas would need 96 slots.
    let tight = geometry(Media::Ssd, 8 << 20);
    let slots = Bench::open(tight, Image::default()).engine.usage().slots_total;
    assert!((30..80).contains(&slots), "{slots} slots");
    check_histories(tight, 200..210, 400);
}
