//! What callers are shown: the JSON shapes, each made from records.

use std::collections::{BTreeMap, BTreeSet};

use format::record;
use model::{
    group::Role,
    id::{DriveId, InstanceId, NodeId, ReplicaId, Zone},
    state::{AttachmentState, VolumeState},
    volume::{Media, Stripes, VolumeType},
};
use serde::Serialize;
use serde_json::json;

use crate::{
    api::{Caller, View},
    health::Health,
    live::Standing,
    scrub::{ReplicaScrub, VolumeScrub},
    sts,
};

/// A scrub that was asked for: the sums, and each replica.
pub fn scrub(view: &View<'_>, scrub: &VolumeScrub) -> serde_json::Value {
    let group = view.state.groups.get(&scrub.group);
    let server = |replica| Some(group?.replicas.get(&replica)?.drive.to_string());
    let each = |(&replica, r): (&ReplicaId, &ReplicaScrub)| {
        json!({
            "replica": replica, "drive": server(replica), "percent": r.percent, "bytes": r.bytes,
            "bad_blocks_found": r.damage.bad_found, "bad_blocks_repaired": r.damage.bad_repaired,
            "bad_blocks_lost": r.damage.bad_lost, "finished": r.finished, "failure": r.failure,
        })
    };
    let replicas: Vec<_> = scrub.replicas.iter().map(each).collect();
    let all = || scrub.replicas.values();
    json!({
        "volume_id": scrub.volume,
        "pass": scrub.pass,
        "finished": scrub.is_finished(),
        "percent": all().map(|r| r.percent).min().unwrap_or(100),
        "bytes": all().map(|r| r.bytes).sum::<u64>(),
        "bad_blocks_found": all().map(|r| r.damage.bad_found).sum::<u64>(),
        "bad_blocks_repaired": all().map(|r| r.damage.bad_repaired).sum::<u64>(),
        "bad_blocks_lost": all().map(|r| r.damage.bad_lost).sum::<u64>(),
        "replicas": replicas,
    })
}

pub fn own_volumes<'a>(
    view: &View<'a>,
    caller: &Caller,
) -> impl Iterator<Item = &'a record::Volume> {
    let account = caller.account;
    let live = |v: &&record::Volume| v.state != VolumeState::Deleted;
    view.state.volumes.values().filter(move |v| v.account == account).filter(live)
}

#[derive(Debug, Serialize)]
pub struct Volume {
    volume_id: String,
    account: String,
    state: &'static str,
    /// Why `state` is `error`.
    error: Option<String>,
    zone: Zone,
    volume_type: VolumeType,
    size_gib: u32,
    iops: u32,
    throughput_mib: u32,
    stripes: Stripes,
    created: String,
    tags: BTreeMap<String, String>,
    attachments: Vec<Attachment>,
    /// The latest.
    modification: Option<Modification>,
    epoch: u64,
    replicas: Vec<Replica>,
    in_sync: usize,
    wanted: usize,
    degraded: bool,
    /// Requests wait: the primary is away.
    impaired: bool,
    /// What is wrong with its replicas.
    faults: Vec<String>,
}

impl Volume {
    pub fn of(view: &View<'_>, volume: &record::Volume) -> Self {
        let health = Health::of(view, volume);
        let group = view.state.groups.get(&volume.group);
        let parameters = &volume.parameters;
        let live = |a: &&record::Attachment| a.state != AttachmentState::Detached;
        Self {
            volume_id: volume.volume.to_string(),
            account: volume.account.to_string(),
            state: volume.state.as_str(),
            error: volume.error.clone(),
            zone: volume.zone.clone(),
            volume_type: parameters.volume_type,
            size_gib: parameters.size.get(),
            iops: parameters.rate.iops.get(),
            throughput_mib: parameters.rate.throughput.get(),
            stripes: parameters.stripes,
            created: volume.created.to_string(),
            tags: volume.tags.clone(),
            attachments: view
                .state
                .attachments_of(volume.volume)
                .filter(live)
                .map(|a| Attachment::of(view, a))
                .collect(),
            modification: view.state.latest_modification(volume.volume).map(Modification::of),
            epoch: group.map_or(0, |g| g.config.epoch.get()),
            replicas: group.map_or_else(Vec::new, |g| replicas(view, g)),
            in_sync: health.as_ref().map_or(0, |h| h.in_sync),
            wanted: health.as_ref().map_or(0, |h| h.wanted),
            degraded: health.as_ref().is_some_and(|h| h.degraded),
            impaired: health.as_ref().is_some_and(|h| !h.primary_up),
            faults: health.map(|h| h.faults).unwrap_or_default(),
        }
    }
}

