//! The same jobs on a file that is written in full, with nothing between them and the kernel: one
//! thread, `io_uring`, no page cache.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io::ErrorKind,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use io_uring::{IoUring, opcode, types};

use super::{Job, Kind, Outcome, prewrite, serve};
use crate::load::worker::Numbers;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file; made when missing
    #[arg(long)]
    file: PathBuf,
    #[arg(long, default_value_t = 2)]
    gib: u64,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    prewrite(&args.file, args.gib << 30)?;
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(&args.file)
        .with_context(|| format!("cannot open {}", args.file.display()))?;
    let ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(256)
        .context("no io_uring here")?;
    let mut raw = Raw {
        file,
        ring,
        bytes: args.gib << 30,
        memory: vec![0x5a; (256 << 20) + 4096],
        numbers: Numbers::new(11),
        position: 0,
        begun: vec![Instant::now(); 256],
    };
    serve(|job| match job.kind {
        Kind::RandomWrite => raw.grouped(job),
        Kind::RandomRead | Kind::SequentialWrite => raw.streamed(job),
        Kind::SequentialRead | Kind::ReadBeside => bail!("{:?} is a job of an engine", job.kind),
    })
}

struct Raw {
    file: File,
    ring: IoUring,
    bytes: u64,
    memory: Vec<u8>,
    numbers: Numbers,
    position: u64,
    /// By number: when a transfer under way was handed over.
    begun: Vec<Instant>,
}

impl Raw {
    /// As many writes at once as the depth says, then one `fdatasync`, again and again.
    fn grouped(&mut self, job: Job) -> anyhow::Result<Outcome> {
        let began = Instant::now();
        let mut latencies = Vec::new();
        while began.elapsed() < job.time {
            let round = Instant::now();
            for index in 0..job.depth {
                self.push(job.kind, index)?;
            }
            self.wait_for(job.depth)?;
            self.reap(job.kind)?;
            self.file.sync_data()?;
            latencies.extend(std::iter::repeat_n(round.elapsed(), job.depth));
        }
        outcome(began, latencies)
    }

    /// The next as soon as one has ended. Writes are durable in the end.
    fn streamed(&mut self, job: Job) -> anyhow::Result<Outcome> {
        let began = Instant::now();
        let mut latencies = Vec::new();
        let mut under_way = 0;
        let mut free: Vec<usize> = (0..job.depth).collect();
        loop {
            while let Some(index) = free.pop_if(|_| began.elapsed() < job.time) {
                self.push(job.kind, index)?;
                under_way += 1;
            }
            if under_way == 0 {
                break;
            }
            self.wait_for(1)?;
            for index in self.reap(job.kind)? {
                latencies.push(self.begun[index].elapsed());
                under_way -= 1;
                free.push(index);
            }
        }
        if job.kind != Kind::RandomRead {
            self.file.sync_data()?;
        }
        outcome(began, latencies)
    }

    fn push(&mut self, kind: Kind, index: usize) -> anyhow::Result<()> {
        let bytes = u64::from(kind.bytes());
        let offset = match kind {
            Kind::RandomRead | Kind::RandomWrite => self.numbers.below(self.bytes / bytes) * bytes,
            Kind::SequentialWrite | Kind::SequentialRead | Kind::ReadBeside => {
                self.position += bytes;
                (self.position - bytes) % self.bytes
            }
        };
        self.begun[index] = Instant::now();
        let room = kind.bytes() as usize;
        let start = self.memory.as_ptr().align_offset(4096) + index * room;
        let memory = self.memory[start..start + room].as_mut_ptr();
        let file = types::Fd(self.file.as_raw_fd());
        let entry = match kind {
            Kind::RandomRead => {
                opcode::Read::new(file, memory, kind.bytes()).offset(offset).build()
            }
            _ => opcode::Write::new(file, memory, kind.bytes()).offset(offset).build(),
        };
        let entry = entry.user_data(u64::try_from(index).expect("usize fits u64"));
        // SAFETY: the memory and the file live as long as the ring, and nothing else uses this
        // part of the memory until the transfer has been reaped.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.context("the ring has room for every depth")
    }

    /// Hands over what was pushed and waits until so many have ended.
    fn wait_for(&mut self, count: usize) -> anyhow::Result<()> {
        loop {
            match self.ring.submit_and_wait(count) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                done => return done.map(drop).context("waiting for transfers"),
            }
        }
    }

    /// Numbers of the transfers that have ended.
    fn reap(&mut self, kind: Kind) -> anyhow::Result<Vec<usize>> {
        let mut ended = Vec::new();
        for entry in self.ring.completion() {
            let whole = i64::from(entry.result()) == i64::from(kind.bytes());
            ensure!(whole, "a transfer ended with {}", entry.result());
            ended.push(usize::try_from(entry.user_data()).expect("we numbered it"));
        }
        Ok(ended)
    }
}

fn outcome(began: Instant, latencies: Vec<Duration>) -> anyhow::Result<Outcome> {
    let operations = u64::try_from(latencies.len()).context("usize fits u64")?;
    Ok(Outcome { operations, elapsed: began.elapsed(), latencies })
}

/// What all threads of this process have used.
pub fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: plain data for the kernel to fill in.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    assert_eq!(result, 0, "every process has this clock");
    let seconds = u64::try_from(time.tv_sec).expect("time goes forward");
    Duration::new(seconds, u32::try_from(time.tv_nsec).expect("below a second"))
}
