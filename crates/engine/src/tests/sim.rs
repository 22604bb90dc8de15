//! A simulated drive, and a bench that runs an engine on it. What crashes leave, and drives that
//! lie, are `sim::crash`'s.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use format::disk::JournalPlace;
use model::{time::Instant, volume::Media};

use crate::{
    Engine,
    api::{
        Action, Device, DriveError, Event, Geometry, IoToken, OpError, OpToken, OpenReplica,
        Outcome, Request,
    },
};

const BLOCK: usize = 4096;
type Block = Arc<[u8; BLOCK]>;

#[derive(Debug, Clone, Default)]
pub struct Image(BTreeMap<u64, Block>);

impl Image {
    pub fn read(&self, offset: u64, length: usize) -> Bytes {
        assert_eq!((offset % 4096, length % BLOCK), (0, 0), "whole blocks");
        let mut out = BytesMut::zeroed(length);
        for (index, chunk) in out.chunks_exact_mut(BLOCK).enumerate() {
            if let Some(block) = self.0.get(&(offset / 4096 + index as u64)) {
                chunk.copy_from_slice(&block[..]);
            }
        }
        out.freeze()
    }

    pub fn put(&mut self, block: u64, bytes: &[u8]) {
        self.0.insert(block, Arc::new(bytes.try_into().expect("a block")));
    }

    /// Flips a bit of a byte.
    pub fn rot(&mut self, offset: u64) {
        let at = usize::try_from(offset % 4096).expect("small");
        let mut bytes = self.read(offset / 4096 * 4096, BLOCK).to_vec();
        bytes[at] ^= 0x10;
        self.put(offset / 4096, &bytes);
    }

    fn apply(&mut self, write: &Write) {
        for (index, block) in write.blocks.iter().enumerate() {
            self.0.insert(write.first + index as u64, block.clone());
        }
    }
}

#[derive(Debug, Clone)]
struct Write {
    first: u64,
    blocks: Vec<Block>,
}

/// A drive that keeps what was written.
#[derive(Debug, Clone, Default)]
pub struct Drive {
    pub seen: Image,
    /// Bytes written so far.
    pub written: u64,
    in_flight: BTreeMap<IoToken, Write>,
}

impl Drive {
    pub fn of(image: Image) -> Self {
        Self { seen: image, ..Self::default() }
    }

    fn issue_write(&mut self, token: IoToken, offset: u64, data: &[Bytes]) {
        assert_eq!(offset % 4096, 0);
        let bytes: Vec<u8> = data.iter().flat_map(|part| part.to_vec()).collect();
        let blocks: Vec<Block> = bytes
            .chunks(BLOCK)
            .map(|b| Arc::new(<[u8; BLOCK]>::try_from(b).expect("whole blocks")))
            .collect();
        let write = Write { first: offset / 4096, blocks };
        for other in self.in_flight.values() {
            let ends = (other.first + other.blocks.len() as u64, offset / 4096);
            let apart = ends.0 <= ends.1 || write.first + write.blocks.len() as u64 <= other.first;
            assert!(apart, "two writes to the same blocks at once");
        }
        self.in_flight.insert(token, write);
    }

    fn complete_write(&mut self, token: IoToken) {
        let write = self.in_flight.remove(&token).expect("issued");
        self.written += (write.blocks.len() * BLOCK) as u64;
        self.seen.apply(&write);
    }
}

/// An engine on a simulated drive.
pub struct Bench {
    pub engine: Engine,
    pub drive: Drive,
    /// Where the journal lies, if it lies apart.
    pub journal: Drive,
    pub under_way: VecDeque<Action>,
    pub completed: Vec<(OpToken, Result<Outcome, OpError>)>,
    pub opened: Option<Vec<OpenReplica>>,
    pub out_of_service: Option<String>,
    pub now: Instant,
    next_op: u64,
    /// Reads that were asked of the drive.
    pub reads: usize,
    /// Fail the writes and flushes from now on.
    pub fail_writes: bool,
    pub fail_reads: bool,
    /// There is no space below for what is prepared.
    pub no_space: bool,
}

pub fn geometry(media: Media, drive_bytes: u64) -> Geometry {
    Geometry {
        media,
        drive_bytes,
        journal_bytes: 4 << 20,
        journal: JournalPlace::Inside,
        replicas_max: 4,
        memory_bytes: 16 << 20,
    }
}

impl Bench {
    /// Starts to open; nothing is carried out yet.
    pub fn start(geometry: Geometry, image: Image) -> Self {
        Self::start_seeded(geometry, image, 7)
    }

    pub fn start_seeded(geometry: Geometry, image: Image, seed: u64) -> Self {
        Self::start_on(geometry, (image, Image::default()), seed)
    }

