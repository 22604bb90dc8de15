//! Jobs on a volume that an engine keeps.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::ensure;
use bytes::Bytes;
use engine::api::{Geometry, OpToken, Request};
use format::{data::Change, disk::JournalPlace};
use model::{
    epoch::ModSeq,
    id::ReplicaId,
    units::{BLOCK, ByteCount},
    volume::Media,
};

use super::{Job, Kind, Outcome, prewrite, serve, turning::Turning};
use crate::{
    drive::{self, DriveOptions, Emulated, Flush, LOCK_WAIT, Profile},
    load::worker::Numbers,
    up::Emulation,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// File or block device of the drive; overwritten
    #[arg(long)]
    drive: PathBuf,
    #[arg(long, default_value_t = 6)]
    drive_gib: u64,
    #[arg(long, default_value_t = 2)]
    volume_gib: u64,
    #[arg(long, default_value_t = 64)]
    journal_mib: u64,
    /// A file with holes, and a volume that nobody has written to
    #[arg(long)]
    thin: bool,
    /// What carries out its I/O
    #[arg(long, default_value = "auto")]
    driver: DriverKind,
    /// `hdd`: an emulated one, as `pliant up` has, on the portable driver
    #[arg(long, default_value = "ssd")]
    media: MediaKind,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum MediaKind {
    Ssd,
    Hdd,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum DriverKind {
    Auto,
    #[value(name = "io_uring")]
    IoUring,
    Portable,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(args.volume_gib < args.drive_gib, "the volume must fit the drive");
    let geometry = Geometry {
        media: match args.media {
            MediaKind::Ssd => Media::Ssd,
            MediaKind::Hdd => Media::Hdd,
        },
        drive_bytes: args.drive_gib << 30,
        journal_bytes: args.journal_mib << 20,
        journal: JournalPlace::Inside,
        replicas_max: 16,
        memory_bytes: 64 << 20,
    };
    let turning = open(&args.drive, geometry, args.driver, args.thin)?;
    let mut bench = Bench::prepare(turning, args.volume_gib << 30, args.thin)?;
    serve(|job| bench.measure(job))
}

fn open(
    path: &Path,
    geometry: Geometry,
    driver: DriverKind,
    thin: bool,
) -> anyhow::Result<Turning> {
    let bytes = geometry.drive_bytes;
    // A drive of zeros is formatted, one of before opened: always begin anew.
    let _ = std::fs::remove_file(path);
    if !thin {
        prewrite(path, bytes)?;
    }
    let kind = match driver {
        DriverKind::Auto => drive::DriverKind::Auto,
        DriverKind::IoUring => drive::DriverKind::IoUring,
        DriverKind::Portable => drive::DriverKind::Portable,
    };
    let (path, flush) = (path.to_owned(), Flush::Auto);
    let options =
        DriveOptions { path, bytes, threads: 4, direct: true, kind, flush, lock_wait: LOCK_WAIT };
    let (turning, _) = Turning::open(geometry, None, |sink| match geometry.media {
        Media::Ssd => Ok(drive::open(&options, sink)?),
        Media::Hdd => Ok(Box::new(Emulated::open(emulated(), &options, sink)?)),
    })?;
    tracing::info!(driver = turning.description(), "drive opened");
    Ok(turning)
}

/// As the drives of `pliant up`.
fn emulated() -> Profile {
    let Emulation { seek_ms, ops_per_sec, mib_per_sec } = Emulation::LOCAL;
    Profile { seek: Duration::from_secs_f64(seek_ms / 1000.0), ops_per_sec, mib_per_sec }
}

const REPLICA: u64 = 1;
/// Different contents, each with its checksums: whoever writes has computed them already.
const CONTENTS: usize = 64;

struct Bench {
    turning: Turning,
    volume: u64,
    blocks: Vec<(Bytes, u32)>,
    large: (Bytes, Vec<u32>),
    numbers: Numbers,
    mod_seq: u64,
    /// Where the next sequential write goes.
    position: u64,
    /// Where the next sequential read does.
    read_position: u64,
    /// Requests made for the present job.
    made: usize,
    /// Tokens are not used twice.
    token: u64,
}

impl Bench {
    fn prepare(turning: Turning, volume: u64, thin: bool) -> anyhow::Result<Self> {
        let mut numbers = Numbers::new(7);
        let content = aligned(1 << 20, &mut numbers);
        let block_at = |index: usize| content.slice(index * 4096..(index + 1) * 4096);
        let crcs: Vec<u32> = (0..256).map(|index| crc32c::crc32c(&block_at(index))).collect();
        let blocks = (0..CONTENTS).map(|index| (block_at(index), crcs[index])).collect();
        let mut bench = Self {
            turning,
            volume,
            blocks,
            large: (content.clone(), crcs),
            numbers,
            mod_seq: 0,
            position: 0,
            read_position: 0,
            made: 0,
            token: 0,
        };
        let replica = ReplicaId::from_raw(REPLICA);
        let size = ByteCount::new(volume);
        bench.turning.ask(Request::CreateReplica { replica, size, meta: Bytes::new() })?;
        if !thin {
            // Every block has been written before anything is measured.
            bench.repeat(Kind::SequentialWrite, 8, |bench, _| bench.position < volume)?;
        }
        bench.turning.settle()?;
        Ok(bench)
    }

    fn measure(&mut self, job: Job) -> anyhow::Result<Outcome> {
        let began = Instant::now();
        let latencies = self.repeat(job.kind, job.depth, |_, began| began.elapsed() < job.time)?;
        // What was put off counts too.
        self.turning.settle()?;
        let operations = u64::try_from(latencies.len()).expect("usize fits u64");
        Ok(Outcome { operations, elapsed: began.elapsed(), latencies })
    }

    /// Keeps `depth` requests in flight while `more` says so; how long each took that counts.
    fn repeat(
        &mut self,
        kind: Kind,
        depth: usize,
        more: impl Fn(&Self, Instant) -> bool,
    ) -> anyhow::Result<Vec<Duration>> {
        let began = Instant::now();
        let mut latencies = Vec::new();
        let (mut in_flight, mut beside) = (BTreeMap::new(), BTreeSet::new());
        let (depth, depth_beside) = if kind == Kind::ReadBeside { (1, depth) } else { (depth, 0) };
        self.made = 0;
        loop {
            while in_flight.len() < depth && more(self, began) {
                let token = self.ask(kind);
                in_flight.insert(token, Instant::now());
            }
            while beside.len() < depth_beside && more(self, began) {
                beside.insert(self.ask(Kind::RandomRead));
            }
            if in_flight.is_empty() && beside.is_empty() {
                return Ok(latencies);
            }
            self.turning.turn()?;
            for (token, result) in std::mem::take(&mut self.turning.completed) {
                result?;
                if !beside.remove(&token.0) {
                    let begun = in_flight.remove(&token.0).expect("each is answered once");
                    latencies.push(begun.elapsed());
                }
            }
        }
    }

    fn ask(&mut self, kind: Kind) -> u64 {
        self.made += 1;
        self.token += 1;
        let request = self.request(kind);
        self.turning.request(OpToken(self.token), request);
        self.token
    }

    fn request(&mut self, kind: Kind) -> Request {
        let replica = ReplicaId::from_raw(REPLICA);
        let block = self.numbers.below(self.volume / BLOCK);
        let (offset, crcs, data) = match kind {
            Kind::RandomRead => {
                return Request::ReadStream {
                    replica,
                    offset: block * BLOCK,
                    length: kind.bytes(),
                };
            }
            Kind::SequentialRead | Kind::ReadBeside => {
                let offset = self.read_position % self.volume;
                self.read_position += u64::from(kind.bytes());
                return Request::ReadStream { replica, offset, length: kind.bytes() };
            }
            Kind::RandomWrite => {
                let content = usize::try_from(self.mod_seq).expect("u64 fits usize") % CONTENTS;
                let (data, crc) = self.blocks[content].clone();
                (block * BLOCK, vec![crc], data)
            }
            Kind::SequentialWrite => {
                let offset = self.position % self.volume;
                self.position += u64::from(kind.bytes());
                (offset, self.large.1.clone(), self.large.0.clone())
            }
        };
        self.mod_seq += 1;
        let mod_seq = ModSeq::from_raw(self.mod_seq);
        Request::Change { replica, mod_seq, offset, change: Change::Write { crcs, data } }
    }
}

/// Bytes that begin on a block boundary.
fn aligned(length: usize, numbers: &mut Numbers) -> Bytes {
    let mut memory = vec![0; length + 4096];
    let start = memory.as_ptr().align_offset(4096);
    for word in memory[start..start + length].chunks_exact_mut(8) {
        word.copy_from_slice(&numbers.next().to_le_bytes());
    }
    Bytes::from(memory).slice(start..start + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_job_is_done_while_the_journal_comes_round() {
        let path = std::env::temp_dir().join(format!("pliant-bench-{}", std::process::id()));
        let (drive_bytes, journal_bytes) = (64 << 20, 4 << 20);
        let (media, memory_bytes) = (Media::Ssd, 1 << 20);
        let (journal, replicas_max) = (JournalPlace::Inside, 4);
        let geometry =
            Geometry { media, drive_bytes, journal_bytes, journal, replicas_max, memory_bytes };
        let turning = open(&path, geometry, DriverKind::Portable, false).expect("a drive");
        let mut bench = Bench::prepare(turning, 32 << 20, false).expect("a volume");
        let jobs = [
            (Kind::RandomWrite, 2000),
            (Kind::SequentialWrite, 40),
            (Kind::RandomRead, 500),
            (Kind::SequentialRead, 500),
        ];
        for (kind, count) in jobs {
            let latencies = bench.repeat(kind, 32, |bench, _| bench.made < count).expect("a drive");
            assert_eq!(latencies.len(), count, "{kind:?}");
        }
        let beside = bench.repeat(Kind::ReadBeside, 32, |bench, _| bench.made < 500);
        let counted = beside.expect("a drive").len();
        assert!((1..=468).contains(&counted), "{counted} of 500 are in sequence");
        std::fs::remove_file(path).expect("ours");
    }
}
