//! A small service, built by hand: what the tests of the wire forms look at.
//!
//! Account `one` has three volumes and an instance, account `two` a volume and an instance,
//! account `root` sees the fleet.

use std::collections::{BTreeMap, BTreeSet};

use format::{
    ctl::{
        Damage, DriveState, DriveStatus, DriveUsage, RegisterNode, RegisterServer, ReplicaReport,
        ScrubStatus,
    },
    record::{
        AccessKey, Account, Attachment, Group, Instance, Modification, Parameters, Placed, Server,
        ServerDrive, Volume,
    },
};
use model::{
    epoch::{AttachGeneration, Epoch},
    group::{GroupConfig, Member, Role},
    id::{
        AccountId, BootId, DriveId, DriveName, GroupId, InstanceId, NodeId, ReplicaId, ServerId,
        VolumeId,
    },
    state::{AttachmentState, Duty, ModificationState, VolumeState},
    time::{Instant, WallTime},
    units::{ByteCount, Gib, Iops, MibPerSec, Rate},
    volume::{Media, Stripes, VolumeType},
};

use crate::{
    api::{Place, View},
    http::{HttpRequest, HttpResponse},
    live::{Live, NodeLive, ServerLive},
    machine::LinkId,
    router::{Received, receive},
    sigv4::signing::sign,
    state::State,
};

pub const ONE: &str = "000000000001";
pub const TWO: &str = "000000000002";
pub const ROOT: &str = "000000000009";
/// In use, being modified.
pub const GP3: &str = "vol-00000000000000001";
/// Available, its mirror's server down.
pub const IO1: &str = "vol-00000000000000002";
/// Being created.
pub const ST1: &str = "vol-00000000000000003";
pub const OF_TWO: &str = "vol-00000000000000004";
pub const DELETED: &str = "vol-00000000000000005";
pub const NOWHERE: &str = "vol-0000000000000dead";
pub const INSTANCE: &str = "i-0000000000000000a";
pub const INSTANCE_OF_TWO: &str = "i-0000000000000000b";
pub const REQUEST_ID: &str = "59dbff89-35bd-4eac-99ed-be587ed81825";
/// 2026-11-22T15:00:00Z.
pub const NOW: WallTime = WallTime::from_millis(1_795_359_600_000);

/// The access key of an account; its secret is the same with `secret` before it.
pub fn key_of(account: &str) -> String {
    format!("AKIA{account}")
}

pub struct Fixture {
    pub state: State,
    pub place: Place,
    pub servers_up: BTreeSet<ServerId>,
    pub nodes_up: BTreeSet<NodeId>,
    pub live: Live,
}

fn id<T: std::str::FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| panic!("{text} is no id"))
}

fn minutes_ago(minutes: u64) -> WallTime {
    WallTime::from_millis(NOW.as_millis() - minutes * 60_000)
}

impl Fixture {
    pub fn new() -> Self {
        let mut fixture = Self {
            state: State::default(),
            place: Place {
                region: "local-1".into(),
                zones: ["local-1a", "local-1b", "local-1c"].map(id).to_vec(),
                endpoint: "http://127.0.0.1:7700".into(),
            },
            servers_up: BTreeSet::from([id("server-a-1"), id("server-b-1")]),
            nodes_up: BTreeSet::from([id("node-a")]),
            live: Live::default(),
        };
        for account in [ONE, TWO, ROOT] {
            fixture.add_account(account);
        }
        for server in ["server-a-1", "server-b-1", "server-c-1"] {
            fixture.add_server(server);
        }
        fixture.add_instance(INSTANCE, ONE, "node-a");
        fixture.add_instance(INSTANCE_OF_TWO, TWO, "node-c");
        let rate = |iops, throughput| Rate {
            iops: Iops::new(iops),
            throughput: MibPerSec::new(throughput),
        };
        fixture.add_volume(GP3, ONE, VolumeType::Gp3, 8, rate(3000, 125));
        fixture.add_volume(IO1, ONE, VolumeType::Io1, 100, rate(1000, 250));
        fixture.add_volume(ST1, ONE, VolumeType::St1, 500, rate(500, 20));
        fixture.add_volume(OF_TWO, TWO, VolumeType::Gp2, 10, rate(100, 128));
        fixture.add_volume(DELETED, ONE, VolumeType::Gp2, 10, rate(100, 128));
        fixture.volume(GP3).state = VolumeState::InUse;
        fixture.volume(GP3).tags = BTreeMap::from([
            ("Name".to_owned(), "a <b> & \"c\" é".to_owned()),
            ("empty".to_owned(), String::new()),
        ]);
        fixture.volume(ST1).state = VolumeState::Creating;
        fixture.volume(DELETED).state = VolumeState::Deleted;
        fixture.add_group(GP3, "server-b-1");
        fixture.add_group(IO1, "server-c-1");
        fixture.attach();
        fixture.modify();
        for server in ["server-a-1", "server-b-1"] {
            fixture.register(server);
        }
        fixture
    }

