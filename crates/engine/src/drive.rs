//! An open drive: its parts, and which completion goes where.
//!
//! Invariant: a request that was accepted completes exactly once; nothing is done after a write
//! or flush failed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use format::disk::{Layout, Superblock};
use model::{
    id::{DriveIdentity, ReplicaId},
    time::Instant,
    units::ByteCount,
    volume::Media,
};
use sha2::{Digest, Sha256};

use crate::{
    ahead::Ahead,
    api::{
        Action, Device, DriveError, Durability, Event, IoToken, OpError, OpToken, Outcome, Urgency,
        Usage,
    },
    change::{Entry, Placing},
    direct::Direct,
    fetch::Fetching,
    journal::{Journal, Tail},
    layer::{Freezing, Merging},
    overlay::{Key, Overlay},
    read::{Readers, Reading},
    reads::{Reads, Waiting},
    sabotage::{Sabotage, is_on},
    space::Space,
    starved::Starved,
    table::Table,
    writeback::Writeback,
};

#[derive(Debug)]
pub struct Drive {
    pub layout: Layout,
    pub superblock: Superblock,
    /// The last one that any page carries: later ones begin behind it.
    pub checkpoint: u64,
    pub table: Table,
    pub overlay: Overlay,
    pub space: Space,
    pub journal: Journal,
    pub ios: Ios,
    accepted: BTreeSet<OpToken>,
    /// Changes whose records are to be written, in order.
    pub queue: VecDeque<Entry>,
    /// Changes that wait for a free slot.
    pub starved: Starved,
    /// Changes of blocks to which another one's payload is being written.
    pub held: VecDeque<Entry>,
    pub direct: Direct,
    /// Changes whose payload is being written to its slots.
    pub placing: BTreeMap<OpToken, Placing>,
    pub freezing: Freezing,
    pub merging: Merging,
    /// Requests that wait for pages.
    pub fetching: Fetching,
    /// Completed by the batch that is being written.
    pub batch: Option<Vec<OpToken>>,
    /// What must complete for that: the write, and a flush of what it refers to, if that lies on
    /// another device.
    pub batch_parts: usize,
    /// What is being written is a seal.
    pub is_sealing: bool,
    pub reading: BTreeMap<OpToken, Reading>,
    pub readers: Readers,
    /// Of a hard disk: elsewhere it would not pay.
    pub ahead: Option<Ahead>,
    pub writeback: Writeback,
    /// The last batch says nothing yet about its own durability.
    pub seal_at: Option<Instant>,
    failure: Option<String>,
    /// Something came since changes were last made into records.
    has_news: bool,
    /// Of the last event.
    now: Instant,
}

/// Drive actions that are under way.
#[derive(Debug)]
pub struct Ios {
    next: u64,
    journal: Device,
    under_way: BTreeMap<IoToken, Io>,
    /// Of a hard disk: elsewhere none waits.
    reads: Option<Reads>,
}

#[derive(Debug)]
pub enum Io {
    Batch {
        /// It has a Place record: what that refers to was written elsewhere and must become
        /// durable with it.
        places: bool,
    },
    /// Payload of a change, on its way to its slots.
    Payload(OpToken),
    Read {
        op: OpToken,
        piece: usize,
    },
    /// Content that nobody has asked for yet.
    Ahead {
        stream: u64,
        span: usize,
    },
    /// Content that is merged into another layer.
    Merge(usize),
    Home(Vec<(Key, u64)>),
    Page(u32),
    /// A page of metadata, to be looked at.
    Fetch(u32),
    /// Of what was written home.
    Flush,
    /// Of the payload that a batch refers to, on another device than the batch.
    PayloadFlush,
    /// Of a journal that lies apart.
    JournalHead,
    Superblock(Tail),
    /// Free slots get their place on the medium.
    Prepare,
}

impl Ios {
    /// Goes on counting where the opening stopped.
    pub fn after(next: u64, journal: Device, media: Media) -> Self {
        let reads = (media == Media::Hdd).then(Reads::default);
        Self { next, journal, under_way: BTreeMap::new(), reads }
    }

    /// What is durable on the drive is not durable in the journal, and the other way round.
    pub fn journal_is_apart(&self) -> bool {
        self.journal != Device::Data
    }

    fn token(&mut self, io: Io) -> IoToken {
        let token = IoToken(self.next);
        self.next += 1;
        self.under_way.insert(token, io);
        token
    }

    /// A hard disk gets it when it is its turn.
    pub fn read(&mut self, io: Io, offset: u64, length: u32, out: &mut Vec<Action>) {
        let read = Waiting { io, offset, length };
        match &mut self.reads {
            Some(reads) => reads.push(read),
            None => self.begin_read(read, out),
        }
    }

    fn begin_read(&mut self, read: Waiting, out: &mut Vec<Action>) {
        let Waiting { io, offset, length } = read;
        let device = io.device(self.journal);
        out.push(Action::ReadDrive { device, token: self.token(io), offset, length });
    }

