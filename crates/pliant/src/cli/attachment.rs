//! `pliant attachment …`.

use clap::Subcommand;
use model::id::{InstanceId, VolumeId};
use serde_json::{Value, json};

use super::{
    Reach,
    client::Client,
    table::{Rows, elements, text},
    wait,
};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Attach a volume to an instance
    #[command(after_help = "Examples:\n  \
        pliant attachment create vol-0123456789abcdef0 --instance i-0123456789abcdef0 \\\n    \
            --device /dev/sdf --wait\n  \
        pliant attachment create vol-0123456789abcdef0 --instance i-0123456789abcdef0 \\\n    \
            --kernel-device --wait --json")]
    Create {
        volume: VolumeId,
        #[arg(long)]
        instance: InstanceId,
        /// The name that the attachment goes by, as in EC2
        #[arg(long, default_value = "/dev/sdf")]
        device: String,
        /// Also make a kernel block device on the node (needs root there)
        #[arg(long)]
        kernel_device: bool,
        /// Wait until programs can use it
        #[arg(long)]
        wait: bool,
    },
    /// List attachments with their NBD addresses and kernel devices
    List {
        /// Only those of this volume
        #[arg(long)]
        volume: Option<VolumeId>,
    },
    /// Detach a volume: what is in flight finishes first
    #[command(after_help = "Example:\n  \
        pliant attachment delete vol-0123456789abcdef0 --wait")]
    Delete {
        volume: VolumeId,
        /// Needed when the volume is attached to several
        #[arg(long)]
        instance: Option<InstanceId>,
        /// Do not wait for the node manager: it is fenced off
        #[arg(long)]
        force: bool,
        /// Wait until nothing of the attachment can reach the volume
        #[arg(long)]
        wait: bool,
    },
}

pub fn run(reach: &Reach, command: Command) -> anyhow::Result<()> {
    let client = reach.client()?;
    match command {
        Command::Create { volume, instance, device, kernel_device, wait } => {
            let ask = json!({
                "volume_id": volume, "instance_id": instance, "device": device,
                "kernel_device": kernel_device,
            });
            let mut attachment = client.post("/v1/attachments", &ask)?;
            if wait {
                attachment = wait::until(&client, "attached", |client| {
                    let found = find(client, volume, Some(instance))?;
                    Ok(found.filter(|found| found["state"] == "attached"))
                })?;
            }
            reach.print(&attachment, print_one)
        }
        Command::List { volume } => {
            let mut answer = client.get("/v1/attachments")?;
            if let (Some(volume), Some(all)) = (volume, answer["attachments"].as_array_mut()) {
                all.retain(|one| one["volume_id"] == volume.to_string().as_str());
            }
            reach.print(&answer, print_all)
        }
        Command::Delete { volume, instance, force, wait } => {
            let ask = json!({ "volume_id": volume, "instance_id": instance, "force": force });
            let attachment = client.post("/v1/attachments/detach", &ask)?;
            if wait {
                wait::until(&client, "detached", |client| {
                    Ok(find(client, volume, instance)?.is_none().then_some(Value::Null))
                })?;
            }
            reach.print(&attachment, |attachment| {
                let state = if wait { "detached".to_owned() } else { text(attachment, "state") };
                format!("{volume} is {state}")
            })
        }
    }
}

fn find(
    client: &Client,
    volume: VolumeId,
    instance: Option<InstanceId>,
) -> anyhow::Result<Option<Value>> {
    let answer = client.get("/v1/attachments")?;
    let volume = volume.to_string();
    let instance = instance.map(|instance| instance.to_string());
    let wanted = |one: &&Value| {
        one["volume_id"] == volume.as_str()
            && instance.as_ref().is_none_or(|instance| one["instance_id"] == instance.as_str())
    };
    Ok(elements(&answer, "attachments").iter().find(wanted).cloned())
}

fn print_one(attachment: &Value) -> String {
    let mut lines = vec![format!(
        "{} is {} to {} as {}",
        text(attachment, "volume_id"),
        text(attachment, "state"),
        text(attachment, "instance_id"),
        text(attachment, "device"),
    )];
    lines.extend(addresses(attachment));
    lines.join("\n")
}

fn addresses(attachment: &Value) -> impl Iterator<Item = String> {
    let device = attachment["kernel_device"].as_str();
    let uris = elements(attachment, "nbd_uris").iter().filter_map(Value::as_str);
    device.into_iter().chain(uris).map(str::to_owned)
}

fn print_all(answer: &Value) -> String {
    let header = ["VOLUME", "INSTANCE", "DEVICE", "STATE", "ADDRESS"];
    let mut rows = Rows::new(header, "nothing is attached");
    for attachment in elements(answer, "attachments") {
        let addresses: Vec<_> = addresses(attachment).collect();
        rows.push([
            text(attachment, "volume_id"),
            text(attachment, "instance_id"),
            text(attachment, "device"),
            text(attachment, "state"),
            addresses.join(" "),
        ]);
    }
    rows.print()
}
