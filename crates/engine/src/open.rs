//! Opening a drive: format it if it is blank, else recover what it holds.
//!
//! Decides: which superblock, page halves and batches count, and what may have been lost.
//! Does not: apply records (`replay`), or read more pages than the records change, but for the
//! replica table and the maps.
//! Invariants: a drive with content that is not ours is never written to; a batch is dropped only
//! if nothing says that it was durable; before the drive is open, everything that counts is
//! durable, and what was dropped can never count again.

mod actions;
mod apart;
mod blank;
mod chain;
mod pages;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use format::disk::{
    BLOCK_LEN, DriveShape, DriveUuid, FormatVersion, JournalPlace, Layout, Superblock,
    page::PageHeader,
};
use model::units::{BLOCK, BLOCK_BYTES, ByteCount};

use crate::{
    api::{Action, Device, Event, IoToken, OpenReplica},
    drive::{Drive, Ios, Parts},
    journal::{Found, Journal, Span, Tail, batch_start},
    replay::{Batch, Relied, Replay},
    space::Space,
    table::Recovered,
};

/// Bytes read or written at once.
const STEP_BYTES: u32 = 1 << 20;
/// How far behind the journal's end later batches are looked for. One begins at most
/// `BATCH_BYTES_MAX` behind another.
const SCAN_BYTES_MAX: u64 = 64 << 20;
/// Single pages read at once.
const LOADS_MAX: usize = 64;

#[derive(Debug)]
pub struct Opening {
    shape: DriveShape,
    layout: Layout,
    memory_max: u64,
    seed: u64,
    token: u64,
    step: Step,
    superblock: Superblock,
    replay: Replay,
    /// Exclusive or over the halves that counted when the superblock was written.
    fingerprint: u64,
    checkpoint_seen: u64,
    /// It was blank.
    is_formatted: bool,
    /// The other superblock has an older version.
    is_upgraded: bool,
    /// The generation of the journal's head, if it lies apart.
    journal_seen: u64,
    chain: Chain,
}

pub enum Progress {
    More,
    Failed(String),
    Open { drive: Box<Drive>, replicas: Vec<OpenReplica>, formatted: bool },
}

/// What is under way: always one drive action, but while pages are loaded.
#[derive(Debug)]
enum Step {
    Superblocks,
    JournalHeads { superblocks: Bytes },
    // A blank drive.
    WipeRows { half: u8, first: u32, wiping: bool },
    WipeJournal { at: u64 },
    FormatHead,
    FormatFlush,
    FormatSuperblock,
    // A drive of ours.
    Pages { first: u32, a: Option<Bytes> },
    Chain,
    Scan { at: u64, left: u64 },
    Verify { left: Vec<Relied> },
    Load { left: Vec<u32>, reading: BTreeMap<IoToken, u32> },
    WipeBatch,
    Flush,
    JournalHead,
    Superblock,
}

/// The batches found so far.
#[derive(Debug, Default)]
struct Chain {
    position: u64,
    /// Of the last batch found, held or not.
    last_lsn: u64,
    /// The last LSN that counts.
    applied_lsn: u64,
    spans: VecDeque<Span>,
    /// The last batch found: whether it counts is known when it is known what follows.
    held: Option<Batch>,
    /// Something says that everything up to here was durable.
    known_durable: u64,
    highest_seen: u64,
}

impl Opening {
    pub fn begin(
        shape: DriveShape,
        layout: Layout,
        memory_max: u64,
        seed: u64,
        out: &mut Vec<Action>,
    ) -> Self {
        let uuid = DriveUuid([0; 16]);
        let mut opening = Self {
            shape,
            layout,
            memory_max,
            seed,
            token: 0,
            step: Step::Superblocks,
            superblock: fresh_superblock(uuid, shape),
            replay: Replay::new(layout, memory_max),
            fingerprint: 0,
            checkpoint_seen: 0,
            is_formatted: false,
            is_upgraded: false,
            journal_seen: 0,
            chain: Chain::default(),
        };
        let length = u32::try_from(layout.pages_offset + BLOCK).expect("a few blocks");
        opening.read(0, length, out);
        opening
    }

    pub fn handle(&mut self, event: Event, out: &mut Vec<Action>) -> Progress {
        let (token, result) = match event {
            Event::DriveRead { token, result } => (token, result),
            Event::DriveWritten { token, result } | Event::DriveFlushed { token, result } => {
                (token, result.map(|()| Bytes::new()))
            }
            Event::Requested { .. } | Event::TimeReached => unreachable!("the engine keeps these"),
        };
        let bytes = match result {
            Ok(bytes) => bytes,
            Err(error) => return Progress::Failed(format!("{error} while opening")),
        };
        if let Step::Load { .. } = self.step {
            return self.take_loaded(token, &bytes, out);
        }
        assert_eq!(token, IoToken(self.token - 1), "one action at a time");
        self.advance(bytes, out)
    }