    /// Those whose turn it is.
    fn begin_reads(&mut self, out: &mut Vec<Action>) {
        while let Some(read) = self.reads.as_mut().and_then(Reads::next) {
            self.begin_read(read, out);
        }
    }

    /// Where, how durable and how urgent follows from what it is.
    pub fn write(&mut self, io: Io, offset: u64, data: Vec<Bytes>, out: &mut Vec<Action>) {
        let (durability, urgency) = io.wants(self.journal);
        let (device, token) = (io.device(self.journal), self.token(io));
        out.push(Action::WriteDrive { device, token, offset, data, durability, urgency });
    }

    pub fn flush(&mut self, io: Io, out: &mut Vec<Action>) {
        let device = io.device(self.journal);
        out.push(Action::FlushDrive { device, token: self.token(io) });
    }

    pub fn prepare(&mut self, io: Io, offset: u64, length: u32, out: &mut Vec<Action>) {
        out.push(Action::PrepareDrive { token: self.token(io), offset, length });
    }

    fn finished(&mut self, token: IoToken) -> Io {
        self.under_way.remove(&token).expect("a completion answers an action that is under way")
    }

    fn finished_read(&mut self, token: IoToken) -> Io {
        if let Some(reads) = &mut self.reads {
            reads.ended();
        }
        self.finished(token)
    }
}

/// What recovery hands over.
#[derive(Debug)]
pub struct Parts {
    pub layout: Layout,
    pub superblock: Superblock,
    pub checkpoint: u64,
    pub table: Table,
    pub overlay: Overlay,
    pub space: Space,
    pub journal: Journal,
    pub ios: Ios,
}

impl Drive {
    pub fn new(parts: Parts) -> Self {
        let Parts { layout, superblock, checkpoint, table, overlay, space, journal, ios } = parts;
        Self {
            layout,
            superblock,
            checkpoint,
            table,
            overlay,
            space,
            journal,
            ios,
            accepted: BTreeSet::new(),
            queue: VecDeque::new(),
            starved: Starved::default(),
            held: VecDeque::new(),
            direct: Direct::default(),
            placing: BTreeMap::new(),
            freezing: Freezing::default(),
            merging: Merging::default(),
            fetching: Fetching::default(),
            batch: None,
            batch_parts: 0,
            is_sealing: false,
            reading: BTreeMap::new(),
            readers: Readers::default(),
            ahead: (layout.media == Media::Hdd).then(Ahead::default),
            writeback: Writeback::default(),
            seal_at: None,
            failure: None,
            has_news: true,
            now: Instant::ZERO,
        }
    }

    pub fn handle(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        self.now = now;
        let turn_ends = matches!(event, Event::TimeReached);
        self.has_news = !turn_ends;
        match event {
            Event::Requested { token, request } => {
                assert!(self.accepted.insert(token), "{token:?} is in use");
                self.request(token, request, out);
            }
            Event::DriveRead { token, result } => match self.ios.finished_read(token) {
                Io::Read { op, piece } => self.read_arrived(op, piece, result, out),
                Io::Ahead { stream, span } => self.ahead_arrived((stream, span), result, out),
                Io::Fetch(page) => self.page_arrived(page, result, out),
                Io::Merge(piece) => self.merge_read(piece, result),
                other => unreachable!("a read completed {other:?}"),
            },
            Event::DriveWritten { token, result } | Event::DriveFlushed { token, result } => {
                let io = self.ios.finished(token);
                self.wrote(now, io, result, out);
            }
            Event::TimeReached => {}
        }
        self.go_on(turn_ends, out);
    }

    fn wrote(
        &mut self,
        now: Instant,
        io: Io,
        result: Result<(), DriveError>,
        out: &mut Vec<Action>,
    ) {
        if let (Io::Prepare, Err(DriveError::NoSpace)) = (&io, &result) {
            return self.slots_prepared(true);
        }
        if let Err(error) = result {
            // What the drive holds now is unknown, and asking again would not tell.
            self.failure = Some(format!("{error} ({})", io.name()));
            return;
        }
        match io {
            Io::Batch { .. } | Io::PayloadFlush => self.batch_part_done(now, out),
            Io::Payload(op) => self.payload_written(op),
            Io::Home(blocks) => self.home_written(blocks),
            Io::Page(page) => {
                self.table.page_written(page);
                self.writeback.page_written();
            }
            Io::Flush => self.writeback.flushed(),
            Io::JournalHead => self.writeback.journal_head_written(),
            Io::Superblock(tail) => self.superblock_written(tail),
            Io::Prepare => self.slots_prepared(false),
            Io::Read { .. } | Io::Ahead { .. } | Io::Fetch(_) | Io::Merge(_) => {
                unreachable!("a write completed a read")
            }
        }
    }

