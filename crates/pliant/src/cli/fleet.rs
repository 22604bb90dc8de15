//! `pliant server list|show|cordon|uncordon|drain`, `pliant node|instance|zone list`.

use anyhow::bail;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::{
    Reach,
    client::Client,
    table::{Rows, bytes, elements, number, text, up},
    wait,
};

#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// List the servers' drives: how each stands, what it holds and has promised
    List(Reach),
    /// Show one server's drives in full: space, journal, memory, damage, scrub
    Show {
        server: String,
        #[command(flatten)]
        reach: Reach,
    },
    /// Place nothing new on a server; what it has stays. Ends a drain
    Cordon(Duty),
    /// Place replicas on a server again. Ends a drain
    Uncordon(Duty),
    /// Move every replica of a server to others while the volumes are used, and place nothing new
    #[command(after_help = "Example, before a server is taken away or upgraded:\n  \
        pliant server drain server-a-1 --wait && systemctl stop pliant-server")]
    Drain {
        #[command(flatten)]
        of: Duty,
        /// Show progress until the server is empty; interrupting it does not end the drain
        #[arg(long)]
        wait: bool,
    },
}

#[derive(Debug, Clone, Args)]
pub struct Duty {
    server: String,
    #[command(flatten)]
    reach: Reach,
}

pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::List(reach) => servers(&reach),
        Command::Show { server, reach } => show(&reach, &server),
        Command::Cordon(of) => of.reach.print(&of.set("cordon")?, readable),
        Command::Uncordon(of) => of.reach.print(&of.set("uncordon")?, readable),
        Command::Drain { of, wait } => {
            let begun = of.set("drain")?;
            let server = if wait { emptied(&of)? } else { begun };
            of.reach.print(&server, readable)
        }
    }
}

impl Duty {
    fn set(&self, duty: &str) -> anyhow::Result<Value> {
        let path = format!("/v1/servers/{}/{duty}", self.server);
        self.reach.client()?.post(&path, &json!({}))
    }
}

/// Shows progress on standard error until the server has no replicas, and gives how it stands then.
fn emptied(of: &Duty) -> anyhow::Result<Value> {
    let client = of.reach.client()?;
    let bar = ProgressBar::new(100);
    let style = ProgressStyle::with_template("{msg}\n[{bar:50}] {pos:>3}%");
    bar.set_style(style.expect("the template is well formed"));
    let mut shown = String::new();
    let ended = wait::until(&client, "empty", |client| {
        let server = named(client, &of.server)?;
        let drain = &server["drain"];
        if number(&server, "replicas") > 0 && drain.is_null() {
            bail!("the drain of {} was ended by somebody else", of.server);
        }
        let line = progress(&server);
        let (moved, left) = (number(drain, "bytes_moved"), number(drain, "bytes_left"));
        bar.set_position(moved.saturating_mul(100).checked_div(moved + left).unwrap_or(0));
        bar.set_message(line.clone());
        if bar.is_hidden() && shown != line {
            eprintln!("{line}");
            shown = line;
        }
        Ok((number(&server, "replicas") == 0).then_some(server))
    });
    bar.finish_and_clear();
    ended
}

fn progress(server: &Value) -> String {
    let drain = &server["drain"];
    let mut line = format!(
        "{} replicas left, {} of them on their way, {} moved, {} left",
        number(server, "replicas"),
        number(drain, "replicas_leaving"),
        bytes(number(drain, "bytes_moved")),
        bytes(number(drain, "bytes_left"))
    );
    if let Some(seconds) = drain["eta_seconds"].as_u64() {
        line += &format!(", {}/s, about {seconds} s more", bytes(number(drain, "bytes_per_sec")));
    }
    if let Some(stuck) = drain["stuck"].as_str() {
        line += &format!("; waits: {stuck}");
    }
    line
}

fn servers(reach: &Reach) -> anyhow::Result<()> {
    reach.print(&reach.client()?.get("/v1/servers")?, |answer| {
        let header = [
            "SERVER",
            "ZONE",
            "STATE",
            "DRIVE",
            "MEDIA",
            "DRIVE STATE",
            "USED",
            "PROMISED",
            "IOPS",
            "MiB/s",
            "EMULATES",
        ];
        let mut rows = Rows::new(header, "no server has registered yet");
        for server in elements(answer, "servers") {
            for drive in elements(server, "drives") {
                rows.push(drive_row(server, drive));
            }
        }
        rows.print()
    })
}

fn drive_row(server: &Value, drive: &Value) -> [String; 11] {
    let of = |promised: &str, capacity: &str| {
        format!("{} of {}", number(drive, promised), number(drive, capacity))
    };
    [
        text(server, "server"),
        text(server, "zone"),
        standing(server),
        text(drive, "drive"),
        text(drive, "media"),
        state(drive),
        used(&drive["usage"]),
        bytes_of(drive, "promised_bytes", "capacity_bytes"),
        of("promised_iops", "iops"),
        of("promised_throughput_mib", "throughput_mib"),
        text(drive, "emulation"),
    ]
}

/// One word, and another where its data needs attention.
fn state(drive: &Value) -> String {
    let usage = &drive["usage"];
    let mut state = text(drive, "state");
    if number(usage, "bad_blocks_lost") > 0 {
        state.push_str(", lost blocks");
    }
    match usage["fullness"].as_str() {
        Some(fullness) if fullness != "room" => format!("{state}, {fullness}"),
        _ => state,
    }
}

fn used(usage: &Value) -> String {
    if usage.is_null() { "-".to_owned() } else { bytes_of(usage, "used_bytes", "total_bytes") }
}

