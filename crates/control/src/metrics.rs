//! What Prometheus scrapes: the fleet and every volume in numbers, as text format 0.0.4.
//!
//! Decides: which metrics there are, and their names and labels.
//! Does not: ask who scrapes: the address that it is served on is not for customers, because
//! volumes of all accounts are named.
//! Invariants: every name and label value is one that the state knows, so the number of series is
//! bounded by drives, servers and [`VOLUMES_MAX`] volumes; what is not known has no sample, rather
//! than a zero.

use std::{collections::BTreeMap, fmt::Write};

use format::ctl::{DriveStatus, FillProgress};
use model::{
    id::DriveId,
    state::{ModificationState, VolumeState},
};

use crate::{
    api::View,
    fullness,
    health::Health,
    http::{HttpRequest, HttpResponse},
    ledger::{Account, Ledger},
};

/// Volumes with samples of their own, by the order of their ids.
const VOLUMES_MAX: usize = 10_000;

pub fn receive(view: &View<'_>, request: &HttpRequest) -> HttpResponse {
    let (status, body) = match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/metrics") => (200, exposition(view)),
        (_, "/metrics") => (405, "metrics are read with GET\n".to_owned()),
        _ => (404, "metrics are at /metrics\n".to_owned()),
    };
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    HttpResponse { status, content_type, headers: Vec::new(), body: body.into_bytes() }
}

fn exposition(view: &View<'_>) -> String {
    let mut text = Text::default();
    servers(view, &mut text);
    drives(view, &mut text);
    volumes(view, &mut text);
    totals(view, &mut text);
    text.0
}

#[derive(Debug, Default)]
struct Text(String);

#[derive(Debug, Clone, Copy)]
enum Kind {
    Gauge,
    Counter,
}

impl Text {
    fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
        };
        writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}").expect(TAKES);
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        self.0.push_str(name);
        for (at, (label, value)) in labels.iter().enumerate() {
            self.0.push(if at == 0 { '{' } else { ',' });
            write!(self.0, "{label}=\"").expect(TAKES);
            for c in value.chars() {
                match c {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    c => self.0.push(c),
                }
            }
            self.0.push('"');
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        writeln!(self.0, " {value}").expect(TAKES);
    }

    /// One number without labels.
    fn single(&mut self, name: &str, help: &str, value: usize) {
        self.family(name, Kind::Gauge, help);
        self.sample(name, &[], count(value));
    }
}

const TAKES: &str = "a string takes what is written to it";

fn count(n: usize) -> u64 {
    u64::try_from(n).expect("counts fit 64 bits")
}

fn servers(view: &View<'_>, text: &mut Text) {
    let name = "pliant_server_up";
    text.family(name, Kind::Gauge, "1 while the server is connected to the manager.");
    for server in view.state.servers.values() {
        let up = view.servers_up.contains(&server.server);
        let labels = [("server", server.server.as_str()), ("zone", server.zone.as_str())];
        text.sample(name, &labels, u64::from(up));
    }
}

/// A metric of each drive: name, kind, help, and where its value is.
type OfDrive<T> = (&'static str, Kind, &'static str, fn(&T) -> Option<u64>);

const PROMISES: [OfDrive<Account>; 4] = [
    ("pliant_drive_capacity_bytes", Kind::Gauge, "What the drive may promise to volumes.", |a| {
        Some(a.offered.bytes)
    }),
    ("pliant_drive_committed_bytes", Kind::Gauge, "What it has promised to volumes.", |a| {
        Some(a.promised.bytes)
    }),
    ("pliant_drive_capacity_iops", Kind::Gauge, "Operations per second it may promise.", |a| {
        Some(a.offered.iops)
    }),
    ("pliant_drive_committed_iops", Kind::Gauge, "Operations per second promised.", |a| {
        Some(a.promised.iops)
    }),
];

