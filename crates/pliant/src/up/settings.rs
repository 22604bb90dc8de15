//! What a service is made of, as chosen at its first start and kept in `DIR/up.toml`.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::Path,
};

use anyhow::{Context, bail, ensure};
use model::id::{AccountId, InstanceId};
use serde::{Deserialize, Serialize};

use super::{Args, files, ports::Ports};
use crate::clock::random;

const ZONES_MAX: usize = 26;
const SERVERS_PER_ZONE_MAX: u32 = 32;
const DRIVE_GIB_MAX: u32 = 64 << 10;
const REMIRROR_DELAY_SECS_MAX: f64 = 86_400.0;

/// Sizes and rates of the drives of each server.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct DriveArgs {
    /// Capacity of each server's SSD drive [default: 100]
    #[arg(long, value_name = "GIB")]
    ssd_gib: Option<u32>,
    /// IOPS that each SSD drive may promise [default: 20000]
    #[arg(long, value_name = "IOPS")]
    ssd_iops: Option<u32>,
    /// MiB/s that each SSD drive may promise [default: 1000]
    #[arg(long, value_name = "MIB")]
    ssd_throughput: Option<u32>,
    /// Capacity of each server's HDD drive [default: 300]
    #[arg(long, value_name = "GIB")]
    hdd_gib: Option<u32>,
    /// IOPS that each HDD drive may promise [default: 1000]
    #[arg(long, value_name = "IOPS")]
    hdd_iops: Option<u32>,
    /// MiB/s that each HDD drive may promise [default: 160]
    #[arg(long, value_name = "MIB")]
    hdd_throughput: Option<u32>,
    /// Seek time that HDD drives emulate, in milliseconds [default: 4]
    #[arg(long, value_name = "MS")]
    hdd_seek_ms: Option<f64>,
    /// Operations per second that HDD drives emulate [default: 200]
    #[arg(long, value_name = "OPS")]
    hdd_ops_per_sec: Option<u32>,
    /// Transfer rate that HDD drives emulate [default: 160]
    #[arg(long, value_name = "MIB")]
    hdd_mib_per_sec: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub cluster: String,
    pub region: String,
    /// Letters.
    pub zones: Vec<String>,
    pub servers_per_zone: u32,
    pub account: AccountId,
    pub access_key: String,
    pub secret_key: String,
    pub remirror_delay_ms: u64,
    pub api_port: u16,
    pub control_port: u16,
    /// 0 in what an older version stored.
    #[serde(default)]
    pub metrics_port: u16,
    pub ssd: Drive,
    pub hdd: Drive,
    pub hdd_emulation: Emulation,
    /// By name. Those of zones that are not wanted any more are kept, with their drives.
    pub servers: BTreeMap<String, Server>,
    pub nodes: BTreeMap<String, Node>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    pub gib: u32,
    pub iops: u32,
    pub throughput_mib: u32,
    pub journal_mib: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Emulation {
    pub seek_ms: f64,
    pub ops_per_sec: u32,
    pub mib_per_sec: u32,
}

impl Emulation {
    /// What a drive is that nobody asked to be another.
    pub const LOCAL: Self = Self { seek_ms: 4.0, ops_per_sec: 200, mib_per_sec: 160 };
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Letter.
    pub zone: String,
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Letter.
    pub zone: String,
    pub nbd_port: u16,
    pub instance: InstanceId,
}

