//! Reading ahead of those who read a hard disk in sequence.
//!
//! Two reads of a replica of which the second begins where the first ended are a stream. What lies
//! behind it is read before it is asked for, in windows that grow while the stream goes on: the next
//! when half of the last is used up. Nobody waits for a window who does not want what is in it.
//!
//! Decides: who reads in sequence, what is read ahead, and who waits for that.
//! Does not: answer requests (`read` finds the blocks in the cache as it finds those of the overlay),
//! or say anything of blocks that nobody asked for: those that do not match their checksums, or
//! cannot be read, are read when somebody wants them.
//! Invariants: one window of a stream is being read at a time; only content that the drive alone
//! has is, and it is kept only if nothing has changed its slot since; a request waits for a window at
//! most once.

pub mod cache;

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
};

use bytes::Bytes;
use format::disk::{BLOCK_LEN, page::Owner};
use model::{
    id::ReplicaId,
    units::{BLOCK, BLOCK_BYTES},
};

use crate::{
    api::{Action, DriveError, OpToken},
    drive::{Drive, Io},
    read::ReadRequest,
    sabotage::{Sabotage, is_on},
};

/// Ends of reads that nobody has gone on from: as many reads may come between the first two of a
/// stream.
const ENDS_MAX: usize = 128;
const STREAMS_MAX: usize = 16;
/// Bytes of a stream's first window, and of its largest.
const WINDOW_MIN: u64 = 64 << 10;
const WINDOW_MAX: u64 = 1 << 20;
/// A stream that was silent for so many reads of others has no share of the memory.
const SILENT_AFTER: u64 = 1024;

#[derive(Debug, Default)]
pub struct Ahead {
    streams: BTreeMap<u64, Stream>,
    /// The last stream's number: none is used twice.
    number: u64,
    /// Where reads ended that belong to no stream, the oldest first.
    ends: VecDeque<(ReplicaId, u64)>,
    /// By the number of the stream that they are for, which may be gone.
    windows: BTreeMap<u64, Window>,
    /// Reads so far.
    reads: u64,
    /// Blocks that were kept.
    pub blocks_read: u64,
}

#[derive(Debug)]
struct Stream {
    replica: ReplicaId,
    /// Where it is expected to go on.
    next: u64,
    /// Where what has been read ahead for it ends.
    reach: u64,
    /// Bytes of the last window.
    window: u64,
    /// The last read of it, as the reads are counted.
    used: u64,
    /// A page of metadata that was fetched for it.
    fetched: Option<u32>,
}

/// What is being read ahead.
#[derive(Debug)]
struct Window {
    replica: ReplicaId,
    range: Range<u64>,
    /// Records up to this one had been applied when it was planned.
    planned_lsn: u64,
    /// Drive reads that have not come back.
    waits: usize,
    spans: Vec<Span>,
    /// Requests for some of it.
    waiting: Vec<(OpToken, ReadRequest)>,
}

/// Blocks of one slot that are read at once.
#[derive(Debug, Default)]
struct Span {
    slot: u32,
    first: u32,
    /// Of the blocks that are wanted; what lies between them is read, too.
    crcs: Vec<Option<u32>>,
}

enum Plan {
    Spans(Vec<Span>),
    /// The page that describes a slot is not in memory.
    Absent(u32),
}

impl Ahead {
    /// The stream that a read belongs to. One that has not been gone on from belongs to none.
    fn follow(&mut self, replica: ReplicaId, range: &Range<u64>) -> Option<u64> {
        self.reads += 1;
        let goes_on = |stream: &Stream| {
            stream.replica == replica && (stream.next..=stream.reach).contains(&range.start)
        };
        if let Some((&number, stream)) = self.streams.iter_mut().find(|(_, s)| goes_on(s)) {
            stream.next = range.end;
            stream.reach = stream.reach.max(range.end);
            stream.used = self.reads;
            return Some(number);
        }
        if let Some(at) = self.ends.iter().position(|&end| end == (replica, range.start)) {
            self.ends.remove(at);
            return Some(self.begin(replica, range.end));
        }
        if self.ends.len() == ENDS_MAX {
            self.ends.pop_front();
        }
        self.ends.push_back((replica, range.end));
        None
    }