fn bytes_of(value: &Value, part: &str, whole: &str) -> String {
    format!("{} of {}", bytes(number(value, part)), bytes(number(value, whole)))
}

fn show(reach: &Reach, name: &str) -> anyhow::Result<()> {
    reach.print(&named(&reach.client()?, name)?, readable)
}

fn named(client: &Client, name: &str) -> anyhow::Result<Value> {
    let answer = client.get("/v1/servers")?;
    let Some(server) = elements(&answer, "servers").iter().find(|s| s["server"] == name) else {
        bail!("no server '{name}' has ever registered; `pliant server list` names them");
    };
    Ok(server.clone())
}

/// Up or down, and what operators want of it where that is not the usual.
fn standing(server: &Value) -> String {
    match server["duty"].as_str() {
        Some(duty) if duty != "serving" => format!("{}, {duty}", up(server)),
        _ => up(server),
    }
}

fn readable(server: &Value) -> String {
    let mut lines = vec![format!(
        "{} in {}, {}, {}",
        text(server, "server"),
        text(server, "zone"),
        standing(server),
        text(server, "address")
    )];
    lines.push(if server["drain"].is_null() {
        format!("{} replicas", number(server, "replicas"))
    } else {
        progress(server)
    });
    for drive in elements(server, "drives") {
        lines.push(String::new());
        lines.extend(drive_lines(drive));
    }
    lines.join("\n")
}

fn drive_lines(drive: &Value) -> Vec<String> {
    let mut lines =
        vec![format!("drive {}, {}, {}", text(drive, "drive"), text(drive, "media"), state(drive))];
    if let Some(reason) = drive["reason"].as_str() {
        lines.push(format!("  reason    {reason}"));
    }
    lines.push(format!("  promised  {}", bytes_of(drive, "promised_bytes", "capacity_bytes")));
    let usage = &drive["usage"];
    if usage.is_null() {
        lines.push("  its server has reported no more yet".to_owned());
        return lines;
    }
    let bound = usage["memory_max_bytes"].as_u64();
    lines.push(format!("  used      {}", bytes_of(usage, "used_bytes", "total_bytes")));
    if let Some(stuck) = usage["stuck"].as_str() {
        lines.push(format!("  stuck     {stuck}"));
    }
    lines.extend([
        format!("  waiting   {} changes for space", number(usage, "waiting_for_space")),
        format!(
            "  journal   {}{}",
            bytes_of(usage, "journal_used_bytes", "journal_bytes"),
            if usage["journal_apart"] == true { ", on another device" } else { "" }
        ),
        format!(
            "  memory    {} of {}",
            bytes(number(usage, "memory_used_bytes")),
            bound.map_or("no bound".to_owned(), bytes)
        ),
        format!(
            "  blocks    {} bad found, {} repaired, {} lost",
            number(usage, "bad_blocks_found"),
            number(usage, "bad_blocks_repaired"),
            number(usage, "bad_blocks_lost")
        ),
        format!(
            "  scrub     {} % of a pass, {} passes, {} read",
            number(usage, "scrub_percent"),
            number(usage, "scrub_passes"),
            bytes(number(usage, "scrubbed_bytes"))
        ),
    ]);
    lines
}

pub fn nodes(reach: &Reach) -> anyhow::Result<()> {
    reach.print(&reach.client()?.get("/v1/nodes")?, |answer| {
        let header = ["NODE", "ZONE", "STATE", "INSTANCES"];
        let mut rows = Rows::new(header, "no node manager has registered yet");
        for node in elements(answer, "nodes") {
            let instances = elements(node, "instance_ids").iter().filter_map(Value::as_str);
            let instances: Vec<_> = instances.collect();
            rows.push([text(node, "node"), text(node, "zone"), up(node), instances.join(" ")]);
        }
        rows.print()
    })
}

pub fn instances(reach: &Reach) -> anyhow::Result<()> {
    reach.print(&reach.client()?.get("/v1/instances")?, |answer| {
        let header = ["INSTANCE", "ZONE", "NODE", "STATE"];
        let mut rows = Rows::new(header, "no instance has registered yet");
        for instance in elements(answer, "instances") {
            rows.push([
                text(instance, "instance_id"),
                text(instance, "zone"),
                text(instance, "node"),
                up(instance),
            ]);
        }
        rows.print()
    })
}

pub fn zones(reach: &Reach) -> anyhow::Result<()> {
    reach.print(&reach.client()?.get("/v1/zones")?, |answer| {
        let mut rows = Rows::new(["ZONE", "ID"], "no zone");
        for zone in elements(answer, "zones") {
            rows.push([text(zone, "zone"), text(zone, "zone_id")]);
        }
        rows.print()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_drive_that_needs_attention_says_so_in_the_list() {
        let drive = |state: &str, fullness: &str, lost: u64| json!({"state": state, "usage": {"fullness": fullness, "bad_blocks_lost": lost}});
        assert_eq!(state(&drive("serving", "room", 0)), "serving");
        assert_eq!(state(&drive("serving", "full", 0)), "serving, full");
        assert_eq!(state(&drive("serving", "nearly-full", 2)), "serving, lost blocks, nearly-full");
        assert_eq!(state(&json!({"state": "unknown", "usage": null})), "unknown");
    }

    #[test]
    fn what_has_not_been_reported_is_not_shown_as_zero() {
        let drive = json!({"drive": "ssd", "media": "ssd", "state": "unknown", "usage": null});
        let lines = drive_lines(&drive).join("\n");
        assert!(lines.contains("reported no more yet") && !lines.contains("journal"), "{lines}");
    }
}