impl Settings {
    /// Those of an earlier start, or new ones, with what the arguments say; stored.
    pub fn prepare(dir: &Path, args: &Args) -> anyhow::Result<Self> {
        let path = dir.join("up.toml");
        let mut settings = match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).with_context(|| format!("{}", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self::new()?,
            Err(error) => return Err(error).with_context(|| format!("{}", path.display())),
        };
        let first_start = settings.servers.is_empty();
        settings
            .take(args, first_start)
            .with_context(|| format!("these arguments do not fit {}", dir.display()))?;
        settings.people(&mut Ports::new()?, args, first_start)?;
        let text = toml::to_string(&settings).context("settings serialize")?;
        files::write_private(&path, text.as_bytes())?;
        Ok(settings)
    }

    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            cluster: format!("local-{:08x}", random()? & 0xffff_ffff),
            region: "local-1".to_owned(),
            zones: ["a", "b", "c"].map(str::to_owned).to_vec(),
            servers_per_zone: 2,
            account: AccountId::from_random(random()?),
            access_key: format!("AKIA{}", letters(16, b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")?),
            secret_key: letters(40, b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz012345")?,
            remirror_delay_ms: 10_000,
            api_port: 7480,
            control_port: 0,
            metrics_port: 0,
            ssd: Drive { gib: 100, iops: 20_000, throughput_mib: 1_000, journal_mib: 64 },
            hdd: Drive { gib: 300, iops: 1_000, throughput_mib: 160, journal_mib: 32 },
            hdd_emulation: Emulation::LOCAL,
            servers: BTreeMap::new(),
            nodes: BTreeMap::new(),
        })
    }

    /// Arguments win over what is stored, except where stored data depends on it.
    fn take(&mut self, args: &Args, first_start: bool) -> anyhow::Result<()> {
        keep(&mut self.region, &args.region, "--region", first_start)?;
        keep(&mut self.account, &args.account, "--account", first_start)?;
        keep(&mut self.access_key, &args.access_key, "--access-key", first_start)?;
        let secret_matches = args.secret_key.as_ref().is_none_or(|s| *s == self.secret_key);
        ensure!(
            first_start || secret_matches,
            "--secret-key is not the one this service was started with"
        );
        set(&mut self.secret_key, args.secret_key.clone());
        set(&mut self.zones, args.zones.clone());
        set(&mut self.servers_per_zone, args.servers_per_zone);
        if let Some(secs) = args.remirror_delay {
            let legal = (0.0..=REMIRROR_DELAY_SECS_MAX).contains(&secs);
            ensure!(legal, "--remirror-delay {secs}: give 0 to {REMIRROR_DELAY_SECS_MAX} seconds");
            let delay = std::time::Duration::from_secs_f64(secs);
            self.remirror_delay_ms = u64::try_from(delay.as_millis()).expect("at most a day");
        }
        self.take_drives(&args.drives)?;
        self.check()
    }

    fn take_drives(&mut self, args: &DriveArgs) -> anyhow::Result<()> {
        set(&mut self.ssd.gib, args.ssd_gib);
        set(&mut self.ssd.iops, args.ssd_iops);
        set(&mut self.ssd.throughput_mib, args.ssd_throughput);
        set(&mut self.hdd.gib, args.hdd_gib);
        set(&mut self.hdd.iops, args.hdd_iops);
        set(&mut self.hdd.throughput_mib, args.hdd_throughput);
        set(&mut self.hdd_emulation.seek_ms, args.hdd_seek_ms);
        set(&mut self.hdd_emulation.ops_per_sec, args.hdd_ops_per_sec);
        set(&mut self.hdd_emulation.mib_per_sec, args.hdd_mib_per_sec);
        for drive in [self.ssd, self.hdd] {
            let legal = (1..=DRIVE_GIB_MAX).contains(&drive.gib);
            ensure!(legal, "a drive of {} GiB: give 1 to {DRIVE_GIB_MAX}", drive.gib);
        }
        let emulated = self.hdd_emulation;
        ensure!(emulated.seek_ms >= 0.0, "--hdd-seek-ms {}: give 0 or more", emulated.seek_ms);
        ensure!(
            emulated.ops_per_sec > 0 && emulated.mib_per_sec > 0,
            "an emulated drive needs at least 1 operation and 1 MiB per second"
        );
        Ok(())
    }

