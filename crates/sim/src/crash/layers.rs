//! Compares the frozen layers that an engine shows with the model.
//!
//! Decides: what a layer may hold: exactly what was acknowledged, and every change that was asked
//! for, before its freeze; and which blocks may have changed between two of them.

use std::collections::BTreeSet;

use engine::api::{Outcome, Request};

use super::{
    bench::Bench,
    content::{Tag, crcs_of, tag_of},
    model::{Layer, Model, Pending, Replica},
    requests::{BLOCK, id, layer_id},
};

const READ_BLOCKS: usize = 256;

/// Fills in what layers `now` has.
pub fn check_layers(
    model: &Model,
    bench: &mut Bench,
    raw: u64,
    now: &mut Replica,
) -> Result<(), String> {
    let asked = bench.ask(Request::Layers { replica: id(raw) })?;
    let Outcome::Layers { layers } = asked else { return Err(format!("{asked:?}")) };
    let found: Vec<u64> = layers.iter().map(|layer| layer.raw()).collect();
    *now = expected(model, raw, now, &found)?;
    for layer in &now.layers {
        check_content(bench, raw, now.size, layer)
            .map_err(|e| format!("layer {}: {e}", layer.id))?;
    }
    check_changes(bench, raw, now)
}

/// Follows what was under way, as far as the layers that were found say that it happened.
fn expected(model: &Model, raw: u64, now: &Replica, found: &[u64]) -> Result<Replica, String> {
    let fresh = Replica::new(0, 0, now.blocks.len());
    let mut then = model.replicas.get(&raw).unwrap_or(&fresh).clone();
    then.was_frozen |= !then.layers.is_empty();
    for (_, pending) in model.pending.values().filter(|(other, _)| *other == raw) {
        match pending {
            // What was asked for before a freeze that happened has happened.
            Pending::Blocks { first, tags, .. } => {
                then.blocks[*first..first + tags.len()].copy_from_slice(tags);
                then.touched.extend(*first..first + tags.len());
            }
            Pending::Freeze { layer } => {
                then.was_frozen = true;
                if found.contains(layer) {
                    then.freeze(*layer);
                }
            }
            Pending::Release { layer } => {
                if !found.contains(layer) {
                    then.release(*layer);
                }
            }
            Pending::Create { .. } | Pending::Remove | Pending::Meta { .. } => {}
        }
    }
    let wanted: Vec<u64> = then.layers.iter().map(|layer| layer.id).collect();
    if wanted != found {
        return Err(format!("it has the layers {found:?} instead of {wanted:?}"));
    }
    let mut after = now.clone();
    (after.layers, after.touched) = (then.layers, then.touched);
    after.was_frozen = then.was_frozen;
    Ok(after)
}

fn bit(bitmap: &[u8], block: usize) -> bool {
    bitmap[block / 8] >> (block % 8) & 1 == 1
}

fn check_content(bench: &mut Bench, raw: u64, size: usize, layer: &Layer) -> Result<(), String> {
    let (replica, of) = (id(raw), layer_id(layer.id));
    let length = size as u64 * BLOCK;
    let asked = bench.ask(Request::AllocatedIn { replica, layer: of, offset: 0, length })?;
    let Outcome::Allocated { bitmap } = asked else { return Err(format!("{asked:?}")) };
    for first in (0..size).step_by(READ_BLOCKS) {
        let count = READ_BLOCKS.min(size - first);
        let length = u32::try_from(count as u64 * BLOCK).expect("small");
        let offset = first as u64 * BLOCK;
        let asked = bench.ask(Request::ReadLayer { replica, layer: of, offset, length })?;
        let Outcome::Read { crcs, data } = asked else { return Err(format!("{asked:?}")) };
        if crcs != crcs_of(&data) || crcs.len() != count {
            return Err(format!("the checksums of a read at block {first} are not its data's"));
        }
        for (block, content) in (first..).zip(data.chunks(4096)) {
            let found = tag_of(content, bit(&bitmap, block));
            let found: Tag = found.map_err(|e| format!("block {block}: {e}"))?;
            if found != layer.blocks[block] {
                let held = layer.blocks[block];
                return Err(format!("block {block} holds {found}; frozen: {held}"));
            }
        }
    }
    Ok(())
}

/// Between any two neighbours, from the beginning, and from the first layer until now.
fn check_changes(bench: &mut Bench, raw: u64, now: &Replica) -> Result<(), String> {
    let count = now.layers.len();
    let mut spans: Vec<(Option<usize>, Option<usize>)> =
        (1..count).map(|at| (Some(at - 1), Some(at))).collect();
    spans.extend([(None, None), (None, count.checked_sub(1))]);
    spans.extend([(count.checked_sub(1), None), ((count > 0).then_some(0), None)]);
    for (from, to) in spans {
        let name = |at: Option<usize>| at.map(|at| layer_id(now.layers[at].id));
        let (replica, length) = (id(raw), now.size as u64 * BLOCK);
        let asked = bench.ask(Request::ChangedBetween {
            replica,
            from: name(from),
            to: name(to),
            offset: 0,
            length,
        })?;
        let Outcome::ChangedBetween { bitmap } = asked else { return Err(format!("{asked:?}")) };
        let mut touched: BTreeSet<usize> = BTreeSet::new();
        for layer in &now.layers[from.map_or(0, |from| from + 1)..to.map_or(count, |to| to + 1)] {
            touched.extend(&layer.touched);
        }
        if to.is_none() {
            touched.extend(&now.touched);
        }
        for block in 0..now.size {
            let before = from.map_or(0, |from| now.layers[from].blocks[block]);
            let after = to.map_or(now.blocks[block], |to| now.layers[to].blocks[block]);
            let said = bit(&bitmap, block);
            if before != after && !said || said && !touched.contains(&block) {
                return Err(format!(
                    "between {from:?} and {to:?} block {block} is said to have changed: {said}; it \
                     held {before}, then {after}"
                ));
            }
        }
    }
    Ok(())
}
