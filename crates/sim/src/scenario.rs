//! One run: a volume in use, modified again and again, while processes die and links break.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use bds::api::{DriveParams, ServerParams};
use bytes::Bytes;
use control::{
    api::Place,
    machine::{ManagerParams, RootAccount},
};
use engine::api::{Device, Geometry};
use format::{disk::JournalPlace, record::Record};
use model::{
    id::{BootId, InstanceId, NodeId, ReplicaId, ServerId, VolumeId, Zone},
    time::Instant,
    units::{ByteCount, Iops, MibPerSec, Rate},
    volume::Media,
};
use node::api::{GuestError, GuestReply, GuestRequest, GuestToken, NodeParams};
use serde_json::{Value, json};

mod audit;
pub mod faults;
mod guest;
mod moving;
mod params;
pub mod shapes;
pub mod slow;

use faults::{End, Fault};
use moving::Moving;
use params::{manager_params, node_params, server_params};

use crate::{
    api,
    check::{Registers, Wrong},
    network::Process,
    random::Random,
    world::World,
};

const ZONES: [&str; 2] = ["local-1a", "local-1b"];
const CLUSTER: &str = "sim";
const BLOCK: u64 = 4096;
/// In one run of so many, half of the drives have their journals on devices of their own.
const JOURNALS_APART_ONE_IN: u64 = 3;

/// What a run does.
#[derive(Debug, Clone)]
pub struct Options {
    /// Virtual time with faults.
    pub length: Duration,
    /// Mean time between faults; none means a quiet run.
    pub fault_every: Option<Duration>,
    pub modify_every: Option<Duration>,
    /// Mean time between moves of the volume to another guest.
    pub move_every: Option<Duration>,
    /// Everything may go wrong, and clocks run at different rates: the seed says what. Otherwise
    /// processes die, machines lose power, and links break.
    pub all_faults: bool,
    /// Servers have several drives of a kind; replicas are striped, and modified to be striped
    /// otherwise. Guests write across the border of two stripe units.
    pub striped: bool,
    /// Links between servers break and are back at once, and nothing else happens: that must not cost
    /// a change of configuration.
    pub calm: bool,
    pub keep_trace: bool,
}

impl Options {
    /// Everything may go wrong, and the volume moves between guests.
    pub fn everything() -> Self {
        Self { all_faults: true, move_every: Some(Duration::from_secs(5)), ..Self::default() }
    }

    /// Short, so that there can be many, and full of faults.
    pub fn dense() -> Self {
        Self {
            length: Duration::from_secs(3),
            fault_every: Some(Duration::from_millis(300)),
            modify_every: Some(Duration::from_millis(1_500)),
            move_every: Some(Duration::from_secs(2)),
            ..Self::everything()
        }
    }

    /// Nothing happens but that links between replicas break.
    pub fn calm() -> Self {
        let fault_every = Some(Duration::from_millis(300));
        Self { fault_every, modify_every: None, calm: true, ..Self::default() }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            length: Duration::from_secs(20),
            fault_every: Some(Duration::from_millis(900)),
            modify_every: Some(Duration::from_secs(4)),
            move_every: None,
            all_faults: false,
            striped: false,
            calm: false,
            keep_trace: false,
        }
    }
}

/// What a run saw; equal for equal seeds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    pub reads: u64,
    pub writes: u64,
    pub kills: u64,
    pub resets: u64,
    pub cuts: u64,
    pub pauses: u64,
    pub drive_failures: u64,
    pub moves: u64,
    pub drains: u64,
    pub modifications: u64,
    pub completed: u64,
    pub failed: u64,
    /// Digest of everything that guests saw, in order.
    pub digest: u64,
    pub longest_wait: Duration,
    /// Virtual time.
    pub lasted: Duration,
}

