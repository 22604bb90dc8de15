//! Writing home: what frees the journal.
//!
//! A cycle takes the oldest part of the journal, up to its cut: it writes the overlay's blocks
//! home, then the pages that lack a record of it, then flushes, then moves the tail to the cut in a
//! superblock.
//!
//! Decides: when a cycle runs and how hard.
//! Invariants: only durable content is written home, and only pages all of whose records are
//! durable; the tail passes a record only when everything it says is on stable media elsewhere; a
//! page is written at most once per checkpoint, into the half that does not count yet.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use format::disk::{BLOCK_LEN, apart::JournalHead};
use model::{units::BLOCK, volume::Media};

use crate::{
    api::Action,
    drive::{Drive, Io},
    journal::Tail,
    overlay::Key,
    sabotage::{Sabotage, is_on},
};

/// A cycle takes an eighth of the journal, so that who waits for room does not wait for long.
const CYCLES_PER_JOURNAL: u64 = 8;
/// Longest merged home write, in blocks.
const RUN_BLOCKS_MAX: usize = 256;

/// Blocks that lie one behind the other, the records they come from, and their content.
type HomeRun = (Vec<(Key, u64)>, Vec<Bytes>);

#[derive(Debug, Default)]
pub struct Writeback {
    stage: Stage,
    /// The journal is full: run although it may be early.
    pub wanted: bool,
    /// Home or page writes under way.
    writes: usize,
    /// Slots with a home write under way, and how many.
    homes: BTreeMap<u32, usize>,
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Idle,
    Home {
        cut: u64,
        next: Key,
    },
    Pages {
        cut: u64,
        left: VecDeque<u32>,
        /// After these: among them the maps that say which halves of those count.
        rest: BTreeSet<u32>,
    },
    /// Everything is written; the records it came from must be durable before the tail moves.
    Written {
        cut: u64,
        applied: u64,
    },
    Flushing {
        cut: u64,
    },
    Flushed {
        cut: u64,
    },
    /// Of a journal that lies apart.
    JournalHead {
        cut: u64,
    },
    /// What the superblock refers to is durable.
    Ready {
        cut: u64,
    },
    Superblock,
}

impl Writeback {
    /// Whether a write to the slot is under way.
    pub fn writes_to(&self, slot: u32) -> bool {
        self.homes.contains_key(&slot)
    }

    pub fn page_written(&mut self) {
        self.writes -= 1;
    }

    pub fn flushed(&mut self) {
        let Stage::Flushing { cut } = self.stage else { unreachable!("no flush was issued") };
        self.stage = Stage::Flushed { cut };
    }

    pub fn journal_head_written(&mut self) {
        let Stage::JournalHead { cut } = self.stage else { unreachable!("no head was written") };
        self.stage = Stage::Ready { cut };
    }
}

impl Drive {
    /// Goes on with the cycle, or begins one when the journal is filling up.
    pub fn write_back(&mut self, out: &mut Vec<Action>) {
        loop {
            let next = match &mut self.writeback.stage {
                Stage::Idle => self.begin_cycle(),
                Stage::Home { .. } => self.write_homes(out),
                Stage::Pages { .. } => self.write_pages(out),
                &mut Stage::Written { cut, .. } if is_on(Sabotage::NoFlush) => {
                    Some(Stage::Flushed { cut })
                }
                &mut Stage::Written { cut, applied } => (self.journal.durable_lsn() >= applied)
                    .then(|| {
                        self.ios.flush(Io::Flush, out);
                        Stage::Flushing { cut }
                    }),
                &mut Stage::Flushed { cut } if self.ios.journal_is_apart() => {
                    self.write_journal_head(out);
                    Some(Stage::JournalHead { cut })
                }
                &mut (Stage::Flushed { cut } | Stage::Ready { cut }) => {
                    Some(self.write_superblock(cut, out))
                }
                Stage::Flushing { .. } | Stage::JournalHead { .. } | Stage::Superblock => None,
            };
            match next {
                Some(stage) => self.writeback.stage = stage,
                None => return,
            }
        }
    }

