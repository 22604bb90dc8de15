//! Pages of metadata that requests need and memory lacks.
//!
//! Decides: which pages are read, who waits for them, who goes on when they are here.
//! Does not: know what is done with a page.
//! Invariants: a page is read once for all who wait for it; pages that came for a request stay until
//! it was tried again; how many wait so is bounded, but one request always gets what it needs.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use format::disk::layers::LAYERS_MAX;
use model::units::BLOCK_BYTES;

use crate::{
    api::{Action, DriveError, OpToken},
    change::{Entry, Work},
    describe::Inquiry,
    drive::{Drive, Io},
    read::ReadRequest,
};

/// Pages that one request waits for at once.
pub const PAGES_MAX: usize = 80;

#[derive(Debug, Default)]
pub struct Fetching {
    /// Being read, with those who wait.
    pages: BTreeMap<u32, Vec<Waiter>>,
    parked: BTreeMap<Waiter, Parked>,
    /// Not begun yet: others wait with as many pages as may be.
    backlog: VecDeque<(Waiter, Waiting, Vec<u32>)>,
    pages_read: u64,
}

impl Fetching {
    pub fn pages_read(&self) -> u64 {
        self.pages_read
    }

    /// The changes among those who wait.
    pub fn changes(&self) -> impl Iterator<Item = &Entry> {
        let parked = self.parked.values().map(|parked| &parked.waiting);
        let all = parked.chain(self.backlog.iter().map(|(_, waiting, _)| waiting));
        all.filter_map(|waiting| match waiting {
            Waiting::Change(entry) => Some(entry),
            _ => None,
        })
    }
}

#[derive(Debug)]
struct Parked {
    waiting: Waiting,
    pages: Vec<u32>,
    missing: usize,
}

/// Who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Waiter {
    Request(OpToken),
    /// Layers that merge.
    Merge,
}

/// What goes on when its pages are here.
#[derive(Debug)]
pub enum Waiting {
    Change(Entry),
    Read(ReadRequest),
    Inquiry(Inquiry),
    Merge,
}

impl Drive {
    /// The request goes on when these pages are in memory.
    pub fn park(&mut self, op: OpToken, waiting: Waiting, pages: Vec<u32>, out: &mut Vec<Action>) {
        self.park_waiter(Waiter::Request(op), waiting, pages, out);
    }

    /// The merging of layers goes on when these pages are in memory.
    pub fn park_merge(&mut self, pages: Vec<u32>, out: &mut Vec<Action>) {
        self.park_waiter(Waiter::Merge, Waiting::Merge, pages, out);
    }

    fn park_waiter(
        &mut self,
        op: Waiter,
        waiting: Waiting,
        pages: Vec<u32>,
        out: &mut Vec<Action>,
    ) {
        let max = PAGES_MAX * (LAYERS_MAX + 1) + 4;
        assert!(!pages.is_empty() && pages.len() <= max, "{} pages", pages.len());
        let is_first = self.fetching.parked.is_empty() && self.fetching.backlog.is_empty();
        if !is_first {
            self.fetching.backlog.push_back((op, waiting, pages));
            return self.begin_waiting(out);
        }
        self.begin_parked(op, waiting, pages, out);
    }

    fn begin_waiting(&mut self, out: &mut Vec<Action>) {
        while let Some((_, _, pages)) = self.fetching.backlog.front() {
            let fits = self.table.pinned() + pages.len() <= self.table.pinned_max();
            if !fits && !self.fetching.parked.is_empty() {
                return;
            }
            let (op, waiting, pages) = self.fetching.backlog.pop_front().expect("looked at");
            self.begin_parked(op, waiting, pages, out);
        }
    }

    fn begin_parked(
        &mut self,
        op: Waiter,
        waiting: Waiting,
        mut pages: Vec<u32>,
        out: &mut Vec<Action>,
    ) {
        let mut missing = 0;
        pages.retain(|&page| {
            if !self.table.is_absent(page) {
                return self.table.pin(page);
            }
            self.fetch(page, out);
            self.fetching.pages.get_mut(&page).expect("it is being read").push(op);
            missing += 1;
            true
        });
        let before = self.fetching.parked.insert(op, Parked { waiting, pages, missing });
        assert!(before.is_none(), "{op:?} waits once");
        if missing == 0 {
            self.resume(op, out);
        }
    }