    /// What was under way in the background goes on. A batch is made when the caller's turn ends, so
    /// that what came with one turn becomes durable together.
    pub fn go_on(&mut self, turn_ends: bool, out: &mut Vec<Action>) {
        if self.failure.is_some() {
            return;
        }
        self.free_removed();
        // Pages that every batch changes can be taken only between two batches.
        self.write_back(out);
        if turn_ends {
            self.issue_batch(out);
            self.seal_if_due(self.now, out);
            self.write_back(out);
        }
        self.prepare_slots(out);
        if self.batch.is_none() {
            self.complete_withdrawn(out);
        }
        self.ios.begin_reads(out);
    }

    pub fn complete(
        &mut self,
        token: OpToken,
        outcome: Result<Outcome, OpError>,
        out: &mut Vec<Action>,
    ) {
        assert!(self.accepted.remove(&token), "{token:?} completes once");
        out.push(Action::Complete { token, outcome });
    }

    pub fn accepted(&self) -> usize {
        self.accepted.len()
    }

    pub fn failure(&mut self) -> Option<String> {
        self.failure.take()
    }

    pub fn refuse_accepted(&mut self, out: &mut Vec<Action>) {
        for token in std::mem::take(&mut self.accepted) {
            out.push(Action::Complete { token, outcome: Err(OpError::DriveFailed) });
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        let goes_on = self.table.has_removed(self.journal.durable_lsn());
        let has_changes = self.has_news && self.wants_batch();
        if goes_on || has_changes { Some(self.now) } else { self.seal_at }
    }

    pub fn usage(&self) -> Usage {
        Usage {
            slots_total: u64::from(self.layout.slots),
            slots_used: self.table.slots_used(),
            journal_bytes_used: self.journal.used(),
            waiting_for_space: u64::try_from(self.starved.len()).expect("fits"),
            layers: self.table.frozen_layers(),
            layers_merging: self.table.layers_to_merge(),
            slots_to_merge: self.table.slots_to_merge(),
            blocks_merged: self.merging.blocks_copied,
            memory_bytes: self.table.memory(),
            memory_bytes_max: self.table.memory_max(),
            pages_read: self.fetching.pages_read(),
            pages_lost: self.table.lost_pages(),
            slots_prepared: self.space.prepared(),
            blocks_ahead: self.ahead.as_ref().map_or(0, |ahead| ahead.blocks_read),
            blocks_ahead_used: self.readers.ahead.taken(),
        }
    }

    /// Tells one formatting of the drive from another. A digest of its uuid, because whoever knows
    /// that could write what looks like records.
    pub fn identity(&self) -> DriveIdentity {
        let digest = Sha256::digest(self.superblock.uuid.0);
        let head = digest.first_chunk().expect("32 bytes");
        DriveIdentity::from_raw(u64::from_le_bytes(*head))
    }

    pub fn allocated(&self, replica: ReplicaId) -> ByteCount {
        ByteCount::new(self.table.allocated(replica))
    }
}

impl Io {
    /// A seal, and a batch of data or table changes alone, refer to nothing outside themselves; a
    /// superblock follows a flush that made durable what it refers to.
    fn wants(&self, journal: Device) -> (Durability, Urgency) {
        match self {
            // Where the journal lies apart, a flush of the drive goes with it.
            Self::Batch { places: true }
                if journal == Device::Data && !is_on(Sabotage::PlaceAlone) =>
            {
                (Durability::Everything, Urgency::Request)
            }
            Self::Batch { .. } => (Durability::These, Urgency::Request),
            Self::Payload(_) => (Durability::Later, Urgency::Request),
            Self::Home(_) | Self::Page(_) => (Durability::Later, Urgency::Background),
            Self::JournalHead if is_on(Sabotage::JournalHeadLoose) => {
                (Durability::Later, Urgency::Background)
            }
            Self::JournalHead | Self::Superblock(_) => (Durability::These, Urgency::Background),
            Self::Read { .. }
            | Self::Ahead { .. }
            | Self::Fetch(_)
            | Self::Merge(_)
            | Self::Flush
            | Self::PayloadFlush
            | Self::Prepare => {
                unreachable!("no write")
            }
        }
    }

    fn device(&self, journal: Device) -> Device {
        match self {
            Self::Batch { .. } | Self::JournalHead => journal,
            Self::Flush if is_on(Sabotage::FlushesJournalAlone) => journal,
            _ => Device::Data,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Batch { .. } => "writing the journal",
            Self::Payload(_) | Self::Home(_) => "writing data",
            Self::Read { .. } | Self::Ahead { .. } | Self::Fetch(_) | Self::Merge(_) => "reading",
            Self::Page(_) => "writing metadata",
            Self::Flush | Self::PayloadFlush => "flushing",
            Self::JournalHead => "writing the head of the journal",
            Self::Superblock(_) => "writing a superblock",
            Self::Prepare => "preparing space",
        }
    }
}
