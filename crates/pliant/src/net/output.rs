//! What is queued for one connection, in order.
//!
//! Headers and small payloads are encoded one after the other into one buffer; larger payloads
//! stay where they are and are handed to `writev`.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, Write},
};

use bytes::{Buf, Bytes, BytesMut};
use format::frame::Frame;

use super::PAYLOAD_COPY_BYTES_MAX;

/// Slices of one `writev`.
const SLICES_MAX: usize = 256;
/// Room for heads that is asked for at once.
const HEAD_BYTES: usize = 16 << 10;

#[derive(Debug, Default)]
pub(super) struct Output {
    segments: VecDeque<Bytes>,
    /// Encoded after the last segment.
    tail: BytesMut,
    bytes: usize,
}

impl Output {
    pub(super) fn push_frame(&mut self, frame: &Frame) {
        if self.tail.capacity() - self.tail.len() < 256 {
            self.tail.reserve(HEAD_BYTES);
        }
        frame.encode_head(&mut self.tail);
        self.bytes += frame.wire_len();
        if frame.payload.len() <= PAYLOAD_COPY_BYTES_MAX {
            self.tail.extend_from_slice(&frame.payload);
        } else {
            self.seal();
            self.segments.push_back(frame.payload.clone());
        }
    }

    pub(super) fn push(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        self.bytes += bytes.len();
        if bytes.len() <= PAYLOAD_COPY_BYTES_MAX {
            if self.tail.capacity() - self.tail.len() < bytes.len() {
                self.tail.reserve(HEAD_BYTES);
            }
            self.tail.extend_from_slice(&bytes);
        } else {
            self.seal();
            self.segments.push_back(bytes);
        }
    }

    /// Bytes not yet taken by the kernel.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Writes until everything is gone (true) or the kernel takes no more (false).
    pub(super) fn write_to(&mut self, stream: &mut impl Write) -> io::Result<bool> {
        self.seal();
        while !self.segments.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut count = 0;
            for (slice, segment) in slices.iter_mut().zip(&self.segments) {
                *slice = IoSlice::new(segment);
                count += 1;
            }
            match stream.write_vectored(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.segments.push_back(self.tail.split().freeze());
        }
    }

    fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        while written > 0 {
            let first = self.segments.front_mut().expect("no more was written than queued");
            if written < first.len() {
                first.advance(written);
                return;
            }
            written -= first.len();
            self.segments.pop_front();
        }
    }
}
