//! Negotiation: the client's flags, then options until one of them opens an export.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use model::units::BLOCK_BYTES;

use super::{
    CloseReason, Event, ExportInfo, Exports, NAME_BYTES_MAX, OPTION_BYTES_MAX, OPTIONS_MAX,
    PAYLOAD_BYTES_MAX, Phase, Step,
    transmission::Transmission,
    wire::{self, info, option, option_reply},
};

/// What was agreed so far.
#[derive(Debug)]
pub struct Negotiation {
    fixed_newstyle: bool,
    no_zeroes: bool,
    structured: bool,
    /// The export for which base:allocation was selected.
    status_of: Option<String>,
    /// Data of a refused option that is still to be dropped.
    skip: u64,
    options_seen: u32,
}

/// Why an option is refused; the negotiation goes on.
struct Refusal {
    code: u32,
    text: &'static str,
}

const fn invalid(text: &'static str) -> Refusal {
    Refusal { code: option_reply::ERR_INVALID, text }
}

const UNKNOWN_EXPORT: Refusal =
    Refusal { code: option_reply::ERR_UNKNOWN, text: "there is no export of that name" };

pub fn client_flags(input: &mut BytesMut) -> Result<Step, CloseReason> {
    if input.len() < 4 {
        return Ok(Step::Stalled);
    }
    let flags = input.get_u32();
    let known = u32::from(wire::FIXED_NEWSTYLE | wire::NO_ZEROES);
    if flags & !known != 0 {
        return Err(CloseReason::Malformed("unknown client flags"));
    }
    Ok(Step::Enter(Phase::Options(Negotiation {
        fixed_newstyle: flags & u32::from(wire::FIXED_NEWSTYLE) != 0,
        no_zeroes: flags & u32::from(wire::NO_ZEROES) != 0,
        structured: false,
        status_of: None,
        skip: 0,
        options_seen: 0,
    })))
}

impl Negotiation {
    pub fn step(
        &mut self,
        input: &mut BytesMut,
        exports: &Exports,
        out: &mut Vec<Event>,
    ) -> Result<Step, CloseReason> {
        if self.skip > 0 {
            return Ok(self.skip(input));
        }
        if input.len() < wire::OPTION_HEADER_BYTES {
            return Ok(Step::Stalled);
        }
        let mut head = &input[..wire::OPTION_HEADER_BYTES];
        if head.get_u64() != wire::OPTION_MAGIC {
            return Err(CloseReason::Malformed("bad option magic"));
        }
        let code = head.get_u32();
        let length = head.get_u32();
        if length > OPTION_BYTES_MAX {
            input.advance(wire::OPTION_HEADER_BYTES);
            return self.refuse_long(code, length, out);
        }
        let length = usize::try_from(length).expect("bounded above");
        let whole = wire::OPTION_HEADER_BYTES + length;
        if input.len() < whole {
            input.reserve(whole - input.len());
            return Ok(Step::Stalled);
        }
        self.count_option()?;
        let mut data = input.split_to(whole).freeze();
        data.advance(wire::OPTION_HEADER_BYTES);
        if !self.fixed_newstyle && code != option::EXPORT_NAME {
            return Err(CloseReason::Malformed("an option without fixed newstyle"));
        }
        self.option(code, data, exports, out)
    }

    fn count_option(&mut self) -> Result<(), CloseReason> {
        self.options_seen += 1;
        if self.options_seen > OPTIONS_MAX {
            return Err(CloseReason::Malformed("too many options"));
        }
        Ok(())
    }

    /// Drops what has arrived of a refused option's data.
    fn skip(&mut self, input: &mut BytesMut) -> Step {
        let here = u64::try_from(input.len()).unwrap_or(u64::MAX).min(self.skip);
        if here == 0 {
            return Step::Stalled;
        }
        input.advance(usize::try_from(here).expect("at most input's length"));
        self.skip -= here;
        Step::Made
    }

