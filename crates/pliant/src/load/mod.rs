//! A verifying load: writes blocks whose content says what they are, reads them back, and knows
//! at any moment what each must hold.
//!
//! Decides: what is written where, and whether what came back is right.
//! Does not: know Pliant. It speaks NBD, so it measures what any program would see.
//! Invariants: a block belongs to one worker, which has one request in flight; so a block's
//! expected content is known exactly, also across a lost connection: the same request is sent
//! again until it is answered, and nothing else touches the block meanwhile.

pub mod command;
pub mod nbd;
pub mod stats;
pub mod worker;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nbd::Address;
use stats::Sample;

/// What the load is.
#[derive(Debug, Clone)]
pub struct Params {
    pub address: Address,
    /// First byte of the range that the load owns; a multiple of a block.
    pub offset: u64,
    pub length: u64,
    /// Workers, each with one connection and one request in flight.
    pub workers: u64,
    /// Of a hundred requests, how many are reads.
    pub read_percent: u64,
    /// Bytes of each request; a multiple of a block.
    pub request_bytes: u32,
    pub seed: u64,
    /// Most requests per second of the whole load; none: as fast as it goes.
    pub rate: Option<f64>,
    /// How long an answer may take before the load gives up: longer than any failover.
    pub patience: Duration,
}

/// What a worker saw.
#[derive(Debug, Default)]
pub struct Seen {
    pub samples: Vec<Sample>,
    /// Answers with an NBD error.
    pub io_errors: u64,
    /// Blocks that did not hold what was last acknowledged.
    pub mismatches: u64,
    pub reconnects: u64,
    /// Why the worker ended early.
    pub failure: Option<String>,
}

/// A load that is running. Dropping it without [`Running::stop`] leaves the threads to end with
/// the process.
pub struct Running {
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<(Seen, worker::Expected)>>,
    params: Params,
}

/// The outcome of a load, before the final read-back.
pub struct Ended {
    pub seen: Seen,
    expected: Vec<worker::Expected>,
    params: Params,
}

/// Starts the workers. `start` is the moment that sample times count from.
pub fn start(params: &Params, start: Instant) -> Running {
    assert!(params.workers > 0, "a load needs a worker");
    assert!(params.request_bytes.is_multiple_of(worker::BLOCK_BYTES), "whole blocks");
    let stop = Arc::new(AtomicBool::new(false));
    let workers = (0..params.workers)
        .map(|index| {
            let (params, stop) = (params.clone(), Arc::clone(&stop));
            std::thread::spawn(move || worker::run(&params, index, start, &stop))
        })
        .collect();
    Running { stop, workers, params: params.clone() }
}

impl Running {
    /// Lets every request in flight finish and collects what was seen.
    pub fn stop(self) -> Ended {
        self.stop.store(true, Ordering::Relaxed);
        let mut seen = Seen::default();
        let mut expected = Vec::new();
        for worker in self.workers {
            let (one, blocks) = worker.join().expect("a worker does not panic");
            seen.samples.extend(one.samples);
            seen.io_errors += one.io_errors;
            seen.mismatches += one.mismatches;
            seen.reconnects += one.reconnects;
            seen.failure = seen.failure.or(one.failure);
            expected.push(blocks);
        }
        seen.samples.sort_by_key(|s| s.at_us);
        Ended { seen, expected, params: self.params }
    }

    /// Whether a worker gave up before it was told to stop.
    pub fn has_failed(&self) -> bool {
        self.workers.iter().any(JoinHandle::is_finished)
    }
}

impl Ended {
    /// Reads back everything the load ever wrote; returns the blocks checked and how many were
    /// wrong.
    pub fn verify(&self) -> io::Result<(u64, u64)> {
        let mut client = nbd::Client::connect(&self.params.address, self.params.patience)?;
        let (mut checked, mut wrong) = (0, 0);
        for expected in &self.expected {
            let (c, w) = worker::verify(&self.params, expected, &mut client)?;
            checked += c;
            wrong += w;
        }
        Ok((checked, wrong))
    }
}
