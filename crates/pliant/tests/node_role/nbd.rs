//! A small NBD client whose requests the test sends and awaits one by one.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use bytes::{Buf, BufMut};

pub const SHUTDOWN: u32 = 108;

pub struct Client {
    stream: UnixStream,
    /// Bytes that each unanswered request asked for.
    asked: BTreeMap<u64, usize>,
    last: u64,
}

#[derive(Debug)]
pub struct Answer {
    pub request: u64,
    pub error: u32,
    pub data: Vec<u8>,
}

impl Client {
    /// Opens the default export.
    pub fn open(socket: &Path) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        let mut out = Vec::new();
        out.put_u32(3);
        out.put_slice(b"IHAVEOPT");
        out.put_u32(1);
        out.put_u32(0);
        stream.write_all(&out)?;
        stream.read_exact(&mut [0; 10])?;
        Ok(Self { stream, asked: BTreeMap::new(), last: 0 })
    }

    pub fn send_write(&mut self, offset: u64, data: &[u8]) -> io::Result<u64> {
        self.send(1, offset, u32::try_from(data.len()).expect("small"), data)
    }

    pub fn send_read(&mut self, offset: u64, length: u32) -> io::Result<u64> {
        self.send(0, offset, length, &[])
    }

    fn send(&mut self, command: u16, offset: u64, length: u32, data: &[u8]) -> io::Result<u64> {
        self.last += 1;
        let expected = if command == 0 { usize::try_from(length).expect("small") } else { 0 };
        self.asked.insert(self.last, expected);
        let mut out = Vec::new();
        out.put_u32(0x2560_9513);
        out.put_u16(0);
        out.put_u16(command);
        out.put_u64(self.last);
        out.put_u64(offset);
        out.put_u32(length);
        out.put_slice(data);
        self.stream.write_all(&out)?;
        Ok(self.last)
    }

    /// The next answer, to whichever request.
    pub fn answer(&mut self) -> io::Result<Answer> {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head)?;
        let mut head = &head[..];
        assert_eq!(head.get_u32(), 0x6744_6698);
        let (error, request) = (head.get_u32(), head.get_u64());
        let expected = self.asked.remove(&request).expect("an answer to what was asked once");
        let mut data = vec![0; if error == 0 { expected } else { 0 }];
        self.stream.read_exact(&mut data)?;
        Ok(Answer { request, error, data })
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.send_write(offset, data)?;
        assert_eq!(self.answer()?.error, 0, "write at {offset}");
        Ok(())
    }

    pub fn read(&mut self, offset: u64, length: u32) -> io::Result<Vec<u8>> {
        self.send_read(offset, length)?;
        let answer = self.answer()?;
        assert_eq!(answer.error, 0, "read at {offset}");
        Ok(answer.data)
    }
}
