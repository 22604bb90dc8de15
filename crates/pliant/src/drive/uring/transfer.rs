//! A transfer that is with the kernel, and how far it is.

use std::{io, vec};

use bytes::{Buf, Bytes};
use engine::api::{Durability, IoToken, Urgency};

use super::ring::Pool;
use crate::drive::{
    buffer::{ALIGN, AlignedBuffer},
    file::DriveFile,
};

#[derive(Debug)]
pub(super) enum Transfer {
    Read { token: IoToken, offset: u64, length: usize, buffer: AlignedBuffer },
    Write(Write),
}

#[derive(Debug)]
pub(super) struct Write {
    pub(super) token: IoToken,
    /// Of what the place holds.
    pub(super) offset: u64,
    pub(super) place: Place,
    /// Of the place's bytes.
    pub(super) done: usize,
    pub(super) segment: Bytes,
    pub(super) segments: vec::IntoIter<Bytes>,
    pub(super) left: usize,
    pub(super) durability: Durability,
    /// Each of its transfers ends only when its bytes are stable.
    pub(super) by_itself: bool,
    pub(super) urgency: Urgency,
}

/// Where the bytes lie that are being written.
#[derive(Debug)]
pub(super) enum Place {
    Buffer(usize),
    /// Where they came: aligned and one behind the other.
    Here {
        segments: Vec<Bytes>,
        length: usize,
    },
}

impl Write {
    pub(super) fn is_behind(&self) -> bool {
        is_behind(self.durability, self.urgency)
    }

    /// It is durable only after an `fdatasync`.
    pub(super) fn is_for_sync(&self) -> bool {
        self.durability != Durability::Later && !self.by_itself
    }

    /// Puts what comes next into the buffer, if it has one.
    pub(super) fn fill(&mut self, pool: &mut Pool) {
        let Place::Buffer(number) = self.place else { return };
        let buffer = &mut pool.buffers()[number];
        buffer.truncate(0);
        self.done = 0;
        loop {
            let copied = buffer.fill(&self.segment);
            self.segment.advance(copied);
            self.left -= copied;
            if !self.segment.is_empty() {
                return;
            }
            match self.segments.next() {
                Some(segment) => self.segment = segment,
                None => return,
            }
        }
    }
}

/// Whether nobody waits for the write, nor for an `fdatasync` that is to follow it.
pub(super) fn is_behind(durability: Durability, urgency: Urgency) -> bool {
    durability == Durability::Later && urgency == Urgency::Background
}

/// Whether the segments are one run of memory that the kernel takes as it is.
pub(super) fn is_one_run(data: &[Bytes]) -> bool {
    let aligned = data.first().is_some_and(|first| first.as_ptr().addr().is_multiple_of(ALIGN));
    let follows = |pair: &[Bytes]| pair[0].as_ptr().wrapping_add(pair[0].len()) == pair[1].as_ptr();
    aligned && data.windows(2).all(follows)
}

/// How many bytes a transfer has brought us on; none if it is to be asked for again as it was.
pub(super) fn moved(
    result: io::Result<usize>,
    wanted: usize,
    file: &DriveFile,
) -> io::Result<usize> {
    match result {
        Ok(count) => file.usable(count, wanted),
        Err(error) => match error.raw_os_error() {
            // Not begun.
            Some(libc::EINTR | libc::EAGAIN) => Ok(0),
            _ => Err(error),
        },
    }
}
