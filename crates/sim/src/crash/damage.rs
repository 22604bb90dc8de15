//! Damage: bits that rot, blocks that are lost or land elsewhere, in every area of a drive.
//!
//! Decides: what may come of it: a block that is said to be damaged, a replica that is said to be
//! stale or is not there, a drive that is refused. Never content that is wrong and not said to be.
//! Does not: damage the last two batches together: without the seal, the last one cannot be told
//! from one that was never written (`docs/disk.md`, known limits).

use std::collections::BTreeMap;

use engine::api::{Device, OpError, Outcome, Request};
use format::{
    data::UnitMeta,
    disk::{DriveShape, FormatVersion, Layout, apart::JOURNAL_HEAD_BYTES},
};

use super::{
    bench::Bench,
    check::valid_of,
    content::{ZEROS, crcs_of, tag_of},
    model::{Model, Replica, UNIT},
    plan::Plan,
    requests::{BLOCK, id, write_of},
    trace::Trace,
};
use crate::{drive::image::Images, random::Random};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Area {
    Superblock,
    Metadata,
    Journal,
    Data,
}

/// What came of it, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Found {
    /// The drive is refused.
    Refused,
    /// A replica is not there.
    Missing,
    /// A replica is said to be stale.
    Stale,
    /// A block is said to be damaged.
    BadBlock,
    /// Nothing that counts was hit.
    Harmless,
}

/// How often which damage came to what.
pub type Counts = BTreeMap<(Area, Found), u64>;

impl Area {
    pub const ALL: [Self; 4] = [Self::Superblock, Self::Metadata, Self::Journal, Self::Data];

    fn of(layout: &Layout, (device, block): (Device, u64)) -> Self {
        let offset = block * BLOCK;
        let pages_end = layout.page_offset(layout.pages() - 1, 1) + BLOCK;
        if device == Device::Journal {
            if offset < JOURNAL_HEAD_BYTES { Self::Superblock } else { Self::Journal }
        } else if offset < layout.pages_offset {
            Self::Superblock
        } else if offset < pages_end {
            Self::Metadata
        } else if offset < layout.slots_offset {
            Self::Journal
        } else {
            Self::Data
        }
    }
}

/// A drive at rest, and what it holds.
pub struct Rest {
    pub plan: Plan,
    pub model: Model,
    pub images: Images,
    /// Blocks that were read ahead in its history and then asked for.
    pub blocks_ahead_used: u64,
    /// Blocks of the last two batches: first and count.
    pub last_batches: Vec<(Device, u64, u64)>,
}

impl Rest {
    pub fn new(plan: Plan, model: Model, bench: &Bench) -> Self {
        let blocks_ahead_used = bench.engine.usage().blocks_ahead_used;
        let (images, last_batches) = (bench.seen(), Vec::new());
        let mut rest = Self { plan, model, images, blocks_ahead_used, last_batches };
        let layout = rest.layout();
        let is_batch =
            |&(device, first, _): &_| Area::of(&layout, (device, first)) == Area::Journal;
        let batches = bench.durable_writes.iter().copied().filter(is_batch);
        rest.last_batches = batches.take(2).collect();
        rest
    }

    fn layout(&self) -> Layout {
        let g = self.plan.geometry;
        let shape = DriveShape {
            media: g.media,
            drive_bytes: g.drive_bytes,
            journal_bytes: g.journal_bytes,
            journal: g.journal,
            replicas_max: g.replicas_max,
        };
        Layout::of(&shape, FormatVersion::V3).expect("an engine was opened on it")
    }

    /// Where content begins: before it lie superblocks, metadata and journal.
    pub fn slots_offset(&self) -> u64 {
        self.layout().slots_offset
    }