const REPORTED: [OfDrive<DriveStatus>; 10] = [
    ("pliant_drive_size_bytes", Kind::Gauge, "What the drive's slots hold.", |s| {
        Some(fullness::total(&s.usage))
    }),
    ("pliant_drive_used_bytes", Kind::Gauge, "In slots that are in use.", |s| {
        Some(fullness::used(&s.usage))
    }),
    ("pliant_drive_waiting_changes", Kind::Gauge, "Changes that wait for a free slot.", |s| {
        Some(s.usage.waiting_for_space)
    }),
    ("pliant_drive_journal_size_bytes", Kind::Gauge, "Size of the journal.", |s| {
        Some(s.usage.journal_bytes)
    }),
    ("pliant_drive_journal_used_bytes", Kind::Gauge, "Of the journal, not yet applied.", |s| {
        Some(s.usage.journal_bytes_used)
    }),
    ("pliant_drive_memory_used_bytes", Kind::Gauge, "Memory of the drive's tables.", |s| {
        Some(s.usage.memory_used)
    }),
    ("pliant_drive_memory_max_bytes", Kind::Gauge, "The bound of that memory.", |s| {
        (s.usage.memory_max > 0).then_some(s.usage.memory_max)
    }),
    (
        "pliant_drive_scrubbed_bytes_total",
        Kind::Counter,
        "Read and verified by scrub since the server started.",
        |s| Some(s.scrub.scrubbed_bytes),
    ),
    (
        "pliant_drive_scrub_passes_total",
        Kind::Counter,
        "Scrub passes that came to their end since the server started.",
        |s| Some(s.scrub.passes_finished),
    ),
    ("pliant_drive_scrub_percent", Kind::Gauge, "Of the scrub pass under way.", |s| {
        Some(s.scrub.percent.into())
    }),
];

fn drives(view: &View<'_>, text: &mut Text) {
    let ledger = Ledger::of(view.state);
    for (name, kind, help, value) in PROMISES {
        text.family(name, kind, help);
        for (id, account) in &ledger.drives {
            of_drive(text, name, id, account, &[], value(account));
        }
    }
    let reported = |id: &DriveId| view.live.servers.get(&id.server)?.drives.get(&id.drive);
    let known: Vec<_> =
        ledger.drives.iter().filter_map(|(id, a)| Some((id, a, reported(id)?))).collect();
    for (name, kind, help, value) in REPORTED {
        text.family(name, kind, help);
        for (id, account, status) in &known {
            of_drive(text, name, id, account, &[], value(status));
        }
    }
    let name = "pliant_drive_bad_blocks_total";
    let help = "Blocks that did not match their checksums or could not be read: found, of these \
                repaired, and lost on all replicas, since the server started.";
    text.family(name, Kind::Counter, help);
    for (id, account, status) in &known {
        let damage = &status.damage;
        for (kind, value) in [
            ("found", damage.bad_found),
            ("repaired", damage.bad_repaired),
            ("lost", damage.bad_lost),
        ] {
            of_drive(text, name, id, account, &[("kind", kind)], Some(value));
        }
    }
    in_service(view, &ledger, text);
}

fn in_service(view: &View<'_>, ledger: &Ledger, text: &mut Text) {
    let name = "pliant_drive_in_service";
    text.family(name, Kind::Gauge, "0 when its server reports the drive out of service.");
    for (id, account) in &ledger.drives {
        let server = view.live.servers.get(&id.server);
        let up = server.filter(|_| view.servers_up.contains(&id.server));
        let value = up.map(|s| u64::from(!s.failed_drives.contains_key(&id.drive)));
        of_drive(text, name, id, account, &[], value);
    }
}

fn of_drive(
    text: &mut Text,
    name: &str,
    id: &DriveId,
    account: &Account,
    more: &[(&str, &str)],
    value: Option<u64>,
) {
    let Some(value) = value else { return };
    let media = account.media.to_string();
    let mut labels = vec![
        ("server", id.server.as_str()),
        ("drive", id.drive.as_str()),
        ("zone", account.zone.as_str()),
        ("media", media.as_str()),
    ];
    labels.extend(more);
    text.sample(name, &labels, value);
}