    fn begin_cycle(&mut self) -> Option<Stage> {
        let dirty = self.table.dirty_pages();
        let due =
            self.journal.used() >= self.journal.size() / 2 || dirty > self.table.dirty_max() / 2;
        if self.journal.used() == 0 && dirty == 0 || !due && !self.writeback.wanted {
            return None;
        }
        self.writeback.wanted = false;
        let cut = self.journal.cut(self.journal.size() / CYCLES_PER_JOURNAL);
        Some(Stage::Home { cut, next: Key { slot: 0, block: 0 } })
    }

    /// Writes of a cycle that may be under way now: few while there is room in the journal, so that
    /// requests come first; many when they would soon have to wait for it. An SSD gets the next
    /// ones when half have ended, because several that are handed over at once cost little more
    /// than one.
    fn writes_max(&self) -> usize {
        let (used, size) = (self.journal.used(), self.journal.size());
        let eager = self.writeback.wanted || used >= size / 4 * 3;
        let (most, next_at) = match (self.layout.media, eager) {
            (Media::Ssd, false) => (16, 8),
            (Media::Ssd, true) => (32, 16),
            (Media::Hdd, false) => (1, 0),
            (Media::Hdd, true) => (4, 3),
        };
        if self.writeback.writes > next_at { 0 } else { most }
    }

    /// Pages whose images lack a record up to this one are written. What only lacks later ones stays
    /// for a later cycle, because most pages change again before that; unless memory is short.
    fn pages_cut(&self, cut: u64) -> u64 {
        if self.table.dirty_pages() > self.table.dirty_max() / 2 {
            u64::MAX
        } else if is_on(Sabotage::PageLeftBehind) {
            self.journal.tail().lsn
        } else {
            cut
        }
    }

    fn write_homes(&mut self, out: &mut Vec<Action>) -> Option<Stage> {
        let Stage::Home { cut, mut next } = self.writeback.stage else { unreachable!("matched") };
        let max = self.writes_max();
        while self.writeback.writes < max {
            let Some((keys, data)) = self.home_run(cut, next) else {
                next = Key { slot: u32::MAX, block: 0 };
                if self.writeback.writes > 0 {
                    break;
                }
                let (left, rest) = self.table.dirty(self.pages_cut(cut));
                self.checkpoint += 1;
                return Some(Stage::Pages { cut, left: left.into_iter().collect(), rest });
            };
            let (last, _) = keys[keys.len() - 1];
            next = Key { slot: last.slot, block: last.block + 1 };
            self.write_run(keys, data, out);
        }
        self.writeback.stage = Stage::Home { cut, next };
        None
    }

    /// The next blocks that lie one behind the other on the drive. A block with newer content than
    /// the cut stays: its record stays in the journal too.
    fn home_run(&self, cut: u64, next: Key) -> Option<HomeRun> {
        let (mut keys, mut data) = (Vec::<(Key, u64)>::new(), Vec::new());
        for (key, block) in self.overlay.from(next) {
            let follows = keys.last().is_none_or(|&(last, _)| self.follows(last, key));
            if !follows || keys.len() == RUN_BLOCKS_MAX {
                break;
            }
            if block.lsn <= cut || is_on(Sabotage::HomeAhead) {
                keys.push((key, block.lsn));
                data.push(block.data.clone());
            } else if !keys.is_empty() {
                break;
            }
        }
        (!keys.is_empty()).then_some((keys, data))
    }

    fn follows(&self, a: Key, b: Key) -> bool {
        if a.slot == b.slot {
            return a.block + 1 == b.block;
        }
        a.slot + 1 == b.slot && a.block + 1 == self.layout.slot_blocks && b.block == 0
    }

