//! `pliant volume …`.

mod print;
mod progress;

use anyhow::bail;
use clap::{Args, Subcommand};
use model::{id::VolumeId, volume::VolumeType};
use serde_json::{Map, Value, json};

use super::{
    Reach,
    client::Client,
    table::{elements, text},
    wait,
};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a volume
    #[command(after_help = "Examples:\n  \
        pliant volume create --zone local-1a --size 8 --wait\n  \
        pliant volume create --zone local-1b --size 100 --type io2 --iops 4000 --tag Name=db\n  \
        pliant volume create --zone local-1a --size 100 --stripes 4")]
    Create(Create),
    /// List volumes
    List,
    /// Show one volume with its replicas, attachments and modification
    Show { volume: VolumeId },
    /// Change size, type, zone, rate or stripes while the volume is used; any combination at once
    #[command(after_help = "Examples:\n  \
        pliant volume modify vol-0123456789abcdef0 --size 16 --wait\n  \
        pliant volume modify vol-0123456789abcdef0 --type gp3 --zone local-1b --iops 6000 \\\n    \
            --throughput 250 --dry-run")]
    Modify(Modify),
    /// List the modifications of a volume, oldest first
    Modifications { volume: VolumeId },
    /// Read and verify all replicas of a volume now, and repair what is damaged
    #[command(after_help = "Examples:\n  \
        pliant volume scrub vol-0123456789abcdef0 --wait")]
    Scrub(Scrub),
    /// Delete a volume that is not attached
    Delete { volume: VolumeId },
}

#[derive(Debug, Args)]
pub struct Create {
    /// Such as local-1a; `pliant zone list` names them
    #[arg(long)]
    zone: String,
    /// GiB
    #[arg(long, value_name = "GIB")]
    size: u32,
    #[arg(long = "type", value_name = "TYPE", default_value = "gp3")]
    volume_type: VolumeType,
    /// I/O operations per second, where the type takes them (gp3, io1, io2)
    #[arg(long)]
    iops: Option<u32>,
    /// MiB/s, where the type takes it (gp3)
    #[arg(long, value_name = "MIB")]
    throughput: Option<u32>,
    /// Drives of its server that each replica is striped over, 1 to 8: faster than one drive, and
    /// lost with any of them (the other replica takes over)
    #[arg(long, value_name = "DRIVES")]
    stripes: Option<u32>,
    /// KEY=VALUE; may be repeated
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = parse_tag)]
    tags: Vec<(String, String)>,
    /// The same token again returns the volume that it made
    #[arg(long, value_name = "TOKEN")]
    client_token: Option<String>,
    /// Wait until it can be attached
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, Args)]
pub struct Scrub {
    volume: VolumeId,
    /// Wait until everything has been read, showing progress
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, Args)]
pub struct Modify {
    volume: VolumeId,
    #[command(flatten)]
    target: Target,
    /// Only say whether it would be accepted
    #[arg(long)]
    dry_run: bool,
    /// Wait until it has completed, showing progress
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
}

/// What is not given stays.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Target {
    /// GiB; volumes only grow
    #[arg(long, value_name = "GIB")]
    size: Option<u32>,
    #[arg(long = "type", value_name = "TYPE")]
    volume_type: Option<VolumeType>,
    /// I/O operations per second
    #[arg(long)]
    iops: Option<u32>,
    /// MiB/s
    #[arg(long, value_name = "MIB")]
    throughput: Option<u32>,
    /// Where the data is to be
    #[arg(long)]
    zone: Option<String>,
    /// Drives of its server that each replica is striped over, 1 to 8
    #[arg(long, value_name = "DRIVES")]
    stripes: Option<u32>,
}

fn parse_tag(argument: &str) -> Result<(String, String), String> {
    match argument.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a tag is KEY=VALUE, such as Name=db".to_owned()),
    }
}

pub fn run(reach: &Reach, command: Command) -> anyhow::Result<()> {
    let client = reach.client()?;
    match command {
        Command::Create(create) => reach.print(&made(&client, create)?, print::one),
        Command::List => reach.print(&client.get("/v1/volumes")?, print::all),
        Command::Show { volume } => reach.print(&client.get(&path(volume))?, print::one),
        Command::Modify(modify) => reach.print(&modified(&client, &modify)?, print::modification),
        Command::Modifications { volume } => {
            let answer = client.get(&format!("{}/modifications", path(volume)))?;
            reach.print(&answer, print::modifications)
        }
        Command::Scrub(scrub) => reach.print(&scrubbed(&client, &scrub)?, print::scrub),
        Command::Delete { volume } => {
            let answer = client.delete(&path(volume))?;
            reach.print(&answer, |_| format!("{volume} is being deleted"))
        }
    }
}

fn path(volume: VolumeId) -> String {
    format!("/v1/volumes/{volume}")
}

fn made(client: &Client, create: Create) -> anyhow::Result<Value> {
    let tags: Map<String, Value> =
        create.tags.into_iter().map(|(key, value)| (key, value.into())).collect();
    let mut ask = json!({
        "zone": create.zone, "size_gib": create.size, "volume_type": create.volume_type,
        "tags": tags,
    });
    add(&mut ask, "iops", create.iops);
    add(&mut ask, "throughput_mib", create.throughput);
    add(&mut ask, "stripes", create.stripes);
    add(&mut ask, "client_token", create.client_token);
    let volume = client.post("/v1/volumes", &ask)?;
    if !create.wait {
        return Ok(volume);
    }
    let id: VolumeId = text(&volume, "volume_id").parse()?;
    wait::until(client, "available", |client| {
        let volume = client.get(&path(id))?;
        match volume["state"].as_str() {
            Some("creating") => Ok(None),
            Some("error") => bail!("{id} could not be made: {}", text(&volume, "error")),
            _ => Ok(Some(volume)),
        }
    })
}

fn modified(client: &Client, modify: &Modify) -> anyhow::Result<Value> {
    let target = &modify.target;
    let mut ask = json!({});
    add(&mut ask, "size_gib", target.size);
    add(&mut ask, "volume_type", target.volume_type);
    add(&mut ask, "iops", target.iops);
    add(&mut ask, "throughput_mib", target.throughput);
    add(&mut ask, "zone", target.zone.as_deref());
    add(&mut ask, "stripes", target.stripes);
    if modify.dry_run {
        add(&mut ask, "dry_run", Some(true));
    }
    let begun = client.post(&format!("{}/modify", path(modify.volume)), &ask)?;
    if !modify.wait {
        return Ok(begun);
    }
    progress::watch(client, modify.volume, &begun)
}

fn scrubbed(client: &Client, scrub: &Scrub) -> anyhow::Result<Value> {
    let path = format!("{}/scrub", path(scrub.volume));
    let begun = client.post(&path, &json!({}))?;
    if !scrub.wait {
        return Ok(begun);
    }
    let ended = progress::watch_scrub(client, &path)?;
    let failed = elements(&ended, "replicas").iter().find(|r| !r["failure"].is_null());
    match failed {
        Some(replica) => {
            bail!("{} was not read: {}", text(replica, "replica"), text(replica, "failure"))
        }
        None => Ok(ended),
    }
}

fn add(ask: &mut Value, field: &str, value: Option<impl serde::Serialize>) {
    if let Some(value) = value {
        ask[field] = json!(value);
    }
}