    fn check(&self) -> anyhow::Result<()> {
        let zones = &self.zones;
        ensure!(
            !zones.is_empty() && zones.len() <= ZONES_MAX,
            "--zones: give 1 to {ZONES_MAX} letters, such as a,b,c"
        );
        for (i, zone) in zones.iter().enumerate() {
            let legal = zone.len() == 1 && zone.bytes().all(|b| b.is_ascii_lowercase());
            ensure!(legal, "--zones: '{zone}' is not a lower-case letter");
            ensure!(!zones[..i].contains(zone), "--zones: '{zone}' is given twice");
            self.zone_name(zone).parse::<model::id::Zone>().context("--region")?;
        }
        let servers = self.servers_per_zone;
        ensure!(
            (1..=SERVERS_PER_ZONE_MAX).contains(&servers),
            "--servers-per-zone {servers}: give 1 to {SERVERS_PER_ZONE_MAX}"
        );
        Ok(())
    }

    /// Makes the servers and node managers that are wanted and not there yet, with their ports.
    fn people(&mut self, ports: &mut Ports, args: &Args, first_start: bool) -> anyhow::Result<()> {
        let taken = self.servers.values().map(|s| s.port);
        ports.avoid(taken.chain(self.nodes.values().map(|n| n.nbd_port)));
        if first_start {
            self.control_port = ports.free()?;
        }
        ports.avoid([self.control_port, self.api_port]);
        if self.metrics_port == 0 {
            self.metrics_port = ports.free()?;
        }
        match args.port {
            Some(0) if first_start => self.api_port = ports.free()?,
            // Any port will do, so the kept one does.
            Some(0) | None => {}
            Some(port) => self.api_port = port,
        }
        ports.check("the API (--port)", self.api_port)?;
        ports.check("control links", self.control_port)?;
        ports.check("metrics", self.metrics_port)?;
        for zone in &self.zones {
            for number in 1..=self.servers_per_zone {
                let name = format!("server-{zone}-{number}");
                if let Entry::Vacant(vacant) = self.servers.entry(name) {
                    vacant.insert(Server { zone: zone.clone(), port: ports.free()? });
                }
            }
            let name = format!("node-{zone}");
            if let Entry::Vacant(vacant) = self.nodes.entry(name) {
                vacant.insert(Node {
                    zone: zone.clone(),
                    nbd_port: ports.free()?,
                    instance: InstanceId::from_random(random()?),
                });
            }
        }
        for (name, server) in &self.servers {
            ports.check(name, server.port)?;
        }
        for (name, node) in &self.nodes {
            ports.check(name, node.nbd_port)?;
        }
        self.keep_zones()
    }

    /// A zone that holds servers cannot be left out: they may hold volumes.
    fn keep_zones(&self) -> anyhow::Result<()> {
        for (name, server) in &self.servers {
            if !self.zones.contains(&server.zone) {
                bail!("{name} may hold volumes; --zones must go on naming zone '{}'", server.zone);
            }
        }
        Ok(())
    }

    pub fn zone_name(&self, letter: &str) -> String {
        format!("{}{letter}", self.region)
    }

    pub fn metrics_url(&self) -> String {
        format!("http://127.0.0.1:{}/metrics", self.metrics_port)
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.api_port)
    }
}

fn set<T>(stored: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *stored = given;
    }
}

/// Takes what is given at the first start; later, it must be the same.
fn keep<T: Clone + PartialEq + std::fmt::Display>(
    stored: &mut T,
    given: &Option<T>,
    argument: &str,
    first_start: bool,
) -> anyhow::Result<()> {
    match given {
        Some(given) if !first_start && given != stored => {
            bail!("{argument} {given}: this service was started with {stored}")
        }
        Some(given) => *stored = given.clone(),
        None => {}
    }
    Ok(())
}

/// Random characters of an alphabet. A byte beyond its last multiple is drawn again, so that
/// every character is equally likely.
fn letters(count: usize, alphabet: &[u8]) -> anyhow::Result<String> {
    let fair = 256 / alphabet.len() * alphabet.len();
    let mut text = String::with_capacity(count);
    while text.len() < count {
        let bytes = random().context("cannot read random bits")?.to_le_bytes();
        let drawn = bytes.into_iter().map(usize::from).filter(|byte| *byte < fair);
        let missing = count - text.len();
        text.extend(drawn.take(missing).map(|byte| char::from(alphabet[byte % alphabet.len()])));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
