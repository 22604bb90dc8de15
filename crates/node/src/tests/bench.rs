//! A node machine whose world is played by the test.

use std::time::Duration;

use bytes::Bytes;
use format::{
    ctl::{Attach, FromManager, ToManager},
    data::{Change, DataMessage, RequestId, Status},
};
use model::{
    epoch::{AttachGeneration, Epoch},
    group::{GroupConfig, Member, Role},
    id::{AccountId, BootId, GroupId, InstanceId, ReplicaId, ServerId, VolumeId},
    time::Instant,
    units::{ByteCount, Rate},
    volume::Media,
};

use crate::{
    Node,
    api::{Action, Event, GuestReply, GuestRequest, GuestToken, NodeParams, Timing},
};

pub const BLOCK: usize = 4096;

pub fn volume() -> VolumeId {
    VolumeId::from_raw(1)
}

pub fn group() -> GroupId {
    GroupId::from_raw(1)
}

pub fn server(number: usize) -> ServerId {
    format!("server-{number}").parse().expect("a valid name")
}

fn member(number: usize, role: Role) -> Member {
    let port = u16::try_from(9000 + number).expect("small");
    Member {
        replica: ReplicaId::from_raw(u64::try_from(number).expect("small")),
        server: server(number),
        address: ([127, 0, 0, 1], port).into(),
        drive: "ssd".parse().expect("a valid name"),
        role,
    }
}

/// `blocks` blocks with the primary on server `primary`, under generation 1.
pub fn attach(epoch: u64, primary: usize, blocks: usize) -> Attach {
    Attach {
        volume: volume(),
        instance: InstanceId::from_raw(1),
        device: "/dev/sdf".into(),
        kernel_device: false,
        config: GroupConfig {
            group: group(),
            volume: volume(),
            epoch: Epoch::new(epoch).expect("small"),
            members: vec![member(primary, Role::Primary), member(9, Role::Mirror)],
            size: ByteCount::new(u64::try_from(blocks * BLOCK).expect("small")),
            attach_generation: AttachGeneration::from_raw(1),
            rate: Rate::default(),
            media: Media::Ssd,
        },
    }
}

/// As [`attach`], of another volume.
pub fn attach_other(epoch: u64, primary: usize, blocks: usize) -> Attach {
    let mut attach = attach(epoch, primary, blocks);
    attach.volume = VolumeId::from_raw(2);
    attach.config.volume = attach.volume;
    attach.config.group = GroupId::from_raw(2);
    attach
}

pub fn params(cached: Vec<Attach>) -> NodeParams {
    NodeParams {
        cluster: "test".into(),
        node: "node-a".parse().expect("a valid name"),
        boot: BootId::from_raw(1),
        zone: "local-1a".parse().expect("a valid name"),
        account: AccountId::from_random(1),
        instances: vec![InstanceId::from_raw(1)],
        timing: Timing::default(),
        cached,
    }
}

pub struct Bench {
    pub node: Node,
    pub now: Instant,
    tokens: u64,
}

impl Bench {
    /// With what the machine did at its start.
    pub fn start(cached: Vec<Attach>) -> (Self, Vec<Action>) {
        let mut out = Vec::new();
        let now = Instant::ZERO;
        let node = Node::new(params(cached), 1, now, &mut out);
        (Self { node, now, tokens: 0 }, out)
    }

    /// Attached and exported, with its primary on server 1 under epoch 1, registered.
    pub fn serving(blocks: usize) -> Self {
        let (mut bench, _) = Self::start(vec![]);
        bench.event(Event::ManagerLinkUp);
        bench.manager(FromManager::Attach(attach(1, 1, blocks)));
        bench.event(Event::AttachmentsSaved);
        bench.link_up(1);
        let opening = bench.open_session_ok(1);
        let size = ByteCount::new(u64::try_from(blocks * BLOCK).expect("small"));
        let open = Action::OpenExport { volume: volume(), size, kernel_device: false };
        assert_eq!(opening, [open]);
        bench.event(export_opened());
        bench
    }

    pub fn event(&mut self, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        self.node.handle(self.now, event, &mut out);
        out
    }

    pub fn manager(&mut self, message: FromManager) -> Vec<Action> {
        self.event(Event::ManagerSent { message })
    }

    /// Brings the link up and expects the session to be opened; its id is kept for
    /// [`Self::open_session_ok`].
    pub fn link_up(&mut self, number: usize) -> RequestId {
        let actions = self.event(Event::LinkUp { server: server(number) });
        opening(&actions)
    }

    /// Lets the pending `OpenSession` succeed at this server: reconnects to learn its id.
    pub fn open_session_ok(&mut self, number: usize) -> Vec<Action> {
        self.event(Event::LinkDown { server: server(number) });
        let id = self.link_up(number);
        self.reply(number, id, Status::Ok)
    }