    pub fn view(&self) -> View<'_> {
        View {
            state: &self.state,
            place: &self.place,
            servers_up: &self.servers_up,
            nodes_up: &self.nodes_up,
            live: &self.live,
            wall: NOW,
            request_id: REQUEST_ID,
        }
    }

    pub fn volume(&mut self, volume: &str) -> &mut Volume {
        self.state.volumes.get_mut(&id(volume)).expect("the volume is there")
    }

    pub fn received(&self, request: &HttpRequest) -> Received {
        receive(&self.view(), request)
    }

    /// The answer to a call that must not reach the rules.
    pub fn answer(&self, request: &HttpRequest) -> HttpResponse {
        match self.received(request) {
            Received::Answer(answer) => answer,
            Received::Command { command, .. } => panic!("reached the rules: {command:?}"),
        }
    }

    fn add_account(&mut self, account: &str) {
        let key = key_of(account);
        let created = minutes_ago(60);
        let account_id: AccountId = id(account);
        let root = account == ROOT;
        let name = format!("name-{account}");
        let record = Account { account: account_id, name, root, created };
        self.state.accounts.insert(account_id, record);
        let secret = format!("secret{key}");
        let record = AccessKey { access_key: key.clone(), secret, account: account_id, created };
        self.state.access_keys.insert(key, record);
    }

    fn add_server(&mut self, server: &str) {
        let record = Server {
            server: id(server),
            zone: id(&format!("local-1{}", &server["server-".len().."server-a".len()])),
            address: id("127.0.0.1:7801"),
            drives: vec![ServerDrive {
                drive: id("ssd"),
                media: Media::Ssd,
                capacity: ByteCount::new(64 << 30),
                rate: Rate { iops: Iops::new(20_000), throughput: MibPerSec::new(1_000) },
                emulation: Some("thin file".into()),
            }],
            duty: Duty::Serving,
        };
        self.state.servers.insert(id(server), record);
    }

    /// A server reports all that the state places on it, and how its drive stands.
    fn register(&mut self, server: &str) {
        let record = self.state.servers[&id(server)].clone();
        let report = |p: &Placed, group| ReplicaReport {
            replica: p.replica,
            group,
            drive: p.drive.drive.clone(),
            promised: Epoch::NONE,
            adopted: Epoch::NONE,
            allocated: ByteCount::new(1 << 30),
        };
        let groups = self.state.groups.values();
        let replicas = groups
            .flat_map(|g| g.replicas.values().map(|p| (p, g.config.group)))
            .filter(|(p, _)| p.drive.server == record.server)
            .map(|(p, group)| (p.replica, report(p, group)))
            .collect();
        let drive: DriveName = id("ssd");
        let status = DriveStatus {
            drive: drive.clone(),
            identity: None,
            state: DriveState::Serving,
            reason: None,
            usage: DriveUsage {
                slots_total: 1_000,
                slots_used: 250,
                slot_bytes: 64 << 10,
                journal_bytes: 64 << 20,
                journal_bytes_used: 3 << 20,
                journal_apart: true,
                memory_used: 5 << 20,
                memory_max: 64 << 20,
                waiting_for_space: 0,
            },
            damage: Damage { bad_found: 3, bad_repaired: 2, bad_lost: 1 },
            scrub: ScrubStatus { scrubbed_bytes: 7 << 30, passes_finished: 2, percent: 40 },
        };
        let registration = RegisterServer {
            cluster: "fixture".into(),
            server: record.server.clone(),
            boot: BootId::from_raw(1),
            zone: record.zone.clone(),
            address: record.address,
            drives: Vec::new(),
            replicas: Vec::new(),
            incomplete: Vec::new(),
        };
        let facts = ServerLive {
            link: Some(LinkId(1)),
            boot: registration.boot,
            heard: Instant::ZERO,
            registration,
            replicas,
            failed_drives: BTreeMap::new(),
            drives: BTreeMap::from([(drive, status)]),
        };
        self.live.servers.insert(record.server, facts);
    }

    pub fn node(&self, device_failures: BTreeMap<VolumeId, String>) -> NodeLive {
        NodeLive {
            link: None,
            boot: BootId::from_raw(1),
            heard: Instant::ZERO,
            registration: RegisterNode {
                cluster: "fixture".into(),
                node: id("node-a"),
                boot: BootId::from_raw(1),
                zone: id("local-1a"),
                account: id(ONE),
                instances: Vec::new(),
                attachments: Vec::new(),
            },
            attached: BTreeMap::new(),
            detached: BTreeMap::new(),
            device_failures,
            told: BTreeMap::new(),
        }
    }

    fn add_instance(&mut self, instance: &str, account: &str, node: &str) {
        let record = Instance {
            instance: id(instance),
            account: id(account),
            node: id(node),
            zone: id(&node.replace("node-", "local-1")),
            registered: minutes_ago(50),
            tags: BTreeMap::from([("role".to_owned(), "db".to_owned())]),
        };
        self.state.instances.insert(id(instance), record);
    }

    fn add_volume(
        &mut self,
        volume: &str,
        account: &str,
        volume_type: VolumeType,
        gib: u32,
        rate: Rate,
    ) {
        let volume_id: VolumeId = id(volume);
        let record = Volume {
            volume: volume_id,
            account: id(account),
            state: VolumeState::Available,
            zone: id("local-1a"),
            parameters: Parameters {
                volume_type,
                size: Gib::new(gib),
                rate,
                zone: id("local-1a"),
                stripes: Stripes::ONE,
            },
            multi_attach: false,
            created: minutes_ago(40),
            tags: BTreeMap::new(),
            group: group_of(volume_id),
            attach_generation: AttachGeneration::from_raw(1),
            error: None,
        };
        self.state.volumes.insert(volume_id, record);
    }

    fn add_group(&mut self, volume: &str, mirror: &str) {
        let record = self.state.volumes[&id(volume)].clone();
        let member = |replica: u64, server: &str, role| Member {
            replica: ReplicaId::from_raw(replica),
            server: id(server),
            address: id("127.0.0.1:7801"),
            drive: id("ssd"),
            role,
        };
        let placed = |replica: u64, server: &str| Placed {
            replica: ReplicaId::from_raw(replica),
            drive: DriveId { server: id(server), drive: id("ssd") },
            beside: Vec::new(),
            size: record.parameters.size,
            rate: record.parameters.rate,
            created: true,
        };
        let desired = vec![placed(1, "server-a-1"), placed(2, mirror)];
        let spare = placed(3, "server-c-1");
        let group = Group {
            config: GroupConfig {
                group: record.group,
                volume: record.volume,
                epoch: Epoch::new(7).expect("a small epoch"),
                members: vec![
                    member(1, "server-a-1", Role::Primary),
                    member(2, mirror, Role::Mirror),
                ],
                size: record.parameters.size.to_bytes(),
                attach_generation: record.attach_generation,
                rate: record.parameters.rate,
                media: Media::Ssd,
            },
            replicas: desired.iter().cloned().chain([spare]).map(|p| (p.replica, p)).collect(),
            desired,
            primary_boot: None,
        };
        self.state.groups.insert(record.group, group);
    }

    fn attach(&mut self) {
        let (volume, instance): (VolumeId, InstanceId) = (id(GP3), id(INSTANCE));
        let attachment = Attachment {
            volume,
            instance,
            account: id(ONE),
            device: "/dev/sdf".into(),
            state: AttachmentState::Attached,
            attach_generation: AttachGeneration::from_raw(1),
            attached: minutes_ago(30),
            delete_on_termination: false,
            kernel_device_wanted: false,
            nbd_uris: vec!["nbd://127.0.0.1:10809/vol-00000000000000001".into()],
            kernel_device: None,
            force: false,
        };
        self.state.attachments.insert((volume, instance), attachment);
    }

    fn modify(&mut self) {
        let volume: VolumeId = id(GP3);
        let target = self.state.volumes[&volume].parameters.clone();
        let mut original = target.clone();
        original.size = Gib::new(4);
        original.volume_type = VolumeType::St1;
        for (number, state) in [(1, ModificationState::Failed), (2, ModificationState::Optimizing)]
        {
            let modification = Modification {
                volume,
                number,
                state,
                step: "fill".into(),
                status_message: (number == 1).then(|| "no room".to_owned()),
                original: original.clone(),
                target: target.clone(),
                progress_percent: 42,
                bytes_moved: 42 << 20,
                bytes_total: 100 << 20,
                replicas_to_fill: Default::default(),
                started: minutes_ago(20),
                ended: (number == 1).then(|| minutes_ago(15)),
            };
            self.state.modifications.insert((volume, number), modification);
        }
    }
}

fn group_of(volume: VolumeId) -> GroupId {
    GroupId::from_raw(u64::try_from(volume.raw() & 0xffff).expect("16 bits"))
}

/// A signed EC2 call, by form; `query` is `Action=…&…`.
pub fn ec2_call(account: &str, query: &str) -> HttpRequest {
    signed(account, "ec2", "POST", "/", &format!("{query}&Version=2016-11-15"))
}

pub fn signed(account: &str, service: &str, method: &str, path: &str, body: &str) -> HttpRequest {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let mut request = HttpRequest {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers: vec![("host".to_owned(), "127.0.0.1:7700".to_owned())],
        body: body.as_bytes().to_vec(),
        oversized: false,
    };
    let key = key_of(account);
    sign(&mut request, &key, &format!("secret{key}"), service, NOW);
    request
}

pub fn text(response: &HttpResponse) -> &str {
    std::str::from_utf8(&response.body).expect("answers are UTF-8")
}