    /// On a drive, and a device where its journal lies, if that lies apart.
    fn start_on(geometry: Geometry, (drive, journal): (Image, Image), seed: u64) -> Self {
        let mut out = Vec::new();
        let now = Instant::ZERO;
        let engine = Engine::open(geometry, seed, now, &mut out).expect("large enough");
        let mut bench = Self {
            engine,
            drive: Drive::of(drive),
            journal: Drive::of(journal),
            under_way: VecDeque::new(),
            completed: Vec::new(),
            opened: None,
            out_of_service: None,
            now,
            next_op: 0,
            reads: 0,
            fail_writes: false,
            fail_reads: false,
            no_space: false,
        };
        bench.take(out);
        bench
    }

    pub fn open(geometry: Geometry, image: Image) -> Self {
        Self::open_on(geometry, (image, Image::default()))
    }

    pub fn open_on(geometry: Geometry, images: (Image, Image)) -> Self {
        let mut bench = Self::start_on(geometry, images, 7);
        bench.run();
        assert!(bench.opened.is_some(), "it opens: {:?}", bench.out_of_service);
        bench
    }

    /// What both devices hold.
    pub fn seen(&self) -> (Image, Image) {
        (self.drive.seen.clone(), self.journal.seen.clone())
    }

    fn device(&mut self, device: Device) -> &mut Drive {
        match device {
            Device::Data => &mut self.drive,
            Device::Journal => &mut self.journal,
        }
    }

    fn take(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::WriteDrive { device, token, offset, ref data, .. } => {
                    self.device(device).issue_write(token, offset, data);
                    self.under_way.push_back(action);
                }
                Action::PrepareDrive { token, offset, length } => {
                    self.drive.issue_write(token, offset, &[vec![0; length as usize].into()]);
                    self.under_way.push_back(action);
                }
                Action::ReadDrive { .. } => {
                    self.reads += 1;
                    self.under_way.push_back(action);
                }
                Action::FlushDrive { .. } => self.under_way.push_back(action),
                Action::Complete { token, outcome } => self.completed.push((token, outcome)),
                Action::Opened { replicas, .. } => {
                    assert!(self.opened.is_none() && self.completed.is_empty());
                    self.opened = Some(replicas);
                }
                Action::DriveOutOfService { reason } => self.out_of_service = Some(reason),
            }
        }
    }

    /// A turn of the caller's with this event alone.
    pub fn event(&mut self, event: Event) {
        let mut out = Vec::new();
        let is_turn_end = event == Event::TimeReached;
        self.engine.handle(self.now, event, &mut out);
        self.take(out);
        if !is_turn_end && self.engine.deadline() == Some(self.now) {
            self.event(Event::TimeReached);
        }
    }

    pub fn request(&mut self, request: Request) -> OpToken {
        let token = OpToken(self.next_op);
        self.next_op += 1;
        self.event(Event::Requested { token, request });
        token
    }

    /// Carries out one action.
    pub fn step(&mut self, index: usize) {
        let action = self.under_way.remove(index).expect("under way");
        let io = |fail: bool| {
            if fail { Err(DriveError::Io("simulated".into())) } else { Ok(()) }
        };
        let event = match action {
            Action::ReadDrive { device, token, offset, length } => {
                let bytes = self.device(device).seen.read(offset, length as usize);
                Event::DriveRead { token, result: io(self.fail_reads).map(|()| bytes) }
            }
            Action::WriteDrive { device, token, .. } => {
                let result = io(self.fail_writes);
                if result.is_ok() {
                    self.device(device).complete_write(token);
                }
                Event::DriveWritten { token, result }
            }
            Action::PrepareDrive { token, .. } => {
                let no_space = self.no_space.then_some(DriveError::NoSpace);
                self.drive.complete_write(token);
                let result = no_space.map_or(io(self.fail_writes), Err);
                Event::DriveWritten { token, result }
            }
            Action::FlushDrive { token, .. } => {
                Event::DriveFlushed { token, result: io(self.fail_writes) }
            }
            other => unreachable!("{other:?} is not a drive action"),
        };
        self.event(event);
    }

    /// Until nothing is under way.
    pub fn run(&mut self) {
        while !self.under_way.is_empty() {
            self.step(0);
        }
    }

    /// Lets time pass until the engine wants none.
    pub fn idle(&mut self) {
        self.run();
        while let Some(at) = self.engine.deadline() {
            self.now = self.now.max(at) + Duration::from_millis(1);
            self.event(Event::TimeReached);
            self.run();
        }
    }

    /// Write-back cycles until the journal holds nothing.
    pub fn cycle(&mut self) {
        self.run();
        for cycle in 0.. {
            if self.engine.usage().journal_bytes_used == 0 {
                return;
            }
            assert!(cycle < 100, "the journal cannot be emptied");
            self.engine.want_cycle();
            self.event(Event::TimeReached);
            self.run();
        }
    }

    /// Runs one request to its end.
    pub fn ask(&mut self, request: Request) -> Result<Outcome, OpError> {
        let token = self.request(request);
        self.run();
        self.outcome(token).expect("it completes when nothing is under way")
    }

    pub fn outcome(&mut self, token: OpToken) -> Option<Result<Outcome, OpError>> {
        let at = self.completed.iter().position(|(t, _)| *t == token)?;
        Some(self.completed.remove(at).1)
    }
}
