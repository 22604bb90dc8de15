//! One connection: its socket, its buffers, what it is.

use std::io;

use bytes::BytesMut;
use format::frame::{self, Frame};

use super::{
    Fault, OUTPUT_BYTES_MAX, OUTPUT_PAUSE_BYTES, RAW_INPUT_BYTES_MAX, READ_BYTES, READ_ROOM_MIN,
    dial::LinkName, output::Output, socket::Stream,
};

/// What a connection carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// Accepted for data frames. `greeted`: its hello was good.
    Inbound { greeted: bool },
    /// Dialed. `connected`: the kernel has finished connecting.
    Dialed { link: LinkName, connected: bool },
    /// Accepted for somebody else's protocol.
    Raw,
}

/// What a read gave.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// The kernel may have more.
    More,
    /// Nothing more for now.
    Drained,
    /// The peer has finished sending.
    Ended,
}

#[derive(Debug)]
pub(super) struct Conn {
    pub(super) stream: Stream,
    pub(super) kind: Kind,
    pub(super) input: BytesMut,
    pub(super) output: Output,
    /// The kernel announced bytes that were not read yet.
    pub(super) readable: bool,
    /// The kernel announced the end of what the peer sends.
    pub(super) read_closed: bool,
    /// The kernel takes bytes.
    pub(super) writable: bool,
    /// In the list of connections to flush.
    pub(super) dirty: bool,
    /// In the list of connections to read.
    pub(super) hot: bool,
    /// Its owner wants nothing more from it for now.
    pub(super) paused: bool,
    /// To be closed when the output is gone; no longer read.
    pub(super) closing: bool,
}

impl Conn {
    pub(super) fn new(stream: Stream, kind: Kind) -> Self {
        Self {
            stream,
            kind,
            input: BytesMut::new(),
            output: Output::default(),
            readable: false,
            read_closed: false,
            writable: false,
            dirty: false,
            hot: false,
            paused: false,
            closing: false,
        }
    }

    /// Back-pressure. Only who answers stops reading: if both ends did, each could wait for the
    /// other for ever.
    pub(super) fn may_read(&self) -> bool {
        let answers = !matches!(self.kind, Kind::Dialed { .. });
        let congested = answers && self.is_congested();
        let glutted = matches!(self.kind, Kind::Raw) && self.input.len() > RAW_INPUT_BYTES_MAX;
        self.readable && !self.paused && !self.closing && !congested && !glutted
    }

    /// Whether the peer is behind with reading its answers.
    pub(super) fn is_congested(&self) -> bool {
        self.output.bytes() > OUTPUT_PAUSE_BYTES
    }

    /// One read from the kernel.
    pub(super) fn read(&mut self) -> io::Result<Read> {
        self.make_room();
        let room = self.input.capacity() - self.input.len();
        match self.stream.read_into(&mut self.input) {
            Ok(0) => Ok(Read::Ended),
            // Less than asked for: the socket is empty, and epoll tells of what comes next.
            Ok(count) if count < room && !self.read_closed => {
                self.readable = false;
                Ok(Read::Drained)
            }
            Ok(_) => Ok(Read::More),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(Read::Drained)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Read::More),
            Err(error) => Err(error),
        }
    }

    /// Frames are packed into large buffers, so that payloads kept for long pin little else.
    fn make_room(&mut self) {
        let room = self.input.capacity() - self.input.len();
        let wanted = match &self.kind {
            // A large raw request grows its buffer in doubling steps.
            Kind::Raw => READ_ROOM_MIN.max(self.input.len() / 2),
            // A frame that has begun must end in this buffer. Its head was checked when the
            // bytes before it were taken, so an error cannot be met here first.
            _ => match frame::frame_len(&self.input) {
                Ok(Some(len)) => READ_ROOM_MIN.max(len.saturating_sub(self.input.len())),
                _ => READ_ROOM_MIN,
            },
        };
        if room < wanted {
            self.input.reserve(wanted.max(READ_BYTES));
        }
    }

    pub(super) fn next_frame(&mut self) -> Result<Option<Frame>, Fault> {
        Ok(frame::decode(&mut self.input)?)
    }

    /// Hands the output to the kernel as far as it takes it.
    pub(super) fn flush(&mut self) -> Result<(), Fault> {
        if self.writable {
            self.writable = self.output.write_to(&mut self.stream)?;
        }
        if self.output.bytes() > OUTPUT_BYTES_MAX {
            return Err(Fault::OutputOverflow(self.output.bytes()));
        }
        Ok(())
    }
}