    /// Reads the page, if that is not under way.
    pub fn fetch(&mut self, page: u32, out: &mut Vec<Action>) {
        if self.fetching.pages.contains_key(&page) {
            return;
        }
        self.fetching.pages.insert(page, Vec::new());
        self.fetching.pages_read += 1;
        let place = self.table.place_on_drive(page).expect("a page that is absent was written");
        self.ios.read(Io::Fetch(page), place, BLOCK_BYTES, out);
    }

    pub fn page_arrived(
        &mut self,
        page: u32,
        result: Result<Bytes, DriveError>,
        out: &mut Vec<Action>,
    ) {
        let waiters = self.fetching.pages.remove(&page).expect("it was being read");
        // What cannot be read is lost: its blocks are damaged, and no others.
        self.table.fetched(self.superblock.uuid, page, result.ok().as_deref());
        let mut ready = Vec::new();
        for op in waiters {
            assert!(self.table.pin(page), "it has just come");
            let parked = self.fetching.parked.get_mut(&op).expect("it waits");
            parked.missing -= 1;
            if parked.missing == 0 {
                ready.push(op);
            }
        }
        for op in ready {
            self.resume(op, out);
        }
        self.begin_waiting(out);
    }

    fn resume(&mut self, waiter: Waiter, out: &mut Vec<Action>) {
        let parked = self.fetching.parked.remove(&waiter).expect("it waits");
        let Parked { waiting, pages, .. } = parked;
        let Waiter::Request(op) = waiter else { return self.merging.resume(pages) };
        match waiting {
            Waiting::Change(mut entry) => {
                entry.pins = pages;
                self.queue.push_front(entry);
                return;
            }
            Waiting::Read(request) => self.read(op, request, out),
            Waiting::Inquiry(inquiry) => self.inquire(op, inquiry, out),
            Waiting::Merge => unreachable!("no request"),
        }
        self.unpin(pages);
    }

    pub fn unpin(&mut self, pages: Vec<u32>) {
        pages.into_iter().for_each(|page| self.table.unpin(page));
    }

    /// The pages that describe `slots`, up to as many as one request waits for at once.
    pub fn pages_of(&self, slots: impl Iterator<Item = u32>) -> Vec<u32> {
        self.pages_up_to(PAGES_MAX, slots)
    }

    /// The pages that describe `slots`, up to `max`.
    pub fn pages_up_to(&self, max: usize, slots: impl Iterator<Item = u32>) -> Vec<u32> {
        let mut pages = Vec::new();
        for page in slots.map(|slot| self.table.descriptor_page(slot)) {
            if pages.last() != Some(&page) && !pages.contains(&page) {
                pages.push(page);
                if pages.len() == max {
                    break;
                }
            }
        }
        pages
    }

    /// Whether the page that describes the slot is not in memory.
    pub fn is_undescribed(&self, slot: u32) -> bool {
        self.table.is_absent(self.table.descriptor_page(slot))
    }

    /// Whether one of them is not in memory. Who waits for it waits with the others too, so that
    /// these do not make room for it.
    pub fn lacks(&self, pages: &[u32]) -> bool {
        pages.iter().any(|&page| self.table.is_absent(page))
    }

    /// The change needs `pages`; what else it is going to need comes with them.
    pub fn park_change(&mut self, entry: Entry, mut pages: Vec<u32>, out: &mut Vec<Action>) {
        let (from, to) = match &entry.work {
            Work::Write(write) => {
                let done = u64::try_from(write.done).expect("fits");
                let len = u64::try_from(write.data.len()).expect("fits");
                (write.offset + done, write.offset + len)
            }
            Work::Install(install) => {
                let left = &install.units[install.next..];
                let at = |meta: Option<&format::data::UnitMeta>| meta.map_or(0, |m| m.offset);
                (at(left.first()), at(left.last()) + 1)
            }
            Work::Zero { offset, end, .. } => (*offset, *end),
            Work::Create { .. }
            | Work::Remove
            | Work::SetMeta { .. }
            | Work::Freeze { .. }
            | Work::Release { .. } => (0, 0),
        };
        if from < to {
            let (first, last) = (self.extent_and_block(from).0, self.extent_and_block(to - 1).0);
            let slots = self.table.slots(entry.replica, first, last);
            let more = self.pages_of(slots);
            pages.extend(more);
            pages.sort_unstable();
            pages.dedup();
        }
        self.park(entry.op, Waiting::Change(entry), pages, out);
    }
}
