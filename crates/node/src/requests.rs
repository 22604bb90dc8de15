//! What programs have asked of one device and not been answered yet.
//!
//! Decides: when a part of a request may go out, and what the answer is once all parts are back.
//! Does not: know where parts go or how often they are sent (`session`).
//! Invariants:
//! - each request is answered once, or its asker is gone;
//! - a change goes out only while it holds its blocks (`ranges`);
//! - at most [`IN_FLIGHT_REQUESTS_MAX`] parts are out or wait for blocks, and no part is let out
//!   beyond [`IN_FLIGHT_BYTES_MAX`] bytes of them. The rest waits in a queue, whose length the
//!   fronts bound: each stops reading from its clients while too much of theirs is unanswered.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
};

use bytes::{Bytes, BytesMut};
use model::{
    limits::{IN_FLIGHT_BYTES_MAX, IN_FLIGHT_REQUESTS_MAX},
    units::BLOCK,
};

use crate::{
    api::{GuestError, GuestReply, GuestRequest, GuestToken},
    cut::{Cutter, Part, Work},
    ranges::Ranges,
};

/// A part that was let out, by the order in which parts were cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PartId(pub u64);

/// What a part asks of the primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    Read(Range<u64>),
    Write { offset: u64, data: Bytes },
    Zero(Range<u64>),
    Query(Range<u64>),
}

/// What requests cause, in order.
#[derive(Debug, Default)]
pub struct Effects {
    pub submit: Vec<(PartId, Operation)>,
    pub replies: Vec<(GuestToken, GuestReply)>,
}

#[derive(Debug, Default)]
pub struct Requests {
    /// By arrival.
    requests: BTreeMap<u64, Request>,
    tokens: BTreeMap<GuestToken, u64>,
    /// Requests of which parts are still to be cut.
    queue: VecDeque<u64>,
    parts: BTreeMap<PartId, Out>,
    bytes_out: u64,
    ranges: Ranges,
    requests_seen: u64,
    parts_cut: u64,
}

#[derive(Debug)]
struct Request {
    /// `None` when nobody waits for the answer any more.
    token: Option<GuestToken>,
    answer: Answer,
    /// What was asked, in bytes.
    asked: Range<u64>,
    cutter: Cutter,
    parts_out: usize,
    /// What came back of a read or query, by offset.
    pieces: BTreeMap<u64, Bytes>,
    error: Option<GuestError>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Done,
    Data,
    Blocks,
}

/// A part that is out, or waits for its blocks.
#[derive(Debug)]
struct Out {
    request: u64,
    part: Part,
    /// Of a patch: the block has been read and is being written.
    patched: bool,
}

impl Requests {
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Whether everything that had arrived before `mark` is answered.
    pub fn is_answered_before(&self, mark: u64) -> bool {
        self.requests.first_key_value().is_none_or(|(&first, _)| first >= mark)
    }

    /// Tells what has arrived by now from what arrives later.
    pub fn mark(&self) -> u64 {
        self.requests_seen
    }

    /// Takes a request for a device of `size` bytes.
    pub fn start(
        &mut self,
        token: GuestToken,
        request: GuestRequest,
        size: u64,
        effects: &mut Effects,
    ) {
        let (offset, length) = extent(&request);
        let end = offset.checked_add(length).filter(|&end| end <= size);
        let Some(end) = end else {
            effects.replies.push((token, GuestReply::Failed(GuestError::OutOfRange)));
            return;
        };
        let asked = offset..end;
        let (answer, cutter) = match request {
            // What is answered is durable, so there is nothing to wait for.
            GuestRequest::Flush => return effects.replies.push((token, GuestReply::Done)),
            GuestRequest::Read { .. } => (Answer::Data, Cutter::read(asked.clone())),
            GuestRequest::BlockStatus { .. } => (Answer::Blocks, Cutter::query(asked.clone())),
            GuestRequest::Write { offset, data } => (Answer::Done, Cutter::write(offset, data)),
            GuestRequest::WriteZeroes { .. } => (Answer::Done, Cutter::zero(asked.clone())),
            GuestRequest::Trim { .. } => (Answer::Done, Cutter::trim(asked.clone())),
        };
        let mut request = Request {
            token: Some(token),
            answer,
            asked,
            cutter,
            parts_out: 0,
            pieces: BTreeMap::new(),
            error: None,
        };
        if length == 0 {
            request.cutter.stop();
        }
        if request.cutter.is_done() {
            effects.replies.push((token, request.reply()));
            return;
        }
        let number = self.requests_seen;
        self.requests_seen += 1;
        let previous = self.tokens.insert(token, number);
        assert_eq!(previous, None, "a front used a token twice");
        self.requests.insert(number, request);
        self.queue.push_back(number);
        self.let_out(effects);
    }

