//! The ring of batches: where the next one goes, what is durable, what may be overwritten.
//!
//! Decides: positions, LSNs, whether a record fits.
//! Does not: know what records mean.
//! Invariants: at most one batch is being written; a batch never wraps within itself; nothing
//! between tail and head is overwritten.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use format::disk::{
    BATCH_BYTES_MAX, BLOCK_LEN, DriveUuid,
    journal::{BATCH_HEADER_LEN, BatchHeader, begin_batch, finish_batch},
};
use model::units::BLOCK;

#[derive(Debug)]
pub struct Journal {
    size: u64,
    /// Positions count on; the place in the ring is the position modulo the size.
    head: u64,
    tail: u64,
    tail_lsn: u64,
    next_lsn: u64,
    /// The last LSN of the batch written last.
    last_lsn: u64,
    durable_lsn: u64,
    batches: VecDeque<Span>,
}

#[derive(Debug, Clone, Copy)]
pub struct Span {
    pub start: u64,
    pub end: u64,
    pub last_lsn: u64,
}

/// How far the journal is released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    pub position: u64,
    pub lsn: u64,
}

/// What recovery found.
#[derive(Debug)]
pub struct Found {
    pub tail: Tail,
    pub head: u64,
    pub last_lsn: u64,
    pub next_lsn: u64,
    pub batches: VecDeque<Span>,
}

/// Where a batch may begin that would otherwise begin at `position`.
pub fn batch_start(position: u64, size: u64) -> u64 {
    let left = size - position % size;
    if left < u64::from(BATCH_BYTES_MAX) { position + left } else { position }
}

impl Journal {
    pub fn new(size: u64, found: Found) -> Self {
        Self {
            size,
            head: found.head,
            tail: found.tail.position,
            tail_lsn: found.tail.lsn,
            next_lsn: found.next_lsn,
            last_lsn: found.last_lsn,
            durable_lsn: found.next_lsn - 1,
            batches: found.batches,
        }
    }

    pub fn used(&self) -> u64 {
        self.head - self.tail
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn durable_lsn(&self) -> u64 {
        self.durable_lsn
    }

    /// Of the record applied last.
    pub fn last_lsn(&self) -> u64 {
        self.last_lsn
    }

    pub fn tail(&self) -> Tail {
        Tail { position: self.tail, lsn: self.tail_lsn }
    }

    /// An empty batch with all the room there is.
    pub fn begin(&self) -> Batch {
        let start = batch_start(self.head, self.size);
        // Head and tail never meet, or a full ring would look empty.
        let free = (self.size - BLOCK).saturating_sub(start - self.tail);
        let room = free.min(u64::from(BATCH_BYTES_MAX)) / BLOCK;
        let mut head = BytesMut::with_capacity(BLOCK_LEN);
        begin_batch(&mut head);
        Batch {
            position: start,
            first_lsn: self.next_lsn,
            room: u32::try_from(room).expect("bounded"),
            head,
            payload: vec![Bytes::new()],
            payload_blocks: 0,
            records: 0,
            places: false,
        }
    }

    /// The batch is about to be written: returns the offset in the ring and its segments.
    pub fn issue(&mut self, uuid: DriveUuid, mut batch: Batch) -> (u64, Vec<Bytes>) {
        assert!(batch.records > 0, "an empty batch is not written");
        assert!(self.durable_lsn >= self.last_lsn, "one batch at a time");
        let header = BatchHeader {
            position: batch.position,
            first_lsn: batch.first_lsn,
            previous_lsn: self.last_lsn,
            durable_lsn: self.durable_lsn,
            head_blocks: 0,
            payload_blocks: u16::try_from(batch.payload_blocks).expect("bounded"),
            records: batch.records,
        };
        let head = finish_batch(batch.head, uuid, &header);
        let blocks = head.len() / BLOCK_LEN;
        let blocks = u64::try_from(blocks).expect("small") + u64::from(batch.payload_blocks);
        batch.payload[0] = head;
        self.head = batch.position + blocks * BLOCK;
        self.last_lsn = header.last_lsn();
        self.next_lsn = self.last_lsn + 1;
        let span = Span { start: batch.position, end: self.head, last_lsn: self.last_lsn };
        self.batches.push_back(span);
        (batch.position % self.size, batch.payload)
    }

    /// The batch written last is durable.
    pub fn wrote(&mut self) {
        self.durable_lsn = self.last_lsn;
    }

    /// The last LSN of the durable batches within about `bytes` from the tail on.
    pub fn cut(&self, bytes: u64) -> u64 {
        let whole = self.batches.iter().take_while(|span| span.last_lsn <= self.durable_lsn);
        let mut cut = self.tail_lsn;
        for span in whole {
            cut = span.last_lsn;
            if span.end - self.tail >= bytes {
                break;
            }
        }
        cut
    }

    /// Where the tail would be without the batches up to `lsn`.
    pub fn tail_after(&self, lsn: u64) -> Tail {
        let mut tail = self.tail();
        for span in &self.batches {
            if span.last_lsn > lsn {
                tail.position = span.start;
                return tail;
            }
            tail.lsn = span.last_lsn;
        }
        tail.position = self.head;
        tail
    }

    /// The superblock names `tail` durably.
    pub fn release(&mut self, tail: Tail) {
        while self.batches.front().is_some_and(|span| span.last_lsn <= tail.lsn) {
            self.batches.pop_front();
        }
        assert!(self.tail <= tail.position && tail.position <= self.head);
        self.tail = tail.position;
        self.tail_lsn = tail.lsn;
    }
}

/// A batch while it is made.
#[derive(Debug)]
pub struct Batch {
    position: u64,
    first_lsn: u64,
    /// Blocks.
    room: u32,
    pub head: BytesMut,
    /// The first is the head's place.
    payload: Vec<Bytes>,
    payload_blocks: u32,
    records: u16,
    /// A record refers to payload that was written elsewhere.
    pub places: bool,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Whether a record of at most this length with this many blocks still fits.
    pub fn fits(&self, record_len: usize, blocks: u32) -> bool {
        let head = (self.head.len() + record_len).div_ceil(BLOCK_LEN);
        let head = u32::try_from(head).expect("a head is small");
        head + self.payload_blocks + blocks <= self.room && self.records < u16::MAX
    }

    /// LSN of the record that is put next.
    pub fn next_lsn(&self) -> u64 {
        self.first_lsn + u64::from(self.records)
    }

    /// A record has been put into `head`; its payload follows.
    pub fn added(&mut self, payload: Option<Bytes>) {
        assert!(self.head.len() >= BATCH_HEADER_LEN);
        self.records += 1;
        if let Some(payload) = payload {
            assert_eq!(payload.len() % BLOCK_LEN, 0, "payload is whole blocks");
            self.payload_blocks += u32::try_from(payload.len() / BLOCK_LEN).expect("bounded");
            self.payload.push(payload);
        }
    }
}