#[derive(Debug, Serialize)]
pub struct Replica {
    replica_id: String,
    server: String,
    drive: String,
    /// All that it is striped over, where it is, in the order of the stripes.
    drives: Vec<String>,
    zone: Option<Zone>,
    media: Option<Media>,
    /// What slows the drive down, where it only plays its media.
    emulation: Option<String>,
    role: &'static str,
    server_up: bool,
    /// Whether it is there, or why not.
    state: &'static str,
}

/// The configuration's members in their order, then replicas that hold space outside of it.
fn replicas(view: &View<'_>, group: &record::Group) -> Vec<Replica> {
    let replica = |id: ReplicaId, drive: DriveId, role| {
        let server = view.state.servers.get(&drive.server);
        let hardware = server.and_then(|s| s.drives.iter().find(|d| d.drive == drive.drive));
        Replica {
            replica_id: id.to_string(),
            zone: server.map(|s| s.zone.clone()),
            media: hardware.map(|d| d.media),
            emulation: hardware.and_then(|d| d.emulation.clone()),
            role,
            server_up: view.servers_up.contains(&drive.server),
            state: group.replicas.get(&id).map_or("missing", |placed| state(view, placed)),
            server: drive.server.to_string(),
            drive: drive.drive.to_string(),
            drives: match group.replicas.get(&id) {
                Some(placed) => placed.drives().map(|d| d.drive.to_string()).collect(),
                None => vec![drive.drive.to_string()],
            },
        }
    };
    let members = group.config.members.iter().map(|m| {
        let role = match m.role {
            Role::Primary => "primary",
            Role::Mirror => "mirror",
            Role::Learner { .. } => "learner",
        };
        replica(m.replica, DriveId { server: m.server.clone(), drive: m.drive.clone() }, role)
    });
    let outside = group.replicas.values().filter(|p| group.config.member(p.replica).is_none());
    members.chain(outside.map(|p| replica(p.replica, p.drive.clone(), "spare"))).collect()
}

