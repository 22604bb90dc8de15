//! Requests that change something: checked and, where they are large, their payload written to
//! fresh slots, or to blocks that hold nothing (`direct`), before their records are made.
//!
//! Decides: what is refused, and which payload goes past the journal.
//! Does not: make records (`commit`).
//! Invariant: a fresh slot belongs to one entry until its record is made, or it is given back.

use bytes::Bytes;
use format::{
    data::{Change, UnitMeta},
    disk::{BLOCK_LEN, REPLICA_BYTES_MAX, UNIT_BLOCKS, UNIT_BYTES},
};
use model::{
    epoch::ModSeq,
    id::{LayerId, ReplicaId},
    units::{BLOCK, ByteCount},
};

use crate::{
    api::{Action, META_BYTES_MAX, OpError, OpToken, Outcome, Request},
    describe::Inquiry,
    direct::Part,
    drive::{Drive, Io},
    read::ReadRequest,
    sabotage::{Sabotage, is_on},
};

/// A change that was accepted, and how far it is.
#[derive(Debug)]
pub struct Entry {
    pub op: OpToken,
    pub replica: ReplicaId,
    /// Which of all changes that were accepted it is.
    pub number: u64,
    pub work: Work,
    /// Pages that were read for it and stay until it was tried again.
    pub pins: Vec<u32>,
}

#[derive(Debug)]
pub enum Work {
    Create { size: u64, meta: Bytes },
    Remove,
    SetMeta { size: u64, meta: Bytes },
    Write(Write),
    Zero { mod_seq: ModSeq, offset: u64, end: u64 },
    Install(Install),
    Freeze { layer: LayerId },
    Release { layer: LayerId },
}

/// `placed`: extents whose new content lies in a fresh slot already, in order.
#[derive(Debug)]
pub struct Write {
    pub mod_seq: ModSeq,
    pub offset: u64,
    pub crcs: Vec<u32>,
    pub data: Bytes,
    pub placed: Vec<(u32, u32)>,
    /// Parts of other extents whose content lies in blocks that held nothing, in order.
    pub direct: Vec<Part>,
    /// Bytes whose record is made.
    pub done: usize,
}

#[derive(Debug)]
pub struct Install {
    pub units: Vec<UnitMeta>,
    pub data: Bytes,
    pub placed: Vec<(u32, u32)>,
    /// Units whose record is made, and the payload bytes before the next.
    pub next: usize,
    pub data_done: usize,
}

/// An entry whose payload is being written.
#[derive(Debug)]
pub struct Placing {
    pub entry: Entry,
    writes: usize,
}

impl Drive {
    pub fn request(&mut self, op: OpToken, request: Request, out: &mut Vec<Action>) {
        let replica = request.replica();
        let work = match request {
            Request::Read { offset, length, .. } => {
                let (layer, ahead) = (None, false);
                return self.read(op, ReadRequest { replica, layer, offset, length, ahead }, out);
            }
            Request::ReadStream { offset, length, .. } => {
                let (layer, ahead) = (None, self.ahead.is_some());
                let request = ReadRequest { replica, layer, offset, length, ahead };
                return self.read_stream(op, request, out);
            }
            Request::ReadLayer { layer, offset, length, .. } => {
                let (layer, ahead) = (Some(layer), false);
                return self.read(op, ReadRequest { replica, layer, offset, length, ahead }, out);
            }
            Request::Describe { offset, length, .. } => {
                return self.ask(op, Inquiry::describe(replica, offset, length), out);
            }
            Request::Digest { offset, length, .. } => {
                return self.ask(op, Inquiry::digest(replica, offset, length), out);
            }
            Request::Allocated { offset, length, .. } => {
                return self.ask(op, Inquiry::allocated(replica, None, offset, length), out);
            }
            Request::AllocatedIn { layer, offset, length, .. } => {
                let inquiry = Inquiry::allocated(replica, Some(layer), offset, length);
                return self.ask(op, inquiry, out);
            }
            Request::ChangedBetween { from, to, offset, length, .. } => {
                let inquiry = Inquiry::changed_between(replica, (from, to), offset, length);
                return self.ask(op, inquiry, out);
            }
            Request::Layers { .. } => return self.list_layers(op, replica, out),
            Request::HighestAllocated { .. } => {
                return self.ask(op, Inquiry::highest_allocated(replica), out);
            }
            Request::ChangedSince { mod_seq, offset, length, .. } => {
                return self.ask(op, Inquiry::changed_since(replica, mod_seq, offset, length), out);
            }
            Request::CreateReplica { size, meta, .. } => {
                check_row(size, &meta).map(|()| Work::Create { size: size.get(), meta })
            }
            Request::SetReplicaMeta { size, meta, .. } => {
                check_row(size, &meta).map(|()| Work::SetMeta { size: size.get(), meta })
            }
            Request::RemoveReplica { .. } => Ok(Work::Remove),
            Request::Change { mod_seq, offset, change, .. } => {
                self.check_change(replica, mod_seq, offset, change)
            }
            Request::Install { units, data, .. } => self.check_install(replica, units, data),
            Request::Freeze { layer, .. } => Ok(Work::Freeze { layer }),
            Request::Release { layer, .. } => Ok(Work::Release { layer }),
            Request::Withdraw { .. } => return self.withdraw(op, replica, out),
        };
        match work {
            Ok(work) => {
                let pins = Vec::new();
                let number = self.starved.number();
                self.place_payload(Entry { op, replica, number, work, pins }, out);
            }
            Err(error) => self.complete(op, Err(error), out),
        }
    }

