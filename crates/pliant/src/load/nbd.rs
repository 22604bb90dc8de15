//! A small NBD client: what the load generator and the demo reach a volume by.
//!
//! Decides nothing about the load. It speaks fixed newstyle with simple replies, over a unix
//! socket or TCP, with as many requests in flight as the caller sends before it receives.

use std::{
    collections::BTreeMap,
    io::{self, IoSlice, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    time::Duration,
};

const INIT_MAGIC: &[u8; 16] = b"NBDMAGICIHAVEOPT";
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERROR: u32 = 1 << 31;

/// Where an export is: parsed from `nbd://host:port/name` or `nbd+unix:///name?socket=path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Tcp { authority: String, export: String },
    Unix { socket: String, export: String },
}

impl Address {
    pub fn parse(uri: &str) -> Option<Self> {
        if let Some(rest) = uri.strip_prefix("nbd+unix:///") {
            let (export, query) = rest.split_once('?')?;
            let socket = query.split('&').find_map(|p| p.strip_prefix("socket="))?;
            return Some(Self::Unix { socket: socket.to_owned(), export: export.to_owned() });
        }
        let (authority, export) = uri.strip_prefix("nbd://")?.split_once('/')?;
        Some(Self::Tcp { authority: authority.to_owned(), export: export.to_owned() })
    }

    fn export(&self) -> &str {
        match self {
            Self::Tcp { export, .. } | Self::Unix { export, .. } => export,
        }
    }
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn connect(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp { authority, .. } => {
                let stream = TcpStream::connect(authority)?;
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
            Address::Unix { socket, .. } => UnixStream::connect(socket).map(Self::Unix),
        }
    }

    fn set_read_timeout(&self, limit: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(Some(limit)),
            Self::Unix(stream) => stream.set_read_timeout(Some(limit)),
        }
    }

    fn read_exact(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.read_exact(bytes),
            Self::Unix(stream) => stream.read_exact(bytes),
        }
    }

    fn write_all_vectored(&mut self, head: &[u8], data: &[u8]) -> io::Result<()> {
        let mut slices = [IoSlice::new(head), IoSlice::new(data)];
        let mut slices = &mut slices[..];
        while !slices.is_empty() {
            let written = match self {
                Self::Tcp(stream) => stream.write_vectored(slices)?,
                Self::Unix(stream) => stream.write_vectored(slices)?,
            };
            if written == 0 && slices.iter().any(|s| !s.is_empty()) {
                return Err(io::ErrorKind::WriteZero.into());
            }
            IoSlice::advance_slices(&mut slices, written);
            while slices.first().is_some_and(|s| s.is_empty()) {
                slices = &mut slices[1..];
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Read,
    Write,
}

impl Command {
    fn wire(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
        }
    }
}

/// A finished request. `error` is the NBD error number, zero for success.
#[derive(Debug)]
pub struct Finished {
    pub cookie: u64,
    pub error: u32,
    pub data: Vec<u8>,
}

#[derive(Debug)]
pub struct Client {
    stream: Stream,
    size: u64,
    next_cookie: u64,
    /// Cookie and how much data its reply carries.
    in_flight: BTreeMap<u64, usize>,
}

impl Client {
    /// `patience` bounds every wait for the server. It must be longer than a failover.
    pub fn connect(address: &Address, patience: Duration) -> io::Result<Self> {
        let mut stream = Stream::connect(address)?;
        stream.set_read_timeout(patience)?;
        let size = negotiate(&mut stream, address.export())?;
        Ok(Self { stream, size, next_cookie: 1, in_flight: BTreeMap::new() })
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Sends a request without waiting. `data` is the payload of a write.
    pub fn send(
        &mut self,
        command: Command,
        offset: u64,
        length: u32,
        data: &[u8],
    ) -> io::Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let mut head = Vec::with_capacity(28);
        head.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        head.extend_from_slice(&0u16.to_be_bytes());
        head.extend_from_slice(&command.wire().to_be_bytes());
        head.extend_from_slice(&cookie.to_be_bytes());
        head.extend_from_slice(&offset.to_be_bytes());
        head.extend_from_slice(&length.to_be_bytes());
        self.stream.write_all_vectored(&head, data)?;
        let expected = if command == Command::Read { length } else { 0 };
        self.in_flight.insert(cookie, usize::try_from(expected).expect("u32 fits usize"));
        Ok(cookie)
    }

    /// Waits for any one request to finish.
    pub fn receive(&mut self) -> io::Result<Finished> {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head)?;
        let field = |range: std::ops::Range<usize>| {
            u32::from_be_bytes(head[range].try_into().expect("four bytes"))
        };
        let (magic, error) = (field(0..4), field(4..8));
        let cookie = u64::from_be_bytes(head[8..16].try_into().expect("eight bytes"));
        if magic != SIMPLE_REPLY_MAGIC {
            return Err(invalid(format!("reply magic {magic:#x}")));
        }
        let expected = self.in_flight.remove(&cookie);
        let expected = expected.ok_or_else(|| invalid(format!("unknown cookie {cookie}")))?;
        let mut data = vec![0; if error == 0 { expected } else { 0 }];
        self.stream.read_exact(&mut data)?;
        Ok(Finished { cookie, error, data })
    }

    /// One request, start to end. Nothing else may be in flight.
    pub fn call(
        &mut self,
        command: Command,
        offset: u64,
        length: u32,
        data: &[u8],
    ) -> io::Result<Finished> {
        assert!(self.in_flight.is_empty(), "call with requests in flight");
        self.send(command, offset, length, data)?;
        self.receive()
    }
}

