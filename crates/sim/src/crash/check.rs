//! Compares everything that an engine shows with the model.
//!
//! Decides: what may be there after a crash: all that was acknowledged, each block of what was not
//! whole or absent, zeros where nothing was ever written, and exactly the space that this takes.

use engine::api::{OpenReplica, Outcome, Request};
use format::data::UnitMeta;
use model::epoch::ModSeq;

use super::{
    bench::Bench,
    content::{Tag, ZEROS, crcs_of, tag_of},
    layers::check_layers,
    model::{Model, Pending, Replica, UNIT},
    plan::Plan,
    requests::{BLOCK, id, meta_of},
};

/// Largest read at once, in blocks.
const READ_BLOCKS: usize = 256;

/// What a crash left agrees with the model; returns the model of what is there now.
pub fn check(model: &Model, bench: &mut Bench, plan: &Plan) -> Result<Model, String> {
    let opened = bench.opened.clone().expect("it is open");
    let mut after = Model {
        last_seq: model.last_seq,
        last_tag: model.last_tag,
        last_layer: model.last_layer,
        past: model.past.clone(),
        ..Model::default()
    };
    for found in &opened {
        let raw = found.replica.raw();
        let known = model.replicas.contains_key(&raw);
        let coming = model.pending_of(raw).any(|p| matches!(p, Pending::Create { .. }));
        if !known && !coming {
            return Err(format!("replica {raw} came back"));
        }
        if found.stale {
            return Err(format!("replica {raw} is stale for no reason"));
        }
        let now = check_replica(model, bench, found, plan.mix.blocks_max);
        let mut now = now.map_err(|e| format!("replica {raw}: {e}"))?;
        let layers = check_layers(model, bench, raw, &mut now);
        layers.map_err(|e| format!("replica {raw}: {e}"))?;
        after.replicas.insert(raw, now);
    }
    for &raw in model.replicas.keys() {
        let going = model.pending_of(raw).any(|p| matches!(p, Pending::Remove));
        if !going && !after.replicas.contains_key(&raw) {
            return Err(format!("replica {raw} is lost"));
        }
    }
    check_space(&after, bench, plan.slot_bytes())?;
    Ok(after)
}

/// The slots of each replica are those of its extents that hold something, and there are no others.
pub fn check_space(model: &Model, bench: &Bench, slot_bytes: u64) -> Result<(), String> {
    let extent_blocks = usize::try_from(slot_bytes / BLOCK).expect("small");
    let mut sum = 0;
    for (&raw, replica) in &model.replicas {
        let wanted = replica.extents(extent_blocks) as u64;
        let found = bench.engine.allocated(id(raw)).get();
        if replica.was_frozen {
            // What is cleared over a layer takes space, too.
            if found < wanted * slot_bytes {
                return Err(format!("replica {raw} has {found} bytes for {wanted} extents"));
            }
            sum += found / slot_bytes;
            continue;
        }
        if found != wanted * slot_bytes {
            return Err(format!("replica {raw} has {found} bytes for {wanted} extents"));
        }
        sum += wanted;
    }
    let usage = bench.engine.usage();
    if usage.layers_merging + usage.slots_to_merge > 0 {
        return Err(format!("{usage:?}: nothing is under way, and layers have not merged"));
    }
    if usage.slots_used != sum || sum > usage.slots_total {
        return Err(format!("{usage:?}, but the replicas have {sum} slots"));
    }
    Ok(())
}

fn check_replica(
    model: &Model,
    bench: &mut Bench,
    found: &OpenReplica,
    blocks_max: usize,
) -> Result<Replica, String> {
    let raw = found.replica.raw();
    let pending: Vec<&Pending> = model.pending_of(raw).collect();
    let rows = rows(model, raw, &pending);
    let blocks = usize::try_from(found.size.get() / BLOCK).expect("small");
    let is_row = |&&(size, meta): &&(usize, u64)| size == blocks && meta_of(meta) == found.meta;
    let &(size, meta) = rows.iter().find(is_row).ok_or_else(|| {
        format!("size {blocks} blocks, {} bytes of metadata: neither of {rows:?}", found.meta.len())
    })?;
    let mut now = Replica::new(size, meta, blocks_max);
    let fresh = now.clone();
    let before = model.replicas.get(&raw).unwrap_or(&fresh);
    let units = describe(bench, raw, size)?;
    for meta in &units {
        let unit = usize::try_from(meta.offset / BLOCK).expect("small") / UNIT;
        now.seqs[unit] = meta.mod_seq.raw();
    }
    read_all(bench, raw, &units, &mut now)?;
    compare(before, &pending, &now)?;
    Ok(now)
}

