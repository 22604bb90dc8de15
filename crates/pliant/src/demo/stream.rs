//! Streams input onto a volume and reads it back, by NBD, several requests in flight.

use std::{
    collections::VecDeque,
    io::{self, Read},
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

use crate::load::nbd::{Address, Client, Command};

const CHUNK_BYTES: usize = 1 << 20;
const DEPTH: usize = 8;
const PATIENCE: Duration = Duration::from_secs(120);

/// What was streamed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Streamed {
    pub bytes: u64,
    pub sha256: String,
    pub io_errors: u64,
}

/// Writes at most `limit` bytes of `input` to the head of the volume. The last block is padded
/// with zeros, which count neither as bytes nor in the digest.
pub fn write(
    address: &Address,
    mut input: impl Read,
    limit: u64,
    progress: &mut dyn FnMut(u64),
) -> io::Result<Streamed> {
    let mut client = Client::connect(address, PATIENCE)?;
    let mut digest = Sha256::new();
    let (mut bytes, mut io_errors, mut offset) = (0, 0, 0);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let want = usize::try_from((limit - bytes).min(CHUNK_BYTES as u64)).expect("a chunk");
        let got = read_full(&mut input, &mut chunk[..want])?;
        if got == 0 {
            break;
        }
        digest.update(&chunk[..got]);
        let padded = got.next_multiple_of(4096);
        chunk[got..padded].fill(0);
        if client.in_flight() == DEPTH {
            io_errors += u64::from(client.receive()?.error != 0);
        }
        let length = u32::try_from(padded).expect("a chunk fits u32");
        client.send(Command::Write, offset, length, &chunk[..padded])?;
        offset += u64::from(length);
        bytes += u64::try_from(got).expect("a chunk");
        progress(bytes);
    }
    while client.in_flight() > 0 {
        io_errors += u64::from(client.receive()?.error != 0);
    }
    Ok(Streamed { bytes, sha256: hex(digest), io_errors })
}

/// Reads `bytes` back from the head of the volume.
pub fn read(address: &Address, bytes: u64, progress: &mut dyn FnMut(u64)) -> io::Result<Streamed> {
    let mut client = Client::connect(address, PATIENCE)?;
    let mut digest = Sha256::new();
    let (mut sent, mut taken, mut io_errors) = (0, 0, 0);
    let mut order = VecDeque::new();
    let mut early = std::collections::BTreeMap::new();
    while taken < bytes {
        while sent < bytes && order.len() < DEPTH {
            let length = (bytes - sent).min(CHUNK_BYTES as u64);
            let padded = u32::try_from(length.next_multiple_of(4096)).expect("a chunk");
            let cookie = client.send(Command::Read, sent, padded, &[])?;
            order.push_back((cookie, length));
            sent += length;
        }
        let (cookie, length) = *order.front().expect("something is in flight");
        while !early.contains_key(&cookie) {
            let finished = client.receive()?;
            io_errors += u64::from(finished.error != 0);
            early.insert(finished.cookie, finished.data);
        }
        let data = early.remove(&cookie).expect("received above");
        let length_usize = usize::try_from(length).expect("a chunk").min(data.len());
        digest.update(&data[..length_usize]);
        order.pop_front();
        taken += length;
        progress(taken);
    }
    Ok(Streamed { bytes, sha256: hex(digest), io_errors })
}

fn read_full(input: &mut impl Read, out: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < out.len() {
        match input.read(&mut out[filled..])? {
            0 => break,
            got => filled += got,
        }
    }
    Ok(filled)
}

fn hex(digest: Sha256) -> String {
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Speed of a stream so far, for people.
pub fn mib_per_sec(bytes: u64, since: Instant) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let mib = bytes as f64 / (1 << 20) as f64;
    mib / since.elapsed().as_secs_f64().max(0.001)
}