    fn begin(&mut self, replica: ReplicaId, next: u64) -> u64 {
        if self.streams.len() == STREAMS_MAX {
            let silent = self.streams.iter().min_by_key(|(_, stream)| stream.used);
            let (&number, _) = silent.expect("there are some");
            self.streams.remove(&number);
        }
        self.number += 1;
        let (used, reach) = (self.reads, next);
        let stream = Stream { replica, next, reach, window: 0, used, fetched: None };
        self.streams.insert(self.number, stream);
        self.number
    }

    /// Whether a read waits for what is being read ahead: then it does.
    fn awaits(&mut self, op: OpToken, request: ReadRequest, range: &Range<u64>) -> bool {
        let has_some = |window: &&mut Window| {
            window.replica == request.replica
                && window.range.start < range.end
                && range.start < window.range.end
        };
        let Some(window) = self.windows.values_mut().find(has_some) else { return false };
        window.waiting.push((op, request));
        true
    }

    /// Where the stream's next window begins and how long it is, if it is time for one. All that
    /// are not silent together have half of the memory for it, because what was read before is
    /// there, too.
    fn next_window(&self, number: u64) -> Option<(ReplicaId, u64, u64)> {
        let stream = self.streams.get(&number)?;
        let is_used_up = stream.reach - stream.next <= stream.window / 2;
        if !is_used_up || self.windows.contains_key(&number) {
            return None;
        }
        let speaks = |stream: &&Stream| stream.used + SILENT_AFTER > self.reads;
        let streams = u64::try_from(self.streams.values().filter(speaks).count()).expect("few");
        let share = cache::BYTES_MAX / 2 / streams.max(1) / BLOCK * BLOCK;
        let window = (2 * stream.window).clamp(WINDOW_MIN, WINDOW_MAX.min(share));
        Some((stream.replica, stream.reach, window))
    }
}

impl Drive {
    /// A read by somebody who may go on behind it.
    pub fn read_stream(&mut self, op: OpToken, request: ReadRequest, out: &mut Vec<Action>) {
        let ReadRequest { replica, offset, length, .. } = request;
        if !request.ahead || self.check_range(replica, offset, u64::from(length)).is_err() {
            return self.read(op, request, out);
        }
        let range = offset..offset + u64::from(length);
        let ahead = self.ahead.as_mut().expect("looked at above");
        let stream = ahead.follow(replica, &range);
        if !ahead.awaits(op, request, &range) {
            self.read(op, request, out);
        }
        if let Some(stream) = stream {
            self.read_on(stream, out);
        }
    }

    /// Begins to read the stream's next window, if it is time for that: what is left of an extent,
    /// because another lies elsewhere. Extents of which there is nothing to read are passed over.
    fn read_on(&mut self, number: u64, out: &mut Vec<Action>) {
        let next = self.ahead.as_ref().and_then(|ahead| ahead.next_window(number));
        let Some((replica, from, window)) = next else { return };
        let size = self.table.replica(replica).map_or(0, |found| found.size);
        let end = size.min(from + window);
        let mut at = from;
        while at < end {
            let (extent, first) = self.extent_and_block(at);
            let stop = end.min((u64::from(extent) + 1) * self.layout.slot_bytes());
            let count = u32::try_from((stop - at) / BLOCK).expect("within a slot");
            match self.plan_ahead(replica, extent, first..first + count) {
                Plan::Spans(spans) if spans.is_empty() => at = stop,
                Plan::Spans(spans) => {
                    if self.begin_window(number, (replica, at..stop), spans, out) {
                        at = stop;
                    }
                    break;
                }
                Plan::Absent(page) => {
                    self.fetch_ahead(number, page, out);
                    break;
                }
            }
        }
        let ahead = self.ahead.as_mut().expect("it has the stream");
        let stream = ahead.streams.get_mut(&number).expect("looked at above");
        if at > from {
            (stream.reach, stream.window) = (at, window);
        }
    }