/// Sizes and metadata that it may have.
fn rows(model: &Model, raw: u64, pending: &[&Pending]) -> Vec<(usize, u64)> {
    let before = model.replicas.get(&raw).map(|r| (r.size, r.meta));
    let newer = pending.iter().filter_map(|pending| match pending {
        Pending::Create { size, meta } if before.is_none() => Some((*size, *meta)),
        Pending::Meta { size, meta } => Some((*size, *meta)),
        _ => None,
    });
    before.into_iter().chain(newer).collect()
}

fn describe(bench: &mut Bench, raw: u64, size: usize) -> Result<Vec<UnitMeta>, String> {
    let (replica, length) = (id(raw), size as u64 * BLOCK);
    let asked = bench.ask(Request::Describe { replica, offset: 0, length })?;
    let Outcome::Described { units } = asked else { return Err(format!("{asked:?}")) };
    let asked = bench.ask(Request::Digest { replica, offset: 0, length })?;
    let Outcome::Digest { digest } = asked else { return Err(format!("{asked:?}")) };
    if digest != units.iter().fold(0, fold) {
        return Err("the digest is not that of the units".into());
    }
    let asked = bench.ask(Request::Allocated { replica, offset: 0, length })?;
    let Outcome::Allocated { bitmap } = asked else { return Err(format!("{asked:?}")) };
    let mut wanted = vec![0; size.div_ceil(8)];
    for meta in &units {
        if meta.mod_seq.raw() == 0 || valid_of(meta) == 0 {
            return Err(format!("an empty unit is described: {meta:?}"));
        }
        let at = usize::try_from(meta.offset / BLOCK / 8).expect("small");
        // A unit that the replica ends in has no block behind that end.
        for (byte, bits) in wanted[at..].iter_mut().zip(&meta.valid) {
            *byte = *bits;
        }
    }
    if bitmap[..] != wanted[..] {
        return Err("the allocation map differs from the description".into());
    }
    check_queries(bench, raw, size, &units)?;
    Ok(units)
}

/// What is asked about the units agrees with their description.
fn check_queries(
    bench: &mut Bench,
    raw: u64,
    size: usize,
    units: &[UnitMeta],
) -> Result<(), String> {
    let (replica, length) = (id(raw), size as u64 * BLOCK);
    let asked = bench.ask(Request::HighestAllocated { replica })?;
    let end = units.last().map_or(0, |meta| {
        meta.offset + u64::from(u16::BITS - valid_of(meta).leading_zeros()) * BLOCK
    });
    if asked != (Outcome::HighestAllocated { end }) {
        return Err(format!("{asked:?}, but the last block that is described ends at {end}"));
    }
    let mut seqs: Vec<_> = units.iter().map(|meta| meta.mod_seq).collect();
    seqs.sort_unstable();
    let mod_seq = seqs.get(seqs.len() / 2).copied().unwrap_or(ModSeq::NONE);
    let asked = bench.ask(Request::ChangedSince { replica, mod_seq, offset: 0, length })?;
    let mut wanted = vec![0; size.div_ceil(UNIT).div_ceil(8)];
    for meta in units.iter().filter(|meta| meta.mod_seq > mod_seq) {
        let unit = usize::try_from(meta.offset / BLOCK).expect("small") / UNIT;
        wanted[unit / 8] |= 1 << (unit % 8);
    }
    if asked != (Outcome::ChangedSince { bitmap: wanted.into() }) {
        return Err(format!("{asked:?} since {mod_seq:?} differs from the description"));
    }
    Ok(())
}