    /// Nobody waits for these any more. What is out takes its course; the rest is not begun.
    pub fn forget(&mut self, tokens: &[GuestToken], effects: &mut Effects) {
        for token in tokens {
            let Some(number) = self.tokens.remove(token) else { continue };
            let request = self.requests.get_mut(&number).expect("tokens name requests");
            request.token = None;
            request.cutter.stop();
            self.finish_if_done(number, effects);
        }
        self.queue.retain(|number| self.requests.contains_key(number));
    }

    /// Everything is over: answers all with `Gone`.
    pub fn abandon(&mut self, effects: &mut Effects) {
        let gone = GuestReply::Failed(GuestError::Gone);
        for request in std::mem::take(&mut self.requests).into_values() {
            effects.replies.extend(request.token.map(|token| (token, gone.clone())));
        }
        self.tokens.clear();
        self.queue.clear();
        self.parts.clear();
        self.bytes_out = 0;
        self.ranges.clear();
    }

    /// The primary answered a part. The bytes are those asked for, already verified.
    pub fn complete(
        &mut self,
        id: PartId,
        result: Result<Bytes, GuestError>,
        effects: &mut Effects,
    ) {
        let out = self.parts.get_mut(&id).expect("parts are answered once");
        let number = out.request;
        if let (Ok(block), Work::Patch { at, data }, false) = (&result, &out.part.work, out.patched)
        {
            let data = patched(block, *at, data);
            out.patched = true;
            let offset = out.part.range.start;
            effects.submit.push((id, Operation::Write { offset, data }));
            return;
        }
        let out = self.parts.remove(&id).expect("looked up above");
        self.bytes_out -= out.part.bytes();
        let request = self.requests.get_mut(&number).expect("parts belong to requests");
        request.parts_out -= 1;
        match result {
            Ok(bytes) if request.answer != Answer::Done => {
                request.pieces.insert(out.part.range.start, bytes);
            }
            Ok(_) => {}
            Err(error) => {
                request.error = Some(error);
                request.cutter.stop();
            }
        }
        self.finish_if_done(number, effects);
        if out.part.work.is_change() {
            self.release(id, &out.part.range, effects);
        }
        self.let_out(effects);
    }

    fn finish_if_done(&mut self, number: u64, effects: &mut Effects) {
        let request = &self.requests[&number];
        if request.parts_out > 0 || !request.cutter.is_done() {
            return;
        }
        let request = self.requests.remove(&number).expect("looked up above");
        if let Some(token) = request.token {
            self.tokens.remove(&token);
            effects.replies.push((token, request.reply()));
        }
    }

    fn release(&mut self, id: PartId, range: &Range<u64>, effects: &mut Effects) {
        let mut granted = Vec::new();
        self.ranges.release(id, range, &mut granted);
        for id in granted {
            effects.submit.push((id, first_operation(&self.parts[&id].part)));
        }
    }