impl Outcome {
    /// Counts what another run saw as well.
    pub fn add(&mut self, other: &Self) {
        self.reads += other.reads;
        self.writes += other.writes;
        self.kills += other.kills;
        self.resets += other.resets;
        self.cuts += other.cuts;
        self.pauses += other.pauses;
        self.drive_failures += other.drive_failures;
        self.moves += other.moves;
        self.drains += other.drains;
        self.modifications += other.modifications;
        self.completed += other.completed;
        self.failed += other.failed;
        self.longest_wait = self.longest_wait.max(other.longest_wait);
        self.lasted += other.lasted;
    }
}

/// Something that must never happen, happened.
#[derive(Debug, Clone)]
pub struct Violation {
    pub seed: u64,
    pub what: String,
    pub trace: Vec<String>,
}

struct Pending {
    node: NodeId,
    first: u64,
    count: u64,
    /// Content of each block, for a write.
    contents: Vec<u64>,
    began: Instant,
    write: bool,
}

impl Pending {
    /// Each block, and what is written there.
    fn writes(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        (self.first..).zip(self.contents.clone())
    }
}

struct Run {
    world: World,
    options: Options,
    faults: Vec<Fault>,
    /// What is wrong for a while.
    ends: BTreeSet<(Instant, End)>,
    registers: Registers,
    pending: BTreeMap<GuestToken, Pending>,
    /// Of a guest that has lost the volume, or is about to.
    zombies: BTreeMap<GuestToken, Pending>,
    /// Blocks and contents of writes that will not be answered any more, since the last move.
    unanswered: Vec<(u64, u64)>,
    /// A server that takes nothing new, or is emptied.
    drained: Option<ServerId>,
    moving: Option<Moving>,
    by_force: bool,
    /// The present guest has not been answered yet.
    fencing: bool,
    /// The guest that has the volume, and the one that had it before.
    at: usize,
    former: NodeId,
    next_token: u64,
    next_content: u64,
    volume: VolumeId,
    node: NodeId,
    zone: usize,
    size_gib: u64,
    outcome: Outcome,
    /// When the present guest's requests began, and how long they took.
    latencies: Vec<(Instant, Duration)>,
}

/// Runs one seed.
pub fn run(seed: u64, options: &Options) -> Result<Outcome, Box<Violation>> {
    let mut run = Run::new(seed, options);
    match run.play() {
        Ok(()) => Ok(run.outcome),
        Err(what) => {
            let trace = run.world.trace.take().unwrap_or_default();
            Err(Box::new(Violation { seed, what, trace }))
        }
    }
}

impl Run {
    fn new(seed: u64, options: &Options) -> Self {
        let mut world =
            World::new(seed, manager_params(), server_params(seed, options.striped), node_params());
        world.trace = options.keep_trace.then(Vec::new);
        let mut faults = Fault::PLAIN.to_vec();
        if options.all_faults {
            let mut random = Random::new(seed ^ 0x6661_756c_7473);
            faults = Fault::some(&mut random);
            if random.chance(40) {
                for process in world.processes() {
                    world.set_clock(&process, 900 + random.below(201));
                }
            }
        }
        world.begin();
        Self {
            world,
            options: options.clone(),
            faults,
            ends: BTreeSet::new(),
            registers: Registers::default(),
            pending: BTreeMap::new(),
            zombies: BTreeMap::new(),
            unanswered: Vec::new(),
            drained: None,
            moving: None,
            by_force: false,
            fencing: false,
            at: 0,
            former: node(0),
            next_token: 1,
            next_content: 1,
            volume: VolumeId::from_raw(0),
            node: node(0),
            zone: 0,
            size_gib: 1,
            outcome: Outcome::default(),
            latencies: Vec::new(),
        }
    }

    fn play(&mut self) -> Result<(), String> {
        self.make_volume()?;
        let epoch = self.epoch();
        self.with_faults()?;
        if self.options.calm {
            self.settle(Duration::from_secs(10))?;
            if self.epoch() != epoch {
                return Err("a link that broke for a moment changed the configuration".to_owned());
            }
        }
        self.heal()?;
        self.read_everything()?;
        self.compare_replicas()?;
        self.outcome.lasted = self.world.now.since(Instant::ZERO);
        Ok(())
    }

