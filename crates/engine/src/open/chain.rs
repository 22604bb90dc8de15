//! The journal: batches from the tail on, as long as each follows the last, and whether the last
//! one counts.

use bytes::Bytes;
use format::disk::{BATCH_BYTES_MAX, BLOCK_LEN, DiskError, journal::decode_batch};
use model::units::{BLOCK, BLOCK_BYTES};

use super::{Opening, SCAN_BYTES_MAX, Step, step};
use crate::{
    api::Action,
    journal::{Span, batch_start},
    replay::{Batch, Relied},
    sabotage::{Sabotage, is_on},
};

impl Opening {
    pub(super) fn read_chain(&mut self, out: &mut Vec<Action>) {
        self.chain.position = batch_start(self.chain.position, self.layout.journal_bytes);
        let at = self.chain.position % self.layout.journal_bytes;
        self.read_journal(at, BATCH_BYTES_MAX, out);
        self.step = Step::Chain;
    }

    pub(super) fn take_window(&mut self, window: &Bytes, out: &mut Vec<Action>) {
        let mut at = 0;
        loop {
            let position = self.chain.position;
            if at > 0 && batch_start(position, self.layout.journal_bytes) != position {
                return self.read_chain(out);
            }
            match self.next_batch(window.slice(at..)) {
                Next::Batch(batch) => {
                    at += usize::try_from(batch.header.batch_bytes()).expect("bounded");
                    self.hold(batch);
                }
                Next::Cut if at > 0 => return self.read_chain(out),
                Next::Cut | Next::None => break,
            }
        }
        // Later batches lie behind the first that is missing.
        let at = self.chain.position % self.layout.journal_bytes;
        let left = self.layout.journal_bytes.min(SCAN_BYTES_MAX);
        self.read_scan(at, left, out);
    }

    /// The batch at the chain's position, if it is the one that follows.
    fn next_batch(&self, bytes: Bytes) -> Next {
        let (header, records) = match decode_batch(self.superblock.uuid, &bytes) {
            Ok(found) => found,
            Err(DiskError::Short) => return Next::Cut,
            Err(_) => return Next::None,
        };
        let follows = header.position == self.chain.position
            && header.previous_lsn == self.chain.last_lsn
            && header.first_lsn > self.chain.last_lsn
            && header.position + header.batch_bytes() - self.superblock.tail
                <= self.layout.journal_bytes;
        if !follows {
            return Next::None;
        }
        let head = usize::from(header.head_blocks) * BLOCK_LEN;
        let end = head + usize::from(header.payload_blocks) * BLOCK_LEN;
        if end > bytes.len() {
            return Next::Cut;
        }
        Next::Batch(Batch { header, records, payload: bytes.slice(head..end) })
    }

    /// Another batch was found: the one before it was durable when this one was written.
    fn hold(&mut self, batch: Batch) {
        self.count_held();
        self.chain.position = batch.end();
        self.chain.last_lsn = batch.header.last_lsn();
        self.chain.known_durable = self.chain.known_durable.max(batch.header.durable_lsn);
        self.chain.held = Some(batch);
    }

    fn count_held(&mut self) {
        let Some(batch) = self.chain.held.take() else { return };
        let last_lsn = batch.header.last_lsn();
        let (start, end) = (batch.header.position, batch.end());
        self.chain.spans.push_back(Span { start, end, last_lsn });
        self.chain.applied_lsn = last_lsn;
        self.replay.add(batch);
    }

    fn read_scan(&mut self, at: u64, left: u64, out: &mut Vec<Action>) {
        let length = step(left.min(self.layout.journal_bytes - at));
        self.read_journal(at, length, out);
        self.step = Step::Scan { at, left };
    }

    /// A whole batch that was written after the first missing one means that the missing one was
    /// durable once.
    pub(super) fn take_scan(&mut self, at: u64, left: u64, bytes: &Bytes, out: &mut Vec<Action>) {
        let len = u64::try_from(bytes.len()).expect("fits");
        let is_last = len == left || at + len == self.layout.journal_bytes;
        let mut done = bytes.len();
        for from in (0..bytes.len()).step_by(BLOCK_LEN) {
            match decode_batch(self.superblock.uuid, &bytes[from..]) {
                Ok((header, _)) if header.previous_lsn > self.chain.last_lsn => {
                    self.replay.damaged = true;
                    self.chain.highest_seen = self.chain.highest_seen.max(header.last_lsn());
                }
                // A head that goes on behind what was read: read it again, from there.
                Err(DiskError::Short) if from > 0 && !is_last => {
                    done = from;
                    break;
                }
                _ => {}
            }
        }
        let done = u64::try_from(done).expect("fits");
        if left > done {
            let at = (at + done) % self.layout.journal_bytes;
            return self.read_scan(at, left - done, out);
        }
        if is_on(Sabotage::SealIgnored) {
            self.replay.damaged = false;
            self.chain.known_durable = 0;
        }
        self.replay.damaged |= self.chain.last_lsn < self.chain.known_durable;
        self.judge_held(out);
    }

    /// The last batch counts if it was durable, or if all it relies on is on the drive.
    fn judge_held(&mut self, out: &mut Vec<Action>) {
        let Some(held) = &self.chain.held else { return self.load_wanted(out) };
        let durable = self.replay.damaged
            || held.header.last_lsn() <= self.chain.known_durable
            || is_on(Sabotage::LastBatchUnchecked);
        if durable {
            self.count_held();
            self.load_wanted(out);
        } else if !held.payload_is_whole() {
            self.drop_held(out);
        } else {
            let mut left = held.relied_on();
            left.reverse();
            self.verify(left, out);
        }
    }

    fn verify(&mut self, left: Vec<Relied>, out: &mut Vec<Action>) {
        let Some(next) = left.last() else {
            self.count_held();
            return self.load_wanted(out);
        };
        let inside =
            next.slot < self.layout.slots && next.first + next.count() <= self.layout.slot_blocks;
        if !inside {
            return self.drop_held(out);
        }
        let at = self.layout.slot_offset(next.slot) + u64::from(next.first) * BLOCK;
        self.read(at, next.count() * BLOCK_BYTES, out);
        self.step = Step::Verify { left };
    }

    pub(super) fn take_verify(
        &mut self,
        mut left: Vec<Relied>,
        bytes: &Bytes,
        out: &mut Vec<Action>,
    ) {
        let run = left.pop().expect("its blocks were read");
        if run.is_held_by(bytes) {
            self.verify(left, out);
        } else {
            self.drop_held(out);
        }
    }

    fn drop_held(&mut self, out: &mut Vec<Action>) {
        let held = self.chain.held.take().expect("it is being judged");
        self.chain.position = held.header.position;
        self.chain.last_lsn = self.chain.applied_lsn;
        self.load_wanted(out);
    }
}

enum Next {
    Batch(Batch),
    /// It may go on behind what was read.
    Cut,
    None,
}