    pub fn check_range(&self, replica: ReplicaId, offset: u64, length: u64) -> Result<(), OpError> {
        let size = self.table.replica(replica).ok_or(OpError::UnknownReplica)?.size;
        let end = offset.checked_add(length).ok_or(OpError::OutOfRange)?;
        if !offset.is_multiple_of(BLOCK) || !length.is_multiple_of(BLOCK) || end > size {
            return Err(OpError::OutOfRange);
        }
        Ok(())
    }

    fn check_change(
        &self,
        replica: ReplicaId,
        mod_seq: ModSeq,
        offset: u64,
        change: Change,
    ) -> Result<Work, OpError> {
        match change {
            Change::Write { crcs, data } => {
                let length = u64::try_from(data.len()).map_err(|_| OpError::OutOfRange)?;
                self.check_range(replica, offset, length)?;
                check_crcs(&crcs, &data)?;
                let (placed, direct) = (Vec::new(), Vec::new());
                Ok(Work::Write(Write { mod_seq, offset, crcs, data, placed, direct, done: 0 }))
            }
            Change::Zero { length } => {
                self.check_range(replica, offset, u64::from(length))?;
                Ok(Work::Zero { mod_seq, offset, end: offset + u64::from(length) })
            }
        }
    }

    fn check_install(
        &self,
        replica: ReplicaId,
        units: Vec<UnitMeta>,
        data: Bytes,
    ) -> Result<Work, OpError> {
        let size = self.table.replica(replica).ok_or(OpError::UnknownReplica)?.size;
        let mut blocks = 0;
        let mut next_offset = 0;
        for meta in &units {
            let valid = valid_bits(meta).ok_or(OpError::OutOfRange)?;
            let used = u64::from(16 - valid.leading_zeros()) * BLOCK;
            let end = meta.offset.checked_add(used).ok_or(OpError::OutOfRange)?;
            let aligned = meta.offset.is_multiple_of(u64::from(UNIT_BYTES));
            if !aligned || meta.offset < next_offset || meta.offset >= size || end > size {
                return Err(OpError::OutOfRange);
            }
            next_offset = meta.offset + u64::from(UNIT_BYTES);
            let count = usize::try_from(valid.count_ones()).expect("at most 16");
            if meta.crcs.len() != count {
                return Err(OpError::BadChecksum);
            }
            let bytes = data.get(blocks * BLOCK_LEN..(blocks + count) * BLOCK_LEN);
            check_crcs(&meta.crcs, bytes.ok_or(OpError::BadChecksum)?)?;
            blocks += count;
        }
        if data.len() != blocks * BLOCK_LEN {
            return Err(OpError::BadChecksum);
        }
        Ok(Work::Install(Install { units, data, placed: Vec::new(), next: 0, data_done: 0 }))
    }

