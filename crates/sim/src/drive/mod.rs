//! A simulated drive with a volatile cache.
//!
//! Decides: what reads see, what is on stable media, and what a crash may leave.
//! Does not: decide when anything happens, or what goes wrong (`faults`).
//! Fault model: a process that is killed loses what it had in flight, of which any part may have
//! reached the drive. A power cut loses, besides, any part of what had completed without being
//! made stable: by write, by block of 4 KiB, by sector of 512 bytes, in any order. What a flush or
//! a durable write has confirmed stays.

pub mod faults;
pub mod image;

use std::collections::BTreeMap;

use bytes::Bytes;
use engine::api::{DriveError, Durability};

use crate::random::Random;
use faults::{Faults, ReadFault, WriteFault};
use image::{BLOCK_LEN, Image};

const BLOCK: u64 = 4096;
const SECTOR_LEN: usize = 512;

/// Names an action that is under way.
pub type Ticket = u64;

/// What a crash leaves of what is not stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// Nothing.
    Stable,
    /// All of it, in flight or not.
    All,
    /// The process was killed: all that completed, and parts of what was in flight.
    Killed,
    /// Some writes, whole.
    Writes,
    /// Some blocks of each write.
    Blocks,
    /// As blocks, some torn between sectors.
    Torn,
    /// All but one write.
    OneLost,
    /// One write alone: nothing that was written before it.
    OneFirst,
}

impl Crash {
    pub const KINDS: [Self; 8] = [
        Self::Stable,
        Self::All,
        Self::Killed,
        Self::Writes,
        Self::Blocks,
        Self::Torn,
        Self::OneLost,
        Self::OneFirst,
    ];
}

#[derive(Debug, Clone)]
struct Write {
    first: u64,
    /// `None`: something newer is stable here.
    blocks: Vec<Option<Bytes>>,
    issued: u64,
    completed: Option<u64>,
}

#[derive(Debug, Clone, Default)]
pub struct Drive {
    /// What reads see.
    seen: Image,
    stable: Image,
    /// Not stable, by ticket.
    writes: BTreeMap<Ticket, Write>,
    flushes: BTreeMap<Ticket, u64>,
    /// Counts what was issued and what completed.
    clock: u64,
    /// Reads and writes beyond fail, when it is known.
    bytes: Option<u64>,
    pub faults: Option<Faults>,
}

impl Drive {
    pub fn of(image: Image) -> Self {
        Self { seen: image.clone(), stable: image, ..Self::default() }
    }

    /// Everything beyond so many bytes fails.
    pub fn end_at(&mut self, bytes: u64) {
        self.bytes = Some(bytes);
    }

    pub fn seen(&self) -> &Image {
        &self.seen
    }

    /// A read without faults.
    pub fn read(&self, offset: u64, length: u32) -> Bytes {
        self.seen.read(offset, length as usize)
    }

    pub fn carry_out_read(&mut self, offset: u64, length: u32) -> Result<Bytes, String> {
        self.check_end(offset, u64::from(length))?;
        match self.faults.as_mut().and_then(Faults::of_read) {
            Some(ReadFault::Error) => Err("simulated: read error".into()),
            Some(ReadFault::Misdirected(by)) => {
                Ok(self.read(shifted(offset / BLOCK, by) * BLOCK, length))
            }
            None => Ok(self.read(offset, length)),
        }
    }

    fn check_end(&self, offset: u64, length: u64) -> Result<(), String> {
        match self.bytes {
            Some(end) if offset + length > end => {
                Err(format!("simulated: {offset}+{length} lies beyond the end at {end}"))
            }
            _ => Ok(()),
        }
    }

    fn tick(&mut self) -> Ticket {
        self.clock += 1;
        self.clock
    }

    /// Takes a write; from now on parts of it may be on the drive.
    pub fn begin_write(&mut self, offset: u64, data: &[Bytes]) -> Ticket {
        assert!(offset.is_multiple_of(BLOCK), "write at {offset}");
        let ticket = self.tick();
        let blocks = blocks_of(data);
        let first = offset / BLOCK;
        let end = first + blocks.len() as u64;
        for other in self.writes.values().filter(|w| w.completed.is_none()) {
            let apart = other.first + other.blocks.len() as u64 <= first || end <= other.first;
            assert!(apart, "two writes to the same blocks at once");
        }
        let write = Write { first, blocks, issued: ticket, completed: None };
        self.writes.insert(ticket, write);
        ticket
    }

