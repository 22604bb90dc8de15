//! The plain model: what each replica holds when nothing goes wrong, and what may or may not have
//! happened yet.
//!
//! Invariant: changes that are under way at the same time do not overlap; a create or a removal is
//! the last thing under way for its replica.

use std::collections::{BTreeMap, BTreeSet};

use engine::api::{OpError, OpToken, Outcome};

use super::content::Tag;

pub const UNIT: usize = 16;

/// What one replica holds.
#[derive(Debug, Clone)]
pub struct Replica {
    /// In blocks.
    pub size: usize,
    pub meta: u64,
    pub blocks: Vec<Tag>,
    /// `mod_seq` of each unit.
    pub seqs: Vec<u64>,
    /// What else it may be: part of a change may be there before that is acknowledged, and then a
    /// later one met a unit that was not empty.
    maybe: BTreeMap<usize, BTreeSet<u64>>,
    /// Frozen and not released, the oldest first.
    pub layers: Vec<Layer>,
    /// Blocks that may have changed since the newest of these.
    pub touched: BTreeSet<usize>,
    /// It was ever frozen: its slots cannot be told from what it holds until its layers are gone.
    pub was_frozen: bool,
}

/// What a replica held when it was frozen.
#[derive(Debug, Clone)]
pub struct Layer {
    pub id: u64,
    pub blocks: Vec<Tag>,
    /// Blocks that may have changed since the layer before it.
    pub touched: BTreeSet<usize>,
}

/// A change that was requested and not acknowledged.
#[derive(Debug, Clone)]
pub enum Pending {
    Create {
        size: usize,
        meta: u64,
    },
    Remove,
    Freeze {
        layer: u64,
    },
    Release {
        layer: u64,
    },
    Meta {
        size: usize,
        meta: u64,
    },
    /// Content of the blocks from `first` on; `exact`: an install, whose `mod_seq` are exact.
    Blocks {
        first: usize,
        tags: Vec<Tag>,
        seqs: Vec<u64>,
        exact: bool,
    },
}

/// A read under way: what each block may turn out to be.
#[derive(Debug, Clone)]
pub struct Reading {
    pub replica: u64,
    /// `None`: of what it holds now.
    pub layer: Option<u64>,
    pub first: usize,
    pub allowed: Vec<Vec<Tag>>,
    pub removed: bool,
    /// The layer may be gone.
    pub released: bool,
}

#[derive(Debug, Clone, Default)]
pub struct Model {
    pub replicas: BTreeMap<u64, Replica>,
    pub pending: BTreeMap<OpToken, (u64, Pending)>,
    pub reading: BTreeMap<OpToken, Reading>,
    /// Answered with a failure of the drive: it happened or not.
    pub unanswered: BTreeSet<OpToken>,
    /// Reads may say that a block is damaged.
    pub is_faulty: bool,
    pub last_seq: u64,
    pub last_tag: Tag,
    pub last_layer: u64,
    /// Every content that a block of a replica was ever given, when it is wanted.
    pub past: Option<BTreeMap<(u64, usize), Vec<Tag>>>,
}

impl Replica {
    pub fn new(size: usize, meta: u64, blocks_max: usize) -> Self {
        let (blocks, seqs) = (vec![0; blocks_max], vec![0; blocks_max / UNIT]);
        Self {
            size,
            meta,
            blocks,
            seqs,
            maybe: BTreeMap::new(),
            layers: Vec::new(),
            touched: BTreeSet::new(),
            was_frozen: false,
        }
    }

    pub fn is_empty(&self, unit: usize) -> bool {
        self.blocks[unit * UNIT..(unit + 1) * UNIT].iter().all(|&tag| tag == 0)
    }

    pub fn allows_seq(&self, unit: usize, seq: u64) -> bool {
        seq == self.seqs[unit] || self.maybe.get(&unit).is_some_and(|some| some.contains(&seq))
    }

    /// `shared`: whether another change of the unit is under way.
    fn apply(
        &mut self,
        first: usize,
        tags: &[Tag],
        seqs: &[u64],
        exact: bool,
        shared: impl Fn(usize) -> bool,
    ) {
        let units = first / UNIT..(first + tags.len()).div_ceil(UNIT);
        let was_empty: Vec<bool> = units.clone().map(|unit| self.is_empty(unit)).collect();
        self.blocks[first..first + tags.len()].copy_from_slice(tags);
        self.touched.extend(first..first + tags.len());
        for ((unit, was_empty), &given) in units.zip(was_empty).zip(seqs) {
            let was = if was_empty { 0 } else { self.seqs[unit] };
            let new = if exact { given } else { was.max(given) };
            let is_empty = self.is_empty(unit);
            self.seqs[unit] = if is_empty { 0 } else { new };
            let maybe = self.maybe.entry(unit).or_default();
            if shared(unit) {
                maybe.extend([was, given, new]);
            } else if is_empty || exact || maybe.iter().all(|&seq| seq < given) {
                maybe.clear();
            } else {
                maybe.extend([given, new]);
            }
            if maybe.is_empty() {
                self.maybe.remove(&unit);
            }
        }
    }