    /// Writes what replaces whole extents straight to fresh slots. Where there is none, the payload
    /// takes the way through the journal, which needs none if the extent has a slot.
    fn place_payload(&mut self, mut entry: Entry, out: &mut Vec<Action>) {
        let mut runs = Vec::new();
        match &mut entry.work {
            Work::Write(write) => self.place_write(entry.op, entry.replica, write, &mut runs),
            Work::Install(install) => self.place_install(entry.replica, install, &mut runs),
            Work::Freeze { .. } => return self.begin_freeze(entry),
            Work::Create { .. }
            | Work::Remove
            | Work::SetMeta { .. }
            | Work::Zero { .. }
            | Work::Release { .. } => {}
        }
        if runs.is_empty() {
            self.queue.push_back(entry);
            return;
        }
        let op = entry.op;
        let mut writes = 0;
        let mut runs = runs.into_iter().peekable();
        while let Some((offset, data)) = runs.next() {
            let mut end = offset + u64::try_from(data.len()).expect("fits");
            let mut segments = vec![data];
            while let Some((_, next)) = runs.next_if(|(next, _)| *next == end) {
                end += u64::try_from(next.len()).expect("fits");
                segments.push(next);
            }
            self.ios.write(Io::Payload(op), offset, segments, out);
            writes += 1;
        }
        if is_unawaited(&entry) {
            return self.payload_landed(entry);
        }
        self.placing.insert(op, Placing { entry, writes });
    }

    fn place_write(
        &mut self,
        op: OpToken,
        replica: ReplicaId,
        write: &mut Write,
        runs: &mut Vec<(u64, Bytes)>,
    ) {
        let mut from = 0;
        while from < write.data.len() {
            let (extent, first, count) = self.next_part(write, from);
            let len = usize::try_from(count).expect("small") * BLOCK_LEN;
            let slot = if count == self.layout.slot_blocks {
                let slot = self.space.take_whole();
                write.placed.extend(slot.map(|slot| (extent, slot)));
                slot
            } else {
                let part =
                    self.begin_direct(op, self.table.head_owner(replica, extent), first, count);
                write.direct.extend(part);
                part.map(|part| part.slot)
            };
            if let Some(slot) = slot {
                let home = self.layout.slot_offset(slot) + u64::from(first) * BLOCK;
                runs.push((home, write.data.slice(from..from + len)));
            }
            from += len;
        }
    }

    /// What the write says from byte `from` of its payload on, within one extent: which, the first
    /// block, how many.
    pub fn next_part(&self, write: &Write, from: usize) -> (u32, u32, u32) {
        let at = write.offset + u64::try_from(from).expect("fits");
        let (extent, first) = self.extent_and_block(at);
        let left = u32::try_from((write.data.len() - from) / BLOCK_LEN).expect("small");
        (extent, first, left.min(self.layout.slot_blocks - first))
    }

    fn place_install(
        &mut self,
        replica: ReplicaId,
        install: &mut Install,
        runs: &mut Vec<(u64, Bytes)>,
    ) {
        if self.table.is_layered(replica) {
            // What repairs goes where the damage is, and else the head must say what it hides.
            return;
        }
        let (mut next, mut from) = (0, 0);
        while let Some(extent) = install.extent_at(next, self.layout.slot_bytes()) {
            let group = install.group_len(next, self.layout.slot_bytes());
            let units = &install.units[next..next + group];
            let len: usize = units.iter().map(|e| e.crcs.len() * BLOCK_LEN).sum();
            let absent = self.table.slot_of(self.table.head_owner(replica, extent)).is_none();
            let whole = u32::try_from(group).expect("small") == self.layout.slot_units();
            if len > 0 && (absent || whole) {
                let Some(slot) = self.space.take_whole() else { return };
                let home = self.layout.slot_offset(slot);
                self.install_runs(home, units, &install.data.slice(from..from + len), runs);
                install.placed.push((extent, slot));
            }
            next += group;
            from += len;
        }
    }

