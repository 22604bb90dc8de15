//! A simulated drive with a volatile cache, and a bench that runs an engine on it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use model::{time::Instant, volume::Media};

use crate::{
    Engine,
    api::{
        Action, DriveError, Event, Geometry, IoToken, OpError, OpToken, OpenReplica, Outcome,
        Request,
    },
};

const BLOCK: usize = 4096;
type Block = Arc<[u8; BLOCK]>;

/// splitmix64.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

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

    /// Some of the write's blocks, and one perhaps torn at a sector.
    fn apply_some(&mut self, write: &Write, random: &mut Random) {
        for (index, block) in write.blocks.iter().enumerate() {
            let at = write.first + index as u64;
            match random.below(5) {
                0 => {
                    let mut torn = self.read(at * 4096, BLOCK).to_vec();
                    let cut = 512 * usize::try_from(random.below(9)).expect("small");
                    torn[..cut].copy_from_slice(&block[..cut]);
                    self.put(at, &torn);
                }
                1 | 2 => {
                    self.0.insert(at, block.clone());
                }
                _ => {}
            }
        }
    }
}

#[derive(Debug, Clone)]
struct Write {
    first: u64,
    blocks: Vec<Block>,
    /// Completed before that many actions had been issued.
    completed: Option<u64>,
}

/// A drive whose cache loses, at a crash, any part of what was not flushed.
#[derive(Debug, Clone, Default)]
pub struct Drive {
    /// What reads see.
    pub seen: Image,
    stable: Image,
    unstable: BTreeMap<IoToken, Write>,
    issued: u64,
}

impl Drive {
    pub fn of(image: Image) -> Self {
        Self { seen: image.clone(), stable: image, ..Self::default() }
    }

    fn issue_write(&mut self, token: IoToken, offset: u64, data: &[Bytes]) {
        assert_eq!(offset % 4096, 0);
        let bytes: Vec<u8> = data.iter().flat_map(|part| part.to_vec()).collect();
        let blocks: Vec<Block> = bytes
            .chunks(BLOCK)
            .map(|b| Arc::new(<[u8; BLOCK]>::try_from(b).expect("whole blocks")))
            .collect();
        let write = Write { first: offset / 4096, blocks, completed: None };
        for other in self.unstable.values().filter(|w| w.completed.is_none()) {
            let ends = (other.first + other.blocks.len() as u64, offset / 4096);
            let apart = ends.0 <= ends.1 || write.first + write.blocks.len() as u64 <= other.first;
            assert!(apart, "two writes to the same blocks at once");
        }
        self.unstable.insert(token, write);
    }

    fn complete_write(&mut self, token: IoToken) {
        let write = self.unstable.get_mut(&token).expect("issued");
        write.completed = Some(self.issued);
        self.seen.apply(write);
    }

    /// Everything that completed before the action numbered `issued` is stable.
    fn settle(&mut self, issued: u64) {
        let (stable, rest): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.unstable)
            .into_iter()
            .partition(|(_, write)| write.completed.is_some_and(|at| at <= issued));
        stable.values().for_each(|write| self.stable.apply(write));
        self.unstable = rest;
    }

    /// What a crash now leaves.
    pub fn crash(&self, random: &mut Random) -> Image {
        // A killed process loses only what was under way; a dead machine any part of the cache.
        let killed = random.one_in(4);
        let mut image = if killed { self.seen.clone() } else { self.stable.clone() };
        let mut writes: Vec<_> = self.unstable.values().collect();
        writes.sort_by_key(|write| write.completed.unwrap_or(u64::MAX));
        for write in writes {
            match (write.completed.is_some() && killed, random.below(4)) {
                (true, _) | (false, 0) => image.apply(write),
                (false, 1) => {}
                (false, _) => image.apply_some(write, random),
            }
        }
        image
    }
}

/// An engine on a simulated drive.
pub struct Bench {
    pub engine: Engine,
    pub drive: Drive,
    pub under_way: VecDeque<(u64, Action)>,
    pub completed: Vec<(OpToken, Result<Outcome, OpError>)>,
    pub opened: Option<Vec<OpenReplica>>,
    pub out_of_service: Option<String>,
    pub now: Instant,
    next_op: u64,
    /// Fail the writes and flushes from now on.
    pub fail_writes: bool,
    pub fail_reads: bool,
}

pub fn geometry(media: Media, drive_bytes: u64) -> Geometry {
    Geometry { media, drive_bytes, journal_bytes: 4 << 20, replicas_max: 4 }
}

impl Bench {
    /// Starts to open; nothing is carried out yet.
    pub fn start(geometry: Geometry, image: Image) -> Self {
        Self::start_seeded(geometry, image, 7)
    }

    pub fn start_seeded(geometry: Geometry, image: Image, seed: u64) -> Self {
        let mut out = Vec::new();
        let now = Instant::ZERO;
        let engine = Engine::open(geometry, seed, now, &mut out).expect("large enough");
        let mut bench = Self {
            engine,
            drive: Drive::of(image),
            under_way: VecDeque::new(),
            completed: Vec::new(),
            opened: None,
            out_of_service: None,
            now,
            next_op: 0,
            fail_writes: false,
            fail_reads: false,
        };
        bench.take(out);
        bench
    }

    pub fn open(geometry: Geometry, image: Image) -> Self {
        let mut bench = Self::start(geometry, image);
        bench.run();
        assert!(bench.opened.is_some(), "it opens: {:?}", bench.out_of_service);
        bench
    }

    fn take(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::WriteDrive { token, offset, ref data, .. } => {
                    self.drive.issue_write(token, offset, data);
                    self.drive.issued += 1;
                    self.under_way.push_back((self.drive.issued, action));
                }
                Action::ReadDrive { .. } | Action::FlushDrive { .. } => {
                    self.drive.issued += 1;
                    self.under_way.push_back((self.drive.issued, action));
                }
                Action::Complete { token, outcome } => self.completed.push((token, outcome)),
                Action::Opened { replicas } => {
                    assert!(self.opened.is_none() && self.completed.is_empty());
                    self.opened = Some(replicas);
                }
                Action::DriveOutOfService { reason } => self.out_of_service = Some(reason),
            }
        }
    }

    pub fn event(&mut self, event: Event) {
        let mut out = Vec::new();
        self.engine.handle(self.now, event, &mut out);
        self.take(out);
    }

    pub fn request(&mut self, request: Request) -> OpToken {
        let token = OpToken(self.next_op);
        self.next_op += 1;
        self.event(Event::Requested { token, request });
        token
    }

    /// Carries out one action.
    pub fn step(&mut self, index: usize) {
        let (issued, action) = self.under_way.remove(index).expect("under way");
        let io = |fail: bool| {
            if fail { Err(DriveError::Io("simulated".into())) } else { Ok(()) }
        };
        let event = match action {
            Action::ReadDrive { token, offset, length } => {
                let bytes = self.drive.seen.read(offset, length as usize);
                Event::DriveRead { token, result: io(self.fail_reads).map(|()| bytes) }
            }
            Action::WriteDrive { token, durable, .. } => {
                let result = io(self.fail_writes);
                if result.is_ok() {
                    self.drive.complete_write(token);
                    if durable {
                        self.drive.settle(issued - 1);
                        let write = self.drive.unstable.remove(&token);
                        let write = write.expect("it completed after it was issued");
                        self.drive.stable.apply(&write);
                    }
                }
                Event::DriveWritten { token, result }
            }
            Action::FlushDrive { token } => {
                let result = io(self.fail_writes);
                if result.is_ok() {
                    self.drive.settle(issued - 1);
                }
                Event::DriveFlushed { token, result }
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
