//! Transmission: requests, each checked before its payload is waited for.

use bytes::{Buf, Bytes, BytesMut};

use super::{
    CloseReason, Event, NbdError, NbdRequest, PAYLOAD_BYTES_MAX, Pending, STATUS_BYTES_MAX, Step,
    reply::Asked,
    wire::{self, command, command_flag},
};

/// What was agreed for this connection.
#[derive(Debug)]
pub struct Transmission {
    structured: bool,
    block_status: bool,
}

struct Header {
    flags: u16,
    command: u16,
    cookie: u64,
    offset: u64,
    length: u32,
}

impl Header {
    fn decode(mut bytes: &[u8]) -> Result<Self, CloseReason> {
        if bytes.get_u32() != wire::REQUEST_MAGIC {
            return Err(CloseReason::Malformed("bad request magic"));
        }
        Ok(Self {
            flags: bytes.get_u16(),
            command: bytes.get_u16(),
            cookie: bytes.get_u64(),
            offset: bytes.get_u64(),
            length: bytes.get_u32(),
        })
    }
}

impl Transmission {
    pub fn new(structured: bool, block_status: bool) -> Self {
        Self { structured, block_status }
    }

    pub fn step(
        &mut self,
        input: &mut BytesMut,
        out: &mut Vec<Event>,
    ) -> Result<Step, CloseReason> {
        if input.len() < wire::REQUEST_BYTES {
            return Ok(Step::Stalled);
        }
        let header = Header::decode(&input[..wire::REQUEST_BYTES])?;
        let payload = if header.command == command::WRITE { header.length } else { 0 };
        if payload > PAYLOAD_BYTES_MAX {
            // Everything up to 4 GiB would have to be read to find the next request.
            return Err(CloseReason::Malformed("write payload beyond 32 MiB"));
        }
        let whole = wire::REQUEST_BYTES + usize::try_from(payload).expect("bounded above");
        if input.len() < whole {
            input.reserve(whole - input.len());
            return Ok(Step::Stalled);
        }
        let mut data = input.split_to(whole).freeze();
        data.advance(wire::REQUEST_BYTES);
        if header.command == command::DISC {
            return Err(CloseReason::Disconnected);
        }
        let pending = Pending::new(header.cookie, self.structured, asked(&header));
        out.push(match self.check(&header, data) {
            Ok(request) => Event::Request { pending, request },
            Err(error) => Event::Send(pending.error(error)),
        });
        Ok(Step::Made)
    }

    fn check(&self, header: &Header, data: Bytes) -> Result<NbdRequest, NbdError> {
        let &Header { flags, offset, length, .. } = header;
        if flags & !self.flags_allowed(header.command) != 0 {
            return Err(NbdError::Invalid);
        }
        if offset.checked_add(u64::from(length)).is_none() {
            return Err(NbdError::Invalid);
        }
        if (length == 0) != (header.command == command::FLUSH) {
            return Err(NbdError::Invalid);
        }
        let fua = flags & command_flag::FUA != 0;
        match header.command {
            command::READ if length > PAYLOAD_BYTES_MAX => Err(NbdError::Invalid),
            command::READ => Ok(NbdRequest::Read { offset, length }),
            command::WRITE => Ok(NbdRequest::Write { offset, data, fua }),
            command::FLUSH => Ok(NbdRequest::Flush),
            command::TRIM => Ok(NbdRequest::Trim { offset, length, fua }),
            // A hole is as good as zeros here: space is promised per volume, not per block.
            command::WRITE_ZEROES => Ok(NbdRequest::WriteZeroes { offset, length, fua }),
            command::BLOCK_STATUS if self.block_status => {
                Ok(NbdRequest::BlockStatus { offset, length: length.min(STATUS_BYTES_MAX) })
            }
            _ => Err(NbdError::Invalid),
        }
    }

    /// FUA is accepted, and means nothing, on commands that do not write.
    fn flags_allowed(&self, command: u16) -> u16 {
        command_flag::FUA
            | match command {
                command::READ if self.structured => command_flag::DF,
                command::WRITE_ZEROES => command_flag::NO_HOLE,
                command::BLOCK_STATUS => command_flag::REQ_ONE,
                _ => 0,
            }
    }
}

fn asked(header: &Header) -> Asked {
    match header.command {
        command::READ => Asked::Read { offset: header.offset },
        command::WRITE | command::WRITE_ZEROES => Asked::Write,
        command::BLOCK_STATUS => {
            Asked::BlockStatus { one: header.flags & command_flag::REQ_ONE != 0 }
        }
        _ => Asked::Other,
    }
}
