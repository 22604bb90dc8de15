//! Reads: memory first, then the drive, every block against its checksum.
//!
//! Invariant: what is returned matches the checksums that the table held when the read was planned,
//! so it is what the blocks held then, or later. Bytes that do not match are reported as damage
//! only if nothing changed the slot since; otherwise the read is planned again.

use std::{collections::BTreeMap, ops::Range};

use bytes::{Bytes, BytesMut};
use format::disk::{BLOCK_LEN, UNIT_BLOCKS, ZERO_BLOCK_CRC, layers::LAYERS_MAX, page::Owner};
use model::{
    id::{LayerId, ReplicaId},
    limits::FRAME_PAYLOAD_BYTES_MAX,
    units::{BLOCK, BLOCK_BYTES},
};

use crate::{
    ahead::cache::Cache,
    api::{Action, DriveError, OpError, OpToken, Outcome},
    drive::{Drive, Io},
    fetch::{PAGES_MAX, Waiting},
};

/// So a read waits once: the pages of all its extents are waited for together.
const _: () = assert!(
    FRAME_PAYLOAD_BYTES_MAX as usize / (UNIT_BLOCKS as usize * BLOCK_LEN) < PAGES_MAX,
    "a read touches at most so many pages"
);

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

#[derive(Debug, Clone, Copy)]
pub struct ReadRequest {
    pub replica: ReplicaId,
    /// `None`: what it holds now.
    pub layer: Option<LayerId>,
    pub offset: u64,
    pub length: u32,
    /// What was read ahead may answer it.
    pub ahead: bool,
}

#[derive(Debug)]
pub struct Reading {
    request: ReadRequest,
    /// Records up to this one had been applied when the read was planned.
    planned_lsn: u64,
    /// Drive reads that have not come back.
    waits: usize,
    pieces: Vec<Piece>,
}

#[derive(Debug)]
enum Piece {
    /// From the overlay, or read ahead, or zeros.
    Memory {
        crcs: Vec<u32>,
        data: Bytes,
    },
    Drive {
        slot: u32,
        first: u32,
        crcs: Vec<u32>,
        data: Option<Bytes>,
    },
    /// Blocks of which nothing is known: as if read, and damaged.
    Lost,
}

/// Slots that are being read, and when each changed last since the first of its reads began; and
/// what was read ahead, because it goes when its slot changes.
#[derive(Debug, Default)]
pub struct Readers {
    slots: BTreeMap<u32, Reader>,
    pub ahead: Cache,
}

#[derive(Debug, Default)]
struct Reader {
    reads: usize,
    changed_lsn: u64,
}

impl Readers {
    pub fn changed(&mut self, slot: u32, lsn: u64) {
        self.ahead.forget(slot);
        if let Some(reader) = self.slots.get_mut(&slot) {
            reader.changed_lsn = lsn;
        }
    }

    pub fn begin(&mut self, slot: u32) {
        self.slots.entry(slot).or_default().reads += 1;
    }

    /// Returns whether the slot changed after `lsn`.
    pub fn end(&mut self, slot: u32, lsn: u64) -> bool {
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
    pub fn read(&mut self, op: OpToken, request: ReadRequest, out: &mut Vec<Action>) {
        let ReadRequest { replica, layer, offset, length, .. } = request;
        let checked = self.check_range(replica, offset, u64::from(length));
        let top = match checked.and_then(|()| self.top(replica, layer)) {
            Ok(top) => top,
            Err(error) => return self.complete(op, Err(error), out),
        };
        if length > FRAME_PAYLOAD_BYTES_MAX {
            return self.complete(op, Err(OpError::OutOfRange), out);
        }
        if self.slots_in(request).any(|slot| self.is_undescribed(slot)) {
            let pages = self.pages_up_to(PAGES_MAX * (LAYERS_MAX + 1), self.slots_in(request));
            return self.park(op, Waiting::Read(request), pages, out);
        }
        let planned_lsn = self.journal.last_lsn();
        let mut pieces = self.plan_read(request, top);
        if let [Piece::Memory { crcs, data }] = &mut pieces[..] {
            let (crcs, data) = (std::mem::take(crcs), std::mem::take(data));
            return self.complete(op, Ok(Outcome::Read { crcs, data }), out);
        }
        let mut waits = 0;
        for (piece, part) in pieces.iter().enumerate() {
            if let Piece::Drive { slot, first, .. } = part {
                self.readers.begin(*slot);
                let at = self.layout.slot_offset(*slot) + u64::from(*first) * BLOCK;
                let length = part.blocks() * BLOCK_BYTES;
                self.ios.read(Io::Read { op, piece }, at, length, out);
                waits += 1;
            }
        }
        let reading = Reading { request, planned_lsn, waits, pieces };
        self.reading.insert(op, reading);
        if waits == 0 {
            self.finish_read(op, out);
        }
    }

    fn slots_in(&self, request: ReadRequest) -> impl Iterator<Item = u32> + '_ {
        let ReadRequest { replica, offset, length, .. } = request;
        let (first, _) = self.extent_and_block(offset);
        let (last, _) = self.extent_and_block((offset + u64::from(length)).saturating_sub(1));
        self.table.slots(replica, first, last)
    }