    /// Damages one block of the area in one way; returns what was done.
    pub fn damage_one(&self, area: Area, random: &mut Random) -> Option<(Images, String)> {
        let layout = self.layout();
        let blocks = self.images.blocks().filter(|&b| Area::of(&layout, b) == area);
        let blocks: Vec<(Device, u64)> = blocks.collect();
        if blocks.is_empty() {
            return None;
        }
        let (device, block) = *random.pick(&blocks);
        let mut images = self.images.clone();
        let image = images.of(device);
        let told = match random.below(5) {
            0 => {
                image.put(block, vec![0; 4096].into());
                format!("block {block} reads as zeros")
            }
            1 => {
                let (device, from) = *random.pick(&blocks);
                image.put(block, self.images.clone().of(device).get(from));
                format!("block {block} holds what belongs to {from} of {device:?}")
            }
            _ => {
                let bit = random.below(BLOCK * 8) as usize;
                image.rot(block, bit);
                format!("bit {bit} of block {block} is flipped")
            }
        };
        Some((images, format!("{area:?} on {device:?}: {told}")))
    }

    /// Flips a bit in one of so many blocks, everywhere but in the last two batches.
    pub fn damage_many(&self, one_in: u64, random: &mut Random) -> Images {
        let mut images = self.images.clone();
        let spared = |(device, block): (Device, u64)| {
            let last = self.last_batches.iter().filter(|last| last.0 == device);
            last.into_iter().any(|&(_, first, n)| (first..first + n).contains(&block))
        };
        for (device, block) in self.images.blocks().filter(|&b| !spared(b)) {
            if random.below(one_in) == 0 {
                images.of(device).rot(block, random.below(BLOCK * 8) as usize);
            }
        }
        images
    }

    /// Opens a damaged image and looks at everything. What is wrong and not said to be is an error.
    pub fn look(
        &self,
        images: Images,
        trace: &Trace,
        random: &mut Random,
    ) -> Result<Found, String> {
        let mut bench = Bench::tried(self.plan.geometry, images, trace.clone());
        if bench.out_of_service.is_some() {
            return Ok(Found::Refused);
        }
        let opened = bench.opened.clone().ok_or("the drive neither opens nor is refused")?;
        let mut worst = Found::Harmless;
        for found in &opened {
            let raw = found.replica.raw();
            let held = self.model.replicas.get(&raw);
            let blocks = usize::try_from(found.size.get() / BLOCK).expect("small");
            let looked = match held {
                Some(held) if !found.stale => look_at(&mut bench, raw, held, blocks),
                _ if found.stale => self.look_at_stale(&mut bench, raw, blocks),
                _ => Err("it was removed, came back, and is not said to be stale".into()),
            };
            worst = worst.min(looked.map_err(|e| format!("replica {raw}: {e}"))?);
        }
        let missing = |raw: &u64| opened.iter().all(|found| found.replica != id(*raw));
        if self.model.replicas.keys().any(missing) {
            worst = worst.min(Found::Missing);
        }
        self.go_on(&mut bench, random)?;
        Ok(worst)
    }

    /// A stale replica shows nothing but what it held once.
    fn look_at_stale(&self, bench: &mut Bench, raw: u64, blocks: usize) -> Result<Found, String> {
        let past = self.model.past.as_ref().expect("it was kept");
        for block in 0..blocks {
            let Some(tag) = read_block(bench, raw, block)? else { continue };
            let held = past.get(&(raw, block)).is_some_and(|past| past.contains(&tag));
            if tag > ZEROS && !held {
                return Err(format!("block {block} shows content {tag}, which was never its own"));
            }
        }
        Ok(Found::Stale)
    }

    /// What was damaged can be written again, and is right then.
    fn go_on(&self, bench: &mut Bench, random: &mut Random) -> Result<(), String> {
        let opened: Vec<_> = bench.opened.clone().unwrap_or_default();
        let mut model = Model {
            last_seq: self.model.last_seq + 1000,
            last_tag: self.model.last_tag + 1000,
            ..Model::default()
        };
        if opened.len() > 1 {
            let removed = opened.last().expect("two").replica;
            bench.try_ask(Request::RemoveReplica { replica: removed }).map_err(told)?;
        }
        let Some(first) = opened.first() else { return Ok(()) };
        let raw = first.replica.raw();
        let blocks = usize::try_from(first.size.get() / BLOCK).expect("small").min(40);
        for _ in 0..4 {
            let at = random.below(blocks as u64) as usize;
            let tags = super::requests::new_tags(&mut model, blocks - at);
            let wanted = write_of(&mut model, raw, at, tags.clone());
            let token = bench.request(wanted.request);
            bench.idle();
            let Some(place) = bench.completed.iter().position(|(t, _)| *t == token) else {
                // A full drive.
                return Ok(());
            };
            bench.completed.remove(place).1.map_err(told)?;
            for (block, tag) in (at..).zip(tags) {
                let read = read_block(bench, raw, block)?;
                if read != Some(tag) {
                    return Err(format!("block {block} of {raw} was written, and reads {read:?}"));
                }
            }
        }
        Ok(())
    }
}