    fn make_volume(&mut self) -> Result<(), String> {
        self.until("all processes are up", 30, |run| {
            let health = run.call("GET", "/v1/health", None)?;
            Some(health["servers_up"] == 6 && health["nodes_up"] == 2)
        })?;
        let mut body = json!({"zone": ZONES[0], "size_gib": 1, "volume_type": "gp3"});
        if self.options.striped {
            body["stripes"] = json!(1 + self.world.random.below(3));
        }
        let made = self.must_call("POST", "/v1/volumes", Some(&body))?;
        let id = made["volume_id"].as_str().ok_or("no volume id")?;
        self.volume = id.parse().map_err(|e| format!("{e}"))?;
        self.until("the volume is available", 10, |run| Some(run.show()?["state"] == "available"))?;
        let body = json!({"volume_id": id, "instance_id": instance(0).to_string(), "device": "/dev/sdf", "kernel_device": false});
        self.must_call("POST", "/v1/attachments", Some(&body))?;
        self.until("the volume is attached", 10, |run| {
            Some(run.show()?["attachments"][0]["state"] == "attached")
        })
    }

    fn with_faults(&mut self) -> Result<(), String> {
        let end = self.world.now + self.options.length;
        let mut next_guest = self.world.now;
        let mut next_fault = self.options.fault_every.map(|every| self.world.now + every);
        let mut next_modify = self.options.modify_every.map(|every| self.world.now + every / 2);
        let mut next_move = self.options.move_every.map(|every| self.world.now + every);
        let mut next_look = self.world.now;
        while self.world.now < end {
            let mut until = next_guest;
            until = next_fault.map_or(until, |f| until.min(f));
            until = next_modify.map_or(until, |m| until.min(m));
            until = self.next_end().map_or(until, |e| until.min(e));
            while self.world.step(until) {
                self.take_answers()?;
                self.strike_at_moments();
            }
            self.end_due();
            if self.world.now >= next_guest {
                self.guest_acts();
                if self.options.move_every.is_some() && self.world.random.chance(10) {
                    self.zombie_acts();
                }
                next_guest = self.world.now + self.world.random.micros(300, 6_000);
            }
            if next_fault.is_some_and(|f| self.world.now >= f) {
                self.strike();
                next_fault = self.options.fault_every.map(|every| self.soon(every));
            }
            if next_modify.is_some_and(|m| self.world.now >= m) {
                self.modify();
                next_modify = self.options.modify_every.map(|every| self.soon(every));
            }
            if next_move.is_some_and(|m| self.world.now >= m) {
                self.begin_to_move();
                next_move = self.options.move_every.map(|every| self.soon(every));
            }
            if self.moving.is_some() && self.world.now >= next_look {
                self.go_on_moving();
                next_look = self.world.now + Duration::from_millis(50);
            }
        }
        Ok(())
    }

    fn soon(&mut self, every: Duration) -> Instant {
        let mean = u64::try_from(every.as_micros()).expect("seconds");
        self.world.now + self.world.random.micros(mean / 4, mean * 7 / 4)
    }

    /// Another server is emptied, or no server any more.
    fn drain(&mut self) {
        if let Some(before) = self.drained.take() {
            self.set_duty(&before, "uncordon");
        }
        if self.world.random.chance(70) {
            let servers: Vec<ServerId> = self.world.servers().cloned().collect();
            let server = self.world.random.pick(&servers).clone();
            let duty = if self.world.random.chance(70) { "drain" } else { "cordon" };
            self.set_duty(&server, duty);
            self.drained = Some(server);
            self.outcome.drains += 1;
        }
    }