    fn write_run(&mut self, keys: Vec<(Key, u64)>, data: Vec<Bytes>, out: &mut Vec<Action>) {
        assert!(data.iter().all(|block| block.len() == BLOCK_LEN));
        let (first, _) = keys[0];
        let offset = self.layout.slot_offset(first.slot) + u64::from(first.block) * BLOCK;
        for &(key, lsn) in &keys {
            *self.writeback.homes.entry(key.slot).or_default() += 1;
            if is_on(Sabotage::OverlayDroppedEarly) {
                self.overlay.remove_written(key, lsn);
            }
        }
        self.writeback.writes += 1;
        self.ios.write(Io::Home(keys), offset, data, out);
    }

    pub fn home_written(&mut self, blocks: Vec<(Key, u64)>) {
        self.writeback.writes -= 1;
        for (key, lsn) in blocks {
            self.overlay.remove_written(key, lsn);
            let count = self.writeback.homes.get_mut(&key.slot).expect("counted when issued");
            *count -= 1;
            if *count == 0 {
                self.writeback.homes.remove(&key.slot);
            }
        }
        self.release_slots();
    }

    fn write_pages(&mut self, out: &mut Vec<Action>) -> Option<Stage> {
        let max = self.writes_max();
        let Stage::Pages { cut, mut left, rest } = std::mem::take(&mut self.writeback.stage) else {
            unreachable!("matched")
        };
        let mut rest = Some(rest);
        let mut looks = left.len();
        while looks > 0 && self.writeback.writes < max {
            looks -= 1;
            let page = left.pop_front().expect("counted");
            if self.table.is_absent(page) {
                // A map that only names other halves now.
                self.fetch(page, out);
                left.push_back(page);
                continue;
            }
            let is_ahead = self.table.page_lsn(page) > self.journal.durable_lsn();
            if is_ahead && !is_on(Sabotage::PageAhead) {
                left.push_back(page);
                continue;
            }
            let (offset, image) = self.table.capture(self.superblock.uuid, page, self.checkpoint);
            self.writeback.writes += 1;
            self.ios.write(Io::Page(page), offset, vec![image], out);
            if left.is_empty() {
                left.extend(rest.take().into_iter().flatten());
                looks = left.len();
            }
        }
        if left.is_empty() {
            left.extend(rest.take().into_iter().flatten());
        }
        if left.is_empty() && self.writeback.writes == 0 {
            return Some(Stage::Written { cut, applied: self.journal.last_lsn() });
        }
        self.writeback.stage = Stage::Pages { cut, left, rest: rest.unwrap_or_default() };
        None
    }

    /// The superblock that follows names it: a journal from before is an older copy from then on.
    fn write_journal_head(&mut self, out: &mut Vec<Action>) {
        let previous = self.superblock.journal_generation;
        let generation = previous + 1;
        let (uuid, bytes) = (self.superblock.uuid, self.layout.journal_device_bytes());
        let head = JournalHead { uuid, bytes, generation, previous };
        self.ios.write(Io::JournalHead, 0, vec![head.encode()], out);
        self.superblock.journal_generation = generation;
    }

    fn write_superblock(&mut self, cut: u64, out: &mut Vec<Action>) -> Stage {
        let far = if is_on(Sabotage::TailTooFar) { self.journal.durable_lsn() } else { cut };
        let tail = self.journal.tail_after(far);
        self.superblock.sequence += 1;
        self.superblock.checkpoint = self.checkpoint;
        self.superblock.tail = tail.position;
        self.superblock.tail_lsn = tail.lsn;
        self.superblock.durable_lsn = self.journal.durable_lsn();
        self.superblock.pages_written = self.table.pages_written();
        self.superblock.pages_fingerprint = self.table.fingerprint();
        let offset = self.superblock.sequence % 2 * BLOCK;
        let image = self.superblock.encode();
        self.ios.write(Io::Superblock(tail), offset, vec![image], out);
        Stage::Superblock
    }

    pub fn superblock_written(&mut self, tail: Tail) {
        self.journal.release(tail);
        self.writeback.stage = Stage::Idle;
    }
}
