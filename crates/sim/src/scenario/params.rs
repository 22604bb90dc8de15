//! The processes of a run: a manager, servers with their drives, nodes.

use super::*;

pub(super) fn manager_params() -> ManagerParams {
    ManagerParams {
        cluster: CLUSTER.to_owned(),
        place: Place {
            region: "local-1".to_owned(),
            zones: (0..2).map(zone).collect(),
            endpoint: "http://sim".to_owned(),
        },
        root: RootAccount {
            account: "000000000001".parse().expect("an account"),
            access_key: api::ACCESS_KEY.to_owned(),
            secret: api::SECRET.to_owned(),
        },
        remirror_delay: Duration::from_secs(2),
        timing: control::machine::Timing::default(),
    }
}

pub(super) fn server_params(seed: u64, striped: bool) -> Vec<ServerParams> {
    // Of its own, so that the runs without are what they always were.
    let mut random = Random::new(seed ^ 0x6a6f_7572_6e61_6c73);
    let some_apart = random.below(JOURNALS_APART_ONE_IN) == 0;
    let drive = |name: &str, media: Media| DriveParams {
        drive: name.parse().expect("a name"),
        place: format!("/dev/{name}"),
        geometry: Geometry {
            media,
            drive_bytes: 256 << 20,
            journal_bytes: 4 << 20,
            journal: JournalPlace::Inside,
            replicas_max: 32,
            memory_bytes: 2 << 20,
        },
        capacity: ByteCount::new(100 << 30),
        rate: Rate { iops: Iops::new(50_000), throughput: MibPerSec::new(2_000) },
        media,
        emulation: None,
    };
    let mut drives = vec![drive("ssd", Media::Ssd), drive("hdd", Media::Hdd)];
    if striped {
        drives.extend(["ssd-1", "ssd-2"].map(|name| drive(name, Media::Ssd)));
        drives.extend(["hdd-1", "hdd-2"].map(|name| drive(name, Media::Hdd)));
    }
    (0..6u16)
        .map(|n| {
            let letter = if n < 3 { 'a' } else { 'b' };
            let mut drives = drives.clone();
            for drive in &mut drives {
                if some_apart && random.chance(50) {
                    drive.geometry.journal = JournalPlace::Apart;
                }
            }
            ServerParams {
                cluster: CLUSTER.to_owned(),
                server: format!("server-{letter}-{}", n % 3 + 1)
                    .parse::<ServerId>()
                    .expect("a name"),
                boot: BootId::from_raw(0),
                zone: zone(usize::from(n / 3)),
                address: SocketAddr::from(([127, 0, 0, 1], 7_000 + n)),
                drives,
                // Learners wait for each other.
                timing: bds::api::Timing {
                    fills_max: 1 + usize::from(n % 2),
                    ..bds::api::Timing::default()
                },
            }
        })
        .collect()
}

pub(super) fn node_params() -> Vec<NodeParams> {
    (0..2)
        .map(|n| NodeParams {
            cluster: CLUSTER.to_owned(),
            node: if n == 0 { "node-a" } else { "node-b" }.parse().expect("a name"),
            boot: BootId::from_raw(0),
            zone: zone(n),
            account: "000000000001".parse().expect("an account"),
            instances: vec![instance(n)],
            timing: node::api::Timing::default(),
            cached: Vec::new(),
        })
        .collect()
}
