//! `pliant server|node|instance|zone list`.

use serde_json::Value;

use super::{
    Reach,
    table::{Rows, bytes, elements, number, text, up},
};

pub fn servers(reach: &Reach) -> anyhow::Result<()> {
    reach.print(&reach.client()?.get("/v1/servers")?, |answer| {
        let header =
            ["SERVER", "ZONE", "STATE", "DRIVE", "MEDIA", "PROMISED", "IOPS", "MiB/s", "EMULATES"];
        let mut rows = Rows::new(header, "no server has registered yet");
        for server in elements(answer, "servers") {
            for drive in elements(server, "drives") {
                rows.push(drive_row(server, drive));
            }
        }
        rows.print()
    })
}

fn drive_row(server: &Value, drive: &Value) -> [String; 9] {
    let of = |promised: &str, capacity: &str| {
        format!("{} of {}", number(drive, promised), number(drive, capacity))
    };
    let space = format!(
        "{} of {}",
        bytes(number(drive, "promised_bytes")),
        bytes(number(drive, "capacity_bytes"))
    );
    [
        text(server, "server"),
        text(server, "zone"),
        up(server),
        text(drive, "drive"),
        text(drive, "media"),
        space,
        of("promised_iops", "iops"),
        of("promised_throughput_mib", "throughput_mib"),
        text(drive, "emulation"),
    ]
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
