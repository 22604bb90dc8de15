//! Reads: memory first, then the drive, every block against its checksum.
//!
//! Invariant: what is returned matches the checksums the table holds when it is returned. Bytes
//! that do not match are reported as damage only if nothing changed the slot since the read was
//! issued; otherwise the read is planned again.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use format::disk::{BLOCK_LEN, ZERO_BLOCK_CRC, page::Owner};
use model::{
    id::ReplicaId,
    limits::FRAME_PAYLOAD_BYTES_MAX,
    units::{BLOCK, BLOCK_BYTES},
};

use crate::{
    api::{Action, DriveError, OpError, OpToken, Outcome},
    drive::{Drive, Io},
};

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

#[derive(Debug)]
pub struct Reading {
    replica: ReplicaId,
    offset: u64,
    length: u32,
    /// Records up to this one had been applied when the read was planned.
    planned_lsn: u64,
    /// Drive reads that have not come back.
    waits: usize,
    pieces: Vec<Piece>,
}

#[derive(Debug)]
enum Piece {
    /// From the overlay, or zeros.
    Memory {
        crcs: Vec<u32>,
        data: Bytes,
    },
    Drive {
        slot: u32,
        owner: Owner,
        first: u32,
        count: u32,
        data: Option<Bytes>,
    },
}

/// Slots that are being read, and when each changed last since the first of its reads began.
#[derive(Debug, Default)]
pub struct Readers {
    slots: BTreeMap<u32, Reader>,
}

#[derive(Debug, Default)]
struct Reader {
    reads: usize,
    changed_lsn: u64,
}

impl Readers {
    pub fn changed(&mut self, slot: u32, lsn: u64) {
        if let Some(reader) = self.slots.get_mut(&slot) {
            reader.changed_lsn = lsn;
        }
    }

    fn begin(&mut self, slot: u32) {
        self.slots.entry(slot).or_default().reads += 1;
    }

    /// Returns whether the slot changed after `lsn`.
    fn end(&mut self, slot: u32, lsn: u64) -> bool {
        let reader = self.slots.get_mut(&slot).expect("a read of it was begun");
        let changed = reader.changed_lsn > lsn;
        reader.reads -= 1;
        if reader.reads == 0 {
            self.slots.remove(&slot);
        }
        changed
    }
}

/// What a finished read comes to.
enum Verdict {
    Good { crcs: Vec<u32>, data: Bytes },
    Again,
    Bad { offset: u64 },
}

impl Drive {
    pub fn read(
        &mut self,
        op: OpToken,
        replica: ReplicaId,
        offset: u64,
        length: u32,
        out: &mut Vec<Action>,
    ) {
        let checked = self.check_range(replica, offset, u64::from(length));
        if let Err(error) = checked {
            return self.complete(op, Err(error), out);
        }
        if length > FRAME_PAYLOAD_BYTES_MAX {
            return self.complete(op, Err(OpError::OutOfRange), out);
        }
        let planned_lsn = self.journal.last_lsn();
        let mut pieces = self.plan_read(replica, offset, length);
        if let [Piece::Memory { crcs, data }] = &mut pieces[..] {
            let (crcs, data) = (std::mem::take(crcs), std::mem::take(data));
            return self.complete(op, Ok(Outcome::Read { crcs, data }), out);
        }
        let mut waits = 0;
        for (piece, part) in pieces.iter().enumerate() {
            if let &Piece::Drive { slot, first, count, .. } = part {
                self.readers.begin(slot);
                let at = self.layout.slot_offset(slot) + u64::from(first) * BLOCK;
                self.ios.read(Io::Read { op, piece }, at, count * BLOCK_BYTES, out);
                waits += 1;
            }
        }
        let reading = Reading { replica, offset, length, planned_lsn, waits, pieces };
        self.reading.insert(op, reading);
        if waits == 0 {
            self.finish_read(op, out);
        }
    }