    /// Cuts parts as long as the limits allow, in the order of the requests.
    fn let_out(&mut self, effects: &mut Effects) {
        while self.parts.len() < IN_FLIGHT_REQUESTS_MAX
            && self.bytes_out < IN_FLIGHT_BYTES_MAX
            && let Some(&number) = self.queue.front()
        {
            let part = self.requests.get_mut(&number).and_then(|request| {
                let part = request.cutter.next_part()?;
                request.parts_out += 1;
                Some(part)
            });
            let Some(part) = part else {
                self.queue.pop_front();
                continue;
            };
            let id = PartId(self.parts_cut);
            self.parts_cut += 1;
            self.bytes_out += part.bytes();
            if !part.work.is_change() || self.ranges.acquire(id, part.range.clone()) {
                effects.submit.push((id, first_operation(&part)));
            }
            self.parts.insert(id, Out { request: number, part, patched: false });
        }
    }
}

impl Request {
    fn reply(self) -> GuestReply {
        if let Some(error) = self.error {
            return GuestReply::Failed(error);
        }
        match self.answer {
            Answer::Done => GuestReply::Done,
            Answer::Data => GuestReply::Data(joined(&self.asked, &self.pieces)),
            Answer::Blocks => GuestReply::Blocks(runs(&self.asked, &self.pieces)),
        }
    }
}

/// Offset and length of what is asked, zero for a flush.
fn extent(request: &GuestRequest) -> (u64, u64) {
    match request {
        GuestRequest::Read { offset, length } | GuestRequest::BlockStatus { offset, length } => {
            (*offset, u64::from(*length))
        }
        GuestRequest::Write { offset, data } => {
            (*offset, u64::try_from(data.len()).expect("usize fits u64"))
        }
        GuestRequest::Trim { offset, length } | GuestRequest::WriteZeroes { offset, length } => {
            (*offset, *length)
        }
        GuestRequest::Flush => (0, 0),
    }
}

fn first_operation(part: &Part) -> Operation {
    let range = part.range.clone();
    match &part.work {
        Work::Read | Work::Patch { .. } => Operation::Read(range),
        Work::Write(data) => Operation::Write { offset: range.start, data: data.clone() },
        Work::Zero => Operation::Zero(range),
        Work::Query => Operation::Query(range),
    }
}

fn patched(block: &[u8], at: u64, data: &[u8]) -> Bytes {
    let at = usize::try_from(at).expect("within a block");
    let mut whole = BytesMut::from(block);
    whole[at..at + data.len()].copy_from_slice(data);
    whole.freeze()
}

/// The bytes asked for, out of pieces that cover their blocks. A single piece is not copied.
fn joined(asked: &Range<u64>, pieces: &BTreeMap<u64, Bytes>) -> Bytes {
    let Some((&first, piece)) = pieces.first_key_value() else { return Bytes::new() };
    let index = |at: u64| usize::try_from(at - first).expect("an index into data in memory");
    let wanted = index(asked.start)..index(asked.end);
    if pieces.len() == 1 {
        return piece.slice(wanted);
    }
    let mut whole = BytesMut::with_capacity(wanted.end);
    for piece in pieces.values() {
        whole.extend_from_slice(piece);
    }
    whole.freeze().slice(wanted)
}

/// Runs of `(length, is_hole)`, out of bitmaps of the blocks that hold data.
fn runs(asked: &Range<u64>, bitmaps: &BTreeMap<u64, Bytes>) -> Vec<(u32, bool)> {
    let mut runs: Vec<(u32, bool)> = Vec::new();
    let mut at = asked.start;
    for (&first, bitmap) in bitmaps {
        // The last byte of a bitmap may have bits to spare; the next piece begins before them.
        let next = bitmaps.range(first + 1..).next().map_or(asked.end, |(&next, _)| next);
        while at < next {
            let block = (at - first) / BLOCK;
            let byte = usize::try_from(block / 8).expect("an index into a bitmap in memory");
            let is_hole = bitmap[byte] & (1 << (block % 8)) == 0;
            let end = (first + (block + 1) * BLOCK).min(next);
            let length = u32::try_from(end - at).expect("at most a block");
            match runs.last_mut() {
                Some((run, kind)) if *kind == is_hole => *run += length,
                _ => runs.push((length, is_hole)),
            }
            at = end;
        }
    }
    runs
}