fn is_valid(meta: &UnitMeta, block: usize) -> bool {
    valid_of(meta) >> block & 1 == 1
}

fn told(error: OpError) -> String {
    error.to_string()
}

/// What a block says it is; `None`: it is said to be damaged.
fn read_block(bench: &mut Bench, raw: u64, block: usize) -> Result<Option<u64>, String> {
    let offset = block as u64 * BLOCK;
    match bench.try_ask(Request::Read { replica: id(raw), offset, length: 4096 }) {
        Ok(Outcome::Read { crcs, data }) => {
            if crcs != crcs_of(&data) {
                return Err(format!("block {block} is returned with another checksum"));
            }
            let zeros = data.iter().all(|&b| b == 0);
            Ok(Some(tag_of(&data, !zeros).map_err(|e| format!("block {block}: {e}"))?))
        }
        Err(OpError::BadBlock { offset: bad }) if bad == offset => Ok(None),
        other => Err(format!("block {block} was answered with {other:?}")),
    }
}

/// A replica that is not said to be stale holds what was acknowledged, but for blocks that are said
/// to be damaged.
fn look_at(bench: &mut Bench, raw: u64, held: &Replica, blocks: usize) -> Result<Found, String> {
    if held.size != blocks {
        return Err(format!("{blocks} blocks instead of {}", held.size));
    }
    let mut worst = Found::Harmless;
    let mut bad = vec![false; held.blocks.len()];
    for (block, &tag) in held.blocks[..blocks].iter().enumerate() {
        match read_block(bench, raw, block)? {
            None => (worst, bad[block]) = (Found::BadBlock, true),
            Some(found) if found == tag || found == 0 && tag == ZEROS => {}
            Some(found) => return Err(format!("block {block} shows {found} instead of {tag}")),
        }
    }
    let length = blocks as u64 * BLOCK;
    let asked = bench.try_ask(Request::Describe { replica: id(raw), offset: 0, length });
    let Ok(Outcome::Described { units }) = asked else { return Err(format!("{asked:?}")) };
    let mut seqs = vec![0; held.seqs.len()];
    for meta in &units {
        let unit = usize::try_from(meta.offset / BLOCK).expect("small") / UNIT;
        let tags = &held.blocks[unit * UNIT..(unit + 1) * UNIT];
        let some_bad = bad[unit * UNIT..((unit + 1) * UNIT).min(blocks)].contains(&true);
        // Nobody writes beyond the end: of such blocks only a lost page says anything.
        let some_bad =
            some_bad || (0..UNIT).any(|b| unit * UNIT + b >= blocks && is_valid(meta, b));
        let is_older = meta.mod_seq.raw() < held.seqs[unit];
        let says_more = tags.iter().enumerate().all(|(b, &tag)| tag == 0 || is_valid(meta, b));
        if says_more && (some_bad || is_older && valid_of(meta) == u16::MAX) {
            // Its page is lost: nothing is known of the unit but what memory has, and it says so
            // to whoever compares replicas.
            (worst, seqs[unit]) = (Found::BadBlock, held.seqs[unit]);
            continue;
        }
        seqs[unit] = meta.mod_seq.raw();
        let wanted =
            tags.iter().enumerate().fold(0, |bits, (b, &tag)| bits | u16::from(tag != 0) << b);
        if valid_of(meta) != wanted {
            return Err(format!(
                "unit {unit} says {:#x} is valid, not {wanted:#x}",
                valid_of(meta)
            ));
        }
    }
    if (0..seqs.len()).any(|unit| !held.allows_seq(unit, seqs[unit])) {
        return Err("a mod_seq is not what was acknowledged".into());
    }
    Ok(worst)
}
