//! Seeded random runs: the machine against a group that misbehaves in every way it may.
//!
//! What the group does: drops links with requests done or not; fails over, with each unanswered
//! change taking effect or not; changes its configuration under the same primary; grows; answers
//! late from a server that is primary no more; answers Moved, NotReady and BadChecksum; damages
//! data on its way. The manager's link comes and goes, and its news is late. Guests give up.
//! What it never does: lose what it acknowledged, or run changes that overlap out of order.
//!
//! Checked: whatever is read is what the last answered write left, or what a write that was
//! asked for and not answered before the read wrote; no request ends in an error; all end.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Range,
    time::Duration,
};

use bytes::Bytes;
use format::{
    ctl::{FromManager, ToManager},
    data::{Change, DataMessage, RequestId, Status},
};
use model::{epoch::Epoch, time::Instant};

use super::bench::{BLOCK, attach, group, params, server, volume};
use crate::{
    Node,
    api::{Action, Event, GuestReply, GuestRequest, GuestToken},
};

const SERVERS: usize = 3;
const BLOCKS: usize = 24;
const REQUESTS: usize = 150;

struct Random(u64);

impl Random {
    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit).expect("fits")).expect("below limit")
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

#[derive(Default)]
struct Link {
    wanted: bool,
    up: bool,
    requests: VecDeque<DataMessage>,
    replies: VecDeque<DataMessage>,
}

/// A change that a guest asked for.
struct Asked {
    range: Range<usize>,
    /// The byte it writes everywhere.
    value: u8,
    /// Whether the edges of `range` that are no whole blocks stay as they are.
    whole_blocks: bool,
    /// The number of the step at which it was answered.
    answered: Option<usize>,
}

impl Asked {
    fn covers(&self, at: usize) -> bool {
        let mut range = self.range.clone();
        if self.whole_blocks {
            range = range.start.next_multiple_of(BLOCK)..range.end / BLOCK * BLOCK;
        }
        range.contains(&at)
    }
}

enum Waiting {
    Change(usize),
    Read { range: Range<usize>, asked_at: usize },
    Status { range: Range<usize> },
}