struct OfVolume {
    id: String,
    zone: String,
    health: Health,
    fill: Option<FillProgress>,
}

/// A metric of each volume: name, help, and where its value is.
type VolumeMetric = (&'static str, &'static str, fn(&OfVolume) -> Option<u64>);

const OF_VOLUMES: [VolumeMetric; 6] = [
    ("pliant_volume_replicas_in_sync", "Replicas that hold every acknowledged write.", |v| {
        Some(count(v.health.in_sync))
    }),
    ("pliant_volume_replicas_wanted", "Replicas that should.", |v| Some(count(v.health.wanted))),
    ("pliant_volume_serving", "1 while the volume's primary is there.", |v| {
        Some(v.health.primary_up.into())
    }),
    ("pliant_volume_degraded", "1 while fewer than wanted are in sync and up.", |v| {
        Some(v.health.degraded.into())
    }),
    ("pliant_volume_resync_done_bytes", "Of the volume, equal on the replica being filled.", |v| {
        Some(v.fill?.bytes_done)
    }),
    ("pliant_volume_resync_total_bytes", "The volume's size, while a replica is filled.", |v| {
        Some(v.fill?.bytes_total)
    }),
];

fn volumes(view: &View<'_>, text: &mut Text) {
    let state = view.state;
    let known: Vec<OfVolume> = state
        .volumes
        .values()
        .filter(|v| matches!(v.state, VolumeState::Available | VolumeState::InUse))
        .take(VOLUMES_MAX)
        .filter_map(|volume| {
            let learning = state.groups.get(&volume.group)?.config.learners().next();
            let fill = view.live.groups.get(&volume.group).and_then(|g| g.fill);
            let fill =
                fill.filter(|f| learning.is_some_and(|l| l.replica.raw() == f.learner_replica));
            let health = Health::of(view, volume)?;
            let (id, zone) = (volume.volume.to_string(), volume.zone.to_string());
            Some(OfVolume { id, zone, health, fill })
        })
        .collect();
    for (name, help, value) in OF_VOLUMES {
        text.family(name, Kind::Gauge, help);
        for volume in &known {
            if let Some(value) = value(volume) {
                let labels = [("volume", volume.id.as_str()), ("zone", volume.zone.as_str())];
                text.sample(name, &labels, value);
            }
        }
    }
}

fn totals(view: &View<'_>, text: &mut Text) {
    let state = view.state;
    let mut volumes: BTreeMap<&str, u64> =
        ["creating", "available", "in-use", "deleting", "error"].map(|s| (s, 0)).into();
    for volume in state.volumes.values() {
        if let Some(n) = volumes.get_mut(volume.state.as_str()) {
            *n += 1;
        }
    }
    by_state(text, "pliant_volumes", "Volumes, by state.", &volumes);
    use ModificationState::{Completed, Failed, Modifying, Optimizing};
    let mut modifications: BTreeMap<&str, u64> =
        [Modifying, Optimizing, Completed, Failed].map(|s| (s.as_str(), 0)).into();
    for modification in state.modifications.values() {
        *modifications.entry(modification.state.as_str()).or_default() += 1;
    }
    let help = "Modifications of volumes that exist, by state.";
    by_state(text, "pliant_modifications", help, &modifications);
    text.single("pliant_groups", "Groups of replicas.", state.groups.len());
    text.single("pliant_nodes_up", "Node managers that are connected.", view.nodes_up.len());
    let served = volumes["available"] + volumes["in-use"];
    let name = "pliant_volumes_without_samples";
    text.family(name, Kind::Gauge, "Volumes beyond those that have samples of their own.");
    text.sample(name, &[], served.saturating_sub(count(VOLUMES_MAX)));
}

fn by_state(text: &mut Text, name: &str, help: &str, counts: &BTreeMap<&str, u64>) {
    text.family(name, Kind::Gauge, help);
    for (state, n) in counts {
        text.sample(name, &[("state", state)], *n);
    }
}

#[cfg(test)]
mod tests;
