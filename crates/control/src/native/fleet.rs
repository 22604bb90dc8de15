//! Servers and their drives, as the root account is shown them.

use format::{
    ctl::{DriveState, DriveStatus},
    record,
};
use model::{
    id::{DriveId, ServerId, Zone},
    state::Duty,
    volume::Media,
};
use serde::Serialize;

use crate::{
    api::View,
    duty::{self, Left},
    fullness::{self, Fullness},
    ledger::{Account, Ledger},
};

#[derive(Debug, Serialize)]
pub struct Server {
    server: String,
    zone: Zone,
    address: String,
    up: bool,
    /// What operators want of it: `serving`, `cordoned` or `draining`.
    duty: Duty,
    /// On any of its drives, those that are leaving too.
    replicas: usize,
    /// `null` unless it is drained.
    drain: Option<Drain>,
    drives: Vec<Drive>,
}

/// How far a drain is.
#[derive(Debug, Serialize)]
struct Drain {
    replicas_leaving: usize,
    bytes_left: u64,
    /// Since the drain began, or the manager started.
    bytes_moved: u64,
    bytes_per_sec: u64,
    /// At that rate; `null` while it is not known.
    eta_seconds: Option<u64>,
    /// Why nothing more can be moved away.
    stuck: Option<String>,
}

#[derive(Debug, Serialize)]
struct Drive {
    drive: String,
    media: Media,
    emulation: Option<String>,
    state: &'static str,
    /// Why it is out of service.
    reason: Option<String>,
    capacity_bytes: u64,
    iops: u32,
    throughput_mib: u32,
    promised_bytes: u64,
    promised_iops: u64,
    promised_throughput_mib: u64,
    /// What the server last reported; `null` before it has.
    usage: Option<Usage>,
}

#[derive(Debug, Serialize)]
struct Usage {
    total_bytes: u64,
    used_bytes: u64,
    fullness: &'static str,
    /// Why nothing can be moved away, where something should be.
    stuck: Option<String>,
    journal_bytes: u64,
    journal_used_bytes: u64,
    journal_apart: bool,
    memory_used_bytes: u64,
    /// `null`: no bound.
    memory_max_bytes: Option<u64>,
    waiting_for_space: u64,
    bad_blocks_found: u64,
    bad_blocks_repaired: u64,
    bad_blocks_lost: u64,
    scrubbed_bytes: u64,
    scrub_passes: u64,
    scrub_percent: u8,
}

pub fn servers(view: &View<'_>) -> Vec<Server> {
    let ledger = Ledger::of(view.state);
    view.state.servers.values().map(|server| Server::of(view, &ledger, server)).collect()
}

/// One that is recorded.
pub fn server(view: &View<'_>, server: &ServerId) -> Server {
    Server::of(view, &Ledger::of(view.state), &view.state.servers[server])
}

impl Server {
    fn of(view: &View<'_>, ledger: &Ledger, server: &record::Server) -> Self {
        let drive = |d: &record::ServerDrive| {
            let id = DriveId { server: server.server.clone(), drive: d.drive.clone() };
            let account = ledger.drives.get(&id).expect("the ledger lists every recorded drive");
            Drive::of(view, &id, d, account)
        };
        let left = duty::left(view.state, view.live, &server.server);
        Self {
            server: server.server.to_string(),
            zone: server.zone.clone(),
            address: server.address.to_string(),
            up: view.servers_up.contains(&server.server),
            duty: server.duty,
            replicas: left.staying + left.leaving,
            drain: (server.duty == Duty::Draining).then(|| Drain::of(view, &server.server, left)),
            drives: server.drives.iter().map(drive).collect(),
        }
    }
}

impl Drain {
    fn of(view: &View<'_>, server: &ServerId, left: Left) -> Self {
        let known = view.live.drains.of(server);
        let moved = known.map_or(0, |d| d.bytes_at_first.saturating_sub(left.bytes));
        let since = known.map_or(view.wall, |d| d.since);
        let millis = view.wall.as_millis().saturating_sub(since.as_millis());
        let rate = moved.checked_div(millis / 1000).unwrap_or(0);
        Self {
            replicas_leaving: left.leaving,
            bytes_left: left.bytes,
            bytes_moved: moved,
            bytes_per_sec: rate,
            eta_seconds: left.bytes.checked_div(rate),
            stuck: known.and_then(|d| d.stuck.clone()),
        }
    }
}

impl Drive {
    fn of(view: &View<'_>, id: &DriveId, drive: &record::ServerDrive, account: &Account) -> Self {
        let server = view.live.servers.get(&id.server);
        let status = server.and_then(|s| s.drives.get(&id.drive));
        let failed = server.and_then(|s| s.failed_drives.get(&id.drive));
        let state = match status.map(|s| s.state) {
            _ if !view.servers_up.contains(&id.server) => "unknown",
            _ if failed.is_some() => "out-of-service",
            Some(DriveState::Opening) => "opening",
            // It registered, and the status is on its way.
            Some(DriveState::Serving) | None => "serving",
            Some(DriveState::OutOfService) => "out-of-service",
        };
        Self {
            drive: drive.drive.to_string(),
            media: drive.media,
            emulation: drive.emulation.clone(),
            state,
            reason: failed.cloned(),
            capacity_bytes: drive.capacity.get(),
            iops: drive.rate.iops.get(),
            throughput_mib: drive.rate.throughput.get(),
            promised_bytes: account.promised.bytes,
            promised_iops: account.promised.iops,
            promised_throughput_mib: account.promised.mib_per_sec,
            usage: status.map(|status| Usage::of(view, id, status)),
        }
    }
}

impl Usage {
    fn of(view: &View<'_>, id: &DriveId, status: &DriveStatus) -> Self {
        let DriveStatus { usage, damage, scrub, .. } = status;
        Self {
            total_bytes: fullness::total(usage),
            used_bytes: fullness::used(usage),
            fullness: match fullness::of(usage) {
                Fullness::Room => "room",
                Fullness::NearlyFull => "nearly-full",
                Fullness::Full => "full",
            },
            stuck: view.live.relief.stuck(id).map(str::to_owned),
            journal_bytes: usage.journal_bytes,
            journal_used_bytes: usage.journal_bytes_used,
            journal_apart: usage.journal_apart,
            memory_used_bytes: usage.memory_used,
            memory_max_bytes: (usage.memory_max > 0).then_some(usage.memory_max),
            waiting_for_space: usage.waiting_for_space,
            bad_blocks_found: damage.bad_found,
            bad_blocks_repaired: damage.bad_repaired,
            bad_blocks_lost: damage.bad_lost,
            scrubbed_bytes: scrub.scrubbed_bytes,
            scrub_passes: scrub.passes_finished,
            scrub_percent: scrub.percent,
        }
    }
}