struct World {
    random: Random,
    node: Node,
    now: Instant,
    step: usize,
    links: Vec<Link>,
    primary: usize,
    epoch: u64,
    blocks: usize,
    content: Vec<u8>,
    /// Configurations the manager has yet to tell.
    manager_up: bool,
    manager_owes: bool,
    saves: usize,
    shown_blocks: usize,
    history: Vec<Asked>,
    waiting: BTreeMap<GuestToken, Waiting>,
    tokens: u64,
    quiet: bool,
    failovers: usize,
    events: VecDeque<Event>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let mut out = Vec::new();
        let cached = if random.one_in(2) { vec![attach(1, 0, BLOCKS)] } else { vec![] };
        let node = Node::new(params(cached), random.next(), Instant::ZERO, &mut out);
        let mut world = Self {
            random,
            node,
            now: Instant::ZERO,
            step: 0,
            links: (0..SERVERS).map(|_| Link::default()).collect(),
            primary: 0,
            epoch: 1,
            blocks: BLOCKS,
            content: vec![0; BLOCKS * BLOCK],
            manager_up: false,
            manager_owes: true,
            saves: 0,
            shown_blocks: 0,
            history: Vec::new(),
            waiting: BTreeMap::new(),
            tokens: 0,
            quiet: false,
            failovers: 0,
            events: VecDeque::new(),
        };
        world.carry_out(out);
        world.drain();
        world
    }

    fn event(&mut self, event: Event) {
        self.events.push_back(event);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(event) = self.events.pop_front() {
            let mut out = Vec::new();
            self.node.handle(self.now, event, &mut out);
            self.carry_out(out);
        }
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        let index =
            |s: &model::id::ServerId| (0..SERVERS).find(|&i| server(i) == *s).expect("known");
        for action in actions {
            match action {
                Action::Connect { server, .. } => self.links[index(&server)].wanted = true,
                Action::Disconnect { server } => {
                    let link = index(&server);
                    self.links[link].wanted = false;
                    self.lose(link);
                }
                Action::Send { server, message } => {
                    let link = &mut self.links[index(&server)];
                    if link.up {
                        link.requests.push_back(message);
                    }
                }
                Action::ReplyGuest { token, reply, .. } => self.answered(token, reply),
                Action::OpenExport { size, .. } => {
                    self.shown_blocks = usize::try_from(size.get()).expect("fits") / BLOCK;
                    self.events.push_back(super::bench::export_opened());
                }
                Action::ResizeExport { size, .. } => {
                    self.shown_blocks = usize::try_from(size.get()).expect("fits") / BLOCK;
                    self.events.push_back(Event::ExportResized { volume: volume(), size });
                }
                Action::SaveAttachments { .. } => self.saves += 1,
                Action::SendManager { message } => {
                    let failed = matches!(message, ToManager::DeviceFailed { .. });
                    assert!(!failed && !matches!(message, ToManager::Detached { .. }));
                }
                Action::CloseExport { .. } => panic!("nobody detached"),
            }
        }
    }

    // The group.

    /// The link is down: what was on its way to the server may still be done, in order.
    fn lose(&mut self, link: usize) {
        let requests = std::mem::take(&mut self.links[link].requests);
        let arrived = self.random.below(requests.len() + 1);
        for request in requests.into_iter().take(arrived) {
            self.serve(link, request);
        }
        self.links[link].replies.clear();
        self.links[link].up = false;
    }

    /// The server takes a request off its link, and answers.
    fn serve(&mut self, link: usize, message: DataMessage) {
        let (id, epoch) = match &message {
            DataMessage::Ping => {
                self.links[link].replies.push_back(DataMessage::Pong);
                return;
            }
            DataMessage::OpenSession { id, epoch, .. }
            | DataMessage::Read { id, epoch, .. }
            | DataMessage::Change { id, epoch, .. }
            | DataMessage::QueryAllocated { id, epoch, .. } => (*id, epoch.get()),
            other => panic!("a node manager sent {other:?}"),
        };
        let mut status = Status::Ok;
        if link != self.primary || epoch != self.epoch {
            status = Status::Moved;
        } else if !self.quiet && self.random.one_in(25) {
            status = Status::NotReady;
        }
        let mut data = Bytes::new();
        let mut crcs = Vec::new();
        if status == Status::Ok {
            (status, crcs, data) = self.perform(message);
        }
        self.reply(link, id, status, crcs, data);
    }

    fn perform(&mut self, message: DataMessage) -> (Status, Vec<u32>, Bytes) {
        let fails = !self.quiet && self.random.one_in(30);
        match message {
            DataMessage::Change { change: Change::Write { .. }, .. } if fails => {
                return (Status::BadChecksum, vec![], Bytes::new());
            }
            DataMessage::Change { offset, change, .. } => self.apply(offset, &change),
            DataMessage::Read { offset, length, .. } => {
                let mut data = self.content[range(offset, length)].to_vec();
                let crcs = data.chunks(BLOCK).map(crc32c::crc32c).collect();
                if fails {
                    let at = self.random.below(data.len());
                    data[at] ^= 1;
                }
                return (Status::Ok, crcs, data.into());
            }
            DataMessage::QueryAllocated { length, .. } => {
                let blocks = usize::try_from(length).expect("fits") / BLOCK;
                let bitmap = vec![0b0101_0101; blocks.div_ceil(8)];
                return (Status::Ok, vec![], bitmap.into());
            }
            _ => {}
        }
        (Status::Ok, vec![], Bytes::new())
    }

    fn apply(&mut self, offset: u64, change: &Change) {
        let range = range(offset, change.length());
        assert!(
            offset.is_multiple_of(4096) && range.len().is_multiple_of(BLOCK) && !range.is_empty()
        );
        match change {
            Change::Write { data, crcs } => {
                assert!(data.chunks(BLOCK).map(crc32c::crc32c).eq(crcs.iter().copied()));
                self.content[range].copy_from_slice(data);
            }
            Change::Zero { .. } => self.content[range].fill(0),
        }
    }

    fn reply(&mut self, link: usize, id: RequestId, status: Status, crcs: Vec<u32>, data: Bytes) {
        let epoch = Epoch::new(self.epoch).expect("small");
        let reply = DataMessage::Reply { group: group(), epoch, id, status, crcs, data };
        self.links[link].replies.push_back(reply);
    }

    /// Another server is primary; each change on its way to the old one took effect or never will.
    fn fail_over(&mut self) {
        let old = self.primary;
        let requests = self.links[old].requests.clone();
        for request in requests {
            if let DataMessage::Change { offset, change, epoch, .. } = request
                && epoch.get() == self.epoch
                && self.random.one_in(2)
            {
                self.apply(offset, &change);
            }
        }
        self.primary = (old + 1 + self.random.below(SERVERS - 1)) % SERVERS;
        self.epoch += 1;
        self.failovers += 1;
        self.manager_owes = true;
    }

    /// The same primary under a new configuration; what has arrived there stays in flight.
    fn reconfigure(&mut self) {
        let primary = self.primary;
        let kept = self.random.below(self.links[primary].requests.len() + 1);
        for _ in 0..kept {
            let request = self.links[primary].requests.pop_front().expect("counted");
            self.serve(primary, request);
        }
        self.epoch += 1;
        if self.random.one_in(2) && self.blocks < 2 * BLOCKS {
            self.blocks += 1;
            self.content.resize(self.blocks * BLOCK, 0);
        }
        self.manager_owes = true;
    }

    // Guests.

    fn ask(&mut self) {
        let size = self.shown_blocks * BLOCK;
        if size == 0 {
            return;
        }
        let mut start = self.random.below(size);
        let mut length = 1 + self.random.below((5 * BLOCK).min(size - start));
        if self.random.one_in(2) {
            start = start / BLOCK * BLOCK;
            length = length.next_multiple_of(BLOCK).min(size - start);
        }
        let range = start..start + length;
        let offset = u64::try_from(start).expect("fits");
        let bytes = u64::try_from(length).expect("fits");
        let wire_length = u32::try_from(length).expect("fits");
        let zero = |whole_blocks| (0, whole_blocks);
        let value = u8::try_from(1 + self.history.len() % 255).expect("fits");
        let (request, change) = match self.random.below(10) {
            0..=3 => {
                let data = Bytes::from(vec![value; length]);
                (GuestRequest::Write { offset, data }, Some((value, false)))
            }
            4 => (GuestRequest::WriteZeroes { offset, length: bytes }, Some(zero(false))),
            5 => (GuestRequest::Trim { offset, length: bytes }, Some(zero(true))),
            6 => (GuestRequest::BlockStatus { offset, length: wire_length }, None),
            _ => (GuestRequest::Read { offset, length: wire_length }, None),
        };
        let waiting = match (change, &request) {
            (Some((value, whole_blocks)), _) => {
                let asked = Asked { range, value, whole_blocks, answered: None };
                self.history.push(asked);
                Waiting::Change(self.history.len() - 1)
            }
            (None, GuestRequest::BlockStatus { .. }) => Waiting::Status { range },
            (None, _) => Waiting::Read { range, asked_at: self.step },
        };
        self.tokens += 1;
        let token = GuestToken(self.tokens);
        self.waiting.insert(token, waiting);
        self.event(Event::GuestRequested { volume: volume(), token, request });
    }

    fn answered(&mut self, token: GuestToken, reply: GuestReply) {
        let waiting = self.waiting.remove(&token).expect("answered once, and asked for");
        match (waiting, reply) {
            (Waiting::Change(index), GuestReply::Done) => {
                self.history[index].answered = Some(self.step);
            }
            (Waiting::Read { range, asked_at }, GuestReply::Data(data)) => {
                self.check_read(range, asked_at, &data);
            }
            (Waiting::Status { range }, GuestReply::Blocks(runs)) => {
                let total: u64 = runs.iter().map(|r| u64::from(r.0)).sum();
                assert_eq!(total, u64::try_from(range.len()).expect("fits"));
            }
            (_, reply) => panic!("answered {reply:?}"),
        }
    }

    /// Between two edges of any change, and within one block, all bytes share one fate.
    fn check_read(&self, range: Range<usize>, asked_at: usize, data: &[u8]) {
        assert_eq!(data.len(), range.len());
        let ends = self.history.iter().flat_map(|a| [a.range.start, a.range.end]);
        let blocks = (range.start / BLOCK..=range.end / BLOCK).map(|block| block * BLOCK);
        let within = |&at: &usize| range.contains(&at);
        let mut edges: BTreeSet<usize> = ends.chain(blocks).filter(within).collect();
        edges.extend([range.start, range.end]);
        let edges: Vec<usize> = edges.into_iter().collect();
        for edge in edges.windows(2) {
            let piece = &data[edge[0] - range.start..edge[1] - range.start];
            assert!(piece.iter().all(|&b| b == piece[0]), "{edge:?} is torn");
            self.check_byte(edge[0], asked_at, piece[0]);
        }
    }

    fn check_byte(&self, at: usize, asked_at: usize, byte: u8) {
        for asked in self.history.iter().rev().filter(|a| a.covers(at)) {
            if asked.value == byte {
                return;
            }
            let settled = asked.answered.is_some_and(|step| step < asked_at);
            assert!(!settled, "byte {at} reads {byte} instead of {}", asked.value);
        }
        assert_eq!(byte, 0, "byte {at} was never written");
    }

    fn give_up(&mut self) {
        let tokens: Vec<GuestToken> = self.waiting.keys().copied().collect();
        if tokens.is_empty() {
            return;
        }
        let token = tokens[self.random.below(tokens.len())];
        self.waiting.remove(&token);
        self.event(Event::GuestGone { volume: volume(), tokens: vec![token] });
    }

    // One thing happens.

    fn turn(&mut self) {
        self.step += 1;
        let link = self.random.below(SERVERS);
        match self.random.below(if self.quiet { 60 } else { 70 }) {
            0..=19 => {
                if let Some(request) = self.links[link].requests.pop_front() {
                    self.serve(link, request);
                }
            }
            20..=39 => {
                if let Some(message) = self.links[link].replies.pop_front() {
                    self.event(Event::LinkReceived { server: server(link), message });
                }
            }
            40..=44 => {
                if self.links[link].wanted && !self.links[link].up {
                    self.links[link].up = true;
                    self.event(Event::LinkUp { server: server(link) });
                }
            }
            45..=49 => self.manager(),
            50..=54 => self.pass(),
            55..=59 => {
                if self.saves > 0 {
                    self.saves -= 1;
                    self.event(Event::AttachmentsSaved);
                }
            }
            60 | 61 => {
                if self.links[link].up {
                    self.lose(link);
                    self.event(Event::LinkDown { server: server(link) });
                }
            }
            62 if self.random.one_in(2) => self.fail_over(),
            63 if self.random.one_in(2) => self.reconfigure(),
            64 if self.random.one_in(4) => self.give_up(),
            65 if self.manager_up => {
                self.manager_up = false;
                self.event(Event::ManagerLinkDown);
            }
            _ => {
                if self.history.len() < REQUESTS {
                    self.ask();
                }
            }
        }
    }

    fn manager(&mut self) {
        if !self.manager_up {
            self.manager_up = true;
            self.manager_owes = true;
            self.event(Event::ManagerLinkUp);
        } else if self.manager_owes {
            self.manager_owes = false;
            let attach = attach(self.epoch, self.primary, self.blocks);
            self.event(Event::ManagerSent { message: FromManager::Attach(attach) });
        }
    }

    fn pass(&mut self) {
        let end = self.now + Duration::from_millis(self.random.next() % 300);
        while let Some(at) = self.node.deadline().filter(|&at| at <= end) {
            self.now = self.now.max(at);
            self.event(Event::TimeReached);
        }
        self.now = end;
    }
}