    fn refuse_long(
        &mut self,
        code: u32,
        length: u32,
        out: &mut Vec<Event>,
    ) -> Result<Step, CloseReason> {
        self.count_option()?;
        if code == option::EXPORT_NAME || !self.fixed_newstyle {
            return Err(CloseReason::Malformed("option too long"));
        }
        self.skip = u64::from(length);
        out.push(reply(code, option_reply::ERR_TOO_BIG, b"option data beyond 64 KiB"));
        Ok(Step::Made)
    }

    fn option(
        &mut self,
        code: u32,
        mut data: Bytes,
        exports: &Exports,
        out: &mut Vec<Event>,
    ) -> Result<Step, CloseReason> {
        let result = match code {
            option::EXPORT_NAME => return self.export_name(&data, exports, out),
            option::ABORT => {
                out.push(reply(code, option_reply::ACK, &[]));
                return Err(CloseReason::Aborted);
            }
            option::LIST => list(&data, exports, out),
            option::STRUCTURED_REPLY => self.structured_reply(&data, out),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta_context(code, &mut data, exports, out)
            }
            option::INFO | option::GO => match info(code, &mut data, exports, out) {
                Ok(name) if code == option::GO => return Ok(self.open(name, out)),
                Ok(_) => Ok(()),
                Err(refusal) => Err(refusal),
            },
            // STARTTLS and extended headers among them.
            _ => Err(Refusal { code: option_reply::ERR_UNSUP, text: "option not supported" }),
        };
        if let Err(refusal) = result {
            out.push(reply(code, refusal.code, refusal.text.as_bytes()));
        }
        Ok(Step::Made)
    }

    /// The option of old: no way to refuse it but to close.
    fn export_name(
        &mut self,
        data: &[u8],
        exports: &Exports,
        out: &mut Vec<Event>,
    ) -> Result<Step, CloseReason> {
        let name = std::str::from_utf8(data).map_err(|_| CloseReason::UnknownExport)?;
        let (name, export) = find(name, exports).ok_or(CloseReason::UnknownExport)?;
        let mut head = BytesMut::with_capacity(134);
        head.put_u64(export.size);
        head.put_u16(wire::TRANSMISSION_FLAGS);
        if !self.no_zeroes {
            head.put_bytes(0, 124);
        }
        out.push(Event::Send(head.freeze()));
        Ok(self.open(name, out))
    }

    fn open(&mut self, export: String, out: &mut Vec<Event>) -> Step {
        let block_status = self.structured && self.status_of.as_ref() == Some(&export);
        out.push(Event::Opened { export });
        Step::Enter(Phase::Transmission(Transmission::new(self.structured, block_status)))
    }

    fn structured_reply(&mut self, data: &[u8], out: &mut Vec<Event>) -> Result<(), Refusal> {
        if !data.is_empty() {
            return Err(invalid("structured reply takes no data"));
        }
        self.structured = true;
        out.push(reply(option::STRUCTURED_REPLY, option_reply::ACK, &[]));
        Ok(())
    }

    fn meta_context(
        &mut self,
        code: u32,
        data: &mut Bytes,
        exports: &Exports,
        out: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        let set = code == option::SET_META_CONTEXT;
        if set {
            self.status_of = None;
        }
        if !self.structured {
            return Err(invalid("metadata contexts need structured replies"));
        }
        let name = take_text(data)?;
        let count = take_u32(data)?;
        let mut wanted = !set && count == 0;
        for _ in 0..count {
            // Each query takes at least its length from `data`, so a large count runs dry.
            let query = take_bytes(data)?;
            let all = !set && query[..] == b"base:"[..];
            wanted |= all || query[..] == *wire::ALLOCATION_CONTEXT.as_bytes();
        }
        if !data.is_empty() {
            return Err(invalid("bytes after the last query"));
        }
        let (name, _) = find(&name, exports).ok_or(UNKNOWN_EXPORT)?;
        if wanted {
            let mut body = BytesMut::with_capacity(4 + wire::ALLOCATION_CONTEXT.len());
            body.put_u32(if set { wire::ALLOCATION_CONTEXT_ID } else { 0 });
            body.put_slice(wire::ALLOCATION_CONTEXT.as_bytes());
            out.push(reply(code, option_reply::META_CONTEXT, &body));
        }
        if set && wanted {
            self.status_of = Some(name);
        }
        out.push(reply(code, option_reply::ACK, &[]));
        Ok(())
    }
}