    fn plan_read(&self, replica: ReplicaId, offset: u64, length: u32) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let end = offset + u64::from(length);
        let mut at = offset;
        while at < end {
            let (extent, first) = self.extent_and_block(at);
            let left = u32::try_from((end - at) / BLOCK).expect("bounded by the length");
            let count = left.min(self.layout.slot_blocks - first);
            let owner = Owner { replica, extent };
            match self.table.slot_of(owner) {
                None => push_zeros(&mut pieces, count),
                Some(slot) => self.plan_slot(slot, owner, first, count, &mut pieces),
            }
            at += u64::from(count) * BLOCK;
        }
        if pieces.is_empty() {
            pieces.push(Piece::Memory { crcs: Vec::new(), data: Bytes::new() });
        }
        pieces
    }

    fn plan_slot(&self, slot: u32, owner: Owner, first: u32, count: u32, pieces: &mut Vec<Piece>) {
        let descriptor = self.table.descriptor(slot);
        let mut newer = self.overlay.range(slot, first, count).peekable();
        for block in first..first + count {
            if let Some((_, newer)) = newer.next_if(|(key, _)| key.block == block) {
                let crcs = vec![descriptor.crc(block)];
                pieces.push(Piece::Memory { crcs, data: newer.data.clone() });
            } else if !descriptor.is_valid(block) {
                push_zeros(pieces, 1);
            } else if let Some(Piece::Drive { slot: s, first: f, count: c, .. }) = pieces.last_mut()
                && *s == slot
                && *f + *c == block
            {
                *c += 1;
            } else {
                pieces.push(Piece::Drive { slot, owner, first: block, count: 1, data: None });
            }
        }
    }

    pub fn read_arrived(
        &mut self,
        op: OpToken,
        piece: usize,
        result: Result<Bytes, DriveError>,
        out: &mut Vec<Action>,
    ) {
        let reading = self.reading.get_mut(&op).expect("its pieces are being read");
        let Piece::Drive { count, data, .. } = &mut reading.pieces[piece] else {
            unreachable!("only such pieces are read from the drive");
        };
        if let Ok(bytes) = result {
            let wanted = usize::try_from(*count).expect("small") * BLOCK_LEN;
            assert_eq!(bytes.len(), wanted, "a read returns what was asked for");
            *data = Some(bytes);
        }
        reading.waits -= 1;
        if reading.waits == 0 {
            self.finish_read(op, out);
        }
    }

    fn finish_read(&mut self, op: OpToken, out: &mut Vec<Action>) {
        let reading = self.reading.remove(&op).expect("the caller has it");
        let Reading { replica, offset, length, .. } = reading;
        match self.judge(reading) {
            Verdict::Good { crcs, data } => {
                self.complete(op, Ok(Outcome::Read { crcs, data }), out);
            }
            Verdict::Bad { offset } => self.complete(op, Err(OpError::BadBlock { offset }), out),
            Verdict::Again => self.read(op, replica, offset, length, out),
        }
    }

    fn judge(&mut self, reading: Reading) -> Verdict {
        let mut changed = false;
        for piece in &reading.pieces {
            if let &Piece::Drive { slot, .. } = piece {
                changed |= self.readers.end(slot, reading.planned_lsn);
            }
        }
        let blocks = usize::try_from(reading.length / BLOCK_BYTES).expect("bounded");
        let mut crcs = Vec::with_capacity(blocks);
        let mut at = reading.offset;
        for piece in &reading.pieces {
            let bad = match piece {
                Piece::Memory { crcs: some, data } => {
                    crcs.extend_from_slice(some);
                    at += u64::try_from(data.len()).expect("fits");
                    None
                }
                Piece::Drive { slot, owner, first, count, data } => {
                    let blocks = *first..*first + *count;
                    let bad = self.bad_block(*slot, *owner, blocks, data.as_ref(), &mut crcs);
                    let bad = bad.map(|index| at + u64::from(index) * BLOCK);
                    at += u64::from(*count) * BLOCK;
                    bad
                }
            };
            if let Some(offset) = bad {
                return if changed { Verdict::Again } else { Verdict::Bad { offset } };
            }
        }
        Verdict::Good { crcs, data: join(reading.pieces, reading.length) }
    }

    /// The index of the first block that is not what the table says; appends the checksums.
    fn bad_block(
        &self,
        slot: u32,
        owner: Owner,
        blocks: std::ops::Range<u32>,
        data: Option<&Bytes>,
        crcs: &mut Vec<u32>,
    ) -> Option<u32> {
        let Some(data) = data else { return Some(0) };
        if self.table.slot_of(owner) != Some(slot) {
            return Some(0);
        }
        let descriptor = self.table.descriptor(slot);
        for ((index, block), bytes) in (0..).zip(blocks).zip(data.chunks_exact(BLOCK_LEN)) {
            let crc = descriptor.crc(block);
            if !descriptor.is_valid(block) || crc32c::crc32c(bytes) != crc {
                return Some(index);
            }
            crcs.push(crc);
        }
        None
    }
}

fn push_zeros(pieces: &mut Vec<Piece>, count: u32) {
    let count = usize::try_from(count).expect("bounded");
    let data = if count * BLOCK_LEN <= ZEROS.len() {
        Bytes::from_static(&ZEROS[..count * BLOCK_LEN])
    } else {
        BytesMut::zeroed(count * BLOCK_LEN).freeze()
    };
    pieces.push(Piece::Memory { crcs: vec![ZERO_BLOCK_CRC; count], data });
}

/// The pieces in one buffer; a single one is passed on as it is.
fn join(mut pieces: Vec<Piece>, length: u32) -> Bytes {
    let bytes = |piece: &mut Piece| match piece {
        Piece::Memory { data, .. } => std::mem::take(data),
        Piece::Drive { data, .. } => data.take().expect("every piece was checked"),
    };
    if let [piece] = &mut pieces[..] {
        return bytes(piece);
    }
    let mut joined = BytesMut::with_capacity(usize::try_from(length).expect("bounded"));
    for piece in &mut pieces {
        joined.extend_from_slice(&bytes(piece));
    }
    joined.freeze()
}
