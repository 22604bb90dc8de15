//! A node manager with one volume: sends reads and writes, never two for one block at a time,
//! sends again what is not answered, and checks every answer.
//!
//! The check: what a block may hold is a set. An acknowledged write leaves one value; a write
//! whose answer nobody waits for any more adds one; a read picks one, and no other may be seen
//! after it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use format::data::{Change, DataMessage, RequestId, Status};
use model::{group::GroupConfig, id::ServerId, time::Instant, units::BLOCK};

use crate::world::{End, Happening, SIZE, World, group};

#[derive(Debug, Clone)]
pub enum Ask {
    Read,
    /// Fills each block with this value.
    Write(u64),
    Zero,
}

#[derive(Debug, Clone)]
pub struct Request {
    pub ask: Ask,
    pub first: u64,
    pub blocks: u64,
    pub asked: Instant,
    sent: bool,
}

#[derive(Debug)]
pub struct Client {
    pub life: u64,
    pub server: Option<ServerId>,
    pub config: Option<GroupConfig>,
    conn: Option<u64>,
    session: u64,
    open: bool,
    next_request: u64,
    pub pending: BTreeMap<u64, Request>,
    busy: BTreeSet<u64>,
    may_hold: BTreeMap<u64, BTreeSet<u64>>,
    value_last: u64,
    /// How many requests are kept in flight by [`World::client_tick`]; 0: none of its own.
    pub depth: usize,
    /// The blocks that are used, spread over the volume.
    pub blocks: Vec<u64>,
    pub answered: u64,
    pub writes_acknowledged: u64,
    pub longest: Duration,
    pub fenced: bool,
    ticking: bool,
    /// Blocks that no replica has: reads of these alone may fail.
    pub lost: BTreeSet<u64>,
    /// Reads that failed: their first block and how many.
    pub failed: Vec<(u64, u64)>,
}

impl Client {
    pub fn new(life: u64) -> Self {
        let blocks = (0..64).map(|i| i * (SIZE / BLOCK / 64) + i % 7).collect();
        Self {
            life,
            server: None,
            config: None,
            conn: None,
            session: 1_000 + life,
            open: false,
            next_request: 0,
            pending: BTreeMap::new(),
            busy: BTreeSet::new(),
            may_hold: BTreeMap::new(),
            value_last: 0,
            depth: 0,
            blocks,
            answered: 0,
            writes_acknowledged: 0,
            longest: Duration::ZERO,
            fenced: false,
            ticking: false,
            lost: BTreeSet::new(),
            failed: Vec::new(),
        }
    }

    pub fn describe(&self) -> String {
        format!(
            "server {:?} open {} conn {:?} pending {:?}",
            self.server, self.open, self.conn, self.pending
        )
    }

    fn id(&self, request: u64) -> RequestId {
        RequestId { session: self.session, request }
    }

    fn check_block(&mut self, block: u64, seen: u64) {
        let may = self.may_hold.entry(block).or_insert_with(|| BTreeSet::from([0]));
        assert!(may.contains(&seen), "block {block} holds {seen}, expected one of {may:?}");
        *may = BTreeSet::from([seen]);
    }

    /// What is expected of each block that was ever written.
    pub fn expected(&self) -> impl Iterator<Item = (u64, &BTreeSet<u64>)> {
        self.may_hold.iter().map(|(&block, values)| (block, values))
    }
}

pub fn block_of(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(512)
}

pub fn value_of(block: &[u8]) -> u64 {
    let value = u64::from_le_bytes(block[..8].try_into().expect("eight bytes"));
    assert!(block.chunks(8).all(|c| c == value.to_le_bytes()), "a block of two writes");
    value
}

impl World {
    /// The node process dies and starts again: nobody waits any more for what was in flight.
    pub fn restart_client(&mut self) {
        let old = &mut self.client;
        let mut may_hold = std::mem::take(&mut old.may_hold);
        for request in old.pending.values() {
            let value = match request.ask {
                Ask::Read => continue,
                Ask::Write(value) => value,
                Ask::Zero => 0,
            };
            for block in request.first..request.first + request.blocks {
                may_hold.entry(block).or_insert_with(|| BTreeSet::from([0])).insert(value);
            }
        }
        let life = old.life + 1;
        let client = Client {
            may_hold,
            value_last: old.value_last,
            depth: old.depth,
            blocks: old.blocks.clone(),
            answered: old.answered,
            writes_acknowledged: old.writes_acknowledged,
            ..Client::new(life)
        };
        let conn = old.conn;
        let config = old.config.clone();
        self.client = client;
        if let Some(conn) = conn {
            self.reset(conn);
        }
        if let Some(config) = config {
            self.client_learns(config);
        }
    }