    /// Completes a write, which stays in the cache.
    pub fn complete_write(&mut self, ticket: Ticket) {
        self.finish_write(ticket, Durability::Later);
    }

    pub fn finish_write(&mut self, ticket: Ticket, durability: Durability) {
        let now = self.tick();
        let write = self.writes.get_mut(&ticket).expect("each write completes once");
        assert!(write.completed.replace(now).is_none(), "each write completes once");
        let issued = write.issued;
        write.apply(&mut self.seen);
        match durability {
            Durability::Later => {}
            Durability::These => self.settle_one(ticket),
            Durability::Everything => {
                self.settle(issued);
                self.settle_one(ticket);
            }
        }
    }

    /// As [`Self::finish_write`], with the faults of the plan.
    pub fn carry_out_write(
        &mut self,
        ticket: Ticket,
        durability: Durability,
    ) -> Result<(), String> {
        let write = self.writes.get_mut(&ticket).expect("each write completes once");
        let bytes = write.blocks.len() as u64 * BLOCK;
        let offset = write.first * BLOCK;
        if let Err(error) = self.check_end(offset, bytes) {
            self.writes.remove(&ticket);
            return Err(error);
        }
        let fault = self.faults.as_mut().and_then(|faults| faults.of_write(bytes));
        let write = self.writes.get_mut(&ticket).expect("found above");
        match fault {
            None => {}
            // Parts of it may be there, now or later.
            Some(WriteFault::Error) => return Err("simulated: write error".into()),
            Some(WriteFault::Lost) => write.blocks.clear(),
            Some(WriteFault::Misdirected(by)) => write.first = shifted(write.first, by),
            Some(WriteFault::Rot(bit)) => write.rot(bit),
        }
        self.finish_write(ticket, durability);
        Ok(())
    }

    /// As [`Self::carry_out_write`], of a write for whose bytes the drive may have no space; of none
    /// where these have their place already.
    pub fn carry_out_preparing(&mut self, ticket: Ticket) -> Result<(), DriveError> {
        if self.writes.get(&ticket).is_some_and(|write| write.blocks.is_empty()) {
            self.complete_write(ticket);
            return Ok(());
        }
        if self.faults.as_mut().is_some_and(Faults::of_space) {
            self.complete_write(ticket);
            return Err(DriveError::NoSpace);
        }
        self.carry_out_write(ticket, Durability::Later).map_err(DriveError::Io)
    }

    pub fn begin_flush(&mut self) -> Ticket {
        let ticket = self.tick();
        self.flushes.insert(ticket, ticket);
        ticket
    }

    pub fn carry_out_flush(&mut self, ticket: Ticket) -> Result<(), String> {
        let issued = self.flushes.remove(&ticket).expect("each flush completes once");
        if self.faults.as_mut().is_some_and(Faults::of_flush) {
            return Err("simulated: flush error".into());
        }
        self.settle(issued);
        Ok(())
    }

    /// Everything that completed is stable.
    pub fn flush(&mut self) {
        self.settle(self.clock);
    }

    /// Everything that completed up to then is stable.
    fn settle(&mut self, until: u64) {
        let done = self.writes.iter().filter_map(|(&ticket, w)| Some((w.completed?, ticket)));
        let mut done: Vec<(u64, Ticket)> = done.filter(|&(at, _)| at <= until).collect();
        done.sort_unstable();
        for (_, ticket) in done {
            let write = self.writes.remove(&ticket).expect("found above");
            write.apply(&mut self.stable);
        }
    }

    /// The write is stable, though older ones to the same blocks may not have been.
    fn settle_one(&mut self, ticket: Ticket) {
        let Some(write) = self.writes.remove(&ticket) else { return };
        write.apply(&mut self.stable);
        let end = write.first + write.blocks.len() as u64;
        for older in self.writes.values_mut().filter(|w| w.completed.is_some()) {
            for (block, content) in (older.first..).zip(&mut older.blocks) {
                if (write.first..end).contains(&block) {
                    *content = None;
                }
            }
        }
    }

    /// What is not stable, as it would come to lie: in the order of completion.
    fn unstable(&self) -> Vec<&Write> {
        let mut writes: Vec<&Write> = self.writes.values().collect();
        writes.sort_by_key(|write| (write.completed.unwrap_or(u64::MAX), write.issued));
        writes
    }

    pub fn unstable_writes(&self) -> usize {
        self.writes.len()
    }