fn range(offset: u64, length: u32) -> Range<usize> {
    let offset = usize::try_from(offset).expect("fits");
    offset..offset + usize::try_from(length).expect("fits")
}

fn run(seed: u64) -> (usize, u64) {
    let mut world = World::new(seed);
    while world.history.len() < REQUESTS {
        world.turn();
    }
    world.quiet = true;
    for _ in 0..200_000 {
        if world.waiting.is_empty() && world.shown_blocks == world.blocks {
            break;
        }
        world.turn();
    }
    assert!(world.waiting.is_empty(), "{} requests were never answered", world.waiting.len());
    assert_eq!(world.shown_blocks, world.blocks);
    world.step += 1;
    let length = world.content.len();
    let reading = Waiting::Read { range: 0..length, asked_at: world.step };
    let token = GuestToken(u64::MAX);
    world.waiting.insert(token, reading);
    let length = u32::try_from(length).expect("fits");
    let request = GuestRequest::Read { offset: 0, length };
    world.event(Event::GuestRequested { volume: volume(), token, request });
    while !world.waiting.is_empty() {
        world.turn();
    }
    (world.failovers, world.node.counters().sent)
}

#[test]
fn nothing_acknowledged_is_lost_and_every_request_ends() {
    let mut failovers = 0;
    for seed in 0..1000 {
        println!("seed {seed}");
        failovers += run(seed).0;
    }
    assert!(failovers > 2500, "only {failovers} failovers: the runs prove little");
}

#[test]
fn the_same_seed_runs_the_same_way() {
    for seed in 1000..1010 {
        assert_eq!(run(seed), run(seed));
    }
}