/// One round of splitmix64 for each word: what both sides of a resync must compute alike.
fn fold(digest: u64, meta: &UnitMeta) -> u64 {
    let head = [meta.offset, meta.mod_seq.raw(), u64::from(valid_of(meta))];
    let words = head.into_iter().chain(meta.crcs.iter().map(|&crc| u64::from(crc)));
    words.fold(digest, |state, word| {
        let mut z = (state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

pub fn valid_of(meta: &UnitMeta) -> u16 {
    u16::from_le_bytes([meta.valid[0], meta.valid[1]])
}

/// Reads every block; fills in what it says it is.
fn read_all(
    bench: &mut Bench,
    raw: u64,
    units: &[UnitMeta],
    now: &mut Replica,
) -> Result<(), String> {
    let mut described: Vec<Option<u32>> = vec![None; now.blocks.len()];
    for meta in units {
        let first = usize::try_from(meta.offset / BLOCK).expect("small");
        let valid = (0..UNIT).filter(|b| valid_of(meta) >> b & 1 == 1);
        for (block, &crc) in valid.zip(&meta.crcs) {
            described[first + block] = Some(crc);
        }
    }
    for first in (0..now.size).step_by(READ_BLOCKS) {
        let count = READ_BLOCKS.min(now.size - first);
        let length = u32::try_from(count as u64 * BLOCK).expect("small");
        let offset = first as u64 * BLOCK;
        let asked = bench.ask(Request::Read { replica: id(raw), offset, length })?;
        let Outcome::Read { crcs, data } = asked else { return Err(format!("{asked:?}")) };
        if crcs != crcs_of(&data) || crcs.len() != count {
            return Err(format!("the checksums of a read at block {first} are not its data's"));
        }
        for ((block, content), crc) in (first..).zip(data.chunks(4096)).zip(crcs) {
            let is_written = described[block].is_some();
            let tag = tag_of(content, is_written).map_err(|e| format!("block {block}: {e}"))?;
            if described[block].is_some_and(|described| described != crc) {
                return Err(format!("block {block} is described with another checksum"));
            }
            now.blocks[block] = tag;
        }
    }
    Ok(())
}

/// Every block and every `mod_seq` is what was acknowledged, or what was under way.
fn compare(before: &Replica, pending: &[&Pending], now: &Replica) -> Result<(), String> {
    let mut newer: Vec<Option<Tag>> = vec![None; now.blocks.len()];
    let mut seqs: Vec<Vec<u64>> = vec![Vec::new(); now.seqs.len()];
    for pending in pending {
        if let Pending::Blocks { first, tags, seqs: given, .. } = pending {
            for (slot, &tag) in newer[*first..].iter_mut().zip(tags) {
                *slot = Some(tag);
            }
            for (unit, &seq) in seqs[first / UNIT..].iter_mut().zip(given) {
                unit.push(seq);
            }
        }
    }
    for (block, &found) in now.blocks.iter().enumerate() {
        let held = before.blocks[block];
        if found != held && newer[block] != Some(found) {
            let newer = newer[block].map(name_of);
            let (found, held) = (name_of(found), name_of(held));
            return Err(format!(
                "block {block} holds {found}; acknowledged: {held}, under way: {newer:?}"
            ));
        }
    }
    for (unit, &found) in now.seqs.iter().enumerate() {
        let touched = !seqs[unit].is_empty();
        let empty = now.is_empty(unit);
        if empty && found != 0 {
            return Err(format!("unit {unit} is empty and has mod_seq {found}"));
        }
        let emptied = empty && touched;
        let allowed = before.allows_seq(unit, found) || seqs[unit].contains(&found) || emptied;
        if !allowed {
            let was = before.seqs[unit];
            return Err(format!(
                "unit {unit} has mod_seq {found}: {was} or one of {:?}",
                seqs[unit]
            ));
        }
    }
    Ok(())
}

fn name_of(tag: Tag) -> String {
    match tag {
        0 => "nothing".into(),
        ZEROS => "written zeros".into(),
        tag => format!("content {tag}"),
    }
}
