//! One run: a volume in use, modified again and again, while processes die and links break.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

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
use node::api::{GuestReply, GuestRequest, GuestToken, NodeParams};
use serde_json::{Value, json};

mod guest;
mod params;

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
    /// Whether servers also lose what was not flushed.
    pub power_cuts: bool,
    /// Servers have several drives of a kind; replicas are striped, and modified to be striped
    /// otherwise. Guests write across the border of two stripe units.
    pub striped: bool,
    pub keep_trace: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            length: Duration::from_secs(20),
            fault_every: Some(Duration::from_millis(900)),
            modify_every: Some(Duration::from_secs(4)),
            power_cuts: true,
            striped: false,
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
    pub modifications: u64,
    pub completed: u64,
    pub failed: u64,
    /// Digest of everything that guests saw, in order.
    pub digest: u64,
    pub longest_wait: Duration,
}

/// Something that must never happen, happened.
#[derive(Debug, Clone)]
pub struct Violation {
    pub seed: u64,
    pub what: String,
    pub trace: Vec<String>,
}

struct Pending {
    first: u64,
    count: u64,
    /// Content of each block, for a write.
    contents: Vec<u64>,
    began: Instant,
    write: bool,
}

struct Run {
    world: World,
    options: Options,
    registers: Registers,
    pending: BTreeMap<GuestToken, Pending>,
    next_token: u64,
    next_content: u64,
    volume: VolumeId,
    node: NodeId,
    zone: usize,
    size_gib: u64,
    outcome: Outcome,
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
        Self {
            world,
            options: options.clone(),
            registers: Registers::default(),
            pending: BTreeMap::new(),
            next_token: 1,
            next_content: 1,
            volume: VolumeId::from_raw(0),
            node: "node-a".parse().expect("a name"),
            zone: 0,
            size_gib: 1,
            outcome: Outcome::default(),
        }
    }

    fn play(&mut self) -> Result<(), String> {
        self.make_volume()?;
        self.with_faults()?;
        self.heal()?;
        self.read_everything()?;
        self.compare_replicas()
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
        while self.world.now < end {
            let mut until = next_guest;
            until = next_fault.map_or(until, |f| until.min(f));
            until = next_modify.map_or(until, |m| until.min(m));
            while self.world.step(until) {
                self.take_answers()?;
            }
            if self.world.now >= next_guest {
                self.guest_acts();
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
        }
        Ok(())
    }

    fn soon(&mut self, every: Duration) -> Instant {
        let mean = u64::try_from(every.as_micros()).expect("seconds");
        self.world.now + self.world.random.micros(mean / 4, mean * 7 / 4)
    }

    fn strike(&mut self) {
        if self.world.random.chance(25) {
            self.outcome.resets += 1;
            self.world.reset_a_link();
            return;
        }
        let processes = self.world.processes();
        let victim = self.world.random.pick(&processes).clone();
        if !self.world.is_up(&victim) {
            return;
        }
        let power = self.options.power_cuts && self.world.random.chance(40);
        self.outcome.kills += 1;
        self.world.kill(&victim, power);
        if matches!(victim, Process::Node(ref n) if *n == self.node) {
            // Its guests' requests died with it, unanswered; they count as pending for ever.
            self.pending.clear();
        }
        let down = if self.world.random.chance(20) {
            self.world.random.micros(1_000_000, 6_000_000)
        } else {
            self.world.random.micros(5_000, 400_000)
        };
        self.world.start_later(&victim, down);
    }

    fn modify(&mut self) {
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

    /// No more faults: everything must come to its end.
    fn heal(&mut self) -> Result<(), String> {
        for process in self.world.processes() {
            self.world.start_later(&process, Duration::from_millis(1));
        }
        self.until("the guest has its device", 30, |run| {
            let shown = run.world.exports.contains_key(&(run.node.clone(), run.volume));
            Some(shown && run.world.processes().iter().all(|p| run.world.is_up(p)))
        })?;
        self.until("every request is answered", 60, |run| Some(run.pending.is_empty()))?;
        self.until("the modification has ended", 90, |run| {
            let shown = run.show()?;
            let state = shown["modification"]["state"].as_str();
            Some(state.is_none_or(|s| s == "completed" || s == "failed"))
        })?;
        self.until("the volume is whole", 90, |run| {
            let shown = run.show()?;
            let replicas = shown["replicas"].as_array()?.len();
            Some(shown["degraded"] == false && replicas == 2)
        })?;
        for record in self.world.records() {
            if let Record::Modification(m) = record {
                match m.state.as_str() {
                    "completed" => self.outcome.completed += 1,
                    _ => self.outcome.failed += 1,
                }
            }
        }
        Ok(())
    }

    fn read_everything(&mut self) -> Result<(), String> {
        for first in self.probes() {
            let token = GuestToken(self.next_token);
            self.next_token += 1;
            let began = self.world.now;
            self.pending
                .insert(token, Pending { first, count: 1, contents: vec![], began, write: false });
            let request = GuestRequest::Read { offset: first * BLOCK, length: 4096 };
            let node = self.node.clone();
            self.world.guest(&node, self.volume, token, request);
            self.until("a quiet read is answered", 10, |run| Some(run.pending.is_empty()))?;
        }
        Ok(())
    }

    /// Opens the drives of every in-sync replica again and compares all blocks.
    fn compare_replicas(&mut self) -> Result<(), String> {
        self.settle(Duration::from_secs(2))?;
        let group = self.world.records().find_map(|r| match r {
            Record::Group(group) if group.config.volume == self.volume => Some(group.clone()),
            _ => None,
        });
        let group = group.ok_or("the volume has no group")?;
        let mut contents: Vec<(ReplicaId, Vec<Bytes>)> = Vec::new();
        for member in group.config.in_sync() {
            self.world.kill(&Process::Server(member.server.clone()), true);
            let mut parts = Vec::new();
            for id in group.replicas[&member.replica].drives() {
                let params = self.world.server_params(&member.server);
                let drive = params.drives.iter().find(|d| d.drive == id.drive);
                let geometry = drive.ok_or("no such drive")?.geometry;
                let disk = |device| self.world.drive(&member.server, &id.drive, device);
                let (data, journal) = (disk(Device::Data), disk(Device::Journal));
                let data = data.ok_or("no such drive")?;
                parts.push(crate::reader::Reader::open(geometry, data, journal)?);
            }
            let mut read = Vec::new();
            for block in self.probes() {
                let (unit, count) = (block / 256, parts.len() as u64);
                let part = usize::try_from(unit % count).expect("a handful");
                let at = unit / count * 256 + block % 256;
                read.push(parts[part].read(member.replica, at * BLOCK)?);
            }
            contents.push((member.replica, read));
        }
        let [(first, one), (second, two)] = &contents[..] else {
            return Err(format!("{} in-sync replicas at rest", contents.len()));
        };
        let differs = one.iter().zip(two).position(|(a, b)| a != b);
        match differs {
            Some(index) => Err(format!("replicas {first} and {second} differ at probe {index}")),
            None => Ok(()),
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

fn instance(zone: usize) -> InstanceId {
    InstanceId::from_raw(0xa0 + zone as u128)
}

fn zone(index: usize) -> Zone {
    ZONES[index].parse().expect("a zone's name")
}
