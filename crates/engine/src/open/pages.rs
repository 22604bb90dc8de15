//! The pages that an opening reads: rows and maps all of them, descriptors where the journal's
//! records change them.

use std::collections::BTreeMap;

use bytes::Bytes;
use format::disk::{
    BLOCK_LEN, FormatVersion,
    page::{PageKind, decode_page, fingerprint},
};
use model::units::{BLOCK, BLOCK_BYTES};

use super::{LOADS_MAX, Opening, Progress, Step, is_zero, newest, step};
use crate::{
    api::{Action, IoToken},
    sabotage::{Sabotage, is_on},
    table::Fetched,
};

impl Opening {
    pub(super) fn pages_len(&self, first: u32) -> u32 {
        step(u64::from(self.pages_end() - first) * BLOCK)
    }

    /// Behind the last page to be read that was ever written.
    pub(super) fn pages_end(&self) -> u32 {
        self.layout.replica_pages.saturating_add(self.superblock.pages_written)
    }

    pub(super) fn read_pages(&mut self, first: u32, out: &mut Vec<Action>) {
        let length = self.pages_len(first);
        self.read(self.layout.page_offset(first, 0), length, out);
        self.step = Step::Pages { first, a: None };
    }

    pub(super) fn take_pages(&mut self, first: u32, a: &Bytes, b: &Bytes, out: &mut Vec<Action>) {
        let halves = a.chunks_exact(BLOCK_LEN).zip(b.chunks_exact(BLOCK_LEN));
        for (page, (a, b)) in (first..).zip(halves) {
            self.take_page(page, [a, b]);
        }
        let next = first + self.pages_len(first) / BLOCK_BYTES;
        if next < self.pages_end() {
            self.read_pages(next, out);
            return;
        }
        // Whatever half counted when the superblock was written must still be there.
        self.replay.damaged |= self.fingerprint != self.superblock.pages_fingerprint;
        self.chain.known_durable = self.chain.known_durable.max(self.superblock.durable_lsn);
        self.chain.position = self.superblock.tail;
        self.chain.last_lsn = self.superblock.tail_lsn;
        self.chain.applied_lsn = self.superblock.tail_lsn;
        self.read_chain(out);
    }

    pub(super) fn take_page(&mut self, page: u32, halves: [&[u8]; 2]) {
        let uuid = self.superblock.uuid;
        let kind = self.layout.kind_of(page);
        let decoded = halves.map(|half| decode_page(uuid, kind, page, half).ok());
        for (header, _) in decoded.iter().flatten() {
            // It was written when its records were durable, whether or not it counts.
            self.chain.known_durable = self.chain.known_durable.max(header.lsn);
            self.checkpoint_seen = self.checkpoint_seen.max(header.checkpoint);
        }
        let counted = newest(&decoded, self.superblock.checkpoint);
        if let Some(half) = counted {
            self.fingerprint ^= fingerprint(halves[half]);
        }
        let last = newest(&decoded, u64::MAX);
        // A map that was written after the superblock may name halves that were lost in the crash.
        let is_strict = kind == PageKind::Map && !is_on(Sabotage::LeftOverMapCounts);
        let chosen = if is_strict { counted } else { last };
        let is_left_over = last != counted || last.is_none() && !halves.iter().all(|h| is_zero(h));
        if is_left_over {
            self.replay.table.rewrite(page);
        }
        // Never written, or its first write was torn. Had it counted, the fingerprint would tell.
        let Some(half) = chosen else { return };
        let (header, body) = decoded[half].expect("it was chosen because it is valid");
        // In version 1 the newest half counts from now on. In version 2 it is written over.
        let kept = if self.layout.version == FormatVersion::V1 { last } else { counted };
        let kept =
            kept.map(|half| (u8::try_from(half).expect("0 or 1"), fingerprint(halves[half])));
        self.replay.damaged |= !self.replay.table.load(&header, kept, body);
    }

    /// Then the batches are applied.
    pub(super) fn load_wanted(&mut self, out: &mut Vec<Action>) {
        let left: Vec<u32> = self.replay.wants().into_iter().rev().collect();
        let reading = BTreeMap::new();
        self.step = Step::Load { left, reading };
        self.load_more(out);
    }

    pub(super) fn load_more(&mut self, out: &mut Vec<Action>) {
        loop {
            let Step::Load { left, reading } = &mut self.step else { unreachable!("the caller's") };
            if reading.len() == LOADS_MAX {
                return;
            }
            let Some(page) = left.pop() else { break };
            let place = self.replay.table.table.place_on_drive(page).expect("it is absent");
            reading.insert(IoToken(self.token), page);
            self.read(place, BLOCK_BYTES, out);
        }
        if let Step::Load { left, reading } = &self.step
            && left.is_empty()
            && reading.is_empty()
        {
            self.replay.apply_all();
            self.settle(out);
        }
    }

    pub(super) fn take_loaded(
        &mut self,
        token: IoToken,
        bytes: &Bytes,
        out: &mut Vec<Action>,
    ) -> Progress {
        let Step::Load { reading, .. } = &mut self.step else { unreachable!("the caller looked") };
        let page = reading.remove(&token).expect("a completion answers what is under way");
        let table = &mut self.replay.table.table;
        let fetched = table.fetched(self.superblock.uuid, page, Some(bytes));
        if fetched == Fetched::Lost && page < self.layout.first_descriptor_page() {
            return Progress::Failed(
                "the drive returned a page and then another in its place".into(),
            );
        }
        self.load_more(out);
        Progress::More
    }
}