    fn install_runs(
        &self,
        home: u64,
        units: &[UnitMeta],
        data: &Bytes,
        runs: &mut Vec<(u64, Bytes)>,
    ) {
        let mut from = 0;
        for meta in units {
            let valid = valid_bits(meta).expect("checked when it was accepted");
            let base = home + meta.offset % self.layout.slot_bytes();
            let mut block = 0;
            while block < UNIT_BLOCKS {
                let run = (valid >> block).trailing_ones();
                if run > 0 {
                    let len = usize::try_from(run).expect("at most 16") * BLOCK_LEN;
                    runs.push((base + u64::from(block) * BLOCK, data.slice(from..from + len)));
                    from += len;
                }
                block += run.max(1);
            }
        }
    }

    pub fn payload_written(&mut self, op: OpToken) {
        let Some(placing) = self.placing.get_mut(&op) else {
            assert!(is_on(Sabotage::PayloadNotAwaited) || is_on(Sabotage::DirectNotAwaited));
            return;
        };
        placing.writes -= 1;
        if placing.writes == 0 {
            let placing = self.placing.remove(&op).expect("found above");
            self.payload_landed(placing.entry);
        }
    }

    /// Its record can be made, and after it those of the changes that wait for it.
    fn payload_landed(&mut self, entry: Entry) {
        if let Work::Write(Write { direct, .. }) = &entry.work {
            direct.iter().for_each(|part| self.direct.landed(part));
        }
        self.queue.push_back(entry);
        self.queue.extend(self.held.drain(..));
        self.release_slots();
    }

    /// The entry comes to nothing: its fresh slots are free again.
    pub fn abandon(&mut self, entry: Entry, error: OpError, out: &mut Vec<Action>) {
        let op = entry.op;
        self.give_up_slots(entry);
        self.complete(op, Err(error), out);
    }

    /// The fresh slots of an entry that ends without them are for whoever waits for one.
    pub fn give_up_slots(&mut self, entry: Entry) {
        let placed = match entry.work {
            Work::Write(write) => {
                for part in &write.direct {
                    let owner = self.table.head_owner(entry.replica, part.extent);
                    self.end_direct(owner, part);
                }
                write.placed
            }
            Work::Install(install) => install.placed,
            _ => Vec::new(),
        };
        if placed.is_empty() {
            return;
        }
        for (_, slot) in placed {
            self.space.give_back(slot);
        }
        self.feed_starved();
    }

    pub fn complete_done(&mut self, ops: Vec<OpToken>, out: &mut Vec<Action>) {
        for op in ops {
            self.complete(op, Ok(Outcome::Done), out);
        }
    }
}

impl Install {
    /// The extent of the unit at `index`.
    pub fn extent_at(&self, index: usize, slot_bytes: u64) -> Option<u32> {
        let offset = self.units.get(index)?.offset;
        Some(u32::try_from(offset / slot_bytes).expect("replicas are bounded"))
    }

    /// How many units from `index` on belong to the same extent.
    pub fn group_len(&self, index: usize, slot_bytes: u64) -> usize {
        let extent = self.extent_at(index, slot_bytes);
        (index..self.units.len()).take_while(|&i| self.extent_at(i, slot_bytes) == extent).count()
    }
}

/// Which blocks are valid; `None` when it is not two bytes.
pub fn valid_bits(meta: &UnitMeta) -> Option<u16> {
    Some(u16::from_le_bytes(meta.valid.as_slice().try_into().ok()?))
}

/// Only ever with a break of the engine.
fn is_unawaited(entry: &Entry) -> bool {
    let direct = matches!(&entry.work, Work::Write(write) if !write.direct.is_empty());
    is_on(Sabotage::PayloadNotAwaited) || direct && is_on(Sabotage::DirectNotAwaited)
}

fn check_row(size: ByteCount, meta: &Bytes) -> Result<(), OpError> {
    assert!(meta.len() <= META_BYTES_MAX, "metadata of {} bytes", meta.len());
    if !size.get().is_multiple_of(BLOCK) || size.get() > REPLICA_BYTES_MAX {
        return Err(OpError::OutOfRange);
    }
    Ok(())
}

fn check_crcs(crcs: &[u32], data: &[u8]) -> Result<(), OpError> {
    let blocks = data.chunks_exact(BLOCK_LEN);
    let whole = blocks.remainder().is_empty() && blocks.len() == crcs.len();
    if !whole || !blocks.zip(crcs).all(|(block, &crc)| crc32c::crc32c(block) == crc) {
        return Err(OpError::BadChecksum);
    }
    Ok(())
}
