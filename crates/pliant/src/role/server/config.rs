//! A server's configuration file: read, checked once, turned into what machine and drives need.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use bds::api::{DriveParams, ServerParams, Timing};
use engine::api::Geometry;
use format::disk::{JOURNAL_BYTES_MIN, JournalPlace};
use model::{
    id::{BootId, DriveName, ServerId, Zone},
    units::{ByteCount, Gib, Iops, MibPerSec, Rate},
    volume::Media,
};
use serde::Deserialize;

use crate::drive::{
    self, DriveOptions, Driver, DriverKind, Emulated, Flush, LOCK_WAIT, Profile, Sink,
};

const THREADS_DEFAULT: usize = 4;
const THREADS_MAX: usize = 64;
const SCRUB_DAYS_DEFAULT: u32 = 14;
const SCRUB_DAYS_MAX: u32 = 366;
const SCRUB_MIB_DEFAULT: u32 = 8;
const REPLICAS_MAX_DEFAULT: u32 = 256;
/// Memory for a drive's metadata when the file does not say: its maps cost about 70 MiB for each
/// TiB of an SSD, if all of it is used; the rest is a cache.
const MEMORY_MIB_DEFAULT: u64 = 64;
const MEMORY_MIB_PER_TIB: u64 = 96;
/// Of a drive without its journal, what may be promised when the file does not say: the rest is
/// for the engine's tables.
const CAPACITY_PERCENT_DEFAULT: u64 = 95;

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// Peers of another cluster are refused.
    pub(super) cluster: String,
    pub(super) id: ServerId,
    pub(super) zone: Zone,
    /// Where data connections are accepted. Port 0 lets the kernel choose; others are told.
    pub(super) listen: SocketAddr,
    pub(super) manager: SocketAddr,
    /// Everything is read and verified once in so many days; 0: only when it is asked for.
    #[serde(default = "scrub_days_default")]
    scrub_days: u32,
    /// The scrub reads no faster, in MiB/s, on all drives together.
    #[serde(default = "scrub_mib_default")]
    scrub_mib: u32,
    #[serde(rename = "drive")]
    pub(super) drives: Vec<DriveConfig>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DriveConfig {
    pub(super) name: DriveName,
    pub(super) media: Media,
    /// A file (made when missing) or a block device. Relative to the configuration file.
    pub(super) path: PathBuf,
    size_gib: u32,
    journal_mib: u32,
    /// Where its journal lies, if not on the drive itself: a file (made with the drive) or block
    /// device of an SSD. Chosen when the drive is formatted. Relative to the configuration file.
    pub(super) journal_path: Option<PathBuf>,
    #[serde(default = "replicas_max_default")]
    replicas_max: u32,
    /// What the drive may promise to volumes.
    iops: u32,
    throughput_mib: u32,
    capacity_gib: Option<u32>,
    /// Most memory that its metadata may take. With less, random reads of large drives are slower,
    /// and replicas beyond what it can describe are refused.
    memory_mib: Option<u32>,
    /// Threads that carry out its I/O, where the portable driver does.
    #[serde(default = "threads_default")]
    threads: usize,
    /// `auto`: io_uring, and where the system refuses it, the portable one.
    #[serde(default)]
    driver: DriverKind,
    /// `auto`: only where the device below needs it to make a write durable.
    #[serde(default)]
    flush: Flush,
    emulation: Option<EmulationConfig>,
}

/// Makes another drive as slow as a hard disk: see [`Emulated`].
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct EmulationConfig {
    seek_ms: f64,
    ops_per_sec: u32,
    mib_per_sec: u32,
}

fn scrub_days_default() -> u32 {
    SCRUB_DAYS_DEFAULT
}

fn scrub_mib_default() -> u32 {
    SCRUB_MIB_DEFAULT
}

fn replicas_max_default() -> u32 {
    REPLICAS_MAX_DEFAULT
}

fn threads_default() -> usize {
    THREADS_DEFAULT
}

impl Config {
    pub(super) fn load(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read configuration {}", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::parse(&text, folder).with_context(|| format!("configuration {}", path.display()))
    }