fn list(data: &[u8], exports: &Exports, out: &mut Vec<Event>) -> Result<(), Refusal> {
    if !data.is_empty() {
        return Err(invalid("list takes no data"));
    }
    for name in exports.keys() {
        let length = u32::try_from(name.len()).expect("export names are short");
        let mut body = BytesMut::with_capacity(4 + name.len());
        body.put_u32(length);
        body.put_slice(name.as_bytes());
        out.push(reply(option::LIST, option_reply::SERVER, &body));
    }
    out.push(reply(option::LIST, option_reply::ACK, &[]));
    Ok(())
}

/// Answers INFO or GO completely and returns the export's name.
fn info(
    code: u32,
    data: &mut Bytes,
    exports: &Exports,
    out: &mut Vec<Event>,
) -> Result<String, Refusal> {
    let name = take_text(data)?;
    let count = usize::from(take_u16(data)?);
    if data.len() != 2 * count {
        return Err(invalid("information requests do not match their count"));
    }
    let mut name_wanted = false;
    for _ in 0..count {
        name_wanted |= data.get_u16() == info::NAME;
    }
    let (name, export) = find(&name, exports).ok_or(UNKNOWN_EXPORT)?;
    let mut body = BytesMut::with_capacity(14);
    body.put_u16(info::EXPORT);
    body.put_u64(export.size);
    body.put_u16(wire::TRANSMISSION_FLAGS);
    out.push(reply(code, option_reply::INFO, &body));
    if name_wanted {
        body.clear();
        body.put_u16(info::NAME);
        body.put_slice(name.as_bytes());
        out.push(reply(code, option_reply::INFO, &body));
    }
    body.clear();
    body.put_u16(info::BLOCK_SIZE);
    body.put_u32(wire::BLOCK_BYTES_MIN);
    body.put_u32(BLOCK_BYTES);
    body.put_u32(PAYLOAD_BYTES_MAX);
    out.push(reply(code, option_reply::INFO, &body));
    out.push(reply(code, option_reply::ACK, &[]));
    Ok(name)
}

/// The empty name means the default export: the only one, if there is only one.
fn find(name: &str, exports: &Exports) -> Option<(String, ExportInfo)> {
    if let Some(&export) = exports.get(name) {
        return Some((name.to_owned(), export));
    }
    let (only, &export) = exports.first_key_value()?;
    (name.is_empty() && exports.len() == 1).then(|| (only.clone(), export))
}

fn reply(option: u32, code: u32, body: &[u8]) -> Event {
    let mut out = BytesMut::with_capacity(20 + body.len());
    out.put_u64(wire::OPTION_REPLY_MAGIC);
    out.put_u32(option);
    out.put_u32(code);
    out.put_u32(u32::try_from(body.len()).expect("our bodies are short"));
    out.put_slice(body);
    Event::Send(out.freeze())
}

const SHORT: Refusal = invalid("option data ends too early");

fn take_u16(data: &mut Bytes) -> Result<u16, Refusal> {
    if data.len() < 2 {
        return Err(SHORT);
    }
    Ok(data.get_u16())
}

fn take_u32(data: &mut Bytes) -> Result<u32, Refusal> {
    if data.len() < 4 {
        return Err(SHORT);
    }
    Ok(data.get_u32())
}

fn take_bytes(data: &mut Bytes) -> Result<Bytes, Refusal> {
    let length = take_u32(data)?;
    if length > NAME_BYTES_MAX {
        return Err(Refusal { code: option_reply::ERR_TOO_BIG, text: "a name beyond 4096 bytes" });
    }
    let length = usize::try_from(length).expect("bounded above");
    if data.len() < length {
        return Err(SHORT);
    }
    Ok(data.split_to(length))
}

fn take_text(data: &mut Bytes) -> Result<String, Refusal> {
    let bytes = take_bytes(data)?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(invalid("a name that is not UTF-8")),
    }
}