    fn advance(&mut self, bytes: Bytes, out: &mut Vec<Action>) -> Progress {
        match std::mem::replace(&mut self.step, Step::Superblocks) {
            Step::Superblocks if self.layout.journal == JournalPlace::Apart => {
                self.read_journal_heads(bytes, out);
            }
            Step::Superblocks => return self.choose_superblock(&bytes, &[], out),
            Step::JournalHeads { superblocks } => {
                return self.choose_superblock(&superblocks, &bytes, out);
            }
            Step::WipeRows { half, first, wiping } => {
                self.wipe_rows(half, first, wiping, &bytes, out);
            }
            Step::WipeJournal { at } => self.wipe_journal(at, out),
            Step::FormatHead => self.format_flush(out),
            Step::FormatFlush => self.format_superblock(out),
            Step::FormatSuperblock => self.begin_superblock(out),
            Step::Pages { first, a: None } => {
                let length = self.pages_len(first);
                self.read(self.layout.page_offset(first, 1), length, out);
                self.step = Step::Pages { first, a: Some(bytes) };
            }
            Step::Pages { first, a: Some(a) } => self.take_pages(first, &a, &bytes, out),
            Step::Load { .. } => unreachable!("the caller looked"),
            Step::Chain => self.take_window(&bytes, out),
            Step::Scan { at, left } => self.take_scan(at, left, &bytes, out),
            Step::Verify { left } => self.take_verify(left, &bytes, out),
            Step::WipeBatch => {
                self.flush(out);
                self.step = Step::Flush;
            }
            Step::Flush => self.write_superblock(out),
            Step::JournalHead => {
                self.put_superblock(out);
                self.step = Step::Superblock;
            }
            Step::Superblock if std::mem::take(&mut self.is_upgraded) => {
                self.put_superblock(out);
                self.step = Step::Superblock;
            }
            Step::Superblock => return self.open(),
        }
        Progress::More
    }

    fn choose_superblock(
        &mut self,
        bytes: &[u8],
        journal_heads: &[u8],
        out: &mut Vec<Action>,
    ) -> Progress {
        let (superblocks, rest) = bytes.split_at(2 * BLOCK_LEN);
        if is_zero(superblocks) {
            if !blank::is_free(&self.layout, rest) {
                return Progress::Failed(
                    "the head of the drive is blank, and what follows is somebody else's: wipe its \
                     first 128 KiB if nobody needs that any more"
                        .into(),
                );
            }
            self.is_formatted = true;
            if let Err(reason) = self.check_blank_journal(journal_heads) {
                return Progress::Failed(reason);
            }
            self.superblock = fresh_superblock(new_uuid(self.seed), self.shape);
            self.read_rows_area(0, 0, out);
            return Progress::More;
        }
        let halves = superblocks.chunks_exact(BLOCK_LEN).map(Superblock::decode);
        let Some(found) = halves.filter_map(Result::ok).max_by_key(|s| s.sequence) else {
            return Progress::Failed(
                "the head of the drive holds something else, or both superblocks are damaged: if \
                 nobody needs what it holds, wipe its first 128 KiB to have it formatted"
                    .into(),
            );
        };
        if found.shape.journal != self.shape.journal {
            return Progress::Failed(match found.shape.journal {
                JournalPlace::Apart => "its journal lies apart: name it in 'journal_path'".into(),
                JournalPlace::Inside => "its journal lies on the drive itself, and stays there: \
                                         leave 'journal_path' out, or drain the drive and wipe \
                                         its first 8 KiB to format it anew"
                    .into(),
            });
        }
        if found.shape != self.shape {
            return Progress::Failed(format!(
                "it was formatted as {}, and is configured as {}: a drive keeps its shape, so \
                 configure it as it was, or drain it and wipe its first 8 KiB to format it anew",
                found.shape, self.shape
            ));
        }
        if found.version != self.layout.version {
            match Layout::of(&self.shape, found.version) {
                Ok(layout) => self.layout = layout,
                Err(_) => return Progress::Failed("no drive of this size has its version".into()),
            }
            self.replay = Replay::new(self.layout, self.memory_max);
        }
        self.superblock = found;
        if let Err(reason) = self.check_journal(journal_heads) {
            return Progress::Failed(reason);
        }
        if self.pages_end() > self.layout.pages_read_at_open() {
            return Progress::Failed("the superblock names pages that do not exist".into());
        }
        self.replay.table.expect_pages(found.pages_written);
        self.read_pages(0, out);
        Progress::More
    }

    // Pages.

    // Pages that records change.
}

// The end, and drive actions.
impl Opening {
    /// A batch that was not found whole, or was dropped, must not count after the next crash
    /// either: readers may have seen by then that it did not. So its head is wiped.
    fn settle(&mut self, out: &mut Vec<Action>) {
        let size = self.layout.journal_bytes;
        let position = batch_start(self.chain.position, size);
        let is_free = position + BLOCK - self.superblock.tail <= size;
        if is_free {
            let at = self.layout.journal_offset + position % size;
            self.write_zeros(journal_device(&self.layout), at, BLOCK_BYTES, out);
            self.step = Step::WipeBatch;
        } else {
            self.flush(out);
            self.step = Step::Flush;
        }
    }

