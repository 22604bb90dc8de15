//! Answers in the transmission phase: simple replies, or structured ones where they were agreed.

use bytes::{BufMut, Bytes, BytesMut};

use super::wire::{self, chunk};

/// A request that waits for its answer, and all that is needed to encode it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pending {
    cookie: u64,
    structured: bool,
    asked: Asked,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Read { offset: u64 },
    Write,
    BlockStatus { one: bool },
    Other,
}

/// The errors of the protocol that we answer with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NbdError {
    #[error("input or output error")]
    Io = 5,
    #[error("invalid request")]
    Invalid = 22,
    #[error("beyond the end of the device")]
    NoSpace = 28,
    #[error("the server is shutting down")]
    Shutdown = 108,
}

/// Runs in one block status answer: 512 KiB of it. Those that do not fit are left out, as the
/// protocol allows.
const RUNS_MAX: usize = 64 << 10;
/// Below this a hole costs about as much to describe as the zeros.
const HOLE_BYTES_MIN: usize = 4096;

impl Pending {
    pub(super) fn new(cookie: u64, structured: bool, asked: Asked) -> Self {
        Self { cookie, structured, asked }
    }

    /// The client's name for the request.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Success of anything that returns no data.
    pub fn done(&self) -> Bytes {
        assert!(
            matches!(self.asked, Asked::Write | Asked::Other),
            "a read or block status answered without data"
        );
        self.simple(0)
    }

    /// Success of a read: what to send, in order. `data` is not copied.
    pub fn data(&self, data: Bytes) -> [Bytes; 2] {
        let Asked::Read { offset } = self.asked else { panic!("data for what is no read") };
        if !self.structured {
            return [self.simple(0), data];
        }
        let length = u32::try_from(data.len()).expect("reads are bounded");
        if data.len() >= HOLE_BYTES_MIN && is_zero(&data) {
            let mut hole = self.chunk(chunk::OFFSET_HOLE, 12);
            hole.put_u64(offset);
            hole.put_u32(length);
            return [hole.freeze(), Bytes::new()];
        }
        let mut head = self.chunk(chunk::OFFSET_DATA, length + 8);
        head.put_u64(offset);
        [head.freeze(), data]
    }

    /// Success of a block status request: runs of `(length, is_hole)` from its offset on. There
    /// is at least one and none is empty.
    pub fn blocks(&self, runs: &[(u32, bool)]) -> Bytes {
        let Asked::BlockStatus { one } = self.asked else { panic!("blocks were not asked for") };
        assert!(!runs.is_empty(), "a block status answer without a run");
        let runs = &runs[..runs.len().min(if one { 1 } else { RUNS_MAX })];
        let length = u32::try_from(4 + 8 * runs.len()).expect("bounded above");
        let mut out = self.chunk(chunk::BLOCK_STATUS, length);
        out.put_u32(wire::ALLOCATION_CONTEXT_ID);
        for &(length, is_hole) in runs {
            out.put_u32(length);
            out.put_u32(if is_hole { wire::STATE_HOLE | wire::STATE_ZERO } else { 0 });
        }
        out.freeze()
    }

    pub fn error(&self, error: NbdError) -> Bytes {
        // `as`: the enum's values are the protocol's.
        let code = error as u32;
        if !self.structured {
            return self.simple(code);
        }
        let text = error.to_string();
        let length = u16::try_from(text.len()).expect("our texts are short");
        let mut out = self.chunk(chunk::ERROR, u32::from(length) + 6);
        out.put_u32(code);
        out.put_u16(length);
        out.put_slice(text.as_bytes());
        out.freeze()
    }

    /// The error for a request beyond the end of the device, which depends on what it was.
    pub fn out_of_range(&self) -> Bytes {
        match self.asked {
            Asked::Write => self.error(NbdError::NoSpace),
            Asked::Read { .. } | Asked::BlockStatus { .. } | Asked::Other => {
                self.error(NbdError::Invalid)
            }
        }
    }

    fn simple(&self, error: u32) -> Bytes {
        let mut out = BytesMut::with_capacity(16);
        out.put_u32(wire::SIMPLE_REPLY_MAGIC);
        out.put_u32(error);
        out.put_u64(self.cookie);
        out.freeze()
    }

    /// The head of an answer's only chunk.
    fn chunk(&self, kind: u16, length: u32) -> BytesMut {
        let mut out = BytesMut::with_capacity(96);
        out.put_u32(wire::CHUNK_MAGIC);
        out.put_u16(chunk::FLAG_DONE);
        out.put_u16(kind);
        out.put_u64(self.cookie);
        out.put_u32(length);
        out
    }
}

fn is_zero(data: &[u8]) -> bool {
    // In pieces that the compiler turns into wide comparisons, leaving early.
    data.chunks(256).all(|piece| piece.iter().fold(0, |seen, &byte| seen | byte) == 0)
}