    pub(super) fn parse(text: &str, folder: &Path) -> anyhow::Result<Self> {
        let mut config: Self = toml::from_str(text)?;
        ensure!(!config.cluster.is_empty(), "'cluster' is empty");
        ensure!(!config.drives.is_empty(), "no [[drive]] is given");
        let days = config.scrub_days;
        ensure!(days <= SCRUB_DAYS_MAX, "'scrub_days' exceeds {SCRUB_DAYS_MAX}");
        ensure!(config.scrub_mib > 0, "'scrub_mib' is 0; 'scrub_days = 0' turns the scrub off");
        for (number, drive) in config.drives.iter().enumerate() {
            let twice = config.drives[..number].iter().any(|other| other.name == drive.name);
            ensure!(!twice, "two drives are called '{}'", drive.name);
            drive.check().with_context(|| format!("drive '{}'", drive.name))?;
        }
        for drive in &mut config.drives {
            drive.path = folder.join(&drive.path);
            drive.journal_path = drive.journal_path.as_ref().map(|path| folder.join(path));
        }
        let paths = |drive: &DriveConfig| [Some(drive.path.clone()), drive.journal_path.clone()];
        let mut taken = BTreeSet::new();
        for path in config.drives.iter().flat_map(paths).flatten() {
            let twice = !taken.insert(path.clone());
            ensure!(
                !twice,
                "{} is given twice: each drive and each journal apart has its own file \
                             or device",
                path.display()
            );
        }
        Ok(config)
    }

    pub(super) fn params(&self, boot: BootId, address: SocketAddr) -> ServerParams {
        ServerParams {
            cluster: self.cluster.clone(),
            server: self.id.clone(),
            boot,
            zone: self.zone.clone(),
            address,
            drives: self.drives.iter().map(DriveConfig::params).collect(),
            timing: Timing {
                scrub_period: Duration::from_secs(u64::from(self.scrub_days) * 24 * 3600),
                scrub_bytes_per_sec: u64::from(self.scrub_mib) << 20,
                ..Timing::default()
            },
        }
    }
}

impl DriveConfig {
    fn check(&self) -> anyhow::Result<()> {
        ensure!(self.size_gib > 0, "'size_gib' is 0");
        let least = JOURNAL_BYTES_MIN >> 20;
        ensure!(u64::from(self.journal_mib) >= least, "'journal_mib' must be {least} or more");
        ensure!(self.journal_bytes_inside() < self.bytes(), "'journal_mib' exceeds the drive");
        ensure!(self.replicas_max > 0, "'replicas_max' is 0");
        ensure!(self.memory_mib != Some(0), "'memory_mib' is 0");
        ensure!(self.iops > 0, "'iops' is 0");
        ensure!(self.throughput_mib > 0, "'throughput_mib' is 0");
        let threads = 1..=THREADS_MAX;
        ensure!(threads.contains(&self.threads), "'threads' must be 1 to {THREADS_MAX}");
        if self.capacity() > ByteCount::new(self.bytes()) {
            bail!("'capacity_gib' exceeds 'size_gib'");
        }
        if self.emulation.is_some() && self.driver == DriverKind::IoUring {
            bail!("'driver' is \"io_uring\", but an emulated drive stands on the portable one");
        }
        self.emulation.as_ref().map_or(Ok(()), EmulationConfig::check)
    }

    fn bytes(&self) -> u64 {
        Gib::new(self.size_gib).to_bytes().get()
    }

    fn memory_bytes(&self) -> u64 {
        let default = MEMORY_MIB_DEFAULT + u64::from(self.size_gib) * MEMORY_MIB_PER_TIB / 1024;
        self.memory_mib.map_or(default, u64::from) << 20
    }

    fn journal_bytes(&self) -> u64 {
        u64::from(self.journal_mib) << 20
    }

    fn journal_place(&self) -> JournalPlace {
        match self.journal_path {
            None => JournalPlace::Inside,
            Some(_) => JournalPlace::Apart,
        }
    }

