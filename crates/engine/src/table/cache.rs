//! Map and descriptor pages in memory: a bounded part of what is on the drive.
//!
//! Decides: which page makes room for another.
//! Does not: read or write pages, or know what they say.
//! Invariants: a page with changes that its image on the drive lacks stays, and so does one whose
//! image is being written, or that somebody waits with; the bound gives way only to these.

use std::cell::Cell;

use format::disk::page::PAGE_BODY_LEN;

use crate::sabotage::{Sabotage, is_on};

const NONE: u32 = u32::MAX;
/// Of a page in memory.
pub const FRAME_BYTES: u64 = (PAGE_BODY_LEN + size_of::<Frame>()) as u64;

#[derive(Debug)]
pub struct Cache {
    /// Of each page, the frame that holds it.
    frame_of: Vec<u32>,
    frames: Vec<Frame>,
    /// Frames that hold nothing.
    free: Vec<u32>,
    hand: usize,
    pinned: usize,
}

#[derive(Debug)]
pub struct Frame {
    page: u32,
    /// Of the last record applied.
    pub lsn: u64,
    pub body: Box<[u8; PAGE_BODY_LEN]>,
    /// Has changes that were not captured.
    pub dirty: bool,
    /// Its image is on its way to the drive: until it is there, the drive holds an older one.
    pub writing: bool,
    pins: u32,
    /// Looked at since the hand passed.
    touched: Cell<bool>,
}

impl Frame {
    fn may_go(&self) -> bool {
        let writing = self.writing && !is_on(Sabotage::PageDroppedEarly);
        self.page != NONE && !self.dirty && !writing && self.pins == 0
    }
}

impl Cache {
    pub fn new(pages: u32) -> Self {
        let pages = usize::try_from(pages).expect("fits memory");
        let (frames, free) = (Vec::new(), Vec::new());
        Self { frame_of: vec![NONE; pages], frames, free, hand: 0, pinned: 0 }
    }

    /// Pages in memory.
    pub fn len(&self) -> usize {
        self.frames.len() - self.free.len()
    }

    /// Pages that somebody waits with.
    pub fn pinned(&self) -> usize {
        self.pinned
    }

    pub fn holds(&self, page: u32) -> bool {
        self.frame_of[at(page)] != NONE
    }

    pub fn get(&self, page: u32) -> Option<&Frame> {
        let frame = self.frames.get(at(self.frame_of[at(page)]))?;
        frame.touched.set(true);
        Some(frame)
    }

    pub fn get_mut(&mut self, page: u32) -> Option<&mut Frame> {
        let frame = self.frames.get_mut(at(self.frame_of[at(page)]))?;
        frame.touched.set(true);
        Some(frame)
    }

    /// A frame of zeros for a page that has none, in the place of another if there are `max`.
    pub fn add(&mut self, page: u32, lsn: u64, max: usize) -> &mut Frame {
        assert!(!self.holds(page), "page {page} is in memory already");
        self.make_room(max);
        let index = match self.free.pop() {
            Some(index) => at(index),
            None => {
                self.frames.push(Frame {
                    page: NONE,
                    lsn: 0,
                    body: Box::new([0; PAGE_BODY_LEN]),
                    dirty: false,
                    writing: false,
                    pins: 0,
                    touched: Cell::new(false),
                });
                self.frames.len() - 1
            }
        };
        self.frame_of[at(page)] = u32::try_from(index).expect("frames are bounded");
        let frame = &mut self.frames[index];
        frame.page = page;
        frame.lsn = lsn;
        frame.body.fill(0);
        frame.touched.set(true);
        frame
    }

    /// Second chance: what was not looked at since the last time round goes.
    fn make_room(&mut self, max: usize) {
        let mut looks = 2 * self.frames.len();
        while self.len() >= max && looks > 0 {
            looks -= 1;
            self.hand = (self.hand + 1) % self.frames.len();
            let frame = &mut self.frames[self.hand];
            if frame.may_go() && !frame.touched.replace(false) {
                self.frame_of[at(frame.page)] = NONE;
                frame.page = NONE;
                self.free.push(u32::try_from(self.hand).expect("frames are bounded"));
            }
        }
        // What the bound gave way to is given back.
        while self.frames.len() > max && self.frames.last().is_some_and(|f| f.page == NONE) {
            self.frames.pop();
            let gone = u32::try_from(self.frames.len()).expect("frames are bounded");
            self.free.retain(|&index| index != gone);
        }
    }

    /// Returns whether the page is here to be pinned.
    pub fn pin(&mut self, page: u32) -> bool {
        let Some(frame) = self.get_mut(page) else { return false };
        frame.pins += 1;
        self.pinned += 1;
        true
    }

    pub fn unpin(&mut self, page: u32) {
        let frame = self.get_mut(page).expect("what is pinned stays");
        assert!(frame.pins > 0, "page {page} was not pinned");
        frame.pins -= 1;
        self.pinned -= 1;
    }
}

fn at(index: u32) -> usize {
    usize::try_from(index).expect("fits memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dirty_being_written_or_pinned_stays_and_the_rest_makes_room() {
        let mut cache = Cache::new(100);
        for page in 0..4 {
            cache.add(page, u64::from(page), 4).body[0] = u8::try_from(page).expect("small");
        }
        cache.get_mut(0).expect("here").dirty = true;
        cache.get_mut(1).expect("here").writing = true;
        cache.pin(2);
        assert!(cache.add(50, 9, 4).body.iter().all(|&byte| byte == 0));
        assert!([0, 1, 2, 50].into_iter().all(|page| cache.holds(page)) && !cache.holds(3));
        // Nothing may go: the bound gives way, and is kept again later.
        cache.pin(50);
        cache.add(51, 1, 4);
        assert_eq!((cache.len(), cache.pinned()), (5, 2));
        cache.unpin(50);
        cache.unpin(2);
        cache.get_mut(0).expect("here").dirty = false;
        cache.add(52, 1, 4);
        assert_eq!(cache.len(), 4);
        assert!(cache.holds(1) && cache.holds(52));
        assert_eq!(cache.get(1).map(|frame| (frame.lsn, frame.body[0])), Some((1, 1)));
    }
}