    /// The blocks of an extent that are on the drive and nowhere else, by slot.
    fn plan_ahead(&self, replica: ReplicaId, extent: u32, blocks: Range<u32>) -> Plan {
        let Ok(top) = self.top(replica, None) else { return Plan::Spans(Vec::new()) };
        let owner = Owner { extent, ..self.table.head_owner(replica, 0) };
        let stack = self.table.stack(replica, extent, top);
        if let Some(slot) = stack.into_slots().find(|&slot| self.is_undescribed(slot)) {
            return Plan::Absent(self.table.descriptor_page(slot));
        }
        let mut spans: Vec<Span> = Vec::new();
        for block in blocks {
            let Some(slot) = self.table.source(stack.slots(), block) else { continue };
            let descriptor = self.table.descriptor(slot);
            let is_newer = self.overlay.range(slot, block, 1).next().is_some();
            if is_newer || descriptor.is_lost(block) || !self.table.describes(slot, owner) {
                continue;
            }
            let at = spans.iter().position(|span| span.slot == slot).unwrap_or_else(|| {
                spans.push(Span { slot, first: block, crcs: Vec::new() });
                spans.len() - 1
            });
            let span = &mut spans[at];
            let index = usize::try_from(block - span.first).expect("within a slot");
            span.crcs.resize(index, None);
            span.crcs.push(Some(descriptor.crc(block)));
        }
        Plan::Spans(spans)
    }

    /// Returns false if there is no room for it.
    fn begin_window(
        &mut self,
        number: u64,
        (replica, range): (ReplicaId, Range<u64>),
        spans: Vec<Span>,
        out: &mut Vec<Action>,
    ) -> bool {
        if !self.readers.ahead.expect(spans.iter().map(Span::bytes).sum()) {
            return false;
        }
        for (index, span) in spans.iter().enumerate() {
            self.readers.begin(span.slot);
            let at = self.layout.slot_offset(span.slot) + u64::from(span.first) * BLOCK;
            self.ios.read(Io::Ahead { stream: number, span: index }, at, span.length(), out);
        }
        let (planned_lsn, waits, waiting) = (self.journal.last_lsn(), spans.len(), Vec::new());
        let window = Window { replica, range, planned_lsn, waits, spans, waiting };
        let ahead = self.ahead.as_mut().expect("it has the stream");
        let before = ahead.windows.insert(number, window);
        assert!(before.is_none(), "one window at a time");
        true
    }

    /// The page that says what is to be read ahead, once: if it does not stay until the stream goes
    /// on, who reads there waits for it.
    fn fetch_ahead(&mut self, number: u64, page: u32, out: &mut Vec<Action>) {
        let ahead = self.ahead.as_mut().expect("it has the stream");
        let stream = ahead.streams.get_mut(&number).expect("the caller has it");
        if stream.fetched.replace(page) != Some(page) {
            self.fetch(page, out);
        }
    }

    pub fn ahead_arrived(
        &mut self,
        (number, index): (u64, usize),
        result: Result<Bytes, DriveError>,
        out: &mut Vec<Action>,
    ) {
        let ahead = self.ahead.as_mut().expect("it reads ahead");
        let window = ahead.windows.get_mut(&number).expect("it is being read");
        window.waits -= 1;
        let mut span = std::mem::take(&mut window.spans[index]);
        let changed = self.readers.end(span.slot, window.planned_lsn);
        self.readers.ahead.came(span.bytes());
        if let Ok(data) = result
            && (!changed || is_on(Sabotage::AheadUnchecked))
        {
            ahead.blocks_read += span.keep_good(&data);
            self.readers.ahead.insert(span.slot, span.first, span.crcs, data);
        }
        if window.waits > 0 {
            return;
        }
        let window = ahead.windows.remove(&number).expect("found above");
        for (op, request) in window.waiting {
            self.read(op, request, out);
        }
        self.read_on(number, out);
    }
}

impl Span {
    fn length(&self) -> u32 {
        u32::try_from(self.crcs.len()).expect("within a slot") * BLOCK_BYTES
    }

    fn bytes(&self) -> u64 {
        u64::from(self.length())
    }

    /// Leaves the blocks that match their checksums; returns how many.
    fn keep_good(&mut self, data: &Bytes) -> u64 {
        assert_eq!(data.len(), self.crcs.len() * BLOCK_LEN, "a read returns what was asked for");
        let mut kept = 0;
        for (wanted, block) in self.crcs.iter_mut().zip(data.chunks_exact(BLOCK_LEN)) {
            *wanted = wanted.filter(|&crc| crc32c::crc32c(block) == crc);
            kept += u64::from(wanted.is_some());
        }
        kept
    }
}
