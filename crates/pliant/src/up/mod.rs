//! `pliant up`: a whole service on this machine, one process per role, in one directory.
//!
//! Decides: which processes there are, their ports, keys and drives; when a process that died is
//! started again.
//! Does not: know what the processes do. They are the same `pliant manager`, `server` and `node`
//! that a real cluster runs, each with its own configuration file.
//! Invariants: one supervisor per directory; no process outlives it; what was chosen at the first
//! start (ports, keys, instances) is kept, so that a later start goes on with the same data.

mod files;
mod ports;
mod ready;
mod settings;
mod supervise;

use std::{fs, path::PathBuf};

use anyhow::{Context, bail};

pub use settings::Emulation;
use settings::Settings;

/// Run a whole service on this machine: one manager, BDS servers and a node manager per zone
///
/// Prints one line, `ready http://127.0.0.1:PORT`, when the service can be used, and runs until
/// Ctrl-C. The same command on the same directory goes on with the same data.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  \
    pliant up --dir /tmp/pliant\n  \
    . /tmp/pliant/env && pliant volume create --zone local-1a --size 8 --wait\n  \
    pliant up --dir /tmp/pliant --zones a,b --servers-per-zone 3 --port 0\n\n\
    In DIR: env (shell exports), config/, drives/, log/NAME.log, run/NAME.pid, archive/.\n\
    Drives are thin files. `hdd` drives emulate a hard disk's seek time and rates.")]
pub struct Args {
    /// Where everything is kept
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Name of the region [default: local-1]
    #[arg(long)]
    region: Option<String>,
    /// Letters of the zones: zone `a` of region `local-1` is `local-1a` [default: a,b,c]
    #[arg(long, value_delimiter = ',', value_name = "LETTERS")]
    zones: Option<Vec<String>>,
    /// BDS servers in each zone [default: 2]
    #[arg(long, value_name = "N")]
    servers_per_zone: Option<u32>,
    /// Port of the API; 0 takes any free one and keeps it [default: 7480]
    #[arg(long)]
    port: Option<u16>,
    /// Root account, 12 digits [default: made at the first start]
    #[arg(long, value_name = "ID")]
    account: Option<model::id::AccountId>,
    /// Access key of the root account [default: made at the first start]
    #[arg(long, value_name = "KEY")]
    access_key: Option<String>,
    /// Its secret [default: made at the first start]
    #[arg(long, value_name = "SECRET")]
    secret_key: Option<String>,
    /// Leave a process that died dead
    #[arg(long)]
    no_restart: bool,
    /// Seconds that a server may be away before its replicas are made anew elsewhere [default: 10]
    #[arg(long, value_name = "SECS")]
    remirror_delay: Option<f64>,
    #[command(flatten)]
    drives: settings::DriveArgs,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    fs::create_dir_all(&args.dir).with_context(|| format!("cannot make {}", args.dir.display()))?;
    let dir = args.dir.canonicalize().with_context(|| format!("{}", args.dir.display()))?;
    let lock = lock(&dir)?;
    let settings = Settings::prepare(&dir, args)?;
    let processes = files::write(&dir, &settings)?;
    let ended = supervise::run(&supervise::Service {
        dir,
        processes,
        restart: !args.no_restart,
        endpoint: settings.endpoint(),
        servers: settings.servers.len(),
        nodes: settings.nodes.len(),
    });
    drop(lock);
    ended
}

/// Held until it is dropped or the process ends, however it ends.
fn lock(dir: &std::path::Path) -> anyhow::Result<fs::File> {
    let path = dir.join("lock");
    let file =
        fs::File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            bail!("another `pliant up` runs in {}; stop it or use another directory", dir.display())
        }
        Err(fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}