    /// What it holds now becomes a layer.
    pub fn freeze(&mut self, id: u64) {
        if self.layers.iter().all(|layer| layer.id != id) {
            let touched = std::mem::take(&mut self.touched);
            self.layers.push(Layer { id, blocks: self.blocks.clone(), touched });
            self.was_frozen = true;
        }
    }

    pub fn release(&mut self, id: u64) {
        if let Some(at) = self.layers.iter().position(|layer| layer.id == id) {
            let gone = self.layers.remove(at);
            let newer = self.layers.get_mut(at).map_or(&mut self.touched, |l| &mut l.touched);
            newer.extend(gone.touched);
        }
    }

    /// Extents of so many blocks that hold anything.
    pub fn extents(&self, extent_blocks: usize) -> usize {
        self.blocks.chunks(extent_blocks).filter(|e| e.iter().any(|&tag| tag != 0)).count()
    }
}

impl Model {
    pub fn next_seq(&mut self) -> u64 {
        self.last_seq += 1;
        self.last_seq
    }

    pub fn pending_of(&self, replica: u64) -> impl Iterator<Item = &Pending> {
        self.pending.values().filter(move |(other, _)| *other == replica).map(|(_, p)| p)
    }

    /// A request ended with a failure of the drive. Returns whether it was under way.
    pub fn failed(&mut self, token: OpToken) -> bool {
        let was_read = self.reading.remove(&token).is_some();
        was_read || self.pending.contains_key(&token) && self.unanswered.insert(token)
    }

    /// Requests that have not ended.
    pub fn requests_left(&self) -> usize {
        self.pending.len() - self.unanswered.len() + self.reading.len()
    }

    fn units_under_way(&self, replica: u64) -> BTreeSet<usize> {
        let ranges = self.pending_of(replica).filter_map(|pending| match pending {
            Pending::Blocks { first, tags, .. } => {
                Some(first / UNIT..(first + tags.len()).div_ceil(UNIT))
            }
            _ => None,
        });
        ranges.flatten().collect()
    }

    /// No change of these blocks is under way, and the replica stays.
    pub fn is_free(&self, replica: u64, first: usize, count: usize) -> bool {
        self.pending_of(replica).all(|pending| match pending {
            Pending::Blocks { first: f, tags, .. } => {
                first + count <= *f || f + tags.len() <= first
            }
            Pending::Meta { .. } | Pending::Freeze { .. } | Pending::Release { .. } => true,
            Pending::Create { .. } | Pending::Remove => false,
        })
    }

    pub fn requested(&mut self, token: OpToken, replica: u64, pending: Pending) {
        match &pending {
            Pending::Blocks { first, tags, .. } => {
                let of_head = |r: &&mut Reading| r.replica == replica && r.layer.is_none();
                for reading in self.reading.values_mut().filter(of_head) {
                    for (block, &tag) in (*first..).zip(tags) {
                        let index = block.checked_sub(reading.first);
                        if let Some(allowed) = index.and_then(|i| reading.allowed.get_mut(i)) {
                            allowed.push(tag);
                        }
                    }
                }
                if let Some(past) = &mut self.past {
                    for (block, &tag) in (*first..).zip(tags) {
                        past.entry((replica, block)).or_default().push(tag);
                    }
                }
            }
            Pending::Remove => {
                let of_it = self.reading.values_mut().filter(|r| r.replica == replica);
                of_it.for_each(|reading| reading.removed = true);
            }
            Pending::Release { layer } => {
                let of_it = |r: &&mut Reading| r.replica == replica && r.layer == Some(*layer);
                self.reading.values_mut().filter(of_it).for_each(|r| r.released = true);
            }
            Pending::Create { .. } | Pending::Meta { .. } | Pending::Freeze { .. } => {}
        }
        self.pending.insert(token, (replica, pending));
    }

    pub fn read_requested(&mut self, token: OpToken, replica: u64, first: usize, count: usize) {
        let held = &self.replicas[&replica].blocks[first..first + count];
        let mut allowed: Vec<Vec<Tag>> = held.iter().map(|&tag| vec![tag]).collect();
        let mut removed = false;
        for pending in self.pending_of(replica) {
            match pending {
                Pending::Blocks { first: f, tags, .. } => {
                    for (block, &tag) in (*f..).zip(tags) {
                        if (first..first + count).contains(&block) {
                            allowed[block - first].push(tag);
                        }
                    }
                }
                Pending::Remove => removed = true,
                _ => {}
            }
        }
        let (layer, released) = (None, false);
        let reading = Reading { replica, layer, first, allowed, removed, released };
        self.reading.insert(token, reading);
    }