    /// Whether that was heard is seen when it is asked for again.
    fn set_duty(&mut self, server: &ServerId, duty: &str) -> bool {
        let path = format!("/v1/servers/{server}/{duty}");
        self.call("POST", &path, Some(&json!({}))).is_some()
    }

    fn modify(&mut self) {
        if self.options.all_faults && self.world.random.chance(25) {
            return self.drain();
        }
        let body = match self.world.random.below(if self.options.striped { 7 } else { 4 }) {
            4..7 => json!({"stripes": 1 + self.world.random.below(3)}),
            0 => {
                self.zone = 1 - self.zone;
                json!({"zone": ZONES[self.zone]})
            }
            1 => {
                json!({"volume_type": if self.world.random.chance(50) { "standard" } else { "gp3" }})
            }
            2 => {
                self.size_gib += 1;
                json!({"size_gib": self.size_gib})
            }
            _ => {
                self.zone = 1 - self.zone;
                self.size_gib += 1;
                json!({"zone": ZONES[self.zone], "size_gib": self.size_gib, "volume_type": "gp3"})
            }
        };
        let path = format!("/v1/volumes/{}/modify", self.volume);
        let request = api::request("POST", &path, Some(&body), self.world.wall());
        // The answer may be a refusal, or lost with the manager; both are fine.
        if self.world.call(request).is_some() {
            self.outcome.modifications += 1;
        }
    }

    fn settle(&mut self, length: Duration) -> Result<(), String> {
        let until = self.world.now + length;
        while self.world.step(until) {
            self.take_answers()?;
        }
        Ok(())
    }

    /// Lets time pass until something holds. `None` from the condition means: cannot be told now.
    fn until(
        &mut self,
        what: &str,
        limit_s: u64,
        mut condition: impl FnMut(&mut Self) -> Option<bool>,
    ) -> Result<(), String> {
        let limit = self.world.now + Duration::from_secs(limit_s);
        while self.world.now < limit {
            if condition(self) == Some(true) {
                return Ok(());
            }
            self.settle(Duration::from_millis(50))?;
        }
        let shown = self.show();
        let pending = self.pending.len();
        Err(format!("not within {limit_s} s: {what}; {pending} requests pending; volume {shown:?}"))
    }

    fn epoch(&mut self) -> Option<u64> {
        self.show()?["epoch"].as_u64()
    }

    fn show(&mut self) -> Option<Value> {
        let path = format!("/v1/volumes/{}", self.volume);
        self.call("GET", &path, None)
    }

    /// One call to the end; nothing when the manager died over it or refused.
    fn call(&mut self, method: &str, path: &str, body: Option<&Value>) -> Option<Value> {
        self.call_full(method, path, body).and_then(Result::ok)
    }

    fn must_call(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, String> {
        self.call_full(method, path, body).unwrap_or_else(|| Err(format!("{path}: no answer")))
    }

    fn call_full(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Option<Result<Value, String>> {
        let call = self.world.call(api::request(method, path, body, self.world.wall()))?;
        let limit = self.world.now + Duration::from_secs(5);
        loop {
            if let Some(response) = self.world.http.remove(&call) {
                let text = String::from_utf8_lossy(&response.body).into_owned();
                let parsed =
                    serde_json::from_str(&text).map_err(|e| format!("{path}: {e}: {text}"));
                return Some(if response.status < 300 {
                    parsed
                } else {
                    Err(format!("{path}: {text}"))
                });
            }
            if !self.world.step(limit) {
                return None;
            }
            if let Err(what) = self.take_answers() {
                return Some(Err(what));
            }
        }
    }
}

fn node(zone: usize) -> NodeId {
    ["node-a", "node-b"][zone].parse().expect("a name")
}

fn instance(zone: usize) -> InstanceId {
    InstanceId::from_raw(0xa0 + zone as u128)
}

fn zone(index: usize) -> Zone {
    ZONES[index].parse().expect("a zone's name")
}
