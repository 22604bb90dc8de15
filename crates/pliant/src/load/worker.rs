//! One worker of the load: one connection, one request in flight, its own share of the blocks.

use std::{
    collections::BTreeMap,
    io,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use super::{
    Params, Seen,
    nbd::{Client, Command, Finished},
    stats::Sample,
};

pub const BLOCK_BYTES: u32 = 4096;
const BLOCK: u64 = 4096;

/// Version of each block that the worker has written; a block that is missing was never written.
pub type Expected = BTreeMap<u64, u64>;

/// Splitmix64, after Steele, Lea and Flood: a stream of well-mixed numbers from any seed.
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Fills `block` with what version `version` of block `index` holds: every eight bytes depend on
/// seed, index, version and position, so a misplaced, torn or stale block shows.
pub fn fill(block: &mut [u8], seed: u64, index: u64, version: u64) {
    let mut numbers = Numbers::new(seed ^ index.rotate_left(20) ^ version.rotate_left(44));
    for word in block.chunks_exact_mut(8) {
        word.copy_from_slice(&numbers.next().to_le_bytes());
    }
}

pub fn run(params: &Params, index: u64, start: Instant, stop: &AtomicBool) -> (Seen, Expected) {
    let mut worker = Worker {
        params,
        seen: Seen::default(),
        expected: Expected::new(),
        numbers: Numbers::new(params.seed ^ (index + 1).wrapping_mul(0x9e37)),
        client: None,
        start,
    };
    let blocks_per_request = u64::from(params.request_bytes) / BLOCK;
    let slots = params.length / BLOCK / blocks_per_request / params.workers;
    assert!(slots > 0, "the range is too small for {} workers", params.workers);
    let pause = params.rate.map(|rate| {
        #[expect(clippy::cast_precision_loss, reason = "a handful of workers")]
        Duration::from_secs_f64(params.workers as f64 / rate)
    });
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        if let Some(pause) = pause {
            std::thread::park_timeout(due.saturating_duration_since(Instant::now()));
            due = (due + pause).max(Instant::now() - pause);
        }
        let slot = worker.numbers.below(slots) * params.workers + index;
        let read = worker.numbers.below(100) < params.read_percent;
        let first = slot * blocks_per_request;
        let result = if read { worker.read(first) } else { worker.write(first) };
        if let Err(error) = result {
            worker.seen.failure = Some(error.to_string());
            break;
        }
    }
    (worker.seen, worker.expected)
}

struct Worker<'a> {
    params: &'a Params,
    seen: Seen,
    expected: Expected,
    numbers: Numbers,
    client: Option<Client>,
    start: Instant,
}

impl Worker<'_> {
    fn write(&mut self, first: u64) -> io::Result<()> {
        let blocks = u64::from(self.params.request_bytes) / BLOCK;
        let mut data = vec![0; usize::try_from(self.params.request_bytes).expect("u32")];
        let mut versions = Vec::new();
        for (block, bytes) in (first..first + blocks).zip(data.chunks_exact_mut(4096)) {
            let version = self.expected.get(&block).map_or(1, |v| v + 1);
            fill(bytes, self.params.seed, block, version);
            versions.push((block, version));
        }
        let finished = self.until_answered(Command::Write, first, &data)?;
        if finished.error == 0 {
            self.expected.extend(versions);
        } else {
            self.seen.io_errors += 1;
        }
        Ok(())
    }

    fn read(&mut self, first: u64) -> io::Result<()> {
        let finished = self.until_answered(Command::Read, first, &[])?;
        if finished.error != 0 {
            self.seen.io_errors += 1;
            return Ok(());
        }
        let mut wanted = [0; 4096];
        for (block, bytes) in (first..).zip(finished.data.chunks_exact(4096)) {
            if let Some(&version) = self.expected.get(&block) {
                fill(&mut wanted, self.params.seed, block, version);
                self.seen.mismatches += u64::from(wanted != bytes);
            }
        }
        Ok(())
    }

    /// Sends the request, again on a new connection when one is lost, until it is answered or
    /// patience ends.
    fn until_answered(
        &mut self,
        command: Command,
        first: u64,
        data: &[u8],
    ) -> io::Result<Finished> {
        let began = Instant::now();
        let offset = self.params.offset + first * BLOCK;
        loop {
            let length = self.params.request_bytes;
            let result = self.client().and_then(|c| c.call(command, offset, length, data));
            match result {
                Ok(finished) => {
                    let latency_us = micros(began.elapsed());
                    let at_us = micros(self.start.elapsed());
                    self.seen.samples.push(Sample { at_us, latency_us });
                    return Ok(finished);
                }
                Err(error) if began.elapsed() > self.params.patience => return Err(error),
                Err(_) => {
                    self.client = None;
                    self.seen.reconnects += 1;
                    std::thread::park_timeout(Duration::from_millis(20));
                }
            }
        }
    }

    fn client(&mut self) -> io::Result<&mut Client> {
        if self.client.is_none() {
            self.client = Some(Client::connect(&self.params.address, self.params.patience)?);
        }
        Ok(self.client.as_mut().expect("set above"))
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Reads back every block of `expected`; returns how many were checked and how many were wrong.
pub fn verify(params: &Params, expected: &Expected, client: &mut Client) -> io::Result<(u64, u64)> {
    let mut wrong = 0;
    let mut wanted = [0; 4096];
    for (&block, &version) in expected {
        let offset = params.offset + block * BLOCK;
        let finished = client.call(Command::Read, offset, BLOCK_BYTES, &[])?;
        fill(&mut wanted, params.seed, block, version);
        wrong += u64::from(finished.error != 0 || finished.data != wanted);
    }
    Ok((u64::try_from(expected.len()).expect("usize fits u64"), wrong))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_tells_block_version_and_seed_apart() {
        let content = |seed, index, version| {
            let mut block = [0; 4096];
            fill(&mut block, seed, index, version);
            block
        };
        let one = content(1, 2, 3);
        assert_eq!(one, content(1, 2, 3));
        for other in [content(2, 2, 3), content(1, 3, 3), content(1, 2, 4)] {
            assert_ne!(one, other);
        }
    }
}