    /// A read of a layer that nobody releases.
    pub fn layer_read_requested(
        &mut self,
        token: OpToken,
        replica: u64,
        layer: u64,
        first: usize,
        count: usize,
    ) {
        let found = self.replicas[&replica].layers.iter().find(|l| l.id == layer);
        let held = &found.expect("the caller chose it").blocks[first..first + count];
        let allowed = held.iter().map(|&tag| vec![tag]).collect();
        let removed = self.pending_of(replica).any(|p| matches!(p, Pending::Remove));
        let (layer, released) = (Some(layer), false);
        let reading = Reading { replica, layer, first, allowed, removed, released };
        self.reading.insert(token, reading);
    }

    /// Layers of the replica that nobody releases.
    pub fn kept_layers(&self, replica: u64) -> Vec<u64> {
        let going = |id: u64| {
            let mut pending = self.pending_of(replica);
            pending.any(|p| matches!(p, Pending::Release { layer } if *layer == id))
        };
        let found = self.replicas.get(&replica).into_iter().flat_map(|r| &r.layers);
        found.map(|layer| layer.id).filter(|&id| !going(id)).collect()
    }

    /// An answer came. What it says must be allowed; the model follows what it acknowledges.
    pub fn completed(
        &mut self,
        token: OpToken,
        outcome: &Result<Outcome, OpError>,
        blocks_max: usize,
    ) -> Result<(), String> {
        if let Some(reading) = self.reading.remove(&token) {
            let is_damage = matches!(outcome, Err(OpError::BadBlock { .. }));
            return if is_damage && self.is_faulty { Ok(()) } else { reading.check(outcome) };
        }
        let Some((raw, pending)) = self.pending.remove(&token) else { return Ok(()) };
        let wrong = || Err(format!("{pending:?} of replica {raw} was answered with {outcome:?}"));
        let going = self.pending_of(raw).any(|p| matches!(p, Pending::Remove));
        let others = self.units_under_way(raw);
        let kept = self.kept_layers(raw);
        let Some(replica) = self.replicas.get_mut(&raw) else {
            return match (&pending, outcome) {
                (Pending::Create { size, meta }, Ok(Outcome::Done)) => {
                    self.replicas.insert(raw, Replica::new(*size, *meta, blocks_max));
                    Ok(())
                }
                (Pending::Create { .. }, _) => wrong(),
                (_, Ok(Outcome::Done) | Err(OpError::UnknownReplica)) => Ok(()),
                _ => wrong(),
            };
        };
        match (&pending, outcome) {
            // Only a removal takes a replica away.
            (_, Err(OpError::UnknownReplica)) if going => {}
            (Pending::Freeze { .. }, Err(OpError::Layers { .. } | OpError::Memory { .. })) => {}
            (Pending::Freeze { layer }, Err(OpError::Released)) if !kept.contains(layer) => {}
            (_, Err(_)) => return wrong(),
            (Pending::Create { .. }, _) => {}
            (Pending::Remove, _) => drop(self.replicas.remove(&raw)),
            (Pending::Freeze { layer }, _) => replica.freeze(*layer),
            (Pending::Release { layer }, _) => replica.release(*layer),
            (Pending::Meta { size, meta }, _) => {
                replica.meta = *meta;
                replica.size = replica.size.max(*size);
            }
            (Pending::Blocks { first, tags, seqs, exact }, _) => {
                replica.apply(*first, tags, seqs, *exact, |unit| others.contains(&unit));
            }
        }
        Ok(())
    }
}

impl Reading {
    fn check(&self, outcome: &Result<Outcome, OpError>) -> Result<(), String> {
        let Self { replica, first, allowed, removed, released, .. } = self;
        match outcome {
            Ok(Outcome::Read { crcs, data }) => {
                if crcs != &super::content::crcs_of(data) || crcs.len() != allowed.len() {
                    return Err(format!("a read of replica {replica} has other checksums"));
                }
                for ((block, content), allowed) in (*first..).zip(data.chunks(4096)).zip(allowed) {
                    let zeros = content.iter().all(|&b| b == 0);
                    let is_allowed = |written| {
                        super::content::tag_of(content, written).is_ok_and(|t| allowed.contains(&t))
                    };
                    if !(is_allowed(true) || zeros && is_allowed(false)) {
                        let found = super::content::tag_of(content, !zeros);
                        let layer = self.layer;
                        return Err(format!(
                            "a read of replica {replica} {layer:?} block {block} gave {found:?} instead of \
                             one of {allowed:?}"
                        ));
                    }
                }
                Ok(())
            }
            Err(OpError::UnknownReplica) if *removed => Ok(()),
            Err(OpError::UnknownLayer) if *released => Ok(()),
            other => Err(format!("a read of replica {replica} was answered with {other:?}")),
        }
    }
}
