//! Cutting a guest's request into parts that the wire carries.
//!
//! Decides: where the cuts are. Invariants: parts cover whole blocks, do not overlap, and cover
//! exactly what the request asks for; no part but a zero or a query is longer than
//! [`TRANSFER_BYTES_MAX`], and none crosses a multiple of its longest length.

use std::ops::Range;

use bytes::Bytes;
use model::{
    limits::TRANSFER_BYTES_MAX,
    units::{BLOCK, BLOCK_BYTES},
};

/// Longest range zeroed by one request.
pub const ZERO_BYTES_MAX: u64 = 256 << 20;
/// Longest range queried by one request.
pub const QUERY_BYTES_MAX: u64 = 1 << 30;

static ZEROS: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];

/// What is still to be cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cutter {
    source: Source,
    /// Where the next part begins, and where the last one ends.
    rest: Range<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Read,
    /// The data begins at `offset`.
    Write {
        offset: u64,
        data: Bytes,
    },
    Zero,
    Query,
}

/// One piece of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// In bytes, whole blocks.
    pub range: Range<u64>,
    pub work: Work,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    Read,
    Write(Bytes),
    /// Read one block, put `data` at `at` within it, write it.
    Patch {
        at: u64,
        data: Bytes,
    },
    Zero,
    Query,
}

impl Work {
    /// Whether it needs its blocks for itself.
    pub fn is_change(&self) -> bool {
        matches!(self, Self::Write(_) | Self::Patch { .. } | Self::Zero)
    }
}

impl Part {
    /// What it counts for in the bytes in flight.
    pub fn bytes(&self) -> u64 {
        match self.work {
            Work::Read | Work::Write(_) | Work::Patch { .. } => self.range.end - self.range.start,
            Work::Zero => 0,
            Work::Query => (self.range.end - self.range.start) / BLOCK / 8,
        }
    }
}

impl Cutter {
    pub fn read(range: Range<u64>) -> Self {
        Self { source: Source::Read, rest: cover(range) }
    }

    pub fn query(range: Range<u64>) -> Self {
        Self { source: Source::Query, rest: cover(range) }
    }

    pub fn write(offset: u64, data: Bytes) -> Self {
        let end = offset + u64::try_from(data.len()).expect("usize fits u64");
        Self { source: Source::Write { offset, data }, rest: offset..end }
    }

    /// Zeroes exactly this, partial blocks included.
    pub fn zero(range: Range<u64>) -> Self {
        Self { source: Source::Zero, rest: range }
    }

    /// Zeroes the whole blocks within.
    pub fn trim(range: Range<u64>) -> Self {
        let start = range.start.next_multiple_of(BLOCK);
        let end = floor(range.end, BLOCK);
        Self { source: Source::Zero, rest: start..end.max(start) }
    }

    pub fn is_done(&self) -> bool {
        self.rest.is_empty()
    }

    /// No more parts are wanted.
    pub fn stop(&mut self) {
        self.rest = 0..0;
    }

    /// The next part, if there is any.
    pub fn next_part(&mut self) -> Option<Part> {
        if self.rest.is_empty() {
            return None;
        }
        let start = self.rest.start;
        let (asked, part) = match &self.source {
            Source::Read => self.whole(start, u64::from(TRANSFER_BYTES_MAX), |_| Work::Read),
            Source::Query => self.whole(start, QUERY_BYTES_MAX, |_| Work::Query),
            Source::Write { offset, data } => {
                let slice = |range: Range<u64>| data.slice(within(*offset, &range));
                match self.partial() {
                    Some(asked) => patch(asked.clone(), slice(asked)),
                    None => self.whole(start, u64::from(TRANSFER_BYTES_MAX), |range| {
                        Work::Write(slice(range))
                    }),
                }
            }
            Source::Zero => match self.partial() {
                Some(asked) => {
                    let zeros = Bytes::from_static(&ZEROS).slice(within(asked.start, &asked));
                    patch(asked, zeros)
                }
                None => self.whole(start, ZERO_BYTES_MAX, |_| Work::Zero),
            },
        };
        self.rest.start = asked.end;
        Some(part)
    }

    /// What is asked of the next block, if that is only a part of it.
    fn partial(&self) -> Option<Range<u64>> {
        let block = floor(self.rest.start, BLOCK);
        let end = self.rest.end.min(block + BLOCK);
        (self.rest.start != block || end != block + BLOCK).then_some(self.rest.start..end)
    }

    fn whole(
        &self,
        start: u64,
        bytes_max: u64,
        work: impl FnOnce(Range<u64>) -> Work,
    ) -> (Range<u64>, Part) {
        let boundary = floor(start, bytes_max) + bytes_max;
        let range = start..floor(self.rest.end, BLOCK).min(boundary);
        (range.clone(), Part { range: range.clone(), work: work(range) })
    }
}

fn patch(asked: Range<u64>, data: Bytes) -> (Range<u64>, Part) {
    let block = floor(asked.start, BLOCK);
    let at = asked.start - block;
    (asked, Part { range: block..block + BLOCK, work: Work::Patch { at, data } })
}

fn floor(value: u64, unit: u64) -> u64 {
    value - value % unit
}

fn cover(range: Range<u64>) -> Range<u64> {
    floor(range.start, BLOCK)..range.end.next_multiple_of(BLOCK)
}

/// `range` as indexes into data that begins at `offset`.
fn within(offset: u64, range: &Range<u64>) -> Range<usize> {
    let index = |at: u64| usize::try_from(at - offset).expect("an index into data in memory");
    index(range.start)..index(range.end)
}