    fn journal_bytes_inside(&self) -> u64 {
        match self.journal_place() {
            JournalPlace::Inside => self.journal_bytes(),
            JournalPlace::Apart => 0,
        }
    }

    fn capacity(&self) -> ByteCount {
        match self.capacity_gib {
            Some(gib) => Gib::new(gib).to_bytes(),
            None => {
                let free = self.bytes() - self.journal_bytes_inside();
                ByteCount::new(free / 100 * CAPACITY_PERCENT_DEFAULT)
            }
        }
    }

    fn place(&self) -> String {
        let path = self.path.display();
        match &self.journal_path {
            None => path.to_string(),
            Some(journal) => format!("{path} with its journal on {}", journal.display()),
        }
    }

    fn params(&self) -> DriveParams {
        DriveParams {
            drive: self.name.clone(),
            place: self.place(),
            geometry: Geometry {
                media: self.media,
                drive_bytes: self.bytes(),
                journal_bytes: self.journal_bytes(),
                journal: self.journal_place(),
                replicas_max: self.replicas_max,
                memory_bytes: self.memory_bytes(),
            },
            capacity: self.capacity(),
            rate: Rate {
                iops: Iops::new(self.iops),
                throughput: MibPerSec::new(self.throughput_mib),
            },
            media: self.media,
            emulation: self.emulation.as_ref().map(EmulationConfig::name),
        }
    }

    fn options(&self, path: &Path, bytes: u64) -> DriveOptions {
        DriveOptions {
            path: path.to_owned(),
            bytes,
            threads: self.threads,
            direct: true,
            kind: self.driver,
            flush: self.flush,
            lock_wait: LOCK_WAIT,
        }
    }

    /// The driver of its journal, if that lies apart. It is opened before the drive, so that none
    /// is made for a drive in use that has lost its own.
    pub(super) fn open_journal(&self, sink: Sink) -> anyhow::Result<Option<Box<dyn Driver>>> {
        let Some(path) = &self.journal_path else { return Ok(None) };
        let (drive, at) = (&self.name, self.path.display());
        let told = || format!("the journal of drive '{drive}' ({at}) at {}", path.display());
        if !path.exists() && !drive::is_blank(&self.path).with_context(told)? {
            bail!(
                "{} is missing, and the drive is in use: mount what it lies on or bring it back; \
                 it has acknowledged changes that are nowhere else. If it is lost, wipe the first \
                 8 KiB of the drive to format it anew; replicas are then filled from their other \
                 copies",
                told()
            );
        }
        let options = self.options(path, self.journal_bytes());
        Ok(Some(drive::open(&options, sink).with_context(told)?))
    }

    pub(super) fn open(&self, sink: Sink) -> anyhow::Result<Box<dyn Driver>> {
        let options = self.options(&self.path, self.bytes());
        Ok(match &self.emulation {
            None => drive::open(&options, sink)?,
            Some(emulation) => Box::new(Emulated::open(emulation.profile(), &options, sink)?),
        })
    }
}

impl EmulationConfig {
    const SEEK_MS_MAX: f64 = 1000.0;

    fn check(&self) -> anyhow::Result<()> {
        let legal = (0.0..=Self::SEEK_MS_MAX).contains(&self.seek_ms);
        ensure!(legal, "'emulation.seek_ms' must be 0 to {}", Self::SEEK_MS_MAX);
        ensure!(self.ops_per_sec > 0, "'emulation.ops_per_sec' is 0");
        ensure!(self.mib_per_sec > 0, "'emulation.mib_per_sec' is 0");
        Ok(())
    }

    fn profile(&self) -> Profile {
        Profile {
            seek: Duration::from_secs_f64(self.seek_ms / 1000.0),
            ops_per_sec: self.ops_per_sec,
            mib_per_sec: self.mib_per_sec,
        }
    }

    /// How reports name it, so that nobody takes its numbers for a real disk's.
    fn name(&self) -> String {
        let Self { seek_ms, ops_per_sec, mib_per_sec } = self;
        format!("hdd: {seek_ms} ms seek, {ops_per_sec} ops/s, {mib_per_sec} MiB/s")
    }
}
