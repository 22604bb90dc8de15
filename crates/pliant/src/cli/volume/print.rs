//! Volumes and modifications as people read them.

use serde_json::Value;

use crate::cli::table::{Rows, bytes, elements, number, text};

pub fn all(answer: &Value) -> String {
    let header = [
        "VOLUME",
        "STATE",
        "ZONE",
        "TYPE",
        "GiB",
        "IOPS",
        "MiB/s",
        "IN SYNC",
        "ATTACHED TO",
        "MODIFICATION",
    ];
    let empty = "no volumes; make one with `pliant volume create`";
    let mut rows = Rows::new(header, empty);
    for volume in elements(answer, "volumes") {
        let instances = elements(volume, "attachments").iter().map(|a| text(a, "instance_id"));
        let instances: Vec<_> = instances.collect();
        rows.push([
            text(volume, "volume_id"),
            text(volume, "state"),
            text(volume, "zone"),
            text(volume, "volume_type"),
            text(volume, "size_gib"),
            text(volume, "iops"),
            text(volume, "throughput_mib"),
            in_sync(volume),
            if instances.is_empty() { "-".to_owned() } else { instances.join(" ") },
            current(&volume["modification"]),
        ]);
    }
    rows.print()
}

fn in_sync(volume: &Value) -> String {
    let degraded = match (volume["impaired"] == true, volume["degraded"] == true) {
        (true, _) => " (impaired)",
        (false, true) => " (degraded)",
        (false, false) => "",
    };
    format!("{} of {}{degraded}", number(volume, "in_sync"), number(volume, "wanted"))
}

fn current(modification: &Value) -> String {
    match modification["state"].as_str() {
        Some(state @ ("modifying" | "optimizing")) => {
            format!("{state} {}%", number(modification, "progress_percent"))
        }
        Some(state) => state.to_owned(),
        None => "-".to_owned(),
    }
}

pub fn one(volume: &Value) -> String {
    let mut lines = vec![
        format!("{} is {}", text(volume, "volume_id"), text(volume, "state")),
        format!("  what      {}", parameters(volume)),
        format!("  made      {} by account {}", text(volume, "created"), text(volume, "account")),
        format!("  in sync   {} replicas, epoch {}", in_sync(volume), text(volume, "epoch")),
    ];
    if let Some(error) = volume["error"].as_str() {
        lines.push(format!("  error     {error}"));
    }
    let faults = elements(volume, "faults").iter().filter_map(Value::as_str);
    lines.extend(faults.map(|fault| format!("  fault     {fault}")));
    for (key, value) in volume["tags"].as_object().into_iter().flatten() {
        lines.push(format!("  tag       {key}={}", value.as_str().unwrap_or_default()));
    }
    lines.extend(elements(volume, "replicas").iter().map(replica));
    for attachment in elements(volume, "attachments") {
        let addresses = elements(attachment, "nbd_uris").iter().filter_map(Value::as_str);
        let device = attachment["kernel_device"].as_str();
        let addresses: Vec<_> = device.into_iter().chain(addresses).collect();
        lines.push(format!(
            "  {:<9} to {} as {}  {}",
            text(attachment, "state"),
            text(attachment, "instance_id"),
            text(attachment, "device"),
            addresses.join("  "),
        ));
        if let Some(error) = attachment["device_error"].as_str() {
            lines.push(format!("            no kernel device: {error}"));
        }
    }
    if volume["modification"].is_object() {
        lines.push(format!("  {}", modification(&volume["modification"])));
    }
    lines.join("\n")
}

fn replica(replica: &Value) -> String {
    let state = match replica["state"].as_str() {
        None | Some("up") => String::new(),
        Some(state) => format!(", {}", state.replace('-', " ")),
    };
    let emulation = replica["emulation"].as_str();
    let emulation = emulation.map_or_else(String::new, |text| format!(", emulated ({text})"));
    let drives: Vec<_> = elements(replica, "drives").iter().filter_map(Value::as_str).collect();
    format!(
        "  {:<9} {}/{} in {}, {}{emulation}{state}",
        text(replica, "role"),
        text(replica, "server"),
        drives.join("+"),
        text(replica, "zone"),
        text(replica, "media"),
    )
}

fn parameters(value: &Value) -> String {
    let stripes = match number(value, "stripes") {
        0 | 1 => String::new(),
        stripes => format!(", {stripes} stripes"),
    };
    format!(
        "{} GiB {} in {}, {} IOPS, {} MiB/s{stripes}",
        text(value, "size_gib"),
        text(value, "volume_type"),
        text(value, "zone"),
        text(value, "iops"),
        text(value, "throughput_mib"),
    )
}

pub fn modification(modification: &Value) -> String {
    let message = modification["status_message"].as_str();
    let mut line = format!(
        "modification {} is {}: {} -> {}",
        text(modification, "number"),
        text(modification, "state"),
        parameters(&modification["original"]),
        parameters(&modification["target"]),
    );
    if matches!(modification["state"].as_str(), Some("modifying" | "optimizing")) {
        line += &format!(" ({}%)", number(modification, "progress_percent"));
    }
    message.map_or(line.clone(), |message| format!("{line}: {message}"))
}

pub fn modifications(answer: &Value) -> String {
    let header = ["NO", "STATE", "STEP", "DONE", "MOVED", "STARTED", "ENDED", "FROM", "TO"];
    let mut rows = Rows::new(header, "the volume was never modified");
    for one in elements(answer, "modifications") {
        rows.push([
            text(one, "number"),
            text(one, "state"),
            text(one, "step"),
            format!("{}%", number(one, "progress_percent")),
            bytes(number(one, "bytes_moved")),
            text(one, "started"),
            text(one, "ended"),
            parameters(&one["original"]),
            parameters(&one["target"]),
        ]);
    }
    rows.print()
}

pub fn scrub(scrub: &Value) -> String {
    let (volume, percent) = (text(scrub, "volume_id"), number(scrub, "percent"));
    let how_far = if scrub["finished"] == true {
        format!("{volume} is verified")
    } else {
        format!(
            "{volume} is being verified, {percent}% so far; `pliant volume scrub {volume} --wait` waits"
        )
    };
    format!(
        "{how_far}: {} read on {} replicas, {} bad blocks found, {} repaired, {} lost",
        bytes(number(scrub, "bytes")),
        elements(scrub, "replicas").len(),
        number(scrub, "bad_blocks_found"),
        number(scrub, "bad_blocks_repaired"),
        number(scrub, "bad_blocks_lost"),
    )
}