    pub fn reply(&mut self, number: usize, id: RequestId, status: Status) -> Vec<Action> {
        self.answer(number, id, status, vec![], Bytes::new())
    }

    /// Answers a read with this, its checksums right.
    pub fn reply_data(&mut self, number: usize, id: RequestId, data: Vec<u8>) -> Vec<Action> {
        let crcs = data.chunks(BLOCK).map(crc32c::crc32c).collect();
        self.answer(number, id, Status::Ok, crcs, data.into())
    }

    pub fn answer(
        &mut self,
        number: usize,
        id: RequestId,
        status: Status,
        crcs: Vec<u32>,
        data: Bytes,
    ) -> Vec<Action> {
        let message =
            DataMessage::Reply { group: group(), epoch: Epoch::FIRST, id, status, crcs, data };
        self.event(Event::LinkReceived { server: server(number), message })
    }

    pub fn ask(&mut self, request: GuestRequest) -> (GuestToken, Vec<Action>) {
        self.tokens += 1;
        let token = GuestToken(self.tokens);
        let event = Event::GuestRequested { volume: volume(), token, request };
        (token, self.event(event))
    }

    pub fn write(&mut self, offset: usize, data: &[u8]) -> (GuestToken, Vec<Action>) {
        let offset = u64::try_from(offset).expect("small");
        self.ask(GuestRequest::Write { offset, data: Bytes::copy_from_slice(data) })
    }

    pub fn read(&mut self, offset: usize, length: usize) -> (GuestToken, Vec<Action>) {
        let offset = u64::try_from(offset).expect("small");
        let length = u32::try_from(length).expect("small");
        self.ask(GuestRequest::Read { offset, length })
    }

    /// Lets time pass, waking the machine whenever it wants to be.
    pub fn pass(&mut self, time: Duration) -> Vec<Action> {
        let end = self.now + time;
        let mut out = Vec::new();
        while let Some(at) = self.node.deadline().filter(|&at| at <= end) {
            self.now = self.now.max(at);
            self.node.handle(self.now, Event::TimeReached, &mut out);
        }
        self.now = end;
        out
    }
}

pub fn export_opened() -> Event {
    Event::ExportOpened { volume: volume(), nbd_uris: vec!["nbd://x".into()], device: None }
}

/// The one `OpenSession` among the actions.
pub fn opening(actions: &[Action]) -> RequestId {
    let ids: Vec<RequestId> = actions
        .iter()
        .filter_map(|action| match action {
            Action::Send { message: DataMessage::OpenSession { id, .. }, .. } => Some(*id),
            _ => None,
        })
        .collect();
    assert_eq!(ids.len(), 1, "{actions:?}");
    ids[0]
}

/// A request that went out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Out {
    pub server: ServerId,
    pub id: RequestId,
    pub epoch: u64,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    Read(u64, u32),
    Write(u64, Bytes),
    Zero(u64, u32),
    Query(u64, u32),
}

/// What went out, without sessions being opened. Checks the checksums of writes.
pub fn sent(actions: &[Action]) -> Vec<Out> {
    let mut outs = Vec::new();
    for action in actions {
        let Action::Send { server, message } = action else { continue };
        let (id, epoch, what) = match message.clone() {
            DataMessage::Read { id, epoch, offset, length, .. } => {
                (id, epoch, What::Read(offset, length))
            }
            DataMessage::QueryAllocated { id, epoch, offset, length, .. } => {
                (id, epoch, What::Query(offset, length))
            }
            DataMessage::Change { id, epoch, offset, change, .. } => {
                (id, epoch, change_sent(offset, change))
            }
            _ => continue,
        };
        outs.push(Out { server: server.clone(), id, epoch: epoch.get(), what });
    }
    outs
}

fn change_sent(offset: u64, change: Change) -> What {
    match change {
        Change::Zero { length } => What::Zero(offset, length),
        Change::Write { crcs, data } => {
            let right: Vec<u32> = data.chunks(BLOCK).map(crc32c::crc32c).collect();
            assert_eq!(crcs, right);
            What::Write(offset, data)
        }
    }
}

/// The only request that went out.
pub fn sent_one(actions: &[Action]) -> Out {
    let mut outs = sent(actions);
    assert_eq!(outs.len(), 1, "{actions:?}");
    outs.remove(0)
}

pub fn replies(actions: &[Action]) -> Vec<(GuestToken, GuestReply)> {
    let reply = |action: &Action| match action {
        Action::ReplyGuest { token, reply, .. } => Some((*token, reply.clone())),
        _ => None,
    };
    actions.iter().filter_map(reply).collect()
}

pub fn to_manager(actions: &[Action]) -> Vec<ToManager> {
    let message = |action: &Action| match action {
        Action::SendManager { message } => Some(message.clone()),
        _ => None,
    };
    actions.iter().filter_map(message).collect()
}