fn negotiate(stream: &mut Stream, export: &str) -> io::Result<u64> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    if &greeting[..16] != INIT_MAGIC {
        return Err(invalid("the server does not speak newstyle NBD".to_owned()));
    }
    let name_len = u32::try_from(export.len()).map_err(|_| invalid("export name".to_owned()))?;
    let mut hello = Vec::new();
    hello.extend_from_slice(&3u32.to_be_bytes()); // fixed newstyle, no zeroes
    hello.extend_from_slice(b"IHAVEOPT");
    hello.extend_from_slice(&OPT_GO.to_be_bytes());
    hello.extend_from_slice(&(name_len + 6).to_be_bytes());
    hello.extend_from_slice(&name_len.to_be_bytes());
    hello.extend_from_slice(export.as_bytes());
    hello.extend_from_slice(&0u16.to_be_bytes());
    stream.write_all_vectored(&hello, &[])?;
    let mut size = None;
    loop {
        let mut head = [0; 20];
        stream.read_exact(&mut head)?;
        let magic = u64::from_be_bytes(head[..8].try_into().expect("eight bytes"));
        let reply = u32::from_be_bytes(head[12..16].try_into().expect("four bytes"));
        let length = u32::from_be_bytes(head[16..20].try_into().expect("four bytes"));
        if magic != OPTION_REPLY_MAGIC || length > 64 << 10 {
            return Err(invalid("malformed option reply".to_owned()));
        }
        let mut body = vec![0; usize::try_from(length).expect("bounded above")];
        stream.read_exact(&mut body)?;
        match reply {
            REP_INFO if body.len() >= 12 && body[..2] == [0, 0] => {
                size = Some(u64::from_be_bytes(body[2..10].try_into().expect("eight bytes")));
            }
            REP_INFO => {}
            REP_ACK => return size.ok_or_else(|| invalid("the export has no size".to_owned())),
            error if error & REP_ERROR != 0 => {
                let text = String::from_utf8_lossy(&body).into_owned();
                let message = format!("export '{export}' refused ({error:#x}) {text}");
                return Err(io::Error::new(io::ErrorKind::NotFound, message));
            }
            _ => {}
        }
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_uri_forms_parse() {
        let tcp = Address::parse("nbd://127.0.0.1:10809/vol-1");
        let expected = Address::Tcp { authority: "127.0.0.1:10809".into(), export: "vol-1".into() };
        assert_eq!(tcp, Some(expected));
        let unix = Address::parse("nbd+unix:///vol-1?socket=/run/a.sock");
        assert_eq!(
            unix,
            Some(Address::Unix { socket: "/run/a.sock".into(), export: "vol-1".into() })
        );
        assert_eq!(Address::parse("http://x"), None);
    }
}