    /// What a crash now leaves.
    pub fn crash_image(&self, crash: Crash, random: &mut Random) -> Image {
        let killed = crash == Crash::Killed;
        let mut image = if killed { self.seen.clone() } else { self.stable.clone() };
        let writes = self.unstable();
        let chosen = random.below(writes.len().max(1) as u64) as usize;
        for (index, write) in writes.into_iter().enumerate() {
            match crash {
                Crash::Stable => {}
                Crash::All => write.apply(&mut image),
                Crash::Killed if write.completed.is_some() => {}
                Crash::Killed | Crash::Torn => write.apply_parts(&mut image, true, random),
                Crash::Blocks => write.apply_parts(&mut image, false, random),
                Crash::Writes if random.chance(50) => write.apply(&mut image),
                Crash::OneLost if index != chosen => write.apply(&mut image),
                Crash::OneFirst if index == chosen => write.apply(&mut image),
                Crash::Writes | Crash::OneLost | Crash::OneFirst => {}
            }
        }
        image
    }

    /// The process died: blocks in flight reach the drive or not.
    pub fn kill(&mut self, random: &mut Random) {
        self.flushes.clear();
        let now = self.tick();
        let in_flight: Vec<Ticket> =
            self.writes.iter().filter(|(_, w)| w.completed.is_none()).map(|(&t, _)| t).collect();
        for ticket in in_flight {
            let write = self.writes.get_mut(&ticket).expect("found above");
            write.completed = Some(now);
            for block in &mut write.blocks {
                *block = block.take().filter(|_| random.chance(50));
            }
            write.apply(&mut self.seen);
        }
    }

    /// The power went: what was not stable may be gone, block by block.
    pub fn cut_power(&mut self, random: &mut Random) {
        let image = self.crash_image(Crash::Blocks, random);
        self.flushes.clear();
        self.writes.clear();
        self.seen = image.clone();
        self.stable = image;
    }
}

impl Write {
    fn content(&self) -> impl Iterator<Item = (u64, &Bytes)> {
        let blocks = (self.first..).zip(&self.blocks);
        blocks.filter_map(|(block, content)| Some((block, content.as_ref()?)))
    }

    fn apply(&self, image: &mut Image) {
        self.content().for_each(|(block, content)| image.put(block, content.clone()));
    }

    fn apply_parts(&self, image: &mut Image, tear: bool, random: &mut Random) {
        for (block, content) in self.content() {
            match random.below(5) {
                0 if tear => image.put(block, torn(&image.get(block), content, random)),
                0..3 => image.put(block, content.clone()),
                _ => {}
            }
        }
    }

    fn rot(&mut self, bit: u64) {
        let bit = usize::try_from(bit).expect("writes are small");
        let content = self.blocks[bit / 8 / BLOCK_LEN].as_mut().expect("it is under way");
        let mut bytes = content.to_vec();
        bytes[bit / 8 % BLOCK_LEN] ^= 1 << (bit % 8);
        *content = bytes.into();
    }
}

/// Some sectors of the new content; often the first ones.
fn torn(old: &[u8], new: &[u8], random: &mut Random) -> Bytes {
    let mut bytes = old.to_vec();
    let sectors = BLOCK_LEN / SECTOR_LEN;
    let chosen = match random.below(3) {
        0 => random.number(),
        1 => (1 << random.below(sectors as u64 + 1)) - 1,
        _ => !((1 << random.below(sectors as u64 + 1)) - 1),
    };
    for sector in (0..sectors).filter(|s| chosen >> s & 1 == 1) {
        let range = sector * SECTOR_LEN..(sector + 1) * SECTOR_LEN;
        bytes[range.clone()].copy_from_slice(&new[range]);
    }
    bytes.into()
}

/// What a drive that is prepared is written with.
pub fn zeros(length: u32) -> [Bytes; 1] {
    [Bytes::from(vec![0; length as usize])]
}

fn blocks_of(data: &[Bytes]) -> Vec<Option<Bytes>> {
    let split = |part: &Bytes| -> Vec<Option<Bytes>> {
        let blocks = part.len() / BLOCK_LEN;
        (0..blocks).map(|i| Some(part.slice(i * BLOCK_LEN..(i + 1) * BLOCK_LEN))).collect()
    };
    if data.iter().all(|part| part.len().is_multiple_of(BLOCK_LEN)) {
        return data.iter().flat_map(split).collect();
    }
    let joined: Bytes = data.concat().into();
    assert!(joined.len().is_multiple_of(BLOCK_LEN), "write of {} bytes", joined.len());
    split(&joined)
}

fn shifted(block: u64, by: i64) -> u64 {
    block.checked_add_signed(by).unwrap_or(block + by.unsigned_abs())
}