fn state(view: &View<'_>, placed: &record::Placed) -> &'static str {
    match view.standing(placed) {
        Standing::Up if placed.created => "up",
        Standing::Up => "not-made",
        Standing::Down | Standing::Unknown => "server-down",
        Standing::Missing => "missing",
        Standing::DriveFailed => "drive-out-of-service",
    }
}

#[derive(Debug, Serialize)]
pub struct Modification {
    volume_id: String,
    number: u32,
    state: &'static str,
    step: String,
    progress_percent: u8,
    bytes_moved: u64,
    bytes_total: u64,
    started: String,
    ended: Option<String>,
    status_message: Option<String>,
    original: Parameters,
    target: Parameters,
}

impl Modification {
    pub fn of(modification: &record::Modification) -> Self {
        Self {
            volume_id: modification.volume.to_string(),
            number: modification.number,
            state: modification.state.as_str(),
            step: modification.step.clone(),
            progress_percent: modification.progress_percent,
            bytes_moved: modification.bytes_moved,
            bytes_total: modification.bytes_total,
            started: modification.started.to_string(),
            ended: modification.ended.map(|t| t.to_string()),
            status_message: modification.status_message.clone(),
            original: Parameters::of(&modification.original),
            target: Parameters::of(&modification.target),
        }
    }
}

#[derive(Debug, Serialize)]
struct Parameters {
    volume_type: VolumeType,
    size_gib: u32,
    iops: u32,
    throughput_mib: u32,
    zone: Zone,
    stripes: Stripes,
}

impl Parameters {
    fn of(parameters: &record::Parameters) -> Self {
        Self {
            volume_type: parameters.volume_type,
            size_gib: parameters.size.get(),
            iops: parameters.rate.iops.get(),
            throughput_mib: parameters.rate.throughput.get(),
            zone: parameters.zone.clone(),
            stripes: parameters.stripes,
        }
    }
}

#[derive(Debug, Serialize)]
pub struct Attachment {
    volume_id: String,
    instance_id: String,
    device: String,
    state: &'static str,
    attached: String,
    nbd_uris: Vec<String>,
    kernel_device: Option<String>,
    /// Why the kernel block device could not be made or grown; it is tried again.
    device_error: Option<String>,
}

impl Attachment {
    pub fn of(view: &View<'_>, attachment: &record::Attachment) -> Self {
        let instance = view.state.instances.get(&attachment.instance);
        let node = instance.and_then(|i| view.live.nodes.get(&i.node));
        Self {
            volume_id: attachment.volume.to_string(),
            instance_id: attachment.instance.to_string(),
            device: attachment.device.clone(),
            state: attachment.state.as_str(),
            attached: attachment.attached.to_string(),
            nbd_uris: attachment.nbd_uris.clone(),
            kernel_device: attachment.kernel_device.clone(),
            device_error: node.and_then(|n| n.device_failures.get(&attachment.volume)).cloned(),
        }
    }
}

#[derive(Debug, Serialize)]
pub struct Instance {
    instance_id: String,
    account: String,
    node: NodeId,
    zone: Zone,
    up: bool,
    registered: String,
    tags: BTreeMap<String, String>,
}

impl Instance {
    pub fn of(view: &View<'_>, instance: &record::Instance) -> Self {
        Self {
            instance_id: instance.instance.to_string(),
            account: instance.account.to_string(),
            node: instance.node.clone(),
            zone: instance.zone.clone(),
            up: view.nodes_up.contains(&instance.node),
            registered: instance.registered.to_string(),
            tags: instance.tags.clone(),
        }
    }
}

#[derive(Debug, Serialize)]
pub struct Node {
    node: NodeId,
    zone: Zone,
    up: bool,
    instance_ids: BTreeSet<InstanceId>,
}

/// Node managers by the instances they registered; the root account sees those of all accounts.
pub fn nodes(view: &View<'_>, caller: &Caller) -> Vec<Node> {
    let mut nodes: BTreeMap<NodeId, Node> = BTreeMap::new();
    let seen = view.state.instances.values();
    for instance in seen.filter(|i| caller.root || i.account == caller.account) {
        let node = nodes.entry(instance.node.clone()).or_insert_with(|| Node {
            node: instance.node.clone(),
            zone: instance.zone.clone(),
            up: view.nodes_up.contains(&instance.node),
            instance_ids: BTreeSet::new(),
        });
        node.instance_ids.insert(instance.instance);
    }
    nodes.into_values().collect()
}

#[derive(Debug, Serialize)]
pub struct Zones {
    region: String,
    zones: Vec<ZoneShown>,
}

#[derive(Debug, Serialize)]
struct ZoneShown {
    zone: Zone,
    zone_id: String,
}

pub fn zones(view: &View<'_>) -> Zones {
    let region = view.place.region.clone();
    let zones = view
        .place
        .zones
        .iter()
        .zip(1..)
        .map(|(zone, n)| ZoneShown { zone: zone.clone(), zone_id: format!("{region}-az{n}") })
        .collect();
    Zones { region, zones }
}

#[derive(Debug, Serialize)]
pub struct Account {
    account: String,
    name: String,
    root: bool,
    created: String,
    access_keys: Vec<String>,
}

/// Never shows a secret: that is shown once, when the key is made.
pub fn accounts(view: &View<'_>) -> Vec<Account> {
    let keys = |account| {
        let all = view.state.access_keys.values();
        all.filter(|k| k.account == account).map(|k| k.access_key.clone()).collect()
    };
    view.state
        .accounts
        .values()
        .map(|a| Account {
            account: a.account.to_string(),
            name: a.name.clone(),
            root: a.root,
            created: a.created.to_string(),
            access_keys: keys(a.account),
        })
        .collect()
}

/// Not `Debug`: it holds a secret.
#[derive(Serialize)]
pub struct NewAccount {
    account: String,
    name: String,
    access_key: String,
    secret_key: String,
}

pub fn new_account(account: &record::Account, key: &record::AccessKey) -> NewAccount {
    NewAccount {
        account: account.account.to_string(),
        name: account.name.clone(),
        access_key: key.access_key.clone(),
        secret_key: key.secret.clone(),
    }
}

#[derive(Debug, Serialize)]
pub struct CallerShown {
    account: String,
    access_key: String,
    root: bool,
    arn: String,
}

pub fn caller(caller: &Caller) -> CallerShown {
    CallerShown {
        account: caller.account.to_string(),
        access_key: caller.access_key.clone(),
        root: caller.root,
        arn: sts::arn(caller),
    }
}

#[derive(Debug, Serialize)]
pub struct HealthShown {
    status: &'static str,
    servers_up: usize,
    servers: usize,
    nodes_up: usize,
}

pub fn health(view: &View<'_>) -> HealthShown {
    HealthShown {
        status: "ok",
        servers_up: view.servers_up.len(),
        servers: view.state.servers.len(),
        nodes_up: view.nodes_up.len(),
    }
}