    /// The connection to the primary breaks.
    pub fn break_client_link(&mut self) {
        if let Some(conn) = self.client.conn {
            self.reset(conn);
        }
    }

    pub fn client_learns(&mut self, config: GroupConfig) {
        let client = &mut self.client;
        if client.config.as_ref().is_some_and(|c| c.epoch >= config.epoch) {
            return;
        }
        let server = config.primary().server.clone();
        client.config = Some(config);
        if client.server.as_ref() != Some(&server) {
            client.open = false;
            client.server = Some(server.clone());
            if let Some(conn) = client.conn.take() {
                self.reset(conn);
            }
            let end = End::Client(self.client.life);
            self.dial_soon(end, server);
        } else if client.conn.is_some() {
            self.open_session();
        }
        if !self.client.ticking {
            self.client.ticking = true;
            self.at(Duration::from_micros(100), Happening::ClientTick);
        }
    }

    pub fn client_link_up(&mut self, conn: u64) {
        self.client.conn = Some(conn);
        // A session that is open may go on without being opened again.
        if self.client.open && self.rng.chance(50) {
            self.resend();
        } else {
            self.open_session();
        }
    }

    pub fn client_link_down(&mut self, conn: u64) {
        if self.client.conn == Some(conn) {
            self.client.conn = None;
        }
    }

    fn open_session(&mut self) {
        self.client.open = false;
        let (Some(conn), Some(config)) = (self.client.conn, &self.client.config) else { return };
        let message = DataMessage::OpenSession {
            group: group(),
            epoch: config.epoch,
            attach: config.attach_generation,
            id: self.client.id(0),
        };
        self.send_to_server(conn, message);
    }

    fn resend(&mut self) {
        let requests: Vec<u64> = self.client.pending.keys().copied().collect();
        for request in requests {
            self.transmit_request(request);
        }
    }

    fn transmit_request(&mut self, number: u64) {
        let id = self.client.id(number);
        let (Some(conn), Some(config)) = (self.client.conn, &self.client.config) else { return };
        let epoch = config.epoch;
        let request = self.client.pending.get_mut(&number).expect("it is pending");
        request.sent = true;
        let offset = request.first * BLOCK;
        let length = (request.blocks * BLOCK) as u32;
        let change = match request.ask {
            Ask::Read => {
                let message = DataMessage::Read { group: group(), epoch, id, offset, length };
                return self.send_to_server(conn, message);
            }
            Ask::Zero => Change::Zero { length },
            Ask::Write(value) => {
                let block = block_of(value);
                let crcs = vec![crc32c::crc32c(&block); request.blocks as usize];
                Change::Write { crcs, data: Bytes::from(block.repeat(request.blocks as usize)) }
            }
        };
        self.send_to_server(
            conn,
            DataMessage::Change { group: group(), epoch, id, offset, change },
        );
    }

    pub fn client_received(&mut self, conn: u64, message: DataMessage) {
        let DataMessage::Reply { id, status, crcs, data, .. } = message else { return };
        if self.client.conn != Some(conn) || id.session != self.client.session {
            return;
        }
        if status == Status::Fenced {
            assert!(self.client.fenced, "the session was fenced at {:?}", self.now);
            return;
        }
        if id.request == 0 {
            if status == Status::Ok {
                self.client.open = true;
                self.resend();
            }
            return;
        }
        let Some(request) = self.client.pending.get_mut(&id.request) else { return };
        let (first, blocks) = (request.first, request.blocks);
        if status == Status::BadBlock {
            let lost = self.client.lost.range(first..first + blocks).next().is_some();
            assert!(lost, "{request:?} failed, though every block has a good copy");
            self.client.busy.retain(|b| !(first..first + blocks).contains(b));
            self.client.failed.push((first, blocks));
            self.client.pending.remove(&id.request);
            return;
        }
        if status != Status::Ok {
            assert!(
                matches!(status, Status::Moved | Status::NotReady),
                "{request:?} was answered {status:?}"
            );
            request.sent = false;
            self.client.open = false;
            return;
        }
        let request = self.client.pending.remove(&id.request).expect("looked up above");
        let client = &mut self.client;
        client.answered += 1;
        client.longest = client.longest.max(self.now.since(request.asked));
        for block in request.first..request.first + request.blocks {
            client.busy.remove(&block);
            let at = ((block - request.first) * BLOCK) as usize;
            match request.ask {
                Ask::Read => {
                    let bytes = &data[at..at + BLOCK as usize];
                    let crc = crcs[(block - request.first) as usize];
                    assert_eq!(crc32c::crc32c(bytes), crc, "a read with a wrong checksum");
                    client.check_block(block, value_of(bytes));
                }
                Ask::Write(value) => {
                    client.may_hold.insert(block, BTreeSet::from([value]));
                }
                Ask::Zero => {
                    client.may_hold.insert(block, BTreeSet::from([0]));
                }
            }
        }
        client.writes_acknowledged += u64::from(!matches!(request.ask, Ask::Read));
    }

