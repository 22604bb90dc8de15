//! What a large, idle fleet costs the manager: processor time of this thread, in virtual time.

use std::{collections::BTreeMap, time::Duration};

use control::{
    api::{CallToken, Place},
    http::{HttpRequest, HttpResponse},
    machine::{Action, Event, LinkId, Manager, ManagerParams, RootAccount, Timing},
};
use format::{
    ctl::{
        Damage, DriveReport, DriveState, DriveStatus, DriveUsage, RegisterServer, ReplicaProgress,
        ReplicaReport, ScrubStatus, ToManager,
    },
    record::{Group, Parameters, Placed, Record, Server, ServerDrive, Volume},
};
use model::{
    epoch::{AttachGeneration, Epoch},
    group::{GroupConfig, Member, Role},
    id::{AccountId, BootId, DriveId, DriveName, GroupId, ReplicaId, ServerId, VolumeId, Zone},
    state::{Duty, VolumeState},
    time::{Instant, WallTime},
    units::{ByteCount, Gib, Iops, MibPerSec, Rate},
    volume::{Media, Stripes, VolumeType},
};

const SERVERS: u64 = 10;

fn server(n: u64) -> ServerId {
    format!("server-a-{n}").parse().expect("a name")
}

fn ssd() -> DriveName {
    "ssd".parse().expect("a name")
}

fn zone() -> Zone {
    "local-1a".parse().expect("a zone")
}

fn address() -> std::net::SocketAddr {
    "127.0.0.1:9".parse().expect("an address")
}

fn rate() -> Rate {
    Rate { iops: Iops::new(100), throughput: MibPerSec::new(10) }
}

fn account() -> AccountId {
    "000000000001".parse().expect("twelve digits")
}

fn placed(replica: u64, on: u64) -> Placed {
    let drive = DriveId { server: server(on), drive: ssd() };
    let replica = ReplicaId::from_raw(replica);
    Placed { replica, drive, beside: Vec::new(), size: Gib::new(8), rate: rate(), created: true }
}

/// Volume `n` with its primary on one server and its mirror on the next.
fn volume(n: u64) -> [Record; 2] {
    let (volume, group) = (VolumeId::from_raw(u128::from(n)), GroupId::from_raw(n));
    let parameters = Parameters {
        volume_type: VolumeType::Gp3,
        size: Gib::new(8),
        rate: rate(),
        zone: zone(),
        stripes: Stripes::ONE,
    };
    let desired = vec![placed(2 * n, n % SERVERS), placed(2 * n + 1, (n + 1) % SERVERS)];
    let member = |at: usize, role| Member {
        replica: desired[at].replica,
        server: desired[at].drive.server.clone(),
        address: address(),
        drive: ssd(),
        role,
    };
    let config = GroupConfig {
        group,
        volume,
        epoch: Epoch::FIRST,
        members: vec![member(0, Role::Primary), member(1, Role::Mirror)],
        size: Gib::new(8).to_bytes(),
        attach_generation: AttachGeneration::default(),
        rate: rate(),
        media: Media::Ssd,
    };
    let replicas: BTreeMap<_, _> = desired.iter().map(|p| (p.replica, p.clone())).collect();
    let boot = BootId::from_raw(n % SERVERS + 1);
    [
        Record::Group(Group { config, desired, replicas, primary_boot: Some(boot) }),
        Record::Volume(Volume {
            volume,
            account: account(),
            state: VolumeState::Available,
            zone: zone(),
            parameters,
            multi_attach: false,
            created: WallTime::from_millis(0),
            tags: BTreeMap::new(),
            group,
            attach_generation: AttachGeneration::default(),
            error: None,
        }),
    ]
}

fn server_record(n: u64) -> Record {
    let drive = ServerDrive {
        drive: ssd(),
        media: Media::Ssd,
        capacity: Gib::new(100_000).to_bytes(),
        rate: Rate { iops: Iops::new(4_000_000), throughput: MibPerSec::new(400_000) },
        emulation: None,
    };
    let (server, zone, address) = (server(n), zone(), address());
    Record::Server(Server { server, zone, address, drives: vec![drive], duty: Duty::Serving })
}

struct Fleet {
    manager: Manager,
    now: Duration,
    volumes: u64,
    out: Vec<Action>,
    sent: usize,
    answered: Vec<HttpResponse>,
}

impl Fleet {
    /// Everybody is registered, and has said all there is to say.
    fn new(volumes: u64) -> Self {
        let params = ManagerParams {
            cluster: "cost".to_owned(),
            place: Place { region: "local-1".into(), zones: vec![zone()], endpoint: String::new() },
            root: RootAccount {
                account: account(),
                access_key: "AKIAROOT".to_owned(),
                secret: "secret".to_owned(),
            },
            remirror_delay: Duration::from_secs(10),
            timing: Timing::default(),
        };
        let servers = (0..SERVERS).map(server_record);
        let records = servers.chain((1..=volumes).flat_map(volume)).collect();
        let mut out = Vec::new();
        let (now, wall) = (Instant::ZERO, WallTime::from_millis(0));
        let manager = Manager::new(params, records, 1, now, wall, &mut out);
        let mut fleet =
            Self { manager, now: Duration::ZERO, volumes, out, sent: 0, answered: Vec::new() };
        fleet.settle();
        for n in 0..SERVERS {
            fleet.feed(Event::LinkOpened { link: LinkId(n) });
            fleet.say(n, ToManager::RegisterServer(fleet.registration(n)));
            fleet.say(n, ToManager::DriveStatus(status()));
            let replicas = (1..=volumes).filter(|v| v % SERVERS == n).map(progress).collect();
            fleet.say(n, ToManager::Beat { replicas });
        }
        fleet.pass(10);
        fleet.sent = 0;
        fleet
    }

