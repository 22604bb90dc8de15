//! Reads of a hard disk that wait for their turn.
//!
//! Decides: how many reads are with the drive at once, and which goes next. They go in sweeps over
//! the drive, each upwards from the lowest: requests in the order in which they lie, then what is
//! merged. What comes later and lies ahead joins the sweep, what lies behind waits for the next.
//! Does not: know what is read, or hold back writes.
//! Invariants: no read waits for ever, however many come later and lie nearer: when a sweep has
//! taken [`NEWCOMERS_MAX`] more than waited when it began, nobody joins it any more; whatever waits
//! was accepted, so as much as that is bounded.

use std::collections::BTreeMap;

use crate::drive::Io;

/// With the drive at once: enough that it never idles and can save a turn, few enough that the
/// order is this one.
const WITH_DRIVE_MAX: usize = 4;
const NEWCOMERS_MAX: usize = 32;

#[derive(Debug, Default)]
pub struct Reads {
    with_drive: usize,
    waiting: BTreeMap<Place, Waiting>,
    sweep: u64,
    /// How many go before nobody joins the sweep any more.
    open_for: usize,
    /// Where the last one ended that went to the drive.
    head: u64,
    /// Reads so far.
    number: u64,
}

/// In this order they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    sweep: u64,
    is_merge: bool,
    offset: u64,
    number: u64,
}

/// A read that is not with the drive.
#[derive(Debug)]
pub struct Waiting {
    pub io: Io,
    pub offset: u64,
    pub length: u32,
}

impl Reads {
    pub fn push(&mut self, read: Waiting) {
        let is_merge = matches!(read.io, Io::Merge(_));
        let joins = !is_merge && self.open_for > 0 && read.offset >= self.head;
        let sweep = if joins { self.sweep } else { self.sweep + 1 };
        self.number += 1;
        let place = Place { sweep, is_merge, offset: read.offset, number: self.number };
        self.waiting.insert(place, read);
    }

    /// The read that goes to the drive now, if one may.
    pub fn next(&mut self) -> Option<Waiting> {
        if self.with_drive == WITH_DRIVE_MAX {
            return None;
        }
        let (place, read) = self.waiting.pop_first()?;
        if place.sweep > self.sweep {
            self.sweep = place.sweep;
            self.open_for = self.waiting.len() + NEWCOMERS_MAX;
        }
        self.open_for = self.open_for.saturating_sub(1);
        self.head = read.offset + u64::from(read.length);
        self.with_drive += 1;
        Some(read)
    }

    /// One has come back from the drive.
    pub fn ended(&mut self) {
        self.with_drive -= 1;
    }
}