    /// Asks for something now; its number.
    pub fn ask(&mut self, ask: Ask, first: u64, blocks: u64) -> u64 {
        let client = &mut self.client;
        client.next_request += 1;
        let number = client.next_request;
        for block in first..first + blocks {
            assert!(client.busy.insert(block), "one request per block");
        }
        let request = Request { ask, first, blocks, asked: self.now, sent: false };
        client.pending.insert(number, request);
        if client.open {
            self.transmit_request(number);
        }
        number
    }

    pub fn write(&mut self, first: u64, blocks: u64) -> u64 {
        self.client.value_last += 1;
        let value = self.client.value_last;
        self.ask(Ask::Write(value), first, blocks)
    }

    /// Asks, and waits for the answer.
    pub fn write_through(&mut self, first: u64, blocks: u64) {
        let number = self.write(first, blocks);
        self.await_answer(number);
    }

    pub fn read_through(&mut self, first: u64, blocks: u64) {
        let number = self.ask(Ask::Read, first, blocks);
        self.await_answer(number);
    }

    pub fn await_answer(&mut self, number: u64) {
        let limit = Duration::from_secs(30);
        self.run_until(limit, "an answer", |w| !w.client.pending.contains_key(&number));
    }

    /// Sends again what was put off, and asks for something new while there is room.
    pub fn client_tick(&mut self) {
        let after = self.rng.micros(200, 3_000);
        self.at(after, Happening::ClientTick);
        if self.client.conn.is_some() && !self.client.open && self.rng.chance(20) {
            self.open_session();
        }
        if self.client.open {
            let put_off: Vec<u64> =
                self.client.pending.iter().filter(|(_, r)| !r.sent).map(|(&n, _)| n).collect();
            for number in put_off {
                self.transmit_request(number);
            }
        }
        while self.client.pending.len() < self.client.depth {
            let index = self.rng.below(self.client.blocks.len() as u64) as usize;
            let first = self.client.blocks[index];
            let blocks = (1 + self.rng.below(if self.rng.clone().chance(10) { 60 } else { 4 }))
                .min(SIZE / BLOCK - first);
            if (first..first + blocks).any(|b| self.client.busy.contains(&b)) {
                return;
            }
            match self.rng.below(10) {
                0..4 => drop(self.ask(Ask::Read, first, blocks)),
                4 => drop(self.ask(Ask::Zero, first, blocks)),
                _ => drop(self.write(first, blocks)),
            }
        }
    }

    /// Stops the load and waits until everything is answered.
    pub fn quiesce(&mut self) {
        self.client.depth = 0;
        self.run_until(Duration::from_secs(60), "quiet", |w| w.client.pending.is_empty());
    }

    /// Trims what no request is for, until every request is answered.
    pub fn trim_everything(&mut self) {
        for round in 0.. {
            assert!(round < 20, "writes wait for space that is there\n{}", self.describe());
            for block in 0..SIZE / BLOCK {
                if !self.client.busy.contains(&block) {
                    self.ask(Ask::Zero, block, 1);
                }
            }
            self.run_for(Duration::from_secs(3));
            if self.client.pending.is_empty() {
                return;
            }
        }
    }

    /// Reads every block that was ever written.
    pub fn read_everything(&mut self) {
        let blocks: Vec<u64> = self.client.may_hold.keys().copied().collect();
        for chunk in blocks.chunks(64) {
            for &block in chunk {
                self.ask(Ask::Read, block, 1);
            }
            self.quiesce();
        }
    }
}