    fn plan_read(&mut self, request: ReadRequest, top: usize) -> Vec<Piece> {
        let ReadRequest { replica, offset, length, ahead, .. } = request;
        let mut pieces = Vec::new();
        let end = offset + u64::from(length);
        let head = self.table.head_owner(replica, 0);
        let mut at = offset;
        while at < end {
            let (extent, first) = self.extent_and_block(at);
            let left = u32::try_from((end - at) / BLOCK).expect("bounded by the length");
            let count = left.min(self.layout.slot_blocks - first);
            let owner = Owner { extent, ..head };
            let blocks = first..first + count;
            match self.table.stack(replica, extent, top).slots() {
                [] => push_zeros(&mut pieces, count),
                &[slot] => self.plan_slot((slot, owner), blocks, ahead, &mut pieces),
                slots => self.plan_stack((slots, owner), blocks, ahead, &mut pieces),
            }
            at += u64::from(count) * BLOCK;
        }
        if pieces.is_empty() {
            pieces.push(Piece::Memory { crcs: Vec::new(), data: Bytes::new() });
        }
        pieces
    }

    fn plan_stack(
        &mut self,
        (slots, owner): (&[u32], Owner),
        blocks: Range<u32>,
        ahead: bool,
        pieces: &mut Vec<Piece>,
    ) {
        for block in blocks {
            match self.table.source(slots, block) {
                None => push_zeros(pieces, 1),
                Some(slot) => self.plan_slot((slot, owner), block..block + 1, ahead, pieces),
            }
        }
    }

    fn plan_slot(
        &mut self,
        (slot, owner): (u32, Owner),
        blocks: Range<u32>,
        ahead: bool,
        pieces: &mut Vec<Piece>,
    ) {
        let Range { start: first, end } = blocks;
        if !self.table.describes(slot, owner) {
            return pieces.extend(blocks.map(|_| Piece::Lost));
        }
        let descriptor = self.table.descriptor(slot);
        let mut newer = self.overlay.range(slot, first, end - first).peekable();
        for block in first..end {
            let mut crc = descriptor.crc(block);
            if let Some((_, newer)) = newer.next_if(|(key, _)| key.block == block) {
                if descriptor.is_lost(block) {
                    // Memory still has what the page described.
                    crc = crc32c::crc32c(&newer.data);
                }
                pieces.push(Piece::Memory { crcs: vec![crc], data: newer.data.clone() });
            } else if !descriptor.is_valid(block) {
                push_zeros(pieces, 1);
            } else if descriptor.is_lost(block) {
                pieces.push(Piece::Lost);
            } else if ahead && let Some(data) = self.readers.ahead.take(slot, block, crc) {
                pieces.push(Piece::Memory { crcs: vec![crc], data });
            } else if let Some(Piece::Drive { slot: s, first: f, crcs, .. }) = pieces.last_mut()
                && *s == slot
                && usize::try_from(block - *f).expect("small") == crcs.len()
            {
                crcs.push(crc);
            } else {
                pieces.push(Piece::Drive { slot, first: block, crcs: vec![crc], data: None });
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
        let Piece::Drive { crcs, data, .. } = &mut reading.pieces[piece] else {
            unreachable!("only such pieces are read from the drive");
        };
        if let Ok(bytes) = result {
            assert_eq!(bytes.len(), crcs.len() * BLOCK_LEN, "a read returns what was asked for");
            *data = Some(bytes);
        }
        reading.waits -= 1;
        if reading.waits == 0 {
            self.finish_read(op, out);
        }
    }

    fn finish_read(&mut self, op: OpToken, out: &mut Vec<Action>) {
        let reading = self.reading.remove(&op).expect("the caller has it");
        let request = reading.request;
        match self.judge(reading) {
            Verdict::Good { crcs, data } => {
                self.complete(op, Ok(Outcome::Read { crcs, data }), out);
            }
            Verdict::Bad { offset } => self.complete(op, Err(OpError::BadBlock { offset }), out),
            Verdict::Again => self.read(op, request, out),
        }
    }

    fn judge(&mut self, reading: Reading) -> Verdict {
        let mut changed = false;
        for piece in &reading.pieces {
            if let &Piece::Drive { slot, .. } = piece {
                changed |= self.readers.end(slot, reading.planned_lsn);
            }
        }
        let ReadRequest { offset, length, .. } = reading.request;
        let blocks = usize::try_from(length / BLOCK_BYTES).expect("bounded");
        let mut crcs = Vec::with_capacity(blocks);
        let mut at = offset;
        for piece in &reading.pieces {
            if let Some(index) = piece.first_bad() {
                let offset = at + u64::from(index) * BLOCK;
                return if changed { Verdict::Again } else { Verdict::Bad { offset } };
            }
            crcs.extend_from_slice(piece.crcs());
            at += u64::from(piece.blocks()) * BLOCK;
        }
        Verdict::Good { crcs, data: join(reading.pieces, length) }
    }
}

impl Piece {
    fn crcs(&self) -> &[u32] {
        match self {
            Self::Memory { crcs, .. } | Self::Drive { crcs, .. } => crcs,
            Self::Lost => &[],
        }
    }

    fn blocks(&self) -> u32 {
        match self {
            Self::Lost => 1,
            other => u32::try_from(other.crcs().len()).expect("bounded by the request"),
        }
    }

    /// The index of the first block that is not what the table said.
    fn first_bad(&self) -> Option<u32> {
        match self {
            Self::Memory { .. } => None,
            Self::Lost | Self::Drive { data: None, .. } => Some(0),
            Self::Drive { crcs, data: Some(data), .. } => {
                let found = data.chunks_exact(BLOCK_LEN).map(crc32c::crc32c);
                let bad = found.zip(crcs).position(|(found, &crc)| found != crc)?;
                Some(u32::try_from(bad).expect("bounded by the request"))
            }
        }
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
        Piece::Lost => unreachable!("every piece was checked"),
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
