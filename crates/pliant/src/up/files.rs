//! The files of a service's directory, made anew at each start from its settings.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde::Serialize;

use super::settings::{Drive, Emulation, Node, Server, Settings};

/// A process to run: `pliant ROLE --config CONFIG`.
#[derive(Debug, Clone)]
pub struct Process {
    pub name: String,
    pub role: Role,
    pub config: PathBuf,
}

/// In the order in which they are started; stopped the other way round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Manager,
    Server,
    Node,
}

impl Role {
    pub fn subcommand(self) -> &'static str {
        match self {
            Self::Manager => "manager",
            Self::Server => "server",
            Self::Node => "node",
        }
    }
}

#[derive(Serialize)]
struct ManagerFile<'a> {
    cluster: &'a str,
    region: &'a str,
    zones: Vec<String>,
    listen: String,
    api_listen: String,
    metrics_listen: String,
    store: PathBuf,
    account: String,
    access_key: &'a str,
    secret_key: &'a str,
    remirror_delay_ms: u64,
}

#[derive(Serialize)]
struct ServerFile<'a> {
    cluster: &'a str,
    id: &'a str,
    zone: String,
    manager: String,
    listen: String,
    drive: Vec<DriveTable>,
}

#[derive(Serialize)]
struct DriveTable {
    name: &'static str,
    media: &'static str,
    path: PathBuf,
    size_gib: u32,
    capacity_gib: u32,
    journal_mib: u32,
    iops: u32,
    throughput_mib: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    emulation: Option<Emulation>,
}

#[derive(Serialize)]
struct NodeFile<'a> {
    cluster: &'a str,
    id: &'a str,
    zone: String,
    manager: String,
    account: String,
    instances: Vec<String>,
    dir: PathBuf,
    nbd_socket: PathBuf,
    nbd_listen: String,
    kernel_devices: bool,
}

/// Writes every file, and says what to run.
pub fn write(dir: &Path, settings: &Settings) -> anyhow::Result<Vec<Process>> {
    for name in ["config", "run", "log", "drives", "archive", "manager"] {
        make_private_dir(&dir.join(name))?;
    }
    let manager = ManagerFile {
        cluster: &settings.cluster,
        region: &settings.region,
        zones: settings.zones.iter().map(|zone| settings.zone_name(zone)).collect(),
        listen: loopback(settings.control_port),
        api_listen: loopback(settings.api_port),
        metrics_listen: loopback(settings.metrics_port),
        store: dir.join("manager").join("metadata.sqlite"),
        account: settings.account.to_string(),
        access_key: &settings.access_key,
        secret_key: &settings.secret_key,
        remirror_delay_ms: settings.remirror_delay_ms,
    };
    let mut processes = vec![process(dir, "manager", Role::Manager, &manager)?];
    for (name, server) in &settings.servers {
        let file = server_file(dir, settings, name, server)?;
        processes.push(process(dir, name, Role::Server, &file)?);
    }
    for (name, node) in &settings.nodes {
        processes.push(process(dir, name, Role::Node, &node_file(dir, settings, name, node)?)?);
    }
    write_private(&dir.join("env"), environment(dir, settings).as_bytes())?;
    Ok(processes)
}

fn server_file<'a>(
    dir: &Path,
    settings: &'a Settings,
    name: &'a str,
    server: &Server,
) -> anyhow::Result<ServerFile<'a>> {
    let drives = dir.join("drives").join(name);
    make_private_dir(&drives)?;
    let table = |name, drive: &Drive, emulation| DriveTable {
        name,
        media: name,
        path: drives.join(name),
        // The file is thin, so the room for the engine's own tables costs nothing.
        size_gib: drive.gib + drive.gib / 20 + 2,
        capacity_gib: drive.gib,
        journal_mib: drive.journal_mib,
        iops: drive.iops,
        throughput_mib: drive.throughput_mib,
        emulation,
    };
    Ok(ServerFile {
        cluster: &settings.cluster,
        id: name,
        zone: settings.zone_name(&server.zone),
        manager: loopback(settings.control_port),
        listen: loopback(server.port),
        drive: vec![
            table("ssd", &settings.ssd, None),
            table("hdd", &settings.hdd, Some(settings.hdd_emulation)),
        ],
    })
}

fn node_file<'a>(
    dir: &Path,
    settings: &'a Settings,
    name: &'a str,
    node: &Node,
) -> anyhow::Result<NodeFile<'a>> {
    let own = dir.join("nodes").join(name);
    make_private_dir(&own)?;
    Ok(NodeFile {
        cluster: &settings.cluster,
        id: name,
        zone: settings.zone_name(&node.zone),
        manager: loopback(settings.control_port),
        account: settings.account.to_string(),
        instances: vec![node.instance.to_string()],
        dir: own,
        nbd_socket: dir.join("run").join(format!("{name}.sock")),
        nbd_listen: loopback(node.nbd_port),
        kernel_devices: is_root(),
    })
}

fn process(dir: &Path, name: &str, role: Role, file: &impl Serialize) -> anyhow::Result<Process> {
    let config = dir.join("config").join(format!("{name}.toml"));
    let text = toml::to_string(file).with_context(|| format!("configuration of {name}"))?;
    let text = format!("# Made by `pliant up` at each start; changes are lost.\n{text}");
    write_private(&config, text.as_bytes())?;
    Ok(Process { name: name.to_owned(), role, config })
}

fn environment(dir: &Path, settings: &Settings) -> String {
    let exports = [
        ("AWS_ENDPOINT_URL", settings.endpoint()),
        ("PLIANT_METRICS_URL", settings.metrics_url()),
        ("AWS_ACCESS_KEY_ID", settings.access_key.clone()),
        ("AWS_SECRET_ACCESS_KEY", settings.secret_key.clone()),
        ("AWS_DEFAULT_REGION", settings.region.clone()),
        ("PLIANT_DIR", dir.display().to_string()),
    ];
    exports.iter().fold(String::new(), |mut text, (name, value)| {
        let quoted = value.replace('\'', r"'\''");
        writeln!(text, "export {name}='{quoted}'").expect("a string takes what is written to it");
        text
    })
}

fn loopback(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

fn make_private_dir(path: &Path) -> anyhow::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(path).with_context(|| format!("cannot make {}", path.display()))
}

/// Replaces a file whole, readable by its owner alone.
pub fn write_private(path: &Path, contents: &[u8]) -> anyhow::Result<()> {
    let new = path.with_added_extension("new");
    let written = || -> std::io::Result<()> {
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}