    fn registration(&self, n: u64) -> RegisterServer {
        let drive = DriveReport {
            drive: ssd(),
            media: Media::Ssd,
            capacity: Gib::new(100_000).to_bytes(),
            rate: Rate { iops: Iops::new(4_000_000), throughput: MibPerSec::new(400_000) },
            allocated: ByteCount::ZERO,
            emulation: None,
            failed: None,
            identity: None,
        };
        let here = |v: &u64| v % SERVERS == n || (v + 1) % SERVERS == n;
        let report = |v: u64| ReplicaReport {
            replica: ReplicaId::from_raw(if v % SERVERS == n { 2 * v } else { 2 * v + 1 }),
            group: GroupId::from_raw(v),
            drive: ssd(),
            promised: Epoch::FIRST,
            adopted: Epoch::FIRST,
            allocated: ByteCount::new(1 << 30),
        };
        RegisterServer {
            cluster: "cost".to_owned(),
            server: server(n),
            boot: BootId::from_raw(n + 1),
            zone: zone(),
            address: address(),
            drives: vec![drive],
            replicas: (1..=self.volumes).filter(here).map(report).collect(),
            incomplete: Vec::new(),
        }
    }

    fn say(&mut self, n: u64, message: ToManager) {
        self.feed(Event::LinkReceived { link: LinkId(n), message });
    }

    fn feed(&mut self, event: Event) {
        let now = Instant::from_nanos(u64::try_from(self.now.as_nanos()).expect("short"));
        let wall = WallTime::from_millis(u64::try_from(self.now.as_millis()).expect("short"));
        self.manager.handle(now, wall, event, &mut self.out);
        self.settle();
    }

    /// The store confirms at once; messages go nowhere.
    fn settle(&mut self) {
        for action in std::mem::take(&mut self.out) {
            match action {
                Action::Commit { commit, .. } => self.feed(Event::Committed { commit }),
                Action::Send { .. } => self.sent += 1,
                Action::AnswerHttp { response, .. } => self.answered.push(response),
                Action::Report { text } => panic!("{text}"),
                Action::CloseLink { link } => panic!("{link:?} is closed"),
            }
        }
    }

    /// Idle seconds: every server beats twice in each.
    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds * 4 {
            self.now += Duration::from_millis(250);
            self.feed(Event::TimeReached);
            if self.now.subsec_millis().is_multiple_of(500) {
                // What has not changed is said again in turn, each within half a minute.
                let beat = u64::try_from(self.now.as_millis() / 500).expect("short");
                for n in 0..SERVERS {
                    let again = |v: &u64| v % SERVERS == n && (v / SERVERS) % 60 == beat % 60;
                    let replicas = (1..=self.volumes).filter(again).map(progress).collect();
                    self.say(n, ToManager::Beat { replicas });
                }
            }
        }
    }
}

fn progress(volume: u64) -> ReplicaProgress {
    ReplicaProgress {
        group: GroupId::from_raw(volume),
        replica: ReplicaId::from_raw(2 * volume),
        epoch: Epoch::FIRST,
        allocated: ByteCount::new(1 << 30),
        fill: None,
    }
}

fn status() -> DriveStatus {
    DriveStatus {
        drive: ssd(),
        identity: None,
        state: DriveState::Serving,
        reason: None,
        usage: DriveUsage {
            slots_total: 1 << 24,
            slots_used: 1 << 20,
            slot_bytes: 64 << 10,
            ..DriveUsage::default()
        },
        damage: Damage::default(),
        scrub: ScrubStatus::default(),
    }
}

/// Of this thread, so that whatever else the machine does counts little.
#[expect(clippy::disallowed_methods, reason = "a measurement asks the kernel")]
fn processor_time() -> Duration {
    let text = std::fs::read("/proc/thread-self/schedstat").expect("Linux says what threads used");
    let text = String::from_utf8(text).expect("digits");
    let nanos = text.split_whitespace().next().and_then(|n| n.parse().ok());
    Duration::from_nanos(nanos.expect("nanoseconds on a processor"))
}

#[test]
fn five_thousand_idle_volumes_cost_the_manager_less_than_a_hundredth_of_a_core() {
    const SECONDS: u64 = 60;
    let mut fleet = Fleet::new(5_000);
    let before = processor_time();
    fleet.pass(SECONDS);
    let used = processor_time() - before;
    println!("{} ms for {SECONDS} s with 5,000 volumes", used.as_millis());
    assert_eq!(fleet.sent, 0, "an idle fleet is told nothing");
    assert!(used < Duration::from_millis(10 * SECONDS), "{used:?} in {SECONDS} s");
}

#[test]
fn the_metrics_of_two_thousand_volumes_cost_no_more_than_a_blink() {
    const VOLUMES: u64 = 2_000;
    let mut fleet = Fleet::new(VOLUMES);
    let request = HttpRequest {
        method: "GET".to_owned(),
        path: "/metrics".to_owned(),
        query: String::new(),
        headers: Vec::new(),
        body: Vec::new(),
        oversized: false,
    };
    let before = processor_time();
    fleet.feed(Event::ScrapeReceived { call: CallToken(1), request });
    let used = processor_time() - before;
    let body = &fleet.answered.last().expect("answered").body;
    println!("{} us for {} KiB with {VOLUMES} volumes", used.as_micros(), body.len() >> 10);
    let text = std::str::from_utf8(body).expect("text");
    let samples = text.lines().filter(|l| l.starts_with("pliant_volume_serving{")).count();
    assert_eq!(u64::try_from(samples), Ok(VOLUMES));
    assert!(used < Duration::from_millis(200), "{used:?}");
}