    /// Everything that was found is on stable media now.
    fn write_superblock(&mut self, out: &mut Vec<Action>) {
        let chain = &self.chain;
        let superblock = &mut self.superblock;
        if superblock.version == FormatVersion::V1 {
            superblock.checkpoint = superblock.checkpoint.max(self.checkpoint_seen);
            superblock.pages_fingerprint = self.replay.table.table.fingerprint();
        } else {
            // What was written since does not count yet, and is written again before it would.
            superblock.pages_fingerprint = self.fingerprint;
        }
        superblock.durable_lsn = chain.applied_lsn;
        if self.replay.damaged {
            let highest = chain.highest_seen.max(chain.known_durable).max(chain.applied_lsn);
            superblock.durable_lsn = highest;
            superblock.stale_lsn = highest;
        }
        // Who does not know layers must find no superblock that it knows.
        self.is_upgraded = superblock.version == FormatVersion::V2;
        if self.is_upgraded {
            superblock.version = FormatVersion::V3;
        }
        self.begin_superblock(out);
    }

    fn open(&mut self) -> Progress {
        let layout = self.layout;
        let replay = std::mem::replace(&mut self.replay, Replay::new(layout, self.memory_max));
        let Replay { table, mut overlay, mut stale, damaged, .. } = replay;
        let Recovered { table, used, stale: contradicted } = table.finish();
        stale.extend(contradicted);
        if damaged {
            // Pages may be newer than the last batch that was found.
            let is_used = |slot: u32| {
                let word = used[usize::try_from(slot / 64).expect("fits memory")];
                word >> (slot % 64) & 1 == 1 && !table.is_absent(table.descriptor_page(slot))
            };
            overlay.retain(|key, block| {
                let owned = is_used(key.slot).then(|| table.descriptor(key.slot));
                owned.is_some_and(|descriptor| {
                    let crc = descriptor.crc(key.block);
                    descriptor.is_valid(key.block) && crc == crc32c::crc32c(&block.data)
                })
            });
        }
        let chain = std::mem::take(&mut self.chain);
        let superblock = self.superblock;
        let journal = Journal::new(
            layout.journal_bytes,
            Found {
                tail: Tail { position: superblock.tail, lsn: superblock.tail_lsn },
                head: chain.position,
                last_lsn: chain.applied_lsn,
                next_lsn: superblock.durable_lsn.max(chain.applied_lsn) + 1,
                batches: chain.spans,
            },
        );
        let replicas = table
            .replicas()
            .map(|(id, row)| OpenReplica {
                replica: id,
                size: ByteCount::new(row.size),
                meta: row.meta.clone(),
                stale: stale.contains(&id) || table.row_lsn(id) <= superblock.stale_lsn,
            })
            .collect();
        let space = Space::new(layout.slots, layout.media, &used);
        let ios = Ios::after(self.token, journal_device(&layout), layout.media);
        let checkpoint = superblock.checkpoint.max(self.checkpoint_seen);
        let parts = Parts { layout, superblock, checkpoint, table, overlay, space, journal, ios };
        let formatted = self.is_formatted;
        Progress::Open { drive: Box::new(Drive::new(parts)), replicas, formatted }
    }

    // Drive actions.
}

/// The valid half written last, of those written up to `checkpoint`.
fn newest(halves: &[Option<(PageHeader, &[u8])>; 2], checkpoint: u64) -> Option<usize> {
    let written = |half: &usize| halves[*half].map(|(header, _)| header.checkpoint);
    let counted = |half: &usize| written(half).is_some_and(|at| at <= checkpoint);
    (0..2).filter(counted).max_by_key(written)
}

fn fresh_superblock(uuid: DriveUuid, shape: DriveShape) -> Superblock {
    Superblock {
        version: FormatVersion::V3,
        uuid,
        shape,
        sequence: 0,
        tail: 0,
        tail_lsn: 0,
        durable_lsn: 0,
        pages_written: 0,
        checkpoint: 0,
        pages_fingerprint: 0,
        stale_lsn: 0,
        journal_generation: 0,
    }
}

fn journal_device(layout: &Layout) -> Device {
    match layout.journal {
        JournalPlace::Inside => Device::Data,
        JournalPlace::Apart => Device::Journal,
    }
}

/// Two rounds of splitmix64.
fn new_uuid(seed: u64) -> DriveUuid {
    let mut state = seed;
    let mut word = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    };
    let mut uuid = [0; 16];
    uuid[..8].copy_from_slice(&word());
    uuid[8..].copy_from_slice(&word());
    DriveUuid(uuid)
}

/// Compares with itself, shifted: as fast as memory.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.is_empty() || bytes[0] == 0 && bytes[1..] == bytes[..bytes.len() - 1]
}

fn step(left: u64) -> u32 {
    u32::try_from(left.min(u64::from(STEP_BYTES))).expect("bounded by the step")
}
